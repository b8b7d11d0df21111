"""Claim: the tasks of `benchmarks/sbi.py` have the posteriors that their simulators have, and C2ST is an accuracy."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported as when the benchmark is run."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    return importlib.import_module("_sbi_tasks")


@pytest.mark.parametrize("name", ["two moons", "Gaussian mixture"])
def test_a_draw_from_the_posterior_of_a_simulation_is_one_from_the_prior(tasks, name):
    task, n = tasks.TASKS[name], 2000
    generator = torch.Generator().manual_seed(0)
    x = task.simulate(task.prior(n, generator), generator)
    u = torch.cat([task.posterior(row, 1, generator) for row in x]) / task.half
    for value, mean, variance in ((u, 0, 1 / 3), (u.square(), 1 / 3, 4 / 45), (u.prod(1), 0, 1 / 9)):
        error, se = value.mean(0) - mean, (variance / n) ** 0.5
        print(f"{name}: {error.tolist()}, SE {se:.4f}")
        assert (error.abs() < 4 * se).all()


def test_two_moons_has_two_crescents_at_a_tenth_from_where_they_should_be(tasks):
    task, x = tasks.TASKS["two moons"], torch.tensor([0.1, -0.2], dtype=torch.float64)
    theta = task.posterior(x, 4000, torch.Generator().manual_seed(0))
    u, v = theta.sum(1) / 2**0.5, (theta[:, 1] - theta[:, 0]) / 2**0.5
    radius = torch.hypot(x[0] + u.abs() - 0.25, x[1] - v)
    assert abs(float(radius.mean()) - 0.1) < 4 * 0.01 / 4000**0.5
    assert abs(float(radius.std()) - 0.01) < 4 * 0.01 / 8000**0.5
    assert abs(float((u > 0).double().mean()) - 0.5) < 4 * 0.5 / 4000**0.5


@pytest.mark.slow
def test_c2st_is_a_half_for_one_law_and_an_accuracy_for_two(tasks):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(1000, 2, generator=generator), torch.randn(1000, 2, generator=generator)
    assert abs(tasks.c2st(x, y) - 0.5) < 0.04
    assert abs(tasks.c2st(x, y + torch.tensor([2.0, 0.0])) - 0.8413) < 0.04  # Phi(1), by the better of half-planes
