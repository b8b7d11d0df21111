"""Solvers: each carries a state from one time to another, on any equation that gives what it needs."""

from sde_diffusion.solvers.adams import IPNDM, Adams
from sde_diffusion.solvers.adams_moulton import AdamsMoulton
from sde_diffusion.solvers.adaptive import Adaptive
from sde_diffusion.solvers.adaptive_diffusion import DPMSolver12, DPMSolver23, StochasticHeunEuler
from sde_diffusion.solvers.angle import Angle, AngleSDE
from sde_diffusion.solvers.backends import Torchdiffeq, Torchsde
from sde_diffusion.solvers.base import Facts, Solver
from sde_diffusion.solvers.dpm_solver import DPMSolver, DPMSolverPP, DPMSolverPP2S, SDEDPMSolverPP
from sde_diffusion.solvers.embedded import BogackiShampine, DormandPrince, EmbeddedRungeKutta, HeunEuler
from sde_diffusion.solvers.er_sde import ERSDE
from sde_diffusion.solvers.langevin import Hold, Langevin, PredictorCorrector, annealed_langevin
from sde_diffusion.solvers.multistep import Multistep, Row
from sde_diffusion.solvers.renoise import Renoise
from sde_diffusion.solvers.restart import Restart
from sde_diffusion.solvers.reverse_diffusion import ReverseDiffusion
from sde_diffusion.solvers.reversible import Reversible
from sde_diffusion.solvers.runge_kutta import RK4, Euler, Heun, Midpoint, RungeKutta
from sde_diffusion.solvers.srk import SRA1
from sde_diffusion.solvers.stochastic import DDIM, Churn, EulerMaruyama
from sde_diffusion.solvers.unipc import SASolver, UniPC

__all__ = [
    "DDIM",
    "ERSDE",
    "IPNDM",
    "RK4",
    "SRA1",
    "Adams",
    "AdamsMoulton",
    "Adaptive",
    "Angle",
    "AngleSDE",
    "BogackiShampine",
    "Churn",
    "DPMSolver",
    "DPMSolver12",
    "DPMSolver23",
    "DPMSolverPP",
    "DPMSolverPP2S",
    "DormandPrince",
    "EmbeddedRungeKutta",
    "Euler",
    "EulerMaruyama",
    "Facts",
    "Heun",
    "HeunEuler",
    "Hold",
    "Langevin",
    "Midpoint",
    "Multistep",
    "PredictorCorrector",
    "Renoise",
    "Restart",
    "ReverseDiffusion",
    "Reversible",
    "Row",
    "RungeKutta",
    "SASolver",
    "SDEDPMSolverPP",
    "Solver",
    "StochasticHeunEuler",
    "Torchdiffeq",
    "Torchsde",
    "UniPC",
    "annealed_langevin",
]
