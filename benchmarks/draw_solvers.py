"""The picture of README.md: the same seeds under four solvers, over the exact density of a one-dimensional mixture.

    python benchmarks/draw_solvers.py            # writes docs/images/solvers.png
    python benchmarks/draw_solvers.py --quick    # the solves alone, nothing drawn

The model is exact, so that what differs between the panels is the solver. Needs matplotlib (the extra `examples`).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from sde_diffusion import VPSDE, SDESampler, grids
from sde_diffusion.denoiser.analytic import isotropic_mixture
from sde_diffusion.solvers import DDIM, DPMSolverPP, EulerMaruyama, Heun, Solver

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "solvers.png"
SEEDS = 10
REACH = 3.2
PANELS: list[tuple[Solver, int, str]] = [
    (EulerMaruyama(), 500, "reverse SDE"),
    (DDIM(eta=1.0), 50, "ancestral (DDPM)"),
    (Heun(), 25, "probability-flow ODE"),
    (DPMSolverPP(order=2), 10, "the same ODE, multistep"),
]

SDE = VPSDE()
MODEL = isotropic_mixture(SDE, [[-1.2], [0.4], [1.3]], std=0.12)


def trajectories(solver: Solver, steps: int) -> tuple[Tensor, Tensor, int]:
    """Angles `(N,)`, states `(N, SEEDS)` and evaluations of one solve; the last state is the final jump."""
    solve = list(SDESampler(SDE, MODEL, solver=solver, steps=steps, grid=grids.angle).iterate(SEEDS, seed=0))
    angles = [math.atan2(at.sigma, at.alpha) for at in SDE.levels(now.t for now in solve[:-1])] + [0.0]
    return torch.tensor(angles), torch.cat([now.x for now in solve], dim=1).T, solve[-1].nfe


def density(width: int = 400, height: int = 300) -> Tensor:
    """The exact density `(height, width)`, noise on the left, each column relative to its maximum."""
    ends = torch.tensor(SDE.ends(), dtype=torch.float64)
    top, bottom = torch.atan(torch.exp(-ends)).tolist()
    times = SDE.time_of(-torch.log(torch.tan(torch.linspace(top, bottom, width, dtype=torch.float64))))
    x = torch.linspace(-REACH, REACH, height, dtype=torch.float64)[:, None]
    columns = torch.stack([MODEL.log_prob(x, t).exp() for t in times.clamp(SDE.t_min, SDE.t_max).tolist()], dim=1)
    return columns / columns.amax(0)


def draw(path: Path) -> None:
    """Draws all four panels."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    image, extent = density(), (0.5 * math.pi, 0.0, -REACH, REACH)
    figure, axes = plt.subplots(2, 2, figsize=(9.6, 5.4), sharex=True, sharey=True, layout="constrained")
    for axis, (solver, steps, note) in zip(axes.flat, PANELS, strict=True):
        times, x, nfe = trajectories(solver, steps)
        axis.imshow(image.sqrt(), extent=extent, origin="lower", aspect="auto", cmap="Greys", alpha=0.55)
        marks = dict(marker="o", markersize=2.5) if steps <= 25 else {}
        axis.set_prop_cycle(color=plt.get_cmap("tab10").colors)
        axis.plot(times, x, linewidth=0.9, **marks)
        axis.set_title(f"{solver!r}\n{note}, {nfe} network evaluations", fontsize=9)
        axis.set_xlim(0.5 * math.pi, 0.0)
        axis.set_ylim(-REACH, REACH)
    for axis in axes[-1]:
        axis.set_xlabel("angle arctan(sigma/alpha): noise on the left, data on the right", fontsize=9)
    for axis in axes[:, 0]:
        axis.set_ylabel("x", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="solves, and draws nothing")
    quick = parser.parse_args().quick
    for solver, steps, note in PANELS:
        _, x, nfe = trajectories(solver, steps)
        print(f"{solver!r}: {note}, {nfe} evaluations, first three samples {[round(v, 3) for v in x[-1, :3].tolist()]}")
    if not quick:
        draw(PICTURE)
        print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
