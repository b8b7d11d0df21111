"""Time per step that a sampler adds to its network: this library beside its peers, in one run.

    python benchmarks/overhead.py            # writes benchmarks/results/overhead.json and the table of docs/solvers.md
    python benchmarks/overhead.py --table    # the table from the committed measurements, nothing measured
    python benchmarks/overhead.py --quick    # fewer rounds, nothing written

50 steps, float32, one thread. The network is `0.5 x`, so that nearly all the time is the sampler's; what the network
itself takes, measured in the same run, is subtracted. Everything a user pays per solve is counted (the time grid, the
coefficients, the set-up of the scheduler) and divided by the steps. Blocks of five solves of the candidates
alternate, so that a slow spell of the machine meets all of them; the median over rounds is reported, with the minimum
in brackets, and the ratio of medians.

Peers are run where they are installed (`pip install diffusers azula k-diffusion`); they are not dependencies. The bare
loop is the least that a library without compiled kernels can do: the tensor of the times for the network, the scaled
input where the network wants one, the draws, and one tensor operation per term of the update, with weights that fell
from the sky.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion import EDMSDE, Network, SDESampler, predict
from sde_diffusion.sde.discrete import DiscreteVPSDE
from sde_diffusion.sde.grids import karras, trailing
from sde_diffusion.solvers import DDIM, IPNDM, Adams, DPMSolverPP, Euler, Heun, SASolver, SDEDPMSolverPP, Solver, UniPC

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "overhead.json", ROOT / "docs" / "solvers.md"
BEGIN, END = "<!-- begin: benchmarks/overhead.py -->", "<!-- end: benchmarks/overhead.py -->"
STEPS = 50
BLOCK = 5  # solves in a row before the next candidate's turn
SHAPES = {"vector": (1, 64), "image": (16, 3, 32, 32)}
Solve = Callable[[Tensor], Tensor]
BETAS = {"beta_start": 1e-4, "beta_end": 0.02}


def network(x: Tensor, t: Tensor | None = None, **_: Any) -> Tensor:
    """The trivial network."""
    return x * 0.5


def ours(solver: Solver, shape: tuple[int, ...], *, edm: bool = False) -> Solve:
    """This library, built once as a user would and asked for samples from a given state."""
    sde = EDMSDE() if edm else DiscreteVPSDE.linear(1000, 1e-4, 0.02)
    model = Network(network, sde, predict.noise, shape=shape[1:])
    sampler = SDESampler(sde, model, solver=solver, steps=STEPS, grid=karras if edm else trailing, denoise=False)
    return lambda x: sampler.sample(x_T=x, seed=0)


def scheduler(name: str, **options: Any) -> Solve:
    """A scheduler of diffusers in its own loop."""
    import diffusers

    made = getattr(diffusers, name)(**options)
    scaled = hasattr(made, "scale_model_input")

    @torch.no_grad()
    def solve(x: Tensor) -> Tensor:
        made.set_timesteps(STEPS)
        for t in made.timesteps:
            given = made.scale_model_input(x, t) if scaled else x
            x = made.step(network(given), t, x).prev_sample
        return x

    return solve


def karras_function(name: str, **options: Any) -> Solve:
    """A sampling function of k-diffusion."""
    from k_diffusion import sampling

    sigmas = sampling.get_sigmas_karras(STEPS, 0.002, 80.0)
    function = getattr(sampling, name)
    return torch.no_grad()(lambda x: function(network, x, sigmas, disable=True, **options))


def azula_sampler(name: str, **options: Any) -> Solve:
    """A sampler of azula."""
    from azula import denoise, noise, sample

    class Trivial(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
            return network(x)

    denoiser = denoise.SimpleDenoiser(Trivial(), noise.VPSchedule())
    made = getattr(sample, name)(denoiser, start=0.999, stop=0.001, steps=STEPS, silent=True, **options)
    solve: Solve = made
    return solve


def dpm(algorithm: str = "dpmsolver++", order: int = 2) -> Callable[[], Solve]:
    """The multistep DPM-Solver of diffusers."""
    options = {"algorithm_type": algorithm, "solver_order": order, "timestep_spacing": "trailing"}
    return lambda: scheduler("DPMSolverMultistepScheduler", **BETAS, **options)


@dataclass(frozen=True)
class Bare:
    """What one step of a method consists of.

    Attributes:
        terms: Tensors in the linear combinations of a step, by evaluation.
        noisy: Whether it draws noise.
        scaled: Whether the network wants its input scaled.
    """

    terms: tuple[int, ...]
    noisy: bool = False
    scaled: bool = False

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        zero, known = torch.zeros(()), [x] * sum(self.terms)
        sources = [torch.Generator().manual_seed(i) for i in range(len(x))] if self.noisy else []
        for _ in range(STEPS):
            for terms in self.terms:
                time = x.new_full((x.shape[0],), 0.3)
                f = network(torch.add(zero, x, alpha=0.9) if self.scaled else x, time)
                known = [f, *known][: terms - 1]
                x = torch.add(zero, x, alpha=0.9)
                for k in known:
                    x.add_(k, alpha=0.01)
            if self.noisy:
                z = torch.empty_like(x)
                for row, source in zip(z.unbind(0), sources, strict=True):
                    row.normal_(generator=source)
                x.add_(z, alpha=0.1)
        return x


Peers = dict[str, Callable[[], Solve]]
CASES: dict[str, tuple[Callable[[tuple[int, ...]], Solve], Bare, Peers]] = {
    "DDIM": (lambda s: ours(DDIM(), s), Bare((2,)), {
        "diffusers": lambda: scheduler("DDIMScheduler", **BETAS, timestep_spacing="trailing", clip_sample=False),
        "azula": lambda: azula_sampler("DDIMSampler"),
    }),
    "DDPM": (lambda s: ours(DDIM(1.0), s), Bare((2,), noisy=True), {
        "diffusers": lambda: scheduler("DDPMScheduler", **BETAS, timestep_spacing="trailing", clip_sample=False),
        "azula": lambda: azula_sampler("DDPMSampler"),
    }),
    "DPM-Solver++(2M)": (lambda s: ours(DPMSolverPP(2), s), Bare((4,)), {
        "diffusers": dpm(),
        "azula": lambda: azula_sampler("xEABSampler", order=2),
        "k-diffusion": lambda: karras_function("sample_dpmpp_2m"),
    }),
    "DPM-Solver++(3M)": (lambda s: ours(DPMSolverPP(3), s), Bare((5,)), {
        "diffusers": dpm(order=3),
        "azula": lambda: azula_sampler("xEABSampler", order=3),
    }),
    "SDE-DPM-Solver++(2M)": (lambda s: ours(SDEDPMSolverPP(2), s), Bare((4,), noisy=True), {
        "diffusers": dpm("sde-dpmsolver++"),
    }),
    "UniPC-2": (lambda s: ours(UniPC(2), s), Bare((5,)), {
        "diffusers": lambda: scheduler("UniPCMultistepScheduler", **BETAS, solver_order=2, timestep_spacing="trailing"),
    }),
    "UniPC-3": (lambda s: ours(UniPC(3), s), Bare((6,)), {
        "diffusers": lambda: scheduler("UniPCMultistepScheduler", **BETAS, solver_order=3, timestep_spacing="trailing"),
    }),
    "rho-AB DEIS-3": (lambda s: ours(Adams(3, "rho"), s), Bare((4,)), {
        "diffusers": lambda: scheduler("DEISMultistepScheduler", **BETAS, solver_order=3, timestep_spacing="trailing"),
        "azula": lambda: azula_sampler("zABSampler", order=3),
        "k-diffusion": lambda: karras_function("sample_lms", order=3),
    }),
    "SA-Solver": (lambda s: ours(SASolver(2, 2), s), Bare((5,), noisy=True), {
        "diffusers": lambda: scheduler("SASolverScheduler", **BETAS, timestep_spacing="trailing"),
    }),
    "iPNDM-4": (lambda s: ours(IPNDM(4), s), Bare((5,)), {"diffusers": lambda: scheduler("IPNDMScheduler")}),
    "Euler, EDM": (lambda s: ours(Euler(), s, edm=True), Bare((2,), scaled=True), {
        "diffusers": lambda: scheduler("EulerDiscreteScheduler", **BETAS, use_karras_sigmas=True),
        "k-diffusion": lambda: karras_function("sample_euler"),
    }),
    "Heun, EDM": (lambda s: ours(Heun(), s, edm=True), Bare((2, 3), scaled=True), {
        "diffusers": lambda: scheduler("HeunDiscreteScheduler", **BETAS, use_karras_sigmas=True),
        "azula": lambda: azula_sampler("HeunSampler"),
        "k-diffusion": lambda: karras_function("sample_heun"),
    }),
}  # fmt: skip


def alone(calls: int) -> Solve:
    """The network alone, as often as a solve calls it."""

    @torch.no_grad()
    def solve(x: Tensor) -> Tensor:
        for _ in range(STEPS * calls):
            network(x)
        return x

    return solve


def measure(name: str, shape: tuple[int, ...], rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds per step net of the network, by candidate: median and minimum over alternating rounds."""
    make, loop, peers = CASES[name]
    solves = {"network alone": alone(len(loop.terms)), "bare loop": loop, "sde_diffusion": make(shape)}
    for peer, build in peers.items():
        try:
            solves[peer] = build()
        except ImportError as error:  # noqa: PERF203 - not there, or without something of its own
            print(f"  ({peer} is left out: {error})")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    taken: dict[str, list[float]] = {candidate: [] for candidate in solves}
    for i in range(rounds + 1):
        for candidate, solve in solves.items():
            start = time.thread_time()
            for _ in range(BLOCK):
                solve(x)
            if i:  # the first warms caches up
                taken[candidate].append((time.thread_time() - start) / STEPS / BLOCK * 1e6)
    net = taken.pop("network alone")
    return {
        candidate: {"median": statistics.median(v) - statistics.median(net), "min": min(v) - min(net)}
        for candidate, v in taken.items()
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
    lines = [
        f"| method, us per step | state | ours | {' | '.join(f'/ {name}' for name in others)} |",
        "|---|---|" + "---|" * (len(others) + 1),
    ]
    for label in SHAPES:
        for name in CASES:
            figures = {candidate: f["median"] for candidate, f in result[label][name].items()}
            own = figures["sde_diffusion"]
            cells = [f"{own / figures[other]:.2f}" if other in figures else "" for other in others]
            lines.append(f"| {name} | {label} | {own:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page(result: dict[str, Any]) -> None:
    """Puts the table between its marks in docs/solvers.md."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{markdown(result)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


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
    rounds = 3 if arguments.quick else 25
    versions = {name: installed(name) for name in ("torch", "diffusers", "azula", "k-diffusion")}
    result: dict[str, Any] = {"steps": STEPS, "rounds": rounds, "versions": versions}
    print(f"{STEPS} steps, float32, one thread, network subtracted: us per step, median (minimum), ratio ours / theirs")
    print("  " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    for label, shape in SHAPES.items():
        result[label] = {"shape": shape}
        for name in (name for name in CASES if arguments.only in name):
            figures = result[label][name] = measure(name, shape, rounds)
            own = figures.pop("sde_diffusion")
            line = f"  {label:6} {name:21} {own['median']:6.1f} ({own['min']:.1f})"
            for peer, f in figures.items():
                line += f"   {peer} {f['median']:.1f} ({f['min']:.1f}): {own['median'] / f['median']:.3f}"
            figures["sde_diffusion"] = own
            print(line, flush=True)
    if not arguments.quick and not arguments.only:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        write_page(result)


if __name__ == "__main__":
    main()
