"""Tensors and what they are, in a folder, which is in its old state or in its new one and never between the two.

`name.json`, the *manifest*, is sealed by its own digest and names one file of tensors, `name-<digest>.safetensors`, by
the digest of its bytes. The tensors are written first, under a name that no manifest knows; then the manifest, under
another name, and renamed: from that instant on the folder is in its new state. All of it is on the disk before it is
renamed. What no manifest names is removed at the next writing.

With `keep`, the manifests before it stay as `name.<number>.json`, with their tensors: where the newest is damaged, the
newest sound one is read, and a `DamagedWarning` says so. Neither kind of file can hold code. A manifest is held to its
digest, and the tensors to theirs, before any tensor is made.
"""

from __future__ import annotations

import os
import re
import secrets
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_seed
from sde_diffusion._files import locked, sync, sync_folder
from sde_diffusion._sealed import sealed
from sde_diffusion.training.checkpoints.manifests import (
    MOST_MANIFEST,
    RESERVED,
    entry_of,
    files_of,
    named_by,
    newest,
    older,
    read_manifest,
)
from sde_diffusion.training.checkpoints.tensor_file import (
    digest_of,
    header_of,
    open_tensors,
    safetensors,
    write_tensors,
)

__all__ = ["DamagedWarning", "Found", "check_place", "files_of", "find", "locked", "read", "write"]

DRAFT = ".sde-store-"
"""How the names of files begin that are being written. One that is there while nobody writes is a dead writer's."""
TRIES = 20
"""How often a folder is looked at again that was written to while it was read."""


class DamagedWarning(UserWarning):
    """What was saved is damaged; the message names it, and says what is used or done in its place."""


@dataclass(frozen=True)
class Found:
    """What a sound manifest says, and its tensors, not read yet.

    Attributes:
        path: The manifest.
        about: What it says.
        shapes: The shape of each tensor by its name.
    """

    path: Path
    about: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    _file: Any = field(repr=False)

    def tensors(self) -> dict[str, Tensor]:
        """Reads the tensors, on the CPU.

        Raises:
            ValueError: A dtype that torch does not have.
        """
        with torch.device("cpu"):
            try:
                return {name: self._file.get_tensor(name).clone() for name in self.shapes}  # the file may go meanwhile
            except (AttributeError, safetensors().SafetensorError) as error:
                raise ValueError(f"the tensors of {self.path} cannot be read ({error}): save them again") from error


# --- writing


def write(
    folder: str | Path, name: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor], *, keep: int = 0
) -> None:
    """Writes tensors and what they are to a folder, which is made if need be, in place of those under the same name.

    Args:
        folder: The folder.
        name: What they are called in it: a word, `model` or `state`.
        about: Anything JSON can hold, but for the entries `tensors` and `digest`.
        tensors: Tensors by name, on any device. They are written one after the other, without a copy of all.
        keep: How many of those before it stay.

    Raises:
        TypeError: `about` is not JSON, or a tensor has a dtype that safetensors does not have.
        ValueError: Another `name` or `keep`, or an `about` that is too long to be read again.
        BlockingIOError: Another process writes to the folder.
        OSError: The folder cannot be written to; what was there before is left as it was.
    """
    folder = Path(folder)
    header = header_of(tensors)
    _check(name, about, keep)
    check_place(folder, name)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        drafts = [folder / f"{DRAFT}{secrets.token_hex(8)}" for _ in range(3)]
        try:
            _write(folder, name, about, header, tensors, drafts, keep)
        finally:
            for draft in drafts:
                draft.unlink(missing_ok=True)
        _prune(folder, name, keep)


def check_place(folder: str | Path, name: str) -> None:
    """Looks that nothing of another kind is in the way of what `write` writes.

    Raises:
        OSError: A file in place of the folder, or a folder in place of a file.
    """
    if (folder := Path(folder)).exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, where a folder is to go: give another place")
    for path in files_of(folder, name):
        if path.is_dir():
            raise IsADirectoryError(f"{folder} holds a folder {path.name}, where a file is to go: give another place")


