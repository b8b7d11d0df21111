"""The candidates of `overhead.py`: samplers of this library, of its peers, and a bare loop of the same operations.

Each is made for a number of steps and answers a function from the initial state to the last, as a user would write it.
The network is `0.5 x`. Peers are imported where they are made: they are no dependencies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sde_diffusion import EDMSDE, Network, SDESampler, predict
from sde_diffusion.sde.discrete import DiscreteVPSDE
from sde_diffusion.sde.grids import karras, trailing
from sde_diffusion.solvers import DDIM, IPNDM, Adams, DPMSolverPP, Euler, Heun, SASolver, SDEDPMSolverPP, Solver, UniPC
from sde_diffusion.tuning import SolverTable, TableSolver

Solve = Callable[[Tensor], Tensor]
Make = Callable[[int], Solve]  # of the number of steps
BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
SPACED = {**BETAS, "timestep_spacing": "trailing"}


def network(x: Tensor, t: Tensor | None = None, **_: Any) -> Tensor:
    """The trivial network."""
    return x * 0.5


def ours(solver: Solver, steps: int, shape: tuple[int, ...], *, edm: bool = False) -> Solve:
    """This library, built once as a user would and asked for samples from a given state."""
    sde = EDMSDE() if edm else DiscreteVPSDE.linear(1000, 1e-4, 0.02)
    model = Network(network, sde, predict.noise, shape=shape[1:])
    sampler = SDESampler(sde, model, solver=solver, steps=steps, grid=karras if edm else trailing, denoise=False)
    return lambda x: sampler.sample(x_T=x, seed=0)


def tabulated(steps: int, shape: tuple[int, ...]) -> Solve:
    """DPM-Solver++(2M) written as a windowed table, as `tune` makes them."""
    table = SolverTable.of(DPMSolverPP(2), DiscreteVPSDE.linear(1000, 1e-4, 0.02), trailing, steps=steps, finish=False)
    return ours(TableSolver(table.windowed(2)), steps, shape)


def scheduler(name: str, steps: int, **options: Any) -> Solve:
    """A scheduler of diffusers in its own loop."""
    import diffusers

    made = getattr(diffusers, name)(**options)
    scaled = hasattr(made, "scale_model_input")

    @torch.no_grad()
    def solve(x: Tensor) -> Tensor:
        made.set_timesteps(steps)
        for t in made.timesteps:
            given = made.scale_model_input(x, t) if scaled else x
            x = made.step(network(given), t, x).prev_sample
        return x

    return solve


def karras_function(name: str, steps: int, **options: Any) -> Solve:
    """A sampling function of k-diffusion."""
    from k_diffusion import sampling

    sigmas = sampling.get_sigmas_karras(steps, 0.002, 80.0)
    function = getattr(sampling, name)
    return torch.no_grad()(lambda x: function(network, x, sigmas, disable=True, **options))


def azula_sampler(name: str, steps: int, **options: Any) -> Solve:
    """A sampler of azula."""
    from azula import denoise, noise, sample

    class Trivial(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
            return network(x)

    denoiser = denoise.SimpleDenoiser(Trivial(), noise.VPSchedule())
    made = getattr(sample, name)(denoiser, start=0.999, stop=0.001, steps=steps, silent=True, **options)
    solve: Solve = made
    return solve


def dpm(algorithm: str = "dpmsolver++", order: int = 2) -> Make:
    """The multistep DPM-Solver of diffusers."""
    options = {"algorithm_type": algorithm, "solver_order": order}
    return lambda steps: scheduler("DPMSolverMultistepScheduler", steps, **SPACED, **options)


@dataclass(frozen=True)
class Bare:
    """What one step of a method consists of.

    Attributes:
        terms: Tensors in the linear combinations of a step, by evaluation.
        noisy: Whether it draws noise.
        scaled: Whether the network wants its input scaled.
        steps: Steps of a solve.
    """

    terms: tuple[int, ...]
    noisy: bool = False
    scaled: bool = False
    steps: int = 1

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        zero, known = torch.zeros(()), [x] * sum(self.terms)
        sources = [torch.Generator().manual_seed(i) for i in range(len(x))] if self.noisy else []
        for _ in range(self.steps):
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


Peers = dict[str, Make]
CASES: dict[str, tuple[Callable[[int, tuple[int, ...]], Solve], Bare, Peers]] = {
    "DDIM": (lambda n, s: ours(DDIM(), n, s), Bare((2,)), {
        "diffusers": lambda n: scheduler("DDIMScheduler", n, **SPACED, clip_sample=False),
        "azula": lambda n: azula_sampler("DDIMSampler", n),
    }),
    "DDPM": (lambda n, s: ours(DDIM(1.0), n, s), Bare((2,), noisy=True), {
        "diffusers": lambda n: scheduler("DDPMScheduler", n, **SPACED, clip_sample=False),
        "azula": lambda n: azula_sampler("DDPMSampler", n),
    }),
    "DPM-Solver++(2M)": (lambda n, s: ours(DPMSolverPP(2), n, s), Bare((4,)), {
        "diffusers": dpm(),
        "azula": lambda n: azula_sampler("xEABSampler", n, order=2),
        "k-diffusion": lambda n: karras_function("sample_dpmpp_2m", n),
    }),
    "2M as a table": (tabulated, Bare((4,)), {"diffusers": dpm()}),
    "DPM-Solver++(3M)": (lambda n, s: ours(DPMSolverPP(3), n, s), Bare((5,)), {
        "diffusers": dpm(order=3),
        "azula": lambda n: azula_sampler("xEABSampler", n, order=3),
    }),
    "SDE-DPM-Solver++(2M)": (lambda n, s: ours(SDEDPMSolverPP(2), n, s), Bare((4,), noisy=True), {
        "diffusers": dpm("sde-dpmsolver++"),
    }),
    "UniPC-2": (lambda n, s: ours(UniPC(2), n, s), Bare((5,)), {
        "diffusers": lambda n: scheduler("UniPCMultistepScheduler", n, **SPACED, solver_order=2),
    }),
    "UniPC-3": (lambda n, s: ours(UniPC(3), n, s), Bare((6,)), {
        "diffusers": lambda n: scheduler("UniPCMultistepScheduler", n, **SPACED, solver_order=3),
    }),
    "rho-AB DEIS-3": (lambda n, s: ours(Adams(3, "rho"), n, s), Bare((4,)), {
        "diffusers": lambda n: scheduler("DEISMultistepScheduler", n, **SPACED, solver_order=3),
        "azula": lambda n: azula_sampler("zABSampler", n, order=3),
        "k-diffusion": lambda n: karras_function("sample_lms", n, order=3),
    }),
    "angle Adams-3": (lambda n, s: ours(Adams(3, "angle"), n, s), Bare((7,)), {
        "diffusers": lambda n: scheduler("DEISMultistepScheduler", n, **SPACED, solver_order=3),
        "azula": lambda n: azula_sampler("zABSampler", n, order=3),
    }),
    "SA-Solver": (lambda n, s: ours(SASolver(2, 2), n, s), Bare((5,), noisy=True), {
        "diffusers": lambda n: scheduler("SASolverScheduler", n, **SPACED),
    }),
    "iPNDM-4": (lambda n, s: ours(IPNDM(4), n, s), Bare((5,)), {"diffusers": lambda n: scheduler("IPNDMScheduler", n)}),
    "Euler, EDM": (lambda n, s: ours(Euler(), n, s, edm=True), Bare((2,), scaled=True), {
        "diffusers": lambda n: scheduler("EulerDiscreteScheduler", n, **BETAS, use_karras_sigmas=True),
        "k-diffusion": lambda n: karras_function("sample_euler", n),
    }),
    "Heun, EDM": (lambda n, s: ours(Heun(), n, s, edm=True), Bare((2, 3), scaled=True), {
        "diffusers": lambda n: scheduler("HeunDiscreteScheduler", n, **BETAS, use_karras_sigmas=True),
        "azula": lambda n: azula_sampler("HeunSampler", n),
        "k-diffusion": lambda n: karras_function("sample_heun", n),
    }),
}  # fmt: skip


def alone(calls: int) -> Solve:
    """The network alone, called so many times."""

    @torch.no_grad()
    def solve(x: Tensor) -> Tensor:
        for _ in range(calls):
            network(x)
        return x

    return solve


def candidates(name: str, shape: tuple[int, ...], steps: int) -> dict[str, Solve]:
    """All that are compared for a method, at a number of steps, and the network alone; a peer that is not there not."""
    make, loop, peers = CASES[name]
    found = {
        "network alone": alone(steps * len(loop.terms)),
        "bare loop": replace(loop, steps=steps),
        "sde_diffusion": make(steps, shape),
    }
    for peer, build in peers.items():
        try:
            found[peer] = build(steps)
        except ImportError as error:  # noqa: PERF203 - not there, or without something of its own
            print(f"  ({peer} is left out: {error})")
    return found
