r"""What may be added to the square error of an answer: a control variate, and the bound of a learnt variance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.objectives.regressed import Regressed
from sde_diffusion.denoiser.variance import chain_steps
from sde_diffusion.sde.level import Level


def controlled(model: Regressed, at: Level, x0: Tensor, eps: Tensor, cond: Mapping[str, Any]) -> Tensor:
    r"""What the control variate adds to the square error of the answer, shape `(B,)`: a number of mean zero.

    An answer $F$ is $A x + B\hat\varepsilon$ for some $A$ and $B$, so that its error is $B^2|\hat\varepsilon(x) -
    \varepsilon|^2$ with $x = \alpha x_0 + \sigma\varepsilon$. To first order in $\sigma$ the term
    $-2\,\varepsilon\cdot\hat\varepsilon(x)$ in it is $-2\,\varepsilon\cdot\hat\varepsilon(\alpha x_0)$: zero on
    average, and at little noise nearly all of the variance of the gradient. So

    $$ \frac{c B^2}D\,\big[2\,\varepsilon\cdot\hat\varepsilon(\alpha x_0) - |\varepsilon|^2 + D\big], \quad
       c = \max\Big(\frac{\alpha^2s^2 - \sigma^2}{\alpha^2s^2 + \sigma^2}, 0\Big) $$

    is added, with $s$ the standard deviation of the data. This $c$ takes all of $x_0\cdot\varepsilon$ out of the
    gradient of a linear answer to Gaussian data; where the noise outweighs the data it is 0. One network evaluation.

    References:
        Wang et al., A Wasserstein Minimum Velocity Approach to Learning Unnormalized Models, 2020; Song and Kingma, How
        to Train Your Energy-Based Models, 2021 (Section 4.2).
    """
    clean = model.residual(at.alpha * x0, at, x0, torch.zeros_like(eps), **cond)  # B eps_hat(alpha x0)
    signal, spread = (at.alpha * model.data_std) ** 2, at.sigma**2
    share = ((signal - spread) / (signal + spread)).clamp_min(0.0)
    b = torch.where(share > 0, -at.sigma / at.alpha / model.gain(at), 0.0)
    return rows(share * (2 * b * eps * clean - b**2 * (eps.square() - 1))).mean(1)


def bound_of(model: Regressed, at: Level, t: Tensor, residual: Tensor, mix: Tensor | None) -> Tensor:
    """The variational bound of a chain in nats per coordinate, shape `(B,)`, estimated at one of its levels for each
    sample: the number of levels times the term of that one. Its gradient goes to the mix of variances alone.

    Raises:
        TypeError: The model learns no variance, or its process is no chain.
        ValueError: Times between two levels.
    """
    if mix is None:
        raise TypeError(
            "variance_bound trains a variance, and this model answers none: predict.LearnedVariance(predict.noise) as "
            "the kind of its Network, with a net that answers twice the channels"
        )
    square = (residual.detach() * model.gain(at)).square()
    term = chain_steps(model.sde, t, residual).term(mix, square)
    return rows(term).mean(1) * (model.sde.t_max + 1)
