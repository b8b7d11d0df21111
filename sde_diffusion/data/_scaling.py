r"""What every scaling between data as they come and data as a model sees them offers, and what it asks of a source.

$$ z = f(x), \qquad x = f^{-1}(z), \qquad \log p(x) = \log p(z) + \sum_d \log f_d'(x_d) $$

A column is an entry of the first axis of a sample: a coordinate of vectors `(N, D)`, a channel of images
`(N, C, H, W)`. All of it is computed in float64: in float32 nothing is left of a time stamp of 1.7e9 but a few values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.data.sources.base import Source

CHUNK = 2**24
"""Values that are in memory in float64 at once, where the data are many."""
PART = 2**20
"""Values of a source that are read at once: so many stay in the cache of a processor while they are worked on."""
LOSS = 1e-3
"""Rounding of samples, in standard deviations of a column, above which they are kept in float64."""


class Scaling(ABC):
    """A strictly increasing map of every column, fitted to data, kept in the checkpoint."""

    @classmethod
    @abstractmethod
    def of(cls, x: Tensor | Source, name: str = "the data", *, missing: bool = False) -> Scaling:
        """The scaling that suits data.

        Args:
            x: Data `(N, *)`, or a source of them, which is read in parts and may be larger than memory.
            name: What an error calls them.
            missing: NaN is a value that is not known, and left out; else it is refused.
        """

    @abstractmethod
    def fitting(self, shape: Sequence[int]) -> Scaling:
        """This scaling for samples of shape `shape`, along whose first axis a column lies."""

    @abstractmethod
    def apply(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Data as the model sees them, computed in float64: shape `(N, *)` -> same, in `dtype`; NaN stays NaN."""

    @abstractmethod
    def undo(self, z: Tensor) -> Tensor:
        """Data from what the model sees, shape `(N, *)`: in float32, or in float64 where that loses too much."""

    @abstractmethod
    def log_jacobian(self, x: Tensor) -> Tensor:
        r"""$\sum_d \log f_d'(x_d) = \log p(x) - \log p(z)$ of every sample: `(N, *)` -> `(N,)`, float64."""

    @abstractmethod
    def log_slopes(self, x: Tensor) -> Tensor:
        r"""$\log f_d'(x_d)$ of every entry, shape `(N, *)` -> same, float64, on the CPU."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments of the constructor, as numbers and lists of them."""


class Columns(NamedTuple):
    """How an error calls the columns of data.

    Attributes:
        data: What it calls the data.
        shape: Of a sample.
        columns: Their names, if they have any.
    """

    data: str
    shape: Sequence[int]
    columns: Sequence[str] = ()

    @classmethod
    def of(cls, x: Tensor | Source, data: str) -> Columns:
        """Those of data `(N, *)`.

        Raises:
            ValueError: Rows that are single numbers.
        """
        shape = tuple(x.shape[1:]) if isinstance(x, Tensor) else x.shape
        if not shape:
            raise ValueError(f"{data} have rows of shape (), wanted (N, D) or (N, C, *): reshape(-1, 1) makes one")
        return cls(data, shape, () if isinstance(x, Tensor) else x.columns)

    def named(self, i: int) -> str:
        """Column `i` of the data: `column 3 of the data`, `column 'hue' of wine.csv`."""
        return f"{'channel' if len(self.shape) > 1 else 'column'} {self.short(i)} of {self.data}"

    def place(self, column: int | str) -> int:
        """The number of a column, by its name or number.

        Raises:
            ValueError: There is none.
        """
        names: list[int | str] = [*self.columns] or [*range(self.shape[0])]
        if column in names:
            return names.index(column)
        if isinstance(column, int) and 0 <= column < self.shape[0]:
            return column
        raise ValueError(f"{self.data} have no column {column!r}: theirs are {', '.join(map(str, names[:12]))}")

    def short(self, i: int) -> str:
        """The name of column `i`, or its number."""
        return repr(self.columns[i]) if len(self.columns) == self.shape[0] else str(i)


def parts(x: Source) -> Iterator[Tensor]:
    """Runs of rows of a source, `PART` values at most."""
    yield from (batch.x for batch in x.chunks(max(1, PART // max(1, math.prod(x.shape)))))


def dtype_of(x: Source) -> torch.dtype:
    """The dtype that the rows of a source have."""
    return x.rows(torch.zeros(1, dtype=torch.int64, device="cpu")).x.dtype
