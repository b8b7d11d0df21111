"""Which jumps a flow map was trained to make: any, those to the data, or those between neighbours of some levels."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusion._checks import is_real
from sde_diffusion._tensors import as_float64
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level

SIGNAL_LEFT = 0.05
"""What a prior may leave out of the data: their standard deviation over that of the noise."""
Reach = str | tuple[float, ...]
"""`"any"`, `"data"`, or falling noise levels that end with 0."""


def check_reach(reach: object) -> Reach:
    """Returns what a map may carry between, if it is that.

    Raises:
        ValueError: Neither `"any"`, nor `"data"`, nor noise levels that fall to 0.
    """
    if isinstance(reach, str) and reach in ("any", "data"):
        return reach
    if isinstance(reach, tuple | list) and len(reach) > 1 and all(is_real(level) for level in reach):
        levels = tuple(float(level) for level in reach)
        if levels[-1] == 0 and all(a > b for a, b in pairwise(levels)):
            return levels
    raise ValueError(
        "reach is 'any', 'data', or noise levels that fall to 0, the data, such as (80.0, 1.0, 0.0), between which the "
        f"map jumps, got {reach!r}"
    )


def check_levels(reach: Reach, sde: GaussianSDE, data_std: float) -> Reach:
    """Returns what a map may carry between, if the process has all of its levels, and warns if it begins low.

    Raises:
        ValueError: A level, but for the last, below the least of the process, or several beyond its largest.
    """
    if isinstance(reach, str):
        return reach
    most, least = (math.exp(-lam) for lam in sde.ends())
    low = [level for level in reach[:-1] if level < least * (1 - 1e-4)]
    if low or sum(level >= most * (1 - 1e-4) for level in reach) > 1:
        raise ValueError(
            f"{sde!r} has noise levels from {least:.4g} to {most:.4g}, and of the levels in reach "
            + (f"{low[0]:g} is below them" if low else "several are beyond them, which are one to it")
            + ": leave it out" * bool(low)
            + ": keep one of them" * (not low)
        )
    if reach[0] < most * (1 - 1e-4) and data_std >= SIGNAL_LEFT * reach[0]:
        warnings.warn(
            f"the map is to jump from noise level {reach[0]:g}, where {data_std / reach[0]:.2g} of the data is left, "
            f"and samples are drawn from noise alone: begin at that of the process, {most:.4g}, reach=(inf, ...)",
            UserWarning,
            stacklevel=4,
        )
    return reach


def check_within(reach: Reach, sde: GaussianSDE, at: Level, to: Level | None) -> None:
    """Raises `ValueError` for a jump from one level to another, or to the data, that was not trained."""
    if reach == "data" and to is not None:
        raise ValueError(
            "this map was trained to jump to the data alone, reach='data': noise them again and jump once more, "
            "Jump(renoise=True), or train it with reach='any'"
        )
    if isinstance(reach, str):
        return
    most = math.exp(-min(sde.ends()))
    start, end = as_float64(at.ratio), as_float64(0.0 if to is None else to.ratio)
    known = torch.zeros(torch.broadcast_shapes(start.shape, end.shape), dtype=torch.bool, device=start.device)
    for a, b in pairwise(reach):
        known = known | (_near(start, a, most) & _near(end, b, most).to(start.device))
    if not bool(known.all()):
        (i, *_) = (~known).flatten().nonzero().flatten().tolist()
        a, b = (float(level.expand(known.shape).flatten()[i]) for level in (start, end))
        raise ValueError(
            f"this map was trained for the jumps between neighbours of the noise levels {reach}, and not from {a:.4g} "
            f"to {b:.4g}: leave out grid=, steps= and nfe=, or train it with reach='any'"
        )


def times_of_reach(reach: tuple[float, ...], sde: GaussianSDE) -> list[float]:
    """The times of the noise levels from which a map was trained to jump, falling; the last jump is to the data.

    A level beyond those of the process is that of `t_max`.
    """
    least, _ = sde.ends()
    lam = torch.tensor([-math.log(level) for level in reach[:-1]], dtype=torch.float64, device="cpu")
    times = sde.time_of(lam.clamp(min=least)).tolist()
    return [sde.t_max if value <= least else t for t, value in zip(times, lam.tolist(), strict=True)]


def _near(ratio: Tensor, level: float, most: float) -> Tensor:
    """Whether a noise level is one that was trained, to rounding; those beyond the process, `most`, are as one."""
    if level >= most * (1 - 1e-4):
        return ratio >= most * (1 - 1e-4)
    return (ratio - level).abs() <= 1e-4 * level + 1e-9
