r"""What particles answer: weighted samples of a law, and how likely it is, with an interval.

Each system gives an unbiased estimate $\hat Z_m$ of the evidence $Z$, the mean weight of its particles. Over $M$,

$$ \log\hat Z = \log\tfrac1M\sum_m\hat Z_m, \quad \mathrm{se} = \frac{\mathrm{std}(\hat Z_m)}{\sqrt M\,\hat Z} $$

and the interval is $\log\hat Z \pm t_{M - 1}\,\mathrm{se}$, with the quantile of Student's law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_real
from sde_diffusion.likelihood.draws import t_quantile
from sde_diffusion.noise.seeds import Use, one_stream
from sde_diffusion.particles.resampling import effective, log_mean, systematic

FEW = 10
"""Effective particles of a system, in the end, below which it is told of."""


@dataclass(frozen=True, eq=False)
class Particles:
    r"""Weighted samples of a law, of $M$ systems of $N$ particles.

    Attributes:
        x: The particles, shape `(M, N, *)`.
        log_weights: Logarithms of their weights, `(M, N)`, in float64 on the CPU. The mean weight of a system is its
            estimate of the evidence, so that systems may be pooled.
        ess: Effective number of particles of each system, `(M, steps + 2)`: at each time of the grid before any
            resampling, and with the weights of the data.
        nfe: Network evaluations per particle.
        vjps: Products with the Jacobian of the network per particle.
        solver_error: The difference of `log_evidence` to that of half the steps, with the same seeds, in nats. It holds
            the standard error of both, so that it is an upper bound where it is of that size; NaN if not asked for.
            Of systems of a law each, the most of them.
        apart: Names of the conditions that differ between the systems, each of which has a law of its own then: nothing
            is pooled, `log_evidences` are those of the laws, and `system(m)` has the samples.
    """

    x: Tensor
    log_weights: Tensor
    ess: Tensor
    nfe: int
    vjps: int = 0
    solver_error: float = math.nan
    apart: tuple[str, ...] = ()

    def system(self, m: int) -> Particles:
        """System `m` alone.

        Raises:
            IndexError: There is none.
        """
        systems = len(self.x)
        if not 0 <= m < systems:
            raise IndexError(f"there are {systems} systems, from 0 to {systems - 1}, got m={m!r}")
        own = slice(m, m + 1)
        return replace(self, x=self.x[own], log_weights=self.log_weights[own], ess=self.ess[own], apart=())

    @property
    def few(self) -> bool:
        """Whether few particles count, in the end or on the way: samples and evidence are not to be trusted then."""
        n = self.log_weights.shape[1]
        if n == 1:
            return self.effective < min(FEW, 0.5 * len(self.x))
        return bool((self.ess[:, -1] < min(FEW, 0.5 * n)).any() or (self.ess < least(n)).any())

    @property
    def log_evidences(self) -> Tensor:
        """The estimate of each system, in nats, shape `(M,)`."""
        return log_mean(self.log_weights)

    @property
    def log_evidence(self) -> float:
        r"""$\log\hat Z$ in nats: of a posterior $\log p(y)$, of a product $\log\int\prod_ip_i^{\gamma_i}$."""
        self._check_pooled("log_evidence")
        return float(log_mean(self.log_evidences[None]))

    @property
    def standard_error(self) -> float:
        """Standard error of `log_evidence`, in nats; NaN for one system, which cannot tell."""
        self._check_pooled("standard_error")
        found = self.log_evidences
        if len(found) < 2:
            return math.nan
        share = torch.exp(found - found.max())
        return float(share.std() / share.mean()) / math.sqrt(len(found))

    @property
    def effective(self) -> float:
        """Effective number of all particles, with the weights of the data."""
        self._check_pooled("effective")
        return float(effective(self.log_weights.reshape(1, -1)))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """An interval that holds the logarithm of the evidence with a probability of `level`, in nats.

        It stands for what chance does, not for the error of the steps, see `solver_error`.

        Args:
            level: Between 0 and 1.

        Raises:
            ValueError: One system, or a level that is no probability.
        """
        if not 0 < check_real(level, "level") < 1:
            raise ValueError(f"level must be between 0 and 1, such as 0.95, got {level!r}")
        self._check_pooled("interval")
        systems = len(self.x)
        if systems < 2:
            raise ValueError(
                "one system does not tell how far its estimate is off: draw several, sample(systems=8), with fewer "
                "particles each"
            )
        value, off = self.log_evidence, t_quantile(level, systems - 1) * self.standard_error
        return value - off, value + off

    def draw(self, n: int, seed: int | torch.Generator | None = None) -> Tensor:
        """`n` samples of the law, shape `(n, *)`: particles of all systems, by their weights, in random order.

        They are resampled systematically, a system as often as its estimate of the evidence says. Many draws repeat
        particles: no more of them differ than the effective number that there is.

        Args:
            n: How many.
            seed: An integer, a generator on the CPU, or None for fresh entropy.
        """
        self._check_pooled("draw")
        generator = one_stream(seed, use=Use.RESAMPLING)
        u = torch.rand(1, generator=generator, dtype=torch.float64, device="cpu")
        numbers = systematic(self.log_weights.reshape(1, -1), u, check_count(n, "n"))[0]
        numbers = numbers[torch.randperm(len(numbers), generator=generator, device="cpu")]
        return self.x.flatten(0, 1)[numbers.to(self.x.device)]

    def mean(self) -> Tensor:
        """Weighted mean of all particles, of the event shape."""
        self._check_pooled("mean")
        return self._average(self.x.flatten(0, 1))

    def var(self) -> Tensor:
        """Weighted variance of each coordinate, of the event shape."""
        self._check_pooled("var")
        return self._average((self.x.flatten(0, 1) - self.mean()).square())

    def _average(self, values: Tensor) -> Tensor:
        share = torch.softmax(self.log_weights.flatten(), dim=0).to(values)
        return torch.tensordot(share, values, dims=1)

    def _check_pooled(self, what: str) -> None:
        if self.apart:
            raise ValueError(
                f"{what} is that of one law, and each of the {len(self.x)} systems has {', '.join(self.apart)} of its "
                f"own: found.log_evidences has the evidence of each, and found.system(m).{what} is of system m alone. "
                "Several systems of each, for an interval, are another call"
            )

    def __str__(self) -> str:
        m, n = self.log_weights.shape
        check = "" if math.isnan(self.solver_error) else f", solver_error {self.solver_error:.2g}"
        products = f", {self.vjps} products with the Jacobian" if self.vjps else ""
        what = f"{m} system{'s' * (m > 1)} of {n} particle{'s' * (n > 1)}"
        doubt = ", few particles count" if self.few else ""
        cost = f"nfe {self.nfe}{products}{doubt}"
        if self.apart:
            low, high = self.log_evidences.aminmax()
            own = f"each with {', '.join(self.apart)} of its own"
            return f"{what}, {own}: log evidences {low:.4f} to {high:.4f} nats{check}, {cost}"
        error = f" +- {self.standard_error:.2g}" if m > 1 else ""
        return (
            f"{what}: log evidence {self.log_evidence:.4f}{error} nats{check}, {self.effective:.0f} effective, {cost}"
        )

    def __repr__(self) -> str:
        return f"<Particles of {self}>"


def least(n: int) -> float:
    """Effective particles of `n` below which, at any time, a system goes on with too few."""
    return min(0.5 * FEW, 0.25 * n)
