"""Every SDE, solver and parametrisation, as the library lists them, and what is special to the tests.

A new one is one line in `sde_diffusion.sde.processes`, `sde_diffusion.solvers` or `predict.NAMES`, and every
conformance test applies to its examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion import DiscreteVPSDE, FlowSDE, predict, solvers
from sde_diffusion.sde import SDE, GaussianSDE, processes
from sde_diffusion.solvers import (
    IPNDM,
    SRA1,
    Adams,
    Churn,
    DPMSolver,
    DPMSolver12,
    DPMSolver23,
    DPMSolverPP,
    DPMSolverPP2S,
    EulerMaruyama,
    Solver,
    StochasticHeunEuler,
    Torchdiffeq,
    Torchsde,
)

SDES: list[GaussianSDE] = processes.examples()

# Smooth in t, so that a method that steps in t shows its order; the table of DDPM is only piecewise smooth.
SMOOTH_SDES = [sde for sde in SDES if not isinstance(sde, DiscreteVPSDE)]

# The last is of two families whose files do not import each other.
SOLVERS: list[Solver] = [*solvers.examples(), Churn(DPMSolverPP(2), 0.1)]

# An adaptive method of torchdiffeq controls one error norm over the batch, as its documentation here says.
COUPLED: list[Solver] = [s for s in SOLVERS if isinstance(s, Torchdiffeq) and s.facts.adaptive]


def named_order(solver: Any) -> float:
    """The order in the name of a solver, or of the one that it wraps: its first steps may hold it to less or more."""
    own = getattr(solver, "order", getattr(solver, "predictor", None))
    if isinstance(own, int):
        return own
    return named_order(solver.inner) if hasattr(solver, "inner") else float(solver.facts.order)


# Deterministic solvers with a claimed order.
ODE_SOLVERS = [s for s in SOLVERS if s.facts.order and not s.facts.stochastic]

# EDM's with data of another scale than 1, where its factors differ from those of `v`.
KINDS = [predict.EDM(0.7) if isinstance(kind, predict.EDM) else kind for kind in predict.NAMES.values()]


def quick(solvers: Iterable[Solver]) -> list[Any]:
    """Solvers as test parameters, of which those whose steps are many and small, for seconds, go to the slow suite."""
    return [pytest.param(s, marks=pytest.mark.slow) if "StochasticHeunEuler" in repr(s) else s for s in solvers]


def name(thing: object) -> str:
    """A test id."""
    return repr(thing)


def start(sde: SDE, solver: Solver) -> float:
    """The time to start from: the end of the range, or short of it where the solver needs some data left."""
    infinite_g = isinstance(sde, FlowSDE) and not solver_is_regular_at_the_end(solver)
    return 0.99 if infinite_g else sde.t_max


def solver_is_regular_at_the_end(solver: Solver) -> bool:
    """Whether a solver can start where alpha = 0: all but those that need g, or lam, or data to divide by."""
    parts = [solver, *(getattr(solver, part) for part in ("inner", "predictor", "corrector") if hasattr(solver, part))]
    return not any(
        isinstance(s, (Torchsde, DPMSolverPP2S, IPNDM, DPMSolver12, DPMSolver23, StochasticHeunEuler))
        or (isinstance(s, (EulerMaruyama, SRA1)) and s.eta > 0)
        or (isinstance(s, DPMSolver) and s.order > 1)
        or (isinstance(s, Adams) and s.quantity in ("noise", "rho", "time"))
        for s in parts
    )


def grid(sde: GaussianSDE, solver: Solver, steps: int) -> Tensor:
    """A falling grid that every solver can take: uniform in the angle between the data and the noise."""
    t = torch.tensor([start(sde, solver), sde.t_min], dtype=torch.float64)
    top, bottom = torch.atan(torch.exp(-sde.half_log_snr(t))).tolist()
    return between(sde, top, bottom, steps, ends=(float(t[0]), float(t[1])))


def between(sde: GaussianSDE, top: float, bottom: float, steps: int, ends: tuple[float, float] | None = None) -> Tensor:
    """Times uniform in the angle `atan(sigma / alpha)`, from `top` to `bottom`."""
    u = torch.linspace(top, bottom, steps + 1, dtype=torch.float64)
    times = sde.time_of(-torch.log(torch.tan(u)))
    if ends is not None:
        times[0], times[-1] = ends
    return times


Score = Callable[[Tensor, Tensor], Tensor]


class DoubleWell(SDE):
    """A general SDE, neither affine nor Gaussian: `dx = (x - x^3) dt + dw`, with a broad Gaussian as prior."""

    t_min, t_max = 0.0, 1.0

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return x - x**3

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def prior(self, z: Tensor) -> Tensor:
        return z

    def prior_log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * (x.square() + math.log(2 * math.pi)).flatten(1).sum(1)


def mostly_slow(items: Iterable[object], every: int = 100) -> list[Any]:
    """The items as parameters of a test, of which the first of so many is fast and all others are slow."""
    return [pytest.param(item, marks=[pytest.mark.slow] * bool(i % every)) for i, item in enumerate(items)]
