"""The demonstration's table: which solvers it measures on the digits, and how.

Quality is measured on images in `[-1, 1]`, against the test images: Frechet distance in the features of a classifier
that the run trains, sliced Wasserstein distance of the pixels, and the fraction of class-conditional samples which the
classifier takes for the class asked for.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from sde_diffusion import data, metrics
from sde_diffusion.demo.classifier import DigitsClassifier, train_classifier
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.likelihood.bits import bits_per_dim
from sde_diffusion.likelihood.exact import Method
from sde_diffusion.likelihood.result import LogProb
from sde_diffusion.sampler.forecast import SamplingWarning
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.sde import grids
from sde_diffusion.sde.schedules import EDMSDE
from sde_diffusion.solvers import (
    DDIM,
    IPNDM,
    RK4,
    Adams,
    Angle,
    Churn,
    DormandPrince,
    DPMSolver,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Heun,
    Langevin,
    Midpoint,
    PredictorCorrector,
    SASolver,
    SDEDPMSolverPP,
    Solver,
    Torchdiffeq,
    Torchsde,
    UniPC,
    annealed_langevin,
)
from sde_diffusion.tuning.tuned import Tuned
from sde_diffusion.tuning.tuner import tune

SDE = EDMSDE(sigma_min=0.005, sigma_max=20.0)
"""The process, on data of standard deviation 1."""
HEADLINE = DPMSolverPP(order=2)
"""The solver whose samples are drawn and held to the bars."""
BUDGET = 21  # evaluations of a solver of the table, unless it needs more
TUNED = (5, 8, 12)
"""Evaluations per sample that a sampler is tuned for; beside it the headline solver and the default are measured."""


@dataclass(frozen=True)
class Trial:
    """A solver to be measured.

    Args:
        solver: The solver.
        nfe: Evaluations per sample at most; None for a solver that makes its own steps.
        grid: Where its steps lie.
        curve: Whether it is drawn over several budgets.
    """

    solver: Solver
    nfe: int | None = BUDGET
    grid: grids.Grid = grids.angle
    curve: bool = False

    def sampler(self, model: Denoiser) -> SDESampler:
        """The solver with its budget and its grid, or with steps of its own."""
        steps = 1 if self.nfe is None else None
        return SDESampler(SDE, model, solver=self.solver, nfe=self.nfe, steps=steps, grid=self.grid)


def trials(effort: float = 1.0) -> list[Trial]:
    """Lists the solvers of the table; those that need many evaluations get `effort` times as many."""

    def many(nfe: int) -> int:
        return max(11, round(effort * nfe))

    steps = max(4, round(effort * 30))
    return [
        Trial(HEADLINE, curve=True),
        Trial(DPMSolverPP(order=1)),
        Trial(DDIM(eta=0.0), curve=True),
        Trial(DDIM(eta=1.0), curve=True),
        Trial(DPMSolver(order=3)),
        Trial(UniPC(order=3), curve=True),
        Trial(Adams(order=2, quantity="angle")),
        Trial(IPNDM(order=3)),
        Trial(SDEDPMSolverPP(order=2)),
        Trial(SASolver(2, 2)),
        Trial(Euler(), grid=grids.karras),
        Trial(Midpoint(), grid=grids.karras),
        Trial(Heun(), grid=grids.karras, curve=True),
        Trial(RK4(), grid=grids.karras),
        Trial(Angle(Heun())),
        Trial(Angle(RK4()), curve=True),
        Trial(Churn(Heun(), gamma=0.2), many(41), grids.karras),
        Trial(EulerMaruyama(), many(61), grids.karras),
        Trial(PredictorCorrector(DDIM(eta=1.0), Langevin(1, snr=0.16)), many(61)),
        Trial(annealed_langevin(2, epsilon=9e-6, sigma_min=SDE.sigma_min), max(61, many(101))),
        Trial(Angle(DormandPrince(rtol=1e-3, atol=1e-3)), None),
        Trial(Angle(Torchdiffeq("dopri5", rtol=1e-3, atol=1e-3)), None),
        Trial(Angle(Torchsde("srk", n=steps)), None),
    ]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: The solver, as Python; or which real images.
        grid: The grid its steps lie on.
        nfe: Network evaluations per sample.
        n: Samples.
        frechet: Frechet distance to the test images; no unit. It depends on `n` and on the classifier.
        sliced: Sliced Wasserstein distance to the test images, in units of `[-1, 1]`.
        accuracy: Fraction taken by the classifier for the class asked for.
        seconds: Wall time.
    """

    name: str
    grid: str
    nfe: int
    n: int
    frechet: float
    sliced: float
    accuracy: float
    seconds: float

    def __str__(self) -> str:
        nfe = f"{self.nfe:5d}" if self.nfe else "    -"
        return (
            f"{self.name:<50} {self.grid:<7}{nfe} {self.n:5d} {self.frechet:8.2f} {self.sliced:7.4f} "
            f"{100 * self.accuracy:6.1f}% {self.seconds:6.1f}"
        )


