"""Claim: a solver says itself what is asked of it, by its facts, and a wrapper hands on what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import zoo
from refusals import wrong

from sde_diffusion import VPSDE, Network, SDESampler, predict
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

MODEL = Network(lambda x, t: 0.1 * x, VPSDE(), predict.noise, shape=(2,))
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


class Mine(Solver[Any, Any]):
    """Leaves the state as it is; what it says and answers is set by the test."""

    facts = Facts(evaluations=0)

    def step(self, eq: Any, x: Any, t: Any, s: Any, state: Any, noise: Any) -> Any:
        return x, None


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (Facts, r"facts of Mine must be a Facts\(\.\.\.\), such as"),
        (None, "got None"),
        (lambda self: Facts(), "got <bound method"),
        (Facts(needs=wrong("ODE")), "needs of Mine must be ODE, ReverseSDE or GaussianReverseSDE, got 'ODE'"),
        (Facts(order=wrong("1")), "order of Mine must be a number of at least 0, got '1'"),
        (Facts(evaluations=-3), "evaluations of Mine must be a number of at least 0, got -3"),
        (Facts(stochastic=wrong("no")), "stochastic of Mine must be True or False, got 'no'"),
    ],
)
def test_facts_that_say_nothing_are_refused_by_what_takes_the_solver(
    monkeypatch: Any, facts: Any, message: str
) -> None:
    monkeypatch.setattr(Mine, "facts", facts)
    for take in (lambda s: SDESampler(VPSDE(), MODEL, solver=s), Angle):
        with pytest.raises(TypeError, match=message):
            take(Mine())


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (
            lambda x: (x[:1], None),
            ValueError,
            r"a state of shape \(1, 2\) in torch.float32, wanted .* \(3, 2\)",
        ),
        (lambda x: (x.double(), None), ValueError, "in torch.float64, wanted that of the state it was given"),
        (lambda x: (None, None), TypeError, "answered NoneType, wanted the pair"),
    ],
)
def test_a_first_step_that_answers_another_kind_of_state_is_told(
    monkeypatch: Any, answer: Any, error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(Mine, "step", lambda self, eq, x, t, s, state, noise: answer(x))
    with pytest.raises(error, match=message):
        SDESampler(VPSDE(), MODEL, solver=Mine(), steps=3, denoise=False).sample(3, seed=0)
