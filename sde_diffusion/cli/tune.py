"""`sde-diffusion tune`: from a checkpoint to samplers of a few evaluations, kept beside its weights."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_state
from sde_diffusion._files import check_apart, check_file, keep
from sde_diffusion.cli._arguments import LARGEST_BATCH, Say, add_command, budgets, count, path
from sde_diffusion.cli.conditions import ARGUMENT, labels_for
from sde_diffusion.cli.forms.drawn import check_tuned
from sde_diffusion.cli.forms.form import Form, codes_of, form_of
from sde_diffusion.cli.limits import check_batch
from sde_diffusion.data.files import load_array
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.training.checkpoint import TABLES, Checkpoint, checkpoint_files, load_checkpoint
from sde_diffusion.tuning.tuner import tune

MOST_NFE = 1000
"""The largest budget: the flow that all are compared with takes three times as many evaluations."""


def add_parser(group: Any) -> None:
    """Adds `tune` to the commands."""
    command = add_command(
        group,
        "tune",
        run,
        "Fit samplers of a few evaluations to a checkpoint, which `sample --nfe` then uses.",
        epilog="example:\n  sde-diffusion tune --checkpoint model --nfe 5,8,12\n"
        "  sde-diffusion sample --checkpoint model --nfe 8 --out samples.npz",
    )
    need = command.add_argument_group("required")
    need.add_argument(
        "--checkpoint",
        required=True,
        type=path,
        metavar="DIR",
        help=f"folder written by train or demo; the tables go to {TABLES} in it, in place of those there",
    )
    need.add_argument(
        "--nfe",
        required=True,
        type=partial(budgets, most=MOST_NFE, least=2),
        metavar="N[,N]",
        help="network evaluations per sample, one budget or more",
    )
    command.add_argument(
        "--batch",
        type=count(LARGEST_BATCH, least=2),
        default=256,
        metavar="N",
        help="samples of calibration, and as many of validation",
    )
    command.add_argument(
        "--objective",
        choices=("ode", "energy"),
        default="ode",
        help="what decides: the distance to the converged flow, or the energy distance to --data",
    )
    command.add_argument(
        "--data", type=path, metavar="FILE", help="for `energy`: .npy or .npz, as for train, not trained on"
    )
    command.add_argument(
        "--label",
        metavar="K",
        default="all",
        help="class of a class-conditional model that is tuned for; `all` takes the classes in turn, `none` no class",
    )
    command.add_argument("--report", type=path, metavar="FILE", help=".png of the errors of all that was tried")


def run(args: argparse.Namespace, say: Say) -> None:
    """Tunes as the arguments say."""
    aim = Aim(args.nfe, args.batch, args.objective, args.data, args.label)
    tune_file(args.checkpoint, aim, seed=args.seed, report=args.report, say=say)


@dataclass(frozen=True)
class Aim:
    """What a checkpoint is tuned for.

    Args:
        nfe: The budgets, network evaluations per sample.
        batch: Samples of calibration, and as many of validation.
        objective: `"ode"` or `"energy"`, see `tune`.
        data: For `"energy"`, a file of data that were not trained on. Of labelled ones, the class asked for.
        label: A class, `"all"` for every class in turn, or `"none"`.
    """

    nfe: list[int]
    batch: int = 256
    objective: str = "ode"
    data: Path | None = None
    label: str = "all"


def tune_file(checkpoint: Path, aim: Aim, *, seed: int = 0, report: Path | None = None, say: Say) -> None:
    """Tunes samplers for a checkpoint, and keeps them in its folder, in `tables.json`.

    Args:
        checkpoint: The folder of the checkpoint.
        aim: What it is tuned for.
        seed: The seed of the noise of calibration and validation.
        report: Where to draw the errors of all that was tried, a .png.
        say: Called with every line of the report.

    Raises:
        FileNotFoundError: No checkpoint, or no file of data.
        TypeError, ValueError: A damaged checkpoint, budgets, data or a label that do not fit, a batch too small or too
            large for the memory, or a place that takes no file.
        SolverError: The model answered NaN or inf.
        OSError: The file could not be written at the end; the message says where it is instead.

        Whatever is raised but the last, the folder is as it was.
    """
    place = checkpoint / TABLES
    loaded = load_checkpoint(checkpoint)
    if isinstance(loaded.model, FlowMap):
        raise ValueError(
            f"--checkpoint {checkpoint} holds a flow map, which was trained to draw in one to four evaluations: sample "
            "it with --nfe 1, 2 or 4, or tune the model that it was made of"
        )
    form = form_of(checkpoint, loaded)
    check_tuned(form, f"--checkpoint {checkpoint}")
    check_file(place, "--checkpoint")
    _check_report(report, checkpoint, aim)
    labels = labels_for(aim.label, aim.batch, loaded.classes)
    data = _data(aim, loaded, form, seed)
    for name in ("context", "image", "caption"):
        if loaded.model.built_with().get(ARGUMENT[name]):
            say(
                f"the model takes a {name}, and is tuned for samples of an unknown one; in Python, tune(conditions=...)"
            )
    cond: dict[str, Any] = {} if labels is None else {"label": labels}
    if loaded.model.shape is not None:
        check_batch(loaded.model, aim.batch, passes=1, option="--batch", cond=cond)
    tuned = tune(
        loaded.model.sde,
        loaded.model,
        aim.nfe,
        conditions=cond,
        batch=aim.batch,
        seed=seed,
        objective=aim.objective,
        data=data,
        progress=True,
    )
    if loaded.classes:
        tuned = replace(tuned, report=replace(tuned.report, given=f"--label {aim.label}"))
    had = place.is_file()
    keep(tuned.save, place)
    if form.codec is not None:
        say("tuned as a model of codes, by distances in their space")
    for line in tuned.report.lines():
        say(line)
    if report is not None:
        keep(tuned.report.plot, report)
        say(f"every candidate in {report}")
    kept = ", ".join(map(str, tuned.choices))
    say(f"tables for {kept} evaluations in {place}" + ", in place of those that were there" * had)
    say(f"next: sde-diffusion sample --checkpoint {checkpoint} --nfe {aim.nfe[0]} --out samples.npz")


def _check_report(report: Path | None, checkpoint: Path, aim: Aim) -> None:
    """Refuses a place for the picture where none can be drawn, before any work."""
    if report is None:
        return
    if report.suffix.lower() != ".png":
        raise ValueError(f"--report must end in .png, got {report.name!r}")
    check_file(report, "--report")
    read = [*checkpoint_files(checkpoint), checkpoint / TABLES]
    check_apart(report, "--report", read if aim.data is None else [*read, aim.data])


def _data(aim: Aim, loaded: Checkpoint, form: Form, seed: int) -> Tensor | None:
    """The data that the energy distance is taken to, as the model knows them: those of the class asked for."""
    if aim.objective == "ode":
        if aim.data is not None:
            raise ValueError("--data is for --objective energy; the distance to the flow, ode, needs none")
        return None
    if aim.data is None:
        raise ValueError("--objective energy needs --data, a file of data that were not trained on")
    x, labels = load_array(aim.data)
    check_state(x, "--data", shape=form.shape)
    if labels is not None and aim.label.isdecimal():
        x = x[labels == int(aim.label)]
        if len(x) < 2:
            raise ValueError(f"--data {aim.data} holds {len(x)} samples of class {aim.label}: give 2 or more")
    dtype = next((p.dtype for p in loaded.model.net.parameters() if p.is_floating_point()), torch.float32)
    seen = form.scaling.apply(x, dtype)
    return seen if form.codec is None else codes_of(form.codec, seen, seed)
