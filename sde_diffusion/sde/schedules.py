r"""The Gaussian SDEs in continuous time, side by side: each is its $\alpha(t)$ and $\sigma(t)$, with rates and inverse
in closed form.

Notation: $B(t) = \int_0^t \beta$ for the variance-preserving family, $S = \sigma/\alpha = e^{-\lambda}$ the noise
level. Differences of ones and exponentials go through `expm1` and `log1p`: in float32 $\sqrt{1 -
e^{-B}}$ is off by 6e-3 at $t = 10^{-5}$.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from sde_diffusion._checks import check_order
from sde_diffusion.sde.base import GaussianSDE


@dataclass(frozen=True)
class VPSDE(GaussianSDE):
    r"""Variance-preserving SDE, $dx = -\tfrac12\beta x\,dt + \sqrt\beta\,dw$ with $\beta(t) = \beta_{min} +
    (\beta_{max} - \beta_{min})\,t$.

    $$ \alpha = e^{-B/2}, \quad \sigma = \sqrt{1 - e^{-B}}, \quad B = \beta_{min} t + \tfrac12(\beta_{max} -
      \beta_{min})\,t^2 $$

    Args:
        beta_min: $\beta(0)$.
        beta_max: $\beta(1)$.
        t_min: Smallest time.
        t_max: Largest time.

    References:
        Song et al., Score-Based Generative Modeling through SDEs, 2021 (equation 32).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    _: KW_ONLY
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        check_order("beta_min", self.beta_min, "beta_max", self.beta_max)
        check_order("t_min", self.t_min, "t_max", self.t_max)

    def beta(self, t: Tensor) -> Tensor:
        r"""$\beta(t)$."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def integrated_beta(self, t: Tensor) -> Tensor:
        r"""$B(t) = \int_0^t \beta$."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.integrated_beta(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self.integrated_beta(t)))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta, alpha = self.beta(t), self.alpha(t)
        return -0.5 * beta * alpha, 0.5 * beta * alpha * alpha / self.sigma(t)

    def half_log_snr(self, t: Tensor) -> Tensor:
        return -0.5 * torch.log(torch.expm1(self.integrated_beta(t)))

    def time_of(self, lam: Tensor) -> Tensor:
        return self._time_of_integral(torch.nn.functional.softplus(-2 * lam))

    def _time_of_integral(self, total: Tensor) -> Tensor:
        """Solves `integrated_beta(t) = total` by the root that does not cancel."""
        slope = self.beta_max - self.beta_min
        return 2 * total / (torch.sqrt(self.beta_min**2 + 2 * slope * total) + self.beta_min)

    @classmethod
    def named(cls) -> dict[str, GaussianSDE]:
        return {"vp": VPSDE()}


