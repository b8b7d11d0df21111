"""Claim: an estimate from the seed that its data were drawn by is the estimate of any seed: each use has its numbers.

The data are the samples of an exact model by a flow, whose noise is known from them: what is drawn by the numbers of
the sampler once more is as far off as can be.
"""

from __future__ import annotations

import math
from itertools import combinations
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from linear_codec import latent_sampler, law, posterior
from scipy import stats

from sde_diffusion import VPSDE, DiscreteVPSDE, SDESampler, latent
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.likelihood import (
    Bins,
    Density,
    Estimate,
    GaussianDecoder,
    Method,
    Orthogonal,
    continuous_elbo,
    dataset_log_prob,
    dequantize,
    elbo,
)
from sde_diffusion.noise import Streams
from sde_diffusion.noise.seeds import Use, apart
from sde_diffusion.particles import Particles
from sde_diffusion.solvers import Heun
from sde_diffusion.testing import tarp
from sde_diffusion.testing.maps.measured import Measured

F64, N, D = torch.float64, 200, 16
SPREAD = torch.linspace(0.5, 1.5, D, dtype=F64)  # variances, not alike: a divergence is no multiple of the identity
SDE, CHAIN, BINS = VPSDE(t_min=1e-5), DiscreteVPSDE.cosine(100), Bins(400, -19.95, 0.1)
MODEL, OF_CHAIN = (Gaussian(sde, torch.zeros(D, dtype=F64), SPREAD) for sde in (SDE, CHAIN))
SAMPLER = SDESampler(SDE, MODEL, solver=Heun(), steps=16)
FEW = Method(steps=16, solver_error=False)


def x0():
    return SAMPLER.sample(N, seed=0)


def near(off, error=0.0, slack=0.0):
    """Zero on average by 4 standard errors of the rows, and one that is known besides."""
    mean, spread = float(off.mean()), math.hypot(float(off.std()) / math.sqrt(len(off)), error)
    print(f"{mean:.5f} +- {spread:.5f}")
    assert abs(mean) < 4 * spread + slack


def centres(x):
    return BINS.centre(((x - BINS.first) / BINS.width).round().long(), F64)


def mean_log_density(x, variance):
    """The mean of log p at `x` with noise of a variance, in closed form."""
    return -0.5 * ((x.square() + variance) / SPREAD + (2 * math.pi * SPREAD).log()).sum(1)


def noise_of(std):
    """Variance and entropy of truncated normal noise in a bin."""
    edge = BINS.width / 2
    each = stats.truncnorm(-edge / std, edge / std, scale=std)
    return each.var(), D * each.entropy()


def edited(x, seed):
    """The share of the data that an edit keeps; `std / hypot(std, level)` by the flow of a Gaussian."""
    return (SAMPLER.edit(x, 1.0, seed=seed) * x / SPREAD).mean(1)


