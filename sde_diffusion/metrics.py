r"""How far apart are two samples? Sliced Wasserstein, energy distance, MMD, and Frechet distance on given features.

Every function takes samples `x` (n, *) and `y` (m, *), flattens them to n and m points of D dimensions, works in
float64 and returns a Python float. n and m need not agree. Two samples of one distribution do not score 0 but a floor
that shrinks with n: report it beside the figure, by scoring real data against real data.

What each one sees: energy distance and MMD reach their noise floor long before a density is right and are blind to a
rare point thrown far away, which sliced Wasserstein sees; Frechet distance compares means and covariances of features
only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_reals, check_seed

__all__ = ["energy_distance", "frechet_distance", "mmd", "sliced_wasserstein"]


def sliced_wasserstein(x: Tensor, y: Tensor, *, projections: int = 256, seed: int = 0) -> float:
    r"""Sliced 2-Wasserstein distance, in the units of `x`.

    $$ SW_2 = \Big( E_\theta \int_0^1 [F_{\theta x}^{-1}(q) - F_{\theta y}^{-1}(q)]^2\, dq \Big)^{1/2},
    \quad \theta \text{ uniform on the sphere} $$

    The integral over the two empirical quantile functions is exact for any n and m; the expectation is over
    `projections` random directions, the same ones for the same seed. A shift by v gives about |v| / sqrt(D).

    Args:
        x: Samples (n, *), n >= 2.
        y: Samples (m, *), m >= 2, of the same shape `*`.
        projections: Number of directions.
        seed: The seed of the directions; fixed, so that two figures can be compared.

    Raises:
        TypeError, ValueError: Shapes that differ, fewer than two samples, not floating point, NaN or infinity;
            `projections` < 1.

    References:
        Rabin et al., Wasserstein Barycenter and its Application to Texture Mixing, 2011; Bonneel et al., 2015.
    """
    x, y = _pair(x, y)
    check_count(projections, "projections")
    generator = torch.Generator().manual_seed(check_seed(seed))
    theta = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64, device="cpu").to(x.device)
    theta = theta / theta.norm(dim=0)
    width, rows, columns = _quantile_cells(len(x), len(y), x.device)
    total = 0.0
    for part in theta.split(max(1, 2**24 // len(width)), dim=1):
        gap = (x @ part).sort(dim=0).values[rows] - (y @ part).sort(dim=0).values[columns]
        total += float((width @ gap.square()).sum())
    return math.sqrt(total / projections)


def energy_distance(x: Tensor, y: Tensor) -> float:
    r"""Energy distance (not its root), unbiased: about 0, and as often negative, for two samples of one distribution.

    $$ 2\,E|X - Y| - E|X - X'| - E|Y - Y'| $$

    with pairs of distinct points only; in the units of `x`. Time O(n m D), memory bounded.

    Args:
        x: Samples (n, *), n >= 2.
        y: Samples (m, *), m >= 2, of the same shape `*`.

    Raises:
        TypeError, ValueError: Shapes that differ, fewer than two samples, not floating point, NaN or infinity.

    References:
        Szekely and Rizzo, Energy Statistics, 2013.
    """
    x, y = _pair(x, y)
    return -_contrast(x, y, lambda distance: distance)


def mmd(x: Tensor, y: Tensor, *, bandwidths: Sequence[float] | None = None) -> float:
    r"""Squared maximum mean discrepancy under Gaussian kernels, unbiased: about 0 for two samples of one distribution.

    $$ E\,k(X, X') + E\,k(Y, Y') - 2\,E\,k(X, Y), \quad k(a, b) = \tfrac1K \sum_k e^{-|a - b|^2 / 2 \ell_k^2} $$

    with pairs of distinct points only; no unit, at most 2. Time O(n m D K), memory bounded.

    Args:
        x: Samples (n, *), n >= 2.
        y: Samples (m, *), m >= 2, of the same shape `*`.
        bandwidths: Lengths l_k, in the units of `x`. None takes 1/2, 1 and 2 times the median distance between the
            first 1,000 points of x and the first 1,000 of y; pass fixed lengths to compare figures across models.

    Raises:
        TypeError, ValueError: Shapes that differ, fewer than two samples, not floating point, NaN or infinity; a
            bandwidth that is not positive and finite, or none at all; all points equal, so that there is no median
            distance.

    References:
        Gretton et al., A Kernel Two-Sample Test, 2012.
    """
    x, y = _pair(x, y)
    if bandwidths is None:
        median = float(_distances(x[:1000], y[:1000]).median())
        if median == 0:
            raise ValueError(
                "The median distance between x and y is 0, which gives no bandwidth. Pass bandwidths=(...)."
            )
        bandwidths = (median / 2, median, 2 * median)
    lengths = check_reals(bandwidths, "bandwidths")
    if not lengths or not all(0 < length < math.inf for length in lengths):
        raise ValueError(f"bandwidths must be positive, finite lengths, at least one, got {lengths}.")

    def kernel(distance: Tensor) -> Tensor:
        return torch.stack([torch.exp(-0.5 * (distance / length).square()) for length in lengths]).mean(dim=0)

    return _contrast(x, y, kernel)


def frechet_distance(fx: Tensor, fy: Tensor) -> float:
    r"""Squared 2-Wasserstein distance between the Gaussians fitted to two sets of features; "FID", on your features.

    $$ |\mu_x - \mu_y|^2 + \mathrm{tr}\,C_x + \mathrm{tr}\,C_y - 2\,\| C_x^{1/2} C_y^{1/2} \|_* $$

    The trace of (C_x C_y)^{1/2} is the nuclear norm of the product of two symmetric roots, so it is real and stable
    when a covariance is rank deficient (fewer samples than features). Covariances divide by n - 1. The figure is biased
    upwards, the more the fewer samples: compare at equal n and state the floor.

    Args:
        fx: Features (n, *), n >= 2.
        fy: Features (m, *), m >= 2, of the same shape `*`.

    Raises:
        TypeError, ValueError: Shapes that differ, fewer than two samples, not floating point, NaN or infinity.

    References:
        Dowson and Landau, 1982; Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017.
    """
    fx, fy = _pair(fx, fy)
    mx, my = fx.mean(dim=0), fy.mean(dim=0)
    cx, cy = (fx - mx).T @ (fx - mx) / (len(fx) - 1), (fy - my).T @ (fy - my) / (len(fy) - 1)
    cross = torch.linalg.svdvals(_root(cx) @ _root(cy)).sum()
    return max(0.0, float((mx - my).square().sum() + cx.trace() + cy.trace() - 2 * cross))


def _root(c: Tensor) -> Tensor:
    """Symmetric square root of a covariance (D, D); eigenvalues at the level of rounding count as zero."""
    values, vectors = torch.linalg.eigh(c)
    floor = len(c) * torch.finfo(c.dtype).eps * values[-1].clamp_min(0)
    root: Tensor = (vectors * torch.where(values > floor, values, 0).sqrt()) @ vectors.T
    return root


def _quantile_cells(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Cut [0, 1] where either empirical quantile function jumps: widths, and the order statistics that meet there."""
    # Cuts in units of 1 / (n m) are integers, so that coinciding ones coincide exactly.
    cuts = torch.cat([torch.arange(n + 1, device=device) * m, torch.arange(1, m, device=device) * n]).unique()
    return cuts.diff().double() / (n * m), cuts[:-1] // m, cuts[:-1] // n


