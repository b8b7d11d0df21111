"""Claim: particles that cannot be weighed are refused in a sentence, and weights that fail are told with their step."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from twists import SDE, Powers, given, line
from twists import measured as problem
from zoo import DoubleWell

from sde_diffusion import VPSDE, Clipped, Matched, Problem, SDESampler, SolverError
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.denoiser.base import On
from sde_diffusion.guidance import DPS, Mask, Matrix, Moments, Posterior, PseudoInverse
from sde_diffusion.particles import Particles, ParticleSampler, ParticleWarning, importance_evidence
from sde_diffusion.particles.telling import tell_of_steps
from sde_diffusion.solvers import EulerMaruyama, Heun

F64 = torch.float64
MODEL = line([0.3, 0.7], [-1.0, 1.0], 0.25)
A = torch.ones(1, 1, dtype=F64)
TARGET = given(MODEL, A, 0.5)
OTHER = VPSDE(t_min=0.01, t_max=0.9)
Y = torch.ones(1, dtype=F64)
TIMES = [1.0 - 0.049 * i for i in range(18)]


def _any(value: Any) -> Any:
    return value


class Broken(Posterior):
    """Answers a twist of its own where the noise is less than that of a level."""

    def __init__(self, twist, below=math.inf, end=None):
        super().__init__(MODEL, Matrix(A), 0.5)
        self.twist, self.below, self.end = twist, below, end

    def weigh(self, x, at, **cond):
        look = super().weigh(x, at, **cond)
        return look._replace(log_twist=torch.full_like(look.log_twist, self.twist)) if at.t < self.below else look

    def log_likelihood(self, x0, **cond):
        found = super().log_likelihood(x0, **cond)
        return found if self.end is None else torch.full_like(found, self.end)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (
            lambda: ParticleSampler(SDE, TARGET, particles=1),
            ValueError,
            "one particle has nothing to be weighed",
        ),
        (lambda: ParticleSampler(SDE, TARGET, particles=_any(2.5)), TypeError, "particles must be an integer"),
        (lambda: ParticleSampler(SDE, TARGET, order=3), ValueError, "order must be 1 or 2, got 3"),
        (lambda: ParticleSampler(SDE, TARGET, threshold=1.5), ValueError, "threshold is a share of the particles"),
        (lambda: ParticleSampler(SDE, TARGET, steps=0), ValueError, "steps must be at least 1"),
        (lambda: ParticleSampler(SDE, TARGET, grid=[0.1, 1.0]), ValueError, "falls from noise to data"),
        (lambda: ParticleSampler(SDE, TARGET, grid=[1.0, 0.1], steps=2), ValueError, "the grid given has 1 steps"),
        (lambda: ParticleSampler(SDE, MODEL), TypeError, "got GaussianMixture: its own law needs no particles"),
        (lambda: ParticleSampler(SDE), TypeError, "target must be a Twisted model"),
        (lambda: ParticleSampler(SDE, Clipped(TARGET)), TypeError, r"Put it inside, Posterior\(Clipped\(model\)\)"),
        (lambda: ParticleSampler(OTHER, On(TARGET, OTHER)), TypeError, r"Put it inside, Posterior\(model\.on\(sde\)\)"),
        (
            lambda: ParticleSampler(SDE, Posterior(TARGET, TARGET.measurement, 1.0, name="z")),
            TypeError,
            "set right one rule alone",
        ),
        (
            lambda: ParticleSampler(SDE, given(Powers([MODEL], [2.0]), A, 1.0)),
            TypeError,
            "is around Powers",
        ),
        (
            lambda: ParticleSampler(SDE, Powers([MODEL, MODEL], [1.0, -1.0])),
            ValueError,
            "a positive sum, got 0",
        ),
        (lambda: ParticleSampler(SDE, given(MODEL, A, 1.0, rule=Moments(1))), TypeError, "and so no twist"),
        (lambda: ParticleSampler(VPSDE(), TARGET), ValueError, "the denoiser was made for"),
        (lambda: ParticleSampler(_any(object()), TARGET), TypeError, "sde must be an SDE"),
        (lambda: ParticleSampler(Problem(SDE, TARGET), TARGET), TypeError, "a Problem has its model"),
        (
            lambda: ParticleSampler(Problem(SDE, Powers([MODEL], [2.0]), prior=Matched(0.0, 1.0))),
            ValueError,
            r"a product starts from the powers of N\(0, sigma\^2\)",
        ),
    ],
)
def test_what_cannot_be_weighed_is_refused(make, kind, words):
    with pytest.raises(kind, match=words):
        make()


def test_a_general_process_is_refused():
    with pytest.raises(TypeError, match="DoubleWell is a general SDE"):
        ParticleSampler(DoubleWell(), TARGET)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"systems": 0}, ValueError, "systems must be at least 1"),
        ({"systems": 2, "seed": [1]}, ValueError, "got 1 seeds"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"progress": 1}, TypeError, "progress must be True or False"),
        ({"steps": 5}, TypeError, r"write ParticleSampler\(sde, target, steps=\.\.\.\)"),
        ({"systems": 2, "y": torch.ones(3, 1, dtype=F64)}, ValueError, "shape"),
        ({"systems": 3, "seed": [3, 4, 3]}, ValueError, "seed 3 comes twice, and two systems of one seed are one"),
    ],
)
def test_a_draw_that_does_not_fit_is_refused(options, kind, words):
    with pytest.raises(kind, match=words):
        ParticleSampler(SDE, TARGET, particles=4, steps=2).sample(**{"y": Y, **options})


def test_one_step_has_no_half():
    with pytest.raises(ValueError, match="one step has no half"):
        ParticleSampler(SDE, TARGET, particles=4, steps=1).sample(y=Y, solver_error=True)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            Broken(-math.inf),
            r"all 8 weights of system 0 \(seed 3\) of Broken are zero after step 0, at t = 1",
        ),
        (Broken(-math.inf, 0.1), "are zero after step [1-9], at t = 0.0"),
        (Broken(0.0, -1.0, -math.inf), "are zero at the data themselves: the likelihood is 0 at every particle"),
        (Broken(math.nan, 0.1), "8 of 8 weights of system 0 .* are not finite after step [1-9]"),
        (Broken(math.inf), "8 of 8 weights .* are not finite after step 0"),
    ],
    ids=["from the start", "on the way", "at the end", "nan", "infinite"],
)
def test_weights_that_fail_are_told_with_their_step(target, words):
    with pytest.raises(SolverError, match=words):
        ParticleSampler(SDE, target, particles=8, steps=10).sample(seed=3, y=Y)


def test_some_weights_of_zero_are_none_of_an_error():
    class Half(Broken):
        def log_likelihood(self, x0, **cond):
            return torch.where(x0[:, 0] > 0, 0.0, -math.inf)

    found = ParticleSampler(SDE, Half(0.0), particles=400, steps=40, threshold=1.0).sample(4, seed=0, y=Y)
    assert (found.draw(500, seed=0) > 0).all()
    share = float((MODEL.sample(20_000, seed=0) > 0).double().mean())
    assert found.log_evidence == pytest.approx(math.log(share), abs=0.1)


def test_few_particles_that_count_are_told_of():
    prior, a, y = problem(8, 4, 0.1, 0)
    sampler = ParticleSampler(SDE, given(prior, a, 0.1), particles=16, steps=8, threshold=0.0)
    with pytest.warns(ParticleWarning, match="fewer than 10 particles count in the end"):
        sampler.sample(2, seed=0, y=y)


@pytest.mark.parametrize(
    ("rule", "few"),
    [
        (Moments(), "in 4 of 4 systems fewer than 5 of 64 particles counted on the way .* after step 68, at t = 0.0"),
        (PseudoInverse(), None),
    ],
)
def test_few_particles_that_counted_on_the_way_are_told_of(rule, few, recwarn):
    # eight bumps on a ring of radius 1, and a measurement three from its centre: exact -34.92
    angle = torch.arange(8, dtype=F64) * math.pi / 4
    ring = GaussianMixture(VPSDE(), torch.ones(8), torch.stack([angle.cos(), angle.sin()], 1), 0.02)
    sampler = ParticleSampler(VPSDE(), Posterior(ring, Mask(torch.tensor([True, False])), 0.2, rule), particles=64)
    warnings.simplefilter("always")
    found = sampler.sample(4, seed=0, y=torch.tensor([3.0], dtype=F64))
    off = abs(found.log_evidence - ring.log_evidence(torch.eye(2, dtype=F64)[:1], 3.0 * torch.ones(1, dtype=F64), 0.2))
    print(f"log evidence off by {off:.2f}: {found}")
    assert (off > 5, found.few) == (few is not None, few is not None)
    assert [bool(re.search(few or "", str(one.message))) for one in recwarn] == [True] * (few is not None)
    assert str(found).endswith(", few particles count") == found.few


@pytest.mark.parametrize("ask", ["log_evidence", "standard_error", "effective", "interval", "mean", "var", "draw"])
def test_systems_of_a_law_each_are_not_pooled(ask):
    found = Particles(torch.zeros(2, 3, 1), torch.zeros(2, 3, dtype=F64), torch.ones(2, 2), 3, apart=("y", "label"))
    with pytest.raises(ValueError, match=rf"{ask} is that of one law, and each of the 2 systems has y, label of its"):
        found.draw(2) if ask == "draw" else getattr(found, ask)()
    with pytest.raises(IndexError, match="there are 2 systems, from 0 to 1, got m=2"):
        found.system(2)


def test_a_jump_from_too_much_noise_is_told_of():
    target = given(MODEL, A, 0.01)
    sampler = ParticleSampler(SDE, target, particles=200, grid=[*TIMES, 0.05])
    with pytest.warns(ParticleWarning, match="the last noise level is not small against what"):
        sampler.sample(1, seed=0, y=Y)


def test_an_interval_of_one_system_or_of_no_probability_is_refused():
    found = Particles(torch.zeros(1, 3, 1), torch.zeros(1, 3, dtype=F64), torch.ones(1, 2), 3)
    assert math.isnan(found.standard_error)
    with pytest.raises(ValueError, match="one system does not tell"):
        found.interval()
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        found.interval(95)


def sampler_of(model):
    return SDESampler(SDE, model, solver=Heun(), steps=8)


@pytest.mark.parametrize(
    ("sampler", "kind", "words"),
    [
        (TARGET, TypeError, "sampler must be an SDESampler of a Twisted model, got Posterior"),
        (sampler_of(MODEL), TypeError, "the evidence is that of a likelihood, by a Twisted model such as Posterior"),
        (SDESampler(SDE, TARGET, solver=EulerMaruyama(), steps=4), TypeError, "EulerMaruyama"),
        (SDESampler(SDE, TARGET), TypeError, r"is stochastic: use solver=DormandPrince\(\), Heun\(\)"),
        (sampler_of(Broken(0.0, end=-math.inf)), SolverError, "all 4 weights are zero: no sample of Broken has a"),
        (sampler_of(Broken(0.0, end=math.nan)), SolverError, "4 of 4 samples have no weight"),
    ],
)
def test_importance_weights_that_cannot_be_had_are_refused(sampler, kind, words):
    with pytest.raises(kind, match=words):
        importance_evidence(sampler, 4, seed=0, y=Y)


@pytest.mark.parametrize(
    ("n", "y", "words"),
    [
        (1, Y, "one sample has nothing to be weighed against"),
        (2, torch.tensor([[0.0], [1.0]], dtype=F64), "condition 'y' differs between the 2 samples"),
    ],
)
def test_samples_that_are_not_weighed_together_are_refused(n, y, words):
    with pytest.raises(ValueError, match=words):
        importance_evidence(sampler_of(TARGET), n, seed=0, y=y)


def test_few_samples_that_count_are_told_of():
    with pytest.warns(ParticleWarning, match="fewer than 10 particles count"):
        found = importance_evidence(sampler_of(given(MODEL, A, 0.05, rule=DPS(0.1))), 16, seed=0, y=Y)
    assert found.few
    assert str(found).endswith(", few particles count")


def test_steps_that_make_more_of_a_difference_than_chance_are_told_of():
    found = ParticleSampler(SDE, TARGET, particles=64, steps=20).sample(8, seed=0, y=Y)
    much = replace(found, solver_error=10 * found.standard_error)
    with pytest.warns(
        ParticleWarning, match=r"half the steps change the log evidence by .* nats, and its standard error"
    ):
        tell_of_steps(much)
    tell_of_steps(replace(found, solver_error=found.standard_error))
    tell_of_steps(found)
