"""Claim: any data with any conditions train from the command line, and the run can be repeated, resumed and sampled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sde_diffusion import SDESampler, predict
from sde_diffusion.cli import main as cli
from sde_diffusion.cli.terminal.words import in_words
from sde_diffusion.nets import DiT, UNet
from sde_diffusion.training import load_checkpoint, load_class

ROOT = Path(cli.__file__).parents[2]
RANDOM = np.random.default_rng(0)
NET = """
import torch
from torch import nn


class Mine(nn.Module):
    clock, per_sample = "edm", ("context",)

    def __init__(self, dim, context=0, width=8, depth=1):
        super().__init__()
        self.config = {"dim": dim, "context": context, "width": width, "depth": depth}
        self.layers = nn.Sequential(nn.Linear(dim + context + 1, width), nn.SiLU(), nn.Linear(width, dim))

    def forward(self, x, t, context=None):
        told = x.new_zeros(len(x), self.config["context"]) if context is None else context.expand(len(x), -1)
        return self.layers(torch.cat([x, told, t[:, None]], 1))


class Needy(Mine):
    def __init__(self, dim, heads):
        super().__init__(dim)
"""
SDE = """
from dataclasses import dataclass
import torch
from sde_diffusion import GaussianSDE


@dataclass(frozen=True)
class Mine(GaussianSDE):
    t_max: float = 50.0
    t_min = 0.01

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return t
"""


def call(*words: object) -> int:
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)


def error_of(capsys, *words: object) -> str:
    """The one line of a command that must fail, and begins no step."""
    capsys.readouterr()
    assert call(*words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return str(line)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a table, and files of classes, as the current one."""
    frame = pd.DataFrame(RANDOM.normal(size=(80, 4)), columns=["a", "b", "dose", "age"])
    frame["dose"] = 1000 + 20 * frame["dose"]
    frame["kind"] = np.array(["cat", "dog", "owl", "cat"] * 20)
    frame.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "sde.py").write_text(SDE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRAIN = ("train", "--data", "t.csv", "--cond", "dose,age", "--cond", "label=kind", "--out", "m", "--steps", 3)
SMALL = ("--width", 8)


# --- data and conditions


def test_a_table_trains_with_conditions_in_its_own_units(here, capsys):
    assert call(*TRAIN, *SMALL) == 0
    said = capsys.readouterr().out
    assert "60 samples (2,), 20 kept out for validation, 3 classes, a context of 2, " in said
    assert "best validation after step 3" in said
    loaded = load_checkpoint("m")
    assert (loaded.classes, loaded.model.built_with()["context"]) == (3, 2)
    assert loaded.extra["labels"] == ["cat", "dog", "owl"]
    assert loaded.extra["columns"] == ["a", "b"]
    assert 990 < float(loaded.conditions["context"].config["mean"][0]) < 1010
    assert (
        call("sample", "--checkpoint", "m", "--cond", "context=1010,.5", "--label", 2, "--n", 4, "--out", "x.npy") == 0
    )
    context = loaded.conditions["context"].apply(torch.tensor([[1010, 0.5]], dtype=torch.float64))
    sampler = SDESampler(loaded.model.sde, loaded.model)
    found = loaded.scaling.undo(sampler.sample(4, seed=0, label=torch.full((4,), 2), context=context))
    assert np.array_equal(np.load("x.npy"), found.numpy())


def test_a_condition_has_one_row_or_one_for_each_sample_which_sets_their_number(here, capsys):
    call(*TRAIN, *SMALL)
    np.save("rows.npy", np.array([[1010, 0.5], [990, np.nan], [1000, 1]]))
    words = ("sample", "--checkpoint", "m", "--steps", 3, "--label", 0, "--out", "x.npy")
    assert call(*words, "--cond", "context=rows.npy") == 2  # no entry was unknown in training
    assert "train with entry_drop" in capsys.readouterr().err
    np.save("rows.npy", np.array([[1010, 0.5], [990, 2], [1000, 1]]))
    assert call(*words, "--cond", "context=rows.npy") == 0
    rows = np.load("x.npy")
    assert call(*words, "--cond", "context=1010,0.5", "--n", 3) == 0
    one = np.load("x.npy")
    np.testing.assert_allclose(rows[0], one[0], atol=1e-5)
    assert np.abs(rows[1:] - one[1:]).max() > 1e-4
    assert "3 rows, for 4 samples" in error_of(capsys, *words, "--cond", "context=rows.npy", "--n", 4)
    assert "no context is given" not in capsys.readouterr().out
    assert call(*words) == 0
    assert "no context is given, --cond context=...: samples are drawn as of an unknown" in capsys.readouterr().out


def test_likelihoods_find_the_conditions_of_the_training_in_the_data_and_take_others(here, capsys):
    call(*TRAIN, *SMALL)
    pd.read_csv("t.csv").head(5).to_csv("h.csv", index=False)
    words = ("likelihood", "--checkpoint", "m", "--out", "l.csv", "--data")
    assert call(*words, "h.csv") == 0
    own = pd.read_csv("l.csv")["log_prob"]
    pd.read_csv("h.csv")[["a", "b", "kind"]].to_csv("xy.csv", index=False)
    assert "has no column 'dose'" in error_of(capsys, *words, "xy.csv")
    dose, age = pd.read_csv("h.csv")[["dose", "age"]].iloc[0]
    assert call(*words, "xy.csv", "--cond", f"context={dose},{age}") == 0
    given = pd.read_csv("l.csv")["log_prob"]
    assert abs(own[0] - given[0]) < 1e-3
    assert np.abs(own[1:] - given[1:]).max() > 1e-3


def test_whole_numbers_are_dequantised_and_have_bits(here, capsys):
    for name in "ab":
        Path("img", name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(RANDOM.integers(0, 256, (4, 6), dtype=np.uint8)).save(f"img/{name}/{i}.png")
    assert call("train", "--data", "img", "--out", "m", "--steps", 2, *SMALL) == 0
    said = capsys.readouterr().out
    assert "12 samples (1, 4, 6), too few to keep some out for validation, 2 classes" in said
    assert "whole numbers: every batch has fresh points in their bins" in said
    assert call("sample", "--checkpoint", "m", "--n", 2, "--steps", 3, "--out", "x.npy") == 0
    assert np.abs(np.load("x.npy")).max() > 5  # in levels of the bytes
    assert call("likelihood", "--checkpoint", "m", "--data", "img", "--out", "l.json", "--probes", 2) == 0
    assert "bits/dim" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "net", "kind"),
    [((2, 8), None, UNet), ((1, 4, 4, 4), None, UNet), ((2, 8), "dit", DiT), ((5,), "dit", DiT)],
)
def test_the_network_fits_the_shape_of_the_data_and_an_image_beside_it(shape, net, kind, here, capsys):
    beside: Any = {} if len(shape) == 1 else {"image": RANDOM.normal(size=(60, 1, *shape[1:]))}
    np.savez("x.npz", x=RANDOM.normal(size=(60, *shape)), **beside)
    words = () if net is None else ("--net", net, "--net-args", "depth=1, heads=2")
    assert call("train", "--data", "x.npz", "--out", "m", "--steps", 1, "--batch-size", 8, *SMALL, *words) == 0
    loaded = load_checkpoint("m")
    assert isinstance(loaded.model.net, kind)
    assert set(loaded.conditions) == set(beside)
    given = ("--cond", "image=x.npz") if beside else ("--n", 60)
    assert call("sample", "--checkpoint", "m", "--steps", 2, *given, "--out", "s.npy") == 0
    assert np.load("s.npy").shape == (60, *shape)


