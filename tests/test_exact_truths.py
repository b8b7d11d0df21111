"""Claim: trained on Gaussians, a model agrees with the closed form: under a condition, and in columns of any scale."""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion import EDMSDE, Network, SDESampler, predict
from sde_diffusion.data import Standardise
from sde_diffusion.nets import MLP
from sde_diffusion.training import Recipe, train

D = 8


@pytest.mark.slow
def test_the_posterior_of_a_linear_gaussian_problem_has_the_exact_mean_and_covariance():
    """theta ~ N(0, I) in eight dimensions, y = A theta + z / 2: the ten lines of the docs, with more simulations.

    Forty seconds of a quiet core: with 3000 steps of 128, or 20,000 simulations, covariances are off by 4 to 7 %.
    """
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(D, D, generator=generator) / math.sqrt(D)

    def simulate(theta):
        return theta @ a.T + 0.5 * torch.randn(theta.shape, generator=generator)

    theta = torch.randn(100_000, D, generator=generator)
    obs = simulate(theta)
    of_obs = Standardise.of(obs)
    torch.manual_seed(0)
    model = Network(MLP(D, context=D), EDMSDE(), predict.edm, shape=(D,))
    done = train(model, theta, context=of_obs.apply(obs), steps=2000, recipe=Recipe(512), seed=0)

    covariance, n = torch.linalg.inv(torch.eye(D) + 4 * a.T @ a), 40_000
    for y in simulate(torch.randn(2, D, generator=generator)):
        mean = 4 * covariance @ a.T @ y
        x = SDESampler(EDMSDE(), done.model).sample(n, seed=0, batch_size=4000, context=of_obs.apply(y[None]))
        off = float(((x.mean(0) - mean) / covariance.diagonal().sqrt()).square().mean().sqrt())
        wrong = float((x.T.cov() - covariance).norm() / covariance.norm())
        floor = float(((covariance.trace() ** 2 + covariance.square().sum()) / n).sqrt() / covariance.norm())
        print(f"mean off by {off:.4f} std, SE {n**-0.5:.4f}; covariance by {wrong:.4f}, of exact samples {floor:.4f}")
        assert off < 0.05
        assert wrong < 0.05


@pytest.mark.slow
def test_columns_of_std_15_and_a_twentieth_keep_their_std_and_their_density():
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.tensor([300.0, 0.0], dtype=torch.float64), torch.tensor([15.0, 0.05], dtype=torch.float64)
    x = torch.randn(5000, 2, dtype=torch.float64, generator=generator) * std + mean
    scaling = Standardise.of(x[:4500])
    torch.manual_seed(0)
    model = Network(MLP(2), EDMSDE(), predict.edm, shape=(2,))
    done = train(model, scaling.apply(x[:4500]), steps=2000, seed=0)

    sampler, n = SDESampler(EDMSDE(), done.model), 10_000
    found = scaling.undo(sampler.sample(n, seed=0, batch_size=2500)).double().std(0) / std
    held_out = x[4500:]
    z = scaling.apply(held_out)
    told = sampler.log_prob(z).value.double() + scaling.log_jacobian(held_out)
    exact = torch.distributions.Normal(mean, std).log_prob(held_out).sum(1)
    below = float((exact - told).mean())
    print(f"std over that of the data {found.tolist()}, SE {1 / math.sqrt(2 * n):.4f}; {below:.4f} nats below exact")
    assert (found - 1).abs().max() < 0.05
    assert abs(below) < 0.1
