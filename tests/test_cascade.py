"""Claim: stages that know the law of high resolutions given a low one draw it, and a cascade of them the joint law."""

from __future__ import annotations

import inspect
import math
from itertools import count
from typing import Any

import pytest
import torch
from cascades import SDE, WIDE, Told, cascade, conditional, gaussian, pooling, stage
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_processes
from torch import Tensor

from sde_diffusion import Level, NonFiniteWarning, Prediction, SDESampler, SolverError, analytic
from sde_diffusion.cascade import Cascade, LowResolution, Upsampler
from sde_diffusion.data import Standardise
from sde_diffusion.likelihood import Density
from sde_diffusion.noise import BrownianPath, seeds
from sde_diffusion.sampler.distributed import sample_to
from sde_diffusion.sde import schedules
from sde_diffusion.solvers import DDIM, RK4, EulerMaruyama, Heun, SDEDPMSolverPP

LOWS = [LowResolution(2, context="haze"), LowResolution(2, context="haze")]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the children start no threads


def within(found, wanted, n, name):
    """Mean and covariance of draws (n, d) against a law, within 4 standard errors of each entry."""
    mean, c = wanted
    x = found.flatten(1)
    worst = ((x.mean(0) - mean.flatten()) / (c.diagonal() / n).sqrt()).abs().max()
    var = c.diagonal()
    error = ((c.square() + var[:, None] * var) / n).sqrt()
    off = ((torch.cov(x.T) - c) / error).abs().max()
    print(f"{name}: mean {worst:.1f}, covariance {off:.1f} standard errors off at most")
    assert worst < 4
    assert off < 4.5  # of up to 36 entries


# --- one stage


@pytest.mark.parametrize(
    ("shape", "factor", "residual", "level"),
    [
        ((1, 4), 2, 0.0, 0.2),
        ((1, 6), 3, 0.7, 0.5),
        ((2, 2, 4), (1, 2), 0.5, 0.1),
        ((1, 2, 2, 2), 2, 0.0, 0.0),
    ],
)
def test_the_law_of_high_resolutions_given_a_low_one_is_the_one_of_the_textbook(shape, factor, residual, level):
    """By impulses, as the solver is affine: the offset is the mean, the response a root of the covariance."""
    mean, covariance = gaussian(shape)
    low = LowResolution(factor, residual=residual, context="haze")
    up = stage((mean, covariance), low, level=level, solver=RK4(), steps=30)
    given_low = torch.linspace(-1, 1, low.shrink(mean[None]).numel(), dtype=WIDE).reshape(low.low_shape(shape))
    z = low.shrink(up.told(given_low, seed=3)["image"].value)
    assert torch.equal(z[0], given_low) == (level == 0)
    wanted, spread = conditional(mean, covariance, low, z[0], level)
    centre = low.lacking(wanted.reshape(1, *shape), z).flatten()  # the mean of where the solve starts, as alpha = 1
    d, sigma = len(wanted), SDE.levels([SDE.t_max])[0].sigma
    start = centre + torch.cat([torch.zeros(1, d, dtype=WIDE), sigma * torch.eye(d, dtype=WIDE)])
    x = up.sample(low=given_low, seed=[3] * (d + 1), x_T=start.reshape(-1, *shape)).flatten(1)
    response = (x[1:] - x[0]).T
    assert (x[0] - wanted).abs().max() < 1e-6
    assert (response @ response.T - spread).abs().max() < 2e-3


