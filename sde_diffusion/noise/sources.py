r"""Sources of randomness for a solve, all called the same way.

A source is called as `noise(t, s)` and answers unit normal draws `(B, *)` for the step from `t` to `s`; `prior()`
gives the draws behind the initial state. With the sources `Streams` and `BrownianPath`, row `i` depends on seed `i`
alone: not on the batch, its order or its splitting. Draws are made on the CPU, so that they do not depend on the
device either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class NoiseSource(ABC):
    """Unit normal draws for the steps of one solve.

    Args:
        shape: Event shape, without the batch.
        dtype: Dtype of the draws; float32 and float64 streams differ.
        device: Where the draws are delivered.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> None:
        self.shape, self.dtype, self.device = tuple(shape), dtype, torch.device(device)

    @abstractmethod
    def prior(self) -> Tensor:
        """Draws for the initial state, shape `(B, *)`."""

    @abstractmethod
    def __call__(self, t: float, s: float) -> Tensor:
        """Unit normal draws for the step from `t` to `s`, shape `(B, *)`."""

    def area(self, t: float, s: float) -> Tensor:
        r"""Unit normal draws behind the space-time area of the same step, independent of `self(t, s)`.

        $$ \frac1h\int_t^s \Big(W_u - W_t - \tfrac{u - t}{h}\,(W_s - W_t)\Big)\,du = \sqrt{h/12}\;z $$
        """
        return self(s, s)

    def fork(self, *key: float) -> NoiseSource:
        """An independent source of the same kind, a function of `key`; this one where all draws are independent."""
        return self

    def beside(self, t: float, s: float, key: float) -> NoiseSource:
        """A source for what a wrapper draws beside the step from `t` to `s`, independent of `self(t, s)`."""
        return self


class Silent(NoiseSource):
    """No randomness: what a deterministic solve is given. Drawing from it is an error."""

    def __init__(self) -> None:
        super().__init__((), torch.float32, "cpu")

    def prior(self) -> Tensor:
        return self(0.0, 0.0)

    def __call__(self, t: float, s: float) -> Tensor:
        raise ValueError("a stochastic solver was given no noise: hand integrate a source such as noise.Streams")


SILENT = Silent()
"""The source of every deterministic solve: it has no state."""


class Streams(NoiseSource):
    """One random stream per sample: the default.

    Args:
        seeds: One seed per sample.
        shape: Event shape, without the batch.
        dtype: Dtype of the draws.
        device: Where the draws are delivered.
        span: Ignored; every source is made from the same arguments.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str,
        span: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__(shape, dtype, device)
        self.generators = [torch.Generator().manual_seed(k) for k in seeds]

    def prior(self) -> Tensor:
        return self(0.0, 0.0)

    def __call__(self, t: float, s: float) -> Tensor:
        out = torch.empty((len(self.generators), *self.shape), dtype=self.dtype, device="cpu")
        for row, generator in zip(out.unbind(0), self.generators, strict=True):
            row.normal_(generator=generator)
        return out.to(self.device)


class SharedStream(NoiseSource):
    """One stream for the whole batch: fastest, and the only source whose rows depend on the batch.

    Args:
        generator: The stream; drawn from on its own device.
        n: Batch size.
        shape: Event shape, without the batch.
        dtype: Dtype of the draws.
        device: Where the draws are delivered.
    """

    def __init__(
        self, generator: torch.Generator, n: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__(shape, dtype, device)
        self.generator, self.n = generator, n

    def prior(self) -> Tensor:
        return self(0.0, 0.0)

    def __call__(self, t: float, s: float) -> Tensor:
        where = self.generator.device
        return torch.randn(self.n, *self.shape, generator=self.generator, dtype=self.dtype, device=where).to(
            self.device
        )


def check_noise(noise: object, seed: object) -> None:
    """Raises `TypeError` unless `noise` makes a source of seeds, and `ValueError` if there are no seeds for it."""
    if not callable(noise) or isinstance(noise, NoiseSource) or noise is SharedStream:
        raise TypeError(
            "noise is what makes a source of seeds, the class noise.Streams or noise.BrownianPath itself, got "
            f"{noise!r}; one stream for the whole batch is seed=torch.Generator()"
        )
    if isinstance(seed, torch.Generator) and noise is not Streams:
        raise ValueError(
            f"{getattr(noise, '__name__', noise)} makes one path of each seed, but a torch.Generator is one stream for "
            "the whole batch: give an integer seed, or one per sample"
        )
