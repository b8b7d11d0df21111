"""Claim: `tune` keeps tables beside a checkpoint, and changes nothing else; `sample --nfe` takes those that fit.

What `tune` does is tested elsewhere: here tables of a standard solver stand for what it found, but in one test.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import awake, model, scaled
from torch import Tensor

from sde_diffusion import Network, SDESampler, SolverError, grids, predict
from sde_diffusion.cli import main as cli
from sde_diffusion.cli import tune as tune_command
from sde_diffusion.nets import MLP, UNet
from sde_diffusion.problem import Problem
from sde_diffusion.sde import schedules
from sde_diffusion.solvers import DPMSolverPP
from sde_diffusion.training import load_checkpoint, save_checkpoint
from sde_diffusion.tuning import MadeFor, SolverTable
from sde_diffusion.tuning.report import Candidate, Report, Verdict
from sde_diffusion.tuning.tuned import Choice, Tuned

FITTED, STANDARD = Candidate("fitted", 0.125, 0.01, fitted=True), Candidate("Adams(2)", 0.25, 0.02, fitted=False)


def call(*words: object) -> int:
    return cli.main([str(word) for word in words])


def error_of(capsys: Any, *words: object) -> str:
    """The one line of a command that must fail."""
    capsys.readouterr()
    assert call(*words) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("tuning: ")]
    assert len(lines) == 1, lines
    return lines[0].removeprefix("sde-diffusion: error: ")


def found_for(net: Network, nfe: list[int]) -> Tuned:
    """Tables as `tune` might find them: of a solver that `sample` would not take."""
    choices, verdicts = {}, []
    for n in nfe:
        table = SolverTable.of(DPMSolverPP(2), net.sde, grids.karras, steps=n - 1)
        verdicts.append(Verdict(n, (FITTED, STANDARD), 800, 0.1))
        choices[n] = Choice.of(n, verdicts[-1], replace(table, made_for=MadeFor.of(net)))
    return Tuned(Problem(net.sde, net), choices, Report(tuple(verdicts), "ode", 16, 3072, 1e-6, 1.5))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `tune` was called with, in place of its work."""
    calls: list[dict[str, Any]] = []

    def tune(_: Any, net: Network, nfe: list[int], **options: Any) -> Tuned:
        calls.append(options)
        return found_for(net, nfe)

    monkeypatch.setattr(tune_command, "tune", tune)
    return calls


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """A checkpoint of points in the plane."""
    save_checkpoint(tmp_path / "model", model(), scaling=scaled(3.0, 2.0))
    return tmp_path / "model"


