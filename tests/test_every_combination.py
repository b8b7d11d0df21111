"""Claim: whatever solver, grid, process, network, dtype and shape meet, the result is finite with the evaluations that
were promised, or a `ValueError` or `TypeError` of this library says what does not fit.

Cases are drawn by hypothesis from a fixed seed: 300 here, 5,000 under `slow`. The network is bounded and smooth, so
that nothing but the library can make a number fail. A refusal must be foreseen for its case, so that nothing is refused
without need; it must come from the library and name the argument or the number at fault.

No combination is let off as unstable. An explicit method may leave the range where it is accurate (one step of RK4 over
the whole of a VE process, a polynomial of degree five carried on for thousands of times the distance of its nodes), but
one step multiplies the state by a power of the ratio of its ends, and a solve by that of the process: neither reaches
1e38, so that float32 has room for all. A `SolverError` therefore fails the test.
"""

from __future__ import annotations

import math
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    CosineSDE,
    DiscreteVPSDE,
    FlowSDE,
    Network,
    SDESampler,
    SubVPSDE,
    grids,
    predict,
)
from sde_diffusion.noise import BrownianPath, NoiseSource, Streams
from sde_diffusion.sde import SDE, GaussianSDE
from sde_diffusion.solvers import (
    DDIM,
    ERSDE,
    IPNDM,
    RK4,
    SRA1,
    Adams,
    AdamsMoulton,
    Angle,
    AngleSDE,
    BogackiShampine,
    Churn,
    DormandPrince,
    DPMSolver,
    DPMSolver12,
    DPMSolver23,
    DPMSolverPP,
    DPMSolverPP2S,
    Euler,
    EulerMaruyama,
    Heun,
    HeunEuler,
    Hold,
    Langevin,
    Midpoint,
    PredictorCorrector,
    Renoise,
    Restart,
    ReverseDiffusion,
    Reversible,
    SASolver,
    SDEDPMSolverPP,
    Solver,
    StochasticHeunEuler,
    Torchdiffeq,
    Torchsde,
    UniPC,
)
from sde_diffusion.solvers.equation import ReverseSDE
from sde_diffusion.solvers.exponential.adams import QUANTITIES
from sde_diffusion.solvers.loop import Snapshot, UnfinishedWarning

Result = TypeVar("Result")

# ------------------------------------------------------------------------------------------------------------ processes


class Ornstein(GaussianSDE):
    """A user's process: nothing but the two required methods, so that rates and inverse are the generic ones."""

    def __init__(self, t_min: float = 1e-3, t_max: float = 4.0) -> None:
        self.t_min, self.t_max = t_min, t_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-2 * t))


def between(low: float, high: float) -> st.SearchStrategy[float]:
    """Floats spread evenly over the decades of a range."""
    return st.floats(math.log(low), math.log(high)).map(lambda v: float(f"{math.exp(v):.6g}"))


EARLY = between(1e-5, 1e-2)
SDES: st.SearchStrategy[GaussianSDE] = st.one_of(
    st.builds(VPSDE, between(0.01, 1.0), between(2.0, 40.0), t_min=EARLY, t_max=st.sampled_from([1.0, 0.6])),
    st.builds(SubVPSDE, between(0.01, 1.0), between(2.0, 40.0), t_min=between(1e-3, 1e-2)),
    st.builds(VESDE, between(1e-3, 0.1), between(1.0, 300.0)),
    st.builds(BrownianSDE, between(1.0, 1e4), t_min=EARLY),
    st.builds(CosineSDE, t_min=EARLY, t_max=st.sampled_from([0.995, 0.5, 1.0])),
    st.builds(EDMSDE, between(1e-3, 0.1), between(1.0, 200.0)),
    st.builds(FlowSDE, t_min=EARLY, t_max=st.sampled_from([1.0, 0.99, 0.7])),
    st.builds(AngleSDE, between(0.2, 3.0), t_min=between(1e-4, 1e-2), t_max=st.sampled_from([math.pi / 2, 1.5])),
    st.builds(Ornstein, between(1e-4, 1e-2), st.sampled_from([1.0, 4.0])),
    st.sampled_from([10, 100, 1000]).map(partial(DiscreteVPSDE.linear, scaled=False)),
    st.lists(between(1e-4, 0.3), min_size=2, max_size=40).map(DiscreteVPSDE),
)


