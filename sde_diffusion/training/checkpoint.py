"""Checkpoints: a folder with the tensors in `model.safetensors` and what the model is in `model.json`.

Neither file can hold code, and only classes known by name are built: those of this library, and those you name on
loading. The JSON file holds the digest of the tensors and one of its own, so that a torn or mixed-up pair and a single
flipped bit are noticed: nothing in it is meant to be edited. Load the model, and save it again. The digests guard
against accidents. Against files made to harm, everything is bounded by what was read before: the description by
`MOST_DESCRIPTION` bytes, the net by the tensors that lie in the file.

Both are written under another name and renamed, so that a save that is interrupted leaves the old checkpoint, or none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, cast

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_finite
from sde_diffusion._files import write_files
from sde_diffusion._sealed import bounded, is_sealed, parsed, sealed
from sde_diffusion.data.standardise import Standardise
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.network import Network
from sde_diffusion.training.checkpoints.registry import build, describe, own_classes

VERSION = 2
"""The version of the format. Version 1, with one mean and std for all columns and no digest, is read as well."""
TENSORS, DESCRIPTION = "model.safetensors", "model.json"
TABLES = "tables.json"
"""What `sde-diffusion tune` keeps beside them, of no account to the model: a save of another model removes it."""
MOST_DESCRIPTION = 16 * 2**20
"""How many bytes `model.json` has at most: a beta table of 1,000 levels takes 35,000."""
MOST_VALUES = 2**30
"""How many values one sample has at most, by the `shape` of a checkpoint."""

_ENTRIES: dict[str, Any] = {
    **dict.fromkeys(("net", "sde", "kind", "extra"), dict),
    "clock": (dict, NoneType),
    "shape": (list, NoneType),
    **dict.fromkeys(("mean", "std"), (float, int, list)),
    "sha256": str,
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    r"""A model read from disk, and what is needed to use it.

    Attributes:
        model: The model, in evaluation mode, on the CPU.
        scaling: The standardisation of the data: `scaling.apply(x)` is what the model knows, `scaling.undo(z)` brings
            samples back to the units of the data.
        classes: Number of classes; 0 for an unconditional model.
        noise_levels: Smallest and largest $\sigma/\alpha$ of the SDE it was trained on, in units of `std`.
        extra: Whatever else was saved.
    """

    model: Network
    scaling: Standardise
    classes: int
    noise_levels: tuple[float, float]
    extra: dict[str, Any]

    @property
    def mean(self) -> Tensor:
        """The mean that was taken from the data: float64, `()`, or per column, `(D,)` or `(C, 1, 1)`."""
        return self.scaling.mean

    @property
    def std(self) -> Tensor:
        """The standard deviation by which they were then divided, of the same shape; samples are `z * std + mean`."""
        return self.scaling.std


def save_checkpoint(
    path: str | Path,
    model: Denoiser,
    *,
    mean: float | Tensor = 0.0,
    std: float | Tensor = 1.0,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model to the folder `path`, which is made if need be; a checkpoint already there is replaced.

    Tables that were tuned for the model that was there, `tables.json`, are removed: tune again, or save them again.

    Args:
        path: The folder.
        model: A `Network` around a net with a `config` property, the constructor's arguments, such as `MLP` and `UNet`.
        mean: Mean that was taken from the data before training: a number, or one per column of vectors, shape `(D,)`,
            or per channel of images, `(C,)` or `(C, 1, 1)`.
        std: Standard deviation by which they were then divided, likewise.
        extra: Anything JSON can hold, kept beside the model.

    Raises:
        TypeError: A model, net, SDE, parametrisation or clock that cannot be described by name, or an `extra` that is
            not JSON.
        ValueError: Parameters that are not finite, a mean and a std that are no standardisation of such samples, or a
            description that is too long to be read again.
        ImportError: safetensors is not installed.
    """
    if type(model) is not Network:
        raise TypeError(f"a checkpoint holds a Network; this is a {type(model).__name__}: save the network inside it")
    scaling = Standardise(cast("Tensor", mean), cast("Tensor", std))
    if model.shape is not None:
        scaling = scaling.fitting(model.shape)
    save = _safetensors().save
    about = {"format": "sde_diffusion checkpoint", "version": VERSION, **describe(model)}
    about |= {"mean": scaling.mean.tolist(), "std": scaling.std.tolist(), "extra": dict(extra or {})}
    tensors = _tensors_of(cast("nn.Module", model.net))
    data = save(tensors)
    text = _sealed(about | {"sha256": hashlib.sha256(data).hexdigest()})
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_files({folder / TENSORS: data, folder / DESCRIPTION: text})
    if (tables := folder / TABLES).is_file():
        tables.unlink()  # of the model that was there


