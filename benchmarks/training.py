"""What training costs and what it gives: steps beside a loop of one's own, and quality against time.

    python benchmarks/training.py                 # writes results/training.json, the tables of docs/training.md and
                                                  # docs/images/training.png
    python benchmarks/training.py --only tables   # one part anew: speed, digits, tables or signals
    python benchmarks/training.py --table         # the page and the picture from the committed measurements
    python benchmarks/training.py --quick         # everything shorter, nothing written

* speed: `train` and a bare PyTorch loop of the same network, loss, optimiser and average take turns of a few steps in
  one run; the ratio of their times, turn by turn, median and quartiles, and of all turns. Above 1, `train` is faster.
* digits: the demonstration after so many steps: bits per dimension of test images, and Frechet distance of samples.
* tables: two of scikit-learn at default settings, with early stopping and without: log-likelihood of test rows.
* signals: Gaussian ones of two channels, of which covariance and density are known, by a U-Net and by a transformer.

One thread, seed 0. Times are those of the processor, which what else runs on the machine makes longer by up to a half:
ratios tell more than seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn
import torch
from _training_quality import NETS, TABLES, digits, signals, table
from _training_report import BEGIN, END, draw, markdown, write_page
from _training_speed import CASES, measure

__all__ = ["BEGIN", "END", "RESULTS", "markdown"]  # for the test of the page

RESULTS = Path(__file__).parent / "results" / "training.json"
Part = dict[str, Any]


def speed(quick: bool) -> Part:
    """Every case of `CASES`."""
    found = {}
    for name, case in CASES.items():
        found[name] = measure(case(), 4 if quick else 150)
        row = found[name]
        print(f"  {name:34} {row['median']:.3f} [{row['quartiles'][0]:.3f}, {row['quartiles'][1]:.3f}]", flush=True)
    return found


def of_digits(quick: bool) -> Part:
    """The digits by steps."""
    rows = digits((3,), images=2, drawn=20) if quick else digits((100, 300, 600), images=24, drawn=1437)
    return {"images": 24, "drawn": 1437, "rows": _told(rows)}


def of_tables(quick: bool) -> Part:
    """Both tables."""
    marks = (10, 20) if quick else (50, 100, 200, 400, 800, 1600, 3000)
    found = {}
    for name in list(TABLES)[: 1 if quick else None]:
        found[name] = table(name, marks[-1], marks, 2 if quick else 32)
        print(f"  {name}: with early stopping {found[name]['early']}", flush=True)
        _told(found[name]["without"])
    return found


def of_signals(quick: bool) -> Part:
    """Both networks."""
    length, marks = 16, (2,) if quick else (100, 300, 900)
    sizes = dict(n=256, drawn=50, rows=2) if quick else dict(n=16_384, drawn=2048, rows=16)
    found = {name: _told(signals(name, length, marks, **sizes)) for name in NETS}
    return {"length": length, **sizes, "nets": found}


PARTS: dict[str, Callable[[bool], Part]] = {
    "speed": speed,
    "digits": of_digits,
    "tables": of_tables,
    "signals": of_signals,
}


def _told(rows: list[Part]) -> list[Part]:
    for row in rows:
        print("  " + "  ".join(f"{k} {v:.4g}" for k, v in row.items() if v is not None), flush=True)
    return rows


def main() -> None:
    """Measures, prints and, unless asked to be quick, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="everything shorter, nothing written")
    parser.add_argument("--only", choices=PARTS, help="one part, the others as they are committed")
    parser.add_argument("--table", action="store_true", help="measures nothing; writes the page and the picture again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "each of .* rows will be seen")  # which is what is shown
    result = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() and (args.only or args.table) else {}
    versions = {"torch": torch.__version__, "scikit-learn": sklearn.__version__, "python": platform.python_version()}
    about = {"command": "python benchmarks/training.py", **versions, "seed": 0, "cores": os.cpu_count()}
    print(about)
    for name, part in {} if args.table else PARTS.items():
        if args.only in (None, name):
            print(f"{name}:")
            result[name] = part(args.quick)
            if not args.quick:
                RESULTS.write_text(json.dumps({**about, **result}, indent=1) + "\n", encoding="utf-8")
    if not args.quick:
        write_page(result)
        draw(result)


if __name__ == "__main__":
    main()
