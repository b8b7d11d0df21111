"""Claim: `check_likelihood` passes what is right, names what is broken, and refuses what it cannot check.

A right model passes whatever its scale, its dtype, its place and its data; where a grid or a difference cannot tell,
the report says so as advice. A wrong call raises before any work.
"""

from __future__ import annotations

import math

import pytest
import torch
from mixtures import mixture
from refusals import check, refuses, wrong
from torch import nn
from zoo import DoubleWell

from sde_diffusion import VESDE, VPSDE, Network, PerSample, SDESampler, Shared, data, predict
from sde_diffusion.denoiser.analytic import Gaussian, isotropic_mixture
from sde_diffusion.nets import MLP
from sde_diffusion.testing import _quadrature, check_likelihood

VP = VPSDE()


class Net(nn.Module):
    """Smooth; a part of it may be hidden from the graph, told a label, or rounded."""

    def __init__(self, d=2, hide=0.0, labels=0):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.enter, self.leave, self.shifts = (
            nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64) / 3)
            for shape in ((d + 1, 16), (16, d), (max(labels, 1), d))
        )
        self.hide, self.labels = hide, labels

    def forward(self, x, t, label=None):
        if self.labels and label is None:
            raise TypeError("forward() is missing 'label'")
        seen = self._answer(x, t) if self.hide < 1 else 0.0
        hidden = self._answer(x.detach(), t)
        shift = self.shifts[label] if self.labels else 0.0
        return (1 - self.hide) * seen + self.hide * hidden + shift

    def _answer(self, x, t):
        return torch.tanh(torch.cat([x, t[:, None]], 1) @ self.enter) @ self.leave


def sampler(dtype=torch.float64, sde=VP, **options):
    return SDESampler(sde, Network(Net(**options).to(dtype), sde, predict.edm, shape=(2,)).eval())


def normal(n, d=2, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def row(report, start):
    (found,) = (entry for entry in report.entries if entry.claim.startswith(start))
    return found


# -------------------------------------------------------------------------------------------------------- what is right


@pytest.mark.slow
@pytest.mark.parametrize("data_too", [True, False], ids=["data", "samples"])
def test_a_float32_network_trained_on_moons_passes_with_room(data_too):
    torch.manual_seed(0)
    model = Network(MLP(2, hidden=64, layers=2), VP, predict.edm, shape=(2,))
    opt = torch.optim.Adam(model.parameters(), lr=2e-3)
    for i in range(1500):
        model.loss(data.moons(256, seed=i)).backward()
        opt.step()
        opt.zero_grad()
    x, sampler = data.moons(200, seed=0) if data_too else None, SDESampler(VP, model.eval())
    reports = [check_likelihood(sampler, x, n=64, seed=seed) for seed in range(3)]
    for report in reports:
        print(report)
        report.raise_for_failures()
        assert row(report, "the differences").measured < 1e-3
    # the largest of all rows and levels, a thing of its tail: one draw of rows in some is a hundred times another's
    assert sorted(row(report, "divergence").measured for report in reports)[1] < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_far_from_the_origin_a_flow_without_slope_is_no_failure(dtype):
    report = check_likelihood(SDESampler(VP, Gaussian(VP, torch.full((2,), 100.0, dtype=dtype), 1.0)), n=16)
    print(report)
    report.raise_for_failures()
    assert not report.warnings


@pytest.mark.parametrize("std", [pytest.param(0.03, marks=pytest.mark.slow), 0.1])
@pytest.mark.slow
def test_the_grid_is_refined_until_narrow_components_are_resolved(std):
    report = check_likelihood(SDESampler(VP, isotropic_mixture(VP, [[1, 0], [-1, 0.5], [0, -1]], std)), n=16)
    print(report)
    report.raise_for_failures()
    assert not report.warnings


@pytest.mark.slow
def test_what_the_grid_cannot_resolve_is_advice_and_no_failure(monkeypatch):
    monkeypatch.setitem(_quadrature.BUDGET, 2, 3000)
    report = check_likelihood(SDESampler(VP, isotropic_mixture(VP, [[1, 0], [-1, 0.5]], 0.03)), n=8)
    print(report)
    report.raise_for_failures()
    assert [entry.claim[:8] for entry in report.warnings] == ["the grid"]
    assert "not resolved on 3000 points" in report.warnings[0].note


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_untrained_network_passes_whatever_the_data(dtype):
    """The box is that of the mass of the model; that the data are elsewhere is advice."""
    report = check_likelihood(sampler(dtype), 1.5 + 0.6 * normal(128, dtype=dtype), n=64)
    print(report)
    report.raise_for_failures()
    assert row(report, "the density").measured < 1e-3
    assert [entry.claim[:7] for entry in report.warnings] == ["latents"]


@pytest.mark.parametrize("sde", [VESDE(0.01, 20.0), DoubleWell()], ids=repr)
@pytest.mark.slow
def test_other_processes_pass(sde):
    class Prior(DoubleWell):
        def drift(self, x, t):
            return -0.5 * x

    if isinstance(sde, DoubleWell):
        subject, x = SDESampler(Prior(), lambda x, t: -x * (1 + 0.2 * t[:, None]), shape=(2,)), normal(64)
    else:
        subject, x = SDESampler(sde, mixture(2, 3, low=0.2).on(sde)), None
    report = check_likelihood(subject, x, n=16)
    print(report)
    report.raise_for_failures()


# ------------------------------------------------------------------------------------------------------- what is broken


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("hide", [0.3, 1.0])
@pytest.mark.slow
def test_a_network_of_which_a_part_leaves_the_graph_is_caught(hide, dtype):
    report = check_likelihood(sampler(dtype, hide=hide), n=8)
    print(report)
    assert not row(report, "divergence").passed
    assert "torch.no_grad, detach" in row(report, "divergence").note


def test_a_divergence_that_is_wrong_shows_in_the_integral_too():
    assert not row(check_likelihood(sampler(hide=1.0), n=8), "the density integrates").passed


# ----------------------------------------------------------------------------------------------------------- conditions


@pytest.mark.slow
def test_a_conditional_model_is_checked_under_the_conditions_given():
    labels = torch.arange(32) % 4
    report = check_likelihood(sampler(labels=4), normal(32), n=16, label=labels)
    print(report)
    report.raise_for_failures()
    check_likelihood(sampler(labels=4), n=8, label=labels[:8]).raise_for_failures()


@pytest.mark.slow
def test_rows_of_conditions_go_in_turn_and_tables_whole():
    heard = []

    def net(x, t, c, table):
        heard.append((c[:, 0].tolist(), table.shape))
        return 0.1 * x + 0 * c

    subject = SDESampler(VP, Network(net, VP, predict.data, shape=(2,)))
    c, table = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]), torch.rand(3, 2)
    check_likelihood(subject, normal(3), n=5, c=PerSample(c), table=Shared(table))
    assert all(shape == (3, 2) for _, shape in heard)
    assert [0.0, 1.0, 2.0, 0.0, 1.0] in [rows for rows, _ in heard]
    text = "condition 'table' is a tensor of shape (3, 2), for 3 samples that are taken in turn: one row for each, or"
    check(lambda: check_likelihood(subject, normal(3), c=PerSample(c), table=table), ValueError, text)


