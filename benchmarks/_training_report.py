"""The tables and the picture of `training.py`, from what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "training.md", ROOT / "docs" / "images" / "training.png"
BEGIN, END = "<!-- begin: benchmarks/training.py -->", "<!-- end: benchmarks/training.py -->"
Row = dict[str, Any]


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def speed(part: Row) -> str:
    """Ratios of the speeds."""
    rows = [
        [
            name,
            f"{row['median']:.3f}",
            f"{row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f}",
            f"{row['total']:.3f}",
            f"{row['wall_total']:.3f}",
        ]
        for name, row in part.items()
    ]
    return _table(["steps per second, `train` over a bare loop", "median", "quartiles", "in all", "by the clock"], rows)


def digits(part: Row) -> str:
    """Bits and distances by steps."""
    rows = []
    for row in part["rows"]:
        if row["bits"] is None:
            rows.append(["real images", "", "", f"{row['frechet']:.1f}"])
        else:
            bits = f"{row['bits']:.2f} ± {row['bits_error']:.2f}"
            rows.append([str(row["step"]), f"{row['seconds']:.0f}", bits, f"{row['frechet']:.1f}"])
    return _table(["digits, steps", "seconds", "bits per dimension", "Frechet distance"], rows)


def tables(part: Row) -> str:
    """Test log-likelihoods with early stopping and along the run without: exact ones, and the bound."""
    marks = [row["step"] for row in next(iter(part.values()))["without"]]
    rows = []
    for name, found in part.items():
        early = found["early"]
        at = f", step {early['chosen']} of {early['steps']}"
        for key, called in (("test", "exact"), ("bound", "bound")):
            along = [_nats(row[key]) for row in found["without"]]
            rows.append([f"{name}, {found['dimensions']} columns, {called}", _nats(early[key]) + at, *along])
    head = ["test log-likelihood, nats a row", "early stopping", *(f"without, step {mark}" for mark in marks)]
    return _table(head, rows)


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def signals(part: Row) -> str:
    """Errors of the covariance and of the density."""
    rows = [
        [
            f"`{name}`",
            str(row["step"]),
            f"{row['seconds']:.0f}",
            f"{100 * row['covariance']:.1f} %",
            f"{row['gap']:.3f}",
        ]
        for name, marks in part["nets"].items()
        for row in marks
    ]
    floor = next(iter(part["nets"].values()))[0]["floor"]
    rows.append(["exact samples", "", "", f"{100 * floor:.1f} %", "0"])
    return _table(["signals", "step", "seconds", "error of the covariance", "nats below exact, a number"], rows)


MAKE = {"speed": speed, "digits": digits, "tables": tables, "signals": signals}


def markdown(result: Row) -> str:
    """All tables of the page."""
    return "\n\n".join(make(result[name]) for name, make in MAKE.items() if name in result)


def write_page(result: Row) -> None:
    """Puts the tables between their marks in docs/training.md."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{markdown(result)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def draw(result: Row) -> None:
    """Quality against time: digits, tables, signals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.0), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    if "digits" in result:
        rows = [row for row in result["digits"]["rows"] if row["bits"] is not None]
        left.plot([r["seconds"] for r in rows], [r["bits"] for r in rows], "o-", color="#0072B2")
        left.set(title="digits", ylabel="bits per dimension")
    for (name, found), color in zip(result.get("tables", {}).items(), ("#0072B2", "#D55E00"), strict=False):
        rows, early = [row for row in found["without"] if row["test"] is not None], found["early"]
        middle.plot([r["seconds"] for r in rows], [r["test"] for r in rows], "o-", ms=3, color=color, label=name)
        middle.axhline(early["test"], color=color, lw=0.8, ls="--")
    middle.set(title="tables (dashed: early stopping)", ylabel="test log-likelihood, nats", xscale="log")
    middle.set_yscale("symlog", linthresh=10)
    middle.legend(fontsize=7)
    for (name, rows), color in zip(
        result.get("signals", {}).get("nets", {}).items(), ("#0072B2", "#D55E00"), strict=False
    ):
        right.plot([r["seconds"] for r in rows], [r["gap"] for r in rows], "o-", color=color, label=name)
    right.set(title="Gaussian signals", ylabel="nats a number below exact", xscale="log", yscale="log")
    right.legend(fontsize=7)
    for axes in (left, middle, right):
        axes.set_xlabel("seconds of one core")
        axes.title.set_fontsize(9)
    figure.savefig(PICTURE)
