"""What every door asks of its input, and the only place that words those errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

MOST_STEPS = 10**6
"""Of one solve; laying them out takes a minute, and at this many float32 rounds every step away."""
MOST_SAMPLES = 10**8
"""Of one call, as on the command line: each has a seed of its own."""
MOST_VALUES = 2**31
"""Of one sample: 8 GiB in float32."""
WIDE = frozenset((torch.float64, torch.float32))
HALF = frozenset((torch.float16, torch.bfloat16))


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
    if x.dtype in HALF:
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


def check_answer(f: object, x: Tensor, who: str) -> Tensor:
    """Returns what a model answered, in the dtype of the state `x`, if it is one real number for each of its entries.

    Raises:
        TypeError: No tensor, or complex numbers, integers or truth values.
        ValueError: Another shape.
    """
    if not isinstance(f, Tensor):
        raise no_tensor(f, x, who)
    if f.shape != x.shape:
        hint = ""
        if f.ndim > 1 and x.ndim > 1 and f.shape[1] == 2 * x.shape[1]:
            hint = ": does it learn a variance too? Hand over the first half of its channels alone"
        raise ValueError(f"{who} answered shape {tuple(f.shape)} to a state of shape {tuple(x.shape)}{hint}")
    if f.dtype == x.dtype:
        return f
    if not f.is_floating_point():
        raise TypeError(f"{who} answered {f.dtype}, wanted real numbers in {x.dtype}, as the state is")
    return f.to(x.dtype)  # of a network in half precision, or a function in double


def no_tensor(f: object, x: Tensor, who: str, hint: str = "") -> TypeError:
    """What to say of an answer to the state `x` that holds no tensor."""
    what = type(f).__name__
    if isinstance(f, Mapping):
        what += f" of {', '.join(map(repr, f))}"
    elif f is None:
        hint = ": is a return missing?"
    elif isinstance(f, np.ndarray):
        hint = ": torch.as_tensor makes one"
    return TypeError(f"{who} answered {what}, wanted a tensor of shape {tuple(x.shape)}{hint}")


def check_like(value: object, name: str, like: Tensor, like_name: str) -> Tensor:
    """Returns `value` if it is a tensor of the shape of another."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, wanted that of {like_name}, {tuple(like.shape)}")
    return value


def check_callable(value: object, name: str, what: str) -> None:
    """Raises `TypeError` unless `value` is a function, saying which is wanted."""
    if not callable(value):
        raise TypeError(f"{name} must be {what}, got {value!r}")


