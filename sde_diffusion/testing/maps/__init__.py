"""Does a flow map lead where its teacher does?  A check against the converged flow, or the exact one."""

from sde_diffusion.testing.maps.check import check_flow_map

__all__ = ["check_flow_map"]
