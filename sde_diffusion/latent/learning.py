"""A codec learns: by `train`, and by one pass over the data after it, which measures what brings its codes to scale."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_finite
from sde_diffusion._tensors import rows as flat
from sde_diffusion.data.source import Source, source_of
from sde_diffusion.denoiser.modules import Evaluation
from sde_diffusion.latent._rows import Moments, first_rows, seen
from sde_diffusion.latent.adapters import Adapted
from sde_diffusion.latent.codec import Code, law_of, returned
from sde_diffusion.latent.net_codec import NetCodec
from sde_diffusion.latent.objective import Reconstruction
from sde_diffusion.noise.seeds import Use, one_stream
from sde_diffusion.training import Recipe, Saving, Training, Validation, store, train
from sde_diffusion.training._input import Transform, dtype_of
from sde_diffusion.training.callbacks import Callback
from sde_diffusion.training.losses import Objective

__all__ = ["CodecTraining", "measure", "train_codec", "validation_of"]

FIRST_ROWS = 8
"""Rows on which the answers of a codec are looked at before it is trained."""
TIMES, FEWEST, DRAWS = 25, 5, 512
"""How often a codec is validated in a run if nothing is said, at least after how many steps, and at how many draws."""


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
        val: As in `train`; the best codec is that of the least `loss` on them. Of rows that are no `Validation`, 512
            draws are looked at, or one of each row if there are more, 25 times in the run, at most every fifth step.
        out: As in `train`. The codec is kept there as `codec.json`, the run in `codec_state.json`: a model that learns
            its codes may be trained into the same folder. Until the units are measured, `load_codec` refuses it.
        resume: As in `train`.
        callbacks: As in `train`.
        seed: As in `train`, and of the noise by which the codec is measured.
        progress: As in `train`.

    Returns:
        The codec, and the record.

    Raises:
        TypeError: No codec. And as `train`.
        ValueError: A codec without noise, or of functions; answers that `encoded` and `decoded` would refuse, or of a
            standard deviation of 0 where the objective weighs the information in the codes; a channel of codes that is
            constant. And as `train`.

    Example:
        >>> codec = train_codec(Autoencoder(1), patches, steps=2000, seed=0).codec
    """
    if not isinstance(codec, NetCodec):
        first = _first(data, recipe, None)
        codec = NetCodec(codec, shape=tuple(first.shape[1:]))
    else:
        first = _first(data, recipe, codec.shape)
    codec.learnt_noise()  # which says so if there is none
    if isinstance(codec.net, Adapted):
        codec.net.check_copies()
    _look_at(codec, first, codec.objective() if loss is None else loss)
    _look_at_size(codec)
    done = train(
        codec,
        data,
        steps=steps,
        loss=loss,
        recipe=recipe,
        val=validation_of(val, steps),
        out=out,
        resume=resume,
        callbacks=callbacks,
        seed=seed,
        progress=progress,
    )
    found = cast(NetCodec, cast(object, done.model))
    measure(found, data, transform=_transform(recipe), seed=seed or 0)
    if out is not None and _is_first():
        saving = out if isinstance(out, Saving) else Saving(out)
        extra = store.find(saving.path, found.stored).about["extra"]
        found.save_to(saving.path, scaling=saving.scaling, extra=extra)  # and none of those before, without units
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


def validation_of(val: Any, steps: int, patience: int | None = 10) -> Validation | None:
    """A validation of a codec, which has no levels of noise to draw and is to take a small share of a short run.

    Args:
        val: Rows, a `Validation`, which stays as it is, or None.
        steps: Those of the run.
        patience: As in `Validation`.
    """
    if val is None or isinstance(val, Validation):
        return val
    every = max(FEWEST, -(-steps // TIMES))
    fresh = Validation(val, every=every, patience=patience)
    fresh.draws = -(-DRAWS // len(fresh.source))
    return fresh


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
        data: As in `train`, a transform that they bring included; of a stream, the first rows.
        rows: How many rows are looked at, at most, spread evenly over the data.
        transform: That of the training.
        batch_size: Rows at once.
        seed: Of the noise.

    Returns:
        The codec.

    Raises:
        TypeError: No `NetCodec`; integer or half-precision data.
        ValueError: A channel of the codes is constant; a codec with a noise that loses nothing; answers that `encoded`
            and `decoded` would refuse, or data that are not finite.
    """
    given: object = codec
    if not isinstance(given, NetCodec):
        raise TypeError(f"measure takes a NetCodec, got {type(given).__name__}: NetCodec(net) makes one of a net")
    source, moments, error = source_of(data), Moments(), 0.0
    generator = one_stream(seed, use=Use.CODES)
    like = next(codec.net.parameters(), codec.scale)
    with Evaluation(codec):
        for chunk in first_rows(source, rows, batch_size):
            x = seen(chunk.x, source, transform, generator, codec.shape)
            x = check_finite(x.to(like.device, dtype_of(codec)), "data")
            code = _law(codec, x)
            eps = torch.randn(code.mean.shape, dtype=x.dtype, generator=generator, device="cpu").to(code.mean.device)
            error += float(flat(x - returned(codec, code.at(eps), x)).double().square().mean(1).sum())
            moments.add(code)
    shift, variance = moments.found()
    if codec.noise is not None and not error:
        raise ValueError(
            "the codec loses nothing of these data, and a Gaussian decoder of width 0 has no density: give it "
            "noise=None, and its scale and shift are measured alone"
        )
    codec.set_units(variance.rsqrt(), shift, None if codec.noise is None else math.sqrt(error / moments.n))
    return codec


def _law(codec: NetCodec, x: Tensor) -> Code:
    """Codes in the codec's own units, after a look at them."""
    law = law_of(codec, x)
    if law.mean.ndim < 2:
        raise ValueError(f"a code has shape {tuple(law.mean.shape[1:])}: wanted channels first, (C, *)")
    return law


def _first(data: Any, recipe: Recipe | None, shape: tuple[int, ...] | None) -> Tensor:
    """The first rows, as a codec is to see them."""
    source = source_of(data)
    n = min(FIRST_ROWS, len(source)) if isinstance(source, Source) else 0
    x = source.rows(torch.arange(n, device="cpu")).x if isinstance(source, Source) else source.first().x[:FIRST_ROWS]
    return seen(x, source, _transform(recipe), torch.Generator("cpu").manual_seed(0), shape)


@torch.no_grad()
def _look_at(codec: NetCodec, x: Tensor, loss: Objective) -> None:
    """Encodes and decodes the first rows, and raises where the answers are none to learn from."""
    if not bool(x.isfinite().all()):
        return  # which `train` has words for
    device = next(codec.net.parameters(), codec.scale).device
    cuda = [device] if device.type == "cuda" else []
    x = x.to(device, dtype_of(codec))
    with Evaluation(codec), torch.random.fork_rng(devices=cuda):
        law = _law(codec, x)
        returned(codec, law.mean, x)
    if isinstance(loss, Reconstruction) and loss.kl and not bool((law.std > 0).all()):
        raise ValueError(
            f"the encoder answered a standard deviation of 0, and {loss!r} weighs the information in the codes, which "
            "is then infinite: a plain autoencoder is trained by loss=Reconstruction(0.0)"
        )


def _transform(recipe: Recipe | None) -> Transform | None:
    return None if recipe is None else recipe.transform


def _is_first() -> bool:
    """Whether this is the first of several processes, or alone."""
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not joined or torch.distributed.get_rank() == 0
