"""Claim: the mean log-likelihood of a data set, at fifteen evaluations a row, is known as well as its interval says.

The truth is the density of exact mixtures. What is put together from levels is checked on made-up values, of which
every sum can be enumerated.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from mixtures import mixture
from pools import Pool, covered
from refusals import T, V, check, refuses, wrong
from torch import nn
from zoo import DoubleWell

from sde_diffusion import VPSDE, Network, PerSample, Problem, SDESampler, SolverError, predict
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.likelihood import (
    DatasetLogProb,
    Density,
    Method,
    Orthogonal,
    Rademacher,
    bits_per_dim,
    dataset_log_prob,
    log_prob,
)
from sde_diffusion.likelihood.levels import FOLDS, Telescope, cross_fitted
from sde_diffusion.nets import MLP
from sde_diffusion.solvers import RK4, AdamsMoulton, DormandPrince, Heun

VP = VPSDE()
DATA = Density(level=0.0)


def plane(n: int = 400, seed: int = 0):
    """A sampler of an exact mixture of components with variances from .01 to 1, and data of it."""
    model = mixture(2, 5, 0.1, 1.0)
    return SDESampler(VP, model), model.sample(n, seed=seed)


def test_the_mean_of_a_mixture_lies_in_its_interval_at_fifteen_evaluations_a_row():
    sampler, x = plane(2000)
    found = dataset_log_prob(sampler, x, density=DATA, seed=0)
    truth = float(sampler.problem.model.data_log_prob(x).mean())
    low, high = found.interval()
    assert low <= truth <= high
    assert found.standard_error < 0.004
    assert sum(found.evaluations) <= 15 * 2000
    assert found.evaluations_per_row == pytest.approx(15, abs=0.1)
    assert found.evaluations == tuple(n * s for n, s in zip(found.rows, found.steps, strict=True))
    assert found.products == tuple(2 * n for n in found.evaluations)


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high"), [(0.05, 0.4), (0.1, 1.0)])
def test_of_200_intervals_for_2000_rows_93_in_100_hold_the_truth(low, high):
    model = mixture(2, 5, low, high)
    pool = Pool.of(SDESampler(VP, model), model, 4000, seed=1)
    trials = [pool.trial(seed) for seed in range(200)]
    print(covered(trials))
    assert covered(trials) >= 0.93
    stated, error = (torch.tensor(t).square().mean().sqrt() for t in zip(*[t[1::-1] for t in trials], strict=True))
    assert 0.8 * error < stated < 1.3 * error < 0.02


def test_a_result_depends_on_its_seed_and_not_on_the_size_of_batches():
    sampler, x = plane(200)
    first, again, other = (
        dataset_log_prob(sampler, x, budget=30, seed=s, batch_size=b) for s, b in ((3, 1024), (3, 37), (4, 1024))
    )
    assert again.value == pytest.approx(first.value, abs=1e-12)
    assert (again.rows, again.evaluations) == (first.rows, first.evaluations)
    assert abs(other.value - first.value) > 1e-9


def test_where_every_row_is_weighed_finely_nothing_is_left_to_chance():
    sampler, x = plane(40)
    found = dataset_log_prob(sampler, x, budget=1000, steps=(6, 24, 64), density=DATA, seed=0)
    assert found.rows == (40, 40, 40)
    assert found.standard_error < 1e-9
    assert found.population_standard_error > 0.05
    truth = float(sampler.problem.model.data_log_prob(x).mean())
    assert abs(found.value - truth) <= found.bias < 0.01


def test_the_law_of_the_data_is_known_less_well_than_the_mean_of_the_rows():
    sampler, x = plane(400)
    found = dataset_log_prob(sampler, x, budget=20, seed=0)
    spread = float(sampler.problem.model.data_log_prob(x).std()) / math.sqrt(len(x))
    assert found.population_standard_error == pytest.approx(math.hypot(spread, found.standard_error), rel=0.1)
    wide, narrow = found.interval(population=True), found.interval()
    assert wide[0] < narrow[0] < found.value < narrow[1] < wide[1]
    assert found.interval(0.5)[0] > narrow[0]


def test_bits_are_those_of_the_mean():
    sampler, x = plane(100)
    found = dataset_log_prob(sampler, x, budget=40, seed=0)
    wanted = bits_per_dim(torch.tensor([found.value]), 2, bin_width=0.1)
    assert found.bits_per_dim(0.1) == pytest.approx(float(wanted))
    assert found.bits_standard_error == pytest.approx(found.standard_error / 2 / math.log(2))
    assert found.bits_bias == pytest.approx(found.bias / 2 / math.log(2))
    assert "mean of 100 rows" in str(found)
    assert "evaluations per row" in str(found)


def test_the_level_and_the_truncation_are_those_of_log_prob():
    sampler, x = plane(64)
    for density in (Density(correct=True), Density(level=0.1)):
        exact = log_prob(sampler, x, density=density, method=Method(solver_error=False))
        found = dataset_log_prob(sampler, x, budget=200, steps=(8, 64), density=density, seed=0)
        assert found.level == exact.level
        assert abs(found.value - float(exact.value.mean())) < 2e-3 + found.bias


class Labelled(nn.Module):
    """Shifts what it answers by a number per sample."""

    def __init__(self):
        super().__init__()
        self.net = MLP(2, hidden=16, layers=2)

    def forward(self, x, t, label):
        return self.net(x, t) + 0.3 * label[:, None]


def test_conditions_go_with_their_rows_and_a_network_is_left_as_it_was():
    torch.manual_seed(0)
    dtype = torch.float32
    model = Network(Labelled().to(dtype), VP, predict.v, shape=(2,))
    x, label = torch.randn(48, 2, dtype=dtype), torch.linspace(-1, 1, 48, dtype=dtype)
    problem = Problem(VP, model)
    exact = log_prob(problem, x, method=Method(RK4(), steps=32, solver_error=False), label=PerSample(label))
    found = dataset_log_prob(problem, x, budget=80, steps=(6, 24, 48), seed=0, label=PerSample(label), batch_size=7)
    low, high = found.interval(0.9999)
    assert low - 1e-4 <= float(exact.value.mean()) <= high + 1e-4
    assert model.training  # as it was


@pytest.mark.parametrize("solver", [Heun(), RK4(), AdamsMoulton(3)])
def test_any_solver_of_fixed_steps_will_do(solver):
    sampler, x = plane(200)
    found = dataset_log_prob(sampler, x, budget=40, density=DATA, method=Method(solver), seed=1)
    truth = float(sampler.problem.model.data_log_prob(x).mean())
    low, high = found.interval(0.999)
    assert low <= truth <= high
    assert sum(found.evaluations) <= 40 * 200


def test_above_128_dimensions_probes_are_shared_by_the_levels_and_counted():
    model = Gaussian(VP, torch.zeros(144, dtype=torch.float64), torch.linspace(0.1, 1, 144, dtype=torch.float64))
    sampler, x = SDESampler(VP, model), model.sample(64, seed=0)
    found = dataset_log_prob(sampler, x, budget=14, steps=(8, 16), density=DATA, seed=0)
    assert abs(found.value - float(model.data_log_prob(x).mean())) <= 4 * found.standard_error + found.bias
    assert found.products == tuple(2 * n for n in found.evaluations)
    probed = log_prob(
        sampler, x, method=Method(AdamsMoulton(2), steps=8, trace=Orthogonal(2), solver_error=False), seed=0
    )
    noise = float(probed.standard_error.square().sum().sqrt()) / len(x)
    assert found.standard_error == pytest.approx(noise, rel=0.2)  # shared, they leave little in a difference


def told(values: list[torch.Tensor], readings: torch.Tensor, costs: list[int]) -> Telescope:
    """Levels whose values are known beforehand."""
    return Telescope(lambda level, i, j: values[level][i:j], values[0], readings, costs)


def enumerated(n: int, rows: list[int]) -> tuple[float, float, float]:
    """Mean and variance of an estimate over all orders of the rows, and the mean of the variances that it states."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(3)]
    found = []
    for order in itertools.permutations(range(n)):
        levels = [v[list(order)] for v in values]
        telescope = told(levels, levels[0][:, None][:, :0], [1, 2, 4])
        telescope.extend(rows)
        found.append(telescope.estimate())
    means = torch.tensor([e.value for e in found], dtype=torch.float64)
    stated = torch.tensor([e.variance for e in found], dtype=torch.float64).mean()
    assert float(means.mean()) == pytest.approx(float(values[2].mean()), abs=1e-12)
    return float(means.mean()), float(means.var(correction=0)), float(stated)


