r"""Codes of data, encoded once and kept: a source of training data for the model of the codes.

Kept are mean and standard deviation, and every batch draws fresh codes from them,
$$ z = m + s\,\varepsilon, $$
by the generator of its step. So a run over them can be cut short and shared out as any other.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_finite
from sde_diffusion.data.source import Batch, Source, source_of
from sde_diffusion.data.sources.rows import taken
from sde_diffusion.denoiser.modules import Evaluation, home
from sde_diffusion.latent._rows import seen
from sde_diffusion.latent.codec import Code, Codec, check_codec, check_measured, encoded
from sde_diffusion.latent.net_codec import NetCodec
from sde_diffusion.noise.seeds import Use, one_stream

__all__ = ["Codes", "cached", "drawn", "kept_bytes"]


def drawn(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Codes `(B, *code)` from rows of mean and standard deviation, `(B, 2, *code)`."""
    mean, std = rows.unbind(1)
    return mean + std * torch.randn(mean.shape, dtype=mean.dtype, generator=generator, device="cpu")


class Codes(Source):
    """The codes of data at unit scale, as rows of mean and standard deviation with the conditions of the data.

    `train(model, codes, ...)` draws from them in every batch.

    Args:
        code: Mean and standard deviation, `(N, *code)`, on the CPU.
        cond: Conditions by name.

    Attributes:
        code_shape: The shape of one code, which the model of the codes has as its `shape`.
    """

    def __init__(self, code: Code, cond: Mapping[str, Any]) -> None:
        self.code, self.cond = code, dict(cond)
        self.code_shape = tuple(code.mean.shape[1:])
        self.shape = (2, *self.code_shape)
        self.transform = drawn

    def __len__(self) -> int:
        return len(self.code.mean)

    def rows(self, numbers: Tensor) -> Batch:
        x = torch.stack([self.code.mean[numbers], self.code.std[numbers]], 1)
        return Batch(x, taken(self.cond, numbers))

    def labels(self) -> Tensor | None:
        return self.cond.get("label")


def kept_bytes(source: Source, code: Sequence[int], size: int = 4) -> int:
    """The memory, in bytes, that the codes of a source take with its conditions, as its first row has them.

    Args:
        source: The data.
        code: The shape of a code.
        size: Bytes of a number of it.
    """
    if not len(source):
        return 0
    cond = source.rows(torch.zeros(1, dtype=torch.int64, device="cpu")).cond
    return len(source) * (2 * size * math.prod(code) + _bytes_of(cond))


@torch.no_grad()
def cached(codec: Codec, data: Any, *, batch_size: int = 256, dtype: torch.dtype | None = None, seed: int = 0) -> Codes:
    """Encodes all data once; twice the numbers of a code are kept in memory for each row.

    Args:
        codec: Any codec, on any device.
        data: What `data.source_of` takes, but no stream: as the codec is to see them, after the transform that a
            source of them may have.
        batch_size: Rows that are encoded at once.
        dtype: In which the codec sees the data, and the codes are kept; by default that of the codec, or floats.
        seed: Of what that transform draws, once for each row.

    Returns:
        A source for `train`, with the conditions that the data have. Its `about` names the codec by its digest, where
        it has one, which `train(out=)` keeps with the model: `load_codec` refuses another one beside it.

    Raises:
        TypeError: No codec; a stream; integer or half-precision data.
        ValueError: As `encoded`; data of another shape than the codec's, or not finite; a codec that was trained since
            its units were measured.

    Example:
        >>> codes = cached(codec, {"x": x, "label": y})
        >>> model = Network(UNet(4, classes=10), EDMSDE(), predict.edm, shape=codes.code_shape)
        >>> train(model, codes, steps=2000)
    """
    check_codec(codec)
    check_measured(codec)
    source = source_of(data)
    if not isinstance(source, Source):
        raise TypeError(f"{type(data).__name__} is a stream, which has no end: encode its items as they come")
    own, device = home(codec)
    generator = one_stream(seed, use=Use.DEQUANTISATION)
    shape: tuple[int, ...] | None = getattr(codec, "shape", None)
    found: list[Code] = []
    conds: list[dict[str, Any]] = []
    with Evaluation(codec):
        for x, cond in source.chunks(check_count(batch_size, "batch_size")):
            rows = seen(x, source, None, generator, shape)
            shape = tuple(rows.shape[1:])
            code = encoded(codec, check_finite(rows.to(device, own if dtype is None else dtype), "the data"))
            found.append(Code(*(part.to("cpu") for part in code)))
            conds.append(cond)
    codes = Codes(Code(*(torch.cat(parts) for parts in zip(*found, strict=True))), _joined(conds))
    digest = codec.digest() if isinstance(codec, NetCodec) else None
    named = {} if digest is None else {"latent": {"shape": list(shape or ()), "digest": digest}}
    codes.about, codes.batch_size = {**source.about, **named}, source.batch_size
    return codes


def _bytes_of(cond: Any) -> int:
    """The memory of conditions: tensors, lists and mappings of such."""
    if isinstance(cond, Tensor):
        return cond.numel() * cond.element_size()
    if isinstance(cond, Mapping):
        return sum(map(_bytes_of, cond.values()))
    return sum(map(_bytes_of, cond)) if isinstance(cond, list | tuple) else sys.getsizeof(cond)


def _joined(parts: list[Any]) -> Any:
    """Conditions of all rows, from those of some: tensors, lists and mappings of such."""
    if isinstance(parts[0], Mapping):
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return [entry for part in parts for entry in part]
