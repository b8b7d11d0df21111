"""What does a network know?  The data and the noise in a state, at each level of a process: a `Denoiser`."""

from sde_diffusion.denoiser import analytic, clocks, predict
from sde_diffusion.denoiser.base import Denoiser, On, Wrapper
from sde_diffusion.denoiser.conditions import PerSample, Shared
from sde_diffusion.denoiser.network import Network
from sde_diffusion.denoiser.prediction import Prediction

__all__ = [
    "Denoiser",
    "Network",
    "On",
    "PerSample",
    "Prediction",
    "Shared",
    "Wrapper",
    "analytic",
    "clocks",
    "predict",
]
