r"""What decides: the error of a candidate on noise that no fit has seen, with its standard error.

`"ode"` is the distance to the converged flow from the same noise, in standard deviations of the data,

$$ E = \Big(\tfrac1n\sum_i \min(e_i, \tfrac12)^2\Big)^{1/2}, \quad
   e_i = |x_i - x_i^{ref}| / (\sqrt D\,\mathrm{sd}(x^{ref})) $$

A sample that has changed to another mode counts as half a standard deviation, however far that mode is: a few of them
would decide between candidates otherwise. `"energy"` is the energy distance to data that were held out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from sde_diffusion.metrics import energy_distance

FLIPPED = 0.5
"""Most that one sample counts, in standard deviations of the data."""
FOLDS = 8
"""Parts of the samples whose energy distances give a standard error."""


class Score(NamedTuple):
    """An error and its standard error."""

    error: float
    uncertainty: float


Scorer = Callable[[Tensor], Score]


def to_flow(x0: Tensor) -> Scorer:
    """Scores samples `(n, D)` by their distance to the ends `x0` of the reference."""
    spread = float(x0.std()) or 1.0

    def score(x: Tensor) -> Score:
        e2 = ((x - x0).square().mean(dim=1).sqrt() / spread).nan_to_num(FLIPPED, FLIPPED).clamp_max(FLIPPED).square()
        error = math.sqrt(float(e2.mean()))
        return Score(error, float(e2.std()) / math.sqrt(len(e2)) / (2 * error) if error else 0.0)

    return score


def to_data(data: Tensor) -> Scorer:
    """Scores samples `(n, D)` by their energy distance to data `(m, D)`."""

    def score(x: Tensor) -> Score:
        if not bool(torch.isfinite(x).all()):
            return Score(math.inf, math.inf)
        parts = [energy_distance(a, b) for a, b in zip(x.tensor_split(FOLDS), data.tensor_split(FOLDS), strict=True)]
        spread = cast("float", torch.tensor(parts, dtype=torch.float64, device="cpu").std().item())
        return Score(energy_distance(x, data), spread / math.sqrt(FOLDS))

    return score
