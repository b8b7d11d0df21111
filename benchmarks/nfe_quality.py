"""How good are samples of few network evaluations? This library beside its peers, at exactly the same number of them.

    python benchmarks/nfe_quality.py --jobs 2           # everything; writes results, table and pictures
    python benchmarks/nfe_quality.py --parts ours       # this library again, beside peers measured before
    python benchmarks/nfe_quality.py --table            # the page and the pictures from the committed results
    python benchmarks/nfe_quality.py --quick            # one problem, few pairs, nothing written

The problems are those of `_problems.benchmark()`, on which nothing was chosen. Evaluations are counted by a wrapper
around the model; a pair that takes another number than asked for is left out of that cell, with the reason counted. An
evaluation is one answer of the model as it is sampled: under guidance that is two passes of the network, for everyone.

* The error is the root mean square distance to the converged flow from the same noise, in standard deviations of its
  samples. Every pair of solver and grid is tried on a few noises at 6 and 12 evaluations; those within three times the
  best at one of them go on to all budgets, and the best by the few noises are measured on all. *The best peer with
  hindsight* is the least error of all peers' pairs on the test noise itself, problem by problem and budget by budget:
  no user could know it.
* Distances to true samples: energy and sliced Wasserstein, on noises and samples of several seeds, paired. *The floor*
  is the converged flow, which an unlimited budget would give.
* The opponent `trained by Adam` is a table of coefficients and nodes trained through the model: `_trained_table.py`.
* Fresh noise: one scalar, fitted by the energy distance on other seeds: `_fresh_noise.py`.

Parts are kept in .cache/nfe_quality/ as they are done, one file per problem, and measured again when they are named in
`--parts`. Peers: `pip install diffusers azula scipy`, no dependencies; what is not there is said and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache, partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import _fresh_noise
import _nfe_report
import _nfe_summary
import _our_pairs
import _peer_azula
import _peer_diffusers
import _trained_table
import torch
from _nfe_measure import SEED, Bench, Flow, Pair, distances
from _problems import Case, benchmark, mixture

CACHE = Path(__file__).parents[1] / ".cache" / "nfe_quality"
BUDGETS = (5, 6, 8, 10, 12, 15, 20)
TO_DATA = (5, 8, 12, 20)
TO_TRAIN = (5, 6, 8, 10)
PARTS = ("peers", "ours", "tuned", "distances", "adam", "noise")
NEEDED = ("peers",)
SEEDS = range(SEED + 1, SEED + 7)
FITTED_ON = range(SEED + 100, SEED + 104)
HARD_TO_TRAIN = ("images", "digits-kde", "gmm32")  # minutes per budget on one core


def peers(case: Case) -> list[Pair]:
    """Every pair of the peers that are installed."""
    return [*_peer_diffusers.pairs(case.sde, case.model.data_std), *_peer_azula.pairs(case.sde)]


def size(case: Case) -> dict[str, int]:
    """How many noises: fewer where a network of images has to be asked."""
    image = len(case.shape) == 3
    return {"rows": 256 if image else 512, "few": 16 if image else 128, "keep": 16 if image else 128}


def part_peers(case: Case, bench: Bench, done: dict[str, Any]) -> dict[str, Any]:
    few, every = bench.errors(peers(case), BUDGETS)
    return {"few": few, "every": every, "skipped": dict(bench.skipped)}


def part_ours(case: Case, bench: Bench, done: dict[str, Any]) -> dict[str, Any]:
    few, every = bench.errors(_our_pairs.pairs(case), BUDGETS)
    found = {"few": few, "every": every, "skipped": dict(bench.skipped)}
    default = _our_pairs.default(case)
    written = {str(n): default.written(case.model, n) for n in BUDGETS}
    return {**found, "default": bench.error(default, BUDGETS), "written": written}


@cache
def tuned(name: str) -> tuple[Pair, dict[str, Any]] | None:
    """The tuned sampler of a problem, tuned once for all budgets, and what that took."""
    return _our_pairs.tuned(next(c for c in benchmark() if c.name == name), BUDGETS)


def part_tuned(case: Case, bench: Bench, done: dict[str, Any]) -> dict[str, Any]:
    found = tuned(case.name)
    if found is None:
        return {}
    pair, cost = found
    return {"error": bench.error(pair, BUDGETS), **cost}


def part_distances(case: Case, bench: Bench, done: dict[str, Any]) -> dict[str, Any]:
    """Energy and sliced Wasserstein distances: of the default, of the tuned, and of the best peers by two criteria."""
    if case.data is None:
        return {}
    every, rows = done.get("peers", {}).get("every", {}), len(bench.x_T)
    fitted = tuned(case.name)
    own: list[Pair] = [_our_pairs.default(case), *([fitted[0]] if fitted else [])]
    found: dict[str, Any] = {"the flow itself": Flow(case).distances(SEEDS, rows)}
    for n in TO_DATA:
        rank = sorted((e[str(n)], label) for label, e in every.items() if str(n) in e)
        known = {label for _, label in rank[:16]}
        near = [pair for pair in peers(case) if pair.label in known]
        first = distances(case, near, n, [SEED], rows)
        by_energy = sorted((d["energy"][0], label) for label, d in first.items())
        chosen = {label for _, label in [*rank[:2], *by_energy[:2]]}
        found[str(n)] = distances(case, [*own, *(p for p in near if p.label in chosen)], n, SEEDS, rows)
    return found


def part_adam(case: Case, bench: Bench, done: dict[str, Any]) -> dict[str, Any]:
    """The trained opponent, on the problems where a training takes less than a minute."""
    if any(name in case.name for name in HARD_TO_TRAIN):
        return {}
    linear = ("Adams", "IPNDM", "UniPC", "DPMSolverPP")
    standard = [pair for pair in _our_pairs.pairs(case) if pair.label.split("(")[0].removeprefix("ours ") in linear]
    found = {}
    for n in TO_TRAIN:
        run = _trained_table.train(case, n, standard)
        found[str(n)] = {
            "error": bench.error(run.table, [n]).get(str(n)),
            "calls": run.calls,
            "start": run.start,
            "held": [run.before, run.after],
        }
    return found


def part_noise(case: Case, bench: Bench, done: dict[str, Any]) -> dict[str, Any]:
    if case.exact or case.data is None:
        return {}
    return _fresh_noise.row(case, TO_DATA[1:], FITTED_ON, SEEDS, len(bench.x_T))


DO: dict[str, Callable[[Case, Bench, dict[str, Any]], dict[str, Any]]] = {
    "peers": part_peers,
    "ours": part_ours,
    "tuned": part_tuned,
    "distances": part_distances,
    "adam": part_adam,
    "noise": part_noise,
}


def run(name: str, parts: Sequence[str]) -> str:
    """Measures what is wanted or missing on one problem, and keeps it; says what took how long."""
    torch.set_num_threads(1)
    case = next(c for c in benchmark() if c.name == name)
    file = CACHE / f"{name.replace(' ', '_')}.json"
    done = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    bench = Bench(case, **size(case))
    check = f"{float(bench.exact.double().square().sum()):.5g}"
    if done.get("check") != check:
        done = {"check": check, "process": repr(case.sde), "dims": bench.exact[0].numel(), "exact": case.exact}
    took = []
    for part in PARTS:
        if part in parts or ("missing" in parts and not done.get(part)) or (part in NEEDED and part not in done):
            begun = time.perf_counter()
            bench.skipped.clear()
            done[part] = DO[part](case, bench, done)
            took.append(f"{part} {time.perf_counter() - begun:.0f} s")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(done), encoding="utf-8")
    return f"{name}: {', '.join(took) or 'nothing to do'}"


def installed() -> dict[str, str]:
    """Versions of what takes part; a dash for what is not there."""
    names = ("torch", "diffusers", "azula")
    return {name: version(name) if importlib.util.find_spec(name) else "-" for name in names}


def quick() -> None:
    """One exact problem in the plane, three budgets, ours and a few of the peers that are there."""
    case = mixture("gmm2, quick", 2, 4, 0.3, seed=390)
    bench = Bench(case, 128, 64, 4)
    theirs = [p for p in peers(case) if "trailing" in p.label or "rectified" in p.label][::8]
    print(f"{case.name}: error over standard deviation, {len(theirs)} pairs of peers")
    for name, v in installed().items():
        if v == "-":
            print(f"  {name} is not installed, and left out: pip install {name}")
    _, best = bench.errors(theirs, (5, 8, 12))
    _, own = bench.errors(_our_pairs.pairs(case)[::16], (5, 8, 12))
    default = bench.error(_our_pairs.default(case), (5, 8, 12))
    for n in ("5", "8", "12"):
        peer = min(((e[n], label) for label, e in best.items() if n in e), default=(float("nan"), "none"))
        mine = min((e[n], label) for label, e in own.items() if n in e)
        print(f"  {n:>2} evaluations: default {default[n]:.4f}; of ours {mine[0]:.4f} {mine[1]}")
        print(f"     of peers {peer[0]:.4f} {peer[1]}")
    for reason, times in bench.skipped.most_common(3):
        print(f"  left out {times} times: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one problem and few pairs, nothing written")
    parser.add_argument("--only", default="", help="problems whose name holds this text")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help=f"what to measure again, of {', '.join(PARTS)}; or missing"
    )
    parser.add_argument("--jobs", type=int, default=1, help="problems at once, one thread each")
    parser.add_argument("--table", action="store_true", help="measures nothing; page and pictures from the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        quick()
        return
    if arguments.table:
        _nfe_report.write_page(json.loads(_nfe_report.RESULTS.read_text(encoding="utf-8")))
        return
    parts = arguments.parts.split(",")
    assert set(parts) <= {*PARTS, "missing"}, f"--parts takes {', '.join(PARTS)} or missing, got {arguments.parts}"
    names = [case.name for case in benchmark() if arguments.only in case.name]  # which trains what is not trained yet
    if "tuned" in parts and _our_pairs.tuner() is None:
        print("sde_diffusion.tuning.tune is not there: nothing is tuned")
    begun = time.perf_counter()
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        for one in as_completed(pool.submit(partial(run, name, parts)) for name in names):
            print(f"{one.result()}  [{time.perf_counter() - begun:.0f} s]", flush=True)
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(CACHE.glob("*.json"))}
    files = {name: f for name, f in files.items() if f.get("peers") and f.get("ours")}
    if not files:
        return
    result = _nfe_summary.summarise(files, BUDGETS, TO_DATA, TO_TRAIN, installed())
    print(_nfe_report.markdown(result))
    if not arguments.only:
        _nfe_report.write(result)


if __name__ == "__main__":
    main()
