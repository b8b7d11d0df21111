"""What a model is, in names and fields that JSON can hold, and the model built from them again.

Only classes known by name are built: those of this library, and those a caller names. Fields come from a file that may
be damaged or made to harm: a net is built on the meta device first, which allocates nothing, and held against the
shapes of the tensors that are to fill it.
"""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sde_diffusion import nets
from sde_diffusion.data import scalings
from sde_diffusion.data.scalings import Scaling
from sde_diffusion.denoiser import clocks, predict
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.denoiser.network import Network
from sde_diffusion.denoiser.predict import Parametrisation
from sde_diffusion.denoiser.reach import Reach
from sde_diffusion.nets.base import OnBase, built_otherwise, kept_names
from sde_diffusion.sde import processes
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.training.checkpoints.own_code import code_of, file_of

__all__ = [
    "build",
    "build_net",
    "build_scaling",
    "code_in",
    "describe",
    "describe_net",
    "describe_scaling",
    "own_classes",
    "warn_of_changed",
]

Shapes = Mapping[str, tuple[int, ...]]
Own = tuple[type, ...]

_NETS = {c.__name__: c for c in (*nets.CLASSES, *nets.PARTS, *nets.CODECS)}
_SDES = {c.__name__: c for c in processes.CLASSES}
_KINDS: dict[str, Any] = {c.__name__: c for c in predict.CLASSES}
_CLOCKS: dict[str, Any] = {clock.__name__: clock for clock in clocks.ALL}
_SCALINGS = {c.__name__: c for c in scalings.CLASSES}
_LIBRARY: dict[str, Any] = {**_NETS, **_SDES, **_KINDS, **_CLOCKS, **_SCALINGS}
_BASES = (nn.Module, GaussianSDE, Parametrisation, Scaling)
_OPTIONS = {"net": "--net", "SDE": "--sde"}

NET = "a net"
"""The key by which the net inside another is known among its fields."""
DEEP = 8
"""How many nets may stand around one another."""
CALLS = 200
"""How many calls of torch the construction of a net may make, for each tensor that it is to hold."""


def describe(model: Network) -> dict[str, Any]:
    """Describes a model for JSON: its net, process, parametrisation, clock and shape; of a `FlowMap`, its `reach` too.

    Raises:
        TypeError: A model, net, SDE, parametrisation or clock that cannot be described by name.
    """
    if type(model) not in (Network, FlowMap):
        raise TypeError(
            f"a checkpoint holds a Network or a FlowMap; this is a {type(model).__name__}: save the network inside it"
        )
    return {
        "net": describe_net(model.net),
        "sde": _named(model.sde, "SDE"),
        "kind": _named(model.kind, "parametrisation"),
        "clock": None if model.clock == model.kind.clock else _named(model.clock, "clock"),
        "shape": None if model.shape is None else list(model.shape),
        **({"map": _map_entry(model)} if isinstance(model, FlowMap) else {}),
    }


def describe_net(net: object) -> dict[str, Any]:
    """Describes a net alone, for JSON; of a compiled one the net.

    Raises:
        TypeError: It has no `config`, is built around one that has none, or a part of it is compiled.
    """
    net = getattr(net, "_orig_mod", net)
    config = getattr(net, "config", None)
    if not isinstance(net, nn.Module) or not isinstance(config, Mapping):
        raise TypeError(
            f"{type(net).__name__} has no `config` property: give it one that returns its constructor's arguments, "
            "as a dict"
        )
    for name, module in net.named_modules():
        if name.endswith("._orig_mod"):
            part = name.removesuffix("._orig_mod")
            raise TypeError(
                f"{part} of {type(net).__name__} is a compiled {type(module).__name__}, which no config says: compile "
                f"it in place, net.{part}.compile(), or the network as a whole, torch.compile(net)"
            )
    return _net_entry(net, config)


