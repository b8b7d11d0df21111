"""Several processes of one run, in a test: forked, so that none imports anything, and joined by gloo."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from sde_diffusion.cli import main as cli


def fork(call: Callable[[], object], error: Path | None = None) -> int:
    """Runs a call in a process of its own, which ends with 0, or with 1 and its error in a file; returns its number."""
    if child := os.fork():
        return child
    code = 1
    try:
        call()
        code = 0
    except BaseException:  # noqa: BLE001 - which is read by the test
        if error is not None:
            error.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def wait(child: int, seconds: float = 60.0) -> int:
    """The exit code of a process, negative for the signal that ended it; one that takes longer is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"a process hangs after {seconds} s")


def called_as(rank: int, commands: Iterable[Sequence[object]]) -> list[int]:
    """What commands answer, one after the other, in one of two processes that are joined already."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    return [cli.main(list(map(str, words))) for words in commands]


def run_processes(count: int, call: Callable[[int], Any], folder: Path) -> list[Any]:
    """What a call with the rank answers in each of several joined processes: a value, an error as text, or a signal."""
    folder.mkdir()

    def one(rank: int) -> None:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
        torch.save(call(rank), folder / f"{rank}.pt")

    children = [fork(lambda rank=rank: one(rank), folder / f"{rank}.txt") for rank in range(count)]  # type: ignore[misc] # a default binds the rank
    codes = [wait(child) for child in children]
    return [
        torch.load(folder / f"{rank}.pt", weights_only=False)
        if code == 0
        else (folder / f"{rank}.txt").read_text()
        if code == 1
        else code
        for rank, code in enumerate(codes)
    ]
