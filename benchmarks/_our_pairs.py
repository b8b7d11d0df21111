"""This library's own samplers for `nfe_quality.py`: every deterministic solver on every grid, default and tuned."""

from __future__ import annotations

import importlib
import importlib.util
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from _counted import AnyLevel, Counted, Skip
from _problems import Case
from torch import Tensor

from sde_diffusion import DiscreteVPSDE, GaussianSDE, SDESampler, grids
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.sde.grids import Grid
from sde_diffusion.solvers import (
    DDIM,
    IPNDM,
    RK4,
    Adams,
    AdamsMoulton,
    Angle,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPP2S,
    Euler,
    Heun,
    Solver,
    UniPC,
)

GRIDS: dict[str, Grid] = {
    "uniform": grids.uniform,
    "quadratic": grids.quadratic,
    "karras": grids.karras,
    "log_snr": grids.log_snr,
}
POWERS = (1.0, 1.5, 2.0)


def shipped(c: float) -> list[Solver]:
    """Every deterministic solver of a fixed number of evaluations, at the orders that are in use."""
    adams = [Adams(q, v) for q in (2, 3, 4) for v in ("data", "noise", "rho", "time", "velocity")]
    angle: list[Solver] = [Adams(q, "angle", c) for q in (2, 3, 4)]
    in_angle: list[Solver] = [Angle(s, c) for s in (Euler(), Heun(), RK4(), AdamsMoulton(2), AdamsMoulton(3))]
    several: list[Solver] = [UniPC(2), UniPC(3), DPMSolver(2), DPMSolver(3), DPMSolverPP(2), DPMSolverPP(3)]
    plain: list[Solver] = [DDIM(), Euler(), Heun(), RK4(), DPMSolverPP2S(), IPNDM(2), IPNDM(3), IPNDM(4)]
    return [*plain, *several, *adams, *angle, *in_angle]


@dataclass(frozen=True)
class Ours:
    """One of this library's samplers.

    Attributes:
        label: Its name in the tables.
        case: The problem.
        build: Makes the sampler of a counted model, for a number of evaluations.
    """

    label: str
    case: Case
    build: Callable[..., SDESampler]

    def __call__(self, network: AnyLevel, n: int, x_T: Tensor) -> Tensor:
        """`n` evaluations from the noise `x_T` to data."""
        sampler = self.build(self.case.sde, network.model, nfe=n * network.model.cost, shape=self.case.shape)
        if abs(sampler.times[0] - self.case.sde.t_max) > 1e-9 * self.case.sde.t_max:
            raise Skip("its grid does not begin at the noise")
        return sampler.sample(len(x_T), x_T=x_T, cond=self.case.cond)

    def written(self, model: object, n: int) -> str:
        """The sampler as one would write it."""
        cost = getattr(model, "cost", 1)
        return repr(self.build(self.case.sde, model, nfe=n * cost, shape=self.case.shape))


def default(case: Case) -> Ours:
    """`SDESampler(sde, model, nfe=N)`, nothing else said."""
    return Ours("default", case, SDESampler)


def spelled(solver: Solver) -> str:
    """The solver with the scale of the data as a letter, so that it is one name on all problems."""
    scaled = "angle" in repr(solver) or isinstance(solver, Angle)
    return (
        re.sub(r"data_std=[^,)]+", "data_std=c", repr(solver)) if scaled else repr(solver).replace(", data_std=1.0", "")
    )


def pairs(case: Case) -> list[Ours]:
    """Every shipped solver on every grid."""
    c = case.model.data_std
    laid = dict(GRIDS)
    laid |= {f"angle, power {p:g}": partial(grids.angle, power=p, data_std=c) for p in POWERS}
    laid["balanced"] = partial(grids.balanced, data_std=c)
    if isinstance(case.sde, DiscreteVPSDE):
        laid["trailing"] = grids.trailing
    return [
        Ours(f"ours {spelled(solver)} | {name}", case, partial(SDESampler, solver=solver, grid=grid))
        for name, grid in laid.items()
        for solver in shipped(c)
    ]


def tuner() -> Callable[..., Any] | None:
    """`sde_diffusion.tuning.tune`, where it is."""
    if importlib.util.find_spec("sde_diffusion.tuning") is None:
        return None
    return getattr(importlib.import_module("sde_diffusion.tuning"), "tune", None)


def tuned(case: Case, budgets: Sequence[int]) -> tuple[Ours, dict[str, Any]] | None:
    """The sampler that tunes itself, tuned once for all budgets, and what that took; None where there is none yet."""
    tune = tuner()
    if tune is None:
        return None
    model, cost = Counted(case.model.eval()), case.model.cost
    begun = time.perf_counter()
    found = tune(case.sde, model, nfe=[n * cost for n in budgets], conditions=case.cond or None)
    took = time.perf_counter() - begun

    def build(sde: GaussianSDE, network: Denoiser, *, nfe: int, shape: tuple[int, ...]) -> SDESampler:
        made = found.sampler(nfe)
        return SDESampler(sde, network, solver=made.solver, grid=made.times, shape=shape)

    solvers = {str(n): repr(found.sampler(n * cost).solver)[:200] for n in budgets}
    spent = {"seconds": took, "calls": model.calls, "evaluations": model.rows, "solvers": solvers}
    return Ours("tuned", case, build), spent
