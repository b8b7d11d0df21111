r"""A network as a denoiser: what it answers, what it is told of the time, and how it is called.

The class is `sde_diffusion.Network`. What it declares is checked when it is made; what it does is found out in its
first calls, by `calls.Caller`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sde_diffusion._checks import SolverError, check_answer, check_callable, check_shape
from sde_diffusion._tensors import scaled
from sde_diffusion.denoiser import clocks, predict
from sde_diffusion.denoiser._failure import explained, half_of
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.calls import Caller
from sde_diffusion.denoiser.clocks import Clock
from sde_diffusion.denoiser.modules import owned, unbound
from sde_diffusion.denoiser.objectives.matching import DenoisingScoreMatching, check_pair
from sde_diffusion.denoiser.objectives.time_samplers import TimeSampler
from sde_diffusion.denoiser.objectives.weights import Weighting
from sde_diffusion.denoiser.predict import Parametrisation
from sde_diffusion.denoiser.prediction import Coefficients, Prediction
from sde_diffusion.sde.base import GaussianSDE, check_process
from sde_diffusion.sde.level import Level, Scalar


class _Plan(NamedTuple):
    """What a network needs at a level: what it is told of the time, the factor on its input, how to read its answer.

    The owner comes first, as in every plan: a level may reach another model, which must not follow it.
    """

    owner: Denoiser
    told: Scalar
    factor: Scalar
    coefficients: Coefficients | None


class Network(Denoiser):
    """A network with a declared parametrisation and clock.

    Args:
        net: Called as `net(x, time, **cond)` with `x` of shape `(B, *)` and `time` of shape `(B,)`; answers `(B, *)`,
            alone, first in a tuple, or in an attribute or entry called `sample`. Hand over the module itself, not a
            function around it: the mode, dtype and device of a module that a function hides are found, but its
            parameters are not trained, and a function that draws random numbers by itself does so in every mode.
        sde: The process that the net was trained under, or will be.
        kind: What the net answers: `predict.noise`, `data`, `score`, `velocity`, `v`, `edm`, `predict.EDM(data_std)`,
            or twice as much, `predict.LearnedVariance(kind)`.
        clock: What the net is told of the time, a function from `clocks` or its name. By default what the net declares
            in an attribute `clock` (`MLP` and `UNet` say `"edm"`: a quarter of the log noise level), else that of
            `kind`: `t`, or for EDM a quarter of the log noise level.
        shape: Event shape, without the batch; lets a sampler draw without being told.

    Raises:
        TypeError: `sde` is not a Gaussian SDE, `kind` not a parametrisation, or `clock` neither a function nor a name;
            the clock is an `Index`, but the net embeds floats.
        ValueError: The net embeds numbers of order one, as `MLP` and `UNet` do, and the clock tells it larger ones.

    Example:
        >>> model = Network(unet, DiscreteVPSDE(betas), predict.noise)  # of DDPM: a foreign net is told the index
        >>> model = Network(unet, EDMSDE(), predict.EDM(0.5))  # an EDM network
        >>> model = Network(unet, VPSDE(), predict.noise, clock=clocks.Scaled(999))  # score-SDE paper, VP and sub-VP
        >>> model = Network(unet, VESDE(), predict.score, clock=clocks.sigma)  # the same, VE
    """

    kind: Parametrisation
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
        self.data_std = kind.data_std
        self.per_sample = _names(self.net, self.module)
        self.regular, self._single = kind.regular, kind.answers == 1
        self._call = Caller()

    def tell(self, clock: Clock) -> None:
        """Sets what the network is told of the time, unchecked: for one that was trained so, however unwise it was."""
        self.clock: Clock = clock
        self._integer = clocks.tells_integers(clock)

    def check_pure_noise(self) -> None:
        self.kind.coefficients(self.sde.levels([self.sde.t_max])[0])

    def levels(self, times: Iterable[float]) -> list[Level]:
        return [replace(at, plan=self._plan(at)) for at in self.sde.levels(times)]

    def _plan(self, at: Level) -> _Plan:
        try:
            coefficients = self.kind.coefficients(at)
        except ValueError:  # a solver may visit this level without asking; if it asks, `predict` raises this again
            coefficients = None
        return _Plan(self, self.clock(at), self.kind.input_scale(at), coefficients)

    def output(self, x: Tensor, at: Level, **cond: object) -> Tensor:
        """The raw answer of the network for the mean, shape `(B, *)`."""
        return self._parts(x, at, cond)[0]

    def _parts(self, x: Tensor, at: Level, cond: dict[str, object]) -> tuple[Tensor, Tensor | None]:
        """The raw answer for the mean, and the mix of variances where there is one."""
        plan: _Plan = at.plan if at.plan is not None and at.plan[0] is self else self._plan(at)
        f = self._answer(x, plan, cond)
        if self._single:
            return f, None
        mean, v = f.chunk(2, 1)
        return mean, (v + 1) / 2

    def _answer(self, x: Tensor, plan: _Plan, cond: dict[str, object]) -> Tensor:
        shape, told, factor = x.shape, plan[1], plan[2]
        if told.__class__ is not float and isinstance(told, Tensor):  # a copy, which the network may write to
            time = told.reshape(-1).expand(shape[0]).to(x.device, x.dtype, copy=True)
        else:
            time = x.new_full((shape[0],), told)
        if self._integer:
            time = time.long()
        given = x if factor.__class__ is float and factor == 1.0 else scaled(x, factor)
        try:
            f = self._call(self.net if self._half is None else self._in_half, x, given, time, cond)
        except SolverError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            half = half_of(self)
            if half == self._half:
                raise explained(error, self, given, time, cond) from error
            self._half = half  # looked up on a failure, since a network may be converted at any time
            return self._answer(x, plan, cond)  # from the start: the net may have written into what it was handed
        if not self._single or f.shape != shape or f.dtype != x.dtype:
            f = check_answer(f, x, "the network", self.kind.answers)
        if x.requires_grad and not f.requires_grad and torch.is_grad_enabled():
            self._check_graph(f, given, time, cond)
        return f

    def _in_half(self, given: Tensor, time: Tensor, **cond: object) -> Any:
        """The answer of a network in half precision, to which the state is cast.

        The time keeps the dtype of the state: half precision would round it.
        """
        if next(self.parameters()).dtype != self._half:  # the network was converted since
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
        coefficients = plan[3] or self.kind.coefficients(at)
        if self._single:
            return Prediction.of_output(x, self._answer(x, plan, cond), coefficients)
        mean, mix = self._parts(x, at, cond)
        return Prediction.of_output(x, mean, coefficients, mix)

    def residual(self, x: Tensor, at: Level, x0: Tensor, eps: Tensor, /, **cond: object) -> Tensor:
        return self.regress(x, at, x0, eps, **cond)[0]

    def regress(self, x: Tensor, at: Level, x0: Tensor, eps: Tensor, /, **cond: object) -> tuple[Tensor, Tensor | None]:
        on_x0, on_eps = self.kind.target(at)
        mean, mix = self._parts(x, at, cond)
        return mean - (on_x0 * x0 + on_eps * eps), mix

    def gain(self, at: Level) -> Scalar:
        return self.kind.coefficients(at).data_f

    def objective(self, *, times: TimeSampler | None = None, weight: Weighting | None = None) -> DenoisingScoreMatching:
        if times is None:
            check_pair(self.kind.of_mean, self.sde)
        kind = self.kind
        return DenoisingScoreMatching(
            times or kind.times(), weight or kind.weight(), variance_bound=kind.variance_bound
        )

    def built_with(self) -> Mapping[str, object]:
        return _built_with(self.net)


def _names(*nets: object) -> tuple[str, ...] | None:
    """The conditions that a network declares as per sample, in an attribute `per_sample`."""
    found = next((names for net in nets if (names := getattr(net, "per_sample", None)) is not None), None)
    if found is not None and not (isinstance(found, tuple | list) and all(isinstance(name, str) for name in found)):
        raise TypeError(f"per_sample names the conditions of a network that have rows, ('label',), got {found!r}")
    return None if found is None else tuple(found)


def _built_with(net: object) -> Mapping[str, object]:
    """The arguments of a network, and what it leaves to those that it is built around."""
    config = getattr(net, "config", None)
    if not isinstance(config, Mapping):
        return {}
    inside = [value for value in config.values() if isinstance(value, nn.Module)]
    own = {name: value for name, value in config.items() if not isinstance(value, nn.Module)}
    return {name: value for part in inside for name, value in _built_with(part).items()} | own


def _said(thing: object) -> str:
    """How an error names what came: a network by its class, all else by its repr."""
    return type(thing).__name__ if isinstance(thing, nn.Module) else repr(thing)
