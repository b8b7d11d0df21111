"""Claim: a sampler that is told neither solver nor grid takes what its budget, process and model ask for, says what it
took as an object that one can write down, and wastes nothing. Oracles are closed forms and textbook loops."""

from __future__ import annotations

import math
import warnings
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
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
    GaussianSDE,
    Network,
    Problem,
    SDESampler,
    SubVPSDE,
    grids,
    predict,
)
from sde_diffusion.denoiser.analytic import Gaussian, isotropic_mixture
from sde_diffusion.denoiser.base import Denoiser, Wrapper
from sde_diffusion.denoiser.predict import Parametrisation
from sde_diffusion.guidance import DPS, Clipped, Mask, Moments, Posterior, Rule
from sde_diffusion.nets import MLP
from sde_diffusion.sampler.moments import misfit
from sde_diffusion.sde.angle import balance
from sde_diffusion.solvers import (
    DDIM,
    IPNDM,
    RK4,
    Adams,
    Angle,
    DPMSolver,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    SDEDPMSolverPP,
    Solver,
    UniPC,
)

PROCESSES: list[GaussianSDE] = [
    VPSDE(),
    SubVPSDE(),
    VESDE(),
    BrownianSDE(),
    CosineSDE(),
    EDMSDE(),
    FlowSDE(),
    DiscreteVPSDE.linear(),
]
BUDGETS = (5, 6, 7, 8, 10, 12, 15, 17, 18, 20, 24, 25, 30, 50)


class Guidance(Wrapper):
    """Two passes, as classifier-free guidance makes."""

    cost = 2


def network(kind: Parametrisation, sde: GaussianSDE) -> Network:
    return Network(MLP(2, hidden=8, layers=1), sde, kind, shape=(2,))


def two_modes(sde: GaussianSDE) -> Denoiser:
    return isotropic_mixture(sde, [[1.0, 0.5], [-1.0, -0.5]], std=0.4)


@pytest.mark.parametrize(("nfe", "order"), [(5, 3), (8, 3), (17, 3), (18, 4), (50, 4)])
def test_an_exact_model_is_asked_with_a_higher_order_when_the_budget_bears_it(nfe: int, order: int) -> None:
    model = two_modes(VPSDE())
    assert SDESampler(VPSDE(), model, nfe=nfe).solver == Adams(order, "balanced", 1.4 * model.data_std)


@pytest.mark.parametrize(("evaluations", "order"), [(5, 2), (8, 2), (9, 3), (17, 3), (18, 4), (40, 4)])
def test_guidance_bears_less(evaluations: int, order: int) -> None:
    model = Guidance(two_modes(VPSDE()))
    sampler = SDESampler(VPSDE(), model, nfe=2 * evaluations)
    assert sampler.solver == Adams(order, "balanced", 1.4 * model.data_std)
    assert sampler.steps == evaluations - 1


def measured(sde: GaussianSDE, rule: Rule | None = None) -> Posterior:
    return Posterior(two_modes(sde), Mask(torch.tensor([True, False])), 0.2, rule or Moments())


