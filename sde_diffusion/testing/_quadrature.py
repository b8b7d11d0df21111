"""The integral of a density in one or two dimensions, of which nothing is known but samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

POINTS = {1: 101, 2: 41}  # per axis of the coarsest grid
BUDGET = {1: 20_000, 2: 80_000}  # points on all grids together

Density = Callable[[Tensor], tuple[Tensor, bool]]


def integral(density: Density, samples: Tensor, bound: float) -> tuple[float, float]:
    r"""The integral of a density by the trapezoid rule, and its change from half the points per axis.

    The rule converges exponentially on what is smooth and vanishes at the border, so that the change is far above the
    error once it is small. The box is laid around samples and widened until no mass is left at its border; new points
    are asked only where their neighbours, or samples, show mass. (Three modes of width 0.03, one apart, take 3,000
    points. A grid of one spacing that resolves them has 40,000, at 12 times the cost.)

    Args:
        density: Called with points `(n, d)`; answers densities `(n,)`, and whether all of them are known.
        samples: Samples of the density, shape `(m, d)`, with `d` of 1 or 2, in float64.
        bound: Change at which to stop.

    Returns:
        The integral and its change; 1 for a change that is not known, or tells nothing.
    """
    d = samples.shape[1]
    grid, spent, whole = _laid_out(density, samples, bound)
    mass, change = grid.mass(), 1.0
    while True:
        new = grid.wanted(samples, 0.05 * bound * mass)
        points = new.nonzero()
        if spent + len(points) > BUDGET[d]:
            return mass, change
        axes = _axes(grid.low, grid.high, 2 * grid.values.shape[0] - 1)
        values = grid.values.new_zeros([len(axis) for axis in axes])
        values[(slice(None, None, 2),) * d] = grid.values
        values[new], known = density(torch.stack([axis[points[:, i]] for i, axis in enumerate(axes)], dim=1))
        grid, before, spent, whole = _Grid(grid.low, grid.high, values), mass, spent + len(points), whole and known
        mass = grid.mass()
        change = abs(mass - before) if whole and grid.sees(samples) else 1.0
        if not whole or not change > bound:  # nor if it is not a number
            return mass, change


def _laid_out(density: Density, samples: Tensor, bound: float) -> tuple[_Grid, int, bool]:
    """The coarsest grid on a box whose outermost layers are empty, the points spent, and whether all are known."""
    d, spent, whole = samples.shape[1], 0, True
    low, high = samples.amin(0), samples.amax(0)
    margin = 2 * samples.std(0) + 1e-6 * (1 + samples.abs().amax(0))
    while True:
        low, high = low - margin, high + margin
        values, known = density(torch.cartesian_prod(*_axes(low, high, POINTS[d])).reshape(-1, d))
        grid, whole = _Grid(low, high, values.reshape([POINTS[d]] * d)), whole and known
        spent += values.numel()
        mass = grid.mass()
        if not math.isfinite(mass) or grid.rim() <= 0.05 * bound * mass or spent + values.numel() > BUDGET[d] // 2:
            return grid, spent, whole
        margin = 0.25 * (high - low)


class _Grid:
    """Densities `(k, ...)` at equally spaced points of the box from `low` to `high`, both `(d,)`."""

    def __init__(self, low: Tensor, high: Tensor, values: Tensor) -> None:
        self.low, self.high, self.values = low, high, values

    def mass(self, values: Tensor | None = None) -> float:
        """The integral by the trapezoid rule."""
        values = self.values if values is None else values
        for axis in reversed(_axes(self.low, self.high, values.shape[0])):
            values = torch.trapezoid(values, axis)
        return float(values)

    def rim(self) -> float:
        """The part of the integral that lies in the two outermost layers."""
        outside = torch.ones_like(self.values)
        outside[(slice(2, -2),) * self.values.ndim] = 0.0
        return self.mass(self.values * outside)

    def wanted(self, samples: Tensor, tiny: float) -> Tensor:
        """Mask of the points of the grid of half the spacing that are new and near some mass or a sample."""
        k, d = self.values.shape[0], self.values.ndim
        near = self.values * float((self.high - self.low).prod()) > tiny
        corner = ((samples - self.low) / ((self.high - self.low) / (k - 1))).floor().long().clamp(0, k - 2)
        near[tuple(corner.T)] = True
        fine, every = torch.zeros([2 * k - 1] * d, dtype=torch.bool, device="cpu"), (slice(None, None, 2),) * d
        fine[every] = _grown(_grown(near))
        fine = _grown(fine)
        fine[every] = False
        return fine

    def sees(self, samples: Tensor) -> bool:
        """Whether there is mass where samples are: all but one in a hundred."""
        k = self.values.shape[0]
        nearest = ((samples - self.low) / (self.high - self.low) * (k - 1)).round().long().clamp(0, k - 1)
        dark = _grown(self.values > 1e-4 * self.values.max())[tuple(nearest.T)].logical_not()
        return float(dark.double().mean()) <= 0.01


def _axes(low: Tensor, high: Tensor, k: int) -> list[Tensor]:
    return [
        torch.linspace(float(a), float(b), k, dtype=torch.float64, device="cpu") for a, b in zip(low, high, strict=True)
    ]


def _grown(mask: Tensor) -> Tensor:
    """The mask and its neighbours along every axis, diagonal ones included."""
    for axis in range(mask.ndim):
        mask = mask | mask.roll(1, axis) | mask.roll(-1, axis)
    return mask