@pytest.mark.filterwarnings("always::UserWarning")
def test_other_scales_and_data_kept_out_by_hand(here, capsys):
    np.save("heavy.npy", RANDOM.standard_cauchy((60, 2)))
    np.save("other.npy", RANDOM.standard_cauchy((20, 2)))
    for scale, name in (("quantile", "Quantile"), ("none", "Standardise")):
        words = ("--scale", scale, "--val", "other.npy", "--out", scale, "--steps", 2)
        assert call("train", "--data", "heavy.npy", *words, *SMALL) == 0
        assert ("but the model expects about 0 and 1" in capsys.readouterr().err) == (scale == "none")
        assert type(load_checkpoint(scale).scaling).__name__ == name
        assert "val_nats" in Path(scale, "metrics.jsonl").read_text()


# --- networks and processes of your own


def test_a_network_and_a_process_of_your_own_go_by_their_files(here, capsys):
    own = ("--net", "net.py:Mine", "--sde", "sde.py:Mine")
    words: tuple[object, ...]
    words = ("train", "--data", "t.csv", "--cond", "dose,age,kind", "--steps", 3)
    assert "column 'kind' of t.csv holds" in error_of(capsys, *words, "--out", "m", *own)
    pd.read_csv("t.csv").drop(columns="kind").to_csv("t.csv", index=False)
    words = ("train", "--data", "t.csv", "--cond", "dose,age", "--steps", 3, *own)
    assert call(*words, "--out", "m", "--net-args", "width=12", "--sde-args", "t_max=40.0") == 0
    assert "next: sde-diffusion sample --checkpoint m --net net.py:Mine --sde sde.py:Mine" in capsys.readouterr().out
    sample = ("sample", "--checkpoint", "m", "--n", 3, "--steps", 3, "--cond", "context=1000,0", "--out", "x.npy")
    assert "on the command line, --sde sde.py:Mine" in error_of(capsys, *sample)
    assert "on the command line, --net net.py:Mine" in error_of(capsys, *sample, *own[2:])
    assert call(*sample, *own) == 0
    loaded = load_checkpoint("m", known=[load_class("net.py:Mine"), load_class("sde.py:Mine")])
    assert loaded.model.built_with() == {"dim": 2, "context": 2, "width": 12, "depth": 1}
    assert loaded.model.sde.t_max == 40
    context = loaded.conditions["context"].apply(torch.tensor([[1000.0, 0]], dtype=torch.float64))
    found = SDESampler(loaded.model.sde, loaded.model, steps=3).sample(3, seed=0, context=context)
    assert np.array_equal(np.load("x.npy"), loaded.scaling.undo(found).numpy())
    pd.read_csv("t.csv").head(3).to_csv("h.csv", index=False)
    assert call("likelihood", "--checkpoint", "m", "--data", "h.csv", "--out", "l.json", *own) == 0
    assert call("train", "m/config.toml", "--resume") == 0
    assert call(*words, "--out", "fine", "--from", "m") == 0


