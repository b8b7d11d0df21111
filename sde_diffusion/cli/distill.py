"""`sde-diffusion distill`: from a checkpoint to one that draws in one evaluation, or two or four."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from sde_diffusion._files import write_files
from sde_diffusion.cli._arguments import Say, add_command, path
from sde_diffusion.cli.forms.drawn import check_taught
from sde_diffusion.cli.forms.form import form_of
from sde_diffusion.cli.forms.latent import in_codes, without_codec
from sde_diffusion.cli.limits import check_checkpoint
from sde_diffusion.cli.machine import device_named
from sde_diffusion.cli.plan.config import (
    NAME,
    add_options,
    fields_of,
    own_file,
    plan_of,
    table_of,
    write_config,
)
from sde_diffusion.cli.plan.design import made_with, own_classes
from sde_diffusion.cli.plan.inputs import read_inputs
from sde_diffusion.cli.plan.option import Option, number
from sde_diffusion.cli.plan.options import DATA, KEEPING, MACHINE, TRAINING, Plan, names_of
from sde_diffusion.cli.plan.running import Course, next_line, recipe_of, run_plan
from sde_diffusion.cli.plan.teacher import kept_out, recorded, unfinished
from sde_diffusion.cli.target.options import Target, model_of
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.denoiser.network import Network
from sde_diffusion.distillation import distilling
from sde_diffusion.distillation.objective import MapObjective
from sde_diffusion.distillation.progressive import Progressive
from sde_diffusion.guidance.extrapolation import check_scale
from sde_diffusion.training.callbacks import Event
from sde_diffusion.training.checkpoint import Checkpoint, load_checkpoint

LOSSES: Mapping[str, type[MapObjective]] = {name: cls for name, cls in distilling.LOSSES.items() if cls != Progressive}
"""What `--loss` may name: not the progressive one, which takes a phase for each halving of the steps."""
USUAL = Plan(steps=1000, batch_size=256, lr=1e-3, val=0.0)
"""What is taken where nothing is said."""
LEFT_OUT = ("scale", "weight", "times", "val", "patience")
"""Options of a training that a distillation has not: its scaling is the teacher's, its objective its own."""
OWN = ("net", "sde")


def add_parser(group: Any) -> None:
    """Adds `distill` to the commands."""
    command = add_command(
        group,
        "distill",
        run,
        "Teach a checkpoint to draw in one to four evaluations.",
        shared=False,
        epilog="examples:\n  sde-diffusion distill --checkpoint model --out fast --steps 1000\n"
        "  sde-diffusion sample --checkpoint fast --nfe 1 --out samples.npz\n"
        "  sde-diffusion distill --checkpoint model --guidance 2 --data faces.npz --out guided\n"
        "  sde-diffusion distill fast/config.toml --resume",
    )
    command.add_argument(
        "config",
        nargs="?",
        type=path,
        metavar="CONFIG",
        help="a file of TOML with the options below, as it is kept with a run; flags go before it",
    )
    need = command.add_argument_group("required, here or in CONFIG")
    need.add_argument("--checkpoint", type=path, metavar="DIR", help="folder of the teacher")
    how = command.add_argument_group("what is learnt")
    how.add_argument(
        "--loss",
        choices=tuple(LOSSES),
        help="what a jump is to be: shortcut, two of the map's; trajectory, some steps of the teacher's solver and a "
        "jump from there; consistency and meanflow as in their papers (default: shortcut). Progressive distillation "
        "is a run for each halving of the calls, in Python: distillation.Progressive",
    )
    how.add_argument(
        "--guidance",
        type=number,
        metavar="W",
        help="scale of classifier-free guidance of the teacher: the map is guided then, at one pass of the network "
        "(default: 1.0)",
    )
    add_options(command, _groups(), USUAL)
    own = command.add_argument_group("classes of your own in the checkpoint, whose files are run")
    for name, what in zip(OWN, ("network", "process"), strict=True):
        own.add_argument(f"--{name}", metavar="FILE.py:NAME", default=argparse.SUPPRESS, help=f"the {what}")


