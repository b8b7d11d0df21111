"""Estimates of memory, made before it is taken."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from sde_diffusion._modules import Evaluation

GUESS = 2**34
"""The memory, in bytes, that a machine is taken to have which does not tell."""
_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory() -> int:
    """Returns the bytes of memory of this machine, or of the container that this process runs in."""
    found = [GUESS]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min(n for n in (*found, *map(_limit, _GROUPS)) if n > 0)


def _limit(name: str) -> int:
    try:
        return int(Path(name).read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such group, or one without a limit
        return 0


def check_memory(needed: float, what: str, advice: str) -> None:
    """Raises `ValueError` if `needed` bytes are more than the machine has; the message names `what`, and the advice."""
    limit = memory()
    if needed > limit:
        raise ValueError(
            f"{what} would need about {needed / 2**30:,.3g} GiB, and this machine has {limit / 2**30:.3g} GiB of "
            f"memory: {advice}"
        )


def parameters_at(make: Callable[[int], nn.Module], width: int) -> int:
    """Counts the parameters of `make(width)` without making it: a quadratic in the width, known by three small ones."""
    at = (8, 16, 24)
    counts = [sum(p.numel() for p in make(w).parameters()) for w in at]
    others = [math.prod(width - v for v in at if v != w) for w in at]
    scales = [math.prod(w - v for v in at if v != w) for w in at]
    return sum(c * (o // 64) // (s // 64) for c, o, s in zip(counts, others, scales, strict=True))


def check_batch(net: nn.Module, shape: tuple[int, ...], n: int, *, passes: float, option: str = "--batch-size") -> None:
    """Raises `ValueError` if a batch would not fit into memory, estimated from passes of three samples and of one.

    Args:
        net: The network, called as `net(x, t)` in evaluation mode.
        shape: The shape of one sample.
        n: The number of samples in the batch.
        passes: How often the tensors that a pass keeps for its gradient are in memory.
        option: What the caller calls the size of a batch.
    """
    with Evaluation(net):
        size = (_kept(net, shape, 3) - _kept(net, shape, 1)) / 2
    check_memory(passes * n * size, f"{option} {n:,}", "take a smaller one")


def _kept(net: nn.Module, shape: tuple[int, ...], n: int) -> int:
    seen: list[int] = []

    def pack(t: Tensor) -> Tensor:
        seen.append(t.numel() * t.element_size())
        return t

    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), None)
    x = torch.zeros(n, *shape, dtype=dtype, requires_grad=True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net(x, torch.zeros(n, dtype=dtype))
    return sum(seen)
