"""Claim: what a run tells is written whole and once, whatever befalls the file; trackers of accelerate get the same."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest
import torch

from sde_diffusion import EDMSDE
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.training.callbacks import JSONL, Event, StopTraining, Tracker

MODEL = Gaussian(EDMSDE(), torch.zeros(2), 1.0)


def event(kind, step=0, **metrics):
    return Event(kind, step, 10, metrics, MODEL)


def run(callback, first, last, end=True):
    """Steps `first + 1` to `last` of a run, with a validation at every second one."""
    callback(event("start", first))
    for i in range(first + 1, last + 1):
        callback(event("step", i, loss=1 / i))
        if i % 2 == 0:
            callback(event("validation", i, nats=-1.0 * i))
    if end:
        callback(event("end", last, seconds=1.5))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_event_but_the_start_is_a_line_and_numbers_that_are_not_finite_are_null(tmp_path):
    write = JSONL(tmp_path / "metrics.jsonl")
    assert repr(write) == f"JSONL({str(tmp_path / 'metrics.jsonl')!r}, every=1)"
    write(event("start"))
    write(event("step", 1, loss=math.nan, lr=0.5, skipped=2))
    write(event("step", 2, loss=math.inf))
    assert lines(write.path) == [
        {"kind": "step", "step": 1, "loss": None, "lr": 0.5, "skipped": 2},
        {"kind": "step", "step": 2, "loss": None},
    ]


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_a_run_that_is_resumed_has_the_lines_of_one_that_went_through(tmp_path, cut):
    whole, parts = JSONL(tmp_path / "whole"), JSONL(tmp_path / "parts")
    run(whole, 0, 10)
    run(parts, 0, 7, end=False)  # killed after step 7, its state being that of step 4
    text = parts.path.read_bytes()
    parts.path.write_bytes(text[: len(text) - cut])  # in the middle of a line
    run(parts, 4, 10)
    assert parts.path.read_bytes() == whole.path.read_bytes()
    run(parts, 10, 10)  # nothing was left to do
    assert parts.path.read_bytes() == whole.path.read_bytes()
    run(parts, 0, 10)  # another run from the start
    assert parts.path.read_bytes() == whole.path.read_bytes()


def test_steps_may_be_thinned_out_and_validations_are_all_kept(tmp_path):
    write = JSONL(tmp_path / "m", every=5)
    run(write, 0, 10)
    kinds = [(line["kind"], line["step"]) for line in lines(write.path)]
    assert [step for kind, step in kinds if kind == "step"] == [5, 10]
    assert [step for kind, step in kinds if kind == "validation"] == [2, 4, 6, 8, 10]


def test_a_file_that_holds_something_else_is_refused_and_left(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("buy milk\nand bread\n")
    with pytest.raises(ValueError, match=r"notes.txt holds no metrics of a run, line 1 is b'buy milk"):
        JSONL(path)(event("start", 3))
    assert path.read_text() == "buy milk\nand bread\n"


@pytest.mark.parametrize("damage", ["flipped", "truncated", "nul", "step", "binary"])
def test_a_damaged_record_is_set_aside_and_its_other_lines_are_gone_on_with(damage, tmp_path):
    write = JSONL(tmp_path / "metrics.jsonl", replace=damage == "binary")
    run(write, 0, 10)
    whole = write.path.read_bytes().splitlines(keepends=True)
    changed = {
        "flipped": bytes([whole[3][0] ^ 1]) + whole[3][1:],
        "truncated": whole[3][:9],
        "nul": bytes(len(whole[3])),
        "step": whole[3].replace(b'"step": 3', b'"step": 9'),
        "binary": b"",
    }[damage]
    text = b"\xff" * 99 if damage == "binary" else b"".join([*whole[:3], changed, *whole[4:]])
    write.path.write_bytes(text)
    with pytest.warns(UserWarning, match=r"line \d of .* is damaged: the file was set aside as metrics.damaged.jsonl"):
        write(event("start", 5))
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == text
    left = {line["step"] for line in lines(write.path)}
    assert left <= {1, 2, 3, 4, 5} and (damage == "binary" or {1, 5} <= left)  # noqa: PT018 - one claim


def test_metrics_have_names_of_their_own(tmp_path):
    write = JSONL(tmp_path / "m")
    with pytest.raises(ValueError, match="a metric cannot be called 'step', which every line has: give it another"):
        write(Event("step", 1, 2, {"step": 1.0}, MODEL))
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        JSONL(tmp_path / "m", every=0)


def test_what_stops_a_run_says_why():
    assert StopTraining("seen enough").reason == str(StopTraining("seen enough")) == "seen enough"


def made(told: list[Any], folder: bool = False) -> Any:
    """A class of trackers of accelerate that writes down what it is told."""
    tracking = pytest.importorskip("accelerate.tracking")

    class Told(tracking.GeneralTracker):  # type: ignore[misc, name-defined]  # accelerate has no types
        name, requires_logging_directory, main_process_only, tracker = "told", folder, False, None

        def __init__(self, project, **options):
            super().__init__()
            told.append((project, options))

        def start(self):
            told.append("start")

        def store_init_configuration(self, values):
            told.append(values)

        def log(self, values, step=None):
            told.append((step, values))

        def finish(self):
            told.append("finish")

    return Told


def test_a_tracker_of_accelerate_is_told_the_metrics_and_the_configuration():
    told: list[Any] = []
    run(Tracker(made(told)("mine"), config={"width": 64}, every=2), 0, 3)
    assert told == [
        ("mine", {}),
        "start",
        {"width": 64},
        (2, {"loss": 0.5}),
        (2, {"nats": -2.0}),
        (3, {"seconds": 1.5}),
        "finish",
    ]


def test_a_tracker_is_made_by_its_name(monkeypatch):
    told: list[Any] = []
    tracking = pytest.importorskip("accelerate.tracking")
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", made(told, folder=True))
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["wandb"])
    run(Tracker("wandb", "moons", folder="there", entity="me"), 0, 0)
    assert told == [("moons", {"logging_dir": "there", "entity": "me"}), "start", (0, {"seconds": 1.5}), "finish"]


def test_a_tracker_that_is_not_there_says_what_to_install(monkeypatch):
    tracking = pytest.importorskip("accelerate.tracking")
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(ImportError, match="the tracker 'tensorboard' is not installed: pip install tensorboard"):
        Tracker("tensorboard")
    with pytest.raises(ValueError, match="no tracker is called 'tensorbord': there are aim, "):
        Tracker("tensorbord")
    with pytest.raises(TypeError, match="tracker must be the name of a tracker, such as 'tensorboard', or a General"):
        Tracker(3)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"trackers come from accelerate: pip install 'sde-diffusion\[train\]'"):
        Tracker("tensorboard")