HEADER = f"{'solver':<50} {'grid':<7}{'NFE':>5} {'n':>5} {'Frechet':>8} {'sliced':>7} {'right':>7} {'s':>6}"
LEGEND = (
    "NFE: network evaluations per sample. Frechet, sliced Wasserstein: distance to the test images, less is better;",
    "Frechet depends on n. right: samples recognised as the class asked for; on real lines, test images recognised.",
    "tuned: fitted to this network, see `sde-diffusion tune`; its grid is its own.",
    "PredictorCorrector(Hold(), Langevin(...)) is annealed Langevin dynamics; DPMSolverPP(order=1) is DDIM().",
)


@dataclass(frozen=True)
class Likelihood:
    """The log-likelihood of dequantised test images, without their labels.

    Attributes:
        images: How many.
        nats: Mean log-density on `[-1, 1]`, in nats per image.
        nats_error: Its standard error over the images.
        bits_per_dim: Mean cost in bits per pixel.
        bits_error: Its standard error.
        bin_width: The width of one of the 17 grey levels.
        steps: Steps of `RK4` in the angle.
        nfe: Network evaluations per image, not counting the backward passes of the divergence.
    """

    images: int
    nats: float
    nats_error: float
    bits_per_dim: float
    bits_error: float
    bin_width: float
    steps: int
    nfe: int

    def lines(self) -> list[str]:
        """Tells the figures in words."""
        return [
            f"{self.nats:.2f} nats an image (log-density on [-1, 1]), standard error {self.nats_error:.2f}",
            f"{self.bits_per_dim:.3f} bits/dim, standard error {self.bits_error:.3f}: 17 grey levels, uniform",
            f"dequantisation, bin width 2/17 on [-1, 1]; label not given; RK4, {self.steps} steps, exact divergence",
        ]


