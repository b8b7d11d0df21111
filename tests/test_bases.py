"""Claim: what stands on a base is trained, kept and resumed without it, and finds it again by its digest or refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit, seal
from controls import drawn, unet
from refusals import T, V, check, refuses
from torch import nn

from sde_diffusion import VPSDE, Network, SDESampler, predict
from sde_diffusion.nets import Captioned, Controlled, LoRA, TextEncoder, UNet, merge
from sde_diffusion.nets.base import OnBase, kept_names
from sde_diffusion.training import EMA, Recipe, Saving, TrainingInterrupted, load_checkpoint, save_checkpoint, train

X = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(1))
FAST = Recipe(batch_size=8)
WORDS = TextEncoder.of(["a one"], size=8)
AROUND: dict[str, Any] = {"Controlled": Controlled, "LoRA": LoRA}


def of(net: nn.Module) -> Network:
    return Network(net, VPSDE(), predict.edm, shape=(1, 8, 8))


def model(around: Any, base: nn.Module | None = None) -> Network:
    torch.manual_seed(0)
    return of(around(base or unet(classes=0)))


def told(around: Any, field: torch.Tensor = X) -> dict[str, Any]:
    return {"control": field} if around is Controlled else {}


def learnt(net: Any, seed: int = 0) -> Any:
    """Draws the weights that learn, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.1, generator=generator)
    return net.eval()


def size(folder: Path, name: str) -> int:
    return max(path.stat().st_size for path in folder.glob(f"{name}-*.safetensors"))


def bytes_of(net: nn.Module, trained: bool) -> int:
    return sum(4 * p.numel() for p in net.parameters() if p.requires_grad or not trained)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "base", of(unet(classes=0)))
    return tmp_path / "base"


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.slow
def test_a_run_keeps_what_was_trained_alone_and_goes_on_bit_for_bit(around: Any, base: Path, tmp_path: Path) -> None:
    run, cut = tmp_path / "run", tmp_path / "cut"

    def stop(event: Any) -> None:
        if event.kind == "step" and event.step == 3:
            raise KeyboardInterrupt

    whole = train(model(around), X, steps=6, recipe=FAST, out=Saving(run, base=base), seed=0, **told(around))
    with pytest.raises(TrainingInterrupted):
        train(model(around), X, steps=6, recipe=FAST, out=cut, seed=0, callbacks=[stop], **told(around))
    gone = train(model(around), X, steps=6, recipe=FAST, out=cut, seed=0, resume=True, **told(around))
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), gone.model.parameters(), strict=True))
    net: Any = whole.model.net
    shared = {p.data_ptr() for name, p in net.named_parameters() if not net.own(name)}
    assert len(shared & {p.data_ptr() for p in whole.averages[0].parameters()}) == len(shared)
    trained = bytes_of(model(around).net, trained=True)
    assert size(run, "model") < trained + 8000 < bytes_of(net, trained=False) / 1.5  # the header is short
    assert size(run, "state") < 4.1 * trained + 40_000  # weights, two moments, an average
    loaded = load_checkpoint(run).model
    pair = [
        SDESampler(VPSDE(), m, steps=2).sample(2, seed=0, **(told(around) and {"control": X[:2]}))
        for m in (loaded, whole.model)
    ]
    assert torch.equal(*pair)


def test_a_run_with_another_base_is_not_gone_on_with(tmp_path: Path) -> None:
    train(model(LoRA), X, steps=1, recipe=FAST, out=tmp_path, seed=0)
    with pytest.raises(ValueError, match=r"base is of digest \w{16}, but the run in .* was begun with of digest"):
        train(model(LoRA, unet(classes=0, seed=1)), X, steps=1, recipe=FAST, out=tmp_path, seed=0, resume=True)


def test_a_base_that_was_set_to_be_trained_is_refused_and_one_that_is_to_be_is_kept_whole(tmp_path: Path) -> None:
    made = model(Controlled)
    made.requires_grad_(True)
    with pytest.raises(ValueError, match="the base of a control, or of adapters, was set to be trained, and is shared"):
        train(made, X, steps=1, control=X)
    whole = of(Controlled(unet(classes=0), frozen=False))
    assert not kept_names(whole)
    train(whole, X, steps=1, recipe=FAST, control=X, out=tmp_path, seed=0)
    assert load_checkpoint(tmp_path).model.net.frozen is False
    assert json.loads((tmp_path / "model.json").read_text())["version"] == 3


