"""How do I draw coarse to fine?  A model of a low resolution, then models that are told one: a `Cascade` of them.

`LowResolution` says how a low resolution is made and what a network is told of it, `SuperResolution` trains a network
so, `Upsampler` draws high resolutions of given low ones, and `Cascade` puts stages one after the other.
"""

from sde_diffusion.cascade.low_resolution import LowResolution as LowResolution
from sde_diffusion.cascade.objective import SuperResolution as SuperResolution
from sde_diffusion.cascade.stages import Cascade as Cascade
from sde_diffusion.cascade.stages import Staged as Staged
from sde_diffusion.cascade.upsampler import Upsampler as Upsampler
