"""The rows of a source as a model is to see them: data and continuous conditions, scaled as they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.data._scaling import Scaling
from sde_diffusion.data.sources.arrays import Rows
from sde_diffusion.data.sources.base import Batch, Source


class Scaled(Source):
    """The rows of another source, scaled when they are asked for; see `scaled`.

    Args:
        source: Any source.
        scaling: The scaling of the data; None for data as they are.
        conditions: The scalings of conditions, by name.
        dtype: That of what is scaled.
    """

    def __init__(
        self,
        source: Source,
        scaling: Scaling | None,
        conditions: Mapping[str, Scaling],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.source, self.scaling, self.conditions, self.dtype = source, scaling, dict(conditions), dtype
        self.shape, self.columns, self.batch_size = source.shape, source.columns, source.batch_size
        self.about = source.about

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, numbers: Tensor) -> Batch:
        return self._scaled(self.source.rows(numbers))

    def labels(self) -> Tensor | None:
        return self.source.labels()

    def batches(self, numbers: Iterable[Tensor]) -> Iterator[Batch]:
        yield from map(self._scaled, self.source.batches(numbers))

    def _scaled(self, batch: Batch) -> Batch:
        x = batch.x if self.scaling is None else self.scaling.apply(batch.x, self.dtype)
        cond = {name: self._condition(name, value) for name, value in batch.cond.items()}
        return Batch(x, cond)

    def _condition(self, name: str, value: Any) -> Any:
        return self.conditions[name].apply(value, self.dtype) if name in self.conditions else value


class Condition(Source):
    """The rows of one condition of a source, as data of their own: to fit a scaling to them.

    Args:
        source: Any source.
        name: The name of one of its conditions, a tensor.
    """

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name
        self.shape = tuple(self.rows(torch.zeros(1, dtype=torch.int64, device="cpu")).x.shape[1:])

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, numbers: Tensor) -> Batch:
        return Batch(self.source.rows(numbers).cond[self.name], {})

    def batches(self, numbers: Iterable[Tensor]) -> Iterator[Batch]:
        yield from (Batch(cond[self.name], {}) for _, cond in self.source.batches(numbers))


def scaled(
    source: Source,
    scaling: Scaling | None,
    conditions: Mapping[str, Scaling] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Source:
    """The rows of a source, scaled: at once where they are in memory as one tensor, else as they are read.

    Args:
        source: Any source.
        scaling: The scaling of the data; None for data as they are.
        conditions: The scalings of conditions, by name.
        dtype: That of what is scaled.
    """
    found = Scaled(source, scaling, conditions or {}, dtype)
    if type(source) is not Rows:
        return found
    x, cond = found.rows(torch.arange(len(source), device="cpu"))
    rows = Rows(x, cond, source.columns)
    rows.about, rows.batch_size = source.about, source.batch_size
    return rows
