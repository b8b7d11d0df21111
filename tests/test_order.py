"""Claim: every solver converges at the order it claims, on every Gaussian SDE: the order is measured here."""

from __future__ import annotations

import math

import pytest
import torch
import zoo
from torch import Tensor

from sde_diffusion import VPSDE, integrate
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.noise import NoiseSource
from sde_diffusion.sampler.moments import response
from sde_diffusion.sde import GaussianSDE
from sde_diffusion.solvers import DDIM, EulerMaruyama, Langevin, PredictorCorrector, Solver, Torchsde
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.testing import orders


def best(solver: Solver) -> float:
    """The most a method can show: its order and one for a corrector, or for the midpoint rule on linear problems."""
    return max(zoo.named_order(solver) + 1, solver.facts.order) + 0.6


@pytest.mark.parametrize("sde", zoo.mostly_slow(zoo.SMOOTH_SDES), ids=zoo.name)
@pytest.mark.parametrize("solver", zoo.ODE_SOLVERS, ids=zoo.name)
def test_every_ode_solver_reaches_its_order_on_every_sde(solver: Solver, sde: GaussianSDE) -> None:
    found = orders.deterministic(solver, sde)
    assert min(found.errors) > 1e-13, "the error has reached rounding: the slope would say nothing"
    assert solver.facts.order - 0.15 <= orders.slope(found.steps, found.errors) <= best(solver), found


@pytest.mark.parametrize("solver", zoo.ODE_SOLVERS, ids=zoo.name)
def test_every_ode_solver_reaches_its_order_on_a_mixture(solver: Solver) -> None:
    found = orders.deterministic(solver, VPSDE(), "mixture")
    assert solver.facts.order - 0.15 <= orders.slope(found.steps, found.errors) <= best(solver), found


@pytest.mark.parametrize("sde", zoo.SMOOTH_SDES, ids=zoo.name)
def test_euler_maruyama_has_strong_order_one_on_one_brownian_path(sde: GaussianSDE) -> None:
    # Additive noise: the strong order is 1, not 1/2.
    found = orders.strong(EulerMaruyama(), sde)
    assert 0.85 <= orders.slope(found.steps, found.errors) <= 1.5, found


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
@pytest.mark.slow
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
    assert order - 0.15 <= orders.slope(steps, errors) <= order + 0.7, errors


# Their step on Gaussian data is affine in the state and the noise: their moments follow without sampling. One whose
# noise sets in within the window errs by where its steps fall.
AFFINE = [
    s
    for s in zoo.SOLVERS
    if s.facts.stochastic and s.facts.order and s.facts.evaluations and not getattr(s, "s_min", 0.0)
]


@pytest.mark.parametrize("sde", zoo.mostly_slow(zoo.SMOOTH_SDES), ids=zoo.name)
@pytest.mark.parametrize("solver", AFFINE, ids=zoo.name)
def test_stochastic_solvers_have_weak_order_one_or_better(solver: Solver, sde: GaussianSDE) -> None:
    found = orders.weak(solver, sde)
    # The multistep methods do better here, where their noise is exact and their drift of second order.
    assert 0.85 <= orders.slope(found.steps, found.errors) <= 3.2, found


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_keeps_the_mean_of_gaussian_data_at_any_step_count(eta: float) -> None:
    # One step over the whole window: the mean of the result is the mean of the data, without a discretisation error.
    for sde in zoo.SDES:
        model = orders.gaussian(sde)
        t, s = zoo.between(sde, orders.TOP, orders.BOTTOM, 1).tolist()
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
    eq = GaussianReverseSDE(model)
    chain = Langevin(k, snr)
    found = response(lambda x, noise: chain.step(eq, x, eq.level(0.4), eq.level(0.4), None, noise)[0], k)
    rho2 = (1 - tau / v) ** 2
    assert found.gain**2 == pytest.approx(rho2**k, rel=1e-10)
    assert found.variance == pytest.approx(v / (1 - tau / (2 * v)) * (1 - rho2**k), rel=1e-10)


def test_a_corrector_improves_a_coarse_predictor() -> None:
    sde, v = VPSDE(), 0.3
    (b,) = sde.levels(orders.times(sde, 1)[1:])
    solvers = (DDIM(1.0), PredictorCorrector(DDIM(1.0), Langevin(100, 0.16)))
    w = b.alpha**2 * v + b.sigma**2
    errors = [abs(orders.moments(solver, sde, 6, 0.0, v)[1] - w) for solver in solvers]
    # The chain ends at a distance from its stationary variance that 100 contractions leave of the predictor's error.
    tau = 2 * (0.16 * b.sigma) ** 2
    bias, left = w / (1 - tau / (2 * w)) - w, (1 - tau / w) ** 200
    assert errors[1] <= bias + left * errors[0] + 1e-12, (errors, bias, left)
