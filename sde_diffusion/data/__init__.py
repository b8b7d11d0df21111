"""Which data are here, and how are your own read?  Digits and toys; arrays from files, brought to unit scale."""

from sde_diffusion.data.files import load_array
from sde_diffusion.data.images import BIN_WIDTH, LEVELS, Digits, bin_centres, dequantise, digits, quantise
from sde_diffusion.data.standardisation import Standardisation
from sde_diffusion.data.toys import moons, ring

__all__ = [
    "BIN_WIDTH",
    "LEVELS",
    "Digits",
    "Standardisation",
    "bin_centres",
    "dequantise",
    "digits",
    "load_array",
    "moons",
    "quantise",
    "ring",
]
