"""Agreement with diffusers' schedulers, line by line, and the reason where there is none.

    python benchmarks/peers.py            # prints the table and writes benchmarks/results/peers.json
    python benchmarks/peers.py --quick    # fewer steps, nothing written

Both libraries ask one network, the exact mean of a Gaussian mixture, at the same noise levels (the float32 levels that
the scheduler has laid out), start from one state and draw the same noise. What is printed, over the standard deviation
of the samples, is the largest difference between the two, in float32, as both are used, and in float64 with the levels
of the scheduler widened, which tells rounding from another algorithm. Beside them stands the rounding of each: its
float32 samples against its own in float64. diffusers computes the weights of its steps in float32, where high orders
lose digits; such lines agree if the difference is its own rounding. Some of its schedulers round to float32 whatever
they are given; there the figures for float64 are no smaller.

Where a line says `last step left out`, the two differ by design in how they end: here the last step to zero noise is
the posterior mean, and no order is lowered before it.

diffusers is not a dependency: `pip install diffusers`. Without it this prints a line and ends.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from sde_diffusion import EDMSDE, DiscreteVPSDE, FlowSDE, Network, SDESampler, grids, predict
from sde_diffusion.noise import NoiseSource
from sde_diffusion.sde import GaussianSDE
from sde_diffusion.solvers import (
    DDIM,
    IPNDM,
    Adams,
    Churn,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPP2S,
    Euler,
    Heun,
    SASolver,
    SDEDPMSolverPP,
    Solver,
    UniPC,
)

BOUND = 1e-5  # in float32, relative to the scale of the samples
N, D, SEED = 16, 8, 3
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEANS = torch.linspace(-1, 1, 2 * D, dtype=torch.float64).reshape(2, D).sin()
VARIANCES = torch.linspace(0.05, 0.6, 2 * D, dtype=torch.float64).reshape(2, D)


def data(x: Tensor, alpha: Any, sigma: Any) -> Tensor:
    """E[x0 | alpha x0 + sigma eps = x] of the mixture, in float64."""
    y = x.double()[:, None]
    total = alpha * alpha * VARIANCES + sigma * sigma
    gap = y - alpha * MEANS
    logs = torch.log(WEIGHTS) - 0.5 * (gap.square() / total + torch.log(total)).sum(-1)
    means = MEANS + alpha * VARIANCES / total * gap
    return (torch.softmax(logs, 1)[..., None] * means).sum(1)


def noise(x: Tensor, alpha: Any, sigma: Any) -> Tensor:
    """E[eps | alpha x0 + sigma eps = x], in the dtype of `x`."""
    return ((x.double() - alpha * data(x, alpha, sigma)) / sigma).to(x.dtype)


def typed_data(x: Tensor, alpha: Any, sigma: Any) -> Tensor:
    """E[x0 | alpha x0 + sigma eps = x], in the dtype of `x`."""
    return data(x, alpha, sigma).to(x.dtype)


class RatioVP(GaussianSDE):
    """The variance-preserving process whose time is sigma / alpha, which diffusers calls sigma."""

    def __init__(self, t_min: float, t_max: float) -> None:
        self.t_min, self.t_max = t_min, t_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.rsqrt(1 + t * t)

    def sigma(self, t: Tensor) -> Tensor:
        return t * torch.rsqrt(1 + t * t)

    def half_log_snr(self, t: Tensor) -> Tensor:
        return -torch.log(t)

    def time_of(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)


def scales(s: float) -> tuple[float, float]:
    """Its alpha and sigma."""
    return 1 / math.sqrt(1 + s * s), s / math.sqrt(1 + s * s)


def start(dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """The state that both start from."""
    return scale * torch.randn(N, D, generator=seeded(), dtype=torch.float64).to(dtype)


class Drawn(NoiseSource):
    """One stream for both libraries and both dtypes: drawn in float64 and rounded."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__((D,), dtype, "cpu")
        self.generator = seeded()

    def prior(self) -> Tensor:
        return self(0.0, 0.0)

    def __call__(self, t: float, s: float) -> Tensor:
        return torch.randn(N, D, generator=self.generator, dtype=torch.float64).to(self.dtype)


