"""`sde-diffusion train --low-res`, a stage of a cascade; `--shrink`, its base; and `sample --low` and `--then`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from sde_diffusion._checks import rows_in_words
from sde_diffusion.cascade.low_resolution import LowResolution
from sde_diffusion.cascade.objective import SuperResolution
from sde_diffusion.cascade.stages import Cascade
from sde_diffusion.cli.conditions import ARGUMENT
from sde_diffusion.cli.forms.form import LOW, Form
from sde_diffusion.cli.plan.inputs import Inputs
from sde_diffusion.cli.plan.opened import array_of
from sde_diffusion.cli.plan.options import Plan
from sde_diffusion.denoiser.modules import home
from sde_diffusion.sampler.base import Sampler
from sde_diffusion.training.checkpoint import Checkpoint
from sde_diffusion.training.losses import DenoisingScoreMatching, Objective


def low_of_plan(plan: Plan, form: Form | None) -> LowResolution | None:
    """The low resolution that a plan asks for, or that of the stage that it begins from.

    Raises:
        ValueError: Another than that of the stage, or one that there is not.
    """
    if plan.low_res is None and (form is None or form.low is None):
        return None
    if form is not None and form.low is None:
        raise ValueError(
            f"--low-res: the model in --from {plan.start} was told no low resolution: train without --from"
        )
    before = None if form is None else form.low
    most = plan.augment if plan.augment is not None else None if before is None else before.most
    factor = plan.low_res if plan.low_res is not None or before is None else before.factor
    try:
        found = LowResolution(factor or 1) if most is None else LowResolution(factor or 1, most)
    except ValueError as error:
        raise ValueError(f"--augment {most}: {error}") from error
    if before is not None and found != before:
        raise ValueError(
            f"--from {plan.start} brings its own low resolution, {before!r}: leave --low-res and --augment out"
        )
    return found


def staged(inputs: Inputs, low: LowResolution) -> Inputs:
    """The data of a stage, whose network is told their low resolution and its level of noise.

    Raises:
        ValueError: A factor that does not divide the lengths of the data, or vectors; conditions of theirs that would
            take the place of these.
    """
    facts = inputs.facts
    try:
        low.low_shape(facts.shape)
    except ValueError as error:
        raise ValueError(f"--low-res {low.factor}: {error}") from error
    for name, there in (("image", facts.image), ("context", facts.context)):
        if there and name in low.names:
            advice = ", or --augment 0, which tells no level" if name == "context" else ""
            raise ValueError(
                f"--low-res tells the network its low resolution as image and the level of noise as context, and the "
                f"data come with a {name} of their own: leave that out of --cond{advice}"
            )
    told = replace(facts, image=facts.shape[0], context=facts.context + int(low.most > 0))
    return replace(inputs, facts=told, extra={**inputs.extra, LOW: low.config})


def objective_of_stage(low: LowResolution, inner: Objective | None) -> SuperResolution:
    """The objective of a stage; None for the one that suits its model.

    Raises:
        ValueError: One that it does not take.
    """
    if inner is not None and not isinstance(inner, DenoisingScoreMatching):
        raise ValueError(
            "--low-res is trained by denoising score matching: leave --weight uncertainty and --learn-variance out"
        )
    return SuperResolution(low, inner)


def read_low(path: Path, loaded: Checkpoint, form: Form) -> Tensor:
    """The low resolutions of a file, as a stage knows them: `(rows, C, *)`.

    Args:
        path: `.npy` or `.npz` with `low`, in the units of the data: `(rows, C, *)`, or one alone.
        loaded: The checkpoint of the stage.
        form: Its form.

    Raises:
        FileNotFoundError: No such file.
        TypeError, ValueError: No numbers, or another shape.
    """
    low, shape = form.low, form.shape
    if low is None or shape is None:
        raise ValueError(
            "--low is for a stage of a cascade, trained with --low-res, and the model is none: leave it out"
        )
    found, wanted = array_of(path, "low", "--low"), low.low_shape(shape)
    found = found[None] if tuple(found.shape) == wanted else found
    if tuple(found.shape[1:]) != wanted:
        raise ValueError(
            f"--low {path} has shape {tuple(found.shape)}, wanted (rows, {', '.join(map(str, wanted))}): samples are "
            f"of shape {shape}, {low.factor} times as long"
        )
    found = found.double()
    if bool((bad := ~found.flatten(1).isfinite().all(1)).any()):
        raise ValueError(f"--low {path} holds NaN or infinity in {rows_in_words(bad)}: remove or replace those rows")
    return form.scaling.apply(found, home(loaded.model)[0])


def check_stages(places: Sequence[str], forms: Sequence[Form], loaded: Sequence[Checkpoint], low: Path | None) -> None:
    """Looks whether checkpoints can be drawn from one after the other.

    Args:
        places: What an error calls each of them.
        forms: Their forms.
        loaded: The checkpoints.
        low: The file of low resolutions of the first.

    Raises:
        ValueError: One that is no stage behind another; a first one that is, without low resolutions, or that is none,
            with some; other classes, or other units of a condition.
    """
    if low is not None and forms[0].low is None:
        raise ValueError(
            f"--low is for a stage of a cascade, trained with --low-res, and {places[0]} holds none: leave it out"
        )
    if low is None and forms[0].low is not None:
        where = places[0].partition(" ")[2]
        raise ValueError(
            f"{places[0]} holds a stage of a cascade, which draws high resolutions of low ones: give these, --low "
            f"FILE.npy, or what draws them, --checkpoint BASE --then {where}"
        )
    for place, form, each in zip(places[1:], forms[1:], loaded[1:], strict=True):
        if form.low is None:
            raise ValueError(f"{place} holds no stage of a cascade, which `train --low-res` makes: leave it out")
        if each.classes and loaded[0].classes not in (0, each.classes):
            raise ValueError(
                f"{place} knows {each.classes} classes, and {places[0]} {loaded[0].classes}: train both on the same"
            )
        for name in set(_takes(each, form)) & set(each.conditions) & set(loaded[0].conditions):
            if each.conditions[name].config != loaded[0].conditions[name].config:
                raise ValueError(
                    f"{place} knows {name} in other units than {places[0]}: train both with the same --data and --val"
                )


def cascade_of(stages: Sequence[Sampler], forms: Sequence[Form], loaded: Sequence[Checkpoint]) -> Cascade:
    """A cascade of checkpoints, each of which is told what it was trained with.

    Raises:
        ValueError: Resolutions that do not follow one another.
    """
    takes = [_takes(each, form) for each, form in zip(loaded, forms, strict=True)]
    try:
        return Cascade(stages, takes=takes, scalings=[form.scaling for form in forms])
    except ValueError as error:
        raise ValueError(f"--then: {error}") from error


def _takes(loaded: Checkpoint, form: Form) -> tuple[str, ...]:
    """The conditions that a model is told beside a low resolution."""
    built = loaded.model.built_with()
    found = [name for name, argument in ARGUMENT.items() if built.get(argument)]
    found += [*form.control, "strength"] if form.control else []
    return tuple(name for name in found if name not in form.told)
