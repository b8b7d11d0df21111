"""Claim: a model is told what it is given, per sample or whole: conditions by any name, labels, rows and tables."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as whatever
from hypothesis import settings
from hypothesis import strategies as st
from refusals import T, V, check, wrong
from torch import nn

import sde_diffusion
from sde_diffusion import EDMSDE, VPSDE, Clipped, Network, PerSample, SDESampler, Shared, predict
from sde_diffusion.denoiser.conditions import ARGUMENTS, OPTIONS, Conditions
from sde_diffusion.likelihood import Density, Estimate, Method, continuous_elbo, elbo
from sde_diffusion.nets import MLP
from sde_diffusion.solvers import DDIM, RK4
from sde_diffusion.testing import check_denoiser
from sde_diffusion.training.losses import denoising_score_matching

VP = VPSDE()
X = torch.linspace(-1, 1, 10).reshape(5, 2)
# Every name that is an argument of sample, iterate, encode, log_prob, a bound or the loss.
NAMES = ["level", "whole", "correct", "progress", "trace", "seed", "n", "noise", "grad", "x_T", "x0", "weight", "times"]
NAMES += ["eps", "reduction", "generator", "levels", "bins", "chunk", "draws", "form", "control", "solver", "steps"]
NAMES += ["cond", "nonfinite", "batch_size", "model", "sampler", "sde"]


class Told(nn.Module):
    """Answers its condition, whatever it is called."""

    def forward(self, x, time, **cond):
        (value,) = cond.values()
        return value[:, None] * x


@pytest.mark.parametrize("name", NAMES)
def test_a_condition_may_be_called_as_an_argument_is(name):
    model = Network(Told(), VP, predict.data, shape=(2,))
    value = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    sampler = SDESampler(VP, model, solver=DDIM(), steps=3)
    plain = dict(cond={"c": value})
    named = dict(cond={name: value})
    doors = [
        lambda kw: sampler.sample(5, seed=0, **kw),
        lambda kw: sampler.sample(5, seed=0, batch_size=2, **kw),
        lambda kw: list(sampler.iterate(5, seed=0, **kw))[-1].x,
        lambda kw: sampler.encode(X, **kw),
        lambda kw: sampler.log_prob(X, method=Method(steps=2, solver_error=False), **kw).value,
        lambda kw: denoising_score_matching(model, X, t=torch.full((5,), 0.5), eps=X, **kw),
        lambda kw: elbo(model, X, times=[0.1, 0.5, 0.9], seed=0, **kw).total,
        lambda kw: continuous_elbo(model, X, estimate=Estimate(levels=2), seed=0, **kw).total,
    ]
    for door in doors:
        assert torch.equal(door(named), door(plain))


def test_conditions_by_name_and_by_mapping_are_one():
    net = lambda x, t, a, b: a[:, None] * x + b  # noqa: E731
    model = Network(net, VP, predict.data, shape=(2,))
    sampler = SDESampler(VP, model, steps=3)
    a, b = torch.rand(4), 0.5
    both = sampler.sample(4, seed=0, a=a, cond={"b": b})
    assert torch.equal(both, sampler.sample(4, seed=0, a=a, b=b))
    check(
        lambda: sampler.sample(4, a=a, cond={"a": a, "b": b}), V, "condition 'a' is given twice, by name and in cond="
    )
    for given in (torch.ones(4), "level", [1, 2], {1: a}):
        text = "cond is a mapping of conditions by name, such as cond={'level': level}, got "
        check(lambda given=given: sampler.sample(4, cond=wrong(given)), T, text)
    for name in ("x", "at", "self"):
        check(
            lambda name=name: sampler.sample(4, cond={name: a}), V, f"a condition cannot be called {name!r}, which is"
        )


def test_a_condition_in_the_place_of_an_argument_is_told_where_it_goes():
    sampler = SDESampler(VP, Network(Told(), VP, predict.data, shape=(2,)), solver=RK4(), steps=3)
    value = wrong(torch.rand(5))
    for name in ("progress", "grad"):
        text = (
            f"{name} must be True or False, got Tensor: a condition of the model that is called so goes in as cond={{"
        )
        check(lambda name=name: sampler.sample(5, **{name: value}), T, text)
    check(lambda: sampler.log_prob(X, grad=value), T, "grad must be True or False, got Tensor")
    for name in ("level", "whole", "correct", "solver", "steps", "trace", "data_std", "solver_error"):
        text = f"is called so goes in as cond={{{name!r}: ...}}"
        check(lambda name=name: sampler.log_prob(X, **{name: value}), T, text)
    check(lambda: sampler.encode(X, progress=value), T, "progress must be True or False, got Tensor")
    check(lambda: sampler.sample(5, trace=value), T, "that is called so goes in as cond={'trace': ...}")
    check(lambda: sampler.log_prob(X, density=Density(level=value)), T, "level must be a number, got tensor")


# -------------------------------------------------------------------------------------------------------------- labels


def awake(net):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return net.eval()


LABELS = [
    (1, [1] * 5),
    (np.int64(2), [2] * 5),
    (torch.tensor(1), [1] * 5),
    ([0, 1, 2, 0, 3], [0, 1, 2, 0, 3]),
    ((0, 1, 2, 0, 3), [0, 1, 2, 0, 3]),
    (range(5), [0, 1, 2, 3, 4]),
    (np.array([0, 1, 2, 0, 3]), [0, 1, 2, 0, 3]),
    (torch.tensor([0, 1, 2, 0, 3], dtype=torch.uint8), [0, 1, 2, 0, 3]),
]


@pytest.mark.parametrize(("label", "rows"), LABELS, ids=[type(v).__name__ + str(i) for i, (v, _) in enumerate(LABELS)])
def test_a_label_is_one_for_all_or_one_per_row(label, rows):
    model = Network(awake(MLP(2, hidden=8, classes=5)), VP, shape=(2,))
    sampler, wanted = SDESampler(VP, model, solver=RK4(), steps=2), torch.tensor(rows)
    doors = [
        lambda c: sampler.sample(5, seed=0, label=c),
        lambda c: sampler.encode(X, label=c),
        lambda c: sampler.log_prob(X, method=Method(steps=2, solver_error=False), label=c).value,
        lambda c: model(X, 0.5, label=c).data,
        lambda c: denoising_score_matching(model, X, t=torch.full((5,), 0.5), eps=X, label=c),
        lambda c: elbo(model, X, times=[0.1, 0.5, 0.9], label=c, seed=0).total,
    ]
    if not isinstance(label, range):
        doors.append(lambda c: sampler.sample(5, seed=0, batch_size=2, label=c))
    for door in doors:
        assert torch.equal(door(label), door(wanted))


def test_a_label_that_is_none_is_refused_and_a_continuous_one_is_sent_elsewhere():
    model = Network(awake(MLP(2, hidden=8, classes=5)), VP, shape=(2,))
    sample = SDESampler(VP, model, steps=2).sample
    text = "label must hold integers, the numbers of classes, got "
    for label in ("cat", {"a": 1}, [None] * 5, ["a"] * 5):
        check(lambda label=label: sample(5, label=label), T, text + type(label).__name__)
    for floats in (torch.rand(5), 0.5, [0.5] * 5, np.full(5, 0.5)):
        with pytest.raises(TypeError, match="A continuous condition goes under another name, to a network") as caught:
            sample(5, label=floats)
        assert ".long()" not in str(caught.value)
    check(lambda: sample(5, label=torch.ones(5)), T, text + "torch.float32. Use label.long().")
    check(lambda: sample(5, label=[0, 1]), V, "condition 'label' has one row per sample, and 2 rows came for 5")
    check(lambda: sample(5, label=7), V, "label must lie in 0..4")


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor], ids=lambda f: f.__name__)
def test_a_condition_with_one_row_per_sample_is_split_whatever_holds_it(make):
    seen = []

    def net(x, t, c):
        seen.append(len(c))
        return torch.as_tensor(c, dtype=x.dtype)[:, None] * x

    sampler = SDESampler(VP, Network(net, VP, predict.data, shape=(2,)), steps=2)
    c = make([0.1, 0.2, 0.3, 0.4, 0.5])
    assert torch.equal(sampler.sample(5, seed=0, c=c), sampler.sample(5, seed=0, batch_size=2, c=c))
    assert set(seen) == {5, 2, 1}


# ------------------------------------------------------------------------------------------------------ rows and tables


class Hears(nn.Module):
    """Notes what it is told, and how large a batch with it; may declare what has rows."""

    def __init__(self, per_sample=None):
        super().__init__()
        self.heard = []
        if per_sample is not None:
            self.per_sample = per_sample

    def forward(self, x, t, **cond):
        self.heard.append((len(x), cond))
        return 0.1 * x


def splits(sampler, x, **cond):
    """Every door that takes the samples apart or puts them on top of each other."""
    model = sampler.model
    return {
        "sample": lambda: sampler.sample(10, seed=0, batch_size=5, **cond),
        "likelihood": lambda: sampler.log_prob(x, method=Method(steps=2, solver_error=False), batch_size=5, **cond),
        "joint": lambda: SDESampler(sampler.sde, model, solver=RK4(), steps=2).sample_with_log_prob(
            10, method=Method(solver_error=False), seed=0, batch_size=5, **cond
        ),
        "bound": lambda: elbo(model, x, times=[0.1, 0.5, 0.9], estimate=Estimate(chunk=20), seed=0, **cond),
        "continuous bound": lambda: continuous_elbo(model, x, estimate=Estimate(levels=2, chunk=20), seed=0, **cond),
        "conformance": lambda: check_denoiser(model, x.repeat(2, 1), **cond),
    }


TEN = torch.linspace(-1, 1, 20).reshape(10, 2)
ROWS, TABLE = torch.arange(10.0), torch.arange(40.0).reshape(10, 4)
DOORS = ["sample", "likelihood", "joint", "bound", "continuous bound"]


def heard(door, net, **cond):
    """What a network is told behind a door, of ten samples: each batch's size, and its conditions."""
    splits(SDESampler(VP, Network(net, VP, predict.data, shape=(2,)), solver=DDIM(), steps=3), TEN, **cond)[door]()
    return net.heard


