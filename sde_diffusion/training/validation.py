r"""What a model is worth on data kept out of its training: in nats, on fixed noise, level by level.

$$ -\log p(x_0) \le -\log\mathcal N(x_0; 0, c^2) + \int \mathrm E_\varepsilon\big[|\varepsilon - \hat\varepsilon|^2 -
   |\varepsilon - \hat\varepsilon_c|^2\big]\,d\lambda, \quad
   \hat\varepsilon_c = \frac{\sigma\,x_\lambda}{\alpha^2 c^2 + \sigma^2} $$

The integral runs over half the log-SNR; $\hat\varepsilon_c$ is what the exact model of $\mathcal N(0, c^2)$ answers,
with $c$ the standard deviation that the model expects of its data. Outside the levels that are measured the model
counts as that one.

A training loss cannot tell that a model learns its rows by heart: it falls all the while, and weighs least the levels
of little noise where that shows. This number does. Times and noise are the same at every call, so that two models
are compared on the same draws: their difference is known far better than either value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from sde_diffusion._checks import check_count
from sde_diffusion._tensors import rows as flat
from sde_diffusion.data.source import Source, source_of
from sde_diffusion.data.sources.rows import taken
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import PerSample
from sde_diffusion.training._input import Transform, dtype_of, placed, transformed
from sde_diffusion.training.losses import Objective, Tells
from sde_diffusion.training.stopping import GROUPS, Measured, standard_error
from sde_diffusion.training.trainable import Trainable

RANGE = (2e-3, 100.0)
r"""The noise levels that are measured, $\sigma/\alpha$ over the standard deviation of the data."""
LEVELS = 8
"""Into how many bands they are parted, of equal width in the log-SNR."""
STATES = 2048
"""How many states a validation has at least: rows by draws."""
AT_ONCE, NUMBERS = 1024, 2**20
"""At most so many states, and numbers in them, in one pass of the network."""
OF_A_MAP = 5
"""How often a flow map is measured in a run, if nothing is said: it ends no run early and chooses no weights."""
FIRST = 20
"""The step of the first validation, if nothing is said."""
SEED, GOLDEN = 20_210_704, 0.6180339887498949

_Pass = tuple[Tensor, dict[str, Any], Tensor, torch.Generator]


class Validation:
    """Data kept out of the training, on which `train(..., val=Validation(x))` measures the averaged model as it goes.

    It costs 2048 evaluations of the network, or one for each row if there are more, and a quarter of that for the
    objective of the training. Every row is used.

    Args:
        data: Rows in any form that `train` takes and that has a length: a tensor `(N, *)`, a data set.
        every: Steps from one validation to the next. By default a sixth of the steps so far, and at most a 25th of
            the run: early on models change fast, and of a small table the best is often among the first hundred. A
            `FlowMap`, whose validation decides nothing, is measured five times in a run.
        patience: After how many validations in a row that are clearly worse than the best a run ends, see
            `EarlyStopping`; None to go through in any case.
        draws: Noise levels for each row, spread evenly over the log-SNR; by default as many as make 2048 states.
        **cond: Conditions of the rows, as in `train`.

    Raises:
        TypeError: A stream, whose rows have no numbers; a number that is no integer.
        ValueError: No rows; a number below one.
    """

    def __init__(
        self,
        data: Any,
        *,
        every: int | None = None,
        patience: int | None = 10,
        draws: int | None = None,
        **cond: Any,
    ) -> None:
        source = source_of(data, cond)
        if not isinstance(source, Source):
            raise TypeError(
                f"a validation goes over the same rows again and again, and {type(data).__name__} is a stream: give a "
                "tensor, or a data set that has a length"
            )
        self.source = source
        self.every = None if every is None else check_count(every, "every")
        self.patience = None if patience is None else check_count(patience, "patience")
        self.draws = check_count(draws, "draws") if draws is not None else -(-STATES // len(source))

    def __repr__(self) -> str:
        numbers = f"every={self.every}, patience={self.patience}, draws={self.draws}"
        return f"Validation({len(self.source)} rows {self.source.shape}, {numbers})"

    def due(self, step: int, steps: int, *, of_map: bool = False) -> bool:
        """Whether there is a validation after a step of a run, counted from 1; after the last one always.

        Args:
            step: The step.
            steps: Those of the run.
            of_map: Whether a flow map is trained.
        """
        if step == steps:
            return True
        every = max(FIRST, -(-steps // OF_A_MAP)) if of_map and self.every is None else self.every
        return step % every == 0 if every is not None else step in _marks(steps)

    @torch.no_grad()
    def measure(
        self, model: Denoiser | Trainable, loss: Objective | None = None, *, transform: Transform | None = None
    ) -> Measured:
        """Measures a model, in the mode that it is in; an averaged one is in evaluation mode.

        Args:
            model: Any denoiser.
            loss: The objective of the training; `model.objective()` by default.
            transform: That of the training, where the rows are not yet as the model sees them.

        Raises:
            ValueError: Rows of another shape than the model works on.
        """
        if isinstance(model, Trainable):
            return self._objective(model, model.objective() if loss is None else loss, transform)
        loss, n, span = model.objective() if loss is None else loss, len(self.source), _span(model)
        shown: object = loss
        rows, bands = (torch.zeros(k, dtype=torch.float64, device="cpu") for k in (n, LEVELS))
        for x, cond, state, generator in self._passes(model, self.draws, transform):
            offset = 0.0
            if isinstance(shown, Tells):
                x, cond = shown.shown(x, cond, generator)  # noqa: PLW2901
                offset = shown.offset(x[0].numel())
            row, draw = state // self.draws, state % self.draws
            u = (row * GOLDEN % 1 + draw) / self.draws  # one in each of `draws` slices, elsewhere in every row
            gained = _against_gaussian(model, x, cond, span, u, generator) / self.draws
            rows.index_add_(0, row, gained + (_gaussian_nats(x, model.data_std) + offset) / self.draws)
            bands.index_add_(0, (u * LEVELS).long().clamp_max(LEVELS - 1), gained / n)
        sums = [float(rows[g::GROUPS].sum()) for g in range(min(GROUPS, n))]
        return Measured(
            nats=math.fsum(sums) / n,
            standard_error=standard_error(sums, n),
            loss=self._loss(model, loss, transform),
            levels=tuple(torch.linspace(-span[1], -span[0], LEVELS + 1, device="cpu").exp().tolist()),
            by_level=tuple(bands.tolist()),
            rows=n,
            groups=tuple(sums),
        )

    def _objective(self, model: Trainable, objective: Objective, transform: Transform | None) -> Measured:
        """The objective of what is no denoiser, row by row: its mean stands for the nats and for the loss."""
        n = len(self.source)
        rows = torch.zeros(n, dtype=torch.float64, device="cpu")
        for x, cond, state, generator in self._passes(cast(Denoiser, model), self.draws, transform):
            values = objective(model, x, generator=generator, reduction="none", **cond)
            rows.index_add_(0, state // self.draws, values.to("cpu", torch.float64) / self.draws)
        sums = [float(rows[g::GROUPS].sum()) for g in range(min(GROUPS, n))]
        mean = math.fsum(sums) / n
        return Measured(mean, standard_error(sums, n), mean, (), (), n, tuple(sums))

    def _loss(self, model: Denoiser, objective: Objective, transform: Transform | None) -> float:
        """The mean of the objective over the rows."""
        total = count = 0.0
        marked = getattr(objective, "marked", False)
        for x, cond, _, generator in self._passes(model, -(-self.draws // 4), transform):
            if marked:
                cond = {name: PerSample(value) for name, value in cond.items()}  # noqa: PLW2901
            total += len(x) * float(objective(model, x, generator=generator, **cond))
            count += len(x)
        return total / count

    def _passes(self, model: Denoiser, draws: int, transform: Transform | None) -> Iterator[_Pass]:
        """Every row, `draws` times, as many at once as fit, with the numbers of these states and a source of noise."""
        device, dtype, n = _device(model), dtype_of(model), len(self.source) * draws
        size = max(8, min(AT_ONCE, NUMBERS // max(1, math.prod(self.source.shape))))
        ends = [(i, min(i + size, n)) for i in range(0, n, size)]
        spans = (torch.arange(a // draws, (b - 1) // draws + 1, device="cpu") for a, b in ends)
        for i, ((a, b), batch) in enumerate(zip(ends, self.source.batches(spans), strict=True)):
            state = torch.arange(a, b, device="cpu")
            generator = torch.Generator("cpu").manual_seed(SEED + i)
            repeated = state // draws - a // draws
            x = batch.x[repeated]
            if transform is not None:
                x = transformed(transform, x, generator)
            cond = placed(taken(batch.cond, repeated), device, dtype)
            yield placed(x, device, dtype), cond, state, generator


def _device(model: Denoiser) -> torch.device:
    """Where a model lies; the CPU for one without parameters, such as an analytic one."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _span(model: Denoiser) -> tuple[float, float]:
    """The smallest and the largest half log-SNR that are measured."""
    low, high = model.sde.ends()
    return max(low, -math.log(RANGE[1] * model.data_std)), min(high, -math.log(RANGE[0] * model.data_std))


