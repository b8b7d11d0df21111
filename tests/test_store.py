"""Claim: a folder that is written to is in its old state or in its new one, whenever and however the writing ends.

A kill is met in two ways: by copying the folder before and after every call that writes, and by killing.
"""

from __future__ import annotations

import builtins
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import seal

from sde_diffusion import _files
from sde_diffusion.training import store
from sde_diffusion.training.checkpoints import tensor_file
from sde_diffusion.training.store import DamagedWarning, locked, read, write

KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
KINDS += [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]


def tensors(value=0.0, n=3):
    return {"a": torch.full((n, 2), float(value)), "b": torch.arange(4) + int(value)}


def save(folder, value, keep=0, n=3):
    write(folder, "state", {"value": value}, tensors(value, n), keep=keep)


def value_of(folder, name="state"):
    """The value that was saved, after a look that tensors and manifest are of one save."""
    about, found = read(folder, name)
    assert set(found) == {"a", "b"}
    for key, t in tensors(about["value"], len(found["a"])).items():
        assert torch.equal(found[key], t)
    return about["value"]


def names_in(folder):
    return sorted(re.sub("-[0-9a-f]{16}", "-#", p.name) for p in folder.iterdir())


# --- what comes back


def test_tensors_of_every_dtype_and_shape_come_back_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    given = {str(kind): torch.randint(0, 2, (3, 2), generator=generator).to(kind) for kind in KINDS}
    x = torch.randn(4, 6, generator=generator)
    given |= {"none": torch.empty(0, 3), "one": torch.tensor(0.1, dtype=torch.float64), "transposed": x.t()}
    given |= {"strided": x[::2, 1::2], "expanded": torch.ones(1).expand(5), "same": x, "conj": (x * 1j).conj()}
    given |= {"parameter": torch.nn.Parameter(x), "nan": torch.tensor([float("nan"), -0.0]), "": torch.ones(1)}
    write(tmp_path, "state", {"é": [1, 0.1]}, given)
    about, found = read(tmp_path, "state")
    assert about == {"é": [1, 0.1]}
    assert set(found) == set(given)
    for name, t in given.items():
        assert found[name].dtype == t.dtype
        assert found[name].shape == t.shape
        flat = [v.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8) for v in (found[name], t)]
        assert torch.equal(*flat)


def test_the_tensors_are_a_file_that_safetensors_itself_reads(tmp_path):
    from safetensors.torch import load_file

    save(tmp_path, 3)
    (file,) = tmp_path.glob("*.safetensors")
    assert torch.equal(load_file(file)["a"], tensors(3)["a"])


def test_what_was_read_does_not_hang_on_the_file(tmp_path):
    save(tmp_path, 1)
    _, found = read(tmp_path, "state")
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(bytes(file.stat().st_size))
    assert torch.equal(found["a"], tensors(1)["a"])


