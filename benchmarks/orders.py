"""Every order of convergence, measured: the tables of README.md and docs/solvers.md.

    python benchmarks/orders.py            # writes benchmarks/results/orders.json and both tables
    python benchmarks/orders.py --quick    # two processes and the first solvers, nothing written
    python benchmarks/orders.py --tables   # both tables from the committed measurements, nothing measured

`sde_diffusion.testing.orders` measures: deterministic solvers against the exact probability flow of Gaussian data and
of a mixture, stochastic ones by their strong order on one Brownian path and by the bias of mean and variance. float64,
one thread, fixed seeds: the same figures on every machine, but for rounding.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from typing import Any

import torch
from solver_table import README, RESULTS, examples, spelling
from solver_table import write as write_readme

from sde_diffusion.solvers import Solver, Torchsde
from sde_diffusion.testing import orders

PAGE = README.parent / "docs" / "solvers.md"
BEGIN, END = "<!-- begin: benchmarks/orders.py -->", "<!-- end: benchmarks/orders.py -->"


def candidates() -> list[Solver]:
    """Solvers that claim an order: of each class the one in README.md, then its examples and what has a name."""
    found: list[Solver] = []
    for shown in examples():
        others = [*type(shown).named().values(), *type(shown).examples()]
        for solver in (shown, *(s for s in others if type(s) is type(shown))):
            if solver.facts.order and as_measured(solver) not in map(as_measured, found):
                found.append(solver)
    return found


def as_measured(solver: Solver) -> Solver:
    """A method that makes its own steps, equal in `t`, takes one in each interval, on the grid of all others."""
    return replace(solver, n=1) if isinstance(solver, Torchsde) else solver


def measure(solver: Solver, names: list[str]) -> dict[str, Any]:
    """One row: for each process two measured orders."""
    single = as_measured(solver)
    found = {}
    for name in names:
        sde = orders.SDES[name]
        if solver.facts.stochastic:
            pair = {
                "strong": orders.strong(single, sde, orders.STRONG_STEPS),
                "weak": orders.weak(single, sde, orders.WEAK_STEPS),
            }
        else:
            pair = {data: orders.deterministic(single, sde, data) for data in ("gaussian", "mixture")}
        found[name] = {kind: round(value.order, 2) for kind, value in pair.items()}
    return {
        "solver": spelling(solver),
        "claim": solver.facts.order,
        "stochastic": solver.facts.stochastic,
        "evaluations": solver.facts.evaluations,
        "orders": found,
    }


def missed(row: dict[str, Any]) -> list[str]:
    """The processes on which a row stays below its claim, by the rule of `testing.check_solver`."""
    below = []
    for name, pair in row["orders"].items():
        least, most = min(pair.values()), max(pair.values())
        claim, floor = row["claim"], min(row["claim"], 1) if row["stochastic"] else row["claim"]
        if least < floor - orders.TOLERANCE or (row["stochastic"] and most < claim - orders.TOLERANCE):
            below.append(name)
    return below


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/solvers.md: the lesser of the two orders, or strong / weak."""
    names = list(rows[0]["orders"])
    lines = [f"| solver | claim | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for row in rows:
        cells = [
            f"{pair['strong']:.1f} / {pair['weak']:.1f}" if row["stochastic"] else f"{min(pair.values()):.2f}"
            for pair in row["orders"].values()
        ]
        lines.append(f"| `{row['solver']}` | {row['claim']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page(rows: list[dict[str, Any]]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{markdown(rows)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two processes and six solvers; writes nothing")
    parser.add_argument("--tables", action="store_true", help="measures nothing; writes the tables again")
    args = parser.parse_args()
    if args.tables:
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    else:
        torch.set_num_threads(1)
        began, rows = time.perf_counter(), []
        names = ["VPSDE", "EDMSDE"] if args.quick else list(orders.SDES)
        for solver in candidates()[:6] if args.quick else candidates():
            rows.append(measure(solver, names))
            print(
                markdown(rows[-1:]).splitlines()[-1],
                *(f"  below its claim on {n}" for n in missed(rows[-1])),
                flush=True,
            )
        print(f"{time.perf_counter() - began:.0f} s")
        if args.quick:
            return
        result = {
            "command": "python benchmarks/orders.py",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "angles": [orders.TOP, orders.BOTTOM],
            "rows": rows,
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_page(rows)
    write_readme()


if __name__ == "__main__":
    main()
