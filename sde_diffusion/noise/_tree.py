"""A Brownian path and its integral at any time, from keys alone: the virtual tree behind `noise.BrownianPath`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_BLOCK = 2**18  # normals made in one call, so that small states are not ruled by calls nor large ones by memory


def mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., 2014): a bijection of 64 bits, equal on every machine."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def path_at(keys: NDArray[np.uint64], shape: tuple[int, ...], place: float, depth: int) -> tuple[Tensor, Tensor]:
    r"""The path $W$ and its integral $\int_0 W$ at `place`, both zero at 0, in float64, shape `(len(keys), *shape)`.

    Over an interval of length $l$ with increment $w$ and space-time area $a$ the middle lies off the chord by $c =
    \tfrac32 a + \tfrac14\sqrt l\,z_1$, and the areas of the halves are $a - \tfrac12 c \pm \tfrac12\sqrt{l/12}\,z_2$.

    Args:
        keys: One key per path.
        shape: Coordinates of one path.
        place: Where, in cells of unit length; the path goes on beyond the first cell, at the cost of a draw per cell.
        depth: Halvings at most; the path is linear below.
    """
    cell = math.ceil(place) - 1 if place > 0 else math.floor(place)
    start = integral = torch.zeros((len(keys), *shape), dtype=torch.float64, device="cpu")
    sign = 1.0 if cell > 0 else -1.0
    for k in range(cell) if cell > 0 else range(-1, cell - 1, -1):
        step, area = _normals(keys, shape, 0, [k])[0]
        integral = integral + sign * start + 0.5 * step + (sign / math.sqrt(12)) * area
        start = start + sign * step
    step, area = _normals(keys, shape, 0, [cell])[0]
    area = area / math.sqrt(12)
    target, a, length, position = place - cell, 0.0, 1.0, cell
    block = max(1, _BLOCK // step.numel())
    normals: list[Tensor] = []
    for level in range(1, depth + 1):
        if target in (a, a + length):
            break
        if not normals:
            ahead = min(block, depth + 1 - level)
            normals = list(_normals(keys, shape, level, _descent(target - a, length, position, ahead)))
        z1, z2 = normals.pop(0)
        bend = torch.add(1.5 * area, z1, alpha=0.25 * math.sqrt(length))
        middle = torch.add(bend, step, alpha=0.5)
        area, tilt = torch.sub(area, bend, alpha=0.5), z2.mul_(0.5 * math.sqrt(length / 12))
        length *= 0.5
        if target < a + length:
            step, area, position = middle, area + tilt, 2 * position
        else:
            integral = integral + length * (start + 0.5 * middle + area + tilt)
            start, step, area = start + middle, step - middle, area - tilt
            a, position = a + length, 2 * position + 1
    if target == a + length:
        return start + step, integral + length * (start + 0.5 * step + area)
    part = (target - a) / length
    return start + part * step, integral + part * length * (start + 0.5 * part * step)


def _normals(keys: NDArray[np.uint64], shape: tuple[int, ...], depth: int, positions: Sequence[int]) -> Tensor:
    """Two unit normals at each of these positions, from `depth` downwards, shape `(len(positions), 2, B, *)`.

    A function of (key, depth, position, coordinate) alone.
    """
    n = math.prod(shape)
    depths = np.arange(depth + 1, depth + 1 + len(positions), dtype=np.uint64) * np.uint64(GOLDEN)
    places = np.array([position & _MASK for position in positions], dtype=np.uint64)
    key = mix(mix(keys + depths[:, None]) ^ places[:, None])
    lanes = np.arange(1, 2 * n + 1, dtype=np.uint64).reshape(2, 1, n) * np.uint64(GOLDEN)
    bits = mix(key[:, None, :, None] + lanes)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return torch.special.ndtri(torch.from_numpy(uniform)).reshape(len(positions), 2, -1, *shape)


def _descent(target: float, length: float, position: int, n: int) -> list[int]:
    """The positions of the next `n` intervals on the way down to `target`, from this one: each a half of the last."""
    found = []
    for _ in range(n):
        found.append(position)
        length *= 0.5
        right = target >= length
        target, position = target - length * right, 2 * position + right
    return found
