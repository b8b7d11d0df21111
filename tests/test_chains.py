"""Claim: a discrete chain of any length and schedule is the published one: its betas, its indices as diffusers counts
them, and its end, with or without signal."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from refusals import check, wrong

from sde_diffusion import DiscreteVPSDE, Network, SDESampler, grids, predict
from sde_diffusion.denoiser.analytic import Gaussian, isotropic_mixture
from sde_diffusion.likelihood import Density, Exact, Method
from sde_diffusion.noise import Streams
from sde_diffusion.solvers import DDIM, Angle, DormandPrince

F64 = torch.float64
TOL: Any = {"rtol": 0.0, "atol": 1e-10}


def last_alpha(betas):
    return math.sqrt(math.prod(1 - b for b in betas))


# ------------------------------------------------------------------------------------------------------------- lengths


def mean_of_samples(sde, m=2.0, std=0.5):
    """Of data N(m, std^2), from the prior N(0, sigma_T^2): the flow is linear, so it is where x_T = 0 goes."""
    model = Gaussian(sde, torch.tensor([m], dtype=F64), std * std)
    sampler = SDESampler(sde, model, solver=Angle(DormandPrince(1e-9, 1e-9), std))
    return float(sampler.sample(x_T=torch.zeros(1, 1, dtype=F64)))


def theory(betas, m=2.0, v=0.25):
    """The flow keeps the deviation from the mean in standard deviations; the final jump is the posterior mean."""
    a, noise = last_alpha(betas), betas[0] / (1 - betas[0])  # noise: sigma^2 / alpha^2 of index 0
    return m - m * a / math.sqrt(a * a * v + 1 - a * a) * v / math.sqrt(v + noise)


@pytest.mark.parametrize("n", [50, 100, 200, 1000])
def test_a_linear_chain_of_any_length_samples_the_mean_of_the_data(n):
    betas = np.linspace(1e-4 * 1000 / n, 0.02 * 1000 / n, n)
    found = mean_of_samples(DiscreteVPSDE.linear(n))
    assert found == pytest.approx(theory(betas), abs=1e-6)
    assert found == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("n", [50, 100, 200])
def test_the_unscaled_chain_is_there_by_name_and_misses_the_mean_by_what_theory_says(n):
    betas = torch.linspace(1e-4, 0.02, n, dtype=F64).tolist()
    sde = DiscreteVPSDE.linear(n, scaled=False)
    assert sde == DiscreteVPSDE.linear(n, 1e-4, 0.02) == DiscreteVPSDE(betas)
    found = mean_of_samples(sde)
    assert found == pytest.approx(theory(betas), abs=1e-6)
    assert found < 1.8


def test_a_chain_too_short_to_be_scaled_is_refused_with_what_to_do():
    check(
        lambda: DiscreteVPSDE.linear(20),
        ValueError,
        "linear(20) scales the last beta, 0.02 for a thousand levels, to 1, and it must stay below 1: take more than "
        "20 levels, cosine(20), or the betas as they are, linear(20, scaled=False)",
    )
    assert DiscreteVPSDE.linear(21).t_max == 20


def test_the_cosine_chain_is_that_of_its_paper():
    n = 40

    def f(t):
        return math.cos((t / n + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f(i + 1) / f(i), 0.999) for i in range(n)]
    torch.testing.assert_close(DiscreteVPSDE.cosine(n).betas, torch.tensor(betas, dtype=F64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "sde",
    [DiscreteVPSDE.linear(77), DiscreteVPSDE.linear(9, scaled=False), DiscreteVPSDE.cosine(50)],
    ids=repr,
)
def test_the_repr_of_a_chain_is_valid_python(sde):
    assert eval(repr(sde)) == sde


# ------------------------------------------------------------------------------------------------------------- indices


RULES = {
    "leading": lambda t, n: (np.arange(0, n) * (t // n)).round()[::-1],
    "trailing": lambda t, n: np.round(np.arange(t, 0, -t / n)) - 1,
    "linspace": lambda t, n: np.linspace(0, t - 1, n).round()[::-1],
}


@pytest.mark.parametrize("levels", [7, 50, 333, 1000])
@pytest.mark.parametrize("spacing", list(RULES))
def test_indices_are_those_of_diffusers_for_every_number_of_evaluations(spacing, levels):
    sde = DiscreteVPSDE.linear(levels, scaled=False)
    for n in range(2, levels + 1):
        wanted = RULES[spacing](levels, n)
        if len(wanted) > n:  # the sum of steps in trailing's arange falls short of T by rounding: an index -1 too many
            wanted = wanted[:n]
        assert getattr(grids, spacing)(sde, n - 1).tolist() == wanted.tolist(), n


@pytest.mark.parametrize("offset", [0, 1])
def test_an_offset_shifts_leading_as_that_of_diffusers(offset):
    sde = DiscreteVPSDE.linear()
    for n in (2, 10, 30, 50, 999):
        wanted = (np.arange(0, n) * (1000 // n)).round()[::-1] + offset
        assert grids.leading(sde, n - 1, offset=offset).tolist() == wanted.tolist()


def test_an_offset_that_leaves_the_chain_is_refused():
    sde = DiscreteVPSDE.linear()
    check(
        lambda: grids.leading(sde, 999, offset=1),
        ValueError,
        "offset must be an integer in [0, 0] for 1000 of 1000 levels",
    )
    check(
        lambda: grids.leading(sde, 49, offset=-1),
        ValueError,
        "offset must be an integer in [0, 19] for 50 of 1000 levels",
    )
    check(lambda: grids.leading(sde, 49, wrong(0.5)), ValueError, "for 50 of 1000 levels, got 0.5")


@pytest.mark.parametrize("spacing", [*RULES, "offset"])
@pytest.mark.parametrize("n", [2, 10, 30, 50])
def test_nfe_visits_as_many_indices_as_diffusers_has_inference_steps(spacing, n):
    asked = []

    def net(x, t):
        asked.append(float(t[0]))
        return 0 * x

    sde = DiscreteVPSDE.linear()
    grid = partial(grids.leading, offset=1) if spacing == "offset" else getattr(grids, spacing)
    SDESampler(sde, Network(net, sde, shape=(2,)), solver=DDIM(), grid=grid, nfe=n).sample(1, seed=0)
    assert asked == (RULES["leading"](1000, n) + 1 if spacing == "offset" else RULES[spacing](1000, n)).tolist()


# ------------------------------------------------------------------------------------------------------------ no signal


def rescaled(n=1000):
    """Algorithm 1 of Lin et al. 2024 on Stable Diffusion's betas: the last is 1."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, n, dtype=F64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * first / (first - last)
    bar = root**2
    alphas = torch.cat([bar[:1], bar[1:] / bar[:-1]])
    return 1 - alphas, bar


