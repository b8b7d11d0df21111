r"""Multistep methods: pure functions from levels to weights, run by one class.

$$ x_s = r\,x_t + \sum_j b_j\,D_{i-j} + \varsigma z $$

with $D$ the data predictions of the last steps. A method computes $(r, b, \varsigma)$ in floats from the last few
levels; it never sees a tensor. A new method is one such function.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sde_diffusion.equation import GaussianReverseSDE
from sde_diffusion.noise import NoiseSource
from sde_diffusion.predict import Prediction
from sde_diffusion.sde import Level
from sde_diffusion.solvers.base import Solver

History = tuple[tuple[Level, Prediction], ...]
Weights = tuple[float, Sequence[float], float]


class Multistep(Solver):
    """A multistep method on the data prediction. A subclass writes `memory` and `weights`. One evaluation per step."""

    needs = GaussianReverseSDE

    @property
    @abstractmethod
    def memory(self) -> int:
        """How many data predictions a step uses at most, the new one included."""

    @abstractmethod
    def weights(self, past: Sequence[Level], s: Level) -> Weights:
        """Weight of the state, weights of the data predictions (newest first), standard deviation of the noise.

        Args:
            past: Levels of the known data predictions, newest first: the level of the state, then those before it.
            s: Level to reach.
        """

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: History | None, noise: NoiseSource
    ) -> tuple[Tensor, History]:
        now = eq.denoise(x, t)
        past = (state or ())[: self.memory - 1]
        r, b, std = self.weights([t, *(at for at, _ in past)], s)
        x = now.combine(r * t.alpha + b[0], r * t.sigma)
        for w, (_, before) in zip(b[1:], past, strict=False):
            before.add_data(x, w)
        if std:
            x.add_(noise(t.t, s.t), alpha=std)
        return x, ((t, now), *past)


@dataclass(frozen=True)
class DPMSolverPP(Multistep):
    r"""DPM-Solver++ in its multistep form, on any Gaussian SDE.

    $$ x_s = \tfrac{\sigma_s}{\sigma_t}\,x_t + \alpha_s\,(1 - e^{-h})\,D^*, \quad
       D^* = D_t + \tfrac{h}{2h_-}\,(D_t - D_{t_-}), \quad h = \lambda_s - \lambda_t $$

    with $h_-$ the previous step in $\lambda$. One evaluation per step. The first step is of order 1, as is one from a
    level with no data left; that keeps order 2 over a solve.

    Args:
        order: 1 (the same as `DDIM()`) or 2 ("2M").

    References:
        Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, 2022 (Algorithm 2).
    """

    order: int = 2
    evaluations = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"DPMSolverPP has order 1 or 2, got {self.order!r}")

    @property
    def memory(self) -> int:
        return self.order

    def weights(self, past: Sequence[Level], s: Level) -> Weights:
        t = past[0]
        r = s.sigma / t.sigma
        h = s.lam - t.lam
        b = -s.alpha * math.expm1(-h) if s.alpha > 0 else -t.alpha * r
        if len(past) < 2 or math.isinf(h):
            return r, (b,), 0.0
        k = h / (2 * (t.lam - past[1].lam))
        return r, (b * (1 + k), -b * k), 0.0
