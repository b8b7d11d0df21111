r"""The linear algebra of the rules, for each sample by itself: Gaussians, Krylov spaces, products with a Jacobian.

It is done in float64 where the device has that, since $I + M$ is as ill-conditioned as the noise is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

MOST = 2**22
"""Numbers in the products that are found in one pass; more go through the network in several."""


def wide(x: Tensor) -> Tensor:
    """A tensor in float64, or as it is where the device has none."""
    return x if x.device.type == "mps" else x.to(torch.float64)


def products(out: Tensor, z: Tensor, vectors: Tensor) -> Tensor:
    r"""Products with a Jacobian, $v_k^T\,\partial out/\partial z$, in one pass where the graph can be batched.

    Args:
        out: Tensor of a graph, shape `(B, *)`.
        z: What it is differentiated in, shape `(B, *z)`.
        vectors: $v_k$, shape `(k, B, *)`.

    Returns:
        Shape `(k, B, *z)`; part of a graph where gradients are on.
    """
    graph = torch.is_grad_enabled()
    if len(vectors) > 1:
        size = max(1, MOST // max(1, out.numel()))
        try:
            return torch.cat(
                [
                    torch.autograd.grad(out, z, v, retain_graph=True, create_graph=graph, is_grads_batched=True)[0]
                    for v in vectors.split(size)
                ]
            )
        except RuntimeError:  # an operation that cannot be batched: one by one, where a true error comes again
            pass
    one = [torch.autograd.grad(out, z, v, retain_graph=True, create_graph=graph)[0] for v in vectors.unbind(0)]
    return torch.stack(one)


def gaussian(m: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    r"""$u = (I + M_+)^{-1}r$ and $\log\mathcal N(r; 0, I + M_+)$, with $M_+$ symmetric and positive.

    $M_+$ is the symmetric part of $M$ without its negative eigenvalues.

    Args:
        m: $M$, shape `(B, d, d)`.
        r: $r$, shape `(B, d)`.

    Returns:
        In float64, shapes `(B, d)` and `(B,)`; NaN in the rows that are not finite, and in no other.
    """
    m, r = wide(m), wide(r)
    m = 0.5 * (m + m.mT)
    bad = ~(torch.isfinite(m.detach()).all(-1).all(-1) & torch.isfinite(r.detach()).all(-1))
    s = positive(torch.where(bad[:, None, None], torch.zeros_like(m), m))
    s = s + torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    root = torch.linalg.cholesky(s)
    half = torch.linalg.solve_triangular(root, r[..., None], upper=False)
    u = torch.linalg.solve_triangular(root.mT, half, upper=True)[..., 0]
    log_det = 2 * torch.log(root.diagonal(dim1=-2, dim2=-1)).sum(-1)
    log_p = -0.5 * (half.square().sum((-2, -1)) + log_det + r.shape[-1] * math.log(2 * math.pi))
    return u.masked_fill(bad[:, None], math.nan), log_p.masked_fill(bad, math.nan)


def positive(m: Tensor) -> Tensor:
    r"""The positive part $Q\max(\Lambda, 0)Q^T$ of symmetric matrices $Q\Lambda Q^T$, shape `(B, d, d)`.

    A matrix that is positive comes back as it is. The derivative is by divided differences, finite where eigenvalues
    meet; the second derivative is exact only for the matrices that come back as they are.
    """
    fixed = m.detach()
    values, q = torch.linalg.eigh(fixed)
    kept = values.clamp_min(0.0)
    out = m + (q * (kept - values)[:, None]) @ q.mT
    if not m.requires_grad:
        return out
    up, low = kept[:, :, None], (values - kept)[:, :, None]
    size = (up + up.mT) - (low + low.mT)
    slope = torch.where(size > 0, (up + up.mT) / torch.where(size > 0, size, torch.ones_like(size)), 1.0)
    change = q.mT @ (m - fixed) @ q
    return out + q @ ((slope - 1) * change) @ q.mT


def krylov(product: Callable[[Tensor], tuple[Tensor, Tensor]], r: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    r"""$u = (I + M)^{-1}r$ in the span of $r, Mr, M^2r, \dots$: conjugate gradients, kept orthogonal.

    Each row stops by itself where its space is exhausted.

    Args:
        product: $q \mapsto (g, Mq)$, shapes `(B, d)` -> `(B, D)` and `(B, d)`.
        r: $r$, shape `(B, d)`.
        iterations: Products.

    Returns:
        $u$ and $\sum_ku_kg_k$, the same combination of the $g$, shapes `(B, d)` and `(B, D)`.
    """
    tiny = (100 * torch.finfo(r.dtype).eps) ** 2
    basis, side, images = [_unit(r, torch.zeros_like(r[:, :1]))], [], []
    for k in range(iterations):
        g, w = product(basis[-1])
        side.append(g)
        images.append(w)
        if k + 1 == iterations:
            break
        v, q = w, torch.stack(basis, 1)
        for _ in range(2):
            v = v - torch.einsum("bk,bkd->bd", torch.einsum("bkd,bd->bk", q, v), q)
        basis.append(_unit(v, tiny * w.square().sum(1, keepdim=True)))
    q, w = torch.stack(basis, 1), torch.stack(images, 1)
    c = gaussian(q @ w.mT, torch.einsum("bkd,bd->bk", q, r))[0].to(r)
    return torch.einsum("bk,bkd->bd", c, q), torch.einsum("bk,bkd->bd", c, torch.stack(side, 1))


def _unit(v: Tensor, least: Tensor) -> Tensor:
    """Rows of length 1, or of nothing where the square is not above the least; NaN stays."""
    square = v.square().sum(1, keepdim=True)
    nothing = square <= least
    return torch.where(nothing, torch.zeros_like(v), v / torch.where(nothing, torch.ones_like(square), square).sqrt())
