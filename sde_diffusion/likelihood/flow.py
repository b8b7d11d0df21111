r"""One solve along a route, from the data to the prior: its value, its errors, and the rows that did not arrive."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion._checks import SolverError
from sde_diffusion._tensors import rows
from sde_diffusion.likelihood.equation import LogDensityODE, allowance, wide
from sde_diffusion.likelihood.route import LikelihoodWarning, Route
from sde_diffusion.likelihood.trace import Trace
from sde_diffusion.solvers import Solver
from sde_diffusion.solvers.base import describe, facts_of
from sde_diffusion.solvers.equation import ODE
from sde_diffusion.solvers.loop import Snapshot, UnfinishedWarning, integrate

FEW = 8
"""Steps of which half say nothing of the error."""


class Part(NamedTuple):
    """A batch of the data.

    Attributes:
        x: The data, `(B, *)`.
        probes: What `trace.probes` gave for them.
        cond: Their conditions.
        before: Rows of earlier batches, for the warnings.
    """

    x: Tensor
    probes: Tensor | None
    cond: dict[str, Any]
    before: int = 0


@dataclass(frozen=True)
class Solved:
    r"""One solve, from the data to the prior.

    Attributes:
        value: Log-density, `(B,)`; NaN where the row did not arrive.
        standard_error: What random probes of the divergence leave open, `(B,)`.
        latent: State at the last end, `(B, *)`.
        arrived: Mask `(B,)`.
        nfe: Network evaluations.
        truncation: Estimate of $\log p_0 - \log p_S$, `(B,)`.
        readings: What each evaluation told, `(B, 2 nfe)`, of a flow that reads.
    """

    value: Tensor
    standard_error: Tensor
    latent: Tensor
    arrived: Tensor
    nfe: int
    truncation: Tensor
    readings: Tensor | None = None


@dataclass(frozen=True)
class Flow:
    """A way of computing a density, ready to be taken: a route and the means.

    Attributes:
        route: Between which ends, and what the density is worth there.
        solver: Takes the equation of the route.
        grid: Its times, rising.
        trace: How the divergence is found.
        grad: Whether the graph is kept.
        reads: Whether what each evaluation tells is kept, of a solver whose rows are evaluated together.
    """

    route: Route
    solver: Solver
    grid: list[float]
    trace: Trace
    grad: bool = False
    reads: bool = False

    def ode(self, like: Tensor, part: Part) -> LogDensityODE:
        """A fresh equation of the state and its log-density, for a batch of the shape and dtype of `like`."""
        inner = self.route.equation(part.cond)
        ode = LogDensityODE(inner, like.shape[1:], like.dtype, self.trace, part.probes, grad=self.grad)
        ode.counter.first = part.before
        ode.readings = [] if self.reads else None
        return ode

    def run(self, ode: LogDensityODE, start: Tensor, times: Sequence[float]) -> Snapshot:
        """The end of a solve."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnfinishedWarning)  # `tell` does, in terms of the rows of the result
            *_, now = integrate(ode, self.solver, start, times)
        return now

    def looser(self) -> Flow:
        """This way at ten times the tolerance, or on every second time; for fewer than `FEW` steps on twice `FEW`."""
        cruder, grid = self.solver.looser(), self.grid
        if self.solver.facts.rtol is not None:
            grid = [grid[0], grid[-1]]
        else:
            grid = [*grid[:-1:2], grid[-1]] if len(grid) > FEW else self.route.grid(cruder, 2 * FEW)
        return replace(self, solver=cruder, grid=grid, grad=False)


def check_solver(solver: Solver, what: str) -> tuple[Solver, float | None]:
    """Returns `solver.bare`, what steps in the angle and its scale; raises `TypeError` unless it takes any ODE."""
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a Solver such as DormandPrince(), got {solver!r}")
    inner, data_std = solver.bare
    facts = facts_of(inner)
    if facts.stochastic:
        raise TypeError(
            f"{what} follows an ODE, but {solver!r} is stochastic: use solver=DormandPrince(), Heun() or RK4()"
        )
    if facts.evaluations == 0:
        raise TypeError(
            f"{what} follows an ODE, but {solver!r} never asks for its velocity: use DormandPrince() or RK4()"
        )
    if facts.needs is not ODE:
        raise TypeError(
            f"{what} integrates a bare ODE, but {solver!r} is no solver of one (it needs {describe(facts.needs)}): "
            "use solver=DormandPrince(), Heun(), RK4() or Torchdiffeq()"
        )
    return inner, data_std


