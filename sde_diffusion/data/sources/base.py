"""What the rows of data are to all who read them: a `Source`, whose rows have numbers, or a `Stream`, which has none.

A `Source` answers any rows by number, the same however often it is asked: their order in training is a function of the
seed and the step, and a run goes on where it ended. A `Stream` hands rows out as they come, and is read again from the
start where it has no state of its own to go on from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion._checks import check_count


class Batch(NamedTuple):
    """Rows of data with their conditions, on the CPU.

    Attributes:
        x: `(B, *)`, in the dtype that the data have.
        cond: Conditions by name: tensors `(B, *)`, lists with as many entries, or mappings of such at any depth.
    """

    x: Tensor
    cond: dict[str, Any]


class Source(ABC):
    """Data whose rows have numbers, `0 <= i < len(source)`.

    Attributes:
        shape: That of one row of x.
        columns: Names of the entries of the first axis of a row, where they have any; else empty.
        batch_size: What a `DataLoader` that the data came in was made for; else None.
        about: What is to be kept beside a model: names of `columns`, of those of a condition, of classes (`labels`).
        transform: What the rows of every batch are to go through before a model sees them, `transform(rows, generator)`
            with the generator of the step; None for rows as they are.
    """

    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()
    batch_size: int | None = None
    about: Mapping[str, Any] = MappingProxyType({})
    transform: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __repr__(self) -> str:
        given = ", ".join(getattr(self, "cond", ()))  # without a look at the rows, which may take work
        return f"{type(self).__name__}({len(self):,} rows of {self.shape}{f', with {given}' if given else ''})"

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows."""

    @abstractmethod
    def rows(self, numbers: Tensor) -> Batch:
        """The rows of these numbers, `(B,)` int64, in this order; a number may come twice."""

    def batches(self, numbers: Iterable[Tensor]) -> Iterator[Batch]:
        """The batches of these numbers, one after the other; a source with workers reads ahead.

        Args:
            numbers: The row numbers of each batch.
        """
        yield from map(self.rows, numbers)

    def chunks(self, size: int) -> Iterator[Batch]:
        """One pass in order, `size` rows at a time: for checks, scalings, validation."""
        n = len(self)
        yield from self.batches(
            torch.arange(i, min(i + size, n), device="cpu") for i in range(0, n, check_count(size, "size"))
        )

    def labels(self) -> Tensor | None:
        """The condition `label` of all rows, `(N,)`, or None where there is none; by default from a pass."""
        if "label" not in self.rows(torch.zeros(1, dtype=torch.int64, device="cpu")).cond:
            return None
        return torch.cat([torch.as_tensor(batch.cond["label"], device="cpu") for batch in self.chunks(4096)])


class Stream(ABC):
    """Data that come as they come: an `IterableDataset`, a `DataLoader` with a sampler of its own.

    Attributes:
        batch_size: What a `DataLoader` that the data came in was made for; else None.
    """

    batch_size: int | None = None

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one row of x."""

    @abstractmethod
    def first(self) -> Batch:
        """The first rows of a pass, for checks and scalings."""

    @abstractmethod
    def batches(self, size: int, *, skip: int = 0, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """Batches without end: where a pass is over, the next one begins.

        Every process reads the whole stream and keeps its own share of each batch, so that the batches, all shares
        together, are the same whatever the number of processes, if the stream is the same in all of them.

        Args:
            size: Rows of a batch, of all processes together.
            skip: Batches to leave out at the start: read, and thrown away.
            rank: The number of this process.
            ranks: How many processes there are.
        """

    @abstractmethod
    def state(self) -> dict[str, Any] | None:
        """Where the stream stands after the last batch, to be handed to `restore`; None if it cannot tell."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Lets the next `batches` begin where the stream stood when `state` was taken."""
