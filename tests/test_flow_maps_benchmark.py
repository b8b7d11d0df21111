"""Claim: `benchmarks/flow_maps.py` measures what it says, distances of ends and two jumps against one; what has to hold
is told as missed where it does not; and the page of flow maps shows the tables of the committed figures."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sde_diffusion import EDMSDE, FlowMap, predict
from sde_diffusion.denoiser.analytic import Gaussian

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "flow_maps.json"


@pytest.fixture
def bench(monkeypatch):
    """The modules of the benchmark, imported as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = {"main": "flow_maps", "exact": "_flow_maps_exact", "report": "_flow_maps_report", "problems": "_problems"}
    return SimpleNamespace(**{name: importlib.import_module(module) for name, module in names.items()})


class Still(torch.nn.Module):
    """A net whose map of round Gaussian data, of standard deviation 1, is exact, as in the angle nothing moves; and a
    push by the second time."""

    def __init__(self, push):
        super().__init__()
        self.push = torch.nn.Parameter(torch.tensor(push))

    def forward(self, x, t, until=None):
        return self.push * until[:, None] + 0 * x


def test_ends_are_held_against_those_of_the_exact_flow_in_standard_deviations_of_the_data(bench):
    sde, c = EDMSDE(), 2.0
    model = Gaussian(sde, torch.zeros(2, dtype=torch.float64), c**2)
    case = bench.problems.Case("one", sde, model, (2,), lambda n, s: model.sample(n, seed=s))
    problem = bench.exact.Exact.of(case, 200)
    exact = model.flow(problem.noise, sde.t_max, sde.t_min)
    torch.testing.assert_close(problem.x0, exact, rtol=1e-3, atol=1e-3)
    shift = torch.tensor([0.6, 0.8]).double()
    found = problem.far(problem.x0 + shift)
    assert found["rms"] == pytest.approx(math.sqrt(0.5) / c)
    assert found["median"] == pytest.approx(math.sqrt(0.5) / c)
    assert problem.far(problem.x0 + 3 * c * shift)["energy"] > 1.0
    assert abs(problem.far(problem.x0)["energy"]) < 0.1


def test_two_jumps_are_one_where_the_average_velocity_is_a_constant_and_not_where_it_follows_the_end(bench):
    real = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fast = FlowMap(Still(0.0), EDMSDE(), predict.edm, shape=(2,))
    assert bench.exact.defect(fast, real) < 1e-6
    assert bench.exact.defect(FlowMap(Still(1.0), EDMSDE(), predict.edm, shape=(2,)), real) > 0.1
    fast.reach = "data"
    assert bench.exact.defect(fast, real) is None


def test_a_row_takes_the_place_of_its_like_and_no_other(bench):
    rows = [{"method": "default"}, {"method": "shortcut", "seed": 0}, {"method": "shortcut", "seed": 1}]
    new = {"method": "shortcut", "seed": 0, "steps": 3}
    assert bench.main.kept(rows, new) == [rows[0], rows[2], new]


def test_what_is_not_shown_is_told_as_missed(bench):
    def row(seed, rms):
        calls = {k: {"rms": rms, "median": rms / 2, "energy": rms / 100} for k in ("1", "2", "4")}
        return {"method": "trajectory", "seed": seed, "steps": 2000, "calls": calls, "semigroup": rms / 4}

    good = {"plane": {"rows": [row(0, 0.1), row(1, 0.12)]}}
    assert all(check.holds for check in bench.report.checks(good))
    bad = {"plane": {"rows": [row(0, 0.1), row(1, 0.5)]}}
    found = bench.report.checks(bad)
    assert [check.holds for check in found] == [False] * 4
    assert str(found[0]) == "MISSED plane, trajectory: rms at 1 <= 0.15: 0.5000"
    assert bench.report.table("plane", good["plane"]["rows"]).splitlines()[2] == (
        "| trajectory, 2,000 steps | 1 | 0.11 ± 0.01 | 0.055 ± 0.007 | 0.0011 ± 0.0001 | 0.0275 ± 0.004 |"
    )


def test_digits_are_held_to_their_teacher(bench):
    def row(method, figures, **more):
        return {"method": method, "seed": 0, "calls": figures} | more

    teacher = {"35": {"test": 0.08, "teacher": 0.0, "right": 0.98, "frechet": 8.0}}
    ours = {k: {"test": 0.09, "teacher": 0.03, "right": 0.98, "frechet": 9.0} for k in ("1", "2", "4")}
    result = {"digits": {"rows": [row("teacher", teacher), row("shortcut", ours, steps=9)]}}
    assert [check.holds for check in bench.report.checks(result)] == [True] * 5
    ours["1"] |= {"test": 0.1, "right": 0.9}
    assert [check.holds for check in bench.report.checks(result)] == [False, True, True, True, False]
    assert [check.holds for check in bench.report.checks({"images": result["digits"]})] == [True]


def test_the_page_shows_the_committed_figures(bench):
    page, result = (ROOT / "docs" / "flow-maps.md").read_text("utf-8"), json.loads(RESULTS.read_text("utf-8"))
    for name in bench.report.TITLES:
        if name in result:
            assert bench.report.table(name, result[name]["rows"]) in page, f"{result['command']} --table"


def test_tables_take_the_place_of_those_below_their_titles(bench):
    rows = [{"method": "default", "seed": None, "calls": {"2": {"rms": 1.0, "median": 2.0, "energy": 3.0}}}]
    page = "# One\n\n### Eight Gaussians in the plane\n\nWords, $|x|$.\n\n| old |\n| --- |\n\n### Other\n\n| kept |\n"
    made = bench.report.told(page, {"plane": {"rows": rows}})
    table = bench.report.table("plane", rows)
    assert made == page.replace("| old |\n| --- |\n", table + "\n")
    assert bench.report.told(made, {"plane": {"rows": rows}}) == made
