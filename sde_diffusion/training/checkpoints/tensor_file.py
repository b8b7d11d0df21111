"""Files of safetensors, written tensor by tensor without a copy of all, and held to their digest before they are read.

A file is the length of its header in eight bytes, the header, which is JSON with the name, dtype, shape and place of
each tensor, and the bytes of the tensors one after the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._files import sync

__all__ = ["digest_of", "digest_of_tensors", "header_of", "open_tensors", "safetensors", "write_tensors"]

BLOCK = 2**20
"""How many bytes of a file are in memory while it is held to its digest."""
_KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
}


def header_of(tensors: Mapping[str, Tensor]) -> bytes:
    """The header of a file of safetensors: names, dtypes and places, the widest dtypes first, so that all are aligned.

    Raises:
        TypeError: Something else than a dense tensor of a dtype that safetensors has.
    """
    entries, at = {}, 0
    for name in _ordered(tensors):
        t = tensors[name]
        if t.dtype not in _KINDS or t.layout != torch.strided:
            raise TypeError(f"tensor {name!r} is {t.layout} of {t.dtype}, which safetensors cannot hold: convert it")
        end = at + t.numel() * t.element_size()
        entries[name] = {"dtype": _KINDS[t.dtype], "shape": list(t.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _ordered(tensors: Mapping[str, Tensor]) -> list[str]:
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name!r} is a {type(t).__name__}, wanted a torch.Tensor")
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def write_tensors(path: Path, header: bytes, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Writes a file of safetensors, and returns its digest and size."""
    digest = hashlib.sha256(header)
    with open(path, "xb") as file:
        file.write(header)
        for name in _ordered(tensors):
            data = _bytes_of(tensors[name])
            file.write(data)
            digest.update(data)
        sync(file)
        size = file.tell()
    return {"sha256": digest.hexdigest(), "bytes": size}


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the file that tensors would be in."""
    digest = hashlib.sha256(header_of(tensors))
    for name in _ordered(tensors):
        digest.update(_bytes_of(tensors[name]))
    return digest.hexdigest()


def _bytes_of(t: Tensor) -> memoryview:
    """The bytes of a tensor as they are in memory, without a copy where it is dense on the CPU."""
    t = t.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return t.reshape(-1).view(torch.uint8).numpy().data


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while part := file.read(BLOCK):
            digest.update(part)
    return digest.hexdigest()


def safetensors() -> ModuleType:
    """The library that reads the files.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import safetensors
        import safetensors.torch  # what its `safe_open` uses
    except ImportError as error:
        raise ImportError("checkpoints need safetensors: pip install 'sde-diffusion[train]'") from error
    return safetensors


def open_tensors(path: Path) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Opens a file of safetensors, which stays open, and reads the shape of each tensor by its name.

    Raises:
        ValueError: A header that does not fit its file.
        ImportError: safetensors is not installed.
    """
    library = safetensors()
    try:
        opened: Any = library.safe_open(path, "pt")
        names = list(opened.keys())  # it is no dict
        return opened, {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except library.SafetensorError as error:
        raise ValueError(str(error)) from error
