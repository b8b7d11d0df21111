r"""Euler-Maruyama, the plain step on the reverse-time SDE, in the time `t` of the process."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Solver
from sde_diffusion.solvers.checks import check_eta, check_falling
from sde_diffusion.solvers.equation import ReverseSDE


@dataclass(frozen=True)
class EulerMaruyama(Solver[ReverseSDE, None]):
    r"""Euler-Maruyama on the reverse-time SDE.

    $$ x_s = x_t + h\,\big[f(x_t, t) - \tfrac{1 + \eta^2}{2}\,g(t)^2\,\nabla\log p_t(x_t)\big] +
      \eta\,g(t)\sqrt{|h|}\,z, \quad h = s - t $$

    Strong order 1 (the noise is additive), weak order 1; one evaluation per step, and 1000 steps by default (30 where
    $\eta = 0$). Any SDE with its score.

    Args:
        eta: Stochasticity, `>= 0`: 1 is the reverse SDE, 0 Euler on the probability-flow ODE.

    Raises:
        ValueError: A negative `eta`; a step up in time with `eta > 0`; a start where `alpha = 0`, as $g$ is infinite
            there.

    References:
        Song et al., Score-Based Generative Modeling through SDEs, 2021 (Section 4); Maruyama, 1955.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def facts(self) -> Facts:
        steps = 1000 if self.eta else 30
        return Facts(needs=ReverseSDE, order=1, stochastic=self.eta > 0, in_time=True, default_steps=steps)

    def step(
        self, eq: ReverseSDE, x: Tensor, t: Level, s: Level, state: None, noise: NoiseSource
    ) -> tuple[Tensor, None]:
        h = s.t - t.t
        x = torch.add(x, eq.reverse_drift(x, t, self.eta), alpha=h)
        if not self.eta:
            return x, None
        check_falling(h)
        g = eq.diffusion(t)
        z = noise(t.t, s.t)
        if isinstance(g, Tensor):
            return x + (self.eta * math.sqrt(-h) * g).to(x) * z, None
        return torch.add(x, z, alpha=self.eta * g * math.sqrt(-h)), None

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (EulerMaruyama(), EulerMaruyama(0.5), EulerMaruyama(0.0))

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"euler-maruyama": EulerMaruyama()}
