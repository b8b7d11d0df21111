"""The network of a problem, counted, and asked at whatever noise level a sampler stands."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoiser.base import Denoiser, Wrapper
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde.level import Level


class Skip(Exception):  # noqa: N818 - no error: a pair that does not apply to a cell, with the reason
    """A pair that cannot be driven on this process or at exactly this number of evaluations."""


class Counted(Wrapper):
    """The model of a problem, with the number of its evaluations and the rows that they were of.

    An evaluation is one answer of the model as it is sampled: a guided one, which runs its network twice, counts once,
    for every sampler alike.
    """

    careful = True

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.calls = self.rows = 0

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        self.calls += 1
        self.rows += len(x)
        return self.inner.predict(x, at, **cond)


class AnyLevel:
    r"""A counted model that takes a state $\alpha x_0 + \sigma\varepsilon$ of any two scales.

    The state is brought to the process of the model at equal $\sigma/\alpha$; beyond the ends of the process the model
    is asked at its end, as a network must be.

    Args:
        model: The model.
        cond: Its conditions.
        levels: Those tabulated before, by the scales of a state; kept by who asks the same model often.
    """

    def __init__(
        self, model: Counted, cond: dict[str, Any], levels: dict[tuple[float, float], Level] | None = None
    ) -> None:
        self.model, self.cond, self._levels = model, cond, {} if levels is None else levels
        self.top, self.bottom = model.sde.levels([model.sde.t_max, model.sde.t_min])
        self.largest, self.smallest = self.top.ratio, self.bottom.ratio

    def _level(self, alpha: float, sigma: float) -> Level:
        if (alpha, sigma) not in self._levels:
            sde = self.model.sde
            if sigma <= self.smallest * alpha * (1 + 1e-9):
                t = sde.t_min
            elif alpha <= 0 or sigma >= self.largest * alpha * (1 - 1e-9):
                t = sde.t_max
            else:
                t = float(sde.time_of(torch.tensor([math.log(alpha / sigma)], dtype=torch.float64))[0])
                t = min(max(t, sde.t_min), sde.t_max)
            self._levels[alpha, sigma] = self.model.levels([t])[0]
        return self._levels[alpha, sigma]

    @torch.no_grad()
    def __call__(self, x: Tensor, alpha: float, sigma: float) -> Prediction:
        """One evaluation at a state whose scales are these."""
        at = self._level(float(alpha), float(sigma))
        return self.model.predict(x * (math.hypot(at.alpha, at.sigma) / math.hypot(alpha, sigma)), at, **self.cond)

    def start(self, x_T: Tensor, alpha: float, sigma: float) -> Tensor:
        """The state of a process with these scales that is the pure noise of `x_T`."""
        return x_T * (math.hypot(alpha, sigma) / math.hypot(self.top.alpha, self.top.sigma))
