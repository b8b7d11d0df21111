"""Codecs on the disk: `codec.json` and a file of tensors, which may lie beside a model's, see `training.store`."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sde_diffusion.data.scalings import Scaling
from sde_diffusion.latent.codec import check_measured
from sde_diffusion.latent.net_codec import FORMAT, VERSION, NetCodec
from sde_diffusion.training.checkpoint import fill
from sde_diffusion.training.checkpoints.manifests import read_manifest
from sde_diffusion.training.checkpoints.registry import build_net, build_scaling, own_classes
from sde_diffusion.training.checkpoints.tensor_file import safetensors
from sde_diffusion.training.run.folder import KEPT
from sde_diffusion.training.store import find

__all__ = ["CodecCheckpoint", "load_codec", "save_codec"]


@dataclass(frozen=True)
class CodecCheckpoint:
    """A codec read from disk, and what is needed to use it.

    Attributes:
        codec: The codec, in evaluation mode, on the CPU.
        scaling: The scaling of the data: `scaling.apply(x)` is what the codec encodes, `scaling.undo(x)` brings what it
            decodes back to the units of the data.
        extra: Whatever else was saved.
    """

    codec: NetCodec
    scaling: Scaling
    extra: dict[str, Any]


def save_codec(
    path: str | Path,
    codec: NetCodec,
    *,
    scaling: Scaling | None = None,
    extra: Mapping[str, Any] | None = None,
    keep: int = 0,
) -> None:
    """Writes a codec to the folder `path`, which is made if need be; one already there is replaced.

    Args:
        path: The folder; a model may lie in it as well.
        codec: A codec around a net with a `config` property, such as `nets.Autoencoder`.
        scaling: What the data went through before, such as `Standardise.of(x)`; None: nothing.
        extra: Anything JSON can hold.
        keep: How many of the codecs before this one stay in the folder.

    Raises:
        TypeError: No `NetCodec`; a net that cannot be described by name; an `extra` that is not JSON.
        ValueError: Parameters that are not finite, a scaling that does not fit; a codec that was trained since its
            units were measured.
        ImportError: safetensors is not installed.
        OSError: The folder cannot be written to; what was there is left as it was.
    """
    given: object = codec
    if not isinstance(given, NetCodec):
        raise TypeError(f"save_codec writes a NetCodec, got {type(given).__name__}: NetCodec(net) makes one of a net")
    check_measured(given)
    safetensors()  # to read it again
    given.save_to(path, scaling=scaling, extra=extra, keep=keep)


def load_codec(path: str | Path, *, known: Iterable[type] = (), unfinished: bool = False) -> CodecCheckpoint:
    """Reads a codec from a folder that `save_codec` or `train_codec` wrote; torch's global random state is left alone.

    No older one takes the place of one that is damaged: its codes would be other codes. Where a model lies beside it
    that learnt the codes of another codec, by its digest, it is refused.

    Args:
        path: The folder.
        unfinished: Whether to read one whose training was cut short as well, of which no units were measured.
        known: Classes of your own that may be built, nets and scalings, see `load_checkpoint`.

    Raises:
        FileNotFoundError: There is none.
        ValueError: A damaged or edited file, an unknown version or class, tensors that do not fit; a training that was
            cut short; a model beside it that learnt other codes.
        ImportError: safetensors is not installed.
    """
    own = own_classes(known)
    safetensors()
    try:
        found = find(path, NetCodec.stored, before=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}: give a folder written by train_codec or save_codec, which holds {NetCodec.stored}.json and the "
            "tensors that it names"
        ) from error
    about = _checked(found.path, found.about)
    if not (about["measured"] or unfinished):
        raise ValueError(
            f"{found.path} is of a training that has not ended, and its codes have no units yet: go on with it, "
            f"train_codec(..., out={str(path)!r}, resume=True), or measure it as it is, "
            f"latent.measure(load_codec({str(path)!r}, unfinished=True).codec, data)"
        )
    with torch.device("cpu"):
        net = build_net(about["net"], own, found.shapes)
        fill(net, found.tensors())
        try:
            scaling = build_scaling(about["scaling"], own)
            shape = about["shape"] if about["shape"] is None else tuple(about["shape"])
            codec = NetCodec(net, shape=shape, **{name: about[name] for name in ("scale", "shift", "noise")})
        except (TypeError, ValueError) as error:
            raise ValueError(f"the codec of {found.path} cannot be put together: {error}") from error
    codec.measured = about["measured"]
    if codec.measured:
        _check_beside(found.path, codec)
    return CodecCheckpoint(codec.eval(), scaling, about["extra"])


def _check_beside(path: Path, codec: NetCodec) -> None:
    """Raises `ValueError` where a model beside a codec learnt the codes of another."""
    try:
        said = read_manifest(path.parent / "model.json")[1].get("extra", {}).get(KEPT, {})
        digest = said.get("digest") if isinstance(said, dict) else None
    except (OSError, ValueError):
        return  # no model, or none that can be loaded
    if digest is not None and digest != codec.digest():
        raise ValueError(
            f"{path} is not the codec whose codes the model beside it learnt: bring that one back, or keep this one in "
            "another folder and train a model of its codes"
        )


def _checked(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """A description that was read, after a look at its entries."""
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe a codec of sde_diffusion")
    if about.get("version") != VERSION:
        raise ValueError(
            f"{path} has format version {reprlib.repr(about.get('version'))}, and this is version {VERSION}: load it "
            "with the version of sde-diffusion that wrote it, or upgrade"
        )
    entries = ("net", "shape", "scale", "shift", "noise", "scaling", "extra", "measured")
    lacking = [key for key in entries if key not in about]
    for key in ("net", "scaling", "extra"):
        lacking += [] if isinstance(about.get(key), dict) else [key]
    lacking += [] if isinstance(about.get("measured"), bool) else ["measured"]
    if lacking:
        raise ValueError(f"{path} has no sound entry {lacking[0]!r}: it was edited; save the codec again")
    return about
