"""Claim: every solve runs its model in evaluation mode, and finds the modules of whatever it was handed."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import zoo
from refusals import T, check, refuses, wrong
from torch import Tensor, nn

from sde_diffusion import VESDE, VPSDE, Network, SDESampler, predict
from sde_diffusion.likelihood import Estimate, Method, continuous_elbo, elbo
from sde_diffusion.solvers import RK4, Heun
from sde_diffusion.testing import check_likelihood
from sde_diffusion.training import EMA, train

VP = VPSDE()
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Random(nn.Module):
    """Dropout, batch norm and a dropped label: all of what a mode governs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.drop, self.norm = nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2)
        self.double()

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        if label is not None:
            gone = torch.rand(len(x), device=x.device) < 0.5 if self.training else torch.zeros(len(x), dtype=torch.bool)
            x = x + torch.where(gone, torch.zeros_like(label), label)[:, None]
        out: Tensor = self.norm(self.drop(self.layer(x)))
        return out


@dataclass
class Output:
    sample: Tensor


def ready(net: Callable[..., Any], **options: Any) -> SDESampler:
    return SDESampler(VP, Network(net, VP, predict.edm, shape=(2,)), steps=4, **options)


WORK: dict[str, Callable[[SDESampler], Tensor]] = {
    "sample": lambda s: s.sample(3, seed=0, label=torch.ones(3, dtype=torch.float64)),
    "sample with gradients": lambda s: s.sample(3, seed=0, grad=True).detach(),
    "iterate": lambda s: [now.x for now in s.iterate(3, seed=0)][-1],
    "encode": lambda s: s.encode(X),
    "log_prob": lambda s: s.log_prob(X, method=Method(RK4(), steps=4)).value,
    "sample with its density": lambda s: (
        SDESampler(VP, s.model, solver=Heun(), steps=4).sample_with_log_prob(3, seed=0)[1].value
    ),
    "bound": lambda s: continuous_elbo(wrong(s.model), X, seed=0, estimate=Estimate(levels=4)).total,
    "bound of a chain": lambda s: elbo(wrong(s.model), X, times=[0.1, 0.5, 0.9], seed=0).total,
}


def modes(net: nn.Module) -> list[bool]:
    return [module.training for module in net.modules()]


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("hidden", [False, True])
def test_a_model_in_training_mode_gives_what_it_gives_in_evaluation_mode_and_keeps_its_mode(work, hidden):
    net = Random()
    s = ready(closure(net) if hidden else net)
    net.eval()
    wanted = WORK[work](s)
    net.train()
    net.drop.eval()  # on purpose, inside of a model that trains
    before, kept = modes(net), copy.deepcopy(net.state_dict())
    assert torch.equal(WORK[work](s), wanted)
    assert modes(net) == before == [True, True, False, True]
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), kept.values(), strict=True))


