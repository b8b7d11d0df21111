"""How close does a flow map come to its teacher in one, two and four calls, and what do samplers reach without one?

    python benchmarks/flow_maps.py                      # writes results/flow_maps.json, tables and picture of the page
    python benchmarks/flow_maps.py --only digits --seeds 1  # some rows anew, the others kept
    python benchmarks/flow_maps.py --table              # prints the tables of what is committed
    python benchmarks/flow_maps.py --quick              # a few steps, nothing written

The page is docs/flow-maps.md. Parts, each at fixed steps of training, over seeds of weights, batches and noise:

* `plane`: eight Gaussians, exact teacher, a fresh map of 2,000 steps by each objective.
* `sixteen`: rotated Gaussians in 16 dimensions, covariances from .01 to 1, exact teacher, 8,000 steps.
* `digits`: a class-conditional network of the digits, and maps made of it in 1,100 steps.
* `images`: the U-Net that `make demo` leaves in `demo/checkpoint`, and a map made of it in 400 steps of 128; left out
  where there is none.

Of a mixture, `rms` and `median` are distances per coordinate of each sample to the end of the exact flow from the same
noise, `energy` the energy distance to exact draws. Of digits, sliced Wasserstein to the test digits and to the
teacher's, all in standard deviations of the data. Rivals are the default and the tuned sampler on the teacher itself.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _flow_maps_exact as exact
import _flow_maps_report as report
import torch
from _flow_maps_digits import CHECKPOINT, Digits
from _flow_maps_objectives import WAYS

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURE = ROOT / "benchmarks" / "results" / "flow_maps.json", ROOT / "docs" / "images" / "flow_maps.png"
PAGE = ROOT / "docs" / "flow-maps.md"
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What is measured in a part: samples, steps of training, steps of the teacher, ways and seeds; and ways on the
    first seed alone.
    """

    n: int
    steps: int
    teacher: int
    ways: Sequence[str]
    seeds: Sequence[int]
    once: Sequence[str] = ()


FRESH = ("shortcut", "trajectory", "consistency", "MeanFlow")
"""The ways of a map that has no network to begin as."""
PARTS = {
    "plane": Part(4000, 2000, 0, FRESH, (0, 1, 2)),
    "sixteen": Part(2000, 8000, 0, ("trajectory",), (0,)),
    "digits": Part(1437, 1100, 6000, ("shortcut", "trajectory"), (0, 1), ("consistency", "MeanFlow", "progressive")),
    "images": Part(1437, 400, 0, ("shortcut",), (0,)),
}
QUICK = {
    "plane": Part(100, 20, 0, FRESH, (0,)),
    "digits": Part(1437, 8, 10, ("shortcut", "progressive"), (0,)),
}


def rows(name: str, part: Part, ways: list[str] | None = None, seeds: list[int] | None = None) -> Iterator[Row]:
    """The rows of a part, one after the other; of some ways alone, without rivals."""
    rivals, ways, seeds = not ways, ways or list(part.ways), seeds or list(part.seeds)
    if name in ("plane", "sixteen"):
        problem = (exact.plane if name == "plane" else exact.sixteen)(part.n)
        if rivals:
            yield from exact.rivals(problem)
        for way in ways:
            for seed in seeds:
                yield exact.trained(problem, WAYS[way], part.steps, seed)
        return
    for seed in seeds:
        digits = Digits(seed, part.teacher, images=name == "images")
        if rivals:
            yield from digits.rivals()
        for way in [*ways, *(part.once if rivals and seed == part.seeds[0] else ())]:
            yield digits.trained(WAYS[way], part.steps, seed)


def kept(before: list[Row], new: Row) -> list[Row]:
    """Rows, with a new one in the place of its like."""
    who = new["method"], new.get("seed")
    return [row for row in before if (row["method"], row.get("seed")) != who] + [new]


def _found() -> dict[str, Any]:
    """What the file of the results holds, which another run of other parts may have written meanwhile."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of the first part; writes nothing")
    parser.add_argument(
        "--table",
        action="store_true",
        help="print the tables of the committed figures alone",
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, help="the parts to measure anew; the others are kept")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="the ways of training to measure anew, without rivals")
    parser.add_argument("--seeds", nargs="+", type=int, help="the seeds to measure anew")
    given = parser.parse_args()
    torch.set_num_threads(1)
    some = not given.quick and (given.only or given.ways or given.seeds)
    result: dict[str, Any] = {"command": "python benchmarks/flow_maps.py", "torch": torch.__version__}
    if some or given.table:
        result = _found() | result
    chosen = QUICK if given.quick else {name: PARTS[name] for name in given.only or PARTS}
    parts = {} if given.table else dict(chosen)
    if "images" in parts and not CHECKPOINT.exists():
        print(f"images: left out, as there is no {CHECKPOINT}: make demo")
        parts.pop("images")
    for name, part in parts.items():
        found = result.get(name, {}).get("rows", [])
        only = list(part.ways) if given.quick and name == "digits" else given.ways  # whose rivals take a minute
        for row in rows(name, part, only, given.seeds):
            found = kept(found, row)
            result |= _found() if some else {}
            result[name] = {"samples": part.n, "rows": found}
            print(f"{time.strftime('%H:%M:%S')} {name} {report.line(row)}", flush=True)
            if not given.quick:
                RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\n{report.tables(result)}\n")
    if not given.quick:
        print(*report.checks(result), sep="\n")
        report.draw(result, PICTURE)
        PAGE.write_text(report.told(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")


if __name__ == "__main__":
    main()
