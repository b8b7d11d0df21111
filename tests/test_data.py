"""Digits, toys and files: fixed splits, exact bins, reproducible draws, and bad files refused with advice."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_diffusion import data
from sde_diffusion.data import BIN_WIDTH, LEVELS, bin_centres, dequantise, digits, load_array, quantise

TOYS = [data.moons, data.ring]


def test_the_split_has_1437_and_360_disjoint_images_that_make_up_all_digits():
    from sklearn.datasets import load_digits

    train, test = digits("train", dequantise=False), digits("test", dequantise=False)
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape == (1437, 1, 8, 8)
    assert train.images.dtype == torch.float32
    assert train.labels.shape == (1437,)
    assert train.labels.dtype == torch.int64
    both = torch.cat([quantise(train.images), quantise(test.images)]).flatten(1).tolist()
    assert sorted(both) == sorted(load_digits().data.astype(int).tolist())


def test_the_split_is_stratified_to_within_one_image_of_each_class():
    every = torch.cat([digits("train").labels, digits("test").labels]).bincount()
    share = every * 360 / 1797
    assert ((digits("test").labels.bincount() - share).abs() < 1).all()


def test_the_seed_changes_the_noise_and_not_the_split():
    a, b, again = digits("test", seed=0), digits("test", seed=1), digits("test", seed=0)
    assert torch.equal(a.images, again.images)
    assert not torch.equal(a.images, b.images)
    assert torch.equal(quantise(a.images), quantise(b.images))
    assert torch.equal(a.labels, b.labels)


def test_mean_and_std_are_those_of_the_pixels():
    train = digits("train", dequantise=False)
    assert train.mean == pytest.approx(float(np.mean(train.images.numpy(), dtype=np.float64)), abs=1e-12)
    assert train.std == pytest.approx(float(np.std(train.images.numpy(), dtype=np.float64)), abs=1e-12)
    assert 0.6 < train.std < 0.8
    uniform = digits("train", seed=0)  # dequantisation adds BIN_WIDTH^2 / 12 to the variance
    se = BIN_WIDTH / math.sqrt(1437 * 64)
    assert abs(uniform.std**2 - train.std**2 - BIN_WIDTH**2 / 12) < 4 * se


def test_digits_without_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'sde-diffusion\[examples\]'"):
        digits()


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'validation'"):
        digits("validation")  # type: ignore[arg-type]


def test_bin_centres_are_equally_spaced_and_come_back_as_levels():
    v = torch.arange(LEVELS)
    x = bin_centres(v)
    assert torch.equal(quantise(x), v)
    torch.testing.assert_close(x.diff(), torch.full((16,), BIN_WIDTH))
    torch.testing.assert_close(x, -x.flip(0))


@given(st.lists(st.integers(0, 16), min_size=1, max_size=40), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_every_dequantised_level_comes_back(levels, seed):
    v = torch.tensor(levels)
    x = dequantise(v, seed=seed)
    assert torch.equal(quantise(x), v)
    assert (x.abs() < 1).all()


def test_no_draw_of_two_million_leaves_its_bin_and_the_draws_are_uniform():
    n = 2_000_000
    v = torch.arange(n) % LEVELS
    x = dequantise(v, seed=0)
    assert torch.equal(quantise(x), v)
    u = (x.double() + 1) / BIN_WIDTH - v
    se = 1 / math.sqrt(12 * n)
    assert abs(float(u.mean()) - 0.5) < 4 * se
    assert float(u.var()) == pytest.approx(1 / 12, abs=4 * math.sqrt(1 / 180 / n))


def test_dequantisation_is_fresh_and_follows_its_generator():
    v = torch.zeros(8, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    first, second = dequantise(v, seed=generator), dequantise(v, seed=generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, dequantise(v, seed=0))


def test_pixels_beyond_the_range_get_the_end_level():
    assert quantise(torch.tensor([-1.5, -1.0, 1.0, 9.0, math.inf])).tolist() == [0, 0, 16, 16, 16]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: dequantise(torch.zeros(3)),
            TypeError,
            r"levels must be integers 0..16, got torch.float32. .* quantise",
        ),
        (lambda: bin_centres(torch.tensor([17])), ValueError, r"levels must lie in 0..16, got values from 17 to 17"),
        (lambda: dequantise(torch.tensor([-1, 2])), ValueError, "got values from -1 to 2"),
        (lambda: quantise(torch.tensor([3])), TypeError, r"floating-point pixels in \[-1, 1\], got torch.int64"),
        (lambda: quantise(torch.tensor([math.nan])), ValueError, "given NaN, which has no grey level"),
        (lambda: data.moons(0), ValueError, "n must be at least 1, got 0"),
        (lambda: data.ring(2.5), TypeError, "n must be an integer, got 2.5"),  # type: ignore[arg-type]
        (lambda: data.moons(3, noise=-1.0), ValueError, "noise is a standard deviation .* got -1.0"),
        (lambda: data.ring(3, noise=math.nan), ValueError, "noise is a standard deviation .* got nan"),
        (lambda: data.ring(3, modes=0), ValueError, "modes must be at least 1, got 0"),
        (
            lambda: data.moons(3, seed="0"),  # type: ignore[arg-type]
            TypeError,
            "seed must be an integer, a torch.Generator or None, one stream for all rows, got '0'",
        ),
    ],
)
def test_a_bad_argument_is_refused_with_a_sentence(call, error, text):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("toy", TOYS)
def test_a_toy_is_reproduced_by_its_seed_or_generator_and_leaves_the_global_state_alone(toy):
    before = torch.get_rng_state()
    x = toy(100, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    assert x.shape == (100, 2)
    assert x.dtype == torch.float32
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(x, toy(100, seed=generator))
    assert not torch.equal(x, toy(100, seed=generator))
    torch.manual_seed(5)
    first = toy(100)
    torch.manual_seed(5)
    assert not torch.equal(first, toy(100))  # fresh entropy, whatever torch's own state is


def test_noiseless_moons_lie_on_two_half_circles_half_each():
    x, y = data.moons(4000, noise=0.0, seed=0).double().T
    upper = (x**2 + y**2 - 1).abs() < 1e-5
    lower = ((x - 1) ** 2 + (y - 0.5) ** 2 - 1).abs() < 1e-5
    assert (upper | lower).all()
    assert (y[upper & ~lower] >= -1e-6).all()
    assert (y[lower & ~upper] <= 0.5 + 1e-6).all()
    assert abs(float(upper.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(4000)


def test_moons_agree_with_scikit_learn():
    from sklearn.datasets import make_moons

    from sde_diffusion.metrics import energy_distance

    theirs = torch.from_numpy(make_moons(2000, noise=0.08, random_state=0)[0]).float()
    same = energy_distance(data.moons(2000, seed=0), theirs)
    other = energy_distance(data.moons(2000, seed=0) + 0.1, theirs)
    print(f"ours against theirs {same:.1e}, shifted by 0.1 {other:.1e}")
    assert abs(same) < 2e-3 < other


def test_the_ring_has_its_modes_and_its_noise():
    x = data.ring(8000, modes=5, radius=3.0, noise=0.2, seed=0).double()
    angle = 2 * math.pi / 5 * torch.arange(5)
    means = 3 * torch.stack([angle.cos(), angle.sin()], 1).double()
    distance, mode = torch.cdist(x, means).min(dim=1)
    assert ((mode.bincount() - 1600).abs() < 4 * math.sqrt(8000 * 0.2 * 0.8)).all()
    assert float(distance.square().mean() / 2) == pytest.approx(0.04, abs=4 * 0.04 / math.sqrt(8000))


@pytest.mark.parametrize("kind", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "longdouble"])
def test_a_npy_file_comes_back_as_float32_or_as_float64_where_it_holds_more(tmp_path, kind):
    x = np.random.default_rng(0).normal(size=(7, 3, 2)).astype(kind)
    np.save(tmp_path / "x.npy", x)
    loaded, label = load_array(tmp_path / "x.npy")
    assert label is None
    assert loaded.dtype == (torch.float64 if x.dtype.itemsize > 4 else torch.float32)
    np.testing.assert_array_equal(loaded.double().numpy(), x.astype("float64"))


@pytest.mark.parametrize(("x_name", "label_name"), [("x", "label"), ("data", "labels"), ("x", "y")])
def test_a_npz_file_may_carry_labels_under_its_usual_names(tmp_path, x_name, label_name):
    arrays: dict[str, Any] = {x_name: np.ones((3, 2)), label_name: np.array([0, 4, 1], dtype=np.uint8)}
    np.savez(tmp_path / "a.npz", **arrays)
    x, label = load_array(str(tmp_path / "a.npz"))
    assert x.shape == (3, 2)
    assert label is not None
    assert label.dtype == torch.int64
    assert label.tolist() == [0, 4, 1]


def test_the_only_array_of_a_npz_file_may_have_any_name(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", spirals=np.ones((3, 2)))
    x, label = load_array(tmp_path / "a.npz")
    assert x.shape == (3, 2)
    assert label is None


X = np.ones((3, 2))
BAD = [
    ({"x": np.ones((3, 2), np.uint8)}, TypeError, r"holds uint8, wanted floating point .*v / 127.5 - 1"),
    ({"x": np.ones((3, 2), bool)}, TypeError, "holds bool, wanted floating point"),
    ({"x": np.ones((3, 2), complex)}, TypeError, "holds complex128, wanted floating point"),
    ({"x": np.array([[1, "a"]], dtype=object)}, TypeError, "holds Python objects, which are not read"),
    ({"x": np.ones(3)}, ValueError, r"has shape \(3,\), wanted \(N, \*shape\). .*reshape\(-1, 1\)"),
    ({"x": np.array(1.0)}, ValueError, r"has shape \(\), wanted \(N, \*shape\)"),
    ({"x": np.ones((0, 2))}, ValueError, r"is empty: its shape is \(0, 2\), wanted"),
    ({"x": np.array([[1.0, np.nan], [np.inf, 0.0]])}, ValueError, "holds 2 NaN or infinite values of 4"),
    ({"x": np.full((1, 1), np.longdouble("1e4000"))}, ValueError, "holds 1 NaN or infinite values of 1 .in float64"),
    ({"x": X, "data": X}, ValueError, "holds both 'x' and 'data', and it is unclear which"),
    ({"a": X, "b": X}, ValueError, r"holds \['a', 'b'\] but no array named 'x' \(or 'data'\)"),
    ({"x": X, "y": np.arange(3), "label": np.arange(3)}, ValueError, "holds both 'label' and 'y'"),
    ({"x": X, "y": np.ones(3)}, TypeError, r"Labels in .* are float64, wanted integers .*astype\('int64'\)"),
    ({"x": X, "y": np.arange(4)}, ValueError, r"Labels in .* have shape \(4,\), wanted \(3,\)"),
    ({"x": X, "y": np.arange(3) - 1}, ValueError, "Labels in .* start at -1, wanted integers 0, 1"),
]


@pytest.mark.parametrize(("arrays", "error", "text"), BAD)
def test_a_bad_array_in_a_file_is_refused_with_advice(tmp_path, arrays, error, text):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(error, match=text):
        load_array(tmp_path / "a.npz")
    if list(arrays) == ["x"]:
        np.save(tmp_path / "a.npy", arrays["x"])
        with pytest.raises(error, match=text):
            load_array(tmp_path / "a.npy")


def test_a_file_that_is_missing_or_of_another_kind_or_damaged_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No data file at .*x.npy. Give the path"):
        load_array(tmp_path / "x.npy")
    (tmp_path / "dir.npy").mkdir()
    with pytest.raises(FileNotFoundError, match="No data file at"):
        load_array(tmp_path / "dir.npy")
    with pytest.raises(ValueError, match=r"must be a .npy or .npz file, got 'x.csv'. Save yours with numpy.save"):
        load_array(tmp_path / "x.csv")
    np.save(tmp_path / "whole.npy", np.ones((100, 2)))
    np.savez_compressed(tmp_path / "whole.npz", x=np.random.default_rng(0).normal(size=(100, 2)))
    for suffix in (".npy", ".npz"):
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        flipped = whole[:300] + bytes(255 - b for b in whole[300:400]) + whole[400:]
        contents = [b"", b"not an array", whole[: len(whole) // 2], whole[:4]]
        for content in [*contents, flipped] if suffix == ".npz" else contents:
            (tmp_path / f"bad{suffix}").write_bytes(content)
            with pytest.raises(ValueError, match=r"bad.* cannot be read as \.np.: .*Save it again"):
                load_array(tmp_path / f"bad{suffix}")
