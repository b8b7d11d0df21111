"""Do super-resolved digits keep their class and their low resolution, and what does a cascade make of photographs?

    python benchmarks/super_resolution.py                # writes results/super_resolution.json and two pictures
    python benchmarks/super_resolution.py --only digits  # one part anew, the other kept
    python benchmarks/super_resolution.py --quick        # a few steps, nothing written
    python benchmarks/super_resolution.py --table        # the tables of docs/cascades.md

* `digits`: 360 test digits, shrunk from 8 x 8 to 4 x 4 and drawn again, with their class told to the model and without.
  A classifier of real digits is asked what they are. Its accuracy on real ones is the ceiling, that on bilinear ones
  the floor; a classifier trained on the low resolutions tells how much of the class is left in them.
* `photos`: patches of photographs, 8 -> 16 -> 32. Frechet distances are in the features of a net that tells which
  picture a patch is of; that of patches to train on from those to test on is what real ones have.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import _super_digits as digits
import _super_photos as photos
import _super_report as report
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS, IMAGES = ROOT / "benchmarks" / "results" / "super_resolution.json", ROOT / "docs" / "images"
PARTS = {"digits": digits, "photos": photos}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps; writes nothing")
    parser.add_argument("--only", choices=PARTS, help="the part to measure anew; the other is kept")
    parser.add_argument("--table", action="store_true", help="prints the tables of the committed figures")
    given = parser.parse_args()
    if given.table:
        print(report.tables(json.loads(RESULTS.read_text())))
        return
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if given.only and RESULTS.exists() else {}
    result |= {"command": "python benchmarks/super_resolution.py", "torch": torch.__version__, "training_seed": 0}
    for part in [given.only] if given.only else PARTS:
        start = time.process_time()
        result[part], shown = PARTS[part].measure(given.quick)
        result[part]["core_seconds"] = round(time.process_time() - start)
        print(json.dumps(result[part], indent=1), flush=True)
        if not given.quick:
            RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            report.draw(shown, IMAGES / f"cascade_{part}.png")
    if {*PARTS} <= {*result}:
        print(f"\n{report.tables(result)}\n")
        print(*([] if given.quick else report.checks(result)), sep="\n")


if __name__ == "__main__":
    main()
