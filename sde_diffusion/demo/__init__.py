"""What does the demonstration show?  A model of handwritten digits, trained, sampled and measured in minutes."""

from sde_diffusion.demo.demonstration import Settings, run

__all__ = ["Settings", "run"]
