"""Claim: log-likelihoods of mixtures are right to the stated figures, from every SDE, and their error bars hold.

Printed with `-s`: what was measured. The figures of the documentation come from here and from benchmarks/likelihood.py.
"""

from __future__ import annotations

import math

import pytest
import torch
import zoo
from mixtures import mixture
from scipy import stats

from sde_diffusion import EDMSDE, VESDE, VPSDE, BrownianSDE, FlowSDE, Network, SDESampler, SubVPSDE, predict
from sde_diffusion.likelihood import Density, Exact, Method, Orthogonal, Rademacher
from sde_diffusion.solvers import RK4, Angle, BogackiShampine, DormandPrince, Torchdiffeq

SDES = [VPSDE(), VESDE(), SubVPSDE(), EDMSDE(), FlowSDE(), BrownianSDE()]


def rms(x):
    return float(x.square().mean().sqrt())


def weigh(model, x, sde=None, **options):
    sde = sde or model.sde
    return SDESampler(sde, model.on(sde)).log_prob(x, **options)


@pytest.mark.parametrize(
    ("d", "n", "bound"),
    [(2, 64, 2e-5), pytest.param(64, 64, 1e-3, marks=pytest.mark.slow)],
)
def test_every_sde_gives_the_density_of_the_data_and_all_the_same_number(d, n, bound):
    model = mixture(d) if d == 2 else mixture(d, 6, high=0.6)
    x = model.sample(n, seed=1)
    truth, values = model.data_log_prob(x), []
    for sde in SDES:
        found = weigh(model, x, sde, density=Density(level=0.0), method=Method(solver_error=False))
        values.append(found.value)
        print(f"d = {d}, {sde}: rms error {rms(found.value - truth):.2g} nats at {found.nfe} evaluations")
        assert rms(found.value - truth) <= bound
        assert found.nfe <= 180
        assert bool(found.converged.all())
        assert found.whole
    assert (torch.stack(values) - values[0]).abs().max() < 1e-5


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_at_the_smallest_level_it_is_the_density_there_and_the_truncation_tells_the_rest(sde):
    model = mixture(2).on(sde)
    x = model.sample(64, seed=1)
    sampler = SDESampler(sde, model)
    there = sampler.log_prob(x, method=Method(solver_error=False))
    corrected = sampler.log_prob(x, density=Density(correct=True), method=Method(solver_error=False))
    (first,) = sde.levels([sde.t_min])
    at_level = model.log_prob(first.alpha * x, sde.t_min) + 2 * math.log(first.alpha)
    assert there.level == pytest.approx(first.sigma / first.alpha)
    assert rms(there.value - at_level) < 2e-5
    truth = model.data_log_prob(x)
    before, after = rms(there.value - truth), rms(corrected.value - truth)
    print(f"{sde}: S = {there.level:.3g}, without {before:.2g}, with the correction {after:.2g}")
    torch.testing.assert_close(corrected.value, there.value + there.truncation)
    assert after < max(0.02 * before, 1e-5)


def test_the_remainder_of_the_correction_is_of_fourth_order():
    model = mixture(2, low=0.2)
    x = model.sample(64, seed=1)
    truth = model.data_log_prob(x)
    levels = (0.02, 0.04, 0.08)
    method = Method(DormandPrince(1e-9, 1e-9), solver_error=False)
    errors = [
        float((weigh(model, x, density=Density(s, correct=True), method=method).value - truth).abs().median())
        for s in levels
    ]
    order = math.log(errors[2] / errors[0]) / math.log(4)
    print(f"medians {errors}, order {order:.2f}")
    assert order == pytest.approx(4.0, abs=0.25)


@pytest.mark.parametrize(
    "case",
    [(0, 60), *(pytest.param((s, 200), marks=pytest.mark.slow) for s in range(5))],
    ids=lambda case: f"mixture{case[0]}-{case[1]}",
)
def test_the_error_is_within_twice_the_stated_one(case):
    """Over 1,000 points of five mixtures; the rows of one mixture are independent."""
    seed, n = case
    d = (2, 3, 2, 4, 8)[seed]
    model = mixture(d, 3 + seed, low=(0.05, 0.1, 0.02, 0.1, 0.1)[seed], seed=seed)
    x = model.sample(n, seed=2)
    found = weigh(model, x, density=Density(level=0.0))
    error = (found.value - model.data_log_prob(x)).abs()
    covered = float((error <= 2 * found.total_error).double().mean())
    ratio = float((found.total_error / error.clamp_min(1e-12)).median())
    print(f"d = {d}: {covered:.3f} covered, stated over actual error {ratio:.1f} in the median, rms {rms(error):.2g}")
    assert covered >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("k", [8, 32])
