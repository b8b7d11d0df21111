"""Claim: one call makes a flow map of a model and trains it; what does not fit is refused in a sentence before it does;
pairs of noise and sample straighten a flow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from maps import VP, awake, flow_map, normal
from processes import run_processes
from refusals import T, V, check, refuses, wrong

from sde_diffusion import EDMSDE, VPSDE, FlowMap, FlowSDE, Network, SDESampler, predict
from sde_diffusion._tensors import as_float64
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import PerSample, Shared
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.distillation import (
    Consistency,
    MeanFlow,
    Progressive,
    Reflow,
    Shortcut,
    Trajectory,
    distill,
    recipe,
    reflow_pairs,
)
from sde_diffusion.distillation.draws import Batch
from sde_diffusion.guidance import Clipped, Guided
from sde_diffusion.nets import MLP
from sde_diffusion.solvers import RK4, Angle, EulerMaruyama, Heun
from sde_diffusion.training import PowerDecay, Recipe, Validation, train

X = normal(300, 2, dtype=torch.float32)
SMALL = Recipe(32)


def model(sde: Any = VP, kind: Any = predict.edm, **options: Any) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = MLP(2, hidden=16, layers=1, **options)
    return Network(awake(net), sde, kind, shape=(2,)).eval()


def shown(fast: FlowMap) -> torch.Tensor:
    return fast.jump(X, *fast.sde.levels([1.0, 0.3]))


# --- one call


@pytest.mark.parametrize(
    ("loss", "reach", "made"),
    [
        ("shortcut", None, "any"),
        ("trajectory", None, "any"),
        ("consistency", None, "data"),
        ("progressive", (math.inf, 1.0, 0.0), (math.inf, 1.0, 0.0)),
        (MeanFlow(), "data", "data"),
    ],
    ids=str,
)
def test_a_map_is_trained_by_each_objective_under_its_name_and_the_model_stays(loss, reach, made):
    first = model()
    before = [p.clone() for p in first.parameters()]
    found: Any = distill(first, X, steps=2, loss=loss, reach=reach, recipe=SMALL, seed=0)
    assert type(found.model) is FlowMap
    assert found.model.reach == made
    assert len(found.losses) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, first.parameters(), strict=True))
    assert not found.model.training


def test_the_map_of_a_wrapped_model_follows_the_wrapped_flow_and_takes_its_conditions():
    label = torch.arange(300) % 3
    first = model(classes=3)
    guided = Guided(first, 2.0)
    guided.training = True  # the flag of a wrapper alone, as a fresh one may have it
    found: Any = distill(guided, X, steps=2, recipe=SMALL, seed=0, label=label)
    assert found.objective.teacher is guided
    by_hand = train(FlowMap.from_teacher(first), X, steps=2, loss=Shortcut(guided), recipe=SMALL, seed=0, label=label)
    assert found.losses == by_hand.losses
    assert found.losses != distill(first, X, steps=2, recipe=SMALL, seed=0, label=label).losses


def test_the_recipe_is_that_of_a_map_that_starts_from_its_teacher():
    assert recipe() == Recipe(256, 1e-3)
    assert recipe(64, lr=2e-3, averages=PowerDecay(0.05)) == Recipe(64, 2e-3, averages=PowerDecay(0.05))
    assert distill(model(), X, steps=1, seed=0).recipe == recipe()


def test_what_the_network_draws_by_itself_does_not_enter_a_run():
    """The dropping of labels and of entries of a context by the network in training mode."""
    first = model(classes=3)
    runs = []
    for drop in (0.1, 0.6):
        again = model(classes=3, label_drop=drop)
        again.load_state_dict(first.state_dict())
        runs.append(distill(again, X, steps=2, recipe=SMALL, seed=0, label=torch.arange(300) % 3).losses)
    assert runs[0] == runs[1]


class Own(torch.nn.Module):
    """A network that does not say which of its conditions have rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x: Any, t: Any, context: Any, table: Any = None, until: Any = None) -> Any:
        return self.layer(torch.cat([x, context], 1)) + (0 if table is None else table.sum())


class Declared(Own):
    """One that does."""

    per_sample = ("context",)


@pytest.mark.parametrize("loss", ["shortcut", "trajectory", "meanflow"])
def test_conditions_with_rows_stay_with_their_samples_where_the_network_declares_none(loss):
    def losses(net: type[Own], context: Any, **given: Any) -> list[float]:
        torch.manual_seed(0)
        teacher = Network(net(), EDMSDE(), predict.edm, shape=(2,)).eval()
        return distill(teacher, X, steps=2, recipe=SMALL, seed=0, loss=loss, context=context, **given).losses

    c = normal(300, 2, seed=1, dtype=torch.float32)
    with torch.random.fork_rng():
        told = losses(Declared, c)
        assert losses(Own, c) == losses(Own, PerSample(c)) == told
        assert losses(Own, c, val=Validation(X[:40] + 1e-3, context=c[:40])) == told
        assert losses(Own, c, table=Shared(torch.zeros(32, 3))) == told
        assert losses(Own, torch.zeros_like(c)) != told


