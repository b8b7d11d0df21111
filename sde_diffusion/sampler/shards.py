"""Samples on the disk, in shards: a folder of `.npy` files, or one, beside a manifest that says what they are.

A shard is finished when its rows are on the disk and then its digest is, in a mark of its own. The manifest holds all
digests at the end, when the marks go. So whatever a kill leaves behind is finished and whole, or drawn again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sde_diffusion._files import check_file, check_folder, sync, sync_folder, write_files
from sde_diffusion._sealed import bounded, is_sealed, parsed, sealed

Array = np.ndarray[Any, np.dtype[Any]]
MANIFEST = "manifest.json"
BLOCK = 2**22
"""Bytes that are read at once."""


@dataclass(frozen=True)
class Form:
    """The array and how it is cut.

    Args:
        n: Samples.
        shape: Of one.
        dtype: As NumPy writes it, `"<f4"`.
        shard_size: Samples in a shard, all but the last.
    """

    n: int
    shape: tuple[int, ...]
    dtype: str
    shard_size: int

    @property
    def count(self) -> int:
        """The number of shards."""
        return -(-self.n // self.shard_size)

    @property
    def row(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def rows(self, k: int) -> slice:
        """The samples of shard `k`."""
        return slice(k * self.shard_size, min((k + 1) * self.shard_size, self.n))

    def size(self, k: int) -> int:
        """The number of samples in shard `k`."""
        return self.rows(k).stop - self.rows(k).start

    def header(self, n: int) -> bytes:
        """How a `.npy` file of `n` samples begins."""
        found = io.BytesIO()
        about = {"descr": self.dtype, "fortran_order": False, "shape": (n, *self.shape)}
        np.lib.format.write_array_header_1_0(found, about)
        return found.getvalue()


class Shards(ABC):
    """The shards of one array at one place.

    Args:
        out: The place.
        form: The array, and how it is cut.
    """

    def __init__(self, out: Path, form: Form) -> None:
        self.out, self.form = out, form

    @property
    @abstractmethod
    def home(self) -> Path:
        """The folder of the marks and of the manifest while the work goes on."""

    @property
    @abstractmethod
    def manifest(self) -> Path:
        """The manifest of the finished array."""

    @abstractmethod
    def place(self, k: int) -> tuple[Path, int]:
        """The file of a shard, and the byte at which its rows begin."""

    @abstractmethod
    def check(self) -> None:
        """Raises `ValueError` if the place takes no such files, or holds something else; it is left as it was."""

    @abstractmethod
    def prepare(self) -> None:
        """Makes room for the rows."""

    @abstractmethod
    def whole(self, k: int) -> bool:
        """Whether the file of a shard has the form that it must have, its rows aside; `OSError` without one."""

    @abstractmethod
    def put(self, k: int, rows: Array) -> None:
        """Writes the rows of a shard, which are on the disk when it returns."""

    @abstractmethod
    def finish(self, about: bytes) -> None:
        """Leaves the array and its manifest, and nothing else."""

    def name(self, k: int) -> str:
        """What a shard is called in messages."""
        rows = self.form.rows(k)
        return f"shard {k} (samples {rows.start} to {rows.stop - 1})"

    def mark(self, k: int) -> Path:
        """The file that says that a shard is finished."""
        return self.home / f"shard-{k:06d}.json"

    def write(self, k: int, rows: Array) -> str:
        """Writes a shard, and then its mark; returns its digest."""
        rows = np.ascontiguousarray(rows, self.form.dtype)
        self.put(k, rows)
        digest = hashlib.sha256(rows.data).hexdigest()
        write_files({self.mark(k): sealed({"shard": k, "sha256": digest})})
        return digest

    def marked(self, k: int) -> str | None:
        """The digest in the mark of a shard; None without one, and `""` for one that is damaged."""
        try:
            raw = bounded(self.mark(k), BLOCK, "a mark has a hundred")
            about = parsed(raw)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return ""
        good = isinstance(about, dict) and is_sealed(raw, about.get("digest")) and about.get("shard") == k
        return str(about["sha256"]) if good else ""

    def fits(self, k: int) -> bool:
        """Whether there is a file of the right form for a shard."""
        try:
            return self.whole(k)
        except OSError:
            return False

    def sound(self, k: int, wanted: str) -> bool:
        """Whether the rows of a shard are on the disk, to the last bit."""
        path, start = self.place(k)
        found, left = hashlib.sha256(), self.form.size(k) * self.form.row
        if not self.fits(k):
            return False
        try:
            with open(path, "rb") as file:
                file.seek(start)
                while left and (block := file.read(min(left, BLOCK))):
                    found.update(block)
                    left -= len(block)
        except OSError:
            return False
        return not left and found.hexdigest() == wanted

    def rows(self, k: int) -> Array:
        """The rows of a shard, mapped into memory."""
        path, start = self.place(k)
        shape = (self.form.size(k), *self.form.shape)
        return np.memmap(path, np.dtype(self.form.dtype), "r", start, shape)


class Folder(Shards):
    """One `.npy` file for each shard, `shard-000000.npy` and on, and `manifest.json`, in a folder."""

    @property
    def home(self) -> Path:
        return self.out

    @property
    def manifest(self) -> Path:
        return self.out / MANIFEST

    def place(self, k: int) -> tuple[Path, int]:
        return self.out / f"shard-{k:06d}.npy", len(self.form.header(self.form.size(k)))

    def check(self) -> None:
        done = sum(path.stat().st_size for path in self.out.glob("shard-*.npy")) if self.out.is_dir() else 0
        check_folder(self.out, "out", size=max(0, self.form.n * self.form.row - done))
        other = [p.name for p in self.out.iterdir() if not p.name.startswith(".")] if self.out.is_dir() else []
        if other and not self.manifest.exists():
            raise ValueError(
                f"out {self.out} holds {min(other)!r} and no {MANIFEST}, and so no samples: give a new folder, or an "
                "empty one"
            )

    def prepare(self) -> None:
        pass

    def whole(self, k: int) -> bool:
        path, start = self.place(k)
        with open(path, "rb") as file:
            good = file.read(start) == self.form.header(self.form.size(k))
        return good and path.stat().st_size == start + self.form.size(k) * self.form.row

    def put(self, k: int, rows: Array) -> None:
        write_files({self.place(k)[0]: self.form.header(len(rows)) + rows.tobytes()})

    def finish(self, about: bytes) -> None:
        write_files({self.manifest: about})
        for k in range(self.form.count):
            self.mark(k).unlink(missing_ok=True)


class File(Shards):
    """One `.npy` file, `x.npy`, made in the folder `x.npy.parts` and renamed when whole, with manifest `x.npy.json`."""

    @property
    def home(self) -> Path:
        return self.out.with_name(self.out.name + ".parts")

    @property
    def manifest(self) -> Path:
        return self.out.with_name(self.out.name + ".json")

    @property
    def _array(self) -> Path:
        return self.out if self.out.exists() else self.home / "array.npy"

    def place(self, k: int) -> tuple[Path, int]:
        return self._array, len(self.form.header(self.form.n)) + k * self.form.shard_size * self.form.row

    def check(self) -> None:
        part = self.home / "array.npy"
        there = self._array.stat().st_size if self._array.exists() else 0
        check_file(self.out, "out", size=max(0, self.form.n * self.form.row - there))
        if self.out.exists() and not self.manifest.exists():
            raise ValueError(f"out {self.out} is there, without {self.manifest.name}: give another name, or remove it")
        check_folder(self.home, "out")
        other = [p.name for p in self.home.iterdir() if not p.name.startswith(".")] if self.home.is_dir() else []
        if other and not (part.exists() or (self.home / MANIFEST).exists()):
            raise ValueError(f"{self.home}, where samples are made, holds {min(other)!r}: give out another name")

    def prepare(self) -> None:
        if self.fits(0):
            return
        header, size = self.form.header(self.form.n), self.form.n * self.form.row
        try:
            with open(self._array, "r+b" if self._array.exists() else "xb") as file:
                file.write(header)
                file.flush()
                _take_room(file.fileno(), len(header) + size)
                sync(file)
        except OSError as error:
            raise ValueError(
                f"out {self.out} cannot be made ({error.strerror or error}): it takes {size / 2**30:.3g} GiB. Make "
                "room there, or give another place"
            ) from error

    def whole(self, k: int) -> bool:
        header = self.form.header(self.form.n)
        with open(self._array, "rb") as file:
            if file.read(len(header)) != header:
                return False
        return self._array.stat().st_size == len(self.form.header(self.form.n)) + self.form.n * self.form.row

    def put(self, k: int, rows: Array) -> None:
        path, start = self.place(k)
        with open(path, "r+b") as file:
            file.seek(start)
            file.write(rows.data)
            sync(file)

    def finish(self, about: bytes) -> None:
        write_files({self.manifest: about})
        if not self.out.exists():
            os.replace(self.home / "array.npy", self.out)
            sync_folder(self.out.parent)
        shutil.rmtree(self.home, ignore_errors=True)


def shards_of(out: str | os.PathLike[str], form: Form) -> Shards:
    """The shards at a place: one file where its name ends in `.npy`, else a folder."""
    path = Path(out)
    return (File if path.suffix == ".npy" else Folder)(path, form)


def _take_room(file: int, size: int) -> None:
    """Gives an open file its size, and the room for it where the system can, so that a full disk is found here."""
    os.ftruncate(file, size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that have no such call
                raise
