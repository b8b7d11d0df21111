"""The check of a forward process."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from sde_diffusion._checks import check_count
from sde_diffusion._tensors import rows
from sde_diffusion.sde.base import SDE, GaussianSDE
from sde_diffusion.testing import _density
from sde_diffusion.testing._density import Field, interior
from sde_diffusion.testing._picture import Curve
from sde_diffusion.testing._schedule import check_kernel, check_schedule, draw_schedule
from sde_diffusion.testing.report import Checklist, Report, described


def check_sde(
    sde: SDE, *, log_prob: Field | None = None, score: Field | None = None, shape: tuple[int, ...] = (2,)
) -> Report:
    r"""Checks a forward process: its schedule, drift, diffusion, density and prior. About a second.

    A `GaussianSDE` is held to the Fokker-Planck equation of a mixture, whose density under it is known; so are drift
    and diffusion that it overrides. For a general `SDE` only shapes and the prior can be checked, unless its density or
    its score is given for some data.

    Args:
        sde: The process.
        log_prob: The log-density $\log p_t(x)$ of a general SDE: called with `x` of shape `(B, *)` and `t` of shape
            `(B,)`, it answers `(B,)`, differentiable in `x`.
        score: The score $\nabla\log p_t(x)$ of a general SDE: called in the same way, it answers `(B, *)`.
        shape: Event shape of the states, for a general SDE or a prior that has one. Small: the Fokker-Planck equation
            costs a backward pass per coordinate.

    Raises:
        TypeError: Not an instance of `SDE`.

    Example:
        >>> print(check_sde(VPSDE()))
    """
    if not isinstance(sde, SDE):
        raise TypeError(f"check_sde takes an SDE such as VPSDE(), got {described(sde)}")
    for n in shape:
        check_count(n, "each size of shape")
    sheet = Checklist(f"check_sde({sde!r})")
    sheet.holds("t_min and t_max are finite, t_min < t_max", partial(_range, sde))
    if sheet.entries[-1].passed:
        if isinstance(sde, GaussianSDE):
            check_schedule(sheet, sde)
            check_kernel(sheet, sde)
            draw_schedule(sheet, sde)
        _check_drift(sheet, sde, shape)
        _check_density(sheet, sde, log_prob, score, shape)
        _check_prior(sheet, sde, shape)
    return sheet.report()


def _range(sde: SDE) -> str:
    low, high = float(sde.t_min), float(sde.t_max)
    return "" if -math.inf < low < high < math.inf else f"t_min = {low:g}, t_max = {high:g}"


# --- any SDE


def _check_drift(sheet: Checklist, sde: SDE, shape: tuple[int, ...]) -> None:
    for dtype in (torch.float64, torch.float32):
        sheet.holds(
            f"drift keeps the shape and {dtype} of a state, and is finite", partial(_drift_form, sde, shape, dtype)
        )
    sheet.holds("drift of a row does not depend on the other rows", partial(_drift_rows, sde, shape))
    sheet.holds("diffusion is finite, >= 0, and broadcasts against a state", partial(_diffusion_form, sde, shape))


def _states(shape: tuple[int, ...], n: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def _drift_form(sde: SDE, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    x = _states(shape, dtype=dtype)
    for t in interior(sde, 8):
        f = sde.drift(x, torch.tensor(t, dtype=torch.float64))
        if f.shape != x.shape or f.dtype != dtype:
            return f"answered {f.dtype} of shape {tuple(f.shape)} to {dtype} of shape {tuple(x.shape)}"
        if not bool(torch.isfinite(f).all()):
            return f"not finite at t = {t:g}"
    return ""


def _drift_rows(sde: SDE, shape: tuple[int, ...]) -> str:
    x, t = _states(shape), torch.tensor(interior(sde, 4)[-2], dtype=torch.float64)
    whole, alone = sde.drift(x, t), torch.cat([sde.drift(row[None], t) for row in x])
    return "" if torch.allclose(whole, alone, rtol=1e-9, atol=1e-12) else "a row alone differs from the row in a batch"


def _diffusion_form(sde: SDE, shape: tuple[int, ...]) -> str:
    x = _states(shape)
    for t in interior(sde, 8):
        g = torch.as_tensor(sde.diffusion(torch.tensor(t, dtype=torch.float64)))
        if torch.broadcast_shapes(g.shape, x.shape) != x.shape:
            return f"answered shape {tuple(g.shape)}, which does not broadcast against {tuple(x.shape)}"
        if not bool((torch.isfinite(g) & (g >= 0)).all()):
            return f"{g} at t = {t:g}"
    return ""


def _check_density(
    sheet: Checklist, sde: SDE, log_prob: Field | None, score: Field | None, shape: tuple[int, ...]
) -> None:
    claim, note = "Fokker-Planck equation: relative residual", "drift or diffusion do not lead to this density"
    if isinstance(sde, GaussianSDE):
        claim += " (mixture)"
    if log_prob is not None or isinstance(sde, GaussianSDE):
        sheet.at_most(claim, 1e-5, partial(_density_residual, sheet, sde, log_prob, shape), note=note)
    elif score is not None:
        sheet.at_most(f"{claim} (score)", 1e-5, partial(_score_residual, sheet, sde, score, shape), note=note)
    if log_prob is not None and score is not None:
        sheet.at_most(
            "score is the gradient of log_prob: error", 1e-6, partial(_score_error, sde, log_prob, score, shape)
        )
    if log_prob is not None:
        sheet.at_most(
            "prior is the law at t_max: difference in nats per dimension",
            0.01,
            partial(_prior_gap, sde, log_prob, shape),
            required=False,
            note="the prior is not the end of the process: samples inherit the difference",
        )


def _density_residual(sheet: Checklist, sde: SDE, log_prob: Field | None, shape: tuple[int, ...]) -> float:
    x0, eps = _density.mixture_draws(64)
    found = []
    times = interior(sde, 16)
    for t in times:
        if log_prob is not None:
            x = sde.prior(_states(shape, 64)).to(torch.float64)
            found.append(_density.residual_of_density(sde, log_prob, x, t))
        elif isinstance(sde, GaussianSDE):
            found.append(_density.residual_of_mixture(sde, sde.perturb(x0, t, eps), t))
    sheet.curves.append(_residual_curve(times, found))
    return _density.worst(found)


def _score_residual(sheet: Checklist, sde: SDE, score: Field, shape: tuple[int, ...]) -> float:
    times = interior(sde, 16)
    found = [_density.residual_of_score(sde, score, sde.prior(_states(shape, 64)), t) for t in times]
    sheet.curves.append(_residual_curve(times, found))
    return _density.worst(found)


def _residual_curve(times: list[float], found: list[float]) -> Curve:
    return Curve("Fokker-Planck residual", "relative", tuple(times), tuple(found), ("t", "residual"))


def _score_error(sde: SDE, log_prob: Field, score: Field, shape: tuple[int, ...]) -> float:
    worst = 0.0
    for t in interior(sde, 8):
        x = sde.prior(_states(shape)).detach().requires_grad_()
        time = torch.full((len(x),), t, dtype=x.dtype)
        (wanted,) = torch.autograd.grad(log_prob(x, time).sum(), x)
        found = score(x, time).detach()
        worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-9)))
    return worst


def _prior_gap(sde: SDE, log_prob: Field, shape: tuple[int, ...]) -> float:
    x = sde.prior(_states(shape, 2048))
    difference = sde.prior_log_prob(x) - log_prob(x, torch.full((len(x),), sde.t_max, dtype=x.dtype))
    return abs(float(difference.mean())) / rows(x).shape[1]


# --- the prior


def _check_prior(sheet: Checklist, sde: SDE, shape: tuple[int, ...]) -> None:
    sheet.holds("prior keeps shape and dtype; prior_log_prob is (B,), finite", partial(_prior_form, sde, shape))
    try:
        gap, error = _density.imbalance_of_prior(sde, shape)
    except Exception:  # noqa: BLE001 - told by the row before, or told below
        gap, error = math.nan, 0.0
    sheet.at_most(
        "prior_log_prob is the density of the draws of prior: imbalance",
        0.01 + 4 * error,
        lambda: abs(gap),
        note="the density is not normalised, or the draws are of another scale or place",
    )
    if isinstance(sde, GaussianSDE):
        sheet.at_most(
            "prior against the law at t_max of unit data: nats per dimension",
            0.01,
            partial(_mismatch, sde),
            required=False,
            note="raise t_max or the final noise, or match the prior to your data: Matched(mean, variance)",
        )


def _prior_form(sde: SDE, shape: tuple[int, ...]) -> str:
    for dtype in (torch.float64, torch.float32):
        z = _states(shape, dtype=dtype)
        x = sde.prior(z)
        if x.shape != z.shape or x.dtype != dtype:
            return f"prior answered {x.dtype} of shape {tuple(x.shape)} to {dtype} of shape {tuple(z.shape)}"
        log_p = sde.prior_log_prob(x)
        if log_p.shape != (len(x),) or not bool(torch.isfinite(log_p).all()):
            return f"prior_log_prob answered shape {tuple(log_p.shape)} for {len(x)} states, or is not finite"
    return ""


def _mismatch(sde: GaussianSDE) -> float:
    r"""Returns $\tfrac12(r - 1 - \log r)$ with $r = (\alpha^2 + \sigma^2)/v$, $v$ the variance of the prior."""
    (at,) = sde.levels([sde.t_max])
    ends = sde.prior(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    r = (at.alpha**2 + at.sigma**2) / float(ends[1] - ends[0]) ** 2
    return 0.5 * (r - 1 - math.log(r))
