"""Score-based diffusion with pluggable solvers: an SDE, a denoiser, a solver, a sampler."""

from sde_diffusion import clocks as clocks
from sde_diffusion import grids as grids
from sde_diffusion import noise as noise
from sde_diffusion import predict as predict
from sde_diffusion import solvers as solvers
from sde_diffusion._checks import SolverError as SolverError
from sde_diffusion._network import Network as Network
from sde_diffusion.clip import Clip as Clip
from sde_diffusion.conditions import PerSample as PerSample
from sde_diffusion.conditions import Shared as Shared
from sde_diffusion.denoiser import Denoiser as Denoiser
from sde_diffusion.denoiser import Wrapper as Wrapper
from sde_diffusion.forecast import SamplingWarning as SamplingWarning
from sde_diffusion.loop import NonFiniteWarning as NonFiniteWarning
from sde_diffusion.loop import Snapshot as Snapshot
from sde_diffusion.loop import UnfinishedWarning as UnfinishedWarning
from sde_diffusion.loop import integrate as integrate
from sde_diffusion.prediction import Prediction as Prediction
from sde_diffusion.prior import Matched as Matched
from sde_diffusion.prior import Standard as Standard
from sde_diffusion.problem import Problem as Problem
from sde_diffusion.processes import *  # noqa: F403 - all that the list of processes names
from sde_diffusion.sampler import SDESampler as SDESampler
from sde_diffusion.sde import SDE as SDE
from sde_diffusion.sde import GaussianSDE as GaussianSDE
from sde_diffusion.sde import Level as Level

__version__ = "0.1.0"
