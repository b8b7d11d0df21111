r"""What is random in step $i$ of a run, as a pure function of the seed and $i$: nothing of it need be saved.

Every use has a stream of its own, named by what it is for and where: the times of a step, a block of rows of its noise.
The times are drawn for the whole batch, of all processes and micro-batches, and the noise in blocks of rows, so that
the batch is the same however it is shared out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2**15
"""Numbers in a block of rows, which has a stream of its own; a row that has more is a block by itself."""


class Block(NamedTuple):
    """Rows of a batch that are drawn together.

    Attributes:
        number: The number of the block in the batch.
        rows: The rows in it, by their places in the batch.
        part: Which of them are asked for.
    """

    number: int
    rows: range
    part: slice


def blocks(asked: range, n: int, numbers: int) -> Iterator[Block]:
    """The blocks that hold the rows `asked` of a batch of `n`, whose rows have so many `numbers`."""
    size = max(1, BLOCK // max(1, numbers))
    for k in range(asked.start // size, -(-asked.stop // size)):
        rows = range(k * size, min((k + 1) * size, n))
        yield Block(k, rows, slice(max(asked.start - rows.start, 0), min(asked.stop, rows.stop) - rows.start))


@dataclass(frozen=True)
class Streams:
    """The random streams of a run.

    Args:
        seed: The seed of the run.
    """

    seed: int

    def seed_of(self, use: str, *place: int) -> int:
        """A seed below $2^{63}$ for a use at a place: the step first, then what divides it further."""
        words = f"{self.seed}/{use}/{'/'.join(map(str, place))}"
        return int.from_bytes(blake2b(words.encode(), digest_size=8).digest(), "little") >> 1

    def of(self, use: str, *place: int) -> torch.Generator:
        """A stream on the CPU."""
        return torch.Generator("cpu").manual_seed(self.seed_of(use, *place))

    def noise(self, place: tuple[int, ...], rows: range, n: int, x: Tensor) -> Tensor:
        """Noise for some rows of a batch of `n`, of the shape and dtype of the rows `x`, on the CPU.

        Args:
            place: The step, and what divides it further.
            rows: The places of the rows in the batch.
            n: Rows of the batch.
            x: The rows.
        """
        shape, parts = x.shape[1:], []
        for block in blocks(rows, n, shape.numel()):
            generator = self.of("noise", *place, block.number)
            drawn = torch.randn((len(block.rows), *shape), dtype=x.dtype, generator=generator, device="cpu")
            parts.append(drawn[block.part])
        return parts[0] if len(parts) == 1 else torch.cat(parts)
