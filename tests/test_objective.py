"""Claim: what `train` does when nothing is said works for every process and answer, or is refused with the fix."""

from __future__ import annotations

import math
import re
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    Clipped,
    CosineSDE,
    Denoiser,
    DiscreteVPSDE,
    FlowSDE,
    Network,
    Prediction,
    SDESampler,
    SubVPSDE,
    Wrapper,
    clocks,
    predict,
)
from sde_diffusion.cli.plan.design import objective_of, process_of
from sde_diffusion.data import moons
from sde_diffusion.denoiser.objectives.matching import DenoisingScoreMatching
from sde_diffusion.denoiser.objectives.time_samplers import LogNormalSigma, uniform_log_snr, uniform_time
from sde_diffusion.denoiser.objectives.weights import EDMWeight, data_weight, noise_weight
from sde_diffusion.metrics import sliced_wasserstein
from sde_diffusion.nets import MLP
from sde_diffusion.sde import Level, processes
from sde_diffusion.training import Recipe, train
from sde_diffusion.training.losses import denoising_score_matching

SMALL = [VPSDE(), SubVPSDE(), CosineSDE(), DiscreteVPSDE.linear()]  # states of order one, some data left at the end
LARGE = [EDMSDE(), EDMSDE(0.005, 80.0), VESDE(), BrownianSDE()]
ENDING = [FlowSDE(), CosineSDE(t_max=1.0)]
KINDS = [predict.edm, predict.v, predict.velocity, predict.data, predict.noise, predict.score]
NOISY = [predict.noise, predict.score]
ALLOWED = [
    *product(SMALL, KINDS),
    *product(ENDING, KINDS[:4]),
    *product(LARGE, KINDS[:1]),
]
REFUSED = [*product(LARGE, KINDS[1:]), *product(ENDING, NOISY), *product([FlowSDE(t_max=0.999)], NOISY)]

REAL = moons(8192, seed=0)
MEAN, STD = REAL.mean(0), REAL.std(0)
HELD_OUT = (moons(4000, seed=1) - MEAN) / STD


def network(sde, kind, clock=None, hidden=64) -> Network:
    torch.manual_seed(0)
    return Network(MLP(2, hidden=hidden, layers=3, features=0), sde, kind, clock=clock, shape=(2,))


def distance(model: Network, steps: int, scale: float = 1.0) -> float:
    """Sliced Wasserstein distance of its samples to held-out data of standard deviation one; of a fresh net: 1."""
    done = train(model, scale * (REAL - MEAN) / STD, steps=steps, recipe=Recipe(256), seed=0)
    x = SDESampler(model.sde, done.model).sample(4000, seed=0) / scale
    found, floor = sliced_wasserstein(x, HELD_OUT), sliced_wasserstein((REAL[:4000] - MEAN) / STD, HELD_OUT)
    print(f"{done!r}: sliced Wasserstein {found:.3f}, floor {floor:.3f}, std {x.std(0).tolist()}")
    return found


UNSTEADY = pytest.mark.xfail(
    reason=".16, .06 and .09 with seeds 0 to 2: EDMWeight drowns the noisy levels, MinSNR does not"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sde", "kind"),
    [pytest.param(*p, marks=UNSTEADY if p == (SubVPSDE(), predict.data) else ()) for p in ALLOWED],
    ids=repr,
)
def test_every_pair_that_is_allowed_learns_the_moons_in_four_times_the_budget_of_the_readme(sde, kind):
    """The network of the README, and four times its 400 steps of 256."""
    torch.manual_seed(0)
    assert distance(Network(MLP(2, hidden=64, layers=2), sde, kind, shape=(2,)), 1600) <= 0.15


@pytest.mark.parametrize(
    ("sde", "kind"),
    [
        (VPSDE(), predict.noise),
        (SubVPSDE(), predict.score),
        (DiscreteVPSDE.linear(), predict.noise),
        (CosineSDE(), predict.data),
        (FlowSDE(), predict.velocity),
        (VESDE(), predict.edm),
    ],
    ids=repr,
)
@pytest.mark.slow
def test_a_pair_that_is_allowed_learns_the_moons_roughly_in_150_steps(sde, kind):
    assert distance(network(sde, kind, hidden=32), 150) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sde", "kind", "clock"),
    [
        *product([VPSDE()], [predict.edm, predict.noise], [clocks.time, clocks.log_snr, clocks.Scaled(4.0)]),
        *product([FlowSDE()], [predict.edm, predict.velocity], [clocks.time, clocks.sigma]),
        *product([DiscreteVPSDE.linear()], [predict.noise], [clocks.log_snr, clocks.Scaled(1 / 999)]),
    ],
    ids=lambda part: getattr(part, "__name__", repr(part)),
)
def test_clocks_of_order_one_learn_the_moons_in_600_steps(sde, kind, clock):
    assert distance(network(sde, kind, clock), 600) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("c", [0.1, 0.5, 20.0])
