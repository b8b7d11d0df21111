"""What a check hands back: claims, measured figures, bounds and verdicts, in a table, as JSON, as a picture."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sde_diffusion.testing._picture import Curve, draw

Measured = float | str


class ConformanceError(AssertionError):
    """A check that did not pass; the message holds the rows that failed."""


@dataclass(frozen=True)
class Entry:
    """One row of a report.

    Args:
        claim: What should hold, as a sentence.
        measured: The figure found, or a word where there is none.
        bound: What it is held against, with its sign, such as `<= 1e-05`.
        passed: Whether it holds.
        required: Whether a report passes only if this row does; a row that is not is advice.
        note: What to look for where it does not hold.
    """

    claim: str
    measured: Measured
    bound: str
    passed: bool
    required: bool = True
    note: str = ""

    @property
    def verdict(self) -> str:
        """`ok`, `warn` or `FAIL`."""
        return "ok" if self.passed else "FAIL" if self.required else "warn"


@dataclass(frozen=True)
class Report:
    """The rows of one check. `print(report)` shows the table.

    Args:
        subject: What was checked, as the call that checks it.
        entries: The rows.
        curves: What was measured along the way.
        seconds: How long it took.
    """

    subject: str
    entries: tuple[Entry, ...]
    curves: tuple[Curve, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every required row holds."""
        return not self.failures

    @property
    def failures(self) -> tuple[Entry, ...]:
        """The required rows that do not hold."""
        return tuple(e for e in self.entries if e.verdict == "FAIL")

    @property
    def warnings(self) -> tuple[Entry, ...]:
        """The rows of advice that do not hold."""
        return tuple(e for e in self.entries if e.verdict == "warn")

    def __str__(self) -> str:
        n, bad, odd = len(self.entries), len(self.failures), len(self.warnings)
        verdict = "passed" if self.passed else "FAILED"
        tail = f", {bad} failed" * bool(bad) + f", {odd} to look at" * bool(odd)
        head = f"{self.subject}\n{verdict}: {n - bad - odd} of {n} claims hold{tail} ({self.seconds:.1f} s)"
        return f"{head}\n\n{table(self.entries)}"

    def raise_for_failures(self) -> Report:
        """Returns the report if it passed.

        Raises:
            ConformanceError: With the rows that failed.
        """
        if not self.passed:
            told = f"{self.subject}: {len(self.failures)} of {len(self.entries)} claims do not hold"
            raise ConformanceError(f"{told}\n\n{table(self.failures)}")
        return self

    def as_dict(self) -> dict[str, Any]:
        """Returns everything in types that JSON knows, infinities and NaN as words."""
        found = {**asdict(self), "passed": self.passed}
        plain: dict[str, Any] = _plain(found)
        return plain

    def plot(self, path: str | Path) -> None:
        """Draws the measured curves.

        Args:
            path: A .png file to write.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: Nothing was measured that could be drawn.
        """
        draw(self.subject, self.curves, path)


def table(entries: tuple[Entry, ...]) -> str:
    """Writes rows in aligned columns, with notes below those that do not hold."""
    cells = [(e.verdict, e.claim, _figure(e.measured), e.bound) for e in entries]
    a, b, c = (max((len(row[i]) for row in cells), default=0) for i in range(3))
    lines = []
    for (verdict, claim, measured, bound), entry in zip(cells, entries, strict=True):
        lines.append(f"{verdict:<{a}}  {claim:<{b}}  {measured:>{c}}  {bound}".rstrip())
        if entry.note and not entry.passed:
            lines.append(" " * (a + 4) + entry.note)
    return "\n".join(lines)


def described(thing: object) -> str:
    """Says what was handed over in place of an instance."""
    return (
        f"the class {thing.__name__}: give an instance, {thing.__name__}()" if isinstance(thing, type) else repr(thing)
    )


def _figure(value: Measured) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


class Checklist:
    """Collects the rows of a report. What raises on the way is a row that failed, not the end of the check.

    Args:
        subject: What is checked, as the call that checks it.
    """

    def __init__(self, subject: str) -> None:
        self.subject, self.began = subject, time.perf_counter()
        self.entries: list[Entry] = []
        self.curves: list[Curve] = []

    def add(self, entry: Entry) -> None:
        """Adds a row."""
        self.entries.append(entry)

    def at_most(
        self, claim: str, bound: float, measure: Callable[[], float], *, required: bool = True, note: str = ""
    ) -> None:
        """Adds a row that holds if `measure()` is at most `bound`."""
        self._compare(claim, "<=", bound, measure, required, note)

    def at_least(
        self, claim: str, bound: float, measure: Callable[[], float], *, required: bool = True, note: str = ""
    ) -> None:
        """Adds a row that holds if `measure()` is at least `bound`."""
        self._compare(claim, ">=", bound, measure, required, note)

    def holds(self, claim: str, complaint: Callable[[], str], *, required: bool = True) -> None:
        """Adds a row that holds if `complaint()` is empty."""
        try:
            found = complaint()
        except Exception as error:  # noqa: BLE001 - the code under test may raise anything
            found = _told(error)
        self.add(Entry(claim, "no" if found else "yes", "", not found, required, found))

    def _compare(
        self, claim: str, sign: str, bound: float, measure: Callable[[], float], required: bool, note: str
    ) -> None:
        limit = f"{sign} {bound:.3g}"
        try:
            value = float(measure())
        except Exception as error:  # noqa: BLE001 - the code under test may raise anything
            self.add(Entry(claim, "raised", limit, False, required, _told(error)))
            return
        passed = value <= bound if sign == "<=" else value >= bound
        self.add(Entry(claim, value, limit, passed, required, "" if passed else note))

    def report(self) -> Report:
        """Returns the rows so far, as a report."""
        return Report(self.subject, tuple(self.entries), tuple(self.curves), time.perf_counter() - self.began)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: " + " ".join(str(error).split())
