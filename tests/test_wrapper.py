"""Claim: a model does not change by being wrapped. What a wrapper does not say anew, it keeps, to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from refusals import check, refuses, wrong
from torch import Tensor, nn

from sde_diffusion import (
    EDMSDE,
    VPSDE,
    Clipped,
    Denoiser,
    DiscreteVPSDE,
    FlowSDE,
    Level,
    Network,
    Prediction,
    SDESampler,
    Wrapper,
    clocks,
    predict,
)
from sde_diffusion import guidance as shipped
from sde_diffusion.denoiser import On
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.denoiser.prediction import Coefficients
from sde_diffusion.guidance import Thresholded
from sde_diffusion.likelihood import Density, LikelihoodWarning, Method
from sde_diffusion.nets import MLP
from sde_diffusion.solvers import DDIM, DPMSolverPP, Heun, Solver
from sde_diffusion.testing._habits import Counted

F64 = torch.float64
X = torch.tensor([[0.4, -0.9], [1.1, 0.2], [-0.3, 0.5]], dtype=F64)


@dataclass(frozen=True)
class Asked(predict.EDM):
    """Counts how often its coefficients are computed."""

    calls: list[float] = field(default_factory=list, compare=False)

    def coefficients(self, at: Level) -> Coefficients:
        self.calls.append(float(at.t) if isinstance(at.t, float) else at.t.flatten()[0].item())
        return super().coefficients(at)


class Table(nn.Module):
    """A network that looks the index of a noise level up."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.scales = nn.Embedding(levels, 2)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return (0.5 + 0.1 * self.scales(t)) * x


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return torch.tanh(self.layer(torch.cat([x, t[:, None]], dim=1)))


def told_the_time() -> Network:
    return Network(Timed(), VPSDE(), Asked(0.5), shape=(2,))


def told_an_index() -> Network:
    return Network(Table(100), DiscreteVPSDE.linear(100), Asked(0.5), clock=clocks.Index(), shape=(2,))


def told_a_log_noise_level() -> Network:
    return Network(MLP(2, hidden=8, layers=1, classes=3), EDMSDE(0.01, 20.0), Asked(0.5), shape=(2,))


MODELS = [told_the_time, told_an_index, told_a_log_noise_level]


def made(make: Callable[[], Network]) -> Network:
    torch.manual_seed(0)
    return make().double()


def calls_of(model: Network) -> list[float]:
    """The times at which the coefficients of a model were computed."""
    assert isinstance(model.kind, Asked)
    return model.kind.calls


class Guided(Wrapper):
    """Classifier-free guidance, in the manner of docs/extending.md."""

    def __init__(self, inner: Denoiser, w: float) -> None:
        super().__init__(inner)
        self.w, self.cost = w, 2 * inner.cost

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        given, free = self.inner.predict(x, at, **cond), self.inner.predict(x, at)
        return Prediction(
            lambda: torch.lerp(free.data, given.data, self.w), lambda: torch.lerp(free.noise, given.noise, self.w)
        )


class Nothing(Wrapper):
    """Writes `predict` and changes nothing."""

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        return self.inner.predict(x, at, **cond)


def wide(model: Denoiser) -> Clipped:
    return Clipped(model, -1e9, 1e9)


def to_another(model: Denoiser) -> On:
    return On(model, FlowSDE(t_min=0.05, t_max=0.9))


def thrice(model: Denoiser) -> Wrapper:
    return Wrapper(Nothing(Wrapper(model)))


