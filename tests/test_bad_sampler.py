"""Claim: a sampler that cannot work is not made, and what it cannot do is refused before any network call."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from refusals import T, V, check, refuses
from zoo import DoubleWell

from sde_diffusion import EDMSDE, VPSDE, FlowSDE, Network, SDESampler, grids, integrate, predict
from sde_diffusion.likelihood import Density, Estimate, Method
from sde_diffusion.noise import BrownianPath, SharedStream
from sde_diffusion.sde import Level
from sde_diffusion.solvers import (
    DDIM,
    RK4,
    Angle,
    Churn,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    Torchdiffeq,
    Torchsde,
)
from sde_diffusion.solvers.equation import ODE, GaussianReverseSDE

VP = VPSDE()
X = torch.zeros(3, 2)


def never(x, t):
    raise AssertionError("the network was called")


MODEL = Network(never, VP, shape=(2,))


def sampler(sde=VP, model=MODEL, **options):
    return SDESampler(sde, model, **options)


def solve(solver=None, times=(1.0, 0.5), x=X, model=MODEL):
    return list(integrate(GaussianReverseSDE(model), solver or Heun(), x, times))


# -------------------------------------------------------------------------------------------------------- capability


@pytest.mark.parametrize(
    ("solver", "name"),
    [
        (DDIM(), "DDIM"),
        (DPMSolverPP(), "DPMSolverPP"),
        (Angle(RK4()), "Angle"),
        (Churn(Heun()), "Churn"),
        (Langevin(), "Langevin"),
        (PredictorCorrector(EulerMaruyama(), Langevin()), "PredictorCorrector"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_solver_that_needs_more_than_the_sde_gives_names_those_that_would_work(solver, name):
    check(
        lambda: SDESampler(DoubleWell(), never, solver=solver, shape=(2,)),
        TypeError,
        f"{name} needs a GaussianSDE with a Denoiser or a score; DoubleWell is a general SDE. "
        "Use EulerMaruyama, Heun or RK4",
    )


@pytest.mark.parametrize("solver", [EulerMaruyama(), Euler(), Heun(), RK4(), Torchdiffeq(), Torchsde(n=5)], ids=repr)
def test_the_solvers_that_are_named_do_work_on_a_general_sde(solver):
    model = lambda x, t: 2 * (x - x**3)  # noqa: E731  - the stationary score, under which the flow stands still
    x = SDESampler(DoubleWell(), model, solver=solver, steps=10, shape=(2,)).sample(2, seed=0)
    assert torch.isfinite(x).all()


def test_a_bare_ode_takes_ode_solvers_alone():
    class Decay(ODE):
        def compute_levels(self, times):
            return [Level(t) for t in times]

        def velocity(self, x, t):
            return -x

    ode = Decay()
    text = "needs an SDE with its score; this equation is an ODE alone. Use Euler, Heun, RK4 or Torchdiffeq"
    check(lambda: list(integrate(ode, EulerMaruyama(), X, [1.0, 0.5])), T, "EulerMaruyama " + text)


@refuses(
    (lambda: sampler("VP"), T, "sde must be an SDE such as VPSDE(), got 'VP'"),
    (lambda: sampler(solver="heun"), T, "solver must be a Solver such as Heun(), got 'heun'"),
    (lambda: sampler(solver=Heun), T, "solver must be a Solver such as Heun(), got <class"),
    (lambda: sampler(model=3), T, "score must be a Denoiser or a function score(x, t), got 3"),
    (
        lambda: sampler(DoubleWell(), MODEL),
        T,
        "a Denoiser works on a GaussianSDE; for DoubleWell give a function score(x, t)",
    ),
    (
        lambda: sampler(EDMSDE()),
        V,
        "the denoiser was made for VPSDE(beta_min=0.1, beta_max=20.0, t_min=0.001, t_max=1.0), not for "
        "EDMSDE(sigma_min=0.002, sigma_max=80.0): hand over model.on(sde), which asks the same network "
        "at the same log-SNR",
    ),
    (lambda: sampler(VPSDE(beta_max=10.0)), V, "hand over model.on(sde)"),
    (
        lambda: sampler(model=never).sample(2),
        V,
        "the event shape is not known: give it to SDESampler(..., shape=(3, 32, 32)), or to the model, Network(...",
    ),
    (lambda: sampler(shape=(3,)), V, "shape=(3,), but the model works on (2,)"),
    (lambda: sampler(steps=5, nfe=5), V, "give steps or nfe, not both: got steps=5 and nfe=5"),
    (lambda: sampler(steps=0), V, "steps must be at least 1, got 0"),
    (lambda: sampler(steps=3.0), T, "steps must be an integer, got 3.0"),
    (lambda: sampler(nfe=0), V, "nfe must be at least 1, got 0"),
    (
        lambda: sampler(nfe=2, solver=Heun()),
        V,
        "a budget of 2 evaluations is too small: one step of Heun() takes 2 and the final jump 1",
    ),
    (
        lambda: sampler(nfe=3, solver=RK4(), denoise=False),
        V,
        "a budget of 3 evaluations is too small: one step of RK4() takes 4",
    ),
    (
        lambda: sampler(nfe=50, solver=Torchdiffeq()),
        V,
        "chooses its own evaluations: nfe= has no meaning, give steps= (1 by default)",
    ),
    (
        lambda: sampler(grid=[1.0, 0.5, 0.1], steps=5),
        V,
        "the grid given has 2 steps: leave out steps= and nfe=, or give a grid function",
    ),
    (lambda: sampler(grid=[1.0, 0.5], nfe=5), V, "the grid given has 1 steps: leave out steps= and nfe="),
)
def test_a_sampler_that_cannot_work_is_not_made(call, error, text):
    check(call, error, text)


# -------------------------------------------------------------------------------------------------------------- grids


@pytest.mark.parametrize(
    "door", [lambda times: sampler(grid=times), lambda times: solve(times=times)], ids=["sampler", "loop"]
)
@refuses(
    ([1.0, 0.5, 0.7, 0.1], V, "not strictly monotone: times[1] = 0.5 is followed by times[2] = 0.7"),
    ([1.0, 0.5, 0.5, 0.1], V, "not strictly monotone: times[1] = 0.5 is followed by times[2] = 0.5"),
    ([0.5, 0.5], V, "not strictly monotone: times[0] = 0.5 is followed by times[1] = 0.5"),
    ([1.0], V, "a grid needs at least two times, got 1"),
    ([], V, "a grid needs at least two times, got 0"),
    ([1.0, 0.0], V, "the grid spans [0, 1], outside the [t_min, t_max] = [0.001, 1] of the SDE"),
    ([1.5, 0.5], V, "the grid spans [0.5, 1.5], outside"),
    ([999.0, 0.5], V, "for step i of N, did you mean i / N?"),
    ([1.0, math.nan, 0.5], V, "the grid holds NaN or inf, wanted times in [0.001, 1]"),
    ([math.nan, 0.5], V, "the grid holds NaN or inf"),
    ([math.inf, 0.5], V, "the grid holds NaN or inf"),
    (torch.ones(2, 2), T, "a grid is a sequence of times in one dimension, got"),
    ("10", T, "a grid is a sequence of times in one dimension, got str"),
    ([1.0, "0.5"], T, "a grid is a sequence of times in one dimension, got list"),
    (0.5, T, "a grid is a sequence of times in one dimension, got float"),
)
def test_a_grid_that_cannot_be_walked_is_refused(door, call, error, text):
    check(lambda: door(call), error, text)


def test_a_rising_grid_is_for_encoding_alone():
    check(
        lambda: sampler(grid=[0.1, 1.0]),
        ValueError,
        "a sampling grid falls from noise to data: reverse it (encode turns it",
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: grids.karras(EDMSDE(), 4, rho=0.0), "rho must be positive and finite, got 0.0"),
        (lambda: grids.karras(EDMSDE(), 4, rho=math.nan), "rho must be positive and finite, got nan"),
        (lambda: grids.angle(VP, 4, power=-1.0), "power must be positive and finite, got -1.0"),
        (lambda: grids.angle(VP, 4, data_std=0.0), "data_std must be positive and finite, got 0.0"),
    ],
)
def test_a_grid_without_a_meaning_is_refused(call, text):
    check(call, V, text)


@pytest.mark.parametrize(
    ("shape", "error"), [(2, T), ((2.0,), T), ((-2,), V), ((0,), V), ("ab", T)], ids=["int", "float", "-2", "0", "str"]
)
def test_a_shape_is_that_of_one_sample(shape, error):
    text = f"shape is that of one sample, a tuple of positive integers such as (3, 32, 32) or (2,), got {shape!r}"
    check(lambda: SDESampler(VP, never, shape=shape), error, text)
    check(lambda: Network(never, VP, shape=shape), error, text)


def test_counts_of_numpy_are_counts():
    model = Network(lambda x, t: x, VP, shape=(np.int64(2),))
    x = SDESampler(VP, model, steps=np.int64(3)).sample(np.int64(4), seed=0)
    assert x.shape == (4, 2)


@pytest.mark.parametrize(
    "noise", ["brownian", BrownianPath([0], (2,), torch.float32, "cpu"), SharedStream], ids=["name", "source", "shared"]
)
def test_noise_is_what_makes_a_source(noise):
    text = "noise is what makes a source of seeds, the class noise.Streams or noise.BrownianPath itself, got "
    check(lambda: sampler(solver=DDIM(1.0)).sample(1, seed=0, noise=noise), T, text)


def test_one_shared_stream_has_no_brownian_path():
    text = "BrownianPath makes one path of each seed, but a torch.Generator is one stream for the whole batch"
    run = sampler(solver=DDIM(1.0))
    check(lambda: run.sample(2, seed=torch.Generator(), noise=BrownianPath), V, text)


@pytest.mark.parametrize(
    ("answer", "name", "fix"),
    [
        (None, "NoneType", "is a return missing?"),
        ((None, X), "tuple", "alone, first in a tuple, or called sample"),
        ((), "tuple", "alone, first in a tuple, or called sample"),
    ],
    ids=["None", "tuple", "empty"],
)
def test_a_network_that_answers_no_tensor_is_refused(answer, name, fix):
    model = Network(lambda x, t: answer, VP, shape=(2,))
    text = f"the network answered {name}, wanted a tensor of shape (1, 2): {fix}"
    check(lambda: sampler(model=model).sample(1, seed=0), T, text)


@pytest.mark.parametrize("grid", [grids.karras, grids.log_snr])
def test_a_grid_for_another_kind_of_sde_is_refused_by_the_sampler(grid):
    flow = Network(never, FlowSDE(), predict.velocity, shape=(2,))
    check(lambda: sampler(FlowSDE(), flow, grid=grid), V, "needs a finite log-SNR at both ends")
    check(lambda: sampler(grid=grids.leading), T, "grids.leading picks indices of a discrete chain")


def test_a_general_sde_starts_where_its_prior_is_known():
    bare = SDESampler(DoubleWell(), lambda x, t: -x, grid=[0.8, 0.1], shape=(2,))
    text = (
        "the grid starts at t = 0.8, but the prior of DoubleWell is known at t_max = 1 alone: start there, or give x_T="
    )
    check(lambda: bare.sample(2), V, text)
    assert bare.sample(x_T=X).shape == (3, 2)


# ------------------------------------------------------------------------------------------------------------ drawing


@refuses(
    (lambda: sampler().sample(0), V, "n must be at least 1, got 0"),
    (lambda: sampler().sample(0, batch_size=2), V, "n must be at least 1, got 0"),
    (lambda: sampler().sample(2.0), T, "n must be an integer, got 2.0"),
    (lambda: sampler().sample(2, batch_size=0), V, "batch_size must be at least 1, got 0"),
    (lambda: next(sampler().iterate(0)), V, "n must be at least 1, got 0"),
    (
        lambda: sampler().sample(3, seed=[1, 2]),
        V,
        "got 2 seeds for 3 samples: give one integer, or one seed",
    ),
    (lambda: sampler().sample(3, seed="a"), T, "seed must be an integer, a sequence of integers"),
    (lambda: sampler().sample(2, seed=-5), V, "seeds must be >= 0"),
    (lambda: sampler().sample(x_T=X[:0]), V, "x_T is an empty batch of shape (0, 2)"),
    (lambda: sampler().sample(x_T=X.half()), T, "x_T has dtype torch.float16"),
    (lambda: sampler().sample(x_T=X.long()), T, "x_T has dtype torch.int64"),
    (
        lambda: sampler().sample(x_T=torch.zeros(3, 4)),
        V,
        "x_T has event shape (4,) (batch 3), but the model",
    ),
    (lambda: sampler().sample(x_T=X.log()), V, "x_T holds 6 non-finite values of 6"),
    (lambda: sampler().sample(2, x_T=X), V, "n = 2, but x_T holds 3 states: leave n out"),
    (lambda: sampler().encode(X[:0]), V, "x0 is an empty batch of shape (0, 2)"),
    (lambda: sampler().encode(X.half()), T, "x0 has dtype torch.float16"),
    (lambda: sampler().encode(X.log()), V, "x0 holds 6 non-finite values of 6"),
    (lambda: sampler().encode(torch.zeros(3, 4)), V, "x0 has event shape (4,) (batch 3)"),
    (
        lambda: sampler(solver=DDIM(0.5)).encode(X),
        V,
        "DDIM(eta=0.5, variance='posterior') is stochastic, so it has no inverse: encode with solver=Heun(), RK4() "
        "or DPMSolverPP()",
    ),
    (lambda: sampler(solver=Churn(Heun())).encode(X), V, "is stochastic, so it has no inverse"),
    (lambda: sampler().log_prob(X.long()), T, "x0 has dtype torch.int64"),
    (lambda: sampler().log_prob(X[:0]), V, "x0 is an empty batch"),
    (lambda: sampler().log_prob(X.log()), V, "x0 holds 6 non-finite values of 6"),
    (lambda: sampler().log_prob(X, method=Method(steps=0)), V, "steps must be at least 1, got 0"),
    (lambda: sampler().log_prob(X, method=Method(data_std=-1.0)), V, "data_std must be positive and finite, got -1.0"),
    (
        lambda: sampler().log_prob(X, method=Method(DPMSolverPP())),
        T,
        "(it needs a GaussianSDE with a Denoiser or a score): use solver=DormandPrince(), Heun(), RK4()",
    ),
    (lambda: sampler().log_prob(X, method=Method(EulerMaruyama())), T, "but EulerMaruyama(eta=1.0) is stochastic"),
    (
        lambda: SDESampler(DoubleWell(), never, shape=(2,)).log_prob(X, density=Density(whole=True)),
        T,
        "which DoubleWell, a general SDE",
    ),
    (
        lambda: solve(DDIM(1.0), model=Network(lambda x, t: x, VP)),
        V,
        "a stochastic solver was given no noise: hand integrate a source such as noise.Streams",
    ),
)
def test_what_cannot_be_drawn_encoded_or_weighed_is_refused(call, error, text):
    check(call, error, text)


class Careless(DoubleWell):
    """A general SDE with a prior that forgets the batch."""

    def prior(self, z):
        return z[:1]

    def prior_log_prob(self, x):
        return -x.square().sum()


def test_a_prior_of_another_shape_is_refused():
    run = SDESampler(Careless(), lambda x, t: -x, shape=(2,), steps=3)
    check(lambda: run.sample(3, seed=0), V, "the prior's answer has shape (1, 2), wanted that of the draws, (3, 2)")
    text = "prior_log_prob of Careless answered shape () to 3 states, wanted shape (3,): one number per state"
    check(lambda: run.log_prob(torch.zeros(3, 2), method=Method(RK4(), steps=2)), V, text)


def test_a_snapshot_that_was_written_to_stops_the_solve():
    solve = sampler().iterate(2, seed=0)
    next(solve).x.mul_(2.0)
    check(lambda: next(solve), V, "the state of snapshot 0 was written to between two steps, and the solve goes on")


def test_more_than_a_machine_can_hold_is_refused_at_the_door():
    check(lambda: sampler().sample(10**9), V, "n must be at most 100,000,000 samples in one call, got 1,000,000,000")
    check(lambda: sampler().iterate(10**12), V, "n must be at most 100,000,000 samples")
    text = "shape=(1000000000000,) is of 1,000,000,000,000 numbers a sample, wanted 2,147,483,648 at most"
    check(lambda: SDESampler(VP, lambda x, t: -x, shape=(10**12,)), V, text)
    check(lambda: Estimate(levels=10**9), V, "levels must be at most 1,000,000")
