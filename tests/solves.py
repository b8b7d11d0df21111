"""Models, states and tables that the tests of solver tables share."""

from __future__ import annotations

import dataclasses

import torch

from sde_diffusion import (
    DiscreteVPSDE,
    Problem,
    SolverTable,
    grids,
    integrate,
)
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.solvers import Adams
from sde_diffusion.tuning import Components

SHORT = DiscreteVPSDE.linear(1000, 1e-4, 0.02)


def model(sde, d=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return GaussianMixture(sde, torch.ones(3), torch.randn(3, d, generator=g, dtype=torch.float64), 0.1)


def start(sde, t, n=3, d=4, seed=1):
    g = torch.Generator().manual_seed(seed)
    return sde.levels([float(t)])[0].sigma * torch.randn(n, d, generator=g, dtype=torch.float64)


def last(solver, known, x, times, finish):
    *_, now = integrate(Problem(known.sde, known).equation(), solver, x, times, finish=finish)
    return now


def apart(a, b):
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max()) / max(1.0, float(b.abs().max()))


def table(nfe=5, solver=None, **changes):
    made = SolverTable.of(solver or Adams(3, "angle"), SHORT, grids.quadratic, steps=nfe - 1)
    return dataclasses.replace(made, **changes)


def components(made, d=4, rank=2, seed=3):
    """Random corrections of every row of a table."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    basis = torch.linalg.qr(draw(d, rank)).Q
    rows = [len(row) for row in made.rows]
    return Components(basis, tuple(0.1 * draw(n, rank) for n in rows), tuple(0.1 * draw(rank) for _ in rows))
