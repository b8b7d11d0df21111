"""Claim: `benchmarks/control.py` measures how edges agree as it says, and the page shows the committed figures."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "control.json"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the benchmark, imported as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("control")


def test_the_f1_of_edges_is_that_of_a_count_by_hand(bench: Any) -> None:
    found, wanted = torch.zeros(2, 1, 6, 6), torch.zeros(2, 1, 6, 6)
    found[0, 0, 2, 1:5] = 1  # four pixels, three of them beside the map's, and one in a picture that has none
    found[1, 0, 0, 0] = 1
    wanted[0, 0, 3, 0:3] = 1
    wanted[0, 0, 0, 5] = 1  # far from all
    precision, recall = 3 / 5, 3 / 4
    assert bench.f1(found, wanted, 1) == pytest.approx(2 * precision * recall / (precision + recall))
    assert bench.f1(found, wanted, 0) == 0
    assert bench.f1(wanted, wanted, 0) == 1


def test_edges_of_a_step_lie_on_the_step(bench: Any) -> None:
    x = torch.full((1, 1, 16, 16), -0.5)
    x[..., 8:] = 0.5
    rows, columns = bench.edges(x)[0, 0].nonzero().unbind(1)
    assert set(columns.tolist()) <= {7, 8}
    assert len(set(rows.tolist())) >= 12


def test_the_page_shows_what_was_measured_and_what_must_hold_does(bench: Any) -> None:
    report = importlib.import_module("_control_report")
    result = json.loads(RESULTS.read_text())
    page = (ROOT / "docs" / "control.md").read_text(encoding="utf-8")
    assert report.markdown(result) in page
    assert report.missed(result) == []
    worse = {
        **result["agreement"],
        "base": {"exact": 0.5},
        "bit_for_bit": False,
        "strengths": {"1": {"exact": 0.3}, "2": {"exact": 0.9}},
    }
    assert len(report.missed({**result, "agreement": worse})) == 3
