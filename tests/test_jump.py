"""Claim: a sampler jumps by a flow map, in as many calls as it is told, and in one if so; no other solver changed.

The oracle is a loop of `FlowMap.carry` over the times of the sampler, whose formula has tests of its own.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import zoo
from maps import VP, flow_map, normal, teacher
from refusals import T, V, check, refuses, wrong

from sde_diffusion import EDMSDE, VPSDE, DiscreteVPSDE, FlowSDE, SDESampler, grids, solvers
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.distillation import FlowMap
from sde_diffusion.guidance import Clipped, Guided
from sde_diffusion.noise import Streams
from sde_diffusion.noise.seeds import Use, apart
from sde_diffusion.solvers import Angle, Churn, Euler, Heun, Jump, Langevin, PredictorCorrector

MODEL: Any = flow_map()
NEAR: Any = {"rtol": 0.0, "atol": 1e-12}


def start(sampler, n, seed=0):
    """Draws of the prior in float32, as the sampler makes them."""
    source = Streams(range(seed, seed + n), (2,), torch.float32, "cpu")
    return source, sampler.problem.start(source.prior(), sampler.times[0])


@pytest.mark.parametrize("sde", zoo.SDES, ids=zoo.name)
@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_samples_are_jumps_down_the_grid_and_one_to_the_data(sde, nfe):
    model = flow_map(sde)
    sampler = SDESampler(sde, model, nfe=nfe)
    x = sde.levels([sde.t_max])[0].sigma * normal(4, 2)
    *_, end = sampler.iterate(x_T=x)
    assert sampler.solver == Jump()
    assert (end.index, end.nfe, len(sampler.times)) == (nfe, nfe, nfe)
    with torch.no_grad():
        for t, s in pairwise(sampler.times):
            x = model.carry(x, t, s)
        x = model.carry(x, sampler.times[-1])
    torch.testing.assert_close(end.x, x, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_renoised_samples_are_the_multistep_of_consistency_models():
    model = flow_map(dtype=torch.float32, reach="data")
    sampler = SDESampler(VP, model, nfe=3)
    assert sampler.solver == Jump(renoise=True)
    source, x = start(sampler, 4)
    for t, s in pairwise(sampler.times):
        (at,) = VP.levels([s])
        x = at.alpha * model.carry(x, t) + at.sigma * source(t, s)
    torch.testing.assert_close(sampler.sample(4, seed=0), model.carry(x, sampler.times[-1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", [Jump(), Jump(renoise=True)], ids=zoo.name)
@pytest.mark.parametrize("nfe", [1, 3])
def test_a_sample_does_not_depend_on_the_batch(solver, nfe):
    sampler = SDESampler(VP, flow_map(dtype=torch.float32), solver=solver, nfe=nfe)
    whole = sampler.sample(8, seed=0)
    torch.testing.assert_close(whole[3:4], sampler.sample(1, seed=3), rtol=0, atol=1e-6)
    torch.testing.assert_close(whole, sampler.sample(8, seed=0, batch_size=3), rtol=0, atol=1e-6)
    x_T = normal(4, 2, dtype=torch.float32)
    assert torch.equal(sampler.sample(x_T=x_T, seed=0), sampler.sample(x_T=x_T.clone(), seed=0))


@pytest.mark.parametrize("nfe", [1, 2])
def test_all_ways_to_sample_go_with_one_call(nfe, capsys):
    sampler, x = SDESampler(VP, MODEL, nfe=nfe), normal(3, 2)
    shots = list(sampler.iterate(x_T=x))
    assert [(s.index, s.nfe) for s in shots] == [(i, i) for i in range(nfe + 1)]
    found = sampler.sample(x_T=x, progress=True)
    assert torch.equal(found, shots[-1].x)
    assert "1/1" in capsys.readouterr().err
    again = SDESampler(VP, MODEL, solver=Jump(), grid=sampler.times)
    assert torch.equal(again.sample(x_T=x), found)
    names = {**vars(solvers), "VPSDE": VPSDE, "SDESampler": SDESampler, "model": MODEL, "grids": grids}
    told = eval(repr(sampler), names | {"partial": partial})
    assert torch.equal(told.sample(x_T=x), found)
    grad = x.clone().requires_grad_()
    assert sampler.sample(x_T=grad, grad=True).sum().backward() is None
    assert grad.grad is not None
    assert bool(grad.grad.any())


def test_without_the_last_jump_the_state_at_the_last_time_is_left():
    sampler, x = SDESampler(VP, MODEL, nfe=2, denoise=False), normal(3, 2)
    with torch.no_grad():
        expected = x
        for t, s in pairwise(sampler.times):
            expected = MODEL.carry(expected, t, s)
    assert len(sampler.times) == 3
    torch.testing.assert_close(sampler.sample(x_T=x), expected, **NEAR)


@torch.no_grad()
def test_data_are_edited_from_any_level_in_one_call():
    model, x0 = flow_map(dtype=torch.float32), normal(3, 2, dtype=torch.float32)
    sampler = SDESampler(VP, model, nfe=1)
    t = float(VP.time_of(torch.tensor(-math.log(0.5), dtype=torch.float64)))
    (at,) = VP.levels([t])
    x = at.alpha * x0 + at.sigma * Streams(apart(range(3), Use.EDITING), (2,), torch.float32, "cpu").prior()
    torch.testing.assert_close(sampler.edit(x0, 0.5, seed=0), model.carry(x, t), rtol=0, atol=1e-5)
    assert SDESampler(VP, MODEL, nfe=4).edit(normal(3, 2), 0.02, seed=0).shape == (3, 2)  # below the grid


def test_a_chain_is_jumped_over_and_no_index_is_needed():
    chain = DiscreteVPSDE.linear(1000, 1e-4, 0.02)
    model, x = flow_map(chain), normal(3, 2)
    assert SDESampler(chain, model, nfe=1).times == [999.0]
    with torch.no_grad():
        expected = model.carry(model.carry(x, 999.0, 300.0), 300.0)
    found = SDESampler(chain, model, grid=[999.0, 300.0]).sample(x_T=x)
    torch.testing.assert_close(found, expected, **NEAR)


def test_seen_through_another_process_the_samples_are_the_same():
    flow = FlowSDE(t_max=0.99)
    view, x = MODEL.on(flow), normal(3, 2)
    there = SDESampler(flow, view, nfe=3)
    lam = flow.half_log_snr(torch.tensor(there.times, dtype=torch.float64))
    times = VP.time_of(lam).tolist()
    (a,), (b,) = flow.levels(there.times[:1]), VP.levels(times[:1])
    here = SDESampler(VP, MODEL, grid=times).sample(x_T=x * (b.alpha / a.alpha))
    torch.testing.assert_close(there.sample(x_T=x), here, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sde", [VP, EDMSDE(), FlowSDE()], ids=zoo.name)
def test_a_map_of_some_levels_is_sampled_over_these(sde):
    levels = (math.inf, 2.0, 0.3, 0.0)
    sampler = SDESampler(sde, flow_map(sde, reach=levels))
    assert sampler.times[0] == sde.t_max
    ratios = [float(at.ratio) for at in sde.levels(sampler.times)]
    assert ratios[1:] == pytest.approx([2.0, 0.3], rel=1e-9)
    assert [now.nfe for now in sampler.iterate(2, seed=0)] == [0, 1, 2, 3]
    assert SDESampler(sde, flow_map(sde, reach=levels), nfe=3).times == sampler.times
    assert SDESampler(sde, flow_map(sde, reach=levels), solver=Jump(), steps=2).times == sampler.times
    assert SDESampler(sde, flow_map(sde, reach=levels), solver=Heun(), steps=7).steps == 7  # the diagonal knows all


class Straight(Denoiser):
    """A denoiser of one's own that carries: the flow of data at one point is a straight line in the angle's plane."""

    def __init__(self, sde) -> None:
        super().__init__()
        self.sde, self.shape = sde, (2,)

    def predict(self, x, at, **cond):
        raise AssertionError

    def jump(self, x, at, to, **cond):
        return x * 0 if to is None else x * (to.sigma / at.sigma)

    def check_jump(self, at, to):
        pass


def test_a_denoiser_of_ones_own_that_carries_is_jumped_by():
    x = SDESampler(VP, Straight(VP), nfe=2).sample(3, seed=0)
    assert torch.equal(x, torch.zeros(3, 2))


@pytest.mark.slow
@pytest.mark.parametrize("nfe", [1, 3])
def test_a_whole_solve_compiles_into_one_graph(nfe):
    sampler, x = SDESampler(VP, flow_map(dtype=torch.float32), nfe=nfe), normal(4, 2, dtype=torch.float32)
    plain = sampler.sample(x_T=x, seed=0)
    torch._dynamo.reset()
    whole = torch.compile(lambda x: sampler.sample(x_T=x, seed=0), backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(x), plain, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ what is refused

LEVELS = (math.inf, 1.0, 0.0)
DATA: Any = flow_map(reach="data")
STEPS: Any = flow_map(reach=LEVELS)
KNOWN: Any = teacher()
X = normal(3, 2)


@refuses(
    (
        lambda: SDESampler(VP, MODEL, solver=Heun(), nfe=1),
        V,
        "a budget of 1 evaluations is too small: one step of Heun()",
    ),
    (lambda: SDESampler(VP, MODEL, solver=Euler(), nfe=1), V, "and the final jump 1"),
    (lambda: SDESampler(VP, KNOWN, nfe=1), V, "a budget of 1 evaluations is too small: one step of Adams("),
    (lambda: SDESampler(VP, MODEL, nfe=0), V, "nfe must be at least 1, got 0"),
    (lambda: SDESampler(VP, MODEL, solver=Heun(), steps=0), V, "steps must be at least 1, got 0"),
    (lambda: SDESampler(VP, MODEL, solver=Heun(), grid=[1.0]), V, "a grid needs at least two times, got 1"),
    (lambda: SDESampler(VP, MODEL, grid=[1.0], denoise=False), V, "a grid needs at least two times, got 1"),
    (lambda: SDESampler(VP, MODEL, grid=[]), V, "a grid needs at least one time, got 0"),
    (lambda: SDESampler(VP, MODEL, nfe=2).encode(X), V, "encode with an ODE solver on the map"),
    (lambda: SDESampler(VP, MODEL, nfe=1).encode(X), V, "encode with an ODE solver on the map"),
    (lambda: SDESampler(VP, DATA, nfe=2).encode(X), V, "Jump(renoise=True) is stochastic, so it has no inverse"),
    (lambda: SDESampler(VP, MODEL, nfe=1).sample_with_log_prob(2), T, "but Jump(renoise=False) is no solver of one"),
    (
        lambda: SDESampler(VP, KNOWN, solver=Jump()).sample(2),
        T,
        "Jump works with a FlowMap, and the model is a Network",
    ),
    (
        lambda: SDESampler(VP, Clipped(MODEL), solver=Jump()).sample(2),
        T,
        "bounds may be put on the samples, x.clamp(-1, 1)",
    ),
    (lambda: SDESampler(VP, GUIDED, solver=Jump()).sample(2, label=1), T, "the Guided around it does not change"),
    (
        lambda: SDESampler(zoo.DoubleWell(), lambda x, t: -x, solver=Jump(), shape=(1,)),
        T,
        "Jump needs a GaussianSDE with",
    ),
    (lambda: Angle(Jump()), T, "Angle cannot wrap Jump(renoise=False), whose last step goes to the data"),
    (lambda: Churn(Jump()), T, "Churn cannot wrap Jump(renoise=False)"),
    (lambda: PredictorCorrector(Jump(), Langevin(1, snr=0.1)), T, "PredictorCorrector cannot wrap Jump(renoise=False)"),
    (lambda: Jump(renoise=wrong(1)), T, "renoise must be True or False"),
    (lambda: SDESampler(VP, DATA, solver=Jump(), nfe=2).sample(2), V, "this map was trained to jump to the data alone"),
    (
        lambda: SDESampler(VP, STEPS, nfe=1),
        V,
        "this map was trained for 2 calls, between the noise levels (inf, 1.0, 0.0)",
    ),
    (lambda: SDESampler(VP, STEPS, nfe=4), V, "got nfe=4: leave it out, or say nfe=2; or train it with reach='any'"),
    (lambda: SDESampler(VP, STEPS, steps=3), V, "got steps=3: leave it out, or say nfe=2"),
    (lambda: SDESampler(VP, STEPS, denoise=False), V, "got denoise=False: leave it out"),
    (lambda: SDESampler(VP, STEPS, grid=[1.0, 0.1]).sample(2), V, "not from 152.2 to 0.3402: leave out grid="),
    (lambda: SDESampler(VP, STEPS, grid=[1.0]).sample(2), V, "not from 152.2 to 0: leave out grid="),
    (lambda: SDESampler(VP, STEPS).edit(X, 0.5), V, "not from 0.5 to 0: leave out grid="),
)
def test_it_refuses(call, error, text):
    check(call, error, text)


GUIDED: Any = Guided(FlowMap.from_teacher(teacher(classes=3)), 2.0)
