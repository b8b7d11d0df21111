"""Claim: the conformance suite passes what is right and fails what is broken, each mistake in the row that names it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
import zoo
from torch import Tensor, nn

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    CosineSDE,
    FlowSDE,
    GaussianSDE,
    Network,
    SubVPSDE,
    losses,
    predict,
    testing,
)
from sde_diffusion.data import moons, ring
from sde_diffusion.denoiser import Prediction
from sde_diffusion.denoiser.analytic import isotropic_mixture
from sde_diffusion.denoiser.clocks import Scaled
from sde_diffusion.nets import MLP
from sde_diffusion.sde import SDE, Level
from sde_diffusion.solvers import (
    DDIM,
    RK4,
    SRA1,
    Angle,
    AngleSDE,
    Churn,
    DormandPrince,
    DPMSolverPP,
    EulerMaruyama,
    Facts,
    Heun,
    HeunEuler,
    Hold,
    Langevin,
    Multistep,
    PredictorCorrector,
    Renoise,
    Restart,
    Row,
    RungeKutta,
    Solver,
    StochasticHeunEuler,
    Torchdiffeq,
)
from sde_diffusion.solvers.equation import ODE, GaussianReverseSDE
from sde_diffusion.testing import ConformanceError, Report, check_denoiser, check_sde, check_solver, orders
from sde_diffusion.testing import _laws as laws


def failed(report: Report) -> str:
    """The claims that failed, in one string."""
    return " | ".join(entry.claim for entry in report.failures)


# --- what is right passes


@pytest.mark.parametrize("sde", zoo.SDES, ids=zoo.name)
def test_every_shipped_process_passes(sde: GaussianSDE) -> None:
    report = check_sde(sde).raise_for_failures()
    assert not report.warnings, report


class Quadratic(GaussianSDE):
    """So little noise at the start that the density hardly changes there."""

    t_min, t_max = 1e-3, 20.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t**2


class Elsewhere(CosineSDE):
    """A schedule that leaves torch, so that autograd knows no rate."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.as_tensor(np.sin(0.5 * np.pi * (1 - t.numpy())))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.as_tensor(np.sin(0.5 * np.pi * t.numpy()))


