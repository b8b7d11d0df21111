r"""Clipping: a denoiser whose data stay where data can be."""

from __future__ import annotations

import math

from torch import Tensor

from sde_diffusion._checks import check_real
from sde_diffusion.denoiser.base import Denoiser, Wrapper
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde.level import Level


class Clip(Wrapper):
    r"""A denoiser whose data prediction is clamped to `[low, high]`, for any solver.

    $$ \mathrm{data}' = \min(\max(\mathrm{data}, low), high), \quad
       \mathrm{noise}' = (x - \alpha\,\mathrm{data}')/\sigma $$

    Matters for weakly trained noise networks, whose data at high noise are the small difference of two large numbers:
    with bounded data, an error there is cut off rather than carried along. It costs two tensor operations a call; where
    no data prediction leaves the range, the answers change by rounding alone.

    `log_prob` gives the likelihood of the clipped model, whose velocity has kinks, where the divergence jumps, and
    which never denoises data outside of the range to themselves. Take the likelihood of the model inside instead. Train
    the model inside, too.

    Args:
        model: The denoiser.
        low: Smallest value of the data.
        high: Largest value of the data.
        keep_noise: Whether the noise stays as the model answers it, so that $x = \alpha\,data' + \sigma\,noise$ no
            longer holds. DDIM of diffusers does so with `clip_sample=True`; with `use_clipped_model_output=True` as
            well, it does what is the default here.

    Raises:
        TypeError: `model` is no `Denoiser`.
        ValueError: Bounds that are not finite, or not `low < high`.

    Example:
        >>> SDESampler(sde, Clip(model), solver=DDIM()).sample(64)

    References:
        Ho et al., Denoising Diffusion Probabilistic Models, 2020 (their code clips so).
    """

    careful = True
    regular = False  # where data lie outside of the range, what is cut off is divided by sigma

    trained_inside = True

    def __init__(self, model: Denoiser, low: float = -1.0, high: float = 1.0, *, keep_noise: bool = False) -> None:
        super().__init__(model)
        if not -math.inf < check_real(low, "low") < check_real(high, "high") < math.inf:
            raise ValueError(f"low and high must be finite and in this order, got {low!r} and {high!r}")
        self.low, self.high, self.keep_noise = low, high, keep_noise

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        raw = self.inner.predict(x, at, **cond)
        data = raw.data.clamp(self.low, self.high)
        if self.keep_noise:
            return Prediction(lambda: data, lambda: raw.noise, mix=raw.mix)
        return Prediction(lambda: data, lambda: (x - at.alpha * data) / at.sigma, mix=raw.mix)

    def admit(self, x0: Tensor) -> Tensor:
        return self.inner.admit(x0).clamp(self.low, self.high)