@pytest.mark.parametrize("sde", PROCESSES, ids=repr)
def test_a_rule_of_a_posterior_gets_noise_in_steps_of_the_log_snr_once_they_are_short(sde: GaussianSDE) -> None:
    model = measured(sde)
    few, many = (SDESampler(sde, model, nfe=2 * n) for n in (14, 15))  # a pass and a product each
    assert few.solver == Adams(3, "balanced", 1.4 * model.data_std)
    assert many.solver == SDEDPMSolverPP(2)
    assert many.steps == 14
    lam = sde.half_log_snr(torch.tensor(many.times[1:], dtype=torch.float64)).diff()
    torch.testing.assert_close(lam, lam.mean().expand_as(lam), rtol=1e-6, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool(many.sample(2, seed=0, y=torch.tensor([0.5])).isfinite().all())


def test_the_noise_of_a_rule_is_kept_by_wrappers_and_comes_later_for_one_that_shoots_over() -> None:
    sde, dps = VPSDE(), measured(VPSDE(), DPS())
    assert SDESampler(sde, Clipped(measured(sde), -2.0, 2.0)).solver == SDEDPMSolverPP(2)
    assert SDESampler(FlowSDE(), measured(sde).on(FlowSDE())).solver == SDEDPMSolverPP(2)
    assert [SDESampler(sde, dps, nfe=2 * n).solver == SDEDPMSolverPP(2) for n in (59, 60)] == [False, True]
    with pytest.raises(ValueError, match=r"is stochastic, so it has no inverse: encode with solver=Heun\(\)"):
        SDESampler(sde, measured(sde)).encode(torch.zeros(1, 2), y=torch.tensor([0.5]))
    back = SDESampler(sde, measured(sde), solver=Heun()).encode(torch.zeros(1, 2), y=torch.tensor([0.5]))
    assert bool(back.isfinite().all())


@pytest.mark.parametrize("kind", [predict.noise, predict.score], ids=["noise", "score"])
def test_a_network_of_the_noise_is_asked_in_the_log_snr(kind: Parametrisation) -> None:
    for nfe, solver in ((5, UniPC(2)), (9, UniPC(2)), (10, UniPC(2)), (24, UniPC(2)), (25, UniPC(3)), (31, UniPC(3))):
        sampler = SDESampler(VPSDE(), network(kind, VPSDE()), nfe=nfe)
        assert sampler.solver == solver
        assert (sampler.grid is grids.log_snr) == (10 <= nfe < 25)
        assert (sampler.grid is grids.karras) == (nfe >= 25)
    few = SDESampler(VPSDE(), network(kind, VPSDE()), nfe=8)
    assert "grid=partial(grids.balanced, rate=0.2, data_std=1.4)" in repr(few)
    guided = SDESampler(VPSDE(), Guidance(network(kind, VPSDE())), nfe=12)
    assert "grid=partial(grids.balanced, rate=0.5, data_std=1.4)" in repr(guided)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few.sample(2, seed=0)
    assert SDESampler(VPSDE(), network(kind, VPSDE()), steps=7, denoise=False).times[-1] == VPSDE().t_min


@pytest.mark.parametrize("kind", [predict.v, predict.edm, predict.velocity, predict.data], ids=str)
def test_other_networks_are_so_with_many_evaluations(kind: Parametrisation) -> None:
    for nfe, solver in ((8, Adams(3, "balanced", 1.4)), (24, Adams(3, "balanced", 1.4)), (25, UniPC(3))):
        assert SDESampler(VPSDE(), network(kind, VPSDE()), nfe=nfe).solver == solver
    assert "grid=partial(grids.balanced, rate=0.2, data_std=1.4)" in repr(
        SDESampler(VPSDE(), network(kind, VPSDE()), nfe=18)
    )
    assert "grid=partial(grids.balanced, data_std=1.4)" in repr(SDESampler(VPSDE(), network(kind, VPSDE()), nfe=17))
    assert SDESampler(FlowSDE(), network(kind, FlowSDE()), nfe=50).solver == Adams(
        4, "balanced", 1.4
    )  # no log-SNR there


def test_a_bare_function_counts_as_exact_unless_a_network_is_behind_it() -> None:
    sampler = SDESampler(VPSDE(), lambda x, t: -x, shape=(2,), nfe=10)
    assert sampler.solver == Adams(3, "balanced", 1.4)
    net = MLP(2, hidden=8, layers=1)
    behind = SDESampler(VPSDE(), lambda x, t: -net(x, t), shape=(2,), nfe=10)  # a network of the score after all
    assert behind.solver == UniPC(2)


def test_steps_nfe_and_a_grid_of_times_choose_alike() -> None:
    model = two_modes(VPSDE())
    chosen = SDESampler(VPSDE(), model, nfe=20)
    assert SDESampler(VPSDE(), model, steps=19).solver == chosen.solver
    assert SDESampler(VPSDE(), model, nfe=np.int64(20)).solver == chosen.solver
    assert SDESampler(VPSDE(), model, grid=chosen.times).solver == chosen.solver
    assert SDESampler(VPSDE(), model).steps == 30


@pytest.mark.parametrize("nfe", BUDGETS)
@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
def test_the_repr_is_the_choice_as_one_would_write_it(sde: GaussianSDE, nfe: int) -> None:
    model = two_modes(sde)
    sampler = SDESampler(sde, model, nfe=nfe)
    names = {
        "Adams": Adams,
        "UniPC": UniPC,
        "grids": grids,
        "partial": partial,
        "SDESampler": SDESampler,
        "model": model,
    }
    written = repr(sampler).replace(repr(sde), "sde")
    again = eval(written, {**names, "sde": sde})
    assert again.times == sampler.times
    assert again.solver == sampler.solver
    assert torch.equal(again.sample(2, seed=0), sampler.sample(2, seed=0))


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("c", [0.3, 1.0, 2.0])
def test_no_default_is_warned_of_and_each_makes_as_many_evaluations_as_it_may(sde: GaussianSDE, c: float) -> None:
    model = Gaussian(sde, torch.zeros(2, dtype=torch.float64), c**2)
    held = Problem(sde, model)
    for nfe in (5, 8, 12, 20, 31):
        sampler = SDESampler(held, nfe=nfe)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "the prior")  # a process too short for wide data, whatever the solver
            *_, last = sampler.iterate(2, seed=0)
        assert last.nfe == nfe


