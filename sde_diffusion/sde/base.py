r"""What a forward process is: what an SDE must tell, and all that follows for one with a Gaussian kernel.

Time grows with noise: data sit at `t_min`, the prior at `t_max`. There are two kinds:

* `SDE`: $dx = f(x, t)\,dt + g(t)\,dw$, given by its drift, diffusion and prior. Any additive-noise SDE.
* `GaussianSDE`: $x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon$, given by $\alpha$ and $\sigma$ alone. The rest
  follows: $f = (\alpha'/\alpha)\,x$, $g^2 = 2\sigma(\sigma' - \sigma\alpha'/\alpha)$, and half the log-SNR, $\lambda =
  \log(\alpha/\sigma)$.

Schedules are evaluated in float64 and cast at the end; a solver receives them as Python floats, in a `Level`.
"""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor

from sde_diffusion._checks import check_like, check_state
from sde_diffusion._tensors import standard_normal_log_prob
from sde_diffusion.sde._checks import SCHEDULES, check_range_of, check_scales, check_schedule, elementwise
from sde_diffusion.sde.level import Level
from sde_diffusion.sde.times import as_table, as_time, as_times


class SDE(ABC):
    r"""Forward process $dx = f(x, t)\,dt + g(t)\,dw$ on `[t_min, t_max]`: data at `t_min`, prior at `t_max`.

    A subclass sets `t_min` and `t_max` and writes the four methods. In a solver `t` is a tensor of shape `()`, and in
    general one that broadcasts against `x`; `g` may be a scalar or hold one value per coordinate.

    Attributes:
        t_min: Smallest time, at the data.
        t_max: Largest time, at the prior.
        time_is_index: Whether the process is a chain of levels, 0 to `t_max`, between which it is interpolated.
    """

    t_min: float
    t_max: float
    time_is_index: ClassVar[bool] = False

    @abstractmethod
    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """$f(x, t)$, shape `(B, *)`."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """$g(t)$, which broadcasts against `x`."""

    @abstractmethod
    def prior(self, z: Tensor) -> Tensor:
        r"""Turns draws `z` of $\mathcal N(0, I)$, shape `(B, *)`, into draws of $x_{t_{max}}$."""

    @abstractmethod
    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the prior at `x`, in nats, shape `(B,)`."""

    def __eq__(self, other: object) -> bool:
        """Processes are equal when their class and attributes are, so that `Mine()` fits a model made for `Mine()`."""
        if type(self) is not type(other):
            return False
        mine, theirs = vars(self), vars(other)
        return mine.keys() == theirs.keys() and all(_equal(mine[k], theirs[k]) for k in mine)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"


