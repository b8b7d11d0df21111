r"""Denoisers: whatever answers $\mathrm E[x_0 \mid x_t]$ and $\mathrm E[\varepsilon \mid x_t]$ under a Gaussian SDE."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sde_diffusion import clocks, predict
from sde_diffusion._calls import Caller
from sde_diffusion._checks import SolverError, check_answer, check_callable, check_shape, check_state
from sde_diffusion._failure import explained, half_of
from sde_diffusion._linear import as_float64, scale
from sde_diffusion._modules import owned, unbound
from sde_diffusion.conditions import Conditions
from sde_diffusion.predict import Coefficients, Parametrisation, Prediction, held
from sde_diffusion.sde import GaussianSDE, Level, Scalar, check_process

Clock = clocks.Clock
KEPT = ("shape", "cost", "data_std", "clock", "regular", "per_sample")
"""What a `Wrapper` keeps of the model inside, besides its process and its levels."""


class Denoiser(nn.Module, ABC):
    """A model of the clean data under `sde`. A subclass sets `sde` (and `shape`, if known) and writes `predict`.

    Attributes:
        sde: The process the model was made for.
        shape: Event shape, without the batch; None if the model works on several.
        cost: Network passes per call (classifier-free guidance: 2).
        data_std: Standard deviation of the data, if known; where default grids and likelihoods put their resolution.
        careful: Whether `predict` never writes into the state and always answers new tensors. One that does not say
            so is called with copies until its habits are known.
        clock: What the network is told of the time; None for a model that is no network.
        regular: Whether both halves of the prediction stay finite as the noise goes to zero, so that the model may be
            asked below its `noise_range`.
        per_sample: Names of the conditions that have one row per sample, all others being shared; None if the model
            does not say, see `conditions`.
    """

    sde: GaussianSDE
    shape: tuple[int, ...] | None = None
    cost: int = 1
    data_std: float = 1.0
    careful: bool = False
    clock: Clock | None = None
    regular: bool = True
    per_sample: tuple[str, ...] | None = None

    @property
    def noise_range(self) -> tuple[float, float]:
        r"""Smallest and largest noise level $\sigma/\alpha$ that the model was made for; `(0, inf)` if it knows all."""
        first, last = self.sde.levels([self.sde.t_min, self.sde.t_max])
        return float(first.ratio), float(last.ratio)

    @abstractmethod
    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        """The prediction at state `x`, shape `(B, *)`, and level `at`, from `levels` or `sde.level`."""

    def levels(self, times: Iterable[float]) -> list[Level]:
        """The schedule at many times, with whatever else this model needs to know there."""
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

    def on(self, sde: GaussianSDE) -> Denoiser:
        """The same model seen through another SDE: same answers at the same log-SNR."""
        return self if _gaussian(sde).process == self.sde.process else On(self, sde)

    def beyond(self) -> Denoiser:
        """The same model, which may be asked at noise levels below those it was made for, where it extrapolates."""
        return self

    def check_pure_noise(self) -> None:
        """Raises `ValueError` if the model tells nothing of the data where alpha = 0, at the end of its range."""


class Wrapper(Denoiser):
    r"""A denoiser made of another, whose facts it keeps: a subclass writes `predict`, and asks `self.inner` there.

    Kept are the process, shape, cost, scale of the data, noise range and clock of the model inside, and its tabulated
    levels. So grids, solvers and likelihoods that go by these are the same for the wrapper and for the model. What
    differs, a subclass says in its class, `data_std = 0.5`, or after `super().__init__(inner)`: `self.cost *= 2`.

    A `predict` of a subclass may work in place on its state: copies are then made where they are needed. A class that
    never does says `careful = True`, which saves looking.

    Args:
        inner: The model that is wrapped.

    Raises:
        TypeError: `inner` is no `Denoiser`.

    Example:
        >>> class Shifted(Wrapper):
        ...     def predict(self, x, at, **cond):
        ...         p = self.inner.predict(x - at.alpha, at, **cond)
        ...         return Prediction(lambda: p.data + 1, lambda: p.noise)
    """

    careful = True  # as long as it hands on

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

    def beyond(self) -> Denoiser:
        inner = self.inner.beyond()
        if inner is self.inner:
            return self
        new = copy(self)
        new._modules = {**self._modules, "inner": inner}  # of its own: a copy of a module shares the table
        return new

    def check_pure_noise(self) -> None:
        self.inner.check_pure_noise()


class _Plan(NamedTuple):
    """What a network needs at a level: what it is told of the time, the factor on its input, how to read its answer.

    The owner comes first: a level may reach another model, which must not follow the plan.
    """

    owner: Denoiser
    told: Scalar
    factor: Scalar
    coefficients: Coefficients | None


class Network(Denoiser):
    """A network with a declared parametrisation and clock.

    Args:
        net: Called as `net(x, time, **cond)` with `x` of shape `(B, *)` and `time` of shape `(B,)`; answers `(B, *)`,
            alone, first in a tuple, or as what is called `sample`. Hand over the module itself, not a function around
            it: of one that a function hides, the mode, dtype and device are found, but its parameters not trained, and
            randomness that a function draws by itself has no mode.
        sde: The process it is (to be) trained under.
        kind: What it answers: `predict.noise`, `data`, `score`, `velocity`, `v`, `edm` or `predict.EDM(data_std)`.
        clock: What it is told of the time, a function from `clocks` or its name. By default what the net declares in
            an attribute `clock` (`MLP` and `UNet` say `"edm"`: a quarter of the log noise level), else that of
            `kind`: `t`, or for EDM a quarter of the log noise level.
        shape: Event shape, without the batch; lets a sampler draw without being told.

    Raises:
        TypeError: `sde` is not a Gaussian SDE, `kind` not a parametrisation, or `clock` neither a function nor a name;
            an `Index` for a net that embeds floats.
        ValueError: A clock that tells a net that embeds numbers of order one, as `MLP` and `UNet` do, numbers far
            beyond.

    Example:
        >>> model = Network(unet, DiscreteVPSDE(betas), predict.noise)  # of DDPM: a foreign net is told the index
        >>> model = Network(unet, EDMSDE(), predict.EDM(0.5))  # an EDM network
        >>> model = Network(unet, VPSDE(), predict.noise, clock=clocks.Scaled(999))  # score-SDE paper, VP and sub-VP
        >>> model = Network(unet, VESDE(), predict.score, clock=clocks.sigma)  # the same, VE
    """

    careful = True  # by `Caller`

    def __init__(
        self,
        net: Callable[..., Any],
        sde: GaussianSDE,
        kind: Parametrisation = predict.noise,
        *,
        clock: Clock | str | None = None,
        shape: Iterable[int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(sde, GaussianSDE):
            raise TypeError(
                f"Network needs a GaussianSDE, got {type(sde).__name__}: for a general SDE hand the sampler "
                "a function score(x, t)"
            )
        if not isinstance(kind, Parametrisation):
            raise TypeError(f"kind must be one of predict.noise, data, score, velocity, v, edm, got {_said(kind)}")
        check_callable(net, "net", "a network or a function net(x, t)")
        check_process(sde)
        self.net, self.sde, self.kind = unbound(net), sde, kind
        self.module = owned(self.net)  # of a bound method or a partial: so that it is trained, moved and saved
        self._half: torch.dtype | None = None
        wish = getattr(self.net, "clock", None)
        wanted = clocks.named(wish) if isinstance(wish, str) else None
        if clock is None:
            self.tell(wanted or kind.clock)
        else:
            self.tell(clocks.named(clock))
            if wanted is clocks.edm:
                clocks.check_order_one(self.clock, self.sde.levels([sde.t_min, sde.t_max]), type(net).__name__)
        self.shape = None if shape is None else check_shape(shape)
        self.data_std = getattr(kind, "data_std", 1.0)
        self.per_sample = _names(self.net, self.module)
        self.regular = kind.regular
        self._call = Caller()

    def tell(self, clock: Clock) -> None:
        """Sets what the network is told of the time, unchecked: for one that was trained so, however unwise it was."""
        self.clock: Clock = clock
        self._integer = isinstance(clock, clocks.Index)

    def check_pure_noise(self) -> None:
        self.kind.coefficients(self.sde.levels([self.sde.t_max])[0])

    def levels(self, times: Iterable[float]) -> list[Level]:
        return [replace(at, plan=self._plan(at)) for at in self.sde.levels(times)]

    def _plan(self, at: Level) -> _Plan:
        try:
            coefficients = self.kind.coefficients(at)
        except ValueError:  # a level that may be visited, but not asked about: `predict` asks again and says why
            coefficients = None
        return _Plan(self, self.clock(at), self.kind.input_scale(at), coefficients)

    def output(self, x: Tensor, at: Level, **cond: object) -> Tensor:
        """The raw answer of the network, shape `(B, *)`."""
        plan: _Plan = at.plan if at.plan is not None and at.plan[0] is self else self._plan(at)
        return self._answer(x, plan, cond)

    def _answer(self, x: Tensor, plan: _Plan, cond: dict[str, object]) -> Tensor:
        _, told, factor, _ = plan
        shape = x.shape
        if isinstance(told, Tensor):  # a copy, which the network may write to
            time = told.reshape(-1).expand(shape[0]).to(x.device, x.dtype, copy=True)
        else:
            time = x.new_full((shape[0],), told)
        if self._integer:
            time = time.long()
        given = x if factor.__class__ is float and factor == 1.0 else _scaled(x, factor)
        try:
            f = self._call(self.net if self._half is None else self._in_half, x, given, time, cond)
        except SolverError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            half = half_of(self)
            if half == self._half:
                raise explained(error, self, given, time, cond) from error
            self._half = half  # found out when it fails, as a network may be converted at any time
            return self._answer(x, plan, cond)  # all anew: it may have written into what it was handed
        if f.shape != shape or f.dtype != x.dtype:
            f = check_answer(f, x, "the network")
        if x.requires_grad and not f.requires_grad and torch.is_grad_enabled():
            self._check_graph(f, given, time, cond)
        return f

    def _in_half(self, given: Tensor, time: Tensor, **cond: object) -> Any:
        """The answer of a network in half precision, which is handed the state in its own dtype.

        The time stays in that of the state: half precision would round it.
        """
        if next(self.parameters()).dtype != self._half:  # converted since
            self._half = half_of(self)
        return self.net(given if self._half is None else given.to(self._half), time, **cond)

    def _check_graph(self, f: Tensor, given: Tensor, time: Tensor, cond: dict[str, object]) -> None:
        """Raises `TypeError` if an answer without a graph does depend on the state."""
        with torch.no_grad():
            moved = given + 0.01 * (1 + given.abs())
            other = self._call(self.net if self._half is None else self._in_half, moved, moved, time, cond)
        if not torch.equal(f, other.to(f.dtype)):
            raise TypeError(
                "the answer of the network has no graph back to the state: it runs under torch.no_grad, detaches, or "
                "leaves torch. Take that out of it: a gradient, or the divergence of a likelihood, would be wrong"
            )

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        plan = at.plan
        if plan is None or plan[0] is not self:
            plan = self._plan(at)
        return Prediction.of_output(x, self._answer(x, plan, cond), plan[3] or self.kind.coefficients(at))


def _names(*nets: object) -> tuple[str, ...] | None:
    """The conditions that a network declares as per sample, in an attribute `per_sample`."""
    found = next((names for net in nets if (names := getattr(net, "per_sample", None)) is not None), None)
    if found is not None and not (isinstance(found, tuple | list) and all(isinstance(name, str) for name in found)):
        raise TypeError(f"per_sample names the conditions of a network that have rows, ('label',), got {found!r}")
    return None if found is None else tuple(found)


def _said(thing: object) -> str:
    """What came, in an error: of a network its class alone."""
    return type(thing).__name__ if isinstance(thing, nn.Module) else repr(thing)


def _scaled(x: Tensor, factor: Scalar) -> Tensor:
    if isinstance(factor, Tensor):
        return x * factor
    return x if factor == 1.0 else scale(x, factor)


class _Mapped(NamedTuple):
    """The level of equal log-SNR of another SDE, and the factor from the state here to the state there."""

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
        self.sde = sde
        self._bounded = True

    @property
    def noise_range(self) -> tuple[float, float]:
        """That of the model, as far as its own process reaches: it is asked at times of that one."""
        least, most = super().noise_range
        first, last = self.inner.sde.levels([self.inner.sde.t_min, self.inner.sde.t_max])
        return max(least, float(first.ratio)), min(most, float(last.ratio))

    def beyond(self) -> On:
        inner = self.inner
        while isinstance(inner, On):  # a view of a view is one of the model, whose process alone has to go on
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
        return self.inner.predict(_scaled(x, plan.factor), plan.base, **cond)

    def _plan(self, x: Tensor, at: Level) -> _Mapped:
        """The level of equal log-SNR of the inner SDE, and the factor between the states, for times per sample."""
        wide = x.to(torch.float64) if x.device.type != "mps" else x
        lam = at.lam if isinstance(at.lam, Tensor) else as_float64(at.lam)
        times = self._base_times(lam.to(wide.dtype)).reshape(-1)
        base = self.inner.sde.level(times if len(times) > 1 else times[0], x, check=False)
        return _Mapped(self, base, _ratio(at, base))


def _gaussian(sde: object) -> GaussianSDE:
    if not isinstance(sde, GaussianSDE):
        raise TypeError(f"a denoiser can be seen through a GaussianSDE, not a {type(sde).__name__}")
    return sde


def _ratio(at: Level, base: Level) -> Scalar:
    """The factor from the state at one level to that at another: a ratio of lengths, finite where alpha vanishes."""
    ratio: Scalar = ((base.alpha**2 + base.sigma**2) / (at.alpha**2 + at.sigma**2)) ** 0.5
    return ratio
