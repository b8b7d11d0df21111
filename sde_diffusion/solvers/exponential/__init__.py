"""Solvers that take the linear part of the equation exactly: in the data or the noise, over log-SNR."""
