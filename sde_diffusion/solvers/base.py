r"""What a solver is: one method that carries the state from `t` to `s`.

A solver sees its equation and two levels, and nothing above them. It holds no state of its own: what a multistep method
remembers goes in and comes out of `step`. Whatever edits the state between steps wraps a solver; a corrector is a
solver called with `t == s`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Generic, cast

from torch import Tensor

from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.equation import ODE, GaussianReverseSDE

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # with defaults: a `Solver` is one of any equation and state

    E = TypeVar("E", bound=ODE, default=Any)
    S = TypeVar("S", default=Any)
else:
    from typing import TypeVar  # of Python 3.10 to 3.12, which know no defaults and miss none when it runs

    E, S = TypeVar("E"), TypeVar("S")

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a solver says of itself, which is all that a caller knows of it: nobody asks for its class.

    A wrapper answers with the facts of what it wraps and changes what it changes: `replace(self.inner.facts, order=0)`.

    Attributes:
        needs: The weakest equation it can work on; checked before any network call.
        order: Order of convergence that the tests hold it to; 0 where it claims none. A method whose first steps are of
            lower order may have a higher one in its name.
        evaluations: Network calls per step; None where the solver chooses (adaptive and outside backends).
        stochastic: Whether it draws noise.
        memory: Evaluations that a step combines at most, those of earlier steps included: 1 if it remembers nothing.
        adaptive: Whether it chooses its own steps, by a tolerance.
        rtol: That tolerance, relative to the state; None where there is none.
        atol: The same in units of the state.
        in_time: Whether its steps are taken in the time `t` of the process, so that their size in `t` matters, rather
            than in the noise level.
        default_steps: How many steps a sampler takes unless told.
        least_steps: The fewest steps it takes before `finish`: 0 for one that may go to the data at once.
        grid: The times it steps over, where it takes no others.
        fitted: Whether it was fitted to one model, so that nothing follows for Gaussian data.
    """

    needs: type[ODE] = ODE
    order: float = 0
    evaluations: int | None = 1
    stochastic: bool = False
    memory: int = 1
    adaptive: bool = False
    rtol: float | None = None
    atol: float | None = None
    in_time: bool = False
    default_steps: int = 30
    least_steps: int = 1
    grid: tuple[float, ...] | None = None
    fitted: bool = False


