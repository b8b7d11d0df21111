"""How a run of `train` goes, whatever the model and the objective: batches, learning rate, average, transform."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sde_diffusion._checks import check_callable, check_count, check_positive
from sde_diffusion.training._input import Transform
from sde_diffusion.training.ema import Decay, PowerDecay

WARM_UP = 100
"""Steps over which the learning rate rises, or a tenth of the run if that is less."""


def learning_rate(i: int, steps: int, peak: float) -> float:
    r"""Rate at step $i = 0, \dots, N - 1$: a rise over $w$ = 100 steps, or N/10 if that is less, and a cosine to zero.

    $$ \mathrm{peak} \cdot \min\Big(1, \frac{i + 1}{w}\Big) \cdot \cos^2\frac{\pi i}{2N} $$
    """
    rise = max(1, min(WARM_UP, steps // 10))
    return peak * min(1.0, (i + 1) / rise) * math.cos(0.5 * math.pi * i / steps) ** 2


@dataclass(frozen=True)
class Recipe:
    """What belongs to a run of `train`, whatever the model and the objective.

    Args:
        batch_size: Samples per step; it may exceed the number of samples.
        lr: The highest learning rate.
        decay: The decay of the weight average: `PowerDecay()`, `ConstantDecay()`.
        transform: Called as `transform(batch, generator)` on every batch: fresh dequantisation, augmentation. With it,
            the data may hold anything, integers for instance, so long as its results are as asked of the data.

    Raises:
        TypeError: A `batch_size` that is no integer, an `lr` that is no number, a `decay` or `transform` that is no
            function.
        ValueError: A `batch_size` below 1, or an `lr` that is not positive and finite.
    """

    batch_size: int = 128
    lr: float = 2e-3
    decay: Decay = field(default_factory=PowerDecay)
    transform: Transform | None = None

    def __post_init__(self) -> None:
        check_count(self.batch_size, "batch_size")
        check_positive(self.lr, "lr")
        check_callable(self.decay, "decay", "a function of the step, such as PowerDecay() or ConstantDecay(0.999)")
        if self.transform is not None:
            check_callable(self.transform, "transform", "a function (batch, generator) -> batch")
