"""The demonstration's guided digits, and those of which the left half is given: figures, and images for a picture."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.demo.table import HEADLINE, SDE, Bench, Row, Trial
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.guidance.classifier_free import Guided
from sde_diffusion.guidance.posterior.images import Mask
from sde_diffusion.guidance.posterior.posterior import Posterior
from sde_diffusion.guidance.posterior.rules import DPS
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.sde import grids
from sde_diffusion.solvers import SDEDPMSolverPP

W = 2.0
"""The scale of guidance."""
NOISE = 0.05
"""The noise of what is given, in standard deviations of the pixels."""
STEPS = 30
SHOWN = 2
"""Rows of the picture for each scale, and of halves that are filled in."""


@dataclass(frozen=True)
class Guidance:
    """What guidance and a given half make of the digits.

    Attributes:
        w: The scale of guidance.
        n: Samples without it and with it, of the same seeds and steps.
        plain: The share recognised as the class asked for, without it.
        recognised: The same with it.
        frechet_plain: Frechet distance to the test images, without it.
        frechet: The same with it.
        halves: Test images of which the left half was given, and no class.
        filled: The share of them, filled in, recognised as the class of the image.
        noise: The noise that the given half has for the model, in standard deviations of the pixels.
        kept: How far the left half is from the one given, root mean square, in the same unit.
        seconds: Wall time.
    """

    w: float
    n: int
    plain: float
    recognised: float
    frechet_plain: float
    frechet: float
    halves: int
    filled: float
    noise: float
    kept: float
    seconds: float

    def lines(self) -> list[str]:
        """Tells the figures in words."""
        return [
            f"guidance {self.w:g}: {self.recognised:.1%} of {self.n} recognised, Frechet distance {self.frechet:.2f}; "
            f"without: {self.plain:.1%}, {self.frechet_plain:.2f}",
            f"left half given, no class: {self.filled:.1%} of {self.halves} test images, filled in, recognised as what "
            f"they are; the left half is off by {self.kept:.2g} sd, noise {self.noise:g}",
        ]


class Found(NamedTuple):
    """The figures, and the bands of the picture by what they are called, each `(rows, 10, H, W)`."""

    figures: Guidance
    bands: dict[str, Tensor]


def guide(bench: Bench, model: Denoiser, plain: Row, *, halves: int, seed: int) -> Found:
    """Draws guided digits, and fills in test images of which the left half is given.

    Args:
        bench: The data and the judge.
        model: The network, trained with its label left out at times.
        plain: The row of the headline solver without guidance.
        halves: How many test images are filled in, the first of each class among them; at least 10.
        seed: `k` gives sample `i` the stream `k + i`.
    """
    start = time.perf_counter()
    trial = Trial(HEADLINE, 2 * plain.nfe)  # two evaluations in each of as many steps
    row, _ = bench.draw(Guided(model, W), trial, bench.test.labels[: plain.n], seed)
    real, labels = _one_of_each_first(bench, halves)
    filled, off = fill(bench, model, real, seed)
    again, _ = fill(bench, model, real[:10], seed + halves)
    figures = Guidance(
        W,
        plain.n,
        plain.accuracy,
        row.accuracy,
        plain.frechet,
        row.frechet,
        halves,
        bench.judge.accuracy(filled, labels),
        NOISE,
        float(off.square().mean().sqrt()),
        round(time.perf_counter() - start, 1),
    )
    each = torch.arange(10).repeat(SHOWN)
    drawn = {w: bench.draw(Guided(model, w), replace(trial, nfe=int(w) * plain.nfe), each, seed)[1] for w in (1.0, W)}
    bands = {"no guidance": drawn[1.0], f"guidance {W:g}": drawn[W]}
    given = torch.where(left_half(real), real[:10], 0.0)
    bands |= {"left half\ngiven": given, "filled in": torch.cat([filled[:10], again]), "real": real[:10]}
    return Found(figures, {name: x.reshape(-1, 10, *x.shape[2:]) for name, x in bands.items()})


def fill(bench: Bench, model: Denoiser, real: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Fills in images in `[-1, 1]` by their left halves; also how far off these are, in standard deviations."""
    posterior = Posterior(model, Mask(left_half(real)), NOISE, DPS())
    y = posterior.measurement((real - bench.mean) / bench.std)
    sampler = SDESampler(SDE, posterior, solver=SDEDPMSolverPP(2), steps=STEPS, grid=grids.angle)
    z = sampler.sample(len(real), seed=seed, y=y)
    return z * bench.std + bench.mean, posterior.measurement(z) - y


def left_half(images: Tensor) -> Tensor:
    """A mask of the left half of an image."""
    columns = torch.arange(images.shape[-1]) < images.shape[-1] // 2
    return columns.expand(images.shape[1:])


def _one_of_each_first(bench: Bench, n: int) -> tuple[Tensor, Tensor]:
    """`n` test images and their labels, the first image of each class in front."""
    labels = bench.test.labels
    first = torch.stack([(labels == k).nonzero()[0, 0] for k in range(10)])
    others = torch.arange(len(labels))
    rows = torch.cat([first, others[~torch.isin(others, first)]])[:n]
    return bench.test.images[rows], labels[rows]
