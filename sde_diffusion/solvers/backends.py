r"""torchdiffeq and torchsde as solvers: their methods, our equations, our noise.

Both take a whole interval of the grid at once and choose or count their own inner steps; the usual grid has one
interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import SolverError, check_count, check_positive, rows_in_words
from sde_diffusion._tensors import broken, rows
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.adaptive import per_row
from sde_diffusion.solvers.base import Facts, Solver
from sde_diffusion.solvers.checks import check_eta, check_falling
from sde_diffusion.solvers.equation import ODE, ReverseSDE

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
"""Their orders."""


@dataclass(frozen=True)
class Torchdiffeq(Solver[ODE, None]):
    """An ODE method of torchdiffeq.

    The adaptive methods control one error norm over the batch, so that a sample depends on its neighbours, within the
    tolerance: the one exception to the rule that samples never mix. They are kept from stepping past the end of the
    interval, where a schedule may not exist. Evaluations as needed, counted. Any `ODE`.

    Args:
        method: `dopri5`, `dopri8`, `bosh3`, `fehlberg2`, `adaptive_heun`; or fixed-step `euler`, `midpoint`, `heun2`,
            `heun3`, `rk4`, one step per interval of the grid.
        rtol: Relative tolerance of an adaptive method.
        atol: Absolute tolerance of an adaptive method.
        max_nfe: Evaluations allowed to an adaptive method, per interval. It cannot stop half way: more are an error.

    Raises:
        ImportError: torchdiffeq is not installed.
        SolverError: An adaptive method whose step size went to zero, or that would take more than `max_nfe`.
        ValueError: An unknown method, a tolerance that is not positive or `max_nfe < 1`.

    References:
        Chen, torchdiffeq, 2018.
    """

    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    max_nfe: int = 10_000

    def __post_init__(self) -> None:
        if self.method not in (*ADAPTIVE, *FIXED):
            raise ValueError(f"method must be one of {', '.join((*ADAPTIVE, *FIXED))}, got {self.method!r}")
        check_positive(self.rtol, "rtol")
        check_positive(self.atol, "atol")
        check_count(self.max_nfe, "max_nfe")

    @property
    def facts(self) -> Facts:
        if self.method in FIXED:
            return Facts(order=FIXED[self.method], evaluations=None, in_time=True)
        return Facts(evaluations=None, adaptive=True, rtol=self.rtol, atol=self.atol, in_time=True, default_steps=1)

    def looser(self) -> Solver:
        return replace(self, rtol=10 * self.rtol, atol=10 * self.atol) if self.method in ADAPTIVE else self

    def step(self, eq: ODE, x: Tensor, t: Level, s: Level, state: None, noise: NoiseSource) -> tuple[Tensor, None]:
        odeint = _import("torchdiffeq", "ode").odeint
        times = [t.t, s.t]
        span = torch.tensor(times, dtype=torch.float64 if x.device.type != "mps" else torch.float32, device=x.device)
        adaptive = self.method in ADAPTIVE
        flow = _Flow(eq, times, self.max_nfe if adaptive else None)
        # Steps are constants of a gradient: torchdiffeq would differentiate them too, but the time only in part.
        options = {"step_t": span[1:], "norm": _detached_rms} if adaptive else None
        try:
            with _at_home(x):
                out = odeint(
                    flow, flow.start(x), span, rtol=self.rtol, atol=self.atol, method=self.method, options=options
                )
        except AssertionError as error:  # how torchdiffeq tells that its step size went to zero
            raise flow.gave_up(error) from error
        return out[-1], None

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (Torchdiffeq("dopri5"), Torchdiffeq("rk4"))

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"dopri5": Torchdiffeq("dopri5")}


class _Flow:
    """The velocity as torchdiffeq asks for it, counted, and what it was last asked."""

    def __init__(self, eq: ODE, ends: list[float], max_nfe: int | None) -> None:
        self.eq, self.ends, self.max_nfe, self.before = eq, ends, max_nfe, eq.nfe
        self.last: tuple[float, Tensor, Tensor] | None = None

    def start(self, x: Tensor) -> Tensor:
        """The state, with zeros in the rows that are lost: one norm spans the batch."""
        return x if self.eq.idle is None else self._hold(x)

    def _hold(self, y: Tensor) -> Tensor:
        return torch.where(per_row(self.eq.idle, y), 0.0, y) if self.eq.idle is not None else y

    def __call__(self, time: Tensor, y: Tensor) -> Tensor:
        if math.isnan(float(time)):  # its step follows from an error that was not a number
            raise self.gave_up(AssertionError("its step size is no number"))
        # torchdiffeq hands the time over in the dtype of the state: the ends must not be missed by its rounding.
        eq, at = self.eq, min(max(float(time), min(self.ends)), max(self.ends))
        if self.max_nfe is not None and eq.nfe - self.before >= self.max_nfe:
            raise SolverError(
                f"torchdiffeq has taken its max_nfe = {self.max_nfe} evaluations between t = {self.ends[0]:g} and t = "
                f"{self.ends[1]:g}, and asks for more at t = {at:g}: the flow is too stiff or too rough for the "
                "tolerances there. Raise max_nfe or the tolerances, step in the angle, Angle(Torchdiffeq()), or take "
                "DormandPrince(), whose rows do not wait for each other"
            )
        v = eq.velocity(y, eq.level(at))
        if eq.counter.keep:
            eq.counter.lose(broken(v))
            v = self._hold(v)
        self.last = at, y.detach(), v.detach()
        return v

    def gave_up(self, error: AssertionError) -> SolverError:
        """What to say when the step size went to zero."""
        place = f"torchdiffeq gave up between t = {self.ends[0]:g} and t = {self.ends[1]:g} after {self.eq.nfe} network"
        if self.last is not None and bool((bad := broken(self.last[1]) | broken(self.last[2])).any()):
            return SolverError(
                f"{place} evaluations: the network answered NaN or inf at t = {self.last[0]:g} in "
                f"{rows_in_words(bad, self.eq.counter.first)}; call it on such a state to see. To keep the other rows "
                "of a sample: nonfinite='keep'"
            )
        return SolverError(f"{place} evaluations ({error}): the flow is too rough for the tolerances there")


def _detached_rms(y: Tensor) -> Tensor:
    return y.detach().square().mean().sqrt()


@dataclass(frozen=True)
class Torchsde(Solver[ReverseSDE, None]):
    r"""An SDE method of torchsde on the reverse-time SDE, with our noise: rows depend on their own seed alone.

    Time runs upward in $-t$, in `n` equal steps per interval of the grid. torchsde asks for the drift once more than
    its steps need, in every interval, so give it the whole range as one. Any SDE with its score.

    Args:
        method: `euler` (strong order 1), `milstein` (the same for additive noise) or `srk` (SRA1, strong order 1.5, two
            evaluations per step).
        n: Steps per interval.
        eta: Stochasticity, `> 0`.

    Raises:
        ImportError: torchsde is not installed.
        ValueError: An unknown method, `n < 1`, or `eta <= 0`.

    References:
        Li et al., Scalable Gradients for SDEs, 2020; Roessler, Runge-Kutta Methods for the Strong Approximation of
        SDEs, 2010.
    """

    method: str = "srk"
    n: int = 100
    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in ("euler", "milstein", "srk"):
            raise ValueError(f"method must be euler, milstein or srk, got {self.method!r}")
        check_count(self.n, "n")
        check_eta(self.eta)
        if self.eta == 0:
            raise ValueError("Torchsde needs eta > 0: for the probability-flow ODE use an ODE solver")

    @property
    def facts(self) -> Facts:
        order = 1.5 if self.method == "srk" else 1
        return Facts(needs=ReverseSDE, order=order, evaluations=None, stochastic=True, default_steps=1)

    def step(
        self, eq: ReverseSDE, x: Tensor, t: Level, s: Level, state: None, noise: NoiseSource
    ) -> tuple[Tensor, None]:
        torchsde = _import("torchsde", "sde")
        check_falling(s.t - t.t)
        ends = (-t.t, -s.t)
        # The step a hair too long, so that rounding cannot leave a sliver for one step more.
        dt = (ends[1] - ends[0]) / self.n * (1 + 1e-9)
        eq.prefill(-ends[0] - k * dt for k in range(self.n))
        bm = _Increments(noise, rows(x), torchsde)
        problem = _Problem(eq, x.shape, self.eta, ends)
        times = torch.tensor(ends, dtype=torch.float64, device=x.device)
        with _at_home(x):
            out = torchsde.sdeint(problem, rows(x), times, bm=bm, method=self.method, dt=dt)
        return out[-1].reshape(x.shape).to(x.dtype), None

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (Torchsde("euler", 20), Torchsde("srk", 10))


class _Problem:
    """The reverse SDE as torchsde wants it: time upward, flat state, additive noise."""

    noise_type, sde_type = "additive", "ito"

    def __init__(self, eq: ReverseSDE, shape: torch.Size, eta: float, ends: tuple[float, float]) -> None:
        self.eq, self.shape, self.eta, self.ends = eq, shape, eta, ends
        self._random: Tensor | None = None
        self._checked = False

    def _level(self, tau: Tensor | float) -> Level:
        return self.eq.level(-min(max(float(tau), self.ends[0]), self.ends[1]))

    def f(self, tau: Tensor, y: Tensor) -> Tensor:
        drift = -rows(self.eq.reverse_drift(y.reshape(self.shape), self._level(tau), self.eta))
        if not self._checked:
            self._random = torch.cuda.get_rng_state(y.device) if y.is_cuda else torch.get_rng_state()
        return drift

    def g_prod(self, tau: Tensor, y: Tensor, v: Tensor) -> Tensor:
        if not self._checked and self._random is not None:
            # torchsde asks for both once to learn their shapes, this one with a draw from the global random stream.
            if y.is_cuda:
                torch.cuda.set_rng_state(self._random, y.device)
            else:
                torch.set_rng_state(self._random)
        self._checked = True
        g = self.eq.diffusion(self._level(tau))
        if isinstance(g, Tensor):
            return rows(self.eta * g.to(v) * v.reshape(self.shape))
        return self.eta * g * v


class _Increments:
    """Our noise as torchsde's Brownian motion: increments W, and the space-time area U that its SRK asks for."""

    def __init__(self, noise: NoiseSource, like: Tensor, torchsde: Any) -> None:
        self.noise, self.shape, self.dtype, self.device = noise, like.shape, like.dtype, like.device
        self.levy_area_approximation = "space-time"

    def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False) -> Any:
        h = float(tb) - float(ta)
        w = rows(self.noise(-float(ta), -float(tb))) * math.sqrt(h)
        if not return_U:
            return w
        area = rows(self.noise.area(-float(ta), -float(tb))) * math.sqrt(h / 12)
        return w, h * (0.5 * w + area)


@contextmanager
def _at_home(x: Tensor) -> Iterator[None]:
    """Makes the device of the state torch's default, for a package that makes tensors of its own there."""
    with torch.device(x.device) if torch.get_default_device() != x.device else nullcontext():
        yield


def _import(name: str, extra: str) -> Any:
    """An optional package, or an error that names the extra which brings it."""
    import importlib

    try:
        with torch.device("cpu"):  # what it makes on import is for good
            return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this solver needs {name}: pip install 'sde-diffusion[{extra}]'") from error
