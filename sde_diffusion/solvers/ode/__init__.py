"""Solvers of an ordinary differential equation, which ask for its velocity alone."""
