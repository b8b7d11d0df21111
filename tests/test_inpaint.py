"""Claim: `Inpaint` is the loop of the papers, and `edit` the noise up to a level and the solve from there."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from refusals import wrong
from zoo import DoubleWell

from sde_diffusion import VESDE, VPSDE, FlowSDE, SDESampler, noise
from sde_diffusion.denoiser.analytic import Gaussian, GaussianMixture
from sde_diffusion.noise.seeds import Use, apart
from sde_diffusion.solvers import DDIM, DPMSolverPP, EulerMaruyama, Heun, Inpaint


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KNOWN = draw(4, seed=1)
MASK = torch.tensor([True, False, True, False])
PRIOR = GaussianMixture(VPSDE(), torch.ones(3, dtype=torch.float64), 2 * draw(3, 4, seed=2), 0.3)


@pytest.mark.parametrize("passes", [1, 3])
def test_inpainting_is_the_loop_of_the_papers(passes):
    sampler = SDESampler(VPSDE(), PRIOR, solver=Inpaint(DDIM(1.0), KNOWN, MASK, passes), steps=4)
    source = noise.Streams([5], (4,), torch.float64, "cpu")
    x, levels = sampler.problem.start(source.prior(), sampler.times[0]), VPSDE().levels(sampler.times)
    for t, s in pairwise(levels):
        for k in range(passes):
            if k:
                ratio = t.alpha / s.alpha
                x = ratio * x + math.sqrt(t.sigma**2 - (ratio * s.sigma) ** 2) * source(0, 0)
            x, _ = DDIM(1.0).step(wrong(sampler.problem.equation()), x, t, s, None, source)
            x = torch.where(MASK, s.alpha * KNOWN + s.sigma * source(0, 0), x)
    wanted = torch.where(MASK, KNOWN, PRIOR.predict(x, levels[-1]).data)
    torch.testing.assert_close(sampler.sample(1, seed=5), wanted, rtol=0, atol=1e-12)
    *_, last = sampler.iterate(1, seed=5)
    assert last.nfe == 4 * passes + 1


@pytest.mark.parametrize("inner", [Heun(), DPMSolverPP(2), EulerMaruyama()], ids=repr)
def test_every_solver_keeps_what_is_known_and_rows_apart(inner):
    sampler = SDESampler(VPSDE(), PRIOR, solver=Inpaint(inner, KNOWN, MASK), steps=8)
    x = sampler.sample(4, seed=0)
    assert torch.equal(x[:, MASK], KNOWN[MASK].expand(4, 2))
    torch.testing.assert_close(sampler.sample(4, seed=0, batch_size=3), x, rtol=0, atol=1e-12)
    path = sampler.sample(2, seed=0, noise=noise.BrownianPath)
    assert bool(torch.isfinite(path).all())
    assert float((x[:, ~MASK].std(0)).min()) > 0


def test_what_is_not_under_the_mask_does_not_count():
    hidden = torch.where(MASK, KNOWN, torch.nan)
    one, other = (SDESampler(VPSDE(), PRIOR, solver=Inpaint(Heun(), k, MASK), steps=4) for k in (KNOWN, hidden))
    assert torch.equal(one.sample(2, seed=0), other.sample(2, seed=0))


def test_inpaint_says_what_does_not_fit():
    for make, kind, message in [
        (lambda: Inpaint(wrong("Heun"), KNOWN, MASK), TypeError, "Inpaint"),
        (lambda: Inpaint(Heun(), wrong([1.0]), MASK), TypeError, "known must be a tensor of floats"),
        (lambda: Inpaint(Heun(), KNOWN, MASK.float()), TypeError, "mask must be a tensor of truth values"),
        (
            lambda: Inpaint(Heun(), KNOWN.expand(2, 4), MASK),
            ValueError,
            "one for all samples; a row for each goes to P",
        ),
        (lambda: Inpaint(Heun(), KNOWN / 0, MASK), ValueError, "known, under the mask, holds 2 non-finite"),
        (lambda: Inpaint(Heun(), KNOWN, MASK, 0), ValueError, "passes must be at least 1"),
    ]:
        with pytest.raises(kind, match=message):
            make()
    short = SDESampler(VPSDE(), PRIOR, solver=Inpaint(Heun(), KNOWN[:2], MASK[:2]), steps=2)
    with pytest.raises(ValueError, match=r"known and mask have shape \(2,\), wanted the event shape \(4,\)"):
        short.sample(1, seed=0)
    flow = Gaussian(FlowSDE(), KNOWN, 1.0)
    with pytest.raises(ValueError, match="Inpaint cannot go back up to t = 1, where alpha = 0"):
        SDESampler(FlowSDE(), flow, solver=Inpaint(DDIM(1.0), KNOWN, MASK, 2), steps=2).sample(1, seed=0)


@pytest.mark.parametrize("solver", [DPMSolverPP(2), EulerMaruyama()], ids=repr)
def test_an_edit_is_noise_up_to_a_level_and_the_rest_of_the_grid(solver):
    sampler, x0 = SDESampler(VPSDE(), PRIOR, solver=solver, steps=12), draw(3, 4, seed=3)
    found = sampler.edit(x0, 1.5, seed=7)
    t = float(VPSDE().time_of(torch.tensor(-math.log(1.5), dtype=torch.float64)))
    (at,) = VPSDE().levels([t])
    own = apart([7, 8, 9], Use.EDITING)
    source = noise.Streams(own, (4,), torch.float64, "cpu")
    x = at.alpha * x0 + at.sigma * source.prior()
    short = SDESampler(VPSDE(), PRIOR, solver=solver, grid=[t, *(s for s in sampler.times if s < t)])
    torch.testing.assert_close(found, short.sample(3, seed=own, x_T=x), rtol=0, atol=1e-12)
    torch.testing.assert_close(sampler.edit(x0, 1.5, seed=7, batch_size=2), found, rtol=0, atol=1e-12)


def test_a_little_noise_keeps_the_data_and_all_of_it_is_a_sample():
    prior, x0 = Gaussian(VESDE(), torch.zeros(2, dtype=torch.float64), 1.0), draw(200, 2, seed=3)
    sampler = SDESampler(VESDE(), prior, steps=20)
    level = VESDE().levels([sampler.times[0]])[0].ratio
    kept, drawn = sampler.edit(x0, 0.05, seed=0), sampler.edit(x0, level, seed=0)
    assert float((kept - x0).abs().max()) < 0.5
    assert abs(float(torch.corrcoef(torch.stack([drawn[:, 0], x0[:, 0]]))[0, 1])) < 4 / math.sqrt(200)
    # The exact law of the middle: x0 keeps the share 1/(1 + level^2) by the noise, and the flow restores the variance.
    middle = sampler.edit(x0, 1.0, seed=0)
    share = float((middle * x0).sum() / x0.square().sum())
    assert abs(share - 1 / math.sqrt(2)) < 4 * 0.71 / math.sqrt(400)


def test_edit_says_what_does_not_fit():
    sampler, x0 = SDESampler(VPSDE(), PRIOR, steps=4), draw(3, 4, seed=3)
    for given, kind, message in [
        ((x0, 1e4), ValueError, "level must lie within the grid, above"),
        ((x0, 1e-9), ValueError, "more keeps less of the data"),
        ((x0, "all"), TypeError, "level must be a number"),
        ((x0[:, :2], 1.0), ValueError, "x0 has event shape"),
        ((x0 / 0, 1.0), ValueError, "x0 holds"),
    ]:
        with pytest.raises(kind, match=message):
            sampler.edit(*wrong(given))
    well = SDESampler(DoubleWell(), lambda x, t: -x, shape=(1,), steps=3)
    with pytest.raises(TypeError, match="edit speaks of noise levels, which DoubleWell, a general SDE, does not have"):
        well.edit(draw(2, 1), 1.0)
