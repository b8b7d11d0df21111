r"""What is known of the samples that are asked for: `--inpaint FILE`, in the units of the data.

A `.npy` holds samples with NaN where they are not known; an `.npz` holds them as `known`, and in `mask` what is. It is
brought to what the model knows by the scaling in the checkpoint, and so is the noise: in column $d$ it is
$\sigma f_d'(x_d)$, the same everywhere where $f$ is a straight line. A log-density of what is known lacks
$\sum\log f_d'(x_d)$ over its entries.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sde_diffusion.data._npy import members
from sde_diffusion.data.scalings import Standardise
from sde_diffusion.data.sources.rows import as_tensor
from sde_diffusion.training.checkpoint import Checkpoint

NOISE = 0.05
"""The noise of what is known where nothing is said, in standard deviations of the data."""
FAR = 0.5
"""Ranges of the training beyond its own at which what is known is far from it."""


@dataclass(frozen=True, eq=False)
class Known:
    r"""Entries of samples that are known, as the model knows them.

    Args:
        mask: True where an entry is known, of the event shape.
        y: Their values, shape `(k,)` for all samples or `(rows, k)`.
        noise: $\sigma_y$ of each, shape `(k,)`, or one for all.
        log_slope: $\sum\log f_d'(x_d)$ over what is known, of each row, in nats.
        about: The noise, in words.
    """

    mask: Tensor
    y: Tensor
    noise: Tensor | float
    log_slope: Tensor
    about: str

    @property
    def rows(self) -> int | None:
        """How many samples have a row of their own; None where one stands for all."""
        return None if self.y.ndim == 1 else len(self.y)


def read_known(path: Path, noise: float | None, loaded: Checkpoint) -> Known:
    r"""Reads what is known, and brings it to what a model knows.

    Args:
        path: `.npy` or `.npz`, of one sample, for all, or with a row for each.
        noise: $\sigma$ in the units of the data; None for a part of their standard deviation.
        loaded: The checkpoint.

    Raises:
        FileNotFoundError: No such file.
        TypeError: Something else than numbers, or a mask that is none.
        ValueError: Another shape, nothing known, numbers that are none where they should be, or noise that does not
            fit.

    Warns:
        UserWarning: What is known is far from all in the training.
    """
    shape = loaded.model.shape
    if shape is None:
        raise ValueError("--inpaint: the checkpoint does not say of which shape a sample is")
    if not path.is_file():
        raise FileNotFoundError(f"--inpaint: there is no file {path}")
    who = f"--inpaint {path}"
    x, mask = _arrays(path, who)
    if tuple(x.shape) != shape and tuple(x.shape[1:]) != shape:
        raise ValueError(
            f"{who}: samples have shape {shape}, got {tuple(x.shape)}: wanted that, for all of them, or (n, *{shape})"
        )
    one = tuple(x.shape) == shape
    x = (x[None] if one else x).to(torch.float64)
    mask = _mask_of(x, mask, shape, who)
    _check_entries(x, mask, who)
    _warn_of_far(x[:, mask], loaded, who)
    x = torch.where(mask, x, 0.0)
    slopes = loaded.scaling.log_slopes(x)[:, mask]
    y = loaded.scaling.apply(x, torch.float64)[:, mask]
    std, about = _noise(noise, slopes, loaded)
    return Known(mask, y[0] if one else y, std, slopes.sum(1), about)


def _arrays(path: Path, who: str) -> tuple[Tensor, Tensor | None]:
    """What a file holds: samples, and in an `.npz` what is known of them."""
    try:
        arrays = members(path)
        if "x" in arrays and path.suffix.lower() != ".npz":
            return as_tensor(arrays["x"](), "it"), None
        if missing := {"known", "mask"} - set(arrays):
            raise ValueError(
                "an .npz holds `known` and `mask`, True where an entry is known, and this has no "
                f"{sorted(missing)[0]}, only {', '.join(sorted(arrays)[:8]) or 'nothing'}"
            )
        return as_tensor(arrays["known"](), "known"), as_tensor(arrays["mask"](), "mask")
    except (TypeError, ValueError) as error:
        raise type(error)(f"{who}: {error}") from error


def _mask_of(x: Tensor, mask: Tensor | None, shape: tuple[int, ...], who: str) -> Tensor:
    """What is known of every row, of the event shape."""
    if mask is None:
        mask = ~x.isnan()
    elif mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise TypeError(f"{who}: mask must hold True and False, or 1 and 0, got {mask.dtype} of other values")
    mask = mask.bool()
    if tuple(mask.shape) == shape:
        mask = mask[None]
    if tuple(mask.shape[1:]) != shape or len(mask) not in (1, len(x)):
        raise ValueError(f"{who}: mask has shape {tuple(mask.shape)}, wanted that of a sample, {shape}")
    if bool((mask != mask[:1]).any()):
        row = int((mask != mask[:1]).flatten(1).any(1).nonzero()[0, 0])
        raise ValueError(
            f"{who}: other entries are known of row {row} than of row 0: give a file for each such pattern"
        )
    if not bool(mask.any()):
        raise ValueError(f"{who}: nothing in it is known, so that it says nothing: leave --inpaint out")
    return mask[0]


def _check_entries(x: Tensor, mask: Tensor, who: str) -> None:
    """Refuses what is said to be known and is no number."""
    bad = (mask & ~x.isfinite()).nonzero()
    if len(bad):
        row, *entry = bad[0].tolist()
        raise ValueError(
            f"{who}: {float(x[tuple(bad[0])]):g} is no value that is known, at entry {tuple(entry)} of row {row}: "
            "mask is False, or a .npy NaN, where an entry is not known"
        )


def _noise(noise: float | None, slopes: Tensor, loaded: Checkpoint) -> tuple[Tensor | float, str]:
    """The standard deviation of each entry as the model knows it, and the same in words, in the units of the data."""
    unit = loaded.model.data_std
    straight = isinstance(loaded.scaling, Standardise)
    if noise is None:
        size = torch.exp(-slopes[0]) * (NOISE * unit)
        low, high = float(size.min()), float(size.max())
        said = f"{low:.3g}" if high - low <= 1e-9 * high else f"{low:.3g} to {high:.3g}"
        where = f", {said} in its units," if straight else ""
        return NOISE * unit, f"noise of {NOISE:g} standard deviations of the data{where} as --noise is unset"
    if not 0 < noise < float("inf"):
        raise ValueError(
            f"--noise must be positive and finite, got {noise:g}: what is known is met up to it. Leave it out for "
            f"{NOISE:g} standard deviations of the data, or give a small value"
        )
    if not straight:
        raise ValueError(
            "--noise: the columns were scaled by their quantiles, and noise of one size in their units is another at "
            f"each value: leave it out for {NOISE:g} standard deviations of the scaled data"
        )
    std = noise * torch.exp(slopes[0])
    same = bool((std == std[0]).all())
    return (float(std[0]) if same else std), f"noise of {noise:g}, in the units of the data"


def _warn_of_far(values: Tensor, loaded: Checkpoint, who: str) -> None:
    """Warns of values far from all that the training has seen, such as those of another unit."""
    low, high = loaded.extra.get("data_range", (-float("inf"), float("inf")))
    far = FAR * (high - low)
    if bool(((values < low - far) | (values > high + far)).any()):
        warnings.warn(
            f"{who}: what is known lies from {float(values.min()):.4g} to {float(values.max()):.4g}, and the training "
            f"saw {low:.4g} to {high:.4g}: it is to be in the units of the data",
            UserWarning,
            stacklevel=3,
        )
