"""Score-based diffusion with pluggable solvers: an SDE, a denoiser, a solver, a sampler."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sde_diffusion import noise as noise
from sde_diffusion import solvers as solvers
from sde_diffusion._checks import SolverError as SolverError
from sde_diffusion.denoiser import Clip as Clip
from sde_diffusion.denoiser import Denoiser as Denoiser
from sde_diffusion.denoiser import Network as Network
from sde_diffusion.denoiser import PerSample as PerSample
from sde_diffusion.denoiser import Prediction as Prediction
from sde_diffusion.denoiser import Shared as Shared
from sde_diffusion.denoiser import Wrapper as Wrapper
from sde_diffusion.denoiser import clocks as clocks
from sde_diffusion.denoiser import predict as predict
from sde_diffusion.problem import Problem as Problem
from sde_diffusion.sampler import SamplingWarning as SamplingWarning
from sde_diffusion.sampler import SDESampler as SDESampler
from sde_diffusion.sde import SDE as SDE
from sde_diffusion.sde import GaussianSDE as GaussianSDE
from sde_diffusion.sde import Level as Level
from sde_diffusion.sde import Matched as Matched
from sde_diffusion.sde import Standard as Standard
from sde_diffusion.sde import grids as grids
from sde_diffusion.sde import processes as processes
from sde_diffusion.sde.processes import *  # noqa: F403 - all that the list of processes names
from sde_diffusion.solvers.loop import NonFiniteWarning as NonFiniteWarning
from sde_diffusion.solvers.loop import Snapshot as Snapshot
from sde_diffusion.solvers.loop import UnfinishedWarning as UnfinishedWarning
from sde_diffusion.solvers.loop import integrate as integrate

if TYPE_CHECKING:  # a type checker reads here what `_LATER` loads
    from sde_diffusion import data as data
    from sde_diffusion import likelihood as likelihood
    from sde_diffusion import metrics as metrics
    from sde_diffusion import nets as nets
    from sde_diffusion import plots as plots
    from sde_diffusion import testing as testing
    from sde_diffusion import training as training
    from sde_diffusion.denoiser import analytic as analytic
    from sde_diffusion.likelihood import dequantize as dequantize
    from sde_diffusion.training import losses as losses

__version__ = "0.1.0"

# Loaded on first use, as an attribute of the package or by `from sde_diffusion import ...`: the name and the module.
_LATER = {
    **{name: name for name in ("cli", "data", "demo", "likelihood", "metrics", "nets", "plots", "testing", "training")},
    "analytic": "denoiser.analytic",
    "dequantize": "likelihood.dequantize",
    "losses": "training.losses",
}


__all__ = [
    "SDE",
    "Clip",
    "Denoiser",
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
    "UnfinishedWarning",
    "Wrapper",
    "clocks",
    "grids",
    "integrate",
    "noise",
    "predict",
    "solvers",
]
__all__ += [cls.__name__ for cls in processes.CLASSES]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{_LATER[name]}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_LATER, "__version__"})
