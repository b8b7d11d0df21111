"""Claim: a solver says itself what is asked of it, by its facts, and a wrapper hands on what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import zoo

from sde_diffusion.solvers import (
    DDIM,
    AdamsMoulton,
    Angle,
    Churn,
    DormandPrince,
    DPMSolverPP,
    EulerMaruyama,
    Facts,
    Heun,
    Hold,
    Langevin,
    PredictorCorrector,
    Renoise,
    Restart,
    Reversible,
    Solver,
    Torchdiffeq,
)
from sde_diffusion.solvers.equation import ODE, GaussianReverseSDE, ReverseSDE

INNER = [Heun(), EulerMaruyama(), DPMSolverPP(3), AdamsMoulton(4), DormandPrince(1e-4, 1e-6), Torchdiffeq()]


@pytest.mark.parametrize("inner", INNER, ids=zoo.name)
@pytest.mark.parametrize(
    ("wrap", "changed"),
    [
        (Angle, {"needs": GaussianReverseSDE, "in_time": False}),
        (lambda s: Churn(s, 0.0), {"needs": GaussianReverseSDE}),
        (Churn, {"needs": GaussianReverseSDE, "order": 0, "stochastic": True}),
        (Restart, {"needs": GaussianReverseSDE, "order": 0, "evaluations": None, "stochastic": True}),
        (lambda s: PredictorCorrector(s, Hold()), {"order": 0}),
    ],
    ids=["Angle", "Churn-still", "Churn", "Restart", "PredictorCorrector"],
)
def test_a_wrapper_changes_the_facts_that_it_changes_and_no_other(wrap: Any, changed: Any, inner: Solver) -> None:
    assert wrap(inner).facts == replace(inner.facts, **changed)


def test_the_facts_of_two_solvers_are_those_of_both() -> None:
    both = PredictorCorrector(Heun(), Langevin(3)).facts
    assert both == Facts(needs=GaussianReverseSDE, evaluations=5, stochastic=True, in_time=True)
    assert PredictorCorrector(EulerMaruyama(), Hold()).facts.needs is ReverseSDE
    assert PredictorCorrector(Hold(), Hold()).facts.needs is ODE
    assert PredictorCorrector(Heun(), Langevin({0.0: 2})).facts.evaluations is None
    assert PredictorCorrector(Hold(), Renoise(DormandPrince(1e-3, 1e-4))).facts.rtol == 1e-3
    assert Renoise(DPMSolverPP(2), n=3).facts == Facts(needs=GaussianReverseSDE, evaluations=3, stochastic=True)
    assert Reversible(DDIM()).facts == DDIM().facts


@pytest.mark.parametrize("solver", zoo.SOLVERS, ids=zoo.name)
def test_a_looser_solver_is_the_same_at_ten_times_its_tolerances(solver: Solver) -> None:
    facts, looser = solver.facts, solver.looser()
    assert facts.adaptive == (facts.rtol is not None) == (facts.atol is not None)
    if facts.rtol is None or facts.atol is None:
        assert looser == solver or "Reversible" in repr(solver)
    else:
        assert looser.facts == replace(facts, rtol=10 * facts.rtol, atol=10 * facts.atol)
        assert type(looser) is type(solver)


def test_the_looser_of_a_reversible_solver_is_the_one_inside_whose_steps_need_no_inverse() -> None:
    assert Reversible(Heun()).looser() == Heun()
    assert Angle(Reversible(Heun()), 0.7).looser() == Angle(Heun(), 0.7)


@pytest.mark.parametrize("solver", zoo.SOLVERS, ids=zoo.name)
def test_only_the_angle_is_left_out_of_a_bare_solver(solver: Solver) -> None:
    assert solver.bare == ((solver.inner, solver.data_std) if isinstance(solver, Angle) else (solver, None))


def test_a_solver_that_states_no_facts_is_not_made() -> None:
    class Factless(Solver):
        def step(self, eq: Any, x: Any, t: Any, s: Any, state: Any, noise: Any) -> Any:
            return x, None

    with pytest.raises(TypeError, match=r"abstract.* facts"):
        Factless()  # type: ignore[abstract]  # which the type checker sees too
