"""The checkpoint that a command works with: on a device, and of classes of your own where they are named.

Code that a checkpoint names is never run by itself: the file it is in is named on the command line.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sde_diffusion.cli._arguments import path
from sde_diffusion.cli.machine import device_named
from sde_diffusion.cli.plan.design import own_classes
from sde_diffusion.training.checkpoint import Checkpoint, load_checkpoint


def add_checkpoint_options(command: argparse.ArgumentParser) -> None:
    """Adds `--net`, `--sde` and `--device`, for the checkpoint that a command reads."""
    own = command.add_argument_group("classes of your own in the checkpoint, whose files are run")
    own.add_argument("--net", metavar="FILE.py:NAME", help="the network")
    own.add_argument("--sde", metavar="FILE.py:NAME", help="the process")
    command.add_argument(
        "--base",
        type=path,
        metavar="DIR",
        help="the base of a control or of adapters, where it is not where it was in the training",
    )
    command.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="auto, cpu, cuda, cuda:1 or mps; auto is cuda where it is there, else cpu",
    )


def loaded_from(checkpoint: Path, args: argparse.Namespace | None = None, *, first: bool = True) -> Checkpoint:
    """Loads a checkpoint, with what `add_checkpoint_options` added: on the CPU, of the library's classes without.

    Args:
        checkpoint: The folder.
        args: The arguments of the command.
        first: Whether `--base` is that of this one.

    Raises:
        FileNotFoundError: No checkpoint, or no file of a class.
        TypeError, ValueError, ImportError: A damaged checkpoint; a class that is not there; a device that is not.
    """
    if args is None:
        return load_checkpoint(checkpoint)
    device = device_named(args.device)
    loaded = load_checkpoint(checkpoint, known=own_classes(args.net, args.sde), base=args.base if first else None)
    loaded.model.to(device)
    return loaded
