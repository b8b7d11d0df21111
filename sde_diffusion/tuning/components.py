r"""A correction of a table that scalars cannot make: other weights along the principal components of the samples.

A row with scalar weights moves all coordinates alike. Row $i$ of a table with components gains

$$ U\Big(\sum_j W_{ij} \odot (U^\top f_j) + b_i\Big) $$

over the same features $f_j$ as those of the row: its base, $x_T$ or the state before, then the data predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion._tensors import rows as flat

MOST_AT_ONCE = 1 << 22
"""How many products of a projection are in memory at once, whatever the batch."""


@dataclass(frozen=True, eq=False)
class Components:
    r"""What the rows of a table add along the principal components of the samples.

    Args:
        basis: $U$, shape `(D, r)`, with orthonormal columns; float64 on the CPU.
        weights: $W_i$ of each row, shape `(features, r)`: the base first, then the predictions, oldest first.
        bias: $b_i$ of each row, shape `(r,)`.

    Raises:
        TypeError: Anything but tensors.
        ValueError: Shapes that do not fit one another, numbers that are not finite, or columns not orthonormal.
    """

    basis: Tensor
    weights: tuple[Tensor, ...]
    bias: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        for name, parts in (("basis", [self.basis]), ("weights", self.weights), ("bias", self.bias)):
            if not all(isinstance(part, Tensor) for part in parts):
                raise TypeError(f"{name} of Components must hold tensors, got {[type(p).__name__ for p in parts]}")
            if not all(bool(torch.isfinite(part).all()) for part in parts):
                raise ValueError(f"{name} of Components holds numbers that are not finite: fit the table again")
        object.__setattr__(self, "basis", _kept(self.basis))
        object.__setattr__(self, "weights", tuple(map(_kept, self.weights)))
        object.__setattr__(self, "bias", tuple(map(_kept, self.bias)))
        if self.basis.ndim != 2 or not 1 <= self.basis.shape[1] <= self.basis.shape[0]:
            raise ValueError(f"basis of Components has shape {tuple(self.basis.shape)}, wanted (D, r) with 1 <= r <= D")
        off = float((self.basis.T @ self.basis - torch.eye(self.rank, dtype=torch.float64, device="cpu")).abs().max())
        if off > 1e-6:
            raise ValueError(
                f"the columns of basis are not orthonormal (off by {off:.2g}): take those of torch.linalg.svd or qr"
            )
        if len(self.weights) != len(self.bias):
            raise ValueError(f"Components have weights of {len(self.weights)} rows and bias of {len(self.bias)}")

    @property
    def rank(self) -> int:
        """$r$, the number of components."""
        return self.basis.shape[1]

    def check_rows(self, features: Sequence[int]) -> None:
        """Raises `ValueError` unless there is a weight for each feature of each row."""
        if len(self.weights) != len(features):
            raise ValueError(f"Components have {len(self.weights)} rows, and the table has {len(features)}")
        for i, (w, b, n) in enumerate(zip(self.weights, self.bias, features, strict=True)):
            if tuple(w.shape) != (n, self.rank) or tuple(b.shape) != (self.rank,):
                raise ValueError(
                    f"row {i} of Components has weights of shape {tuple(w.shape)} and bias of {tuple(b.shape)}, "
                    f"wanted {(n, self.rank)} and {(self.rank,)}: its base and {n - 1} predictions"
                )

    def like(self, x: Tensor) -> Moved:
        """The same numbers in the dtype and on the device of a state; `ValueError` for one of another size."""
        if x[0].numel() != len(self.basis):
            raise ValueError(
                f"the components of the table are of samples of {len(self.basis)} numbers, and the state has shape "
                f"{tuple(x.shape)}: take a table that was tuned on this model"
            )
        return Moved(
            self.basis.T.contiguous().to(x.dtype).to(x.device),  # one after the other: some devices have no float64
            [list(w.to(x.dtype).to(x.device)) for w in self.weights],
            [b.to(x.dtype).to(x.device) for b in self.bias],
        )

    def __repr__(self) -> str:
        return f"Components({self.rank} of {self.basis.shape[0]}, {len(self.weights)} rows)"


class Moved:
    r"""Components where a solve can use them. A row of what they answer depends on that row of the states alone.

    Args:
        basis: $U^\top$, shape `(r, D)`.
        weights: The weights of each row, one tensor `(r,)` for each feature.
        bias: The bias of each row.
    """

    __slots__ = ("basis", "bias", "weights")

    def __init__(self, basis: Tensor, weights: list[list[Tensor]], bias: list[Tensor]) -> None:
        self.basis, self.weights, self.bias = basis, weights, bias

    def project(self, f: Tensor) -> Tensor:
        r"""$U^\top f$, shape `(B, r)`, for states `f`, `(B, *)`.

        Products and their sum, and no matrix product, whose rounding changes with the size of the batch.
        """
        f = flat(f)
        size = max(1, MOST_AT_ONCE // self.basis.numel())
        parts = f.split(size) if len(f) > size else (f,)
        found = [(part[:, None] * self.basis).sum(-1) for part in parts]
        return found[0] if len(found) == 1 else torch.cat(found)

    def correct(self, x: Tensor, row: int, projected: Sequence[Tensor]) -> Tensor:
        """Adds the correction of a row to `x`, in place; `projected` are the features of the row, projected."""
        z = self.bias[row].expand_as(projected[0])
        for w, y in zip(self.weights[row], projected, strict=True):
            z = torch.addcmul(z, w, y)
        out = z[:, :1] * self.basis[0]
        for k in range(1, len(self.basis)):
            out.addcmul_(z[:, k : k + 1], self.basis[k])
        return x.add_(out.reshape(x.shape))


def _kept(t: Tensor) -> Tensor:
    return t.detach().to("cpu", torch.float64).contiguous()
