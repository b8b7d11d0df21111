r"""The opponent that is trained: a full table of coefficients and its nodes, by Adam through the model.

$$ x_i = c_i\,x_T + \sum_{j<i} P_{ij}\,D_j, \qquad D_j = D(x_j, \lambda_j), \qquad x_N \text{ the data} $$

All of $c$, $P$ and $\lambda_1, \dots, \lambda_{N-1}$ are parameters, and the loss is the distance of $x_N$ to the
converged flow, so that every step of the training takes N evaluations of a batch and the way back through them. It
starts from the table of the best standard sampler on the same noise. This is the idea of bespoke non-stationary solvers
(Shaul et al., 2024) and of S4S (Frankel et al., 2025), written here without theirs at hand. It uses nothing of
`sde_diffusion.tuning`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from _counted import AnyLevel, Counted
from _our_pairs import Ours
from _problems import Case, error, reference, start
from torch import Tensor

from sde_diffusion import GaussianSDE
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde.level import Level

BATCH, HELD = 256, 128
ROUNDS, EVERY = 400, 20
RATES = (3e-3, 1e-2)
SEED = 6001


class Tracer(Denoiser):
    """A model on vectors of coefficients: what a linear sampler makes of it is a table.

    Its state is a row over x_T and the answers so far; its answer to evaluation `i` is the unit vector of that answer.

    Args:
        sde: The process.
        n: Evaluations.
        data_std: As of the model that it stands for.
    """

    careful = True

    def __init__(self, sde: GaussianSDE, n: int, data_std: float) -> None:
        super().__init__()
        self.sde, self.shape, self.data_std = sde, (n + 1,), data_std
        self.nodes: list[Level] = []
        self.states: list[Tensor] = []

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        self.nodes.append(at)
        self.states.append(x[0].clone())
        data = torch.zeros_like(x)
        data[:, len(self.nodes)] = 1.0
        return Prediction(lambda: data, lambda: (x - at.alpha * data) / at.sigma)


@dataclass
class TrainedTable:
    """A table, normalised so that all states are of unit size.

    Attributes:
        case: The problem.
        rows: `(N, N + 1)`: the states at nodes 1 to N - 1 and the data, over x_T and the answers.
        lam: `(N,)`: half log-SNR of the nodes; the first stays.
    """

    case: Case
    rows: Tensor
    lam: Tensor
    label: str = "trained by Adam"

    def __call__(self, network: AnyLevel, n: int, x_T: Tensor) -> Tensor:
        """The samples, by exactly as many evaluations as there are nodes."""
        return self.run(network.model, x_T)

    def run(self, model: Denoiser, x_T: Tensor) -> Tensor:
        """The same, with a graph."""
        sde, known, x = self.case.sde, [x_T / _size(self.case.sde.levels([self.case.sde.t_max])[0])], x_T
        rows = self.rows.to(x_T.dtype)
        low, high = sorted(sde.ends())
        for i in range(len(rows)):
            if i:
                t = sde.time_of(self.lam[i : i + 1].clamp(max(low, -20.0), high)).clamp(sde.t_min, sde.t_max)
                at = sde.level(t.expand(len(x_T)), x_T, check=False)
                x = x * _size(at)
            else:
                at = sde.levels([sde.t_max])[0]
                at = model.levels([at.t])[0]
            known.append(model.predict(x, at, **self.case.cond).data)
            x = sum((rows[i, j] * k for j, k in enumerate(known)), torch.zeros_like(x_T))
        return x


def _size(at: Level) -> object:
    return (at.alpha * at.alpha + at.sigma * at.sigma) ** 0.5


def of(pair: Ours, n: int) -> TrainedTable:
    """The table of a linear sampler."""
    case = pair.case
    tracer = Tracer(case.sde, n, case.model.data_std)
    sampler = pair.build(case.sde, tracer, nfe=n, shape=tracer.shape)
    e0 = torch.zeros(1, n + 1, dtype=torch.float64)
    e0[0, 0] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        last = sampler.sample(1, x_T=e0)[0]
    assert len(tracer.nodes) == n, (pair.label, len(tracer.nodes), n)
    sizes = [float(_size(at)) for at in tracer.nodes]
    states = [s / size for s, size in zip(tracer.states[1:], sizes[1:], strict=True)]
    rows = torch.stack([*states, last])
    rows[:, 0] *= sizes[0]
    lam = torch.tensor([at.lam for at in tracer.nodes], dtype=torch.float64)
    return TrainedTable(case, rows.detach(), lam)


@dataclass(frozen=True)
class Training:
    """What a training came to.

    Attributes:
        table: The best table on held noise.
        calls: Evaluations, in rows of a batch.
        start: The sampler that it started from.
        before: Its error on held noise.
        after: The error of the table there.
    """

    table: TrainedTable
    calls: int
    start: str
    before: float
    after: float


def train(case: Case, n: int, standard: Sequence[Ours]) -> Training:
    """Trains a table for `n` evaluations, from the best of some standard samplers on the calibration noise."""
    x_T = start(case, BATCH + HELD, SEED)
    exact = reference(case, x_T)
    found = []
    for pair in standard:
        try:
            table = of(pair, n)
        except (ValueError, RuntimeError, AssertionError):
            continue
        with torch.no_grad():
            found.append((error(table.run(case.model, x_T[:BATCH]), exact[:BATCH]), pair.label, table))
    _, label, first = min(((e, name, t) for e, name, t in found if math.isfinite(e)), key=lambda f: f[0])
    with torch.no_grad():
        before = error(first.run(case.model, x_T[BATCH:]), exact[BATCH:])
    counted = Counted(case.model)
    best = (math.inf, first)
    for rate in RATES:
        best = min(best, _descend(first, counted, x_T, exact, rate), key=lambda b: b[0])
    calls = counted.rows + len(found) * BATCH * n
    return Training(best[1], calls, label, before, best[0])


def _descend(
    first: TrainedTable, model: Counted, x_T: Tensor, exact: Tensor, rate: float
) -> tuple[float, TrainedTable]:
    """Adam from a table at one rate, which falls to zero; the best on held noise, with its error."""
    rows, lam = first.rows.clone().requires_grad_(), first.lam.clone().requires_grad_()
    keep = torch.ones_like(rows).tril(1)
    adam = torch.optim.Adam([{"params": [rows]}, {"params": [lam], "lr": rate}], lr=rate)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(adam, ROUNDS)
    scale, best = exact.std(), (math.inf, first)
    for i in range(ROUNDS + 1):
        table = TrainedTable(first.case, rows * keep, lam)
        if i % EVERY == 0:
            with torch.no_grad():
                held = error(table.run(model, x_T[BATCH:]), exact[BATCH:])
            if held < best[0]:
                best = held, TrainedTable(first.case, (rows * keep).detach().clone(), lam.detach().clone())
        loss = (table.run(model, x_T[:BATCH]) - exact[:BATCH]).square().mean().sqrt() / scale
        adam.zero_grad()
        torch.autograd.backward(loss, inputs=[rows, lam])
        adam.step()
        fall.step()
    return best
