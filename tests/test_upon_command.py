"""Claim: controls, adapters and captions train and draw from the command line, by checkpoints that name their base."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from processes import called_as, run_processes

from sde_diffusion import Network, SDESampler
from sde_diffusion.cli import main as cli
from sde_diffusion.cli.forms.control import EDGE, coarse, edges
from sde_diffusion.nets import Captioned
from sde_diffusion.nets.control import Controlled
from sde_diffusion.nets.lora import LoRA
from sde_diffusion.training import load_checkpoint, save_checkpoint

NET = ("--width", 8, "--net-args", "multipliers=[1], attention=0")
FEW = ("--steps", 2, "--batch-size", 16, "--val", 0)
WORDS = [f"A {thick} {name}" for thick in ("thin", "thick") for name in ("one", "two", "three")]


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
    """Data, a model of them, and what was trained upon it."""
    folder = tmp_path_factory.mktemp("upon")
    x = (np.random.default_rng(0).normal(size=(60, 1, 4, 4)).cumsum(2) * 3 + 5).astype("float32")
    np.savez(folder / "x.npz", x=x, mask=x > 5)
    np.save(folder / "mask.npy", 255.0 * (x > 5))
    np.save(folder / "some.npy", x[:5])
    train = ("train", "--data", folder / "x.npz", *FEW)
    assert call(*train, *NET, "--out", folder / "base") == 0
    assert call(*train, "--from", folder / "base", "--control", "edges", "--out", folder / "edges") == 0
    assert call(*train, "--from", folder / "base", "--control", folder / "mask.npy", "--out", folder / "masked") == 0
    np.savez(folder / "words.npz", x=x, caption=np.array(WORDS * 10))
    net = ("--width", 8, "--net-args", "multipliers=[1], tokens=8")
    words = ("train", "--data", folder / "words.npz", "--cond", "caption", *FEW, *net)
    assert call(*words, "--out", folder / "told") == 0
    return folder


@pytest.fixture
def here(made, monkeypatch, tmp_path):
    """A folder of its own, in which the others' files are at hand."""
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sampled(*words: object) -> Any:
    assert call("sample", *words, "--nfe", 3, "--out", "s.npy") == 0
    return np.load("s.npy")


# --- controls and adapters


def test_a_control_is_trained_alone_and_draws_by_its_fields_with_its_weight(here, capsys):
    loaded, base = load_checkpoint("masked"), load_checkpoint("base")
    assert isinstance(loaded.model.net, Controlled)
    kept = loaded.model.net.base
    assert all(torch.equal(value, kept[name]) for name, value in base.model.net.state_dict().items())
    np.save("five.npy", np.load("mask.npy")[:5])
    x = sampled("--checkpoint", "masked", "--control", "five.npy", "--control-weight", 0.5, "--seed", 3)
    control = loaded.conditions["control"].apply(torch.from_numpy(np.load("five.npy")), torch.float32)
    sampler = SDESampler(loaded.model.sde, loaded.model, nfe=3)
    wanted = loaded.scaling.undo(sampler.sample(5, seed=3, control=control, strength=0.5))
    assert np.array_equal(x, wanted.numpy())
    plain = sampled("--checkpoint", "base", "--n", 5, "--seed", 3)
    assert not np.array_equal(x, plain)
    off = ("--checkpoint", "masked", "--control", "five.npy", "--control-weight", 0, "--seed", 3)
    assert np.array_equal(sampled(*off), plain)
    capsys.readouterr()
    assert np.array_equal(sampled("--checkpoint", "masked", "--n", 5, "--seed", 3), plain)
    assert "no field is given to the control, --control FILE: samples are those of the base" in capsys.readouterr().out