def seeded() -> torch.Generator:
    """A stream at its beginning."""
    return torch.Generator().manual_seed(SEED)


def peer() -> Any:
    """The diffusers package."""
    return importlib.import_module("diffusers")


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference over the standard deviation."""
    return float((a.double() - b.double()).abs().max() / b.double().std())


Pair = Callable[[torch.dtype, int], tuple[Tensor, Tensor]]


@dataclass
class Line:
    """One scheduler with its options, the solver here, how far apart they are, and how much each rounds."""

    scheduler: str
    solver: str
    steps: int
    float32: float
    float64: float
    rounding_here: float
    rounding_there: float
    expected: bool
    reason: str = ""

    @property
    def agrees(self) -> bool:
        """Within the bound in float32; or in float64, where float32 rounds the other side by more than that."""
        rounding = self.float64 <= BOUND < self.rounding_there + self.rounding_here
        return self.float32 <= BOUND or (rounding and self.float32 <= 2 * (self.rounding_there + self.rounding_here))

    @property
    def note(self) -> str:
        """The verdict and its reason."""
        if self.expected and not self.agrees:
            return "FAILED"
        if not self.expected:
            return f"differs: {self.reason}"
        rounds = "" if self.float32 <= BOUND else "rounding alone"
        return "; ".join(filter(None, (rounds, self.reason)))


# ------------------------------------------------------------------------------------------------------- the two loops


def widen(scheduler: Any, dtype: torch.dtype) -> None:
    """Gives a scheduler its own levels in a wider dtype."""
    for name in ("sigmas", "sigmas_interpol", "alphas_cumprod", "alphas", "betas", "final_alpha_cumprod", "one"):
        value = getattr(scheduler, name, None)
        if isinstance(value, Tensor):
            setattr(scheduler, name, value.to(dtype))


def loop(scheduler: Any, x: Tensor, net: Callable[[Tensor, int], Tensor], calls: int, **options: Any) -> Tensor:
    """The scheduler's own loop over its first `calls` network calls, with the noise of the other side."""
    source = Drawn(x.dtype)
    source.prior()  # the draw behind a start that is not used
    home = next(c.__module__ for c in type(scheduler).__mro__ if c.__module__.startswith("diffusers"))
    with mock.patch(f"{home}.randn_tensor", lambda *_, dtype, **__: source(0.0, 0.0).to(dtype), create=True):
        for i, t in enumerate(scheduler.timesteps[:calls]):
            scheduler.scale_model_input(x, t)
            x = scheduler.step(net(x, i), t, x, **options).prev_sample
    return x


def here(model: Network, solver: Solver, x: Tensor, times: list[float], *, denoise: bool = False) -> Tensor:
    """One line of this library."""
    sampler = SDESampler(model.sde, model, solver=solver, grid=times, denoise=denoise, shape=(D,))
    return sampler.sample(x_T=x, seed=0, noise=lambda *_: Drawn(x.dtype))


def on_vp(
    make: Callable[..., Any], solver: Solver, *, kind: str = "epsilon", whole: bool = True, stride: int = 1
) -> Pair:
    """A scheduler whose state is x.

    Args:
        make: Makes the scheduler, given the kind of its network.
        solver: The solver here.
        kind: What the network answers, `"epsilon"` or `"sample"`.
        whole: Whether the last step is taken.
        stride: Steps of the scheduler to one here.
    """
    answer, ours = {"epsilon": (noise, predict.noise), "sample": (typed_data, predict.data)}[kind]

    def pair(dtype: torch.dtype, steps: int) -> tuple[Tensor, Tensor]:
        scheduler = make(prediction_type=kind)
        scheduler.set_timesteps(steps)
        widen(scheduler, dtype)
        levels = scheduler.sigmas.double()
        alpha = torch.rsqrt(1 + levels**2)
        x, calls = start(dtype), len(scheduler.timesteps) - (not whole)
        theirs = loop(scheduler, x, lambda x, i: answer(x, alpha[i], alpha[i] * levels[i]), calls)
        to_zero = whole and float(levels[-1]) == 0
        times = levels[: calls + (not to_zero) : stride].tolist()
        sde = RatioVP(times[-1], times[0])
        model = Network(lambda x, t: answer(x, *scales(float(t[0]))), sde, ours)
        return theirs, here(model, solver, x, times, denoise=to_zero)

    return pair


