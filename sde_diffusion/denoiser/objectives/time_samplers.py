r"""Which noise levels to train on: a time sampler maps uniform draws $u$ in `[0, 1)` to times of a process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_positive, check_real
from sde_diffusion.sde.base import GaussianSDE

TimeSampler = Callable[[GaussianSDE, Tensor], Tensor]


def uniform_time(sde: GaussianSDE, u: Tensor) -> Tensor:
    r"""$t$ uniform on `[t_min, t_max]`."""
    return sde.t_min + (sde.t_max - sde.t_min) * u


@dataclass(frozen=True)
class LogNormalSigma:
    r"""$\log(\sigma/\alpha) \sim \mathcal N(m, s^2)$, clipped to the range of the SDE (Karras et al., 2022).

    Args:
        mean: $m$; the defaults suit data of standard deviation about 0.5 to 1.
        std: $s$.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        check_real(self.mean, "mean")
        check_positive(self.std, "std")

    def __call__(self, sde: GaussianSDE, u: Tensor) -> Tensor:
        log_ratio = self.mean + self.std * torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
        return _at_lam(sde, -log_ratio)

    def scaled(self, data_std: float) -> LogNormalSigma:
        r"""The sampler for data of standard deviation $c$: $m + \log c$, since noise counts relative to the data."""
        return replace(self, mean=self.mean + math.log(data_std))


def uniform_log_snr(sde: GaussianSDE, u: Tensor) -> Tensor:
    r"""$\lambda$ uniform over the range of the SDE: importance sampling for the likelihood weight on every Gaussian
    SDE.

    Raises:
        ValueError: The range is infinite.
    """
    low, high = sde.ends()
    if low == -float("inf"):
        raise ValueError(f"log-SNR is infinite at t_max of {sde!r}: choose t_max a little smaller")
    return _at_lam(sde, high + (low - high) * u)


def _at_lam(sde: GaussianSDE, lam: Tensor) -> Tensor:
    return sde.time_of(lam.clamp(*sde.ends())).clamp(sde.t_min, sde.t_max)


def stratified(n: int, generator: torch.Generator | None = None) -> Tensor:
    r"""`n` draws $u_i = \mathrm{mod}(u_0 + i/n, 1)$, each uniform on `[0, 1)`, one in every stratum, in random order.

    A low-discrepancy batch, at no cost: where the times dominate the variance of the loss, as on images, its noise
    falls to a third or a half; on small two-dimensional data by little.

    References:
        Kingma et al., Variational Diffusion Models, 2021 (Appendix I.1).
    """
    check_count(n, "n")
    u0 = torch.rand((), dtype=torch.float64, generator=generator, device="cpu")
    return (u0 + torch.randperm(n, generator=generator, device="cpu").to(torch.float64) / n) % 1.0
