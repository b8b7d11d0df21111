r"""Measuring orders of convergence: on exact data, on any Gaussian SDE, in a second or two.

Three measurements, each a fit of log error against log steps, over a window of the angle $\arctan(\sigma/\alpha)$ away
from both ends, where the time of some SDEs has a singular derivative:

* `deterministic`: distance to the exact probability flow, of Gaussian data with unequal scales and of a mixture;
  `upward` measures it from the data to the noise.
* `strong`: distance between solutions at $N$ and $2N$ steps on one Brownian path.
* `weak`: bias of mean and variance on Gaussian data. A step is affine there in state and noise, so that one solve over
  unit impulses gives both exactly: no Monte Carlo.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusion.denoiser.analytic import Gaussian, GaussianMixture, isotropic_mixture
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.noise.brownian import BrownianPath
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sampler.moments import NotAffineError, response
from sde_diffusion.sde import processes
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.schedules import VPSDE
from sde_diffusion.solvers import RK4, Solver
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.solvers.loop import integrate

TOP, BOTTOM = 1.25, 0.15
FLOOR = 1e-12  # below, rounding rules and a slope says nothing
TOLERANCE = 0.15  # how far below its claim a measured order may lie
UP_TOLERANCE = 0.3  # the same up in time, where the start of a multistep method weighs more
STEPS = {1: (32, 64, 128, 256), 2: (16, 32, 64, 128), 3: (64, 128, 256), 4: (16, 32, 64, 128)}
HIGH_ORDER_STEPS = (8, 16, 32, 64)
STRONG_STEPS = (8, 16, 32, 64)
WEAK_STEPS = (64, 128, 256, 512)
FEW = (4, 8, 16)  # for a solver that makes many steps of its own in each

_SMOOTH = [cls for cls in processes.CLASSES if not cls.time_is_index]  # on a chain a method that steps in t shows none
SDES: dict[str, GaussianSDE] = {
    cls.__name__: cls.examples()[0] for cls in sorted(_SMOOTH, key=lambda cls: cls is not VPSDE)
}
"""The processes that orders are measured on, by the name of their class; the rules of the house are tried on the first.
"""


@dataclass(frozen=True)
class Convergence:
    """Errors at several numbers of steps.

    Args:
        steps: Numbers of steps.
        errors: The error at each.
    """

    steps: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def order(self) -> float:
        """The fitted order, over the errors above rounding; infinite where fewer than two are."""
        kept = [(n, e) for n, e in zip(self.steps, self.errors, strict=True) if not e <= FLOOR]
        return slope([n for n, _ in kept], [e for _, e in kept]) if len(kept) > 1 else math.inf


def slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Returns the order of convergence: minus the slope of log error against log steps."""
    n = torch.tensor([math.log(k) for k in steps], dtype=torch.float64)
    e = torch.tensor(errors, dtype=torch.float64).log()
    return float(-((n - n.mean()) * (e - e.mean())).sum() / (n - n.mean()).square().sum())


def window(sde: GaussianSDE, between: tuple[float, float] = (TOP, BOTTOM)) -> tuple[float, float]:
    r"""First and last angle $\arctan(\sigma/\alpha)$ of the measurement, or as much of them as the SDE reaches."""
    ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
    top, bottom = torch.atan2(sde.sigma(ends), sde.alpha(ends)).tolist()
    return min(between[0], top), max(between[1], bottom)


def times(sde: GaussianSDE, steps: int, between: tuple[float, float] = (TOP, BOTTOM)) -> Tensor:
    """The grid of the measurement: uniform in the angle over the window, as `steps + 1` times."""
    top, bottom = window(sde, between)
    u = torch.linspace(top, bottom, steps + 1, dtype=torch.float64)
    return sde.time_of(-torch.log(torch.tan(u))).clamp(sde.t_min, sde.t_max)


