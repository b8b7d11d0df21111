"""The command line: `sde-diffusion train`, `sample`, `likelihood`, `demo`, `check`. An error is one line, status 2.

A terminal that is gone, or a pipe without a reader, ends nothing: what would be said is dropped.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from sde_diffusion import __version__, commands, predict, processes, solvers
from sde_diffusion._arguments import Parser, count, path
from sde_diffusion._checks import SolverError
from sde_diffusion._streams import steady
from sde_diffusion.training import Recipe

MOST_SAMPLES, MOST_STEPS, WIDEST, LARGEST_BATCH = 10**8, 10**7, 10**5, 10**7
"""What `--n`, the `--steps` of training, `--width` and `--batch-size` may be; memory may set a lower limit."""
MOST_THREADS = max(256, os.cpu_count() or 1)
"""More could not be started on some systems, which ends the process without a word."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        0, or 1 where a check did not pass, or 2 after an error, or 130 after an interruption.
    """
    with steady(), warnings.catch_warnings():
        warnings.showwarning = _warn
        args = _parser().parse_args(argv)
        torch.set_num_threads(args.threads)
        try:
            with _ending_as_interrupted():
                status: int | None = args.run(args)
        except (ValueError, TypeError, ImportError, OSError, SolverError) as error:
            _complain("error: " + " ".join(str(error).split()))
            return 2
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            _complain("error: out of memory: take a smaller --batch-size, a smaller model or fewer samples")
            return 2
        except KeyboardInterrupt:
            _complain("interrupted")
            return 130
    return status or 0


@contextmanager
def _ending_as_interrupted() -> Iterator[None]:
    """A run that is told to end is interrupted, and saves what it has; the process's own answer comes back after it."""
    before = None
    with suppress(ValueError):  # in another thread than the main one, where no signal comes
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(line: str) -> None:
    print(f"sde-diffusion: {line}", file=sys.stderr, flush=True)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    _complain("warning: " + " ".join(str(message).split()))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="sde-diffusion",
        description="Generative modelling with stochastic differential equations: train, sample, or see it work.",
        epilog="`sde-diffusion COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    group = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_train(group)
    _add_sample(group)
    _add_likelihood(group)
    _add_demo(group)
    _add_check(group)
    return parser


def _add(group: Any, name: str, run: Callable[[argparse.Namespace], int | None], what: str, **more: Any) -> Any:
    command = group.add_parser(name, help=what[0].lower() + what[1:], description=what, formatter_class=_Help, **more)
    command.set_defaults(run=run)
    command.add_argument(
        "--seed", type=count(2**32 - 1, least=0), default=0, metavar="K", help="seed of everything random, below 2**32"
    )
    command.add_argument(
        "--threads", type=count(MOST_THREADS), default=1, metavar="N", help=f"processor threads, at most {MOST_THREADS}"
    )
    return command


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults shown where there is one, examples kept as written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def _add_train(group: Any) -> None:
    command = _add(
        group,
        "train",
        _train,
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


def _add_sample(group: Any) -> None:
    command = _add(
        group,
        "sample",
        _sample,
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


def _add_likelihood(group: Any) -> None:
    command = _add(
        group,
        "likelihood",
        _likelihood,
        "Log-likelihood of your own arrays under a checkpoint, with its errors.",
        epilog="example:\n  sde-diffusion likelihood --checkpoint model --data faces.npz --out likelihood.json",
    )
    need = command.add_argument_group("required")
    need.add_argument("--checkpoint", required=True, type=path, metavar="DIR", help="folder written by train or demo")
    need.add_argument("--data", required=True, type=path, metavar="FILE", help=".npy or .npz, as for train")
    need.add_argument(
        "--out",
        required=True,
        type=path,
        metavar="FILE",
        help=".json, with a summary, or .csv; a file there is replaced",
    )
    command.add_argument(
        "--probes",
        type=count(),
        metavar="K",
        help="random probes of the divergence; unset, exact up to 128",
    )
    command.add_argument(
        "--bin-width", type=float, metavar="W", help="width of a level of (dequantised) data, for bits per dimension"
    )
    command.add_argument("--correct", action="store_true", help="extrapolate from the smallest noise level to none")
    command.add_argument(
        "--batch-size", type=count(LARGEST_BATCH), default=64, metavar="N", help="samples in memory at once"
    )


def _add_demo(group: Any) -> None:
    command = _add(
        group,
        "demo",
        _demo,
        "Train on handwritten digits, sample with every solver, score, draw: about five minutes.",
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


def _add_check(group: Any) -> None:
    command = _add(
        group,
        "check",
        _check,
        "Check an SDE, solver or model of your own: measured orders, consistency, the rules of the house.",
        epilog="example:\n  sde-diffusion check my_file.py:MySolver --plot orders.png",
    )
    command.add_argument(
        "target", metavar="MODULE:NAME", help="a class, made without arguments, or an instance; or FILE.py:NAME"
    )
    command.add_argument("--json", type=path, metavar="FILE", help="file for the report as JSON")
    command.add_argument("--plot", type=path, metavar="FILE", help=".png of what was measured")


def _train(args: argparse.Namespace) -> None:
    commands.train_file(
        args.data,
        args.out,
        design=commands.Design(args.sde, args.kind, args.width),
        steps=args.steps,
        recipe=Recipe(args.batch_size, args.lr),
        seed=args.seed,
        overwrite=args.overwrite,
        say=_say,
    )


def _sample(args: argparse.Namespace) -> None:
    commands.sample_file(
        args.checkpoint,
        args.out,
        n=args.n,
        solver=args.solver,
        steps=args.steps,
        nfe=args.nfe,
        label=args.label,
        batch_size=args.batch_size,
        seed=args.seed,
        say=_say,
    )


def _likelihood(args: argparse.Namespace) -> None:
    from sde_diffusion.likelihood_command import likelihood_file

    likelihood_file(
        args.checkpoint,
        args.data,
        args.out,
        probes=args.probes,
        bin_width=args.bin_width,
        correct=args.correct,
        batch_size=args.batch_size,
        seed=args.seed,
        say=_say,
    )


def _demo(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from sde_diffusion.demo import QUICK, Settings, run

    settings = replace(QUICK if args.quick else Settings(), seed=args.seed)
    run(args.out, settings if args.steps is None else replace(settings, steps=args.steps), say=_say)


def _check(args: argparse.Namespace) -> int:
    from sde_diffusion.check_command import check_target

    torch.manual_seed(args.seed)  # for the weights of a model that is made here
    return 0 if check_target(args.target, json_file=args.json, plot_file=args.plot, say=_say) else 1


if __name__ == "__main__":
    sys.exit(main())
