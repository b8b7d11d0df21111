"""Claim: a size that no machine has, and a number out of range, is one line and status 2, before any work."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_diffusion import EDMSDE, VPSDE, Network, SDESampler, predict
from sde_diffusion.cli import likelihood as likelihood_command
from sde_diffusion.cli import main as cli
from sde_diffusion.cli.limits import check_batch, classes_of, parameters_of
from sde_diffusion.cli.plan import running
from sde_diffusion.data import memory
from sde_diffusion.likelihood import Method
from sde_diffusion.nets import MLP, DiT, UNet
from sde_diffusion.plots import check_picture
from sde_diffusion.solvers import Heun
from sde_diffusion.training import save_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data, labelled data and checkpoints of points and of classes."""
    folder = tmp_path_factory.mktemp("place")
    x = np.random.default_rng(0).normal(size=(20, 2)).astype("float32")
    np.save(folder / "x.npy", x)
    np.savez(folder / "labelled.npz", x=x, label=np.arange(20) % 5)
    np.savez(folder / "sparse.npz", x=x, label=np.arange(20) + 1)
    for name, classes in (("points", 0), ("classes", 3)):
        net = MLP(2, hidden=8, layers=1, classes=classes)
        save_checkpoint(folder / name, Network(net, VPSDE(), predict.edm, shape=(2,)))
    save_checkpoint(folder / "images", Network(UNet(1, width=8), VPSDE(), predict.edm, shape=(1, 32, 32)))
    return folder


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """A machine of 32 GiB on which the work of a command must not begin."""

    def begun(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(memory, "memory", lambda: 2**35)
    monkeypatch.setattr(running, "train", begun)
    monkeypatch.setattr(SDESampler, "_solve", begun)
    monkeypatch.setattr(likelihood_command, "log_prob", begun)
    monkeypatch.setattr("sde_diffusion.demo.table.Bench.prepare", begun)


TRAIN = ("train", "--data", "x.npy", "--out", "new")
SAMPLE = ("sample", "--checkpoint", "points", "--out", "new.npy")
IMAGES = ("sample", "--checkpoint", "images", "--out", "new.png")
LIKELIHOOD = ("likelihood", "--checkpoint", "points", "--data", "x.npy", "--out", "new.json")
DEMO = ("demo", "--out", "new")
WHOLE = "wanted a whole number, got "
CASES = [
    (TRAIN, "--steps", 10**9, "must be at most 10,000,000, got 1000000000"),
    (TRAIN, "--steps", 10**30, "must be at most 10,000,000"),
    (TRAIN, "--steps", "9" * 5000, WHOLE),
    (TRAIN, "--steps", 0, "must be at least 1, got 0"),
    (TRAIN, "--steps", -5, "must be at least 1, got -5"),
    (TRAIN, "--steps", 2.5, WHOLE + "'2.5'"),
    (TRAIN, "--steps", "inf", WHOLE + "'inf'"),
    (TRAIN, "--steps", "", WHOLE + "''"),
    (
        TRAIN,
        "--width",
        100_000,
        "the network, of 90,011,100,002 parameters, would need about 2.01e+03 GiB, and this machine has 32 GiB",
    ),
    (TRAIN, "--width", 10**9, "must be at most 100,000"),
    (TRAIN, "--width", 0, "must be at least 1"),
    (TRAIN, "--batch-size", 100_000_000, "must be at most 10,000,000, got 100000000"),
    (TRAIN, "--batch-size", 10_000_000, "--batch-size 10,000,000 would need about"),
    (TRAIN, "--lr", "nan", "lr must be positive"),
    (TRAIN, "--lr", "inf", "lr must be positive"),
    (TRAIN, "--lr", 0, "lr must be positive"),
    (TRAIN, "--lr", "x", "wanted a number, got 'x'"),
    (TRAIN, "--threads", 0, "must be at least 1"),
    (TRAIN, "--threads", 10**9, "must be at most "),
    (TRAIN, "--seed", 2**32, "must be at most 4,294,967,295"),
    (TRAIN, "--seed", -1, "must be at least 0"),
    (TRAIN, "--seed", 1e3, WHOLE + "'1000.0'"),
    (TRAIN, "--data", "", "argument --data: is empty"),
    (TRAIN, "--out", "", "argument --out: is empty"),
    (TRAIN, "--data", "sparse.npz", "labels up to 20 make 21 classes, and there are 20 samples"),
    (SAMPLE, "--n", 10**9, "must be at most 100,000,000, got 1000000000"),
    (SAMPLE, "--n", 0, "must be at least 1"),
    (SAMPLE, "--n", "1e3", WHOLE + "'1e3'"),
    (SAMPLE, "--steps", 10**9, "steps must be at most 1,000,000, got 1,000,000,000"),
    (SAMPLE, "--steps", 10**30, "steps must be at most 1,000,000"),
    (SAMPLE, "--nfe", 10**9, "steps must be at most 1,000,000, got 999,999,999"),
    (SAMPLE, "--nfe", 0, "must be at least 1"),
    (SAMPLE, "--batch-size", 10**30, "must be at most 10,000,000"),
    (SAMPLE, "--label", 10**30, "--label 1" + 30 * "0" + ": the model is not class-conditional"),
    (SAMPLE, "--seed", 2**32, "must be at most 4,294,967,295"),
    (SAMPLE, "--seed", 2**32 - 1, "--seed 4294967295 leaves no stream below 2**32 for each of 64 samples"),
    (SAMPLE, "--threads", 2**70, "must be at most "),
    (SAMPLE, "--out", "new.txt", "--out must end in .npy, .npz or .png"),
    (SAMPLE, "--checkpoint", "x.npy", "no model.json in"),
    (IMAGES, "--n", 100_000_000, "--n 100,000,000 samples of shape (1, 32, 32) would need about 3.06e+03 GiB"),
    (
        IMAGES,
        "--n",
        1_000_000,
        "no picture of 1,000,000 samples of shape (1, 32, 32): a board of 33,000 x 33,000 pixels",
    ),
    (LIKELIHOOD, "--bin-width", "inf", "--bin-width must be positive and finite, got inf"),
    (LIKELIHOOD, "--bin-width", "nan", "--bin-width must be positive and finite, got nan"),
    (LIKELIHOOD, "--bin-width", -1, "--bin-width must be positive and finite, got -1"),
    (LIKELIHOOD, "--probes", 0, "must be at least 1"),
    (LIKELIHOOD, "--batch-size", 0, "must be at least 1"),
    (LIKELIHOOD, "--seed", 2**32 - 19, "--seed 4294967277 leaves no stream below 2**32 for each of 20 samples"),
    (LIKELIHOOD, "--out", "new.txt", "--out must end in .json or .csv"),
    (DEMO, "--steps", 10**9, "must be at most 10,000,000"),
    (DEMO, "--seed", 2**64, "must be at most 4,294,967,295"),
    (("check", "sde_diffusion:VPSDE"), "--threads", 10**9, "must be at most "),
]


@pytest.mark.parametrize(
    ("words", "option", "value", "text"), CASES, ids=[f"{w[0]} {o} {str(v)[:12]}" for w, o, v, _ in CASES]
)
def test_a_number_out_of_range_is_one_line_and_status_two(words, option, value, text, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    before = sorted(place.iterdir())
    start = time.perf_counter()
    try:
        status = cli.main([*words, option, str(value)])
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sde-diffusion")
    assert text in line
    assert time.perf_counter() - start < 10
    assert sorted(place.iterdir()) == before


def test_a_label_of_another_class_is_refused_before_the_first_batch(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    words = ["likelihood", "--checkpoint", "classes", "--data", "labelled.npz", "--out", "new.json"]
    assert cli.main(words) == 2
    assert "the labels go up to 4, and the model knows 0..2" in capsys.readouterr().err
    assert cli.main([*SAMPLE[:2], "classes", *SAMPLE[3:], "--label", str(10**30)]) == 2
    assert "--label must be 0..2, all or none" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:each of 20 samples")
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_runs_out_all_the_same_is_one_line(error, place, capsys, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(running, "train", fails)
    monkeypatch.chdir(place)
    assert cli.main(list(TRAIN)) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("sde-diffusion: error: out of memory: take a smaller --batch-size")
    monkeypatch.setattr(running, "train", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):  # a fault of ours is not hidden
        cli.main(list(TRAIN))


@pytest.mark.parametrize("how", [{"steps": 10**9}, {"nfe": 10**9}, {"steps": 10**6 + 1}, {"steps": 10**30}])
def test_a_sampler_of_more_than_a_million_steps_is_refused_at_once(how):
    model = Network(MLP(2, hidden=8), VPSDE(), predict.edm, shape=(2,)).eval()
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"steps must be at most 1,000,000, got .*laid out before the first"):
        SDESampler(model.sde, model, **how)
    with pytest.raises(ValueError, match="steps must be at most 1,000,000"):
        SDESampler(model.sde, model).log_prob(torch.zeros(1, 2), method=Method(Heun(), steps=next(iter(how.values()))))
    assert time.perf_counter() - start < 1
    assert SDESampler(model.sde, model, steps=1000).steps == 1000


@pytest.mark.parametrize(
    "make",
    [lambda: MLP(2, hidden=80, classes=5), lambda: UNet(3, width=32, classes=4), lambda: DiT((3, 8, 8), context=2)],
    ids=["plane", "images", "transformer"],
)
def test_the_parameters_of_a_network_are_counted_without_memory_for_them(make):
    before = torch.random.get_rng_state()
    found = parameters_of(make)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found == sum(p.numel() for p in make().parameters())


def test_a_network_that_looks_at_its_numbers_is_made_to_be_counted():
    def make():
        net = MLP(2, hidden=8)
        float(net.leave.weight.sum())
        return net

    assert parameters_of(make) is None


def test_a_batch_is_weighed_by_what_its_pass_keeps(monkeypatch):
    class Squares(torch.nn.Module):
        def forward(self, x, t, context=None):
            kept = x if context is None else x + context["seen"]
            return (kept.square() + t[:, None]).square()  # keeps x and the sum, 2 x 8 numbers of 4 bytes

    model = Network(Squares(), VPSDE(), predict.edm, shape=(8,))
    monkeypatch.setattr(memory, "memory", lambda: 64_000)
    check_batch(model, 1000, passes=1, cond={"context": {"seen": torch.zeros(5, 8)}})
    with pytest.raises(ValueError, match=r"--batch-size 1,001 would need about .* GiB, .* memory: take a smaller one"):
        check_batch(model, 1001, passes=1)
    model = Network(MLP(2, hidden=8), VPSDE(), predict.edm, shape=(2,)).train()
    check_batch(model, 1, passes=1)
    assert model.training


def test_the_memory_of_the_machine_is_what_linux_says_of_it(monkeypatch):
    monkeypatch.undo()
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert 0 < memory.memory() <= 1024 * int(lines["MemTotal"].split()[0])


@pytest.mark.parametrize(
    ("labels", "text"), [([0, 2, 4, 4, 2], "from 0 to 4 leave 2 of 5"), ([1, 2, 3, 1], "from 1 to 3 leave 1 of 4")]
)
def test_classes_without_a_sample_are_refused(labels, text):
    with pytest.raises(ValueError, match=f"labels {text} classes without a sample: number the classes 0, 1, "):
        classes_of(torch.tensor(labels))
    assert classes_of(torch.tensor([1, 0])) == 2
    assert classes_of(None) == 0


def test_a_picture_within_the_limits_may_be_drawn():
    check_picture((10_000, 1, 8, 8), columns=100)
    check_picture((10**7, 2), columns=1)
    with pytest.raises(ValueError, match="a board of 900,000 x 9 pixels"):
        check_picture((100_000, 3, 8, 8), columns=1)


def test_the_flow_of_a_process_has_as_many_steps_as_fit():
    sampler = SDESampler(EDMSDE(), lambda x, t: -x, shape=(2,), solver=Heun(), nfe=2 * 10**6 + 1)
    assert sampler.steps == 10**6
