"""Claim: `sde-diffusion distill` makes a map of a checkpoint, drawn in one call, or says in a line why it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model, standard

from sde_diffusion import EDMSDE, Network, predict
from sde_diffusion.cli import main as cli
from sde_diffusion.cli.plan import running
from sde_diffusion.data import moons, open_data, split
from sde_diffusion.distillation import FlowMap
from sde_diffusion.training import load_checkpoint, save_checkpoint, train
from sde_diffusion.training.checkpoints.own_code import load_class

FEW = ("--steps", 4, "--batch-size", 16)


def call(*words: object) -> int:
    return cli.main([str(word) for word in words])


def error_of(capsys: Any, *words: object) -> str:
    """The one line of a command that must fail."""
    capsys.readouterr()
    assert call(*words) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("sde-diffusion")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A checkpoint of points far from standard scale, their file, and a map that was made of it."""
    folder = tmp_path_factory.mktemp("vectors")
    np.save(folder / "x.npy", 100 * moons(300, seed=0).numpy() + 30)
    out = folder / "model"
    assert call("train", "--data", folder / "x.npy", "--out", out, "--steps", 20, "--hidden", 16, "--val", 0) == 0
    assert call("distill", "--checkpoint", out, "--out", folder / "fast", *FEW) == 0
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A checkpoint of labelled images, and their file."""
    folder = tmp_path_factory.mktemp("images")
    label = np.arange(60) % 3
    x = 0.1 * np.random.default_rng(0).standard_normal((60, 1, 4, 4)) + label[:, None, None, None] - 1
    np.savez(folder / "x.npz", x=x.astype("float32"), label=label)
    words = ("--steps", 3, "--width", 8, "--batch-size", 16)
    assert call("train", "--data", folder / "x.npz", "--out", folder / "model", *words) == 0
    return folder


def test_a_map_learns_on_what_its_teacher_was_trained_on_and_keeps_its_scaling(vectors, capsys):
    fast, slow = (load_checkpoint(vectors / name) for name in ("fast", "model"))
    assert isinstance(fast.model, FlowMap)
    assert fast.model.reach == "any"
    assert standard(fast).config == standard(slow).config
    assert fast.extra["steps"] == 4
    assert fast.extra["distilled"] == {"checkpoint": str(vectors / "model"), "loss": "shortcut", "guidance": 1.0}
    lines = (vectors / "fast" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 4


@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_a_map_is_sampled_in_the_calls_asked_for_and_in_the_units_of_the_data(nfe, vectors, tmp_path, capsys):
    out = tmp_path / "x.npz"
    assert call("sample", "--checkpoint", vectors / "fast", "--nfe", nfe, "--n", 200, "--out", out) == 0
    assert f"Jump(renoise=False), steps={nfe - 1}," in capsys.readouterr().out
    x = np.load(out)["x"]
    assert np.abs(x.mean(0) - [80, 60]).max() < 40
    assert x.std() > 20


@pytest.mark.parametrize(("name", "solver"), [("jump", "Jump(renoise=False)"), ("consistency", "Jump(renoise=True)")])
def test_the_solvers_of_maps_can_be_named_and_want_one(name, solver, vectors, tmp_path, capsys):
    words = ("--solver", name, "--nfe", 3, "--n", 4, "--out", tmp_path / "x.npy")
    assert call("sample", "--checkpoint", vectors / "fast", *words) == 0
    assert solver in capsys.readouterr().out
    assert "Jump works with a FlowMap" in error_of(capsys, "sample", "--checkpoint", vectors / "model", *words)


def test_any_other_solver_and_a_likelihood_work_on_a_map(vectors, tmp_path):
    words = ("--solver", "dpmpp2", "--nfe", 6, "--n", 4, "--out", tmp_path / "x.npy")
    assert call("sample", "--checkpoint", vectors / "fast", *words) == 0
    np.save(tmp_path / "few.npy", np.load(vectors / "x.npy")[:5])
    files = ("--data", tmp_path / "few.npy", "--out", tmp_path / "nats.json")
    assert call("likelihood", "--checkpoint", vectors / "fast", *files) == 0
    assert np.isfinite(json.loads((tmp_path / "nats.json").read_text())["log_prob"])


def test_the_same_words_give_the_same_map_bit_for_bit(vectors, tmp_path):
    assert call("distill", "--checkpoint", vectors / "model", "--out", tmp_path / "again", *FEW) == 0
    words = ("--checkpoint", vectors / "model", "--out", tmp_path / "other", *FEW, "--seed", 1)
    assert call("distill", *words, "--loss", "trajectory") == 0
    first, again, other = (
        torch.cat([p.flatten() for p in load_checkpoint(folder).model.parameters()])
        for folder in (vectors / "fast", tmp_path / "again", tmp_path / "other")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_consistency_model_jumps_to_the_data_alone_and_is_sampled_so(vectors, tmp_path, capsys):
    words = ("--checkpoint", vectors / "model", "--out", tmp_path / "fast", *FEW, "--loss", "consistency")
    assert call("distill", *words) == 0
    fast = load_checkpoint(tmp_path / "fast").model
    assert isinstance(fast, FlowMap)
    assert fast.reach == "data"
    draw = ("--checkpoint", tmp_path / "fast", "--n", 4, "--nfe", 2, "--out", tmp_path / "x.npy")
    assert call("sample", *draw) == 0
    assert "Jump(renoise=True), steps=1," in capsys.readouterr().out
    assert "trained to jump to the data alone" in error_of(capsys, "sample", *draw, "--solver", "jump")


def test_labels_go_along_and_a_guided_teacher_makes_a_map_of_its_own(images, tmp_path, capsys):
    words = ("--checkpoint", images / "model", "--out", tmp_path / "fast", *FEW, "--guidance", 2)
    assert call("distill", *words) == 0
    assert "guided by label: Guided(model, w=2" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "fast").extra["distilled"]["guidance"] == 2
    draw = ("--checkpoint", tmp_path / "fast", "--nfe", 1, "--label", 2, "--n", 3, "--out", tmp_path / "x.npz")
    assert call("sample", *draw) == 0
    assert np.load(tmp_path / "x.npz")["label"].tolist() == [2, 2, 2]
    said = error_of(capsys, "sample", *draw, "--guidance", 2)
    assert "--guidance 2: the map in --checkpoint was made of a guided model, Guided(w=2.0), and draws guided" in said


def test_guidance_of_a_map_that_has_none_is_refused_where_it_would_have_to_jump(images, tmp_path, capsys):
    assert call("distill", "--checkpoint", images / "model", "--out", tmp_path / "fast", *FEW) == 0
    draw = ("sample", "--checkpoint", tmp_path / "fast", "--n", 3, "--out", tmp_path / "x.npz", "--guidance", 2)
    said = error_of(capsys, *draw, "--nfe", 1)
    assert "by it alone: distil the model it was made of with --guidance 2, or take a larger --nfe" in said
    assert call(*draw, "--nfe", 8) == 0  # as a denoiser


def stopping(patch: Any, step: int) -> None:
    """Lets the next training be cut short after a step."""
    true = train

    def stopped(*given: Any, callbacks: Any, **more: Any) -> Any:
        def stop(event: Any) -> None:
            if event.kind == "step" and event.step == step:
                raise KeyboardInterrupt

        return true(*given, callbacks=[*callbacks, stop], **more)

    patch.setattr(running, "train", stopped)


def test_a_run_that_was_cut_short_goes_on_by_the_configuration_that_it_kept(vectors, tmp_path, capsys, monkeypatch):
    words = ("distill", "--checkpoint", vectors / "model", "--out", tmp_path / "fast", *FEW)
    with monkeypatch.context() as patch:
        stopping(patch, 2)
        assert call(*words) == 130
    said = capsys.readouterr().out
    assert "ended after 2 of 4 steps, all of them saved" in said
    config = tmp_path / "fast" / "config.toml"
    assert f"to go on: sde-diffusion distill {config} --resume" in said
    assert config.read_text().splitlines()[:4] == [
        "# What this run was asked for. The same again: sde-diffusion distill THIS_FILE --out ANOTHER_FOLDER",
        f'checkpoint = "{vectors / "model"}"',
        'loss = "shortcut"',
        "guidance = 1.0",
    ]
    assert call("distill", config, "--resume") == 0
    whole, rest = (load_checkpoint(folder).model for folder in (vectors / "fast", tmp_path / "fast"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), rest.parameters(), strict=True))
    said = error_of(capsys, "distill", "--loss", "trajectory", "--resume", config)
    assert "loss is Trajectory(" in said
    assert said.endswith("go on with the same loss, or begin anew in another --out")


def test_a_teacher_still_in_training_is_told_of_and_named_where_it_has_moved_on(vectors, tmp_path, capsys, monkeypatch):
    teacher, fast = tmp_path / "model", tmp_path / "fast"
    with monkeypatch.context() as patch:
        stopping(patch, 3)
        words = ("--data", vectors / "x.npy", "--out", teacher, "--steps", 5, "--hidden", 16, "--val", 0)
        assert call("train", *words) == 130
    assert call("distill", "--checkpoint", teacher, "--out", fast, *FEW) == 0
    assert f"the run in --checkpoint {teacher} is at step 3 of 5: the map learns of" in capsys.readouterr().out
    assert call("train", teacher / "config.toml", "--resume") == 0
    said = error_of(capsys, "distill", fast / "config.toml", "--resume")
    assert f"--checkpoint {teacher} is not the teacher that the run was begun with, or has been trained on" in said
    assert call("distill", fast / "config.toml", "--overwrite") == 0
    assert "is at step" not in capsys.readouterr().out


def test_rows_kept_out_of_the_training_of_the_teacher_are_kept_out_here(images, tmp_path, capsys, monkeypatch):
    given: list[Any] = []

    def noted(model: Any, rows: Any, **more: Any) -> Any:
        given.append(rows)
        return train(model, rows, **more)

    monkeypatch.setattr(running, "train", noted)
    words = ("--checkpoint", images / "model", *FEW, "--seed", 3)
    source = open_data(images / "x.npz")
    rows, _ = split(source, None, 0)
    assert call("distill", *words, "--out", tmp_path / "fast") == 0
    assert f"{60 - len(rows)} rows are kept out, as in the training of" in capsys.readouterr().out
    labels = [each.rows(torch.arange(len(each))).cond["label"].tolist() for each in (given[0], rows)]
    assert labels[0] == labels[1]
    assert len(given[0]) == len(rows) < 60
    shutil.copy(images / "x.npz", tmp_path / "other.npz")
    assert call("distill", *words, "--data", tmp_path / "other.npz", "--out", tmp_path / "all") == 0
    assert len(given[1]) == 60
    assert "kept out" not in capsys.readouterr().out


# --- bad input


def untold(folder: Path) -> tuple[object, ...]:
    file = folder / "untold.py"
    file.write_text(
        "import torch\nclass Untold(torch.nn.Module):\n    config = {}\n    def __init__(self):\n"
        "        super().__init__()\n        self.layer = torch.nn.Linear(2, 2)\n"
        "    def forward(self, x, t):\n        return self.layer(x)\n"
    )
    save_checkpoint(folder / "untold", Network(load_class(f"{file}:Untold")(), EDMSDE(), predict.edm, shape=(2,)))
    return "--checkpoint", folder / "untold", "--net", f"{file}:Untold"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--checkpoint", "fast", "--out", "new"), "fast holds a flow map already: sample it with --nfe 1, 2 or 4, or"),
        (("--checkpoint", "model", "--out", "model"), "is the folder of the teacher, --checkpoint: give another"),
        (("--checkpoint", "model", "--out", "model/../model", "--overwrite"), "is the folder of the teacher"),
        (("--checkpoint", "model", "--out", "fast"), "holds a model.json already: give another folder, or --overwrite"),
        (("--checkpoint", "model", "--out", "x.npy"), "--out"),
        (("--checkpoint", "model", "--out", "new", "--resume"), "holds no run to go on with: leave --resume out"),
        (("--checkpoint", "model", "--out", "new", "--resume", "--overwrite"), "--overwrite replaces it: give one of"),
        (("--checkpoint", "model", "--out", "new", "--accumulate", "3"), "does not split into --accumulate 3 equal"),
        (("--checkpoint", "model", "--out", "new", "--data", "none.npy"), "No data at"),
        (("--checkpoint", "none", "--out", "new"), "no model.json in"),
        (("--checkpoint", "model", "--out", "new", "--guidance", "2"), "takes no condition that it could be guided by"),
        (("--checkpoint", "model", "--out", "new", "--guidance", "nan"), "--guidance"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(words, message, vectors, capsys):
    here = [vectors / word if not word.startswith("-") and not word.isalnum() else word for word in words]
    here = [vectors / w if w in ("model", "fast", "new", "none") else w for w in here]
    before = sorted(vectors.rglob("*"))
    assert message in error_of(capsys, "distill", *here, *(() if "--accumulate" in words else FEW))
    assert sorted(vectors.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "give --checkpoint, the folder of the teacher, as a flag or in a configuration file"),
        ("checkpoint = 3", "checkpoint: wanted a folder, got 3"),
        ('loss = "progressive"', "loss: wanted one of shortcut, trajectory, consistency, meanflow, got 'progressive'"),
        ("guidance = true", "guidance: wanted a number, got True"),
        ("steeps = 3", "unknown key 'steeps', did you mean 'steps'?"),
        ("patience = 3", "a distillation has no 'patience': leave it out"),
        ("steps", "is no TOML"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_a_line(text, message, tmp_path, capsys):
    (tmp_path / "c.toml").write_text(text)
    assert message in error_of(capsys, "distill", tmp_path / "c.toml", "--out", tmp_path / "fast")


def test_a_configuration_is_that_of_its_command(vectors, capsys):
    said = error_of(capsys, "train", vectors / "fast" / "config.toml")
    assert "is the configuration of a distillation: sde-diffusion distill" in said
    said = error_of(capsys, "distill", vectors / "model", "--out", vectors / "new")
    assert "there is no configuration file" in said
    assert "the teacher is given as --checkpoint" in said


def test_no_steps_are_refused_by_the_parser(vectors, tmp_path, capsys):
    words = ("--checkpoint", vectors / "model", "--out", tmp_path / "fast", "--steps", 0)
    with pytest.raises(SystemExit) as stop:
        call("distill", *words)
    assert stop.value.code == 2
    assert "argument --steps: must be at least 1, got 0" in capsys.readouterr().err


def test_a_teacher_that_cannot_be_told_a_second_time_is_refused_with_how_to(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((60, 2)))
    said = error_of(capsys, "distill", *untold(tmp_path), "--data", tmp_path / "x.npy", "--out", tmp_path / "fast")
    assert "Untold is not told a second time, which a flow map needs: give it a method with_until()" in said
    assert not (tmp_path / "fast").exists()


def test_data_that_are_not_recorded_or_gone_are_asked_for(vectors, tmp_path, capsys):
    save_checkpoint(tmp_path / "bare", model())
    said = error_of(capsys, "distill", "--checkpoint", tmp_path / "bare", "--out", tmp_path / "fast")
    assert "does not say what it was trained on, in a config.toml as `train` writes it: give --data" in said
    shutil.copytree(vectors / "model", tmp_path / "model")
    config = tmp_path / "model" / "config.toml"
    config.write_text(config.read_text().replace("x.npy", "gone.npy"))
    said = error_of(capsys, "distill", "--checkpoint", tmp_path / "model", "--out", tmp_path / "fast")
    assert "gone.npy, are gone: give --data" in said


def test_data_of_another_kind_than_the_teacher_learnt_are_refused(images, vectors, tmp_path, capsys):
    def said(folder: Path, data: Path) -> str:
        words = ("--checkpoint", folder / "model", "--data", data, "--out", tmp_path / "fast", *FEW)
        return error_of(capsys, "distill", *words)

    assert "has samples of shape (1, 4, 4), but the model in --checkpoint" in said(vectors, images / "x.npz")
    np.save(tmp_path / "bare.npy", np.load(images / "x.npz")["x"])
    assert "has no labels, and the model in --checkpoint has 3 classes: give" in said(images, tmp_path / "bare.npy")
    np.savez(tmp_path / "more.npz", x=np.load(vectors / "x.npy"), label=np.arange(300) % 2)
    assert "has labels, and the model in --checkpoint has no classes: leave" in said(vectors, tmp_path / "more.npz")


def test_a_map_is_neither_tuned_nor_trained_on_as_a_model_of_noise(vectors, tmp_path, capsys):
    said = error_of(capsys, "tune", "--checkpoint", vectors / "fast", "--nfe", 4)
    assert "holds a flow map, which was trained to draw in one to four evaluations: sample it with --nfe" in said
    words = ("--from", vectors / "fast", "--data", vectors / "x.npy", "--out", tmp_path / "more")
    assert "holds a flow map, which would unlearn its jumps here: train" in error_of(capsys, "train", *words)
