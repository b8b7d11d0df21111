"""Claim: a validation measures -log p in nats, by the same draws at every call, and early stopping goes by it."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
import torch

from sde_diffusion import EDMSDE, VPSDE, FlowSDE, Network, predict
from sde_diffusion.data import Standardise
from sde_diffusion.data.source import Stream
from sde_diffusion.denoiser import Prediction, Wrapper
from sde_diffusion.denoiser.analytic import Gaussian, isotropic_mixture
from sde_diffusion.nets import MLP
from sde_diffusion.training import train
from sde_diffusion.training.stopping import EarlyStopping, Measured
from sde_diffusion.training.validation import STATES, Validation

COVARIANCE = torch.tensor([[1.0, 0.8], [0.8, 1.0]])


def normal(n: int, *shape: int) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(3))


def correlated(n: int) -> torch.Tensor:
    return normal(n, 2) @ torch.linalg.cholesky(COVARIANCE).T


class Off(Wrapper):
    """A model whose data prediction is off by a share of the right one, in proportion to the noise."""

    def __init__(self, inner, share):
        super().__init__(inner)
        self.share = share

    def predict(self, x, at, **cond):
        data = self.inner.predict(x, at, **cond).data * (1 - self.share * at.sigma / (1 + at.sigma))
        return Prediction(lambda: data, lambda: (x - at.alpha * data) / at.sigma)


@pytest.mark.parametrize("sde", [EDMSDE(), VPSDE(), FlowSDE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize(("n", "draws"), [(1, 8000), (50, 400), (5000, 4)])
def test_the_nats_of_an_exact_model_are_those_of_its_density(sde, n, draws):
    """For the exact denoiser of a density the bound is -log p, of any row: here those of another density."""
    model, x = isotropic_mixture(sde, [[0.0, 0.0], [1.5, 0.0]], 0.3), 0.5 * normal(n, 2)
    found, exact = Validation(x, draws=draws).measure(model), -model.data_log_prob(x)
    print(f"{found.nats:.4f}, exact {float(exact.mean()):.4f}; over rows +- {found.standard_error:.4f}")
    assert found.rows == n
    assert found.nats == pytest.approx(float(exact.mean()), abs=0.06)  # of 8000 and 20000 draws
    gaussian = -Gaussian(sde, torch.zeros(2), model.data_std**2).data_log_prob(x)
    assert sum(found.by_level) == pytest.approx(found.nats - float(gaussian.mean()), abs=1e-5)
    if n == 1:
        assert math.isnan(found.standard_error)
    if n == 50:  # a group is a row
        torch.testing.assert_close(torch.tensor(found.groups), exact.float(), atol=1.2, rtol=0)
        assert found.standard_error == pytest.approx(float(exact.std() / math.sqrt(n)), rel=0.1)


def test_outside_the_levels_that_are_measured_the_model_counts_as_gaussian():
    """A process that hardly has noise: what is beyond its range is not integrated, and no NaN comes of it."""
    x = correlated(1000)
    whole, part = (
        Validation(x).measure(Gaussian(EDMSDE(*ends), torch.zeros(2), COVARIANCE)).nats
        for ends in ((0.002, 80.0), (0.002, 0.5))
    )
    gaussian = 0.5 * float(x.square().sum(1).mean()) + math.log(2 * math.pi)
    assert whole < part < gaussian


def test_two_models_are_compared_far_better_than_either_is_known():
    x, model = correlated(400), Gaussian(EDMSDE(), torch.zeros(2), COVARIANCE)
    keep = Validation(x, draws=80)
    exact, near, far = (keep.measure(m) for m in (model, Off(model, 0.1), Off(model, 0.3)))
    assert exact == keep.measure(model)  # the same draws
    (gain, error), (more, _) = exact.gain_over(near), exact.gain_over(far)
    print(f"{gain:.4f} +- {error:.4f}, the value itself +- {exact.standard_error:.4f}")
    assert gain == pytest.approx(near.nats - exact.nats)
    assert 0 < error < exact.standard_error / 2
    assert more > gain > 4 * error
    assert near.gain_over(exact) == pytest.approx((-gain, error))
    with pytest.raises(ValueError, match="the two were measured on 400 and 399 rows: compare them on the same"):
        exact.gain_over(Validation(x[1:], draws=1).measure(model))


def test_an_error_at_one_level_of_noise_shows_in_its_band():
    class Blind(Wrapper):
        """Sees nothing of the state where the noise is between 0.1 and 0.2."""

        def predict(self, x, at, **cond):
            p = self.inner.predict(x, at, **cond)
            blind = (at.ratio > 0.1) & (at.ratio < 0.2)
            return Prediction(lambda: p.data, lambda: torch.where(blind, 0.0, p.noise))

    x, model = correlated(500), Gaussian(EDMSDE(0.01, 10.0), torch.zeros(2), COVARIANCE)
    right, wrong = Validation(x).measure(model), Validation(x).measure(Blind(model))
    assert right.levels == pytest.approx(torch.logspace(-2, 1, 9).tolist(), rel=1e-5)
    off = [i for i, (a, b) in enumerate(zip(right.by_level, wrong.by_level, strict=True)) if abs(a - b) > 1e-9]
    assert off == [2, 3]
    named = wrong.metrics()
    assert named["val_nats"] == wrong.nats
    assert named["val_loss"] == wrong.loss
    assert [named[f"val_nats_level_{i}"] for i in range(8)] == list(wrong.by_level)


class Told(torch.nn.Module):
    """A network that writes down which conditions came with which states."""

    clock = "edm"

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []
        self.w = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t, *, label, more):
        self.told.append((x, label, more["deep"]))
        return self.w * x


def test_every_row_is_used_with_its_own_condition_and_the_transform_of_the_training():
    n = 3000
    net = Told()
    model = Network(net, EDMSDE(), predict.edm, shape=(1,))
    rows = torch.arange(n)
    given: dict[str, Any] = {"label": rows, "more": {"deep": 2 * rows}}
    keep = Validation(rows[:, None], **given)
    shapes: list[int] = []

    def transform(batch, generator):
        shapes.append(len(batch))
        return 10 + batch.float() / n + 0 * torch.rand(1, generator=generator)

    found = keep.measure(model, transform=transform)
    assert (keep.draws, found.rows, max(shapes)) == (1, n, 1024)
    labels = torch.cat([label for _, label, _ in net.told])
    assert torch.equal(labels, rows.repeat(2))  # the nats, then the loss
    assert torch.equal(torch.cat([deep for _, _, deep in net.told]), 2 * labels)
    assert repr(keep) == "Validation(3000 rows (1,), every=None, patience=10, draws=1)"
    few = Validation(rows[:7, None], label=rows[:7], more={"deep": rows[:7]})
    net.told.clear()
    few.measure(model, transform=transform)
    counts = torch.cat([label for _, label, _ in net.told]).bincount()
    assert few.draws == math.ceil(STATES / 7)
    assert counts.tolist() == [few.draws + math.ceil(few.draws / 4)] * 7


def test_the_loss_is_the_objective_of_the_training():
    x = correlated(200)
    torch.manual_seed(0)
    model = Network(MLP(2, hidden=16, layers=1, features=0), EDMSDE(), predict.edm, shape=(2,))
    found = Validation(x).measure(model)
    draws = torch.stack([model.loss(x, generator=torch.Generator().manual_seed(i)) for i in range(100)]).detach()
    error = float(draws.std() / math.sqrt(3))  # 512 states are 2.6 of these batches
    assert found.loss == pytest.approx(float(draws.mean()), abs=4 * error)
    assert Validation(x).measure(model, lambda model, x0, generator: x0.mean() * 0 + 3).loss == pytest.approx(3.0)


def test_images_are_measured_a_few_at_a_time():
    model = Gaussian(EDMSDE(), torch.zeros(3 * 4 * 4), 1.0)
    found = Validation(normal(5, 48), draws=3).measure(model)
    assert found.nats == pytest.approx(float(-model.data_log_prob(normal(5, 48)).mean()), rel=1e-5)  # no noise: c is 1


class Flow(Stream):
    """A stream."""


def test_unfit_arguments_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Validation(normal(4, 2), every=0)
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        Validation(normal(4, 2), patience=0)
    with pytest.raises(TypeError, match=r"draws must be an integer, got 1.5"):
        Validation(normal(4, 2), draws=1.5)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ValueError, match=r"x has event shape \(3,\) .* but the model works on \(2,\)"):
        Validation(normal(4, 3)).measure(Gaussian(EDMSDE(), torch.zeros(2), 1.0))
    monkeypatch.setattr(Flow, "__abstractmethods__", frozenset())
    with pytest.raises(TypeError, match="goes over the same rows again and again, and Flow is a stream: give a tensor"):
        Validation(Flow())  # type: ignore[abstract]  # what it yields is not asked


def test_validations_are_dense_where_a_run_is_young_and_their_number_is_bounded():
    keep = Validation(normal(4, 2))
    due = [i for i in range(1, 3001) if keep.due(i, 3000)]
    assert due[:4] == [20, 23, 26, 30]
    assert due[-1] == 3000
    assert all(1 <= b - a <= max(a / 6, 1) and b - a <= 120 for a, b in itertools.pairwise(due))
    assert len(due) < 50
    assert [i for i in range(1, 11) if keep.due(i, 10)] == [10]
    assert [i for i in range(1, 12) if Validation(normal(4, 2), every=4).due(i, 11)] == [4, 8, 11]


# --- early stopping


def measured(nats: float, spread: float = 0.0) -> Measured:
    """A validation of two rows: `nats` and that plus or minus a spread, which is the same in all."""
    groups = (nats - 1 - spread, nats + 1 + spread)
    return Measured(nats, 1.0, 0.5, (0.1, 1.0), (nats,), 2, groups)


def test_a_run_is_over_after_so_many_clearly_worse_validations_in_a_row():
    stop: Any = EarlyStopping(patience=3)
    assert [stop.update(i, measured(nats)) for i, nats in enumerate([9.0, 7.0, 8.0, 8.0])] == [True, True, False, False]
    assert (stop.step, stop.worse) == (1, 2)
    assert stop.update(4, measured(6.0))  # a better one, and counting begins anew
    assert (stop.step, stop.worse) == (4, 0)
    over = [(stop.update(i, measured(6.5)), stop.over)[1] for i in range(5, 8)]
    assert over == [False, False, True]
    assert stop.best == measured(6.0)


def test_what_is_worse_by_chance_does_not_count():
    stop: Any = EarlyStopping(patience=1)
    stop.update(0, measured(6.0))
    stop.update(1, measured(7.0, spread=2.0))  # 1 +- 2
    assert not stop.over
    stop.update(2, measured(6.0))
    assert (stop.step, stop.worse) == (0, 0)
    stop.update(3, measured(math.nan))
    assert stop.over
    assert stop.step == 0
    assert not EarlyStopping(None).over


def test_a_first_validation_that_is_not_finite_is_replaced():
    stop = EarlyStopping()
    stop.update(0, measured(math.nan))
    assert stop.update(1, measured(3.0))
    assert stop.step == 1


def test_early_stopping_goes_on_from_its_state():
    one = EarlyStopping(3)
    values = [9.0, 7.0, 8.0, 8.0, 8.0]
    for i, nats in enumerate(values[:3]):
        one.update(i, measured(nats))
    other = EarlyStopping(3)
    other.load_state(json.loads(json.dumps(one.state())))
    for i, nats in enumerate(values[3:]):
        one.update(3 + i, measured(nats))
        other.update(3 + i, measured(nats))
    assert one.state() == other.state()
    assert other.over
    fresh = EarlyStopping()
    fresh.load_state(EarlyStopping().state())
    assert fresh.best is None


@pytest.mark.slow
def test_a_small_table_that_is_learnt_by_heart_is_stopped_in_time():
    """Wine: the loss falls all the while; the model that is returned is the one before rows kept out paid for it."""
    table = pytest.importorskip("sklearn.datasets").load_wine()
    x = torch.tensor(table.data)[torch.randperm(178, generator=torch.Generator().manual_seed(1))]
    z = Standardise.of(x[30:120]).apply(x)
    torch.manual_seed(1)
    model = Network(MLP(13, features=0), EDMSDE(), predict.edm, shape=(13,))
    run = train(model, z[30:120], steps=1000, val=Validation(z[:30]), seed=1)
    best = run.best
    assert best is not None
    assert best < len(run.losses) < 1000
    assert "10 validations in a row were worse" in str(run.stopped)
    assert sum(run.losses[-20:]) < sum(run.losses[best - 20 : best])
    test = Validation(z[120:])
    (gain, error), gaussian = test.measure(run.model).gain_over(test.measure(run.averages[0])), 13 * 1.42
    nats = test.measure(run.model).nats
    print(f"after {best} of {len(run.losses)} steps {nats:.2f} nats, {gain:.1f} +- {error:.1f} better than at the end")
    assert gain > 4 * error
    assert nats < gaussian - 2


def test_entries_of_a_context_unknown_in_the_validation_alone_are_refused_before_the_first_step():
    x, c = torch.randn(60, 2), torch.randn(60, 3)
    lost = c.clone()
    lost[50, 1] = math.nan

    def run(net: MLP, told: torch.Tensor) -> None:
        model = Network(net, VPSDE(), predict.edm, shape=(2,))
        train(model, x[:48], steps=1, val=Validation(x[48:], context=lost[48:]), context=told)

    with pytest.raises(ValueError, match=r"val: entries \[1\] of context are NaN, not known, and never so in the rows"):
        run(MLP(2, hidden=8, context=3), c[:48])
    run(MLP(2, hidden=8, context=3, entry_drop=0.2), c[:48])
    run(MLP(2, hidden=8, context=3), torch.where(torch.arange(48)[:, None] == 7, math.nan, c[:48]))
