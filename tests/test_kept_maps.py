"""Claim: a flow map is kept, read, and gone on with as any model is; what reads no maps yet, or finds none, says so."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from checkpoints import awake, edit, model, seal
from torch import Tensor, nn

from sde_diffusion import EDMSDE, VPSDE, Network, SDESampler, predict
from sde_diffusion.distillation import FlowMap, Shortcut, Trajectory
from sde_diffusion.nets import MLP, DiT, UNet
from sde_diffusion.training import (
    Recipe,
    Saving,
    TrainingInterrupted,
    Validation,
    load_checkpoint,
    save_checkpoint,
    train,
)

X = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
with torch.random.fork_rng():
    torch.manual_seed(0)
    TEACHER = model()


def small(teacher: Network = TEACHER, **options: Any) -> FlowMap:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return FlowMap.from_teacher(teacher, **options)


def moved(flow: FlowMap) -> FlowMap:
    """A map whose second time is not at zero any more."""
    awake(flow.net)
    return flow


def spread(net: nn.Module, shape: tuple[int, ...]) -> Network:
    return Network(awake(net), EDMSDE(0.01, 20.0), predict.edm, shape=shape).eval()


@pytest.mark.parametrize("reach", ["any", "data", (20.0, 1.0, 0.0), (math.inf, 0.5, 0.0)])
def test_a_map_comes_back_with_what_it_reaches_and_jumps_bit_for_bit(reach, tmp_path):
    first = moved(small(reach=reach))
    save_checkpoint(tmp_path, first)
    second = load_checkpoint(tmp_path).model
    assert type(second) is FlowMap
    assert (second.reach, second.kind, second.clock) == (reach, first.kind, first.clock)
    at, end = first.sde.levels([20.0, 1.0])
    to = None if reach == "data" else end
    assert torch.equal(first.jump(X, at, to), second.jump(X, at, to))
    assert not torch.equal(first.jump(X, at, to), small().jump(X, at, to))


@pytest.mark.parametrize(
    ("net", "shape"),
    [(lambda: UNet(1, width=8, classes=3), (1, 4, 4)), (lambda: DiT((1, 4, 4), width=16, heads=2), (1, 4, 4))],
    ids=["UNet", "DiT"],
)
def test_samples_of_a_map_of_images_come_back_bit_for_bit(net, shape, tmp_path):
    first = moved(FlowMap.from_teacher(spread(net(), shape)))
    save_checkpoint(tmp_path, first)
    second = load_checkpoint(tmp_path).model
    for nfe in (1, 3):
        a, b = (SDESampler(m.sde, m, nfe=nfe).sample(3, seed=1) for m in (first, second))
        assert torch.equal(a, b)


class Told(nn.Module):
    """A net of one's own that is told where it is to go."""

    body: Any

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.body = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, 2))

    @property
    def config(self) -> dict[str, int]:
        return {"width": self.width}

    def forward(self, x: Tensor, t: Tensor, until: Tensor) -> Tensor:
        answer: Tensor = self.body(torch.cat([x, t[:, None], until[:, None]], 1))
        return answer


def test_a_map_of_a_net_of_ones_own_comes_back(tmp_path):
    first = FlowMap(Told(8), VPSDE(), predict.v, shape=(2,))
    save_checkpoint(tmp_path, first)
    second = load_checkpoint(tmp_path, known=[Told]).model
    assert isinstance(second, FlowMap)
    assert torch.equal(first.carry(X, 0.9, 0.2), second.carry(X, 0.9, 0.2))


def test_a_network_is_still_written_for_those_who_read_no_maps(tmp_path):
    save_checkpoint(tmp_path / "net", TEACHER)
    save_checkpoint(tmp_path / "map", small())
    versions = [json.loads((tmp_path / name / "model.json").read_text())["version"] for name in ("net", "map")]
    assert versions == [3, 4]  # of which a reader of version 3 refuses the second: "this is version 3: ... upgrade"
    assert type(load_checkpoint(tmp_path / "net").model) is Network


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (None, "has no sound entry 'map': it was edited"),
        ("any", "has no sound entry 'map': it was edited"),
        ({}, "cannot be put together: reach is 'any', 'data', or noise levels that fall"),
        ({"reach": "any", "guidance": 2.0}, r"cannot be put together: guidance says in words .* got 2.0"),
        ({"reach": "all"}, "cannot be put together: reach is .* got 'all'"),
        ({"reach": [1.0, 2.0]}, r"cannot be put together: reach is .* got \[1.0, 2.0\]"),
        ({"reach": [2.0, "nan"]}, "cannot be put together: reach is"),
        ({"reach": [2.0, None]}, "cannot be put together"),
        ({"reach": [[2.0], 1.0]}, "cannot be put together"),
    ],
)
def test_a_map_whose_entry_is_none_is_refused(entry, message, tmp_path):
    save_checkpoint(tmp_path, small())
    edit(tmp_path, map=entry)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path)


