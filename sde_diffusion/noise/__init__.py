"""Where does randomness come from?  From one stream for each sample, named by its seed."""

from sde_diffusion.noise.brownian import BrownianPath
from sde_diffusion.noise.seeds import seed_list
from sde_diffusion.noise.sources import NoiseSource, SharedStream, Silent, Streams

__all__ = ["BrownianPath", "NoiseSource", "SharedStream", "Silent", "Streams", "seed_list"]
