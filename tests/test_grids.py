"""Claim: each grid is its published formula; on every SDE it falls strictly from exactly t_max to exactly t_min."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    CosineSDE,
    DiscreteVPSDE,
    FlowSDE,
    SDESampler,
    SubVPSDE,
    grids,
)
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.solvers import Heun


def close(found, expected, tol=1e-10):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=tol, atol=0)


def test_uniform_is_uniform_in_time():
    close(grids.uniform(VPSDE(t_min=0.2), 4), [1.0, 0.8, 0.6, 0.4, 0.2])


def test_quadratic_is_uniform_in_the_root_of_time():
    close(grids.quadratic(VESDE(), 4), [1.0, 9 / 16, 4 / 16, 1 / 16, 0.0])


@pytest.mark.parametrize("rho", [7.0, 3.0])
@pytest.mark.parametrize("sde", [EDMSDE(), VPSDE(), BrownianSDE()], ids=repr)
def test_karras_is_the_formula_of_edm_in_the_noise_to_signal_ratio(sde, rho):
    n = 11
    t = grids.karras(sde, n, rho)
    found = sde.sigma(t) / sde.alpha(t)
    high, low = found[0].item(), found[-1].item()
    close(
        found, [(high ** (1 / rho) + i / n * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n + 1)], 1e-9
    )


def test_the_edm_paper_counts_the_final_jump():
    """N = 18 there, with t_18 = 0, is 17 steps here: sigma from 80 to 0.002."""
    t = grids.karras(EDMSDE(), 17)
    close(t, [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)])


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE(), CosineSDE(), DiscreteVPSDE.linear(50)], ids=repr)
def test_log_snr_is_uniform_in_lambda(sde):
    lam = torch.log(sde.alpha(grids.log_snr(sde, 9)) / sde.sigma(grids.log_snr(sde, 9)))
    close(lam, [lam[0].item() + i / 9 * (lam[-1] - lam[0]).item() for i in range(10)], 1e-9)


@pytest.mark.parametrize("sde", [FlowSDE(), CosineSDE(t_max=1.0), VPSDE()], ids=repr)
def test_log_snr_goes_to_a_level_at_once_and_is_uniform_from_there(sde):
    times = grids.log_snr(sde, 9, most=50.0)
    lam = torch.log(sde.alpha(times[1:]) / sde.sigma(times[1:]))
    close(lam, [-math.log(50) + i / 8 * (lam[-1].item() + math.log(50)) for i in range(9)], 1e-7)
    assert (times[0], times[-1]) == (sde.t_max, sde.t_min)
    assert grids.log_snr(sde, 1, most=50.0).tolist() == [sde.t_max, sde.t_min]
    assert torch.equal(grids.log_snr(VPSDE(), 9, most=1e6), grids.log_snr(VPSDE(), 9))


@pytest.mark.parametrize("power", [1.5, 1.0])
@pytest.mark.parametrize("c", [1.0, 0.3])
@pytest.mark.parametrize("sde", [FlowSDE(), EDMSDE(), CosineSDE(t_max=1.0)], ids=repr)
def test_angle_is_a_power_law_in_the_angle(sde, c, power):
    n = 8
    t = grids.angle(sde, n, power, c)
    u = torch.atan2(sde.sigma(t), sde.alpha(t) * c)
    top, bottom = u[0].item(), u[-1].item()
    close(u, [bottom + (top - bottom) * (1 - i / n) ** power for i in range(n + 1)], 1e-9)


@pytest.mark.parametrize("sde", [VPSDE(), FlowSDE(), EDMSDE(), CosineSDE(t_max=1.0)], ids=repr)
def test_cosine_visits_the_levels_of_the_cosine_schedule(sde):
    n = 8
    t = grids.cosine(sde, n)
    noise = sde.sigma(t) / torch.hypot(sde.alpha(t), sde.sigma(t))
    top, bottom = (math.atan2(sde.sigma(t)[i].item(), sde.alpha(t)[i].item()) for i in (0, -1))
    close(noise, [math.sin(bottom + (top - bottom) * (1 - i / n)) for i in range(n + 1)], 1e-9)


def test_cosine_is_uniform_on_the_cosine_schedule():
    close(grids.cosine(CosineSDE(t_max=1.0), 7), grids.uniform(CosineSDE(t_max=1.0), 7).tolist(), 1e-9)


def test_leading_takes_every_so_many_th_index_down_to_zero():
    close(grids.leading(DiscreteVPSDE.linear(1000), 9), [900.0, 800, 700, 600, 500, 400, 300, 200, 100, 0])
    close(grids.leading(DiscreteVPSDE.linear(10, scaled=False), 2), [6.0, 3, 0])


def test_trailing_starts_at_the_last_level():
    """Table 2 of Lin et al. 2024: round(arange(T, 0, -T / n)) - 1."""
    close(grids.trailing(DiscreteVPSDE.linear(1000), 9), [999.0, 899, 799, 699, 599, 499, 399, 299, 199, 99])
    close(grids.trailing(DiscreteVPSDE.linear(10, scaled=False), 2), [9.0, 6, 2])


def test_integers_is_the_whole_chain():
    close(grids.integers(DiscreteVPSDE.linear(5, scaled=False)), [4.0, 3, 2, 1, 0])
    close(grids.integers(DiscreteVPSDE.linear(5, scaled=False), 4), [4.0, 3, 2, 1, 0])


# --------------------------------------------------------------------------------------------------------- invariants

positive = partial(st.floats, allow_nan=False, allow_infinity=False)
continuous = st.one_of(
    st.builds(VPSDE, positive(0.01, 1.0), positive(2.0, 40.0), t_min=positive(1e-5, 1e-2)),
    st.builds(SubVPSDE, positive(0.01, 1.0), positive(2.0, 40.0), t_min=positive(1e-5, 1e-2)),
    st.builds(VESDE, positive(1e-3, 0.1), positive(1.0, 500.0)),
    st.builds(EDMSDE, positive(1e-3, 0.1), positive(1.0, 500.0)),
    st.builds(BrownianSDE, positive(1.0, 1e4), t_min=positive(1e-6, 1e-2)),
    st.builds(CosineSDE, t_min=positive(1e-4, 1e-2), t_max=positive(0.5, 0.999)),
    st.builds(FlowSDE, t_min=positive(1e-4, 1e-2), t_max=positive(0.5, 0.999)),
)
chains = st.builds(DiscreteVPSDE.linear, st.integers(2, 300), positive(1e-5, 1e-3), positive(2e-3, 0.05))


def assert_falls(times, sde, low=None, high=None):
    assert times.dtype == torch.float64
    assert times.ndim == 1
    assert bool((times.diff() < 0).all())
    if high is not None:
        assert times[0].item() == high
    if low is not None:
        assert times[-1].item() == low
    assert times.min() >= sde.t_min
    assert times.max() <= sde.t_max


@pytest.mark.parametrize(
    "grid", [grids.uniform, grids.quadratic, grids.karras, grids.log_snr, grids.angle, grids.cosine]
)
@settings(max_examples=60, deadline=None)
@given(sde=st.one_of(continuous, chains), steps=st.integers(1, 400))
def test_every_grid_falls_strictly_from_exactly_t_max_to_exactly_t_min(grid, sde, steps):
    times = grid(sde, steps)
    assert len(times) == steps + 1
    assert_falls(times, sde, sde.t_min, sde.t_max)


@pytest.mark.parametrize("grid", [grids.uniform, grids.quadratic, grids.angle, grids.cosine])
@pytest.mark.parametrize("sde", [FlowSDE(), CosineSDE(t_max=1.0)], ids=repr)
def test_these_grids_may_start_where_no_data_are_left(sde, grid):
    for steps in (1, 7, 1000):
        assert_falls(grid(sde, steps), sde, sde.t_min, sde.t_max)


@settings(max_examples=60, deadline=None)
@given(chain=chains, data=st.data())
def test_grids_of_a_chain_are_falling_indices(chain, data):
    levels = int(chain.t_max) + 1
    steps = data.draw(st.integers(1, levels - 1))
    for grid in (grids.leading, grids.trailing, grids.linspace):
        times = grid(chain, steps)
        assert len(times) == steps + 1
        assert torch.equal(times, times.round())
        assert_falls(times, chain)
    assert grids.leading(chain, steps)[-1] == 0
    assert grids.trailing(chain, steps)[0] == chain.t_max
    assert grids.linspace(chain, steps)[[0, -1]].tolist() == [chain.t_max, 0]
    if steps == levels - 1:
        assert torch.equal(grids.trailing(chain, steps), grids.integers(chain))
        assert torch.equal(grids.leading(chain, steps), grids.integers(chain))


def test_a_sampler_takes_grids_with_options_and_ready_times():
    sde = EDMSDE()
    model = Gaussian(sde, torch.zeros(2, dtype=torch.float64), 0.5)
    by_function = SDESampler(sde, model, solver=Heun(), steps=6, grid=partial(grids.karras, rho=5.0))
    times: Any = grids.karras(sde, 6, 5.0)
    for ready in (times, times.tolist(), times.numpy(), tuple(times.tolist())):
        sampler = SDESampler(sde, model, solver=Heun(), grid=ready)
        assert sampler.steps == 6
        assert torch.equal(sampler.sample(2, seed=0), by_function.sample(2, seed=0))


def test_a_budget_of_evaluations_counts_the_final_jump():
    sde = EDMSDE()
    model = Gaussian(sde, torch.zeros(2, dtype=torch.float64), 0.5)
    for budget, denoise, steps in ((15, True, 7), (16, True, 7), (16, False, 8), (3, True, 1)):
        sampler = SDESampler(sde, model, solver=Heun(), nfe=budget, denoise=denoise)
        assert sampler.steps == steps
        *_, last = sampler.iterate(1, seed=0)
        assert last.nfe == 2 * steps + denoise
        assert last.nfe <= budget
        assert math.isclose(last.t, sde.t_min)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), EDMSDE()], ids=repr)
@pytest.mark.parametrize("data_std", [1e-7, 1e-5, 1e-3, 1e3])
def test_the_balanced_grid_falls_within_the_process_for_data_of_any_width(sde, data_std) -> None:
    for closed in (False, True):
        times = grids.balanced(sde, 6, data_std=data_std, closed=closed)
        assert bool((times.diff() < 0).all())
        assert sde.t_min <= float(times[-1]) < float(times[0]) == sde.t_max


def test_the_balanced_grid_refuses_a_rate_that_is_no_number() -> None:
    for rate in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match="rate must be"):
            grids.balanced(VPSDE(), 4, rate=rate)
