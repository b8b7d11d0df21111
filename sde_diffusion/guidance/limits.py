r"""An interval of noise levels, outside of which a rule leaves a model as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sde_diffusion._checks import check_real
from sde_diffusion.sde.level import Level

SLACK = 1e-9
"""Relative width by which the ends are moved out: a level seen through another process is known up to rounding."""


@dataclass(frozen=True)
class Limits:
    r"""Noise levels $\sigma/\alpha$ from `low` to `high`, both among them; None for no end.

    Args:
        low: Smallest noise level, $\geq 0$.
        high: Largest noise level.

    Raises:
        TypeError: An end that is no number.
        ValueError: Ends that are not in order, or below 0.

    References:
        Kynkaanniemi et al., Applying Guidance in a Limited Interval Improves Sample and Distribution Quality, 2024.
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        low = 0.0 if self.low is None else check_real(self.low, "low")
        high = math.inf if self.high is None else check_real(self.high, "high")
        if not 0 <= low < high:
            raise ValueError(
                f"low and high are noise levels sigma/alpha, wanted 0 <= low < high, got {self.low!r} and {self.high!r}"
            )

    @property
    def none(self) -> bool:
        """Whether all levels lie within."""
        return self.low is None and self.high is None

    def hold(self, ratio: float) -> bool:
        """Whether a noise level lies within."""
        low, high = self.low or 0.0, math.inf if self.high is None else self.high
        return low * (1 - SLACK) <= ratio <= high * (1 + SLACK)

    def mask(self, at: Level) -> Tensor | None:
        """Of levels per sample, those that lie within, as a mask of their shape; None if all do."""
        ratio = at.ratio
        if self.none or not isinstance(ratio, Tensor):
            return None
        low, high = self.low or 0.0, math.inf if self.high is None else self.high
        return (ratio >= low * (1 - SLACK)) & (ratio <= high * (1 + SLACK))

    def any(self, at: Level) -> bool:
        """Whether a level lies within, or one of levels per sample."""
        if self.none:
            return True
        mask = self.mask(at)
        return self.hold(at.ratio) if mask is None else bool(mask.any())

    def spelt(self) -> str:
        """As arguments of a wrapper."""
        ends = {"low": self.low, "high": self.high}
        return "".join(f", {name}={end!r}" for name, end in ends.items() if end is not None)
