r"""Clipping: a denoiser whose data stay where data can be, in bounds that are known or found in each sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion._checks import check_positive, check_real
from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.base import Denoiser, Wrapper
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde.level import Level


class Clipped(Wrapper):
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
        >>> SDESampler(sde, Clipped(model), solver=DDIM()).sample(64)

    References:
        Ho et al., Denoising Diffusion Probabilistic Models, 2020 (their code clips so).
    """

    careful = True
    regular = False  # where data lie outside of the range, what is cut off is divided by sigma

    trained_inside = True
    of_data = True

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

    def extra_repr(self) -> str:
        return f"low={self.low!r}, high={self.high!r}" + ", keep_noise=True" * self.keep_noise


class Thresholded(Wrapper):
    r"""A denoiser whose data prediction is scaled into `[-bound, bound]`, row by row: dynamic thresholding.

    $$ s = \max(\mathrm{quantile}_q|\mathrm{data}|,\, b), \quad
       \mathrm{data}' = \tfrac bs\min(\max(\mathrm{data}, -s), s), \quad
       \mathrm{noise}' = (x - \alpha\,\mathrm{data}')/\sigma $$

    Against the saturation that strong guidance brings: entries are pulled inwards rather than cut off at the bound.
    Where the quantile lies within, it is `Clipped`. Wrap the guided model, `Thresholded(Guided(model, 7.5))`. A sort of
    each row a call; of likelihoods and training holds what `Clipped` says.

    Args:
        model: The denoiser.
        quantile: $q$, the share of the entries of a row that is not cut off, in `(0, 1]`.
        most: Largest $s$; None for no limit.
        bound: $b$, the largest size of the data.

    Raises:
        TypeError: `model` is no `Denoiser`.
        ValueError: A quantile outside of `(0, 1]`, a bound that is not positive, or one above `most`.

    References:
        Saharia et al., Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding, 2022 (2.3).
    """

    careful = True
    regular = False

    trained_inside = True
    of_data = True

    def __init__(
        self, model: Denoiser, quantile: float = 0.995, most: float | None = None, *, bound: float = 1.0
    ) -> None:
        super().__init__(model)
        if not 0 < check_real(quantile, "quantile") <= 1:
            raise ValueError(f"quantile is a share of the entries and must lie in (0, 1], got {quantile!r}")
        check_positive(bound, "bound")
        if most is not None and check_positive(most, "most") < bound:
            raise ValueError(f"most is the largest scale, and must be at least bound={bound!r}, got {most!r}")
        self.quantile, self.most, self.bound = quantile, most, bound

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        raw = self.inner.predict(x, at, **cond)
        data = self._within(raw.data)
        return Prediction(lambda: data, lambda: (x - at.alpha * data) / at.sigma, mix=raw.mix)

    def admit(self, x0: Tensor) -> Tensor:
        return self._within(self.inner.admit(x0))

    def extra_repr(self) -> str:
        return f"quantile={self.quantile!r}, most={self.most!r}, bound={self.bound!r}"

    def _within(self, data: Tensor) -> Tensor:
        sizes = rows(data).abs().sort(1).values  # not torch.quantile, which takes 16 million numbers at most
        place = self.quantile * (sizes.shape[1] - 1)
        below, above = math.floor(place), math.ceil(place)
        s = sizes[:, below].lerp(sizes[:, above], place - below).clamp(self.bound, self.most)
        s = s.reshape(-1, *[1] * (data.ndim - 1))
        return torch.minimum(torch.maximum(data, -s), s) * (self.bound / s)