@pytest.mark.parametrize("door", DOORS)
def test_a_table_reaches_the_network_whole_where_it_is_shared_or_the_network_declares_others(door):
    for net, table in ((Hears(), Shared(TABLE)), (Hears(("label",)), TABLE), (Hears(("label",)), Shared(TABLE))):
        assert all(torch.equal(cond["table"], TABLE) for _, cond in heard(door, net, table=table))


@pytest.mark.parametrize("door", DOORS)
def test_rows_go_along_with_their_samples_where_they_are_marked_declared_or_flat(door):
    for net, rows in (
        (Hears(), PerSample(TABLE)),
        (Hears(("c",)), TABLE),
        (Hears(("c",)), PerSample(TABLE)),
        (Hears(("other",)), PerSample(TABLE)),
        (Hears(), ROWS),
        (Hears(), ROWS.tolist()),
        (Hears(), ROWS.numpy()),
        (Hears(("c",)), TABLE.numpy()),
        (Hears(("c",)), TABLE.tolist()),
    ):
        value = torch.as_tensor(rows.value if isinstance(rows, PerSample) else rows)
        known = [value[:5], value[5:]] if door in DOORS[:3] else [value, value.repeat(2, *[1] * (value.ndim - 1))]
        told = [(n, torch.as_tensor(cond["c"])) for n, cond in heard(door, net, c=rows)]
        assert all(len(c) == n and any(torch.equal(c, k) for k in known) for n, c in told)
        assert len({int(c.flatten()[-1]) for _, c in told}) == (2 if door in DOORS[:3] else 1)


