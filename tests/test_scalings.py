"""Claim: every scaling is a map with an exact inverse and its log-density, fitted to tensors and to files alike.

`Quantile` is held to laws with a density in closed form: what it makes of them is standard normal, and the density of
the standard normal under it is theirs.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from scipy import stats

from sde_diffusion.data import _scaling, quantile
from sde_diffusion.data.quantile import Quantile
from sde_diffusion.data.scalings import CLASSES, Standardise
from sde_diffusion.data.sources.arrays import Part, Rows, With
from sde_diffusion.data.sources.base import Source
from sde_diffusion.data.sources.scaled import Condition, scaled

LAWS = {"Cauchy": stats.cauchy, "Student": stats.t(3), "log-normal": stats.lognorm(1.5), "normal": stats.norm}


def draws(n, seed=0):
    columns = [torch.from_numpy(law.rvs(size=n, random_state=seed + i)) for i, law in enumerate(LAWS.values())]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
def test_a_scaling_is_undone_and_its_jacobian_is_that_of_autograd(kind, shape):
    x = torch.randn(200, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).exp() * 5 - 2
    scaling = kind.of(x)
    y = 1.5 * x[:20] - 1  # beyond the data too
    z = scaling.apply(y, torch.float64)
    assert scaling.apply(y).dtype == torch.float32
    assert torch.allclose(scaling.undo(z), y, rtol=1e-9, atol=1e-9)
    h = 1e-6
    slope = (scaling.apply(y + h, torch.float64) - scaling.apply(y - h, torch.float64)) / (2 * h)
    assert (slope > 0).all()
    assert torch.allclose(scaling.log_jacobian(y), slope.log().flatten(1).sum(1), atol=1e-3)
    assert torch.allclose(scaling.log_slopes(y), slope.log(), atol=1e-3)
    again = kind(**json.loads(json.dumps(scaling.config))).fitting(shape)
    assert torch.equal(again.apply(y), scaling.apply(y))
    assert str(again) == str(scaling)
    with pytest.raises(ValueError, match=r"but samples"):
        scaling.apply(torch.zeros(4, 2))


@pytest.mark.parametrize("kind", CLASSES)
def test_a_source_read_in_parts_is_scaled_as_a_tensor(kind, monkeypatch):
    x = draws(1000) * torch.tensor([1.0, 1e-3, 1e6, 1.0]) + torch.tensor([0.0, 1e3, 0.0, 1.7e9])
    whole = kind.of(x)
    monkeypatch.setattr(_scaling, "PART", 130)
    parts = kind.of(Rows(x))
    wanted, got = whole.apply(x, torch.float64), parts.apply(x, torch.float64)
    assert torch.allclose(got, wanted, atol=1e-6)
    assert (got.mean(0).abs() < 0.1).all() or kind is Standardise


@pytest.mark.parametrize("held", [True, False], ids=["in memory", "as they are read"])
def test_the_rows_of_a_source_and_their_conditions_are_scaled(held):
    x, context, label = draws(40), torch.where(draws(40, 9) > 1, math.nan, draws(40, 9)), torch.arange(40)
    source: Source = Rows(x, {"context": context}, tuple("abcd"))
    if not held:
        source = Part(source, torch.arange(39, -1, -1))
    source = (
        With(source, {"label": label}) if not held else Rows(x, {"context": context, "label": label}, tuple("abcd"))
    )
    scaling, contexts = Standardise.of(source), Standardise.of(Condition(source, "context"), missing=True)
    found = scaled(source, scaling, {"context": contexts})
    assert (type(found) is Rows) == held
    assert (len(found), found.shape, found.columns) == (40, (4,), tuple("abcd"))
    numbers = torch.tensor([5, 0, 5])
    here = numbers if held else 39 - numbers
    for x_, cond in (found.rows(numbers), next(found.batches([numbers]))):
        assert torch.equal(x_, scaling.apply(x[here]))
        assert torch.equal(cond["context"].nan_to_num(9.0), contexts.apply(context[here]).nan_to_num(9.0))
        assert torch.equal(cond["label"], label[numbers])
    assert torch.equal(found.labels(), label)  # type: ignore[arg-type]  # there are labels


def test_a_source_of_many_rows_keeps_its_ends_and_one_value_in_some(monkeypatch):
    x = draws(5000)
    monkeypatch.setattr(quantile, "MOST_ROWS", 500)
    monkeypatch.setattr(_scaling, "PART", 123 * 4)
    found = Quantile.of(Rows(x))
    assert found.values.shape == (4, quantile.knots(500))
    assert torch.equal(found.values[:, 0], x.amin(0))
    assert torch.equal(found.values[:, -1], x.amax(0))
    z = found.apply(x, torch.float64)
    assert (z.std(0) - 1).abs().max() < 0.15
    x[1, 2] = math.inf
    with pytest.raises(ValueError, match="column 2 of the data holds infinity, or spans more than float64"):
        Quantile.of(Rows(x))


@pytest.mark.parametrize("kind", CLASSES)
def test_values_that_are_not_known_are_left_out_and_stay_unknown(kind):
    x = draws(500)
    holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    holed = torch.where(holes, math.nan, x)
    found = kind.of(holed, missing=True)
    parts = kind.of(Rows(holed), missing=True)
    for i in range(4):
        alone = kind.of(x[~holes[:, i]][:, i : i + 1])
        z = found.apply(holed, torch.float64)[:, i]
        assert torch.equal(z.isnan(), holes[:, i])
        assert torch.allclose(z, parts.apply(holed, torch.float64)[:, i], rtol=1e-6, equal_nan=True)
        if kind is Standardise:
            assert torch.allclose(z[~holes[:, i]], alone.apply(x[~holes[:, i]][:, i : i + 1], torch.float64)[:, 0])
    with pytest.raises(ValueError, match="column 0 of the data holds NaN"):
        kind.of(holed)


def test_a_column_is_named_where_it_has_a_name():
    x = draws(50)
    x[:, 2] = 7.0
    source = Rows(x, columns=("alcohol", "malic_acid", "hue", "ash"))
    with pytest.raises(ValueError, match=r"column 'hue' of wine.csv is constant at 7: leave it out"):
        Standardise.of(source, "wine.csv")
    with pytest.raises(ValueError, match=r"column 'hue' of wine.csv is constant at 7: leave it out"):
        Quantile.of(source, "wine.csv", linear=["hue"])
    x[:30, 2] = torch.arange(30)
    with pytest.raises(ValueError, match=r"column 'hue' of w has the value 7 in 42.0% .*linear=\('hue',\)\)"):
        Quantile.of(Rows(x, columns=source.columns), "w")
    with pytest.raises(ValueError, match="the data have no column 'hew': theirs are alcohol, malic_acid, hue, ash"):
        Quantile.of(source, linear=["hew"])
    x[:, 2] = 7
    with pytest.raises(ValueError, match="column 'hue' of the data holds no value that is known"):
        Standardise.of(Rows(torch.where(x == 7, math.nan, x), columns=source.columns), missing=True)


def test_what_has_no_scaling_is_refused():
    for kind in CLASSES:
        with pytest.raises(ValueError, match=r"the data have rows of shape \(\), wanted \(N, D\)"):
            kind.of(torch.randn(10))
    with pytest.raises(ValueError, match="column 0 of the data has 5 values, and quantiles need 8 or more"):
        Quantile.of(torch.randn(5, 2))
    with pytest.raises(ValueError, match=r"column 1 of the data has the value 0 in 40.0% of its rows.*and Dequantised"):
        Quantile.of(torch.stack([torch.arange(100.0), (torch.arange(100.0) - 39).clamp(min=0)], 1))
    for values, top, text in (
        ([1.0, 2.0], 1.0, r"wanted \(K,\) or \(D, K\) with K >= 3"),
        ([1.0, 2.0, 2.0], 1.0, "strictly increasing"),
        ([1.0, 2.0, math.inf], 1.0, "finite"),
        ([-1.7e308, 1.7e308, 1.71e308], 1.0, "finite"),
        ([1.0, 2.0, 3.0], 0.0, "top must be positive"),
    ):
        with pytest.raises(ValueError, match=text):
            Quantile(values, top)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="values must be real numbers, got str"):
        Quantile("a", 1.0)  # type: ignore[arg-type]


def test_quantiles_make_heavy_tails_standard_normal_and_keep_their_density():
    scaling, new = Quantile.of(draws(20_000)), draws(20_000, seed=100)
    z = scaling.apply(new, torch.float64)
    for i, (name, law) in enumerate(LAWS.items()):
        column, one = new[:, i : i + 1], Quantile(scaling.values[i], scaling.top)
        # both samples of 20,000 have an error of their own
        found = stats.kstest(z[:, i].numpy(), "norm").statistic
        wanted = torch.from_numpy(law.logpdf(column[:, 0].numpy()))
        log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, i]) + one.log_jacobian(column)
        gap = log_prob - wanted
        print(name, f"KS {found:.4f}, KL {-float(gap.mean()):.4f} nats, z in {z[:, i].abs().max():.2f}")
        assert found < 1.63 * (2 / 20_000) ** 0.5
        assert -0.005 < -float(gap.mean()) < 0.01
        assert float(gap[z[:, i].abs() < 2].square().mean().sqrt()) < 0.06
        assert z[:, i].abs().max() < 12
    assert scaling.undo(scaling.apply(new)).dtype == torch.float32


def test_a_few_ties_are_a_few_values_and_columns_of_few_values_go_straight():
    x = draws(400)
    x[:30, 0] = x[:, 0].min()  # some at the end, and in the middle
    x[20:50, 1] = 0.25
    x[:, 2] = (x[:, 2] > 1).double()
    scaling = Quantile.of(x, linear=[2])
    z = scaling.apply(x, torch.float64)
    assert (scaling.values.diff(dim=1) > 0).all()
    assert torch.allclose(scaling.undo(z), x, atol=1e-9)
    assert torch.allclose(z[:, 2], Standardise.of(x[:, 2:3]).apply(x[:, 2:3], torch.float64)[:, 0])
    for i in (0, 1):
        assert stats.kstest(z[:, i].numpy(), "norm").statistic < 0.1  # no more than is tied
    assert z.abs().max() < 4


def test_samples_far_beyond_the_data_stay_numbers():
    scaling = Quantile.of(draws(300))
    z = torch.tensor([-10.0, -6.0, 6.0, 10.0]).expand(4, 4).T
    x = scaling.undo(z)
    spread = scaling.values[:, -1] - scaling.values[:, 0]
    assert (x.diff(dim=0) > 0).all()
    assert (x.abs() < 10 * spread + scaling.values.abs().amax(1)).all()
    assert torch.allclose(scaling.apply(x), z, atol=1e-3)


def test_float32_samples_are_widened_only_where_it_loses_the_column():
    assert Quantile.of(draws(300)).undo(torch.zeros(1, 4)).dtype == torch.float32
    assert Quantile.of(draws(300) + 1.7e9).undo(torch.zeros(1, 4)).dtype == torch.float64
