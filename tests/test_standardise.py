"""Claim: data of any offset and scale, column by column, come back as they were, and their density is in their units.

A fresh network answers 0, which as `predict.edm` is the exact denoiser of N(0, 1): with the mean and std of a
checkpoint around it, every sample and every density has a closed form.
"""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest
import torch
from checkpoints import scaled, standard

from sde_diffusion import EDMSDE, Network, predict
from sde_diffusion.cli import main as cli
from sde_diffusion.data import Standardise, load_array, standardise
from sde_diffusion.nets import MLP, UNet
from sde_diffusion.training import load_checkpoint, save_checkpoint

OFFSETS = (0.0, 1e4, 1e6, 1e7, 1.7e9)
KINDS = ("<f2", "<f4", ">f4", "<f8", ">f8", "longdouble")
LOW, HIGH = 0.005, 80.0  # the noise levels of the checkpoints here


def call(*words: object) -> None:
    assert cli.main([str(word) for word in words]) == 0


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def exact(folder, mean, std, **options):
    """A checkpoint whose model is exactly a Gaussian of this mean and std."""
    net = MLP(len(mean), hidden=8, layers=1)
    model = Network(net, EDMSDE(LOW, HIGH), predict.edm, shape=(len(mean),), **options)
    save_checkpoint(folder, model, scaling=scaled(mean, std))
    return folder


def log_density(x, mean, std):
    """Of rows, under independent normal columns with the noise of the last level, in numpy.

    The flow takes a variance of 1 + LOW^2 to one of 1 + HIGH^2, and the prior has HIGH^2.
    """
    variance = (1 + LOW**2) * HIGH**2 / (1 + HIGH**2) * np.asarray(std) ** 2
    square = ((np.asarray(x, "float64") - mean) ** 2 / variance).sum(1)
    return -0.5 * (square + np.log(2 * math.pi * variance).sum())


# --- round trips


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_a_column_comes_back_to_a_thousandth_of_its_std_whatever_its_offset_and_dtype(kind, offset, tmp_path):
    with np.errstate(over="ignore"):
        held = (normal(4000, 1) + offset).astype(kind)
    np.save(tmp_path / "x.npy", held)
    if not np.isfinite(held).all():  # half precision ends at 65,504
        with pytest.raises(ValueError, match="holds 4000 NaN or infinite values"):
            load_array(tmp_path / "x.npy")
        return
    x, _ = load_array(tmp_path / "x.npy")
    wide = held.astype("longdouble")
    std = float(wide.std())
    if std < np.finfo("float32" if x.dtype == torch.float32 else "float64").eps * offset:
        # all that float32 holds are one or two values
        with pytest.raises(ValueError, match="every column of the data is constant"):
            Standardise.of(x)
        return
    scaling = Standardise.of(x)
    assert float(scaling.mean) == pytest.approx(float(wide.mean()), abs=1e-6 * std)
    assert float(scaling.std) == pytest.approx(std, rel=1e-6)
    z = scaling.apply(x)
    assert z.dtype == torch.float32
    assert len(z.unique()) == len(np.unique(held))
    back = scaling.undo(z)
    assert float((back.double() - x.double()).abs().max()) < 1e-3 * std
    # no wider than need be: float32 has a rounding of half an ulp
    assert back.dtype == (torch.float64 if offset * 2**-24 > 1e-3 * std else torch.float32)


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e-30, 1e30, 1e307])
def test_scales_at_the_ends_of_float64_are_as_good_as_any(scale):
    x = torch.from_numpy(normal(1000, 2)) * torch.tensor([scale, 1.0], dtype=torch.float64)
    scaling = Standardise.of(x)
    z = scaling.apply(x)
    digits = 1e-2 if scale == 1e-320 else 1e-6  # of which float64 holds few there
    assert z.double().mean(0).abs().max() < digits
    assert (z.double().std(0, correction=0) - 1).abs().max() < digits
    assert ((scaling.undo(z) - x).abs() <= digits * scaling.std).all()