# -------------------------------------------------------------------------------------------------------------- solvers


def make(cls: Callable[..., Solver], *args: st.SearchStrategy[Any], **options: st.SearchStrategy[Any]) -> Any:
    """A strategy for calls that make a solver: made inside the test, as an option may be refused."""
    return st.builds(lambda *a, **o: partial(cls, *a, **o), *args, **options)


def orders(low: int, high: int) -> st.SearchStrategy[int]:
    """Orders that a method comes in and, one time in ten or so, one that it does not."""
    return st.sampled_from([*range(low, high + 1)] * 5 + [low - 1, high + 1])


ETAS = st.sampled_from([0.0, 0.2, 0.7, 1.0])
BOLD = st.sampled_from([0.0, 0.2, 0.7, 1.0, 1.3])
FIXED: list[Any] = [
    *map(make, (Euler, Midpoint, Heun, RK4)),
    make(EulerMaruyama, BOLD),
    make(DDIM, ETAS | BOLD, st.sampled_from(["posterior", "forward"])),
    make(DPMSolverPP, orders(1, 3)),
    make(DPMSolverPP2S, st.booleans()),
    make(DPMSolver, orders(1, 3)),
    make(SDEDPMSolverPP, orders(1, 3), BOLD),
    make(UniPC, orders(1, 4), st.sampled_from(["bh1", "bh2"])),
    make(SASolver, orders(1, 4), orders(0, 3), BOLD, st.sampled_from([0.0, 0.1]), st.sampled_from([2.0, math.inf])),
    make(Adams, st.integers(0, 6), st.sampled_from(QUANTITIES), between(0.2, 3.0)),
    make(IPNDM, orders(1, 4)),
    make(SRA1, BOLD),
    make(ReverseDiffusion, BOLD),
    make(ERSDE, orders(1, 3), between(0.1, 1.0), between(0.1, 100.0)),
    make(AdamsMoulton, orders(2, 4)),
]
INNER = st.one_of(FIXED)
ONE_STEP = st.one_of(
    [*map(make, (Euler, Midpoint, Heun, RK4, DDIM, DPMSolverPP2S)), make(DPMSolver, orders(1, 3)), *FIXED[:6]]
)
TOLERANCE, BUDGET = between(1e-4, 3e-2), st.integers(20, 80)


def wrapped(cls: Callable[..., Solver], inner: Any, *args: Any, **options: Any) -> Solver:
    return cls(inner(), *args, **options)


def corrected(predictor: Any, corrector: Any) -> Solver:
    return PredictorCorrector(predictor(), corrector())


ADAPTIVE = st.one_of(
    [make(cls, TOLERANCE, TOLERANCE, max_nfe=BUDGET) for cls in (HeunEuler, BogackiShampine, DormandPrince)]
    + [make(cls, TOLERANCE, TOLERANCE, max_nfe=BUDGET) for cls in (DPMSolver12, DPMSolver23)]
    + [make(StochasticHeunEuler, TOLERANCE, TOLERANCE, BOLD, max_nfe=BUDGET)]
)
COUNTS = st.sampled_from([1, 1, 2, 3, 0])
CORRECTORS = make(Langevin, COUNTS, between(0.01, 0.4)) | st.builds(
    partial, st.just(wrapped), st.just(Renoise), INNER, between(0.01, 0.5), COUNTS
)
MAKERS: st.SearchStrategy[Callable[[], Solver]] = st.one_of(
    st.sampled_from(zoo.SOLVERS).map(lambda s: lambda: s),
    *FIXED,
    st.builds(partial, st.just(wrapped), st.just(Angle), INNER | ADAPTIVE, between(0.2, 3.0)),
    st.builds(partial, st.just(wrapped), st.just(Churn), INNER, between(1e-3, 0.5), st.sampled_from([0.0, 0.1, 1.0])),
    st.builds(partial, st.just(corrected), INNER | make(Hold), CORRECTORS),
    st.builds(partial, st.just(wrapped), st.just(Reversible), ONE_STEP),
    st.builds(partial, st.just(wrapped), st.just(Restart), INNER, between(0.02, 0.2), between(0.3, 9.0)),
    ADAPTIVE,
    make(Torchdiffeq, st.sampled_from(["dopri5", "bosh3", "rk4", "heun3"]), TOLERANCE, TOLERANCE),
    make(Torchsde, st.sampled_from(["euler", "srk"]), orders(1, 20), BOLD),
)


