r"""Time grids: free functions from an SDE and a number of steps to the `steps + 1` times of a solve, from noise to
data.

A grid may be laid out in any coordinate; it is handed over as times. Any strictly monotone sequence of times will do as
well. To change an option, `functools.partial(karras, rho=5.0)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_flag, check_positive, check_real
from sde_diffusion.sde.angle import MUCH_NOISE, balance

if TYPE_CHECKING:
    from sde_diffusion.sde.base import SDE, GaussianSDE

Grid = Callable[[Any, int], Tensor]
TABULATED = 20_001
"""Nodes of the table that `balanced` is read from."""


def uniform(sde: SDE, steps: int) -> Tensor:
    r"""Uniform in `t`: $t_i = t_{max} + \tfrac iN (t_{min} - t_{max})$. Any SDE."""
    return torch.linspace(sde.t_max, sde.t_min, check_count(steps, "steps") + 1, dtype=torch.float64, device="cpu")


def quadratic(sde: SDE, steps: int) -> Tensor:
    r"""Uniform in $\sqrt{t - t_{min}}$: dense near the data. Any SDE.

    References:
        Song et al., Denoising Diffusion Implicit Models, 2021 (the quadratic subsequence).
    """
    u = torch.linspace(1.0, 0.0, check_count(steps, "steps") + 1, dtype=torch.float64, device="cpu")
    times = sde.t_min + (sde.t_max - sde.t_min) * u * u
    times[0] = sde.t_max
    return times


def karras(sde: SDE, steps: int, rho: float = 7.0) -> Tensor:
    r"""$S_i = \big(S_{max}^{1/\rho} + \tfrac iN(S_{min}^{1/\rho} - S_{max}^{1/\rho})\big)^\rho$ in $S = \sigma/\alpha$.

    Args:
        sde: A Gaussian SDE that keeps some data at `t_max`.
        steps: $N$; the paper counts the final jump as a step, so its $N$ is one more.
        rho: $\rho$.

    Raises:
        ValueError: $S$ is infinite at `t_max`.

    References:
        Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022 (equation 5).
    """
    check_positive(rho, "rho")
    high, low = _ends(sde, "karras")
    a, b = math.exp(-high / rho), math.exp(-low / rho)
    u = torch.linspace(0.0, 1.0, check_count(steps, "steps") + 1, dtype=torch.float64, device="cpu")
    return _at(sde, -rho * torch.log(b + u * (a - b)))


def log_snr(sde: SDE, steps: int, most: float = math.inf) -> Tensor:
    r"""Uniform in $\lambda = \log(\alpha/\sigma)$: the grid of the DPM-Solver family.

    Args:
        sde: A Gaussian SDE.
        steps: $N$.
        most: The noise level $S = \sigma/\alpha$ that the first step goes to at once, where `t_max` has more; infinite
            for all steps alike.

    Raises:
        ValueError: $\lambda$ is infinite at `t_max` and `most` is, too; or `most` is not above the noise of `t_min`.

    References:
        Lu et al., DPM-Solver, 2022 (Appendix D.4).
    """
    n = check_count(steps, "steps")
    low, high = _gaussian(sde, "log_snr").ends()
    if check_real(most, "most") == math.inf or high == math.inf:
        high, low = _ends(sde, "log_snr")
    elif not -high < math.log(check_positive(most, "most")):
        raise ValueError(f"most must be above the noise level of t_min, {math.exp(-high):.4g} here, got {most!r}")
    elif low < -math.log(most):  # once for `t_max`
        lam = torch.linspace(-math.log(most), high, n, dtype=torch.float64, device="cpu")
        return _at(sde, torch.cat([lam[:1], lam]))
    return _at(sde, torch.linspace(low, high, n + 1, dtype=torch.float64, device="cpu"))


def angle(sde: SDE, steps: int, power: float = 1.5, data_std: float = 1.0) -> Tensor:
    r"""$u_i = u_{min} + (u_{max} - u_{min})(1 - \tfrac iN)^p$ in the angle $u = \arctan(S/c)$: finite at both ends.

    Dense where the noise is about as large as the data and below, sparse at both ends of the noise range.

    Args:
        sde: Any Gaussian SDE.
        steps: $N$.
        power: $p$.
        data_std: $c$, the scale about which the grid is dense; the default suits data of unit variance.
    """
    check_positive(power, "power")
    check_positive(data_std, "data_std")
    ends = torch.tensor(_gaussian(sde, "angle").ends(), dtype=torch.float64, device="cpu")
    top, bottom = torch.atan(torch.exp(-ends) / data_std).tolist()
    u = torch.linspace(1.0, 0.0, check_count(steps, "steps") + 1, dtype=torch.float64, device="cpu")
    return _at(sde, -torch.log(data_std * torch.tan(bottom + (top - bottom) * u**power)))


def balanced(
    sde: SDE, steps: int, rate: float = 0.05, power: float = 2.0, data_std: float = 1.0, *, closed: bool = False
) -> Tensor:
    r"""Uniform in `angle.balance`, $z = (2u/\pi)^{1/p} - r\log\cos u$ of the angle $u = \arctan(S/c)$, to zero noise.

    $$ z_i = z_{max}\big(1 - \tfrac i{N + 1}\big), \quad i = 0, \dots, N $$

    so that the last time lies one step before zero noise, which `finish` of a solver that `reaches_zero` then takes: no
    evaluation is spent where there is little noise. If `t_min` comes before, and where the grid is closed, it ends at
    `t_min`, $z_i = z_{max} + \tfrac iN(z_{min} - z_{max})$.

    Dense below the scale of the data; above it, where the angle hardly moves and a network still does, $r$ keeps some
    times, up to noise $e^6$ times as large as the data.

    Args:
        sde: Any Gaussian SDE.
        steps: $N$.
        rate: $r$, at least 0.
        power: $p$.
        data_std: $c$, the scale of the data.
        closed: Whether to end at `t_min` in any case: for a solver that ends with the posterior mean, or to encode.
    """
    check_positive(power, "power")
    check_positive(data_std, "data_std")
    check_flag(closed, "closed")
    if not 0 <= check_real(rate, "rate") < math.inf:
        raise ValueError(f"rate must be at least 0 and finite, got {rate!r}")
    n = check_count(steps, "steps")
    most, least = (-lam - math.log(data_std) for lam in _gaussian(sde, "balanced").ends())
    log_x = np.linspace(least, min(most, max(MUCH_NOISE, least + MUCH_NOISE)), TABULATED)  # narrow data have much
    z = balance(np.arctan(np.exp(log_x)), rate, power)
    end = z[0] if closed else max(z[0], z[-1] / (n + 1))
    found = np.interp(np.linspace(z[-1], end, n + 1), z, log_x)
    times = _gaussian(sde, "balanced").time_of(torch.from_numpy(-found - math.log(data_std)))
    times[0] = sde.t_max
    if end == z[0]:
        times[-1] = sde.t_min
    return times


def cosine(sde: SDE, steps: int) -> Tensor:
    r"""Uniform in $u = \arctan S$, the noise levels of the cosine schedule: $\alpha = \cos u$ and $\sigma = \sin u$.

    On `CosineSDE` it is `uniform`; elsewhere it is what a chain with the cosine schedule would visit. Any Gaussian SDE.

    References:
        Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021 (equation 17, without offset).
    """
    return angle(sde, steps, power=1.0)


def leading(sde: SDE, steps: int, offset: int = 0) -> Tensor:
    r"""Every $\lfloor T/n \rfloor$-th index of a discrete chain, down to `offset`, with $n$ = `steps + 1` levels.

    Diffusers' `"leading"` with $n$ inference steps, and the linear subsequence of DDIM where $n$ divides $T$. It does
    not start at the last level.

    Args:
        sde: A discrete chain of $T$ levels.
        steps: $n - 1$: the final jump is the last of $n$ evaluations, so that `SDESampler(..., nfe=n)` visits $n$.
        offset: Diffusers' `steps_offset`: 0, or 1 as for Stable Diffusion.

    Raises:
        ValueError: An offset that leaves the chain.

    References:
        Song et al., Denoising Diffusion Implicit Models, 2021 (the linear subsequence).
    """
    levels, n = _levels_of(sde, steps, "leading")
    room = levels - 1 - levels // n * (n - 1)
    if not (float(offset).is_integer() and 0 <= offset <= room):
        raise ValueError(f"offset must be an integer in [0, {room}] for {n} of {levels} levels, got {offset!r}")
    return int(offset) + (levels // n) * torch.arange(n - 1, -1, -1, dtype=torch.float64, device="cpu")


def trailing(sde: SDE, steps: int) -> Tensor:
    r"""Indices $\mathrm{round}(T - iT/n) - 1$ of a discrete chain, from its last level, with $n$ = `steps + 1` levels.

    Diffusers' `"trailing"` with $n$ inference steps; $n$ as in `leading`.

    References:
        Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed, 2024 (Table 2).
    """
    levels, n = _levels_of(sde, steps, "trailing")
    gap = (levels - levels / n) - levels  # as arange has it, so that halves are rounded alike
    return torch.tensor([round(levels + i * gap) - 1 for i in range(n)], dtype=torch.float64, device="cpu")


def linspace(sde: SDE, steps: int) -> Tensor:
    r"""$n$ = `steps + 1` indices of a discrete chain, evenly from its last level to 0, rounded.

    Diffusers' `"linspace"` with $n$ inference steps; $n$ as in `leading`.

    References:
        Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed, 2024 (Table 2).
    """
    levels, n = _levels_of(sde, steps, "linspace")
    gap = (levels - 1) / (n - 1)
    return torch.tensor(
        [levels - 1.0, *(round(i * gap) for i in range(n - 2, -1, -1))], dtype=torch.float64, device="cpu"
    )


def integers(sde: SDE, steps: int | None = None) -> Tensor:
    """Every index of a discrete chain, from the last level to 0: the grid of DDPM; `steps`, if given, must agree."""
    levels, n = _levels_of(sde, steps if steps is not None else int(sde.t_max), "integers")
    if n != levels:
        raise ValueError(
            f"integers visits all {levels} levels in {levels - 1} steps, got steps={steps}: use leading or trailing"
        )
    return torch.arange(levels - 1, -1, -1, dtype=torch.float64, device="cpu")


def _gaussian(sde: SDE, name: str) -> GaussianSDE:
    if not hasattr(sde, "half_log_snr"):
        raise TypeError(
            f"grids.{name} needs a GaussianSDE; {type(sde).__name__} is a general SDE. Use uniform or quadratic"
        )
    return cast("GaussianSDE", sde)


def _ends(sde: SDE, name: str) -> tuple[float, float]:
    """Half log-SNR at `t_min` and at `t_max`, both finite."""
    low, high = _gaussian(sde, name).ends()
    if not (math.isfinite(high) and math.isfinite(low)):
        raise ValueError(
            f"grids.{name} needs a finite log-SNR at both ends; {sde!r} spans {low:g} to {high:g}: "
            "choose t_max a little smaller, or use uniform or angle"
        )
    return high, low


def _at(sde: SDE, lam: Tensor) -> Tensor:
    """The times of given half log-SNRs, with both ends exact."""
    times = _gaussian(sde, "").time_of(lam)
    times[0], times[-1] = sde.t_max, sde.t_min
    return times


def _levels_of(sde: SDE, steps: int, name: str) -> tuple[int, int]:
    if not sde.time_is_index:
        raise TypeError(
            f"grids.{name} picks indices of a discrete chain; {sde!r} is continuous. Use uniform, angle or log_snr"
        )
    levels, n = int(sde.t_max) + 1, check_count(steps, "steps") + 1
    if n > levels:
        raise ValueError(f"{steps} steps visit {n} levels, but the chain has {levels}: at most {levels - 1} steps")
    return levels, n
