"""Claim: a deterministic solve is one lower-triangular table, found by running the solver on coefficient vectors.

Solving by the table is stepping with the solver, to 1e-12 in float64, whichever solver, process and form of the table.
The oracles are the solvers themselves, and a loop over the numbers of the table that is written out here.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
import zoo
from solves import SHORT, apart, components, last, model, start, table

from sde_diffusion import (
    EDMSDE,
    VPSDE,
    Clipped,
    DiscreteVPSDE,
    FlowSDE,
    Network,
    Problem,
    SDESampler,
    SolverTable,
    TableSolver,
    grids,
    integrate,
    predict,
)
from sde_diffusion.solvers import DDIM, Adams, DPMSolverPP, Euler, Heun

LINEAR = [s for s in zoo.SOLVERS if not (s.facts.stochastic or s.facts.adaptive or s.facts.evaluations is None)]
PROCESSES = [
    pytest.param(sde, marks=() if isinstance(sde, (DiscreteVPSDE, FlowSDE)) else pytest.mark.slow) for sde in zoo.SDES
]
# --- a table is its solver


@pytest.mark.parametrize("sde", PROCESSES, ids=zoo.name)
@pytest.mark.parametrize("solver", LINEAR, ids=zoo.name)
def test_the_table_of_a_solver_steps_as_the_solver_does(solver, sde):
    known, times = model(sde), zoo.grid(sde, solver, 5)
    x = start(sde, times[0])
    for finish in (True, False):
        then = last(solver, known, x, times, finish)
        made = SolverTable.of(solver, sde, times, finish=finish)
        now = last(TableSolver(made), known, x, made.grid, finish)
        assert now.nfe == then.nfe == made.nfe
        assert now.index == then.index
        assert apart(now.x, then.x) < 1e-12


@pytest.mark.parametrize("solver", LINEAR, ids=zoo.name)
def test_a_windowed_table_is_the_full_one(solver):
    sde = VPSDE()
    known, made = model(sde), SolverTable.of(solver, sde, zoo.grid(sde, solver, 5))
    x = start(sde, made.grid[0])
    short = next(found for w in range(1, made.nfe + 1) if (found := held(made, w)) is not None)
    if getattr(solver, "half", None) == "data":  # else older states are weighed too, by way of their noise
        assert short.window <= solver.facts.memory
    assert [len(row) for row in short.rows] == [1 + min(i, short.window) for i in range(made.nfe + 1)]
    found, expected = (last(way, known, x, made.grid, True).x for way in (TableSolver(short), solver))
    assert apart(found, expected) < 1e-12
    for a, b in zip(short.full().rows, made.rows, strict=True):
        assert max(abs(u - v) for u, v in zip(a, b, strict=True)) < 1e-11 * max(1, *map(abs, b))


def held(made, window):
    try:
        return made.windowed(window)
    except ValueError:
        return None


def test_the_states_on_the_way_are_those_of_the_solver():
    sde, solver = VPSDE(), Heun()
    known, made = model(sde), SolverTable.of(solver, sde, grids.quadratic, steps=4)
    x = start(sde, made.grid[0])
    ours = list(integrate(Problem(sde, known).equation(), TableSolver(made), x, made.grid, finish=True))
    theirs = list(integrate(Problem(sde, known).equation(), solver, x, made.grid, finish=True))
    assert [(now.index, now.t, now.nfe) for now in ours] == [(now.index, now.t, now.nfe) for now in theirs]
    assert all(apart(a.x, b.x) < 1e-12 for a, b in zip(ours, theirs, strict=True))


def test_a_table_starts_where_no_data_are_left():
    sde = FlowSDE()
    made = SolverTable.of(Adams(2, "velocity"), sde, grids.uniform, steps=4)
    assert made.grid[0] == 1.0
    # the velocity is eps - D: in the first step of Euler x_s = x + h (x - D)
    h = made.grid[1] - made.grid[0]
    assert made.rows[1] == pytest.approx((1 + h, -h), abs=1e-14)


def test_the_table_of_ddim_is_its_formula():
    # x_s = (sigma_s / sigma_t) x + (alpha_s - alpha_t sigma_s / sigma_t) D, and then the posterior mean
    sde = VPSDE()
    made = SolverTable.of(DDIM(), sde, grids.uniform, steps=3).windowed(1)
    at = sde.levels(made.grid)
    assert made.rows[0] == (1.0,)
    for t, s, row in zip(at, at[1:], made.rows[1:], strict=False):
        assert row == pytest.approx((s.sigma / t.sigma, s.alpha - t.alpha * s.sigma / t.sigma), rel=1e-12)
    assert made.rows[-1] == pytest.approx((0.0, 1.0), abs=1e-14)


@pytest.mark.parametrize("solver", [DDIM(), Adams(3), DPMSolverPP(3), Adams(3, "velocity")], ids=zoo.name)
def test_data_of_one_point_are_met_by_each_row_of_an_exact_solver(solver):
    # Where all data are the point m, the flow is x_t = alpha m + sigma eps, with the same eps all along.
    sde = VPSDE()
    made = SolverTable.of(solver, sde, grids.quadratic, steps=6)
    first = sde.levels([made.times[0]])[0]
    for i, row in enumerate(made.rows):
        at = sde.levels([made.times[i]])[0] if i < made.nfe else None
        alpha, sigma = (at.alpha, at.sigma) if at else (1.0, 0.0)
        assert row[0] * first.sigma == pytest.approx(sigma, abs=1e-12)
        assert row[0] * first.alpha + sum(row[1:]) == pytest.approx(alpha, abs=1e-12)


# --- solving by a table


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("corrected", [False, True])
def test_a_solve_is_the_sum_that_the_table_says(window, corrected):
    known, made = model(SHORT), table(6, Adams(3))
    made = made if window is None else made.windowed(window)
    parts = components(made) if corrected else None
    x = start(SHORT, made.grid[0]).requires_grad_()
    found = last(TableSolver(dataclasses.replace(made, components=parts)), known, x, made.grid, True).x

    answers, base, now = [], x, x
    for i, row in enumerate(made.rows):
        if i:
            answers.append(known(now, torch.tensor(made.times[i - 1], dtype=torch.float64)).data)
            base = x if window is None else now
        features = [base, *(answers if window is None else answers[-window:])]
        now = sum(v * f for v, f in zip(row, features, strict=True))
        if parts is not None:
            U, W, b = parts.basis, parts.weights[i], parts.bias[i]
            now = now + (sum(W[j] * (f @ U) for j, f in enumerate(features)) + b) @ U.T
    assert apart(found, now) < 1e-12
    ours, theirs = (torch.autograd.grad(out.square().sum(), x)[0] for out in (found, now))
    assert apart(ours, theirs) < 1e-12


def test_components_are_the_same_in_both_forms():
    made = table(6, Adams(3)).windowed(3)
    short = dataclasses.replace(made, components=components(made))
    whole = short.full()
    again = whole.windowed(3)
    known, x = model(SHORT), start(SHORT, made.grid[0])
    found = [last(TableSolver(t), known, x, made.grid, True).x for t in (short, whole, again)]
    assert apart(found[1], found[0]) < 1e-12
    assert apart(found[2], found[0]) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("window", [None, 3])
def test_row_i_depends_on_row_i_alone_bit_for_bit(dtype, window):
    known = Network(lambda x, t: torch.tanh(x * t[:, None]), SHORT, predict.noise, shape=(37,))
    made = table(6, Adams(3), made_for=None)
    made = made if window is None else made.windowed(window)
    made = dataclasses.replace(made, components=components(made, 37, 5))
    sampler = SDESampler(SHORT, known, solver=TableSolver(made))
    x = start(SHORT, made.grid[0], 9, 37).to(dtype)
    whole = sampler.sample(x_T=x)
    assert whole.dtype == dtype
    for i in (0, 4, 8):
        assert torch.equal(sampler.sample(x_T=x[i : i + 1])[0], whole[i])


def test_states_are_not_written_to_and_gradients_are_those_of_the_solver():
    sde, solver = VPSDE(), DPMSolverPP(2)
    known, made = model(sde), SolverTable.of(solver, sde, grids.quadratic, steps=4)
    found = []
    for way in (solver, TableSolver(made), TableSolver(made.windowed(2))):
        x = start(sde, made.grid[0]).requires_grad_()
        before = x.detach().clone()
        out = SDESampler(sde, known, solver=way, grid=made.grid).sample(x_T=x, grad=True)
        found.append(torch.autograd.grad(out.square().sum(), x)[0])
        assert torch.equal(x.detach(), before)
    assert apart(found[1], found[0]) < 1e-12
    assert apart(found[2], found[0]) < 1e-12


def test_components_of_images_in_any_memory_layout():
    made = table(4, made_for=None)
    made = dataclasses.replace(made, components=components(made, 3 * 4 * 4, 2))
    known = Network(lambda x, t: torch.tanh(x), SHORT, predict.noise, shape=(3, 4, 4))
    sampler = SDESampler(SHORT, known, solver=TableSolver(made))
    x = start(SHORT, made.grid[0], 2, 48).reshape(2, 3, 4, 4)
    assert torch.equal(sampler.sample(x_T=x), sampler.sample(x_T=x.to(memory_format=torch.channels_last)))


def test_components_are_projected_on_in_parts_to_the_same_bits(monkeypatch):
    x = start(SHORT, 999.0, 7, 5)
    moved = components(table(4), 5, 2).like(x)
    whole = moved.project(x)
    monkeypatch.setattr("sde_diffusion.tuning.components.MOST_AT_ONCE", 30)  # three rows at once
    assert torch.equal(moved.project(x), whole)


def test_a_sampler_takes_the_grid_of_a_table():
    known, made = model(SHORT), table(5)
    sampler = SDESampler(SHORT, known, solver=TableSolver(made))
    assert sampler.times == list(made.grid)
    expected = SDESampler(SHORT, known, solver=Adams(3, "angle"), grid=grids.quadratic, steps=4).sample(3, seed=0)
    for options in ({}, {"nfe": 5}, {"steps": 4}, {"grid": grids.quadratic}, {"grid": made.grid}):
        found = SDESampler(SHORT, known, solver=TableSolver(made), **options)
        assert apart(found.sample(3, seed=0), expected) < 1e-12
    assert repr(sampler) == f"SDESampler({SHORT!r}, model, solver=TableSolver(table=SolverTable(nfe=5, steps=4)))"


def test_a_finished_solve_is_kept_in_the_bounds_of_the_model():
    known = Clipped(model(SHORT), low=-0.2, high=0.2)
    made = table(5)
    assert float(last(TableSolver(made), known, start(SHORT, made.grid[0]), made.grid, True).x.abs().max()) <= 0.2


def test_a_table_that_does_not_finish_ends_with_the_posterior_mean():
    known = model(SHORT)
    made = SolverTable.of(DDIM(), SHORT, grids.quadratic, steps=4, finish=False)
    assert (made.nfe, made.stops) == (4, (0, 1, 2, 3, 4))
    whole = SolverTable.of(DDIM(), SHORT, grids.quadratic, steps=4)
    x = start(SHORT, made.grid[0])
    found = [SDESampler(SHORT, known, solver=TableSolver(t)).sample(x_T=x) for t in (made, whole)]
    assert apart(found[0], found[1]) < 1e-12


def test_one_solver_serves_several_problems():
    made = table(5)
    way = TableSolver(made)
    for seed in (0, 1):
        known = model(SHORT, seed=seed)
        x = start(SHORT, made.grid[0])
        assert (
            apart(last(way, known, x, made.grid, True).x, last(Adams(3, "angle"), known, x, made.grid, True).x) < 1e-12
        )


def test_what_is_printed_is_the_table():
    made = table(4, Adams(3))
    assert repr(made) == "SolverTable(nfe=4, steps=3)"
    assert repr(made.windowed(3)) == "SolverTable(nfe=4, steps=3, window=3)"
    lines = str(made).splitlines()
    assert len(lines) == 2 + 5
    for i, (line, row) in enumerate(zip(lines[2:], made.rows, strict=True)):
        assert [float(v) for v in line.split()[2:]] == pytest.approx(row, abs=1e-5), i


def test_a_table_is_drawn(tmp_path):
    table(4).plot(tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes()[:4] == b"\x89PNG"


def test_a_solver_made_of_euler_has_the_table_of_euler():
    sde = EDMSDE()
    made = SolverTable.of(Euler(), sde, grids.karras, steps=5)
    # dx/dsigma = (x - D) / sigma
    x, rows = torch.zeros(7, dtype=torch.float64), []
    x[0] = 1.0
    for k in range(6):
        rows.append(x[: k + 1].tolist())
        unit = torch.zeros(7, dtype=torch.float64)
        unit[k + 1] = 1.0
        x = unit if k == 5 else x + (made.grid[k + 1] - made.grid[k]) * (x - unit) / made.grid[k]
    for row, expected in zip(made.rows, [*rows, x.tolist()], strict=True):
        assert row == pytest.approx(expected, abs=1e-13)
