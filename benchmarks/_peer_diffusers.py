"""diffusers' deterministic schedulers, each with its options, driven through their public API.

A scheduler runs its own loop, `set_timesteps`, `scale_model_input`, `step`. The network answers at the noise level
where the state of the scheduler stands, `scheduler.sigmas`, and not at the rounded index beside it, which is to the
scheduler's advantage. Its state is one of three: variance preserving, x / alpha, or on the straight path.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from _counted import AnyLevel, Skip
from torch import Tensor

from sde_diffusion import EDMSDE, DiscreteVPSDE, FlowSDE, GaussianSDE

BETAS = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
SCALES: dict[str, Callable[[float], tuple[float, float]]] = {
    "preserving": lambda s: (1 / math.sqrt(1 + s * s), s / math.sqrt(1 + s * s)),
    "exploding": lambda s: (1.0, s),
    "straight": lambda s: (1 - s, s),
}
SPACINGS = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "leading, offset 1": {"timestep_spacing": "leading", "steps_offset": 1},
    "trailing": {"timestep_spacing": "trailing"},
}
SIGMAS = {name: {f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")}
FLOW = {f"flow, shift {s:g}": {"use_flow_sigmas": True, "flow_shift": s} for s in (1.0, 2.0, 3.0)}
LOW: dict[str, Any] = {"final_sigmas_type": "sigma_min"}
UNIPC: list[tuple[str, dict[str, Any]]] = [("bh1", LOW), ("bh2", {}), ("bh2", LOW)]
"""The kinds of UniPC with their ends: bh1 answers NaN where the last level is zero."""


@dataclass(frozen=True)
class Scheduler:
    """One scheduler with its options.

    Attributes:
        name: The class in diffusers.
        grid: The name of its spacing option.
        options: For the constructor.
        state: What its state is, a key of `SCALES`.
        custom: Options of `set_timesteps` instead of the number of steps, for a number of evaluations.
        step: Options of `step`.
        made: The scheduler, once it is made.
    """

    name: str
    grid: str
    options: dict[str, Any] = field(default_factory=dict)
    state: str = "preserving"
    custom: Callable[[int], dict[str, Any]] | None = None
    step: dict[str, Any] = field(default_factory=dict)
    made: list[Any] = field(default_factory=list, repr=False)

    @property
    def label(self) -> str:
        hidden = {*BETAS, "timestep_spacing", "steps_offset", "flow_shift", "skip_prk_steps", "clip_sample"}
        hidden |= {"prediction_type", "sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "trained_betas", "rho"}
        kept = {k: v for k, v in self.options.items() if k not in hidden and not k.startswith("use_")}
        told = ", ".join(f"{k}={v!r}" for k, v in {**kept, **self.step}.items())
        return f"diffusers {self.name.removesuffix('Scheduler')}({told}) | {self.grid}"

    def __call__(self, network: AnyLevel, n: int, x_T: Tensor) -> Tensor:
        """`n` evaluations from the noise `x_T` to data."""
        made = self._made(n)
        wanted = made.config.get("prediction_type", "v_prediction")
        x = network.start(x_T, *self._scales(made, 0))
        for i, t in enumerate(made.timesteps):
            if hasattr(made, "scale_model_input"):
                made.scale_model_input(x, t)
            alpha, sigma = self._scales(made, i)
            x = made.step(self._answer(network, x, alpha, sigma, wanted), t, x, **self.step).prev_sample
        return x / self._final(made)

    def _made(self, n: int) -> Any:
        """The scheduler, set to exactly `n` evaluations."""
        if not self.made:  # once for all numbers of evaluations, as one would
            self.made.append(getattr(importlib.import_module("diffusers"), self.name)(**self.options))
        made = self.made[0]
        if self.custom is not None:
            made.set_timesteps(**self.custom(n))
            if len(made.timesteps) != n:
                raise Skip("its table has another number of steps")
            return made
        for steps in (n, (n + 1) // 2, n - 1):
            made.set_timesteps(steps)
            if len(made.timesteps) == n:
                return made
        raise Skip("takes two evaluations a step, or its spacing has no such number of steps")

    def _scales(self, made: Any, i: int) -> tuple[float, float]:
        """Alpha and sigma of the state at evaluation `i`."""
        if self.name == "IPNDMScheduler":
            return float(made.alphas[i]), float(made.betas[i])
        if not hasattr(made, "sigmas"):
            bar = float(made.alphas_cumprod[int(made.timesteps[i])].double())
            return math.sqrt(bar), math.sqrt(1 - bar)
        between = getattr(made, "sigmas_interpol", None)
        s = float(between[i] if between is not None and i % 2 else made.sigmas[i])
        return SCALES[self.state](s)

    def _final(self, made: Any) -> float:
        """Alpha where the scheduler ends."""
        if self.name == "IPNDMScheduler":
            return float(made.alphas[-1])
        if not hasattr(made, "sigmas"):
            return math.sqrt(float(made.final_alpha_cumprod))
        return SCALES[self.state](float(made.sigmas[-1]))[0]

    def _answer(self, network: AnyLevel, x: Tensor, alpha: float, sigma: float, wanted: str) -> Tensor:
        """One evaluation, answered as the scheduler wants it."""
        p = network(x, alpha, sigma)
        if self.name.startswith("EDM"):
            c = self.options["sigma_data"] ** 2
            return (p.data - c / (sigma**2 + c) * x) * (math.sqrt(sigma**2 + c) / (sigma * math.sqrt(c)))
        if wanted == "epsilon":
            return p.noise
        return p.noise - p.data if wanted == "flow_prediction" else alpha * p.noise - sigma * p.data


def multistep(grids: dict[str, dict[str, Any]], common: dict[str, Any]) -> Iterator[Scheduler]:
    """DPM-Solver, UniPC and DEIS over given grids."""
    for grid, spacing in grids.items():
        told = {**common, **spacing}
        low: list[dict[str, Any]] = [LOW]
        if "timestep_spacing" in spacing or "flow" in grid:  # the others end on a step of length zero, which is NaN
            low.append({"final_sigmas_type": "sigma_min", "lower_order_final": False})
        ends: list[dict[str, Any]] = [{}, {"euler_at_final": True}, *low]
        for order in (2, 3):
            for end in ends:
                yield Scheduler("DPMSolverMultistepScheduler", grid, {**told, "solver_order": order, **end})
            for end in low if "flow" not in grid else []:
                options = {"solver_order": order, "algorithm_type": "dpmsolver", **end}
                yield Scheduler("DPMSolverMultistepScheduler", grid, {**told, **options})
        yield Scheduler("DPMSolverMultistepScheduler", grid, {**told, "solver_order": 2, "solver_type": "heun"})
        yield Scheduler("DPMSolverMultistepScheduler", grid, {**told, "solver_order": 1})
        if grid == "lu":
            continue
        for order in (2, 3):
            for kind, end in UNIPC:
                options = {"solver_order": order, "solver_type": kind, **end}
                yield Scheduler("UniPCMultistepScheduler", grid, {**told, **options})
            for lower in ({}, {"lower_order_final": False}):
                yield Scheduler("DEISMultistepScheduler", grid, {**told, "solver_order": order, **lower})
        yield Scheduler("UniPCMultistepScheduler", grid, {**told, "solver_order": 1})


def single(grids: dict[str, dict[str, Any]], common: dict[str, Any]) -> Iterator[Scheduler]:
    """The single-step DPM-Solver over given grids."""
    for grid, spacing in grids.items():
        for order in (2, 3):
            for end in ({"lower_order_final": True}, {"final_sigmas_type": "sigma_min", "lower_order_final": True}):
                options = {**common, **spacing, "solver_order": order, **end}
                yield Scheduler("DPMSolverSinglestepScheduler", grid, options)


def in_noise(grids: dict[str, dict[str, Any]]) -> Iterator[Scheduler]:
    """The schedulers whose state is x / alpha: Euler, Heun, DPM2 and linear multistep."""
    for grid, spacing in grids.items():
        options = {**BETAS, **spacing}
        for end in ({}, LOW):
            yield Scheduler("EulerDiscreteScheduler", grid, {**options, **end}, "exploding")
        yield Scheduler("HeunDiscreteScheduler", grid, options, "exploding")
        yield Scheduler("KDPM2DiscreteScheduler", grid, options, "exploding")
        for order in (2, 3, 4):
            yield Scheduler("LMSDiscreteScheduler", grid, options, "exploding", step={"order": order})


def on_indices() -> Iterator[Scheduler]:
    """DDIM and PNDM, which step from index to index."""
    for grid, spacing in SPACINGS.items():
        yield Scheduler("DDIMScheduler", grid, {**BETAS, **spacing, "clip_sample": False})
        for one in (False, True):
            options = {**BETAS, **spacing, "skip_prk_steps": True, "set_alpha_to_one": one}
            yield Scheduler("PNDMScheduler", grid, options)


def own_grid(sde: DiscreteVPSDE) -> Iterator[Scheduler]:
    """IPNDM on its own grid and on levels of the chain, and the tables of Align Your Steps that diffusers ships."""

    def chain(power: float) -> Callable[[int], list[float]]:
        def betas(n: int) -> list[float]:
            u = [sde.t_max * (1 - i / n) ** power for i in range(n)]
            return [*(at.sigma / math.hypot(at.alpha, at.sigma) for at in sde.levels(u)), 0.0]

        return betas

    yield Scheduler("IPNDMScheduler", "its own")
    for name, power in (("levels of the chain, uniform", 1.0), ("levels of the chain, quadratic", 2.0)):
        yield LevelsOfChain("IPNDMScheduler", name, levels=chain(power))
    tables = getattr(importlib.import_module("diffusers.schedulers"), "AysSchedules", {})
    for key in ("StableDiffusionTimesteps", "StableDiffusionXLTimesteps"):
        for order in (1, 2, 3):
            if key in tables:
                custom = {"timesteps": list(tables[key])}
                options = {**BETAS, "solver_order": order}
                grid = f"Align Your Steps, {key.removesuffix('Timesteps')}"
                yield Scheduler("DPMSolverMultistepScheduler", grid, options, custom=lambda n, c=custom: c)


@dataclass(frozen=True)
class LevelsOfChain(Scheduler):
    """IPNDM on levels handed over as `trained_betas`, its only option."""

    levels: Callable[[int], list[float]] = lambda n: []

    def _made(self, n: int) -> Any:
        made = getattr(importlib.import_module("diffusers"), self.name)(trained_betas=self.levels(n))
        made.set_timesteps(n)
        return made


def edm(low: float, high: float, data_std: float) -> Iterator[Scheduler]:
    """The schedulers of EDM networks, on any range of noise."""
    common = {"sigma_min": low, "sigma_max": high, "sigma_data": data_std}
    grids = {f"karras, rho {rho:g}": {"sigma_schedule": "karras", "rho": rho} for rho in (7.0, 5.0, 3.0)}
    grids["exponential"] = {"sigma_schedule": "exponential"}
    for grid, spacing in grids.items():
        for end in ({}, LOW):
            yield Scheduler("EDMEulerScheduler", grid, {**common, **spacing, **end}, "exploding")
            for order in (2, 3):
                options = {**common, **spacing, "solver_order": order, **end}
                yield Scheduler("EDMDPMSolverMultistepScheduler", grid, options, "exploding")
        options = {**common, **spacing, "solver_order": 2, "solver_type": "heun"}
        yield Scheduler("EDMDPMSolverMultistepScheduler", grid, options, "exploding")


def unipc_on(low: float, high: float) -> Iterator[Scheduler]:
    """UniPC on a range of noise of one's own."""
    for grid in ("karras", "exponential"):
        for order in (2, 3):
            for kind, end in UNIPC:
                options = {**SIGMAS[grid], "sigma_min": low, "sigma_max": high, "solver_order": order}
                yield Scheduler("UniPCMultistepScheduler", grid, {**options, "solver_type": kind, **end})