def test_every_channel_of_images_has_its_own_scale_even_where_there_are_as_many_as_columns_of_pixels(tmp_path):
    scale, offset = np.array([1.0, 100.0, 1e-3, 1e6]), np.array([0.0, 5.0, 7.0, -1e6])
    x = torch.from_numpy(normal(500, 4, 4, 4) * scale[:, None, None] + offset[:, None, None])
    scaling = Standardise.of(x)
    assert scaling.mean.shape == scaling.std.shape == (4, 1, 1)
    z = scaling.apply(x).double().transpose(0, 1).flatten(1)
    assert z.mean(1).abs().max() < 1e-6
    assert (z.std(1, correction=0) - 1).abs().max() < 1e-6
    model = Network(UNet(4, width=8), EDMSDE(), predict.edm, shape=(4, 4, 4))
    save_checkpoint(tmp_path, model, scaling=Standardise(scaling.mean.flatten(), scaling.std.flatten()))
    loaded = load_checkpoint(tmp_path)
    assert (loaded.scaling.apply(x).double() * scaling.std + scaling.mean - x).abs().max() < 1.0
    assert ((loaded.scaling.undo(loaded.scaling.apply(x)) - x).abs() < 1e-3 * scaling.std).all()
    assert standard(loaded).log_det((4, 4, 4)) == pytest.approx(16 * float(scaling.std.log().sum()), rel=1e-14)


def test_many_data_are_scaled_in_parts_and_to_the_same_values(monkeypatch):
    x = torch.from_numpy(normal(50, 3, 2, 2))
    whole = Standardise.of(x)
    monkeypatch.setattr(standardise, "CHUNK", 200)  # of 600 values: one channel, and 16 images, at a time
    parts = Standardise.of(x)
    assert torch.equal(parts.mean, whole.mean)
    assert torch.equal(parts.std, whole.std)
    assert torch.equal(parts.apply(x), ((x - whole.mean) / whole.std).float())


def test_a_scaling_of_one_number_counts_for_every_coordinate():
    scaling = Standardise(torch.tensor(0.0), torch.tensor(3.0))
    assert scaling.log_det((2, 4, 4)) == pytest.approx(32 * math.log(3), rel=1e-14)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({3: 0.5}, "column 3 of --data is constant at 0.5: leave it out"),
        ({1: 7.0, 4: 0.0}, r"column 1 of --data is constant at 7 \(and others: 4\): leave it out"),
        ({0: "noise"}, "column 0 of --data is constant at 0.3 up to the rounding of float64: leave it out, or centre"),
        (dict.fromkeys(range(5), 1e9), "every column of --data is constant: there is nothing to learn"),
    ],
)
def test_a_constant_column_is_refused_by_name(bad, text):
    x = torch.from_numpy(normal(50, 5))
    for k, value in bad.items():
        x[:, k] = 0.3 + 2.0**-54 * x[:, k].sign() if value == "noise" else value
    with pytest.raises(ValueError, match=text):
        Standardise.of(x, "--data")