def gaussian(sde: GaussianSDE) -> Gaussian:
    """Makes data with unequal scales, all different from any that a solver is exact for, and a mean."""
    return Gaussian(sde, torch.tensor([0.7, -0.4, 0.2]).double(), torch.tensor([0.3, 1.4, 0.05]).double())


def mixture(sde: GaussianSDE) -> GaussianMixture:
    """Makes data of three round components in the plane: a flow that is not linear."""
    return isotropic_mixture(sde, [[-1.0, 0.0], [1.0, 0.3], [0.2, -1.0]], 0.4)


def solve(model: Denoiser, solver: Solver, x: Tensor, steps: int, noise: NoiseSource | None = None) -> Tensor:
    """Solves over the window, and returns the state at its end."""
    return along(model, solver, x, times(model.sde, steps), noise)


def along(model: Denoiser, solver: Solver, x: Tensor, grid: Tensor, noise: NoiseSource | None = None) -> Tensor:
    """Solves over a grid, and returns the state at its end."""
    *_, last = integrate(GaussianReverseSDE(model), solver, x, grid, noise)
    return last.x


def deterministic(solver: Solver, sde: GaussianSDE, data: str = "gaussian") -> Convergence:
    """Measures the distance to the exact probability flow, down in time.

    Args:
        solver: A deterministic solver with a claimed order.
        sde: Any Gaussian SDE.
        data: `gaussian` (root mean square error, closed form) or `mixture` (median error over samples, against RK4 in
            1000 steps).
    """
    steps = STEPS.get(max(1, round(solver.facts.order)), HIGH_ORDER_STEPS)
    if data == "gaussian":
        model, (x, t, s) = gaussian(sde), states(sde, 16)
        exact = model.flow(x, t, s)
        errors = [float((solve(model, solver, x, n) - exact).square().mean().sqrt()) for n in steps]
    elif data == "mixture":
        # Median over samples: one that changes its mode between two grids would rule a mean.
        x, exact = mixture_states(sde)
        errors = [float((solve(mixture(sde), solver, x, n) - exact).norm(dim=1).median()) for n in steps]
    else:
        raise ValueError(f"data must be 'gaussian' or 'mixture', got {data!r}")
    return Convergence(steps, tuple(errors))


def error_in_tolerances(solver: Solver, sde: GaussianSDE, rtol: float, atol: float) -> float:
    """Measures the error of an adaptive solver on Gaussian data, over `atol + rtol |x|`, root mean square."""
    x, t, s = states(sde, 16)
    exact = gaussian(sde).flow(x, t, s)
    return float(((solve(gaussian(sde), solver, x, 1) - exact) / (atol + rtol * exact.abs())).square().mean().sqrt())


def upward(solver: Solver, sde: GaussianSDE) -> Convergence:
    """Measures the distance to the exact probability flow of Gaussian data, up in time, as `encode` goes."""
    steps = STEPS.get(max(1, round(solver.facts.order)), HIGH_ORDER_STEPS)
    model, (x, t, s) = gaussian(sde), states(sde, 16)
    low = model.flow(x, t, s)
    errors = [along(model, solver, low, times(sde, n).flip(0)) - x for n in steps]
    return Convergence(steps, tuple(float(e.square().mean().sqrt()) for e in errors))


def upward_in_tolerances(solver: Solver, sde: GaussianSDE, rtol: float, atol: float) -> float:
    """Measures the same as `error_in_tolerances`, up in time."""
    model, (x, t, s) = gaussian(sde), states(sde, 16)
    found = along(model, solver, model.flow(x, t, s), times(sde, 1).flip(0))
    return float(((found - x) / (atol + rtol * x.abs())).square().mean().sqrt())


def states(sde: GaussianSDE, n: int) -> tuple[Tensor, float, float]:
    """Draws from the marginal at the noisy end of the window; also returns the times of both ends."""
    t, s = times(sde, 1).tolist()
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (at,) = sde.levels([t])
    return gaussian(sde).sample(n, seed=1) * at.alpha + at.sigma * z, t, s


