"""Claim: the rows of step i are a function of the seed and i; every epoch has each row once, every batch is full."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion.data import order
from sde_diffusion.data.order import Order


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("n", "size"), [(1, 5), (7, 3), (10, 10), (64, 100), (1000, 7), (70_000, 1000)])
def test_every_epoch_has_each_row_once(n, size, large, monkeypatch):
    if large:
        monkeypatch.setattr(order, "LARGE", 0)
    order._block.cache_clear()
    steps = -(-2 * n // size)
    rows = torch.cat([Order(n, size, 3).rows(i) for i in range(steps)])
    assert rows.shape == (steps * size,)
    assert torch.equal(rows[:n].sort().values, torch.arange(n))
    assert torch.equal(rows[n : 2 * n].sort().values, torch.arange(n))
    if n > 5:
        assert not torch.equal(rows[:n], torch.arange(n))
        assert not torch.equal(rows[:n], rows[n : 2 * n])
        assert not torch.equal(rows[:n], torch.cat([Order(n, size, 4).rows(i) for i in range(steps)])[:n])
    order._block.cache_clear()


@pytest.mark.parametrize("n", [100, 2**23 + 3])
def test_a_step_needs_none_before_it(n):
    first, again = Order(n, 32, 0), Order(n, 32, 0)
    wanted = [first.rows(i) for i in (0, 1, 2, 3, 4)]
    assert torch.equal(again.rows(4), wanted[4])
    assert torch.equal(again.rows(1), wanted[1])
    assert again.rows(10**6).max() < n


def test_the_order_of_many_rows_is_as_random_as_a_draw():
    # 3 million places of 8 million rows: a permutation has mean correlation 0 of place and row, and of neighbours
    n, some = 2**23 + 3, 2**16
    rows = torch.cat([Order(n, some, 1).rows(i) for i in range(16)]).double() / n - 0.5
    se = 1 / 12 / len(rows) ** 0.5
    place = torch.linspace(-0.5, 0.5, len(rows), dtype=torch.float64)
    print(float((rows * place).mean() / se), float((rows[1:] * rows[:-1]).mean() / se))
    assert abs(float(rows.mean())) < 4 * (1 / 12 / len(rows)) ** 0.5
    assert abs(float((rows * place).mean())) < 4 * se
    assert abs(float((rows[1:] * rows[:-1]).mean())) < 4 * se
    counts = torch.histc(rows, bins=64).double()
    assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < 63 + 4 * (2 * 63) ** 0.5


@pytest.mark.parametrize(("n", "size", "seed"), [(0, 1, 0), (1, 0, 0), (1, 1, -1), (1, 1, 0.5)])
def test_what_is_no_order_is_refused(n, size, seed):
    with pytest.raises((ValueError, TypeError), match="must be"):
        Order(n, size, seed)
