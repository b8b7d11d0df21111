"""The picture of a report: one panel per family of curves."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sde_diffusion._files import write_files


@dataclass(frozen=True)
class Curve:
    """A measured curve behind some rows, for `Report.plot`.

    Args:
        panel: Title of the panel that it is drawn in.
        name: Its name in the legend.
        x: Abscissas.
        y: Ordinates, of the same number.
        axes: Names of the two axes.
        log: Whether each of the two axes is logarithmic.
    """

    panel: str
    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    axes: tuple[str, str]
    log: tuple[bool, bool] = (True, True)


def draw(subject: str, measured: Sequence[Curve], path: str | Path) -> None:
    """Writes the curves of a report as a .png."""
    if not measured:
        raise ValueError(f"nothing was measured along the way of {subject}: there is no curve to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'sde-diffusion[examples]'") from error
    panels: dict[str, list[Curve]] = {}
    for curve in measured:
        panels.setdefault(curve.panel, []).append(curve)
    figure = Figure(figsize=(5.2 * len(panels), 4.4), dpi=150, layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _panel(axes, title, curves)
    figure.suptitle(_short(subject, 52 * len(panels)), fontsize=10)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_files({Path(path): drawn.getvalue()})


def _panel(axes: Any, title: str, curves: list[Curve]) -> None:
    for i, curve in enumerate(curves):
        keep = [
            (x, y)
            for x, y in zip(curve.x, curve.y, strict=True)
            if math.isfinite(y) and (x > 0 or not curve.log[0]) and (y > 0 or not curve.log[1])
        ]
        if keep:
            marker = "osD^vPX"[i % 7] if len(keep) <= 20 else ""
            axes.plot(*zip(*keep, strict=True), marker=marker, markersize=4, lw=1.4, label=curve.name)
    first = curves[0]
    axes.set(xlabel=first.axes[0], ylabel=first.axes[1])
    axes.set_xscale("log" if first.log[0] else "linear")
    axes.set_yscale("log" if first.log[1] else "linear")
    axes.set_title(title, fontsize=10)
    if first.log[0] and len(first.x) <= 8:
        axes.set_xticks(first.x, [f"{x:g}" for x in first.x])
        axes.set_xticks([], minor=True)
    axes.grid(True, which="both", color="0.92", lw=0.7)
    if axes.lines:
        axes.legend(fontsize=8, frameon=False)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\u2026"
