"""Claim: a checkpoint that is damaged, edited or made to harm is refused in one sentence, fast and in little memory.

Descriptions are spoilt in two ways: as they are, where the digest must notice, and sealed again, or in the first
version of the format, which had no digest, where every entry must be held against what it may be.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time

import numpy as np
import pytest
import torch
from checkpoints import as_version, edit, model, scaled, seal, standard, swap, tensors_of
from torch import nn

from sde_diffusion import DiscreteVPSDE, GaussianSDE, Network, SDESampler, clocks, predict
from sde_diffusion._checks import SolverError
from sde_diffusion.nets import MLP, DiT, UNet
from sde_diffusion.sde import schedules
from sde_diffusion.training import DamagedWarning, load_checkpoint, save_checkpoint
from sde_diffusion.training.checkpoints import registry
from sde_diffusion.training.checkpoints.manifests import MOST_MANIFEST


@pytest.fixture
def saved(tmp_path):
    save_checkpoint(tmp_path / "model", model(), scaling=scaled(torch.tensor([0.5, 7.0]), 2.0), extra={"steps": 3})
    return tmp_path / "model"


def first_version(folder, **changes):
    as_version(1, folder, **changes)


# --- damage


@pytest.mark.parametrize("stride", [41, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_bit_of_a_description_is_refused(saved, stride):
    file = saved / "model.json"
    raw = file.read_bytes()
    accepted, told = [], set()
    for i in range(0, 8 * len(raw), stride):  # 41: each of the eight bits of a byte in turn
        file.write_bytes(flipped(raw, i))
        try:
            load_checkpoint(saved)
            accepted.append(i)
        except ValueError as error:
            told.add(str(error).split("model.json ")[1].split()[0])
    assert not accepted
    assert told <= {"is", "does", "has"}  # is not JSON, is not as it was written, does not describe, has no sound entry
    file.write_bytes(raw)
    load_checkpoint(saved)


def flipped(raw, i):
    spoilt = bytearray(raw)
    spoilt[i // 8] ^= 1 << i % 8
    return spoilt


def test_flipped_bits_of_the_tensors_are_refused(saved):
    file = tensors_of(saved)
    raw = file.read_bytes()
    for i in [*range(0, 64, 3), *np.random.default_rng(0).integers(0, 8 * len(raw), 60).tolist()]:
        file.write_bytes(flipped(raw, i))
        with pytest.raises(ValueError, match=r"is not the file that model.json describes"):
            load_checkpoint(saved)


def test_what_was_edited_or_laid_out_anew_is_refused_until_it_is_saved_again(saved):
    file = saved / "model.json"
    about = json.loads(file.read_text())
    for text in (json.dumps(about), file.read_text() + "\n", file.read_text().replace('"steps": 3', '"steps": 4')):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"is not as it was written: damaged, or edited, which it is not made for"):
            load_checkpoint(saved)
    file.write_text(seal({k: v for k, v in about.items() if k != "digest"}))
    load_checkpoint(saved)


def test_a_checkpoint_of_the_first_version_loads(saved):
    as_version(1, saved)
    loaded = load_checkpoint(saved)
    assert (float(standard(loaded).mean), float(standard(loaded).std)) == (0.5, 2.0)
    assert (loaded.classes, loaded.conditions, loaded.extra) == (0, {}, {"steps": 3})
    assert loaded.noise_levels == (0.005, 20.0)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.scaling.undo(z), (2 * z.double() + 0.5).float())


def test_a_checkpoint_of_the_second_version_loads_and_a_save_puts_one_of_this_version_in_its_place(saved):
    wanted = load_checkpoint(saved)
    as_version(2, saved)
    loaded = load_checkpoint(saved)
    assert standard(loaded).config == standard(wanted).config
    for a, b in zip(loaded.model.parameters(), wanted.model.parameters(), strict=True):
        assert torch.equal(a, b)
    raw = (saved / "model.json").read_bytes()
    for i in range(0, 8 * len(raw), 97):
        (saved / "model.json").write_bytes(flipped(raw, i))
        with pytest.raises(ValueError, match=r"model.json "):
            load_checkpoint(saved)
    (saved / "model.json").write_bytes(raw)
    save_checkpoint(saved, model(), extra={"steps": 4}, keep=1)
    assert sorted(p.name for p in saved.iterdir()) == [
        tensors_of(saved).name,
        "model.0.json",
        "model.json",
        "model.safetensors",
    ]
    (saved / "model.json").write_text("")
    with pytest.warns(DamagedWarning, match=r"The one before it is used: .*model.0.json"):
        assert load_checkpoint(saved).extra == {"steps": 3}
    save_checkpoint(saved, model())
    assert sorted(p.name for p in saved.iterdir()) == [tensors_of(saved).name, "model.json"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used_as_long_as_it_is_kept(saved):
    save_checkpoint(saved, model(), extra={"steps": 4}, keep=1)
    save_checkpoint(saved, Network(MLP(2, hidden=8), schedules.VPSDE(), shape=(2,)), extra={"steps": 5}, keep=1)
    tensors_of(saved).write_bytes(tensors_of(saved).read_bytes()[:-1])
    with pytest.warns(DamagedWarning, match=r"is not the file that model.json describes.*before it is used: .*model.2"):
        assert load_checkpoint(saved).extra == {"steps": 4}
    (saved / "model.2.json").unlink()
    with pytest.raises(ValueError, match=r"is not the file that model.json describes"):
        load_checkpoint(saved)


# --- a standardisation that is none

NO_SCALING = [
    ({"std": 0}, "wanted a finite mean and a positive std, got mean=0.5 and std=0.0"),
    ({"std": -1}, "wanted a finite mean and a positive std"),
    ({"std": [1.0, 0.0], "mean": [0.0, 1.0]}, "got mean=1.0 and std=0.0 in entry 1"),
    ({"mean": [1.0, 2.0, 3.0], "std": 1.0}, r"have shape \(3,\), but samples \(2,\): wanted one number, or one"),
    ({"mean": [[1.0], [2.0]]}, r"have shape \(2, 1\)"),
    ({"mean": [1.0, "x"]}, "mean must be a number or a tensor of real numbers"),
    ({"mean": []}, r"mean has shape \(0,\): wanted one number, or one per entry"),
    ({"mean": [[1.0, 2.0]]}, r"mean has shape \(1, 2\): wanted"),
    ({"mean": 10**400}, "mean must be a number"),
]


@pytest.mark.parametrize(("changes", "message"), NO_SCALING)
def test_a_standardisation_that_is_none_is_refused_on_loading_too(saved, changes, message):
    first_version(saved, **changes)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(saved)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("entry", ["mean", "std"])
def test_numbers_that_json_does_not_have_are_refused(saved, entry, value):
    first_version(saved, **{entry: "HERE"})
    file = saved / "model.json"
    file.write_text(file.read_text().replace('"HERE"', value))
    with pytest.raises(ValueError, match=f"model.json is not JSON .{value} is no number of JSON"):
        load_checkpoint(saved)


# --- made to harm


@pytest.mark.parametrize("depth", [100, 900, 1000, 5000, 10**6])
@pytest.mark.parametrize("key", ["extra", "version", "mean", "net"])
def test_deep_json_is_refused_in_words_or_read(saved, key, depth):
    first_version(saved, **{key: "HERE"})
    file = saved / "model.json"
    deep = "[" * depth + "]" * depth
    file.write_text(file.read_text().replace('"HERE"', deep if key in ("version", "mean") else f'{{"a": {deep}}}'))
    try:
        load_checkpoint(saved)
    except ValueError:
        return
    assert key == "extra"


def test_a_description_that_is_too_long_is_neither_read_nor_written(saved, tmp_path):
    with open(saved / "model.json", "r+b") as file:
        file.truncate(MOST_MANIFEST + 1)
    with pytest.raises(ValueError, match=r"has 16,777,217 bytes, and a description has 16,777,216 at most"):
        load_checkpoint(saved)
    with pytest.raises(ValueError, match=r"takes 17,.* bytes of 16,777,216: keep less in extra="):
        save_checkpoint(tmp_path / "new", model(), extra={"x": "y" * 17_000_000})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("again", [edit, first_version], ids=["sealed", "first version"])
@pytest.mark.parametrize(
    "fields",
    [
        {"hidden": 20_000},  # 5 GB if it were built
        {"hidden": 10**6},
        {"hidden": 10**18},
        {"hidden": 10**30},
        {"layers": 10**6},
        {"layers": 10**18},
        {"features": 10**9},
        {"dim": 10**12},
        {"classes": 10**9},
    ],
    ids=repr,
)
def test_a_net_that_the_tensors_cannot_fill_is_never_allocated(saved, fields, again, monkeypatch):
    places = []

    class Spy(MLP):
        def __init__(self, *args, **options):
            places.append(torch.get_default_device().type)
            super().__init__(*args, **options)

    monkeypatch.setitem(registry._NETS, "MLP", Spy)
    again(saved, net={"name": "MLP", "fields": {"dim": 2, "hidden": 16, "layers": 1, **fields}})
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"another architecture|cannot be built from \{.*\}: "):
        load_checkpoint(saved)
    assert time.perf_counter() - start < 5
    assert places == ["meta"]


def test_a_file_of_tensors_that_is_mostly_a_hole_is_not_read(saved):
    with open(tensors_of(saved), "r+b") as file:
        file.truncate(2**40)  # a terabyte that no disk holds
    with pytest.raises(ValueError, match=r"is not the file that model.json describes"):
        load_checkpoint(saved)


def test_tensors_of_another_dtype_than_the_net_can_hold_are_refused(saved):
    from safetensors.torch import load, save

    tensors = load(tensors_of(saved).read_bytes())
    for dtype in (torch.int64, torch.complex64, torch.bool):
        swap(saved, save({**tensors, "enter.weight": tensors["enter.weight"].to(dtype)}))
        with pytest.raises(
            ValueError, match=r"tensor 'enter.weight' holds torch\..*, the net torch.float32: it is from"
        ):
            load_checkpoint(saved)
    # a dtype of the format that torch has no name for
    swap(saved, save({"enter.weight": torch.zeros(2, 2)}).replace(b'"F32"', b'"F99"'))
    with pytest.raises(ValueError, match=r"is not the file that model.json describes"):
        load_checkpoint(saved)


def test_tensors_that_saving_would_refuse_are_refused_on_loading_too(saved):
    from safetensors.torch import load, save

    tensors = load(tensors_of(saved).read_bytes())
    tensors["enter.weight"][0, 0] = float("nan")
    swap(saved, save(tensors))
    with pytest.raises(ValueError, match=r"tensor 'enter.weight' of the checkpoint holds 1 non-finite values of"):
        load_checkpoint(saved)


NASTY: list[object] = [
    None,
    True,
    -1,
    0,
    7,
    10**6,
    10**18,
    10**30,
    1e308,
    1e-308,
    -0.5,
    "x",
    "\ud800",
    [],
    [1],
    [[1]],
    {},
    {"a": 1},
]
NASTY += [{"name": "EDM", "fields": None}, {"name": ["x"], "fields": []}, {"name": "time", "fields": {"at": 1}}]


def places(thing, path=()):
    """The path to everything in a description; of a list to its first two entries."""
    inner = thing.items() if isinstance(thing, dict) else list(enumerate(thing))[:2] if isinstance(thing, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.mark.parametrize(
    ("which", "stride"),
    [("an index-told chain", 5), ("images", 7)]
    + [pytest.param(w, 1, marks=pytest.mark.slow) for w in ("an index-told chain", "images", "a transformer")],
)
@pytest.mark.filterwarnings("ignore")  # of processes that one step does not solve
def test_whatever_an_entry_is_replaced_by_the_answer_is_a_model_or_a_sentence(which, stride, tmp_path):
    if which == "images":
        net = UNet(1, width=8, classes=3)
        first = Network(net, schedules.VPSDE(), predict.v, clock=clocks.Scaled(1.0), shape=(1, 4, 4)).eval()
    elif which == "a transformer":
        transformer = DiT((1, 4, 4), width=8, depth=1, heads=2, context=3, image=1, answers=2)
        first = Network(transformer, schedules.VPSDE(), predict.LearnedVariance(predict.v), shape=(1, 4, 4)).eval()
    else:
        first = model(DiscreteVPSDE.linear(30), predict.noise, clocks.Scaled(1 / 30))
    assert first.shape is not None
    save_checkpoint(tmp_path, first, scaling=scaled(torch.zeros(first.shape[0])), extra={"a": 1})
    about = json.loads((tmp_path / "model.json").read_text())
    about.pop("digest")
    loads = longest = 0
    for i, path in enumerate(places(about)):
        for value in NASTY[i % stride :: stride]:
            spoilt = copy.deepcopy(about)
            inside = spoilt
            for key in path[:-1]:
                inside = inside[key]
            inside[path[-1]] = value
            (tmp_path / "model.json").write_text(seal(spoilt))
            try:
                loaded = load_checkpoint(tmp_path)
            except ValueError as error:
                longest = max(longest, len(str(error)))
                continue
            loads += 1
            if loaded.model.shape == first.shape:
                try:
                    x = SDESampler(loaded.model.sde, loaded.model, steps=1).sample(1, seed=0)
                    assert loaded.scaling.undo(x).shape == (1, *first.shape)
                except (ValueError, TypeError, SolverError):  # a process too extreme to be solved
                    pass
    assert loads > 10
    assert longest < 1500


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": True}, "has format version True, and this is version 5"),
        ({"scaling": True}, "has no sound entry 'scaling'"),
        ({"conditions": []}, "has no sound entry 'conditions'"),
        ({"conditions": {"context": None}}, "wanted the name and the fields of a scaling, got None"),
        ({"scaling": {"name": "MLP", "fields": {"dim": 2}}}, "the scaling 'MLP', which is not known here"),
        ({"scaling": {"name": "Standardise", "fields": {"mean": 0.0}}}, "Standardise cannot be built from"),
        ({"net": {"name": "MLP", "fields": None}}, "has no sound entry 'net'"),
        ({"net": {"name": "MLP", "fields": {"classes": -1}}}, "has no sound entry 'net'"),
        ({"shape": [2.5]}, "has no sound entry 'shape', of 1,073,741,824 values at most"),
        ({"shape": [10**6, 10**6]}, "has no sound entry 'shape'"),
        ({"shape": [1] * 65}, "has no sound entry 'shape'"),
        ({"clock": {"name": "Scaled", "fields": None}}, "names Scaled as its clock, which it is not"),
        ({"clock": {"name": "Scaled", "fields": {"factor": "x"}}}, "Scaled cannot be built from {'factor': 'x'}"),
        ({"sde": {"name": "VPSDE", "fields": {"beta_max": 1e18}}}, "model cannot be put together: "),
    ],
)
def test_an_entry_that_cannot_be_meant_is_named(saved, changes, message):
    edit(saved, **changes)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(saved)


# --- what saving would change without a word


class Loud(Network):
    def predict(self, x, at, **cond):
        return super().predict(2 * x, at, **cond)


class Plain(GaussianSDE):
    """Neither a dataclass nor with a `config`."""

    t_min, t_max = 1e-3, 0.9

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t


class Extra(nn.Module):
    def __init__(self):
        super().__init__()
        self.config: dict[str, int] = {}

    def get_extra_state(self):
        return 3

    def forward(self, x, t):
        return x


def test_classes_that_would_come_back_as_another_are_refused(tmp_path):
    own = type("MLP", (MLP,), {"forward": lambda self, x, t: x})
    cases = [
        (Loud(MLP(2, hidden=8), schedules.VPSDE()), "a checkpoint holds a Network or a FlowMap; this is a Loud"),
        (Network(own(2, hidden=8), schedules.VPSDE()), "the net MLP has the name of another class of this library"),
        (Network(MLP(2, hidden=8), Plain()), "the SDE Plain cannot be written down by name"),
        (Network(Extra(), schedules.VPSDE()), "the net holds _extra_state, a int: a checkpoint keeps tensors alone"),
    ]
    for spoilt, message in cases:
        with pytest.raises(TypeError, match=message):
            save_checkpoint(tmp_path / "model", spoilt)
    assert not (tmp_path / "model").exists()


def test_known_takes_classes(saved):
    with pytest.raises(TypeError, match=r"(?s)known= takes classes, got MLP\(.*: known=\[Mine\], without making one"):
        load_checkpoint(saved, known=[MLP(2, hidden=8)])  # type: ignore[list-item]  # a net and not its class


@pytest.mark.parametrize("digest", [None, 3, "", "a" * 64, "\ud800" * 64, ["x"]])
def test_a_digest_that_is_none_is_refused(saved, digest):
    file = saved / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "digest": digest}, indent=2))
    with pytest.raises(ValueError, match="is not as it was written"):
        load_checkpoint(saved)


def test_the_digest_is_that_of_the_text_with_an_empty_digest(saved):
    text = (saved / "model.json").read_text()
    digest = json.loads(text)["digest"]
    assert hashlib.sha256(text.replace(digest, "").encode()).hexdigest() == digest
