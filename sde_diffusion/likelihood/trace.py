r"""The divergence of a velocity, $\nabla\cdot v = \mathrm{tr}\,J$ with $J = \partial v/\partial x$: exact, or probed.

Exact takes $D$ products with the Jacobian. A probe takes one: for random $z$ with $\mathrm E[zz^T] = I$,

$$ \mathrm E[z^TJz] = \mathrm{tr}\,J $$

A probe is drawn once and kept along the whole trajectory, so that the equation stays an ordinary one, whose integral is
unbiased. The state does not depend on the probes, so $k$ of them give $k$ integrals in one solve: their mean, and from
their spread its standard error. The whole velocity is probed, never one term of a sum whose terms cancel.
Gaussian probes are not offered: they have the larger variance, by $\sum_i J_{ii}^2$, and $|z|^2$ differs from $D$.

Probes come from a stream of their own for each sample: row $i$ depends on seed $i$ alone, and not on the noise that the
same seed gives to a sampler.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from sde_diffusion._checks import check_count
from sde_diffusion._tensors import rows
from sde_diffusion.noise.seeds import Use, apart
from sde_diffusion.noise.sources import Streams

Field = Callable[[Tensor], Tensor]
EXACT_UP_TO = 128
"""Coordinates up to which the divergence is exact by default."""
DEFAULT_PROBES = 8
CHUNK = 32  # columns of the Jacobian in flight at once, in forward mode


def divergence(v: Tensor, x: Tensor) -> Tensor:
    r"""$\nabla\cdot v$ at `x`, shape `(B,)`: exact, one vector-Jacobian product per coordinate on the graph of `v`."""
    return _exact(v, x, create_graph=False)


class Trace(ABC):
    """How the divergence is found. Subclasses are frozen dataclasses.

    Attributes:
        forward: Whether derivatives are taken in forward mode, which keeps no graph, in place of vector-Jacobian
            products. It costs about 1.5 times as much on a CPU, and works on parameters made under
            `torch.inference_mode`. None takes it for such parameters alone.
    """

    forward: bool | None

    @abstractmethod
    def probes(self, seeds: Sequence[int], d: int, like: Tensor) -> Tensor | None:
        """The probes of each sample, shape `(B, k, D)`, or None where the trace is exact."""

    @abstractmethod
    def width(self) -> int:
        """The number `m` of quantities whose integrals a solve carries."""

    @abstractmethod
    def __call__(self, field: Field, x: Tensor, probes: Tensor | None, *, grad: bool = False) -> tuple[Tensor, Tensor]:
        """The field at `x`, shape `(B, *)`, and what a solve integrates, `(B, m)`.

        Args:
            field: A velocity `(B, *) -> (B, *)`, whose rows do not mix.
            x: The state.
            probes: The answer of `probes`.
            grad: Keeps the graph, so that both can be differentiated.

        Raises:
            TypeError: No graph leads from the field back to `x`.
        """

    @abstractmethod
    def estimate(self, integrals: Tensor) -> Tensor:
        """The integral of the divergence, `(B,)`, from those carried, `(B, m)`."""

    @abstractmethod
    def standard_error(self, integrals: Tensor, d: int) -> Tensor:
        """The standard error of the estimate in `D` dimensions, `(B,)`."""


@dataclass(frozen=True)
class Exact(Trace):
    """The divergence itself: one vector-Jacobian product per coordinate, all on one graph. No standard error.

    Args:
        forward: Forward mode; None where no graph can be kept.
    """

    forward: bool | None = None

    def probes(self, seeds: Sequence[int], d: int, like: Tensor) -> None:
        return None

    def width(self) -> int:
        return 1

    def __call__(self, field: Field, x: Tensor, probes: Tensor | None, *, grad: bool = False) -> tuple[Tensor, Tensor]:
        if self.forward:
            d = x[0].numel()
            units = torch.eye(d, dtype=x.dtype, device=x.device)[:, None].expand(d, len(x), d)
            found = torch.vmap(lambda z: (_jvp(field, x, z) * z).sum(1), chunk_size=CHUNK)(units)
            return field(x), found.sum(0)[:, None]
        with torch.enable_grad():
            v, x = _graph(field, x, grad)
            div = _exact(v, x, grad)[:, None]
        return (v, div) if grad else (v.detach(), div.detach())

    def estimate(self, integrals: Tensor) -> Tensor:
        return integrals[:, 0]

    def standard_error(self, integrals: Tensor, d: int) -> Tensor:
        return torch.zeros_like(integrals[:, 0])


@dataclass(frozen=True)
class _Probed(Trace):
    """Products with `k` probes.

    Args:
        k: Probes, each a vector-Jacobian product per evaluation. One alone has no standard error (`inf`).
        forward: Forward mode; None where no graph can be kept.
    """

    k: int = DEFAULT_PROBES
    forward: bool | None = None

    def __post_init__(self) -> None:
        check_count(self.k, "k")

    @abstractmethod
    def gather(self, products: Tensor) -> Tensor:
        """The quantities that a solve integrates, `(B, m)` with the estimates first, from $z_i^TJz_j$, `(B, k, k)`."""

    def __call__(self, field: Field, x: Tensor, probes: Tensor | None, *, grad: bool = False) -> tuple[Tensor, Tensor]:
        if probes is None:
            raise TypeError(f"{self!r} was given no probes")
        z = probes.to(x)
        if self.forward:
            columns = torch.vmap(lambda w: _jvp(field, x, w), chunk_size=CHUNK)(z.transpose(0, 1)).transpose(0, 1)
            return field(x), self.gather(columns @ z.mT)
        with torch.enable_grad():
            v, x = _graph(field, x, grad)
            columns = torch.stack([_product(v, x, w, grad) for w in z.unbind(1)], dim=1)
            found = self.gather(columns @ z.mT)
        return (v, found) if grad else (v.detach(), found.detach())

    def estimate(self, integrals: Tensor) -> Tensor:
        return integrals[:, : self.k].mean(1)


@dataclass(frozen=True)
class Orthogonal(_Probed):
    r"""`k` random orthogonal directions of length $\sqrt D$: a random frame, cut off after `k` vectors.

    $$ \mathrm{tr}\,A \approx \frac1k\,\mathrm{tr}\,M, \quad M_{ij} = z_i^TAz_j, \quad
       \mathrm{se}^2 = \frac{2\,(D - k)}{D\,k\,(k - 1)(k + 2)}\,
       \Big\|\tfrac12(M + M^T) - \tfrac1k\,\mathrm{tr}\,M\,I\Big\|_F^2 $$

    with $A = \int J\,dt$ along the trajectory. Exact at $k = D$, and on the way there better than independent probes.

    The standard error is unbiased in the square. It uses all products between the probes, which cost nothing, as the
    law of the frame does not change under rotations: as good as $(k - 1)(k + 2)/2$ independent squares, 35 for eight
    probes, where the spread of the eight values alone, $s\sqrt{(D - k)/(D k)}$, has 7. Two standard errors then cover
    95% rather than 91%.

    Args:
        k: Probes, at most $D$, each a vector-Jacobian product per evaluation. One alone has no standard error (`inf`).
        forward: Forward mode; None where no graph can be kept.

    References:
        Choromanski et al., The Unreasonable Effectiveness of Structured Random Orthogonal Embeddings, 2017;
        Hutchinson, A Stochastic Estimator of the Trace of the Influence Matrix, 1989.
    """

    def probes(self, seeds: Sequence[int], d: int, like: Tensor) -> Tensor:
        if self.k > d:
            raise ValueError(f"{self!r}: {d} dimensions hold {d} orthogonal directions; Exact() costs as much as those")
        frames = torch.linalg.qr(normals(seeds, d, self.k)).Q
        return math.sqrt(d) * frames.mT.to(like.device)

    def width(self) -> int:
        return self.k * (self.k + 1) // 2

    def gather(self, products: Tensor) -> Tensor:
        i, j = torch.triu_indices(self.k, self.k, 1, device=products.device)
        off = 0.5 * (products + products.mT)[:, i, j]
        return torch.cat([products.diagonal(dim1=1, dim2=2), off], dim=1)

    def standard_error(self, integrals: Tensor, d: int) -> Tensor:
        k = self.k
        diagonal, off = integrals[:, :k], integrals[:, k:]
        if k == d:
            return torch.zeros_like(integrals[:, 0])
        if k == 1:
            return torch.full_like(integrals[:, 0], math.inf)
        norm2 = (diagonal - diagonal.mean(1, keepdim=True)).square().sum(1) + 2 * off.square().sum(1)
        return torch.sqrt(2 * (d - k) / (d * k * (k - 1) * (k + 2)) * norm2)


@dataclass(frozen=True)
class Rademacher(_Probed):
    r"""`k` independent probes of random signs: unbiased, and exact where the Jacobian is diagonal.

    The standard error is $s/\sqrt k$, with $s$ the standard deviation of the `k` values.

    Args:
        k: Probes, each a vector-Jacobian product per evaluation. One alone has no standard error (`inf`).
        forward: Forward mode; None where no graph can be kept.

    References:
        Hutchinson, A Stochastic Estimator of the Trace of the Influence Matrix, 1989.
    """

    def probes(self, seeds: Sequence[int], d: int, like: Tensor) -> Tensor:
        return torch.where(normals(seeds, self.k, d) < 0, -1.0, 1.0).to(like.device)

    def width(self) -> int:
        return self.k

    def gather(self, products: Tensor) -> Tensor:
        return products.diagonal(dim1=1, dim2=2)

    def standard_error(self, integrals: Tensor, d: int) -> Tensor:
        if self.k == 1:
            return torch.full_like(integrals[:, 0], math.inf)
        return integrals.std(1) / math.sqrt(self.k)


def _graph(field: Field, x: Tensor, grad: bool) -> tuple[Tensor, Tensor]:
    """The field with a graph to the state, and that state."""
    if not (grad and x.requires_grad):
        x = x.detach().requires_grad_()
    v = field(x)
    if not v.requires_grad:
        raise TypeError(
            "the velocity has no graph back to the state: the network runs under torch.no_grad, detaches, or leaves "
            "torch. Take that out of it, as the divergence is a derivative"
        )
    return v, x


def _product(v: Tensor, x: Tensor, z: Tensor, create_graph: bool) -> Tensor:
    """The vector-Jacobian product $z^TJ$, `(B, D)`."""
    (row,) = torch.autograd.grad(
        v, x, z.reshape(v.shape), retain_graph=True, create_graph=create_graph, materialize_grads=True
    )
    return rows(row)


def _exact(v: Tensor, x: Tensor, create_graph: bool) -> Tensor:
    total = v.new_zeros(len(v))
    for i in range(v[0].numel()):
        unit = torch.zeros_like(rows(v))
        unit[:, i] = 1.0
        total = total + _product(v, x, unit, create_graph)[:, i]
    return total


@cache
def _load_forward_mode() -> None:
    """Has torch load its forward-mode rules, which it warns of itself (2.13: `torch.jit.script` is deprecated)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.tanh, (torch.zeros(1, device="cpu"),), (torch.ones(1, device="cpu"),))


def _jvp(field: Field, x: Tensor, z: Tensor) -> Tensor:
    """The Jacobian-vector product $Jz$, `(B, D)`."""
    _load_forward_mode()
    return rows(torch.func.jvp(field, (x,), (z.reshape(x.shape),))[1])


def normals(seeds: Sequence[int], *shape: int) -> Tensor:
    """Unit normals `(B, *shape)` in float64, row `i` from a stream that seed `i` keys and no sampler draws from."""
    return Streams(apart(seeds, Use.PROBES), shape, torch.float64, "cpu").prior()
