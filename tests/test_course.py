"""Claim: a sampler lays its grid out once, and every later solve is what the first one of a new sampler is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
import zoo
from torch import Tensor, nn

from sde_diffusion import VPSDE, Network, SDESampler, predict
from sde_diffusion.problem import Problem
from sde_diffusion.solvers import DDIM, RK4, Adams, Angle, DPMSolverPP, EulerMaruyama, Heun, Solver, UniPC
from sde_diffusion.solvers.equation import ODE
from sde_diffusion.solvers.loop import Course, integrate

SOLVERS = [DDIM(), DDIM(1.0), DPMSolverPP(2), Adams(3, "angle"), UniPC(3), Heun(), Angle(RK4()), EulerMaruyama()]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = torch.tanh(self.layer(x)) * t[:, None]
        return out


def sampler(net: nn.Module, solver: Solver, steps: int = 6) -> SDESampler:
    return SDESampler(VPSDE(), Network(net, VPSDE(), predict.v, shape=(3,)), solver=solver, steps=steps)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


@dataclass(frozen=True)
class Counting(Heun):
    """Heun, which counts how often it is asked to prepare."""

    asked: list[int] = field(default_factory=list, compare=False, repr=False)

    def prepare(self, eq: ODE, intervals: Sequence[tuple[float, float]]) -> None:
        self.asked.append(len(intervals))
        super().prepare(eq, intervals)


def test_a_solver_prepares_once_for_all_solves_of_a_sampler() -> None:
    solver = Counting()
    s = sampler(net(), solver)
    s._forecast.tell(from_prior=True)  # the trial on Gaussian data is a solve of its own
    solver.asked.clear()
    s.sample(3, seed=0)
    s.sample(5, seed=0, batch_size=2)
    list(s.iterate(2, seed=0))
    assert solver.asked == [6]


@pytest.mark.parametrize("solver", SOLVERS, ids=zoo.name)
def test_a_later_solve_is_that_of_a_new_sampler_whatever_became_of_the_weights(solver: Solver) -> None:
    inside = net()
    s = sampler(inside, solver)
    s.sample(3, seed=0)
    with torch.no_grad():
        inside.layer.weight.mul_(0.5)
    assert torch.equal(s.sample(3, seed=0), sampler(inside, solver).sample(3, seed=0))
    inside.double()
    assert torch.equal(s.sample(3, seed=0), sampler(inside, solver).sample(3, seed=0))
    assert s.sample(3, seed=0).dtype == torch.float64


@pytest.mark.parametrize("solver", SOLVERS, ids=zoo.name)
def test_other_times_lay_another_course(solver: Solver) -> None:
    inside = net()
    s, other = sampler(inside, solver), sampler(inside, solver, steps=9)
    s.sample(3, seed=0)
    s.times[:] = other.times
    assert torch.equal(s.sample(3, seed=0), other.sample(3, seed=0))


@pytest.mark.parametrize("solver", [DDIM(), DPMSolverPP(2), Heun()], ids=zoo.name)
def test_a_course_stands_for_its_times(solver: Solver) -> None:
    problem = Problem(VPSDE(), Network(net(), VPSDE(), predict.v, shape=(3,)))
    x, times = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), [1.0, 0.6, 0.3, 0.1]
    with torch.no_grad():
        *_, plain = integrate(problem.equation(), solver, x, times)
        course = Course.of(problem.equation(), solver, times)
        *_, laid = integrate(problem.equation(), solver, x, course)
    assert torch.equal(laid.x, plain.x)
    assert (laid.nfe, laid.t) == (plain.nfe, plain.t)
