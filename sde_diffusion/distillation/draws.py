r"""What objectives of flow maps draw, and how they compare: pairs of angles, noisy states, the velocity to be learnt.

All is done in the angle, where $y = \tfrac{\cos u}{c}x_0 + \sin u\,\varepsilon$, so that an objective serves every
Gaussian process. Times from noise to data fall, $u \ge r \ge s$.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_diffusion._tensors import as_float64, rows
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.flow_map import FlowMap, angular, angular_weights
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde.angle import AngleSDE
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level

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


class Batch:
    """The states of one batch of data, from which the maps to be compared start.

    Args:
        model: The flow map.
        x0: Data, shape `(B, *)`.
        given: Their conditions.
        generator: The source of angles and noise, on the CPU.
        still: How many rows, the first ones, end where they start: there the map is a denoiser.

    Attributes:
        start, end: Where each row starts and is carried to.
        x: The states, shape `(B, *)`.
        eps: The noise in them.
    """

    def __init__(
        self, model: FlowMap, x0: Tensor, given: Conditions, generator: torch.Generator | None, still: int
    ) -> None:
        self.model, self.x0, self.given, self.generator, self.still = model, x0, given, generator, still
        u, s = pairs(len(x0), *angles(model.sde, model.data_std), generator)
        s = torch.where(torch.arange(len(x0), device="cpu") < still, u, s)
        self.start, self.end = Place.of(model, u, x0), Place.of(model, s, x0)
        self.eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device="cpu").to(x0.device)
        self.x = self.start.at.alpha * x0 + self.start.at.sigma * self.eps
        self.rows = slice(still, len(x0))

    def between(self) -> Place:
        """A place on the way of each row that is carried, uniform in the angle."""
        u, s = self.start.u[self.rows], self.end.u[self.rows]
        w = torch.rand(len(u), generator=self.generator, dtype=torch.float64, device="cpu")
        return Place.of(self.model, s + (u - s) * w, self.x[self.rows])

    def velocity(self, teacher: Denoiser | None) -> Tensor:
        r"""The velocity in the angle of the rows that stay, by a teacher; or of their data and noise themselves."""
        here, rows = self.start.rows(slice(self.still)), slice(self.still)
        if teacher is None:
            p = Prediction(lambda: self.x0[rows], lambda: self.eps[rows])
            return angular(p, self.model.angle(here.at), self.model.data_std)
        return self.of_teacher(teacher, self.x[rows], here, rows)

    def of_teacher(self, teacher: Denoiser, x: Tensor, here: Place, rows: slice) -> Tensor:
        """The velocity in the angle of a teacher at states of some rows."""
        p = teacher.predict(x, here.at, **self.given.part(rows))
        return angular(p, self.model.angle(here.at), self.model.data_std).to(x)

    def loss(self, target: Tensor) -> Tensor:
        r"""The square error of $G$ from the start to the end of each row, averaged; with the graph of the model."""
        g = self.model.average(self.x, self.start.at, self.end.at, **self.given.whole)
        error = rows((g - target).square()).mean(1)
        return (error / gain2(self.model, self.start.at).reshape(-1).to(error)).mean()


def gain2(model: FlowMap, at: Level) -> Tensor:
    r"""$\max(1, |\partial G/\partial F|^2)$ at a level: what the square error of an answer is multiplied by, beyond 1.

    It is 1 for `predict.edm`. A network of the noise has an error in $G$ many times its own where there is little data,
    one of the data where there is little noise.
    """
    c, u = model.kind.coefficients(at), model.angle(at)
    on_data, on_noise = angular_weights(u, model.data_std)
    return as_float64(on_data * c.data_f + on_noise * c.noise_f).square().clamp(min=1.0)
