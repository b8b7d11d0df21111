"""Steps of `train` beside those of a loop of one's own, in turns within one run.

The loop is what a user would write: batches of a shuffled epoch, `model.loss`, the gradient clipped, AdamW with a
cosine, an average of the weights. `train` asks its schedule for the learning rate once in every step: there, after
so many steps, the other loop has its turn of as many, so that whatever else runs on the machine meets both alike.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion import EDMSDE, Network, data, predict
from sde_diffusion.nets import MLP, UNet
from sde_diffusion.training import Recipe, Saving, train
from sde_diffusion.training.recipe import warm_cosine

SEED = 0


@dataclass(frozen=True)
class Case:
    """A network and its data.

    Attributes:
        make: The model, of new weights.
        x: Data.
        cond: Conditions of the data.
        batch_size: Rows of a step.
        block: Steps of a turn.
        every: Steps from one saving of the run to the next; None to keep it nowhere.
    """

    make: Callable[[], Network]
    x: Tensor
    cond: dict[str, Tensor]
    batch_size: int
    block: int
    every: int | None = None


def digits(**options: Any) -> Case:
    """The U-Net of the demonstration."""
    train_set = data.digits("train", seed=SEED)
    x = (train_set.images - train_set.images.mean()) / train_set.images.std()

    def make() -> Network:
        return Network(UNet(1, classes=10), EDMSDE(0.005, 20.0), predict.edm, shape=(1, 8, 8))

    return Case(make, x, {"label": train_set.labels}, 128, 1, **options)


def plane(batch_size: int, **options: Any) -> Case:
    """Two moons, and the MLP that vectors get by default."""
    x = data.moons(8192, seed=SEED)
    z = (x - x.mean(0)) / x.std(0)
    return Case(lambda: Network(MLP(2), EDMSDE(), predict.edm, shape=(2,)), z, {}, batch_size, 5, **options)


CASES: dict[str, Callable[[], Case]] = {
    "digits, U-Net, batch 128": digits,
    "digits, saved every 30 steps": partial(digits, every=30),
    "moons, MLP, batch 128": partial(plane, 128),
    "moons, MLP, batch 1024": partial(plane, 1024),
    "moons, batch 1024, saved every 250 steps": partial(plane, 1024, every=250),
}


def bare(model: Network, case: Case, steps: int) -> Iterator[float]:
    """The loop of one's own; answers the loss of each step."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: warm_cosine(i, steps))
    average = copy.deepcopy(model)
    order = torch.empty(0, dtype=torch.long)
    for i in range(1, steps + 1):
        if len(order) < case.batch_size:
            order = torch.cat([order, torch.randperm(len(case.x))])
        rows, order = order[: case.batch_size], order[case.batch_size :]
        loss = model.loss(case.x[rows], **{name: value[rows] for name, value in case.cond.items()})
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        b = (1 - 1 / i) ** 7.94
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - b)
        yield loss.item()


@dataclass
class Turns:
    """A schedule that lets another loop have its turns, and keeps the times of both, in seconds of the processor."""

    other: Iterator[float]
    block: int
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    wall: list[tuple[float, float]] = field(default_factory=list)
    _since: tuple[float, float] = (0.0, 0.0)  # when our turn began

    def __call__(self, i: int, steps: int) -> float:
        if i % self.block == 0:
            now = _clocks()
            if i:
                self.ours.append(now[0] - self._since[0])
            mine = now[1] - self._since[1] if i else 0.0
            for _ in range(self.block):
                next(self.other)
            self._since = _clocks()
            if i:
                self.theirs.append(self._since[0] - now[0])
                self.wall.append((mine, self._since[1] - now[1]))
        return warm_cosine(i, steps)


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def measure(case: Case, turns: int) -> dict[str, Any]:
    """Ratios of the speed of `train` to that of the other loop: the median and quartiles of the turns, and in all."""
    torch.manual_seed(SEED)
    steps = case.block * (turns + 1) + 1
    hook = Turns(bare(case.make().train(), case, steps + case.block), case.block)
    recipe = Recipe(case.batch_size, schedule=hook)
    with tempfile.TemporaryDirectory() as folder:
        out = None if case.every is None else Saving(Path(folder) / "run", every=case.every)
        train(case.make(), case.x, steps=steps, recipe=recipe, out=out, seed=SEED, cond=case.cond)
    ratios = sorted(theirs / ours for ours, theirs in zip(hook.ours, hook.theirs, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "median": middle,
        "quartiles": [low, high],
        "total": sum(hook.theirs) / sum(hook.ours),
        "wall_total": sum(w[1] for w in hook.wall) / sum(w[0] for w in hook.wall),
        "ms_per_step": 1e3 * sum(hook.ours) / (case.block * len(hook.ours)),
        "turns": turns,
        "block": case.block,
    }
