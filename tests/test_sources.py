"""Claim: data of any kind are rows by number, with their conditions; what does not fit is refused by its number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from sde_diffusion.data.source import Source, source_of

X = torch.arange(12.0).reshape(6, 2)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
NUMBERS = torch.tensor([5, 0, 0])


class Own(Dataset[Any]):
    """Items made by a function of their number."""

    def __init__(self, item, n=6):
        self.item, self.n = item, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.item(i)


class Counted:
    """Items, and no data set of PyTorch."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return {"x": X[i].tolist(), "label": int(Y[i])}


def rows_of(data: Any, cond: Any = None) -> Source:
    source = source_of(data, cond)
    assert isinstance(source, Source)
    return source


LABELLED: dict[str, Any] = {
    "tensor": (X, {"label": Y}),
    "array": (X.numpy(), {"label": Y.numpy()}),
    "big-endian array": (X.numpy().astype(">f8"), {"label": Y.tolist()}),
    "array read backwards": (X.numpy()[::-1].copy()[::-1], {"label": tuple(Y.tolist())}),
    "list": (X.tolist(), {"label": Y.tolist()}),
    "mapping": ({"x": X, "label": Y}, {}),
    "list of items": ([(X[i], int(Y[i])) for i in range(6)], {}),
    "list of tensors": (list(X), {"label": Y}),
    "what has items": (Counted(), {}),
    "TensorDataset": (TensorDataset(X, Y), {}),
    "Subset": (Subset(TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), list(range(6))), {}),
    "pairs with an integer": (Own(lambda i: (X[i], int(Y[i]))), {}),
    "pairs with a NumPy integer": (Own(lambda i: (X[i].numpy(), np.int64(Y[i]))), {}),
    "pairs with a tensor": (Own(lambda i: (X[i], Y[i])), {}),
    "pairs with a mapping": (Own(lambda i: (X[i], {"label": Y[i]})), {}),
    "mappings": (Own(lambda i: {"x": X[i].tolist(), "label": int(Y[i])}), {}),
    "items beside labels": (Own(lambda i: X[i]), {"label": Y}),
    "1-tuples beside labels": (Own(lambda i: (X[i],)), {"label": Y}),
}


@pytest.mark.parametrize("kind", LABELLED)
def test_rows_come_by_number_with_their_labels(kind):
    source = rows_of(*LABELLED[kind])
    assert (len(source), source.shape) == (6, (2,))
    x, cond = source.rows(NUMBERS)
    assert torch.equal(x.float(), X[NUMBERS])
    assert torch.equal(cond["label"], Y[NUMBERS])
    chunks = list(source.chunks(4))
    assert [len(batch.x) for batch in chunks] == [4, 2]
    assert torch.equal(torch.cat([batch.x for batch in chunks]).float(), X)
    assert torch.equal(torch.cat([batch.cond["label"] for batch in chunks]), Y)


def test_conditions_may_be_of_any_kind_and_depth():
    cond = {
        "context": X.double(),
        "deep": {"a": {"b": Y}, "words": list("uvwxyz")},
        "pairs": [(i, "p") for i in range(6)],
    }
    for source in (rows_of(X, cond), rows_of(Own(lambda i: X[i]), cond)):
        got = source.rows(NUMBERS).cond
        assert torch.equal(got["context"], X[NUMBERS].double())
        assert torch.equal(got["deep"]["a"]["b"], Y[NUMBERS])
        assert got["deep"]["words"] == ["z", "u", "u"]
        assert got["pairs"] == [(5, "p"), (0, "p"), (0, "p")]


BAD = {
    "no tensor": (lambda: source_of(3), TypeError, "the data are int: wanted a tensor or an array"),
    "no length": (lambda: source_of(type("Endless", (), {"__getitem__": 0})()), TypeError, "Endless has no length"),
    "no rows": (lambda: source_of(X[:0]), ValueError, r"the data are empty: their shape is \(0, 2\)"),
    "objects": (
        lambda: source_of(np.array([np.zeros(2), np.zeros(3)], dtype=object)),
        TypeError,
        r"the data holds object, wanted numbers: its rows differ in shape, such as \(2,\) and \(3,\)",
    ),
    "a path": (lambda: source_of("x.npy"), TypeError, "the data are str: .*data.open_data opens files"),
    "ragged rows": (
        lambda: source_of([torch.zeros(2), torch.zeros(3)]),
        ValueError,
        r"item 1 of the data has shape \(3,\), and the first \(2,\)",
    ),
    "ragged lists": (lambda: source_of([[1.0], [1.0, 2.0]]), ValueError, "the data are rows of unlike shape"),
    "strings": (lambda: source_of(np.array(["a"])), TypeError, "the data holds <U1, wanted numbers: turn it into"),
    "too few labels": (
        lambda: source_of(X, {"label": Y[:5]}),
        ValueError,
        "condition 'label' has 5 rows, and the data have 6",
    ),
    "deep": (
        lambda: source_of(X, {"a": {"b": Y, "c": Y[:1]}}),
        ValueError,
        "condition 'a.c' has 1 rows, and the data have 6",
    ),
    "a number": (lambda: source_of(X, {"a": 3}), TypeError, "condition 'a' is int 3 and has no rows"),
    "given twice": (
        lambda: source_of(TensorDataset(X, Y), {"label": Y}),
        ValueError,
        "condition 'label' is given twice, with the rows of the data and beside them",
    ),
    "empty data set": (
        lambda: source_of(Own(lambda i: X[i], 0)),
        ValueError,
        "the data set is empty: Own has no items",
    ),
    "an unnamed vector": (
        lambda: source_of(Own(lambda i: (X[i], X[i]))),
        TypeError,
        r"a pair whose second entry is torch.float32 of shape \(2,\), and it is unclear",
    ),
    "triples": (lambda: source_of(Own(lambda i: (X[i], 1, 2))), TypeError, "is a tuple of 3, wanted a tensor"),
    "no x": (lambda: source_of(Own(lambda i: {"y": X[i]})), TypeError, r"a mapping of \['y'\] without 'x'"),
    "a string": (lambda: source_of(Own(lambda i: "a")), TypeError, "item 0 of the data is str, wanted a tensor"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_data_is_refused_with_a_sentence(case):
    make, kind, text = BAD[case]
    with pytest.raises(kind, match=text):
        make()


def test_an_item_that_fails_or_differs_is_named_by_its_number():
    def item(i):
        if i == 4:
            raise KeyError("gone")
        return torch.zeros(3 if i == 3 else 2)

    source = rows_of(Own(item))
    with pytest.raises(ValueError, match="item 4 of the data set cannot be read: Own raised KeyError: 'gone'"):
        source.rows(torch.tensor([1, 4]))
    with pytest.raises(ValueError, match=r"item 3 of the data has shape \(3,\), and the first \(2,\)"):
        source.rows(torch.tensor([3, 1]))
    uneven = rows_of(Own(lambda i: (X[i], {"a": torch.zeros(i)})))
    with pytest.raises(ValueError, match="the conditions of items 1 to 2 do not stack"):
        uneven.rows(torch.tensor([1, 2]))
    other = rows_of(Own(lambda i: (X[i], {"ab"[i % 2]: 1})))
    with pytest.raises(ValueError, match=r"item 1 of the data has the conditions \['b'\], and item 0 \['a'\]"):
        other.rows(torch.tensor([0, 1]))
