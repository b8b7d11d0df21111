"""Where a `Plan` comes from, flags over a file of TOML, and how it is written down again."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Container, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sde_diffusion.cli.plan import toml
from sde_diffusion.cli.plan.option import Option
from sde_diffusion.cli.plan.options import GROUPS, OPTIONS, Plan, names_of, types_of

NAME = "config.toml"
"""What the configuration is called in the folder of a run."""
TEACHER = "checkpoint"
"""The key that the configuration of a distillation has, and no other."""
OF_THE_CALL = ("resume", "overwrite")
"""Fields that are not part of a run, but of how it is called."""
FREE = (*OF_THE_CALL, "out", "device", "threads", "base", "save_every", "keep", "log_with", "previews")
"""Fields that may change when a run goes on: they have no part in what is learnt."""
UNSET: tuple[Any, ...] = (None, (), {})
KINDS: dict[type, str] = {
    str: "a string",
    bool: "a truth value",
    int: "a whole number",
    float: "a number with a point",
    list: "a list",
    dict: "a table",
}
"""What an error calls the types of TOML."""


def add_options(
    command: argparse.ArgumentParser,
    groups: Mapping[str, Mapping[str, Option]] = GROUPS,
    usual: Plan = Plan(),  # noqa: B008  # frozen
) -> None:
    """Adds options to a parser, all by default, in their groups; those that are not given are not in its answer.

    Args:
        command: The parser.
        groups: Options by the field of `Plan` that they set, in groups by their titles.
        usual: What the help says of those that are not given.
    """
    for title, group in groups.items():
        section = command.add_argument_group(title)
        for key, option in group.items():
            about, default = option.about, getattr(usual, key)
            if default not in UNSET and not option.flag:
                about += f" (default: {default})"
            more: dict[str, Any] = {"action": "store_true"} if option.flag else {"type": option.read}
            if option.many:
                more["action"] = "append"
            if option.bare is not None:
                more |= {"nargs": "?", "const": option.bare}
            if option.metavar is not None:
                more["metavar"] = option.metavar
            if option.choices is not None:
                more["choices"] = option.choices
            flags = [f"--{name}" for name in names_of(key)]
            section.add_argument(*flags, dest=key, default=argparse.SUPPRESS, help=about, **more)


def plan_of(given: Mapping[str, Any], file: Path | None) -> Plan:
    """Makes a plan of what flags gave, by field, over what a file gives.

    Raises:
        FileNotFoundError: No such file.
        ValueError: As `read_config`.
    """
    of_file = {} if file is None else read_config(file)
    flags = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items() if key in OPTIONS}
    return Plan(**{**of_file, **flags})


def read_config(file: Path) -> dict[str, Any]:
    """Reads a file of TOML, whose keys are the flags without their dashes, into fields of `Plan`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is no TOML, an unknown key in it, or a value that does not fit.
    """
    about = table_of(file)
    if TEACHER in about:
        raise ValueError(f"{file} is the configuration of a distillation: sde-diffusion distill {file}")
    return fields_of(about, file)


def table_of(file: Path) -> dict[str, Any]:
    """What a file of TOML holds, as it is there.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that is no TOML.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no configuration file {file}; data are given as --data {file}")
    try:
        return toml.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no TOML: {error}") from None


def fields_of(about: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What a file holds, as fields of `Plan`.

    Raises:
        ValueError: An unknown key, or a value that does not fit.
    """
    known = {name: key for key in OPTIONS for name in names_of(key)}
    found: dict[str, Any] = {}
    for name, value in about.items():
        if name not in known:
            raise ValueError(f"{file}: unknown key {name!r}{_nearest(name, known)}")
        if known[name] in found:
            raise ValueError(f"{file}: {name!r} is given twice, under two of its names")
        try:
            found[known[name]] = _value(value, known[name])
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{file}: {name}: {error}") from None
    return found


def write_config(
    plan: Plan, command: str = "train", more: Mapping[str, Any] = MappingProxyType({}), among: Container[str] = OPTIONS
) -> str:
    """A plan as TOML, from which it can be made again: what is set, with whole paths; not how this run was called.

    Args:
        plan: The plan.
        command: The command that reads it.
        more: What that command is told besides, by key.
        among: The fields that it has.
    """
    lines = [f"# What this run was asked for. The same again: sde-diffusion {command} THIS_FILE --out ANOTHER_FOLDER"]
    lines += [f"{key} = {toml.value(_whole(key, value))}" for key, value in more.items()]
    for each in fields(Plan):
        value = getattr(plan, each.name)
        if each.name in among and each.name not in OF_THE_CALL and value not in UNSET:
            lines.append(f"{names_of(each.name)[0]} = {toml.value(_whole(each.name, value))}")
    return "\n".join(lines) + "\n"


def check_same(plan: Plan, file: Path) -> None:
    """Raises `ValueError` if a run that is to go on was begun, as its file says, with another plan."""
    before = Plan(**read_config(file))
    for each in fields(Plan):
        old, new = (_whole(each.name, getattr(one, each.name)) for one in (before, plan))
        if each.name not in FREE and old != new:
            raise ValueError(
                f"--{names_of(each.name)[0]} is {_shown(new)}, but the run in {file.parent} was begun with "
                f"{_shown(old)}: go on with the same, sde-diffusion train {file} --resume; or begin another from its "
                f"weights, --from {file.parent} and another --out"
            )


def own_file(name: str | None) -> bool:
    """Whether the name of a class is that of one in a file, `net.py:Net`."""
    return name is not None and ".py:" in name


def _value(value: Any, key: str) -> Any:
    """What a value of a file is to `Plan`: of the types that its field takes; the words in it are read as flags are."""
    if OPTIONS[key].many:
        return tuple(_one(part, key) for part in (value if isinstance(value, list) else [value]))
    return _one(value, key)


def _one(value: Any, key: str) -> Any:
    option, (wanted, types) = OPTIONS[key], types_of(key)
    if option.choices is not None:
        wanted = f"one of {', '.join(option.choices)}"
    if type(value) not in types:  # exactly: true is no number, and 5.0 is not whole
        raise argparse.ArgumentTypeError(f"wanted {wanted}, got {value!r}, {KINDS.get(type(value), 'a date or time')}")
    if option.choices is not None and value not in option.choices:
        raise argparse.ArgumentTypeError(f"wanted {wanted}, got {value!r}")
    return value if isinstance(value, bool | dict) else option.read(str(value))


def _nearest(name: str, known: Mapping[str, str]) -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else "; sde-diffusion train --help lists them"


def _whole(key: str, value: Any) -> Any:
    """A value with whole paths, so that it means the same in another folder."""
    if isinstance(value, Path):
        return str(value.absolute())
    if key in ("sde", "net") and own_file(value):
        file, _, inside = value.rpartition(":")
        return f"{Path(file).absolute()}:{inside}"
    if key == "control" and value is not None and Path(value).suffix in (".npy", ".npz"):
        return str(Path(value).absolute())
    if key == "cond":
        return tuple(map(_whole_condition, value))
    return value


def _whole_condition(text: str) -> str:
    name, equals, value = text.partition("=")
    return f"{name}={Path(value).absolute()}" if equals and Path(value).suffix in (".npy", ".npz") else text


def _shown(value: Any) -> str:
    return "unset" if value in UNSET else toml.value(value)
