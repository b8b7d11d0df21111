"""The demonstration's flow map: the network distilled to draw in one call, in two and in four; figures and images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.demo.table import HEADLINE, SDE, Bench, Row, Trial
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.distillation.distilling import distill, recipe
from sde_diffusion.sampler.sampler import SDESampler

CALLS = (1, 2, 4)
"""Evaluations per sample that the map is measured at."""
BATCH = 128
SHOWN = 2
"""Rows of the picture for each number of calls."""


@dataclass(frozen=True)
class Distillation:
    """What a map of the network reaches in few calls.

    Attributes:
        rows: A line of the table for each number of calls, the fewest first.
        teacher: That of the headline solver on the network.
        steps: Training steps of the map.
        seconds: Wall time of the training.
    """

    rows: tuple[Row, ...]
    teacher: Row
    steps: int
    seconds: float

    @property
    def ratio(self) -> float:
        """Frechet distance in one call over that of the teacher."""
        return self.rows[0].frechet / self.teacher.frechet

    def line(self) -> str:
        """Tells the figures in words."""
        one, teacher = self.rows[0], self.teacher
        return (
            f"one call: Frechet distance {one.frechet:.2f}, {self.ratio:.2f} times the {teacher.frechet:.2f} of the "
            f"network in {teacher.nfe}; {one.accuracy:.1%} recognised"
        )


class Found(NamedTuple):
    """The map, the figures, and the bands of the picture by what they are called, each `(rows, 10, H, W)`."""

    fast: Denoiser
    figures: Distillation
    bands: dict[str, Tensor]


def few_calls(bench: Bench, model: Denoiser, teacher: Row, *, steps: int, seed: int) -> Found:
    """Distils the network, measures the map on the classes of the test images, and draws digits by both, of one noise.

    Args:
        bench: The data and the judge.
        model: The network.
        teacher: The row of the headline solver with the others' budget and number of samples.
        steps: Training steps.
        seed: The seed of the training; `k` gives sample `i` the stream `k + i`.
    """
    start = time.perf_counter()
    fast = _distilled(bench, model, steps, seed)
    seconds = round(time.perf_counter() - start, 1)
    labels, each = bench.test.labels[: teacher.n], torch.arange(10).repeat(SHOWN)
    rows, bands = list[Row](), dict[str, Tensor]()
    for nfe in CALLS:
        sampler, name = SDESampler(SDE, fast, nfe=nfe), f"SDESampler(SDE, fast, nfe={nfe})"
        rows.append(bench.measure(sampler, name, "own", labels, seed)[0])
        bands[f"{nfe} call" + "s" * (nfe > 1)] = bench.measure(sampler, name, "own", each, seed)[1]
    bands[f"network,\n{teacher.nfe} calls"] = bench.draw(model, Trial(HEADLINE, teacher.nfe), each, seed)[1]
    figures = Distillation(tuple(rows), teacher, steps, seconds)
    return Found(fast, figures, {name: x.reshape(-1, 10, *x.shape[2:]) for name, x in bands.items()})


def _distilled(bench: Bench, model: Denoiser, steps: int, seed: int) -> Denoiser:
    """The averaged map, with the initial weights of a seed."""
    how = recipe(BATCH, transform=bench.fresh)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        done = distill(model, bench.levels, label=bench.labels, steps=steps, recipe=how, seed=seed, progress=True)
    return done.model.requires_grad_(False)
