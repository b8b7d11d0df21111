"""Checkpoints: a folder with the tensors in `model.safetensors` and what the model is in `model.json`.

Neither file can hold code, and only classes known by name are built: those of this library, and those you name on
loading. The JSON file holds the digest of the tensors, so that a torn or mixed-up pair is noticed. Both are written
under another name and renamed, so that a save that is interrupted leaves the old checkpoint, or none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, cast

import torch
from torch import nn

from sde_diffusion import clocks, nets, predict, schedules
from sde_diffusion._checks import check_finite
from sde_diffusion._files import write_files
from sde_diffusion.denoiser import Denoiser, Network
from sde_diffusion.predict import Parametrisation
from sde_diffusion.sde import GaussianSDE

VERSION = 1
"""Of the format, in `model.json`."""
TENSORS, DESCRIPTION = "model.safetensors", "model.json"

_NETS = {c.__name__: c for c in (nets.MLP, nets.UNet)}
_SDES = {
    c.__name__: c
    for c in (
        schedules.VPSDE,
        schedules.SubVPSDE,
        schedules.VESDE,
        schedules.BrownianSDE,
        schedules.CosineSDE,
        schedules.EDMSDE,
        schedules.FlowSDE,
        schedules.DiscreteVPSDE,
    )
}
_KINDS = {c.__name__: c for c in (predict.Noise, predict.Data, predict.Score, predict.Velocity, predict.V, predict.EDM)}
_CLOCKS: dict[str, Any] = {f.__name__: f for f in (clocks.time, clocks.sigma, clocks.log_snr, clocks.edm)} | {
    c.__name__: c for c in (clocks.Scaled, clocks.Index)
}

_ENTRIES: dict[str, Any] = {
    **dict.fromkeys(("net", "sde", "kind", "extra"), dict),
    "clock": (dict, NoneType),
    "shape": (list, NoneType),
    "noise_levels": list,
    **dict.fromkeys(("mean", "std"), (float, int)),
    "classes": int,
    "sha256": str,
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    r"""A model read from disk, and what is needed to use it.

    Attributes:
        model: The model, in evaluation mode, on the CPU.
        mean: Mean that was taken from the data; samples are `model space * std + mean`.
        std: Standard deviation by which the data were then divided.
        classes: Number of classes; 0 for an unconditional model.
        noise_levels: Smallest and largest $\sigma/\alpha$ of the SDE it was trained on.
        extra: Whatever else was saved.
    """

    model: Network
    mean: float
    std: float
    classes: int
    noise_levels: tuple[float, float]
    extra: dict[str, Any]


def save_checkpoint(
    path: str | Path,
    model: Denoiser,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model to the folder `path`, which is made if need be; a checkpoint already there is replaced.

    The prior of a `matched_to` SDE is not part of the model and is not saved.

    Args:
        path: The folder.
        model: A `Network` around a net with a `config` property, the constructor's arguments, such as `MLP` and `UNet`.
        mean: Mean that was taken from the data before training.
        std: Standard deviation by which they were then divided.
        extra: Anything JSON can hold, kept beside the model.

    Raises:
        TypeError: A model, net, SDE, parametrisation or clock that cannot be described by name, or an `extra` that is
            not JSON.
        ValueError: Parameters that are not finite, or a mean and a std that are no standardisation.
        ImportError: safetensors is not installed.
    """
    if not isinstance(model, Network):
        raise TypeError(f"a checkpoint holds a Network; this is a {type(model).__name__}: save the network inside it")
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise ValueError(f"wanted a finite mean and a positive std, got mean={mean!r} and std={std!r}")
    save = _safetensors().save
    description = _describe(model) | {"mean": float(mean), "std": float(std), "extra": dict(extra or {})}
    state = cast("nn.Module", model.net).state_dict()
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
    for name, t in tensors.items():
        if t.is_floating_point():
            check_finite(t, f"parameter {name}")
    data = save(tensors)
    description["sha256"] = hashlib.sha256(data).hexdigest()
    try:
        text = json.dumps(description, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the description of the model is not JSON: {error}. Look at extra= and at net.config"
        ) from error
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_files({folder / TENSORS: data, folder / DESCRIPTION: text.encode()})