class GaussianSDE(SDE):
    r"""Forward process with kernel $x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon$, $\varepsilon \sim \mathcal N(0,
    I)$.

    A subclass sets `t_min` and `t_max` and writes `alpha` and `sigma`, elementwise on a float64 tensor of times.
    It may write `rates` (automatic differentiation by default) and `time_of` (bisection by default) in closed form.
    $\alpha / \sigma$ must fall with `t`. These methods may then be asked of a number as well, which becomes a float64
    tensor of shape `()`, and may answer a constant, which is spread over the times.

    Example:
        >>> class Ornstein(GaussianSDE):
        ...     t_min, t_max = 1e-3, 5.0
        ...
        ...     def alpha(self, t):
        ...         return torch.exp(-t)
        ...
        ...     def sigma(self, t):
        ...         return torch.sqrt(-torch.expm1(-2 * t))
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in SCHEDULES:
            if isinstance(method := vars(cls).get(name), FunctionType):
                setattr(cls, name, elementwise(method, name))

    @classmethod
    def examples(cls) -> tuple[GaussianSDE, ...]:
        """Instances that the tests and the conformance suite work on; by default one, made without arguments."""
        return (cls(),)

    @classmethod
    def named(cls) -> dict[str, GaussianSDE]:
        """Instances that `sde-diffusion train --sde NAME` offers, by name; by default none."""
        return {}

    # `Any` is a number or a tensor; a subclass may write `t: Tensor`, which is what it is handed.
    @abstractmethod
    def alpha(self, t: Any) -> Tensor:
        r"""Scale of the data, $\alpha(t)$, elementwise."""

    @abstractmethod
    def sigma(self, t: Any) -> Tensor:
        r"""Scale of the noise, $\sigma(t) > 0$, elementwise."""

    @elementwise
    def rates(self, t: Any) -> tuple[Tensor, Tensor]:
        r"""$(\alpha'(t), \sigma'(t))$, elementwise; by automatic differentiation unless a subclass knows better."""
        with torch.inference_mode(False), torch.enable_grad():
            t = t.detach().clone().requires_grad_()
            values = self.alpha(t), self.sigma(t)
            found = [torch.autograd.grad(v.sum(), t, allow_unused=True)[0] if v.requires_grad else None for v in values]
        dalpha, dsigma = (torch.zeros_like(t) if d is None else d.detach() for d in found)
        return dalpha, dsigma

    @elementwise
    def half_log_snr(self, t: Any) -> Tensor:
        r"""$\lambda(t) = \log(\alpha / \sigma)$, elementwise; falls with `t`."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def ends(self) -> tuple[float, float]:
        r"""The range of $\lambda$: its values at `t_max`, the least (`-inf` where alpha is 0), and at `t_min`."""
        times = torch.tensor([self.t_max, self.t_min], dtype=torch.float64, device="cpu")
        low, high = self.half_log_snr(times).tolist()
        return low, high

    @elementwise
    def time_of(self, lam: Any) -> Tensor:
        r"""The time at which $\lambda(t)$ is `lam`, elementwise; by bisection unless a subclass knows better.

        The time may lie beyond `t_max`, if $\alpha$ and $\sigma$ go on there: `Churn` rises above the first level.

        Raises:
            ValueError: `lam` is not reached.
        """
        (low, high), last = self.ends(), self.t_max
        while bool((lam < low).any()) and last < 16 * self.t_max:
            further = last + 0.5 * (self.t_max - self.t_min)
            beyond = float(self.half_log_snr(further))
            if not beyond < low:
                break
            last, low = further, beyond
        slack = 1e-9 * max([1.0, *(abs(end) for end in (high, low) if math.isfinite(end))])
        if bool(((lam > high + slack) | (lam < low - slack)).any()):
            raise ValueError(
                f"half log-SNR {float(lam.min()):.6g} to {float(lam.max()):.6g} is not reached by {self!r}, "
                f"which spans {low:.6g} to {high:.6g}"
            )
        a, b = torch.full_like(lam, self.t_min), torch.full_like(lam, last)
        for _ in range(100):
            mid = (a + b) / 2
            above = self.half_log_snr(mid) > lam
            a, b = torch.where(above, mid, a), torch.where(above, b, mid)
        return (a + b) / 2

    def levels(self, times: Iterable[float]) -> list[Level]:
        """The schedule at many times, as Python floats, from one vectorised float64 evaluation."""
        check_process(self)
        t = as_table(times)
        if t.numel() == 0:
            return []
        with torch.no_grad():
            alpha, sigma = self.alpha(t), self.sigma(t)
            columns = (t, alpha, sigma, *self.rates(t), self.half_log_snr(t))
        check_scales(self, t, alpha, sigma)
        return [Level(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]

    def level(self, t: object, x: Tensor, *, check: bool = True) -> Level:
        """The schedule at `t` (a float, `()` or `(B,)`) as tensors that broadcast against `x`, in its dtype."""
        check_process(self)
        time = as_time(t, x, self.t_min, self.t_max, index=self.time_is_index, check=check)
        columns = (time, self.alpha(time), self.sigma(time), *self.rates(time), self.half_log_snr(time))
        return Level(*(c.to(x.device, x.dtype) for c in columns))

    def drift(self, x: Tensor, t: object) -> Tensor:
        r"""$f(x, t) = \frac{\alpha'}{\alpha}\,x$, shape `(B, *)`."""
        at = self.level(t, x)
        rate: Tensor = at.dalpha / at.alpha
        return rate * x

    def diffusion(self, t: float | Tensor) -> Tensor:
        r"""$g(t) = \sqrt{2\sigma(\sigma' - \sigma\alpha'/\alpha)}$, elementwise."""
        t = as_times(t).to(torch.float64)
        alpha, sigma = self.alpha(t), self.sigma(t)
        dalpha, dsigma = self.rates(t)
        return torch.sqrt(2 * sigma * (dsigma - sigma * dalpha / alpha))

    def marginal(self, x0: Tensor, t: object) -> tuple[Tensor, Tensor]:
        r"""Mean $\alpha x_0$, shape `(B, *)`, and standard deviation $\sigma$ of $x_t$ given $x_0$."""
        at = self.level(t, check_state(x0, "x0"))
        return at.alpha * x0, at.sigma

    def perturb(self, x0: Tensor, t: object, eps: Tensor) -> Tensor:
        r"""$x_t = \alpha x_0 + \sigma\varepsilon$, shape `(B, *)`."""
        at = self.level(t, check_state(x0, "x0"))
        mean: Tensor = at.alpha * x0
        return mean + at.sigma * check_like(eps, "eps", x0, "x0")

    def posterior(self, x: Tensor, x0: Tensor, t: object, s: object) -> tuple[Tensor, Tensor]:
        r"""Mean and standard deviation of $x_s$ given $x_t$ and $x_0$, for $s < t$.

        $$ q(x_s \mid x_t, x_0) = \mathcal N\Big(\tfrac{\alpha_t}{\alpha_s}\tfrac{\sigma_s^2}{\sigma_t^2}\,x_t
           + \alpha_s\,(1 - e^{-2h})\,x_0,\ \ \sigma_s^2\,(1 - e^{-2h})\,I\Big), \quad h = \lambda_s - \lambda_t $$

        On a discrete VP chain with `s = t - 1` this is the DDPM posterior with $\tilde\beta_t$; on `BrownianSDE` it is
        $\mathcal N((1 - 1/t)\,x_t + x_0/t,\ (1 - 1/t)\,I)$.

        Args:
            x: State at `t`, shape `(B, *)`.
            x0: Data, same shape.
            t: Time of `x`.
            s: Earlier time, `s < t`.

        Returns:
            Mean, shape `(B, *)`, and standard deviation, which broadcasts against it.

        Raises:
            ValueError: `s >= t` for some sample, times out of range, or shapes that differ.

        References:
            Ho et al., Denoising Diffusion Probabilistic Models, 2020 (equations 6 and 7).
        """
        check_state(x, "x")
        check_state(x0, "x0")
        if x.shape != x0.shape:
            raise ValueError(f"x has shape {tuple(x.shape)} and x0 {tuple(x0.shape)}: wanted the same")
        wide = x.to(torch.float64) if x.device.type != "mps" else x
        a, b = self.level(t, wide), self.level(s, wide)
        if bool((b.t >= a.t).any()):
            raise ValueError("posterior(x, x0, t, s) needs s < t for every sample: x is the noisier state")
        gain = -torch.expm1(-2 * (b.lam - a.lam))
        mean = (a.alpha / b.alpha * (b.sigma / a.sigma) ** 2).to(x.dtype) * x + (b.alpha * gain).to(x.dtype) * x0
        return mean, (b.sigma * torch.sqrt(gain)).to(x.dtype)

    def prior(self, z: Tensor, t: float | None = None) -> Tensor:
        r"""Turns draws `z` of $\mathcal N(0, I)$ into draws of $\mathcal N(0, \sigma(t)^2 I)$, at `t_max` by default.

        `prior.Matched` has the mean and variance of the data instead.
        """
        (at,) = self.levels([self.t_max if t is None else t])
        return check_state(z, "z") * float(at.sigma)

    def prior_log_prob(self, x: Tensor, t: float | None = None) -> Tensor:
        """Log-density of the prior at `x`, in nats, shape `(B,)`; at `t_max` unless `t` is given."""
        (at,) = self.levels([self.t_max if t is None else t])
        return standard_normal_log_prob(check_state(x, "x") / at.sigma) - x[0].numel() * math.log(at.sigma)


_checked: weakref.WeakValueDictionary[int, SDE] = weakref.WeakValueDictionary()


def check_process(sde: SDE) -> None:
    """Raises unless a process has a range of times and, if Gaussian, a schedule on it. Each object is asked once.

    Raises:
        TypeError: No `t_min` or `t_max`, or a schedule that is not elementwise in torch.
        ValueError: `t_min >= t_max`; alpha negative, sigma zero, NaN; a log-SNR that rises with time.
    """
    if torch.compiler.is_compiling() or _checked.get(id(sde)) is sde:
        return
    check_range_of(sde)
    if isinstance(sde, GaussianSDE):
        check_schedule(sde)
    _checked[id(sde)] = sde


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a == b).all())
    return type(a) is type(b) and a == b
