"""`sde-diffusion sample`: from a checkpoint to a file of samples, or to a folder of many, over processes."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sde_diffusion._files import check_file, keep, write_files
from sde_diffusion.cli._arguments import LARGEST_BATCH, Say, add_command, budgets, count, path
from sde_diffusion.cli.checkpoints import add_checkpoint_options, loaded_from
from sde_diffusion.cli.conditions import ARGUMENT, add_conditions, given_conditions, labels_for, marked, rows_of
from sde_diffusion.cli.forms.control import read_control
from sde_diffusion.cli.forms.drawn import check_drawn
from sde_diffusion.cli.forms.form import CONTROL, LEVEL, Form, form_of
from sde_diffusion.cli.forms.stage import cascade_of, check_stages, read_low
from sde_diffusion.cli.limits import check_batch, check_samples, check_seeds, columns
from sde_diffusion.cli.machine import processes
from sde_diffusion.cli.plan.option import number
from sde_diffusion.cli.target.draw import SOLVERS, Draw, sampler_of
from sde_diffusion.cli.target.known import Known, read_known
from sde_diffusion.cli.target.options import (
    LED_BY,
    LED_STEPS,
    Target,
    add_target_options,
    default_label,
    model_of,
    target_of,
)
from sde_diffusion.cli.target.weighed import weigh
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.plots import picture
from sde_diffusion.sampler.base import Sampler
from sde_diffusion.sampler.distributed import sample_to
from sde_diffusion.training.checkpoint import TABLES, Checkpoint

DEFAULT = 64
"""How many samples are drawn where nothing is said."""
MOST_SAMPLES = 10**8
"""The largest `--n`; memory, or the disk, may set a lower limit."""


def add_parser(group: Any) -> None:
    """Adds `sample` to the commands."""
    command = add_command(
        group,
        "sample",
        run,
        "Draw samples from a checkpoint.",
        epilog="examples:\n  sde-diffusion sample --checkpoint demo/checkpoint --n 100 --label 7 --out sevens.png\n"
        "  sde-diffusion sample --checkpoint model --cond context=1.5,2 --num 50000 --out posterior\n"
        "  sde-diffusion sample --checkpoint demo/checkpoint --guidance 2 --out guided.png\n"
        "  sde-diffusion sample --checkpoint model --inpaint row.npy --particles 500 --n 1000 --out rest.npz\n"
        "  torchrun --nproc-per-node 2 -m sde_diffusion.cli sample --checkpoint model --samples 50000 --out samples",
    )
    need = command.add_argument_group("required")
    need.add_argument("--checkpoint", required=True, type=path, metavar="DIR", help="folder written by train or demo")
    need.add_argument(
        "--out",
        required=True,
        type=path,
        metavar="PLACE",
        help=".npy; .npz with `x` and `label`; .png, a picture of images or of points in the plane; a file there is "
        "replaced. Without an ending, a folder of shards, of any size, which goes on after a kill",
    )
    what = command.add_argument_group("what is drawn")
    what.add_argument(
        "--n",
        "--num",
        "--samples",
        type=count(MOST_SAMPLES),
        metavar="N",
        help="number of samples; unset, 64, or one for each row of a condition",
    )
    what.add_argument(
        "--label",
        metavar="K",
        help="class of a class-conditional model; `all`, if unset, takes the classes in turn, `none` asks for no class",
    )
    add_conditions(what, "condition, in the units of the training: one row, `context=1.5,2`, or a file of one for each")
    add_target_options(command)
    stages = command.add_argument_group("stages of a cascade, trained with --low-res")
    stages.add_argument(
        "--low",
        type=path,
        metavar="FILE",
        help="low resolutions, of which the stage in --checkpoint draws high ones, in the units of the data: .npy, or "
        ".npz with `low`",
    )
    stages.add_argument(
        "--then",
        type=path,
        action="append",
        default=[],
        metavar="DIR",
        help="a stage that draws a high resolution of what was drawn before it; may be given again",
    )
    stages.add_argument(
        "--level",
        type=number,
        metavar="S",
        help=f"noise on the low resolutions, in standard deviations of the data; unset, {LEVEL:g}, or the highest that "
        "a stage was trained with, if that is less",
    )
    steer = command.add_argument_group("a control, trained with --control")
    fields = steer.add_mutually_exclusive_group()
    fields.add_argument("--control", type=path, metavar="FILE", help="its fields: .npy, or .npz with `control`")
    fields.add_argument(
        "--control-of",
        type=path,
        metavar="FILE",
        help="data, of which its fields are made as in the training: .npy, or .npz with `x`",
    )
    steer.add_argument(
        "--control-weight", type=number, metavar="W", help="its strength: unset, 1, as trained; 0 for the base alone"
    )
    how = command.add_argument_group("how")
    how.add_argument(
        "--solver",
        choices=SOLVERS,
        help="how the equation is solved, of a flow map by jump or consistency too; unset, what `tune` kept for --nfe, "
        f"or the sampler's default, or {LED_BY} with --inpaint",
    )
    cost = how.add_mutually_exclusive_group()
    cost.add_argument(
        "--steps",
        type=count(),
        metavar="N",
        help=f"solver steps, at most a million; unset, the solver's own, or {LED_STEPS} with --inpaint",
    )
    cost.add_argument(
        "--nfe",
        type=budgets,
        metavar="N[,N]",
        help="budget of network evaluations per sample, instead; of several stages one for all, or one for each",
    )
    how.add_argument("--no-tuned", action="store_true", help="leave aside what `tune` kept in the checkpoint")
    how.add_argument(
        "--batch-size", type=count(LARGEST_BATCH), default=256, metavar="N", help="samples in memory at once"
    )
    add_checkpoint_options(command)


def run(args: argparse.Namespace, say: Say) -> None:
    """Draws samples as the arguments say."""
    draw = Draw(
        n=args.n,
        solver=args.solver,
        steps=args.steps,
        nfe=None if args.nfe is None else tuple(args.nfe),
        label=args.label,
        batch_size=args.batch_size,
        tuned=not args.no_tuned,
        cond=tuple(args.cond or ()),
        target=target_of(args),
        low=args.low,
        then=tuple(args.then),
        level=args.level,
        control=args.control,
        control_of=args.control_of,
        weight=args.control_weight,
    )
    loaded = [loaded_from(place, args, first=not j) for j, place in enumerate((args.checkpoint, *draw.then))]
    sample_file(args.checkpoint, args.out, draw=draw, seed=args.seed, say=say, loaded=loaded)


def sample_file(
    checkpoint: Path,
    out: Path,
    *,
    draw: Draw | None = None,
    seed: int = 0,
    say: Say,
    loaded: Sequence[Checkpoint] | None = None,
) -> None:
    """Draws samples from a checkpoint to the disk, in the units of the data it was trained on.

    Args:
        checkpoint: The folder of the checkpoint.
        out: The file to write: `.npy`; `.npz` with `x` and `label`; or `.png`. Arrays are float32, or float64 where
            float32 cannot hold the data. A name without an ending is a folder of shards, see `sampler.distributed`,
            which a run on several processes needs.
        draw: How many samples, and how they are drawn: `Draw()` by default.
        seed: The seed `k` that gives sample `i` the stream `k + i`; fixed, so that a command can be repeated.
        say: Called with every line of the report.
        loaded: The checkpoint, and those of further stages, if they are read already, on the device to work on.

    Raises:
        FileNotFoundError: No checkpoint.
        ValueError: A damaged checkpoint, a condition or a file name that does not fit, a place that takes no file, or
            what would not fit into memory. All before any work.
        OSError: The file could not be written to `out` at the end; the message says where it is instead.
    """
    draw = draw or Draw()
    _check_place(out)
    first = draw.of_stage(0)
    first.target.check(solver=draw.solver, budget=draw.nfe is not None, folder=out if _sharded(out) else None)
    parts = _parts(checkpoint, draw, loaded)
    told, known, n = _given(first, parts, say)
    base, last = parts[0].loaded, parts[-1]
    model = model_of(draw.target, known, base, told, say)
    passes = model.cost * (1 if known is None else 2)  # the gradient of the network is taken
    scaling, labels, beside = last.form.scaling, told.get("label"), dict[str, float]()
    check_seeds(seed, n)
    if draw.target.particles is not None:
        check_samples(base, n, 1, out, told)
        x, beside = weigh(model, draw.target.particles, n, draw.steps, seed, told, known, base, say)
        keep(lambda path: _write(path, scaling.undo(x.cpu()), labels, base, beside), out)
        say(f"{n:,} samples of shape {base.model.shape} in {out}")
        return
    cond = marked(told) | ({} if known is None else {"y": known.y})
    cond |= {} if draw.weight is None else {"strength": draw.weight}
    sampler = _sampler(parts, model, draw, say)
    seen = {name: value for name, value in told.items() if name != "low"}
    if not _sharded(out):
        check_samples(last.loaded, n, draw.batch_size, out, seen, passes=passes, shape=last.form.shape)
        x = sampler.sample(n, seed=seed, batch_size=draw.batch_size, progress=True, cond=cond)
        keep(lambda path: _write(path, scaling.undo(x.cpu()), labels, last.loaded, beside), out)
    else:
        check_batch(last.loaded.model, min(n, draw.batch_size), passes=passes, cond=seen)
        size = draw.batch_size
        sample_to(sampler, n, out, seed=seed, batch_size=size, scaling=scaling, progress=True, cond=cond)
    say(f"{n:,} samples of shape {last.form.shape} in {out}, by {sampler!r}")


@dataclass(frozen=True)
class _Part:
    """One of the checkpoints that are drawn from, one after the other."""

    place: Path
    loaded: Checkpoint
    form: Form


def _parts(checkpoint: Path, draw: Draw, loaded: Sequence[Checkpoint] | None) -> list[_Part]:
    """The checkpoints that are drawn from, after a look that they can be."""
    places = (checkpoint, *draw.then)
    options = ("--checkpoint", *["--then"] * len(draw.then))
    found = [loaded_from(place) for place in places] if loaded is None else loaded
    forms = [form_of(*each) for each in zip(places, found, options, strict=True)]
    names = [f"{option} {place}" for option, place in zip(options, places, strict=True)]
    check_stages(names, forms, found, draw.low)
    check_drawn(forms, draw)
    return [_Part(*each) for each in zip(places, found, forms, strict=True)]


def _sampler(parts: Sequence[_Part], model: Denoiser, draw: Draw, say: Say) -> Sampler:
    """The sampler of one checkpoint, or of several after one another."""
    stages: list[Sampler] = []
    for j, part in enumerate(parts):
        own, of = (model, draw) if j == 0 else (part.loaded.model, replace(draw, target=Target()))
        one = sampler_of(part.loaded, own, part.place / TABLES, of.of_stage(j), say)
        stages.append(part.form.around(one, draw.level))
    if len(stages) == 1:
        return stages[0]
    if draw.target.guidance != 1:
        say("the first stage is guided, and the others are told what it drew")
    return cascade_of(stages, [part.form for part in parts], [part.loaded for part in parts])


def _given(draw: Draw, parts: Sequence[_Part], say: Say) -> tuple[dict[str, Tensor], Known | None, int]:
    """The conditions of the model, what is known of the samples, and how many of them there are to be."""
    loaded, form, target, n = parts[0].loaded, parts[0].form, draw.target, draw.n
    known = None if target.inpaint is None else read_known(target.inpaint, target.noise, loaded)
    told = given_conditions(draw.cond, loaded)
    if draw.low is not None:
        told["low"] = read_low(draw.low, loaded, form)
    field = read_control(draw.control, draw.control_of, loaded, form)
    if field is not None:
        told[CONTROL] = field
    elif form.control and not any(name in told for name in form.control):
        if draw.weight is not None:
            raise ValueError("--control-weight is the strength of a field, and none is given: give it, --control FILE")
        say("no field is given to the control, --control FILE: samples are those of the base")
    rows = None if known is None else known.rows
    if rows is not None:
        if n not in (None, rows) and rows != 1:
            raise ValueError(
                f"--inpaint has {rows:,} rows, for {n:,} samples: wanted one row, for all of them, or one for each"
            )
        n = rows if n is None else n
    n = rows_of(told, n, DEFAULT)
    if "label" not in told:
        labels = labels_for(default_label(draw.label, target, loaded), n, loaded.classes)
        told = told if labels is None else {**told, "label": labels}
    for name in ("context", "image", "caption"):
        if loaded.model.built_with().get(ARGUMENT[name]) and name not in (*told, *form.told):
            say(f"no {name} is given, --cond {name}=...: samples are drawn as of an unknown one")
    return told, known, n


def _sharded(out: Path) -> bool:
    """Whether samples go to the disk as they are drawn: to a folder, or from several processes."""
    return not out.suffix or processes() > 1


def _check_place(out: Path) -> None:
    """Refuses what takes no samples, by its name or since it cannot be written."""
    ending = out.suffix.lower()
    if ending not in ("", ".npy", ".npz", ".png"):
        raise ValueError(f"--out must end in .npy, .npz or .png, got {out.name!r}; a folder of shards has no ending")
    if processes() > 1 and ending not in ("", ".npy"):
        raise ValueError(f"--out {out}: {processes()} processes draw to a folder, a name without an ending, or a .npy")
    if not _sharded(out):
        check_file(out, "--out")


def _write(path: Path, x: Tensor, labels: Tensor | None, loaded: Checkpoint, beside: Mapping[str, Any]) -> None:
    if path.suffix.lower() == ".png":
        low, high = loaded.extra.get("data_range", (float(x.min()), float(x.max())))
        picture(path, x, low=low, high=high, columns=columns(len(x), loaded))
        return
    content = io.BytesIO()
    arrays: dict[str, Any] = {"x": x.numpy()} | ({} if labels is None else {"label": labels.expand(len(x)).numpy()})
    np.save(content, arrays["x"]) if path.suffix.lower() == ".npy" else np.savez(content, **arrays, **beside)
    write_files({path: content.getvalue()})
