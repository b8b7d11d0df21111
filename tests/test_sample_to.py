"""Claim: samples on the disk are those that `sample` gives, to the last bit, whatever was killed or damaged."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import sys
import time
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import model as small
from processes import fork, wait
from torch.utils.data import DataLoader

from sde_diffusion import (
    VPSDE,
    Network,
    NonFiniteWarning,
    PerSample,
    SDESampler,
    Shared,
    SolverError,
    SolverTable,
    TableSolver,
    grids,
    predict,
)
from sde_diffusion._files import locked, write_files
from sde_diffusion._sealed import sealed
from sde_diffusion.data import Standardise
from sde_diffusion.sampler.distributed import read_samples, sample_to
from sde_diffusion.solvers import EulerMaruyama, Heun
from sde_diffusion.training.store import DamagedWarning

JOB: dict[str, Any] = {"seed": 5, "batch_size": 4, "shard_size": 8}
N = 37
MODEL = small()
SAMPLER = SDESampler(MODEL.sde, MODEL, steps=2)
WANTED = SAMPLER.sample(N, seed=5, batch_size=4)
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the children start no threads
places = pytest.mark.parametrize("name", ["samples", "samples.npy"])


def draw(out, sampler=SAMPLER, n=N, **options):
    return sample_to(sampler, n, out, **(JOB | options))


def home(out):
    return out.with_name(out.name + ".parts") if out.suffix else out


def interrupted(out, after, sampler=SAMPLER, **options):
    """Begins a job, which fails in the shard after so many."""
    calls, sample = count(), sampler.sample

    def failing(*args, **kwargs):
        if next(calls) == after:
            raise OSError("the machine is on fire")
        return sample(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "sample", failing)
        with pytest.raises(OSError, match="on fire"):
            draw(out, sampler, **options)


def counted(out, **options):
    """Draws, and tells the numbers of the samples that it took."""
    seen: list[int] = []
    sample = SAMPLER.sample

    def counting(n, **kwargs):
        seen.extend(range(kwargs["seed"] - 5, kwargs["seed"] - 5 + n))
        return sample(n, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SAMPLER, "sample", counting)
        return draw(out, **options), seen


@places
def test_the_array_is_the_one_that_sample_gives_and_nothing_else_is_left(tmp_path, name):
    found = draw(tmp_path / name)
    assert torch.equal(found.tensor(), WANTED)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    shards = {f"samples/shard-{k:06d}.npy" for k in range(5)}
    assert left == (
        {"samples.npy", "samples.npy.json"} if "." in name else {"samples", "samples/manifest.json"} | shards
    )
    files = [tmp_path / name] if "." in name else sorted((tmp_path / name).glob("*.npy"))
    assert np.array_equal(np.concatenate([np.load(file) for file in files]), WANTED.numpy())


@places
def test_a_job_that_failed_goes_on_with_what_is_missing(tmp_path, name):
    out = tmp_path / name
    interrupted(out, 3)
    assert not out.is_file()
    assert not (out / "shard-000003.npy").exists()
    with pytest.raises(ValueError, match="holds 24 of 37 samples, and the job is not finished: call"):
        read_samples(out)
    before = {path: path.stat().st_mtime_ns for path in home(out).glob("shard-*")}
    found, seen = counted(out)
    assert torch.equal(found.tensor(), WANTED)
    assert seen == list(range(24, 37))
    assert all(path.stat().st_mtime_ns == at for path, at in before.items() if path.suffix == ".npy")
    assert counted(out)[1] == []  # all is there


@places
@pytest.mark.parametrize("finished", [True, False])
def test_a_shard_that_is_cut_short_or_flipped_is_named_and_drawn_again(tmp_path, name, finished):
    out = tmp_path / name
    draw(out) if finished else interrupted(out, 4)
    file = (out if finished else home(out) / "array.npy") if out.suffix else out / "shard-000001.npy"
    raw = bytearray(file.read_bytes())
    raw[128 + 8 * 8 * (out.suffix == ".npy") + 5] ^= 1
    file.write_bytes(raw)
    with pytest.warns(DamagedWarning, match=r"shard 1 \(samples 8 to 15\) in .* is not as it was written, and is"):
        found, seen = counted(out)
    assert seen == list(range(8, 16)) + ([] if finished else list(range(32, 37)))
    assert torch.equal(found.tensor(), WANTED)
    assert found.damaged() == []


def test_a_shard_that_was_cut_short_or_removed_or_whose_mark_is_damaged_is_drawn_again(tmp_path):
    out = tmp_path / "samples"
    interrupted(out, 4)
    os.truncate(out / "shard-000000.npy", 150)
    (out / "shard-000001.npy").unlink()
    mark = bytearray((out / "shard-000002.json").read_bytes())
    mark[40] ^= 1
    (out / "shard-000002.json").write_bytes(mark)
    with pytest.warns(DamagedWarning, match=r"shard 0 .* and 2 more"):
        found, seen = counted(out)
    assert seen == [*range(24), *range(32, 37)]
    assert torch.equal(found.tensor(), WANTED)


def test_reading_tells_a_shard_that_is_missing_cut_short_or_flipped(tmp_path):
    out = tmp_path / "samples"
    found = draw(out)
    file = out / "shard-000002.npy"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 128
    file.write_bytes(raw)
    assert found.damaged() == ["shard 2 (samples 16 to 23)"]
    os.truncate(file, len(raw) - 1)
    with pytest.raises(ValueError, match=r"shard 2 .* is not as it was written: call the same sample_to once more"):
        read_samples(out)
    with pytest.raises(FileNotFoundError, match=r"there are no samples in .*, no manifest.json"):
        read_samples(tmp_path / "other")


def test_every_flipped_bit_of_a_manifest_is_refused(tmp_path):
    out = tmp_path / "samples"
    sample_to(SAMPLER, 8, out, seed=5, batch_size=8)
    file = out / "manifest.json"
    raw = file.read_bytes()
    for i in range(3, 8 * len(raw), 61):
        file.write_bytes(raw[: i // 8] + bytes([raw[i // 8] ^ (1 << i % 8)]) + raw[i // 8 + 1 :])
        with pytest.raises(ValueError, match=r"manifest\.json"):
            read_samples(out)
    with pytest.raises(ValueError, match="remove the samples and draw them anew, or give another place"):
        sample_to(SAMPLER, 8, out, seed=5, batch_size=8)


changes: dict[str, Any] = {
    "n": {"n": 38},
    "seed": {"seed": 6},
    "batch_size": {"batch_size": 8},
    "shard_size": {"shard_size": 12},
    "sampler": {"sampler": SDESampler(MODEL.sde, MODEL, steps=3)},
    "nonfinite": {"nonfinite": "keep"},
    "scaling": {"scaling": Standardise(torch.zeros(2), torch.full((2,), 2.0))},
}


@pytest.mark.parametrize("field", changes)
def test_a_job_that_asks_for_something_else_is_refused_with_what_differs(tmp_path, field):
    out = tmp_path / "samples"
    interrupted(out, 1)
    with pytest.raises(ValueError, match=rf"holds samples with {field} = .*, and {field} = .* was asked for"):
        draw(out, **changes[field])
    assert torch.equal(draw(out).tensor(), WANTED)


def test_a_job_with_other_weights_or_conditions_is_refused(tmp_path):
    net = small(classes=2)
    sampler, label = SDESampler(net.sde, net, steps=1), torch.arange(N) % 2
    interrupted(tmp_path / "x", 1, sampler, label=label)
    with pytest.raises(ValueError, match="holds samples with conditions = "):
        draw(tmp_path / "x", sampler, label=1 - label)
    with torch.no_grad():
        next(net.parameters())[0] += 1e-3
    with pytest.raises(ValueError, match="holds samples with model = "):
        draw(tmp_path / "x", sampler, label=label)
    with pytest.raises(TypeError, match=r"the condition.'label' holds a object, which cannot be told from another"):
        draw(tmp_path / "y", sampler, label=object())


def test_a_job_with_another_table_of_the_same_name_is_refused(tmp_path):
    table = SolverTable.of(Heun(), MODEL.sde, grids.karras(MODEL.sde, 2))
    other = replace(table, rows=(*table.rows[:-1], tuple(1.001 * v for v in table.rows[-1])))
    first, second = (SDESampler(MODEL.sde, MODEL, solver=TableSolver(t)) for t in (table, other))
    assert repr(first) == repr(second)
    interrupted(tmp_path / "x", 1, first)
    with pytest.raises(ValueError, match="holds samples with details = "):
        draw(tmp_path / "x", second)


def test_what_an_interrupted_job_of_a_file_would_use_is_left_if_it_is_something_else(tmp_path):
    (tmp_path / "x.npy.parts").mkdir()
    (tmp_path / "x.npy.parts" / "notes").write_text("")
    with pytest.raises(ValueError, match=r"x\.npy\.parts, where samples are made, holds 'notes': give out another"):
        draw(tmp_path / "x.npy")


def test_a_manifest_of_another_version_and_samples_of_another_form_are_told(tmp_path):
    out = tmp_path / "x"
    draw(out)
    about = json.loads((out / "manifest.json").read_text()) | {"format": 2}
    del about["digest"]
    (out / "manifest.json").write_bytes(sealed(about))
    with pytest.raises(ValueError, match="has format 2, and 1 is read here: take the newer version"):
        read_samples(out)

    class Rough:
        def undo(self, z):
            return z if len(z) == 1 else z.double()

    rough = dataclass(frozen=True)(Rough)()
    with pytest.raises(TypeError, match=r"samples came as float64 of shape \(2,\), and <f4 of shape \(2,\) was"):
        draw(tmp_path / "y", scaling=rough)


@places
def test_a_place_that_holds_something_else_is_left_as_it_is(tmp_path, name):
    out = tmp_path / name
    if out.suffix:
        out.write_bytes(b"results of last year")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("results of last year")
    with pytest.raises(ValueError, match=r"give another name|give a new folder, or an empty one"):
        draw(out)
    assert len(list(tmp_path.rglob("*"))) == 1 + (not out.suffix)


def test_a_folder_for_a_file_and_a_file_for_a_folder_and_a_link_are_refused(tmp_path):
    (tmp_path / "x.npy").mkdir()
    (tmp_path / "x").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "x.npy")
    for name, text in (("x.npy", "is a folder: give a file"), ("x", "is a file: give a folder"), ("link", "is a link")):
        with pytest.raises(ValueError, match=text):
            draw(tmp_path / name)
    assert len(list(tmp_path.rglob("*"))) == 3


@places
def test_a_full_disk_is_found_before_the_work(tmp_path, name, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200))
    with pytest.raises(ValueError, match=r"out .* cannot be written \(2.76e-07 GiB are needed and 1.86e-07"):
        draw(tmp_path / name)
    assert not list(tmp_path.rglob("*"))


def test_room_that_is_not_there_for_one_file_is_found_before_the_work(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ValueError, match=r"out .*x.npy cannot be made \(No space left on device\): it takes"):
        draw(tmp_path / "x.npy")
    monkeypatch.setattr(os, "posix_fallocate", lambda *args: (_ for _ in ()).throw(OSError(errno.EINVAL, "")))
    assert torch.equal(draw(tmp_path / "x.npy").tensor(), WANTED)  # on a file system without the call


def test_a_disk_that_fills_up_on_the_way_leaves_what_is_finished(tmp_path, monkeypatch):
    write, calls = write_files, count()

    def full(files):
        if next(calls) == 6:
            raise OSError(28, "No space left on device")
        write(files)

    monkeypatch.setattr("sde_diffusion.sampler.shards.write_files", full)
    with pytest.raises(OSError, match="No space left"):
        draw(tmp_path / "samples")
    monkeypatch.undo()
    found, seen = counted(tmp_path / "samples")
    assert seen == list(range(24, 37))
    assert torch.equal(found.tensor(), WANTED)


@places
def test_a_second_job_at_one_place_is_refused_while_the_first_is_at_work(tmp_path, name):
    out = tmp_path / name
    interrupted(out, 2)
    with locked(home(out)):
        child = fork(lambda: draw(out), tmp_path / "error")
        assert wait(child) == 1
    assert "BlockingIOError: another process writes to" in (tmp_path / "error").read_text()
    assert torch.equal(draw(out).tensor(), WANTED)


def test_conditions_are_cut_with_the_shards_and_one_row_for_all_is_not_copied(tmp_path):
    seen = []

    def net(x, t, table, one, rows, word, deep):
        assert table.shape == (4, 3)
        assert word == "all"
        seen.append((len(x), one.untyped_storage().nbytes(), rows.flatten().tolist()))
        return x * 0.1 + rows + deep["part"][:, None]

    rows = torch.arange(N * 2.0).reshape(N, 2)
    cond = {
        "table": Shared(torch.zeros(4, 3)),
        "one": PerSample(torch.zeros(1, 1000)),
        "rows": PerSample(rows),
        "word": "all",
        "deep": {"part": torch.arange(N) * 1.0},
    }
    sampler = SDESampler(VPSDE(), Network(net, VPSDE(), predict.noise, shape=(2,)), steps=1)
    found = draw(tmp_path / "x", sampler, cond=cond)
    assert {n for n, *_ in seen} == {4, 1}
    assert {size for _, size, _ in seen} == {4000}
    assert sorted({value for *_, part in seen for value in part}) == rows.flatten().tolist()
    assert torch.equal(found.tensor(), sampler.sample(N, seed=5, batch_size=4, cond=cond))
    with pytest.raises(ValueError, match=r"is a tensor of shape \(37, 2\), for 37 samples in batches of 4: one row"):
        draw(tmp_path / "y", sampler, cond=cond | {"rows": rows})


def test_samples_that_are_not_finite_are_told_by_number_or_kept(tmp_path):
    def net(x, t, level):
        return x * 0.1 + level[:, None]

    level = torch.zeros(N)
    level[21] = float("nan")
    sampler = SDESampler(VPSDE(), Network(net, VPSDE(), predict.noise, shape=(2,)), steps=2)
    with pytest.raises(SolverError, match=r"in samples 16 to 23, counted from the first of them: .*row"):
        draw(tmp_path / "x", sampler, level=level)
    with pytest.warns(NonFiniteWarning, match="counted from row 16 on: row 5 "):
        found = draw(tmp_path / "y", sampler, level=level, nonfinite="keep").tensor()
    assert found.isnan().any(1).nonzero().flatten().tolist() == [21]


def test_samples_are_led_back_to_data_and_come_in_their_dtype(tmp_path):
    scaling = Standardise(torch.tensor([1e7, 0.0], dtype=torch.float64), torch.tensor([0.5, 2.0]))
    found = draw(tmp_path / "x", scaling=scaling)
    assert found.dtype == torch.float64
    assert torch.equal(found.tensor(), scaling.undo(WANTED))


def test_samples_are_read_by_number_and_slice_and_as_a_data_set(tmp_path):
    found = draw(tmp_path / "x")
    assert len(found) == N
    assert found.shape == (N, 2)
    assert "Samples of shape (37, 2)" in repr(found)
    assert found.about["seed"] == 5
    assert torch.equal(found[-1], WANTED[-1])
    for part in (slice(5, 20), slice(None), slice(30, 2), slice(3, 30, 7), slice(None, None, -5)):
        assert torch.equal(found[part], WANTED[torch.arange(N)[range(N)[part]] if part.step else part])
    assert np.array_equal(np.asarray(found), WANTED.numpy())
    assert np.asarray(found, np.float64).dtype == np.float64
    assert torch.equal(torch.cat(list(found.parts())), WANTED)
    assert torch.equal(torch.cat(list(DataLoader(found, batch_size=10))), WANTED)
    copy = pickle.loads(pickle.dumps(found))  # as a worker of a loader has it
    assert len(pickle.dumps(found)) < 5000
    assert torch.equal(copy[:], WANTED)
    with pytest.raises(IndexError):
        found[N]
    with pytest.raises(ValueError, match="which makes a copy"):
        np.array(found, copy=False)


bad: dict[str, Any] = {
    "shard_size must be a multiple of batch_size = 4, got 6: take 8": {"shard_size": 6},
    "seeds must be >= 0 and below 2": {"seed": 2**32 - 5},
    "nonfinite must be 'raise' or 'keep', got 'drop'": {"nonfinite": "drop"},
    "batch_size": {"batch_size": 0},
    "the event shape is not known": {"sampler": SDESampler(VPSDE(), lambda x, t: -x)},
}


@pytest.mark.parametrize("text", bad)
def test_a_wrong_value_is_refused_before_the_work(tmp_path, text):
    with pytest.raises(ValueError, match=text):
        draw(tmp_path / "x", **bad[text])
    assert not list(tmp_path.iterdir())


def test_a_wrong_kind_is_refused_before_the_work(tmp_path):
    for options, text in (
        ({"sampler": MODEL}, "sampler must be an SDESampler, or another Sampler, got Network"),
        ({"x_T": WANTED}, r"x_T= is no argument here: write sampler.sample\(x_T=...\)"),
        ({"seed": None}, "seed must be an integer"),
        ({"scaling": object()}, r"scaling must be one with undo\(z\), such as data.Standardise, got object"),
    ):
        with pytest.raises(TypeError, match=text):
            draw(tmp_path / "x", **options)
    assert not list(tmp_path.iterdir())


def test_a_progress_bar_goes_on_where_the_job_does_and_a_closed_stderr_ends_nothing(tmp_path, capsys, monkeypatch):
    interrupted(tmp_path / "x", 3)
    draw(tmp_path / "x", progress=True)
    told = capsys.readouterr().err
    assert "65%" in told  # 24 of 37
    assert "37/37" in told

    def broken(*args):
        raise BrokenPipeError

    monkeypatch.setattr(sys.stderr, "write", broken)
    assert torch.equal(draw(tmp_path / "y", progress=True).tensor(), WANTED)


@pytest.mark.slow
@places
def test_no_finished_shard_is_lost_or_drawn_again_in_twenty_kills(tmp_path, name):
    n, out, log = 1000, tmp_path / name, tmp_path / "log"
    sampler = SDESampler(MODEL.sde, MODEL, solver=EulerMaruyama(), steps=3)
    wanted, sample = sampler.sample(n, seed=5, batch_size=4), sampler.sample

    def logged(n, **kwargs):
        with open(log, "a") as file:
            file.write(f"{(kwargs['seed'] - 5) // 4}\n")
        return sample(n, **kwargs)

    def job():
        sampler.sample = logged  # type: ignore[assignment,method-assign] # in a process of its own
        sample_to(sampler, n, out, seed=5, batch_size=4, shard_size=4)

    generator, finished, kills = torch.Generator().manual_seed(0), set[int](), 0
    while kills < 25 and len(finished) < n // 4:
        log.write_text("")
        child = fork(job, tmp_path / "error")
        while not log.stat().st_size:
            time.sleep(0.002)
        time.sleep(0.02 * float(torch.rand((), generator=generator)))
        os.kill(child, signal.SIGKILL)
        assert wait(child) == -signal.SIGKILL
        assert not finished & {int(line) for line in log.read_text().split("\n")[:-1]}
        now = {int(path.stem[6:]) for path in home(out).glob("shard-*.json")}
        assert finished <= now
        finished, kills = now, kills + 1
    print(len(finished), "of 250 shards after", kills, "kills")
    assert kills >= 20
    assert torch.equal(sample_to(sampler, n, out, seed=5, batch_size=4, shard_size=4).tensor(), wanted)
    assert not list(tmp_path.rglob(".sde-*"))
