"""Solvers of an ordinary differential equation, such as the probability flow: they ask for its velocity alone."""