@pytest.mark.parametrize("solver", zoo.quick(zoo.SOLVERS), ids=zoo.name)
def test_every_solver_asks_a_model_in_evaluation_mode(solver):
    seen = []

    class Net(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(self.training)
            return 0.5 * x

    model = Network(Net(), VP, predict.noise, shape=(2,)).train()
    SDESampler(VP, model, solver=solver, grid=zoo.grid(VP, solver, 4)).sample(x_T=X, seed=0)
    assert seen or solver.facts.evaluations == 0
    assert not any(seen)
    assert all(modes(model))


def test_a_check_of_a_likelihood_and_a_general_sde_do_so_too():
    net = Random().eval()
    report = re.sub(r"\d+\.\d s", "", str(check_likelihood(ready(net), X, n=4)))
    assert re.sub(r"\d+\.\d s", "", str(check_likelihood(ready(net.train()), X, n=4))) == report
    general = SDESampler(zoo.DoubleWell(), lambda x, t: -net(x, t), steps=4, shape=(2,))
    x = general.sample(3, seed=0)
    assert all(modes(net))
    net.eval()
    assert torch.equal(general.sample(3, seed=0), x)


def test_between_the_steps_of_iterate_the_model_is_in_the_mode_of_the_caller():
    net = Random()
    s = ready(net)
    wanted = ready(copy.deepcopy(net).eval()).sample(3, seed=0)
    x = torch.zeros(())
    for step, now in enumerate(s.iterate(3, seed=0)):
        assert net.training
        assert net.drop.training == (step < 2)
        if step == 1:
            net.drop.eval()  # the mode that the caller chooses in between is kept as well
        x = now.x
    assert torch.equal(x, wanted)


def test_the_mode_comes_back_after_an_error_and_after_a_solve_left_half_way():
    class Failing(Random):
        def forward(self, x, t, label=None):
            if float(t[0]) < 0.5:
                raise ArithmeticError("no")
            return super().forward(x, t)

    net = Failing()
    for work in ("sample", "iterate", "encode", "log_prob", "bound"):
        with pytest.raises(ArithmeticError):
            WORK[work](ready(net))
        assert all(modes(net)), work
    next(iter(ready(net).iterate(3, seed=0)))
    assert all(modes(net))


def test_a_module_that_does_more_than_set_its_mode_is_asked_to():
    class Merging(Random):
        merged = 0

        def train(self, mode: bool = True) -> Merging:
            self.merged = 0 if mode else self.merged + 1
            return super().train(mode)

    net = Merging()
    ready(net).sample(1, seed=0)
    assert net.merged == 0
    assert net.training
    net.eval()
    ready(net).sample(1, seed=0)
    assert net.merged == 1  # it was in evaluation mode already: nobody touches it


# ------------------------------------------------------------------------------------------------- answers and owners


@pytest.mark.parametrize(
    "wrap",
    [
        Output,
        lambda f: (f,),
        lambda f: [f, None],
        lambda f: {"sample": f, "other": 1},
        lambda f: f,
    ],
    ids=["sample", "tuple", "list", "dict", "tensor"],
)
def test_an_answer_may_hold_the_tensor_as_those_of_common_libraries_do(wrap):
    class Wrapped(Random):
        def forward(self, x, t, label=None):
            return wrap(super().forward(x, t, label))

    wanted = ready(Random().eval()).sample(3, seed=0)
    assert torch.equal(ready(Wrapped()).sample(3, seed=0), wanted)
    general = SDESampler(zoo.DoubleWell(), lambda x, t: wrap(-x), steps=4, shape=(2,))
    assert general.sample(2, seed=0).shape == (2, 2)


@refuses(
    (
        lambda: answered(None),
        T,
        "the network answered NoneType, wanted a tensor of shape (4, 2): is a return missing?",
    ),
    (lambda: answered(()), T, "the network answered tuple, wanted a tensor of shape (4, 2)"),
    (lambda: answered({"x": X, "y": X}), T, "the network answered dict of 'x', 'y', wanted a tensor"),
    (lambda: answered(torch.distributions.Normal(0.0, 1.0)), T, "the network answered Normal, wanted a tensor"),
)
def test_an_answer_without_a_tensor_is_refused(call, error, text):
    check(call, error, text)


def answered(value: object) -> Tensor:
    return Network(wrong(lambda x, t: value), VP)(X, 0.5).data


class Holder:
    """An object that is no module and has one."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.method(x, t)

    def method(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.net(x, t)
        return out


def closure(net: nn.Module) -> Callable[..., Tensor]:
    return lambda x, t, **cond: net(x, t, **cond) * 1.0


def default(net: nn.Module) -> Callable[..., Tensor]:
    def call(x: Tensor, t: Tensor, net: nn.Module = net) -> Tensor:
        out: Tensor = net(x, t)
        return out

    return call


def called(net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    out: Tensor = net(x, t)
    return out


GLOBAL = Random()


def by_name(x: Tensor, t: Tensor) -> Tensor:
    out: Tensor = GLOBAL(x, t)
    return out


def deeper(x: Tensor, t: Tensor) -> Tensor:
    return by_name(x, t) * 1.0


HIDING: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "a closure": closure,
    "a default": default,
    "a method of an object": lambda net: Holder(net).method,
    "an object": Holder,
    "a function in a closure": lambda net: closure(wrong(closure(net))),
}
OWNING: dict[str, Callable[[nn.Module], Callable[..., Tensor]]] = {
    "forward": lambda net: net.forward,
    "a partial": lambda net: partial(called, net),
    "a partial of the module": lambda net: partial(net, label=None),
    "a partial of forward": lambda net: partial(net.forward, label=None),
}


@pytest.mark.parametrize("name", [*HIDING, *OWNING])
def test_the_module_behind_a_function_sets_mode_and_dtype(name):
    net = Random()
    s = ready((HIDING | OWNING)[name](net))
    x = s.sample(3, seed=0)
    assert x.dtype == torch.float64
    assert torch.equal(x, ready(copy.deepcopy(net).eval()).sample(3, seed=0))
    assert all(modes(net))


@pytest.mark.parametrize("function", [by_name, deeper])
def test_so_does_one_that_a_function_calls_by_a_global_name(function):
    x = ready(function).sample(3, seed=0)
    assert torch.equal(x, ready(copy.deepcopy(GLOBAL).eval()).sample(3, seed=0))
    assert all(modes(GLOBAL))


@pytest.mark.parametrize("name", OWNING)
def test_a_module_in_a_bound_method_or_a_partial_is_trained_averaged_and_moved(name):
    model = Network(OWNING[name](Random()), VP, predict.edm, shape=(2,))
    twin = copy.deepcopy(model)
    assert len(list(model.parameters())) == 4
    ema = EMA(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    ema.update(model)
    model.eval()
    ema.model.eval()
    assert not torch.equal(model(X, 0.5).data, twin.eval()(X, 0.5).data)
    assert torch.equal(ema.model(X, 0.5).data, model(X, 0.5).data)  # the first update takes the weights as they are
    assert model.float()(X.float(), 0.5).data.dtype == torch.float32
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.double()(X, 0.5).data, model.double()(X, 0.5).data)


@pytest.mark.parametrize("name", HIDING)
def test_a_module_that_a_function_hides_is_not_trained_by_mistake(name):
    model = Network(HIDING[name](Random()), VP, predict.edm, shape=(2,))
    assert not list(model.parameters())
    with pytest.raises(ValueError, match=r"it is a function around a Random, which .* Hand over the Random itself"):
        train(model, X, steps=1)


def test_the_names_of_saved_weights_are_those_of_the_network():
    names = [f"net.{name}" for name in Random().state_dict()]
    assert list(Network(Random(), VP).state_dict()) == names
    assert list(Network(Random().forward, VP).state_dict()) == names


# --------------------------------------------------------------------------------------- what a bare network answers


NET = Random()
SAY = (
    "Random is a network that is no Denoiser, and may answer the noise, the data or a velocity: say which, "
    "Network(net, sde, predict.noise), with predict.data, velocity, v, edm or, if it is the score indeed, predict.score"
)


@refuses(
    (lambda: SDESampler(VP, NET, shape=(2,)), T, SAY),
    (lambda: SDESampler(VP, NET.forward, shape=(2,)), T, SAY),
    (lambda: SDESampler(VP, partial(NET, label=None), shape=(2,)), T, SAY),
    (lambda: SDESampler(VP, partial(NET.forward, label=None), shape=(2,)), T, SAY),
    (lambda: SDESampler(VP, Network(NET, VP).net, shape=(2,)), T, SAY),
)
def test_a_network_that_does_not_say_what_it_answers_is_refused(call, error, text):
    check(call, error, text)


def test_a_network_that_says_so_a_function_and_a_general_sde_are_not():
    net = Random().eval()
    as_function = SDESampler(VP, closure(net), shape=(2,), steps=4).sample(2, seed=0)
    model = Network(net, VP, predict.score)
    assert torch.equal(SDESampler(VP, model, shape=(2,), steps=4).sample(2, seed=0), as_function)
    general = [SDESampler(zoo.DoubleWell(), f, steps=4, shape=(2,)) for f in (net, closure(net))]
    a, b = (s.sample(2, seed=0) for s in general)
    assert torch.equal(a, b)


def test_the_score_of_a_denoiser_is_taken_for_the_denoiser():
    model = Network(Random().eval(), VP, predict.EDM(0.3), shape=(2,))
    for given in (model.score, model.forward):
        s = SDESampler(VP, wrong(given), steps=4)
        assert s.model is model
        assert s.shape == (2,)
    check(lambda: SDESampler(VESDE(), model.score), ValueError, "the denoiser was made for VPSDE")


def test_threads_that_share_a_model_in_training_mode_all_run_it_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    model = Network(lambda x, t: net(x), VPSDE(), predict.edm, shape=(2,)).train()
    net.train()
    sampler = SDESampler(VPSDE(), model, steps=8)
    right = sampler.sample(16, seed=0)
    found: list[Tensor] = []

    def work() -> None:
        found.extend(sampler.sample(16, seed=0) for _ in range(8))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 32
    assert all(torch.equal(x, right) for x in found)
    assert net.training
    assert net[1].training