def _net_entry(net: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """Describes a net, and those that it is built around, which its `config` holds as they are."""
    fields = {}
    for name, value in config.items():
        inner = getattr(value, "config", None) if isinstance(value, nn.Module) else None
        if isinstance(value, nn.Module) and not isinstance(inner, Mapping):
            raise TypeError(
                f"{type(net).__name__} is built around {type(value).__name__}, which has no `config` property: give it "
                "one that returns its constructor's arguments, as a dict"
            )
        fields[name] = value if inner is None else {NET: _net_entry(value, inner)}
    return _entry(type(net), "net", fields)


def _map_entry(model: FlowMap) -> dict[str, Any]:
    return {"reach": _written(model.reach), **({"guidance": model.guidance} if model.guidance else {})}


def _written(reach: Reach) -> str | list[float | str]:
    """What a map may carry between, for JSON, which has no infinity."""
    return reach if isinstance(reach, str) else [level if math.isfinite(level) else "inf" for level in reach]


def code_in(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a description says of the code of classes that are not of this library, by what they are."""
    parts = {what: about.get(what) for what in ("net", "sde", "kind", "clock")}
    own = {what: part for what, part in parts.items() if isinstance(part, Mapping) and part.get("code") is not None}
    return {what: {name: part.get(name) for name in ("name", "file", "code")} for what, part in own.items()}


def warn_of_changed(before: Mapping[str, Any], model: Network, where: object) -> None:
    """Warns of classes whose files have other code than when a model was saved.

    Args:
        before: What `code_in` said then.
        model: The model as it is now.
        where: What was saved.
    """
    now = {what: type(getattr(model, what, None)) for what in ("net", "sde", "kind", "clock")}
    for what, entry in before.items():
        cls = now.get(what, object)
        if cls.__name__ == entry["name"] and code_of(cls) not in (None, entry["code"]):
            warnings.warn(
                f"{file_of(cls)} has been changed since {where} was saved: the weights fit its {cls.__name__}, but may "
                "mean something else in it. Take the file as it was then, or train anew",
                UserWarning,
                stacklevel=4,
            )


def describe_scaling(scaling: Scaling) -> dict[str, Any]:
    """Describes a scaling for JSON."""
    return _named(scaling, "scaling")


def own_classes(known: Iterable[type]) -> Own:
    """Returns classes, after a look that they are classes.

    Raises:
        TypeError: One of them is an instance.
    """
    known = tuple(known)
    for c in known:
        if not isinstance(c, type):
            raise TypeError(f"known= takes classes, got {reprlib.repr(c)}: known=[Mine], without making one")
    return known


def _by_name(own: Own, base: type, shipped: Mapping[str, Any]) -> dict[str, Any]:
    """Classes by name, but for those of another base, as a net and a process may have one name."""
    return dict(shipped) | {c.__name__: c for c in own if issubclass(c, base) or not issubclass(c, _BASES)}


def build(
    about: Mapping[str, Any], own: Own, held: Shapes, base: nn.Module | None = None
) -> tuple[Network, tuple[float, float]]:
    """Builds the model of a description, with the weights of its construction, on the CPU.

    Args:
        about: What `describe` gave.
        own: Classes besides those of this library.
        held: Names and shapes of the tensors that are to fill the net.
        base: The network that it stands on, which has its weights already, where it stands on one.

    Returns:
        The model, and the least and greatest sigma / alpha of its process.

    Raises:
        ValueError: A name that is not known, fields that do not fit it, or tensors that do not fit the net.
    """
    sde = _build(about["sde"], _by_name(own, GaussianSDE, _SDES), "SDE", GaussianSDE, own)
    kind = _build_kind(about["kind"], own)
    clock = (
        kind.clock
        if about["clock"] is None
        else _build(about["clock"], _by_name(own, object, _CLOCKS), "clock", object, own)
    )
    net = build_net(about["net"], own, held, base)
    try:
        model = _put_together(net, sde, kind, about)
        model.tell(clock)  # what it was trained on, even where a new network would be refused it
        ends = model.levels([sde.t_min, sde.t_max])
        for at in ends:
            torch.full((1,), float(at.plan[1]), dtype=torch.float32)  # what the network is told there
        low, high = (float(at.ratio) for at in ends)
        if not 0 < low < high:
            raise ValueError(f"its noise levels go from {low:g} to {high:g}")
    except Exception as error:
        raise ValueError(f"the checkpoint's model cannot be put together: {_brief(error)}") from error
    return model.eval(), (low, high)


def _put_together(net: nn.Module, sde: GaussianSDE, kind: Parametrisation, about: Mapping[str, Any]) -> Network:
    """A network, or a flow map where the description has an entry for one."""
    if about.get("map") is None:
        return Network(net, sde, kind, shape=about["shape"])
    config = getattr(net, "config", {})
    if not config.get("until", True):
        raise ValueError(f"it is a flow map, and its {type(net).__name__} is told one time alone, until=False")
    reach = about["map"].get("reach")
    if isinstance(reach, list):
        reach = [math.inf if level == "inf" else level for level in reach]
    return FlowMap(net, sde, kind, shape=about["shape"], reach=reach, guidance=about["map"].get("guidance", ""))


def _build_kind(entry: Mapping[str, Any], own: Own) -> Any:
    """Builds a parametrisation, and first the one inside of it, where there is one."""
    known, fields = _by_name(own, Parametrisation, _KINDS), entry.get("fields")
    if isinstance(fields, Mapping) and isinstance(inner := fields.get("mean"), Mapping):
        fields = {**fields, "mean": _build(inner, known, "parametrisation", Parametrisation, own)}
        entry = {**entry, "fields": fields}
    return _build(entry, known, "parametrisation", Parametrisation, own)


def build_scaling(entry: object, own: Own) -> Scaling:
    """Builds the scaling of a description.

    Raises:
        ValueError: A name that is not known, or fields that do not fit it.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("fields"), Mapping):
        raise ValueError(f"wanted the name and the fields of a scaling, got {reprlib.repr(entry)}")
    built: Scaling = _build(entry, _by_name(own, Scaling, _SCALINGS), "scaling", Scaling, own)
    return built


def build_net(entry: Mapping[str, Any], own: Own, held: Shapes, base: nn.Module | None = None) -> nn.Module:
    """Builds a net alone, as `build` does."""
    plain: nn.Module | None = None
    try:
        with _Bounded(CALLS * (len(held) + 10)), torch.device("meta"):
            plain = _made(entry, own)
            wanted = _shapes(plain)
    except Exception as error:
        if str(entry.get("name")) not in _by_name(own, nn.Module, {}) or isinstance(error, _TooMuchError):
            raise
        wanted = None  # a class of one's own need not be one that builds on the meta device
    if wanted is not None:
        _check_fit(wanted, held)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        if base is not None:
            _check_make(_made(entry, own) if plain is None else plain, base)
        net: nn.Module = _made(entry if base is None else {**entry, "fields": {**entry["fields"], "net": base}}, own)
    if (base is not None) != (isinstance(net, OnBase) and net.frozen):
        raise ValueError(f"the checkpoint names {'a' if base is not None else 'no'} base, and its net says otherwise")
    _check_fit(_shapes(net), held)
    return net


def _made(entry: Mapping[str, Any], own: Own, deep: int = 0) -> Any:
    """Builds a net, and first those that it is built around."""
    fields = entry.get("fields")
    if isinstance(fields, Mapping):
        fields = {k: _inner(v, own, deep) for k, v in fields.items()}
    return _build({**entry, "fields": fields}, _by_name(own, nn.Module, _NETS), "net", nn.Module, own)


def _check_make(net: nn.Module, base: nn.Module) -> None:
    """Raises `ValueError` for a base of another class, or of other fields, than that of a net as it was described."""
    if how := built_otherwise(base, getattr(net, "config", {}).get("net")):
        raise ValueError(
            f"the base of the checkpoint was built otherwise than the {type(base).__name__} that is given: {how}. Give "
            "the base as it was, load_checkpoint(path, base=folder)"
        )


def _inner(value: Any, own: Own, deep: int) -> Any:
    """A field of a net: the net that it describes, where it does."""
    if not (isinstance(value, Mapping) and set(value) == {NET}):
        return value
    if deep >= DEEP or not isinstance(value[NET], Mapping):
        raise ValueError(f"a net inside a net must be described by name and fields, at most {DEEP} deep")
    return _made(value[NET], own, deep + 1)


def _shapes(net: nn.Module) -> Shapes:
    kept = kept_names(net) if isinstance(net, OnBase) else ()  # of a base, which the file does not hold
    return {name: tuple(t.shape) for name, t in net.state_dict().items() if name not in kept}


class _TooMuchError(ValueError):
    """A construction that goes on for too long."""


class _Bounded(TorchFunctionMode):
    """Ends a construction after so many calls of torch: `layers=10**9` is slow even where it allocates nothing."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise _TooMuchError("it is far larger than the tensors of the checkpoint")
        return func(*args, **(kwargs or {}))


def _check_fit(wanted: Shapes, held: Shapes) -> None:
    """Raises `ValueError` for the first tensor that does not fit."""
    advice = "the tensors are not of the net that is described, but from another architecture"
    for name, shape in wanted.items():
        if name not in held:
            raise ValueError(f"tensor {name!r} is missing: {advice}")
        if held[name] != shape:
            raise ValueError(f"tensor {name!r} has shape {held[name]}, the net {shape}: {advice}")
    for name in held:
        if name not in wanted:
            raise ValueError(f"tensor {name!r} has no place in the net: {advice}")


def _entry(cls: type, what: str, fields: dict[str, Any] | None) -> dict[str, Any]:
    """How an object is written down: its class, the file of the class if it is not of this library, its fields."""
    name, file = cls.__name__, file_of(cls)
    if _LIBRARY.get(name, cls) is not cls:
        raise TypeError(f"the {what} {name} has the name of another class of this library: rename yours")
    own = {} if name in _LIBRARY or file is None else {"file": file, "code": code_of(cls)}
    return {"name": name, **own, "fields": fields}


def _named(thing: object, what: str) -> dict[str, Any]:
    """Describes a frozen dataclass, an object with a `config` like that of a net, or a function of `clocks`."""
    config = getattr(thing, "config", None)
    if isinstance(config, Mapping):
        return _entry(type(thing), what, dict(config))
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing) if f.init}
        fields = {k: _named(v, what) if isinstance(v, Parametrisation) else v for k, v in fields.items()}
        return _entry(type(thing), what, fields)
    name = getattr(thing, "__name__", type(thing).__name__)
    if _CLOCKS.get(name) is thing:
        return {"name": name, "fields": None}
    raise TypeError(
        f"the {what} {name} cannot be written down by name: make it a dataclass, give it a `config` property that "
        "returns its constructor's arguments as a dict, or save net.state_dict() yourself"
    )


def _build(entry: Mapping[str, Any], known: Mapping[str, Any], what: str, base: type, own: Own) -> Any:
    """Builds the object that an entry of a description names, and looks that it is a `base`."""
    name, fields = str(entry.get("name")), entry.get("fields")
    if name not in known:
        other = f" (the {name} that was given is none)" if any(c.__name__ == name for c in own) else ""
        raise ValueError(
            f"the checkpoint names the {what} {reprlib.repr(name)}, which is not known here{other}. Known are "
            f"{', '.join(sorted(known))}; {_advice(name, entry.get('file'), what)}"
        )
    try:
        built = known[name] if fields is None else known[name](**fields)
    except Exception as error:
        kind = _TooMuchError if isinstance(error, _TooMuchError) else ValueError
        given = reprlib.repr(fields)
        raise kind(f"the checkpoint's {what} {name} cannot be built from {given}: {_brief(error)}") from error
    if not isinstance(built, base) or isinstance(built, type):
        raise ValueError(f"the checkpoint names {name} as its {what}, which it is not")
    return built


def _advice(name: str, file: object, what: str) -> str:
    """How to make a class known, by what a file says of it that may be made to harm: nothing of it is looked up."""
    advice = f"load_checkpoint(path, known=[{name:.40}])"
    if not isinstance(file, str) or not re.fullmatch(r"[\w.-]{1,80}\.py", file) or not name.isidentifier():
        return f"for a class of your own, {advice}"
    advice = f'it was defined in {file}: {advice}, where load_class("{file}:{name:.40}") takes it from there'
    return advice + (f"; on the command line, {_OPTIONS[what]} {file}:{name:.40}" if what in _OPTIONS else "")


def _brief(error: Exception) -> str:
    return f"{error!s:.300}" if str(error) else type(error).__name__
