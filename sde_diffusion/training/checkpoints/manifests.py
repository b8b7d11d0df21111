"""Manifests: what lies in a folder under a name, as sealed JSON; which of them there are, and what they name.

`name.json` is the newest, `name.<number>.json` are those kept from before it. Each names its tensors in the entry
`tensors`: their file, its digest and its size, and the number of the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sde_diffusion._sealed import bounded, is_sealed, parsed

__all__ = ["entry_of", "files_of", "named_by", "newest", "older", "read_manifest"]

MOST_MANIFEST = 16 * 2**20
"""How many bytes a manifest has at most: a beta table of 1,000 levels takes 35,000."""
RESERVED = 512
"""How many of them are for what is known of the tensors when they are written."""


def read_manifest(path: Path) -> tuple[bytes, dict[str, Any]]:
    """A manifest as it is written and what it says; `ValueError` where it is not as it was written."""
    what = f"a description has {MOST_MANIFEST:,} at most: it is none that was written here"
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}")
    raw = bounded(path, MOST_MANIFEST, what)
    try:
        about = parsed(raw)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): it was cut short or edited; save it again") from error
    if not isinstance(about, dict):
        raise ValueError(f"{path} does not describe anything that was saved here")
    first = about.get("version") == 1 and "digest" not in about  # of checkpoints, which had no digest
    if not first and not is_sealed(raw, about.get("digest")):
        raise ValueError(
            f"{path} is not as it was written: damaged, or edited, which it is not made for. Copy the folder again, or "
            "load it from where it is whole and save it again"
        )
    return raw, about


def entry_of(about: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What a manifest says of its tensors; in the first two versions of checkpoints that was less."""
    entry = about.get("tensors", {"file": f"{name}.safetensors", "sha256": about.get("sha256")})
    entry = entry if isinstance(entry, Mapping) else {}
    file, serial = str(entry.get("file")), entry.get("serial", 0)
    is_number = type(serial) is int and 0 <= serial < 10**15
    if not re.fullmatch(rf"{name}(-[0-9a-f]{{16}})?\.safetensors", file) or not is_number:
        raise ValueError(f"the description of {name!r} has no sound entry 'tensors': it was edited; save it again")
    return entry


def newest(folder: Path, name: str) -> tuple[bytes | None, int]:
    """The manifest that is there, if it is sound, and the number of the last one that is known of."""
    kept = [number for number, _ in older(folder, name)]
    try:
        raw, about = read_manifest(folder / f"{name}.json")
        return raw, int(entry_of(about, name).get("serial", 0))
    except (OSError, ValueError):
        return None, max(kept, default=0)


def older(folder: Path, name: str) -> list[tuple[int, Path]]:
    """The manifests that were kept and their numbers, newest first."""
    inside = files_of(folder, name)
    found = [(re.fullmatch(rf"{name}\.(\d{{1,18}})\.json", p.name), p) for p in inside]
    return sorted(((int(match[1]), p) for match, p in found if match), reverse=True)


def named_by(manifests: Iterable[Path]) -> set[str]:
    """The files of tensors that manifests name."""
    found = set()
    for path in manifests:
        with suppress(OSError, ValueError):
            found.add(str(entry_of(read_manifest(path)[1], path.name.partition(".")[0]).get("file")))
    return found


def files_of(folder: str | Path, name: str) -> list[Path]:
    """The files, or whatever else, in a folder that are called as those of `name` are, manifests first."""
    pattern = rf"{name}(\.\d{{1,18}})?\.json|{name}(-[0-9a-f]{{16}})?\.safetensors"
    try:
        inside = [p for p in Path(folder).iterdir() if re.fullmatch(pattern, p.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(inside, key=lambda p: (p.suffix, p.name))