def test_the_standard_error_of_probes_covers_as_a_standard_error_does(k):
    """1,000 points of five mixtures in 64 dimensions, each with probes of its own."""
    errors, stated = [], []
    for seed in range(5):
        model = mixture(64, 4, 0.1, 0.6, seed=seed)
        x = model.sample(200, seed=1)
        method = Method(DormandPrince(1e-3, 1e-3), trace=Orthogonal(k), solver_error=False)
        found = weigh(model, x, density=Density(level=0.0), method=method, seed=1000 * seed)
        errors.append(found.value - model.data_log_prob(x))
        stated.append(found.standard_error)
    error, stated_error = torch.cat(errors), torch.cat(stated)
    covered = float((error.abs() <= 2 * stated_error).double().mean())
    print(
        f"k = {k}: {covered:.3f} covered, rms {rms(error):.3f}, stated {rms(stated_error):.3f}, mean {error.mean():.3f}"
    )
    assert 0.92 <= covered <= 0.98
    assert rms(stated_error) == pytest.approx(rms(error), rel=0.1)
    assert abs(error.mean()) < 3 * rms(error) / math.sqrt(len(error))


def test_as_many_orthogonal_probes_as_dimensions_are_exact():
    model = mixture(6, 3)
    x = model.sample(4, seed=0)
    exact = weigh(model, x, method=Method(solver_error=False))
    found = weigh(model, x, method=Method(trace=Orthogonal(6), solver_error=False), seed=5)
    torch.testing.assert_close(found.value, exact.value, rtol=0, atol=1e-4)
    assert bool((found.standard_error == 0).all())


@pytest.mark.parametrize("trace", [Orthogonal(3), Rademacher(3)], ids=repr)
def test_probes_of_a_row_depend_on_its_seed_alone(trace):
    model = mixture(6, 3)
    x = model.sample(5, seed=0)
    method = Method(trace=trace, solver_error=False)
    together = weigh(model, x, seed=10, method=method)
    alone = weigh(model, x[3:4], seed=13, method=method)
    assert float((together.value[3] - alone.value[0]).abs()) < 1e-6
    other = weigh(model, x[3:4], seed=14, method=method)
    assert float((other.value[0] - alone.value[0]).abs()) > 1e-3
    assert bool((together.standard_error > 0).all())


def test_one_probe_has_no_standard_error():
    model = mixture(3, 3)
    found = weigh(model, model.sample(2, seed=0), method=Method(trace=Orthogonal(1), solver_error=False), seed=0)
    assert found.standard_error.tolist() == [math.inf, math.inf]


def test_a_row_alone_has_the_number_that_it_has_in_a_batch():
    model = mixture(2)
    x = model.sample(64, seed=3)
    method = Method(DormandPrince(1e-5, 1e-5), solver_error=False)
    together = weigh(model, x, method=method).value
    alone = torch.cat([weigh(model, row[None], method=method).value for row in x[:8]])
    print(f"largest difference {float((together[:8] - alone).abs().max()):.2g}")
    assert (together[:8] - alone).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("solver", "steps", "bound"),
    [
        (BogackiShampine(1e-6, 1e-6), None, 1e-3),
        (Angle(DormandPrince(1e-8, 1e-8), 0.6), None, 1e-6),
        (RK4(), 100, 1e-4),
        (Torchdiffeq("dopri5", 1e-8, 1e-8), None, 1e-5),
        (Torchdiffeq("rk4"), 100, 1e-3),
    ],
    ids=lambda v: type(v).__name__ if hasattr(v, "order") else str(v),
)
def test_every_ode_solver_drives_it_and_tells_its_error(solver, steps, bound):
    model = mixture(2, 3, low=0.2)
    x = model.sample(16, seed=0)
    found = weigh(model, x, density=Density(level=0.0), method=Method(solver, steps=steps))
    error = found.value - model.data_log_prob(x)
    print(f"{solver}: rms {rms(error):.2g}, stated {rms(found.solver_error):.2g}, {found.nfe}+{found.nfe_check}")
    assert rms(error) < bound
    assert rms(error) < rms(found.solver_error) < 300 * bound
    assert 0 < found.nfe_check < found.nfe


