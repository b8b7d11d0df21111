"""Tables of the benchmark of flow maps, what they must show, and the picture."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

from _posterior_report import Check

Row = dict[str, Any]
Result = dict[str, Any]
TITLES = {
    "plane": "eight Gaussians in the plane",
    "sixteen": "Gaussians in 16 dimensions",
    "digits": "digits, an MLP with classes",
    "images": "digits, the U-Net of the demonstration",
}
COLUMNS = {"plane": ("rms", "median", "energy"), "sixteen": ("rms", "median", "energy")}
OF_DIGITS = ("test", "teacher", "right")


def columns(name: str) -> tuple[str, ...]:
    """What is told of each number of calls in a part."""
    return COLUMNS.get(name, (*OF_DIGITS, "frechet"))


def line(row: Row) -> str:
    """A row in a line, as it is measured."""
    found = "; ".join(f"{k}: " + " ".join(f"{a} {v:.4g}" for a, v in made.items()) for k, made in row["calls"].items())
    return f"{row['method']} seed {row.get('seed')}, {row.get('seconds', 0):.0f} s of one core: {found}"


def over(rows: list[Row], what: str) -> tuple[float, float]:
    """Mean of a figure and its spread over the seeds; 0 for one."""
    found = [row[what] for row in rows]
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0


def methods(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each method."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["method"], []).append(row)
    return found


def tables(result: Result) -> str:
    """Every part as a table in Markdown."""
    return "\n\n".join(f"{TITLES[name]}:\n\n{table(name, result[name]['rows'])}" for name in TITLES if name in result)


def table(name: str, rows: list[Row]) -> str:
    """A line for each method and number of calls: the mean over seeds, and the standard deviation if there are some."""
    head = ["method", "calls", *columns(name), *(["two jumps for one"] if name in COLUMNS else [])]
    body = []
    for method, mine in methods(rows).items():
        trained = f", {mine[0]['steps']:,} steps" if "steps" in mine[0] else ""
        for k in mine[0]["calls"]:
            cells = [_cell([row["calls"][k] for row in mine], c) for c in columns(name)]
            if name in COLUMNS:
                some = mine[0].get("semigroup") is not None and k == "1"
                cells.append(_cell(mine, "semigroup") if some else "")
            body.append([f"{method}{trained}", "" if k == "0" else k, *cells])
    return "\n".join(f"| {' | '.join(one)} |" for one in (head, ["---"] * len(head), *body))


def told(page: str, result: Result) -> str:
    """A page with the tables of a result in the place of those below its titles."""
    for name in TITLES:
        if name in result:
            title = f"### {TITLES[name][0].upper()}{TITLES[name][1:]}"
            below = rf"({re.escape(title)}\n(?:(?!\||#).*\n)*)(?:\|.*\n)*"
            made = table(name, result[name]["rows"]).replace("\\", r"\\")
            page = re.sub(below, rf"\g<1>{made}\n", page)
    return page


def _cell(rows: list[Row], what: str) -> str:
    mean, spread = over(rows, what)
    return f"{mean:.3g}" + (f" ± {spread:.1g}" if spread else "")


def checks(result: Result) -> list[Check]:
    """All that a result must show."""
    found = []
    for name, made in result.items():
        if name in TITLES:
            of = methods(made["rows"])
            found += _exact(name, of) if name in COLUMNS else _digits(name, of)
    return found


def _exact(name: str, of: dict[str, list[Row]]) -> list[Check]:
    bars = {
        "plane": {("1", "rms"): 0.15, ("2", "rms"): 0.12, ("1", "energy"): 0.004},
        "sixteen": {("1", "rms"): 0.30, ("2", "rms"): 0.22, ("1", "median"): 0.12, ("2", "median"): 0.06},
    }[name]
    ways = [way for way in ("shortcut", "trajectory") if way in of and (name, way) != ("sixteen", "shortcut")]
    found = [_least(f"{name}, {way}", of[way], k, what, bar) for way in ways for (k, what), bar in bars.items()]
    if name == "plane":
        for way in ways:
            worst = max(row["semigroup"] for row in of[way])
            found.append(Check(f"{name}, {way}: two jumps for one <= .05", f"{worst:.3f}", worst <= 0.05))
    return found


def _least(who: str, rows: list[Row], k: str, what: str, bar: float) -> Check:
    """A check of the worst seed."""
    worst = max(row["calls"][k][what] for row in rows)
    return Check(f"{who}: {what} at {k} <= {bar:g}", f"{worst:.4f}", worst <= bar)


def _digits(name: str, of: dict[str, list[Row]]) -> list[Check]:
    if "shortcut" not in of or "teacher" not in of:
        return []
    rows = of["shortcut"]
    teacher = {row["seed"]: next(iter(row["calls"].values())) for row in of["teacher"]}
    if name == "images":
        most = max(row["calls"]["1"]["frechet"] / teacher[row["seed"]]["frechet"] for row in rows)
        return [Check("images: Frechet distance of one call over the teacher's <= 1.3", f"{most:.2f}", most <= 1.3)]
    most = max(row["calls"]["1"]["test"] / teacher[row["seed"]]["test"] for row in rows)
    found = [Check("digits: to the test digits at one call over the teacher's <= 1.15", f"{most:.3f}", most <= 1.15)]
    for k, bar in (("1", 0.040), ("2", 0.034), ("4", 0.032)):
        found.append(_least("digits, shortcut", rows, k, "teacher", bar))
    right = min(row["calls"]["1"]["right"] for row in rows)
    return [*found, Check("digits: recognised at one call >= .97", f"{right:.3f}", right >= 0.97)]


def draw(result: Result, path: Path) -> None:
    """How far from the teacher's flow each method is, by its evaluations."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    shown = {"plane": "rms", "sixteen": "rms", "digits": "teacher", "images": "frechet"}
    names = [name for name in shown if name in result]
    words = {
        "rms": "RMS distance to the exact flow",
        "teacher": "sliced Wasserstein to the teacher",
        "frechet": "Frechet distance to test digits",
    }
    down, across = (len(names) + 1) // 2, min(2, len(names))
    figure = Figure(figsize=(4.0 * across, 3.2 * down), dpi=120, layout="constrained")
    colours = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
    styles: dict[str, Any] = {"default": {"color": "#999999", "ls": "--"}, "tuned": {"color": "#444444", "ls": "--"}}
    for axes, name in zip(figure.subplots(down, across, squeeze=False).flat, names, strict=False):
        for method, rows in methods(result[name]["rows"]).items():
            if "steps" not in rows[0] and method not in ("default", "tuned"):
                continue
            style = styles.setdefault(method, {"color": colours[len(styles) - 2], "marker": "o", "ms": 4})
            calls = [int(k) for k in rows[0]["calls"]]
            if method == "consistency" and shown[name] == "rms":
                calls = calls[:1]  # from the second on it has noise of its own
            mean = [over([row["calls"][str(k)] for row in rows], shown[name])[0] for k in calls]
            axes.plot(calls, mean, label=method, lw=1.4, **style)
        axes.set(xscale="log", yscale="log", title=TITLES[name], xlabel="evaluations", ylabel=words[shown[name]])
        axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.minorticks_off()
        axes.title.set_fontsize(9)
        axes.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
