r"""The 8x8 digits of scikit-learn, images for demonstrations and benchmarks, with and without dequantisation noise.

Digits have 17 grey levels v = 0 ... 16, placed in [-1, 1] as
$$ x = 2\,(v + u) / 17 - 1, \quad u \sim U(0, 1) \text{ (dequantised) or } u = 1/2 \text{ (bin centres)}. $$
A density p(x) then gives a level the probability `p(x) * BIN_WIDTH` per pixel. A likelihood must be measured with the
`u` the model was trained with. All rows of one call are drawn from one stream, so that data of two seeds are
independent: `seed=` is an integer, which gives the same data again, a `torch.Generator`, from which they are drawn, or
None for fresh entropy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.noise.seeds import one_stream

LEVELS = 17
"""Grey levels of a digit, 0 ... 16."""
BIN_WIDTH = 2 / LEVELS
"""Width of one grey level in [-1, 1]."""

Seed = int | torch.Generator | None
"""What `seed=` takes here: an integer, a generator, or None for fresh entropy."""


@dataclass(frozen=True, eq=False)
class Digits:
    """Images with their labels: digits, or the patches of `photo_patches`.

    Args:
        images: (N, 1, 8, 8) float32 in [-1, 1]; patches have a size of their own.
        labels: (N,) int64, 0 ... 9; of a patch, the number of its picture.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def mean(self) -> float:
        """The mean over all pixels; use the training split's for both splits."""
        return float(self.images.double().mean())

    @property
    def std(self) -> float:
        """The standard deviation over all pixels (population); use the training split's for both splits."""
        return float(self.images.double().std(correction=0))


def digits(split: Literal["train", "test"] = "train", *, seed: Seed = None, dequantise: bool = True) -> Digits:
    r"""The 1,797 digits of scikit-learn, 1,437 to train on and 360 to test on, ten classes in equal shares.

    The split is stratified and always the same. Nothing is downloaded.

    Args:
        split: "train" or "test".
        seed: The stream of the dequantisation noise u; it does not change the split. None: fresh entropy.
        dequantise: Draw u in U(0, 1); if False, take the bin centres, u = 1/2.

    Returns:
        images (N, 1, 8, 8) float32 in [-1, 1] and labels (N,) int64.

    Raises:
        ValueError: Any other `split`.
        ImportError: scikit-learn is not installed.

    References:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            "digits() reads scikit-learn's images. Install it: pip install 'sde-diffusion[examples]'"
        ) from error
    raw = load_digits()
    parts = train_test_split(np.arange(len(raw.target)), test_size=360, random_state=0, stratify=raw.target)
    rows = parts[0] if split == "train" else parts[1]
    levels = torch.from_numpy(raw.images[rows]).long().unsqueeze(1)
    images = _dequantised(levels, seed) if dequantise else bin_centres(levels)
    return Digits(images, torch.from_numpy(raw.target[rows]).long())


def bin_centres(levels: Tensor) -> Tensor:
    """The middle of each grey level, (levels + 1/2) * BIN_WIDTH - 1: integers 0 ... 16 (*) -> float32 (*) in [-1, 1].

    Raises:
        TypeError, ValueError: `levels` are not integers, or not within 0 ... 16.
    """
    return ((_as_levels(levels) + 0.5) * BIN_WIDTH - 1).float()


def dequantise(levels: Tensor, *, seed: Seed = None) -> Tensor:
    r"""A fresh point in the bin of each grey level: $x = 2 (v + u) / 17 - 1$ with u in U(0, 1).

    Draw it anew for every batch: `dequantise(quantise(x), seed=g)`. u keeps 1e-5 away from the edges of its bin,
    which in float32 is what makes `quantise(dequantise(v)) == v` hold for every draw.

    Args:
        levels: (*) integers 0 ... 16.
        seed: The stream of all rows; None: fresh entropy.

    Returns:
        (*) float32 in (-1, 1).

    Raises:
        TypeError, ValueError: `levels` are not integers, or not within 0 ... 16.

    References:
        Theis et al., A Note on the Evaluation of Generative Models, 2016.
    """
    return _dequantised(levels, seed)


def quantise(x: Tensor) -> Tensor:
    """The grey level of each pixel, floor((x + 1) / BIN_WIDTH): (*) float -> (*) int64 in 0 ... 16.

    Samples overshoot, so a pixel beyond [-1, 1] gets the level at that end.

    Raises:
        TypeError: `x` is not floating point (levels already?).
        ValueError: `x` holds NaN.
    """
    if not x.is_floating_point():
        raise TypeError(f"quantise wants floating-point pixels in [-1, 1], got {x.dtype}, which may be levels already.")
    if torch.isnan(x).any():
        raise ValueError("quantise was given NaN, which has no grey level.")
    return torch.floor((x.double() + 1) / BIN_WIDTH).clamp(0, LEVELS - 1).long()


def _as_levels(levels: Tensor) -> Tensor:
    if levels.is_floating_point() or levels.is_complex() or levels.dtype == torch.bool:
        raise TypeError(
            f"levels must be integers 0..{LEVELS - 1}, got {levels.dtype}. For pixels in [-1, 1] use quantise(x) first."
        )
    if levels.numel() and (int(levels.min()) < 0 or int(levels.max()) >= LEVELS):
        raise ValueError(
            f"levels must lie in 0..{LEVELS - 1}, got values from {int(levels.min())} to {int(levels.max())}."
        )
    return levels.double()


def _dequantised(levels: Tensor, seed: Seed) -> Tensor:
    v = _as_levels(levels)
    u = torch.rand(v.shape, generator=one_stream(seed, v.device), device=v.device, dtype=v.dtype)
    return ((v + 1e-5 + (1 - 2e-5) * u) * BIN_WIDTH - 1).float()
