"""What a tuning found: every candidate with its error, the winner, and the cost."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

from sde_diffusion._files import write_files

SHOWN = 6
"""Candidates that a printed report names for each budget."""


@dataclass(frozen=True)
class Candidate:
    """A sampler that was tried at one budget.

    Attributes:
        name: What it is: a solver and its grid, or how it was fitted.
        error: Its error on the noise of validation.
        uncertainty: The standard error of that.
        fitted: Whether it was fitted to the model.
    """

    name: str
    error: float
    uncertainty: float
    fitted: bool

    @property
    def bound(self) -> float:
        """What candidates are ranked by: the error and its standard error together, so that few samples decide less."""
        return self.error + self.uncertainty


@dataclass(frozen=True)
class Verdict:
    """The candidates at one budget, best first, and why the first has won.

    Attributes:
        nfe: The budget.
        candidates: All that were tried.
        evaluations: Network evaluations spent on this budget, over all samples.
        seconds: Time spent on it.
        fresh: The winner as it came back, and the default of the library, on noise that decided nothing: the least of
            many errors is less than it should be on the noise that chose it.
    """

    nfe: int
    candidates: tuple[Candidate, ...]
    evaluations: int
    seconds: float
    fresh: tuple[Candidate, ...] = ()

    @property
    def winner(self) -> Candidate:
        """The best, with its error on fresh noise where that was measured."""
        return (self.fresh or self.candidates)[0]

    @property
    def default(self) -> Candidate | None:
        """The default of the library on the same fresh noise."""
        return self.fresh[1] if len(self.fresh) > 1 else None

    @property
    def standard(self) -> Candidate | None:
        """The best that was not fitted to the model."""
        return next((c for c in self.candidates if not c.fitted), None)

    @property
    def why(self) -> str:
        """One sentence on the choice."""
        best, standard = self.candidates[0], self.standard
        said = f"{best.name} has won"
        if standard is None or best is standard:
            said += ": nothing fitted to the model was clearly better on noise it had not seen"
        elif standard.error > 0 and best.error > 0:
            said += f", at {best.error / standard.error:.2f} times the error of the best standard, {standard.name}"
        if self.default is not None and self.winner.error > 0:
            said += (
                f"; on fresh noise {self.winner.error:.3g} +- {self.winner.uncertainty:.2g}, "
                f"the default {self.default.error:.3g} +- {self.default.uncertainty:.2g}"
            )
        return said


@dataclass(frozen=True)
class Report:
    """What `tune` measured.

    Attributes:
        verdicts: One for each budget.
        objective: `"ode"`, the distance to the converged flow in standard deviations of the data, or `"energy"`.
        batch: Samples of calibration, and as many of validation.
        reference_evaluations: Network evaluations of the flow that all are compared with, over all samples.
        reference_error: Its own error, from half its step, in the units of the errors.
        seconds: All of the time.
        given: What the model was asked under, in words, where that is known: `--label 2` of the command line.
    """

    verdicts: tuple[Verdict, ...]
    objective: str
    batch: int
    reference_evaluations: int
    reference_error: float
    seconds: float
    given: str = ""

    @property
    def evaluations(self) -> int:
        """Network evaluations in all, over all samples."""
        return self.reference_evaluations + sum(v.evaluations for v in self.verdicts)

    @property
    def calls(self) -> int:
        """The same in calls of a batch."""
        return -(-self.evaluations // self.batch)

    def lines(self) -> list[str]:
        """The report in short: one line for each budget, and one for the cost."""
        unit = " sd of the data from the flow" if self.objective == "ode" else ", energy distance to the data"
        lines = [
            f"{v.nfe} evaluations: {v.winner.error:.3g} +- {v.winner.uncertainty:.2g}{unit}; {v.why}"
            for v in self.verdicts
        ]
        cost = f"{self.seconds:.0f} s, {self.calls:,} calls of {self.batch} samples"
        return [*lines, f"{cost}; tuned on {self.batch} and judged on {self.batch} others"]

    def __str__(self) -> str:
        what = (
            "distance to the flow, in sd of the data, at most half of one for each sample"
            if self.objective == "ode"
            else "energy distance to the data, whose estimate may be negative"
        )
        lines = [
            f"tuned on {self.batch} and judged on {self.batch} other samples in {self.seconds:.1f} s: "
            f"{self.evaluations:,} evaluations, {self.calls:,} calls of the batch",
            f"error: {what}; the reference is off by {self.reference_error:.1g}",
        ]
        for verdict in self.verdicts:
            lines.append(f"{verdict.nfe} evaluations: {verdict.why}")
            shown = list(verdict.candidates[:SHOWN])
            if verdict.standard is not None and verdict.standard not in shown:
                shown.append(verdict.standard)
            lines += [f"  {c.error:10.3g} +- {c.uncertainty:<9.2g} {c.name}" for c in shown]
            if (more := len(verdict.candidates) - len(shown)) > 0:
                lines.append(f"  and {more} more candidates, in verdicts of the report")
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Draws the error of the winner, the best standard and the others against the budget, to a PNG file.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from sde_diffusion.plots import COLOURS, new_figure

        figure = new_figure(7.0, 4.2)
        axes = figure.subplots()
        for verdict in self.verdicts:
            others = [c.error for c in verdict.candidates if math.isfinite(c.error)]
            label = "all candidates" if verdict is self.verdicts[0] else None
            axes.plot([verdict.nfe] * len(others), others, ls="none", marker="_", color="0.75", ms=9, label=label)
        drawn: dict[str, list[Candidate | None]] = {
            "tuned": [v.winner for v in self.verdicts],
            "the default": [v.default for v in self.verdicts],
            "best standard": [v.standard for v in self.verdicts],
        }
        for colour, (name, picked) in zip(COLOURS, drawn.items(), strict=False):
            pairs = zip(self.verdicts, picked, strict=True)
            points = [(v.nfe, c.error, c.uncertainty) for v, c in pairs if c is not None]
            if points:
                x, y, e = zip(*points, strict=True)
                axes.errorbar(x, y, yerr=e, color=colour, marker="o", lw=1.8, capsize=3, label=name)
        positive = all(c.error > 0 for v in self.verdicts for c in (*v.candidates, *v.fresh))
        axes.set(
            yscale="log" if positive else "linear",
            xlabel="network evaluations per sample",
            ylabel=f"error ({self.objective})",
        )
        axes.set_xticks([v.nfe for v in self.verdicts])
        axes.grid(True, which="both", color="0.92", lw=0.7)
        axes.legend(frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="png")
        write_files({Path(path): file.getvalue()})