@pytest.mark.parametrize("door", [*DOORS, "conformance"])
def test_what_may_be_rows_or_a_table_is_refused_before_the_network_is_asked(door):
    for table in (TABLE, TABLE.numpy(), {"deep": [1], "text": TABLE}):
        net = Hears()
        given: Any = table
        if door == "conformance":  # of twenty data
            given = table.repeat(2, 1) if isinstance(table, torch.Tensor) else PerSample(torch.zeros(7, 4))
        with pytest.raises(ValueError, match="condition 'table") as caught:
            heard(door, net, table=given)
        told = str(caught.value)
        assert not net.heard
        if not isinstance(given, PerSample):
            assert "one row for each, or one table for all?" in told
            assert "PerSample(" in told
            assert "Shared(" in told
            assert "per_sample = ('label',)" in told


def test_what_may_be_rows_or_a_table_is_handed_on_where_nothing_is_split():
    net = Hears()
    model = Network(net, VP, predict.data, shape=(2,))
    sampler = SDESampler(VP, model, solver=DDIM(), steps=2)
    sampler.sample(10, seed=0, table=TABLE)
    list(sampler.iterate(10, seed=0, table=TABLE))
    sampler.encode(TEN, table=TABLE)
    sampler.sample(10, seed=0, batch_size=10, table=TABLE)
    sampler.log_prob(TEN, method=Method(steps=2, solver_error=False), table=TABLE)
    elbo(model, TEN, times=[0.1, 0.5, 0.9], table=TABLE, estimate=Estimate(chunk=10), seed=0)
    denoising_score_matching(model, TEN, table=TABLE)
    model(TEN, 0.5, table=TABLE)
    model.score(TEN, 0.5, table=TABLE)
    assert all(n == 10 and torch.equal(cond["table"], TABLE) for n, cond in net.heard)


