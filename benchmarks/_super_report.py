"""The tables, the checks and the pictures of `super_resolution.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sde_diffusion import plots

SIDE = 32
WITHIN = 0.03
"""How much of the classifier's accuracy on real digits super-resolved ones may lose."""
SLACK = 1.25
"""How far the low resolution of a sample may be from the noised one, in levels of 0.1 and more; 1 of an exact model."""
TITLES = {
    "cascade_digits": "Test digits, shrunk to 4 x 4 and drawn again",
    "cascade_photos": "Patches of photographs: a cascade, and high resolutions of 8 x 8",
}


def tables(result: Mapping[str, Any]) -> str:
    """All tables, in Markdown."""
    return f"{digits_table(result['digits'])}\n\n{photos_table(result['photos'])}"


def digits_table(found: Mapping[str, Any]) -> str:
    """What a classifier knows of digits, and how far their low resolution is from what it was drawn of."""
    known, far = found["accuracy"], found["frechet"]
    lines = [
        "| 360 test digits | class known | off the noised 4 x 4 | off the clean 4 x 4 | Frechet distance |",
        "|---|---|---|---|---|",
        f"| real, 8 x 8 | {known['real']:.1%} | | | {far['real']:.2f} |",
        f"| 4 x 4, by a classifier trained on them | {known['best of 4 x 4']:.1%} | | | |",
        f"| bilinear of 4 x 4 | {known['bilinear']:.1%} | | | {far['bilinear']:.2f} |",
    ]
    for row in found["upsampled"]:
        told = "class told" if row["label"] else "class not told"
        lines.append(
            f"| drawn of 4 x 4, level {row['level']:g}, {told} | {row['accuracy']:.1%} ± {row['standard_error']:.1%} | "
            f"{row['from_noised']:.3f} | {row['from_clean']:.3f} | {row['frechet']:.2f} |"
        )
    row = found["cascade"]
    lines.append(f"| cascade of both stages, class told | {row['accuracy']:.1%} | | | {row['frechet']:.2f} |")
    return "\n".join(lines)


def photos_table(found: Mapping[str, Any]) -> str:
    """Frechet distances of patches, and what the stages are."""
    names = {
        "real": "real patches to train on",
        "cascade": "cascade, 8 -> 16 -> 32",
        "given 8 x 8": "drawn of real 8 x 8",
        "bilinear of 8 x 8": "bilinear of real 8 x 8",
    }
    lines = ["| patches of 32 x 32 | Frechet distance from test patches |", "|---|---|"]
    lines += [f"| {text} | {found['frechet'][name]:.3g} |" for name, text in names.items()]
    lines += ["", "| stage | parameters | steps x batch | minutes of training |", "|---|---|---|---|"]
    for row in found["stages"]:
        lines.append(
            f"| {row['shape'][1]} x {row['shape'][2]} | {row['parameters']:,} | {row['steps']:,} x {row['batch']} | "
            f"{row['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def checks(result: Mapping[str, Any]) -> list[str]:
    """What has to hold, each with whether it does."""
    digits, far = result["digits"], result["photos"]["frechet"]
    real = digits["accuracy"]["real"]
    told = [row for row in digits["upsampled"] if row["label"]]
    worst = min(row["accuracy"] for row in told if row["level"] <= 0.1)
    noisy = [row for row in told if row["level"] >= 0.1]
    noised, clean = (max(row[of] / row["level"] for row in noisy) for of in ("from_noised", "from_clean"))
    photo = result["photos"]["content"][0]
    held = {
        f"digits keep their class, told, up to level 0.1: {worst:.1%} of {real:.1%}": worst >= real - WITHIN,
        f"more than bilinear ones, {digits['accuracy']['bilinear']:.1%}": worst > digits["accuracy"]["bilinear"],
        f"digits keep their low resolution: {noised:.2f} levels from the noised one at most": noised <= SLACK,
        f"and {clean:.2f} levels from the clean one, of sqrt(2) that an exact model has at most": clean <= 2**0.5,
        f"so do photos: {photo['from_noised'] / photo['level']:.2f} levels": photo["from_noised"]
        <= SLACK * photo["level"],
        "drawn photos are closer to real ones than bilinear ones": far["given 8 x 8"] < far["bilinear of 8 x 8"],
    }
    return [f"{'held' if ok else 'MISSED'}: {text}" for text, ok in held.items()]


def draw(shown: Mapping[str, Tensor], path: Path) -> None:
    """The bands of one part, each image as large as the largest; photographs with white as white."""
    sign = -1.0 if path.stem.endswith("photos") else 1.0
    rows = {
        name: sign * F.interpolate(images.float(), size=(SIDE, SIDE), mode="nearest").transpose(0, 1)
        for name, images in shown.items()
    }
    plots.bands(path, rows, title=TITLES[path.stem])
