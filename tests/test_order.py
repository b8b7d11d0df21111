"""Claim: every solver converges at the order it claims, on every Gaussian SDE: the order is measured here."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
import zoo
from torch import Tensor

from sde_diffusion import EDMSDE, VESDE, VPSDE, BrownianSDE, CosineSDE, FlowSDE, SubVPSDE, integrate
from sde_diffusion.analytic import Gaussian, isotropic_mixture
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.equation import GaussianReverseSDE
from sde_diffusion.noise import BrownianPath, NoiseSource
from sde_diffusion.sde import GaussianSDE
from sde_diffusion.solvers import DDIM, RK4, EulerMaruyama, Langevin, PredictorCorrector, Solver, Torchsde

# The window of the measurement, in the angle atan(sigma / alpha): from much noise to little, away from both ends, where
# the time of some SDEs has a singular derivative.
TOP, BOTTOM = 1.25, 0.15


def gaussian(sde: GaussianSDE) -> Gaussian:
    """Data with unequal scales, all different from any that a solver is exact for, and a mean."""
    return Gaussian(sde, torch.tensor([0.7, -0.4, 0.2]).double(), torch.tensor([0.3, 1.4, 0.05]).double())


def solve(model: Denoiser, solver: Solver, x: Tensor, steps: int, noise: NoiseSource | None = None) -> Tensor:
    times = zoo.between(model.sde, TOP, BOTTOM, steps)
    *_, last = integrate(GaussianReverseSDE(model), solver, x, times, noise)
    return last.x


def states(model: Gaussian, n: int = 16) -> tuple[Tensor, float, float]:
    """Draws of the marginal at the noisy end of the window, and the times of both ends."""
    t, s = zoo.between(model.sde, TOP, BOTTOM, 1).tolist()
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (at,) = model.sde.levels([t])
    return model.sample(n, seed=1) * at.alpha + at.sigma * z, t, s


STEPS = {1: [32, 64, 128, 256], 2: [16, 32, 64, 128], 3: [64, 128, 256], 4: [16, 32, 64, 128]}


def best(solver: Solver) -> float:
    """The most a method can show: its order and one for a corrector, or for the midpoint rule on linear problems."""
    return max(zoo.named_order(solver) + 1, solver.facts.order) + 0.6


@pytest.mark.parametrize("sde", zoo.SMOOTH_SDES, ids=zoo.name)
@pytest.mark.parametrize("solver", zoo.ODE_SOLVERS, ids=zoo.name)
def test_every_ode_solver_reaches_its_order_on_every_sde(solver: Solver, sde: GaussianSDE) -> None:
    model = gaussian(sde)
    x, t, s = states(model)
    steps = STEPS[round(solver.facts.order)]
    errors = [float((solve(model, solver, x, n) - model.flow(x, t, s)).square().mean().sqrt()) for n in steps]
    assert min(errors) > 1e-13, "the error has reached rounding: the slope would say nothing"
    assert solver.facts.order - 0.15 <= zoo.slope(steps, errors) <= best(solver), errors


@cache
def mixture_problem() -> tuple[Denoiser, Tensor, Tensor]:
    """A mixture, states at the noisy end of the window, and where the probability flow takes them."""
    model = isotropic_mixture(VPSDE(), [[-1.0, 0.0], [1.0, 0.3], [0.2, -1.0]], 0.4)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return model, x, solve(model, RK4(), x, 1000)


@pytest.mark.parametrize("solver", zoo.ODE_SOLVERS, ids=zoo.name)
def test_every_ode_solver_reaches_its_order_on_a_mixture(solver: Solver) -> None:
    # Median over samples: one that changes its mode between two grids would rule a mean.
    model, x, exact = mixture_problem()
    steps = STEPS[round(solver.facts.order)]
    errors = [float((solve(model, solver, x, n) - exact).norm(dim=1).median()) for n in steps]
    assert solver.facts.order - 0.15 <= zoo.slope(steps, errors) <= best(solver), errors


STRONG_SDES = [VPSDE(), SubVPSDE(), VESDE(), BrownianSDE(), CosineSDE(), EDMSDE(), FlowSDE()]


@pytest.mark.parametrize("sde", STRONG_SDES, ids=zoo.name)
def test_euler_maruyama_has_strong_order_one_on_one_brownian_path(sde: GaussianSDE) -> None:
    # Additive noise: the strong order is 1, not 1/2. The reference is the method itself on a grid 16 times finer than
    # the finest one measured, whose own error is then below a tenth of what is measured.
    model = gaussian(sde)
    x, t, s = states(model, 64)
    path = BrownianPath(range(64), (3,), torch.float64, "cpu", (t, s), depth=20)
    solutions = {n: solve(model, EulerMaruyama(), x, n, path) for n in (8, 16, 32, 64, 1024)}
    steps = [8, 16, 32, 64]
    errors = [float((solutions[n] - solutions[1024]).square().mean().sqrt()) for n in steps]
    assert 0.85 <= zoo.slope(steps, errors) <= 1.5, errors


class FinePath(NoiseSource):
    """A Brownian path known on a fine uniform grid, which also gives its exact space-time area to torchsde's SRK."""

    def __init__(self, n: int, rows: int, t: float, s: float) -> None:
        super().__init__((1,), torch.float64, "cpu")
        self.t, self.h, self.last = t, (t - s) / n, (0, n)
        z = torch.randn(n, rows, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.w = torch.cat([z.new_zeros(1, rows, 1), (z * math.sqrt(self.h)).cumsum(0)])

    def prior(self) -> Tensor:
        raise NotImplementedError

    def __call__(self, t: float, s: float) -> Tensor:
        if t != s:
            self.last = round((self.t - t) / self.h), round((self.t - s) / self.h)
        i, j = self.last
        length = (j - i) * self.h
        if t != s:
            return (self.w[j] - self.w[i]) / math.sqrt(length)
        # int (W_u - W_i) du over the interval, by the trapezoidal rule on the fine grid, less its expectation given W.
        area = ((self.w[i : j + 1] - self.w[i]).sum(0) - 0.5 * (self.w[j] - self.w[i])) * self.h
        return (area / length - 0.5 * (self.w[j] - self.w[i])) / math.sqrt(length / 12)


@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_torchsde_methods_have_their_strong_order_on_one_brownian_path(method: str) -> None:
    sde = VPSDE()
    model = Gaussian(sde, torch.tensor([0.5], dtype=torch.float64), 0.3)
    t, s = 0.6, 0.15
    x = torch.randn(256, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solutions = {}
    for n in (8, 16, 32, 64, 512):
        *_, last = integrate(GaussianReverseSDE(model), Torchsde(method, n), x, [t, s], FinePath(16384, 256, t, s))
        solutions[n] = last.x
    steps = [8, 16, 32, 64]
    errors = [float((solutions[n] - solutions[512]).square().mean().sqrt()) for n in steps]
    # The drift part of SRA1 is of order 2, and rules where the noise part is small.
    order = Torchsde(method).facts.order
    assert order - 0.15 <= zoo.slope(steps, errors) <= order + 0.7, errors


@pytest.mark.parametrize("sde", STRONG_SDES, ids=zoo.name)
@pytest.mark.parametrize("solver", zoo.WEAK_ORDER_1, ids=zoo.name)
def test_stochastic_solvers_have_weak_order_one_or_better(solver: Solver, sde: GaussianSDE) -> None:
    # On Gaussian data a step is linear in the state and the noise, so that one solve over unit impulses gives the
    # variance of the result exactly: no Monte Carlo.
    v = 2.0
    model = Gaussian(sde, torch.zeros(1, dtype=torch.float64), v)
    t, s = zoo.between(sde, TOP, BOTTOM, 1).tolist()
    a, b = sde.levels([t, s])
    steps, errors = [64, 128, 256, 512], []
    for n in steps:
        impulses = zoo.OneAtATime(n)
        out = solve(model, solver, impulses.prior(), n, impulses)
        variance = float(out[1] ** 2) * (a.alpha**2 * v + a.sigma**2) + float(out[2:].square().sum())
        errors.append(abs(variance - (b.alpha**2 * v + b.sigma**2)))
    # The multistep methods do better here, where their noise is exact and their drift of second order.
    assert 0.85 <= zoo.slope(steps, errors) <= 3.2, errors


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_keeps_the_mean_of_gaussian_data_at_any_step_count(eta: float) -> None:
    # One step over the whole window: the mean of the result is the mean of the data, without a discretisation error.
    for sde in zoo.SDES:
        model = gaussian(sde)
        t, s = zoo.between(sde, TOP, BOTTOM, 1).tolist()
        a, b = sde.levels([t, s])
        *_, last = integrate(GaussianReverseSDE(model), DDIM(eta), a.alpha * model.means, [t, s], _Zeros())
        torch.testing.assert_close(last.x, b.alpha * model.means, rtol=0, atol=1e-13)


class _Zeros(NoiseSource):
    """No noise, for the mean of a stochastic step."""

    def __init__(self) -> None:
        super().__init__((3,), torch.float64, "cpu")

    def prior(self) -> Tensor:
        return torch.zeros(1, 3, dtype=torch.float64)

    def __call__(self, t: float, s: float) -> Tensor:
        return self.prior()


@pytest.mark.parametrize("snr", [0.05, 0.16, 0.3])
def test_langevin_has_the_stationary_variance_of_theory(snr: float) -> None:
    # x <- x - tau x / v + sqrt(2 tau) z contracts by rho = 1 - tau / v, so that k steps from variance V give
    # rho^2k V + 2 tau (1 - rho^2k) / (1 - rho^2), which tends to v / (1 - tau / 2v).
    sde, v0, k = VPSDE(), 0.3, 40
    (at,) = sde.levels([0.4])
    model = Gaussian(sde, torch.zeros(1, dtype=torch.float64), v0)
    v = at.alpha**2 * v0 + at.sigma**2
    tau = 2 * (snr * at.sigma) ** 2
    impulses = zoo.OneAtATime(k)
    eq = GaussianReverseSDE(model)
    x, _ = Langevin(k, snr).step(eq, impulses.prior(), eq.level(0.4), eq.level(0.4), None, impulses)
    rho2 = (1 - tau / v) ** 2
    assert float(x[1]) ** 2 == pytest.approx(rho2**k, rel=1e-10)
    assert float(x[2:].square().sum()) == pytest.approx(v / (1 - tau / (2 * v)) * (1 - rho2**k), rel=1e-10)


def test_a_corrector_improves_a_coarse_predictor() -> None:
    sde, v = VPSDE(), 0.3
    model = Gaussian(sde, torch.zeros(1, dtype=torch.float64), v)
    times = zoo.between(sde, TOP, BOTTOM, 6)
    a, b = sde.levels([float(times[0]), float(times[-1])])
    errors = []
    for solver, draws in ((DDIM(1.0), 6), (PredictorCorrector(DDIM(1.0), Langevin(100, 0.16)), 606)):
        impulses = zoo.OneAtATime(draws)
        *_, last = integrate(GaussianReverseSDE(model), solver, impulses.prior(), times, impulses)
        variance = float(last.x[1] ** 2) * (a.alpha**2 * v + a.sigma**2) + float(last.x[2:].square().sum())
        errors.append(abs(variance - (b.alpha**2 * v + b.sigma**2)))
    # The chain ends at a distance from its stationary variance that 100 contractions leave of the predictor's error.
    w, tau = b.alpha**2 * v + b.sigma**2, 2 * (0.16 * b.sigma) ** 2
    bias, left = w / (1 - tau / (2 * w)) - w, (1 - tau / w) ** 200
    assert errors[1] <= bias + left * errors[0] + 1e-12, (errors, bias, left)