def test_nothing_is_trained_over_its_own_base(here, capsys):
    shutil.copytree("base", "b")
    before = {file: file.read_bytes() for file in Path("b").iterdir()}
    train = ("train", "--data", "x.npz", *FEW, "--out", "b", "--overwrite")
    for words in (("--from", "b", "--control", "edges"), ("--from", "edges", "--base", "b"), ("--from", "edges")):
        said = error_of(capsys, *train, *words)
        assert "b holds the base that the model stands on, and to save the model there would destroy it: give" in said
        assert {file: file.read_bytes() for file in Path("b").iterdir()} == before


def test_fields_are_made_of_data_as_in_the_training(here):
    loaded = load_checkpoint("edges")
    assert loaded.extra["control"] == {"of": "edges", "channels": 1}
    x = sampled("--checkpoint", "edges", "--control-of", "some.npy")
    control = edges(loaded.scaling.apply(torch.from_numpy(np.load("some.npy")), torch.float32))
    sampler = SDESampler(loaded.model.sde, loaded.model, nfe=3)
    assert np.array_equal(x, loaded.scaling.undo(sampler.sample(5, seed=0, control=control)).numpy())
    np.save("e.npy", control.numpy())
    assert np.array_equal(x, sampled("--checkpoint", "edges", "--control", "e.npy"))


def test_edges_are_where_a_field_changes_and_coarse_is_its_means():
    x = torch.zeros(1, 2, 6, 8)
    x[:, 1, :, 4:] = 3 * EDGE
    found = edges(x)
    assert found.shape == (1, 1, 6, 8)
    assert found[0, 0, 0].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert bool((found == found[:, :, :1]).all())
    wave = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(coarse(wave), wave.unflatten(2, (2, 4)).mean(3).repeat_interleave(4, 2))


@pytest.mark.slow
def test_a_run_of_a_control_goes_on_and_an_array_beside_the_data_is_a_field(here, capsys):
    train = ("train", "--data", "x.npz", "--batch-size", 16, "--from", "base", "--control", "mask", "--out", "m")
    assert call(*train, "--steps", 2) == 0
    said = capsys.readouterr().out
    assert "a control of 1 channels" in said
    assert "are learnt and the others are those of base" in said
    assert "next: sde-diffusion sample --checkpoint m --control FILE.npy --out" in said
    assert call("train", "m/config.toml", "--resume") == 0
    assert Path("m").stat()
    size = sum(file.stat().st_size for file in Path("m").glob("model-*"))
    assert size < sum(file.stat().st_size for file in Path("masked").glob("model-*")) + 1024