@dataclass(frozen=True)
class SubVPSDE(VPSDE):
    r"""Sub-variance-preserving SDE: the drift of `VPSDE`, with less noise.

    $$ \alpha = e^{-B/2}, \quad \sigma = 1 - e^{-B} \quad \text{(a standard deviation)} $$

    References:
        Song et al., Score-Based Generative Modeling through SDEs, 2021 (equation 33).
    """

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.integrated_beta(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta, alpha = self.beta(t), self.alpha(t)
        return -0.5 * beta * alpha, beta * alpha * alpha

    def half_log_snr(self, t: Tensor) -> Tensor:
        return -torch.log(2 * torch.sinh(0.5 * self.integrated_beta(t)))

    def time_of(self, lam: Tensor) -> Tensor:
        return self._time_of_integral(2 * torch.asinh(0.5 * torch.exp(-lam)))

    @classmethod
    def named(cls) -> dict[str, GaussianSDE]:
        return {"subvp": SubVPSDE()}


@dataclass(frozen=True)
class VESDE(GaussianSDE):
    r"""Variance-exploding SDE with a geometric schedule.

    $$ \alpha = 1, \quad \sigma = \sigma_{min}\,(\sigma_{max}/\sigma_{min})^t, \quad t \in [0, 1] $$

    Args:
        sigma_min: Noise at `t = 0`; the data keep this much.
        sigma_max: Noise at `t = 1`; about the largest distance between two data points.

    References:
        Song et al., Score-Based Generative Modeling through SDEs, 2021 (equation 30).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min = 0.0
    t_max = 1.0

    def __post_init__(self) -> None:
        check_order("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * math.log(self.sigma_max / self.sigma_min))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), self.sigma(t) * math.log(self.sigma_max / self.sigma_min)

    def half_log_snr(self, t: Tensor) -> Tensor:
        return -(math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min))

    def time_of(self, lam: Tensor) -> Tensor:
        return -(lam + math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)

    @classmethod
    def named(cls) -> dict[str, GaussianSDE]:
        return {"ve": VESDE()}


@dataclass(frozen=True)
class BrownianSDE(GaussianSDE):
    r"""Brownian motion, $dx = dw$: the chain $x_t = x_{t-1} + \varepsilon$ of the lectures in continuous time.

    $$ \alpha = 1, \quad \sigma = \sqrt t $$

    Args:
        t_max: Final time, the variance of the noise; many times the variance of the data.
        t_min: Smallest time.
    """

    t_max: float = 1000.0
    _: KW_ONLY
    t_min: float = 1e-4

    def __post_init__(self) -> None:
        check_order("t_min", self.t_min, "t_max", self.t_max)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), 0.5 / torch.sqrt(t)

    def half_log_snr(self, t: Tensor) -> Tensor:
        return -0.5 * torch.log(t)

    def time_of(self, lam: Tensor) -> Tensor:
        return torch.exp(-2 * lam)

    @classmethod
    def named(cls) -> dict[str, GaussianSDE]:
        return {"brownian": BrownianSDE()}


@dataclass(frozen=True)
class CosineSDE(GaussianSDE):
    r"""Variance-preserving SDE along a quarter circle.

    $$ \alpha = \cos(\pi t/2), \quad \sigma = \sin(\pi t/2) $$

    The default range ends at `t = 0.995`, where $\alpha = 0.008$ and a noise prediction still tells of the data;
    models that predict data or a velocity may use `t_max=1`, where the prior is exact.

    References:
        Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021; Salimans and Ho, Progressive
        Distillation, 2022.
    """

    _: KW_ONLY
    t_min: float = 1e-3
    t_max: float = 0.995

    def __post_init__(self) -> None:
        check_order("t_min", self.t_min, "t_max", self.t_max)
        if self.t_max > 1:
            raise ValueError(f"CosineSDE ends at t = 1, got t_max={self.t_max}")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1 - t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * math.pi * self.sigma(t), 0.5 * math.pi * self.alpha(t)

    def time_of(self, lam: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(-lam))

    @classmethod
    def named(cls) -> dict[str, GaussianSDE]:
        return {"cosine": CosineSDE()}


@dataclass(frozen=True)
class EDMSDE(GaussianSDE):
    r"""The process of EDM, whose time is the noise level itself.

    $$ \alpha = 1, \quad \sigma = t $$

    Args:
        sigma_min: Smallest noise level, and `t_min`.
        sigma_max: Largest noise level, and `t_max`.

    References:
        Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check_order("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)
        object.__setattr__(self, "t_min", self.sigma_min)
        object.__setattr__(self, "t_max", self.sigma_max)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def half_log_snr(self, t: Tensor) -> Tensor:
        return -torch.log(t)

    def time_of(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)

    @classmethod
    def named(cls) -> dict[str, GaussianSDE]:
        return {"edm": EDMSDE()}


@dataclass(frozen=True)
class FlowSDE(GaussianSDE):
    r"""The straight path of flow matching and rectified flow, with data at `t = 0` and noise at `t = 1`.

    $$ \alpha = 1 - t, \quad \sigma = t $$

    At `t = 1` there is no data left: the prior is exact, $g$ is infinite, and a noise or score prediction cannot be
    turned into data. Velocity, data, v and EDM predictions are regular there.

    References:
        Lipman et al., Flow Matching, 2023; Liu et al., Flow Straight and Fast, 2023 (time runs the other way there).
    """

    _: KW_ONLY
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        check_order("t_min", self.t_min, "t_max", self.t_max)
        if self.t_max > 1:
            raise ValueError(f"FlowSDE ends at t = 1, got t_max={self.t_max}")

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def half_log_snr(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) - torch.log(t)

    def time_of(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)

    @classmethod
    def named(cls) -> dict[str, GaussianSDE]:
        return {"flow": FlowSDE()}
