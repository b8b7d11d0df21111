r"""The answer of a denoiser at one state: the pair of data and noise, each half computed when it is asked for.

A solver combines the halves with the coefficients of its step. Where they come from one raw answer of a network, the
coefficients are multiplied out first, so that neither half is formed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sde_diffusion._checks import check_answer
from sde_diffusion._tensors import linear
from sde_diffusion.sde.level import Scalar


class Coefficients(NamedTuple):
    """`data = data_x x + data_f F` and `noise = noise_x x + noise_f F`."""

    data_x: Scalar
    data_f: Scalar
    noise_x: Scalar
    noise_f: Scalar


class Prediction:
    r"""The two halves of a denoiser's answer at one state, each computed when first asked for.

    Made by `Prediction.of_output` from a network's raw answer, or from two functions that give each half.

    Args:
        data: Returns $\mathrm{E}[x_0 \mid x_t]$, shape `(B, *)`.
        noise: Returns $\mathrm{E}[\varepsilon \mid x_t]$, shape `(B, *)`.
        mix: The mix of variances of a reverse step, shape `(B, *)`, where the model learns one, see `variance`.
    """

    __slots__ = ("_c", "_data", "_f", "_like", "_make_data", "_make_noise", "_noise", "_x", "mix")
    _x: Tensor
    _f: Tensor

    def __init__(self, data: Callable[[], Tensor], noise: Callable[[], Tensor], *, mix: Tensor | None = None) -> None:
        self._make_data, self._make_noise, self.mix = data, noise, mix
        self._like: Tensor | None = None
        self._data: Tensor | None = None
        self._noise: Tensor | None = None
        self._c: Coefficients | None = None

    @classmethod
    def of_output(cls, x: Tensor, f: Tensor, c: Coefficients, mix: Tensor | None = None) -> Prediction:
        """The pair that follows from state `x` and raw answer `f`."""
        new = cls.__new__(cls)
        new._x, new._f, new._c, new.mix = x, f, c, mix
        new._data = new._noise = None
        return new

    @property
    def data(self) -> Tensor:
        r"""$\mathrm{E}[x_0 \mid x_t]$, shape `(B, *)`."""
        if self._data is None:
            c = self._c
            self._data = (
                self._made(self._make_data, "data") if c is None else linear(self._x, c.data_x, self._f, c.data_f)
            )
        return self._data

    @property
    def noise(self) -> Tensor:
        r"""$\mathrm{E}[\varepsilon \mid x_t]$, shape `(B, *)`."""
        if self._noise is None:
            c = self._c
            self._noise = (
                self._made(self._make_noise, "noise") if c is None else linear(self._x, c.noise_x, self._f, c.noise_f)
            )
        return self._noise

    def _made(self, make: Callable[[], Tensor], name: str) -> Tensor:
        half = make()
        return half if self._like is None else check_answer(half, self._like, f"the {name} of a Prediction")

    def combine(self, p: Scalar, q: Scalar) -> Tensor:
        """`p data + q noise` as a new tensor, from the raw answer in two operations, without forming either half."""
        c = self._c
        if c is not None:
            x, f = self._x, self._f
            data_x, data_f, noise_x, noise_f = c
            a, b = q * noise_x, q * noise_f
            if not isinstance(p, float) or p != 0.0:  # with alpha = 0, data_x may be inf, and 0 * inf is not 0
                a, b = a + p * data_x, b + p * data_f
            out = linear(x, a, f, b)
        elif isinstance(p, float) and p == 0.0:
            x = f = self.noise
            out = linear(x, q, x, 0.0)
        else:
            x, f = self.data, self.noise
            out = linear(x, p, f, q)
        return out.clone() if out is x or out is f else out

    def add_to(self, out: Tensor, p: float, q: float) -> None:
        """Adds `p data + q noise` to `out` in place, for floats `p` and `q`."""
        c = self._c
        if c is None:
            if p:
                out.add_(self.data, alpha=p)
            if q:
                out.add_(self.noise, alpha=q)
            return
        floats: Any = c  # in a solve, where levels are floats
        data_x, data_f, noise_x, noise_f = floats
        a, b = q * noise_x, q * noise_f
        if p:
            a, b = a + p * data_x, b + p * data_f
        if a:
            out.add_(self._x, alpha=a)
        if b:
            out.add_(self._f, alpha=b)

    def only(self, half: Literal["data", "noise"]) -> Half:
        """One half as a single tensor and a factor: a multistep method remembers this in place of the prediction."""
        c: Any = self._c  # of floats: multistep methods run in a solve
        if c is None:
            return Half(self.data if half == "data" else self.noise, 1.0, half)
        on_x, on_f = c[:2] if half == "data" else c[2:]
        return Half(torch.add(self._f, self._x, alpha=on_x / on_f) if on_x else self._f, on_f, half)


def held(answer: object, x: Tensor) -> Prediction:
    """Returns what a denoiser answered at state `x`; its halves are checked against `x` when they are computed.

    Raises:
        TypeError: The answer is no `Prediction`.
    """
    if not isinstance(answer, Prediction):
        raise TypeError(
            f"predict answered {type(answer).__name__}, wanted a Prediction: of two functions, "
            "Prediction(lambda: data, lambda: noise), or of a raw answer, Prediction.of_output(x, f, coefficients)"
        )
    if answer._c is None:
        answer._like = x
    return answer


class Half:
    """One half of an earlier prediction, `factor * tensor`, which a multistep method adds to later states."""

    __slots__ = ("_data", "_factor", "_tensor")

    def __init__(self, tensor: Tensor, factor: float, half: Literal["data", "noise"]) -> None:
        self._tensor, self._factor, self._data = tensor, factor, half == "data"

    def add_to(self, out: Tensor, p: float, q: float) -> None:
        """Adds `p data` or `q noise` to `out` in place."""
        weight = p if self._data else q
        if weight:
            out.add_(self._tensor, alpha=weight * self._factor)