UNIFORM = BINS.width**2 / 12
KEPT = float((SPREAD.sqrt() / (SPREAD + 1).sqrt()).mean())
ESTIMATES = {
    "elbo": (
        lambda x, seed: (
            -elbo(OF_CHAIN, x, decoder=GaussianDecoder(0.01), estimate=Estimate(levels=32), seed=seed).total
        ),
        None,
        0.0,
    ),
    "log_prob": (
        lambda x, seed: (
            SAMPLER.log_prob(
                x,
                density=Density(level=0.0),
                method=Method(steps=16, trace=Orthogonal(2), solver_error=False),
                seed=seed,
            ).value
        ),
        MODEL.data_log_prob,
        0.01,
    ),
    "uniform": (
        lambda x, seed: dequantize.uniform(MODEL.data_log_prob, centres(x), BINS, seed=seed).value,
        lambda x: mean_log_density(centres(x), UNIFORM) + D * math.log(BINS.width),
        0.0,
    ),
    "truncated_normal": (
        lambda x, seed: dequantize.truncated_normal(MODEL.data_log_prob, centres(x), BINS, std=0.03, seed=seed).value,
        lambda x: mean_log_density(centres(x), noise_of(0.03)[0]) + noise_of(0.03)[1],
        0.0,
    ),
    "gaussian_encoder": (
        lambda x, seed: dequantize.gaussian_encoder(MODEL.data_log_prob, centres(x), BINS, std=0.005, seed=seed).value,
        lambda x: mean_log_density(centres(x), 0.005**2) + 0.5 * D * math.log(2 * math.pi * math.e * 0.005**2),
        0.0,
    ),
    "edit": (edited, lambda x: torch.full((len(x),), KEPT, dtype=F64), 0.01),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_an_estimate_by_the_seed_of_the_data_is_that_of_another_seed_and_the_closed_form(name):
    estimate, truth, slack = ESTIMATES[name]
    x = x0()
    same, other = estimate(x, 0), estimate(x, 10_000)
    near(same - other)
    if truth is not None:
        near(same - truth(x), slack=slack)


def test_the_continuous_bound_of_an_exact_model_does_not_know_the_seed_of_the_data():
    model = Gaussian(SDE, torch.zeros(2, dtype=F64), 1.0)
    x = SDESampler(SDE, model, solver=Heun(), steps=16).sample(2000, seed=0)
    how = Estimate(levels=2, draws=1)  # so few that the level of a row is nearly all that is drawn for it
    same, other = (-continuous_elbo(model, x, estimate=how, seed=seed).total for seed in (0, 10_000))
    near(same - other)
    near(same - model.data_log_prob(x), slack=1e-3)


@pytest.mark.parametrize("entropy", ["drawn", "exact"])
def test_the_bound_through_a_codec_does_not_know_the_seed_of_the_data(entropy):
    sampler = latent_sampler(level=3.0, solver=Heun(), steps=16)  # whose encoder is not the posterior: it shrinks less
    x = sampler.sample(N, seed=0)
    how: Any = {"density": Density(level=0.0), "method": FEW, "entropy": entropy, "draws": 1}
    same, other = (latent.elbo(sampler, x, seed=seed, **how).value for seed in (0, 10_000))
    (mean, std), (m, s) = posterior(x), posterior(x, 3.0)
    gap = ((std / s).log() + (s.square() + (m - mean).square()) / (2 * std.square()) - 0.5).sum(1)
    near(same - other)
    near(same - law().log_prob(x) + gap, slack=2e-3)


def test_rows_of_a_data_set_are_taken_by_numbers_of_their_own():
    x = x0()
    found = dataset_log_prob(SAMPLER, x, budget=20, density=Density(level=0.0), seed=0)
    assert abs(found.value - float(MODEL.data_log_prob(x).mean())) < 4 * found.standard_error + found.bias


def test_points_of_a_test_of_calibration_are_none_of_the_parameters_of_the_same_seed():
    theta = torch.randn(N, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    samples = torch.randn(N, 20, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    assert tarp(theta, samples, seed=0).p_value > 1e-3


def test_particles_are_taken_by_other_numbers_than_they_were_drawn_by():
    found = Particles(torch.arange(64.0).reshape(1, 64, 1), torch.zeros(1, 64, dtype=F64), torch.ones(1, 2), 0)
    assert not torch.equal(found.draw(64, seed=0), found.draw(64, seed=torch.Generator().manual_seed(0)))
    assert torch.equal(found.draw(64, seed=0), found.draw(64, seed=0))


def test_data_of_a_check_of_maps_are_noised_by_other_noise_than_they_were_made_of():
    subject = Measured(MODEL, MODEL, 64, 0, Conditions.of(MODEL, {}, 64))
    noised = subject.noised(cast(Any, SimpleNamespace(at=MODEL.levels([SDE.t_max])[0])))
    both = torch.stack([noised.flatten(), subject.start[:64].flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 4 / math.sqrt(64 * D)


def test_no_two_uses_of_one_seed_have_the_same_numbers():
    words = [apart([0], use)[0] for use in Use]
    # two samples have one stream for two uses only if their seeds differ by as much
    assert min(a ^ b for a, b in combinations(words, 2)) > 1 << 27
    drawn = torch.stack([Streams(apart([7], use), (4000,), F64, "cpu").prior()[0] for use in Use])
    off = torch.corrcoef(drawn) - torch.eye(len(Use), dtype=F64)
    assert float(off.abs().max()) < 4.5 / math.sqrt(4000)
