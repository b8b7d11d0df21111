"""What is not finite in a run: steps, counted, and given up after many in a row; weights, which end it at once."""

from __future__ import annotations

from sde_diffusion._checks import SolverError
from sde_diffusion.training.run.feed import Feed
from sde_diffusion.training.run.learner import Learner

GIVE_UP = 50
"""Steps in a row without a finite batch or gradient after which training stops."""
NAMED = 8
"""Rows that an error names."""


class Failures:
    """The steps of a run that were left out.

    Args:
        feed: Where its batches come from.
        losses: The losses so far, to which the run adds.

    Attributes:
        skipped: Steps left out.
    """

    def __init__(self, feed: Feed, losses: list[float]) -> None:
        self.feed, self.losses = feed, losses
        self.skipped = self._batches = self._in_a_row = 0

    @property
    def why(self) -> str:
        """What was not finite in the steps that were skipped."""
        if not self._batches:
            return "gradient"
        return "batch" if self._batches == self.skipped else f"gradient, or in {self._batches} of them the batch,"

    def told(self, steps: int) -> str:
        """What is said of them after a run of some steps."""
        text = f"{self.skipped} of {steps} steps were skipped: {self.why} not finite"
        if 2 * self.skipped > steps:
            text += ". So the model is hardly trained, and its weights may be lost: lower lr, or look for NaN in what "
            text += "the network answers or is given"
        return text

    def note(self, finite: bool, broken: list[int]) -> None:
        """Takes note of a step, in every process alike.

        Args:
            finite: Whether its gradient was finite.
            broken: The places in the batch of the rows in this process that were not.

        Raises:
            SolverError: None was for many steps in a row.
        """
        if finite:
            self._in_a_row = 0
            return
        places = sorted(place for some in self.feed.engine.gathered(broken) for place in some)
        self.skipped, self._batches, self._in_a_row = self.skipped + 1, self._batches + bool(places), self._in_a_row + 1
        if self._in_a_row < GIVE_UP:
            return
        self._in_a_row = 0  # who resumes the run tries again
        i, what = len(self.losses), "batch" if places else "gradient"
        advice = "lower lr, or look for NaN in the network's answer"
        if places:
            advice = f"look for NaN in what the {'transform' if self.feed.recipe.transform else 'data set'} returns"
        raise SolverError(
            f"no finite {what} in steps {i - GIVE_UP + 1} to {i}, last loss {self.losses[-1]:g}: {advice}. "
            f"{self._rows(i - 1, places)}. The weights are those of before step {i - GIVE_UP + 1}"
        )

    def _rows(self, step: int, places: list[int]) -> str:
        """Which rows were in a batch, or which of them were not finite."""
        numbers = self.feed.numbers(step)
        if numbers is None:
            return "The rows of a stream have no numbers"
        named = [numbers[place] for place in places] or numbers
        more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
        which = "Not finite in the last batch were" if places else "In the last batch were"
        return f"{which} rows {', '.join(map(str, named[:NAMED]))}{more} of the data"

    def state(self) -> list[int]:
        """What is to be remembered of it."""
        return [self.skipped, self._batches, self._in_a_row]

    def load_state(self, state: list[int]) -> None:
        """Takes up what was remembered."""
        self.skipped, self._batches, self._in_a_row = state


class Weights:
    """A look at the weights of a run, so that none which are lost are returned, measured or saved.

    Args:
        learner: Whose they are.

    Attributes:
        sound: The last step after which all were finite.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner, self.sound = learner, 0

    def check(self, step: int, saved: int | None, where: object) -> None:
        """Looks at the weights after a step.

        Args:
            step: The step.
            saved: The step up to which the run was saved; None if it was not.
            where: The folder of the run.

        Raises:
            SolverError: A weight, or the average of one, is not finite.
        """
        bad = self.learner.unsound()
        if bad is None:
            self.sound = step
            return
        first = self.sound + 1
        when = f"step {step}" if first >= step else f"one of the steps {first} to {step}"
        kept = "nothing was saved before"
        if saved is not None:
            kept = f"{where} holds the run up to step {saved}, and its weights then are whole"
        raise SolverError(
            f"the weights are not finite after {when}, {bad} for one, though the gradient was: the learning rate is "
            f"{self.learner.rate:g}; lower lr, or look at the optimiser, and at callbacks that write to the model; "
            f"{kept}"
        )
