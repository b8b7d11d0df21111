r"""What a low resolution is: means over blocks with noise of a known level, and how a network is told of it.

$$ z = Px_0 + s\,\varepsilon, \qquad 0 \le s \le s_\mathrm{most}, $$

$P$ the means over blocks of the data. A model is trained on every level $s$, which it is told, so that a stage of a
cascade can be given the samples of another: noise hides in what way they are not data.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_real, check_shape, check_state
from sde_diffusion.denoiser.conditions import ARGUMENTS
from sde_diffusion.noise.sources import NoiseSource, SharedStream, Streams

Factor = int | Sequence[int]


@dataclass(frozen=True)
class LowResolution:
    r"""A low resolution of data `(B, C, *spatial)` of one to three spatial axes, and what a network is told of it.

    The network is told the low resolution, each value repeated over its block, as `image=` of the shape of the data;
    and as `context=` one number, $2s/s_\mathrm{most} - 1$, unless $s_\mathrm{most} = 0$.

    Args:
        factor: How many times shorter each spatial axis is; a number, or one for each axis.
        most: $s_\mathrm{most} \ge 0$, the highest level of noise, in units of the data as the model sees them, whose
            standard deviation is about 1; 0 for none.
        residual: With $c > 0$ the model answers what the low resolution lacks, $r = (x_0 - z)/c$, each value of $z$
            repeated; `detail_std` finds the $c$ that makes it of standard deviation 1. 0: it answers the data.
        image: The name under which the network takes the low resolution.
        context: The name under which it takes the level.

    Raises:
        TypeError: A factor that is no integer, a level or a residual that is no number, a name that is none.
        ValueError: A factor below 1 or all of 1, a negative level or residual, names that are the same or taken.

    References:
        Ho et al., Cascaded Diffusion Models for High Fidelity Image Generation, 2022; Saharia et al., Photorealistic
        Text-to-Image Diffusion Models with Deep Language Understanding, 2022 (the level told to the network).

    Example:
        >>> low = LowResolution(2)
        >>> model = Network(nets.UNet(1, image=1, context=1), VPSDE(), predict.edm, shape=(1, 8, 8))
        >>> train(model, x, steps=2500, loss=SuperResolution(low), out=Saving("up", extra={"low_res": low.config}))
    """

    factor: Factor
    most: float = 0.5
    residual: float = 0.0
    image: str = "image"
    context: str = "context"

    def __post_init__(self) -> None:
        given: object = self.factor
        if isinstance(given, Sequence) and not isinstance(given, str | bytes):
            object.__setattr__(self, "factor", tuple(check_count(f, "each of factor") for f in given))
            if not 1 <= len(given) <= 3:
                raise ValueError(f"factor is one number, or one for each of one to three spatial axes, got {given!r}")
        else:
            object.__setattr__(self, "factor", check_count(given, "factor"))
        if max(self._along(3)) == 1:
            raise ValueError(f"factor={given!r} leaves all as it is: wanted 2 or more along one axis at least")
        for name in ("most", "residual"):
            if not 0 <= check_real(getattr(self, name), name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)!r}")
            object.__setattr__(self, name, float(getattr(self, name)))
        self._check_names()

    def _check_names(self) -> None:
        names: list[object] = [self.image, self.context]
        if not all(isinstance(name, str) and name.isidentifier() for name in names):
            raise TypeError(f"image and context name conditions of the network, such as 'image', got {names!r}")
        if self.image == self.context or {self.image, self.context} & (ARGUMENTS | {"low"}):
            raise ValueError(
                f"image and context name two conditions of the network, and none of the arguments of a call, got "
                f"{self.image!r} and {self.context!r}"
            )

    # --- what is kept with a model

    @property
    def config(self) -> dict[str, Any]:
        """The arguments, ready for JSON: kept with a stage, `save_checkpoint(..., extra={"low_res": low.config})`."""
        factor = self.factor if isinstance(self.factor, int) else list(self.factor)
        return {"factor": factor, "most": self.most, "residual": self.residual} | {
            "image": self.image,
            "context": self.context,
        }

    @classmethod
    def of(cls, config: object) -> LowResolution:
        """The low resolution of a `config`, such as `load_checkpoint(path).extra["low_res"]`.

        Raises:
            TypeError, ValueError: It is none.
        """
        if not isinstance(config, Mapping) or "factor" not in config:
            raise ValueError(
                f"a low resolution is kept as LowResolution.config, a mapping with a factor, got {config!r}: was the "
                'stage saved with extra={"low_res": low_resolution.config}?'
            )
        if strange := sorted(map(str, config.keys() - inspect.signature(cls).parameters.keys())):
            raise ValueError(f"a low resolution has no {strange[0]!r}: it was kept by a later version, or edited")
        return cls(**config)

    # --- resolutions

    def low_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The event shape of the low resolution of data of event shape `(C, *spatial)`.

        Raises:
            ValueError: No spatial axes, more than three or another number than there are factors; lengths that the
                factors do not divide.
        """
        whole = check_shape(shape)
        along = self._along(len(whole) - 1)
        if not 1 <= len(along) == len(whole) - 1 <= 3:
            wanted = "one to three spatial axes" if isinstance(self.factor, int) else f"{len(along)} spatial axes"
            raise ValueError(f"factor={self.factor} is of data (C, *spatial) with {wanted}, got shape {whole}")
        if any(n % f for n, f in zip(whole[1:], along, strict=True)):
            raise ValueError(f"factor={self.factor} must divide the spatial axes of the data, got shape {whole}")
        return (whole[0], *(n // f for n, f in zip(whole[1:], along, strict=True)))

    def shrink(self, x: Tensor) -> Tensor:
        """Means over blocks: data `(B, C, *spatial)` -> their low resolution."""
        low = self.low_shape(check_state(x, "x").shape[1:])
        pairs = (n for length, f in zip(low[1:], self._along(len(low) - 1), strict=True) for n in (length, f))
        blocks = x.reshape(*x.shape[:2], *pairs)
        return blocks.mean(tuple(range(3, blocks.ndim, 2)))

    def spread(self, z: Tensor) -> Tensor:
        """Each value of a low resolution over its block: `(B, C, *)` -> of the shape of the data."""
        along = self._along(z.ndim - 2)
        if z.ndim - 2 != len(along) or not 1 <= len(along) <= 3:
            raise ValueError(f"a low resolution for factor={self.factor} is (B, C, *spatial), got {tuple(z.shape)}")
        for axis, f in enumerate(along, 2):
            z = z.repeat_interleave(f, axis)
        return z

    def noised(self, low: Tensor, level: float, seeds: list[int] | torch.Generator) -> Tensor:
        """Low resolutions `(B, C, *)` with noise of a level, each from the stream of its seed, or all from one."""
        if not level:
            return low
        shape = tuple(low.shape[1:])
        source: NoiseSource = (
            SharedStream(seeds, len(low), shape, low.dtype, low.device)
            if isinstance(seeds, torch.Generator)
            else Streams(seeds, shape, low.dtype, low.device)
        )
        return low.add(source.prior(), alpha=level)

    def detail_std(self, x: Tensor) -> float:
        r"""Standard deviation of what the low resolution of data lacks, $x_0 - z$, over levels drawn evenly.

        $E s^2 = s_\mathrm{most}^2/3$ is the share of the noise.
        """
        missing = x - self.spread(self.shrink(x))
        return math.sqrt(float(missing.double().square().mean()) + self.most**2 / 3)

    # --- what a network is told

    def check_level(self, level: float) -> float:
        """Returns a level that a model of this low resolution was trained on."""
        if not 0 <= check_real(level, "level") <= self.most:
            raise ValueError(
                f"level={level!r} is none that the model knows, which was trained from 0 to most={self.most:g}"
            )
        return float(level)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the conditions that a network is told here."""
        return (self.image, self.context) if self.most else (self.image,)

    def check_free(self, cond: Mapping[str, Any]) -> None:
        """Raises `ValueError` if one of them comes with others."""
        for name in self.names:
            if name in cond:
                argument = "image" if name == self.image else "context"
                raise ValueError(
                    f"condition {name!r} is told by the low resolution, and came as well: leave it out. One of your "
                    "own goes to a network that takes the low resolution under another name, "
                    f"LowResolution(..., {argument}='coarse'); one of another stage of a Cascade is kept from this "
                    "one by takes=[...]"
                )

    def told(self, z: Tensor, level: float | Tensor) -> dict[str, Tensor]:
        """The conditions of a network by name, each with a row for each sample, or one for all.

        Args:
            z: Low resolutions with their noise, shape `(B, C, *)`.
            level: $s$, a number for all or one for each, shape `(B,)`.
        """
        found = {self.image: self.spread(z)}
        if self.most:
            s = torch.as_tensor(level, dtype=z.dtype, device=z.device).reshape(-1, 1)
            found[self.context] = 2 * s / self.most - 1
        return found

    def pairs(
        self, x0: Tensor, generator: torch.Generator | None = None, *, level: float | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What a model is to answer of data, and what it is told: their low resolution with drawn noise.

        Args:
            x0: Data, shape `(B, C, *spatial)`.
            generator: The source of levels and noise, on the CPU; None for torch's global random state.
            level: One level for all, instead of levels drawn evenly from 0 to `most`.

        Returns:
            The data or the residual, shape `(B, C, *spatial)`, and the conditions by name.
        """
        low = self.shrink(x0)
        of: dict[str, Any] = {"generator": generator, "dtype": x0.dtype, "device": "cpu"}
        if level is None:
            s = self.most * torch.rand(len(x0), **of)
        else:
            s = torch.full((len(x0),), self.check_level(level), dtype=x0.dtype, device="cpu")
        eps = torch.randn(low.shape, **of).to(low.device)
        z = low + s.to(low.device).reshape(-1, *[1] * (low.ndim - 1)) * eps
        return self.lacking(x0, z), self.told(z, s)

    def lacking(self, x0: Tensor, z: Tensor) -> Tensor:
        """What a model answers for data `x0` beside a low resolution: the residual, or the data themselves."""
        return (x0 - self.spread(z)) / self.residual if self.residual else x0

    def restored(self, answer: Tensor, z: Tensor, alpha: float = 1.0) -> Tensor:
        """The data that an answer stands for, or the state of data at alpha: the way back from `lacking`."""
        return torch.add(self.residual * answer, self.spread(z), alpha=alpha) if self.residual else answer

    def _along(self, axes: int) -> tuple[int, ...]:
        return (self.factor,) * axes if isinstance(self.factor, int) else tuple(self.factor)