def straight() -> Iterator[Scheduler]:
    """The schedulers of velocity networks on the straight path."""
    for shift in (1.0, 2.0, 3.0):
        yield Scheduler("FlowMatchEulerDiscreteScheduler", f"shift {shift:g}", {"shift": shift}, "straight")
        yield Scheduler("FlowMatchHeunDiscreteScheduler", f"shift {shift:g}", {"shift": shift}, "straight")
    for grid, option in SIGMAS.items():
        yield Scheduler("FlowMatchEulerDiscreteScheduler", grid, option, "straight")


def on_flow_sigmas() -> Iterator[Scheduler]:
    """The multistep schedulers on the levels of the straight path."""
    for made in multistep(FLOW, {**BETAS, "prediction_type": "flow_prediction"}):
        yield Scheduler(made.name, made.grid, made.options, "straight")


def pairs(sde: GaussianSDE, data_std: float) -> list[Scheduler]:
    """Every pair of scheduler and spacing that fits a process; none if diffusers is not installed."""
    if importlib.util.find_spec("diffusers") is None:
        return []
    high, low = (at.ratio for at in sde.levels([sde.t_max, sde.t_min]))
    if isinstance(sde, FlowSDE):
        return [*straight(), *on_flow_sigmas()]
    own = [*edm(low, high, data_std)]
    if isinstance(sde, EDMSDE):
        return [*own, *unipc_on(low, high)]
    if not isinstance(sde, DiscreteVPSDE):
        return own
    grids = {**SPACINGS, **SIGMAS}
    several = multistep({**grids, "lu": {"use_lu_lambdas": True}}, BETAS)
    one = single({"linspace": {}, **SIGMAS}, BETAS)
    return [*on_indices(), *several, *one, *in_noise(grids), *own_grid(sde), *own, *on_flow_sigmas()]
