"""How is all this done in a code space?  A `Codec` takes data to codes of unit scale and back; diffusion learns codes.

`NetCodec` stands around any net that encodes and decodes, `nets.Autoencoder` for one; `train_codec` teaches it, and
`cached` keeps the codes of data for `train`. What is drawn in the code space is an approximation twice over, by the
diffusion and by the codec: nothing the decoder cannot say is ever drawn.
"""

from sde_diffusion.latent.adapters import from_autoencoder, from_diffusers, from_functions
from sde_diffusion.latent.bound import elbo
from sde_diffusion.latent.codec import Code, Codec, decoded, encoded
from sde_diffusion.latent.codes import Codes, cached
from sde_diffusion.latent.learning import CodecTraining, measure, train_codec
from sde_diffusion.latent.net_codec import NetCodec
from sde_diffusion.latent.objective import Reconstruction
from sde_diffusion.latent.result import LatentBound
from sde_diffusion.latent.sampler import LatentSampler
from sde_diffusion.latent.stored import CodecCheckpoint, load_codec, save_codec

__all__ = [
    "Code",
    "Codec",
    "CodecCheckpoint",
    "CodecTraining",
    "Codes",
    "LatentBound",
    "LatentSampler",
    "NetCodec",
    "Reconstruction",
    "cached",
    "decoded",
    "elbo",
    "encoded",
    "from_autoencoder",
    "from_diffusers",
    "from_functions",
    "load_codec",
    "measure",
    "save_codec",
    "train_codec",
]