def on_edm(
    make: Callable[[], Any],
    solver: Solver,
    *,
    per_step: int = 1,
    whole: bool = True,
    **options: Any,
) -> Pair:
    """A scheduler whose state is x / alpha and whose time is sigma / alpha."""

    def pair(dtype: torch.dtype, steps: int) -> tuple[Tensor, Tensor]:
        scheduler = make()
        scheduler.set_timesteps(steps)
        widen(scheduler, dtype)
        levels = scheduler.sigmas.double()
        asked = levels.clone()
        if per_step == 2:
            times = [s for s in (float(levels[0]), *levels[1:-1:2].tolist()) if s]
            if hasattr(scheduler, "sigmas_interpol"):
                asked[1::2] = scheduler.sigmas_interpol.double()[1::2]
        else:
            times = levels[:-1].tolist()
        x = start(dtype, times[0])
        calls = len(scheduler.timesteps) - (not whole)
        theirs = loop(scheduler, x, lambda x, i: noise(x, 1.0, asked[i]), calls, **options)
        model = Network(lambda x, t: noise(x, 1.0, float(t[0])), EDMSDE(times[-1], times[0]), predict.noise)
        return theirs, here(model, solver, x, times, denoise=whole)

    return pair


def on_edm_network(make: Callable[[], Any], solver: Solver, *, whole: bool = True, **options: Any) -> Pair:
    """A scheduler of EDM networks, which see a scaled state and a quarter of the log noise level."""

    def net(x: Tensor, c_noise: Tensor) -> Tensor:
        s = math.exp(4 * float(c_noise.reshape(-1)[0]))
        wide = x.double() * math.sqrt(s * s + 0.25)
        answer = (data(wide, 1.0, s) - 0.25 / (s * s + 0.25) * wide) / (0.5 * s / math.sqrt(s * s + 0.25))
        return answer.to(x.dtype)

    def pair(dtype: torch.dtype, steps: int) -> tuple[Tensor, Tensor]:
        scheduler = make()
        scheduler.set_timesteps(steps)
        widen(scheduler, dtype)
        scheduler.timesteps = 0.25 * torch.log(scheduler.sigmas[:-1])
        times = scheduler.sigmas[:-1].double().tolist()
        x = start(dtype, times[0])

        def asked(x: Tensor, i: int) -> Tensor:
            return net(scheduler.precondition_inputs(x, scheduler.sigmas[i]), scheduler.timesteps[i])

        theirs = loop(scheduler, x, asked, steps - (not whole), **options)
        model = Network(net, EDMSDE(times[-1], times[0]), predict.EDM(0.5))
        return theirs, here(model, solver, x, times, denoise=whole)

    return pair


def on_flow(make: Callable[[], Any], solver: Solver, *, per_step: int = 1) -> Pair:
    """A scheduler of velocity networks on the straight path."""

    def velocity(x: Tensor, s: float) -> Tensor:
        x0 = data(x, 1 - s, s)
        return ((x.double() - x0) / s).to(x.dtype)  # eps - x0, as x = (1 - s) x0 + s eps

    def pair(dtype: torch.dtype, steps: int) -> tuple[Tensor, Tensor]:
        scheduler = make()
        scheduler.set_timesteps(steps)
        widen(scheduler, dtype)
        levels = scheduler.sigmas.double()
        times = [float(levels[0]), *levels[1:-1:per_step].tolist()]
        x = start(dtype)
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(velocity(x, float(levels[i])), t, x).prev_sample
        model = Network(lambda x, t: velocity(x, float(t[0])), FlowSDE(t_min=times[-1]), predict.velocity)
        return x, here(model, solver, start(dtype), times, denoise=True)

    return pair


