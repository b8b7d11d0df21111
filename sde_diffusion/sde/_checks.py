"""What every process is held to: schedules as functions of a number or a tensor, and the mistakes of one's own class.

`elementwise` goes around each schedule that a subclass of `GaussianSDE` writes, so that none has to care for numbers,
constants or integers; `check_range_of` and `check_schedule` look a process over once, before it is used.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import WIDE, check_real, is_real
from sde_diffusion.sde.times import as_times

SCHEDULES = ("alpha", "sigma", "rates", "half_log_snr", "time_of")
POINTS = 65  # at which a schedule is looked over


def elementwise(method: Callable[..., Any], called: str = "") -> Callable[..., Any]:
    """A schedule that takes a number for a tensor, and whose answer has the shape of what it was asked.

    A number becomes a float64 tensor of shape `()`. An answer that is a number, or one value for all times, is spread
    over them; whole numbers become floats.
    """
    name, called = list(inspect.signature(method).parameters)[1], called or method.__name__
    pair = called == "rates"

    @wraps(method)
    def asked(self: Any, t: Any = None, **named: Any) -> Any:
        if named:
            t = named.pop(name, t)
        if not isinstance(t, Tensor) or t.dtype not in WIDE:
            t = as_times(t, name)
        out = method(self, t, **named)
        if pair:
            if not isinstance(out, tuple) or len(out) != 2:
                raise TypeError(f"{type(self).__name__}.rates answers the pair (alpha', sigma'), got {out!r}")
            one, two = out
            if _fits(one, t) and _fits(two, t):
                return out
            return _fitted(one, t, self, "rates"), _fitted(two, t, self, "rates")
        return out if _fits(out, t) else _fitted(out, t, self, called)

    return asked


def _fits(out: object, t: Tensor) -> bool:
    return isinstance(out, Tensor) and out.dtype is t.dtype and out.shape == t.shape


def _fitted(out: object, t: Tensor, sde: object, name: str) -> Tensor:
    """An answer as a tensor of floats of the shape of `t`."""
    if isinstance(out, Tensor) and out.shape == t.shape and out.dtype in WIDE:
        return out
    if is_real(out):
        return torch.full_like(t, float(out))
    who = f"{type(sde).__name__}.{name}"
    if not isinstance(out, Tensor):
        raise TypeError(f"{who} answered {type(out).__name__}, wanted a tensor of the shape of t, or a number")
    if out.dtype not in WIDE:
        if out.is_floating_point() or out.is_complex() or out.dtype == torch.bool:
            raise TypeError(f"{who} answered {out.dtype}, wanted float64, as the times are")
        out = out.to(t.dtype)
    if out.shape != t.shape:
        if out.numel() != 1:
            raise ValueError(
                f"{who} answered shape {tuple(out.shape)} to times of shape {tuple(t.shape)}: write it elementwise, "
                "one value for each time"
            )
        out = out.reshape(()).expand(t.shape)
    return out


def check_range_of(sde: Any) -> None:
    """Raises unless a process has finite numbers `t_min < t_max`."""
    name = type(sde).__name__
    try:
        ends = sde.t_min, sde.t_max
    except AttributeError as error:
        raise TypeError(
            f"{name} has no range of times ({error}): set t_min, where the data are, and t_max, where the prior is, "
            "in the class, t_min, t_max = 1e-3, 1.0, or in __init__"
        ) from error
    low, high = (check_real(end, f"{which} of {name}") for which, end in zip(("t_min", "t_max"), ends, strict=True))
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"{name} has t_min = {low:g} and t_max = {high:g}, wanted t_min < t_max, both finite: data are at t_min, "
            "and noise grows with t"
        )


def check_schedule(sde: Any) -> None:
    """Raises unless the schedule of a Gaussian process can be evaluated on tensors, exists and falls in log-SNR."""
    t = torch.linspace(sde.t_min, sde.t_max, POINTS, dtype=torch.float64, device="cpu")
    try:
        with torch.no_grad():
            alpha, sigma = sde.alpha(t), sde.sigma(t)
            rates, lam = sde.rates(t), sde.half_log_snr(t)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _explained(sde, error) from error
    check_scales(sde, t, alpha, sigma)
    if bool(torch.isnan(lam).any()):
        i = int(torch.isnan(lam).nonzero()[0, 0])
        raise ValueError(f"{sde!r} has half_log_snr = nan at t = {t[i]:g}, where alpha = {alpha[i]:g}")
    rise = lam.diff()
    i = int(rise.nan_to_num(-math.inf).argmax())
    scale = max([1.0, *lam[torch.isfinite(lam)].abs().tolist()])
    if float(rise[i]) > 1e-9 * scale or not bool(lam[-1] < lam[0]):
        raise ValueError(
            f"the log-SNR of {sde!r} does not fall with t: log(alpha / sigma) goes from {lam[i]:g} at t = {t[i]:g} to "
            f"{lam[i + 1]:g} at t = {t[i + 1]:g}. Noise grows with time here, from the data at t_min to the prior at "
            "t_max: where yours runs the other way, write alpha and sigma of t_max - t"
        )
    for letter, value, rate in zip(("alpha", "sigma"), (alpha, sigma), rates, strict=True):
        if float(value.max() - value.min()) > 1e-6 * float(value.abs().max()) and not bool(rate.any()):
            raise ValueError(
                f"{sde!r} has {letter}' = 0 everywhere, though {letter} changes: it leaves the graph of torch, by "
                ".item(), detach or numpy, which rates() differentiates. Use torch functions, or write rates()"
            )


def check_scales(sde: object, t: Tensor, alpha: Tensor, sigma: Tensor) -> None:
    """Raises `ValueError` unless `alpha >= 0` and `sigma > 0`, finite, naming the first time where it is not so."""
    bad = ~((sigma > 0) & (alpha >= 0) & torch.isfinite(sigma) & torch.isfinite(alpha))
    if bool(bad.any()):
        i = int(bad.nonzero()[0, 0])
        raise ValueError(
            f"{sde!r} has alpha = {alpha[i]:g} and sigma = {sigma[i]:g} at t = {t[i]:g}: "
            "wanted alpha >= 0 and sigma > 0"
        )


_NOT_ELEMENTWISE = ("one element", "Boolean value of Tensor", "numpy()", "converted to Scalar")


def _explained(sde: object, error: Exception) -> Exception:
    """The error of a schedule, or what to do where it was written for single numbers."""
    if not any(text in str(error) for text in _NOT_ELEMENTWISE):
        return error
    return TypeError(
        f"the schedule of {type(sde).__name__} cannot be evaluated on a tensor of times ({error}): write it "
        "elementwise with torch functions, torch.exp(-t) for math.exp(-t) and torch.where for if"
    )
