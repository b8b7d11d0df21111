r"""What a solver is: one method that carries the state from `t` to `s`.

A solver sees its equation and two levels, and nothing above them. It holds no state of its own: what a multistep method
remembers goes in and comes out of `step`. Whatever edits the state between steps wraps a solver; a corrector is a
solver called with `t == s`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sde_diffusion.equation import ODE
from sde_diffusion.noise import NoiseSource
from sde_diffusion.sde import Level

Interval = tuple[float, float]


class Solver(ABC):
    """Carries a state from one level to another. Subclasses are frozen dataclasses whose `repr` is valid Python.

    Attributes:
        needs: The weakest equation it can work on; checked before any network call.
        order: Order of the method, by its name; 0 where the notion does not apply.
        claim: Order of convergence it is held to by the tests: `order`, or less where the start of a method lowers it.
        evaluations: Network calls per step; None where the solver chooses (adaptive and outside backends).
        stochastic: Whether it draws noise.
        adaptive: Whether it chooses its own steps, by a tolerance.
        in_time: Whether its steps are taken in `t`, so that their size in `t` matters, or in the noise level; None for
            a solver that leaves the step to those it wraps.
        default_steps: How many steps a sampler takes unless told.
    """

    needs: type[ODE] = ODE
    order: float = 0
    evaluations: int | None = 1
    stochastic: bool = False
    adaptive: bool = False
    in_time: bool | None = None
    default_steps: int = 30

    @property
    def claim(self) -> float:
        """Order of convergence that the tests hold the solver to."""
        return self.order

    @abstractmethod
    def step(self, eq: Any, x: Tensor, t: Level, s: Level, state: Any, noise: NoiseSource) -> tuple[Tensor, Any]:
        """One step.

        Args:
            eq: The equation, an instance of `needs`.
            x: State at `t`, shape `(B, *)`; not modified.
            t: Level of the state.
            s: Level to reach.
            state: What the previous step returned; None on the first.
            noise: Source of randomness; a solver that draws from it says so by `stochastic`.

        Returns:
            The state at `s` and what to remember.
        """

    def prepare(self, eq: Any, intervals: Sequence[Interval]) -> None:  # noqa: B027 - most solvers need nothing
        """Tabulates the levels that the steps over `intervals` will ask for between grid times; called once."""


def check_inner(solver: object, who: str) -> None:
    """Raises `TypeError` unless what a wrapper was given is a solver."""
    if not isinstance(solver, Solver):
        made = f": make an instance, {solver.__name__}()" if isinstance(solver, type) else ""
        raise TypeError(f"{who} works with a solver such as Heun(), got {solver!r}{made}")


def parts(solver: Solver) -> list[Solver]:
    """The solvers that a solver wraps."""
    return [part for part in vars(solver).values() if isinstance(part, Solver)]


def steps_in_time(solver: Solver) -> bool:
    """Whether the step itself, of this solver or of one that it wraps, is taken in the time `t` of the process."""
    return solver.in_time if solver.in_time is not None else any(map(steps_in_time, parts(solver)))


def is_adaptive(solver: Solver) -> bool:
    """Whether a solver, or one that it wraps, chooses its own steps."""
    return solver.adaptive or any(map(is_adaptive, parts(solver)))


def stronger(a: type[ODE], b: type[ODE]) -> type[ODE]:
    """The richer of two equations: what a solver made of two others needs."""
    return a if issubclass(a, b) else b


def describe(needs: type[ODE]) -> str:
    """What an equation requires of the caller, in words."""
    return {
        "ODE": "any SDE",
        "ReverseSDE": "an SDE with its score",
        "GaussianReverseSDE": "a GaussianSDE with a Denoiser or a score",
    }.get(needs.__name__, needs.__name__)
