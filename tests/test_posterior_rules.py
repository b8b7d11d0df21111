"""Claim: on Gaussian data `Moments` is the exact posterior at every level, and every rule is what its page says."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion import EDMSDE, VPSDE, FlowSDE, SDESampler
from sde_diffusion.denoiser.analytic import Gaussian, GaussianMixture
from sde_diffusion.denoiser.conditions import PerSample
from sde_diffusion.guidance import (
    DPS,
    JacobianFree,
    Matrix,
    Moments,
    Nonlinear,
    Operator,
    Posterior,
    PseudoInverse,
    Within,
)
from sde_diffusion.guidance.posterior import algebra
from sde_diffusion.guidance.posterior.algebra import gaussian, positive, products
from sde_diffusion.likelihood import Density, Exact, Method
from sde_diffusion.solvers import DormandPrince

D = 4


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A = draw(2, D, seed=1)
ROOT = draw(D, D, seed=2)
COVARIANCE = ROOT @ ROOT.mT + 0.1 * torch.eye(D, dtype=torch.float64)
MEAN = draw(D, seed=3)
NOISE = torch.tensor([0.3, 0.7], dtype=torch.float64)


def exact(y, noise=NOISE, a=A):
    """Mean and covariance of the posterior of `N(MEAN, COVARIANCE)`, by the textbook."""
    s = a @ COVARIANCE @ a.mT + torch.diag(noise.square().expand(len(a)))
    gain = COVARIANCE @ a.mT @ torch.linalg.inv(s)
    return MEAN + gain @ (y - a @ MEAN), COVARIANCE - gain @ a @ COVARIANCE


def marginal_log_prob(y, mean, covariance, a=A, noise=NOISE):
    s = a @ covariance @ a.mT + torch.diag(noise.square())
    return torch.distributions.MultivariateNormal(a @ mean, s).log_prob(y)


def mixture(d=D):
    return GaussianMixture(VPSDE(), torch.ones(3, dtype=torch.float64), 2 * draw(3, d, seed=4), 0.5)


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), FlowSDE()], ids=repr)
@pytest.mark.parametrize("rule", [Moments(), Moments(2)], ids=repr)
def test_moments_are_exact_on_gaussian_data_at_every_level(sde, rule):
    prior, y = Gaussian(sde, MEAN, COVARIANCE), draw(2, seed=5)
    model, truth = Posterior(prior, Matrix(A), NOISE, rule), Gaussian(sde, *exact(y))
    for ratio in (0.02, 0.3, 2.0, 30.0):
        t = sde.time_of(torch.tensor([-math.log(ratio)], dtype=torch.float64)).item()
        x = draw(5, D, seed=6) * math.hypot(1, ratio)
        found, wanted = model(x, t, y=y), truth(x, t)
        torch.testing.assert_close(found.data, wanted.data, rtol=0, atol=1e-10)
        torch.testing.assert_close(found.noise, wanted.noise, rtol=1e-10, atol=1e-10)


def test_the_twist_of_moments_is_the_evidence_given_the_state():
    prior, y = Gaussian(VPSDE(), MEAN, COVARIANCE), draw(3, 2, seed=5)
    model, x, (at,) = Posterior(prior, Matrix(A), NOISE), draw(3, D, seed=6), VPSDE().levels([0.4])
    look = model.look(x, at, y=y)
    v = torch.linalg.inv(torch.linalg.inv(COVARIANCE) + (at.alpha / at.sigma) ** 2 * torch.eye(D, dtype=torch.float64))
    for i in range(3):
        wanted = marginal_log_prob(y[i], prior.predict(x, at).data[i], v)
        torch.testing.assert_close(look.log_twist[i], wanted, rtol=1e-10, atol=1e-10)
    noisy = torch.distributions.Normal(x @ A.mT, NOISE)
    torch.testing.assert_close(model.log_likelihood(x, y=y), noisy.log_prob(y).sum(1))


def test_pseudo_inverse_and_jacobian_free_are_exact_on_round_gaussian_data():
    c2, y = 1.7, draw(2, seed=5)
    prior = Gaussian(VPSDE(), MEAN, c2)
    prior.data_std = math.sqrt(c2)
    gain = c2 * A.mT @ torch.linalg.inv(c2 * A @ A.mT + torch.diag(NOISE.square()))
    truth = Gaussian(VPSDE(), MEAN + gain @ (y - A @ MEAN), c2 * (torch.eye(D, dtype=torch.float64) - gain @ A))
    dense, x = Posterior(prior, Matrix(A), NOISE), draw(5, D, seed=6)
    (at,) = VPSDE().levels([0.4])
    for rule in (PseudoInverse(), JacobianFree(), PseudoInverse(lambda ratio: c2 * ratio**2 / (c2 + ratio**2))):
        for measurement in (Matrix(A), Operator(lambda x0: x0 @ A.mT), Nonlinear(lambda x0: x0 @ A.mT)):
            model = Posterior(prior, measurement, NOISE, rule)
            torch.testing.assert_close(model(x, 0.4, y=y).data, truth(x, 0.4).data, rtol=0, atol=1e-10)
            torch.testing.assert_close(model.look(x, at, y=y).log_twist, dense.look(x, at, y=y).log_twist)


@pytest.mark.parametrize(
    ("rule", "measurement"),
    [(PseudoInverse(30.0), Matrix(A)), (DPS(0.2), Matrix(A)), (DPS(0.2), Nonlinear(lambda x0: torch.sin(x0 @ A.mT)))],
    ids=repr,
)
def test_the_shift_of_a_rule_that_does_not_shoot_over_is_the_gradient_of_its_twist(rule, measurement):
    prior, y = mixture(), draw(5, 2, seed=5)
    model, (at,) = Posterior(prior, measurement, NOISE, rule), VPSDE().levels([0.4])
    x = draw(5, D, seed=6).requires_grad_()
    look = model.look(x, at, y=y)
    (gradient,) = torch.autograd.grad(look.log_twist.sum(), x)
    torch.testing.assert_close(look.shift, at.sigma**2 / at.alpha * gradient, rtol=1e-9, atol=1e-9)


def test_the_twist_of_dps_grows_with_the_logarithm_of_a_large_residual():
    model, (at,) = Posterior(mixture(), Matrix(A), NOISE, DPS()), VPSDE().levels([0.4])
    x = draw(1, D, seed=6)
    with torch.no_grad():
        far, further = (model.look(x, at, y=torch.full((2,), r, dtype=torch.float64)) for r in (1e6, 1e8))
    assert float(far.log_twist - further.log_twist) == pytest.approx(2 * math.log(100), rel=1e-4)
    assert float(further.shift.norm()) < float(far.shift.norm()) < 1e-3


def test_as_many_iterations_as_numbers_measured_are_the_whole_matrix_and_one_is_not():
    a = draw(6, 8, seed=7)
    prior, y = mixture(8), draw(4, 6, seed=5)
    x = draw(4, 8, seed=6)
    dense = Posterior(prior, Matrix(a), 0.1)(x, 0.3, y=y).data
    with torch.no_grad():
        off = [
            float((Posterior(prior, Matrix(a), 0.1, Moments(k))(x, 0.3, y=y).data - dense).norm()) for k in (1, 6, 9)
        ]
    assert off[0] > 1e-2
    assert max(off[1:]) < 1e-6


@pytest.mark.parametrize("rule", [Moments(), Moments(2), PseudoInverse(), JacobianFree(), DPS()], ids=repr)
def test_a_row_depends_on_no_other_even_where_one_is_not_finite(rule):
    model, y, x = Posterior(mixture(), Matrix(A), NOISE, rule), draw(5, 2, seed=5), draw(5, D, seed=6)
    whole = model(x, 0.4, y=y).data
    for i in (0, 3):
        torch.testing.assert_close(model(x[i : i + 1], 0.4, y=y[i]).data, whole[i : i + 1], rtol=0, atol=1e-12)
    x[1] = torch.nan
    torch.testing.assert_close(model(x, 0.4, y=y).data[2:], whole[2:], rtol=0, atol=1e-12)
    times = torch.tensor([0.4, 0.4, 0.9, 0.4, 0.4], dtype=torch.float64)
    torch.testing.assert_close(model(x, times, y=y).data[3:], whole[3:], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_samples_and_likelihood_of_gaussian_data_are_those_of_the_posterior():
    prior, y = Gaussian(VPSDE(), MEAN, COVARIANCE), draw(2, seed=5)
    mean, covariance = exact(y)
    truth = torch.distributions.MultivariateNormal(mean, covariance)
    sampler = SDESampler(VPSDE(), Posterior(prior, Matrix(A), NOISE))
    x = sampler.sample(400, seed=0, y=y)
    assert bool(((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / 400).sqrt()).all())
    for density in (Density(), Density(whole=False)):
        assert float((sampler.log_prob(x[:4], y=y, density=density).value - truth.log_prob(x[:4])).abs().max()) < 0.1
    joint = SDESampler(VPSDE(), Posterior(prior, Matrix(A), NOISE), solver=DormandPrince())
    x, found = joint.sample_with_log_prob(3, seed=0, y=y)
    assert float((found.value - truth.log_prob(x)).abs().max()) < 0.1


@pytest.mark.slow
def test_the_likelihood_stays_finite_where_nothing_is_left_of_the_data():
    prior = Gaussian(FlowSDE(), MEAN, COVARIANCE)
    x, y = draw(3, D, seed=8), draw(2, seed=5)
    found = SDESampler(FlowSDE(), Posterior(prior, Matrix(A), NOISE)).log_prob(x, y=y, density=Density(whole=True))
    truth = torch.distributions.MultivariateNormal(*exact(y))
    assert float((found.value - truth.log_prob(x)).abs().max()) < 0.1


def test_rows_of_y_go_along_with_the_samples_in_batches():
    sampler = SDESampler(VPSDE(), Posterior(mixture(), Matrix(A), NOISE), steps=4)
    y = draw(5, 2, seed=5)
    whole = sampler.sample(5, seed=0, y=y)
    torch.testing.assert_close(sampler.sample(5, seed=0, y=y, batch_size=2), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(sampler.sample(1, seed=2, y=PerSample(y[2:3])), whole[2:3], rtol=0, atol=1e-12)
    torch.testing.assert_close(sampler.sample(1, seed=2, y=y[2].tolist()), whole[2:3], rtol=0, atol=1e-12)


def test_passes_and_products_are_counted_apart_and_a_budget_counts_both():
    for rule, vjps in ((Moments(), 2), (Moments(1), 1), (Moments(9), 2), (PseudoInverse(), 1), (JacobianFree(), 0)):
        model = Posterior(mixture(), Matrix(A), NOISE, rule)
        sampler = SDESampler(VPSDE(), model, nfe=12)
        *_, last = sampler.iterate(2, seed=0, y=draw(2, seed=5))
        assert (last.vjps, last.nfe) == (vjps * last.nfe, 12 // (1 + vjps))


def test_two_posteriors_compose_to_that_of_both():
    prior, y = Gaussian(VPSDE(), MEAN, COVARIANCE), draw(2, seed=5)
    first = Posterior(prior, Matrix(A[:1]), NOISE[:1])
    both = Posterior(first, Matrix(A[1:]), NOISE[1:], name="other")
    x = draw(5, D, seed=6)
    wanted = Posterior(prior, Matrix(A), NOISE)(x, 0.4, y=y).data
    torch.testing.assert_close(both(x, 0.4, y=y[:1], other=y[1:]).data, wanted, rtol=0, atol=1e-10)


def test_negative_eigenvalues_are_left_out_and_their_derivative_is_right():
    m = draw(3, 4, 4, seed=9)
    m = (m + m.mT).requires_grad_()
    values, q = torch.linalg.eigh(m.detach())
    torch.testing.assert_close(positive(m), q @ torch.diag_embed(values.clamp_min(0)) @ q.mT)
    assert torch.autograd.gradcheck(lambda v: positive(0.5 * (v + v.mT)), (m,))
    same = torch.eye(3, dtype=torch.float64)[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(positive(same).sum(), same)
    assert bool(torch.isfinite(gradient).all())
    u, log_p = gaussian(-0.99 * torch.eye(2, dtype=torch.float64)[None], torch.ones(1, 2, dtype=torch.float64))
    torch.testing.assert_close(u, torch.ones_like(u))
    assert float(log_p) == pytest.approx(-1 - math.log(2 * math.pi))


def test_repr_tells_what_the_model_is():
    model = Posterior(mixture(), Matrix(A), 0.5, PseudoInverse(), name="other")
    assert repr(model) == ("Posterior(model, Matrix(2 x 4), noise=0.5, rule=PseudoInverse(r2=None), name='other')")


@pytest.mark.slow
def test_the_likelihood_of_data_within_bounds_is_that_of_a_truncated_gaussian():
    prior = Gaussian(VPSDE(), torch.zeros(2, dtype=torch.float64), 1.0)
    model = Within(prior, Matrix(torch.tensor([[1.0, 0.0]], dtype=torch.float64)), low=0.0)
    x = torch.tensor([[0.5, 0.3], [1.5, -1.0]], dtype=torch.float64)
    found = SDESampler(VPSDE(), model).log_prob(x).value
    wanted = math.log(2) - 0.5 * x.square().sum(1) - math.log(2 * math.pi)
    assert float((found - wanted).abs().max()) < 0.1


class Counting(torch.autograd.Function):
    """Doubles its argument, by a derivative that cannot be batched."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad if float(grad.detach().sum()) < 1e30 else grad


