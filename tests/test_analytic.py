"""Claim: the exact denoisers are exact: score, posterior mean, density and flow agree, also with quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from torch.autograd import grad

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    CosineSDE,
    DiscreteVPSDE,
    FlowSDE,
    Matched,
    Problem,
    SDESampler,
    SubVPSDE,
    grids,
)
from sde_diffusion.denoiser.analytic import Empirical, Gaussian, GaussianMixture, isotropic_mixture
from sde_diffusion.solvers import DDIM, DPMSolverPP, EulerMaruyama

SDES = [VPSDE(), SubVPSDE(), VESDE(), BrownianSDE(), CosineSDE(), EDMSDE(), FlowSDE(), DiscreteVPSDE.linear(1000)]
every_sde = pytest.mark.parametrize("sde", SDES, ids=repr)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


MEANS = f64(1.0, -0.5, -0.8, 0.6, 0.1, 0.2).reshape(3, 2)
COVS = f64(0.30, 0.12, 0.12, 0.10, 0.08, -0.05, -0.05, 0.25, 0.0025, 0.0, 0.0, 0.0025).reshape(3, 2, 2)
WEIGHTS = f64(1.0, 2.0, 0.5)  # not normalised, on purpose


def models(sde):
    return {
        "full": GaussianMixture(sde, WEIGHTS, MEANS, COVS),
        "diagonal": GaussianMixture(sde, WEIGHTS, MEANS, f64(0.3, 0.1, 0.05, 0.2, 0.01, 0.4).reshape(3, 2)),
        "isotropic": GaussianMixture(sde, WEIGHTS, MEANS, 0.1),
        "gaussian": Gaussian(sde, MEANS[0], COVS[0]),
        "points": Empirical(sde, MEANS),
    }


every_model = pytest.mark.parametrize("name", ["full", "diagonal", "isotropic", "gaussian", "points"])


def some_times(sde):
    return sde.t_min + (sde.t_max - sde.t_min) * f64(0.02, 0.3, 0.6, 0.9)


def some_states(sde, t):
    scale = torch.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2)[:, None]
    return scale * f64(0.3, -0.2, -1.1, 0.9, 0.5, 1.4, -0.1, 0.05).reshape(4, 2)


@every_model
@every_sde
def test_the_score_is_the_gradient_of_the_log_density(sde, name):
    model, t = models(sde)[name], some_times(sde)
    x = some_states(sde, t).requires_grad_()
    (truth,) = grad(model.log_prob(x, t).sum(), x)
    torch.testing.assert_close(model.score(x.detach(), t), truth, rtol=1e-9, atol=1e-10)


@every_model
@every_sde
def test_tweedie_and_the_two_halves_agree(sde, name):
    """alpha E[x0 | x] = x + sigma^2 score, with the score from autograd, and x = alpha data + sigma noise."""
    model, t = models(sde)[name], some_times(sde)
    x = some_states(sde, t).requires_grad_()
    (score,) = grad(model.log_prob(x, t).sum(), x)
    x, a, s = x.detach(), sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    pair = model(x, t)
    torch.testing.assert_close(a * pair.data, x + s * s * score, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a * pair.data + s * pair.noise, x, rtol=1e-12, atol=1e-12)


def test_second_order_tweedie_gives_a_covariance_of_the_data():
    """Cov[x0 | x] = (s^2 / a^2) (I + s^2 H) is positive semi-definite, and is C's own conditional for a Gaussian."""
    sde, t = VPSDE(), 0.4
    (at,) = sde.levels([t])
    model = Gaussian(sde, MEANS[0], COVS[0])
    x = f64(0.7, -0.3)[None].requires_grad_()
    score = model.score(x, t)
    hessian = torch.stack([grad(score[0, i], x, retain_graph=True)[0][0] for i in range(2)])
    found = (at.sigma / at.alpha) ** 2 * (torch.eye(2).double() + at.sigma**2 * hessian)
    precision = torch.linalg.inv(COVS[0]) + (at.alpha / at.sigma) ** 2 * torch.eye(2).double()
    torch.testing.assert_close(found, torch.linalg.inv(precision), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("x", [-1.3, 0.05, 2.0])
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_one_dimension_agrees_with_quadrature(x, t):
    sde = FlowSDE()
    model = GaussianMixture(sde, f64(0.3, 0.7), f64(1.0, -0.5)[:, None], f64(0.04, 0.25)[:, None])
    a, s = 1 - t, t

    def joint(x0):
        prior = sum(
            w * math.exp(-((x0 - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
            for w, m, v in ((0.3, 1.0, 0.04), (0.7, -0.5, 0.25))
        )
        return prior * math.exp(-((x - a * x0) ** 2) / (2 * s * s)) / math.sqrt(2 * math.pi) / s

    options = {"points": [p for p in (1.0, -0.5, x / a) if abs(p) < 8], "epsabs": 1e-13, "epsrel": 1e-11, "limit": 200}
    total, first = quad(joint, -8, 8, **options)[0], quad(lambda u: u * joint(u), -8, 8, **options)[0]
    state = f64(x)[None]
    assert model.log_prob(state, t).item() == pytest.approx(math.log(total), abs=1e-9)
    assert model(state, t).data.item() == pytest.approx(first / total, abs=1e-9)


@every_sde
def test_full_diagonal_and_isotropic_forms_agree(sde):
    t = some_times(sde)
    x = some_states(sde, t)
    v = f64(0.2, 0.2, 0.3, 0.3, 0.1, 0.1).reshape(3, 2)
    forms = {
        "diagonal": GaussianMixture(sde, WEIGHTS, MEANS, v),
        "full": GaussianMixture(sde, WEIGHTS, MEANS, torch.diag_embed(v)),
    }
    same = {
        "isotropic": GaussianMixture(sde, WEIGHTS, MEANS, 0.2),
        "diagonal": GaussianMixture(sde, WEIGHTS, MEANS, torch.full((3, 2), 0.2, dtype=torch.float64)),
        "full": GaussianMixture(sde, WEIGHTS, MEANS, 0.2 * torch.eye(2).double().expand(3, 2, 2)),
    }
    for family in (forms, same):
        first, *others = family.values()
        for other in others:
            torch.testing.assert_close(other(x, t).data, first(x, t).data, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(other(x, t).noise, first(x, t).noise, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(other.log_prob(x, t), first.log_prob(x, t), rtol=1e-11, atol=1e-12)
            torch.testing.assert_close(other.data_log_prob(x), first.data_log_prob(x), rtol=1e-11, atol=1e-12)


def test_points_are_a_mixture_without_spread():
    sde = VPSDE()
    t = some_times(sde)
    x = some_states(sde, t)
    points, mixture = Empirical(sde, MEANS), GaussianMixture(sde, f64(1, 1, 1), MEANS, 0.0)
    torch.testing.assert_close(points(x, t).data, mixture(x, t).data, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(points(x, t).noise, mixture(x, t).noise, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(points.log_prob(x, t), mixture.log_prob(x, t), rtol=1e-12, atol=1e-12)


@every_model
@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE()], ids=repr)
def test_times_may_differ_per_sample(sde, name):
    model, t = models(sde)[name], some_times(sde)
    x = some_states(sde, t)
    together, density = model(x, t), model.log_prob(x, t)
    for i in range(4):
        row = slice(i, i + 1)
        for time in (float(t[i]), t[i], t[row]):
            alone = model(x[row], time)
            torch.testing.assert_close(together.data[row], alone.data, rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(together.noise[row], alone.noise, rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(density[row], model.log_prob(x[row], time), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("sde", [VPSDE(), FlowSDE(), EDMSDE(0.01, 20.0)], ids=repr)
def test_the_flow_of_a_gaussian_solves_the_probability_flow_ode(sde):
    """Against DOP853 on f x - g^2 / 2 score, the score from the covariance by a linear solve."""
    high, low = sde.t_max - 0.02 * (sde.t_max - sde.t_min), sde.t_min
    model, x = Gaussian(sde, MEANS[0], COVS[0]), f64(0.4, -1.2, 1.5, 0.3).reshape(2, 2)
    m, c = MEANS[0].numpy(), COVS[0].numpy()

    def slope(t, y):
        time = f64(t)
        a, s = sde.alpha(time).item(), sde.sigma(time).item()
        f, g2 = sde.drift(torch.ones(1, 1).double(), time).item(), sde.diffusion(time).item() ** 2
        centred = y.reshape(2, 2) - a * m
        return (f * y.reshape(2, 2) + 0.5 * g2 * np.linalg.solve(a * a * c + s * s * np.eye(2), centred.T).T).ravel()

    truth = solve_ivp(slope, (high, low), x.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    found = model.flow(x, high, low)
    np.testing.assert_allclose(found.numpy().ravel(), truth, rtol=0, atol=1e-8)
    torch.testing.assert_close(model.flow(found, low, high), x, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solver", [DPMSolverPP(2), DDIM(1.0)], ids=repr)
@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), FlowSDE()], ids=repr)
def test_sampling_the_points_returns_the_points(sde, solver):
    points = torch.cos(torch.arange(24, dtype=torch.float64) ** 2).reshape(8, 3)
    x = SDESampler(sde, Empirical(sde, points), solver=solver, steps=60).sample(40, seed=0)
    distance = (x[:, None] - points).norm(dim=2)
    # At sigma / alpha <= 0.011 other points, 0.2 away at least, weigh exp(-0.2^2 / (2 * 0.011^2)) = 1e-72.
    assert torch.pdist(points).min() > 0.2
    assert distance.min(1).values.max() < 1e-9
    assert len(distance.argmin(1).unique()) >= 5  # and not one point only: 40 draws of 8


def test_points_as_images_keep_their_shape():
    points = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(2, 2, 2, 2)
    model = Empirical(VPSDE(), points)
    assert model.shape == (2, 2, 2)
    assert model(points, 0.3).data.shape == points.shape
    torch.testing.assert_close(model(points, 1e-3).data, points, rtol=0, atol=1e-9)


def test_draws_of_the_data_have_their_moments():
    n = 20_000
    x = models(VPSDE())["full"].sample(n, seed=0)
    w = WEIGHTS / WEIGHTS.sum()
    mean = w @ MEANS
    spread = MEANS - mean
    cov = torch.einsum("k,kij->ij", w, COVS) + torch.einsum("k,ki,kj->ij", w, spread, spread)
    se = torch.sqrt(cov.diagonal() / n)
    print(f"mean off by {(x.mean(0) - mean) / se} standard errors")
    assert ((x.mean(0) - mean).abs() < 4 * se).all()
    centred = x - mean
    products = centred[:, :, None] * centred[:, None, :]
    se = products.std(0) / math.sqrt(n)
    print(f"covariance off by {(products.mean(0) - cov) / se} standard errors")
    assert ((products.mean(0) - cov).abs() < 4 * se).all()


def test_a_generator_draws_on_and_a_seed_starts_over():
    model = models(VPSDE())["full"]
    assert torch.equal(model.sample(3, seed=5), model.sample(3, seed=5))
    generator = torch.Generator().manual_seed(5)
    first = model.sample(3, seed=generator)
    assert torch.equal(first, model.sample(3, seed=5))
    assert not torch.equal(first, model.sample(3, seed=generator))


def test_sampling_a_gaussian_with_the_matched_prior_gives_its_moments():
    """Exact score and prior; what is left is the bias of the steps, 1/1000 of the noise, below the standard error."""
    n, sde = 4000, VPSDE()
    model = Gaussian(sde, MEANS[0], COVS[0])
    problem = Problem(sde, model, prior=Matched(MEANS[0], COVS[0]))
    sampler = SDESampler(problem, solver=EulerMaruyama(), steps=300, grid=grids.angle, denoise=False)
    x = sampler.sample(n, seed=torch.Generator().manual_seed(0))
    (at,) = sde.levels([sde.t_min])
    cov = at.alpha**2 * COVS[0] + at.sigma**2 * torch.eye(2).double()
    se = torch.sqrt(cov.diagonal() / n)
    bias = 4 / 300  # first order in the steps
    print(f"mean off by {(x.mean(0) - at.alpha * MEANS[0]) / se} standard errors")
    assert ((x.mean(0) - at.alpha * MEANS[0]).abs() < 4 * se + bias * MEANS[0].abs()).all()
    products = (x - x.mean(0))[:, :, None] * (x - x.mean(0))[:, None, :]
    se = products.std(0) / math.sqrt(n)
    print(f"covariance off by {(products.mean(0) - cov) / se} standard errors")
    assert ((products.mean(0) - cov).abs() < 4 * se + bias * cov.abs().max()).all()


def test_the_same_data_under_another_sde():
    model = models(VPSDE())["full"]
    other = model.on(EDMSDE())
    assert model.sde == VPSDE()
    assert other.sde == EDMSDE()
    x = f64(0.4, -0.9)[None]
    torch.testing.assert_close(other(x, 40.0).data, models(EDMSDE())["full"](x, 40.0).data, rtol=0, atol=0)


def test_the_small_example_is_round():
    model = isotropic_mixture(VPSDE(), [[0.0, 1.0], [2.0, 0.0]], 0.3)
    twin = GaussianMixture(VPSDE(), f64(1, 1), f64(0, 1, 2, 0).reshape(2, 2), 0.09)
    x = f64(0.4, -0.9)[None]
    torch.testing.assert_close(model(x, 0.2).data, twin(x, 0.2).data, rtol=0, atol=0)
