"""How do I draw from a law that no model answers exactly, and how likely is it?  By particles, weighed on their way."""

from __future__ import annotations

from sde_diffusion.particles.importance import importance_evidence
from sde_diffusion.particles.result import Particles
from sde_diffusion.particles.sampler import ParticleSampler
from sde_diffusion.particles.telling import ParticleWarning

__all__ = ["ParticleSampler", "ParticleWarning", "Particles", "importance_evidence"]
