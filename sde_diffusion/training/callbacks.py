"""What is told of a run of `train` while it goes: events, handed to callbacks, all of the form `callback(event)`.

The kinds, in the order in which a run has them: `start`; `step` after every step; `validation` and `checkpoint` after
those that had one, in this order; `end`, however the run ended. A callback may add numbers to `event.metrics`, which
the callbacks after it find there. `StopTraining`, raised in one, ends the run in order; any other error ends it too,
with what was learnt kept.

Of several processes, the first alone calls them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sde_diffusion._checks import check_count, check_flag
from sde_diffusion.data.scalings import Scaling
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.training._input import warn

HEAD = b'{"kind"'
"""How a line of the metrics begins."""
KINDS = ("start", "step", "validation", "checkpoint", "end")


@dataclass(frozen=True, eq=False)
class Event:
    """One moment of a run.

    Attributes:
        kind: `"start"`, `"step"`, `"validation"`, `"checkpoint"` or `"end"`.
        step: Steps done so far; at `start` those that a resumed run had done.
        steps: Steps that the run is to have.
        metrics: Numbers by name: the loss and the learning rate of a step, what a validation found.
        model: The averaged model, in evaluation mode. It goes on changing: copy what is to be kept.
        training: The `Training` so far; None where there is none yet.
        scaling: That of the data, as `Saving(scaling=...)` has it; None without.
    """

    kind: str
    step: int
    steps: int
    metrics: dict[str, float]
    model: Denoiser
    training: Any = None
    scaling: Scaling | None = None


Callback = Callable[[Event], None]
"""Called with every event of a run, in the order in which callbacks were given; what it answers is not looked at."""


class StopTraining(Exception):  # noqa: N818 - it is a signal, as StopIteration is, and no error
    """Raised by a callback, it ends a run after the present step, in order: with its state saved and no error.

    Args:
        reason: Why, for the record.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class JSONL:
    r"""Writes the metrics of a run to a file, one line of JSON for each event: `pandas.read_json(path, lines=True)`.

        {"kind": "step", "step": 120, "loss": 0.4127, "lr": 0.002}

    A line is in the file when the callback returns; numbers that are not finite are `null`. A run from step 0 begins
    the file anew. One that is resumed after step $i$ goes on behind the last line up to there: what an interrupted
    run had written beyond, half a line among it, is taken away, since those steps come again. A file with a damaged
    line is renamed, `metrics.damaged.jsonl`, with a warning, and its other lines are gone on with.

    Args:
        path: The file; its folder must be there.
        every: Of the `step` events, those at multiples of it are written; all other kinds are.
        replace: Whether the file is that of one run alone, in whose folder it lies: one in which no line is one of
            metrics is set aside too, and one that ends before the run did is told of.

    Raises:
        TypeError, ValueError: `every` is no positive integer. In use: a file that is there and holds something else,
            or a metric that is called `kind` or `step`.

    Warns:
        UserWarning: A damaged file, which was set aside; with `replace`, one that ends before the run did.
    """

    def __init__(self, path: str | Path, *, every: int = 1, replace: bool = False) -> None:
        self.path, self.every = Path(path), check_count(every, "every")
        self.replace = check_flag(replace, "replace")

    def __repr__(self) -> str:
        more = ", replace=True" if self.replace else ""
        return f"JSONL({str(self.path)!r}, every={self.every}{more})"

    def __call__(self, event: Event) -> None:
        if event.kind == "start":
            self._go_on(event.step)
        elif event.kind != "step" or event.step % self.every == 0:
            if taken := [name for name in ("kind", "step") if name in event.metrics]:
                raise ValueError(f"a metric cannot be called {taken[0]!r}, which every line has: give it another name")
            numbers = {name: _number(value) for name, value in event.metrics.items()}
            line = json.dumps({"kind": event.kind, "step": event.step, **numbers}, allow_nan=False)
            with self.path.open("ab") as file:  # opened anew: nothing is left in a buffer, nothing to be closed
                file.write(line.encode() + b"\n")

    def _go_on(self, done: int) -> None:
        """Takes away the lines beyond a step; of a new run, all of them. A damaged file is set aside."""
        if not self.path.exists():
            self.path.touch()
            self._tell_of_lost(0, done)
            return
        with self.path.open("r+b") as file:
            end, bad, sound, last = _end_of(file, done)
            if bad is None:
                file.truncate(end)
                self._tell_of_lost(last, done)
                return
            number, line = bad
            if not sound and not self.replace:
                raise ValueError(
                    f"{self.path} holds no metrics of a run, line {number} is {line[:40]!r}: give another file, or "
                    "remove it"
                )
            file.seek(0)
            kept = [line for line in file if _is_kept(*_read(line), done)]
        aside = _free(self.path)
        self.path.rename(aside)
        self.path.write_bytes(b"".join(kept))
        warn(
            f"line {number} of {self.path} is damaged: the file was set aside as {aside.name}, and the run goes on "
            "with its other lines",
            4,
        )

    def _tell_of_lost(self, last: int, done: int) -> None:
        """Warns where the record of a run ends before the run did: emptied, cut short, or gone."""
        if self.replace and last < done - done % self.every:
            warn(
                f"{self.path} ends {f'after step {last}' if last else 'before the first step'}, and {done} steps were "
                "done: what was told of those between is lost. The run itself is whole",
                5,
            )


