"""Your own data from a file: `.npy` and `.npz` arrays, checked at the door."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["load_array"]


def load_array(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Read your own data from a `.npy` file, or from a `.npz` file with an array `x` and perhaps `label`.

    Accepted as well are the names `data` for `x`, and `labels` or `y` for `label`. Pickled objects are never loaded.

    Args:
        path: File to read. A `.npz` with a single array may give it any name.

    Returns:
        x (N, *), finite, in float32, or in float64 if the file holds that or wider; labels (N,) int64, `>= 0`, or None.

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
        raise FileNotFoundError(f"No data file at {path}. Give the path of a .npy or .npz file.")
    arrays = _read(path)
    name = _pick(arrays, ("x", "data"), path) or (next(iter(arrays)) if len(arrays) == 1 else None)
    if name is None:
        raise ValueError(
            f"{path} holds {sorted(arrays)} but no array named 'x' (or 'data'). "
            "Use numpy.savez(path, x=..., label=...)."
        )
    x = _as_data(arrays.pop(name), path)
    label = _pick(arrays, ("label", "labels", "y"), path)
    return x, None if label is None else _as_labels(arrays[label], len(x), path)


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            members = dict(loaded) if isinstance(loaded, Mapping) else {"x": loaded}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "object arrays" in str(error).lower():
            raise TypeError(
                f"{path} holds Python objects, which are not read. Save plain float arrays of one shape."
            ) from error
        raise ValueError(
            f"{path} cannot be read as {path.suffix}: {error}. Save it again with numpy.save or numpy.savez."
        ) from error
    return {name: array for name, array in members.items() if isinstance(array, np.ndarray)}


def _pick(arrays: dict[str, Any], names: tuple[str, ...], path: Path) -> str | None:
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
    return torch.from_numpy(array.astype(np.int64))
