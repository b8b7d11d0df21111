r"""What a network is told of the time: functions of a `Level`, given to `Network` as `clock=`.

A clock answers a float, or a tensor that broadcasts like the fields of the level. `Network` expands it to `(B,)` in the
dtype of the state, or in int64 where the clock says `integer = True`, as `Index` does. Clocks without arguments have a
name: `clock="edm"`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from sde_diffusion._checks import check_real
from sde_diffusion.sde.level import Level, Scalar

Clock = Callable[[Level], Scalar]


def time(at: Level) -> Scalar:
    """`t` itself, for networks of continuous time and DDPM networks on a `DiscreteVPSDE`, whose `t` is the index."""
    return at.t


def sigma(at: Level) -> Scalar:
    r"""$\sigma(t)$, for networks of the VE family."""
    return at.sigma


def log_snr(at: Level) -> Scalar:
    r"""$\log(\alpha^2/\sigma^2)$, the log signal-to-noise ratio."""
    return 2 * at.lam


def edm(at: Level) -> Scalar:
    r"""$\tfrac14\log(\sigma/\alpha)$, for EDM networks; the logarithm is capped at 20, where no signal is left."""
    if isinstance(at.lam, torch.Tensor):
        return -at.lam.clamp_min(-20.0) / 4
    return -max(at.lam, -20.0) / 4


@dataclass(frozen=True)
class Scaled:
    """`factor * t`. The networks of the score-SDE paper on `VPSDE`, for instance, are told `999 t`: `Scaled(999)`.

    Args:
        factor: Multiplier of `t`.
    """

    factor: float

    def __post_init__(self) -> None:
        check_real(self.factor, "factor")

    def __call__(self, at: Level) -> Scalar:
        return self.factor * at.t


@dataclass(frozen=True)
class Index:
    """`t` rounded to an integer, as int64: for networks that look the time up in a table (`torch.nn.Embedding`).

    Between two indices the network is asked at the nearer one, while the schedule keeps the exact time.
    """

    integer: ClassVar[bool] = True

    def __call__(self, at: Level) -> Scalar:
        return at.t.round() if isinstance(at.t, torch.Tensor) else float(round(at.t))


ALL: tuple[Callable[..., Any], ...] = (time, sigma, log_snr, edm, Scaled, Index)
"""Every clock of the library, as a function of a `Level` or a class that makes one: the only list of them."""
NAMES: dict[str, Clock] = {f.__name__: f for f in ALL if not isinstance(f, type)}
"""The clocks by name, as the argument `clock=` and the attribute `clock` of a net may give them."""
FAR = 20.0
"""The largest number that a net which embeds numbers of order one, such as `MLP` and `UNet`, may be told."""


def named(clock: object) -> Clock:
    """The clock of that name, or the function itself.

    Raises:
        TypeError: Neither a name in `NAMES` nor a function of a `Level`.
    """
    if isinstance(clock, str) and clock in NAMES:
        return NAMES[clock]
    if callable(clock) and not isinstance(clock, type):
        return clock
    hint = f": give an instance, {clock.__name__}(...)" if isinstance(clock, type) else ""
    raise TypeError(
        f"clock must be one of {', '.join(map(repr, NAMES))}, clocks.Scaled(factor), clocks.Index() or another "
        f"function of a Level, got {clock!r}{hint}"
    )


def tells_integers(clock: object) -> bool:
    """Whether a network is told integers, between which its answer jumps."""
    return bool(getattr(clock, "integer", False))


def check_order_one(clock: Clock, ends: Iterable[Level], net: str) -> None:
    """Refuses a clock that tells a net, which embeds numbers of order one, numbers that it cannot tell apart.

    Raises:
        TypeError: The clock tells integers.
        ValueError: The clock tells a number beyond `FAR` at one of the `ends` of the process.
    """
    said, advice = getattr(clock, "__name__", repr(clock)), "leave clock= out, and it is told log(sigma/alpha)/4"
    if tells_integers(clock):
        raise TypeError(f"{net} embeds floats of order one, but clock {said} tells it integers: {advice}")
    for at in ends:
        told = float(clock(at))
        if not abs(told) <= FAR:
            raise ValueError(
                f"{net} embeds numbers of order one, but clock {said} tells it {told:g} at t = {at.t:g}: {advice}"
            )