WRAPPERS: dict[str, Callable[[Any], Wrapper]] = {
    "Wrapper": Wrapper,
    "Nothing": Nothing,
    "Counted": Counted,
    "thrice": thrice,
    "Clipped": wide,
    "Thresholded": lambda model: Thresholded(model, 1.0, bound=1e9),
    "Guided, off": lambda model: shipped.Guided(model, 1.0),
    "Reward, off": lambda model: shipped.Reward(model, torch.sum, 0.0),
    "Tilted by 1": lambda model: shipped.Tilted([model], [1.0]),
    "On its own": lambda model: On(model, model.sde),
    "On another": to_another,
    "Clipped(On)": lambda model: wide(to_another(model)),
    "On(Clipped)": lambda model: to_another(wide(model)),
}
OFF = [pytest.param(WRAPPERS[name], id=name) for name in ("Guided, off", "Reward, off", "Tilted by 1")]
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def facts(model: Denoiser) -> dict[str, object]:
    names = ("shape", "cost", "data_std", "clock", "noise_range", "per_sample")
    return {name: getattr(model, name) for name in names}


# --- what a wrapper keeps


@pytest.mark.parametrize("make", MODELS)
@every_wrapper
def test_every_wrapper_keeps_the_facts_of_its_model(wrap, make):
    model = made(make)
    wrapped = wrap(model)
    assert facts(wrapped) == facts(model)
    assert wrapped.regular == (
        model.regular and not any(isinstance(m, (Clipped, Thresholded)) for m in wrapped.modules())
    )
    assert wrapped.sde == model.sde or any(type(m) is On for m in wrapped.modules())
    assert wrapped.training
    assert not wrap(model.eval()).training


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("wrap", [Wrapper, Nothing, Counted, thrice, *OFF])
@pytest.mark.parametrize("solver", [DPMSolverPP(2), Heun(), DDIM(1.0)], ids=repr)
def test_a_wrapper_that_does_nothing_changes_no_bit_of_a_sample(wrap: Callable[..., Wrapper], make, solver: Solver):
    plain, wrapped = (SDESampler(m.sde, m, solver=solver, steps=6) for m in (made(make), wrap(made(make))))
    assert repr(wrapped) == repr(plain)
    assert wrapped.times == plain.times
    assert torch.equal(wrapped.sample(5, seed=0), plain.sample(5, seed=0))


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("wrap", [Wrapper, Nothing, Counted])
def test_nor_of_a_likelihood_nor_its_solver(wrap: Callable[..., Wrapper], make):
    plain, wrapped = (SDESampler(m.sde, m).log_prob(X) for m in (made(make), wrap(made(make))))
    assert torch.equal(wrapped.value, plain.value)
    assert torch.equal(wrapped.solver_error, plain.solver_error)
    assert (wrapped.nfe, wrapped.nfe_check, wrapped.whole) == (plain.nfe, plain.nfe_check, plain.whole)


