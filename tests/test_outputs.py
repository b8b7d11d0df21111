"""Claim: a place that takes no result is refused before the work, a result is never lost, and a terminal may be."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import tensors_of

from sde_diffusion import VPSDE, FlowMap, Network, SDESampler, _files, predict
from sde_diffusion._checks import SolverError
from sde_diffusion._files import write_files
from sde_diffusion.cli import likelihood as likelihood_command
from sde_diffusion.cli import main as cli
from sde_diffusion.cli.plan import running
from sde_diffusion.cli.terminal.streams import Steady
from sde_diffusion.nets import MLP
from sde_diffusion.training import load_checkpoint, save_checkpoint
from sde_diffusion.training.run import steps
from sde_diffusion.training.run.folder import Folder

ROOT = Path(cli.__file__).parents[1]
TARGET = "sde_diffusion.sde.schedules:VPSDE"


def call(*words: object) -> int:
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)


def line_of(capsys, *words: object) -> str:
    """The one line of a command that must fail, with status 2."""
    assert call(*words) == 2
    bars = ("training: ", "tuning: ", "sampling: ", "likelihood: ")
    (line,) = [s for s in capsys.readouterr().err.splitlines() if s.strip() and not s.lstrip("\r").startswith(bars)]
    assert line.startswith("sde-diffusion")
    assert "Traceback" not in line
    return str(line)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data, labels and a checkpoint of them."""
    folder = tmp_path_factory.mktemp("place")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(20, 2)).astype("float32"))
    torch.manual_seed(0)
    save_checkpoint(folder / "model", Network(MLP(2, hidden=8, layers=1), VPSDE(), predict.edm, shape=(2,)))
    return folder


def commands_to(place: Path, out: object) -> dict[str, tuple[object, ...]]:
    """Every command that writes, with little work, to a place."""
    return {
        "train": ("train", "--data", place / "x.npy", "--steps", 2, "--width", 8, "--out", out),
        "sample": ("sample", "--checkpoint", place / "model", "--n", 2, "--steps", 2, "--out", f"{out}.npy"),
        "picture": ("sample", "--checkpoint", place / "model", "--n", 2, "--steps", 2, "--out", f"{out}.png"),
        "likelihood": (
            *("likelihood", "--checkpoint", place / "model", "--data", place / "x.npy"),
            *("--out", f"{out}.json"),
        ),
        "json": ("check", TARGET, "--json", f"{out}.json"),
        "plot": ("check", TARGET, "--plot", f"{out}.png"),
        "demo": ("demo", "--quick", "--out", out),
    }


NAMES = sorted(commands_to(Path(), ""))


