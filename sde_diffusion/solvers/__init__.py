"""How is one step taken?  A solver carries a state from one time to another, on any equation that gives what it needs.

The lines below are the only list of solvers. A new one is its own file and one line here: from this list come the
choices of `sde-diffusion sample --solver`, the solvers of the tests, and the tables of README and docs. What these need
of a class stands in its own file: `examples` and `named` of `Solver`.
"""

import dataclasses

from sde_diffusion.sde.angle import AngleSDE as AngleSDE
from sde_diffusion.solvers.adaptive import Adaptive as Adaptive
from sde_diffusion.solvers.backends import Torchdiffeq as Torchdiffeq
from sde_diffusion.solvers.backends import Torchsde as Torchsde
from sde_diffusion.solvers.base import Facts as Facts
from sde_diffusion.solvers.base import Solver as Solver
from sde_diffusion.solvers.exponential.adams import IPNDM as IPNDM
from sde_diffusion.solvers.exponential.adams import Adams as Adams
from sde_diffusion.solvers.exponential.ddim import DDIM as DDIM
from sde_diffusion.solvers.exponential.dpm_adaptive import DPMSolver12 as DPMSolver12
from sde_diffusion.solvers.exponential.dpm_adaptive import DPMSolver23 as DPMSolver23
from sde_diffusion.solvers.exponential.dpm_solver import DPMSolver as DPMSolver
from sde_diffusion.solvers.exponential.dpm_solver import DPMSolverPP2S as DPMSolverPP2S
from sde_diffusion.solvers.exponential.dpm_solver_pp import DPMSolverPP as DPMSolverPP
from sde_diffusion.solvers.exponential.dpm_solver_pp import SDEDPMSolverPP as SDEDPMSolverPP
from sde_diffusion.solvers.exponential.er_sde import ERSDE as ERSDE
from sde_diffusion.solvers.exponential.multistep import Multistep as Multistep
from sde_diffusion.solvers.exponential.multistep import Row as Row
from sde_diffusion.solvers.exponential.sa_solver import SASolver as SASolver
from sde_diffusion.solvers.exponential.unipc import UniPC as UniPC
from sde_diffusion.solvers.jump import Jump as Jump
from sde_diffusion.solvers.ode.adams_moulton import AdamsMoulton as AdamsMoulton
from sde_diffusion.solvers.ode.embedded import BogackiShampine as BogackiShampine
from sde_diffusion.solvers.ode.embedded import DormandPrince as DormandPrince
from sde_diffusion.solvers.ode.embedded import EmbeddedRungeKutta as EmbeddedRungeKutta
from sde_diffusion.solvers.ode.embedded import HeunEuler as HeunEuler
from sde_diffusion.solvers.ode.runge_kutta import RK4 as RK4
from sde_diffusion.solvers.ode.runge_kutta import Euler as Euler
from sde_diffusion.solvers.ode.runge_kutta import Heun as Heun
from sde_diffusion.solvers.ode.runge_kutta import Midpoint as Midpoint
from sde_diffusion.solvers.ode.runge_kutta import RungeKutta as RungeKutta
from sde_diffusion.solvers.stochastic.euler_maruyama import EulerMaruyama as EulerMaruyama
from sde_diffusion.solvers.stochastic.heun_euler import StochasticHeunEuler as StochasticHeunEuler
from sde_diffusion.solvers.stochastic.langevin import Hold as Hold
from sde_diffusion.solvers.stochastic.langevin import Langevin as Langevin
from sde_diffusion.solvers.stochastic.langevin import PredictorCorrector as PredictorCorrector
from sde_diffusion.solvers.stochastic.langevin import annealed_langevin as annealed_langevin
from sde_diffusion.solvers.stochastic.reverse_diffusion import ReverseDiffusion as ReverseDiffusion
from sde_diffusion.solvers.stochastic.srk import SRA1 as SRA1
from sde_diffusion.solvers.wrappers.angle import Angle as Angle
from sde_diffusion.solvers.wrappers.churn import Churn as Churn
from sde_diffusion.solvers.wrappers.inpaint import Inpaint as Inpaint
from sde_diffusion.solvers.wrappers.renoise import Renoise as Renoise
from sde_diffusion.solvers.wrappers.restart import Restart as Restart
from sde_diffusion.solvers.wrappers.reversible import Reversible as Reversible

CONDITIONAL: tuple[type, ...] = (Inpaint,)
"""Solvers that sample another law than that of the model, and stand in no list."""
MAPPED: tuple[type[Solver], ...] = (Jump,)
"""Solvers that work with a flow map alone, and stand in no list."""

CLASSES: tuple[type[Solver], ...] = tuple(
    c
    for c in list(vars().values())
    if dataclasses.is_dataclass(c) and isinstance(c, type) and issubclass(c, Solver) and c not in CONDITIONAL + MAPPED
)
"""The solvers of the list, in its order; not the bases to write another with."""


def examples() -> list[Solver]:
    """The examples of every solver."""
    return [solver for cls in CLASSES for solver in cls.examples()]


def named() -> dict[str, Solver]:
    """The solvers that the command line offers, by name."""
    return {name: solver for cls in CLASSES for name, solver in cls.named().items()}
