"""Claim: particles have the law of their target and its evidence, by twists and by Feynman-Kac weights, and say how
certain that is; a system depends on its seed alone."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.distributions import Normal
from twists import SDE, Powers, given, line, measured, product_on_a_line

from sde_diffusion import VESDE, VPSDE, CosineSDE, DiscreteVPSDE, FlowSDE, Problem, SDESampler, grids
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.guidance import AutoGuided, Matrix, Reward, Within
from sde_diffusion.likelihood.draws import t_quantile
from sde_diffusion.metrics import sliced_wasserstein
from sde_diffusion.noise import Streams
from sde_diffusion.particles import Particles, ParticleSampler, importance_evidence
from sde_diffusion.particles.filter import Course, run
from sde_diffusion.particles.kernel import step_row
from sde_diffusion.particles.laws import TwistedLaw
from sde_diffusion.particles.resampling import effective, log_mean, systematic
from sde_diffusion.solvers import DormandPrince, SDEDPMSolverPP

TWO = line([0.3, 0.7], [-1.0, 1.0], 0.25), line([0.6, 0.4], [-1.0, 1.0], 0.25)
F64 = torch.float64
ONE = torch.ones(1, 1, dtype=F64)


def level_at(lam):
    return SDE.levels(SDE.time_of(torch.tensor([lam], dtype=F64)).tolist())[0]


def on_a_line(mean, variance, sde=SDE):
    return Gaussian(sde, torch.tensor([mean], dtype=F64), variance)


@pytest.mark.parametrize("order", [1, 2])
def test_the_chain_is_the_stochastic_dpm_solver(order):
    a, b, c = SDE.levels([0.5, 0.4, 0.2])
    ours, theirs = step_row([b, a], c, 1.0, order), SDEDPMSolverPP(order).row([b, a], c, level_at)
    assert ours.state == pytest.approx(theirs.state, rel=1e-14)
    assert ours.std == pytest.approx(theirs.std, rel=1e-14)
    assert ours.data == pytest.approx(theirs.data, rel=1e-14)


@pytest.mark.parametrize("rate", [-0.5, 0.0, 1e-9, 0.7, 3.0])
def test_a_step_solves_its_linear_equation(rate):
    # dz = -a z + 2 e^lam D + sqrt(2) dw, by ten thousand Euler steps for mean and variance
    t, s = SDE.levels([0.4, 0.3])
    row = step_row([t], s, rate, 1)
    n, z, var = 20_000, 1.3, 0.0
    for i in range(n):
        h = (s.lam - t.lam) / n
        lam = t.lam + (i + 0.5) * h
        z, var = z + h * (-rate * z + 2 * math.exp(lam) * 0.8), var + h * (2 - 2 * rate * var)
    assert row.state * 1.3 * t.sigma + row.data[0] * 0.8 == pytest.approx(z * s.sigma, rel=1e-4)
    assert row.std == pytest.approx(s.sigma * math.sqrt(var), rel=1e-4)


def test_resampling_keeps_every_particle_by_its_weight():
    log_w = torch.log(torch.tensor([[0.5, 0.0, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0], [0.1, 0.2, 0.3, 0.4]], dtype=F64))
    for u in (0.0, 0.3, 0.999999):
        numbers = systematic(log_w, torch.full((3,), u, dtype=F64), 20)
        counts = torch.stack([row.bincount(minlength=4) for row in numbers])
        assert ((counts - 20 * log_w.exp()).abs() < 1 + 1e-9).all()
    assert effective(log_w).tolist() == pytest.approx([1 / 0.375, 1.0, 1 / 0.3])
    assert log_mean(log_w).tolist() == pytest.approx([-math.log(4)] * 3)


def test_quantiles_of_student_are_those_of_the_tables():
    table = {(0.95, 1): 12.7062, (0.9, 2): 2.9200, (0.95, 3): 3.1824, (0.8, 7): 1.4149, (0.99, 30): 2.7500}
    for (level, freedom), t in table.items():
        assert t_quantile(level, freedom) == pytest.approx(t, abs=2e-4)


@pytest.mark.parametrize("sde", [SDE, VESDE(), FlowSDE(), CosineSDE()], ids=lambda sde: type(sde).__name__)
def test_particles_of_a_gaussian_have_its_posterior_and_evidence_on_every_process(sde):
    prior = Gaussian(sde, torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([1.0, 0.3], dtype=F64))
    a, y = torch.tensor([[1.0, 0.5]], dtype=F64), torch.tensor([1.2], dtype=F64)
    found = ParticleSampler(sde, given(prior, a, 0.5), particles=256, steps=50).sample(8, seed=0, y=y)
    exact = prior.posterior(a, y, 0.5)
    error = found.log_evidence - prior.log_evidence(a, y, 0.5)
    print(f"log evidence off by {error:.4f}, standard error {found.standard_error:.4f}")
    assert abs(error) < 4 * found.standard_error + 0.01
    root = 4 * (torch.diagonal(torch.cov(exact.sample(1000, seed=0).T)) / found.ess[:, -1].sum()).sqrt()
    assert ((found.mean() - exact.means[0]).abs() < root).all()
    assert found.var().tolist() == pytest.approx(torch.cov(exact.sample(4000, seed=0).T).diagonal().tolist(), rel=0.2)
    assert (found.nfe, found.vjps) == (51, 51)


@pytest.mark.parametrize("powers", [(2.0, -1.0), (1.0, 1.0), (0.5, 0.2), (3.0,)], ids=str)
def test_particles_of_a_product_have_its_law_and_its_integral(powers):
    models = TWO[: len(powers)]
    x, p, z = product_on_a_line(models, powers)
    found = ParticleSampler(SDE, Powers(models, powers), particles=500, steps=60).sample(8, seed=0)
    error = found.log_evidence - z
    print(f"log integral off by {error:.4f}, standard error {found.standard_error:.4f}")
    assert abs(error) < 4 * found.standard_error + 0.01
    mean, std = float(p @ x), float((p @ x.square() - (p @ x) ** 2).sqrt())
    assert abs(float(found.mean()) - mean) < 4 * std / math.sqrt(float(found.ess[:, -1].min()) * 4)
    assert found.nfe == 61 * len(powers)


def test_a_product_of_gaussians_far_from_one_power_has_even_weights():
    # much noise is carried along exactly, so that nothing is left to weigh
    prior = Gaussian(SDE, torch.zeros(50, dtype=F64), 1.0)
    found = ParticleSampler(SDE, Powers([prior], [2.0]), particles=200, steps=60).sample(4, seed=0)
    exact = 50 * (-0.5 * math.log(2 * math.pi) - 0.5 * math.log(2.0))
    assert abs(found.log_evidence - exact) < 4 * found.standard_error + 0.1
    assert found.ess.min() > 20


def test_a_product_starts_where_some_data_are_left():
    models = tuple(line([0.3, 0.7], [-1.0, m], 0.25, FlowSDE()) for m in (1.0, 1.3))
    sampler = ParticleSampler(FlowSDE(), Powers(models, (2.0, -1.0)), particles=500, steps=60)
    assert sampler.times[0] < 1.0
    found = sampler.sample(8, seed=0)
    assert abs(found.log_evidence - product_on_a_line(models, (2.0, -1.0))[2]) < 4 * found.standard_error + 0.01


@pytest.mark.parametrize("levels", [100, 1000])
def test_a_product_starts_inside_a_chain_that_ends_in_less_noise(levels):
    sde = DiscreteVPSDE.linear(levels)
    prior = on_a_line(0.3, 1.0, sde)
    sampler = ParticleSampler(sde, Powers([prior], [2.0]), particles=200, steps=40)
    assert sampler.times[0] == sde.t_max
    found = sampler.sample(8, seed=0)
    assert abs(found.log_evidence + 0.5 * math.log(4 * math.pi)) < 4 * found.standard_error + 0.02


@pytest.mark.filterwarnings("ignore::sde_diffusion.particles.ParticleWarning")  # steps as few as may be
def test_a_system_depends_on_its_seed_alone():
    prior, a, _ = measured(4, 2, 1.0, 0)
    y = torch.stack([a @ x for x in prior.sample(3, seed=1)])
    sampler = ParticleSampler(SDE, given(prior, a, 1.0), particles=32, steps=12)
    whole = sampler.sample(3, seed=5, y=y)
    parts = sampler.sample(3, seed=5, y=y, batch_size=2)
    alone = sampler.sample(1, seed=7, y=y[2])
    for found, rows in ((parts, slice(None)), (alone, slice(2, 3))):
        torch.testing.assert_close(found.x, whole.x[rows], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.log_weights, whole.log_weights[rows], rtol=1e-9, atol=1e-9)
    assert not torch.equal(sampler.sample(1, seed=0, y=y[0]).x, whole.x[:1])


def test_the_draws_of_a_system_are_the_same_whether_it_is_resampled_or_not():
    # of a law without any likelihood, whose weights are even: what it draws is what the solver of the chain draws
    sde = VPSDE()
    prior = on_a_line(0.3, 0.5, sde)
    with pytest.warns(UserWarning, match="tells nothing of the data"):
        flat = given(prior, torch.zeros(1, 1, dtype=F64), 1.0)
    y = torch.zeros(1, dtype=F64)
    never, always = (
        ParticleSampler(sde, flat, particles=16, steps=9, threshold=share).sample(1, seed=3, y=y)
        for share in (0.0, 1.0)
    )
    assert never.log_evidence == pytest.approx(-0.5 * math.log(2 * math.pi))
    assert always.log_evidence == pytest.approx(never.log_evidence)
    source = Streams([3], (16, 1), F64, "cpu")
    start, known, levels = source.prior()[0], None, sde.levels(ParticleSampler(sde, flat, steps=9).times)
    x = sde.prior(start)
    past: Any = []
    for t, s in pairwise(levels):
        torch.rand(1, generator=source.generators[0], dtype=F64)
        known, past = [prior.predict(x, t).data, *(known or [])][:2], [t, *past][:2]
        row = SDEDPMSolverPP(2).row(past, s, level_at)
        x = row.state * x + sum(w * d for w, d in zip(row.data, known, strict=False)) + row.std * source(t.t, s.t)[0]
    torch.testing.assert_close(never.x[0], prior.predict(x, levels[-1]).data)


def test_the_weights_are_the_ratio_of_base_chain_and_proposal():
    # two steps by hand, without resampling, against densities of torch.distributions
    prior, a, y = measured(2, 1, 1.0, 4)
    target = given(prior, a, 1.0)
    times = [SDE.t_max, 0.5, SDE.t_min]
    levels = SDE.levels(times)
    course = Course(TwistedLaw(target), levels, 2, 0.0, SDE.prior, lambda: None)
    got = run(course, Streams([0], (5, 2), F64, "cpu"), {"y": y}, [0])
    source = Streams([0], (5, 2), F64, "cpu")
    x, log_w = SDE.prior(source.prior()[0]), torch.zeros(5, dtype=F64)
    past: Any = []
    data: Any = []
    shifts: Any = []
    for t, s in pairwise(levels):
        torch.rand(1, generator=source.generators[0], dtype=F64)
        look = target.look(x, t, y=y)
        past, data, shifts = [t, *past][:2], [look.prior.data, *data][:2], [look.shift, *shifts][:2]
        row = SDEDPMSolverPP(2).row(past, s, level_at)
        base = row.state * x + sum(w * d for w, d in zip(row.data, data, strict=False))
        moved = base + sum(w * d for w, d in zip(row.data, shifts, strict=False))
        x = moved + row.std * source(t.t, s.t)[0]
        log_w = log_w + (Normal(base, row.std).log_prob(x) - Normal(moved, row.std).log_prob(x)).sum(1)
    end = prior.predict(x, levels[-1]).data
    torch.testing.assert_close(got.x[0], end)
    torch.testing.assert_close(got.log_weights[0], log_w + target.log_likelihood(end, y=y))


def test_draws_are_particles_by_their_weights():
    x = torch.arange(6.0).reshape(2, 3, 1)
    log_w = torch.log(torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 4.0]], dtype=F64))
    found = Particles(x, log_w, torch.ones(2, 2), 3)
    drawn = found.draw(80, seed=0)
    assert drawn.flatten().long().bincount().tolist() == [0, 10, 30, 0, 0, 40]
    assert not torch.equal(drawn, drawn.sort(0).values)
    assert torch.equal(drawn, found.draw(80, seed=0))
    assert found.mean().item() == pytest.approx((1 + 6 + 20) / 8)
    assert found.var().item() == pytest.approx((1 + 12 + 100) / 8 - (27 / 8) ** 2)
    assert found.log_evidence == pytest.approx(math.log(8 / 6))
    assert found.standard_error == 0.0
    assert str(found).startswith("2 systems of 3 particles: log evidence 0.2877 +- 0 nats")


@pytest.mark.filterwarnings("ignore::sde_diffusion.particles.ParticleWarning")  # steps as few as may be
def test_systems_of_a_measurement_each_are_answered_apart():
    prior, y = on_a_line(0.0, 1.0), torch.tensor([[-1.0], [1.0]], dtype=F64)
    sampler = ParticleSampler(SDE, given(prior, ONE, 0.5), particles=32, steps=20)
    found = sampler.sample(2, seed=[3, 3], y=y, solver_error=True)  # the same draws for both laws
    assert found.apart == ("y",)
    assert str(found).startswith("2 systems of 32 particles, each with y of its own: log evidences -")
    assert found.system(1).mean() > 0.5 > -0.5 > found.system(0).mean()
    assert found.system(1).log_evidence == found.log_evidences[1]
    halves = ParticleSampler(SDE, given(prior, ONE, 0.5), particles=32, steps=10).sample(2, seed=[3, 3], y=y)
    assert found.solver_error == float((found.log_evidences - halves.log_evidences).abs().max())
    alike = sampler.sample(2, seed=3, y=y[:1].expand(2, 1))
    assert alike.apart == ()
    assert alike.log_evidence == sampler.sample(2, seed=3, y=y[0]).log_evidence


@pytest.mark.filterwarnings("ignore::sde_diffusion.particles.ParticleWarning")  # steps as few as may be
def test_half_the_steps_tell_the_error_of_the_steps():
    prior, a, y = measured(4, 1, 1.0, 2)
    sampler = ParticleSampler(SDE, given(prior, a, 1.0), particles=64, steps=8)
    found = sampler.sample(4, seed=0, y=y, solver_error=True)
    coarse = ParticleSampler(SDE, given(prior, a, 1.0), particles=64, steps=4).sample(4, seed=0, y=y)
    assert found.solver_error == pytest.approx(abs(found.log_evidence - coarse.log_evidence))
    laid = ParticleSampler(SDE, given(prior, a, 1.0), particles=64, grid=grids.uniform(SDE, 5))
    assert laid.sample(1, seed=0, y=y, solver_error=True).solver_error > 0
    assert laid._half() == [laid.times[0], laid.times[2], laid.times[4], laid.times[5]]


def test_a_single_precision_model_has_its_own_dtype():
    prior = Gaussian(SDE, torch.tensor([0.5]), 1.0)
    target = given(prior, torch.ones(1, 1), 0.5)
    found = ParticleSampler(SDE, target, particles=256, steps=30).sample(8, seed=0, y=torch.ones(1))
    assert (found.x.dtype, found.log_weights.dtype) == (torch.float32, F64)
    assert abs(found.log_evidence - prior.log_evidence(torch.ones(1, 1), torch.ones(1), 0.5)) < 0.05


def test_a_sampler_is_told_as_it_is_written():
    text = repr(ParticleSampler(Problem(SDE, given(on_a_line(0.0, 1.0), torch.ones(1, 1), 1.0)), steps=7))
    assert text.startswith("ParticleSampler(VPSDE(beta_min=0.1, beta_max=40")
    assert ", particles=1024, steps=7, " in text


def test_guidance_of_one_scale_is_the_product_and_of_scale_one_the_model_itself():
    models = tuple(TWO)
    guided = AutoGuided(models[0], models[1], 2.0)
    found = ParticleSampler(SDE, guided, particles=500, steps=60).sample(8, seed=0)
    same = ParticleSampler(SDE, Powers(models, (2.0, -1.0)), particles=500, steps=60).sample(8, seed=0)
    torch.testing.assert_close(found.log_weights, same.log_weights)
    plain = ParticleSampler(SDE, AutoGuided(models[0], models[1], 1.0), particles=50, steps=9).sample(2)
    assert (plain.nfe, plain.log_evidence) == (10, 0.0)


@pytest.mark.parametrize(
    ("target", "log_l"),
    [
        (Reward(TWO[0], lambda x0: 1.5 * x0[:, 0]), lambda x: 1.5 * x),
        (Within(TWO[0], Matrix(ONE), 0.2, 0.6), lambda x: torch.log(((x > 0.2) & (x < 0.6)).to(F64))),
    ],
    ids=["reward", "bounds"],
)
def test_rewards_and_bounds_are_laws_like_others(target, log_l):
    x, p, _ = product_on_a_line(TWO[:1], (1.0,))
    z = float(torch.log(p @ log_l(x).exp()))
    found = ParticleSampler(SDE, target, particles=500, steps=60).sample(8, seed=0)
    print(f"log evidence off by {found.log_evidence - z:.4f}, {found}")
    assert abs(found.log_evidence - z) < 4 * found.standard_error + 0.01
    assert torch.isfinite(log_l(found.draw(200, seed=0))).all()
    mean = float(p @ (log_l(x).exp() * x)) / math.exp(z)
    assert abs(float(found.mean()) - mean) < 4 * float(found.var().sqrt()) / math.sqrt(found.effective / 4)


def test_the_second_order_takes_the_error_of_the_steps_out_of_the_evidence():
    prior, y = on_a_line(0.5, 1.0), torch.tensor([2.0], dtype=F64)
    exact = prior.log_evidence(ONE, y, 0.3)
    first, second = (
        ParticleSampler(SDE, given(prior, ONE, 0.3), particles=1000, steps=40, order=k).sample(8, seed=0, y=y)
        for k in (1, 2)
    )
    print(
        f"off by {first.log_evidence - exact:.4f} and {second.log_evidence - exact:.4f} +- {second.standard_error:.4f}"
    )
    assert first.log_evidence - exact < -0.04  # -0.074 with 8,000 particles
    assert abs(second.log_evidence - exact) < 4 * second.standard_error + 0.01


def test_importance_weights_find_the_evidence_by_another_way():
    prior, a, y = line([0.3, 0.7], [-1.0, 1.0], 0.25), torch.ones(1, 1, dtype=F64), torch.zeros(1, dtype=F64)
    sampler = SDESampler(SDE, given(prior, a, 0.5), solver=DormandPrince(), steps=1)
    found = importance_evidence(sampler, 64, seed=0, y=y)
    error = found.log_evidence - prior.log_evidence(a, y, 0.5)
    print(
        f"log evidence off by {error:.4f}, standard error {found.standard_error:.4f}, {found.effective:.0f} effective"
    )
    assert abs(error) < 4 * found.standard_error + 1e-3
    assert found.standard_error < 0.2
    assert found.x.shape == (64, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 4])
def test_particles_reach_the_floor_of_exact_samples(rows):
    ratios = []
    for seed in range(3):
        prior, a, y = measured(8, rows, 1.0, seed)
        exact = prior.posterior(a, y, 1.0)
        x = ParticleSampler(SDE, given(prior, a, 1.0)).sample(1, seed=seed, y=y).draw(1000, seed=0)
        sets = [exact.sample(1000, seed=i) for i in range(6)]
        off = sum(sliced_wasserstein(x, other) for other in sets) / 6
        floor = sum(sliced_wasserstein(sets[i], sets[i + 3]) for i in range(3)) / 3
        ratios.append(off / floor)
    print(f"distance over the floor: {ratios}")
    assert sum(ratios) / 3 < 2.0


@pytest.mark.slow
def test_the_evidence_is_unbiased_and_its_interval_covers():
    off, held = [], 0
    for seed in range(12):
        rows = (1, 2, 4)[seed % 3]
        prior, a, y = measured(8, rows, 1.0, seed)
        sampler = ParticleSampler(SDE, given(prior, a, 1.0), particles=64)
        found = sampler.sample(8, seed=1000 * seed, y=y)
        exact = prior.log_evidence(a, y, 1.0)
        off.append(found.log_evidence - exact)
        low, high = found.interval(0.9)
        held += low <= exact <= high
    error = torch.tensor(off)
    print(f"bias {error.mean():.4f}, rms {error.square().mean().sqrt():.4f}, {held} of 12 inside")
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(12)
    assert error.square().mean().sqrt() < 0.09
    assert held >= 7  # of a mean of 10.8: 4 standard deviations less