def load_checkpoint(path: str | Path, *, known: Iterable[type] = ()) -> Checkpoint:
    """Reads a model from a folder written by `save_checkpoint`; torch's global random state is left alone.

    Args:
        path: The folder.
        known: Classes of your own that may be built: nets, SDEs (dataclasses), parametrisations, clocks. They are
            called with what the file names as their fields.

    Returns:
        The model and its standardisation.

    Raises:
        FileNotFoundError: The folder or one of its files is missing.
        TypeError: `known` holds something else than classes.
        ValueError: A damaged or edited file, an unknown format version or class, tensors that do not fit the net, or a
            mean and a std that are no standardisation.
        ImportError: safetensors is not installed.
    """
    folder, own = Path(path), own_classes(known)
    for file in (DESCRIPTION, TENSORS):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"no {file} in {folder}: give a folder written by `sde-diffusion train` or save_checkpoint, "
                f"which holds {DESCRIPTION} and {TENSORS}"
            )
    _safetensors()
    about = _read(folder / DESCRIPTION)
    with torch.device("cpu"):
        model, levels = build(about, own, _announced(folder / TENSORS))
        _fill(cast("nn.Module", model.net), _verified(folder / TENSORS, about["sha256"]))
    classes = about["net"]["fields"].get("classes", 0)
    return Checkpoint(model, _scaling(about, model.shape), classes, levels, about["extra"])


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("checkpoints need safetensors: pip install 'sde-diffusion[train]'") from error
    return safetensors.torch


def _tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """Copies the tensors of a net, and looks that they are finite."""
    tensors = {}
    for name, t in net.state_dict().items():
        if not isinstance(t, Tensor):
            raise TypeError(f"the net holds {name}, a {type(t).__name__}: a checkpoint keeps tensors alone")
        tensors[name] = t.detach().cpu().contiguous().clone()
        if t.is_floating_point():
            check_finite(tensors[name], f"parameter {name}")
    return tensors


def _scaling(about: Mapping[str, Any], shape: tuple[int, ...] | None) -> Standardise:
    try:
        scaling = Standardise(about["mean"], about["std"])
        return scaling if shape is None else scaling.fitting(shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the checkpoint's mean and std are no standardisation: {error}") from error


# --- model.json


def _sealed(about: Mapping[str, Any]) -> bytes:
    """The description as sealed JSON."""
    try:
        text = sealed(about)
    except TypeError as error:
        raise TypeError(f"the description of the model is {error}. Look at extra= and at net.config") from error
    if len(text) > MOST_DESCRIPTION:
        raise ValueError(
            f"the description of the model takes {len(text):,} bytes of {MOST_DESCRIPTION:,}: keep less in extra="
        )
    return text


def _read(path: Path) -> dict[str, Any]:
    """Reads a description, and refuses one that is not whole or has an entry of a wrong type."""
    raw = bounded(
        path, MOST_DESCRIPTION, f"a description has {MOST_DESCRIPTION:,} at most: it is none that save_checkpoint wrote"
    )
    try:
        about = parsed(raw)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): it was cut short or edited; save the model again") from error
    if not isinstance(about, dict) or about.get("format") != "sde_diffusion checkpoint":
        raise ValueError(f"{path} does not describe an sde_diffusion checkpoint")
    version = about.get("version")
    if type(version) is not int or version not in (1, VERSION):
        raise ValueError(
            f"{path} has format version {reprlib.repr(version)}, and this is version {VERSION}: "
            "load it with the version of sde-diffusion that wrote it, or upgrade"
        )
    for key, kinds in _ENTRIES.items():
        if key not in about or not isinstance(about[key], kinds) or isinstance(about[key], bool):
            raise ValueError(f"{path} has no sound entry {key!r}: it was edited; save the model again")
    if version > 1 and not is_sealed(raw, about.get("digest")):
        raise ValueError(
            f"{path} is not as it was written: damaged, or edited, which it is not made for. Copy the folder again, or "
            "load the model from where it is whole and save it again"
        )
    fields, shape = about["net"].get("fields"), about["shape"]
    if not isinstance(fields, dict) or not _is_count(fields.get("classes", 0)):
        raise ValueError(f"{path} has no sound entry 'net': it was edited; save the model again")
    if shape is not None and not (len(shape) < 16 and all(map(_is_count, shape)) and math.prod(shape) <= MOST_VALUES):
        raise ValueError(f"{path} has no sound entry 'shape', of {MOST_VALUES:,} values at most: save the model again")
    return about


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


# --- model.safetensors


def _announced(path: Path) -> dict[str, tuple[int, ...]]:
    """Reads names and shapes of the tensors from the header of a file; safetensors holds it to the size of the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise ValueError(f"{_other(path)} ({error})") from error


def _verified(path: Path, sha256: str) -> dict[str, Tensor]:
    """Reads the tensors of a file, and refuses one with another digest."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(_other(path))
    try:
        tensors: dict[str, Tensor] = _safetensors().load(data)
    except Exception as error:  # a dtype that torch does not have
        raise ValueError(f"{_other(path)} ({type(error).__name__}: {error})") from error
    return tensors


def _other(path: Path) -> str:
    return (
        f"{path} is not the file that {DESCRIPTION} describes: cut short while copying, or from another checkpoint. "
        "Copy the folder again as a whole, or save the model again"
    )


def _fill(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads tensors into the net, each in its own dtype."""
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), None)
    net.to(dtype)  # whatever else it holds
    for name, t in (*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)):
        given = tensors[name].dtype if name in tensors else t.dtype
        if (given.is_floating_point, given.is_complex) != (t.is_floating_point(), t.is_complex()):
            raise ValueError(f"tensor {name!r} holds {given}, the net {t.dtype}: it is from another architecture")
        if given != t.dtype:
            t.data = t.data.to(given)
    net.load_state_dict(tensors)