class Solver(ABC, Generic[E, S]):
    """Carries a state from one level to another. Subclasses are frozen dataclasses whose `repr` is valid Python.

    A subclass states its `facts`, as a class attribute `facts = Facts(...)`, or as a property where they depend on its
    arguments, and writes `step`. To a type checker it may say its equation and what it remembers, as in
    `Solver[GaussianReverseSDE, None]`.
    """

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What the solver needs, claims and costs. Made anew where it is a property: not to be asked in each step."""

    @property
    def bare(self) -> tuple[Solver, float | None]:
        r"""The solver to give an equation that is in the angle already, and the $c$ of the angle that was asked for.

        `Angle` answers with its inner solver and its $c$, all others with themselves and None.
        """
        return self, None

    @property
    def reaches_zero(self) -> bool:
        """Whether `finish` takes a step of the solver's own to zero noise, rather than the posterior mean.

        The grid of such a solver need not end in little noise.
        """
        return False

    @property
    def log_spaced(self) -> bool:
        """Whether it extrapolates from step to step in the log-SNR, so that it does best on `grids.log_snr`."""
        return False

    def looser(self) -> Solver:
        """A cruder solver of the same kind: the difference of the two results is an estimate of the error.

        An adaptive solver answers with itself at ten times its tolerances, a wrapper with the looser of what it wraps,
        and all others with themselves, to be given fewer steps.
        """
        cruder = {name: part.looser() for name, part in vars(self).items() if isinstance(part, Solver)}
        return replace(cast("Any", self), **cruder) if cruder else self  # a frozen dataclass, as every solver

    @abstractmethod
    def step(self, eq: E, x: Tensor, t: Level, s: Level, state: S | None, noise: NoiseSource) -> tuple[Tensor, S]:
        """One step.

        Args:
            eq: The equation, an instance of `needs`.
            x: State at `t`, shape `(B, *)`; not modified.
            t: Level of the state.
            s: Level to reach.
            state: What the previous step returned; None on the first.
            noise: Source of randomness; a solver that draws from it says so by `facts.stochastic`.

        Returns:
            The state at `s` and what to remember.
        """

    def finish(self, eq: GaussianReverseSDE, x: Tensor, t: Level, state: S | None) -> Tensor:
        """The data, from the state at the last level: how a sampler ends, with one evaluation at that level.

        The posterior mean, unless a solver knows better by what it remembers.

        Args:
            eq: The equation of a Gaussian process.
            x: State at `t`, shape `(B, *)`; not modified.
            t: The last level.
            state: What the last step returned.
        """
        return eq.denoise(x, t).data

    def prepare(self, eq: E, intervals: Sequence[Interval]) -> None:
        """Tabulates the levels that the steps over `intervals` will ask for between grid times.

        Called before the first solve of a sampler, and not again: into `eq.tables`, which all its solves share.
        """

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        """Instances that the tests hold to what the solver claims; by default one, made without arguments.

        A wrapper is shown around a solver or two, a corrector inside of a `PredictorCorrector`. The table of solvers in
        the README shows a class that cannot be made without arguments as the first of its examples.
        """
        return (cls(),)

    @classmethod
    def named(cls) -> dict[str, Solver]:
        """Instances that `sde-diffusion sample --solver NAME` offers, by name; by default none."""
        return {}


def facts_of(solver: Solver) -> Facts:
    """Returns the facts of a solver; raises `TypeError` unless they are what `Facts` says."""
    facts: Any = solver.facts
    if not isinstance(facts, Facts):
        raise TypeError(
            f"facts of {type(solver).__name__} must be a Facts(...), such as Facts(order=1, evaluations=1), as a class "
            f"attribute or a property, got {facts!r}"
        )
    needs: Any = facts.needs
    if not (isinstance(needs, type) and issubclass(needs, ODE)):
        raise TypeError(
            f"needs of {type(solver).__name__} must be ODE, ReverseSDE or GaussianReverseSDE, got {needs!r}"
        )
    kinds: dict[str, type] = {"order": Real, "evaluations": Integral, "memory": Integral, "default_steps": Integral}
    kinds["least_steps"] = Integral
    for name, kind in kinds.items():
        value: Any = getattr(facts, name)
        known = isinstance(value, kind) and not isinstance(value, bool)
        if name == "evaluations" and value is None:
            continue
        if not known or not value >= 0:
            raise TypeError(f"{name} of {type(solver).__name__} must be a number of at least 0, got {value!r}")
    for name in ("stochastic", "adaptive", "in_time", "fitted"):
        if not isinstance(getattr(facts, name), bool):
            raise TypeError(f"{name} of {type(solver).__name__} must be True or False, got {getattr(facts, name)!r}")
    grid: Any = facts.grid
    if grid is not None and not (isinstance(grid, tuple) and all(isinstance(t, Real) for t in grid)):
        raise TypeError(f"grid of {type(solver).__name__} must be None or a tuple of times, got {grid!r}")
    return facts


def check_inner(solver: object, who: str, *, hands_on: bool = False) -> None:
    """Raises `TypeError` unless what a wrapper was given is a solver that it can wrap.

    Args:
        solver: What it was given.
        who: The wrapper.
        hands_on: Whether its `finish` is that of the solver.
    """
    if not isinstance(solver, Solver):
        made = f": make an instance, {solver.__name__}()" if isinstance(solver, type) else ""
        raise TypeError(f"{who} works with a solver such as Heun(), got {solver!r}{made}")
    if facts_of(solver).grid is not None:
        raise TypeError(f"{who} cannot wrap {solver!r}, which goes over times of its own: sample by it as it is")
    if solver.facts.least_steps == 0 and not hands_on:
        raise TypeError(f"{who} cannot wrap {solver!r}, whose last step goes to the data: sample by it as it is")


def parts(solver: Solver) -> list[Solver]:
    """The solvers that a solver wraps."""
    return [part for part in vars(solver).values() if isinstance(part, Solver)]


def stronger(a: type[ODE], b: type[ODE]) -> type[ODE]:
    """The richer of two equations: what a solver made of two others needs."""
    return a if issubclass(a, b) else b


def describe(needs: type[ODE]) -> str:
    """What the caller has to give for an equation, in words."""
    return {
        "ODE": "any SDE",
        "ReverseSDE": "an SDE with its score",
        "GaussianReverseSDE": "a GaussianSDE with a Denoiser or a score",
    }.get(needs.__name__, needs.__name__)
