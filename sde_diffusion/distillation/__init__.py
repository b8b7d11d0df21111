"""How do I teach a model fewer steps?  By training a `FlowMap`, whose jumps are held to shorter ones."""

from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.distillation.shortcut import Shortcut
from sde_diffusion.distillation.trajectory import Trajectory

__all__ = ["FlowMap", "Shortcut", "Trajectory"]
