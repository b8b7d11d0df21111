"""How do I change what a model answers?  By a wrapper of it, which is a model like any other: every solver takes it."""

from __future__ import annotations

from sde_diffusion.guidance.product import Product
from sde_diffusion.guidance.twisted import Look, Twisted

__all__ = ["Look", "Product", "Twisted"]
