"""Arrays on disk that may be larger than memory: rows are read as they are asked for.

They are read from the file, not through a map of it: the pages of a map count as memory of this process, and a pass
over 3 GB would take 3 GB of what a job is allowed.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data import _npy
from sde_diffusion.data.sources.base import Batch, Source
from sde_diffusion.data.sources.rows import as_tensor

Array = np.ndarray[Any, np.dtype[Any]]


class Mapped(Source):
    """Rows of one array in a file.

    Args:
        path: The file.
        offset: Bytes before the first row.
        stride: Bytes from one row to the next.
        shape: Shape `(N, *)` of the array; the entries of one row lie one after the other.
        dtype: Of the array.

    Raises:
        OSError: The file cannot be opened.
        ValueError: No rows; the file is too short.
    """

    def __init__(
        self, path: str | Path, offset: int, stride: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.path, self.offset, self.stride, self.dtype = Path(path), offset, stride, dtype
        self.n, self.shape = shape[0], tuple(shape[1:])
        self.length = math.prod(self.shape) * dtype.itemsize
        if not self.n or not self.length:
            raise ValueError(f"{path} is empty: its shape is {shape}, wanted (N, *) with N >= 1")
        as_tensor(np.empty(0, dtype), str(path))
        self.file, self.lock = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), threading.Lock()
        weakref.finalize(self, os.close, self.file)
        ends = (offset, offset + (self.n - 1) * stride)
        if min(ends) < 0 or max(ends) + self.length > os.fstat(self.file).st_size:
            raise ValueError(f"{path} is too short for {dtype} of shape {shape}")

    @classmethod
    def of_npy(cls, path: str | Path) -> Mapped:
        """The array of an `.npy` file, whose header is held to the size of the file.

        Raises:
            TypeError: Objects, records, strings or dates.
            ValueError: A damaged file; the first index runs fastest.
        """
        with open(path, "rb") as file:
            dtype, fortran, shape, start = _npy.header(file, os.fstat(file.fileno()).st_size)
        if not shape:
            raise ValueError("has shape (), wanted (N, *)")
        if fortran and len(shape) > 1:
            raise ValueError(
                "its first index runs fastest, so that a row lies all over the file: write it with "
                "numpy.ascontiguousarray(x)"
            )
        return cls(path, start, math.prod(shape[1:]) * dtype.itemsize, shape, dtype)

    def __len__(self) -> int:
        return self.n

    def rows(self, numbers: Tensor) -> Batch:
        wanted = numbers.numpy()
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.n:
            raise IndexError(f"{self.path} has {self.n} rows, and row {wanted.max()} was asked for")
        found = np.empty((len(wanted), *self.shape), self.dtype)
        flat = memoryview(found.reshape(-1).view(np.uint8).data)
        if self.stride == self.length and len(wanted) and bool((np.diff(wanted) == 1).all()):
            self._read(flat, self.offset + int(wanted[0]) * self.stride)
        else:
            order = np.argsort(wanted, kind="stable")  # that of the file
            places = (self.offset + wanted[order] * self.stride).tolist()
            for i, at in zip((order * self.length).tolist(), places, strict=True):
                self._read(flat[i : i + self.length], at)
        return Batch(_single(as_tensor(found, str(self.path))), {})

    def _read(self, left: memoryview, at: int) -> None:
        """Fills some bytes from a place of the file."""
        while (count := self._some(left, at)) < len(left):
            if not count:
                raise ValueError(f"{self.path} ends at byte {at:,}: it was cut short since it was opened")
            left, at = left[count:], at + count

    def _some(self, into: memoryview, at: int) -> int:
        if hasattr(os, "preadv"):  # which leaves the place of the file alone, that forked processes share
            return os.preadv(self.file, [into], at)
        with self.lock:
            os.lseek(self.file, at, os.SEEK_SET)
            found = os.read(self.file, len(into))
        into[: len(found)] = found
        return len(found)


class Sliced(Source):
    """Rows of an array that is mapped in another way than `Mapped` reads: what is asked for is copied, and no more.

    Args:
        array: Shape `(N, *)`.
    """

    def __init__(self, array: Array) -> None:
        if array.ndim == 0 or array.size == 0:
            raise ValueError(f"the data are empty: their shape is {array.shape}, wanted (N, *) with N >= 1")
        as_tensor(np.empty(0, array.dtype), "the data")
        self.array, self.shape = array, tuple(array.shape[1:])

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, numbers: Tensor) -> Batch:
        return Batch(_single(as_tensor(np.array(self.array[numbers.numpy()]), "the data")), {})


def of_memmap(array: np.memmap[Any, np.dtype[Any]]) -> Source:
    """The rows of a mapped array, or of a view of some of its rows, read from its file."""
    inner = array[:1]
    mapped: Any = getattr(array, "_mmap", None)
    if array.ndim == 0 or not isinstance(mapped, mmap.mmap) or array.filename is None or array.mode == "c":
        return Sliced(array)
    start = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
    inside = array.__array_interface__["data"][0] - start
    if not inner.flags.c_contiguous or not 0 <= inside < len(mapped):
        return Sliced(array)
    # the map begins at a whole page, before the offset that it was made for
    before = _offset_of(array) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    return Mapped(array.filename, before + inside, array.strides[0], array.shape, array.dtype)


def _offset_of(array: np.memmap[Any, np.dtype[Any]]) -> int:
    return int(array.offset)


def _single(x: Tensor) -> Tensor:
    """Half precision, which holds no small noise level, as float32."""
    return x.float() if x.dtype == torch.float16 else x
