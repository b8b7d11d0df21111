"""Claim: a flow map that was not trained to jump, or is guided twice, or was made of a copy that is none, is told of at
the door, and not by its samples."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from maps import VP, awake, flow_map, normal
from refusals import T, V, check, refuses, wrong
from torch import nn

from sde_diffusion import (
    EDMSDE,
    FlowMap,
    FlowSDE,
    Network,
    SDESampler,
    UntrainedWarning,
    predict,
)
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.distillation import Progressive, Shortcut, distill, recipe
from sde_diffusion.distillation.objective import guidance_of
from sde_diffusion.guidance import AutoGuided, Clipped, Guided
from sde_diffusion.nets import MLP
from sde_diffusion.solvers import Heun
from sde_diffusion.testing import check_flow_map
from sde_diffusion.training import Recipe, load_checkpoint, save_checkpoint, train

X = normal(300, 2, dtype=torch.float32)
LABEL = torch.arange(300) % 3
SMALL = Recipe(32)


def model(sde: Any = VP, kind: Any = predict.edm, **options: Any) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = MLP(2, hidden=16, layers=1, **options)
    return Network(awake(net), sde, kind, shape=(2,)).eval()


# --- a map that was not trained to jump


class Foreign(nn.Module):
    """A network of one's own, whose second time comes by a layer that is zero at first, or drawn."""

    def __init__(self, *, until: bool = False, drawn: bool = False) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layer = nn.Linear(3, 2)
        self.second = nn.Linear(1, 2, bias=False) if until else None
        if self.second is not None and not drawn:
            nn.init.zeros_(self.second.weight)

    def forward(self, x: torch.Tensor, t: torch.Tensor, until: torch.Tensor | None = None) -> torch.Tensor:
        out = self.layer(torch.cat([x, t[:, None]], 1))
        return out if self.second is None or until is None else out + self.second(until[:, None])


def foreign(net: nn.Module, **options: Any) -> Network:
    return Network(net, VP, predict.edm, shape=(2,), **options).eval()


@pytest.mark.parametrize("own", [True, False])
def test_jumps_of_an_untrained_map_are_told_of_and_those_of_a_trained_one_are_not(own):
    with torch.random.fork_rng():
        fast = FlowMap.from_teacher(model() if own else foreign(Foreign(until=True)))
    elsewhere = EDMSDE(0.01, 50.0)
    for sde, nfe in ((VP, 1), (VP, 3), (elsewhere, 2)):
        with pytest.warns(UntrainedWarning, match="never trained to jump: the second time counts nothing"):
            SDESampler(sde, fast.on(sde), nfe=nfe).sample(4, seed=0)
    SDESampler(VP, fast, solver=Heun(), steps=3).sample(4, seed=0)  # as a denoiser it is trained
    train(fast, X, steps=2, loss=Shortcut(), recipe=SMALL)
    for sde in (VP, elsewhere):
        SDESampler(sde, fast.on(sde), nfe=1).sample(4, seed=0)


@refuses(
    (lambda: train(FlowMap.from_teacher(model()), X, steps=1), V, "leaves the jumps as they are. Where that is wanted"),
    (lambda: train(flow_map(), X, steps=1), V, "a FlowMap learns to jump by an objective of its own, loss=Shortcut("),
)
def test_a_map_is_not_trained_as_a_denoiser_without_a_word(call, error, text):
    check(call, error, text)


def test_a_map_is_trained_as_a_denoiser_where_that_is_asked_for():
    fast = FlowMap.from_teacher(model())
    assert len(train(fast, X, steps=2, loss=fast.objective(), recipe=SMALL).losses) == 2


# --- guidance that is in the map


def guided_map() -> Any:
    guided = Guided(model(classes=3, label_drop=0.1), 2.0).eval()
    return distill(guided, X, steps=1, recipe=SMALL, seed=0, label=LABEL).model


def test_a_map_knows_what_guided_its_teacher_and_keeps_it(tmp_path):
    fast = guided_map()
    assert fast.guidance == "Guided(w=2.0)"
    save_checkpoint(tmp_path, fast)
    again: Any = load_checkpoint(tmp_path).model
    assert again.guidance == copy.deepcopy(fast).guidance == fast.guidance
    assert FlowMap.from_teacher(fast).guidance == fast.guidance
    phase = train(
        FlowMap.from_teacher(model(classes=3), reach=(math.inf, 0.0)),
        X,
        steps=1,
        loss=Progressive(fast),
        recipe=SMALL,
        label=LABEL,
    )
    assert wrong(phase.model).guidance == fast.guidance
    assert wrong(distill(model(), X, steps=1, recipe=SMALL).model).guidance == ""
    other = model(classes=3)
    assert guidance_of(Clipped(AutoGuided(other, other, 1.5))) == "AutoGuided(w=1.5)"
    assert guidance_of(Guided(model(classes=3, label_drop=0.1), 1.0)) == ""
    Guided(fast, 1.0)  # off


@refuses(
    (lambda fast: Guided(fast, 2.0), V, "made of a guided model, Guided(w=2.0), and draws guided samples by itself"),
    (lambda fast: Guided(Clipped(fast), 2.0), V, "leave the guidance out, or distil the model without it"),
    (lambda fast: AutoGuided(fast, model(), 2.0), V, "made of a guided model"),
    (lambda fast: distill(Guided(fast.on(EDMSDE()), 2.0), X, steps=1), V, "made of a guided model"),
)
def test_a_guided_map_is_not_guided_again(call, error, text):
    check(lambda: call(guided_map()), error, text)


