r"""Are samples of posteriors calibrated? Ranks, coverage and TARP, with p-values, for samples from anywhere.

Parameters are drawn from the prior, $\theta_i$, an observation of each is simulated, and of its posterior come samples.
If these are right, the parameter is one more draw of the same law, so that any statistic which treats all of them alike
ranks it uniformly among them: its place $u_i \in (0, 1)$, the share of the samples below it, ties and the width of a
place broken at random, is uniform. Each function takes another statistic, and sees other faults:

* `ranks`: each coordinate. Sees a shift and a width that is wrong, coordinate by coordinate.
* `coverage`: the distance from the mean of all. Sees credible regions that are too small or too large, jointly.
* `tarp`: the distance from a point at random. Sees what the others do, and dependencies between coordinates, weakly.

None sees a posterior that ignores its observation: the prior passes all three. Compare with exact samples for that,
`check_posterior`, or look at how narrow it is. Samples of one posterior must be independent: thin those of
a chain first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion._checks import check_finite, check_like, check_seed, check_state
from sde_diffusion.noise.seeds import Use, one_stream


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""How calibrated posteriors are, by one statistic.

    Args:
        statistic: `ranks`, `coverage` or `tarp`.
        places: $u_i$, shape `(N, k)`, uniform in `(0, 1)` if the posteriors are right.
        p_values: Of each column of places being uniform, by the Anderson-Darling test, shape `(k,)`.
        draws: Samples of each posterior.
    """

    statistic: str
    places: Tensor
    p_values: Tensor
    draws: int

    @property
    def p_value(self) -> float:
        r"""The probability of places as uneven as these if the posteriors are right: below 0.01, they hardly are.

        Of several columns the least, corrected for their number, $1 - (1 - p)^k$: uniform where they are independent,
        and not too small where they go together.
        """
        return -math.expm1(self.p_values.numel() * math.log1p(-min(float(self.p_values.min()), 1 - 1e-16)))

    def covered(self, level: float) -> tuple[float, float]:
        """The share of parameters in regions of this credibility, and its standard error.

        The regions of `coverage` are ellipsoids, those of `tarp` balls round the points, and those of `ranks` the
        central intervals, all coordinates taken together.
        """
        level = float(level)
        if not 0 < level < 1:
            raise ValueError(f"level is the credibility of a region, between 0 and 1, got {level:g}")
        u = (2 * self.places - 1).abs() if self.statistic == "ranks" else self.places
        return float((u <= level).double().mean()), math.sqrt(level * (1 - level) / len(u))

    def __repr__(self) -> str:
        n, k = self.places.shape
        columns = f", least of {k} coordinates" if k > 1 else ""
        return f"{self.statistic} of {n} parameters in {self.draws} samples each: p = {self.p_value:.3g}{columns}"


def ranks(theta: Tensor, samples: Tensor, *, seed: int = 0) -> Calibration:
    """The rank of each coordinate of the parameters among samples of their posteriors: simulation-based calibration.

    Args:
        theta: Parameters drawn from the prior, shape `(N, *)`.
        samples: Samples of the posterior given an observation of each, shape `(N, S, *)`.
        seed: Of the ties.

    Raises:
        TypeError: Not floating tensors.
        ValueError: Shapes that do not fit, fewer than 8 parameters or 2 samples, or values that are not finite.

    References:
        Talts et al., Validating Bayesian Inference Algorithms with Simulation-Based Calibration, 2018.

    Example:
        >>> theta = prior.sample((500,))
        >>> x = simulate(theta)
        >>> samples = torch.stack([posterior.sample((200,), x=one) for one in x])
        >>> ranks(theta, samples).p_value
    """
    theta, samples = _pair(theta, samples)
    return _calibration("ranks", theta, samples, seed)


def coverage(theta: Tensor, samples: Tensor, *, seed: int = 0) -> Calibration:
    """How often credible ellipsoids hold the parameter: the rank of its distance from the centre of all samples.

    Distances are in standard deviations of each coordinate; mean and deviations are those of the samples and the
    parameter together, so that the rank is uniform for any number of samples.

    Args:
        theta: As for `ranks`.
        samples: As for `ranks`.
        seed: As for `ranks`.

    Raises:
        TypeError, ValueError: As `ranks`.

    Example:
        >>> share, error = coverage(theta, samples).covered(0.9)
    """
    theta, samples = _pair(theta, samples)
    both = torch.cat([theta[:, None], samples], dim=1)
    scale = _positive(both.std(1, keepdim=True))
    far = ((both - both.mean(1, keepdim=True)) / scale).square().sum(2)
    return _calibration("coverage", far[:, :1], far[:, 1:, None], seed)


