"""Claim: an average goes on from its state as if it had never stopped, and its length can be chosen afterwards."""

from __future__ import annotations

import math
import re
import shutil

import pytest
import torch
from torch import nn

from sde_diffusion import EDMSDE, Network, predict
from sde_diffusion.nets import MLP
from sde_diffusion.training import EMA, ConstantDecay, PowerDecay, Recipe, train
from sde_diffusion.training.snapshots import Snapshots, posthoc
from sde_diffusion.training.store import DamagedWarning


class Net(nn.Module):
    """Parameters in two precisions, a buffer that a state dict holds and one that it leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2).bfloat16()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("calls", torch.zeros(1), persistent=False)


def moved(net, i):
    """Weights at step i, the same whenever it is asked."""
    generator = torch.Generator().manual_seed(i)
    with torch.no_grad():
        for value in [*net.parameters(), *net.buffers()]:
            value.copy_(torch.rand(value.shape, generator=generator) * 10)


@pytest.mark.parametrize("decay", [PowerDecay(0.1), ConstantDecay(0.99)])
def test_an_average_that_is_resumed_is_the_one_that_went_through_bit_for_bit(decay):
    net = Net()
    through, first = EMA(net, decay), EMA(net, decay)
    for i in range(40):
        moved(net, i)
        through.update(net)
        if i < 20:
            first.update(net)
    kept = {name: value.clone() for name, value in first.state().items()}
    assert int(kept["steps"]) == 20
    again = EMA(Net(), decay)
    again.load_state(kept)
    for i in range(20, 40):
        moved(net, i)
        again.update(net)
    one, other = through.state(), again.state()
    assert list(one) == list(other)
    assert {"wide.b.weight", "model.calls", "model.norm.running_mean"} <= set(one)
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
    assert not torch.equal(kept["wide.b.weight"], other["wide.b.weight"])  # nor was what was handed over changed


def test_a_state_that_was_loaded_into_the_copy_is_what_is_kept():
    ema = EMA(nn.Linear(1, 1, bias=False).bfloat16())
    ema.model.load_state_dict({"weight": torch.full((1, 1), 4.0)})
    assert ema.state()["wide.weight"].item() == 4.0


def test_the_state_of_another_model_is_refused():
    ema = EMA(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"has \(2, 2\) as 'model.weight', and this model has \(3, 2\): it is the sta"):
        ema.load_state(EMA(nn.Linear(2, 2)).state())
    with pytest.raises(ValueError, match=r"has nothing as 'model.bias', and this model has \(3,\)"):
        ema.load_state(EMA(nn.Linear(2, 3, bias=False)).state())
    with pytest.raises(ValueError, match=r"has \(3, 2\) as 'wide.weight', and this model has nothing"):
        ema.load_state(EMA(nn.Linear(2, 3).half()).state())


# --- the length chosen afterwards


class Walk(nn.Module):
    """Weights that follow a path of their own: one stands still, one grows with time, one swings, one is drawn anew."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def moved_to(self, i: int, n: int) -> Walk:
        drawn = float(torch.rand(1, generator=torch.Generator().manual_seed(i)))
        with torch.no_grad():
            self.w.copy_(torch.tensor([2.0, i, math.sin(9 * i / n), drawn], dtype=torch.float64))
            self.calls.fill_(i)
        return self


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A folder of 16 snapshots of 2000 steps, and the averages of other lengths that were kept beside them."""
    n, net = 2000, Walk()
    folder = tmp_path_factory.mktemp("averages")
    snapshots = Snapshots(folder, every=n // 16)
    beside = {s: EMA(net, PowerDecay(s)) for s in (0.05, 0.06, 0.08, 0.1, 0.15)}
    for i in range(1, n + 1):
        net.moved_to(i, n)
        for average in beside.values():
            average.update(net)
        if i % snapshots.every == 0:
            snapshots.write([beside[0.05], beside[0.1], EMA(net, ConstantDecay())])
    return folder, {s: average.model for s, average in beside.items()}


@pytest.mark.parametrize(("sigma_rel", "within"), [(0.05, 1e-6), (0.06, 2e-4), (0.08, 2e-4), (0.1, 1e-6), (0.15, 1e-3)])
def test_a_length_that_was_not_kept_is_made_of_those_that_were(walked, sigma_rel, within):
    folder, beside = walked
    template = Walk()
    found, kept = posthoc(folder, sigma_rel, template), beside[sigma_rel]
    g = PowerDecay(sigma_rel).gamma
    off = (found.w - kept.w).detach().abs() / torch.tensor([1.0, 2000.0, 1.0, 1.0])
    print([f"{v:.1e}" for v in off.tolist()])
    assert float(off.max()) < within
    assert found.w[0].item() == pytest.approx(2.0, abs=1e-9)  # constants are a fixed point
    assert found.w[1].item() / 2000 == pytest.approx((g + 1) / (g + 2), abs=max(within, 1e-3))
    assert (int(found.calls), found.training, template.w.abs().max().item()) == (2000, False, 0.0)
    nearest = min(abs(beside[s].w[1] - kept.w[1]).item() / 2000 for s in (0.05, 0.1))
    assert sigma_rel in (0.05, 0.1) or nearest > 5 * within  # which is what the sum is for


def test_an_average_may_end_at_an_earlier_step(walked):
    folder, _ = walked
    found, g = posthoc(folder, 0.07, Walk(), at=1000), PowerDecay(0.07).gamma
    assert found.w[1].item() / 1000 == pytest.approx((g + 1) / (g + 2), abs=2e-3)
    with pytest.raises(ValueError, match=r"no sound snapshot in .* is of step 60 or before: the first is step_0*125"):
        posthoc(folder, 0.07, Walk(), at=60)


def test_a_length_that_the_snapshots_do_not_span_is_refused_with_what_they_do(walked):
    folder, _ = walked
    with pytest.raises(
        ValueError, match=r"sigma_rel=0.28 at step 2000 is not in what these 16 snapshots span"
    ) as error:
        posthoc(folder, 0.28, Walk())
    said = str(error.value)
    print(said)
    assert "misses 21% of its window, wanted 5% at most. Of them lengths from 0.0" in said
    low, high = map(float, re.findall(r"lengths from (\S+) to (\S+) can be had", said)[0])
    for sigma_rel in (low, high):
        posthoc(folder, sigma_rel, Walk())
    for sigma_rel in (low / 1.3, high * 1.15):
        with pytest.raises(ValueError, match="is not in what these"):
            posthoc(folder, sigma_rel, Walk())


def test_a_run_stores_its_averages_and_a_new_one_begins_the_folder_anew(tmp_path):
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))

    def run(steps, *decays, every=8):
        torch.manual_seed(0)
        model = Network(MLP(2, hidden=8, layers=1, features=0), EDMSDE(), predict.edm, shape=(2,))
        recipe = Recipe(16, averages=decays)
        return train(model, x, steps=steps, recipe=recipe, seed=0, callbacks=[Snapshots(tmp_path, every=every)]), model

    done, model = run(40, PowerDecay(0.1), ConstantDecay(0.9), PowerDecay(0.05))
    names = {path.name.partition("-")[0].partition(".")[0] for path in tmp_path.glob("step_*")}
    assert names == {f"step_{i:09}" for i in (8, 16, 24, 32, 40)}
    for sigma_rel, kept in ((0.1, done.averages[0]), (0.05, done.averages[2])):
        for one, other in zip(posthoc(tmp_path, sigma_rel, model).parameters(), kept.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    run(12, PowerDecay(0.1), every=4)
    assert {path.stem for path in tmp_path.glob("step_*.json")} == {f"step_{i:09}" for i in (4, 8, 12)}
    with pytest.raises(ValueError, match="snapshots are of power-function averages, and there are none"):
        run(12, ConstantDecay(0.5))


def test_a_damaged_snapshot_is_left_out(walked, tmp_path):
    folder, beside = walked
    shutil.copytree(folder, tmp_path / "copy")
    bad = next((tmp_path / "copy").glob("step_000001250-*"))
    bad.write_bytes(bad.read_bytes()[:-1])
    with pytest.warns(DamagedWarning, match="step_000001250.* It is left out of the average"):
        found = posthoc(tmp_path / "copy", 0.08, Walk())
    torch.testing.assert_close(found.w[1:3] / 2000, beside[0.08].w[1:3] / 2000, atol=3e-3, rtol=0)


def test_a_half_precision_model_is_summed_in_full(tmp_path):
    net = nn.Linear(1, 1, bias=False).bfloat16()
    averages = [EMA(net, PowerDecay(s)) for s in (0.05, 0.1)]
    for i in range(1, 257):
        nn.init.constant_(net.weight, i)
        for average in averages:
            average.update(net)
        if i % 16 == 0:
            Snapshots(tmp_path, every=16).write(averages)
    g, found = PowerDecay(0.07).gamma, posthoc(tmp_path, 0.07, net)
    assert found.weight.dtype == torch.bfloat16
    assert found.weight.item() == pytest.approx(256 * (g + 1) / (g + 2), rel=8e-3)


def test_unfit_snapshots_are_refused(walked, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there are no snapshots of averages in .*: Snapshots"):
        posthoc(tmp_path, 0.1, Walk())
    with pytest.raises(ValueError, match=r"a snapshot has \(\) as 'calls', and the model nothing: it is of ano"):
        posthoc(walked[0], 0.1, nn.Module())
    with pytest.raises(ValueError, match="snapshots are of power-function averages, and there are none: give Recipe"):
        Snapshots(tmp_path, every=3).write([EMA(Walk(), ConstantDecay())])
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Snapshots(tmp_path, every=0)
