"""What a sampler takes that is told neither solver nor grid: by the budget, the process and what the model answers.

The rule was chosen by `benchmarks/select_defaults.py`. What it decides is an object that the user could have given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from numbers import Integral
from typing import Any, cast

from torch import Tensor

from sde_diffusion.denoiser import predict
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.modules import modules_behind
from sde_diffusion.denoiser.reach import times_of_reach
from sde_diffusion.problem import Problem
from sde_diffusion.sampler._layout import angle_grid
from sde_diffusion.sde import grids
from sde_diffusion.sde.angle import MUCH_NOISE
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.grids import Grid
from sde_diffusion.solvers import Adams, EulerMaruyama, Jump, SDEDPMSolverPP, UniPC
from sde_diffusion.solvers.base import Solver
from sde_diffusion.solvers.jump import Carries

DEFAULT_STEPS = 30
"""Steps of a default solver on a Gaussian SDE, unless told."""
WIDER = 1.4
"""The scale that the default steps are dense about, in standard deviations of the data."""


def default_solver(
    problem: Problem, grid: Grid | Sequence[float] | Tensor | None, *, steps: int | None, nfe: int | None, jump: bool
) -> tuple[Solver, Grid | None]:
    """The solver of a sampler that is given none, with a grid if it is not that of `default_grid`, by the number
    of evaluations of the model: see `docs/solvers.md`.

    Chosen by `benchmarks/select_defaults.py`. An order is what a budget bears: a guided model, which costs two passes
    or more, bears less. A network of the noise or the score is as many times as wrong in the data as there is more
    noise than data, so that the log-SNR counts for it; and with many evaluations for every network. A rule that is
    approximate gets noise, in steps of the log-SNR so that it meets all scales, once these are short enough for it.

    Args:
        problem: What is solved.
        grid: The grid, if one is given.
        steps: As `lay_out`.
        nfe: As `lay_out`.
        jump: As `lay_out`.
    """
    if not isinstance(problem.sde, GaussianSDE):
        return EulerMaruyama(), None
    model: Any = problem.model
    if isinstance(model, Carries):
        return Jump(renoise=getattr(model, "reach", "any") == "data"), None
    budget: object = nfe  # which may be an integer of numpy; what is none will be refused
    wanted: object = steps
    if isinstance(budget, Integral):
        evaluations = int(budget) // problem.price
    elif isinstance(wanted, Integral):
        evaluations = int(wanted) + jump
    else:
        given = not callable(grid) and hasattr(grid, "__len__") and getattr(grid, "ndim", 1) > 0
        evaluations = len(cast("Sequence[float]", grid)) - 1 + jump if given else DEFAULT_STEPS + jump
    if _takes_noise(problem, evaluations):
        return SDEDPMSolverPP(2), _in_log_snr(problem.sde, problem.data_std)
    c = WIDER * problem.data_std
    end: dict[str, Any] = {"data_std": c} if jump else {"data_std": c, "closed": True}
    if _is_network(problem) and _has_log_snr(problem.sde):
        if _answers_noise(problem):
            if evaluations >= 25:
                return UniPC(3), grids.karras
            rate = 0.5 if problem.cost > 1 and evaluations <= 6 else 0.2
            return UniPC(2), None if evaluations >= 10 else partial(grids.balanced, rate=rate, **end)
        if evaluations >= 25:
            return UniPC(3), None
        if evaluations >= 18:  # order 4 would multiply what the network answers amiss
            return Adams(3, "balanced", c), None if problem.cost > 1 else partial(grids.balanced, rate=0.2, **end)
    second, third = (8, 17) if problem.cost > 1 else (0, 17)
    return Adams(2 if evaluations <= second else 3 if evaluations <= third else 4, "balanced", c), None


def trained_times(
    problem: Problem, solver: Solver, *, steps: int | None, nfe: int | None, jump: bool
) -> list[float] | None:
    """The times from which a flow map was trained to jump, where it was for some alone and the solver jumps.

    Args:
        problem: What is solved.
        solver: By what.
        steps: As `lay_out`; what it says must be so.
        nfe: As `lay_out`.
        jump: As `lay_out`.

    Raises:
        ValueError: Other numbers of steps or evaluations than were trained, or without the last, to the data.
    """
    reach = getattr(problem.model, "reach", None)
    if not isinstance(reach, tuple) or solver.facts.least_steps > 0 or not isinstance(problem.sde, GaussianSDE):
        return None
    calls = len(reach) - 1
    if not jump or steps not in (None, calls - 1) or nfe not in (None, calls * problem.price):
        came = f"nfe={nfe}" if nfe is not None else f"steps={steps}" if steps is not None else "denoise=False"
        raise ValueError(
            f"this map was trained for {calls} call{'s' * (calls > 1)}, between the noise levels {reach}, got {came}: "
            f"leave it out, or say nfe={calls * problem.price}; or train it with reach='any', for every number of calls"
        )
    return times_of_reach(reach, problem.sde)


def default_grid(problem: Problem, solver: Solver, *, jump: bool, named: bool = True) -> Grid | tuple[float, ...]:
    """The grid of a solver that is given none: its own, uniform on a general SDE, or what suits solver and model.

    The error of a network is multiplied where there is more noise than data, so that it is given more times there. One
    that steps in the time, where the state grows with the noise or it adds some, gets `grids.karras`, since a long step
    in a large state leaves an error that no later step takes back. Chosen by `benchmarks/select_defaults.py --grids`.

    Args:
        problem: What is solved.
        solver: By what.
        jump: Whether it ends with the data, by `solver.finish`.
        named: Whether the user chose the solver, or it was chosen with its grid, by `default_solver`.
    """
    sde, c = problem.sde, problem.data_std
    if (own := solver.facts.grid) is not None:
        return own
    if not isinstance(sde, GaussianSDE):
        return grids.uniform
    if solver.facts.least_steps == 0:  # by jumps, as those are drawn in the training
        return partial(grids.balanced, rate=0.0, power=1.5, data_std=c)
    if solver.facts.in_time and _long_steps_hurt(sde, solver, c):
        return grids.karras
    if solver.log_spaced and _has_log_snr(sde):
        return grids.log_snr
    network = _is_network(problem)
    if solver.facts.stochastic or (solver.bare[1] is not None and not network):
        return angle_grid(c)
    options: dict[str, Any] = {"data_std": WIDER * c}
    if network and (named or _answers_noise(problem)):
        options |= {"rate": 0.2} if solver.reaches_zero else {"rate": 0.2, "power": 3.0}
    if not (jump and solver.reaches_zero):
        options["closed"] = True
    return partial(grids.balanced, **options)


def _takes_noise(problem: Problem, evaluations: int) -> bool:
    """Whether the model is better solved with noise, by that many evaluations."""
    least = problem.model.noise_from if isinstance(problem.model, Denoiser) else None
    return least is not None and evaluations >= least


def _in_log_snr(sde: GaussianSDE, data_std: float) -> Grid | None:
    """Steps in the log-SNR from where some data are left on; None where the process goes down to no noise at all."""
    if _has_log_snr(sde):
        return grids.log_snr
    return partial(grids.log_snr, most=math.exp(MUCH_NOISE) * data_std) if math.isfinite(sde.ends()[1]) else None


def _is_network(problem: Problem) -> bool:
    """Whether the model is a network, be it behind a function, rather than a formula: whether it has parameters."""
    model = problem.model
    if not isinstance(model, Denoiser) or model.kind is None:
        return False
    return any(True for module in modules_behind(model) for _ in module.parameters())


def _answers_noise(problem: Problem) -> bool:
    """Whether what the model answers is the noise, or the score, which is the noise but for a factor."""
    return isinstance(problem.model, Denoiser) and problem.model.kind in (predict.noise, predict.score)


def _has_log_snr(sde: GaussianSDE) -> bool:
    """Whether some data are left at `t_max`, so that the log-SNR is finite at both ends."""
    return all(map(math.isfinite, sde.ends()))


def _long_steps_hurt(sde: GaussianSDE, solver: Solver, data_std: float) -> bool:
    """Whether noise is added, or the state at `t_max` several times as large as the data; and data are left there."""
    low, high = sde.levels([sde.t_min, sde.t_max])
    small, large = (math.hypot(at.alpha * data_std, at.sigma) for at in (low, high))
    return high.alpha > 0 and (solver.facts.stochastic or large > 3 * small)
