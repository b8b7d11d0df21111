r"""Sampling and the log-density of what is sampled, in one solve: the likelihood run the other way.

$$ \log p_s(x_s) = \log p_T(x_T) - \int_T^s \nabla\cdot v\,dt $$

Samples and density come from one integration, in the coordinate of `route`, whatever the solver steps in: in `t`
a process whose state grows with the noise would make an error of nats in the number of steps that suits its samples.
The solve does not tell how far the number is from the density of these very samples. A second solve does, from the
samples back to the prior, by `looser` steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sde_diffusion.denoiser.chunks import Chunk
from sde_diffusion.denoiser.modules import Evaluation
from sde_diffusion.likelihood.exact import Method, ordinary
from sde_diffusion.likelihood.flow import Flow, Part, arrivals, check_solver, solve_again, tell
from sde_diffusion.likelihood.result import LogProb
from sde_diffusion.likelihood.route import Density, route_of
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.problem import Problem
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.solvers import AngleSDE, Solver


class JointSampling:
    """Draws samples of a problem together with their log-density.

    Args:
        problem: The model, its process and its prior.
        solver: A solver that integrates any ODE.
        times: Times of the process, falling: on a Gaussian SDE the solver steps between them in the angle.
        method: How the divergence is found, and whether the solver error is; its solver and steps are those above.
        grad: Whether the graph is kept.

    Raises:
        TypeError: A solver that cannot integrate a bare ODE.
        ValueError: A method with a solver or steps; a general SDE whose times start elsewhere than its prior.
    """

    def __init__(
        self, problem: Problem, solver: Solver, times: Sequence[float], method: Method, *, grad: bool = False
    ) -> None:
        if (method.solver, method.steps, method.data_std) != (None, None, None):
            raise ValueError(
                f"samples are drawn by the solver and on the grid of the sampler, got method={method!r}: give "
                "SDESampler(..., solver=, steps=), and to a method trace= and solver_error= alone"
            )
        self.problem, self.times, self.method, self.grad = problem, times, method, grad
        self.solver, data_std = check_solver(solver, "sample_with_log_prob")
        sde = problem.sde
        if not isinstance(sde, GaussianSDE) and times[0] != sde.t_max:
            raise ValueError(
                f"the grid starts at t = {times[0]:g}, but the density of {type(sde).__name__} is known at "
                f"t_max = {sde.t_max:g} alone, by its prior: start there"
            )
        self.route = route_of(problem, (times[0], times[-1]), Density(whole=False), data_std)
        self.grid = list(times)
        if isinstance(sde, GaussianSDE) and self.route.data_std is not None:
            circle = AngleSDE(self.route.data_std)
            low, high = self.route.ends
            self.grid = [high, *(circle.angle(at) for at in sde.levels(times[1:-1])), low]

    def draw(self, part: Chunk, noise: Callable[..., NoiseSource]) -> tuple[Tensor, LogProb]:
        """The samples of a batch and their log-density, from the states given, or else from the prior."""
        x_T, seeds, span = part.start, part.seed, (self.times[0], self.times[-1])
        if x_T is None:
            x_T = self.problem.start(self.problem.source(part.n, part.seed, noise, span).prior(), span[0])
        if isinstance(seeds, torch.Generator):  # the probes, too, are drawn from the shared stream
            seeds = torch.randint(1 << 31, (part.n,), generator=seeds, device=seeds.device).tolist()
        trace = self.method.trace_of(self.problem.model, x_T)
        flow = Flow(self.route, self.solver, self.grid[::-1], trace, self.grad)
        with torch.inference_mode(False), torch.set_grad_enabled(self.grad), Evaluation(self.problem.model):
            x_T, cond = ordinary(x_T), {name: ordinary(value) for name, value in part.cond.items()}
            probes = trace.probes(seeds, x_T[0].numel(), x_T)
            return self._carry(flow, Part(x_T, probes, cond, part.first))

    def _carry(self, flow: Flow, part: Part) -> tuple[Tensor, LogProb]:
        """Carries states at the first time to the last, and their density along.

        Returns:
            The states there over alpha, in the units of the data and without the final jump, and their log-density: the
            number that `log_prob(x, density=Density(whole=False))` finds, up to `solver_error`.
        """
        x_T, route = part.x, flow.route
        ode = flow.ode(x_T, part)
        start = ode.start(x_T)
        start = torch.cat([start[:, : ode.d] / route.out, start[:, ode.d :]], dim=1)
        now = flow.run(ode, start, self.grid)
        state, integrals = ode.split(now.x)
        change = ode.d * (math.log(route.out) + math.log(route.into))
        value = route.prior(ode.split(start)[0] * route.out) + change - flow.trace.estimate(integrals)
        arrived = arrivals(ode, now.finished, value)
        tell(ode, arrived, flow, part.before)
        x = (state / route.into).to(x_T.dtype)
        if not bool(arrived.all()):  # a row that stands where it started, or on the way, is no sample
            x = torch.where(arrived.reshape(-1, *([1] * (x.ndim - 1))), x, torch.full_like(x, math.nan))
        found = LogProb(
            value=torch.where(arrived, value, torch.full_like(value, math.nan)),
            standard_error=flow.trace.standard_error(integrals.detach(), ode.d),
            solver_error=torch.full_like(value, math.nan).detach(),
            truncation=torch.full_like(value, math.nan).detach(),
            latent=x_T.detach(),
            nfe=now.nfe,
            converged=arrived,
            dim=ode.d,
            level=route.level,
        )
        if self.method.solver_error:
            back = Part(x.detach(), part.probes, part.cond)
            error, truncation, nfe = solve_again(flow, back, found.value, x_T)
            found = replace(found, solver_error=error, truncation=truncation, nfe_check=nfe)
        return x, found