def test_two_calls_of_one_seed_give_the_same_weights_and_leave_the_state_of_torch_alone():
    first = model(VPSDE(t_max=0.5))
    for loss, reach in (("shortcut", None), ("progressive", (math.inf, 1.0, 0.0))):
        runs = []
        for _ in range(2):
            before = torch.get_rng_state()
            runs.append(distill(first, X, steps=2, loss=loss, reach=reach, recipe=SMALL, seed=3).model.state_dict())
            assert torch.equal(torch.get_rng_state(), before)
            torch.rand(1)
        assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_a_teacher_whose_errors_are_amplified_teaches_a_map_of_another_kind():
    for kind, made in (
        (predict.noise, predict.EDM(1.0)),
        (predict.score, predict.EDM(1.0)),
        (predict.velocity, predict.EDM(1.0)),
        (predict.v, predict.v),
        (predict.data, predict.EDM(1.0)),
        (predict.EDM(0.7), predict.EDM(0.7)),
    ):
        first = model(kind=kind)
        found: Any = distill(first, X, steps=1, recipe=SMALL, seed=0).model
        assert found.kind == made
        assert found.clock is first.clock
    assert distill(model(FlowSDE(), predict.velocity), X, steps=1, recipe=SMALL).model.kind == predict.velocity
    assert distill(model(kind=predict.v), X, steps=1, kind=predict.edm, recipe=SMALL).model.kind == predict.edm


def test_a_map_of_such_a_kind_is_warned_of_once():
    fast = FlowMap.from_teacher(model(kind=predict.noise))
    with pytest.warns(UserWarning, match=r"Noise\(\), counts up to 15\d times in .*kind=predict.EDM\(data_std=1.0\)\)"):
        Shortcut()(fast, X)
    Shortcut()(fast, X)
    Shortcut()(FlowMap.from_teacher(model(kind=predict.noise), kind=predict.edm), X)


def test_a_copy_of_another_kind_has_the_weights_and_the_clock_of_its_teacher():
    first = model(kind=predict.noise)
    fast = FlowMap.from_teacher(first, kind=predict.EDM(2.0))
    assert (fast.kind, fast.data_std, fast.clock) == (predict.EDM(2.0), 2.0, first.clock)
    for name, value in first.net.state_dict().items():
        assert torch.equal(fast.net.state_dict()[name], value)
    learned = predict.LearnedVariance(predict.noise)
    check(
        lambda: FlowMap.from_teacher(model(kind=learned, answers=2), kind=predict.edm),
        V,
        "wants 1 numbers of the net for each of the state, and the net of the teacher",
    )
    assert distill(model(kind=learned, answers=2), X, steps=1, recipe=SMALL).model.kind == predict.LearnedVariance(
        predict.EDM(1.0)
    )


def test_a_wrapper_that_was_just_made_around_a_network_in_evaluation_mode_teaches():
    first = model()
    for made in (Clipped(first, -3.0, 3.0), Network(first.net, VP, predict.edm)):
        made.training = True
        assert math.isfinite(Shortcut(made)(flow_map(VP, dtype=torch.float32), X).item())
    first.net.layers[0].train()
    with pytest.raises(ValueError, match="the teacher is in training mode"):
        Shortcut(Clipped(first, -3.0, 3.0))(flow_map(VP, dtype=torch.float32), X)


# --- what is refused


