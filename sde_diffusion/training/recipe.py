"""How a run of `train` goes, whatever the model and the objective: batches, optimiser, averages, transform."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_callable, check_count, check_positive
from sde_diffusion.denoiser.objectives.weights import name_of
from sde_diffusion.training._input import Transform
from sde_diffusion.training.ema import Decay, PowerDecay

OptimiserOf = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
Schedule = Callable[[int, int], float]

WARM_UP = 100
"""Steps over which the learning rate rises, or a tenth of the run if that is less."""
RATE, PASSES, LEAST = 2e-3, 300, 0.25
"""The highest learning rate if none is given, the passes over the rows from which it is less, and how much at least."""
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Then:
    """One transform after another.

    Args:
        first, second: The transforms.
    """

    first: Transform
    second: Transform

    def __call__(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """What the second makes of what the first does."""
        return self.second(self.first(rows, generator), generator)


def adamw(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """AdamW with betas (0.9, 0.99)."""
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99))


def warm_cosine(i: int, steps: int) -> float:
    r"""Factor on the rate at step $i = 0, \dots, N - 1$: a rise over $w$ = 100 steps, or N/10 if that is less, and a
    cosine to zero.

    $$ \min\Big(1, \frac{i + 1}{w}\Big) \cdot \cos^2\frac{\pi i}{2N} $$
    """
    rise = max(1, min(WARM_UP, steps // 10))
    return min(1.0, (i + 1) / rise) * math.cos(0.5 * math.pi * i / steps) ** 2


@dataclass(frozen=True, repr=False)
class Recipe:
    """What belongs to a run of `train`, whatever the model and the objective.

    Args:
        batch_size: Samples per step, of all processes and micro-batches together; it may exceed the number of samples.
        lr: The highest learning rate; by default 2e-3, and less where every row is seen more than 300 times, in
            proportion, down to 5e-4 at 1200 times: a small table is learnt by heart more slowly then, and better.
        averages: The decay of the weight average, `PowerDecay()` or `ConstantDecay()`, or several decays: the first is
            that of the model which `train` returns, the others come beside it.
        transform: Called as `transform(rows, generator)` on the rows of every batch, at most 32,768 numbers at once:
            fresh dequantisation, augmentation. With it, the data may hold anything, integers for instance, so long as
            its results are as asked of the data.
        optimiser: Called as `optimiser(parameters, lr)`, it answers a `torch.optim.Optimizer` for a list of parameters.
        schedule: Called as `schedule(i, steps)` before step `i = 0, ..., steps - 1`, it answers the factor on the rate.
        clip: The largest norm of the gradient, all parameters together; `math.inf` for any.
        accumulate: Micro-batches per step, each of an equal share of the batch: less memory, the same gradient.
        precision: `"no"`, or `"bf16"` or `"fp16"` for mixed precision; the weights and their averages stay as they are.

    Raises:
        TypeError: A `batch_size` or `accumulate` that is no integer, an `lr` or `clip` that is no number; averages, a
            transform, an optimiser or a schedule that is no function.
        ValueError: A number that is not positive, an `lr` that is not finite, no average, another precision.

    Example:
        >>> Recipe(256, 1e-3, optimiser=lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9))
        >>> Recipe(schedule=lambda i, steps: 1.0, averages=(PowerDecay(0.05), PowerDecay(0.1)))
    """

    batch_size: int = 128
    lr: float | None = None
    averages: Decay | Sequence[Decay] = field(default_factory=PowerDecay)
    transform: Transform | None = None
    optimiser: OptimiserOf = adamw
    schedule: Schedule = warm_cosine
    clip: float = 1.0
    accumulate: int = 1
    precision: str = "no"

    def __post_init__(self) -> None:
        check_count(self.batch_size, "batch_size")
        if self.lr is not None:
            check_positive(self.lr, "lr")
        if not self.decays:
            raise ValueError("averages is empty: wanted a decay, such as PowerDecay(), or several")
        for decay in self.decays:
            check_callable(decay, "averages", "a function of the step, such as PowerDecay() or ConstantDecay(0.999)")
        if self.transform is not None:
            check_callable(self.transform, "transform", "a function (batch, generator) -> batch")
        check_callable(self.optimiser, "optimiser", "a function (parameters, lr) -> torch.optim.Optimizer")
        check_callable(self.schedule, "schedule", "a function (i, steps) -> factor on lr")
        if self.clip != math.inf:
            check_positive(self.clip, "clip")
        check_count(self.accumulate, "accumulate")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {self.precision!r}")

    @property
    def decays(self) -> tuple[Decay, ...]:
        """The decay of each average."""
        return tuple(self.averages) if isinstance(self.averages, Sequence) else (self.averages,)

    def after(self, first: Transform | None) -> Recipe:
        """This recipe, with a transform of the data before its own.

        Args:
            first: That of a source; None for this recipe as it is.
        """
        if first is None:
            return self
        return replace(self, transform=first if self.transform is None else Then(first, self.transform))

    def of_run(self, steps: int, rows: int | None) -> Recipe:
        """This recipe with a learning rate, where it has none.

        Args:
            steps: The steps of the run.
            rows: The rows of the data; None for a stream.
        """
        if self.lr is not None:
            return self
        passes = 0.0 if rows is None else steps * self.batch_size / rows
        return replace(self, lr=float(f"{RATE * max(LEAST, min(1.0, PASSES / max(passes, 1.0))):.2g}"))

    def __repr__(self) -> str:
        return f"Recipe({', '.join(f'{name}={value}' for name, value in self.words(default=False).items())})"

    def words(self, *, default: bool = True) -> dict[str, str]:
        """Each field as it is written, functions by their name.

        Args:
            default: Whether those are among them that are as they are by default, besides the batch size.
        """
        return {
            f.name: _said(value)
            for f in fields(self)
            if (value := getattr(self, f.name)) != getattr(_USUAL, f.name) or default or f.name == "batch_size"
        }


def _said(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_said, value))}{',' * (len(value) == 1)})"
    return name_of(value) if callable(value) else repr(value)


_USUAL = Recipe()