BETAS, BAR = rescaled()
MEANS = [[-1.0, 0.5], [1.0, 0.0]]


def answers(x, a, s):
    """E[x0 | x] and E[eps | x] of two Gaussians of std 0.3, written out."""
    means = torch.tensor(MEANS, dtype=F64)
    total = a * a * 0.09 + s * s
    r = torch.softmax(-0.5 * (x[:, None] - a * means).square().sum(2) / total, 1)
    data = (r[..., None] * (means + a * 0.09 / total * (x[:, None] - a * means))).sum(1)
    return data, s * (x - a * (r @ means)) / total


def network(kind, sde):
    def net(x, t):
        i = int(t[0])
        (at,) = sde.levels([float(i)])
        data, noise = answers(x / kind.input_scale(at), float(BAR[i].sqrt()), float((1 - BAR[i]).sqrt()))
        p, q = kind.target(at)
        return p * data + q * noise

    return Network(net, sde, kind, clock=lambda at: at.t, shape=(2,))


def ddim_with_v(x, tau, eta):
    """Equations 12 of Song et al. 2021 with v-prediction, from the last index, where no signal is left."""
    noise = Streams(range(4), (2,), F64, "cpu")
    noise.prior()
    for k, i in enumerate(tau):
        now = float(BAR[i])
        then = float(BAR[tau[k + 1]]) if k + 1 < len(tau) else 1.0
        data, eps = answers(x, math.sqrt(now), math.sqrt(1 - now))
        v = math.sqrt(now) * eps - math.sqrt(1 - now) * data
        x0 = math.sqrt(now) * x - math.sqrt(1 - now) * v
        eps = math.sqrt(now) * v + math.sqrt(1 - now) * x
        s = eta * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
        x = math.sqrt(then) * x0 + math.sqrt(1 - then - s * s) * eps
        if s:
            x = x + s * noise(float(i), float(tau[k + 1]))
    return x


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", [predict.v, predict.data, predict.velocity, predict.EDM(0.7)], ids=repr)
def test_a_chain_that_ends_without_signal_is_sampled_as_by_the_textbook(kind, eta):
    assert float(BETAS[-1]) == 1.0
    sde = DiscreteVPSDE(BETAS)
    sampler = SDESampler(sde, network(kind, sde), solver=DDIM(eta), grid=grids.trailing, nfe=20)
    x_T = Streams(range(4), (2,), F64, "cpu").prior()
    wanted = ddim_with_v(x_T, [int(t) for t in sampler.times], eta)
    torch.testing.assert_close(sampler.sample(4, seed=0, x_T=x_T), wanted, **TOL)


