"""What every door asks of times, be it one, one per sample, a table or a grid; it alone words those errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._checks import HALF, is_real


def as_time(
    t: object, x: Tensor, t_min: float, t_max: float, *, index: bool = False, name: str = "t", check: bool = True
) -> Tensor:
    """Time in float64, shaped to broadcast against `x`: `()` for one time, `(B, 1, ..., 1)` for a time per sample.

    Raises:
        TypeError: An integer tensor where time is continuous, or half precision.
        ValueError: Neither a float, nor `()`, nor `(B,)`; or outside `[t_min, t_max]`.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"the state must be a torch.Tensor of shape (B, *), got {type(x).__name__}: torch.as_tensor")
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
        t = as_times(t, name)
        time = t.to(x.device, torch.float64) if x.device.type != "mps" else t.to("cpu", torch.float64)
    else:
        time = as_times(t, name)
    if check:
        check_range(time, t_min, t_max, name)
    return time


def as_times(t: object, name: str = "t") -> Tensor:
    """Times as a float tensor: a number as float64 of shape `()`, a float tensor as it is, whole numbers as floats.

    Raises:
        TypeError: Neither a real number nor a tensor of them, or half precision.
    """
    if isinstance(t, Tensor) and not t.is_complex() and t.dtype != torch.bool:
        if t.dtype in HALF:
            raise TypeError(_rounded(name, str(t.dtype), t.detach().flatten()))
        return t if t.is_floating_point() else t.to(torch.float64 if t.device.type != "mps" else torch.float32)
    if isinstance(t, np.float16):
        raise TypeError(_rounded(name, "numpy.float16", [t]))
    if is_real(t):
        return torch.tensor(float(t), dtype=torch.float64, device="cpu")
    what = str(t.dtype) if isinstance(t, Tensor) else type(t).__name__
    raise TypeError(f"{name} must be a float or a tensor, got {what}")


def as_table(times: Any) -> Tensor:
    """A sequence of times as a float64 tensor of shape `(n,)` on the CPU.

    Raises:
        TypeError: Not a sequence of numbers, or half precision.
        ValueError: More than one dimension.
    """
    try:
        t = times if isinstance(times, Tensor) else torch.as_tensor(list(times), dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"times are a sequence of numbers, such as [1.0, 0.5], got {times!r}") from None
    if t.ndim != 1:
        raise ValueError(f"times have shape {tuple(t.shape)}, wanted (n,): a list, or t.flatten()")
    return as_times(t, "times").detach().to("cpu", torch.float64)


def _rounded(name: str, dtype: str, values: Sequence[Any] | Tensor) -> str:
    """What to say of times in half precision."""
    first = f", such as {float(values[0]):.10g}," if len(values) else ""
    return (
        f"{name} has dtype {dtype}, in which times{first} are rounded already: of 937 it keeps 936, another noise "
        "level. Make the times in float32 or float64; the network alone may run in half precision"
    )


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


def as_grid(times: Any, t_min: float, t_max: float, *, least: int = 2) -> list[float]:
    """A time grid as floats: `least` times or more, in range, strictly monotone (falling to sample, rising to encode).

    Raises:
        TypeError: Not a sequence of numbers.
        ValueError: Too short, out of range, or not strictly monotone (the message names the first bad index).
    """
    if isinstance(times, np.ndarray):
        times = torch.from_numpy(times) if times.dtype.kind in "iuf" else times
    if isinstance(times, Tensor):
        times = as_times(times, "the grid").detach().to("cpu", torch.float64).tolist()
    try:
        whole = list(times)
        odd = [] if set(map(type, whole)) == {float} else whole  # a solve hands its own floats over again
        half = [v for v in odd if isinstance(v, np.float16) or (isinstance(v, Tensor) and v.dtype in HALF)]
        grid = [float(value + 0.0) for value in whole]  # a string cannot be added to
    except (TypeError, ValueError):
        raise TypeError(f"a grid is a sequence of times in one dimension, got {type(times).__name__}") from None
    for value in half:
        as_times(value, "the grid")
    if len(grid) < least:
        raise ValueError(f"a grid needs at least {'two times' if least == 2 else 'one time'}, got {len(grid)}")
    low = math.nan if any(map(math.isnan, grid)) else min(grid)
    check_span(low, max(grid), t_min, t_max, "the grid")
    falling = len(grid) > 1 and grid[1] < grid[0]
    for i, (t, s) in enumerate(pairwise(grid)):
        if not s < t if falling else not s > t:
            raise ValueError(
                f"the grid is not strictly monotone: times[{i}] = {t:g} is followed by times[{i + 1}] = {s:g}"
            )
    return grid
