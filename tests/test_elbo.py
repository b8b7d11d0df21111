"""Claim: the variational bound is the sum of its terms, each its closed form, unbiased, and its standard error holds.

Statistical tests have fixed seeds and hold by 4 standard errors, as the bound itself states them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from refusals import T, V, check, refuses, wrong
from scipy.integrate import quad

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    Denoiser,
    DiscreteVPSDE,
    FlowSDE,
    Matched,
    Network,
    Prediction,
    Wrapper,
    predict,
)
from sde_diffusion.denoiser.analytic import Gaussian, GaussianMixture, isotropic_mixture
from sde_diffusion.likelihood import Bins, CategoricalDecoder, Elbo, Estimate, GaussianDecoder, continuous_elbo, elbo
from sde_diffusion.likelihood.bound_terms import weights
from sde_diffusion.likelihood.decoder import categorical_log_prob, discretised_gaussian_log_prob

F64 = torch.float64
DDPM = DiscreteVPSDE.linear(1000)
SHORT = DiscreteVPSDE(torch.linspace(0.02, 0.4, 12, dtype=F64))
both_variances = pytest.mark.parametrize("variance", ["posterior", "forward"])


def chain_of(gamma):
    """The chain with these values of -log SNR."""
    bar = torch.sigmoid(-gamma)
    return DiscreteVPSDE(1 - torch.cat([bar[:1], bar[1:] / bar[:-1]]))


def evenly(n):
    """A chain of `n` steps, even in log-SNR from gamma = -10 to 8."""
    return chain_of(torch.linspace(-10, 8, n + 1, dtype=F64))


def pair(sde):
    return isotropic_mixture(sde, [[-1.0, 0.3], [0.8, 0.0]], std=0.25)


class Answer(Denoiser):
    """Answers one value for the data, wherever it is asked."""

    def __init__(self, sde, value):
        super().__init__()
        self.sde, self.value = sde, value

    def predict(self, x, at, **cond):
        data = torch.full_like(x, self.value)
        return Prediction(lambda: data, lambda: (x - at.alpha * data) / at.sigma)


@pytest.mark.parametrize("bound", [elbo, continuous_elbo])
def test_an_answer_of_another_shape_is_refused_and_not_spread(bound):
    class Narrow(Answer):
        def predict(self, x, at, **cond):
            return Prediction(lambda: x[:, :1], lambda: x[:, :1])

    with pytest.raises(ValueError, match=r"of a Prediction answered shape \(\d+, 1\) to a state of shape \(\d+, 2\)"):
        bound(Narrow(SHORT, 0.0), torch.zeros(3, 2))


def z_scores(found, truth):
    return (found.total - truth) / found.standard_error


def holds(difference, error):
    """Unbiased by 4 standard errors over the samples; and as large as the error stated, in mean square, within 20 %.

    A score of one sample from a few draws has the tails of Student's law, and is skewed as squares are: it is not used.
    """
    n = len(difference)
    mean, spread = float(difference.mean()), float(difference.std()) / math.sqrt(n)
    ratio = float(difference.square().mean().sqrt() / error.square().mean().sqrt())
    print(f"mean {mean:.5f} +- {spread:.5f}, spread over stated error {ratio:.3f}, {n} samples")
    assert abs(mean) < 4 * spread
    assert 0.8 < ratio < 1.2


# ---------------------------------------------------------------------------------------------------- the terms


@both_variances
def test_the_weights_are_those_of_the_lectures(variance):
    beta = SHORT.betas
    bar = torch.cumprod(1 - beta, 0)
    before, bar, b = bar[:-1], bar[1:], beta[1:]
    tilde = b * (1 - before) / (1 - bar)
    s2 = tilde if variance == "posterior" else b
    data = before * b**2 / (2 * s2 * (1 - bar) ** 2)
    weight, constant = weights(SHORT.levels(range(12)), variance)
    torch.testing.assert_close(weight, data, rtol=1e-10, atol=0)
    torch.testing.assert_close(constant, 0.5 * (tilde / s2 - 1 - torch.log(tilde / s2)), rtol=1e-10, atol=1e-14)
    if variance == "posterior":
        torch.testing.assert_close(weight, 0.5 * (before / (1 - before) - bar / (1 - bar)), rtol=1e-10, atol=0)


@both_variances
def test_a_term_is_the_divergence_of_two_gaussians(variance):
    """Against torch's KL, with both means from `posterior`: the model is off by 0.3 in every coordinate."""
    x0 = torch.full((1, 3), 0.5, dtype=F64)
    found = elbo(Answer(SHORT, 0.8), x0, variance=variance, estimate=Estimate(control=0.0), seed=0)
    x = torch.randn(1, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    for i in range(11):
        t, s = float(i + 1), float(i)
        mean, std = SHORT.posterior(x, x0, t, s)
        guess, _ = SHORT.posterior(x, torch.full_like(x, 0.8), t, s)
        other = std if variance == "posterior" else SHORT.betas[i + 1].sqrt()
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, std), torch.distributions.Normal(guess, other)
        )
        assert float(found.transitions[0, i]) == pytest.approx(float(kl.sum()), rel=1e-9)


