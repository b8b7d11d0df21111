"""Claim: models of codes and stages of a cascade train, go on and draw from the command line as in Python.

What a checkpoint is, it says itself; what cannot be asked of it is refused in one line before any work.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import called_as, run_processes

from sde_diffusion import SDESampler
from sde_diffusion.cascade import Cascade, LowResolution, Upsampler
from sde_diffusion.cli import main as cli
from sde_diffusion.latent import LatentSampler, elbo, load_codec
from sde_diffusion.likelihood import Estimate
from sde_diffusion.training import load_checkpoint

ROOT = Path(cli.__file__).parents[2]
NET = ("--width", 8, "--net-args", "multipliers=[1], attention=0", "--batch-size", 16)
CODEC = ("--latent", "--codec-steps", 2, "--codec-factor", 2, "--codec-width", 8, "--codec-channels", 2)
TINY = ("--steps", 2, *NET)


def call(*words: object) -> int:
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)


def error_of(capsys: Any, *words: object) -> str:
    """The one line of a command that must fail."""
    capsys.readouterr()
    assert call(*words) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("sde-diffusion")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data, and what was trained on them: a model of codes, a base and a stage of a cascade."""
    folder = tmp_path_factory.mktemp("forms")
    x = np.random.default_rng(0).normal(size=(60, 1, 4, 4)).cumsum(2) * 3 + 5
    np.savez(folder / "x.npz", x=x.astype("float32"), label=np.arange(60) % 3)
    np.save(folder / "low.npy", x[:5].reshape(5, 1, 2, 2, 2, 2).mean((3, 5)))
    data = ("train", "--data", folder / "x.npz", *TINY, "--out")
    assert call(*data, folder / "latent", *CODEC) == 0
    assert call(*data, folder / "base", "--shrink", 2) == 0
    assert call(*data, folder / "up", "--low-res", 2, "--augment", 0.4) == 0
    return folder


