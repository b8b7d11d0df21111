"""Conditions that are left out at random in training, so that a network learns to do without: classifier-free guidance.

Each part of a network draws for itself, but for the parts of one that stands on a base, a control or adapters: there
one draw is for all of them, the base included, which is else in evaluation mode. So the state that `Guided` goes away
from, in which no part is told a condition, is one that was trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Drop", "dropped_alike"]


class Drop(nn.Module):
    """Which samples of a batch are not told a condition: in training mode drawn, or as `dropped_alike` says.

    Args:
        name: What is dropped, by the name of the argument that gives the probability, such as `label_drop`.
        rate: The probability.
        entries: Entries that are dropped one by one; 0 for a condition as a whole.

    Shapes:
        B and a device -> (B,) or (B, entries), True where it is dropped; None where nothing is
    """

    def __init__(self, name: str, rate: float, entries: int = 0) -> None:
        super().__init__()
        self.name, self.rate, self.entries = name, rate, entries
        self.given: Tensor | None = None

    def forward(self, batch: int, device: torch.device) -> Tensor | None:
        if self.given is not None:
            return self.given
        return self.drawn(batch, device) if self.training and self.rate else None

    def drawn(self, batch: int, device: torch.device) -> Tensor:
        """A draw, (B,) or (B, entries)."""
        return torch.rand(batch, *[self.entries] * bool(self.entries), device=device) < self.rate

    def extra_repr(self) -> str:
        return f"{self.name}={self.rate}"


@contextmanager
def dropped_alike(net: nn.Module, x: Tensor) -> Iterator[None]:
    """While it lasts, all parts of a network in training mode drop the same conditions of the same samples.

    Parts that are in evaluation mode, as a frozen base is, drop them as well. What a network around this one has drawn
    stays.

    Args:
        net: The network.
        x: The samples, (B, *).
    """
    parts: list[Drop] = []
    if net.training:
        parts = [part for part in net.modules() if isinstance(part, Drop) and part.rate and part.given is None]
    draws: dict[str, Tensor] = {}
    for part in parts:
        if part.name not in draws:
            draws[part.name] = part.drawn(len(x), x.device)
        part.given = draws[part.name]
    try:
        yield
    finally:
        for part in parts:
            part.given = None
