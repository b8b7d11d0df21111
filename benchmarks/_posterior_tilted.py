r"""Guidance against the law that it is taken for, $p(x)^{1 - w}\,p(x \mid c)^w \propto p(x)\,p(c \mid x)^w$.

Mixtures of one and two dimensions, of whose modes a class prefers some. Exact samples are drawn by a fine grid.
"""

from __future__ import annotations

import math
import statistics
from typing import Any, NamedTuple

import torch
from _posterior_cells import F64, SDE
from torch import Tensor

from sde_diffusion import SDESampler
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.guidance import Tilted
from sde_diffusion.particles import ParticleSampler

DIRECTIONS = 64
SETS = 12
WITHIN = 6.0
"""Half the width of the grid."""


class Classes(NamedTuple):
    """A law with one class in it.

    Attributes:
        name: What it is called.
        every: The model of all.
        one: That of the class.
        cells: Of the grid, along each axis.
    """

    name: str
    every: GaussianMixture
    one: GaussianMixture
    cells: int

    def exact(self, w: float, n: int, sets: int, generator: torch.Generator) -> list[Tensor]:
        """Sets of `n` samples of the tilted law, shape `(n, D)` each."""
        dim = self.every.means.shape[1]
        width = 2 * WITHIN / self.cells
        axis = -WITHIN + width * (torch.arange(self.cells, dtype=F64) + 0.5)
        places = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
        log_p = w * self.one.data_log_prob(places) + (1 - w) * self.every.data_log_prob(places)
        k = torch.multinomial(torch.softmax(log_p, 0), n * sets, replacement=True, generator=generator)
        x = places[k] + width * (torch.rand(n * sets, dim, generator=generator, dtype=F64) - 0.5)
        return list(x.split(n))

    def target(self, w: float) -> Tilted:
        """The guided model: what classifier-free guidance of the scale `w` answers."""
        return Tilted([self.one, self.every], [w, 1 - w])


def _classes(name: str, means: Tensor, shares: list[float], every: list[float], cells: int) -> Classes:
    one, all_of_it = (GaussianMixture(SDE, torch.tensor(w, dtype=F64), means, 0.25) for w in (shares, every))
    return Classes(name, all_of_it, one, cells)


ANGLES = torch.arange(5, dtype=F64) * (math.tau / 5)
LINE = _classes("1-D", torch.tensor([[-2.0], [0.0], [2.0]], dtype=F64), [0.1, 0.2, 0.7], [0.3, 0.4, 0.3], 60_000)
PLANE = _classes("2-D", 1.5 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1), [0.5, 0.2, 0.1, 0.1, 0.1], [0.2] * 5, 600)


def _sorted(x: Tensor, theta: Tensor) -> Tensor:
    return (x @ theta).sort(dim=0).values


def measure(law: Classes, w: float, n: int, steps: int, seeds: int) -> dict[str, Any]:
    """Sliced W1 over the floor, of plain guidance and of particles as many as samples, over seeds."""
    g = torch.Generator().manual_seed(7)
    dim = law.every.means.shape[1]
    theta = torch.randn(dim, DIRECTIONS if dim > 1 else 1, generator=g, dtype=F64)
    theta = theta / theta.norm(dim=0)
    sets = [_sorted(x, theta) for x in law.exact(w, n, SETS, g)]
    floor = float(torch.stack([(a - b).abs().mean() for i, a in enumerate(sets) for b in sets[:i]]).mean())

    def ratio(x: Tensor) -> float:
        found = _sorted(x, theta)
        return float(torch.stack([(found - exact).abs().mean() for exact in sets]).mean()) / floor

    target = law.target(w)
    plain, weighed, ess = [], [], []
    for seed in range(seeds):
        stream = torch.Generator().manual_seed(seed)
        plain.append(ratio(SDESampler(SDE, target, steps=99).sample(n, seed=stream)))
        found = ParticleSampler(SDE, target, particles=n, steps=steps).sample(seed=seed)
        weighed.append(ratio(found.draw(n, seed=seed)))
        ess.append(float(found.ess[:, -1].mean()))
    return {
        "law": law.name,
        "w": w,
        "samples": n,
        "steps": steps,
        "seeds": seeds,
        "guided": statistics.fmean(plain),
        "particles": statistics.fmean(weighed),
        "particles_error": statistics.stdev(weighed) / math.sqrt(seeds) if seeds > 1 else math.nan,
        "ess": statistics.fmean(ess),
    }
