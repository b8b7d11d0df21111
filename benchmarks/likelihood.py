"""Error of the log-likelihood against network evaluations: the recipe of score_sde, torchdiffeq in t, and ours.

    python benchmarks/likelihood.py            # writes results/likelihood.json and docs/images/likelihood.png
    python benchmarks/likelihood.py --quick    # fewer samples and dimensions, nothing written

The score is exact, of mixtures of rotated Gaussians in d = 2, 16 and 64 dimensions, and so is the divergence: what is
left is the recipe's. The truth is the density of the data themselves. Root mean square and largest error over samples,
in nats; evaluations of the velocity, for ours those of the slowest row. float64, one thread, seeds in the code.

* score_sde: the integral of score_sde_pytorch's likelihood.py, written out anew: scipy's RK45 on the whole batch in
  `t`, rtol = atol = tol, from t = 1e-5 (VP; for VE likewise, where the data end is noise level sigma_min) to 1, prior
  N(0, I) or N(0, sigma_max^2 I).
* dopri5 in t: the same equation by torchdiffeq, with the log-density in one state with the data.
* ours: `sampler.log_prob(x, level=0.0)`, tolerances from 1e-3 to 1e-7, and by a number of steps RK4 and AdamsMoulton.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
import torchdiffeq
from scipy.integrate import solve_ivp
from torch import Tensor

from sde_diffusion import VESDE, VPSDE, GaussianSDE, SDESampler
from sde_diffusion._tensors import standard_normal_log_prob
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.likelihood import Density, Method
from sde_diffusion.solvers import RK4, AdamsMoulton, DormandPrince, Solver
from sde_diffusion.solvers.equation import GaussianReverseSDE

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from mixtures import mixture  # noqa: E402 - the problems of the tests

RESULTS, PICTURE = ROOT / "benchmarks" / "results" / "likelihood.json", ROOT / "docs" / "images" / "likelihood.png"
PROCESSES: dict[str, GaussianSDE] = {"VP": VPSDE(t_min=1e-5), "VE": VESDE(0.01, 50.0)}
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
FINE = (1e-3, 1e-4, 3e-5, 1.5e-5, 1e-5, 3e-6, 1e-6, 1e-7)
BUDGETS = (100, 110, 130, 150, 180)
Row = dict[str, Any]


class Velocity:
    """The probability flow in `t` and its divergence, as one function of numpy or torch, counting its calls."""

    def __init__(self, sde: GaussianSDE, model: GaussianMixture) -> None:
        self.sde, self.model, self.calls = sde, model.on(sde), 0
        self.eq = GaussianReverseSDE(self.model)

    def __call__(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        at = self.eq.level(min(max(t, self.sde.t_min), self.sde.t_max))
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = self.eq.velocity(x, at)
            div = sum(torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1]))
        return v.detach(), torch.as_tensor(div).detach()

    def prior(self, x: Tensor) -> Tensor:
        """N(0, I), or N(0, sigma_max^2 I)."""
        std = self.sde.sigma_max if isinstance(self.sde, VESDE) else 1.0
        return standard_normal_log_prob(x / std) - x.shape[1] * math.log(std)


def score_sde(sde: GaussianSDE, model: GaussianMixture, x: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """likelihood.py of score_sde_pytorch: one vector of all states and all integrals, from eps = 1e-5."""
    flow, shape = Velocity(sde, model), x.shape

    def right_side(t: float, z: np.ndarray) -> np.ndarray:
        v, div = flow(t, torch.from_numpy(z[: x.numel()]).reshape(shape))
        return np.concatenate([v.reshape(-1).numpy(), div.numpy()])

    start = np.concatenate([x.reshape(-1).numpy(), np.zeros(len(x))])
    found = solve_ivp(right_side, (1e-5, 1.0), start, method="RK45", rtol=tolerance, atol=tolerance)
    z = torch.from_numpy(found.y[:, -1])
    return flow.prior(z[: x.numel()].reshape(shape)) + z[x.numel() :], flow.calls


def dopri5(sde: GaussianSDE, model: GaussianMixture, x: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """The same equation by torchdiffeq, kept from stepping past the end."""
    flow = Velocity(sde, model)
    span = torch.tensor([1e-5, 1.0], dtype=torch.float64)
    state = (x, torch.zeros(len(x), dtype=torch.float64))
    options = {"step_t": span[1:]}
    z, integral = torchdiffeq.odeint(
        lambda t, y: flow(float(t), y[0]), state, span, rtol=tolerance, atol=tolerance, method="dopri5", options=options
    )
    return flow.prior(z[-1]) + integral[-1], flow.calls


def ours(sde: GaussianSDE, model: GaussianMixture, x: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """`log_prob` by its default solver."""
    sampler = SDESampler(sde, model.on(sde))
    found = sampler.log_prob(
        x, density=Density(level=0.0), method=Method(DormandPrince(tolerance, tolerance), solver_error=False)
    )
    return found.value, found.nfe


def in_steps(solver: Solver) -> Callable[..., tuple[Tensor, int]]:
    """`log_prob` by a solver that takes a number of steps in place of a tolerance."""

    def weigh(sde: GaussianSDE, model: GaussianMixture, x: Tensor, steps: float) -> tuple[Tensor, int]:
        sampler = SDESampler(sde, model.on(sde))
        found = sampler.log_prob(
            x, density=Density(level=0.0), method=Method(solver, steps=int(steps), solver_error=False)
        )
        return found.value, found.nfe

    return weigh


METHODS: list[tuple[str, Callable[..., tuple[Tensor, int]], tuple[float, ...]]] = [
    ("score_sde: RK45 in t", score_sde, TOLERANCES),
    ("torchdiffeq dopri5 in t", dopri5, TOLERANCES),
    ("ours: DormandPrince", ours, FINE),
    ("ours: RK4", in_steps(RK4()), (16, 24, 32, 64)),
    ("ours: AdamsMoulton", in_steps(AdamsMoulton()), (64, 94, 126, 150, 180)),
]


def measure(dims: tuple[int, ...], n: int, tolerances: tuple[float, ...]) -> list[Row]:
    """One row for each problem, method and setting."""
    rows: list[Row] = []
    for d in dims:
        model = mixture(d) if d == 2 else mixture(d, 6, 0.05, 0.6)
        x = model.sample(n, seed=1)
        truth = model.data_log_prob(x)
        for process, sde in PROCESSES.items():
            for name, method, settings in METHODS:
                for setting in settings:
                    if setting < 1 and setting not in tolerances:
                        continue
                    began = time.perf_counter()
                    value, nfe = method(sde, model, x, setting)
                    error = value - truth
                    rms, most = float(error.square().mean().sqrt()), float(error.abs().max())
                    seconds = time.perf_counter() - began
                    row = {"d": d, "process": process, "method": name, "setting": setting, "nfe": nfe}
                    rows.append({**row, "rms": rms, "max": most, "seconds": round(seconds, 2)})
                    print(
                        f"d={d:<3} {process} {name:<24} {setting:<7g} {nfe:5d} {rms:9.1e} {most:9.1e} {seconds:6.1f} s",
                        flush=True,
                    )
    return rows


def at_equal_cost(rows: list[Row]) -> list[Row]:
    """For each budget of evaluations the least error of score_sde's recipe and of ours, in any setting."""
    found: list[Row] = []
    for d, process in dict.fromkeys((row["d"], row["process"]) for row in rows):
        here = [row for row in rows if row["d"] == d and row["process"] == process]
        for budget in BUDGETS:
            best = {
                name: min(
                    (r for r in here if r["method"].startswith(name) and r["nfe"] <= budget), key=lambda r: r["rms"]
                )
                for name in ("score_sde", "ours")
            }
            ratio = best["score_sde"]["rms"] / best["ours"]["rms"]
            found.append({"d": d, "process": process, "budget": budget, **best, "ratio": ratio})
    return found