def solve(flow: Flow, part: Part, *, warn: bool) -> Solved:
    """Integrates data to the prior, on a rising grid."""
    x, route, trace = part.x, flow.route, flow.trace
    ode = flow.ode(x, part)
    start = ode.start(x * route.into if x.device.type == "mps" else wide(x) * route.into)
    now = flow.run(ode, start, flow.grid)
    state, integrals = ode.split(now.x)
    latent = state * route.out
    change = ode.d * (math.log(route.out) + math.log(route.into))
    value = route.prior(latent) + change + trace.estimate(integrals)
    arrived = arrivals(ode, now.finished, value)
    if warn:
        tell(ode, arrived, flow, part.before)
    value = torch.where(arrived, value, torch.full_like(value, math.nan))
    error = trace.standard_error(integrals.detach(), ode.d)
    readings = torch.cat(ode.readings, dim=1) if ode.readings else None
    return Solved(value, error, latent, arrived, now.nfe, _truncation(route, ode, start), readings)


def solve_again(flow: Flow, part: Part, value: Tensor, latent: Tensor) -> tuple[Tensor, Tensor, int]:
    r"""The error of a solve, `(B,)`, from a `looser` one of the same data; the `truncation` and evaluations of that.

    $$ \sqrt{(\log p - \log p')^2 + |y_T - y_T'|^2} $$

    with the latents in units of the prior, whose log-density a shift by $\delta$ changes by about $|\delta|$: the two
    log-densities alone agree by chance in some rows, whatever their errors. At least what one adaptive step may make;
    `inf` where the second solve broke down.
    """
    nothing = torch.full_like(value.detach(), math.inf)
    try:
        with torch.no_grad():
            rough = solve(flow.looser(), part, warn=False)
    except SolverError:  # of a state beyond all numbers
        return nothing, nothing * math.nan, 0
    route = flow.route
    if route.data_std is None:
        shift = route.prior(rough.latent) - route.prior(wide(latent.detach()))
    else:
        shift = rows(rough.latent - wide(latent.detach())).norm(dim=1) / route.out
    rtol = flow.solver.facts.rtol
    floor = 0.0 if rtol is None else allowance(rtol, part.x[0].numel())
    error = torch.hypot(value.detach() - rough.value, shift).clamp_min(floor)
    broken = ~rough.arrived & torch.isfinite(value.detach())
    return torch.where(broken, nothing, error), rough.truncation, rough.nfe


def arrivals(ode: LogDensityODE, finished: Tensor | None, value: Tensor) -> Tensor:
    """Mask `(B,)` of the rows that arrived, and whose log-density is a number."""
    arrived = torch.isfinite(value.detach())
    if finished is not None:
        arrived = arrived & finished
    return arrived if ode.failed is None else arrived & ~ode.failed


def tell(ode: LogDensityODE, arrived: Tensor, flow: Flow, before: int = 0) -> None:
    """Warns of rows that did not arrive, counted from `before`, the rows of earlier batches."""
    if bool(arrived.all()):
        return
    n, solver, place = len(arrived), flow.solver, flow.route.place
    lost = ((~arrived).nonzero()[:, 0] + before).tolist()
    broken = [] if ode.failed is None else ode.failed.nonzero()[:, 0].tolist()
    if broken and ode.where is not None and ode.when is not None:
        i = broken[0]
        place_of = f"first for row {i + before} at {place(float(ode.where[i]))} after {int(ode.when[i])} evaluations"
        if solver.facts.adaptive:
            why = f"the network answered NaN, inf or what no step is short enough for, {place_of}"
        else:
            why = f"the network answered NaN or inf, or the steps of {solver!r} are too long, {place_of}"
        why += ". Call it on such a state to see"
    elif solver.facts.adaptive:
        why = f"{solver!r} used up its evaluations before row {lost[0]} arrived. Raise max_nfe or the tolerances"
    else:
        why = f"the state of row {lost[0]} grew beyond all numbers in the steps of {solver!r}. Take more of them"
    warnings.warn(
        f"{len(lost)} of {n} log-likelihoods are NaN, with converged False, and the others stand: {why}",
        LikelihoodWarning,
        stacklevel=5,
    )


def _truncation(route: Route, ode: LogDensityODE, start: Tensor) -> Tensor:
    r"""$\log p_0(x) - \log p_S(x)$ up to $O(S^4)$, by the heat equation, from the first evaluation of the solve.

    $$ -\tfrac{S^2}2\big(\mathrm{tr}\,H + |\nabla\log p_S|^2\big)
       = \tfrac S2\,\nabla\cdot\varepsilon - \tfrac12|\varepsilon|^2, \quad
       \varepsilon = \frac{c\,v + S\,y}{\sqrt{c^2 + S^2}} $$
    """
    s, c = route.level, route.data_std
    if c is None or ode.first is None:
        known = 0.0 if route.ends[0] == 0 else math.nan
        return torch.full_like(start[:, 0], known)
    if s == 0:
        return torch.zeros_like(start[:, 0])
    v, div = ode.first[:, : ode.d], ode.trace.estimate(ode.first[:, ode.d :])
    r = math.hypot(c, s)
    eps = (c * v + s * start[:, : ode.d]) / r
    return 0.5 * s * (c * div + s * ode.d) / r**2 - 0.5 * rows(eps).square().sum(1)