def test_a_model_told_the_scale_of_its_data_learns_them_as_those_of_scale_one(c):
    """x -> c x, S -> c S: the same training in other units."""
    at_one = distance(network(EDMSDE(0.005, 80.0), predict.edm), 300)
    at_c = distance(network(EDMSDE(0.005 * c, 80.0 * c), predict.EDM(c)), 300, scale=c)
    assert abs(at_c - at_one) < 0.05


@pytest.mark.parametrize(("sde", "kind"), ALLOWED, ids=repr)
def test_the_rule(sde, kind):
    expected = {
        predict.edm: DenoisingScoreMatching(LogNormalSigma()),
        predict.v: DenoisingScoreMatching(LogNormalSigma()),
        predict.velocity: DenoisingScoreMatching(uniform_time),
        predict.data: DenoisingScoreMatching(LogNormalSigma(), EDMWeight(1.0)),
        predict.noise: DenoisingScoreMatching(uniform_time),
        predict.score: DenoisingScoreMatching(uniform_time, noise_weight),
    }
    assert network(sde, kind).objective() == expected[kind]


def test_the_rule_follows_the_scale_of_the_data():
    found = network(EDMSDE(), predict.EDM(0.5)).objective().times
    assert isinstance(found, LogNormalSigma)
    assert found.mean == pytest.approx(-1.2 + math.log(0.5))
    other = network(EDMSDE(), predict.EDM(0.5)).on(VPSDE())
    assert other.objective() == DenoisingScoreMatching(found, EDMWeight(0.5))