def table(summary: list[Row]) -> str:
    """The comparison in Markdown: score_sde's error over ours."""
    head = " | ".join(f"{budget} evaluations" for budget in BUDGETS)
    lines = [f"| d | SDE | {head} |", "|---|---|" + "---|" * len(BUDGETS)]
    for d, process in dict.fromkeys((row["d"], row["process"]) for row in summary):
        here = [row for row in summary if (row["d"], row["process"]) == (d, process)]
        cells = [f"{r['score_sde']['rms']:.1e} / {r['ours']['rms']:.1e} = {r['ratio']:.0f}" for r in here]
        lines.append(f"| {d} | {process} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Error against evaluations, one panel for each problem."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    dims, processes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("d", "process"))
    figure = Figure(figsize=(3.4 * len(dims), 2.9 * len(processes)), dpi=150, layout="constrained")
    panels = figure.subplots(len(processes), len(dims), sharex=True, sharey=True, squeeze=False)
    for axes_row, process in zip(panels, processes, strict=True):
        for axes, d in zip(axes_row, dims, strict=True):
            for (name, _, _), style in zip(METHODS, ("s--", "^--", "o-", "d-", "v-"), strict=True):
                line = [row for row in rows if (row["d"], row["process"], row["method"]) == (d, process, name)]
                axes.loglog([r["nfe"] for r in line], [r["rms"] for r in line], style, markersize=4, lw=1.3, label=name)
            axes.set_title(f"{process}, d = {d}", fontsize=9)
            axes.set_xticks([50, 100, 200, 300], ["50", "100", "200", "300"])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(True, which="both", color="0.93", lw=0.6)
    for axes in panels[-1]:
        axes.set_xlabel("network evaluations")
    for axes in panels[:, 0]:
        axes.set_ylabel("rms error, nats")
    panels[0][0].legend(fontsize=7, frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples and dimensions; writes nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    dims, n, tolerances = ((2, 4), 16, (1e-3, 1e-5, 1e-6)) if quick else ((2, 16, 64), 64, FINE)
    versions = {"torch": torch.__version__, "scipy": scipy.__version__, "torchdiffeq": torchdiffeq.__version__}
    print(f"{versions}, {n} samples of the data each")
    rows = measure(dims, n, tolerances)
    summary = at_equal_cost(rows)
    print(f"\n{table(summary)}")
    if quick:
        return
    result = {"command": "python benchmarks/likelihood.py", **versions, "samples": n, "summary": summary, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(rows, PICTURE)


if __name__ == "__main__":
    main()
