r"""Coefficients by least squares, row after row, on the solve's own way: no gradient, one evaluation for each row.

Row $i$ makes the state that the reference has at node $i$ of what is known there, $f = (x_T, D_0, \dots, D_{i-1})$:

$$ \min_a \sum_n w_n \big|x^{ref}_n - \textstyle\sum_j a_j f_{nj}\big|^2 $$

where the $D_j$ are answers at the states that the rows before have made, not at those of the reference, so that every
row makes up for the errors before it. Few samples change sides between two modes and would rule the sum: their weight
falls with their distance, $w_n = \min(1, \rho\,\mathrm{median}(r)/r_n)$, in a few rounds.

Beyond the span of the scalars, each principal component $k$ of the samples has coefficients of its own and a constant:

$$ x_i = \sum_j a_j f_j + U\Big(\sum_j W_{jk}\,(U^\top f_j)_k + b_k\Big) $$

In the components of Gaussian data that alone is exact at any number of evaluations; they are estimated from samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sde_diffusion.sde.level import Level

RIDGE = 1e-8
"""Of the scalars, in units of columns of length 1."""
RIDGE_COMPONENTS = 1e-6
"""Of the coefficients of the components."""
ROUNDS = 4
"""Rounds of weighting."""
MOST_COMPONENTS = 128
"""Principal components that have coefficients of their own."""

Ask = Callable[[Tensor, Level], Tensor]


@dataclass(frozen=True)
class Line:
    """A row of a table: weights of its features, and of each of their components, `(features, r)`, with a constant."""

    weights: Tensor
    components: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Program:
    """The rows of a table, as they are fitted: each a combination of what is known before it.

    Attributes:
        levels: Where the network is asked, $N$ levels.
        window: How many answers a row combines with the state before it; None for all, with $x_T$.
        basis: $U$, `(D, r)`, if the rows have components.
        lines: The rows so far, $N + 1$ in the end.
    """

    levels: Sequence[Level]
    window: int | None = None
    basis: Tensor | None = None
    lines: list[Line] = field(default_factory=list)

    def features(self, x_T: Tensor, states: Sequence[Tensor], answers: Sequence[Tensor]) -> list[Tensor]:
        """What the row after `answers` combines: a base, then answers, oldest first."""
        if self.window is None or not answers:
            return [x_T, *answers]
        return [states[-1], *answers[-self.window :]]

    def apply(self, line: Line, features: Sequence[Tensor]) -> Tensor:
        """The state that a row makes, `(n, D)`."""
        x = torch.einsum("k,knd->nd", line.weights, torch.stack(list(features)))
        if self.basis is None or line.components is None or line.bias is None:
            return x
        y = torch.einsum("knr,kr->nr", torch.stack([f @ self.basis for f in features]), line.components) + line.bias
        return x + y @ self.basis.T

    def roll(
        self, ask: Ask, x_T: Tensor, start: int = 0, states: Sequence[Tensor] = (), answers: Sequence[Tensor] = ()
    ) -> tuple[list[Tensor], list[Tensor]]:
        """States of all rows and answers at them, from row `start` on if those before are given."""
        states, answers = list(states[:start]), list(answers[:start])
        for i in range(start, len(self.lines)):
            states.append(self.apply(self.lines[i], self.features(x_T, states, answers)))
            if i < len(self.levels):
                answers.append(ask(states[-1], self.levels[i]))
        return states, answers

    def with_line(self, i: int, line: Line) -> Program:
        """The same with another row."""
        return replace(self, lines=[*self.lines[:i], line, *self.lines[i + 1 :]])


def fit(
    ask: Ask,
    levels: Sequence[Level],
    x_T: Tensor,
    targets: Sequence[Tensor],
    x0: Tensor,
    *,
    robust: float,
    basis: Tensor | None = None,
    window: int | None = None,
) -> tuple[Program, Tensor]:
    r"""Fits a table to a reference.

    Args:
        ask: The model.
        levels: The $N$ levels of the nodes.
        x_T: Starts, `(n, D)`.
        targets: States of the reference at the nodes, $N$ of `(n, D)`.
        x0: Where it ends, `(n, D)`.
        robust: $\rho$, how many medians of the distance a sample may be off before its weight falls.
        basis: $U$ of the components, if they are fitted too.
        window: Answers that a row combines, if not all.

    Returns:
        The table, and what it makes of `x_T`.
    """
    program = Program(levels, window, basis)
    states, answers = list[Tensor](), list[Tensor]()
    for i in range(len(levels) + 1):
        features = torch.stack(program.features(x_T, states, answers))
        target = targets[i] if i < len(levels) else x0
        if i == 0 and torch.equal(target, x_T):
            line = Line(torch.ones(1, dtype=x_T.dtype, device="cpu"))
        else:
            line = Line(scalars(features, target, robust))
            if basis is not None:
                off = target - program.apply(line, features.unbind())
                components, bias = per_component(features @ basis, off @ basis, robust)
                line = replace(line, components=components, bias=bias)
        program.lines.append(line)
        states.append(program.apply(line, features.unbind()))
        if i < len(levels):
            answers.append(ask(states[-1], levels[i]))
    return program, states[-1]


def scalars(features: Tensor, target: Tensor, robust: float) -> Tensor:
    """Weights `(k,)` of features `(k, n, D)` for a target `(n, D)`, by weighted least squares."""
    length = features.square().mean(dim=(1, 2)).sqrt().clamp_min(1e-300)
    f = features / length[:, None, None]
    w, a = target.new_ones(len(target), 1), length
    for _ in range(ROUNDS):
        fw = (f * w).flatten(1)
        gram = fw @ f.flatten(1).T / target.numel()
        onto = fw @ target.flatten() / target.numel()
        a = torch.linalg.solve(gram + RIDGE * torch.eye(len(f), dtype=f.dtype, device="cpu"), onto)
        w = trust(target - torch.einsum("k,knd->nd", a, f), robust)
    return a / length


def per_component(features: Tensor, target: Tensor, robust: float) -> tuple[Tensor, Tensor]:
    """Weights `(k, r)` and constants `(r,)` of components `(k, n, r)` for a target `(n, r)`."""
    length = features.square().mean(dim=(1, 2)).sqrt().clamp_min(1e-300)
    f = torch.cat([features / length[:, None, None], features.new_ones(1, *features.shape[1:])])
    w, a = target.new_ones(len(target), 1), f[:, 0]
    ridge = RIDGE_COMPONENTS * torch.eye(len(f), dtype=f.dtype, device="cpu")
    for _ in range(ROUNDS):
        gram = torch.einsum("knr,lnr->rkl", f * w, f) / len(target)
        onto = torch.einsum("knr,nr->rk", f * w, target) / len(target)
        a = torch.linalg.solve(gram + ridge, onto[..., None])[..., 0].T
        w = trust(target - torch.einsum("knr,kr->nr", f, a), robust)
    return a[:-1] / length[:, None], a[-1]


def trust(off: Tensor, robust: float) -> Tensor:
    """Weights `(n, 1)` of samples that are off by `off`, `(n, D)`."""
    far = off.norm(dim=1, keepdim=True)
    return (robust * far.median() / far.clamp_min(1e-300)).clamp_max(1.0)


def principal_components(x0: Tensor) -> Tensor:
    """The leading principal directions of samples `(n, D)`, as many as half of them, `(D, r)`."""
    r = min(x0.shape[1], MOST_COMPONENTS, len(x0) // 2)
    directions = torch.linalg.svd(x0 - x0.mean(dim=0), full_matrices=False).Vh
    return directions[:r].T.contiguous()
