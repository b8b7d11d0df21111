"""The check of what a Gaussian SDE is given by, alpha and sigma, and of what follows from them."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.testing._density import Rate, interior, mixture_draws, rate_of, reach, worst
from sde_diffusion.testing._picture import Curve
from sde_diffusion.testing.report import Checklist

RATES = "rates must return (alpha', sigma'), the derivatives by t; leave it out and autograd finds them"


def check_schedule(sheet: Checklist, sde: GaussianSDE) -> None:
    """Adds the rows on what a Gaussian SDE is given by: `alpha`, `sigma`, their rates and inverse."""
    sheet.at_most("alpha, sigma and rates work elementwise on times", 1e-12, partial(_elementwise, sde))
    sheet.at_most(
        "times at which not alpha >= 0, sigma > 0, both finite",
        0,
        partial(_out_of_range, sde),
        note="sigma = 0 belongs to no level: let t_min be where there is some noise",
    )
    sheet.at_most(
        "times at which alpha / sigma does not fall with t",
        0,
        partial(_not_falling, sde),
        note="noise must grow with t: data at t_min, prior at t_max",
    )
    sheet.at_most("half_log_snr is log(alpha / sigma): error", 1e-6, partial(_log_snr_error, sde))
    sheet.at_most("time_of inverts half_log_snr: error in log-SNR", 1e-6, partial(_inverse_error, sde))
    sheet.at_most("rates are the derivatives of alpha: relative error", 1e-5, partial(_rate_error, sde, 0), note=RATES)
    sheet.at_most("rates are the derivatives of sigma: relative error", 1e-5, partial(_rate_error, sde, 1), note=RATES)


def _grid(sde: GaussianSDE) -> Tensor:
    """Returns many times, both ends among them, dense near the data."""
    u = torch.cat([torch.zeros(1), torch.logspace(-6, -2, 200), torch.linspace(0.011, 1, 1000)]).double()
    return (sde.t_min + (sde.t_max - sde.t_min) * u).clamp(sde.t_min, sde.t_max)


def _elementwise(sde: GaussianSDE) -> float:
    t = _grid(sde)[::97]
    worst = 0.0
    for name, f in (("alpha", sde.alpha), ("sigma", sde.sigma), ("rates", lambda v: torch.stack(sde.rates(v)))):
        flat = f(t)
        lead = flat.shape[: flat.ndim - 1]
        if flat.shape[-1:] != t.shape or flat.dtype != torch.float64:
            raise ValueError(
                f"{name} answered {flat.dtype} of shape {tuple(flat.shape[len(lead) :])} to float64 times "
                f"of shape {tuple(t.shape)}"
            )
        column, single = f(t[:, None]), torch.stack([f(v) for v in t], dim=-1)
        if column.shape != (*flat.shape, 1) or single.shape != flat.shape:
            raise ValueError(f"{name} does not keep the shape of times of shape {(len(t), 1)} or ()")
        scale = flat.abs().nan_to_num(posinf=0.0).clamp_min(1e-9)
        for other in (column[..., 0], single):
            worst = max(worst, float(((other - flat).abs() / scale).nan_to_num().max()))
    return worst


def _out_of_range(sde: GaussianSDE) -> int:
    alpha, sigma = sde.alpha(_grid(sde)), sde.sigma(_grid(sde))
    good = (alpha >= 0) & (sigma > 0) & torch.isfinite(alpha) & torch.isfinite(sigma)
    return int((~good).sum())


def _not_falling(sde: GaussianSDE) -> int:
    t = _grid(sde)
    lam = torch.log(sde.alpha(t)) - torch.log(sde.sigma(t))
    return int((~(lam[1:] < lam[:-1])).sum())


def _log_snr_error(sde: GaussianSDE) -> float:
    t = _grid(sde)
    wanted, found = torch.log(sde.alpha(t)) - torch.log(sde.sigma(t)), sde.half_log_snr(t)
    finite = torch.isfinite(wanted)
    return float(((found - wanted).abs() / (1 + wanted.abs()))[finite].max())


def _inverse_error(sde: GaussianSDE) -> float:
    lam = sde.half_log_snr(_grid(sde)[::7])
    lam = lam[torch.isfinite(lam)]
    times = sde.time_of(lam).clamp(sde.t_min, sde.t_max)
    return float(((sde.half_log_snr(times) - lam).abs() / (1 + lam.abs())).max())


def _rate_error(sde: GaussianSDE, which: int) -> float:
    found = []
    for t in interior(sde):
        told = float(sde.rates(torch.tensor(t, dtype=torch.float64))[which])
        found.append(_beyond(told, _rate(sde, which, t)))
    return worst(found)


def _rate(sde: GaussianSDE, which: int, t: float) -> Rate:
    return rate_of((sde.alpha, sde.sigma)[which], torch.tensor(t, dtype=torch.float64), reach(sde, t))


def _beyond(told: float, rate: Rate) -> float:
    """The relative error of a derivative, as far as rounding does not explain it."""
    wanted = float(rate.value)
    gap = abs(told - wanted) - float(rate.doubt)
    return max(gap, 0.0) / max(abs(told) + abs(wanted), 1e-300)


# --- what follows from them


def check_kernel(sheet: Checklist, sde: GaussianSDE) -> None:
    """Adds the rows on what follows from the schedule: drift, diffusion, marginal, posterior."""
    sheet.at_most("drift is alpha'/alpha x: relative error", 1e-5, partial(_drift_error, sde))
    sheet.at_most(
        "g^2 is d(sigma^2)/dt - 2 (alpha'/alpha) sigma^2: relative error",
        1e-5,
        partial(_diffusion_error, sde),
        note="a factor 2 or a missing square root in diffusion or in rates",
    )
    sheet.at_most("marginal and perturb are alpha x0 + sigma eps: error", 1e-6, partial(_marginal_error, sde))
    sheet.at_most("posterior leads from the law at t to the law at s: error", 1e-6, partial(_posterior_error, sde))


def _drift_error(sde: GaussianSDE) -> float:
    x, found = torch.tensor([[1.0], [-2.0], [0.0]], dtype=torch.float64), []
    for t in interior(sde):
        time = torch.tensor(t, dtype=torch.float64)
        alpha, rate = float(sde.alpha(time)), _rate(sde, 0, t)
        drift, wanted = sde.drift(x, time), float(rate.value) / alpha * x
        gap = (drift - wanted).abs() - float(rate.doubt) / alpha * x.abs()
        size = float(drift.abs().max() + wanted.abs().max())
        found.append(float(gap.clamp_min(0.0).max()) / max(size, 1e-300))
    return worst(found)


def _diffusion_error(sde: GaussianSDE) -> float:
    found = []
    for t in interior(sde):
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = float(sde.alpha(time)), float(sde.sigma(time))
        (up, up_doubt), (down, down_doubt) = ([float(v) for v in _rate(sde, k, t)] for k in (1, 0))
        up, up_doubt = 2 * sigma * up, 2 * sigma * up_doubt
        down, down_doubt = 2 * sigma**2 / alpha * down, 2 * sigma**2 / alpha * down_doubt
        g2 = float(torch.as_tensor(sde.diffusion(time)) ** 2)
        if math.isnan(g2):
            raise ValueError(f"diffusion is NaN at t = {t:g}: the square root of a negative number?")
        gap = abs(g2 - up + down) - up_doubt - down_doubt
        found.append(max(gap, 0.0) / max(abs(up) + abs(down) + abs(g2), 1e-300))
    return worst(found)


def _marginal_error(sde: GaussianSDE) -> float:
    t = torch.tensor(interior(sde, 8), dtype=torch.float64)
    x0, eps = mixture_draws(len(t))
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    mean, std = sde.marginal(x0, t)
    pairs = [(mean, alpha * x0), (std, sigma), (sde.perturb(x0, t, eps), alpha * x0 + sigma * eps)]
    return max(float(((a - b).abs() / (b.abs() + 1e-9)).max()) for a, b in pairs)


def _posterior_error(sde: GaussianSDE) -> float:
    """The law of $x_s$ by way of $x_t$, against the law of $x_s$ given $x_0$: mean and variance."""
    times, x0, worst = interior(sde, 8), torch.tensor([[0.7], [-1.3]], dtype=torch.float64), 0.0
    for s, t in pairwise(times):
        a, b = sde.levels([t, s])
        at_mean, std = sde.posterior(a.alpha * x0, x0, t, s)
        beside, _ = sde.posterior(a.alpha * x0 + a.sigma, x0, t, s)
        variance = (beside - at_mean).square() + torch.as_tensor(std).square()
        worst = max(worst, float((at_mean - b.alpha * x0).abs().max()) / b.alpha)
        worst = max(worst, float((variance.sqrt() - b.sigma).abs().max()) / b.sigma)
    return worst


def draw_schedule(sheet: Checklist, sde: GaussianSDE) -> None:
    """Adds the curves of `alpha` and `sigma`, if they can be drawn."""
    try:
        t = torch.linspace(sde.t_min, sde.t_max, 101, dtype=torch.float64)
        for name, f in (("alpha", sde.alpha), ("sigma", sde.sigma)):
            ends = tuple(t.tolist()), tuple(f(t).tolist())
            sheet.curves.append(Curve("schedule", name, *ends, ("t", "scale"), (False, False)))
    except Exception:  # noqa: BLE001 - a schedule that cannot be drawn has failed its rows above
        sheet.curves.clear()