def _write(
    folder: Path,
    name: str,
    about: Mapping[str, Any],
    header: bytes,
    tensors: Mapping[str, Tensor],
    drafts: list[Path],
    keep: int,
) -> None:
    entry = write_tensors(drafts[0], header, tensors)
    file = folder / f"{name}-{entry['sha256'][:16]}.safetensors"
    before, serial = newest(folder, name)
    text = sealed({**about, "tensors": {"file": file.name, **entry, "serial": serial + 1}})
    is_new = not file.exists()
    os.replace(drafts[0], file)
    try:
        if keep and before is not None:
            _place(before, drafts[1], folder / f"{name}.{serial}.json")
        sync_folder(folder)
        _place(text, drafts[2], folder / f"{name}.json")
    except BaseException:
        kept = [path for _, path in older(folder, name)]
        if is_new and file.name not in named_by([folder / f"{name}.json", *kept]):
            file.unlink(missing_ok=True)
        raise
    sync_folder(folder)


def _check(name: object, about: Mapping[str, Any], keep: int) -> None:
    if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"name must be a word such as 'model', of small letters and digits, got {name!r}")
    if check_seed(keep, "keep") < 0:
        raise ValueError(f"keep must be at least 0, got {keep}")
    if taken := {"tensors", "digest"} & set(about):
        raise ValueError(f"about has the entry {min(taken)!r}, which is the store's own: give it another name")
    size = len(sealed(about)) + RESERVED
    if size > MOST_MANIFEST:
        raise ValueError(f"the description takes {size:,} bytes of {MOST_MANIFEST:,}: keep less in it")


def _place(text: bytes, draft: Path, path: Path) -> None:
    with open(draft, "xb") as file:
        file.write(text)
        sync(file)
    os.replace(draft, path)


def _prune(folder: Path, name: str, keep: int) -> None:
    """Removes the manifests that are not to be kept, then what no manifest names, and the drafts of dead writers."""
    before = [path for _, path in older(folder, name)]
    with suppress(OSError):  # all is written, and what is left now goes the next time
        for path in before[keep:]:
            path.unlink(missing_ok=True)
        named = named_by([folder / f"{name}.json", *before[:keep]])
        for path in files_of(folder, name):
            if path.suffix == ".safetensors" and path.name not in named:
                path.unlink(missing_ok=True)
        for path in folder.glob(f"{DRAFT}*"):
            path.unlink(missing_ok=True)


# --- reading


def read(folder: str | Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads what `write` wrote.

    Returns:
        What the tensors are, and the tensors, on the CPU.

    Raises:
        FileNotFoundError: Nothing was written under this name, or a file is missing.
        ValueError: Damaged or edited files, and no sound ones before them.
        ImportError: safetensors is not installed.
    """
    found = find(folder, name)
    return found.about, found.tensors()


def find(folder: str | Path, name: str, *, before: bool = True) -> Found:
    """Finds what `read` would read, and holds manifest and tensors to their digests; no tensor is made yet.

    A folder that is written to meanwhile is found in its old state or in its new one.

    Args:
        folder: The folder.
        name: What was written.
        before: Whether the newest sound one of those that were kept may take its place where it is damaged.
    """
    path = Path(folder) / f"{name}.json"
    damage: Exception
    for _ in range(TRIES):
        seen = _stamp(path)
        try:
            return _sound(path, name)
        except (OSError, ValueError) as error:
            damage = error
        if _stamp(path) == seen:
            break
    if before and not isinstance(damage, PermissionError):
        for _, kept in older(path.parent, name):
            with suppress(OSError, ValueError):
                found = _sound(kept, name)
                at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(kept.stat().st_mtime))
                warnings.warn(f"{damage}. The one before it is used: {kept}, of {at}", DamagedWarning, stacklevel=3)
                return found
    raise damage


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


def _sound(path: Path, name: str) -> Found:
    """Reads a manifest, and looks at its tensors.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: One of them is damaged.
    """
    _, about = read_manifest(path)
    entry = entry_of(about, name)
    file = path.parent / str(entry.get("file"))
    if not file.is_file():
        raise FileNotFoundError(f"no {file.name} in {path.parent}, which {path.name} describes")
    other = (
        f"{file} is not the file that {path.name} describes: cut short while copying, or from another checkpoint. "
        "Copy the folder again as a whole, or save it again"
    )
    if entry.get("bytes", size := file.stat().st_size) != size or digest_of(file) != entry.get("sha256"):
        raise ValueError(other)
    try:
        opened, shapes = open_tensors(file)
    except ValueError as error:
        raise ValueError(f"{other} ({error})") from error
    return Found(path, {key: value for key, value in about.items() if key not in ("tensors", "digest")}, shapes, opened)
