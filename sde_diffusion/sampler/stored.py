"""Samples on the disk as a whole: the manifest of a job, and the array when it is finished."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sde_diffusion._files import locked, remove_drafts, write_files
from sde_diffusion._sealed import bounded, is_sealed, parsed, sealed
from sde_diffusion.sampler.shards import MANIFEST, Array, Form, Shards, shards_of

FORMAT = 1
_ANEW = "remove the samples and draw them anew, or give another place"
MOST = 2**26
"""The largest manifest in bytes, of 800,000 shards."""


class Samples(Dataset[Tensor]):
    """Samples that lie on the disk, as an array of shape `(n, *)` of which rows are read where they are asked for.

    `len`, integers and slices take rows, as tensors; `numpy.asarray(samples)` and `samples.tensor()` read all of them.
    It is a data set as `torch.utils.data` takes them.

    Attributes:
        about: What the manifest says: `seed`, `sampler`, `batch_size` and on.
        shape: Of all samples, `(n, *)`.
        dtype: Of the numbers.
    """

    def __init__(self, shards: Shards, about: Mapping[str, Any]) -> None:
        self.about = dict(about)
        self.shape = (shards.form.n, *shards.form.shape)
        self.dtype: torch.dtype = torch.from_numpy(np.empty(0, shards.form.dtype)).dtype
        self._shards, self._open = shards, cast("dict[int, Array]", {})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # each process maps the files for itself

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<Samples of shape {self.shape} in {self._shards.out}>"

    def __getitem__(self, index: int | slice) -> Tensor:
        if isinstance(index, slice):
            numbers = range(len(self))[index]
            if numbers.step != 1:
                return torch.stack([self[i] for i in numbers]) if numbers else self[0:0]
            return torch.from_numpy(self._between(numbers.start, max(numbers.start, numbers.stop)))
        i = range(len(self))[index]
        return torch.from_numpy(self._between(i, i + 1)[0])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("samples are read from the disk, which makes a copy: leave copy= out")
        found = self._between(0, len(self))
        return found if dtype is None else found.astype(dtype)

    def tensor(self) -> Tensor:
        """All samples, read into memory."""
        return self[:]

    def parts(self) -> Iterator[Tensor]:
        """The samples of one shard after the other."""
        for k in range(self._shards.form.count):
            rows = self._shards.form.rows(k)
            yield self[rows]

    def damaged(self) -> list[str]:
        """Reads everything, and tells the shards that are not as they were written."""
        wanted = promised(self._shards)
        return [self._shards.name(k) for k in range(len(wanted)) if not self._shards.sound(k, wanted[k])]

    def _between(self, start: int, stop: int) -> Array:
        """A copy of a run of rows."""
        form = self._shards.form
        found: Array = np.empty((stop - start, *form.shape), form.dtype)
        for k in range(start // form.shard_size, -(-stop // form.shard_size)):
            rows = form.rows(k)
            low, high = max(start, rows.start), min(stop, rows.stop)
            if k not in self._open:
                self._open[k] = self._shards.rows(k)
            found[low - start : high - start] = self._open[k][low - rows.start : high - rows.start]
        return found


def read_samples(out: str | os.PathLike[str]) -> Samples:
    """The samples that `sample_to` has written, once all of them are there.

    The form of every file is looked at; `samples.damaged()` looks at every number.

    Args:
        out: The folder, or the file `x.npy`.

    Raises:
        FileNotFoundError: There are no samples.
        ValueError: Samples that are not finished, or files that are not as they were written.
    """
    path = Path(out)
    where = shards_of(path, Form(1, (), "<f4", 1))  # of any form: it is asked for its manifest alone
    about = _read(where)
    if about is None:
        raise FileNotFoundError(f"there are no samples in {path}, no {where.manifest.name}")
    form = Form(about["n"], tuple(about["shape"]), about["dtype"], about["shard_size"])
    shards = shards_of(path, form)
    if not about["complete"]:
        done = sum(form.size(k) for k in promised(shards))
        raise ValueError(
            f"{path} holds {done} of {form.n} samples, and the job is not finished: call the same sample_to once more, "
            "which goes on from there"
        )
    for k in range(form.count):
        if not shards.fits(k):
            raise ValueError(
                f"{shards.name(k)} in {path} is not as it was written: call the same sample_to once more, which draws "
                "it again"
            )
    return Samples(shards, about)


@contextmanager
def begun(shards: Shards, about: Mapping[str, Any]) -> Iterator[None]:
    """Makes a place ready for a job, new or to be gone on with, and holds it.

    Raises:
        ValueError: The place takes no samples, or holds something else, or those of another job.
        BlockingIOError: Another job is at work there.
    """
    shards.check()
    shards.home.mkdir(parents=True, exist_ok=True)
    with locked(shards.home):
        remove_drafts(shards.home)
        before = _read(shards)
        if before is None:
            write_files({shards.home / MANIFEST: _text(about, complete=False)})
        else:
            _check_fits(shards, before, about)
        shards.prepare()
        yield


def finish(shards: Shards, about: Mapping[str, Any], digests: Mapping[int, str]) -> None:
    """Writes the manifest of the whole array, and removes what was there for the work alone."""
    shards.finish(_text(about, complete=True, shards=[digests[k] for k in range(shards.form.count)]))


def promised(shards: Shards) -> dict[int, str]:
    """The digests of the shards that were finished: of all in a complete manifest, else of those with a mark.

    The digest of a mark that is damaged is `""`, which is that of nothing.
    """
    about = _read(shards)
    complete = about is not None and about["complete"]
    found: dict[int, str] = dict(enumerate(about["shards"])) if about is not None and complete else {}
    for k in range(shards.form.count):
        if (mark := shards.marked(k)) or (mark is not None and not complete):
            found[k] = mark  # of a shard that was drawn again, too
    return found


def _text(about: Mapping[str, Any], *, complete: bool, shards: Sequence[str] = ()) -> bytes:
    return sealed({"format": FORMAT, **about, "torch": torch.__version__, "complete": complete, "shards": list(shards)})


def _read(shards: Shards) -> dict[str, Any] | None:
    """The manifest at a place: that of the finished array, else that of the work; None without one.

    Raises:
        ValueError: One that is damaged, or of a format that is not known.
    """
    path = next((p for p in (shards.manifest, shards.home / MANIFEST) if p.exists()), None)
    if path is None:
        return None
    try:
        raw = bounded(path, MOST, f"a manifest has {MOST:,} at most")
        about = parsed(raw)
    except ValueError as error:
        raise ValueError(f"{path} is no manifest of samples ({error}): {_ANEW}") from error
    if not isinstance(about, dict) or not is_sealed(raw, about.get("digest")):
        raise ValueError(f"{path} is damaged, its text is not the one that was written: {_ANEW}")
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {about.get('format')!r}, and {FORMAT} is read here: take the newer version"
        )
    return about


def _check_fits(shards: Shards, before: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a place holds samples of another job, with what differs."""
    for name, value in about.items():
        if before.get(name) != value:
            raise ValueError(
                f"{shards.out} holds samples with {name} = {before.get(name)}, and {name} = {value} was asked for: ask "
                "for the same to go on, or give another place"
            )
