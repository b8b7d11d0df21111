"""Is a little fresh noise better, at a given budget, for a network that is not perfect? One scalar, fitted.

For each stochastic method the scalar is chosen by the energy distance to true samples on some seeds, and what it is
worth is told by others: the difference to the same method without noise, paired by seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from _nfe_measure import distances, interval
from _our_pairs import Ours
from _problems import Case
from torch import Tensor

from sde_diffusion import SDESampler, grids
from sde_diffusion.solvers import DDIM, SDEDPMSolverPP, Solver

ETAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
METHODS: dict[str, Callable[[float], Solver]] = {
    "DDIM(eta)": DDIM,
    "SDEDPMSolverPP(2, eta)": partial(SDEDPMSolverPP, 2),
}


@dataclass(frozen=True)
class Noisy(Ours):
    """A stochastic sampler, whose noise is drawn by a seed of its own for each batch of starting noises."""

    def __call__(self, network: Any, n: int, x_T: Tensor) -> Tensor:
        model = network.model
        sampler = self.build(self.case.sde, model, nfe=n * model.cost, shape=self.case.shape)
        seed = int(x_T.double().abs().sum() * 1e6) % 2**31
        return sampler.sample(len(x_T), x_T=x_T, seed=seed, cond=self.case.cond)


def row(
    case: Case, budgets: Sequence[int], fitted_on: Sequence[int], told_by: Sequence[int], rows: int
) -> dict[str, Any]:
    """For each method and budget: the fitted scalar, and energy distances with it and without, with intervals."""
    grid = partial(grids.angle, data_std=case.model.data_std)
    found: dict[str, Any] = {}
    for name, make in METHODS.items():
        for n in budgets:
            pairs = [Noisy(str(eta), case, partial(SDESampler, solver=make(eta), grid=grid)) for eta in ETAS]
            tried = distances(case, pairs, n, fitted_on, rows)
            best = min(tried, key=lambda eta: interval(tried[eta]["energy"])[0])
            chosen = [pair for pair in pairs if pair.label in (best, "0.0")]
            told = {label: d["energy"] for label, d in distances(case, chosen, n, told_by, rows).items()}
            gain = [a - b for a, b in zip(told[best], told["0.0"], strict=True)]
            found.setdefault(name, {})[str(n)] = {
                "eta": float(best),
                "energy": interval(told[best]),
                "without": interval(told["0.0"]),
                "difference": interval(gain) if best != "0.0" else (0.0, 0.0),
            }
    return found
