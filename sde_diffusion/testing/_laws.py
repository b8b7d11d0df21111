r"""The law that a solver leaves, for one that claims no order: mean and variance on Gaussian data, against exact ones.

* `law`: at the end of a solve in many steps.
* `stationary`: after many calls of a corrector, which start from the right law.

Both are exact for a solver that is affine in state and noise, whose response tells them. For another solver they are
those of a sample.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.noise.sources import NoiseSource, SharedStream
from sde_diffusion.sampler import moments
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.solvers import Solver
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.testing import orders

DATA, BROAD = (2.0, 0.25), (2.0, 1.7)  # mean and variance of the data, in `law` and in `stationary`
STEPS, FEW = 200, 50  # steps of the grid; fewer for an adaptive solver, which takes steps of its own in each
CALLS = 400  # how often a corrector is called: Langevin steps of r = 0.16 forget 1.3 % of a variance in each
DRAWS = (2048, 16)  # rows and coordinates of a sample


class Law(NamedTuple):
    """How far a mean and a variance are off.

    Attributes:
        mean: Error of the mean, in standard deviations.
        variance: Relative error of the variance.
        slack: Four standard errors of the variance, the larger of the two; 0 where both are exact.
    """

    mean: float
    variance: float
    slack: float = 0.0


def _compared(mean: float, variance: float, wanted: float, spread: float, draws: int = 0) -> Law:
    slack = 4 * math.sqrt(2 / draws) if draws else 0.0
    return Law(abs(mean - wanted) / math.sqrt(spread), abs(variance / spread - 1), slack)


def law(solver: Solver, sde: GaussianSDE, *, steps: int = STEPS, affine: bool = True) -> Law:
    """Compares the law at the end of a solve with the exact one, of data of mean 2 and standard deviation 0.5.

    The solve goes from the angle 1.25 to 0.4, where `Hold` with Langevin steps, which forget the noise slowly, comes
    near enough; to 0.05 for a solver that refuses this window, such as a `Restart` whose own lies below.

    Args:
        solver: Any solver that moves in time.
        sde: Any Gaussian SDE.
        steps: Number of steps.
        affine: Whether to try its response first, which is exact.

    Raises:
        ValueError: The solver refuses both windows.
    """
    try:
        return _law(solver, sde, orders.times(sde, steps, (orders.TOP, 0.4)), affine)
    except moments.NotAffineError:
        return law(solver, sde, steps=steps, affine=False)
    except ValueError:
        try:
            return _law(solver, sde, orders.times(sde, steps, (orders.TOP, 0.05)), affine)
        except moments.NotAffineError:
            return law(solver, sde, steps=steps, affine=False)


def _law(solver: Solver, sde: GaussianSDE, grid: Tensor, affine: bool) -> Law:
    (a, b), size = sde.levels(grid[[0, -1]].tolist()), 1 if affine else DRAWS[1]
    mean, variance = DATA
    model = Gaussian(sde, torch.full((size,), mean, dtype=torch.float64), variance)
    before = a.alpha * mean, a.alpha**2 * variance + a.sigma**2
    after = b.alpha * mean, b.alpha**2 * variance + b.sigma**2
    if affine:
        found = moments.response(lambda x, noise: orders.along(model, solver, x, grid, noise), len(grid) - 1)
        return _compared(*found.moments(*before), *after)
    noise = _shared()
    x = orders.along(model, solver, before[0] + math.sqrt(before[1]) * noise.prior(), grid, noise)
    return _compared(float(x.mean()), float(x.var()), *after, x.numel())


def _shared() -> SharedStream:
    return SharedStream(torch.Generator().manual_seed(0), DRAWS[0], DRAWS[1:], torch.float64, "cpu")


def stationary(corrector: Solver, sde: GaussianSDE) -> Law:
    r"""Compares the law after many calls of a corrector with the exact one, from which they start, of data of mean 2.

    Where $\sigma/\alpha = 0.5$ the data outweigh the noise, and the bias of Langevin steps, $\tau/2v$ with
    $\tau = 2r^2\sigma^2$, is $0.13\,r^2$: 3 % for steps of $r = 0.5$, and half of the variance for a lost factor. A
    corrector that does nothing there is asked where $\sigma/\alpha = 3$.

    Raises:
        ValueError: The corrector does nothing at either level.
    """
    for ratio in (0.5, 3.0):
        t = float(sde.time_of(torch.tensor([-math.log(ratio)], dtype=torch.float64)).clamp(sde.t_min, sde.t_max))
        found = _stationary(corrector, sde, t)
        if found is not None:
            return found
    raise ValueError(f"{corrector!r} does nothing where sigma/alpha is 0.5 or 3")


def _stationary(corrector: Solver, sde: GaussianSDE, t: float) -> Law | None:
    (at,) = sde.levels([t])
    mean, variance = BROAD
    wanted = at.alpha * mean, at.alpha**2 * variance + at.sigma**2

    def call(x: Tensor, noise: NoiseSource) -> Tensor:
        eq = GaussianReverseSDE(Gaussian(sde, torch.full(x.shape[1:], mean, dtype=torch.float64), variance))
        (level,) = eq.prefill([t])
        corrector.prepare(eq, [(t, t)])
        return corrector.step(eq, x, level, level, None, noise)[0]

    try:
        found = moments.response(call, 1)
        if (found.gain, found.variance) == (1.0, 0.0):
            return None
        now = wanted
        for _ in range(CALLS):
            now = found.moments(*now)
        return _compared(*now, *wanted)
    except moments.NotAffineError:
        noise = _shared()
        x = wanted[0] + math.sqrt(wanted[1]) * noise.prior()
        for _ in range(CALLS // 4):
            x = call(x, noise)
        return _compared(float(x.mean()), float(x.var()), *wanted, x.numel())
