"""Rows of data as a codec is to see them, and the moments of their codes: what is learnt, measured and kept alike."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_state
from sde_diffusion._tensors import as_float64
from sde_diffusion.data.source import Batch, Source, Stream
from sde_diffusion.latent.codec import Code
from sde_diffusion.training._input import Transform, transformed


def first_rows(source: Source | Stream, most: int, size: int | None = None) -> Iterator[Batch]:
    """At most so many rows, `size` at a time: of a source spread evenly over it, of a stream its first ones.

    Args:
        source: The data.
        most: How many at most.
        size: Rows of a batch; all by default.
    """
    most = check_count(most, "rows")
    size = most if size is None else check_count(size, "batch_size")
    if isinstance(source, Source):
        count = min(most, len(source))
        yield from source.batches((torch.arange(count, device="cpu") * len(source) // count).split(size))
        return
    for x in source.first().x[:most].split(size):
        yield Batch(x, {})  # whose conditions are of no account


def seen(
    x: Tensor,
    source: Source | Stream,
    transform: Transform | None,
    generator: torch.Generator,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Rows after the transform of their source and that of the training, and after the look that `train` takes at them.

    Args:
        x: Rows `(B, *)`, as the source has them; they stay as they are.
        source: Where they are from.
        transform: That of the training.
        generator: The source of what the transforms draw.
        shape: The event shape that is wanted of what comes, if any is.

    Raises:
        TypeError, ValueError: As `check_state` and `transformed`.
    """
    for each in (source.transform if isinstance(source, Source) else None, transform):
        if each is not None:
            x = transformed(each, x.clone(), generator)  # a copy: it may work in place, and these rows come again
    return check_state(x, "data", shape=shape)


class Moments:
    """The first two moments of codes for each channel, over rows, the points of a channel and the spread of a code."""

    def __init__(self) -> None:
        self.n = 0
        self._first: Tensor | float = 0.0
        self._second: Tensor | float = 0.0

    def add(self, code: Code) -> None:
        """Takes the codes of more rows in, `(B, C, *)`."""
        mean, std = (part.double() for part in code)
        axes = [0, *range(2, mean.ndim)]
        points = mean.numel() // mean.shape[1] / len(mean)
        self._first = self._first + mean.sum(axes) / points
        self._second = self._second + (mean.square() + std.square()).sum(axes) / points
        self.n += len(mean)

    def found(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel, `(C,)`, float64.

        Raises:
            ValueError: A channel that is constant.
        """
        shift, square = (as_float64(each) / self.n for each in (self._first, self._second))
        variance = square - shift.square()
        level = variance <= 1e-12 * square
        if bool(level.any()):
            i = int(level.nonzero()[0, 0])
            raise ValueError(
                f"channel {i} of the codes is {float(shift[i]):g} for all data, which tells nothing: train it for "
                "longer, or give the net fewer channels of codes"
            )
        return shift, variance
