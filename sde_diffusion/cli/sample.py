"""`sde-diffusion sample`: from a checkpoint to a file of samples, or to a folder of many, over processes."""

from __future__ import annotations

import argparse
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from sde_diffusion import solvers
from sde_diffusion._files import check_file, keep, write_files
from sde_diffusion.cli._arguments import LARGEST_BATCH, Say, add_command, count, path
from sde_diffusion.cli.checkpoints import add_checkpoint_options, loaded_from
from sde_diffusion.cli.conditions import add_conditions, given_conditions, labels_for, marked, rows_of
from sde_diffusion.cli.limits import check_batch, check_samples, check_seeds, columns
from sde_diffusion.cli.machine import processes
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
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.plots import picture
from sde_diffusion.sampler.distributed import sample_to
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.solvers.base import Solver
from sde_diffusion.training.checkpoint import TABLES, Checkpoint
from sde_diffusion.tuning.made_for import TableWarning
from sde_diffusion.tuning.tuned import Tuned

SOLVERS: Mapping[str, Solver] = {
    **solvers.named(),
    **{name: solver for cls in solvers.MAPPED for name, solver in cls.named().items()},
}
"""What `--solver` may name: those of every model, and those of a flow map."""
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
    cost.add_argument("--nfe", type=count(), metavar="N", help="budget of network evaluations per sample, instead")
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
        nfe=args.nfe,
        label=args.label,
        batch_size=args.batch_size,
        tuned=not args.no_tuned,
        cond=tuple(args.cond or ()),
        target=target_of(args),
    )
    loaded = loaded_from(args.checkpoint, args)
    sample_file(args.checkpoint, args.out, draw=draw, seed=args.seed, say=say, loaded=loaded)


@dataclass(frozen=True)
class Draw:
    """How many samples are drawn from a checkpoint, of which conditions, and how.

    Args:
        n: The number of samples; None for one for each row of a condition, or 64.
        solver: The name of the solver in `SOLVERS`; None for the default, or a tuned one.
        steps: The number of solver steps; None for the solver's own.
        nfe: A budget of network evaluations per sample, in place of `steps`.
        label: A class, `"all"` for every class in turn, or `"none"`; None for all, or none where a part is known.
        batch_size: The number of samples in memory at once.
        tuned: Whether a sampler that was tuned for `nfe` and kept in the checkpoint is taken, where no solver is named.
        cond: Conditions, as `--cond` has them.
        target: What is drawn from in place of the model itself.
    """

    n: int | None = None
    solver: str | None = None
    steps: int | None = None
    nfe: int | None = None
    label: str | None = None
    batch_size: int = 256
    tuned: bool = True
    cond: tuple[str, ...] = ()
    target: Target = field(default_factory=Target)


def sample_file(
    checkpoint: Path,
    out: Path,
    *,
    draw: Draw | None = None,
    seed: int = 0,
    say: Say,
    loaded: Checkpoint | None = None,
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
        loaded: The checkpoint, if it is read already, on the device to work on.

    Raises:
        FileNotFoundError: No checkpoint.
        ValueError: A damaged checkpoint, a condition or a file name that does not fit, a place that takes no file, or
            what would not fit into memory. All before any work.
        OSError: The file could not be written to `out` at the end; the message says where it is instead.
    """
    draw = draw or Draw()
    _check_place(out)
    draw.target.check(solver=draw.solver, nfe=draw.nfe, folder=out if _sharded(out) else None)
    loaded = loaded_from(checkpoint) if loaded is None else loaded
    told, known, n = _given(draw, loaded, say)
    model = model_of(draw.target, known, loaded, told, say)
    passes = model.cost * (1 if known is None else 2)  # the gradient of the network is taken
    scaling, labels, beside = loaded.scaling, told.get("label"), dict[str, float]()
    check_seeds(seed, n)
    if draw.target.particles is not None:
        check_samples(loaded, n, 1, out, told)
        x, beside = weigh(model, draw.target.particles, n, draw.steps, seed, told, known, loaded, say)
        keep(lambda path: _write(path, scaling.undo(x.cpu()), labels, loaded, beside), out)
        say(f"{n:,} samples of shape {loaded.model.shape} in {out}")
        return
    cond = marked(told) | ({} if known is None else {"y": known.y})
    sampler = _sampler(loaded, model, checkpoint / TABLES, draw, say)
    if not _sharded(out):
        check_samples(loaded, n, draw.batch_size, out, told, passes=passes)
        x = sampler.sample(n, seed=seed, batch_size=draw.batch_size, progress=True, cond=cond)
        keep(lambda path: _write(path, scaling.undo(x.cpu()), labels, loaded, beside), out)
    else:
        check_batch(loaded.model, min(n, draw.batch_size), passes=passes, cond=told)
        size = draw.batch_size
        sample_to(sampler, n, out, seed=seed, batch_size=size, scaling=scaling, progress=True, cond=cond)
    say(f"{n:,} samples of shape {loaded.model.shape} in {out}, by {sampler!r}")


def _given(draw: Draw, loaded: Checkpoint, say: Say) -> tuple[dict[str, Tensor], Known | None, int]:
    """The conditions of the model, what is known of the samples, and how many of them there are to be."""
    target, n = draw.target, draw.n
    known = None if target.inpaint is None else read_known(target.inpaint, target.noise, loaded)
    told = given_conditions(draw.cond, loaded)
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
    for name in ("context", "image"):
        if loaded.model.built_with().get(name) and name not in told:
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


def _sampler(loaded: Checkpoint, model: Denoiser, tables: Path, draw: Draw, say: Say) -> SDESampler:
    """The sampler asked for: a tuned one where it fits, which is said."""
    if draw.tuned and draw.nfe is not None and draw.solver is None:
        found = _tuned(loaded, tables, draw, say)
        if found is not None:
            return found
    named, steps = draw.solver, draw.steps
    if named is None and draw.target.inpaint is not None:
        named, steps = LED_BY, LED_STEPS if steps is None and draw.nfe is None else steps
    solver = None if named is None else SOLVERS[named]
    try:
        return SDESampler(model.sde, model, solver=solver, steps=steps, nfe=draw.nfe)
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


def _write(path: Path, x: Tensor, labels: Tensor | None, loaded: Checkpoint, beside: Mapping[str, Any]) -> None:
    if path.suffix.lower() == ".png":
        low, high = loaded.extra.get("data_range", (float(x.min()), float(x.max())))
        picture(path, x, low=low, high=high, columns=columns(len(x), loaded))
        return
    content = io.BytesIO()
    arrays: dict[str, Any] = {"x": x.numpy()} | ({} if labels is None else {"label": labels.expand(len(x)).numpy()})
    np.save(content, arrays["x"]) if path.suffix.lower() == ".npy" else np.savez(content, **arrays, **beside)
    write_files({path: content.getvalue()})
