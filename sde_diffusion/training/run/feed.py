"""What a step is given: the rows of a batch that this process is to work on, with their conditions and random numbers.

A `Source` is read in the order that the seed gives it, a `Stream` as it comes. The rows of a transform come in blocks
with a random stream each, so that a process may make its own share alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._checks import SolverError
from sde_diffusion.data.order import Order
from sde_diffusion.data.scalings import Scaling
from sde_diffusion.data.source import Source, Stream, source_of
from sde_diffusion.data.sources.rows import check_unmasked, texts_of
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import Conditions, PerSample, Shared, check_options, merged
from sde_diffusion.training._input import Transform, dtype_of, placed, transformed
from sde_diffusion.training.losses import Objective
from sde_diffusion.training.recipe import Recipe
from sde_diffusion.training.run.engine import Engine
from sde_diffusion.training.run.streams import Block, Streams, blocks


@runtime_checkable
class Timed(Protocol):
    """An objective whose times can be drawn for a batch of which it sees a part."""

    def times_for(self, model: Any, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Times for `n` samples, `(n,)`."""


@runtime_checkable
class Shaped(Protocol):
    """A timed objective whose noise has not the shape of the rows."""

    def noise_like(self, model: Any, x: Tensor) -> Tensor:
        """Anything of the dtype of the rows `x` and with as many rows, each of the shape of the noise."""


@runtime_checkable
class Staged(Protocol):
    """An objective that changes over a run: it is called with `done=`, the share of the steps that were taken."""

    staged: bool


@runtime_checkable
class Marked(Protocol):
    """An objective that takes a batch apart: its conditions come with their marks, `PerSample` or `Shared`."""

    marked: bool


@runtime_checkable
class Looks(Protocol):
    """An objective that is shown the model before the run."""

    def look_at(self, model: Any) -> None:
        """Raises for a model that it does not train, and writes into it what is to be kept with it."""


class Part(NamedTuple):
    """A micro-batch.

    Attributes:
        x: Data `(B, *)`, on the device of the model; zeros where they were not finite.
        draws: What the objective is called with besides: `generator`; `t` and `eps` if it takes times, `done` if staged
        cond: The conditions by name.
        weight: Which part of the rows of this process they are.
        broken: Which rows were not finite, by their places in the batch.
    """

    x: Tensor
    draws: dict[str, Any]
    cond: dict[str, Any]
    weight: float
    broken: list[int]


_Share = tuple[Tensor, dict[str, Any], Tensor | None]  # rows, the conditions they came with, their numbers


class Inputs(NamedTuple):
    """Data with their conditions; those that came with the call are sorted into rows and what is shared."""

    data: Source | Stream
    given: Conditions | None
    dtype: torch.dtype | None = None  # that of the model, to which numbers are brought that were no tensors

    @property
    def names(self) -> set[str]:
        """The conditions that have a row for each row of the data."""
        own = set()
        if isinstance(self.data, Source):
            own = set(self.data.rows(torch.zeros(1, dtype=torch.int64, device="cpu")).cond)
        return own | (set() if self.given is None else self.given.with_rows)

    def with_given(self, numbers: Tensor, cond: dict[str, Any], *, marked: bool = False) -> dict[str, Any]:
        """The conditions of some rows, which have these numbers, by what they came with and what the call came with."""
        if self.given is None:
            return cond
        return {**cond, **self.given.rows(cast(Sequence[int], numbers), marked=marked)}


def inputs_of(model: Denoiser, data: object, cond: Mapping[str, Any]) -> Inputs:
    """Data of any kind, with the conditions of a call.

    Where neither a mark nor the model says which conditions have rows, all that can have do.

    Raises:
        TypeError: Data of another kind; conditions beside a stream; what belongs to `Saving` or to `Recipe`.
        ValueError: Conditions with another number of rows, or that come with the data as well.
    """
    _check_meant(cond)
    found, named = source_of(data), merged(cond)
    dtype = dtype_of(model)
    kept = None if isinstance(data, Tensor) else dtype
    if not named:
        return Inputs(found, None, kept)
    if isinstance(found, Stream):
        raise TypeError(
            f"{type(data).__name__} is a stream, whose rows have no numbers that condition {next(iter(named))!r} could "
            "be matched by: let every item bring its own, (x, {'label': ...})"
        )
    named = {name: value if (texts := texts_of(value)) is None else texts for name, value in named.items()}
    if model.per_sample is None:
        named = {name: _per_sample(value) for name, value in named.items()}
    given = Conditions.of(model, {"cond": named}, len(found)).each(lambda value: _as_tensor(value, dtype))
    own = found.rows(torch.zeros(1, dtype=torch.int64, device="cpu")).cond
    if twice := sorted(own.keys() & named.keys()):
        raise ValueError(
            f"condition {twice[0]!r} is given twice, with the rows of the data and beside them: give it once"
        )
    return Inputs(found, given, kept)


