r"""The chain that particles follow: the reverse SDE by an exponential integrator of second order in the prediction.

In $z = x/\sigma$ and the half log-SNR $\lambda$ the reverse equation of a score $-\mathrm{noise}/\sigma$ is

$$ dz = -a\,z\,d\lambda + 2e^\lambda D\,d\lambda + \sqrt2\,dw $$

with $a = 1$ and $D$ the data prediction. Over a step of length $h$, with $D$ extrapolated from the last two predictions
to $D^*$ as in DPM-Solver++,

$$ x_s = \tfrac{\sigma_s}{\sigma_t}e^{-ah}x_t + \tfrac{2\alpha_s}{1 + a}\big(1 - e^{-(1 + a)h}\big)D^*
   + \sigma_s\sqrt{(1 - e^{-2ah})/a}\;z $$

which for $a = 1$ is `SDEDPMSolverPP(order)`. The prediction of an earlier level makes the chain one in the pair of
state and prediction: particles carry both, so that what weighs them is exact whatever the length of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.exponential.multistep import Row
from sde_diffusion.solvers.exponential.weights import plus_plus_weights


def step_row(past: Sequence[Level], s: Level, rate: float, order: int) -> Row:
    """The weights of one step.

    Args:
        past: The level of the state, then that of the prediction before.
        s: Level to reach.
        rate: $a$.
        order: 1 or 2 in the prediction.
    """
    t = past[0]
    h = s.lam - t.lam
    gain = -2 * s.alpha * math.expm1(-(1 + rate) * h) / (1 + rate)
    variance = -math.expm1(-2 * rate * h) / rate if rate else 2 * h
    return Row(
        s.sigma / t.sigma * math.exp(-rate * h),
        plus_plus_weights(past, s, 1.0, gain, order),
        std=s.sigma * math.sqrt(variance),
    )
