"""Claim: correctors leave the distribution of their level as it is, up to an error that theory tells.

On Gaussian data a corrector is linear in the state and the noise, so that one call over unit impulses gives what it
makes of any variance: no Monte Carlo.
"""

from __future__ import annotations

import math

import pytest
import torch
import zoo
from torch import Tensor

from sde_diffusion import EDMSDE, VESDE, VPSDE, FlowSDE, SDESampler, integrate
from sde_diffusion.denoiser.analytic import Gaussian, isotropic_mixture
from sde_diffusion.noise import NoiseSource, Streams
from sde_diffusion.sampler import moments
from sde_diffusion.sde import GaussianSDE, Level
from sde_diffusion.solvers import DDIM, RK4, SRA1, Angle, Heun, Hold, Langevin, PredictorCorrector, Renoise, Solver
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.testing import orders

F64 = torch.float64


def response(corrector: Solver, sde: GaussianSDE, t: float, v0: float, draws: int) -> tuple[float, float, float]:
    """`(rho, b, v)`: one call takes a variance V to `rho V + b`, and `v` is that of the data at `t`."""
    model = Gaussian(sde, torch.zeros(1, dtype=F64), v0)
    eq = GaussianReverseSDE(model)
    at = eq.level(t)
    found = moments.response(lambda x, noise: corrector.step(eq, x, at, at, None, noise)[0], draws)
    assert found.draws == draws
    return found.gain**2, found.variance, at.alpha**2 * v0 + at.sigma**2


def stationary_error(corrector: Solver, sde: GaussianSDE, t: float, v0: float, draws: int) -> float:
    rho, b, v = response(corrector, sde, t, v0, draws)
    return b / (1 - rho) / v - 1


# ------------------------------------------------------------------------------------------------------------- Renoise


@pytest.mark.parametrize("v0", [0.05, 0.3, 2.0])
def test_renoise_with_the_ancestral_step_has_the_stationary_variance_of_theory(v0: float) -> None:
    # On N(0, v0) all is a product of scalars: up by a, sqrt(w), back by the posterior around the predicted data.
    sde, t, gamma = VPSDE(), 0.3, 0.2
    (at,) = sde.levels([t])
    (hat,) = sde.levels(sde.time_of(torch.tensor([at.lam - math.log(1.2)], dtype=F64)).tolist())
    a = hat.alpha / at.alpha
    w = hat.sigma**2 - (a * at.sigma) ** 2
    data = hat.alpha * v0 / (hat.alpha**2 * v0 + hat.sigma**2)  # E[x0 | x_hat] = data x_hat
    gain = 1 - math.exp(-2 * (at.lam - hat.lam))
    back = a * at.sigma**2 / hat.sigma**2 + at.alpha * gain * data
    rho, b, _ = response(Renoise(DDIM(1.0), gamma), sde, t, v0, 2)
    assert rho == pytest.approx((back * a) ** 2, rel=1e-10)
    assert b == pytest.approx(back**2 * w + at.sigma**2 * gain, rel=1e-10)


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), FlowSDE()], ids=zoo.name)
@pytest.mark.parametrize(
    ("inner", "draws", "order"), [(DDIM(0.0), 1, 1), (DDIM(1.0), 2, 1), (Angle(Heun()), 1, 2), (SRA1(), 3, 2)]
)
def test_the_stationary_error_of_renoise_falls_with_the_order_of_its_inner_solver(
    inner: Solver, draws: int, order: int, sde: GaussianSDE
) -> None:
    # A step of order p errs by gamma^(p + 1), against a pull towards the data of gamma.
    t = zoo.between(sde, 0.5, 0.4, 1).tolist()[0]
    errors = [abs(stationary_error(Renoise(inner, gamma), sde, t, 0.3, draws)) for gamma in (0.1, 0.05, 0.025, 0.0125)]
    assert order - 0.2 <= orders.slope([1, 2, 4, 8], errors) <= order + 0.4, errors


@pytest.mark.parametrize("gamma", [0.5, 1.0, 4.0])
def test_renoise_with_an_exact_step_is_exact_at_any_rise(gamma: float) -> None:
    # In the angle with the standard deviation of the data the probability flow stands still.
    v0 = 0.49
    rho, b, v = response(Renoise(Angle(RK4(), math.sqrt(v0)), gamma), EDMSDE(), 0.5, v0, 1)
    assert b / (1 - rho) == pytest.approx(v, rel=1e-12)
    assert rho == pytest.approx(v / (v0 + (0.5 * (1 + gamma)) ** 2), rel=1e-12)  # the squared correlation with the head


