"""How do data come in?  As digits, as toys, or as arrays from your files, brought to unit scale."""

from sde_diffusion.data.files import load_array
from sde_diffusion.data.images import BIN_WIDTH, LEVELS, Digits, bin_centres, dequantise, digits, quantise
from sde_diffusion.data.order import Order
from sde_diffusion.data.quantile import Quantile
from sde_diffusion.data.scalings import Scaling
from sde_diffusion.data.source import Batch, Source, Stream, source_of
from sde_diffusion.data.standardise import Standardise
from sde_diffusion.data.toys import moons, ring

__all__ = [
    "BIN_WIDTH",
    "LEVELS",
    "Batch",
    "Digits",
    "Order",
    "Quantile",
    "Scaling",
    "Source",
    "Standardise",
    "Stream",
    "bin_centres",
    "dequantise",
    "digits",
    "load_array",
    "moons",
    "quantise",
    "ring",
    "source_of",
]
