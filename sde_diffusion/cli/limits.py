"""What the commands refuse before they work, because it would fail at the end or never get there.

Memory is that of the machine. How much a run will need is estimated: of a network from one that has no numbers, of a
batch from passes of three samples and of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion._files import check_file, check_folder
from sde_diffusion.data.memory import check_memory
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.denoiser.modules import Evaluation, home
from sde_diffusion.denoiser.network import Network
from sde_diffusion.plots import check_picture
from sde_diffusion.training.checkpoint import Checkpoint, checkpoint_files
from sde_diffusion.training.store import files_of

COPIES = 6
"""How often the numbers of a network are in memory while it is trained: gradient, moments, average, its file."""
FEW = 20
"""A class that fewer than one row in so many has may be a slip of the pen."""
PASSES = 2
"""How often the tensors that a pass keeps for its gradient are in memory while the gradient is found."""
SAMPLE, SEED = 32, 64
"""Bytes in memory at the end: for each number of a sample, four copies in float64; for each sample, seed and label."""


def check_checkpoint(out: Path, overwrite: bool) -> None:
    """Raises `ValueError` unless `out` is a folder without a checkpoint in it, or can be made one."""
    check_folder(out, "--out")
    for file in (*checkpoint_files(out), *files_of(out, "codec")):
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
    if len(low := (labels < 0).nonzero()):
        raise ValueError(
            f"row {int(low[0])} has the label {int(labels[low[0]])}{_more(low)}, and classes are numbered 0, 1, ...: "
            "correct or drop it; where it stands for no class, drop it or give it a number of its own"
        )
    classes = int(labels.max()) + 1
    if classes > len(labels):
        raise ValueError(
            f"labels up to {classes - 1:,} make {classes:,} classes, and there are {len(labels):,} samples to learn "
            "them from: number the classes 0, 1, ..., numpy.unique(label, return_inverse=True)[1]"
        )
    known = labels.unique()
    if missing := classes - len(known):
        gap = int((known != torch.arange(len(known))).nonzero()[0])  # the first of them behind a gap
        beyond = (labels >= known[gap]).nonzero()
        row = f"row {int(beyond[0])} has {int(labels[beyond[0]])}{_more(beyond)}"
        few = f"; {row}: correct it, or " if len(beyond) * FEW <= len(labels) else ": "
        raise ValueError(
            f"labels from {int(known[0])} to {classes - 1} leave {missing} of {classes} classes without a sample{few}"
            "number the classes 0, 1, ... without a gap, numpy.unique(label, return_inverse=True)[1]"
        )
    return classes


def _more(rows: Tensor) -> str:
    return f" (and {len(rows) - 1:,} more such rows)" if len(rows) > 1 else ""


def check_network(make: Callable[[], nn.Module], out: Path) -> None:
    """Raises `ValueError` if a network, not made yet, would not fit into memory or on the disk."""
    count = parameters_of(make)
    if count is None:
        return
    check_memory(COPIES * 4 * count, f"the network, of {count:,} parameters,", "take a smaller --width")
    check_folder(out, "--out", size=4 * count)


def check_seeds(seed: int, n: int) -> None:
    """Raises `ValueError` unless each of `n` samples has a random stream from `seed` on."""
    if seed + n > 2**32:
        raise ValueError(f"--seed {seed} leaves no stream below 2**32 for each of {n:,} samples: take a smaller one")


def check_samples(
    loaded: Checkpoint,
    n: int,
    batch_size: int,
    out: Path,
    cond: Mapping[str, Any],
    *,
    passes: float = 1,
    shape: tuple[int, ...] | None = None,
) -> None:
    """Raises `ValueError` if samples do not fit into memory, their file on the disk, or their picture on a page.

    Args:
        loaded: The checkpoint.
        n: How many samples.
        batch_size: How many at once.
        out: Their file.
        cond: Conditions of the model by name.
        passes: As in `check_batch`.
        shape: That of a sample; None for that of the model.
    """
    shape = loaded.model.shape if shape is None else shape
    if shape is None:
        return
    picture = out.suffix.lower() == ".png"
    numbers = n * math.prod(shape)
    what = f"--n {n:,} samples of shape {shape}"
    check_memory(SAMPLE * numbers + SEED * n, what, "draw them to a folder, --out without an ending")
    check_file(out, "--out", size=0 if picture else 4 * numbers)
    check_batch(loaded.model, min(n, batch_size), passes=passes, cond=cond)
    if picture:
        check_picture((n, *shape), columns=columns(n, loaded))


def columns(n: int, loaded: Checkpoint) -> int:
    """Returns the number of columns of a picture of `n` samples: one for each class, or as many as rows."""
    return loaded.classes or math.ceil(math.sqrt(n))


def parameters_of(make: Callable[[], nn.Module]) -> int | None:
    """Counts the parameters of a network without memory for them; None for one that cannot be made so."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return sum(p.numel() for p in make().parameters())
    except (RuntimeError, NotImplementedError):  # of a class of one's own, which looks at its numbers
        return None


def check_batch(
    model: Network, n: int, *, passes: float, option: str = "--batch-size", cond: Mapping[str, Any] | None = None
) -> None:
    """Raises `ValueError` if a batch would not fit into memory, estimated from passes of three samples and of one.

    Args:
        model: The model, whose network is called as `net(x, t, **cond)` in evaluation mode, with a second time if it
            is that of a map.
        n: The number of samples in the batch.
        passes: How often the tensors that a pass keeps for its gradient are in memory.
        option: What the caller calls the size of a batch.
        cond: Conditions by name, of which the first row is taken.
    """
    net, shape = model.net, model.shape
    if not isinstance(net, nn.Module) or shape is None:
        return
    told = dict(cond or {}) | ({"until": torch.zeros(1)} if isinstance(model, FlowMap) else {})
    with Evaluation(net):
        size = (_kept(net, shape, 3, told) - _kept(net, shape, 1, told)) / 2
    check_memory(passes * n * size, f"{option} {n:,}", "take a smaller one")


def _kept(net: nn.Module, shape: tuple[int, ...], n: int, cond: Mapping[str, Any]) -> int:
    seen: list[int] = []

    def pack(t: Tensor) -> Tensor:
        seen.append(t.numel() * t.element_size())
        return t

    dtype, device = home(net)
    x = torch.zeros(n, *shape, dtype=dtype, device=device, requires_grad=True)
    told = {name: _rows(value, n, device) for name, value in cond.items()}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net(x, torch.zeros(n, dtype=dtype, device=device), **told)
    return sum(seen)


def _rows(value: Any, n: int, device: torch.device) -> Any:
    """The first row of a condition, `n` times; what is not known in it as zero, as a net sees it."""
    if isinstance(value, Mapping):
        return {name: _rows(part, n, device) for name, part in value.items()}
    if not isinstance(value, Tensor):
        return [value[0]] * n
    row = value[:1].repeat(n, *[1] * (value.ndim - 1)).to(device)
    return row.nan_to_num(nan=0.0) if row.is_floating_point() else row