def test_without_the_last_step_the_grid_goes_down_to_the_least_noise() -> None:
    sde = VPSDE()
    sampler = SDESampler(sde, two_modes(sde), steps=8, denoise=False)
    assert sampler.times[-1] == sde.t_min
    assert SDESampler(sde, two_modes(sde), steps=8).times[-1] > sde.t_min


def test_an_open_grid_changes_neither_the_span_of_a_likelihood_nor_where_an_encoding_starts() -> None:
    sde = VPSDE()
    model = Gaussian(sde, torch.zeros(2, dtype=torch.float64), 1.0)
    sampler = SDESampler(sde, model, nfe=8)
    assert sampler.span == (sde.t_max, sde.t_min)
    x0 = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = sde.levels([sde.t_min, sde.t_max])
    radius = [math.hypot(at.alpha, at.sigma) for at in (low, high)]
    exact = low.alpha * x0 * radius[1] / radius[0]  # the flow of unit Gaussian data keeps x over its radius
    assert float((sampler.encode(x0) - exact).abs().max()) < 0.05
    assert float((SDESampler(sde, model, nfe=40).encode(x0) - exact).abs().max()) < 1e-3


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("c", [0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_the_balanced_grid_is_uniform_in_its_coordinate(sde: GaussianSDE, steps: int, c: float) -> None:
    times = grids.balanced(sde, steps, data_std=c)
    assert times[0] == sde.t_max
    x = np.asarray([at.sigma / max(at.alpha, 1e-300) / c for at in sde.levels(times.tolist())])
    z = np.sqrt(2 / math.pi * np.arctan(x)) + 0.05 * 0.5 * np.log1p(np.minimum(x, math.exp(6.0)) ** 2)
    gaps = -np.diff(z)
    if times[-1] == sde.t_min:
        assert z[-1] >= gaps[-1] * (1 - 1e-3)  # no room for another step of this length
    else:
        assert z[-1] == pytest.approx(gaps[-1], rel=2e-3)  # zero noise is one step further
    assert gaps[1:] == pytest.approx(np.full(steps - 1, gaps[-1]), rel=2e-3)
    if x[0] < math.exp(6.0):  # else the first step goes there from any amount of noise
        assert gaps[0] == pytest.approx(gaps[-1], rel=2e-3)


def test_closed_and_open_end_where_they_say() -> None:
    for sde in PROCESSES:
        assert float(grids.balanced(sde, 6, closed=True)[-1]) == sde.t_min
        assert float(grids.balanced(sde, 6)[-1]) > sde.t_min
        assert float(grids.balanced(sde, 1000)[-1]) == sde.t_min


def test_the_grid_follows_the_scale_of_the_data() -> None:
    one, two = EDMSDE(0.002, 80.0), EDMSDE(0.004, 160.0)
    a, b = grids.balanced(one, 9, data_std=0.5), grids.balanced(two, 9, data_std=1.0)
    assert torch.allclose(2 * a, b, rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -0.1}, "rate must be at least 0 and finite, got -0.1"),
        ({"power": 0.0}, "power must be positive"),
        ({"data_std": -1.0}, "data_std must be positive"),
    ],
)
def test_what_the_balanced_grid_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grids.balanced(VPSDE(), 5, **options)
    with pytest.raises(TypeError, match="closed must be True or False"):
        grids.balanced(VPSDE(), 5, closed="yes")  # type: ignore[arg-type]


def textbook(sde: GaussianSDE, model: Denoiser, x: Tensor, times: list[float], c: float, q: int) -> Tensor:
    """Adams-Bashforth of the velocity in the angle, interpolated in `balance`, by a Riemann sum of 200,000 terms."""
    levels = sde.levels(times)
    u = [math.atan2(at.sigma, at.alpha * c) for at in levels]
    radius = [math.hypot(at.alpha * c, at.sigma) for at in levels]
    y, fields, knots = x / radius[0], list[Tensor](), list[float]()
    for i, (at, nxt) in enumerate(pairwise([*u, 0.0])):
        p = model.predict(radius[i] * y, levels[i])
        fields.insert(0, math.cos(at) * p.noise - math.sin(at) * p.data / c)
        knots.insert(0, float(balance(np.asarray(at))))
        known = min(q, len(knots))
        edges = np.linspace(at, nxt, 200_001)
        z = balance(0.5 * (edges[1:] + edges[:-1]))
        for j in range(known):
            basis = np.prod([(z - knots[k]) / (knots[j] - knots[k]) for k in range(known) if k != j], axis=0)
            y = y + float((basis * np.diff(edges)).sum()) * fields[j]
    return y * c


