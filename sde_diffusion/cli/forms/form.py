"""What a checkpoint says of the way from its model to the data: a codec that decodes, a low resolution that is told."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sde_diffusion._sealed import sealed
from sde_diffusion.cascade.low_resolution import LowResolution
from sde_diffusion.cascade.upsampler import Upsampler
from sde_diffusion.data.scalings import Scaling
from sde_diffusion.denoiser.modules import Evaluation, home
from sde_diffusion.latent.codec import encoded
from sde_diffusion.latent.net_codec import NetCodec
from sde_diffusion.latent.sampler import LatentSampler
from sde_diffusion.latent.stored import CodecCheckpoint, load_codec
from sde_diffusion.nets.control import Controlled
from sde_diffusion.noise.seeds import Use, one_stream
from sde_diffusion.sampler.base import Sampler
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.training.checkpoint import Checkpoint
from sde_diffusion.training.checkpoints.manifests import entry_of, read_manifest

CODEC, LATENT, LOW, CONTROL, LORA = NetCodec.stored, "latent", "low_res", "control", "lora"
"""What a codec is called in a folder, and what `extra` of a checkpoint calls what is said of one, of a stage, of what
stands upon a base."""
CHUNK = 256
"""Rows that are encoded at once."""
LEVEL = 0.1
"""The level of noise on low resolutions where nothing is said, if the stage knows it."""


@dataclass(frozen=True)
class Form:
    """What stands between the model of a checkpoint and the data.

    Args:
        shape: That of one sample of the data.
        scaling: That of the data.
        codec: What decodes what the model draws; None if it draws data.
        low: The low resolution that the model is told; None if it is told none.
        control: The names of its controls, each of which is told a field.
    """

    shape: tuple[int, ...] | None
    scaling: Scaling
    codec: NetCodec | None = None
    low: LowResolution | None = None
    control: tuple[str, ...] = ()

    @property
    def told(self) -> tuple[str, ...]:
        """The conditions of the model that are made of a low resolution."""
        return () if self.low is None else self.low.names

    def check_level(self, level: float | None) -> None:
        """Raises `ValueError` for a level of noise that the stage was not trained on."""
        if level is not None and self.low is not None and not 0 <= level <= self.low.most:
            raise ValueError(f"--level {level:g}: the stage was trained from 0 to {self.low.most:g}, --augment")

    def around(self, sampler: SDESampler, level: float | None = None) -> Sampler:
        """The sampler of data that a sampler of the model makes.

        Args:
            sampler: Draws from the model.
            level: The level of noise on low resolutions; None for `LEVEL`, or the highest that the stage knows.

        Raises:
            ValueError: A level that it does not know.
        """
        if self.codec is not None:
            return LatentSampler(sampler, self.codec)
        if self.low is None:
            return sampler
        return Upsampler(sampler, self.low, min(LEVEL, self.low.most) if level is None else level)


def form_of(folder: Path, loaded: Checkpoint, option: str = "--checkpoint") -> Form:
    """What stands between the model of a checkpoint and the data.

    Args:
        folder: The folder of the checkpoint.
        loaded: The checkpoint, on the device to work on.
        option: What an error calls the folder.

    Raises:
        FileNotFoundError: The model is one of codes, and its codec is not there.
        ValueError: A codec that is not the one whose codes the model learnt, or a description that is none.
    """
    shape, said, control = loaded.model.shape, loaded.extra.get(LATENT), controls_of(loaded.model.net)
    if LOW in loaded.extra:
        return Form(shape, loaded.scaling, low=LowResolution.of(loaded.extra[LOW]), control=control)
    if not (folder / f"{CODEC}.json").is_file():
        if said is not None:
            raise FileNotFoundError(
                f"{option} {folder} holds a model of codes, and no {CODEC}.json, which decodes them: copy it and its "
                "tensors from where the model was trained"
            )
        return Form(shape, loaded.scaling, control=control)
    if isinstance(said, dict) and said.get("codec") not in (None, codec_digest(folder)):
        raise ValueError(
            f"{option} {folder}: {CODEC}.json is not the codec whose codes the model learnt: bring that one back, or "
            "train a model of this one, --latent FOLDER"
        )
    return form_of_codec(load_codec(folder), loaded, f"{option} {folder}")


def controls_of(net: object) -> tuple[str, ...]:
    """The names of the controls in a network; a function has none."""
    parts = net.modules() if isinstance(net, nn.Module) else ()
    return tuple(name for part in parts if isinstance(part, Controlled) for name in part.channels)


def form_of_codec(found: CodecCheckpoint, loaded: Checkpoint, who: str) -> Form:
    """The form of a model of codes.

    Raises:
        ValueError: The codec has codes of another shape than the model.
    """
    codec = found.codec.to(home(loaded.model)[1])
    shape = codec.shape or loaded.extra.get(LATENT, {}).get("shape")
    if shape is None:
        raise ValueError(f"{who}: its codec does not say of which shape its data are: NetCodec(net, shape=...)")
    if (code := codec.shape_of(tuple(shape))) != loaded.model.shape:
        raise ValueError(f"{who}: its codec has codes of shape {code}, and its model is one of {loaded.model.shape}")
    return Form(tuple(shape), found.scaling, codec, control=controls_of(loaded.model.net))


@torch.no_grad()
def codes_of(codec: NetCodec, x: Tensor, seed: int) -> Tensor:
    """Codes of data as the codec sees them, `(N, *)`, one draw for each from a seed."""
    generator = one_stream(seed, use=Use.CODES)
    with Evaluation(codec):
        found = []
        for part in x.split(CHUNK):
            code = encoded(codec, part.to(home(codec)[1]))
            eps = torch.randn(code.mean.shape, generator=generator, dtype=code.mean.dtype, device="cpu")
            found.append(code.at(eps.to(code.mean.device)))
    return torch.cat(found)


def codec_digest(folder: Path) -> str:
    """The digest of the codec in a folder: of its tensors, of its net and of its units."""
    _, about = read_manifest(folder / f"{CODEC}.json")
    said = {key: about.get(key) for key in ("net", "shape", "scale", "shift", "scaling")}
    said["tensors"] = entry_of(about, CODEC).get("sha256")
    return hashlib.sha256(sealed(said)).hexdigest()