def _groups() -> dict[str, dict[str, Option]]:
    """The options of a training that a distillation has too."""
    said = "unset, what the checkpoint was trained on, if `train` made it: " + DATA["data"].about
    groups = {
        "data": {**DATA, "data": replace(DATA["data"], about=said)},
        "training": {**TRAINING, "lr": replace(TRAINING["lr"], about="highest learning rate")},
        "saving": KEEPING,
        "machine": MACHINE,
    }
    return {title: {k: o for k, o in group.items() if k not in LEFT_OUT} for title, group in groups.items()}


def run(args: argparse.Namespace, say: Say) -> None:
    """Distils a model as the arguments say."""
    kept, own = _kept(args.config)
    own |= {key: value for key in own if (value := getattr(args, key)) is not None}
    if own["checkpoint"] is None:
        raise ValueError("give --checkpoint, the folder of the teacher, as a flag or in a configuration file")
    given = {key: value for key, value in vars(args).items() if key != "lr" or value is not None}
    plan = plan_of(vars(USUAL) | kept | given | {"start": own["checkpoint"]}, None)
    torch.set_num_threads(plan.threads)
    distill_file(plan, loss=own["loss"], guidance=own["guidance"], say=say)


def _kept(file: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a configuration says: fields of `Plan`, and what a distillation is told besides."""
    own: dict[str, Any] = {"checkpoint": None, "loss": "shortcut", "guidance": 1.0}
    if file is None:
        return {}, own
    if not file.is_file():
        raise FileNotFoundError(f"there is no configuration file {file}; the teacher is given as --checkpoint {file}")
    about = table_of(file)
    own |= {key: about.pop(key) for key in own if key in about}
    if own["checkpoint"] is not None:
        if not isinstance(own["checkpoint"], str) or not own["checkpoint"]:
            raise ValueError(f"{file}: checkpoint: wanted a folder, got {own['checkpoint']!r}")
        own["checkpoint"] = Path(own["checkpoint"])
    if own["loss"] not in LOSSES:
        raise ValueError(f"{file}: loss: wanted one of {', '.join(LOSSES)}, got {own['loss']!r}")
    if type(own["guidance"]) not in (int, float):
        raise ValueError(f"{file}: guidance: wanted a number, got {own['guidance']!r}")
    found = fields_of(about, file)
    if strange := sorted(found.keys() - _fields()):
        raise ValueError(f"{file}: a distillation has no {names_of(strange[0])[0]!r}: leave it out")
    return found, own


def _fields() -> set[str]:
    """The fields of `Plan` that a distillation has."""
    return {key for group in _groups().values() for key in group} | set(OWN)


def _config(plan: Plan, start: Path, loss: str, guidance: float) -> bytes:
    """The configuration that is kept with a run, which `_kept` reads."""
    own = {"checkpoint": start, "loss": loss, "guidance": float(guidance)}
    among = _fields() - {key for key in OWN if not own_file(getattr(plan, key))}
    return write_config(plan, "distill", own, among).encode()


def distill_file(plan: Plan, *, loss: str = "shortcut", guidance: float = 1.0, say: Say) -> None:
    """Distils a checkpoint, and keeps the run in a folder, from which it can go on.

    The map begins as a copy of the network; data, conditions and scaling are those of the teacher.

    Args:
        plan: What is asked for; `start` is the teacher, `data` None for what it was trained on.
        loss: A name in `LOSSES`.
        guidance: The scale of classifier-free guidance of the teacher, 1 for none.
        say: Called with every line of the report.

    Raises:
        TypeError: A network that is not told a second time, with how to give it one.
        ValueError: A teacher that is a map already, or cannot be guided; data that do not fit it; a folder that takes
            no files, or holds a run; a run to go on with that was begun otherwise. All before any work.
        FileNotFoundError: No checkpoint, no data, or no run to go on with.
        OSError: The run could not be written to its folder; the message says where the model is instead.
    """
    check_scale(guidance, "--guidance")
    start, out = _checked(plan)
    loaded = load_checkpoint(start, known=own_classes(*(name for name in (plan.net, plan.sde) if own_file(name))))
    if isinstance(loaded.model, FlowMap):
        raise ValueError(
            f"--checkpoint {start} holds a flow map already: sample it with --nfe 1, 2 or 4, or distil the model that "
            "it was made of"
        )
    form = form_of(start, loaded)
    check_taught(form, f"--checkpoint {start}")
    fast = _map_of(loaded.model, loss, plan.seed)
    plan = plan if plan.data is not None else recorded(plan, start)
    data = plan.data or Path()
    cond = plan.cond or tuple(str(word) for word in loaded.extra.get("cond", ()))
    inputs = read_inputs(replace(plan, cond=cond, **kept_out(data, start)), data, loaded, "--checkpoint", of=form)
    if inputs.held_out is not None:
        say(f"{len(inputs.held_out):,} rows are kept out, as in the training of {start}")
        inputs = replace(inputs, held_out=None)
    if text := unfinished(start, loaded.extra.get("steps")):
        say(text)
    told = inputs.rows.rows(torch.zeros(1, dtype=torch.int64)).cond
    _check_labels(told, loaded, data)
    loaded.model.to(device_named(plan.device))
    teacher: Denoiser = model_of(Target(guidance), None, loaded, told, say).eval()
    inputs.extra["distilled"] = {"checkpoint": str(start), "loss": loss, "guidance": guidance}
    name = LOSSES[loss].__name__

    def keep_plan(event: Event) -> None:
        if event.kind == "start":
            write_files({out / NAME: _config(plan, start, loss, guidance)})

    course = Course(
        lambda _: LOSSES[loss](teacher),
        recipe_of(plan, inputs),
        lambda _: f"{name} of the model in {start}",
        told=(keep_plan,),
        again=f"sde-diffusion distill {shlex.quote(str(out / NAME))} --resume",
    )
    if form.codec is not None:
        form.codec.to(device_named(plan.device))
        inputs, course = in_codes(plan, inputs, out, form.codec, course, start, say=say)
    else:
        course = replace(course, told=(*course.told, without_codec(plan, out)))
    try:
        run_plan(plan, inputs, fast, out, course, say=say)
    except ValueError as error:
        raise ValueError(_in_words(str(error), start)) from error
    say(next_line(plan, inputs, out, " --nfe 1"))


def _checked(plan: Plan) -> tuple[Path, Path]:
    """The teacher's folder and that of the run, after a look at them."""
    start, out = plan.start, plan.out
    if start is None or out is None:
        raise ValueError("give --out, the folder for the map")
    if out.resolve() == start.resolve():
        raise ValueError(f"--out {out} is the folder of the teacher, --checkpoint: give another one for the map")
    if plan.resume and plan.overwrite:
        raise ValueError("--resume goes on with the run in --out, --overwrite replaces it: give one of them")
    if plan.batch_size % plan.accumulate:
        raise ValueError(
            f"--batch-size {plan.batch_size} does not split into --accumulate {plan.accumulate} equal parts"
        )
    if not plan.resume:
        check_checkpoint(out, plan.overwrite)
    elif not (out / "state.json").is_file():
        raise FileNotFoundError(f"--out {out} holds no run to go on with: leave --resume out to begin one")
    return start, out


def _map_of(model: Network, loss: str, seed: int) -> FlowMap:
    """The map that begins as a model, its second time with the initial weights of a seed."""
    reach = "any" if "any" in LOSSES[loss].reaches else "data"
    made = made_with(lambda: distilling.map_of(model, reach), seed)
    return cast(FlowMap, made)


def _check_labels(told: Mapping[str, Any], loaded: Checkpoint, data: Path) -> None:
    """Refuses data with labels that the teacher does not take, or without those that it does."""
    if loaded.classes and "label" not in told:
        raise ValueError(
            f"--data {data} has no labels, and the model in --checkpoint has {loaded.classes} classes: give `label` in "
            "the file, or --cond label=..., as for its training"
        )
    if "label" in told and not loaded.classes and "classes" in loaded.model.built_with():
        raise ValueError(f"--data {data} has labels, and the model in --checkpoint has no classes: leave them out")


def _in_words(text: str, start: Path) -> str:
    """An error of a run that was begun otherwise: here, weights are no place to begin from."""
    head, begun, _ = text.partition(", or begin anew from its weights")
    if begun and text.startswith("loss.teacher "):
        return (
            f"--checkpoint {start} is not the teacher that the run was begun with, or has been trained on or guided "
            "otherwise since: begin anew, in another --out or with --overwrite"
        )
    return f"{head}, or begin anew in another --out" if begun else text
