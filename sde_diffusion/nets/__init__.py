"""Which networks are here to start with?  `MLP` for vectors, `UNet` for fields, `DiT`, a transformer, for either.

All answer `net(x, t, **cond)` with a tensor shaped like `x`. What they are asked to predict (noise, data, velocity,
...) and how `x` and `t` are scaled is decided outside. Here `t` is one number per sample, no larger than a few:
`log(sigma / alpha) / 4` in about [-3, 3], which `clock = "edm"` asks `Network` for, or a time in [0, 1]. Integer time
steps (0 ... 1000) must be divided down first.

Conditions go in by name: `label`, a class, `context`, a vector whose entries may be unknown, and to `UNet` and `DiT`
`image`, a field beside the sample, and `tokens`, a sequence of vectors; `Captioned` makes those of text. None is the
null condition, unconditional, which only a net that was trained with it (`label_drop > 0` and so on) answers. What they
mean is in `nets.conditions`, `nets.tokens` and `nets.text`.

Rows never mix (no batch norm), so in `eval()` mode row i of the result depends on row i of the input alone. The last
layer starts at zero: a fresh net answers 0.

`Autoencoder` is none of them: it takes fields to smaller ones and back, for `sde_diffusion.latent`.
`Controlled` and `LoRA` stand around a trained network, which stays as it is.
"""

from sde_diffusion.nets.autoencoder import Autoencoder
from sde_diffusion.nets.conditions import Condition
from sde_diffusion.nets.control import Controlled, joined
from sde_diffusion.nets.dit import DiT
from sde_diffusion.nets.embedding import FourierEmbedding
from sde_diffusion.nets.lora import LoRA, merge, unmerge
from sde_diffusion.nets.mlp import MLP
from sde_diffusion.nets.text import Captioned, TextEncoder
from sde_diffusion.nets.unet import UNet

__all__ = [
    "MLP",
    "Autoencoder",
    "Captioned",
    "Condition",
    "Controlled",
    "DiT",
    "FourierEmbedding",
    "LoRA",
    "TextEncoder",
    "UNet",
    "joined",
    "merge",
    "unmerge",
]

CLASSES = (MLP, UNet, DiT)
"""The networks that a checkpoint can name and the command line can make: the only list of them."""

PARTS = (Captioned, TextEncoder, Controlled, LoRA)
"""What a checkpoint can name besides: what stands around a network, or inside of what does."""

CODECS = (Autoencoder,)
"""The nets that encode and decode, which a checkpoint of a codec can name."""