def test_marks_are_taken_off_and_one_row_is_spread_at_every_door():
    net = Hears()
    model = Network(net, VP, predict.data, shape=(2,))
    sampler = SDESampler(VP, model, solver=DDIM(), steps=2)
    marked: dict[str, Any] = dict(c=PerSample(torch.ones(1, 4)), cond={"deep": {"s": Shared("text"), "t": None}})
    for door in splits(sampler, TEN, **marked).values():
        door()
    list(sampler.iterate(10, seed=0, **marked))
    sampler.encode(TEN, **marked)
    denoising_score_matching(model, TEN, **marked)
    model(TEN, 0.5, **marked)
    model.score(TEN, 0.5, **marked)
    assert all(cond["deep"] == {"s": "text", "t": None} for _, cond in net.heard)
    assert all(cond["c"].shape == (n, 4) for n, cond in net.heard)
    with torch.no_grad():
        assert Conditions(marked, 10).whole["c"].stride() == (0, 1)  # a view, no copies


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [None, 2])
def test_one_context_alone_is_one_for_all_whatever_the_number_of_samples(n, size):
    torch.manual_seed(0)
    model = Network(MLP(2, hidden=8, layers=1, context=3), EDMSDE(), predict.edm, shape=(2,))
    sampler, c = SDESampler(EDMSDE(), model, steps=2), torch.tensor([0.5, -1.0, 2.0])
    whole = sampler.sample(n, seed=0, batch_size=size, context=c.expand(n, 3).clone())
    for one in (c, c.numpy(), c.tolist(), Shared(c), c[None]):
        assert torch.allclose(sampler.sample(n, seed=0, batch_size=size, context=one), whole, atol=1e-5)


def test_rows_that_cannot_be_meant_are_refused_before_the_network_is_asked():
    net = Hears(("label",))
    sampler = SDESampler(VP, Network(net, VP, predict.data, shape=(2,)), steps=2)
    seven = torch.zeros(7, 3)
    text = "condition {} has one row per sample, and 7 rows came for 10 samples: give 10, or one for all. What the "
    check(lambda: sampler.sample(10, c=PerSample(seven)), V, text.format("'c'"))
    check(lambda: sampler.sample(10, label=seven), V, text.format("'label'") + "network takes whole goes in as label=")
    check(lambda: sampler.encode(TEN, label={"a": [1] * 7}), V, text.format("'label.a'"))
    for value, told in ((3, "got a int"), ("text", "got a str"), (torch.tensor(1.0), "got a tensor of shape ()")):
        check(lambda value=value: sampler.sample(10, c=PerSample(value)), T, told)
    assert not net.heard
    text = "per_sample names the conditions of a network that have rows, ('label',), got 'label'"
    check(lambda: Network(Hears("label"), VP, shape=(2,)), T, text)


def test_what_is_declared_stays_declared_in_whatever_holds_the_network():
    net = Hears(("label",))
    model = Network(net, VP, shape=(2,))
    for other in (model, Clipped(model), model.on(EDMSDE()), Network(partial(net), VP), Network(net.forward, VP)):
        assert other.per_sample == ("label",)
    assert Network(lambda x, t: x, VP).per_sample is None


