"""Configurations as TOML, read and written."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def loads(text: str) -> dict[str, Any]:
    """What a text of TOML says.

    Raises:
        ValueError: It is none; the message says where.
    """
    found: dict[str, Any] = tomllib.loads(text)
    return found


def value(of: Any) -> str:
    """A number, a word, a flag, a list or a mapping as TOML has it on the right of a sign of equality."""
    if isinstance(of, bool):
        return "true" if of else "false"
    if isinstance(of, str):
        return json.dumps(of, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(of, Mapping):
        return "{" + ", ".join(f"{value(str(key))} = {value(part)}" for key, part in of.items()) + "}"
    if isinstance(of, list | tuple):
        return "[" + ", ".join(map(value, of)) + "]"
    return repr(of)
