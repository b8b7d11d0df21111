"""The processes of a run, as `accelerate launch` or `torchrun` starts them; one, where nobody started more.

What one of them cannot go on with, all are told at the next meeting, so that none waits for one that is gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")
_STAYS = "what is finished stays: start the run again to go on"


@dataclass(frozen=True)
class Processes:
    """The number of this process, and how many there are.

    Args:
        rank: From 0; the first writes what is written once, and shows the progress.
        count: How many.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of_run(cls) -> Processes:
        """Those of this run; they are joined by `accelerate` where a launcher has started several that nobody joined.

        Raises:
            ImportError: There are several, and no `accelerate`.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            if int(os.environ.get("WORLD_SIZE", "1")) < 2:
                return cls()
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise ImportError(
                    "several processes are joined by accelerate, which is not installed: pip install "
                    "sde-diffusion[train], or start one process"
                ) from error
            PartialState()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def gather(self, thing: T) -> list[T]:
        """What each process has to tell, in their order; all meet here.

        Raises:
            RuntimeError: One of them is gone.
        """
        if self.count == 1:
            return [thing]
        found: list[Any] = [None] * self.count
        try:
            distributed.all_gather_object(found, thing)
        except RuntimeError as error:
            raise RuntimeError(
                f"process {self.rank} of {self.count} has lost another one, which was killed or has not answered in "
                f"time ({str(error).splitlines()[0]}); {_STAYS}"
            ) from error
        return found

    @contextmanager
    def together(self) -> Iterator[None]:
        """A piece of work without meetings, at whose end all meet: an error in one is an error in all.

        Raises:
            RuntimeError: Another process failed, with its number and the text of its error.
        """
        try:
            yield
        except Exception as error:
            self.gather(f"{type(error).__name__}: {error}")
            raise
        told = self.gather("")
        for rank, text in enumerate(told):
            if text:
                raise RuntimeError(
                    f"process {rank} of {self.count} has stopped, and so all do; {_STAYS}. It said: {text}"
                )

    def first(self, call: Callable[[], T]) -> T:
        """What a call answers that the first process alone makes."""
        found: Any = None
        with self.together():
            if self.rank == 0:
                found = call()
        answer: T = self.gather(found)[0]
        return answer
