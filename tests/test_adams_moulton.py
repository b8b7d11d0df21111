"""Claim: AdamsMoulton is the predictor-corrector of the textbooks, for any grid and any ODE, at one evaluation a step.

The loops over floats are those of the textbooks for equal steps, with their coefficients; on other grids the weights
are held to what defines them, which is to integrate polynomials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import mixture
from torch import Tensor

from sde_diffusion import VPSDE, SDESampler, integrate
from sde_diffusion.likelihood import Density, Method
from sde_diffusion.noise import Silent
from sde_diffusion.sde import Level
from sde_diffusion.solvers import RK4, AdamsMoulton, Reversible
from sde_diffusion.solvers.equation import ODE
from sde_diffusion.testing import orders

BASHFORTH = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
MOULTON = {2: [1 / 2, 1 / 2], 3: [5 / 12, 8 / 12, -1 / 12], 4: [9 / 24, 19 / 24, -5 / 24, 1 / 24]}
ORDERS = pytest.mark.parametrize("order", [2, 3, 4])


class Pendulum(ODE):
    """A pendulum pushed in time: a state of angle and speed, nothing of an SDE about it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def compute_levels(self, times: Sequence[float]) -> list[Level]:
        return [Level(t) for t in times]

    def velocity(self, x: Tensor, t: Level) -> Tensor:
        self.asked.append(t.t)
        return torch.stack([x[:, 1], 0.5 * math.cos(3 * t.t) - torch.sin(x[:, 0])], dim=1)


def swings() -> Tensor:
    return torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def textbook(eq: ODE, order: int, x: Tensor, times: list[float]) -> Tensor:
    """Predict, evaluate, correct on equal steps: `x` is corrected, `p` predicted, `v` the velocities, newest first."""
    h, p = times[1] - times[0], x
    v: list[Tensor] = []
    for i, t in enumerate(times[:-1]):
        v = [eq.velocity(p, Level(t)), *v]
        if i:
            moulton = MOULTON[min(len(v), order)]
            x = x + h * sum((c * f for c, f in zip(moulton, v, strict=False)), torch.zeros_like(x))
        bashforth = BASHFORTH[min(len(v), order)]
        p = x + h * sum((b * f for b, f in zip(bashforth, v, strict=False)), torch.zeros_like(x))
    return p


@ORDERS
@pytest.mark.parametrize("ends", [(0.0, 3.0), (3.0, 0.0)], ids=["rising", "falling"])
def test_on_equal_steps_it_is_the_loop_of_the_textbooks(order: int, ends: tuple[float, float]) -> None:
    for steps in (1, 2, 3, 4, 5, 30):
        times = [ends[0] + (ends[1] - ends[0]) * i / steps for i in range(steps + 1)]
        *_, last = integrate(Pendulum(), AdamsMoulton(order), swings(), times)
        torch.testing.assert_close(last.x, textbook(Pendulum(), order, swings(), times), rtol=0, atol=1e-12)


@ORDERS
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(gaps=st.lists(st.floats(0.2, 1.0), min_size=5, max_size=5), sign=st.sampled_from([-1.0, 1.0]))
def test_a_step_on_any_grid_integrates_polynomials_below_its_order(order: int, gaps: list[float], sign: float) -> None:
    times = (sign * np.cumsum([0.0, *gaps])).tolist()
    for known in range(1, order + 2):  # the start, which has less to look back on, among them
        *past, s = times[-known - 1 :]
        row = AdamsMoulton(order).row(past[::-1], s)
        assert len(row) == known
        least = order if known > order else max(known - 1, 1)  # of the predictor that is corrected, while it starts
        for k in range(least):
            exact = (s ** (k + 1) - past[-1] ** (k + 1)) / (k + 1)
            found = sum(w * t**k for w, t in zip(row, past[::-1], strict=True))
            assert found == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize(("order", "left"), [(2, 5), (3, 9), (4, 13.2)])
def test_of_the_leading_error_of_adams_and_bashforth_little_is_left(order: int, left: float) -> None:
    times = [float(-i) for i in range(order + 1)]
    short = [
        sum(w * t**order for w, t in zip(row, times, strict=False)) - 1 / (order + 1)
        for row in (BASHFORTH[order], AdamsMoulton(order).row(times, 1.0))
    ]
    assert abs(short[0] / short[1]) == pytest.approx(left, rel=0.01)


