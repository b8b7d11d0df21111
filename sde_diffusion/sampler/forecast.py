r"""What can be told of a solve before it is made: whether its start and its steps fit the process.

Three faults make every sample wrong, whatever the network, and none shows in a finite, plausible number:

* a prior without the data that are left at the first time. It has mean 0 and standard deviation $\sigma$, where the
  state has $\alpha\mu$ and $\sqrt{\alpha^2c^2 + \sigma^2}$;
* a grid that ends in noise of the size of the data, from which a posterior mean goes to their mean;
* steps that are too long for the solver, which shows on Gaussian data already, whose answer is known.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import lru_cache

import torch

from sde_diffusion.problem import Problem
from sde_diffusion.sampler.moments import misfit
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.solvers.base import Solver

SIGNAL_LEFT = 0.05
"""Share of data in the state at the first time, $\\alpha c/\\sigma$, from which a prior without them is told of."""
NOISE_LEFT = 0.5
"""Noise at the last time, $\\sigma/(\\alpha c)$, from which a final jump is told of."""
TRIALS = ((0.3, 1.0, 0.1), (0.95, 0.3, 0.4))
"""Gaussian data that steps are tried on, as wide as the data and as narrow as one of several modes: mean and standard
deviation in units of the data's, and the relative error of the standard deviation from which it is told."""
MEAN_OFF = 0.1
"""The error of the mean from which it is told, in standard deviations of the data."""
MOST = 2000
"""Evaluations from which a solve is not tried out: it would take as long as the solve itself, or longer."""
ADVISED = 256
"""Steps up to which it is tried how many would do."""


class SamplingWarning(UserWarning):
    """What is drawn will not have the mean or the spread of the data, however good the network."""


def check_start(sde: GaussianSDE, time: float, data_std: float) -> None:
    r"""Warns where the prior leaves out more than 5 % of data: $\alpha c > 0.05\,\sigma$ at the first time.

    Args:
        sde: The process, whose own prior is drawn from.
        time: First time of the grid.
        data_std: $c$, the standard deviation of the data as far as the model knows it.
    """
    (at,) = sde.levels([time])
    left = at.alpha * data_std / at.sigma
    if left <= SIGNAL_LEFT:
        return
    if time < sde.t_max:
        unit = "index" if sde.time_is_index else "t"
        fix = (
            f"The grid starts at {unit} = {time:g}, and the process ends at {sde.t_max:g}: start there, or give the "
            "state at that time, x_T="
        )
    else:
        fix = "Take a process that ends in more noise (sigma_max, beta_max, t_max or more levels)"
    warnings.warn(
        f"the prior of {sde!r} leaves out the data that its state still holds at t = {time:g}, "
        f"alpha * {data_std:g} / sigma = {left:.2g} (0.05 or less is harmless): samples will miss the mean and the "
        f"spread of the data. {fix}, or take a prior that has both, "
        "Problem(sde, score, prior=Matched(mean, variance)) with those of the data",
        SamplingWarning,
        stacklevel=4,
    )


def check_end(sde: GaussianSDE, time: float, data_std: float) -> None:
    r"""Warns where the noise left at the last time is of the size of the data: $\sigma > \alpha c/2$.

    The final jump goes to the mean of the data that may be behind a state. These means spread less than the data: for
    Gaussian data by the factor $1/\sqrt{1 + \sigma^2/(\alpha c)^2}$, 0.9 where this warns.

    Args:
        sde: The process.
        time: Last time of the grid.
        data_std: $c$.
    """
    (at,) = sde.levels([time])
    left = at.ratio / data_std
    if left > NOISE_LEFT:
        warnings.warn(
            f"the grid ends at t = {time:g} of {sde!r}, where the noise is {left:.2g} of the data's standard deviation "
            f"{data_std:g}: the final jump takes the mean of what may be behind it, so that samples are too narrow. "
            "End in less noise (t_min or sigma_min of the process, or the grid), or keep the noise, denoise=False",
            SamplingWarning,
            stacklevel=4,
        )


