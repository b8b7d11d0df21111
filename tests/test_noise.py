"""Claim: a sample's randomness depends on its seed alone, and a Brownian path is one path at every step count."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats

from sde_diffusion import VPSDE, SDESampler, grids
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.noise import BrownianPath, SharedStream, Silent, Streams, seed_list
from sde_diffusion.solvers import DDIM, Angle, Churn, EulerMaruyama, Heun

F64 = torch.float64
every_source = pytest.mark.parametrize("source", [Streams, BrownianPath])


def make(source, seeds, shape=(3,), dtype=F64, span=(1.0, 0.0)):
    return source(seeds, shape, dtype, "cpu", span)


def draws(source, intervals):
    return [source.prior(), *(source(t, s) for t, s in intervals)]


STEPS = [(1.0, 0.7), (0.7, 0.25), (0.25, 0.25), (0.25, 0.0)]


@every_source
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_row_i_depends_on_seed_i_alone(source, dtype):
    together = draws(make(source, [4, 9, 2], dtype=dtype), STEPS)
    for i, seed in enumerate([4, 9, 2]):
        for row, all_rows in zip(draws(make(source, [seed], dtype=dtype), STEPS), together, strict=True):
            assert row.dtype == dtype
            assert torch.equal(row[0], all_rows[i])


@every_source
def test_draws_are_reproducible_and_fresh(source):
    first, again = (draws(make(source, [0, 1]), STEPS) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    flat = torch.stack(first).flatten()
    assert len(flat.unique()) == len(flat)


@every_source
def test_draws_are_unit_normal_and_independent_across_seeds_steps_and_coordinates(source):
    n = 2000
    noise = make(source, range(n), shape=(2,))
    found = torch.stack(draws(noise, STEPS)).permute(0, 2, 1).reshape(-1, n)  # (draws and coordinates, seeds)
    for row in found:
        assert stats.kstest(row.numpy(), "norm").pvalue > 1e-4
    products = (found @ found.T / n).fill_diagonal_(0)
    lagged = found[:, :-1] @ found[:, 1:].T / (n - 1)  # between a seed and the next
    se = math.sqrt(1 / n)
    products = products.fill_diagonal_(0)
    print(f"largest correlation {products.abs().max() / se:.2f}, lagged {lagged.abs().max() / se:.2f} standard errors")
    # 45 + 100 correlations: the largest of so many normal deviates exceeds 4.5 with probability 1e-3.
    assert products.abs().max() < 4.5 * se
    assert lagged.abs().max() < 4.5 * se


def test_both_sources_start_a_sample_from_the_same_state():
    assert torch.equal(make(Streams, [3, 5]).prior(), make(BrownianPath, [3, 5]).prior())


def test_a_shared_stream_is_the_generator_itself():
    source = SharedStream(torch.Generator().manual_seed(1), 4, (2, 2), F64, "cpu")
    twin = torch.Generator().manual_seed(1)
    for _ in range(3):
        assert torch.equal(source(1.0, 0.5), torch.randn(4, 2, 2, generator=twin, dtype=F64))
    assert torch.equal(source.prior(), torch.randn(4, 2, 2, generator=twin, dtype=F64))


# ------------------------------------------------------------------------------------------------------ Brownian paths


@pytest.mark.parametrize("span", [(1.0, 0.0), (80.0, 0.002), (999.0, 0.0)])
@pytest.mark.parametrize("n", [2, 3, 10, 64])
def test_fine_increments_add_up_to_the_coarse_one(n, span):
    """W_s - W_t over one step is the sum over n steps: up to rounding."""
    coarse, fine = make(BrownianPath, [0, 7], span=span), make(BrownianPath, [0, 7], span=span)
    high, low = span
    times = [high + (low - high) * i / n for i in range(n)] + [low]
    total = sum(fine(t, s) * math.sqrt(t - s) for t, s in pairwise(times))
    torch.testing.assert_close(total, coarse(high, low) * math.sqrt(high - low), rtol=0, atol=1e-11 * math.sqrt(high))


def test_a_path_answers_in_any_order():
    forward, backward = make(BrownianPath, [0]), make(BrownianPath, [0])
    steps = [(1.0, 0.6), (0.6, 0.35), (0.35, 0.05)]
    first = {step: forward(*step) for step in steps}
    for step in reversed(steps):
        assert torch.equal(backward(*step), first[step])
    torch.testing.assert_close(backward(0.05, 0.35), -first[0.35, 0.05])  # the other way round


def test_the_variance_of_an_increment_is_its_length():
    noise = make(BrownianPath, [5], shape=(4000,), span=(3.0, 1.0))
    se = math.sqrt(2 / 4000)
    for t, s in ((3.0, 1.0), (2.0, 1.9), (1.3, 1.2999), (2.7, 1.4)):
        variance = (noise(t, s) ** 2).mean().item()
        print(f"{(variance - 1) / se:.2f} standard errors")
        assert abs(variance - 1) < 4 * se
    # Overlapping increments correlate by the overlap: E (W_3 - W_2)(W_2.5 - W_1) = 0.5
    product = noise(3.0, 2.0) * noise(2.5, 1.0) * math.sqrt(1.0 * 1.5)
    assert abs(product.mean().item() - 0.5) < 4 * product.std().item() / math.sqrt(4000)


def test_a_path_goes_on_beyond_its_span():
    noise = make(BrownianPath, [5], shape=(4000,), span=(1.0, 0.5))
    se = math.sqrt(2 / 4000)
    for t, s in ((2.2, 0.1), (1.1, 1.05), (0.4, 0.2), (1.2, 0.9)):
        variance = (noise(t, s) ** 2).mean().item()
        print(f"{(variance - 1) / se:.2f} standard errors")
        assert abs(variance - 1) < 4 * se
    times = [2.2, 1.7, 1.0, 0.8, 0.5, 0.3, 0.1]
    total = sum(noise(t, s) * math.sqrt(t - s) for t, s in pairwise(times))
    torch.testing.assert_close(total, noise(2.2, 0.1) * math.sqrt(2.1), rtol=0, atol=1e-10)
    inside, outside = noise(1.0, 0.5), noise(1.5, 1.0)
    assert abs((inside * outside).mean().item()) < 4 / math.sqrt(4000)


def test_a_corrector_gets_noise_of_its_own_at_one_time():
    noise = make(BrownianPath, [5], shape=(4000,))
    step, first, second = noise(1.0, 0.5), noise(0.5, 0.5), noise(0.5, 0.5)
    for a, b in ((step, first), (first, second), (step, second), (noise.prior(), first)):
        assert abs((a * b).mean().item()) < 4 / math.sqrt(4000)
    assert torch.equal(noise(1.0, 0.5), step)  # and the path is as it was


SOLVERS = [EulerMaruyama(), Angle(EulerMaruyama()), DDIM(1.0), Churn(EulerMaruyama(), 0.1), Churn(Heun(), 0.1)]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_solve_on_a_brownian_path_has_the_right_law(solver):
    """Unit Gaussian data stay unit Gaussian under the reverse SDE; weak order 1 leaves a bias below 4% at 100 steps."""
    sde, d = VPSDE(), 4000  # one path of 4000 independent coordinates
    model = Gaussian(sde, torch.zeros(d, dtype=F64), 1.0)
    sampler = SDESampler(sde, model, solver=solver, steps=100, grid=grids.angle, denoise=False)
    x = sampler.sample(1, seed=0, noise=BrownianPath)
    se = math.sqrt(2 / d)
    print(f"variance {x.var().item():.4f}, SE {se:.4f}")
    assert abs(x.var().item() - 1) < 4 * se + 0.04


def test_refining_the_steps_refines_the_same_sample():
    sde = VPSDE()
    model = Gaussian(sde, torch.zeros(200, dtype=F64), 0.3)
    ends = [
        SDESampler(sde, model, solver=EulerMaruyama(), steps=n, grid=grids.angle).sample(1, seed=0, noise=BrownianPath)
        for n in (100, 200, 400, 800)
    ]
    errors = [(x - ends[-1]).abs().median().item() for x in ends[:-1]]
    # Strong order 1: against the finest of 800 steps, errors 1/100 - 1/800, 1/200 - 1/800, 1/400 - 1/800, as 7 : 3 : 1.
    assert 1.6 < errors[0] / errors[1] < 3.2
    assert 2.0 < errors[1] / errors[2] < 4.2


# ---------------------------------------------------------------------------------------------------------- the doors


def test_seeds_that_the_generator_cannot_tell_apart_are_refused():
    first, wrapped = (torch.Generator().manual_seed(k) for k in (5, 5 + 2**32))
    assert torch.equal(torch.randn(3, generator=first), torch.randn(3, generator=wrapped))
    with pytest.raises(ValueError, match=r"seeds must be >= 0 and below 2\*\*32 .*, got 4294967301"):
        seed_list(5 + 2**32, 1)


def test_seeds_are_counted_up_or_given_one_by_one():
    assert seed_list(5, 3) == [5, 6, 7]
    assert seed_list([4, 1], 2) == [4, 1]
    assert seed_list(range(2), 2) == [0, 1]
    assert seed_list((8,), 1) == [8]
    fresh = seed_list(None, 2)
    assert fresh[1] == fresh[0] + 1
    assert fresh != seed_list(None, 2)


def test_silence_cannot_be_drawn_from():
    with pytest.raises(ValueError, match=r"a stochastic solver was given no noise: hand integrate a source such as"):
        Silent().prior()


@pytest.mark.parametrize("span", [(1.0, 1.0), (math.inf, 0.0)])
def test_a_path_needs_a_span(span):
    with pytest.raises(ValueError, match=r"a Brownian path needs a span of positive length, got \("):
        make(BrownianPath, [0], span=span)
