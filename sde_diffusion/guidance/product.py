r"""Products of powers of models, $q_t \propto \prod_i p_{i,t}^{\gamma_i}$: what guidance, annealing and products mean.

The score of a product is $\sum_i\gamma_i\nabla\log p_{i,t}$ at every time, but the product at time $t$ is not the
product of the data under noise: a solver that follows this score samples from another law. A `ParticleSampler` weighs
its samples, and reaches $\prod_i p_i(x_0)^{\gamma_i}$ itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from sde_diffusion.denoiser.base import Denoiser, Wrapper
from sde_diffusion.denoiser.prediction import Prediction, held
from sde_diffusion.sde.level import Level


class Product(ABC):
    r"""A model whose prediction is made of those of several, $\sum_i\gamma_i\,\mathrm{noise}_i$."""

    @property
    @abstractmethod
    def powers(self) -> Sequence[float]:
        r"""$\gamma_i$, the same at every noise level.

        Raises:
            ValueError: Powers that change with the noise level, or a rule that is no product.
        """

    @abstractmethod
    def parts(self, x: Tensor, at: Level, **cond: Any) -> tuple[Prediction, ...]:
        """The prediction of each model at one state, shape `(B, *)`, and level."""


class _Together(NamedTuple):
    """One level as each of several models has tabulated it."""

    owner: Denoiser
    levels: tuple[Level, ...]


class Several(Wrapper, Product):
    """A wrapper of several models of one process, that it asks in turn. What it keeps besides is of the first.

    A call costs one of each, the noise levels are those that all were made for, and conditions go to all.

    Args:
        inner: The first model.
        *others: The others.

    Raises:
        TypeError: One is no `Denoiser`.
        ValueError: Models of another process, or of another shape, than the first.
    """

    careful = True
    trained_inside = True
    of_data = True

    def __init__(self, inner: Denoiser, *others: Denoiser) -> None:
        super().__init__(inner)
        for other in others:
            check_fits(type(self).__name__, inner, other)
        self.others = nn.ModuleList(others)
        models = self.models
        self.cost, self.vjps = sum(m.cost for m in models), sum(m.vjps for m in models)
        self.even, self.regular = all(m.even for m in models), all(m.regular for m in models)
        self.careful = all(m.careful for m in models)
        self.shape = next((m.shape for m in models if m.shape is not None), None)

    @property
    def models(self) -> tuple[Denoiser, ...]:
        """All models, the first of them `inner`."""
        return (self.inner, *self.others)

    @property
    def noise_range(self) -> tuple[float, float]:
        ranges = [model.noise_range for model in self.models]
        return max(low for low, _ in ranges), min(high for _, high in ranges)

    def levels(self, times: Iterable[float]) -> list[Level]:
        if not len(self.others):
            return self.inner.levels(times)
        times = list(times)
        tables = zip(*(model.levels(times) for model in self.models), strict=True)
        return [replace(levels[0], plan=_Together(self, levels)) for levels in tables]

    def levels_of(self, at: Level) -> tuple[Level, ...]:
        """A level as each model has tabulated it."""
        if isinstance(at.plan, _Together) and at.plan.owner is self:
            return at.plan.levels
        return (at,) * len(self.models)

    def parts(self, x: Tensor, at: Level, **cond: Any) -> tuple[Prediction, ...]:
        pairs = zip(self.models, self.levels_of(at), strict=True)
        return tuple(asked(model, x, level, cond) for model, level in pairs)

    def spent(self, at: Level) -> tuple[int, int]:
        spent = [m.spent(level) for m, level in zip(self.models, self.levels_of(at), strict=True)]
        return sum(passes for passes, _ in spent), sum(vjps for _, vjps in spent)

    def mark(self, cond: Mapping[str, Any], n: int) -> Mapping[str, Any]:
        for model in self.models:
            cond = model.mark(cond, n)
        return cond

    def check_pure_noise(self) -> None:
        for model in self.models:
            model.check_pure_noise()


def asked(model: Denoiser, x: Tensor, at: Level, cond: Mapping[str, Any]) -> Prediction:
    """The prediction of one of several models at a state that the others are asked at, too.

    A model that may write into its state, or answer in one place every time, gets a copy and is copied.
    """
    if model.careful:
        return held(model.predict(x, at, **cond), x)
    found = held(model.predict(x.clone(), at, **cond), x)
    data, noise = found.data.clone(), found.noise.clone()
    return Prediction(lambda: data, lambda: noise, mix=found.mix)


def check_fits(who: str, first: Denoiser, other: object) -> Denoiser:
    """Returns a model if it can be asked beside another one: a `Denoiser` of the same process and shape."""
    if not isinstance(other, Denoiser):
        raise TypeError(
            f"{who} takes a Denoiser, got {type(other).__name__}: wrap it, Network(net, sde, predict.noise)"
        )
    if other.sde != first.sde:
        raise ValueError(
            f"{who} asks its models at one state, but one was made for {first.sde!r} and another for {other.sde!r}: "
            "hand over model.on(sde)"
        )
    if None not in (first.shape, other.shape) and first.shape != other.shape:
        raise ValueError(f"{who} asks its models at one state, but they work on {first.shape} and {other.shape}")
    return other
