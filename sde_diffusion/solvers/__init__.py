"""Solvers: each carries a state from one time to another, on any equation that gives what it needs."""

from sde_diffusion.solvers.adams import IPNDM, Adams
from sde_diffusion.solvers.angle import Angle, AngleSDE
from sde_diffusion.solvers.backends import Torchdiffeq, Torchsde
from sde_diffusion.solvers.base import Solver
from sde_diffusion.solvers.dpm_solver import DPMSolver, DPMSolverPP, DPMSolverPP2S, SDEDPMSolverPP
from sde_diffusion.solvers.langevin import Hold, Langevin, PredictorCorrector, annealed_langevin
from sde_diffusion.solvers.multistep import Multistep, Row
from sde_diffusion.solvers.runge_kutta import RK4, Euler, Heun, Midpoint, RungeKutta
from sde_diffusion.solvers.stochastic import DDIM, Churn, EulerMaruyama
from sde_diffusion.solvers.unipc import SASolver, UniPC

__all__ = [
    "DDIM",
    "IPNDM",
    "RK4",
    "Adams",
    "Angle",
    "AngleSDE",
    "Churn",
    "DPMSolver",
    "DPMSolverPP",
    "DPMSolverPP2S",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Hold",
    "Langevin",
    "Midpoint",
    "Multistep",
    "PredictorCorrector",
    "Row",
    "RungeKutta",
    "SASolver",
    "SDEDPMSolverPP",
    "Solver",
    "Torchdiffeq",
    "Torchsde",
    "UniPC",
    "annealed_langevin",
]
