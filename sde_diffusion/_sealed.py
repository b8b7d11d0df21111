"""Descriptions as JSON that notices a single flipped bit: written with the digest of their own text, and held to it.

The digest guards against accidents. Against files made to harm, what is read is bounded before it is parsed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sealed(about: Mapping[str, Any]) -> bytes:
    """Writes a description as JSON, with the digest of its own text as the last entry.

    Raises:
        TypeError: Something that is not JSON, a number that is not finite among it.
    """
    try:
        bare = json.dumps({**about, "digest": ""}, indent=2, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"not JSON: {error}") from error
    return f'{bare[:-3]}{hashlib.sha256(bare.encode()).hexdigest()}"\n}}'.encode()


def is_sealed(raw: bytes, digest: object) -> bool:
    """Whether the text is the one that was sealed, to the last bit."""
    if not isinstance(digest, str) or len(digest) != 64 or not digest.isascii():
        return False
    end = f'{digest}"\n}}'.encode()
    return raw.endswith(end) and hashlib.sha256(raw[: -len(end)] + b'"\n}').hexdigest() == digest


def parsed(raw: bytes) -> Any:
    """What a text of JSON says; `ValueError` for anything else, NaN and infinities among it."""
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def bounded(path: Path, most: int, what: str) -> bytes:
    """The bytes of a file; `ValueError` if it has more than `most`, `what` being written above it."""
    if (size := path.stat().st_size) > most:
        raise ValueError(f"{path} has {size:,} bytes, and {what}")
    return path.read_bytes()


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_constant(text)
