"""Does my part keep its claims?  The conformance suite holds your SDE, solver or model to what ours are held to.

Each check measures, in a script or a notebook and in well under a minute of one core, and hands back a `Report`: the
claims, the figures found, their bounds. Nothing is raised unless asked for.

```python
from sde_diffusion import testing

print(testing.check_sde(MySDE()))
testing.check_solver(MySolver()).raise_for_failures()
testing.check_denoiser(model, x0).plot("levels.png")
```

On the command line: `sde-diffusion check my_file.py:MySDE`.
"""

from sde_diffusion.testing._denoiser import check_denoiser
from sde_diffusion.testing._likelihood import check_likelihood
from sde_diffusion.testing._picture import Curve
from sde_diffusion.testing._sde import check_sde
from sde_diffusion.testing._solver import check_solver
from sde_diffusion.testing.maps import check_flow_map
from sde_diffusion.testing.posterior import Calibration, check_posterior, coverage, ranks, tarp
from sde_diffusion.testing.report import ConformanceError, Entry, Report

__all__ = [
    "Calibration",
    "ConformanceError",
    "Curve",
    "Entry",
    "Report",
    "check_denoiser",
    "check_flow_map",
    "check_likelihood",
    "check_posterior",
    "check_sde",
    "check_solver",
    "coverage",
    "ranks",
    "tarp",
]
