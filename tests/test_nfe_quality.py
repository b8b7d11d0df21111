"""Claim: the benchmark of few evaluations counts them, asks models at the noise level of the sampler and sums up."""

from __future__ import annotations

import importlib
import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sde_diffusion import DiscreteVPSDE, FlowSDE, SDESampler, grids
from sde_diffusion.denoiser.analytic import isotropic_mixture
from sde_diffusion.solvers import DDIM, Adams, Heun, UniPC

ROOT = Path(__file__).resolve().parents[1]
CHAIN = DiscreteVPSDE.linear(1000, 1e-4, 0.02)


@pytest.fixture
def bench(monkeypatch):
    """The modules of the benchmark, imported as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = ("counted", "problems", "nfe_measure", "our_pairs", "trained_table", "nfe_summary", "nfe_report")
    return SimpleNamespace(**{name: importlib.import_module(f"_{name}") for name in names})


def case(bench, sde=CHAIN):
    model = isotropic_mixture(sde, [[1.0, 0.0], [-1.0, 0.5], [0.2, -1.2]], std=0.3).double()
    return bench.problems.Case("three modes", sde, model, (2,), lambda n, s: model.sample(n, seed=s))


def noise(n=16):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("scales", [(1.0, 2.5), (0.2, 0.5), (2 / 7, 5 / 7)], ids=str)
def test_a_model_is_asked_at_the_noise_of_the_state_whatever_its_scale(bench, scales):
    problem = case(bench)
    model = bench.counted.Counted(problem.model)
    alpha, sigma = scales
    x0 = noise() * math.hypot(alpha, sigma)
    found = bench.counted.AnyLevel(model, {})(x0, alpha, sigma)
    exact = isotropic_mixture(FlowSDE(), [[1.0, 0.0], [-1.0, 0.5], [0.2, -1.2]], std=0.3).double()
    told = exact(x0 / (alpha + sigma), sigma / (alpha + sigma))
    assert torch.allclose(found.data, told.data, atol=1e-9)
    assert torch.allclose(found.noise, told.noise, atol=1e-9)
    assert (model.calls, model.rows) == (1, 16)


def test_beyond_the_process_a_model_is_asked_at_its_end(bench):
    problem = case(bench)
    network = bench.counted.AnyLevel(bench.counted.Counted(problem.model), {})
    there = network(noise(), 0.0, 1.0).data
    assert torch.allclose(there, problem.model(noise(), CHAIN.t_max).data, atol=1e-9)


@pytest.mark.parametrize("n", [5, 8])
def test_a_pair_that_takes_another_number_of_evaluations_is_left_out_with_the_reason(bench, n):
    problem = case(bench)
    two = bench.our_pairs.Ours("heun", problem, partial(SDESampler, solver=Heun(), grid=grids.angle))
    if n % 2:
        assert bench.nfe_measure.solve(two, problem, n, noise()).shape == (16, 2)
    else:
        with pytest.raises(bench.counted.Skip, match="another number of evaluations"):
            bench.nfe_measure.solve(two, problem, n, noise())


@pytest.mark.parametrize("solver", [DDIM(), Adams(3, "angle"), UniPC(3)], ids=repr)
def test_the_table_that_a_training_starts_from_is_the_sampler(bench, solver):
    problem = case(bench)
    pair = bench.our_pairs.Ours("pair", problem, partial(SDESampler, solver=solver, grid=grids.quadratic))
    table = bench.trained_table.of(pair, 6)
    given, run = (bench.nfe_measure.solve(p, problem, 6, noise()) for p in (pair, table))
    assert torch.allclose(given, run, atol=1e-9)


@pytest.mark.slow
def test_a_training_lessens_the_error_and_counts_what_it_takes(bench, monkeypatch):
    for name, value in (("BATCH", 16), ("HELD", 16), ("ROUNDS", 20), ("EVERY", 10), ("RATES", (3e-3,))):
        monkeypatch.setattr(bench.trained_table, name, value)
    problem = case(bench)
    pair = bench.our_pairs.Ours("pair", problem, partial(SDESampler, solver=DDIM(), grid=grids.quadratic))
    run = bench.trained_table.train(problem, 5, [pair])
    assert run.after < run.before
    # the starting table; 21 rounds of a batch; three looks at the held noise
    assert run.calls == 16 * 5 + 21 * 16 * 5 + 3 * 16 * 5


def test_the_summary_is_what_one_would_compute_by_hand(bench):
    report = bench.nfe_summary
    some = {"a": {"6": 0.2, "12": 0.1, "8": 0.3}, "b": {"6": 0.1, "12": 0.2, "8": 0.1}, "c": {"6": 0.9, "12": 0.9}}
    files: dict[str, dict[str, Any]] = {
        "one": {"peers": {"few": some, "every": {k: some[k] for k in "ab"}, "skipped": {}}},
        "two": {"peers": {"few": some, "every": {k: some[k] for k in "ab"}, "skipped": {}}},
    }
    for f, e in zip(files.values(), (0.05, 0.2), strict=True):
        f["ours"] = {"default": dict.fromkeys(("6", "8", "12"), e)}
    assert report.ratios(files, "ours", "default", "8") == pytest.approx({"one": 0.5, "two": 2.0})
    single = report.fixed(files, "peers", (6, 8, 12))
    assert single["a"]["ratio"] == pytest.approx((2 * 3 * 1) ** (1 / 3))
    assert single["c"]["ratio"] == pytest.approx((9 * report.FAR * 9) ** (1 / 3))  # too far to be measured at the third
    assert list(single) == ["b", "a", "c"]
    assert report.least(some, "8") == (0.1, "b")


def test_the_page_shows_the_committed_results_and_nothing_else(bench):
    report = bench.nfe_report
    shown = report.PAGE.read_text(encoding="utf-8").split(report.BEGIN)[1].split(report.END)[0].strip()
    told = report.page(json.loads(report.RESULTS.read_text(encoding="utf-8"))) if report.RESULTS.exists() else ""
    assert shown == told, "run: python benchmarks/nfe_quality.py --table"
