"""A model watched as it is trained: samples of it, with a picture, and the log-likelihood of data kept out.

Callbacks of `train`, which itself knows neither samplers nor likelihoods. Their seeds are fixed, so that what differs
from one time to the next is the model.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion import plots
from sde_diffusion._checks import SolverError, check_callable, check_count
from sde_diffusion._files import write_files
from sde_diffusion.data.source import Source, source_of
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.likelihood.exact import Method
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.training.callbacks import Event


def default_sampler(model: Denoiser) -> SDESampler:
    """The sampler of a model if none is named: that of its own process, with the defaults."""
    return SDESampler(model.sde, model)


class Previews:
    """Draws samples every so many steps of a training: `step_000500.npy`, and `.png` of what can be drawn.

    Images of one or three channels and points in the plane have a picture, if matplotlib is there. A model that is
    too young to be sampled is told of once, and ends nothing.

    Args:
        folder: Where they go; made if need be.
        every: Steps from one preview to the next; there is one at the end as well.
        n: How many samples.
        seed: That of the first; the same at each step.
        undo: Takes samples back to the units of the data, `scaling.undo`; by default that of the scaling that the run
            is kept with, `Saving(folder, scaling=...)`. Without either they are as the model sees them.
        sampler: Makes the sampler of a model, `lambda model: SDESampler(model.sde, model, steps=20)`.
        **cond: Conditions of the samples, as in `sample`.

    Raises:
        TypeError: `undo` or `sampler` is no function, or a number no integer.
        ValueError: A number below one.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every: int,
        n: int = 16,
        seed: int = 0,
        undo: Callable[[Tensor], Tensor] | None = None,
        sampler: Callable[[Denoiser], SDESampler] = default_sampler,
        **cond: Any,
    ) -> None:
        check_callable(sampler, "sampler", "a function of a model that answers its SDESampler")
        if undo is not None:
            check_callable(undo, "undo", "a function of samples, such as that of a scaling")
        self.folder, self.every, self.n = Path(folder), check_count(every, "every"), check_count(n, "n")
        self.seed, self.undo, self.sampler, self.cond = seed, undo, sampler, cond
        self._told = False

    def __call__(self, event: Event) -> None:
        if not _due(event, self.every):
            return
        try:
            x = self.sampler(event.model).sample(self.n, seed=self.seed, **self.cond).cpu()
        except SolverError as error:
            if not self._told:
                warnings.warn(f"no samples after step {event.step}: {error}", UserWarning, stacklevel=2)
            self._told = True
            return
        undo = self.undo or (None if event.scaling is None else event.scaling.undo)
        self._store(x if undo is None else undo(x), self.folder / f"step_{event.step:06}")

    def _store(self, x: Tensor, path: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        np.save(file, x.numpy())
        write_files({path.with_suffix(".npy"): file.getvalue()})
        columns = math.ceil(math.sqrt(self.n))
        try:
            plots.check_picture(tuple(x.shape), columns=columns)
            plots.new_figure(1, 1)
        except (ValueError, ImportError):  # of a shape that no picture shows, or without matplotlib
            return
        low, high = float(x.min()), float(x.max())
        plots.picture(path.with_suffix(".png"), x, low=low, high=high if high > low else low + 1, columns=columns)


class HeldOutLikelihood:
    r"""Measures the exact log-likelihood of data kept out of the training, and adds it to the metrics.

    `held_out_nats` is the mean of $-\log p$ over the rows, of the data as the model sees them, and
    `held_out_nats_error` its standard error. Callbacks that come after it see both, so give it before them. It costs
    some hundred evaluations for each row and derivatives besides: for a few rows, seldom. (`Validation` has a bound
    that costs a hundredth.)

    Args:
        data: Rows in any form that `train` takes and that has a length.
        every: Steps from one measurement to the next, with one at the end; by default at every validation.
        sampler: Makes the sampler of a model, whose density it is.
        batch_size: Rows at once; all by default.
        **cond: Conditions of the rows.

    Raises:
        TypeError: A stream; `sampler` is no function, or a number no integer.
        ValueError: No rows, or a number below one.
    """

    def __init__(
        self,
        data: Any,
        *,
        every: int | None = None,
        sampler: Callable[[Denoiser], SDESampler] = default_sampler,
        batch_size: int | None = None,
        **cond: Any,
    ) -> None:
        check_callable(sampler, "sampler", "a function of a model that answers its SDESampler")
        source = source_of(data, cond)
        if not isinstance(source, Source):
            raise TypeError(f"{type(data).__name__} is a stream: give rows that have numbers, a tensor or a data set")
        self.every = None if every is None else check_count(every, "every")
        self.rows = source.rows(torch.arange(len(source), device="cpu"))
        self.sampler, self.batch_size = sampler, batch_size

    def __call__(self, event: Event) -> None:
        if not (event.kind == "validation" if self.every is None else _due(event, self.every)):
            return
        found = self.sampler(event.model).log_prob(
            self.rows.x, method=Method(solver_error=False), seed=0, batch_size=self.batch_size, cond=self.rows.cond
        )
        nats = -found.value.double()
        event.metrics["held_out_nats"] = float(nats.mean())
        event.metrics["held_out_nats_error"] = float(nats.std() / math.sqrt(len(nats)))


def _due(event: Event, every: int) -> bool:
    """Whether an event is the end of a step that is a multiple of `every`, or that of the run between two of them."""
    if event.kind == "end":
        return event.step % every != 0
    return event.kind == "step" and event.step % every == 0