class Detached(Elsewhere):
    """A schedule whose rate is zero to autograd."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1 - t.detach()))


@pytest.mark.parametrize(
    "sde",
    [
        VESDE(1e-3, 50.0),
        VESDE(1e-4, 50.0),
        VESDE(1e-3, 1378.0),
        CosineSDE(t_min=1e-6),
        AngleSDE(),
        Quadratic(),
        Elsewhere(),
        Elsewhere(t_min=1e-6),
        Detached(t_min=1e-6),
    ],
    ids=zoo.name,
)
def test_little_noise_near_the_data_is_no_alarm(sde: GaussianSDE) -> None:
    check_sde(sde).raise_for_failures()


@pytest.mark.parametrize(
    "solver",
    [DPMSolverPP(2), EulerMaruyama(), SRA1(), Angle(Heun()), Churn(Heun()), Angle(DormandPrince()), Langevin()],
    ids=zoo.name,
)
def test_solvers_of_every_family_pass(solver: Solver) -> None:
    check_solver(solver, VPSDE()).raise_for_failures()


def test_without_a_process_a_solver_is_measured_on_all_that_are_smooth() -> None:
    report = check_solver(DDIM()).raise_for_failures()
    assert [e.claim for e in report.entries if "order on" in e.claim] == [
        f"order on a {data}, {name}" for name in orders.SDES for data in ("gaussian", "mixture")
    ]
    assert {type(sde) for sde in orders.SDES.values()} == {type(sde) for sde in zoo.SMOOTH_SDES}
    assert next(iter(orders.SDES)) == "VPSDE"


def test_the_orders_of_the_suite_are_those_of_the_tests() -> None:
    # An independent fit: another problem, a grid uniform in t, errors against the closed form of one Gaussian.
    from sde_diffusion import SDESampler
    from sde_diffusion.denoiser.analytic import Gaussian

    sde = VPSDE()
    model = Gaussian(sde, torch.tensor([0.5], dtype=torch.float64), 0.25)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = []
    for n in (40, 80, 160, 320):
        times = torch.linspace(0.8, 0.2, n + 1, dtype=torch.float64)
        sampler = SDESampler(sde, model, solver=Heun(), grid=times, denoise=False)
        errors.append(float((sampler.sample(x_T=x) - model.flow(x, 0.8, 0.2)).abs().max()))
    theirs = orders.deterministic(Heun(), sde).order
    assert theirs == pytest.approx(orders.slope([40, 80, 160, 320], errors), abs=0.1)


def test_a_slope_is_that_of_a_power_law() -> None:
    assert orders.slope([10, 20, 40], [3e-2 / n**2.5 for n in (10, 20, 40)]) == pytest.approx(2.5)
    found = orders.Convergence((8, 16, 32, 64), (1e-3, 2.5e-4, 6.25e-5, 1e-15))  # the last one is rounding
    assert found.order == pytest.approx(2.0)
    assert orders.Convergence((8, 16), (1e-14, 1e-15)).order == math.inf


def test_exact_denoisers_pass_with_and_without_data() -> None:
    model = isotropic_mixture(FlowSDE(), [[-1.0, 0.0], [1.0, 0.3]], 0.2)
    assert len(check_denoiser(model).raise_for_failures().entries) == 8
    report = check_denoiser(model, model.sample(500, seed=0)).raise_for_failures()
    assert not report.warnings, report


# --- a broken process


class Doubled(VPSDE):
    """PEERS D3: the rate of sigma is twice the derivative."""

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        dalpha, dsigma = super().rates(t)
        return dalpha, 2 * dsigma


class HalfTheNoise(VPSDE):
    """A diffusion without its factor sqrt(2)."""

    def diffusion(self, t: float | Tensor) -> Tensor:
        return super().diffusion(t) / math.sqrt(2)


class NoRoot(EDMSDE):
    """A diffusion that is g^2."""

    def diffusion(self, t: float | Tensor) -> Tensor:
        return super().diffusion(t) ** 2


class WrongDrift(VPSDE):
    """The drift of a process with half the rate."""

    def drift(self, x: Tensor, t: object) -> Tensor:
        return 0.5 * super().drift(x, t)


class Wavy(GaussianSDE):
    """Noise that falls on the way."""

    t_min, t_max = 0.01, 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t + 0.2 * torch.sin(10 * t)


class OffBy(VPSDE):
    """An inverse that is a little off."""

    def time_of(self, lam: Tensor) -> Tensor:
        return super().time_of(lam) * 1.01


class Batched(VPSDE):
    """alpha that answers one number for all times."""

    def alpha(self, t: Tensor) -> Tensor:
        return super().alpha(t.mean())


class Loud(VPSDE):
    """A prior of twice the size that its density says."""

    def prior(self, z: Tensor, t: float | None = None) -> Tensor:
        return 2 * super().prior(z, t)


class FromNothing(Wavy):
    """No noise at all at the start."""

    t_min = 0.0

    def sigma(self, t: Tensor) -> Tensor:
        return t


class Steeper(VPSDE):
    """A drift with another beta_max than the marginals."""

    def drift(self, x: Tensor, t: object) -> Tensor:
        return VPSDE(self.beta_min, 1.001 * self.beta_max).drift(x, t)


class Upside(VPSDE):
    """A drift of the wrong sign."""

    def drift(self, x: Tensor, t: object) -> Tensor:
        return -super().drift(x, t)


class Louder(VESDE):
    """A diffusion 1 % off, near the data alone."""

    def diffusion(self, t: float | Tensor) -> Tensor:
        return super().diffusion(t) * torch.where(torch.as_tensor(t) < 1e-3, 1.01, 1.0)


class Undefined(VPSDE):
    """Rates that are NaN from the middle on."""

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        dalpha, dsigma = super().rates(t)
        return torch.where(t > 0.5, math.nan, dalpha), dsigma


class Single(VPSDE):
    """Times in float32."""

    def sigma(self, t: Tensor) -> Tensor:
        return super().sigma(t).float()


@pytest.mark.parametrize(
    ("sde", "claims"),
    [
        (Doubled(), ["derivatives of sigma", "g^2 is d(sigma^2)/dt", "Fokker-Planck"]),
        (HalfTheNoise(), ["g^2 is d(sigma^2)/dt", "Fokker-Planck"]),
        (NoRoot(), ["g^2 is d(sigma^2)/dt", "Fokker-Planck"]),
        (WrongDrift(), ["drift is alpha'/alpha x", "Fokker-Planck"]),
        (Steeper(), ["drift is alpha'/alpha x", "Fokker-Planck"]),
        (Upside(), ["drift is alpha'/alpha x", "Fokker-Planck"]),
        (Louder(1e-3, 50.0), ["g^2 is d(sigma^2)/dt", "Fokker-Planck"]),
        (Undefined(), ["derivatives of alpha", "drift is alpha'/alpha x", "Fokker-Planck"]),
        (Wavy(), ["does not fall with t"]),
        (OffBy(), ["time_of inverts"]),
        (Batched(), ["elementwise"]),
        (Single(), ["elementwise"]),
        (Loud(), ["density of the draws of prior"]),
        (FromNothing(), ["not alpha >= 0, sigma > 0"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, SDE) else "",
)
def test_a_broken_process_fails_in_the_rows_that_name_the_mistake(sde: SDE, claims: list[str]) -> None:
    report = check_sde(sde)
    assert all(claim in failed(report) for claim in claims), report
    with pytest.raises(ConformanceError, match="claims do not hold"):
        report.raise_for_failures()


def test_too_little_noise_at_the_end_is_advice() -> None:
    report = check_sde(BrownianSDE(t_max=2.0))
    assert report.passed
    assert [e.verdict for e in report.entries if "nats per dimension" in e.claim] == ["warn"]
    assert "Matched(mean, variance)" in str(report)


def test_what_a_process_raises_is_a_row_and_not_the_end() -> None:
    class Raising(VPSDE):
        def diffusion(self, t: float | Tensor) -> Tensor:
            raise RuntimeError("not today")

    report = check_sde(Raising())
    assert "diffusion is finite" in failed(report)
    assert "RuntimeError: not today" in str(report)
    assert len(report.entries) > 15


def test_an_empty_range_is_told_before_anything_is_measured() -> None:
    class Backwards(zoo.DoubleWell):
        t_min, t_max = 1.0, 0.0

    (entry,) = check_sde(Backwards()).entries
    assert entry.verdict == "FAIL"
    assert entry.note == "t_min = 1, t_max = 0"


# --- a general process


class Benes(zoo.DoubleWell):
    """`dx = tanh(x) dt + dw` from cosh(x) exp(-x^2 / 2v): the density keeps its form, with v + t."""

    t_min, t_max, v = 0.0, 5.0, 4.0

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x)

    def prior(self, z: Tensor) -> Tensor:
        w, u = self.v + self.t_max, torch.special.ndtr(z)
        return torch.where(u < 0.5, -w, w) + w**0.5 * torch.special.ndtri((2 * u % 1).clamp(1e-6, 1 - 1e-6))

    def prior_log_prob(self, x: Tensor) -> Tensor:
        return benes_log_prob(x, torch.full((len(x),), self.t_max, dtype=x.dtype))


def benes_log_prob(x: Tensor, t: Tensor) -> Tensor:
    w = (Benes.v + t).reshape(-1, *[1] * (x.ndim - 1))
    log_p = torch.log(torch.cosh(x)) - x.square() / (2 * w) - w / 2 - 0.5 * torch.log(2 * math.pi * w)
    return log_p.flatten(1).sum(1)


def benes_score(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x) - x / (Benes.v + t[:, None])


def test_a_general_process_is_held_to_the_fokker_planck_equation_of_its_density_or_score() -> None:
    assert not any("Fokker" in e.claim for e in check_sde(zoo.DoubleWell()).raise_for_failures().entries)
    for given in ({"log_prob": benes_log_prob}, {"score": benes_score}):
        report = check_sde(Benes(), **given).raise_for_failures()  # type: ignore[arg-type]
        assert any("Fokker" in e.claim for e in report.entries)
    both = check_sde(Benes(), log_prob=benes_log_prob, score=benes_score, shape=(1,)).raise_for_failures()
    assert not both.warnings, both


@pytest.mark.parametrize("given", [{"log_prob": benes_log_prob}, {"score": benes_score}], ids=lambda g: next(iter(g)))
def test_a_general_process_with_a_wrong_drift_or_diffusion_fails(given: Any) -> None:
    class Steeper(Benes):
        def drift(self, x: Tensor, t: Tensor) -> Tensor:
            return 1.1 * torch.tanh(x)

    class Louder(Benes):
        def diffusion(self, t: Tensor) -> Tensor:
            return math.sqrt(2) * torch.ones_like(t)

    class Sideways(Benes):
        def diffusion(self, t: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.9])

    for broken in (Steeper(), Louder(), Sideways()):
        assert "Fokker-Planck" in failed(check_sde(broken, **given)), broken


def test_the_form_of_a_general_process_is_checked() -> None:
    class Flat(zoo.DoubleWell):
        def drift(self, x: Tensor, t: Tensor) -> Tensor:
            return x.flatten(1).sum(1)

    class Mean(zoo.DoubleWell):
        def drift(self, x: Tensor, t: Tensor) -> Tensor:
            return x - x.mean(0)

    class Unnormalised(zoo.DoubleWell):
        def prior_log_prob(self, x: Tensor) -> Tensor:
            return -0.5 * x.square().flatten(1).sum(1)

    assert "drift keeps the shape" in failed(check_sde(Flat()))
    assert failed(check_sde(Mean())) == "drift of a row does not depend on the other rows"
    assert failed(check_sde(Unnormalised())) == "prior_log_prob is the density of the draws of prior: imbalance"
    report = check_sde(Benes(), log_prob=lambda x, t: benes_log_prob(x, 0 * t))
    assert [e.verdict for e in report.entries if "prior is the law" in e.claim] == ["warn"]


# --- a broken solver


@dataclass(frozen=True)
class SoldAsSecond(Multistep):
    """PEERS D1: an exponential Adams-Bashforth method whose correction carries a wrong coefficient."""

    facts = Facts(needs=GaussianReverseSDE, order=2, memory=2)
    factor: float = 0.8

    def row(self, past: Any, s: Level, level: Any) -> Row:
        t, h = past[0], s.lam - past[0].lam
        r, b = s.sigma / t.sigma, -s.alpha * math.expm1(-h)
        if len(past) < 2:
            return Row(r, data=(b,))
        c = self.factor * s.alpha * (h + math.expm1(-h)) / (t.lam - past[1].lam)
        return Row(r, data=(b + c, -c))


@dataclass(frozen=True)
class Wrapped(Solver):
    """DDIM with one mistake."""

    facts = Facts(needs=GaussianReverseSDE, order=1)

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        return eq.denoise(x, t).combine(s.alpha, s.sigma), None


class Coupled(Wrapped):
    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        new, _ = super().step(eq, x, t, s, state, noise)
        return new + 1e-3 * (x.mean(0) - x), None


class GlobalNoise(Wrapped):
    facts = replace(Wrapped.facts, stochastic=True)

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        return super().step(eq, x, t, s, state, noise)[0] + 0.01 * torch.randn_like(x), None


class Uncounted(Wrapped):
    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        return eq.denoiser.predict(x, t).combine(s.alpha, s.sigma), None


class Twice(Wrapped):
    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        eq.denoise(x, t)
        return super().step(eq, x, t, s, state, noise)


class InPlace(Wrapped):
    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        return x.copy_(super().step(eq, x, t, s, state, noise)[0]), None


class Widening(Wrapped):
    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        return super().step(eq, x, t, s, state, noise)[0].double(), None


class Flattening(Wrapped):
    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        return super().step(eq, x, t, s, state, noise)[0].reshape(len(x), -1), None


class Pretending(Wrapped):
    facts = replace(Wrapped.facts, stochastic=True)


class Nan(Wrapped):
    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        return super().step(eq, x, t, s, state, noise)[0] * (1.0 if t.alpha > 1e-2 else math.nan), None


class Grumpy(Wrapped):
    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        if t.alpha < 1e-2:
            raise ValueError("no")
        return super().step(eq, x, t, s, state, noise)


class Remembering(Solver):
    """A multistep method that keeps its history on itself."""

    facts = Facts(needs=GaussianReverseSDE, order=1)

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        self.last = eq.denoise(x, t).combine(s.alpha, s.sigma)
        return self.last, None


class Needy(Wrapped):
    facts = Facts(needs=cast("Any", Tensor), order=1)


class Claiming(Wrapped):
    facts = replace(Wrapped.facts, stochastic=True)

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        # too much noise by a third
        return DDIM(1.0).step(eq, x, t, s, None, noise)[0] + 0.3 * math.sqrt(abs(s.t - t.t)) * noise(t.t, s.t), None


@pytest.mark.parametrize(
    ("solver", "claim", "said"),
    [
        (Coupled(), "a row alone is the row in a batch of 64", "samples mix"),
        (GlobalNoise(), "the seed decides everything random", "take noise(t.t, s.t)"),
        (Uncounted(), "calls of the model are counted", "6 calls of the model, 0 counted"),
        (Twice(), "calls of the model are counted", "evaluations = 1, but 6 steps make 12 calls"),
        (InPlace(), "the state handed in is not modified", "modified in place"),
        (
            Widening(),
            "float32 and float64 are kept",
            "answered a state of shape (2, 3) in torch.float64, wanted that of the state",
        ),
        (
            Flattening(),
            "any event shape is kept",
            "answered a state of shape (2, 1) in torch.float32, wanted that of the state",
        ),
        (
            Pretending(),
            "stochastic tells whether it draws noise",
            "stochastic = True, but the seed is of no consequence",
        ),
        (Nan(), "1 to 5 steps on every grid", "non-finite state after step 1"),
        (Grumpy(), "1 to 5 steps on every grid", "ValueError that names no cause: no"),
        (Remembering(), "no state is kept on the solver", "its attributes change in a solve"),
        (Remembering(), "repr is valid Python", "make the class a frozen dataclass"),
        (Needy(), "needs, order and evaluations make sense", "needs of Needy must be ODE"),
        (Claiming(), "weak order of mean and variance", "claims order 1"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Solver) else value[:12],
)
def test_a_broken_solver_fails_in_the_row_that_names_the_mistake(solver: Solver, claim: str, said: str) -> None:
    report = check_solver(solver, VPSDE())
    notes = [e.note for e in report.failures if claim in e.claim]
    assert notes, report
    assert said in notes[0]


def test_the_faultless_solver_that_they_are_made_of_passes() -> None:
    check_solver(Wrapped(), VPSDE()).raise_for_failures()


def test_a_wrong_coefficient_shows_as_an_order_below_the_claim() -> None:
    assert check_solver(SoldAsSecond(factor=1.0), VPSDE()).passed
    report = check_solver(SoldAsSecond(), VPSDE())
    rows = ("order on a gaussian", "order on a mixture", "order up in time on a gaussian")
    assert failed(report) == " | ".join(f"{row}, VPSDE" for row in rows)
    measured = [e.measured for e in report.failures]
    assert all(isinstance(v, float) and 0.6 < v < 1.4 for v in measured), measured


def test_an_embedded_pair_with_a_wrong_error_estimate_fails() -> None:
    class Blind(HeunEuler):
        differences = (-0.5e-6, 0.5e-6)

    report = check_solver(Blind(), VPSDE())
    assert "error on a gaussian, in tolerances" in failed(report)


def test_the_documented_exception_is_reported_as_one() -> None:
    assert failed(check_solver(Torchdiffeq("dopri5"), VPSDE())) == "a row alone is the row in a batch of 64: difference"


@dataclass(frozen=True)
class Tableau(RungeKutta):
    """A tableau of order 3, of which only the first two conditions hold."""

    nodes = (0.0, 0.5, 1.0)
    matrix = ((0.5,), (-1.0, 2.0))
    weights = (0.0, 1.0, 0.0)
    facts = Facts(order=3, evaluations=3, in_time=True)


def test_a_tableau_below_its_order_fails_on_the_mixture() -> None:
    report = check_solver(Tableau(), EDMSDE())
    # on a linear flow the midpoint rule does better than its order, so that a Gaussian alone would not tell
    assert failed(report) == "order on a mixture, EDMSDE"


# --- a solver without an order


class ShortNoise(Langevin):
    """sqrt(tau) of noise for sqrt(2 tau)."""

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: None, noise: Any) -> tuple[Tensor, None]:
        if t.t != s.t:
            raise ValueError("this one stays at one level")
        tau = 2 * (self.snr * t.sigma) ** 2
        return x + tau * eq.score(x, t) + math.sqrt(tau) * noise(t.t, t.t), None


class LoudChurn(Churn):
    """All the noise of the raised level added, twice, where only the difference is missing."""

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        hat = eq.level_at_lam(t.lam - math.log1p(self.gamma))
        x = hat.alpha / t.alpha * x + 2 * hat.sigma * noise(t.t, t.t)
        return self.inner.step(eq, x, hat, s, state, noise)


class NoisyODE(StochasticHeunEuler):
    """The drift of the ODE with the noise of the SDE."""

    def first(self, eq: Any, x: Tensor, t: Level) -> Tensor:
        return eq.velocity(x, t)


class Growing(Restart):
    """A state 5 % too large after each step."""

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        new, state = super().step(eq, x, t, s, state, noise)
        return (1.05 * new if self._meets(t, s) else new), state


class HalfNoise(Wrapped):
    """An ancestral step with half of its noise, without a claim."""

    facts = replace(Wrapped.facts, order=0, stochastic=True)

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        half: Any = lambda t, s: 0.5 * noise(t, s)  # noqa: E731
        return DDIM(1.0).step(eq, x, t, s, None, half)


@pytest.mark.parametrize(
    ("solver", "row"),
    [
        (ShortNoise(), "variance after 400 calls at one level, VPSDE"),
        (LoudChurn(Heun(), 0.1), "variance at the end of a solve, VPSDE"),
        (NoisyODE(), "variance at the end of a solve, VPSDE"),
        (Growing(Angle(RK4()), repeats=1), "mean at the end of a solve, VPSDE"),
        (HalfNoise(), "variance at the end of a solve, VPSDE"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Solver) else "",
)
@pytest.mark.slow
def test_a_solver_that_claims_no_order_is_held_to_the_law_at_its_end(solver: Solver, row: str) -> None:
    report = check_solver(solver, VPSDE())
    assert row in failed(report), report


@pytest.mark.parametrize(
    "solver",
    [
        Langevin(2, 0.5),
        Renoise(),
        Churn(Heun(), 0.1),
        Restart(Angle(RK4()), repeats=1),
        PredictorCorrector(Hold(), Langevin(3, 0.2)),
        pytest.param(StochasticHeunEuler(0.05, eta=0.5), marks=pytest.mark.slow),
    ],
    ids=zoo.name,
)
def test_the_law_of_every_kind_that_claims_no_order_is_measured(solver: Solver) -> None:
    report = check_solver(solver, VPSDE()).raise_for_failures()
    found = {e.claim.split()[0]: e for e in report.entries if "VPSDE: " in e.claim}
    assert set(found) == {"mean", "variance"}
    if not isinstance(solver, Langevin | Renoise):  # what the response gives exactly is the law of a sample
        exact, sample = (laws.law(solver, VPSDE(), steps=60, affine=affine) for affine in (True, False))
        print(f"variance off by {exact.variance:.4f}, of a sample {sample.variance:.4f} +- {sample.slack / 4:.4f}")
        assert abs(exact.variance - sample.variance) <= sample.slack
        assert abs(exact.mean - sample.mean) <= sample.slack


def test_a_langevin_step_has_the_stationary_variance_that_its_docstring_says() -> None:
    # v / (1 - tau / 2v), with v = alpha^2 1.7 + sigma^2 where sigma = alpha / 2, and tau = 2 (r sigma)^2
    ratio = 2 * 0.3**2 * 0.25 / (2 * (1.7 + 0.25))
    found = laws.stationary(Langevin(1, 0.3), EDMSDE())
    assert found.variance == pytest.approx(ratio / (1 - ratio), rel=1e-6)
    assert found.mean == pytest.approx(0.0, abs=1e-9)
    assert found.slack == 0.0


def test_a_corrector_is_measured_where_it_does_something() -> None:
    assert 0.02 < laws.stationary(Langevin({2.0: 3}, 0.16), EDMSDE()).variance < 0.1
    report = check_solver(Langevin({40.0: 3}, 0.16), VPSDE())
    assert "stochastic tells whether it draws noise" in failed(report)  # it does nothing there either
    assert [e.note for e in report.warnings] == [
        "it was not: Langevin(n={40.0: 3}, snr=0.16) does nothing where sigma/alpha is 0.5 or 3"
    ]


def test_a_corrector_that_is_not_affine_is_measured_on_a_sample() -> None:
    class Clipped(Langevin):
        def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: None, noise: Any) -> tuple[Tensor, None]:
            return super().step(eq, x, t, s, state, noise)[0].clamp(-1e3 - 1e-6 * x[:1].abs().max().item(), 50.0), None

    assert laws.stationary(Clipped(1, 0.3), EDMSDE()).slack == 0.0  # nothing is clipped

    class Bent(Langevin):
        def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: None, noise: Any) -> tuple[Tensor, None]:
            new, _ = super().step(eq, x, t, s, state, noise)
            return new + 1e-4 * torch.sin(x), None

    found = laws.stationary(Bent(1, 0.3), EDMSDE())
    assert 0 < found.slack < 0.05
    assert found.variance < 0.05 + found.slack


def test_what_refuses_to_be_measured_is_told_and_not_passed_over() -> None:
    class Choosy(HalfNoise):
        def prepare(self, eq: Any, intervals: Any) -> None:
            if len(intervals) > 6:
                raise ValueError("this one takes six steps at most, whatever the grid")

    report = check_solver(Choosy(), VPSDE())
    (told,) = [e for e in report.warnings if e.claim == "accuracy is measured, VPSDE"]
    assert told.note == "it was not: this one takes six steps at most, whatever the grid"


# --- up in time, and in float64


class ShortUpwards(Heun):
    """A step up in time of 0.9 of its length."""

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        new, state = super().step(eq, x, t, s, state, noise)
        return (x + 0.9 * (new - x) if s.t > t.t else new), state


class ShortUpwardsPair(HeunEuler):
    """The same of an adaptive method."""

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        new, state = super().step(eq, x, t, s, state, noise)
        return (x + 0.9 * (new - x) if s.t > t.t else new), state


class Downwards(Heun):
    """A step up in time is refused."""

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        if s.t > t.t:
            raise ValueError("this one goes down in time, not up")
        return super().step(eq, x, t, s, state, noise)


@pytest.mark.slow
def test_a_wrong_step_up_in_time_fails_and_a_refused_one_does_not() -> None:
    assert failed(check_solver(ShortUpwards(), VPSDE())) == "order up in time on a gaussian, VPSDE"
    assert failed(check_solver(ShortUpwardsPair(), VPSDE())) == "error up in time on a gaussian, in tolerances, VPSDE"
    report = check_solver(Downwards(), VPSDE()).raise_for_failures()
    assert not any("up in time" in e.claim for e in report.entries)
    assert sum("up in time" in e.claim for e in check_solver(Heun()).entries) == 2


class Rounding(Heun):
    """Computes in float32, whatever it is given."""

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        new, state = super().step(eq, x, t, s, state, noise)
        return new.float().to(x.dtype), state


class RoundingVelocity(Wrapped):
    """Only the data prediction is rounded."""

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        found = eq.denoise(x, t)
        data = found.data.float().to(x.dtype)
        return s.alpha * data + s.sigma / t.sigma * (x - t.alpha * data), None


class RoundingPath(StochasticHeunEuler):
    """The same of an adaptive method with noise."""

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        new, state = super().step(eq, x, t, s, state, noise)
        return new.float().to(x.dtype), state


@pytest.mark.parametrize(
    "solver", [Rounding(), RoundingVelocity(), pytest.param(RoundingPath(), marks=pytest.mark.slow)], ids=zoo.name
)
def test_a_cast_to_float32_on_the_way_is_noticed(solver: Solver) -> None:
    assert "float64 is computed in float64" in failed(check_solver(solver, VPSDE()))


# --- a broken model


class Timed(MLP):
    """Told the time, so that another process is a wrong one: the log noise level is the same on many."""

    clock = "time"


def trained(draw: Any, sde: GaussianSDE, kind: Any, steps: int = 400, blind: bool = False) -> MLP:
    """A small network trained for a few hundred steps, with or without its time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Timed(2, hidden=48, layers=1)
        opt = torch.optim.Adam(net.parameters(), lr=3e-3)
        source = torch.Generator().manual_seed(0)
        for _ in range(steps):
            model = Network(timeless(net) if blind else net, sde, kind, shape=(2,))
            losses.denoising_score_matching(model, draw(256, seed=source), generator=source).backward()
            opt.step()
            opt.zero_grad()
    return net.eval()


