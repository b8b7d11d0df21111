"""What is told of particles that few of count: at the end, on the way, by the jump to the data; and of few steps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from sde_diffusion.particles.result import FEW, Particles, least

LAST_DROP = 0.5
"""Share of the effective particles that are left by the jump to the data, below which it is told of."""

STEPS_COUNT = 5.0
"""Standard errors by which half the steps may differ before it is told of."""


class ParticleWarning(UserWarning):
    """Particles whose weights have become so uneven that few of them count."""


def tell(found: Particles, times: Sequence[float]) -> None:
    """Warns of systems in which few particles count, in the end or before, and of a jump to the data that takes most.

    Args:
        found: The particles.
        times: Their grid.
    """
    n = found.log_weights.shape[1]
    last, before = found.ess[:, -1], found.ess[:, -2]
    if warn_few(last, n):
        return
    if bool((last < LAST_DROP * before).any()):
        warnings.warn(
            f"the jump to the data leaves {float((last / before).min()):.2g} of the particles that counted before: the "
            "last noise level is not small against what the likelihood tells apart. End in less noise (t_min or "
            "sigma_min of the process), or give the measurement more",
            ParticleWarning,
            stacklevel=3,
        )
        return
    on_the_way = found.ess[:, :-1]
    if few := int((on_the_way.amin(1) < least(n)).sum()):
        step = int(on_the_way.amin(0).argmin())
        warnings.warn(
            f"in {few} of {len(last)} systems fewer than {least(n):g} of {n} particles counted on the way (effective, "
            f"{on_the_way.min():.1f} at least, after step {step}, at t = {times[step]:g}), and all after come of these "
            "few: the evidence may be off by far more than its interval says, and samples miss parts of the law. Take "
            "more particles, or more steps where there are few. Neither helps where a measurement is far from what the "
            "model expects: take another twist there, such as rule=PseudoInverse() of a Posterior",
            ParticleWarning,
            stacklevel=3,
        )


def tell_of_steps(found: Particles) -> None:
    """Warns where half the steps make far more of a difference than chance does."""
    if not found.apart and found.solver_error > STEPS_COUNT * found.standard_error:  # false where either is not known
        warnings.warn(
            f"half the steps change the log evidence by {found.solver_error:.2g} nats, and its standard error is "
            f"{found.standard_error:.2g}: the interval, which stands for chance alone, is too narrow. Take more steps, "
            "until the two are alike",
            ParticleWarning,
            stacklevel=3,
        )


def warn_few(ess: Tensor, n: int) -> bool:
    """Warns of systems, of `n` particles each, in which few are effective; whether there are any."""
    few = int((ess < min(FEW, 0.5 * n)).sum())
    if few:
        warnings.warn(
            f"in {few} of {len(ess)} systems fewer than {FEW} particles count in the end (effective, {ess.min():.1f} "
            "at least): the samples repeat these few, and the evidence is less certain than its interval says. Take "
            "more particles, more steps, or a better twist, such as rule=PseudoInverse() of a Posterior",
            ParticleWarning,
            stacklevel=4,
        )
    return few > 0
