"""How do I teach a model fewer steps?  By training a `FlowMap`, whose jumps are held to shorter ones."""

from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.distillation.consistency import Consistency
from sde_diffusion.distillation.distilling import distill, recipe
from sde_diffusion.distillation.mean_flow import MeanFlow
from sde_diffusion.distillation.objective import MapObjective
from sde_diffusion.distillation.progressive import Progressive
from sde_diffusion.distillation.reflow import Reflow, reflow_pairs
from sde_diffusion.distillation.shortcut import Shortcut
from sde_diffusion.distillation.trajectory import Trajectory

__all__ = [
    "Consistency",
    "FlowMap",
    "MapObjective",
    "MeanFlow",
    "Progressive",
    "Reflow",
    "Shortcut",
    "Trajectory",
    "distill",
    "recipe",
    "reflow_pairs",
]
