"""Claim: the bound through a codec lies below log p(x) by the KL of the encoder, each term its closed form.

The autoencoder is linear and Gaussian, so that log p(x), the posterior and each term are known.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from linear_codec import CODE, F64, MEAN, NOISE, B, D, Linear, W, codes, draw, latent_sampler, law, posterior, spread
from refusals import T, V, check, refuses, wrong
from zoo import DoubleWell

from sde_diffusion import VPSDE, SDESampler
from sde_diffusion.cli.forms.bounded import lines_of_bound, rows_of_bound, summary_of_bound
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.latent import LatentBound, LatentSampler, elbo
from sde_diffusion.likelihood import Bins, CategoricalDecoder, Density, Estimate, GaussianDecoder, Method, Rademacher

X = draw(64, seed=1)
CLEAN = Density(level=0.0)
CHEAP = Method(steps=8, solver_error=False)


def terms(x, off, stretch):
    """Reconstruction, prior and entropy in closed form, shape `(B, 3)`."""
    m, s = posterior(x)
    m, s = m + off * s, stretch * s
    square = (x - m @ W.mT - B).square().sum(1) + (s.square() * W.square().sum(0)).sum(1)
    reconstruction = -0.5 * square / NOISE**2 - D * math.log(NOISE * math.sqrt(2 * math.pi))
    prior = -0.5 * (((m - MEAN).square() + s.square()) / spread() + (2 * math.pi * spread()).log()).sum(1)
    return torch.stack([reconstruction, prior, (s.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(1)], 1)


def gap(off, stretch):
    """The KL of the encoder from the posterior."""
    return CODE * (0.5 * (off**2 + stretch**2 - 1) - math.log(stretch))


@pytest.mark.parametrize(("entropy", "off", "stretch"), [("drawn", 0.3, 1.2), ("exact", 0.0, 1.0), ("exact", 0.0, 0.5)])
def test_each_term_is_its_closed_form_and_the_sum_lies_below_by_the_divergence_of_the_encoder(entropy, off, stretch):
    found = elbo(latent_sampler(off, stretch), X, seed=0, density=CLEAN, method=CHEAP, entropy=entropy, draws=8)
    wanted, truth = terms(X, off, stretch), law().log_prob(X)
    assert torch.allclose(wanted.sum(1), truth - gap(off, stretch))
    miss = torch.stack([found.reconstruction, found.prior, found.entropy], 1) - wanted
    error = found.term_errors.square().sum(0).sqrt() / len(X)
    assert bool((miss.mean(0).abs() <= 4 * error + 1e-3).all()), (miss.mean(0), error)  # 1e-3: of few steps
    assert found.mean <= float(truth.mean()) + 4 * found.mean_standard_error + 1e-3
    assert abs(found.mean - float(truth.mean()) + gap(off, stretch)) < 4 * found.mean_standard_error + 1e-3
    assert torch.allclose(found.value, found.reconstruction + found.prior + found.entropy)
    assert bool((found.term_errors[:, 2] == 0).all()) == (entropy == "exact")


def test_with_the_posterior_as_encoder_each_value_is_log_p_within_the_error_that_it_tells():
    found = elbo(latent_sampler(), X, seed=0, density=CLEAN, draws=2)
    off = (found.value - law().log_prob(X)).abs()
    assert float(off.max()) < 1e-4
    assert bool((off <= 4 * torch.hypot(found.standard_error, found.solver_error)).all())
    assert found.by == "log_prob"
    assert found.level == 0.0
    default = elbo(latent_sampler(), X, seed=0, draws=2)
    assert float((default.value - law().log_prob(X)).abs().max()) < 0.05
    assert default.level > 0
    assert float(default.solver_error.max()) < 1e-3
    noisy = elbo(latent_sampler(level=default.level), X, seed=0, draws=2).value - law(default.level).log_prob(X)
    assert float(noisy.abs().max()) < 1e-4  # of another density, which it names, it is the bound, to the solver's error


def test_by_the_bound_of_the_diffusion_it_is_the_bound_of_a_bound_and_says_so():
    found = elbo(latent_sampler(), X, seed=0, estimate=Estimate(levels=32), draws=4)
    truth = float(law().log_prob(X).mean())
    assert abs(found.mean - truth) < 0.05 + 4 * found.mean_standard_error
    assert found.by == "bound"
    assert math.isnan(found.level)
    assert not found.solver_error.any()
    assert found.nfe == 4 * 2 * 33
    assert "codes by the bound of the diffusion" in str(found)


@pytest.mark.slow
def test_the_intervals_of_the_draws_and_of_the_rows_each_cover_in_93_percent_of_200_trials():
    # 95 % intervals, whose count over 200 trials has a standard deviation of 3.1: with other seeds 185 to 194
    trials, n, off, stretch = 200, 64, 0.2, 1.3
    x = draw(trials * n, seed=0)
    found = elbo(latent_sampler(off, stretch), x, seed=0, density=CLEAN, method=CHEAP, draws=3)
    these = (law().log_prob(x) - gap(off, stretch)).reshape(trials, n).mean(1)
    everywhere = float(-law().entropy()) - gap(off, stretch)
    hits = torch.zeros(2)
    for i in range(trials):
        part = replace(found, draws=found.draws[:, i * n : (i + 1) * n], solver_error=found.solver_error[:n])
        for k, (mean, population) in enumerate(((float(these[i]), False), (everywhere, True))):
            low, high = part.interval(population=population)
            hits[k] += low < mean < high
    print("covered in 200 trials: these rows, their law", hits.tolist())
    assert bool((hits >= 0.93 * trials).all()), hits
    assert bool((hits < trials).all()), hits
    with pytest.raises(ValueError, match="coverage must lie between 0 and 1, got 2"):
        found.interval(2)


@pytest.mark.slow
def test_probes_of_the_divergence_are_part_of_the_spread_of_the_draws():
    sde = VPSDE()
    mixed = torch.tensor([[1.2, 0.4, 0.0], [0.4, 0.8, 0.2], [0.0, 0.2, 0.5]], dtype=F64)
    sampler = LatentSampler(SDESampler(sde, Gaussian(sde, MEAN, mixed)), Linear())
    exact, probed = (
        elbo(sampler, X[:8], seed=0, density=CLEAN, draws=9, entropy="exact", method=replace(CHEAP, trace=trace))
        for trace in (None, Rademacher(1))
    )
    assert torch.equal(exact.draws[..., 0], probed.draws[..., 0])  # the same codes
    off = exact.draws[..., 1] - probed.draws[..., 1]
    assert float(off.std(0).min()) > 0.01  # of each draw its own
    assert bool((off.mean(0).abs() < 5 * off.std(0) / 3).all())


def test_a_row_depends_on_its_seed_alone():
    sampler = latent_sampler(0.1, 1.1)
    whole = elbo(sampler, X[:7], seed=3, method=CHEAP)
    parts = elbo(sampler, X[:7], seed=3, method=CHEAP, batch_size=3)
    alone = elbo(sampler, X[5:6], seed=8, method=CHEAP)
    assert torch.allclose(whole.draws, parts.draws, rtol=1e-9)
    assert torch.allclose(whole.draws[:, 5], alone.draws[:, 0], rtol=1e-9)
    assert len(parts) == 7


def test_bins_make_it_a_bound_on_a_probability_in_bits():
    bins = Bins(128, -8.0, 0.125)
    x = bins.centre(((X + 8.0) / 0.125).round().long(), F64)
    sampler = latent_sampler()
    found = elbo(sampler, x, seed=0, decoder=GaussianDecoder(bins=bins), density=CLEAN, method=CHEAP)
    density = elbo(sampler, x, seed=0, density=CLEAN, method=CHEAP)
    assert found.discrete
    off = found.bits_per_dim() - density.bits_per_dim(0.125)  # bins a little narrower than the noise of the decoder
    assert float(off.abs().max()) < 0.02
    assert torch.allclose(found.bits_per_dim() * D * math.log(2), -found.value)
    assert torch.allclose(found.bits_standard_error * D * math.log(2), found.standard_error)
    with pytest.raises(ValueError, match="leave bin_width out"):
        found.bits_per_dim(0.125)
    with pytest.raises(ValueError, match="give their positive bin_width"):
        density.bits_per_dim()


def test_an_encoder_that_is_too_narrow_is_drawn_from_as_wide_as_the_posterior():
    wide = elbo(latent_sampler(stretch=0.5), X[:5], seed=0, stretch=2.0, method=CHEAP)
    assert torch.allclose(wide.draws, elbo(latent_sampler(), X[:5], seed=0, method=CHEAP).draws)
    assert "4 draws 2 times as wide" in str(wide)


def test_it_says_in_words_what_it_is():
    found = elbo(latent_sampler(0.1, 1.1), X[:4], seed=0)
    assert str(found).startswith("log p >= ")
    for part in ("(draws)", "(over samples)", "reconstruction", "prior", "entropy", "log_prob at noise level 0.0105"):
        assert part in str(found)
    assert repr(found) == f"<LatentBound: {found}>"
    one = elbo(latent_sampler(), X[:1], seed=0, draws=1, method=CHEAP)
    assert bool(one.standard_error.isnan().all())
    assert math.isnan(one.population_standard_error)
    with pytest.raises(ValueError, match="wanted parts of one bound"):
        LatentBound.join([found, one])


def test_a_plain_noise_of_the_decoder_may_be_given_instead():
    sampler, codec = latent_sampler(), Linear()
    codec.noise = wrong(None)
    found = elbo(LatentSampler(codes(), codec), X[:3], seed=0, decoder=GaussianDecoder(NOISE), method=CHEAP)
    assert torch.equal(found.draws, elbo(sampler, X[:3], seed=0, method=CHEAP).draws)


def altered(**changes):
    """A sampler whose codec is another in some of its parts."""
    codec = Linear()
    for name, value in changes.items():
        setattr(codec, name, value)
    return LatentSampler(codes(), codec)


class Flat(Linear):
    """An encoder without spread."""

    def encode(self, x):
        mean, std = super().encode(x)
        return mean, 0 * std


GENERAL = SDESampler(DoubleWell(), lambda x, t: -x, shape=(CODE,), steps=5)


def test_a_report_of_rows_none_of_which_converged_keeps_them_and_says_so() -> None:
    found = elbo(latent_sampler(), X[:2], estimate=Estimate(levels=2), draws=2, seed=0)
    lost = replace(found, draws=torch.full_like(found.draws, math.nan))
    rows = rows_of_bound(lost, torch.zeros(2), 1.0)
    about = summary_of_bound(lost, rows)
    assert [row["converged"] for row in rows] == [False, False]
    assert lines_of_bound(about, 1.0) == ["none of 2 converged: the rows say what came, and there is no mean of them"]


@refuses(
    (lambda: elbo(wrong(codes()), X), T, "sampler must be a LatentSampler(sampler, codec), got SDESampler"),
    (lambda: elbo(latent_sampler(), X, method=CHEAP, estimate=Estimate()), T, "give one"),
    (lambda: elbo(latent_sampler(), X, method=wrong(3)), T, "method must be a Method"),
    (lambda: elbo(latent_sampler(), X, estimate=wrong(3)), T, "estimate must be an Estimate"),
    (lambda: elbo(latent_sampler(), X, estimate=Estimate(), density=CLEAN), T, "the bound by estimate= has none"),
    (lambda: elbo(latent_sampler(), X, density=Density(correct=True)), V, "makes the prior no density"),
    (lambda: elbo(latent_sampler(), X, density=wrong(0.0)), T, "density must be a Density"),
    (lambda: elbo(latent_sampler(), X, entropy="none"), V, "entropy must be one of 'exact', 'drawn', got 'none'"),
    (lambda: elbo(latent_sampler(), X, decoder=wrong(CategoricalDecoder(Bins.tiling(4)))), T, "a GaussianDecoder"),
    (lambda: elbo(latent_sampler(), X, stretch=0.0), V, "stretch must be positive and finite, got 0.0"),
    (lambda: elbo(latent_sampler(), X, draws=0), V, "draws must be at least 1, got 0"),
    (lambda: elbo(latent_sampler(), X, noise=0.1), T, "noise= is no argument here: write decoder=GaussianDecoder(std"),
    (lambda: elbo(latent_sampler(), X, level=0.1), T, "level= is no argument here: write density=Density(level=...)"),
    (lambda: elbo(latent_sampler(), X[:, :4]), V, "x0 has event shape (4,)"),
    (lambda: elbo(latent_sampler(), X[:0]), V, "x0 is an empty batch"),
    (lambda: elbo(latent_sampler(), X / 0), V, "x0 holds"),
    (lambda: elbo(latent_sampler(), X.long()), T, "x0 has dtype torch.int64"),
    (lambda: elbo(altered(noise=None), X), V, "Linear does not know the noise of its decoder"),
    (lambda: elbo(altered(noise=0.0), X), V, "the noise of the codec must be positive and finite, got 0.0"),
    (lambda: elbo(LatentSampler(codes(), Flat()), X), V, "Flat.encode answered a standard deviation of 0"),
    (
        lambda: elbo(LatentSampler(GENERAL, Linear().float()), X, estimate=Estimate()),
        T,
        "is a general SDE: leave it out",
    ),
    (lambda: latent_sampler().log_prob(X), T, "latent.elbo(sampler, x0) bounds it from below"),
    (lambda: latent_sampler().sample_with_log_prob(3), T, "latent.elbo(sampler, x) bounds the density"),
)
def test_what_has_no_bound_is_refused_at_the_door(call, error, text):
    check(call, error, text)