def timeless(net: nn.Module) -> Any:
    """The network told one time, whatever the time."""
    return lambda x, t: net(x, 0 * t + 0.4)


@pytest.fixture(scope="module")
def nets() -> dict[str, MLP]:
    """Networks trained on two moons under a VPSDE, by what they predict."""
    kinds = {"noise": predict.noise, "v": predict.v}
    return {name: trained(moons, VPSDE(), kind) for name, kind in kinds.items()}


@pytest.mark.parametrize("kind", [predict.noise, predict.v, predict.velocity, predict.EDM(1.4)], ids=repr)
@pytest.mark.parametrize("sde", zoo.mostly_slow([VPSDE(), FlowSDE()]), ids=zoo.name)
def test_a_trained_network_passes_as_what_it_is(sde: GaussianSDE, kind: Any) -> None:
    if isinstance(sde, FlowSDE) and kind == predict.noise:
        sde = CosineSDE()  # noise tells nothing of the data at the end of the flow
    net = trained(ring, sde, kind)
    report = check_denoiser(Network(net, sde, kind, shape=(2,)), ring(2000, seed=1))
    report.raise_for_failures()


def mix(report: Report) -> float:
    """How much better the best mix of answers does than the model."""
    (found,) = [e.measured for e in report.entries if e.claim.startswith("error against the best mix")]
    assert isinstance(found, float)
    return found


