"""What a tuning returns: for each budget the sampler that has won, and the report of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sde_diffusion.problem import Problem
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.solvers.base import Solver
from sde_diffusion.tuning.report import Report, Verdict
from sde_diffusion.tuning.solver import TableSolver
from sde_diffusion.tuning.table import SolverTable


@dataclass(frozen=True)
class Choice:
    """The winner at one budget.

    Attributes:
        nfe: The budget.
        solver: The solver.
        grid: Its grid: a function, or times.
        name: How it is called in the report.
        error: Its error on the noise of validation.
        uncertainty: The standard error of that.
    """

    nfe: int
    solver: Solver
    grid: Any
    name: str
    error: float
    uncertainty: float

    @property
    def table(self) -> SolverTable | None:
        """The table that was fitted; None where a standard solver has won."""
        return self.solver.table if isinstance(self.solver, TableSolver) else None

    @classmethod
    def of(cls, nfe: int, verdict: Verdict, won: SolverTable | tuple[Solver, Any]) -> Choice:
        """The choice that a verdict makes."""
        solver, grid = (TableSolver(won), won.grid) if isinstance(won, SolverTable) else won
        best = verdict.winner
        return cls(nfe, solver, grid, best.name, best.error, best.uncertainty)


@dataclass(frozen=True, eq=False)
class Tuned:
    """Samplers of a few evaluations that were fitted to one model.

    Attributes:
        problem: The process and the model.
        choices: The winner at each budget.
        report: What was tried, and what it cost.
    """

    problem: Problem
    choices: Mapping[int, Choice]
    report: Report

    def __getitem__(self, nfe: int) -> Choice:
        """The winner at a budget."""
        if nfe not in self.choices:
            raise KeyError(f"nothing was tuned for nfe={nfe!r}, only for {', '.join(map(str, self.choices))}")
        return self.choices[nfe]

    def sampler(self, nfe: int | None = None) -> SDESampler:
        """The sampler of a budget, which may be left out where there is one."""
        choice = self._only(nfe)
        nfe = choice.nfe if callable(choice.grid) else None
        return SDESampler(self.problem, solver=choice.solver, grid=choice.grid, nfe=nfe)

    @property
    def solver(self) -> Solver:
        """The solver that has won, where one budget was tuned."""
        return self._only(None).solver

    @property
    def grid(self) -> Any:
        """Its grid."""
        return self._only(None).grid

    def _only(self, nfe: int | None) -> Choice:
        if nfe is not None:
            return self[nfe]
        if len(self.choices) > 1:
            raise ValueError(f"several budgets were tuned, {', '.join(map(str, self.choices))}: name one, sampler(nfe)")
        return next(iter(self.choices.values()))

    def __str__(self) -> str:
        return str(self.report)
