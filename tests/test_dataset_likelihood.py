"""Claim: the mean log-likelihood of a data set, at fifteen evaluations a row, is known as well as its interval says.

The truth is the density of exact mixtures. What is put together from levels is checked on made-up values, of which
every sum can be enumerated.
"""

from __future__ import annotations

import math

import pytest
import torch
from mixtures import mixture
from pools import Pool, covered
from refusals import T, V, check, refuses, wrong
from torch import nn
from zoo import DoubleWell

from sde_diffusion import VPSDE, Network, PerSample, Problem, SDESampler, SolverError, predict
from sde_diffusion.denoiser.analytic import Gaussian, GaussianMixture
from sde_diffusion.likelihood import (
    DatasetLogProb,
    Density,
    LikelihoodWarning,
    Method,
    Orthogonal,
    Rademacher,
    bits_per_dim,
    dataset_log_prob,
    log_prob,
)
from sde_diffusion.likelihood.draws import Drawn, draw, freedom
from sde_diffusion.likelihood.levels import Telescope
from sde_diffusion.nets import MLP
from sde_diffusion.solvers import RK4, AdamsMoulton, DormandPrince, Heun

VP = VPSDE()
DATA = Density(level=0.0)
F64 = torch.float64


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
    assert found.evaluations_per_row == pytest.approx(15, abs=0.4)
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


def told(values: list[torch.Tensor], readings: torch.Tensor, costs: list[int], seed: int = 0) -> Telescope:
    """Levels whose values are known beforehand."""
    chance = torch.rand(len(costs) - 1, len(values[0]), generator=torch.Generator().manual_seed(seed), dtype=F64)
    return Telescope(lambda level, i: values[level][i], values[0], readings, costs, chance, [0.01] * (len(costs) - 2))


def made_up(n: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Values at three levels whose differences are large in one row of twenty, and readings that tell of some."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, n, generator=generator, dtype=F64)
    rare = (torch.arange(n) % 20 == 0).to(F64)
    first = noise[1] * (0.1 + 2 * rare) + rare + 0.3 * noise[3]
    second = 0.05 * noise[2] * (0.1 + 5 * rare) + 0.1 * rare
    return [noise[0], noise[0] + first, noise[0] + first + second], torch.stack([rare + 0.05 * noise[1], noise[3]], 1)


def test_over_draws_the_estimate_has_no_bias_and_at_least_its_variance_is_stated():
    values, readings = made_up(200)
    estimates = []
    for seed in range(150):
        telescope = told(values, readings, [1, 2, 4], seed)
        telescope.draw([60, 24], math.inf)
        estimates.append(telescope.estimate())
    error = torch.tensor([e.value for e in estimates], dtype=F64) - values[2].mean()
    stated = torch.tensor([e.variance for e in estimates], dtype=F64).mean().sqrt()
    assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(150)
    assert 0.9 * float(error.std()) < float(stated) < 1.5 * float(error.std())
    uniform = float((values[2] - values[0]).std()) * math.sqrt(1 / 60 - 1 / 200)
    assert float(error.std()) < 0.5 * uniform  # rows are drawn where the differences are


def test_sums_over_a_draw_of_unequal_chances_are_those_of_all_rows():
    sizes = torch.tensor([0.1, 0.5, 1.0, 1.0, 2.0, 4.0, 30.0], dtype=F64)
    y = torch.tensor([1.0, -2.0, 3.0, 5.0, 4.0, 7.0, 100.0], dtype=F64)
    everyone, generator = Drawn.all(7, y), torch.Generator().manual_seed(0)
    sums, variances = [], []
    for _ in range(4000):
        now = draw(everyone, sizes, torch.rand(7, generator=generator, dtype=F64), 4)
        assert len(now.rows) == 4
        sums.append(float((y[now.rows] / now.chance).sum()))
        variances.append(float(((1 - now.given) * (y[now.rows] / now.chance).square()).sum()))
    found, stated = torch.tensor(sums, dtype=F64), torch.tensor(variances, dtype=F64)
    assert abs(float(found.mean() - y.sum())) < 4 * float(found.std()) / math.sqrt(4000)
    assert abs(float(found.var() - stated.mean())) < 4 * float(stated.std() / math.sqrt(4000) + 0.03 * found.var())


def test_what_readings_tell_is_not_sampled():
    generator = torch.Generator().manual_seed(0)
    readings = torch.randn(1000, 3, generator=generator, dtype=F64)
    rough = torch.randn(1000, generator=generator, dtype=F64)
    fine = rough + 2 * readings[:, 0] + 0.01 * torch.randn(1000, generator=generator, dtype=F64)
    telescope = told([rough, fine], readings, [1, 8])
    telescope.draw([100], math.inf)
    found = telescope.estimate()
    assert abs(found.value - float(fine.mean())) < 4 * math.sqrt(found.variance)
    assert math.sqrt(found.variance) < 0.01  # of .19 without


def test_rows_are_allotted_by_variance_and_cost():
    rough = torch.zeros(10_000, dtype=F64)
    telescope = told([rough, rough, rough], rough[:, None], [1, 4, 16])
    first, second = telescope.allocate([1.0, 0.1], 20_000)
    assert first / second == pytest.approx(10, rel=0.01)
    assert 4 * first + 16 * second == pytest.approx(10_000, rel=0.01)


def test_a_finer_level_is_held_to_have_some_variance_if_the_one_before_has():
    generator = torch.Generator().manual_seed(0)
    rough = torch.randn(500, generator=generator, dtype=F64)
    fine = rough + torch.randn(500, generator=generator, dtype=F64)
    finest = fine + 1.0  # the same in all rows: of 20 none tells of another
    telescope = told([rough, fine, finest], rough[:, None], [1, 2, 4])
    telescope.draw([500, 20], math.inf)
    assert math.sqrt(telescope.estimate().variance) == pytest.approx(0.5 * 0.01 / math.sqrt(20), rel=0.3)


def test_degrees_of_freedom_are_few_where_one_row_holds_most_of_a_variance():
    even = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=F64).square()
    assert freedom(even) == pytest.approx(20_000, rel=0.1)
    assert freedom(torch.tensor([100.0, 1.0, 1.0, 1.0])) < 3
    assert math.isinf(freedom(torch.zeros(3)))