def test_nothing_stays_but_the_manifest_and_its_tensors_and_what_is_not_ours(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other-0123456789abcdef.safetensors").write_text("of another name")
    (tmp_path / "state-0123456789abcdef.safetensors").write_text("of a save that was killed")
    (tmp_path / f"{store.DRAFT}0").write_text("of a writer that was killed")
    for value in range(3):
        save(tmp_path, value)
    assert value_of(tmp_path) == 2
    assert names_in(tmp_path) == ["notes.txt", "other-#.safetensors", "state-#.safetensors", "state.json"]


def test_as_many_are_kept_as_are_asked_for_and_the_newest_of_them(tmp_path):
    for value in range(12):
        save(tmp_path, value, keep=3)
    older = [p.name for p in sorted(tmp_path.glob("state.*.json"), key=lambda p: int(p.name.split(".")[1]))]
    assert older == ["state.9.json", "state.10.json", "state.11.json"]
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    save(tmp_path, 12, keep=1)
    assert len(list(tmp_path.glob("*"))) == 4
    save(tmp_path, 12, keep=1)  # the same tensors: one file for both
    assert names_in(tmp_path) == ["state-#.safetensors", "state.13.json", "state.json"]
    save(tmp_path, 13)
    assert names_in(tmp_path) == ["state-#.safetensors", "state.json"]


def test_two_names_in_a_folder_leave_each_other_alone(tmp_path):
    for value in range(3):
        write(tmp_path, "model", {"value": value}, tensors(value), keep=1)
        write(tmp_path, "state", {"value": -value}, tensors(-value))
    assert (value_of(tmp_path, "model"), value_of(tmp_path)) == (2, -2)
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize(
    ("name", "about", "given", "keep", "error", "message"),
    [
        ("a/b", {}, {}, 0, ValueError, "name must be a word such as 'model', of small letters and digits, got 'a/b'"),
        ("state", {"digest": 1}, {}, 0, ValueError, "about has the entry 'digest', which is the store's own"),
        ("state", {"x": float("nan")}, {}, 0, TypeError, "not JSON"),
        ("state", {"x": "y" * 2**24}, {}, 0, ValueError, "the description takes 16,7.* bytes of 16,777,216: keep less"),
        ("state", {}, {"a": 1.0}, 0, TypeError, "'a' is a float, wanted a torch.Tensor"),
        ("state", {}, {"a": torch.ones(1, dtype=torch.complex128)}, 0, TypeError, "complex128, which safetensors cann"),
        ("state", {}, {"a": torch.eye(2).to_sparse()}, 0, TypeError, "'a' is torch.sparse_coo of torch.float32, which"),
        ("state", {}, {}, -1, ValueError, "keep must be at least 0, got -1"),
        ("state", {}, {}, 0.5, TypeError, "keep must be an integer, got 0.5"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_anything_is_written(name, about, given, keep, error, message, tmp_path):
    with pytest.raises(error, match=message):
        write(tmp_path / "folder", name, about, given, keep=keep)
    assert not (tmp_path / "folder").exists()


def test_a_target_of_another_kind_is_refused_before_the_tensors_are_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file, where a folder is to go: give another place"):
        save(tmp_path / "file", 1)
    (tmp_path / "folder" / "state.json").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"holds a folder state.json, where a file is to go: give another"):
        save(tmp_path / "folder", 1)
    assert names_in(tmp_path / "folder") == ["state.json"]
    with pytest.raises(OSError, match="/proc/none"):
        save(Path("/proc/none"), 1)


# --- damage


def flipped(raw, i):
    spoilt = bytearray(raw)
    spoilt[i // 8] ^= 1 << i % 8
    return spoilt


def is_damaged(folder, value):
    """Whether the newest is refused, and the one before it read with a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = value_of(folder)
    return found == value and [w.category for w in caught] == [DamagedWarning]


@pytest.mark.parametrize("stride", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_bit_of_a_manifest_is_refused_and_the_one_before_it_used(stride, tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2, keep=1)
    raw = (tmp_path / "state.json").read_bytes()
    for i in range(0, 8 * len(raw), stride):
        (tmp_path / "state.json").write_bytes(flipped(raw, i))
        assert is_damaged(tmp_path, 1), i
    (tmp_path / "state.json").write_bytes(raw)
    assert value_of(tmp_path) == 2


def test_tensors_that_are_cut_short_or_flipped_are_refused_and_those_before_them_used(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2, keep=1)
    file = tmp_path / json.loads((tmp_path / "state.json").read_text())["tensors"]["file"]
    raw = file.read_bytes()
    spoilt = [raw[:n] for n in range(0, len(raw), 3)] + [raw + b"\0", bytes(len(raw))]
    spoilt += [flipped(raw, i) for i in np.random.default_rng(0).permutation(8 * len(raw))[:100].tolist()]
    for data in spoilt:
        file.write_bytes(data)
        assert is_damaged(tmp_path, 1)
    file.unlink()
    assert is_damaged(tmp_path, 1)


def test_the_warning_names_the_damaged_file_and_what_is_used(tmp_path):
    for value in range(3):
        save(tmp_path, value, keep=2)
    (tmp_path / "state.json").write_text("{")
    with pytest.warns(DamagedWarning, match=r"state.json is not JSON .*The one before it is used: .*state.2.json, of "):
        assert value_of(tmp_path) == 1
    (tmp_path / "state.2.json").write_text("{")
    with pytest.warns(DamagedWarning, match=r"/state.json is not JSON .*The one before it is used: .*state.1.json"):
        assert value_of(tmp_path) == 0
    (tmp_path / "state.1.json").unlink()
    with pytest.raises(ValueError, match=r"state.json is not JSON \(.*\): it was cut short or edited; save it again"):
        read(tmp_path, "state")
    with pytest.raises(FileNotFoundError, match=r"no model.json in "):
        read(tmp_path, "model")
    save(tmp_path, 5, keep=2)  # a damaged one is not kept, and those before it are not driven out by it
    assert "state.2.json" in names_in(tmp_path)
    assert value_of(tmp_path) == 5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"file": "../state.safetensors"}, "no sound entry 'tensors': it was edited"),
        ({"file": "/etc/passwd"}, "no sound entry 'tensors'"),
        ({"file": "other-0123456789abcdef.safetensors"}, "no sound entry 'tensors'"),
        ({"serial": -1}, "no sound entry 'tensors'"),
        ({"serial": 10**30}, "no sound entry 'tensors'"),
        ({"sha256": None}, "is not the file that state.json describes"),
        ({"bytes": "x"}, "is not the file that state.json describes"),
        (None, "no sound entry 'tensors'"),
    ],
)
def test_a_manifest_made_to_harm_reads_no_other_file(entry, message, tmp_path):
    save(tmp_path, 1)
    about = json.loads((tmp_path / "state.json").read_text())
    about.pop("digest")
    about["tensors"] = None if entry is None else about["tensors"] | entry
    (tmp_path / "state.json").write_text(seal(about))
    with pytest.raises(ValueError, match=message):
        read(tmp_path, "state")
    save(tmp_path, 2, keep=1)
    assert value_of(tmp_path) == 2


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "state.json")
    with pytest.raises(FileNotFoundError, match=r"no state.json in"):
        read(tmp_path, "state")


# --- writing that is cut off


class Watched:
    """Counts the calls by which files are changed, and does something before and after each."""

    def __init__(self, monkeypatch, before=lambda i, what: None, after=lambda i, what: None):
        self.calls, self.before, self.after, self.inside = 0, before, after, False
        for name in ("replace", "fsync", "unlink", "mkdir"):
            real = getattr(os, name) if name != "fsync" else lambda _: None  # which takes its time
            monkeypatch.setattr(os, name, self.watching(name, real))
        for module in (_files, store, tensor_file):
            monkeypatch.setattr(module, "open", self.open, raising=False)

    def watching(self, name, real):
        def call(*args, **kwargs):
            if self.inside:  # a call of what is done before and after
                return real(*args, **kwargs)
            i, self.calls = self.calls, self.calls + 1
            self.aside(self.before, i, name)
            found = real(*args, **kwargs)
            self.aside(self.after, i, name)
            return found

        return call

    def aside(self, act, *args):
        self.inside = True
        try:
            act(*args)
        finally:
            self.inside = False

    def open(self, path, mode):
        file = self.watching("open", builtins.open)(path, mode)
        return Writing(file, self) if "x" in mode else file


class Writing:
    """A file of which half a piece is on the disk before the whole is."""

    def __init__(self, file, watched):
        self.file, self.watched = file, watched

    def write(self, data):
        half = len(data) // 2
        self.watched.watching("write", self.put)(data[:half])
        self.watched.watching("write", self.put)(data[half:])

    def put(self, data):
        self.file.write(data)
        self.file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("keep", [0, 1])
def test_a_kill_before_or_after_any_call_leaves_the_old_or_the_new(keep, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    copies: list[Path] = []
    save(folder, 1, keep)
    save(folder, 2, keep)

    def copy(i, what):
        copies.append(tmp_path / f"{len(copies)}-{what}")
        shutil.copytree(folder, copies[-1])

    with monkeypatch.context() as patch:
        watched = Watched(patch, copy, copy)
        save(folder, 3, keep)
    assert watched.calls > 15
    found = [value_of(copy) for copy in copies]
    first = found.index(3)
    assert found == [2] * first + [3] * (len(found) - first)
    assert "replace" in copies[first].name
    for copy_of in copies:
        save(copy_of, 4, keep)
        assert value_of(copy_of) == 4
        assert len(names_in(copy_of)) == len(names_in(folder))  # the drafts and the orphans of the dead writer are gone


@pytest.mark.parametrize(
    ("error", "keep"), [(OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 0)], ids=["full", "Ctrl-C"]
)
def test_a_call_that_fails_leaves_the_old_or_the_new_and_no_drafts(error, keep, tmp_path, monkeypatch):
    failed = 0
    for at in range(100):
        folder = tmp_path / f"{at}"
        save(folder, 1, keep)
        save(folder, 2, keep)

        def fail(i, what, at=at):
            if i == at:
                raise error

        with monkeypatch.context() as patch, suppress(OSError, KeyboardInterrupt):
            watched = Watched(patch, fail)
            save(folder, 3, keep)
        done = value_of(folder)
        if watched.calls <= at:
            assert done == 3
            break
        failed += 1
        assert done in (2, 3)
        if done == 2:
            assert not list(folder.glob(".*"))
            assert len(list(folder.glob("*.safetensors"))) == 1 + keep
        save(folder, 4, keep)
        assert (value_of(folder), len(list(folder.iterdir()))) == (4, 2 * (1 + keep))
    assert failed > 15


def test_a_disk_that_takes_no_more_leaves_the_old(tmp_path):
    save(tmp_path, 1, n=4000)
    size = sum(p.stat().st_size for p in tmp_path.iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in np.linspace(0, 0.95 * size, 20).astype(int).tolist():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                save(tmp_path, 2, n=4000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert value_of(tmp_path) == 1
        assert len(list(tmp_path.iterdir())) == 2


KILLED = """
    import os, random, select, signal, sys, time, warnings
    import torch
    from sde_diffusion.training import store

    warnings.simplefilter("error")
    folder, rng, started, drafts = sys.argv[1], random.Random(0), 0, 0
    base = torch.arange(10_000_000, dtype=torch.float32)
    save = lambda i: store.write(folder, "state", {"i": i}, {"x": base + i, "i": torch.tensor(i)}, keep=1)
    save(0)
    began = time.perf_counter()
    save(0)
    took = time.perf_counter() - began
    kills = 0
    while kills < 50 or (started < 5 and kills < 400):  # on a busy machine few saves are whole before a kill
        kills += 1
        out, into = os.pipe()
        child = os.fork()
        if not child:
            for i in range(started, started + 1000):
                os.write(into, b"s")
                save(i)
                os.write(into, b"d")
        time.sleep(rng.random() * 1.2 * took)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(into)
        said = os.read(out, 10_000).decode()
        os.close(out)
        about, tensors = store.read(folder, "state")
        assert int(tensors["i"]) == about["i"]
        assert torch.equal(tensors["x"], base + about["i"])
        last = started + said.count("s") - 1
        assert last - 1 <= about["i"] <= last or not said, (said, about["i"], started)
        drafts += any(name.startswith(store.DRAFT) for name in os.listdir(folder))
        started = about["i"] + 1
    save(started)
    print(drafts, started, len(os.listdir(folder)))
"""


@pytest.mark.slow
def test_fifty_kills_in_back_to_back_saves_of_forty_megabytes_lose_nothing(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert not run.stderr
    drafts, saves, files = map(int, run.stdout.split())
    assert drafts >= 10  # so many kills fell into the writing of a file
    assert saves >= 5
    assert files == 4


# --- one writer, and readers

HOLDS = """
    import sys, time
    from filelock import FileLock
    lock = FileLock(sys.argv[1])
    lock.acquire()
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_at_once_and_a_killed_one_holds_nothing(tmp_path):
    save(tmp_path, 1)
    command = [sys.executable, "-c", textwrap.dedent(HOLDS), str(tmp_path / _files.LOCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=r"another process writes to .*: wait until it has ended, or give an"):
            save(tmp_path, 2)
        assert value_of(tmp_path) == 1
        other.kill()
    save(tmp_path, 2)
    assert value_of(tmp_path) == 2


def test_the_lock_is_of_one_thread_which_may_take_it_again(tmp_path):
    refused = []

    def second():
        try:
            save(tmp_path, 2)
        except BlockingIOError as error:
            refused.append(error)

    with locked(tmp_path):
        save(tmp_path, 1)
        with locked(tmp_path / ".." / tmp_path.name):
            save(tmp_path, 3)
        other = threading.Thread(target=second)
        other.start()
        other.join()
    assert len(refused) == 1
    second()
    assert value_of(tmp_path) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_a_reader_meets_the_old_or_the_new_while_another_writes(tmp_path):
    save(tmp_path, 0, n=1000)
    done = threading.Event()
    found: list[int] = []

    def go_on():
        value = 0
        while not done.is_set():
            value += 1
            save(tmp_path, value, n=1000)

    other = threading.Thread(target=go_on)
    other.start()
    try:
        end = time.monotonic() + 60  # on a busy machine the other thread may not have come far after 300
        while len(found) < 300 or (len(set(found)) <= 5 and time.monotonic() < end):
            found.append(value_of(tmp_path))
    finally:
        done.set()
        other.join()
    assert found == sorted(found)
    assert len(set(found)) > 5
