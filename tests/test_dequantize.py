"""Claim: every dequantisation bounds the log-probability of the levels, by as much as quadrature says.

In one dimension the probability of a level is the mass of a density in its bin. Statistical tests have fixed seeds, use
many samples of one level, each with its own stream, and hold by 4 standard errors.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from refusals import T, V, check, refuses, wrong
from scipy.integrate import quad

from sde_diffusion import EDMSDE, Matched, Problem, SDESampler, data, dequantize
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.likelihood import Bins, Method, bits_per_dim

F64 = torch.float64
BINS = Bins(6, -1.0, 0.5)
N = 2000


def log_density(x):
    """Half N(-0.6, 0.15^2), half N(0.5, 0.4^2), independent coordinates."""
    parts = torch.stack(
        [
            torch.distributions.Normal(torch.tensor(m, dtype=F64), torch.tensor(s, dtype=F64)).log_prob(x.to(F64))
            for m, s in ((-0.6, 0.15), (0.5, 0.4))
        ]
    )
    return (torch.logsumexp(parts, 0) - math.log(2)).reshape(len(x), -1).sum(1)


def p(x):
    return math.exp(float(log_density(torch.tensor([[x]], dtype=F64))))


def cdf(x):
    return 0.5 * sum(0.5 * math.erfc((m - x) / s / math.sqrt(2)) for m, s in ((-0.6, 0.15), (0.5, 0.4)))


def centre(v):
    return BINS.first + BINS.width * v


def truth(v):
    return math.log(cdf(centre(v) + 0.25) - cdf(centre(v) - 0.25))


def at(v, n=N, d=1):
    """`n` samples at level `v`."""
    return BINS.centre(torch.full((n, d), v), F64)


def mean_of(found):
    value = found.value.detach()
    return float(value.mean()), float(value.std()) / math.sqrt(len(value))


def normal_mean(v, std, weight):
    """The mean of log p, and of `weight`, over the bin under a normal about its centre, cut off at its edges."""
    h = BINS.width / 2
    mass = math.erf(h / std / math.sqrt(2))

    def of(f):
        def integrand(x):
            return f(x) * math.exp(-0.5 * ((x - centre(v)) / std) ** 2) / (math.sqrt(2 * math.pi) * std * mass)

        return quad(integrand, centre(v) - h, centre(v) + h, epsabs=1e-11)[0]

    return of(lambda x: math.log(p(x))), of(weight)


every_level = pytest.mark.parametrize("v", [0, 1, 2, 4])

# ------------------------------------------------------------------------------------------------------------- uniform


@every_level
def test_one_uniform_draw_has_its_quadrature_and_is_a_bound(v):
    expected = quad(lambda x: math.log(p(x)) / 0.5, centre(v) - 0.25, centre(v) + 0.25)[0] + math.log(0.5)
    mean, error = mean_of(dequantize.uniform(log_density, at(v), BINS, seed=0))
    print(mean, expected, error, truth(v))
    assert abs(mean - expected) < 4 * error
    assert expected < truth(v)


@every_level
def test_more_uniform_draws_rise_towards_the_truth(v):
    found = [mean_of(dequantize.uniform(log_density, at(v, 8000), BINS, draws=k, seed=0)) for k in (1, 2, 8)]
    print(found, truth(v))
    for (low, a), (high, b) in pairwise(found):
        assert high - low > 4 * math.hypot(a, b)
    mean, error = mean_of(dequantize.uniform(log_density, at(v, 500), BINS, draws=100, seed=0))
    assert -0.03 < mean - truth(v) < 4 * error


@pytest.mark.parametrize("draws", [1, 2, 7])
def test_a_flat_density_gives_its_mass_at_any_number_of_draws(draws):
    """What forgetting the 1/K would break, by log K."""
    found = dequantize.uniform(
        lambda x: torch.full((len(x),), -3 * math.log(2.0)), at(1, 5, 3), BINS, draws=draws, seed=0
    )
    torch.testing.assert_close(found.value, torch.full((5,), 3 * math.log(0.25), dtype=F64))
    torch.testing.assert_close(found.bits_per_dim(), torch.full((5,), 2.0, dtype=F64))
    check(lambda: found.bits_per_dim(wrong(0.5)), V, "whose bins have a width: leave bin_width out")
    if draws > 1:
        assert float(found.standard_error.max()) < 1e-12


def test_its_standard_error_is_that_of_the_jackknife():
    weights = []

    def spy(x):
        weights.append(log_density(x) + math.log(0.5))
        return log_density(x)

    found = dequantize.uniform(spy, at(1, 4), BINS, draws=3, seed=0)
    w = torch.stack(weights)
    torch.testing.assert_close(found.value, torch.logsumexp(w, 0) - math.log(3))
    left = torch.stack([torch.logsumexp(w[[j for j in range(3) if j != k]], 0) - math.log(2) for k in range(3)])
    torch.testing.assert_close(found.standard_error, (2 / 3 * (left - left.mean(0)).square().sum(0)).sqrt())


def test_its_standard_error_is_what_repetition_shows():
    for importance_draws in (16, 64):
        found = dequantize.uniform(log_density, at(2), BINS, draws=importance_draws, seed=0)
        ratio = float(found.value.std() / found.standard_error.square().mean().sqrt())
        print(importance_draws, ratio)
        assert 0.85 < ratio < 1.15
    found = dequantize.truncated_normal(log_density, at(2), BINS, std=0.2, draws=8, seed=0)
    ratio = float(found.value.std() / found.standard_error.square().mean().sqrt())
    assert 0.9 < ratio < 1.1


# ---------------------------------------------------------------------------------------------------- truncated normal


@every_level
@pytest.mark.parametrize("std", [0.04, 0.125, 0.5])
def test_the_truncated_normal_has_its_quadrature_and_is_a_bound(v, std):
    log_p, spent = normal_mean(v, std, lambda x: 0.5 * ((x - centre(v)) / std) ** 2)
    mass = math.erf(0.25 / std / math.sqrt(2))
    expected = log_p + spent + math.log(math.sqrt(2 * math.pi) * std * mass)
    mean, error = mean_of(dequantize.truncated_normal(log_density, at(v), BINS, std=std, seed=0))
    print(mean, expected, error, truth(v))
    assert abs(mean - expected) < 4 * error
    assert expected < truth(v)


def test_a_wide_truncated_normal_is_uniform():
    x = at(2, 50, 3)
    a = dequantize.truncated_normal(log_density, x, BINS, std=1e4, seed=0)
    b = dequantize.uniform(log_density, x, BINS, seed=0)
    torch.testing.assert_close(a.value, b.value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("d", [1, 2])
def test_importance_weights_bring_every_proposal_to_the_truth(d):
    x = at(2, 300, d)
    for found in (
        dequantize.truncated_normal(log_density, x, BINS, std=0.2, draws=300, importance=True, seed=0),
        dequantize.uniform(log_density, x, BINS, draws=300, seed=0),
    ):
        mean, error = mean_of(found)
        print(mean - d * truth(2), error)
        assert -0.02 < mean - d * truth(2) < 4 * error


# ---------------------------------------------------------------------------------------------------- Gaussian encoder


@every_level
def test_the_gaussian_encoder_has_its_quadrature_and_is_a_bound(v):
    std = 0.12

    def given(z):
        e = [math.exp(-0.5 * ((z - centre(k)) / std) ** 2) for k in range(6)]
        return e[v] / sum(e)

    def normal(z):
        return math.exp(-0.5 * ((z - centre(v)) / std) ** 2) / (math.sqrt(2 * math.pi) * std)

    ends = centre(v) - 8 * std, centre(v) + 8 * std
    expected = quad(lambda z: normal(z) * (math.log(p(z)) + math.log(given(z))), *ends, epsabs=1e-10)[0]
    expected += 0.5 + math.log(math.sqrt(2 * math.pi) * std)
    exact = math.log(quad(lambda z: p(z) * given(z), -4, 4, points=[-1, -0.6, 0, 0.5], epsabs=1e-12, limit=200)[0])
    mean, error = mean_of(dequantize.gaussian_encoder(log_density, at(v), BINS, std=std, seed=0))
    print(mean, expected, exact)
    assert abs(mean - expected) < 4 * error
    assert expected < exact
    many, error = mean_of(
        dequantize.gaussian_encoder(log_density, at(v, 200), BINS, std=std, draws=400, importance=True, seed=0)
    )
    assert -0.02 < many - exact < 4 * error


# -------------------------------------------------------------------------------------------------------- units, seeds


def test_the_units_of_the_data_do_not_matter():
    """Density of x against that of y = (x - 0.3) / 0.4, bins and noise scaled along: the same probabilities."""
    mean, std = 0.3, 0.4

    def of_y(y):
        return log_density(mean + std * y) + y.shape[1] * math.log(std)

    x = at(2, 20, 3)
    scaled = BINS.scaled(mean, std)
    y = (x - mean) / std
    pairs = [
        (
            dequantize.uniform(log_density, x, BINS, draws=3, seed=0),
            dequantize.uniform(of_y, y, scaled, draws=3, seed=0),
        ),
        (
            dequantize.truncated_normal(log_density, x, BINS, std=0.1, seed=0),
            dequantize.truncated_normal(of_y, y, scaled, std=0.1 / std, seed=0),
        ),
        (
            dequantize.gaussian_encoder(log_density, x, BINS, std=0.1, seed=0),
            dequantize.gaussian_encoder(of_y, y, scaled, std=0.1 / std, seed=0),
        ),
    ]
    for a, b in pairs:
        torch.testing.assert_close(a.value, b.value, rtol=0, atol=1e-9)
    back = dequantize.rescaled(of_y, mean, std)
    torch.testing.assert_close(back(x), log_density(x), rtol=0, atol=1e-9)
    by_pixel = dequantize.rescaled(of_y, torch.full((3,), mean), torch.full((3,), std, dtype=F64))
    torch.testing.assert_close(by_pixel(x), log_density(x), rtol=0, atol=1e-6)


def test_one_uniform_draw_is_the_bits_of_the_dequantised_density():
    x = at(2, 4, 3)
    points = []

    def spy(x):
        points.append(x)
        return log_density(x)

    found = dequantize.uniform(spy, x, BINS, seed=0)
    torch.testing.assert_close(found.bits_per_dim(), bits_per_dim(log_density(points[0]), 3, bin_width=0.5))


def test_a_sample_depends_on_its_own_seed_alone():
    x = torch.cat([at(1, 2, 2), at(2, 3, 2)])
    whole = dequantize.uniform(log_density, x, BINS, draws=4, seed=[5, 9, 2, 0, 1])
    part = dequantize.uniform(log_density, x[1:3], BINS, draws=4, seed=[9, 2])
    torch.testing.assert_close(part.value, whole.value[1:3], rtol=0, atol=1e-12)
    torch.testing.assert_close(part.standard_error, whole.standard_error[1:3], rtol=0, atol=1e-12)


def test_with_a_sampler_it_is_the_probability_of_its_law():
    """Gaussian data, whose probability flow is exact: the mass of N(m, v + S^2) in the bin."""
    sde = EDMSDE(0.01, 80.0)
    model = Gaussian(sde, torch.tensor([0.2], dtype=F64), 0.3)
    sampler = SDESampler(Problem(sde, model, prior=Matched(0.2, 0.3)))
    found = dequantize.uniform(
        lambda x: sampler.log_prob(x, method=Method(steps=12)).value, at(2, 200), BINS, draws=8, seed=0
    )
    mean, error = mean_of(found)
    s = math.sqrt(2 * (0.3 + 1e-4))
    exact = math.log(0.5 * (math.erf((centre(2) + 0.25 - 0.2) / s) - math.erf((centre(2) - 0.25 - 0.2) / s)))
    print(mean - exact, error)
    assert abs(mean - exact) < 4 * error < 0.01


# ---------------------------------------------------------------------------------------------------------------- bins


def test_the_bins_of_the_digits_are_those_of_the_data():
    bins, v = Bins.tiling(17), torch.arange(17).reshape(1, 1, 17)
    assert bins.width == pytest.approx(data.BIN_WIDTH)
    torch.testing.assert_close(bins.centre(v), 2 * (v + 0.5) / 17 - 1)
    assert torch.equal(bins.index(bins.centre(v)), v)
    assert torch.equal(data.quantise(bins.centre(v)), v)


def test_both_scalings_of_bytes_have_their_own_width():
    v = torch.tensor([0, 1, 255])
    torch.testing.assert_close(Bins.spanning(256).centre(v), v / 127.5 - 1)
    assert Bins.spanning(256).width == pytest.approx(2 / 255)
    torch.testing.assert_close(Bins.tiling(256, 0.0, 1.0).centre(v), (v + 0.5) / 256)
    assert Bins.tiling(256, 0.0, 1.0).width == 1 / 256


def test_float32_data_of_65536_levels_still_find_their_bins():
    bins, v = Bins.spanning(65536), torch.arange(65536)[:, None]
    assert torch.equal(bins.index(bins.centre(v, torch.float32)), v)


# ----------------------------------------------------------------------------------------------------------- bad input

X = at(2, 3, 2)


@refuses(
    (lambda: Bins(1, 0.0, 1.0), V, "at least two values"),
    (lambda: Bins(wrong(2.5), 0.0, 1.0), T, "count must be an integer"),
    (lambda: Bins(4, 0.0, 0.0), V, "a finite first centre and a positive width, got 0.0, 0.0"),
    (lambda: Bins.tiling(4, 1.0, -1.0), V, "a positive width"),
    (lambda: BINS.centre(X), T, "centre takes integer values, got torch.float64"),
    (lambda: BINS.centre(torch.tensor([6])), V, "values run from 0 to 5, got 6 to 6"),
    (lambda: dequantize.uniform(log_density, X.long(), BINS), T, "x holds values as torch.int64: give their place"),
    (lambda: dequantize.uniform(log_density, X + 0.1, BINS), V, "6 of 6 values lie between them"),
    (lambda: dequantize.uniform(log_density, X + 5.0, BINS), V, "values run from 12 to 12"),
    (lambda: dequantize.uniform(log_density, X.half(), BINS), T, "half-precision"),
    (lambda: dequantize.uniform(log_density, X[:0], BINS), V, "empty batch"),
    (lambda: dequantize.uniform(log_density, X * math.nan, BINS), V, "non-finite"),
    (lambda: dequantize.uniform(log_density, X, BINS, draws=0), V, "draws must be at least 1"),
    (lambda: dequantize.uniform(log_density, X, BINS, seed=[1]), V, "got 1 seeds for 3 samples"),
    (lambda: dequantize.uniform(wrong(lambda x: 1.0), X, BINS), T, "lambda x: sampler.log_prob(x).value"),
    (
        lambda: dequantize.uniform(lambda x: x, X, BINS),
        V,
        "log_prob answered shape (3, 2), wanted one value per sample",
    ),
    (lambda: dequantize.truncated_normal(log_density, X, BINS, std=0.0), V, "std must be positive and finite, got 0.0"),
    (
        lambda: dequantize.gaussian_encoder(log_density, X, BINS, std=-1.0),
        V,
        "std must be positive and finite, got -1.0",
    ),
    (
        lambda: dequantize.truncated_normal(log_density, X + 0.1, BINS, std=1.0),
        V,
        "Give centre(v), with no noise added",
    ),
    (
        lambda: dequantize.gaussian_encoder(log_density, X + 0.1, BINS, std=1.0),
        V,
        "Give centre(v), with no noise added",
    ),
)
def test_what_makes_no_sense_is_refused(call, error, text):
    check(call, error, text)
