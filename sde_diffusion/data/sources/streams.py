"""Data that come as they come: an `IterableDataset`, or a `DataLoader` whose order is its own.

A run that goes on reads what it has seen again and throws it away, unless the stream has a state of its own: a data set
or loader with the two methods `state_dict()` and `load_state_dict(state)` goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader

from sde_diffusion._checks import check_count
from sde_diffusion.data.sources.base import Batch, Stream
from sde_diffusion.data.sources.datasets import as_batch, stacked
from sde_diffusion.data.sources.rows import taken

FIRST = 1024
"""Rows of a stream of items that are looked at before the first step."""


@runtime_checkable
class Stateful(Protocol):
    """What can say where it stands, and go on from there."""

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Goes there."""


class _Passes(Stream):
    """Passes over an iterable, one after the other."""

    def __init__(self, data: Iterable[Any]) -> None:
        self.data = data
        self.seen: Batch | None = None
        self.resumed = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.first().x.shape[1:])

    def state(self) -> dict[str, Any] | None:
        return self.data.state_dict() if isinstance(self.data, Stateful) else None

    def restore(self, state: dict[str, Any]) -> None:
        if not isinstance(self.data, Stateful):
            raise TypeError(
                f"{type(self.data).__name__} has no load_state_dict, and cannot go on where a run ended: it is read "
                "again from the start, skip= of its batches left out"
            )
        self.data.load_state_dict(state)
        self.resumed = True

    def entries(self) -> Iterator[tuple[int, Any]]:
        """What the iterable holds, numbered within its pass, without end."""
        while True:
            count = -1
            for count, entry in enumerate(self.data):  # told of at the end
                yield count, entry
            if count < 0 and not self.resumed:  # a state may be that of the end of a pass
                raise ValueError(
                    f"{type(self.data).__name__} holds nothing, or nothing on a second pass: its __iter__ has to begin "
                    "anew each time it is asked"
                )
            self.resumed = False


class ItemStream(_Passes):
    """The items of an `IterableDataset`, or of another iterable, in batches; a batch may span passes.

    Args:
        data: What gives items, as those of a data set, see `sources.datasets`.
    """

    def first(self) -> Batch:
        if self.seen is None:
            some = list(islice(enumerate(_once(self.data)), FIRST))
            if not some:
                raise ValueError(f"{type(self.data).__name__} holds nothing: it gave no item")
            self.seen = stacked(some)
        return self.seen

    def batches(self, size: int, *, skip: int = 0, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        shape, own = self.shape, share(check_count(size, "size"), rank, ranks)
        items = self.entries()
        for _ in islice(items, skip * size):
            pass
        while True:
            yield stacked(list(islice(items, size))[own], shape)


class BatchStream(_Passes):
    """The batches of a `DataLoader` with an order of its own, as they come and as large as they come.

    Args:
        loader: It; a batch is a tensor, a pair or a mapping, as an item is, see `sources.datasets`.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        super().__init__(loader)
        self.batch_size = loader.batch_size

    def first(self) -> Batch:
        if self.seen is None:
            found = next(iter(_once(self.data)), None)
            if found is None:
                raise ValueError("the DataLoader holds nothing: it gave no batch")
            self.seen = as_batch(found, None, "the DataLoader")
        return self.seen

    def batches(self, size: int, *, skip: int = 0, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        shape = self.shape
        for i, entry in islice(self.entries(), skip, None):
            x, cond = as_batch(entry, None, f"the DataLoader, number {i} of its pass,")
            if tuple(x.shape[1:]) != shape:
                raise ValueError(
                    f"batch {i} of the DataLoader has rows of shape {tuple(x.shape[1:])}, and the first {shape}: bring "
                    "all to one shape"
                )
            own = torch.arange(x.shape[0], device="cpu")[share(x.shape[0], rank, ranks)]
            yield Batch(x[own], taken(cond, own))


def _once(data: Iterable[Any]) -> Iterator[Any]:
    """The start of a pass that leaves a state as it was."""
    if not isinstance(data, Stateful):
        yield from data
        return
    state = data.state_dict()
    try:
        yield from data
    finally:
        data.load_state_dict(state)


def share(size: int, rank: int, ranks: int) -> slice:
    """The rows of a batch that are those of one process: runs as equal as can be, none of them empty.

    Raises:
        ValueError: More processes than rows.
    """
    if ranks > size:
        raise ValueError(f"a batch of {size} rows cannot be shared by {ranks} processes: give larger batches")
    return slice(rank * size // ranks, (rank + 1) * size // ranks)
