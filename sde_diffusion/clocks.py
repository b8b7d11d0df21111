r"""What a network is told of the time: functions of a `Level`, given to `Network` as `clock=`.

A clock answers a float or a tensor that broadcasts like the level. `Network` expands it to `(B,)` in the dtype of the
state, or in int64 where the clock is an `Index`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sde_diffusion._checks import check_real
from sde_diffusion.sde import Level, Scalar


def time(at: Level) -> Scalar:
    """`t` itself: continuous networks, and index-trained DDPM networks on a `DiscreteVPSDE`, whose `t` is the index."""
    return at.t


def sigma(at: Level) -> Scalar:
    r"""$\sigma(t)$: networks of the VE family, which are told the noise level itself."""
    return at.sigma


def log_snr(at: Level) -> Scalar:
    r"""$\log(\alpha^2/\sigma^2)$, the log signal-to-noise ratio."""
    return 2 * at.lam


def edm(at: Level) -> Scalar:
    r"""$\tfrac14\log(\sigma/\alpha)$, what EDM networks see; capped at a log-ratio of 20, where no signal is left."""
    if isinstance(at.lam, torch.Tensor):
        return -at.lam.clamp_min(-20.0) / 4
    return -max(at.lam, -20.0) / 4


@dataclass(frozen=True)
class Scaled:
    """`factor * t`: for instance `Scaled(999)` for the networks of the score-SDE paper on `VPSDE`, trained on `999 t`.

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

    def __call__(self, at: Level) -> Scalar:
        return at.t.round() if isinstance(at.t, torch.Tensor) else float(round(at.t))
