"""The integrals that the weights of multistep methods are made of: polynomials against a density, in floats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# 24 nodes integrate a polynomial of degree 47 exactly, and these integrands, smooth over a step, to rounding.
_NODES, _WEIGHTS = (0.5 * (v + shift) for v, shift in zip(np.polynomial.legendre.leggauss(24), (1.0, 0.0), strict=True))


def lagrange_integrals(nodes: tuple[float, ...], a: float, b: float, kappa: float = 0.0) -> tuple[float, ...]:
    r"""$\int_a^b e^{\kappa(w - b)}\,\ell_j(w)\,dw$ for the Lagrange basis on `nodes`."""
    if kappa * (b - a) > 40:
        a = b - 40 / kappa  # what lies before weighs less than rounding
    ends = np.linspace(a, b, 2 + int(abs(kappa * (b - a)) / 10))  # 24 nodes for each part
    h = np.diff(ends)[:, None]
    w = (ends[:-1, None] + h * _NODES).reshape(-1)
    return weighted_integrals(nodes, w, np.exp(kappa * (w - b)) * (h * _WEIGHTS).reshape(-1))


def weighted_integrals(nodes: Sequence[float], w: np.ndarray, mass: np.ndarray) -> tuple[float, ...]:
    """`sum_i mass_i l_j(w_i)` for the Lagrange basis on `nodes`, in product form."""
    at, local = np.asarray(nodes), w - nodes[0]
    at = at - nodes[0]
    integrals = []
    for j in range(len(at)):
        others = np.delete(at, j)
        basis = np.prod((local[:, None] - others) / (at[j] - others), axis=1)
        integrals.append(float(mass @ basis))
    return tuple(integrals)


def quadrature_times(t: float, s: float) -> list[float]:
    """The quadrature nodes over a step."""
    return [t + (s - t) * float(u) for u in _NODES]


def quadrature_mass(t: float, s: float, density: Sequence[float]) -> np.ndarray:
    """Quadrature weights over a step for a density given at `quadrature_times`."""
    mass: np.ndarray = (s - t) * _WEIGHTS * np.asarray(density)
    return mass
