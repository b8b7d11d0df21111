"""What a job of sampling draws, the same in every process, and what its array depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sde_diffusion._checks import SolverError, check_count, check_samples, check_seed
from sde_diffusion.denoiser.chunks import counted_from
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.noise.seeds import seed_list
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sampler._fingerprint import digest, model_digest, wrappers_of
from sde_diffusion.sampler.base import Sampler
from sde_diffusion.sampler.shards import Array, Form
from sde_diffusion.solvers.loop import NonFiniteWarning, UnfinishedWarning

MOST_SHARDS = 1000
"""The number of shards that the default size of one leads to at most."""


class Scaling(Protocol):
    """What leads from samples back to data, such as `data.Standardise`."""

    def undo(self, z: Tensor, /) -> Tensor:
        """Data of samples, shape `(N, *)` -> same."""


@dataclass(frozen=True)
class Job:
    """What is drawn, the same in every process."""

    sampler: Sampler
    form: Form
    seed: int
    batch_size: int
    scaling: Scaling | None
    noise: Callable[..., NoiseSource]
    nonfinite: str
    given: Conditions

    def about(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """What the array depends on, as the manifest has it."""
        form, sampler = self.form, self.sampler
        around = ", ".join(filter(None, map(wrappers_of, sampler.models)))
        return {
            "n": form.n,
            "shape": list(form.shape),
            "dtype": form.dtype,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "shard_size": form.shard_size,
            "sampler": f"{sampler!r} with {around}" if around else repr(sampler),
            "details": digest(sampler.details, "sampler", loose=True),
            "noise": getattr(self.noise, "__name__", repr(self.noise)),
            "nonfinite": self.nonfinite,
            "model": ", ".join(map(model_digest, sampler.models)),
            "conditions": digest(dict(cond), "the condition"),
            "scaling": digest(self.scaling, "scaling"),
        }

    def draw(self, k: int) -> Array:
        """The samples of a shard."""
        rows = self.form.rows(k)
        try:
            with counted_from(rows.start, NonFiniteWarning, UnfinishedWarning):
                x = self.sampler.sample(
                    rows.stop - rows.start,
                    seed=self.seed + rows.start,
                    batch_size=self.batch_size,
                    noise=self.noise,
                    nonfinite=self.nonfinite,
                    cond=self.given.marked(rows),
                )
        except SolverError as error:
            raise SolverError(
                f"in samples {rows.start} to {rows.stop - 1}, counted from the first of them: {error}"
            ) from error
        x = x if self.scaling is None else self.scaling.undo(x)
        return as_array(x, self.form)


def form_of(
    sampler: Sampler, n: int, seed: int, batch_size: int, shard_size: int | None, scaling: Scaling | None
) -> Form:
    """The array that is asked for, and how it is cut."""
    if not isinstance(sampler, Sampler):
        raise TypeError(
            f"sampler must be an SDESampler, or another Sampler, got {type(sampler).__name__}: SDESampler(sde, model)"
        )
    seed_list([check_seed(seed), seed + check_samples(n) - 1], 2)  # which are in range
    size = check_count(batch_size, "batch_size")
    if shard_size is None:
        shard_size = size * math.ceil(n / (size * MOST_SHARDS))
    if check_count(shard_size, "shard_size") % size:
        fit = -(-shard_size // size) * size
        raise ValueError(f"shard_size must be a multiple of batch_size = {size}, got {shard_size}: take {fit}")
    if sampler.shape is None:
        raise ValueError("the event shape is not known: give it to SDESampler(..., shape=(3, 32, 32))")
    if scaling is not None and not hasattr(scaling, "undo"):
        raise TypeError(f"scaling must be one with undo(z), such as data.Standardise, got {type(scaling).__name__}")
    one = torch.zeros((1, *sampler.shape), dtype=sampler.dtype, device="cpu")
    one = one if scaling is None else scaling.undo(one)
    return Form(n, tuple(one.shape[1:]), one.numpy().dtype.str, shard_size)


def as_array(x: Tensor, form: Form) -> Array:
    """Samples as they are written; `TypeError` if they are not of the form that was said before the work."""
    found: Array = x.detach().cpu().numpy()
    if found.dtype.str != form.dtype or found.shape[1:] != form.shape:
        raise TypeError(
            f"samples came as {found.dtype} of shape {found.shape[1:]}, and {form.dtype} of shape {form.shape} "
            "was to come: a model on several dtypes, or a scaling whose answer depends on the values"
        )
    return found