@pytest.mark.parametrize("residual", [0.0, 0.5])
def test_the_density_of_a_stage_is_that_of_the_data(residual):
    mean, covariance = gaussian((1, 4))
    low = LowResolution(2, residual=residual, context="haze")
    far, s = schedules.EDMSDE(0.002, 80_000.0), 0.04  # so far that the mean is lost in the noise
    up = Upsampler(SDESampler(far, Told(mean, covariance, low, far)), low, level=0.3)
    x = torch.randn(3, 1, 4, dtype=WIDE, generator=torch.Generator().manual_seed(1))
    z = low.shrink(up.told(low.shrink(x), seed=5)["image"].value)
    scale = residual or 1.0
    found = up.log_prob(x, low=low.shrink(x), density=Density(level=s / scale), seed=5, batch_size=2)
    for i, one in enumerate(x):
        centre, spread = conditional(mean, covariance, low, z[i], 0.3)
        law = torch.distributions.MultivariateNormal(centre, spread + s**2 * torch.eye(4, dtype=WIDE))
        assert abs(float(found.value[i] - law.log_prob(one.flatten()))) < 1e-4
    assert abs(found.level - s) < 1e-9


def test_a_model_that_is_told_no_level_knows_that_there_is_none():
    low = LowResolution(2, most=0)
    mean, covariance = gaussian((1, 4))
    assert set(stage((mean, covariance), low, level=0.0).told(torch.zeros(1, 1, 2))) == {"image"}


# --- all stages


@pytest.mark.parametrize(("solver", "steps", "n"), [(Heun(), 40, 4000), (SDEDPMSolverPP(2), 30, 1500)])
def test_a_cascade_of_exact_stages_has_the_joint_law(solver, steps, n):
    s = 0.3
    model, laws = cascade(LOWS, levels=s, solver=solver, steps=steps)
    xs = model.sample_stages(n, seed=0)
    for k, (x, law) in enumerate(zip(xs, laws, strict=True)):
        within(x, law, n, f"stage {k}")
    # a resolution and the one below it know of each other by the noised one alone
    mean, c = laws[2]
    p = pooling(LOWS[1], mean.shape)
    below = p @ c @ p.T
    wanted = below @ torch.linalg.inv(below + s**2 * torch.eye(4, dtype=WIDE)) @ p @ c
    a, b = (x.flatten(1) - m.flatten() for x, (m, _) in zip(xs[1:], laws[1:], strict=True))
    error = ((wanted.square() + below.diagonal()[:, None] * c.diagonal()) / n).sqrt()
    assert ((a.T @ b / n - wanted) / error).abs().max() < 4.5


def test_the_low_resolution_of_what_is_drawn_lies_the_level_from_the_noised_one():
    n, s = 4000, 0.3
    model, _ = cascade(LOWS[:1], shape=(1, 4), levels=s, steps=20)
    x = model.sample_stages(n, seed=0)
    up, own = model.stages[1], seeds.apart(list(range(n)), 1)
    z = LOWS[0].shrink(up.told(x[0], seed=own)["image"].value)
    off = LOWS[0].shrink(x[1]) - z
    rms = math.sqrt(off.square().mean())
    assert abs(rms - s) < 4 * s / math.sqrt(2 * off.numel())
    assert (LOWS[0].shrink(x[1]) - x[0]).square().mean().sqrt() < math.sqrt(2) * s


# --- seeds, batches, the rest of what samplers do

SMALL, _ = cascade(LOWS, steps=4, solver=DDIM(1.0))


def same(x, y):
    """Up to how matrices are multiplied by more or fewer rows, in float64."""
    return torch.allclose(x, y, rtol=0, atol=1e-12)


FIVE = SMALL.sample(5, seed=7)


