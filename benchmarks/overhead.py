"""Time per step that a sampler adds to its network: this library beside its peers, in one run.

    python benchmarks/overhead.py            # writes benchmarks/results/overhead.json and the table of docs/solvers.md
    python benchmarks/overhead.py --table    # the table from the committed measurements, nothing measured
    python benchmarks/overhead.py --quick    # fewer rounds, nothing written

50 steps, float32, one thread. The network is `0.5 x`, so that nearly all the time is the sampler's; what the network
itself takes, measured in the same run, is subtracted. Everything a user pays per solve is counted (the time grid, the
coefficients, the set-up of the scheduler) and divided by the steps. The median over rounds is reported, and the ratio
of medians. Each round measures twice:

* in blocks of five solves, the candidates in turn: as when many batches are drawn one after the other;
* one solve at a time, of 50 steps and of 5, the candidates in random order: each finds the caches of the processor full
  of what another left there, as when a network of some size runs in between. The time of a call of no steps, by the
  line through both, is what a call costs whatever the steps.

Peers are run where they are installed (`pip install diffusers azula k-diffusion`); they are not dependencies. The bare
loop is the least that a library without compiled kernels can do: the tensor of the times for the network, the scaled
input where the network wants one, the draws, and one tensor operation per term of the update, with weights that fell
from the sky.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from _overhead import CASES, Solve, candidates
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "overhead.json", ROOT / "docs" / "solvers.md"
BEGIN, END = "<!-- begin: benchmarks/overhead.py -->", "<!-- end: benchmarks/overhead.py -->"
STEPS, FEW = 50, 5
BLOCK = 5  # solves in a row before the next candidate's turn
SHAPES = {"vector": (1, 64), "image": (16, 3, 32, 32)}
Times = dict[str, list[float]]


def timed(solve: Solve, x: Tensor, times: int = 1) -> float:
    """Microseconds of the processor that a solve takes, the mean of a few in a row."""
    start = time.thread_time()
    for _ in range(times):
        solve(x)
    return (time.thread_time() - start) / times * 1e6


def measure(name: str, shape: tuple[int, ...], rounds: int) -> dict[str, dict[str, float]]:
    """By candidate and net of the network: microseconds per step in blocks and one at a time, and per call."""
    long, short = candidates(name, shape, STEPS), candidates(name, shape, FEW)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for solve in (*long.values(), *short.values()):  # the first solves warm up
        timed(solve, x, 3)
    block: Times = {candidate: [] for candidate in long}
    alone: Times = {candidate: [] for candidate in long}
    few: Times = {candidate: [] for candidate in long}
    turns = [(solves[c], into[c]) for solves, into in ((long, alone), (short, few)) for c in long]
    order = random.Random(0)
    for _ in range(rounds):
        for candidate, solve in long.items():
            block[candidate].append(timed(solve, x, BLOCK))
        for _ in range(BLOCK):
            order.shuffle(turns)
            for solve, into in turns:
                into.append(timed(solve, x))
    return {c: summary(*(of[c] for of in (block, alone, few)), *net(block, alone, few)) for c in long if c != NETWORK}


NETWORK = "network alone"


def net(*measured: Times) -> list[float]:
    """The medians of the network alone."""
    return [statistics.median(of[NETWORK]) for of in measured]


def summary(block: list[float], alone: list[float], few: list[float], *network: float) -> dict[str, float]:
    """The figures of one candidate, of times per solve and of what the network takes of them."""
    in_block, single, short = (statistics.median(v) - off for v, off in zip((block, alone, few), network, strict=True))
    return {
        "median": in_block / STEPS,
        "min": (min(block) - network[0]) / STEPS,
        "alternating": single / STEPS,
        "call": short - FEW * (single - short) / (STEPS - FEW),
    }


def installed(name: str) -> str:
    """The version of a package, or a dash."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def markdown(result: dict[str, Any]) -> str:
    """The table of docs/solvers.md: ours in microseconds, and its ratio to every other, on both states."""
    others = ["bare loop", *(name for name in result["versions"] if name != "torch")]
    heads = [f"/ {name}" for name in others]
    lines = [
        f"| method | state | per step | {' | '.join(heads)} | alternating | / diffusers | per call |",
        "|---|---|---|" + "---|" * (len(others) + 3),
    ]
    for label in SHAPES:
        for name in (name for name in CASES if name in result[label]):
            own, figures = result[label][name]["sde_diffusion"], result[label][name]
            cells = [f"{own['median']:.0f}"]
            cells += [f"{own['median'] / figures[o]['median']:.2f}" if o in figures else "" for o in others]
            peer = figures.get("diffusers", {}).get("alternating")
            cells += [f"{own['alternating']:.0f}", f"{own['alternating'] / peer:.2f}" if peer else ""]
            lines.append(f"| {name} | {label} | {' | '.join(cells)} | {own['call']:.0f} |")
    return "\n".join(lines)


def write_page(result: dict[str, Any]) -> None:
    """Puts the table between its marks in docs/solvers.md."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{markdown(result)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def told(label: str, name: str, figures: dict[str, dict[str, float]]) -> str:
    """What is printed of a method."""
    own = figures["sde_diffusion"]
    line = f"  {label:6} {name:20} {own['median']:6.1f} {own['alternating']:6.1f} {own['call']:6.0f}"
    for other, f in figures.items():
        if other != "sde_diffusion":
            both = f"{own['median'] / f['median']:.3f} {own['alternating'] / f['alternating']:.3f}"
            line += f"   {other} {f['median']:.1f} {f['alternating']:.1f} {f['call']:.0f}: {both}"
    return line


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing written")
    parser.add_argument("--only", default="", help="methods whose name holds this text")
    parser.add_argument("--table", action="store_true", help="measures nothing; writes the table of the page again")
    arguments = parser.parse_args()
    if arguments.table:
        write_page(json.loads(RESULTS.read_text(encoding="utf-8")))
        return
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "5 steps of .* are too few")  # they are timed, and not looked at
    rounds = 3 if arguments.quick else 15
    versions = {name: installed(name) for name in ("torch", "diffusers", "azula", "k-diffusion")}
    result: dict[str, Any] = {"steps": STEPS, "rounds": rounds, "versions": versions}
    print(f"{STEPS} steps, float32, one thread, network subtracted, microseconds: a step in blocks, a step when solves")
    print("alternate, a call; the ratios ours / theirs in blocks and alternating")
    print("  " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    for label, shape in SHAPES.items():
        result[label] = {"shape": shape}
        for name in (name for name in CASES if arguments.only in name):
            result[label][name] = measure(name, shape, rounds)
            print(told(label, name, result[label][name]), flush=True)
    if not arguments.quick and not arguments.only:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        write_page(result)


if __name__ == "__main__":
    main()