def test_the_mean_from_data_noise_and_score_is_one():
    model, x = pair(SHORT), torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    for i in range(1, 12):
        beta, at = float(SHORT.betas[i]), SHORT.levels([float(i)])[0]
        answer, score = model(x, float(i)), model.score(x, float(i))
        mean, _ = SHORT.posterior(x, answer.data, float(i), float(i - 1))
        by_noise = (x - beta / at.sigma * answer.noise) / math.sqrt(1 - beta)
        by_score = (x + beta * score) / math.sqrt(1 - beta)
        torch.testing.assert_close(mean, by_noise, rtol=0, atol=1e-9)
        torch.testing.assert_close(mean, by_score, rtol=0, atol=1e-9)


class Heard(Wrapper):
    """A model that notes the states and levels it is asked about, and its two answers."""

    def __init__(self, inner):
        super().__init__(inner)
        self.asked = []

    def predict(self, x, at, **cond):
        answer = self.inner.predict(x, at, **cond)
        alpha, sigma = (torch.as_tensor(v, dtype=F64) for v in (at.alpha, at.sigma))
        self.asked.append((x, alpha, sigma, answer.data, answer.noise))
        return answer


ONE_BY_ONE = Estimate(draws=1, control=0.0, chunk=1)


@both_variances
def test_the_form_in_the_data_is_that_in_the_noise(variance):
    """The slides' sum over the noise, from what the model was asked and answered, is the sum over the data."""
    exact, b = pair(SHORT), SHORT.betas
    model, x0 = Heard(exact), exact.sample(4, seed=1)
    found = elbo(model, x0, variance=variance, estimate=ONE_BY_ONE, seed=0)
    bar = torch.cumprod(1 - b, 0)
    for i, (x, alpha, sigma, _, noise) in enumerate(model.asked[:-1], 1):  # the last is the decoder's
        tilde = b[i] * (1 - bar[i - 1]) / (1 - bar[i])
        s2 = tilde if variance == "posterior" else b[i]
        weight = b[i] ** 2 / (2 * s2 * (1 - b[i]) * (1 - bar[i]))
        error = ((x - alpha * x0) / sigma - noise).square().sum(1)
        term = weight * error + (tilde / s2 - 1 - torch.log(tilde / s2))  # of two coordinates
        torch.testing.assert_close(found.transitions[:, i - 1], term, rtol=1e-9, atol=1e-9)


def test_the_continuous_form_in_the_noise_is_that_in_the_data():
    """Its error of the noise, over the range, is the error of the data with the weight of the SNR."""
    exact = pair(VPSDE())
    model, x0 = Heard(exact), exact.sample(4, seed=1)
    found = continuous_elbo(
        model, x0, lam=(-3.0, 3.0), estimate=Estimate(levels=16, draws=1, control=0.0, chunk=1), seed=0
    )
    for i, (_, alpha, sigma, data, _) in enumerate(model.asked[:-1]):
        snr = (alpha / sigma).square().reshape(-1)
        term = 6 / 16 * snr * (data - x0).square().sum(1)
        torch.testing.assert_close(found.transitions[:, i], term, rtol=1e-9, atol=1e-9)


def test_a_model_that_knows_the_data_pays_for_no_transition():
    x0 = torch.full((2, 3), 0.4, dtype=F64)
    found = elbo(Answer(DDPM, 0.4), x0, estimate=Estimate(control=0.0), seed=0)
    assert float(found.transitions.abs().max()) == 0.0
    assert (
        float(elbo(Answer(DDPM, 0.4), x0, variance="forward", estimate=Estimate(control=0.0), seed=0).transitions.min())
        > 0
    )  # wrong variance


def test_the_brownian_chain_has_the_weights_of_the_lectures():
    """Unit steps of dx = dw: |x0 - x0_hat|^2 / (2 t (t - 1)); the reconstruction from t = 1 with variance 1."""
    sde, x0 = BrownianSDE(10.0), torch.full((1, 2), 1.0, dtype=F64)
    found = elbo(
        Answer(sde, 1.5),
        x0,
        times=range(1, 11),
        variance="posterior",
        decoder=GaussianDecoder(std=1.0),
        estimate=Estimate(control=0.0),
        seed=0,
    )
    expected = torch.tensor([[2 * 0.25 / (2 * t * (t - 1)) for t in range(2, 11)]], dtype=F64)
    torch.testing.assert_close(found.transitions, expected, rtol=1e-12, atol=0)
    assert float(found.reconstruction) == pytest.approx(0.25 + math.log(2 * math.pi), rel=1e-12)
    assert float(found.prior) == pytest.approx(2 * 0.5 / 10, rel=1e-12)
    forward = elbo(Answer(sde, 1.5), x0, times=range(1, 11), variance="forward", estimate=Estimate(control=0.0), seed=0)
    assert float(forward.reconstruction) == pytest.approx(
        0.25 + math.log(2 * math.pi), rel=1e-12
    )  # variance 1 by itself