def test_over_all_orders_of_the_rows_the_estimate_has_no_bias_and_the_variance_that_it_states():
    _, variance, stated = enumerated(6, [4, 3])
    assert stated == pytest.approx(variance, rel=0.02)


def test_a_prediction_across_folds_has_no_bias_over_all_choices_of_rows():
    generator = torch.Generator().manual_seed(0)
    n, m = 6, 5
    readings = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    difference = torch.randn(n, generator=generator, dtype=torch.float64)
    means = []
    for order in itertools.permutations(range(n), m):
        rest = [i for i in range(n) if i not in order]
        own = [*order, *rest]
        means.append(cross_fitted(readings[own], difference[own][:m])[1])
    assert m >= FOLDS
    assert sum(means) / len(means) == pytest.approx(float(difference.mean()), abs=1e-12)


def test_what_readings_tell_is_not_sampled():
    generator = torch.Generator().manual_seed(0)
    readings = torch.randn(1000, 3, generator=generator, dtype=torch.float64)
    rough = torch.randn(1000, generator=generator, dtype=torch.float64)
    fine = rough + 2 * readings[:, 0] + 0.01 * torch.randn(1000, generator=generator, dtype=torch.float64)
    telescope = told([rough, fine], readings, [1, 8])
    telescope.extend([100])
    found = telescope.estimate()
    assert abs(found.value - float(fine.mean())) < 4 * math.sqrt(found.variance)
    assert math.sqrt(found.variance) < 0.01  # of .19 without


