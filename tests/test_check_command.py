"""Claim: `sde-diffusion check` runs the check that fits and tells by its status what it found; an error is one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sde_diffusion.cli import main as cli

MINE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar

import torch

from nearby import SLOW
from sde_diffusion import EDMSDE, Network, VPSDE
from sde_diffusion.solvers import Facts, RungeKutta, Solver


class Doubled(VPSDE):
    def rates(self, t):
        return tuple(SLOW * v for v in super().rates(t))


@dataclass(frozen=True)
class Ralston(RungeKutta):
    nodes: ClassVar = (0.0, 2 / 3)
    matrix: ClassVar = ((2 / 3,),)
    weights: ClassVar = (1 / 4, 3 / 4)
    facts = Facts(order=2, evaluations=2, in_time=True)


class Needing(VPSDE):
    def __init__(self, knob):
        super().__init__()


class Failing(VPSDE):
    def __init__(self):
        raise ValueError("no such thing as me")


small = EDMSDE(0.01, 20.0)
model = Network(torch.nn.Identity(), small, shape=(2,))
model.net.forward = lambda x, t: 0.1 * x
number = 3
"""


def call(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "nearby"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "nearby.py").write_text("SLOW = 2\n")
    return tmp_path / "mine.py"


def test_a_process_a_solver_and_a_model_are_checked_each_by_its_check(mine: Path, capsys) -> None:
    assert call("check", f"{mine}:small") == 0
    assert "check_sde(EDMSDE(sigma_min=0.01, sigma_max=20.0))\npassed: " in capsys.readouterr().out
    assert call("check", "mine:Ralston") == 0
    out = capsys.readouterr().out
    assert "check_solver(Ralston())" in out
    assert "order on a mixture, Brownian" in out
    assert call("check", "mine.py:model") == 0
    assert "check_denoiser(Network, EDMSDE(" in capsys.readouterr().out
    assert call("check", "sde_diffusion:VPSDE") == 0


def test_a_file_may_have_the_name_of_a_module_of_python(mine: Path) -> None:
    mine.rename("random.py")
    assert call("check", "random.py:small") == 0
    assert hasattr(sys.modules["random"], "Random")


def test_what_does_not_hold_is_status_one(mine: Path, capsys) -> None:
    assert call("check", "mine.py:Doubled") == 1
    shown = capsys.readouterr()
    assert "FAIL  Fokker-Planck equation" in shown.out
    assert shown.err == ""


def test_the_report_is_written_as_json_and_as_a_picture(mine: Path, tmp_path: Path) -> None:
    assert call("check", "mine.py:Doubled", "--json", "r.json", "--plot", tmp_path / "r.png") == 1
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["target"] == "mine.py:Doubled"
    assert found["passed"] is False
    assert {"claim", "measured", "bound", "passed", "required", "note"} == set(found["entries"][0])
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("VPSDE",), "wanted module:Name or path/to/file.py:Name, got 'VPSDE'"),
        ((":VPSDE",), "wanted module:Name or path/to/file.py:Name, got ':VPSDE'"),
        (("mine:VPSDE()",), "wanted module:Name or path/to/file.py:Name, got 'mine:VPSDE()'"),
        (("no.py:X",), "there is no file no.py"),
        (("no.such:X",), "module no.such cannot be imported: ModuleNotFoundError: No module named 'no'"),
        (("mine.py:X",), "mine.py has no X; it has Doubled, Failing, Needing, Ralston, model, small"),
        (("json:X",), "json has no X"),
        (("mine.py:Needing",), "Needing cannot be made without arguments ("),
        (("mine.py:Failing",), "no such thing as me"),
        (("breaks.py:Breaks",), "Breaks cannot be made without arguments (KeyError: 'missing'): give an instance"),
        (("mine.py:number",), "mine.py:number is a int: wanted an SDE, a Solver or a Denoiser, or a class of one"),
        (("sde_diffusion:SDESampler",), "SDESampler cannot be made without arguments"),
        (("sde_diffusion:SDE",), "SDE cannot be made without arguments"),
        (("bad.py:X",), "bad.py cannot be imported: SyntaxError"),
        (("mine.py:small", "--json", "no/r.json"), "--json: there is no folder"),
        (("mine.py:small", "--plot", "no/r.png"), "--plot: there is no folder"),
    ],
)
def test_an_error_is_one_line_and_status_two(mine: Path, words: tuple[str, ...], message: str, capsys) -> None:
    Path("bad.py").write_text("def (\n")
    Path("breaks.py").write_text("class Breaks:\n    def __init__(self):\n        raise KeyError('missing')\n")
    assert call("check", *words) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.strip().splitlines()
    assert line.startswith("sde-diffusion: error: ")
    assert message in line
    assert shown.out == ""


def test_importing_leaves_the_path_as_it_was(mine: Path) -> None:
    before = list(sys.path)
    call("check", "mine.py:number")
    call("check", "mine:number")
    assert sys.path == before


def test_help_tells_what_may_be_named(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", "--help"])
    assert stop.value.code == 0
    assert "or FILE.py:NAME" in " ".join(capsys.readouterr().out.split())