def test_renoise_mixes_as_langevin_steps_do_and_stays_stable_where_they_do_not() -> None:
    sde, t, v0 = EDMSDE(), 1.0, 0.05
    v, gamma = v0 + 1.0, 0.01
    flow, _, _ = response(Renoise(Angle(RK4()), gamma), sde, t, v0, 1)
    ancestral, _, _ = response(Renoise(DDIM(1.0), gamma), sde, t, v0, 2)
    assert math.log(flow) == pytest.approx(-2 * gamma / v, rel=0.03)  # rho = (1 - tau / v)^2 with tau = gamma sigma^2
    assert math.log(ancestral) == pytest.approx(-4 * gamma / v, rel=0.03)
    wild, _, _ = response(Langevin(1, math.sqrt(1.5)), sde, t, v0, 1)  # tau = 3 sigma^2 > 2 v
    calm, _, _ = response(Renoise(DDIM(1.0), 3.0), sde, t, v0, 2)
    assert calm < 1 < wild


def test_renoise_repeats_itself_and_counts_its_evaluations() -> None:
    sde = VPSDE()
    model = isotropic_mixture(sde, [[-1.0, 0.3], [1.0, 0.0]], 0.4)
    eq = GaussianReverseSDE(model)
    at, x = eq.level(0.4), model.sample(3, seed=0)
    once, noise = x, Streams(range(3), (2,), F64, "cpu")
    for _ in range(3):
        once, _ = Renoise(Heun(), 0.3).step(eq, once, at, at, None, noise)
    before = eq.nfe
    thrice, _ = Renoise(Heun(), 0.3, 3).step(eq, x, at, at, None, Streams(range(3), (2,), F64, "cpu"))
    assert torch.equal(thrice, once)
    assert eq.nfe - before == 6 == Renoise(Heun(), 0.3, 3).facts.evaluations


def test_a_coarse_predictor_is_corrected_by_renoise() -> None:
    sde, v = VPSDE(), 0.3
    (b,) = sde.levels(orders.times(sde, 1)[1:])
    errors = []
    for solver, draws in ((DDIM(), 0), (PredictorCorrector(DDIM(), Renoise(Angle(RK4()), 2.0, 4)), 24)):
        _, variance, drawn = orders.moments(solver, sde, 6, 0.0, v, draws)
        assert drawn == draws
        errors.append(abs(variance - (b.alpha**2 * v + b.sigma**2)))
    assert errors[1] < 0.1 * errors[0], errors


# ------------------------------------------------------------------------------------------------------------ Langevin


class Noted(NoiseSource):
    """A stream that notes the times at which it is asked."""

    def __init__(self, source: NoiseSource) -> None:
        super().__init__(source.shape, source.dtype, source.device)
        self.source, self.times = source, list[float]()

    def prior(self) -> Tensor:
        return self.source.prior()

    def __call__(self, t: float, s: float) -> Tensor:
        self.times.append(s)
        return self.source(t, s)


def by_ratio(at: Level) -> int:
    return 3 if at.sigma / at.alpha >= 0.5 else 1


@pytest.mark.parametrize("n", [{0.0: 1, 0.5: 3}, by_ratio], ids=["mapping", "function"])
def test_langevin_takes_as_many_steps_as_its_level_says(n) -> None:
    sde = EDMSDE(0.02, 10.0)
    model = isotropic_mixture(sde, [[-1.0, 0.3], [1.0, 0.0]], 0.4)
    noise = Noted(Streams([0, 1], (2,), F64, "cpu"))
    solver, times = PredictorCorrector(Hold(), Langevin(n, 0.1)), [10.0, 2.0, 0.5, 0.4, 0.02]
    *_, last = integrate(GaussianReverseSDE(model), solver, torch.zeros(2, 2, dtype=F64), times, noise)
    assert noise.times == [2.0] * 3 + [0.5] * 3 + [0.4] + [0.02]
    assert last.nfe == 8
    assert solver.facts.evaluations is None


def test_a_level_below_all_keys_is_left_alone() -> None:
    sde = EDMSDE(0.02, 10.0)
    eq = GaussianReverseSDE(isotropic_mixture(sde, [[-1.0, 0.3], [1.0, 0.0]], 0.4))
    corrector = Langevin({0.5: 3, 2.0: 0}, 0.1)
    assert [corrector.count(eq.level(t)) for t in (10.0, 2.0, 1.9, 0.5, 0.49)] == [0, 0, 3, 3, 0]
    assert corrector.count(FlowSDE().levels([1.0])[0]) == 0  # sigma / alpha is infinite there


def test_the_same_count_at_every_level_may_be_given_in_three_ways() -> None:
    model = isotropic_mixture(VPSDE(), [[-1.0, 0.3], [1.0, 0.0]], 0.4)

    def draw(n) -> Tensor:
        return SDESampler(VPSDE(), model, solver=PredictorCorrector(DDIM(), Langevin(n)), steps=6).sample(3, seed=0)

    assert torch.equal(draw(2), draw({0.0: 2}))
    assert torch.equal(draw(2), draw(lambda at: 2))


