"""The levels of a U-Net: residual blocks, attention, and the ways down and back through them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.nets.embedding import zero
from sde_diffusion.nets.tokens import CrossAttention, Told

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
GROUPS = 8
"""Groups of every group norm."""

__all__ = ["CONV", "GROUPS", "Blocks", "add_levels", "down", "take_way_back", "up"]


@dataclass(frozen=True)
class Blocks:
    """Makes the parts of a level: convolutions and residual blocks of one kind."""

    dims: int
    emb: int
    dropout: float
    count: int
    tokens: int = 0

    def block(self, channels: int, out: int) -> _ResBlock:
        """A residual block."""
        return _ResBlock(self, channels, out)

    def more(self, width: int) -> nn.ModuleList:
        """The blocks behind the first one of a resolution."""
        return nn.ModuleList(self.block(width, width) for _ in range(self.count - 1))

    def conv(self, channels: int, out: int, size: int = 3, stride: int = 1) -> nn.Module:
        """A convolution that keeps the lengths of the field, or divides them by a stride."""
        return CONV[self.dims](channels, out, size, stride=stride, padding=size // 2)


def add_levels(level: Any, make: Blocks, widths: list[int], attention: int) -> None:
    """Gives a module the layers of one resolution, and of all below it, in a module `deeper` where there are two."""
    width, attends = widths[0], attention >= len(widths)
    if len(widths) == 1:
        level.before, level.before_more = make.block(width, width), make.more(width)
        level.attention = _Attention(make, width) if attends else nn.Identity()
        level.listening = _listening(make, width, 1 if attends else 0)
        level.after, level.after_more = make.block(width, width), make.more(width)
        return
    level.enter, level.enter_more = make.block(width, width), make.more(width)
    level.down = make.conv(width, widths[1], stride=2)
    level.deeper = nn.Module() if len(widths) > 2 else None
    add_levels(level.deeper or level, make, widths[1:], attention)
    level.up = make.conv(widths[1], width)
    level.leave, level.leave_more = make.block(2 * width, width), make.more(width)
    level.attend = nn.ModuleList(_Attention(make, width) for _ in range(2 if attends else 0))
    level.listen = _listening(make, width, 2 if attends else 0)


def _listening(make: Blocks, width: int, count: int) -> nn.ModuleList:
    """The attention to tokens behind each attention of points to one another; empty in a net that takes none."""
    return nn.ModuleList(_Listen(width, make.tokens) for _ in range(count if make.tokens else 0))


def down(level: Any, h: Tensor, e: Tensor, told: Told | None, halvings: int) -> list[Tensor]:
    """What a level and all below it hand to the way back, (B, C, *spatial), the finest first; from the lowest, all."""
    if not halvings:
        h = level.attention(_each(level.before_more, level.before(h, e), e))
        return [_each(level.after_more, level.after(_listened(level.listening, h, told), e), e)]
    skip = _each(level.enter_more, level.enter(h, e), e)
    for attend in level.attend[:1]:
        skip = attend(skip)
    skip = _listened(level.listen[:1], skip, told)
    return [skip, *down(level.deeper or level, level.down(skip), e, told, halvings - 1)]


def up(level: Any, features: Sequence[Tensor], e: Tensor, told: Told | None) -> Tensor:
    """The way back from what `down` handed over."""
    skip, *lower = features
    if not lower:
        return skip
    h = up(level.deeper or level, lower, e, told)
    h = level.up(F.interpolate(h, scale_factor=2.0, mode="nearest"))
    h = _each(level.leave_more, level.leave(torch.cat([h, skip], dim=1), e), e)
    for attend in level.attend[1:]:
        h = attend(h)
    return _listened(level.listen[1:], h, told)


def take_way_back(level: Any) -> None:
    """Takes the layers of the way back out of a level and of all below it."""
    if not hasattr(level, "up"):
        return
    if level.deeper is not None:
        take_way_back(level.deeper)
    level.attend, level.listen = level.attend[:1], level.listen[:1]
    del level.up, level.leave, level.leave_more


def _listened(listen: nn.ModuleList, h: Tensor, told: Told | None) -> Tensor:
    for each in listen:
        h = each(h, told)
    return h


def _each(blocks: nn.ModuleList, h: Tensor, e: Tensor) -> Tensor:
    for block in blocks:
        h = block(h, e)
    return h


class _ResBlock(nn.Module):
    """Two convolutions with a shift and a scale from the embedding: (B, C, *) and (B, E) -> (B, C', *)."""

    def __init__(self, make: Blocks, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, channels), nn.GroupNorm(GROUPS, out)
        self.conv1 = make.conv(channels, out)
        self.conv2 = zero(make.conv(out, out))
        self.film = nn.Linear(make.emb, 2 * out)
        self.dropout = nn.Dropout(make.dropout)
        self.skip = nn.Identity() if channels == out else make.conv(channels, out, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        a, b = self.film(e).unflatten(1, (-1, *[1] * (x.ndim - 2))).chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(torch.addcmul(b, 1 + a, self.norm2(h)))))
        out: Tensor = self.skip(x) + h
        return out


class _Attention(nn.Module):
    """Self-attention over the points of one field, (B, C, *) -> same. Memory grows as the square of their number.

    Written out rather than with `scaled_dot_product_attention`, whose fused CPU kernel has neither forward-mode nor
    second derivatives; likelihoods need them.
    """

    def __init__(self, make: Blocks, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = make.conv(channels, 3 * channels, 1)
        self.project = zero(make.conv(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(x.shape[1]), dim=2)
        out: Tensor = x + self.project((v @ weights.transpose(1, 2)).reshape(x.shape))
        return out


class _Listen(nn.Module):
    """Attention of the points of a field to tokens, behind a group norm: (B, C, *) -> same."""

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.norm, self.attend = nn.GroupNorm(GROUPS, channels), CrossAttention(channels, tokens)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        points = self.norm(x).flatten(2).transpose(1, 2)
        taken = self.attend(points.contiguous(), told)  # or a layer rounds otherwise where its weights are frozen
        return x + taken.transpose(1, 2).reshape(x.shape)
