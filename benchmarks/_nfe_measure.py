"""What `nfe_quality.py` measures on one problem: every pair's distance to the flow, and a few pairs' samples."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from _counted import AnyLevel, Counted, Skip
from _problems import Case, error, reference, start
from torch import Tensor

from sde_diffusion.metrics import energy_distance, sliced_wasserstein

SEED = 4001
"""Of the test noise; the seeds of the distances to data follow it."""
FIRST = (6, 12)
"""Numbers of evaluations at which every pair is tried; those far from the best at both are dropped from the others."""
FAR = 3.0
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}  # 97.5 % quantiles, by the number of seeds


class Pair(Protocol):
    """A sampler with its grid."""

    @property
    def label(self) -> str:
        """Its name in the tables."""

    def __call__(self, network: AnyLevel, n: int, x_T: Tensor) -> Tensor:
        """`n` evaluations from the noise `x_T` to data."""


Table = dict[str, dict[str, float]]
"""A figure by label and number of evaluations."""


def solve(pair: Pair, case: Case, n: int, x_T: Tensor, levels: dict[Any, Any] | None = None) -> Tensor:
    """The samples of a pair at exactly `n` evaluations; `levels` is kept between those of one problem.

    Raises:
        Skip: It cannot be driven so, with the reason.
    """
    model = Counted(case.model.eval())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = pair(AnyLevel(model, case.cond, levels), n, x_T)
    except (ValueError, TypeError, RuntimeError, IndexError) as refusal:
        raise Skip(f"{type(refusal).__name__}: {str(refusal)[:70]}") from refusal
    if model.calls != n:
        raise Skip("takes another number of evaluations")
    if not bool(torch.isfinite(x).all()):
        raise Skip("its samples are not finite")
    return x.to(case.dtype)


class Bench:
    """One problem with its test noise and the end of the flow from it.

    Args:
        case: The problem.
        rows: Test noises.
        few: Of these, how many every pair is tried on.
        keep: Pairs per number of evaluations that are measured on all.
    """

    def __init__(self, case: Case, rows: int, few: int, keep: int) -> None:
        self.case, self.few, self.keep = case, few, keep
        self.x_T = start(case, rows, SEED)
        self.exact = reference(case, self.x_T)
        self.skipped: Counter[str] = Counter()
        self.levels: dict[Any, Any] = {}

    def errors(self, pairs: Sequence[Pair], budgets: Sequence[int]) -> tuple[Table, Table]:
        """Errors on the few noises of whoever is near, and on all noises of the best by these."""
        few: Table = {pair.label: {} for pair in pairs}
        near = list(pairs)
        first = [n for n in FIRST if n in budgets]
        for n in [*first, *(n for n in budgets if n not in first)]:
            if first and n == next((m for m in budgets if m not in first), None):
                near = _near(few, pairs, first)
            for pair in near:
                self._try(pair, n, self.few, few)
        every: Table = {}
        for n in budgets:
            ranked = sorted((e[str(n)], label) for label, e in few.items() if str(n) in e)[: self.keep]
            chosen = {label for _, label in ranked}
            for pair in (p for p in pairs if p.label in chosen):
                self._try(pair, n, len(self.x_T), every)
        return few, every

    def error(self, pair: Pair, budgets: Iterable[int]) -> dict[str, float]:
        """Errors of one pair on all noises, by number of evaluations."""
        found: Table = {}
        for n in budgets:
            self._try(pair, n, len(self.x_T), found)
        return found.get(pair.label, {})

    def _try(self, pair: Pair, n: int, rows: int, into: Table) -> None:
        try:
            x = solve(pair, self.case, n, self.x_T[:rows], self.levels)
        except Skip as reason:
            self.skipped[f"{pair.label.split('(')[0]}: {reason}"] += 1
            return
        e = error(x, self.exact[:rows])
        if math.isfinite(e):
            into.setdefault(pair.label, {})[str(n)] = e


def _near(few: Table, pairs: Sequence[Pair], first: Sequence[int]) -> list[Pair]:
    """Who is within a factor of the best at one of the first numbers of evaluations, or could not be tried at one."""
    best = {str(n): min((e[str(n)] for e in few.values() if str(n) in e), default=math.inf) for n in first}
    found = []
    for pair in pairs:
        e = few[pair.label]
        if any(n not in e or e[n] <= FAR * b for n, b in best.items()):
            found.append(pair)
    return found


def distances(case: Case, pairs: Sequence[Pair], n: int, seeds: Sequence[int], rows: int) -> dict[str, Any]:
    """Energy and sliced Wasserstein distance of each pair to true samples, one figure per seed.

    Noise and true samples of a seed are the same for all pairs, so that differences between them are paired.
    """
    found: dict[str, Any] = {}
    levels: dict[Any, Any] = {}
    for seed in seeds:
        x_T, data = start(case, rows, seed), true_samples(case, rows, seed)
        for pair in pairs:
            try:
                x = solve(pair, case, n, x_T, levels)
            except Skip:
                continue
            for name, distance in (("energy", energy_distance), ("sliced", sliced_wasserstein)):
                found.setdefault(pair.label, {}).setdefault(name, []).append(distance(x, data))
    return found


def true_samples(case: Case, rows: int, seed: int) -> Tensor:
    """Draws of the data, by a seed that no noise has."""
    assert case.data is not None, case.name
    return case.data(rows, 7_000_000 + seed)


class Flow:
    """The converged flow as a pair: what an unlimited budget would give, the floor of the distances to data."""

    label = "the flow itself"

    def __init__(self, case: Case) -> None:
        self.case = case

    def distances(self, seeds: Sequence[int], rows: int) -> dict[str, list[float]]:
        """Its distances to the true samples of each seed."""
        found: dict[str, list[float]] = {"energy": [], "sliced": []}
        for seed in seeds:
            x, data = reference(self.case, start(self.case, rows, seed)), true_samples(self.case, rows, seed)
            found["energy"].append(energy_distance(x, data))
            found["sliced"].append(sliced_wasserstein(x, data))
        return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds and the half-width of its 95 % interval."""
    v = torch.tensor(values, dtype=torch.float64)
    if len(v) < 2:
        return float(v.mean()), math.inf
    return float(v.mean()), STUDENT[len(v)] * float(v.std()) / math.sqrt(len(v))