def _contrast(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor]) -> float:
    """Unbiased E k(X, X') + E k(Y, Y') - 2 E k(X, Y) for a kernel of the distance."""
    return (
        _mean(x, x, kernel, distinct=True)
        + _mean(y, y, kernel, distinct=True)
        - 2 * _mean(x, y, kernel, distinct=False)
    )


def _mean(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor], *, distinct: bool) -> float:
    total = sum(float(kernel(_distances(rows, y)).sum()) for rows in x.split(max(1, 2**22 // len(y))))
    if not distinct:
        return total / (len(x) * len(y))
    diagonal = float(kernel(torch.zeros(1, dtype=x.dtype, device="cpu"))[0])
    return (total - len(x) * diagonal) / (len(x) * (len(x) - 1))


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # The matrix-product shortcut loses half the digits for near neighbours, and puts points off themselves.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Check two samples and flatten them to float64: (n, *), (m, *) -> (n, D), (m, D)."""
    for name, value in (("first", x), ("second", y)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"The {name} sample must be a tensor, got {type(value).__name__}. Use torch.as_tensor(...)."
            )
        if not value.is_floating_point():
            raise TypeError(f"The {name} sample must be floating point, got {value.dtype}. Use .float().")
        if value.ndim < 2 or len(value) < 2 or not value.numel():
            raise ValueError(f"The {name} sample must have shape (n, *) with n >= 2, got {tuple(value.shape)}.")
        if not torch.isfinite(value).all():
            rows = int((~torch.isfinite(value)).flatten(1).any(dim=1).sum())
            raise ValueError(
                f"The {name} sample has NaN or infinity in {rows} of its {len(value)} rows. Count and drop those first."
            )
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"Both samples must have one event shape, got {tuple(x.shape[1:])} and {tuple(y.shape[1:])}.")
    return x.detach().double().flatten(1), y.detach().double().flatten(1)