@pytest.mark.parametrize(
    ("name", "kind", "sde"),
    [
        *(("noise", kind, VPSDE()) for kind in (predict.data, predict.v, predict.edm, predict.score, predict.velocity)),
        ("v", predict.velocity, VPSDE()),
        ("noise", predict.noise, CosineSDE()),
    ],
    ids=repr,
)
def test_a_network_declared_as_something_else_fails(
    nets: dict[str, MLP], name: str, kind: Any, sde: GaussianSDE
) -> None:
    report = check_denoiser(Network(nets[name], sde, kind, shape=(2,)), moons(2000, seed=1))
    assert "error against the best mix" in failed(report), report
    assert "wrong parametrisation" in str(report)


def test_nearly_the_right_process_is_a_warning_after_a_short_training(nets: dict[str, MLP]) -> None:
    x0 = moons(2000, seed=1)
    right = mix(check_denoiser(Network(nets["noise"], VPSDE(), predict.noise, shape=(2,)), x0))
    for sde in (SubVPSDE(), VPSDE(0.1, 40.0)):
        report = check_denoiser(Network(nets["noise"], sde, predict.noise, shape=(2,)), x0)
        told = [e for e in (*report.warnings, *report.failures) if "trained for a while" in e.claim]
        assert told, report
        assert "nearly the right one" in told[0].note
        print(f"{sde!r}: {mix(report):.3f}, right {right:.3f}")
        assert mix(report) > right + 0.01


