"""Claim: the command line trains, samples and demonstrates; an error is one line, status 2, and nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import standard, tensors_of

import sde_diffusion
from sde_diffusion import SDESampler, predict, solvers
from sde_diffusion.cli import main as cli
from sde_diffusion.cli import sample as sample_command
from sde_diffusion.cli.plan import running
from sde_diffusion.data import moons
from sde_diffusion.demo.demonstration import QUICK, Settings, run
from sde_diffusion.demo.distilled import CALLS
from sde_diffusion.demo.table import TUNED, trials
from sde_diffusion.sde import processes
from sde_diffusion.training import load_checkpoint
from sde_diffusion.training.run import steps


def call(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A checkpoint of points in the plane far from standard scale, and its folder."""
    folder = tmp_path_factory.mktemp("vectors")
    np.save(folder / "x.npy", 100 * moons(500, seed=0).numpy() + 30)
    out = folder / "model"
    assert call("train", "--data", folder / "x.npy", "--out", out, "--steps", 60, "--hidden", 16, "--val", 0) == 0
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A checkpoint of labelled images, and its folder."""
    folder = tmp_path_factory.mktemp("images")
    label = np.arange(60) % 3
    x = (np.random.default_rng(0).standard_normal((60, 1, 4, 4)) * 0.1 + label[:, None, None, None] - 1).astype(
        "float32"
    )
    np.savez(folder / "x.npz", x=x, label=label)
    out = folder / "model"
    assert call("train", "--data", folder / "x.npz", "--out", out, "--steps", 5, "--width", 8, "--batch-size", 16) == 0
    return folder


def error_of(capsys, *words: object) -> str:
    """The one line of a command that must fail."""
    assert call(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if not line.startswith(("training: ", "sampling: "))]  # progress bars
    assert len(lines) == 1, lines
    assert lines[0].startswith("sde-diffusion: error: ")
    return lines[0].removeprefix("sde-diffusion: error: ")


# --- training and sampling


def test_training_on_vectors_saves_what_sampling_needs(vectors):
    loaded = load_checkpoint(vectors / "model")
    x = np.load(vectors / "x.npy")
    assert loaded.model.shape == (2,)
    np.testing.assert_allclose(standard(loaded).mean, x.mean(0, dtype="float64"), rtol=1e-12)
    np.testing.assert_allclose(standard(loaded).std, x.std(0, dtype="float64"), rtol=1e-12)
    assert loaded.extra["data_range"] == [float(x.min()), float(x.max())]
    assert (loaded.extra["steps"], loaded.extra["seed"]) == (60, 0)


def test_samples_on_the_command_line_are_those_of_the_model_in_memory_bit_for_bit(vectors, tmp_path):
    assert (
        call(
            "sample",
            "--checkpoint",
            vectors / "model",
            "--n",
            5,
            "--steps",
            7,
            "--seed",
            3,
            "--out",
            tmp_path / "x.npy",
        )
        == 0
    )
    loaded = load_checkpoint(vectors / "model")
    sampler = SDESampler(loaded.model.sde, loaded.model, steps=7)
    expected = sampler.sample(5, seed=3).double() * standard(loaded).std + standard(loaded).mean
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected.float().numpy())


def test_two_trainings_with_one_seed_agree_bit_for_bit_and_another_seed_differs(vectors, tmp_path):
    def tensors(name, seed):
        call(
            "train", "--data", vectors / "x.npy", "--out", tmp_path / name, "--steps", 3, "--hidden", 16, "--seed", seed
        )
        return tensors_of(tmp_path / name).read_bytes()

    assert tensors("a", 1) == tensors("b", 1) != tensors("c", 2)


def test_samples_come_in_the_units_of_the_data(vectors, tmp_path):
    call("sample", "--checkpoint", vectors / "model", "--n", 200, "--out", tmp_path / "x.npy")
    x, data = np.load(tmp_path / "x.npy"), np.load(vectors / "x.npy")
    assert x.shape == (200, 2)
    assert np.abs(x.mean() - data.mean()) < 0.4 * data.std()
    assert 0.5 < x.std() / data.std() < 2


def test_labels_make_a_class_conditional_model_and_are_sampled_in_turn(images, tmp_path):
    assert load_checkpoint(images / "model").classes == 3
    assert call("sample", "--checkpoint", images / "model", "--n", 7, "--steps", 3, "--out", tmp_path / "x.npz") == 0
    with np.load(tmp_path / "x.npz") as file:
        assert file["label"].tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert file["x"].shape == (7, 1, 4, 4)


def test_one_class_or_none_can_be_asked_for(images, tmp_path):
    out = tmp_path / "x.npz"
    call("sample", "--checkpoint", images / "model", "--n", 4, "--steps", 3, "--label", 2, "--out", out)
    with np.load(out) as file:
        assert file["label"].tolist() == [2] * 4
    call("sample", "--checkpoint", images / "model", "--n", 4, "--steps", 3, "--label", "none", "--out", out)
    with np.load(out) as file:
        assert list(file) == ["x"]


@pytest.mark.parametrize("which", ["vectors", "images"])
def test_a_picture_is_drawn_of_points_and_of_images(which, request, tmp_path):
    folder = request.getfixturevalue(which)
    out = tmp_path / "x.png"
    assert call("sample", "--checkpoint", folder / "model", "--n", 9, "--steps", 3, "--out", out) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("solver", solvers.named())
def test_every_solver_can_be_named(solver, vectors, tmp_path):
    budget = () if solvers.named()[solver].facts.evaluations is None else ("--nfe", 9)
    words = ("sample", "--checkpoint", vectors / "model", "--n", 2, "--solver", solver, "--out", tmp_path / "x.npy")
    assert call(*words, *budget) == 0
    assert np.isfinite(np.load(tmp_path / "x.npy")).all()


@pytest.mark.parametrize(
    ("sde", "kind"),
    [(s, "edm") for s in processes.named()]
    + [("vp", k) for k in predict.NAMES if k != "edm"]
    + [("flow", "velocity"), ("ddpm", "noise")],
)
def test_every_process_and_parametrisation_that_fits_trains_and_samples(sde, kind, vectors, tmp_path):
    out = tmp_path / "model"
    words = (
        "train",
        "--data",
        vectors / "x.npy",
        "--out",
        out,
        "--sde",
        sde,
        "--kind",
        kind,
        "--steps",
        2,
        "--hidden",
        8,
    )
    assert call(*words) == 0
    assert call("sample", "--checkpoint", out, "--n", 2, "--steps", 3, "--out", tmp_path / "x.npy") == 0


def test_batches_do_not_change_samples(images, tmp_path):
    for size in (2, 64):
        call(
            "sample",
            "--checkpoint",
            images / "model",
            "--n",
            6,
            "--steps",
            3,
            "--batch-size",
            size,
            "--out",
            tmp_path / f"{size}.npy",
        )
    np.testing.assert_allclose(np.load(tmp_path / "2.npy"), np.load(tmp_path / "64.npy"), atol=1e-5)


# --- errors


def test_errors_of_training_are_one_line_and_write_nothing(tmp_path, capsys):
    out = tmp_path / "model"

    def save(name, x, **more):
        np.savez(tmp_path / name, x=x, **more) if more else np.save(tmp_path / name, x)
        return tmp_path / name

    ones = np.ones((4, 2), "float32")
    rows = np.arange(8, dtype="float32").reshape(4, 2)
    cases = [
        ((tmp_path / "no.npy",), "No data at"),
        ((save("objects.npy", np.array([[None, "a"]] * 4)),), "holds Python objects, which are not read"),
        ((save("nan.npy", rows * np.nan),), "NaN or infinity in rows 0, 1, 2, 3"),
        ((save("empty.npy", rows[:0]),), "is empty: its shape is (0, 2), wanted (N, *shape)"),
        ((save("ones.npy", ones),), "every column of --data is constant: there is nothing to learn"),
        ((save("odd.npy", np.random.default_rng(0).random((4, 1, 5, 5), "float32")),), "must be a multiple of 2"),
        (
            (save("x.npy", rows), "--kind", "noise", "--sde", "edm"),
            "a network that answers noise would see states of size 80 as they are",
        ),
        (
            (save("x.npy", rows), "--kind", "noise", "--sde", "flow"),
            "a noise prediction tells nothing of the data where alpha = 0",
        ),
        ((save("x.npy", rows), "--lr", "-1"), "lr must be positive"),
        (
            (save("img.npy", np.random.default_rng(0).random((4, 1, 4, 4), "float32")), "--width", "12"),
            "width must be a multiple of 8",
        ),
    ]
    for words, message in cases:
        assert message in error_of(capsys, "train", "--data", *words, "--out", out, "--steps", 1)
        assert not out.exists()


def test_ctrl_c_saves_the_run_says_how_to_go_on_and_stops_with_130(vectors, tmp_path, capsys, monkeypatch):
    step = steps.Run.step

    def interrupted(self, *given):
        if len(self.losses) == 4:
            raise KeyboardInterrupt
        return step(self, *given)

    out = tmp_path / "model"
    words = ("train", "--data", vectors / "x.npy", "--out", out, "--steps", 9, "--width", 8)
    with monkeypatch.context() as patch:
        patch.setattr(steps.Run, "step", interrupted)
        assert call(*words) == 130
    said = capsys.readouterr()
    again = f"sde-diffusion train {out / 'config.toml'} --resume"
    assert f"ended after 4 of 9 steps, all of them saved in {out}; to go on: {again}" in said.out
    assert "interrupted" in said.err
    assert load_checkpoint(out).extra["steps"] == 4
    assert call(*again.split()[1:]) == 0
    assert call(*words[:4], tmp_path / "whole", *words[5:]) == 0
    whole, parts = (load_checkpoint(place).model.state_dict() for place in (tmp_path / "whole", out))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_report_of_a_training_tells_its_objective(vectors, tmp_path, capsys):
    words = ("train", "--data", vectors / "x.npy", "--out", tmp_path / "model", "--steps", 2, "--width", 8)
    assert call(*words, "--sde", "vp", "--kind", "score") == 0
    assert "DenoisingScoreMatching(times=uniform_time, weight=noise_weight)" in capsys.readouterr().out


def test_a_file_in_place_of_the_folder_is_refused(vectors, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    message = error_of(capsys, "train", "--data", vectors / "x.npy", "--out", tmp_path / "file", "--steps", 1)
    assert "is a file: give a folder" in message


def test_errors_of_sampling_are_one_line_and_write_nothing(vectors, images, tmp_path, capsys):
    out = tmp_path / "x.npy"
    cases = [
        (("--checkpoint", tmp_path / "no", "--out", out), "no model.json in"),
        (
            ("--checkpoint", vectors / "model", "--out", tmp_path / "x.txt"),
            "--out must end in .npy, .npz or .png, got 'x.txt'",
        ),
        (("--checkpoint", vectors / "model", "--out", tmp_path / "no" / "x.npy"), "--out: there is no folder"),
        (
            ("--checkpoint", vectors / "model", "--out", out, "--label", "1"),
            "--label 1: the model is not class-conditional",
        ),
        (
            ("--checkpoint", images / "model", "--out", out, "--label", "3"),
            "--label must be 0..2, all or none, got '3'",
        ),
        (
            ("--checkpoint", images / "model", "--out", out, "--label", "x"),
            "--label must be 0..2, all or none, got 'x'",
        ),
        (
            ("--checkpoint", vectors / "model", "--out", out, "--nfe", "1", "--solver", "rk4"),
            "a budget of 1 evaluations is too small",
        ),
    ]
    for words, message in cases:
        assert message in error_of(capsys, "sample", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_one_line(images, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (images / "model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes()[:-9])
    assert "model.json is not JSON" in error_of(capsys, "sample", "--checkpoint", folder, "--out", tmp_path / "x.npy")


def test_high_dimensional_samples_have_no_picture(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((8, 3), "float32"))
    call("train", "--data", tmp_path / "x.npy", "--out", tmp_path / "model", "--steps", 1, "--hidden", 8)
    capsys.readouterr()
    assert call("sample", "--checkpoint", tmp_path / "model", "--n", 2, "--steps", 1, "--out", tmp_path / "x.png") == 2
    assert "no picture of samples of shape (3,)" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_an_interruption_is_one_line_and_writes_nothing(vectors, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "train", interrupt)
    assert call("train", "--data", vectors / "x.npy", "--out", tmp_path / "model") == 130
    assert capsys.readouterr().err == "sde-diffusion: interrupted\n"
    assert not (tmp_path / "model").exists()


def test_warnings_are_one_line(vectors, capsys, monkeypatch):
    import warnings

    def warn(*_, **__):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("mind\nthe gap", UserWarning, stacklevel=1)

    monkeypatch.setattr(sample_command, "run", warn)
    assert call("sample", "--checkpoint", "x", "--out", "x.npy") == 0
    assert capsys.readouterr().err == "sde-diffusion: warning: mind the gap\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "COMMAND"),
        (("sample", "--checkpoint", "x", "--out", "x.npy", "--n", "0"), "must be at least 1, got 0"),
        (("sample", "--checkpoint", "x", "--out", "x.npy", "--steps", "3", "--nfe", "3"), "not allowed with"),
        (("sample", "--checkpoint", "x", "--out", "x.npy", "--seed", "-1"), "must be at least 0, got -1"),
        (("train", "--data", "x", "--out", "y", "--kind", "xx"), "invalid choice: 'xx'"),
    ],
)
def test_wrong_usage_is_told_by_the_parser(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "distill", "sample", "tune", "likelihood", "demo"])
def test_help_shows_every_option_with_its_default(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "(default: 0)" in text
    assert "--threads" in text
    assert "(default: None)" not in text


# --- the demonstration


def test_the_demo_refuses_before_it_works(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"others must lie in 2..360, got 400"):
        run(tmp_path / "demo", Settings(others=400), say=print)
    with pytest.raises(ValueError, match=r"halves must lie in 10..360, got 9"):
        run(tmp_path / "demo", Settings(halves=9), say=print)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torchsde" else object())
    with pytest.raises(
        ImportError, match=r"the demo needs torchsde: pip install 'sde-diffusion\[ode,sde,train,examples\]'"
    ):
        run(tmp_path / "demo", QUICK, say=print)
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_the_quick_demo_writes_everything_and_its_checkpoint_samples(tmp_path, capsys):
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "sde_diffusion.cli", "demo", "--quick", "--out", str(out)],
        capture_output=True, text=True, timeout=180, check=False, cwd=Path(cli.__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pictures = ["fast.png", "film.png", "guided.png", "nfe.png", "samples.png"]
    assert sorted(p.name for p in out.iterdir()) == sorted(["checkpoint", "fast", "metrics.json", *pictures])
    assert "bits/dim" in done.stdout
    assert "real training images" in done.stdout
    assert f"sde-diffusion sample --checkpoint {out / 'checkpoint'}" in done.stdout
    metrics = json.loads((out / "metrics.json").read_text())
    assert len(metrics["table"]) == 2 + 1 + 3 * len(TUNED) + len(trials()) + len(CALLS)
    assert metrics["table"][0]["n"] == metrics["table"][2]["n"] == QUICK.headline
    assert metrics["likelihood"]["bin_width"] == pytest.approx(2 / 17)
    assert set(metrics["figures"]) == set(metrics["bars"])
    tuned = [row for row in metrics["table"] if row["name"].startswith("tuned")]
    assert [row["nfe"] for row in tuned] == list(TUNED)
    assert list(metrics["tuning"]["winners"]) == [str(nfe) for nfe in TUNED]
    guided = metrics["guided"]
    assert (guided["w"], guided["n"], guided["halves"]) == (2, QUICK.others, QUICK.halves)
    assert all(0 <= guided[name] <= 1 for name in ("plain", "recognised", "filled"))
    assert f"recognised with guidance 2:          {guided['recognised']:.1%}" in done.stdout
    few = metrics["distilled"]
    assert [(row["nfe"], row["n"]) for row in few["rows"]] == [(nfe, QUICK.others) for nfe in CALLS]
    assert few["teacher"]["nfe"] == 21
    assert call("sample", "--checkpoint", out / "fast", "--n", 3, "--nfe", 1, "--out", tmp_path / "one.npy") == 0
    assert np.load(tmp_path / "one.npy").shape == (3, 1, 8, 8)
    for name in pictures:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert call("sample", "--checkpoint", out / "checkpoint", "--n", 10, "--steps", 2, "--out", tmp_path / "x.npy") == 0
    assert np.load(tmp_path / "x.npy").shape == (10, 1, 8, 8)
    assert call("sample", "--checkpoint", out / "checkpoint", "--n", 2, "--nfe", 8, "--out", tmp_path / "x.npy") == 0
    assert "tuned for 8 evaluations: " in capsys.readouterr().out


def test_the_threads_asked_for_are_used(vectors, tmp_path, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    call(
        "sample", "--checkpoint", vectors / "model", "--n", 1, "--steps", 1, "--out", tmp_path / "x.npy", "--threads", 2
    )
    assert asked == [2]


def test_the_version_is_that_of_the_package_at_hand_be_it_installed_or_not(monkeypatch, capsys):
    monkeypatch.setattr(sde_diffusion, "__version__", "9.9.9")
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == "9.9.9"