@pytest.mark.parametrize("kind", [predict.noise, predict.score], ids=repr)
def test_noise_and_score_tell_nothing_where_no_signal_is_left(kind):
    sde = DiscreteVPSDE(BETAS)
    sampler = SDESampler(sde, Network(lambda x, t: x, sde, kind, shape=(2,)), solver=DDIM(), grid=grids.trailing)
    check(
        lambda: sampler.sample(1, seed=0), ValueError, "prediction tells nothing of the data where alpha = 0 (t = 999)"
    )


def test_between_the_last_two_levels_the_schedule_is_smooth_and_ends_at_exactly_no_signal():
    for sde in (DiscreteVPSDE(BETAS), DiscreteVPSDE([0.3, 1.0])):
        n = sde.t_max
        assert float(sde.alpha(torch.tensor(n, dtype=F64))) == 0.0
        assert float(sde.sigma(torch.tensor(n, dtype=F64))) == 1.0
        t = torch.linspace(n - 1, n, 21, dtype=F64)
        assert bool((sde.half_log_snr(t).diff() < 0).all())
        torch.testing.assert_close(sde.time_of(sde.half_log_snr(t)), t, rtol=0, atol=1e-9)
        h = 1e-6
        inner = t[1:-1]
        for found, f in zip(sde.rates(inner), (sde.alpha, sde.sigma), strict=True):
            torch.testing.assert_close(found, (f(inner + h) - f(inner - h)) / (2 * h), rtol=1e-6, atol=1e-8)
        assert all(math.isfinite(v) for at in sde.levels([0.0, n - 0.5, n]) for v in (at.alpha, at.dalpha, at.dsigma))


@pytest.mark.parametrize("grid", [grids.linspace, grids.angle], ids=["linspace", "angle"])
def test_every_solver_starts_where_no_signal_is_left_or_says_why_not(grid):
    sde = DiscreteVPSDE(BETAS)
    model = isotropic_mixture(sde, MEANS, std=0.3)
    for solver in zoo.SOLVERS:
        steps = 1 if solver.facts.evaluations is None and grid is grids.angle else 6
        sampler = SDESampler(sde, model, solver=solver, grid=grid, steps=steps)
        try:
            assert bool(torch.isfinite(sampler.sample(2, seed=0)).all()), solver
        except ValueError as error:
            told, regular = str(error), zoo.solver_is_regular_at_the_end(solver)
        else:
            continue
        assert not regular, (solver, told)
        assert any(word in told for word in ("alpha = 0", "log-SNR", "infinite at t")), (solver, told)


def test_its_likelihood_and_bound_are_those_of_any_process():
    sde = DiscreteVPSDE(BETAS)
    model = isotropic_mixture(sde, MEANS, std=0.3)
    x = model.sample(16, seed=0)
    found = SDESampler(sde, model).log_prob(x, density=Density(level=0.0))
    assert found.whole
    assert (found.value - model.data_log_prob(x)).abs().max() < 1e-4
    drawn, density = SDESampler(sde, model, solver=DormandPrince(1e-7, 1e-7), steps=1).sample_with_log_prob(
        8, method=Method(trace=Exact()), seed=0
    )
    level = float(sde.sigma(torch.tensor(0.0, dtype=F64)) / sde.alpha(torch.tensor(0.0, dtype=F64)))
    means, variance = torch.tensor(MEANS, dtype=F64), 0.09 + level**2
    logs = -0.5 * (drawn.double()[:, None] - means).square().sum(2) / variance - math.log(2 * math.pi * variance)
    assert (density.value - torch.logsumexp(logs, 1) + math.log(2)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("betas", "place"), [([0.1, 1.0, 0.2], 1), ([0.1, 1.0, 1.0], 1), ([1.0, 1.0], 0)], ids=["inside", "two", "all"]
)
def test_only_the_last_beta_may_be_one(betas, place):
    text = (
        f"wanted two or more betas in (0, 1), got betas[{place}] = 1: only the last may be 1, where no signal is left"
    )
    check(lambda: DiscreteVPSDE(betas), ValueError, text)
    check(lambda: DiscreteVPSDE([0.0, 0.5]), ValueError, "wanted two or more betas in (0, 1), got betas[0] = 0")
