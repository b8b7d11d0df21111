"""`sde-diffusion train`: from a file of arrays to a checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion._files import beside, keep
from sde_diffusion.cli._arguments import LARGEST_BATCH, MOST_STEPS, Say, add_command, count, path
from sde_diffusion.cli.limits import PASSES, check_batch, check_checkpoint, check_network, classes_of
from sde_diffusion.data.files import load_array
from sde_diffusion.data.standardise import Standardise
from sde_diffusion.denoiser import predict
from sde_diffusion.denoiser.network import Network
from sde_diffusion.nets.mlp import MLP
from sde_diffusion.nets.unet import UNet
from sde_diffusion.sde import processes
from sde_diffusion.training.checkpoint import TABLES, save_checkpoint
from sde_diffusion.training.loop import Training, train
from sde_diffusion.training.recipe import Recipe

WIDEST = 10**5
"""The largest `--width`; memory may set a lower limit."""


def add_parser(group: Any) -> None:
    """Adds `train` to the commands."""
    command = add_command(
        group,
        "train",
        run,
        "Train a model on your own arrays.",
        epilog="example:\n  sde-diffusion train --data faces.npz --out model --steps 5000 --threads 8",
    )
    need = command.add_argument_group("required")
    need.add_argument(
        "--data",
        required=True,
        type=path,
        metavar="FILE",
        help=".npy, or .npz with `x` and perhaps `label`: float vectors (N, D) or images (N, C, H, W), of any scale",
    )
    need.add_argument(
        "--out", required=True, type=path, metavar="DIR", help="folder for the checkpoint, made if need be"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the checkpoint that is there")
    command.add_argument("--sde", choices=processes.named(), default="edm", help="process under which it is trained")
    command.add_argument("--kind", choices=predict.NAMES, default="edm", help="what the network predicts")
    command.add_argument(
        "--steps", type=count(MOST_STEPS), default=3000, metavar="N", help=f"gradient steps, at most {MOST_STEPS:,}"
    )
    command.add_argument(
        "--batch-size",
        type=count(LARGEST_BATCH),
        default=128,
        metavar="N",
        help=f"samples per step, at most {LARGEST_BATCH:,}",
    )
    command.add_argument("--lr", type=float, default=2e-3, help="highest learning rate")
    command.add_argument(
        "--width",
        "--hidden",
        type=count(WIDEST),
        metavar="N",
        help="width of the network: 128 for vectors, 32 channels (a multiple of 8) for images; at most 100,000",
    )


def run(args: argparse.Namespace, say: Say) -> None:
    """Trains a model as the arguments say."""
    train_file(
        args.data,
        args.out,
        design=Design(args.sde, args.kind, args.width),
        steps=args.steps,
        recipe=Recipe(args.batch_size, args.lr),
        seed=args.seed,
        overwrite=args.overwrite,
        say=say,
    )


@dataclass(frozen=True)
class Design:
    """The model that a training makes for its data, by the names of the command line.

    Args:
        sde: The name of the process in `processes.named()`.
        kind: The name in `predict.NAMES` of what the network answers.
        width: The width of the network; None for 128 on vectors and 32 on images.
    """

    sde: str = "edm"
    kind: str = "edm"
    width: int | None = None

    def net(self, x: Tensor, classes: int, seed: int) -> nn.Module:
        """Makes a network for data `x`, with the initial weights of a seed; torch's random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _net_for(x, classes, self.width)