def load_checkpoint(path: str | Path, *, known: Iterable[type] = ()) -> Checkpoint:
    """Reads a model from a folder written by `save_checkpoint`.

    Args:
        path: The folder.
        known: Classes of your own that may be built: nets, SDEs (dataclasses), parametrisations, clocks.

    Returns:
        The model and its standardisation.

    Raises:
        FileNotFoundError: The folder or one of its files is missing.
        ValueError: A damaged file, an unknown format version or class, or tensors that do not fit the net.
        ImportError: safetensors is not installed.
    """
    folder = Path(path)
    for file in (DESCRIPTION, TENSORS):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"no {file} in {folder}: give a folder written by `sde-diffusion train` or save_checkpoint, "
                f"which holds {DESCRIPTION} and {TENSORS}"
            )
    load = _safetensors().load
    from safetensors import SafetensorError

    about = _read(folder / DESCRIPTION)
    data = (folder / TENSORS).read_bytes()
    own = {c.__name__: c for c in known}
    sde = _build(about["sde"], _SDES | own, "SDE", GaussianSDE)
    kind = _build(about["kind"], _KINDS | own, "parametrisation", Parametrisation)
    clock = None if about["clock"] is None else _build(about["clock"], _CLOCKS | own, "clock", object)
    net = _build(about["net"], _NETS | own, "net", nn.Module)
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise ValueError(
            f"{folder / TENSORS} is not the file that {DESCRIPTION} describes: cut short while copying, or from "
            "another checkpoint. Copy the folder again as a whole, or save the model again"
        )
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"{folder / TENSORS} is not a safetensors file ({error}): save the model again") from error
    _fill(net, tensors, folder)
    model = Network(net, sde, kind, clock=clock, shape=about["shape"]).eval()
    low, high = about["noise_levels"]
    levels = (low, math.inf if high is None else high)
    return Checkpoint(model, about["mean"], about["std"], about["classes"], levels, about["extra"])


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("checkpoints need safetensors: pip install 'sde-diffusion[train]'") from error
    return safetensors.torch


def _describe(model: Network) -> dict[str, Any]:
    """Everything of `model.json` that follows from the model."""
    net, config = model.net, getattr(model.net, "config", None)
    if not isinstance(net, nn.Module) or not isinstance(config, Mapping):
        raise TypeError(
            f"{type(net).__name__} has no `config` property: give it one that returns its constructor's arguments, "
            "as a dict"
        )
    low, high = model.sde.levels([model.sde.t_min, model.sde.t_max])
    finite = float(high.alpha) > 0
    return {
        "format": "sde_diffusion checkpoint",
        "version": VERSION,
        "net": {"name": type(net).__name__, "fields": dict(config)},
        "sde": _named(model.sde.process, "SDE"),
        "kind": _named(model.kind, "parametrisation"),
        "clock": None if model.clock == model.kind.clock else _named(model.clock, "clock"),
        "shape": None if model.shape is None else list(model.shape),
        "classes": int(config.get("classes", 0)),
        "noise_levels": [float(low.sigma / low.alpha), float(high.sigma / high.alpha) if finite else None],
    }


def _named(thing: object, what: str) -> dict[str, Any]:
    """A frozen dataclass, a function of `clocks` or a beta table, by name and fields."""
    if isinstance(thing, schedules.DiscreteVPSDE):
        return {"name": "DiscreteVPSDE", "fields": {"betas": thing.betas.tolist()}}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing) if f.init}
        return {"name": type(thing).__name__, "fields": fields}
    name = getattr(thing, "__name__", type(thing).__name__)
    if _CLOCKS.get(name) is thing:
        return {"name": name, "fields": None}
    raise TypeError(
        f"the {what} {name} cannot be written down by name: make it a dataclass, or save net.state_dict() yourself"
    )


def _build(entry: Mapping[str, Any], known: Mapping[str, Any], what: str, base: type) -> Any:
    """The object that an entry of `model.json` names."""
    name, fields = str(entry.get("name")), entry.get("fields")
    if name not in known:
        raise ValueError(
            f"the checkpoint names the {what} {name!r}, which is not known here. Known are {', '.join(sorted(known))}; "
            f"for a class of your own, load_checkpoint(path, known=[{name}])"
        )
    if fields is None:
        return known[name]
    try:
        built = known[name](**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the checkpoint's {what} {name} cannot be built from {fields}: {error}") from error
    if not isinstance(built, base):
        raise ValueError(f"the checkpoint names {name} as its {what}, which it is not")
    return built


def _read(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): it was cut short or edited; save the model again") from error
    if not isinstance(about, dict) or about.get("format") != "sde_diffusion checkpoint":
        raise ValueError(f"{path} does not describe an sde_diffusion checkpoint")
    if about.get("version") != VERSION:
        raise ValueError(
            f"{path} has format version {about.get('version')!r}, and this is version {VERSION}: "
            "load it with the version of sde-diffusion that wrote it, or upgrade"
        )
    for key, kinds in _ENTRIES.items():
        if key not in about or not isinstance(about[key], kinds):
            raise ValueError(f"{path} has no sound entry {key!r}: it was edited; save the model again")
    return about


def _fill(net: nn.Module, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Loads tensors into the net, in their dtype; the error names the first that does not fit."""
    wanted = net.state_dict()
    advice = f"{folder / TENSORS} was saved from another architecture than {DESCRIPTION} names"
    for name, t in wanted.items():
        if name not in tensors:
            raise ValueError(f"tensor {name!r} is missing: {advice}")
        if tensors[name].shape != t.shape:
            raise ValueError(
                f"tensor {name!r} has shape {tuple(tensors[name].shape)}, the net {tuple(t.shape)}: {advice}"
            )
    for name in tensors:
        if name not in wanted:
            raise ValueError(f"tensor {name!r} has no place in the net: {advice}")
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), None)
    net.to(dtype).load_state_dict(tensors)
