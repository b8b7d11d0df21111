"""The one loop of a solve: one solver step for each interval of a grid of times, and a look at the states."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion._checks import SolverError, check_state, rows_in_words
from sde_diffusion._tensors import broken
from sde_diffusion.noise.sources import SILENT, NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.sde.times import as_grid
from sde_diffusion.solvers.base import Solver, describe
from sde_diffusion.solvers.equation import ODE, GaussianReverseSDE, ReverseSDE


class UnfinishedWarning(UserWarning):
    """An adaptive solver has used up its evaluations before some rows arrived."""


class NonFiniteWarning(UserWarning):
    """Rows of a result that are NaN, as was asked for instead of an error: `nonfinite="keep"`."""


CHECK_EVERY, LARGE = 4, 1 << 14
"""Steps from one look at the state to the next, on the CPU; numbers from which a state is not kept until then."""


class Snapshot(NamedTuple):
    """The state of a solve after a step.

    Attributes:
        index: Steps taken; 0 is the initial state.
        t: Time of the state.
        x: The state, shape `(B, *)`: the solver's own, which goes on from it, so work on a copy.
        nfe: Network evaluations so far, per sample.
        finished: Mask `(B,)` of the rows that stand at `t`, None if all do: an adaptive solver leaves a row where it is
            when the evaluations that it was given are used up.
        vjps: Products with the Jacobian of the network so far, per sample, of a model that differentiates through it.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody misses on a snapshot
    t: float
    x: Tensor
    nfe: int
    finished: Tensor | None = None
    vjps: int = 0


class Course(NamedTuple):
    """A grid of times, found fit for a solve, with its levels: what the solves of one equation on it have in common.

    Attributes:
        times: The grid, strictly monotone.
        levels: The levels at the times.
    """

    times: list[float]
    levels: list[Level]

    @classmethod
    def of(cls, eq: ODE, solver: Solver, times: object) -> Course:
        """The course of a solve, its levels and those between tabulated; or an error that says what cannot work."""
        check_capable(eq, solver)
        ends = (eq.sde.t_min, eq.sde.t_max) if isinstance(eq, ReverseSDE) else (-math.inf, math.inf)
        grid = as_grid(times, *ends, least=solver.facts.least_steps + 1)
        levels = eq.prefill(grid)
        solver.prepare(eq, list(pairwise(grid)))
        return cls(grid, levels)


def check_capable(eq: ODE, solver: Solver) -> None:
    """Raises `TypeError` unless the equation gives what the solver needs, naming solvers that would work."""
    if not isinstance(eq, ODE):
        raise TypeError(f"integrate works on an equation, such as Problem(sde, model).equation(), got {eq!r}")
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a Solver such as Heun(), got {solver!r}")
    needs = solver.facts.needs
    if isinstance(eq, needs):
        return
    what = (
        f"{type(eq.sde).__name__} is a general SDE" if isinstance(eq, ReverseSDE) else "this equation is an ODE alone"
    )
    use = "EulerMaruyama, Heun or RK4" if isinstance(eq, ReverseSDE) else "Euler, Heun, RK4 or Torchdiffeq"
    raise TypeError(f"{type(solver).__name__} needs {describe(needs)}; {what}. Use {use}")


def integrate(
    eq: ODE, solver: Solver, x: Tensor, times: object, noise: NoiseSource | None = None, *, finish: bool = False
) -> Iterator[Snapshot]:
    """Carries `x` along a grid of times, one solver step per interval: the only loop of the library.

    The first snapshot is the initial state. Levels are tabulated before the first step.

    Args:
        eq: The equation.
        solver: The solver.
        x: State at `times[0]`, shape `(B, *)`.
        times: A strictly monotone grid, falling to sample, rising to encode; or its `Course`, from an earlier solve.
        noise: Source of randomness, for a stochastic solver.
        finish: Ends with the data, by `Solver.finish`, in a last snapshot: for the equation of a Gaussian process.

    Raises:
        TypeError: The solver needs more than the equation gives.
        ValueError: A grid that is not monotone, or a stochastic solver without noise.
        SolverError: A state that is not finite, with its rows, the step (where states are large, the last of up to
            four), the time and the evaluations so far. Raised within four steps, or on an accelerator at the end, where
            asking costs no synchronisation. An equation whose counter says `keep` loses such rows instead: they are
            NaN.

    Warns:
        UnfinishedWarning: An adaptive solver that ran out of evaluations; `finished` of the snapshots tells the rows.
    """
    check_state(x, "x")
    grid, levels = times if isinstance(times, Course) else Course.of(eq, solver, times)
    state, source, watch = None, noise or SILENT, Watch(eq, solver, x)
    yield (now := Snapshot(0, grid[0], x, eq.counter.n, vjps=eq.counter.vjps))
    for index in range(1, len(grid)):
        x, state = solver.step(eq, now.x, levels[index - 1], levels[index], state, source)
        yield (now := watch.see(index, grid[index], x))
    watch.close(now)
    if finish and isinstance(eq, GaussianReverseSDE):
        yield watch.end(now, solver.finish(eq, now.x, levels[-1], state))


