"""azula's deterministic samplers on its schedules, driven through their public API.

A denoiser of azula does not depend on the schedule that it is sampled with, and its samplers step evenly in the time
of that schedule: so its schedules are its grids. Each is given the noise range of the process. A sampler ends at the
least noise of the schedule; a pair with `mean` spends its last evaluation on the posterior mean there.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from _counted import AnyLevel, Skip
from torch import Tensor

from sde_diffusion import GaussianSDE

METHODS: list[tuple[str, dict[str, int]]] = [
    ("DDIMSampler", {}),
    ("HeunSampler", {}),
    *((name, {"order": q}) for name in ("zABSampler", "vABSampler") for q in (2, 3, 4)),
    *((name, {"order": q}) for name in ("zEABSampler", "xEABSampler", "REABSampler") for q in (2, 3, 4)),
]
LARGEST = 1e3  # sigma / alpha where azula's own schedules end, for a process that ends at pure noise


def schedules(sde: GaussianSDE) -> dict[str, Callable[[], Any]]:
    """Azula's schedules over the noise range of a process, and the process itself as one of azula's."""
    noise = importlib.import_module("azula.noise")
    high, low = (at.ratio for at in sde.levels([sde.t_max, sde.t_min]))
    high = min(high, LARGEST)
    preserving = {"alpha_min": math.sqrt((1 + low * low) / (1 + high * high)), "sigma_min": low}
    straight = {"alpha_min": 1 / high, "sigma_min": low}
    made = {
        "VE": lambda: noise.VESchedule(low, high),
        "VP": lambda: noise.VPSchedule(**preserving),
        "cosine": lambda: noise.CosineSchedule(**preserving),
        "rectified": lambda: noise.RectifiedSchedule(**straight),
        **{f"decay {g:g}": lambda g=g: noise.DecaySchedule(**straight, gamma=g) for g in (0.3, 0.1)},
    }
    if sde.levels([sde.t_max])[0].ratio <= LARGEST:
        made["the process"] = lambda: own(sde)
    return made


def own(sde: GaussianSDE) -> Any:
    """A process as a schedule of azula, whose time runs from 0 to 1."""

    class Own(importlib.import_module("azula.noise").Schedule):  # type: ignore[misc]
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            time = (sde.t_min + (sde.t_max - sde.t_min) * t.double()).clamp(sde.t_min, sde.t_max)
            return sde.alpha(time), sde.sigma(time)

    return Own()


@dataclass(frozen=True)
class AzulaSampler:
    """One sampler on one schedule.

    Attributes:
        name: The class in azula.
        options: For its constructor.
        grid: The name of the schedule.
        mean: Whether the last evaluation is the posterior mean.
        schedule: Makes the schedule.
    """

    name: str
    options: dict[str, int]
    grid: str
    mean: bool
    schedule: Callable[[], Any]

    @property
    def label(self) -> str:
        told = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
        return f"azula {self.name}({told}) | {self.grid}{', mean' if self.mean else ''}"

    def __call__(self, network: AnyLevel, n: int, x_T: Tensor) -> Tensor:
        """`n` evaluations from the noise `x_T` to data."""
        per_step = 2 if self.name == "HeunSampler" else 1
        steps, rest = divmod(n - self.mean, per_step)
        if rest:
            raise Skip("takes two evaluations a step: another number of them")
        denoiser = seen(network, self.schedule())
        sampler = getattr(importlib.import_module("azula.sample"), self.name)(
            denoiser, start=1.0, stop=0.0, steps=steps, silent=True, dtype=torch.float64, **self.options
        )
        ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
        alpha, sigma = (v.tolist() for v in denoiser.schedule(ends))
        x = sampler(network.start(x_T, alpha[0], sigma[0]))
        return denoiser(x, ends[1]).mean if self.mean else x / alpha[1]


def seen(network: AnyLevel, schedule: Any) -> Any:
    """The network as a denoiser of azula."""
    denoise = importlib.import_module("azula.denoise")

    class Seen(denoise.Denoiser):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = self.schedule(t)
            return denoise.DiracPosterior(mean=network(x_t, float(alpha), float(sigma)).data)

    return Seen()


def pairs(sde: GaussianSDE) -> list[AzulaSampler]:
    """Every pair of sampler and schedule, with both ends; none if azula is not installed."""
    if importlib.util.find_spec("azula") is None:
        return []
    return [
        AzulaSampler(name, options, grid, mean, schedule)
        for grid, schedule in schedules(sde).items()
        for name, options in METHODS
        for mean in (False, True)
    ]
