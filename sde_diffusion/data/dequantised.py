r"""Whole numbers as data: a fresh point in the bin of each value for every batch, as `Recipe(transform=...)`.

$$ x = a + w\,(v + u), \quad u \sim U(0, 1) $$

A density of $x$ gives a value the probability of its bin, of width $w$: bits per dimension are those of
`likelihood.dequantize` and of `bits_per_dim(bin_width=w)`. Trained on $v$ itself, a model would find that it may put
all of its mass on the values, with a likelihood without bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_positive, check_real
from sde_diffusion.data._scaling import Scaling, parts
from sde_diffusion.data.sources.base import Source

EDGE = 1e-5
"""How far u stays away from the edges of its bin, so that `quantise` finds every value again in float32."""
MOST = 2.0**50
"""The largest whole number in whose bin float64 still has a few points."""


@dataclass(frozen=True)
class Dequantised:
    r"""A transform of batches of whole numbers, `(B, *)`.

    Bytes to $[-1, 1]$: `Dequantised.levels(256)`, of bin width 2/256. Columns of a table:
    `Dequantised(columns=(0, 3))`, $x = v + u - 1/2$ there, of width one; the other columns stay as they are.

    Args:
        width: $w > 0$.
        low: $a$, where the bin of $v = 0$ begins.
        columns: Entries of the first axis of a sample that are whole numbers; None: all of them.
        scaling: What is applied afterwards, such as `Standardise.of(data)`; the widths above are those before.
        dtype: Of the result.

    Raises:
        TypeError: Something else than numbers.
        ValueError: A width that is not positive.
    """

    width: float = 1.0
    low: float = -0.5
    columns: tuple[int, ...] | None = None
    scaling: Scaling | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_positive(self.width, "width")
        check_real(self.low, "low")
        if self.columns is not None:
            object.__setattr__(self, "columns", tuple(int(i) for i in self.columns))

    @classmethod
    def levels(cls, count: int) -> Dequantised:
        r"""That of values $0, \dots, Q - 1$, whose bins fill $[-1, 1]$: $x = 2 (v + u)/Q - 1$."""
        return cls(2 / check_count(count, "count"), -1.0)

    @classmethod
    def of(cls, x: Tensor | Source, scaling: Scaling | None = None) -> Dequantised:
        """That of the columns in which every value of some data is a whole number.

        Args:
            x: Data `(N, *)`, or a source of them.
            scaling: What is applied afterwards.

        Raises:
            ValueError: No column is of whole numbers.
        """
        found: Tensor | None = None
        for part in [x] if isinstance(x, Tensor) else parts(x):
            columns = part.transpose(0, 1).flatten(1)
            whole = (
                (columns == columns.round()).all(1)
                if part.is_floating_point()
                else torch.ones(len(columns), device="cpu") > 0
            )
            found = whole if found is None else found & whole
        if found is None or not bool(found.any()):
            raise ValueError("no column of the data is of whole numbers: they need no dequantisation")
        return cls(columns=tuple(found.nonzero()[:, 0].tolist()), scaling=scaling)

    def __call__(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """A fresh point in the bin of each value, `(B, *)` in `dtype`, scaled.

        Raises:
            ValueError: A value that is no whole number, or one beyond 2^50, by row.
        """
        v, which = batch.to(torch.float64), self._which(batch)
        whole = v[:, which]
        if bool((bad := whole != whole.round()).any()):  # NaN among them
            row = int(bad.reshape(len(bad), -1).any(1).nonzero()[0, 0])
            value = whole[row][bad[row]].flatten()[0]
            raise ValueError(
                f"row {row} of the batch holds {float(value):g}, which is no whole number: name the columns that are, "
                "Dequantised(columns=...)"
            )
        if bool((far := whole.abs() > MOST).any()):
            row = int(far.reshape(len(far), -1).any(1).nonzero()[0, 0])
            raise ValueError(
                f"row {row} of the batch holds {float(whole[row][far[row]].flatten()[0]):.0f}, beyond 2**50, where "
                "float64 has no points in the bin of a whole number: take an offset from it first, or save floats"
            )
        u = torch.rand(whole.shape, generator=generator, dtype=torch.float64, device=generator.device).to(v.device)
        x = v.clone()
        x[:, which] = self.low + self.width * (whole + EDGE + (1 - 2 * EDGE) * u)
        return x.to(self.dtype) if self.scaling is None else self.scaling.apply(x, self.dtype)

    def quantise(self, x: Tensor) -> Tensor:
        """The value in whose bin each number lies: `(B, *)` as the model has them -> `(B, *)`, float64.

        Columns that are no whole numbers come as they are, in the units of the data.
        """
        x = (x if self.scaling is None else self.scaling.undo(x)).to(torch.float64)
        which, found = self._which(x), x.clone()
        found[:, which] = torch.floor((x[:, which] - self.low) / self.width)
        return found

    def _which(self, batch: Tensor) -> list[int] | EllipsisType:
        if self.columns is None:
            return ...
        if not all(0 <= i < batch.shape[1] for i in self.columns):
            raise ValueError(f"columns {self.columns} are not all among the {batch.shape[1]} of the data")
        return list(self.columns)
