"""Claim: told the same time twice, a flow map is a denoiser, on which every solver, grid, likelihood and wrapper works.

The oracle is a plain `Network` around a net that works out the second time from the first.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import zoo
from maps import VP, awake, flow_map, normal, teacher
from torch import nn

from sde_diffusion import FlowSDE, Network, Problem, SDESampler, integrate, predict
from sde_diffusion.distillation import FlowMap
from sde_diffusion.guidance import Clipped, Guided
from sde_diffusion.likelihood import Method
from sde_diffusion.noise import Streams
from sde_diffusion.solvers import Heun

C = 0.7


class Diagonal(nn.Module):
    """A net of one time made of one of two: from log(sigma/alpha) / 4, which it is told, follows the angle."""

    clock, per_sample = "edm", ("label",)

    def __init__(self, net: nn.Module, c: float = C) -> None:
        super().__init__()
        self.net, self.c = net, c

    def forward(self, x, t, **cond):
        u = torch.atan(torch.exp(4 * t) / self.c)
        return self.net(x, t, until=torch.asinh(u / 0.05) / 2, **cond)


def pair(sde=VP):
    model = flow_map(sde, predict.EDM(C))
    return model, Network(Diagonal(model.net), sde, predict.EDM(C), shape=(2,))


@pytest.mark.parametrize("solver", zoo.mostly_slow(zoo.SOLVERS, 6), ids=zoo.name)
@torch.no_grad()
def test_every_solver_runs_on_the_map_as_on_a_network(solver):
    ends = []
    for model in pair():
        eq, times = Problem(VP, model).equation(), zoo.grid(VP, solver, 4)
        if solver.facts.grid is not None:
            times = solver.facts.grid
        source = Streams(range(3), (2,), torch.float64, "cpu")
        x = VP.levels([float(times[0])])[0].sigma * source.prior()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of adaptive ones that are stopped
            *_, end = integrate(eq, solver, x, times, source, finish=True)
        ends.append(end)
    torch.testing.assert_close(ends[0].x, ends[1].x, rtol=1e-7, atol=1e-7)
    assert ends[0].nfe == ends[1].nfe


def test_default_solvers_grids_and_likelihoods_are_those_of_a_network():
    model, plain = pair()
    known = SDESampler(VP, plain)
    fast = SDESampler(VP, model, solver=known.solver)
    assert fast.times == known.times or known.grid is not fast.grid
    x = normal(4, 2)
    a, b = SDESampler(VP, model).log_prob(x), known.log_prob(x)
    torch.testing.assert_close(a.value, b.value, rtol=0, atol=1e-6)
    torch.testing.assert_close(a.total_error, b.total_error, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(
        SDESampler(VP, model, solver=Heun(), steps=10).encode(x),
        SDESampler(VP, plain, solver=Heun(), steps=10).encode(x),
        rtol=0,
        atol=1e-9,
    )


@pytest.mark.parametrize("kind", zoo.KINDS, ids=zoo.name)
def test_before_training_the_likelihood_is_that_of_the_teacher(kind):
    known = teacher(kind=kind)
    x, method = normal(3, 3), Method(Heun(), steps=8, solver_error=False)
    expected = SDESampler(VP, known).log_prob(x, method=method).value
    assert torch.equal(SDESampler(VP, FlowMap.from_teacher(known)).log_prob(x, method=method).value, expected)


@torch.no_grad()
def test_wrappers_work_on_the_map_with_the_solvers_of_odes():
    model = FlowMap.from_teacher(teacher(classes=3))
    awake(model.net)
    plain = Network(Diagonal(model.net, 1.0), VP, predict.edm, shape=(3,))
    x, label = normal(4, 3), torch.tensor([0, 1, 2, 0])
    for wrap in (lambda m: Guided(m, 2.0, null={"label": 3}), lambda m: Clipped(m, -0.3, 0.3)):
        a, b = (SDESampler(VP, wrap(m), solver=Heun(), steps=6).sample(x_T=x, label=label) for m in (model, plain))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    through = FlowSDE(t_min=0.011, t_max=0.99)
    a, b = (
        SDESampler(through, m.on(through), solver=Heun(), steps=6).sample(x_T=x, label=label) for m in (model, plain)
    )
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_a_map_is_trained_as_a_denoiser_too():
    model, plain = pair()
    x0 = normal(16, 2)
    losses = [m.loss(x0, generator=torch.Generator().manual_seed(0)) for m in (model, plain)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=0)
    assert math.isfinite(float(losses[0].detach()))
