"""A U-Net for sequences, images and volumes, `(B, C, *spatial)`. The conventions are those of `nets`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from sde_diffusion._checks import check_count
from sde_diffusion.nets.base import Encoder, plus
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
from sde_diffusion.nets.levels import CONV, GROUPS, Blocks, add_levels, down, take_way_back, up
from sde_diffusion.nets.tokens import TokensCondition, Told, heard


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
        add_levels(self, Blocks(dims, 4 * width, dropout, blocks, tokens), widths, attention)
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
        added: Sequence[Tensor] = (),
    ) -> Tensor:
        """Evaluates the net: x (B, C, *spatial), t (B,), label (B,), context (B, d), image, tokens or None -> as x.

        `added` is what a control adds to the `features`, see `nets.control`.
        """
        h, e, told = self._entered(x, t, label, context, image, until, tokens)
        out: Tensor = self.head(up(self, plus(down(self, h, e, told, self.halvings), added), e, told))
        return out

    def features(self, x: Tensor, t: Tensor, hint: Tensor, **told: Any) -> list[Tensor]:
        """What the way down hands to the way back, the finest first, with a hint (B, width, *spatial) at the stem."""
        h, e, listened = self._entered(x, t, **told)
        return down(self, h + hint, e, listened, self.halvings)

    def encoder_copy(self) -> Encoder:
        """A copy of the way down, for a control."""
        half = copy.deepcopy(self)
        del half.head
        take_way_back(half)
        widths = [self._config["width"] * m for m in self._config["multipliers"]]
        return Encoder(half, dims=self.dims, hint=widths[0], widths=widths)

    def _entered(
        self,
        x: Tensor,
        t: Tensor,
        label: Labels = None,
        context: Numbers = None,
        image: Numbers = None,
        until: Tensor | None = None,
        tokens: Numbers = None,
    ) -> tuple[Tensor, Tensor, Told | None]:
        """The state behind the first layer, the embedding of time and vectors, and what is listened to."""
        self._check(x)
        same_dtype(x, self.stem.bias)  # not the weight, which adapters make a product for
        e = self.condition(t, len(x), label, self.condition.told(context, len(x)), until)
        h = self.stem(x)
        if self.image is None:
            no_image(image)
        else:
            h = h + self.image(image, x)
        return h, e, heard(self.tokens, tokens, len(x))

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
