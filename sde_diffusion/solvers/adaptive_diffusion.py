r"""Adaptive solvers that ask more than a velocity: DPM-Solver-12 and -23 in log-SNR, Heun-Euler on the reverse SDE.

Each row takes its own steps, as `solvers.adaptive` tells. An adaptive solver of an SDE must not throw away the noise
of a step that it refuses: large increments are refused more often, so that fresh draws would favour small ones. Here
the noise of a row is one Brownian path over the interval, which an attempt merely reads. Its values at both ends are
known from the start, and a value between two known times $a < \tau < b$ is drawn from the bridge

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

from sde_diffusion._linear import rows
from sde_diffusion.equation import GaussianReverseSDE, ReverseSDE
from sde_diffusion.noise import NoiseSource, Streams
from sde_diffusion.sde import Level, Scalar
from sde_diffusion.solvers.adaptive import Adaptive, Walk, per_row
from sde_diffusion.solvers.base import Facts
from sde_diffusion.solvers.stochastic import check_eta, check_falling


class _AdaptiveDPMSolver(Adaptive[Walk, GaussianReverseSDE]):
    """Steps in the half log-SNR, on the noise prediction."""

    @property
    def facts(self) -> Facts:
        return replace(super().facts, needs=GaussianReverseSDE)

    def first(self, eq: GaussianReverseSDE, x: Tensor, at: Level) -> Tensor:
        return eq.denoise(x, at).noise

    def walk(self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, noise: NoiseSource) -> Walk:
        for at in (t, s):
            if not math.isfinite(at.lam):
                raise ValueError(
                    f"{type(self).__name__} steps in lam = log(alpha / sigma), which is infinite at t = {at.t:g}: "
                    "end the interval short of it (t_max= of the SDE, or a grid), or use Angle(DormandPrince()), "
                    "which is regular there"
                )

        def clock(lam: Tensor) -> Tensor:
            # Rounding must not leave the interval, nor the ends themselves.
            time = eq.sde.time_of(lam).clamp(min(t.t, s.t), max(t.t, s.t))
            return torch.where(lam == s.lam, s.t, torch.where(lam == t.lam, t.t, time))

        return Walk(x, (t.lam, s.lam), eq.idle, clock)

    def begin(self, eq: GaussianReverseSDE, x: Tensor, known: Tensor, walk: Walk) -> Tensor:
        return torch.full_like(walk.at, 0.05)

    def judged(
        self, x: Tensor, lower: Tensor, upper: Tensor, ends: tuple[Level, Level]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        r"""An attempt and its error, scaled so that it is judged in the variance-normalised state, $x/\sqrt{\alpha^2 +
        \sigma^2}$, whatever the process: a state that shrinks with the noise would excuse its error by its old size.
        """
        r, s = ((at.alpha**2 + at.sigma**2) ** 0.5 for at in ends)
        old, new, error = x.detach().abs(), upper.detach().abs(), (upper - lower).detach()
        allowed = torch.maximum(old / r, new / s).mul_(self.rtol).add_(self.atol)
        return upper, error / s / allowed * torch.maximum(old, new).mul_(self.rtol).add_(self.atol), None

    def stage(self, x: Tensor, walk: Walk, at: tuple[Level, Level], c: float, *terms: tuple[float, Tensor]) -> Tensor:
        r"""A step of length $z = ch$ in $\lambda$ with given slopes; the first of `terms` is `(1.0, k_1)`.

        $$ \tfrac{\alpha_c}{\alpha}\,x - \sigma_c\big[(e^z - 1)\,k_1 + \textstyle\sum_{j>1} w_j\,\varphi(z)\,k_j\big] $$
        """
        z = c * walk.sign * walk.length
        growth = torch.expm1(z)
        phi = torch.where(z == 0, 0.0, growth / z - 1)
        here, there = at
        x = (there.alpha / here.alpha) * x
        x = torch.addcmul(x, per_row(growth, x) * there.sigma, terms[0][1], value=-1.0)
        for w, k in terms[1:]:
            x = torch.addcmul(x, per_row(phi, x) * there.sigma, k, value=-w)
        return x


@dataclass(frozen=True)
class DPMSolver12(_AdaptiveDPMSolver):
    r"""DPM-Solver-2 with the error of DPM-Solver-1 (DDIM), each row its own steps in $\lambda$; two evaluations each.

    $$ u = \tfrac{\alpha_m}{\alpha_t} x - \sigma_m (e^{h/2} - 1)\,\varepsilon_t, \quad
       x' = \tfrac{\alpha_s}{\alpha_t} x - \sigma_s (e^h - 1)\,\varepsilon_m, \quad
       e = \sigma_s (e^h - 1)\,(\varepsilon_m - \varepsilon_t), \quad \lambda_m = \lambda_t + \tfrac h2 $$

    Order 2, which is what the step control sees. Any Gaussian SDE, both directions. The original takes one error norm
    for the batch, its maximum; here a row does not depend on the others. Its error is measured against
    `atol + rtol |x|` rather than their maximum, in the variance-normalised state: on every process alike.

    Args:
        rtol: Error allowed per step, relative to the state.
        atol: Error allowed per step, in units of the state; the default is one grey level of 256 in `[-1, 1]`.
        max_nfe: Evaluations allowed per row and interval.

    Raises:
        ValueError: An end where $\lambda$ is infinite.

    References:
        Lu et al., DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling, 2022 (Appendix C).
    """

    rtol: float = 0.05
    atol: float = 0.0078
    max_nfe: int = 10_000
    exponents: ClassVar = (1 / 2, 0.0)
    stages: ClassVar = 2

    def attempt(
        self, eq: GaussianReverseSDE, x: Tensor, known: Tensor, walk: Walk
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        here, middle, there = (self.level(eq, x, walk, p) for p in (walk.at, walk.between(0.5), walk.target))
        halfway = eq.denoise(self.stage(x, walk, (here, middle), 0.5, (1.0, known)), middle).noise
        lower = self.stage(x, walk, (here, there), 1.0, (1.0, known))
        upper = self.stage(x, walk, (here, there), 1.0, (1.0, halfway))
        return self.judged(x, lower, upper, (here, there))


@dataclass(frozen=True)
class DPMSolver23(_AdaptiveDPMSolver):
    r"""DPM-Solver-3 with the error of DPM-Solver-2, each row its own steps in $\lambda$; three evaluations each.

    With stages at a third and two thirds of the step, $k_1, k_2, k_3$ the noise predictions there and
    $\varphi(z) = (e^z - 1)/z - 1$,

    $$ x' = \tfrac{\alpha_s}{\alpha_t} x - \sigma_s\big[(e^h - 1)\,k_1 + \tfrac32\,\varphi(h)\,(k_3 - k_1)\big] $$

    and in the lower method $3\varphi(h)\,(k_2 - k_1)$ in the place of the last term. Order 3, which is what the step
    control sees. Otherwise as `DPMSolver12`.

    Args:
        rtol: Error allowed per step, relative to the state.
        atol: Error allowed per step, in units of the state; the default is one grey level of 256 in `[-1, 1]`.
        max_nfe: Evaluations allowed per row and interval.

    Raises:
        ValueError: An end where $\lambda$ is infinite.

    References:
        Lu et al., DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling, 2022 (Appendix C).
    """

    rtol: float = 0.05
    atol: float = 0.0078
    max_nfe: int = 10_000
    exponents: ClassVar = (1 / 3, 0.0)
    stages: ClassVar = 3

    def attempt(
        self, eq: GaussianReverseSDE, x: Tensor, known: Tensor, walk: Walk
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        places = (walk.at, walk.between(1 / 3), walk.between(2 / 3), walk.target)
        here, one, two, there = (self.level(eq, x, walk, p) for p in places)
        k2 = eq.denoise(self.stage(x, walk, (here, one), 1 / 3, (1.0, known)), one).noise - known
        k3 = eq.denoise(self.stage(x, walk, (here, two), 2 / 3, (1.0, known), (2.0, k2)), two).noise - known
        lower = self.stage(x, walk, (here, there), 1.0, (1.0, known), (3.0, k2))
        upper = self.stage(x, walk, (here, there), 1.0, (1.0, known), (1.5, k3))
        return self.judged(x, lower, upper, (here, there))


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
