"""Ctrl-C, a termination signal and the end of a terminal, held until the step is done."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""What ends a run: Ctrl-C, `kill`, and a terminal that is closed, where the system has that."""


def name_in(error: BaseException) -> str | None:
    """The name of the signal that an interruption was raised for with its name, `KeyboardInterrupt("SIGTERM")`."""
    said = str(error)
    return said if said in [number.name for number in ENDING] else None


class Signals:
    """While it is entered, the first SIGINT, SIGTERM or SIGHUP is noted, and what comes after it is as ever.

    Only the main thread of a process can have it so; in another one nothing is changed.

    Args:
        hold: Whether anything is to be held.

    Attributes:
        came: The name of the signal that came; else None.
    """

    def __init__(self, hold: bool) -> None:
        self.came: str | None = None
        self._hold = hold and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if self._hold:
            for number in ENDING:
                if number != signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # as under nohup
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = signal.Signals(number).name
        before = self._before.get(number)
        self._restore()
        if self.came == "SIGHUP":  # which both the system and the shell send, the second while the run is saved
            self._before = {number: before}
            signal.signal(number, signal.SIG_IGN)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()
