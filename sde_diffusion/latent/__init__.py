"""How is all this done in a code space?  A `Codec` takes data to codes of unit scale and back; diffusion learns codes.

`NetCodec` stands around any net that encodes and decodes, `nets.Autoencoder` for one. What is drawn in the code space
is an approximation twice over, by the diffusion and by the codec: nothing the decoder cannot say is ever drawn.
"""

from sde_diffusion.latent.bound import elbo
from sde_diffusion.latent.codec import Code, Codec, decoded, encoded
from sde_diffusion.latent.net_codec import NetCodec
from sde_diffusion.latent.result import LatentBound
from sde_diffusion.latent.sampler import LatentSampler

__all__ = ["Code", "Codec", "LatentBound", "LatentSampler", "NetCodec", "decoded", "elbo", "encoded"]
