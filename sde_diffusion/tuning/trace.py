"""The table of a solver, found by running it once on coefficient vectors.

The state is a vector of coefficients on the start and on each prediction. A model whose k-th data prediction is the
k-th unit vector makes the solver write its own weights into the state, which are read off each time the network is
asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion._checks import check_step_count
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.grids import Grid
from sde_diffusion.sde.level import Level
from sde_diffusion.sde.times import as_grid
from sde_diffusion.solvers.base import Solver, facts_of
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.solvers.loop import integrate

LINEAR_TO = 1e-9
"""How far two traces in different units may be apart, relative to the largest coefficient of a row."""


class Trace(NamedTuple):
    """What a solve consists of, as the first fields of a `SolverTable`."""

    times: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    grid: tuple[float, ...]
    stops: tuple[int, ...]


class _Scribe(Denoiser):
    """Answers its k-th call with `units[k + 1]` at place k + 1 of the state, and notes time and state of each."""

    careful = True

    def __init__(self, sde: GaussianSDE, units: Tensor) -> None:
        super().__init__()
        self.sde, self.units = sde, units
        self.asked: list[tuple[float, Tensor]] = []

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        self.asked.append((float(at.t), x[0].clone()))
        data, k = torch.zeros_like(x), len(self.asked)
        if k < len(self.units):
            data[0, k] = self.units[k]
        return Prediction(lambda: data, lambda: (x - at.alpha * data) / at.sigma)


def traced(
    solver: Solver, sde: GaussianSDE, grid: Grid | Sequence[float] | Tensor, *, steps: int | None, finish: bool
) -> Trace:
    """The full table of a solver on a grid; what is refused is said at `SolverTable.of`."""
    check_solver(solver)
    times = _times(sde, grid, steps)
    n = len(_run(solver, sde, times, torch.ones(1, dtype=torch.float64, device="cpu"), finish)[0].asked)
    if n < 2:
        raise ValueError(f"{solver!r} on this grid makes {n} evaluation: a table has 2 or more; take more steps")
    ones = torch.ones(n + 1, dtype=torch.float64, device="cpu")
    first = _run(solver, sde, times, ones, finish)
    # Powers of two, which no rounding tells apart from one: what differs is not linear.
    units = torch.tensor([2.0 ** (7 + k % 5) for k in range(n + 1)], dtype=torch.float64, device="cpu")
    second = _run(solver, sde, times, units, finish)
    rows, others = _rows(*first), _rows(*second)
    same = len(rows) == len(others) == n + 1
    if not same or any(_apart(a, b / units[: len(b)]) for a, b in zip(rows, others, strict=True)):
        raise ValueError(
            f"{solver!r} is not linear in the answers of the network: twice the answers do not make twice the state. "
            "It has no table; take a solver with fixed weights, such as DPMSolverPP() or Heun()"
        )
    scribe, seen = first
    return Trace(
        times=tuple(t for t, _ in scribe.asked),
        rows=tuple(tuple(row.tolist()) for row in rows),
        grid=tuple(times),
        stops=tuple(nfe for nfe, _ in seen[: len(times)]),
    )


def check_solver(solver: object) -> None:
    """Raises unless a solver may have a table, as far as it says so itself."""
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a Solver such as Adams(3, 'angle'), got {solver!r}")
    facts = facts_of(solver)
    if facts.stochastic:
        raise ValueError(f"{solver!r} draws noise, and a table holds none: take a solver with eta=0, or another")
    if facts.adaptive:
        raise ValueError(
            f"{solver!r} chooses its steps by what the network answers, so that it has no table: "
            "take one that steps over a grid, such as Heun()"
        )
    if facts.evaluations is None:
        raise ValueError(
            f"{solver!r} is run by another library, which makes its own calls: it has no table here; take RK4() or "
            "another solver of this library"
        )


def _times(sde: object, grid: Grid | Sequence[float] | Tensor, steps: int | None) -> list[float]:
    """The times of a grid."""
    if not isinstance(sde, GaussianSDE):
        raise TypeError(
            f"a table puts data predictions together, which a GaussianSDE has, such as VPSDE(); got {sde!r}"
        )
    if callable(grid):
        if steps is None:
            raise ValueError("a grid function needs the number of steps: SolverTable.of(solver, sde, grid, steps=8)")
        grid = grid(sde, check_step_count(steps))
    times = as_grid(grid, sde.t_min, sde.t_max)
    if steps is not None and len(times) - 1 != steps:
        raise ValueError(f"the grid has {len(times) - 1} steps, and steps={steps}: leave out steps=")
    if times[0] < times[-1]:
        raise ValueError("the grid of a table falls from noise to data: reverse it")
    return times


def _run(
    solver: Solver, sde: GaussianSDE, times: list[float], units: Tensor, finish: bool
) -> tuple[_Scribe, list[tuple[int, Tensor]]]:
    """One solve: what the network was asked, and for each snapshot the evaluations so far and the state."""
    scribe = _Scribe(sde, units)
    x = torch.zeros(1, len(units), dtype=torch.float64, device="cpu")
    x[0, 0] = units[0]
    with torch.no_grad():
        solve = integrate(GaussianReverseSDE(scribe), solver, x, times, finish=finish)
        return scribe, [(now.nfe, now.x[0].clone()) for now in solve]


def _rows(scribe: _Scribe, seen: list[tuple[int, Tensor]]) -> list[Tensor]:
    """The states that the network was asked about, each on what was known then, and the result."""
    rows = [x[: i + 1] for i, (_, x) in enumerate(scribe.asked)]
    return [*rows, seen[-1][1]]


def _apart(a: Tensor, b: Tensor) -> bool:
    return len(a) != len(b) or not float((a - b).abs().max()) <= LINEAR_TO * max(1.0, float(a.abs().max()))
