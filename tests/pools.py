"""Rows weighed once at all levels, of which trials of a multilevel estimate take half in a random order each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusion import SDESampler
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.likelihood import Density, Exact
from sde_diffusion.likelihood.dataset import FINER, POWER, fixed
from sde_diffusion.likelihood.draws import t_quantile
from sde_diffusion.likelihood.flow import Flow, Part, solve
from sde_diffusion.likelihood.levels import Telescope
from sde_diffusion.likelihood.route import route_of

STEPS = (6, *FINER)


@dataclass
class Pool:
    """Rows of an exact model with their values at all levels and their truth.

    Args:
        values: Log-densities at each level, `(n,)`.
        readings: What the rough solve reads, `(n, p)`.
        truth: The density of the data themselves, `(n,)`.
    """

    values: list[Tensor]
    readings: Tensor
    truth: Tensor

    @classmethod
    def of(cls, sampler: SDESampler, model: GaussianMixture, n: int, seed: int, batch_size: int = 256) -> Pool:
        """`n` rows of a mixture, weighed as `dataset_log_prob` weighs them, at 6, 24 and 64 evaluations."""
        x = model.sample(n, seed=seed)
        route = route_of(sampler.problem, sampler.span, Density(level=0.0), None)
        values: list[list[Tensor]] = [[] for _ in STEPS]
        readings: list[Tensor] = []
        for part in x.split(batch_size):
            for level, steps in enumerate(STEPS):
                flow = Flow(route, fixed(steps), route.spaced(steps, POWER), Exact(), reads=level == 0)
                found = solve(flow, Part(part, None, {}), warn=False)
                values[level].append(found.value)
                if found.readings is not None:
                    readings.append(found.readings)
        return cls([torch.cat(v) for v in values], torch.cat(readings), model.data_log_prob(x))

    def trial(self, seed: int, budget: float = 15.0, n: int | None = None) -> tuple[float, float, float, float]:
        """Error, standard error, bias and half an interval of the mean of `n` rows, by default half of them."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(self.truth), generator=generator)[: n or len(self.truth) // 2]
        own, n = [v[rows] for v in self.values], len(rows)
        chance = torch.rand(len(STEPS) - 1, n, generator=generator, dtype=torch.float64)
        ratios = [(a / b) ** 2 for a, b in pairwise(STEPS[:-1])]
        levels = Telescope(lambda level, i: own[level][i], own[0], self.readings[rows], STEPS, chance, ratios)
        levels.spend(budget * n)
        found = levels.estimate()
        stated, bias = math.sqrt(found.variance), found.rest(STEPS)
        error = found.value - float(self.truth[rows].mean())
        return error, stated, bias, t_quantile(0.95, found.freedom) * stated + bias


def covered(trials: list[tuple[float, float, float, float]]) -> float:
    """The share of 95 % intervals that hold the truth."""
    error, _, _, half = torch.tensor(trials, dtype=torch.float64).T
    return float((error.abs() <= half).double().mean())
