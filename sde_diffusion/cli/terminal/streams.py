"""Standard output and error that may be closed, or lose their reader, without ending a run."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any


class Steady:
    """A text stream that drops what it is given once the stream behind it has failed, as None has from the start."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:
        """The encoding of the stream behind it."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Writes text, with what the encoding cannot say in backslashes, and returns its length; never fails."""
        if self._stream is not None:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            except (OSError, ValueError):
                self._drop()
        return len(text)

    def flush(self) -> None:
        """Flushes the stream behind it; never fails."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._drop()

    def isatty(self) -> bool:
        """Whether the stream behind it is a terminal."""
        return self._stream is not None and bool(self._stream.isatty())

    def fileno(self) -> int:
        """The descriptor of the stream behind it."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return int(self._stream.fileno())

    def _drop(self) -> None:
        """Leads the descriptor nowhere, too: what is still buffered is flushed when the interpreter ends."""
        stream, self._stream = self._stream, None
        with suppress(AttributeError, OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, stream.fileno())
            finally:
                os.close(nowhere)


@contextmanager
def steady() -> Iterator[None]:
    """A context in which standard output and error may be lost."""
    _occupy()
    with redirect_stdout(Steady(sys.stdout)) as out, redirect_stderr(Steady(sys.stderr)) as err:
        try:
            yield
        finally:
            out.flush()
            err.flush()


def _occupy() -> None:
    """Opens closed descriptors below 3 on nothing: a file would take one, and receive what libraries print there."""
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(fd)
