"""The progress bar of a run, on a stderr that may be gone."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from tqdm import tqdm


def bar_of(steps: int, done: int, shown: bool, desc: str = "training", unit: str = "step") -> Any:
    """A bar that counts steps, of which some are done."""
    return tqdm(total=steps, initial=done, disable=not shown, desc=desc, unit=unit, file=_Stderr())


class _Stderr:
    """stderr, for a progress bar: what cannot be written, since it was closed or its reader left, is dropped."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):  # a broken pipe, a closed file, no stderr at all
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