# --- going on, again, and from


def test_the_file_kept_with_a_run_repeats_it(here, capsys):
    assert call(*TRAIN, *SMALL, "--seed", 3) == 0
    assert call("train", "m/config.toml", "--out", "again") == 0
    one, two = (load_checkpoint(place).model.state_dict() for place in ("m", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_does_not_go_on_is_refused_by_the_name_of_the_option(here, capsys):
    assert "--out m holds no run to go on with" in error_of(capsys, *TRAIN, *SMALL, "--resume")
    assert call(*TRAIN, *SMALL) == 0
    assert "holds a model.json already" in error_of(capsys, *TRAIN, *SMALL)
    assert "--resume goes on with the run in --out, --overwrite" in error_of(capsys, *TRAIN, "--resume", "--overwrite")
    assert "--batch-size is 8, but the run in" in error_of(
        capsys, "train", "m/config.toml", "--resume", "--batch-size", 8
    )
    assert call("train", "m/config.toml", "--resume", "--device", "cpu", "--threads", 2) == 0
    Path("t.csv").write_text(Path("t.csv").read_text().replace("cat", "ape"))
    frame = pd.read_csv("t.csv")
    frame["a"] = frame["a"][::-1].to_numpy()
    frame.to_csv("t.csv", index=False)
    assert "data is 60 rows of (2,)" in error_of(capsys, "train", "m/config.toml", "--resume")


@pytest.mark.filterwarnings("always::UserWarning")
def test_another_training_begins_from_a_checkpoint_with_its_scaling(here, capsys):
    assert call(*TRAIN, *SMALL) == 0
    frame = pd.read_csv("t.csv")
    frame["a"] = 5 + 2 * frame["a"]
    frame.to_csv("t.csv", index=False)
    words = ("--out", "fine", "--from", "m", "--lr", "1e-9")
    capsys.readouterr()
    assert call(*TRAIN, *words) == 0
    said = capsys.readouterr().err
    assert "--data t.csv: column a of the data has mean" in said
    assert "is it in other units? Bring it to those" in said
    assert said.count("has mean") == 1
    old, new = load_checkpoint("m"), load_checkpoint("fine")
    assert new.scaling.config == old.scaling.config
    assert new.conditions["context"].config == old.conditions["context"].config
    before, after = old.model.state_dict(), new.model.state_dict()
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)
    for option, value in (("--sde", "vp"), ("--kind", "v"), ("--width", 9), ("--net", "mlp"), ("--scale", "none")):
        assert f"leave {option} out" in error_of(capsys, *TRAIN, "--out", "other", "--from", "m", option, value)


def test_data_that_do_not_fit_the_model_begun_from_are_told_by_their_names(here, capsys):
    assert (
        call("train", "--data", "t.csv", "--cond", "dose,age", "--out", "m", "--steps", 1, *SMALL) == 2
    )  # kind is words
    frame = pd.read_csv("t.csv").drop(columns="kind")
    frame.to_csv("t.csv", index=False)
    assert call("train", "--data", "t.csv", "--cond", "dose,age", "--out", "m", "--steps", 1, *SMALL) == 0
    frame.rename(columns={"a": "mass"}).to_csv("other.csv", index=False)
    np.save("wide.npy", RANDOM.normal(size=(80, 3)))
    np.savez("narrow.npz", x=RANDOM.normal(size=(80, 2)), context=RANDOM.normal(size=(80, 1)))
    np.save("plain.npy", RANDOM.normal(size=(80, 2)))
    for words, message in (
        (
            ("other.csv", "--cond", "dose,age"),
            "learnt from are a, b: missing: a; not learnt: mass, leave out or",
        ),
        (("t.csv", "--cond", "dose"), "a condition then, and none now: name it again, --cond dose,age"),
        (("wide.npy",), "has samples of shape (3,), but the model in --from m is one of (2,), a, b: give data of that"),
        (
            ("narrow.npz", "--cond", "context"),
            "comes with context of 1, but the model in --from m was trained with",
        ),
        (("plain.npy",), "comes with no context, but the model in --from m was trained with context of 2 (dose, age)"),
    ):
        assert message in error_of(capsys, "train", "--data", *words, "--out", "n", "--steps", 1, "--from", "m")
    np.save("one.npy", np.array([1000.0, 0.0]))
    sample = ("sample", "--checkpoint", "m", "--steps", 2, "--num", 3, "--out")
    assert call(*sample, "x.npy", "--cond", "context=one.npy") == 0
    assert call(*sample, "y.npy", "--cond", "context=1000,0") == 0
    assert np.array_equal(np.load("x.npy"), np.load("y.npy"))


def test_advice_in_python_is_said_in_the_words_of_the_command_line():
    for said, words in (
        ("keep some out, and give them as val, which tells when", "keep some out, --val 0.1, which tells when"),
        ("Give it as a condition, such as label=, or with fresh bins, x", "Give it as a condition, --cond"),
        ("and 1: standardise it, (x - 5) / 3, or give predict.EDM(data_std=3.0)", "and 1: leave --scale none out"),
        ("came: give context=, or build the net without it", "came: name it, --cond context=..., or take a network"),
        ("m holds a run already: go on with it, resume=True; or give another", "m holds a run already: --resume goes"),
        (
            "its weights, train(load_checkpoint('m').model, ..., out=another folder)",
            "weights, --from m and another",
        ),
    ):
        assert words in in_words(said)


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_ends_as_one_that_was_not(here):
    words = [*map(str, TRAIN[:-1]), "300", "--width", "8", "--save-every", "20"]
    env, command = {**os.environ, "PYTHONPATH": str(ROOT)}, [sys.executable, "-m", "sde_diffusion.cli", *words]
    run = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not Path("m/metrics.jsonl").exists() or '"step": 60,' not in Path("m/metrics.jsonl").read_text():
        time.sleep(0.02)
        assert run.poll() is None
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = int(load_checkpoint("m").extra["steps"])
    assert 40 <= done < 300
    assert call("train", "m/config.toml", "--resume") == 0
    assert call("train", "m/config.toml", "--out", "whole") == 0
    one, two = (load_checkpoint(place).model.state_dict() for place in ("m", "whole"))
    assert all(torch.equal(one[name], two[name]) for name in one)


# --- several processes


@pytest.mark.slow
def test_two_processes_train_sample_and_weigh_as_one_does(here):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]

    def both(*words: object) -> str:
        run = [*launch, "-m", "sde_diffusion.cli", *map(str, words)]
        done = subprocess.run(run, env=env, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = both(*TRAIN, *SMALL, "--net-args", "label_drop=0.0, context_drop=0.0")  # what a network draws is its own
    assert said.count("saved to m") == said.count("60 samples") == 1
    assert call("train", "m/config.toml", "--out", "one") == 0
    one, two = (load_checkpoint(place).model.state_dict() for place in ("one", "m"))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    words = (
        "sample",
        "--checkpoint",
        "m",
        "--samples",
        40,
        "--batch-size",
        8,
        "--steps",
        3,
        "--cond",
        "context=1000,0",
    )
    assert both(*words, "--out", "two").count("40 samples") == 1
    assert call(*words, "--out", "one-shards") == 0
    assert call(*words, "--out", "one.npy") == 0
    shards = [np.concatenate([np.load(f) for f in sorted(Path(p).glob("*.npy"))]) for p in ("two", "one-shards")]
    assert np.array_equal(shards[0], shards[1])
    assert np.array_equal(shards[0], np.load("one.npy"))
    both("likelihood", "--checkpoint", "m", "--data", "t.csv", "--out", "two.csv", "--batch-size", 16)
    assert call("likelihood", "--checkpoint", "m", "--data", "t.csv", "--out", "one.csv", "--batch-size", 16) == 0
    assert Path("one.csv").read_text() == Path("two.csv").read_text()


# --- the rest


def test_precision_previews_parts_of_a_batch_and_the_objective_are_taken(here, capsys):
    words: tuple[object, ...] = (
        "--previews",
        4,
        "--accumulate",
        2,
        "--batch-size",
        8,
        "--weight",
        "p2",
        "--times",
        "log-snr",
        "--keep",
        2,
    )
    assert call(*TRAIN, *SMALL, *words, "--precision", "bf16", "--save-every", 1) == 0
    assert "DenoisingScoreMatching(times=uniform_log_snr, weight=P2(" in capsys.readouterr().out
    assert np.load("m/previews/step_000003.npy").shape == (4, 2)
    assert len(list(Path("m").glob("state.*.json"))) == 2
    words = ("--sde", "ddpm", "--kind", "noise", "--learn-variance", "--weight", "uncertainty", "--out", "u")
    assert call(*TRAIN, *SMALL, *words[:5], "--out", "v") == 0
    assert type(load_checkpoint("v").model.kind) is predict.LearnedVariance
    assert call(*TRAIN, *SMALL, "--weight", "uncertainty", "--out", "u") == 0


REFUSED = [
    (("--net", "foo"), "--net must be one of mlp, unet, dit, or FILE.py:NAME, got 'foo'"),
    (("--sde", "foo"), "--sde must be one of "),
    (("--net", "no.py:Net"), "there is no file no.py, where the class Net was to be"),
    (("--net", "net.py:No"), "net.py has no No: it has Mine, Needy"),
    (("--net", "sde.py:Mine"), "--net sde.py:Mine is no torch.nn.Module"),
    (("--sde", "net.py:Mine", "--sde-args", "dim=1"), "--sde net.py:Mine is no GaussianSDE"),
    (("--sde", "vp", "--sde-args", "foo=1"), "--sde vp cannot be made with {'foo': 1}"),
    (("--net", "net.py:Needy"), "Needy needs the argument 'heads', which follows from nothing: --net-args 'heads=...'"),
    (("--net-args", "foo=1"), "--net-args: MLP has no argument 'foo': it has dim, hidden, layers"),
    (("--net-args", "foo"), "argument --net-args: wanted arguments such as"),
    (("--net", "unet"), "x must have shape (B, 2, H, W)"),
    (("--accumulate", 3), "--batch-size 128 does not split into --accumulate 3 equal parts"),
    (("--device", "cuda:7"), "--device cuda:7: this machine has "),
    (("--device", "tpu"), "wanted auto, cpu, cuda, cuda:1 or mps, got 'tpu'"),
    (("--precision", "fp16", "--device", "cpu"), "--precision fp16 needs a GPU"),
    (("--log-with", "paper"), "no tracker is called 'paper': there are "),
    (("--cond", "weight"), "t.csv has no column 'weight': its columns are a, b, dose, age, kind"),
    (("--cond", "mass=dose"), "MLP takes the conditions label, context and image, and not 'mass': name it so, --cond"),
    (("--cond", "context=no.npy"), "there is no file no.npy, for the condition context"),
    (("--cond", "context=short.npy"), "condition 'context' has 3 rows, and the data have 80"),
    (("--cond", "context=flat.npy"), "the condition context has shape (N,), wanted (N, d)"),
    (("--val", "no.csv"), "No data at no.csv"),
    (("--val", "wide.csv"), "--val wide.csv has samples of shape (1,), and --data of (2,)"),
    (
        ("--val", "t.csv", "--cond", "context=rows.npy"),
        "conditions in a file beside --data are not those of",
    ),
    (("--from", "no", "--resume"), "--out m holds no run to go on with"),
    (("--from", "no"), "--from no brings its own model and scaling: leave --width out"),
    (("--size", 8), "size is that of images in a folder"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(map(str, words)) for words, _ in REFUSED])
def test_what_cannot_be_trained_is_refused_in_one_line_and_leaves_nothing(words, message, here, capsys):
    np.save("short.npy", np.ones((3, 2)))
    np.save("flat.npy", np.arange(80.0))
    np.save("rows.npy", RANDOM.normal(size=(80, 2)))
    pd.read_csv("t.csv")[["a", "dose", "age", "kind"]].to_csv("wide.csv", index=False)
    base: tuple[object, ...] = ("train", "--data", "t.csv", "--cond", "label=kind", "--out", "m", "--steps", 1, *SMALL)
    if "--cond" not in words:
        base = (*base, "--cond", "dose,age")
    assert message in error_of(capsys, *base, *words)
    assert not Path("m").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("context", "wanted NAME=VALUES, context=1.5,2, or NAME=FILE, context=obs.npy"),
        ("context=a,b", "wanted numbers with commas between, nan for one that is not known, or a file"),
        ("context=1", "--cond context has 1 entries, and 2 in the training: give all of them, in order"),
        ("context=no.npy", "there is no file no.npy, for the condition context"),
        ("image=1", "--cond image: the model takes no image, only label, context"),
        ("label=1.5", "--cond label='1.5': wanted one class, or a file with one for each sample"),
        ("label=7", "label must lie in"),
    ],
)
def test_a_condition_that_does_not_fit_a_model_is_refused(word, message, here, capsys):
    call(*TRAIN, *SMALL)
    assert message in error_of(capsys, "sample", "--checkpoint", "m", "--out", "x.npy", "--cond", word)


