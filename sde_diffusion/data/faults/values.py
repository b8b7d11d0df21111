"""Columns that take a few values only: they have no density, and a model that is fitted to one gains without end."""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 10
"""Most values of such a column."""
EACH = 10
"""How often, in the mean, each of them comes among the rows that are looked at."""
LOOKED_AT = 2**20
"""Numbers of a chunk that are looked at, of evenly spaced rows."""


class Values:
    """Which columns of vectors take few values; from a part of the rows of every chunk."""

    def __init__(self) -> None:
        self.found: dict[int, Tensor] | None = None
        self.rows = 0

    def add(self, x: Tensor) -> None:
        """Takes more rows in, shape `(B, D)`; rows of more axes have no such columns."""
        if x.ndim != 2 or self.found == {}:
            return
        candidates = range(x.shape[1]) if self.found is None else sorted(self.found)
        x = x.detach()[:: max(1, x.numel() // LOOKED_AT)][:, list(candidates)]
        ordered = x.sort(0).values
        few = (ordered[1:] != ordered[:-1]).sum(0) < FEW
        before, self.found = self.found or {}, {}
        self.rows += len(x)
        for k, i in enumerate(candidates):
            if few[k]:
                values = torch.cat([ordered[:, k], before.get(i, ordered[:0, k])]).unique()
                if len(values) <= FEW:
                    self.found[i] = values

    def few(self) -> dict[int, int]:
        """The number of values of each such column; constant ones are left out."""
        found = {i: len(values) for i, values in (self.found or {}).items()}
        return {i: count for i, count in found.items() if count > 1 and EACH * count <= self.rows}
