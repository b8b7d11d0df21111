"""What is measured of a flow map: how far its samples are from the flow, in law too, and if it contradicts itself."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.modules import Evaluation, home
from sde_diffusion.distillation.draws import Place, angles, pairs
from sde_diffusion.noise.seeds import Use, one_stream
from sde_diffusion.problem import Problem
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.solvers import Angle, DormandPrince, Jump
from sde_diffusion.solvers.jump import UntrainedWarning

SHUFFLES = 64
"""Permutations by which the chance of an energy distance is found."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A flow map beside the flow of its teacher, both from the same noise.

    Args:
        model: The map.
        teacher: The model whose flow it learnt.
        n: Rows of each figure.
        seed: Of all that is drawn.
        given: The conditions of `n` rows.
    """

    model: Any
    teacher: Denoiser
    n: int
    seed: int
    given: Conditions

    @property
    def sde(self) -> GaussianSDE:
        """The process of the map."""
        sde: GaussianSDE = self.model.sde
        return sde

    @cached_property
    def start(self) -> Tensor:
        """Draws of the prior, twice as many as rows, in the dtype of the map."""
        problem = Problem(self.sde, self.model, self.shape)
        dtype, device = home(self.model)
        z = torch.randn(2 * self.n, *self.shape, generator=self.stream(Use.SOLVE), dtype=torch.float64, device="cpu")
        return problem.start(z.to(device, dtype), self.sde.t_max)

    @property
    def shape(self) -> tuple[int, ...]:
        """The event shape."""
        return self.model.shape or self.teacher.shape or ()

    def stream(self, use: Use = Use.CHECKS) -> torch.Generator:
        """A new stream of the seed, for a use."""
        return one_stream(self.seed, use=use)

    @cached_property
    def flow(self) -> Tensor:
        """Where the flow of the teacher leads from `start`, in float64: twice as many rows, the conditions in turn."""
        given, teacher = self.given.rows([i % self.n for i in range(2 * self.n)]), self.teacher
        dtype, device = home(teacher)
        x = self.start.to(device, dtype)
        if isinstance(teacher, Gaussian):
            return teacher.flow(x, self.sde.t_max, None).double().to(self.start.device)
        tolerance = 1e-7 if dtype == torch.float64 else 1e-5
        solver, ends = Angle(DormandPrince(tolerance, tolerance), teacher.data_std), [self.sde.t_max, self.sde.t_min]
        problem = Problem(self.sde, teacher, self.shape)
        return SDESampler(problem, solver=solver, grid=ends).sample(x_T=x, **given).double().to(self.start.device)

    @cached_property
    def std(self) -> float:
        """The standard deviation of the data, by the flow."""
        return float(self.flow.var(0).mean().sqrt())

    def jumped(self, calls: int) -> Tensor:
        """Samples of the map from the first half of `start`, in float64."""
        sampler = SDESampler(Problem(self.sde, self.model, self.shape), solver=self.solver, nfe=calls)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UntrainedWarning)  # which the report tells
            return sampler.sample(x_T=self.start[: self.n], seed=self.seed, **self.given.whole).double()

    @property
    def solver(self) -> Jump:
        """By which the map is sampled."""
        return Jump(renoise=getattr(self.model, "reach", "any") == "data")

    def distances(self, calls: int) -> tuple[float, float]:
        """From the flow, over the standard deviation: the root mean square, and the median of that of a row."""
        square = rows((self.jumped(calls) - self.flow[: self.n]) / self.std).square().mean(1)
        return float(square.mean().sqrt()), float(square.median().sqrt())

    def energy(self, calls: int) -> float:
        """The energy distance of samples of the map from those of the teacher from other noise, beyond chance.

        In standard deviations of the data, less twice the standard deviation that it has where the samples are dealt
        out anew; 0 where that is more.
        """
        x, y = (rows(part) / self.std for part in (self.jumped(calls), self.flow[self.n :]))
        apart = torch.cdist(torch.cat([x, y]), torch.cat([x, y]))
        whole, shuffle, n = apart.sum(), self.stream(), self.n

        def energy(first: Tensor) -> float:
            mask = torch.zeros(2 * n, dtype=apart.dtype, device="cpu").index_fill_(0, first, 1.0).to(apart.device)
            own, across = mask @ apart @ mask, mask @ apart @ (1 - mask)
            other = whole - own - 2 * across
            return float(2 * across / n**2 - (own + other) / (n * (n - 1)))

        by_chance = [energy(torch.randperm(2 * n, generator=shuffle, device="cpu")[:n]) for _ in range(SHUFFLES)]
        found = energy(torch.arange(n, device="cpu")) - 2 * float(torch.tensor(by_chance, device="cpu").std())
        return max(found, 0.0) if math.isfinite(found) else math.nan

    def noised(self, place: Place) -> Tensor:
        """Data of the teacher, noised to the place of each row."""
        x0 = self.flow[: self.n].to(self.start)
        eps = torch.randn(x0.shape, generator=self.stream(Use.EDITING), dtype=torch.float64, device="cpu").to(x0)
        noised: Tensor = place.at.alpha * x0 + place.at.sigma * eps
        return noised

    @torch.no_grad()
    def ask(self) -> None:
        """Asks map and teacher where the flow begins and where it ends, so that a fault is raised once."""
        for model in (self.teacher, self.model):
            dtype, device = home(model)
            x = self.start[: self.n].to(device, dtype)
            with Evaluation(model):
                for at in model.levels([self.sde.t_max, self.sde.t_min]):
                    model.predict(x, at, **self.given.whole)

    @torch.no_grad()
    def moved(self) -> float:
        """How far the map carries what it is to leave where it is, relative to the largest state."""
        u, _ = pairs(self.n, *angles(self.sde, self.model.data_std), self.stream())
        at = Place.of(self.model, u, self.start[: self.n])
        x = self.noised(at)
        with Evaluation(self.model):
            moved = self.model.jump(x, at.at, at.at, **self.given.whole) - x
        return float(moved.abs().max() / x.abs().max())

    @torch.no_grad()
    def defect(self) -> float:
        """How far two jumps lead from where one does, in states of unit variance, root mean square."""
        u, s = pairs(self.n, *angles(self.sde, self.model.data_std), drawn := self.stream())
        w = torch.rand(self.n, generator=drawn, dtype=torch.float64, device="cpu")
        a, b, c = (Place.of(self.model, v, self.start[: self.n]) for v in (u, s + (u - s) * w, s))
        x, cond = self.noised(a), self.given.whole
        with Evaluation(self.model):
            once = self.model.jump(x, a.at, c.at, **cond)
            twice = self.model.jump(self.model.jump(x, a.at, b.at, **cond), b.at, c.at, **cond)
        radius = torch.hypot(c.at.alpha * self.model.data_std, c.at.sigma)
        return float(((once - twice) / radius).double().square().mean().sqrt())
