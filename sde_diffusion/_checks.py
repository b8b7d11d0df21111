"""What every door asks of its input, and the only place that words those errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

MOST_STEPS = 10**6
"""The most steps of one solve: laying them out takes a minute, and at this many float32 rounds every step away."""
MOST_SAMPLES = 10**8
"""The most samples of one call, as on the command line: each has a seed of its own."""
MOST_VALUES = 2**31
"""The most numbers in one sample: 8 GiB in float32."""
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


def check_answer(f: object, x: Tensor, who: str, answers: int = 1) -> Tensor:
    """Returns what a model answered, in the dtype of the state `x`, if it is one real number for each of its entries.

    Where it has two, the answer has twice the channels, along the dimension behind the batch.

    Raises:
        TypeError: No tensor, or complex numbers, integers or truth values.
        ValueError: Another shape.
    """
    if not isinstance(f, Tensor):
        raise no_tensor(f, x, who)
    wanted = tuple(x.shape) if answers == 1 else (*x.shape[:1], *(answers * c for c in x.shape[1:2]), *x.shape[2:])
    if tuple(f.shape) != wanted or (answers > 1 and x.ndim < 2):
        hint = ""
        if answers > 1:
            hint = f": with a variance beside the mean it is {wanted}" if x.ndim > 1 else ", which has no channels"
        elif f.ndim > 1 and x.ndim > 1 and f.shape[1] == 2 * x.shape[1]:
            hint = (
                ": does it learn a variance too? Say predict.LearnedVariance(kind), or hand over the first half of its "
                "channels alone"
            )
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
        TypeError: Anything else; for floats the message says whether they are class numbers.
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
    if torch.compiler.is_compiling() or math.isfinite(x.sum().item()):  # a fifth of the time of `isfinite`
        return x
    bad = (~torch.isfinite(x)).sum().item()
    if bad:
        raise ValueError(f"{name} holds {bad} non-finite values of {x.numel()}: clean the data before it comes here")
    return x


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
    """Whether `value` is a real number; a truth value is not one."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_seed(seed: object, name: str = "seed") -> int:
    """Returns `seed` if it is an integer."""
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"{name} must be an integer, got {seed!r}")
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
    number = check_real(value, name)
    if not (0 < number < math.inf):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return number


def check_shape(shape: Any) -> tuple[int, ...]:
    """Returns an event shape as a tuple of positive integers."""
    try:
        found = tuple(check_count(n, "a length of the shape") for n in shape)
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
