r"""Where the network is asked: the nodes that leave least to be told, found without asking it.

For nodes $m_0 < \dots < m_{N-1}$ out of the levels of a reference, let $R_i$ be the part of the state $x_{m_i}$ that no
combination of $x_T, D_{m_0}, \dots, D_{m_{i-1}}$ gives, and $R_N$ that of the data. The nodes make

$$ R_N + \sum_i w_i R_i, \quad w_i = \frac{\kappa\,c^2}{c^2 + (\sigma/\alpha)^2} $$

small, by coordinate descent. All $R_i$ of a set of nodes come from one Cholesky factor of a Gram matrix, since the
features of row $i$ are the first of those of row $i + 1$; many sets are weighed at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sde_diffusion.sde.level import Level
from sde_diffusion.tuning.fitting.reference import Gram

RIDGE = 1e-8
"""Added to the diagonal of a Gram matrix with columns of length 1."""
STARTS = ((1.5, 2.0), (2.0, 2.0), (1.5, 1.0), (1.0, 1.0))
"""Powers and scales, in units of the data, of the angle grids that the descent starts from."""
ENOUGH = 1e-3
"""Relative gain of a sweep below which the descent ends."""


class Nodes:
    """The search over nodes of one reference.

    Args:
        gram: Inner products of its features and states.
        levels: Its levels.
        data_std: $c$.
    """

    def __init__(self, gram: Gram, levels: Sequence[Level], data_std: float) -> None:
        self.gram, self.m = gram, len(levels)
        self.c = data_std
        self.ratio = torch.tensor([at.ratio for at in levels], dtype=torch.float64, device="cpu")

    def search(self, n: int, kappas: Sequence[float]) -> list[list[int]]:
        r"""The best `n` nodes for each $\kappa$, without repetition."""
        found: list[list[int]] = []
        for kappa in kappas:
            weight = kappa * self.c**2 / (self.c**2 + self.ratio**2)
            weight[torch.isinf(self.ratio)] = 0.0
            w = torch.cat([weight, weight.new_ones(1)])
            starts = [self._sweep(nodes, w) for nodes in (*self._starts(n), *found)]
            nodes = self._descend(min(starts, key=lambda pair: pair[0]), w)
            if nodes not in found:
                found.append(nodes)
        return found

    def left(self, nodes: Tensor, w: Tensor) -> Tensor:
        """The objective of sets of nodes `(B, N)`, shape `(B,)`."""
        b, n = nodes.shape
        f = torch.cat([nodes.new_zeros(b, 1), nodes + 1], dim=1)
        a = self.gram.ff[f[:, :, None], f[:, None, :]]
        length = a.diagonal(dim1=1, dim2=2).sqrt()
        a = a / (length[:, :, None] * length[:, None, :]) + RIDGE * torch.eye(n + 1, dtype=a.dtype, device="cpu")
        target = torch.cat([nodes, nodes.new_full((b, 1), self.m)], dim=1)
        onto = self.gram.ft[f[:, :, None], target[:, None, :]] / length[:, :, None]
        z = torch.linalg.solve_triangular(torch.linalg.cholesky(a), onto, upper=False)
        left = self.gram.tt[target] - z.square().triu().sum(dim=1)  # feature k is known to the rows from k on
        return (left.clamp_min(0.0) * w[target]).sum(dim=1)

    def _starts(self, n: int) -> list[list[int]]:
        """Nodes next to the points of a few grids that end in zero noise."""
        starts = []
        for power, scale in STARTS:
            angle = torch.atan(self.ratio / (scale * self.c))
            wanted = angle[0] * (1 - torch.arange(n, dtype=torch.float64, device="cpu") / n) ** power
            nodes: list[int] = []
            for w in wanted.tolist():
                near = int((angle - w).abs().argmin())
                nodes.append(max(near, nodes[-1] + 1) if nodes else near)
            last = self.m - 1
            for k in reversed(range(n)):  # those pushed beyond the end are pushed back
                nodes[k] = min(nodes[k], last - (n - 1 - k))
            starts.append(nodes)
        return starts

    def _sweep(self, nodes: list[int], w: Tensor) -> tuple[float, list[int]]:
        """Moves each node in turn to the best place between its neighbours."""
        nodes, value = list(nodes), math.inf
        for k in range(len(nodes)):
            low = nodes[k - 1] + 1 if k else 0
            high = nodes[k + 1] if k + 1 < len(nodes) else self.m
            tried = torch.tensor([[*nodes[:k], j, *nodes[k + 1 :]] for j in range(low, high)], device="cpu")
            left = self.left(tried, w)
            best = int(left.argmin())
            nodes[k], value = low + best, float(left[best])
        return value, nodes

    def _shift(self, nodes: list[int], w: Tensor, value: float) -> tuple[float, list[int]]:
        """Moves runs of neighbours together, by one or two levels."""
        tried = []
        for first in range(len(nodes)):
            for last in range(first + 2, len(nodes) + 1):
                for by in (-2, -1, 1, 2):
                    moved = [*nodes[:first], *(j + by for j in nodes[first:last]), *nodes[last:]]
                    if moved[0] >= 0 and moved[-1] < self.m and all(a < b for a, b in pairwise(moved)):
                        tried.append(moved)
        if not tried:
            return value, nodes
        left = self.left(torch.tensor(tried, device="cpu"), w)
        best = int(left.argmin())
        return (float(left[best]), tried[best]) if float(left[best]) < value else (value, nodes)

    def _descend(self, start: tuple[float, list[int]], w: Tensor) -> list[int]:
        value, nodes = start
        while True:
            after, moved = self._sweep(nodes, w)
            after, moved = self._shift(moved, w, after)
            if after >= value * (1 - ENOUGH):
                return moved if after < value else nodes
            value, nodes = after, moved
