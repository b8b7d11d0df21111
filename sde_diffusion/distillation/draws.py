r"""What objectives of flow maps draw, and how they compare: pairs of angles, noisy states, the velocity to be learnt.

All is done in the angle, where $y = \tfrac{\cos u}{c}x_0 + \sin u\,\varepsilon$, so that an objective serves every
Gaussian process. Times from noise to data fall, $u \ge r \ge s$.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from sde_diffusion._tensors import as_float64
from sde_diffusion._tensors import rows as flat
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.flow_map import FlowMap, angular, angular_weights
from sde_diffusion.denoiser.predict import Parametrisation
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde.angle import AngleSDE
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level, Scalar

POWER = 1.5
"""Angles are drawn as $(\\pi/2)\\,U^{1.5}$: denser where there is little noise."""
AT_PRIOR, AT_DATA = 0.15, 0.15
"""Shares of the pairs that start at the prior, and that end at the data."""


@dataclass(frozen=True)
class Place:
    """Where the states of a batch stand.

    Args:
        u: Angles, shape `(n,)`, in float64 on the CPU; 0 is the data.
        at: Their levels, as tensors that broadcast against the states.
    """

    u: Tensor
    at: Level

    @classmethod
    def of(cls, model: FlowMap, u: Tensor, x: Tensor) -> Place:
        """The place of angles, moved into the range of the process, or to the data where they lie below it."""
        sde, c = model.sde, model.data_std
        low, high = angles(sde, c)
        data = u < low
        u = torch.where(data, 0.0, u.clamp(max=high))
        lam = -torch.log(c * torch.tan(u.clamp(low, high)))
        at = sde.level(sde.time_of(lam).clamp(sde.t_min, sde.t_max), x)
        if bool(data.any()):
            none = data.to(x.device).reshape(-1, *[1] * (x.ndim - 1))
            at = replace(at, alpha=torch.where(none, 1.0, at.alpha), sigma=torch.where(none, 0.0, at.sigma))
        return cls(u, at)

    def rows(self, which: slice) -> Place:
        """The places of some rows."""
        fields = {name: getattr(self.at, name)[which] for name in ("t", "alpha", "sigma", "dalpha", "dsigma", "lam")}
        return Place(self.u[which], Level(**fields))


def angles(sde: GaussianSDE, c: float) -> tuple[float, float]:
    """The least and the largest angle of a process."""
    first, last = sde.levels([sde.t_min, sde.t_max])
    circle = AngleSDE(c)
    return circle.angle(first), circle.angle(last)


def pairs(n: int, low: float, high: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Angles to start from and to end at, `(n,)` each, in float64 on the CPU; ends may be 0, the data."""
    a, b = high * torch.rand(2, n, generator=generator, dtype=torch.float64, device="cpu") ** POWER
    u, s = torch.maximum(a, b).clamp(min=low), torch.minimum(a, b)
    which = torch.rand(2, n, generator=generator, dtype=torch.float64, device="cpu")
    return torch.where(which[0] < AT_PRIOR, high, u), torch.where(which[1] < AT_DATA, 0.0, s)


