"""The data at the door: everything that can be told of them before the first step, in one pass, a chunk at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion._checks import check_labels, check_state, rows_in_words
from sde_diffusion.data.faults.columns import Columns
from sde_diffusion.data.faults.look import Look, warn_of
from sde_diffusion.data.faults.overlap import Overlap
from sde_diffusion.data.source import Batch, Source
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.nets.text import Vocabulary
from sde_diffusion.nets.tokens import check_tokens
from sde_diffusion.training._input import Transform, transformed, warn
from sde_diffusion.training.run.feed import Inputs

SHIFT = 1.0
"""Mean of a column, in standard deviations the model expects, beyond which `train` warns."""
SPREAD = 3.0
"""Factor between the standard deviation of a column and the one the model expects beyond which `train` warns."""
CHUNK = 2**22
"""Numbers that are looked at together."""
TRIED = 4096
"""Rows that a transform is tried on."""
BY_HEART = 1000
"""After how many passes over the rows a network may have learnt them by heart."""


class Seen(NamedTuple):
    """What one pass over data has seen.

    Attributes:
        columns: The moments of each column, of the data as the model sees them.
        context: Those of the context.
        names: The conditions that rows have.
        whole: Whether these were all rows, and not the first ones of a stream.
    """

    columns: Columns
    context: Columns
    names: set[str]
    whole: bool

    @property
    def unknown(self) -> set[int] | None:
        """The entries of the context that are not known in some row; None for a stream, of which it cannot be said."""
        return self.context.unknown if self.whole else None


def check_inputs(
    model: Denoiser,
    inputs: Inputs,
    transform: Transform | None,
    generator: torch.Generator,
    val: Source | None = None,
    told: Collection[str] = (),
) -> Seen:
    """Looks at all rows, or at the first ones of a stream, and at their conditions; and for rows of `val` among them.

    The objective makes the conditions named in `told`.

    Returns:
        What was seen of them.

    Raises:
        TypeError: Integer or half-precision data, labels that are not integers.
        ValueError: Another event shape; rows that are not finite, by their numbers; labels that do not fit the net.

    Warns:
        UserWarning: A column, or channel, that is not of the scale the model expects; what `Look` finds in columns;
            rows of the null label; rows of `val`.
    """
    overlap = None if val is None else Overlap(val)
    seen, look, labels = _looked_at(model, inputs, transform, generator, told, overlap=overlap)
    faults = look.faults()
    _warn_of_data(model, seen.columns, {i for fault in faults if fault.far for i in fault.columns})
    warn_of(faults, 4)
    if overlap is not None and (text := overlap.fault()):
        warn(text, 4)
    _warn_of_context(seen.context)
    labels.warn_of_null()
    if (
        labels.classes
        and labels.most == labels.classes
        and "label" not in (seen.names | set(() if inputs.given is None else inputs.given.whole))
    ):
        warn(
            f"the net was built with classes={labels.classes}, and no label came: it learns none of them. Give label=, "
            "or build the net without classes",
            4,
        )
    return seen


def check_held_out(
    model: Denoiser,
    data: Source,
    transform: Transform | None,
    generator: torch.Generator,
    trained: Seen,
    told: Collection[str] = (),
) -> None:
    """Looks at all rows that a model is to be validated on, as `check_inputs` does.

    Args:
        model: The model.
        data: The rows.
        transform: As in training.
        generator: Its stream.
        trained: What was seen of the rows that are trained on.
        told: The conditions that the objective makes.

    Raises:
        TypeError, ValueError: As `check_inputs`; other conditions than the rows trained on have; entries of the context
            that are not known, and always were there.

    Warns:
        UserWarning: Rows in other units than those trained on.
    """
    try:
        seen, _, _ = _looked_at(model, Inputs(data, None), transform, generator, told, trained.columns)
    except (TypeError, ValueError) as error:
        raise type(error)(f"val: {error}") from error
    if missing := sorted(trained.names - seen.names):
        raise ValueError(
            f"val comes without {missing[0]!r}, which the rows trained on have: give it with them, "
            f"val=Validation(rows, {missing[0]}=...)"
        )
    if extra := sorted(seen.names - trained.names):
        raise ValueError(
            f"val comes with {extra[0]!r}, which the rows trained on have not: leave it out, or train with it"
        )
    if (strange := seen.columns.strange()) is not None:
        i, share = strange
        mean, std = (of[i] for of in seen.columns.found()[:2])
        others, spread = (of[i] for of in trained.columns.found()[:2])
        warn(
            f"{'channel' if seen.columns.event > 2 else 'column'} {i} of val has mean {mean:.4g} and standard "
            f"deviation {std:.4g}, that of the data {others:.4g} and {spread:.4g}; {share:.0%} of its numbers lie "
            "outside of their range: scale val as the data are scaled, by the same numbers",
            4,
        )
    new = [] if trained.unknown is None else sorted(seen.context.unknown - trained.unknown)
    if new and model.built_with().get("entry_drop") == 0:
        raise ValueError(
            f"val: entries {new} of context are NaN, not known, and never so in the rows trained on: build the "
            "net with entry_drop=0.2, or leave these rows out"
        )


def _looked_at(
    model: Denoiser,
    inputs: Inputs,
    transform: Transform | None,
    generator: torch.Generator,
    told: Collection[str],
    among: Columns | None = None,
    overlap: Overlap | None = None,
) -> tuple[Seen, Look, _Labels]:
    """One pass over the rows and their conditions."""
    columns, context, labels, first = Columns(among), Columns(), _Labels(model), 0
    words = _vocabulary(model)
    look = Look(names=getattr(inputs.data, "columns", ()))
    names: set[str] = set()
    for x, cond in _chunks(inputs):
        if overlap is not None:
            overlap.add(x)
        seen: Tensor | None = x
        if transform is not None:  # a copy: it may work in place, and these rows come again
            seen = transformed(transform, x[:TRIED].clone(), generator) if not first else None
        if seen is not None:
            check_state(seen, "data", shape=model.shape)
            _check_finite(seen, "data", first)
            columns.add(seen)
            look.add(seen)
        if isinstance(size := model.built_with().get("tokens"), int) and size:
            check_tokens(cond.get("tokens"), size, len(x), first)
        for name, value in cond.items():
            _check_condition(model, name, value, first)
        if words is not None and "caption" in cond:
            words.numbers(cond["caption"], first)
        if "label" in cond:
            labels.add(cond["label"], first)
        found = cond.get("context")
        if isinstance(found, Tensor) and found.is_floating_point() and found.ndim == 2:
            context.add(found)
        first += len(x)
        names |= set(cond)
    labels.check()
    _check_came(model, names | set(told))
    whole = isinstance(inputs.data, Source)
    return Seen(columns, context, inputs.names if whole else names, whole), look, labels


def _check_came(model: Denoiser, names: set[str]) -> None:
    """Raises `ValueError` for a condition that the net was built for, and that did not come."""
    built = model.built_with()
    for name in ("context", "image", "tokens"):
        if (size := built.get(name)) and name not in names and not (name == "tokens" and "caption" in names):
            if name == "tokens" and "words" in built:
                raise ValueError("the net reads captions, and none came: give caption=, a list of strings")
            raise ValueError(
                f"the net was built with {name}={size}, and no {name} came: give {name}=, or build the net without it"
            )


def _vocabulary(model: Denoiser) -> Vocabulary | None:
    """The words of a net that reads captions."""
    built = model.built_with()
    words, length = built.get("words"), built.get("length")
    return Vocabulary(words, length) if isinstance(words, list) and isinstance(length, int) else None


def check_passes(inputs: Inputs, steps: int, batch_size: int) -> None:
    """Warns where every row will be seen so often that a network may learn the rows by heart."""
    if isinstance(inputs.data, Source) and (passes := steps * batch_size / len(inputs.data)) > BY_HEART:
        warn(
            f"each of {len(inputs.data):,} rows will be seen {passes:,.0f} times, and may be learnt by heart: keep "
            "some out, and give them as val, which tells when that begins and ends the run there",
            4,
        )


def _chunks(inputs: Inputs) -> Iterator[Batch]:
    data = inputs.data
    if not isinstance(data, Source):
        yield data.first()
        return
    size, first = max(1, CHUNK // max(1, math.prod(data.shape))), 0
    for x, cond in data.chunks(size):
        yield Batch(x, inputs.with_given(torch.arange(first, first + len(x), device="cpu"), cond))
        first += len(x)


def _check_finite(x: Tensor, name: str, first: int) -> None:
    if not math.isfinite(x.sum().item()):
        bad = ~torch.isfinite(x).reshape(len(x), -1).all(1)
        if bool(bad.any()):
            raise ValueError(
                f"{name} holds NaN or infinity in {rows_in_words(bad, first)}: clean the data before it comes here"
            )


def _check_condition(model: Denoiser, name: str, value: Any, first: int) -> None:
    """Numbers are finite; but for unknown entries of a context and tokens that are not there."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_condition(model, f"{name}.{key}", part, first)
    elif isinstance(value, Tensor) and value.is_floating_point():
        if name in ("context", "tokens") and isinstance(model.built_with().get(name), int):
            value = torch.nan_to_num(value, nan=0.0, posinf=math.inf, neginf=-math.inf)
        _check_finite(value if value.ndim else value[None], f"condition {name!r}", first if value.ndim else 0)


