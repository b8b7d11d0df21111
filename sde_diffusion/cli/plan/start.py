"""Data beside the model that they are given to, of a checkpoint or of other data: names, shapes, conditions, units.

A model knows its data by their place and in the units of its scaling. Data in other units are what a fine-tuning may be
meant for, and are warned of; the others are refused. All numbers that are told are in the units of the data.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from sde_diffusion.data.faults.columns import Columns
from sde_diffusion.data.scalings import Scaling
from sde_diffusion.data.sources.base import Source
from sde_diffusion.data.sources.scaled import Condition
from sde_diffusion.training.checkpoint import Checkpoint
from sde_diffusion.training.run.door import SHIFT, SPREAD

CHUNK = 2**20
"""Numbers that are looked at together."""
KINDS = {"columns": "columns", "labels": "classes"}
"""How an error calls the names of a source, by their key in `about`."""


def check_names(names: Mapping[str, Any], known: Mapping[str, Any], what: str) -> None:
    """Raises `ValueError` where data name their columns, or their classes, otherwise than those that a model learns.

    Args:
        names: `about` of the source of the data.
        known: That of the data learnt from, or the `extra` of a checkpoint; what one of them does not name is let be.
        what: What an error calls the data.
    """
    for key, now in names.items():
        before = known.get(key)
        if not before or not now or list(now) == list(before):
            continue
        said = f"{what}: its {KINDS.get(key, f'columns of {key}')} are {_listed(now)}"
        learnt = f"but those learnt from are {_listed(before)}"
        if key == "labels":
            raise ValueError(f"{said}, {learnt}, in this order: give each class by its number in it")
        missing, more = ([each for each in one if each not in other] for one, other in ((before, now), (now, before)))
        advice = [f"missing: {_listed(missing)}"] if missing else []
        if any(name in _conditions(known) for name in more):
            advice.append(f"a condition then, and none now: name it again, --cond {','.join(_conditions(known))}")
        elif more:
            advice.append(f"not learnt: {_listed(more)}, leave out or rename")
        if not advice:
            raise ValueError(f"{said}, {learnt}, in this order: bring them into it")
        raise ValueError(f"{said}, {learnt}: {'; '.join(advice)}")


class Fitted(Protocol):
    """What was fitted to data: a codec, a low resolution."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of one sample of the data."""

    @property
    def scaling(self) -> Scaling:
        """The scaling of the data."""

    @property
    def told(self) -> tuple[str, ...]:
        """Conditions of a model that are made of its data."""


def check_start(
    source: Source, cond: Mapping[str, Any], start: Checkpoint, data: Path, place: str, of: Fitted | None = None
) -> None:
    """Looks whether data fit the model that a training begins from.

    Args:
        source: The data, as they come.
        cond: The conditions of one of its rows.
        start: What the training begins from.
        data: What the data are called.
        place: Where `start` was read, after the option that named it.
        of: What stands between the model and its data; None for nothing.

    Raises:
        ValueError: Other columns, another shape, other conditions.

    Warns:
        UserWarning: Data in other units, or constant.
    """
    what, known = f"--data {data}", start.extra
    check_names(source.about, known, what)
    shape, columns = start.model.shape if of is None else of.shape, known.get("columns")
    scaling = start.scaling if of is None else of.scaling
    if shape is not None and tuple(shape) != tuple(source.shape):
        named = f", {_listed(columns)}" if columns else ""
        raise ValueError(
            f"{what} has samples of shape {tuple(source.shape)}, but the model in {place} is one of "
            f"{tuple(shape)}{named}: give data of that shape{_without(place)}"
        )
    _check_conditions(cond, start, what, place, () if of is None else of.told)
    parts = [(source, scaling, columns, "of the data")]
    for name, own in start.conditions.items():
        if name in cond:
            names = known.get(name) if name != "control" else None  # of which it says other things
            parts.append((Condition(source, name), own, names, f"of the condition {name}"))
    for part, units, names, where in parts:
        if text := _off(part, units, names or (), where, _without(place)):
            warnings.warn(f"{what}: {text}", UserWarning, stacklevel=2)


def _check_conditions(
    cond: Mapping[str, Any], start: Checkpoint, what: str, place: str, made: Sequence[str] = ()
) -> None:
    """Refuses conditions of another size than the model takes, and data without one that it needs."""
    built, field = start.model.built_with(), cond.get("control")
    controls = built.get("control")
    channels = controls.get("control") if isinstance(controls, dict) else None
    if channels is not None and field is not None and field.shape[1:2] != (channels,):
        raise ValueError(
            f"--control has fields of shape {tuple(field.shape[1:])}, and the control in {place} is told {channels} "
            "channels: give as many"
        )
    for name in ("context", "image"):
        wanted, value = built.get(name), cond.get(name)
        if not isinstance(wanted, int) or name in made:
            continue
        found = 0 if value is None else int(value.shape[1]) if value.ndim > 1 else 1
        if found != wanted:
            names = start.extra.get(name)
            entries = f"{name} of {wanted}" if wanted else f"no {name}"
            named = f" ({_listed(names)})" if names and wanted else ""
            words = ",".join(start.extra.get("cond") or [name])
            advice = f"--cond {words}" if wanted else "leave that out"
            raise ValueError(
                f"{what} comes with {f'{name} of {found}' if found else f'no {name}'}, but the model in {place} "
                f"was trained with {entries}{named}: {advice}{_without(place)}"
            )


def _off(source: Source, scaling: Scaling, names: Sequence[Any], of: str, without: str) -> str:
    """What is to be told of the first column that is far from those that were learnt; empty where all are close."""
    seen, known = Columns(), Columns()
    for x, _ in source.chunks(max(1, CHUNK // max(1, math.prod(source.shape)))):
        wide = x.double()
        seen.add(wide)
        known.add(scaling.apply(wide, torch.float64))
    means, stds, level = seen.found()
    off = [
        i
        for i, (mean, std, _) in enumerate(zip(*known.found(), strict=True))
        if level[i] or abs(mean) > SHIFT or not 1 / SPREAD <= std <= SPREAD
    ]
    if not off or seen.single:
        return ""
    i = off[0]
    low, centre, high = (_column(scaling, source.shape, z)[i] for z in (-1, 0, 1))
    kind = "channel" if len(source.shape) > 1 else "column"
    more = f" (and {len(off) - 1} more)" if len(off) > 1 else ""
    where = f"{kind} {names[i] if i < len(names) else i}{more} {of}"
    if level[i]:
        return f"{where} is constant, {means[i]:.4g}: there is nothing to learn in it"
    return (
        f"{where} has mean {means[i]:.4g} and standard deviation {stds[i]:.4g}, but the model learnt it about "
        f"{centre:.4g} with {(high - low) / 2:.4g}: is it in other units? Bring it to those{without}"
    )


def _column(scaling: Scaling, shape: Sequence[int], z: float) -> list[float]:
    """What each column is in the units of the data where the model sees `z`."""
    found = scaling.undo(torch.full((1, *shape), float(z), dtype=torch.float64, device="cpu"))[0].double()
    return found.reshape(shape[0] if shape else 1, -1)[:, 0].tolist()


def _without(place: str) -> str:
    """What else there is than to fit data to a model: nothing, where the model is to be learnt of."""
    return ", or train without --from" if place.startswith("--from") else ""


def _conditions(known: Mapping[str, Any]) -> list[str]:
    """The names of the conditions that were learnt, as they are given."""
    return [str(word) for word in known.get("cond") or ()]


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names))
