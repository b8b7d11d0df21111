"""Linear combinations of tensors with Python floats, in as few and as cheap tensor operations as there are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ZERO = torch.zeros((), device="cpu")


def rows(x: Tensor) -> Tensor:
    """`(B, *)` as `(B, D)`; events of shape `()` too."""
    return x.reshape(len(x), -1)


def as_float64(value: object) -> Tensor:
    """A number, a list or a tensor in float64: a tensor where it is, all else on the CPU, whatever torch's defaults."""
    if isinstance(value, Tensor):
        return value.to(torch.float64)
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def broken(x: Tensor) -> Tensor:
    """Mask `(B,)` of the rows that are not finite."""
    return ~torch.isfinite(rows(x.detach())).all(1)


def scale(x: Tensor, a: float) -> Tensor:
    """`a x`, for a float `a`.

    `x * a` wraps the float in a tensor first: 2.9 us on a small state, where `0 + a x` takes 1.4 us.
    """
    return torch.add(_ZERO, x, alpha=a)


def scaled(x: Tensor, a: float | Tensor) -> Tensor:
    """`a x`, for a float or a tensor that broadcasts; `x` itself for 1."""
    if isinstance(a, Tensor):
        return x * a
    return x if a == 1.0 else scale(x, a)


def linear(x: Tensor, a: float | Tensor, y: Tensor, b: float | Tensor) -> Tensor:
    """`a x + b y`, for floats or tensors that broadcast."""
    if not (isinstance(a, float) and isinstance(b, float)) and (isinstance(a, Tensor) or isinstance(b, Tensor)):
        return a * x + b * y
    if a == 0.0:
        return y if b == 1.0 else scale(y, b)
    if b == 0.0:
        return x if a == 1.0 else scale(x, a)
    if a == 1.0 or x.dtype != y.dtype:
        return torch.add(x if a == 1.0 else scale(x, a), y, alpha=b)
    return torch.add(_ZERO, x, alpha=a).add_(y, alpha=b)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    r"""Log-density of $\mathcal N(0, I)$ at `z`, in nats, shape `(B,)`."""
    flat = rows(z)
    return -0.5 * (flat.square().sum(1) + flat.shape[1] * math.log(2 * math.pi))
