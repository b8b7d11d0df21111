"""Claim: a short run on an exact teacher makes a map of one or two calls, which still is a denoiser with a likelihood.

Eight Gaussians in the plane, the shortcut objective, a fresh net that is smaller than the default, 1,400 steps; the
bounds are those of 2,000 steps of the default, which `benchmarks/flow_maps.py` runs, the figures are those found here.
"""

from __future__ import annotations

import math

import pytest
import torch

from sde_diffusion import EDMSDE, SDESampler, predict
from sde_diffusion.denoiser.analytic import isotropic_mixture
from sde_diffusion.distillation import FlowMap, Shortcut
from sde_diffusion.metrics import energy_distance
from sde_diffusion.nets import MLP
from sde_diffusion.testing import check_flow_map
from sde_diffusion.training import Recipe, train

pytestmark = pytest.mark.slow

SDE = EDMSDE()
TEACHER = isotropic_mixture(SDE, [[math.cos(a), math.sin(a)] for a in (k * math.pi / 4 for k in range(8))], 0.1)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    fresh = FlowMap(MLP(2, hidden=96, layers=3, until=True), SDE, predict.EDM(TEACHER.data_std), shape=(2,))
    x0 = TEACHER.sample(20_000, seed=0).float()
    return train(fresh, x0, steps=1400, loss=Shortcut(TEACHER), recipe=Recipe(256, 4e-3), seed=0).model


def figure(report, start):
    (found,) = (float(entry.measured) for entry in report.entries if entry.claim.startswith(start))
    return found


def test_it_leads_where_the_flow_does_and_does_not_contradict_itself(trained):
    report = check_flow_map(trained, TEACHER, calls=[1, 2], tolerance=0.15)
    print(report)
    assert figure(report, "1 call: distance") <= 0.15  # .071
    assert figure(report, "2 calls: distance") <= 0.12  # .057
    assert figure(report, "two jumps lead where one does") <= 0.05  # .019
    assert figure(report, "where it stays") == 0.0


@pytest.mark.parametrize("nfe", [1, 2])
def test_its_samples_have_the_law_of_the_data(trained, nfe):
    samples = SDESampler(SDE, trained, nfe=nfe).sample(8192, seed=10).double()
    floor = energy_distance(TEACHER.sample(8192, seed=1), TEACHER.sample(8192, seed=2))
    found = energy_distance(samples, TEACHER.sample(8192, seed=3))
    print(f"energy distance {found:.5f}, that of two samples of the data {floor:.5f}")
    assert found <= 0.004  # .0003


def test_its_likelihood_is_that_of_the_data(trained):
    x = TEACHER.sample(500, seed=5)
    told = SDESampler(SDE, trained).log_prob(x.float()).value
    bar = float(told.std()) / math.sqrt(len(x))  # over samples, as it says itself
    off = told - TEACHER.data_log_prob(x)
    print(f"{float(told.mean()):.4f} +- {bar:.4f} nats, off by {float(off.mean()):.4f}")
    assert abs(float(off.mean())) <= bar
