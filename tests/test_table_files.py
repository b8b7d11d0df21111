"""Claim: a table is read as it was written, or not at all, and says with which other model it is used."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from refusals import V, check
from solves import SHORT, components, last, model, start, table

from sde_diffusion import (
    VPSDE,
    DiscreteVPSDE,
    FlowSDE,
    Network,
    Prediction,
    SDESampler,
    SolverTable,
    TableSolver,
    Wrapper,
    grids,
    predict,
)
from sde_diffusion.nets import MLP
from sde_diffusion.solvers import Adams
from sde_diffusion.tuning import MadeFor, TableWarning

# --- files


def same(a, b):
    assert a.to_dict() == b.to_dict()
    assert a.rows == b.rows
    assert a.made_for == b.made_for
    if a.components is not None:
        for u, v in zip(
            (a.components.basis, *a.components.weights), (b.components.basis, *b.components.weights), strict=True
        ):
            assert torch.equal(u, v)


def test_a_table_is_read_as_it_was_written_bit_for_bit(tmp_path):
    plain = table(5, Adams(3))
    for made in (
        plain,
        plain.windowed(3),
        dataclasses.replace(plain, components=components(plain), made_for=MadeFor.of(model(SHORT))),
        SolverTable.of(Adams(2, "velocity"), FlowSDE(), grids.uniform, steps=3),  # whose noise goes up to infinity
    ):
        made.save(tmp_path / "table.json")
        same(SolverTable.load(tmp_path / "table.json"), made)
        same(SolverTable.from_dict(json.loads(json.dumps(made.to_dict()))), made)
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]


def test_a_file_that_was_changed_is_refused(tmp_path):
    path = tmp_path / "table.json"
    table(4).save(path)
    whole = path.read_bytes()
    for place in range(40, len(whole) - 40, len(whole) // 60):
        if chr(whole[place]).isdigit():
            path.write_bytes(whole[:place] + (b"7" if whole[place] != ord("7") else b"3") + whole[place + 1 :])
            check(lambda: SolverTable.load(path), V, "")
    path.write_bytes(whole.replace(b'"finishes": true', b'"finishes": 1   '))
    check(lambda: SolverTable.load(path), V, "not as it was written: damaged, or edited")
    path.write_bytes(whole[:-40])
    check(lambda: SolverTable.load(path), V, "is not JSON")
    path.write_bytes(whole.replace(b'"version": 1', b'"version": 9'))
    check(lambda: SolverTable.load(path), V, "has format version 9, and this is version 1")
    path.write_bytes(b'{"format": "another"}')
    check(lambda: SolverTable.load(path), V, "this is no sde_diffusion solver table")
    path.write_bytes(b"[1, NaN]")
    check(lambda: SolverTable.load(path), V, "NaN is no number of JSON")
    check(lambda: SolverTable.load(tmp_path / "none.json"), FileNotFoundError, "give one that SolverTable.save wrote")


@pytest.mark.parametrize(
    ("entry", "value", "text"),
    [
        ("times", None, "times must be a sequence of numbers"),
        ("rows", [[1.0]], "a table of 4 evaluations has 5 rows"),
        ("rows", 3, "no sound table"),
        ("window", 0, "window must be at least 1"),
        ("made_for", {}, "no entry 'sde'"),
        ("components", {"basis": 3, "weights": [], "bias": []}, "no sound table"),
        ("components", {"basis": {"shape": [1, 1], "float64": "!"}, "weights": [], "bias": []}, "is not base64"),
        ("components", {"basis": {"shape": [9, 9], "float64": ""}, "weights": [], "bias": []}, "no sound table"),
    ],
)
def test_a_dictionary_that_is_no_table_is_refused(entry, value, text):
    check(lambda: SolverTable.from_dict({**table(4).to_dict(), entry: value}), V, text)
    check(lambda: SolverTable.from_dict({k: v for k, v in table(4).to_dict().items() if k != entry}), V, "no entry")


# --- the model that a table is for


class Guided(Wrapper):
    def __init__(self, inner, w):
        super().__init__(inner)
        self.w = w

    def predict(self, x, at, **cond):
        return self.inner.predict(x, at, **cond)


class Other(Wrapper):
    def predict(self, x, at, **cond):
        p = self.inner.predict(x, at, **cond)
        return Prediction(lambda: p.data, lambda: p.noise)


def test_a_model_is_described_with_its_own_numbers():
    assert MadeFor.of(Guided(model(SHORT), 4.0)).model == "Guided(w=4) of GaussianMixture"
    assert MadeFor.of(model(SHORT)).fingerprint == MadeFor.of(model(SHORT)).fingerprint
    assert MadeFor.of(model(SHORT)).fingerprint != MadeFor.of(model(SHORT, seed=1)).fingerprint


def test_a_fingerprint_notices_one_step_of_training():
    known = Network(MLP(2, hidden=16, layers=1), SHORT, predict.noise)
    before = MadeFor.of(known)
    with torch.no_grad():
        for p in known.parameters():
            p.mul_(1 + 1e-6)
    assert before.model == MadeFor.of(known).model
    assert before.fingerprint != MadeFor.of(known).fingerprint


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda: Guided(model(SHORT), 7.5), "w = 7.5, and the table was made at w = 4: within a factor of 2 it serves"),
        (lambda: model(SHORT), "the model is GaussianMixture, and the table was made for Guided(w=4) of"),
        (lambda: Other(Guided(model(SHORT), 4)), "the model is Other of Guided(w=4)"),
        (lambda: Guided(model(SHORT, seed=1), 4), "the tensors of the model are not those that the table was made for"),
    ],
)
def test_another_model_is_told_once_with_the_difference(other, text):
    made = table(4, made_for=MadeFor.of(Guided(model(SHORT), 4.0)))
    SDESampler(SHORT, Guided(model(SHORT), 4.0), solver=TableSolver(made)).sample(2, seed=0)  # its own: no word
    sampler = SDESampler(SHORT, other(), solver=TableSolver(made))
    with pytest.warns(TableWarning) as caught:
        sampler.sample(2, seed=0)
    assert text in str(caught[0].message)
    sampler.sample(2, seed=0)  # warnings are errors here


def test_another_process_shape_or_dtype_is_refused():
    made = table(4)
    x = start(SHORT, made.grid[0])
    vp = VPSDE()
    check(
        lambda: last(TableSolver(made), model(DiscreteVPSDE.linear(1000, 1e-4, 0.03)), x, made.grid, True),
        V,
        "the table was made for DiscreteVPSDE.linear(1000, 0.0001, 0.02), and the model is of DiscreteVPSDE.linear(",
    )
    far = dataclasses.replace(MadeFor.of(model(vp)), noise_range=(0.1, 2.0))
    check(lambda: far.check(model(vp), torch.float64), V, "made for sigma/alpha from 0.1 to 2, and the process")
    single = dataclasses.replace(made, made_for=MadeFor.of(model(SHORT), dtype=torch.float32))
    check(
        lambda: last(TableSolver(single), model(SHORT), x, made.grid, True), V, "for states in float32, and these are"
    )
    parts = dataclasses.replace(made, components=components(made), made_for=MadeFor.of(model(SHORT)))
    wide = start(SHORT, made.grid[0], d=6)
    check(lambda: last(TableSolver(parts), model(SHORT, 6), wide, made.grid, True), V, "made for samples of shape (4,)")
    bare = dataclasses.replace(parts, made_for=None)
    check(lambda: last(TableSolver(bare), model(SHORT, 6), wide, made.grid, True), V, "of samples of 4 numbers")
    outside = dataclasses.replace(made, made_for=None)
    check(lambda: SDESampler(vp, model(vp), solver=TableSolver(outside)), V, "t")
    late = dataclasses.replace(made, made_for=None, times=(2000.0, *made.times[1:]))
    check(lambda: last(TableSolver(late), model(SHORT), x, made.grid, True), V, "the table asks from t = 2000 to")
