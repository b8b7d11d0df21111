"""Claim: a split is a function of the seed, class by class, with no part empty; whole numbers get fresh bins."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from sde_diffusion.data import Dequantised, Rows, Standardise, split
from sde_diffusion.likelihood.decoder import Bins


@pytest.mark.parametrize(
    ("n", "fraction", "kept"),
    [(2, 0.01, 1), (2, 0.99, 1), (100, 0.25, 25), (178, 0.1, 18), (120, None, 30), (500, None, 64), (1000, None, 100)],
)
def test_both_parts_have_rows_and_share_none(n, fraction, kept):
    x = torch.arange(float(n))[:, None]
    a, b = (part.rows(torch.arange(len(part))).x for part in split(x, fraction, 0))
    assert len(b) == kept
    assert torch.equal(torch.cat([a, b]).sort(0).values, x)
    if n == 100:
        again, other = (split(x, fraction, seed)[1].rows(torch.arange(kept)).x for seed in (0, 1))
        assert torch.equal(again, b)
        assert not torch.equal(other, b)


def test_every_class_is_split_in_its_share_to_within_one_row():
    label = torch.tensor([0] * 50 + [1] * 30 + [2] * 7 + [3])
    train, test = split(torch.arange(88.0)[:, None], 0.3, 5, label=label)
    counts = test.labels().bincount(minlength=4)  # type: ignore[union-attr]  # there are labels
    assert len(test) == 26
    assert ((counts - label.bincount() * 26 / 88).abs() < 1).all()
    x, cond = train.rows(torch.arange(len(train)))
    assert torch.equal(cond["label"], label[x[:, 0].long()])
    assert torch.equal(torch.cat([b.cond["label"] for b in train.chunks(7)]), cond["label"])


def test_what_cannot_be_split_is_refused():
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]  # of anything
        def __iter__(self):
            yield torch.zeros(1)

    x = torch.zeros(4, 1)
    for make, kind, text in (
        (lambda: split(x[:1]), ValueError, "the data have 1 row, and two parts need 2 or more"),
        (lambda: split(x, 1.0), ValueError, "fraction is the share that is kept out and must lie between 0 and 1"),
        (lambda: split(x, 0.1, -1), ValueError, "seed must be at least 0"),
        (lambda: split(Stream()), TypeError, "Stream is a stream, whose rows have no numbers to split them by"),
    ):
        with pytest.raises(kind, match=text):
            make()


def test_bytes_get_a_fresh_point_in_their_bin_and_come_back():
    v = torch.arange(256, dtype=torch.uint8).repeat(40).reshape(10, 1, 32, 32)
    make = Dequantised.levels(256)
    x, y = (make(v, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert x.dtype == torch.float32
    assert torch.equal(make(v, torch.Generator().manual_seed(0)), x)
    assert not torch.equal(x, y)
    assert torch.equal(make.quantise(x), v.double())
    bins = Bins.tiling(256)  # of the likelihood of values
    assert make.width == bins.width
    u = (x.double() - bins.centre(v.long(), torch.float64)) / bins.width + 0.5
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3


def test_columns_of_whole_numbers_are_dequantised_and_then_scaled():
    table = torch.stack([torch.arange(50.0), torch.linspace(0, 1, 50), torch.arange(50.0) % 3], 1).double()
    scaling = Standardise.of(table)
    make = Dequantised(columns=(0, 2), scaling=scaling)
    z = make(table, torch.Generator().manual_seed(0))
    assert torch.allclose(z[:, 1], scaling.apply(table)[:, 1])
    moved = scaling.undo(z.double()) - table
    assert (moved[:, [0, 2]].abs() < 0.5).all()
    assert moved[:, [0, 2]].abs().max() > 0.4
    assert torch.allclose(make.quantise(z), table, atol=1e-6)
    assert Dequantised.of(table, scaling) == Dequantised.of(Rows(table), scaling) == make
    assert Dequantised.of(torch.zeros(3, 2, dtype=torch.uint8)).columns == (0, 1)
    with pytest.raises(ValueError, match="no column of the data is of whole numbers"):
        Dequantised.of(table + 0.5)
    assert torch.equal(make.quantise(z)[:, [0, 2]], table[:, [0, 2]])
    with pytest.raises(ValueError, match=r"row 1 of the batch holds 0.0204082, which is no whole number: name the"):
        Dequantised()(table, torch.Generator())
    with pytest.raises(ValueError, match=r"columns \(3,\) are not all among the 3 of the data"):
        Dequantised(columns=(3,))(table, torch.Generator())
    with pytest.raises(ValueError, match="width must be positive"):
        Dequantised(width=0.0)


def test_whole_numbers_too_large_for_points_between_them_are_refused_by_row():
    x = torch.tensor([[3, 2**40], [-(2**60), 5]])
    with pytest.raises(ValueError, match=r"row 1 .* holds -1152921504606846976, beyond 2\*\*50, where float64"):
        Dequantised()(x, torch.Generator().manual_seed(0))
    found = Dequantised(dtype=torch.float64)(torch.tensor([[2**50]]), torch.Generator().manual_seed(0))
    assert abs(float(found) - 2**50) <= 0.5
