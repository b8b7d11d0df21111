"""How one option of `sde-diffusion train` is given from outside: its flag, its help, and how its word is read."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sde_diffusion.cli._arguments import path
from sde_diffusion.cli.plan import toml

Read = Callable[[str], Any]


@dataclass(frozen=True)
class Option:
    """How a field of `Plan` is given from outside.

    Args:
        about: Its help.
        read: Makes the value of a word.
        metavar: What stands for its value in the help.
        choices: The words that it may be, where these are all.
        names: What it is called, without the dashes; as the field is where empty.
        many: Whether it may be given several times.
        flag: Whether it has no value, and is there or not.
        bare: The value of the flag without a word, where it may have one or none.
    """

    about: str
    read: Read = str
    metavar: str | None = None
    choices: Sequence[str] | None = None
    names: tuple[str, ...] = ()
    many: bool = False
    flag: bool = False
    bare: Any = None


def number(text: str) -> float:
    """Reads a number, and names it in an error."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted a number, got {text[:40]!r}") from None


def arguments(text: str) -> dict[str, Any]:
    """Reads arguments of a constructor, `layers=6, multipliers=[1, 2]`, as TOML has them in an inline table."""
    try:
        found: dict[str, Any] = toml.loads(f"given = {{{text}}}")["given"]
    except (ValueError, KeyError) as error:
        raise argparse.ArgumentTypeError(
            f"wanted arguments such as 'layers=6, multipliers=[1, 2]', words in quotes, got {text[:80]!r} ({error})"
        ) from None
    return found


def held_out(text: str) -> float | Path | Literal["auto"]:
    """Reads the part of the data that is kept out of the training, or the file of other data."""
    if text == "auto":
        return "auto"
    try:
        value = float(text)
    except ValueError:
        return path(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"wanted a part of the data, 0 <= part < 1, auto, or a file, got {text}")
    return value


def device(text: str) -> str:
    """Reads the name of a device."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"wanted auto, cpu, cuda, cuda:1 or mps, got {text[:40]!r}")
    return text


def word(text: str) -> str:
    """Reads a word that is not empty."""
    return str(path(text))


def codec(text: str) -> Path | Literal["new"]:
    """Reads whether a codec is trained, `new`, or the folder of one that is there."""
    return "new" if text == "new" else path(text)


def factor(text: str) -> int:
    """Reads by how much a codec shortens an axis."""
    if text not in ("2", "4", "8", "16"):
        raise argparse.ArgumentTypeError(f"wanted 2, 4, 8 or 16, got {text[:40]!r}")
    return int(text)