def test_products_are_those_of_a_loop_where_a_graph_cannot_be_batched_and_where_it_comes_in_parts(monkeypatch):
    z, v = draw(3, D, seed=1).requires_grad_(), draw(5, 3, D, seed=2)
    out = torch.sin(Counting.apply(z))
    wanted = 2 * v * torch.cos(2 * z.detach())
    torch.testing.assert_close(products(out, z, v), wanted)
    monkeypatch.setattr(algebra, "MOST", 30)
    torch.testing.assert_close(products(torch.sin(2 * z), z, v), wanted)


def test_a_rule_with_a_derivative_works_in_inference_mode_and_says_where_it_cannot():
    model, y = Posterior(mixture(), Matrix(A), NOISE), draw(2, seed=5)
    sampler = SDESampler(VPSDE(), model, steps=3)
    wanted = sampler.sample(2, seed=0, y=y)
    with torch.inference_mode():
        torch.testing.assert_close(sampler.sample(2, seed=0, y=y), wanted)
    with pytest.raises(
        TypeError, match=r"no graph inside of a transform of torch.func, such as forward mode: take rev"
    ):
        sampler.log_prob(wanted, y=y, method=Method(trace=Exact(forward=True)))


def test_a_solve_and_its_likelihood_are_differentiable_in_what_was_measured():
    model = Posterior(mixture(), Matrix(A), NOISE)
    sampler, y = SDESampler(VPSDE(), model, steps=3), draw(2, seed=5)
    start = draw(1, D, seed=6)

    def last(y):
        return sampler.sample(x_T=start, y=y, grad=True)

    assert torch.autograd.gradcheck(last, (y.requires_grad_(),), rtol=1e-4)
