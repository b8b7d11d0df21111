"""Claim: `check_flow_map` passes an exact map to rounding, fails a wrong one, and refuses what it cannot check.

The exact map of Gaussian data is written as a net in closed form, in the letters of FlowMap's formula.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from maps import VP, awake, flow_map, normal, teacher
from refusals import T, V, check, refuses, wrong
from torch import nn

from sde_diffusion import EDMSDE, FlowSDE, Network, predict
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.denoiser.conditions import PerSample
from sde_diffusion.distillation import FlowMap
from sde_diffusion.guidance import Clipped
from sde_diffusion.testing import check_flow_map

C = 0.7
MEAN = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
VARIANCE = torch.tensor([0.09, 0.64, 1.0], dtype=torch.float64)


class Exact(nn.Module):
    r"""The average velocity of the flow of $\mathcal N(\mu, C)$ data; `bent` adds an error that grows with the way."""

    clock = "edm"

    def __init__(self, bent: float = 0.0, shift: torch.Tensor | None = None) -> None:
        super().__init__()
        self.bent = bent
        self.shift = nn.Parameter(torch.zeros(3, 3, dtype=torch.float64) if shift is None else shift)

    def forward(self, y, told, until, label=None):
        u, s = torch.atan(torch.exp(4 * told) / C)[:, None], (0.05 * torch.sinh(2 * until))[:, None]
        mean = MEAN if label is None else MEAN + self.shift[label]
        here, there = self.spread(u), self.spread(s)
        centred = y - torch.cos(u) / C * mean
        gap = torch.where((u - s).abs() < 1e-9, 1.0, u - s)
        moved = (torch.cos(s) - torch.cos(u)) / C * mean + (there / here - 1) * centred
        slope = (VARIANCE / C**2 - 1) * torch.sin(u) * torch.cos(u) / here**2 * centred + torch.sin(u) / C * mean
        return torch.where((u - s).abs() < 1e-9, slope, moved / gap) + self.bent * torch.sin(u - s)

    @staticmethod
    def spread(u):
        return (torch.cos(u).square() / C**2 * VARIANCE + torch.sin(u).square()).sqrt()


def exact(sde=VP, reach="any", **options):
    return FlowMap(Exact(**options), sde, predict.EDM(C), shape=(3,), reach=reach)


@pytest.mark.parametrize("sde", [VP, EDMSDE(), FlowSDE()], ids=repr)
def test_the_exact_map_of_gaussian_data_passes_to_rounding(sde):
    report = check_flow_map(exact(sde), Gaussian(sde, MEAN, VARIANCE), n=64, tolerance=1e-6)
    assert report.passed, str(report)
    assert len(report.entries) == 11
    assert len(report.curves) == 2


def test_a_wrong_map_fails_where_it_is_wrong():
    known = Gaussian(VP, MEAN, VARIANCE)
    far = check_flow_map(exact(bent=0.6), known, n=64)
    failed = [entry.claim for entry in far.failures]
    print(far)
    assert any(claim.startswith("1 call: distance") for claim in failed)
    assert any(claim.startswith("1 call: energy distance") for claim in failed)
    assert any(claim.startswith("two jumps") for claim in failed)
    assert far.entries[0].passed  # the identity
    near = check_flow_map(exact(bent=0.02), known, n=64)
    assert near.passed, str(near)
    of_another = check_flow_map(exact(), Gaussian(VP, MEAN + 1, VARIANCE), n=64)
    assert {e.verdict for e in of_another.entries if "two jumps" in e.claim} == {"ok"}
    assert not of_another.passed


def test_the_defect_of_a_bent_map_is_what_it_is_by_hand():
    # of a map that adds b (u - s) sin(u - s) to y, two jumps differ from one by about b times that of the parts
    report = check_flow_map(exact(bent=0.01), Gaussian(VP, MEAN, VARIANCE), n=1024, calls=[1])
    one = next(e.measured for e in report.entries if e.claim.startswith("1 call: distance"))
    u = math.atan(float(VP.levels([1.0])[0].ratio) / C)
    assert one == pytest.approx(0.01 * u * math.sin(u) * C / float(VARIANCE.mean().sqrt()), rel=0.08)


def test_what_a_map_was_trained_for_is_asked_of_it():
    known = Gaussian(VP, MEAN, VARIANCE)
    data = check_flow_map(exact(reach="data"), known, n=64, tolerance=1e-6)
    assert data.passed, str(data)
    assert [e.claim[:7] for e in data.entries[1:]] == ["1 call:", "1 call:", "1 call:", "2 calls", "4 calls"]
    levels = check_flow_map(exact(reach=(math.inf, 0.5, 0.1, 0.0)), known, n=64, tolerance=1e-6)
    assert levels.passed, str(levels)
    assert [e.claim[:7] for e in levels.entries[1:]] == ["3 calls"] * 3


class Shifted(nn.Module):
    """The Gaussian denoiser of each class, in closed form, as a network of EDM's F."""

    clock, per_sample = "edm", ("label",)

    def __init__(self, shift: torch.Tensor) -> None:
        super().__init__()
        self.map = Exact(shift=shift)

    def forward(self, y, told, label):
        u = torch.atan(torch.exp(4 * told) / C)
        return self.map(y, told, torch.asinh(u / 0.05) / 2, label)


