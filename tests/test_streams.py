"""Claim: a stream gives the same batches whatever the number of processes and wherever a run goes on; a `DataLoader` of
the usual kind is rows by number.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from sde_diffusion import VPSDE, Network, predict
from sde_diffusion.data.source import Source, Stream, source_of
from sde_diffusion.nets import MLP
from sde_diffusion.training import Recipe, train

X = torch.arange(20.0).reshape(10, 2)
Y = torch.arange(10)


class Count(IterableDataset[Any]):
    """`n` items, each with its number."""

    def __init__(self, n=10):
        self.n = n

    def __iter__(self):
        return ((X[i], i) for i in range(self.n))


class Stateful(Count):
    """One that goes on where it stands."""

    at = reads = 0

    def __iter__(self):
        while self.at < self.n:
            self.at += 1
            self.reads += 1
            yield X[self.at - 1], self.at - 1
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Items(Dataset[Any]):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        return X[i], int(Y[i])


def stream_of(data: Any) -> Stream:
    stream = source_of(data)
    assert isinstance(stream, Stream)
    return stream


def labels(batches, n):
    return [batch.cond["label"].tolist() for batch in islice(batches, n)]


@pytest.mark.parametrize("kind", [Count, Stateful])
def test_items_are_cut_into_full_batches_across_passes(kind):
    stream = stream_of(kind())
    assert stream.shape == (2,)
    wanted = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5]]
    assert labels(stream.batches(4), 4) == wanted
    assert labels(stream_of(kind()).batches(4, skip=2), 2) == wanted[2:]
    shares = [labels(stream_of(kind()).batches(4, rank=r, ranks=3), 4) for r in range(3)]
    assert [a + b + c for a, b, c in zip(*shares, strict=True)] == wanted


def test_a_stream_with_a_state_goes_on_without_reading_again():
    first = stream_of(Stateful())
    batches = first.batches(4)
    assert labels(batches, 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    state = first.state()
    data = Stateful()
    again = stream_of(data)
    assert state is not None
    again.restore(state)
    assert labels(again.batches(4), 2) == [[8, 9, 0, 1], [2, 3, 4, 5]]
    assert data.reads < 20 + 10  # those of the look at the first rows, and no more
    assert stream_of(Count()).state() is None
    with pytest.raises(TypeError, match="Count has no load_state_dict, and cannot go on where a run ended"):
        stream_of(Count()).restore({})


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Count(), batch_size=4),
        DataLoader(Items(), batch_size=4, sampler=WeightedRandomSampler([1.0] * 10, 10)),
        DataLoader(Items(), batch_size=4, sampler=RandomSampler(Items(), replacement=True)),
        DataLoader(Items(), batch_sampler=[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]),
    ],
    ids=["IterableDataset", "weighted", "with replacement", "batch sampler"],
)
def test_a_loader_with_an_order_of_its_own_gives_its_batches(loader):
    stream = stream_of(loader)
    assert stream.shape == (2,)
    batches = list(islice(stream.batches(999), 4))
    assert [len(batch.x) for batch in batches] == [4, 4, 2, 4]
    for x, cond in batches:
        assert torch.equal(x, X[cond["label"]])
    torch.manual_seed(0)
    wanted = labels(stream.batches(1), 4)
    shares = []
    for rank in range(2):
        torch.manual_seed(0)
        shares.append(labels(stream.batches(1, rank=rank, ranks=2), 4))
    assert [a + b for a, b in zip(*shares, strict=True)] == wanted


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("data", [TensorDataset(X, Y), Items()], ids=["tensors", "items"])
@pytest.mark.parametrize("own", [False, True], ids=["default", "collate_fn"])
def test_a_usual_loader_is_taken_apart(data, shuffle, own):
    def twice(items):
        return {"x": torch.stack([x for x, _ in items]) * 2, "label": torch.tensor([int(y) for _, y in items])}

    source = source_of(DataLoader(data, batch_size=3, shuffle=shuffle, collate_fn=twice if own else None))
    assert isinstance(source, Source)
    assert (len(source), source.shape, source.batch_size) == (10, (2,), 3)
    x, cond = source.rows(torch.tensor([7, 7, 1]))
    assert torch.equal(x, X[[7, 7, 1]] * (2 if own else 1))
    assert cond["label"].tolist() == [7, 7, 1]


def test_the_same_rows_train_the_same_network_whatever_they_come_as(tmp_path):
    x, y = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    np.save(tmp_path / "x.npy", x.numpy())
    forms: list[tuple[Any, dict[str, Any]]] = [
        (x, {"label": y}),
        (x.tolist(), {"label": y.tolist()}),
        (np.load(tmp_path / "x.npy", mmap_mode="r"), {"label": y.numpy()}),
        (TensorDataset(x, y), {}),
        (DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True), {}),
        (DataLoader([{"x": a, "label": int(b)} for a, b in zip(x, y, strict=True)]), {}),  # type: ignore[arg-type]
    ]
    found = []
    for data, cond in forms:
        torch.manual_seed(0)
        model = Network(MLP(2, hidden=8, layers=1, classes=3), VPSDE(), predict.edm, shape=(2,))
        run = train(model, data, steps=3, recipe=Recipe(batch_size=16), seed=0, **cond)
        found.append(torch.cat([p.flatten() for p in run.model.parameters()]))
    assert all(torch.equal(weights, found[0]) for weights in found)


@pytest.mark.slow
def test_workers_read_the_same_batches_ahead():
    loader = DataLoader(Items(), num_workers=2)
    for source in (source_of(loader), source_of(loader, {"number": Y})):
        assert isinstance(source, Source)
        wanted = [torch.tensor([i, (3 * i) % 10, 9 - i]) for i in range(10)]
        before = torch.random.get_rng_state()
        for numbers, (x, cond) in zip(wanted, source.batches(iter(wanted)), strict=True):
            assert torch.equal(x, X[numbers])
            assert torch.equal(cond["label"], numbers)
            assert torch.equal(cond.get("number", numbers), numbers)
        assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_no_stream_of_rows_is_refused():
    loader = DataLoader(Items(), sampler=DistributedSampler(Items(), num_replicas=2, rank=0))
    once = iter([(X[0], 0)])

    class Once(IterableDataset[Any]):
        def __iter__(self):
            return once

    class Uneven(IterableDataset[Any]):
        def __iter__(self):
            yield from (torch.zeros(2 + i // 1200) for i in range(2400))

    ragged = DataLoader(TensorDataset(X), batch_sampler=[[0], [1]], collate_fn=lambda b: torch.zeros(1, next(sizes)))
    sizes = iter([2, 2, 3])
    cases = [
        (lambda: source_of(Count(), {"label": Y}), TypeError, "Count is a stream, whose rows have no numbers"),
        (
            lambda: source_of(loader),
            ValueError,
            "the DataLoader has a DistributedSampler, and training shares the rows",
        ),
        (lambda: stream_of(Count(0)).first(), ValueError, "Count holds nothing: it gave no item"),
        (lambda: next(stream_of(Once()).batches(1)), ValueError, "Once holds nothing, or nothing on a second pass"),
        (
            lambda: list(islice(stream_of(Uneven()).batches(1000), 2)),
            ValueError,
            r"item 1200 of the data has shape \(3,\)",
        ),
        (lambda: next(stream_of(Count()).batches(2, ranks=3)), ValueError, "2 rows cannot be shared by 3 processes"),
        (
            lambda: list(islice(stream_of(ragged).batches(1), 2)),
            ValueError,
            r"batch 1 of the DataLoader has rows of shape",
        ),
        (lambda: stream_of(DataLoader(Items(), batch_sampler=[])).first(), ValueError, "it gave no batch"),
    ]
    for make, kind, text in cases:
        with pytest.raises(kind, match=text):
            make()
