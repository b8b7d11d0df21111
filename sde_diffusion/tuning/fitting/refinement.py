r"""One table made better as a whole: Gauss-Newton on where the solve ends, by finite differences.

The least squares of a fit look at one row at a time. Here all rows move together, towards the end of the reference
alone: a push of the state of row $i$ in one direction of its features is followed down to the end by the network,

$$ \partial x_N/\partial\theta \approx (x_N(\theta + \epsilon) - x_N(\theta))/\epsilon $$

No gradient of the network is taken; a push of row $i$ takes $N - i$ evaluations. Directions in which the features
hardly vary are left out: those of a solve are nearly collinear, and few directions hold what can be gained.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sde_diffusion.tuning.fitting.least_squares import Ask, Line, Program, trust

DAMPING = (1e-6, 1e-4, 1e-2)
"""Levenberg's damping, in units where a push of one standard deviation has length 1: the best is taken."""
COLLINEAR = 1e-6
"""Share of the variance of the features from which a direction is pushed."""

Push = tuple[int, Tensor]


def cost(program: Program) -> int:
    """Evaluations per sample that one step takes at most."""
    n = len(program.levels)
    return sum((len(program.lines[i].weights)) * (n - i) for i in range(n))


def steps(
    program: Program,
    ask: Ask,
    x_T: Tensor,
    x0: Tensor,
    *,
    robust: float,
    epsilon: float,
) -> list[Program]:
    r"""One step of Gauss-Newton, for each damping.

    Args:
        program: The table.
        ask: The model.
        x_T: Starts, `(n, D)`.
        x0: Where the reference ends, `(n, D)`.
        robust: $\rho$ of the weights, as in `fit`.
        epsilon: Size of a push, in standard deviations of the data.

    Returns:
        The table after the step, for each of `DAMPING`.
    """
    states, answers = program.roll(ask, x_T)
    off = x0 - states[-1]
    w = trust(off, robust).sqrt()
    spread = float(x0.std()) or 1.0
    pushes, columns = list[Push](), list[Tensor]()
    for i in range(len(program.lines)):
        features = torch.stack(program.features(x_T, states[:i], answers[:i]))
        for direction in _directions(features, spread):
            pushes.append((i, direction))
            columns.append(_moved(program, ask, x_T, states, answers, (i, direction), epsilon) * w)
    j = torch.stack([c.flatten() for c in columns], dim=1)
    r = (off * w).flatten()
    gram, onto = j.T @ j / len(r), j.T @ r / len(r)
    eye = spread**2 * torch.eye(len(gram), dtype=gram.dtype, device="cpu")
    return [_pushed(program, pushes, torch.linalg.solve(gram + d * eye, onto)) for d in DAMPING]


def _directions(features: Tensor, spread: float) -> list[Tensor]:
    """Weights of features `(k, n, D)` that move the state by one standard deviation each, in independent directions."""
    f = features.flatten(1)
    value, vector = torch.linalg.eigh(f @ f.T / f.shape[1])
    return [
        vector[:, k] * (spread / float(v.sqrt()))
        for k, v in enumerate(value)
        if float(v) > COLLINEAR * float(value[-1])
    ]


def _moved(
    program: Program, ask: Ask, x_T: Tensor, states: list[Tensor], answers: list[Tensor], push: Push, epsilon: float
) -> Tensor:
    """What the end moves by for a push, per unit of it, `(n, D)`."""
    i, direction = push
    if i == len(program.levels):
        return program.apply(Line(direction), program.features(x_T, states[:i], answers[:i]))
    pushed = _pushed(program, [push], torch.tensor([epsilon], dtype=torch.float64, device="cpu"))
    return (pushed.roll(ask, x_T, i, states, answers)[0][-1] - states[-1]) / epsilon


def _pushed(program: Program, pushes: list[Push], theta: Tensor) -> Program:
    """The table after all pushes."""
    for (i, direction), size in zip(pushes, theta, strict=True):
        line = program.lines[i]
        program = program.with_line(i, replace(line, weights=line.weights + size * direction))
    return program
