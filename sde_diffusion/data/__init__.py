"""How do data come in?  As rows of your tensors, data sets and files, as digits or toys, brought to unit scale."""

from sde_diffusion.data.captioned import CaptionedDigits, captioned_digits
from sde_diffusion.data.dequantised import Dequantised
from sde_diffusion.data.files import load_array, open_data
from sde_diffusion.data.held_out import split
from sde_diffusion.data.images import BIN_WIDTH, LEVELS, Digits, bin_centres, dequantise, digits, quantise
from sde_diffusion.data.order import Order
from sde_diffusion.data.photos import photo_patches
from sde_diffusion.data.quantile import Quantile
from sde_diffusion.data.scalings import Scaling
from sde_diffusion.data.source import Batch, Source, Stream, source_of
from sde_diffusion.data.sources.arrays import Rows
from sde_diffusion.data.sources.scaled import Condition, scaled
from sde_diffusion.data.standardise import Standardise
from sde_diffusion.data.toys import moons, ring

__all__ = [
    "BIN_WIDTH",
    "LEVELS",
    "Batch",
    "CaptionedDigits",
    "Condition",
    "Dequantised",
    "Digits",
    "Order",
    "Quantile",
    "Rows",
    "Scaling",
    "Source",
    "Standardise",
    "Stream",
    "bin_centres",
    "captioned_digits",
    "dequantise",
    "digits",
    "load_array",
    "moons",
    "open_data",
    "photo_patches",
    "quantise",
    "ring",
    "scaled",
    "source_of",
    "split",
]
