"""Claim: every shipped SDE is the published process, and a user's own needs only alpha and sigma.

The table `PUBLISHED` is written from the papers (f and g^2 of dx = f x dt + g dw), not derived from alpha and sigma as
the library does. The Fokker-Planck residual ties the three together once more: it vanishes only if the marginals given
by alpha and sigma are those of the process given by drift and diffusion.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.autograd import grad

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    CosineSDE,
    DiscreteVPSDE,
    FlowSDE,
    GaussianSDE,
    SDESampler,
    SubVPSDE,
)
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.solvers import AngleSDE

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
    AngleSDE(0.7),
]
every_sde = pytest.mark.parametrize("sde", SHIPPED, ids=repr)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def interior(sde, n=9):
    """Times strictly inside the range, none of them a knot of a discrete chain."""
    u = (torch.arange(n, dtype=torch.float64) + 0.437) / n
    return sde.t_min + (sde.t_max - sde.t_min) * u


# -------------------------------------------------------------------------------------------------- published forms


def beta(t):
    return 0.1 + 19.9 * t


def integral(t):
    return 0.1 * t + 19.9 * t**2 / 2


PUBLISHED = [  # sde, f(t), g(t)^2
    (VPSDE(), lambda t: -beta(t) / 2, beta),
    (SubVPSDE(), lambda t: -beta(t) / 2, lambda t: beta(t) * (1 - torch.exp(-2 * integral(t)))),
    (VESDE(), lambda t: 0 * t, lambda t: 2 * (0.01 * 5000.0**t) ** 2 * math.log(5000.0)),
    (BrownianSDE(), lambda t: 0 * t, torch.ones_like),
    (CosineSDE(), lambda t: -math.pi / 2 * torch.tan(math.pi * t / 2), lambda t: math.pi * torch.tan(math.pi * t / 2)),
    (EDMSDE(), lambda t: 0 * t, lambda t: 2 * t),
    (FlowSDE(), lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
]


@pytest.mark.parametrize(("sde", "f", "g2"), PUBLISHED, ids=lambda v: repr(v) if isinstance(v, GaussianSDE) else "")
def test_drift_and_diffusion_are_the_published_ones(sde, f, g2):
    t = interior(sde)
    x = torch.linspace(-3, 3, len(t), dtype=torch.float64)[:, None].expand(-1, 2).contiguous()
    torch.testing.assert_close(sde.drift(x, t), f(t)[:, None] * x, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(sde.diffusion(t), g2(t).sqrt(), rtol=1e-11, atol=0.0)
    level = torch.tensor([at.g2 for at in sde.levels(t)], dtype=torch.float64)
    torch.testing.assert_close(level, g2(t), rtol=1e-11, atol=0.0)


def test_brownian_motion_has_unit_diffusion_exactly():
    sde = BrownianSDE()
    t = interior(sde)
    torch.testing.assert_close(sde.diffusion(t), torch.ones_like(t), rtol=0, atol=4e-16)
    torch.testing.assert_close(sde.sigma(t) ** 2, t, rtol=4e-16, atol=0)


# ------------------------------------------------------------------------------------------------- rates and inverse


@every_sde
def test_closed_form_rates_are_the_derivatives(sde):
    t = interior(sde)
    found = sde.rates(t)
    for ours, automatic in zip(found, GaussianSDE.rates(sde, t), strict=True):
        torch.testing.assert_close(ours, automatic, rtol=1e-11, atol=1e-14)
    h = 1e-4 * t * (t > 1) + 1e-4 * (t <= 1) * torch.minimum(t, f64(1.0))
    for ours, value in zip(found, (sde.alpha, sde.sigma), strict=True):
        central = (8 * (value(t + h) - value(t - h)) - (value(t + 2 * h) - value(t - 2 * h))) / (12 * h)
        # Error h^4 times the fifth derivative, and rounding 1e-16 / h over values up to 80.
        torch.testing.assert_close(ours, central, rtol=1e-7, atol=1e-9)


@every_sde
def test_time_of_inverts_the_half_log_snr(sde):
    t = interior(sde, 101)
    lam = sde.half_log_snr(t)
    assert bool((lam.diff() < 0).all())
    torch.testing.assert_close(lam, torch.log(sde.alpha(t) / sde.sigma(t)), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sde.time_of(lam), t, rtol=1e-10, atol=0)
    torch.testing.assert_close(GaussianSDE.time_of(sde, lam), t, rtol=1e-8, atol=0)


@every_sde
def test_time_of_reaches_both_ends(sde):
    ends = f64(sde.t_min, sde.t_max)
    torch.testing.assert_close(sde.time_of(sde.half_log_snr(ends)), ends, rtol=1e-10, atol=1e-12)
    first, last = sde.levels([sde.t_min, sde.t_max])
    assert sde.ends() == (last.lam, first.lam)
    for at in (first, last):
        assert at.ratio == pytest.approx(math.exp(-at.lam), rel=1e-12)


@pytest.mark.parametrize("sde", [CosineSDE(t_max=1.0), FlowSDE()], ids=repr)
def test_no_data_are_left_where_alpha_is_zero(sde):
    (last,) = sde.levels([sde.t_max])
    assert last.alpha == 0.0
    assert last.sigma == 1.0
    assert last.lam == -math.inf
    assert last.g2 == math.inf


@every_sde
def test_marginals_compose(sde):
    """x_t = (a_t / a_s) x_s + noise of variance v >= 0, so a_t and sigma_t follow from any s before."""
    chain = isinstance(sde, DiscreteVPSDE)  # between trained levels, as lambda has kinks at them
    t = torch.arange(99, dtype=torch.float64) if chain else interior(sde, 30)
    a, v = sde.alpha(t), sde.sigma(t) ** 2
    ratio = a[1:] / a[:-1]
    extra = v[1:] - ratio**2 * v[:-1]
    assert bool((extra > 0).all())
    # The extra variance is what g feeds in: int_s^t g(u)^2 (a_t / a_u)^2 du, here by Gauss-Legendre with ten nodes.
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(10))
    half = (t[1:] - t[:-1])[:, None] / 2
    u = (t[1:] + t[:-1])[:, None] / 2 + half * nodes
    fed = (half * weights * sde.diffusion(u) ** 2 * (a[1:, None] / sde.alpha(u)) ** 2).sum(1)
    torch.testing.assert_close(fed, extra, rtol=1e-8, atol=0)


# ------------------------------------------------------------------------------------------------------ Fokker-Planck


def mixture_log_density(x, a, s):
    """log p of a x0 + s eps, for two anisotropic Gaussians in the plane."""
    logs = []
    for w, m, c in ((0.4, f64(1.0, -0.3), f64(0.3, 0.05)), (0.6, f64(-0.7, 0.5), f64(0.1, 0.4))):
        v = a * a * c + s * s
        logs.append(math.log(w) - 0.5 * ((x - a * m) ** 2 / v + torch.log(2 * math.pi * v)).sum())
    return torch.logsumexp(torch.stack(logs), 0)


@pytest.mark.parametrize("point", [(0.3, -0.2), (-1.1, 0.9)])
@every_sde
def test_marginals_solve_the_fokker_planck_equation_of_drift_and_diffusion(sde, point):
    """d/dt log p = -div f - f . score + (g^2 / 2)(div score + |score|^2), by autograd of the density."""
    for t0 in interior(sde, 4):
        t = t0.clone().requires_grad_()
        (at,) = sde.levels([float(t0)])
        x = (f64(*point) * math.hypot(at.alpha, at.sigma)).requires_grad_()
        log_p = mixture_log_density(x, sde.alpha(t), sde.sigma(t))
        dt, score = grad(log_p, (t, x), create_graph=True)
        trace = sum(grad(score[i], x, retain_graph=True)[0][i] for i in range(2))
        f = sde.drift(torch.ones(1, 1, dtype=torch.float64), t0).item()
        g2 = sde.diffusion(t0).item() ** 2
        right = -2 * f - f * (x * score).sum() + 0.5 * g2 * (trace + score.square().sum())
        torch.testing.assert_close(dt, right, rtol=1e-9, atol=1e-11 * max(1.0, abs(f), g2))


# ------------------------------------------------------------------------------------------------- numbers and limits


@pytest.mark.parametrize("cls", [VPSDE, SubVPSDE])
@pytest.mark.parametrize("t", [1e-7, 1e-5, 1e-3, 0.5])
def test_sigma_is_right_at_tiny_times_in_float32(cls, t):
    sde = cls(t_min=1e-8)
    (at,) = [sde.level(t, torch.zeros(1, 1))]
    b = 0.1 * t + 19.9 * t * t / 2
    # 1 - e^-b by its series where b is small; the naive float32 form is off by 6e-3 at 1e-5 and gives 0 at 1e-7.
    rest = b - b**2 / 2 + b**3 / 6 - b**4 / 24 if b < 1e-2 else 1 - math.exp(-b)
    assert at.sigma.dtype == torch.float32
    assert at.sigma.item() == pytest.approx(math.sqrt(rest) if cls is VPSDE else rest, rel=2e-7)
    direct = sde.sigma(torch.tensor(t, dtype=torch.float32))
    assert direct.item() == pytest.approx(math.sqrt(rest) if cls is VPSDE else rest, rel=1e-6)


def test_vp_is_the_limit_of_ddpm_chains():
    """beta_i = beta(i / N) / N, appendix B of Song et al. 2021: errors fall like 1 / N."""
    t = 0.6
    (at,) = VPSDE().levels([t])
    errors = []
    for n in (500, 1000, 2000):
        i = torch.arange(1, n + 1, dtype=torch.float64)
        chain = DiscreteVPSDE((0.1 + 19.9 * i / n) / n)
        (level,) = chain.levels([t * n - 1])  # after the first 0.6 N steps
        errors.append(max(abs(level.alpha - at.alpha), abs(level.sigma - at.sigma)))
    assert errors[0] < 0.02
    for coarse, fine in pairwise(errors):
        assert 1.8 < coarse / fine < 2.2


def test_ve_is_the_limit_of_smld_chains():
    """x_i = x_{i-1} + sqrt(sigma_i^2 - sigma_{i-1}^2) z with sigma_i geometric, appendix B of the same paper."""
    sde, n = VESDE(), 2001
    sigmas = [0.01 * 5000.0 ** (i / (n - 1)) for i in range(n)]
    times = torch.linspace(0, 1, n, dtype=torch.float64)
    torch.testing.assert_close(sde.sigma(times), f64(*sigmas), rtol=1e-12, atol=0)
    # One step of the chain against one of Euler-Maruyama, g^2 dt: relative error log(5000) / N = 4e-3 at first order.
    steps = f64(*sigmas).square().diff()
    em = sde.diffusion((times[1:] + times[:-1]) / 2) ** 2 / (n - 1)
    torch.testing.assert_close(em, steps, rtol=1e-5, atol=0)


@pytest.mark.parametrize("i", [0, 1, 50, 99])
def test_a_discrete_chain_keeps_the_trained_levels(i):
    betas = torch.linspace(1e-4, 0.02, 100, dtype=torch.float64)
    sde = DiscreteVPSDE(betas)
    bar = math.prod(1 - b for b in betas.tolist()[: i + 1])
    (at,) = sde.levels([float(i)])
    assert at.alpha == pytest.approx(math.sqrt(bar), rel=1e-12)
    assert at.sigma == pytest.approx(math.sqrt(1 - bar), rel=1e-11)


def test_a_discrete_chain_is_linear_in_half_log_snr_between_levels():
    sde = DiscreteVPSDE.linear(100)
    below, middle, above = sde.half_log_snr(f64(12.0, 12.25, 13.0)).tolist()
    assert middle == pytest.approx(0.75 * below + 0.25 * above, rel=1e-13)


def test_chains_are_equal_when_their_betas_are():
    assert DiscreteVPSDE.linear(30) == DiscreteVPSDE.linear(30)
    assert hash(DiscreteVPSDE.linear(30)) == hash(DiscreteVPSDE.linear(30))
    assert DiscreteVPSDE.linear(30) != DiscreteVPSDE.linear(31)
    assert DiscreteVPSDE.linear(30) != DiscreteVPSDE.linear(30, 1e-3)
    assert DiscreteVPSDE.linear(30) != VPSDE()


# --------------------------------------------------------------------------------------------------------- marginals


@every_sde
def test_perturb_and_marginal_agree_with_alpha_and_sigma_per_sample(sde):
    t = interior(sde, 3)
    x0 = torch.arange(12, dtype=torch.float64).reshape(3, 2, 2)
    eps = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 2, 2)
    a, s = sde.alpha(t), sde.sigma(t)
    x = sde.perturb(x0, t, eps)
    mean, std = sde.marginal(x0, t)
    for i in range(3):
        torch.testing.assert_close(x[i], a[i] * x0[i] + s[i] * eps[i], rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(mean[i], a[i] * x0[i], rtol=1e-14, atol=0)
        torch.testing.assert_close(sde.perturb(x0[i : i + 1], float(t[i]), eps[i : i + 1])[0], x[i])
    torch.testing.assert_close(std.flatten(), s, rtol=1e-14, atol=0)


# -------------------------------------------------------------------------------------------------------- your own


class Linear(GaussianSDE):
    """alpha = 1 - t / 2, sigma = t^2 + t / 10: no closed-form rates, no inverse."""

    t_min, t_max = 1e-3, 1.0

    def alpha(self, t):
        return 1 - t / 2

    def sigma(self, t):
        return t * t + t / 10


def test_an_sde_of_ten_lines_gets_its_rates_by_autograd_and_its_inverse_by_bisection():
    sde, t = Linear(), interior(Linear(), 21)
    dalpha, dsigma = sde.rates(t)
    torch.testing.assert_close(dalpha, torch.full_like(t, -0.5), rtol=1e-14, atol=0)
    torch.testing.assert_close(dsigma, 2 * t + 0.1, rtol=1e-14, atol=0)
    torch.testing.assert_close(sde.time_of(sde.half_log_snr(t)), t, rtol=1e-12, atol=0)
    f = -0.5 / (1 - t / 2)
    g2 = 2 * sde.sigma(t) * (2 * t + 0.1 - f * sde.sigma(t))
    torch.testing.assert_close(sde.diffusion(t), g2.sqrt(), rtol=1e-12, atol=0)


class ToNoise(Linear):
    """No data are left at t = 2, and no noise at t = 0: the half log-SNR is infinite at both ends."""

    t_min, t_max = 0.0, 2.0


def test_bisection_works_between_infinite_ends():
    lam = torch.tensor([-6.0, 0.0, 6.0], dtype=torch.float64)
    torch.testing.assert_close(ToNoise().half_log_snr(ToNoise().time_of(lam)), lam, rtol=0, atol=1e-9)


def test_autograd_rates_work_where_gradients_are_off():
    sde, t = Linear(), interior(Linear())
    with torch.no_grad():
        torch.testing.assert_close(sde.rates(t)[1], 2 * t + 0.1, rtol=1e-14, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(sde.rates(t)[1], 2 * t + 0.1, rtol=1e-14, atol=0)


def test_an_sde_of_ten_lines_samples_and_encodes():
    sde, means = Linear(), torch.tensor([[2.0, -1.0], [-2.0, 1.0]], dtype=torch.float64)
    model = GaussianMixture(sde, torch.ones(2).double(), means, 0.3)
    sampler = SDESampler(sde, model, steps=40)
    x = sampler.sample(4, seed=0)
    # Multistep second order there and back; the truth is the identity up to the noise of the smallest level, 1e-4.
    back = sampler.sample(x_T=sampler.encode(x))
    torch.testing.assert_close(back, x, rtol=0, atol=2e-2)
    again = SDESampler(sde, model, steps=80)
    error, finer = ((s.sample(x_T=s.encode(x)) - x).abs().max() for s in (sampler, again))
    assert finer < error / 3
