"""The check of a solver: the order it claims, and the rules that every solver keeps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

from sde_diffusion.sampler.forecast import SamplingWarning
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.solvers import Hold, PredictorCorrector, Solver
from sde_diffusion.solvers.loop import UnfinishedWarning
from sde_diffusion.testing import _habits as habits
from sde_diffusion.testing import _laws as laws
from sde_diffusion.testing import orders
from sde_diffusion.testing._picture import Curve
from sde_diffusion.testing.report import Checklist, Measured, Report, described


def check_solver(solver: Solver, sde: GaussianSDE | None = None) -> Report:
    r"""Checks a solver: orders of convergence against what it claims, and the rules of the house. Ten seconds or so.

    A deterministic solver is measured against the exact probability flow of Gaussian data and of a mixture; a
    stochastic one on one Brownian path (strong order) and by the bias of its mean and variance (weak order), where both
    must reach 1, or the claim if that is less, and one of them the claim. A measured order may lie 0.15 below. An
    adaptive one is held to its tolerances. A deterministic one is measured up in time too, where 0.3 is allowed for a
    multistep start of low order.

    A solver with nothing of that to measure, as it claims no order, is held to the law at its end: after 200 steps on
    Gaussian data the mean may be off by 0.1 standard deviations and the variance by 15 %; more than 5 % is a warning. A
    corrector, which stays at one level, is held to stationarity: 400 calls that start from the exact marginal may move
    the mean by 0.05 and the variance by 20 %. Where moments are those of a sample, four standard errors are added. A
    solver that refuses all of it gets a warning that its accuracy was not measured.

    Then the rules: a row alone is the row in a batch of 64, evaluations are counted, the seed decides everything
    random, no state is kept, dtypes and shapes are, float64 is computed in float64, the `repr` is Python, and 1 to 5
    steps on every grid are finite or refused with the cause. Those of a corrector are tried on
    `PredictorCorrector(Hold(), solver)`.

    Args:
        solver: The solver.
        sde: A Gaussian SDE to measure on; by default all of the library that are smooth in `t`. Give one that is: on a
            discrete chain a method that steps in `t` does not show its order.

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
        warnings.simplefilter("ignore", SamplingWarning)  # some claims are about one step alone
        sheet.holds("needs, order and evaluations make sense", partial(habits.attributes, solver))
        sheet.holds("repr is valid Python", partial(habits.representation, solver))
        if sheet.entries[0].passed:
            moving = _in_motion(solver, next(iter(sdes.values())))
            if moving.facts.evaluations is None and sde is None:  # it makes many steps of its own
                sdes = {name: sdes[name] for name in (["VPSDE"] if moving.facts.stochastic else ["VPSDE", "EDMSDE"])}
            if moving is solver:
                _check_orders(sheet, solver, sdes)
            else:
                _check_law(sheet, solver, sdes, corrector=True)
            _check_habits(sheet, moving, list(sdes.values()))
    return sheet.report()


def _in_motion(solver: Solver, sde: GaussianSDE) -> Solver:
    """Returns the solver, or a solver that carries it where it is a corrector."""
    try:
        habits.sampler_of(solver, habits.model_of(sde), 1).sample(1, seed=0)
    except ValueError:
        try:
            carried = PredictorCorrector(Hold(), solver)
            habits.sampler_of(carried, habits.model_of(sde), 1).sample(1, seed=0)
        except Exception:  # noqa: BLE001 - neither works: the rows will tell
            return solver
        return carried
    except Exception:  # noqa: BLE001 - the rows will tell
        return solver
    return solver


def _few(sdes: dict[str, GaussianSDE]) -> dict[str, GaussianSDE]:
    """VPSDE and EDMSDE where they are among them, for what two processes tell as well as all."""
    return {name: sde for name, sde in sdes.items() if name in ("VPSDE", "EDMSDE")} or sdes


def _check_orders(sheet: Checklist, solver: Solver, sdes: dict[str, GaussianSDE]) -> None:
    claim, allowed = float(solver.facts.order), habits.tolerances(solver)
    for name, sde in sdes.items():
        if not solver.facts.stochastic and claim:
            for data in ("gaussian", "mixture"):
                _order_row(sheet, solver, sde, f"order on a {data}, {name}", claim, data)
        elif claim:
            _check_stochastic_orders(sheet, solver, sde, name)
        elif allowed and not solver.facts.stochastic:
            sheet.at_most(
                f"error on a gaussian, in tolerances, {name}",
                10.0,
                partial(orders.error_in_tolerances, solver, sde, *allowed),
                note="the error estimate does not see the error: wrong weights of the embedded method?",
            )
    if not solver.facts.stochastic and (claim or allowed):
        _check_upward(sheet, solver, _few(sdes))
    if not claim and (solver.facts.stochastic or not allowed):
        _check_law(sheet, solver, sdes, corrector=False)


