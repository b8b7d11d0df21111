"""Claim: the problems of `benchmarks/posterior.py` have the posteriors, the evidence and the laws that it holds samples
against, and what it must show is told as missed where it is not."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sde_diffusion import SDESampler
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.guidance import Matrix, Posterior
from sde_diffusion.solvers import DPMSolverPP

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bench(monkeypatch):
    """The modules of the benchmark, imported as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = ("cells", "digits", "report", "tilted")
    return SimpleNamespace(**{name: importlib.import_module(f"_posterior_{name}") for name in names})


@pytest.mark.parametrize("d_y", [1, 4])
def test_a_cell_is_the_mixture_that_it_says_with_its_posterior_and_evidence(bench, d_y):
    exact = bench.cells.problem(bench.cells.Cell(8, d_y, 0.5), 0)
    model = exact.model
    mixture = GaussianMixture(model.sde, model.log_weights.exp(), model.means, 1.0)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for at in model.levels([0.05, 0.4, 1.0]):
        found, wanted = model.predict(3 * x, at), mixture.predict(3 * x, at)
        torch.testing.assert_close(found.data, wanted.data)
        torch.testing.assert_close(found.noise, wanted.noise)
    assert model.data_std == pytest.approx(mixture.data_std)
    assert exact.log_evidence() == pytest.approx(mixture.log_evidence(exact.a, exact.y, 0.5))
    posterior = mixture.posterior(exact.a, exact.y, 0.5)
    n = 4000
    draws, others = exact.exact(n, torch.Generator().manual_seed(1)), posterior.sample(n, seed=2)
    for f in (lambda v: v, torch.square):
        a, b = f(draws), f(others)
        error = ((a.var(0) + b.var(0)) / n).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all()
    judge = bench.cells.Judge(exact, 500, 0)
    assert 0.6 < judge.ratio(others[:500]) < 1.6
    assert judge.ratio(others[:500] + 3 * judge.floor) > 1.5
    assert judge.ratio(torch.full((500, 8), math.nan)) == math.inf


@pytest.mark.slow
def test_noise_in_the_steps_takes_away_half_of_the_error_of_a_rule(bench):
    near: list[float] = []
    far: list[float] = []
    for seed in range(3):
        exact = bench.cells.problem(bench.cells.Cell(8, 4, 0.1), seed)
        model, judge = Posterior(exact.model, Matrix(exact.a), exact.noise), bench.cells.Judge(exact, 500, seed)
        for found, solver in ((near, None), (far, DPMSolverPP(2))):
            sampler = SDESampler(model.sde, model, solver=solver, steps=19)
            found.append(judge.ratio(sampler.sample(500, seed=torch.Generator().manual_seed(seed), y=exact.y)))
    print(f"{near} by the default, {far} by the flow")
    assert sum(near) < 0.75 * sum(far)


def test_the_tilted_law_is_the_integral_of_its_powers(bench):
    law = bench.tilted.PLANE
    (x,) = law.exact(2.0, 20_000, 1, torch.Generator().manual_seed(0))
    draws = law.every.sample(200_000, seed=1)
    weight = torch.exp(2 * (law.one.data_log_prob(draws) - law.every.data_log_prob(draws)))
    wanted = (weight[:, None] * draws).sum(0) / weight.sum()
    spread = (weight[:, None] * (draws - wanted)).std(0) / weight.mean() / math.sqrt(len(draws))
    assert ((x.mean(0) - wanted).abs() < 4 * (spread.square() + x.var(0) / len(x)).sqrt()).all()


def test_half_a_digit_has_the_weights_of_bayes(bench):
    points = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half = bench.digits.Half(points, 0.5, 3)
    logs = [
        -sum((a - b) ** 2 for a, b in zip(p[:2].flatten().tolist(), half.y.tolist(), strict=True)) / 0.5 for p in points
    ]
    total = sum(math.exp(v) for v in logs)
    assert half.weights.tolist() == pytest.approx([math.exp(v) / total for v in logs])
    assert half.variation(points + 1e-3, half.weights) == pytest.approx(0.0, abs=1e-12)
    one = int(half.weights.argmax())
    assert half.variation(points[[one]], torch.ones(1).double()) == pytest.approx(1 - float(half.weights.max()))


def test_what_is_not_shown_is_told_as_missed(bench):
    means = {"particles": 1.5, "Moments, 20": 3.4, "Moments, 100": 3.0, "azula MMPS": 2.0}
    methods = {name: {"mean": mean, "ways": [2.2, 2.0]} for name, mean in means.items()}
    row = {"d": 8, "d_y": 1, "noise": 1.0, "methods": methods}
    found = bench.report.checks({"cells": [row]})
    assert [check.holds for check in found] == [False] * 4
    assert str(found[0]) == "MISSED 8, 1, 1: particles over the floor <= 1.4: 1.50"
    methods["particles"]["mean"], methods["Moments, 100"]["mean"] = 1.0, 2.4
    assert [check.holds for check in bench.report.checks({"cells": [row]})] == [True, True, True, False]
