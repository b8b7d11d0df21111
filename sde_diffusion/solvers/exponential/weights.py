"""The weights of data predictions that several exponential solvers share, as floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sde_diffusion.sde.level import Level


def data_gain(t: Level, s: Level) -> float:
    r"""$\alpha_s(1 - e^{-h})$, the weight of a constant data prediction; finite wherever a step is."""
    if s.alpha > 0:
        return float(-s.alpha * math.expm1(t.lam - s.lam))
    return float(-t.alpha * s.sigma / t.sigma)


def plus_plus_weights(past: Sequence[Level], s: Level, kappa: float, gain: float, order: int) -> tuple[float, ...]:
    r"""Weights of the data predictions in DPM-Solver++ (2M, 3M), with $h$ stretched by $\kappa$ in the exponentials."""
    t = past[0]
    h = s.lam - t.lam
    known = [at for at in past[1:order] if at.lam > -math.inf]
    if not known or math.isinf(h):
        return (gain,)
    r0 = (t.lam - known[0].lam) / h
    if len(known) == 1:
        k = 0.5 * gain / r0
        return gain + k, -k
    # In the authors' code (the paper ends with 2M) d1 is D' h and d2 half of D'' h^2, but its weight that of the whole.
    r1 = (known[0].lam - known[1].lam) / h
    z = kappa * h
    phi2 = math.expm1(-z) / z + 1
    phi3 = phi2 / z - 0.5
    mix = r0 / (r0 + r1)
    first = s.alpha * phi2 * (1 + mix) - s.alpha * phi3 / (r0 + r1)
    second = -s.alpha * phi2 * mix + s.alpha * phi3 / (r0 + r1)
    return gain + first / r0, -first / r0 + second / r1, -second / r1
