r"""Exact log-likelihood through the probability-flow ODE, with its error budget.

The density of a model is that of its probability flow, $dx/dt = v$, along which

$$ \frac{d}{dt}\log p_t(x_t) = -\nabla\cdot v $$

so that one solve from the data to the prior gives $\log p$. `route` says in which coordinate and between which
levels, `trace` how $\nabla\cdot v$ is found, `equation` how the solvers see it. What separates the number from
the truth is told apart:

* `solver_error`: the equation is solved with a tolerance;
* `standard_error`: the divergence is estimated by random probes, above 128 dimensions;
* `truncation`: the density is that of the data with a little noise, at level `level`. This is no error, but another
  density; the estimate of $\log p_0 - \log p_S$ tells how far apart they are.

Where the prior is that of a sampler, and not the exact $\mathcal N(0, I)$ at $\alpha = 0$, it is part of the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_count, check_finite, check_flag, check_state, check_step_count
from sde_diffusion.denoiser.chunks import chunks
from sde_diffusion.denoiser.clocks import tells_integers
from sde_diffusion.denoiser.conditions import Conditions, check_options
from sde_diffusion.denoiser.modules import Evaluation
from sde_diffusion.likelihood.flow import Flow, Part, check_solver, solve, solve_again
from sde_diffusion.likelihood.result import LogProb
from sde_diffusion.likelihood.route import Density, Span, route_of
from sde_diffusion.likelihood.trace import DEFAULT_PROBES, EXACT_UP_TO, Exact, Orthogonal, Trace
from sde_diffusion.noise.seeds import seed_list
from sde_diffusion.problem import Problem
from sde_diffusion.solvers import RK4, DormandPrince, Solver

EVALUATIONS = 128


class Posed(Protocol):
    """What a likelihood asks of a sampler: its problem, and between which times it solves it."""

    @property
    def problem(self) -> Problem:
        """The process, the model and the prior."""

    @property
    def span(self) -> Span:
        """First and last time, from noise to data."""


@dataclass(frozen=True)
class Method:
    r"""How a log-likelihood is computed.

    Args:
        solver: A solver on plain velocities. By default `DormandPrince` with tolerances 1e-6, or 1e-5 for float32 data;
            each row has its own steps. For a network that is told an index, whose velocity jumps between two of them,
            `RK4`.
        steps: Steps of a solver that does not choose them, uniform in $u^{1/1.5}$; by default as many as take 128
            evaluations. Without a solver they are steps of `RK4`.
        trace: `Exact()` by default up to 128 dimensions, above it `Orthogonal(8)`.
        data_std: $c$ of the angle, the standard deviation of the data; by default what the model knows.
        solver_error: Solves again at ten times the tolerance, at about two thirds of the cost, or with half the steps,
            for the error.

    Raises:
        TypeError: A solver that cannot integrate a bare ODE, or a `trace` that is not a `Trace`.
        ValueError: A number of steps that is not a positive integer.

    Example:
        >>> sampler.log_prob(x0, method=Method(RK4(), steps=40))
    """

    solver: Solver | None = None
    steps: int | None = None
    trace: Trace | None = None
    data_std: float | None = None
    solver_error: bool = True

    def __post_init__(self) -> None:
        if self.solver is not None:
            check_solver(self.solver, "log_prob")
        if self.steps is not None:
            check_step_count(self.steps)
        if self.trace is not None and not isinstance(self.trace, Trace):
            raise TypeError(f"trace must be Exact(), Orthogonal(k) or Rademacher(k), got {self.trace!r}")
        check_flag(self.solver_error, "solver_error")

    def flow(self, problem: Problem, span: Span, density: Density, x: Tensor) -> Flow:
        """The way of a density of data such as `x`, with defaults filled in."""
        solver, steps = self.solver, self.steps
        if solver is None and steps is None and tells_integers(getattr(problem.model, "clock", None)):
            steps = EVALUATIONS // 4  # of RK4: its velocity jumps, where no adaptive step is short enough
        if solver is None:
            tolerance = 1e-6 if x.dtype == torch.float64 else 1e-5
            solver = DormandPrince(tolerance, tolerance) if steps is None else RK4()
        bare, c = solver.bare
        if steps is None:
            steps = 1 if bare.facts.adaptive else EVALUATIONS // (bare.facts.evaluations or 4)
        route = route_of(problem, span, density, c if self.data_std is None else self.data_std)
        return Flow(route, bare, route.grid(bare, steps), self.trace_of(problem.model, x))

    def trace_of(self, model: object, x: Tensor) -> Trace:
        """The trace, exact where it can be by default, in forward mode where parameters cannot keep a graph."""
        trace = self.trace
        if trace is None:
            trace = Exact() if x[0].numel() <= EXACT_UP_TO else Orthogonal(DEFAULT_PROBES)
        if trace.forward is None and isinstance(model, nn.Module):
            frozen = any(p.is_inference() for p in chain(model.parameters(), model.buffers()))
            return cast("Trace", replace(cast("Any", trace), forward=frozen))  # a frozen dataclass, as every trace
        return trace


OPTIONS = {
    name: f"{kind.__name__.lower()}={kind.__name__}({name}=...)"
    for kind in (Density, Method)
    for name in kind.__dataclass_fields__
}
"""How the options are written, none of which is an argument by itself."""


def log_prob(
    of: Posed | Problem,
    x0: Tensor,
    *,
    density: Density = Density(),
    method: Method = Method(),
    seed: int | Sequence[int] | None = None,
    grad: bool = False,
    batch_size: int | None = None,
    **cond: Any,
) -> LogProb:
    r"""Log-likelihood of data under the probability flow of a model, in nats.

    Args:
        of: A sampler, which gives the model, the range of times and the prior; or a `Problem`, on all of its times.
        x0: Data, shape `(B, *)`.
        density: Which density: at which noise level, with which prior.
        method: How it is computed: solver, divergence, whether its error is estimated.
        seed: Decides the probes: `k` gives row `i` the stream `k + i`, a sequence gives those streams, None fresh
            entropy.
        grad: Keeps the graph: the value can be differentiated in the data and in the parameters.
        batch_size: Rows in one solve, all by default; changes memory, and nothing else but for
            `Torchdiffeq` with an adaptive method, whose steps suit the batch.
        **cond: Handed to the model; in batches, what is per sample goes along with the data, see `conditions`. Those
            that are called as an argument here is go in by name, `cond={"density": density}`.

    Raises:
        TypeError: Integer or half-precision data, or an option of `Density` or `Method` given by itself.
        ValueError: Empty or non-finite data, another event shape, or a level out of range.

    Warns:
        LikelihoodWarning: Rows that did not arrive, or a level that the model was not trained on.

    References:
        Chen et al., Neural Ordinary Differential Equations, 2018; Song et al., Score-Based Generative Modeling through
        SDEs, 2021 (Section 4.3); Grathwohl et al., FFJORD, 2019.
    """
    problem, span = posed(of, "log_prob")
    check_finite(check_state(x0, "x0", shape=problem.shape), "x0")
    check_flag(grad, "grad")
    check_kind(density, "density", Density)
    check_kind(method, "method", Method)
    check_options(cond, OPTIONS)
    given = Conditions.of(problem.model, cond, len(x0))
    size = len(x0) if batch_size is None else check_count(batch_size, "batch_size")
    if size < len(x0):
        given.check_apart(f"in batches of {size}")
    seeds = seed_list(seed, len(x0))
    with torch.inference_mode(False), torch.set_grad_enabled(grad), Evaluation(problem.model):
        x, given = ordinary(x0), given.each(ordinary)
        flow = replace(method.flow(problem, span, density, x), grad=grad)
        found: list[LogProb] = []
        for part in chunks(len(x), size, seeds, x, given):
            own = slice(part.first, part.first + part.n)
            probes = flow.trace.probes(seeds[own], x[0].numel(), x[own])
            found.append(
                _weigh(flow, Part(x[own], probes, part.cond, part.first), density.correct, method.solver_error)
            )
        return found[0] if len(found) == 1 else LogProb.join(found)


def _weigh(flow: Flow, part: Part, correct: bool, solver_error: bool) -> LogProb:
    """The log-likelihood of one batch."""
    best = solve(flow, part, warn=True)
    found = LogProb(
        value=best.value + best.truncation if correct else best.value,
        standard_error=best.standard_error,
        solver_error=torch.full_like(best.value, math.nan).detach(),
        truncation=best.truncation.detach(),
        latent=best.latent.to(part.x.dtype),
        nfe=best.nfe,
        converged=best.arrived,
        dim=part.x[0].numel(),
        level=flow.route.level,
        whole=flow.route.whole,
        corrected=correct,
    )
    if not solver_error:
        return found
    error, _, nfe = solve_again(flow, part._replace(x=part.x.detach()), best.value, best.latent)
    return replace(found, solver_error=error, nfe_check=nfe)


def check_kind(value: object, name: str, kind: type) -> None:
    """Raises `TypeError` unless a value that says what or how is one of its kind."""
    if not isinstance(value, kind):
        raise TypeError(
            f"{name} must be a {kind.__name__}, such as Method(DormandPrince()) or Density(level=0.0), got {value!r}"
        )


def ordinary(value: Any) -> Any:
    """A tensor that can be part of a graph: one made in inference mode is copied."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def posed(of: Posed | Problem, what: str) -> tuple[Problem, Span]:
    """The problem of a call named `what`, and between which times a density is asked for."""
    if isinstance(of, Problem):
        return of, (of.sde.t_max, of.sde.t_min)
    problem: object = getattr(of, "problem", None)
    if not isinstance(problem, Problem):
        raise TypeError(
            f"{what} needs a sampler, SDESampler(sde, model), or a Problem(sde, model), got {type(of).__name__}"
        )
    return problem, of.span