def test_an_average_shares_the_base_and_follows_the_rest() -> None:
    made = model(Controlled)
    ema = EMA(made)
    assert ema.model.net.net.stem.weight.data_ptr() == made.net.net.stem.weight.data_ptr()
    with torch.no_grad():
        for p in made.net.controls.parameters():
            p.add_(1.0)
    ema.update(made)
    ema.model.double()
    assert made.net.net.stem.weight.dtype == torch.float32
    other = EMA(made)
    other.load_state(ema.state())
    assert not any("net.net." in name for name in ema.state())


def test_a_small_checkpoint_finds_its_base_beside_it_wherever_both_are(base: Path, tmp_path: Path) -> None:
    made = model(Controlled)
    drawn(made.net.controls)
    save_checkpoint(tmp_path / "runs" / "edges", made, base=base)
    about = json.loads((tmp_path / "runs" / "edges" / "model.json").read_text())
    assert (about["version"], about["base"]["folder"]) == (5, "../../base")
    for folder in ("base", "runs"):
        shutil.move(tmp_path / folder, tmp_path / "moved" / folder)
    loaded = load_checkpoint(tmp_path / "moved" / "runs" / "edges").model
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), made.parameters(), strict=True))
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, p in made.named_parameters() if p.requires_grad
    }


def test_adapters_on_a_control_on_a_base_name_one_another(base: Path, tmp_path: Path) -> None:
    made = model(Controlled)
    drawn(made.net.controls)
    save_checkpoint(tmp_path / "edges", made, base=base)
    steered = load_checkpoint(tmp_path / "edges").model
    tuned = of(LoRA(steered.net, 2, where=["controls*"]))
    save_checkpoint(tmp_path / "tuned", tuned, base=tmp_path / "edges")
    loaded = load_checkpoint(tmp_path / "tuned").model
    x, t = X[:2], torch.tensor([0.3, 0.6])
    assert torch.equal(loaded.net(x, t, control=x), steered.net(x, t, control=x))
    assert size(tmp_path / "tuned", "model") < size(tmp_path / "edges", "model") / 2


@pytest.mark.parametrize("inner", AROUND.values(), ids=AROUND)
@pytest.mark.slow
def test_adapters_upon_adapters_or_a_control_are_kept_and_loaded_whole(inner: Any, base: Path, tmp_path: Path) -> None:
    x, t = X[:2], torch.tensor([0.3, 0.6])
    one = learnt(inner(unet(classes=0)))
    save_checkpoint(tmp_path / "one", of(one), base=base)
    two = learnt(LoRA(one, 2), 1)
    assert {name for name, p in two.named_parameters() if p.requires_grad} == {
        name for name, _ in two.named_parameters() if name not in kept_names(two)
    }
    save_checkpoint(tmp_path / "two", of(two), base=tmp_path / "one")
    loaded: Any = load_checkpoint(tmp_path / "two").model.net
    assert torch.equal(loaded(x, t, **told(inner, x)), two(x, t, **told(inner, x)))
    merged = merge(loaded)
    torch.testing.assert_close(merged(x, t, **told(inner, x)), two(x, t, **told(inner, x)), rtol=1e-5, atol=1e-5)
    assert not kept_names(merged)
    assert all(p.requires_grad for p in merged.parameters())
    save_checkpoint(tmp_path / "whole", of(merged))
    assert type(load_checkpoint(tmp_path / "whole").model.net) is (Controlled if inner is Controlled else UNet)


def test_a_merged_control_whose_base_is_as_it_was_still_stands_on_it(base: Path, tmp_path: Path) -> None:
    merged = merge(learnt(LoRA(Controlled(unet(classes=0)), 2, where=["controls*"])))
    assert all(p.requires_grad == name.startswith("controls.") for name, p in merged.named_parameters())
    save_checkpoint(tmp_path / "own", of(merged), base=base)
    assert load_checkpoint(tmp_path / "own").model.net.frozen is True


