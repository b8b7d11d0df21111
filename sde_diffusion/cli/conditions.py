"""Conditions on the command line of a model that is there: `--cond context=1.5,2` or `--cond context=obs.npy`.

They come in the units of the data that the model was trained on, and are brought to what it knows by the scalings that
its checkpoint keeps.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion import nets
from sde_diffusion.cli.forms.form import controls_of
from sde_diffusion.cli.plan.captions import read_captions, vocabulary_of
from sde_diffusion.cli.plan.opened import array_of
from sde_diffusion.data.sources.tables import is_number
from sde_diffusion.denoiser.conditions import PerSample
from sde_diffusion.denoiser.modules import home
from sde_diffusion.training.checkpoint import Checkpoint

ARGUMENT = {"label": "classes", "context": "context", "image": "image", "caption": "words"}
"""The conditions of the networks of the library, and the arguments that they are built with."""
FAR = 1.0
"""Standard deviations beyond the range of the training at which a condition is far from it."""
UNSEEN = 6.0
"""Standard deviations from the mean at which it is, where a checkpoint keeps no range."""
OPTIONS = ("low", "control")
"""Conditions that have an option of their own."""
FILES = (".npy", ".npz", ".csv", ".parquet")


def add_conditions(command: Any, about: str) -> None:
    """Adds `--cond` to a command, or to a group of its options."""
    command.add_argument(
        "--cond", action="append", default=None, metavar="NAME=VALUES|FILE", help=f"{about}; may be given again"
    )


def is_value(word: str) -> bool:
    """Whether a word gives a condition by its numbers, `context=1.5,2`, or by a file beside the data."""
    name, equals, text = word.partition("=")
    if name == "caption" and equals and (" " in text or Path(text).suffix.lower() == ".txt"):
        return True
    return bool(equals) and (Path(text).suffix.lower() in FILES or all(map(is_number, text.split(","))))


def given_conditions(words: Sequence[str] | None, loaded: Checkpoint) -> dict[str, Any]:
    """The conditions that words name, as the model knows them: `(rows, *)`, one row for all or one for each sample.

    Captions are strings, one for all or one for each.

    Args:
        words: `NAME=1.5,2`, one row, or `NAME=FILE`, an array `(rows, *)`, a table, or one context alone, `(d,)`.
        loaded: The checkpoint of the model.

    Raises:
        ValueError: A word of another form; a condition that the model does not take, or that is given twice.
        FileNotFoundError: No such file.
    """
    found: dict[str, Any] = {}
    for word in words or ():
        name, equals, text = word.partition("=")
        known = vocabulary_of(loaded.model.net) if name == "caption" else None
        if not equals or not name or not (text or known):
            one, file = ("caption='a text'", "caption=a.txt") if known else ("context=1.5,2", "context=obs.npy")
            raise ValueError(f"--cond {word[:60]!r}: wanted NAME=VALUES, {one}, or NAME=FILE, {file}")
        if name in found:
            raise ValueError(f"--cond {name} is given twice: one row for each sample goes into a file, {name}=FILE.npy")
        _check_taken(name, loaded)
        if known is not None:
            found[name] = read_captions(text, known)
            continue
        found[name] = scaled(name, _with_rows(name, _values(name, text), loaded), loaded)
    return found


def rows_of(found: Mapping[str, Any], n: int | None, default: int) -> int:
    """How many samples there are to be: `n`, else as many as the conditions have rows, else `default`.

    Raises:
        ValueError: Conditions of another number of rows, that is not one.
    """
    for name, value in found.items():
        if n is None and len(value) > 1:
            n = len(value)
        if len(value) not in (1, n):
            option = f"--{name}" if name in OPTIONS else f"--cond {name}"
            raise ValueError(f"{option} has {len(value):,} rows, for {n or 1:,} samples: wanted one, or one for each")
    return default if n is None else n


def marked(found: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions with the mark that each has a row for a sample, or one for all of them."""
    return {name: PerSample(value) for name, value in found.items()}


def labels_for(wanted: str, n: int, classes: int) -> Tensor | None:
    """The labels of `n` samples, as `--label` asks for them; None where the model is given none."""
    if wanted == "none" or (wanted == "all" and not classes):
        return None
    if wanted == "all":
        return torch.arange(n) % classes
    if not classes:
        raise ValueError(f"--label {wanted}: the model is not class-conditional, leave --label out")
    if not wanted.isdecimal() or len(wanted) > 9 or int(wanted) >= classes:
        raise ValueError(f"--label must be 0..{classes - 1}, all or none, got {wanted[:40]!r}")
    return torch.full((n,), int(wanted))


