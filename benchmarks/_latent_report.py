"""The table, the picture and the checks of `latent.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_diffusion.plots import tile

Row = dict[str, Any]
WORDS = {
    "real": "real patches to train on",
    "codec": "the codec alone: test patches, encoded and decoded",
    "codes": "diffusion of the codes",
    "pixels": "diffusion of the pixels",
}
START, END = "<!-- table of benchmarks/latent.py -->", "<!-- end of the table -->"
MOST, CHEAPER = 1.2, 0.25
"""What has to hold: the distance of codes over that of pixels, and the cost of a step, likewise."""


def line(row: Row) -> str:
    """A row as it is told while it is measured."""
    numbers = {name: f"{value:.3g}" for name, value in row.items() if isinstance(value, float)}
    return f"{row['method']}: " + ", ".join(f"{name} {value}" for name, value in numbers.items())


def table(result: Mapping[str, Any]) -> str:
    """All of it for the page."""
    cost = result["milliseconds a sample"]
    out = [
        "| | Frechet distance | training, s | steps | parameters | a step, ms | a sample, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        name = row["method"]
        step, whole = cost.get(name), ""
        if step is not None:
            whole = f"{step * result['evaluations'] + (cost['decoder'] if name == 'codes' else 0):.0f}"
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else ""
        if "diffusion" in row:
            seconds += f" ({row['diffusion']:.0f} without the codec)"
        numbers = [
            f"{row['frechet']:.2f}",
            seconds,
            f"{row['steps']:,}" if "steps" in row else "",
            f"{row['parameters'] / 1e6:.2f}M" if "parameters" in row else "",
            "" if step is None else f"{step:.2f}",
            whole,
        ]
        out.append(f"| {WORDS[name]} | {' | '.join(numbers)} |")
    return "\n".join(out)


def checks(result: Mapping[str, Any]) -> list[str]:
    """What has to hold, and whether it does."""
    rows, cost = {row["method"]: row for row in result["rows"]}, result["milliseconds a sample"]
    far, step = rows["codes"]["frechet"] / rows["pixels"]["frechet"], cost["codes"] / cost["pixels"]
    calls = result["evaluations"]
    whole = (cost["codes"] * calls + cost["decoder"]) / (cost["pixels"] * calls)
    out = [
        (f"codes have {far:.2f} of the distance of pixels, wanted at most {MOST}", far <= MOST),
        (f"a step of them {step:.3f} of the cost, wanted at most {CHEAPER}", step <= CHEAPER),
        (f"a sample, with the decoder, {whole:.3f} of the cost", whole <= CHEAPER),
    ]
    return [f"{'holds' if held else 'MISSED'}: {text}" for text, held in out]


def told(page: str, result: Mapping[str, Any]) -> str:
    """A page with the table of a result in the place of the one that it has."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    return f"{before}{start}\n{table(result)}\n{end}{after}" if end else page


def draw(drawn: Mapping[str, Tensor], result: Mapping[str, Any], path: Path) -> None:
    """Some images of each row, beside one another."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = ["real", "codec", "codes", "pixels"]
    distance = {row["method"]: row["frechet"] for row in result["rows"]}
    titles = {"real": "photographs", "codec": "test patches, encoded and decoded", "codes": "drawn in the code space"}
    titles["pixels"] = "drawn in pixels"
    figure = Figure(figsize=(12, 4.6), dpi=100)
    FigureCanvasAgg(figure)
    for i, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), i + 1)
        axes.imshow(tile(drawn[name][:, 0], 6, gap=2, fill=2.5).numpy(), cmap="gray", vmin=-1.4, vmax=2.5)
        axes.set_title(f"{titles[name]}\nFrechet distance {distance[name]:.1f}", fontsize=10)
        axes.set_axis_off()
    figure.tight_layout()
    figure.savefig(path)
