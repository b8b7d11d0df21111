r"""What a codec is, and the two ways through one: data to codes of unit scale, and codes to data.

$$ q(u \mid x) = N(m, \operatorname{diag} s^2), \qquad z = (u - \text{shift}) \cdot \text{scale}, \qquad
   p(x \mid z) = N\big(d(z / \text{scale} + \text{shift}), \text{noise}^2\big) $$

A codec encodes and decodes in units $u$ of its own. Diffusion, samplers and bounds see $z$, of mean about 0 and
standard deviation about 1 over the data, through `encoded` and `decoded`, which look at every answer.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from sde_diffusion._checks import check_like, check_state, rows_in_words

__all__ = ["Code", "Codec", "check_codec", "check_measured", "decoded", "encoded", "law_of", "returned"]


@runtime_checkable
class Codec(Protocol):
    """What takes data to codes and back. Any object of this form is one; no base class is asked for."""

    @property
    def scale(self) -> Any:
        """Brings codes to unit scale: a number, or a tensor with one for each channel, `(C,)`; not zero."""

    @property
    def shift(self) -> Any:
        """What is taken from them before, likewise."""

    @property
    def noise(self) -> Any:
        """Standard deviation of the Gaussian decoder around what it answers, `> 0`, in the units of the data.

        A bound on log p(x) needs it; None where it is not known.
        """

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the codes of data `(B, *)`, in the codec's own units: twice `(B, *code)`."""

    def decode(self, z: Tensor) -> Tensor:
        """Data `(B, *)` from codes `(B, *code)` in the codec's own units."""

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one code of data of event shape `shape`."""


class Code(NamedTuple):
    r"""The law of the codes of data, $N(m, \operatorname{diag} s^2)$, at unit scale.

    Attributes:
        mean: $m$, `(B, *code)`.
        std: $s > 0$, `(B, *code)`; zero for a codec that is a plain function.
    """

    mean: Tensor
    std: Tensor

    def at(self, eps: Tensor) -> Tensor:
        r"""The codes that unit noise `eps`, `(B, *code)`, stands for: $m + s\,\varepsilon$."""
        return self.mean + self.std * check_like(eps, "eps", self.mean, "the codes")


def encoded(codec: Codec, x: Tensor) -> Code:
    """The codes of data at unit scale.

    Args:
        codec: Any codec.
        x: Data `(B, *)`.

    Returns:
        Mean and standard deviation, in the dtype of `x`.

    Raises:
        TypeError: No codec; data, or an answer of the codec, that are no float tensors.
        ValueError: Answers that are not finite or have another number of rows, a standard deviation that is negative
            or of another shape than the mean, a `scale` of zero or a `shift` that does not fit.
    """
    law = law_of(check_codec(codec), check_state(x, "x"))
    scale, shift = (_of_codes(codec, name, law.mean) for name in ("scale", "shift"))
    return Code((law.mean - shift) * scale, law.std * scale.abs())


def law_of(codec: Codec, x: Tensor) -> Code:
    """What the encoder of a codec answers, in its own units, after the look that `encoded` takes at it."""
    answer: object = codec.encode(x)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise TypeError(
            f"{_name(codec)}.encode answered {type(answer).__name__}, wanted two tensors, mean and standard deviation: "
            "latent.adapters makes a codec of what answers otherwise"
        )
    mean = _answer(answer[0], x, f"{_name(codec)}.encode", "a mean")
    std = _answer(answer[1], x, f"{_name(codec)}.encode", "a standard deviation")
    if std.shape != mean.shape:
        raise ValueError(
            f"{_name(codec)}.encode answered a mean of shape {tuple(mean.shape)} and a standard deviation of shape "
            f"{tuple(std.shape)}: wanted one for each number of the mean"
        )
    if bool((std < 0).any()):
        raise ValueError(
            f"{_name(codec)}.encode answered a standard deviation of {float(std.min()):g}: wanted one above 0. Is it "
            "the log of one, or of a variance? Take its exp"
        )
    return Code(mean, std)


def returned(codec: Codec, z: Tensor, x: Tensor) -> Tensor:
    """What the decoder of a codec answers to codes of `x` in its own units, which is to be of the shape of `x`.

    Raises:
        TypeError, ValueError: As `decoded`.
    """
    found = _answer(codec.decode(z), z, f"{_name(codec)}.decode", "data")
    if found.shape != x.shape:
        raise ValueError(
            f"{_name(codec)}.decode answered data of shape {tuple(found.shape[1:])} to the codes of data of shape "
            f"{tuple(x.shape[1:])}: what is encoded and decoded must keep its shape"
        )
    return found


def decoded(codec: Codec, z: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Data from codes at unit scale.

    Args:
        codec: Any codec.
        z: Codes `(B, *code)`.
        shape: The event shape that the data are to have, if known.

    Returns:
        What the decoder answers, in the dtype of `z`.

    Raises:
        TypeError, ValueError: As `encoded`; an answer of another event shape than `shape`.
    """
    check_codec(codec)
    given: object = z
    if isinstance(given, Code):
        raise TypeError("z is the law of codes that encoded answered: decode code.mean, or a draw of it, code.at(eps)")
    check_state(z, "z")
    scale, shift = (_of_codes(codec, name, z) for name in ("scale", "shift"))
    x = _answer(codec.decode(z / scale + shift), z, f"{_name(codec)}.decode", "data")
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(
            f"{_name(codec)}.decode answered data of shape {tuple(x.shape[1:])}, wanted {tuple(shape)}: it was made "
            "for codes of another shape"
        )
    return x


