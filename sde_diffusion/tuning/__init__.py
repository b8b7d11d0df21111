"""How does a solve fit itself to a model?  By a `SolverTable`: the few numbers that a whole solve consists of.

Every deterministic sampler that is linear in the network's answers is one lower-triangular table. `SolverTable.of`
writes down that of a solver, and `TableSolver` solves by one.
"""

from __future__ import annotations

from sde_diffusion.tuning.components import Components
from sde_diffusion.tuning.made_for import MadeFor, TableWarning
from sde_diffusion.tuning.solver import TableSolver
from sde_diffusion.tuning.table import SolverTable

__all__ = ["Components", "MadeFor", "SolverTable", "TableSolver", "TableWarning"]
