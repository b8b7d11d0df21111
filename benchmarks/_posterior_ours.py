"""Our rules and particles on one problem of a cell, and the cells measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import _posterior_azula as azula
import torch
from _posterior_azula import Run
from _posterior_cells import Cell, Judge, Problem, problem

from sde_diffusion import SDESampler
from sde_diffusion.guidance import DPS, Matrix, Moments, Posterior, PseudoInverse, Rule
from sde_diffusion.particles import ParticleSampler
from sde_diffusion.solvers import DPMSolverPP, Solver

PARTICLES = 1024
PARTICLE_STEPS = 100

RULES: dict[str, tuple[Rule, int, Solver | None]] = {
    "DPS": (DPS(), 100, None),
    "PseudoInverse": (PseudoInverse(), 100, None),
    "Moments, 20": (Moments(), 20, None),
    "Moments, 100": (Moments(), 100, None),
    "Moments, flow": (Moments(), 100, DPMSolverPP(2)),
}
"""Each with its evaluations, and its solver: None for the default one, which has noise."""
OURS = [*RULES, "particles"]
THEIRS = [f"azula {name}" for name in azula.WAYS]


def by_rule(exact: Problem, name: str, n: int, seed: int) -> Run:
    """Samples of a rule, by as many evaluations as it says."""
    rule, evaluations, solver = RULES[name]
    model = Posterior(exact.model, Matrix(exact.a), exact.noise, rule)
    given: dict[str, Any] = {} if solver is None else {"solver": solver}
    sampler = SDESampler(model.sde, model, steps=evaluations - 1, **given)
    *_, last = sampler.iterate(n, seed=torch.Generator().manual_seed(seed), y=exact.y)
    return Run(last.x, last.nfe, last.vjps)


def by_particles(exact: Problem, n: int, seed: int) -> Run:
    """Samples drawn of one system."""
    model = Posterior(exact.model, Matrix(exact.a), exact.noise)
    found = ParticleSampler(model.sde, model, particles=PARTICLES, steps=PARTICLE_STEPS).sample(seed=seed, y=exact.y)
    return Run(found.draw(n, seed=seed), found.nfe, found.vjps)


def runs(exact: Problem, name: str, n: int, seed: int) -> list[Run]:
    """Samples of one method, here or of azula, for each way to set what it leaves open."""
    if name.startswith("azula "):
        return azula.run(exact, name.removeprefix("azula "), n, PARTICLE_STEPS + 1, seed)
    return [by_particles(exact, n, seed) if name == "particles" else by_rule(exact, name, n, seed)]


def measure(cell: Cell, methods: Sequence[str], problems: int, n: int, tell: Callable[[str], Any]) -> dict[str, Any]:
    """The distance over the floor of each method in a cell: each problem, the mean and its standard error."""
    ways: dict[str, list[list[float]]] = {name: [] for name in methods}
    counts: dict[str, list[tuple[int, int]]] = {}
    for seed in range(problems):
        exact = problem(cell, seed)
        judge = Judge(exact, n, seed)
        for name in methods:
            found = runs(exact, name, n, seed)
            ways[name].append([judge.ratio(run.x) for run in found])
            counts[name] = [(run.nfe, run.vjps) for run in found]
        tell(f"cell {cell}: problem {seed + 1} of {problems}")
    row: dict[str, Any] = {"d": cell.d, "d_y": cell.d_y, "noise": cell.noise, "problems": problems, "methods": {}}
    for name in methods:
        table = list(zip(*ways[name], strict=True))
        best = min(range(len(table)), key=lambda k: sum(table[k]))
        ratios = list(table[best])
        nfe, vjps = counts[name][best]
        row["methods"][name] = {
            "mean": statistics.fmean(ratios),
            "error": statistics.stdev(ratios) / math.sqrt(problems) if problems > 1 else math.nan,
            "ratios": ratios,
            "ways": [statistics.fmean(way) for way in table],
            "nfe": nfe,
            "vjps": vjps,
        }
    return row