@dataclass(frozen=True)
class Bench:
    """The digits, standardised and not, and the classifier that judges samples.

    Attributes:
        levels: Grey levels of the training images, shape `(1437, 1, 8, 8)`.
        labels: Their classes.
        real: The training images, dequantised, in `[-1, 1]`.
        test: The test images, dequantised.
        mean: Mean of the training pixels.
        std: Their standard deviation, dequantisation included.
        judge: The classifier.
    """

    levels: Tensor
    labels: Tensor
    real: Tensor
    test: data.Digits
    mean: float
    std: float
    judge: DigitsClassifier

    @classmethod
    def prepare(cls, *, seed: int, steps: int) -> Bench:
        """Reads the data and trains the classifier for some steps."""
        centres = data.digits("train", dequantise=False)
        levels = data.quantise(centres.images)
        real = data.dequantise(levels, seed=seed)
        judge = train_classifier(real, centres.labels, seed=seed, steps=steps)
        std = math.hypot(centres.std, data.BIN_WIDTH / math.sqrt(12))
        test = data.digits("test", seed=seed + 1)
        return cls(levels, centres.labels, real, test, centres.mean, std, judge.requires_grad_(False))

    def fresh(self, levels: Tensor, generator: torch.Generator) -> Tensor:
        """Turns grey levels into standardised data with fresh dequantisation noise: the transform of the training."""
        return (data.dequantise(levels, seed=generator) - self.mean) / self.std

    def floor(self, n: int) -> Row:
        """Measures `n` real training images; for accuracy, what the classifier reaches on the test images.

        All of them, or as many of each class as the first `n` test images have.
        """
        x = self.real
        if n < len(x):
            share = torch.bincount(self.test.labels[:n], minlength=10).tolist()
            rows = [(self.labels == k).nonzero()[:count, 0] for k, count in enumerate(share)]
            x = x[torch.cat(rows)]
        return replace(
            self.row("real training images", "", 0, x, self.labels[: len(x)], 0.0),
            accuracy=self.judge.accuracy(self.test.images, self.test.labels),
        )

    def row(self, name: str, grid: str, nfe: int, x: Tensor, labels: Tensor, seconds: float) -> Row:
        """Measures images in `[-1, 1]` against the test images, as a row of the table."""
        frechet = metrics.frechet_distance(self.judge.features(x), self.judge.features(self.test.images))
        sliced = metrics.sliced_wasserstein(x, self.test.images)
        return Row(name, grid, nfe, len(x), frechet, sliced, self.judge.accuracy(x, labels), seconds)

    def draw(self, model: Denoiser, trial: Trial, labels: Tensor, seed: int) -> tuple[Row, Tensor]:
        """Draws with a solver, from streams `seed, seed + 1, ...`; returns its row and the images in `[-1, 1]`."""
        grid = trial.grid.__name__ if trial.nfe else "own"
        return self.measure(trial.sampler(model), concise(trial.solver), grid, labels, seed)

    def measure(self, sampler: SDESampler, name: str, grid: str, labels: Tensor, seed: int) -> tuple[Row, Tensor]:
        """Draws with a sampler that has a name, on a grid that has one; returns what `draw` does."""
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)  # few evaluations are what the table is about
            solve = sampler.iterate(len(labels), seed=seed, label=labels)
        (last,) = deque(solve, maxlen=1)
        seconds = time.perf_counter() - start
        x = last.x * self.std + self.mean
        return self.row(name, grid, last.nfe, x, labels, seconds), x

    def tune(self, model: Denoiser, *, batch: int, refine: bool, seed: int) -> Tuned:
        """Tunes for the budgets of the table, on labels evenly over the classes, with a progress bar."""
        cond = {"label": torch.arange(batch) % 10}
        return tune(SDE, model, TUNED, conditions=cond, batch=batch, seed=seed, refine=refine, progress=True)

    def likelihood(self, model: Denoiser, *, n: int, steps: int) -> Likelihood:
        """Evaluates the log-likelihood of the first `n` test images, with a progress bar."""
        sampler, dim = SDESampler(SDE, model), self.test.images[0].numel()
        method, parts = Method(steps=steps, solver_error=False), list[LogProb]()
        with tqdm(total=n, desc="likelihood", unit="image") as bar:
            for images in self.test.images[:n].split(12):
                parts.append(sampler.log_prob((images - self.mean) / self.std, method=method))
                bar.update(len(images))
        # density of the images themselves, not of the standardised ones
        nats = torch.cat([part.value for part in parts]).double() - dim * math.log(self.std)
        bits = bits_per_dim(nats, dim, bin_width=data.BIN_WIDTH)
        errors = (float(v.std()) / math.sqrt(n) for v in (nats, bits))
        return Likelihood(
            n, float(nats.mean()), next(errors), float(bits.mean()), next(errors), data.BIN_WIDTH, steps, parts[0].nfe
        )


def concise(solver: object) -> str:
    """Writes the `repr` of a solver without fields at their default, floats to four digits: still Python, and short."""
    if isinstance(solver, float):
        return f"{solver:.4g}"
    if not is_dataclass(solver) or isinstance(solver, type):
        return repr(solver)
    given = [(f.name, f.default, getattr(solver, f.name)) for f in fields(solver)]
    parts = [
        concise(value) if default is MISSING else f"{name}={concise(value)}"
        for name, default, value in given
        if default is MISSING or value != default
    ]
    return f"{type(solver).__name__}({', '.join(parts)})"