def on_chain(make: Callable[[], Any], solver: Solver, grid: Callable[..., Tensor], **options: Any) -> Pair:
    """The ancestral schedulers on an index-trained network, each library with its own table of the schedule."""

    def pair(dtype: torch.dtype, steps: int) -> tuple[Tensor, Tensor]:
        scheduler = make()
        scheduler.set_timesteps(steps)
        widen(scheduler, dtype)
        chain = DiscreteVPSDE.linear(1000, 1e-4, 0.02)

        def net(x: Tensor, t: Tensor) -> Tensor:
            (at,) = chain.levels([float(t.reshape(-1)[0])])
            return noise(x, at.alpha, at.sigma)

        x = start(dtype)
        theirs = loop(scheduler, x, lambda x, i: net(x, scheduler.timesteps[i]), steps, **options)
        sampler = SDESampler(
            chain, Network(net, chain, predict.noise), solver=solver, steps=steps - 1, grid=grid, shape=(D,)
        )
        assert sampler.times == scheduler.timesteps.tolist()
        return theirs, sampler.sample(x_T=x, seed=0, noise=lambda *_: Drawn(dtype))

    return pair


def ipndm(dtype: torch.dtype, steps: int) -> tuple[Tensor, Tensor]:
    """The scheduler of velocity networks on its own grid, from its second level on."""
    diffusers = peer()

    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(steps)
    widen(scheduler, dtype)
    scheduler.set_begin_index(1)
    alpha, sigma = scheduler.alphas.double(), scheduler.betas.double()
    x = start(dtype)
    for i in range(1, steps - 1):
        x0, eps = data(x, alpha[i], sigma[i]), noise(x.double(), alpha[i], sigma[i])
        x = scheduler.step((alpha[i] * eps - sigma[i] * x0).to(dtype), scheduler.timesteps[i], x).prev_sample
    times = (sigma / alpha)[1:-1].tolist()
    model = Network(lambda x, t: noise(x, *scales(float(t[0]))), RatioVP(times[-1], times[0]), predict.noise)
    return x, here(model, IPNDM(4), start(dtype), times)


def plain_sa(predictor: int, corrector: int, tau: int, **options: Any) -> Any:
    """SA-Solver's scheduler with the rows of its paper: without what it adds to rows of two nodes."""
    diffusers = peer()

    class Plain(diffusers.SASolverScheduler):
        def get_coefficients_fn(self, order: int, start: Any, end: Any, nodes: list[Any], tau: Any) -> list[Any]:
            row: list[Any] = super().get_coefficients_fn(order, start, end, nodes, tau)
            if order == 2:
                h, k = end - start, 1 + tau**2
                extra = torch.exp(k * end) * (h**2 / 2 - (h * k - 1 + torch.exp(-k * h)) / k**2) / (nodes[0] - nodes[1])
                row = [row[0] - extra, row[1] + extra]
            return row

    return Plain(predictor_order=predictor, corrector_order=corrector, tau_func=lambda t: tau, **options)


def paper_stages(make: Callable[..., Any], **options: Any) -> Any:
    """The single-step scheduler of order 3 with the stage at two thirds as DPM-Solver-3 has it."""
    scheduler = make(**options)
    second = scheduler.singlestep_dpm_solver_second_order_update

    def exact(*arguments: Any, **options: Any) -> Tensor:
        scheduler.register_to_config(solver_type="heun")
        try:
            out: Tensor = second(*arguments, **options)
        finally:
            scheduler.register_to_config(solver_type="midpoint")
        return out

    scheduler.singlestep_dpm_solver_second_order_update = exact
    return scheduler


# ------------------------------------------------------------------------------------------------------------ the lines

