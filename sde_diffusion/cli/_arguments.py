"""How the command line reads its arguments: numbers within limits, and errors of one line.

A module of a command owns its parser and its run: `add_parser(group)` adds it to the commands by `add_command`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from sde_diffusion.cli.machine import rank

Say = Callable[[str], None]
"""A function that prints a line of the report."""
Run = Callable[[argparse.Namespace, Say], int | None]
"""A function that does what a command is asked for, and returns its exit status, None for 0."""

MOST_STEPS, LARGEST_BATCH = 10**7, 10**7
"""The largest `--steps` of a training and the largest `--batch-size`; memory may set a lower limit."""
MOST_THREADS = max(256, os.cpu_count() or 1)
"""The largest `--threads`: more cannot be started on some systems, which ends the process without a word."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, too, from the first of several processes, which all have the same words."""

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.split())
        if rank():
            self.exit(2)
        self.exit(2, f"{self.prog}: error: {text if len(text) < 400 else text[:400] + ' ...'}\n")


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that shows a default where there is one, and examples as they were written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def add_command(
    group: Any, name: str, run: Run, what: str, *, shared: bool = True, **more: Any
) -> argparse.ArgumentParser:
    """Adds a command with the options that all of them have, `--seed` and `--threads`.

    Args:
        group: The commands, as `add_subparsers` of argparse returns them.
        name: The name of the command.
        run: What it does.
        what: A sentence that says so.
        shared: Whether it has these options; a command without has its own.
        more: Further arguments of the parser, such as its `epilog`.
    """
    command: argparse.ArgumentParser = group.add_parser(
        name, help=what[0].lower() + what[1:], description=what, formatter_class=Help, **more
    )
    command.set_defaults(run=run)
    if not shared:
        return command
    command.add_argument(
        "--seed", type=count(2**32 - 1, least=0), default=0, metavar="K", help="seed of everything random, below 2**32"
    )
    command.add_argument(
        "--threads", type=count(MOST_THREADS), default=1, metavar="N", help=f"processor threads, at most {MOST_THREADS}"
    )
    return command


def count(most: int | None = None, least: int = 1) -> Callable[[str], int]:
    """Makes a reader of whole numbers within limits, which its error names."""

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


def budgets(text: str, *, most: int | None = None, least: int = 1) -> list[int]:
    """Reads numbers of evaluations with commas between."""
    read = count(most, least)
    try:
        return [read(word) for word in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}: numbers of evaluations go with commas between, 5,8,12") from None


def path(text: str) -> Path:
    """Reads a path; an empty one, such as that of a variable that is not set, would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return Path(text)
