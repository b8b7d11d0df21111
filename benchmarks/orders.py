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
from typing import Any

import torch
from solver_table import README, RESULTS, examples, spelling
from solver_table import write as write_readme

from sde_diffusion.solvers import (
    DDIM,
    ERSDE,
    IPNDM,
    RK4,
    SRA1,
    Adams,
    AdamsMoulton,
    Angle,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPP2S,
    EulerMaruyama,
    SASolver,
    SDEDPMSolverPP,
    Solver,
    Torchdiffeq,
    Torchsde,
    UniPC,
)
from sde_diffusion.testing import orders

PAGE = README.parent / "docs" / "solvers.md"
BEGIN, END = "<!-- begin: benchmarks/orders.py -->", "<!-- end: benchmarks/orders.py -->"

VARIANTS: list[Solver] = [
    *(DPMSolverPP(p) for p in (1, 3)),
    DPMSolverPP2S(stiff=True),
    *(DPMSolver(p) for p in (1, 3)),
    *(UniPC(p, v) for p, v in ((1, "bh2"), (2, "bh2"), (3, "bh1"), (4, "bh2"))),
    *(Adams(3, quantity) for quantity in ("noise", "rho", "time", "velocity", "angle")),
    Adams(5),
    *(IPNDM(p) for p in (2, 3)),
    *(AdamsMoulton(p) for p in (2, 3)),
    DDIM(1.0),
    EulerMaruyama(0.0),
    *(SDEDPMSolverPP(p) for p in (1, 3)),
    SDEDPMSolverPP(2, 0.0),
    *(SASolver(3, 3, eta) for eta in (1.0, 0.0)),
    *(ERSDE(p) for p in (1, 2)),
    SRA1(0.0),
    Angle(RK4()),
    Angle(DPMSolverPP()),
    Angle(AdamsMoulton()),
    Torchdiffeq("rk4"),
    Torchsde("euler"),
]
# A method that makes its own steps, equal in t, is measured at one in each interval, on the grid of all others.
SINGLE = {"Torchsde()": Torchsde(n=1), "Torchsde('euler')": Torchsde("euler", n=1)}


def candidates() -> list[Solver]:
    """Solvers that claim an order: one of each class as in README.md, the variants after the first of their class."""
    shown = [s for s in examples() if s.facts.order or any(type(v) is type(s) and v.facts.order for v in VARIANTS)]
    return [s for first in shown for s in (first, *(v for v in VARIANTS if type(v) is type(first))) if s.facts.order]


def measure(solver: Solver, names: list[str]) -> dict[str, Any]:
    """One row: for each process two measured orders."""
    single = SINGLE.get(spelling(solver), solver)
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
        names = ["VP", "EDM"] if args.quick else list(orders.SDES)
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
