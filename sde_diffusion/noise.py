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
from copy import copy
from numbers import Integral

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_diffusion._brownian import GOLDEN, mix, path_at

_GOLDEN, _mix = GOLDEN, mix


Seed = int | Sequence[int] | torch.Generator | None


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


def as_seeds(seed: Seed, n: int) -> list[int] | torch.Generator:
    """One seed per sample, or the shared generator (asked for last: that test takes as long as ten steps)."""
    if seed is None or isinstance(seed, (Integral, list, tuple, range)):
        return seed_list(seed, n)
    return seed if isinstance(seed, torch.Generator) else seed_list(seed, n)


def one_stream(seed: int | torch.Generator | None, device: torch.device | str = "cpu") -> torch.Generator:
    """The one stream that all rows of a data set are drawn from: that of an integer, a given one, or a fresh one.

    Raises:
        TypeError: Something else, a sequence of seeds among it.
        ValueError: A seed out of range.
    """
    if isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, Sequence):
        raise TypeError(f"seed must be an integer, a torch.Generator or None, one stream for all rows, got {seed!r}")
    return torch.Generator(device).manual_seed(seed_list(seed, 1)[0])


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


class BrownianPath(NoiseSource):
    r"""One Brownian path per sample, the same at every step count and for every solver.

    The increment over a step is $(W_s - W_t)/\sqrt{|s - t|}$ of a path on `span`, and its space-time area goes with
    it: refining the steps refines the same sample, and solvers of the same equation tend to the same sample. Both are
    built by bisection, each half drawn given the whole from a stream keyed by (seed, depth, position), so that a path
    needs no storage and answers in any order. Memory is that of a few states, whatever the number of steps; a step
    costs at most `4 * depth` draws. It is computed in float64, whatever the dtype.

    An exponential solver, whose noise is a weighted integral of the path over the step, takes the plain increment: what
    differs is of strong order 1, as the solver is. Measured at 20 against 40 steps, no clock does better than time.
    What is not a step of the path, a corrector or a second pass, takes independent paths by `beside` and `fork`.

    Args:
        seeds: One seed per sample.
        shape: Event shape, without the batch.
        dtype: Dtype of the draws.
        device: Where the draws are delivered.
        span: First and last time of the solve, in either order.
        depth: Halvings at most; times are resolved to `2**-depth` of the span.

    References:
        Li et al., Scalable Gradients for SDEs, 2020 (the virtual Brownian tree); Jelincic, Foster and Kidger,
        Single-seed Generation of Brownian Paths and Integrals for Adaptive and High Order SDE Solvers, 2024.
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
        self._take(_mix(np.array(self.seeds, dtype=np.uint64) + np.uint64(_GOLDEN)))

    def _take(self, keys: NDArray[np.uint64]) -> None:
        """Becomes the path of these keys."""
        self._keys = keys
        self._known: dict[float, tuple[Tensor, Tensor]] = {}  # at the ends of the last step
        self._forks: dict[tuple[float, ...], BrownianPath] = {}
        self._stream: Streams | None = None

    def prior(self) -> Tensor:
        # The draw that `Streams` makes, so that both sources start a sample from the same state.
        return Streams(self.seeds, self.shape, self.dtype, self.device).prior()

    def fork(self, *key: float) -> BrownianPath:
        found = self._forks.get(key)
        if found is None:
            found, keys = copy(self), self._keys
            for bits in np.array(key, dtype=np.float64).view(np.uint64):
                keys = _mix(keys ^ _mix(bits + np.array([_GOLDEN], dtype=np.uint64)))
            found._take(keys)
            self._forks[key] = found
        return found

    def beside(self, t: float, s: float, key: float) -> NoiseSource:
        return _Beside(self, t, s, key)

    def _at(self, t: float) -> tuple[Tensor, Tensor]:
        """The path at `t` and its integral up to there, both zero at the lower end, in units of the span."""
        return path_at(self._keys, self.shape, (t - self.low) / self.width, self.depth)

    def _ends(self, t: float, s: float) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The path and its integral at both ends of a step; the step before ended where this one starts."""
        self._known = {time: self._known.get(time) or self._at(time) for time in (t, s)}
        return self._known[t], self._known[s]

    def _between(self) -> Tensor:
        if self._stream is None:  # hashed, as torch's CPU generator reads the low 32 bits of a seed alone
            self._stream = Streams(self._keys.tolist(), self.shape, self.dtype, self.device)
        return self._stream(0.0, 0.0)

    def __call__(self, t: float, s: float) -> Tensor:
        if t == s:  # at one time the path has no increment
            return self._between()
        (start, _), (end, _) = self._ends(t, s)
        return ((end - start) / math.sqrt(abs(s - t) / self.width)).to(self.device, self.dtype)

    def area(self, t: float, s: float) -> Tensor:
        if t == s:
            return self._between()
        (start, before), (end, after) = self._ends(t, s)
        h = (s - t) / self.width
        return (((after - before) / h - 0.5 * (start + end)) * math.sqrt(12 / abs(h))).to(self.device, self.dtype)


class _Beside(NoiseSource):
    """Draw `k` is the increment of the `k`-th path beside a given one, over a step of the solver."""

    def __init__(self, path: BrownianPath, t: float, s: float, key: float) -> None:
        super().__init__(path.shape, path.dtype, path.device)
        self.path, self.t, self.s, self.key, self.drawn = path, t, s, key, 0

    def prior(self) -> Tensor:
        return self.path.prior()

    def __call__(self, t: float, s: float) -> Tensor:
        self.drawn += 1
        return self.path.fork(self.key, self.drawn)(self.t, self.s)


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
