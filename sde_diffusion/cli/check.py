"""`sde-diffusion check`: the conformance suite on a class or an instance named on the command line."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from sde_diffusion._files import check_file, keep, write_files
from sde_diffusion.cli._arguments import Say, add_command, path
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.sde.base import SDE
from sde_diffusion.solvers import Solver
from sde_diffusion.testing import Report, check_denoiser, check_sde, check_solver


def add_parser(group: Any) -> None:
    """Adds `check` to the commands."""
    command = add_command(
        group,
        "check",
        run,
        "Check an SDE, solver or model of your own: measured orders, consistency, the rules of the house.",
        epilog="example:\n  sde-diffusion check my_file.py:MySolver --plot orders.png",
    )
    command.add_argument(
        "target", metavar="MODULE:NAME", help="a class, made without arguments, or an instance; or FILE.py:NAME"
    )
    command.add_argument("--json", type=path, metavar="FILE", help="file for the report as JSON")
    command.add_argument("--plot", type=path, metavar="FILE", help=".png of what was measured")


def run(args: argparse.Namespace, say: Say) -> int:
    """Checks what the arguments name, and returns 0 where it passes, else 1."""
    torch.manual_seed(args.seed)  # for the weights of a model that is made here
    return 0 if check_target(args.target, json_file=args.json, plot_file=args.plot, say=say) else 1


def check_target(
    target: str,
    *,
    json_file: Path | None = None,
    plot_file: Path | None = None,
    say: Say,
) -> bool:
    """Runs the check that fits a class or an instance, and tells whether it passed.

    Args:
        target: `module:Name` or `path/to/file.py:Name`; a class is made without arguments.
        json_file: Where to write the report as JSON.
        plot_file: Where to write its curves as a .png.
        say: Called with each line of the report.

    Raises:
        ValueError: A target that is not of that form, a file or module that cannot be imported, a name that is not
            there, or a place that takes no file.
        TypeError: A class that needs arguments, or something that is no SDE, solver or denoiser.
        OSError: A file could not be written at the end; the message says where it is instead.
    """
    for option, file in (("--json", json_file), ("--plot", plot_file)):
        if file is not None:
            check_file(file, option)
    report = _check(load_target(target), target)
    for line in str(report).splitlines():
        say(line)
    if json_file is not None:
        text = json.dumps({"target": target, **report.as_dict()}, indent=1, allow_nan=False) + "\n"
        keep(lambda place: write_files({place: text.encode()}), json_file)
    if plot_file is not None:
        keep(report.plot, plot_file)
    return report.passed


def load_target(target: str) -> object:
    """Returns the instance that `module:Name` or `path/to/file.py:Name` names; it raises what `check_target` does."""
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ValueError(f"wanted module:Name or path/to/file.py:Name, got {target!r}")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    if name not in vars(module):
        found = sorted(key for key, value in vars(module).items() if _is_meant(value, module))
        raise ValueError(f"{place} has no {name}" + (f"; it has {', '.join(found[:8])}" if found else ""))
    thing: object = vars(module)[name]
    if not isinstance(thing, type):
        return thing
    try:
        made: object = thing()
    except Exception as error:
        raise TypeError(
            f"{name} cannot be made without arguments ({type(error).__name__}: {error}): give an instance, "
            f"{place}:name, made in the file"
        ) from error
    return made


def _is_meant(value: object, module: ModuleType) -> bool:
    """Whether a value of a module is one to check: a process, solver or denoiser made in it, and not abstract."""
    kinds = (SDE, Solver, Denoiser)
    if isinstance(value, type):
        return issubclass(value, kinds) and value.__module__ == module.__name__ and not inspect.isabstract(value)
    return isinstance(value, kinds)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    name = f"checked_{path.stem}"  # a file may be called as a module of Python is
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the names in annotations
    sys.path.insert(0, str(path.absolute().parent))  # for what lies beside the file
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.absolute().parent))
    return module


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, "")  # as `python -m` does: modules of the current folder
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"module {name} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")


def _check(thing: object, target: str) -> Report:
    if isinstance(thing, SDE):
        return check_sde(thing)
    if isinstance(thing, Solver):
        return check_solver(thing)
    if isinstance(thing, Denoiser):
        return check_denoiser(thing)
    raise TypeError(f"{target} is a {type(thing).__name__}: wanted an SDE, a Solver or a Denoiser, or a class of one")
