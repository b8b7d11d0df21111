"""The loop of the particles: look, weigh, resample where the weights have become uneven, move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion._checks import SolverError
from sde_diffusion._tensors import broken, rows
from sde_diffusion.noise.sources import Streams
from sde_diffusion.particles.kernel import step_row
from sde_diffusion.particles.laws import Law, Seen, wide
from sde_diffusion.particles.resampling import effective, log_mean, systematic
from sde_diffusion.sde.level import Level


class Course(NamedTuple):
    """What the systems of one call have in common.

    Attributes:
        law: What the particles are weighed by.
        levels: The levels, from noise to data.
        order: That of the chain in the prediction.
        threshold: Share of the particles that are effective, below which a system is resampled.
        start: Makes states at the first level of unit normal draws.
        tell: Called after each level.
    """

    law: Law
    levels: Sequence[Level]
    order: int
    threshold: float
    start: Callable[[Tensor], Tensor]
    tell: Callable[[], object]


class Systems(NamedTuple):
    """Systems of particles at the end of their course: `x` `(M, N, *)`, `log_weights` `(M, N)`, `ess` `(M, K)`."""

    x: Tensor
    log_weights: Tensor
    ess: Tensor


def run(course: Course, source: Streams, cond: dict[str, Any], seeds: Sequence[int]) -> Systems:
    """Carries systems of particles along their course.

    Args:
        course: Where they go.
        source: Draws of the shape `(M, N, *)`: one stream for each system.
        cond: Conditions of all particles, those of one system after the other.
        seeds: The seed of each system, for errors.

    Raises:
        SolverError: Weights that are all zero or not numbers, or states that are not finite.
    """
    law, levels = course.law, course.levels
    x = (law.spread * course.start(source.prior().flatten(0, 1))).contiguous()
    weights = _Weights(law, course.threshold, source.shape[0], seeds)
    x, seen, _ = _arrive(course, weights, x, 0, None, cond, _uniform(source))
    before: Visit | None = None
    for i, (t, s) in enumerate(pairwise(levels), start=1):
        z = source(t.t, s.t).flatten(0, 1)
        x, ratio = _moved(x, Visit(t, seen), before, s, law.rate(t, s), course.order, z)
        weights.add(ratio)
        x, seen, before = _arrive(course, weights, x, i, Visit(t, seen), cond, _uniform(source))
    x, log_twist = law.end(x, levels[-1], seen, cond)
    weights.see(log_twist, None, len(levels), None)
    if bool((bad := broken(x)).any()):
        raise SolverError(f"{int(bad.sum())} of {len(x)} particles are not finite at the data: the model answered so")
    return Systems(x.reshape(len(seeds), -1, *x.shape[1:]), weights.all, torch.stack(weights.ess, dim=1))


class Visit(NamedTuple):
    """A level, and what was seen of the particles there."""

    at: Level
    seen: Seen


def _arrive(
    course: Course, weights: _Weights, x: Tensor, i: int, before: Visit | None, cond: dict[str, Any], u: Tensor
) -> tuple[Tensor, Seen, Visit | None]:
    """Looks at the particles that have come to level `i`, weighs and resamples them, with what they remember."""
    at = course.levels[i]
    seen = course.law.look(x, at, cond)
    if before is not None:
        weights.add(course.law.gain(before.seen, seen, before.at, at))
    numbers = weights.see(seen.log_twist, u, i, at)
    if numbers is not None:
        x, seen = x[numbers.to(x.device)], seen.take(numbers)
        before = before and Visit(before.at, before.seen.take(numbers))
    course.tell()
    return x, seen, before


def _moved(
    x: Tensor, now: Visit, before: Visit | None, s: Level, rate: float, order: int, z: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The particles after one step, and the logarithm of the ratio of densities of base chain and proposal."""
    known = [now] if before is None else [now, before]
    row = step_row([visit.at for visit in known], s, rate, order)
    out = torch.mul(x, row.state).add_(z, alpha=row.std)
    pull = None
    for weight, (_, seen) in zip(row.data, known, strict=False):
        out.add_(seen.data, alpha=weight)
        if seen.shift is not None:
            pull = weight * seen.shift if pull is None else pull.add_(seen.shift, alpha=weight)
    if pull is None:
        return out, None
    out.add_(pull)
    pull = rows(pull / row.std)
    return out, wide(-(pull * rows(z)).sum(1) - 0.5 * pull.square().sum(1))


def _uniform(source: Streams) -> Tensor:
    """One number of each system's stream."""
    return torch.cat([torch.rand(1, generator=g, dtype=torch.float64, device="cpu") for g in source.generators])


class _Weights:
    """Logarithms of the weights of systems of particles, but for the twist of the level, which replaces the last."""

    def __init__(self, law: Law, threshold: float, n: int, seeds: Sequence[int]) -> None:
        self.law, self.threshold, self.seeds = law, threshold, seeds
        self.log_w = torch.full((len(seeds), n), law.log_start, dtype=torch.float64, device="cpu")
        self.all = self.log_w
        self.ess: list[Tensor] = []

    def add(self, part: Tensor | None) -> None:
        """Adds a part to the logarithms, for all particles."""
        if part is not None:
            self.log_w = self.log_w + part.reshape(self.log_w.shape)

    def see(self, log_twist: Tensor | None, u: Tensor | None, step: int, at: Level | None) -> Tensor | None:
        """Weighs the particles of a level; their numbers after resampling if any system is resampled, else None."""
        twist = None if log_twist is None else log_twist.reshape(self.log_w.shape)
        self.all = self.log_w if twist is None else self.log_w + twist
        self._check(step, at)
        ess = effective(self.all)
        self.ess.append(ess)
        m, n = self.all.shape
        low = ess < self.threshold * n
        if u is None or not bool(low.any()):
            return None
        stay = torch.arange(n, device="cpu").expand(m, n)
        numbers = torch.where(low[:, None], systematic(self.all, u), stay)
        level = log_mean(self.all)[:, None].expand(m, n)
        after = level if twist is None else level - twist.gather(1, numbers)
        self.log_w = torch.where(low[:, None], after, self.log_w)
        return (numbers + n * torch.arange(m, device="cpu")[:, None]).flatten()

    def _check(self, step: int, at: Level | None) -> None:
        top = self.all.amax(1)
        bad = ~torch.isfinite(top) | self.all.isnan().any(1)
        if not bool(bad.any()):
            return
        i = int(bad.nonzero()[0, 0])
        where = "at the data themselves" if at is None else f"after step {step}, at t = {at.t:g}"
        who = f"system {i} (seed {self.seeds[i]}) of {type(self.law.target).__name__}"
        count = int(self.all[i].isnan().sum()) or int((self.all[i] == math.inf).sum())
        if count:
            raise SolverError(
                f"{count} of {self.all.shape[1]} weights of {who} are not finite {where}: its model, its twist or its "
                "likelihood answered NaN or inf there"
            )
        raise SolverError(
            f"all {self.all.shape[1]} weights of {who} are zero {where}: "
            + ("the likelihood" if at is None else "the twist")
            + " is 0 at every particle. Take more particles, a rule whose twist is wider (more noise in the "
            "measurement), or look whether any data can have this likelihood"
        )