def test_the_prior_term_is_exact_for_every_prior():
    x0 = torch.tensor([[0.5, -1.0], [2.0, 0.0]], dtype=F64)
    bar = float(torch.prod(1 - SHORT.betas))
    lectures = 0.5 * (bar * x0**2 + (1 - bar) - math.log(1 - bar) - 1).sum(1)
    found = elbo(pair(SHORT), x0, prior=Matched(0.0, 1.0), seed=0)
    torch.testing.assert_close(found.prior, lectures, rtol=1e-10, atol=1e-14)
    plain = elbo(pair(SHORT), x0, seed=0)
    torch.testing.assert_close(plain.prior, 0.5 * bar / (1 - bar) * x0.square().sum(1), rtol=1e-10, atol=1e-14)
    mean, cov = torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([[0.8, 0.3], [0.3, 0.5]], dtype=F64)
    full = elbo(pair(SHORT), x0, prior=Matched(mean, cov), seed=0)
    q = torch.distributions.MultivariateNormal(math.sqrt(bar) * x0, (1 - bar) * torch.eye(2, dtype=F64))
    p = torch.distributions.MultivariateNormal(math.sqrt(bar) * mean, bar * cov + (1 - bar) * torch.eye(2, dtype=F64))
    torch.testing.assert_close(full.prior, torch.distributions.kl_divergence(q, p), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(full.transitions, plain.transitions)


def test_a_chain_that_ends_without_signal_is_measured_on_the_data():
    """FlowSDE at t = 1: alpha = 0, an exact prior, and a last transition that is finite."""
    model = pair(FlowSDE())
    x0 = model.sample(3, seed=0)
    found = elbo(model, x0, times=torch.linspace(0.01, 1.0, 50), seed=0)
    assert bool(torch.isfinite(found.total).all())
    assert float(found.prior.abs().max()) < 1e-14


# ---------------------------------------------------------------------------------------------- Gaussian data, exactly


def gaussian_truth(chain, v, x0, variance, std):
    """Per point and coordinate of data N(0, v): the bound, and minus the log-density of the chain's own model."""
    at = chain.levels(torch.arange(int(chain.t_max) + 1, dtype=F64))
    weight, constant = weights(at, variance)
    bound = 0.5 * (at[-1].alpha / at[-1].sigma) ** 2 * x0**2 + constant.sum()
    p = at[-1].sigma ** 2
    for i in range(len(at) - 1, 0, -1):
        s, t = at[i - 1], at[i]
        k = t.alpha * v / (t.alpha**2 * v + t.sigma**2)
        bound = bound + weight[i - 1] * ((1 - k * t.alpha) ** 2 * x0**2 + k**2 * t.sigma**2)
        gain = -math.expm1(-2 * (s.lam - t.lam))
        step = t.alpha / s.alpha * (s.sigma / t.sigma) ** 2 + s.alpha * gain * k
        p = step**2 * p + gain * (s.sigma if variance == "posterior" else t.sigma) ** 2
    k = at[0].alpha * v / (at[0].alpha ** 2 * v + at[0].sigma ** 2)
    miss = (1 - k * at[0].alpha) ** 2 * x0**2 + k**2 * at[0].sigma ** 2
    bound = bound + miss / (2 * std**2) + math.log(std) + 0.5 * math.log(2 * math.pi)
    p = k**2 * p + std**2
    return bound, x0**2 / (2 * p) + 0.5 * math.log(2 * math.pi * p)


@both_variances
@pytest.mark.parametrize("control", [None, 0.0])
def test_gaussian_data_have_their_closed_form_on_every_point(variance, control):
    v, chain = 0.7, evenly(40)
    model = Gaussian(chain, torch.zeros(3, dtype=F64), v)
    x0 = model.sample(300, seed=3)
    truth = gaussian_truth(chain, v, x0, variance, 0.01)[0].sum(1)
    found = elbo(
        model,
        x0,
        variance=variance,
        decoder=GaussianDecoder(std=0.01),
        estimate=Estimate(draws=4, control=control),
        seed=0,
    )
    holds(found.total - truth, found.standard_error)


@pytest.mark.parametrize(("n", "expected"), [(10, 7.44), (100, 0.412), (1000, 0.0391), (10000, 0.00389)])
def test_the_gap_of_gaussian_data_falls_as_one_over_the_steps(n, expected):
    """v = 0.7, gamma from -10 to 8 in n steps, the best decoder: the mean of the bound less the entropy, in nats."""
    v, chain = 0.7, evenly(n)
    at = chain.levels([0.0])[0]
    std = math.sqrt(v) * at.sigma / math.sqrt(at.alpha**2 * v + at.sigma**2)
    # the bound is a quadratic in x0, so that its mean is its value at the standard deviation
    bound, _ = gaussian_truth(chain, v, torch.tensor([math.sqrt(v)], dtype=F64), "posterior", std)
    gap = float(bound) - 0.5 * math.log(2 * math.pi * math.e * v)
    print(n, gap)
    assert gap == pytest.approx(expected, rel=0.005)
    if n == 100:
        model = Gaussian(chain, torch.zeros(1, dtype=F64), v)
        x0 = torch.full((2000, 1), math.sqrt(v), dtype=F64)
        found = elbo(model, x0, decoder=GaussianDecoder(std=std), estimate=Estimate(draws=2), seed=0)
        error = float(found.standard_error.square().sum().sqrt()) / 2000
        print(float(found.total.mean()) - float(bound), error)
        assert abs(float(found.total.mean()) - float(bound)) < 4 * error < 0.1 * gap


@both_variances
@pytest.mark.parametrize("chain", [SHORT, evenly(30), DDPM], ids=["short", "even", "ddpm"])
def test_the_bound_is_never_below_the_likelihood_of_its_own_chain(chain, variance):
    x0 = torch.linspace(-6, 6, 200, dtype=F64)
    std = float(chain.betas[0].sqrt())
    bound, own = gaussian_truth(chain, 0.7, x0, variance, std)
    assert float((bound - own).min()) >= -1e-12
    model = Gaussian(chain, torch.zeros(1, dtype=F64), 0.7)
    some = slice(None, None, 10)
    found = elbo(
        model,
        x0[some, None],
        variance=variance,
        decoder=GaussianDecoder(std=std),
        estimate=Estimate(draws=2 if chain is DDPM else 16),
        seed=0,
    )
    assert float(z_scores(found, own[some]).min()) > -4


# ------------------------------------------------------------------------------------------------------------ mixtures


def hermite(n=80):
    nodes, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.tensor(nodes), torch.tensor(w / w.sum())


def mixture_bound(model, chain, x0, variance, std):
    """The bound of every point of one-dimensional data, by Gauss-Hermite quadrature over the noise."""
    at, (z, w) = chain.levels(torch.arange(int(chain.t_max) + 1, dtype=F64)), hermite()

    def error(level):
        x = level.alpha * x0 + level.sigma * z[None]
        return (model.predict(x.reshape(-1, 1), level).data.reshape(x.shape) - x0).square() @ w

    weight, constant = weights(at, variance)
    total = 0.5 * (at[-1].alpha / at[-1].sigma * x0[:, 0]) ** 2 + constant.sum()
    for i, level in enumerate(at[1:]):
        total = total + weight[i] * error(level)
    return total + error(at[0]) / (2 * std**2) + math.log(std) + 0.5 * math.log(2 * math.pi)


@both_variances
def test_a_mixture_has_its_quadrature_on_every_point(variance):
    chain = evenly(60)
    model = isotropic_mixture(chain, [[-1.0], [0.8]], std=0.3)
    x0 = model.sample(100, seed=3)
    truth = mixture_bound(model, chain, x0, variance, 0.007)
    found = elbo(model, x0, variance=variance, decoder=GaussianDecoder(std=0.007), estimate=Estimate(draws=6), seed=0)
    holds(found.total - truth, found.standard_error)


@pytest.mark.parametrize("n", [100, 1000])
def test_of_an_exact_model_the_bound_is_above_the_density_on_every_point(n):
    chain = DiscreteVPSDE.linear(n)
    model = isotropic_mixture(chain, [[-1.0], [0.8]], std=0.3)
    x0 = torch.linspace(-2.2, 2.0, 60, dtype=F64)[:, None]
    bound = mixture_bound(model, chain, x0, "posterior", float(chain.betas[0].sqrt()))
    gap = bound + model.data_log_prob(x0)
    print(f"{n} levels: gap {float(gap.min()):.4f} to {float(gap.max()):.4f} nats")
    assert float(gap.min()) > 0


def test_with_the_forward_variance_it_is_so_on_average_and_far_points_come_to_lie_below_by_one_over_the_levels():
    """That chain's own density is wider than that of the data: there, the bound on it may cost less than the data."""
    lowest = {}
    for n in (100, 200, 400):
        chain = DiscreteVPSDE.linear(n)
        model = isotropic_mixture(chain, [[-1.0], [0.8]], std=0.3)
        x0 = torch.linspace(-3.2, 3.0, 100, dtype=F64)[:, None]
        log_p = model.data_log_prob(x0)
        gap = mixture_bound(model, chain, x0, "forward", float(chain.betas[0].sqrt())) + log_p
        mean = float((log_p.exp() * gap).sum() / log_p.exp().sum())
        lowest[n] = float(gap[(x0[:, 0] > -2.2) & (x0[:, 0] < 2.0)].min())
        print(f"{n} levels: gap {lowest[n]:.4f} at least, {mean:.5f} on average")
        assert mean > 0
    assert lowest[100] < 0
    assert lowest[400] == pytest.approx(lowest[200] / 2, rel=0.2)


@pytest.mark.parametrize("d", [2, 64])
def test_the_bound_holds_against_the_exact_density_within_its_error(d):
    means = torch.randn(5, d, dtype=F64, generator=torch.Generator().manual_seed(0))
    model = GaussianMixture(DDPM, torch.ones(5, dtype=F64), means, 0.09)
    x0 = model.sample(16, seed=1)
    for variance in ("posterior", "forward"):
        found = elbo(model, x0, variance=variance, estimate=Estimate(draws=2), seed=0)
        gap = found.total + model.data_log_prob(x0)
        print(f"d = {d}, {variance}: gap {float(gap.mean()):.3f}, noise {float(found.standard_error.mean()):.3f}")
        assert float((gap / found.standard_error).min()) > -4


# -------------------------------------------------------------------------------------------------------- random levels


@pytest.mark.parametrize("importance", [True, False])
def test_random_levels_are_unbiased_and_their_error_holds(importance):
    chain = chain_of(-10 + 18 * torch.linspace(0, 1, 61, dtype=F64) ** 1.5)  # steps of log-SNR from 0.02 to 0.45
    model = pair(chain)
    x0 = model.sample(250, seed=5)
    full = elbo(model, x0, seed=10_000, decoder=GaussianDecoder(std=0.01), estimate=Estimate(draws=16))
    found = elbo(
        model,
        x0,
        decoder=GaussianDecoder(std=0.01),
        estimate=Estimate(levels=8, importance=importance, draws=8),
        seed=0,
    )
    error = (found.standard_error**2 + full.standard_error**2).sqrt()
    holds(found.total - full.total, error)
    assert found.nfe == 8 * 9
    # by column too: the mean over the samples of what each level is estimated to cost
    difference = found.transitions - full.transitions
    z = difference.mean(0) / (difference.std(0) / math.sqrt(len(x0)))
    assert float(z.abs().max()) < 4.5


def test_levels_by_log_snr_are_unbiased_on_the_chain_of_ddpm():
    model = pair(DDPM)
    x0 = model.sample(100, seed=5)
    full = elbo(model, x0, seed=10_000, estimate=Estimate(draws=2))
    found = elbo(model, x0, estimate=Estimate(levels=30, draws=3), seed=0)
    difference = found.total - full.total
    z = float(difference.mean() / difference.std()) * math.sqrt(len(difference))
    print(z, float(found.standard_error.mean()), float(full.standard_error.mean()))
    assert abs(z) < 4


def test_the_control_variate_saves_draws_and_changes_nothing_else():
    model = pair(DDPM)
    x0 = model.sample(32, seed=5)
    plain, controlled = elbo(model, x0, estimate=Estimate(control=0.0), seed=0), elbo(model, x0, seed=0)
    assert float(plain.transitions.min()) >= 0
    gain = float(plain.standard_error.mean() / controlled.standard_error.mean())
    print(gain)
    assert gain > 4
    off = plain.total - controlled.total  # its spread is that of rows: two draws tell little of theirs
    assert abs(float(off.mean())) < 4 * float(off.std()) / math.sqrt(len(off))


# ----------------------------------------------------------------------------------------------------- continuous time


@pytest.mark.parametrize(
    "sde",
    [VPSDE(t_min=1e-5), VESDE(1e-3, 50.0), BrownianSDE(t_min=1e-6), FlowSDE(t_max=0.999)],
    ids=lambda sde: type(sde).__name__,
)
def test_the_continuous_bound_of_an_exact_model_is_the_density(sde):
    model = pair(sde)
    x0 = model.sample(200, seed=2)
    found = continuous_elbo(model, x0, estimate=Estimate(levels=40, draws=4), seed=0)
    holds(found.total + model.data_log_prob(x0), found.standard_error)
    assert found.nfe == 4 * 41


def test_the_continuous_bound_of_gaussian_data_is_its_integral():
    """At a wrong model, too: the data have variance 0.7, the model says 0.5; I-MMSE for the rest."""
    sde, v, lam = VPSDE(), 0.5, (-2.0, 3.0)
    model = Gaussian(sde, torch.zeros(1, dtype=F64), v)
    x0 = math.sqrt(0.7) * torch.randn(300, 1, dtype=F64, generator=torch.Generator().manual_seed(0))

    def integrand(lam):
        snr = math.exp(2 * lam)
        k = snr * v / (snr * v + 1)  # of x0_hat = k x / alpha
        return snr * (1 - k) ** 2, k**2

    slope, constant = (quad(lambda u, i=i: integrand(u)[i], *lam, epsabs=1e-12)[0] for i in (0, 1))
    s2, far = math.exp(-2 * lam[1]), math.exp(2 * lam[0])
    k = v / (v + s2)
    recon = ((1 - k) ** 2 * x0**2 + k**2 * s2) / (2 * s2) + 0.5 * math.log(2 * math.pi * s2)
    truth = slope * x0**2 + constant + recon + 0.5 * far * x0**2
    found = continuous_elbo(model, x0, lam=lam, estimate=Estimate(levels=12, draws=6), seed=0)
    holds(found.total - truth[:, 0], found.standard_error)


def test_many_levels_tend_to_the_continuous_bound():
    chain = evenly(2000)
    model = pair(chain)
    x0 = model.sample(24, seed=2)
    s = chain.levels([0.0])[0]
    a = elbo(model, x0, decoder=GaussianDecoder(std=s.sigma / s.alpha), estimate=Estimate(draws=1, levels=400), seed=0)
    b = continuous_elbo(model, x0, estimate=Estimate(levels=400, draws=1), seed=0)
    difference = (a.total - b.total).mean()
    error = (a.total - b.total).std() / math.sqrt(24)
    print(float(difference), float(error))
    assert abs(float(difference)) < 4 * float(error) + 0.05  # 2 * 18^2 / 4 / 2000 per coordinate is 0.04


def test_the_continuous_bound_does_not_depend_on_the_process():
    base = pair(VPSDE(t_min=1e-4))
    x0 = base.sample(4, seed=2)
    options: Any = dict(lam=(-3.0, 3.0), prior=Matched(0.0, 1.0), estimate=Estimate(draws=1), seed=0)
    a, b = continuous_elbo(base, x0, **options), continuous_elbo(pair(EDMSDE()), x0, **options)
    torch.testing.assert_close(a.total, b.total, rtol=0, atol=1e-8)


# ------------------------------------------------------------------------------------------------------- the last step


@pytest.mark.parametrize("bins", [Bins.tiling(17), Bins.spanning(65), Bins(3, 0.0, 5.0)], ids=repr)
@pytest.mark.parametrize("std", [1e-4, 0.01, 0.3, 20.0])
def test_the_probabilities_of_a_decoder_sum_to_one(bins, std):
    mean = torch.linspace(-3, 3, 41, dtype=F64)
    for log_prob in (discretised_gaussian_log_prob, categorical_log_prob):
        all_levels = torch.stack([log_prob(mean, std, torch.full((41,), k), bins) for k in range(bins.count)])
        torch.testing.assert_close(torch.logsumexp(all_levels, 0), torch.zeros(41, dtype=F64), rtol=0, atol=1e-11)


@pytest.mark.parametrize("away", [0.0, 0.7, 5.0, 37.0, 74.0, 1000.0])
@pytest.mark.parametrize("width", [1e-6, 0.05, 2.0])
@pytest.mark.parametrize("side", [-1, 1])
def test_the_discretised_gaussian_is_accurate_in_its_tails(away, width, side):
    """Against quadrature of the density over the bin, its largest value taken out."""
    bins = Bins(9, -4 * width, width)
    low = away  # in standard deviations, from the mean to the near edge of the middle bin
    mean = torch.tensor([-side * (low + width / 2)], dtype=F64)
    found = discretised_gaussian_log_prob(mean, 1.0, torch.tensor([4]), bins)
    inside, _ = quad(lambda y: math.exp(-y * low - y * y / 2), 0, width, epsrel=1e-13, epsabs=0)
    truth = math.log(inside) - low * low / 2 - 0.5 * math.log(2 * math.pi)
    # the edge of the bin itself is rounded: 1e-16 of it, times the slope of the log-density and over the width
    assert float(found) == pytest.approx(truth, rel=1e-12, abs=1e-9 + 4e-16 * (low + 1) * (low + 1 / width))


def test_the_end_bins_are_open():
    bins, far = Bins.tiling(4), torch.tensor([50.0, -50.0], dtype=F64)
    found = discretised_gaussian_log_prob(far, 0.5, torch.tensor([3, 0]), bins)
    assert found.tolist() == [0.0, 0.0]


@both_variances
def test_the_default_decoder_has_the_variance_of_ddpm(variance):
    """beta_1, or beta-tilde_2 in place of beta-tilde_1, which is 0 (DDPM's clipped small variance)."""
    bar = torch.cumprod(1 - SHORT.betas, 0)
    var = float(SHORT.betas[0] if variance == "forward" else SHORT.betas[1] * (1 - bar[0]) / (1 - bar[1]))
    found = elbo(
        Answer(SHORT, 0.8),
        torch.full((1, 3), 0.5, dtype=F64),
        variance=variance,
        estimate=Estimate(control=0.0),
        seed=0,
    )
    assert float(found.reconstruction) == pytest.approx(3 * (0.09 / var + math.log(2 * math.pi * var)) / 2, rel=1e-9)


def test_the_bound_on_levels_is_the_sum_of_its_terms():
    """An exact answer at every level: the reconstruction alone is left, the probability of the bin around the data."""
    bins = Bins.tiling(8)
    chain = DiscreteVPSDE([0.01, 0.5, 0.9, 0.99, 0.99])
    x0 = bins.centre(torch.full((2, 3), 5), F64)
    value = float(x0[0, 0]) + 0.02
    found = elbo(
        Answer(chain, value),
        x0,
        variance="forward",
        decoder=GaussianDecoder(bins=bins),
        estimate=Estimate(control=0.0),
        seed=0,
    )
    inside = math.erf((0.125 - 0.02) / 0.1 / math.sqrt(2)) + math.erf((0.125 + 0.02) / 0.1 / math.sqrt(2))
    torch.testing.assert_close(found.reconstruction, torch.full((2,), -3 * math.log(inside / 2), dtype=F64))
    torch.testing.assert_close(found.bits_per_dim(), found.total / (3 * math.log(2)))


@pytest.mark.parametrize("kind", [GaussianDecoder, CategoricalDecoder])
def test_the_bound_on_levels_is_above_their_cost(kind):
    """Data are the centres with weights: the best code costs their entropy, and a fine chain comes close to it."""
    bins = Bins.tiling(5)
    levels, p = torch.arange(5)[:, None], torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1], dtype=F64)
    chain = evenly(400)
    model = GaussianMixture(chain, p, bins.centre(levels, F64), 1e-8)
    found = elbo(
        model, bins.centre(levels, F64), decoder=kind(bins=bins), estimate=Estimate(draws=50, control=0.0), seed=0
    )
    gap = found.total + torch.log(p)
    print(gap, found.standard_error)
    assert float((gap / found.standard_error).min()) > -4
    mean, error = float((p * gap).sum()), float((p * found.standard_error).square().sum().sqrt())
    print(mean, error)
    assert abs(mean - 18 / 2 / 400 * 1.47) < 4 * error < 0.1  # a step in log-SNR times the entropy, 1.47 nats
    assert found.nfe == 50 * (401 if kind is GaussianDecoder else 400)


