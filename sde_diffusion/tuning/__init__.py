"""How does a solve fit itself to a model?  `tune` finds the few numbers that a solve of a few evaluations consists of.

Every deterministic sampler that is linear in the network's answers is one lower-triangular table. `SolverTable.of`
writes down that of a solver, `TableSolver` solves by one, and `tune` fits one to the model, beside the standard ones.
"""

from __future__ import annotations

from sde_diffusion.tuning.components import Components
from sde_diffusion.tuning.made_for import MadeFor, TableWarning
from sde_diffusion.tuning.report import Candidate, Report, Verdict
from sde_diffusion.tuning.solver import TableSolver
from sde_diffusion.tuning.table import SolverTable
from sde_diffusion.tuning.tuned import Choice, Tuned
from sde_diffusion.tuning.tuner import tune

__all__ = [
    "Candidate",
    "Choice",
    "Components",
    "MadeFor",
    "Report",
    "SolverTable",
    "TableSolver",
    "TableWarning",
    "Tuned",
    "Verdict",
    "tune",
]
