"""Your own data from a file: `.npy` and `.npz` arrays, checked at the door."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data._npy import members

__all__ = ["load_array"]

T = TypeVar("T")

MOST_CLASSES = 100_000
"""Labels lie below this number: the largest sets the number of classes, each of which is a row of an embedding."""


def load_array(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Reads your own data from a `.npy` file, or from a `.npz` file with an array `x` and perhaps `label`.

    Accepted as well are the names `data` for `x`, and `labels` or `y` for `label`. Pickled objects are never loaded,
    and nothing is allocated that the size of the file does not bear out: an array and its copies must fit into the
    memory of the machine, and one that unpacks to more than 1 GiB may be compressed by a factor of 100 at most.

    Args:
        path: File to read. A `.npz` with a single array may give it any name. Which of the two it is, is told by its
            content.

    Returns:
        x (N, *), finite, in float32, or in float64 if the file holds that or wider; labels (N,) int64, `>= 0` and below
            100,000, or None.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: The array holds integers, booleans, complex numbers or objects; labels are not integers.
        ValueError: Another extension, a damaged file, no or several candidates for `x`, an empty array, fewer than two
            dimensions, NaN or infinity, or labels that do not match.
    """
    path = Path(path)
    if path.suffix.lower() not in (".npy", ".npz"):
        raise ValueError(
            f"Data must be a .npy or .npz file, got {path.name!r}. Save yours with numpy.save or numpy.savez."
        )
    if not path.is_file():
        what = "No data file at" if not path.exists() or path.is_dir() else "No regular file at"
        raise FileNotFoundError(f"{what} {path}. Give the path of a .npy or .npz file.")
    arrays = _guard(path, lambda: members(path))
    name = _pick(arrays, ("x", "data"), path) or (next(iter(arrays)) if len(arrays) == 1 else None)
    if name is None:
        raise ValueError(
            f"{path} holds {sorted(arrays)[:8]} but no array named 'x' (or 'data'). "
            "Use numpy.savez(path, x=..., label=...)."
        )
    x = _as_data(_guard(path, arrays.pop(name)), path)
    label = _pick(arrays, ("label", "labels", "y"), path)
    return x, None if label is None else _as_labels(_guard(path, arrays[label]), len(x), path)


def _guard(path: Path, read: Callable[[], T]) -> T:
    """Returns what a reader returns, or raises its errors with the path in front and the advice behind."""
    try:
        return read()
    except TypeError as error:
        raise TypeError(f"{path} {error}.") from error
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read as {path.suffix}: {error}. Save it again with numpy.save or numpy.savez."
        ) from error


def _pick(arrays: Iterable[str], names: tuple[str, ...], path: Path) -> str | None:
    found = [name for name in names if name in arrays]
    if len(found) > 1:
        raise ValueError(
            f"{path} holds both {found[0]!r} and {found[1]!r}, and it is unclear which is meant. Keep one."
        )
    return found[0] if found else None


def _as_data(array: np.ndarray[Any, Any], path: Path) -> Tensor:
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(
            f"{path} holds {array.dtype}, wanted floating point scaled to about [-1, 1]. "
            "For 8-bit images save (v / 127.5 - 1).astype('float32')."
        )
    if array.ndim < 2:
        raise ValueError(f"{path} has shape {array.shape}, wanted (N, *shape). For scalar data save x.reshape(-1, 1).")
    if array.size == 0:
        raise ValueError(f"{path} is empty: its shape is {array.shape}, wanted (N, *shape) with N >= 1.")
    dtype = np.float64 if array.dtype.itemsize > 4 else np.float32
    with np.errstate(over="ignore"):
        x = torch.from_numpy(array.astype(dtype))
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise ValueError(
            f"{path} holds {bad} NaN or infinite values of {x.numel()} (in {np.dtype(dtype)}). Remove or replace "
            "those rows."
        )
    return x


def _as_labels(array: np.ndarray[Any, Any], n: int, path: Path) -> Tensor:
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"Labels in {path} are {array.dtype}, wanted integers 0, 1, ... Save label.astype('int64').")
    if array.shape != (n,):
        raise ValueError(f"Labels in {path} have shape {array.shape}, wanted ({n},): one per row of x.")
    if array.min() < 0:
        raise ValueError(f"Labels in {path} start at {array.min()}, wanted integers 0, 1, ...")
    if array.max() >= MOST_CLASSES:
        raise ValueError(
            f"Labels in {path} go up to {array.max()}, wanted integers below {MOST_CLASSES:,}, the largest of which "
            "makes the number of classes. Number yours 0, 1, ...: numpy.unique(label, return_inverse=True)[1]."
        )
    return torch.from_numpy(array.astype(np.int64))
