r"""Explicit Runge-Kutta methods on any ODE: one class, the tableaux as data.

In the time `t` of the SDE these are the methods of the papers (Heun on `EDMSDE` is EDM's sampler). Where the state
grows with the noise (VE, EDM, Brownian) they need many steps; in the angle coordinate they do not: wrap them,
`Angle(RK4())`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Interval, Solver
from sde_diffusion.solvers.equation import ODE


class RungeKutta(Solver[ODE, None]):
    r"""An explicit Runge-Kutta method, given by its Butcher tableau.

    $$ k_i = v\Big(x_t + h\sum_{j<i} a_{ij} k_j,\ t + c_i h\Big), \quad x_s = x_t + h\sum_i b_i k_i, \quad h = s - t $$

    One evaluation per stage. Any `ODE`.

    Attributes:
        nodes: $c_i$.
        matrix: Rows $a_{i1}, \dots, a_{i,i-1}$, from the second stage on.
        weights: $b_i$.
    """

    nodes: ClassVar[tuple[float, ...]]
    matrix: ClassVar[tuple[tuple[float, ...], ...]]
    weights: ClassVar[tuple[float, ...]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if {"nodes", "matrix", "weights"} <= vars(cls).keys():
            check_tableau(cls.__name__, cls.nodes, cls.matrix, cls.weights)

    def prepare(self, eq: ODE, intervals: Sequence[Interval]) -> None:
        eq.prefill(t + c * (s - t) for t, s in intervals for c in self.nodes if 0 < c < 1)

    def step(self, eq: ODE, x: Tensor, t: Level, s: Level, state: None, noise: NoiseSource) -> tuple[Tensor, None]:
        start, h = t.t, s.t - t.t
        slopes = [eq.velocity(x, t)]
        for c, row in zip(self.nodes[1:], self.matrix, strict=True):
            at = t if c == 0 else s if c == 1 else eq.level(start + c * h)
            slopes.append(eq.velocity(_add(x, h, row, slopes), at))
        return _add(x, h, self.weights, slopes), None


def check_tableau(
    name: str, nodes: Sequence[float], matrix: Sequence[Sequence[float]], weights: Sequence[float]
) -> None:
    """Raises `ValueError` unless a tableau is that of an explicit method that is exact for a constant velocity."""
    stages = len(nodes)
    shape = [len(row) for row in matrix]
    if not stages or nodes[0] != 0 or len(weights) != stages or shape != list(range(1, stages)):
        raise ValueError(
            f"the tableau of {name} has {stages} nodes, {len(weights)} weights and rows of length {shape}: wanted "
            f"nodes that start at 0, as many weights, and rows of length {list(range(1, stages))}"
        )
    for c, row in zip(nodes[1:], matrix, strict=True):
        if abs(sum(row) - c) > 1e-9:
            raise ValueError(f"a row of the matrix of {name} sums to {sum(row):g}, and its node is {c:g}")
    if abs(sum(weights) - 1) > 1e-9:
        raise ValueError(f"the weights of {name} sum to {sum(weights):g}, wanted 1")


def _add(x: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """`x + h sum_j w_j k_j`, one tensor operation per non-zero weight."""
    for w, k in zip(weights, slopes, strict=False):
        if w:
            x = torch.add(x, k, alpha=h * w)
    return x


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Euler's method, order 1, one evaluation per step. On `FlowSDE` it is the sampler of rectified flow.

    References:
        Euler, 1768; Liu et al., Flow Straight and Fast, 2023.
    """

    nodes: ClassVar = (0.0,)
    matrix: ClassVar = ()
    weights: ClassVar = (1.0,)
    facts = Facts(order=1, evaluations=1, in_time=True)

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"euler": Euler()}


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The explicit midpoint rule, order 2, two evaluations per step.

    References:
        Runge, 1895.
    """

    nodes: ClassVar = (0.0, 0.5)
    matrix: ClassVar = ((0.5,),)
    weights: ClassVar = (0.0, 1.0)
    facts = Facts(order=2, evaluations=2, in_time=True)

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"midpoint": Midpoint()}


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method, the explicit trapezoidal rule, order 2, two evaluations per step.

    On `EDMSDE` with `grids.karras` and the final jump it is the deterministic sampler of EDM.

    References:
        Heun, 1900; Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022 (Algorithm
        1).
    """

    nodes: ClassVar = (0.0, 1.0)
    matrix: ClassVar = ((1.0,),)
    weights: ClassVar = (0.5, 0.5)
    facts = Facts(order=2, evaluations=2, in_time=True)

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"heun": Heun()}


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical method of Runge and Kutta, order 4, four evaluations per step.

    References:
        Kutta, 1901.
    """

    nodes: ClassVar = (0.0, 0.5, 0.5, 1.0)
    matrix: ClassVar = ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
    weights: ClassVar = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    facts = Facts(order=4, evaluations=4, in_time=True)

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"rk4": RK4()}