@pytest.mark.parametrize("q", [1, 2, 3, 4])
def test_the_default_solve_equals_a_textbook_loop(q: int) -> None:
    sde, c = VPSDE(), 1.4
    model = two_modes(sde)
    sampler = SDESampler(sde, model, solver=Adams(q, "balanced", c), grid=grids.balanced, steps=6)
    x_T = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = textbook(sde, model, x_T, sampler.times, c, q)
    assert float((sampler.sample(x_T=x_T) - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), FlowSDE()], ids=lambda sde: type(sde).__name__)
def test_the_defaults_close_in_on_the_flow(sde: GaussianSDE) -> None:
    model = two_modes(sde)
    exact = SDESampler(sde, model, solver=Angle(RK4(), model.data_std), steps=200)
    x_T = exact.problem.start(
        torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), sde.t_max
    )
    target = exact.sample(x_T=x_T)
    errors = [
        float((SDESampler(sde, model, nfe=n).sample(x_T=x_T) - target).square().mean().sqrt()) for n in (6, 12, 24)
    ]
    assert errors[0] < 0.1
    assert errors[1] < 0.4 * errors[0]
    assert errors[2] < 0.4 * errors[1]


@pytest.mark.parametrize("solver", [DPMSolver(2), DPMSolver(3), IPNDM(3), Heun(), DPMSolverPP(2)], ids=repr)
def test_a_solver_named_for_a_network_of_the_noise_gets_times_where_there_is_much_noise(solver: Solver) -> None:
    """The angle stands still there, and took one step from noise 150 times the data to 20 times."""
    sampler = SDESampler(VPSDE(), network(predict.noise, VPSDE()), solver=solver, steps=10)
    ratios = [at.ratio for at in VPSDE().levels(sampler.times)]
    assert max(a / b for a, b in pairwise(ratios) if b > 1) < 4


def test_the_forecast_looks_at_the_data_where_the_solver_goes_on_to_them() -> None:
    """The velocity in the angle is zero on Gaussian data of that scale: an open grid of one step leaves them exact."""
    sde, c = VPSDE(), 0.7
    times = grids.balanced(sde, 1, data_std=c).tolist()
    found = misfit(sde, Adams(3, "angle", c), times, 0.0, c, finish=True)
    assert found is not None
    assert found.std == pytest.approx(1.0, abs=1e-12)
    there = misfit(sde, DDIM(), times, 0.0, c, finish=True)  # which ends with a posterior mean from much noise
    assert there is not None
    assert there.std < 0.9


def test_who_goes_on_to_zero_noise_and_who_extrapolates_in_the_log_snr() -> None:
    reach = [Adams(2, quantity) for quantity in ("velocity", "angle", "balanced")]
    log = [UniPC(3), DPMSolverPP(2), Adams(3, "data")]
    neither: list[Solver] = [DDIM(), IPNDM(3), Heun(), DPMSolver(2), SDEDPMSolverPP(2), Angle(Adams(3, "angle"))]
    assert [(s.reaches_zero, s.log_spaced) for s in (*reach, *log, *neither)] == (
        [(True, False)] * 3 + [(False, True)] * 3 + [(False, False)] * 6
    )


def test_general_processes_keep_theirs() -> None:
    sampler = SDESampler(zoo.DoubleWell(), lambda x, t: -x, shape=(1,))
    assert sampler.solver == EulerMaruyama()
    assert sampler.grid is grids.uniform


@pytest.mark.parametrize(("evaluations", "excess"), [(20, 0.07), (30, 0.03), (60, 0.01)])
def test_noise_in_the_steps_of_a_posterior_widens_gaussian_data_by_what_the_page_says(evaluations, excess):
    times = grids.log_snr(VPSDE(), evaluations - 1).tolist()
    found = misfit(VPSDE(), SDEDPMSolverPP(2), times, 0.0, 1.0)
    assert found is not None
    assert round(found.std**2 - 1, 2) == excess
