"""Claim: the command line refuses what spoils a column, and tells of marks and of conditions far off."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from sde_diffusion.cli import main as cli
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
        return status, capsys.readouterr().err

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
