"""Claim: a flow map carries as its formula says, begins as Euler in the angle, and refuses what it was not made for.

The formula is written out below from the schedule and the raw answer of the net, apart from the code of the map.
"""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import zoo
from maps import NETS, VP, awake, flow_map, normal, teacher
from refusals import V, check, refuses, wrong
from torch import nn

from sde_diffusion import (
    EDMSDE,
    DiscreteVPSDE,
    FlowSDE,
    Network,
    Problem,
    clocks,
    integrate,
    predict,
)
from sde_diffusion.distillation import FlowMap
from sde_diffusion.guidance import Clipped
from sde_diffusion.nets import MLP
from sde_diffusion.nets.second_time import with_until
from sde_diffusion.solvers import Angle, Euler, Jump
from sde_diffusion.training import EMA

T = TypeError


PAIRS: list[Any] = [
    pytest.param(name, kind, marks=[pytest.mark.slow] * (name != "MLP" and kind != predict.v))
    for name in NETS
    for kind in zoo.KINDS
]


def last(kind, sde):
    """The last time at which an answer tells the data."""
    return sde.t_max if kind not in (predict.noise, predict.score) else 0.9 * sde.t_max


def by_formula(model, x, t, s, c):
    """$X = r_s (y - (u - s) G)$ in one call, for floats t and s (None: the data), for the kind edm of scale c."""
    (at,) = model.sde.levels([t])
    a, b, told = at.alpha, at.sigma, -max(at.lam, -20) / 4
    u, r = math.atan2(b, a * c), math.hypot(a * c, b)
    if s is None:
        v, to = 0.0, c
    else:
        (then,) = model.sde.levels([s])
        v, to = math.atan2(then.sigma, then.alpha * c), math.hypot(then.alpha * c, then.sigma)
    ones = torch.ones(len(x), dtype=x.dtype)
    f = model.net(x / r, told * ones, until=math.asinh(v / 0.05) / 2 * ones)
    return to * (x / r + (u - v) * f)  # F of EDM is minus the velocity in the angle


