"""Your own data, whatever they come as: `source_of` makes a `Source` or a `Stream` of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from sde_diffusion.data.sources.arrays import Part, Rows, With
from sde_diffusion.data.sources.base import Batch, Source, Stream
from sde_diffusion.data.sources.datasets import Items, split

__all__ = ["Batch", "Source", "Stream", "source_of"]


def source_of(data: Any, cond: Mapping[str, Any] | None = None) -> Source | Stream:
    """Makes a source of data, with their conditions.

    Args:
        data: A tensor or an array `(N, *)`; a `torch.utils.data.Dataset`; a `Source` or a `Stream`.
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
    if isinstance(data, Tensor | np.ndarray):
        return Rows(data)
    if type(data) is TensorDataset:
        return Rows(*split(data.tensors, "the TensorDataset", ndim=1))
    if type(data) is Subset and type(data.dataset) is TensorDataset:
        return Part(Rows(*split(data.dataset.tensors, "the TensorDataset", ndim=1)), torch.as_tensor(data.indices))
    if isinstance(data, Dataset):
        return Items(data)
    if isinstance(data, list | tuple) or hasattr(data, "__array__"):
        return Rows(data)
    raise TypeError(
        f"the data are {type(data).__name__}: wanted a tensor or an array (N, *), or a torch.utils.data.Dataset"
    )
