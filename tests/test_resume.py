"""Claim: a run that was cut short and goes on ends bit for bit as one that was not; one that cannot go on says why."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import fork, wait
from torch import nn

from sde_diffusion import EDMSDE, VPSDE, Network, Shared, predict
from sde_diffusion.data import dequantise
from sde_diffusion.data.source import source_of
from sde_diffusion.nets import MLP, UNet
from sde_diffusion.training import (
    ConstantDecay,
    PowerDecay,
    Recipe,
    Saving,
    StopTraining,
    Training,
    TrainingInterrupted,
    Validation,
    load_checkpoint,
    store,
    train,
)
from sde_diffusion.training.run import folder, marks
from sde_diffusion.training.run.feed import Inputs, inputs_of
from sde_diffusion.training.run.state import unpacked

X = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
X = (X - X.mean(0)) / X.std(0, correction=0)
APART = X + 0.01  # rows that are not trained on


def small(hidden: int = 16, **options: Any) -> Network:
    torch.manual_seed(0)
    return Network(MLP(2, hidden=hidden, layers=1, features=0, **options), EDMSDE(0.01, 20.0), predict.edm, shape=(2,))


def at(step: int, act: Any) -> Any:
    """A callback that does something after a step."""

    def callback(event: Any) -> None:
        if event.kind == "step" and event.step == step:
            act()

    return callback


def interrupt() -> None:
    raise KeyboardInterrupt


def numbers(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in (*module.parameters(), *module.buffers())])


def assert_same(a: tuple[nn.Module, Training], b: tuple[nn.Module, Training]) -> None:
    assert a[1].losses == b[1].losses
    assert torch.equal(numbers(a[0]), numbers(b[0]))
    for one, other in zip((a[1].model, *a[1].averages), (b[1].model, *b[1].averages), strict=True):
        assert torch.equal(numbers(one), numbers(other))
    assert (a[1].validations, a[1].best) == (b[1].validations, b[1].best)


class Weighted(nn.Module):
    """An objective with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))

    def forward(self, model: Any, x0: Any, *, generator: Any, label: Any = None) -> Any:
        return model.loss(x0, generator=generator) * (-self.level).exp() + self.level


def images(**options: Any) -> dict[str, Any]:
    """Dropout of units and labels, buffers, a transform that draws, two averages, micro-batches."""
    torch.manual_seed(3)
    net = UNet(1, width=8, classes=10, dropout=0.3)
    recipe = Recipe(
        16, accumulate=2, averages=(PowerDecay(0.1), ConstantDecay(0.9)),
        transform=lambda v, g: 2 * dequantise(v, seed=g),
    )  # fmt: skip
    return {
        "model": Network(net, EDMSDE(0.01, 20.0), predict.edm, shape=(1, 4, 4)),
        "data": torch.arange(40 * 16).reshape(40, 1, 4, 4) % 17,
        "label": torch.arange(40) % 10,
        "recipe": recipe,
        "steps": 6,
        **options,
    }


def momentum(**options: Any) -> dict[str, Any]:
    """Another optimiser, a schedule, an objective with parameters, a half-precision net."""

    def sgd(parameters: Any, lr: float) -> Any:
        return torch.optim.SGD(parameters, lr, momentum=0.9)

    model = small()
    model.net.bfloat16()
    recipe = Recipe(32, 0.01, optimiser=sgd, schedule=lambda i, steps: 1 / (i + 1), averages=ConstantDecay(0.5))
    return {"model": model, "data": X, "recipe": recipe, "loss": Weighted(), "steps": 6, **options}


def watched(**options: Any) -> dict[str, Any]:
    """Validated, with the best weights far behind: the rate is too high."""
    recipe = Recipe(32, 0.1, schedule=lambda i, steps: 1.0 + i)
    val = Validation(APART[:40], every=1, patience=None, draws=20)
    return {"model": small(), "data": X, "recipe": recipe, "val": val, "steps": 6, **options}


