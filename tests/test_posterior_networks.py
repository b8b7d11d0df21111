"""Claim: rules stay sane where the Jacobian of a network is that of no covariance, as it is at much noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sde_diffusion import VPSDE, Denoiser, Network, Prediction, SDESampler, Wrapper, predict
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.guidance import DPS, JacobianFree, Mask, Matrix, Moments, Posterior, PseudoInverse, Reward, Within
from sde_diffusion.nets import MLP
from sde_diffusion.particles import ParticleSampler
from sde_diffusion.training import Recipe, train

SDE = VPSDE()
KEEP = Mask(torch.tensor([True, False]))


class Turned(Wrapper):
    """A model with the same answers, whose Jacobian is multiplied by a factor along each axis."""

    careful = True

    def __init__(self, inner, factors):
        super().__init__(inner)
        self.factors = torch.tensor(factors, dtype=torch.float64)

    def predict(self, x, at, **cond):
        still = self.inner.predict(x.detach(), at).data
        moving = self.inner.predict(x, at).data
        data = still + self.factors * (moving - moving.detach())
        return Prediction(lambda: data, lambda: (x - at.alpha * data) / at.sigma)


def shift_of(model, rule, a, t=0.7):
    x = torch.randn(5, model.shape[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0.7, -0.4], dtype=torch.float64)[: len(a)]
    (at,) = model.levels([t])
    with torch.no_grad():
        return Posterior(model, Matrix(a), 0.3, rule).look(x, at, y=y)


@pytest.mark.parametrize("factor", [-1.0, 1e4])
def test_a_variance_that_is_none_is_that_of_data_without_structure(factor):
    a = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
    model = Turned(Gaussian(SDE, torch.zeros(3, dtype=torch.float64), 1.0), [factor] * 3)
    moments, flat = (shift_of(model, rule, a) for rule in (Moments(), JacobianFree()))
    torch.testing.assert_close(moments.shift, flat.shift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moments.log_twist, flat.log_twist, rtol=1e-9, atol=1e-9)


def test_only_the_directions_that_are_wrong_are_set_right():
    a = torch.eye(3, dtype=torch.float64)[:2]
    covariance = torch.tensor([0.3, 2.0, 1.0], dtype=torch.float64)
    right = Gaussian(SDE, torch.zeros(3, dtype=torch.float64), covariance)
    wrong = Turned(right, [1.0, -1.0, 1.0])
    found, exact, flat = (
        shift_of(m, rule, a).shift for m, rule in ((wrong, Moments()), (right, Moments()), (wrong, JacobianFree()))
    )
    torch.testing.assert_close(found[:, 0], exact[:, 0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[:, 1], flat[:, 1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", [Moments(iterations=2), PseudoInverse(), DPS()], ids=repr)
def test_a_shift_against_the_measurement_is_none(rule):
    a = torch.eye(3, dtype=torch.float64)[:2]
    model = Turned(Gaussian(SDE, torch.zeros(3, dtype=torch.float64), 1.0), [-1.0] * 3)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0.7, -0.4], dtype=torch.float64)
    (at,) = model.levels([0.7])
    found = Posterior(model, Matrix(a), 0.3, rule).predict(x, at, y=y).data
    torch.testing.assert_close(found, model.predict(x, at).data, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def trained():
    stream = torch.Generator().manual_seed(0)
    x0 = torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]])[torch.arange(1500) % 3]
    x0 = x0 + 0.4 * torch.randn(1500, 2, generator=stream)
    torch.manual_seed(0)
    model = Network(MLP(2, hidden=32, layers=1), SDE, predict.edm, shape=(2,))
    return train(model, x0, steps=120, recipe=Recipe(batch_size=256), seed=0).model


def test_posteriors_of_a_barely_trained_network_stay_where_data_are(trained):
    cases: list[tuple[Denoiser, dict[str, Any]]] = [
        (Posterior(trained, KEEP, 0.1), {"y": [0.5]}),
        (Posterior(trained, KEEP, 0.1, Moments(iterations=1)), {"y": [0.5]}),
        (Within(trained, Matrix(torch.eye(2)), low=0.0), {}),
    ]
    for model, cond in cases:
        x = SDESampler(SDE, model).sample(200, seed=0, **cond)
        print(f"{model!r}: largest {float(x.abs().max()):.2f}, mean {x.mean(0).tolist()}")
        assert x.abs().max() < 6


def test_the_evidence_of_a_barely_trained_network_is_that_of_its_own_samples(trained):
    x = SDESampler(SDE, trained).sample(4000, seed=1)
    weights = torch.exp(-0.5 * ((x[:, 0].double() - 0.5) / 0.1) ** 2) / (0.1 * math.sqrt(2 * math.pi))
    error = float(weights.std() / weights.mean()) / math.sqrt(len(x))
    target = Posterior(trained, KEEP, 0.1)
    found = ParticleSampler(SDE, target, particles=128, steps=50).sample(4, seed=0, y=[0.5])
    print(f"{found}; by samples {float(weights.mean().log()):.3f} +- {error:.3f}")
    assert abs(found.log_evidence - float(weights.mean().log())) < 4 * math.hypot(error, found.standard_error) + 0.1


def test_rules_that_shoot_over_do_not_run_away_on_a_network_of_the_noise():
    x0 = torch.randn(1500, 2, generator=torch.Generator().manual_seed(0))
    net = Network(MLP(2, hidden=32, layers=1), SDE, predict.noise, shape=(2,))
    model = train(net, x0, steps=150, recipe=Recipe(batch_size=256), seed=0).model
    for rule in (PseudoInverse(), DPS()):
        x = SDESampler(SDE, Posterior(model, KEEP, 0.1, rule)).sample(200, seed=0, y=[0.5])
        print(f"{rule!r}: largest {float(x.abs().max()):.1f}")
        assert x.abs().quantile(0.99) < 10


@pytest.mark.parametrize(("rule", "over"), [(PseudoInverse(), 1.0), (DPS(), 4.0)], ids=["PseudoInverse", "DPS"])
def test_no_shift_takes_the_mean_far_beyond_what_was_measured(rule, over):
    a = torch.eye(3, dtype=torch.float64)[:1]
    model = Turned(Gaussian(SDE, torch.zeros(3, dtype=torch.float64), 1.0), [20.0] * 3)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0.7], dtype=torch.float64)
    (at,) = model.levels([0.7])
    found, before = (
        m.predict(x, at, **c).data for m, c in ((Posterior(model, Matrix(a), 0.3, rule), {"y": y}), (model, {}))
    )
    way = ((found - before)[:, 0] / (y - before[:, 0])).detach()
    torch.testing.assert_close(way, torch.full_like(way, over))  # a Jacobian 20 times too large goes further by itself


def test_a_density_through_a_covariance_that_was_set_right_is_told_to_be_approximate():
    a = torch.eye(3, dtype=torch.float64)[:2]
    model = Turned(Gaussian(SDE, torch.zeros(3, dtype=torch.float64), 1.0), [-1.0] * 3)
    x, y = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0.7, -0.4], dtype=torch.float64)
    with pytest.warns(UserWarning, match="is not differentiated: the density of this posterior, and gradients through"):
        Posterior(model, Matrix(a), 0.3)(x, 0.7, y=y)
    with torch.no_grad():
        Posterior(model, Matrix(a), 0.3)(x, 0.7, y=y)


def test_a_reward_leaves_the_samples_of_a_network_of_the_noise_near_the_data():
    x0 = torch.randn(1500, 2, generator=torch.Generator().manual_seed(0))
    net = Network(MLP(2, hidden=32, layers=1), SDE, predict.noise, shape=(2,))
    model = train(net, x0, steps=150, recipe=Recipe(batch_size=256), seed=0).model
    x = SDESampler(SDE, Reward(model, lambda x: x[:, 1])).sample(200, seed=0)
    print(f"largest {float(x.abs().max()):.1f}, mean {x.mean(0).tolist()}, exact mean (0, 1)")
    assert x.abs().max() < 60


def test_a_shift_by_a_reward_is_one_that_a_covariance_can_make():
    right = Gaussian(SDE, torch.zeros(3, dtype=torch.float64), 1.0)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (at,) = right.levels([0.7])
    exact = Reward(right, lambda x0: x0[:, 0]).predict(x, at).data.detach()
    for factor in (-1.0, 1e4):
        with torch.no_grad():
            found = Reward(Turned(right, [factor] * 3), lambda x0: x0[:, 0]).predict(x, at).data
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)  # r^2 is the variance of these data