def test_sample_i_depends_on_seed_i_alone():
    assert same(SMALL.sample(seed=10), FIVE[3:4])
    assert same(SMALL.sample(5, seed=7, batch_size=2, progress=True), FIVE)
    assert same(SMALL.sample(3, seed=[11, 7, 8]), FIVE[[4, 0, 1]])
    assert not torch.equal(SMALL.sample(2), SMALL.sample(2))
    shared = [SMALL.sample(3, seed=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*shared)
    up, low = SMALL.stages[1], torch.randn(5, 1, 2, dtype=WIDE)
    assert same(up.sample(low=low, seed=0, batch_size=3)[3], up.sample(low=low[3], seed=3)[0])


def test_the_solves_step_by_step_end_with_the_samples():
    stages = list(SMALL.iterate(5, seed=7))
    assert [s.stage for s in stages] == sorted(s.stage for s in stages)
    last = {s.stage: s.now.x for s in stages}
    for x, y in zip(SMALL.sample_stages(5, seed=7), last.values(), strict=True):
        assert torch.equal(x, y)


def test_the_states_of_a_residual_are_those_of_the_data():
    mean, covariance = gaussian((1, 4))
    plain = stage((mean, covariance), LowResolution(2, context="haze"), solver=RK4(), steps=30)
    rest = stage((mean, covariance), LowResolution(2, residual=0.5, context="haze"), solver=RK4(), steps=30)
    low = torch.randn(2, 1, 2, dtype=WIDE)
    a, b = (list(up.iterate(low=low, seed=0, noise=BrownianPath)) for up in (plain, rest))
    assert torch.equal(b[-1].x, rest.sample(low=low, seed=0, noise=BrownianPath))
    open_end = Upsampler(
        SDESampler(SDE, rest.sampler.models[0], steps=30, solver=RK4(), denoise=False), rest.low_resolution
    )
    up = open_end.sample(low=low, seed=0, noise=BrownianPath)
    assert len(a) == len(b)
    assert torch.equal(list(open_end.iterate(low=low, seed=0, noise=BrownianPath))[-1].x, up)


def test_a_state_that_was_written_to_is_refused_as_the_next_stage_would_go_on_from_it():
    up = stage(gaussian((1, 4)), LowResolution(2, residual=0.5, context="haze"), steps=2)
    low = torch.zeros(2, 1, 2)
    alone: Any = up.iterate(low=low)
    next(alone).x.mul_(0.5)
    with pytest.raises(ValueError, match=r"state of snapshot 0 was written to between two steps, .*now\.x\.clone"):
        next(alone)
    solve: Any = Cascade([up, stage(gaussian((1, 8)), LOWS[1], steps=2)]).iterate(low=low)
    [next(solve) for _ in up.iterate(low=low)][-1].now.x.mul_(0.5)
    with pytest.raises(ValueError, match="was written to"):
        next(solve)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3, unique=True))
@settings(max_examples=20, deadline=None)
def test_no_two_uses_of_a_seed_have_one_stream_and_no_two_seeds_in_one_use(some):
    uses: list[Any] = [seeds.apart(some, k) for k in range(1000)]
    noised: list[Any] = [seeds.apart(own, seeds.Use.AUGMENTATION) for own in uses]
    for i in range(len(some)):
        assert len({own[i] for own in uses + noised}) == 2000
    assert all(len(set(own)) == len(some) and max(own) < 2**32 for own in uses)
    assert seeds.apart(some, 0) == some


def test_gradients_lead_through_all_stages():
    mean, covariance = gaussian((1, 4))
    up = stage((mean, covariance), LOWS[0], solver=Heun(), steps=5)
    low = torch.randn(1, 1, 2, dtype=WIDE, requires_grad=True)
    torch.autograd.gradcheck(lambda low: up.sample(low=low, seed=0, grad=True), low)
    assert not up.sample(low=low, seed=0).requires_grad
    model = Cascade([up, stage(gaussian((1, 8)), LOWS[1], steps=3, solver=Heun())])
    assert torch.autograd.grad(model.sample(low=low, seed=0, grad=True).sum(), low)[0].abs().min() > 0


def test_gradients_are_kept_where_all_else_goes_without():
    up = stage(gaussian((1, 4)), LowResolution(2, residual=0.5, context="haze"), steps=2)
    one = Standardise(torch.tensor(0.0), torch.tensor(0.5))
    model = Cascade([up, stage(gaussian((1, 8)), LOWS[1], steps=2)], scalings=[one, one])
    low = torch.randn(2, 1, 2, dtype=WIDE, requires_grad=True)
    with torch.no_grad():
        solve = [now.x for now in up.iterate(low=low, seed=0, grad=True)]
        stages = [found.now.x for found in model.iterate(low=low, seed=0, grad=True)]
        x = model.sample(2, low=low, seed=0, grad=True, batch_size=1)
        parts = up.sample(low=low, seed=0, grad=True, batch_size=1)
    for y in (*solve, stages[-1], x, parts):
        assert torch.autograd.grad(y.sum(), low, retain_graph=True)[0].abs().min() > 0


