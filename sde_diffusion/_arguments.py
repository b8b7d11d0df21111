"""How the command line reads its arguments: numbers within limits, and errors of one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Whose errors are one line, too."""

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.split())
        self.exit(2, f"{self.prog}: error: {text if len(text) < 400 else text[:400] + ' ...'}\n")


def count(most: int | None = None, least: int = 1) -> Callable[[str], int]:
    """Reads a whole number within limits, which an error names."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"wanted a whole number, got {text[:40]!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most:,}, got {text[:40]}")
        return value

    return read


def path(text: str) -> Path:
    """Reads a path; an empty one, such as that of a variable that is not set, would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return Path(text)