BASE: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02}
TRAILING: dict[str, Any] = {**BASE, "timestep_spacing": "trailing"}
LEADING: dict[str, Any] = {**BASE, "timestep_spacing": "leading", "clip_sample": False}
KARRAS: dict[str, Any] = {**TRAILING, "use_karras_sigmas": True}
FULL: dict[str, Any] = {"lower_order_final": False}
LEFT_OUT = "last step left out"
AMPLIFIED = "a noise network: its rounding is amplified by 1 / alpha = 157 on both sides"


class Table:
    """The lines found so far, at one number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.lines: list[Line] = []

    def add(self, name: str, solver: Solver, pair: Pair, reason: str = "", agrees: bool = True, n: int = 0) -> None:
        """Measures one line; `agrees` says what is expected, `reason` why not, or under which condition."""
        n = n or self.steps
        (theirs, ours), (theirs64, ours64) = pair(torch.float32, n), pair(torch.float64, n)
        between = relative(theirs, ours), relative(theirs64, ours64)
        rounding = relative(ours, ours64), relative(theirs, theirs64)
        self.lines.append(Line(name, repr(solver), n, *between, *rounding, agrees, reason))


def ancestral(table: Table) -> None:
    """DDIM and DDPM, and one multistep line, on an index network, with each library's own table of the schedule."""
    diffusers = peer()

    for eta in (0.0, 0.5, 1.0):
        make = partial(diffusers.DDIMScheduler, **LEADING)
        pair = on_chain(make, DDIM(eta), grids.leading, eta=eta)
        table.add(f"DDIM, leading, eta={eta}", DDIM(eta), pair)
    for kind, variance in (("fixed_small", "posterior"), ("fixed_large", "forward")):
        make, solver = partial(diffusers.DDPMScheduler, variance_type=kind, **LEADING), DDIM(1.0, variance)
        table.add(f"DDPM, {kind}", solver, on_chain(make, solver, grids.leading))
    make = partial(diffusers.DPMSolverMultistepScheduler, **TRAILING)
    table.add("DPMSolverMultistep, index network", DPMSolverPP(2), on_chain(make, DPMSolverPP(2), grids.trailing))


def dpm_multistep(table: Table) -> None:
    """The multistep family of DPM-Solver."""
    diffusers = peer()

    make = partial(diffusers.DPMSolverMultistepScheduler, **FULL)
    solver: Solver
    for base, where in ((TRAILING, ""), (KARRAS, ", Karras")):
        for order in (1, 2, 3):
            pair = on_vp(partial(make, solver_order=order, **base), DPMSolverPP(order))
            table.add(f"DPMSolverMultistep++ {order}{where}", DPMSolverPP(order), pair)
        table.add(
            f"DPMSolverMultistep++ 2 'heun'{where}",
            Adams(2),
            on_vp(partial(make, solver_type="heun", **base), Adams(2)),
        )
        for order in (1, 2):
            solver = SDEDPMSolverPP(order)
            sde = partial(make, solver_order=order, algorithm_type="sde-dpmsolver++", **base)
            table.add(f"DPMSolverMultistep sde++ {order}{where}", solver, on_vp(sde, solver))
    solver = SDEDPMSolverPP(3)
    sde = partial(make, solver_order=3, algorithm_type="sde-dpmsolver++", **TRAILING)
    why = "weighs the second difference by (1 - exp(-z) - z)/z^2 - 1/2, z = 2h; with + 1/2, as here, it vanishes with h"
    table.add("DPMSolverMultistep sde++ 3", solver, on_vp(sde, solver), why, False)
    noisy = partial(make, algorithm_type="dpmsolver", final_sigmas_type="sigma_min", **TRAILING)
    table.add("DPMSolverMultistep noise 1", DDIM(), on_vp(partial(noisy, solver_order=1), DDIM()))
    solver = Adams(2, "noise")
    table.add("DPMSolverMultistep noise 2 'heun'", solver, on_vp(partial(noisy, solver_type="heun"), solver))
    why = "weighs the difference by expm1(h)/2; here by the exact integral, expm1(h)/h - 1"
    table.add("DPMSolverMultistep noise 2 'midpoint'", solver, on_vp(noisy, solver), why, False)
    solver = Adams(3, "noise")
    why = "weighs the second difference by half its Taylor value, as the authors' code does; here the exact integral"
    table.add("DPMSolverMultistep noise 3", solver, on_vp(partial(noisy, solver_order=3), solver), why, False)


