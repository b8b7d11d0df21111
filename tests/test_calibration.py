"""Claim: the p-values of calibration are uniform where posteriors are right, and small where they are not."""

from __future__ import annotations

import math

import pytest
import torch
from refusals import check, refuses, wrong

from sde_diffusion import VPSDE
from sde_diffusion.denoiser.analytic import Gaussian, GaussianMixture
from sde_diffusion.guidance import DPS, Matrix, Nonlinear
from sde_diffusion.nets import MLP
from sde_diffusion.testing import check_posterior, coverage, ranks, tarp
from sde_diffusion.testing.posterior.calibration import uniform_p_values

TESTS = (ranks, coverage, tarp)


def posteriors(n, draws, d, seed, *, shift=0.0, narrow=1.0, turned=False):
    """Parameters and samples of their posteriors, two Gaussians with a correlation of 0.8, or wrong ones."""
    stream = torch.Generator().manual_seed(seed)
    z = torch.randn(n, draws + 1, d, generator=stream, dtype=torch.float64)
    centre = torch.randn(n, 1, d, generator=stream, dtype=torch.float64)
    mixed = z.clone()
    mixed[..., 1:] = 0.8 * z[..., :1] + 0.6 * z[..., 1:]
    if turned:
        mixed[:, 1:, 1:] = -mixed[:, 1:, 1:]
    x = centre + mixed
    x[:, 1:] = centre + shift + narrow * (x[:, 1:] - centre)
    return x[:, 0], x[:, 1:]


@pytest.mark.parametrize("test", TESTS)
def test_p_values_of_right_posteriors_are_uniform(test):
    found = [test(*posteriors(40, 19, 1 if test is ranks else 3, seed), seed=seed).p_value for seed in range(300)]
    p = torch.tensor(found, dtype=torch.float64)
    for level in (0.05, 0.2, 0.5, 0.8):
        share, se = float((p < level).double().mean()), math.sqrt(level * (1 - level) / 300)
        print(f"p < {level}: {share:.3f}, SE {se:.3f}")
        assert abs(share - level) < 4 * se


def test_of_many_coordinates_the_least_p_value_is_corrected():
    found = torch.stack([ranks(*posteriors(40, 19, 4, seed), seed=seed).p_values for seed in range(5)])
    assert found.shape == (5, 4)
    one = ranks(*posteriors(40, 19, 4, 0))
    assert one.p_value == pytest.approx(1 - (1 - float(one.p_values.min())) ** 4)


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("fault", [{"narrow": 0.6}, {"narrow": 1.6}, {"shift": 0.8}], ids=["narrow", "wide", "shifted"])
def test_a_wrong_width_and_a_shift_are_caught_by_every_statistic(test, fault):
    found = test(*posteriors(300, 60, 2, 0, **fault))
    print(found)
    assert found.p_value < 1e-3


def test_a_dependency_of_the_wrong_sign_is_caught_jointly_and_not_by_ranks():
    theta, samples = posteriors(1000, 60, 2, 0, turned=True)
    assert ranks(theta, samples).p_value > 0.01
    assert min(coverage(theta, samples).p_value, tarp(theta, samples).p_value) < 1e-3


def test_regions_hold_the_parameter_as_often_as_they_say():
    theta, samples = posteriors(2000, 50, 3, 0)
    for test in (ranks, coverage):
        share, se = test(theta, samples).covered(0.9)
        assert se == pytest.approx(math.sqrt(0.09 / 2000))
        assert abs(share - 0.9) < 4 * se
    narrow, _ = coverage(*posteriors(2000, 50, 3, 0, narrow=0.5)).covered(0.9)
    assert narrow < 0.6


def test_places_are_uniform_for_numbers_that_tie():
    whole = torch.randint(0, 3, (500, 21, 1), generator=torch.Generator().manual_seed(0)).double()
    assert ranks(whole[:, 0], whole[:, 1:]).p_value > 0.01


def test_points_of_ones_own_are_taken():
    theta, samples = posteriors(50, 20, 2, 0)
    far = (theta - 1.0).square().div(samples.flatten(0, 1).std(0).square()).sum(1)
    others = (samples - 1.0).square().div(samples.flatten(0, 1).std(0).square()).sum(2)
    found = tarp(theta, samples, references=torch.ones_like(theta))
    below = (others < far[:, None]).sum(1)
    assert ((found.places[:, 0] * 21).floor() == below).all()
    assert repr(found).startswith("tarp of 50 parameters in 20 samples each: p = 0.")


