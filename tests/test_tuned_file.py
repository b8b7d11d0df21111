"""Claim: tuned samplers come back from their file; one that is not whole, or of another model, is refused.

The tables here are those of standard solvers, so that nothing is tuned.
"""

from __future__ import annotations

import copy
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import model, seal, tensors_of
from torch import Tensor

from sde_diffusion import SDE, SDESampler, grids
from sde_diffusion.denoiser.base import Wrapper
from sde_diffusion.problem import Problem
from sde_diffusion.sde import schedules
from sde_diffusion.solvers import Adams, DPMSolverPP
from sde_diffusion.training import load_checkpoint, save_checkpoint
from sde_diffusion.tuning import MadeFor, SolverTable, TableWarning, stored
from sde_diffusion.tuning.report import Candidate, Report, Verdict
from sde_diffusion.tuning.tuned import Choice, Tuned

MODEL = model()
STANDARD = Candidate("Adams(2), grids.quadratic", 0.25, 0.01, fitted=False)
FAILED = Candidate("one that fails", math.inf, math.nan, fitted=False)


def table(n: int) -> SolverTable:
    return replace(SolverTable.of(DPMSolverPP(2), MODEL.sde, grids.angle, steps=n - 1), made_for=MadeFor.of(MODEL))


def tuned() -> Tuned:
    """A table that has won at 3 evaluations, and a standard solver at 5."""
    fitted = Candidate("fitted on 3 nodes", 0.125, 0.02, fitted=True)
    three, five = Verdict(3, (fitted, STANDARD, FAILED), 900, 0.5), Verdict(5, (STANDARD, fitted), 1500, 0.7)
    choices = {3: Choice.of(3, three, table(3)), 5: Choice.of(5, five, (Adams(2, "angle"), grids.quadratic))}
    return Tuned(Problem(MODEL.sde, MODEL), choices, Report((three, five), "ode", 16, 3072, 1e-6, 1.5, "--label all"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tuned().save(tmp_path / "tables.json")
    return tmp_path / "tables.json"


def load(file: Path) -> Tuned:
    return Tuned.load(file, MODEL.sde, MODEL)


def rewrite(file: Path, change: Any) -> None:
    """Changes a file as somebody might who knows the format."""
    about = json.loads(file.read_text())
    about.pop("digest")
    change(about)
    file.write_text(seal(about))


# --- what comes back


def test_a_table_comes_back_bit_for_bit_and_a_standard_solver_as_its_table(file: Path) -> None:
    before, after = tuned(), load(file)
    assert list(after.choices) == [3, 5]
    assert torch.equal(after.sampler(3).sample(4, seed=0), before.sampler(3).sample(4, seed=0))
    x, expected = (t.sampler(5).sample(4, seed=0) for t in (after, before))
    assert float((x - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_the_report_comes_back_with_what_failed_in_it(file: Path) -> None:
    before, after = tuned().report, load(file).report
    assert str(after) == str(before)
    assert after.given == "--label all"
    failed = after.verdicts[0].candidates[2]
    assert failed.error == math.inf
    assert math.isnan(failed.uncertainty)
    assert load(file)[5].error == 0.25


def test_what_is_loaded_can_be_saved_again(file: Path, tmp_path: Path) -> None:
    load(file).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() != b""
    assert str(Tuned.load(tmp_path / "again.json", load(file).problem)) == str(tuned())


def test_a_save_that_fails_leaves_the_file_that_was_there(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no room"):
        tuned().save(file)
    assert [p.read_bytes() for p in file.parent.iterdir()] == [before]


def test_tables_that_are_too_long_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"the tables take [\d,]+ bytes of 1,000: tune with components=False"):
        tuned().save(tmp_path / "tables.json")
    assert list(tmp_path.iterdir()) == []


# --- inside a checkpoint


def test_a_checkpoint_loads_with_tables_beside_it_and_a_save_over_it_removes_them(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, MODEL)
    tuned().save(tmp_path / "tables.json")
    loaded = load_checkpoint(tmp_path).model
    x = Tuned.load(tmp_path / "tables.json", loaded.sde, loaded).sampler(3).sample(2, seed=0)
    assert torch.equal(x, tuned().sampler(3).sample(2, seed=0))
    save_checkpoint(tmp_path, MODEL)
    assert sorted(p.name for p in tmp_path.iterdir()) == [tensors_of(tmp_path).name, "model.json"]


# --- another model


def test_a_model_of_another_process_is_refused(file: Path) -> None:
    for sde in (schedules.EDMSDE(0.005, 30.0), schedules.VPSDE()):
        other = model(sde)
        with pytest.raises(ValueError, match=r"tables.json is of another model: the table was made for EDMSDE"):
            Tuned.load(file, other.sde, other)


def test_other_weights_are_told(file: Path) -> None:
    other = model()
    with torch.no_grad():
        other.get_parameter("net.enter.weight").add_(0.1)
    with pytest.warns(TableWarning, match="the tensors of the model are not those that the table was made for"):
        Tuned.load(file, other.sde, other)


def test_a_wrapped_model_is_told_and_one_that_costs_more_is_refused(file: Path) -> None:
    class Twice(Wrapper):
        cost = 2

    with pytest.raises(
        ValueError, match=r"its table for 3 evaluations asks 3 times, and each call of this model takes 2"
    ):
        Tuned.load(file, MODEL.sde, Twice(MODEL))
    with pytest.warns(TableWarning, match="the model is Wrapper of Network"):
        Tuned.load(file, MODEL.sde, Wrapper(MODEL))


def test_what_has_no_denoiser_is_refused(file: Path) -> None:
    class Plain(SDE):
        t_min, t_max = 0.0, 1.0

        def drift(self, x: Tensor, t: Any) -> Tensor:
            return -x

        def diffusion(self, t: Any) -> Tensor:
            return torch.ones(())

        def prior(self, z: Tensor) -> Tensor:
            return z

        def prior_log_prob(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1)

    with pytest.raises(TypeError, match="Plain is a general SDE"):
        Tuned.load(file, Plain(), lambda x, t: -x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a Problem has its model"):
        Tuned.load(file, Problem(MODEL.sde, MODEL), MODEL)


# --- damaged, edited, of another kind


def test_a_file_that_is_missing_cut_short_or_of_another_kind_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*no.json: give one that Tuned.save"):
        load(tmp_path / "no.json")
    raw = file.read_bytes()
    file.write_bytes(raw[:-20])
    with pytest.raises(ValueError, match=r"tables.json is not JSON .*it was cut short or edited; copy it again"):
        load(file)
    file.write_bytes(raw + b" ")
    with pytest.raises(ValueError, match=r"is not as it was written: damaged, or edited"):
        load(file)
    table(3).save(file)
    with pytest.raises(ValueError, match=r"does not hold sde_diffusion tuned samplers: give a file that Tuned.save"):
        load(file)
    file.write_bytes(b"[]")
    with pytest.raises(ValueError, match="does not hold sde_diffusion tuned samplers"):
        load(file)


def test_a_file_that_is_too_long_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"tables.json has [\d,]+ bytes, and tables have 1,000 at most"):
        load(file)


def test_every_flipped_bit_is_refused(file: Path) -> None:
    raw = file.read_bytes()
    for i in range(0, 8 * len(raw), 401):
        flipped = bytearray(raw)
        flipped[i // 8] ^= 1 << i % 8
        file.write_bytes(bytes(flipped))
        with pytest.raises(ValueError, match=r"tables.json"):
            load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.update(version=2), "has format version 2, and this is version 1"),
        (lambda about: about.update(version=True), "has format version True"),
        (lambda about: about.pop("objective"), "holds no sound tables: no entry 'objective'; copy it again"),
        (lambda about: about.update(budgets=[]), "there is no budget in it"),
        (lambda about: about["budgets"].append(about["budgets"][0]), "one budget is in it twice"),
        (lambda about: about.update(batch=0), "a batch has no samples"),
        (lambda about: about["budgets"][0].update(nfe=2), "the table for 2 evaluations asks 3 times"),
        (lambda about: about["budgets"][0].update(candidates=[]), "a budget has no candidates"),
        (lambda about: about["budgets"][0]["table"].update(made_for=None), "does not say what it was made for"),
        (lambda about: about["budgets"][0]["table"]["times"].pop(), "holds no sound tables: this is no sound table"),
    ],
)
def test_an_entry_that_cannot_be_meant_is_named(file: Path, change: Any, message: str) -> None:
    rewrite(file, change)
    with pytest.raises(ValueError, match=message):
        load(file)


NASTY: list[object] = [None, True, -1, 0, 7, 10**30, 1e308, -0.5, "x", "\ud800", [], [1], [[1]], {}, {"a": 1}]


def places(thing: Any, path: tuple[Any, ...] = ()) -> Any:
    """The path to everything in a file; of a list to its first two entries."""
    inner = thing.items() if isinstance(thing, dict) else list(enumerate(thing))[:2] if isinstance(thing, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.mark.parametrize("stride", [13, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::sde_diffusion.tuning.TableWarning")
def test_whatever_an_entry_is_replaced_by_the_answer_is_tables_or_a_sentence(file: Path, stride: int) -> None:
    about = json.loads(file.read_text())
    about.pop("digest")
    loads = refused = 0
    for i, path in enumerate(places(about)):
        for value in NASTY[i % stride :: stride]:
            spoilt = copy.deepcopy(about)
            inside = spoilt
            for key in path[:-1]:
                inside = inside[key]
            inside[path[-1]] = value
            file.write_text(seal(spoilt))
            try:
                found = load(file)
                str(found)
                assert all(isinstance(found.sampler(n), SDESampler) for n in found.choices)
            except ValueError:
                refused += 1
            else:
                loads += 1
    assert loads > 5
    assert refused > 20
