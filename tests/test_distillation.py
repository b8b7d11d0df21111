"""Claim: every objective of a flow map is the equation that it names: the exact map solves it, and a plain loop finds
the same target; map and teacher are asked in evaluation mode, and conditions are left out for both alike."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from exact_maps import VARIANCES, C, exact_map, teacher
from torch import Tensor

from sde_diffusion import EDMSDE, VPSDE, FlowMap, FlowSDE, Network, predict
from sde_diffusion._tensors import as_float64
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.modules import Evaluation
from sde_diffusion.distillation import Consistency, MeanFlow, Progressive, Shortcut, Trajectory, mean_flow
from sde_diffusion.distillation.draws import Batch, Place, angles, gain, pairs
from sde_diffusion.distillation.objective import MapObjective
from sde_diffusion.guidance import Clipped, Guided
from sde_diffusion.nets import MLP
from sde_diffusion.training import Recipe, Training

LEVELS = (80.0, 5.0, 1.0, 0.3, 0.0)
X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * VARIANCES.sqrt()


def seeded(n: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def awake(net: Any) -> Any:
    """The net with weights of which none is zero, the same each time."""
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=seeded(), dtype=p.dtype))
    return net


def mlp(**options: Any) -> Any:
    return awake(MLP(3, hidden=16, layers=2, **options).double())


def rough(sde: Any = None, reach: Any = "any", **options: Any) -> FlowMap:
    """An untrained map, the answers of which are no map of anything."""
    return FlowMap(mlp(until=True, **options), sde or EDMSDE(), predict.EDM(C), shape=(3,), reach=reach)


def batch_of(model: FlowMap, guide: Any, still: int = 0, done: float = 1.0) -> Batch:
    return Batch(model, X, Conditions.of(model, {}, len(X)), seeded(), still, guide, done)


def value(objective: Any, model: Any, seed: int = 7, **cond: Any) -> float:
    with torch.no_grad():
        return float(objective(model, X, generator=seeded(seed), **cond))


def target(objective: Any, batch: Batch) -> Tensor:
    with torch.no_grad(), Evaluation(batch.model):
        found: Tensor = objective.target(batch)
    return found


# --- the exact map of Gaussian data


@pytest.mark.parametrize("sde", [EDMSDE(), VPSDE(), FlowSDE()], ids=repr)
def test_the_exact_map_solves_every_equation_on_every_process(sde):
    exact = teacher(sde)
    cases = [
        (Shortcut(exact), "any", 1e-18),
        (Trajectory(exact, steps=32), "any", 1e-8),
        (Trajectory(exact, steps=32), "data", 1e-8),
        (Consistency(exact, gap=1 / 64), "data", 1e-12),
        (MeanFlow(exact), "any", 5e-4),
        (Progressive(exact_map(sde).eval()), LEVELS if isinstance(sde, EDMSDE) else (math.inf, 1.0, 0.0), 1e-18),
    ]
    for objective, reach, most in cases:
        loss = value(objective, exact_map(sde, reach=reach))
        assert loss < most, (objective, loss)


@pytest.mark.filterwarnings("ignore:an error of what this map answers")  # noise and data
@pytest.mark.parametrize("kind", [predict.noise, predict.data], ids=repr)
def test_the_exact_map_solves_them_whatever_the_network_answers(kind):
    exact = teacher(EDMSDE())
    for objective, most in ((Shortcut(exact), 1e-18), (Trajectory(exact, steps=32), 1e-8), (MeanFlow(exact), 5e-4)):
        assert value(objective, exact_map(EDMSDE(), kind)) < most


def test_an_objective_tells_a_wrong_map_from_a_right_one():
    exact, wrong = teacher(EDMSDE()), exact_map(EDMSDE())
    with torch.no_grad():
        wrong.net.weight.fill_(0.1)
    for objective in (Shortcut(exact), Trajectory(exact), MeanFlow(exact)):
        assert value(objective, wrong) > 1e-3


def test_the_steps_of_heun_and_the_difference_converge_as_they_claim():
    exact, model = teacher(EDMSDE()), exact_map(EDMSDE())
    losses = [value(Trajectory(exact, steps=n), model) for n in (4, 8, 16)]
    assert all(3.5 < math.log2(a / b) < 4.7 for a, b in pairwise(losses)), losses


# --- the same targets by plain loops over rows


def test_shortcut_is_two_jumps_of_the_map_itself():
    model = rough()
    batch = batch_of(model, None)
    state = batch.generator.get_state()  # type: ignore[union-attr]
    found = target(Shortcut(), batch)
    w = torch.rand(len(X), generator=batch.generator.set_state(state), dtype=torch.float64)  # type: ignore[union-attr]
    for i in range(0, len(X), 4):
        u, s = float(batch.start.u[i]), float(batch.end.u[i])
        r = s + (u - s) * float(w[i])
        times = [float(model.sde.time_of(torch.tensor(-math.log(C * math.tan(a))))) if a else None for a in (u, r, s)]
        x = batch.x[i : i + 1]
        with torch.no_grad(), Evaluation(model):
            there = model.carry(model.carry(x, times[0], times[1]), times[1], times[2])  # type: ignore[arg-type]
        y, to = (v / math.hypot(C, C * math.tan(a)) for v, a in ((x, u), (there, s)))
        torch.testing.assert_close((u - s) * found[i : i + 1], y - to, rtol=1e-4, atol=1e-5)  # times by bisection


def test_consistency_follows_one_draw_of_noise_by_a_gap_that_shrinks_to_what_it_stays():
    model = rough(reach="data")
    for done, gap in ((0.0, 1.0), (0.25, 8**-0.5), (0.5, 1 / 8), (1.0, 1 / 8)):
        batch = batch_of(model, None, done=done)
        found, low = target(Consistency(), batch), math.atan(model.sde.t_min / C)
        for i in range(0, len(X), 5):
            u = float(batch.start.u[i])
            r = max(low, (1 - gap) * u)
            sigma = C * math.tan(r)
            with torch.no_grad(), Evaluation(model):
                end = model.carry(X[i : i + 1] + sigma * batch.eps[i : i + 1], max(sigma, model.sde.t_min))
            y = batch.x[i : i + 1] / math.hypot(C, C * math.tan(u))
            torch.testing.assert_close(u * found[i : i + 1], y - end / C, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("guide", [None, teacher(VPSDE())], ids=["data", "teacher"])
def test_mean_flow_takes_the_derivative_along_the_flow(guide, monkeypatch):
    """By differentiation of the network as a function of state and angle, which `EDM` and its clock let be written."""
    monkeypatch.setattr(mean_flow, "STEP", 5e-5)
    model = rough(VPSDE())
    batch = batch_of(model, guide)
    found, v, u = target(MeanFlow(guide), batch), batch.velocity(batch.moved), batch.start.u

    def g(y: Tensor, u: Tensor) -> Tensor:
        f: Tensor = model.net(y, torch.log(torch.tan(u) * C) / 4, until=torch.asinh(batch.end.u / 0.05) / 2)
        return -f

    y = batch.x / model.radius(batch.start.at)
    _, slope = torch.autograd.functional.jvp(g, (y, u), (v, torch.ones_like(u)))
    wanted = v - (u - batch.end.u)[:, None] * slope
    inside = u < 1.55  # where the range of the process ends the difference is one of first order
    torch.testing.assert_close(found[inside], wanted[inside], rtol=2e-3, atol=2e-3)


def test_progressive_is_two_jumps_of_a_teacher_by_the_level_between():
    first = rough(reach=(80.0, 9.0, 1.0, 0.2, 0.0))
    model = rough(reach=(80.0, 1.0, 0.0))
    batch = batch_of(model, first)
    found = target(Progressive(first), batch)
    seen = set()
    for i in range(len(X)):
        a, b, c = (80.0, 9.0, 1.0) if float(batch.start.u[i]) > 1 else (1.0, 0.2, 0.0)
        seen.add(a)
        x = batch.x[i : i + 1]
        with torch.no_grad(), Evaluation(first):
            there = first.carry(first.carry(x, a, b), b, c or None)
        y, to = x / math.hypot(a, C), there / math.hypot(c, C)
        way = math.atan(a / C) - math.atan(c / C)
        torch.testing.assert_close(way * found[i : i + 1], y - to, rtol=1e-6, atol=1e-8)
    assert seen == {80.0, 1.0}


@pytest.mark.filterwarnings("ignore:an error of what this map answers")
def test_the_loss_is_the_mean_square_of_the_error_over_what_the_answer_is_multiplied_by():
    model, exact = rough(), teacher(EDMSDE())
    model.kind = predict.noise
    loss = value(Trajectory(exact, diagonal=0.25), model)
    batch = batch_of(model, exact, still=16)
    moved = target(Trajectory(exact), batch)
    total = 0.0
    with torch.no_grad(), Evaluation(model):
        g = model.average(batch.states, batch.all.at, batch.till.at)
        p = exact.predict(batch.states, batch.all.at)
        for i in range(len(X)):
            u = float(batch.all.u[i])
            v = -math.sin(u) / C * p.data[i] + math.cos(u) * p.noise[i]
            assert i >= 16 or float(batch.till.u[i]) == u
            total += float((g[i] - (v if i < 16 else moved[i - 16])).square().mean()) * math.cos(u)
    assert loss == pytest.approx(total / len(X), rel=1e-6)


# --- what is drawn


def test_the_pairs_fall_and_lie_in_the_range_and_as_often_at_the_ends_as_said():
    u, s = pairs(4000, 0.01, 1.5, seeded())
    assert bool((u >= s).all())
    assert float(u.min()) >= 0.01
    for share in (float((u == 1.5).double().mean()), float((s == 0).double().mean())):
        assert abs(share - 0.15) < 4 * math.sqrt(0.15 * 0.85 / 4000)


def test_a_place_is_that_of_its_angle():
    for sde in (EDMSDE(), VPSDE(), FlowSDE()):
        model = rough(sde)
        u = torch.linspace(0.05, 1.5, 9, dtype=torch.float64)
        place = Place.of(model, u, X[:9])
        torch.testing.assert_close(as_float64(model.angle(place.at))[:, 0], u, rtol=1e-8, atol=0)
        assert float(gain(model, place.at).max()) == pytest.approx(1.0)  # of EDM


@pytest.mark.parametrize("sde", [FlowSDE(), VPSDE(), EDMSDE()], ids=repr)
def test_the_pairs_that_start_at_the_prior_are_told_what_a_sampler_tells_there(sde):
    """On `FlowSDE` the clock leaps from 1.7 to 5 where alpha is 0, which times that are drawn never meet."""
    model = rough(sde)
    u = torch.full((2,), angles(sde, model.data_std)[1], dtype=torch.float64)
    place, (last,) = Place.of(model, u, X[:2]), sde.levels([sde.t_max])
    torch.testing.assert_close(place.at.t[:, 0], torch.full((2,), sde.t_max, dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(
        as_float64(model.clock(place.at))[:, 0],
        as_float64(model.clock(last)).expand(2),
        rtol=1e-7,
        atol=0,
    )


# --- conditions, modes, teachers


class Noted(MLP):
    """A network that notes how it was called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(3, hidden=8, layers=1, **options)
        self.calls: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor, t: Tensor, label: Any = None, context: Any = None, until: Any = None) -> Tensor:
        self.calls.append((self.training, label is not None))
        return super().forward(x, t, label, context, until)


