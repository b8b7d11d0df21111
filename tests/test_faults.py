"""Claim: data that would train into a wrong model are told of by column, row and value; honest heavy tails are not."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch

from sde_diffusion import EDMSDE, Network, predict
from sde_diffusion.data import split
from sde_diffusion.data.faults.extremes import is_code
from sde_diffusion.data.faults.look import ColumnWarning, Fault, Look
from sde_diffusion.data.faults.overlap import Overlap
from sde_diffusion.data.source import source_of
from sde_diffusion.data.sources.arrays import Rows
from sde_diffusion.nets import MLP
from sde_diffusion.training import train

NAMES = ("age", "dose", "mass")
RANDOM = np.random.default_rng(5)
X = torch.from_numpy(RANDOM.normal(size=(3000, 3)))


def looked(x, **options) -> list[Fault]:
    look = Look(names=NAMES, **options)
    for part in torch.as_tensor(x).split(701):
        look.add(part)
    return look.faults()


def changed(column: int, rows, value: float) -> torch.Tensor:
    x = X.clone()
    x[rows, column] = value
    return x


def test_sound_columns_have_no_fault():
    for x in (X, X.float(), X[:5], X[:, :1], X[:, 0], X.reshape(1500, 2, 3, 1), torch.ones(400, 2), X * 0):
        assert looked(x) == []
    assert looked(X * torch.nan, condition=True) == []
    some = torch.where(X > 1, torch.nan, X)
    assert looked(some, condition=True) == []


@pytest.mark.parametrize("value", [1e30, -1e30, 1e6])
def test_one_value_that_spoils_its_column_is_named_with_its_row(value):
    (fault,) = looked(changed(1, 2345, value))
    assert fault.text.startswith(f"column 'dose' of the data: row 2345 holds {value:.6g}, far from the bulk, -3.")
    assert "of whose spread nothing is left once the column is divided by its standard deviation" in fault.text
    assert fault.spoils
    assert fault.columns == (1,)


def test_a_value_far_off_that_leaves_something_of_the_others_spoils_nothing():
    (fault,) = looked(changed(1, [7, 9], 700.0))
    assert "row 7 holds 700, far" in fault.text
    assert "of whose spread 0.0" in fault.text
    assert not fault.spoils
    (fault,) = looked(changed(0, 3, 9e8), condition=True)
    assert "correct or drop the row, or write NaN, or, where tails are meant to be so heavy" in fault.text


def test_what_rounding_has_made_one_value_of_is_named_by_the_row_that_differs():
    x = changed(1, 2345, 1e30)
    (fault,) = looked(((x - x.mean(0)) / x.std(0)).float())
    assert re.search(r"row 2345 holds 54\.7\d+, and all others -0\.0\d+: correct or drop the row, or leave", fault.text)


HONEST = {
    "student": lambda n: RANDOM.standard_t(2, n),
    "log-normal": lambda n: np.exp(2 * RANDOM.normal(size=n)),
    "zero-inflated": lambda n: np.where(RANDOM.random(n) < 0.7, 0.0, np.exp(RANDOM.normal(size=n))),
    "apart": lambda n: np.where(RANDOM.random(n) < 0.5, 0.0, 1e4 + RANDOM.normal(size=n)),
    "counts": lambda n: 1.0 * RANDOM.poisson(3, n),
    "modes": lambda n: np.where(RANDOM.random(n) < 0.5, 0.0, 10.0) + 1e-3 * RANDOM.normal(size=n),
}


@pytest.mark.parametrize("kind", HONEST)
@pytest.mark.parametrize("n", [30, 300, 3000])
def test_honest_columns_however_heavy_are_never_refused_and_hardly_told_of(kind, n):
    x = np.stack([HONEST[kind](n) for _ in range(100)], 1)
    look = Look()
    look.add(torch.from_numpy(x))
    found = look.extremes.found()
    print(kind, n, len(found))
    assert not any(fault.spoils for fault in look.faults())
    assert kind == "apart" or len(found) <= 10  # of 100: Student and log-normal columns of 300 rows


@pytest.mark.parametrize(
    ("mark", "scale"), [(-999.0, 1.0), (9999.0, 50.0), (-99.0, 1.0), (123.0, 1.0), (-999.0, 100.0)]
)
def test_a_mark_for_what_is_missing_is_named_with_its_rows(mark, scale):
    x = scale * X
    x[5::60, 2] = mark
    (fault,) = looked(x)
    assert fault.text.startswith(f"column 'mass' of the data is {mark:g} in 50 rows, first in row 5, far from all")
    assert fault.text.endswith("If it stands for one that is missing, drop those rows: only conditions may be missing")
    assert looked(x, condition=True)[0].text.endswith("write NaN, which is not known")
    assert not fault.spoils


def test_several_marks_and_columns_are_told_of_at_once_and_in_pixels():
    x = X.clone()
    x[::50, 0], x[1::100, 0], x[2::300, 1] = -999.0, 9999.0, -9999.0
    (fault,) = looked(x)
    assert "'age' of the data is -999 in 60 rows, 9999 in 30 rows, first in row 0" in fault.text
    assert fault.text.endswith("; likewise 'dose'")
    (fault,) = looked(x[:, :2].reshape(750, 2, 2, 2))
    assert fault.text.startswith("channel 'age' of the data is -999 in 30 places")


def test_numbers_in_nines_are_marks():
    assert all(map(is_code, (-999.0, 99.0, 9999.0, -999.9, -32768.0)))
    assert not any(map(is_code, (9.0, 0.0, 990.0, 1e30, -998.0)))


def test_columns_that_follow_from_others_are_named():
    x = X.clone()
    x[:, 2] = 1.8 * x[:, 0] + 32
    for kind in (torch.float64, torch.float32):
        (fault,) = looked(x.to(kind))
        assert fault.text.startswith("column 'mass' of the data is 1.8 * column 'age' + 32: together they have no")
        assert fault.spoils
    x[:, 2] = x[:, 1]
    assert "column 'mass' of the data is column 'dose': together" in looked(x)[0].text
    x[:, 2] += 1e-4 * X[:, 2]
    (fault,) = looked(x)
    assert "is column 'dose', up to 0.0001 of its spread: " in fault.text
    assert not fault.spoils
    x[:, 2] = X[:, 1] + 0.01 * X[:, 2]
    assert looked(x) == []
    x[:, 2] = 1 - x[:, 0] - x[:, 1]
    (fault,) = looked(x)
    assert re.search("' of the data follows from others, a sum of multiples of '.*', '.*', '.*' being", fault.text)
    for options in ({"condition": True}, {"whole": True}):
        assert looked(x, **options) == []


# --- rows kept out


def overlap(x, val) -> str | None:
    found = Overlap(Rows(val))
    for part in torch.as_tensor(x).split(701):
        found.add(part)
    return found.fault()


def test_rows_kept_out_that_are_trained_on_are_told_of():
    text = overlap(X, X[100:600])
    assert text is not None
    assert text.startswith("val holds rows that are trained on: 500 of 500 that were looked for, row 0 of val for one")
    assert "row 0 of val for one is row 100 of the data" in text
    assert overlap(X.float(), X[100:600]) is not None
    assert overlap(X, torch.cat([X[:4], X[:396] + 1])) is None  # four of them come twice
    assert overlap(X[600:], X[:600]) is None
    dice = torch.from_numpy(RANDOM.integers(0, 6, (3000, 2)))
    assert overlap(dice[600:], dice[:600]) is None  # alike by chance
    bytes_ = torch.from_numpy(RANDOM.integers(0, 256, (500, 1, 4, 4))).byte()
    assert overlap(bytes_, bytes_[:100]) is not None


def told(x, **options) -> list[warnings.WarningMessage]:
    torch.manual_seed(0)
    model = Network(MLP(3, hidden=8), EDMSDE(0.01, 20.0), predict.edm, shape=(3,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, x, steps=1, seed=0, **options)  # a batch with what is spoilt in it may be left out, and told of
    return caught


def test_a_training_tells_of_them_and_not_of_the_scale_of_what_is_spoilt():
    x = X.float()
    (one,) = told(x, val=x[::2])
    assert "val holds rows that are trained on" in str(one.message)
    assert told(x[:2000], val=x[2000:]) == []
    assert told(*split(x)[:1], val=split(x)[1]) == []
    (one,) = told(changed(1, 7, 1e15).float())
    assert one.category is ColumnWarning
    assert "column 1 of the data: row 7 holds 1e+15" in str(one.message)
    (one,) = told(source_of(torch.stack([x[:, 0], x[:, 1], x[:, 0]], 1)))
    assert "column 2 of the data is column 0: together" in str(one.message)
