"""Claim: a measurement is what its page says, has its adjoint, and what does not fit is told at the door."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from refusals import wrong
from torch import nn

from sde_diffusion import VPSDE, Network, SDESampler, predict
from sde_diffusion.denoiser.analytic import Gaussian, GaussianMixture
from sde_diffusion.denoiser.conditions import Shared
from sde_diffusion.guidance import (
    DPS,
    Blur,
    Downsample,
    JacobianFree,
    Mask,
    Matrix,
    Moments,
    Nonlinear,
    Operator,
    Posterior,
    PseudoInverse,
    Within,
)

SHAPE = (2, 4, 6)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A = draw(3, 48, seed=1)
HALF = torch.arange(48).reshape(SHAPE) % 3 == 0


def given(x0):
    """A function whose adjoint is given."""
    return x0.flatten(1) @ A.mT


LINEAR = [
    Matrix(A),
    Operator(lambda x0: x0.flatten(1) @ A.mT),
    Operator(given, lambda v: (v @ A).reshape(-1, *SHAPE)),
    Mask(HALF),
    *(Blur(draw(3, 2, seed=2), padding) for padding in ("circular", "zeros", "reflect", "replicate")),
    Downsample(2),
]


def matrix(measurement):
    """The matrix of a linear measurement, column by column."""
    return measurement(torch.eye(48, dtype=torch.float64).reshape(48, *SHAPE)).flatten(1).mT


@pytest.mark.parametrize("measurement", LINEAR, ids=repr)
def test_adjoint_rows_and_diagonal_are_those_of_the_matrix(measurement):
    a, x = matrix(measurement), draw(2, *SHAPE, seed=3)
    d, shape = len(a), measurement.check(x[:1])
    assert math.prod(shape) == d
    v = draw(2, *shape, seed=4)
    torch.testing.assert_close(measurement.adjoint(v, x).flatten(1), v.flatten(1) @ a)
    torch.testing.assert_close(measurement.rows(x, d)[0], a)
    torch.testing.assert_close(measurement.push(x, x).flatten(1), x.flatten(1) @ a.mT)
    diagonal = measurement.diagonal(v[0])
    if diagonal is not None:
        torch.testing.assert_close(torch.diag(diagonal.flatten()), a @ a.mT)


def test_the_derivative_of_a_nonlinear_measurement_is_that_of_autograd():
    h, x = Nonlinear(lambda x0: torch.sin(x0.flatten(1) @ A.mT)), draw(2, *SHAPE, seed=3)
    for i in range(2):
        wanted = torch.autograd.functional.jacobian(h, x[i : i + 1]).reshape(3, 48)
        torch.testing.assert_close(h.rows(x, 3)[i], wanted)
        v = draw(2, *SHAPE, seed=5)
        torch.testing.assert_close(h.push(v, x)[i], wanted @ v[i].flatten())
        torch.testing.assert_close(h.adjoint(draw(2, 3, seed=6), x)[i].flatten(), draw(2, 3, seed=6)[i] @ wanted)


def test_blur_is_the_sum_of_its_formula_and_downsample_the_mean_of_its_blocks():
    x, k = draw(1, *SHAPE, seed=3), draw(3, 2, seed=2)
    y = Blur(k, "circular")(x)
    wanted = sum(float(k[i, j]) * torch.roll(x, (1 - i, 1 - j), (2, 3)) for i in range(3) for j in range(2))
    torch.testing.assert_close(y, wanted)
    small = Downsample(2)(x)
    assert small.shape == (1, 2, 2, 3)
    assert float(small[0, 1, 0, 2]) == pytest.approx(float(x[0, 1, :2, 4:].mean()))


@pytest.mark.parametrize("measurement", [Mask(HALF), Blur(draw(3, 2, seed=2)), Downsample(2)], ids=repr)
def test_the_posterior_of_an_image_is_that_of_its_matrix(measurement):
    prior = Gaussian(VPSDE(), draw(*SHAPE, seed=7), 0.5 + draw(*SHAPE, seed=8).square())
    x = draw(2, *SHAPE, seed=3)
    y = measurement(draw(1, *SHAPE, seed=9))[0]
    a, d = matrix(measurement), y.numel()
    for noise in (0.5, 0.5 + draw(*y.shape, seed=10).square()):
        flat = noise.flatten() if isinstance(noise, torch.Tensor) else noise
        for rule in (Moments(), Moments(d), PseudoInverse(), JacobianFree(), DPS()):
            found = Posterior(prior, measurement, noise, rule)(x, 0.4, y=y).data
            wanted = Posterior(prior, Matrix(a), flat, rule)(x, 0.4, y=y.flatten()).data
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", [predict.noise, predict.velocity], ids=repr)
def test_a_measurement_of_nothing_gives_the_samples_of_the_model_bit_for_bit(kind):
    torch.manual_seed(0)
    net = nn.Linear(2, 2)
    prior = Network(lambda x, t: net(x), VPSDE(), kind, shape=(2,))
    with pytest.warns(UserWarning, match="tells nothing of the data"):
        model = Posterior(prior, Mask(torch.zeros(2, dtype=torch.bool)), 0.1)
    assert (model.cost, model.vjps) == (1, 0)
    for steps in (5, 20):  # of the solvers that are chosen for so few, and for so many
        wanted = SDESampler(VPSDE(), prior, steps=steps).sample(3, seed=0)
        assert torch.equal(SDESampler(VPSDE(), model, steps=steps).sample(3, seed=0, y=torch.zeros(0)), wanted)
    (at,) = VPSDE().levels([0.5])
    x = torch.ones(3, 2)
    assert not bool(model.look(x, at, y=torch.zeros(0)).log_twist.any())


def test_an_image_in_float32_and_a_network_take_one_batch_of_products():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 3, padding=1))
    prior = Network(lambda x, t: net(x), VPSDE(), predict.velocity, shape=(1, 8, 8))
    mask = torch.arange(64).reshape(1, 8, 8) < 32
    model = Posterior(prior, Mask(mask), 0.2)
    y = torch.linspace(-1, 1, 32)
    x = SDESampler(VPSDE(), model, steps=10).sample(4, seed=0, y=y)
    assert x.dtype == torch.float32
    assert bool(torch.isfinite(x).all())
    assert model.vjps == 32


def within_truth(low, high, mean, std):
    """Mean of a normal between bounds, by quadrature."""
    x = torch.linspace(-12, 12, 200001, dtype=torch.float64) * std + mean
    w = torch.exp(-0.5 * ((x - mean) / std) ** 2) * (x >= low) * (x <= high)
    return float((w * x).sum() / w.sum()), float(w.sum() * (x[1] - x[0]) / std / math.sqrt(2 * math.pi))


@pytest.mark.parametrize(("low", "high"), [(0.5, None), (None, -1.0), (0.2, 0.4), (6.0, None), (-math.inf, -7.0)])
def test_one_bound_on_gaussian_data_is_exact(low, high):
    sde, a = VPSDE(), torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.7]], dtype=torch.float64)
    prior = Gaussian(sde, torch.tensor([0.2, 0.1], dtype=torch.float64), covariance)
    model, x = Within(prior, Matrix(a), low, high), draw(3, 2, seed=1)
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    (at,) = sde.levels([0.3])
    with torch.no_grad():
        look = model.look(x, at)
    m = prior.predict(x, at).data
    v = torch.linalg.inv(torch.linalg.inv(covariance) + (at.alpha / at.sigma) ** 2 * torch.eye(2, dtype=torch.float64))
    va = (v @ a.mT)[:, 0]
    for i in range(3):
        centre, std = float((m[i] @ a.mT).squeeze()), float((a[0] @ va) ** 0.5)
        wanted, mass = within_truth(*ends, centre, std)
        torch.testing.assert_close(look.shift[i], va * (wanted - centre) / std**2, rtol=1e-3, atol=1e-3)
        assert float(look.log_twist[i]) == pytest.approx(math.log(mass), abs=2e-2)


def test_samples_within_bounds_lie_there_and_the_likelihood_says_which():
    prior = Gaussian(VPSDE(), torch.zeros(2, dtype=torch.float64), 1.0)
    model = Within(prior, Matrix(torch.eye(2, dtype=torch.float64)), low=torch.tensor([0.0, 1.0]), high=2.0)
    assert repr(model) == "Within(model, Matrix(2 x 2), low=tensor of 2 numbers, high=2)"
    x = SDESampler(VPSDE(), model).sample(300, seed=0)
    slack = 0.05
    assert bool(((x > torch.tensor([0.0, 1.0]) - slack) & (x < 2 + slack)).all())
    for i, low in enumerate((0.0, 1.0)):
        wanted, _ = within_truth(low, 2.0, 0.0, 1.0)
        assert abs(float(x[:, i].mean()) - wanted) < 4 * float(x[:, i].std()) / 300**0.5 + 0.02
    points = torch.tensor([[0.5, 1.5], [0.5, 0.5], [3.0, 1.5]], dtype=torch.float64)
    assert model.log_likelihood(points).tolist() == [0.0, -math.inf, -math.inf]


def prior(shape=(2,), **given):
    net = nn.Linear(2, 2)
    return Network(lambda x, t, **cond: net(x), VPSDE(), predict.velocity, shape=shape, **given)


class Labelled(nn.Module):
    """A network with a condition called `y`."""

    def forward(self, x, t, y=None):
        return x


def no_graph(x0):
    return torch.as_tensor(x0.detach().numpy()[:, :1])


def numpy(x0):
    return torch.as_tensor(x0.numpy()[:, :1])


def late():
    """A function that answers otherwise from the second call on."""
    calls: list[int] = []

    def forward(x0):
        calls.append(1)
        return x0 * (1 + (len(calls) > 1))

    return forward


@pytest.mark.parametrize("empty", [Mask(torch.zeros(2) > 0), Matrix(torch.zeros(1, 2)), Operator(lambda x: 0 * x)])
def test_what_measures_nothing_is_warned_of(empty):
    with pytest.warns(UserWarning, match="tells nothing of the data, so that the model inside is left as it is"):
        Posterior(prior(), empty, 0.1)


EYE = Matrix(torch.eye(2))
REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda: Posterior(wrong(lambda x, t: x), EYE, 0.1), TypeError, "Posterior takes a Denoiser, got function"),
    (lambda: Posterior(prior(None), EYE, 0.1), ValueError, "needs a model that knows its event shape"),
    (
        lambda: Posterior(prior(), wrong(torch.eye(2)), 0.1),
        TypeError,
        r"measurement must be a Measurement such as Matrix\(a\)",
    ),
    (lambda: Posterior(prior(), EYE, 0.0), ValueError, "noise must be positive and finite, got 0: exact data"),
    (lambda: Posterior(prior(), EYE, wrong("much")), TypeError, "noise must be a number, or a tensor"),
    (
        lambda: Posterior(prior(), EYE, torch.ones(3)),
        ValueError,
        r"noise has shape \(3,\), wanted that of what is meas",
    ),
    (lambda: Posterior(prior(), EYE, 0.1, wrong(Moments)), TypeError, r"rule must be Moments\(\)"),
    (lambda: Posterior(prior(), EYE, 0.1, name="seed"), ValueError, "name must be that of a condition"),
    (lambda: Posterior(Posterior(prior(), EYE, 1.0), EYE, 0.1), ValueError, "Posterior inside has a condition 'y'"),
    (
        lambda: Posterior(Network(Labelled(), VPSDE(), shape=(2,)), EYE, 0.1),
        ValueError,
        "Network inside has a condition 'y' of its own: call the measurement otherwise",
    ),
    (
        lambda: Posterior(prior(), Matrix(torch.eye(3)), 0.1),
        ValueError,
        r"a has shape \(3, 3\), and an event of \(2,\)",
    ),
    (lambda: Matrix(torch.eye(2).long()), TypeError, "a must be a matrix of floats"),
    (lambda: Matrix(torch.ones(2)), ValueError, r"a must be of shape \(d, D\)"),
    (lambda: Posterior(prior(), Operator(no_graph), 0.1), TypeError, "no graph leads from what Operator.no_graph. ans"),
    (lambda: Posterior(prior(), Nonlinear(no_graph), 0.1), TypeError, "no graph leads from what Nonlinear.no_graph. a"),
    (
        lambda: Posterior(prior(), Operator(lambda x: x.double()), 0.1),
        TypeError,
        "answered torch.float64 to data in to",
    ),
    (lambda: Posterior(prior(), Operator(wrong(lambda x: None)), 0.1), TypeError, "answered NoneType, wanted a tensor"),
    (lambda: Posterior(prior(), Operator(lambda x: x[0]), 0.1), ValueError, r"answered shape \(2,\) to 3 samples"),
    (lambda: Posterior(prior(), Operator(lambda x: x - x.mean(0)), 0.1), ValueError, "mixes samples"),
    (lambda: Posterior(prior(), Operator(lambda x: x.cumsum(0)), 0.1), ValueError, "mixes samples: what it"),
    (lambda: Posterior(prior(), Operator(lambda x: x.mul_(2)), 0.1), ValueError, "writes into what it is given: let i"),
    (lambda: Posterior(prior(), Operator(late()), 0.1), ValueError, "answers differently when asked twice"),
    (lambda: Posterior(prior(), Operator(numpy), 0.1), TypeError, "may give its adjoint instead, Oper"),
    (lambda: Posterior(prior(), Nonlinear(numpy), 0.1), TypeError, "no graph leads from what Nonlinear.numpy. answers"),
    (lambda: Posterior(prior(), Nonlinear(torch.log), 0.1), ValueError, "numbers that are not finite to data that are"),
    (lambda: Posterior(prior(), Nonlinear(torch.round), 0.1), ValueError, "the derivative of Nonlinear.* is zero ever"),
    (lambda: Posterior(prior(), EYE, 1e-25), ValueError, "noise is 1e-25, whose square is 0 in torch.float32: take at"),
    (lambda: Posterior(prior(), Operator(lambda x: x + 1), 0.1), ValueError, "is not linear: give it as Nonlinear"),
    (lambda: Posterior(prior(), Operator(lambda x: x, lambda v: 2 * v), 0.1), ValueError, "the adjoint of .* is none"),
    (lambda: Posterior(prior(), Operator(lambda x: x, lambda v: v[:, :1]), 0.1), ValueError, "answered shape .3, 1."),
    (
        lambda: Posterior(prior(), Operator(lambda x: x, wrong(lambda v: None)), 0.1),
        TypeError,
        "the adjoint of .* answered",
    ),
    (lambda: Operator(wrong(3)), TypeError, "forward must be a function of the data"),
    (lambda: Operator(lambda x: x, wrong(3)), TypeError, "adjoint must be a function of what is measured"),
    (lambda: Nonlinear(wrong(3)), TypeError, "forward must be a function of the data, got 3"),
    (lambda: Mask(torch.ones(2)), TypeError, "mask must be a tensor of truth values"),
    (lambda: Posterior(prior(), Mask(HALF), 0.1), ValueError, r"mask has shape \(2, 4, 6\), wanted the event shape"),
    (lambda: Blur(torch.ones(2).long()), TypeError, "kernel must be a tensor of floats"),
    (lambda: Blur(torch.ones(())), ValueError, "kernel must have one to three dimensions"),
    (lambda: Blur(torch.ones(2), "none"), ValueError, "padding must be one of circular, zeros, reflect, replicate"),
    (lambda: Posterior(prior(), Blur(torch.ones(2)), 0.1), ValueError, "kernel has 1 dimensions, for events of a chan"),
    (lambda: Downsample(0), ValueError, "factor must be at least 1"),
    (lambda: Posterior(prior(), Downsample(2), 0.1), ValueError, "factor=2 must divide all dimensions of the event"),
    (
        lambda: Posterior(prior((300,)), Mask(torch.ones(300) > 0), 0.1),
        ValueError,
        "these are 300, more than 256: take",
    ),
    (lambda: Moments(0), ValueError, "iterations must be at least 1"),
    (lambda: PseudoInverse(0.0), ValueError, "r2 must be positive"),
    (lambda: JacobianFree(wrong("c")), TypeError, "r2 must be a number, or a function of the noise level"),
    (lambda: DPS(0.0), ValueError, "zeta must be positive"),
    (lambda: Within(prior(), EYE), ValueError, "low and high are both None"),
    (lambda: Within(prior(), EYE, 1.0, 1.0), ValueError, "wanted low < high everywhere"),
    (lambda: Within(prior(), EYE, wrong("low")), TypeError, "low must be a number, a tensor or None"),
    (lambda: Within(prior(), EYE, torch.zeros(3)), ValueError, r"low has shape \(3,\), wanted \(2,\), as is measured"),
    (lambda: Within(prior((300,)), Mask(torch.ones(300) > 0), 0.0), ValueError, "more than 256: bound fewer"),
]


@pytest.mark.parametrize(("make", "kind", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_what_does_not_fit_is_told_at_the_door(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_what_was_measured_is_asked_for_and_looked_at():
    model = Posterior(prior(), EYE, 0.1)
    sampler, one = SDESampler(VPSDE(), model, steps=2), torch.zeros(2)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({}, ValueError, r"Posterior needs what was measured: y= of shape \(2,\) for all samples"),
        ({"y": torch.zeros(3)}, ValueError, r"y has shape \(3,\): Matrix\(2 x 2\) answers \(2,\), so that wanted is"),
        ({"y": torch.zeros(3, 2)}, ValueError, r"or \(4, 2\), a row for each"),
        ({"y": Shared(torch.zeros(4, 2))}, ValueError, "which is a row for each, and is marked as the other"),
        ({"y": one / 0}, ValueError, "y holds 2 non-finite values"),
        ({"y": one > 0}, TypeError, r"y must hold real numbers, what was measured, got torch.bool: y.float\(\)"),
        ({"y": one + 1j}, TypeError, "y must hold real numbers, what was measured, got torch.complex64"),
        ({"y": "two"}, TypeError, "y must hold numbers, what was measured, got str"),
    ]
    for given, kind, message in cases:
        with pytest.raises(kind, match=message):
            sampler.sample(4, **given)
    with pytest.raises(ValueError, match="y has shape"):
        model.predict(torch.zeros(1, 2), VPSDE().levels([0.5])[0], y=torch.zeros(3))
    assert sampler.sample(4, y=[0.0, 0.0]).shape == (4, 2)


@pytest.mark.parametrize(
    ("r2", "kind", "message"),
    [
        (lambda level: -level, ValueError, "r2 as a function answered .*, wanted a variance: finite and at least 0"),
        (lambda level: math.nan, ValueError, "r2 as a function answered nan, wanted a variance"),
        (lambda level: torch.tensor(-1.0), ValueError, "r2 as a function answered tensor.* wanted a variance"),
        (
            lambda level: "a",
            TypeError,
            "r2 as a function must answer a number, a variance in units of the data",
        ),
    ],
)
def test_a_function_for_the_variance_is_asked_for_variances(r2, kind, message):
    for rule in (PseudoInverse(r2), JacobianFree(r2)):
        with pytest.raises(kind, match=message):
            Posterior(prior(), EYE, 0.1, rule)(torch.zeros(1, 2), 0.5, y=torch.zeros(2))
    found, wanted = (
        Posterior(prior(), EYE, 0.1, JacobianFree(given))(torch.ones(1, 2), 0.5, y=torch.zeros(2))
        for given in (lambda level: 2, 2.0)
    )
    assert found.data.shape == wanted.data.shape


def test_a_rule_without_a_twist_says_so_when_it_is_asked_for_one():
    (at,) = VPSDE().levels([0.5])
    model = Posterior(prior(), EYE, 0.1, Moments(1))
    with pytest.raises(TypeError, match=r"Moments\(iterations=1\) knows no determinant, and so no twist"):
        model.look(torch.zeros(1, 2), at, y=torch.zeros(2))
    flat = Gaussian(VPSDE(), torch.zeros(1100, dtype=torch.float64), 1.0)
    large = Posterior(flat, Operator(lambda x: 2 * x), 0.1, PseudoInverse())
    x, y = draw(2, 1100), draw(1100, seed=1)
    with pytest.raises(TypeError, match=r"PseudoInverse\(r2=None\) finds no determinant of Operator"):
        large.look(x, at, y=y)
    wanted = Posterior(flat, Mask(torch.ones(1100) > 0), 0.05, PseudoInverse())(x, 0.5, y=y / 2).data
    torch.testing.assert_close(large(x, 0.5, y=y).data, wanted)


def test_a_mixture_is_not_needed_to_know_its_dtype():
    mixed = GaussianMixture(VPSDE(), torch.ones(2), torch.zeros(2, 2), 1.0)
    model = Posterior(mixed, Matrix(torch.eye(2, dtype=torch.float64)), torch.ones(2, dtype=torch.float64))
    assert SDESampler(VPSDE(), model, steps=3).sample(2, seed=0, y=[0.0, 1.0]).dtype == torch.float32
