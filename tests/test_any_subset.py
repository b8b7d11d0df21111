"""Claim: particles reach what guidance alone does not: conditionals of any subset, and posteriors of n observations."""

from __future__ import annotations

import pytest
import torch
from exact_posteriors import GivenOne, product

from sde_diffusion import VPSDE
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.guidance import Compositional, Matrix, Posterior
from sde_diffusion.metrics import sliced_wasserstein
from sde_diffusion.particles import ParticleSampler

SDE = VPSDE(t_min=1e-5)


def distance_and_floor(found, exact):
    """The mean distance of samples to four sets of exact ones, and that of other exact ones to these.

    One pair of sets is no floor where a mode is rare: of exact samples, one pair is three times as far as another.
    """
    x = found.draw(1000, seed=1)
    pairs = [(exact.sample(1000, seed=i), exact.sample(1000, seed=10 + i)) for i in range(4)]
    return torch.tensor([[sliced_wasserstein(x, a), sliced_wasserstein(b, a)] for a, b in pairs]).mean(0)


@pytest.mark.slow
@pytest.mark.parametrize("given", [[0], [1, 3]], ids=str)
def test_the_conditionals_of_a_mixture_given_any_subset_are_at_the_floor(given):
    stream = torch.Generator().manual_seed(0)
    means = 3 * torch.randn(6, 4, generator=stream, dtype=torch.float64)
    root = 0.5 * torch.randn(6, 4, 4, generator=stream, dtype=torch.float64)
    spread = root @ root.mT + 0.2 * torch.eye(4, dtype=torch.float64)
    joint = GaussianMixture(SDE, torch.ones(6, dtype=torch.float64), means, spread)
    rows = torch.eye(4, dtype=torch.float64)[given]
    sampler = ParticleSampler(SDE, Posterior(joint, Matrix(rows), 0.1), particles=3000, steps=100)
    total = torch.zeros(2)
    for x0 in joint.sample(3, seed=0):
        found = sampler.sample(1, seed=0, y=x0[given])
        total += distance_and_floor(found, joint.posterior(rows, x0[given], 0.0))
    print(f"given {given}: distance {total[0] / 3:.3f}, floor {total[1] / 3:.3f}")
    assert total[0] <= 1.4 * total[1]


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_particles_carry_scores_that_are_added_to_the_posterior_of_n_observations(n):
    means = torch.tensor([[-2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, -1.5]], dtype=torch.float64)
    prior = GaussianMixture(SDE, torch.ones(4, dtype=torch.float64), means, 0.16)
    a, total = torch.eye(2, dtype=torch.float64), torch.zeros(2)
    sampler = ParticleSampler(SDE, Compositional(GivenOne(prior, a, 2.0), n), particles=1024, steps=100)
    for problem, x0 in enumerate(prior.sample(3, seed=0)):
        z = torch.randn(n, 2, generator=torch.Generator().manual_seed(problem), dtype=torch.float64)
        y = x0 + 2.0 * z
        found = sampler.sample(1, seed=0, context=y)
        total += distance_and_floor(found, product(prior, a, y, 2.0))
    print(f"n = {n}: distance {total[0] / 3:.3f}, floor {total[1] / 3:.3f}")
    assert total[0] <= 1.6 * total[1]
