"""What a run leaves: the model that was learnt, and the record of how."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.training.losses import Objective, said
from sde_diffusion.training.recipe import Recipe


@dataclass(frozen=True, repr=False)
class Training:
    """What `train` returns, or hands over with the exception that ended it.

    Attributes:
        model: The averaged model, in evaluation mode: with `val`, as it was at the best validation, else as it is now.
        losses: The loss of every step; NaN where the batch was not finite. Denoising score matching does not go to
            zero, but to the variance of the target given the state.
        skipped: Steps left out because their batch or their gradient was not finite.
        seconds: Wall time, of all sittings together.
        objective: What was minimised.
        recipe: How it was minimised.
        averages: The averaged model of each decay of the recipe, as it is now.
        validations: What each validation found: its step and its numbers by name.
        best: The step of the best validation; None without one.
        stopped: Why the run ended before its last step; None if it did not.
    """

    model: Denoiser
    losses: list[float]
    skipped: int
    seconds: float
    objective: Objective
    recipe: Recipe
    averages: tuple[Denoiser, ...] = ()
    validations: tuple[dict[str, float], ...] = ()
    best: int | None = None
    stopped: str | None = None

    @property
    def loss(self) -> float:
        """The mean of those of the last hundred losses that are finite; NaN if none is."""
        return mean_loss(self.losses)

    def __repr__(self) -> str:
        more = (f", best={self.best}" if self.best is not None else "") + (
            f", stopped={self.stopped!r}" if self.stopped else ""
        )
        return (
            f"Training(objective={said(self.objective)}, recipe={self.recipe!r}, steps={len(self.losses)}, "
            f"skipped={self.skipped}, seconds={self.seconds:.1f}, loss={self.loss:.4g}{more})"
        )


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or a termination signal during `train`. It stops a script as ever, and brings the work along.

    Attributes:
        training: The `Training` up to there: averaged model, losses.
        signal: The name of the signal, `"SIGTERM"` for instance; None where none came to this process.
    """

    def __init__(self, training: Training, steps: int, where: str | None = None, *, signal: str | None = None) -> None:
        text = f"after {len(training.losses)} of {steps} steps. "
        if where is not None:
            text += f"All of it is saved in {where}: to go on, call the same train(..., resume=True). "
        super().__init__(
            text
            + "The averaged model and the losses are in `.training` of this exception; at a prompt, in a notebook: "
            "import sys; run = sys.last_value.training"
        )
        self.training, self.signal = training, signal


def mean_loss(losses: list[float]) -> float:
    """The mean of those of the last hundred losses that are finite; NaN if none is."""
    last = [loss for loss in losses[-100:] if math.isfinite(loss)]
    return sum(last) / len(last) if last else math.nan