@pytest.mark.parametrize("make", [told_the_time, told_a_log_noise_level])
def test_nor_of_a_view_of_it_and_of_a_likelihood_beyond_its_levels(make):
    sde = VPSDE(t_min=0.01, t_max=0.75)
    found = []
    for wrap in (lambda m: m, Wrapper, lambda m: Wrapper(Wrapper(m).on(sde))):
        sampler = SDESampler(sde, wrap(made(make)).on(sde))
        with pytest.warns(LikelihoodWarning, match="extrapolates"):
            found.append(
                (
                    sampler.sample(3, seed=0),
                    sampler.log_prob(X, density=Density(level=1e-3), method=Method(steps=8)).value,
                )
            )
    assert all(torch.equal(a, found[0][0]) for a, _ in found)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=0)
    torch.testing.assert_close(found[2][1], found[0][1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("wrap", [Wrapper, Nothing, Counted, wide])
def test_coefficients_are_computed_once_for_each_time_of_the_grid(wrap: Callable[..., Wrapper], make):
    model = made(make)
    wrapped, asked = wrap(model), calls_of(model)
    sampler = SDESampler(wrapped.sde, wrapped, steps=10)
    sampler.sample(2, seed=0)
    assert sorted(asked) == sorted(sampler.times)
    sampler.sample(2, seed=1)
    assert len(asked) == 11


# --- the four faults that a wrapper had before it was one


def guided(model: Network) -> Guided:
    return Guided(model, 3.0)


def test_guidance_keeps_the_scale_of_the_data():
    assert guided(made(told_a_log_noise_level)).data_std == 0.5


def test_guidance_keeps_the_default_grid():
    model = made(told_a_log_noise_level)
    assert SDESampler(model.sde, guided(model)).times == SDESampler(model.sde, model).times


def test_guidance_computes_the_coefficients_of_a_solve_once():
    model = made(told_a_log_noise_level)
    sampler = SDESampler(model.sde, guided(model), steps=10)
    *_, last = sampler.iterate(6, seed=0, label=torch.tensor([0, 1, 2, 0, 1, 2]))
    assert last.nfe == 22
    assert len(calls_of(model)) == 11


def test_guidance_of_a_network_told_an_index_is_weighed_in_fixed_steps():
    model = made(told_an_index)
    found = SDESampler(model.sde, guided(model)).log_prob(X, label=torch.tensor([0, 1, 2]))
    assert found.nfe == 2 * 4 * 32


def test_a_wrapped_model_is_seen_through_another_process_at_the_levels_of_its_own():
    model = made(told_a_log_noise_level)
    view = guided(model).on(VPSDE(t_max=0.5))
    assert view.noise_range == model.noise_range
    (at,) = view.levels([0.3])
    assert at.plan[1].plan[0] is model  # tabulated by the model inside, in a view too


# --- what a wrapper of one's own may do


class InPlace(Wrapper):
    """Works on its state in place."""

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        return self.inner.predict(x.clamp_(-1.0, 1.0), at)


class Careful(InPlace):
    careful = True

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        return self.inner.predict(x.clamp(-1.0, 1.0), at)


@pytest.mark.parametrize("solver", [DPMSolverPP(2), Heun()], ids=repr)
def test_a_wrapper_may_write_into_its_state(solver: Solver):
    model = made(told_the_time)
    found, wanted = (
        SDESampler(model.sde, wrap(model), solver=solver, steps=8).sample(x_T=2 * X) for wrap in (InPlace, Careful)
    )
    assert torch.equal(found, wanted)
    assert (InPlace(model).careful, Careful(model).careful, Wrapper(model).careful) == (False, True, True)


class Said(Wrapper):
    data_std, per_sample = 2.0, ("label",)


def test_what_a_wrapper_says_itself_goes_before_what_the_model_says():
    model = made(told_the_time)
    assert facts(Said(model)) == facts(model) | {"data_std": 2.0, "per_sample": ("label",)}


def test_a_wrapper_is_copied_with_its_model():
    model = Wrapper(made(told_an_index))
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X, 20.0).data, model(X, 20.0).data)
    assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())


def test_a_wrapped_exact_model_is_seen_through_another_process_as_far_as_its_own_goes():
    exact = Gaussian(VPSDE(), torch.zeros(2, dtype=F64), 0.5)
    assert Wrapper(exact).noise_range == (0.0, float("inf"))
    view = Wrapper(exact).on(EDMSDE())
    torch.testing.assert_close(view.noise_range, Network(nn.Identity(), VPSDE()).noise_range)
    torch.testing.assert_close(view(X, 3.0).data, exact.on(EDMSDE())(X, 3.0).data, rtol=1e-12, atol=1e-12)


LINEAR = wrong(nn.Linear(2, 2))


@refuses(
    (lambda: Wrapper(LINEAR), TypeError, "Wrapper takes a Denoiser, got Linear: wrap it, Network(net, sde, predict."),
    (lambda: Clipped(LINEAR), TypeError, "Clipped takes a Denoiser, got Linear: wrap it"),
    (lambda: On(LINEAR, VPSDE()), TypeError, "On takes a Denoiser, got Linear"),
)
def test_what_is_no_denoiser_is_not_wrapped(call, error, text):
    check(call, error, text)
