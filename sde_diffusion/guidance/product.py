r"""Products of powers of models, $q_t \propto \prod_i p_{i,t}^{\gamma_i}$: what guidance, annealing and products mean.

The score of a product is $\sum_i\gamma_i\nabla\log p_{i,t}$ at every time, but the product at time $t$ is not the
product of the data under noise: a solver that follows this score samples from another law. A `ParticleSampler` weighs
its samples, and reaches $\prod_i p_i(x_0)^{\gamma_i}$ itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde.level import Level


class Product(ABC):
    r"""A model whose prediction is made of those of several, $\sum_i\gamma_i\,\mathrm{noise}_i$."""

    @property
    @abstractmethod
    def powers(self) -> Sequence[float]:
        r"""$\gamma_i$, the same at every noise level.

        Raises:
            ValueError: Powers that change with the noise level, or a rule that is no product.
        """

    @abstractmethod
    def parts(self, x: Tensor, at: Level, **cond: Any) -> tuple[Prediction, ...]:
        """The prediction of each model at one state, shape `(B, *)`, and level."""