def check_steps(
    sde: GaussianSDE,
    solver: Solver,
    times: list[float],
    data_std: float,
    lay_out: Callable[[int], list[float]] | None,
    finish: bool = False,
) -> None:
    r"""Warns where a solver on its grid misses Gaussian data: as wide as the data, and as narrow as a mode of theirs.

    Args:
        sde: The process.
        solver: The solver; one that chooses its own steps answers to its tolerance and is not tried.
        times: The grid.
        data_std: $c$.
        lay_out: The grid of another number of steps, if there is one: to say how many would do.
        finish: Whether the step to the data counts: that of a solver which `reaches_zero`.
    """
    off = _off(sde, solver, times, data_std, finish)
    if off is None:
        return
    steps, advice = len(times) - 1, []
    facts = solver.facts
    if facts.in_time and not facts.stochastic:
        advice.append("step in the angle at the same cost, Angle(solver)")
    enough = None if lay_out is None else _enough(sde, solver, steps, data_std, lay_out, finish)
    advice.append(f"take {enough} steps" if enough else "take more steps, or another grid")
    warnings.warn(
        f"{steps} steps of {solver!r} on this grid of {sde!r} are too few: {off}. Other data will be "
        f"off too, by more or by less. Best {', or '.join(advice)}",
        SamplingWarning,
        stacklevel=4,
    )


class Forecast:
    """What is told of the solves of a sampler, each fault once.

    Args:
        problem: What is solved.
        solver: By what.
        times: On which grid.
        jump: Whether it ends with the data, by `solver.finish`.
        lay_out: The grid of another number of steps, if there is one.
    """

    def __init__(
        self,
        problem: Problem,
        solver: Solver,
        times: list[float],
        *,
        jump: bool,
        lay_out: Callable[[int], list[float]] | None,
    ) -> None:
        self.problem, self.solver, self.times, self.jump, self.lay_out = problem, solver, times, jump, lay_out
        self._told = set[str]()
        self._asked = set[tuple[bool, bool]]()

    def tell(self, *, from_prior: bool, steps: bool = True) -> None:
        """Warns of a start or of steps that do not fit the process.

        Args:
            from_prior: Whether the states at the first time are drawn.
            steps: Whether the solver steps on the grid.
        """
        if (from_prior, steps) in self._asked or torch.compiler.is_compiling():
            return
        sde, c = self.problem.sde, self.problem.data_std
        if not isinstance(sde, GaussianSDE):
            return
        if from_prior and not self.problem.prior.holds_data and self._first("start"):
            check_start(sde, self.times[0], c)
        finish = self.jump and self.solver.reaches_zero
        if steps and self.jump and not (finish or self.solver.facts.fitted) and self._first("end"):
            check_end(sde, self.times[-1], c)
        if steps and self._first("steps"):
            check_steps(sde, self.solver, self.times, c, self.lay_out, finish)
        self._asked.add((from_prior, steps))

    def _first(self, what: str) -> bool:
        new = what not in self._told
        self._told.add(what)
        return new


_misfit = lru_cache(32)(misfit)  # the same few configurations come again and again


def _off(sde: GaussianSDE, solver: Solver, times: list[float], c: float, finish: bool) -> str | None:
    """What is wrong with Gaussian data after a solve, in words; None if nothing is, or if it cannot be told."""
    facts = solver.facts
    if facts.adaptive or facts.fitted or len(times) * (facts.evaluations or 1) > MOST:
        return None
    for mean, std, allowed in TRIALS:
        try:
            found = _misfit(sde, solver, tuple(times), mean * c, std * c, finish=finish)
        except Exception:  # noqa: BLE001 - a solver of the user's may ask for more than one number: the solve will tell
            return None
        if found is None:
            return None
        data = f"Gaussian data of standard deviation {std * c:g} come out"
        if math.isinf(found.std):
            return f"{data} beyond all numbers"
        if abs(found.std - 1) > allowed:
            return f"{data} {found.std:.3g} times as wide"
        if abs(found.mean) > MEAN_OFF * c:
            return f"{data} with a mean off by {found.mean:.2g}"
    return None


def _enough(
    sde: GaussianSDE, solver: Solver, steps: int, data_std: float, lay_out: Callable[[int], list[float]], finish: bool
) -> int | None:
    """A number of steps at which the solver fits: the smallest of a few doublings, if one does."""
    more = [n for k in (2, 4, 8) if (n := k * steps) <= ADVISED]
    try:
        return next((n for n in more if _off(sde, solver, lay_out(n), data_std, finish) is None), None)
    except ValueError:  # a chain has so many levels and no more
        return None