def dpm_singlestep(table: Table) -> None:
    """The single-step family: its stages are grid points there, so that the grid must be uniform in log-SNR."""
    diffusers = peer()

    make = partial(diffusers.DPMSolverSinglestepScheduler, use_exponential_sigmas=True, **BASE)
    n = 2 * (table.steps // 2) + 1
    solver: Solver
    for kind, solver in (("midpoint", DPMSolverPP2S()), ("heun", DPMSolverPP2S(stiff=True))):
        pair = on_vp(partial(make, solver_type=kind), solver, whole=False, stride=2)
        table.add(f"DPMSolverSinglestep++ 2 '{kind}'", solver, pair, LEFT_OUT, n=n)
    noisy = partial(make, algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
    solver = DPMSolver(2)
    table.add("DPMSolverSinglestep noise 2", solver, on_vp(noisy, solver, whole=False, stride=2), LEFT_OUT, n=n)
    n, solver, noisy = 3 * (max(table.steps, 20) // 3) + 1, DPMSolver(3), partial(noisy, solver_order=3)
    why = "its stage at two thirds takes the midpoint rule; the paper's Algorithm 2 the exact weight of the difference"
    pair = on_vp(noisy, solver, whole=False, stride=3)
    table.add("DPMSolverSinglestep noise 3", solver, pair, why, False, n=n)
    pair = on_vp(partial(paper_stages, noisy), solver, whole=False, stride=3)
    table.add("DPMSolverSinglestep noise 3, that stage as in the paper", solver, pair, LEFT_OUT, n=n)


def multistep(table: Table) -> None:
    """UniPC, DEIS, linear multistep, iPNDM, SA-Solver."""
    diffusers = peer()

    solver: Solver
    unipc = partial(diffusers.UniPCMultistepScheduler, final_sigmas_type="sigma_min", **FULL)
    for order in (1, 2, 3, 4):
        for variant in ("bh1", "bh2"):
            solver = UniPC(order, variant)
            pair = on_vp(partial(unipc, solver_order=order, solver_type=variant, **TRAILING), solver, kind="sample")
            table.add(f"UniPC {order} {variant}", solver, pair)
    pair = on_vp(partial(unipc, solver_order=3, **TRAILING), UniPC(3))
    table.add("UniPC 3 bh2, noise network", UniPC(3), pair, AMPLIFIED)
    pair = on_vp(partial(unipc, solver_order=3, **KARRAS), UniPC(3), kind="sample", whole=False)
    table.add("UniPC 3 bh2, Karras", UniPC(3), pair, LEFT_OUT + ": NaN there, as its last two levels are equal")
    for order in (1, 2, 3):
        solver = Adams(order, "noise")
        deis = partial(diffusers.DEISMultistepScheduler, solver_order=order, **TRAILING, **FULL)
        table.add(f"DEIS {order} 'logrho'", solver, on_vp(deis, solver))
    for order in (1, 2, 3, 4):
        solver = Adams(order, "rho")
        pair = on_edm(partial(diffusers.LMSDiscreteScheduler, **KARRAS), solver, whole=False, order=order)
        table.add(f"LMSDiscrete {order}, Karras", solver, pair, LEFT_OUT)
    why = "first step left out: alpha = 0 there, and what the network says is lost in a division by 1e-8"
    table.add("IPNDM", IPNDM(4), ipndm, why)
    for tau in (0, 1):
        for p, c in ((1, 1), (2, 2), (3, 3)):
            solver = SASolver(p, c, eta=float(tau))
            pair = on_vp(partial(plain_sa, p, c + 1, tau, **TRAILING, **FULL), solver, kind="sample")
            table.add(f"SASolver {p} {c + 1}, tau={tau}, the rows of the paper", solver, pair)
    solver = SASolver(2, 1, eta=0.0)
    sa = partial(diffusers.SASolverScheduler, predictor_order=2, corrector_order=2, tau_func=lambda t: 0)
    why = "adds terms of third order to rows of two nodes, 'for few steps'"
    table.add("SASolver 2 2, tau=0", solver, on_vp(partial(sa, **TRAILING, **FULL), solver), why, False)


def levels_and_flows(table: Table) -> None:
    """The samplers that step in sigma / alpha, EDM's, and those of flow matching."""
    diffusers = peer()

    table.add("EulerDiscrete, Karras", Euler(), on_edm(partial(diffusers.EulerDiscreteScheduler, **KARRAS), Euler()))
    pair = on_edm(partial(diffusers.HeunDiscreteScheduler, **KARRAS), Heun(), per_step=2)
    table.add("HeunDiscrete, Karras", Heun(), pair)
    pair = on_edm(partial(diffusers.KDPM2DiscreteScheduler, **KARRAS), DPMSolver(2), per_step=2)
    table.add("KDPM2Discrete, Karras", DPMSolver(2), pair)
    pair = on_edm(partial(diffusers.EulerAncestralDiscreteScheduler, **TRAILING), DDIM(1.0))
    table.add("EulerAncestralDiscrete", DDIM(1.0), pair)
    churn = Churn(Euler(), min(4.0 / table.steps, math.sqrt(2) - 1), s_min=0.05, s_max=5.0, s_noise=1.003)
    window: dict[str, Any] = {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 5.0, "s_noise": 1.003}
    pair = on_edm(partial(diffusers.EulerDiscreteScheduler, **KARRAS), churn, **window)
    why = "asks the network before it raises the noise, and steps from the raised state; EDM's Algorithm 2 asks after"
    table.add("EulerDiscrete, Karras, s_churn=4", churn, pair, why, False)
    table.add("EDMEuler", Euler(), on_edm_network(diffusers.EDMEulerScheduler, Euler()))
    edm = partial(diffusers.EDMDPMSolverMultistepScheduler, **FULL)
    for order in (1, 2, 3):
        pair = on_edm_network(partial(edm, solver_order=order), DPMSolverPP(order))
        table.add(f"EDMDPMSolverMultistep++ {order}", DPMSolverPP(order), pair)
    pair = on_edm_network(partial(edm, algorithm_type="sde-dpmsolver++"), SDEDPMSolverPP(2))
    table.add("EDMDPMSolverMultistep sde++ 2", SDEDPMSolverPP(2), pair)
    for shift in (1.0, 3.0):
        pair = on_flow(partial(diffusers.FlowMatchEulerDiscreteScheduler, shift=shift), Euler())
        table.add(f"FlowMatchEulerDiscrete, shift={shift:g}", Euler(), pair)
        pair = on_flow(partial(diffusers.FlowMatchHeunDiscreteScheduler, shift=shift), Heun(), per_step=2)
        table.add(f"FlowMatchHeunDiscrete, shift={shift:g}", Heun(), pair)


def findings() -> dict[str, str]:
    """What schedulers do on their own settings that no line above can be run on."""
    diffusers = peer()

    found = {}
    karras: dict[str, Any] = {**BASE, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "solver_order": 3}
    for name, options in (("DPMSolverMultistepScheduler", {}), ("UniPCMultistepScheduler", FULL)):
        scheduler = getattr(diffusers, name)(**karras, **options)
        scheduler.set_timesteps(20)
        levels = scheduler.sigmas.double()
        alpha = torch.rsqrt(1 + levels**2)
        out = loop(scheduler, start(torch.float32), lambda x, i: noise(x, alpha[i], alpha[i] * levels[i]), 20)  # noqa: B023 - called in this turn
        bad = int((~torch.isfinite(out)).sum())
        found[f"{name}, order 3, Karras, sigma_min, 20 steps"] = f"{bad} of {out.numel()} values are not finite"
    ddim = diffusers.DDIMScheduler(timestep_spacing="linspace")
    ddim.set_timesteps(10)
    asked = [int(t) for t in ddim.timesteps[:3]]
    reached = [t - 1000 // 10 for t in asked[:2]]
    found["DDIMScheduler, linspace, 10 steps"] = f"asked at {asked}, but steps to {reached}: a neighbour recomputed"
    cosine = diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True)
    cosine.set_timesteps(20)
    times = cosine.timesteps.tolist()
    most = max(times, key=times.count)
    found["DPMSolverMultistepScheduler, cosine, Karras, 20 steps"] = f"asks {times.count(most)} times at t = {most}"
    table = diffusers.DDIMScheduler(**BASE).alphas_cumprod.double()
    levels = torch.sqrt((1 - table) / table)
    exact = torch.exp(-DiscreteVPSDE.linear(1000).half_log_snr(torch.arange(1000, dtype=torch.float64)))
    worst = float((levels / exact - 1).abs().max())
    edm = diffusers.EDMDPMSolverMultistepScheduler(solver_order=3, algorithm_type="sde-dpmsolver++")
    edm.set_timesteps(20)
    try:
        loop(edm, start(torch.float32, 80.0), lambda x, i: x, 20)
        found["EDMDPMSolverMultistepScheduler, sde-dpmsolver++, order 3"] = "runs"
    except UnboundLocalError as error:
        found["EDMDPMSolverMultistepScheduler, sde-dpmsolver++, order 3"] = f"UnboundLocalError: {error}"
    found["the linear schedule in float32"] = f"noise levels off by up to {worst:.1e} of themselves"
    return found


def measure(steps: int) -> list[Line]:
    """Every comparison at one number of steps."""
    table = Table(steps)
    for part in (ancestral, dpm_multistep, dpm_singlestep, multistep, levels_and_flows):
        part(table)
    return table.lines


def main() -> None:
    """Measures, prints, writes; fails if a line that should agree does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 steps alone, nothing written")
    arguments = parser.parse_args()
    try:
        diffusers = peer()
    except ImportError:
        print("diffusers is not installed: pip install diffusers")
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # deprecations of its own options
    diffusers.logging.set_verbosity_error()
    found = [line for steps in ((10,) if arguments.quick else (10, 20, 50)) for line in measure(steps)]
    print(f"largest difference over the standard deviation; diffusers {version('diffusers')}, torch {version('torch')}")
    print(f"{'':112} {'difference':>19}   {'rounding':>19}")
    heads = ("steps", "float32", "float64", "here", "there")
    print("{:53} {:54} {:>5} {:>9} {:>9} {:>9} {:>9}".format("diffusers", "sde_diffusion", *heads))
    for line in found:
        figures = (line.float32, line.float64, line.rounding_here, line.rounding_there)
        solver = line.solver.replace(", data_std=1.0", "").replace(", s_min=0.0, s_max=inf", "")
        print(f"{line.scheduler:53} {solver:54} {line.steps:5} {' '.join(f'{v:9.1e}' for v in figures)}  {line.note}")
    failed = [line for line in found if line.expected and not line.agrees]
    print("\non diffusers' own settings:")
    others = findings()
    for name, what in others.items():
        print(f"  {name}: {what}")
    if not arguments.quick:
        path = Path(__file__).parent / "results" / "peers.json"
        path.parent.mkdir(exist_ok=True)
        result = {
            "diffusers": version("diffusers"),
            "torch": version("torch"),
            "bound": BOUND,
            "lines": [{**asdict(line), "agrees": line.agrees} for line in found],
            "findings": others,
        }
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {path}")
    if failed:
        raise SystemExit(f"{len(failed)} lines do not agree within {BOUND:g}")


if __name__ == "__main__":
    main()
