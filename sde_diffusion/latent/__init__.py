"""How is all this done in a code space?  A `Codec` takes data to codes of unit scale and back; diffusion learns codes.

`NetCodec` stands around any net that encodes and decodes, `nets.Autoencoder` for one. What is drawn in the code space
is an approximation twice over, by the diffusion and by the codec: nothing the decoder cannot say is ever drawn.
"""

from sde_diffusion.latent.codec import Code, Codec, decoded, encoded
from sde_diffusion.latent.net_codec import NetCodec

__all__ = ["Code", "Codec", "NetCodec", "decoded", "encoded"]
