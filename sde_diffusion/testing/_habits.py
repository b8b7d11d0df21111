"""The rules that every solver keeps, whatever it computes: rows do not mix, evaluations are counted, seeds decide."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import product, zip_longest

import torch
from torch import Tensor

from sde_diffusion import solvers
from sde_diffusion._checks import SolverError
from sde_diffusion.denoiser import predict
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.denoiser.base import Denoiser, Wrapper
from sde_diffusion.denoiser.network import Network
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.sde import grids
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers import Solver
from sde_diffusion.solvers.base import facts_of
from sde_diffusion.testing.orders import times

STEPS = 6
WIDE = (1.55, 0.02)  # angles: nearly all noise, nearly all data; some solvers cannot start where no data are left
NEAR = (0.6, 0.05)  # short enough not to forget where it started, low enough for the window of a `Restart`
ADVICE = 20  # a message this short names no cause


class Counted(Wrapper):
    """A denoiser that counts its calls, whoever makes them."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.calls = 0

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        self.calls += 1
        return self.inner.predict(x, at, **cond)


def model_of(sde: GaussianSDE, dtype: torch.dtype = torch.float64) -> GaussianMixture:
    """An exact mixture of two unequal components along the axes.

    Its prediction takes no matrix products, whose rounding depends on the batch.
    """
    means = torch.tensor([[0.6, -0.3, 0.0], [-0.5, 0.4, 0.2]], dtype=dtype)
    variances = torch.tensor([[0.2, 0.1, 0.3], [0.05, 0.4, 0.1]], dtype=dtype)
    return GaussianMixture(sde, torch.tensor([0.4, 0.6], dtype=dtype), means, variances)


def steps_of(solver: Solver) -> int:
    """How many steps to try a solver with: fewer for one that makes many steps of its own in each."""
    return STEPS if solver.facts.evaluations is not None else 2


def sampler_of(
    solver: Solver, model: Denoiser, steps: int | None = None, between: tuple[float, float] = WIDE
) -> SDESampler:
    """Makes a sampler over most of the range, without the final jump."""
    grid = times(model.sde, steps or steps_of(solver), between)
    return SDESampler(model.sde, model, solver=solver, grid=grid, denoise=False)


def attributes(solver: Solver) -> str:
    """Complains about facts of a solver that make no sense; a complaint that is empty is none, here and below."""
    try:
        facts_of(solver)
    except TypeError as error:
        return str(error)
    return ""


def parts(thing: object) -> Iterator[object]:
    """Yields a solver, the values of its fields, and of theirs."""
    yield thing
    if dataclasses.is_dataclass(thing):
        for f in dataclasses.fields(thing):
            yield from parts(getattr(thing, f.name))


def tolerances(solver: Solver) -> tuple[float, float] | None:
    """`rtol` and `atol` of an adaptive solver, its own or of the one it wraps."""
    facts = solver.facts
    return None if facts.rtol is None or facts.atol is None else (facts.rtol, facts.atol)


def representation(solver: Solver) -> str:
    """Complains about a `repr` that is not Python, or not of this solver."""
    names: dict[str, object] = {"inf": math.inf, "nan": math.nan, **vars(solvers)}
    for part in parts(solver):
        module = sys.modules.get(type(part).__module__)
        names = {**(vars(module) if module else {}), **names, type(part).__name__: type(part)}
    told = re.sub(r"[\w.]+\.<locals>\.", "", repr(solver))  # a class made in a function
    try:
        again = eval(told, names)
    except Exception as error:  # noqa: BLE001 - a repr may be any code, with any error
        return f"{solver!r} is not Python ({type(error).__name__}): make the class a frozen dataclass"
    return "" if again == solver else f"{solver!r} evaluates to another solver: make the class a frozen dataclass"


def frozen(solver: Solver, sde: GaussianSDE) -> str:
    """Complains about state kept on the solver: two solves step by step in turn must give what each gives alone."""
    sampler = sampler_of(solver, model_of(sde))
    before = repr(vars(solver))
    alone = [[now.x for now in sampler.iterate(2, seed=k)] for k in (0, 7)]
    mixed: list[list[Tensor]] = [[], []]
    for pair in zip_longest(sampler.iterate(2, seed=0), sampler.iterate(2, seed=7)):
        for kept, now in zip(mixed, pair, strict=True):
            kept.append(now.x)
    if repr(vars(solver)) != before:
        return "its attributes change in a solve: what it remembers goes in and comes out of step"
    same = all(torch.equal(a, b) for one, two in zip(alone, mixed, strict=True) for a, b in zip(one, two, strict=True))
    return "" if same else "two solves in turn disturb each other: what it remembers goes in and comes out of step"


def input_kept(solver: Solver, sde: GaussianSDE) -> str:
    """Complains about a state that is modified in place."""
    x = _draws(sde, 3)
    kept = x.clone()
    sampler_of(solver, model_of(sde)).sample(x_T=x, seed=0)
    return "" if torch.equal(x, kept) else "the state handed in was modified in place"


def _draws(sde: GaussianSDE, n: int) -> Tensor:
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return sde.prior(z, times(sde, 1, WIDE).tolist()[0])


