"""What all budgets of a tuning share: noise, the flow from it, and a model that counts how often it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sde_diffusion.noise.sources import Streams
from sde_diffusion.problem import Problem
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.solvers.loop import integrate
from sde_diffusion.tuning.fitting.nodes import Nodes
from sde_diffusion.tuning.fitting.reference import SOLVER, Asked, Reference, flat, levels_between

LEVELS = 128
"""Levels of the reference, at least: three times the largest budget."""
CHECKED = 32
"""Samples on which the reference is compared with one of half its step."""
FEWEST = 16
"""Samples of a batch at least."""
FAR_SEED = 2**40
"""Where the seeds of calibration begin: beyond those that samples are drawn by."""


@dataclass
class Bench:
    """Noise, the flow from it, and a model that counts how often it is asked: what all budgets share."""

    problem: Problem
    ask: Asked
    reference: Reference
    nodes: Nodes
    data_std: float
    start_validation: Tensor
    validation: Reference
    start_fresh: Tensor
    x0_fresh: Tensor
    evaluations: int
    error: float

    @classmethod
    def prepare(cls, problem: Problem, cond: dict[str, Any], batch: int, seed: int, budgets: list[int]) -> Bench:
        """Draws the noise and solves for the flow."""
        sde = cast("GaussianSDE", problem.sde)
        first = sde.t_max
        starts = []
        for k in range(3):
            stream = torch.Generator().manual_seed(FAR_SEED + 3 * seed + k)
            z = problem.source(batch if k < 2 else max(FEWEST, batch // 2), stream, Streams, (first, sde.t_min)).prior()
            starts.append(problem.start(z, first))
        calls = max(budgets) // problem.price
        _check_batch(batch, starts[0][0].numel(), calls)
        ask = Asked(problem, cond, batch, batch, starts[0])
        m = max(LEVELS, 3 * calls)
        reference = Reference(ask, starts[0], levels_between(sde, m, problem.data_std))
        validation = Reference(ask, starts[1], reference.times)
        x0_fresh = _flow(ask, starts[2], reference.times)
        few = slice(0, min(CHECKED, batch))
        finer = _flow(ask, starts[1][few], levels_between(sde, 2 * m, problem.data_std))
        off = float((validation.x0[few] - finer).square().mean().sqrt() / (float(validation.x0.std()) or 1.0))
        c = float(reference.x0.std()) or problem.data_std
        model: Any = problem.model
        nodes = Nodes(reference.gram, model.levels(reference.times), c)
        return cls(problem, ask, reference, nodes, c, starts[1], validation, starts[2], x0_fresh, ask.evaluations, off)


def _flow(ask: Asked, x_T: Tensor, times: Sequence[float]) -> Tensor:
    """Where the flow from some noise ends, `(n, D)`."""
    ends = []
    for rows in ask.parts(len(x_T)):
        eq = ask.problem.equation(ask.conditions(rows))
        *_, now = integrate(eq, SOLVER, x_T[rows], times, finish=True)
        ask.count(rows.stop - rows.start, len(times))
        ends.append(flat(now.x))
    return torch.cat(ends)


def _check_batch(batch: int, dim: int, calls: int) -> None:
    """Refuses a batch that does not determine the coefficients of a row."""
    need = max(FEWEST, -(-10 * (calls + 1) // dim))
    if batch < need:
        raise ValueError(
            f"batch = {batch} samples of {dim} values are too few for the {calls + 1} coefficients of a row: "
            f"take batch={need} or more"
        )
