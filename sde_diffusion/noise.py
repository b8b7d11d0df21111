r"""Sources of randomness for a solve, all called the same way.

A source is called as `noise(t, s)` and answers unit normal draws `(B, *)` for the step from `t` to `s`; `prior()`
gives the draws behind the initial state. With the sources `Streams` and `BrownianPath`, row `i` depends on seed `i`
alone: not on the batch, its order or its splitting. Draws are made on the CPU, so that they do not depend on the
    device either.
"""

from __future__ import annotations

import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def seed_list(seed: int | Sequence[int] | None, n: int) -> list[int]:
    """The seeds of `n` samples: `k + i` for an integer `k`, the sequence itself, or fresh entropy for None.

    Raises:
        TypeError: Something else.
        ValueError: A sequence of another length, or a negative seed.
    """
    if seed is None:
        seed = secrets.randbits(31)
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        seeds = [int(seed) + i for i in range(n)]
    elif isinstance(seed, (list, tuple, range)) and all(isinstance(k, (int, np.integer)) for k in seed):
        seeds = [int(k) for k in seed]
        if len(seeds) != n:
            raise ValueError(f"got {len(seeds)} seeds for {n} samples: give one integer, or one seed per sample")
    else:
        raise TypeError(f"seed must be an integer, a sequence of integers, a torch.Generator or None, got {seed!r}")
    if not 0 <= min(seeds, default=0) <= max(seeds, default=0) < 1 << 32:
        worst = min(seeds) if min(seeds) < 0 else max(seeds)
        raise ValueError(f"seeds must be >= 0 and below 2**32 (all that torch's generator reads of one), got {worst}")
    return seeds


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


class Silent(NoiseSource):
    """No randomness: what a deterministic solve is given. Drawing from it is an error."""

    def __init__(self) -> None:
        super().__init__((), torch.float32, "cpu")

    def prior(self) -> Tensor:
        return self(0.0, 0.0)

    def __call__(self, t: float, s: float) -> Tensor:
        raise ValueError("a stochastic solver was given no noise: hand integrate a source such as noise.Streams")


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
        out = torch.empty((len(self.generators), *self.shape), dtype=self.dtype)
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


class BrownianPath(NoiseSource):
    r"""One Brownian path per sample, the same at every step count: refining the steps refines the same sample.

    The increment over a step is $(W_s - W_t)/\sqrt{|s - t|}$ of a path on `span`, built by bisection: each midpoint
    is drawn from a stream keyed by (seed, depth, position), so a path needs no storage and answers in any order.
    Memory is that of `depth` states, whatever the number of steps; a step costs at most `2 * depth` draws.

    Args:
        seeds: One seed per sample.
        shape: Event shape, without the batch.
        dtype: Dtype of the draws.
        device: Where the draws are delivered.
        span: First and last time of the solve, in either order.
        depth: Halvings at most; times are resolved to `2**-depth` of the span.

    References:
        Li et al., Scalable Gradients for SDEs, 2020 (the virtual Brownian tree).
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str,
        span: tuple[float, float] = (0.0, 1.0),
        depth: int = 40,
    ) -> None:
        super().__init__(shape, dtype, device)
        self.seeds, self.depth = list(seeds), depth
        self.low, self.width = min(span), abs(span[1] - span[0])
        if not 0 < self.width < math.inf:
            raise ValueError(f"a Brownian path needs a span of positive length, got {span}")
        self._nodes: dict[tuple[int, int], Tensor] = {}
        self._last: tuple[float, Tensor] | None = None
        self._keys = _mix(np.array(self.seeds, dtype=np.uint64) + np.uint64(_GOLDEN))
        # Hashed, as torch's CPU generator reads the low 32 bits of a seed alone.
        self._between = Streams(self._keys.tolist(), shape, dtype, device)

    def prior(self) -> Tensor:
        # The draw that `Streams` makes, so that both sources start a sample from the same state.
        return Streams(self.seeds, self.shape, self.dtype, self.device).prior()

    def _normal(self, depth: int, position: int, seen: dict[tuple[int, int], Tensor]) -> Tensor:
        key = (depth, position)
        found = self._nodes.get(key)
        seen[key] = found if found is not None else self._keyed_normals(depth, position)
        return seen[key]

    def _keyed_normals(self, depth: int, position: int) -> Tensor:
        """Unit normals `(B, *)` that are a function of (seed, depth, position, coordinate) alone."""
        at_depth = _mix(self._keys + np.uint64((depth + 1) * _GOLDEN & _MASK))
        key = _mix(at_depth ^ np.uint64(position & _MASK))
        bits = _mix(key[:, None] + np.arange(1, math.prod(self.shape) + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
        uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        normal = torch.special.ndtri(torch.from_numpy(uniform))
        return normal.reshape(-1, *self.shape).to(self.dtype)

    def value(self, t: float) -> Tensor:
        """$W_t$, shape `(B, *)`, zero at the lower end of the span."""
        seen: dict[tuple[int, int], Tensor] = {}
        place = (t - self.low) / self.width
        # The path goes on beyond its span, in cells of its width: an angle or a level raised by `Churn` may lie there.
        position = cell = math.ceil(place) - 1 if place > 0 else math.floor(place)
        target, a, b = place - cell, 0.0, 1.0
        w_a = torch.zeros((len(self.seeds), *self.shape), dtype=self.dtype)
        for k in range(min(cell, 0), max(cell, 0)):
            w_a.add_(self._normal(0, k, seen), alpha=math.copysign(math.sqrt(self.width), cell))
        w_b = torch.add(w_a, self._normal(0, cell, seen), alpha=math.sqrt(self.width))
        for depth in range(1, self.depth + 1):
            if target in (a, b):
                break
            middle = 0.5 * (a + b)
            spread = 0.5 * math.sqrt((b - a) * self.width)
            w_m = torch.lerp(w_a, w_b, 0.5).add_(self._normal(depth, position, seen), alpha=spread)
            if target < middle:
                b, w_b, position = middle, w_m, 2 * position
            else:
                a, w_a, position = middle, w_m, 2 * position + 1
        self._nodes = seen  # the last path down: the next query shares most of it
        return w_a if target <= a else w_b if target >= b else torch.lerp(w_a, w_b, (target - a) / (b - a))

    def __call__(self, t: float, s: float) -> Tensor:
        if t == s:  # a corrector stays at one time, where the path has no increment
            return self._between(t, s)
        start = self._last[1] if self._last is not None and self._last[0] == t else self.value(t)
        end = self.value(s)
        self._last = (s, end)
        return ((end - start) / math.sqrt(abs(s - t))).to(self.device)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., 2014): a bijection of 64 bits, equal on every machine."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
