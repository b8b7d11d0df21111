r"""What a solver makes of Gaussian data, exactly and before any network is asked.

On data $\mathcal N(\mu, c^2)$ every solver with steps of its own is affine in state and noise. One solve in which each
row gets a single unit impulse shows the whole response, and with it the mean and the variance of what would be drawn.
Few numbers tell more: the state of a process is Gaussian to begin with, so that a solver that cannot carry a Gaussian
down from the prior cannot carry anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion._checks import SolverError
from sde_diffusion.denoiser import predict
from sde_diffusion.denoiser.network import Network
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level, Scalar
from sde_diffusion.solvers.base import Solver
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.solvers.loop import integrate

MOST_DRAWS = 10_000
"""Draws up to which a response is looked for, with a row of the state for each."""


class Impulses(NoiseSource):
    """Row `k + 3` gets a unit of noise at draw `k` and none elsewhere; the first three rows, of states 0, 1, 2, none.

    A solver that is affine in state and noise shows its whole response in one solve.
    """

    def __init__(self, draws: int) -> None:
        super().__init__((1,), torch.float64, "cpu")
        self.rows, self.drawn = draws + 3, 0

    def prior(self) -> Tensor:
        x = torch.zeros(self.rows, 1, dtype=torch.float64, device="cpu")
        x[1], x[2] = 1.0, 2.0
        return x

    def __call__(self, t: float, s: float) -> Tensor:
        z = torch.zeros(self.rows, 1, dtype=torch.float64, device="cpu")
        if self.drawn + 3 < self.rows:
            z[self.drawn + 3] = 1.0
        self.drawn += 1
        return z


class NotAffineError(ValueError):
    """A solver whose moments do not follow from impulses."""


class Response(NamedTuple):
    """What a solver that is affine in state and noise makes of a scalar state: `offset + gain x` and some noise.

    Attributes:
        offset: Where the state 0 goes.
        gain: Factor on the state.
        variance: Variance of the noise added.
        draws: How often it drew.
    """

    offset: float
    gain: float
    variance: float
    draws: int

    def moments(self, mean: float, variance: float) -> tuple[float, float]:
        """Mean and variance of the result, from those of the state."""
        return self.offset + self.gain * mean, self.gain**2 * variance + self.variance


def response(run: Callable[[Tensor, NoiseSource], Tensor], draws: int) -> Response:
    """The response of `run(x, noise)`, with `x` of shape `(B, 1)`, by one run over unit impulses.

    Args:
        run: The solve.
        draws: How often it draws noise, as a guess: another number costs a second run.

    Raises:
        NotAffineError: It is not affine, as an adaptive solver is not, or draws more than 10,000 times.
    """
    impulses = Impulses(draws)
    out = run(impulses.prior(), impulses).flatten()
    if impulses.drawn > MOST_DRAWS:
        raise NotAffineError(f"draws {impulses.drawn} times: too often for a row each")
    if impulses.drawn != draws:  # so many it is
        impulses = Impulses(impulses.drawn)
        out = run(impulses.prior(), impulses).flatten()
    zero, one, two = out[:3].tolist()
    gain = one - zero
    if impulses.drawn != impulses.rows - 3 or abs(two - zero - 2 * gain) > 1e-9 * (1 + abs(two)):
        raise NotAffineError("is not affine in its state: its moments do not follow from impulses")
    return Response(zero, gain, float((out[3:] - zero).square().sum()), impulses.drawn)


class Misfit(NamedTuple):
    """How far a solve of Gaussian data ends from them.

    Attributes:
        mean: Error of the mean.
        std: Factor by which the standard deviation is off; 1 is right.
    """

    mean: float
    std: float


def misfit(
    sde: GaussianSDE, solver: Solver, times: Sequence[float], mean: float, data_std: float, *, finish: bool = False
) -> Misfit | None:
    r"""What a solver on a grid makes of data $\mathcal N(\mu, c^2)$, started from their exact law.

    No network is asked: the denoiser of such data is known. The cost is that of a solve whose state has three numbers,
    and one more for each draw of noise.

    Args:
        sde: Any Gaussian SDE.
        solver: A solver with steps of its own: one that chooses them by a tolerance is answered None.
        times: The grid, falling.
        mean: $\mu$.
        data_std: $c$.
        finish: Whether the solver then goes on to the data, which the moments are those of.

    Returns:
        The misfit at the last time, or of the data, infinite where the numbers overflow; None where the solver is not
        affine.
    """
    first, last = sde.levels([times[0], times[-1]])
    alpha, sigma = (1.0, 0.0) if finish else (last.alpha, last.sigma)

    def run(x: Tensor, noise: NoiseSource) -> Tensor:
        eq = GaussianReverseSDE(_gaussian_data(sde, mean, data_std))
        *_, now = integrate(eq, solver, x, times, noise, finish=finish)
        return now.x

    try:
        found = response(run, len(times) - 1 if solver.facts.stochastic else 0)
    except NotAffineError:
        return None
    except SolverError:
        return Misfit(math.inf, math.inf)
    got = found.moments(first.alpha * mean, (first.alpha * data_std) ** 2 + first.sigma**2)
    if not all(math.isfinite(v) for v in got):
        return Misfit(math.inf, math.inf)
    return Misfit(got[0] - alpha * mean, math.sqrt(got[1]) / math.hypot(alpha * data_std, sigma))


def _gaussian_data(sde: GaussianSDE, mean: float, c: float) -> Network:
    r"""The exact denoiser of $\mathcal N(\mu, c^2)$: the answer of EDM's $F$ is one number for each level."""

    def answer(at: Level) -> Scalar:
        f: Scalar = mean / c * at.sigma / (at.alpha * at.alpha * c * c + at.sigma * at.sigma) ** 0.5
        return f

    return Network(lambda x, f: f.reshape(x.shape), sde, predict.EDM(c), clock=answer)
