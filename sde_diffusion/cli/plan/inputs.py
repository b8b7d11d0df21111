"""The data that a plan names, as the model sees them: opened, parted, scaled, with what they tell a network."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.cli.limits import classes_of
from sde_diffusion.cli.plan.captions import check_words, listed, vocabulary_of
from sde_diffusion.cli.plan.design import Facts
from sde_diffusion.cli.plan.looked import CHUNK, DATA, SCALED, is_scaled, looked_at, tell
from sde_diffusion.cli.plan.opened import open_source, parted
from sde_diffusion.cli.plan.options import Plan
from sde_diffusion.cli.plan.start import Fitted, check_names, check_start
from sde_diffusion.data.dequantised import Dequantised
from sde_diffusion.data.held_out import split
from sde_diffusion.data.quantile import Quantile
from sde_diffusion.data.scalings import Scaling
from sde_diffusion.data.sources.base import Source
from sde_diffusion.data.sources.scaled import Condition, scaled
from sde_diffusion.data.standardise import Standardise
from sde_diffusion.nets.text import words_of
from sde_diffusion.noise.seeds import Use, one_stream
from sde_diffusion.training.checkpoint import Checkpoint

FEW = 8
"""Entries of a condition up to which an example has them all."""
FEWEST = 50
"""Rows below which none are kept out: what a few of them say is chance."""


@dataclass(frozen=True)
class Inputs:
    """Data as a training takes them.

    Args:
        rows: To train on, scaled; whole numbers as they are, for the transform.
        held_out: Kept out, likewise; None without.
        transform: What makes whole numbers continuous, and scales them; else None.
        scaling: The scaling of the data.
        conditions: Those of the conditions that are numbers, by name.
        facts: What the network is told of them.
        extra: What is kept with the model: the range of the data, the names of columns and of classes, the conditions.
        whole: The columns of whole numbers, in a table that has others too.
        coded: Whether the rows are codes of the data, whose scaling is that of the codec.
    """

    rows: Source
    held_out: Source | None
    transform: Dequantised | None
    scaling: Scaling
    conditions: dict[str, Scaling]
    facts: Facts
    extra: dict[str, Any]
    whole: tuple[str, ...] = ()
    coded: bool = False

    def of_shape(self, shape: tuple[int, ...]) -> Inputs:
        """The same, as a network of other samples is told of them: of codes."""
        return replace(self, facts=replace(self.facts, shape=shape))

    def log_jacobian(self) -> float:
        r"""The mean of $\log p(x) - \log p(z)$ over the rows kept out: from nats of scaled data to those of data."""
        if self.held_out is None or self.coded:
            return 0.0
        total = 0.0
        for x, _ in self.held_out.chunks(CHUNK):
            own = self.scaling.undo(x) if self.transform is None else dequantised(x, 0)
            total += float(self.scaling.log_jacobian(own).sum())
        return total / len(self.held_out)

    def example(self) -> list[str]:
        """The conditions that a sample has to be told, as `--cond` has them: those of the first row, if few."""
        row, found = self.rows.rows(torch.zeros(1, dtype=torch.int64, device="cpu")).cond, []
        for name, value in row.items():
            if name == "caption" and isinstance(value, list):
                found.append(f"caption={shlex.quote(value[0])}")
            if name in ("label", "control") or not isinstance(value, Tensor):
                continue
            known = value.nan_to_num(nan=0.0) if value.is_floating_point() else value
            own = self.conditions[name].undo(known) if name in self.conditions else known
            if own.ndim == 2 and own.shape[1] <= FEW:
                found.append(f"{name}={','.join(f'{number:.6g}' for number in own[0].tolist())}")
            else:
                found.append(f"{name}=FILE.npy")
        return found


def read_inputs(
    plan: Plan, data: Path, start: Checkpoint | None, named: str = "--from", *, of: Fitted | None = None
) -> Inputs:
    """Opens the data of a plan, keeps some out, and fits scalings to the others.

    Args:
        plan: What the training is asked for.
        data: Its file, or folder.
        start: The checkpoint that it begins from, whose scalings are taken; None to fit them.
        named: The option that named the checkpoint.
        of: What has been fitted to such data before, where that is not the model of `start`: a codec.

    Raises:
        FileNotFoundError: No such file.
        ImportError: What reads it is not installed.
        TypeError, ValueError: Data or conditions that cannot be trained on.

    Warns:
        ColumnWarning: A column of which a model would learn something else than is meant.
    """
    source = open_source(data, plan.cond, plan.size, plan.shrink)
    if len(source) == 1:
        raise ValueError(f"--data {data} has 1 row: a model is learnt from many, and two at least have a spread")
    labels, row = source.labels(), source.rows(torch.zeros(1, dtype=torch.int64, device="cpu"))
    if start is not None:
        check_start(source, row.cond, start, data, f"{named} {plan.start}", of)
    elif of is not None and of.shape not in (None, source.shape):
        raise ValueError(f"--latent: the codec is one of data of shape {of.shape}, and --data has {source.shape}")
    rows, held_out = _parted(plan, source)
    whole = not row.x.is_floating_point()
    looked = looked_at(source, row.cond)
    tell(looked, plan.scale if start is None else "none")
    found = looked[DATA].whole
    numbers = [] if whole or found is None else found.nonzero()[:, 0].tolist()
    among = tuple(source.columns[i] if source.columns else str(i) for i in numbers)
    if start is None:
        scaling = of.scaling.fitting(source.shape) if of else _scaling_of_part(plan.scale, rows, source)
        conditions = {} if plan.scale == "none" else _condition_scalings(rows, row.cond)
        classes = classes_of(labels)
    else:
        known = start.scaling if of is None else of.scaling
        scaling, classes = known.fitting(source.shape), start.classes
        fresh = {name: value for name, value in row.cond.items() if name == "control" and name not in start.conditions}
        conditions = dict(start.conditions) | ({} if plan.scale == "none" else _condition_scalings(rows, fresh))
    context, image = (row.cond.get(name) for name in SCALED[:2])
    facts = Facts(
        source.shape,
        classes if labels is not None else 0,
        0 if context is None else _entries(context, "context", 2),
        0 if image is None else _entries(image, "image", len(source.shape) + 1),
        tuple(sorted(set(row.cond) - {"label", "caption", *SCALED})),
        2 if plan.learn_variance else 1,
        *_words_in(source, plan, rows, held_out, start),
    )
    apart = None if whole else scaling
    return Inputs(
        scaled(rows, apart, conditions),
        None if held_out is None else scaled(held_out, apart, conditions),
        Dequantised(scaling=scaling) if whole else None,
        scaling,
        conditions,
        facts,
        extra={
            "data_range": looked.pop(DATA).range,
            "ranges": {name: each.look.extremes.range for name, each in looked.items() if each.look.known},
            "cond": _words(plan.cond),
            "whole": whole,
            **source.about,
        },
        whole=among,
    )


def dequantised(x: Tensor, seed: int) -> Tensor:
    """Whole numbers with a fresh point in the bin of each, of width one, from a seed; float64."""
    return Dequantised(dtype=torch.float64)(x, one_stream(seed, use=Use.DEQUANTISATION))


def _parted(plan: Plan, source: Source) -> tuple[Source, Source | None]:
    """Rows to train on, and rows kept out."""
    if isinstance(plan.val, Path):
        if parted(plan.cond)[1]:
            raise ValueError(
                f"--val {plan.val}: conditions in a file beside --data are not those of other data: put both into one "
                ".npz or table each"
            )
        other = open_source(plan.val, plan.cond, plan.size, plan.shrink)
        if other.shape != source.shape:
            raise ValueError(f"--val {plan.val} has samples of shape {other.shape}, and --data of {source.shape}")
        check_names(other.about, source.about, f"--val {plan.val}")
        return source, other
    if not plan.val or len(source) < FEWEST:
        return source, None
    return split(source, None if plan.val == "auto" else plan.val, plan.seed)


def _scaling(scale: str, rows: Source) -> Scaling:
    if scale == "none":
        return Standardise(torch.tensor(0.0, device="cpu"), torch.tensor(1.0, device="cpu"))
    return (Quantile if scale == "quantile" else Standardise).of(rows, "--data")


def _scaling_of_part(scale: str, rows: Source, source: Source) -> Scaling:
    """The scaling of the rows to train on; where these alone have none, the error says so."""
    try:
        return _scaling(scale, rows)
    except ValueError as error:
        if rows is source:
            raise
        _scaling(scale, source)  # which raises the same where all rows are at fault
        raise ValueError(
            f"{error}; the rows kept out for validation have others there: --val 0 or another --seed would keep them in"
        ) from error


def _condition_scalings(rows: Source, cond: Mapping[str, Any]) -> dict[str, Scaling]:
    """A scaling for every condition that is numbers."""
    found: dict[str, Scaling] = {}
    for name, value in cond.items():
        if is_scaled(name, value):
            found[name] = Standardise.of(Condition(rows, name), f"the condition {name}", missing=True)
    return found


def _words_in(
    source: Source, plan: Plan, rows: Source, held_out: Source | None, start: Checkpoint | None
) -> tuple[tuple[str, ...], int]:
    """The words of the captions of all rows, and how many the longest has; those of a model that is begun from.

    Raises:
        ValueError: Captions without a word; a word that such a model has not learnt.
    """
    if "caption" not in source.rows(torch.zeros(1, dtype=torch.int64, device="cpu")).cond:
        return (), 0
    captions = [
        caption
        for part in (rows, held_out)
        if part is not None
        for batch in part.chunks(CHUNK)
        for caption in listed(batch.cond["caption"])
    ]
    if start is not None:
        if (known := vocabulary_of(start.model.net)) is None:
            raise ValueError(
                f"--data comes with captions, and the model in --from {plan.start} reads none: leave them out"
            )
        check_words(captions, known, f"--from {plan.start}")
        return tuple(known.words), known.length
    found = [words_of(caption) for caption in captions]
    if not any(found):
        raise ValueError("the condition caption holds no words: leave it out of --cond")
    return tuple(sorted({word for words in found for word in words})), max(map(len, found))


def _words(cond: Sequence[str]) -> list[str]:
    """Conditions, one word for each that is named alone."""
    return [part.strip() for word in cond for part in ([word] if "=" in word else word.split(","))]


def _entries(value: Tensor, name: str, ndim: int) -> int:
    if value.ndim != ndim:
        wanted = "(N, d)" if name == "context" else "(N, C, *lengths), as the data"
        shape = "(N, " + ", ".join(map(str, value.shape[1:])) + ")" if value.ndim > 1 else "(N,)"
        raise ValueError(f"the condition {name} has shape {shape}, wanted {wanted}")
    return int(value.shape[1])