# -------------------------------------------------------------------------------------------------- streams and shapes


def test_a_sample_depends_on_its_own_seed_alone():
    model = pair(SHORT)
    x0 = model.sample(5, seed=1)
    whole = elbo(model, x0, seed=[7, 3, 11, 0, 5], estimate=Estimate(chunk=1000))
    for chunk in (7, 1):
        part = elbo(model, x0[2:4], seed=[11, 0], estimate=Estimate(chunk=chunk))
        torch.testing.assert_close(part.total, whole.total[2:4], rtol=0, atol=1e-12)
    sampled = elbo(model, x0, seed=4, estimate=Estimate(levels=6))
    torch.testing.assert_close(
        elbo(model, x0[3:], seed=7, estimate=Estimate(levels=6)).total, sampled.total[3:], rtol=0, atol=1e-12
    )
    smooth = continuous_elbo(model, x0, seed=4, estimate=Estimate(levels=6))
    torch.testing.assert_close(
        continuous_elbo(model, x0[1:2], seed=5, estimate=Estimate(levels=6)).total, smooth.total[1:2]
    )


@pytest.mark.parametrize("kind", [predict.noise, predict.data, predict.v, predict.edm], ids=repr)
def test_a_network_of_any_kind_on_images_with_labels_gives_one_bound(kind):
    """The same data prediction through every parametrisation, label by sample, on `(B, 1, 3, 3)`."""
    chain = SHORT

    def net(x, time, label):
        # the answer of `kind` for data = 0.1 label: solve data = data_x x + data_f F, up to the scale of the input
        at = chain.level(time, x) if kind is not predict.edm else chain.level(chain.time_of(-4 * time.double()), x)
        c = kind.coefficients(at)
        state = x / kind.input_scale(at)
        return (0.1 * label.reshape(-1, 1, 1, 1) - c.data_x * state) / c.data_f

    model = Network(net, chain, kind, shape=(1, 3, 3))
    label = torch.tensor([0.0, 4.0, -2.0], dtype=F64)
    x0 = 0.1 * label.reshape(-1, 1, 1, 1).expand(3, 1, 3, 3) + 0.2
    found = elbo(model, x0, label=label, estimate=Estimate(control=0.0), seed=0)
    weight, _ = weights(chain.levels(range(12)), "posterior")
    torch.testing.assert_close(found.transitions, (9 * 0.04 * weight).expand(3, -1), rtol=1e-8, atol=1e-12)
    assert found.dim == 9
    assert found.nfe == 24


