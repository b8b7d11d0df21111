"""The conformance suite: hold your own SDE, solver or model to what this library holds its own to.

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
from sde_diffusion.testing._sde import check_sde
from sde_diffusion.testing._solver import check_solver
from sde_diffusion.testing.report import ConformanceError, Curve, Entry, Report

__all__ = ["ConformanceError", "Curve", "Entry", "Report", "check_denoiser", "check_sde", "check_solver"]
