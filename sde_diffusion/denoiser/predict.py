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
from sde_diffusion.denoiser.objectives.time_samplers import LogNormalSigma, TimeSampler, uniform_index, uniform_time
from sde_diffusion.denoiser.objectives.weights import EDMWeight, Weighting, noise_weight
from sde_diffusion.denoiser.prediction import Coefficients
from sde_diffusion.sde.level import Level, Scalar


class Parametrisation(ABC):
    """What a network answers. Six parametrisations are shipped; for another, write a subclass with two methods or more.

    Attributes:
        data_std: Standard deviation of the data that the parametrisation scales for.
        regular: Whether the noise prediction that follows from an answer stays finite as sigma goes to zero, however
            wrong the answer is. If not, a likelihood refuses to ask the network below the noise levels of its training.
        answers: Numbers that the network answers for each of the state: 2 with a variance beside the mean.
        variance_bound: How much the bound of that variance counts in the objective that suits it.
    """

    data_std: float = 1.0
    regular: ClassVar[bool] = True
    answers: ClassVar[int] = 1
    variance_bound: ClassVar[float] = 0.0

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

    @property
    def of_mean(self) -> Parametrisation:
        """What the answer for the mean is; itself, unless there is a variance beside it."""
        return self


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


@dataclass(frozen=True)
class LearnedVariance(Parametrisation):
    r"""The network answers twice the channels: the mean of a kind, and the variance of the reverse step.

    The second half is $v$, with the mix $m = (v + 1)/2$ of `variance`: -1 is the posterior's variance, 1 that of the
    forward step. It is learnt on a chain, `DiscreteVPSDE`, by the hybrid loss: that of the mean, and
    `variance_bound` times the bound, in which the mean stands still. `DDIM(eta=1, variance="learned")` and
    `elbo(..., variance="learned")` use it; everything else sees the mean alone. `MLP(..., answers=2)` answers so.

    Args:
        mean: What the first half is.

    Raises:
        TypeError: `mean` is no parametrisation, or one that has a variance already.

    References:
        Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021 (equations 15 and 16; their bound
        is in bits).
    """

    mean: Parametrisation = Noise()
    answers: ClassVar[int] = 2
    variance_bound: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        given: object = self.mean
        if not isinstance(given, Parametrisation) or given.answers != 1:
            raise TypeError(f"LearnedVariance goes with a mean such as predict.noise or predict.edm, got {given!r}")

    @property
    def data_std(self) -> float:  # type: ignore[override] # a field of the base, here that of the mean
        return self.mean.data_std

    @property
    def regular(self) -> bool:  # type: ignore[override] # of the base a constant, here that of the mean
        return self.mean.regular

    @property
    def of_mean(self) -> Parametrisation:
        return self.mean

    def coefficients(self, at: Level) -> Coefficients:
        return self.mean.coefficients(at)

    def target(self, at: Level) -> tuple[Scalar, Scalar]:
        return self.mean.target(at)

    def input_scale(self, at: Level) -> Scalar:
        return self.mean.input_scale(at)

    def clock(self, at: Level) -> Scalar:
        return self.mean.clock(at)

    def times(self) -> TimeSampler:
        return uniform_index

    def weight(self) -> Weighting | None:
        return self.mean.weight()

    def at_scale(self, data_std: float) -> Parametrisation | None:
        mean = self.mean.at_scale(data_std)
        return None if mean is None else LearnedVariance(mean)


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
"""Every parametrisation of a mean, by the name that `sde-diffusion train --kind` knows: the only list of them."""
CLASSES: tuple[type[Parametrisation], ...] = (*(type(kind) for kind in NAMES.values()), LearnedVariance)
"""Their classes, and that of a mean with a variance: what a checkpoint may name."""
