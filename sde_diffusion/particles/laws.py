r"""What particles are weighed by: the twists of a likelihood, or the rates of a product of powers of models.

With one network call a level, a law says what the particles at one state are drawn to, and what they weigh there.

* `TwistedLaw`, of $\pi(x_0) \propto p(x_0)\,\ell(x_0)$. The base chain follows the model inside; a particle is proposed
  by the shifted prediction, and weighs
  $\psi_s(x_s)/\psi_t(x_t)\cdot\mathcal N(x_s;\,m, v)/\mathcal N(x_s;\,m + \delta, v)$ for each step, with $\delta$ what
  the shift adds to the mean $m$. These weights telescope: any twist gives the same law in the limit of many particles.
* `ProductLaw`, of $\prod_ip_i(x_0)^{\gamma_i}$. The reverse SDE of the score $\sum_i\gamma_is_i$ does not carry
  $q_t = \prod_ip_{i,t}^{\gamma_i}$ along; with $\Gamma = \sum_i\gamma_i$, $\varepsilon = \sum_i\gamma_i\varepsilon_i$,

$$ d\log W = \Big[\big(1 - \tfrac1\Gamma\big)|\varepsilon|^2
   - \sum_i\gamma_i\,\big|\varepsilon_i - \tfrac\varepsilon\Gamma\big|^2
   + (\Gamma - 1)\,\varphi\,\big(D - \tfrac{x\cdot\varepsilon}\sigma\big)\Big]\,d\lambda $$

  sets that right (Feynman and Kac), here by the trapezoid rule. For guidance, with powers $w$ and $1 - w$, it is
  $w(w - 1)\,|\varepsilon_c - \varepsilon_u|^2\,d\lambda$. Where $\Gamma \ne 1$, the drift $(\Gamma - 1)\,\varphi\,x$
  is added, with $\varphi = \sigma^2/(\sigma^2 + \alpha^2c^2)$: it keeps $\mathcal N(0, \sigma^2/\Gamma)$, which $q_t$
  is where there is little but noise, and the weights there have no spread.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.guidance.product import Product
from sde_diffusion.guidance.twisted import Twisted
from sde_diffusion.sde.level import Level


class Seen(NamedTuple):
    r"""What is known of the particles of one level; each part has a row for each of them.

    Attributes:
        data: The prediction that the base chain follows, `(B, *)`.
        shift: What it is shifted by in the proposal, `(B, *)`; None if that is the base chain.
        log_twist: $\log\psi$ in float64 on the CPU, `(B,)`; None without a twist.
        rates: Parts of the rate of the weights, in float64 on the CPU, `(B, 2)`; None where there is none.
    """

    data: Tensor
    shift: Tensor | None = None
    log_twist: Tensor | None = None
    rates: Tensor | None = None

    def take(self, numbers: Tensor) -> Seen:
        """The particles of these numbers."""
        return Seen(
            self.data[numbers.to(self.data.device)],
            None if self.shift is None else self.shift[numbers.to(self.shift.device)],
            None if self.log_twist is None else self.log_twist[numbers],
            None if self.rates is None else self.rates[numbers],
        )


class Law(ABC):
    """A target, as particles see it.

    Attributes:
        target: The model.
        log_start: Logarithm of the weight of every particle at the start.
        spread: Standard deviation of the states at the start, in units of the prior.
    """

    log_start: float = 0.0
    spread: float = 1.0

    def __init__(self, target: Denoiser) -> None:
        self.target = target

    @abstractmethod
    def look(self, x: Tensor, at: Level, cond: dict[str, Any]) -> Seen:
        """What is known of particles, by one evaluation of the model."""

    @abstractmethod
    def end(self, x: Tensor, at: Level, seen: Seen, cond: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The data that the last states lead to, and the logarithm of the twist of data, None without one."""

    def rate(self, t: Level, s: Level) -> float:
        """$a$ of the chain in one step."""
        return 1.0

    def gain(self, before: Seen, now: Seen, t: Level, s: Level) -> Tensor | None:
        """What a step adds to the logarithms of the weights, besides the ratio of densities; None for nothing."""
        return None

    def _own(self, x: Tensor) -> Tensor:
        """The state as the model is given it: a copy, if it may write there."""
        return x if self.target.careful else x.clone()


