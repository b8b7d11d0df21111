"""The one loop: a solver, an equation, a grid of times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from sde_diffusion._checks import SolverError, as_grid
from sde_diffusion.equation import ODE, ReverseSDE
from sde_diffusion.noise import NoiseSource, Silent
from sde_diffusion.solvers.base import Solver, describe

CHECK_EVERY = 4  # a non-finite state stays so; looking at every state would take a tenth of a cheap step


class Snapshot(NamedTuple):
    """The state of a solve after a step.

    Attributes:
        index: Steps taken; 0 is the initial state.
        t: Time of the state.
        x: The state, shape `(B, *)`.
        nfe: Network evaluations so far, per sample.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody misses on a snapshot
    t: float
    x: Tensor
    nfe: int


def check_capable(eq: ODE, solver: Solver) -> None:
    """Raises `TypeError` unless the equation gives what the solver needs, naming solvers that would work."""
    if isinstance(eq, solver.needs):
        return
    what = (
        f"{type(eq.sde).__name__} is a general SDE" if isinstance(eq, ReverseSDE) else "this equation is an ODE alone"
    )
    use = "EulerMaruyama, Heun or RK4" if isinstance(eq, ReverseSDE) else "Euler, Heun, RK4 or Torchdiffeq"
    raise TypeError(f"{type(solver).__name__} needs {describe(solver.needs)}; {what}. Use {use}")


def integrate(
    eq: ODE, solver: Solver, x: Tensor, times: object, noise: NoiseSource | None = None
) -> Iterator[Snapshot]:
    """Carries `x` along a grid of times, one solver step per interval: the only loop of the library.

    The first snapshot is the initial state. Levels are tabulated before the first step.

    Args:
        eq: The equation.
        solver: The solver.
        x: State at `times[0]`, shape `(B, *)`.
        times: A strictly monotone grid: falling to sample, rising to encode.
        noise: Source of randomness, for a stochastic solver.

    Raises:
        TypeError: The solver needs more than the equation gives.
        ValueError: A grid that is not monotone, or a stochastic solver without noise.
        SolverError: A state that is not finite, with the step, the time and the evaluations so far. Raised within
            four steps, or on an accelerator at the end, where asking costs no synchronisation.
    """
    check_capable(eq, solver)
    source = noise or Silent()
    grid = as_grid(times, *((eq.sde.t_min, eq.sde.t_max) if isinstance(eq, ReverseSDE) else (-math.inf, math.inf)))
    levels = eq.prefill(grid)
    solver.prepare(eq, list(pairwise(grid)))
    deferred = x.device.type != "cpu"
    kept: list[Snapshot] = []
    yield Snapshot(0, grid[0], x, eq.nfe)
    state = None
    for index, (t, s) in enumerate(pairwise(levels), 1):
        x, state = solver.step(eq, x, t, s, state, source)
        now = Snapshot(index, s.t, x, eq.nfe)
        kept.append(now._replace(x=x.detach().sum()) if deferred else now)
        if not deferred and not index % CHECK_EVERY:
            check_numbers(kept)
            kept.clear()
        yield now
    check_numbers(kept)


def check_numbers(solve: Sequence[Snapshot]) -> None:
    """Raises `SolverError` naming the first state that is not finite, if the last one is not."""
    if not solve or math.isfinite(solve[-1].x.sum().item()):
        return
    bad = next(now for now in solve if not math.isfinite(now.x.sum().item()))
    raise SolverError(
        f"non-finite state after step {bad.index} at t = {bad.t:g}, {bad.nfe} network evaluations: either the network "
        "answered NaN or inf there (call it on such a state to see), or the steps are too long (use more)"
    )
