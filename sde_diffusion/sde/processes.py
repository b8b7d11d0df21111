"""Every process of the library, one line each: the only list of them.

A new process is its own file and one line here. From this list come the names at the top of the package, the choices
of `sde-diffusion train --sde`, what a checkpoint can name, the processes of the conformance suite and of the tests.
What these need of a class stands in its own file: `examples` and `named` of `GaussianSDE`.
"""

import inspect
from typing import TYPE_CHECKING

from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.discrete import DiscreteVPSDE as DiscreteVPSDE
from sde_diffusion.sde.schedules import EDMSDE as EDMSDE
from sde_diffusion.sde.schedules import VESDE as VESDE
from sde_diffusion.sde.schedules import VPSDE as VPSDE
from sde_diffusion.sde.schedules import BrownianSDE as BrownianSDE
from sde_diffusion.sde.schedules import CosineSDE as CosineSDE
from sde_diffusion.sde.schedules import FlowSDE as FlowSDE
from sde_diffusion.sde.schedules import SubVPSDE as SubVPSDE

CLASSES: tuple[type[GaussianSDE], ...] = tuple(
    c for c in list(vars().values()) if isinstance(c, type) and issubclass(c, GaussianSDE) and not inspect.isabstract(c)
)
"""The classes of the list, in its order."""

if not TYPE_CHECKING:  # a type checker reads the lines above, each of which exports a name
    __all__ = [c.__name__ for c in CLASSES]


def examples() -> list[GaussianSDE]:
    """The examples of every process."""
    return [sde for cls in CLASSES for sde in cls.examples()]


def named() -> dict[str, GaussianSDE]:
    """The processes that the command line offers, by name."""
    return {name: sde for cls in CLASSES for name, sde in cls.named().items()}
