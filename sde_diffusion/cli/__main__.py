"""`python -m sde_diffusion.cli` is `sde-diffusion`."""

import sys

from sde_diffusion.cli.main import main

sys.exit(main())
