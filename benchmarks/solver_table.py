"""The table of solvers in README.md, made from the solvers themselves: `python benchmarks/solver_table.py [--write]`.

Each public solver of `sde_diffusion.solvers` is one row: what its `facts` claim, the range of its orders as
`benchmarks/orders.py` has measured them, and the sources its docstring names.
`--write` puts the table between the two marks in README.md; a test holds it there.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

from sde_diffusion import solvers
from sde_diffusion.solvers import Solver

README = Path(__file__).resolve().parents[1] / "README.md"
RESULTS = Path(__file__).resolve().parent / "results" / "orders.json"
BEGIN, END = "<!-- begin: benchmarks/solver_table.py -->", "<!-- end: benchmarks/solver_table.py -->"

NEEDS = {"ODE": "any SDE", "ReverseSDE": "any SDE", "GaussianReverseSDE": "Gaussian SDE"}


def examples() -> list[Solver]:
    """One instance of every solver class: those that stand alone, correctors, wrappers, outside backends."""
    return sorted((cls.examples()[0] if _parts(cls) else cls() for cls in solvers.CLASSES), key=_place)


def _place(s: Solver) -> tuple[bool, bool, bool, str, int]:
    cls, facts = type(s), s.facts
    return (
        facts.evaluations is None,
        bool(_parts(cls)),
        not facts.order,
        cls.__module__,
        inspect.getsourcelines(cls)[1],
    )


def _parts(cls: type[Solver]) -> list[str]:
    """The fields that have to be given."""
    return [f.name for f in dataclasses.fields(cls) if _default(f) is dataclasses.MISSING]


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default if f.default_factory is dataclasses.MISSING else f.default_factory()


def spelling(solver: Solver) -> str:
    """How one writes it, without the arguments left at their defaults; by name behind one that is left out."""
    given, behind = [], False
    for f in dataclasses.fields(solver):
        value = getattr(solver, f.name)
        if value == _default(f):
            behind = True
            continue
        shown = spelling(value) if isinstance(value, Solver) else repr(value)
        given.append(f"{f.name}={shown}" if behind else shown)
    return f"{type(solver).__name__}({', '.join(given)})"


def randomness(solver: Solver) -> str:
    """`yes`, `no`, or the condition on `eta`."""
    if not any(f.name == "eta" for f in dataclasses.fields(solver)):
        return "yes" if solver.facts.stochastic else "no"
    try:
        off, on = (dataclasses.replace(solver, eta=eta).facts.stochastic for eta in (0.0, 1.0))
    except ValueError:
        return "yes"
    return "yes" if off else "if eta > 0" if on else "no"


def sources(solver: Solver) -> str:
    """Authors and years from the `References:` of the docstring."""
    _, found, text = (inspect.getdoc(type(solver)) or "").partition("References:")
    short = []
    for item in re.sub(r"\s+", " ", text).strip().rstrip(".").split("; ") if found else []:
        year = re.search(r"\b(1[89]|20)\d\d\b", item)
        short.append(f"{item.split(',')[0]}, {year[0]}" if year else item.split(",")[0])
    return "; ".join(short) or "–"


def measured() -> dict[str, str]:
    """The range of the measured orders of each solver, over all processes, by its spelling."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
    found = {}
    for row in rows:
        if row["stochastic"]:
            found[row["solver"]] = ", ".join(f"{k} {_range(row, [k])}" for k in ("strong", "weak"))
        else:
            found[row["solver"]] = _range(row, ["gaussian", "mixture"])
    return found


def _range(row: dict[str, Any], kinds: list[str]) -> str:
    values = [pair[kind] for pair in row["orders"].values() for kind in kinds]
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def table() -> str:
    """The table in Markdown."""
    heads = ["solver", "for", "order", "measured", "evaluations per step", "random", "source"]
    rows, found = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"], measured()
    for s in examples():
        order = f"{s.facts.order:g}" if s.facts.order else "–"
        cost = "its own choice" if s.facts.evaluations is None else str(s.facts.evaluations)
        rows.append(
            f"| `{spelling(s)}` | {NEEDS[s.facts.needs.__name__]} | {order} | {found.get(spelling(s), '–')} | {cost} "
            f"| {randomness(s)} | {sources(s)} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table into README.md")
    parser.add_argument("--quick", action="store_true", help="no effect: it takes no time")
    if parser.parse_args().write:
        write()
    print(table())


def write() -> None:
    """Puts the table into README.md."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
