r"""What a network answers, and how both halves of the denoiser follow from it.

A model of $x_t = \alpha x_0 + \sigma\varepsilon$ is used through the pair $(\mathrm{E}[x_0 \mid x_t],
\mathrm{E}[\varepsilon \mid x_t])$, called data and noise. A parametrisation maps the raw answer $F$ of a network to
both by closed-form coefficients, never one half through the other: noise -> data -> noise in float32 loses 3e-5 at
$\sigma = 10^{-3}$.

| answers | data = . x + . F | noise = . x + . F | target = . x0 + . eps |
|---|---|---|---|
| `noise` | 1/a, -s/a | 0, 1 | 0, 1 |
| `data` | 0, 1 | 1/s, -a/s | 1, 0 |
| `score` | 1/a, s^2/a | 0, -s | 0, -1/s |
| `velocity`, d = a s' - s a' | s'/d, -s/d | -a'/d, a/d | a', s' |
| `v`, r = a^2 + s^2 | a/r, -s/r | s/r, a/r | -s, a |
| `edm`, r = a^2 c^2 + s^2, c the std of the data | a c^2/r, s c/sqrt r | s/r, -a c/sqrt r | s/(c sqrt r), -a c/sqrt r |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor

from sde_diffusion import clocks
from sde_diffusion._checks import check_answer, check_positive
from sde_diffusion._linear import linear
from sde_diffusion.sde import Level, Scalar
from sde_diffusion.times import LogNormalSigma, TimeSampler, uniform_time
from sde_diffusion.weights import EDMWeight, Weighting, noise_weight


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
    """

    __slots__ = ("_c", "_data", "_f", "_like", "_make_data", "_make_noise", "_noise", "_x")
    _x: Tensor
    _f: Tensor

    def __init__(self, data: Callable[[], Tensor], noise: Callable[[], Tensor]) -> None:
        self._make_data, self._make_noise = data, noise
        self._like: Tensor | None = None
        self._data: Tensor | None = None
        self._noise: Tensor | None = None
        self._c: Coefficients | None = None

    @classmethod
    def of_output(cls, x: Tensor, f: Tensor, c: Coefficients) -> Prediction:
        """The pair that follows from state `x` and raw answer `f`."""
        new = cls.__new__(cls)
        new._x, new._f, new._c = x, f, c
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


class Parametrisation(ABC):
    """What a network answers. Six parametrisations are shipped; for another, write a subclass with two methods or more.

    Attributes:
        data_std: Standard deviation of the data that the parametrisation scales for.
        regular: Whether the noise that follows from an answer stays finite as sigma goes to zero, however wrong the
            answer is. If not, a likelihood refuses to ask the network below the noise levels it was trained on.
    """

    data_std: float = 1.0
    regular: ClassVar[bool] = True

    @abstractmethod
    def coefficients(self, at: Level) -> Coefficients:
        """How data and noise follow from the state and the raw answer, at one level.

        Raises:
            ValueError: The answer does not tell the data there, where alpha = 0.
        """

    @abstractmethod
    def target(self, at: Level) -> tuple[Scalar, Scalar]:
        r"""The weights of $x_0$ and $\varepsilon$ in the answer that the network is trained to give."""

    def input_scale(self, at: Level) -> Scalar:
        """Factor on the state before it enters the network."""
        return 1.0

    def clock(self, at: Level) -> Scalar:
        """What the network is told of the time, unless the `Network` is given another clock."""
        return clocks.time(at)

    def times(self) -> TimeSampler:
        """The draw of noise levels that suits a network of this kind."""
        return uniform_time

    def weight(self) -> Weighting | None:
        """The weight on the data loss that suits it; None for the plain square error of the answer."""
        return None

    def at_scale(self, data_std: float) -> Parametrisation | None:
        """The same for data of another standard deviation; None where it scales nothing."""
        return None


def _needs_data(at: Level, name: str) -> None:
    if isinstance(at.alpha, float) and at.alpha == 0.0:
        raise ValueError(
            f"a {name} prediction tells nothing of the data where alpha = 0 (t = {at.t:g}): start at a smaller t "
            "(t_max= of the SDE, or a grid), or train predict.velocity, predict.v, predict.edm or predict.data"
        )


