r"""A small transformer for vectors, sequences, images and volumes, by patches. The conventions are those of `nets`."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion._checks import check_count, check_shape
from sde_diffusion.nets.base import Encoder, plus
from sde_diffusion.nets.conditions import Condition, ImageCondition, Labels, Numbers, check_size, no_image
from sde_diffusion.nets.embedding import Config, same_dtype, zero
from sde_diffusion.nets.tokens import CrossAttention, TokensCondition, Told, heard

CONV: dict[int, Any] = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}
LONGEST_WAVE = 1e4
"""Longest wave of the initial positions, in tokens and radians."""


class DiT(nn.Module):
    r"""Diffusion transformer: patches are tokens, which attend to one another and are modulated by time and conditions.

    Each block normalises without parameters of its own, and is modulated by the embedding e of time, class and vector,
    $$ h \leftarrow h + c_1\,\mathrm{Attention}\big((1 + a_1)\,\bar h + b_1\big), \quad
    h \leftarrow h + c_2\,\mathrm{MLP}\big((1 + a_2)\,\bar h + b_2\big), $$
    where $a, b, c$ are linear in e and start at zero. Positions are learnt, from sines and cosines of each axis.

    1.2M parameters by default. Time and memory grow as the square of the number T of tokens: 4 heads T^2 bytes for each
    sample and block, 1 MB for 256 tokens. For fewer than some hundred samples a `UNet` or an `MLP` learns faster.

    Args:
        shape: Shape of one sample: `(D,)` for vectors, `(C, L)`, `(C, H, W)` or `(C, D, H, W)`.
        patch: Length of a token along each axis, or one length for all: entries of a vector, points of a field. By
            default 1 for vectors and 2 for fields.
        width: Length of the vector that a token becomes.
        depth: Number of blocks.
        heads: Heads of the attention; they divide `width`.
        classes: Number of classes; 0 for none.
        label_drop: Probability that a label becomes the null label, in training mode only.
        context: Entries d of a vector that the net is told, each with standard deviation about 1; 0 for none.
        context_drop: Probability that a context becomes the null context, in training mode only.
        entry_drop: Probability that an entry of the context becomes unknown, in training mode only. An entry that is
            NaN is unknown.
        image: Channels of a field beside the sample, of its lengths; 0 for none. Not for vectors: theirs is `context`.
        image_drop: Probability that an image becomes the null image, in training mode only.
        tokens: Entries d of a token, each with standard deviation about 1, of a sequence beside the sample that the net
            is told, such as a text; every block listens to it. 0 for none. A token that is NaN is not there.
        tokens_drop: Probability that a sample is told no token, in training mode only.
        answers: Numbers that the net answers for each of `x`: 2 for `predict.LearnedVariance`, and twice the channels.
        until: Whether the net is told a second time, `until`, as that of a `FlowMap` is.

    Shapes:
        x (B, *shape), t (B,), label (B,) integer, context (B, d), image (B, image, *spatial), tokens (B, L, d); each of
        them may be one for all, or None -> as x

    Raises:
        TypeError, ValueError: A size that does not fit another, a probability outside [0, 1]; `x`, `t` or a condition
            of another shape or type, a label out of range, or a condition missing that the net never learnt to do
            without.

    References:
        Peebles and Xie, Scalable Diffusion Models with Transformers, 2023 (adaLN-Zero).
    """

    clock: ClassVar[str] = "edm"
    per_sample: ClassVar[tuple[str, ...]] = ("label", "context", "image", "tokens")

    def __init__(
        self,
        shape: Sequence[int],
        *,
        patch: int | Sequence[int] | None = None,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        classes: int = 0,
        label_drop: float = 0.1,
        context: int = 0,
        context_drop: float = 0.1,
        entry_drop: float = 0.0,
        image: int = 0,
        image_drop: float = 0.1,
        tokens: int = 0,
        tokens_drop: float = 0.1,
        answers: int = 1,
        until: bool = False,
    ) -> None:
        super().__init__()
        self.shape, sizes = _shape(shape), _patch(_shape(shape), patch)
        check_count(depth, "depth")
        if check_count(width, "width") % check_count(heads, "heads"):
            raise ValueError(f"heads must divide width, got width={width} and heads={heads}. Use width={heads * 32}.")
        if check_size(image, "image") and len(self.shape) == 1:
            raise ValueError(f"a vector has no image beside it, got image={image}. Use context=, its entries.")
        told: Config = dict(
            classes=classes,
            label_drop=label_drop,
            context=context,
            context_drop=context_drop,
            entry_drop=entry_drop,
            until=until,
        )
        self._config: Config = dict(patch=sizes, width=width, depth=depth, heads=heads, **told)
        self._config |= dict(image=image, image_drop=image_drop, answers=check_count(answers, "answers"))
        self._config |= dict(tokens=check_size(tokens, "tokens"), tokens_drop=tokens_drop)
        channels, *spatial = self.field = (1, *self.shape) if len(self.shape) == 1 else self.shape
        conv, back = CONV[len(spatial)]
        self.condition = Condition(64, width, **told)
        self.enter = conv(channels, width, sizes, stride=sizes)
        first = conv(image, width, sizes, stride=sizes, bias=False) if image else None
        self.image = None if first is None else ImageCondition(image, first, width, image_drop)
        grid = [n // p for n, p in zip(spatial, sizes, strict=True)]
        self.positions = nn.Parameter(_positions(grid, width))
        self.tokens = TokensCondition(tokens, tokens_drop) if tokens else None
        self.blocks = nn.ModuleList(_Block(width, heads, tokens) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = zero(nn.Linear(width, 2 * width))
        self.leave = zero(back(width, answers * channels, sizes, stride=sizes))

    @property
    def config(self) -> Config:
        """The constructor's arguments, ready for JSON: `DiT(**net.config)` rebuilds the architecture."""
        return {"shape": list(self.shape), **self._config, "patch": list(self._config["patch"])}

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Labels = None,
        context: Numbers = None,
        image: Numbers = None,
        until: Tensor | None = None,
        tokens: Numbers = None,
        added: Sequence[Tensor] = (),
    ) -> Tensor:
        """Evaluates the net: x (B, *shape), t (B,), label (B,), context (B, d), image, tokens or None -> as x.

        `added` is what a control adds behind each of the first blocks, (B, width, T), see `nets.control`.
        """
        h, e, told, grid = self._entered(x, t, label, context, image, until, tokens)
        if len(added) > len(self.blocks):
            raise ValueError(f"added must be at most {len(self.blocks)} tensors, one for each block, got {len(added)}")
        for i, block in enumerate(self.blocks):
            h = block(h, e, told)
            if i < len(added):
                (h,) = plus([h], [added[i].transpose(1, 2)])
        shift, scale = self.modulate(e)[:, None].chunk(2, dim=2)
        h = torch.addcmul(shift, 1 + scale, self.norm(h))
        out: Tensor = self.leave(h.transpose(1, 2).unflatten(2, grid))
        return out.reshape(len(x), -1, *self.shape[1:])

    def features(self, x: Tensor, t: Tensor, hint: Tensor, **told: Any) -> list[Tensor]:
        """What each block makes of the state, (B, width, T), with a hint (B, width, *grid) beside it."""
        h, e, listened, _ = self._entered(x, t, **told)
        h, found = h + hint.flatten(2).transpose(1, 2), []
        for block in self.blocks:
            h = block(h, e, listened)
            found.append(h.transpose(1, 2))
        return found

    def encoder_copy(self) -> Encoder:
        """A copy of the first half of the blocks, for a control."""
        if len(self.shape) == 1:
            raise TypeError("a DiT of vectors has no field that a control could be laid beside: tell it by context=")
        half = copy.deepcopy(self)
        half.blocks = half.blocks[: max(1, len(half.blocks) // 2)]
        del half.leave, half.modulate
        width, patch = self._config["width"], self._config["patch"]
        return Encoder(half, dims=len(patch), hint=width, widths=[width] * len(half.blocks), stride=patch)

    def _entered(
        self,
        x: Tensor,
        t: Tensor,
        label: Labels = None,
        context: Numbers = None,
        image: Numbers = None,
        until: Tensor | None = None,
        tokens: Numbers = None,
    ) -> tuple[Tensor, Tensor, Told | None, torch.Size]:
        """The state in pieces, (B, T, width), the embedding of time and vectors, what is listened to, and the grid."""
        if tuple(x.shape[1:]) != self.shape or x.ndim == 0:
            raise ValueError(
                f"x must have shape (B, {', '.join(map(str, self.shape))}) for this DiT, got {tuple(x.shape)}. "
                f"Its positions are for that shape alone: build DiT({list(x.shape[1:])})."
            )
        same_dtype(x, self.positions)
        e = self.condition(t, len(x), label, self.condition.told(context, len(x)), until)
        field = x.reshape(len(x), *self.field)
        h = self.enter(field)
        if self.image is None:
            no_image(image)
        else:
            h = h + self.image(image, field)
        told = heard(self.tokens, tokens, len(x))
        return h.flatten(2).transpose(1, 2) + self.positions, e, told, h.shape[2:]


class _Block(nn.Module):
    """Attention and a perceptron, each behind a modulated norm: (B, T, W) and (B, W) -> (B, T, W).

    Between them, in a net that takes tokens, attention to those.

    The attention is written out: the fused one has neither forward-mode nor second derivatives.
    """

    def __init__(self, width: int, heads: int, tokens: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.modulate = zero(nn.Linear(width, 6 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.listen = CrossAttention(width, tokens) if tokens else None
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, h: Tensor, e: Tensor, told: Told | None = None) -> Tensor:
        b1, a1, c1, b2, a2, c2 = self.modulate(e)[:, None].chunk(6, dim=2)
        h = torch.addcmul(h, c1, self._attend(torch.addcmul(b1, 1 + a1, self.norm(h))))
        if self.listen is not None and told is not None:
            h = h + self.listen(self.norm(h), told)
        g = F.gelu(self.widen(torch.addcmul(b2, 1 + a2, self.norm(h))), approximate="tanh")
        return torch.addcmul(h, c2, self.narrow(g))

    def _attend(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, T, W / heads)
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[3]), dim=3)
        out: Tensor = self.project((weights @ v).transpose(1, 2).flatten(2))
        return out


def _positions(grid: Sequence[int], width: int) -> Tensor:
    """Sines and cosines of the place along each axis, in a share of the width for each: (T, W)."""
    waves = width // (2 * len(grid))
    rates = LONGEST_WAVE ** (-torch.arange(waves, device=torch.get_default_device()) / max(1, waves))
    axes = torch.meshgrid(
        *(torch.arange(n, dtype=rates.dtype, device=torch.get_default_device()) for n in grid), indexing="ij"
    )
    phases = [torch.outer(axis.reshape(-1), rates) for axis in axes]
    found = torch.cat([wave for phase in phases for wave in (phase.sin(), phase.cos())], dim=1)
    return F.pad(found, (0, width - found.shape[1]))


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    found = check_shape(shape)
    if not 1 <= len(found) <= 4:
        raise ValueError(
            f"shape is that of one sample, (D,), (C, L), (C, H, W) or (C, D, H, W), got {found}. Channels come first; "
            "a single number is (1,)."
        )
    return found


def _patch(shape: tuple[int, ...], patch: int | Sequence[int] | None) -> tuple[int, ...]:
    """The lengths of a token, one for each axis; raises where they do not divide those of the sample."""
    spatial = shape if len(shape) == 1 else shape[1:]
    if patch is None:
        patch = 1 if len(shape) == 1 else 2
    given = list(patch) if isinstance(patch, Sequence) else [patch] * len(spatial)
    sizes = tuple(check_count(p, "patch") for p in given)
    if len(sizes) != len(spatial) or any(n % p for n, p in zip(spatial, sizes, strict=False)):
        raise ValueError(
            f"patch must divide the lengths {spatial} of a sample, got {patch!r}. Use {math.gcd(*spatial)} or a "
            f"divisor of it, or one length for each axis."
        )
    return sizes
