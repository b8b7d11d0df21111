"""What solvers refuse at the door: arguments outside their range, and steps up in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

from sde_diffusion._checks import check_real


def check_eta(eta: float) -> None:
    """Raises `ValueError` unless `eta` is finite and not negative."""
    if not (0 <= check_real(eta, "eta") < math.inf):
        raise ValueError(f"eta must be >= 0 (0 is the ODE, 1 the reverse SDE), got {eta!r}")


def check_band(s_min: float, s_max: float) -> None:
    """Raises `ValueError` unless noise levels run from `s_min >= 0` to a greater `s_max`."""
    if not (0 <= check_real(s_min, "s_min") < check_real(s_max, "s_max")):
        raise ValueError(f"wanted 0 <= s_min < s_max, got s_min={s_min!r} and s_max={s_max!r}")


def check_falling(h: float) -> None:
    """Raises `ValueError` for a step up in time, which a stochastic solver cannot take."""
    if h > 0:
        raise ValueError("a stochastic solver only goes back in time, from noise to data; to encode use an ODE solver")


def check_order(order: object, allowed: Sequence[int], name: str) -> None:
    """Raises `ValueError` for an order that a method does not come in."""
    if isinstance(order, bool) or not isinstance(order, Integral) or order not in allowed:
        raise ValueError(f"{name} has order {', '.join(map(str, allowed[:-1]))} or {allowed[-1]}, got {order!r}")
