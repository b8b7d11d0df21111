"""Claim: the prior has the moments of the noised data: centred, or matched to mean and covariance."""

from __future__ import annotations

import pytest
import torch
import zoo
from refusals import wrong

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    CosineSDE,
    DiscreteVPSDE,
    FlowSDE,
    Matched,
    Network,
    Problem,
    SDESampler,
    Standard,
    SubVPSDE,
)
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.likelihood import continuous_elbo
from sde_diffusion.solvers import RK4

SHIPPED = [
    VPSDE(),
    SubVPSDE(),
    VESDE(),
    BrownianSDE(),
    CosineSDE(),
    CosineSDE(t_max=1.0),
    EDMSDE(),
    FlowSDE(),
    DiscreteVPSDE.linear(100),
]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


MEAN = f64(2.0, -1.0)
COV = torch.tensor([[1.5, -0.6], [-0.6, 0.8]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("mean", "variance"), [(0.5, 2.0), (MEAN, 2.0), (MEAN, f64(0.5, 3.0)), (MEAN, COV), (0.5, f64(0.5, 3.0))], ids=str
)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(0.01, 4.0), BrownianSDE(9.0), FlowSDE(t_max=0.9)], ids=repr)
@pytest.mark.parametrize("t", [None, 0.5])
def test_a_matched_prior_has_the_moments_and_density_of_the_noised_data(sde, mean, variance, t):
    a, s = sde.alpha(f64(sde.t_max if t is None else t)).item(), sde.sigma(f64(sde.t_max if t is None else t)).item()
    m = torch.as_tensor(mean, dtype=torch.float64).expand(2)
    c = variance if isinstance(variance, torch.Tensor) and variance.ndim == 2 else torch.eye(2).double() * variance
    truth = torch.distributions.MultivariateNormal(a * m, a * a * c + s * s * torch.eye(2).double())
    prior = Matched(mean, variance)
    # The map from draws to draws is affine, so its moments are exact: no sampling.
    shift = prior.draw(torch.zeros(1, 2, dtype=torch.float64), sde, t)[0]
    factor = (prior.draw(torch.eye(2, dtype=torch.float64), sde, t) - shift).T
    torch.testing.assert_close(shift, truth.mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(factor @ factor.T, truth.covariance_matrix, rtol=1e-12, atol=1e-12)
    x = torch.linspace(-3, 3, 10, dtype=torch.float64).reshape(5, 2)
    torch.testing.assert_close(prior.log_prob(x, sde, t), truth.log_prob(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["per pixel", "per channel", "full"])
def test_a_matched_prior_works_on_images(kind):
    shape, sde = (2, 2, 3), VESDE(0.01, 4.0)
    mean = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(shape)
    root = torch.sin(torch.arange(144, dtype=torch.float64)).reshape(12, 12) / 3
    variance = {
        "per pixel": torch.linspace(0.1, 2, 12, dtype=torch.float64).reshape(shape),
        "per channel": torch.tensor(0.7, dtype=torch.float64),
        "full": root @ root.T,
    }[kind]
    c = variance if kind == "full" else torch.diag(variance.expand(shape).flatten())
    truth = torch.distributions.MultivariateNormal(mean.flatten(), c + 16.0 * torch.eye(12).double())
    x = 3 * torch.cos(torch.arange(24, dtype=torch.float64)).reshape(2, *shape)
    prior = Matched(mean, variance)
    torch.testing.assert_close(prior.log_prob(x, sde), truth.log_prob(x.flatten(1)), rtol=1e-12, atol=1e-12)
    shift = prior.draw(torch.zeros(1, *shape, dtype=torch.float64), sde)
    factor = (prior.draw(torch.eye(12, dtype=torch.float64).reshape(12, *shape), sde) - shift).flatten(1).T
    torch.testing.assert_close(factor @ factor.T, truth.covariance_matrix, rtol=1e-12, atol=1e-12)


def test_a_full_covariance_works_on_a_two_dimensional_event():
    mean = torch.zeros(2, 2, dtype=torch.float64)
    cov = torch.diag(f64(0.1, 0.2, 0.3, 4.0)) + 0.05
    truth = torch.distributions.MultivariateNormal(torch.zeros(4).double(), cov + 4.0 * torch.eye(4).double())
    x = torch.linspace(-2, 2, 8, dtype=torch.float64).reshape(2, 2, 2)
    found = Matched(mean, cov).log_prob(x, VESDE(0.01, 2.0))
    torch.testing.assert_close(found, truth.log_prob(x.flatten(1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", SHIPPED, ids=repr)
def test_the_plain_prior_is_centred_with_the_variance_of_the_noise(sde):
    s = sde.sigma(f64(sde.t_max)).item()
    z = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(2, 3)
    torch.testing.assert_close(Standard().draw(z, sde), s * z, rtol=1e-14, atol=0)
    truth = torch.distributions.Normal(f64(0.0), f64(s)).log_prob(z).sum(1)
    torch.testing.assert_close(Standard().log_prob(z, sde), truth, rtol=1e-13, atol=1e-13)


def test_the_standard_deviations_are_those_of_the_density():
    sde = VPSDE(beta_max=2.0)
    for prior in (Standard(), Matched(MEAN, 2.0), Matched(MEAN, f64(0.5, 3.0)), Matched(MEAN, COV)):
        factor = prior.draw(torch.eye(2).double(), sde, 0.5) - prior.draw(torch.zeros(2, 2).double(), sde, 0.5)
        wanted = torch.linalg.svdvals(factor)
        found = prior.std(sde, 0.5).expand(2).sort(descending=True).values
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def test_a_sampler_starts_from_the_prior_of_its_problem_and_ends_at_the_data():
    sde = VPSDE(beta_max=2.0)
    model = Gaussian(sde, MEAN, COV)
    sampler = SDESampler(Problem(sde, model, prior=Matched(MEAN, COV)), solver=RK4(), steps=300, denoise=False)
    assert "Problem(VPSDE(" in repr(sampler)
    assert "prior=Matched(mean, variance))" in repr(sampler)
    # For Gaussian data the matched prior is exact, so that every sample is the exact flow of its prior draw.
    start, *_, end = sampler.iterate(3, seed=0)
    torch.testing.assert_close(end.x, model.flow(start.x, sde.t_max, sde.t_min), rtol=0, atol=1e-6)


def test_a_general_process_is_drawn_from_by_its_own_methods():
    sde = zoo.DoubleWell()
    z = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
    assert torch.equal(Standard().draw(z, sde), sde.prior(z))
    assert torch.equal(Standard().log_prob(z, sde), sde.prior_log_prob(z))
    with pytest.raises(TypeError, match="DoubleWell is a general SDE, whose prior is its own: leave prior out"):
        Problem(sde, lambda x, t: -x, prior=Matched(0.0, 1.0))


def test_a_sampler_of_a_problem_takes_its_model_and_shape_from_it():
    problem = Problem(VPSDE(), lambda x, t: -x, shape=[3])
    assert (
        SDESampler(problem, steps=4)
        .sample(2, seed=0)
        .equal(SDESampler(VPSDE(), lambda x, t: -x, shape=(3,), steps=4).sample(2, seed=0))
    )
    for more in ({"score": lambda x, t: -x}, {"shape": (3,)}):
        with pytest.raises(TypeError, match="a Problem has its model and its event shape: leave out score and shape="):
            SDESampler(problem, **more)
    with pytest.raises(TypeError, match="prior must be a Prior such as Standard"):
        Problem(VPSDE(), lambda x, t: -x, prior=wrong(VPSDE()))


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (Matched(torch.zeros(3), torch.ones(3)), r"the mean of the prior has shape \(3,\), but a state has \(2,\)"),
        (Matched(0.0, torch.ones(3)), r"the variance of the prior has shape \(3,\), but a state has \(2,\)"),
        (Matched(torch.zeros(3), torch.eye(3)), r"the mean of the prior has shape \(3,\)"),
    ],
    ids=["mean", "variance", "covariance"],
)
def test_a_prior_of_another_event_shape_is_refused_at_the_door(prior, message):
    sde = VESDE()
    model = Network(lambda x, t: x, sde, shape=(2,))
    with pytest.raises(ValueError, match=message):
        Problem(sde, model, prior=prior)
    with pytest.raises(ValueError, match=message):
        continuous_elbo(model, torch.zeros(4, 2), prior=prior)
    Problem(sde, model, prior=Matched(torch.zeros(2), torch.ones(2)))