def batch_gap(solver: Solver, sdes: Iterable[GaussianSDE]) -> float:
    """Returns the most by which a row in a batch of 64 differs from the row alone."""
    worst = 0.0
    for sde in sdes:
        sampler = sampler_of(solver, model_of(sde))
        together = sampler.sample(64, seed=0)
        for i in (0, 3, 63):
            worst = max(worst, float((together[i] - sampler.sample(1, seed=i)[0]).abs().max()))
    return worst


def evaluations(solver: Solver, sde: GaussianSDE) -> str:
    """Complains about the count of evaluations: calls of the model, of the equation, and per step by claim."""
    model = Counted(model_of(sde))
    *_, last = sampler_of(solver, model).iterate(2, seed=0)
    if last.nfe != model.calls:
        return f"{model.calls} calls of the model, {last.nfe} counted: call it by eq.velocity, eq.score or eq.denoise"
    n = steps_of(solver)
    each = solver.facts.evaluations
    if each is not None and model.calls != n * each:
        return f"evaluations = {each}, but {n} steps make {model.calls} calls of the model"
    return ""


def reproducible(solver: Solver, sde: GaussianSDE) -> str:
    """Complains about randomness that does not come from the seed."""
    sampler = sampler_of(solver, model_of(sde))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = sampler.sample(3, seed=11)
        torch.manual_seed(2)
        second = sampler.sample(3, seed=11)
    if not torch.equal(first, second):
        return "it draws from a global random state: take noise(t.t, s.t), which follows the seed"
    return "" if torch.equal(first, sampler.sample(3, seed=[11, 12, 13])) else "seed=11 is not seed=[11, 12, 13]"


def randomness(solver: Solver, sde: GaussianSDE) -> str:
    """Complains about `stochastic`, from two seeds at one start."""
    sampler, x = sampler_of(solver, model_of(sde)), _draws(sde, 3)
    differ = not torch.equal(sampler.sample(x_T=x, seed=1), sampler.sample(x_T=x, seed=2))
    told = solver.facts.stochastic
    return "" if differ == told else f"stochastic = {told}, but the seed is {'of no ' if told else 'of '}consequence"


def dtypes(solver: Solver, sde: GaussianSDE) -> str:
    """Complains about the dtype of samples."""
    for dtype in (torch.float32, torch.float64):
        found = sampler_of(solver, model_of(sde, dtype)).sample(2, seed=0)
        if found.dtype != dtype or not bool(torch.isfinite(found).all()):
            return f"a model in {dtype} gives samples in {found.dtype}, or not finite"
    return ""


def coarseness(solver: Solver, sde: GaussianSDE) -> float:
    """How far a sample is from linear in a change of its start by 1e-8, relative: 1e-6 or so in float64, 1 in float32.

    An adaptive method that draws noise takes other steps, and meets other noise, after any change. For such a method,
    the result is the share of values that float32 can hold.
    """
    sampler = sampler_of(solver, model_of(sde), between=NEAR)
    z = torch.randn(16, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = sde.prior(z, times(sde, 1, NEAR).tolist()[0])
    here = sampler.sample(x_T=x, seed=0)
    if solver.facts.stochastic and tolerances(solver):
        return float((here.float().double() == here).double().mean())
    once, twice = (sampler.sample(x_T=x + k * 1e-8 * x.abs().mean(), seed=0) - here for k in (1, 2))
    return float((twice - 2 * once).square().mean().sqrt() / once.square().mean().sqrt())


def shapes(solver: Solver, sde: GaussianSDE) -> str:
    """Complains about event shapes."""
    for shape in ((), (5,), (2, 4, 4), (2, 3, 4, 2)):
        model = Network(lambda x, t: 0.1 * x, sde, predict.v, shape=shape)
        found = sampler_of(solver, model).sample(2, seed=0)
        if found.shape != (2, *shape):
            return f"two samples of shape {shape} came as {tuple(found.shape)}"
    return ""


def few_steps(solver: Solver, sdes: Iterable[GaussianSDE]) -> str:
    """Complains about solves of a few steps on every grid: finite, or refused with the cause."""
    some: tuple[Callable[..., Tensor], ...] = (
        grids.uniform,
        grids.quadratic,
        grids.karras,
        grids.log_snr,
        grids.angle,
        grids.balanced,
        grids.cosine,
    )
    tried = list(product(sdes, some, range(1, 6 if solver.facts.evaluations is not None else 3)))
    bad = []
    for sde, grid, steps in tried:
        told = _solve_or_told(solver, sde, grid, steps)
        if told.startswith("!"):
            bad.append(f"{type(sde).__name__}, {grid.__name__}, {steps} steps: {told[1:]}")
    return f"{len(bad)} of {len(tried)} fail; {bad[0]}" if bad else ""


def _solve_or_told(solver: Solver, sde: GaussianSDE, grid: Callable[..., Tensor], steps: int) -> str:
    """Solves, and returns nothing for a finite result, the message of a refusal, or a `!` and what went wrong."""
    try:
        sampler = SDESampler(sde, model_of(sde), solver=solver, steps=steps, grid=grid)
        found = sampler.sample(2, seed=0)
    except (ValueError, TypeError) as error:
        return str(error) if len(str(error)) >= ADVICE else f"!{type(error).__name__} that names no cause: {error}"
    except SolverError as error:
        return f"!{error}"
    return "" if bool(torch.isfinite(found).all()) else "!not finite"