def _check_meant(cond: Mapping[str, Any]) -> None:
    """Raises `TypeError` for a scaling among conditions, and for what another argument of `train` is made of."""
    for name, value in cond.items():
        parts = [value, *(value.values() if isinstance(value, Mapping) else ())]
        if any(isinstance(part, Scaling) for part in parts):
            raise TypeError(
                f"{name}= is a scaling, and would go to the network as a condition: what is kept with the model goes "
                "into out=Saving(folder, scaling=scaling, conditions={'context': its scaling}, extra={...})"
            )
    check_options({name: value for name, value in cond.items() if not _has_numbers(value)}, _ELSEWHERE)


_ELSEWHERE = {
    **{f.name: f"recipe=Recipe({f.name}=...)" for f in fields(Recipe)},
    "scaling": "out=Saving(folder, scaling=...)",
    "conditions": "out=Saving(folder, conditions=...)",
    "extra": "out=Saving(folder, extra=...)",
    "overwrite": "out=Saving(folder, overwrite=True)",
    "keep": "out=Saving(folder, keep=...)",
    "patience": "val=Validation(rows, patience=...)",
}


def _has_numbers(value: Any) -> bool:
    """Whether a condition has rows, so that nothing else can have been meant."""
    return isinstance(value, PerSample | Shared | list | tuple) or getattr(value, "ndim", 0) > 0


def _per_sample(value: Any) -> Any:
    """Marks what can have rows."""
    if isinstance(value, Mapping):
        return {key: _per_sample(part) for key, part in value.items()}
    has_rows = isinstance(value, list | tuple | range) or getattr(value, "ndim", 0) > 0
    return PerSample(value) if has_rows and not hasattr(value, "_fields") else value


def _as_tensor(value: Any, dtype: torch.dtype) -> Any:
    """Arrays and lists of numbers as tensors, real ones in the dtype of the model; all else as it is."""
    check_unmasked(value, "the conditions")
    array = value
    if isinstance(value, list | tuple) and value and not hasattr(value, "_fields"):
        with suppress(ValueError):  # rows of unlike shape
            array = np.asarray(value)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        return value
    return torch.as_tensor(array, dtype=dtype if array.dtype.kind == "f" else None, device="cpu")


