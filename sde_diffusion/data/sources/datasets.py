"""A `Dataset` of PyTorch whose items have numbers, and a `DataLoader` around one, taken apart.

An item is a tensor or an array; a pair `(x, {name: condition})`; a pair `(x, integer)`, whose second entry is the
condition `label`; or a mapping with `x`, whose other entries are conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from sde_diffusion.data.sources.base import Batch, Source
from sde_diffusion.data.sources.rows import as_tensor, with_rows

Collate = Callable[[list[Any]], Any]

ITEMS = (
    "wanted a tensor, (x, integer label), (x, {name: condition}), or a mapping with 'x': return one of these from "
    "__getitem__"
)


class Items(Source):
    """The items of a data set of PyTorch, read one by one.

    Args:
        dataset: What has a length and items `dataset[i]`, of PyTorch or not.
        collate: What makes a batch of a list of items; by default they are stacked.
        workers: Processes that read ahead, as of a `DataLoader`; 0: none.
        context: How these are started, as `multiprocessing_context` of a `DataLoader`.
        batch_size: What a `DataLoader` around it was made for.

    Raises:
        TypeError: It has no length; an item of another kind.
        ValueError: It is empty; an item that cannot be read, by its number.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Collate | None = None,
        workers: int = 0,
        context: Any = None,
        batch_size: int | None = None,
    ) -> None:
        self.dataset, self.workers, self.context, self.batch_size = dataset, workers, context, batch_size
        try:
            self.n = len(dataset)
        except (TypeError, NotImplementedError):
            raise TypeError(
                f"{type(dataset).__name__} has no length: give it __len__, or make it an IterableDataset"
            ) from None
        if self.n == 0:
            raise ValueError(f"the data set is empty: {type(dataset).__name__} has no items")
        self.read = _Read(dataset, collate)
        self.shape = tuple(self.rows(torch.zeros(1, dtype=torch.int64, device="cpu")).x.shape[1:])
        self.read.shape = self.shape

    def __len__(self) -> int:
        return self.n

    def rows(self, numbers: Tensor) -> Batch:
        return self.read([(i, *self.read.item(i)) for i in numbers.tolist()])

    def batches(self, numbers: Iterable[Tensor]) -> Iterator[Batch]:
        if not self.workers:
            yield from map(self.rows, numbers)
            return
        options: dict[str, Any] = {} if self.context is None else {"multiprocessing_context": self.context}
        yield from DataLoader(
            _Numbered(self.read),
            batch_sampler=(some.tolist() for some in numbers),  # read once, as it comes
            num_workers=self.workers,
            collate_fn=self.read,
            generator=torch.Generator().manual_seed(0),  # of the workers' seeds: torch's own state is left alone
            **options,
        )


class _Read:
    """Reads an item, and makes a batch of some; a worker gets a copy."""

    def __init__(self, dataset: Any, collate: Collate | None) -> None:
        self.dataset, self.collate = dataset, collate
        self.shape: tuple[int, ...] | None = None

    def item(self, i: int) -> tuple[Any]:
        try:
            return (self.dataset[i],)
        except Exception as error:
            raise ValueError(
                f"item {i} of the data set cannot be read: {type(self.dataset).__name__} raised "
                f"{type(error).__name__}: {error}"
            ) from error

    def __call__(self, items: list[tuple[int, Any]]) -> Batch:
        if self.collate is None:
            return stacked(items, self.shape)
        numbers = [i for i, _ in items]
        return as_batch(self.collate([item for _, item in items]), len(numbers), f"items {numbers[0]} ...")


class _Numbered(torch.utils.data.Dataset[Any]):
    def __init__(self, read: _Read) -> None:
        self.read = read

    def __getitem__(self, i: int) -> tuple[int, Any]:
        return (i, *self.read.item(i))