@pytest.mark.parametrize("solver", [EulerMaruyama(), DDIM(0.5)])
def test_paths_and_lost_rows_are_those_of_the_samplers(solver):
    mean, covariance = gaussian((1, 4))
    up = stage((mean, covariance), LOWS[0], solver=solver, steps=6)
    low = torch.randn(3, 1, 2, dtype=WIDE)
    x = up.sample(low=low, seed=0, noise=BrownianPath)
    low[1, 0, 0] = math.nan
    with pytest.warns(NonFiniteWarning, match=r"row 1 \(1 of 3\) have a low resolution"):
        found = up.sample(low=low, seed=0, noise=BrownianPath, nonfinite="keep")
    assert found[1].isnan().all()
    assert same(found[[0, 2]], x[[0, 2]])


def test_an_error_names_its_stage():
    class Sick(Told):
        def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
            return super().predict(x * math.nan, at, **cond)

    sick = Cascade([SMALL.stages[0], stage(gaussian((1, 4)), LOWS[0], kind=Sick, steps=4)])
    with pytest.raises(SolverError, match=r"in stage 1 of the cascade, samples 0 to 1, .*: non-finite"):
        sick.sample(4, seed=0, batch_size=2)


def test_a_cascade_is_drawn_by_processes_and_goes_on_after_a_kill(tmp_path):
    job: dict[str, Any] = {"seed": 7, "batch_size": 2, "shard_size": 4}
    wanted = SMALL.sample(10, seed=7, batch_size=2)
    calls, draw = count(), SMALL.stages[2].sample

    def failing(*args, **kwargs):
        if next(calls) == 3:
            raise OSError("the machine is on fire")
        return draw(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SMALL.stages[2], "sample", failing)
        with pytest.raises(OSError, match="on fire"):
            sample_to(SMALL, 10, tmp_path / "a", **job)
    for found in run_processes(2, lambda rank: sample_to(SMALL, 10, tmp_path / "a", **job).tensor(), tmp_path / "two"):
        assert torch.equal(found, wanted)
    low = torch.randn(10, 1, 2, dtype=WIDE)
    up = SMALL.stages[1]
    found = sample_to(up, 10, tmp_path / "b", low=low, **job).tensor()
    assert torch.equal(found, up.sample(low=low, seed=7, batch_size=2))
    other, _ = cascade(LOWS, steps=4, solver=DDIM(1.0), levels=0.3)
    with pytest.raises(ValueError, match="sampler"):
        sample_to(other, 10, tmp_path / "a", **job)


# --- conditions and units


class Labelled(analytic.Gaussian):
    """Shifted by its label, which every row has."""

    per_sample: tuple[str, ...] = ("label",)

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        label = cond["label"]
        p = super().predict(x - at.alpha * label.reshape(-1, 1, 1), at)
        return type(p)(lambda: p.data + label.reshape(-1, 1, 1), lambda: p.noise)


def test_conditions_go_to_the_stages_that_take_them_each_with_its_rows():
    base = SDESampler(SDE, Labelled(SDE, *gaussian((1, 2))), steps=4)
    up = stage(gaussian((1, 4)), LOWS[0], steps=4)
    model = Cascade([base, up], takes=[("label",), ()])
    label = torch.tensor([0, 1, 2])
    x = model.sample(3, seed=0, label=label)
    assert same(x, model.sample(3, seed=0, batch_size=2, label=label))
    assert same(x[2:], model.sample(seed=2, label=label[2:]))
    assert not torch.equal(x, model.sample(3, seed=0, label=torch.zeros(3).long()))
    with pytest.raises(ValueError, match="no stage is told condition 'style'"):
        model.sample(style=1)


