r"""Flow maps of mixtures, whose flow is known: eight Gaussians in the plane, and rotated ones in 16 dimensions.

A map is a fresh network on `EDMSDE`; its teacher is the exact denoiser, its data are 200,000 exact draws. It is carried
from noise that nothing has seen to the data, in 1, 2 and 4 calls, and held against the exact flow from there.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from _flow_maps_objectives import Lesson, Way
from _problems import Case, narrow_ring, reference, start
from torch import Tensor

from sde_diffusion import EDMSDE, FlowMap, SDESampler, metrics, predict
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.distillation.draws import Place, angles, pairs
from sde_diffusion.nets import MLP
from sde_diffusion.tuning import tune

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from mixtures import mixture

ROWS = 200_000
RIVALS = (2, 3, 4, 8)
"""Evaluations of the samplers that need no training."""


@dataclass(frozen=True)
class Exact:
    """A mixture, its exact flow from some noise, and draws of it.

    Attributes:
        case: Process, exact denoiser, shape.
        noise: Noise, `(n, D)`, in float64.
        x0: Where the exact flow leads it.
        real: Other draws of the mixture, as many.
    """

    case: Case
    noise: Tensor
    x0: Tensor
    real: Tensor

    @classmethod
    def of(cls, case: Case, n: int) -> Exact:
        """The problem on `n` paths."""
        x_T = start(case, n, seed=7)
        assert case.data is not None
        return cls(case, x_T, reference(case, x_T), case.data(n, 8))

    @property
    def model(self) -> GaussianMixture:
        """The exact denoiser."""
        assert isinstance(self.case.model, GaussianMixture)
        return self.case.model

    def fresh(self, seed: int) -> FlowMap:
        """A map that has learnt nothing."""
        torch.manual_seed(seed)
        net = MLP(self.case.shape[0], until=True)
        return FlowMap(net, self.case.sde, predict.EDM(self.model.data_std), shape=self.case.shape)

    def draws(self, seed: int) -> Tensor:
        """Data to train on."""
        return self.model.sample(ROWS, seed=1000 + seed).float()

    def far(self, x: Tensor) -> dict[str, float]:
        """How far samples are from the ends of the exact flow, in standard deviations of the data, and as a law."""
        x = x.double()
        gap = (x - self.x0).square().mean(1).sqrt() / self.model.data_std
        energy = metrics.energy_distance(x, self.real)
        return {"rms": float(gap.square().mean().sqrt()), "median": float(gap.median()), "energy": energy}


@cache
def plane(n: int) -> Exact:
    """Eight narrow Gaussians on a circle."""
    return Exact.of(narrow_ring("ring", 8, 0.1, EDMSDE()), n)


@cache
def sixteen(n: int) -> Exact:
    """Five Gaussians in 16 dimensions, rotated at random, covariances from .01 to 1, at random distances of 2."""
    found = mixture(16, low=0.1, high=1.0)
    assert found.basis is not None
    weights, turn = found.log_weights.exp(), found.basis
    spread = turn @ torch.diag_embed(found.spread) @ turn.mT
    model = GaussianMixture(EDMSDE(), weights, found.means - weights @ found.means, (spread + spread.mT) / 2)
    return Exact.of(Case("mixture", model.sde, model, (16,), lambda n, s: model.sample(n, seed=s)), n)


def trained(problem: Exact, way: Way, steps: int, seed: int) -> dict[str, Any]:
    """A map trained in one way, by a seed: how far it is at each number of calls, and whether two jumps are one."""
    before = time.process_time()
    fast = way.run(problem.fresh(seed), Lesson(problem.model, problem.draws(seed), steps, seed, 2e-3))
    seconds = time.process_time() - before
    row: dict[str, Any] = {"method": way.name, "seed": seed, "steps": steps, "seconds": seconds}
    row["calls"] = {str(k): problem.far(sampled(fast, k, problem.noise)) for k in way.calls}
    return row | {"semigroup": defect(fast, problem.real)}


def sampled(fast: FlowMap, calls: int, x_T: Tensor, **cond: Any) -> Tensor:
    """Samples of a map from some noise, by so many calls."""
    return SDESampler(fast.sde, fast, nfe=calls).sample(len(x_T), x_T=x_T.float(), seed=0, **cond)


def defect(fast: FlowMap, real: Tensor) -> float | None:
    r"""Root mean square of $X(X(y, u, r), r, s) - X(y, u, s)$ in $y$, the scale of which is 1; None where it may not.

    Angles are drawn as in the training, $r$ uniform between; the states are noised data.
    """
    if fast.reach != "any":
        return None
    generator, x0 = torch.Generator().manual_seed(9), real.float()
    u, s = pairs(len(x0), *angles(fast.sde, fast.data_std), generator)
    r = s + (u - s) * torch.rand(len(x0), generator=generator, dtype=torch.float64)
    high, mid, low = (Place.of(fast, v, x0).at for v in (u, r, s))
    with torch.no_grad():
        x = high.alpha * x0 + high.sigma * torch.randn(x0.shape, generator=generator)
        gap = fast.jump(fast.jump(x, high, mid), mid, low) - fast.jump(x, high, low)
    return math.sqrt(float((gap / fast.radius(low)).square().mean()))


def rivals(problem: Exact, budgets: tuple[int, ...] = RIVALS) -> list[dict[str, Any]]:
    """The samplers that need no training, on the exact model: the default and the tuned one, by evaluations."""
    case = problem.case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few evaluations are what this is about
        made = {"default": lambda k: SDESampler(case.sde, case.model, nfe=k), "tuned": _tuned(problem, budgets)}
        rows = []
        for name, sampler in made.items():
            ends = {str(k): sampler(k).sample(len(problem.noise), x_T=problem.noise) for k in budgets}
            rows.append({"method": name, "calls": {k: problem.far(x) for k, x in ends.items()}})
    return rows


def _tuned(problem: Exact, budgets: tuple[int, ...]) -> Callable[[int], SDESampler]:
    case = problem.case
    return tune(case.sde, case.model, budgets, batch=256, seed=0).sampler