# ------------------------------------------------------------------------------------------------------------- refusals

X = normal(8)


@refuses(
    (lambda: check_likelihood(wrong(VP), X), TypeError, "takes a sampler, SDESampler(sde, model), which holds"),
    (lambda: check_likelihood(wrong(SDESampler), X), TypeError, "got the class SDESampler: give an instance"),
    (lambda: check_likelihood(sampler(), normal(8, 3)), ValueError, "x0 has event shape (3,) (batch 8), but the model"),
    (lambda: check_likelihood(sampler(), wrong([[0.0, 1.0]])), TypeError, "x0 must be a torch.Tensor of shape (B, *)"),
    (lambda: check_likelihood(sampler(), X * math.nan), ValueError, "x0 holds 16 non-finite values"),
    (lambda: check_likelihood(sampler(), X[:1]), ValueError, "x0 is one sample, of shape (1, 2), wanted at least two"),
    (lambda: check_likelihood(sampler(), X, n=0), ValueError, "n must be at least 1, got 0"),
    (lambda: check_likelihood(sampler(), X, n=wrong(8.0)), TypeError, "n must be an integer, got 8.0"),
    (lambda: check_likelihood(sampler(), X, seed=wrong(None)), TypeError, "seed must be an integer, got None"),
    (lambda: check_likelihood(sampler(labels=4), X), TypeError, "with no conditions: TypeError: forward() is missing"),
    (lambda: check_likelihood(sampler(labels=4)), TypeError, "such as check_likelihood(sampler, x0, label=labels)"),
    (
        lambda: check_likelihood(SDESampler(VP, Network(Net(), VP, predict.edm)), normal(8, 3)),
        ValueError,
        "the model does not answer to x0, of event shape (3,) and torch.float64, with no conditions: RuntimeError",
    ),
    (
        lambda: check_likelihood(SDESampler(VP, Network(Net(), VP, predict.edm))),
        ValueError,
        "the event shape is not known",
    ),
)
def test_a_wrong_call_raises_before_any_work(call, error, text):
    check(call, error, text)