def _end_of(file: BinaryIO, done: int) -> tuple[int, tuple[int, bytes] | None, int, int]:
    """Where the lines up to a step end, in bytes; the first damaged line, and its number; how many are sound; the step
    of the last that is kept.
    """
    end, before, beyond, sound, last = 0, 0, False, 0, 0
    bad: tuple[int, bytes] | None = None
    for i, line in enumerate(file, 1):
        kind, step = _read(line)
        if kind is None or step < before:
            cut = line.startswith(HEAD[: len(line)]) and not line.endswith(b"\n")  # by a kill, the last line alone
            bad = bad or (None if cut else (i, line))
            continue
        before, sound = step, sound + 1
        beyond = beyond or not _is_kept(kind, step, done)
        if not beyond:
            end, last = end + len(line), step
    return end, bad, sound, last


def _read(line: bytes) -> tuple[str | None, int]:
    """The kind of the event in a line, and its step; no kind where it is no line that was written here."""
    try:
        about = json.loads(line)
        kind, step = about["kind"], about["step"]
    except (ValueError, KeyError, TypeError):
        return None, 0
    return (kind, step) if isinstance(kind, str) and type(step) is int and line.endswith(b"\n") else (None, 0)


def _is_kept(kind: str | None, step: int, done: int) -> bool:
    """Whether a run that goes on after a step, 0 for a new one, keeps a line."""
    return kind not in (None, "end") and 0 < step <= done


def _free(path: Path) -> Path:
    """A name beside a file that nothing has yet."""
    names = (path.with_name(f"{path.stem}.damaged{i or ''}{path.suffix}") for i in itertools.count())
    return next(name for name in names if not name.exists())


def _number(value: float) -> float | int | None:
    """A number as JSON has it: None for NaN and infinities."""
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


class Tracker:
    """Sends the metrics of a run to a tracker of `accelerate`: TensorBoard, Weights & Biases, MLflow and others.

    Args:
        tracker: The name of one, `"tensorboard"` or `"wandb"` for instance, or one that was made, a `GeneralTracker`.
        project: What the run is called there.
        config: Numbers and words to keep with the run: width of the network, name of the data.
        folder: Where trackers that write files put them.
        every: Of the `step` events, those at multiples of it are sent; of the other kinds, all that have metrics.
        **options: Handed to the tracker as it is made.

    Raises:
        ImportError: `accelerate` or the package of the tracker is not installed.
        ValueError: No tracker is called that.
        TypeError: `tracker` is neither a name nor a tracker.
    """

    def __init__(
        self,
        tracker: Any,
        project: str = "sde-diffusion",
        *,
        config: Mapping[str, Any] | None = None,
        folder: str | Path = "runs",
        every: int = 1,
        **options: Any,
    ) -> None:
        self.every, self.config = check_count(every, "every"), dict(config or {})
        self.tracker = _tracker(tracker, project, folder, options)

    def __call__(self, event: Event) -> None:
        if event.kind == "start":
            self.tracker.start()
            if self.config:
                self.tracker.store_init_configuration(self.config)
        elif event.metrics and (event.kind != "step" or event.step % self.every == 0):
            self.tracker.log({name: float(value) for name, value in event.metrics.items()}, step=event.step)
        if event.kind == "end":
            self.tracker.finish()


def _tracker(tracker: Any, project: str, folder: str | Path, options: Mapping[str, Any]) -> Any:
    """A tracker of accelerate by its name; one that was made, as it is."""
    try:
        from accelerate import tracking
    except ImportError as error:
        raise ImportError("trackers come from accelerate: pip install 'sde-diffusion[train]'") from error
    if isinstance(tracker, tracking.GeneralTracker):
        return tracker
    if not isinstance(tracker, str):
        raise TypeError(
            "tracker must be the name of a tracker, such as 'tensorboard', or a GeneralTracker of accelerate, got "
            f"{type(tracker).__name__}"
        )
    kinds = tracking.LOGGER_TYPE_TO_CLASS
    if tracker not in kinds:
        raise ValueError(f"no tracker is called {tracker!r}: there are {', '.join(sorted(kinds))}")
    if tracker not in [str(name) for name in tracking.get_available_trackers()]:
        raise ImportError(f"the tracker {tracker!r} is not installed: pip install {tracker}")
    made = kinds[tracker]
    where = {"logging_dir": str(folder)} if made.requires_logging_directory else {}
    return made(project, **where, **options)