def stacked(items: Sequence[tuple[int, Any]], shape: tuple[int, ...] | None = None) -> Batch:
    """A batch of numbered items, each of which has the shape `shape`, or that of the first."""
    xs: list[Tensor] = []
    conds: list[dict[str, Any]] = []
    for i, item in items:
        x, cond = parts(item, f"item {i} of the data")
        wanted, whose = (tuple(xs[0].shape), f"item {items[0][0]}") if shape is None and xs else (shape, "the first")
        if wanted is not None and tuple(x.shape) != wanted:
            raise ValueError(
                f"item {i} of the data has shape {tuple(x.shape)}, and {whose} {wanted}: bring all to one shape"
            )
        if conds and cond.keys() != conds[0].keys():
            raise ValueError(
                f"item {i} of the data has the conditions {sorted(cond)}, and item {items[0][0]} {sorted(conds[0])}: "
                "give all of them the same"
            )
        xs.append(x)
        conds.append(cond)
    try:
        cond = default_collate(conds) if conds[0] else {}
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"the conditions of items {items[0][0]} to {items[-1][0]} do not stack: {str(error).splitlines()[0]}"
        ) from error
    return Batch(torch.stack(xs), cond)


def parts(item: Any, what: str, ndim: int = 0) -> tuple[Tensor, dict[str, Any]]:
    """The data and the conditions of one item, or of a batch of them, whose labels have `ndim=1`.

    Raises:
        TypeError: An item of another kind.
    """
    x, cond = split(item, what, ndim)
    if isinstance(x, int | float | np.number):
        x = torch.as_tensor(x, device="cpu")
    if not isinstance(x, Tensor) and not hasattr(x, "__array__") and not isinstance(x, list):
        raise TypeError(f"{what} is {type(x).__name__}, {ITEMS}")
    return as_tensor(x, what), cond


def split(item: Any, what: str, ndim: int = 0) -> tuple[Any, dict[str, Any]]:
    """An item, or a batch of them, whose labels have `ndim=1`, as its data and its conditions."""
    if isinstance(item, Mapping):
        if "x" not in item:
            raise TypeError(f"{what} is a mapping of {sorted(map(str, item))} without 'x', {ITEMS}")
        return item["x"], {str(name): value for name, value in item.items() if name != "x"}
    if not isinstance(item, tuple | list) or _numbers(item):
        return item, {}
    if len(item) == 1:
        return item[0], {}
    if len(item) == 2:
        x, other = item
        if isinstance(other, Mapping):
            return x, {str(name): value for name, value in other.items()}
        if _integer(other, ndim):
            return x, {"label": other}
        raise TypeError(
            f"{what} is a pair whose second entry is {_said(other)}, and it is unclear what it is to be called: return "
            "(x, {'context': ...}), or the name that your network knows it by"
        )
    raise TypeError(f"{what} is a tuple of {len(item)}, {ITEMS}")


def _numbers(item: tuple[Any, ...] | list[Any]) -> bool:
    """Whether a list is a row of numbers, and no pair."""
    return isinstance(item, list) and all(isinstance(v, int | float | list) for v in item)


def _integer(value: Any, ndim: int) -> bool:
    """Whether this is an integer, or with `ndim=1` a row of them."""
    if isinstance(value, Tensor):
        whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        return whole and value.ndim == ndim
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iu" and value.ndim == ndim
    return ndim == 0 and isinstance(value, int | np.integer) and not isinstance(value, bool)


def _said(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__


def as_batch(batch: Any, n: int | None, what: str) -> Batch:
    """What a `DataLoader`, or its `collate_fn`, makes of items, as a batch.

    Args:
        batch: Its result.
        n: How many items went in, if known.
        what: What an error calls it.

    Raises:
        TypeError: A batch of another kind.
        ValueError: Another number of rows.
    """
    x, cond = parts(batch, f"the batch of {what}", ndim=1)
    if x.ndim == 0 or x.shape[0] == 0 or (n is not None and x.shape[0] != n):
        raise ValueError(
            f"the batch of {what} has shape {tuple(x.shape)}, wanted {n if n is not None else 'one or more'} rows"
        )
    return Batch(x, with_rows(cond, x.shape[0]))