@refuses(
    (
        lambda: Guided(PLAIN, 2.0),
        V,
        "final jump 2. Jump asks a flow map where it leads, which the Guided",
    ),
    (lambda: Clipped(PLAIN), V, "final jump 1. Jump asks a flow map where it leads, which the Clipped"),
)
def test_a_budget_too_small_for_a_wrapped_map_says_why(call, error, text):
    check(lambda: SDESampler(VP, call(), nfe=1), error, text)


PLAIN: Any = FlowMap.from_teacher(model(classes=3, label_drop=0.1))


# --- copies that are none


class Twin(Foreign):
    """A network whose `with_until` answers what it is told to."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, t)

    def with_until(self) -> Any:
        return self.make(self)


def fresh(net: Any) -> Any:
    made = Foreign(until=True)
    nn.init.normal_(made.layer.weight)
    return made


def sharing(net: Any) -> Any:
    made = Foreign(until=True)
    made.layer = net.layer
    return made


def failing(net: Any) -> Any:
    raise RuntimeError("no such table")


@refuses(
    (fresh, V, "made of Twin to be told a second time is no copy of it: off by"),
    (lambda net: Foreign(until=True, drawn=True), V, "Twin to be told a second time is changed by the second time"),
    (failing, T, "Twin.with_until() raised RuntimeError: no such table. It is the method of the network that makes a"),
    (lambda net: None, T, "Twin.with_until() answered NoneType, wanted a copy that takes until="),
)
def test_a_copy_that_is_none_is_refused(call, error, text):
    with torch.random.fork_rng():
        check(lambda: FlowMap.from_teacher(foreign(Twin(call))), error, text)


def test_a_network_that_adds_the_second_time_at_once_is_refused_and_one_that_cannot_be_asked_is_let_pass():
    with torch.random.fork_rng():
        net = Foreign(until=True, drawn=True)
    check(lambda: FlowMap.from_teacher(foreign(net)), V, "made of Foreign to be told a second time is changed by the")
    assert FlowMap.from_teacher(Network(net, VP, predict.edm)).shape is None

    class Conditional(Foreign):
        def forward(self, x: Any, t: Any, until: Any = None, *, label: Any) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x, t, until)

    with torch.random.fork_rng():
        fast = FlowMap.from_teacher(foreign(Conditional(until=True)))
    assert not fast.untrained()  # not known to be
    check(lambda: fast.carry(X[:2], 1.0), T, "label")


def test_a_copy_that_shares_weights_is_copied_whole():
    with torch.random.fork_rng():
        teacher = foreign(Twin(sharing))
    before = teacher.net.layer.weight.clone()
    distill(teacher, X, steps=2, recipe=SMALL)
    assert torch.equal(teacher.net.layer.weight, before)


# --- states, levels, teachers


def test_levels_that_begin_low_are_told_of_when_the_map_is_made():
    with pytest.warns(UserWarning, match=r"jump from noise level 20, where 0.05 of the data is left, .* begin at that"):
        flow_map(EDMSDE(), reach=(20.0, 1.0, 0.0))
    flow_map(VP, reach=(80.0, 1.0, 0.0))


@refuses(
    (
        lambda: flow_map(EDMSDE(), reach=(80.0, 1e-4, 0.0)),
        V,
        "from 0.002 to 80, and of the levels in reach 0.0001 is below",
    ),
    (
        lambda: flow_map(EDMSDE(), reach=(math.inf, 80.0, 0.0)),
        V,
        "several are beyond them, which are one to it: keep one",
    ),
    (
        lambda: distill(model(), X, steps=1, loss="progressive", reach=(80.0, 1e-4, 0.0)),
        V,
        "is below them: leave it out",
    ),
    (lambda: flow_map().carry(X.double() * math.nan, 1.0, 0.1), V, "x holds 600 non-finite values of 600"),
    (lambda: flow_map().carry(X.double(), 1.0, 0), V, "s = 0 is outside the [t_min, t_max] = [0.001, 1] of the SDE"),
    (
        lambda: distill(model(FlowSDE(), predict.score), X, steps=1),
        V,
        "where its process ends, and there the teacher says nothing: a score prediction",
    ),
    (
        lambda: Shortcut()(flow_map(FlowSDE(), predict.noise), X.double()),
        V,
        "where its process ends, and there the map says nothing: a noise prediction",
    ),
    (lambda: distill(model(), X, steps=1, loss=Shortcut(drop=0.5)), V, "drop=0.5 leaves conditions out, and none came"),
    (
        lambda: check_flow_map(flow_map(), KNOWN, n=32, foo=1),
        T,
        "and there is no option foo",
    ),
    (
        lambda: check_flow_map(flow_map(EDMSDE()), model(FlowSDE(t_max=0.5)).double(), n=32),
        V,
        "asked at noise level sigma/alpha = 80, but the model was made for FlowSDE(t_min=0.001, t_max=0.5)",
    ),
)
def test_it_refuses(call, error, text):
    check(call, error, text)


KNOWN: Any = Gaussian(VP, torch.zeros(2), torch.ones(2))


def test_a_run_that_skipped_most_of_its_steps_says_that_the_model_is_not_to_be_used():
    with pytest.warns(
        UserWarning, match="of 20 steps were skipped: gradient not finite. So the model is hardly trained"
    ):
        distill(model(), X, steps=20, recipe=recipe(32, lr=1e3), seed=0)