def test_a_network_of_one_time_that_is_called_a_map_is_refused(tmp_path):
    save_checkpoint(tmp_path, TEACHER)
    about = json.loads((tmp_path / "model.json").read_text())
    about.pop("digest")
    (tmp_path / "model.json").write_text(seal(about | {"version": 4, "map": {"reach": "any"}}))
    with pytest.raises(ValueError, match="it is a flow map, and its MLP is told one time alone, until=False"):
        load_checkpoint(tmp_path)


def test_a_model_of_another_class_is_not_kept_as_one_of_these(tmp_path):
    class Other(FlowMap):
        pass

    other = Other(MLP(2, hidden=16, layers=1, until=True), EDMSDE(0.01, 20.0), shape=(2,))
    with pytest.raises(TypeError, match="a checkpoint holds a Network or a FlowMap; this is a Other"):
        save_checkpoint(tmp_path, other)


# --- a run that was cut short


def run(flow: FlowMap, teacher: Network = TEACHER, **options: Any) -> Any:
    whole: dict[str, Any] = {"loss": Shortcut(teacher), "recipe": Recipe(16, 1e-3), "steps": 6, "seed": 5}
    return train(flow, X, **(whole | options))


def test_a_distillation_that_is_interrupted_ends_as_one_that_was_not_and_keeps_a_map(tmp_path):
    def stop(event: Any) -> None:
        if event.kind == "step" and event.step == 3:
            raise KeyboardInterrupt

    whole = run(small())
    with pytest.raises(TrainingInterrupted, match="resume=True"):
        run(small(), out=Saving(tmp_path, every=2), callbacks=[stop])
    rest = run(small(), out=tmp_path, resume=True)
    assert rest.losses == whole.losses
    for a, b in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(a, b)
    kept = load_checkpoint(tmp_path).model
    assert isinstance(kept, FlowMap)
    assert torch.equal(kept.carry(X, 10.0), whole.model.carry(X, 10.0))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line][-1] == 6


def test_a_distillation_goes_on_with_the_same_teacher_objective_and_reach_alone(tmp_path):
    run(small(), out=tmp_path, steps=2)
    other = model()
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    again: Any = {"out": tmp_path, "steps": 2, "resume": True}
    same = r"loss.teacher is Network \w+, but .* begun with Network \w+: go on with the same teacher, or begin anew"
    with pytest.raises(ValueError, match=same):
        run(small(), other, **again)
    with pytest.raises(ValueError, match=r"loss is Trajectory\(teacher=Network\), but the run in .* with Shortcut"):
        run(small(), loss=Trajectory(TEACHER), **again)
    with pytest.raises(ValueError, match=r"model is .*reaches 'data', but .*reaches 'any'"):
        run(small(reach="data"), loss=Trajectory(TEACHER), **again)
    assert len(run(small(), **again).losses) == 2


def test_a_validation_never_ends_a_distillation_nor_brings_back_the_map_that_was_not_trained(tmp_path):
    val = Validation(X[:40] + 0.01, every=1, patience=1, draws=8)
    worse = Recipe(16, 0.01, schedule=lambda i, steps: 4.0**i)  # its steps grow, and its nats with them
    done = run(small(), val=val, recipe=worse, out=tmp_path)
    nats = [each["val_nats"] for each in done.validations]
    assert len(nats) == 6
    assert nats[-1] > 1.1 * min(nats), nats
    assert (done.best, done.stopped) == (6, None)
    sparse = Validation(X[:40] + 0.01, draws=8)
    assert [step for step in range(1, 501) if sparse.due(step, 500, of_map=True)] == [100, 200, 300, 400, 500]
    assert [each["step"] for each in run(small(), val=sparse, steps=41).validations] == [20, 40, 41]
    kept = load_checkpoint(tmp_path).model
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), done.model.parameters(), strict=True))
