"""Patches of the photographs that scikit-image and scikit-learn ship: real images of any size, without a download.

Thirteen pictures are cut into square blocks, of which every fifth is kept out: patches to train on and to test on share
no pixel, and are of the same pictures, so that they have one law. Which picture a patch is of, its label says.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_flag
from sde_diffusion.data.images import Digits

__all__ = ["PICTURES", "photo_patches"]

PICTURES = (
    "astronaut",
    "brick",
    "camera",
    "cat",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "moon",
    "rocket",
    "china.jpg",
    "flower.jpg",
)
"""The pictures, by the names that scikit-image and, those with an ending, scikit-learn give them."""
KEPT_OUT, BLOCK, STRIDES = 5, 2, 4
"""One block of so many is kept out; the side of a block in patches; steps of a patch in its own side."""
GREY = (0.299, 0.587, 0.114)
"""The shares of red, green and blue in a grey (ITU-R BT.601)."""


def photo_patches(
    size: int = 32, split: Literal["train", "test"] = "train", *, stride: int | None = None, colour: bool = False
) -> Digits:
    """Square patches of photographs, from blocks twice as long, which belong to one split as a whole.

    At 32 pixels 17,300 to train on and 4,325 to test on, of standard deviation 0.51. Those of one block overlap: they
    are no independent draws. The pictures are read from their files in every call, which takes a second or two.

    Args:
        size: Side of a patch in pixels.
        split: "train" or "test".
        stride: Pixels from one patch of a block to the next; a quarter of `size` by default. `size` gives patches that
            do not overlap.
        colour: Red, green and blue, of the pictures that have them; else grey, of all.

    Returns:
        images (N, 1, size, size), or (N, 3, size, size), float32 in [-1, 1], and as labels the number of the picture in
        `PICTURES`, (N,) int64.

    Raises:
        TypeError, ValueError: `size` or `stride` is no positive integer, `size` is so large that a split is empty, or
            another `split`.
        ImportError: scikit-image or scikit-learn is not installed.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
    check_count(size, "size")
    stride = max(1, size // STRIDES) if stride is None else check_count(stride, "stride")
    check_flag(colour, "colour")
    patches: list[Tensor] = []
    labels: list[int] = []
    count = 0
    for number, picture in enumerate(_pictures(colour)):
        side = BLOCK * size
        for top in range(0, picture.shape[1] - side + 1, side):
            for left in range(0, picture.shape[2] - side + 1, side):
                if (count % KEPT_OUT == KEPT_OUT - 1) == (split == "test"):
                    found = _cut(picture[:, top : top + side, left : left + side], size, stride)
                    patches.append(found)
                    labels += [number] * len(found)
                count += 1
    if not patches:
        raise ValueError(f"size={size} leaves no patch in the {split} split: the pictures are 300 to 1,000 pixels long")
    return Digits(torch.cat(patches).float() / 127.5 - 1, torch.tensor(labels, dtype=torch.int64, device="cpu"))


def _cut(block: Tensor, size: int, stride: int) -> Tensor:
    """The patches of a block (C, H, W): (n, C, size, size)."""
    found = block.unfold(1, size, stride).unfold(2, size, stride)
    return found.permute(1, 2, 0, 3, 4).reshape(-1, len(block), size, size)


def _pictures(colour: bool) -> list[Tensor]:
    """The pictures that are to be cut, (C, H, W) float32 in [0, 255]."""
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ImportError(
            "photo_patches() cuts pictures of scikit-image and scikit-learn. Install them: "
            "pip install 'sde-diffusion[examples]'"
        ) from error
    found = []
    for name in PICTURES:
        raw: Any = load_sample_image(name) if name.endswith(".jpg") else getattr(data, name)()
        if colour and raw.ndim == 2:
            continue
        picture = torch.from_numpy(np.array(raw, dtype=np.float32))
        if not colour and picture.ndim == 3:
            picture = picture @ torch.tensor(GREY, device="cpu")
        found.append(picture.permute(2, 0, 1) if colour else picture[None])
    return found
