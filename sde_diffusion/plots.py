"""The pictures of the demonstration and of `sde-diffusion sample`: matplotlib without windows or global state."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sde_diffusion._files import write_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

LARGEST, LONGEST = 4_000_000, 100_000
"""Pixels of a board of images, in all and either way; each is drawn as about seven by seven."""


def tile(images: Tensor, columns: int, *, gap: int = 1, fill: float = float("nan")) -> Tensor:
    """Images `(N, H, W)` laid out row by row, `columns` in each, with a gap of some pixels: `(H', W')`."""
    n, h, w = images.shape
    rows = math.ceil(n / columns)
    board = images.new_full((rows * (h + gap) - gap, columns * (w + gap) - gap), fill)
    for i, image in enumerate(images):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        board[top : top + h, left : left + w] = image
    return board


def by_class(images: Tensor, labels: Tensor, n: int, classes: int = 10) -> Tensor:
    """The first `n` images of each class, blank where there are fewer: `(N, 1, H, W)` -> `(classes, n, H, W)`."""
    board = images.new_full((classes, n, *images.shape[2:]), float("nan"))
    for k in range(classes):
        found = images[labels == k][:n, 0]
        board[k, : len(found)] = found
    return board


def sample_grid(path: str | Path, drawn: Tensor, real: Tensor, *, title: str) -> None:
    """Draws one row per class: samples on the left, real images on the right.

    Args:
        path: File to write.
        drawn: Samples, shape `(K, n, H, W)`, in `[-1, 1]`.
        real: Real images, shape `(K, m, H, W)`.
        title: Heading.
    """
    k, n, h, w = drawn.shape
    columns = n + 1 + real.shape[1]
    between = drawn.new_full((k, 1, h, w), float("nan"))
    figure = new_figure(0.46 * (columns + 1.5), 0.46 * k + 0.85)
    axes = figure.subplots()
    _show(axes, tile(torch.cat([drawn, between, real], dim=1).flatten(0, 1), columns))
    middle = [(0 + n) / 2, n + 1 + real.shape[1] / 2]
    axes.set_xticks([m * (w + 1) - 1 for m in middle], ["generated", "real (test split)"], fontsize=11)
    axes.xaxis.tick_top()
    axes.set_yticks([i * (h + 1) + (h - 1) / 2 for i in range(k)], [str(i) for i in range(k)], fontsize=11)
    axes.set_ylabel("class asked for", fontsize=11)
    _save(figure, path, title)


def bands(path: str | Path, rows: Mapping[str, Tensor], *, title: str) -> None:
    """Draws bands of images below one another, with a gap between them and a name beside each.

    Args:
        path: File to write.
        rows: By name the images of a band, shape `(rows, n, H, W)`, in `[-1, 1]`; `n`, `H` and `W` are those of all.
        title: Heading.
    """
    boards, places, top = [], [], 0
    for images in rows.values():
        board = tile(images.flatten(0, 1), images.shape[1])
        between = board.new_full((images.shape[2] // 2, board.shape[1]), float("nan"))
        boards += [board, between]
        places.append(top + (len(board) - 1) / 2)
        top += len(board) + len(between)
    whole = torch.cat(boards[:-1])
    figure = new_figure(whole.shape[1] / 20 + 1.2, whole.shape[0] / 20 + 0.5)
    axes = figure.subplots()
    _show(axes, whole)
    axes.set_yticks(places, list(rows), fontsize=10)
    _save(figure, path, title)


def film_strip(
    path: str | Path, states: Tensor, guesses: Tensor, levels: Sequence[float], names: Sequence[object], *, title: str
) -> None:
    """Draws samples on their way from noise to image, each state above what the network takes it to be.

    Args:
        path: File to write.
        states: Variance-normalised states, shape `(n, T, H, W)`, noise first.
        guesses: The posterior means at the same times, same shape.
        levels: Noise level of each column, in standard deviations of the data; 0 for the finished image.
        names: The class that each sample was asked for.
        title: Heading.
    """
    n, t, h, w = states.shape
    figure = new_figure(0.72 * t + 1.6, 2 * 0.72 * n + 0.14 * n + 1.0)
    figure.set_layout_engine("constrained", h_pad=0.09)
    bands = figure.subplots(n, 1, squeeze=False)[:, 0]
    for axes, state, guess, name in zip(bands, states, guesses, names, strict=True):
        _show(axes, tile(torch.cat([state, guess]), t))
        axes.set_yticks([(h - 1) / 2, h + 1 + (h - 1) / 2], ["state", "network's\nestimate"], fontsize=10)
        axes.set_ylabel(f"class {name}", fontsize=11, fontweight="bold")
    ticks = [i * (w + 1) + (w - 1) / 2 for i in range(t)]
    bands[-1].set_xticks(ticks, [f"{s:.2g}" if s else "image" for s in levels], fontsize=10)
    bands[-1].set_xlabel("noise level, in standard deviations of the data", fontsize=10)
    _save(figure, path, title)


def quality_plot(
    path: str | Path,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    points: Mapping[str, tuple[int, float]],
    *,
    floor: float,
    title: str,
) -> None:
    """Draws Frechet distance against network evaluations per sample, both on logarithmic axes.

    Args:
        path: File to write.
        curves: For each name the pairs (evaluations, distance), joined by lines.
        points: Single pairs, drawn as marks and named in the legend.
        floor: The distance of real training images at the same number of images.
        title: Heading.
    """
    figure = new_figure(10.5, 5.2)
    axes = figure.subplots()
    top = 12 * floor
    for i, (name, curve) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": COLOURS[i % 7], "marker": "osD^v"[i % 5], "ls": ("-", "--", "-.")[i % 3]}
        axes.plot(*zip(*sorted(curve), strict=True), lw=1.8, markersize=6, mfc="white", mew=1.6, label=name, **style)
        for x, y in curve:
            if y > top:
                axes.annotate(f"{y:.0f} \u2191", (x, 0.85 * top), color=style["color"], ha="center", fontsize=10)
    for i, (name, (x, y)) in enumerate(points.items()):
        axes.plot(x, min(y, top), "PXd<>ph"[i % 7], markersize=9, color="0.35", mec="white", ls="none", label=name)
    axes.axhline(floor, color="0.4", ls="--", lw=1.2, label="real training images")
    axes.set(xscale="log", yscale="log", ylim=(0.8 * min(floor, *(y for c in curves.values() for _, y in c)), top))
    axes.set_xlabel("network evaluations per sample", fontsize=11)
    axes.set_ylabel("Frechet distance to test images (less is better)", fontsize=11)
    _plain_ticks(axes, [x for c in (*curves.values(), points.values()) for x, _ in c])
    axes.grid(True, which="both", color="0.92", lw=0.7)
    axes.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    _save(figure, path, title)


def weights_plot(path: str | Path, rows: Sequence[Sequence[float]], times: Sequence[float], *, title: str) -> None:
    """Draws a triangle of weights: one row for each state, one column for the start and each prediction.

    Args:
        path: File to write, a PNG.
        rows: Row `i` has the weight of the start, then those of `i` predictions.
        times: The times of the predictions.
        title: Heading.
    """
    n = len(times)
    board = torch.full((n + 1, n + 1), float("nan"), device="cpu")
    for i, row in enumerate(rows):
        board[i, : len(row)] = torch.as_tensor(row, device="cpu")
    most = float(board.nan_to_num().abs().max()) or 1.0
    figure = new_figure(2.4 + 0.42 * n, 1.6 + 0.36 * n)
    axes = figure.subplots()
    shown = axes.imshow(board.numpy(), cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest", aspect="auto")
    figure.colorbar(shown, ax=axes, label="weight")
    every = max(1, n // 24)
    places = list(range(0, n, every))
    axes.set_xticks([0, *(1 + j for j in places)], ["start", *(f"{times[j]:.3g}" for j in places)], rotation=90)
    axes.set_yticks([*places, n], [*(f"{times[j]:.3g}" for j in places), "result"])
    axes.set_xlabel("prediction, by the time at which it is asked", fontsize=10)
    axes.set_ylabel("state", fontsize=10)
    _save(figure, path, title)


def picture(path: str | Path, x: Tensor, *, low: float, high: float, columns: int) -> None:
    """Draws samples for a look: images `(N, 1 or 3, H, W)` as a board, points `(N, 2)` as a scatter.

    Args:
        path: File to write.
        x: Samples.
        low: Value drawn black.
        high: Value drawn white.
        columns: Images per row.

    Raises:
        ValueError: Anything but grey or colour images or points of two coordinates, or too many of them.
    """
    check_picture(tuple(x.shape), columns=columns)
    if x.ndim == 2 and x.shape[1] == 2:
        figure = new_figure(5, 5)
        axes = figure.subplots()
        axes.scatter(x[:, 0].numpy(), x[:, 1].numpy(), s=4, lw=0, alpha=0.6, color=COLOURS[0])
        spans = (x.amax(0) - x.amin(0)).tolist()
        alike = max(spans) <= 10 * min(spans)  # else one scale for both axes would draw a line
        axes.set(aspect="equal" if alike else "auto", xlabel="coordinate 0", ylabel="coordinate 1")
    else:
        shade = ((x - low) / (high - low)).clamp(0, 1)
        board = torch.stack([tile(channel, columns, fill=1.0) for channel in shade.unbind(1)], dim=2)
        figure = new_figure(board.shape[1] / 20 + 0.2, board.shape[0] / 20 + 0.2)
        axes = figure.subplots()
        axes.imshow(board.expand(-1, -1, 3).numpy(), interpolation="nearest")
        axes.axis("off")
    _save(figure, path, None)


def check_picture(shape: tuple[int, ...], *, columns: int) -> None:
    """Raises `ValueError` unless `picture` can draw samples of this shape, `(N, 2)` or `(N, 1 or 3, H, W)`."""
    if len(shape) == 2 and shape[1] == 2:
        return
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(
            f"no picture of samples of shape {shape[1:]}: a .png holds images (1 or 3, H, W) or points (2,). "
            "Write .npy or .npz"
        )
    height, width = math.ceil(shape[0] / columns) * (shape[2] + 1), min(columns, shape[0]) * (shape[3] + 1)
    if height * width > LARGEST or max(height, width) > LONGEST:
        raise ValueError(
            f"no picture of {shape[0]:,} samples of shape {shape[1:]}: a board of {height:,} x {width:,} pixels, and "
            f"at most {LARGEST:,}, {LONGEST:,} either way, are drawn. Draw fewer, or write .npy or .npz"
        )


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches, without windows or global state; raises `ImportError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'sde-diffusion[examples]'") from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _show(axes: Axes, board: Tensor) -> None:
    axes.imshow(board.clamp(-1, 1).numpy(), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _plain_ticks(axes: Axes, evaluations: Iterable[float]) -> None:
    """Round numbers, written out, on both logarithmic axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    top = max(evaluations)
    axes.set_xticks([v for v in (5, 10, 20, 50, 100, 200, 500, 1000) if v <= 1.3 * top])
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _save(figure: Any, path: str | Path, title: str | None) -> None:
    if title is not None:
        figure.suptitle(title, fontsize=12)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", bbox_inches="tight", pad_inches=0.1)
    write_files({Path(path): drawn.getvalue()})
