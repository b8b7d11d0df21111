"""Tables of the posterior benchmark, what they must show, and the picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from _posterior_ours import OURS, THEIRS

Result = dict[str, Any]


class Check(NamedTuple):
    """What must hold: a sentence, the figure, and whether it does."""

    what: str
    figure: str
    holds: bool

    def __str__(self) -> str:
        return f"{'ok    ' if self.holds else 'MISSED'} {self.what}: {self.figure}"


def checks(result: Result) -> list[Check]:
    """All that the parts of a result must show."""
    parts = {"cells": _cells, "evidence": _evidence, "guidance": _guidance, "digits": _digits}
    return [check for name, made in parts.items() if name in result for check in made(result[name])]


def _cells(rows: list[Result]) -> list[Check]:
    found = []
    for row in rows:
        made, noise, d = row["methods"], row["noise"], row["d"]
        name = f"{d}, {row['d_y']}, {noise:g}"
        ours = made["particles"]["mean"]
        bound = {1.0: {8: 1.4, 80: 1.4, 800: 1.6}, 0.1: {8: 2.5}}.get(noise, {}).get(d)
        if bound:
            found.append(Check(f"{name}: particles over the floor <= {bound}", f"{ours:.2f}", ours <= bound))
        theirs = {m: made[m]["mean"] for m in THEIRS if m in made}
        if theirs and noise == 1.0:
            best = min(theirs, key=lambda m: theirs[m])
            gain = theirs[best] / ours
            found.append(
                Check(f"{name}: closer than every azula method by >= 1.5", f"{gain:.2f} ({best})", gain >= 1.5)
            )
        if "azula MMPS" in theirs:
            share = made["Moments, 100"]["mean"] / theirs["azula MMPS"]
            what = f"{name}: Moments over azula's MMPS at its better setting <= 1.3"
            found.append(Check(what, f"{share:.2f}", share <= 1.3))
        more = made["Moments, 20"]["mean"] / made["Moments, 100"]["mean"]
        found.append(Check(f"{name}: Moments, 20 evaluations over 100 <= 1.1", f"{more:.2f}", more <= 1.1))
    return found


def _evidence(rows: list[Result]) -> list[Check]:
    spans = {"0.68": (0.58, 0.80), "0.90": (0.83, 0.97), "0.95": (0.90, 1.0)}
    found = []
    for row in (r for r in rows if r["noise"] == 1.0):
        figure = f"{row['bias']:+.4f} +- {row['bias_error']:.4f} nats"
        found.append(Check("evidence: |bias| <= .015 nats", figure, abs(row["bias"]) <= 0.015))
        figure = f"{row['rms']:.3f} nats, {row['stated']:.3f} stated"
        found.append(Check("evidence: rms <= .06 nats", figure, row["rms"] <= 0.06))
        for level, (low, high) in spans.items():
            share = row["coverage"][level]
            found.append(
                Check(f"evidence: coverage of {level} in {low} ... {high}", f"{share:.2f}", low <= share <= high)
            )
    return found


def _guidance(rows: list[Result]) -> list[Check]:
    found = []
    for row in rows:
        name = f"{row['law']}, w = {row['w']:g}, {row['samples']} x {row['steps']}"
        ours, plain = row["particles"], row["guided"]
        if row["w"] == 2.0:
            found.append(Check(f"{name}: particles over the floor <= 1.6", f"{ours:.2f}", ours <= 1.6))
            found.append(Check(f"{name}: particles over guidance <= .5", f"{ours / plain:.2f}", ours <= 0.5 * plain))
        elif row["law"] == "1-D":
            found.append(Check(f"{name}: particles over the floor <= 2", f"{ours:.2f}", ours <= 2.0))
    return found


def _digits(rows: list[Result]) -> list[Check]:
    found = []
    for row in rows:
        ours = row["methods"]["particles"]["mean"]
        rest = min(row["methods"][m]["mean"] for m in ("Moments", "PseudoInverse", "replacement", "RePaint"))
        figure = f"{ours:.2f}, {rest:.2f}"
        found.append(Check(f"half a digit, noise {row['noise']:g}: particles closest", figure, ours < rest))
    return found


def tables(result: Result) -> str:
    """Every part as a table in Markdown."""
    made = {"cells": cells_table, "evidence": evidence_table, "guidance": guidance_table, "digits": digits_table}
    return "\n\n".join(table(result[name]) for name, table in made.items() if name in result)


def _rows(head: list[str], body: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def cells_table(rows: list[Result]) -> str:
    """The distance over the floor, and below it evaluations and products with the Jacobian."""
    names = [m for m in (*OURS, *THEIRS) if m in rows[0]["methods"]]
    body = []
    for row in rows:
        line = [f"{row['d']}, {row['d_y']}, {row['noise']:g}", str(row["problems"])]
        for name in names:
            found = row["methods"][name]
            error = "" if math.isnan(found["error"]) else f" ± {found['error']:.2g}"
            line.append(f"{found['mean']:.3g}{error}")
        body.append(line)
    last = rows[-1]["methods"]
    body.append(["calls, of the last row", "", *[f"{last[m]['nfe']} + {last[m]['vjps']} vjp" for m in names]])
    return _rows(["d, d_y, noise", "problems", *names], body)


def evidence_table(rows: list[Result]) -> str:
    """Bias, rms, stated error and coverage."""
    head = ["noise", "problems", "bias, nats", "rms", "stated", "68 %", "90 %", "95 %"]
    body = [
        [
            f"{row['noise']:g}",
            str(row["problems"]),
            f"{row['bias']:+.4f} ± {row['bias_error']:.4f}",
            f"{row['rms']:.3f}",
            f"{row['stated']:.3f}",
            *[f"{row['coverage'][level]:.2f}" for level in ("0.68", "0.90", "0.95")],
        ]
        for row in rows
    ]
    return _rows(head, body)


def guidance_table(rows: list[Result]) -> str:
    """The distance to the tilted law over the floor."""
    head = ["law", "w", "samples x steps", "guidance", "particles", "effective"]
    body = [
        [
            row["law"],
            f"{row['w']:g}",
            f"{row['samples']} x {row['steps']}",
            f"{row['guided']:.2f}",
            f"{row['particles']:.2f} ± {row['particles_error']:.2g}",
            f"{row['ess']:.0f}",
        ]
        for row in rows
    ]
    return _rows(head, body)


def digits_table(rows: list[Result]) -> str:
    """Total variation to the exact weights."""
    names = list(rows[0]["methods"])
    body = []
    for row in rows:
        found = [row["methods"][name] for name in names]
        body.append([f"{row['noise']:g}", *[f"{f['mean']:.3f} ± {f['error']:.2g}" for f in found]])
    body.append(["calls", *[f"{f['nfe']} + {f['vjps']} vjp" for f in rows[-1]["methods"].values()]])
    return _rows(["half a digit, noise", *names], body)


def draw(result: Result, path: Path) -> None:
    """The distance over the floor of each method, cell by cell."""
    from matplotlib.figure import Figure

    rows = result["cells"]
    names = [m for m in (*OURS, *THEIRS) if m in rows[0]["methods"] and m not in ("Moments, 100", "Moments, flow")]
    figure = Figure(figsize=(8.0, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    ours = ["#56B4E9", "#0072B2", "#009E73", "#D55E00"]
    theirs = ["#cccccc", "#b0b0b0", "#909090", "#707070", "#505050"]
    styles = dict(zip([m for m in names if m in OURS], ours, strict=False))
    styles |= dict(zip(THEIRS, theirs, strict=True))
    for k, name in enumerate(names):
        at = [i + 0.075 * (k - (len(names) - 1) / 2) for i in range(len(rows))]
        mean = [row["methods"][name]["mean"] for row in rows]
        error = [0.0 if math.isnan(e := row["methods"][name]["error"]) else e for row in rows]
        marker = "D" if name == "particles" else "o" if name in OURS else "x"
        axes.errorbar(at, mean, error, fmt=marker, ms=4.5, lw=1, color=styles[name], label=name)
    axes.axhline(1.0, color="black", lw=0.8)
    axes.set(yscale="log", ylabel="sliced W1 to the posterior / floor", xlabel="d, d_y, noise of the measurement")
    axes.set_xticks(range(len(rows)), [f"{r['d']}, {r['d_y']}, {r['noise']:g}" for r in rows], rotation=30, fontsize=8)
    axes.legend(fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path)