def noted(until: bool, **options: Any) -> Any:
    net = awake(Noted(until=until, classes=3, **options).double())
    made: Any = FlowMap if until else Network
    return made(net, EDMSDE(), predict.EDM(C), shape=(3,))


LABEL = torch.arange(64) % 3


def test_conditions_are_left_out_for_map_and_teacher_alike_and_never_by_the_network():
    model, guide = noted(True).train(), noted(False).eval()
    left = 0
    for k in range(40):
        model.net.calls.clear(), guide.net.calls.clear()
        Shortcut(guide)(model, X, generator=seeded(k), label=LABEL)
        assert len(set(model.net.calls + guide.net.calls)) == 1
        training, told = model.net.calls[0]
        assert not training
        left += not told
    assert model.training
    assert model.net.training
    assert abs(left / 40 - 0.1) < 4 * math.sqrt(0.09 / 40)


def test_conditions_stay_where_the_network_never_learnt_to_do_without():
    model, guide = noted(True, label_drop=0.0), noted(False, label_drop=0.0).eval()
    for k in range(20):
        Shortcut(guide)(model, X, generator=seeded(k), label=LABEL)
    assert all(told for _, told in model.net.calls)
    model = noted(True)
    for k in range(20):
        Shortcut(drop=0.0)(model, X, generator=seeded(k), label=LABEL)
    assert all(told for _, told in model.net.calls)


