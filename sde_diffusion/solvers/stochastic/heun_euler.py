r"""An adaptive stochastic Heun-Euler pair, along one Brownian path.

How the rows take steps of their own, `solvers.adaptive` tells. An adaptive solver of an SDE must not throw away the
noise of a step that it refuses: large increments are refused more often, so that fresh draws would favour small ones.
Here the noise of a row is one Brownian path over the interval, which an attempt merely reads. Its values at both ends
are known from the start, and a value between two known times $a < \tau < b$ is drawn from the bridge

$$ W_\tau \mid W_a, W_b \sim \mathcal N\Big(W_a + \tfrac{\tau - a}{b - a}\,(W_b - W_a),\
   \tfrac{(\tau - a)(b - \tau)}{b - a}\,I\Big) $$

and kept while it lies ahead. After a refusal, the shorter step reads the path that the longer one has read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar
from zlib import crc32

import torch
from torch import Tensor

from sde_diffusion._tensors import rows
from sde_diffusion.noise.sources import NoiseSource, Streams
from sde_diffusion.sde.level import Level, Scalar
from sde_diffusion.solvers.adaptive import Adaptive, Walk, per_row
from sde_diffusion.solvers.base import Facts
from sde_diffusion.solvers.checks import check_eta, check_falling
from sde_diffusion.solvers.equation import ReverseSDE


class Bridge:
    """A Brownian path for each row over one interval, read at times that differ by row and remembered while ahead.

    A row's values are a function of its own stream and of the times that it has asked for.

    Args:
        noise: Gives the increment over the whole interval, and the seeds of what lies between; asked twice, however
            many attempts follow, so that the noise of later steps of the grid does not depend on their number.
        walk: The rows; a fresh value lies at `walk.target`, and `walk.at` says what lies behind.
        ends: First and last time.
    """

    def __init__(self, noise: NoiseSource, walk: Walk, ends: tuple[float, float]) -> None:
        t, s = ends
        whole, key = noise(t, s), noise(s, s)
        self.walk, self.start = walk, t
        self.between = Streams(_seeds(whole, key), noise.shape, noise.dtype, noise.device)
        self.here = torch.zeros_like(whole)
        self.times = torch.full_like(walk.at, s)[None]  # known times and values, ahead or (to be forgotten) behind
        self.values = (whole * math.sqrt(abs(s - t)))[None]

    def read(self) -> Tensor:
        """The path at the target of each row, less its value where the row stands, shape `(B, *)`."""
        walk, z = self.walk, self.between(0.0, 0.0)
        known = (self.times - walk.at) * walk.sign  # how far ahead
        after, i = torch.where(known >= walk.length, known, math.inf).min(0)
        before, j = torch.where((known > 0) & (known < walk.length), known, 0.0).max(0)
        each = torch.arange(len(i), device=i.device)
        left = torch.where(per_row(before > 0, z), self.values[j, each], self.here)
        width = (after - before).clamp_min(torch.finfo(before.dtype).tiny)
        part = ((walk.length - before) / width).clamp(0.0, 1.0)
        spread = (part * (1 - part) * width).nan_to_num(0.0).sqrt()
        there = torch.addcmul(left, per_row(part, z), self.values[i, each] - left)
        self.there = torch.addcmul(there, per_row(spread, z), z)
        return self.there - self.here

    def settle(self, accepted: Tensor) -> None:
        """Moves on the rows that were accepted, and remembers what the others have read."""
        walk = self.walk
        self.here = torch.where(per_row(accepted, self.here), self.there, self.here)
        if walk.held:
            times = torch.where(walk.refused, walk.target, self.start)
            self.times = torch.cat([self.times, times[None]])
            self.values = torch.cat([self.values, self.there[None]])
            if len(self.times) > 8:
                ahead = (((self.times - walk.at) * walk.sign > 0) & walk.active).any(1)
                self.times, self.values = self.times[ahead], self.values[ahead]


def _seeds(*draws: Tensor) -> list[int]:
    """A seed for each row, hashed from the bits of its own normal draws."""
    return [crc32(row.tobytes()) for row in torch.cat([rows(z) for z in draws], 1).cpu().numpy()]


class _Path(Walk):
    """A walk along a Brownian path."""

    path: Bridge


@dataclass(frozen=True)
class StochasticHeunEuler(Adaptive[_Path, ReverseSDE]):
    r"""Adaptive steps on the reverse SDE: Heun's method with the error of Euler-Maruyama's; two evaluations each.

    $$ x_1 = x + h\,F(x, t) + \eta\,g(t)\,\Delta W, \quad x_2 = x + h\,F(x_1, s) + \eta\,g(s)\,\Delta W, \quad
       x' = \tfrac12(x_1 + x_2), \quad e = \tfrac12(x_2 - x_1) $$

    with $F = f - \tfrac{1 + \eta^2}{2}\,g^2\,\nabla\log p_t$, each row its own steps. The published scheme ("gotta go
    fast"), with three changes: a refused step keeps its noise, so that refusing does not bias the samples (with fresh
    noise, the variance of a 1-D Gaussian came out 70 % too large); the error is measured against `atol + rtol |x|`; and
    PI control in the place of $0.9\,E^{-0.9}$ refuses fewer steps. Strong order 1, with a third to a half of the error
    of Euler-Maruyama at as many steps. Any SDE with its score, from noise to data.

    The path of a row is fixed by its seed and its own attempts. With `noise.BrownianPath` it agrees at the times of the
    grid with that of every other solver.

    Args:
        rtol: Error allowed per step, relative to the state.
        atol: Error allowed per step, in units of the state; the default is one grey level of 256 in `[-1, 1]`.
        eta: Stochasticity, `> 0`; for the ODE take `HeunEuler`.
        max_nfe: Evaluations allowed per row and interval.

    Raises:
        ValueError: A step up in time; a start where `alpha = 0`, as $g$ is infinite there.

    References:
        Jolicoeur-Martineau et al., Gotta Go Fast When Generating Data with Score-Based Models, 2021 (Algorithm 1);
        Rackauckas and Nie, Adaptive Methods for Stochastic Differential Equations via Natural Embeddings and Rejection
        Sampling with Memory, 2017.
    """

    rtol: float = 0.02
    atol: float = 0.0078
    eta: float = 1.0
    max_nfe: int = 10_000
    exponents: ClassVar = (0.5, 0.2)
    limits: ClassVar = (0.2, 2.0)
    stages: ClassVar = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_eta(self.eta)
        if self.eta == 0:
            raise ValueError("StochasticHeunEuler needs eta > 0: for the probability-flow ODE use HeunEuler")

    @property
    def facts(self) -> Facts:
        return replace(super().facts, needs=ReverseSDE, stochastic=True)

    def walk(self, eq: ReverseSDE, x: Tensor, t: Level, s: Level, noise: NoiseSource) -> _Path:
        check_falling(s.t - t.t)
        walk = _Path(x, (t.t, s.t), eq.idle)
        walk.path = Bridge(noise, walk, (t.t, s.t))
        return walk

    def first(self, eq: ReverseSDE, x: Tensor, at: Level) -> Tensor:
        return eq.reverse_drift(x, at, self.eta)

    def attempt(self, eq: ReverseSDE, x: Tensor, known: Tensor, walk: _Path) -> tuple[Tensor, Tensor, Tensor | None]:
        h, increment = per_row(walk.sign * walk.length, x), walk.path.read()
        here, there = self.level(eq, x, walk, walk.at), self.level(eq, x, walk, walk.target)
        one = torch.addcmul(x, h, known) + self._noise(eq, here, increment)
        two = torch.addcmul(x, h, self.first(eq, one, there)) + self._noise(eq, there, increment)
        return 0.5 * (one + two), 0.5 * (two - one), None

    def _noise(self, eq: ReverseSDE, at: Level, increment: Tensor) -> Tensor:
        g: Scalar = eq.diffusion(at)
        return (self.eta * g).to(increment) * increment if isinstance(g, Tensor) else self.eta * g * increment

    def settle(self, walk: _Path, accepted: Tensor, x: Tensor) -> None:
        walk.path.settle(accepted)

    @classmethod
    def examples(cls) -> tuple[StochasticHeunEuler, ...]:
        return (StochasticHeunEuler(), StochasticHeunEuler(0.05, eta=0.5))