def scaled(name: str, value: Any, loaded: Checkpoint) -> Any:
    """A condition in the units of the data, as the model knows it.

    Raises:
        ValueError: Another number of entries than in the training.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    dtype, _ = home(loaded.model)
    _warn_of_far(name, value, loaded)
    if (scaling := loaded.conditions.get(name)) is None:
        return value.to(dtype)
    wanted, found = loaded.model.built_with().get(ARGUMENT.get(name, "")), value.shape[1]
    if isinstance(wanted, int) and found != wanted:
        raise ValueError(f"--cond {name} has {found} entries, and {wanted} in the training: give all of them, in order")
    return scaling.apply(value, dtype)


def _warn_of_far(name: str, value: Tensor, loaded: Checkpoint) -> None:
    """Warns of the first number far from all that the training has seen, whose range the checkpoint keeps."""
    scaling = loaded.conditions.get(name)
    low, high = (torch.tensor(end, dtype=torch.float64) for end in loaded.extra.get("ranges", {}).get(name, ([], [])))
    columns = tuple(value.shape[1:2])
    if (not len(low) and scaling is None) or (len(low) and tuple(low.shape) != columns):
        return
    shape = (1, *columns, *[1] * (value.ndim - 2))
    if scaling is None:
        z, a, b, margin = value, low.reshape(shape), high.reshape(shape), (high - low).reshape(shape)
    else:
        if isinstance(wanted := loaded.model.built_with().get(ARGUMENT.get(name, "")), int) and columns != (wanted,):
            return  # which is refused
        z, margin = scaling.apply(value, torch.float64), torch.tensor(FAR, dtype=torch.float64)
        ends = (low.reshape(shape), high.reshape(shape)) if len(low) else ()
        a, b = (scaling.apply(end, torch.float64) for end in ends) if ends else (-UNSEEN + margin, UNSEEN - margin)
    far = ((z < a - margin) | (z > b + margin)).nonzero()
    if len(far):
        row, i = far[0, :2].tolist()
        names = loaded.extra.get(name, ())
        seen = f", which lay from {float(low[i]):.6g} to {float(high[i]):.6g}" if len(low) else ""
        more = f" (and {len(far) - 1:,} more)" if len(far) > 1 else ""
        warnings.warn(
            f"--cond {name}: entry {repr(names[i]) if i < len(names) else i} of row {row} is "
            f"{float(value[tuple(far[0])]):.6g}{more}, far from all in the training{seen}: the model answers there "
            "what it has never learnt",
            UserWarning,
            stacklevel=3,
        )


def _values(name: str, text: str) -> Tensor:
    """Numbers with commas between as one row, or the rows of a file."""
    if Path(text).suffix.lower() in FILES:
        return array_of(Path(text), name)
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--cond {name}={text[:60]!r}: wanted numbers with commas between, nan for one that is not known, or a "
            f"file, {', '.join(FILES)}"
        ) from None
    if name == "label":
        if len(numbers) > 1 or numbers[0] != int(numbers[0]):
            raise ValueError(f"--cond label={text[:60]!r}: wanted one class, or a file with one for each sample")
        return torch.tensor([int(numbers[0])])
    return torch.tensor([numbers], dtype=torch.float64)


def _with_rows(name: str, value: Tensor, loaded: Checkpoint) -> Tensor:
    """Numbers of a file without rows as the one row that they are, or as rows of one number."""
    wanted = loaded.model.built_with().get(ARGUMENT.get(name, ""))
    if name != "context" or value.ndim != 1:
        return value
    return value[:, None] if wanted == 1 else value[None]


def innermost(net: Any) -> Any:
    """The network that others stand around: captions, a control, adapters."""
    while isinstance(inside := getattr(net, "net", None), nn.Module) and type(net) not in nets.CLASSES:
        net = inside
    return net


def _check_taken(name: str, loaded: Checkpoint) -> None:
    """Refuses what a net of the library was built without."""
    known, net = loaded.model.built_with(), loaded.model.net
    ours = type(innermost(net)) in nets.CLASSES and name not in controls_of(net)
    if ours and not known.get(ARGUMENT.get(name, "")):
        others = ", ".join(each for each, of in ARGUMENT.items() if known.get(of))
        raise ValueError(f"--cond {name}: the model takes no {name}, {f'only {others}' if others else 'nor another'}")
