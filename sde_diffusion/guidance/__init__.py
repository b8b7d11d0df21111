"""How do I change what a model answers?  By a wrapper of it, which is a model like any other: every solver takes it."""

from __future__ import annotations

from sde_diffusion.guidance.autoguidance import AutoGuided
from sde_diffusion.guidance.classifier import ClassifierGuided
from sde_diffusion.guidance.classifier_free import Guided
from sde_diffusion.guidance.clipping import Clipped, Thresholded
from sde_diffusion.guidance.compositional import Compositional
from sde_diffusion.guidance.extrapolation import GuidanceRule, Optimised, Plain, Projected, Rescaled
from sde_diffusion.guidance.posterior.images import Blur, Downsample, Mask
from sde_diffusion.guidance.posterior.measurement import Matrix, Measurement, Nonlinear, Operator
from sde_diffusion.guidance.posterior.posterior import Posterior
from sde_diffusion.guidance.posterior.rules import DPS, JacobianFree, Moments, PseudoInverse, Rule
from sde_diffusion.guidance.posterior.within import Within
from sde_diffusion.guidance.product import Product
from sde_diffusion.guidance.reward import Reward
from sde_diffusion.guidance.tilted import Tilted
from sde_diffusion.guidance.twisted import Look, Twisted

__all__ = [
    "DPS",
    "AutoGuided",
    "Blur",
    "ClassifierGuided",
    "Clipped",
    "Compositional",
    "Downsample",
    "GuidanceRule",
    "Guided",
    "JacobianFree",
    "Look",
    "Mask",
    "Matrix",
    "Measurement",
    "Moments",
    "Nonlinear",
    "Operator",
    "Optimised",
    "Plain",
    "Posterior",
    "Product",
    "Projected",
    "PseudoInverse",
    "Rescaled",
    "Reward",
    "Rule",
    "Thresholded",
    "Tilted",
    "Twisted",
    "Within",
]