def test_float32_agrees_with_float64():
    model = isotropic_mixture(DDPM, [[-1.0, 0.3], [0.8, 0.0]], std=0.25)
    x0 = model.sample(8, seed=1)
    small = GaussianMixture(DDPM, torch.ones(2), torch.tensor([[-1.0, 0.3], [0.8, 0.0]]), 0.25**2)
    estimate = Estimate(levels=100, draws=4)
    for bound in (elbo, continuous_elbo):
        a, b = bound(model, x0, estimate=estimate, seed=0), bound(small, x0.float(), estimate=estimate, seed=0)
        assert b.total.dtype == F64
        z = (a.total - b.total) / (a.standard_error**2 + b.standard_error**2).sqrt()  # float32 has streams of its own
        assert float(z.abs().max()) < 4


def test_a_model_made_for_another_process_is_seen_through_the_chain():
    chain = evenly(20)
    base = pair(EDMSDE(1e-3, 100.0))
    x0 = base.sample(4, seed=1)
    torch.testing.assert_close(
        elbo(base.on(chain), x0, seed=0).total, elbo(pair(chain), x0, seed=0).total, rtol=0, atol=1e-6
    )


def test_levels_chosen_make_a_chain_of_their_own():
    """Every tenth index is not a sample of the terms but a coarser chain: fewer terms, and a larger bound."""
    chain = evenly(200)
    model = pair(chain)
    x0 = model.sample(40, seed=1)
    coarse, fine = (
        elbo(model, x0, times=range(200, -1, -10), decoder=GaussianDecoder(std=0.01), seed=0),
        elbo(model, x0, decoder=GaussianDecoder(std=0.01), seed=0),
    )
    assert coarse.transitions.shape == (40, 20)
    gap = coarse.total - fine.total
    assert float(gap.mean()) > 4 * float(gap.std()) / math.sqrt(40) > 0


