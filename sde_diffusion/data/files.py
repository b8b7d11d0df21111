"""Your own data from files: arrays, tables, folders of images, checked at the door."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._checks import rows_in_words
from sde_diffusion.data._npy import members
from sde_diffusion.data.sources.arrays import Rows
from sde_diffusion.data.sources.base import Source
from sde_diffusion.data.sources.mapped import Mapped
from sde_diffusion.data.sources.pictures import Pictures
from sde_diffusion.data.sources.rows import as_tensor
from sde_diffusion.data.sources.tables import Cond, read_table, table

__all__ = ["load_array", "open_data"]

T = TypeVar("T")

LARGE = 2**28
"""Bytes above which an `.npy` file or a folder of images is read row by row, and not held in memory."""
TABLES = (".csv", ".parquet")

CONDITIONS = ("label", "labels", "y", "context", "image")
"""Names of conditions in an `.npz`, under which no data are found, were it the only array."""
MOST_CLASSES = 100_000
"""Labels lie below this number: the largest sets the number of classes, each of which is a row of an embedding."""


def open_data(path: str | Path, cond: Cond = None, *, size: int | tuple[int, int] | None = None) -> Source:
    """Opens your own data, whatever they are in.

    | what | data | conditions |
    |---|---|---|
    | `.npy` | the array | none |
    | `.npz` | the array `x` (or `data`, or the only one) | `label` (`labels`, `y`), `context`, `image`, `cond` |
    | `.csv`, `.parquet` | the numeric columns that are no conditions | the columns of `cond`, see `sources.tables` |
    | a folder | the images in it, as bytes `(C, H, W)` | `label`, the folder within it that an image lies in |

    Arrays may be of floats or of whole numbers, which are data through `Dequantised`. An `.npy` file and a folder of
    more than 256 MiB of values are read row by row, so that they may be larger than memory.

    Args:
        path: A file, or a folder.
        cond: Names of arrays or of columns that are conditions.
        size: Height and width that images of a folder are brought to; None: all are of one size.

    Raises:
        FileNotFoundError: There is nothing.
        ImportError: pandas and pyarrow, or Pillow, which are wanted for tables or images, are not installed.
        TypeError: Objects, strings, dates, records; labels that are no integers.
        ValueError: A damaged file, of another kind, without data, or with such as no model learns from, by row: NaN,
            infinity, conditions of another length.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No data at {path}. Give a .npy, .npz, .csv or .parquet file, or a folder of images.")
    ending = path.suffix.lower()
    if path.is_dir():
        if cond:
            raise ValueError(f"{path} is a folder of images, whose only condition is label, the folder within it")
        found = Pictures(path, size)
        return found.loaded() if found.bytes <= LARGE else found
    if size is not None:
        raise ValueError(f"size is that of images in a folder, and {path} is a file: leave it out")
    if ending in TABLES:
        return table(read_table(path), cond, name=str(path))
    if ending not in (".npy", ".npz"):
        raise ValueError(
            f"Data must be a .npy, .npz, .csv or .parquet file or a folder of images, got {path.name!r}. Save yours "
            "with numpy.save or numpy.savez."
        )
    if ending == ".npy" and path.stat().st_size > LARGE:
        if cond:
            raise ValueError(f"{path} is one array, without conditions: write a .npz with one array for each")
        mapped = _guard(path, lambda: Mapped.of_npy(path))
        _check_real(mapped.dtype, str(path))
        return mapped
    return _arrays(path, cond)


def _arrays(path: Path, cond: Cond) -> Rows:
    """The arrays of an `.npy` or `.npz` file, those that are conditions by their names."""
    arrays, name = _named(path)
    wanted = _conditions(path, cond, [key for key in arrays if key != name])
    read = _guard(path, arrays[name])
    if read.ndim and read.size == 0:
        raise ValueError(f"{path} is empty: its shape is {read.shape}, wanted (N, *shape) with N >= 1.")
    if read.ndim < 2:
        raise ValueError(f"{path} has shape {read.shape}, wanted (N, *shape). For scalar data save x.reshape(-1, 1).")
    x = _guard(path, lambda: _plain(read, name))
    if len(broken := ~torch.isfinite(x.reshape(len(x), -1)).all(1)) and bool(broken.any()):
        raise ValueError(f"{path} holds NaN or infinity in {rows_in_words(broken)}. Remove or replace those rows.")
    found: dict[str, Any] = {}
    for key, member in wanted.items():
        value = _guard(path, arrays[member])
        if key == "caption":
            found[key] = _guard(path, partial(_texts, value, member))
            continue
        found[key] = _as_labels(value, len(x), path) if key == "label" else _guard(path, partial(_plain, value, member))
        if len(value) != len(x):
            raise ValueError(f"{path}: {member!r} has {len(value)} rows, and {name!r} has {len(x)}. One for each.")
    return Rows(x, found)


def _named(path: Path) -> tuple[dict[str, Callable[[], np.ndarray[Any, Any]]], str]:
    """The arrays of a file, each to be read by calling it, and which of them are the data."""
    arrays = _guard(path, lambda: members(path))
    name = _pick(arrays, ("x", "data"), path) or (next(iter(arrays)) if len(arrays) == 1 else None)
    if name is None or name in CONDITIONS:
        raise ValueError(
            f"{path} holds {sorted(arrays)[:8]} but no array named 'x' (or 'data'). "
            "Use numpy.savez(path, x=..., label=...)."
        )
    return arrays, name


def _conditions(path: Path, cond: Cond, there: list[str]) -> dict[str, str]:
    """The arrays of a file that are conditions, by the names that the network knows them by."""
    label = _pick(there, ("label", "labels", "y"), path)
    found = {key: key for key in ("context", "image") if key in there} | ({"label": label} if label else {})
    if cond is None:
        return found
    pairs = cond if isinstance(cond, Mapping) else {key: key for key in ([cond] if isinstance(cond, str) else cond)}
    for key, member in pairs.items():
        if not isinstance(member, str) or member not in there:
            raise ValueError(f"{path} has no array {member!r}: beside the data it holds {sorted(there)[:8]}")
        found = {k: m for k, m in found.items() if m != member} | {key: member}
    return found


def _plain(array: np.ndarray[Any, Any], name: str) -> Tensor:
    """An array as floats, in float32 or wider, or as whole numbers, in their own kind."""
    _check_real(array.dtype, repr(name))
    x = as_tensor(array, repr(name))
    return x.float() if x.dtype == torch.float16 else x


def _texts(array: np.ndarray[Any, Any], name: str) -> list[str]:
    """An array of strings as captions."""
    if array.dtype.kind != "U" or array.ndim != 1:
        raise TypeError(f"{name!r} holds {array.dtype} of shape {array.shape}, wanted captions, strings (N,)")
    texts: list[str] = array.tolist()
    return texts


def _check_real(dtype: np.dtype[Any], name: str) -> None:
    """Raises `TypeError` for complex numbers."""
    if dtype.kind == "c":
        raise TypeError(
            f"{name} holds {dtype}, wanted real numbers: save real and imaginary parts as two columns or channels, "
            "numpy.stack([x.real, x.imag], 1)"
        )


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
    arrays, name = _named(path)
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
