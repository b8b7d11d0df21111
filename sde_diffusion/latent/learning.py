"""A codec learns: by `train`, and by one pass over the data after it, which measures what brings its codes to scale."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_count, check_state
from sde_diffusion._tensors import rows as flat
from sde_diffusion.data.source import Batch, Source, source_of
from sde_diffusion.denoiser.modules import Evaluation
from sde_diffusion.latent.net_codec import NetCodec
from sde_diffusion.training import Recipe, Saving, Training, store, train
from sde_diffusion.training._input import Transform, dtype_of, transformed
from sde_diffusion.training.callbacks import Callback
from sde_diffusion.training.losses import Objective

__all__ = ["CodecTraining", "measure", "train_codec"]


@dataclass(frozen=True)
class CodecTraining:
    """What `train_codec` returns.

    Attributes:
        codec: The averaged codec, in evaluation mode, with codes of unit scale.
        training: The record of the run, as `train` returns it.
    """

    codec: NetCodec
    training: Training


def train_codec(
    codec: nn.Module,
    data: Any,
    *,
    steps: int,
    loss: Objective | None = None,
    recipe: Recipe | None = None,
    val: Any = None,
    out: str | Path | Saving | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    seed: int | None = None,
    progress: bool = False,
) -> CodecTraining:
    """Trains a codec by `train`, and measures the scale, shift and noise of its average on the data.

    All that holds for `train` holds here: a run that is cut short goes on with `resume=True` and ends with the same
    weights, and processes and micro-batches share the batches, with the same noise on any number of them.

    Args:
        codec: A `NetCodec`, or a net that encodes and decodes, such as `nets.Autoencoder`.
        data: As in `train`; conditions that come with the rows are of no account.
        steps: Gradient steps.
        loss: `Reconstruction()` by default.
        recipe: As in `train`.
        val: As in `train`; the best codec is that of the least `loss` on them.
        out: As in `train`. The codec is kept there as `codec.json`, the run in `codec_state.json`: a model that learns
            its codes may be trained into the same folder.
        resume: As in `train`.
        callbacks: As in `train`.
        seed: As in `train`, and of the noise by which the codec is measured.
        progress: As in `train`.

    Returns:
        The codec, and the record.

    Raises:
        TypeError: No codec. And as `train`.
        ValueError: A codec without noise; a channel of codes that is constant. And as `train`.

    Example:
        >>> codec = train_codec(Autoencoder(1), patches, steps=2000, seed=0).codec
    """
    if not isinstance(codec, NetCodec):
        codec = NetCodec(codec, shape=tuple(source_of(data).shape))
    codec.learnt_noise()  # which says so if there is none
    _look_at_size(codec)
    done = train(
        codec,
        data,
        steps=steps,
        loss=loss,
        recipe=recipe,
        val=val,
        out=out,
        resume=resume,
        callbacks=callbacks,
        seed=seed,
        progress=progress,
    )
    found = cast(NetCodec, cast(object, done.model))
    measure(found, data, transform=None if recipe is None else recipe.transform, seed=seed or 0)
    if out is not None and _is_first():
        saving = out if isinstance(out, Saving) else Saving(out)
        extra = store.find(saving.path, found.stored).about["extra"]
        found.save_to(saving.path, scaling=saving.scaling, extra=extra, keep=saving.keep)
    return CodecTraining(found, done)


def _look_at_size(codec: NetCodec) -> None:
    """Warns of codes that save nothing."""
    if codec.shape is None:
        return
    code = codec.shape_of(codec.shape)
    if math.prod(code) >= math.prod(codec.shape):
        warnings.warn(
            f"a code {code} has {math.prod(code)} numbers, a sample {codec.shape} {math.prod(codec.shape)}: nothing is "
            "saved, and a decoder that can say all drives its noise to 0, so that the loss has no minimum. Take fewer "
            "channels of codes, latent=, or more halvings",
            UserWarning,
            stacklevel=3,
        )


@torch.no_grad()
def measure(
    codec: NetCodec,
    data: Any,
    *,
    rows: int = 4096,
    transform: Transform | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> NetCodec:
    r"""Measures on data what brings the codes of a codec to unit scale, channel by channel, and its decoder's noise.

    $$ \text{shift} = \mathrm E\,m, \qquad \text{scale}^{-2} = \operatorname{Var} m + \mathrm E\,s^2, \qquad
       \text{noise}^2 = \mathrm E\,|x - d(m + s\,\varepsilon)|^2 / D $$

    The moments are over rows and the points of a channel. One pass of the encoder and of the decoder for each row.

    Args:
        codec: The codec, changed in place.
        data: As in `train`; of a stream, the first rows.
        rows: How many rows are looked at, at most, spread evenly over the data.
        transform: That of the training.
        batch_size: Rows at once.
        seed: Of the noise.

    Returns:
        The codec.

    Raises:
        ValueError: A channel of the codes is constant.
    """
    source = source_of(data)
    generator = torch.Generator("cpu").manual_seed(seed)
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0
    error, n = 0.0, 0
    check_count(batch_size, "batch_size")
    chunks: Iterable[Batch] = [source.first()] if not isinstance(source, Source) else ()
    if isinstance(source, Source):
        count = min(check_count(rows, "rows"), len(source))
        chunks = source.batches((torch.arange(count, device="cpu") * len(source) // count).split(batch_size))
    like = next(codec.net.parameters(), codec.scale)
    with Evaluation(codec):
        for chunk in chunks:
            x = chunk.x if transform is None else transformed(transform, chunk.x, generator)
            x = check_state(x.to(dtype_of(codec)), "data", shape=codec.shape).to(like.device)
            mean, std = codec.encode(x)
            eps = torch.randn(mean.shape, dtype=mean.dtype, generator=generator, device="cpu").to(mean.device)
            error += float(flat(x - codec.decode(mean + std * eps)).double().square().mean(1).sum())
            wide, spread = mean.double(), std.double()
            axes = [0, *range(2, mean.ndim)]
            points = mean.numel() // mean.shape[1] / len(x)
            first = first + wide.sum(axes) / points
            second = second + (wide.square() + spread.square()).sum(axes) / points
            n += len(x)
    shift, square = cast(Tensor, first) / n, cast(Tensor, second) / n
    variance = square - shift.square()
    if bool((variance <= 1e-12 * square).any()):
        i = int((variance <= 1e-12 * square).nonzero()[0, 0])
        raise ValueError(
            f"channel {i} of the codes is {float(shift[i]):g} for all data, which tells nothing: train it for longer, "
            "or give the net fewer channels of codes"
        )
    codec.set_units(variance.rsqrt(), shift, None if codec.noise is None else math.sqrt(error / n))
    return codec


def _is_first() -> bool:
    """Whether this is the first of several processes, or alone."""
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not joined or torch.distributed.get_rank() == 0
