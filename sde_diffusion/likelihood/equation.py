r"""The equation of a log-likelihood: the state of an ODE, and along with it the integral of its divergence.

$$ \frac{dx}{dt} = v(x, t), \quad \frac{dl}{dt} = \nabla\cdot v(x, t), \quad
   \log p_s(x_s) = \log p_t(x_t) - (l_s - l_t) $$

Any ODE solver integrates both. The equation holds the integral to a tolerance in nats of its own where a solver adapts
its steps: relative to a log-likelihood of a thousand nats, a part in a million is a thousandth of a nat, and to zero it
is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion._tensors import rows
from sde_diffusion.likelihood.trace import Trace
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.equation import ODE, scaled_rms

NATS = 2.0
"""Nats per step that a relative tolerance of one allows in one dimension; in `D` it is a root of `D` times as many."""


class LogDensityODE(ODE):
    r"""An ODE with $\int \nabla\cdot v$ carried along: as one more coordinate, or as the `m` that a `Trace` asks for.

    The state is `(B, D + m)`, in float64 where there is one: the flattened state of the inner equation, which is
    evaluated in its own dtype, then the integrals. Where the velocity of a row is not finite, the row is marked, and
    stands still from there on; the others go on.

    Args:
        inner: The equation of the state.
        shape: Its event shape.
        dtype: Its dtype.
        trace: How the divergence is found.
        probes: What `trace.probes` gave.
        grad: Keeps the graph.

    Attributes:
        first: The first velocity and divergence asked for, `(B, D + m)`.
        failed: Mask `(B,)` of the rows whose velocity was not finite.
        where: Time at which that was, `(B,)`.
        when: Evaluations until then, `(B,)`.
        readings: Where a list, gets of each evaluation the square of the velocity and the divergence, `(B, 2)`.
    """

    def __init__(
        self,
        inner: ODE,
        shape: Sequence[int],
        dtype: torch.dtype,
        trace: Trace,
        probes: Tensor | None,
        *,
        grad: bool = False,
    ) -> None:
        super().__init__(inner.counter)
        self.inner, self.shape, self.dtype, self.grad = inner, tuple(shape), dtype, grad
        self.d = math.prod(self.shape)
        self.trace, self.probes = trace, probes
        self.first: Tensor | None = None
        self.failed: Tensor | None = None
        self.where: Tensor | None = None
        self.when: Tensor | None = None
        self.readings: list[Tensor] | None = None

    def start(self, x: Tensor) -> Tensor:
        """The state with its integrals at zero."""
        flat = wide(rows(x))
        return torch.cat([flat, flat.new_zeros(len(x), self.trace.width())], dim=1)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The state of the inner equation, `(B, *)`, still in float64, and the integrals, `(B, m)`."""
        return x[:, : self.d].reshape(len(x), *self.shape), x[:, self.d :]

    def compute_levels(self, times: Sequence[float]) -> list[Level]:
        return self.inner.prefill(times)

    def level_per_sample(self, t: Tensor, x: Tensor) -> Level:
        return self.inner.level_per_sample(t, self.split(x)[0].to(self.dtype))

    def velocity(self, x: Tensor, t: Level) -> Tensor:
        before, calls = self.counter.n, 0

        def field(y: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return self.inner.velocity(y, t)

        v, div = self.trace(field, self.split(x)[0].to(self.dtype), self.probes, grad=self.grad)
        self.counter.n = before + (self.counter.n - before) // calls  # forward mode calls it more than once
        out = torch.cat([rows(v).to(x), div.to(x)], dim=1)
        bad = ~torch.isfinite(out.detach()).all(dim=1)
        failed = self.fail(
            bad, t.t if isinstance(t.t, Tensor) else torch.tensor(t.t, dtype=torch.float64, device="cpu")
        )
        out = torch.where(failed[:, None], torch.zeros_like(out), out)
        if self.first is None:
            self.first = out
        if self.readings is not None:
            square = out[:, : self.d].square().sum(1)
            self.readings.append(torch.stack([square, self.trace.estimate(out[:, self.d :])], dim=1).detach())
        return out

    def stuck(self, stuck: Tensor, t: Tensor) -> None:
        """Marks these rows as failed: they stay where they are, and the others go on."""
        self.fail(stuck, t)

    def error_norm(self, error: Tensor, x: Tensor, new: Tensor, rtol: float, atol: float) -> Tensor:
        r"""The larger of two: the error of the state against `rtol` and `atol`, and of the integral against its own.

        The estimate of the integral is allowed $2\,rtol\sqrt D$ nats in each step. Measured on mixtures in 2 and 64
        dimensions at 1e-6: 1e-6 and 3e-5 nats in the end, for 170 evaluations.
        """
        d = self.d
        state = scaled_rms(error[:, :d], x[:, :d], new[:, :d], rtol, atol)
        return torch.maximum(state, self.trace.estimate(error[:, d:]).abs() / allowance(rtol, d))

    def fail(self, bad: Tensor, t: Tensor) -> Tensor:
        """All rows that have failed; keeps the place of the first failure of each, without asking if there was one.

        Args:
            bad: Mask `(B,)` of the rows that fail now.
            t: Where, `(B,)` or one time for all.
        """
        here = t.to(bad.device, torch.float64 if bad.device.type != "mps" else torch.float32)
        here = here.reshape(-1).expand(len(bad))
        if self.failed is None or self.where is None or self.when is None:
            self.failed, self.where = bad, here
            self.when = torch.full_like(here, self.nfe)
            return bad
        self.where = torch.where(self.failed, self.where, here)
        self.when = torch.where(self.failed, self.when, torch.full_like(here, self.nfe))
        self.failed = self.failed | bad
        return self.failed


def allowance(rtol: float, d: int) -> float:
    """Error allowed to a log-density in `d` dimensions by a relative tolerance, in nats per step."""
    return NATS * rtol * math.sqrt(d)


def wide(x: Tensor) -> Tensor:
    """A tensor in float64, or as it is on a device that has none."""
    return x if x.device.type == "mps" else x.to(torch.float64)
