"""Claim: mistakes that samplers in the field have made, all of them easy to make, are not made here.

One section per mistake, numbered as in our notes on the field. Each says what goes wrong and how one would notice.
"""

from __future__ import annotations

import math
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    CosineSDE,
    DiscreteVPSDE,
    FlowSDE,
    Matched,
    Network,
    Problem,
    SDESampler,
    SubVPSDE,
    grids,
    integrate,
    predict,
)
from sde_diffusion.denoiser.analytic import Gaussian, GaussianMixture
from sde_diffusion.noise import NoiseSource
from sde_diffusion.sde import GaussianSDE, Level
from sde_diffusion.solvers import (
    DDIM,
    IPNDM,
    RK4,
    Adams,
    Angle,
    AngleSDE,
    Churn,
    DPMSolverPP,
    EulerMaruyama,
    Facts,
    Heun,
    Hold,
    Langevin,
    Multistep,
    PredictorCorrector,
    Renoise,
    SASolver,
    SDEDPMSolverPP,
    Solver,
    UniPC,
    annealed_langevin,
)
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.testing import orders


class Hyperbolic(GaussianSDE):
    """A user's process, with nothing but the two functions that are asked for."""

    t_min, t_max = 0.01, 3.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 / torch.cosh(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.tanh(t)


def mixture(sde: GaussianSDE, dtype: torch.dtype = torch.float64) -> GaussianMixture:
    means = torch.tensor([[0.6, -0.3], [-0.5, 0.4]], dtype=dtype)
    variances = torch.tensor([[0.2, 0.1], [0.05, 0.4]], dtype=dtype)
    return GaussianMixture(sde, torch.tensor([0.4, 0.6], dtype=dtype), means, variances)


# ------------------------------------------------------------------------------- D1: a wrong scale in the last line


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), CosineSDE(), FlowSDE(t_max=0.98)], ids=zoo.name)
def test_d1_a_step_in_the_angle_ends_in_the_scale_of_its_end(sde: GaussianSDE) -> None:
    # A step in a normalised coordinate ends by multiplying with the norm of the state where it arrives. With one of the
    # two scales taken where it started, every sample still looks right, and any order of the name converges at order 1.
    # On Gaussian data the error then halves with the step, where here it falls by four.
    model = Gaussian(sde, torch.tensor([0.7, -0.4]).double(), torch.tensor([0.3, 1.4]).double())
    t, s = zoo.between(sde, 1.2, 0.2, 1).tolist()
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * float(
        sde.levels([t])[0].sigma
    )
    for solver in (Adams(2, "angle"), Adams(2, "angle", 0.5), Angle(Heun(), 0.5)):
        errors = []
        for steps in (64, 128):
            *_, last = integrate(GaussianReverseSDE(model), solver, x, zoo.between(sde, 1.2, 0.2, steps))
            errors.append(float((last.x - model.flow(x, t, s)).abs().max()))
        assert errors[0] / errors[1] > 3.6, solver


# ------------------------------------------------------------------------- D2: an order that the first step takes away


def test_d2_no_solver_claims_an_order_that_its_first_steps_take_away() -> None:
    # A multistep method has nothing to look back on at first. Started by a step of order 1 it makes an error of h^2
    # once and for all, so that a whole solve is of order 2 however many terms follow. It must not be sold as more.
    for solver in zoo.ODE_SOLVERS:
        if isinstance(solver, Multistep):
            corrected = isinstance(solver, UniPC) or (isinstance(solver, SASolver) and solver.corrector > 0)
            assert solver.facts.order <= (3 if corrected else 2), solver


def test_d2_a_start_of_order_one_does_hold_a_third_order_method_to_two() -> None:
    sde = VPSDE()
    model = Gaussian(sde, torch.tensor([0.7]).double(), torch.tensor([0.3]).double())
    t, s = zoo.between(sde, 1.2, 0.2, 1).tolist()
    x = torch.ones(1, 1, dtype=torch.float64)
    steps, errors = [64, 128, 256], []
    for n in steps:
        *_, last = integrate(GaussianReverseSDE(model), Adams(4), x, zoo.between(sde, 1.2, 0.2, n))
        errors.append(float((last.x - model.flow(x, t, s)).abs().max()))
    assert orders.slope(steps, errors) == pytest.approx(2.0, abs=0.3)
    assert Adams(4).facts.order == 2


