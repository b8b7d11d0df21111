r"""A check of the posteriors of one model and measurement against exact ones, for users: how wrong is my rule here?

Where the data are a mixture of Gaussians and the measurement is linear, the posterior is a mixture too, and can be
drawn from. A rule, a number of particles or a sampler of one's own is compared with that, and held to what calibrated
posteriors have in common.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion._checks import check_callable, check_count, check_finite, check_seed
from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.guidance.posterior.measurement import Measurement
from sde_diffusion.guidance.posterior.posterior import Posterior
from sde_diffusion.guidance.posterior.rules import Rule
from sde_diffusion.metrics import sliced_wasserstein
from sde_diffusion.noise.seeds import Use, one_stream
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.testing._picture import Curve
from sde_diffusion.testing.posterior.calibration import Calibration, coverage, ranks, tarp
from sde_diffusion.testing.report import Checklist, Report

Draw = Callable[[Tensor, int, int], Tensor]
DISTANCE, LEAST = 1.4, 1e-3  # bounds: distance over the floor, and the p-values of three statistics
LEVELS = (0.5, 0.68, 0.9, 0.95)


def check_posterior(
    model: GaussianMixture,
    measurement: Measurement,
    noise: float | Tensor,
    draw: Draw | Rule | None = None,
    *,
    problems: int = 64,
    draws: int = 128,
    seed: int = 0,
) -> Report:
    r"""Holds samples of posteriors to the exact ones of $y = A x_0 + \sigma_y\varepsilon$. Seconds, on a small model.

    * The distance to exact samples, sliced Wasserstein, is that of two sets of these: on average over the problems at
      most 1.4 times.
    * `coverage`, `ranks` and `tarp` find the parameter among its samples: p-values of at least 0.001.
    * As advice: how far the shares of credible regions of 50, 68, 90 and 95 % are from that.

    A model whose data are no mixture is checked on one: `Gaussian(sde, x0.mean(0), x0.T.cov())` of its data, or a
    mixture fitted to them.

    Args:
        model: The exact model of the data.
        measurement: $A$, linear: `Matrix`, `Mask`, `Blur`, `Downsample` or `Operator`.
        noise: $\sigma_y > 0$, a float or one for each coordinate of the measurement.
        draw: What is checked: a function `draw(y, n, seed)` of one measurement that answers `n` samples, `(n, *)`; or a
            rule of `Posterior`, sampled by default settings. By default `Moments()`.
        problems: Measurements, each of a draw of the data; at least 8.
        draws: Samples of each posterior.
        seed: Of all that is drawn.

    Returns:
        The report, with a curve of the coverage. Nothing that it finds is raised unless `raise_for_failures` is called.

    Raises:
        TypeError: A model that is no mixture, or a measurement that is none or not linear.
        ValueError: Fewer than 8 problems or 2 draws.

    Example:
        >>> print(check_posterior(twin, Mask(mask), 0.1))
        >>> print(check_posterior(twin, Mask(mask), 0.1, PseudoInverse()))
    """
    given: object = model
    if not isinstance(given, GaussianMixture):
        raise TypeError(
            f"check_posterior compares with exact posteriors, which a {type(given).__name__} does not have: give a "
            "twin of its data, such as Gaussian(sde, x0.mean(0), x0.T.cov()) or a GaussianMixture"
        )
    device: object = measurement
    if not isinstance(device, Measurement) or not device.linear:
        raise TypeError(f"measurement must be a linear one, such as Matrix(a) or Mask(mask), got {measurement!r}")
    if check_count(problems, "problems") < 8:
        raise ValueError(f"problems must be at least 8, and rather 64, got {problems}")
    if check_count(draws, "draws") < 2:
        raise ValueError(f"draws must be at least 2, got {draws}")
    seed = check_seed(seed)
    if draw is None or isinstance(draw, Rule):
        drawing = _by_rule(model, measurement, noise, draw)
    else:
        check_callable(draw, "draw", "a function draw(y, n, seed) or a rule such as Moments()")
        drawing = draw
    what = "" if draw is None else f", {draw!r}"
    found = Checklist(f"check_posterior(model, {measurement!r}, {noise!r}{what})")
    outcome = cache(partial(_drawn, model, measurement, noise, drawing, problems, draws, seed))
    found.at_most(
        "distance to exact samples, over that of two exact sets",
        DISTANCE,
        lambda: outcome().distance,
        note="the law is another one: more particles, or another rule; steps alone seldom help",
    )
    for test, note in (
        (coverage, "credible regions are too small or too large: see the advice below"),
        (ranks, "a coordinate is shifted, too narrow or too wide"),
        (tarp, "the posterior is shifted, of a wrong width, or its coordinates depend on each other in another way"),
    ):
        name = f"{test.__name__} finds the parameter among its samples, p-value"
        found.at_least(name, LEAST, partial(_p_value, outcome, test, seed), note=note)
    found.at_most(
        "credible regions of 50, 68, 90 and 95 %: largest gap of their share, in standard errors",
        3.0,
        lambda: _gap(_tested(outcome, coverage, seed)),
        required=False,
    )
    _add_curve(found, outcome, seed)
    return found.report()


class _Outcome(NamedTuple):
    """Parameters, their samples, and how far these are from exact ones, over the floor."""

    theta: Tensor
    samples: Tensor
    distance: float


def _by_rule(model: GaussianMixture, measurement: Measurement, noise: float | Tensor, rule: Rule | None) -> Draw:
    """Samples of a `Posterior` by the settings of `SDESampler`."""
    posterior = Posterior(model, measurement, noise) if rule is None else Posterior(model, measurement, noise, rule)
    sampler = SDESampler(model.sde, posterior)
    return lambda y, n, seed: sampler.sample(n, seed=seed, y=y)


def _drawn(
    model: GaussianMixture,
    measurement: Measurement,
    noise: float | Tensor,
    draw: Draw,
    problems: int,
    draws: int,
    seed: int,
) -> _Outcome:
    stream = one_stream(seed, use=Use.CHECKS)
    theta = model.sample(problems, seed=stream)
    clean = measurement(theta)
    z = torch.randn(clean.shape, generator=stream, dtype=torch.float64, device="cpu").to(clean)
    std = torch.as_tensor(noise, dtype=clean.dtype, device=clean.device)
    y = clean + std * z
    a = measurement.rows(theta[:1], clean[0].numel())[0]
    level = std.expand(clean.shape[1:]).reshape(-1)
    found, far, floor = [], 0.0, 0.0
    for i, one in enumerate(y):
        x: Any = draw(one, draws, seed + i * draws)
        if not isinstance(x, Tensor) or x.shape != (draws, *theta.shape[1:]):
            what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"draw answered {what}, wanted {draws} samples, shape {(draws, *theta.shape[1:])}")
        found.append(check_finite(x, "what draw answered"))
        exact = model.posterior(a, one.reshape(-1), level)
        first, second = exact.sample(draws, seed=stream), exact.sample(draws, seed=stream)
        far += sliced_wasserstein(rows(x), rows(first))
        floor += sliced_wasserstein(rows(second), rows(first))
    return _Outcome(theta, torch.stack(found), far / floor)


def _tested(outcome: Callable[[], _Outcome], test: Callable[..., Calibration], seed: int) -> Calibration:
    theta, samples, _ = outcome()
    return test(theta, samples, seed=seed)


def _p_value(outcome: Callable[[], _Outcome], test: Callable[..., Calibration], seed: int) -> float:
    return _tested(outcome, test, seed).p_value


def _gap(found: Calibration) -> float:
    """The largest distance of a share of regions from their credibility, in standard errors."""
    gaps = ((found.covered(level), level) for level in LEVELS)
    return max(abs(share - level) / error for (share, error), level in gaps)


def _add_curve(found: Checklist, outcome: Callable[[], _Outcome], seed: int) -> None:
    try:
        tests = [_tested(outcome, test, seed) for test in (coverage, tarp)]
    except Exception:  # noqa: BLE001 - told by the rows
        return
    levels = tuple(i / 20 for i in range(1, 20))
    for one in tests:
        shares = tuple(one.covered(level)[0] for level in levels)
        axes = ("credibility", "share of parameters")
        found.curves.append(
            Curve("regions that hold the parameter", one.statistic, levels, shares, axes, (False, False))
        )
