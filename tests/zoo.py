"""Every SDE, solver and parametrisation. A new one is one line here, and every conformance test applies to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from sde_diffusion import EDMSDE, VESDE, VPSDE, BrownianSDE, CosineSDE, DiscreteVPSDE, FlowSDE, SubVPSDE, predict
from sde_diffusion.noise import NoiseSource
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
    annealed_langevin,
)
from sde_diffusion.solvers.adams import QUANTITIES
from sde_diffusion.testing import orders

SDES: list[GaussianSDE] = [
    VPSDE(),
    SubVPSDE(),
    VESDE(),
    BrownianSDE(),
    CosineSDE(),
    EDMSDE(),
    FlowSDE(),
    DiscreteVPSDE.linear(),
]

# Smooth in t, so that a method that steps in t shows its order; the table of DDPM is only piecewise smooth.
SMOOTH_SDES = [sde for sde in SDES if not isinstance(sde, DiscreteVPSDE)]

SOLVERS: list[Solver] = [
    Euler(),
    Midpoint(),
    Heun(),
    RK4(),
    DDIM(),
    DDIM(0.5),
    DDIM(1.0),
    DDIM(1.0, variance="forward"),
    DPMSolverPP(1),
    DPMSolverPP(2),
    DPMSolverPP(3),
    DPMSolverPP2S(),
    DPMSolverPP2S(stiff=True),
    DPMSolver(1),
    DPMSolver(2),
    DPMSolver(3),
    SDEDPMSolverPP(1),
    SDEDPMSolverPP(2),
    SDEDPMSolverPP(3, 0.5),
    SDEDPMSolverPP(2, 0.0),
    *(UniPC(p, v) for p in (1, 2, 3, 4) for v in ("bh1", "bh2")),
    SASolver(2, 2),
    SASolver(3, 3, 0.5),
    SASolver(2, 0),
    SASolver(3, 3, 0.0),
    SASolver(2, 1, s_min=0.1, s_max=2.0),
    Adams(1, "angle"),
    *(Adams(3, quantity) for quantity in QUANTITIES),
    Adams(2, "angle", 0.7),
    Adams(5),
    IPNDM(2),
    IPNDM(4),
    AdamsMoulton(2),
    AdamsMoulton(3),
    AdamsMoulton(),
    EulerMaruyama(),
    EulerMaruyama(0.5),
    EulerMaruyama(0.0),
    Angle(Euler()),
    Angle(Heun(), 0.7),
    Angle(RK4(), 0.7),
    Angle(DPMSolverPP(2)),
    Angle(AdamsMoulton(3)),
    Angle(AdamsMoulton(), 0.7),
    SRA1(),
    SRA1(0.5),
    SRA1(0.0),
    ReverseDiffusion(),
    *(ERSDE(order, offset=offset) for order in (1, 2, 3) for offset in (10.0, math.inf)),
    Reversible(),
    Reversible(Heun()),
    Reversible(DDIM()),
    Angle(Reversible(Heun()), 0.7),
    Restart(Angle(RK4()), repeats=1),
    Restart(Restart(Angle(RK4()), repeats=1), 0.3, 1.0, 2, 3),
    Churn(Heun(), 0.1),
    Churn(DPMSolverPP(2), 0.1),
    PredictorCorrector(EulerMaruyama(), Langevin(2, 0.16)),
    PredictorCorrector(DPMSolverPP(2), Langevin(1, 0.1)),
    PredictorCorrector(Hold(), Langevin(3, 0.2)),
    PredictorCorrector(Angle(RK4()), Langevin({0.0: 1, 0.5: 2}, 0.1)),
    PredictorCorrector(DDIM(1.0), Renoise()),
    PredictorCorrector(DPMSolverPP(2), Renoise(Heun(), 0.2, 2)),
    annealed_langevin(2, epsilon=2e-5, sigma_min=0.01),
    Torchdiffeq("dopri5"),
    Torchdiffeq("rk4"),
    Torchsde("euler", 20),
    Torchsde("srk", 10),
    HeunEuler(),
    BogackiShampine(),
    DormandPrince(),
    Angle(BogackiShampine()),
    Angle(DormandPrince(), 0.7),
    DPMSolver12(),
    DPMSolver23(),
    StochasticHeunEuler(),
    StochasticHeunEuler(0.05, eta=0.5),
    Angle(StochasticHeunEuler()),
]

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

# Solvers whose step on Gaussian data is linear in the state and the noise: their moments follow without sampling.
WEAK_ORDER_1: list[Solver] = [
    EulerMaruyama(),
    EulerMaruyama(0.5),
    DDIM(1.0),
    DDIM(0.5),
    ReverseDiffusion(0.5),
    ERSDE(1),
    ERSDE(2),
    ERSDE(3),
    SDEDPMSolverPP(1),
    SDEDPMSolverPP(2),
    SDEDPMSolverPP(3, 0.5),
    SASolver(2, 2),
    SASolver(3, 3, 0.5),
]

KINDS = [predict.noise, predict.data, predict.score, predict.velocity, predict.v, predict.EDM(0.7)]


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


slope = orders.slope  # minus the slope of log error against log steps


class OneAtATime(NoiseSource):
    """Row `k + 2` gets a unit of noise at draw `k` and none elsewhere; rows 0 and 1 get none.

    With states 0 and 1 in the first two rows, a solver that is linear shows its whole response in one solve.
    """

    def __init__(self, draws: int) -> None:
        super().__init__((1,), torch.float64, "cpu")
        self.rows, self.drawn = draws + 2, 0

    def prior(self) -> Tensor:
        x = torch.zeros(self.rows, 1, dtype=torch.float64)
        x[1] = 1.0
        return x

    def __call__(self, t: float, s: float) -> Tensor:
        z = torch.zeros(self.rows, 1, dtype=torch.float64)
        z[self.drawn + 2] = 1.0
        self.drawn += 1
        return z


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