@pytest.mark.parametrize("task", [images, momentum, watched])
def test_interrupted_equals_uninterrupted_bit_for_bit(task, tmp_path):
    whole = task()
    expected = train(**whole, seed=5)
    for i, stop in enumerate((2, 4)):
        first = task()
        torch.rand(3)
        with pytest.raises(TrainingInterrupted, match=rf"after {stop} of 6 steps. All of it is saved in .*resume=True"):
            train(**first, seed=5, out=tmp_path, resume=i > 0, callbacks=[at(stop, interrupt)])
    again = task()
    for p in again["model"].parameters():
        nn.init.zeros_(p)  # what it was begun with does not matter
    done = train(**again, out=tmp_path, resume=True)
    assert_same((whole["model"], expected), (again["model"], done))
    if isinstance(whole.get("loss"), nn.Module):
        assert torch.equal(whole["loss"].level, again["loss"].level)
        assert whole["loss"].level != 0.5
    saved = load_checkpoint(tmp_path).model
    assert torch.equal(numbers(saved), numbers(done.model))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_held_until_the_step_is_done_and_the_run_saved(number, tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    model, whole = small(), small()
    with pytest.raises(TrainingInterrupted, match=r"after 3 of 5 steps. All of it is saved in"):
        train(model, X, steps=5, seed=0, out=tmp_path, callbacks=[at(3, lambda: os.kill(os.getpid(), number))])
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    done = train(model, X, steps=5, seed=0, out=tmp_path, resume=True)
    assert_same((whole, train(whole, X, steps=5, seed=0)), (model, done))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it waited")

    with pytest.raises(TrainingInterrupted, match="after 2 of 5 steps"):
        train(small(), X, steps=5, callbacks=[at(2, twice)])


def test_a_run_in_a_thread_is_kept_without_signals(tmp_path):
    found: list[Training] = []
    thread = threading.Thread(target=lambda: found.append(train(small(), X, steps=2, seed=0, out=tmp_path)))
    thread.start()
    thread.join()
    assert len(found[0].losses) == 2


def test_a_run_is_saved_early_and_then_ever_more_seldom(tmp_path, monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    kept = folder.Folder(Saving(tmp_path))
    for second in range(1801):
        now[0] = float(second)
        if kept.due(second):
            saved.append(second)
            kept.save({}, {})
    assert saved[:5] == [31, 92, 213, 454, 755]


def test_a_folder_in_place_of_the_metrics_is_told_before_any_work(tmp_path):
    begun(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(IsADirectoryError, match=r"holds a folder metrics.jsonl, where a file is to go: move it away"):
        train(small(), X, steps=3, out=tmp_path, resume=True)


def test_a_damaged_record_does_not_cost_the_run(tmp_path):
    train(small(), X, steps=3, seed=0, out=tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(bytes(200))
    with pytest.warns(UserWarning, match="is damaged: the file was set aside as metrics.damaged.jsonl"):
        assert len(train(small(), X, steps=3, out=tmp_path, resume=True).losses) == 3


@pytest.mark.parametrize("kind", ["memory", "file", "given", "large"])
def test_a_row_that_was_changed_is_noticed_wherever_the_rows_are(kind, tmp_path, monkeypatch):
    def mark(x: torch.Tensor, k: float = 1.0) -> str:
        more = torch.arange(500.0)
        more[123] *= k
        if kind == "file":
            np.save(tmp_path / "x.npy", x.numpy())
            return marks.mark_of(Inputs(source_of(np.load(tmp_path / "x.npy", mmap_mode="r")), None))
        cond = {"context": more[:, None], "table": Shared(torch.ones(500, 9))} if kind == "given" else {}
        return marks.mark_of(inputs_of(small(), x, cond))

    x, size = torch.arange(1000.0).reshape(500, 2), 500
    if kind == "large":
        monkeypatch.setattr(marks, "MOST", 800)
        monkeypatch.setattr(marks, "BLOCKS", 10)
        size = 100  # that are looked at
    assert mark(x) == mark(x.clone())
    noticed = 0
    for i in range(0, 500, 7):
        changed = x.clone()
        changed[i, 1] += 1
        noticed += mark(changed) != mark(x)
    assert noticed == 72 if size == 500 else 8 <= noticed <= 22
    assert kind != "given" or mark(x, 2.0) != mark(x)


def test_what_is_kept_of_many_validations_does_not_lengthen_the_description(tmp_path):
    def size(steps: int) -> int:
        train(
            small(),
            X,
            steps=steps,
            seed=0,
            out=tmp_path / str(steps),
            val=Validation(APART[:8], every=1, patience=None),
        )
        return (tmp_path / str(steps) / "state.json").stat().st_size

    assert abs(size(40) - size(2)) < 100


def test_a_callback_that_fails_loses_nothing(tmp_path):
    def fail() -> None:
        raise OSError("the tracker went away")

    with pytest.raises(OSError, match="the tracker went away") as caught:
        train(small(), X, steps=5, seed=0, out=tmp_path, callbacks=[at(2, fail)])
    assert any(f"All of it is saved in {tmp_path}" in note for note in vars(caught.value)["__notes__"])
    assert len(train(small(), X, steps=5, out=tmp_path, resume=True).losses) == 5


def test_a_callback_may_end_the_run_and_resuming_it_gives_its_record(tmp_path):
    def enough() -> None:
        raise StopTraining("good enough")

    done = train(small(), X, steps=9, seed=0, out=tmp_path, callbacks=[at(4, enough)])
    assert (len(done.losses), done.stopped) == (4, "good enough")
    assert "stopped='good enough'" in repr(done)
    again = train(small(), X, steps=9, out=tmp_path, resume=True)
    assert (again.losses, again.stopped) == (done.losses, done.stopped)
    assert torch.equal(numbers(again.model), numbers(done.model))


def test_a_run_is_told_of_by_events(tmp_path):
    kinds: list[tuple[str, int]] = []
    train(small(), X, steps=4, out=Saving(tmp_path, every=2), callbacks=[lambda e: kinds.append((e.kind, e.step))])
    steps = [("step", 1), ("step", 2), ("checkpoint", 2), ("step", 3), ("step", 4)]
    assert kinds == [("start", 0), *steps, ("end", 4)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert '"loss"' in lines[0]


def begun(folder: Path, **options: Any) -> None:
    train(small(), X, **{"steps": 3, "seed": 0, "out": folder, **options})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 4}, "steps is 4, but the run in .* was begun with 3: go on with the same steps"),
        ({"seed": 1}, "seed is 1, but the run in .* was begun with 0"),
        ({"recipe": Recipe(64)}, "recipe.batch_size is 64, but the run in .* with 128: go on with the same batch_size"),
        ({"recipe": Recipe(averages=PowerDecay(0.2))}, r"recipe.averages is PowerDecay\(sigma_rel=0.2\), but"),
        ({"recipe": Recipe(schedule=lambda i, n: 1.0)}, "recipe.schedule is <lambda>, but .* begun with warm_cosine"),
        ({"loss": Weighted()}, "loss is Weighted, but .* begun with DenoisingScoreMatching"),
        ({"val": X[:9]}, r"val is 9 rows of \(2,\) .*, but the run in .* was begun with none"),
        ({"data": X[:100]}, r"data is 100 rows of \(2,\) \(\w+\), but .* begun with 200 rows"),
        ({"data": torch.cat([X[:6], 2 * X[6:7], X[7:]])}, r"data is 200 rows of \(2,\) \(\w+\), but .* with 200 rows"),
        ({"data": -X}, r"data is 200 rows of \(2,\) \(\w+\), but .* begun with 200 rows of \(2,\) \(\w+\)"),
        (
            {"model": small(label_drop=0.2)},
            r"net is MLP\(.*label_drop=0.2.*\), but .* begun with MLP\(.*label_drop=0.1",
        ),
        ({"model": small(24)}, "model is MLP of .* but .* was begun with MLP of"),
        ({"model": Network(small().net, VPSDE(), predict.edm, shape=(2,))}, r"model is .*VPSDE.* begun with .*EDMSDE"),
    ],
)
def test_a_run_goes_on_with_what_it_was_begun_with_alone(change, message, tmp_path):
    begun(tmp_path)
    given = {"model": small(), "data": X, "steps": 3, "out": tmp_path, **change}
    with pytest.raises(ValueError, match=message):
        train(**given, resume=True)


def test_a_folder_is_begun_once_and_resumed_where_there_is_something(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no run to resume in .*: leave resume out to begin one"):
        train(small(), X, steps=3, out=tmp_path / "new", resume=True)
    with pytest.raises(ValueError, match="resume=True goes on with a run that was kept: say where, out=folder"):
        train(small(), X, steps=3, resume=True)
    begun(tmp_path)
    with pytest.raises(ValueError, match=r"holds a run already: go on with it, resume=True; .*overwrite=True\) to beg"):
        begun(tmp_path)
    begun(tmp_path, out=Saving(tmp_path, overwrite=True))
    with pytest.raises(TypeError, match=r"out must be a folder, or a Saving\(folder, every=500\), got int"):
        begun(tmp_path, out=3)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="out"):
        begun(file)
    with pytest.raises(ValueError, match="every must be at least 1"):
        Saving(tmp_path, every=0)


def test_a_run_begun_anew_never_falls_back_on_the_one_that_was_there(tmp_path):
    begun(tmp_path, out=Saving(tmp_path, every=1, keep=3))
    assert len(list(tmp_path.glob("state*.json"))) > 1
    begun(tmp_path, out=Saving(tmp_path, keep=3, overwrite=True), seed=1)
    for name in ("state", "model"):
        assert [p.name for p in tmp_path.glob(f"{name}*.json")] == [f"{name}.json"]
        assert len(list(tmp_path.glob(f"{name}-*"))) == 1


@pytest.mark.parametrize("name", ["state.json", "model.json", "model-0123456789abcdef.safetensors"])
def test_a_folder_where_a_file_is_to_go_is_found_before_any_work(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(IsADirectoryError, match=f"holds a folder {name}, where a file is to go: give another place"):
        begun(tmp_path, out=Saving(tmp_path, overwrite=True))


def test_what_cannot_be_rebuilt_is_refused_before_any_work(tmp_path):
    own = Network(nn.Linear(2, 2), EDMSDE(0.01, 20.0), predict.edm, shape=(2,))
    with pytest.raises(TypeError, match="Linear has no `config` property"):
        train(own, X, steps=3, out=tmp_path)


def test_a_disk_that_is_full_is_seen_before_the_work_and_one_that_fills_up_leaves_what_was_saved(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"total": 2**30, "free": 2**10}))
        with pytest.raises(ValueError, match=r"cannot be written \(.* GiB are needed and 9.54e-07 GiB are free\)"):
            train(small(), X, steps=4, seed=0, out=tmp_path)
    whole, model = small(), small()

    def write(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    def fill() -> None:
        monkeypatch.setattr("sde_diffusion.training.store.write", write)

    with (
        pytest.warns(UserWarning, match="the run could not be saved: .* No space left on device"),
        pytest.raises(OSError, match="No space left on device") as caught,
    ):
        train(model, X, steps=4, seed=0, out=Saving(tmp_path, every=1), callbacks=[at(3, fill)])
    assert len(vars(caught.value)["training"].losses) == 3
    monkeypatch.undo()
    assert_same((whole, train(whole, X, steps=4, seed=0)), (model, train(model, X, steps=4, out=tmp_path, resume=True)))


def test_the_engine_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"train runs on accelerate: pip install 'sde-diffusion\[train\]'"):
        train(small(), X, steps=1)


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path):
    caught: list[BaseException] = []

    def second() -> None:
        try:
            train(small(), X, steps=2, out=Saving(tmp_path, overwrite=True))
        except BlockingIOError as error:
            caught.append(error)

    def start() -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    train(small(), X, steps=3, out=tmp_path, callbacks=[at(1, start)])
    assert "another process writes to" in str(caught[0])


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(tmp_path):
    """kill -9 at random moments of training and of saving; a saved step is never lost."""
    steps, saved, kills = 30, 0, 0
    whole = small(64)
    expected = train(whole, X, steps=steps, seed=5)
    draw = random.Random(0)

    def run() -> None:
        train(small(64), X, steps=steps, seed=5, out=Saving(tmp_path, every=1), resume=saved > 0)

    def written() -> int:
        state = tmp_path / "state.json"
        return state.stat().st_mtime_ns if state.exists() else 0

    last = 0
    while saved < steps:
        child, began = fork(run, tmp_path / "error.txt"), time.monotonic()
        while draw.random() < 0.99 and time.monotonic() < began + 10 and written() == last:
            time.sleep(0.001)  # until a save, however slow the machine, or some time before it
        time.sleep(draw.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        kills += wait(child) == -signal.SIGKILL
        last = written()
        assert not (tmp_path / "error.txt").exists(), (tmp_path / "error.txt").read_text()
        if (tmp_path / "state.json").exists():
            about, tensors = store.read(tmp_path, "state")
            now = len(unpacked(about["run"], tensors)["losses"])
            lines = [
                json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if line[-1] == "}"
            ]
            assert now >= saved
            assert max(line["step"] for line in lines) <= now + 1  # no more than what was not saved yet is done again
            saved = now
    model = small(64)
    done = train(model, X, steps=steps, out=tmp_path, resume=True)
    assert_same((whole, expected), (model, done))
    print(f"{kills} kills")
    assert kills > 5
    seen = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sorted({step for step in seen if step}) == list(range(1, steps + 1))


# --- validation


def test_the_best_model_is_returned_and_saved_and_a_run_that_gets_worse_ends(tmp_path):
    recipe = Recipe(32, 0.3, schedule=lambda i, steps: 1.0 + i)
    told: list[dict[str, float]] = []
    done = train(
        small(), X, steps=50, seed=0, recipe=recipe, out=tmp_path,
        val=Validation(APART[:100], every=2, patience=3, draws=20),
        callbacks=[lambda e: told.append(e.metrics) if e.kind == "validation" else None],
    )  # fmt: skip
    nats = [found["val_nats"] for found in done.validations]
    steps = [int(found["step"]) for found in done.validations]
    assert done.best == steps[nats.index(min(nats))]
    assert steps == list(range(2, 2 * len(steps) + 1, 2))
    assert len(done.losses) == steps[-1] < 50
    assert f"3 validations in a row were worse than that after step {done.best}" in str(done.stopped)
    assert f"best={done.best}" in repr(done)
    assert [metrics["val_nats"] for metrics in told] == nats
    best = train(small(), X, steps=50, seed=0, recipe=recipe, callbacks=[at(done.best, stop)]).averages[0]
    assert torch.equal(numbers(done.model), numbers(best))
    assert torch.equal(numbers(load_checkpoint(tmp_path).model), numbers(best))
    assert not torch.equal(numbers(done.averages[0]), numbers(best))


def stop() -> None:
    raise StopTraining("")


def test_data_to_validate_on_are_looked_at_before_the_first_step():
    with pytest.raises(ValueError, match=r"val: data has event shape \(3,\)"):
        train(small(), X, steps=50, val=torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"val: data holds NaN or infinity in row 2 \(1 of 3\)"):
        train(small(), X, steps=50, val=torch.tensor([[0.0, 0.0], [1.0, 1.0], [float("nan"), 0.0]]))
