"""What the bound through a codec answers: log p(x) from below, term by term, and how far to trust it. In nats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_real
from sde_diffusion.likelihood.bits import bits_per_dim, check_no_width
from sde_diffusion.likelihood.draws import t_quantile

PER_ROW = ("solver_error", "truncation")


@dataclass(frozen=True, eq=False)
class LatentBound:
    r"""A lower bound on the log-likelihood of each sample, estimated; tensors are float64 on the CPU.

    $$ \log p(x) \ge \underbrace{\mathrm E_q\log p(x \mid z)}_{\text{reconstruction}}
       + \underbrace{\mathrm E_q\log p(z)}_{\text{prior}} + \underbrace{\mathrm H[q]}_{\text{entropy}} $$

    What separates `value` from the bound is told apart: `standard_error`, of the draws of the codes and of the probes
    and levels that weigh them, and `solver_error`, which no draw averages away. How far the bound lies below log p(x)
    is $\mathrm{KL}(q\,\|\,p(z \mid x))$, and nothing here knows it.

    Attributes:
        draws: Of each draw and each sample the three terms, in the order above, shape `(K, B, 3)`.
        by: How the codes are weighed: `"log_prob"`, by the exact density of the probability flow, or `"bound"`, by the
            bound of the diffusion, which makes it the bound of a bound.
        solver_error: Of the density of the codes, as `LogProb` tells it, the mean over the draws, `(B,)`; 0 by a bound,
            NaN where it was not asked for.
        truncation: Estimate of the difference to the density of codes without noise, the mean over the draws, `(B,)`;
            no error, but that of another density. NaN where unknown, 0 by a bound.
        level: Noise level $\sigma/\alpha$ of the density of the codes, whose scale is 1; NaN by a bound.
        dim: $D$, coordinates of one sample.
        code_dim: Coordinates of one code.
        discrete: Whether it bounds the log-probability of discrete values, not a log-density.
        nfe: Network evaluations per sample, of all draws together.
        stretch: How many times as wide as the encoder says the codes were drawn.
    """

    draws: Tensor
    by: str
    solver_error: Tensor
    truncation: Tensor
    level: float
    dim: int
    code_dim: int
    discrete: bool
    nfe: int
    stretch: float = 1.0

    @property
    def reconstruction(self) -> Tensor:
        r"""$\mathrm E_q\log p(x \mid z)$, shape `(B,)`."""
        return self.draws[..., 0].mean(0)

    @property
    def prior(self) -> Tensor:
        r"""$\mathrm E_q\log p(z)$ of codes at unit scale, shape `(B,)`."""
        return self.draws[..., 1].mean(0)

    @property
    def entropy(self) -> Tensor:
        r"""$\mathrm H[q] = -\mathrm E_q\log q(z \mid x)$ of codes at unit scale, shape `(B,)`."""
        return self.draws[..., 2].mean(0)

    @property
    def value(self) -> Tensor:
        """The bound, the sum of the three terms, shape `(B,)`."""
        return self.draws.sum(-1).mean(0)

    @property
    def standard_error(self) -> Tensor:
        """Standard error of `value` over the draws, shape `(B,)`; NaN of one draw, which cannot tell."""
        return _error(self.draws.sum(-1))

    @property
    def term_errors(self) -> Tensor:
        """Standard errors of the three terms over the draws, in their order, shape `(B, 3)`.

        The terms share their draws: those of `value` are not their sum in squares.
        """
        return _error(self.draws)

    @property
    def mean(self) -> float:
        """The mean of `value` over the rows."""
        return float(self.value.mean())

    @property
    def mean_standard_error(self) -> float:
        """Standard error of `mean` as that of these very rows: over the draws alone."""
        return float(self.standard_error.square().sum().sqrt()) / len(self.value)

    @property
    def population_standard_error(self) -> float:
        """Standard error of `mean` as the expectation over the law of the data: over the rows and the draws."""
        return float(_error(self.value))

    def interval(self, coverage: float = 0.95, *, population: bool = False) -> tuple[float, float]:
        r"""An interval for the mean of the bound, which lies below log p(x), in nats.

        $$ \bar L \pm (t\,\mathrm{se} + \overline{\text{solver error}}) $$

        with $t$ the quantile of Student's distribution: of $B - 1$ degrees of freedom over the rows, and over the draws
        of $(\sum_i\mathrm{se}_i^2)^2(K - 1)/\sum_i\mathrm{se}_i^4$.

        Args:
            coverage: The share of such intervals that hold it.
            population: For the expectation over the law of the data, rather than the mean of these rows.
        """
        if not 0 < check_real(coverage, "coverage") < 1:
            raise ValueError(f"coverage must lie between 0 and 1, got {coverage!r}")
        square = self.standard_error.square()
        freedom: float = len(self) - 1
        if not population and float(square.sum()) > 0:
            freedom = float(square.sum() ** 2 / square.square().sum()) * (len(self.draws) - 1)
        error = self.population_standard_error if population else self.mean_standard_error
        half = float(self.solver_error.nan_to_num().mean())
        half += t_quantile(coverage, max(1.0, freedom)) * error if error else 0.0
        return self.mean - half, self.mean + half

    def bits_per_dim(self, bin_width: float | None = None) -> Tensor:
        r"""The cost of one coordinate in bits, at most, shape `(B,)`.

        Args:
            bin_width: $\Delta$ in the units of the data, if the bound is on a density: $-(L/D + \log\Delta)/\log 2$.
                A bound on the probability of discrete values, by a decoder with bins, has it already.
        """
        if not self.discrete:
            return bits_per_dim(self.value, self.dim, bin_width=bin_width)
        check_no_width(bin_width)
        return -self.value / (self.dim * math.log(2))

    @property
    def bits_standard_error(self) -> Tensor:
        """Standard error of `bits_per_dim` over the draws, shape `(B,)`."""
        return self.standard_error / (self.dim * math.log(2))

    @staticmethod
    def join(parts: Sequence[LatentBound]) -> LatentBound:
        """The batches of one computation as one batch.

        Raises:
            ValueError: Bounds that were made otherwise.
        """
        kinds = {(len(p.draws), p.by, str(p.level), p.dim, p.code_dim, p.discrete, p.stretch) for p in parts}
        if len(kinds) != 1:
            raise ValueError(
                f"wanted parts of one bound, got (draws, by, level, dim, code_dim, discrete, stretch) = {sorted(kinds)}"
            )
        joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in PER_ROW}
        draws = torch.cat([part.draws for part in parts], 1)
        return replace(parts[0], draws=draws, **joined, nfe=max(part.nfe for part in parts))

    def __len__(self) -> int:
        return self.draws.shape[1]

    def __repr__(self) -> str:
        return f"<LatentBound: {self}>"

    def __str__(self) -> str:
        n = len(self)
        terms = [float(v.mean()) for v in (self.reconstruction, self.prior, self.entropy)]
        errors = [float(v) / n for v in self.term_errors.square().sum(0).sqrt()]
        named = zip(("reconstruction", "prior", "entropy"), terms, errors, strict=True)
        parts = ", ".join(f"{name} {term:.4f} +- {error:.2g}" for name, term, error in named)
        by = "the bound of the diffusion" if self.by == "bound" else "log_prob"
        if self.by == "log_prob" and not math.isnan(self.level):
            by += f" at noise level {self.level:.3g}"
        if bool((self.solver_error > 0).any()):
            by += f", solver_error {float(self.solver_error.square().mean().sqrt()):.1e}"
        wide = "" if self.stretch == 1.0 else f" {self.stretch:.4g} times as wide"
        return (
            f"log p >= {self.mean:.4f} +- {self.mean_standard_error:.2g} (draws), +- "
            f"{self.population_standard_error:.2g} (over samples) nats, mean of {n}: {parts}; codes by {by}; "
            f"{len(self.draws)} draws{wide}, {self.nfe} evaluations"
        )


def _error(x: Tensor) -> Tensor:
    """Standard error of a mean over the first axis; NaN of one."""
    return x.std(0) / math.sqrt(len(x)) if len(x) > 1 else torch.full_like(x[0], math.nan)