class Bare(Denoiser):
    """A denoiser of which nothing but its predictions is known."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.sde, self.shape = inner, inner.sde, inner.shape

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        return self.inner.predict(x, at, **cond)


def test_a_denoiser_that_is_no_network_learns_by_the_error_of_its_data():
    model = Bare(network(VPSDE(), predict.edm))
    done = train(model, (REAL - MEAN) / STD, steps=150, recipe=Recipe(256), seed=0)
    x = SDESampler(VPSDE(), done.model, shape=(2,)).sample(2000, seed=0)
    assert sliced_wasserstein(x, HELD_OUT) < 0.3


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_a_wrapper_is_trained_as_the_model_inside(kind):
    model = network(VPSDE(), kind)
    wrapped = Wrapper(Clipped(model, -0.1, 0.1))
    assert wrapped.objective() == model.objective()
    first, second = (m.loss(REAL[:64], generator=torch.Generator().manual_seed(3)) for m in (model, wrapped))
    assert first == second


class Shifted(Wrapper):
    """Sees the data moved."""

    by: Tensor

    def predict(self, x, at, **cond):
        inner = self.inner.predict(x - at.alpha * self.by, at, **cond)
        return Prediction(lambda: inner.data + self.by, lambda: inner.noise)


def test_a_wrapper_with_an_answer_of_its_own_is_trained_through_it():
    by = torch.tensor([3.0, -2.0])
    model, data = Shifted(network(VPSDE(), predict.edm)), (REAL - MEAN) / STD
    model.by = by  # the network learns what is left: the data as they are where it sees them
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for rows in torch.randint(len(data), (300, 256), generator=generator):
        optimiser.zero_grad()
        model.loss(data[rows] + by, generator=generator).backward()
        optimiser.step()
    x = SDESampler(VPSDE(), model, shape=(2,)).sample(2000, seed=0)
    assert sliced_wasserstein(x - by, HELD_OUT) < 0.3


class Tighter(Clipped):
    """A rule for sampling made of another."""

    def predict(self, x, at, **cond):
        return super().predict(x, at, **cond)


def test_who_says_trained_inside_says_it_for_its_subclasses():
    model = network(VPSDE(), predict.noise)
    given = {"generator": torch.Generator().manual_seed(3)}
    plain = model.loss(REAL[:64], generator=torch.Generator().manual_seed(3))
    assert Tighter(model, -0.1, 0.1).loss(REAL[:64], **given) == plain
    assert not model.on(EDMSDE()).trained_inside  # the state is another, and so is what the answer is held to


def test_the_parameters_of_a_wrapper_are_trained_too():
    model = Shifted(network(VPSDE(), predict.edm))
    model.by = nn.Parameter(torch.zeros(2))
    train(model, HELD_OUT, steps=5, seed=0)
    assert bool((model.by != 0).all())


@pytest.mark.parametrize(("sde", "kind"), REFUSED, ids=repr)
def test_a_pair_that_does_not_train_well_is_refused_and_trains_with_times_of_ones_own(sde, kind):
    model = network(sde, kind, hidden=8)
    with pytest.raises(
        ValueError, match=r"predict\.(edm|velocity).*, losses\.DenoisingScoreMatching\(times\), if you know better$"
    ):
        train(model, HELD_OUT, steps=1)
    own = DenoisingScoreMatching(LogNormalSigma(-1.0, 0.5))
    assert train(model, HELD_OUT, steps=1, loss=own).objective is own


def test_the_refusals_say_why():
    with pytest.raises(
        ValueError, match=r"answers noise would see states of size 50 as they are, on VESDE\(.*VPSDE\(\)"
    ):
        network(VESDE(), predict.noise).objective()
    with pytest.raises(
        ValueError, match=r"answers score hardly tells of the data at t_max = 0.999 .* counts 999 times. Ta"
    ):
        network(FlowSDE(t_max=0.999), predict.score).objective()
    with pytest.raises(
        ValueError, match=r"a noise prediction tells nothing of the data where alpha = 0 \(t = 1\): start"
    ):
        network(FlowSDE(), predict.noise).objective()


def test_a_narrow_process_of_any_family_is_allowed():
    for sde in (EDMSDE(0.01, 2.0), VESDE(0.01, 2.0), BrownianSDE(4.0)):
        assert network(sde, predict.noise).objective().times is uniform_time


def test_what_is_given_is_kept():
    model = network(VPSDE(), predict.score)
    assert model.objective(times=uniform_log_snr) == DenoisingScoreMatching(uniform_log_snr, noise_weight)
    assert model.objective(weight=data_weight) == DenoisingScoreMatching(uniform_time, data_weight)
    assert network(VESDE(), predict.noise).objective(times=uniform_log_snr).times is uniform_log_snr  # not refused


@pytest.mark.parametrize("sde_kind", [(VPSDE(), predict.score), (EDMSDE(), predict.edm), (VPSDE(), predict.data)])
def test_the_loss_of_a_model_is_denoising_score_matching_as_it_suits_it(sde_kind):
    model = network(*sde_kind)
    how, x0 = model.objective(), REAL[:64]
    draws = [torch.Generator().manual_seed(3) for _ in range(2)]
    expected = denoising_score_matching(model, x0, times=how.times, weight=how.weight, generator=draws[0])
    assert model.loss(x0, generator=draws[1]) == expected


def test_a_loop_of_ones_own_over_the_loss_of_the_model_learns_the_moons():
    model, generator = network(VPSDE(), predict.edm), torch.Generator().manual_seed(0)
    x0, opt = (REAL - MEAN) / STD, torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(200):
        rows = torch.randint(len(x0), (256,), generator=generator)
        model.loss(x0[rows], generator=generator).backward()
        opt.step()
        opt.zero_grad()
    x = SDESampler(VPSDE(), model).sample(2000, seed=0)
    assert sliced_wasserstein(x, HELD_OUT) < 0.3


@pytest.mark.parametrize("kind", predict.NAMES)
@pytest.mark.parametrize("sde", processes.named())
def test_the_command_line_makes_models_that_are_told_the_log_noise_level_and_has_no_rule_of_its_own(sde, kind):
    model = Network(MLP(2, hidden=8), process_of(sde, {}), predict.NAMES[kind], shape=(2,))
    assert (model.sde, model.kind, model.clock) == (processes.named()[sde], predict.NAMES[kind], clocks.edm)
    try:
        suits = model.objective()
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error)[:60])):
            objective_of(model, None, None)
    else:
        assert objective_of(model, None, None) == suits


def test_an_objective_shows_names():
    assert repr(DenoisingScoreMatching()) == "DenoisingScoreMatching(times=uniform_time, weight=None)"
    assert repr(DenoisingScoreMatching(LogNormalSigma(), EDMWeight(), low_discrepancy=False)) == (
        "DenoisingScoreMatching(times=LogNormalSigma(mean=-1.2, std=1.2), weight=EDMWeight(data_std=1.0), "
        "low_discrepancy=False)"
    )
