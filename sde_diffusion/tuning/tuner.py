r"""A sampler that fits itself to a model: nodes and coefficients from a few of its own solves, without retraining.

Three steps, for each budget of evaluations: nodes are chosen on a converged flow from a batch of noise, coefficients
are found by least squares on the solve's own way, with and without those of the principal components, and the best
tables are made better as a whole. Then noise that nothing has seen decides between all of these and the solvers that
were made for no model in particular, and the winner is what comes back.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from sde_diffusion._checks import check_count, check_finite, check_flag, check_seed
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.modules import Evaluation
from sde_diffusion.noise.seeds import seed_list
from sde_diffusion.problem import Problem
from sde_diffusion.sde.base import SDE, GaussianSDE
from sde_diffusion.tuning.bench import Bench
from sde_diffusion.tuning.candidates import Candidates
from sde_diffusion.tuning.fitting.reference import flat
from sde_diffusion.tuning.fitting.validation import FOLDS
from sde_diffusion.tuning.made_for import TableWarning
from sde_diffusion.tuning.report import Report
from sde_diffusion.tuning.tuned import Tuned

ROUGH = 0.01
"""Error of the reference, in standard deviations of the data, from which it is told of."""


def tune(
    sde: SDE | Problem,
    model: Denoiser | None = None,
    nfe: int | Sequence[int] = 8,
    *,
    conditions: Mapping[str, Any] | None = None,
    batch: int = 256,
    seed: int = 0,
    objective: str = "ode",
    data: Tensor | None = None,
    components: bool = True,
    refine: bool = True,
    window: int | None = None,
    progress: bool = False,
) -> Tuned:
    r"""Fits samplers of a few evaluations to a model, and returns the best of them and of the standard ones.

    Cost in network evaluations: that of about 350 calls of the batch for the flow that is fitted to, shared by all
    budgets, and for each budget `nfe` of some 40 draws of the batch; a refinement takes the sum up to 800 to 1,000.
    The report states what was spent. No gradient is taken, and memory is bounded whatever the state.

    Args:
        sde: A Gaussian process, or a `Problem` with its model.
        model: The model, in evaluation mode.
        nfe: Network evaluations per sample, one budget or several, each at least 2 calls of the model.
        conditions: Handed to the model, as in `SDESampler.sample`; those per sample have `batch` rows. A guided model
            is tuned at its own guidance scale: the table serves within a factor of 2 of it.
        batch: Samples of calibration, and as many of validation.
        seed: Seed of their noise.
        objective: `"ode"`, the distance to the converged flow, or `"energy"`, the energy distance to `data`: what is
            fitted is the flow in both cases, but the winner is who comes closest.
        data: Samples of the data that were not trained on, for `"energy"`, `(m, *)`.
        components: Whether tables with coefficients of their own for each principal component are tried.
        refine: Whether the best table is refined, if that gains more than 5 %.
        window: How many answers of the network a step combines with the state before it, to save memory; by default all
            with the first state.
        progress: Shows a progress bar.

    Raises:
        TypeError: A general SDE, or a model that is no `Denoiser`.
        ValueError: A budget below 2 calls, a batch too small, a model in training mode, conditions that do not fit.
        SolverError: The model answered NaN or inf, with the noise level and the sample.

    Warns:
        TableWarning: A model of several classes that is tuned without a label, or one whose flow does not converge.

    Example:
        >>> tuned = tune(sde, model, nfe=[5, 8, 12])
        >>> x = tuned.sampler(8).sample(64, seed=0)
        >>> print(tuned.report)

    References:
        Least squares on the solve's own way and the choice of nodes by Gram matrices are new here, as far as we know.
        The family of tables: Shaul et al., Bespoke Non-Stationary Solvers, 2024; Frankel et al., S4S, 2025.
    """
    problem = _problem(sde, model)
    budgets = _budgets(nfe, problem.price)
    if objective not in ("ode", "energy"):
        raise ValueError(f"objective must be 'ode' or 'energy', got {objective!r}")
    for name, flag in (("components", components), ("refine", refine), ("progress", progress)):
        check_flag(flag, name)
    if window is not None:
        check_count(window, "window")
    _check_mode(problem.model)
    held_out = _held_out(objective, data, problem.shape)
    seed_list(check_seed(seed), 1)
    if conditions is not None and not isinstance(cast("object", conditions), Mapping):
        raise TypeError(f"conditions must be a dict of what is handed to the model, by name, got {conditions!r}")
    _tell_of_labels(problem.model, conditions or {})
    start = time.perf_counter()
    with torch.no_grad(), Evaluation(problem.model), _bar(progress, 1 + 3 * len(budgets)) as tick:
        bench = Bench.prepare(problem, dict(conditions or {}), check_count(batch, "batch"), seed, budgets)
        tick()
        if bench.error > ROUGH:
            warnings.warn(
                f"the flow that is fitted to is itself off by {bench.error:.1g} standard deviations of the data: the "
                "network jumps between its levels (times rounded to indices, or noise of its own), and errors below "
                "that are not to be trusted",
                TableWarning,
                stacklevel=2,
            )
        work = Candidates(bench, held_out, components=components, refine=refine, window=window)
        choices, verdicts = {}, []
        for n in budgets:
            choices[n], verdict = work.judge(n, tick)
            verdicts.append(verdict)
    report = Report(
        tuple(verdicts),
        objective,
        batch,
        bench.evaluations,
        bench.error,
        time.perf_counter() - start,
    )
    return Tuned(problem, choices, report)


def _problem(sde: SDE | Problem, model: Denoiser | None) -> Problem:
    """The problem, refused unless its process is Gaussian and its event shape known."""
    if isinstance(sde, Problem):
        if model is not None:
            raise TypeError("a Problem has its model: leave out model, or give tune(sde, model)")
        problem = sde
    else:
        if model is None:
            raise TypeError("tune takes a process and a model: tune(sde, model, nfe=8)")
        problem = Problem(sde, model)
    if not isinstance(problem.sde, GaussianSDE) or not isinstance(problem.model, Denoiser):
        raise TypeError(
            f"tune works on a GaussianSDE with a Denoiser or a score; {type(problem.sde).__name__} is a general SDE"
        )
    if problem.shape is None:
        raise ValueError(
            "the event shape is not known: tune(Problem(sde, model, shape=(3, 32, 32))), or give it to the model, "
            "Network(..., shape=(3, 32, 32))"
        )
    return problem


def _budgets(nfe: int | Sequence[int], cost: int) -> list[int]:
    """The budgets, each at least two calls of the model."""
    given: list[Any] = list(nfe) if isinstance(nfe, (list, tuple, range)) else [nfe]
    if not given:
        raise ValueError("nfe names no budget: give a number of evaluations, 8, or several, [5, 8, 12]")
    for n in given:
        if check_count(n, "nfe") // cost < 2:
            what = f", and each call of this model takes {cost}" if cost > 1 else ""
            raise ValueError(f"nfe must be at least {2 * cost}, got {n}: a table has two rows at least{what}")
    if len(set(given)) < len(given):
        raise ValueError(f"nfe names a budget twice: {given}")
    return given


def _tell_of_labels(model: Any, conditions: Mapping[str, Any]) -> None:
    """Warns of a model of several classes that is tuned without a label: for samples without one."""
    classes = model.built_with().get("classes")
    if classes and "label" not in conditions:
        warnings.warn(
            f"the model knows {classes} classes and is tuned without a label, for samples without one: with labels the "
            f"table would serve less well. Give those of the samples, "
            f"conditions={{'label': torch.arange(batch) % {classes}}}",
            TableWarning,
            stacklevel=3,
        )


def _check_mode(model: Any) -> None:
    """Refuses a model in training mode: its answers would not be those of samples."""
    if any(m.training and next(m.parameters(), None) is not None for m in model.modules()):
        raise ValueError(
            "the model is in training mode, where dropout and running statistics make other answers than in samples: "
            "call model.eval() first"
        )


def _held_out(objective: str, data: Tensor | None, shape: tuple[int, ...] | None) -> Tensor | None:
    """The data that the energy distance is taken to; None for the other objective."""
    if objective == "ode":
        if data is not None:
            raise ValueError("data= is for objective='energy'; the distance to the flow, 'ode', needs none")
        return None
    given: Any = data
    if not isinstance(given, Tensor) or len(given) < 2 * FOLDS:
        raise ValueError(
            f"objective='energy' needs data=, a tensor of {2 * FOLDS} samples or more that were not trained on, "
            f"got {type(given).__name__ if not isinstance(given, Tensor) else tuple(given.shape)}"
        )
    if tuple(given.shape[1:]) != shape:
        raise ValueError(f"data have the event shape {tuple(given.shape[1:])}, and the model works on {shape}")
    return flat(check_finite(given, "data"))


@contextmanager
def _bar(progress: bool, total: int) -> Iterator[Callable[[], None]]:
    """A bar that goes on with each part of the work."""
    with tqdm(total=total, desc="tuning", disable=not progress) as bar:
        yield lambda: cast("None", bar.update())