def _warn_of_data(model: Denoiser, columns: Columns, leaving: set[int]) -> None:
    """Warns of the first column of vectors, or channel of images, that is not as the model expects; but for some."""
    means, stds, level = columns.found()
    c, single = model.data_std, columns.single

    def sound(i: int) -> bool:
        if single:
            return abs(means[i]) <= SPREAD * c
        return not level[i] and c / SPREAD <= stds[i] <= SPREAD * c and abs(means[i]) <= SHIFT * c

    off = [i for i in range(len(means)) if i not in leaving and not sound(i)]
    if not off:
        return
    i = off[0]
    more = f" (and {len(off) - 1} more)" if len(off) > 1 else ""
    where = f"{'channel' if columns.event > 2 else 'column'} {i}{more} of the data"
    if level[i] and not single:
        warn(f"{where} is constant, {means[i]:.4g}: there is nothing to learn in it, leave it out", 4)
        return
    scale, sign = "" if c == 1 else f"{c:g} * ", "-" if means[i] >= 0 else "+"
    text = (
        f"{where} has mean {means[i]:.4g} and standard deviation {stds[i]:.4g}, but the model expects about 0 and "
        f"{c:g}: standardise it, {scale}(x {sign} {abs(means[i]):.4g}) / {stds[i] or 1:.4g}"
    )
    typical = sorted(stds)[len(stds) // 2]
    alike = typical > 0 and all(
        typical / SPREAD <= s <= SPREAD * typical and abs(m) <= SHIFT * typical
        for m, s in zip(means, stds, strict=True)
    )
    if alike and model.kind is not None and (fitting := model.kind.at_scale(float(f"{typical:.3g}"))):
        text += f", or give predict.{fitting!r}"
    warn(text, 4)


def _warn_of_context(columns: Columns) -> None:
    """Warns of the first column of a context that is far from what networks are made for."""
    means, stds, level = columns.found()
    if columns.count is not None and len(empty := (columns.count == 0).nonzero()):
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        warn(
            f"column {int(empty[0, 0])}{more} of condition 'context' is NaN in all rows, not known: nothing is learnt "
            "of it, leave it out",
            4,
        )
    for i, (mean, std) in enumerate(zip(means, stds, strict=True)):
        far = not 1 / SPREAD <= std <= SPREAD or abs(mean) > SPREAD
        if far and columns.count is not None and columns.count[i] > 1 and not level[i]:
            warn(
                f"column {i} of condition 'context' has mean {mean:.4g} and standard deviation {std:.4g}, but networks "
                f"expect about 0 and 1: standardise it, here and where you sample",
                4,
            )
            return


class _Labels:
    """Labels, held to the classes that the net says it was built with, in its `config`."""

    def __init__(self, model: Denoiser) -> None:
        config = model.built_with()
        known = config.get("classes")
        self.classes: int | None = known if isinstance(known, int) else None
        self.most = -1
        if self.classes is not None:  # the null label, where the net learns it
            self.most = self.classes if config.get("label_drop", 1) else self.classes - 1
        self.low, self.high = 0, -1
        self.bad: tuple[int, int] | None = None
        self.count = 0
        self.null: tuple[int, int] | None = None
        self.rows = self.nulls = 0

    def add(self, labels: Any, first: int) -> None:
        """Takes more labels in, of the rows from `first` on."""
        if self.classes is None:
            return
        found = check_labels(labels, "label")
        if not found.numel():
            return
        low, high = int(found.min()), int(found.max())
        self.low, self.high = (low, high) if self.high < self.low else (min(self.low, low), max(self.high, high))
        self._add_null(found.flatten(), first)
        bad = ((found < 0) | (found > self.most)).flatten().nonzero()
        if len(bad):
            i = int(bad[0, 0])
            self.bad = self.bad or (first + i, int(found.flatten()[i]))
            self.count += len(bad)

    def _add_null(self, found: Tensor, first: int) -> None:
        null = torch.nonzero(found.eq(self.classes or 0))[:, 0]
        self.rows, self.nulls = self.rows + len(found), self.nulls + len(null)
        if len(null) and self.null is None:
            self.null = first + int(null[0]), int(found[null[0]])

    def warn_of_null(self) -> None:
        """Warns of rows whose label is the null label, among others: meant so, or one class too many."""
        if self.null and self.nulls < self.rows:
            row, label = self.null
            warn(
                f"label[{row}] = {label} is the null label of the net: {self.nulls:,} of {self.rows:,} rows are learnt "
                f"as of no class. If {label} is a class, build the net with classes={label + 1}",
                4,
            )

    def check(self) -> None:
        """Raises `ValueError` if a label was none of the net's."""
        if self.classes is None or self.high < self.low:
            return
        if not self.classes:
            raise ValueError(
                f"labels were given, but the net was built with classes=0: leave them out, or build it with "
                f"classes={self.high + 1}"
            )
        if self.high == self.classes and self.low > 0:
            raise ValueError(
                f"labels run from {self.low} to {self.classes}, and {self.classes} is the null label of this net: "
                f"number its classes 0..{self.classes - 1}"
            )
        if self.bad is not None:
            i, label = self.bad
            raise ValueError(
                f"label must lie in 0..{self.classes - 1}, got label[{i}] = {label}"
                + (f" and {self.count - 1} more like it" if self.count > 1 else "")
                + ": correct them, or build the net with more classes"
            )