class TwistedLaw(Law):
    """The law of data of a `Twisted`: by its twists, and at the end by its likelihood itself.

    Args:
        target: The model.
    """

    target: Twisted

    def look(self, x: Tensor, at: Level, cond: dict[str, Any]) -> Seen:
        look = self.target.look(self._own(x), at, **cond)
        data = look.prior.data
        return Seen(data if self.target.careful else data.clone(), look.shift, wide(look.log_twist))

    def end(self, x: Tensor, at: Level, seen: Seen, cond: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        return seen.data, wide(self.target.log_likelihood(seen.data, **cond))


class ProductLaw(Law):
    r"""The law of data of a `Product`, by Feynman-Kac weights.

    Args:
        target: The model.
        first: Level of the start, where each model is taken for $\mathcal N(0, \sigma^2)$.
        dim: $D$.
    """

    def __init__(self, target: Denoiser, first: Level, dim: int) -> None:
        super().__init__(target)
        product = cast("Product", target)
        self.product, self.powers, self.dim = product, [float(power) for power in product.powers], dim
        self.total = total = math.fsum(self.powers)
        self.spread = total**-0.5
        half = 0.5 * ((1 - total) * math.log(2 * math.pi) - math.log(total))
        self.log_start = dim * ((total - 1) * first.lam + half) if total != 1 else 0.0

    def look(self, x: Tensor, at: Level, cond: dict[str, Any]) -> Seen:
        powers, total = self.powers, self.total
        if total == 1 and powers.count(0.0) == len(powers) - 1:  # one model as it is: the others are not asked
            data = self.target.predict(self._own(x), at, **cond).data
            none = torch.zeros(len(x), 2, dtype=torch.float64, device="cpu")
            return Seen(data if self.target.careful else data.clone(), rates=none)
        parts = self.product.parts(self._own(x), at, **cond)
        noises = [part.noise for part in parts]
        data = sum((g * part.data for g, part in zip(powers, parts, strict=True)), torch.zeros_like(x))
        noise = sum((g * e for g, e in zip(powers, noises, strict=True)), torch.zeros_like(x))
        apart, tilt = torch.zeros(2, len(x), dtype=torch.float64, device="cpu")
        for g, e in zip(powers, noises, strict=True):
            apart -= g * squares(e - noise / total)
        if total != 1:
            apart += (1 - 1 / total) * squares(noise)
            tilt += (total - 1) * (self.dim - wide((rows(x) * rows(noise)).sum(1)) / at.sigma)
        return Seen(data, rates=torch.stack([apart, tilt], dim=1))

    def end(self, x: Tensor, at: Level, seen: Seen, cond: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        return (seen.data if self.total == 1 else seen.data + (1 - self.total) / at.alpha * x), None

    def rate(self, t: Level, s: Level) -> float:
        return 2 * self.total - 1 - (self.total - 1) * self._share(t, s)

    def gain(self, before: Seen, now: Seen, t: Level, s: Level) -> Tensor | None:
        rates = cast("Tensor", before.rates) + cast("Tensor", now.rates)
        return 0.5 * (s.lam - t.lam) * (rates[:, 0] + self._share(t, s) * rates[:, 1])

    def _share(self, t: Level, s: Level) -> float:
        r"""The mean of $\varphi$ over a step in $\lambda$."""
        if self.total == 1:
            return 0.0
        c = self.target.data_std
        a, b = (math.log(math.hypot(1.0, c / at.ratio)) for at in (t, s))
        return 1 - (b - a) / (s.lam - t.lam)


def wide(value: Tensor) -> Tensor:
    """In float64 on the CPU, where weights are."""
    return value.detach().to("cpu", torch.float64)


def squares(x: Tensor) -> Tensor:
    """Sum of the squares of each row, in float64 on the CPU."""
    return wide(rows(x).square().sum(1))