def test_conditions_go_to_both_and_the_flow_of_a_network_is_solved():
    shift = normal(3, 3, seed=4)
    model = exact(shift=shift)
    known = Network(Shifted(shift), VP, predict.EDM(C), shape=(3,)).eval()
    label = torch.arange(64) % 3
    report = check_flow_map(model, known, n=64, tolerance=5e-3, label=label)
    assert report.passed, str(report)
    other = check_flow_map(exact(shift=-shift), known, n=64, label=label)
    assert not other.passed


def test_a_map_from_its_teacher_is_no_flow_until_it_is_trained():
    known = teacher()
    model = FlowMap.from_teacher(known)
    report = check_flow_map(model, known, n=64, tolerance=0.01)
    assert not report.passed
    assert report.entries[0].measured == 0.0
    assert check_flow_map(model.on(FlowSDE(t_min=0.011, t_max=0.99)), known, n=64, calls=[1]).entries[0].passed


KNOWN: Any = Gaussian(VP, MEAN, VARIANCE)
MODEL: Any = exact()


@refuses(
    (lambda: check_flow_map(wrong(FlowMap), KNOWN), T, "check_flow_map takes a FlowMap, such as FlowMap.from_teacher("),
    (lambda: check_flow_map(KNOWN, KNOWN), T, "takes a FlowMap, got Gaussian: hand over the map inside, or make one"),
    (lambda: check_flow_map(Clipped(MODEL), KNOWN), T, "takes a FlowMap, got Clipped: hand over the map inside"),
    (lambda: check_flow_map(MODEL, wrong(lambda x, t: x)), T, "the teacher must be a Denoiser, such as Network("),
    (lambda: check_flow_map(MODEL, KNOWN, n=8), V, "n must be at least 32, and rather 512, got 8"),
    (lambda: check_flow_map(MODEL, KNOWN, calls=[]), V, "calls are numbers of calls that the map was trained for"),
    (lambda: check_flow_map(MODEL, KNOWN, calls=[0]), V, "each of calls must be at least 1, got 0"),
    (lambda: check_flow_map(exact(reach=(math.inf, 0.0)), KNOWN, calls=[2]), V, "such as [1], got [2]"),
    (
        lambda: check_flow_map(MODEL, KNOWN, n=64, label=PerSample(torch.arange(9))),
        V,
        "and 9 rows came for 64 samples: give 64, or one for all. What the network takes whole goes in as "
        "label=Shared(label); check_flow_map measures n=64 rows, and takes another n=",
    ),
    (lambda: check_flow_map(MODEL, KNOWN, tolerance=-1.0), V, "tolerance"),
    (
        lambda: check_flow_map(awake(FlowMap(Exact(), VP)), awake(Network(Exact(), VP))),
        V,
        "the event shape is not known",
    ),
    (lambda: flow_map().on(wrong(3)), T, "a denoiser can be seen through a GaussianSDE, not a int"),
)
def test_it_refuses(call, error, text):
    check(call, error, text)
