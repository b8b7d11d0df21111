"""azula's posterior samplers on one problem, driven through their public API: `pip install azula==0.11.1`.

All get the exact model, azula's own variance-preserving schedule with its default ends, and as many network calls as
they are told, counted. `MMPSDenoiser` and `DiffPIRDenoiser` get as many iterations as numbers are measured, with which
their equations are solved; with the one of their defaults the former is a third to a half farther off. What else an
option leaves open is run both ways, and the closer one is shown, cell by cell: the stochasticity of the sampler of a
denoiser, 0 or 1; `zeta` of `DPSSampler`, 1 as by default, or the root of the number of samples, since its norm
is that of the batch; the twist of `TDSSampler`, that of pseudo-inverse guidance, for data of variance 1, which is that
of a component, or of their own variance.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from _posterior_cells import F64, Problem
from torch import Tensor

from sde_diffusion.sde.level import Level

VERSION = "0.11.1"


class Run(NamedTuple):
    """Samples, network calls and products with the Jacobian of the network, for each sample."""

    x: Tensor
    nfe: int
    vjps: int


def missing() -> str | None:
    """Why there is no azula to compare with; None where there is."""
    try:
        found = version("azula")
    except PackageNotFoundError:
        return f"azula is not installed, so that its columns are left out: pip install azula=={VERSION}"
    return None if found == VERSION else f"azula {found} is installed and {VERSION} wanted: its columns are left out"


class Network:
    """The model of a problem as a denoiser of azula, with its calls and the products with its Jacobian counted."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls, self.vjps = model, 0, 0
        self.schedule = importlib.import_module("azula.noise").VPSchedule()

    def denoiser(self) -> Any:
        """As azula takes it."""
        denoise = importlib.import_module("azula.denoise")
        outer = self

        class Seen(denoise.Denoiser):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.schedule = outer.schedule

            def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
                return denoise.DiracPosterior(mean=outer.mean(x_t, t))

        return Seen()

    def mean(self, x: Tensor, t: Tensor) -> Tensor:
        """One call."""
        self.calls += 1
        alpha, sigma = (float(v) for v in self.schedule(t))
        z = x.view_as(x)  # a node of the graph, so that products are counted where they pass
        if z.requires_grad:
            z.register_hook(self._count)
        return self.model.predict(z, Level(float(t), alpha, sigma)).data

    def _count(self, _: Tensor) -> None:
        self.vjps += 1


def run(problem: Problem, method: str, n: int, calls: int, seed: int) -> list[Run]:
    """Samples of one method, for each way to set what it leaves open."""
    found = []
    for make in WAYS[method](problem, n):
        network = Network(problem.model)
        sampler = make(network.denoiser(), start=1.0, stop=0.0, steps=calls, silent=True, dtype=F64)
        torch.manual_seed(seed)
        x = sampler(sampler.init((n, problem.a.shape[1]), dtype=F64))
        found.append(Run(x, network.calls, network.vjps))
    return found


Make = Callable[..., Any]


def _measured(problem: Problem) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ problem.a.T


def _denoisers(problem: Problem, wrap: Callable[[Any], Any]) -> list[Make]:
    """The sampler that a denoiser is made for, without and with noise."""
    ddim = importlib.import_module("azula.sample").DDIMSampler
    return [lambda d, eta=eta, **options: ddim(wrap(d), eta=eta, **options) for eta in (0.0, 1.0)]


def _dps(problem: Problem, n: int) -> list[Make]:
    made = importlib.import_module("azula.guidance.dps").DPSSampler
    y, a = problem.y, _measured(problem)
    return [lambda d, z=z, **options: made(d, y, a, zeta=z, **options) for z in (1.0, math.sqrt(n))]


def _pgdm(problem: Problem, n: int) -> list[Make]:
    made = importlib.import_module("azula.guidance.pgdm").PGDMSampler
    inverse = torch.linalg.pinv(problem.a)
    y, a = problem.y.expand(n, -1), _measured(problem)
    return [lambda d, e=e, **options: made(d, y, a, lambda v: v @ inverse.T, eta=e, **options) for e in (0.0, 1.0)]


def _mmps(problem: Problem, n: int) -> list[Make]:
    made = importlib.import_module("azula.guidance.mmps").MMPSDenoiser
    noise = importlib.import_module("azula.linalg.covariance").IsotropicCovariance(
        torch.tensor(problem.noise**2, dtype=F64)
    )
    y, a = problem.y.expand(n, -1), _measured(problem)
    return _denoisers(problem, lambda d: made(d, y, a, noise, iterations=len(problem.y)))


def _diffpir(problem: Problem, n: int) -> list[Make]:
    made = importlib.import_module("azula.guidance.diffpir").DiffPIRDenoiser
    y, a = problem.y.expand(n, -1), _measured(problem)
    return _denoisers(problem, lambda d: made(d, y, a, problem.noise**2, iterations=len(problem.y)))


def _tds(problem: Problem, n: int) -> list[Make]:
    made = importlib.import_module("azula.guidance.tds").TDSSampler
    gram = problem.a @ problem.a.T

    def twist(x: Tensor, ratio: Tensor, c: float) -> Tensor:
        r2 = c**2 * ratio**2 / (c**2 + ratio**2)
        law = problem.noise**2 * torch.eye(len(gram), dtype=F64) + r2 * gram
        return torch.distributions.MultivariateNormal(x @ problem.a.T, law).log_prob(problem.y)

    scales = (1.0, problem.model.data_std)
    return [lambda d, c=c, **options: made(d, lambda x, ratio: twist(x, ratio, c), **options) for c in scales]


WAYS: dict[str, Callable[[Problem, int], list[Make]]] = {
    "DPS": _dps,
    "PGDM": _pgdm,
    "MMPS": _mmps,
    "DiffPIR": _diffpir,
    "TDS": _tds,
}
