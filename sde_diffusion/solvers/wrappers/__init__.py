"""Solvers made of other solvers: in another coordinate, with noise added, corrected, restarted, inverted."""
