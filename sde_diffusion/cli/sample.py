"""`sde-diffusion sample`: from a checkpoint to a file of samples."""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion import solvers
from sde_diffusion._files import check_file, keep, write_files
from sde_diffusion.cli._arguments import LARGEST_BATCH, Say, add_command, count, path
from sde_diffusion.cli.limits import check_samples, check_seeds, columns
from sde_diffusion.plots import picture
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.training.checkpoint import Checkpoint, load_checkpoint

MOST_SAMPLES = 10**8
"""The largest `--n`; memory may set a lower limit."""


def add_parser(group: Any) -> None:
    """Adds `sample` to the commands."""
    command = add_command(
        group,
        "sample",
        run,
        "Draw samples from a checkpoint.",
        epilog="example:\n  sde-diffusion sample --checkpoint demo/checkpoint --n 100 --label 7 --out sevens.png",
    )
    need = command.add_argument_group("required")
    need.add_argument("--checkpoint", required=True, type=path, metavar="DIR", help="folder written by train or demo")
    need.add_argument(
        "--out",
        required=True,
        type=path,
        metavar="FILE",
        help=".npy; .npz with `x` and `label`; or .png, a picture of images or of points in the plane; a file there "
        "is replaced",
    )
    command.add_argument(
        "--n", type=count(MOST_SAMPLES), default=64, metavar="N", help="number of samples, all in one file"
    )
    command.add_argument("--solver", choices=solvers.named(), default="dpmpp2", help="how the equation is solved")
    cost = command.add_mutually_exclusive_group()
    cost.add_argument(
        "--steps", type=count(), metavar="N", help="solver steps, at most a million; unset, the solver's own"
    )
    cost.add_argument("--nfe", type=count(), metavar="N", help="budget of network evaluations per sample, instead")
    command.add_argument(
        "--label",
        metavar="K",
        default="all",
        help="class of a class-conditional model; `all` takes the classes in turn, `none` asks for no class",
    )
    command.add_argument(
        "--batch-size", type=count(LARGEST_BATCH), default=256, metavar="N", help="samples in memory at once"
    )


def run(args: argparse.Namespace, say: Say) -> None:
    """Draws samples as the arguments say."""
    draw = Draw(args.n, args.solver, args.steps, args.nfe, args.label, args.batch_size)
    sample_file(args.checkpoint, args.out, draw=draw, seed=args.seed, say=say)


@dataclass(frozen=True)
class Draw:
    """How many samples are drawn from a checkpoint, of which class, and how.

    Args:
        n: The number of samples.
        solver: The name of the solver in `solvers.named()`.
        steps: The number of solver steps; None for the solver's own.
        nfe: A budget of network evaluations per sample, in place of `steps`.
        label: A class, `"all"` for every class in turn, or `"none"`.
        batch_size: The number of samples in memory at once.
    """

    n: int = 64
    solver: str = "dpmpp2"
    steps: int | None = None
    nfe: int | None = None
    label: str = "all"
    batch_size: int = 256


def sample_file(
    checkpoint: Path,
    out: Path,
    *,
    draw: Draw | None = None,
    seed: int = 0,
    say: Say,
) -> None:
    """Draws samples from a checkpoint into a file, in the units of the data it was trained on.

    Args:
        checkpoint: The folder of the checkpoint.
        out: The file to write: `.npy`; `.npz` with `x` and `label`; or `.png`. Arrays are float32, or float64 where
            float32 cannot hold the data.
        draw: How many samples, and how they are drawn: `Draw()` by default.
        seed: The seed `k` that gives sample `i` the stream `k + i`; fixed, so that a command can be repeated.
        say: Called with every line of the report.

    Raises:
        FileNotFoundError: No checkpoint.
        ValueError: A damaged checkpoint, a label or a file name that does not fit, a place that takes no file, or
            what would not fit into memory. All before any work.
        OSError: The file could not be written to `out` at the end; the message says where it is instead.
    """
    draw, suffix = draw or Draw(), out.suffix.lower()
    if suffix not in (".npy", ".npz", ".png"):
        raise ValueError(f"--out must end in .npy, .npz or .png, got {out.name!r}")
    check_file(out, "--out")
    loaded = load_checkpoint(checkpoint)
    labels = _labels_for(draw.label, draw.n, loaded.classes)
    solver = solvers.named()[draw.solver]
    sampler = SDESampler(loaded.model.sde, loaded.model, solver=solver, steps=draw.steps, nfe=draw.nfe)
    check_seeds(seed, draw.n)
    check_samples(loaded, draw.n, draw.batch_size, out)
    cond: dict[str, Any] = {} if labels is None else {"label": labels}
    x = sampler.sample(draw.n, seed=seed, batch_size=draw.batch_size, progress=True, **cond)
    x = loaded.scaling.undo(x)
    keep(lambda path: _write(path, x, labels, loaded), out)
    say(f"{draw.n} samples of shape {tuple(x.shape[1:])} in {out}, by {sampler!r}")


def _write(path: Path, x: Tensor, labels: Tensor | None, loaded: Checkpoint) -> None:
    if path.suffix.lower() == ".png":
        low, high = loaded.extra.get("data_range", (float(x.min()), float(x.max())))
        picture(path, x, low=low, high=high, columns=columns(len(x), loaded))
        return
    content = io.BytesIO()
    arrays: dict[str, Any] = {"x": x.numpy()} | ({} if labels is None else {"label": labels.numpy()})
    np.save(content, arrays["x"]) if path.suffix.lower() == ".npy" else np.savez(content, **arrays)
    write_files({path: content.getvalue()})


def _labels_for(wanted: str, n: int, classes: int) -> Tensor | None:
    if wanted == "none" or (wanted == "all" and not classes):
        return None
    if wanted == "all":
        return torch.arange(n) % classes
    if not classes:
        raise ValueError(f"--label {wanted}: the model is not class-conditional, leave --label out")
    if not wanted.isdecimal() or len(wanted) > 9 or int(wanted) >= classes:
        raise ValueError(f"--label must be 0..{classes - 1}, all or none, got {wanted[:40]!r}")
    return torch.full((n,), int(wanted))
