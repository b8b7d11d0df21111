"""The tables of docs/evaluations.md and a picture per problem, from the summary of `nfe_quality.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from _nfe_summary import HINDSIGHT, MARGIN

from sde_diffusion.plots import COLOURS

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "nfe_quality.json", ROOT / "docs" / "evaluations.md"
IMAGES = ROOT / "docs" / "images"
BEGIN, END = "<!-- begin: benchmarks/nfe_quality.py -->", "<!-- end: benchmarks/nfe_quality.py -->"
SHOWN = 8


def markdown(result: dict[str, Any]) -> str:
    """The tables of the page."""
    parts = [_by_budget(result), _by_problem(result), _by_pair(result), _to_data(result), _adam(result), _noise(result)]
    told = ", ".join(f"{name} {v}" for name, v in result["versions"].items())
    return "\n\n".join([*filter(None, parts), f"Measured with {told}."])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(r)} |" for r in [head, ["---"] * len(head), *rows])


def _by_budget(result: dict[str, Any]) -> str:
    who = [w for w in ("tuned", "default") if any(w in row for row in result["rows"].values())]
    head = ["evaluations", *(f"{w}{x}" for w in who for x in (", mean", ", worst", f", above {MARGIN}"))]
    rows = []
    for n, row in result["rows"].items():
        cells = []
        for w in who:
            worst, name = row[w]["worst"]
            cells += [f"{row[w]['mean']:.2f}", f"{worst:.2f} {name}", f"{len(row[w]['above'])} of {row[w]['of']}"]
        rows.append([n, *cells, *(f"{row[w]['mean']:.2f}" for w in HINDSIGHT)])
    title = "Error over that of the best peer with hindsight, geometric mean over the problems."
    more = "Last stand the best with hindsight of this library, of diffusers alone and of azula alone."
    return f"{title} {more}\n\n{_table([*head, *HINDSIGHT], rows)}"


def _by_problem(result: dict[str, Any]) -> str:
    shown = ("5", "8", "12", "20")
    rows = []
    for name, p in result["problems"].items():
        cells = []
        for n in shown:
            figures = [p["tuned"].get("error", {}).get(n), p["default"].get(n), p["peer"][n][0]]
            cells.append(" / ".join("-" if v is None else f"{v:.2g}" for v in figures))
        rows.append([name.replace("_", " "), str(p["dims"]), *cells])
    head = ["problem", "dimensions", *(f"{n} evaluations" for n in shown)]
    return f"Errors, in standard deviations: tuned / default / best peer with hindsight.\n\n{_table(head, rows)}"


def _by_pair(result: dict[str, Any]) -> str:
    found = []
    for title, key in (("peers", "fixed peers"), ("this library", "fixed ours")):
        rows = [
            [f"`{label}`".replace("|", "on"), str(p["problems"]), f"{p['ratio']:.2f}", f"{p['default']:.2f}"]
            for label, p in list(result[key].items())[:SHOWN]
        ]
        head = [f"fixed pair, {title}", "problems", "mean ratio", "our default on these"]
        found.append(_table(head, rows))
    title = "Single pairs kept for all problems and budgets, against the same best with hindsight:"
    return "\n\n".join([title, *found])


def _to_data(result: dict[str, Any]) -> str:
    rows = []
    for metric in ("energy", "sliced"):
        for n in next(iter(result["problems"].values()))["to data"]:
            for who in ("tuned", "default"):
                cells = [p["to data"][n][who][metric] for p in result["problems"].values() if p["to data"][n][who]]
                if cells:
                    bad = sum(c["worse"] for c in cells)
                    better = sum(c["difference"][0] < -c["difference"][1] for c in cells)
                    rows.append([metric, n, who, str(len(cells)), str(better), str(bad)])
    head = ["distance to data", "evaluations", "ours", "problems", "significantly better", "significantly worse"]
    return f"Against the best peer in that distance, differences paired by seed, 95 %:\n\n{_table(head, rows)}"


def _adam(result: dict[str, Any]) -> str:
    rows = [
        [n, str(a["problems"]), f"{a['mean']:.2f}", f"{a['evaluations'][0]:,}", f"{a['evaluations'][1]:,}"]
        for n, a in result["adam"].items()
    ]
    head = ["evaluations", "problems", "tuned over trained by Adam", "spent to tune, all budgets", "to train, this one"]
    return _table(head, rows) if rows else ""


def _noise(result: dict[str, Any]) -> str:
    rows = []
    for name, p in result["problems"].items():
        for method, budgets in p["noise"].items():
            cells = []
            for f in budgets.values():
                difference, half = f["difference"]
                cells.append(f"{f['eta']:g}: {f['without'][0]:.4f} {difference:+.4f} +- {half:.4f}")
            rows.append([name, method, *cells])
    head = ["problem", "method", *(f"{n} evaluations" for n in next(iter(_budgets(result)), {}))]
    title = "Energy distance without noise, and what the fitted noise scale changes, on other seeds:"
    return f"{title}\n\n{_table(head, rows)}" if rows else ""


def _budgets(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [b for p in result["problems"].values() for b in p["noise"].values()]


def picture(name: str, p: dict[str, Any], path: Path) -> None:
    """Error against evaluations of one problem."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    figure = Figure(figsize=(4.6, 3.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    curves = {
        "tuned": (p["tuned"].get("error", {}), {"color": COLOURS[0], "lw": 2.6, "marker": "o"}),
        "default": (p["default"], {"color": COLOURS[1], "lw": 2.6, "marker": "s"}),
        "best peer, hindsight": ({n: e[0] for n, e in p["peer"].items()}, {"color": "black", "lw": 1.4, "ls": "--"}),
        "trained by Adam": ({n: a["error"] for n, a in p["adam"].items()}, {"color": COLOURS[2], "lw": 1.2, "ls": ":"}),
    }
    for label, (curve, style) in curves.items():
        points = sorted((int(n), e) for n, e in curve.items() if e)
        if points:
            axes.plot(*zip(*points, strict=True), label=label, markersize=4, **style)
    for i, curve in enumerate(p["fixed"].values()):
        points = sorted((int(n), e) for n, e in curve.items())
        if points:
            name_once = "best single pairs of peers" if i == 0 else None
            axes.plot(*zip(*points, strict=True), color="0.65", lw=0.8, label=name_once)
    axes.set(xscale="log", yscale="log", title=f"{name}, {p['dims']} dimensions", xlabel="network evaluations")
    axes.set_ylabel("distance to the flow, in sd")
    axes.set_xticks([5, 6, 8, 10, 12, 15, 20])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="both", color="0.92", lw=0.7)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Software": None})


def image_name(name: str) -> str:
    """The file of a problem's picture."""
    return "nfe_" + "".join(c if c.isalnum() else "_" for c in name) + ".png"


def write(result: dict[str, Any]) -> None:
    """Results, page and pictures."""
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_page(result)


def write_page(result: dict[str, Any]) -> None:
    """The tables between their marks, and the pictures."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    for name, p in result["problems"].items():
        picture(name, p, IMAGES / image_name(name))
    PAGE.write_text(f"{before}{BEGIN}\n{page(result)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def page(result: dict[str, Any]) -> str:
    """What stands between the marks."""
    shown = "\n".join(f"![{name}](images/{image_name(name)})" for name in result["problems"])
    return f"{markdown(result)}\n\n{shown}"
