"""A U-Net for sequences, images and volumes, `(B, C, *spatial)`. The conventions are those of `nets`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion._checks import check_count
from sde_diffusion.nets.conditions import (
    Condition,
    ImageCondition,
    Labels,
    Numbers,
    check_probability,
    check_size,
    no_image,
)
from sde_diffusion.nets.embedding import Config, same_dtype, zero
from sde_diffusion.nets.tokens import CrossAttention, TokensCondition, Told, heard

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
GROUPS = 8
"""Groups of every group norm."""


class UNet(nn.Module):
    r"""U-Net: residual blocks at each resolution on the way down and on the way back, attention at the lowest.

    Each block is convolved, normalised in 8 groups and modulated by the embedding e of time, class and vector,
    $$ h \leftarrow (1 + a(e))\,\mathrm{GroupNorm}(h) + b(e). $$
    Below the last halving stand two blocks around attention. By default there is one halving: 327k parameters at width
    32 with ten classes; on 8x8 digits it reaches 1.86 test bits per dimension in 2,500 steps of 128 images, four CPU
    minutes. `multipliers=(1, 2, 2, 2), blocks=2` suits 32x32 images (1.5M); `dims=1` takes sequences `(B, C, L)`.

    Args:
        channels: Channels C of one sample.
        dims: Dimensions of the field: 1, 2 or 3.
        width: Channels at full resolution, a multiple of 8.
        multipliers: Channels at each resolution, in widths; each but the first has half the lengths of the one before.
        blocks: Residual blocks at each resolution, on either way.
        attention: Number of resolutions, counted from the lowest, whose points attend to one another; memory grows as
            the square of the number of points there, 4 MB a sample for 32x32 points and each attention.
        classes: Number of classes; 0 for none.
        label_drop: Probability that a label becomes the null label, in training mode only.
        context: Entries d of a vector that the net is told, each with standard deviation about 1; 0 for none.
        context_drop: Probability that a context becomes the null context, in training mode only.
        entry_drop: Probability that an entry of the context becomes unknown, in training mode only. An entry that is
            NaN is unknown.
        image: Channels of a field beside the sample, such as a low resolution or a measurement; 0 for none.
        image_drop: Probability that an image becomes the null image, in training mode only.
        tokens: Entries d of a token, each with standard deviation about 1, of a sequence that the net is told: a text,
            a set, or what another network made of one. Listened to wherever there is attention; 0 for none. A token
            that is NaN is not there.
        tokens_drop: Probability that a sample is told no token, in training mode only.
        dropout: Dropout inside each residual block, in training mode only, in [0, 1].
        answers: Numbers that the net answers for each of `x`: 2 for `predict.LearnedVariance`, and twice the channels.
        until: Whether the net is told a second time, `until`, as that of a `FlowMap` is.

    Shapes:
        x (B, C, L), (B, C, H, W) or (B, C, D, H, W) with lengths that can be halved `len(multipliers) - 1` times, t
        (B,), label (B,) integer, context (B, d), image (B, image, *spatial), tokens (B, L, d); each of them may be one
        for all, or None -> as x

    Raises:
        TypeError, ValueError: `width` is not a multiple of 8, a probability is outside [0, 1], a length cannot be
            halved, `x`, `t` or a condition has another shape or type, a label is out of range, or a condition that the
            net never learnt to do without is missing.

    References:
        Ronneberger et al., U-Net, 2015; Ho et al., Denoising Diffusion Probabilistic Models, 2020 (Appendix B); Perez
        et al., FiLM, 2018; Wu and He, Group Normalization, 2018; Saharia et al., Palette, 2022 (images beside);
        Rombach et al., Latent Diffusion, 2022 (attention to tokens).
    """

    clock: ClassVar[str] = "edm"
    per_sample: ClassVar[tuple[str, ...]] = ("label", "context", "image", "tokens")

    def __init__(
        self,
        channels: int,
        *,
        dims: int = 2,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: int = 1,
        classes: int = 0,
        label_drop: float = 0.1,
        context: int = 0,
        context_drop: float = 0.1,
        entry_drop: float = 0.0,
        image: int = 0,
        image_drop: float = 0.1,
        tokens: int = 0,
        tokens_drop: float = 0.1,
        dropout: float = 0.1,
        answers: int = 1,
        until: bool = False,
    ) -> None:
        super().__init__()
        multipliers = _checked(channels, dims, width, multipliers, blocks, attention)
        check_size(image, "image")
        _check_listened(check_size(tokens, "tokens"), attention)
        check_probability("dropout", dropout)
        told: Config = dict(
            classes=classes,
            label_drop=label_drop,
            context=context,
            context_drop=context_drop,
            entry_drop=entry_drop,
            until=until,
        )
        sizes: Config = dict(width=width, multipliers=multipliers, blocks=blocks, attention=attention, dropout=dropout)
        sizes["answers"] = check_count(answers, "answers")
        self._config: Config = dict(channels=channels, dims=dims, **sizes, **told, image=image, image_drop=image_drop)
        self._config |= dict(tokens=tokens, tokens_drop=tokens_drop)
        self.channels, self.dims, self.halvings = channels, dims, len(multipliers) - 1
        conv, widths = CONV[dims], [width * m for m in multipliers]
        self.condition = Condition(2 * width, 4 * width, **told)
        self.stem = conv(channels, widths[0], 3, padding=1)
        first = conv(image, widths[0], 3, padding=1, bias=False) if image else None
        self.image = None if first is None else ImageCondition(image, first, widths[0], image_drop)
        self.tokens = TokensCondition(tokens, tokens_drop) if tokens else None
        _add_levels(self, _Blocks(dims, 4 * width, dropout, blocks, tokens), widths, attention)
        last = zero(conv(widths[0], answers * channels, 3, padding=1))
        self.head = nn.Sequential(nn.GroupNorm(GROUPS, widths[0]), nn.SiLU(), last)

    @property
    def config(self) -> Config:
        """The constructor's arguments, ready for JSON: `UNet(**net.config)` rebuilds the architecture."""
        return self._config | {"multipliers": list(self._config["multipliers"])}

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Labels = None,
        context: Numbers = None,
        image: Numbers = None,
        until: Tensor | None = None,
        tokens: Numbers = None,
    ) -> Tensor:
        """Evaluates the net: x (B, C, *spatial), t (B,), label (B,), context (B, d), image, tokens or None -> as x."""
        self._check(x)
        same_dtype(x, self.stem.weight)
        e = self.condition(t, len(x), label, self.condition.told(context, len(x)), until)
        h = self.stem(x)
        if self.image is None:
            no_image(image)
        else:
            h = h + self.image(image, x)
        told = heard(self.tokens, tokens, len(x))
        out: Tensor = self.head(_through(self, h, e, told, self.halvings))
        return out

    def _check(self, x: Tensor) -> None:
        axes = {1: "L", 2: "H, W", 3: "D, H, W"}[self.dims]
        if x.ndim != 2 + self.dims or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape (B, {self.channels}, {axes}) for this UNet, got {tuple(x.shape)}.")
        parts = 2**self.halvings
        if not x.shape[2:].numel() or any(n % parts for n in x.shape[2:]):
            fits = tuple(max(1, -(-n // parts)) * parts for n in x.shape[2:])
            many = {0: "not once", 1: "once", 2: "twice"}.get(self.halvings, f"{self.halvings} times")
            raise ValueError(
                f"UNet halves {axes} {many}, so each must be a multiple of {parts}, got {tuple(x.shape[2:])}. Pad or "
                f"crop, to {fits} for instance, or build it with fewer multipliers."
            )


@dataclass(frozen=True)
class _Blocks:
    """Makes the parts of a level: convolutions and residual blocks of one kind."""

    dims: int
    emb: int
    dropout: float
    count: int
    tokens: int = 0

    def block(self, channels: int, out: int) -> _ResBlock:
        return _ResBlock(self, channels, out)

    def more(self, width: int) -> nn.ModuleList:
        return nn.ModuleList(self.block(width, width) for _ in range(self.count - 1))

    def conv(self, channels: int, out: int, size: int = 3, stride: int = 1) -> nn.Module:
        return CONV[self.dims](channels, out, size, stride=stride, padding=size // 2)


def _add_levels(level: Any, make: _Blocks, widths: list[int], attention: int) -> None:
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
    _add_levels(level.deeper or level, make, widths[1:], attention)
    level.up = make.conv(widths[1], width)
    level.leave, level.leave_more = make.block(2 * width, width), make.more(width)
    level.attend = nn.ModuleList(_Attention(make, width) for _ in range(2 if attends else 0))
    level.listen = _listening(make, width, 2 if attends else 0)


def _listening(make: _Blocks, width: int, count: int) -> nn.ModuleList:
    """The attention to tokens behind each attention of points to one another; empty in a net that takes none."""
    return nn.ModuleList(_Listen(width, make.tokens) for _ in range(count if make.tokens else 0))


def _through(level: Any, h: Tensor, e: Tensor, told: Told | None, halvings: int) -> Tensor:
    """Carries (B, C, *spatial) through a level and all below it."""
    if not halvings:
        h = level.attention(_each(level.before_more, level.before(h, e), e))
        return _each(level.after_more, level.after(_listened(level.listening, h, told), e), e)
    skip = _each(level.enter_more, level.enter(h, e), e)
    for attend in level.attend[:1]:
        skip = attend(skip)
    skip = _listened(level.listen[:1], skip, told)
    h = _through(level.deeper or level, level.down(skip), e, told, halvings - 1)
    h = level.up(F.interpolate(h, scale_factor=2.0, mode="nearest"))
    h = _each(level.leave_more, level.leave(torch.cat([h, skip], dim=1), e), e)
    for attend in level.attend[1:]:
        h = attend(h)
    return _listened(level.listen[1:], h, told)


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

    def __init__(self, make: _Blocks, channels: int, out: int) -> None:
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

    def __init__(self, make: _Blocks, channels: int) -> None:
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
        taken = self.attend(self.norm(x).flatten(2).transpose(1, 2), told)
        return x + taken.transpose(1, 2).reshape(x.shape)


def _check_listened(tokens: int, attention: int) -> None:
    if tokens and not attention:
        raise ValueError(
            f"tokens={tokens} are listened to where there is attention, and attention=0: build it with attention=1"
        )


def _checked(
    channels: int, dims: int, width: int, multipliers: Sequence[int], blocks: int, attention: int
) -> list[int]:
    """The multipliers as a list; raises `TypeError` or `ValueError` for sizes that no U-Net has."""
    check_count(channels, "channels")
    if dims not in CONV:
        raise ValueError(f"dims must be 1, 2 or 3: of sequences, images or volumes, got {dims!r}.")
    if check_count(width, "width") % GROUPS:
        raise ValueError(
            f"width must be a multiple of 8 (GroupNorm uses 8 groups), got {width}. Use {width // 8 * 8 + 8}."
        )
    if not (isinstance(multipliers, list | tuple) and multipliers):
        raise TypeError(f"multipliers must be a sequence of integers, such as (1, 2, 2), got {multipliers!r}.")
    check_count(blocks, "blocks")
    found = [check_count(m, "each of multipliers") for m in multipliers]
    if check_size(attention, "attention") > len(found):
        raise ValueError(
            f"attention must be at most {len(found)}, the number of resolutions (of multipliers), got {attention}."
        )
    return found