def test_a_folder_of_shards_is_of_one_job(here, capsys):
    call(*TRAIN, *SMALL)
    words = ("sample", "--checkpoint", "m", "--steps", 2, "--num", 10, "--out", "shards")
    assert call(*words) == 0
    assert call(*words) == 0
    assert np.load("shards/shard-000000.npy").shape == (10, 2)
    assert "holds samples with seed = 0, and seed = 1 was asked for" in error_of(capsys, *words, "--seed", 1)


@pytest.mark.slow
def test_the_posterior_of_a_linear_gaussian_problem_of_eight_observations(here):
    a = np.random.default_rng(1).normal(size=(8, 2))
    theta = RANDOM.normal(size=(20_000, 2))
    seen = theta @ a.T + RANDOM.normal(size=(20_000, 8))
    frame = pd.DataFrame(np.concatenate([3 * theta + 100, seen], 1), columns=["t0", "t1", *(f"y{i}" for i in range(8))])
    frame.to_parquet("sims.parquet")
    names = ",".join(f"y{i}" for i in range(8))
    assert call("train", "--data", "sims.parquet", "--cond", names, "--out", "m", "--steps", 2000, "--width", 64) == 0
    y = np.random.default_rng(2).normal(size=(1, 2)) @ a.T
    values = ",".join(map(str, y[0]))
    assert call("sample", "--checkpoint", "m", "--cond", f"context={values}", "--num", 8000, "--out", "p.npy") == 0
    x = np.load("p.npy").astype("float64")
    covariance = np.linalg.inv(np.eye(2) + a.T @ a)
    off = np.abs(x.mean(0) - 100 - 3 * (covariance @ a.T @ y[0])) / 3
    spread = np.linalg.norm(np.cov(x.T) - 9 * covariance) / np.linalg.norm(9 * covariance)
    print(f"mean off by {off} of the data, covariance by {spread}; 0.016 is one standard error of a variance")
    assert off.max() < 0.05
    assert spread < 0.05


