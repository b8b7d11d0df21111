"""Score-based diffusion with pluggable solvers: an SDE, a denoiser, a solver, a sampler."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sde_diffusion import noise, solvers
from sde_diffusion._checks import SolverError
from sde_diffusion.denoiser import Denoiser, Network, PerSample, Prediction, Shared, Wrapper, clocks, predict
from sde_diffusion.problem import Problem
from sde_diffusion.sampler import SamplingWarning, SDESampler
from sde_diffusion.sde import SDE, GaussianSDE, Level, Matched, Standard, grids, processes
from sde_diffusion.sde.processes import *  # noqa: F403 - all that the list of processes names
from sde_diffusion.solvers.jump import UntrainedWarning
from sde_diffusion.solvers.loop import NonFiniteWarning, Snapshot, UnfinishedWarning, integrate

if TYPE_CHECKING:  # a type checker reads here what `_LATER` loads
    from sde_diffusion import cascade as cascade
    from sde_diffusion import data as data
    from sde_diffusion import distillation as distillation
    from sde_diffusion import guidance as guidance
    from sde_diffusion import latent as latent
    from sde_diffusion import likelihood as likelihood
    from sde_diffusion import metrics as metrics
    from sde_diffusion import nets as nets
    from sde_diffusion import particles as particles
    from sde_diffusion import plots as plots
    from sde_diffusion import testing as testing
    from sde_diffusion import training as training
    from sde_diffusion import tuning as tuning
    from sde_diffusion.denoiser import analytic as analytic
    from sde_diffusion.denoiser.flow_map import FlowMap as FlowMap
    from sde_diffusion.guidance.clipping import Clipped as Clipped
    from sde_diffusion.likelihood import dequantize as dequantize
    from sde_diffusion.sampler import distributed as distributed
    from sde_diffusion.training import losses as losses
    from sde_diffusion.tuning.solver import TableSolver as TableSolver
    from sde_diffusion.tuning.table import SolverTable as SolverTable
    from sde_diffusion.tuning.tuned import Tuned as Tuned
    from sde_diffusion.tuning.tuner import tune as tune

__version__ = "0.1.0"

# Loaded on first use, as an attribute of the package or by `from sde_diffusion import ...`: the name and the module, or
# the module and what it has under the name.
_LATER = {
    **{name: name for name in ("cli", "data", "demo", "guidance", "likelihood", "metrics", "nets", "plots")},
    **{name: name for name in ("cascade", "distillation", "latent", "particles", "testing", "training", "tuning")},
    "FlowMap": "denoiser.flow_map:FlowMap",
    "Clipped": "guidance.clipping:Clipped",
    "analytic": "denoiser.analytic",
    "dequantize": "likelihood.dequantize",
    "distributed": "sampler.distributed",
    "losses": "training.losses",
    "SolverTable": "tuning.table:SolverTable",
    "TableSolver": "tuning.solver:TableSolver",
    "Tuned": "tuning.tuned:Tuned",
    "tune": "tuning.tuner:tune",
}


__all__ = [
    "SDE",
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
    "UntrainedWarning",
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
    module, _, inside = _LATER[name].partition(":")
    found = import_module(f"{__name__}.{module}")
    return getattr(found, inside) if inside else found


def __dir__() -> list[str]:
    return sorted({*__all__, *_LATER, "__version__"})