class Deaf(torch.nn.Module):
    """A network that hears one time alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return wrong(self.layer(x))


class AsksTheTeacher(Shortcut):
    """An objective that does not look whether it has one."""

    def target(self, batch: Batch) -> torch.Tensor:
        return batch.slope(batch.x, batch.start)


MIXTURE = GaussianMixture(VP, torch.ones(1), torch.zeros(1, 2), 1.0)
FAST = flow_map(VP)
X64 = X.double()


@refuses(
    (
        lambda: distill(model(), X, steps=1, loss="shortkut"),
        V,
        "loss is one of 'shortcut', 'trajectory', ",
    ),
    (
        lambda: distill(model(), X, steps=1, loss=wrong(Shortcut)),
        V,
        "an objective such as Shortcut(model), got <class",
    ),
    (
        lambda: distill(MIXTURE, X, steps=1),
        T,
        "the Network inside its teacher, and GaussianMixture",
    ),
    (
        lambda: distill(model().train(), X, steps=1),
        V,
        "the teacher is in training mode, with its dropout on",
    ),
    (
        lambda: distill(model().on(EDMSDE()), X, steps=1),
        V,
        "see the teacher through the process of the map, teacher.on(map.sde)",
    ),
    (lambda: distill(Network(Deaf(), VP, shape=(2,)).eval(), X, steps=1), T, "give it a method with_until()"),
    (lambda: distill(model(), X, steps=1, loss="progressive"), V, "Progressive trains maps of falling noise levels"),
    (lambda: distill(model(), X, steps=1, reach="data"), V, "Shortcut trains maps of reach='any', and this one has"),
    (
        lambda: distill(model(), X, steps=1, loss="consistency", reach="any"),
        V,
        "trains maps of reach='data'",
    ),
    (lambda: Shortcut(wrong(Deaf())), T, "the teacher must be a Denoiser, got Deaf: Network(net, sde, ...)"),
    (lambda: Shortcut(diagonal=1.0), V, "diagonal is a share of the rows, at least 0 and below 1, got 1.0"),
    (lambda: Shortcut(drop=1.0), V, "drop is a probability, at least 0 and below 1, got 1.0"),
    (Trajectory, T, "Trajectory follows the flow of a teacher: Trajectory(model), or take Shortcut()"),
    (lambda: Trajectory(MIXTURE, steps=0), V, "steps"),
    (lambda: Consistency(gap=0.0), V, "gap is a share of the way to the data, above 0 and at most 1, got 0.0"),
    (lambda: Progressive(MIXTURE), T, "the teacher of Progressive is a flow map, got GaussianMixture"),
    (Progressive, T, "the teacher of Progressive is a flow map, got NoneType"),
    (lambda: Shortcut()(wrong(model()), X), T, "Shortcut trains a FlowMap, got Network: FlowMap.from_teacher(model)"),
    (lambda: Shortcut(MIXTURE.on(EDMSDE()))(FAST, X64), V, "the teacher is a model of EDMSDE("),
    (
        lambda: Shortcut(model(kind=predict.EDM(0.5)))(FAST, X64),
        V,
        "takes the data to have standard deviation 0.5, the map 1: they must agree, in predict.EDM(data_std)",
    ),
    (lambda: Shortcut()(FAST, X64[:1], generator=wrong(3)), T, "generator must be a torch.Generator, got int"),
    (
        lambda: Shortcut(diagonal=0.9)(FAST, X64[:1]),
        V,
        "0.9 of 1 rows leaves none to be carried: a larger batch",
    ),
    (lambda: Shortcut()(FAST, X64 * math.nan), V, "x0"),
    (lambda: AsksTheTeacher()(FAST, X64), T, "slope asks the teacher, and the objective was made without one: give it"),
    (lambda: Reflow()(model(), X), T, "Reflow trains on pairs, and no noise came"),
    (
        lambda: Reflow()(wrong(Deaf()), X, noise=X),
        T,
        "Reflow trains a Denoiser, such as Network(net",
    ),
    (lambda: Reflow()(model(), X, noise=X[:3]), V, "noise"),
    (lambda: reflow_pairs(SDESampler(VP, model(), solver=EulerMaruyama(), steps=5), 4), V, "adds noise on the way"),
    (lambda: reflow_pairs(SDESampler(VP, Network(Deaf(), VP), nfe=5), 4), V, "the event shape is not known"),
)
def test_what_does_not_fit_is_refused_in_a_sentence(call, error, text):
    check(call, error, text)


def test_a_loss_without_a_generator_draws_from_the_state_of_torch():
    with torch.random.fork_rng():
        found = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            found.append(Shortcut()(FAST, X64).item())
    assert found[0] == found[1] != found[2]


# --- reflow


def test_pairs_are_the_noise_and_what_the_sampler_makes_of_it():
    sampler = SDESampler(VP, model(), solver=Heun(), steps=6)
    pairs = reflow_pairs(sampler, 20, seed=3, batch_size=7)
    (at,) = VP.levels([VP.t_max])
    start = at.alpha * pairs["x"] + at.sigma * pairs["noise"]
    torch.testing.assert_close(sampler.sample(20, x_T=start), pairs["x"], rtol=1e-4, atol=1e-5)
    assert abs(float(reflow_pairs(sampler, 500, seed=1)["noise"].std()) - 1) < 0.2


def test_reflow_regresses_on_the_noise_of_the_pair():
    first = model(FlowSDE(), predict.velocity)
    noise = normal(300, 2, seed=4, dtype=torch.float32)
    found = Reflow()(first, X, noise=noise, generator=torch.Generator().manual_seed(5))
    t = first.objective().times_for(first, 300, torch.Generator().manual_seed(5)).float()[:, None]
    t[:45] = 1.0
    time = as_float64(first.clock(first.sde.level(t[:, 0], X)))[:, 0].float()
    error = first.net((1 - t) * X + t * noise, time) - (noise - X)
    torch.testing.assert_close(found, error.square().mean(), rtol=1e-4, atol=1e-6)
    assert len(train(first, {"x": X, "noise": noise}, steps=2, loss=Reflow(), recipe=SMALL).losses) == 2


# --- several processes


@pytest.mark.slow
def test_two_processes_share_the_gradients_of_every_objective(tmp_path):
    def run(rank: int) -> Any:
        found = []
        for loss, reach in ((Shortcut(model()), "any"), (MeanFlow(), "any"), (Consistency(), "data")):
            fast = FlowMap.from_teacher(model(), reach=reach)
            train(fast, X, steps=3, loss=loss, recipe=SMALL, seed=0)
            found.append(torch.cat([p.detach().flatten() for p in fast.parameters()]))
        return found

    train(FlowMap.from_teacher(model()), X, steps=1, loss=Shortcut(), recipe=SMALL)  # imports what forks then share
    a, b = run_processes(2, run, tmp_path / "two")
    assert not isinstance(a, str), a
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one, other)


# --- what is learnt


def eight(sde: Any = None, dtype: torch.dtype = torch.float32) -> GaussianMixture:
    angle = torch.arange(8, dtype=dtype) * (math.pi / 4)
    return GaussianMixture(sde or EDMSDE(), torch.ones(8), torch.stack([angle.cos(), angle.sin()], 1), 0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this flow map was never trained")  # with which another is compared
def test_a_short_run_learns_jumps_that_lead_where_the_flow_does():
    """Of 300 steps; figures of 2,000 are in `benchmarks/flow_maps.py`."""
    exact = eight()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fast = FlowMap(MLP(2, hidden=64, layers=3, until=True), exact.sde, predict.EDM(exact.data_std), shape=(2,))
    found: Any = train(
        fast, exact.sample(20000, seed=0), steps=300, loss=Shortcut(exact), recipe=Recipe(256, 4e-3), seed=0
    )
    z = exact.sde.prior(normal(1000, 2, seed=9, dtype=torch.float32))
    truth = SDESampler(exact.sde, exact, solver=Angle(RK4(), exact.data_std), steps=50).sample(1000, x_T=z)
    fresh = FlowMap.from_teacher(Network(MLP(2), exact.sde, predict.EDM(exact.data_std), shape=(2,)))
    errors = []
    for k, one in ((1, found.model), (2, found.model), (1, fresh)):
        x = SDESampler(exact.sde, one, nfe=k).sample(1000, x_T=z)
        errors.append(float((x - truth).square().mean().sqrt()) / exact.data_std)
    print(errors)
    assert max(errors[:2]) < 0.2 < 0.3 < errors[2]


class OfClasses(Denoiser):
    """The exact model of two Gaussians: of one by its label, of both without."""

    shape, data_std, per_sample = (2,), 1.0, ("label",)

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.sde = EDMSDE()
        one, mean = torch.ones(1, dtype=dtype), torch.tensor([[0.98, 0.0]], dtype=dtype)
        self.parts = [GaussianMixture(self.sde, one, m, 0.3) for m in (-mean, mean)]
        self.both = GaussianMixture(self.sde, torch.ones(2), torch.cat([-mean, mean]), 0.3)

    def predict(self, x: torch.Tensor, at: Any, **cond: Any) -> Prediction:
        if (label := cond.get("label")) is None:
            return self.both.predict(x, at)
        a, b = (part.predict(x, at) for part in self.parts)
        first = label[:, None] == 0
        return Prediction(lambda: torch.where(first, a.data, b.data), lambda: torch.where(first, a.noise, b.noise))


@pytest.mark.slow
def test_a_conditional_map_jumps_without_a_label_as_the_unconditional_flow_does():
    exact = OfClasses()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fast = FlowMap(MLP(2, hidden=64, layers=3, until=True, classes=2), exact.sde, predict.edm, shape=(2,))
    label = torch.arange(4000) % 2
    x0 = torch.stack([1.96 * label - 0.98, torch.zeros(4000)], 1) + 0.3**0.5 * normal(4000, 2, dtype=torch.float32)
    run: Any = train(fast, x0, steps=250, loss=Shortcut(exact, drop=0.3), recipe=Recipe(256, 4e-3), seed=0, label=label)
    z = exact.sde.prior(normal(1000, 2, seed=9, dtype=torch.float32))
    conditions: list[dict[str, Any]] = [{}, {"label": label[:1000]}]
    for cond in conditions:
        truth = SDESampler(exact.sde, exact, solver=Angle(RK4()), steps=30).sample(1000, x_T=z, **cond)
        x = SDESampler(exact.sde, run.model, nfe=1).sample(1000, x_T=z, **cond)
        error = float((x - truth).square().mean().sqrt())
        print(error)
        assert error < 0.2  # the mean of the jumps under each label is .42 off
