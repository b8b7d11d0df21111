"""A folder of images, `.png` and `.jpg`, as bytes; its subfolders are their classes.

Pillow reads them: `pip install 'sde-diffusion[images]'`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data.sources.arrays import Rows
from sde_diffusion.data.sources.base import Batch, Source

ENDINGS = (".png", ".jpg", ".jpeg")
GREY, COLOUR = ("1", "L"), ("RGB", "P")
"""Modes of Pillow that are read: as one channel, and as three."""


class Pictures(Source):
    """The images of a folder, read one by one: `(C, H, W)` bytes, one channel if all are grey, else three.

    Args:
        folder: It; images lie in it, or all in folders within it, each of which is a class, numbered in sorted order,
            which comes as the condition `label`.
        size: Height and width that every image is brought to, scaled until it covers them and cut around its middle; a
            number for both. None: all are of one size.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: No images, or some in the folder and some in folders within it; images of more than one size, of
            another kind than grey or RGB, or that cannot be read, by their names.
    """

    def __init__(self, folder: str | Path, size: int | tuple[int, int] | None = None) -> None:
        self.files, names = _files(Path(folder))
        self.size = (size, size) if isinstance(size, int) else size
        heads = [self._head(file) for file in self.files]
        sizes: dict[tuple[int, int], Path] = {}
        for file, (_, found) in zip(self.files, heads, strict=True):
            sizes.setdefault(found, file)
        if self.size is None and len(sizes) > 1:
            (a, one), (b, other) = list(sizes.items())[:2]
            raise ValueError(
                f"the images of {folder} are of {len(sizes)} sizes: {one.name} has {a[0]} x {a[1]} pixels and "
                f"{other.name} {b[0]} x {b[1]}. Give size=, to which all are scaled and cut"
            )
        height, width = self.size or next(iter(sizes))
        self.channels = 1 if all(mode in GREY for mode, _ in heads) else 3
        self.shape = (self.channels, height, width)
        self.label = None
        if names:
            numbers = {name: i for i, name in enumerate(names)}
            self.label = torch.tensor([numbers[file.parent.name] for file in self.files], device="cpu")
            self.about = {"labels": names}

    def __len__(self) -> int:
        return len(self.files)

    @property
    def bytes(self) -> int:
        """What all of them take in memory."""
        return len(self) * math.prod(self.shape)

    def rows(self, numbers: Tensor) -> Batch:
        x = torch.stack([self._read(self.files[i]) for i in numbers.tolist()])
        return Batch(x, {} if self.label is None else {"label": self.label[numbers]})

    def labels(self) -> Tensor | None:
        return self.label

    def loaded(self) -> Rows:
        """All of them in memory."""
        found = Rows(torch.stack([self._read(file) for file in self.files]), _cond(self.label))
        found.about = self.about
        return found

    def _head(self, file: Path) -> tuple[str, tuple[int, int]]:
        with _opened(file) as image:
            if image.mode not in GREY + COLOUR:
                raise ValueError(
                    f"{file} is an image of mode {image.mode}, wanted grey or RGB of 8 bits: convert it, or save "
                    "arrays as .npy"
                )
            return image.mode, (image.height, image.width)

    def _read(self, file: Path) -> Tensor:
        from PIL import ImageOps

        with _opened(file) as image:
            try:
                found = image.convert("L" if self.channels == 1 else "RGB")
                if self.size is not None:
                    found = ImageOps.fit(found, self.size[::-1])
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(f"{file} cannot be read as an image: {error}") from error
        pixels = torch.from_numpy(np.array(found))
        return pixels[None] if self.channels == 1 else pixels.permute(2, 0, 1).contiguous()


def _cond(label: Tensor | None) -> dict[str, Any]:
    return {} if label is None else {"label": label}


def _opened(file: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("images need Pillow: pip install 'sde-diffusion[images]'") from error
    try:
        return Image.open(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def _files(folder: Path) -> tuple[list[Path], list[str]]:
    """The images of a folder, sorted, and the names of their classes."""
    here = list(_images(folder))
    inside = {path.name: list(_images(path)) for path in sorted(folder.iterdir()) if path.is_dir()}
    classes = {name: files for name, files in inside.items() if files and not name.startswith(".")}
    if here and classes:
        raise ValueError(
            f"{folder} holds {here[0].name} and, in the folder {next(iter(classes))}, more images: put all of them in "
            "folders by their class, or none"
        )
    if not here and not classes:
        raise ValueError(f"{folder} holds no images: wanted {', '.join(ENDINGS)}, in it or in folders by their class")
    return here or [file for files in classes.values() for file in files], list(classes)


def _images(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file():
            yield path
