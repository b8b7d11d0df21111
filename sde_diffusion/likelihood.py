r"""Exact log-likelihood through the probability-flow ODE, with its error budget.

The density of a model is that of its probability flow, $dx/dt = v$, along which

$$ \frac{d}{dt}\log p_t(x_t) = -\nabla\cdot v $$

so that one solve from the data to the prior gives $\log p$. `flow_density` says in which coordinate and between which
levels, `divergence` how $\nabla\cdot v$ is found, `log_density` how the solvers see it. What separates the number from
the truth is told apart:

* `solver_error`: the equation is solved with a tolerance;
* `standard_error`: the divergence is estimated by random probes, above 128 dimensions;
* `truncation`: the density is that of the data with a little noise, at level `level`. This is no error, but another
  density; the estimate of $\log p_0 - \log p_S$ tells how far apart they are.

Where the prior is that of a sampler, and not the exact $\mathcal N(0, I)$ at $\alpha = 0$, it is part of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion import clocks
from sde_diffusion._checks import (
    check_count,
    check_finite,
    check_flag,
    check_positive,
    check_state,
    check_step_count,
)
from sde_diffusion._modules import Evaluation
from sde_diffusion._request import chunks
from sde_diffusion.budget import LogProb
from sde_diffusion.conditions import Conditions
from sde_diffusion.divergence import DEFAULT_PROBES, EXACT_UP_TO, Exact, Orthogonal, Trace, divergence
from sde_diffusion.flow_density import (
    LikelihoodWarning,
    Part,
    Route,
    check_solver,
    gaussian_route,
    general_route,
    solve,
    solve_again,
)
from sde_diffusion.noise import seed_list
from sde_diffusion.sampler import SDESampler
from sde_diffusion.sde import GaussianSDE
from sde_diffusion.solvers import RK4, DormandPrince, Solver

__all__ = ["LikelihoodWarning", "LogProb", "bits_per_dim", "divergence", "log_prob"]

EVALUATIONS = 128


def log_prob(
    sampler: SDESampler,
    x0: Tensor,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    trace: Trace | None = None,
    seed: int | Sequence[int] | None = None,
    level: float | None = None,
    whole: bool | None = None,
    data_std: float | None = None,
    correct: bool = False,
    solver_error: bool = True,
    grad: bool = False,
    batch_size: int | None = None,
    cond: Mapping[str, Any] | None = None,
    **conditions: Any,
) -> LogProb:
    r"""Log-likelihood of data under the probability flow of a sampler's model, in nats.

    Args:
        sampler: Gives the model, the range of noise levels and the prior.
        x0: Data, shape `(B, *)`.
        solver: A solver on plain velocities. By default `DormandPrince` with tolerances 1e-6, or 1e-5 for float32 data;
            each row has its own steps. For a network that is told an index, whose velocity jumps between two of them,
            `RK4`.
        steps: Steps of a solver that does not choose them, uniform in $u^{1/1.5}$; by default as many as take 128
            evaluations. Without a solver, of `RK4`.
        trace: `Exact()` by default up to 128 dimensions, above it `Orthogonal(8)`.
        seed: Of the probes: `k` gives row `i` the stream `k + i`, a sequence gives those streams, None fresh entropy.
        level: Noise level $\sigma/\alpha$ at which to take the density; by default that of the sampler's last time.
            With 0 it is that of the data themselves, for a model that is regular there.
        whole: Integrate up to $\alpha = 0$, where the prior is exact; by default where the model answers there. False:
            up to the first time of the sampler, with its prior: the density of what it draws.
        data_std: $c$ of the angle, the standard deviation of the data; by default what the model knows.
        correct: Adds the `truncation` to the value, which then estimates the density of the data themselves.
        solver_error: Solves again at ten times the tolerance, at about two thirds of the cost, or with half the steps,
            for the error.
        grad: Keeps the graph: the value can be differentiated in the data and in the parameters.
        batch_size: Rows in one solve, all by default; changes memory, and nothing else but for
            `Torchdiffeq` with an adaptive method, whose steps suit the batch.
        cond: Conditions by name, for those that are called as an argument here is: `cond={"level": level}`.
        **conditions: Handed to the model, as those of `cond` are; in batches, what is per sample goes along with the
            data, see `conditions`.

    Raises:
        TypeError: A solver that cannot integrate a bare ODE, or integer or half-precision data.
        ValueError: Empty or non-finite data, another event shape, or a level out of range.

    Warns:
        LikelihoodWarning: Rows that did not arrive, or a level that the model was not trained on.

    References:
        Chen et al., Neural Ordinary Differential Equations, 2018; Song et al., Score-Based Generative Modeling through
        SDEs, 2021 (Section 4.3); Grathwohl et al., FFJORD, 2019.
    """
    if not isinstance(sampler, SDESampler):
        raise TypeError(f"log_prob needs an SDESampler, got {type(sampler).__name__}: SDESampler(sde, model)")
    check_finite(check_state(x0, "x0", shape=sampler.shape), "x0")
    if whole is not None:
        check_flag(whole, "whole")
    for name, flag in (("correct", correct), ("solver_error", solver_error), ("grad", grad)):
        check_flag(flag, name)
    given = Conditions.of(sampler.model, {"cond": cond, **conditions}, len(x0))
    size = len(x0) if batch_size is None else check_count(batch_size, "batch_size")
    if size < len(x0):
        given.check_apart(f"in batches of {size}")
    if solver is None and steps is None and told_an_index(sampler.model):
        steps = EVALUATIONS // 4  # of RK4: its velocity jumps, where no adaptive step is short enough
    solver, steps, data_std = choose_solver(solver, steps, x0, data_std)
    seeds = seed_list(seed, len(x0))
    with torch.inference_mode(False), torch.set_grad_enabled(grad), Evaluation(sampler.model):
        x, given = ordinary(x0), given.each(ordinary)
        route = _route(sampler, level, whole, data_std, correct)
        grid, trace = route.grid(solver, steps), choose_trace(trace, sampler.model, x)
        found: list[LogProb] = []
        for part in chunks(len(x), size, seeds, x, given):
            own = slice(part.first, part.first + part.n)
            probes = trace.probes(seeds[own], x[0].numel(), x[own])
            batch = Part(x[own], probes, part.cond, part.first)
            found.append(_weigh(route, solver, grid, batch, trace, correct, solver_error, grad))
        return found[0] if len(found) == 1 else LogProb.join(found)


def _weigh(
    route: Route,
    solver: Solver,
    grid: list[float],
    part: Part,
    trace: Trace,
    correct: bool,
    solver_error: bool,
    grad: bool,
) -> LogProb:
    """The log-likelihood of one batch."""
    best = solve(route, solver, grid, part, trace, grad=grad, warn=True)
    found = LogProb(
        value=best.value + best.truncation if correct else best.value,
        standard_error=best.standard_error,
        solver_error=torch.full_like(best.value, math.nan).detach(),
        truncation=best.truncation.detach(),
        latent=best.latent.to(part.x.dtype),
        nfe=best.nfe,
        converged=best.arrived,
        level=route.level,
        whole=route.whole,
        corrected=correct,
    )
    if not solver_error:
        return found
    part = part._replace(x=part.x.detach())
    error, _, nfe = solve_again(route, solver, grid, part, trace, best.value, best.latent)
    return replace(found, solver_error=error, nfe_check=nfe)


def choose_solver(
    solver: Solver | None, steps: int | None, x: Tensor, data_std: float | None, what: str = "log_prob"
) -> tuple[Solver, int, float | None]:
    """The solver, its steps and the scale of the angle, with defaults filled in and what cannot work refused."""
    if solver is None:
        tolerance = 1e-6 if x.dtype == torch.float64 else 1e-5
        solver = DormandPrince(tolerance, tolerance) if steps is None else RK4()
    inner, c = check_solver(solver, what)
    if steps is None:
        steps = 1 if inner.facts.adaptive else EVALUATIONS // (inner.facts.evaluations or 4)
    return inner, check_step_count(steps), c if data_std is None else data_std


def choose_trace(trace: Trace | None, model: object, x: Tensor) -> Trace:
    """The trace, exact where it can be by default, in forward mode where parameters cannot keep a graph."""
    if trace is None:
        trace = Exact() if x[0].numel() <= EXACT_UP_TO else Orthogonal(DEFAULT_PROBES)
    if not isinstance(trace, Trace):
        raise TypeError(f"trace must be Exact(), Orthogonal(k) or Rademacher(k), got {trace!r}")
    if trace.forward is None and isinstance(model, nn.Module):
        frozen = any(p.is_inference() for p in chain(model.parameters(), model.buffers()))
        return replace(trace, forward=frozen)  # type: ignore[type-var]  # every trace is a dataclass
    return trace


def told_an_index(model: object) -> bool:
    """Whether a model is a network that is told the index of a noise level."""
    return isinstance(getattr(model, "clock", None), clocks.Index)


def ordinary(value: Any) -> Any:
    """A tensor that can be part of a graph: one made in inference mode is copied."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _route(
    sampler: SDESampler, level: float | None, whole: bool | None, data_std: float | None, correct: bool
) -> Route:
    if isinstance(sampler.sde, GaussianSDE):
        return gaussian_route(sampler, level, whole, data_std)
    if level is not None or whole or correct:
        raise TypeError(
            f"level=, whole= and correct= speak of noise levels, which {type(sampler.sde).__name__}, a general SDE, "
            "does not have: its density is taken at the last time of the sampler, with the prior at t_max"
        )
    return general_route(sampler)


def bits_per_dim(log_prob: Tensor | LogProb, dim: int, *, bin_width: float) -> Tensor:
    r"""$-\big(\log p(x)/D + \log\Delta\big)/\log 2$: the cost in bits of one coordinate known to bins of width
    $\Delta$.

    Args:
        log_prob: Log-density of uniformly dequantised data, in nats, shape `(B,)`.
        dim: $D$, coordinates per sample.
        bin_width: $\Delta$, in the units of the data; there is no default, since it is 2/256 for bytes scaled to
            `[-1, 1]` by
            `2 (v + u) / 256 - 1` and 2/17 for the 17 grey levels of the digits.
    """
    check_positive(bin_width, "bin_width")
    value = log_prob.value if isinstance(log_prob, LogProb) else log_prob
    if not isinstance(value, Tensor):
        raise TypeError(f"log_prob must be a LogProb or a torch.Tensor of nats, got {type(value).__name__}")
    return -(value / check_count(dim, "dim") + math.log(bin_width)) / math.log(2)
