"""The mean log-likelihood of a data set by multilevel Monte Carlo: standard errors, coverage, digits.

    make demo                                          # trains the network of the last row, demo/checkpoint
    python benchmarks/dataset_likelihood.py            # writes results/dataset_likelihood.json
    python benchmarks/dataset_likelihood.py --quick    # few rows and trials, nothing written

Exact mixtures of rotated Gaussians in d = 2, 16 and 64 dimensions, standard deviations between .05 and .4 or .1 and 1,
2,000 rows each: the mean against the density of the data themselves, the error that is stated and what a rough solve of
all rows is off. Then the coverage of 95 % intervals over 200 trials. In the plane each is of fresh data, from beginning
to end. In 16 and 64 dimensions the rows of a pool are weighed once at all levels, and a trial takes half of them in a
random order: all that chance decides in a call. The digits are those to train on and to test on, without labels, by
the network of the demonstration; the reference is a solve of 128 steps of some of them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion import VPSDE, SDESampler, data
from sde_diffusion.likelihood import Density, Method, dataset_log_prob
from sde_diffusion.likelihood.dataset import PILOT, POWER
from sde_diffusion.likelihood.flow import Flow, Part, solve
from sde_diffusion.likelihood.levels import Telescope
from sde_diffusion.likelihood.route import route_of
from sde_diffusion.likelihood.trace import Exact
from sde_diffusion.solvers import AdamsMoulton
from sde_diffusion.training import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from mixtures import mixture  # noqa: E402 - the problems of the tests

RESULTS = ROOT / "benchmarks" / "results" / "dataset_likelihood.json"
DATA, STEPS, BATCH, BUDGET = Density(level=0.0), (6, 32, 64), 256, 15.0
PROBLEMS = [(2, 5, 0.05, 0.4), (2, 5, 0.1, 1.0), (16, 6, 0.1, 1.0), (64, 6, 0.1, 1.0)]
Row = dict[str, Any]


def pool(sampler: SDESampler, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """The log-densities of rows at all levels, and what the rough solve reads."""
    route = route_of(sampler.problem, sampler.span, DATA, None)
    values: list[list[Tensor]] = [[] for _ in STEPS]
    readings: list[Tensor] = []
    for part in x.split(BATCH):
        for level, steps in enumerate(STEPS):
            solver = AdamsMoulton(2 if steps < 48 else 3)
            flow = Flow(route, solver, route.spaced(steps, POWER), Exact(), reads=level == 0)
            found = solve(flow, Part(part, None, {}), warn=False)
            values[level].append(found.value)
            if found.readings is not None:
                readings.append(found.readings)
    return [torch.cat(v) for v in values], torch.cat(readings)


def half_a_pool(values: list[Tensor], readings: Tensor, truth: Tensor, seed: int) -> tuple[float, float, float]:
    """Error, standard error and bias of one trial, as `dataset_log_prob` would find them."""
    n = len(truth) // 2
    rows = torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed))[:n]
    own = [v[rows] for v in values]
    levels = Telescope(lambda level, i, j: own[level][i:j], own[0], readings[rows], STEPS)
    levels.extend([PILOT, PILOT])
    for share in (0.5, 1.0):
        levels.extend(levels.allocate(levels.spent + share * (BUDGET * n - levels.spent)))
    found = levels.estimate()
    bias = (abs(found.last) + math.sqrt(found.last_variance)) / 3
    return found.value - float(truth[rows].mean()), math.sqrt(found.variance), bias


def coverage(d: int, k: int, low: float, high: float, n: int, trials: int) -> Row:
    """How many 95 % intervals hold the mean, in trials of `n` rows."""
    model = mixture(d, k, low, high)
    sampler, found = SDESampler(VPSDE(), model), []
    if d == 2:
        for seed in range(trials):
            x = model.sample(n, seed=1000 + seed)
            one = dataset_log_prob(sampler, x, budget=BUDGET, density=DATA, seed=seed)
            found.append((one.value - float(model.data_log_prob(x).mean()), one.standard_error, one.bias))
    else:
        x = model.sample(2 * n, seed=1000)
        values, readings = pool(sampler, x)
        truth = model.data_log_prob(x)
        found = [half_a_pool(values, readings, truth, seed) for seed in range(trials)]
    errors, stated, bias = torch.tensor(found, dtype=torch.float64).T
    held = (errors.abs() <= 1.96 * stated + bias).double().mean()
    return {
        "rows": n,
        "trials": trials,
        "coverage": float(held),
        "rms": float(errors.square().mean().sqrt()),
        "stated": float(stated.square().mean().sqrt()),
        "bias": float(bias.mean()),
    }


def one_mean(d: int, k: int, low: float, high: float, n: int) -> Row:
    """The mean of `n` rows of a mixture, at the default budget and by a rough solve alone."""
    model = mixture(d, k, low, high)
    sampler, x = SDESampler(VPSDE(), model), model.sample(n, seed=1)
    truth, began = float(model.data_log_prob(x).mean()), time.process_time()
    found = dataset_log_prob(sampler, x, density=DATA, seed=0, batch_size=BATCH)
    seconds = time.process_time() - began
    method = Method(AdamsMoulton(2), steps=15, solver_error=False)
    rough = sampler.log_prob(x, density=DATA, method=method, batch_size=BATCH).mean()
    return {
        "d": d,
        "std": [low, high],
        "evaluations": found.evaluations_per_row,
        "rows": found.rows,
        "steps": found.steps,
        "error": found.value - truth,
        "standard_error": found.standard_error,
        "bias": found.bias,
        "of 15 steps for all": float(rough) - truth,
        "seconds": round(seconds, 1),
    }


def digits(checkpoint: Path, n: int) -> Row | None:
    """Bits per dimension of the digits under the network of the demonstration."""
    if not checkpoint.exists():
        print(f"no checkpoint at {checkpoint}: run `make demo` first, or give --checkpoint")
        return None
    loaded = load_checkpoint(checkpoint)
    images = torch.cat([data.digits(split, seed=0).images for split in ("test", "train")])[:n]
    z = loaded.scaling.apply(images)
    width = data.BIN_WIDTH * math.exp(float(loaded.scaling.log_jacobian(images[:1])) / images[0].numel())
    sampler, began = SDESampler(loaded.model.sde, loaded.model), time.process_time()
    found = dataset_log_prob(sampler, z, seed=0, batch_size=64, budget=BUDGET if len(z) > 300 else 60)
    seconds = time.process_time() - began
    part = z[: min(64, len(z))]
    truth = sampler.log_prob(part, method=Method(AdamsMoulton(3), steps=128, solver_error=False), batch_size=64)
    small = dataset_log_prob(sampler, part, seed=0, batch_size=64, budget=60.0)
    return {
        "rows": found.rows,
        "steps": found.steps,
        "evaluations": found.evaluations_per_row,
        "bits": found.bits_per_dim(width),
        "standard_error": found.bits_standard_error,
        "bias": found.bits_bias,
        "seconds": round(seconds, 1),
        "64 rows: bits, standard error, bias, of 128 steps": [
            small.bits_per_dim(width),
            small.bits_standard_error,
            small.bits_bias,
            float(truth.bits_per_dim(width).mean()),
        ],
    }


def table(rows: list[Row]) -> str:
    """The means in Markdown."""
    lines = [
        "| d | std | per row | rows by steps | error | standard error | bias | 15 steps for all | coverage |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        by = ", ".join(f"{n:,} by {s}" for n, s in zip(r["rows"], r["steps"], strict=True))
        held = f"{r['covers']['coverage']:.3f} of {r['covers']['trials']}"
        lines.append(
            f"| {r['d']} | {r['std'][0]:g} to {r['std'][1]:g} | {r['evaluations']:.1f} | {by} | {r['error']:+.4f} | "
            f"{r['standard_error']:.4f} | {r['bias']:.4f} | {r['of 15 steps for all']:+.4f} | {held} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("demo/checkpoint"))
    parser.add_argument("--quick", action="store_true", help="few rows and trials; writes nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick = arguments.quick
    rows = []
    for problem in PROBLEMS[1:2] if quick else PROBLEMS:
        row = one_mean(*problem, n=300 if quick else 2000)
        rows.append({**row, "covers": coverage(*problem, n=300 if quick else 1000, trials=5 if quick else 200)})
        print(json.dumps(rows[-1]), flush=True)
    print(f"\n{table(rows)}\n", flush=True)
    found = digits(arguments.checkpoint, 32 if quick else 2000)
    print(json.dumps(found))
    if quick:
        return
    command = "python benchmarks/dataset_likelihood.py"
    result = {"command": command, "torch": torch.__version__, "mixtures": rows, "digits": found}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