def check_flag(value: object, name: str) -> bool:
    """Returns `value` if it is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(
            f"{name} must be True or False, got {type(value).__name__}: a condition of the model that is called so "
            f"goes in as cond={{{name!r}: ...}}"
        )
    return bool(value)


def check_labels(labels: object, name: str) -> Tensor:
    """Returns class numbers as a tensor of integers: tensors, arrays and sequences of them, or one for all.

    Raises:
        TypeError: Anything else; of floats it is told whether they are class numbers.
    """
    if not isinstance(labels, Tensor):
        try:
            labels = torch.as_tensor(labels, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{name} must hold integers, the numbers of classes, got {type(labels).__name__}") from None
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        whole = not labels.is_complex() and bool((labels == labels.to(torch.int64)).all())
        raise TypeError(
            f"{name} must hold integers, the numbers of classes, got {labels.dtype}. "
            + (
                f"Use {name}.long()."
                if whole
                else "A continuous condition goes under another name, to a network that takes it."
            )
        )
    return labels


def rows_in_words(mask: Tensor, first: int = 0) -> str:
    """The rows of a mask `(B,)`, counted from `first`: `row 3 (1 of 64)`, `rows 0, 1, 2, 5 and 60 more (64 of 64)`."""
    found = [first + i for i in mask.nonzero()[:, 0].tolist()]
    names = ", ".join(map(str, found[:8])) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    return f"row{'s' if len(found) > 1 else ''} {names} ({len(found)} of {len(mask)})"


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


def as_table(times: object) -> Tensor:
    """A sequence of times as a float64 tensor of shape `(n,)` on the CPU.

    Raises:
        TypeError: Not a sequence of numbers, or half precision.
        ValueError: More than one dimension.
    """
    try:
        t = times if isinstance(times, Tensor) else torch.as_tensor(list(times), dtype=torch.float64, device="cpu")  # type: ignore[call-overload]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"times are a sequence of numbers, such as [1.0, 0.5], got {times!r}") from None
    if t.ndim != 1:
        raise ValueError(f"times have shape {tuple(t.shape)}, wanted (n,): a list, or t.flatten()")
    return as_times(t, "times").detach().to("cpu", torch.float64)


def _rounded(name: str, dtype: str, values: Sequence[object] | Tensor) -> str:
    """What to say of times in half precision."""
    first = f", such as {float(values[0]):.10g}," if len(values) else ""  # type: ignore[arg-type]
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


def as_grid(times: object, t_min: float, t_max: float) -> list[float]:
    """A time grid as floats: two times or more, in range, strictly monotone (falling to sample, rising to encode).

    Raises:
        TypeError: Not a sequence of numbers.
        ValueError: Too short, out of range, or not strictly monotone (the message names the first bad index).
    """
    if isinstance(times, np.ndarray):
        times = torch.from_numpy(times) if times.dtype.kind in "iuf" else times
    if isinstance(times, Tensor):
        times = as_times(times, "the grid").detach().to("cpu", torch.float64).tolist()
    try:
        whole: list[Any] = list(times)  # type: ignore[call-overload]
        odd = [] if set(map(type, whole)) == {float} else whole  # a solve hands its own floats over again
        half = [v for v in odd if isinstance(v, np.float16) or (isinstance(v, Tensor) and v.dtype in HALF)]
        grid = [float(value + 0.0) for value in whole]  # a string cannot be added to
    except (TypeError, ValueError):
        raise TypeError(f"a grid is a sequence of times in one dimension, got {type(times).__name__}") from None
    for value in half:
        as_times(value, "the grid")
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


def check_samples(n: object) -> int:
    """Returns `n` if it is a positive integer, of at most `MOST_SAMPLES`."""
    if (found := check_count(n, "n")) > MOST_SAMPLES:
        raise ValueError(f"n must be at most {MOST_SAMPLES:,} samples in one call, got {found:,}: draw them in parts")
    return found


def check_step_count(steps: object, name: str = "steps") -> int:
    """Returns a number of steps if it is a positive integer, of at most `MOST_STEPS`."""
    if (n := check_count(steps, name)) > MOST_STEPS:
        raise ValueError(
            f"{name} must be at most {MOST_STEPS:,}, got {n:,}: the times of all are laid out before the first, and "
            "nothing is gained from so many"
        )
    return n


def is_real(value: object) -> TypeGuard[float]:
    """Whether `value` is a real number; a truth value is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_seed(seed: object) -> int:
    """Returns `seed` if it is an integer."""
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    return int(seed)


def check_reals(values: object, name: str) -> list[float]:
    """Returns a sequence of numbers as a list of floats."""
    if isinstance(values, (Tensor, np.ndarray)):
        values = values.tolist()
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise TypeError(f"{name} must be a sequence of numbers, got {values!r}")
    return [check_real(value, f"each of {name}") for value in values]


def check_real(value: object, name: str) -> float:
    """Returns `value` if it is a number."""
    if not is_real(value):
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
        found = tuple(check_count(n, "a length of the shape") for n in shape)  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"shape is that of one sample, a tuple of positive integers such as (3, 32, 32) or (2,), got {shape!r}"
        ) from None
    if math.prod(found) > MOST_VALUES:
        raise ValueError(f"shape={found} is of {math.prod(found):,} numbers a sample, wanted {MOST_VALUES:,} at most")
    return found


def check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    """Raises `ValueError` unless `0 < low < high < inf`."""
    if not (0 < check_real(low, low_name) < check_real(high, high_name) < math.inf):
        raise ValueError(f"wanted 0 < {low_name} < {high_name}, got {low_name}={low!r} and {high_name}={high!r}")
