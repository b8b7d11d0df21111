"""Claim: `Clipped` clamps the data of any denoiser, for every solver, and equals the textbook loops that clip."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import zoo
from refusals import T, V, check, refuses, wrong
from torch import Tensor

from sde_diffusion import VPSDE, Clipped, DiscreteVPSDE, Network, SDESampler, grids, predict
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.likelihood import Density, log_prob
from sde_diffusion.noise import Streams
from sde_diffusion.solvers import DDIM, Heun

F64 = torch.float64
SDE = DiscreteVPSDE.linear()
X_T = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


def weak(x: Tensor, t: Tensor) -> Tensor:
    """A noise network as it is early in training: off by a few per cent."""
    return 0.93 * x.sin() + 0.04 * torch.cos(3 * x + t[:, None] / 100)


def model(sde: object = SDE, kind: object = predict.noise) -> Network:
    return Network(weak, wrong(sde), wrong(kind), shape=(2,))


def loop(x: Tensor, times: list[int], eta: float, keep_noise: bool, z: list[Tensor]) -> Tensor:
    """DDIM on a table, as in the paper, with its prediction of the data clipped to [-1, 1]."""
    a = SDE.alpha(torch.arange(1000, dtype=F64)).square().tolist()
    for i, (t, s) in enumerate(pairwise(times)):
        eps = weak(x, torch.full((len(x),), float(t), dtype=F64))
        x0 = ((x - math.sqrt(1 - a[t]) * eps) / math.sqrt(a[t])).clamp(-1, 1)
        if not keep_noise:
            eps = (x - math.sqrt(a[t]) * x0) / math.sqrt(1 - a[t])
        var = eta**2 * (1 - a[s]) / (1 - a[t]) * (1 - a[t] / a[s])
        x = math.sqrt(a[s]) * x0 + math.sqrt(1 - a[s] - var) * eps + math.sqrt(var) * z[i]
    t = times[-1]
    eps = weak(x, torch.full((len(x),), float(t), dtype=F64))
    return ((x - math.sqrt(1 - a[t]) * eps) / math.sqrt(a[t])).clamp(-1, 1)


@pytest.mark.parametrize("keep_noise", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_on_a_clipped_model_is_the_textbook_loop_that_clips(eta: float, keep_noise: bool) -> None:
    times = [999, 700, 420, 200, 60, 0]
    s = SDESampler(SDE, Clipped(model(), keep_noise=keep_noise), solver=DDIM(eta), grid=[float(t) for t in times])
    source = Streams(range(5), (2,), F64, "cpu")
    source.prior()
    z = [source(0.0, 0.0) for _ in times[1:]]
    torch.testing.assert_close(s.sample(x_T=X_T, seed=0), loop(X_T, times, eta, keep_noise, z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", zoo.SDES, ids=zoo.name)
@pytest.mark.parametrize("kind", zoo.KINDS, ids=zoo.name)
def test_data_are_clamped_and_with_the_noise_they_make_up_the_state(sde: object, kind: object) -> None:
    raw = model(sde, kind)
    clip = Clipped(raw, -0.3, 0.4)
    t = torch.tensor([0.2, 0.5, 0.6, 0.7, 0.9], dtype=F64) * raw.sde.t_max
    at = raw.sde.level(t, X_T)
    made, given = clip(X_T, t), raw(X_T, t)
    torch.testing.assert_close(made.data, given.data.clamp(-0.3, 0.4), rtol=0, atol=0)
    torch.testing.assert_close(at.alpha * made.data + at.sigma * made.noise, X_T, rtol=1e-12, atol=1e-12)
    kept = Clipped(raw, -0.3, 0.4, keep_noise=True)(X_T, t)
    assert torch.equal(kept.noise, given.noise)
    assert torch.equal(kept.data, made.data)


@pytest.mark.parametrize("solver", zoo.quick(zoo.SOLVERS), ids=zoo.name)
def test_every_solver_works_with_it_and_bounds_that_nothing_reaches_change_nothing(solver) -> None:
    sde = VPSDE()
    exact = GaussianMixture(sde, torch.tensor([0.5, 0.5]), torch.tensor([[0.4, -0.2], [-0.5, 0.3]]).double(), 0.01)
    made = [
        SDESampler(sde, m, solver=solver, grid=zoo.grid(sde, solver, 8)).sample(x_T=X_T, seed=0)
        for m in (exact, Clipped(exact, -1e3, 1e3), Clipped(exact, -0.3, 0.3))
    ]
    torch.testing.assert_close(made[1], made[0], rtol=1e-6, atol=1e-6)
    assert solver.facts.evaluations == 0 or made[2].abs().max() <= 0.3 + 1e-12


def test_it_keeps_shape_cost_scale_levels_and_the_default_grid_of_the_model() -> None:
    raw = model(SDE, predict.EDM(0.3))
    clip = Clipped(raw)
    assert (clip.sde, clip.shape, clip.cost, clip.data_std) == (raw.sde, raw.shape, raw.cost, raw.data_std)
    a, b = SDESampler(SDE, clip), SDESampler(SDE, raw)
    assert a.times == b.times
    assert a.sample(2, seed=0).dtype == b.sample(2, seed=0).dtype
    view = Clipped(model()).on(VPSDE())
    x = X_T * 0.1
    torch.testing.assert_close(view(x, 0.3).data, model().on(VPSDE())(x, 0.3).data.clamp(-1, 1))
    assert SDESampler(SDE, clip, solver=Heun()).encode(x).shape == x.shape


def test_a_likelihood_of_data_well_inside_of_the_range_is_that_of_the_model() -> None:
    sde = VPSDE()
    exact = GaussianMixture(sde, torch.tensor([1.0]), torch.zeros(1, 2, dtype=F64), 1e-4)
    x, s = 0.01 * X_T, SDESampler(sde, Clipped(exact))
    found = log_prob(s, x)
    variance = 1e-4 + found.level**2
    wanted = -0.5 * x.square().sum(1) / variance - math.log(2 * math.pi * variance)
    torch.testing.assert_close(found.value, wanted, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="a data prediction is divided by it: start at the smallest, without Clipped"):
        log_prob(s, x, density=Density(level=0.0))


def test_clipping_saves_a_weak_noise_network() -> None:
    """The data of this network are off by far more than their range at high noise; clipped, few steps go astray."""
    raw, clip = (
        SDESampler(SDE, m, solver=DDIM(), steps=50, grid=grids.trailing).sample(500, seed=0)
        for m in (model(), Clipped(model()))
    )
    assert clip.abs().max() <= 1.0
    assert raw.abs().max() > 3.0


@refuses(
    (
        lambda: Clipped(wrong(weak)),
        T,
        "Clipped takes a Denoiser, got function: wrap it, Network(net, sde, predict.noise)",
    ),
    (lambda: Clipped(model(), 1.0, -1.0), V, "low and high must be finite and in this order, got 1.0 and -1.0"),
    (lambda: Clipped(model(), wrong("a")), T, "low must be a number, got 'a'"),
    (lambda: Clipped(model(), -math.inf), V, "low and high must be finite and in this order, got -inf and 1.0"),
)
def test_what_cannot_be_clipped_is_refused(call, error, text):
    check(call, error, text)
