"""How samples are drawn from a checkpoint: what `sample` is asked for, and the sampler of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from sde_diffusion import solvers
from sde_diffusion.cli._arguments import Say
from sde_diffusion.cli.target.options import LED_BY, LED_STEPS, Target
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.solvers.base import Solver
from sde_diffusion.training.checkpoint import Checkpoint
from sde_diffusion.tuning.made_for import TableWarning
from sde_diffusion.tuning.tuned import Tuned

SOLVERS: Mapping[str, Solver] = {
    **solvers.named(),
    **{name: solver for cls in solvers.MAPPED for name, solver in cls.named().items()},
}
"""What `--solver` may name: those of every model, and those of a flow map."""


@dataclass(frozen=True)
class Draw:
    """How many samples are drawn from a checkpoint, of which conditions, and how.

    Args:
        n: The number of samples; None for one for each row of a condition, or 64.
        solver: The name of the solver in `SOLVERS`; None for the default, or a tuned one.
        steps: The number of solver steps; None for the solver's own.
        nfe: A budget of network evaluations per sample, in place of `steps`; of several stages, one for each.
        label: A class, `"all"` for every class in turn, or `"none"`; None for all, or none where a part is known.
        batch_size: The number of samples in memory at once.
        tuned: Whether a sampler that was tuned for `nfe` and kept in the checkpoint is taken, where no solver is named.
        cond: Conditions, as `--cond` has them.
        target: What is drawn from in place of the model itself.
        low: A file of low resolutions, of which a stage of a cascade draws high ones.
        then: The folders of further stages, each of which is told what the one before it drew.
        level: The level of noise on what they are told; None for the default of each.
        control: A file of the fields that a control is told.
        control_of: A file of data in its place, of which they are made as in the training.
        weight: The strength of the control; None for 1, with which it was trained.
    """

    n: int | None = None
    solver: str | None = None
    steps: int | None = None
    nfe: int | tuple[int, ...] | None = None
    label: str | None = None
    batch_size: int = 256
    tuned: bool = True
    cond: tuple[str, ...] = ()
    target: Target = field(default_factory=Target)
    low: Path | None = None
    then: tuple[Path, ...] = ()
    level: float | None = None
    control: Path | None = None
    control_of: Path | None = None
    weight: float | None = None

    def of_stage(self, j: int) -> Draw:
        """How stage `j` is drawn.

        Raises:
            ValueError: Budgets for another number of stages.
        """
        stages = 1 + len(self.then)
        if not isinstance(self.nfe, tuple):
            return self
        if len(self.nfe) not in (1, stages):
            said = ",".join(map(str, self.nfe))
            what = f"{stages} stages: give one for all, or one for each" if self.then else "one model: give one"
            raise ValueError(f"--nfe {said} has {len(self.nfe)} budgets, for {what}")
        return replace(self, nfe=self.nfe[j if len(self.nfe) > 1 else 0])


def sampler_of(loaded: Checkpoint, model: Denoiser, tables: Path, draw: Draw, say: Say) -> SDESampler:
    """The sampler asked for: a tuned one where it fits, which is said."""
    nfe = cast("int | None", draw.nfe)
    if draw.tuned and draw.nfe is not None and draw.solver is None:
        found = _tuned(loaded, tables, draw, say)
        if found is not None:
            return found
    named, steps = draw.solver, draw.steps
    if named is None and draw.target.inpaint is not None:
        named, steps = LED_BY, LED_STEPS if steps is None and draw.nfe is None else steps
    solver = None if named is None else SOLVERS[named]
    try:
        return SDESampler(model.sde, model, solver=solver, steps=steps, nfe=nfe)
    except ValueError as error:
        if draw.target.guidance == 1 or not isinstance(loaded.model, FlowMap):
            raise
        w = f"{draw.target.guidance:g}"
        raise ValueError(
            f"--guidance {w}: a flow map jumps as it was trained, and by it alone: distil the model it was made of "
            f"with --guidance {w}, or take a larger --nfe. {error}"
        ) from error


def _tuned(loaded: Checkpoint, tables: Path, draw: Draw, say: Say) -> SDESampler | None:
    """The sampler that was tuned for a budget, if one was; what is there and does not serve is said.

    Raises:
        ValueError: A damaged file of tables, or tables of another process.
    """
    if not tables.is_file():
        return None
    if not draw.target.plain:
        say(f"{tables} is left aside: tuned for the model alone")
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", TableWarning)
            tuned = Tuned.load(tables, loaded.model.sde, loaded.model)
    except TableWarning as other:
        say(f"{tables} is left aside: {other}")
        return None
    except ValueError as error:
        raise ValueError(f"{error}; or sample with --no-tuned") from error
    nfe, asked = cast("int", draw.nfe), f"--label {draw.label or 'all'}"
    if tuned.report.given not in ("", "--label all", asked):
        say(f"{tables} is left aside: tuned with {tuned.report.given}, and these are with {asked}; tune for all labels")
        return None
    if nfe not in tuned.choices:
        say(f"nothing is tuned for {nfe} evaluations, only for {', '.join(map(str, tuned.choices))}: the default it is")
        return None
    best = tuned[nfe]
    given = f" and {tuned.report.given}" if tuned.report.given else ""
    unit = "sd of the data from the flow" if tuned.report.objective == "ode" else "from the data, by energy distance"
    say(f"tuned for {nfe} evaluations{given}: {best.name}, {best.error:.2g} +- {best.uncertainty:.1g} {unit}")
    return tuned.sampler(nfe)