@pytest.fixture
def here(made, monkeypatch, tmp_path):
    """A folder of its own, in which the others' files are at hand."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sampled(*words: object) -> Any:
    assert call("sample", *words, "--out", "s.npy") == 0
    return np.load("s.npy")


# --- codes


def test_a_model_of_codes_draws_data_in_their_units_by_its_checkpoint_alone(here, capsys):
    x = sampled("--checkpoint", "latent", "--n", 6, "--nfe", 6, "--seed", 3)
    assert ", codec)" in capsys.readouterr().out
    loaded, found = load_checkpoint("latent"), load_codec("latent")
    assert loaded.model.shape == (2, 2, 2)
    assert loaded.extra["latent"]["shape"] == [1, 4, 4]
    sampler = LatentSampler(SDESampler(loaded.model.sde, loaded.model, nfe=6), found.codec)
    wanted = found.scaling.undo(sampler.sample(6, seed=3, label=torch.arange(6) % 3))
    assert np.array_equal(x, wanted.numpy())
    assert call("sample", "--checkpoint", "latent", "--n", 2, "--nfe", 4, "--guidance", 2, "--out", "s.png") == 0


@pytest.mark.slow
def test_the_likelihood_of_a_model_of_codes_is_a_bound_and_says_so(here, capsys):
    np.savez("few.npz", x=np.load("x.npz")["x"][:4], label=np.arange(4) % 3)
    assert call("likelihood", "--checkpoint", "latent", "--data", "few.npz", "--out", "l.json") == 0
    said = capsys.readouterr().out
    assert "log p >= " in said
    assert "a bound from below, through the codec" in said
    assert "4 bounds in l.json" in said
    loaded, found = load_checkpoint("latent"), load_codec("latent")
    x = torch.from_numpy(np.load("few.npz")["x"])
    sampler = LatentSampler(SDESampler(loaded.model.sde, loaded.model), found.codec)
    wanted = elbo(sampler, found.scaling.apply(x, torch.float32), seed=0, label=torch.arange(4) % 3)
    value = wanted.value + found.scaling.log_jacobian(x)
    about = json.loads(Path("l.json").read_text())
    assert about["kind"] == "bound from below"
    assert [row["bound"] for row in about["rows"]] == pytest.approx(value.tolist(), abs=1e-4)
    terms = sum(about["rows"][0][name] for name in ("reconstruction", "prior", "entropy"))
    assert terms == pytest.approx(about["rows"][0]["bound"], abs=1e-9)
    assert "--correct makes no density of codes" in error_of(
        capsys, "likelihood", "--checkpoint", "latent", "--data", "few.npz", "--out", "l.json", "--correct"
    )


@pytest.mark.slow
def test_the_bound_by_noise_levels_is_that_of_python_in_any_batches(here, capsys):
    np.savez("few.npz", x=np.load("x.npz")["x"][:5], label=np.arange(5) % 3)
    data = ("likelihood", "--checkpoint", "latent", "--data", "few.npz", "--out", "l.json", "--levels", 8)
    assert call(*data, "--batch-size", 2) == 0
    loaded, found = load_checkpoint("latent"), load_codec("latent")
    x = torch.from_numpy(np.load("few.npz")["x"])
    sampler = LatentSampler(SDESampler(loaded.model.sde, loaded.model), found.codec)
    z = found.scaling.apply(x, torch.float32)
    wanted = elbo(sampler, z, estimate=Estimate(levels=8), seed=0, label=torch.arange(5) % 3)
    value = wanted.value + found.scaling.log_jacobian(x)
    rows = json.loads(Path("l.json").read_text())["rows"]
    assert [row["bound"] for row in rows] == pytest.approx(value.tolist(), abs=1e-3)
    assert "--probes is of the density of codes, --levels of the bound" in error_of(capsys, *data, "--probes", 2)
    np.savez("low.npz", x=np.load("low.npy"), label=np.arange(5) % 3)
    plain = ("likelihood", "--checkpoint", "base", "--data", "low.npz", *data[5:])
    assert "--levels is of the bound of a model of codes, and this one has a density" in error_of(capsys, *plain)


@pytest.mark.slow
def test_a_codec_that_is_there_is_taken_and_a_training_begins_from_a_model_of_codes(here, capsys):
    data = ("train", "--data", "x.npz", "--batch-size", 16, "--steps", 1, "--previews", 2, "--out")
    assert call(*data, "other", "--latent", "latent", *NET) == 0
    said = capsys.readouterr().out
    assert "first a codec" not in said
    assert "the codec loses " in said
    assert np.load("other/previews/step_000001.npy").shape == (2, 1, 4, 4)
    assert call(*data, "fine", "--from", "latent") == 0
    for name in ("other", "fine"):
        one, two = load_codec("latent").codec.state_dict(), load_codec(name).codec.state_dict()
        assert all(torch.equal(one[key], two[key]) for key in one)
        assert load_checkpoint(name).extra["latent"] == load_checkpoint("latent").extra["latent"]
        assert sampled("--checkpoint", name, "--n", 2, "--nfe", 3).shape == (2, 1, 4, 4)


def cut(monkeypatch: Any, place: str) -> Any:
    """Interrupts what is called at a place after its first step."""
    module, name = place.rsplit(".", 1)
    whole = getattr(sys.modules[module], name)

    def stop(event: Any) -> None:
        if event.kind == "step":
            raise KeyboardInterrupt

    def short(*args: Any, callbacks: Any, **options: Any) -> Any:
        return whole(*args, callbacks=[*callbacks, stop], **options)

    patch = pytest.MonkeyPatch()
    patch.setattr(place, short)
    return patch


@pytest.mark.slow
@pytest.mark.parametrize("place", ["forms.latent.train_codec", "plan.running.train"])
def test_a_run_of_two_phases_goes_on_in_the_one_in_which_it_was_cut(place, here, monkeypatch, capsys):
    first = place == "forms.latent.train_codec"
    words = ("train", "--data", "x.npz", *TINY, *CODEC, "--out", "m")
    patch = cut(monkeypatch, f"sde_diffusion.cli.{place}")
    assert call(*words) == 130
    patch.undo()
    said = capsys.readouterr().out
    assert (
        "ended after 1 of 2 steps of the codec, saved in m; to go on: sde-diffusion train m/config" in said
    ) == first
    assert Path("m/model.json").exists() != first
    if first:
        other = ("train", "--data", "x.npz", *TINY, "--latent", "m", "--out", "k")
        assert "the training of its codec has not ended: go on with it there, --resume" in error_of(capsys, *other)
    assert call("train", "m/config.toml", "--resume") == 0
    assert ("first a codec" in capsys.readouterr().out) == first
    one, two = (load_checkpoint(name) for name in ("m", "latent"))
    assert all(torch.equal(value, two.model.state_dict()[name]) for name, value in one.model.state_dict().items())
    assert one.extra["latent"] == two.extra["latent"]


@pytest.mark.slow
def test_another_codec_or_none_beside_a_model_of_codes_is_refused_and_overwritten_runs_leave_none(here, capsys):
    shutil.copytree("latent", "m")
    ask = ("sample", "--checkpoint", "m", "--n", 1, "--out", "s.npy")
    assert call("train", "--data", "x.npz", *TINY, *CODEC, "--out", "n", "--seed", 1) == 0
    for file in Path("m").glob("codec*"):
        file.unlink()
    assert "holds a model of codes, and no codec.json, which decodes them" in error_of(capsys, *ask)
    for file in Path("n").glob("codec*"):
        shutil.copy(file, "m")
    assert "codec.json is not the codec whose codes the model learnt" in error_of(capsys, *ask)
    again = ("train", "--data", "x.npz", *TINY, "--out", "m")
    assert "--out m holds" in error_of(capsys, *again)
    assert call(*again, "--overwrite") == 0
    assert not list(Path("m").glob("codec*"))
    assert sampled("--checkpoint", "m", "--n", 1, "--nfe", 3).shape == (1, 1, 4, 4)


@pytest.mark.slow
def test_a_model_of_codes_is_tuned_and_distilled_among_codes(here, capsys):
    shutil.copytree("latent", "m")
    words = ("tune", "--checkpoint", "m", "--nfe", 2, "--batch", 16, "--objective", "energy", "--data", "x.npz")
    assert call(*words) == 0
    assert "tuned as a model of codes" in capsys.readouterr().out
    x = sampled("--checkpoint", "m", "--nfe", 2, "--n", 3)
    assert "TableSolver" in capsys.readouterr().out
    assert x.shape == (3, 1, 4, 4)
    assert not np.array_equal(x, sampled("--checkpoint", "m", "--nfe", 2, "--n", 3, "--no-tuned"))
    assert call("distill", "--checkpoint", "m", "--out", "fast", "--steps", 1, "--batch-size", 8) == 0
    assert "45 codes (2, 2, 2)" in capsys.readouterr().out
    assert sampled("--checkpoint", "fast", "--nfe", 1, "--n", 3).shape == (3, 1, 4, 4)


# --- stages of a cascade


def test_a_stage_draws_of_low_resolutions_and_behind_its_base_as_in_python(here, capsys):
    x = sampled("--checkpoint", "up", "--low", "low.npy", "--nfe", 4, "--seed", 3, "--level", 0.2, "--label", 1)
    base, up = load_checkpoint("base"), load_checkpoint("up")
    low = LowResolution.of(up.extra["low_res"])
    assert low == LowResolution(2, 0.4)
    stage = Upsampler(SDESampler(up.model.sde, up.model, nfe=4), low, 0.2)
    seen = up.scaling.apply(torch.from_numpy(np.load("low.npy")), torch.float32)
    wanted = up.scaling.undo(stage.sample(5, low=seen, seed=3, label=torch.full((5,), 1)))
    assert np.array_equal(x, wanted.numpy())
    words = ("--checkpoint", "base", "--then", "up", "--nfe", "6,4", "--n", 6, "--level", 0.2)
    x = sampled(*words)
    first = SDESampler(base.model.sde, base.model, nfe=6)
    cascade = Cascade([first, stage], scalings=[base.scaling, up.scaling])
    wanted = up.scaling.undo(cascade.sample(6, seed=0, label=torch.arange(6) % 3))
    assert np.array_equal(x, wanted.numpy())
    capsys.readouterr()
    assert call("sample", *words[:4], "--nfe", 4, "--n", 2, "--guidance", 2, "--out", "s.png") == 0
    assert "the first stage is guided" in capsys.readouterr().out


@pytest.mark.slow
def test_a_base_is_of_means_over_blocks_and_a_training_begins_from_a_stage(here, capsys):
    x = torch.from_numpy(np.load("x.npz")["x"])
    assert load_checkpoint("base").extra["data_range"] == pytest.approx(
        [float(value) for value in LowResolution(2).shrink(x).aminmax()], abs=1e-5
    )
    np.save("bytes.npy", np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), dtype=np.uint8))
    data = ("train", "--data", "x.npz", "--batch-size", 16, "--steps", 1, "--out")
    assert call(*data, "fine", "--from", "up") == 0
    assert load_checkpoint("fine").extra["low_res"] == load_checkpoint("up").extra["low_res"]
    assert call("train", "--data", "x.npz", *TINY, "--shrink", 2, "--low-res", 2, "--out", "mid") == 0
    assert load_checkpoint("mid").model.shape == (1, 2, 2)
    words = ("train", "--data", "bytes.npy", *TINY, "--out")
    assert call(*words, "low", "--shrink", 2) == 0
    assert call(*words, "high", "--low-res", 2, "--augment", 0) == 0
    assert sampled("--checkpoint", "low", "--then", "high", "--nfe", 3, "--n", 2).shape == (2, 1, 4, 4)


# --- what is refused

TRAINED = [
    (("--latent", "--low-res", 2), "--latent and --low-res do not go together"),
    (("--low-res", 3), "--low-res 3: factor=3 must divide the spatial axes of the data, got shape (1, 4, 4)"),
    (("--low-res", 2, "--augment", -1), "--augment -1.0: most must be 0 or more and finite"),
    (("--augment", 0.2), "--augment is the noise on a low resolution: give --low-res FACTOR"),
    (("--low-res", 2, "--scale", "quantile"), "leave --scale quantile out"),
    (("--low-res", 2, "--previews", 2), "--previews of a stage want low resolutions"),
    (("--low-res", 2, "--weight", "uncertainty"), "--weight uncertainty does not go with --low-res"),
    (("--low-res", 2, "--cond", "context=c.npy"), "the data come with a context of their own"),
    (("--low-res", 2, "--from", "base"), "--low-res: the model in --from base was told no low resolution"),
    (("--low-res", 4, "--from", "up"), "--from up brings its own low resolution"),
    (("--low-res", 2, "--data", "v.npy"), "--low-res 2: factor=2 is of data (C, *spatial)"),
    (("--shrink", 3), "--shrink 3: factor=3 must divide the spatial axes of the data"),
    (("--latent", "--data", "v.npy"), "--latent trains a codec of fields (N, C, *lengths) of one to three axes"),
    (("--latent", "--codec-factor", 8), "--codec-factor 8 must divide the lengths (4, 4) of the data"),
    (("--latent", "--codec-factor", 3), "wanted 2, 4, 8 or 16, got '3'"),
    (("--latent", "--codec-width", 9), "--codec-width must be a multiple of 8, got 9"),
    (("--codec-steps", 9), "--codec-steps is of a codec that is trained: give --latent, or leave it out"),
    (("--latent", "latent", "--codec-steps", 9), "--latent latent brings its own, or leave it out"),
    (("--latent", "base"), "--latent base holds no codec, codec.json"),
    (("--latent", "latent", "--shrink", 2), "the codec is one of data of shape (1, 4, 4), and --data has (1, 2, 2)"),
    (("--latent", "--cond", "image=i.npy"), "--latent: an image beside the data has their lengths"),
    (("--latent", "--from", "latent"), "--from latent brings its own codec"),
    (("--latent", "--codec-factor", 2, "--net-args", "multipliers=[1, 2, 2]"), "UNet halves H, W twice"),
    (("--from", "latent", "--data", "v.npy"), "has samples of shape (5,), but the model in --from latent is one of (1"),
]


@pytest.mark.parametrize(("words", "message"), TRAINED, ids=[" ".join(map(str, words)) for words, _ in TRAINED])
def test_what_cannot_be_trained_is_refused_before_any_work_and_leaves_nothing(words, message, here, capsys):
    for name, shape in (("v", (60, 5)), ("c", (60, 2)), ("i", (60, 1, 4, 4))):
        np.save(f"{name}.npy", np.random.default_rng(0).normal(size=shape))
    data = () if "--data" in words else ("--data", "x.npz")
    assert message in error_of(capsys, "train", "--steps", 1, "--batch-size", 8, *data, *words, "--out", "no")
    assert not Path("no").exists()


DRAWN = [
    (("up",), "up holds a stage of a cascade, which draws high resolutions of low ones: give these, --low FILE.npy"),
    (("base", "--low", "low.npy"), "--low is for a stage of a cascade, trained with --low-res, and --checkpoint base"),
    (("up", "--low", "big.npy"), "--low big.npy has shape (5, 1, 4, 4), wanted (rows, 1, 2, 2)"),
    (("up", "--low", "bad.npy"), "--low bad.npy holds NaN or infinity in row 1"),
    (("up", "--low", "no.npy"), "there is no file no.npy"),
    (("up", "--low", "low.npy", "--n", 3), "--low has 5 rows, for 3 samples"),
    (("up", "--low", "low.npy", "--level", 0.5), "--level 0.5: the stage was trained from 0 to 0.4, --augment"),
    (("up", "--low", "low.npy", "--guidance", 2), "guide its base, --checkpoint BASE --then STAGE"),
    (("base", "--level", 0.1), "--level is the noise on what a stage of a cascade is told"),
    (("base", "--then", "base"), "--then base holds no stage of a cascade"),
    (
        ("latent", "--then", "up"),
        "--then: stage 1 wants low resolutions of shape (1, 2, 2), and stage 0 draws (1",
    ),
    (("base", "--then", "up", "--nfe", "5,5,5"), "--nfe 5,5,5 has 3 budgets, for 2 stages: give one for all, or one"),
    (("base", "--nfe", "5,5"), "--nfe 5,5 has 2 budgets, for one model: give one"),
    (("base", "--then", "up", "--inpaint", "low.npy"), "--inpaint is for one model of data"),
    (("latent", "--inpaint", "low.npy"), "--inpaint is for a model of data, and this is one of codes"),
    (("latent", "--particles", 9, "--guidance", 2), "--particles is for a model of data, and this is one of codes"),
    (("base", "--cond", "image=low.npy"), "--cond image: the model takes no image"),
    (("up", "--low", "low.npy", "--cond", "context=1"), "--cond context is what the stage makes of its low resolution"),
]


@pytest.mark.parametrize(("words", "message"), DRAWN, ids=[" ".join(map(str, words)) for words, _ in DRAWN])
def test_what_cannot_be_drawn_is_refused_before_any_work(words, message, here, capsys):
    np.save("big.npy", np.zeros((5, 1, 4, 4)))
    np.save("bad.npy", np.where(np.arange(5)[:, None, None, None] == 1, np.nan, np.load("low.npy")))
    assert message in error_of(capsys, "sample", "--checkpoint", *words, "--out", "no.npy")
    assert not Path("no.npy").exists()


def test_other_commands_refuse_a_stage_with_the_way(here, capsys):
    for words, message in (
        (("tune", "--nfe", 5), "tune its base; in Python, tune(sde, model, nfe, conditions=low.told("),
        (("distill", "--out", "no"), "sample --nfe 8, and distil its base; in Python, x0, told = low.pairs(x)"),
        (("likelihood", "--data", "x.npz", "--out", "no.json"), "a density given one alone, log p(x | low)"),
    ):
        assert message in error_of(capsys, *words, "--checkpoint", "up")


# --- at length


@pytest.mark.slow
def test_two_processes_train_and_draw_codes_as_one_does(here):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]

    def both(*words: object) -> str:
        run = [*launch, "-m", "sde_diffusion.cli", *map(str, words)]
        done = subprocess.run(run, env=env, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    plain = ("--net-args", "multipliers=[1], attention=0, label_drop=0.0")  # what a network draws is its own
    words = ("train", "--data", "x.npz", *TINY, *CODEC, *plain, "--out")
    assert both(*words, "two").count("the codec loses") == 1
    assert call(*words, "one") == 0
    one, two = (load_codec(place).codec.state_dict() for place in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
    one, two = (load_checkpoint(place).model.state_dict() for place in ("one", "two"))
    off = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert float(off.mean()) < 2e-4
    assert float(off.max()) < 4e-3  # two steps of Adam, whose first are of one size whatever the gradient
    ask = ("sample", "--samples", 20, "--batch-size", 4, "--nfe", 3, "--out")
    drawn = {"codes": ("--checkpoint", "one"), "fields": ("--checkpoint", "base", "--then", "up")}
    for name, places in drawn.items():
        assert call(*ask, f"{name}.npy", *places) == 0
    commands = [(*ask, out, *places) for name, places in drawn.items() for out in (name, f"{name}-two.npy")]
    assert run_processes(2, lambda rank: called_as(rank, commands), here / "meet") == [[0] * 4] * 2
    for name in drawn:
        found = np.concatenate([np.load(file) for file in sorted(Path(name).glob("*.npy"))])
        assert np.array_equal(found, np.load(f"{name}.npy"))
        assert np.array_equal(np.load(f"{name}-two.npy"), np.load(f"{name}.npy"))


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["codec", "model"])
def test_a_run_that_is_killed_in_either_phase_ends_as_one_that_was_not(phase, here):
    steps = ("--steps", 5, "--codec-steps", 70) if phase == "codec" else ("--steps", 70, "--codec-steps", 5)
    words = ("train", "--data", "x.npz", *NET, *CODEC, *steps, "--save-every", 10, "--patience", 0)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "sde_diffusion.cli", *map(str, words), "--out", "m"]
    run = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = Path("m/codec_metrics.jsonl" if phase == "codec" else "m/metrics.jsonl")
    while not log.exists() or '"step": 30,' not in log.read_text():
        time.sleep(0.02)
        assert run.poll() is None
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert phase == "model" or not Path("m/model.json").exists()
    assert len(log.read_text().splitlines()) < 70
    assert call("train", "m/config.toml", "--resume") == 0
    assert call("train", "m/config.toml", "--out", "whole") == 0
    one, two = (load_checkpoint(place) for place in ("m", "whole"))
    assert all(torch.equal(value, two.model.state_dict()[name]) for name, value in one.model.state_dict().items())
    assert one.extra["latent"] == two.extra["latent"]


@pytest.mark.slow
def test_a_codec_and_a_model_of_its_codes_learn_waves(here, capsys):
    generator = np.random.default_rng(0)
    t, phase = np.linspace(0, 2 * np.pi, 32, endpoint=False), generator.uniform(0, 2 * np.pi, (2000, 1, 1))
    np.save("waves.npy", 100 + 5 * np.sin(t + phase))
    words = ("--steps", 200, "--width", 16, "--codec-steps", 100, "--codec-width", 8, "--batch-size", 64)
    assert call("train", "--data", "waves.npy", "--latent", *words, "--out", "m") == 0
    lost = float(capsys.readouterr().out.split("the codec loses ")[1].split()[0])
    x = sampled("--checkpoint", "m", "--n", 300, "--nfe", 20)[:, 0] - 100
    power = np.abs(np.fft.rfft(x)) ** 2
    share = power[:, 1] / power[:, 1:].sum(1)
    print(f"lost {lost}, rms {np.sqrt((x**2).mean())} of {5 / np.sqrt(2)}, share of the wave {np.median(share)}")
    assert lost < 0.5
    assert np.sqrt((x**2).mean()) == pytest.approx(5 / np.sqrt(2), rel=0.2)
    assert np.median(share) > 0.9