def mixture_states(sde: GaussianSDE) -> tuple[Tensor, Tensor]:
    """Returns states at the noisy end, and where the probability flow of the mixture takes them, `(64, 2)` each."""
    start, end = _mixture_flow(*window(sde))
    a, b = sde.levels(times(sde, 1).tolist())
    return start * math.hypot(a.alpha, a.sigma), end * math.hypot(b.alpha, b.sigma)


@lru_cache
def _mixture_flow(top: float, bottom: float) -> tuple[Tensor, Tensor]:
    r"""States at both ends of the window over $\sqrt{\alpha^2 + \sigma^2}$, where every Gaussian SDE is the same."""
    sde = VPSDE(t_min=1e-6)
    u = torch.linspace(top, bottom, 1001, dtype=torch.float64)
    grid = sde.time_of(-torch.log(torch.tan(u)))
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    *_, last = integrate(GaussianReverseSDE(mixture(sde)), RK4(), x, grid)
    return x, last.x


def strong(solver: Solver, sde: GaussianSDE, steps: tuple[int, ...] | None = None) -> Convergence:
    """Measures the root mean square distance between solutions at $N$ and $2N$ steps on one Brownian path.

    Args:
        solver: A stochastic solver that takes its noise as increments over its steps.
        sde: Any Gaussian SDE.
        steps: Numbers of steps, each twice the one before; by default 8 to 64, fewer for a solver that makes its own.
    """
    steps = steps or (STRONG_STEPS if solver.facts.evaluations is not None else FEW)
    x, t, s = states(sde, 64)
    path = BrownianPath(range(64), (3,), torch.float64, "cpu", (t, s), depth=20)
    found = [solve(gaussian(sde), solver, x, n, path) for n in (*steps, 2 * steps[-1])]
    errors = [float((a - b).square().mean().sqrt()) for a, b in pairwise(found)]
    return Convergence(steps, tuple(errors))


def moments(
    solver: Solver, sde: GaussianSDE, steps: int, mean: float, variance: float, draws: int | None = None
) -> tuple[float, float, int]:
    """Finds the exact mean and variance of what a solver makes of Gaussian data over the window.

    Args:
        solver: A solver that is affine on Gaussian data.
        sde: Any Gaussian SDE.
        steps: Number of steps.
        mean: Mean of the data.
        variance: Variance of the data.
        draws: How often it draws noise in these steps, if known; one draw per step is tried first.

    Returns:
        Mean, variance and the number of draws.

    Raises:
        ValueError: The solver is not affine, as an adaptive one is not.
    """
    model = Gaussian(sde, torch.tensor([mean], dtype=torch.float64), variance)
    try:
        found = response(lambda x, noise: solve(model, solver, x, steps, noise), steps if draws is None else draws)
    except NotAffineError as error:
        raise ValueError(f"{solver!r} {error}") from None
    (a,) = sde.levels(times(sde, 1)[:1])
    return *found.moments(a.alpha * mean, a.alpha**2 * variance + a.sigma**2), found.draws


def weak(solver: Solver, sde: GaussianSDE, steps: tuple[int, ...] | None = None) -> Convergence:
    """Measures the bias of mean and variance, added, on Gaussian data of mean 0.5 and variance 2.

    Args:
        solver: A stochastic solver, affine on Gaussian data.
        sde: Any Gaussian SDE.
        steps: Numbers of steps, each twice the one before; by default 64 to 512, fewer for a solver that makes its own.
    """
    steps = steps or (WEAK_STEPS if solver.facts.evaluations is not None else FEW)
    (b,) = sde.levels(times(sde, 1)[1:])
    errors, draws = [], None
    for n in steps:
        mean, variance, draws = moments(solver, sde, n, 0.5, 2.0, None if draws is None else 2 * draws)
        errors.append(abs(mean - 0.5 * b.alpha) + abs(variance - 2.0 * b.alpha**2 - b.sigma**2))
    return Convergence(steps, tuple(errors))
