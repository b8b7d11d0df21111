r"""What the likelihoods answer: a log-density with its error budget, or a bound term by term.

All of it is in nats, but what has bits in its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_real
from sde_diffusion.likelihood.bits import bits_per_dim, check_no_width
from sde_diffusion.likelihood.draws import t_quantile

PER_ROW = ("value", "standard_error", "solver_error", "truncation", "latent", "converged")


@dataclass(frozen=True, eq=False)
class LogProb:
    r"""The log-likelihood of a batch, in nats, and how far to trust it.

    A record: indexing takes rows, `to`, `cpu` and `detach` do what they do to tensors, and whatever is to be computed
    is computed with `value`. Data that were scaled, $x = s z + m$, have `log_prob(z).value - s.log().sum()`.

    Attributes:
        value: Log-density at noise level `level`, in the units of the data, shape `(B,)`; NaN where not `converged`.
        standard_error: What random probes of the divergence leave open, `(B,)`; 0 where it is exact.
        solver_error: Error of the integration, `(B,)`: the difference to a solve at ten times the tolerance, or on
            every second time (on 16, where there are fewer than 8), and to its latent in units of the prior, added in
            squares; not less than what one adaptive step is allowed. It exceeds the error in most rows, often tenfold.
            NaN if not asked for, `inf` where the second solve broke down.
        truncation: Estimate of $\log p_0 - \log p_S$, `(B,)`, by the heat equation, $O(S^4)$ for an exact score; NaN
            where unknown. The error of a trained network at its smallest noise level may be larger than this
            difference: there `Density(level=0.0)` tells, not this. If `corrected`, it is part of `value`.
        latent: The state at the end of the integration, `(B, *)`: a draw of $\mathcal N(0, I)$ if `whole`, and else of
            the prior of the sampler, at its first time.
        nfe: Network evaluations of the solve, those of its slowest row, in any batch, not counting the derivatives.
        converged: Mask `(B,)` of the rows whose integration arrived.
        dim: $D$, coordinates per sample.
        level: Noise level $S = \sigma/\alpha$ of the density; NaN for a general SDE.
        whole: Whether the integration went up to $\alpha = 0$, where the prior is exact.
        corrected: Whether `value` holds the `truncation`, and so estimates $\log p_0$.
        nfe_check: Evaluations of the second solve, behind `solver_error`.
    """

    value: Tensor
    standard_error: Tensor
    solver_error: Tensor
    truncation: Tensor
    latent: Tensor
    nfe: int
    converged: Tensor
    dim: int
    level: float = math.nan
    whole: bool = False
    corrected: bool = False
    nfe_check: int = 0

    @property
    def total_error(self) -> Tensor:
        """Standard error and solver error, added in squares, `(B,)`: of `value` as the density at `level`."""
        return torch.hypot(self.standard_error, self.solver_error)

    def bits_per_dim(self, bin_width: float) -> Tensor:
        r"""The cost of one coordinate known to bins of width $\Delta$, in bits, shape `(B,)`, for dequantised data.

        $$ -\big(\log p(x)/D + \log\Delta\big)/\log 2 $$

        Args:
            bin_width: $\Delta$, in the units of the data.
        """
        return bits_per_dim(self.value, self.dim, bin_width=bin_width)

    @property
    def bits_standard_error(self) -> Tensor:
        """Standard error of `bits_per_dim`, shape `(B,)`."""
        return self.standard_error / (self.dim * math.log(2))

    def mean(self) -> Tensor:
        """Mean of `value` over the rows that converged, shape `()`."""
        return self.value[self.converged].mean()

    def to(self, *args: Any, **options: Any) -> LogProb:
        """The record on another device or in another dtype, as `Tensor.to` takes them."""
        return self._each(
            lambda v: v.to(*args, **options) if v.is_floating_point() else v.to(v.to(*args, **options).device)
        )

    def cpu(self) -> LogProb:
        """The record on the CPU."""
        return self._each(Tensor.cpu)

    def detach(self) -> LogProb:
        """The record without its graph."""
        return self._each(Tensor.detach)

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, index: Any) -> LogProb:
        if isinstance(index, Integral) or (isinstance(index, Tensor) and index.ndim == 0 and index.dtype != torch.bool):
            index = int(index)
            index = slice(index, None if index == -1 else index + 1)
            if not len(self.value[index]):
                raise IndexError(f"row {index.start} of {len(self)}")
        return self._each(lambda v: v[index])

    def __repr__(self) -> str:
        return f"<LogProb of {self}>"

    def __str__(self) -> str:
        n, v = len(self), self.value.detach()[self.converged]
        at = "" if math.isnan(self.level) else f" at noise level {self.level:.3g}"
        spread = f" +- {float(v.std()) / math.sqrt(len(v)):.2g} (over samples)" if len(v) > 1 else ""
        parts = [f"{n} sample{'s' * (n > 1)}: {float(v.mean()):.4f}{spread} nats{at}"]
        for name in ("standard_error", "solver_error", "truncation"):
            errors = getattr(self, name).detach()[self.converged]
            if bool(errors.isnan().all()) or bool((errors == 0).all()):
                continue
            what = f"{name} {float(errors.square().mean().sqrt()):.1e}"
            parts.append(what + " corrected" * (name == "truncation" and self.corrected))
        lost = int((~self.converged).sum())
        parts += [f"nfe {self.nfe}"] + [f"{lost} not converged"] * bool(lost)
        return ", ".join(parts)

    def _each(self, take: Callable[[Tensor], Tensor]) -> LogProb:
        rows: dict[str, Any] = {name: take(getattr(self, name)) for name in PER_ROW}
        return replace(self, **rows)

    @staticmethod
    def join(parts: Sequence[LogProb]) -> LogProb:
        """The batches of one computation as one batch; `nfe` is that of the slowest.

        Raises:
            ValueError: Densities at different levels, or of which some are corrected.
        """
        kinds = {(str(part.level), part.whole, part.corrected) for part in parts}
        if len(kinds) != 1:
            raise ValueError(f"wanted parts of one density, got (level, whole, corrected) = {sorted(kinds)}")
        joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in PER_ROW}
        for name in ("nfe", "nfe_check"):
            joined[name] = max(getattr(part, name) for part in parts)
        return replace(parts[0], **joined)


@dataclass(frozen=True)
class DatasetLogProb:
    r"""The mean log-likelihood of a data set, in nats, and how far to trust it.

    Attributes:
        value: Estimate of the mean log-density over the rows of the data set, at noise level `level`.
        standard_error: Of `value` as the mean over these very rows: from the choice of rows that were weighed finely,
            and from random probes of the divergence. No error of the data: were all rows weighed finely, it is 0.
        population_standard_error: Of `value` as the expectation over the law that the rows were drawn from; it holds
            the sampling error of the data as well.
        bias: What the finest solves may be off on average: a third of the last difference, $(\overline{|D_L|} +
            \mathrm{se})/3$, which a method of order two leaves at twice the steps, and more where the differences fall
            more slowly, or one alone cannot tell. Rows that are off either way do not cancel.
        rows: Rows that were weighed at each level, all of them at the first.
        steps: Steps of a solve at each level.
        evaluations: Network passes spent at each level, each with its divergence.
        products: Products with the Jacobian spent on the divergences at each level: $D$ for each velocity where it is
            exact, `k` with `k` probes.
        dim: $D$, coordinates per sample.
        level: Noise level $S = \sigma/\alpha$ of the density.
        freedom: Degrees of freedom of the standard error: few where few rows hold most of it.
    """

    value: float
    standard_error: float
    population_standard_error: float
    bias: float
    rows: tuple[int, ...]
    steps: tuple[int, ...]
    evaluations: tuple[int, ...]
    products: tuple[int, ...]
    dim: int
    level: float
    freedom: float = math.inf

    @property
    def evaluations_per_row(self) -> float:
        """Network passes over the rows of the data set."""
        return sum(self.evaluations) / self.rows[0]

    def interval(self, coverage: float = 0.95, *, population: bool = False) -> tuple[float, float]:
        r"""An interval for the mean, $\hat\mu \pm (t\,\mathrm{se} + \mathrm{bias})$, in nats, with $t$ the quantile of
        Student's distribution of `freedom`.

        Args:
            coverage: The share of such intervals that hold it.
            population: For the expectation over the law of the data, rather than the mean of these rows.
        """
        if not 0 < check_real(coverage, "coverage") < 1:
            raise ValueError(f"coverage must lie between 0 and 1, got {coverage!r}")
        error = self.population_standard_error if population else self.standard_error
        half = t_quantile(coverage, self.freedom) * error + self.bias
        return self.value - half, self.value + half

    def bits_per_dim(self, bin_width: float) -> float:
        r"""The mean cost of one coordinate known to bins of width $\Delta$, in bits, for dequantised data.

        Args:
            bin_width: $\Delta$, in the units of the data.
        """
        value = torch.tensor(self.value, dtype=torch.float64, device="cpu")
        return float(bits_per_dim(value, self.dim, bin_width=bin_width))

    @property
    def bits_standard_error(self) -> float:
        """Standard error of `bits_per_dim` as the mean over these rows."""
        return self.standard_error / (self.dim * math.log(2))

    @property
    def bits_bias(self) -> float:
        """The `bias` of `bits_per_dim`."""
        return self.bias / (self.dim * math.log(2))

    def __str__(self) -> str:
        levels = ", ".join(f"{n} by {s}" for n, s in zip(self.rows, self.steps, strict=True))
        return (
            f"mean of {self.rows[0]} rows: {self.value:.4f} +- {self.standard_error:.2g}, bias {self.bias:.1g} nats "
            f"at noise level {self.level:.3g} (+- {self.population_standard_error:.2g} over samples); rows and steps "
            f"{levels}; {self.evaluations_per_row:.1f} evaluations per row"
        )


@dataclass(frozen=True)
class Elbo:
    r"""An upper bound on minus the log-likelihood of each sample, in nats; tensors are float64 on the CPU.

    Attributes:
        prior: $L_T$, shape `(B,)`; exact.
        transitions: Shape `(B, T - 1)`; column `i` is the step from level `i + 1` to level `i`. Where levels are drawn
            at random, each column is unbiased and most are zero. In the continuous bound, a column is a slice.
        reconstruction: $L_0$, shape `(B,)`.
        standard_error: Standard error of `total` over the noise, shape `(B,)`; NaN for one draw, which cannot tell.
        dim: $D$, coordinates per sample.
        discrete: Whether it bounds the probability of discrete values, not a density.
        nfe: Network evaluations per sample.
    """

    prior: Tensor
    transitions: Tensor
    reconstruction: Tensor
    standard_error: Tensor
    dim: int
    discrete: bool
    nfe: int

    @property
    def total(self) -> Tensor:
        """The bound, in nats, shape `(B,)`."""
        return self.prior + self.transitions.sum(1) + self.reconstruction

    def bits_per_dim(self, bin_width: float | None = None) -> Tensor:
        r"""The bound on the cost of one coordinate, in bits, shape `(B,)`.

        Args:
            bin_width: $\Delta$ in the units of the data, if the bound is on a density: $(L/D - \log\Delta)/\log 2$. A
                bound on the probability of discrete values, by a decoder with bins, has it already.
        """
        if not self.discrete:
            return bits_per_dim(-self.total, self.dim, bin_width=bin_width)
        check_no_width(bin_width)
        return self.total / (self.dim * math.log(2))

    @property
    def bits_standard_error(self) -> Tensor:
        """Standard error of `bits_per_dim`, shape `(B,)`."""
        return self.standard_error / (self.dim * math.log(2))

    @staticmethod
    def join(parts: Sequence[Elbo]) -> Elbo:
        """The batches of one computation as one batch.

        Raises:
            ValueError: Bounds of different chains, or of densities and of probabilities.
        """
        kinds = {(part.transitions.shape[1], part.dim, part.discrete) for part in parts}
        if len(kinds) != 1:
            raise ValueError(f"wanted parts of one bound, got (transitions, dim, discrete) = {sorted(kinds)}")
        names = ("prior", "transitions", "reconstruction", "standard_error")
        joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return replace(parts[0], **joined, nfe=max(part.nfe for part in parts))

    def __str__(self) -> str:
        n = len(self.total)
        error = float(self.standard_error.square().sum().sqrt()) / n
        parts = [float(v.mean()) for v in (self.total, self.prior, self.transitions.sum(1), self.reconstruction)]
        return (
            f"-log p <= {parts[0]:.4f} +- {error:.4f} nats, mean of {n}: prior {parts[1]:.4f}, "
            f"transitions {parts[2]:.4f}, reconstruction {parts[3]:.4f}; {self.nfe} evaluations"
        )
