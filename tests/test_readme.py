"""Claim: README.md and the docs show what the code gives: the table of solvers, the output, the measured figures."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from sde_diffusion import solvers
from sde_diffusion.sde import schedules

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("error::sde_diffusion.SamplingWarning")  # what we show must fit
README = (ROOT / "README.md").read_text(encoding="utf-8")
BASES = {"Inpaint", "Jump", "Solver", "Multistep", "RungeKutta", "Adaptive", "EmbeddedRungeKutta"}
NUMBER = re.compile(r"-?\d+\.\d+")


def script(name, monkeypatch):
    """A script of benchmarks/, imported as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_solvers_is_the_one_the_script_prints(monkeypatch):
    made = script("solver_table", monkeypatch)
    shown = README.split(made.BEGIN)[1].split(made.END)[0].strip()
    assert shown == made.table(), "run: python benchmarks/solver_table.py --write, and for a new solver orders.py first"


def test_the_table_of_solvers_names_every_public_solver(monkeypatch):
    made = script("solver_table", monkeypatch)
    classes = {name: value for name, value in vars(solvers).items() if isinstance(value, type)}
    public = {name for name, value in classes.items() if issubclass(value, solvers.Solver)}
    assert {type(s).__name__ for s in made.examples()} == public - BASES


def test_the_measured_orders_of_the_page_are_the_committed_ones(monkeypatch):
    script("solver_table", monkeypatch)
    made = script("orders", monkeypatch)
    rows = json.loads(made.RESULTS.read_text(encoding="utf-8"))["rows"]
    shown = made.PAGE.read_text(encoding="utf-8").split(made.BEGIN)[1].split(made.END)[0].strip()
    assert shown == made.markdown(rows), "run: python benchmarks/orders.py --tables"


def test_every_claimed_order_is_measured_and_holds(monkeypatch):
    script("solver_table", monkeypatch)
    made = script("orders", monkeypatch)
    rows = {row["solver"]: row for row in json.loads(made.RESULTS.read_text(encoding="utf-8"))["rows"]}
    claims = {made.spelling(s): s.facts.order for s in made.candidates()}
    assert {name: row["claim"] for name, row in rows.items()} == claims, "run: python benchmarks/orders.py"
    measured = {frozenset(row["orders"]) for row in rows.values()}  # a process in a file of its own may wait for a run
    assert len(measured) == 1, "solvers measured on different processes, run: python benchmarks/orders.py"
    classic = {name for name in made.orders.SDES if hasattr(schedules, name)}
    assert len(classic) >= 7
    assert classic <= next(iter(measured)) <= set(made.orders.SDES)
    below = {name: found for name, row in rows.items() if (found := made.missed(row))}
    assert not below, below


def test_a_committed_order_is_measured_again(monkeypatch):
    script("solver_table", monkeypatch)
    made = script("orders", monkeypatch)
    rows = {row["solver"]: row for row in json.loads(made.RESULTS.read_text(encoding="utf-8"))["rows"]}
    for solver in (solvers.Heun(), solvers.EulerMaruyama()):
        again = made.measure(solver, ["EDMSDE"])["orders"]["EDMSDE"]
        assert again == pytest.approx(rows[made.spelling(solver)]["orders"]["EDMSDE"], abs=0.02)


def test_the_first_example_prints_what_the_readme_says(monkeypatch, tmp_path, capsys):
    code = README.split("```python\n")[1].split("```")[0]
    said = README.split("```text\n")[1].split("```")[0].strip().splitlines()
    monkeypatch.chdir(tmp_path)
    state = torch.random.get_rng_state()
    try:
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    finally:
        torch.random.set_rng_state(state)
    printed = capsys.readouterr().out.strip().splitlines()
    assert [NUMBER.sub("#", line) for line in printed] == [NUMBER.sub("#", line) for line in said]
    for mine, theirs in zip(printed, said, strict=True):
        found, shown = ([float(v) for v in NUMBER.findall(line)] for line in (mine, theirs))
        # other machines round differently, and training magnifies it
        assert found == pytest.approx(shown, rel=0.1, abs=0.05), mine


def test_the_measured_tables_of_the_docs_are_the_committed_results(monkeypatch):
    made = script("solver_errors", monkeypatch)
    result = json.loads(made.RESULTS.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8")
    assert made.markdown(result["deterministic"], "error", 2) in page
    assert made.markdown(result["stochastic"], "spread", 3) in page
    assert result["command"] in page


def test_the_table_of_the_overhead_is_what_was_measured(monkeypatch):
    made = script("overhead", monkeypatch)
    shown = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8").split(made.BEGIN)[1].split(made.END)[0].strip()
    result = json.loads(made.RESULTS.read_text(encoding="utf-8"))
    assert shown == made.markdown(result), "run: python benchmarks/overhead.py --table"


def test_the_tables_of_training_are_what_was_measured(monkeypatch):
    made = script("training", monkeypatch)
    shown = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").split(made.BEGIN)[1].split(made.END)[0].strip()
    result = json.loads(made.RESULTS.read_text(encoding="utf-8"))
    assert shown == made.markdown(result), "run: python benchmarks/training.py --table"
    assert result["speed"]["digits, U-Net, batch 128"]["median"] >= 0.97
