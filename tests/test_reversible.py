"""Claim: what `Reversible` encodes, it decodes again, to rounding, at any number of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import zoo
from test_conformance import mixture
from torch import Tensor, nn

from sde_diffusion import VPSDE, BrownianSDE, Network, SDESampler, SolverError, grids, integrate, predict
from sde_diffusion.sde import GaussianSDE
from sde_diffusion.solvers import (
    DDIM,
    RK4,
    Adams,
    AdamsMoulton,
    Angle,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    Midpoint,
    Reversible,
    Solver,
    Torchdiffeq,
)
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.solvers.wrappers.reversible import inverse
from sde_diffusion.testing import orders

F64 = torch.float64
EVERYWHERE = [Angle(RK4()), Angle(Heun()), Angle(Midpoint(), 0.5), DDIM()]


def sampler(sde: GaussianSDE, solver: Solver, steps: int = 20, model=None) -> SDESampler:
    return SDESampler(sde, model or mixture(sde, F64), solver=solver, steps=steps, denoise=False)


def trip(s: SDESampler, x0: Tensor) -> float:
    """Largest distance between the data, at the last grid time, and what their encoding decodes to."""
    (at,) = s.model.sde.levels(s.times[-1:])  # type: ignore[union-attr]
    return float((s.sample(x_T=s.encode(x0)) - at.alpha * x0).abs().max())


@pytest.mark.parametrize("sde", zoo.SDES, ids=zoo.name)
@pytest.mark.parametrize("inner", EVERYWHERE, ids=zoo.name)
def test_the_round_trip_is_exact_on_every_sde_and_that_of_the_plain_solver_is_not(
    inner: Solver, sde: GaussianSDE
) -> None:
    x0 = mixture(sde, F64).sample(16, seed=1)
    exact, plain = trip(sampler(sde, Reversible(inner)), x0), trip(sampler(sde, inner), x0)
    print(f"{exact:.1e}, plain {plain:.1e}")
    assert exact < 1e-12
    assert plain > 1e-8


@pytest.mark.parametrize("steps", [1, 2, 5, 100])
def test_the_round_trip_is_exact_at_any_number_of_steps(steps: int) -> None:
    x0 = mixture(VPSDE(), F64).sample(16, seed=1)
    assert trip(sampler(VPSDE(), Reversible(), steps), x0) < 1e-12


@pytest.mark.parametrize("inner", [Heun(), RK4()], ids=zoo.name)
def test_the_round_trip_is_exact_in_the_time_of_the_sde_too(inner: Solver) -> None:
    assert trip(sampler(VPSDE(), Reversible(inner)), mixture(VPSDE(), F64).sample(16, seed=1)) < 1e-12


def test_the_round_trip_is_exact_for_a_network_and_images() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 2, 3, padding=1)).double()
    model = Network(lambda x, t: net(x), VPSDE(), predict.edm, shape=(2, 8, 8)).double()
    x0 = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=F64)
    with torch.no_grad():
        assert trip(sampler(VPSDE(), Reversible(), model=model), x0) < 1e-11


def test_the_round_trip_is_as_exact_as_single_precision_allows() -> None:
    model = mixture(VPSDE())
    assert trip(sampler(VPSDE(), Reversible(), model=model), model.sample(16, seed=1)) < 1e-5


def test_what_is_encoded_is_decoded_by_the_inner_solver_alone() -> None:
    x0 = mixture(VPSDE(), F64).sample(4, seed=1)
    code = sampler(VPSDE(), Reversible(Heun())).encode(x0)
    assert code.shape == x0.shape
    assert torch.equal(sampler(VPSDE(), Heun()).sample(x_T=code), sampler(VPSDE(), Reversible(Heun())).sample(x_T=code))


@pytest.mark.parametrize("sde", zoo.mostly_slow(zoo.SMOOTH_SDES), ids=zoo.name)
@pytest.mark.parametrize("inner", [Angle(Heun()), Angle(RK4()), DDIM()], ids=zoo.name)
def test_encoding_has_the_order_of_the_inner_solver(inner: Solver, sde: GaussianSDE) -> None:
    model = orders.gaussian(sde)
    t, s = zoo.between(sde, 0.15, 1.25, 1).tolist()  # upwards
    (at,) = sde.levels([t])
    x, errors, steps = at.alpha * model.sample(8, seed=1), [], [16, 32, 64]
    for n in steps:
        times = zoo.between(sde, 0.15, 1.25, n)
        *_, last = integrate(GaussianReverseSDE(model), Reversible(inner), x, times)
        errors.append(float((last.x - model.flow(x, t, s)).square().mean().sqrt()))
    assert inner.facts.order - 0.15 <= orders.slope(steps, errors) <= inner.facts.order + 0.6, errors


def test_a_row_is_encoded_as_it_is_alone() -> None:
    s = sampler(VPSDE(), Reversible())
    x0 = s.model.sample(8, seed=1)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(s.encode(x0)[3:4], s.encode(x0[3:4]), rtol=0, atol=1e-13)


def test_few_calls_are_needed_for_a_step_up() -> None:
    model = mixture(VPSDE(), F64)
    s = sampler(VPSDE(), Reversible(DDIM()))
    (at,) = VPSDE().levels(s.times[-1:])
    *_, last = integrate(s.problem.equation(), s.solver, at.alpha * model.sample(64, seed=1), s.times[::-1])
    print(f"{last.nfe / 20:.1f} calls per step")
    assert last.nfe < 15 * 20


def test_the_gradient_of_an_encoded_batch_is_that_of_its_rows() -> None:
    s = sampler(VPSDE(), Reversible(), 3)
    x0 = s.model.sample(4, seed=1).requires_grad_()  # type: ignore[operator, union-attr]
    (together,) = torch.autograd.grad(s.encode(x0, grad=True).sum(), x0)
    for i in range(4):  # rows need different numbers of calls
        (alone,) = torch.autograd.grad(s.encode(x0[i : i + 1], grad=True).sum(), x0)
        torch.testing.assert_close(together[i], alone[i], rtol=1e-7, atol=1e-9)


# --------------------------------------------------------------------------------------------------------- the inverse


def test_broyden_solves_each_row_by_itself() -> None:
    # Rows of different difficulty, one of them linear, and one that starts at its solution.
    a = torch.tensor([[0.5, 0.2], [0.1, 0.9]], dtype=F64)
    bends = torch.tensor([[0.0], [0.3], [0.6], [0.3]], dtype=F64)

    def bent(bend: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: x @ a + bend * torch.tanh(x) ** 2

    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    guess = x + 0.3 * (torch.arange(4)[:, None] < 3)
    found, residual = inverse(bent(bends), bent(bends)(x), guess, 0.7, 60)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)
    assert float(residual.max()) < 1e-14
    for i, row in enumerate(x.split(1)):
        step = bent(bends[i])
        alone, _ = inverse(step, step(row), guess[i : i + 1], 0.7, 60)
        torch.testing.assert_close(alone[0], found[i], rtol=0, atol=1e-13)


def test_an_inverse_that_does_not_exist_is_reported_by_its_residual() -> None:
    _, residual = inverse(lambda x: x**2 + 1, torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64), 1.0, 40)
    assert float(residual) > 1.0


def test_a_step_that_has_no_inverse_is_an_error() -> None:
    # Heun in the time of BrownianSDE: its first step of 20 goes from t = 1000 to t = 19.
    sde = BrownianSDE()
    model = mixture(sde, F64)
    angle = partial(grids.angle, data_std=model.data_std)
    s = SDESampler(sde, model, solver=Reversible(Heun()), steps=20, grid=angle, denoise=False)
    with pytest.raises(
        SolverError, match=r"the step of Heun\(\) from t = 1000 to t = 18.7\d* could not be inverted in 60 calls"
    ):
        s.encode(mixture(BrownianSDE(), F64).sample(4, seed=1))


@pytest.mark.parametrize(
    "inner",
    [
        EulerMaruyama(),
        DDIM(0.5),
        DPMSolverPP(2),
        Angle(DPMSolverPP(2)),
        Adams(2),
        AdamsMoulton(),
        Torchdiffeq("dopri5"),
    ],
    ids=zoo.name,
)
def test_a_solver_without_a_one_step_inverse_is_refused(inner: Solver) -> None:
    with pytest.raises(
        ValueError, match=r"Reversible inverts the step of a deterministic one-step solver, such as Heun"
    ):
        Reversible(inner)


def test_a_multistep_method_of_one_step_is_inverted_as_any_other() -> None:
    x0 = mixture(VPSDE(), F64).sample(4, seed=1)
    assert trip(sampler(VPSDE(), Reversible(DPMSolverPP(1))), x0) < 1e-12


def test_the_posterior_mean_at_the_end_is_not_part_of_the_round_trip() -> None:
    sde = VPSDE()
    x0 = mixture(sde, F64).sample(16, seed=1)
    s = SDESampler(sde, mixture(sde, F64), solver=Reversible(), steps=20)
    error = float((s.sample(x_T=s.encode(x0)) - x0).abs().max())
    (at,) = sde.levels(s.times[-1:])
    assert 1e-6 < error < math.exp(-at.lam)