def _check_stochastic_orders(sheet: Checklist, solver: Solver, sde: GaussianSDE, name: str) -> None:
    """Adds the rows on strong and weak order: both must reach 1, or the claim if that is less, and one of them that."""
    claim = float(solver.facts.order)
    _order_row(sheet, solver, sde, f"strong order on one Brownian path, {name}", min(claim, 1.0), "strong")
    _order_row(sheet, solver, sde, f"weak order of mean and variance, {name}", min(claim, 1.0), "weak")
    if claim > 1:
        better = partial(_best, [e.measured for e in sheet.entries[-2:]])
        sheet.at_least(f"the better of the two, {name}", claim - orders.TOLERANCE, better, note=_note(claim))


def _check_upward(sheet: Checklist, solver: Solver, sdes: dict[str, GaussianSDE]) -> None:
    """Adds the rows of a solver that goes up in time, and none for one that refuses to and says why."""
    claim, allowed = float(solver.facts.order), habits.tolerances(solver)
    note = "the step from less noise to more: encode and likelihoods take it"
    for name, sde in sdes.items():
        if claim and not _refuses(partial(orders.upward, solver, sde)):
            _order_row(sheet, solver, sde, f"order up in time on a gaussian, {name}", claim, "upward", note)
        elif allowed and not claim:
            measure = partial(orders.upward_in_tolerances, solver, sde, *allowed)
            if not _refuses(measure):
                sheet.at_most(f"error up in time on a gaussian, in tolerances, {name}", 10.0, measure, note=note)


def _check_law(sheet: Checklist, solver: Solver, sdes: dict[str, GaussianSDE], *, corrector: bool) -> None:
    """Adds the rows on mean and variance, for a solver that claims no order."""
    adaptive = habits.tolerances(solver) is not None
    steps = laws.FEW if adaptive else laws.STEPS
    where = "after 400 calls at one level" if corrector else "at the end of a solve"
    limits = (0.05, 0.2) if corrector else (0.1, 0.15)
    note = "noise of another size than the drift asks for, or a missing factor on the state; or a very long step"
    for name, sde in _few(sdes).items():
        found: list[laws.Law] = []

        def measure(sde: GaussianSDE = sde, found: list[laws.Law] = found) -> float:
            if corrector:
                found.append(laws.stationary(solver, sde))
            else:
                found.append(laws.law(solver, sde, steps=steps, affine=not adaptive))
            return found[0].mean

        told = _refuses(measure)
        if told:
            sheet.holds(f"accuracy is measured, {name}", partial(str, f"it was not: {told}"), required=False)
            continue
        if not found:  # it raised, which the row tells
            sheet.at_most(f"mean {where}, {name}: error in standard deviations", limits[0], measure)
            continue
        law = found[0]
        for what, error, limit in (("mean", law.mean, limits[0]), ("variance", law.variance, limits[1])):
            unit = "error in standard deviations" if what == "mean" else "relative error"
            sheet.at_most(f"{what} {where}, {name}: {unit}", limit + law.slack, partial(float, error), note=note)
        sheet.at_most(
            f"the larger of these two errors, {name}",
            0.05 + law.slack,
            partial(max, law.mean, law.variance),
            required=False,
            note="a bias of the method that its documentation should tell, or a small mistake",
        )


def _refuses(measure: Callable[[], object]) -> str:
    """Returns the message by which a solver refuses a solve, or an empty one; the row tells whatever else it raises."""
    try:
        measure()
    except ValueError as error:
        return str(error) if len(str(error)) >= habits.ADVICE else ""
    except Exception:  # noqa: BLE001 - the row, which tries it again, tells any error
        return ""
    return ""


def _order_row(
    sheet: Checklist, solver: Solver, sde: GaussianSDE, claim: str, order: float, kind: str, note: str = ""
) -> None:
    def measure() -> float:
        found = _MEASURES[kind](solver, sde)
        name = claim.rpartition(", ")[2]
        points = tuple(map(float, found.steps)), found.errors
        sheet.curves.append(Curve(f"{kind}: claim {order:g}", name, *points, ("steps", "error")))
        return found.order

    tolerance = orders.UP_TOLERANCE if kind == "upward" else orders.TOLERANCE
    sheet.at_least(claim, order - tolerance, measure, note=note or _note(order))


def _best(measured: list[Measured]) -> float:
    return max((value for value in measured if isinstance(value, float)), default=0.0)


def _note(order: float) -> str:
    return (
        f"claims order {order:g}: a wrong coefficient, or a start of lower order; else lower the `order` of its facts"
    )


_MEASURES: dict[str, Callable[[Solver, GaussianSDE], orders.Convergence]] = {
    "gaussian": partial(orders.deterministic, data="gaussian"),
    "mixture": partial(orders.deterministic, data="mixture"),
    "upward": orders.upward,
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
    sheet.at_most(
        "float64 is computed in float64: 1e-8 twice, against twice 1e-8",
        0.01,
        partial(habits.coarseness, solver, sde),
        note="a cast to float32 on the way: schedules, coefficients and states keep the dtype of x",
    )
    sheet.holds("any event shape is kept", partial(habits.shapes, solver, sde))
    sheet.holds(
        "1 to 5 steps on every grid: finite, or refused with the cause", partial(habits.few_steps, solver, sdes)
    )