def tiny() -> GaussianMixture:
    """A wide component, and two of 2 in 100 rows each and a hundredth of its width."""
    weights, means = torch.tensor([1.0, 0.02, 0.02], dtype=F64), torch.tensor([[0.0, 0], [3, 0], [0, 3]], dtype=F64)
    return GaussianMixture(VP, weights, means, torch.tensor([[1.0], [1e-4], [1e-4]], dtype=F64).expand(3, 2))


@pytest.mark.parametrize(("n", "seed"), [(200, 0), (3000, 7)])
def test_rare_and_narrow_components_are_weighed_finely(n, seed):
    model = tiny()
    x = model.sample(n, seed=seed)
    found = dataset_log_prob(SDESampler(VP, model), x, density=DATA, seed=seed)  # of the seed of the data
    low, high = found.interval(0.9999)  # one of 95 in 100 misses for 1 seed in 20: those are counted below
    assert low <= float(model.data_log_prob(x).mean()) <= high
    low, high = found.interval()
    assert high - low < 0.15


@pytest.mark.slow
@pytest.mark.parametrize(("n", "pool"), [(200, 4000), (1000, 4000)])
def test_of_200_intervals_93_in_100_hold_the_truth_of_rare_components(n, pool):
    pooled = Pool.of(SDESampler(VP, tiny()), tiny(), pool, seed=1)
    assert covered([pooled.trial(seed, n=n) for seed in range(200)]) >= 0.93


def test_outliers_are_weighed_for_certain_and_told_of():
    model = tiny()
    x = model.sample(200, seed=0)
    for value in (1e3, 1e30):
        x[7] = value
        with pytest.warns(LikelihoodWarning, match="steps still differ so much from those of 24 that they may"):
            found = dataset_log_prob(SDESampler(VP, model), x, density=DATA, seed=0)
        low, high = found.interval()
        assert low <= float(model.data_log_prob(x).mean()) <= high
        assert high - low < 1e-3 * abs(found.value)


def test_an_error_that_rests_on_few_rows_is_told_of():
    model = tiny()
    x = model.sample(200, seed=0)
    x[:8] = torch.arange(8, dtype=F64)[:, None] * 50 + 100
    with pytest.warns(LikelihoodWarning, match=r"rests on few rows that lie far .* or ask log_prob\(data\).mean\(\)"):
        found = dataset_log_prob(SDESampler(VP, model), x, density=DATA, seed=7)
    assert found.freedom < 4
    low, high = found.interval(0.9999)
    assert low <= float(model.data_log_prob(x).mean()) <= high


def test_too_few_steps_are_told_of():
    with pytest.warns(
        LikelihoodWarning,
        match=r"of 8 steps still differ so .* may be off by 0\.1",
    ):
        dataset_log_prob(SDESampler(VP, tiny()), tiny().sample(200, seed=0), steps=(4, 8), density=DATA, seed=7)


def test_a_budget_that_is_advised_is_enough():
    sampler, x = plane(20)
    with pytest.raises(ValueError, match="give 83, more rows, or fewer steps=, or ask"):
        dataset_log_prob(sampler, x, seed=0)
    assert dataset_log_prob(sampler, x, seed=0, budget=83).evaluations_per_row <= 83


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
    (weigh(), V, "88 each: give 56, more rows, or fewer steps=, or ask log_prob(data).mean()"),
    (weigh(budget="much"), T, "budget must be a number, got 'much'"),
    (weigh(budget=math.nan), V, "budget must be positive and finite, got nan"),
    (weigh(X[:1], budget=99), V, "weighs 16 rows finely or more, got 1: ask log_prob(data).mean()"),
    (weigh(X[:0]), V, "data is an empty batch"),
    (weigh(X / 0), V, "data holds 64 non-finite values"),
    (weigh(X.long()), T, "data has dtype torch.int64"),
    (weigh(X[:, :1]), V, "data has event shape (1,)"),
    (weigh(method=Method(DormandPrince())), T, "fixed steps, but DormandPrince(rtol=1e-05, atol=1e-05"),
    (weigh(method=Method(steps=8)), V, "give steps=(6, 24, 64), and to a method solver=, trace= and data_std= alone"),
    (weigh(method=Method(solver_error=False)), V, "the levels compare solves of several numbers of steps"),
    (weigh(steps=(8, 8)), V, "steps must rise, from a rough solve to a fine one, such as (6, 24, 64), got (8, 8)"),
    (
        weigh(steps=(1, 2)),
        V,
        "steps=(1, 2) begin with 1, too few for the next to tell what is left",
    ),
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