def test_one_draw_says_that_it_has_no_error():
    found = elbo(pair(SHORT), pair(SHORT).sample(2, seed=0), estimate=Estimate(draws=1), seed=0)
    assert bool(found.standard_error.isnan().all())
    assert bool(torch.isfinite(found.total).all())


def test_it_prints_as_a_sentence():
    one = torch.ones(2, dtype=F64)
    text = str(Elbo(one, 2 * one[:, None], 3 * one, 0.1 * one, 4, False, 24))
    assert text == (
        "-log p <= 6.0000 +- 0.0707 nats, mean of 2: prior 1.0000, transitions 2.0000, reconstruction 3.0000; "
        "24 evaluations"
    )


def test_bits_of_a_density_need_a_bin_width_and_those_of_levels_have_it():
    one = torch.ones(2, dtype=F64)
    density = Elbo(one, 0 * one[:, None], one, one, 4, False, 1)
    torch.testing.assert_close(density.bits_per_dim(0.25), (0.5 + math.log(4)) / math.log(2) * one)
    torch.testing.assert_close(density.bits_standard_error, one / (4 * math.log(2)))
    levels = Elbo(one, 0 * one[:, None], one, one, 4, True, 1)
    torch.testing.assert_close(levels.bits_per_dim(), 0.5 / math.log(2) * one)


