r"""Adaptive steps, each row its own: what all such solvers share.

A step of the grid is walked in as many inner steps as each row needs. A row has its own position $p$, its own step $h$
and its own verdict, decided on the device; nothing is shared, so a row alone takes the steps that it takes in a batch.
An attempt gives a state $x'$ and an estimate of its error, whose size $E$ the equation tells (`ODE.error_norm`). It is
accepted where $E \le 1$, and the next step is $h\,\min(f_{max}, \max(f_{min}, 0.9\,E^{-a}E_{-}^{b}))$, with
$E_-$ of the last accepted step (PI control) and no growth right after a rejection. The last step is cut to land on the
end itself.

All rows make attempt number $k$ together, in one network call per stage on the whole batch; those that have arrived
stand still. So the evaluations of a batch are those of its slowest row, and each attempt costs one synchronisation
with the host. A row that has not arrived within `max_nfe` evaluations stays where it is, and the solve says so
(`Snapshot.finished`, `UnfinishedWarning`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_positive
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import E, Facts, Solver

Clock = Callable[[Tensor], Tensor]
TINY = 1e-13  # a step of this fraction of the interval cannot be told from rounding


class Walk:
    """Where each row stands on its way over one interval; fields of shape `(B,)`, in float64.

    Args:
        x: State at the start, shape `(B, *)`.
        ends: First and last position; either may be the larger.
        idle: Rows that take no part, or None.
        clock: The time at a position; by default the position is the time.
    """

    def __init__(self, x: Tensor, ends: tuple[float, float], idle: Tensor | None, clock: Clock | None = None) -> None:
        wide = torch.float64 if x.device.type != "mps" else torch.float32
        self.end, self.sign, self.clock = ends[1], math.copysign(1.0, ends[1] - ends[0]), clock or (lambda p: p)
        self.span = abs(ends[1] - ends[0])
        self.at = torch.full((len(x),), ends[0], dtype=wide, device=x.device)
        self.active = torch.ones_like(self.at, dtype=torch.bool) if idle is None else ~idle
        self.step = torch.full_like(self.at, self.span)  # what the next attempt would take, were there room
        self.target, self.length = self.at, torch.zeros_like(self.at)
        self.error, self.refused = torch.ones_like(self.at), torch.zeros_like(self.active)
        self.going = self.moved = self.held = True
        self.stuck: Tensor | None = None

    def begin(self, step: Tensor) -> None:
        """Sets the first step of every row, a positive length."""
        self.step = step.clamp(1e-6 * self.span, self.span)

    def aim(self) -> None:
        """Chooses where the next attempt of each row goes: a step on, or the end itself where that is within reach."""
        room = (self.end - self.at).abs()
        self.last = self.step >= 0.999 * room  # no sliver is left for one step more
        self.length = torch.where(self.active, torch.where(self.last, room, self.step), 0.0)
        self.target = torch.where(self.last | ~self.active, self.end, self.at + self.sign * self.length)

    def between(self, c: float) -> Tensor:
        """The position a fraction `c` of the attempt along; the target itself at 1."""
        return self.target if c == 1 else self.target - self.sign * (1 - c) * self.length

    def judge(self, error: Tensor, exponents: tuple[float, float], limits: tuple[float, float]) -> Tensor:
        """Accepts or refuses the attempt of each row and sets its next step; the mask of those accepted."""
        error = torch.where(torch.isfinite(error), error.to(self.at.dtype), math.inf)
        accepted = self.active & (error <= 1)
        a, b = exponents
        low, high = limits
        # By exp and log: torch's power of a number depends, in its last bit, on the numbers beside it.
        growth = torch.where(accepted, b * self.error.log(), 0.0) - a * error.clamp_min(1e-10).log()
        factor = (0.9 * growth.exp()).clamp(low, high)
        factor = torch.where(self.refused | ~accepted, factor.clamp_max(1.0), factor)
        step = self.length * factor
        # A step that was cut to land says little of the next: the uncut one stands, if it is longer.
        step = torch.where(accepted & self.last, torch.maximum(step, self.step), step)
        self.step = torch.where(self.active, step, self.step)
        self.error = torch.where(accepted, error.clamp_min(1e-4), self.error)
        self.refused = self.active & ~accepted
        self.at = torch.where(accepted, self.target, self.at)
        self.active = self.active & ~(accepted & self.last)
        stuck = self.active & (self.step < TINY * self.span)
        asked = torch.stack([self.active.any(), accepted.any(), self.refused.any(), stuck.any()])
        self.going, self.moved, self.held, failed = asked.tolist()
        self.stuck = stuck if failed else None
        return accepted

    def drop(self, rows: Tensor) -> None:
        """Leaves rows `(B,)`, a mask, where they are; the others go on."""
        self.active = self.active & ~rows
        self.going = bool(self.active.any())


def per_row(value: Tensor, x: Tensor) -> Tensor:
    """A number or a verdict for each row, `(B,)`, shaped to stand beside the state; numbers in its dtype."""
    value = value if value.dtype == torch.bool else value.to(x.dtype)
    return value.reshape(-1, *([1] * (x.ndim - 1)))


W = TypeVar("W", bound=Walk)


class Adaptive(Solver[E, Tensor | None], Generic[W, E]):
    r"""A solver that chooses the steps of each row by itself, between two times of the grid. One interval is usual.

    A subclass is a frozen dataclass with the fields below, and gives `first`, `attempt` and the two exponents.

    Attributes:
        rtol: Error allowed per step, relative to the state.
        atol: Error allowed per step, in units of the state.
        max_nfe: Evaluations allowed per row and interval.
        limits: Smallest and largest factor between two steps.
    """

    rtol: float
    atol: float
    max_nfe: int
    limits: ClassVar[tuple[float, float]] = (0.2, 10.0)

    @property
    def facts(self) -> Facts:
        return Facts(evaluations=None, adaptive=True, rtol=self.rtol, atol=self.atol, default_steps=1)

    @property
    @abstractmethod
    def exponents(self) -> tuple[float, float]:
        """$a$ and $b$ of the step control."""

    @property
    @abstractmethod
    def stages(self) -> int:
        """Evaluations per attempt."""

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            check_positive(value, name)
        if check_count(self.max_nfe, "max_nfe") < self.stages + 2:
            raise ValueError(
                f"max_nfe = {self.max_nfe} is too small for one step of {type(self).__name__}, "
                f"which takes {self.stages + 2} evaluations"
            )

    def looser(self) -> Solver:
        return cast("Solver", replace(cast("Any", self), rtol=10 * self.rtol, atol=10 * self.atol))

    @abstractmethod
    def first(self, eq: E, x: Tensor, at: Level) -> Tensor:
        """What an attempt knows of its start, shape `(B, *)`; one evaluation."""

    @abstractmethod
    def attempt(self, eq: E, x: Tensor, known: Tensor, walk: W) -> tuple[Tensor, Tensor, Tensor | None]:
        """One attempt of every row: the new state, the estimate of its error, and `first` at the new state if known."""

    @abstractmethod
    def walk(self, eq: E, x: Tensor, t: Level, s: Level, noise: NoiseSource) -> W:
        """The rows at the start of an interval."""

    def begin(self, eq: E, x: Tensor, known: Tensor, walk: W) -> Tensor:
        """The first step of each row, `(B,)`: a hundredth of the interval, unless a subclass knows better."""
        return torch.full_like(walk.at, 0.01 * walk.span)

    def level(self, eq: E, x: Tensor, walk: W, position: Tensor) -> Level:
        """The level of each row at its own position."""
        return eq.level_per_sample(walk.clock(position), x)

    def step(
        self, eq: E, x: Tensor, t: Level, s: Level, state: Tensor | None, noise: NoiseSource
    ) -> tuple[Tensor, Tensor | None]:
        if (idle := eq.idle) is not None and bool(idle.all()):
            return x, state
        before, walk = eq.nfe, self.walk(eq, x, t, s, noise)
        known = self.first(eq, x, t)
        cost = eq.nfe - before
        with torch.no_grad():  # the steps are constants of a gradient
            walk.begin(state if state is not None else self.begin(eq, x.detach(), known.detach(), walk))
        # Counted by attempts, which are the same alone and in a batch; the two outside of them are `first` and `begin`.
        for left in range((self.max_nfe // max(cost, 1) - 2) // self.stages, 0, -1):
            walk.aim()
            new, error, later = self.attempt(eq, x, known, walk)
            with torch.no_grad():
                size = eq.error_norm(error.detach(), x.detach(), new.detach(), self.rtol, self.atol)
                accepted = walk.judge(size, self.exponents, self.limits)
            if walk.stuck is not None:
                eq.stuck(walk.stuck, walk.clock(walk.at))
                walk.drop(walk.stuck)
            self.settle(walk, accepted, x)
            take = per_row(accepted, x)
            x = torch.where(take, new, x)
            if not walk.going:
                break
            if walk.moved and left > 1:
                later = later if later is not None else self.first(eq, x, self.level(eq, x, walk, walk.at))
                known = torch.where(take, later, known)
        if walk.going:
            eq.stop(walk.active, walk.clock(walk.at))
        return x, walk.step

    def settle(self, walk: W, accepted: Tensor, x: Tensor) -> None:
        """Called after each verdict, for a solver that remembers more than the walk does."""
