r"""Products of powers of models, $\prod_i p_i(x_0)^{\gamma_i}$: products, quotients and annealed temperatures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_reals
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.guidance.product import Several
from sde_diffusion.sde.level import Level

SUM = 1e-12
"""How far from 1 the sum of powers may be by rounding."""


class Tilted(Several):
    r"""The product of powers of models, with their scores summed at every time: $\prod_i p_{i,t}^{\gamma_i}$.

    $$ \mathrm{noise} = \sum_i\gamma_i\,\mathrm{noise}_i, \quad
       \mathrm{data} = \sum_i\gamma_i\,\mathrm{data}_i + \Big(1 - \sum_i\gamma_i\Big)\frac x\alpha $$

    so that $x = \alpha\,\mathrm{data} + \sigma\,\mathrm{noise}$ whatever the powers. An annealed temperature is
    `Tilted([model], [beta])`.

    A solver that follows it does not sample $\prod_i p_i(x_0)^{\gamma_i}$, since a product under noise is not the
    noised product: use it in a `ParticleSampler`, which weighs. Least of all where the powers do not sum to 1: the
    product is then no law of $\alpha x_0 + \sigma\varepsilon$ at any time, the probability flow does not follow it, and
    at $\alpha = 0$ it has no data prediction. A stochastic solver is drawn towards it at each level.
    Few steps overshoot: of `Tilted([model], [2.0])` on data of radius 1, samples lie as far out as 54 with 10 steps of
    the sampler's own solver, 15 with 20, and among the data with its default of 30.

    Args:
        models: The models, all made for one process; conditions go to each.
        powers: $\gamma_i$, one for each, of any sign.

    Raises:
        TypeError: A model that is no `Denoiser`, or powers that are no numbers.
        ValueError: No model, powers that are not finite or not one for each; models of two processes; when asked at
            $\alpha = 0$, powers that do not sum to 1.

    Example:
        >>> SDESampler(sde, Tilted([left, right], [0.5, 0.5])).sample(64)

    References:
        Du et al., Reduce, Reuse, Recycle, 2023; Skreta et al., Feynman-Kac Correctors in Diffusion, 2025.
    """

    def __init__(self, models: Sequence[Denoiser], powers: Sequence[float]) -> None:
        given: object = models
        if not isinstance(given, (list, tuple)) or not given:
            raise TypeError(f"models is a list of models, [model] for one, got {given!r}")
        found = check_reals(powers, "powers")
        if len(found) != len(models) or not all(map(math.isfinite, found)):
            raise ValueError(f"powers must be finite, one for each of {len(models)} models, got {powers!r}")
        super().__init__(*models)
        self._powers = tuple(found)
        total = math.fsum(found)
        self._rest = 0.0 if abs(total - 1) <= SUM else 1 - total
        if self._powers != (1.0,):
            self.kind = None

    @property
    def powers(self) -> Sequence[float]:
        return self._powers

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        if self._powers == (1.0,):
            return self.inner.predict(x, at, **cond)
        if self._rest:
            self._check(at)
        parts = self.parts(x, at, **cond)

        def data() -> Tensor:
            found = self._sum([p.data for p in parts])
            return found + self._rest / at.alpha * x if self._rest else found

        return Prediction(data, lambda: self._sum([p.noise for p in parts]))

    def check_pure_noise(self) -> None:
        super().check_pure_noise()
        if self._rest:
            raise ValueError(self._unknown())

    def extra_repr(self) -> str:
        return f"powers={list(self._powers)!r}"

    def _sum(self, values: list[Tensor]) -> Tensor:
        found = values[0] * self._powers[0]
        for value, power in zip(values[1:], self._powers[1:], strict=True):
            found = torch.add(found, value, alpha=power)
        return found

    def _check(self, at: Level) -> None:
        alpha = at.alpha
        if bool((alpha == 0).any()) if isinstance(alpha, Tensor) else alpha == 0:
            raise ValueError(self._unknown())

    def _unknown(self) -> str:
        return (
            f"the powers {list(self._powers)} sum to {1 - self._rest:g}, and such a product tells nothing of the data "
            "where alpha = 0: start at a smaller time (t_max= of the process, or a grid), or let them sum to 1"
        )
