"""Which networks are here to start with?  `MLP` for vectors and `UNet` for images."""

from sde_diffusion.nets.embedding import Condition, FourierEmbedding
from sde_diffusion.nets.mlp import MLP
from sde_diffusion.nets.unet import UNet

__all__ = ["MLP", "Condition", "FourierEmbedding", "UNet"]

CLASSES = (MLP, UNet)
"""The networks that a checkpoint can name and the command line can make: the only list of them."""
