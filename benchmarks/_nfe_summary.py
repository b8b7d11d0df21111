"""From what `nfe_quality.py` measured on each problem to its summary over all of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from _nfe_measure import FAR, FIRST, interval

MARGIN = 1.05
Files = Mapping[str, dict[str, Any]]
HINDSIGHT = {"best of ours": ("ours", "ours"), "diffusers": ("peers", "diffusers"), "azula": ("peers", "azula")}
"""Whose best pair with hindsight is shown: the part that measured it, and how its labels begin."""


def geometric(values: Iterable[float]) -> float:
    """The geometric mean; NaN of nothing."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def least(table: Mapping[str, Mapping[str, float]], n: str) -> tuple[float, str]:
    """The least figure of a table at one budget, and whose it is."""
    return min(((e[n], label) for label, e in table.items() if n in e), default=(math.nan, ""))


def ratios(files: Files, part: str, key: str, n: str) -> dict[str, float]:
    """By problem, an error of ours over the best peer's with hindsight."""
    found = {}
    for name, f in files.items():
        mine, (best, _) = f.get(part, {}).get(key, {}).get(n), least(f["peers"]["every"], n)
        if mine is not None and best > 0:
            found[name] = mine / best
    return found


def fixed(files: Files, part: str, budgets: Sequence[int]) -> dict[str, dict[str, float]]:
    """For each pair that runs on half of the problems or more and was never refused, the geometric mean over problems
    of its error over the hindsight best.

    A pair that was far from the best at the first two budgets, and so measured at no other, counts as `FAR` there,
    which is less than it would have been. Beside it stands the default on the problems where the pair runs.
    """
    found: dict[str, dict[str, float]] = {}
    labels = Counter(label for f in files.values() for label in f[part]["few"])
    for label, times in labels.items():
        if 2 * times < len(files):
            continue
        logs, defaults = [], []
        for f in files.values():
            for n in map(str, budgets):
                ratio = _ratio(f, part, label, n)
                if ratio is not None:
                    logs.append(ratio)
                    defaults.append(f["ours"]["default"][n] / least(f["peers"]["every"], n)[0])
        if len(logs) == times * len(budgets):
            found[label] = {"ratio": geometric(logs), "problems": times, "default": geometric(defaults)}
    return dict(sorted(found.items(), key=lambda item: item[1]["ratio"]))


def _ratio(f: dict[str, Any], part: str, label: str, n: str) -> float | None:
    every, few = f[part]["every"].get(label, {}), f[part]["few"].get(label)
    if n in every:
        return every[n] / least(f["peers"]["every"], n)[0]
    if few is None:
        return None
    if n in few:
        return few[n] / least(f["peers"]["few"], n)[0]
    first = [str(m) for m in FIRST]
    tried = all(m in few for m in first)
    return FAR if tried and all(few[m] > FAR * least(f[part]["few"], m)[0] for m in first) else None


def _best(f: dict[str, Any], part: str, library: str, n: str) -> float | None:
    """The least error of one library's pairs over the best peer's, both with hindsight."""
    found = [_ratio(f, part, label, n) for label in f[part]["few"] if label.startswith(library)]
    return min((v for v in found if v is not None), default=None)


def worse(f: dict[str, Any], n: str, mine: str) -> dict[str, Any]:
    """How ours compares with the best peer in distance to true samples, paired by seed."""
    d = f.get("distances", {}).get(n, {})
    found = {}
    for metric in ("energy", "sliced"):
        theirs = {k: v[metric] for k, v in d.items() if k not in ("default", "tuned")}
        if mine in d and theirs:
            best = min(theirs, key=lambda label: interval(theirs[label])[0])
            difference = interval([a - b for a, b in zip(d[mine][metric], theirs[best], strict=True)])
            floor = interval(f["distances"]["the flow itself"][metric])
            found[metric] = {
                "ours": interval(d[mine][metric]), "peer": interval(theirs[best]), "label": best, "floor": floor,
                "difference": difference, "worse": difference[0] > difference[1],
            }  # fmt: skip
    return found


def summarise(
    files: Files, budgets: Sequence[int], to_data: Sequence[int], to_train: Sequence[int], versions: dict[str, str]
) -> dict[str, Any]:
    """All figures of the page."""
    rows = {}
    for n in map(str, budgets):
        rows[n] = {}
        for who, part, key in (("tuned", "tuned", "error"), ("default", "ours", "default")):
            r = ratios(files, part, key, n)
            if r:
                worst = max(r, key=lambda name: r[name])
                above = {name: v for name, v in r.items() if v > MARGIN}
                rows[n][who] = {"mean": geometric(r.values()), "worst": [r[worst], worst], "above": above, "of": len(r)}
        for who, (part, library) in HINDSIGHT.items():
            best = [_best(f, part, library, n) for f in files.values()]
            rows[n][who] = {"mean": geometric(v for v in best if v is not None)}
    single = fixed(files, "peers", budgets)
    problems = {name: _problem(f, budgets, to_data, list(single)[:3]) for name, f in files.items()}
    adam = {n: a for n in map(str, to_train) if (a := _against_adam(files, n))}
    skipped: Counter[str] = Counter()
    for f in files.values():
        skipped.update(f["peers"]["skipped"])
    return {
        "versions": versions, "budgets": list(budgets), "rows": rows, "problems": problems, "adam": adam,
        "fixed peers": dict(list(single.items())[:30]),
        "fixed ours": dict(list(fixed(files, "ours", budgets).items())[:30]),
        "skipped": dict(skipped.most_common()),
    }  # fmt: skip


def _against_adam(files: Files, n: str) -> dict[str, Any]:
    """The tuned table beside the trained one at one budget, where both are: error and evaluations spent."""
    both = [f for f in files.values() if n in f.get("adam", {}) and n in f.get("tuned", {}).get("error", {})]
    if not both:
        return {}
    spent = [sum(f["tuned"]["evaluations"] for f in both), sum(f["adam"][n]["calls"] for f in both)]
    means = geometric(f["tuned"]["error"][n] / f["adam"][n]["error"] for f in both)
    return {"mean": means, "problems": len(both), "evaluations": spent}


def _problem(
    f: dict[str, Any], budgets: Sequence[int], to_data: Sequence[int], single: Sequence[str]
) -> dict[str, Any]:
    kept = {k: f[k] for k in ("process", "dims", "exact")}
    kept |= {"default": f["ours"]["default"], "written": f["ours"]["written"], "tuned": f.get("tuned", {})}
    for who, part in (("peer", "peers"), ("shipped", "ours")):
        kept[who] = {str(n): list(least(f[part]["every"], str(n))) for n in budgets}
    kept["fixed"] = {label: _curve(f, label, budgets) for label in single}
    kept["to data"] = {str(n): {who: worse(f, str(n), who) for who in ("default", "tuned")} for n in to_data}
    return {**kept, "adam": f.get("adam", {}), "noise": f.get("noise", {}), "pairs": len(f["peers"]["few"])}


def _curve(f: dict[str, Any], label: str, budgets: Sequence[int]) -> dict[str, float]:
    """The errors of one pair of the peers, where it was measured."""
    every, few = (f["peers"][k].get(label, {}) for k in ("every", "few"))
    return {str(n): every.get(str(n), few.get(str(n))) for n in budgets if str(n) in every or str(n) in few}