def test_the_rule_of_ncsn_v2_gives_the_step_size_of_the_paper() -> None:
    # The paper's settings for CIFAR-10: 232 levels from 50 to 0.01, T = 5, epsilon = 6.2e-6 = 0.062 sigma_L^2.
    corrector = Langevin.ncsn2(5, ratio=(50 / 0.01) ** (1 / 231))
    assert 2 * corrector.snr**2 == pytest.approx(0.062, abs=5e-4)
    assert corrector.n == 5


def test_ncsn_v2_is_the_algorithm_of_the_paper() -> None:
    sde = VESDE(0.1, 5.0)
    model = isotropic_mixture(sde, [[-1.0, 0.3], [1.0, 0.0]], 0.4)
    ratio, epsilon = 50 ** (1 / 7), 6.2e-4
    corrector = Langevin(3, math.sqrt(epsilon / 2) / 0.1)
    assert PredictorCorrector(Hold(), corrector).facts.evaluations == 3
    sigmas = [5.0 / ratio**i for i in range(8)]
    times = sde.time_of(torch.tensor([-math.log(v) for v in sigmas], dtype=F64)).tolist()
    x = y = 5 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    noise, twin = (Streams(range(4), (2,), F64, "cpu") for _ in range(2))
    for sigma, t in zip(sigmas[1:], times[1:], strict=True):
        step = epsilon * sigma**2 / sigmas[-1] ** 2
        for _ in range(3):
            y = y + step * model.score(y, t) + math.sqrt(2 * step) * noise(0.0, 0.0)
    *_, last = integrate(GaussianReverseSDE(model), PredictorCorrector(Hold(), corrector), x, times, twin)
    torch.testing.assert_close(last.x, y, rtol=0, atol=1e-10)


def test_the_rule_of_ncsn_v2_keeps_the_variance_as_near_to_right_as_any_step_size() -> None:
    # Pure noise of the level above: gamma^2 sigma^2 goes to sigma^2 times what the paper's equation says.
    ratio, n = 1.2, 4

    def error(corrector: Langevin) -> float:
        rho, b, _ = response(corrector, EDMSDE(), 1.0, 1e-12, n)
        return abs(rho * ratio**2 + b - 1)

    best = Langevin.ncsn2(n, ratio=ratio)
    assert all(error(best) < error(Langevin(n, best.snr * factor)) for factor in (0.8, 0.95, 1.05, 1.25))


# ----------------------------------------------------------------------------------------------------------- the doors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Renoise(DDIM(), 0.0), ValueError, r"gamma must be positive and finite, got 0.0"),
        (lambda: Renoise(DDIM(), 0.1, 0), ValueError, r"n must be at least 1, got 0"),
        (lambda: Langevin({}), ValueError, r"n maps levels sigma/alpha >= 0 to counts, got \{\}"),
        (lambda: Langevin({-1.0: 2}), ValueError, r"n maps levels sigma/alpha >= 0 to counts, got \{-1.0: 2\}"),
        (lambda: Langevin({0.0: -2}), ValueError, r"n must be at least 1, got -2"),
        (lambda: Langevin({0.0: "2"}), TypeError, r"n must be an integer, got '2'"),  # type: ignore[dict-item]
        (lambda: Langevin.ncsn2(0, ratio=1.1), ValueError, r"n must be at least 1, got 0 *$"),
        (lambda: Langevin.ncsn2(5, ratio=1.0), ValueError, r"ratio must be above 1, got 1.0"),
    ],
)
def test_a_corrector_that_makes_no_sense_is_refused(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_renoise_stays_at_one_level_and_does_not_rise_above_pure_noise() -> None:
    eq = GaussianReverseSDE(Gaussian(FlowSDE(), torch.zeros(1, dtype=F64), 1.0))
    noise, x = Streams([0], (1,), F64, "cpu"), torch.zeros(1, 1, dtype=F64)
    with pytest.raises(
        ValueError, match=r"Renoise stays at one level: use it as PredictorCorrector\(predictor, Renoise"
    ):
        Renoise().step(eq, x, eq.level(0.5), eq.level(0.4), None, noise)
    with pytest.raises(ValueError, match=r"Renoise cannot rise above t = 1, where alpha = 0"):
        Renoise().step(eq, x, eq.level(1.0), eq.level(1.0), None, noise)


def test_a_function_that_counts_wrongly_is_reported() -> None:
    eq = GaussianReverseSDE(Gaussian(VPSDE(), torch.zeros(1, dtype=F64), 1.0))
    with pytest.raises(TypeError, match=r"n must be an integer, got 2.0"):
        Langevin(lambda at: 2.0).count(eq.level(0.5))  # type: ignore[arg-type, return-value]
