"""Claim: a density is that of the samples it comes with, within the error stated, whatever solver draws them; and a
log-likelihood is the same in any batches."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import zoo
from mixtures import mixture
from refusals import check

from sde_diffusion import EDMSDE, SDE, VESDE, VPSDE, BrownianSDE, Network, SDESampler, predict
from sde_diffusion.denoiser.analytic import isotropic_mixture
from sde_diffusion.likelihood import Density, LikelihoodWarning, Method, Orthogonal
from sde_diffusion.likelihood.flow import check_solver
from sde_diffusion.solvers import RK4, AdamsMoulton, DormandPrince, Euler, Heun, Reversible, Torchdiffeq


def weighs(solver):
    try:
        check_solver(solver, "log_prob")
    except TypeError:
        return False
    return True


ODE_SOLVERS = [solver for solver in zoo.SOLVERS if weighs(solver)]
GROWING = [VESDE(), EDMSDE(), BrownianSDE()]
MODEL = mixture(2, 3, low=0.2)


def rms(x):
    return float(x.square().mean().sqrt())


def exact(sampler, x):
    """The density of the flow from the prior of a sampler, to 1e-6."""
    return sampler.log_prob(
        x, density=Density(whole=False), method=Method(DormandPrince(1e-8, 1e-8), solver_error=False)
    ).value


def within(sampler, n=12, seed=0):
    """The error of a density drawn, once it is found within what was stated."""
    x, found = sampler.sample_with_log_prob(n, seed=seed)
    error = (found.value - exact(sampler, x)).abs()
    covered = float((error <= 2 * found.solver_error).double().mean())
    ratio = float((error / found.solver_error).max())
    print(
        f"{sampler.solver!r} {sampler.steps}: rms {rms(error):.1e}, stated {rms(found.solver_error):.1e}, {ratio:.1f}"
    )
    assert bool(found.converged.all())
    assert rms(error) <= 1.5 * rms(found.solver_error)
    assert covered >= 0.9
    assert ratio < 10
    return rms(error)


@pytest.mark.parametrize(("solver", "steps"), [(Heun(), 200), (AdamsMoulton(), 200), (RK4(), 50)], ids=repr)
@pytest.mark.parametrize("sde", [EDMSDE(), VESDE(), VESDE(0.01, 348)], ids=repr)
def test_a_solver_that_steps_in_t_gives_the_exact_density_of_its_samples(sde, solver, steps):
    model = isotropic_mixture(sde, [[-1.0, 0.0], [1.0, 0.0]], std=0.5)
    x, found = SDESampler(sde, model, solver=solver, steps=steps).sample_with_log_prob(64, seed=0)
    truth = model.log_prob(x, sde.t_min)  # alpha is 1; the prior is as wide as the mixture there, up to 1e-3
    assert (found.value - truth).abs().max() < 0.02
    assert rms(found.solver_error) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("i", "solver"), list(enumerate(ODE_SOLVERS)), ids=repr)
def test_a_density_is_within_the_error_stated_at_defaults_and_in_six_steps(i, solver):
    sde = GROWING[i % 3]
    model = MODEL.on(sde)
    error = within(SDESampler(sde, model, solver=solver))
    assert error < (0.1 if solver.facts.order == 1 else 0.05) or solver == Torchdiffeq(
        "rk4"
    )  # whose default is one step
    if solver.facts.evaluations is not None:
        within(SDESampler(sde, model, solver=solver, steps=6))


@pytest.mark.slow
@pytest.mark.parametrize("sde", zoo.SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("solver", ODE_SOLVERS, ids=repr)
def test_it_is_so_on_every_process_in_any_number_of_steps(sde, solver):
    model = MODEL.on(sde)
    for steps in (None, 2, 4, 8, 16, 30) if solver.facts.evaluations is not None else (None,):
        within(SDESampler(sde, model, solver=solver, steps=steps), 48)


@pytest.mark.parametrize("solver", [Euler(), Heun(), RK4(), AdamsMoulton(), Reversible(Heun())], ids=repr)
@pytest.mark.parametrize("steps", zoo.mostly_slow([3, 1, 9, 32]))
def test_a_fixed_solver_states_its_error_on_data_too(solver, steps):
    x = MODEL.sample(32, seed=1)
    sampler = SDESampler(MODEL.sde, MODEL)
    found = sampler.log_prob(x, density=Density(whole=False), method=Method(solver, steps=steps))
    error = (found.value - exact(sampler, x)).abs()
    assert rms(error) <= 1.5 * rms(found.solver_error)
    assert (error <= 2 * found.solver_error).double().mean() >= 0.9


class Relaxing(SDE):
    """dx = -x dt + sqrt 2 dw as a general SDE, from N(1, 0.25) to N(0, 1)."""

    t_min, t_max = 0.0, 3.0

    def drift(self, x, t):
        return -x

    def diffusion(self, t):
        return math.sqrt(2.0) * torch.ones_like(t)

    def prior(self, z):
        return z

    def prior_log_prob(self, x):
        return -0.5 * (x.square() + math.log(2 * math.pi)).flatten(1).sum(1)

    def score(self, x, t):
        a = torch.exp(-t)[:, None]
        return -(x - a) / (1 - 0.75 * a * a)


@pytest.mark.parametrize("solver", [Euler(), Heun(), RK4(), AdamsMoulton()], ids=repr)
@pytest.mark.parametrize("steps", [4, 30])
def test_of_a_general_sde_it_is_the_density_that_its_flow_has_in_closed_form(solver, steps):
    sde = Relaxing()
    x, found = SDESampler(sde, sde.score, solver=solver, steps=steps, shape=(2,)).sample_with_log_prob(32, seed=0)
    a = math.exp(-3.0)
    stretch = math.sqrt(1 - 0.75 * a * a) / 0.5  # of the linear flow from N(1, 0.25) to N(a, 1 - 0.75 a^2)
    truth = sde.prior_log_prob(a + stretch * (x - 1)) + 2 * math.log(stretch)
    error = (found.value - truth).abs()
    assert rms(error) <= 1.5 * rms(found.solver_error)
    assert (error <= 2 * found.solver_error).double().mean() >= 0.9
    if steps == 30:
        assert rms(error) < 0.2


def test_a_general_sde_whose_grid_starts_where_its_prior_is_unknown_has_no_density_to_give():
    sampler = SDESampler(Relaxing(), Relaxing().score, solver=Heun(), grid=[2.0, 1.0, 0.0], shape=(2,))
    check(
        lambda: sampler.sample_with_log_prob(x_T=torch.zeros(3, 2)),
        ValueError,
        "the grid starts at t = 2, but the density of Relaxing is known at t_max = 3 alone, by its prior: start there",
    )


def test_the_error_can_be_left_out_and_is_then_unknown():
    sampler = SDESampler(MODEL.sde, MODEL, solver=Heun(), steps=20)
    x, found = sampler.sample_with_log_prob(4, seed=0)
    y, plain = sampler.sample_with_log_prob(4, method=Method(solver_error=False), seed=0)
    assert torch.equal(x, y)
    assert torch.equal(found.value, plain.value)
    assert plain.solver_error.isnan().all()
    assert (plain.nfe, plain.nfe_check) == (40, 0)
    assert (found.nfe, found.nfe_check) == (40, 20)
    truth = sampler.log_prob(x, density=Density(whole=False), method=Method(solver_error=False))
    torch.testing.assert_close(found.truncation, truth.truncation)


# ------------------------------------------------------------------------------------------------------------- batches


def wave(x, t, shift=0.0):
    """A network without matrix products, whose rounding does not depend on the batch."""
    shift = shift[:, None] if isinstance(shift, torch.Tensor) else shift
    return torch.tanh(x * (1 + 0.1 * t[:, None])) - 0.3 * x.flip(1) + shift


WAVE = SDESampler(VPSDE(), Network(wave, VPSDE(), predict.edm, shape=(6,)))
POINTS = torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("solver", [None, RK4()], ids=repr)
def test_a_log_likelihood_is_the_same_bit_for_bit_in_any_batches(size, solver):
    shift = torch.linspace(0, 1, 7, dtype=torch.float64)
    method = Method(solver, steps=None if solver is None else 8, trace=Orthogonal(2))
    whole = WAVE.log_prob(POINTS, method=method, seed=5, shift=shift)
    parts = WAVE.log_prob(POINTS, method=method, seed=5, shift=shift, batch_size=size)
    for name in ("value", "standard_error", "solver_error", "truncation", "latent", "converged"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name
    assert (parts.nfe, parts.nfe_check) == (whole.nfe, whole.nfe_check)  # of the slowest row


def test_gradients_go_through_batches():
    grads = []
    for size in (None, 3):
        x = POINTS.clone().requires_grad_()
        found = WAVE.log_prob(x, method=Method(RK4(), steps=4, solver_error=False), grad=True, batch_size=size)
        grads.append(torch.autograd.grad(found.value.sum(), x)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-12, atol=1e-12)


def test_a_row_that_fails_in_a_later_batch_is_named_by_its_own_number():
    shift = torch.zeros(7, dtype=torch.float64)
    shift[5] = math.nan
    with pytest.warns(LikelihoodWarning, match="1 of 3 log-likelihoods are NaN.* first for row 5 at"):
        found = WAVE.log_prob(POINTS, method=Method(solver_error=False), batch_size=3, shift=shift)
    assert found.converged.tolist() == [True] * 5 + [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WAVE.log_prob(POINTS[:5], method=Method(solver_error=False), batch_size=3, shift=shift[:5])


@pytest.mark.parametrize("trace", [None, Orthogonal(2)], ids=repr)
def test_inference_mode_makes_no_difference(trace):
    def both():
        level = torch.linspace(0.5, 1, 4)
        model = Network(lambda x, t, level: torch.tanh(x) * level[:, None], VPSDE(), predict.noise, shape=(2,))
        x, found = SDESampler(VPSDE(), model, solver=RK4(), steps=8).sample_with_log_prob(
            4, method=Method(trace=trace), seed=0, level=level
        )
        return x, found.value, found.solver_error

    wanted = both()
    with torch.inference_mode():
        assert all(map(torch.equal, both(), wanted))


def test_a_batch_size_below_one_is_refused():
    check(lambda: WAVE.log_prob(POINTS, batch_size=0), ValueError, "batch_size must be at least 1, got 0")


class Broken(torch.nn.Module):
    """Answers NaN where the first coordinate is large."""

    def forward(self, x, t):
        return torch.where(x[:, :1] > 1.2, math.nan, 0.1 * x)


@pytest.mark.parametrize("solver", [Heun(), RK4(), AdamsMoulton()], ids=repr)
def test_a_row_without_a_density_is_no_sample(solver):
    sampler = SDESampler(VPSDE(), Network(Broken(), VPSDE(), predict.edm, shape=(2,)), solver=solver, steps=6)
    with pytest.warns(LikelihoodWarning, match="log-likelihoods are NaN"):
        x, found = sampler.sample_with_log_prob(2, seed=0)  # row 0 starts at 1.54
    assert not bool(found.converged[0])
    assert bool(x[0].isnan().all())
    assert bool(x[1].isfinite().all())
    assert bool(found.converged[1])
