"""Solvers of the reverse-time SDE, which draw noise."""
