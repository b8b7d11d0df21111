"""How far from the exact posterior, evidence and tilted law are our rules, our particles, and azula's methods?

    python benchmarks/posterior.py                    # writes results/posterior.json and a picture
    python benchmarks/posterior.py --only evidence    # one part anew, the others kept
    python benchmarks/posterior.py --methods "Moments, 20" "Moments, 100"  # some of the cells' anew, the others kept
    python benchmarks/posterior.py --quick            # one cell and a few problems, nothing written

Four parts, every law in them known:

* `cells`: the published mixtures with a linear measurement. Sliced W1 of 1,000 samples to exact ones, over the
  distance between two exact sets, mean and standard error over problems; all methods see the same problems. azula's
  methods get the network calls of the particles, 101. Products with the Jacobian of the network are counted apart.
* `evidence`: log p(y) of 8 systems of 64 particles, its error and the coverage of its intervals.
* `guidance`: classifier-free guidance and Feynman-Kac particles against the tilted law.
* `digits`: the lower half of a digit given its upper half, among a finite set of digits.

azula is not a dependency: `pip install azula==0.11.1`. Without it its columns are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import _posterior_azula as azula
import _posterior_digits as digits
import _posterior_evidence as evidence
import _posterior_ours as ours
import _posterior_report as report
import _posterior_tilted as tilted
import torch
from _posterior_cells import Cell

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURE = ROOT / "benchmarks" / "results" / "posterior.json", ROOT / "docs" / "images" / "posterior_cells.png"
PARTS = ("cells", "evidence", "guidance", "digits")
SAMPLES = 1_000
CELLS = [
    *((Cell(d, d_y, 1.0), problems) for d, problems in ((8, 12), (80, 8), (800, 2)) for d_y in (1, 2, 4)),
    *((Cell(d, d_y, 0.1), problems) for d, problems in ((8, 8), (80, 3)) for d_y in (1, 2, 4)),
]
EVIDENCE = [(100, 1.0), (30, 0.1)]
GUIDANCE = [
    (tilted.LINE, 2.0, 4096, 100, 8),
    (tilted.LINE, 4.0, 4000, 400, 8),
    (tilted.PLANE, 2.0, 4096, 100, 8),
    (tilted.PLANE, 4.0, 4096, 100, 8),
]
DIGITS = [(0.5, 4, 512), (0.2, 4, 512)]


def measure(part: str, *, quick: bool, methods: list[str]) -> list[dict[str, Any]]:
    """The rows of one part; those of the cells by some methods."""
    if part == "cells":
        cells = [(Cell(8, 2, 1.0), 1)] if quick else CELLS
        rows = []
        for cell, problems in cells:
            rows.append(ours.measure(cell, methods, problems, SAMPLES, _tell))
            print(report.cells_table(rows[-1:]), flush=True)
        return rows
    if part == "evidence":
        return [evidence.measure(*row) for row in ([(3, 1.0)] if quick else EVIDENCE)]
    if part == "guidance":
        return [tilted.measure(*row) for row in ([(tilted.LINE, 2.0, 1024, 100, 1)] if quick else GUIDANCE)]
    if quick:
        return [digits.measure(0.5, 1, 64, 25)]
    return [digits.measure(*row, digits.STEPS) for row in DIGITS]


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells with some methods measured anew, and of the others those that there are still."""
    if [[row[k] for k in ("d", "d_y", "noise", "problems")] for row in old] != [
        [row[k] for k in ("d", "d_y", "noise", "problems")] for row in new
    ]:
        raise ValueError("the cells are others than those of the results: measure all methods anew, --only cells")
    known = (*ours.OURS, *ours.THEIRS)
    return [
        {**b, "methods": {m: found[m] for m in known if m in found}}
        for a, b in zip(old, new, strict=True)
        for found in [a["methods"] | b["methods"]]
    ]


def _tell(what: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {what}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one cell and a few problems; writes nothing")
    parser.add_argument("--only", choices=PARTS, help="the part to measure anew; the others are kept")
    names = [*ours.OURS, *ours.THEIRS]
    parser.add_argument("--methods", nargs="+", choices=names, help="of the cells, to measure anew; others are kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    why = azula.missing()
    theirs = [] if why else ours.THEIRS
    if why:
        if {*(given.methods or ())} & {*ours.THEIRS}:
            parser.error(why)
        print(why)
    versions = {"torch": torch.__version__, "azula": None if why else azula.VERSION}
    print(f"{versions}, problem k of a cell and its samples have seed k")
    result: dict[str, Any] = {"command": "python benchmarks/posterior.py", **versions, "samples": SAMPLES}
    if given.methods:
        if given.only not in (None, "cells") or not RESULTS.exists():
            parser.error("--methods are of the cells, whose others are kept: give no other part, and have results")
        given.only = "cells"
    if given.only and RESULTS.exists() and not given.quick:
        old = json.loads(RESULTS.read_text())
        result |= {part: rows for part, rows in old.items() if part in PARTS}
        if given.only != "cells" or (given.methods and not {*given.methods} & {*ours.THEIRS}):
            result["azula"] = old["azula"]  # whose columns are kept
    for part in [given.only] if given.only else PARTS:
        start = time.process_time()
        rows = measure(part, quick=given.quick, methods=given.methods or [*ours.OURS, *theirs])
        result[part] = merged(result[part], rows) if given.methods and not given.quick else rows
        print(f"{part}: {time.process_time() - start:.0f} s of one core", flush=True)
    print(f"\n{report.tables(result)}\n")
    if given.quick:
        return
    print(*report.checks(result), sep="\n")
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    report.draw(result, PICTURE)


if __name__ == "__main__":
    main()
