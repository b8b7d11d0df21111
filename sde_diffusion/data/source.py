"""Your own data, whatever they come as: `source_of` makes a `Source` or a `Stream` of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from sde_diffusion.data.sources.arrays import Part, Rows, With
from sde_diffusion.data.sources.base import Batch, Source, Stream
from sde_diffusion.data.sources.datasets import Items, split
from sde_diffusion.data.sources.mapped import of_memmap
from sde_diffusion.data.sources.streams import BatchStream, ItemStream
from sde_diffusion.data.sources.tables import table

__all__ = ["Batch", "Source", "Stream", "source_of"]


def source_of(data: Any, cond: Mapping[str, Any] | None = None) -> Source | Stream:
    """Makes a source of data, with their conditions.

    Args:
        data: A tensor, an array `(N, *)` or a list; one mapped from a file, whose rows are read as they are asked for;
            a mapping, `{"x": x, "label": y}`; a `DataFrame`; a `torch.utils.data.Dataset`, or what has `len(data)`
            and `data[i]`, see `sources.datasets` for what an item may be; an `IterableDataset`; a `DataLoader`; a
            `Source` or a `Stream`. A `DataLoader` of the usual kind, shuffled or not, is taken apart: its data set, its
            `collate_fn` and its workers stay, the order is ours, shuffled. One with a sampler of its own, with a data
            set that is a stream, or of another class, is a stream of batches.
        cond: Conditions by name, each of which has a row for each row of the data: a tensor, an array or a list, or a
            mapping of such at any depth.

    Raises:
        TypeError: Data of another kind; a condition that has no rows.
        ValueError: No rows; conditions with another number of them.
    """
    found = _source_of(data)
    if not cond:
        return found
    if isinstance(found, Stream):
        raise TypeError(
            f"{type(data).__name__} is a stream, whose rows have no numbers that conditions beside it could be matched "
            "by: let every item bring its own, (x, {'label': ...})"
        )
    return Rows(found.x, {**found.cond, **cond}) if type(found) is Rows and not found.cond else With(found, cond)


def _source_of(data: Any) -> Source | Stream:
    if isinstance(data, Source | Stream):
        return data
    if isinstance(data, np.memmap):
        return of_memmap(data)
    if isinstance(data, DataLoader):
        return _of_loader(data)
    if isinstance(data, IterableDataset):
        return ItemStream(data)
    if type(data) is Subset and type(data.dataset) is TensorDataset:
        return Part(_in_memory(data.dataset.tensors), torch.as_tensor(data.indices, device="cpu"))
    if type(data) is TensorDataset:
        return _in_memory(data.tensors)
    if isinstance(data, Mapping):
        return _in_memory(data)
    if isinstance(data, list | tuple) and len(data) and isinstance(data[0], Tensor | np.ndarray | Mapping | tuple):
        return Rows(*Items(data).rows(torch.arange(len(data), device="cpu")))
    if "pandas" in sys.modules and isinstance(data, sys.modules["pandas"].DataFrame):
        return table(data)
    if isinstance(data, Tensor | np.ndarray | list | tuple) or hasattr(data, "__array__"):
        return Rows(data)
    if isinstance(data, str | bytes | Path) or not hasattr(data, "__getitem__"):
        raise TypeError(
            f"the data are {type(data).__name__}: wanted a tensor or an array (N, *), a torch.utils.data.Dataset or "
            "IterableDataset, or a DataLoader; data.open_data opens files"
        )
    return Items(data)  # which says so if it has no length


def _in_memory(data: Any) -> Rows:
    """The rows of a mapping or a tuple of tensors."""
    return Rows(*split(data, f"the {type(data).__name__} of data", ndim=1))


def _of_loader(loader: DataLoader[Any]) -> Source | Stream:
    """A `DataLoader` taken apart, if its order is one of those that it makes by itself; else as a stream."""
    sampler, dataset = loader.sampler, loader.dataset
    if isinstance(sampler, DistributedSampler):
        raise ValueError(
            "the DataLoader has a DistributedSampler, and training shares the rows among processes itself: make it "
            "without one"
        )
    usual = (
        type(loader) is DataLoader
        and type(loader.batch_sampler) is BatchSampler
        and not isinstance(dataset, IterableDataset)
        and (type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and _plain(sampler, dataset)))
    )
    if not usual:
        return BatchStream(loader)
    if loader.collate_fn is default_collate and not loader.num_workers:
        found = _source_of(dataset)
        found.batch_size = loader.batch_size
        return found
    collate = None if loader.collate_fn is default_collate else loader.collate_fn
    return Items(dataset, collate, loader.num_workers, loader.multiprocessing_context, loader.batch_size)


def _plain(sampler: RandomSampler, dataset: Any) -> bool:
    """Whether a sampler draws every item once."""
    return not sampler.replacement and sampler.num_samples == len(dataset)
