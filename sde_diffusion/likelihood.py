r"""Exact log-likelihood through the probability-flow ODE.

In the angle coordinate $u$ (`solvers.AngleSDE`) with variance-normalised state $y$, $dy/du = v$ is regular at both
ends and

$$ \log p_{t}(x) = \log\mathcal N(y(\pi/2); 0, I) + \int_{u_t}^{\pi/2} \nabla\cdot v\,du - \tfrac D2\log(\alpha^2c^2 +
  \sigma^2) $$

up to the largest noise level of the model, where $y$ is Gaussian with the moments of the prior. The divergence is
exact, a loop of vector-Jacobian products on one graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_finite, check_state
from sde_diffusion._linear import rows
from sde_diffusion.equation import ODE, GaussianReverseSDE
from sde_diffusion.loop import integrate
from sde_diffusion.sde import GaussianSDE, Level
from sde_diffusion.solvers import RK4, AngleSDE, Solver
from sde_diffusion.solvers.base import describe

if TYPE_CHECKING:
    from sde_diffusion.sampler import SDESampler


@dataclass(frozen=True)
class LogProb:
    """The log-likelihood of a batch.

    Attributes:
        value: Log-density in nats, shape `(B,)`, of the model at its smallest noise level and alpha times the data.
        latent: The state at the prior, shape `(B, *)`.
        nfe: Network evaluations per sample, not counting those of the divergence, which are backward passes.
    """

    value: Tensor
    latent: Tensor
    nfe: int


def divergence(v: Tensor, x: Tensor) -> Tensor:
    r"""$\nabla\cdot v$ at `x`, shape `(B,)`: exact, one vector-Jacobian product per coordinate on the graph of `v`."""
    flat, total = rows(v), v.new_zeros(len(v))
    for i in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)
        total = total + rows(row)[:, i]
    return total


class LogDensityODE(ODE):
    r"""An ODE with $\int \nabla\cdot v$ carried along as one more coordinate: any ODE solver integrates both.

    The state is `(B, D + 1)`: the flattened state of the inner equation, then the integral.

    Args:
        inner: The equation of the state.
        shape: Its event shape.
    """

    def __init__(self, inner: ODE, shape: Sequence[int]) -> None:
        super().__init__(inner.counter)
        self.inner, self.shape = inner, tuple(shape)

    def compute_levels(self, times: Sequence[float]) -> list[Level]:
        return self.inner.prefill(times)

    def velocity(self, x: Tensor, t: Level) -> Tensor:
        with torch.enable_grad():
            y = x[:, :-1].reshape(len(x), *self.shape).detach().requires_grad_()
            v = self.inner.velocity(y, t)
            div = divergence(v, y)
        return torch.cat([rows(v.detach()), div.detach()[:, None]], dim=1)


def log_prob(
    sampler: SDESampler,
    x0: Tensor,
    *,
    solver: Solver | None = None,
    steps: int = 24,
    data_std: float | None = None,
    **cond: Any,
) -> LogProb:
    r"""Log-likelihood of data under the probability flow of a sampler's model, in nats.

    Args:
        sampler: Gives the model, the range of noise levels and the prior.
        x0: Data, shape `(B, *)`.
        solver: An ODE solver on plain velocities; `RK4()` by default.
        steps: Steps in the angle, uniform in $(u/u_{max})^{1/1.5}$.
        data_std: $c$ of the coordinate, the standard deviation of the data; by default what the model knows.
        **cond: Handed to the model.

    Raises:
        TypeError: A general SDE, a solver that cannot integrate a bare ODE, or integer or half-precision data.
        ValueError: Empty or non-finite data, or another event shape.
    """
    sde, solver = sampler.sde, solver or RK4()
    if not isinstance(sde, GaussianSDE):
        raise TypeError(f"log_prob needs a GaussianSDE; {type(sde).__name__} is a general SDE")
    if solver.needs is not ODE or solver.stochastic:
        raise TypeError(
            f"log_prob integrates a bare ODE, but {solver!r} needs {describe(solver.needs)}: "
            "use Heun(), RK4() or Torchdiffeq()"
        )
    check_finite(check_state(x0, "x0", shape=sampler.shape), "x0")
    check_count(steps, "steps")
    eq = cast("GaussianReverseSDE", sampler.equation(cond))
    circle = AngleSDE(eq.denoiser.data_std if data_std is None else data_std)
    first, last = sde.levels([sde.t_min, sde.t_max])
    low, high = circle.angle(first), circle.angle(last)
    grid = [low + (high - low) * (i / steps) ** 1.5 for i in range(steps + 1)]
    grid[-1] = high
    y = rows(x0) * (first.alpha / circle.radius(first))
    ode = LogDensityODE(eq.on(circle), x0.shape[1:])
    with torch.no_grad():
        *_, now = integrate(ode, solver, torch.cat([y, y.new_zeros(len(y), 1)], dim=1), grid)
        latent = (now.x[:, :-1] * circle.radius(last)).reshape(x0.shape)
        d = y.shape[1]
        change = d * (math.log(circle.radius(last)) - math.log(circle.radius(first)))
        value = sde.prior_log_prob(latent) + now.x[:, -1] + change
        value = value + d * math.log(first.alpha)
    return LogProb(value, latent, now.nfe)


def bits_per_dim(log_prob: Tensor, dim: int, *, bin_width: float) -> Tensor:
    r"""$-\big(\log p(x)/D + \log\Delta\big)/\log 2$: the cost in bits of one coordinate known to bins of width
    $\Delta$.

    Args:
        log_prob: Log-density of uniformly dequantised data, in nats, shape `(B,)`.
        dim: $D$, coordinates per sample.
        bin_width: $\Delta$, in the units of the data; there is no default, since it is 2/256 for bytes scaled to
            `[-1, 1]` by
            `2 (v + u) / 256 - 1` and 2/17 for the 17 grey levels of the digits.
    """
    if not (0 < bin_width < math.inf):
        raise ValueError(f"bin_width must be positive, got {bin_width!r}")
    return -(log_prob / check_count(dim, "dim") + math.log(bin_width)) / math.log(2)