def tarp(theta: Tensor, samples: Tensor, *, references: Tensor | None = None, seed: int = 0) -> Calibration:
    r"""Tests of accuracy with random points: the rank of the distance of the parameter from a point of its own.

    Args:
        theta: As for `ranks`.
        samples: As for `ranks`.
        references: The points, shape `(N, *)`, which may depend on the observations and not on the parameters. By
            default normal, with the moments of all samples.
        seed: Of the points and the ties.

    Raises:
        TypeError, ValueError: As `ranks`, and points of another shape.

    References:
        Lemos et al., Sampling-Based Accuracy Testing of Posterior Estimators for General Inference, 2023.
    """
    given, (theta, samples) = theta, _pair(theta, samples)
    pooled = samples.flatten(0, 1)
    scale = _positive(pooled.std(0))
    if references is None:
        generator = one_stream(check_seed(seed), use=Use.REFERENCES)
        points = pooled.mean(0) + scale * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    else:
        check_finite(check_like(references, "references", given, "theta"), "references")
        points = references.detach().to("cpu", torch.float64).reshape(len(given), -1)
    far = ((theta - points) / scale).square().sum(1, keepdim=True)
    others = ((samples - points[:, None]) / scale).square().sum(2)
    return _calibration("tarp", far, others[..., None], seed)


def uniform_p_values(u: Tensor) -> Tensor:
    r"""The p-values of columns `(N, k)` being uniform, by Anderson and Darling, shape `(k,)`.

    $$ A^2 = -N - \tfrac1N\sum_i (2i - 1)\,\big[\log u_{(i)} + \log(1 - u_{(N+1-i)})\big] $$

    It sees shifts and tails alike. The law of $A^2$ is that of many samples, right to 0.005 for 8.

    References:
        Anderson and Darling, 1952; Marsaglia and Marsaglia, Evaluating the Anderson-Darling Distribution, 2004.
    """
    n = len(u)
    low = u.sort(dim=0).values.clamp(1e-12, 1 - 1e-12)
    weights = 2 * torch.arange(1, n + 1, dtype=torch.float64)[:, None] - 1
    z = (-n - (weights * (low.log() + torch.log1p(-low.flip(0)))).mean(0)).clamp_min(1e-3)
    inner = [2.00012, 0.247105, -0.0649821, 0.0347962, -0.0116720, 0.00168691]
    outer = [1.0776, -2.30695, 0.43424, -0.082433, 0.008056, -0.0003146]
    left = torch.exp(-1.2337141 / z) / z.sqrt() * sum(c * z**i for i, c in enumerate(inner))
    right = -torch.expm1(-torch.exp(sum((c * z**i for i, c in enumerate(outer)), torch.zeros_like(z))))
    tail = 0.00096515 * (6 / z).sqrt() * torch.exp(6 - z)  # of the largest term of A^2, beyond the range of the fit
    return torch.where(z < 2, 1 - left, torch.where(z < 6, right, tail)).clamp(0.0, 1.0)


def _calibration(statistic: str, theta: Tensor, samples: Tensor, seed: int) -> Calibration:
    """The places of values `(N, k)` among others `(N, S, k)`, ties broken at random."""
    generator = one_stream(check_seed(seed), use=Use.TIES)
    draws = samples.shape[1]
    below = (samples < theta[:, None]).sum(1)
    equal = (samples == theta[:, None]).sum(1)
    u = torch.rand(theta.shape, generator=generator, dtype=torch.float64)
    places = (below + u * (equal + 1)) / (draws + 1)
    return Calibration(statistic, places, uniform_p_values(places), draws)


def _pair(theta: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Checks parameters and samples, and flattens them to float64: `(N, D)`, `(N, S, D)`."""
    check_finite(check_state(theta, "theta"), "theta")
    check_finite(check_state(samples, "samples"), "samples")
    if samples.ndim != theta.ndim + 1 or samples.shape[0] != len(theta) or samples.shape[2:] != theta.shape[1:]:
        raise ValueError(
            f"samples must hold S samples for each of the {len(theta)} parameters, shape "
            f"{(len(theta), 'S', *theta.shape[1:])}, got {tuple(samples.shape)}"
        )
    if len(theta) < 8:
        raise ValueError(
            f"calibration takes at least 8 parameters with their posteriors, and rather 200: got {len(theta)}"
        )
    n, draws = samples.shape[:2]
    if draws < 2:
        raise ValueError(
            f"samples holds {draws} for each parameter, which has no rank among so few: give 2 at least, and rather 100"
        )
    wide = samples.detach().to("cpu", torch.float64).reshape(n, draws, -1)
    return theta.detach().to("cpu", torch.float64).reshape(n, -1), wide


def _positive(scale: Tensor) -> Tensor:
    """Standard deviations, 1 where there is none."""
    return torch.where(scale > 0, scale, 1.0)
