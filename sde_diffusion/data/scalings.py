"""The scalings of data that a checkpoint knows by name: the one list of them.

Another one is a class with the methods of `Scaling`, in a file of its own, and a name here.
"""

from __future__ import annotations

from sde_diffusion.data._scaling import Scaling
from sde_diffusion.data.quantile import Quantile
from sde_diffusion.data.standardise import Standardise

__all__ = ["CLASSES", "Quantile", "Scaling", "Standardise"]

CLASSES: tuple[type[Scaling], ...] = (Standardise, Quantile)
