"""Draws high resolutions of given low ones: a sampler whose model is told a low resolution."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion._checks import check_finite, check_flag, check_samples, check_state, rows_in_words
from sde_diffusion._tensors import broken
from sde_diffusion.cascade.low_resolution import LowResolution
from sde_diffusion.cascade.objective import check_answers, check_fits, check_low
from sde_diffusion.denoiser.conditions import Conditions, PerSample, Shared, merged
from sde_diffusion.denoiser.modules import home
from sde_diffusion.likelihood.exact import Method
from sde_diffusion.likelihood.result import LogProb
from sde_diffusion.likelihood.route import Density
from sde_diffusion.noise.seeds import Seed, Use, apart, as_seeds, seed_list
from sde_diffusion.noise.sources import NoiseSource, Streams
from sde_diffusion.sampler.base import Iterates, Sampler, guarded
from sde_diffusion.sampler.sampler import SDESampler, kept
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.solvers.loop import NonFiniteWarning, Snapshot


class Upsampler(Sampler):
    r"""Draws $x_0$ given a low resolution: adds the noise of a level to it, and tells a model of the two.

    $$ z = \mathrm{low} + s\,\varepsilon, \quad x_0 \sim p(x_0 \mid z, s) $$

    So the low resolution of what is drawn is `low` up to the noise: by an exact model, on low resolutions of data,
    it lies $\mathcal N(0, s^2)$ from $z$, and $\sqrt2\,s$ from `low` at most, root mean square.

    Args:
        sampler: Draws from the model, an `SDESampler` or another `Sampler` of a known event shape `(C, *spatial)`.
        low_resolution: What the model was trained on.
        level: $s$, at most `low_resolution.most`: little for low resolutions of data, more for those that a model drew,
            which the noise makes more alike; by default 0.1, or `most` where that is less.

    Raises:
        TypeError: Something else than these; a model of residuals in a `Clipped`, a `Posterior` or the like, which
            bound or measure data.
        ValueError: An event shape that is not known or that the factor does not divide, a level out of range, a network
            built without what it is to be told.

    Example:
        >>> up = Upsampler(SDESampler(sde, model), LowResolution(2))
        >>> x = up.sample(low=low, seed=0)  # (B, C, 8, 8) of (B, C, 4, 4)
    """

    def __init__(self, sampler: Sampler, low_resolution: LowResolution, level: float | None = None) -> None:
        given: object = sampler
        if not isinstance(given, Sampler):
            raise TypeError(f"Upsampler draws by a sampler, such as SDESampler(sde, model), got {type(given).__name__}")
        self.sampler, self.low_resolution = sampler, check_low(low_resolution)
        if sampler.shape is None:
            raise ValueError("the event shape is not known: give it to SDESampler(..., shape=(3, 32, 32))")
        self.low_shape = low_resolution.low_shape(sampler.shape)
        self.level = low_resolution.check_level(min(0.1, low_resolution.most) if level is None else level)
        for model in sampler.models:
            check_fits(model, low_resolution, sampler.shape[0])
            if low_resolution.residual:
                check_answers(model)

    def __repr__(self) -> str:
        return f"Upsampler({self.sampler!r}, {self.low_resolution!r}, level={self.level})"

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Event shape of the samples."""
        return self.sampler.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the samples."""
        return self.sampler.dtype

    @property
    def models(self) -> tuple[object, ...]:
        """Those of the sampler inside."""
        return self.sampler.models

    @property
    def details(self) -> list[Any]:
        """Those of the sampler inside; the rest stands in `repr`."""
        return self.sampler.details

    def conditions(self, cond: Mapping[str, Any], n: int) -> Conditions:
        """The conditions of `n` samples: `low`, with a row for each, and what the model takes besides.

        Raises:
            TypeError: No low resolution, or one that is no tensor of floats.
            ValueError: A low resolution of another shape; a condition that the low resolution tells already.
        """
        named = merged(cond)
        low = self._as_low(named.pop("low", None))
        rest = self.besides({"cond": named}, n).marked(slice(0, n))
        return Conditions({"cond": rest | {"low": PerSample(low)}}, n)

    def besides(self, cond: Mapping[str, Any], n: int) -> Conditions:
        """What the model takes besides the low resolution, of `n` samples; `ValueError` for what that tells already."""
        named = merged(cond)
        self.low_resolution.check_free(named)
        return self.sampler.conditions({"cond": named} if named else {}, n)

    def sample(
        self,
        n: int = 1,
        *,
        seed: Seed = None,
        x_T: Tensor | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        noise: Callable[..., NoiseSource] = Streams,
        grad: bool = False,
        nonfinite: str = "raise",
        **cond: Any,
    ) -> Tensor:
        """Draws high resolutions, shape `(n, C, *spatial)`; as of `SDESampler.sample`, but for these.

        Args:
            n: Number of samples; that of the low resolutions, where several are given.
            seed: As there. The noise on the low resolution has a stream of its own.
            x_T: As there.
            batch_size: As there.
            progress: Shows a progress bar.
            noise: As there.
            grad: Keeps the graph, that to the low resolution too.
            nonfinite: As there; with `"keep"`, the samples of low resolutions that are not finite are NaN.
            **cond: `low`, the low resolutions in the units of the model, shape `(n, C, *)` or one for all; and what the
                model takes besides.

        Raises:
            TypeError, ValueError: As of `conditions` and of `SDESampler.sample`; a low resolution that is not finite.
        """
        begun = self._begin(n, seed, x_T, grad, nonfinite, cond)
        x = self.sampler.sample(
            begun.n, batch_size=batch_size, progress=progress, noise=noise, nonfinite=nonfinite, **begun.options
        )
        with torch.set_grad_enabled(grad):
            return self._data(x, begun)

    def iterate(
        self,
        n: int = 1,
        *,
        seed: Seed = None,
        x_T: Tensor | None = None,
        noise: Callable[..., NoiseSource] = Streams,
        grad: bool = False,
        nonfinite: str = "raise",
        **cond: Any,
    ) -> Iterator[Snapshot]:
        """The solve behind `sample`, step by step; arguments as there. Of residuals, the states are those of the data.

        Raises:
            TypeError: As `sample`, or a sampler inside that has no `iterate`.
            ValueError: As `sample`; and a state that was written to, as of `SDESampler.iterate`.
        """
        if not isinstance(self.sampler, Iterates):
            raise TypeError(f"{type(self.sampler).__name__} has no iterate: draw by sample")
        begun = self._begin(n, seed, x_T, grad, nonfinite, cond)
        solve = self.sampler.iterate(begun.n, noise=noise, nonfinite=nonfinite, **begun.options)
        data = (now._replace(x=self._data(now.x, begun, now)) for now in solve)
        return guarded(data, grad, nullcontext())

    def rows_of(self, cond: Mapping[str, Any]) -> int:
        """The number of low resolutions among conditions."""
        return len(self._as_low(merged(cond).get("low")))

    def log_prob(
        self,
        x0: Tensor,
        *,
        density: Density = Density(),
        method: Method = Method(),
        seed: int | Sequence[int] | None = None,
        grad: bool = False,
        batch_size: int | None = None,
        **cond: Any,
    ) -> LogProb:
        r"""Exact log-likelihood of high resolutions given noised low ones, $\log p(x_0 \mid z, s)$, in nats.

        Of a model of residuals too, $\log p(r \mid z, s) - D\log c$, with the $D$ coordinates of a sample.

        Args:
            x0: High resolutions, shape `(B, C, *spatial)`.
            density: As of `SDESampler.log_prob`; its levels are those of the model, `level` of the answer that of data.
            method: As there.
            seed: Decides the noise on `low`, and probes.
            grad: As there; keeps the graph to the low resolution too.
            batch_size: As there.
            **cond: `low`, as of `sample`, which makes the same $z$ of it with this seed; and what the model takes
                besides.

        Raises:
            TypeError, ValueError: As of `conditions` and of `SDESampler.log_prob`; a sampler inside that has none.
        """
        if not isinstance(self.sampler, SDESampler):
            raise TypeError(f"{type(self.sampler).__name__} has no density: give the Upsampler an SDESampler")
        check_finite(check_state(x0, "x0", shape=self.shape), "x0")
        check_flag(grad, "grad")
        seeds, c = seed_list(seed, len(x0)), self.low_resolution.residual or 1.0
        with torch.set_grad_enabled(grad):
            low, rest = self._parted(cond, len(x0))
            z, told = self._noised(low, seeds)
            r = self.low_resolution.lacking(x0, z)
        found = self.sampler.log_prob(
            r, density=density, method=method, seed=seeds, grad=grad, batch_size=batch_size, cond=rest | told
        )
        return replace(found, value=found.value - found.dim * math.log(c), level=found.level * c)

    def told(self, low: Tensor, *, seed: Seed = None) -> dict[str, PerSample]:
        """What the model is told of low resolutions with their noise, as `sample` with this seed tells it.

        For what the sampler inside does besides, of which it is to be known that its model answers, and its states are,
        what `low_resolution.lacking` says: of residuals, no data. Their density is that of `log_prob` here.
        """
        low = self._as_low(low)
        return self._noised(low, as_seeds(seed, len(low)))[1]

    # --- parts

    def _begin(
        self, n: int, seed: Seed, x_T: Tensor | None, grad: bool, nonfinite: str, cond: Mapping[str, Any]
    ) -> _Begun:
        """The low resolutions with their noise, and what the sampler inside is called with."""
        check_flag(grad, "grad")
        keep, n = kept(nonfinite), check_samples(n)
        if n == 1:
            n = self.rows_of(cond) if x_T is None else len(check_state(x_T, "x_T"))
        with torch.set_grad_enabled(grad):
            (low, rest), seeds, lost = self._parted(cond, n), as_seeds(seed, n), None
            if keep and bool((bad := broken(low)).any()):
                low, lost = _filled(low, bad, 0.0), bad
                warnings.warn(
                    f"{rows_in_words(bad)} have a low resolution that is not finite, and are NaN", NonFiniteWarning, 3
                )
            z, told = self._noised(low, seeds)
        options: dict[str, Any] = {"seed": seeds, "cond": rest | told}
        options |= ({"grad": True} if grad else {}) | ({} if x_T is None else {"x_T": x_T})
        return _Begun(n, z, lost, options)

    def _parted(self, cond: Mapping[str, Any], n: int) -> tuple[Tensor, dict[str, Any]]:
        """The low resolutions of `n` samples, and what the model takes besides, marked."""
        given = self.conditions(cond, n)
        rest = given.marked(slice(0, n))
        del rest["low"]
        return given.whole["low"], rest

    def _as_low(self, low: object) -> Tensor:
        """Low resolutions `(B, C, *)` in the dtype and on the device of the model."""
        if isinstance(low, PerSample | Shared):
            low = low.value
        if low is None:
            raise TypeError(f"an Upsampler wants low=, the low resolutions, of shape (B, *{self.low_shape})")
        if isinstance(low, Tensor) and tuple(low.shape) == self.low_shape:
            low = low[None]
        found = check_state(low, "low")
        if tuple(found.shape[1:]) != self.low_shape:
            raise ValueError(
                f"low has event shape {tuple(found.shape[1:])}, wanted {self.low_shape}: samples of {self.shape} with "
                f"factor={self.low_resolution.factor}"
            )
        return found.to(dtype=self.dtype, device=home(self.models[0])[1])

    def _noised(self, low: Tensor, seeds: list[int] | torch.Generator) -> tuple[Tensor, dict[str, PerSample]]:
        """Low resolutions with the noise of the level, and what the model is told of them."""
        z = self.low_resolution.noised(check_finite(low, "low"), self.level, apart(seeds, Use.AUGMENTATION))
        return z, {name: PerSample(value) for name, value in self.low_resolution.told(z, self.level).items()}

    def _alpha(self, now: Snapshot | None) -> float:
        """Alpha of a state, the last one for None; 1 of data, which come after all steps, and of unknown processes."""
        inner = self.sampler
        if not isinstance(inner, SDESampler) or not isinstance(inner.sde, GaussianSDE):
            return 1.0
        t, index = (inner.times[-1], inner.steps + inner.denoise) if now is None else (now.t, now.index)
        return 1.0 if index > inner.steps else float(inner.sde.levels([t])[0].alpha)

    def _data(self, x: Tensor, begun: _Begun, now: Snapshot | None = None) -> Tensor:
        """Data, or states of data, of what the sampler answered; NaN where there was no low resolution."""
        x = self.low_resolution.restored(x, begun.z, self._alpha(now))
        return x if begun.lost is None else _filled(x, begun.lost, math.nan)


class _Begun(NamedTuple):
    """What a call draws from: `n` low resolutions with their noise, which were lost, and options of the sampler."""

    n: int
    z: Tensor
    lost: Tensor | None
    options: dict[str, Any]


def _filled(x: Tensor, lost: Tensor, value: float) -> Tensor:
    return x.masked_fill(lost.reshape(-1, *[1] * (x.ndim - 1)), value)
