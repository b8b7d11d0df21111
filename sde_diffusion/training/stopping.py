"""How validations are compared, and when a run has gone on for too long."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sde_diffusion._checks import check_count

GROUPS = 64
"""Into how many groups the rows of a validation are added up: two validations are compared group by group."""
WORSE = 2.0
"""Standard errors by which a validation must be worse than the best to count against a run."""


@dataclass(frozen=True)
class Measured:
    r"""What a validation found.

    Attributes:
        nats: The bound on $-\log p$ of a row, the mean over the rows, of the data as the model sees them; of what is no
            denoiser, its objective.
        standard_error: That of `nats` over rows: how far it may be from that of other data of this kind. The difference
            of two validations is known better, see `gain_over`.
        loss: The objective of the training, on these data.
        levels: The ends of the bands of noise, $\sigma/\alpha$, from little to much.
        by_level: The part of `nats` that comes from each band; negative where the model knows more than a Gaussian of
            independent coordinates.
        rows: How many rows were measured.
        groups: The sums of the nats of every 64th row, from row 0, 1, ... on.
    """

    nats: float
    standard_error: float
    loss: float
    levels: tuple[float, ...]
    by_level: tuple[float, ...]
    rows: int
    groups: tuple[float, ...] = field(repr=False)

    def gain_over(self, other: Measured) -> tuple[float, float]:
        """By how many nats this is better than another validation, on the same draws, and the standard error of that.

        Raises:
            ValueError: The other was of another number of rows.
        """
        if self.rows != other.rows:
            raise ValueError(f"the two were measured on {self.rows} and {other.rows} rows: compare them on the same")
        sums = [b - a for a, b in zip(self.groups, other.groups, strict=True)]
        return math.fsum(sums) / self.rows, standard_error(sums, self.rows)

    def metrics(self) -> dict[str, float]:
        """The numbers by name, as events have them: `val_loss`, `val_nats`, ..., `val_nats_level_0`, ..."""
        named = {"val_loss": self.loss, "val_nats": self.nats, "val_nats_error": self.standard_error}
        return {**named, **{f"val_nats_level_{i}": part for i, part in enumerate(self.by_level)}}


def standard_error(sums: Sequence[float], n: int) -> float:
    """That of the mean over `n` rows, from the sums of every 64th of them; NaN for one row."""
    groups = len(sums)
    if groups < 2:
        return math.nan
    mean = math.fsum(sums) / n
    off = math.fsum((s - mean * len(range(g, n, GROUPS))) ** 2 for g, s in enumerate(sums))
    return math.sqrt(off * groups / (groups - 1)) / n


class EarlyStopping:
    """Which validation was the best, and whether a run has gone on for long enough since.

    A validation counts against the run if it is worse than the best by more than two standard errors of the difference.
    After so many in a row, `patience`, the run may stop. One that is no better, but not clearly worse, does not
    count: a run at rest on a plateau may still gain when its learning rate falls.

    Args:
        patience: How many; None never to stop.

    Attributes:
        best: The best validation; None before the first.
        step: The step that it was made after.
        worse: How many clearly worse ones came one after the other, up to now.

    Raises:
        TypeError, ValueError: `patience` is no positive integer.
    """

    def __init__(self, patience: int | None = 10) -> None:
        self.patience = None if patience is None else check_count(patience, "patience")
        self.best: Measured | None = None
        self.step = self.worse = 0

    @property
    def over(self) -> bool:
        """Whether the run may stop."""
        return self.patience is not None and self.worse >= self.patience

    def update(self, step: int, found: Measured) -> bool:
        """Takes a validation into account, and answers whether it is the best so far."""
        if self.best is None or found.nats < self.best.nats or not math.isfinite(self.best.nats):
            return self.take(step, found)
        loss, error = self.best.gain_over(found)
        clear = not math.isfinite(loss) or loss > (0 if math.isnan(error) else WORSE * error)
        self.worse = self.worse + 1 if clear else 0
        return False

    def take(self, step: int, found: Measured) -> bool:
        """Takes a validation as the best, whatever it found: of a flow map, of whose jumps its nats say nothing."""
        self.best, self.step, self.worse = found, step, 0
        return True

    def state(self) -> dict[str, Any]:
        """All that it goes on from, as JSON has it."""
        best = None if self.best is None else {name: _listed(value) for name, value in asdict(self.best).items()}
        return {"best": best, "step": self.step, "worse": self.worse}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of another: what follows is the same."""
        best: Mapping[str, Any] | None = state["best"]
        self.best = None if best is None else Measured(**{name: _tupled(value) for name, value in best.items()})
        self.step, self.worse = int(state["step"]), int(state["worse"])


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