def test_of_a_compiled_network_the_network_is_kept(base: Path, tmp_path: Path) -> None:
    net = unet(classes=0)
    compiled: Any = torch.compile(net, backend="eager")
    save_checkpoint(tmp_path / "plain", of(compiled))
    assert type(load_checkpoint(tmp_path / "plain").model.net) is UNet
    compiled = torch.compile(learnt(Controlled(net)), backend="eager")
    out = Saving(tmp_path / "run", base=base)
    with torch.compiler.set_stance("force_eager"):
        trained: Any = train(of(compiled), X[:8], steps=1, control=X[:8], recipe=FAST, out=out, seed=0).model.net
        found: Any = load_checkpoint(tmp_path / "run").model.net
        x, t = X[:2], torch.tensor([0.3, 0.6])
        assert torch.equal(found(x, t, control=x), trained(x, t, control=x))


def compiled_within() -> Any:
    net: Any = unet(classes=0)
    net.stem = torch.compile(net.stem, backend="eager")
    return of(net)


def test_the_base_is_told_on_loading_where_the_checkpoint_does_not_say(tmp_path: Path, base: Path) -> None:
    made = model(LoRA)
    save_checkpoint(tmp_path / "own", made)
    for where in (base, load_checkpoint(base).model, unet(classes=0)):
        assert type(load_checkpoint(tmp_path / "own", base=where).model.net) is LoRA


def test_a_base_in_memory_is_shared_as_it_is_and_one_around_a_network_is_not_opened(tmp_path: Path) -> None:
    net, made = unet(classes=0), LoRA(unet(classes=0))
    for name, p in made.named_parameters():
        p.data = p.data.double() if made.own(name) else p.data
    save_checkpoint(tmp_path / "double", of(made))
    loaded: Any = load_checkpoint(tmp_path / "double", base=net).model.net
    shared = {p.data_ptr() for p in net.parameters()}
    assert {p.data_ptr() for n, p in loaded.named_parameters() if not loaded.own(n)} == shared
    assert all(p.dtype == (torch.float64 if loaded.own(n) else torch.float32) for n, p in loaded.named_parameters())
    told_words = Captioned(UNet(1, width=8, tokens=8), WORDS)
    save_checkpoint(tmp_path / "words", of(learnt(LoRA(told_words, 2))), base=told_words)
    assert type(load_checkpoint(tmp_path / "words", base=told_words).model.net.net) is Captioned


def test_adapters_upon_a_control_inside_another_network_are_merged_into_one_that_is_kept_whole() -> None:
    inside: Any = Captioned(Controlled(UNet(1, width=8, tokens=8)), WORDS)
    net: Any = merge(learnt(LoRA(inside, 2)))
    assert inside.net.frozen is True
    assert net.net.frozen is False
    assert all(p.requires_grad for p in net.parameters())
    net = merge(LoRA(inside, 2, where=["net.controls*"]))
    assert net.net.frozen is True


def test_a_field_that_came_to_the_base_since_has_its_default(base: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "own", model(LoRA), base=base)
    net = json.loads((tmp_path / "own" / "model.json").read_text())["net"]
    del net["fields"]["net"]["a net"]["fields"]["dropout"]
    edit(tmp_path / "own", net=net)
    assert type(load_checkpoint(tmp_path / "own").model.net) is LoRA


def kept(folder: str, around: Any = LoRA, **more: Any) -> Path:
    path = Path(folder)
    save_checkpoint(path / "base", of(unet(classes=0)))
    save_checkpoint(path / "other", of(unet(classes=0, seed=1)))
    save_checkpoint(path / "half", of(unet(classes=0).double()))
    save_checkpoint(path / "own", model(around), **more)
    return path


def changed(folder: str) -> None:
    path = kept(folder, base=Path(folder) / "base")
    save_checkpoint(path / "base", of(unet(classes=0, seed=1)))
    load_checkpoint(path / "own")


def gone(folder: str) -> None:
    path = kept(folder, base=Path(folder) / "base")
    shutil.rmtree(path / "base")
    load_checkpoint(path / "own")


def edited(folder: str, **entry: Any) -> None:
    path = kept(folder) / "own" / "model.json"
    about = json.loads(path.read_text())
    path.write_text(seal({**about, **entry}))
    load_checkpoint(path.parent, base=unet(classes=0))


def over(folder: str, place: str, run: bool = False, **more: Any) -> None:
    """Saves adapters upon a control upon a base over one of these, which must stay."""
    path = kept(folder, Controlled, base=Path(folder) / "base")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    two = of(LoRA(load_checkpoint(path / "own").model.net, 2))
    try:
        if run:
            train(two, X, steps=1, control=X, out=Saving(path / place, overwrite=True, **more))
        else:
            save_checkpoint(path / place, two, **more)
    finally:
        assert before == {file: file.read_bytes() for file in before}


