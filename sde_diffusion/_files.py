"""Files and folders for results: looked at before the work, written whole or not at all, elsewhere if that fails."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

BLOCK = 4096
"""How many bytes are written, and removed again, to see whether a place takes them."""

LOCK = ".lock"
_held: dict[Path, tuple[int, int]] = {}


def write_files(files: Mapping[Path, bytes]) -> None:
    """Writes every file under another name, to the disk, then renames them one after the other.

    Raises:
        OSError: A file cannot be written; those there before are left as they were.
    """
    drafts = {path: _draft(path.parent) for path in files}
    try:
        for path, data in files.items():
            with open(drafts[path], "xb") as file:
                file.write(data)
                sync(file)
        for path, draft in drafts.items():
            os.replace(draft, path)
        for folder in {path.parent for path in files}:
            sync_folder(folder)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def sync(file: IO[bytes]) -> None:
    """Returns when all that was written to a file is on the disk: a rename may get there before it else."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on the disk, where the file system can do that."""
    if os.name == "nt":  # which opens no folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of some network file systems
            raise
    finally:
        os.close(handle)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keeps all other processes and threads from writing to a folder; in the same thread it may be taken again.

    The lock ends with the process, however that ends.

    Raises:
        BlockingIOError: Another process, or thread, has it.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder).resolve()
    me = (os.getpid(), threading.get_ident())
    if _held.get(folder) == me:
        yield
        return
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            f"another process writes to {folder}: wait until it has ended, or give another folder"
        ) from error
    try:
        _held[folder] = me
        yield
    finally:
        _held.pop(folder, None)
        try:
            if isinstance(lock, FileLock):  # while it is ours. Where there are no locks, it is another kind
                with suppress(OSError):
                    (folder / LOCK).unlink()
        finally:
            lock.release()


def remove_drafts(folder: Path) -> None:
    """Removes what writing that was killed has left in a folder; only for one to which nobody else writes."""
    for draft in folder.glob(".sde-*-*"):
        draft.unlink(missing_ok=True)


def check_file(path: Path, option: str, *, size: int = 0) -> None:
    """Raises `ValueError` unless a file can be written at `path`, which is left as it was.

    A link is refused: what is written would replace it, or go where it points. A file already there is no error.

    Args:
        path: The file.
        option: What the caller calls it, `--out` for instance.
        size: Bytes that it will have, if known.
    """
    with _refusing(path, option):
        if not path.absolute().parent.is_dir():
            raise ValueError(f"{option}: there is no folder {path.parent}")
        _check_kind(path, option, stat.S_ISREG, "file")
        _try(path.absolute().parent, size)


def check_apart(out: Path, option: str, read: Iterable[Path]) -> None:
    """Raises `ValueError` if a result would replace one of the files that it is made from."""
    for path in read:
        if out.exists() and path.exists() and out.samefile(path):
            raise ValueError(f"{option} {out} is a file that is read here, and would be replaced: give another")


def check_folder(path: Path, option: str, *, size: int = 0) -> None:
    """Raises `ValueError` unless `path` is a folder, or can be made one, that takes files; it is left as it was."""
    with _refusing(path, option):
        _check_kind(path, option, stat.S_ISDIR, "folder")
        made = [p for p in (path, *path.parents) if not p.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            _try(path, size)
        finally:
            remove_empty(made)


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes the folders that are there and empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def keep(write: Callable[[Path], object], out: Path) -> None:
    """Writes a result to `out`; if that fails, to a new name in the current folder or the one for temporary files.

    Args:
        write: Called with the path of the file or folder to write.
        out: Where the result was to go.

    Raises:
        OSError: It did not go there; the message says where it is instead.
    """
    try:
        write(out)
    except OSError as error:
        why, other = error.strerror or str(error), _written_elsewhere(write, out)
        if other is not None:
            raise OSError(f"{out} cannot be written ({why}): it is in {other} instead") from error
        raise OSError(f"{out} cannot be written ({why}), nor can the folder for temporary files: it is lost") from error


def _written_elsewhere(write: Callable[[Path], object], out: Path) -> Path | None:
    """Writes a result to the first other place that takes it, and returns that place, or None where none does."""
    for other in _elsewhere(out):
        try:
            write(other)
        except OSError:
            shutil.rmtree(other, ignore_errors=True)  # what of a folder there is
            continue
        return other
    return None


def beside(out: Path, what: str) -> Path:
    """Returns a path next to `out`, its name followed by `what`, where there is nothing yet."""
    out = out.absolute()
    names = (f"{out.name}-{what}" + (f"-{i}" if i else "") for i in count())
    return next(path for name in names if not os.path.lexists(path := out.parent / name))


def _draft(folder: Path) -> Path:
    """Returns a new path in a folder, whose name is short however long that of the file is."""
    return folder / f".sde-{os.getpid()}-{secrets.token_hex(4)}"


def _elsewhere(out: Path) -> Iterator[Path]:
    name = f"sde-diffusion-{secrets.token_hex(4)}{out.suffix[:16]}"
    for place in (Path.cwd, tempfile.gettempdir):
        with suppress(OSError):
            yield Path(place()) / name


def _check_kind(path: Path, option: str, wanted: Callable[[int], bool], what: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise ValueError(f"{option} {path} is a link to {path.readlink()}: give that place itself, or remove the link")
    if not wanted(mode):
        found = "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "device, pipe or socket"
        raise ValueError(f"{option} {path} is a {found}: give a {what}")


def _try(folder: Path, size: int) -> None:
    """Writes a few bytes to a folder, and removes them: permissions tell neither of every user nor of a full disk."""
    draft = _draft(folder)
    try:
        with open(draft, "xb") as file:
            file.write(bytes(BLOCK))
    finally:
        draft.unlink(missing_ok=True)
    space = shutil.disk_usage(folder)
    if space.total and space.free < size:
        raise OSError(f"{size / 2**30:.3g} GiB are needed and {space.free / 2**30:.3g} GiB are free")


@contextmanager
def _refusing(path: Path, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{option} {path} cannot be written ({error.strerror or error}): give another place, or make room there"
        ) from error
