"""How are nodes and coefficients found?  On a converged flow, by least squares on the solve's own way."""
