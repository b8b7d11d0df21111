r"""A flow map: a network that is told two times, and carries a state from one to the other in one call.

In the angle $u = \arctan(\sigma/(\alpha c))$, with $y = x/\sqrt{\alpha^2c^2 + \sigma^2}$ and $c$ the standard deviation
of the data, it is linear in the way to go,

$$ X(y, u, s) = y - (u - s)\,G(y, u, s), \quad G = -\tfrac{\sin u}{c}\,\mathrm{data} + \cos u\,\mathrm{noise}, $$

where the pair follows from the answer $F(x, u, s)$ of the network as that of any `Network`. Weights of two jumps in a
row add up to one, so that an error is not multiplied. $G(y, u, u)$ is the velocity of the probability flow: told the
same time twice, the network is an ordinary denoiser, on which every solver, grid, likelihood and wrapper works.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion._checks import check_finite, check_state, is_real
from sde_diffusion._tensors import as_float64, linear
from sde_diffusion.denoiser import predict
from sde_diffusion.denoiser.base import Denoiser, On
from sde_diffusion.denoiser.clocks import Clock
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.modules import Evaluation, home
from sde_diffusion.denoiser.network import Network
from sde_diffusion.denoiser.predict import Parametrisation
from sde_diffusion.denoiser.prediction import Coefficients, Prediction
from sde_diffusion.denoiser.reach import Reach, check_levels, check_reach, check_within
from sde_diffusion.nets.second_time import check_copy, check_until, ignores_until, with_until
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level, Scalar
from sde_diffusion.sde.times import as_time

SMALL_ANGLE = 0.05
"""The angle below which the clock of the second time is linear."""


class _Plan(NamedTuple):
    """What a flow map needs at a level: as a `Network`, and what it is told of a second time equal to the first."""

    owner: Denoiser
    told: Scalar
    factor: Scalar
    coefficients: Coefficients | None
    until: Scalar


class FlowMap(Network):
    r"""A network of two times: a denoiser at one, and a map from one to the other in one call.

    Args:
        net: Called as `net(x, time, until=until, **cond)`, with both times of shape `(B,)`; else as in `Network`. The
            second is told as $\tfrac12\operatorname{arsinh}(s/0.05)$ of its angle $s$: 0 for the data, 2.07 for noise
            alone. `MLP`, `UNet` and `DiT` take it when made with `until=True`.
        sde: As in `Network`.
        kind: As in `Network`; `predict.edm` answers the velocity in the angle itself, but for the sign.
        clock: As in `Network`.
        shape: As in `Network`.
        reach: Which jumps are trained: `"any"` later time, `"data"` alone, or those between neighbours of some noise
            levels $\sigma/\alpha$ that fall to 0, such as `(80.0, 1.0, 0.0)`; one beyond the process is its largest.
            Others are refused.
        guidance: What guided the teacher, in words, since such a map is not to be guided again; objectives fill it in.

    Raises:
        TypeError, ValueError: As `Network`; a net that is told one time alone; an unknown `reach`, or one with levels
            that the process has not.

    Warns:
        UserWarning: Levels that begin where much of the data is left.

    References:
        Kim et al., Consistency Trajectory Models, 2024; Boffi et al., Flow Map Matching, 2025; Frans et al., One Step
        Diffusion via Shortcut Models, 2025; Geng et al., Mean Flows for One-step Generative Modeling, 2025.

    Example:
        >>> fast = FlowMap.from_teacher(model)
        >>> training = train(fast, x0, steps=1000, loss=distillation.Shortcut(model), recipe=distillation.recipe())
        >>> x = SDESampler(sde, training.model, nfe=1).sample(64, seed=0)
    """

    def __init__(
        self,
        net: Callable[..., Any],
        sde: GaussianSDE,
        kind: Parametrisation = predict.edm,
        *,
        clock: Clock | str | None = None,
        shape: Iterable[int] | None = None,
        reach: Reach = "any",
        guidance: str = "",
    ) -> None:
        super().__init__(net, sde, kind, clock=clock, shape=shape)
        check_until(self.net)
        self.reach = check_levels(check_reach(reach), sde, self.data_std)
        given: object = guidance
        if not isinstance(given, str):
            raise TypeError(f"guidance says in words what guided the teacher, 'Guided(w=2.0)', got {guidance!r}")
        self.guidance = guidance
        self._hears = False  # known to heed the second time

    @classmethod
    def from_teacher(cls, teacher: Network, *, kind: Parametrisation | None = None, reach: Reach = "any") -> FlowMap:
        """A flow map that begins as its teacher: its net is a copy, which ignores the second time until it is trained.

        Before training it carries as one step of Euler in the angle does, `Angle(Euler(), data_std)`.

        Args:
            teacher: A `Network`. Of another `FlowMap`, the copy keeps what it has learnt.
            kind: What the map answers, the kind of the teacher by default. The net keeps its weights and its clock, but
                its answer is read otherwise: with another kind, a map that is not trained yet leads nowhere.
            reach: As in the class.

        Raises:
            TypeError: No `Network`; a net that has no second time, with how to give it one.
            ValueError: A kind that wants more answers of the net than it gives, or fewer; a copy that answers otherwise
                than the net, where it can be asked without a condition.
        """
        given: object = teacher
        if not isinstance(given, Network):
            raise TypeError(
                f"a flow map is made of a Network, got {type(given).__name__}: give the network inside it, and a "
                "wrapper such as Guided(model, 2) to the loss, as its teacher"
            )
        net = copy.deepcopy(teacher.net) if isinstance(teacher, FlowMap) else with_until(teacher.net)
        kind = teacher.kind if kind is None else kind
        made = cls(net, teacher.sde, kind, shape=teacher.shape, reach=reach)
        if kind.answers != teacher.kind.answers:
            raise ValueError(
                f"kind={kind!r} wants {kind.answers} numbers of the net for each of the state, and the net of the "
                f"teacher, {teacher.kind!r}, gives {teacher.kind.answers}: predict.LearnedVariance(predict.edm) wants 2"
            )
        made.tell(teacher.clock)
        made.training = teacher.training  # the net has the mode of the one it is a copy of
        if isinstance(teacher, FlowMap):
            made.guidance = teacher.guidance
        else:
            begun = made if kind == teacher.kind else cls(net, teacher.sde, teacher.kind, shape=teacher.shape)
            begun.tell(teacher.clock)
            if (own := _asked(teacher)) and torch.equal(*own) and (told := _asked(begun)):
                check_copy(teacher.net, own[0], told)
        return made

    def untrained(self) -> bool:
        """Whether the second time counts nothing, as before any training: each jump is a step of Euler in the angle.

        Read off the weights of a network of this package; another is asked in one row, where it answers without a
        condition and the event shape is known. What cannot be found out counts as trained.
        """
        if not self._hears:
            found = ignores_until(self.net)
            if found is None:
                told = _asked(self)
                found = told is not None and torch.equal(*told)
            self._hears = not found
        return not self._hears

    # --- a denoiser, where both times are the same

    def _plan(self, at: Level) -> Any:
        return _Plan(*super()._plan(at), self.told(self.angle(at)))

    def _answer(self, x: Tensor, plan: Any, cond: dict[str, object]) -> Tensor:
        if "until" not in cond:
            cond = cond | {"until": _spread(plan[4], x)}
        return super()._answer(x, plan, cond)

    def mark(self, cond: Mapping[str, Any], n: int) -> Mapping[str, Any]:
        if "until" in cond:
            raise ValueError("until is the second time, which a flow map tells its network by itself: leave it out")
        return super().mark(cond, n)

    # --- a map from one time to another

    def carry(self, x: Tensor, t: float | Tensor, s: float | Tensor | None = None, **cond: object) -> Tensor:
        r"""The state at time `s` of the probability flow that passes `x` at time `t`; one network evaluation.

        Args:
            x: State at `t`, shape `(B, *)`.
            t: A time, a float, `()` or `(B,)`.
            s: An earlier time of the same form; None for the data, where $\sigma = 0$ and $\alpha = 1$.
            **cond: Conditions, handed to the network by name.

        Raises:
            TypeError: `x` is not a float32 or float64 tensor.
            ValueError: Shapes that do not fit, times outside `[t_min, t_max]`, `s` later than `t`, or a jump that
                `reach` leaves out.
        """
        return _carry(self, x, t, s, cond)

    def jump(self, x: Tensor, at: Level, to: Level | None, **cond: object) -> Tensor:
        """`carry` between two levels, of floats or of tensors that broadcast; None for the data. Not checked."""
        here, there = self.radius(at), self.data_std if to is None else self.radius(to)
        u, s = self.angle(at), 0.0 if to is None else self.angle(to)
        return linear(x, there / here, self.average(x, at, to, **cond), there * (s - u))

    def average(self, x: Tensor, at: Level, to: Level | None, **cond: object) -> Tensor:
        r"""$G$, the velocity in the angle on average over the way from one level to another, shape `(B, *)`."""
        s = 0.0 if to is None else self.angle(to)
        p = self.predict(x, at, until=_spread(self.told(s), x), **cond)
        return angular(p, self.angle(at), self.data_std)

    def angle(self, at: Level) -> Scalar:
        r"""$u = \arctan(\sigma/(\alpha c))$ of a level."""
        if isinstance(at.sigma, Tensor):
            return torch.atan2(at.sigma, at.alpha * self.data_std)
        return math.atan2(at.sigma, at.alpha * self.data_std)

    def radius(self, at: Level) -> Scalar:
        r"""$\sqrt{\alpha^2c^2 + \sigma^2}$ of a level, the factor from $y$ to $x$."""
        if isinstance(at.sigma, Tensor):
            return torch.hypot(at.alpha * self.data_std, at.sigma)
        return math.hypot(at.alpha * self.data_std, at.sigma)

    def told(self, s: Scalar) -> Scalar:
        """What the network is told of the second time, from its angle: finite with its slope at both ends."""
        if isinstance(s, Tensor):
            return torch.asinh(s / SMALL_ANGLE) / 2
        return math.asinh(s / SMALL_ANGLE) / 2

    def check_jump(self, at: Level, to: Level | None) -> None:
        """Raises `ValueError` unless the map was made to carry from one level to the other."""
        if to is not None and bool((as_float64(to.t) > as_float64(at.t)).any()):
            raise ValueError(
                "a flow map carries towards the data, and s is later than t: swap them, or encode with an ODE solver "
                "on the map, whose diagonal is a denoiser, such as Heun()"
            )
        check_within(self.reach, self.sde, at, to)

    def on(self, sde: GaussianSDE) -> Denoiser:
        return self if super().on(sde) is self else _MapOn(self, sde)


class _MapOn(On):
    """A flow map seen through another process: jumps are matched by log-SNR, as answers are."""

    inner: FlowMap

    @property
    def reach(self) -> Reach:
        """That of the map."""
        return self.inner.reach

    def carry(self, x: Tensor, t: float | Tensor, s: float | Tensor | None = None, **cond: object) -> Tensor:
        """As of the map, in the state and the times of this process."""
        return _carry(self, x, t, s, cond)

    def jump(self, x: Tensor, at: Level, to: Level | None, **cond: object) -> Tensor:
        """As of the map."""
        here = self._mapped(x, at)
        y = x * here.factor
        if to is None:
            return self.inner.jump(y, here.base, None, **cond)
        there = self._mapped(x, to)
        return self.inner.jump(y, here.base, there.base, **cond) / there.factor

    def _mapped(self, x: Tensor, at: Level) -> Any:
        return at.plan if at.plan is not None and at.plan[0] is self else self._plan(x, at)

    def check_jump(self, at: Level, to: Level | None) -> None:
        """As of the map."""
        self.inner.check_jump(at, to)  # noise levels are the same, and their order

    def on(self, sde: GaussianSDE) -> Denoiser:
        """The map seen through another process: not this view of it."""
        return self.inner.on(sde)


def _carry(
    model: FlowMap | _MapOn, x: Tensor, t: float | Tensor, s: float | Tensor | None, cond: dict[str, object]
) -> Tensor:
    sde, to = model.sde, None
    check_finite(check_state(x, "x", shape=model.shape), "x")
    if s is not None:
        if isinstance(s, int | float) and s == 0 < sde.t_min:
            raise ValueError(
                f"s = 0 is outside the [t_min, t_max] = [{sde.t_min:g}, {sde.t_max:g}] of the SDE: to carry to the "
                "data themselves, leave s out, carry(x, t)"
            )
        if isinstance(t, Tensor) != isinstance(s, Tensor):  # a float is rounded as the tensor is
            t, s = _alike(t, s), _alike(s, t)
        as_time(s, x, sde.t_min, sde.t_max, index=sde.time_is_index, name="s")
        to = sde.level(s, x)
    at = sde.level(t, x)
    model.check_jump(at, to)
    return model.jump(x, at, to, **Conditions.of(model, cond, len(x)).whole)


def _asked(model: Network) -> tuple[Tensor, Tensor] | None:
    """Two answers of a network to one row of noise, of a map with both its second times; None where it has none."""
    if model.shape is None:
        return None
    (at,) = model.sde.levels([model.sde.t_max])
    dtype, device = home(model)
    z = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0), dtype=dtype, device="cpu")
    x = at.sigma * z.to(device)
    conds: list[dict[str, object]] = [{}, {}]
    if isinstance(model, FlowMap):
        conds[1] = {"until": _spread(model.told(0.0), x)}
    try:
        with torch.no_grad(), Evaluation(model):
            one, other = (model.output(x, at, **cond) for cond in conds)
    except Exception:  # noqa: BLE001 - a network of the user, which may want a condition
        return None
    return one, other


def angular(p: Prediction, u: Scalar, c: float) -> Tensor:
    r"""$-\tfrac{\sin u}{c}\,\mathrm{data} + \cos u\,\mathrm{noise}$: a prediction as a velocity in the angle $u$."""
    return p.combine(*angular_weights(u, c))


def angular_weights(u: Scalar, c: float) -> tuple[Scalar, Scalar]:
    """The weights of data and noise in `angular`."""
    if isinstance(u, Tensor):
        return -torch.sin(u) / c, torch.cos(u)
    return -math.sin(u) / c, math.cos(u)


def _alike(t: float | Tensor, s: float | Tensor) -> float | Tensor:
    """A time as a tensor in the dtype of another; what is no number as it is."""
    return as_float64(t).to(s) if is_real(t) and isinstance(s, Tensor) and s.is_floating_point() else t


def _spread(told: Scalar, x: Tensor) -> Tensor:
    """What is told of a time, one for each row of the state, in its dtype."""
    if isinstance(told, Tensor):
        return told.reshape(-1).expand(len(x)).to(x.device, x.dtype, copy=True)
    return x.new_full((len(x),), told)
