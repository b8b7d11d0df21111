r"""Weights of particles, in logarithms and float64, and systematic resampling; a row is a system."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_mean(log_w: Tensor) -> Tensor:
    """Logarithm of the mean weight of each row, `(M, N) -> (M,)`."""
    return torch.logsumexp(log_w, dim=1) - math.log(log_w.shape[1])


def effective(log_w: Tensor) -> Tensor:
    r"""Effective number of particles of each row, $(\sum w)^2/\sum w^2$, `(M, N) -> (M,)`."""
    return torch.exp(2 * torch.logsumexp(log_w, dim=1) - torch.logsumexp(2 * log_w, dim=1))


def systematic(log_w: Tensor, u: Tensor, n: int | None = None) -> Tensor:
    r"""Which particles survive: one uniform number a row, and $n$ points $(u + i)/n$ through its cumulated weights.

    A particle of normalised weight $w$ comes $\lfloor nw\rfloor$ or $\lceil nw\rceil$ times, $nw$ in the mean.

    Args:
        log_w: Logarithms of weights, `(M, N)`.
        u: Numbers in $[0, 1)$, `(M,)`.
        n: How many; $N$ by default.

    Returns:
        Their numbers, rising, `(M, n)`.
    """
    n = log_w.shape[1] if n is None else n
    total = torch.softmax(log_w, dim=1).cumsum(1)
    points = (u[:, None] + torch.arange(n, dtype=torch.float64, device="cpu")) / n * total[:, -1:]
    last = total.shape[1] - 1 - (log_w > -math.inf).flip(1).to(torch.uint8).argmax(1, keepdim=True)
    return torch.searchsorted(total, points, right=True).minimum(last)
