r"""The rules: what stands for $p(y \mid x_t) = \int p(y \mid x_0)\,p(x_0 \mid x_t)\,dx_0$, which is not known.

All but `DPS` put a Gaussian round the denoised mean $m = \mathrm E[x_0 \mid x_t]$, of covariance $V$, in the place of
$p(x_0 \mid x_t)$:

$$ \psi = \mathcal N(y;\, A m,\, S), \quad S = A V A^T + \sigma_y^2, \quad \Delta = V A^T S^{-1}(y - A m) $$

They differ in $V$. That of the model itself is $\frac{\sigma^2}{\alpha}J$ with its Jacobian $J = \partial m/\partial
x_t$ (Tweedie). A non-linear measurement is replaced by its derivative at $m$, and its residual is $y - A(m)$.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_callable, check_count, check_positive, is_real
from sde_diffusion.guidance.posterior.algebra import gaussian, krylov, wide
from sde_diffusion.guidance.posterior.likelihood import GaussianLikelihood
from sde_diffusion.guidance.posterior.view import DENSE, EIGEN, View, isotropic, mended

OVER = 4.0
"""How far a shift of `DPS` may go, in units of the way to what was measured."""


class Rule(ABC):
    """What is put in the place of the unknown expectation. Subclasses are frozen dataclasses.

    Attributes:
        graph: Whether it differentiates the model.
        isotropic: Whether it needs the `Spectrum` of the measurement.
        noise_from: See `Denoiser`: the evaluations from which on a solve with noise comes closer to the posterior.
    """

    graph: bool = True
    isotropic: bool = False
    noise_from: int = 15

    @abstractmethod
    def products(self, d: int) -> int:
        """Products with the Jacobian per evaluation, for `d` numbers measured."""

    @abstractmethod
    def weigh(self, view: View) -> tuple[Tensor, Tensor | None]:
        r"""The shift $\Delta$, `(B, D)`, and the twist $\log\psi$ in units of the noise, `(B,)`, if it has one."""

    def twistless(self, likelihood: GaussianLikelihood) -> str | None:
        """Why there is no twist; None where there is one."""
        return None

    def too_large(self, likelihood: GaussianLikelihood) -> str | None:
        """Why the rule cannot take a measurement; None where it can."""
        return None


@dataclass(frozen=True)
class Moments(Rule):
    r"""The covariance of the model itself, by Tweedie's formula: moment matching.

    $$ V = \tfrac{\sigma^2}{\alpha}\,J, \quad S = A V A^T + \sigma_y^2 $$

    Exact at every level where the data are Gaussian, and the closest of the rules elsewhere. At much noise the Jacobian
    of a network is no covariance: along those axes where $V$ is negative, or larger than data can vary, $r^2$ of
    `PseudoInverse` stands for it, and no shift is longer than a covariance allows. With `iterations` only the latter.

    Costs one evaluation and as many products with the Jacobian as numbers are measured, in one batch; or `iterations`
    of them, in conjugate gradients, which leave no determinant and so no twist. As many iterations as numbers are
    measured give the same shift; one alone is about twice as far from the posterior.

    Args:
        iterations: Conjugate gradients; None for the whole matrix, of at most 256 numbers measured.

    References:
        Rozet et al., Learning Diffusion Priors from Observations by Expectation Maximization, 2024; Boys et al.,
        Tweedie Moment Projected Diffusions for Inverse Problems, 2023.
    """

    iterations: int | None = None

    def __post_init__(self) -> None:
        if self.iterations is not None:
            check_count(self.iterations, "iterations")

    def products(self, d: int) -> int:
        return d if self.iterations is None else min(self.iterations, d)

    def twistless(self, likelihood: GaussianLikelihood) -> str | None:
        if self.iterations is None:
            return None
        return (
            f"{self!r} knows no determinant, and so no twist: take Moments() without iterations, of at most {DENSE} "
            "numbers measured, or PseudoInverse()"
        )

    def too_large(self, likelihood: GaussianLikelihood) -> str | None:
        if self.iterations is not None or likelihood.size <= DENSE:
            return None
        return (
            f"Moments() takes a product with the Jacobian for each number measured, and these are {likelihood.size}, "
            f"more than {DENSE}: take Moments(iterations=10), or PseudoInverse(), which needs one"
        )

    def weigh(self, view: View) -> tuple[Tensor, Tensor | None]:
        if self.iterations is not None:

            def product(q: Tensor) -> tuple[Tensor, Tensor]:
                g = view.pulled(view.back(q)[None])[0]
                return g, view.ahead(g)

            u, shift = krylov(product, view.r, min(self.iterations, view.likelihood.size))
            return view.bounded(shift, u), None
        a = view.likelihood.rows(view.mean)
        g = view.pulled(a.transpose(0, 1).expand(-1, len(view.r), -1)).transpose(0, 1)
        g = mended(g, a, view.spread(None), view.data_std)
        u, log_p = gaussian(wide(g) @ wide(a).mT, view.r)
        return view.bounded(torch.einsum("bd,bdi->bi", u.to(g), g), u.to(g)), log_p


@dataclass(frozen=True)
class PseudoInverse(Rule):
    r"""One variance for all directions: pseudo-inverse guidance.

    $$ V = r^2 I \;\text{ in }\; S, \quad \Delta = \tfrac{\sigma^2}{\alpha}J^TA^TS^{-1}(y - A m), \quad
       r^2 = \frac{c^2\sigma^2}{\alpha^2c^2 + \sigma^2} $$

    One evaluation and one product with the Jacobian. Exact for data from $\mathcal N(\mu, c^2I)$. Where the model
    varies more than $r^2$ says, the paper's shift goes beyond what was measured, and is cut there (`View.bounded`):
    then it is no longer the gradient of the twist.

    Args:
        r2: $r^2$ as a function of the noise level $\sigma/\alpha$, or a number; None for the above, with the $c$ that
            the model knows, `data_std`.

    References:
        Song et al., Pseudoinverse-Guided Diffusion Models for Inverse Problems, 2023.
    """

    r2: float | Callable[[Any], Any] | None = None
    isotropic = True

    def __post_init__(self) -> None:
        _check_r2(self.r2)

    def products(self, d: int) -> int:
        return min(1, d)

    def twistless(self, likelihood: GaussianLikelihood) -> str | None:
        return _twistless(self, likelihood)

    def weigh(self, view: View) -> tuple[Tensor, Tensor | None]:
        u, log_p = isotropic(view, view.spread(self.r2))
        return view.bounded(view.pulled(view.back(u)[None])[0], u), log_p


@dataclass(frozen=True)
class JacobianFree(Rule):
    r"""One variance for all directions, and no derivative of the network.

    $$ V = r^2 I, \quad \Delta = r^2A^TS^{-1}(y - A m), \quad r^2 = \frac{c^2\sigma^2}{\alpha^2c^2 + \sigma^2} $$

    One evaluation and nothing more; networks without a graph will do. Exact for data from $\mathcal N(\mu, c^2I)$.

    Args:
        r2: As in `PseudoInverse`.

    References:
        Zhu et al., Denoising Diffusion Models for Plug-and-Play Image Restoration, 2023, whose data step it is.
    """

    r2: float | Callable[[Any], Any] | None = None
    graph = False
    isotropic = True

    def __post_init__(self) -> None:
        _check_r2(self.r2)

    def products(self, d: int) -> int:
        return 0

    def twistless(self, likelihood: GaussianLikelihood) -> str | None:
        return _twistless(self, likelihood)

    def weigh(self, view: View) -> tuple[Tensor, Tensor | None]:
        r2 = view.spread(self.r2)
        u, log_p = isotropic(view, r2)
        return view.back(u) * r2, log_p


@dataclass(frozen=True)
class DPS(Rule):
    r"""No covariance: the likelihood at the mean, in units of the residual of each sample.

    $$ \Delta = -\tfrac\zeta2\,\tfrac{\sigma^2}{\alpha}\,\frac{\nabla_{x_t}|r|^2}{\max(1, |r|^2/d)}, \quad
       r = (y - A m)/\sigma_y $$

    The paper moves each state by $\zeta\,\nabla|y - Am|$ in each of its steps, so that what it samples depends on
    their number; here the residual of the sample stands for the covariance, and it is a law. The norm is that of one
    sample and not of the batch. It lives by shooting over; a shift of more than four times the way to what was measured
    is cut, which networks of the noise need. One evaluation and one product with the Jacobian.

    Args:
        zeta: $\zeta > 0$.

    References:
        Chung et al., Diffusion Posterior Sampling for General Noisy Inverse Problems, 2023.
    """

    zeta: float = 1.0
    noise_from = 60  # where it shoots over, longer steps with noise leave the data

    def __post_init__(self) -> None:
        check_positive(self.zeta, "zeta")

    def products(self, d: int) -> int:
        return min(1, d)

    def weigh(self, view: View) -> tuple[Tensor, Tensor | None]:
        d = view.likelihood.size
        q = view.r.square().sum(1) / d
        more = q.clamp_min(1.0)
        u = view.r * (self.zeta / more)[:, None]
        shift = view.bounded(view.pulled(view.back(u)[None])[0], u, over=OVER)
        return shift, -0.5 * self.zeta * d * (torch.minimum(q, torch.ones_like(q)) + torch.log(more))


def _check_r2(r2: object) -> None:
    if r2 is None:
        return
    if is_real(r2):
        check_positive(r2, "r2")
    else:
        check_callable(r2, "r2", "a number, or a function of the noise level")


def _twistless(rule: Rule, likelihood: GaussianLikelihood) -> str | None:
    kind = likelihood.measurement
    diagonal = kind.diagonal(likelihood.std.new_zeros(likelihood.shape))
    if diagonal is not None or likelihood.size <= (EIGEN if kind.linear else DENSE):
        return None
    return (
        f"{rule!r} finds no determinant of {kind!r} with {likelihood.size} numbers, and so no twist: take a Mask or "
        "Downsample, whose matrix is diagonal, or measure less"
    )
