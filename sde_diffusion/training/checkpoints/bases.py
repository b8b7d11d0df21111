"""Small checkpoints: those of a network that stands on a base keep what was trained, and name the base by its digest.

The entry `base` of a description holds the digest of the base's tensors, as they would be in a file, and, where it was
told, the folder of the base's own checkpoint, relative to that of this one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from torch import Tensor, nn

from sde_diffusion._sealed import sealed
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.nets.base import OnBase, built_otherwise, kept_names
from sde_diffusion.training.checkpoints.manifests import entry_of, read_manifest
from sde_diffusion.training.checkpoints.registry import DEEP, NET, describe_net
from sde_diffusion.training.checkpoints.tensor_file import digest_of_tensors

__all__ = ["Base", "base_entry", "check_chain", "found_base", "own_tensors"]

Base = str | Path | nn.Module | None
"""Where the base of a checkpoint is: the folder of its own checkpoint, or the model or network itself."""
Load = Callable[[str | Path], nn.Module]


def base_entry(net: object, path: str | Path, base: Base, load: Load) -> dict[str, Any]:
    """What a description says of a base; nothing of a network that stands on none.

    Args:
        net: The network.
        path: The folder of its checkpoint.
        base: Where its base is, if that is to be written down.
        load: Reads the network of a checkpoint.

    Raises:
        ValueError: A base where there is none, or another than that of the network, or built otherwise; or the folder
            holds a base of the network, which would be lost.
    """
    net = getattr(net, "_orig_mod", net)  # of a compiled network, the network
    if not isinstance(net, OnBase) or not net.frozen:
        if base is not None:
            raise ValueError(
                f"base= names what a control or adapters stand on, and {type(net).__name__} stands on no frozen base: "
                "leave base out"
            )
        return {}
    digest = digest_of_tensors(net.base)
    _check_apart(net, Path(path), base, digest)
    if base is None:
        return {"base": {"sha256": digest}}
    if not isinstance(base, nn.Module) and _is_written(net.net, digest, Path(base)):  # without reading it
        return {"base": {"sha256": digest, "folder": _relative(base, path)}}
    found = _network(base, load)
    if (other := digest_of_tensors(_tensors(found))) != digest:
        raise ValueError(
            f"base={_said(base)} is not what the model stands on: {_difference(_tensors(found), net.base)} (digest "
            f"{other[:16]}, wanted {digest[:16]}). Give the checkpoint that the base was loaded from"
        )
    if how := built_otherwise(found, net.net):
        raise ValueError(
            f"base={_said(base)} has the weights of what the model stands on, and was built otherwise: {how}. Give the "
            "checkpoint that the base was loaded from"
        )
    if isinstance(base, nn.Module):
        return {"base": {"sha256": digest}}
    return {"base": {"sha256": digest, "folder": _relative(base, path)}}


def found_base(about: Mapping[str, Any], path: Path, base: Base, load: Load) -> nn.Module | None:
    """The network that a description was written for, None if it needs none.

    Args:
        about: The description.
        path: Its file.
        base: Where the base is, if not where the description says.
        load: Reads the network of a checkpoint.

    Raises:
        FileNotFoundError: It is not where it was.
        ValueError: It is not said where it is, or it is another.
    """
    entry = about.get("base")
    if entry is None:
        if base is not None:
            raise ValueError(f"{path} holds a whole model, which stands on no other: leave base out")
        return None
    digest, folder = entry.get("sha256"), entry.get("folder")
    if not isinstance(digest, str) or not isinstance(folder, str | None) or _is_absolute(folder or ""):
        raise ValueError(f"{path} has no sound entry 'base': it was edited; save the model again")
    if base is None and folder is None:
        raise ValueError(
            f"{path} holds what was trained upon a base of digest {digest[:16]}, and does not say where that is: "
            "load_checkpoint(path, base=folder), or the network itself, base=model"
        )
    where: str | Path | nn.Module = path.parent / str(folder) if base is None else base
    try:
        found = _network(where, load)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} holds what was trained upon a base, which is not in {_said(where)}: say where it is, "
            f"load_checkpoint(path, base=folder) ({error})"
        ) from error
    if (other := digest_of_tensors(_tensors(found))) != digest:
        raise ValueError(
            f"{path} was trained upon a base of digest {digest[:16]}, and that in {_said(where)} has {other[:16]}: it "
            "was trained on since, or is another. Give the base as it was, load_checkpoint(path, base=folder)"
        )
    return found


def check_chain(folder: str | Path, above: Sequence[Path]) -> None:
    """Raises `ValueError` for a folder that stands on itself, or on too many others.

    Args:
        folder: Where the next base is.
        above: The folders of the checkpoints that stand on it, resolved.
    """
    if Path(folder).resolve() in above:
        raise ValueError(
            f"{folder} holds what was trained upon a base, which is said to be in the same folder, or to stand on it "
            "in turn: it was saved over its base, or edited. Give the base, load_checkpoint(path, base=folder)"
        )
    if len(above) > DEEP:
        raise ValueError(f"{folder} is a base below {len(above)} others, and {DEEP} are the most: merge the adapters")


def own_tensors(net: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors of a network that a checkpoint keeps: all but those of its base."""
    kept = kept_names(net) if isinstance(net, OnBase) else ()
    return {name: t for name, t in tensors.items() if name not in kept}