@pytest.fixture
def tables(points: Path) -> Path:
    """The same with tables for 3 and 5 evaluations."""
    found_for(load_checkpoint(points).model, [3, 5]).save(points / "tables.json")
    return points


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A checkpoint of images of three classes."""
    net = Network(awake(UNet(1, width=8, classes=3)), schedules.EDMSDE(0.005, 20.0), predict.edm, shape=(1, 4, 4))
    save_checkpoint(tmp_path / "images", net.eval())
    return tmp_path / "images"


def drawn(folder: Path, out: Path, *words: object) -> Tensor:
    assert call("sample", "--checkpoint", folder, "--n", 4, "--out", out, *words) == 0
    return torch.from_numpy(np.load(out))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- tune


def test_what_is_tuned_is_kept_and_sampled_bit_for_bit(points: Path, tmp_path: Path, capsys: Any) -> None:
    before = content(points)
    report = tmp_path / "report.png"
    words = ("tune", "--checkpoint", points, "--nfe", "2,3", "--batch", 20, "--seed", 1, "--report", report)
    assert call(*words) == 0
    said = capsys.readouterr().out
    assert content(points) == before | {"tables.json": (points / "tables.json").read_bytes()}
    loaded = load_checkpoint(points)
    tuned = Tuned.load(points / "tables.json", loaded.model.sde, loaded.model)
    for n in (2, 3):
        best = tuned[n]
        told = f"{n} evaluations: {best.error:.3g} +- {best.uncertainty:.2g} sd of the data from the flow; {best.name}"
        assert told in said
    assert "calls of 20 samples; tuned on 20 and judged on 20 others" in said
    assert f"next: sde-diffusion sample --checkpoint {points} --nfe 2 --out samples.npz" in said
    assert report.read_bytes().startswith(b"\x89PNG")
    expected = loaded.scaling.undo(tuned.sampler(3).sample(4, seed=7))
    assert torch.equal(drawn(points, tmp_path / "x.npy", "--nfe", 3, "--seed", 7), expected)


def test_labels_of_calibration_are_those_asked_for_evenly_over_the_classes(images: Path, asked: list[Any]) -> None:
    for label in ("all", "2", "none"):
        assert call("tune", "--checkpoint", images, "--nfe", 3, "--batch", 8, "--label", label) == 0
    labels = [options["conditions"].get("label") for options in asked]
    assert labels[0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert labels[1].tolist() == [2] * 8
    assert labels[2] is None


def test_the_energy_distance_is_to_the_data_of_the_class_as_the_model_knows_them(
    points: Path, images: Path, asked: list[Any], tmp_path: Path
) -> None:
    x = np.random.default_rng(0).standard_normal((6, 2)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    words = ("--nfe", 3, "--objective", "energy", "--data")
    assert call("tune", "--checkpoint", points, *words, tmp_path / "x.npy") == 0
    torch.testing.assert_close(asked[0]["data"], torch.from_numpy((x - 3) / 2))
    y = np.random.default_rng(0).standard_normal((6, 1, 4, 4)).astype("float32")
    np.savez(tmp_path / "y.npz", x=y, label=[0, 1, 2, 1, 0, 2])
    assert call("tune", "--checkpoint", images, *words, tmp_path / "y.npz", "--label", 1) == 0
    assert torch.equal(asked[1]["data"], torch.from_numpy(y[[1, 3]]))


@pytest.mark.parametrize("error", [SolverError("NaN at sigma = 3"), KeyboardInterrupt(), OSError("no room")])
def test_a_tuning_that_fails_leaves_the_checkpoint_as_it_was(
    tables: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    before = content(tables)

    def fail(*_: Any, **__: Any) -> Tuned:
        raise error

    monkeypatch.setattr(tune_command, "tune", fail)
    assert call("tune", "--checkpoint", tables, "--nfe", 5) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert content(tables) == before


def test_tables_that_cannot_be_kept_are_elsewhere(
    tables: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    save, before = Tuned.save, content(tables)

    def fail(self: Tuned, path: Path) -> None:
        if path.parent == tables:
            raise OSError(28, "No space left on device")
        save(self, path)

    monkeypatch.setattr(Tuned, "save", fail)
    monkeypatch.chdir(tmp_path)
    said = error_of(capsys, "tune", "--checkpoint", tables, "--nfe", 7)
    assert "tables.json cannot be written (No space left on device): it is in " in said
    (other,) = tmp_path.glob("sde-diffusion-*.json")
    assert list(Tuned.load(other, found_for(load_checkpoint(tables).model, [2]).problem).choices) == [7]
    assert content(tables) == before
    assert len(asked) == 1


def test_other_tables_replace_those_there_and_this_is_said(tables: Path, asked: list[Any], capsys: Any) -> None:
    assert call("tune", "--checkpoint", tables, "--nfe", 8) == 0
    assert "tables for 8 evaluations in" in (said := capsys.readouterr().out)
    assert "in place of those that were there" in said
    assert len(asked) == 1


def test_errors_of_tuning_are_one_line_before_any_work(
    points: Path, images: Path, tmp_path: Path, asked: list[Any], capsys: Any
) -> None:
    np.save(tmp_path / "three.npy", np.zeros((4, 3), "float32"))
    np.savez(tmp_path / "y.npz", x=np.random.default_rng(0).random((3, 1, 4, 4), "float32"), label=[0, 1, 2])
    before = content(points)
    energy = ("--objective", "energy")
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--checkpoint", tmp_path / "no"), "no model.json in"),
        (("--checkpoint", points, "--data", "x.npy"), "--data is for --objective energy"),
        (("--checkpoint", points, *energy), "--objective energy needs --data"),
        (("--checkpoint", points, *energy, "--data", tmp_path / "no.npy"), "No data file at"),
        (("--checkpoint", points, *energy, "--data", tmp_path / "three.npy"), "--data has event shape (3,)"),
        (
            ("--checkpoint", images, *energy, "--data", tmp_path / "y.npz", "--label", 2),
            "y.npz holds 1 samples of class 2: give 2 or more",
        ),
        (("--checkpoint", points, "--label", 1), "--label 1: the model is not class-conditional"),
        (("--checkpoint", images, "--label", 3), "--label must be 0..2, all or none, got '3'"),
        (("--checkpoint", points, "--report", tmp_path / "r.txt"), "--report must end in .png, got 'r.txt'"),
        (("--checkpoint", points, "--report", tmp_path / "no" / "r.png"), "--report: there is no folder"),
    ]
    for words, message in cases:
        assert message in error_of(capsys, "tune", "--nfe", 3, *words)
    assert not asked
    assert content(points) == before


def test_a_budget_twice_and_a_batch_too_small_are_refused_by_tune_itself(points: Path, capsys: Any) -> None:
    before = content(points)
    assert "names a budget twice" in error_of(capsys, "tune", "--checkpoint", points, "--nfe", "5,8,5")
    said = error_of(capsys, "tune", "--checkpoint", points, "--nfe", "5,8", "--batch", 10)
    assert "batch = 10 samples of 2 values are too few" in said
    assert content(points) == before


@pytest.mark.parametrize(
    ("nfe", "message"),
    [
        ("x", "wanted a whole number, got 'x': numbers of evaluations go with commas between, 5,8,12"),
        ("5,,8", "wanted a whole number, got ''"),
        ("5 8", "wanted a whole number, got '5 8'"),
        ("1", "must be at least 2, got 1"),
        ("8,100000", "must be at most 1,000, got 100000"),
    ],
)
def test_budgets_that_are_none_are_told_by_the_parser(nfe: str, message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        call("tune", "--checkpoint", "x", "--nfe", nfe)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# --- sample


def test_a_tuned_sampler_is_taken_where_it_fits_and_said(tables: Path, tmp_path: Path, capsys: Any) -> None:
    loaded = load_checkpoint(tables)
    expected = Tuned.load(tables / "tables.json", loaded.model.sde, loaded.model).sampler(5).sample(4, seed=0)
    capsys.readouterr()
    assert torch.equal(drawn(tables, tmp_path / "x.npy", "--nfe", 5), loaded.scaling.undo(expected))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "tuned for 5 evaluations: fitted, 0.12 +- 0.01 sd of the data from the flow"
    assert len(said) == 2


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("--nfe", 5, "--no-tuned"), {"nfe": 5}),
        (("--nfe", 5, "--solver", "dpmpp3"), {"nfe": 5, "solver": DPMSolverPP(3)}),
        (("--steps", 5), {"steps": 5}),
        ((), {}),
    ],
)
def test_what_is_asked_for_otherwise_is_not_tuned(
    tables: Path, tmp_path: Path, capsys: Any, words: tuple[object, ...], options: dict[str, Any]
) -> None:
    loaded = load_checkpoint(tables)
    expected = SDESampler(loaded.model.sde, loaded.model, **options).sample(4, seed=0)
    assert torch.equal(drawn(tables, tmp_path / "x.npy", *words), loaded.scaling.undo(expected))
    assert "tuned" not in capsys.readouterr().out


def test_another_budget_takes_the_default_and_says_which_are_tuned(tables: Path, tmp_path: Path, capsys: Any) -> None:
    loaded = load_checkpoint(tables)
    expected = SDESampler(loaded.model.sde, loaded.model, nfe=4).sample(4, seed=0)
    assert torch.equal(drawn(tables, tmp_path / "x.npy", "--nfe", 4), loaded.scaling.undo(expected))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "nothing is tuned for 4 evaluations, only for 3, 5: the default it is"


def test_tables_of_other_weights_are_left_aside_and_a_new_model_removes_them(
    tables: Path, tmp_path: Path, capsys: Any
) -> None:
    kept = (tables / "tables.json").read_bytes()
    other = Network(awake(MLP(2, hidden=16, layers=2)), schedules.EDMSDE(0.005, 20.0), predict.edm, shape=(2,))
    save_checkpoint(tables, other, scaling=scaled(3.0, 2.0))
    assert not (tables / "tables.json").exists()
    (tables / "tables.json").write_bytes(kept)
    expected = SDESampler(other.sde, other.eval(), nfe=5).sample(4, seed=0) * 2 + 3
    torch.testing.assert_close(drawn(tables, tmp_path / "x.npy", "--nfe", 5), expected)
    assert "tables.json is left aside: the tensors of the model are not those" in capsys.readouterr().out


def test_damaged_tables_are_one_line_with_the_way_round_them(tables: Path, tmp_path: Path, capsys: Any) -> None:
    raw = (tables / "tables.json").read_bytes()
    (tables / "tables.json").write_bytes(raw[:-9])
    said = error_of(capsys, "sample", "--checkpoint", tables, "--nfe", 5, "--out", tmp_path / "x.npy")
    assert "tables.json is not JSON" in said
    assert said.endswith("; or sample with --no-tuned")
    assert not (tmp_path / "x.npy").exists()
    assert drawn(tables, tmp_path / "x.npy", "--nfe", 5, "--no-tuned").shape == (4, 2)


def test_a_label_tuned_for_alone_is_said(images: Path, asked: list[Any], tmp_path: Path, capsys: Any) -> None:
    assert call("tune", "--checkpoint", images, "--nfe", 3, "--label", 2) == 0
    capsys.readouterr()
    drawn(images, tmp_path / "x.npy", "--nfe", 3, "--label", 2)
    assert capsys.readouterr().out.startswith("tuned for 3 evaluations and --label 2: fitted, ")
    assert len(asked) == 1
    for label in (1, "all", "none"):
        drawn(images, tmp_path / "x.npy", "--nfe", 3, "--label", label)
        said = capsys.readouterr().out
        assert f"is left aside: tuned with --label 2, and these are with --label {label}; tune for all labels" in said


def test_training_over_a_tuned_checkpoint_says_that_its_tables_go(tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(64, 2)))
    train = ("train", "--data", tmp_path / "x.npy", "--out", tmp_path / "m", "--steps", 2, "--width", 8)
    assert call(*train) == 0
    assert "will be removed" not in capsys.readouterr().out
    (tmp_path / "m" / "tables.json").write_text("{}", encoding="utf-8")
    assert call(*train, "--overwrite") == 0
    assert "tables.json is of the model that is replaced, and will be removed with it" in capsys.readouterr().out
    assert not (tmp_path / "m" / "tables.json").exists()