@dataclass
class Feed:
    """The batches of a run, or the share in them of one of several processes.

    Args:
        inputs: The data.
        model: The model to be trained.
        objective: What it is trained by.
        recipe: The batch size, the micro-batches, the transform.
        streams: The random streams of the run.
        engine: Which process this is.

    Raises:
        ValueError: A batch size that does not split into equal shares.
    """

    inputs: Inputs
    model: Denoiser
    objective: Objective
    recipe: Recipe
    streams: Streams
    engine: Engine
    _stands: bool = field(default=False, init=False)  # where a stream that was restored is to begin, at its own place

    def __post_init__(self) -> None:
        ranks, micro = self.engine.ranks, self.recipe.accumulate
        if isinstance(self.inputs.data, Source) and self.recipe.batch_size % (ranks * micro):
            raise ValueError(
                f"batch_size {self.recipe.batch_size} does not split into equal shares for {ranks} processes and "
                f"accumulate={micro}: wanted a multiple of {ranks * micro}, such as "
                f"{ranks * micro * max(1, round(self.recipe.batch_size / (ranks * micro)))}"
            )

    @property
    def order(self) -> Order | None:
        """The order of the rows; None for a stream."""
        data = self.inputs.data
        return Order(len(data), self.recipe.batch_size, self.streams.seed) if isinstance(data, Source) else None

    @property
    def share(self) -> range:
        """The places in a batch that are those of this process."""
        size = self.recipe.batch_size // self.engine.ranks
        return range(self.engine.rank * size, (self.engine.rank + 1) * size)

    def steps(self, first: int, last: int) -> Iterator[list[Part]]:
        """The micro-batches of each step from `first` to before `last`."""
        data = self.inputs.data
        batches = self._of_source(data, first, last) if isinstance(data, Source) else self._of_stream(data, first)
        for step in range(first, last):
            try:
                x, cond, numbers = next(batches)
            except StopIteration:
                raise SolverError(f"the stream ended before step {step + 1}: it has to begin again") from None
            yield self._parts(step, x, cond, numbers, step / last)

    def numbers(self, step: int) -> list[int] | None:
        """The row numbers of the batch of a step, in order; None for a stream."""
        return None if self.order is None else self.order.rows(step).tolist()

    def state(self) -> dict[str, Any] | None:
        """Where a stream stands that can tell; None for other data, which need no more than the step."""
        return self.inputs.data.state() if isinstance(self.inputs.data, Stream) else None

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Takes up where a stream stood."""
        if isinstance(self.inputs.data, Stream) and state is not None:
            self.inputs.data.restore(state)
            self._stands = True

    def _of_source(self, data: Source, first: int, last: int) -> Iterator[_Share]:
        order, share, transform = cast(Order, self.order), self.share, self.recipe.transform
        parts = list(blocks(share, self.recipe.batch_size, math.prod(data.shape))) if transform else []
        wide = range(parts[0].rows.start, parts[-1].rows.stop) if parts else share  # whole blocks
        cut = slice(share.start - wide.start, share.stop - wide.start)
        asked: list[Tensor] = []  # by a source that reads ahead, before it answers

        def numbers() -> Iterator[Tensor]:
            for step in range(first, last):
                asked.append(order.rows(step)[wide.start : wide.stop])
                yield asked[-1]

        for step, batch in enumerate(data.batches(numbers()), first):
            x, cond = batch.x, batch.cond
            if transform:
                x = self._transformed(x, parts, wide.start, transform, step)
                cond = {name: _cut(value, cut) for name, value in cond.items()}
            yield x, cond, asked.pop(0)[cut]

    def _of_stream(self, data: Stream, first: int) -> Iterator[_Share]:
        rank, ranks, transform = self.engine.rank, self.engine.ranks, self.recipe.transform
        skip = 0 if self._stands else first
        batches = data.batches(self.recipe.batch_size, skip=skip, rank=rank, ranks=ranks)
        for step, batch in enumerate(batches, first):
            x = batch.x
            if transform:
                parts = list(blocks(range(len(x)), len(x), x[0].numel()))
                x = self._transformed(x, parts, 0, transform, step, rank)
            yield x, batch.cond, None

    def _transformed(self, x: Tensor, parts: list[Block], start: int, transform: Transform, *place: int) -> Tensor:
        """What a transform makes of the rows that are asked for, block by block; `x` holds all rows of those blocks."""
        made = []
        for block in parts:
            rows = x[block.rows.start - start : block.rows.stop - start]
            generator = self.streams.of("transform", *place, block.number)
            made.append(transformed(transform, rows, generator)[block.part])
        return made[0] if len(made) == 1 else torch.cat(made)

    def _parts(self, step: int, x: Tensor, cond: dict[str, Any], numbers: Tensor | None, done: float) -> list[Part]:
        """The micro-batches of a step, with what is random in them."""
        n, share = self.recipe.batch_size, self.share
        place: tuple[int, ...] = (step,)
        if len(x) != len(share):  # a stream has batches of its own size
            n, share, place = len(x), range(len(x)), (step, self.engine.rank)
        objective: object = self.objective
        times: Tensor | None = None
        if isinstance(objective, Timed):
            times = objective.times_for(self.model, n, self.streams.of("times", *place))
        if self.inputs.dtype is not None:
            x, cond = placed(x, dtype=self.inputs.dtype), placed(cond, dtype=self.inputs.dtype)
        broken = _broken(x)
        if broken:
            x = torch.nan_to_num(x, 0.0, 0.0, 0.0)
        found, device, micro = [], self.engine.device, min(self.recipe.accumulate, len(x))
        for k in range(micro):
            here = slice(k * len(x) // micro, (k + 1) * len(x) // micro)
            rows = share[here]
            draws: dict[str, Any] = {"generator": self.streams.of("objective", *place, rows.start)}
            if isinstance(objective, Staged):
                draws["done"] = done
            part = x if micro == 1 else x[here]
            if times is not None:
                draws["t"] = times[rows.start : rows.stop].to(device)
                like = objective.noise_like(self.model, part) if isinstance(objective, Shaped) else part
                draws["eps"] = self.streams.noise(place, rows, n, like).to(device)
            told = {name: _cut(value, here) for name, value in cond.items()}
            marked = isinstance(objective, Marked)
            if marked:
                told = {name: PerSample(value) for name, value in told.items()}
            if numbers is not None:
                told = self.inputs.with_given(numbers[here], told, marked=marked)
            found.append(
                Part(part.to(device), draws, placed(told, device), len(rows) / len(x), [share[i] for i in broken])
            )
        return found


def _broken(x: object) -> list[int]:
    """The rows that hold NaN or infinity; whatever else is wrong with a batch, the loss says."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or math.isfinite(x.sum().item()):
        return []
    bad = ~torch.isfinite(x.flatten(1) if x.ndim > 1 else x[:, None]).all(1)
    return bad.nonzero()[:, 0].tolist()


def _cut(value: Any, rows: slice) -> Any:
    """Some rows of a condition that came with the data."""
    if isinstance(value, Mapping):
        return {key: _cut(part, rows) for key, part in value.items()}
    return value[rows]
