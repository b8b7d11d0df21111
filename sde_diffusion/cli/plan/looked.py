"""What one pass over the data and conditions of a plan finds in them, in the units of the data, before any scaling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.data.dequantised import MOST
from sde_diffusion.data.faults.look import Look, warn_of
from sde_diffusion.data.sources.base import Source

SCALED = ("context", "image", "control")
"""Conditions that are numbers, whatever they are kept as."""
CHUNK = 4096
"""Rows that are looked at together."""
LARGE = 2.0**20
"""Whole numbers above which the width of their bins is of no account."""
DATA = ""
"""The name that the data themselves go by among their conditions."""


def is_scaled(name: str, value: Any) -> bool:
    """Whether a condition is of numbers, that are to be scaled."""
    return isinstance(value, Tensor) and value.ndim > 1 and (value.is_floating_point() or name in SCALED)


@dataclass
class Looked:
    """What is found in data, or in a condition, in one pass; and their least and greatest value."""

    look: Look
    whole: Tensor | None = None  # which columns hold whole numbers alone, and none that is large
    range: list[float] = field(default_factory=lambda: [math.inf, -math.inf])

    def add(self, x: Tensor) -> None:
        """Takes more rows in."""
        self.range = [min(self.range[0], float(x.min())), max(self.range[1], float(x.max()))]
        if x.ndim == 2:
            whole = ((x == x.round()) & (x.abs() < LARGE)).all(0)
            self.whole = whole if self.whole is None else self.whole & whole
        if x.dtype not in (torch.uint8, torch.bool):  # in whose range nothing lies far off
            self.look.add(x)


def looked_at(source: Source, cond: Mapping[str, Any]) -> dict[str, Looked]:
    """What is found in data, as they came, and in each of their conditions that are numbers, by name."""
    whole = not source.rows(torch.zeros(1, dtype=torch.int64, device="cpu")).x.is_floating_point()
    found = {DATA: Looked(Look("--data", source.columns, whole=whole))}
    for name in (name for name, value in cond.items() if is_scaled(name, value)):
        found[name] = Looked(Look(f"the condition {name}", source.about.get(name, ()), condition=True))
    first = 0
    for x, given in source.chunks(max(1, CHUNK * 64 // max(1, math.prod(source.shape)))):
        if whole:
            _check_bins(x, first, source.columns)
        first += len(x)
        for name, each in found.items():
            each.add(x if name == DATA else given[name])
    return found


def _check_bins(x: Tensor, first: int, columns: Sequence[str]) -> None:
    """Raises `ValueError` for a whole number whose bin has no points in float64."""
    if x.dtype != torch.int64:
        return
    far = ((x > int(MOST)) | (x < -int(MOST))).nonzero()
    if len(far):
        row, i = [*far[0].tolist(), 0][:2]
        column = repr(columns[i]) if i < len(columns) else i
        raise ValueError(
            f"column {column} of --data holds {int(x[tuple(far[0])])} in row {first + row}, beyond 2**50, where "
            "float64 has no points in the bin of a whole number: take an offset from it first, or save floats"
        )


def tell(looked: Mapping[str, Looked], scale: str) -> None:
    """Warns of what is found; refuses what `scale` would make nothing of."""
    for each in looked.values():
        faults = each.look.faults()
        for fault in faults:
            if fault.spoils and scale != "none" and not (fault.far and scale == "quantile"):
                raise ValueError(fault.text)
        warn_of(faults, 3)
