"""The chain of DDPM, whose levels are a table, as a process in continuous time: `t` is the index, counted from 0."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion._checks import check_count
from sde_diffusion.sde.base import GaussianSDE


class DiscreteVPSDE(GaussianSDE):
    r"""The chain of DDPM as a continuous process: `t` is the 0-based index the network was trained on.

    $$ \bar\alpha_t = \prod_{i \le t}(1 - \beta_i), \quad \alpha = \sqrt{\bar\alpha_t}, \quad \sigma = \sqrt{1 -
      \bar\alpha_t} $$

    at integers; between them $\lambda$ is interpolated linearly, so that `t = 12.5` lies half way in log-SNR. Index 0
    is the least noisy trained level; from there the final jump takes the posterior mean, as DDPM's last step does.

    The last beta may be 1, as zero-terminal-SNR schedules have it: no signal is left there, $\alpha = 0$. Up to it the
    angle $\arctan(\alpha/\sigma)$ is interpolated, since $\lambda$ is infinite at the end. A network that answers the
    noise or the score tells nothing at that level, and is refused there.

    Args:
        betas: Forward variances $\beta_0, \dots, \beta_{T-1}$, each in `(0, 1)`; the last may be 1.

    Raises:
        ValueError: Fewer than two betas, or one outside that range.

    References:
        Ho et al., Denoising Diffusion Probabilistic Models, 2020; Lin et al., Common Diffusion Noise Schedules and
        Sample Steps are Flawed, 2024 (zero terminal SNR).
    """

    time_is_index = True

    def __init__(self, betas: Tensor | Sequence[float]) -> None:
        table = torch.as_tensor(betas, dtype=torch.float64, device="cpu").flatten()
        bad = ~((table > 0) & (table < 1))
        bad[-1:] &= table[-1:] != 1
        if len(table) < 2 or bool(bad.any()):
            what = f"{len(table)} of them"
            if bool(bad.any()):
                i = int(bad.nonzero()[0, 0])
                what = f"betas[{i}] = {table[i]:g}"
                what += ": only the last may be 1, where no signal is left" if table[i] == 1 else ""
            raise ValueError(f"wanted two or more betas in (0, 1), got {what}")
        self.betas = table.clone()
        log_alpha_bar = torch.log1p(-table).cumsum(0)
        self._lam = 0.5 * (log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar)))
        self._last = float(torch.atan(torch.exp(self._lam[-2]))) if table[-1] == 1 else None  # angle above no signal
        self._hash, self._repr = hash(tuple(self._lam.tolist())), "DiscreteVPSDE(betas)"
        self.t_min, self.t_max = 0.0, float(len(table) - 1)

    @classmethod
    def linear(
        cls, n: int = 1000, beta_start: float | None = None, beta_end: float | None = None, *, scaled: bool = True
    ) -> DiscreteVPSDE:
        """The linear schedule of DDPM: betas from 1e-4 to 0.02 for a thousand levels.

        For another number they are multiplied by 1000 / n, so that a chain of any length ends with the same signal.

        Args:
            n: Levels, above 20 if the betas are scaled.
            beta_start: The first beta, taken as it is.
            beta_end: The last, taken as it is.
            scaled: False: 1e-4 to 0.02 whatever the length. Fewer than a thousand then leave signal at the end, which
                the prior does not have: samples come out too close to 0, unless from a prior `Matched(mean, variance)`.

        Raises:
            ValueError: So few levels that a scaled beta reaches 1.

        References:
            Ho et al., 2020; Nichol and Dhariwal, 2021 (the scaling, in their code).
        """
        factor = 1000 / check_count(n, "n") if scaled else 1.0
        start = 1e-4 * factor if beta_start is None else float(beta_start)
        end = 0.02 * factor if beta_end is None else float(beta_end)
        if beta_end is None and end >= 1:
            raise ValueError(
                f"linear({n}) scales the last beta, 0.02 for a thousand levels, to {end:g}, and it must stay below 1: "
                f"take more than 20 levels, cosine({n}), or the betas as they are, linear({n}, scaled=False)"
            )
        new = cls(torch.linspace(start, end, n, dtype=torch.float64, device="cpu"))
        new._repr = f"DiscreteVPSDE.linear({n}, {start!r}, {end!r})"
        return new

    @classmethod
    def cosine(cls, n: int = 1000, offset: float = 0.008) -> DiscreteVPSDE:
        r"""The cosine schedule: $\bar\alpha_t \propto \cos^2\frac{(t + 1)/n + s}{1 + s}\frac\pi2$, betas at most 0.999.

        Args:
            n: Levels.
            offset: $s$.

        References:
            Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021 (equation 17).
        """
        u = torch.linspace(0.0, 1.0, check_count(n, "n") + 1, dtype=torch.float64, device="cpu")
        bar = torch.cos((u + offset) / (1 + offset) * (math.pi / 2)).square()
        new = cls((1 - bar[1:] / bar[:-1]).clamp_max(0.999))
        new._repr = f"DiscreteVPSDE.cosine({n}, {offset!r})"
        return new

    @property
    def config(self) -> dict[str, list[float]]:
        """The constructor's arguments, for a checkpoint."""
        return {"betas": self.betas.tolist()}

    def __repr__(self) -> str:
        return self._repr

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DiscreteVPSDE) and torch.equal(self._lam, other._lam)

    def __hash__(self) -> int:
        return self._hash

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Left end of the segment that holds `t` (the lower one at a knot) and the change of half log-SNR along it."""
        lam = self._lam.to(t.device)
        i = (torch.ceil(t).long() - 1).clamp(0, len(lam) - 2)
        return i, lam[i + 1] - lam[i]

    def half_log_snr(self, t: Tensor) -> Tensor:
        i, slope = self._segment(t)
        lam = self._lam.to(t.device)[i] + (t - i) * slope
        return (
            lam if self._last is None else torch.where(self._to_silence(i), torch.log(torch.tan(self._angle(t))), lam)
        )

    def _to_silence(self, i: Tensor) -> Tensor:
        """Mask of the segments that end at no signal."""
        return i == len(self._lam) - 2

    def _angle(self, t: Tensor) -> Tensor:
        """The angle whose tangent is alpha / sigma on the segment that ends at no signal."""
        return (self.t_max - t) * (self._last or 0.0)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.sigmoid(2 * self.half_log_snr(t)))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.sigmoid(-2 * self.half_log_snr(t)))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        i, slope = self._segment(t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        dalpha, dsigma = slope * alpha * sigma * sigma, -slope * sigma * alpha * alpha
        if self._last is None:
            return dalpha, dsigma
        end = self._to_silence(i)
        return torch.where(end, -self._last * sigma, dalpha), torch.where(end, self._last * alpha, dsigma)

    def time_of(self, lam: Tensor) -> Tensor:
        table = self._lam.to(lam.device)
        slack = 1e-9 * float(table[torch.isfinite(table)].abs().max())
        if bool(((lam > table[0] + slack) | (lam < table[-1] - slack)).any()):
            raise ValueError(
                f"half log-SNR {float(lam.min()):.6g} to {float(lam.max()):.6g} leaves the chain of {len(table)} "
                f"levels, which spans {float(table[-1]):.6g} to {float(table[0]):.6g}: its network knows no index there"
            )
        i = (torch.searchsorted(-table, -lam) - 1).clamp(0, len(table) - 2)
        t = i + (lam - table[i]) / (table[i + 1] - table[i])
        if self._last is None:
            return t
        return torch.where(self._to_silence(i), self.t_max - torch.atan(torch.exp(lam)) / self._last, t)

    @classmethod
    def examples(cls) -> tuple[GaussianSDE, ...]:
        return (DiscreteVPSDE.linear(),)

    @classmethod
    def named(cls) -> dict[str, GaussianSDE]:
        return {"ddpm": DiscreteVPSDE.linear()}