def circle(folder: str, where: str) -> None:
    path = kept(folder, base=Path(folder) / "base")
    save_checkpoint(path / "two", of(LoRA(load_checkpoint(path / "own").model.net, 1)), base=path / "own")
    about = json.loads((path / "own" / "model.json").read_text())
    edit(path / "own", base={**about["base"], "folder": where})
    load_checkpoint(path / "two")


def long_chain(folder: str) -> None:
    save_checkpoint(path := Path(folder) / "0", model(LoRA))
    for i in range(1, 11):
        shutil.copytree(path, Path(folder) / str(i))
        about = json.loads((path / "model.json").read_text())
        edit(Path(folder) / str(i), base={**about["base"], "folder": f"../{i - 1}"})
    load_checkpoint(Path(folder) / "10")


def dropped(folder: str) -> Network:
    """Adapters upon a network of the weights of another, that was built with other dropout."""
    kept(folder)
    return of(LoRA(unet(classes=0, dropout=0.5)))


def built_otherwise(folder: str) -> None:
    save_checkpoint(Path(folder) / "drop", dropped(folder))
    load_checkpoint(Path(folder) / "drop", base=Path(folder) / "base")


DESTROYED = "holds the base that the model stands on, and to save the model there would destroy it: give another folder"


@refuses(
    (lambda f: over(f, "own", base=Path(f) / "own"), V, DESTROYED),
    (lambda f: over(f, "own"), V, DESTROYED),
    (lambda f: over(f, "base", base=Path(f) / "own"), V, DESTROYED),
    (lambda f: over(f, "base", run=True), V, DESTROYED),
    (lambda _: type("Mine", (OnBase,), {})(), T, "abstract"),
    (lambda f: circle(f, "."), V, "holds what was trained upon a base, which is said to be in the same folder, or to"),
    (lambda f: circle(f, "../two"), V, "it was saved over its base, or edited. Give the base, load_checkpoint(path"),
    (lambda f: circle(f, str(Path(f).resolve() / "base")), V, "has no sound entry 'base': it was edited"),
    (long_chain, V, "is a base below 9 others, and 8 are the most: merge the adapters"),
    (
        lambda f: save_checkpoint(Path(f) / "drop", dropped(f), base=Path(f) / "base"),
        V,
        "has the weights of what the model stands on, and was built otherwise: dropout=0.1 of UNet there, and 0.5 here",
    ),
    (built_otherwise, V, "was built otherwise than the UNet that is given: dropout=0.1 of UNet there, and 0.5 here"),
    (lambda f: load_checkpoint(kept(f) / "own"), V, "holds what was trained upon a base of digest"),
    (lambda f: load_checkpoint(kept(f) / "own", base=Path(f) / "other"), V, "it was trained on since, or is another."),
    (lambda f: load_checkpoint(kept(f) / "base", base=Path(f) / "other"), V, "holds a whole model, which stands on no"),
    (lambda f: kept(f, base=Path(f) / "other"), V, "has other numbers (digest"),
    (lambda f: kept(f, base=Path(f) / "half"), V, "of torch.float64 there, and"),
    (lambda f: save_checkpoint(f, compiled_within()), T, "stem of UNet is a compiled Conv2d, which no config says"),
    (lambda f: train(model(Controlled), X, steps=1), T, "none of the controls, control, was told, or with strength 0"),
    (lambda f: save_checkpoint(f, of(unet()), base=f), V, "UNet stands on no frozen base: leave base out"),
    (changed, V, "it was trained on since, or is another. Give the base as it was, load_checkpoint(path, base=folder)"),
    (gone, FileNotFoundError, "holds what was trained upon a base, which is not in"),
    (lambda f: edited(f, base={"sha256": 1}), V, "has no sound entry 'base': it was edited; save the model again"),
    (lambda f: edited(f, base=None), V, "has no sound entry 'base': it was edited; save the model again"),
    (lambda f: train(model(LoRA), X, steps=1, out=Saving(f, base=kept(f + "k") / "other")), V, "is not what the model"),
)
def test_what_is_no_base_is_refused_in_words(call: Any, error: type[Exception], text: str, tmp_path: Path) -> None:
    check(lambda: call(str(tmp_path / "at")), error, text)
