r"""Bits per dimension: what it costs to tell one coordinate of discrete data."""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor

from sde_diffusion._checks import check_count, check_real


def bits_per_dim(log_prob: Tensor, dim: int, *, bin_width: float | None) -> Tensor:
    r"""$-\big(\log p(x)/D + \log\Delta\big)/\log 2$: the cost in bits of one coordinate known to bins of width
    $\Delta$.

    For a log-density in a tensor; `LogProb`, `Elbo` and `BinLogProb` know their dimension and have a method of this
    name.

    Args:
        log_prob: Log-density of uniformly dequantised data, in nats, shape `(B,)`.
        dim: $D$, coordinates per sample.
        bin_width: $\Delta$, in the units of the data; there is no default, since it is 2/256 for bytes scaled to
            `[-1, 1]` by `2 (v + u) / 256 - 1` and 2/17 for the 17 grey levels of the digits.

    Raises:
        TypeError: Something else than a tensor.
        ValueError: A width that is not positive.
    """
    given: object = log_prob
    if not isinstance(given, Tensor):
        fix = ", which knows its dimension: ask its own bits_per_dim(bin_width)" * hasattr(given, "bits_per_dim")
        raise TypeError(f"log_prob must be a torch.Tensor of nats, got {type(given).__name__}{fix}")
    return -(log_prob / check_count(dim, "dim") + math.log(check_bin_width(bin_width))) / math.log(2)


def check_bin_width(bin_width: object) -> float:
    """Returns the width of bins; raises unless it is a positive number."""
    if bin_width is None or not 0 < check_real(bin_width, "bin_width") < math.inf:
        raise ValueError(
            "a density costs bits only in bins, as wide as values are apart in the data: give their positive "
            f"bin_width, got {bin_width!r}"
        )
    return float(cast("float", bin_width))


def check_no_width(bin_width: object) -> None:
    """Raises `ValueError` if a width is given for bits of a probability of discrete values, which has it already."""
    if bin_width is not None:
        raise ValueError("this is the probability of discrete values, whose bins have a width: leave bin_width out")
