"""Score-based diffusion with pluggable solvers: an SDE, a denoiser, a solver, a sampler."""

from sde_diffusion import clocks, grids, noise, predict, solvers
from sde_diffusion._checks import SolverError
from sde_diffusion._network import Network
from sde_diffusion.clip import Clip
from sde_diffusion.conditions import PerSample, Shared
from sde_diffusion.denoiser import Denoiser, Wrapper
from sde_diffusion.forecast import SamplingWarning
from sde_diffusion.loop import NonFiniteWarning, Snapshot, UnfinishedWarning, integrate
from sde_diffusion.predict import Prediction
from sde_diffusion.prior import Matched, Standard
from sde_diffusion.problem import Problem
from sde_diffusion.sampler import SDESampler
from sde_diffusion.schedules import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    CosineSDE,
    DiscreteVPSDE,
    FlowSDE,
    SubVPSDE,
)
from sde_diffusion.sde import SDE, GaussianSDE, Level

__version__ = "0.1.0"

__all__ = [
    "EDMSDE",
    "SDE",
    "VESDE",
    "VPSDE",
    "BrownianSDE",
    "Clip",
    "CosineSDE",
    "Denoiser",
    "DiscreteVPSDE",
    "FlowSDE",
    "GaussianSDE",
    "Level",
    "Matched",
    "Network",
    "NonFiniteWarning",
    "PerSample",
    "Prediction",
    "Problem",
    "SDESampler",
    "SamplingWarning",
    "Shared",
    "Snapshot",
    "SolverError",
    "Standard",
    "SubVPSDE",
    "UnfinishedWarning",
    "Wrapper",
    "clocks",
    "grids",
    "integrate",
    "noise",
    "predict",
    "solvers",
]