def _against_gaussian(
    model: Denoiser,
    x0: Tensor,
    cond: Mapping[str, Any],
    span: tuple[float, float],
    u: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The integrand at one level for each row, times the width of the integral: nats, float64, on the CPU."""
    sde, c, (low, high) = model.sde, model.data_std, span
    t = sde.time_of(high - (high - low) * u).clamp(sde.t_min, sde.t_max).to(x0.device)
    eps = torch.randn(x0.shape, dtype=x0.dtype, generator=generator, device="cpu").to(x0.device)
    at = sde.level(t, x0)
    x = at.alpha * x0 + at.sigma * eps
    of_model = eps - model(x, t, cond=cond).noise
    of_gaussian = eps - at.sigma / ((at.alpha * c) ** 2 + at.sigma**2) * x
    return (high - low) * (_squares(of_model) - _squares(of_gaussian))


def _gaussian_nats(x0: Tensor, c: float) -> Tensor:
    r"""$-\log\mathcal N(x_0; 0, c^2)$ of each row, float64, on the CPU."""
    return 0.5 * (_squares(x0) / c**2 + x0[0].numel() * math.log(2 * math.pi * c**2))


def _squares(x: Tensor) -> Tensor:
    """The sum of squares of each row, float64, on the CPU."""
    return flat(x).square().sum(1).to("cpu", torch.float64)


@lru_cache(maxsize=8)
def _marks(steps: int) -> frozenset[int]:
    """After which steps of a run there is a validation, if nothing is said."""
    found, at, most = [], FIRST, max(1, steps // 25)
    while at <= steps:
        found.append(at)
        at += max(1, min(at // 6, most))
    return frozenset(found)
