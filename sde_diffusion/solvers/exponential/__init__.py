"""Solvers that take the linear part of the equation exactly, and approximate a prediction over a step in log-SNR."""
