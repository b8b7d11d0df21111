r"""A whole deterministic solve as one lower-triangular table of numbers.

$$ x_i = c_i\,x_T + \sum_{j<i} P_{ij}\,D_j, \qquad D_j = D(x_j, t_j), \qquad i = 0, \dots, N $$

where $D_j$ is what the model takes the data to be at the state $x_j$ and the time $t_j$. The states $x_0, \dots,
x_{N-1}$ are those at which the network is asked, and $x_N$ is the result. Every solver that draws no noise, chooses no
steps and is linear in the network's answers is such a table: Runge-Kutta, multistep and predictor-corrector methods, on
any grid. The noise that they weigh is $(x_j - \alpha D_j)/\sigma$, so that states and data say it all.

A windowed table says the same with fewer numbers and less memory, $x_i = r_i\,x_{i-1} + \sum_{i-w\le j<i}
W_{ij}\,D_j$. Methods that weigh data alone have one with a window as long as their memory. Those that weigh the noise
of earlier steps, as `Adams` does in the angle, weigh earlier states with it: they have none that is short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_diffusion._checks import check_count, check_flag, check_reals
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.grids import Grid
from sde_diffusion.tuning import forms, stored
from sde_diffusion.tuning.components import Components
from sde_diffusion.tuning.made_for import MadeFor

if TYPE_CHECKING:
    from torch import Tensor

    from sde_diffusion.solvers.base import Solver

MOST_EVALUATIONS = 4096
"""How many evaluations a table has at most: its numbers grow with their square."""


@dataclass(frozen=True, eq=False, repr=False)
class SolverTable:
    r"""The numbers of a solve: where the network is asked, and how its answers are put together.

    Args:
        times: $t_0, \dots, t_{N-1}$, at which the network is asked. Those of Runge-Kutta stages need not fall.
        rows: $N + 1$ rows. Without a window, row $i$ is $(c_i, P_{i0}, \dots, P_{i,i-1})$. With one, it is $(r_i,
            W_{i,i-w}, \dots, W_{i,i-1})$: the weight of $x_{i-1}$ (of $x_T$ in row 0), then those of the last
            $\min(i, w)$ predictions, oldest first.
        grid: The times that a solve steps over, falling.
        stops: How many evaluations have been made at each grid time, 0 at the first.
        window: $w$, or None.
        finishes: Whether the last row is the data, reached from the last grid time. If not, it is the state there.
        components: What the rows add along principal components, if anything.
        made_for: What the table was made for, if that is known.

    Raises:
        TypeError: Anything but numbers where numbers belong.
        ValueError: Rows, times or stops that do not fit one another; numbers that are not finite; fewer than 2
            evaluations.

    Example:
        >>> table = SolverTable.of(Adams(3, "angle"), sde, grids.quadratic, steps=7)
        >>> SDESampler(sde, model, solver=TableSolver(table)).sample(64, seed=0)
    """

    times: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    grid: tuple[float, ...]
    stops: tuple[int, ...]
    window: int | None = None
    finishes: bool = True
    components: Components | None = None
    made_for: MadeFor | None = None

    def __post_init__(self) -> None:
        given = {
            "times": _numbers(self.times, "times"),
            "rows": tuple(_numbers(row, f"row {i}") for i, row in enumerate(self.rows)),
            "grid": _numbers(self.grid, "grid"),
            "stops": _counts(self.stops),
            "window": None if self.window is None else check_count(self.window, "window"),
            "finishes": check_flag(self.finishes, "finishes"),
        }
        for name, value in given.items():
            object.__setattr__(self, name, value)
        self._check_rows()
        self._check_stops()
        if self.components is not None:
            self.components.check_rows([len(row) for row in self.rows])

    def _check_rows(self) -> None:
        n = self.nfe
        if not 2 <= n <= MOST_EVALUATIONS:
            raise ValueError(f"a table has 2 to {MOST_EVALUATIONS} evaluations, got {n}: give times= of that many")
        if len(self.rows) != n + 1:
            raise ValueError(
                f"a table of {n} evaluations has {n + 1} rows, one for each state asked about and the result, "
                f"got {len(self.rows)}"
            )
        for i, row in enumerate(self.rows):
            wanted = 1 + (i if self.window is None else min(i, self.window))
            if len(row) != wanted:
                raise ValueError(f"row {i} has {len(row)} numbers, wanted {wanted}: its base and {wanted - 1} weights")

    def _check_stops(self) -> None:
        grid, stops, n = self.grid, self.stops, self.nfe
        if len(grid) < 2 or not all(t > s for t, s in pairwise(grid)):
            raise ValueError(f"the grid of a table falls, from noise to data, over 2 times or more, got {list(grid)}")
        if len(stops) != len(grid) or stops[0] != 0 or not all(a <= b for a, b in pairwise(stops)) or stops[-1] > n:
            raise ValueError(
                f"stops count the evaluations at each of {len(grid)} grid times: 0 at the first, never fewer at the "
                f"next, {n} at most, got {list(stops)}"
            )
        if self.finishes != (stops[-1] < n):
            at_end = f"{stops[-1]} of {n} evaluations are made at the last grid time"
            raise ValueError(f"finishes={self.finishes}, but {at_end}: a table finishes if some are left for that")

    @classmethod
    def of(
        cls,
        solver: Solver,
        sde: GaussianSDE,
        grid: Grid | Sequence[float] | Tensor,
        *,
        steps: int | None = None,
        finish: bool = True,
    ) -> SolverTable:
        """The table of a solver on a grid, found by running it on coefficient vectors; no network is asked.

        Args:
            solver: A solver that is deterministic, takes steps of its own and is linear in the network's answers.
            sde: The process.
            grid: A function of the process and the number of steps, from `grids`, or the times, falling.
            steps: Number of steps, for a grid function.
            finish: Goes on from the last time to the data, by `Solver.finish`, as a sampler does.

        Raises:
            TypeError: No solver, or a general SDE.
            ValueError: A stochastic or adaptive solver, an outside backend, a solver that is not linear in the answers,
                fewer than 2 evaluations, or times that do not fit.
        """
        from sde_diffusion.tuning.trace import traced

        found = traced(solver, sde, grid, steps=steps, finish=finish)
        return cls(*found, finishes=finish, made_for=MadeFor.of_process(sde))

    @property
    def nfe(self) -> int:
        """$N$, the evaluations of a solve by the table."""
        return len(self.times)

    def full(self) -> SolverTable:
        """The same solve with every row on $x_T$ and all predictions."""
        if self.window is None:
            return self
        rows, components = forms.full(self.rows, self.components)
        return replace(self, rows=rows, window=None, components=components)

    def windowed(self, window: int) -> SolverTable:
        """The same solve with every row on the state before and the last `window` predictions.

        Exact to $10^{-12}$, relative to the largest number of a row.

        Raises:
            ValueError: Some row weighs earlier predictions than these; the window that is needed is named.
        """
        if check_count(window, "window") == self.window:
            return self
        whole = self.full()
        rows, components = forms.windowed(whole.rows, whole.components, window)
        return replace(self, rows=rows, window=window, components=components)

    def to_dict(self) -> dict[str, Any]:
        """The table as what JSON can hold, floats exactly; `from_dict` reads it."""
        return stored.as_json({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_dict(cls, about: Mapping[str, Any]) -> SolverTable:
        """Reads what `to_dict` wrote; raises `ValueError` for anything else."""
        try:
            return cls(**stored.fields_of(about))
        except (KeyError, TypeError, ValueError) as error:
            said = f"no entry {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"this is no sound table: {said}; {stored.AGAIN}") from error

    def save(self, path: str | Path) -> None:
        """Writes the table to a JSON file, whole or not at all, with a digest of its text."""
        stored.write(self.to_dict(), Path(path))

    @classmethod
    def load(cls, path: str | Path) -> SolverTable:
        """Reads a table from a file that `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A file that was damaged, cut short or edited, or is of another format or version.
        """
        about = stored.read(Path(path))
        try:
            return cls.from_dict(about)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def plot(self, path: str | Path) -> None:
        """Draws the weights of the rows on $x_T$ and on each prediction, at the times where the network is asked.

        Args:
            path: File to write, a PNG.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from sde_diffusion.plots import weights_plot

        table = self.full()
        weights_plot(path, table.rows, table.times, title=f"{table.nfe} evaluations")

    def __repr__(self) -> str:
        window = "" if self.window is None else f", window={self.window}"
        extra = "" if self.components is None else f", components={self.components.rank}"
        return f"SolverTable(nfe={self.nfe}, steps={len(self.grid) - 1}{window}{extra})"

    def __str__(self) -> str:
        base = "x_T" if self.window is None else "x_i-1"
        names = "D_0 ..." if self.window is None else f"the last {self.window} D"
        lines = [repr(self), f"{'i':>4} {'t':>10} {base:>10}  {names}"]
        for i, row in enumerate(self.rows):
            time = f"{self.times[i]:10.5g}" if i < self.nfe else f"{'data' if self.finishes else 'state':>10}"
            lines.append(f"{i:4d} {time} {row[0]:10.5f}  {' '.join(f'{v:9.5f}' for v in row[1:])}".rstrip())
        return "\n".join(lines)


def _numbers(values: object, name: str) -> tuple[float, ...]:
    found = check_reals(values, name)
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{name} of a table holds numbers that are not finite: {found}")
    return tuple(found)


def _counts(values: object) -> tuple[int, ...]:
    found = _numbers(values, "stops")
    if not all(map(float.is_integer, found)):
        raise ValueError(f"stops count evaluations, wanted whole numbers, got {found}")
    return tuple(map(int, found))