def test_a_constant_channel_is_refused_on_the_command_line(tmp_path, capsys):
    x = normal(9, 4, 4, 4)
    x[:, 3] = 1.0
    np.save(tmp_path / "x.npy", x)
    assert cli.main(["train", "--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "model")]) == 2
    assert "channel 3 of --data is constant at 1: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_data_of_another_width_are_refused(tmp_path, capsys):
    scaling = Standardise(torch.zeros(2), torch.ones(2))
    for x in (torch.zeros(5, 3), torch.zeros(5, 1), torch.zeros(5)):
        with pytest.raises(ValueError, match=r"have shape \(2,\), but samples .*: wanted one number, or one per"):
            scaling.apply(x)
    np.save(tmp_path / "x.npy", normal(5, 3))
    words = ("--checkpoint", exact(tmp_path / "model", [0.0, 1.0], [1.0, 2.0]), "--data", tmp_path / "x.npy")
    assert cli.main(["likelihood", *map(str, words), "--out", str(tmp_path / "y.csv")]) == 2
    assert "--data has event shape (3,) (batch 5), but the model works on (2,)" in capsys.readouterr().err


# --- the command line


def test_samples_have_the_mean_and_std_of_every_column(tmp_path):
    mean, std, n = [300.0, 0.0, 1.7e9], [15.0, 0.05, 1.0], 4000
    folder = exact(tmp_path / "model", mean, std)
    call("sample", "--checkpoint", folder, "--n", n, "--batch-size", n, "--steps", 20, "--out", tmp_path / "x.npy")
    x = np.load(tmp_path / "x.npy")
    assert x.dtype == np.float64  # float32 holds no 1.7e9 + N(0, 1)
    assert len(np.unique(x[:, 2])) > 0.99 * n
    assert (np.abs(x.mean(0) - mean) < 4 * np.array(std) / math.sqrt(n)).all()
    # the last jump is to the posterior mean, and twenty steps are exact to a hundredth
    assert (np.abs(x.std(0) / std - 1) < 4 / math.sqrt(2 * n) + 0.01).all()


def test_samples_stay_in_float32_where_it_holds_them(tmp_path):
    folder = exact(tmp_path / "model", [300.0, 0.0], [15.0, 0.05])
    call("sample", "--checkpoint", folder, "--n", 3, "--steps", 2, "--out", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        assert file["x"].dtype == np.float32


@pytest.mark.parametrize(("mean", "std"), [([300.0, 0.0], [15.0, 0.05]), ([1.7e9, -1e7], [1.0, 1e-3])])
def test_log_likelihoods_are_exact_in_the_units_of_every_column(mean, std, tmp_path):
    folder = exact(tmp_path / "model", mean, std)
    x = normal(6, 2) * std + mean
    np.save(tmp_path / "x.npy", x)
    words = ("likelihood", "--checkpoint", folder, "--data", tmp_path / "x.npy", "--bin-width", 0.25)
    call(*words, "--out", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    wanted = log_density(x, mean, std)
    assert [row["log_prob"] for row in found["rows"]] == pytest.approx(wanted.tolist(), abs=1e-3)
    bits = -(wanted / 2 + math.log(0.25)) / math.log(2)
    assert [row["bits_per_dim"] for row in found["rows"]] == pytest.approx(bits.tolist(), abs=1e-3)
    # noise levels are in units of the std, which stands beside them
    assert found["noise_level"] == pytest.approx(LOW)
    assert found["noise_levels_trained"] == [LOW, HIGH]
    assert found["std"] == std


def test_a_model_in_double_precision_weighs_in_double_precision(tmp_path):
    model = Network(MLP(2, hidden=8, layers=1), EDMSDE(LOW, HIGH), predict.edm, shape=(2,)).double()
    save_checkpoint(tmp_path / "model", model, scaling=Standardise(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])))
    x = normal(3, 2) * [3, 4] + [1, 2]
    np.save(tmp_path / "x.npy", x)
    call("likelihood", "--checkpoint", tmp_path / "model", "--data", tmp_path / "x.npy", "--out", tmp_path / "y.json")
    rows = json.loads((tmp_path / "y.json").read_text())["rows"]
    wanted = log_density(x, [1, 2], [3, 4])
    assert [row["log_prob"] for row in rows] == pytest.approx(wanted.tolist(), abs=1e-5)


def test_a_trained_table_keeps_the_scale_and_the_density_of_every_column(tmp_path):
    mean, std = np.array([300.0, 0.0, 1.7e9]), np.array([15.0, 0.05, 1.0])
    x = normal(2000, 3) * std + mean
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "test.npy", normal(16, 3, seed=1) * std + mean)
    model = tmp_path / "model"
    call("train", "--data", tmp_path / "x.npy", "--out", model, "--steps", 150, "--hidden", 16)
    call("sample", "--checkpoint", model, "--n", 1000, "--steps", 15, "--out", tmp_path / "new.npy")
    new = np.load(tmp_path / "new.npy")
    # 0.301 for 0.05 with one scale for all
    assert (np.abs(new.std(0) / std - 1) < 0.15).all()
    assert (np.abs(new.mean(0) - mean) < 0.2 * std).all()
    call("likelihood", "--checkpoint", model, "--data", tmp_path / "test.npy", "--out", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())["log_prob"]
    assert found == pytest.approx(log_density(np.load(tmp_path / "test.npy"), mean, std).mean(), abs=0.3)


@pytest.mark.filterwarnings("ignore:each of 178 samples")
@pytest.mark.slow
def test_the_hue_of_wine_keeps_its_spread(tmp_path):
    sklearn = pytest.importorskip("sklearn.datasets")
    wine = sklearn.load_wine()
    np.savez(tmp_path / "wine.npz", x=wine.data)
    model = tmp_path / "model"
    call("train", "--data", tmp_path / "wine.npz", "--out", model, "--steps", 1500, "--hidden", 64)
    call("sample", "--checkpoint", model, "--n", 1000, "--out", tmp_path / "new.npy")
    new, std = np.load(tmp_path / "new.npy"), wine.data.std(0)
    print(dict(zip(wine.feature_names, (new.std(0) / std).round(3).tolist(), strict=True)))
    hue = wine.feature_names.index("hue")
    assert std[hue] == pytest.approx(0.228, abs=1e-3)
    assert new[:, hue].std() == pytest.approx(std[hue], rel=0.15)  # 2.02 with one scale for all
    assert (np.abs(new.std(0) / std - 1) < 0.3).all()


def test_points_of_unlike_scale_have_a_picture_and_not_a_line(tmp_path):
    folder = exact(tmp_path / "model", [300.0, 0.0], [15.0, 0.05])
    call("sample", "--checkpoint", folder, "--n", 20, "--steps", 3, "--out", tmp_path / "x.png")
    width, height = struct.unpack(">II", (tmp_path / "x.png").read_bytes()[16:24])
    assert height > 0.7 * width
