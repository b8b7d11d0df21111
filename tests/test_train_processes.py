"""Claim: a run on two processes is the run on one, goes on bit for bit, and ends with an error where one is lost."""

from __future__ import annotations

import math
import os
import signal
import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from processes import run_processes
from test_resume import X, at, images, interrupt, numbers, small, watched

from sde_diffusion.training import Recipe, Saving, StopTraining, TrainingInterrupted, store, train
from sde_diffusion.training.run.state import unpacked

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """What a run imports is there before processes are forked, each of which would import it anew."""
    train(small(), X, steps=1)


def found(done: Any, model: Any) -> dict[str, Any]:
    return {
        "losses": done.losses,
        "model": numbers(done.model),
        "weights": numbers(model),
        "averages": [numbers(average) for average in done.averages],
        "best": done.best,
    }


def ran(task: Any, **options: Any) -> dict[str, Any]:
    given = task()
    return found(train(**given, **options), given["model"])


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["losses"] == b["losses"]
    assert a["best"] == b["best"]
    for name in ("model", "weights"):
        assert torch.equal(a[name], b[name]), name
    for one, other in zip(a["averages"], b["averages"], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("task", [images, watched])
def test_interrupted_equals_uninterrupted_on_two_processes(task, tmp_path):
    """The first is interrupted by a signal to the second process alone."""
    whole, same = run_processes(2, lambda rank: ran(task, seed=5), tmp_path / "whole")
    assert_equal(whole, same)

    texts = run_processes(2, lambda rank: cut(task, tmp_path / "run", rank), tmp_path / "cut")
    assert "after 3 of 6 steps. All of it is saved in" in texts[0]
    assert "after 3 of 6 steps" in texts[1]
    again, other = run_processes(2, lambda rank: ran(task, out=tmp_path / "run", resume=True), tmp_path / "again")
    assert_equal(again, other)
    assert_equal(whole, again)


def cut(task: Any, out: Any, rank: int) -> str:
    """A run whose second process gets a signal in step 3."""
    given, calls = task(), []
    inner = given["model"].objective()

    class Loss:
        def __repr__(self) -> str:
            return repr(inner)

        def times_for(self, *args: Any) -> Any:
            return inner.times_for(*args)

        def __call__(self, *args: Any, **options: Any) -> Any:
            calls.append(1)
            if rank == 1 and len(calls) == 2 * given["recipe"].accumulate + 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(*args, **options)

    with pytest.raises(TrainingInterrupted) as caught:
        train(**given, loss=Loss(), seed=5, out=out)
    return str(caught.value)


def plain() -> dict[str, Any]:
    """Nothing that a network draws by itself; a transform that draws, on blocks of rows that are shared out."""
    model = small(context=2, context_drop=0.0)
    recipe = Recipe(64, transform=lambda x, g: x + 0.1 * torch.randn(x.shape, generator=g))
    return {"model": model, "data": X, "context": X.flip(1), "recipe": recipe, "steps": 8}


def test_a_run_on_two_processes_is_the_run_on_one_and_goes_on_as_that(tmp_path):
    alone = ran(plain, seed=5)
    two, _ = run_processes(2, lambda rank: ran(plain, seed=5), tmp_path / "two")
    torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(alone["losses"]), rtol=1e-5, atol=0)
    torch.testing.assert_close(two["weights"], alone["weights"], rtol=0, atol=2e-5)
    given = plain()
    with pytest.raises(TrainingInterrupted):
        train(**given, seed=5, out=tmp_path / "run", callbacks=[at(4, interrupt)])
    moved, _ = run_processes(2, lambda rank: ran(plain, out=tmp_path / "run", resume=True), tmp_path / "moved")
    assert moved["losses"][:4] == alone["losses"][:4]
    torch.testing.assert_close(moved["weights"], alone["weights"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_run_with_an_error_and_loses_nothing(victim, tmp_path):
    def run(rank: int) -> None:
        def die(event: Any) -> None:
            if event.kind == "step" and event.step == 3:
                os.kill(children[victim], signal.SIGKILL)

        children: list[Any] = [None, None]
        torch.distributed.all_gather_object(children, os.getpid())
        train(**plain(), seed=5, out=Saving(tmp_path / "run", every=2), callbacks=[die])

    found = run_processes(2, run, tmp_path / "killed")
    assert found[victim] == -signal.SIGKILL
    error = found[1 - victim]
    assert "a process of this run was lost after" in error
    assert "to go on, call the same train(..., resume=True), on as many processes as there are" in error
    assert ("All of it is saved in" in error) == (victim == 1)  # it was the first that saved
    about, tensors = store.read(tmp_path / "run", "state")
    assert len(unpacked(about["run"], tensors)["losses"]) == (2 if victim == 0 else 3)
    losses = torch.tensor(ran(plain, out=tmp_path / "run", resume=True)["losses"])
    torch.testing.assert_close(losses, torch.tensor(ran(plain, seed=5)["losses"]), rtol=1e-5, atol=0)


def test_a_batch_that_is_not_finite_in_one_process_is_skipped_by_both(tmp_path):
    seen: list[int] = []

    def spoilt(x: Any, g: Any) -> Any:
        seen.append(len(x))
        return torch.where(x[:, :1] == X[7, 0], math.nan, x) if len(seen) > 1 else x  # not at the door

    def run(rank: int) -> Any:
        with pytest.warns(UserWarning, match="2 of 4 steps were") if rank == 0 else nullcontext():
            done = train(small(), X, steps=4, seed=0, recipe=Recipe(100, transform=spoilt))
        return done.skipped, [math.isnan(loss) for loss in done.losses], numbers(done.model)

    a, b = run_processes(2, run, tmp_path / "run")
    assert a[0] == b[0] == 2
    assert a[1] == b[1]
    assert sum(a[1]) == 2
    assert torch.equal(a[2], b[2])


def test_a_callback_of_the_first_process_ends_both(tmp_path):
    def enough() -> None:
        raise StopTraining("enough")

    def fail() -> None:
        raise OSError("the tracker went away")

    ends = run_processes(
        2, lambda rank: found(train(small(), X, steps=9, callbacks=[at(4, enough)]), small()), tmp_path / "a"
    )
    assert [len(end["losses"]) for end in ends] == [4, 4]
    first, second = run_processes(2, lambda rank: train(small(), X, steps=9, callbacks=[at(4, fail)]), tmp_path / "b")
    assert "OSError: the tracker went away" in first
    assert "the first process failed: OSError" in second


def test_what_the_first_process_finds_at_the_door_ends_both(tmp_path):
    train(small(), X, steps=1, out=tmp_path / "run")
    task = {"model": small(), "data": 10 + X, "steps": 1, "out": tmp_path / "run"}
    first, second = run_processes(2, lambda rank: train(**task), tmp_path / "p")
    assert "holds a run already: go on with it, resume=True" in first
    assert "ProcessLostError: the first process failed: ValueError" in second

    def warned(rank: int) -> int:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            train(**{**task, "out": None})
        return len(told)

    assert run_processes(2, warned, tmp_path / "q") == [1, 0]


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match=r"batch_size 10 does not split into equal shares for 1 processes and accum"):
        train(small(), X, steps=1, recipe=Recipe(10, accumulate=3))
