"""A convolutional autoencoder for sequences, images and volumes, `(B, C, *spatial)`: a field to a smaller one and back.

It is told no time and no condition. What its codes are worth, and how they are brought to unit scale, is decided
outside, in `sde_diffusion.latent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion._checks import check_count
from sde_diffusion.nets.embedding import Config, same_dtype, zero
from sde_diffusion.nets.levels import CONV, GROUPS

BOUND = 6.0
"""Largest absolute value of the log of a standard deviation that the encoder answers."""


START = -3.0
"""The log of that standard deviation in a fresh net."""


class Autoencoder(nn.Module):
    r"""A KL autoencoder: a Gaussian code of each field, `(latent, *spatial / f)`, and the field from a code.

    $$ q(z \mid x) = N\big(m(x), \operatorname{diag} s(x)^2\big), \quad
       \log s = b \tanh(v / b), \ b = 6, \qquad \hat x = d(z) $$

    Both halves are residual blocks, group norms and convolutions, with a convolution of stride 2 for each halving and a
    repetition of points for each doubling; no attention, so any size that can be halved will do. Beside each half goes
    a linear map of the patches that a point of the code stands for, at first onto the lowest waves in them, a cosine
    transform, and back: a fresh net blurs, and learns from there. By default, with two halvings, a grey 32x32 image of
    1,024 numbers becomes a code of 4x8x8 = 256; 0.5M parameters at width 32.

    Args:
        channels: Channels C of one sample.
        dims: Dimensions of the field: 1, 2 or 3.
        width: Channels at full resolution, a multiple of 8.
        multipliers: Channels at each resolution, in widths; each but the first has half the lengths of the one before.
        latent: Channels of the code; as many as a patch of side f has numbers, `C f^dims`, lose nothing.
        blocks: Residual blocks at each resolution, on either way.
        patch: Side of the patches whose points are taken for channels before all else, and given back at the end: with
            2, images cost a quarter, and their codes are half as long again.

    Shapes:
        x (B, C, L), (B, C, H, W) or (B, C, D, H, W), lengths multiples of `f = patch * 2^(len(multipliers) - 1)`
        -> mean and standard deviation (B, latent, *spatial / f) -> x

    Raises:
        TypeError, ValueError: A size that is no positive integer, a `width` that is no multiple of 8, other `dims`, a
            length that cannot be halved, an input of another shape or dtype.

    References:
        Kingma and Welling, Auto-Encoding Variational Bayes, 2014; Rombach et al., High-Resolution Image Synthesis with
        Latent Diffusion Models, 2022; Chen et al., Deep Compression Autoencoder, 2025 (patches
        beside the nets).
    """

    def __init__(
        self,
        channels: int,
        *,
        dims: int = 2,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        latent: int = 4,
        blocks: int = 1,
        patch: int = 1,
    ) -> None:
        super().__init__()
        multipliers = _checked(channels, dims, width, multipliers, latent, blocks)
        sizes: Config = dict(width=width, multipliers=multipliers, latent=latent, blocks=blocks)
        self._config: Config = dict(channels=channels, dims=dims, **sizes, patch=check_count(patch, "patch"))
        self.channels, self.dims, self.latent, self.patch = channels, dims, latent, patch
        self.halvings, points = len(multipliers) - 1, channels * patch**dims
        conv, widths = CONV[dims], [width * m for m in multipliers]
        down: list[nn.Module] = [conv(points, widths[0], 3, padding=1)]
        up: list[nn.Module] = [conv(latent, widths[-1], 3, padding=1)]
        for i, w in enumerate(widths):
            down += [_Block(dims, w) for _ in range(blocks)]
            down += [conv(w, widths[i + 1], 3, stride=2, padding=1)] if i < self.halvings else []
        for i, w in reversed([*enumerate(widths)]):
            up += [_Block(dims, w) for _ in range(blocks)]
            up += [_Double(), conv(w, widths[i - 1], 3, padding=1)] if i else []
        self.encoder = nn.Sequential(*down, *_head(conv, widths[-1], 2 * latent))
        self.decoder = nn.Sequential(*up, *_head(conv, widths[0], points))
        self.factor = patch * 2**self.halvings
        numbers = channels * self.factor**dims
        self.forth, self.back = conv(numbers, latent, 1, bias=False), conv(latent, numbers, 1, bias=False)
        _start(self)

    @property
    def config(self) -> Config:
        """The constructor's arguments, ready for JSON: `Autoencoder(**net.config)` rebuilds the architecture."""
        return self._config | {"multipliers": list(self._config["multipliers"])}

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the codes of fields: (B, C, *spatial) -> twice (B, latent, *spatial / f)."""
        self._check(x, "x", self.channels, self.factor)
        mean, v = self.encoder(_gathered(x, self.patch)).chunk(2, dim=1)
        return mean + self.forth(_gathered(x, self.factor)), (BOUND * torch.tanh(v / BOUND)).exp()

    def decode(self, z: Tensor) -> Tensor:
        """Fields from codes: (B, latent, *spatial / f) -> (B, C, *spatial)."""
        self._check(z, "z", self.latent, 1)
        return _spread(self.decoder(z), self.patch) + _spread(self.back(z), self.factor)

    def forward(self, x: Tensor) -> Tensor:
        """Fields from the means of their codes, as x."""
        return self.decode(self.encode(x)[0])

    def _check(self, x: Tensor, name: str, channels: int, parts: int) -> None:
        axes = {1: "L", 2: "H, W", 3: "D, H, W"}[self.dims]
        if x.ndim != 2 + self.dims or x.shape[1] != channels:
            raise ValueError(
                f"{name} must have shape (B, {channels}, {axes}) for this Autoencoder, got {tuple(x.shape)}."
            )
        if not x.shape[2:].numel() or any(n % parts for n in x.shape[2:]):
            fits = tuple(max(1, -(-n // parts)) * parts for n in x.shape[2:])
            raise ValueError(
                f"Autoencoder makes {axes} {parts} times smaller, so each must be a multiple of {parts}, got "
                f"{tuple(x.shape[2:])}. Pad or crop, to {fits} for instance, or build it with fewer multipliers."
            )
        same_dtype(x, next(self.parameters()))


class _Block(nn.Module):
    """Two convolutions beside the identity, which it is at first: (B, C, *) -> same."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, width), nn.GroupNorm(GROUPS, width)
        self.conv1 = CONV[dims](width, width, 3, padding=1)
        self.conv2 = zero(CONV[dims](width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return out


@torch.no_grad()
def _start(net: Autoencoder) -> None:
    """A fresh net: the lowest waves of patches and back, codes of little noise, and nothing of the convolutions."""
    f, channels, device = net.factor, net.channels, net.forth.weight.device
    k, at = torch.arange(float(f), device=device)[:, None], torch.arange(f, device=device) + 0.5
    one = torch.cos(torch.pi / f * k * at) * torch.where(k == 0, 1.0, 2**0.5)  # rows of mean square 1
    waves, pitch = torch.ones(1, 1, device=device), torch.zeros(1, device=device)
    for _ in range(net.dims):
        waves, pitch = torch.kron(waves, one), (pitch[:, None] + k[:, 0] ** 2).flatten()
    waves = torch.kron(torch.eye(channels, device=device), waves)[
        pitch.repeat(channels).argsort(stable=True)[: net.latent]
    ]
    net.forth.weight.zero_()
    net.back.weight.zero_()
    net.forth.weight[: len(waves)] = (waves / f**net.dims).view(*waves.shape, *[1] * net.dims)
    net.back.weight[:, : len(waves)] = waves.T.reshape(*waves.T.shape, *[1] * net.dims)
    for half, kept in ((net.encoder, net.latent), (net.decoder, None)):
        last: Any = half[-1]
        last.weight.zero_()
        last.bias.zero_()
        last.bias[kept:] = START if kept is not None else 0.0


def _gathered(x: Tensor, p: int) -> Tensor:
    """The points of each patch as channels: (B, C, *spatial) -> (B, C p^d, *spatial / p)."""
    d = x.ndim - 2
    if p == 1:
        return x
    x = x.reshape(*x.shape[:2], *(m for n in x.shape[2:] for m in (n // p, p)))
    return x.permute(0, 1, *range(3, 3 + 2 * d, 2), *range(2, 2 + 2 * d, 2)).flatten(1, 1 + d)


def _spread(x: Tensor, p: int) -> Tensor:
    """What undoes `_gathered`: (B, C p^d, *spatial) -> (B, C, *p spatial)."""
    d = x.ndim - 2
    if p == 1:
        return x
    x = x.unflatten(1, (-1, *[p] * d))
    x = x.permute(0, 1, *(axis for i in range(d) for axis in (2 + d + i, 2 + i)))
    return x.reshape(*x.shape[:2], *(x.shape[2 + 2 * i] * p for i in range(d)))


class _Double(nn.Module):
    """Every point twice along each axis: (B, C, *spatial) -> (B, C, *2 spatial)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _head(conv: type[nn.Module], width: int, out: int) -> list[nn.Module]:
    return [nn.GroupNorm(GROUPS, width), nn.SiLU(), conv(width, out, 3, padding=1)]


def _checked(channels: int, dims: int, width: int, multipliers: Sequence[int], latent: int, blocks: int) -> list[int]:
    """The multipliers as a list; raises `TypeError` or `ValueError` for sizes that no autoencoder has."""
    check_count(channels, "channels")
    if dims not in CONV:
        raise ValueError(f"dims must be 1, 2 or 3: of sequences, images or volumes, got {dims!r}.")
    if check_count(width, "width") % GROUPS:
        raise ValueError(
            f"width must be a multiple of 8 (GroupNorm uses 8 groups), got {width}. Use {width // 8 * 8 + 8}."
        )
    if not (isinstance(multipliers, list | tuple) and multipliers):
        raise TypeError(f"multipliers must be a sequence of integers, such as (1, 2, 2), got {multipliers!r}.")
    check_count(latent, "latent")
    check_count(blocks, "blocks")
    return [check_count(m, "each of multipliers") for m in multipliers]
