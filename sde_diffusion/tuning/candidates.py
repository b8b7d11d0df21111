"""The candidates of one budget: tables fitted to the model, and the standard samplers, all judged on the same noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sde_diffusion._checks import SolverError
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.solvers.base import Solver
from sde_diffusion.solvers.loop import integrate
from sde_diffusion.tuning.bench import Bench
from sde_diffusion.tuning.components import Components
from sde_diffusion.tuning.fitting import refinement
from sde_diffusion.tuning.fitting.least_squares import Program, fit, principal_components
from sde_diffusion.tuning.fitting.reference import flat
from sde_diffusion.tuning.fitting.standard import THE_DEFAULT, standards
from sde_diffusion.tuning.fitting.validation import to_data, to_flow
from sde_diffusion.tuning.made_for import MadeFor
from sde_diffusion.tuning.report import Candidate, Verdict
from sde_diffusion.tuning.table import SolverTable
from sde_diffusion.tuning.tuned import Choice

KAPPAS = (0.1, 0.3, 1.0)
"""Weights of the errors on the way, beside that of the end, that nodes are chosen by."""
ROBUST = (30.0, 4.0)
"""How many medians a sample may be off before its weight in a fit falls."""
WORTH, GOES_ON = 0.95, 0.99
"""The errors that a refinement and each of its steps have to reach, relative to what they start from."""
MOST_CALLS = 880
"""Calls of a batch, those of the reference included, up to which one budget is refined."""
REFINED = 1
"""Tables that are refined at most, those of least error."""
WITH_COMPONENTS = 2
"""Sets of nodes on which components are fitted, those of least error."""


class Fitted(NamedTuple):
    r"""A table that was fitted, how, and what it makes of the noise of validation.

    Attributes:
        error: The distance of that to the flow.
        name: What it is called in the report.
        program: The table.
        x: What it makes of the noise, `(n, D)`.
        nodes: Its nodes, among the levels of the reference.
        robust: $\rho$ of the fit.
        refined: Whether it was made better as a whole.
    """

    error: float
    name: str
    program: Program
    x: Tensor
    nodes: list[int]
    robust: float
    refined: bool = False


Entry = tuple[Candidate, "Fitted | tuple[Solver, Any]"]


class Candidates:
    """The candidates of one budget after another.

    Args:
        bench: What they share.
        data: Held-out data, if the energy distance to them decides; else the distance to the flow does.
        components: Whether tables with components are among them.
        refine: Whether the best are refined.
        window: How many answers a row combines, if not all.
    """

    def __init__(
        self, bench: Bench, data: Tensor | None, *, components: bool, refine: bool, window: int | None
    ) -> None:
        self.bench, self.refine, self.window = bench, refine, window
        self.clear = data is not None  # the energy distance of few samples decides nothing by itself
        self.score = to_flow(bench.validation.x0) if data is None else to_data(data)
        self.fresh = to_flow(bench.x0_fresh) if data is None else to_data(data)
        self.basis = principal_components(bench.reference.x0) if components else None
        self.flow = to_flow(bench.validation.x0)
        self.start = bench.validation.x_T
        self.states: dict[int, Tensor] = {}  # of the reference, at the nodes of one budget

    def judge(self, nfe: int, tick: Callable[[], None]) -> tuple[Choice, Verdict]:
        """The winner at one budget."""
        began, spent = time.perf_counter(), self.bench.ask.evaluations
        found: list[Entry] = []
        for name, sampler in standards(self.bench.problem, nfe, self.bench.data_std):
            x = self._drawn(sampler, self.bench.start_validation)
            if x is not None:
                found.append((Candidate(name, *self.score(x), fitted=False), (sampler.solver, sampler.grid)))
        tick()
        tables = self._fitted(nfe // self.bench.problem.price, tick)
        found += [(Candidate(table.name, *self.score(table.x), fitted=True), table) for table in tables]
        found.sort(key=lambda pair: pair[0].bound)
        if self.clear:
            found = self._clearly(found)
        won = found[0][1]
        program: Program | None = None
        result: SolverTable | tuple[Solver, Any]
        if isinstance(won, Fitted):
            program = self._on_both(won)
            result = self._table(program)
        else:
            result = won
        fresh = self._fresh(found[0][0], program, result, nfe)
        tick()
        evaluations, seconds = self.bench.ask.evaluations - spent, time.perf_counter() - began
        verdict = Verdict(nfe, tuple(c for c, _ in found), evaluations, seconds, fresh)
        return Choice.of(nfe, verdict, result), verdict

    def _clearly(self, found: list[Entry]) -> list[Entry]:
        """The default first, unless another is better by more than its own doubt."""
        default = next((pair for pair in found if pair[0].name.startswith(THE_DEFAULT)), None)
        if default is None or found[0][0].bound < default[0].error:
            return found
        return [default, *(pair for pair in found if pair is not default)]

    def _fresh(self, best: Candidate, program: Program | None, result: Any, nfe: int) -> tuple[Candidate, ...]:
        """The winner as it comes back, and the default, on noise that decided nothing."""
        bench = self.bench
        default = SDESampler(bench.problem, nfe=nfe)
        drawn = self._drawn(default, bench.start_fresh)
        others = () if drawn is None else (Candidate(THE_DEFAULT, *self.fresh(drawn), fitted=False),)
        if program is not None:
            x = program.roll(bench.ask, flat(bench.start_fresh))[0][-1]
        else:
            solver, grid = result
            again = self._drawn(
                SDESampler(bench.problem, solver=solver, grid=grid, nfe=nfe if callable(grid) else None),
                bench.start_fresh,
            )
            if again is None:
                return ()
            x = again
        return Candidate(best.name, *self.fresh(x), fitted=best.fitted), *others

    def _fitted(self, n: int, tick: Callable[[], None]) -> Iterator[Fitted]:
        """Tables of `n` rows: those of scalars, those of components on the best nodes, and the best of all refined."""
        bench, spent = self.bench, self.bench.ask.evaluations
        sets = bench.nodes.search(n, KAPPAS)
        levels = sorted({k for nodes in sets for k in nodes})
        self.states = dict(zip(levels, bench.reference.states(levels), strict=True))
        tables = [self._fit(nodes, robust, None) for nodes in sets for robust in ROBUST]
        if self.basis is not None and len(bench.reference.x0) >= 4 * (n + 2):
            best = sorted(range(len(tables)), key=lambda k: tables[k].error)
            chosen = list(dict.fromkeys(k // len(ROBUST) for k in best))[:WITH_COMPONENTS]
            tables += [self._fit(sets[k], robust, self.basis) for k in chosen for robust in ROBUST]
        tick()
        yield from tables
        allowed = MOST_CALLS * len(bench.reference.x_T) - bench.evaluations - (bench.ask.evaluations - spent)
        for table in sorted(tables, key=lambda t: t.error)[: REFINED * self.refine]:
            better = self._refined(table, allowed // (REFINED + 1))
            if better is not None:
                yield better

    def _fit(self, nodes: list[int], robust: float, basis: Tensor | None) -> Fitted:
        """A table on some nodes."""
        bench, reference = self.bench, self.bench.reference
        levels = cast("Denoiser", bench.problem.model).levels([reference.times[k] for k in nodes])
        targets = [self.states[k] for k in nodes]
        program, _ = fit(
            bench.ask, levels, reference.x_T, targets, reference.x0, robust=robust, basis=basis, window=self.window
        )
        x = self._end(program)
        ends = f"sigma/alpha {levels[0].ratio:.3g} to {levels[-1].ratio:.3g}"
        name = f"fitted on {len(nodes)} nodes, {ends}, {'components, ' if basis is not None else ''}robust={robust:g}"
        return Fitted(self.flow(x).error, name, program, x, nodes, robust)

    def _end(self, program: Program) -> Tensor:
        """What a table makes of the noise of validation."""
        return program.roll(self.bench.ask, self.start)[0][-1]

    def _refined(self, table: Fitted, allowed: int) -> Fitted | None:
        """The table after some steps of refinement; None where these gain too little or cost too much."""
        bench, reference, best, now = self.bench, self.bench.reference, table.error, table.program
        first, each = bench.ask.evaluations, self._round(now) * len(reference.x_T)
        epsilon = 1e-4 if bench.ask.dtype == torch.float64 else 3e-3
        while bench.ask.evaluations - first + each <= allowed:
            tried = refinement.steps(now, bench.ask, reference.x_T, reference.x0, robust=table.robust, epsilon=epsilon)
            errors = [self.flow(self._end(program)).error for program in tried]
            if min(errors) > GOES_ON * best:
                break
            best, now = min(errors), tried[errors.index(min(errors))]
        if best > WORTH * table.error:
            return None
        return table._replace(error=best, name=f"{table.name}, refined", program=now, x=self._end(now), refined=True)

    def _round(self, program: Program) -> int:
        """Evaluations per sample of one step of refinement."""
        rolls = 1 + len(refinement.DAMPING)
        return (refinement.cost(program) + rolls * len(program.levels)) * self.bench.problem.cost

    def _on_both(self, table: Fitted) -> Program:
        """The winner fitted again to calibration and validation together, once both have done their work.

        It stays as it was where that fits both no better, or where it was refined: to refine it again would cost as
        much as all before, and gains nothing.
        """
        if table.refined:
            return table.program
        bench, one, other = self.bench, self.bench.reference, self.bench.validation
        x_T, x0 = torch.cat([one.x_T, other.x_T]), torch.cat([one.x0, other.x0])
        flow, before = to_flow(x0), table.program
        targets = [torch.cat([self.states[k], s]) for k, s in zip(table.nodes, other.states(table.nodes), strict=True)]
        now, _ = fit(
            bench.ask,
            before.levels,
            x_T,
            targets,
            x0,
            robust=table.robust,
            basis=before.basis,
            window=before.window,
        )
        errors = [flow(program.roll(bench.ask, x_T)[0][-1]).error for program in (before, now)]
        return now if errors[1] <= errors[0] else before

    def _drawn(self, sampler: SDESampler, start: Tensor) -> Tensor | None:
        """What a standard sampler makes of some noise; None where it fails."""
        bench, parts = self.bench, list[Tensor]()
        for rows in bench.ask.parts(len(start)):
            eq = bench.problem.equation(bench.ask.conditions(rows))
            try:
                *_, now = integrate(eq, sampler.solver, start[rows], sampler.times, finish=True)
            except (SolverError, ArithmeticError, ValueError):  # others can do what this one cannot
                return None
            bench.ask.count(rows.stop - rows.start, eq.nfe // bench.problem.cost)
            parts.append(flat(now.x))
        return torch.cat(parts)

    def _table(self, program: Program) -> SolverTable:
        """The table that a program is."""
        bench = self.bench
        times = tuple(float(at.t) for at in program.levels)
        made_for = MadeFor.of(cast("Denoiser", bench.problem.model), dtype=bench.ask.dtype, shape=bench.ask.shape)
        return SolverTable(
            times=times,
            rows=tuple(tuple(line.weights.tolist()) for line in program.lines),
            grid=(float(cast("GaussianSDE", bench.problem.sde).t_max), *times[1:]),
            stops=tuple(range(len(times))),
            window=program.window,
            components=_components(program),
            made_for=made_for,
        )


def _components(program: Program) -> Components | None:
    """The components of a program, with zeros for a row that has none."""
    if program.basis is None:
        return None
    r = program.basis.shape[1]
    zeros = [torch.zeros(len(line.weights), r, dtype=torch.float64, device="cpu") for line in program.lines]
    weights = [z if line.components is None else line.components for z, line in zip(zeros, program.lines, strict=True)]
    bias = [z.new_zeros(r) if line.bias is None else line.bias for z, line in zip(zeros, program.lines, strict=True)]
    return Components(program.basis, tuple(weights), tuple(bias))
