"""The command line: `sde-diffusion train`, `distill`, `sample`, `tune`, `likelihood`, `demo`, `check`.

An error is one line, and status 2.

Of several processes, started by `torchrun` or `accelerate launch`, the first alone reports. A terminal that is gone,
or a pipe without a reader, ends nothing: what would be said is dropped.
"""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import distributed

from sde_diffusion._checks import SolverError
from sde_diffusion.cli import check as check_command
from sde_diffusion.cli import demo as demo_command
from sde_diffusion.cli import distill as distill_command
from sde_diffusion.cli import likelihood as likelihood_command
from sde_diffusion.cli import sample as sample_command
from sde_diffusion.cli import train as train_command
from sde_diffusion.cli import tune as tune_command
from sde_diffusion.cli._arguments import Parser
from sde_diffusion.cli.machine import rank
from sde_diffusion.cli.terminal.streams import steady
from sde_diffusion.cli.terminal.words import in_words
from sde_diffusion.training.run.record import TrainingInterrupted
from sde_diffusion.training.run.signals import name_in


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        0, or 1 where a check did not pass, or 2 after an error, or, as shells have it, 128 and the number of the
        signal that ended it: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, which a training outlives to save.
    """
    with steady(), warnings.catch_warnings(), _leaving_no_group():
        warnings.showwarning = _warn
        args = _parser().parse_args(argv)
        torch.set_num_threads(getattr(args, "threads", 1))
        try:
            with _ending_as_interrupted():
                status: int | None = args.run(args, _say)
        except (ValueError, TypeError, ImportError, OSError, SolverError) as error:
            _complain("error: " + in_words(str(error)))
            return 2
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            _complain("error: out of memory: take a smaller --batch-size or --batch, a smaller model or fewer samples")
            return 2
        except KeyboardInterrupt as stop:
            _complain("interrupted")
            return _status_of(stop)
    return status or 0


@contextmanager
def _leaving_no_group() -> Iterator[None]:
    """Takes the group of processes apart that a command has made: its threads may end a process as if it had failed."""
    before = distributed.is_available() and distributed.is_initialized()
    try:
        yield
    finally:
        if distributed.is_available() and distributed.is_initialized() and not before:
            distributed.destroy_process_group()


@contextmanager
def _ending_as_interrupted() -> Iterator[None]:
    """A run that is told to end is interrupted, and saves what it has; the process's own answer comes back after it."""
    before = None
    with suppress(ValueError):  # in another thread than the main one, where no signal comes
        before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _status_of(stop: KeyboardInterrupt) -> int:
    """The exit status of a process that a signal has ended."""
    name = stop.signal if isinstance(stop, TrainingInterrupted) else name_in(stop)
    return 128 + int(getattr(signal, name or "SIGINT"))


def _say(line: str) -> None:
    if rank() == 0:
        print(line, flush=True)


def _complain(line: str) -> None:
    other = f" (process {rank()})" if rank() else ""
    print(f"sde-diffusion{other}: {line}", file=sys.stderr, flush=True)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    if rank() == 0:
        _complain("warning: " + in_words(str(message)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="sde-diffusion",
        description="Generative modelling with stochastic differential equations: train, sample, or see it work.",
        epilog="`sde-diffusion COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=sys.modules["sde_diffusion"].__version__)
    group = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands = (train_command, distill_command, sample_command, tune_command, likelihood_command, demo_command)
    for command in (*commands, check_command):
        command.add_parser(group)
    return parser
