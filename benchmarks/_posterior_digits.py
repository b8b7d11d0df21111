r"""The lower half of a handwritten digit, given its upper half under noise: a finite data set, so that all is known.

The data are scikit-learn's 1,797 digits of 8 x 8 pixels, scaled to -1 ... 1, and the model is their exact denoiser, so
that every sample is one of the digits but for rounding. The exact weights of the digits are
$w_k \propto \exp(-|y - A x_k|^2/2\sigma_y^2)$; what is reported is the total variation to them of the shares that
samples give to the digits nearest to them, and that of exact samples of the same number.

Particles are twisted by `PseudoInverse`: `Moments` takes 32 products with the Jacobian for each evaluation here, and
was no closer (.10 against .11 over two digits, 256 particles). The rule `Moments` is given 20 evaluations, since more
do not bring it closer.
"""

from __future__ import annotations

import math
import statistics
from functools import partial
from typing import Any

import torch
from _posterior_cells import F64, SDE
from torch import Tensor

from sde_diffusion import SDESampler, grids
from sde_diffusion.denoiser.analytic import Empirical
from sde_diffusion.guidance import Mask, Moments, Posterior, PseudoInverse, Rule
from sde_diffusion.particles import ParticleSampler
from sde_diffusion.solvers import DDIM, Inpaint

STEPS = 100
MOMENTS_STEPS = 20
PASSES = 10
"""Of RePaint, each step."""
METHODS = ("particles", "Moments", "PseudoInverse", "replacement", "RePaint", "exact")


def digits() -> Tensor:
    """The digits, shape `(1797, 8, 8)`."""
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().images, dtype=F64) / 8 - 1


class Half:
    """One digit of which the upper half is known under noise.

    Args:
        points: All digits.
        noise: Standard deviation, in units of -1 ... 1.
        seed: Of the digit and the noise.
    """

    def __init__(self, points: Tensor, noise: float, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.points, self.noise, self.seed = points, noise, seed
        self.mask = torch.zeros(points.shape[1:], dtype=torch.bool)
        self.mask[: points.shape[1] // 2] = True
        self.model = Empirical(SDE, points)
        self.digit = points[int(torch.randint(len(points), (1,), generator=g))]
        self.y = self.digit[self.mask] + noise * torch.randn(int(self.mask.sum()), generator=g, dtype=F64)
        gap = (points[:, self.mask] - self.y).square().sum(1)
        self.weights = torch.softmax(-0.5 * gap / noise**2, 0)

    def draw(self, method: str, n: int, steps: int) -> tuple[Tensor, Tensor, int, int]:
        """Samples, their weights, evaluations and products with the Jacobian."""
        even = torch.full((n,), 1 / n, dtype=F64)
        stream = torch.Generator().manual_seed(self.seed)
        if method == "exact":
            k = torch.multinomial(self.weights, n, replacement=True, generator=stream)
            return self.points[k], even, 0, 0
        if method in ("replacement", "RePaint"):
            known = torch.zeros(self.mask.shape, dtype=F64)
            known[self.mask] = self.y
            solver = Inpaint(DDIM(1.0), known, self.mask, passes=PASSES if method == "RePaint" else 1)
            sampler = SDESampler(SDE, self.model, solver=solver, steps=steps - 1, grid=self._grid())
            *_, last = sampler.iterate(n, seed=stream)
            return last.x, even, last.nfe, last.vjps
        rule: Rule = PseudoInverse()
        if method == "Moments":
            rule, steps = Moments(), min(steps, MOMENTS_STEPS)
        target = Posterior(self.model, Mask(self.mask), self.noise, rule)
        if method == "particles":
            found = ParticleSampler(SDE, target, particles=n, steps=steps).sample(seed=self.seed, y=self.y)
            share = torch.softmax(found.log_weights[0], 0)
            return found.x[0], share, found.nfe, found.vjps
        *_, last = SDESampler(SDE, target, steps=steps - 1).iterate(n, seed=stream, y=self.y)
        return last.x, even, last.nfe, last.vjps

    def variation(self, x: Tensor, share: Tensor) -> float:
        """Total variation of the shares that samples give to the digits nearest to them, to the exact ones."""
        near = torch.cdist(x.flatten(1), self.points.flatten(1)).argmin(1)
        given = torch.zeros(len(self.points), dtype=F64).index_add_(0, near, share)
        return float((given - self.weights).abs().sum()) / 2

    def _grid(self) -> Any:
        """The grid of the particles."""
        return partial(grids.balanced, data_std=self.model.data_std, closed=True)


def measure(noise: float, problems: int, n: int, steps: int) -> dict[str, Any]:
    """Total variation of each method, over digits."""
    points, rows = digits(), {}
    for method in METHODS:
        found, nfe, vjps = [], 0, 0
        for seed in range(problems):
            half = Half(points, noise, seed)
            x, share, nfe, vjps = half.draw(method, n, steps)
            found.append(half.variation(x, share))
        error = statistics.stdev(found) / math.sqrt(problems) if problems > 1 else math.nan
        rows[method] = {"mean": statistics.fmean(found), "error": error, "all": found, "nfe": nfe, "vjps": vjps}
    return {"noise": noise, "problems": problems, "samples": n, "steps": steps, "methods": rows}
