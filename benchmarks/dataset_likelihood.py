"""The mean log-likelihood of a data set by multilevel Monte Carlo: standard errors, coverage, digits.

    make demo                                          # trains the network of the last row, demo/checkpoint
    python benchmarks/dataset_likelihood.py            # writes results/dataset_likelihood.json
    python benchmarks/dataset_likelihood.py --quick    # few rows and trials, nothing written

Exact mixtures of rotated Gaussians in d = 2, 16 and 64 dimensions, standard deviations between .05 and .4 or .1 and 1,
2,000 rows each: the mean against the density of the data themselves, the error that is stated and what a rough solve of
all rows is off. Then the coverage of 95 % intervals over 200 trials: the rows of a pool are weighed once at all levels,
and a trial takes half of them, 2,000 or in 64 dimensions 1,000, in a random order, which is all that chance decides in
a call. The digits are those to train on and to test on, without labels, by the network of the demonstration; 32 of them
also by 96 steps.
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

from sde_diffusion import VPSDE, SDESampler, data
from sde_diffusion.likelihood import Density, Method, dataset_log_prob
from sde_diffusion.solvers import AdamsMoulton
from sde_diffusion.training import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from mixtures import mixture  # noqa: E402 - the problems of the tests
from pools import Pool, covered  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "dataset_likelihood.json"
DATA, BATCH, BUDGET = Density(level=0.0), 256, 15.0
PROBLEMS = [(2, 5, 0.05, 0.4), (2, 5, 0.1, 1.0), (16, 6, 0.1, 1.0), (64, 6, 0.1, 1.0)]
Row = dict[str, Any]


def coverage(d: int, k: int, low: float, high: float, n: int, trials: int) -> Row:
    """How many 95 % intervals hold the mean, in trials of `n` rows."""
    model = mixture(d, k, low, high)
    pool = Pool.of(SDESampler(VPSDE(), model), model, 2 * n, seed=1000, batch_size=BATCH)
    found = [pool.trial(seed, BUDGET) for seed in range(trials)]
    errors, stated, bias, _ = torch.tensor(found, dtype=torch.float64).T
    return {
        "rows": n,
        "trials": trials,
        "coverage": covered(found),
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
    part = z[:32]
    truth = sampler.log_prob(part, method=Method(AdamsMoulton(3), steps=96, solver_error=False))
    few = dataset_log_prob(sampler, part, seed=0, budget=60.0)
    return {
        "rows": found.rows,
        "steps": found.steps,
        "evaluations": found.evaluations_per_row,
        "bits": found.bits_per_dim(width),
        "standard_error": found.bits_standard_error,
        "bias": found.bits_bias,
        "seconds": round(seconds, 1),
        "32 rows": {
            "bits": few.bits_per_dim(width),
            "standard_error": few.bits_standard_error,
            "bias": few.bits_bias,
            "by 96 steps each": float(truth.bits_per_dim(width).mean()),
        },
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
    rows: list[Row] = []
    for problem in PROBLEMS[1:2] if quick else PROBLEMS:
        n, pool = (300, 300) if quick else (2000, 1000 if problem[0] == 64 else 2000)
        row = one_mean(*problem, n=n)
        rows.append({**row, "covers": coverage(*problem, n=pool, trials=5 if quick else 200)})
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
