"""What a solver knows of the schedule at one time: a noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Scalar = float | Tensor


@dataclass(frozen=True, slots=True)
class Level:
    r"""One noise level: the schedule at one time.

    In a solve the fields are Python floats. Where time differs per sample, as in training, they are tensors
    `(B, 1, ..., 1)`. The same formulas serve both, hence the type `Any`.

    Args:
        t: Time.
        alpha: Scale of the data, $\alpha(t)$. NaN for an SDE without a Gaussian kernel, as are all fields below.
        sigma: Scale of the noise, $\sigma(t)$.
        dalpha: $\alpha'(t)$.
        dsigma: $\sigma'(t)$.
        lam: Half log-SNR, $\lambda = \log(\alpha / \sigma)$; `-inf` where `alpha` is 0.
        plan: None, or a tuple of the model that tabulated the level and whatever it wants to find there again.
    """

    t: Any
    alpha: Any = math.nan
    sigma: Any = math.nan
    dalpha: Any = math.nan
    dsigma: Any = math.nan
    lam: Any = math.nan
    plan: Any = None

    @property
    def ratio(self) -> Any:
        r"""$\sigma/\alpha$, the noise in units of the data; `inf` where `alpha` is 0."""
        if isinstance(self.alpha, float) and self.alpha == 0.0:
            return math.inf
        return self.sigma / self.alpha

    @property
    def g2(self) -> Any:
        r"""$g^2 = 2\sigma(\sigma' - \sigma\alpha'/\alpha)$, the squared diffusion; `inf` where `alpha` is 0."""
        if isinstance(self.alpha, float) and self.alpha == 0.0:
            return math.inf
        return 2 * self.sigma * (self.dsigma - self.sigma * self.dalpha / self.alpha)