@pytest.fixture
def no_work(monkeypatch):
    """The work of every command, which must not begin."""

    def begun(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(running, "train", begun)
    monkeypatch.setattr(SDESampler, "sample", begun)
    monkeypatch.setattr(likelihood_command, "log_prob", begun)
    monkeypatch.setattr("sde_diffusion.cli.check._check", begun)
    monkeypatch.setattr("sde_diffusion.demo.table.Bench.prepare", begun)


def target_of(words: tuple[object, ...]) -> Path:
    return Path(str(words[-1]))


# --- before the work


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", NAMES)
def test_a_place_that_takes_no_result_is_refused_before_the_work(name, place, tmp_path, capsys):
    folder = name in ("train", "demo")
    out = target_of(commands_to(place, tmp_path / "out")[name])

    def refused(to: Path = tmp_path / "out") -> str:
        found = line_of(capsys, *commands_to(place, to)[name])
        assert found.startswith("sde-diffusion: error: --")
        return found

    out.write_text("old") if folder else out.mkdir()
    assert (": give a folder" if folder else "is a folder: give a file") in refused()
    out.unlink() if folder else out.rmdir()
    out.symlink_to(tmp_path / "elsewhere")
    assert f"is a link to {tmp_path / 'elsewhere'}: give that place itself" in refused()
    out.unlink()
    os.mkfifo(out)
    assert "is a device, pipe or socket" in refused()
    out.unlink()
    (tmp_path / "file").write_text("")
    assert "Not a directory" in (found := refused(tmp_path / "file" / "out")) or "there is no folder" in found
    assert "File name too long" in refused(tmp_path / ("n" * 300))
    if Path("/proc/self").exists():  # a place where nobody can write, root no more than others
        assert "/proc/" in refused(Path("/proc/out"))
    if not folder:
        assert "there is no folder" in refused(tmp_path / "no" / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_seen_before_the_work(name, place, tmp_path, capsys, monkeypatch):
    fill(monkeypatch, tmp_path)
    assert "No space left on device" in line_of(capsys, *commands_to(place, tmp_path / "out")[name])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_with_less_room_than_the_result_takes_is_refused(place, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for name, more in (("train", ("--width", 256)), ("sample", ("--n", 100_000))):
        assert "GiB are needed" in line_of(capsys, *commands_to(place, tmp_path / "out")[name], *more)
    assert call(*commands_to(place, tmp_path / "out")["train"]) == 0


def test_the_longest_name_that_a_disk_takes_is_written(place, tmp_path):
    longest = "n" * (os.pathconf(tmp_path, "PC_NAME_MAX") - len(".json"))
    for name in ("train", "sample", "likelihood"):
        words = commands_to(place, tmp_path / longest)[name]
        assert call(*words) == 0
        assert target_of(words).exists()


def test_folders_made_to_look_at_a_place_are_gone_if_the_run_is_refused(place, tmp_path, capsys):
    words = ("train", "--data", place / "no.npy", "--out", tmp_path / "a" / "b" / "model")
    assert "No data at" in line_of(capsys, *words)
    assert list(tmp_path.iterdir()) == []
    assert call(*commands_to(place, tmp_path / "a" / "b" / "model")["train"]) == 0


def test_a_device_is_never_replaced_by_a_file(place, capsys):
    assert "is a device, pipe or socket" in line_of(capsys, "check", TARGET, "--json", "/dev/null")
    assert Path("/dev/null").is_char_device()


# --- a checkpoint that is there


def test_training_replaces_a_checkpoint_only_when_told_to(place, tmp_path, capsys):
    words = commands_to(place, tmp_path / "out")["train"]
    assert call(*words) == 0
    before = tensors_of(tmp_path / "out").read_bytes()
    capsys.readouterr()
    found = line_of(capsys, *words, "--seed", 1)
    assert "holds a model.json already: give another folder, or --overwrite" in found
    assert tensors_of(tmp_path / "out").read_bytes() == before
    assert call(*words, "--seed", 1, "--overwrite") == 0
    assert tensors_of(tmp_path / "out").read_bytes() != before
    for name in ("model.json", "model.safetensors"):  # half a checkpoint is one, too
        half = tmp_path / "half" / name
        half.parent.mkdir()
        half.write_text("")
        assert f"holds a {name} already" in line_of(capsys, *commands_to(place, half.parent)["train"])
        shutil.rmtree(half.parent)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert call(*words, "--overwrite") == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_folder_of_other_things_takes_a_run(place, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert call(*commands_to(place, tmp_path / "out")["train"]) == 0
    names = sorted(re.sub("-[0-9a-f]{16}", "", p.name) for p in (tmp_path / "out").iterdir())
    run = ["config.toml", "metrics.jsonl", "model.json", "model.safetensors", "notes.txt", "state.json"]
    assert names == [*run, "state.safetensors"]


def test_a_folder_in_place_of_a_file_of_the_checkpoint_is_refused_even_with_overwrite(place, tmp_path, capsys):
    (tmp_path / "out" / "model.json").mkdir(parents=True)
    words = commands_to(place, tmp_path / "out")["train"]
    assert "holds a folder model.json, where a file is to go" in line_of(capsys, *words, "--overwrite")


# --- at the end


def fill(monkeypatch, *folders: Path) -> None:
    """Makes some folders those of a full disk: files may be made there, and nothing written."""

    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    true = io.open  # what pathlib and the builtin both are

    def opened(file, mode="r", *more, **options):
        full = any(Path(str(file)).absolute().is_relative_to(f) for f in folders)
        return Full() if full and set(mode) & set("wxa") else true(file, mode, *more, **options)

    monkeypatch.setattr("io.open", opened)
    monkeypatch.setattr("builtins.open", opened)


@pytest.fixture
def full(monkeypatch, tmp_path):
    """A disk that fills up during the work, and the folder from which the command is called."""
    here, disk = tmp_path / "here", tmp_path / "disk"
    here.mkdir()
    disk.mkdir()
    monkeypatch.chdir(here)
    true = _files.keep

    def keep(write, out):
        with monkeypatch.context() as patch:
            fill(patch, disk)
            true(write, out)

    save = Folder.save

    def save_run(*given):
        with monkeypatch.context() as patch:
            fill(patch, disk)
            save(*given)

    for module in ("cli.plan.running", "cli.sample", "cli.likelihood", "cli.check", "demo.demonstration"):
        monkeypatch.setattr(f"sde_diffusion.{module}.keep", keep)
    monkeypatch.setattr(Folder, "save", save_run)
    return disk


def results_in(folder: Path) -> list[Path]:
    """Files there, but for what a run of training begins with."""
    return [p for p in folder.rglob("*") if p.is_file() and p.name not in ("config.toml", "metrics.jsonl")]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "demo"])
def test_a_result_for_a_full_disk_is_kept_in_the_current_folder(name, place, full, capsys):
    here = Path.cwd()
    found = line_of(capsys, *commands_to(place, full / "out")[name])
    assert f"cannot be written (No space left on device): it is in {here}" in found
    (kept,) = here.iterdir()
    assert found.endswith(f"it is in {kept} instead")
    if name == "train":
        assert load_checkpoint(kept).model.shape == (2,)
    elif name in ("json", "likelihood"):
        assert json.loads(kept.read_text())
    elif name == "sample":
        assert np.load(kept).shape == (2, 2)
    else:
        assert kept.read_bytes().startswith(b"\x89PNG")
    assert not results_in(full)


@pytest.mark.slow
def test_the_demo_goes_on_when_the_disk_is_full_and_runs_again_into_its_folder(place, full, capsys):
    here = Path.cwd()
    found = line_of(capsys, *commands_to(place, full / "out")["demo"])
    for name in ("checkpoint", "fast", "samples.png", "guided.png", "fast.png", "film.png", "nfe.png", "metrics.json"):
        assert f"{full / 'out' / name} cannot be written (No space left on device): it is in {here}" in found
    assert sorted(p.suffix for p in here.iterdir()) == ["", "", ".json", ".json", *[".png"] * 5]
    kept = [p for p in here.iterdir() if p.is_dir()]
    assert [load_checkpoint(p).classes for p in kept] == [10, 10]
    (checkpoint,) = [p for p in kept if not isinstance(load_checkpoint(p).model, FlowMap)]
    assert not results_in(full)
    shutil.copytree(checkpoint, here / "again" / "checkpoint")
    assert call(*commands_to(place, here / "again")["demo"]) == 0
    assert len(list((here / "again").iterdir())) == 8


def test_a_result_goes_to_the_temporary_folder_where_the_current_one_is_full_too(place, full, capsys, monkeypatch):
    other = full.parent / "other"
    other.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(other))
    monkeypatch.chdir(full)
    found = line_of(capsys, *commands_to(place, full / "out")["train"])
    (kept,) = other.iterdir()
    assert found.endswith(f"it is in {kept} instead")
    assert load_checkpoint(kept).model.shape == (2,)
    assert not results_in(full)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(full))
    assert line_of(capsys, *commands_to(place, full / "out")["train"]).endswith("for temporary files: it is lost")


