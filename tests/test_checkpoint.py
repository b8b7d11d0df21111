"""Claim: a checkpoint gives back the same model, bit for bit, or says what is wrong with it and what to do."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from checkpoints import awake, edit, model, scaled, seal, standard, swap, tensors_of
from torch import nn

from sde_diffusion import DiscreteVPSDE, Network, SDESampler, clocks, predict
from sde_diffusion.data import Quantile, Standardise
from sde_diffusion.nets import MLP, UNet
from sde_diffusion.sde import GaussianSDE, schedules
from sde_diffusion.training import load_checkpoint, save_checkpoint

SDES = [
    schedules.VPSDE(0.2, 15.0, t_min=2e-3),
    schedules.SubVPSDE(),
    schedules.VESDE(0.02, 30.0),
    schedules.BrownianSDE(500.0),
    schedules.CosineSDE(t_max=0.99),
    schedules.EDMSDE(0.005, 20.0),
    schedules.FlowSDE(),
    DiscreteVPSDE.linear(50),
]
KINDS = [predict.noise, predict.data, predict.score, predict.velocity, predict.v, predict.EDM(0.7)]
CLOCKS = [clocks.time, clocks.sigma, clocks.log_snr, clocks.edm, clocks.Scaled(999.0), clocks.Index()]


@pytest.fixture
def saved(tmp_path):
    """A sound checkpoint, to be spoilt."""
    save_checkpoint(tmp_path / "model", model(), scaling=scaled(0.5, 2.0), extra={"steps": 3})
    return tmp_path / "model"


def test_samples_of_a_loaded_model_are_those_of_the_saved_one_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    net = awake(UNet(1, width=8, classes=3))
    first = Network(net, schedules.EDMSDE(0.01, 20.0), predict.EDM(0.7), shape=(1, 4, 4)).eval()
    save_checkpoint(tmp_path / "deep" / "model", first)
    second = load_checkpoint(tmp_path / "deep" / "model").model
    label = torch.tensor([0, 1, 2, 3])
    a, b = (SDESampler(m.sde, m, steps=5).sample(4, seed=1, label=label) for m in (first, second))
    assert torch.equal(a, b)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
def test_every_process_comes_back_equal(sde, tmp_path):
    save_checkpoint(tmp_path, model(sde, predict.v))
    loaded = load_checkpoint(tmp_path)
    assert loaded.model.sde == sde
    assert type(loaded.model.sde) is type(sde)
    low, high = sde.levels([sde.t_min, sde.t_max])
    assert loaded.noise_levels == (low.sigma / low.alpha, high.sigma / high.alpha if high.alpha else float("inf"))


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_every_parametrisation_comes_back_with_the_clock_of_the_net(kind, tmp_path):
    save_checkpoint(tmp_path, model(kind=kind))
    loaded = load_checkpoint(tmp_path).model
    assert loaded.kind == kind
    assert loaded.clock is clocks.edm
    assert json.loads((tmp_path / "model.json").read_text())["clock"] == {"name": "edm", "fields": None}


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_a_checkpoint_without_a_clock_is_told_that_of_its_kind_as_when_it_was_trained(kind, sde, tmp_path):
    save_checkpoint(tmp_path, model(sde, kind))
    about = json.loads((tmp_path / "model.json").read_text())
    del about["digest"]
    (tmp_path / "model.json").write_text(seal(about | {"clock": None}))
    loaded = load_checkpoint(tmp_path).model
    for at in sde.levels([sde.t_min, sde.t_max]):
        edm = min(math.log(at.sigma / at.alpha) if at.alpha else math.inf, 20.0) / 4
        assert loaded.clock(at) == pytest.approx(edm if isinstance(kind, predict.EDM) else at.t, rel=1e-9)
    save_checkpoint(tmp_path / "again", loaded)
    again = load_checkpoint(tmp_path / "again").model
    assert again.clock(at) == loaded.clock(at)


def test_a_checkpoint_of_a_shipped_net_that_was_told_an_index_still_loads(tmp_path):
    first = model(DiscreteVPSDE.linear(50), predict.noise)
    first.tell(clocks.time)
    save_checkpoint(tmp_path, first)
    assert load_checkpoint(tmp_path).model.clock is clocks.time


@pytest.mark.parametrize("clock", CLOCKS, ids=lambda c: getattr(c, "__name__", repr(c)))
def test_every_clock_comes_back(clock, tmp_path):
    first = Network(Foreign(2, hidden=16, layers=1), schedules.EDMSDE(0.005, 20.0), clock=clock)
    save_checkpoint(tmp_path, first)
    assert load_checkpoint(tmp_path, known=[Foreign]).model.clock == clock


class Foreign(MLP):
    """A net that declares nothing."""

    clock = None  # type: ignore[assignment]


def test_the_standardisation_the_classes_and_the_extras_come_back(tmp_path):
    save_checkpoint(tmp_path, model(classes=4), scaling=scaled(0.25, 1 / 3), extra={"note": ["é", 1.5]})
    loaded = load_checkpoint(tmp_path)
    assert (float(standard(loaded).mean), float(standard(loaded).std)) == (0.25, 1 / 3)
    assert (loaded.classes, loaded.extra) == (4, {"note": ["é", 1.5]})
    assert not loaded.model.training
    assert loaded.model.shape == (2,)


def test_double_precision_comes_back(tmp_path):
    first = model().double()
    save_checkpoint(tmp_path, first)
    second = load_checkpoint(tmp_path).model
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert b.dtype == torch.float64
        assert torch.equal(a, b)


def test_a_checkpoint_is_replaced_and_leaves_no_drafts(saved):
    save_checkpoint(saved, model(), scaling=scaled(std=3.0))
    assert standard(load_checkpoint(saved)).std == 3.0
    assert sorted(p.name for p in saved.iterdir()) == [tensors_of(saved).name, "model.json"]


def test_a_save_that_fails_half_way_leaves_the_old_checkpoint(saved, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(saved, model(), scaling=scaled(std=3.0))
    assert standard(load_checkpoint(saved)).std == 2.0
    assert sorted(p.name for p in saved.iterdir()) == [tensors_of(saved).name, "model.json"]


def test_a_save_interrupted_between_its_files_leaves_the_old_checkpoint(saved, monkeypatch):
    real, calls = os.replace, []

    def once(*names):
        calls.append(names)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*names)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, Network(awake(MLP(2, hidden=8)), schedules.VPSDE()))
    assert load_checkpoint(saved).extra == {"steps": 3}
    assert sorted(p.name for p in saved.iterdir()) == [tensors_of(saved).name, "model.json"]


@pytest.mark.parametrize(
    ("mean", "std", "shape"),
    [
        (0.5, 2.0, ()),
        (torch.tensor(0.5), 2, ()),
        (torch.tensor([0.5, 3.0, -1.0], dtype=torch.float32), torch.tensor(2.0, requires_grad=True), (3, 1, 1)),
        (np.array([0.5, 3.0, -1.0]), [2.0, 1.0, 1e-300], (3, 1, 1)),
        (torch.tensor([0.5, 3.0, -1.0]).reshape(3, 1, 1), torch.ones(3, 1, 1, dtype=torch.float64) / 3, (3, 1, 1)),
    ],
    ids=["floats", "0-d", "per channel", "arrays", "broadcast"],
)
def test_a_mean_and_a_std_may_be_numbers_or_tensors_and_come_back_exactly(mean, std, shape, tmp_path):
    net = UNet(3, width=8)
    save_checkpoint(tmp_path, Network(net, schedules.VPSDE(), predict.v, shape=(3, 4, 4)), scaling=scaled(mean, std))
    loaded = load_checkpoint(tmp_path)
    assert standard(loaded).mean.shape == standard(loaded).std.shape == shape
    for given, back in ((mean, standard(loaded).mean), (std, standard(loaded).std)):
        assert back.dtype == torch.float64
        wanted = torch.as_tensor(given, dtype=torch.float64).detach().flatten().expand(back.numel())
        assert torch.equal(back.flatten(), wanted)


@pytest.mark.parametrize("shape", [(3,), (4,), (1, 2), (2, 2), (0,)])
def test_a_mean_that_is_not_one_per_column_is_refused(shape, tmp_path):
    with pytest.raises(ValueError, match=r"shape \(.*\).*: wanted one number, or one per entry of the first axis"):
        save_checkpoint(tmp_path / "model", model(), scaling=scaled(torch.zeros(shape)))
    with pytest.raises(TypeError, match=r"the scaling of the data must be one such as Standardise.of\(x\), got \(0, 1"):
        save_checkpoint(tmp_path / "model", model(), scaling=(0, 1))  # type: ignore[arg-type]  # a wrong type on purpose
    with pytest.raises(TypeError, match=r"the scaling of 'context' must be one such as Standardise.of\(x\), got 1"):
        save_checkpoint(tmp_path / "model", model(), conditions={"context": 1})  # type: ignore[dict-item]  # likewise
    assert not (tmp_path / "model").exists()


def test_any_scaling_comes_back_and_so_do_those_of_the_conditions(tmp_path):
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    scaling, context = Quantile.of(x), Standardise.of(5 * x + 1)
    save_checkpoint(tmp_path, model(), scaling=scaling, conditions={"context": context, "other": scaling})
    loaded = load_checkpoint(tmp_path)
    assert type(loaded.scaling) is Quantile
    assert torch.equal(loaded.scaling.apply(x), scaling.apply(x))
    assert list(loaded.conditions) == ["context", "other"]
    assert torch.equal(loaded.conditions["context"].apply(x), context.apply(x))
    assert torch.equal(loaded.conditions["other"].log_jacobian(x), scaling.log_jacobian(x))


def test_without_a_scaling_data_are_as_the_model_sees_them(tmp_path):
    save_checkpoint(tmp_path, model())
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    scaling = load_checkpoint(tmp_path).scaling
    assert torch.equal(scaling.apply(x), x)
    assert torch.equal(scaling.undo(x), x)
    assert not scaling.log_jacobian(x).any()


def test_loading_leaves_the_global_random_state_alone(saved):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    load_checkpoint(saved)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("setting", ["meta", "float64"])
def test_neither_the_default_device_nor_the_default_dtype_changes_a_checkpoint(setting, tmp_path):
    first = model()
    try:
        torch.set_default_device("meta" if setting == "meta" else None)
        torch.set_default_dtype(torch.float64 if setting == "float64" else torch.float32)
        save_checkpoint(tmp_path, first, scaling=scaled(0.5))
        loaded = load_checkpoint(tmp_path)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert standard(loaded).mean.device.type == "cpu"
    here, back = first.state_dict(), loaded.model.state_dict()
    for name, t in here.items():
        assert (back[name].dtype, back[name].device) == (t.dtype, t.device)
        assert torch.equal(back[name], t)


# --- classes of one's own


@dataclass(frozen=True)
class Ornstein(GaussianSDE):
    speed: float = 1.0
    t_min: float = 1e-3
    t_max: float = 4.0

    def alpha(self, t):
        return torch.exp(-self.speed * t)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-2 * self.speed * t))


class Line(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer, self.config = nn.Linear(dim, dim), {"dim": dim}

    def forward(self, x, t):
        return self.layer(x)


def test_a_net_and_a_process_of_ones_own_are_built_only_when_named(tmp_path):
    line = Line(2)
    own = Network(line, Ornstein(0.5), predict.noise, shape=(2,))
    save_checkpoint(tmp_path, own)
    with pytest.raises(
        ValueError,
        match=r"names the SDE 'Ornstein', which is not known here. Known are BrownianSDE, .*known=\[O.*--sde",
    ):
        load_checkpoint(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"names the net 'Line', which is not known here. Known are .*MLP.*it was defined in test_ch",
    ):
        load_checkpoint(tmp_path, known=[Ornstein])
    loaded = load_checkpoint(tmp_path, known=[Ornstein, Line]).model
    assert loaded.sde == Ornstein(0.5)
    assert isinstance(loaded.net, Line)
    assert torch.equal(loaded.net.layer.weight, line.layer.weight)


class Mixed(nn.Module):
    """Tensors in three dtypes, and a weight that is used twice."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim).half()
        self.again = self.first
        self.register_buffer("table", torch.arange(3.0, dtype=torch.float64) / 3)
        self.config = {"dim": dim}

    def forward(self, x, t):
        return self.again(self.first(x))


