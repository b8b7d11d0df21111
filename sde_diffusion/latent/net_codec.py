"""A codec made of a net that encodes and decodes, with what brings its codes to unit scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_positive, check_shape

RATE = 10.0
"""How many times faster than the weights the log of the decoder's noise is learnt."""

__all__ = ["NetCodec"]


class Encodes(Protocol):
    """What a net for a `NetCodec` does."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the codes of `x`."""

    def decode(self, z: Tensor) -> Tensor:
        """Data from codes."""


class NetCodec(nn.Module):
    r"""A codec around a net with `encode(x) -> (mean, std)` and `decode(z)`, such as `nets.Autoencoder`.

    Fresh, its codes are the net's own. `latent.train_codec` teaches the net, and measures scale, shift and noise on
    the data it is given.

    Args:
        net: The net.
        shape: Event shape of the data; None if the net works on several.
        scale: Brings codes to unit scale, a number or one for each channel.
        shift: What is taken from them before, likewise.
        noise: Standard deviation of the Gaussian decoder, in the units of the data; at first that of data of unit
            scale, of which the decoder knows nothing yet. None where it is not known.

    Raises:
        TypeError: `net` is no module that encodes and decodes; numbers that are none.
        ValueError: A `scale` of zero or one that is not finite, a `noise` that is not positive.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        shape: tuple[int, ...] | None = None,
        scale: Any = 1.0,
        shift: Any = 0.0,
        noise: float | None = 1.0,
    ) -> None:
        super().__init__()
        found: object = net
        lacking = [name for name in ("encode", "decode") if not callable(getattr(net, name, None))]
        if not isinstance(found, nn.Module) or isinstance(found, type) or lacking:
            raise TypeError(
                f"NetCodec stands around a module with encode(x) -> (mean, std) and decode(z), got "
                f"{type(net).__name__}{f', which lacks {lacking[0]}' if lacking else ''}: latent.adapters takes others"
            )
        self.net = net
        self.shape = None if shape is None else check_shape(shape)
        self.register_buffer("scale", _numbers(scale, "scale"), persistent=False)
        self.register_buffer("shift", _numbers(shift, "shift"), persistent=False)
        start = None if noise is None else math.log(check_positive(noise, "noise")) / RATE
        self.log_noise = None if start is None else nn.Parameter(torch.tensor(start))

    @property
    def noise(self) -> float | None:
        """Standard deviation of the Gaussian decoder, in the units of the data; None where it is not known."""
        return None if self.log_noise is None else math.exp(RATE * float(self.log_noise.detach()))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the net answers: mean and standard deviation of the codes of `x`, `(B, *)`, in its own units."""
        return cast(Encodes, self.net).encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """What the net answers: data from codes `(B, *code)` in its own units."""
        return cast(Encodes, self.net).decode(z)

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a code of data of event shape `shape`: one sample of zeros is encoded to see it."""
        like = next((p for p in self.net.parameters() if p.is_floating_point()), self.scale)
        with torch.no_grad():
            mean, _ = self.encode(torch.zeros(1, *check_shape(shape), dtype=like.dtype, device=like.device))
        return tuple(mean.shape[1:])

    def built_with(self) -> Mapping[str, object]:
        """The arguments that the net was built with, where it says so by a `config`; else none."""
        found = getattr(self.net, "config", {})
        return found if isinstance(found, Mapping) else {}

    def __repr__(self) -> str:
        noise = "None" if self.noise is None else f"{self.noise:.4g}"
        return f"NetCodec({type(self.net).__name__}, shape={self.shape}, noise={noise})"


def _numbers(value: Any, name: str) -> Tensor:
    """A number, or one for each channel, as float32 on the CPU."""
    try:
        found = torch.as_tensor(value).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, or one for each channel, got {type(value).__name__}") from error
    if found.ndim > 1 or not found.numel():
        raise ValueError(f"{name} has shape {tuple(found.shape)}: wanted one number, or one for each channel, (C,)")
    if not bool(found.isfinite().all()) or (name == "scale" and bool((found == 0).any())):
        raise ValueError(f"{name} must be finite{' and not 0' * (name == 'scale')}, got {found.tolist()}")
    return found.clone()
