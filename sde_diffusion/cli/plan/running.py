"""A training as the commands run it: what is said of it, who is told of it, and how it ends where it is cut short."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._files import beside, keep
from sde_diffusion.cli._arguments import Say
from sde_diffusion.cli.limits import PASSES, check_batch
from sde_diffusion.cli.machine import device_named, rank
from sde_diffusion.cli.plan.config import own_file
from sde_diffusion.cli.plan.design import own_classes
from sde_diffusion.cli.plan.inputs import Inputs
from sde_diffusion.cli.plan.options import Plan
from sde_diffusion.data.faults.look import ColumnWarning
from sde_diffusion.denoiser.network import Network
from sde_diffusion.nets.base import kept_names
from sde_diffusion.sampler.watch import Previews
from sde_diffusion.training.callbacks import Callback, Tracker
from sde_diffusion.training.checkpoint import TABLES, load_checkpoint, save_checkpoint
from sde_diffusion.training.loop import Saving, Training, train
from sde_diffusion.training.losses import Objective
from sde_diffusion.training.recipe import Recipe
from sde_diffusion.training.validation import Validation


@dataclass(frozen=True)
class Course:
    """How a command runs a training.

    Args:
        loss: Makes the objective, of the model on its device.
        recipe: How it goes, but for what the plan and the data say.
        said: What is said of the objective before the first step.
        told: Callbacks besides those that the plan asks for.
        again: The command that goes on with the run.
        base: The folder of the base of the model, whose weights stay; None where it has none.
        undo: Takes what the model draws to the units of the data; None for the scaling of the inputs.
    """

    loss: Callable[[Network], Objective]
    recipe: Recipe
    said: Callable[[Objective], str]
    told: Sequence[Callback] = ()
    again: str = ""
    undo: Callable[[Tensor], Tensor] | None = None
    base: Path | None = None


def check_run(plan: Plan, inputs: Inputs, model: Network) -> None:
    """Looks whether a training can be run on this machine: its device, a batch in its memory.

    Raises:
        ValueError: It cannot.
    """
    device_named(plan.device)
    row = inputs.rows.rows(torch.zeros(1, dtype=torch.int64)).cond
    check_batch(model, plan.batch_size // plan.accumulate, passes=PASSES, cond=row)


def run_plan(plan: Plan, inputs: Inputs, model: Network, out: Path, course: Course, *, say: Say) -> None:
    """Trains a model as a plan says, keeps the run in its folder, and reports.

    Raises:
        TypeError, ValueError: As `train`; a batch that would not fit into memory.
        OSError: The run could not be written to its folder; the message says where the model is instead.
    """
    check_run(plan, inputs, model)
    model.to(device_named(plan.device))
    loss = course.loss(model)
    saving = Saving(
        out,
        every=plan.save_every,
        keep=plan.keep,
        overwrite=plan.overwrite,
        scaling=inputs.scaling,
        conditions=inputs.conditions,
        extra=inputs.extra,
        base=course.base,
    )
    val = None if inputs.held_out is None else Validation(inputs.held_out, patience=plan.patience or None)
    for line in (*_report(plan, inputs, model, out), course.said(loss)):
        say(line)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the run could not be saved")  # it is said below, and where it is instead
            if plan.start is not None:  # which were said in the units of the data
                warnings.filterwarnings("ignore", "(column|channel) .* of (the data|condition .*) (has mean|is const)")
            warnings.simplefilter("ignore", ColumnWarning)  # those of the file are told, before it is scaled
            done = train(
                model,
                inputs.rows,
                steps=plan.steps,
                loss=loss,
                recipe=course.recipe,
                val=val,
                out=saving,
                resume=plan.resume,
                callbacks=[*course.told, *_callbacks(plan, inputs, out, course.undo)],
                seed=plan.seed,
                progress=True,
            )
    except BaseException as stop:
        _after(stop, saving, plan, course.again, say)
        raise
    say(_result(done, plan.steps, inputs))


def next_line(plan: Plan, inputs: Inputs, out: Path, more: str = "") -> str:
    """What is said at the very end: where the model is, and the command that samples it."""
    own = "".join(f" --{key} {name}" for key, name in (("net", plan.net), ("sde", plan.sde)) if own_file(name))
    told = "".join(f" --cond {word}" for word in inputs.example())
    where = shlex.quote(str(out))
    return f"saved to {out}; next: sde-diffusion sample --checkpoint {where}{own}{more}{told} --out samples.npz"


def recipe_of(plan: Plan, inputs: Inputs) -> Recipe:
    """The recipe that a plan and its data ask for."""
    parts, precision = plan.accumulate, plan.precision
    return Recipe(plan.batch_size, plan.lr, accumulate=parts, precision=precision, transform=inputs.transform)


def _callbacks(plan: Plan, inputs: Inputs, out: Path, undo: Callable[[Tensor], Tensor] | None) -> Sequence[Callback]:
    """What is told of the run because the plan asks for it: a tracker, samples now and then."""
    found: list[Callback] = []
    if plan.log_with is not None and rank() == 0:
        words = {"data": str(plan.data), "steps": plan.steps, "batch-size": plan.batch_size, "lr": plan.lr or "unset"}
        found.append(Tracker(plan.log_with, folder=out / "runs", config=words))
    if plan.previews:
        numbers = torch.arange(plan.previews) % len(inputs.rows)
        every, undo = max(1, plan.steps // 10), inputs.scaling.undo if undo is None else undo
        cond = inputs.rows.rows(numbers).cond
        found.append(Previews(out / "previews", every=every, n=plan.previews, undo=undo, cond=cond))
    return found


def _report(plan: Plan, inputs: Inputs, model: Network, out: Path) -> list[str]:
    """What is said before the first step."""
    facts, held_out = inputs.facts, inputs.held_out
    told = [f"{facts.classes} classes"] if facts.classes else []
    told += [f"a context of {facts.context}"] if facts.context else []
    told += [f"an image of {facts.image} channels"] if facts.image else []
    if isinstance(channels := inputs.rows.rows(torch.zeros(1, dtype=torch.int64)).cond.get("control"), Tensor):
        told.append(f"a control of {channels.shape[1]} channels")
    told += [f"captions of {len(facts.words)} words"] if facts.words else []
    kept_out = f", {len(held_out):,} kept out for validation" if held_out is not None else ""
    if held_out is None and plan.val:
        kept_out = ", too few to keep some out for validation"
    what, units = ("codes", "of unit scale") if inputs.coded else ("samples", str(inputs.scaling))
    lines = [f"{len(inputs.rows):,} {what} {facts.shape}{kept_out}, {', '.join(told) or 'no conditions'}, {units}"]
    if len(facts.shape) == 2 and not inputs.coded:
        c, n = facts.shape
        lines.append(f"samples are {c} channels of {n} points; grey images (N, H, W) would be x[:, None]")
    if inputs.transform is not None:
        lines.append("whole numbers: every batch has fresh points in their bins, of width one")
    if inputs.whole:
        some = ", ".join(map(repr, inputs.whole[:4])) + ", ..." * (len(inputs.whole) > 4)
        lines.append(
            f"whole numbers are taken as they are, without points in their bins, in column {some}. Where few values "
            "come often, give them as a condition, or train in Python with data.Dequantised.of"
        )
    net: Any = model.net
    size, kept = sum(p.numel() for p in net.parameters()), kept_names(net)
    own = sum(p.numel() for name, p in net.named_parameters() if name not in kept)
    of = f", of which {own:,} are learnt and the others are those of {plan.base or plan.start}" if kept else ""
    lines.append(
        f"{type(net).__name__} with {size:,} parameters{of}, {type(model.kind).__name__} prediction, {model.sde!r}"
    )
    if (tables := out / TABLES).is_file():
        lines.append(f"{tables} is of the model that is replaced, and will be removed with it: tune the new one")
    return lines


def _result(done: Training, steps: int, inputs: Inputs) -> str:
    """What is said at the end."""
    count = len(done.losses)
    found = f"{done.seconds:.0f} s, loss {done.loss:.4f} over the last {min(count, 100)} steps"
    if done.best is not None:
        best = next(each for each in done.validations if each["step"] == done.best)
        own = best["val_nats"] - inputs.log_jacobian()
        units = "of the codes" if inputs.coded else f"in the units of --data, {best['val_nats']:.4f} as scaled"
        found += f"; best validation after step {done.best}, whose model is kept: {own:.4f} nats {units}"
    if done.stopped and count < steps:
        found += f"; ended after {count} of {steps} steps, {done.stopped}"
    return found


def _after(stop: BaseException, saving: Saving, plan: Plan, again: str, say: Say) -> None:
    """Says how to go on after a run was cut short, or saves the model elsewhere where its folder takes none."""
    done: Training | None = getattr(stop, "training", None)
    if done is None or not done.losses or rank() > 0:
        return
    out, count = Path(saving.path), len(done.losses)
    if _is_saved(out, count, plan):
        say(f"ended after {count} of {plan.steps} steps, all of them saved in {out}; to go on: {again}")
        return
    place = beside(out, "interrupted") if count < plan.steps else out

    def save(folder: Path) -> None:
        extra = {**saving.extra, "steps": count, "seed": plan.seed}
        save_checkpoint(folder, done.model, scaling=saving.scaling, conditions=saving.conditions, extra=extra)

    try:
        keep(save, place)
    except OSError as error:
        if isinstance(stop, OSError):
            raise error from stop
        say(str(error))
    else:
        say(f"ended after {count} steps; the model up to there is in {place}")


def _is_saved(out: Path, steps: int, plan: Plan) -> bool:
    """Whether a folder holds a run up to a step."""
    try:
        known = own_classes(*(name for name in (plan.net, plan.sde) if own_file(name)))
        return load_checkpoint(out, known=known).extra.get("steps") == steps
    except (OSError, ValueError, TypeError, ImportError):
        return False
