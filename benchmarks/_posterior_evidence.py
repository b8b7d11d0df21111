"""The evidence of a measurement by particles, with its interval, against the exact one."""

from __future__ import annotations

import math
import statistics
from typing import Any

from _posterior_cells import Cell, problem

from sde_diffusion.guidance import Matrix, Posterior
from sde_diffusion.particles import ParticleSampler

SYSTEMS, PARTICLES, STEPS = 8, 64, 100
LEVELS = (0.68, 0.90, 0.95)
SIZES = (1, 2, 4)
"""Numbers measured of 8, in turn."""


def measure(problems: int, noise: float) -> dict[str, Any]:
    """Error of log p(y) in nats over problems, and the share of intervals that hold the exact one."""
    errors, stated, inside = [], [], {level: 0 for level in LEVELS}
    for seed in range(problems):
        exact = problem(Cell(8, SIZES[seed % len(SIZES)], noise), 100 + seed)
        model = Posterior(exact.model, Matrix(exact.a), exact.noise)
        sampler = ParticleSampler(model.sde, model, particles=PARTICLES, steps=STEPS)
        found = sampler.sample(SYSTEMS, seed=SYSTEMS * seed, y=exact.y)
        truth = exact.log_evidence()
        errors.append(found.log_evidence - truth)
        stated.append(found.standard_error)
        for level in LEVELS:
            low, high = found.interval(level)
            inside[level] += low <= truth <= high
    return {
        "noise": noise,
        "problems": problems,
        "systems": SYSTEMS,
        "particles": PARTICLES,
        "steps": STEPS,
        "bias": statistics.fmean(errors),
        "bias_error": statistics.stdev(errors) / math.sqrt(problems),
        "rms": math.sqrt(statistics.fmean(e * e for e in errors)),
        "stated": math.sqrt(statistics.fmean(s * s for s in stated)),
        "coverage": {f"{level:.2f}": count / problems for level, count in inside.items()},
        "errors": errors,
    }
