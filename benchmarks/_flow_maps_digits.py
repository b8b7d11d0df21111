"""Flow maps of a network of the digits, with classes: trained by it, and held against it and against the test digits.

The process, the digits and the classifier that judges are those of the demonstration. Distances are sliced Wasserstein
in standard deviations of the data; there are as many samples as training digits, with their labels.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from _flow_maps_objectives import Lesson, Way
from torch import Tensor

from sde_diffusion import FlowMap, Network, SDESampler, metrics, predict
from sde_diffusion.demo.table import SDE, Bench
from sde_diffusion.nets import MLP
from sde_diffusion.training import Recipe, load_checkpoint, train
from sde_diffusion.tuning import tune

CHECKPOINT = Path(__file__).resolve().parents[1] / "demo" / "checkpoint"
"""What `make demo` leaves."""
TEACHER = {False: 35, True: 21}
"""Evaluations of the teacher, by the default sampler: of the MLP, and of the U-Net."""
FEW = (2, 3, 4, 5, 6, 8)
"""Those of the samplers that need no training."""


@dataclass
class Digits:
    """The digits and a teacher, trained when it is first asked for.

    Args:
        seed: The seed of the teacher.
        steps: Its training steps.
        images: Whether it is the U-Net of the demonstration, as `make demo` keeps it, rather than an MLP.
    """

    seed: int
    steps: int
    images: bool = False
    seconds: float = field(default=0.0, init=False)

    @cached_property
    def bench(self) -> Bench:
        """Data and judge, the same for all seeds."""
        return Bench.prepare(seed=0, steps=400)

    def fresh(self, levels: Tensor, generator: torch.Generator) -> Tensor:
        """Grey levels as data of the network."""
        x = self.bench.fresh(levels, generator)
        return x if self.images else x.flatten(1)

    @cached_property
    def teacher(self) -> Network:
        """The network."""
        if self.images:
            model = load_checkpoint(CHECKPOINT).model
            assert isinstance(model, Network)
            return model
        before = time.process_time()
        torch.manual_seed(self.seed)
        fresh = Network(MLP(64, hidden=256, classes=10, label_drop=0.0), SDE, predict.edm, shape=(64,))
        recipe, label = Recipe(256, 2e-3, transform=self.fresh), self.bench.labels
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "column")  # the pixels are of unit scale together only
            run = train(fresh, self.bench.levels, steps=self.steps, recipe=recipe, seed=self.seed, label=label)
        self.seconds = time.process_time() - before
        assert isinstance(run.model, Network)
        return run.model

    def sample(self, sampler: SDESampler, seed: int = 0) -> Tensor:
        """Images in [-1, 1], a class after the other as in the training digits."""
        labels = self.bench.labels
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few evaluations are what this is about
            x = sampler.sample(len(labels), seed=seed * len(labels), label=labels)
        return x.reshape(-1, 1, 8, 8) * self.bench.std + self.bench.mean

    @cached_property
    def wanted(self) -> Tensor:
        """Samples of the teacher."""
        return self.sample(SDESampler(SDE, self.teacher, nfe=TEACHER[self.images]))

    def far(self, x: Tensor) -> dict[str, float]:
        """How far images are from the test digits, and from the teacher's of the same noise; how many are right."""
        judge, test, std = self.bench.judge, self.bench.test.images, self.bench.std
        return {
            "test": metrics.sliced_wasserstein(x, test) / std,
            "teacher": metrics.sliced_wasserstein(x, self.wanted) / std,
            "rms": float((x - self.wanted).square().mean().sqrt()) / std,
            "frechet": metrics.frechet_distance(judge.features(x).detach(), judge.features(test).detach()),
            "right": judge.accuracy(x, self.bench.labels),
        }

    def trained(self, way: Way, steps: int, seed: int) -> dict[str, Any]:
        """A map trained in one way."""
        teacher, label = self.teacher, {"label": self.bench.labels}
        before = time.process_time()
        lesson = Lesson(teacher, self.bench.levels, steps, seed, 1e-3, self.fresh, label, 128 if self.images else 256)
        fast = way.run(FlowMap.from_teacher(teacher), lesson)
        seconds = time.process_time() - before
        row: dict[str, Any] = {"method": way.name, "seed": seed, "steps": steps, "seconds": seconds}
        return row | {"calls": {str(k): self.far(self.sample(SDESampler(SDE, fast, nfe=k))) for k in way.calls}}

    def rivals(self) -> list[dict[str, Any]]:
        """The teacher itself, by the default sampler and the tuned one; and other noise, and the training digits."""
        most, batch = TEACHER[self.images], 64 if self.images else 256
        given: dict[str, Any] = {"conditions": {"label": torch.arange(batch) % 10}, "refine": not self.images}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned = tune(SDE, self.teacher, FEW, batch=batch, seed=0, **given)
            default = {k: self.sample(SDESampler(SDE, self.teacher, nfe=k)) for k in FEW}
        other = {most: self.sample(SDESampler(SDE, self.teacher, nfe=most), seed=1)}
        made = {
            "teacher": {most: self.wanted},
            "teacher, other noise": other,
            "default": default,
            "tuned": {k: self.sample(tuned.sampler(k)) for k in FEW},
            "training digits": {0: self.bench.real},
        }
        far = {method: {str(k): self.far(x) for k, x in found.items()} for method, found in made.items()}
        return [{"method": method, "seed": self.seed, "calls": calls} for method, calls in far.items()]
