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
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from sde_diffusion._checks import check_positive
from sde_diffusion.denoiser import clocks
from sde_diffusion.denoiser.objectives.time_samplers import LogNormalSigma, TimeSampler, uniform_time
from sde_diffusion.denoiser.objectives.weights import EDMWeight, Weighting, noise_weight
from sde_diffusion.denoiser.prediction import Coefficients
from sde_diffusion.sde.level import Level, Scalar


class Parametrisation(ABC):
    """What a network answers. Six parametrisations are shipped; for another, write a subclass with two methods or more.

    Attributes:
        data_std: Standard deviation of the data that the parametrisation scales for.
        regular: Whether the noise prediction that follows from an answer stays finite as sigma goes to zero, however
            wrong the answer is. If not, a likelihood refuses to ask the network below the noise levels of its training.
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
        """The parametrisation for data of another standard deviation; None where it scales nothing."""
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
