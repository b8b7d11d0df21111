"""How do I change what a model answers?  By a wrapper of it, which is a model like any other: every solver takes it."""

from __future__ import annotations

from sde_diffusion.guidance.compositional import Compositional
from sde_diffusion.guidance.posterior.measurement import Matrix, Measurement, Nonlinear, Operator
from sde_diffusion.guidance.posterior.posterior import Posterior
from sde_diffusion.guidance.posterior.rules import DPS, JacobianFree, Moments, PseudoInverse, Rule
from sde_diffusion.guidance.product import Product
from sde_diffusion.guidance.twisted import Look, Twisted

__all__ = [
    "DPS",
    "Compositional",
    "JacobianFree",
    "Look",
    "Matrix",
    "Measurement",
    "Moments",
    "Nonlinear",
    "Operator",
    "Posterior",
    "Product",
    "PseudoInverse",
    "Rule",
    "Twisted",
]