@dataclass(frozen=True)
class Noise(Parametrisation):
    r"""The network answers $\varepsilon$ (Ho et al., 2020)."""

    def coefficients(self, at: Level) -> Coefficients:
        _needs_data(at, "noise")
        return Coefficients(1 / at.alpha, -at.sigma / at.alpha, 0.0, 1.0)

    def target(self, at: Level) -> tuple[Scalar, Scalar]:
        return 0.0, 1.0


@dataclass(frozen=True)
class Data(Parametrisation):
    r"""The network answers $x_0$."""

    regular = False  # the noise is (x - alpha x0) / sigma

    def coefficients(self, at: Level) -> Coefficients:
        return Coefficients(0.0, 1.0, 1 / at.sigma, -at.alpha / at.sigma)

    def target(self, at: Level) -> tuple[Scalar, Scalar]:
        return 1.0, 0.0

    def times(self) -> TimeSampler:
        return LogNormalSigma()

    def weight(self) -> Weighting:
        return EDMWeight()


@dataclass(frozen=True)
class Score(Parametrisation):
    r"""The network answers $\nabla\log p_t = -\varepsilon/\sigma$ (Song et al., 2021)."""

    def coefficients(self, at: Level) -> Coefficients:
        _needs_data(at, "score")
        return Coefficients(1 / at.alpha, at.sigma * at.sigma / at.alpha, 0.0, -at.sigma)

    def target(self, at: Level) -> tuple[Scalar, Scalar]:
        return 0.0, -1 / at.sigma

    def weight(self) -> Weighting:
        return noise_weight


@dataclass(frozen=True)
class Velocity(Parametrisation):
    r"""The network answers $\alpha' x_0 + \sigma'\varepsilon$, the probability-flow velocity (Lipman et al., 2023)."""

    def coefficients(self, at: Level) -> Coefficients:
        d = at.alpha * at.dsigma - at.sigma * at.dalpha
        return Coefficients(at.dsigma / d, -at.sigma / d, -at.dalpha / d, at.alpha / d)

    def target(self, at: Level) -> tuple[Scalar, Scalar]:
        return at.dalpha, at.dsigma


@dataclass(frozen=True)
class V(Parametrisation):
    r"""The network answers $\alpha\varepsilon - \sigma x_0$ (Salimans and Ho, 2022)."""

    def coefficients(self, at: Level) -> Coefficients:
        r = at.alpha * at.alpha + at.sigma * at.sigma
        return Coefficients(at.alpha / r, -at.sigma / r, at.sigma / r, at.alpha / r)

    def target(self, at: Level) -> tuple[Scalar, Scalar]:
        return -at.sigma, at.alpha

    def times(self) -> TimeSampler:
        return LogNormalSigma()


@dataclass(frozen=True)
class EDM(Parametrisation):
    r"""The network answers the preconditioned residual $F$ of EDM, on any Gaussian SDE (Karras et al., 2022).

    The network sees $x / \sqrt{\alpha^2 c^2 + \sigma^2}$, of unit variance, and $\tfrac14\log(\sigma/\alpha)$.

    Args:
        data_std: $c$, the standard deviation of the data.
    """

    data_std: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.data_std, "data_std")

    def _scale2(self, at: Level) -> Scalar:
        return at.alpha * at.alpha * self.data_std**2 + at.sigma * at.sigma

    def coefficients(self, at: Level) -> Coefficients:
        c, r = self.data_std, self._scale2(at)
        root = r**0.5
        return Coefficients(at.alpha * c * c / r, at.sigma * c / root, at.sigma / r, -at.alpha * c / root)

    def target(self, at: Level) -> tuple[Scalar, Scalar]:
        c, root = self.data_std, self._scale2(at) ** 0.5
        return at.sigma / (c * root), -at.alpha * c / root

    def input_scale(self, at: Level) -> Scalar:
        return cast("Scalar", self._scale2(at) ** -0.5)

    def clock(self, at: Level) -> Scalar:
        return clocks.edm(at)

    def times(self) -> TimeSampler:
        return LogNormalSigma().scaled(self.data_std)

    def at_scale(self, data_std: float) -> EDM:
        return replace(self, data_std=data_std)


noise = Noise()
data = Data()
score = Score()
velocity = Velocity()
v = V()
edm = EDM()

NAMES: dict[str, Parametrisation] = {
    "noise": noise,
    "data": data,
    "score": score,
    "velocity": velocity,
    "v": v,
    "edm": edm,
}
"""Every parametrisation of the library, by the name that `sde-diffusion train --kind` knows: the only list of them."""