@pytest.mark.parametrize(("a2", "p"), [(0.774, 0.5), (1.248, 0.25), (1.933, 0.1), (2.492, 0.05), (3.857, 0.01)])
def test_the_law_of_anderson_and_darling_is_that_of_their_table(a2, p):
    u = torch.linspace(0, 1, 4002, dtype=torch.float64)[1:-1, None]
    low, power, high = 1.0, 1.0, 10.0
    for _ in range(40):  # the power of u whose statistic is a2
        power = math.sqrt(low * high)
        v = (u**power).squeeze(1)
        i = 2 * torch.arange(1, len(v) + 1, dtype=torch.float64) - 1
        stat = -len(v) - float((i * (v.log() + torch.log1p(-v.flip(0)))).mean())
        low, high = (power, high) if stat < a2 else (low, power)
    assert float(uniform_p_values(u**power)[0]) == pytest.approx(p, rel=0.04)


def mixture():
    means = torch.tensor([[-3.0, 0.0], [3.0, 1.0], [0.0, -3.0]], dtype=torch.float64)
    return GaussianMixture(VPSDE(), torch.ones(3, dtype=torch.float64), means, 0.5)


ROW = Matrix(torch.tensor([[1.0, 0.5]], dtype=torch.float64))


def exact(y, n, seed):
    return mixture().posterior(ROW.a, y, 1.0).sample(n, seed=seed)


def test_exact_samples_pass_and_draw_the_picture(tmp_path):
    found = check_posterior(mixture(), ROW, 1.0, exact)
    print(found)
    assert found.passed
    assert found.entries[0].measured == pytest.approx(1.0, abs=0.1)
    assert len(found.curves) == 2
    found.plot(tmp_path / "coverage.png")
    assert (tmp_path / "coverage.png").exists()
    assert "check_posterior(model, Matrix(" in str(found)


@pytest.mark.parametrize(
    ("fault", "claims"),
    [(lambda x: x + 0.5 * x.std(0), 2), (lambda x: x.mean(0) + 0.5 * (x - x.mean(0)), 3)],
    ids=["shifted", "narrow"],
)
def test_wrong_samples_are_told(fault, claims):
    found = check_posterior(mixture(), ROW, 1.0, lambda y, n, seed: fault(exact(y, n, seed)))
    assert len(found.failures) >= claims


@pytest.mark.slow
def test_moments_pass_on_a_gaussian_and_a_crude_rule_does_not():
    spread = torch.tensor([[1.0, 0.4], [0.4, 0.8]], dtype=torch.float64)
    model = Gaussian(VPSDE(), torch.tensor([0.5, -1.0], dtype=torch.float64), spread)
    assert check_posterior(model, ROW, 0.5, problems=16, draws=64).passed
    assert not check_posterior(model, ROW, 0.5, DPS(), problems=16, draws=64).passed


def test_what_draw_raises_is_a_row_that_failed():
    found = check_posterior(mixture(), ROW, 1.0, lambda y, n, seed: torch.zeros(n, 3), problems=8, draws=4)
    assert len(found.failures) == 4
    assert "draw answered (4, 3), wanted 4 samples, shape (4, 2)" in str(found)


THETA, SAMPLES = torch.zeros(10, 2), torch.zeros(10, 5, 2)


@refuses(
    (lambda: ranks(wrong([1.0]), SAMPLES), TypeError, "theta must be a torch.Tensor"),
    (lambda: ranks(THETA, SAMPLES[:9]), ValueError, "shape (10, 'S', 2), got (9, 5, 2)"),
    (lambda: ranks(THETA, SAMPLES[:, 0]), ValueError, "got (10, 2)"),
    (lambda: tarp(THETA, SAMPLES[:, :1]), ValueError, "samples holds 1 for each parameter, which has no rank"),
    (lambda: coverage(THETA[:5], SAMPLES[:5]), ValueError, "at least 8 parameters"),
    (lambda: coverage(THETA, SAMPLES).covered(90), ValueError, "between 0 and 1, got 90"),
    (lambda: tarp(THETA, SAMPLES * math.nan), ValueError, "samples holds 100 non-finite values"),
    (
        lambda: tarp(THETA, SAMPLES, references=THETA[:3]),
        ValueError,
        "wanted that of theta, (10, 2)",
    ),
    (lambda: check_posterior(wrong(MLP(2)), ROW, 1.0), TypeError, "which a MLP does not have: give a twin"),
    (lambda: check_posterior(mixture(), wrong("row"), 1.0), TypeError, "measurement must be a linear one"),
    (lambda: check_posterior(mixture(), Nonlinear(torch.sin), 1.0), TypeError, "measurement must be a linear one"),
    (lambda: check_posterior(mixture(), ROW, 1.0, problems=4), ValueError, "problems must be at least 8"),
    (lambda: check_posterior(mixture(), ROW, 1.0, draws=1), ValueError, "draws must be at least 2"),
    (lambda: check_posterior(mixture(), ROW, 1.0, wrong("DPS")), TypeError, "draw must be a function draw(y, n, seed)"),
)
def test_what_is_refused(call, error, text):
    check(call, error, text)
