"""Claim: `benchmarks/latent.py` says whether what has to hold does, and the page of latent diffusion shows it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def report(monkeypatch):
    """The module that tells the figures, imported as when the benchmark is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("_latent_report")


def committed() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "latent.json").read_text(encoding="utf-8"))
    return found


def test_the_committed_figures_hold_and_stand_on_the_page(report):
    result, page = committed(), (ROOT / "docs" / "latent.md").read_text(encoding="utf-8")
    assert all(told.startswith("holds: ") for told in report.checks(result))
    assert report.table(result) in page
    assert report.told(page, result) == page


def test_what_does_not_hold_is_told_as_missed(report):
    result = committed()
    far = {row["method"]: row["frechet"] for row in result["rows"]}
    for row in result["rows"]:
        if row["method"] == "codes":
            row["frechet"] = 1.21 * far["pixels"]
    result["milliseconds a sample"]["codes"] = 0.26 * result["milliseconds a sample"]["pixels"]
    told = report.checks(result)
    assert told[0] == "MISSED: codes have 1.21 of the distance of pixels, wanted at most 1.2"
    assert told[1] == "MISSED: a step of them 0.260 of the cost, wanted at most 0.25"
