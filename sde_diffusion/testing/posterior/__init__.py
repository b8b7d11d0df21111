"""Are posteriors what they say?  Statistics for samples from anywhere, and a check against exact ones."""

from sde_diffusion.testing.posterior.calibration import Calibration, coverage, ranks, tarp
from sde_diffusion.testing.posterior.check import check_posterior

__all__ = ["Calibration", "check_posterior", "coverage", "ranks", "tarp"]