def neighbours(n: int, reach: tuple[float, ...], c: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Angles of noise levels to start from, `(n,)`, each drawn as often, and of those that follow them."""
    u = torch.atan(as_float64(reach) / c)
    k = torch.randint(len(reach) - 1, (n,), generator=generator, device="cpu")
    return u[k], u[k + 1]


def drawn(model: FlowMap, n: int, still: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Angles from and to which a map is to carry, `(n,)` each, by its reach; the first rows, `still`, stay."""
    low, high = angles(model.sde, model.data_std)
    u, s = pairs(n, low, high, generator)
    stays = torch.arange(n, device="cpu") < still
    if isinstance(model.reach, tuple):
        a, b = neighbours(n, model.reach, model.data_std, generator)
        u, s = torch.where(stays, u, a.clamp(low, high)), b
    if model.reach == "data":
        s = torch.zeros_like(s)
    return u, torch.where(stays, u, s)


class Batch:
    r"""The states of one batch of data, from which the maps to be compared start.

    Args:
        model: The flow map.
        x0: Data, shape `(B, *)`.
        given: Their conditions.
        generator: The source of angles and noise, on the CPU.
        still: How many rows, the first ones, end where they start: there the map is a denoiser.
        teacher: The model whose flow is learnt; None for the data alone.
        done: Share of the steps of the run that were taken.

    Attributes:
        model: The map, in evaluation mode: `average(x, at, to, **cond)` is $G$, `jump(x, at, to, **cond)` is $X$ as a
            state, `radius(at)` is $\sqrt{\alpha^2c^2 + \sigma^2}$, so that $y = x/$`radius`.
        teacher, generator, done: As given.
        start, end: The places, `Place`, where each of the other rows starts, and to where it is carried.
        x: The states of those rows, $\alpha x_0 + \sigma\varepsilon$, shape `(n, *)`.
        cond: Their conditions, for map and teacher.
        moved: Which rows of `x0` and `eps` these are, a slice.
    """

    def __init__(
        self,
        model: FlowMap,
        x0: Tensor,
        given: Conditions,
        generator: torch.Generator | None,
        still: int,
        teacher: Denoiser | None,
        done: float = 1.0,
    ) -> None:
        self.model, self.given, self.generator, self.teacher, self.done = model, given, generator, teacher, done
        u, s = drawn(model, len(x0), still, generator)
        self.eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device="cpu").to(x0.device)
        self.x0, self.still, self.moved = x0, slice(still), slice(still, len(x0))
        self.all, self.till = Place.of(model, u, x0), Place.of(model, s, x0)
        self.states = self.all.at.alpha * x0 + self.all.at.sigma * self.eps
        self.start, self.end, self.x = self.all.rows(self.moved), self.till.rows(self.moved), self.states[self.moved]
        self.cond = given.part(self.moved)

    def at(self, u: Tensor) -> Place:
        """The place of angles on the way, `(n,)`, moved into the range of the process."""
        return Place.of(self.model, u.clamp(*angles(self.model.sde, self.model.data_std)), self.x)

    def between(self) -> Place:
        """A place on the way of each row that is carried, uniform in the angle."""
        u, s = self.start.u, self.end.u
        return self.at(s + (u - s) * torch.rand(len(u), generator=self.generator, dtype=torch.float64, device="cpu"))

    def column(self, value: Tensor) -> Tensor:
        """Numbers `(n,)`, one for each row that is carried, `start.u - end.u` say, as `(n, 1, ...)` like the states."""
        return value.to(self.x).reshape(-1, *[1] * (self.x.ndim - 1))

    def slope(self, y: Tensor, here: Place) -> Tensor:
        """The velocity in the angle, $dy/du$, of the teacher at a place, shape `(n, *)`, one evaluation.

        Args:
            y: States of all rows that are carried, normalised: a state `x` there over `model.radius(here.at)`.
            here: Where they are: `start`, `end`, or what `at` and `between` answer.

        Raises:
            TypeError: The objective has no teacher.
        """
        if self.teacher is None:
            raise TypeError(
                "slope asks the teacher, and the objective was made without one: give it, Shortcut(teacher), or take "
                "velocity(moved), of data and noise"
            )
        return self._of_teacher(y * self.model.radius(here.at), here, self.cond)

    def velocity(self, rows: slice) -> Tensor:
        """The velocity in the angle where rows start: of the teacher, or that of their own data and noise."""
        here = self.all.rows(rows)
        if self.teacher is not None:
            return self._of_teacher(self.states[rows], here, self.given.part(rows))
        p = Prediction(lambda: self.x0[rows], lambda: self.eps[rows])
        return angular(p, self.model.angle(here.at), self.model.data_std)

    def _of_teacher(self, x: Tensor, here: Place, cond: dict[str, Any]) -> Tensor:
        p = cast(Denoiser, self.teacher).predict(x, here.at, **cond)
        return angular(p, self.model.angle(here.at), self.model.data_std).to(x)

    def loss(self, moved: Tensor) -> Tensor:
        """The weighed square error of $G$, averaged, with the graph of the model.

        Args:
            moved: What $G$ is to be on the rows that are carried.
        """
        with torch.no_grad():
            target = torch.cat([self.velocity(self.still), moved]) if self.still.stop else moved
        g = self.model.average(self.states, self.all.at, self.till.at, **self.given.whole)
        error = flat((g - target).square()).mean(1)
        return (error / gain(self.model, self.all.at).reshape(-1).to(error)).mean()


def gain(model: FlowMap, at: Level) -> Tensor:
    r"""$\max(1, |\partial G/\partial F|)$ at a level: what the error of an answer is multiplied by, beyond 1.

    It is 1 for `predict.edm`. An error of the noise is one of $G$ many times as large where there is little data, 150
    times at the end of `VPSDE`, and one of the data where there is little noise. The square error of $G$ is divided by
    it: by its square, as if the answer were regressed, a map of the noise never learnt to jump from the prior.
    """
    return cast(Tensor, slope(model.kind, at, model.angle(at), model.data_std)).abs().clamp(min=1.0)


def slope(kind: Parametrisation, at: Level, u: Scalar, c: float) -> Scalar:
    r"""$\partial G/\partial F$ at a level, of angle $u$, for data of standard deviation $c$."""
    k = kind.coefficients(at)
    on_data, on_noise = angular_weights(u, c)
    return on_data * k.data_f + on_noise * k.noise_f


def steepest(kind: Parametrisation, sde: GaussianSDE, c: float) -> float:
    r"""The largest $|\partial G/\partial F|$ on a process; infinite where an answer tells nothing of the data."""
    times = [sde.t_min + (sde.t_max - sde.t_min) * k / 16 for k in range(17)]
    circle = AngleSDE(c)
    try:
        return max(abs(cast(float, slope(kind, at, circle.angle(at), c))) for at in sde.levels(times))
    except ValueError:
        return math.inf
