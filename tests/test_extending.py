"""Claim: the interface is open. An SDE, a solver and a model wrapper of a user's own work with everything shipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

from sde_diffusion import (
    Denoiser,
    GaussianSDE,
    Level,
    Matched,
    Network,
    Prediction,
    Problem,
    SDESampler,
    Wrapper,
    losses,
    predict,
)
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.solvers import (
    RK4,
    Angle,
    DPMSolverPP,
    EmbeddedRungeKutta,
    EulerMaruyama,
    Facts,
    Heun,
    RungeKutta,
    Solver,
)
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.testing import orders


class Ornstein(GaussianSDE):
    """`dx = -x dt + sqrt(2) dw`, in ten lines: two functions and a range."""

    t_min, t_max = 1e-3, 5.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-2 * t))


class Logistic(zoo.DoubleWell):
    """`dx = tanh(x) dt + dw` from a point mass at 0: neither affine nor Gaussian, with a density known (Benes)."""

    t_min, t_max = 0.05, 1.0

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x)

    def prior(self, z: Tensor) -> Tensor:
        # At t = 1 the law is an even mixture of N(1, 1) and N(-1, 1): the sign is that of a second use of the draw.
        return z + torch.sign(torch.frac(z.abs() * 1e4) - 0.5)


def logistic_score(x: Tensor, t: Tensor) -> Tensor:
    """`p_t = cosh(x) exp(-x^2 / 2t - t/2) / sqrt(2 pi t)`."""
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    return torch.tanh(x) - x / t


@dataclass(frozen=True)
class Ralston(RungeKutta):
    """A tableau is a solver."""

    nodes = (0.0, 2 / 3)
    matrix = ((2 / 3,),)
    weights = (0.25, 0.75)
    facts = Facts(order=2, evaluations=2, in_time=True)


@dataclass(frozen=True)
class ExponentialEuler(Solver):
    """A solver on the denoiser, from the base class."""

    facts = Facts(needs=GaussianReverseSDE, order=1)

    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: Any) -> tuple[Tensor, Any]:
        prediction = eq.denoise(x, t)
        return s.alpha * prediction.data + s.sigma * prediction.noise, None


class Shifted(Wrapper):
    """A wrapper of a model: the data moved by a constant."""

    def __init__(self, inner: Denoiser, by: float) -> None:
        super().__init__(inner)
        self.by = by

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        inner = self.inner.predict(x - at.alpha * self.by, at, **cond)
        return Prediction(lambda: inner.data + self.by, lambda: inner.noise)


def test_a_gaussian_sde_of_ten_lines_samples_with_every_solver() -> None:
    # Its prior, drift and inverse follow from alpha and sigma; the 4-standard-error bounds are those of 2000 samples.
    sde = Ornstein()
    model = Gaussian(sde, torch.tensor([0.5], dtype=torch.float64), 0.25)
    for solver in zoo.SOLVERS:
        steps = 4 if solver.facts.evaluations is None else 60
        x = SDESampler(sde, model, solver=solver, grid=zoo.grid(sde, solver, steps)).sample(2, seed=0)
        assert bool(torch.isfinite(x).all())
    x = SDESampler(sde, model).sample(2000, seed=0)
    assert abs(float(x.mean()) - 0.5) < 4 * 0.5 / 2000**0.5 + 0.005
    assert abs(float(x.std()) - 0.5) < 4 * 0.5 / 4000**0.5 + 0.005


def test_an_sde_of_ones_own_is_told_by_its_class_and_attributes() -> None:
    class Scaled(Ornstein):
        def __init__(self, speed: Tensor) -> None:
            self.speed = speed

    assert Ornstein() == Ornstein()
    assert hash(Ornstein()) == hash(Ornstein())
    assert repr(Ornstein()) == "Ornstein()"
    assert Scaled(torch.ones(2)) == Scaled(torch.ones(2))
    assert Scaled(torch.ones(2)) != Scaled(torch.zeros(2))
    assert Scaled(torch.ones(2)) != Ornstein()


def test_a_gaussian_sde_of_ten_lines_encodes_and_weighs() -> None:
    sde = Ornstein()
    model = Gaussian(sde, torch.tensor([0.5, 0.1], dtype=torch.float64), 0.25)
    s = SDESampler(Problem(sde, model, prior=Matched(0.3, 0.25)), solver=Angle(RK4()), steps=60)
    x0 = model.sample(6, seed=1)
    # The final jump from sigma = 0.045 draws each point 0.8 % towards the mean.
    torch.testing.assert_close(s.sample(x_T=s.encode(x0)), x0, rtol=0, atol=0.01)
    torch.testing.assert_close(s.log_prob(x0).value, model.data_log_prob(x0), rtol=0, atol=0.02)


def test_a_gaussian_sde_of_ten_lines_trains() -> None:
    # Data N(0.5, 0.3^2): after training, the mean and standard deviation of samples are those of the data. With 2000
    # the standard errors are 0.007 and 0.005; the rest of the bound is for 600 steps of training.
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    model = Network(lambda x, t: net(torch.cat([x, t[:, None]], dim=1)), Ornstein(), predict.EDM(0.5), shape=(1,))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(600):
        x0 = 0.5 + 0.3 * torch.randn(256, 1, generator=generator)
        losses.denoising_score_matching(model, x0, generator=generator).backward()
        optimizer.step()
        optimizer.zero_grad()
    x = SDESampler(Problem(Ornstein(), model, prior=Matched(0.5, 0.09))).sample(2000, seed=0)
    assert abs(float(x.mean()) - 0.5) < 0.06
    assert abs(float(x.std()) - 0.3) < 0.06


@pytest.mark.parametrize("solver", [EulerMaruyama(), Heun(), RK4()], ids=zoo.name)
def test_a_general_sde_samples_by_any_solver_that_asks_for_no_more(solver: Solver) -> None:
    # At t_min = 0.05 the law is an even mixture of N(-0.05, 0.05) and N(0.05, 0.05): mean 0 and variance 0.05 + 0.05^2.
    # Standard errors of 4000 samples: 0.0036 and 0.0012.
    sde = Logistic()
    s = SDESampler(sde, logistic_score, solver=solver, steps=200, shape=(1,))
    x = s.sample(4000, seed=0)
    assert abs(float(x.mean())) < 4 * 0.0036
    assert abs(float(x.var()) - 0.0525) < 4 * 0.0012 + 0.002


def test_a_general_sde_encodes() -> None:
    s = SDESampler(Logistic(), logistic_score, solver=RK4(), steps=100, shape=(1,))
    x0 = torch.tensor([[0.3], [-0.2]], dtype=torch.float64)
    torch.testing.assert_close(s.sample(x_T=s.encode(x0)), x0, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_general_sde_may_have_a_diffusion_per_coordinate() -> None:
    # dx = dw with g = (0.5, 2): x_t = N(0, g^2 t + v). The exact score at every t, and the variances come back.
    g, v = torch.tensor([0.5, 2.0]), 0.1

    class Anisotropic(zoo.DoubleWell):
        t_min, t_max = 1e-3, 1.0

        def drift(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.zeros_like(x)

        def diffusion(self, t: Tensor) -> Tensor:
            return g

        def prior(self, z: Tensor) -> Tensor:
            return z * (g * g + v).sqrt()

    def score(x: Tensor, t: Tensor) -> Tensor:
        return -x / (g * g * t[:, None] + v)

    for solver in (EulerMaruyama(), Heun()):
        x = SDESampler(Anisotropic(), score, solver=solver, steps=200, shape=(2,)).sample(4000, seed=0)
        # Standard error 0.1 sqrt(2 / 4000) = 0.0022.
        assert bool(((x.var(0) - v - 1e-3 * g * g).abs() < 4 * 0.0022 + 0.004).all()), solver


def test_the_default_sampler_of_a_general_sde_is_euler_maruyama() -> None:
    s = SDESampler(Logistic(), logistic_score, shape=(1,))
    assert s.solver == EulerMaruyama()
    assert s.steps == 1000


@pytest.mark.parametrize("solver", [Ralston(), ExponentialEuler()], ids=zoo.name)
def test_a_solver_of_ones_own_converges_and_encodes(solver: Solver) -> None:
    sde = Ornstein()
    model = Gaussian(sde, torch.tensor([0.5], dtype=torch.float64), 0.25)
    x = torch.randn(8, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, s = zoo.between(sde, 1.25, 0.15, 1).tolist()
    exact, steps, errors = model.flow(x, t, s), [16, 32, 64, 128], []
    for n in steps:
        sampler = SDESampler(sde, model, solver=solver, grid=zoo.between(sde, 1.25, 0.15, n), denoise=False)
        errors.append(float((sampler.sample(x_T=x) - exact).abs().max()))
    assert solver.facts.order - 0.15 < orders.slope(steps, errors) < solver.facts.order + 0.5
    sampler = SDESampler(sde, model, solver=solver, steps=200)
    x0 = model.sample(3, seed=1)
    torch.testing.assert_close(sampler.sample(x_T=sampler.encode(x0)), x0, rtol=0, atol=0.05)


def test_a_wrapper_of_a_model_is_a_model() -> None:
    sde = Ornstein()
    model = Gaussian(sde, torch.tensor([0.5], dtype=torch.float64), 0.25)
    for solver in (DPMSolverPP(2), Angle(Heun()), EulerMaruyama()):
        s = SDESampler(Problem(sde, Shifted(model, 1.0), prior=Matched(1.5, 0.25)), solver=solver, steps=300)
        assert abs(float(s.sample(500, seed=0).mean()) - 1.5) < 4 * 0.5 / 500**0.5 + 0.01


def test_a_level_made_for_one_network_does_not_mislead_another() -> None:
    # A wrapper that forwards one model's levels to two models with other parametrisations and clocks.
    sde = Ornstein()
    first = Network(lambda x, t: x * t[:, None], sde, predict.noise)
    second = Network(lambda x, t: x + t[:, None], sde, predict.EDM(0.5))
    (own,), (foreign,) = second.levels([0.7]), first.levels([0.7])
    x = torch.ones(2, 3)
    assert torch.equal(second.predict(x, own).data, second.predict(x, foreign).data)


@pytest.mark.parametrize("base", [RungeKutta, EmbeddedRungeKutta], ids=lambda base: base.__name__)
@pytest.mark.parametrize(
    ("nodes", "matrix", "weights", "message"),
    [
        ((0.0, 0.5, 1.0), ((0.5,),), (0.0, 1.0, 0.0), r"3 nodes, 3 weights and rows of length \[1\]: wanted"),
        ((0.0, 0.5), ((0.5,),), (1.0,), "2 nodes, 1 weights"),
        ((0.5, 1.0), ((1.0,),), (0.5, 0.5), "nodes that start at 0"),
        ((0.0, 0.5), ((0.4,),), (0.0, 1.0), "a row of the matrix of Wrong sums to 0.4, and its node is 0.5"),
        ((0.0, 0.5), ((0.5,),), (0.0, 0.9), "the weights of Wrong sum to 0.9, wanted 1"),
    ],
)
def test_a_tableau_that_cannot_be_meant_is_refused_where_it_is_written(base, nodes, matrix, weights, message):
    with pytest.raises(ValueError, match=message):
        type("Wrong", (base,), {"nodes": nodes, "matrix": matrix, "weights": weights})
