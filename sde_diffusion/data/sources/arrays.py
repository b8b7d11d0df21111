"""Rows that are in memory: tensors and arrays; and conditions that come beside any source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.data.sources.base import Batch, Source
from sde_diffusion.data.sources.rows import as_tensor, of_tensor, taken, together, with_rows


class Rows(Source):
    """The rows of a tensor or an array `(N, *)`, with conditions.

    Args:
        x: Data `(N, *)`; the array is not copied.
        cond: Conditions by name, each with `N` rows.
        columns: Names of the entries of the first axis of a row.

    Raises:
        TypeError: Objects, strings or dates; a condition without rows.
        ValueError: No rows, or another number of them in a condition.
    """

    def __init__(self, x: Any, cond: Mapping[str, Any] | None = None, columns: tuple[str, ...] = ()) -> None:
        self.x, self.columns = as_tensor(x, "the data"), columns
        if self.x.ndim == 0 or self.x.numel() == 0:
            raise ValueError(f"the data are empty: their shape is {tuple(self.x.shape)}, wanted (N, *) with N >= 1")
        self.shape = tuple(self.x.shape[1:])
        self.cond = with_rows(cond or {}, len(self.x))

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, numbers: Tensor) -> Batch:
        return Batch(of_tensor(self.x, numbers), taken(self.cond, numbers))

    def labels(self) -> Tensor | None:
        return self.cond.get("label")


class With(Source):
    """The rows of another source, with conditions that came beside it.

    Args:
        source: Any source.
        cond: Conditions by name, each with as many rows.

    Raises:
        TypeError: A condition without rows.
        ValueError: A condition with another number of rows; one that the source itself has.
    """

    def __init__(self, source: Source, cond: Mapping[str, Any]) -> None:
        self.source, self.cond = source, with_rows(cond, len(source))
        self.shape, self.columns, self.batch_size = source.shape, source.columns, source.batch_size
        self.about, self.transform = source.about, source.transform
        together(source.rows(torch.zeros(1, dtype=torch.int64, device="cpu")).cond, self.cond)

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, numbers: Tensor) -> Batch:
        x, cond = self.source.rows(numbers)
        return Batch(x, {**cond, **taken(self.cond, numbers)})

    def labels(self) -> Tensor | None:
        return self.cond["label"] if "label" in self.cond else self.source.labels()

    def batches(self, numbers: Iterable[Tensor]) -> Iterator[Batch]:
        asked: list[Tensor] = []  # by a source that reads ahead, before it answers

        def noted() -> Iterator[Tensor]:
            for some in numbers:
                asked.append(some)
                yield some

        for x, cond in self.source.batches(noted()):
            yield Batch(x, {**cond, **taken(self.cond, asked.pop(0))})


class Part(Source):
    """Some rows of another source.

    Args:
        source: Any source.
        numbers: Which of its rows, `(M,)` int64.
    """

    def __init__(self, source: Source, numbers: Tensor) -> None:
        self.source, self.numbers = source, numbers
        self.shape, self.columns, self.batch_size = source.shape, source.columns, source.batch_size
        self.about, self.transform = source.about, source.transform

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, numbers: Tensor) -> Batch:
        return self.source.rows(self.numbers[numbers])

    def labels(self) -> Tensor | None:
        found = self.source.labels()
        return None if found is None else found[self.numbers]

    def batches(self, numbers: Iterable[Tensor]) -> Iterator[Batch]:
        yield from self.source.batches(self.numbers[some] for some in numbers)
