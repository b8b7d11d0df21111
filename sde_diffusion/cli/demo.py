"""`sde-diffusion demo`: the demonstration, in full or in a hurry."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from sde_diffusion.cli._arguments import MOST_STEPS, Say, add_command, count, path
from sde_diffusion.demo.demonstration import QUICK, Settings
from sde_diffusion.demo.demonstration import run as run_demo


def add_parser(group: Any) -> None:
    """Adds `demo` to the commands."""
    command = add_command(
        group,
        "demo",
        run,
        "Train on handwritten digits, sample with every solver, score, draw: about six minutes.",
    )
    command.add_argument(
        "--out",
        type=path,
        default=Path("demo"),
        metavar="DIR",
        help="folder for everything written, in place of what an earlier run wrote",
    )
    command.add_argument(
        "--steps", type=count(MOST_STEPS), metavar="N", help="training steps; unset, 1200, or 60 with --quick"
    )
    command.add_argument("--quick", action="store_true", help="everything, in under a minute, and nothing good")


def run(args: argparse.Namespace, say: Say) -> None:
    """Runs the demonstration as the arguments say."""
    settings = replace(QUICK if args.quick else Settings(), seed=args.seed)
    run_demo(args.out, settings if args.steps is None else replace(settings, steps=args.steps), say=say)