def test_a_folder_that_is_gone_at_the_end_loses_nothing(place, tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    true = SDESampler.sample

    def sample(*args, **options):
        (tmp_path / "there").rmdir()
        return true(*args, **options)

    monkeypatch.setattr(SDESampler, "sample", sample)
    found = line_of(capsys, *commands_to(place, tmp_path / "there" / "out")["sample"])
    (kept,) = (tmp_path / "here").iterdir()
    assert found.endswith(f"(No such file or directory): it is in {kept} instead")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match="Input/output error"):
            write_files({path: b"new"})
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"old")]
    write_files({path: b"new"})
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"new")]


def test_samples_without_a_picture_are_refused_before_they_are_drawn(tmp_path, place, capsys, no_work):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "m", Network(MLP(3, hidden=8, layers=1), VPSDE(), predict.edm, shape=(3,)))
    words = ("sample", "--checkpoint", tmp_path / "m", "--out", tmp_path / "x.png")
    assert "no picture of samples of shape (3,)" in line_of(capsys, *words)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SolverError("the numbers failed")])
def test_what_was_learnt_before_the_end_is_saved_and_how_to_go_on_is_said(stop, place, tmp_path, capsys, monkeypatch):
    true = steps.Run.step

    def step(self, *given):
        if self.losses:
            raise stop
        return true(self, *given)

    monkeypatch.setattr(steps.Run, "step", step)
    out = tmp_path / "out"
    assert call(*commands_to(place, out)["train"]) == (130 if isinstance(stop, KeyboardInterrupt) else 2)
    shown = capsys.readouterr()
    again = f"sde-diffusion train {out / 'config.toml'} --resume\n"
    assert shown.out.endswith(f"ended after 1 of 2 steps, all of them saved in {out}; to go on: {again}")
    assert "interrupted" in shown.err or "the numbers failed" in shown.err
    assert load_checkpoint(out).extra["steps"] == 1


