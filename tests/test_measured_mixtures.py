"""Claim: the posterior of a mixture under a linear measurement, and its evidence, are those of Bayes' rule."""

from __future__ import annotations

import math

import pytest
import torch
from refusals import check, refuses, wrong

from sde_diffusion import VPSDE
from sde_diffusion.denoiser.analytic import Empirical, Gaussian, GaussianMixture


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


MEANS = f64(1.0, -0.5, -0.8, 0.6, 0.1, 0.2).reshape(3, 2)
FULL = f64(0.30, 0.12, 0.12, 0.10, 0.08, -0.05, -0.05, 0.25, 0.0025, 0.0, 0.0, 0.0025).reshape(3, 2, 2)
DIAGONAL = f64(0.3, 0.1, 0.05, 0.2, 0.01, 0.4).reshape(3, 2)
WEIGHTS = f64(1.0, 2.0, 0.5)
A, Y, NOISE = f64(0.7, -0.4, 0.2, 1.1, 1.0, 1.0).reshape(3, 2), f64(0.3, -0.2, 0.5), f64(0.5, 0.8, 0.3)
X = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    "covariances", [FULL, f64(0.3, 0.1, 0.05, 0.2, 0.01, 0.4).reshape(3, 2), 0.1], ids=["full", "diagonal", "round"]
)
@pytest.mark.parametrize(("a", "y", "noise"), [(A, Y, NOISE), (A[:1], Y[:1], 0.2)], ids=["three", "one"])
def test_prior_times_likelihood_is_posterior_times_evidence_at_every_point(covariances, a, y, noise):
    model = GaussianMixture(VPSDE(), WEIGHTS, MEANS, covariances)
    std = torch.as_tensor(noise, dtype=torch.float64).expand(len(y))
    gap = (y - X @ a.T) / std
    likelihood = -0.5 * gap.square().sum(1) - std.log().sum() - 0.5 * len(y) * math.log(2 * math.pi)
    joint = model.data_log_prob(X) + likelihood
    found = model.posterior(a, y, noise).data_log_prob(X) + model.log_evidence(a, y, noise)
    torch.testing.assert_close(found, joint, rtol=0, atol=1e-10)


def test_without_noise_it_is_the_conditional_of_some_coordinates_given_others():
    model = GaussianMixture(VPSDE(), WEIGHTS, MEANS, FULL)
    found = model.posterior(f64(0.0, 1.0)[None], f64(0.4), 0.0)
    mean = MEANS[:, 0] + FULL[:, 0, 1] / FULL[:, 1, 1] * (0.4 - MEANS[:, 1])
    density = WEIGHTS / FULL[:, 1, 1].sqrt() * torch.exp(-0.5 * (0.4 - MEANS[:, 1]) ** 2 / FULL[:, 1, 1])
    x = found.sample(8, seed=0)
    torch.testing.assert_close(found.means[:, 0], mean)
    torch.testing.assert_close(found.log_weights.exp(), density / density.sum())
    torch.testing.assert_close(x[:, 1], torch.full((8,), 0.4, dtype=torch.float64), rtol=0, atol=1e-7)


def test_of_a_finite_data_set_the_posterior_weighs_the_points():
    found = Empirical(VPSDE(), MEANS).posterior(A, Y, 0.5)
    weights = torch.softmax(-0.5 * ((Y - MEANS @ A.T) / 0.5).square().sum(1), 0)
    torch.testing.assert_close(found.log_weights.exp(), weights)
    torch.testing.assert_close(found.means, MEANS)
    assert not found.spread.any()


def test_it_keeps_shape_and_dtype_and_leaves_out_components_without_weight():
    model = GaussianMixture(
        VPSDE(), f64(1, 1).float(), torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 50.0)]), 1.0
    )
    found = model.posterior(torch.eye(4)[:1], torch.zeros(1), 0.0)
    assert (len(found.means), found.means.dtype, found.shape) == (1, torch.float32, (1, 2, 2))
    assert found.sample(3, seed=0).shape == (3, 1, 2, 2)


MODEL = Gaussian(VPSDE(), MEANS[0], FULL[0])


@refuses(
    (lambda: MODEL.posterior(wrong([[1.0, 0.0]]), Y, 1.0), TypeError, "a must be a torch.Tensor of shape (m, 2)"),
    (lambda: MODEL.posterior(A, wrong(0.3), 1.0), TypeError, "y must be a torch.Tensor of shape (m,)"),
    (lambda: MODEL.posterior(A, Y[:2], 1.0), ValueError, "got (3, 2) and (2,)"),
    (lambda: MODEL.posterior(A, Y, wrong("1")), TypeError, "noise must be a number"),
    (lambda: MODEL.posterior(A, Y, -1.0), ValueError, "noise must be finite and at least 0"),
    (lambda: MODEL.posterior(A, Y, f64(1, 1)), ValueError, "a number or one for each of 3"),
    (lambda: MODEL.log_evidence(A, Y, 0.0), ValueError, "without any spread in some direction"),
    (lambda: MODEL.posterior(A, Y * math.nan, 1.0), ValueError, "y holds 3 non-finite values"),
)
def test_what_is_refused(call, error, text):
    check(call, error, text)
