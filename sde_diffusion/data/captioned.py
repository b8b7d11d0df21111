r"""Digits drawn with a thin or a thick pen, here or there, and captions that say so: text and image for demonstrations.

The strokes of scikit-learn's digits are thinned to lines one point wide, and drawn anew. Thickness, place and class are
so independent of one another, and each is known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sde_diffusion._checks import check_count
from sde_diffusion.data.images import Seed, digits
from sde_diffusion.noise.seeds import one_stream

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = ("", "left", "right", "up", "down")
SIDE, FINE = 16, 4
"""Pixels of a side, and points in a pixel along each axis where strokes are drawn."""
INK = -0.4
"""The grey above which a point of a digit, in [-1, 1], may belong to a stroke."""
WIDTHS = ((0.9, 1.2), (2.3, 2.7))
"""Widths of thin and of thick strokes, in pixels."""
SHIFT = (1.8, 2.4)
"""How far a shifted digit lies from the middle, in pixels."""
UNSAID = 0.2
"""The share of captions that leave the thickness open."""


@dataclass(frozen=True, eq=False)
class CaptionedDigits:
    """Images with their captions, and what these tell.

    Args:
        images: (N, 1, 16, 16) float32 in [-1, 1].
        captions: N strings, such as "a thick seven, shifted left".
        labels: (N,) int64, 0 ... 9.
        widths: (N,) float32, of the strokes, in pixels; above 1.7 thick.
        shifts: (N, 2) float32, of the centre of mass to the right and down, in pixels.
    """

    images: Tensor
    captions: list[str]
    labels: Tensor
    widths: Tensor
    shifts: Tensor

    def __len__(self) -> int:
        return len(self.images)


def captioned_digits(
    split: Literal["train", "test"] = "train", *, copies: int = 1, seed: Seed = None
) -> CaptionedDigits:
    """The digits of `digits`, each in a thickness and a place drawn at random, with a caption of them.

    A caption names the class; thin or thick, but for one in five; and whether the digit is shifted left, right, up or
    down, as four in five are. Nothing is downloaded; the first call takes a few seconds.

    Args:
        split: "train", 1,437 digits, or "test", 360.
        copies: How often each digit is drawn.
        seed: The stream of thickness, place and caption; it does not change the split. None: fresh entropy.

    Raises:
        TypeError, ValueError: Any other `split`, or number of copies.
        ImportError: scikit-learn is not installed.
    """
    near, middles, labels = _lines(split)
    labels = labels.repeat(check_count(copies, "copies"))
    n, g = len(labels), one_stream(seed)
    thick = torch.rand(n, generator=g, device="cpu") < 0.5
    low, high = torch.tensor(WIDTHS, device="cpu")[thick.long()].T
    widths = low + (high - low) * torch.rand(n, generator=g, device="cpu")
    place = torch.randint(len(PLACES), (n,), generator=g, device="cpu")
    way = torch.tensor([[0.0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], device="cpu")[place]
    far = SHIFT[0] + (SHIFT[1] - SHIFT[0]) * torch.rand(n, 1, generator=g, device="cpu")
    shifts = way * far + 0.4 * (torch.rand(n, 2, generator=g, device="cpu") - 0.5)
    told = torch.rand(n, generator=g, device="cpu") >= UNSAID
    pens = zip(torch.arange(n, device="cpu").split(512), widths.split(512), shifts.split(512), strict=True)
    images = torch.cat([_drawn(near[i % len(near)], middles[i % len(near)], *pen) for i, *pen in pens])
    rows = zip(labels.tolist(), thick.tolist(), place.tolist(), told.tolist(), strict=True)
    return CaptionedDigits(images, [_caption(*row) for row in rows], labels, widths, shifts)


def _caption(label: int, thick: bool, place: int, told: bool) -> str:
    pen = ("thick " if thick else "thin ") if told else ""
    return f"a {pen}{NUMBERS[label]}" + (f", shifted {PLACES[place]}" if place else "")


@lru_cache(maxsize=2)
def _lines(split: Literal["train", "test"]) -> tuple[Tensor, Tensor, Tensor]:
    """The strokes of all digits of a split as lines.

    Returns:
        The distance of every point to the nearest of a line, (N, 64, 64); the centres of mass, (N, 2); the labels.
    """
    found = digits(split, dequantise=False)
    grey = F.interpolate(found.images, scale_factor=5, mode="bicubic", align_corners=False)
    around = F.avg_pool2d(F.pad(grey, (7, 7, 7, 7), value=-1), 15, 1)  # or the holes of small loops are filled
    lines = F.pad(thinned(((grey > INK) & (grey > around))[:, 0]), (12, 12, 12, 12))
    points, mass = torch.arange(SIDE * FINE, device="cpu") + 0.5, lines.flatten(1).sum(1)
    middles = [(lines * along).flatten(1).sum(1) / mass for along in (points, points[:, None])]
    return torch.cat([_distances(part) for part in lines.split(256)]), torch.stack(middles, 1), found.labels


def _drawn(near: Tensor, middles: Tensor, widths: Tensor, shifts: Tensor) -> Tensor:
    """Lines drawn with a round pen: (N, 64, 64), (N, 2), (N,) and (N, 2), in pixels -> (N, 1, 16, 16)."""
    side = SIDE * FINE
    move = (middles - side / 2 - FINE * shifts) * 2 / side  # in halves of the side
    theta = torch.cat([torch.eye(2, device="cpu").expand(len(near), 2, 2), move[:, :, None]], 2)
    grid = F.affine_grid(theta, [len(near), 1, side, side], align_corners=False)
    far = F.grid_sample(near[:, None], grid, padding_mode="border", align_corners=False)
    return 2 * F.avg_pool2d((widths.reshape(-1, 1, 1, 1) * FINE / 2 - far + 0.5).clamp(0, 1), FINE) - 1


def _distances(lines: Tensor) -> Tensor:
    """The distance of every point to the nearest of a line, up to 8 points: (N, H, W) bool -> float32.

    Exact, by the two axes one after the other: the least over rows of the square of the distance along a row.
    """
    far, reach = 64.0, range(-8, 9)
    square = torch.where(lines, 0.0, far)
    for axis in (1, 2):
        wide = F.pad(square, (8, 8) if axis == 2 else (0, 0, 8, 8), value=far)
        square = torch.stack([wide.narrow(axis, 8 + k, square.shape[axis]) + k * k for k in reach]).amin(0)
    return square.clamp(max=far).sqrt()


def thinned(ink: Tensor) -> Tensor:
    """Thins strokes to lines one point wide that hang together as the strokes do: (N, H, W) bool -> same.

    References:
        Zhang and Suen, A Fast Parallel Algorithm for Thinning Digital Patterns, 1984.
    """
    x, changed = ink.clone(), True
    while changed:
        changed = False
        for first in (True, False):
            n = _neighbours(x)  # from the one above, clockwise
            count = sum(each.to(torch.uint8) for each in n)
            turns = sum((~a & b).to(torch.uint8) for a, b in zip(n, n[1:] + n[:1], strict=True))
            up, right, down, left = n[0], n[2], n[4], n[6]
            open_ = ~(up & right & down) & ~(right & down & left)
            other = ~(up & right & left) & ~(up & down & left)
            gone = x & (count >= 2) & (count <= 6) & (turns == 1) & (open_ if first else other)
            changed = changed or bool(gone.any())
            x = x & ~gone
    return x


def _neighbours(x: Tensor) -> list[Tensor]:
    wide, (h, w) = F.pad(x, (1, 1, 1, 1)), x.shape[1:]
    around = ((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))
    return [wide[:, i : i + h, j : j + w] for i, j in around]
