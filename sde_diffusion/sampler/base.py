r"""What draws samples by their seeds: all that `distributed.sample_to` asks of a sampler, whatever stands inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.noise.seeds import Seed
from sde_diffusion.noise.sources import NoiseSource, Streams
from sde_diffusion.solvers.loop import Snapshot


class Sampler(ABC):
    """Draws samples, of which the `i`-th depends on the `i`-th seed and the `i`-th row of each condition alone.

    `SDESampler` is one. One that is made of others, such as a `latent.LatentSampler`, hands on what they depend on.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...] | None:
        """Event shape of the samples, None if it is not known."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Dtype of the samples."""

    @property
    @abstractmethod
    def models(self) -> tuple[object, ...]:
        """Whose weights the samples depend on: denoisers, score functions, a decoder."""

    @property
    @abstractmethod
    def details(self) -> list[Any]:
        """What else they depend on beside what `repr` says: times, numbers, tensors; of other things their class."""

    @abstractmethod
    def conditions(self, cond: Mapping[str, Any], n: int) -> Conditions:
        """The conditions of `n` samples, sorted by what the models say of them."""

    @abstractmethod
    def sample(
        self,
        n: int = 1,
        *,
        seed: Seed = None,
        batch_size: int | None = None,
        progress: bool = False,
        noise: Callable[..., NoiseSource] = Streams,
        nonfinite: str = "raise",
        **cond: Any,
    ) -> Tensor:
        """Draws `n` samples, shape `(n, *)`; as of `SDESampler.sample`."""


@runtime_checkable
class Iterates(Protocol):
    """A sampler that hands out its solve step by step."""

    def iterate(self, n: int = 1, **options: Any) -> Iterator[Snapshot]:
        """The solve behind `sample`."""


def guarded(solve: Iterator[Snapshot], grad: bool, mode: AbstractContextManager[object]) -> Iterator[Snapshot]:
    """Runs each step of a solve with gradients on or off and in a mode of its model, as neither is between them.

    The caller has its own modes between two steps, and may change them there.
    """
    while True:
        with torch.set_grad_enabled(grad), mode:
            now = next(solve, None)
        if now is None:
            return
        before = 0 if now.x.is_inference() else now.x._version
        yield now
        if not now.x.is_inference() and now.x._version != before:
            raise ValueError(
                f"the state of snapshot {now.index} was written to between two steps, and the solve goes on from it: "
                "work on a copy, now.x.clone()"
            )
