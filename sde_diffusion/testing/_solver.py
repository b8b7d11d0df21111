"""The check of a solver: the order it claims, and the rules that every solver keeps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

from sde_diffusion.loop import UnfinishedWarning
from sde_diffusion.sde import GaussianSDE
from sde_diffusion.solvers import Hold, PredictorCorrector, Solver
from sde_diffusion.testing import _habits as habits
from sde_diffusion.testing import orders
from sde_diffusion.testing.report import Checklist, Curve, Measured, Report, described


def check_solver(solver: Solver, sde: GaussianSDE | None = None) -> Report:
    r"""Checks a solver: orders of convergence against what it claims, and the rules of the house. Ten seconds or so.

    A deterministic solver is measured against the exact probability flow of Gaussian data and of a mixture; a
    stochastic one on one Brownian path (strong order) and by the bias of its mean and variance (weak order), where both
    must reach 1, or the claim if that is less, and one of them the claim. A measured order may lie 0.15 below. An
    adaptive one is held to its tolerances. Then the rules: a row alone is the row in a batch of 64, evaluations are
    counted, the seed decides everything random, no state is kept, dtypes and shapes are, the `repr` is Python, and 1 to
    5 steps on every grid are finite or refused with the cause.

    A corrector, which stays at one level, is checked as `PredictorCorrector(Hold(), solver)`.

    Args:
        solver: The solver.
        sde: A Gaussian SDE to measure on; by default VP, sub-VP, VE, EDM, flow, cosine and Brownian. Give one that is
            smooth in `t`: on a discrete chain a method that steps in `t` does not show its order.

    Raises:
        TypeError: Not an instance of `Solver`, or an SDE without a Gaussian kernel, where no solution is known.

    Example:
        >>> check_solver(Heun()).raise_for_failures()
    """
    if not isinstance(solver, Solver):
        raise TypeError(f"check_solver takes a Solver such as Heun(), got {described(solver)}")
    if sde is not None and not isinstance(sde, GaussianSDE):
        raise TypeError(f"check_solver measures on a GaussianSDE, whose solutions are known, got {sde!r}")
    sheet = Checklist(f"check_solver({solver!r})" if sde is None else f"check_solver({solver!r}, {sde!r})")
    sdes = orders.SDES if sde is None else {type(sde).__name__: sde}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnfinishedWarning)
        sheet.holds("needs, order, claim and evaluations make sense", partial(habits.attributes, solver))
        sheet.holds("repr is valid Python", partial(habits.representation, solver))
        if sheet.entries[0].passed:
            solver = _in_motion(solver, next(iter(sdes.values())))
            if solver.evaluations is None and sde is None:  # it makes many steps of its own
                sdes = {name: sdes[name] for name in (["VP"] if solver.stochastic else ["VP", "EDM"])}
            _check_orders(sheet, solver, sdes)
            _check_habits(sheet, solver, list(sdes.values()))
    return sheet.report()


def _in_motion(solver: Solver, sde: GaussianSDE) -> Solver:
    """The solver, or what carries it where it is a corrector."""
    try:
        habits.sampler_of(solver, habits.model_of(sde), 1).sample(1, seed=0)
    except ValueError:
        carried = PredictorCorrector(Hold(), solver)
        try:
            habits.sampler_of(carried, habits.model_of(sde), 1).sample(1, seed=0)
        except Exception:  # noqa: BLE001 - neither works: the rows will tell
            return solver
        return carried
    except Exception:  # noqa: BLE001 - the rows will tell
        return solver
    return solver


def _check_orders(sheet: Checklist, solver: Solver, sdes: dict[str, GaussianSDE]) -> None:
    claim, allowed = float(solver.claim), habits.tolerances(solver)
    for name, sde in sdes.items():
        if not solver.stochastic and claim:
            for data in ("gaussian", "mixture"):
                _order_row(sheet, solver, sde, f"order on a {data}, {name}", claim, data)
        elif claim:
            _order_row(sheet, solver, sde, f"strong order on one Brownian path, {name}", min(claim, 1.0), "strong")
            _order_row(sheet, solver, sde, f"weak order of mean and variance, {name}", min(claim, 1.0), "weak")
            if claim > 1:
                better = partial(_best, [e.measured for e in sheet.entries[-2:]])
                sheet.at_least(f"the better of the two, {name}", claim - orders.TOLERANCE, better, note=_note(claim))
        elif allowed and not solver.stochastic:
            sheet.at_most(
                f"error on a gaussian, in tolerances, {name}",
                10.0,
                partial(orders.error_in_tolerances, solver, sde, *allowed),
                note="the error estimate does not see the error: wrong weights of the embedded method?",
            )


def _order_row(sheet: Checklist, solver: Solver, sde: GaussianSDE, claim: str, order: float, kind: str) -> None:
    def measure() -> float:
        found = _MEASURES[kind](solver, sde)
        name = claim.rpartition(", ")[2]
        points = tuple(map(float, found.steps)), found.errors
        sheet.curves.append(Curve(f"{kind}: claim {order:g}", name, *points, ("steps", "error")))
        return found.order

    sheet.at_least(claim, order - orders.TOLERANCE, measure, note=_note(order))


def _best(measured: list[Measured]) -> float:
    return max((value for value in measured if isinstance(value, float)), default=0.0)


def _note(order: float) -> str:
    return f"claims order {order:g}: a wrong coefficient, or a start of lower order; else lower `claim`"


_MEASURES: dict[str, Callable[[Solver, GaussianSDE], orders.Convergence]] = {
    "gaussian": partial(orders.deterministic, data="gaussian"),
    "mixture": partial(orders.deterministic, data="mixture"),
    "strong": orders.strong,
    "weak": orders.weak,
}


def _check_habits(sheet: Checklist, solver: Solver, sdes: list[GaussianSDE]) -> None:
    sde = sdes[0]
    sheet.at_most(
        "a row alone is the row in a batch of 64: difference",
        1e-12,
        partial(habits.batch_gap, solver, sdes),
        note="samples mix: a norm, a mean or a step size over the batch, or noise of a shape that depends on it",
    )
    sheet.holds(
        "calls of the model are counted, and as many per step as claimed", partial(habits.evaluations, solver, sde)
    )
    sheet.holds("the seed decides everything random", partial(habits.reproducible, solver, sde))
    sheet.holds("stochastic tells whether it draws noise", partial(habits.randomness, solver, sde))
    sheet.holds("no state is kept on the solver", partial(habits.frozen, solver, sde))
    sheet.holds("the state handed in is not modified", partial(habits.input_kept, solver, sde))
    sheet.holds("float32 and float64 are kept", partial(habits.dtypes, solver, sde))
    sheet.holds("any event shape is kept", partial(habits.shapes, solver, sde))
    sheet.holds(
        "1 to 5 steps on every grid: finite, or refused with the cause", partial(habits.few_steps, solver, sdes)
    )
