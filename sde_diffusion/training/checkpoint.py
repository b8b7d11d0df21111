"""Checkpoints: a folder with a model's tensors and, in `model.json`, what the model is and how its data were scaled.

Neither can hold code, and only classes known by name are built: those of this library, and those you name on loading.
The description is held to its digest, and the tensors to theirs, before anything is made of them: nothing in them is
meant to be edited. Load the model, and save it again. The digests guard against accidents. Against files made to harm,
everything is bounded by what was read before: the description by its length, the net by the tensors in the file.

A save that is interrupted leaves the old checkpoint, see `training.store`.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, cast

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_finite
from sde_diffusion._sealed import sealed
from sde_diffusion.data.scalings import Scaling, Standardise
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.network import Network
from sde_diffusion.nets.base import OnBase, kept_names
from sde_diffusion.training.checkpoints.bases import Base, base_entry, check_chain, found_base, own_tensors
from sde_diffusion.training.checkpoints.manifests import MOST_MANIFEST, RESERVED
from sde_diffusion.training.checkpoints.registry import (
    Own,
    build,
    build_scaling,
    code_in,
    describe,
    describe_scaling,
    own_classes,
    warn_of_changed,
)
from sde_diffusion.training.checkpoints.tensor_file import safetensors
from sde_diffusion.training.store import Found, files_of, find, write

VERSION = 5
"""The version of the format. Of versions 1 and 2, read as well, each had one mean and one std, and 1 no digest."""
OF_NETWORKS, OF_MAPS = 3, 4
"""The versions that a `Network` and a `FlowMap` are written in, for those who read no more; 5 is that with a base."""
NAME = "model"
TABLES = "tables.json"
"""What `sde-diffusion tune` keeps beside them, of no account to the model: a save of another model removes it."""
MOST_VALUES = 2**30
"""How many values one sample has at most, by the `shape` of a checkpoint."""

_ENTRIES: dict[str, Any] = {
    **dict.fromkeys(("net", "sde", "kind", "extra"), dict),
    "clock": (dict, NoneType),
    "shape": (list, NoneType),
}
_SCALED: dict[str, Any] = dict.fromkeys(("scaling", "conditions"), dict)
_MAP: dict[str, Any] = {"map": dict}
_SCALED_BEFORE: dict[str, Any] = dict.fromkeys(("mean", "std"), (float, int, list))


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    r"""A model read from disk, and what is needed to use it.

    Attributes:
        model: The model, in evaluation mode, on the CPU; a `FlowMap` where one was saved. Upon a base that was given as
            a model, it is on the device of that, whose memory it shares.
        scaling: The scaling of the data: `scaling.apply(x)` is what the model knows, `scaling.undo(z)` brings samples
            back to the units of the data.
        conditions: The scalings of its continuous conditions by their names, where they were scaled: the model is told
            `conditions["context"].apply(context)`.
        classes: Number of classes; 0 for an unconditional model.
        noise_levels: Smallest and largest $\sigma/\alpha$ of the SDE it was trained on, in units of `std`.
        extra: Whatever else was saved.
    """

    model: Network
    scaling: Scaling
    conditions: dict[str, Scaling]
    classes: int
    noise_levels: tuple[float, float]
    extra: dict[str, Any]


def save_checkpoint(
    path: str | Path,
    model: Denoiser,
    *,
    scaling: Scaling | None = None,
    conditions: Mapping[str, Scaling] | None = None,
    extra: Mapping[str, Any] | None = None,
    keep: int = 0,
    base: Base = None,
) -> None:
    """Writes a model to the folder `path`, which is made if need be; a checkpoint already there is replaced.

    Of a model that stands on a frozen base, `Controlled` or `LoRA`, what was trained is kept alone, and the base is
    named by its digest.

    Tables that were tuned for the model that was there, `tables.json`, are removed: tune again, or save them again.

    Args:
        path: The folder.
        model: A `Network` or a `FlowMap` around a net with a `config` property, the constructor's arguments, such as
            `MLP` and `UNet`; of a compiled net, the net inside.
        scaling: What the data went through before training, such as `Standardise.of(x)`; None: nothing.
        conditions: What continuous conditions went through, by their names.
        extra: Anything JSON can hold, kept beside the model.
        keep: How many of the checkpoints before this one stay in the folder, to be used where this one is damaged.
        base: The folder of the checkpoint of the base, which is written down, relative to `path`, so that it is found
            when this one is loaded.

    Raises:
        TypeError: A model, net, SDE, parametrisation, clock or scaling that cannot be described by name, or an `extra`
            that is not JSON.
        ValueError: Parameters that are not finite, a scaling that does not fit such samples, a description that is too
            long to be read again, a `base` that is another, or a folder that holds a base of the model.
        ImportError: safetensors is not installed.
        BlockingIOError: Another process writes to the folder.
        OSError: The folder cannot be written to; what was there is left as it was.
    """
    described = describe(cast(Network, model))
    safetensors()  # to read it again
    scaling = check_scaling(Standardise(cast("Tensor", 0.0), cast("Tensor", 1.0)) if scaling is None else scaling)
    if model.shape is not None:
        scaling = scaling.fitting(model.shape)
    others = {name: describe_scaling(check_scaling(s, f"of {name!r}")) for name, s in dict(conditions or {}).items()}
    net = cast("nn.Module", cast(Network, model).net)
    described |= named_base(model, path, base)
    version = VERSION if "base" in described else OF_MAPS if "map" in described else OF_NETWORKS
    about = {"format": "sde_diffusion checkpoint", "version": version, **described}
    about |= {"scaling": describe_scaling(scaling), "conditions": others, "extra": dict(extra or {})}
    tensors = tensors_of(net)
    check_length(about)
    write(path, NAME, about, tensors, keep=keep)
    (Path(path) / TABLES).unlink(missing_ok=True)  # of the model that was there


def load_checkpoint(path: str | Path, *, known: Iterable[type] = (), base: Base = None) -> Checkpoint:
    """Reads a model from a folder written by `save_checkpoint`; torch's global random state is left alone.

    Where the newest is damaged and one before it was kept, that one is read, with a `DamagedWarning`.

    Args:
        path: The folder.
        known: Classes of your own that may be built: nets, SDEs (dataclasses), parametrisations, clocks, scalings. They
            are called with what the file names as their fields. `load_class("mine.py:Net")` takes one from a file.
        base: Of a checkpoint of a control or of adapters, where the base is, which its digest is held to: the folder of
            its checkpoint, or the model, whose weights are shared and left as they are: what was trained upon it comes
            to its device. By default where the checkpoint says, on the CPU.

    Returns:
        The model and its scalings.

    Raises:
        FileNotFoundError: The folder or one of its files is missing.
        TypeError: `known` holds something else than classes.
        ValueError: A damaged or edited file, an unknown format version or class, tensors that do not fit the net or are
            not finite, a scaling that is none, or a base that is another, cannot be found, or stands on itself.
        ImportError: safetensors is not installed.

    Warns:
        UserWarning: The file of one of these classes has been changed since.
        DamagedWarning: As above.
    """
    return _loaded(path, known, base)


def _loaded(path: str | Path, known: Iterable[type], base: Base = None, above: tuple[Path, ...] = ()) -> Checkpoint:
    """Reads a checkpoint, upon which those in the folders `above` stand."""
    own = own_classes(known)
    safetensors()
    try:
        found = find(path, NAME)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}: give a folder written by `sde-diffusion train` or save_checkpoint, which holds {NAME}.json and "
            "the tensors that it names"
        ) from error
    about, here = _checked(found), (*above, Path(path).resolve())
    with torch.device("cpu"):
        below = found_base(about, found.path, base, lambda folder: _net_in(folder, own, here))
        model, levels = build(about, own, found.shapes, below)
        if code := code_in(about):
            warn_of_changed(code, model, found.path)
        scaling, conditions = _scalings(about, model.shape, own)
        fill(cast("nn.Module", model.net), found.tensors())
    classes = cast(int, model.built_with().get("classes", 0))
    return Checkpoint(model, scaling, conditions, classes, levels, about["extra"])


def named_base(model: Denoiser, path: str | Path, base: Base) -> dict[str, Any]:
    """What the description of a model, in the folder `path`, says of what it stands on; nothing where that is nothing.

    Raises:
        ValueError: A `base` that is another, or a folder that holds a base.
    """
    of = cast(Network, model)
    parts = of.net.modules() if isinstance(of.net, nn.Module) else ()
    known = [type(part) for part in (of.sde, of.kind, *parts) if hasattr(part, "config") or part is of.sde]
    return base_entry(of.net, path, base, lambda folder: _net_in(folder, known))


def _net_in(path: str | Path, known: Iterable[type] = (), above: tuple[Path, ...] = ()) -> nn.Module:
    """The network of a checkpoint, upon which those in the folders `above` stand."""
    check_chain(path, above)
    return cast("nn.Module", _loaded(path, known, above=above).model.net)


def checkpoint_files(path: str | Path) -> list[Path]:
    """The files of the checkpoint in a folder, or of parts of one; none where there are none."""
    return files_of(path, NAME)


def check_scaling(scaling: object, of: str = "of the data") -> Scaling:
    """Returns `scaling` if it is one."""
    if not isinstance(scaling, Scaling):
        raise TypeError(f"the scaling {of} must be one such as Standardise.of(x), got {reprlib.repr(scaling)}")
    return scaling


def check_length(about: Mapping[str, Any]) -> None:
    """Looks that a description can be written, and read again."""
    try:
        size = len(sealed(about)) + RESERVED
    except TypeError as error:
        raise TypeError(f"the description of the model is {error}. Look at extra= and at net.config") from error
    if size > MOST_MANIFEST:
        raise ValueError(f"the description of the model takes {size:,} bytes of {MOST_MANIFEST:,}: keep less in extra=")


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """The tensors of a net, of a compiled one those of the net, after a look that they are finite."""
    tensors, net = {}, getattr(net, "_orig_mod", net)
    for name, t in own_tensors(net, net.state_dict()).items():
        if not isinstance(t, Tensor):
            raise TypeError(f"the net holds {name}, a {type(t).__name__}: a checkpoint keeps tensors alone")
        tensors[name] = t.detach()
        if t.is_floating_point():
            check_finite(tensors[name], f"parameter {name}")
    return tensors


# --- what was read


def _checked(found: Found) -> dict[str, Any]:
    """A description that was read, after a look at the type of every entry."""
    path, about = found.path, found.about
    if about.get("format") != "sde_diffusion checkpoint":
        raise ValueError(f"{path} does not describe an sde_diffusion checkpoint")
    version = about.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ValueError(
            f"{path} has format version {reprlib.repr(version)}, and this is version {VERSION}: "
            "load it with the version of sde-diffusion that wrote it, or upgrade"
        )
    wanted = _ENTRIES | (_SCALED_BEFORE if version < 3 else _SCALED) | (_MAP if version == OF_MAPS else {})
    wanted |= {"base": dict} if version > OF_MAPS else {}
    wanted |= _MAP if version > OF_MAPS and "map" in about else {}
    for key, kinds in wanted.items():
        if key not in about or not isinstance(about[key], kinds) or isinstance(about[key], bool):
            raise ValueError(f"{path} has no sound entry {key!r}: it was edited; save the model again")
    fields, shape = about["net"].get("fields"), about["shape"]
    if not isinstance(fields, dict) or not _is_count(fields.get("classes", 0)):
        raise ValueError(f"{path} has no sound entry 'net': it was edited; save the model again")
    if shape is not None and not (len(shape) < 16 and all(map(_is_count, shape)) and math.prod(shape) <= MOST_VALUES):
        raise ValueError(f"{path} has no sound entry 'shape', of {MOST_VALUES:,} values at most: save the model again")
    return about


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _scalings(about: Mapping[str, Any], shape: tuple[int, ...] | None, own: Own) -> tuple[Scaling, dict[str, Scaling]]:
    try:
        if about["version"] < 3:
            scaling: Scaling = Standardise(about["mean"], about["std"])
        else:
            scaling = build_scaling(about["scaling"], own)
        if shape is not None:
            scaling = scaling.fitting(shape)
        return scaling, {name: build_scaling(entry, own) for name, entry in about.get("conditions", {}).items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"the checkpoint's scaling is none: {error}") from error


def fill(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads tensors into the net, each in its own dtype; those of a frozen base are left as they are."""
    kept = kept_names(net) if isinstance(net, OnBase) else frozenset()
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), None)
    if not kept:
        net.to(dtype)  # whatever else it holds
    for name, t in (*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)):
        if name in kept:
            continue
        other = dtype if kept and dtype is not None and t.is_floating_point() else t.dtype
        given = tensors[name].dtype if name in tensors else other
        if (given.is_floating_point, given.is_complex) != (t.is_floating_point(), t.is_complex()):
            raise ValueError(f"tensor {name!r} holds {given}, the net {t.dtype}: it is from another architecture")
        if given != t.dtype:
            t.data = t.data.to(given)
        if name in tensors and given.is_floating_point:
            check_finite(tensors[name], f"tensor {name!r} of the checkpoint")
    net.load_state_dict(dict(tensors), strict=not kept)