def train_file(
    data: Path,
    out: Path,
    *,
    design: Design | None = None,
    steps: int = 3000,
    recipe: Recipe | None = None,
    seed: int = 0,
    overwrite: bool = False,
    say: Callable[[str], None],
) -> None:
    """Trains a model on an array, and saves it.

    Each column of vectors, or channel of images, is standardised by its mean and standard deviation, which the
    checkpoint keeps. Vectors get a residual MLP, images a U-Net; with labels it is class-conditional. What a run that
    ends early brings along as `training` of its exception is saved beside `out`.

    Args:
        data: An `.npy` or `.npz` file, see `data.load_array`.
        out: The folder for the checkpoint, made if need be; not a link to one.
        design: The process, the parametrisation and the width: `Design()` by default.
        steps: Gradient steps.
        recipe: The batch size and the learning rate: `Recipe()` by default.
        seed: The seed of the initial weights and of the training; fixed, so that a command can be repeated.
        overwrite: Whether a checkpoint that is there is replaced.
        say: Called with every line of the report.

    Raises:
        TypeError, ValueError: Data, a constant column among them, or a combination of process and parametrisation,
            that cannot be trained on; a folder that takes no files, or holds a checkpoint; what would not fit into
            memory. All before any work.
        FileNotFoundError: No such file.
        OSError: The checkpoint could not be written to `out` at the end; the message says where it is instead.
    """
    design, recipe = design or Design(), recipe or Recipe()
    check_checkpoint(out, overwrite)
    x, labels = load_array(data)
    shape, classes = tuple(x.shape[1:]), classes_of(labels)
    check_network(lambda w: _net_for(x, classes, w), design.width or (32 if x.ndim == 4 else 128), out)
    net, scaling = design.net(x, classes, seed), Standardise.of(x, "--data")
    model = _model_for(net, design.sde, design.kind, shape)
    loss = model.objective()
    check_batch(net, shape, recipe.batch_size, passes=PASSES)
    say(f"{len(x)} samples {shape}, {classes or 'no'} classes, {scaling}")
    say(f"{_describe(net)}, {type(model.kind).__name__} prediction, {model.sde!r}, {loss!r}")
    if (tables := out / TABLES).is_file():
        say(f"{tables} is of the model that is replaced, and will be removed with it: tune the new one")

    def save(done: Training, place: Path) -> None:
        extra = {"data_range": [float(x.min()), float(x.max())], "steps": len(done.losses), "seed": seed}
        keep(lambda folder: save_checkpoint(folder, done.model, scaling=scaling, extra=extra), place)

    try:
        z = scaling.apply(x)
        cond = {} if labels is None else {"label": labels}
        done = train(model, z, steps=steps, loss=loss, recipe=recipe, seed=seed, progress=True, cond=cond)
    except BaseException as stop:
        _save_part(getattr(stop, "training", None), save, out, say)
        raise
    save(done, out)
    say(f"{done.seconds:.0f} s, loss {done.loss:.4f} over the last {min(len(done.losses), 100)} steps")
    say(f"saved to {out}; next: sde-diffusion sample --checkpoint {out} --out samples.npz")


def _save_part(
    done: Training | None, save: Callable[[Training, Path], None], out: Path, say: Callable[[str], None]
) -> None:
    """Saves what a run had done when it was ended, by Ctrl-C or numbers that failed, beside the place of the whole."""
    if done is None or not done.losses:
        return
    place = beside(out, "interrupted")
    try:
        save(done, place)
    except (OSError, ValueError) as error:
        say(str(error))
    else:
        say(f"ended after {len(done.losses)} steps; the model up to there is in {place}")


def _describe(net: nn.Module) -> str:
    return f"{type(net).__name__} with {sum(p.numel() for p in net.parameters()):,} parameters"


def _net_for(x: Tensor, classes: int, width: int | None) -> nn.Module:
    """Makes a residual MLP for vectors, a U-Net for images."""
    if x.ndim == 2:
        return MLP(x.shape[1], hidden=width or 128, classes=classes)
    if x.ndim == 4:
        return UNet(x.shape[1], width=width or 32, classes=classes)
    raise ValueError(
        f"--data holds samples of shape {tuple(x.shape[1:])}: wanted vectors (N, D) or images (N, C, H, W); "
        "grey images (N, H, W) become x[:, None]"
    )


def _model_for(net: nn.Module, sde_name: str, kind_name: str, shape: tuple[int, ...]) -> Network:
    return Network(net, processes.named()[sde_name], predict.NAMES[kind_name], shape=shape)
