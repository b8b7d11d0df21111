r"""What a denoiser is: a model of data and noise, $\mathrm E[x_0 \mid x_t]$ and $\mathrm E[\varepsilon \mid x_t]$.

Its process is any Gaussian SDE. A `Wrapper` is made of another denoiser, and `On` sees one through another process.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_state
from sde_diffusion._tensors import as_float64, scaled
from sde_diffusion.denoiser.clocks import Clock
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.objectives.matching import DenoisingScoreMatching
from sde_diffusion.denoiser.objectives.time_samplers import LogNormalSigma, TimeSampler
from sde_diffusion.denoiser.objectives.weights import EDMWeight, Weighting
from sde_diffusion.denoiser.predict import Parametrisation
from sde_diffusion.denoiser.prediction import Prediction, held
from sde_diffusion.sde.base import GaussianSDE, check_process
from sde_diffusion.sde.level import Level, Scalar

KEPT = ("shape", "cost", "vjps", "even", "data_std", "kind", "clock", "regular", "per_sample", "noise_from")
"""What a `Wrapper` keeps of the model inside, besides its process and its levels."""


class Denoiser(nn.Module, ABC):
    """A model of the clean data under `sde`. A subclass sets `sde` (and `shape`, if known) and writes `predict`.

    Attributes:
        sde: The process the model was made for.
        shape: Event shape, without the batch; None if the model works on several.
        cost: Network passes per call (classifier-free guidance: 2).
        vjps: Products with the Jacobian of the network per call, of a rule that differentiates through it. They are
            counted apart from the passes; a budget counts both.
        even: Whether every call takes these; else `spent` says what a level does, and these are the most.
        data_std: Standard deviation of the data, if known, else 1; default grids and likelihoods resolve noise of this
            size best.
        careful: Whether `predict` never writes into the state and always answers new tensors. A model that does not say
            so is called with copies until its habits are known.
        clock: What the network is told of the time; None for a model that is no network.
        regular: Whether both halves of the prediction stay finite as sigma goes to zero, so that the model may be
            asked below its `noise_range`.
        per_sample: Names of the conditions that have one row per sample, all others being shared; None if the model
            does not say, see `conditions`.
        kind: What the network answers; None for a model that is no network.
        noise_from: From how many evaluations on noise in the steps makes up for some of the error of the answers, such
            as those of a rule for a posterior, so that the default solver has noise; None where it does not.
    """

    sde: GaussianSDE
    shape: tuple[int, ...] | None = None
    cost: int = 1
    vjps: int = 0
    even: bool = True
    data_std: float = 1.0
    careful: bool = False
    clock: Clock | None = None
    regular: bool = True
    per_sample: tuple[str, ...] | None = None
    kind: Parametrisation | None = None
    noise_from: int | None = None
    _suited: DenoisingScoreMatching | None = None

    @property
    def noise_range(self) -> tuple[float, float]:
        r"""Smallest and largest noise level $\sigma/\alpha$ that the model was made for; `(0, inf)` if it knows all."""
        return _span(self.sde)

    @abstractmethod
    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        """The prediction at state `x`, shape `(B, *)`, and level `at`, from `levels` or `sde.level`."""

    def levels(self, times: Iterable[float]) -> list[Level]:
        """The schedule at many times, with whatever else this model needs to know there, tabulated once for a solve."""
        return self.sde.levels(times)

    def forward(self, x: Tensor, t: float | Tensor, **cond: object) -> Prediction:
        """The prediction at state `x`, shape `(B, *)`, and time `t`, a float, `()` or `(B,)`.

        Raises:
            TypeError: `x` is not a float32 or float64 tensor, or `t` holds integers.
            ValueError: Shapes that do not fit, or `t` outside `[t_min, t_max]`.
        """
        at = self.sde.level(t, check_state(x, "x", shape=self.shape))
        return held(self.predict(x, at, **Conditions.of(self, cond, len(x)).whole), x)

    def score(self, x: Tensor, t: float | Tensor, **cond: object) -> Tensor:
        r"""$\nabla\log p_t(x) = -\varepsilon/\sigma$, shape `(B, *)`."""
        at = self.sde.level(t, check_state(x, "x", shape=self.shape))
        return held(self.predict(x, at, **Conditions.of(self, cond, len(x)).whole), x).combine(0.0, -1 / at.sigma)

    def residual(self, x: Tensor, at: Level, x0: Tensor, eps: Tensor, /, **cond: object) -> Tensor:
        r"""How far the answer at $x = \alpha x_0 + \sigma\varepsilon$ is from what it should be, shape `(B, *)`.

        The answer is the data prediction here, and what the network answers in a `Network`.
        """
        return held(self.predict(x, at, **cond), x).data - x0

    def regress(self, x: Tensor, at: Level, x0: Tensor, eps: Tensor, /, **cond: object) -> tuple[Tensor, Tensor | None]:
        """`residual`, and the mix of variances in the answer, see `variance`; None where the model learns none."""
        return self.residual(x, at, x0, eps, **cond), None

    def gain(self, at: Level) -> Scalar:
        r"""$\partial\,\mathrm{data}/\partial F$ at one level, where $F$ is the answer that `residual` is about."""
        return 1.0

    def objective(self, *, times: TimeSampler | None = None, weight: Weighting | None = None) -> DenoisingScoreMatching:
        r"""The objective that suits what the model answers, and its process.

        | answers | times | weight |
        |---|---|---|
        | `edm`, `EDM(c)`, `v` | $\sigma/\alpha$ log-normal, of median $e^{-1.2}\,c$ | plain |
        | `noise`, `velocity`, and kinds of one's own | $t$ uniform | plain |
        | `score` | $t$ uniform | `noise_weight`: the plain error of the noise |
        | `data`, and denoisers that are no `Network` | as `edm` | `EDMWeight(c)` |

        Args:
            times: Taken instead of the rule; it also lifts the refusals below.
            weight: Taken instead of the rule.

        Raises:
            ValueError: A pair that does not train well as it is: the network would see states larger than 3, as on
                `EDMSDE`, `VESDE` and `BrownianSDE` with all but `edm`; or it answers noise or a score where next to
                nothing of the data is left.
        """
        c = self.data_std
        return DenoisingScoreMatching(times or LogNormalSigma().scaled(c), weight or EDMWeight(c))

    def loss(self, x0: Tensor, *, generator: torch.Generator | None = None, **cond: Any) -> Tensor:
        """The loss on one batch, by the `objective` that suits the model: a scalar, one network evaluation.

        Args:
            x0: Data, shape `(B, *)`.
            generator: The source of the times and the noise, on the CPU; None for torch's global random state.
            **cond: Conditions, handed to the model by name.

        Raises:
            TypeError: Integer or half-precision data.
            ValueError: Empty or non-finite data, or a wrong shape; a pair that `objective` refuses.

        Example:
            >>> for x0 in loader:
            ...     model.loss(x0).backward()
            ...     optimiser.step()
            ...     optimiser.zero_grad()
        """
        if self._suited is None:  # found once: it looks at the process
            self._suited = self.objective()
        return self._suited(self, x0, generator=generator, **cond)

    def built_with(self) -> Mapping[str, object]:
        """The arguments its network was built with, where that says so by an attribute `config`; else none."""
        return {}

    def on(self, sde: GaussianSDE) -> Denoiser:
        """The same model seen through another SDE: it gives the same answers at the same log-SNR."""
        return self if _gaussian(sde) == self.sde else On(self, sde)

    def beyond(self) -> Denoiser:
        """The same model without its lower bound: below the noise levels it was made for, it extrapolates."""
        return self

    def admit(self, x0: Tensor) -> Tensor:
        """Data as the model can answer them, from data `x0` that a solver made of several of its answers.

        `x0` itself, unless the model keeps its data in bounds.
        """
        return x0

    def mark(self, cond: Mapping[str, Any], n: int) -> Mapping[str, Any]:
        """The conditions of a call for `n` samples, those that the model knows the shape of marked.

        Args:
            cond: The conditions by name, as they came.
            n: Number of samples.
        """
        return cond

    def spent(self, at: Level) -> tuple[int, int]:
        """Network passes, and products with the Jacobian of the network, of a call at one level."""
        return self.cost, self.vjps

    def check_pure_noise(self) -> None:
        """Raises `ValueError` if the model tells nothing of the data where alpha = 0, at the end of its range."""


class Wrapper(Denoiser):
    r"""A denoiser made of another, whose facts it keeps: a subclass writes `predict`, and asks `self.inner` there.

    Kept are the process, shape, cost, scale of the data, noise range and clock of the model inside, and its tabulated
    levels. So grids, solvers and likelihoods that go by these are the same for the wrapper and for the model. What
    differs, a subclass says in its class, `data_std = 0.5`, or after `super().__init__(inner)`: `self.cost *= 2`.

    A wrapper with a `predict` of its own is trained through it, on the data that it predicts; one that hands on, as the
    model inside. A rule for sampling alone, such as `Clipped`, says `trained_inside = True`: its loss is that of the
    model, whatever the rule makes of the answer.

    A `predict` of a subclass may work in place on its state: copies are then made where they are needed. A class that
    never does says `careful = True`, which saves looking.

    Seen through another process, it is the same rule around the models inside, seen so, if it says `of_data = True`;
    else it is seen as a whole, at the noise levels that its own process has.

    Args:
        inner: The model that is wrapped.

    Attributes:
        of_data: Whether `predict` asks nothing of the process but the noise level and the answers of the models inside.

    Raises:
        TypeError: `inner` is no `Denoiser`.

    Example:
        >>> class Shifted(Wrapper):
        ...     def predict(self, x, at, **cond):
        ...         p = self.inner.predict(x - at.alpha, at, **cond)
        ...         return Prediction(lambda: p.data + 1, lambda: p.noise)
    """

    careful = True  # as long as it hands on
    trained_inside: bool = False
    of_data: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "predict" in vars(cls) and "careful" not in vars(cls):
            cls.careful = False

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        if not isinstance(inner, Denoiser):
            raise TypeError(
                f"{type(self).__name__} takes a Denoiser, got {type(inner).__name__}: wrap it, "
                "Network(net, sde, predict.noise)"
            )
        self.inner, self.sde, self.training = inner, inner.sde, inner.training
        self.careful = type(self).careful and inner.careful
        self.trained_inside = type(self).trained_inside or type(self).predict is Wrapper.predict
        for fact in KEPT:
            if getattr(type(self), fact) == getattr(Denoiser, fact):  # else the subclass says so itself
                setattr(self, fact, getattr(inner, fact))

    @property
    def noise_range(self) -> tuple[float, float]:
        return self.inner.noise_range

    def levels(self, times: Iterable[float]) -> list[Level]:
        return self.inner.levels(times)

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        return self.inner.predict(x, at, **cond)

    def residual(self, x: Tensor, at: Level, x0: Tensor, eps: Tensor, /, **cond: object) -> Tensor:
        loss = self.inner.residual if self.trained_inside else super().residual
        return loss(x, at, x0, eps, **cond)

    def regress(self, x: Tensor, at: Level, x0: Tensor, eps: Tensor, /, **cond: object) -> tuple[Tensor, Tensor | None]:
        loss = self.inner.regress if self.trained_inside else super().regress
        return loss(x, at, x0, eps, **cond)

    def gain(self, at: Level) -> Scalar:
        return self.inner.gain(at) if self.trained_inside else super().gain(at)

    def objective(self, *, times: TimeSampler | None = None, weight: Weighting | None = None) -> DenoisingScoreMatching:
        rule = self.inner.objective if self.trained_inside else super().objective
        return rule(times=times, weight=weight)

    def built_with(self) -> Mapping[str, object]:
        return self.inner.built_with()

    def on(self, sde: GaussianSDE) -> Denoiser:
        if not self.of_data or _gaussian(sde) == self.sde:
            return super().on(sde)
        new = self._around(lambda model: model.on(sde))
        new.sde, new._suited = sde, None
        if new.kind is not None:
            new.kind = new.inner.kind
        return new

    def beyond(self) -> Denoiser:
        return self._around(lambda model: model.beyond())

    def _around(self, change: Callable[[Denoiser], Denoiser]) -> Wrapper:
        """The same rule around what becomes of each model inside; itself where they stay."""
        parts = {name: _changed(part, change) for name, part in self._modules.items()}
        if all(part is self._modules[name] for name, part in parts.items()):
            return self
        new = copy(self)
        new._modules = parts  # of its own: a copy of a module shares the table
        return new

    def admit(self, x0: Tensor) -> Tensor:
        return self.inner.admit(x0)

    def mark(self, cond: Mapping[str, Any], n: int) -> Mapping[str, Any]:
        return self.inner.mark(cond, n)

    def spent(self, at: Level) -> tuple[int, int]:
        passes, vjps = self.inner.spent(at)  # of a wrapper that asks the model inside equally often everywhere
        share = passes / self.inner.cost
        return round(share * self.cost), vjps + round(share * (self.vjps - self.inner.vjps))

    def check_pure_noise(self) -> None:
        self.inner.check_pure_noise()


class _Mapped(NamedTuple):
    """The level of equal log-SNR of the inner SDE, and the factor from the outer state to the inner one."""

    owner: Denoiser
    base: Level
    factor: Scalar


class On(Wrapper):
    r"""A denoiser seen through another Gaussian SDE: the state is rescaled and the time matched by log-SNR.

    Data and noise are the same quantities under every Gaussian SDE: $x/\alpha$ has the law of $x_0 +
    e^{-\lambda}\varepsilon$.

    Args:
        inner: A denoiser made for `inner.sde`.
        sde: The SDE to see it through.

    Raises:
        ValueError: When asked at a noise level outside the range of `inner.sde`.
    """

    careful = True

    def __init__(self, inner: Denoiser, sde: GaussianSDE) -> None:
        super().__init__(inner)
        check_process(_gaussian(sde))
        self.sde, self.kind = sde, None
        self._bounded = True

    @property
    def noise_range(self) -> tuple[float, float]:
        """The noise range of the model, as far as its own process reaches, at whose times it is asked."""
        (low, high), (least, most) = self.inner.noise_range, _span(self.inner.sde)
        return max(low, least), min(high, most)

    def beyond(self) -> On:
        inner = self.inner
        while isinstance(inner, On):  # through one view, so that no process between needs levels that low
            inner = inner.inner
        new = On(inner.beyond(), self.sde)
        new._bounded = False
        return new

    def _base_times(self, lam: Tensor) -> Tensor:
        base = self.inner.sde
        low, high = base.ends()
        if not self._bounded:
            return base.time_of(lam.clamp_min(low))
        slack = 1e-6
        outside = ~((lam >= low - slack) & (lam <= high + slack))
        if bool(outside.any()):
            i = float(lam[outside].flatten()[0])
            raise ValueError(
                f"asked at noise level sigma/alpha = {math.exp(-i):.6g}, but the model was made for {base!r}, "
                f"which spans {math.exp(-high):.6g} to {math.exp(-low):.6g}: "
                f"choose the range of {self.sde!r} or of the grid inside it"
            )
        return base.time_of(lam.clamp(low, high)).clamp(base.t_min, base.t_max)

    def levels(self, times: Iterable[float]) -> list[Level]:
        own = self.sde.levels(times)
        if not own:
            return []
        base = self.inner.levels(
            self._base_times(torch.tensor([at.lam for at in own], dtype=torch.float64, device="cpu")).tolist()
        )
        return [replace(at, plan=_Mapped(self, b, _ratio(at, b))) for at, b in zip(own, base, strict=True)]

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        plan: _Mapped = at.plan if at.plan is not None and at.plan[0] is self else self._plan(x, at)
        answer = self.inner.predict(scaled(x, plan.factor), plan.base, **cond)
        given: object = answer
        if isinstance(given, Prediction) and given.mix is not None:
            given.mix = None  # of a step of the other process, which is another step here
        return answer

    def _plan(self, x: Tensor, at: Level) -> _Mapped:
        """The plan of a level that was not tabulated here, such as one of times per sample."""
        wide = x.to(torch.float64) if x.device.type != "mps" else x
        lam = at.lam if isinstance(at.lam, Tensor) else as_float64(at.lam)
        times = self._base_times(lam.to(wide.dtype)).reshape(-1)
        base = self.inner.sde.level(times if len(times) > 1 else times[0], x, check=False)
        return _Mapped(self, base, _ratio(at, base))


def _changed(part: nn.Module | None, change: Callable[[Denoiser], Denoiser]) -> nn.Module | None:
    """What becomes of a part of a wrapper where each model in it is changed."""
    if isinstance(part, Denoiser):
        return change(part)
    if not isinstance(part, nn.ModuleList) or not all(isinstance(model, Denoiser) for model in part):
        return part
    models = [change(model) for model in part if isinstance(model, Denoiser)]
    return part if all(new is old for new, old in zip(models, part, strict=True)) else nn.ModuleList(models)


def _span(sde: GaussianSDE) -> tuple[float, float]:
    """Smallest and largest noise level of a process."""
    first, last = sde.levels([sde.t_min, sde.t_max])
    return float(first.ratio), float(last.ratio)


def _gaussian(sde: object) -> GaussianSDE:
    if not isinstance(sde, GaussianSDE):
        raise TypeError(f"a denoiser can be seen through a GaussianSDE, not a {type(sde).__name__}")
    return sde


def _ratio(at: Level, base: Level) -> Scalar:
    r"""The factor from a state at one level to a state at another of equal log-SNR, also where alpha vanishes.

    Both levels are the same point $(\alpha, \sigma)$ up to its length, so that the ratio of lengths is the factor.
    """
    ratio: Scalar = ((base.alpha**2 + base.sigma**2) / (at.alpha**2 + at.sigma**2)) ** 0.5
    return ratio
