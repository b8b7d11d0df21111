"""Claim: a condition that is left out in training is left out in all parts of a network that stands on a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from controls import drawn, unet
from torch import nn

from sde_diffusion import VPSDE, Network, predict
from sde_diffusion.nets import Controlled, LoRA
from sde_diffusion.nets.drops import Drop
from sde_diffusion.training import Recipe, TrainingInterrupted, train

N, RATE = 150, 0.4
GENERATOR = torch.Generator().manual_seed(0)
X, FIELD = (torch.randn(N, 1, 4, 4, generator=GENERATOR) for _ in range(2))
T = torch.randn(N, generator=GENERATOR)
TOLD = {
    "label": torch.arange(N) % 3,
    "context": torch.randn(N, 2, generator=GENERATOR),
    "image": torch.randn(N, 1, 4, 4, generator=GENERATOR),
    "tokens": torch.randn(N, 3, 4, generator=GENERATOR),
}
DROPS = {f"{name}_drop": RATE for name in TOLD}
FIELDS = {"a": FIELD, "b": -FIELD}


def base(**drops: Any) -> Any:
    sizes: Any = {"context": 2, "image": 1, "tokens": 4, "dropout": 0.0, **DROPS, **drops}
    return unet(**sizes)


def controlled(net: nn.Module, frozen: bool = True) -> Any:
    return drawn(Controlled(net, {"a": 1, "b": 1}, frozen=frozen), seed=1)


AROUND: dict[str, Any] = {
    "a control": (controlled, FIELDS),
    "a control with its base": (lambda net: controlled(net, frozen=False), FIELDS),
    "adapters": (lambda net: drawn(LoRA(net, 2), seed=1), {}),
    "adapters upon a control": (lambda net: drawn(LoRA(controlled(net), 2), seed=1), FIELDS),
}


@pytest.mark.parametrize("name", AROUND)
@torch.no_grad()
def test_each_row_is_told_a_condition_in_all_parts_or_in_none(name: str) -> None:
    around, fields = AROUND[name]
    net = around(base())
    for one, value in TOLD.items():
        knows, not_told = net.eval()(X, T, **{one: value}, **fields), net(X, T, **fields)
        torch.manual_seed(0)
        found = net.train()(X, T, **{one: value}, **fields)
        known, dropped = (torch.isclose(found, wanted, atol=1e-5).flatten(1).all(1) for wanted in (knows, not_told))
        assert bool((known ^ dropped).all())
        assert abs(float(dropped.float().mean()) - RATE) < 4 * (RATE * (1 - RATE) / N) ** 0.5
    assert all(part.given is None for part in net.modules() if isinstance(part, Drop))
    assert net.eval()(X, T, **TOLD, **fields).equal(net(X, T, **TOLD, **fields))


def test_entries_are_unknown_in_all_parts_alike_and_what_is_never_dropped_is_told() -> None:
    net = controlled(base(label_drop=0.0, entry_drop=0.3))
    drawn_masks: dict[str, list[Any]] = {}
    for part in net.modules():
        if isinstance(part, Drop):
            part.register_forward_hook(lambda part, _, mask: drawn_masks.setdefault(part.name, []).append(mask))
    net.train()(X, T, **TOLD, **FIELDS)
    assert {name: len(masks) for name, masks in drawn_masks.items()} == dict.fromkeys([*DROPS, "entry_drop"], 3)
    assert drawn_masks.pop("label_drop") == [None] * 3
    assert all(torch.equal(masks[0], mask) for masks in drawn_masks.values() for mask in masks)
    assert drawn_masks["entry_drop"][0].shape == (N, 2)
    assert net.net.condition.context.missed.logical_not().all()  # the base stays as it was
    with pytest.raises(ValueError, match="label must lie in"):
        net(X, T, label=TOLD["label"] + 5, **FIELDS)
    assert all(part.given is None for part in net.modules() if isinstance(part, Drop))


@pytest.mark.parametrize("name", ["a control", "adapters"])
@pytest.mark.slow
def test_a_run_that_drops_labels_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    around, fields = AROUND[name]

    def stop(event: Any) -> None:
        if event.kind == "step" and event.step == 2:
            raise KeyboardInterrupt

    def run(**how: Any) -> Any:
        net = around(unet(dropout=0.0, label_drop=0.5))
        model = Network(net, VPSDE(), predict.edm, shape=(1, 4, 4))
        return train(model, X, label=TOLD["label"], **fields, steps=3, recipe=Recipe(batch_size=8), seed=0, **how)

    whole = run()
    with pytest.raises(TrainingInterrupted):
        run(out=tmp_path / "cut", callbacks=[stop])
    gone = run(out=tmp_path / "cut", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), gone.model.parameters(), strict=True))


@pytest.mark.slow  # six seconds
@torch.no_grad()
def test_a_compiled_network_drops_as_it_does_otherwise() -> None:
    net = controlled(unet(dropout=0.0, label_drop=RATE)).train()
    torch.manual_seed(0)
    wanted = net(X, T, label=TOLD["label"], **FIELDS)
    torch.manual_seed(0)
    compiled: Any = torch.compile(net, backend="eager")
    torch.testing.assert_close(compiled(X, T, label=TOLD["label"], **FIELDS), wanted)
