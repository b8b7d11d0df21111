"""How do I draw and encode?  By an `SDESampler`: a problem, a solver and a grid of times."""

from sde_diffusion.sampler.base import Sampler
from sde_diffusion.sampler.forecast import SamplingWarning
from sde_diffusion.sampler.sampler import SDESampler

__all__ = ["SDESampler", "Sampler", "SamplingWarning"]