@pytest.mark.slow
def test_adapters_are_kept_alone_and_the_base_is_found_or_named(here, capsys):
    shutil.copytree("base", "own")
    assert call("train", "--data", "x.npz", *FEW, "--from", "own", "--lora", 2, "--out", "m") == 0
    assert isinstance(load_checkpoint("m").model.net, LoRA)
    x = sampled("--checkpoint", "m", "--n", 3)
    Path("own").rename("moved")
    ask = ("sample", "--checkpoint", "m", "--n", 3, "--nfe", 3, "--out", "s.npy")
    assert "a base, which is not in m/../own: say where it is, --base DIR" in error_of(capsys, *ask)
    assert np.array_equal(sampled("--checkpoint", "m", "--n", 3, "--base", "moved"), x)
    assert call("train", "--data", "x.npz", *FEW, *NET, "--seed", 1, "--out", "own") == 0
    assert "was trained upon a base of digest" in error_of(capsys, *ask)
    further = ("train", "--data", "x.npz", *FEW, "--from", "m", "--out", "n")
    assert "was trained upon a base of digest" in error_of(capsys, *further)
    assert call(*further, "--base", "moved") == 0
    x = sampled("--checkpoint", "n", "--n", 3)  # which names the base where it is now
    assert np.array_equal(x, sampled("--checkpoint", "n", "--n", 3, "--base", "moved"))
    assert "and that in own has" in error_of(capsys, *ask, "--base", "own")
    assert "holds a whole model, which stands on no other" in error_of(capsys, *ask[:2], "own", *ask[3:], "--base", "m")
    assert call("distill", "--checkpoint", "moved", "--out", "fast", "--steps", 1, "--batch-size", 8) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "words", "fed"),
    [
        ("edges", (), ("--control-of", "some.npy")),
        ("edges", ("--control", "edges"), ("--control-of", "some.npy")),
        ("masked", ("--control", "mask.npy"), ("--control", "mask.npy")),
        ("lora", ("--lora", 2), ("--n", 5)),
    ],
)
def test_what_stands_upon_a_base_is_trained_further_and_the_base_stays(first, words, fed, here, capsys):
    if first == "lora":
        assert call("train", "--data", "x.npz", *FEW, "--from", "base", "--lora", 2, "--out", "lora") == 0
    shutil.copytree(first, "first")
    assert call("train", "--data", "x.npz", *FEW, "--from", "first", *words, "--out", "m") == 0
    said = capsys.readouterr().out.split("are learnt and the others are those of ")[-1].split(",")[0]
    assert Path(said).samefile("base")
    before, after, base = (load_checkpoint(name) for name in (first, "m", "base"))
    assert type(after.model.net) is type(before.model.net)
    own = set(before.model.state_dict()) - {f"net.net.{name}" for name in base.model.net.state_dict()}
    assert all(torch.equal(value, after.model.net.base[name]) for name, value in base.model.net.state_dict().items())
    assert any(not torch.equal(after.model.state_dict()[name], before.model.state_dict()[name]) for name in own)
    assert {name: each.config for name, each in after.conditions.items()} == {
        name: each.config for name, each in before.conditions.items()
    }
    sizes = [sum(file.stat().st_size for file in Path(name).glob("model-*")) for name in (first, "m")]
    assert sizes[0] == sizes[1]
    shutil.rmtree("first")  # the base is the one that it stood on, and not what it began from
    assert sampled("--checkpoint", "m", *fed).shape[1:] == (1, 4, 4)
    again = ("train", "--data", "x.npz", *FEW, "--from", first, *words, "--out", "n", "--save-every", 1)
    assert call(*again) == 0
    assert call(*again, "--resume") == 0
    one, two = (load_checkpoint(name).model.state_dict() for name in ("m", "n"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_fields_in_other_units_than_those_of_the_first_training_are_told_of(here, capsys):
    assert call("train", "--data", "x.npz", *FEW, "--from", "masked", "--control", "mask", "--out", "m") == 0
    assert "warning: --data x.npz: channel 0 of the condition control has mean" in capsys.readouterr().err
    assert load_checkpoint("m").conditions["control"].config == load_checkpoint("masked").conditions["control"].config


@pytest.mark.slow
def test_a_control_of_a_model_of_codes_sees_fields_of_the_data(here):
    codec = ("--latent", "--codec-steps", 1, "--codec-factor", 2, "--codec-width", 8)
    assert call("train", "--data", "x.npz", *FEW, *NET, *codec, "--out", "codes") == 0
    assert call("train", "--data", "x.npz", *FEW, "--from", "codes", "--control", "coarse", "--out", "m") == 0
    net = load_checkpoint("m").model.net
    assert isinstance(net, Controlled)
    assert net.finer == 2
    x = sampled("--checkpoint", "m", "--control-of", "some.npy")
    assert x.shape == (5, 1, 4, 4)
    off = sampled("--checkpoint", "m", "--control-of", "some.npy", "--control-weight", 0)
    assert np.array_equal(off, sampled("--checkpoint", "codes", "--n", 5))


@pytest.mark.slow
def test_controls_that_were_made_in_python_are_told_by_their_names(here, capsys):
    base = load_checkpoint("base")
    net = Controlled(base.model.net, {"lines": 1, "mask": 1})
    model = Network(net, base.model.sde, base.model.kind, shape=base.model.shape)
    save_checkpoint("m", model, scaling=base.scaling, base="base")
    np.save("five.npy", np.ones((5, 1, 4, 4)))
    words = ("sample", "--checkpoint", "m", "--nfe", 3, "--out", "s.npy")
    assert "give --cond lines=FILE.npy --cond mask=FILE.npy" in error_of(capsys, *words, "--control", "five.npy")
    assert call(*words, "--cond", "lines=five.npy") == 0
    assert np.array_equal(np.load("s.npy"), sampled("--checkpoint", "base", "--n", 5))


# --- captions


def test_a_network_learns_the_words_of_captions_and_is_told_them(here, capsys):
    loaded = load_checkpoint("told")
    net = loaded.model.net
    assert isinstance(net, Captioned)
    assert net.encoder.vocabulary.words == ["a", "one", "thick", "thin", "three", "two"]
    assert net.encoder.length == 3
    x = sampled("--checkpoint", "told", "--cond", "caption=a thick two", "--n", 3)
    sampler = SDESampler(loaded.model.sde, loaded.model, nfe=3)
    assert np.array_equal(x, loaded.scaling.undo(sampler.sample(3, seed=0, caption="a thick two")).numpy())
    Path("two.txt").write_text("a thick two\na thin one\n")
    x = sampled("--checkpoint", "told", "--cond", "caption=two.txt")
    wanted = sampler.sample(2, seed=0, caption=["a thick two", "a thin one"])
    np.testing.assert_allclose(x, loaded.scaling.undo(wanted).numpy(), atol=1e-4)
    capsys.readouterr()
    words = ("sample", "--checkpoint", "told", "--cond", "caption=a thick two", "--n", 2, "--nfe", 6)
    assert call(*words, "--guidance", 2, "--out", "s.npy") == 0
    assert "guided by caption" in capsys.readouterr().out
    x = sampled("--checkpoint", "told", "--n", 2)
    assert "no caption is given, --cond caption=..." in capsys.readouterr().out
    np.testing.assert_allclose(sampled("--checkpoint", "told", "--n", 2, "--cond", "caption="), x, atol=1e-4)


@pytest.mark.slow
def test_captions_of_a_table_are_learnt_weighed_and_begun_from(here, capsys):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=["a", "b"])
    frame["caption"] = WORDS * 10
    frame.to_csv("t.csv", index=False)
    words = ("train", "--data", "t.csv", "--cond", "caption", *FEW)
    net = ("--net", "dit", "--net-args", "depth=1, heads=2, tokens=8", "--width", 8)
    assert call(*words, *net, "--out", "m") == 0
    assert "captions of 6 words" in capsys.readouterr().out
    frame.head(4).to_csv("few.csv", index=False)
    assert call("likelihood", "--checkpoint", "m", "--data", "few.csv", "--out", "l.csv") == 0
    assert call(*words, "--from", "m", "--out", "fine") == 0
    frame.replace("A thin one", "A tiny one").to_csv("other.csv", index=False)
    said = error_of(capsys, "train", "--data", "other.csv", "--cond", "caption", *FEW, "--from", "m", "--out", "no")
    assert "holds 'tiny', which the net has not learnt" in said
    assert call("distill", "--checkpoint", "m", "--out", "fast", "--steps", 1, "--batch-size", 8) == 0
    assert sampled("--checkpoint", "fast", "--cond", "caption=a thin one", "--n", 2, "--solver", "jump").shape == (2, 2)


@pytest.mark.slow
def test_other_captions_in_the_same_file_are_refused_where_a_run_goes_on(here, capsys):
    x = np.load("x.npz")["x"]
    np.savez("w.npz", x=x, caption=np.array(WORDS * 10))
    net = ("--width", 8, "--net-args", "multipliers=[1], tokens=8")
    words = ("train", "--data", "w.npz", "--cond", "caption", *FEW, *net, "--out", "m")
    assert call(*words) == 0
    np.savez("w.npz", x=x, caption=np.array(WORDS[::-1] * 10))
    said = error_of(capsys, *words, "--resume")
    assert "data is 60 rows of" in said
    np.savez("w.npz", x=x, caption=np.array(WORDS * 10))
    assert call(*words, "--resume") == 0


@pytest.mark.slow
def test_two_processes_draw_by_fields_and_captions_as_one_does(here):
    np.save("seven.npy", np.load("mask.npy")[:7])
    Path("seven.txt").write_text("\n".join([*WORDS, WORDS[0]]))
    ask = ("--nfe", 6, "--batch-size", 2, "--out")
    drawn = {
        "masked": ("--control", "seven.npy", "--control-weight", 0.5),
        "told": ("--cond", "caption=seven.txt", "--guidance", 2),
    }
    commands = []
    for name, told in drawn.items():
        words = ("sample", "--checkpoint", name, *told, *ask)
        for ending in ("npy", "npz", "png"):
            assert call(*words, f"{name}.{ending}") == 0
        assert np.array_equal(np.load(f"{name}.npy"), np.load(f"{name}.npz")["x"])
        commands += [(*words, f"{name}-shards"), (*words, f"{name}-two.npy"), (*words, f"{name}-two.npz")]
    assert run_processes(2, lambda rank: called_as(rank, commands), here / "meet") == [[0, 0, 2] * 2] * 2
    for name in drawn:
        found = np.concatenate([np.load(file) for file in sorted(Path(f"{name}-shards").glob("*.npy"))])
        assert np.array_equal(found, np.load(f"{name}.npy"))
        assert np.array_equal(np.load(f"{name}-two.npy"), np.load(f"{name}.npy"))


# --- what is refused

TRAINED = [
    (("--control", "edges"), "--control stands upon a model that is trained already: give its folder, --from BASE"),
    (("--lora", 2), "--lora stands upon a model that is trained already"),
    (("--from", "base", "--control", "edges", "--lora", 2), "--control and --lora are two ways to go on from a model"),
    (("--from", "base", "--control", "edges", "--previews", 2), "--previews of a control want fields"),
    (("--from", "base", "--control", "big.npy"), "has images of shape (1, 8, 8), wanted (channels, 4, 4), as long as"),
    (("--from", "base", "--control", "few.npy"), "condition 'control' has 5 rows, and the data have 60"),
    (("--from", "base", "--control", "no.npy"), "there is no file no.npy, for the condition control"),
    (("--from", "base", "--control", "edgy"), "x.npz has no array 'edgy': beside the data it holds"),
    (("--from", "edges", "--control", "coarse"), "--from edges holds a control that is told edges, not coarse: leave"),
    (("--from", "edges", "--lora", 2), "--from edges holds a control: train that further without --lora, or give its"),
    (("--from", "edges", "--previews", 2), "--from edges holds a control, and --previews want fields"),
    (("--from", "edges", "--base", "told"), "was trained upon a base of digest"),
    (("--from", "masked"), "--from masked holds a control whose fields came with its data: name them, --control FILE"),
    (
        ("--from", "masked", "--control", "two.npy"),
        "--control has fields of shape (2, 4, 4), and the control in --fr",
    ),
    (("--base", "base"), "--base is that of a control or of adapters in --from, which stand on one: leave it out"),
    (("--from", "no", "--control", "edges"), "no model.json in no"),
    (("--from", "base", "--control", "coarse", "--data", "odd.npy"), "has samples of shape (1, 6, 6), but the model"),
    (("--data", "v.npz", "--cond", "caption"), "MLP takes no captions, and the data come with some: unet and dit do"),
    (("--data", "dumb.npz", "--cond", "caption", *NET), "the condition caption holds no words"),
    (("--data", "number.npz", "--cond", "caption", *NET), "'caption' holds float64 of shape (60,), wanted captions"),
]


@pytest.mark.parametrize(("words", "message"), TRAINED, ids=[" ".join(map(str, words)) for words, _ in TRAINED])
def test_what_cannot_be_trained_is_refused_before_any_work_and_leaves_nothing(words, message, here, capsys):
    x = np.load("x.npz")["x"]
    for name, shape in (("big", (60, 1, 8, 8)), ("two", (60, 2, 4, 4)), ("few", (5, 1, 4, 4)), ("odd", (60, 1, 6, 6))):
        np.save(f"{name}.npy", np.random.default_rng(0).normal(size=shape))
    np.savez("v.npz", x=x[:, 0, 0], caption=np.array(WORDS * 10))
    np.savez("dumb.npz", x=x, caption=np.array(["..."] * 60))
    np.savez("number.npz", x=x, caption=np.ones(60))
    data = () if "--data" in words else ("--data", "x.npz")
    assert message in error_of(capsys, "train", "--steps", 1, "--batch-size", 8, *data, *words, "--out", "no-model")
    assert not Path("no-model").exists()


DRAWN = [
    (
        ("base", "--control", "some.npy"),
        "--control is for a model with a control, trained with --control: leave it",
    ),
    (("base", "--control-weight", 0.5), "--control-weight is the strength of a control, and the model has none"),
    (("edges", "--control", "big.npy"), "--control big.npy has shape (5, 1, 8, 8), wanted (rows, 1, 4, 4)"),
    (("edges", "--control", "bad.npy"), "--control bad.npy holds NaN or infinity"),
    (("edges", "--control", "some.npy", "--n", 3), "--control has 5 rows, for 3 samples"),
    (("edges", "--control", "some.npy", "--control-weight", "nan"), "strength must be finite, got nan"),
    (
        ("masked", "--control-of", "some.npy"),
        "the fields of this control came with its data: give them, --control",
    ),
    (("told", "--cond", "caption=a thik two"), "holds 'thik', which the net has not learnt. Nearest to it is 'thick'"),
    (
        ("told", "--cond", "caption=a a a a"),
        "--cond caption: caption 0 has 4 words, 'a a a a', and the model reads 3",
    ),
    (
        ("told", "--cond", "caption"),
        "--cond 'caption': wanted NAME=VALUES, caption='a text', or NAME=FILE, caption=a",
    ),
    (("masked", "--control-weight", 2), "--control-weight is the strength of a field, and none is given: give it"),
    (("edges", "--control", "no.npy"), "there is no file no.npy, for --control"),
    (("told", "--cond", "caption=no.txt"), "there is no file no.txt, for the condition caption"),
    (("base", "--cond", "caption=a thick two"), "--cond caption: the model takes no caption"),
    (("base", "--cond", "control=some.npy"), "--cond control: the model takes no control"),
    (("edges", "--cond", "context=1"), "--cond context: the model takes no context"),
]


@pytest.mark.parametrize(("words", "message"), DRAWN, ids=[" ".join(map(str, words)) for words, _ in DRAWN])
def test_what_cannot_be_drawn_is_refused_before_any_work(words, message, here, capsys):
    np.save("big.npy", np.zeros((5, 1, 8, 8)))
    np.save("bad.npy", np.full((5, 1, 4, 4), np.nan))
    assert message in error_of(capsys, "sample", "--checkpoint", *words, "--nfe", 3, "--out", "no.npy")
    assert not Path("no.npy").exists()


def test_other_commands_refuse_a_control_with_the_way(here, capsys):
    for words, message in (
        (("tune", "--nfe", 3), "tune its base, whose tables serve it without one; in Python, tune(sde, model, nfe"),
        (("distill", "--out", "no"), "sample --nfe 8, and distil its base"),
        (
            ("likelihood", "--data", "x.npz", "--out", "no.json"),
            "a density given a field, log p(x | control): give",
        ),
    ):
        assert message in error_of(capsys, *words, "--checkpoint", "edges")
