"""Arrays from `.npy` and `.npz` files that may be anything: whatever a file announces is checked before it is taken.

The header is read here and not by NumPy, which raises what its parser raises, and allocates what a header claims.
What does not fit raises `ValueError` with a reason; the caller adds the path.
"""

from __future__ import annotations

import ast
import math
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from sde_diffusion.data.memory import check_memory

Array = np.ndarray[Any, np.dtype[Any]]

LONGEST_HEADER = 10_000
"""How many bytes a header may have, which is NumPy's own limit; that of a plain array has about a hundred."""
LARGE, RATIO = 2**30, 100
"""A member of a `.npz` of more bytes than this may be at most so many times as large as it is compressed."""
COPIES = 3
"""How often an array is in memory while it is read, cast and scaled."""

_MAGIC, _ZIP = b"\x93NUMPY", (b"PK\x03\x04", b"PK\x05\x06")
_PYTHONS = (OSError, ValueError, EOFError, RuntimeError, LookupError, OverflowError, MemoryError)
_DAMAGE = (*_PYTHONS, zipfile.BadZipFile, zlib.error, struct.error)  # what zipfile raises on garbage
_PLAIN = re.compile(r"[<>|=]?[A-Za-z?]\d{0,9}(\[\w*\])?")


def members(path: Path) -> dict[str, Callable[[], Array]]:
    """Finds the arrays of a file by name, each to be read by calling it; that of a `.npy` file is called `x`."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start.startswith(_ZIP):
        _check_magic(start)
        return {"x": partial(_from_file, path)}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except _DAMAGE as error:
        raise ValueError(f"it is a damaged zip archive ({error})") from error
    found: dict[str, Callable[[], Array]] = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        if name in found:
            raise ValueError(f"it holds two arrays named {name!r}")
        found[name] = partial(_from_zip, path, entry)
    return found


def _from_file(path: Path) -> Array:
    with open(path, "rb") as file:
        return _read(file, path.stat().st_size)


def _from_zip(path: Path, entry: zipfile.ZipInfo) -> Array:
    name = entry.filename
    if entry.flag_bits & 1:
        raise ValueError(f"{name!r} is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name!r} is compressed by method {entry.compress_type}, and numpy writes 0 and 8 alone")
    if entry.file_size > max(LARGE, RATIO * entry.compress_size):
        raise ValueError(
            f"{name!r} unpacks to {entry.file_size / 2**30:.3g} GiB, more than {RATIO} times its compressed size: "
            "such files are taken for bombs above 1 GiB; write it uncompressed"
        )
    try:
        with zipfile.ZipFile(path) as archive, archive.open(entry) as file:
            return _read(file, entry.file_size)
    except _DAMAGE as error:
        raise ValueError(f"{name!r}: {error}") from error


def _read(file: IO[bytes], size: int) -> Array:
    """Reads an array from a stream of `size` bytes, neither more nor fewer."""
    dtype, fortran, shape, _ = header(file, size)
    claimed = math.prod(shape) * dtype.itemsize
    check_memory(COPIES * claimed, f"an array of shape {shape}", "give a part of it")
    data = np.empty(claimed, np.uint8)
    done = 0
    while done < claimed and (chunk := file.read(min(claimed - done, 1 << 22))):
        data[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
        done += len(chunk)
    if done < claimed:
        raise ValueError(f"it ends after {done:,} of {claimed:,} bytes")
    return np.ndarray(shape, dtype, data.data, order="F" if fortran else "C")


def header(file: IO[bytes], size: int) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """What `_header` reads from a stream of `size` bytes, all of which it accounts for."""
    dtype, fortran, shape, start = _header(file)
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != size - start:
        raise ValueError(
            f"its header announces {dtype} of shape {shape}, {claimed:,} bytes, and {size - start:,} bytes follow"
        )
    return dtype, fortran, shape, start


def _header(file: IO[bytes]) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """Reads a header: dtype, whether the first index runs fastest, shape, and the bytes that the header takes."""
    start = file.read(8)
    _check_magic(start)
    if len(start) < 8 or start[6] not in (1, 2, 3):
        raise ValueError(f"version {start[6:].hex(' ')} of the format is not known")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > LONGEST_HEADER:
        raise ValueError(f"its header has {length:,} bytes, more than the {LONGEST_HEADER:,} of any plain array")
    text = file.read(length)
    if len(text) < length:
        raise ValueError("it is cut short within its header")
    try:
        with _quiet():
            header = ast.literal_eval(text.decode("utf-8" if start[6] == 3 else "latin1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        header = None
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise ValueError("its header is damaged")
    shape, fortran = header["shape"], header["fortran_order"]
    whole = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**63 for n in shape)
    if not whole or len(shape) > 32 or not isinstance(fortran, bool):
        raise ValueError("its header announces a shape that no array has")
    return _dtype(header["descr"]), fortran, shape, 8 + width + length


def _dtype(descr: object) -> np.dtype[Any]:
    if not isinstance(descr, str) or not _PLAIN.fullmatch(descr):
        raise TypeError(f"holds records of the kind {str(descr)[:60]}, wanted plain floating point: take one field")
    try:
        with _quiet():
            dtype = np.dtype(descr)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"its header announces {descr!r}, which is no kind of number") from error
    if dtype.hasobject:
        raise TypeError(
            "holds Python objects, which are not read. Save plain float arrays of one shape, and "
            "captions as np.array(captions, dtype=str)"
        )
    return dtype


def _check_magic(start: bytes) -> None:
    """Says what a file is that holds no array."""
    if start.startswith(_MAGIC):
        return
    shown = start[:24]
    if not start:
        raise ValueError("it is empty")
    if start[:1] == b"\x80":
        raise ValueError("it is a pickle, which may run code and is not read")
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        raise ValueError(f"it is text, {shown.decode('ascii')!r}, and no array: read it with numpy.loadtxt first")
    raise ValueError(f"it begins with {shown!r}, as no array does")


@contextmanager
def _quiet() -> Iterator[None]:
    """A context without warnings, such as those of a parser at work on garbage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
