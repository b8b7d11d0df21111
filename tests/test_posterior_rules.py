"""Claim: on Gaussian data `Moments` is the exact posterior at every level, and every rule is what its page says."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion import EDMSDE, VPSDE, FlowSDE
from sde_diffusion.denoiser.analytic import Gaussian, GaussianMixture
from sde_diffusion.guidance import (
    Matrix,
    Moments,
    Posterior,
)

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
