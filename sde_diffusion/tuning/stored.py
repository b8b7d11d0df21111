"""A table as JSON: floats by their shortest exact decimal, tensors as their bytes, the whole under a digest."""

from __future__ import annotations

import base64
import binascii
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._files import write_files
from sde_diffusion._sealed import bounded, is_sealed, parsed, sealed
from sde_diffusion.tuning.components import Components
from sde_diffusion.tuning.made_for import MadeFor

FORMAT, VERSION = "sde_diffusion solver table", 1
MOST_BYTES = 256 * 2**20
"""How many bytes a file has at most: a table of 20 evaluations takes 6,000, 64 components of 3x64x64 pixels 8 MB."""
AGAIN = "save the table again where it is whole, or tune again"


def as_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a table as what JSON can hold."""
    parts, made_for = fields["components"], fields["made_for"]
    packed = parts and {
        "basis": _packed(parts.basis),
        "weights": [_packed(w) for w in parts.weights],
        "bias": [_packed(b) for b in parts.bias],
    }
    others = {"components": packed, "made_for": made_for and _named(made_for)}
    return {"format": FORMAT, "version": VERSION, **fields, **others}


def fields_of(about: object) -> dict[str, Any]:
    """The fields of the table that `as_json` wrote down."""
    if not isinstance(about, Mapping) or about.get("format") != FORMAT:
        raise ValueError(f"this is no {FORMAT}: give what SolverTable.to_dict or save wrote")
    version = about.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(
            f"the table has format version {reprlib.repr(version)}, and this is version {VERSION}: read it with the "
            "version of sde-diffusion that wrote it, or upgrade"
        )
    fields = {name: about[name] for name in ("times", "rows", "grid", "stops", "window", "finishes")}
    parts, made_for = about["components"], about["made_for"]
    if parts is not None:
        weights, bias = (tuple(map(_unpacked, parts[name])) for name in ("weights", "bias"))
        parts = Components(_unpacked(parts["basis"]), weights, bias)
    return {**fields, "components": parts, "made_for": None if made_for is None else _made_for(made_for)}


def write(about: Mapping[str, Any], path: Path) -> None:
    """Writes what `as_json` made to a file, sealed."""
    text = sealed(about)
    if len(text) > MOST_BYTES:
        raise ValueError(f"the table takes {len(text):,} bytes of {MOST_BYTES:,}: keep fewer components")
    write_files({path: text})


class Kind(NamedTuple):
    """A kind of file under a digest, in the words of its errors."""

    format: str
    version: int
    what: str  # "a table has"
    writer: str
    again: str


TABLE = Kind(FORMAT, VERSION, "a table has", "SolverTable.save", AGAIN)


def read(path: Path, kind: Kind = TABLE) -> Any:
    """Reads a sealed file as far as it can tell: another format or version is for who knows the entries to refuse."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give one that {kind.writer} wrote")
    raw = bounded(path, MOST_BYTES, f"{kind.what} {MOST_BYTES:,} at most: it is none that {kind.writer} wrote")
    try:
        about = parsed(raw)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): it was cut short or edited; {kind.again}") from error
    ours = isinstance(about, dict) and (about.get("format"), about.get("version")) == (kind.format, kind.version)
    if ours and not is_sealed(raw, about.get("digest")):
        raise ValueError(f"{path} is not as it was written: damaged, or edited, which it is not made for; {kind.again}")
    return about


def _named(made_for: MadeFor) -> dict[str, Any]:
    return {
        "sde": made_for.sde,
        "noise_range": [v if math.isfinite(v) else str(v) for v in made_for.noise_range],  # where alpha = 0
        "model": made_for.model,
        "fingerprint": made_for.fingerprint,
        "dtype": made_for.dtype,
        "shape": None if made_for.shape is None else list(made_for.shape),
    }


def _made_for(about: Mapping[str, Any]) -> MadeFor:
    words = [about[name] for name in ("sde", "model", "fingerprint", "dtype")]
    if not all(isinstance(word, str) for word in words):
        raise ValueError("made_for holds something else than text")
    low, high = (float(v) for v in about["noise_range"])
    if math.isnan(low) or math.isnan(high):
        raise ValueError("made_for holds a noise range that is no number")
    shape = about["shape"]
    shape = None if shape is None else tuple(int(n) for n in shape)
    return MadeFor(words[0], (low, high), words[1], words[2], words[3], shape)


def _packed(t: Tensor) -> dict[str, Any]:
    """A tensor as its shape and its bytes, float64 with the smallest first."""
    return {"shape": list(t.shape), "float64": base64.b64encode(t.numpy().astype("<f8").tobytes()).decode()}


def _unpacked(about: Mapping[str, Any]) -> Tensor:
    try:
        data = np.frombuffer(base64.b64decode(about["float64"], validate=True), dtype="<f8").astype(np.float64)
        return torch.from_numpy(data.reshape([int(n) for n in about["shape"]]))
    except binascii.Error as error:
        raise ValueError(f"a tensor is not base64 ({error})") from error
