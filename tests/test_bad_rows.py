"""Claim: a row that is not finite is named, and the others can be had, bit for bit what they are alone."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from refusals import T, V, check, wrong
from zoo import SOLVERS, DoubleWell

from sde_diffusion import VPSDE, Network, NonFiniteWarning, SDESampler, SolverError, grids, integrate, predict
from sde_diffusion.solvers import (
    DDIM,
    RK4,
    Angle,
    DormandPrince,
    DPMSolver23,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    HeunEuler,
    Reversible,
    StochasticHeunEuler,
    Torchdiffeq,
)
from sde_diffusion.solvers.base import describe
from sde_diffusion.solvers.equation import GaussianReverseSDE, ReverseSDE

VP = VPSDE()
BAD = [1, 4]


def net(x, t, bad):
    """NaN below t = 0.5 where `bad`, else data of standard deviation one half."""
    at = t.reshape(-1, *[1] * (x.ndim - 1))
    broken = (bad[:, None] > 0) & (at < 0.5)
    return torch.where(broken, math.nan, 0.3 * torch.tanh(x))


def sampler(solver=None, *, value=math.nan, sde=VP, **options):
    kind = lambda x, t, bad: net(x, t, bad).nan_to_num(value)  # noqa: E731
    model = Network(kind, sde, predict.data, shape=(2,))
    return SDESampler(sde, model, solver=solver, **options)


def marks(n=6):
    return torch.tensor([1.0 if i in BAD else 0.0 for i in range(n)])


def alone(s, i, **options):
    return s.sample(1, seed=i, bad=torch.zeros(1), **options)[0]


GAUSSIAN = [s for s in SOLVERS if "Torch" not in repr(s)]


@pytest.mark.parametrize("solver", GAUSSIAN, ids=repr)
def test_every_solver_keeps_the_other_rows_bit_for_bit(solver):
    s = sampler(solver, steps=4 if solver.facts.default_steps > 1 else None)
    with pytest.warns(
        NonFiniteWarning, match=r"^rows 1, 4 \(2 of 6\) did not stay finite and hold NaN; the others are"
    ):
        x = s.sample(6, seed=0, bad=marks(), nonfinite="keep")
    assert x.isnan().all(1).nonzero()[:, 0].tolist() == BAD
    for i in (0, 3):
        assert torch.equal(x[i], alone(s, i))


def test_torchdiffeq_keeps_the_others_within_its_tolerance():
    s = sampler(Torchdiffeq(rtol=1e-5, atol=1e-5))
    with pytest.warns(NonFiniteWarning, match=r"^rows 1, 4 \(2 of 6\)"):
        x = s.sample(6, seed=0, bad=marks(), nonfinite="keep")
    assert x.isnan().all(1).nonzero()[:, 0].tolist() == BAD
    for i in (0, 2, 3, 5):
        torch.testing.assert_close(x[i], alone(s, i), rtol=0, atol=2e-4)


@pytest.mark.parametrize("solver", [EulerMaruyama(), RK4(), DormandPrince(), StochasticHeunEuler()], ids=repr)
def test_a_general_sde_keeps_them_too(solver):
    score = lambda x, t, bad: net(x, t, bad) + 2 * (x - x**3)  # noqa: E731
    s = SDESampler(DoubleWell(), score, shape=(2,), solver=solver, steps=8 if solver.facts.default_steps > 1 else None)
    with pytest.warns(NonFiniteWarning, match="rows 1, 4"):
        x = s.sample(6, seed=0, bad=marks(), nonfinite="keep")
    for i in (0, 2, 3, 5):
        assert torch.equal(x[i], s.sample(1, seed=i, bad=torch.zeros(1))[0])


def test_inf_counts_as_nan_and_a_final_jump_does_not_hide_it():
    # a data prediction that is bounded makes a finite number of an infinite state
    s = sampler(DDIM(), value=math.inf, steps=6)
    with pytest.warns(NonFiniteWarning, match="rows 1, 4"):
        x = s.sample(6, seed=0, bad=marks(), nonfinite="keep")
    assert x.isnan().all(1).nonzero()[:, 0].tolist() == BAD
    jump = Network(lambda x, t, bad: torch.where((bad[:, None] > 0) & (t[:, None] < 0.002), math.nan, 0.3 * x), VP)
    last = SDESampler(VP, jump, steps=6, shape=(2,), grid=grids.angle)
    with pytest.warns(NonFiniteWarning, match="rows 1, 4"):
        x = last.sample(6, seed=0, bad=marks(), nonfinite="keep")
    assert x.isnan().all(1).nonzero()[:, 0].tolist() == BAD


def test_iterate_shows_a_row_as_nan_from_where_it_broke():
    s = sampler(DDIM(), grid=[1.0, 0.8, 0.6, 0.4, 0.3, 0.2])
    with pytest.warns(NonFiniteWarning, match="rows 1, 4"):
        shown = list(s.iterate(6, seed=0, bad=marks(), nonfinite="keep"))
    assert [now.x.isnan().any(1).nonzero()[:, 0].tolist() for now in shown] == [[]] * 4 + [BAD] * 3
    for i in (0, 2, 3, 5):
        for now, single in zip(shown, s.iterate(1, seed=i, bad=torch.zeros(1)), strict=True):
            assert torch.equal(now.x[i], single.x[0])


def test_rows_are_named_by_their_number_in_the_whole_result():
    s = sampler(DDIM(), steps=8)
    with pytest.warns(NonFiniteWarning) as caught:
        x = s.sample(6, seed=0, batch_size=2, bad=marks(), nonfinite="keep")
    told = [str(w.message)[:14] for w in caught if w.category is NonFiniteWarning]
    assert told == ["row 1 (1 of 2)", "row 4 (1 of 2)"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonFiniteWarning)
        assert torch.equal(x.nan_to_num(7.0), s.sample(6, seed=0, bad=marks(), nonfinite="keep").nan_to_num(7.0))
    late = torch.tensor([0.0, 0, 0, 0, 1, 0])
    check(lambda: s.sample(6, seed=0, batch_size=2, bad=late), SolverError, "in row 4 (1 of 2): either the network")


@pytest.mark.parametrize(
    "solver",
    [DDIM(), Heun(), DPMSolverPP(), Angle(RK4()), EulerMaruyama(), DormandPrince(), DPMSolver23(), HeunEuler()],
    ids=repr,
)
def test_every_error_of_a_state_that_is_not_finite_names_its_rows(solver):
    s = sampler(solver, steps=8 if solver.facts.default_steps > 1 else None)
    with pytest.raises(SolverError, match=r"in rows? (1|4|1, 4) \([12] of 6\): either the") as caught:
        s.sample(6, seed=0, bad=marks())
    assert str(caught.value).endswith("nonfinite='keep'")
    many = torch.ones(20)
    with pytest.raises(SolverError, match=r"in rows? [0-9, ]+( and 12 more)? \(\d+ of 20\): either the network"):
        s.sample(20, seed=0, bad=many)


def test_large_states_name_their_rows_too():
    model = Network(net, VP, predict.data, shape=(6000,))
    s = SDESampler(VP, model, solver=DDIM(), steps=10)
    check(lambda: s.sample(6, seed=0, bad=marks()), SolverError, "in rows 1, 4 (2 of 6): either the network")


def test_a_sum_beyond_all_numbers_is_no_state_that_is_not_finite():
    model = Network(lambda x, t: x, VP, predict.data, shape=(4,))
    x = SDESampler(VP, model, solver=DDIM(), steps=5, denoise=False).sample(x_T=torch.full((2, 4), 3e37))
    assert torch.isfinite(x).all()
    assert float(x.abs().max()) > 1e38 / 8


def test_a_step_that_has_no_inverse_names_its_rows():
    model = Network(lambda x, t: torch.where(torch.arange(len(x))[:, None] == 2, 40 * torch.sin(40 * x), 0 * x), VP)
    s = SDESampler(VP, model, solver=Reversible(), steps=2, shape=(2,))
    check(lambda: s.encode(torch.ones(4, 2)), SolverError, "in row 2 (1 of 4) (relative residual")


def test_what_to_do_with_bad_rows_is_one_of_two_words():
    for door in (sampler().sample, sampler().iterate):
        check(lambda door=door: door(2, nonfinite="drop"), V, "nonfinite must be 'raise' or 'keep', got 'drop'")
        check(lambda door=door: door(2, nonfinite=wrong(True)), V, "nonfinite must be 'raise' or 'keep', got True")


def test_no_row_lost_is_no_warning_and_the_same_samples():
    for solver in (DDIM(), DormandPrince(), StochasticHeunEuler(), Torchdiffeq()):
        s = sampler(solver, steps=5 if solver.facts.default_steps > 1 else None)
        kept = s.sample(6, seed=0, bad=torch.zeros(6), nonfinite="keep")
        assert torch.equal(kept, s.sample(6, seed=0, bad=torch.zeros(6)))


def test_bad_rows_do_not_hold_up_an_adaptive_solver():
    s = sampler(DormandPrince())
    *_, fine = s.iterate(6, seed=0, bad=torch.zeros(6))
    with pytest.warns(NonFiniteWarning):
        *_, kept = s.iterate(6, seed=0, bad=marks(), nonfinite="keep")
    assert kept.nfe <= fine.nfe + 6 * 60  # the rows that break creep up to where it is, and are gone
    counted = sampler(Angle(DormandPrince()), grid=[1.0, 0.6, 0.4, 0.2, 0.1])
    with pytest.warns(NonFiniteWarning):
        *_, kept = counted.iterate(6, seed=0, bad=torch.ones(6), nonfinite="keep")
    assert kept.x.isnan().all()


# ---------------------------------------------------------------------------------------------------------- torchdiffeq


def test_torchdiffeq_has_a_limit_of_evaluations():
    assert Torchdiffeq().max_nfe == DormandPrince().max_nfe == 10_000
    stiff = Network(lambda x, t: torch.sin(3000 * x), VP, shape=(2,))
    asked = []

    def counted(x, t):
        asked.append(t)
        return stiff.net(x, t)

    s = SDESampler(VP, Network(counted, VP, shape=(2,)), solver=Torchdiffeq("dopri5", max_nfe=200))
    with pytest.raises(SolverError) as caught:
        s.sample(2, seed=0)
    text = "torchdiffeq has taken its max_nfe = 200 evaluations between t = 1 and t = 0.001, and asks for more at t ="
    assert str(caught.value).startswith(text)
    assert "Raise max_nfe or the tolerances, step in the angle, Angle(Torchdiffeq())" in str(caught.value)
    assert len(asked) == 200
    SDESampler(VP, stiff, solver=Torchdiffeq("rk4", max_nfe=1), steps=3).sample(2, seed=0)  # counts its own steps
    check(lambda: Torchdiffeq(max_nfe=0), V, "max_nfe must be at least 1, got 0")
    check(lambda: Torchdiffeq(max_nfe=wrong(2.5)), T, "max_nfe must be an integer, got 2.5")


def test_the_limit_is_one_per_interval():
    s = sampler(Torchdiffeq(max_nfe=20), grid=[1.0, 0.7, 0.4, 0.2])
    *_, now = s.iterate(2, seed=0, bad=torch.zeros(2))
    assert now.nfe > 20


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_torchdiffeq_names_the_row_and_blames_the_network(method, value):
    s = sampler(Torchdiffeq(method), value=value)
    text = r"^torchdiffeq gave up between .* evaluations: the network answered NaN or inf at t = 0\.\d+ in rows 1, 4 "
    with pytest.raises(SolverError, match=text):
        s.sample(6, seed=0, bad=marks())


def test_an_equation_of_ones_own_may_ask_for_the_rows():
    eq = GaussianReverseSDE(sampler().model, {"bad": marks()})
    eq.counter.keep, eq.counter.first = True, 10
    *_, now = integrate(eq, DDIM(), torch.ones(6, 2), [1.0, 0.6, 0.4, 0.2])
    assert eq.counter.lost is not None
    assert eq.counter.lost.nonzero()[:, 0].tolist() == BAD
    assert now.x.isnan().all(1).nonzero()[:, 0].tolist() == BAD
    assert describe(ReverseSDE)


def test_an_adaptive_method_of_torchdiffeq_whose_time_becomes_nan_names_the_row():
    def broken(x, t):
        return torch.where(x[:, :1] > 1.2, math.nan, 0.1 * x)

    model = Network(broken, VPSDE(), predict.edm, shape=(2,))
    for solver in (Torchdiffeq(), Torchdiffeq("bosh3"), Angle(Torchdiffeq())):
        with pytest.raises(SolverError, match=r"network answered NaN or inf at t = .* in row"):
            SDESampler(VPSDE(), model, solver=solver, steps=6).sample(8, seed=0)
