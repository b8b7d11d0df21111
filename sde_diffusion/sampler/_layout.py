"""How the steps of a solve are laid out: which grid, how many steps, which times."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor

from sde_diffusion._checks import check_count, check_step_count
from sde_diffusion.problem import Problem
from sde_diffusion.sde import grids
from sde_diffusion.sde.base import SDE
from sde_diffusion.sde.grids import Grid
from sde_diffusion.sde.times import as_grid
from sde_diffusion.solvers.base import Solver
from sde_diffusion.solvers.jump import why_hidden


def angle_grid(data_std: float) -> Grid:
    """`grids.angle` at the scale of the data."""
    return grids.angle if data_std == 1.0 else partial(grids.angle, data_std=data_std)


def grid_name(grid: Any) -> str:
    """A grid as one would write it."""
    if isinstance(grid, partial):
        options = "".join(f", {k}={v!r}" for k, v in grid.keywords.items())
        return f"partial({grid_name(grid.func)}{options})"
    if callable(grid):
        name = getattr(grid, "__name__", repr(grid))
        return f"grids.{name}" if getattr(grids, name, None) is grid else name
    return str([float(t) for t in grid])


def lay_out(
    problem: Problem,
    solver: Solver,
    grid: Grid | Sequence[float] | Tensor,
    *,
    steps: int | None,
    nfe: int | None,
    jump: bool,
) -> list[float]:
    """The times of a solve, falling, from whichever of steps, budget and grid was given.

    Args:
        problem: Its process has the range of times, its model the cost of an evaluation.
        solver: Has the default number of steps, and the evaluations that each takes.
        grid: The times themselves, or a function of the process and the number of steps.
        steps: Number of steps.
        nfe: Budget of network evaluations.
        jump: Whether one of these is for the final jump.

    Raises:
        ValueError: Both steps and a budget, a budget that is too small, or times that do not fit.
    """
    if steps is not None and nfe is not None:
        raise ValueError(f"give steps or nfe, not both: got steps={steps} and nfe={nfe}")
    sde = problem.sde
    if solver.facts.grid is not None:
        return _own_times(problem, solver, grid, steps=steps, nfe=nfe, jump=jump)
    least = solver.facts.least_steps if jump else max(1, solver.facts.least_steps)
    if not callable(grid):
        times = as_grid(grid, sde.t_min, sde.t_max, least=least + 1)
        wanted = steps if steps is not None else len(times) - 1
        if nfe is not None or wanted != len(times) - 1:
            raise ValueError(
                f"the grid given has {len(times) - 1} steps: leave out steps= and nfe=, or give a grid function"
            )
    else:
        if nfe is not None:
            steps = _steps_for(nfe, solver, problem, jump, least)
        elif steps is None:
            steps = int(sde.t_max) if grid is grids.integers else solver.facts.default_steps
        times = (
            [sde.t_max]
            if least == 0 and type(steps) is int and steps == 0
            else times_of(grid, sde, check_step_count(steps))
        )
    if times[0] < times[-1]:
        raise ValueError("a sampling grid falls from noise to data: reverse it (encode turns it round by itself)")
    return times


def times_of(grid: Grid, sde: SDE, steps: int) -> list[float]:
    """The times of a grid function, once they are found to be times of the process."""
    return as_grid(grid(cast("Any", sde), steps), sde.t_min, sde.t_max)  # what the grid needs of it, it will say


def _own_times(
    problem: Problem,
    solver: Solver,
    grid: Grid | Sequence[float] | Tensor,
    *,
    steps: int | None,
    nfe: int | None,
    jump: bool,
) -> list[float]:
    """The times of a solver that steps over those alone; what was given besides may say the same and nothing else."""
    facts, sde = solver.facts, problem.sde
    own = as_grid(facts.grid, sde.t_min, sde.t_max)
    count = len(own) - 1
    if steps is not None and steps != count:
        raise ValueError(f"{solver!r} takes the {count} steps of its own grid, got steps={steps}: leave it out")
    if nfe is not None and facts.evaluations is None:
        raise ValueError(f"{solver!r} makes the evaluations of its own steps, got nfe={nfe}: leave it out")
    if nfe is not None and facts.evaluations is not None:
        makes = (facts.evaluations * count + jump) * problem.price
        if nfe != makes:
            raise ValueError(
                f"{solver!r} makes {makes} evaluations{' with the final jump' * jump}, got nfe={nfe}: leave it out, or "
                "take a solver for that budget"
            )
    given = times_of(grid, sde, count) if callable(grid) else as_grid(grid, sde.t_min, sde.t_max)
    if given != own:
        raise ValueError(
            f"{solver!r} steps over its own grid, of {count} steps from t = {own[0]:g} to {own[-1]:g}, and the grid "
            f"given has {len(given) - 1} from {given[0]:g} to {given[-1]:g}: leave grid= out"
        )
    return own


def _steps_for(nfe: int, solver: Solver, problem: Problem, last: bool, least: int) -> int:
    """As many steps as fit into a budget with the final jump."""
    per_step, cost = solver.facts.evaluations, problem.price
    jump = cost if last else 0
    if per_step is None:
        raise ValueError(
            f"{solver!r} chooses its own evaluations: nfe= has no meaning, give steps= "
            f"({solver.facts.default_steps} by default)"
        )
    steps = (check_count(nfe, "nfe") - jump) // max(1, per_step * cost)
    if steps < least:
        raise ValueError(
            f"a budget of {nfe} evaluations is too small: one step of {solver!r} takes {per_step * cost}"
            + (f" and the final jump {jump}" if jump else "")
            + (f". {why}" if (why := why_hidden(problem.model)) else "")
        )
    return steps
