"""The solver that executes a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion._tensors import scaled
from sde_diffusion.denoiser.prediction import Half
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Interval, Solver
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.tuning.components import Moved
from sde_diffusion.tuning.table import SolverTable


class _Row(NamedTuple):
    """What makes the next state of a prediction: weights of its halves, of the start, and of the predictions kept.

    Of a windowed row, the state before is a part of the weights: it is alpha data + sigma noise.
    """

    data: float
    noise: float
    start: float
    older: tuple[float, ...]  # newest first
    keeps: bool  # whether a later row weighs the prediction


class _Plan:
    """What the solves of one problem by one table have in common."""

    __slots__ = ("components", "dtypes", "levels", "most", "rows", "spans", "table")

    def __init__(self, table: SolverTable, levels: list[Level]) -> None:
        self.table, self.levels = table, levels
        self.most = table.nfe if table.window is None else table.window - 1
        kept: list[int] = []
        self.rows: list[_Row] = []
        for i, at in enumerate(levels):
            row = table.rows[i + 1]
            if table.window is None:
                keeps = any(later[i + 1] for later in table.rows[i + 2 :])
                self.rows.append(_Row(row[-1], 0.0, row[0], tuple(row[1 + j] for j in reversed(kept)), keeps))
                kept += [i] * keeps
            else:
                self.rows.append(
                    _Row(row[-1] + row[0] * at.alpha, row[0] * at.sigma, 0.0, row[-2:0:-1], bool(self.most))
                )
        ends = pairwise(zip(table.grid, table.stops, strict=True))
        self.spans = [(t, s, first, end) for (t, first), (s, end) in ends]
        self.spans.append((math.nan, math.nan, 0, 0))  # beyond the last time there is no step
        self.dtypes = set[torch.dtype]()
        self.components: dict[tuple[torch.dtype, torch.device], Moved] = {}


# Where a solve stands, and what later rows need: the plan, the place in the grid, x_T for a full table, the predictions
# kept, newest first, the components, and the projected features of the last row, its base first.
Run = tuple[_Plan, int, Tensor | None, tuple[Half, ...], Moved | None, tuple[Tensor, ...]]


@dataclass(frozen=True)
class TableSolver(Solver[GaussianReverseSDE, Run]):
    r"""Solves by a table: $x_i = c_i\,x_T + \sum_{j<i} P_{ij}\,D_j$.

    It steps over the grid of its table, one way, and asks the network `table.nfe` times in all; a table that finishes
    has the last of these for the step to the data. The state at a grid time is that at which the network is asked next.
    The full form keeps the start and all predictions in memory, the windowed one the last `window`. Any Gaussian SDE.

    Args:
        table: A table of the same process.

    Raises:
        TypeError: No table.
        ValueError: On the way: other times than those of the table, another process, or another dtype.
    """

    table: SolverTable

    def __post_init__(self) -> None:
        if not isinstance(self.table, SolverTable):
            raise TypeError(
                f"TableSolver executes a SolverTable, such as SolverTable.of(solver, sde, grid), got {self.table!r}"
            )

    @property
    def facts(self) -> Facts:
        table = self.table
        per_step = {b - a for a, b in pairwise(table.stops)}
        even = len(per_step) == 1 and table.nfe - table.stops[-1] <= 1  # one for the end, as with any solver
        return Facts(
            needs=GaussianReverseSDE,
            evaluations=per_step.pop() if even else None,
            memory=table.window or table.nfe,
            default_steps=len(table.grid) - 1,
            grid=table.grid,
            fitted=table.components is not None or table.made_for is None or bool(table.made_for.fingerprint),
        )

    @property
    def reaches_zero(self) -> bool:
        return self.table.finishes

    def prepare(self, eq: GaussianReverseSDE, intervals: Sequence[Interval]) -> None:
        times = [intervals[0][0], *(s for _, s in intervals)]
        if tuple(times) != self.table.grid:
            raise self._elsewhere(times)
        self._plan(eq)

    def _elsewhere(self, times: Sequence[float]) -> ValueError:
        """What to say of other times than those of the table."""
        if times[0] < times[-1]:
            return ValueError("a table goes one way, from noise to data: encode with Heun(), RK4() or DPMSolverPP()")
        grid = self.table.grid
        return ValueError(
            f"a table goes over its own grid, of {len(grid) - 1} steps from t = {grid[0]:g} to {grid[-1]:g}, and this "
            f"one has {len(times) - 1} from {times[0]:g} to {times[-1]:g}: leave grid= and steps= out, or give "
            "table.grid"
        )

    def _plan(self, eq: GaussianReverseSDE) -> _Plan:
        """What the solves of an equation share; the table is held to the model once."""
        plan: _Plan | None = eq.tables.rows.get(self)
        if plan is None:
            table, sde = self.table, eq.sde
            if table.made_for is not None:
                table.made_for.check_model(eq.denoiser, shaped=table.components is not None)
            if not sde.t_min <= min(table.times) <= max(table.times) <= sde.t_max:
                raise ValueError(
                    f"the table asks from t = {max(table.times):g} to {min(table.times):g}, and {sde!r} goes from "
                    f"{sde.t_max:g} to {sde.t_min:g}: take a table of this process"
                )
            plan = eq.tables.rows[self] = _Plan(table, eq.prefill(table.times))
        return plan

    def _start(self, eq: GaussianReverseSDE, x: Tensor) -> tuple[Tensor, Run]:
        """The first state that the network is asked about, and a run that stands there."""
        plan, table = self._plan(eq), self.table
        if x.dtype not in plan.dtypes:
            if table.made_for is not None:
                table.made_for.check_dtype(x.dtype)
            plan.dtypes.add(x.dtype)
        start, moved = x, None
        projected: tuple[Tensor, ...] = ()
        x = scaled(x, table.rows[0][0])
        if table.components is not None:
            moved = plan.components.get((x.dtype, x.device))
            if moved is None:
                moved = plan.components[x.dtype, x.device] = table.components.like(x)
            projected = (moved.project(start),)
            x = moved.correct(x.clone() if x is start else x, 0, projected)
        return x, (plan, 0, start if table.window is None else None, (), moved, projected)

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: Run | None, noise: NoiseSource
    ) -> tuple[Tensor, Run]:
        if state is None:
            x, state = self._start(eq, x)
        at, to, first, end = state[0].spans[state[1]]
        if t.t != at or s.t != to:
            raise self._elsewhere([t.t, s.t])
        return self._carry(eq, x, state, first, end)

    def finish(self, eq: GaussianReverseSDE, x: Tensor, t: Level, state: Run | None) -> Tensor:
        table = self.table
        if not table.finishes or state is None:
            return super().finish(eq, x, t, state)
        return eq.denoiser.admit(self._carry(eq, x, state, table.stops[-1], table.nfe)[0])

    def _carry(self, eq: GaussianReverseSDE, x: Tensor, run: Run, first: int, end: int) -> tuple[Tensor, Run]:
        """The evaluations from `first` up to `end`, and the row that they lead to."""
        plan, place, start, past, moved, projected = run
        for i in range(first, end):
            p, q, c, older, keeps = plan.rows[i]
            now = eq.denoise(x, plan.levels[i])
            new = now.combine(p, q)
            if c and start is not None:
                new.add_(start, alpha=c)
            for before, weight in zip(past, older, strict=True):
                before.add_to(new, weight, 0.0)
            if moved is not None:
                projected = self._features(x, now.data, moved, projected)
                new = moved.correct(new, i + 1, projected)
            if keeps:
                past = (now.only("data"), *past[: plan.most - 1])
            x = new
        return x, (plan, place + 1, start, past, moved, projected)

    def _features(self, x: Tensor, data: Tensor, moved: Moved, known: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The projected features of the row that follows from the prediction at `x`, those before it being known."""
        base, *predictions = known
        predictions.append(moved.project(data))
        if (window := self.table.window) is None:
            return (base, *predictions)
        return (moved.project(x), *predictions[-window:])