class Net(torch.nn.Module):
    """An untrained network of bounded slope, smooth in state and time."""

    def __init__(self, d):
        super().__init__()
        torch.manual_seed(3)
        self.layers = torch.nn.Sequential(torch.nn.Linear(d + 1, 16), torch.nn.Tanh(), torch.nn.Linear(16, d)).double()

    def forward(self, x, t):
        return self.layers(torch.cat([x + 0.3, t[:, None]], 1))


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.slow
def test_the_density_of_an_untrained_network_integrates_to_one(d):
    """Whatever the network, mass is conserved; scale 0.6 and no symmetry, so that a missing Jacobian would show."""
    sde = FlowSDE(t_min=0.02)
    sampler = SDESampler(sde, Network(Net(d), sde, predict.EDM(0.6), shape=(d,)))
    n = (2001, 141)[d - 1]
    line = torch.linspace(-6, 6, n, dtype=torch.float64)
    x = torch.cartesian_prod(*[line] * d).reshape(-1, d)
    solver = DormandPrince(1e-7, 1e-7) if d == 1 else None  # by default the error of 2e-6 nats shows in the integral
    parts = [sampler.log_prob(part, method=Method(solver, solver_error=False)).value for part in x.split(4000)]
    mass = torch.cat(parts).exp().reshape([n] * d)
    assert mass.flatten()[[0, -1]].max() < 1e-8
    for _ in range(d):
        mass = torch.trapezoid(mass, line)
    print(f"d = {d}: integral - 1 = {float(mass) - 1:.2g}")
    assert abs(float(mass) - 1) <= (1e-6, 1e-5)[d - 1]


def test_latents_of_data_are_standard_normal():
    model = mixture(4, 3)
    latent = weigh(model, model.sample(400, seed=5), method=Method(solver_error=False)).latent
    assert stats.kstest(latent.square().sum(1).numpy(), stats.chi2(4).cdf).pvalue > 1e-3
    assert stats.kstest(latent.flatten().numpy(), "norm").pvalue > 1e-3


def test_scaling_and_shifting_the_data_shifts_the_density_by_the_jacobian():
    one = mixture(2, 3, low=0.2)
    x, w = one.sample(8, seed=0), one.log_weights.exp()
    assert one.basis is not None
    cov = one.basis @ torch.diag_embed(one.spread) @ one.basis.mT
    other = type(one)(one.sde, w, 2 * one.means + 0.5, 4 * (cov + cov.mT) / 2)
    a = weigh(one, x, density=Density(level=0.0), method=Method(solver_error=False))
    b = weigh(other, 2 * x + 0.5, density=Density(level=0.0), method=Method(solver_error=False))
    torch.testing.assert_close(b.value, a.value - 2 * math.log(2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sde", zoo.mostly_slow([VPSDE(), FlowSDE(), EDMSDE()]), ids=repr)
@pytest.mark.parametrize("scale", [None, 0.73])
@pytest.mark.slow
def test_a_sample_has_the_density_that_it_was_drawn_with(sde, scale):
    """Forward equals backward, in the angle and in t; the latent comes back."""
    model = mixture(2, 3, low=0.1).on(sde)
    inner = DormandPrince(1e-7, 1e-7)
    sampler = SDESampler(sde, model, solver=inner if scale is None else Angle(inner, scale))
    x, drawn = sampler.sample_with_log_prob(8, seed=0)
    asked = sampler.log_prob(x, density=Density(whole=False), method=Method(solver_error=False))
    torch.testing.assert_close(drawn.value, asked.value, rtol=0, atol=1e-4)
    torch.testing.assert_close(drawn.latent, asked.latent, rtol=1e-4, atol=1e-4)
    assert drawn.level == pytest.approx(asked.level)
    split, parts = sampler.sample_with_log_prob(8, method=Method(trace=Exact()), seed=0, batch_size=3)
    torch.testing.assert_close(split, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(parts.value, drawn.value, rtol=0, atol=1e-8)


def test_the_sample_is_the_state_before_the_final_jump_in_units_of_the_data():
    sde = VPSDE(t_min=0.01)
    sampler = SDESampler(sde, mixture(2, 3, low=0.2).on(sde), solver=Angle(RK4(), 0.8), denoise=False)
    plain = sampler.sample(4, seed=1)
    x, _ = sampler.sample_with_log_prob(4, seed=1)
    torch.testing.assert_close(x * sde.levels([0.01])[0].alpha, plain, rtol=1e-12, atol=1e-12)


def test_joint_sampling_takes_probes_of_their_own_stream():
    model = mixture(12, 3, low=0.2)
    sampler = SDESampler(model.sde, model, solver=Angle(DormandPrince(1e-4, 1e-4), 0.8))
    x, drawn = sampler.sample_with_log_prob(40, method=Method(trace=Orthogonal(4)), seed=0)
    truth = sampler.log_prob(x, density=Density(whole=False), method=Method(solver_error=False)).value
    z = (drawn.value - truth) / drawn.standard_error
    print(f"standardised errors: mean {float(z.mean()):.2f}, rms {rms(z):.2f}")
    assert abs(float(z.mean())) < 3 / math.sqrt(40) * rms(z)
    assert 0.6 < rms(z) < 1.8
