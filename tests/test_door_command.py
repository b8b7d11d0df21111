"""Claim: the command line refuses what spoils a column, and tells of marks and of conditions far off."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sde_diffusion.cli import main as cli
from sde_diffusion.data.held_out import _kept_out
from sde_diffusion.training.checkpoint import load_checkpoint

RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(400, 3))


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str]:
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # as outside of the tests, where they are no errors
            status = cli.main([str(word) for word in words])
        told = capsys.readouterr()
        return status, told.err + told.out

    return run


def train(call, x, *words, cond=None) -> tuple[int, str]:
    np.savez("x.npz", x=x, **({} if cond is None else {"context": cond}))
    return call("train", "--data", "x.npz", "--out", "m", "--steps", 2, "--width", 8, "--overwrite", *words)


def test_a_row_that_spoils_a_column_is_refused_by_its_number_unless_scaled_by_quantiles(call):
    x = X.copy()
    x[377, 1] = 1e30
    status, said = train(call, x)
    assert status == 2
    assert "error: column 1 of --data: row 377 holds 1e+30, far from the bulk" in said
    for scale in ("quantile", "none"):
        status, said = train(call, x, "--scale", scale)
        assert status == 0
        assert said.count("row 377 holds 1e+30") == 1


def test_a_column_that_is_an_image_of_another_is_refused(call):
    x = np.concatenate([X, 2 * X[:, :1] - 1], 1)
    status, said = train(call, x)
    assert status == 2
    assert "error: column 3 of --data is 2 * column 0 - 1: together they have no density" in said
    status, said = train(call, x, "--scale", "none")
    assert status == 0
    assert "warning: column 3 of --data is 2 * column 0 - 1" in said


def test_marks_are_told_of_in_data_and_in_conditions_in_the_units_of_the_file(call):
    x, cond = X.copy(), RANDOM.normal(size=(400, 2))
    x[::20, 2], cond[::40, 1] = -999, 9999
    status, said = train(call, x, cond=cond)
    assert status == 0
    assert said.count("column 2 of --data is -999 in 20 rows, first in row 0") == 1
    assert said.count("column 1 of the condition context is 9999 in 10 rows, first in row 0") == 1


def test_a_condition_far_from_all_in_the_training_is_told_of(call):
    status, _ = train(call, X, cond=RANDOM.uniform(10, 20, size=(400, 2)))
    assert status == 0
    sample = ("sample", "--checkpoint", "m", "--n", 2, "--steps", 2, "--out", "s.npy", "--cond")
    for text in ("context=10,20", "context=8,22"):
        status, said = call(*sample, text)
        assert status == 0
        assert "far from all" not in said
    status, said = call(*sample, "context=15,90")
    assert status == 0
    assert "--cond context: entry 1 of row 0 is 90, far from all in the training, which lay from 10.0" in said
    np.savez("y.npz", x=X[:3], context=np.array([[15.0, 15], [15, 15], [-400, 15]]))
    status, said = call("likelihood", "--checkpoint", "m", "--data", "y.npz", "--out", "l.json")
    assert "--cond context: entry 0 of row 2 is -400, far from all in the training" in said
    assert len(load_checkpoint(Path("m")).extra["ranges"]["context"]) == 2


def test_a_condition_far_off_is_known_without_the_range_by_its_distance(call, monkeypatch):
    train(call, X, cond=RANDOM.normal(size=(400, 2)))
    loaded = load_checkpoint(Path("m"))
    loaded.extra.pop("ranges")
    from sde_diffusion.cli.conditions import given_conditions

    given_conditions(["context=5,-5"], loaded)
    with pytest.warns(UserWarning, match="entry 0 of row 0 is 7, far from all in the training: the model"):
        given_conditions(["context=7,0"], loaded)


def of_table(call, columns, *words) -> tuple[int, str]:
    pd.DataFrame(columns).to_csv("t.csv", index=False)
    return call("train", "--data", "t.csv", "--out", "m", "--steps", 2, "--width", 8, "--overwrite", *words)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (-1, "row 250 has the label -1, and classes"),
        (77, "of 78 classes without a sample; row 250 has 77: correct it"),
    ],
)
def test_a_label_that_is_no_class_is_refused_by_its_row(call, wrong, text):
    label = np.where(np.arange(400) == 250, wrong, np.arange(400) % 3)
    status, said = of_table(call, {"a": X[:, 0], "b": X[:, 1], "label": label}, "--cond", "label")
    assert (status, text in said) == (2, True), said


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (X.astype(np.complex64), "'x' holds complex64, wanted real numbers: save real and imaginary parts"),
        (np.full((60, 2), 2**64 - 1, np.uint64), "'x' holds 18446744073709551615, beyond int64: take an offset"),
        (np.full((60, 2), 2**51) - np.arange(120).reshape(60, 2), "column 0 of --data holds 2251799813685248 in row 0"),
        (X[:0], "x.npy is empty: its shape is (0, 3), wanted (N, *shape) with N >= 1"),
        (X[:1], "--data x.npy has 1 row: a model is learnt from many"),
    ],
)
def test_an_array_that_is_no_data_is_refused_with_a_sentence(call, x, text):
    np.save("x.npy", x)
    status, said = call("train", "--data", "x.npy", "--out", "m", "--steps", 2)
    assert (status, text in said) == (2, True), said


def test_whole_numbers_of_any_width_are_data(call):
    for dtype in (np.uint16, np.uint32, np.uint64, np.int16):
        np.save("x.npy", RANDOM.integers(0, 3000, (60, 2)).astype(dtype))
        assert call("train", "--data", "x.npy", "--out", "m", "--steps", 1, "--width", 8, "--overwrite")[0] == 0


def test_labels_alone_are_no_data(call):
    np.savez("x.npz", y=X)
    status, said = call("train", "--data", "x.npz", "--out", "m", "--steps", 2)
    assert (status, "holds ['y'] but no array named 'x'" in said) == (2, True), said


def test_a_column_that_is_constant_in_the_rows_to_train_on_alone_is_told_so(call):
    c = np.ones(400)
    c[_kept_out(400, None, 64, 0)] = RANDOM.normal(size=64)
    status, said = of_table(call, {"a": X[:, 0], "c": c})
    assert (status, "at 1: leave it out; the rows kept out for validation have others there" in said) == (
        2,
        True,
    )
    status, said = of_table(call, {"a": X[:, 0], "c": np.ones(400)})
    assert (status, "is constant at 1: leave it out\n" in said) == (2, True), said


def test_a_condition_that_is_not_known_at_times_is_trained_with_from_the_first_row_on(call):
    context = np.where(np.arange(400) % 9 == 0, np.nan, X[:, 2] + 5)
    status, said = of_table(call, {"a": X[:, 0], "b": X[:, 1], "c": context}, "--cond", "c")
    assert status == 0
    assert re.search(r"next: .* sample --checkpoint m --cond context=[4-6]\S* --out", said), said


def test_a_summary_is_in_the_units_of_the_data_too_and_names_columns_of_whole_numbers(call):
    status, said = of_table(call, {"a": 100 * X[:, 0], "b": X[:, 1], "age": RANDOM.integers(0, 90, 400)})
    assert status == 0
    assert "whole numbers are taken as they are, without points in their bins, in column 'age'" in said
    own, scaled = map(float, re.findall(r"whose model is kept: (\S+) nats in the units of --data, (\S+) as", said)[0])
    scaling: Any = load_checkpoint("m").scaling
    assert own - scaled == pytest.approx(float(scaling.std.log().sum()), abs=2e-4)  # - log p(x) = - log p(z) + log std