def test_rows_are_allotted_by_variance_and_cost():
    rough = torch.zeros(10_000, dtype=torch.float64)
    wave = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(5000)
    values = [rough, wave, wave + 0.1 * wave.roll(1).repeat_interleave(2)[:10_000]]
    telescope = told(values, rough[:, None], [1, 4, 16])
    telescope.extend([16, 16])
    first, second = telescope.allocate(20_000)
    assert first / second == pytest.approx(math.sqrt(1 / 4) / math.sqrt(0.01 / 16), rel=0.02)
    assert 4 * first + 16 * second == pytest.approx(10_000, rel=0.01)


def test_a_row_without_a_density_is_named():
    class Broken(nn.Module):
        def forward(self, x, t):
            return torch.where(x[:, :1] > 50, torch.full_like(x, math.nan), torch.zeros_like(x) * x)

    x = 0.1 * torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(32, 2)  # grows a hundredfold on its way
    x[21] = 1e3
    problem = Problem(VP, Network(Broken(), VP, predict.data, shape=(2,)))
    with pytest.raises(SolverError, match=r"no log-density of row 21 \(1 of 32\) in 6 steps"):
        dataset_log_prob(problem, x, seed=0, budget=100, steps=(6, 12))


SAMPLER, X = plane(32)


def weigh(data=X, of=SAMPLER, **given):
    return lambda: dataset_log_prob(wrong(of), wrong(data), **given)


NO_PROBES = "cannot tell its error, nor could the mean: give it 2 probes or more"
GENERAL = SDESampler(DoubleWell(), lambda x, t: -x, shape=(2,))


@refuses(
    (weigh(), V, "budget=15 evaluations per row do not pay for a rough solve of 32 rows, 6 each, and finer ones of 16"),
    (weigh(), V, "88 each: give 50, more rows, or fewer steps="),
    (weigh(budget="much"), T, "budget must be a number, got 'much'"),
    (weigh(budget=math.nan), V, "budget must be positive and finite, got nan"),
    (weigh(X[:1], budget=99), V, "learns from a pilot of 16 rows how many to weigh finely, got 1: ask log_prob(data)"),
    (weigh(X[:0]), V, "data is an empty batch"),
    (weigh(X / 0), V, "data holds 64 non-finite values"),
    (weigh(X.long()), T, "data has dtype torch.int64"),
    (weigh(X[:, :1]), V, "data has event shape (1,)"),
    (weigh(method=Method(DormandPrince())), T, "fixed steps, but DormandPrince(rtol=1e-05, atol=1e-05"),
    (weigh(method=Method(steps=8)), V, "give steps=(6, 24, 64), and to a method solver=, trace= and data_std= alone"),
    (weigh(method=Method(solver_error=False)), V, "the levels compare solves of several numbers of steps"),
    (weigh(steps=(8, 8)), V, "steps must rise, from a rough solve to a fine one, such as (6, 24, 64), got (8, 8)"),
    (weigh(steps=8), T, "steps must be a sequence of numbers of steps such as (6, 24, 64), got 8"),
    (weigh(budget=99, seed=[1, 2]), T, "seed must be an integer, got [1, 2]"),
    (weigh(level=0.0), T, "level= is no argument here: write density=Density(level=...)"),
    (weigh(density=0.0), T, "density must be a Density"),
    (weigh(of=X), T, "dataset_log_prob needs a sampler"),
    (weigh(budget=99, method=Method(trace=Rademacher(1))), V, NO_PROBES),
    (weigh(budget=99, method=Method(trace=Orthogonal(1))), V, NO_PROBES),
    (weigh(of=GENERAL), T, "which DoubleWell, a general SDE, does not have: ask log_prob(data).mean()"),
    (lambda: DatasetLogProb(0.0, 1.0, 1.0, 0.0, (1,), (1,), (1,), (1,), 1, 0.0).interval(95), V, "got 95"),
)
def test_what_cannot_be_weighed_is_refused_in_words(call, error, text):
    check(call, error, text)
