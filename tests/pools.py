"""Rows weighed once at all levels, of which trials of a multilevel estimate take half in a random order each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion import SDESampler
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.likelihood import Density, Exact
from sde_diffusion.likelihood.dataset import FINER, POWER, fixed
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

    def trial(self, seed: int, budget: float = 15.0) -> tuple[float, float, float]:
        """Error, standard error and bias of the mean of half the rows: all that chance decides in a call."""
        n = len(self.truth) // 2
        rows = torch.randperm(len(self.truth), generator=torch.Generator().manual_seed(seed))[:n]
        own = [v[rows] for v in self.values]
        levels = Telescope(lambda level, i, j: own[level][i:j], own[0], self.readings[rows], STEPS)
        levels.spend(budget * n)
        found = levels.estimate()
        bias = (abs(found.last) + math.sqrt(found.last_variance)) / 3
        return found.value - float(self.truth[rows].mean()), math.sqrt(found.variance), bias


def covered(trials: list[tuple[float, float, float]]) -> float:
    """The share of 95 % intervals, with the bias on either side, that hold the truth."""
    error, stated, bias = torch.tensor(trials, dtype=torch.float64).T
    return float((error.abs() <= 1.96 * stated + bias).double().mean())