def _check_apart(net: OnBase, path: Path, base: Base, digest: str) -> None:
    """Raises `ValueError` for a folder that holds the base of a network, or one further down."""
    same = isinstance(base, str | Path) and Path(base).resolve() == path.resolve()
    if not same and (written := _written(path)) is not None:
        same = written == digest or any(written == digest_of_tensors(kept) for kept in _kept_below(net))
    if same:
        raise ValueError(
            f"{path} holds the base that the model stands on, and to save the model there would destroy it: give "
            "another folder"
        )


def _kept_below(net: OnBase) -> Iterator[Mapping[str, Tensor]]:
    """What the checkpoints of the bases of a network hold, but for that of its own whole base."""
    tensors, part = net.base, net.net
    while isinstance(part, OnBase) and part.frozen:
        yield {name: t for name, t in tensors.items() if part.own(name)}
        tensors, part = part.base_in(tensors), part.net
        yield tensors


def _is_absolute(folder: str) -> bool:
    return PurePosixPath(folder).is_absolute() or PureWindowsPath(folder).is_absolute()


def _relative(base: str | Path, path: str | Path) -> str:
    return Path(os.path.relpath(Path(base).resolve(), Path(path).resolve())).as_posix()


def _written(base: Path) -> str | None:
    """The digest of the tensors of a checkpoint, by its description alone."""
    try:
        return str(entry_of(read_manifest(base / "model.json")[1], "model").get("sha256"))
    except (OSError, ValueError):
        return None


def _is_written(net: nn.Module, digest: str, base: Path) -> bool:
    """Whether the description of a checkpoint is that of a network of such a digest."""
    if _written(base) != digest:
        return False
    return sealed({NET: read_manifest(base / "model.json")[1].get("net")}) == sealed({NET: describe_net(net)})


def _network(base: str | Path | nn.Module, load: Load) -> nn.Module:
    if not isinstance(base, nn.Module):
        return load(base)
    base = getattr(base, "_orig_mod", base)
    inside = getattr(base, "net", None) if isinstance(base, Denoiser) else None
    found: nn.Module = inside if isinstance(inside, nn.Module) else base
    return getattr(found, "_orig_mod", found)


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in net.state_dict().items()}


def _said(base: object) -> str:
    return type(base).__name__ if isinstance(base, nn.Module) else str(base)


def _difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The first tensor in which two networks differ."""
    for name in [*wanted, *found]:
        if name not in found or name not in wanted:
            return f"{name!r} is in one of them alone"
        a, b = found[name], wanted[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return f"{name!r} is {tuple(a.shape)} of {a.dtype} there, and {tuple(b.shape)} of {b.dtype} here"
        if not bool((a.cpu() == b.cpu()).all()):
            return f"{name!r} has other numbers"
    return "they differ"
