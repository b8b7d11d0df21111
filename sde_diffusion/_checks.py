"""What every door asks of its input, and the only place that words those errors."""

from __future__ import annotations

import math
from itertools import pairwise
from numbers import Integral, Real

import torch
from torch import Tensor

MOST_STEPS = 10**6
"""Of one solve; laying them out takes a minute, and at this many float32 rounds every step away."""


class SolverError(RuntimeError):
    """The numbers failed on the way: a non-finite state, with the step, the time and the evaluations spent so far."""


def check_state(x: object, name: str, *, shape: tuple[int, ...] | None = None) -> Tensor:
    """Returns `x` if it is a non-empty floating batch `(B, *)` (with event shape `shape` if given).

    Raises:
        TypeError: Not a tensor, integers, or half precision.
        ValueError: No batch dimension, an empty batch, or another event shape.
    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor of shape (B, *), got {type(x).__name__}: torch.as_tensor makes one"
        )
    if not x.is_floating_point():
        raise TypeError(
            f"{name} has dtype {x.dtype}, wanted float32 or float64: scale the data to floats first, "
            "for example x.float() / 127.5 - 1 for bytes"
        )
    if x.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(
            f"{name} has dtype {x.dtype}: a half-precision state loses the small noise levels. "
            "Give float32 or float64 and run the network alone in half precision, under torch.autocast"
        )
    if x.ndim == 0:
        raise ValueError(f"{name} has no batch dimension, wanted shape (B, *)")
    if x.shape[0] == 0 or x.numel() == 0:
        raise ValueError(f"{name} is an empty batch of shape {tuple(x.shape)}, wanted at least one sample")
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(
            f"{name} has event shape {tuple(x.shape[1:])} (batch {x.shape[0]}), but the model works on {tuple(shape)}"
        )
    return x


def check_finite(x: Tensor, name: str) -> Tensor:
    """Returns `x` if every entry is finite."""
    if torch.compiler.is_compiling() or math.isfinite(x.detach().sum().item()):  # a fifth of the time of `isfinite`
        return x
    bad = (~torch.isfinite(x)).sum().item()
    if bad:
        raise ValueError(f"{name} holds {bad} non-finite values of {x.numel()}: clean the data before it comes here")
    return x


def as_time(
    t: object, x: Tensor, t_min: float, t_max: float, *, index: bool = False, name: str = "t", check: bool = True
) -> Tensor:
    """Time in float64, shaped to broadcast against `x`: `()` for one time, `(B, 1, ..., 1)` for a time per sample.

    Raises:
        TypeError: An integer tensor where time is continuous.
        ValueError: Neither a float, nor `()`, nor `(B,)`; or outside `[t_min, t_max]`.
    """
    if isinstance(t, Tensor):
        if not t.is_floating_point() and not index:
            raise TypeError(
                f"{name} has dtype {t.dtype}, but time is continuous in [{t_min:g}, {t_max:g}]: "
                "give a float tensor; for step i of N, did you mean i / N?"
            )
        if t.ndim == 1 and t.shape[0] == x.shape[0]:
            t = t.reshape(-1, *([1] * (x.ndim - 1)))
        elif t.ndim != 0:
            raise ValueError(
                f"{name} has shape {tuple(t.shape)}, wanted a float, shape () or one time per sample, "
                f"shape ({x.shape[0]},), for x of shape {tuple(x.shape)}"
            )
        time = t.to(x.device, torch.float64) if x.device.type != "mps" else t.to("cpu", torch.float64)
    elif isinstance(t, (int, float)) and not isinstance(t, bool):
        time = torch.tensor(float(t), dtype=torch.float64, device="cpu")
    else:
        raise TypeError(f"{name} must be a float or a tensor, got {type(t).__name__}")
    if check:
        check_range(time, t_min, t_max, name)
    return time


def check_range(times: Tensor, t_min: float, t_max: float, name: str) -> None:
    """Raises `ValueError` unless every time lies in `[t_min, t_max]`, up to the rounding of float32."""
    check_span(float(times.min()), float(times.max()), t_min, t_max, name)


def check_span(low: float, high: float, t_min: float, t_max: float, name: str) -> None:
    """Raises `ValueError` unless `[low, high]` lies in `[t_min, t_max]`, up to the rounding of float32."""
    slack = 4e-7 * max(abs(t_min), abs(t_max))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} holds NaN or inf, wanted times in [{t_min:g}, {t_max:g}]")
    if low < t_min - min(slack, 1e-3 * t_min if t_min > 0 else slack) or high > t_max + slack:
        hint = "; for step i of N, did you mean i / N?" if high > t_max and t_max <= 1.0 else ""
        raise ValueError(
            f"{name} spans [{low:g}, {high:g}], outside the [t_min, t_max] = [{t_min:g}, {t_max:g}] of the SDE{hint}"
        )


def as_grid(times: object, t_min: float, t_max: float) -> list[float]:
    """A time grid as floats: two times or more, in range, strictly monotone (falling to sample, rising to encode).

    Raises:
        TypeError: Not a sequence of numbers.
        ValueError: Too short, out of range, or not strictly monotone (the message names the first bad index).
    """
    if isinstance(times, Tensor) or hasattr(times, "__array__"):
        times = torch.as_tensor(times, dtype=torch.float64, device="cpu").tolist()
    try:
        grid = [float(t + 0.0) for t in times]  # type: ignore[attr-defined]  # a string cannot be added to
    except (TypeError, ValueError):
        raise TypeError(f"a grid is a sequence of times in one dimension, got {type(times).__name__}") from None
    if len(grid) < 2:
        raise ValueError(f"a grid needs at least two times, got {len(grid)}")
    low = math.nan if any(map(math.isnan, grid)) else min(grid)
    check_span(low, max(grid), t_min, t_max, "the grid")
    falling = grid[1] < grid[0]
    for i, (t, s) in enumerate(pairwise(grid)):
        if not s < t if falling else not s > t:
            raise ValueError(
                f"the grid is not strictly monotone: times[{i}] = {t:g} is followed by times[{i + 1}] = {s:g}"
            )
    return grid


def check_count(n: object, name: str) -> int:
    """Returns `n` if it is a positive integer."""
    if isinstance(n, bool) or not isinstance(n, Integral):
        raise TypeError(f"{name} must be an integer, got {n!r}")
    n = int(n)
    if n < 1:
        raise ValueError(f"{name} must be at least 1, got {n}")
    return n


def check_step_count(steps: object) -> int:
    """Returns `steps` if it is a positive integer, of at most `MOST_STEPS`."""
    if (n := check_count(steps, "steps")) > MOST_STEPS:
        raise ValueError(
            f"steps must be at most {MOST_STEPS:,}, got {n:,}: the times of all steps are laid out before the first, "
            "and no solver gains anything from so many"
        )
    return n


def check_real(value: object, name: str) -> float:
    """Returns `value` if it is a number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def check_positive(value: object, name: str) -> float:
    """Returns `value` if it is a positive, finite number."""
    if not (0 < check_real(value, name) < math.inf):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return float(value)  # type: ignore[arg-type]  # a number by now


def check_shape(shape: object) -> tuple[int, ...]:
    """Returns an event shape as a tuple of positive integers."""
    try:
        return tuple(check_count(n, "a length of the shape") for n in shape)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"shape is that of one sample, a tuple of positive integers such as (3, 32, 32) or (2,), got {shape!r}"
        ) from None


def check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    """Raises `ValueError` unless `0 < low < high < inf`."""
    if not (0 < check_real(low, low_name) < check_real(high, high_name) < math.inf):
        raise ValueError(f"wanted 0 < {low_name} < {high_name}, got {low_name}={low!r} and {high_name}={high!r}")
