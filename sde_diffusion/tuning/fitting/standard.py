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


class Standard(NamedTuple):
    """A sampler and how to write it down."""

    name: str
    sampler: SDESampler


def standards(problem: Problem, nfe: int, data_std: float) -> Iterator[Standard]:
    """The default of the library, and solvers with grids that are good for some model at some budget.

    Those that a process or a budget does not allow are left out.
    """
    default = SDESampler(problem, nfe=nfe)
    yield Standard(f"the default, {default.solver!r}, grid={grid_name(default.grid)}", default)
    for solver, grid in _pairs(data_std):
        try:
            made = SDESampler(problem, solver=solver, grid=grid, nfe=nfe)
        except ValueError:
            continue
        yield Standard(f"{solver!r}, grid={grid_name(grid)}", made)


def _pairs(c: float) -> Iterator[tuple[Solver, Grid]]:
    c = float(f"{c:.3g}")  # a name that can be typed
    wide = partial(grids.angle, data_std=float(f"{2 * c:.3g}"))
    yield Adams(2, "angle", c), wide
    yield Adams(3, "angle", c), wide
    yield Adams(2, "angle", c), grids.quadratic
    yield Adams(3, "angle", c), grids.quadratic
    yield Adams(3, "velocity"), grids.quadratic
    yield IPNDM(3), grids.quadratic
    yield IPNDM(4), grids.karras
    yield UniPC(2), wide
    yield UniPC(3), grids.log_snr
    yield DPMSolverPP(2), grids.log_snr
    yield DPMSolverPP(2), grids.uniform
