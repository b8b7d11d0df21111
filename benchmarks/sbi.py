"""Simulation-based inference: how far samples at default settings are from the exact posterior, and the choice of the
frequencies of `MLP` where it has a context.

    python benchmarks/sbi.py            # writes benchmarks/results/sbi.json and docs/images/sbi.png
    python benchmarks/sbi.py --quick    # a few simulations and steps, nothing written

Two tasks of Lueckmann et al., Benchmarking Simulation-Based Inference, 2021, from the formulas there: two moons and the
Gaussian mixture. 10,000 simulations each, parameters and observations standardised, one network for all observations,
trained and sampled as the library does when it is told nothing but the number of steps. For the first three
observations that come with the benchmark, 10,000 samples are held against as many exact ones by C2ST, the accuracy of a
classifier that tells them apart on data it has not seen: .5 is perfect, 1 is useless.

`features` is the number of frequencies that describe the parameters to the network: the default, which is none beside a
context, and 16, the default without one.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import sklearn
import torch
from _sbi_tasks import TASKS, Task, c2st
from torch import Tensor

from sde_diffusion import EDMSDE, Network, SDESampler, predict
from sde_diffusion.data import Standardise
from sde_diffusion.nets import MLP
from sde_diffusion.training import train

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURE = ROOT / "benchmarks" / "results" / "sbi.json", ROOT / "docs" / "images" / "sbi.png"
SIMULATIONS, STEPS, SAMPLES, OBSERVATIONS = 10_000, 5_000, 10_000, 3
FEATURES = (None, 16)
SHOWN = 2_000
EXACT = 99
"""The seed of the exact draws."""


class Inference:
    """A posterior learnt from simulations, for any observation.

    Args:
        theta: Parameters, (N, D).
        x: Observations, (N, d).
        steps: Gradient steps.
        features: As in `MLP`.
        seed: The seed of the initial weights and of the training.
    """

    def __init__(self, theta: Tensor, x: Tensor, *, steps: int, features: int | None = None, seed: int = 0) -> None:
        self.theta, self.x = Standardise.of(theta), Standardise.of(x)
        torch.manual_seed(seed)
        net = MLP(theta.shape[1], context=x.shape[1], features=features)
        model = Network(net, EDMSDE(), predict.edm, shape=theta.shape[1:])
        self.training = train(model, self.theta.apply(theta), context=self.x.apply(x), steps=steps, seed=seed)
        self.sampler = SDESampler(EDMSDE(), self.training.model)

    def sample(self, n: int, x: Tensor, seed: int = 0) -> Tensor:
        """Draws from the posterior at an observation (1, d), (n, D)."""
        return self.theta.undo(self.sampler.sample(n, seed=seed, context=self.x.apply(x)))


def posteriors(task: Task, count: int) -> list[tuple[Tensor, Tensor]]:
    """Observations of the benchmark (1, d), and as many exact draws from their posteriors as will be compared."""
    generator = torch.Generator().manual_seed(EXACT)
    found = torch.tensor(task.observed[:count], dtype=torch.float64)
    return [(x[None], task.posterior(x, SAMPLES, generator)) for x in found]


def measure(
    task: Task, *, simulations: int, steps: int, samples: int, count: int, features: int | None, seed: int = 0
) -> tuple[dict[str, Any], list[tuple[Tensor, Tensor]]]:
    """C2ST for every observation, with what was spent, and the samples beside the exact ones."""
    generator = torch.Generator().manual_seed(seed)
    theta = task.prior(simulations, generator)
    inference = Inference(theta, task.simulate(theta, generator), steps=steps, features=features, seed=seed)
    start, pairs = time.perf_counter(), []
    for x, exact in posteriors(task, count):
        pairs.append((inference.sample(samples, x), exact[:samples]))
    drawn = time.perf_counter() - start
    row = {
        "features": inference.training.model.built_with()["features"],
        "c2st": [c2st(found, exact) for found, exact in pairs],
        "train_s": inference.training.seconds,
        "sample_s": drawn,
    }
    return row, pairs


def table(rows: list[dict[str, Any]]) -> str:
    """C2ST in Markdown."""
    lines = ["| task | features | C2ST | training, s | sampling, s |", "|---|---|---|---|---|"]
    for row in rows:
        scores = ", ".join(f"{c:.3f}".lstrip("0") for c in row["c2st"])
        cells = (row["task"], row["features"], scores, f"{row['train_s']:.0f}", f"{row['sample_s']:.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def draw(shown: dict[str, tuple[Tensor, Tensor]], path: Path) -> None:
    """Exact samples of each task on the left, those of the network on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.0 * len(shown)), dpi=120, layout="constrained")
    panels = figure.subplots(len(shown), 2, squeeze=False)
    for axes, (name, (found, exact)) in zip(panels, shown.items(), strict=True):
        low, high = exact.amin(0).tolist(), exact.amax(0).tolist()
        for a, x, title in ((axes[0], exact, "exact"), (axes[1], found, "MLP")):
            a.scatter(*x[:SHOWN].T.tolist(), s=1, color="#0072B2", linewidths=0)
            a.set(title=f"{name}: {title}", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
            a.title.set_fontsize(9)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few simulations and steps; writes nothing")
    quick = parser.parse_args().quick
    warnings.filterwarnings("ignore", "Stochastic Optimizer")  # of the classifier, which has had its 1,000 epochs
    torch.set_num_threads(1)
    sizes = dict(simulations=SIMULATIONS, steps=STEPS, samples=SAMPLES, count=OBSERVATIONS)
    if quick:
        sizes = dict(simulations=500, steps=100, samples=500, count=1)
    versions = {"torch": torch.__version__, "scikit-learn": sklearn.__version__}
    print(f"{versions}, {sizes}")
    rows: list[dict[str, Any]] = []
    shown: dict[str, tuple[Tensor, Tensor]] = {}
    for features in FEATURES:
        for name, task in TASKS.items():
            row, pairs = measure(task, features=features, **sizes)
            rows.append({"task": name, **row})
            shown.setdefault(name, pairs[0])
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    if quick:
        return
    result = {"command": "python benchmarks/sbi.py", **versions, **sizes, "seed": 0, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(shown, PICTURE)
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
