"""Claim: what has no table is refused, and so is a table whose parts do not fit or that is used where it does not."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import zoo
from refusals import T, V, check, refuses, wrong
from solves import SHORT, last, model, start, table

from sde_diffusion import (
    SamplingWarning,
    SDESampler,
    SolverTable,
    TableSolver,
    grids,
)
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.sampler.forecast import check_steps
from sde_diffusion.solvers import DDIM, Adams, Angle, Churn, DormandPrince, Heun, Reversible, Solver, Torchdiffeq
from sde_diffusion.solvers.base import Facts
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.tuning import Components, MadeFor

# --- what is refused


class Bent(Solver):
    """Steps by the square of the answer."""

    facts = Facts()

    def step(self, eq, x, t, s, state, noise):
        return x + 1e-3 * eq.velocity(x, t).square(), None


class Shifted(Solver):
    """Adds one in every step."""

    facts = Facts()

    def step(self, eq, x, t, s, state, noise):
        return x + 1e-3 + (s.t - t.t) * eq.velocity(x, t), None


def made_of(solver, sde=SHORT, grid=grids.quadratic, **options):
    return lambda: SolverTable.of(solver, wrong(sde), grid, **(options or {"steps": 4}))


@refuses(
    (made_of(DDIM(eta=1.0)), V, "draws noise, and a table holds none"),
    (made_of(DormandPrince()), V, "chooses its steps by what the network answers"),
    (made_of(Torchdiffeq("rk4")), V, "is run by another library"),
    (made_of(Bent()), V, "is not linear in the answers of the network"),
    (made_of(Shifted()), V, "is not linear in the answers of the network"),
    (made_of(wrong(Heun)), T, "solver must be a Solver such as Adams(3, 'angle')"),
    (made_of(Heun(), zoo.DoubleWell()), T, "a table puts data predictions together, which a GaussianSDE has"),
    (made_of(DDIM(), finish=False, steps=1), V, "makes 1 evaluation: a table has 2 or more"),
    (made_of(Heun(), grid=grids.quadratic, steps=None), V, "a grid function needs the number of steps"),
    (made_of(Heun(), grid=[999.0, 0.0], steps=4), V, "the grid has 1 steps, and steps=4"),
    (made_of(Heun(), grid=[0.0, 500.0, 999.0], steps=None), V, "falls from noise to data: reverse it"),
)
def test_what_has_no_table_is_refused(call, error, text):
    check(call, error, text)


def bare(**changes):
    given = {"times": [9.0, 5.0], "rows": [[1.0], [0.5, 0.5], [0.0, 0.1, 0.9]], "grid": [9.0, 5.0], "stops": [0, 1]}
    return lambda: SolverTable(**wrong({**given, **changes}))


def test_a_table_written_by_hand_is_one():
    made = bare()()
    assert (made.nfe, made.window, made.stops, made.rows[0]) == (2, None, (0, 1), (1.0,))


@refuses(
    (bare(times=[9.0], rows=[[1.0], [0.0, 1.0]]), V, "a table has 2 to 4096 evaluations, got 1"),
    (bare(rows=[[1.0], [0.5, 0.5]]), V, "has 3 rows, one for each state asked about and the result, got 2"),
    (bare(rows=[[1.0], [0.5, 0.5], [0.0, 1.0]]), V, "row 2 has 2 numbers, wanted 3: its base and 2 weights"),
    (bare(window=1), V, "row 2 has 3 numbers, wanted 2"),
    (bare(rows=[[1.0], [0.5, math.nan], [0.0, 0.1, 0.9]]), V, "row 1 of a table holds numbers that are not finite"),
    (bare(times=["a", "b"]), T, "each of times must be a number"),
    (bare(grid=[5.0, 9.0]), V, "the grid of a table falls"),
    (bare(stops=[1, 2]), V, "stops count the evaluations at each of 2 grid times: 0 at the first"),
    (bare(stops=[0, 3]), V, "2 at most"),
    (bare(stops=[0, 0.5]), V, "stops count evaluations, wanted whole numbers"),
    (bare(stops=[0, 2]), V, "finishes=True, but 2 of 2 evaluations are made at the last grid time"),
    (bare(finishes=False), V, "finishes=False, but 1 of 2"),
    (bare(finishes=1), T, "finishes must be True or False"),
)
def test_a_table_whose_parts_do_not_fit_is_refused(call, error, text):
    check(call, error, text)


EYE = torch.eye(4, 2, dtype=torch.float64)
ROWS = [torch.zeros(n, 2, dtype=torch.float64) for n in (1, 2, 3)]
BIAS = [torch.zeros(2, dtype=torch.float64)] * 3


def parts(basis=EYE, weights=ROWS, bias=BIAS):
    def made():
        return bare(components=Components(wrong(basis), tuple(weights), tuple(bias)))()

    return made


@refuses(
    (parts(basis=[[1.0]]), T, "basis of Components must hold tensors"),
    (parts(basis=2 * EYE), V, "the columns of basis are not orthonormal (off by 3)"),
    (parts(basis=EYE.T), V, "wanted (D, r) with 1 <= r <= D"),
    (parts(basis=EYE * math.nan), V, "basis of Components holds numbers that are not finite"),
    (parts(weights=ROWS[:2]), V, "weights of 2 rows and bias of 3"),
    (parts(weights=ROWS[:2], bias=BIAS[:2]), V, "Components have 2 rows, and the table has 3"),
    (parts(weights=ROWS[::-1]), V, "row 0 of Components has weights of shape (3, 2)"),
)
def test_components_that_do_not_fit_are_refused(call, error, text):
    check(call, error, text)


def test_a_window_too_small_names_the_one_that_is_needed():
    made = table(6, solver=Adams(3))
    check(lambda: made.windowed(1), V, "a window of 1 does not hold row 3: take a window of 3")
    made.windowed(3)
    check(lambda: made.windowed(0), V, "window must be at least 1")
    lost = bare(rows=[[1.0], [0.0, 0.5], [1.0, 0.1, 0.9]])()
    check(lambda: lost.windowed(2), V, "row 2 weighs x_T, and the row before it does not: no window holds it")


def test_a_table_goes_over_its_own_grid_one_way():
    made, known = table(5), model(SHORT)
    way = TableSolver(made)
    sampler = SDESampler(SHORT, known, solver=way)
    data = torch.zeros(2, 4, dtype=torch.float64)
    check(lambda: sampler.encode(data), V, "a table goes one way, from noise to data: encode with Heun()")
    x = start(SHORT, made.grid[0])
    check(
        lambda: last(way, known, x, made.grid[1:], False), V, "a table goes over its own grid, of 4 steps from t = 999"
    )
    eq = GaussianReverseSDE(known)
    a, b, c = eq.prefill([999.0, 500.0, made.grid[1]])
    check(lambda: way.step(eq, x, a, b, None, wrong(None)), V, "a table goes over its own grid")
    y, state = way.step(eq, x, a, c, None, wrong(None))
    check(lambda: way.step(eq, y, a, c, state, wrong(None)), V, "a table goes over its own grid")
    for options, text in (
        ({"nfe": 6}, "makes 5 evaluations with the final jump, got nfe=6"),
        ({"steps": 3}, "takes the 4 steps of its own grid, got steps=3"),
        ({"grid": grids.angle}, "steps over its own grid, of 4 steps"),
    ):
        check(lambda options=options: SDESampler(SHORT, known, solver=way, **options), V, text)
    uneven = bare(times=[9.0, 7.0, 5.0], rows=[[1.0], [1.0, 0.0], [0.5, 0.2, 0.3], [0.0, 0.0, 0.0, 1.0]], stops=[0, 2])
    sampler = SDESampler(SHORT, known, solver=TableSolver(uneven()), nfe=3)
    assert sampler.times == [9.0, 5.0]
    check(lambda: TableSolver(wrong(made.rows)), T, "TableSolver executes a SolverTable")


def test_a_grid_that_a_solver_claims_is_a_tuple_of_times():
    class Claims(Bent):
        facts = Facts(grid=wrong([2.0, 1.0]))

    check(
        lambda: SDESampler(SHORT, model(SHORT), solver=Claims()), T, "grid of Claims must be None or a tuple of times"
    )


def test_a_table_fitted_to_a_model_is_not_tried_on_gaussian_data():
    # one that carries nothing over: far from a Gaussian, and told so unless it is fitted
    made = table(4)
    nothing = tuple((*row[:1], *(0.0 for _ in row[1:])) for row in made.rows)
    known = Gaussian(SHORT, torch.zeros(4, dtype=torch.float64), 1.0)
    fitted = dataclasses.replace(made, rows=nothing, made_for=MadeFor.of(known))
    check_steps(SHORT, TableSolver(fitted), list(made.grid), 1.0, None)  # warnings are errors here
    with pytest.warns(SamplingWarning, match="3 steps of TableSolver"):
        check_steps(SHORT, TableSolver(dataclasses.replace(made, rows=nothing)), list(made.grid), 1.0, None)


@pytest.mark.parametrize(
    "wrap", [Angle, lambda inner: Churn(inner, 0.1), Reversible], ids=["Angle", "Churn", "Reversible"]
)
def test_a_table_is_not_wrapped(wrap):
    with pytest.raises(TypeError, match=r"cannot wrap TableSolver.*times of its own: sample by it as it is"):
        wrap(TableSolver(table()))
