r"""The two forms of a table: every row on $x_T$ and all predictions, or on the state before and the last few.

Both are converted in lanes. Lane 0 holds the scalar weights. Where a table has components, lane $k$ holds the weights
that its coordinate along component $k$ gets in all, the scalar ones included: along each component a row is a row of
scalars again, with a bias.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sde_diffusion.tuning.components import Components

Rows = tuple[tuple[float, ...], ...]
Array = NDArray[np.float64]
TOLERANCE = 1e-12
"""How far a windowed row may be from the full one, relative to its largest number."""


def full(rows: Rows, components: Components | None) -> tuple[Rows, Components | None]:
    """The full form of windowed rows."""
    weights: list[Array] = []
    biases: list[Array] = []
    for i, (row, bias) in enumerate(zip(*_lanes(rows, components), strict=True)):
        out = np.zeros((i + 1, row.shape[1]))
        if i == 0:
            out[0] = row[0]
        else:
            out[:i] = row[0] * weights[-1]
            out[i + 2 - len(row) :] += row[1:]
        weights.append(out)
        biases.append(bias + row[0] * biases[-1] if i else bias)
    return _joined(weights, biases, components)


def windowed(rows: Rows, components: Components | None, window: int) -> tuple[Rows, Components | None]:
    """The windowed form of full rows; `ValueError` if some row weighs more than fits into the window."""
    weights, biases = _lanes(rows, components)
    needed = [_needed(weights, i, window) for i in range(1, len(weights))]
    if any(n is None for n in needed):
        raise ValueError(
            f"row {needed.index(None) + 1} weighs x_T, and the row before it does not: no window holds it; "
            "keep the full form"
        )
    if (most := max(n for n in needed if n is not None)) > window:
        raise ValueError(f"a window of {window} does not hold row {needed.index(most) + 1}: take a window of {most}")
    short, rests = [weights[0]], [biases[0]]
    for i in range(1, len(weights)):
        r, row = _on_last(weights, i, window)
        short.append(np.concatenate([r[None], row[max(0, i - window) + 1 :]]))
        rests.append(biases[i] - r * biases[i - 1])
    return _joined(short, rests, components)


def _on_last(weights: list[Array], i: int, window: int) -> tuple[Array, Array]:
    """The factor $r$ of each lane, and what is left of row `i` once `r` times the row before is taken from it.

    The factor is the one that leaves least of what lies outside of the window.
    """
    row, before = weights[i], np.concatenate([weights[i - 1], np.zeros((1, weights[i].shape[1]))])
    outside = max(0, i - window) + 1
    a, b = before[:outside], row[:outside]
    length = (a * a).sum(0)
    r = np.divide((a * b).sum(0), length, out=np.zeros_like(length), where=length > 0)
    return r, row - r * before


def _needed(weights: list[Array], i: int, window: int) -> int | None:
    """The smallest window that holds row `i`, from `window` upwards; None if none does.

    What a window holds, a larger one holds too.
    """
    allowed = TOLERANCE * np.maximum(1.0, np.abs(weights[i]).max(0))

    def holds(w: int) -> bool:
        _, row = _on_last(weights, i, w)
        return bool((np.abs(row[: max(0, i - w) + 1]) <= allowed).all())

    if holds(window):
        return window
    if i <= window or not holds(i):
        return None
    return window + 1 + bisect_left(range(window + 1, i), True, key=holds)


def _lanes(rows: Rows, parts: Components | None) -> tuple[list[Array], list[Array]]:
    """The weights of each row, shape `(features, lanes)`, and its bias in each lane."""
    scalar = [np.asarray(row)[:, None] for row in rows]
    if parts is None:
        return scalar, [np.zeros(1) for _ in scalar]
    weights = [np.concatenate([p, p + w.numpy()], axis=1) for p, w in zip(scalar, parts.weights, strict=True)]
    return weights, [np.concatenate([[0.0], b.numpy()]) for b in parts.bias]


def _joined(
    weights: Sequence[Array], biases: Sequence[Array], parts: Components | None
) -> tuple[Rows, Components | None]:
    """The rows and the components of lanes."""
    rows = tuple(tuple(w[:, 0].tolist()) for w in weights)
    if parts is None:
        return rows, None
    extra = tuple(torch.from_numpy(w[:, 1:] - w[:, :1]) for w in weights)
    return rows, Components(parts.basis, extra, tuple(torch.from_numpy(b[1:].copy()) for b in biases))
