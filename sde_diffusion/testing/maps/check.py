r"""A check of a flow map against the flow of its teacher, for users: how far off is one call, and are four better?

A fast sample is judged by where the flow leads from the same noise, which a solve of the teacher to convergence tells,
and on Gaussian data a closed form. Far away from it a sample may still be one of the right law: that is told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from sde_diffusion._checks import check_count, check_positive, check_seed
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.solvers.jump import Carries
from sde_diffusion.testing._picture import Curve
from sde_diffusion.testing.maps.measured import Measured
from sde_diffusion.testing.report import Checklist, Report, described

MEDIAN = 0.4, 0.27
"""The bound of the median, as a share of that of the root mean square, of one call and of more: at the watersheds of
the flow few rows may be far off."""
MORE = 0.75
"""The bound of two calls and more, as a share of that of one."""
SEMIGROUP = 1 / 6
"""The bound of the semigroup defect, as another."""
LAW = 0.004
"""The bound of the energy distance in the plane, in standard deviations; it grows as the root of the dimension."""
LEAST = 32


def check_flow_map(
    model: Denoiser,
    teacher: Denoiser,
    *,
    calls: Sequence[int] | None = None,
    n: int = 512,
    tolerance: float = 0.3,
    seed: int = 0,
    **cond: Any,
) -> Report:
    r"""Holds a flow map to the flow of its teacher, by `DormandPrince`, or on `Gaussian` data to the exact one.

    * Where it stays, it is the identity, to the last bit; a view of it through another process, to rounding.
    * From the same noise, its samples come to where the flow does: the root mean square of the distance, over the
      standard deviation of the data, and its median over the rows.
    * Its samples have the law of the teacher's: energy distance, in standard deviations, beyond twice its chance.
    * Two jumps lead where one does (semigroup), in states of unit variance.

    The energy rows tell whether samples are of the right law. Where these alone matter, the others may fail: they hold
    each sample to the one that the teacher makes of the same noise, and a map may err there between two modes.

    A map with `reach="data"` noises its data anew between two calls, so that only its first is held to the flow; one of
    some noise levels is asked for as many calls as it has. Neither is asked for the semigroup.

    Args:
        model: The map.
        teacher: The model whose flow it learnt, a `Denoiser`, on the process of the map or another that reaches as far.
        calls: Numbers of calls; by default 1, 2 and 4.
        n: Rows of each figure, at least 32; the teacher is solved on twice as many.
        tolerance: The bound of the first distance. Those of two calls and more are 3/4 of it, the medians .12 and .06
            of .3, that of the semigroup .05.
        seed: Of all that is drawn.
        **cond: Conditions, handed to both by name: of `n` rows, `n=len(labels)`, or what all samples share.

    Returns:
        The report, with a curve of the distance. Nothing that it finds is raised unless `raise_for_failures` is called.

    Raises:
        TypeError: No flow map, or no `Denoiser` as its teacher; a condition that one of them does not take.
        ValueError: Calls that the map was not trained for, too few rows, an event shape that is not known, or a teacher
            of which not all noise levels of the map can be asked.

    Example:
        >>> print(check_flow_map(fast, model))
        >>> print(check_flow_map(fast, Guided(model, 2.0), label=labels))
    """
    wanted = _checked(model, teacher, calls, n)
    limit = check_positive(tolerance, "tolerance")
    subject = Measured(model, teacher.on(model.sde), n, check_seed(seed), _conditions(model, cond, n))
    subject.ask()
    found = Checklist(f"check_flow_map({type(model).__name__}, {type(teacher).__name__})")
    rounding = 0.0 if isinstance(model, FlowMap) else 1e-6  # a view of a map goes through another state
    found.at_most("where it stays, it is the identity: largest |X(x, t, t) - x|, relative", rounding, subject.moved)
    reach = _reach(model)
    held = [k for k in wanted if k == 1 or reach != "data"]
    distances = {k: cache(partial(subject.distances, k)) for k in held}
    for k in wanted:
        said = f"{k} call{'s' * (k > 1)}: "
        if k in distances:
            _add_distances(found, said, distances[k], limit if k == 1 else MORE * limit, MEDIAN[k > 1])
        bound = LAW * math.sqrt(math.prod(subject.shape) / 2)
        found.at_most(
            said + "energy distance from samples of the teacher, beyond chance",
            bound,
            partial(subject.energy, k),
            note="samples of another law: train for longer, with a wider network, or take more calls",
        )
    if reach == "any":
        found.at_most(
            "two jumps lead where one does: root mean square, in states of unit variance",
            SEMIGROUP * limit,
            subject.defect,
            note="the map contradicts itself: train for longer, with a wider network",
        )
    _add_curve(found, held, distances)
    return found.report()


def _add_distances(found: Checklist, said: str, distances: Any, bound: float, median: float) -> None:
    found.at_most(
        said + "distance from the flow, root mean square over the standard deviation",
        bound,
        lambda: distances()[0],
        note="train for longer, with a wider network, or take more calls",
    )
    found.at_most(
        said + "the same, median over the rows",
        median * bound,
        lambda: distances()[1],
        note="not few rows are far off, but most: train for longer, with a wider network",
    )


def _add_curve(found: Checklist, held: Sequence[int], distances: Any) -> None:
    try:
        figures = [distances[k]() for k in held]
    except Exception:  # noqa: BLE001 - told by the rows
        return
    for i, name in enumerate(("root mean square", "median")):
        values = tuple(figure[i] for figure in figures)
        found.curves.append(
            Curve("distance from the flow", name, tuple(map(float, held)), values, ("calls", "over the std"))
        )


def _conditions(model: Denoiser, cond: dict[str, Any], n: int) -> Conditions:
    """The conditions of `n` rows."""
    try:
        return Conditions.of(model, cond, n)
    except ValueError as error:
        raise ValueError(f"{error}; check_flow_map measures n={n} rows, and takes another n=") from error


def _reach(model: Denoiser) -> Any:
    return getattr(model, "reach", "any")


def _checked(model: object, teacher: object, calls: Sequence[int] | None, n: int) -> list[int]:
    """The numbers of calls; raises unless the arguments are of the kinds that the check takes."""
    if not (isinstance(model, Denoiser) and isinstance(model, Carries)):
        raise TypeError(
            f"check_flow_map takes a FlowMap, such as FlowMap.from_teacher(model), got {described(model)}"
            if isinstance(model, type) or not isinstance(model, Denoiser)
            else f"check_flow_map takes a FlowMap, got {type(model).__name__}: hand over the map inside, or make one"
        )
    if not isinstance(teacher, Denoiser):
        raise TypeError(
            f"the teacher must be a Denoiser, such as Network(net, sde, predict.noise), got {described(teacher)}"
        )
    if model.shape is None and teacher.shape is None:
        raise ValueError("the event shape is not known: give it to the map, FlowMap(net, sde, shape=(3, 32, 32))")
    if check_count(n, "n") < LEAST:
        raise ValueError(f"n must be at least {LEAST}, and rather 512, got {n}")
    reach = _reach(model)
    fits = [len(reach) - 1] if isinstance(reach, tuple) else [1, 2, 4]
    wanted = fits if calls is None else [check_count(k, "each of calls") for k in calls]
    if not wanted or (isinstance(reach, tuple) and wanted != fits):
        raise ValueError(f"calls are numbers of calls that the map was trained for, such as {fits}, got {calls!r}")
    return wanted