def test_a_network_that_does_not_take_its_time_is_told(nets: dict[str, MLP]) -> None:
    claim = "the answer depends on the time"
    for sde, kind in ((VPSDE(), predict.noise), (EDMSDE(), predict.EDM(0.8))):  # EDM scales the input too
        report = check_denoiser(Network(timeless(nets["noise"]), sde, kind, shape=(2,)))
        assert [e.note for e in report.warnings if e.claim == claim] == [
            "the same function of x at two levels: the network does not take its time argument"
        ]
        report = check_denoiser(Network(nets["noise"], sde, kind, shape=(2,)))
        assert all(e.passed for e in report.entries if e.claim == claim)
    # answers that are linear in the state tell nothing
    fresh = check_denoiser(Network(MLP(2, hidden=16, layers=1), VPSDE(), predict.v, shape=(2,)))
    assert all(e.passed for e in fresh.entries if e.claim == claim)


def test_a_network_trained_without_its_time_is_found_by_its_errors() -> None:
    net = trained(ring, VPSDE(), predict.noise, blind=True)
    model = Network(timeless(net), VPSDE(), predict.noise, shape=(2,))
    assert "error against the best mix" in failed(check_denoiser(model, ring(2000, seed=1)))


def test_a_wrong_clock_is_told(nets: dict[str, MLP]) -> None:
    model = Network(nets["noise"], VPSDE(), predict.noise, shape=(2,))
    model.tell(Scaled(999))  # which the constructor refuses
    report = check_denoiser(model, moons(500, seed=1))
    assert report.failures
    assert "clock" in str(report)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(2), nn.Linear(2, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.out(self.norm(x))


def test_batch_norm_fails_in_training_mode_and_is_left_as_it_was() -> None:
    model = Network(Normed(), VPSDE(), predict.noise, shape=(2,)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert failed(check_denoiser(model)) == "a row does not change when the others do (training mode)"
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_dropout_is_no_mixing_of_rows() -> None:
    dropping = nn.Dropout(0.5)
    model = Network(lambda x, t: dropping(0.1 * x), VPSDE(), shape=(2,))
    assert "the same answer twice" in failed(check_denoiser(model))  # not a submodule: it stays in training
    model.dropping = dropping
    check_denoiser(model).raise_for_failures()


class Halves(Network):
    """A model whose noise does not belong to its data."""

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        found = super().predict(x, at, **cond)
        return Prediction(lambda: found.data, lambda: 1.1 * found.noise)


class Widened(Network):
    """A model that answers in float64, whatever it is asked in."""

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        found = super().predict(x, at, **cond)
        return Prediction(found.data.double, found.noise.double)


@pytest.mark.parametrize(
    ("model", "claim"),
    [
        (Halves(lambda x, t: 0.1 * x, VPSDE(), shape=(2,)), "halves fit"),
        (Network(lambda x, t: x - x.mean(0), VPSDE(), shape=(2,)), "when the others do (eval mode)"),
        (Network(lambda x, t: x * torch.rand(()), VPSDE(), shape=(2,)), "the same answer twice"),
        (Network(lambda x, t: x * t[0], VPSDE(), shape=(2,)), "times per row"),
        (Network(lambda x, t: x / (t > 0.5).unsqueeze(1), VPSDE(), shape=(2,)), "finite over the whole range"),
        (Widened(lambda x, t: 0.1 * x, VPSDE(), shape=(2,)), "the shape and dtype"),
    ],
    ids=["halves", "mean", "random", "first time", "infinite", "dtype"],
)
def test_a_broken_model_fails_in_the_row_that_names_the_mistake(model: Network, claim: str) -> None:
    with torch.random.fork_rng(devices=[]):
        report = check_denoiser(model)
    assert claim in failed(report), report


def test_conditions_go_along_with_the_rows() -> None:
    seen = set()

    def labelled(x: Tensor, t: Tensor, label: Tensor, scale: float) -> Tensor:
        seen.add((len(x), len(label), scale))
        return 0.1 * x + 0 * label[:, None]

    model = Network(labelled, VPSDE(), predict.v)
    x0 = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    check_denoiser(model, x0, label=torch.arange(32.0), scale=2.0)
    assert seen == {(8, 8, 2.0), (32, 32, 2.0)}


def test_equal_data_and_a_batch_of_one_are_no_crash() -> None:
    model = Network(lambda x, t: 0.1 * x, VPSDE(), shape=(2,))
    assert failed(check_denoiser(model, torch.ones(4, 2))) == "the data vary"
    assert "nothing to predict" in str(check_denoiser(model, torch.ones(1, 2)))


# --- the doors


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_sde(VPSDE), r"got the class VPSDE: give an instance, VPSDE\(\)"),  # type: ignore[arg-type]
        (lambda: check_sde(3), r"check_sde takes an SDE such as VPSDE\(\), got 3"),  # type: ignore[arg-type]
        (lambda: check_solver(Heun), r"got the class Heun: give an instance, Heun\(\)"),  # type: ignore[arg-type]
        (lambda: check_solver(Heun(), zoo.DoubleWell()), "measures on a GaussianSDE"),  # type: ignore[arg-type]
        (lambda: check_denoiser(nn.Linear(2, 2)), "takes a Denoiser: wrap the network"),  # type: ignore[arg-type]
        (lambda: check_sde(VPSDE(), shape=(2.0,)), "each size of shape must be an integer"),  # type: ignore[arg-type]
    ],
)
def test_what_is_not_meant_is_refused_with_advice(check: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        check()


def test_a_model_of_unknown_shape_needs_one() -> None:
    model = Network(lambda x, t: 0.1 * x, VPSDE())
    with pytest.raises(ValueError, match="the event shape is not known: give x0, or shape="):
        check_denoiser(model)
    check_denoiser(model, shape=(3, 2, 2)).raise_for_failures()
    with pytest.raises(ValueError, match="event shape"):
        check_denoiser(Network(lambda x, t: 0.1 * x, VPSDE(), shape=(2,)), torch.ones(2, 3))


def test_measuring_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(ValueError, match="data must be 'gaussian' or 'mixture', got 'x'"):
        orders.deterministic(Heun(), VPSDE(), "x")
    with pytest.raises(ValueError, match="is not affine in its state"):
        orders.moments(StochasticHeunEuler(), VPSDE(), 1, 0.5, 2.0)


# --- the report


def test_a_report_is_a_table_with_notes_below_what_failed() -> None:
    report = Report(
        "check_sde(X())",
        (
            testing.Entry("short", 0.5, "<= 1", True, note="not shown"),
            testing.Entry("a longer claim", math.nan, "<= 1e-05", False, note="look here"),
            testing.Entry("advice", "no", "", False, required=False, note="or there"),
        ),
        seconds=1.25,
    )
    assert str(report) == "\n".join(
        [
            "check_sde(X())",
            "FAILED: 1 of 3 claims hold, 1 failed, 1 to look at (1.2 s)",
            "",
            "ok    short           0.5  <= 1",
            "FAIL  a longer claim  nan  <= 1e-05",
            "        look here",
            "warn  advice           no",
            "        or there",
        ]
    )
    with pytest.raises(AssertionError, match="1 of 3 claims do not hold\n\nFAIL  a longer claim"):
        report.raise_for_failures()


@pytest.mark.slow
def test_a_report_is_json_and_its_curves_a_picture(tmp_path: Any) -> None:
    report = check_solver(DDIM(), VPSDE())
    found = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert found["passed"] is True
    assert found["entries"][2]["claim"] == "order on a gaussian, VPSDE"
    assert found["curves"][0]["x"] == [32, 64, 128, 256]
    for i, drawn in enumerate((report, check_sde(VPSDE()), check_sde(Doubled()))):
        drawn.plot(tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").read_bytes().startswith(b"\x89PNG")
    bad = Report("x", (testing.Entry("a", math.inf, "", False),))
    assert json.loads(json.dumps(bad.as_dict(), allow_nan=False))["entries"][0]["measured"] == "inf"


def test_a_picture_without_curves_or_matplotlib_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no curve to draw"):
        Report("x", ()).plot(tmp_path / "x.png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pictures need matplotlib: pip install 'sde-diffusion\[examples\]'"):
        check_sde(VPSDE()).plot(tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_a_solver_defined_in_a_function_has_a_valid_repr() -> None:
    @dataclass(frozen=True)
    class Local(Wrapped):
        knob: float = math.inf

    report = check_solver(Local(), VPSDE()).raise_for_failures()
    assert "Local(knob=inf)" in report.subject


def test_a_solver_that_needs_only_a_velocity_is_checked() -> None:
    assert Heun().facts.needs is ODE
    check_solver(Angle(Heun(), 0.7), FlowSDE()).raise_for_failures()