# --- streams


class Broken(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, _):
        raise self.error


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("end", [None, BrokenPipeError(32, "Broken pipe"), OSError(28, "full"), ValueError("closed")])
@pytest.mark.parametrize("name", ["train", "sample", "likelihood"])
def test_a_lost_stream_does_not_end_a_run(name, stream, end, place, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, stream, None if end is None else Broken(end))
    words = commands_to(place, tmp_path / "out")[name]
    assert call(*words) == 0
    assert target_of(words).exists()
    assert call(*words[:-1], "/dev/null") == 2  # an error has its status even if nobody reads it


def test_what_an_encoding_cannot_say_is_said_in_backslashes():
    raw = io.BytesIO()
    stream = Steady(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("in \u00fc\udcff\n")
    stream.flush()
    assert stream.buffer is raw  # what a file that is checked may ask for
    assert raw.getvalue() == b"in \\xfc\\udcff\n"


@pytest.mark.parametrize(
    "redirection",
    [">&- 2>&- <&-"]
    + [pytest.param(r, marks=pytest.mark.slow) for r in ("2>&1 | true", "2>&-", ">&-", "2>/dev/full", ">/dev/full")],
)
@pytest.mark.slow
def test_a_process_whose_streams_are_closed_full_or_unread_ends_well(redirection, place, tmp_path):
    words = " ".join(map(str, commands_to(place, tmp_path / "out")["sample"]))
    script = f"{sys.executable} -m sde_diffusion.cli {words} {redirection}; exit ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "Exception" not in done.stderr
    assert np.load(tmp_path / "out.npy").shape == (2, 2)


def test_a_socket_in_place_of_a_file_is_refused(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("x.npy")
        words = ("sample", "--checkpoint", place / "model", "--out", "x.npy")
        assert "is a device, pipe or socket" in line_of(capsys, *words)


def test_a_likelihood_does_not_replace_the_checkpoint_that_it_reads(place, capsys):
    before = (place / "model" / "model.json").read_bytes()
    words = ("likelihood", "--checkpoint", place / "model", "--data", place / "x.npy")
    line = line_of(capsys, *words, "--out", place / "model" / "model.json")
    assert "is a file that is read here, and would be replaced: give another" in line
    assert (place / "model" / "model.json").read_bytes() == before


def test_a_command_leaves_the_signals_of_its_caller_as_they_were(place, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    assert call(*commands_to(place, tmp_path / "x")["sample"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_run_that_is_told_to_end_saves_what_it_has(place, tmp_path):
    words = [sys.executable, "-m", "sde_diffusion.cli", "train", "--data", str(place / "x.npy"), "--width", "8"]
    out = tmp_path / "ended"
    run = subprocess.Popen([*words, "--steps", "1000000", "--out", str(out)], stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    seen = ""
    while "loss" not in seen:  # it is under way
        seen += run.stderr.read(1)
    run.terminate()
    run.communicate(timeout=60)
    assert run.returncode == 143  # 128 and the number of the signal
    assert load_checkpoint(out).model.shape == (2,)
