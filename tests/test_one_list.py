"""Claim: a new process or solver is its own file and one line in one list; all else that names them finds it there.

A copy of the package gets a process and a solver in files of their own, and a line for each. A fresh interpreter, which
sees the copy alone, then looks for both in every place that was a list once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sde_diffusion import predict, solvers
from sde_diffusion.sde import processes

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "sde_diffusion"

# The list, the new file, the module of the base: what a move of the files changes.
PROCESSES, PROCESS_FILE, SDE = "sde/processes.py", "sde/planted_process.py", f"{PACKAGE}.sde.base"
SOLVERS, SOLVER_FILE, BASE = "solvers/__init__.py", "solvers/ode/planted_solver.py", f"{PACKAGE}.solvers.base"
TABLEAU = f"{PACKAGE}.solvers.ode.runge_kutta"

PROCESS = f'''
from dataclasses import dataclass

import torch

from {SDE} import GaussianSDE


@dataclass(frozen=True)
class PlantedProcess(GaussianSDE):
    """Of unit variance, at a rate of its own."""

    rate: float = 1.0
    t_min = 1e-3
    t_max = 4.0

    @classmethod
    def named(cls):
        return {{"planted-process": PlantedProcess(2.0)}}

    def alpha(self, t):
        return torch.exp(-self.rate * t)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-2 * self.rate * t))
'''
SOLVER = f'''
from dataclasses import dataclass
from typing import ClassVar

from {BASE} import Facts
from {TABLEAU} import RungeKutta


@dataclass(frozen=True)
class PlantedSolver(RungeKutta):
    """The method of two stages with the least error.

    References:
        Ralston, 1962.
    """

    nodes: ClassVar = (0.0, 2 / 3)
    matrix: ClassVar = ((2 / 3,),)
    weights: ClassVar = (1 / 4, 3 / 4)
    facts = Facts(order=2, evaluations=2, in_time=True)

    @classmethod
    def named(cls):
        return {{"planted-solver": PlantedSolver()}}
'''
# Run in the copy: what it finds, as one line of JSON.
LOOK = """
import contextlib, io, json, sys
import numpy as np
import sde_diffusion as sd
from sde_diffusion import solvers, testing
from sde_diffusion.cli.main import main
from sde_diffusion.nets import MLP
from sde_diffusion.testing import orders
from sde_diffusion.training import load_checkpoint, save_checkpoint
import solver_table, zoo

def said(*words):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(words)
    return out.getvalue()

found = {"package": sd.__file__}
found["choices"] = ["planted-process" in said("train", "--help"), "planted-solver" in said("sample", "--help")]
np.save("x.npy", np.random.default_rng(0).normal(size=(64, 2)).astype("float32"))
with contextlib.redirect_stdout(io.StringIO()):
    found["train"] = main(
        "train --data x.npy --out model --sde planted-process --steps 2 --batch-size 16 --width 8".split()
    )
    found["sample"] = main("sample --checkpoint model --solver planted-solver --steps 3 --n 5 --out y.npy".split())
found["samples"] = np.load("y.npy").shape
found["trained"] = repr(load_checkpoint("model").model.sde)
save_checkpoint("again", sd.Network(MLP(2, hidden=8), sd.PlantedProcess(0.5), sd.predict.noise, shape=(2,)))
found["saved"] = repr(load_checkpoint("again").model.sde)
found["zoo"] = [solvers.PlantedSolver() in zoo.ODE_SOLVERS, sd.PlantedProcess() in zoo.SMOOTH_SDES]
report = testing.check_solver(solvers.PlantedSolver(), orders.SDES["PlantedProcess"])
found["suite"] = [report.passed, testing.check_sde(orders.SDES["PlantedProcess"]).passed]
found["table"] = [row for row in solver_table.table().splitlines() if "`PlantedSolver()`" in row]
print(json.dumps(found))
"""


def add_a_line(file: Path, line: str) -> None:
    """Puts one more export behind the last of a list."""
    text = file.read_text(encoding="utf-8")
    *_, last = re.finditer(r"^from \S+ import (\w+) as \1$", text, re.MULTILINE)
    file.write_text(f"{text[: last.end()]}\n{line}{text[last.end() :]}", encoding="utf-8")


def module(file: str) -> str:
    return f"{PACKAGE}.{file.removesuffix('.py').replace('/', '.')}"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("tests/zoo.py", "benchmarks/solver_table.py"):
        shutil.copy(ROOT / file, folder)
    (folder / PACKAGE / PROCESS_FILE).write_text(PROCESS, encoding="utf-8")
    (folder / PACKAGE / SOLVER_FILE).write_text(SOLVER, encoding="utf-8")
    add_a_line(folder / PACKAGE / PROCESSES, f"from {module(PROCESS_FILE)} import PlantedProcess as PlantedProcess")
    add_a_line(folder / PACKAGE / SOLVERS, f"from {module(SOLVER_FILE)} import PlantedSolver as PlantedSolver")
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert answer["package"] == str(folder / PACKAGE / "__init__.py")
    return answer


@pytest.mark.slow
def test_both_are_choices_of_the_command_line_and_work_there(found: dict[str, Any]) -> None:
    assert found["choices"] == [True, True]
    assert (found["train"], found["sample"], found["samples"]) == (0, 0, [5, 2])


def test_a_checkpoint_names_the_process(found: dict[str, Any]) -> None:
    assert (found["trained"], found["saved"]) == ("PlantedProcess(rate=2.0)", "PlantedProcess(rate=0.5)")


def test_the_conformance_suite_and_the_zoo_of_the_tests_hold_both(found: dict[str, Any]) -> None:
    assert found["suite"] == [True, True]
    assert found["zoo"] == [True, True]


def test_the_table_of_the_readme_has_a_row_for_the_solver(found: dict[str, Any]) -> None:
    (row,) = found["table"]
    assert row == "| `PlantedSolver()` | any SDE | 2 | – | 2 | no | Ralston, 1962 |"


@pytest.mark.parametrize("listed", [processes, solvers], ids=lambda listed: str(listed.__name__))
def test_no_name_and_no_example_stands_twice(listed: Any) -> None:
    names = [name for cls in listed.CLASSES for name in cls.named()]
    assert len(set(names)) == len(names)
    shown = listed.examples()
    assert len(set(shown)) == len(shown)
    assert {cls.__name__ for cls in listed.CLASSES} <= set(re.findall(r"\w+", repr(shown)))


def test_a_parametrisation_has_one_name() -> None:
    assert len({type(kind) for kind in predict.NAMES.values()}) == len(predict.NAMES)
    assert all(getattr(predict, name) is kind for name, kind in predict.NAMES.items())


def test_the_page_of_solvers_shows_what_they_export() -> None:
    page = (ROOT / "docs" / "api" / "solvers.md").read_text(encoding="utf-8")
    shown = re.split(r",\s*", re.findall(r"members: \[(.*)\]", page)[0])
    lines = (ROOT / PACKAGE / SOLVERS).read_text(encoding="utf-8")
    assert sorted(shown) == sorted(re.findall(r"^from \S+ import (\w+) as \1$", lines, re.MULTILINE))