class Rough(Told):
    """Told something by the name of an option of calls."""

    per_sample = ("image", "haze", "steps")

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        assert cond["steps"].shape == (len(x),)
        return super().predict(x, at, **cond)


def test_a_condition_may_be_called_as_an_option_is(tmp_path):
    up = stage(gaussian((1, 4)), LOWS[0], steps=2, kind=Rough)
    steps, low = torch.arange(3.0), torch.zeros(3, 1, 2)
    x = up.sample(seed=0, cond={"low": low, "steps": steps})
    model = Cascade([up, SMALL.stages[2]], takes=[("steps",), ()])
    a, b = model.sample_stages(3, seed=0, cond={"low": low, "steps": steps})
    assert torch.equal(a, x)
    for cond in ({"low": low, "steps": steps}, {"low": low[:1], "steps": steps}):
        found = sample_to(model, 3, tmp_path / str(len(cond["low"])), seed=0, batch_size=1, cond=cond).tensor()
        assert same(found, b)


class Whole(Labelled):
    """Takes a table of labels whole, and the first of them."""

    per_sample = ()

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        assert cond["label"].shape == (3,)
        return super().predict(x, at, label=cond["label"][:1].expand(len(x)))


class Named(Told):
    """Has a label of its own for each row."""

    per_sample = ("image", "haze", "label")

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        assert cond["label"].shape == (len(x),)
        return super().predict(x, at, **cond)


def test_each_stage_sorts_what_it_is_told_before_the_first_draws(tmp_path):
    base = SDESampler(SDE, Whole(SDE, *gaussian((1, 2))), steps=2)
    model, label = Cascade([base, stage(gaussian((1, 4)), LOWS[0], steps=2, kind=Named)]), torch.tensor([1, 2, 3])
    x = model.sample(3, seed=0, label=label)
    assert same(model.sample(3, seed=0, label=label, batch_size=2), x)
    assert same(sample_to(model, 3, tmp_path / "a", seed=0, batch_size=2, label=label).tensor(), x)

    drawn: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "sample", lambda *_, **__: drawn.append(1))
        with pytest.raises(ValueError, match=r"condition 'haze' is told by the low .* kept from this one by takes"):
            model.sample(3, label=label, haze=torch.zeros(3, 1))
        with pytest.raises(ValueError, match="condition 'label' has one row per sample, and 3 rows came for 2 samples"):
            model.sample(2, label=label)
    assert not drawn


def test_units_of_a_stage_are_brought_to_those_of_the_next():
    base, up = SMALL.stages[:2]
    scalings = [Standardise(torch.tensor(1.0), torch.tensor(0.5)), Standardise(torch.tensor(-1.0), torch.tensor(2.0))]
    a, b = Cascade([base, up], scalings=scalings).sample_stages(3, seed=0)
    assert torch.equal(b, up.sample(3, seed=seeds.apart([0, 1, 2], 1), low=(a * 0.5 + 1 + 1) / 2))


def test_the_words_of_a_cascade_say_what_it_is():
    assert repr(SMALL).startswith("Cascade([SDESampler(EDMSDE(")
    assert "Upsampler(SDESampler(" in repr(SMALL)
    assert "LowResolution(factor=2, most=0.5, residual=0.0, image='image', context='haze'), level=0.2)" in repr(SMALL)
    assert "takes=[(), None, None]" in repr(Cascade(SMALL.stages, takes=[(), None, None]))
    assert "scalings=[" in repr(Cascade(SMALL.stages[:1], scalings=[Standardise(torch.tensor(0.0), torch.tensor(1.0))]))
    assert SMALL.shape == (1, 8)
    assert len(SMALL.models) == 3


def test_the_arguments_are_those_of_the_sampler():
    own = inspect.signature(SDESampler.sample).parameters
    assert set(inspect.signature(Upsampler.sample).parameters) == set(own)
    assert set(inspect.signature(Cascade.sample).parameters) == set(own) - {"x_T"}