@pytest.mark.parametrize("sde", zoo.SDES, ids=zoo.name)
def test_a_jump_is_the_formula(sde):
    c, x = 0.7, normal(5, 2)
    model = flow_map(sde, predict.EDM(c))
    middle = 0.5 * (sde.t_min + sde.t_max)
    for t, s in ((sde.t_max, middle), (middle, sde.t_min), (sde.t_max, None)):
        torch.testing.assert_close(model.carry(x, t, s), by_formula(model, x, t, s, c), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:this flow map was never trained")  # which is what is tested
@pytest.mark.parametrize(("name", "kind"), PAIRS, ids=str)
@torch.no_grad()
def test_a_map_begins_as_euler_in_the_angle_and_is_the_identity_where_it_stays(name, kind):
    for sde in zoo.SDES:
        known = teacher(name, sde, kind)
        model = FlowMap.from_teacher(known)
        top = last(kind, sde)
        times = [top, 0.5 * (top + sde.t_min), sde.t_min]
        x = sde.levels([top])[0].sigma * normal(3, *known.shape)
        *_, jumped = integrate(Problem(sde, model).equation(), Jump(), x, times)
        *_, euler = integrate(Problem(sde, known).equation(), Angle(Euler(), known.data_std), x, times)
        assert float((jumped.x - euler.x).abs().max() / euler.x.abs().max()) < 1e-11
        awake(model.net)
        for dtype in (torch.float64, torch.float32):
            y, net = x.to(dtype), copy.deepcopy(model).to(dtype)
            each = torch.linspace(sde.t_min, top, 3, dtype=dtype)
            for t, s in (
                (times[1], times[1]),
                (each, each),
                (float(each[1]), each[1].expand(3)),
                (each * 0 + top, top),
            ):
                assert torch.equal(net.carry(y, t, s), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_row_may_have_its_own_times(dtype):
    model, x = flow_map(dtype=dtype), normal(4, 2, dtype=dtype)
    t, s = torch.tensor([1.0, 0.7, 0.4, 0.2], dtype=dtype), torch.tensor([0.5, 0.7, 0.001, 0.1], dtype=dtype)
    rows = torch.cat([model.carry(x[i : i + 1], float(t[i]), float(s[i])) for i in range(4)])
    torch.testing.assert_close(model.carry(x, t, s), rows, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    to_data = torch.cat([model.carry(x[i : i + 1], float(t[i])) for i in range(4)])
    torch.testing.assert_close(model.carry(x, t), to_data, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    torch.testing.assert_close(model.carry(x, 1.0, s)[1:2], model.carry(x[1:2], 1.0, 0.7), rtol=0, atol=2e-6)


def test_seen_through_another_process_it_carries_to_the_same_place():
    c, flow = 0.7, FlowSDE(t_max=0.99)
    model, x = flow_map(kind=predict.EDM(c)), normal(3, 2)
    view = model.on(flow)
    here, there = flow.levels([0.9, 0.3])
    t, s = VP.time_of(torch.tensor([here.lam, there.lam], dtype=torch.float64)).tolist()
    a, b = VP.levels([t, s])
    expected = by_formula(model, x * a.alpha / here.alpha, t, s, c) * there.alpha / b.alpha
    torch.testing.assert_close(view.carry(x, 0.9, 0.3), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        view.carry(x, torch.full((3,), 0.9, dtype=torch.float64)),
        by_formula(model, x * a.alpha / here.alpha, t, None, c),
        rtol=0,
        atol=1e-9,
    )
    assert view.on(EDMSDE()).inner is model
    assert view.on(VP) is model is model.on(VP)
    assert flow_map(reach="data").on(flow).reach == "data"


def test_conditions_reach_the_map_row_by_row():
    model = FlowMap.from_teacher(teacher(classes=3))
    x, label = normal(4, 3), torch.tensor([0, 1, 2, 0])
    rows = torch.cat([model.carry(x[i : i + 1], 1.0, 0.2, label=label[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(model.carry(x, 1.0, 0.2, label=label), rows, rtol=0, atol=1e-12)
    assert not torch.allclose(rows[:1], model.carry(x[:1], 1.0, 0.2, label=torch.tensor([1])))


def test_copies_pickles_and_averages_are_maps():
    model, x = flow_map(reach="data"), normal(3, 2)
    expected = model.carry(x, 1.0)
    averaged = EMA(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), averaged.model):
        assert isinstance(other, FlowMap)
        assert torch.equal(other.carry(x, 1.0), expected)
        assert other.reach == "data"


# ------------------------------------------------------------------------------------------------------ the second time


class Own(nn.Module):
    """A user's net that is told a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x, t, until=None):
        return self.layer(
            torch.cat([x, t[:, None], torch.zeros_like(x[:, :1]) if until is None else until[:, None]], 1)
        )


class Plain(nn.Module):
    """A user's net that is not, and one that knows how."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, t):
        return self.layer(x)


class Knows(Plain):
    def with_until(self):
        return Own()


@pytest.mark.parametrize("name", NETS)
def test_a_net_of_the_package_answers_as_before_until_it_is_trained(name):
    make, shape = NETS[name]
    net = awake(make(classes=2, answers=2).double())
    new, again = with_until(net), with_until(with_until(net))
    x, t, label = normal(3, *shape), normal(3), torch.tensor([0, 1, 2])
    for told in (0.0, 2.0):
        until = torch.full((3,), told, dtype=torch.float64)
        assert torch.equal(new(x, t, label=label, until=until), net(x, t, label=label))
        assert torch.equal(again(x, t, label=label, until=until), net(x, t, label=label))
    assert not new.training
    assert new.config == {**net.config, "until": True}
    assert with_until(net.train()).training


def test_a_copy_of_a_frozen_teacher_is_trained_and_of_a_half_frozen_one_by_half():
    for net in (MLP(2, hidden=8, layers=1), Own()):
        assert all(p.requires_grad for p in with_until(net.requires_grad_(False)).parameters())
    half = MLP(2, hidden=8, layers=1)
    half.enter.requires_grad_(False)
    new = with_until(half)
    assert not new.enter.weight.requires_grad
    assert new.leave.weight.requires_grad


def test_a_net_of_a_user_is_told():
    assert isinstance(with_until(Knows()), Own)
    own = Own()
    assert with_until(own) is not own


@pytest.mark.filterwarnings("ignore:this flow map was never trained")  # which is what is tested
def test_a_map_keeps_the_clock_the_kind_and_the_mode_of_its_teacher():
    chain = DiscreteVPSDE.linear(1000, 1e-4, 0.02)

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1000, 4).double()

        def forward(self, x, t, until=None):
            assert t.dtype == torch.int64
            return torch.cat([x, x], 1) + self.table(t)

    kind = predict.LearnedVariance(predict.v)
    known = Network(Table(), chain, kind, clock=clocks.Index(), shape=(2,))
    model, x = FlowMap.from_teacher(known), normal(3, 2)
    assert (model.clock, model.kind, model.training) == (clocks.Index(), kind, True)
    times = [999.0, 500.0, 0.0]
    *_, jumped = integrate(Problem(chain, model).equation(), Jump(), x, times)
    *_, euler = integrate(Problem(chain, known).equation(), Angle(Euler()), x, times)
    torch.testing.assert_close(jumped.x, euler.x, rtol=0, atol=1e-11)
    assert model(x, 10.0).data.shape == x.shape


def test_a_net_in_half_precision_is_carried_by_in_single():
    known = Network(awake(MLP(2, hidden=8, layers=1)).bfloat16(), VP, predict.edm, shape=(2,))
    model, x = FlowMap.from_teacher(known), normal(3, 2, dtype=torch.float32)
    assert model.carry(x, 1.0, 0.5).dtype == torch.float32
    torch.testing.assert_close(
        model.carry(x, 0.5, 0.4), FlowMap.from_teacher(known).float().carry(x, 0.5, 0.4), rtol=0, atol=2e-2
    )


@pytest.mark.slow
def test_of_a_compiled_net_the_net_is_told():
    compiled = with_until(torch.compile(awake(MLP(2, hidden=8, layers=1)), backend="eager"))
    assert isinstance(compiled, MLP)
    assert compiled.config["until"]


# ------------------------------------------------------------------------------------------------------ what is refused


def changed() -> Any:
    net = MLP(2, hidden=8, layers=1)
    net.extra = nn.Parameter(torch.ones(2))
    return net


X = normal(3, 2)
MODEL: Any = flow_map()
STEPS: Any = flow_map(reach=(math.inf, 1.0, 0.0))
STEPS_T = [1.0, float(VP.time_of(torch.tensor(0.0, dtype=torch.float64)))]


@refuses(
    (lambda: FlowMap.from_teacher(wrong(Plain())), T, "a flow map is made of a Network, got Plain"),
    (lambda: FlowMap.from_teacher(wrong(Clipped(MODEL))), T, "give the network inside it, and a wrapper such as"),
    (lambda: FlowMap.from_teacher(Network(Plain(), VP)), T, "Plain is not told a second time, which a flow map needs"),
    (lambda: FlowMap.from_teacher(Network(Plain(), VP)), T, "give it a method with_until() that answers a copy"),
    (lambda: with_until(lambda x, t: x), T, "function is not told a second time"),
    (lambda: with_until(changed()), T, "MLP was changed since it was built, and cannot be built again"),
    (lambda: FlowMap(MLP(2), VP), T, "MLP was built with until=False, and a flow map tells its network a second time"),
    (lambda: FlowMap(torch.nn.Linear(2, 2), VP), T, "Linear is not told a second time, which a flow map needs: it is"),
    (lambda: FlowMap(lambda x, t: x, VP), T, "function is not told a second time"),
    (lambda: MODEL(X, 0.5, until=X[:, 0]), V, "until is the second time, which a flow map tells its network by itself"),
    (lambda: MODEL.carry(X, 0.5, until=X[:, 0]), V, "leave it out"),
    (lambda: flow_map(reach="all"), V, "reach is 'any', 'data', or noise levels that fall to 0, the data"),
    (lambda: flow_map(reach=("a", 0.0)), V, "between which the map jumps, got ('a', 0.0)"),
    (lambda: flow_map(reach=(1.0, 2.0, 0.0)), V, "such as (80.0, 1.0, 0.0)"),
    (lambda: flow_map(reach=(1.0, 0.5)), V, "noise levels that fall to 0, the data"),
    (lambda: flow_map(reach=(math.nan, 0.0)), V, "got (nan, 0.0)"),
    (lambda: flow_map(reach=wrong(3.0)), V, "got 3.0"),
    (lambda: MODEL.carry(X, 0.2, 0.5), V, "a flow map carries towards the data, and s is later than t: swap them"),
    (lambda: MODEL.carry(X, torch.tensor([0.5, 0.5, 0.2]), 0.3), V, "encode with an ODE solver on the map"),
    (lambda: MODEL.on(EDMSDE()).carry(X, 0.2, 0.5), V, "s is later than t"),
    (lambda: MODEL.carry(X.long(), 0.5), T, "x has dtype torch.int64, wanted float32 or float64"),
    (lambda: MODEL.carry(X, 2.0), V, "t spans [2, 2], outside the [t_min, t_max]"),
    (lambda: MODEL.carry(X, 0.5, 0.0), V, "to carry to the data themselves, leave s out, carry(x, t)"),
    (lambda: MODEL.carry(X, 0.5, torch.tensor([0.1, 0.2])), V, "s has shape (2,), wanted a float"),
    (lambda: MODEL.carry(X, 0.5, torch.zeros(3, dtype=torch.int64)), T, "s has dtype torch.int64"),
    (lambda: MODEL.carry(X, 0.5, wrong("0.1")), T, "s must be a float or a tensor, got str"),
    (lambda: MODEL.carry(X[:, :1], 0.5), V, "x has event shape (1,)"),
    (lambda: flow_map(reach="data").carry(X, 0.5, 0.1), V, "trained to jump to the data alone, reach='data'"),
    (lambda: STEPS.carry(X, 1.0, 0.1), V, "the jumps between neighbours of the noise levels (inf, 1.0, 0.0), and not"),
    (lambda: STEPS.carry(X, torch.tensor([1.0, 0.3, 1.0]), STEPS_T[1]), V, "from 1.234 to 1: leave out"),
    (lambda: STEPS.carry(X, 1.0), V, "from 152.2 to 0: leave out grid=, steps= and nfe="),
    (lambda: MLP(2, until=True)(X.float(), X[:, 0].float()), V, "this net is told a second time, until, of shape (3,)"),
)
def test_it_refuses(call, error, text):
    check(call, error, text)


def test_jumps_between_trained_levels_are_made():
    assert STEPS.carry(X, 1.0, STEPS_T[1]).shape == STEPS.carry(X, STEPS_T[1]).shape == X.shape
    each = torch.tensor([1.0, 1.0, STEPS_T[1]], dtype=torch.float32)
    with pytest.raises(ValueError, match="from 1 to 1:"):
        STEPS.carry(X, each, STEPS_T[1])
    flow = FlowSDE()
    view = STEPS.on(FlowSDE(t_max=0.99))
    assert view.reach == STEPS.reach
    assert flow_map(flow, reach=(math.inf, 1.0, 0.0)).carry(X, 1.0, 0.5).isfinite().all()
