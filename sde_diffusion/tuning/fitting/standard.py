"""The samplers that were made for no model in particular: what a fitted one has to beat."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from sde_diffusion.problem import Problem
from sde_diffusion.sampler._layout import grid_name
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.sde import grids
from sde_diffusion.sde.grids import Grid
from sde_diffusion.solvers import IPNDM, Adams, DPMSolverPP, Solver, UniPC

THE_DEFAULT = "the default"
"""How the name of the library's own choice begins."""


class Standard(NamedTuple):
    """A sampler and how to write it down."""

    name: str
    sampler: SDESampler


def standards(problem: Problem, nfe: int, data_std: float) -> Iterator[Standard]:
    """The default of the library, and solvers with grids that are good for some model at some budget.

    Those that a process or a budget does not allow are left out.
    """
    default = SDESampler(problem, nfe=nfe)
    yield Standard(f"{THE_DEFAULT}, {default.solver!r}, grid={grid_name(default.grid)}", default)
    for solver, grid in _pairs(data_std):
        try:
            made = SDESampler(problem, solver=solver, grid=grid, nfe=nfe)
        except ValueError:
            continue
        yield Standard(f"{solver!r}, grid={grid_name(grid)}", made)


def _pairs(c: float) -> Iterator[tuple[Solver, Grid]]:
    wide, dense = partial(grids.angle, data_std=2 * c), partial(grids.balanced, data_std=1.4 * c)
    for order in (2, 3, 4):
        yield Adams(order, "balanced", 1.4 * c), dense
    for order in (2, 3):
        yield Adams(order, "angle", c), wide
        yield Adams(order, "velocity"), grids.quadratic
        yield UniPC(order), grids.log_snr
        yield IPNDM(order), grids.karras
    yield IPNDM(3), grids.quadratic
    yield UniPC(2), wide
    yield Adams(3, "noise"), grids.karras
    yield DPMSolverPP(2), grids.log_snr
    yield DPMSolverPP(2), grids.uniform
