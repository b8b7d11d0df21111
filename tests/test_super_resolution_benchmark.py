"""Claim: `benchmarks/super_resolution.py` measures what it says; what has to hold is told as missed where it does not;
and the page of cascades shows the tables of the committed figures."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path

import pytest
import torch
from cascades import WIDE, gaussian, stage

from sde_diffusion.cascade import LowResolution

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "super_resolution.json"


@pytest.fixture
def bench(monkeypatch):
    """A module of the benchmark by its name, imported as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_the_page_shows_the_tables_of_the_committed_figures_and_all_that_has_to_hold_does(bench):
    report, result = bench("_super_report"), json.loads(RESULTS.read_text())
    page = (ROOT / "docs" / "cascades.md").read_text(encoding="utf-8")
    shown = page.split("<!-- tables -->\n")[1].split("\n<!-- end -->")[0]
    assert shown.strip() == report.tables(result), "run: python benchmarks/super_resolution.py --table"
    assert all(line.startswith("held: ") for line in report.checks(result))
    worse = copy.deepcopy(result)
    worse["digits"]["accuracy"]["real"] = 1.1
    worse["photos"]["content"][0]["from_noised"] = 1.0
    assert sum(line.startswith("MISSED: ") for line in report.checks(worse)) == 2


def test_the_content_that_an_exact_stage_keeps_is_the_level_off_the_noised_low_resolution(bench):
    law, low = gaussian((1, 4)), LowResolution(2, context="haze")
    up, n = stage(law, low, level=0.3, steps=20), 2000
    mean, covariance = law
    root = torch.linalg.cholesky(covariance)
    x = mean.flatten() + torch.randn(n, 4, generator=torch.Generator().manual_seed(1), dtype=WIDE) @ root.T
    coarse = low.shrink(x.reshape(n, 1, 4))
    found = bench("_super_stages").content(up, coarse, up.sample(low=coarse, seed=0), 0)
    assert found["level"] == 0.3
    assert abs(found["from_noised"] - 0.3) < 4 * 0.3 / (2 * n * 2) ** 0.5
    assert found["from_clean"] < 2**0.5 * 0.3