# ------------------------------------------------------------------------------------- D3: a derivative that is not one


EVERY_SDE = [*zoo.SDES, AngleSDE(0.7), Hyperbolic(), VPSDE(0.5, 3.0), EDMSDE(0.1, 5.0)]


@pytest.mark.parametrize("sde", EVERY_SDE, ids=zoo.name)
def test_d3_the_rates_of_every_process_are_the_derivatives_of_its_scales(sde: GaussianSDE) -> None:
    # Drift and diffusion follow from sigma'. A closed form that is off by a factor of two trains without complaint, and
    # sampling never converges. Automatic differentiation and a difference quotient know better.
    inner = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
    t = sde.t_min + (sde.t_max - sde.t_min) * inner
    t = t + 0.31 * (t == t.round())  # a chain has a kink at every index
    h = 1e-6 * torch.minimum(torch.ones_like(t), t)
    for rate, auto, f in zip(sde.rates(t), GaussianSDE.rates(sde, t), (sde.alpha, sde.sigma), strict=True):
        torch.testing.assert_close(rate, auto, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(rate, (f(t + h) - f(t - h)) / (2 * h), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("sde", EVERY_SDE, ids=zoo.name)
def test_d3_drift_and_diffusion_give_back_the_kernel(sde: GaussianSDE) -> None:
    # The moments of dx = f x dt + g dw obey (log alpha)' = f and (sigma^2)' = 2 f sigma^2 + g^2.
    t = sde.t_min + (sde.t_max - sde.t_min) * torch.tensor([0.1, 0.35, 0.8]).double() + 0.013
    one = torch.ones(3, 1, dtype=torch.float64)
    f, g = sde.drift(one, t)[:, 0], sde.diffusion(t)
    with torch.enable_grad():
        u = t.clone().requires_grad_()
        (variance,) = torch.autograd.grad(sde.sigma(u).square().sum(), u)
        alpha = sde.alpha(u).log().sum()
        rate = torch.autograd.grad(alpha, u)[0] if alpha.requires_grad else torch.zeros_like(t)
    torch.testing.assert_close(f, rate, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(variance, 2 * f * sde.sigma(t) ** 2 + g**2, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------- D4: not a number on the Karras levels


MULTISTEP = [
    *(DPMSolverPP(q) for q in (1, 2, 3)),
    *(SDEDPMSolverPP(q) for q in (1, 2, 3)),
    *(UniPC(q, v) for q in (1, 2, 3, 4) for v in ("bh1", "bh2")),
    *(
        Adams(q, quantity)
        for q in (1, 2, 3, 4, 5)
        for quantity in ("data", "noise", "rho", "time", "velocity", "angle")
    ),
    *(IPNDM(q) for q in (1, 2, 3, 4)),
    *(SASolver(p, c, eta) for p, c in ((1, 1), (2, 2), (3, 3), (4, 3)) for eta in (0.0, 1.0)),
]
LAYOUTS: list[Any] = [
    grids.karras,
    partial(grids.karras, rho=1.0),
    partial(grids.karras, rho=20.0),
    grids.log_snr,
    grids.angle,
    grids.cosine,
]
PROCESSES = [DiscreteVPSDE.linear(1000), CosineSDE(), EDMSDE(), FlowSDE(t_max=0.999)]


@pytest.mark.parametrize("sde", PROCESSES, ids=zoo.name)
def test_d4_no_grid_repeats_a_level_at_any_number_of_steps(sde: GaussianSDE) -> None:
    # Where a grid is extended by its own last level, the last step has length zero, and a division by it gives NaN.
    for layout in LAYOUTS:
        for steps in range(1, 61):
            times = layout(sde, steps).tolist()
            assert len(times) == steps + 1
            assert all(s < t for t, s in pairwise(times))
            assert (times[0], times[-1]) == (sde.t_max, sde.t_min)


@pytest.mark.parametrize(
    "solver",
    zoo.mostly_slow(MULTISTEP, 4),
    ids=zoo.name,
)
@pytest.mark.slow
def test_d4_multistep_solvers_are_finite_on_the_karras_levels_at_every_number_of_steps(solver: Solver) -> None:
    sde = DiscreteVPSDE.linear(1000)
    model = Network(lambda x, t: torch.tanh(x), sde, shape=(2,))
    for steps in range(1, 61):
        layout = LAYOUTS[steps % len(LAYOUTS)] if steps % 3 else grids.karras
        x = SDESampler(sde, model, solver=solver, grid=layout, steps=steps).sample(1, seed=steps)
        assert bool(torch.isfinite(x).all()), (steps, layout)


# ------------------------------------------------------------------- D5: a neighbour worked out instead of handed over


class Spy(Solver):
    """Records the levels that it is given."""

    facts = Facts()

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def step(self, eq: object, x: Tensor, t: Level, s: Level, state: None, noise: NoiseSource) -> tuple[Tensor, None]:
        self.seen.append((t.t, s.t))
        return x, None


class Asked:
    """A network that records the times that it is told."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.times.append(float(t[0]))
        return 0.1 * x


IRREGULAR = [999.0, 888.0, 777.0, 300.5, 299.0, 12.0, 0.0]


GRIDS = [IRREGULAR, grids.karras, grids.leading, grids.trailing, grids.angle]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: getattr(g, "__name__", "irregular"))
def test_d5_a_solver_is_given_the_grid_and_never_works_out_a_neighbour(grid: Any) -> None:
    # A sampler that finds the end of its step as `t - T // steps` is right on one spacing alone: on another it steps to
    # a level that the next step does not start from. Nothing fails; the samples are of a little less noise than told.
    sde, spy = DiscreteVPSDE.linear(1000), Spy()
    options: dict[str, Any] = {} if isinstance(grid, list) else {"steps": 9}
    sampler = SDESampler(sde, Network(Asked(), sde, shape=(2,)), solver=spy, grid=grid, **options)
    sampler.sample(1, seed=0)  # tried on Gaussian data first, on this and perhaps on finer grids
    assert spy.seen[-len(sampler.times) + 1 :] == list(pairwise(sampler.times))
    if isinstance(grid, list):
        assert sampler.times == grid


@pytest.mark.parametrize(
    "solver", [DDIM(), DDIM(1.0), DPMSolverPP(2), UniPC(3), IPNDM(2), EulerMaruyama()], ids=zoo.name
)
def test_d5_the_network_is_asked_at_the_times_of_the_grid(solver: Solver) -> None:
    sde, asked = DiscreteVPSDE.linear(1000), Asked()
    SDESampler(sde, Network(asked, sde, shape=(2,)), solver=solver, grid=IRREGULAR).sample(1, seed=0)
    assert asked.times == IRREGULAR  # the last of them for the final jump


# ----------------------------------------------------------------------------------------- D6: a time cut to an integer


def test_d6_the_network_is_told_the_time_between_two_indices_and_no_time_twice() -> None:
    # Karras levels of a cosine schedule crowd at the end: cut to integers, many of them are the same index, and the
    # network is asked at one time while the noise level goes on.
    betas = [
        min(1 - math.cos((i + 1) / 1000 * 1.5707) ** 2 / math.cos(i / 1000 * 1.5707) ** 2, 0.999) for i in range(1000)
    ]
    sde, asked = DiscreteVPSDE(betas), Asked()
    sampler = SDESampler(sde, Network(asked, sde, shape=(2,)), solver=DPMSolverPP(2), grid=grids.karras, steps=20)
    x = torch.zeros(1, 2, dtype=torch.float64)
    sampler.sample(x_T=x)
    assert asked.times == sampler.times
    assert len(set(asked.times)) == 21
    assert sum(t != round(t) for t in asked.times) > 10
    levels = sde.levels(asked.times)
    karras = torch.tensor([math.exp(-at.lam / 7) for at in levels], dtype=torch.float64)
    torch.testing.assert_close(karras.diff(), karras.diff().mean().expand(20), rtol=1e-9, atol=0)


# -------------------------------------------------------- D7, D8: correctors that know some processes, and images alone


CORRECTORS = [
    PredictorCorrector(EulerMaruyama(), Langevin(1, 0.1)),
    PredictorCorrector(DPMSolverPP(2), Langevin(2, 0.16)),
    PredictorCorrector(DDIM(1.0), Renoise()),
    PredictorCorrector(Hold(), Langevin.ncsn(2)),
    annealed_langevin(2),
]


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)], ids=str)
@pytest.mark.parametrize("sde", [*zoo.SDES, Hyperbolic()], ids=zoo.name)
def test_d7_d8_every_corrector_runs_on_every_process_for_vectors_and_images(
    sde: GaussianSDE, shape: tuple[int, ...]
) -> None:
    # A corrector that looks for a table of one schedule fails on the next one; a class of processes that lists its own
    # members is closed to a user's; and broadcasting written for images gives vector data a wrong shape in silence.
    t = torch.tensor([0.3, 0.6]).double() * sde.t_max
    mean, std = sde.marginal(torch.ones(2, *shape), t)
    assert mean.shape == (2, *shape)
    assert torch.broadcast_shapes(std.shape, mean.shape) == mean.shape
    for solver in CORRECTORS:
        grid = zoo.grid(sde, EulerMaruyama(), 5)
        bare = SDESampler(sde, lambda x, t: -x, solver=solver, grid=grid, shape=shape)
        assert bare.sample(2, seed=0).shape == (2, *shape)


def test_d8_a_users_process_is_sampled_as_well_as_one_of_ours() -> None:
    sde = Hyperbolic()
    model = Gaussian(sde, torch.tensor([0.5]).double(), 0.25)
    for solver in (
        EulerMaruyama(),
        DPMSolverPP(2),
        Angle(RK4()),
        PredictorCorrector(EulerMaruyama(), Langevin(1, 0.1)),
    ):
        grid = partial(grids.angle, data_std=0.5)
        sampler = SDESampler(Problem(sde, model, prior=Matched(0.5, 0.25)), solver=solver, steps=150, grid=grid)
        x = sampler.sample(4000, seed=torch.Generator().manual_seed(0))
        # Four standard errors, and 0.02 for the bias of the stochastic ones.
        assert abs(float(x.mean()) - 0.5) < 4 * 0.008 + 0.02, solver
        assert abs(float(x.var()) - 0.25) < 4 * 0.0056 + 0.02, solver


# --------------------------------------------------------------------------- D9: evaluations that nobody made, counted


@pytest.mark.parametrize(
    ("solver", "each"),
    [
        (EulerMaruyama(), 1),
        (PredictorCorrector(EulerMaruyama(), Langevin(2)), 3),
        (PredictorCorrector(Hold(), Langevin(2)), 2),
        (PredictorCorrector(Heun(), Langevin(1)), 3),
        (PredictorCorrector(EulerMaruyama(), Hold()), 1),
        (Hold(), 0),
    ],
    ids=str,
)
def test_d9_what_is_counted_are_the_calls_of_the_network(solver: Solver, each: int) -> None:
    # `steps * (n + 1)` counts a predictor or a corrector that is switched off: twice the price for the same samples.
    sde, asked = VESDE(), Asked()
    sampler = SDESampler(sde, Network(asked, sde, shape=(2,)), solver=solver, steps=10, denoise=False)
    *_, last = sampler.iterate(1, seed=0)
    assert last.nfe == len(asked.times) == 10 * each
    assert solver.facts.evaluations == each


# ------------------------------------------------------------------------------ D13, D14: samples that feel each other


ALONE = [s for s in zoo.SOLVERS if s not in zoo.COUPLED]
EACH = pytest.mark.parametrize("i", range(len(ALONE)), ids=map(zoo.name, ALONE))


@cache
def batch(i: int) -> tuple[SDESampler, Tensor]:
    """A sampler of an exact mixture in float64, and 64 of its samples."""
    sde, solver = VPSDE(), ALONE[i]
    sampler = SDESampler(
        sde, mixture(sde), solver=solver, grid=zoo.grid(sde, solver, 1 if solver.facts.evaluations is None else 6)
    )
    return sampler, sampler.sample(64, seed=0)


@EACH
def test_d13_d14_a_row_alone_is_the_row_in_a_batch_of_64(i: int) -> None:
    # A step size, an error norm or a stream of noise shared by the batch makes a sample depend on its neighbours: it
    # cannot be drawn again alone, and one bad row spoils the others.
    sampler, together = batch(i)
    for k in (0, 41):
        torch.testing.assert_close(sampler.sample(1, seed=k)[0], together[k], rtol=0, atol=1e-12)


@EACH
def test_d14_changing_one_sample_leaves_the_others_as_they_are_to_the_bit(i: int) -> None:
    # A Langevin step whose size is the mean over the batch of gradient norms moves all samples when one is moved.
    sampler, _ = batch(i)
    x_T = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    other = x_T.clone()
    other[1] = 5.0 * other[1] + 3.0
    first, second = sampler.sample(x_T=x_T, seed=0), sampler.sample(x_T=other, seed=0)
    assert torch.equal(first[[0, 2]], second[[0, 2]])
    moves = not any(isinstance(part, Hold) for part in (ALONE[i], getattr(ALONE[i], "predictor", None)))
    assert not moves or not torch.equal(first[1], second[1])


def test_d14_one_stream_for_the_whole_batch_is_used_only_when_asked_for() -> None:
    sampler, together = batch(ALONE.index(EulerMaruyama()))
    assert torch.equal(sampler.sample(2, seed=0), together[:2])
    shared = [sampler.sample(n, seed=torch.Generator().manual_seed(0))[0] for n in (1, 2)]
    assert not torch.equal(*shared)


# ------------------------------------------------------------------------------------------- D16: a thousand everywhere


@pytest.mark.parametrize("levels", [2, 10, 100, 1000, 4000])
def test_d16_a_chain_of_any_length_is_told_its_own_indices(levels: int) -> None:
    # `t * 1000` is right for chains of a thousand levels alone; on others the network is told times it has never seen.
    sde, asked = DiscreteVPSDE.linear(levels, scaled=False), Asked()
    assert (sde.t_min, sde.t_max) == (0.0, levels - 1.0)
    steps = min(levels - 1, 5)
    SDESampler(sde, Network(asked, sde, shape=(2,)), grid=grids.trailing, steps=steps).sample(1, seed=0)
    assert asked.times[0] == levels - 1
    expected = [round(levels - i * levels / (steps + 1)) - 1 for i in range(steps + 1)]
    assert asked.times == expected


@pytest.mark.parametrize(
    "sde", [VPSDE(), SubVPSDE(), VESDE(), BrownianSDE(), EDMSDE(), FlowSDE(t_max=0.9)], ids=zoo.name
)
def test_d16_a_continuous_network_is_told_the_time_of_its_process(sde: GaussianSDE) -> None:
    asked = Asked()
    sampler = SDESampler(sde, Network(asked, sde, predict.data, shape=(2,)), solver=DDIM(), grid=grids.uniform, steps=4)
    sampler.sample(x_T=torch.zeros(1, 2, dtype=torch.float64))
    assert asked.times == sampler.times


def test_churn_and_stages_are_told_their_own_times_too() -> None:
    sde, asked = EDMSDE(), Asked()
    sampler = SDESampler(
        sde, Network(asked, sde, shape=(2,)), solver=Churn(Heun(), 0.25), grid=[8.0, 4.0, 1.0], denoise=False
    )
    sampler.sample(x_T=torch.zeros(1, 2, dtype=torch.float64), seed=0)
    assert asked.times == pytest.approx([10.0, 4.0, 5.0, 1.0], rel=1e-12)
