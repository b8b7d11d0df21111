"""Where a command runs: on which device, and as which of several processes.

`torchrun` and `accelerate launch` start several processes of one command, and tell each its number. The first of them
speaks and writes what is written once.
"""

from __future__ import annotations

import os

import torch


def rank() -> int:
    """The number of this process."""
    return int(os.environ.get("RANK", "0") or 0)


def processes() -> int:
    """How many processes run this command."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def device_named(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA where it is there, that of this process among several, else the CPU.

    Raises:
        ValueError: A device that this machine has not.
    """
    local = int(os.environ.get("LOCAL_RANK", "0") or 0)
    if name == "auto":
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    found = torch.device(name)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices, numbered from 0")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: this machine has no such device")
    return torch.device("cuda", local) if name == "cuda" else found