@pytest.mark.parametrize(("order", "most"), [(2, 0.5), (3, 0.286), (4, 0.158)])
def test_a_decaying_mode_is_stable_up_to_the_step_that_the_docstring_names(order: int, most: float) -> None:
    row = AdamsMoulton(order).row([float(-i) for i in range(order + 1)], 1.0)

    def growth(z: float) -> float:
        step = np.eye(order + 1, k=-1)
        step[0] = -z * np.array(row)
        step[0, 0] += 1
        return float(abs(np.linalg.eigvals(step)).max())

    assert growth(0.99 * most) <= 1 < growth(1.01 * most)


@ORDERS
def test_it_reaches_its_order_on_any_ode_and_on_an_irregular_grid(order: int) -> None:
    u = torch.linspace(0, 1, 2001, dtype=torch.float64)
    *_, exact = integrate(Pendulum(), RK4(), swings(), 3 * u)
    steps, errors = [64, 128, 256, 512], []
    for n in steps:
        times = 3 * (u := torch.linspace(0, 1, n + 1, dtype=torch.float64)) + 0.1 * torch.sin(6 * math.pi * u)
        *_, last = integrate(Pendulum(), AdamsMoulton(order), swings(), times)
        errors.append(float((last.x - exact.x).norm(dim=1).mean()))
    assert AdamsMoulton(order).facts.order - 0.15 <= orders.slope(steps, errors) <= order + 1.6, errors


def test_the_velocity_is_asked_once_per_step_at_the_times_of_the_grid() -> None:
    eq, times = Pendulum(), [0.0, 0.1, 0.4, 0.45, 1.0, 1.7, 1.9]
    snapshots = list(integrate(eq, AdamsMoulton(), swings(), times))
    assert eq.asked == times[:-1]
    early = iter(integrate(Pendulum(), AdamsMoulton(), swings(), times))
    for snapshot in snapshots[:4]:  # a solve that is left on the way has been the same until there
        assert torch.equal(next(early).x, snapshot.x)


class Growth(ODE):
    """`v = x`, and the very tensor: what is modified in place would be seen."""

    def compute_levels(self, times: Sequence[float]) -> list[Level]:
        return [Level(t) for t in times]

    def velocity(self, x: Tensor, t: Level) -> Tensor:
        return x


@ORDERS
def test_neither_the_state_nor_the_velocity_is_modified(order: int) -> None:
    start = torch.ones(2, 3, dtype=torch.float64)
    snapshots = list(integrate(Growth(), AdamsMoulton(order), start, torch.linspace(0, 1, 101)))
    kept = [now.x.clone() for now in snapshots]
    assert torch.equal(start, torch.ones_like(start))
    for now, before in zip(snapshots, kept, strict=True):
        torch.testing.assert_close(now.x, torch.full_like(start, math.exp(now.t)), rtol=0, atol=2e-4)
        assert torch.equal(now.x, before)


class Driven(ODE):
    """`v = cos(t)`, wherever the state is."""

    def compute_levels(self, times: Sequence[float]) -> list[Level]:
        return [Level(t) for t in times]

    def velocity(self, x: Tensor, t: Level) -> Tensor:
        return torch.full_like(x, math.cos(t.t))


def test_what_is_done_to_the_state_between_two_steps_stays() -> None:
    # Noise that a wrapper adds, say: the correction is added to the state that comes in, and does not bring back the
    # state that was predicted.
    times, ends = [0.0, 0.3, 0.5, 0.9, 1.0], []
    for moved in (0.0, 7.0):
        x, memory = torch.zeros(2, 3, dtype=torch.float64), None
        for i, (t, s) in enumerate(pairwise(times)):
            x, memory = AdamsMoulton().step(Driven(), x + moved * (i == 2), Level(t), Level(s), memory, Silent())
        ends.append(x)
    torch.testing.assert_close(ends[1], ends[0] + 7.0, rtol=0, atol=1e-14)


def test_a_log_likelihood_takes_one_evaluation_per_step_and_is_right() -> None:
    model = mixture(4)
    x = model.sample(16, seed=1)
    found = SDESampler(VPSDE(), model).log_prob(x, density=Density(level=0.0), method=Method(AdamsMoulton(), steps=120))
    assert found.nfe == 120
    assert float((found.value - model.data_log_prob(x)).abs().max()) < 1e-5


def test_its_step_has_no_inverse() -> None:
    with pytest.raises(
        ValueError, match=r"Reversible inverts the step of a deterministic one-step solver, .* got Adams"
    ):
        Reversible(AdamsMoulton())
