"""What a tuning returns: for each budget the sampler that has won, and the report of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.problem import Problem
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.sde.base import SDE, GaussianSDE
from sde_diffusion.solvers.base import Solver
from sde_diffusion.tuning import tuned_file
from sde_diffusion.tuning.made_for import MadeFor
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
        error: Its error, on noise that decided nothing.
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
            raise KeyError(
                f"nothing was tuned for nfe={nfe!r}, only for {', '.join(map(str, self.choices))}: tune for it too, or "
                f"take the default, SDESampler(sde, model, nfe={nfe!r})"
            )
        return self.choices[nfe]

    def sampler(self, nfe: int | None = None) -> SDESampler:
        """The sampler of a budget, which may be left out where there is one.

        Warns:
            TableWarning: The weights of the model are not those that it was tuned on.
        """
        choice = self._only(nfe)
        if choice.table is not None and choice.table.made_for is not None:  # the model may have been trained on since
            choice.table.made_for.check_model(cast("Denoiser", self.problem.model))
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

    def save(self, path: str | Path) -> None:
        """Writes the tables and the report to a JSON file, whole or not at all, with a digest of its text.

        A standard solver that has won is written as its table, which makes the same samples up to rounding.

        Args:
            path: The file. Beside the model in the folder of a checkpoint it is called `tables.json`, where
                `sde-diffusion sample` looks for it, and `save_checkpoint` removes it with the model that it replaces.

        Raises:
            ValueError: More than 256 MiB.
            OSError: The file cannot be written; one there before is left as it was.
        """
        tuned_file.write(Path(path), self.report, {nfe: self._table(nfe) for nfe in self.choices})

    @classmethod
    def load(cls, path: str | Path, sde: SDE | Problem, model: Denoiser | None = None) -> Tuned:
        """Reads the file that `save` wrote, and holds its tables to a model.

        Args:
            path: The file.
            sde: The process, or a `Problem` with its model.
            model: The model, with a process.

        Raises:
            FileNotFoundError: There is no such file.
            TypeError: No `Denoiser`.
            ValueError: A file that was damaged, cut short or edited, or is of another format or version; tables of
                another process, noise range or event shape.

        Warns:
            TableWarning: Another model, or other weights: the difference is named.

        Example:
            >>> loaded = load_checkpoint("model")
            >>> tuned = Tuned.load("model/tables.json", loaded.model.sde, loaded.model)
            >>> x = tuned.sampler(8).sample(64, seed=0)
        """
        if isinstance(sde, Problem) and model is not None:
            raise TypeError("a Problem has its model: leave out model, or give load(path, sde, model)")
        problem = sde if isinstance(sde, Problem) else Problem(sde, cast("Denoiser", model))
        if not isinstance(problem.model, Denoiser):
            raise TypeError(
                f"tables are of a GaussianSDE with a Denoiser or a score; {type(problem.sde).__name__} is a general SDE"
            )
        report, tables = tuned_file.read(Path(path), problem)
        choices = {verdict.nfe: Choice.of(verdict.nfe, verdict, tables[verdict.nfe]) for verdict in report.verdicts}
        return cls(problem, choices, report)

    def _table(self, nfe: int) -> SolverTable:
        """The winner at a budget as a table that knows what it was made for, a standard solver too."""
        choice, problem = self[nfe], self.problem
        if choice.table is not None:
            return choice.table
        table = SolverTable.of(choice.solver, cast("GaussianSDE", problem.sde), self.sampler(nfe).times)
        return replace(table, made_for=MadeFor.of(cast("Denoiser", problem.model), shape=problem.shape))

    def _only(self, nfe: int | None) -> Choice:
        if nfe is not None:
            return self[nfe]
        if len(self.choices) > 1:
            raise ValueError(f"several budgets were tuned, {', '.join(map(str, self.choices))}: name one, sampler(nfe)")
        return next(iter(self.choices.values()))

    def __str__(self) -> str:
        return str(self.report)
