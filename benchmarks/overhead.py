"""Time per step that a sampler adds to its network: this library beside its peers, in one run.

    python benchmarks/overhead.py            # prints a table and writes benchmarks/results/overhead.json
    python benchmarks/overhead.py --quick

DPM-Solver++(2M), 50 steps, float32, one thread. The network is `0.5 x`, so that nearly all the time is the sampler's;
what the network itself takes, measured in the same run, is subtracted. Everything a user pays per solve is counted (the
time grid, the coefficients, the set-up of the scheduler) and divided by the steps. Blocks of five solves of the
candidates alternate, so that a slow spell of the machine meets all of them; the minimum over rounds is reported, with
the median in brackets.

Peers are run when they are installed: `pip install diffusers`. They are not dependencies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from sde_diffusion import Network, SDESampler, predict
from sde_diffusion.grids import trailing
from sde_diffusion.schedules import DiscreteVPSDE
from sde_diffusion.solvers import DPMSolverPP

STEPS = 50
BLOCK = 5  # solves in a row before the next candidate's turn
SHAPES = {"vector": (1, 64), "image": (16, 3, 32, 32)}
Solve = Callable[[Tensor], Tensor]


def network(x: Tensor, t: Tensor | None = None) -> Tensor:
    """The trivial network."""
    return x * 0.5


def ours(shape: tuple[int, ...]) -> Solve:
    """This library, built once as a user would and asked for samples from a given state."""
    sde = DiscreteVPSDE.linear(1000, 1e-4, 0.02)
    model = Network(network, sde, predict.noise, shape=shape[1:])
    sampler = SDESampler(sde, model, solver=DPMSolverPP(order=2), steps=STEPS, grid=trailing, denoise=False)
    return lambda x: sampler.sample(x_T=x, seed=0)


def diffusers() -> Solve:
    """Diffusers' multistep scheduler in its own loop."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing")

    @torch.no_grad()
    def solve(x: Tensor) -> Tensor:
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x), t, x).prev_sample
        return x

    return solve


def bare(x: Tensor) -> Tensor:
    """The network alone, as often as a solve calls it."""
    with torch.no_grad():
        for _ in range(STEPS):
            network(x)
    return x


def measure(shape: tuple[int, ...], rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds per step net of the network, by candidate: minimum and median over alternating rounds."""
    solves = {"network alone": bare, "sde_diffusion": ours(shape)}
    try:
        solves["diffusers"] = diffusers()
    except ImportError:
        print("diffusers is not installed: pip install diffusers")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    taken: dict[str, list[float]] = {name: [] for name in solves}
    for i in range(rounds + 2):
        for name, solve in solves.items():
            start = time.thread_time()
            for _ in range(BLOCK):
                solve(x)
            if i >= 2:  # the first two warm caches up
                taken[name].append((time.thread_time() - start) / STEPS / BLOCK * 1e6)
    alone = taken.pop("network alone")
    return {
        name: {"min": min(v) - min(alone), "median": statistics.median(v) - statistics.median(alone)}
        for name, v in taken.items()
    }


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 10 if arguments.quick else 100
    result: dict[str, object] = {"steps": STEPS, "rounds": rounds, "torch": version("torch")}
    print(f"DPM-Solver++(2M), {STEPS} steps, float32, one thread, network subtracted: us per step, minimum (median)")
    for label, shape in SHAPES.items():
        figures = measure(shape, rounds)
        result[label] = {"shape": shape, "us_per_step": figures}
        for name, f in figures.items():
            extra = f" {version('diffusers')}" if name == "diffusers" else ""
            print(f"  {label:7} {shape!s:16} {name + extra:20} {f['min']:8.1f} ({f['median']:.1f})")
        if "diffusers" in figures:
            ratio = figures["sde_diffusion"]["min"] / figures["diffusers"]["min"]
            median = figures["sde_diffusion"]["median"] / figures["diffusers"]["median"]
            print(f"  {label:7} ratio to diffusers: {ratio:.3f} ({median:.3f})")
    if not arguments.quick:
        path = Path(__file__).parent / "results" / "overhead.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
