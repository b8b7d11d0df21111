"""Estimates of memory, made before it is taken."""

from __future__ import annotations

import os
from pathlib import Path

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
