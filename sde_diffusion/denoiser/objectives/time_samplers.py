r"""Which noise levels to train on: a time sampler maps uniform draws $u$ in `[0, 1)` to times of a process.

The map rises: larger $u$, more noise. Its density $p(t)$ is a choice of what to learn, and multiplies the weight of the
loss; only an `ImportanceSampler` takes it out again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_positive, check_real
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level, Scalar

TimeSampler = Callable[[GaussianSDE, Tensor], Tensor]


def uniform_time(sde: GaussianSDE, u: Tensor) -> Tensor:
    r"""$t$ uniform on `[t_min, t_max]`."""
    return sde.t_min + (sde.t_max - sde.t_min) * u


def uniform_index(sde: GaussianSDE, u: Tensor) -> Tensor:
    """One of the levels of a chain, each as likely as the others.

    Raises:
        TypeError: A process that is no chain.
    """
    if not sde.time_is_index:
        raise TypeError(f"uniform_index draws a level of a chain, such as DiscreteVPSDE, and {sde!r} has none")
    return (u * (sde.t_max + 1)).floor().clamp_max(sde.t_max)


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
        return _at_lam(sde, -(self.mean + self.std * _normal(u)))

    def scaled(self, data_std: float) -> LogNormalSigma:
        r"""The sampler for data of standard deviation $c$: $m + \log c$, since noise counts relative to the data."""
        return replace(self, mean=self.mean + math.log(data_std))


@dataclass(frozen=True)
class LogitNormal:
    r"""$t = t_{min} + (t_{max} - t_{min})\,\mathrm{sigmoid}(m + s\,z)$, $z \sim \mathcal N(0, 1)$: the middle of the
    path more often than its ends.

    Args:
        mean: $m$; above 0 for more noise.
        std: $s$.

    References:
        Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024 (equation 19).
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_real(self.mean, "mean")
        check_positive(self.std, "std")

    def __call__(self, sde: GaussianSDE, u: Tensor) -> Tensor:
        return uniform_time(sde, torch.sigmoid(self.mean + self.std * _normal(u)))


class ImportanceSampler(ABC):
    r"""Times that are drawn more often where the loss varies more, and count the less there: the same loss as with
    uniform times, with less variance.

    A subclass writes the map and the correction.
    """

    @abstractmethod
    def __call__(self, sde: GaussianSDE, u: Tensor) -> Tensor:
        """The times of uniform draws `u`."""

    @abstractmethod
    def correction(self, sde: GaussianSDE, at: Level) -> Scalar:
        r"""$1/[p(t)\,(t_{max} - t_{min})]$, the weight that makes the mean one over uniform times."""


@dataclass(frozen=True)
class LikelihoodImportance(ImportanceSampler):
    r"""Importance sampling for `likelihood_weight`, finite on every process, where $\alpha = 0$ too.

    $$ p(t) \propto -\lambda'\,\frac{c^2e^{2\lambda}}{1 + c^2e^{2\lambda}} $$

    which is that weight times the square error $c^2/(1 + c^2e^{2\lambda})$ that is left for data $\mathcal N(0, c^2)$.
    Where the data outweigh the noise it is the $g^2/\sigma^2$ of the paper, uniform in $\lambda$, and falls off where
    nothing of the data is left. So `DenoisingScoreMatching(LikelihoodImportance(), likelihood_weight)` estimates the
    same number as with `uniform_time`; on Gaussian data its times add no variance at all.

    Args:
        data_std: $c$, the standard deviation of the data.

    References:
        Song et al., Maximum Likelihood Training of Score-Based Diffusion Models, 2021 (Section 4.4).
    """

    data_std: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.data_std, "data_std")

    def _span(self, sde: GaussianSDE) -> tuple[float, float]:
        r"""$\tfrac12\log(1 + c^2e^{2\lambda})$, minus the integral of the density, at `t_min` and `t_max`."""
        ends = torch.tensor(sde.ends(), dtype=torch.float64, device="cpu")
        low, high = (torch.nn.functional.softplus(2 * (ends + math.log(self.data_std))) / 2).tolist()
        return high, low

    def __call__(self, sde: GaussianSDE, u: Tensor) -> Tensor:
        high, low = self._span(sde)
        y = high + (low - high) * u
        return _at_lam(sde, torch.log(torch.expm1(2 * y)) / 2 - math.log(self.data_std))

    def correction(self, sde: GaussianSDE, at: Level) -> Scalar:
        high, low = self._span(sde)
        turn = at.alpha * at.dsigma - at.sigma * at.dalpha  # -lambda' alpha sigma
        c2 = self.data_std**2
        density = turn * c2 * at.alpha / (at.sigma * (at.sigma**2 + c2 * at.alpha**2))
        return (high - low) / (sde.t_max - sde.t_min) / density


def uniform_log_snr(sde: GaussianSDE, u: Tensor) -> Tensor:
    r"""$\lambda$ uniform over the range of the SDE: what the noise weight needs to count as the likelihood weight.

    `noise_weight` with these times is `likelihood_weight` with uniform ones, up to a factor.

    Raises:
        ValueError: The range is infinite.
    """
    low, high = sde.ends()
    if low == -float("inf"):
        raise ValueError(f"log-SNR is infinite at t_max of {sde!r}: choose t_max a little smaller")
    return _at_lam(sde, high + (low - high) * u)


NAMES: dict[str, TimeSampler] = {
    "uniform": uniform_time,
    "log-snr": uniform_log_snr,
    "log-normal": LogNormalSigma(),
    "logit-normal": LogitNormal(),
    "likelihood": LikelihoodImportance(),
}
"""Every time sampler that goes with any process by name, as an instance: the only list of them."""


def _normal(u: Tensor) -> Tensor:
    """Standard normal numbers of uniform ones; the ends, which are infinite, are kept off."""
    return torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))


def _at_lam(sde: GaussianSDE, lam: Tensor) -> Tensor:
    return sde.time_of(lam.clamp(*sde.ends())).clamp(sde.t_min, sde.t_max)


def stratified(n: int, generator: torch.Generator | None = None) -> Tensor:
    r"""`n` draws $u_i = \mathrm{mod}(u_0 + i/n, 1)$, each uniform on `[0, 1)`, one in every stratum, in random order.

    A low-discrepancy batch, at no cost: where the times dominate the variance of the loss, as on images, its noise
    falls to a third or a half; on small two-dimensional data by little.

    A share of a batch, of one process or one part of an accumulated step, is a slice of the draws for the whole batch:
    every process draws them all from the same generator, and the shares together hit every stratum once.

    References:
        Kingma et al., Variational Diffusion Models, 2021 (Appendix I.1).
    """
    check_count(n, "n")
    u0 = torch.rand((), dtype=torch.float64, generator=generator, device="cpu")
    return (u0 + torch.randperm(n, generator=generator, device="cpu").to(torch.float64) / n) % 1.0
