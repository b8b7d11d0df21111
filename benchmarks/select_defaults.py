"""How the solver and the grid that `SDESampler` takes by default were chosen, and how they do on what it has not seen.

    python benchmarks/select_defaults.py            # writes benchmarks/results/select_defaults.json, prints the tables
    python benchmarks/select_defaults.py --quick    # three problems, few samples and budgets, nothing written
    python benchmarks/select_defaults.py --grids    # the grids of solvers that are named without one

The error is the distance to the converged flow from the same noise, after the step to the data, in standard deviations,
at a given number of evaluations (under guidance each is two passes of the network). It is stated over the best of
the *standard pairs* for that problem and budget, with hindsight: the published solvers on the published spacings, as
other libraries ship them. On `selection()` of `_problems.py` all candidates are measured, on `held_out()` what was
chosen: `chosen` below is `sampler.default_solver` and `default_grid` themselves. Means are geometric.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from _problems import Case, error, held_out, reference, selection, start
from torch import Tensor

from sde_diffusion import SDESampler, grids
from sde_diffusion.problem import Problem
from sde_diffusion.sde.grids import Grid
from sde_diffusion.solvers import (
    DDIM,
    IPNDM,
    RK4,
    Adams,
    AdamsMoulton,
    Angle,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPP2S,
    Heun,
    Solver,
    UniPC,
)
from sde_diffusion.solvers.loop import integrate

BUDGETS = (5, 6, 8, 10, 12, 15, 20, 30, 50)
RESULTS = Path(__file__).parent / "results" / "select_defaults.json"
Errors = dict[str, dict[str, float]]
Pair = tuple[str, Solver, Grid]


def standard() -> Iterator[Pair]:
    """Published solvers on published spacings."""
    spacings: dict[str, Grid] = {
        "uniform": grids.uniform,
        "leading": grids.leading,
        "trailing": grids.trailing,
        "karras": grids.karras,
        "log_snr": grids.log_snr,
    }
    multistep: list[Solver] = [DDIM(), DPMSolverPP(2), DPMSolverPP(3), UniPC(2), UniPC(3), IPNDM(4)]
    for solver in [*multistep, Adams(3, "data"), Adams(3, "rho"), Adams(3, "time")]:
        for name, grid in spacings.items():
            yield f"{solver!r} {name}", solver, grid
    for solver in (IPNDM(4), Adams(2, "velocity"), Adams(3, "velocity")):
        yield f"{solver!r} quadratic", solver, grids.quadratic
    yield f"{Adams(3, 'velocity')!r} uniform", Adams(3, "velocity"), grids.uniform


def candidates(c: float) -> Iterator[Pair]:
    """What a default could be, for data of standard deviation `c`."""
    for wide in (1.0, 1.4):
        for rate, power in ((0.0, 2.0), (0.05, 2.0), (0.2, 2.0), (0.05, 3.0)):
            grid = partial(grids.balanced, rate=rate, power=power, data_std=wide * c)
            for q in (2, 3, 4):
                name = f"rate={rate} power={power} {wide} c"
                yield f"Adams({q}, 'balanced') {name}", Adams(q, "balanced", wide * c), grid
                if rate == 0.05 and power == 2.0:
                    yield f"Adams({q}, 'angle') {name}", Adams(q, "angle", c), grid
                    yield f"Adams({q}, 'velocity') {name}", Adams(q, "velocity"), grid
    for solver in (IPNDM(3), UniPC(2), UniPC(3)):
        yield f"{solver!r} balanced", solver, partial(grids.balanced, data_std=1.4 * c)


def named(c: float) -> list[Solver]:
    """Solvers that a user may name without a grid."""
    by_name = [Adams(3, quantity) for quantity in ("data", "noise", "rho", "time", "velocity")]
    in_angle = [Adams(3, "angle", c), *(Angle(s, c) for s in (Heun(), RK4(), AdamsMoulton(3)))]
    single = [DPMSolver(2), DPMSolver(3), DPMSolverPP2S(), Heun(), RK4(), AdamsMoulton(3)]
    several: list[Solver] = [DDIM(), DPMSolverPP(2), DPMSolverPP(3), UniPC(2), UniPC(3), IPNDM(3), IPNDM(4)]
    return [*several, *by_name, *in_angle, *single]


def laid(c: float) -> dict[str, Grid]:
    """The grids that they may be given."""
    return {
        "angle": partial(grids.angle, data_std=c),
        "log_snr": grids.log_snr,
        "karras": grids.karras,
        "balanced": partial(grids.balanced, data_std=1.4 * c),
        "closed": partial(grids.balanced, data_std=1.4 * c, closed=True),
    }


class Bench:
    """One problem with its converged flow.

    Args:
        case: The problem.
        n: Samples; a quarter for images.
    """

    def __init__(self, case: Case, n: int) -> None:
        self.case, self.problem = case, Problem(case.sde, case.model, case.shape)
        self.x_T = start(case, n if len(case.shape) == 1 else max(8, n // 4), seed=17)
        self.exact = reference(case, self.x_T)

    def error(self, solver: Solver, grid: Grid, evaluations: int) -> float | None:
        """The error of a pair; None where it cannot be run, infinite where the numbers overflow."""
        steps = (evaluations - 1) // (solver.facts.evaluations or 1)
        try:
            return self._error(solver, grid(self.case.sde, steps))
        except (TypeError, ValueError):
            return None
        except RuntimeError:
            return math.inf

    def _error(self, solver: Solver, times: Tensor) -> float:
        eq = self.problem.equation(dict(self.case.cond))
        with torch.no_grad():
            *_, last = integrate(eq, solver, self.x_T, times, finish=True)
        return error(last.x, self.exact)

    def chosen(self, evaluations: int) -> float:
        """The error of the default."""
        sampler = SDESampler(self.problem, nfe=evaluations * self.problem.cost)
        return self._error(sampler.solver, torch.tensor(sampler.times, dtype=torch.float64))


def measured(bench: Bench, pairs: list[Pair], budgets: tuple[int, ...]) -> Errors:
    """Errors by budget and pair, those that cannot be run left out; the default is `chosen`."""
    found: Errors = {}
    for budget in budgets:
        row = {name: bench.error(solver, grid, budget) for name, solver, grid in pairs}
        found[str(budget)] = {k: e for k, e in row.items() if e is not None} | {"chosen": bench.chosen(budget)}
    return found


def kind_of(case: Case) -> str:
    """What the rule goes by."""
    if not case.exact:
        return "network, noise" if "noise" in case.name else "network, guided" if case.cond else "network"
    return "exact, guided" if case.cond else "exact"


def table(found: dict[str, Errors], kinds: dict[str, str], pairs: set[str]) -> list[str]:
    """Ratios to the best standard pair with hindsight: what was chosen, the best candidate, the best fixed pair."""
    lines = [
        "| problems | evaluations | chosen | worst | best candidate | best fixed standard pair |",
        "|" + "---|" * 6,
    ]
    for kind in [*dict.fromkeys(kinds.values()), "all"]:
        names = [name for name in found if kind in (kinds[name], "all")]
        for budget in found[names[0]]:
            best = {k: min(e for pair, e in found[k][budget].items() if pair in pairs) for k in names}
            shared = set.intersection(*(set(found[k][budget]) for k in names))
            ratios = {p: [min(found[k][budget][p] / best[k], 1e3) for k in names] for p in shared}
            worst, where = max((r, k) for r, k in zip(ratios["chosen"], names, strict=True))
            tried = [min(((mean(r), p) for p, r in ratios.items() if f(p)), default=None) for f in _sides(pairs)]
            best_two = " | ".join("" if t is None else f"{t[0]:.2f} `{t[1]}`" for t in tried)
            lines.append(f"| {kind} | {budget} | {mean(ratios['chosen']):.2f} | {worst:.1f} {where} | {best_two} |")
    return lines


def _sides(pairs: set[str]) -> tuple[Callable[[str], bool], Callable[[str], bool]]:
    return (lambda p: p not in pairs and p != "chosen"), (lambda p: p in pairs)


def mean(values: list[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def shortened(found: dict[str, Errors], pairs: set[str]) -> dict[str, dict[str, dict[str, object]]]:
    """What is kept: the errors of the default and of the best standard pair and candidate."""
    sides = dict(zip(("candidate", "standard"), _sides(pairs), strict=True))
    kept: dict[str, dict[str, dict[str, object]]] = {}
    for name, rows in found.items():
        for budget, row in rows.items():
            best = {s: min(((e, p) for p, e in row.items() if f(p)), default=None) for s, f in sides.items()}
            kept.setdefault(name, {})[budget] = {"chosen": row["chosen"], **best}
    return kept


def by_grid(cases: list[Case], n: int, budgets: tuple[int, ...]) -> list[str]:
    """For each solver the error on each grid over that on its best, exact problems and networks apart."""
    ratios: dict[tuple[bool, str, str], list[float]] = {}
    for case in cases:
        bench, c = Bench(case, n), case.model.data_std
        for solver, plain in zip(named(c), named(1.0), strict=True):
            for budget in budgets:
                found = {g: bench.error(solver, grid, budget) for g, grid in laid(c).items()}
                known = {g: min(e, 1e3) for g, e in found.items() if e is not None}
                for g, e in known.items():
                    ratios.setdefault((case.exact, repr(plain), g), []).append(e / min(known.values()))
    lines = ["| solver | model | " + " | ".join(laid(1.0)) + " |", "|" + "---|" * (2 + len(laid(1.0)))]
    for solver in map(repr, named(1.0)):
        for exact in (True, False):
            cells = [ratios.get((exact, solver, g)) for g in laid(1.0)]
            row = " | ".join("" if r is None else f"{mean(r):.2f} ({max(r):.0f})" for r in cells)
            lines.append(f"| `{solver}` | {'exact' if exact else 'network'} | {row} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run; writes nothing")
    parser.add_argument("--grids", action="store_true", help="the grids of solvers named without one, and nothing else")
    parser.add_argument(
        "--part", choices=("selection", "held_out"), help="one of the two lists; the other keeps its result"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    n, budgets = (16, (5, 12)) if given.quick else (64, BUDGETS)
    made = {"selection": selection, "held_out": held_out}
    names = [given.part] if given.part else list(made)
    lists = {name: made[name](nets=not given.quick) for name in names}
    if given.quick:
        lists = {name: cases[:3] for name, cases in lists.items()}
    if given.grids:
        plain = [case for case in selection() if case.model.cost == 1]
        print("\n".join(by_grid(plain, n, (10, 19, 31))))
        return
    result: dict[str, object] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    result |= {"command": "python benchmarks/select_defaults.py", "torch": torch.__version__}
    for name, cases in lists.items():
        kinds, found = {case.name: kind_of(case) for case in cases}, dict[str, Errors]()
        for case in cases:
            pairs = [*standard(), *(candidates(case.model.data_std) if name == "selection" else ())]
            found[case.name] = measured(Bench(case, n), pairs, budgets)
            print(f"{name} {case.name}: done", flush=True)
        lines = table(found, kinds, {pair for pair, _, _ in standard()})
        print("\n".join(["", f"{name}, over the best standard pair for each problem", *lines, ""]), flush=True)
        result[name] = {"samples": n, "table": lines, "errors": shortened(found, {p for p, _, _ in standard()})}
    if not given.quick:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