def check_codec(codec: object) -> Codec:
    """Returns `codec` if it is one.

    Raises:
        TypeError: Something that a codec has is missing.
    """
    if isinstance(codec, type):
        raise TypeError(f"codec is the class {codec.__name__}, wanted one of it: {codec.__name__}(...)")
    if not isinstance(codec, Codec):
        wanted = ("encode", "decode", "shape_of", "scale", "shift", "noise")
        missing = [name for name in wanted if not hasattr(codec, name)]
        raise TypeError(
            "a codec has encode(x) -> (mean, std), decode(z), shape_of(shape), scale, shift and noise; "
            f"{type(codec).__name__} lacks {', '.join(missing)}: latent.NetCodec(net) makes one of a net that encodes "
            "and decodes"
        )
    return codec


def check_measured(codec: object) -> None:
    """Raises `ValueError` for a codec that was trained since its units were measured, or whose training was cut."""
    if not getattr(codec, "measured", True):
        raise ValueError(
            f"the scale and shift of this {_name(codec)} are those from before its training: take what train_codec "
            "returns, or latent.measure(codec, data) first"
        )


def _answer(f: object, x: Tensor, who: str, what: str) -> Tensor:
    """What a codec answered, as `x` is in device and dtype, after a look at it."""
    if not isinstance(f, Tensor):
        raise TypeError(f"{who} answered {type(f).__name__}, wanted {what}, a tensor (B, *)")
    if not f.is_floating_point():
        raise TypeError(f"{who} answered {what} in {f.dtype}, wanted floats: codes that are indices have no diffusion")
    if f.ndim == 0 or len(f) != len(x):
        raise ValueError(f"{who} answered {what} of shape {tuple(f.shape)} for {len(x)} rows: wanted one row for each")
    if not torch.compiler.is_compiling() and not math.isfinite(f.detach().sum().item()):
        bad = ~f.detach().isfinite().flatten(1).all(1) & x.detach().isfinite().flatten(1).all(1).to(f.device)
        if bool(bad.any()):  # what comes of a row that is not finite itself, is that row's
            raise ValueError(
                f"{who} answered {what} that is not finite in {rows_in_words(bad)}: are its weights sound?"
            )
    return f.to(x.dtype)


def _of_codes(codec: Codec, name: str, z: Tensor) -> Tensor:
    """`scale` or `shift` of a codec, in the dtype of codes `z` and of a shape that broadcasts against them."""
    given = getattr(codec, name)
    try:
        found = torch.as_tensor(given, dtype=z.dtype, device=z.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} of {_name(codec)} is {type(given).__name__}, wanted one number, or one for each channel"
        ) from error
    if found.ndim > 1 or (found.ndim == 1 and (z.ndim < 2 or len(found) != z.shape[1])):
        raise ValueError(
            f"{name} of {_name(codec)} has shape {tuple(found.shape)} and codes have {tuple(z.shape[1:])}: wanted one "
            "number, or one for each entry of the first axis of a code"
        )
    if not bool(found.isfinite().all()) or (name == "scale" and bool((found == 0).any())):
        wanted = f"must be finite{' and not 0' * (name == 'scale')}"
        raise ValueError(f"{name} of {_name(codec)} {wanted}, got {found.tolist()}")
    return found if found.ndim == 0 else found.reshape(-1, *[1] * (z.ndim - 2))


def _name(codec: object) -> str:
    return type(codec).__name__