def parts(solver: Solver) -> Iterator[Solver]:
    """A solver and all that it is made of."""
    yield solver
    for field in ("inner", "predictor", "corrector", "outer"):
        part = getattr(solver, field, None)
        if isinstance(part, Solver):
            yield from parts(part)


# ---------------------------------------------------------------------------------------------------------------- grids

GRIDS: dict[str, Any] = {
    "uniform": st.just(grids.uniform),
    "quadratic": st.just(grids.quadratic),
    "karras": st.just(grids.karras) | between(1.0, 15.0).map(lambda rho: partial(grids.karras, rho=rho)),
    "log_snr": st.just(grids.log_snr),
    "angle": st.builds(
        lambda power, c: partial(grids.angle, power=power, data_std=c), between(0.8, 3.0), between(0.2, 3.0)
    ),
    "cosine": st.just(grids.cosine),
    "random": st.lists(st.floats(0.01, 1.0), min_size=1, max_size=60),
    "wild": st.lists(between(1e-4, 1.0), min_size=1, max_size=60),
    "leading": st.just(grids.leading),
    "trailing": st.just(grids.trailing),
    "integers": st.just(grids.integers),
}
INDEXED = ("leading", "trailing", "integers")
OWN = ("random", "wild")


def names(sde: SDE) -> st.SearchStrategy[str]:
    """Grids for a process, and now and then one that is not for it."""
    return st.sampled_from(
        [*GRIDS] if sde.time_is_index else [name for name in GRIDS if name not in INDEXED] * 5 + ["leading"]
    )


def random_times(sde: SDE, gaps: list[float]) -> Tensor:
    """A falling grid of the user's own, from relative gaps in the angle or in time."""
    u = torch.tensor([0.0, *gaps], dtype=torch.float64).cumsum(0)
    u = 1 - u / u[-1]
    if isinstance(sde, GaussianSDE) and len(gaps) % 2:
        ends = torch.tensor(sde.ends(), dtype=torch.float64)
        top, bottom = torch.atan(torch.exp(-ends)).tolist()
        times = sde.time_of(-torch.log(torch.tan(bottom + (top - bottom) * u)))
    else:
        times = sde.t_min + (sde.t_max - sde.t_min) * u
    times[0], times[-1] = sde.t_max, sde.t_min
    return times


# ---------------------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """All that is drawn for one solve."""

    make: Callable[[], Solver]
    sde: GaussianSDE
    kind: predict.Parametrisation | None
    grid_name: str
    grid: Any
    steps: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    batch: int
    denoise: bool
    seen_through_another: bool
    noise: Callable[..., NoiseSource]


def cases(sde: GaussianSDE, name: str) -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        MAKERS,
        st.just(sde),
        st.sampled_from([*zoo.KINDS, None]),
        st.just(name),
        GRIDS[name],
        st.integers(1, 60),
        st.sampled_from([torch.float32, torch.float64]),
        st.sampled_from([(), (1,), (3,), (2, 2), (1, 2, 2)]),
        st.integers(1, 3),
        st.booleans(),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([Streams, Streams, Streams, Streams, BrownianPath]),
    )


CASES = SDES.flatmap(lambda sde: names(sde).flatmap(lambda name: cases(sde, name)))


