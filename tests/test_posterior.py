"""Claim: `posterior` is the exact law of x_s given x_t and x_0 on every Gaussian SDE, DDPM's among them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sde_diffusion import EDMSDE, VESDE, VPSDE, BrownianSDE, CosineSDE, DiscreteVPSDE, FlowSDE, SubVPSDE

ALL = [
    VPSDE(),
    SubVPSDE(),
    CosineSDE(),
    VESDE(),
    EDMSDE(),
    BrownianSDE(),
    FlowSDE(),
    DiscreteVPSDE.linear(1000),
]
X = torch.tensor([[0.4, -1.3], [2.0, 0.1], [-0.7, -0.9]], dtype=torch.float64)
X0 = torch.tensor([[1.0, -0.5], [-0.8, 0.6], [0.2, 0.3]], dtype=torch.float64)


def inside(sde, *fractions):
    """Times of the SDE, rising with the fractions."""
    return [sde.t_min + f * (sde.t_max - sde.t_min) for f in fractions]


@pytest.mark.parametrize("t", [2.0, 3.0, 10.0, 57.0])
def test_the_posterior_of_the_brownian_chain_is_that_of_the_lectures(t):
    x, x0 = X, X0
    mean, std = BrownianSDE().posterior(x, x0, t, t - 1)
    torch.testing.assert_close(mean, (1 - 1 / t) * x + x0 / t, rtol=0, atol=1e-13)
    assert float(std) ** 2 == pytest.approx(1 - 1 / t, rel=1e-13)


@pytest.mark.parametrize("i", [1, 2, 500, 999])
def test_the_posterior_of_the_discrete_chain_is_that_of_ddpm(i):
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha, bar = 1 - beta, np.cumprod(1 - beta)
    x, x0 = X, X0
    mean, std = DiscreteVPSDE.linear(1000).posterior(x, x0, float(i), float(i - 1))
    before = bar[i - 1]
    expected = (math.sqrt(before) * beta[i] * x0 + math.sqrt(alpha[i]) * (1 - before) * x) / (1 - bar[i])
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-10)
    assert float(std) ** 2 == pytest.approx((1 - before) / (1 - bar[i]) * beta[i], rel=1e-10)


@pytest.mark.parametrize("sde", ALL, ids=repr)
def test_the_posterior_is_the_conditional_of_the_joint_gaussian(sde):
    s, t = inside(sde, 0.3, 0.8)
    both = torch.tensor([s, t], dtype=torch.float64)
    (a_s, a_t), (v_s, v_t) = sde.alpha(both), sde.sigma(both) ** 2
    # Given x0, (x_s, x_t) is Gaussian with variances v_s, v_t and covariance (a_t / a_s) v_s, as x_t is linear in x_s.
    cov = a_t / a_s * v_s
    x, x0 = X, X0
    mean, std = sde.posterior(x, x0, t, s)
    torch.testing.assert_close(mean, a_s * x0 + cov / v_t * (x - a_t * x0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(std**2, v_s - cov * cov / v_t, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("sde", ALL, ids=repr)
def test_posteriors_chain_from_t_to_s_to_r(sde):
    r, s, t = inside(sde, 0.2, 0.5, 1.0)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    keep, std_rs = sde.posterior(one, zero, s, r)  # x_r = keep x_s + draw x0 + std_rs z
    draw, _ = sde.posterior(zero, one, s, r)
    for x, x0 in ((one, zero), (zero, one)):
        middle, std_st = sde.posterior(x, x0, t, s)
        direct, std_rt = sde.posterior(x, x0, t, r)
        torch.testing.assert_close(keep * middle + draw * x0, direct, rtol=0, atol=1e-10)
        torch.testing.assert_close((keep * std_st) ** 2 + std_rs**2, (std_rt**2).expand(1, 1), rtol=1e-10, atol=0.0)