def test_every_tensor_comes_back_in_its_own_dtype_and_what_was_shared_is_shared(tmp_path):
    first = Mixed(2)
    save_checkpoint(tmp_path, Network(first, schedules.VPSDE()))
    second = load_checkpoint(tmp_path, known=[Mixed]).model.net
    assert isinstance(second, Mixed)
    assert second.again.weight is second.first.weight
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


class Earthly(Line):
    """A net that cannot be built on the meta device, and draws while it is built."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.scale = float(torch.rand(1) + 1)


def test_a_net_of_ones_own_need_not_build_on_the_meta_device(tmp_path):
    save_checkpoint(tmp_path, Network(Earthly(2), schedules.VPSDE()))
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    assert isinstance(load_checkpoint(tmp_path, known=[Earthly]).model.net, Earthly)
    assert torch.equal(torch.rand(3), wanted)


class Tabled(DiscreteVPSDE):
    """No dataclass: its `config` tells how it is made."""


def test_a_process_that_is_no_dataclass_is_saved_by_its_config(tmp_path):
    sde = Tabled([0.1, 0.2, 0.3])
    save_checkpoint(tmp_path, Network(Line(2), sde, shape=(2,)))
    loaded = load_checkpoint(tmp_path, known=[Tabled, Line]).model.sde
    assert type(loaded) is Tabled
    assert torch.equal(loaded.betas, sde.betas)


def test_a_class_of_the_wrong_sort_is_refused(saved):
    edit(saved, sde={"name": "Line", "fields": {"dim": 2}})
    with pytest.raises(
        ValueError, match=r"names the SDE 'Line', which is not known here \(the Line that was given is none\)"
    ):
        load_checkpoint(saved, known=[Line])


# --- what cannot be saved


def test_what_cannot_be_described_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "model"
    sde = schedules.EDMSDE(0.005, 20.0)
    with pytest.raises(
        TypeError, match="a checkpoint holds a Network or a FlowMap; this is a On: save the network inside it"
    ):
        save_checkpoint(folder, model().on(schedules.VPSDE()))
    with pytest.raises(TypeError, match="Linear has no `config` property: give it one"):
        save_checkpoint(folder, Network(nn.Linear(2, 2), sde))
    with pytest.raises(TypeError, match="function has no `config` property"):
        save_checkpoint(folder, Network(lambda x, t: x, sde))
    with pytest.raises(
        TypeError, match="the clock <lambda> cannot be written down by name: make it a dataclass, give it a `config`"
    ):
        save_checkpoint(folder, model(clock=lambda at: at.t))
    with pytest.raises(TypeError, match="the description of the model is not JSON"):
        save_checkpoint(folder, model(), extra={"x": torch.ones(1)})
    broken = model()
    next(broken.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"parameter .* holds .* non-finite values"):
        save_checkpoint(folder, broken)
    assert not folder.exists()


# --- what cannot be loaded


def test_a_missing_folder_or_file_is_named(saved):
    with pytest.raises(FileNotFoundError, match=r"no model.json in .*elsewhere: give a folder written by"):
        load_checkpoint(saved.parent / "elsewhere")
    tensors_of(saved).unlink()
    with pytest.raises(FileNotFoundError, match=r"no model-.* in .*, which model.json describes: give a folder"):
        load_checkpoint(saved)


@pytest.mark.parametrize("keep", [0, 7, 300])
def test_truncated_tensors_are_refused(saved, keep):
    file = tensors_of(saved)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(
        ValueError, match=r"is not the file that model.json describes: cut short while copying.*save it again"
    ):
        load_checkpoint(saved)


def test_bytes_that_are_no_tensors_are_refused_even_with_the_right_digest(saved):
    swap(saved, b"not tensors")
    with pytest.raises(ValueError, match=r"is not the file that model.json describes: .*\(.*header"):
        load_checkpoint(saved)


def test_a_description_that_does_not_parse_is_refused(saved):
    file = saved / "model.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match=r"model.json is not JSON \(.*\): it was cut short or edited; save it again"):
        load_checkpoint(saved)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"model.json is not JSON"):
        load_checkpoint(saved)
    file.write_text("[1]")
    with pytest.raises(ValueError, match="does not describe anything that was saved here"):
        load_checkpoint(saved)


def test_an_unknown_format_version_is_refused(saved):
    edit(saved, version=99)
    with pytest.raises(ValueError, match="has format version 99, and this is version 5: load it with the version"):
        load_checkpoint(saved)


def test_a_missing_or_misshapen_entry_is_named(saved):
    edit(saved, kind=None)
    with pytest.raises(ValueError, match="has no sound entry 'kind': it was edited"):
        load_checkpoint(saved)
    edit(saved, kind={"name": "EDM", "fields": {}}, scaling="0")
    with pytest.raises(ValueError, match="has no sound entry 'scaling'"):
        load_checkpoint(saved)


@pytest.mark.parametrize("what", ["net", "sde", "kind", "clock"])
def test_unknown_names_are_refused_and_never_looked_up(saved, what):
    edit(saved, **{what: {"name": "os.system", "fields": {"command": "true"}}})
    with pytest.raises(ValueError, match=r"'os.system', which is not known here. Known are"):
        load_checkpoint(saved)


def test_fields_that_a_class_does_not_take_are_told(saved):
    edit(saved, sde={"name": "EDMSDE", "fields": {"sigma_min": 2.0, "sigma_max": 1.0}})
    with pytest.raises(ValueError, match=r"checkpoint's SDE EDMSDE cannot be built from .*: wanted 0 < sigma_min"):
        load_checkpoint(saved)
    edit(saved, sde={"name": "EDMSDE", "fields": {"colour": 1}})
    with pytest.raises(ValueError, match=r"cannot be built from .*colour"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"dim": 2, "hidden": 32, "layers": 1},
            r"tensor '.*' has shape \(.*16.*\), the net \(.*32.*\): .*another architect",
        ),
        ({"dim": 2, "hidden": 16, "layers": 2}, r"tensor 'times.1.weight' is missing: .*another architecture"),
        ({"dim": 2, "hidden": 16, "layers": 1, "classes": 3}, r"tensor 'condition.label.weight' is missing"),
    ],
)
def test_tensors_of_another_architecture_are_refused_and_the_first_is_named(saved, fields, message):
    edit(saved, net={"name": "MLP", "fields": fields})
    with pytest.raises(ValueError, match=message):
        load_checkpoint(saved)


def test_tensors_without_a_place_are_refused(tmp_path):
    save_checkpoint(tmp_path, model(classes=3))
    edit(tmp_path, net={"name": "MLP", "fields": {"dim": 2, "hidden": 16, "layers": 1}})
    with pytest.raises(
        ValueError, match=r"tensor 'condition.label.weight' has no place in the net: .*another architecture"
    ):
        load_checkpoint(tmp_path)


def test_without_safetensors_the_error_names_the_extra(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"checkpoints need safetensors: pip install 'sde-diffusion\[train\]'"):
        load_checkpoint(saved)
    with pytest.raises(ImportError, match=r"pip install 'sde-diffusion\[train\]'"):
        save_checkpoint(saved, model())


class Halved(nn.Module):
    """A net around another, half of whose answer it gives."""

    per_sample = ("label",)

    def __init__(self, net, factor=0.5):
        super().__init__()
        self.net, self.config = net, {"net": net, "factor": factor}

    def forward(self, x, t, **cond):
        return self.config["factor"] * self.net(x, t, **cond)


def test_a_net_around_a_net_comes_back_with_both(tmp_path):
    first = Network(Halved(awake(UNet(1, width=8, classes=3))), schedules.EDMSDE(), predict.edm, shape=(1, 4, 4)).eval()
    save_checkpoint(tmp_path, first)
    with pytest.raises(ValueError, match=r"names the net 'Halved', which is not known here"):
        load_checkpoint(tmp_path)
    loaded = load_checkpoint(tmp_path, known=[Halved])
    assert loaded.classes == loaded.model.built_with()["classes"] == 3
    assert loaded.model.built_with()["factor"] == 0.5
    a, b = (SDESampler(m.sde, m, steps=3).sample(2, seed=1, label=2) for m in (first, loaded.model))
    assert torch.equal(a, b)


def test_a_net_around_one_that_cannot_be_described_is_refused(tmp_path):
    model = Network(Halved(nn.Linear(2, 2)), schedules.EDMSDE(), predict.edm, shape=(2,))
    with pytest.raises(TypeError, match=r"Halved is built around Linear, which has no `config` property"):
        save_checkpoint(tmp_path / "model", model)


def test_nets_described_inside_one_another_without_end_are_refused(saved):
    deep = {"name": "UNet", "fields": {"channels": 1}}
    for _ in range(20):
        deep = {"name": "Halved", "fields": {"net": {"a net": deep}}}
    edit(saved, net=deep)
    with pytest.raises(ValueError, match=r"at most 8 deep"):
        load_checkpoint(saved, known=[Halved])