class Bounded:
    """A network with answers in [-1, 1], of slope at most 1/2, which counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        assert t.shape == x.shape[:1]
        assert x.dtype == t.dtype
        return torch.tanh(0.5 * x) * torch.cos(t).reshape(-1, *([1] * (x.ndim - 1)))


def grid_refusals(case: Case) -> Iterator[str]:
    """Why the grid of this case cannot be laid out, if it cannot."""
    sde, name = case.sde, case.grid_name
    if name in INDEXED and not sde.time_is_index:
        yield f"grids.{name} picks indices of a discrete chain; {sde!r} is continuous. Use uniform"
    elif name in INDEXED and case.steps > sde.t_max:
        yield f"{case.steps} steps visit {case.steps + 1} levels, but the chain has {int(sde.t_max) + 1}: at most"
    elif name == "integers" and case.steps < sde.t_max:
        yield f"integers visits all {int(sde.t_max) + 1} levels in {int(sde.t_max)} steps, got steps={case.steps}"
    elif name in ("karras", "log_snr") and no_data_left(sde):
        yield f"grids.{name} needs a finite log-SNR at both ends; {sde!r} spans"
    elif name == "wild":
        yield "the grid is not strictly monotone: times["  # gaps of 1e-6 of the range may round to nothing


def no_data_left(sde: GaussianSDE) -> bool:
    return float(sde.alpha(torch.tensor([sde.t_max], dtype=torch.float64))) == 0.0


def solver_refusals(case: Case, solver: Solver) -> Iterator[str]:
    """Why this solver or this network cannot take this process."""
    yield from (text for part in parts(solver) for text in part_refusals(case.sde, part))
    if no_data_left(case.sde) and case.seen_through_another:
        yield "asked at noise level sigma/alpha = inf, but the model was made for"
    elif no_data_left(case.sde) and case.kind in (predict.noise, predict.score, None):
        yield f"prediction tells nothing of the data where alpha = 0 (t = {case.sde.t_max:g})"


def part_refusals(sde: GaussianSDE, part: Solver) -> Iterator[str]:
    """Why a solver cannot start where no data are left, or rise to where the process does not go."""
    name, where = type(part).__name__, f"t = {sde.t_max:g}"
    if no_data_left(sde):
        if part.facts.needs is ReverseSDE and part.facts.stochastic:
            yield f"g is infinite at {where} of {sde!r}, where alpha = 0"
            yield f"g is infinite at t = {math.pi / 2:g} of AngleSDE("  # within `Angle`, whose time is the angle
        if name.startswith("DPMSolver"):
            yield f"{name} steps in "
        if isinstance(part, IPNDM):
            yield f"IPNDM cannot step where alpha = 0 ({where})"
        if isinstance(part, Adams) and part.quantity in ("noise", "rho", "time"):
            yield f"Adams(quantity={part.quantity!r}) cannot step where alpha = 0 ({where})"
    if isinstance(part, Restart):
        if part.s_max > math.exp(-sde.ends()[0]):
            yield f"s_max = {part.s_max:g} lies above the noise of t_max"
        yield f"{part!r} restarts where the grid passes sigma/alpha = {part.s_min:g}, and this one goes from"


OPTIONS = (  # every option of a solver that is drawn outside its range, with the value in the text
    r"(DPMSolverPP|DPMSolver|SDEDPMSolverPP|UniPC|IPNDM|ERSDE|AdamsMoulton|of SASolver) has order .* or \d, got (-?\d)",
    r"order must be at least 1, got 0",
    r"DDIM takes eta in \[0, 1\], got 1\.3",
    r"(Torchsde|StochasticHeunEuler) needs eta > 0",
    r"n must be (an integer|at least 1), got 0",
    r"Reversible inverts the step of a deterministic one-step solver, such as Heun\(\), got \w+\(",
)


def raised_here(error: Exception | None) -> bool:
    """Whether the library itself raised an error, rather than something that it called."""
    assert error is not None
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("sde_diffusion")


def attempt(call: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """What a call answers, or the refusal that it raises."""
    try:
        return call(), None
    except (ValueError, TypeError) as error:
        return None, error


def solve(case: Case, solver: Solver, net: Bounded) -> tuple[Snapshot, int]:
    """The last state of a case, and the number of its steps."""
    if case.seen_through_another:
        model: Any = Network(net, EDMSDE(1e-9, 1e9), case.kind or predict.score).on(case.sde)
    else:
        model = net if case.kind is None else Network(net, case.sde, case.kind)
    laid: dict[str, Any] = {"grid": case.grid, "steps": case.steps}
    if case.grid_name in OWN:
        laid = {"grid": random_times(case.sde, case.grid)}
    sampler = SDESampler(case.sde, model, solver=solver, shape=case.shape, denoise=case.denoise, **laid)
    z = torch.randn(case.batch, *case.shape, generator=torch.Generator().manual_seed(case.steps), dtype=case.dtype)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", UnfinishedWarning)
        *_, last = sampler.iterate(x_T=case.sde.prior(z), seed=0, noise=case.noise)
    return last, sampler.steps


def check(case: Case) -> str:
    """One solve; answers what came of it, for those who count."""
    solver, error = attempt(case.make)
    if solver is None:
        assert raised_here(error), f"from outside: {error!r}"
        assert any(re.search(text, str(error)) for text in OPTIONS), f"unforeseen: {error!r}"
        return "no such solver"
    if solver.facts.evaluations is None:  # makes its own steps: a few intervals are enough
        case = replace(case, steps=min(case.steps, 3), grid=case.grid[:3] if case.grid_name in OWN else case.grid)
    net, made = Bounded(), solver
    found, error = attempt(lambda: solve(case, made, net))
    if found is None:
        assert raised_here(error), f"from outside: {error!r}"
        foreseen = [*grid_refusals(case), *solver_refusals(case, solver)]
        assert any(text in str(error) for text in foreseen), f"unforeseen: {error!r}"
        told = re.search(r"passes sigma/alpha = (\S+), and this one goes from (\S+) to (\S+):", str(error))
        if told:  # foreseen of any Restart, so the range that it tells must really leave its level out
            foot, high, low = map(float, told.groups())
            assert not low * 1.001 < foot < high * 0.999, f"refused without cause: {error!r}"
        return "refused"
    last, steps = found
    assert last.x.shape == (case.batch, *case.shape)
    assert last.x.dtype == case.dtype
    assert bool(torch.isfinite(last.x).all())
    assert last.nfe == net.calls
    if (each := solver.facts.evaluations) is not None:
        assert net.calls == steps * each + case.denoise
    return "finite"


PROFILE: Any = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}


@settings(max_examples=150, **PROFILE)
@given(CASES)
def test_every_combination_is_finite_or_refused_with_the_cause(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("sde", [FlowSDE(), CosineSDE(t_max=1.0), AngleSDE(0.7, t_min=1e-3)], ids=zoo.name)
@pytest.mark.parametrize("solver", zoo.SOLVERS, ids=zoo.name)
def test_every_solver_starts_where_no_data_are_left_or_says_why_not(solver: Solver, sde: GaussianSDE) -> None:
    # The corner where most can go wrong: alpha = 0, an infinite log-SNR and an infinite g.
    assert no_data_left(sde)
    for kind in (predict.velocity, predict.data, predict.noise):
        grid = grids.angle if sde.t_max == 1.0 else grids.uniform
        case = Case(lambda: solver, sde, kind, "angle", grid, 6, torch.float32, (2,), 2, True, False, Streams)
        asked_there = not isinstance(getattr(solver, "predictor", None), Hold)
        outcome = check(case)
        assert outcome == "refused" or kind is not predict.noise or not asked_there


@pytest.mark.slow
@settings(max_examples=5_000, **PROFILE)
@given(CASES)
def test_five_thousand_combinations_are_finite_or_refused_with_the_cause(case: Case) -> None:
    check(case)
