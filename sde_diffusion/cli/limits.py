"""What the commands refuse before they work, because it would fail at the end or never get there.

Memory is that of the machine. How much a run will need is estimated from small cases of it: three small networks, a
pass of three samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from sde_diffusion._files import check_file, check_folder
from sde_diffusion.data.memory import check_memory
from sde_diffusion.denoiser.modules import Evaluation
from sde_diffusion.plots import check_picture
from sde_diffusion.training.checkpoint import Checkpoint, checkpoint_files

COPIES = 6
"""How often the numbers of a network are in memory while it is trained: gradient, moments, average, its file."""
PASSES = 2
"""How often the tensors that a pass keeps for its gradient are in memory while the gradient is found."""
SAMPLE, SEED = 32, 64
"""Bytes in memory at the end: for each number of a sample, four copies in float64; for each sample, seed and label."""


def check_checkpoint(out: Path, overwrite: bool) -> None:
    """Raises `ValueError` unless `out` is a folder without a checkpoint in it, or can be made one."""
    check_folder(out, "--out")
    for file in checkpoint_files(out):
        if file.is_dir():
            raise ValueError(f"--out {out} holds a folder {file.name}, where a file is to go: give another folder")
        if file.exists() and not overwrite:
            raise ValueError(
                f"--out {out} holds a {file.name} already: give another folder, or --overwrite to replace it"
            )


def classes_of(labels: Tensor | None) -> int:
    """Counts the classes that labels make, one more than the largest label; 0 without labels.

    Raises:
        ValueError: More classes than there are labels, or a class without a sample.
    """
    if labels is None:
        return 0
    classes = int(labels.max()) + 1
    if classes > len(labels):
        raise ValueError(
            f"labels up to {classes - 1:,} make {classes:,} classes, and there are {len(labels):,} samples to learn "
            "them from: number the classes 0, 1, ..., numpy.unique(label, return_inverse=True)[1]"
        )
    if missing := classes - len(labels.unique()):
        raise ValueError(
            f"labels from {int(labels.min())} to {classes - 1} leave {missing} of {classes} classes without a sample: "
            "number the classes 0, 1, ... without a gap, numpy.unique(label, return_inverse=True)[1]"
        )
    return classes


def check_network(make: Callable[[int], nn.Module], width: int, out: Path) -> None:
    """Raises `ValueError` if the network `make(width)`, not made yet, does not fit into memory or on the disk."""
    with torch.random.fork_rng(devices=[]):
        size = 4 * parameters_at(make, width)
    check_memory(COPIES * size, f"--width {width}: the network", "take a smaller --width")
    check_folder(out, "--out", size=size)


def check_seeds(seed: int, n: int) -> None:
    """Raises `ValueError` unless each of `n` samples has a random stream from `seed` on."""
    if seed + n > 2**32:
        raise ValueError(f"--seed {seed} leaves no stream below 2**32 for each of {n:,} samples: take a smaller one")


def check_samples(loaded: Checkpoint, n: int, batch_size: int, out: Path) -> None:
    """Raises `ValueError` if samples do not fit into memory, their file on the disk, or their picture on a page."""
    shape = loaded.model.shape
    if shape is None:
        return
    picture = out.suffix.lower() == ".png"
    numbers = n * math.prod(shape)
    check_memory(SAMPLE * numbers + SEED * n, f"--n {n:,} samples of shape {shape}", "draw fewer at a time")
    check_file(out, "--out", size=0 if picture else 4 * numbers)
    if isinstance(net := loaded.model.net, nn.Module):
        check_batch(net, shape, min(n, batch_size), passes=1)
    if picture:
        check_picture((n, *shape), columns=columns(n, loaded))


def columns(n: int, loaded: Checkpoint) -> int:
    """Returns the number of columns of a picture of `n` samples: one for each class, or as many as rows."""
    return loaded.classes or math.ceil(math.sqrt(n))


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
