"""Tables and picture of the benchmark of controls and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

Row = dict[str, Any]
PAGE = Path(__file__).resolve().parents[1] / "docs" / "control.md"
PICTURE = PAGE.parent / "images" / "control.png"
BEGIN, END = "<!-- begin: benchmarks/control.py -->", "<!-- end: benchmarks/control.py -->"
LEAST, MOST = 0.8, 0.3
"""The F1 of the very pixels that a control must reach at strength 1, and that which its base must not pass."""


def markdown(result: Row) -> str:
    """All tables of the page."""
    return f"{_edges(result)}\n\n{_kept(result)}\n\n{_adapters(result['adapters'])}"


def _edges(result: Row) -> str:
    at = result["agreement"]
    picked = result["validation"]["chosen"]
    rows = []
    for s, row in at["strengths"].items():
        note = ", chosen on validation digits" if s == picked["strength"] else ""
        rows.append((f"the control, strength {s}{note}", row))
    rows += [(f"guided by the control, {w}, chosen on validation digits", row) for w, row in at["guided"].items()]
    rows += [
        ("the base alone, and strength 0", at["base"]),
        ("a sample of another map, strength 1", at["other"]),
        ("chance: another test digit", at["chance"]),
        ("the test digit itself, with noise of 0.1", at["again"]),
    ]
    head = f"| {at['samples']} samples | F1 of the very pixels | F1 within one pixel |\n| --- | --- | --- |\n"
    return head + "\n".join(f"| {n} | {r['exact']:.3f} ± {r['se']:.3f} | {r['near']:.2f} |" for n, r in rows)


def _kept(result: Row) -> str:
    size, weights, spent = result["bytes"], result["weights"], result["seconds"]
    rows = [
        (name, weights[name], spent[name], size[name] / 1e6, size[f"{name} run"] / 1e6) for name in ("base", "control")
    ]
    head = "| | weights that learn | seconds of one core | checkpoint, MB | state of a run, MB |\n"
    head += "| --- | --- | --- | --- | --- |\n"
    return head + "\n".join(f"| {n} | {w:,} | {s:.0f} | {a:.2f} | {b:.2f} |" for n, w, s, a, b in rows)


def _adapters(found: Row) -> str:
    head = "| on photographs | weights that learn | learning rate chosen of four | loss on test patches | merged |\n"
    rows = [head + "| --- | --- | --- | --- | --- |"]
    for name, row in found.items():
        merged = f"{row['merged']:.4f}" if "merged" in row else ""
        rate = f"{row['rate']:g} of {', '.join(f'{float(r):g}' for r in row['by'])}" if "rate" in row else ""
        who = "the base, as it was" if name == "base" else name
        rows.append(f"| {who} | {row['weights']:,} | {rate} | {row['loss']:.4f} | {merged} |")
    return "\n".join(rows)


def write_page(result: Row) -> None:
    """Puts the tables between their marks in docs/control.md."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{markdown(result)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def missed(result: Row) -> list[str]:
    """What had to hold and does not."""
    at = result["agreement"]
    plain, base = at["strengths"]["1"]["exact"], at["base"]["exact"]
    held = {
        f"edges of the control agree at strength 1, F1 {plain:.2f}, wanted {LEAST}": plain >= LEAST,
        f"those of the base do not, F1 {base:.2f}, wanted {MOST} at most": base <= MOST,
        "strength 0 is the base, bit for bit": at["bit_for_bit"],
    }
    return [what for what, holds in held.items() if not holds]


def draw(shown: dict[str, Tensor]) -> None:
    """Maps, the digits that they are of, samples with them, their edges, and samples of the base of the same noise."""
    from matplotlib.figure import Figure

    rows = {
        "test digit": shown["real"],
        "its edges": shown["field"],
        "sample with them": shown["drawn"],
        "edges of the sample": shown["found"],
        "another": shown["several"],
        "the base, same noise": shown["base"],
    }
    count = len(shown["real"])
    figure = Figure(figsize=(1.0 * count + 1.6, 1.0 * len(rows)), dpi=110)
    places = figure.subplots(
        len(rows), count, gridspec_kw={"wspace": 0.06, "hspace": 0.06, "left": 0.19, "right": 0.995}
    )
    figure.subplots_adjust(top=0.995, bottom=0.005)
    for (name, images), line in zip(rows.items(), places, strict=True):
        low = 0.0 if "edges" in name else -1.0
        for image, axes in zip(images, line, strict=True):
            axes.imshow(image[0].clamp(-1, 1), cmap="gray", vmin=low, vmax=1.0)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.savefig(PICTURE)
