"""How far solvers end from the exact solution, at equal network evaluations: the tables of docs/solvers.md.

    python benchmarks/solver_errors.py            # writes benchmarks/results/solver_errors.json, prints the tables
    python benchmarks/solver_errors.py --quick    # fewer samples, nothing written

The model is exact (a mixture of eight Gaussians in the plane, unit variance per coordinate, over the noise levels of
`VPSDE()`), so that all error is the solver's. Deterministic solvers: root mean square distance per coordinate to the
solution from the same initial state, both after the final jump, in units of the standard deviation of the data.
Stochastic ones, whose paths have no exact end: the spread of the samples about the nearest of the eight means, relative
to the exact one. float64, seeds 0, 1, ...
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from solver_table import spelling
from torch import Tensor

from sde_diffusion import EDMSDE, VPSDE, GaussianSDE, SDESampler, grids
from sde_diffusion.denoiser.analytic import GaussianMixture, isotropic_mixture
from sde_diffusion.noise import Streams
from sde_diffusion.solvers import (
    DDIM,
    IPNDM,
    RK4,
    Adams,
    AdamsMoulton,
    Angle,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    Solver,
    UniPC,
)

STD = 0.1
RESULTS = Path(__file__).parent / "results" / "solver_errors.json"
BUDGETS = (
    9,
    13,
    17,
    25,
    49,
)  # the final jump included: so many evaluations are steps of one, two or four, and one more
LONG = (25, 49, 101, 401)

DETERMINISTIC: list[tuple[str, Solver, str]] = [
    ("VPSDE", Euler(), "uniform"),
    ("VPSDE", Heun(), "uniform"),
    ("VPSDE", Heun(), "karras"),
    ("EDMSDE", Heun(), "karras"),
    ("VPSDE", Heun(), "angle"),
    ("any", Angle(Heun()), "angle"),
    ("VPSDE", RK4(), "angle"),
    ("EDMSDE", RK4(), "angle"),
    ("any", Angle(RK4()), "angle"),
    ("any", Angle(AdamsMoulton(3)), "angle"),
    ("any", Angle(AdamsMoulton()), "angle"),
    ("any", DDIM(), "log_snr"),
    ("any", DDIM(), "angle"),
    ("any", DPMSolverPP(order=2), "log_snr"),
    ("any", DPMSolverPP(order=2), "angle"),
    ("any", UniPC(order=3), "log_snr"),
    ("any", UniPC(order=3), "angle"),
    ("any", IPNDM(3), "angle"),
    ("any", Adams(3, "angle"), "angle"),
]
STOCHASTIC: list[tuple[str, Solver, str]] = [
    ("VPSDE", EulerMaruyama(), "uniform"),
    ("VPSDE", EulerMaruyama(), "angle"),
    ("any", DDIM(eta=1.0), "angle"),
    ("VPSDE", PredictorCorrector(EulerMaruyama(), Langevin(1, snr=0.16)), "angle"),
]


def problem(process: str = "VPSDE") -> tuple[GaussianSDE, GaussianMixture]:
    """Eight Gaussians of standard deviation 0.1 on a circle, the whole of unit variance per coordinate."""
    vp = VPSDE()
    low, high = (at.ratio for at in vp.levels([vp.t_min, vp.t_max]))
    sde = EDMSDE(low, high) if process == "EDMSDE" else vp
    radius = math.sqrt(2 * (1 - STD**2))
    means = [[radius * math.cos(math.pi * k / 4), radius * math.sin(math.pi * k / 4)] for k in range(8)]
    return sde, isotropic_mixture(sde, means, std=STD)


def draw(process: str, solver: Solver, grid: str, n: int, *, nfe: int) -> tuple[Tensor, int]:
    """Samples of seeds 0 ... n - 1, all processes from the same state over alpha, and the evaluations they took."""
    sde, model = problem(process)
    vp, _ = problem()
    z = Streams(range(n), (2,), torch.float64, "cpu").prior()
    (there,), (here,) = vp.levels([vp.t_max]), sde.levels([sde.t_max])
    sampler = SDESampler(sde, model, solver=solver, nfe=nfe, grid=getattr(grids, grid))
    *_, last = sampler.iterate(seed=range(n), x_T=z * there.sigma * here.alpha / there.alpha)
    return last.x, last.nfe


def deterministic(n: int) -> list[dict[str, object]]:
    """Distances to the exact solution."""
    exact, _ = draw("VPSDE", Angle(RK4()), "angle", n, nfe=4001)
    rows: list[dict[str, object]] = []
    for process, solver, grid in DETERMINISTIC:
        errors = {}
        for budget in BUDGETS:
            x, used = draw(process, solver, grid, n, nfe=budget)
            assert used == budget, (solver, used, budget)
            errors[str(budget)] = float((x - exact).square().mean().sqrt())
        rows.append({"process": process, "solver": spelling(solver), "grid": grid, "error": errors})
    return rows


def stochastic(n: int) -> list[dict[str, object]]:
    """Spread of the samples about the nearest of the eight means, relative to the exact one."""
    _, model = problem()
    rows: list[dict[str, object]] = []
    for process, solver, grid in STOCHASTIC:
        found = {str(b): spread(model, draw(process, solver, grid, n, nfe=b)[0]) / STD for b in LONG}
        rows.append({"process": process, "solver": spelling(solver), "grid": grid, "spread": found})
    return rows


def spread(model: GaussianMixture, x: Tensor) -> float:
    """Root mean square distance per coordinate to the nearest mean."""
    distance = torch.cdist(x, model.means).amin(1)
    return float((distance.square().mean() / x.shape[1]).sqrt())


def markdown(rows: list[dict[str, object]], key: str, digits: int) -> str:
    """One table."""
    budgets = list(rows[0][key])
    lines = [
        "| steps in | solver | grid | " + " | ".join(budgets) + " |",
        "|---|---|---|" + "---|" * len(budgets),
    ]
    for row in rows:
        cells = " | ".join(f"{row[key][b]:.{digits}g}" for b in budgets)
        where = "noise level" if row["process"] == "any" else f"t of `{row['process']}`"
        where = "angle" if str(row["solver"]).startswith("Angle") else where
        lines.append(f"| {where} | `{row['solver']}` | `{row['grid']}` | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples; writes nothing")
    quick = parser.parse_args().quick
    n, m = (64, 512) if quick else (1024, 4096)
    torch.set_num_threads(1)
    ode = deterministic(n)
    sde = stochastic(m)
    error = 1 / math.sqrt(4 * m)  # standard error of a root mean square over 2 m normal coordinates
    print(f"torch {torch.__version__}, {n} and {m} samples\n")
    print(markdown(ode, "error", 2))
    print(f"\n{markdown(sde, 'spread', 3)}\n\nstandard error {error:.1g}")
    if not quick:
        RESULTS.parent.mkdir(exist_ok=True)
        result = {
            "command": "python benchmarks/solver_errors.py",
            "torch": torch.__version__,
            "samples": {"deterministic": n, "stochastic": m},
            "deterministic": ode,
            "stochastic": sde,
            "standard_error": error,
        }
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