def test_a_guided_teacher_is_what_is_inside_where_the_condition_is_left_out():
    model, inner = noted(True), noted(False).eval()
    guide = Clipped(Guided(inner, 2.0), -3.0, 3.0).eval()
    for k in range(8):
        inner.net.calls.clear()
        Shortcut(guide, drop=0.5)(model, X, generator=seeded(k), label=LABEL)
        (_, told), *_ = inner.net.calls
        guided = value(Shortcut(guide, drop=0.5), model, k, label=LABEL)
        alone = value(Shortcut(Clipped(inner, -3.0, 3.0).eval(), drop=0.5), model, k, label=LABEL)
        assert (alone == guided) == (not told)


def test_a_loss_in_training_mode_is_that_in_evaluation_mode_and_repeats():
    model = rough(classes=3)
    both = [value(Shortcut(), model.train(mode), label=LABEL) for mode in (True, False, True)]
    assert both[0] == both[1] == both[2]


def test_gradients_reach_every_parameter_and_none_of_the_teacher():
    guide = Network(mlp(), EDMSDE(), predict.EDM(C), shape=(3,)).eval()
    before = copy.deepcopy(guide.state_dict())
    for objective, reach in (
        (Shortcut(guide), "any"),
        (Trajectory(guide), "any"),
        (Consistency(guide), "data"),
        (MeanFlow(guide), "any"),
        (Progressive(FlowMap.from_teacher(guide)), LEVELS),
    ):
        model = rough(reach=reach)
        objective(model, X, generator=seeded()).backward()
        assert all(p.grad is not None for p in model.parameters())
        assert all(p.grad is None for p in guide.parameters())
    assert all(torch.equal(guide.state_dict()[name], value) for name, value in before.items())


def test_an_objective_is_written_with_what_it_was_given():
    guide = Network(mlp(), EDMSDE(), predict.EDM(C), shape=(3,)).eval()
    assert repr(Trajectory(guide, steps=3)) == "Trajectory(teacher=Network, steps=3)"
    assert repr(Consistency()) == "Consistency()"

    @dataclass(frozen=True)
    class Plain(MapObjective):
        def target(self, batch: Batch) -> Tensor:
            return torch.zeros_like(batch.x)

    done = Training(guide, [], 0, 0.0, Plain(guide), Recipe())
    assert "objective=Plain(teacher=Network, diagonal=0.25, drop=None), recipe" in repr(done)
