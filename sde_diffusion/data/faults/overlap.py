"""Rows that are kept out, and trained on all the same: what is measured on them is no measure."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.data.sources.base import Source

ASKED = 1024
"""Rows kept out that are looked for, at even distances."""
READ = 2**27
"""Numbers of the rows trained on that are looked through."""
SHARE = 0.01
"""The share of them that is found before it is told."""
TWICE = 4
"""How many times as often as rows come twice in the training, where they are whole numbers and may do by chance."""

_SEED = 0x5EED


class Overlap:
    """Which rows kept out are among those trained on, by a digest of 64 bits of their numbers.

    Args:
        val: The rows kept out; real numbers are compared in float32.
    """

    def __init__(self, val: Source) -> None:
        n = len(val)
        self.numbers = torch.arange(0, n, max(1, n // ASKED), device="cpu")[:ASKED]
        x = val.rows(self.numbers).x
        self.whole = not x.is_floating_point()
        self.wanted = digest(x)
        self.at = torch.full((len(self.wanted),), -1, dtype=torch.int64, device="cpu")
        self.seen: list[Tensor] = []
        self.rows = self.read = 0

    def add(self, x: Tensor) -> None:
        """Takes more rows that are trained on in."""
        if self.read >= READ:
            return
        found = digest(x)
        order, places = found.sort()
        k = torch.searchsorted(order, self.wanted).clamp(max=len(order) - 1)
        new = (order[k] == self.wanted) & (self.at < 0)
        self.at[new] = self.rows + places[k[new]]
        if self.whole:
            self.seen.append(found)
        self.rows, self.read = self.rows + len(x), self.read + x.numel()

    def fault(self) -> str | None:
        """The sentence that says so, if rows kept out were found."""
        there = (self.at >= 0).nonzero()[:, 0]
        share = len(there) / max(1, len(self.wanted))
        chance = 0.0
        if self.whole and self.rows:
            chance = TWICE * (1 - len(torch.cat(self.seen).unique()) / self.rows)
        if not len(there) or share <= max(SHARE, chance):
            return None
        first = int(there[0])
        return (
            f"val holds rows that are trained on: {len(there):,} of {len(self.wanted):,} that were looked for, row "
            f"{int(self.numbers[first])} of val for one is row {int(self.at[first])} of the data. What is measured on "
            "them cannot tell what is learnt by heart: keep rows out, data.split(x), and drop those that come twice"
        )


def digest(x: Tensor) -> Tensor:
    """A number of 64 bits for each row, `(B, *)` -> `(B,)`, the same for the same numbers."""
    flat = (torch.view_as_real(x) if x.is_complex() else x).detach().cpu().reshape(len(x), -1)
    if flat.is_floating_point():
        bits = (flat.to(torch.float32) + 0.0).view(torch.int32).to(torch.int64)  # of one zero alone
    else:
        bits = flat.to(torch.int64)
    source = torch.Generator().manual_seed(_SEED)
    key = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=source, device="cpu")
    mixed = (bits + 0x9E3779B9) * (2 * key + 1)
    mixed = (mixed ^ (mixed >> 29)) * 0x1B873593CC9E2D51
    return mixed.sum(1)