def test_a_table_that_names_its_columns_or_classes_in_another_order_is_refused(tmp_path, capsys):
    generator = np.random.default_rng(0)
    table = pd.DataFrame(generator.normal(size=(60, 2)), columns=["a", "b"])
    table["kind"] = ["x", "y"] * 30
    table.to_csv(tmp_path / "t.csv", index=False)
    table[["b", "a", "kind"]].to_csv(tmp_path / "swapped.csv", index=False)
    table[table.kind == "y"].to_csv(tmp_path / "one.csv", index=False)
    run = ["train", "--cond", "label=kind", "--steps", "2", "--width", "8", "--out"]
    made, data = str(tmp_path / "m"), ["--data", str(tmp_path / "t.csv")]
    assert cli.main([*run, made, *data, "--val", "0"]) == 0
    swapped, one = str(tmp_path / "swapped.csv"), str(tmp_path / "one.csv")
    begin = ["train", "--cond", "label=kind", "--out", str(tmp_path / "n")]
    ask = ["likelihood", "--checkpoint", made, "--out", str(tmp_path / "l.json"), "--data"]
    for command, message in (
        ([*ask, swapped], "its columns are b, a, but those learnt from are a, b, in this order: bring them into it"),
        (
            [*ask, one],
            "its classes are y, but those learnt from are x, y, in this order: give each class by its number",
        ),
        ([*run, str(tmp_path / "n"), *data, "--val", swapped], "swapped.csv: its columns are b, a, but those learnt"),
        (
            [*begin, "--data", swapped, "--from", made],
            "swapped.csv: its columns are b, a, but",
        ),
    ):
        capsys.readouterr()
        assert cli.main(command) == 2
        assert message in capsys.readouterr().err
