"""Solvers: each carries a state from one time to another, on any equation that gives what it needs."""

from sde_diffusion.solvers.angle import Angle, AngleSDE
from sde_diffusion.solvers.backends import Torchdiffeq, Torchsde
from sde_diffusion.solvers.base import Solver
from sde_diffusion.solvers.langevin import Hold, Langevin, PredictorCorrector, annealed_langevin
from sde_diffusion.solvers.multistep import DPMSolverPP, Multistep
from sde_diffusion.solvers.runge_kutta import RK4, Euler, Heun, Midpoint, RungeKutta
from sde_diffusion.solvers.stochastic import DDIM, Churn, EulerMaruyama

__all__ = [
    "DDIM",
    "RK4",
    "Angle",
    "AngleSDE",
    "Churn",
    "DPMSolverPP",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Hold",
    "Langevin",
    "Midpoint",
    "Multistep",
    "PredictorCorrector",
    "RungeKutta",
    "Solver",
    "Torchdiffeq",
    "Torchsde",
    "annealed_langevin",
]