class Watch:
    """Looks after the states of one solve: raises where one is not finite, tells of rows that were left or lost.

    A non-finite state stays so. Looking at every state would take a tenth of a cheap step, so that on the CPU each
    fourth is looked at, and on an accelerator, where a look waits for the device, the last. Then states kept, or their
    sums, tell which was the first. Large ones are not kept: the buffers of the next steps would be out of the cache.
    """

    __slots__ = ("counter", "deferred", "eq", "finished", "kept", "small", "solver", "start")

    def __init__(self, eq: ODE, solver: Solver, x: Tensor) -> None:
        self.eq, self.solver, self.counter, self.start = eq, solver, eq.counter, x
        self.deferred, self.small = not x.is_cpu, x.numel() < LARGE
        self.kept: list[Snapshot] = []
        self.finished: Tensor | None = None

    def see(self, index: int, t: float, x: Tensor) -> Snapshot:
        """The snapshot of a step, looked at where it is time to; its lost rows are NaN, if the counter says `keep`."""
        counter = self.counter
        if index == 1:
            check_step(x, self.start, self.solver)
        if counter.stopped is not None:
            self._left(counter.stopped, t)
        if counter.keep:
            return Snapshot(index, t, counter.blank(x), counter.n, self.finished, counter.vjps)
        now = Snapshot(index, t, x, counter.n, self.finished, counter.vjps)
        if self.deferred:
            self.kept.append(now._replace(x=x.detach().sum()))
            return now
        if self.small:
            self.kept.append(now)
        if not index % CHECK_EVERY:
            self._look(now, CHECK_EVERY - 1)
        return now

    def _left(self, stopped: Tensor, t: float) -> None:
        """Takes down which rows the solver has left on the way to time `t`; tells of them once."""
        if self.finished is None:
            warn_unfinished(self.eq, self.solver, t)
        self.finished = ~stopped

    def _look(self, now: Snapshot, before: int) -> None:
        """Raises `SolverError` unless a state is finite, of which `before` were not looked at before."""
        check_numbers(self.kept or [now], now.x, 0 if self.kept else before, self.counter.first)
        self.kept.clear()

    def close(self, now: Snapshot) -> None:
        """Looks at the last state, if no step has."""
        if not self.counter.keep and (self.deferred or now.index % CHECK_EVERY):
            self._look(now, (now.index - 1) % CHECK_EVERY)

    def end(self, now: Snapshot, x: Tensor) -> Snapshot:
        """The snapshot of the data `x` that the last state leads to, looked at at once."""
        counter = self.counter
        if now.finished is not None:  # rows left on the way are not at the last level: they stay as they are
            x = torch.where(now.finished.reshape(-1, *([1] * (x.ndim - 1))), x, now.x)
        x = counter.blank(x) if counter.keep else x
        end = Snapshot(now.index + 1, now.t, x, counter.n, now.finished, counter.vjps)
        if not counter.keep:
            check_numbers([end], x, 0, counter.first)
        return end


def check_step(x: object, start: Tensor, solver: Solver) -> None:
    """Raises `TypeError` or `ValueError` unless a step answered a state like the one that it was given."""
    if not isinstance(x, Tensor):
        raise TypeError(f"a step of {solver!r} answered {type(x).__name__}, wanted the pair (state, what to remember)")
    if x.shape != start.shape or x.dtype != start.dtype:
        raise ValueError(
            f"a step of {solver!r} answered a state of shape {tuple(x.shape)} in {x.dtype}, wanted that of the state "
            f"it was given, {tuple(start.shape)} in {start.dtype}"
        )


def warn_unfinished(eq: ODE, solver: Solver, s: float) -> None:
    """Tells which rows a solver has left on the way to time `s`, and what to do."""
    times = sorted(eq.stopped_at())
    where = f"t = {times[0]:g}" + (f" to {times[-1]:g}" if times[-1] > times[0] else "")
    left = torch.zeros(0, device="cpu") if eq.stopped is None else eq.stopped
    warnings.warn(
        f"{len(times)} of {len(left)} rows did not arrive at t = {s:g}: {solver!r} used up its evaluations and left "
        f"{rows_in_words(left, eq.counter.first)} at {where}. The result holds their states of "
        "these times; Snapshot.finished, of iterate, tells which they are. "
        "Raise max_nfe or the tolerances, or step in the angle: Angle(solver)",
        UnfinishedWarning,
        stacklevel=5,
    )


def warn_lost(eq: ODE) -> None:
    """Tells which rows of a solve are NaN, if there are any."""
    lost = eq.counter.lost
    if lost is not None and bool(lost.any()):
        warnings.warn(
            f"{rows_in_words(lost, eq.counter.first)} did not stay finite and hold NaN; the others are what they are "
            "alone. Either the network answered NaN or inf there, or the steps are too long",
            NonFiniteWarning,
            stacklevel=3,
        )


def check_numbers(solve: Sequence[Snapshot], x: Tensor, unseen: int = 0, first: int = 0) -> None:
    """Raises `SolverError` naming the first state that is not finite, if the last one is not, and its rows.

    Args:
        solve: States in a row, or their sums.
        x: The last state.
        unseen: How many before them were neither kept nor looked at.
        first: Number of the first row.
    """
    if not solve or torch.compiler.is_compiling() or math.isfinite(solve[-1].x.sum().item()):
        return
    bad = broken(x)
    if not bool(bad.any()):  # large numbers, whose sum alone is not finite
        return
    then = next(now for now in solve if not math.isfinite(now.x.sum().item()))
    if then.x.shape == x.shape and bool((at_first := broken(then.x)).any()):
        bad = at_first
    before = f" or up to {unseen} before it," if unseen and then is solve[0] else ""
    raise SolverError(
        f"non-finite state after step {then.index}{before} at t = {then.t:g}, {then.nfe} network evaluations, in "
        f"{rows_in_words(bad, first)}: either the network answered NaN or inf there (call it on such a state to see), "
        "or the steps are too long (use more). To keep the other rows of a sample: nonfinite='keep'"
    )
