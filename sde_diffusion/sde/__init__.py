"""How do data become noise?  By a process: its schedule, its range of times, its prior, and grids over it."""

from sde_diffusion.sde import grids as grids
from sde_diffusion.sde.base import SDE as SDE
from sde_diffusion.sde.base import GaussianSDE as GaussianSDE
from sde_diffusion.sde.level import Level as Level
from sde_diffusion.sde.prior import Matched as Matched
from sde_diffusion.sde.prior import Prior as Prior
from sde_diffusion.sde.prior import Standard as Standard
from sde_diffusion.sde.processes import *  # noqa: F403 - all that the list of processes names