def leaves(n):
    """Strategies of conditions that `n` samples may have, and whether each has rows."""
    row = st.integers(0, 3).map(lambda d: torch.arange(n * max(d, 1)).reshape(n, *[max(d, 1)] * (d > 0)))
    per = st.one_of(row, row.map(lambda x: x.numpy()), st.just(list(range(n))), st.just(tuple("ab" * n)[:n]))
    other = st.one_of(st.none(), st.text(max_size=3), st.integers(), st.just(torch.ones(3, 2)), st.just(torch.ones(())))
    return st.one_of(per.map(PerSample), per.map(Shared), other.map(Shared), other.filter(lambda v: not rows(v, n)))


def rows(value, n):
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == n


def joined(parts, like):
    """Conditions of several batches as one, by what was marked."""
    if isinstance(like, dict):
        return {k: joined([p[k] for p in parts], v) for k, v in like.items()}
    if not isinstance(like, PerSample):
        assert all(p is parts[0] for p in parts)
        return parts[0]
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else type(like.value)(v for p in parts for v in p)


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor | np.ndarray):
        return type(a) is type(b) and a.shape == b.shape and np.array_equal(a, b)
    return type(a) is type(b) and a == b


@settings(deadline=None, max_examples=50)
@whatever(data=st.data(), n=st.integers(2, 7), size=st.integers(1, 8))
def test_the_parts_of_any_tree_of_conditions_make_the_whole(data, n, size):
    tree = data.draw(
        st.dictionaries(st.sampled_from("abc"), st.recursive(leaves(n), lambda s: st.dictionaries(st.text("kl"), s)))
    )
    given = Conditions(tree, n)
    parts = [given.part(slice(i, min(i + size, n))) for i in range(0, n, size)]
    whole = given.whole
    assert same(joined(parts, tree), whole)
    assert same(joined([whole] * size, tree), given.stacked(size))
    assert same(given.each(lambda value: value).whole, whole)
    assert same(given.part(slice(None)), whole)
    assert same(given.rows(range(n)), whole)
    assert same(given.rows([n - 1]), given.part(slice(n - 1, n)))


@pytest.mark.parametrize("name", sorted(OPTIONS - {"grad", "nonfinite"}))
def test_an_option_of_another_call_is_no_condition_unless_it_is_said_to_be(name):
    heard: list[dict[str, object]] = []

    def net(x, t, **cond):
        heard.append(cond)
        return 0.1 * x

    model = Network(net, VPSDE(), predict.noise, shape=(2,))
    sampler = SDESampler(VPSDE(), model, steps=2)
    with pytest.raises(TypeError, match=rf"^{name}= is no argument of this call, and would go to the network"):
        model(torch.zeros(2, 2), 0.5, **{name: 1})
    assert not heard
    *_, last = sampler.iterate(2, seed=0, cond={name: 1})
    assert heard[-1] == {name: 1}
    assert last.x.shape == (2, 2)


def test_rows_that_differ_are_named():
    given = {
        "y": PerSample(torch.tensor([[1.0], [2.0]])),
        "same": PerSample(np.ones((2, 3))),
        "one": PerSample(torch.ones(1, 3)),
        "words": ["a", "a"],
        "more": {"labels": [1, 2], "kinds": [1, True], "tensors": [torch.ones(1), torch.ones(1)]},
        "whole": Shared(torch.arange(2)),
    }
    assert Conditions(given, 2).uneven == ["y", "more.labels", "more.kinds", "more.tensors"]


def _calls():
    """Every public function and method that takes conditions by name."""
    for info in pkgutil.walk_packages(sde_diffusion.__path__, "sde_diffusion."):
        if any(part.startswith("_") for part in info.name.split(".")):
            continue
        for name, found in vars(importlib.import_module(info.name)).items():
            if name.startswith("_") or getattr(found, "__module__", "") != info.name:
                continue
            inside = vars(found).items() if inspect.isclass(found) else [(name, found)]
            yield from (f for own, f in inside if inspect.isfunction(f) and (own[0] != "_" or own == "__call__"))


def test_the_arguments_of_all_calls_with_conditions_are_in_one_list():
    names = set()
    for call in _calls():
        parameters = inspect.signature(call).parameters.values()
        if any(p.kind is p.VAR_KEYWORD and p.name in ("cond", "options") for p in parameters):
            names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    assert {"n", "systems", "level"} <= names
    assert names - ARGUMENTS == set()
    assert ARGUMENTS - names - OPTIONS == {"cond"}
