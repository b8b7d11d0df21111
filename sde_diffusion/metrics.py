r"""How far apart are two samples? Sliced Wasserstein, energy distance, and Frechet distance on given features.

Every function takes samples `x` (n, *) and `y` (m, *), flattens them to n and m points of D dimensions, works in
float64 and returns a Python float. n and m need not agree. Two samples of one distribution do not score 0 but a floor
that shrinks with n: report it beside the figure, by scoring real data against real data.

What each one sees: the energy distance reaches its noise floor long before a density is right and is blind to a rare
point thrown far away, which sliced Wasserstein sees; the Frechet distance compares means and covariances of features
only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_seed
from sde_diffusion.noise.seeds import seed_list

__all__ = ["energy_distance", "frechet_distance", "sliced_wasserstein"]


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
    (seed,) = seed_list(check_seed(seed), 1)
    generator = torch.Generator().manual_seed(seed)
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
    return 2 * _distances(x, y) / (len(x) * len(y)) - _within(x) - _within(y)


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
    """Symmetric square root of a covariance (D, D); eigenvalues no larger than rounding count as zero."""
    values, vectors = torch.linalg.eigh(c)
    floor = len(c) * torch.finfo(c.dtype).eps * values[-1].clamp_min(0)
    root: Tensor = (vectors * torch.where(values > floor, values, 0).sqrt()) @ vectors.T
    return root


def _quantile_cells(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Cuts [0, 1] where either empirical quantile function jumps: widths, and the order statistics that meet there."""
    # Cuts in units of 1 / (n m) are integers, so that coinciding ones coincide exactly.
    cuts = torch.cat([torch.arange(n + 1, device=device) * m, torch.arange(1, m, device=device) * n]).unique()
    return cuts.diff().double() / (n * m), cuts[:-1] // m, cuts[:-1] // n


def _within(x: Tensor) -> float:
    """Returns the mean distance of two distinct points."""
    return _distances(x, x) / (len(x) * (len(x) - 1))


def _distances(x: Tensor, y: Tensor) -> float:
    """Sums all distances between rows of `x` and rows of `y`, in parts that fit into memory."""
    # The matrix-product shortcut loses half the digits for near neighbours, and puts points off themselves.
    far = "donot_use_mm_for_euclid_dist"
    return sum(float(torch.cdist(part, y, compute_mode=far).sum()) for part in x.split(max(1, 2**22 // len(y))))


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Checks two samples and flattens them to float64: (n, *), (m, *) -> (n, D), (m, D)."""
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
