"""What a solve counts, and what the solves of one equation share."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._tensors import broken
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.calls import Caller
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level


class Counter:
    """Evaluations so far, and what became of the rows of one solve; shared by all views of its equation.

    Attributes:
        n: Network evaluations.
        vjps: Products with the Jacobian of the network.
        stopped: Rows that were left on the way, and `where`.
        keep: Whether a row that is not finite is lost alone, rather than an error.
        lost: Mask `(B,)` of these; None if there are none.
        first: Number of the first row in the result that the solve is a part of.
    """

    __slots__ = ("first", "keep", "lost", "n", "stopped", "vjps", "where")

    def __init__(self) -> None:
        self.n = self.vjps = self.first = 0
        self.stopped: Tensor | None = None
        self.where: Tensor | None = None
        self.keep = False
        self.lost: Tensor | None = None

    def lose(self, bad: Tensor) -> Tensor:
        """Counts the rows of a mask `(B,)` as lost; the mask of all that are."""
        self.lost = bad if self.lost is None else self.lost | bad
        return self.lost

    def blank(self, x: Tensor) -> Tensor:
        """The state with NaN in every row that is lost, or not finite now."""
        lost = self.lose(broken(x))
        return torch.where(lost.reshape(-1, *([1] * (x.ndim - 1))), math.nan, x)


class Tables:
    """What solves of one equation share: levels by time and by half log-SNR, rows of weights, tables of its views.

    Its `call` and `drift` know the habits of the model and of a process of the user's own.
    """

    __slots__ = ("by_lam", "by_time", "call", "drift", "rows", "views")

    def __init__(self) -> None:
        self.call, self.drift = Caller("score"), Caller("drift")
        self.by_time: dict[float, Level] = {}
        self.by_lam: dict[float, Level] = {}
        self.rows: dict[Hashable, Any] = {}
        self.views: dict[GaussianSDE, tuple[Denoiser, Tables]] = {}