# ------------------------------------------------------------------------------------------------------------ bad input

X = torch.zeros(3, 2, dtype=F64)
MODEL = pair(SHORT)
ONE = torch.ones(1, dtype=F64)


@refuses(
    (lambda: elbo(wrong(torch.nn.Linear(2, 2)), X), T, "the bound needs a Denoiser, got Linear: wrap it, Network("),
    (lambda: elbo(pair(VPSDE()), X), T, "sums over the levels of a chain, such as DiscreteVPSDE, and VPSDE("),
    (lambda: elbo(pair(VPSDE()), X), T, "give times=, or ask continuous_elbo"),
    (lambda: elbo(MODEL, X, prior=wrong(SHORT)), T, "prior must be a Prior such as Standard() or Matched("),
    (lambda: elbo(MODEL, X.half()), T, "half-precision"),
    (lambda: elbo(MODEL, X.long()), T, "scale the data to floats first"),
    (
        lambda: elbo(MODEL, X.long(), decoder=GaussianDecoder(bins=Bins.tiling(17))),
        T,
        "x0 holds values as torch.int64: give their place",
    ),
    (
        lambda: elbo(MODEL, X + 0.01, decoder=GaussianDecoder(bins=Bins.tiling(17))),
        V,
        "x0 is not at the centres of Bins(",
    ),
    (lambda: elbo(MODEL, X[:0]), V, "empty batch"),
    (lambda: elbo(MODEL, X[:0], decoder=GaussianDecoder(bins=Bins.tiling(17))), V, "empty batch"),
    (lambda: elbo(MODEL, X[:, :1]), V, "x0 has event shape (1,)"),
    (lambda: elbo(MODEL, X / 0), V, "x0 holds 6 non-finite values"),
    (
        lambda: elbo(MODEL, X, variance="large"),
        V,
        "variance must be one of 'posterior', 'forward', 'learned', got",
    ),
    (
        lambda: elbo(MODEL, X, decoder=wrong("vdm")),
        T,
        "must be a GaussianDecoder or a CategoricalDecoder, got 'vdm'",
    ),
    (lambda: CategoricalDecoder(wrong(17)), T, "bins must be Bins, such as Bins.tiling(256), got int"),
    (lambda: GaussianDecoder(bins=wrong(17)), T, "bins must be Bins, such as Bins.tiling(256), got int"),
    (lambda: GaussianDecoder(std=0.0), V, "std must be positive and finite, got 0.0"),
    (lambda: elbo(MODEL, X, estimate=wrong(3)), T, "estimate must be an Estimate, such as Estimate(draws=4), got 3"),
    (lambda: continuous_elbo(MODEL, X, estimate=Estimate(importance=False)), V, "leave it out, here there is none"),
    (lambda: Estimate(control=-1.0), V, "control must be a scale >= 0"),
    (lambda: Estimate(draws=0), V, "draws must be at least 1, got 0"),
    (
        lambda: elbo(MODEL, X, levels=4),
        T,
        "levels= is no argument here: write estimate=Estimate(levels=...). A condition",
    ),
    (lambda: continuous_elbo(MODEL, X, sde=VPSDE()), T, "sde= is no argument here: write model.on(sde) for another"),
    (lambda: Estimate(levels=0), V, "levels must be at least 1, got 0"),
    (lambda: Estimate(chunk=wrong(2.5)), T, "chunk must be an integer, got 2.5"),
    (lambda: elbo(MODEL, X, times=[3.0]), V, "at least two times"),
    (lambda: elbo(MODEL, X, times=[3.0, 40.0]), V, "outside the [t_min, t_max]"),
    (lambda: elbo(MODEL, X, seed=[1, 2]), V, "got 2 seeds for 3 samples"),
    (lambda: elbo(MODEL, X, seed=wrong("a")), T, "seed must be an integer"),
    (lambda: continuous_elbo(pair(FlowSDE()), X), V, "the log-SNR is infinite at t_max of FlowSDE("),
    (lambda: continuous_elbo(pair(VPSDE()), X, lam=(-3.0, 9.0)), V, "lam must rise inside"),
    (lambda: continuous_elbo(pair(VPSDE()), X, lam=(2.0, 1.0)), V, "lam must rise inside"),
    (lambda: Elbo(ONE, ONE[None], ONE, ONE, 1, False, 1).bits_per_dim(), V, "give their positive bin_width, got None"),
    (
        lambda: Elbo(ONE, ONE[None], ONE, ONE, 1, False, 1).bits_per_dim(0.0),
        V,
        "give their positive bin_width, got 0.0",
    ),
    (lambda: Elbo(ONE, ONE[None], ONE, ONE, 1, True, 1).bits_per_dim(0.1), V, "leave bin_width out"),
)
def test_what_makes_no_sense_is_refused(call, error, text):
    check(call, error, text)


@pytest.mark.parametrize("bound", [elbo, continuous_elbo])
def test_a_bound_that_is_no_number_is_told(bound):
    x = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.1, 0.0]], dtype=F64)
    model = Network(lambda x, t: torch.where(x[:, :1] > 5, math.nan, 0.1 * x), SHORT)
    with pytest.warns(UserWarning, match="1 of 3 bounds are NaN or inf, and the others stand: .* first for row 1"):
        found = bound(model, x, seed=0)
    assert torch.isfinite(found.total).tolist() == [True, False, True]
