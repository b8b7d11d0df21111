"""What is found in data before the first step, by one pass over them: rows that no model can learn from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import rows_in_words
from sde_diffusion.data.sources.base import Source

ROWS = 4096
"""Rows that are looked at together."""


def check_rows(source: Source, name: str = "the data", *, classes: int | None = None) -> None:
    """Raises if a row is not finite, or has a label that is no class; NaN in a condition is a value not known.

    Args:
        source: Any source; all of its rows are read once.
        name: What an error calls them.
        classes: The number of classes that the network was built with; None: any that are not negative.

    Raises:
        TypeError: Labels that are no integers.
        ValueError: By the numbers of the rows: NaN or infinity in x; infinity in a condition; labels out of range.
    """
    broken, first = [], 0
    for x, cond in source.chunks(ROWS):
        broken.append(~torch.isfinite(x.reshape(len(x), -1)).all(1))
        _check_conditions(cond, first, "condition")
        if "label" in cond:
            _check_labels(cond["label"], first, classes)
        first += len(x)
    if bool((mask := torch.cat(broken)).any()):
        raise ValueError(f"{name} hold NaN or infinity in {rows_in_words(mask)}: remove or replace them")


def _check_labels(labels: Any, first: int, classes: int | None) -> None:
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"condition 'label' holds {labels.dtype}, wanted integers, the numbers of classes: label.long(), or "
            "another name for a continuous condition"
        )
    bad = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if bool(bad.any()):
        row = int(bad.reshape(len(bad), -1).any(1).nonzero()[0, 0])
        value = int(labels[row].flatten()[0])
        wanted = "0, 1, ..." if classes is None else f"0..{classes - 1}"
        raise ValueError(f"label must lie in {wanted}, got {value} in row {first + row} of the data: correct it")


def _check_conditions(cond: Any, first: int, name: str) -> None:
    for key, value in cond.items():
        path = f"{name} {key!r}" if name == "condition" else f"{name[:-1]}.{key}'"
        if isinstance(value, dict):
            _check_conditions(value, first, path)
        elif isinstance(value, Tensor) and value.is_floating_point():
            bad = torch.isinf(value.reshape(len(value), -1)).any(1)
            if bool(bad.any()):
                raise ValueError(
                    f"{path} is infinite in row {first + int(bad.nonzero()[0, 0])} of the data: correct it, or give "
                    "NaN where it is not known"
                )
