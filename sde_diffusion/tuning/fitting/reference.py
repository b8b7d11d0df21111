r"""The flow that a fit is made to: many short steps from the same noise, with the model's answer at every level.

$x_m$ and $D_m = D(x_m, t_m)$ at $M$ levels, and $x_0$ where the flow ends. What the choice of nodes needs of them are
inner products alone, of $x_T, D_0, \dots, D_{M-1}$ with each other and with the states, summed up over samples. The
states themselves are kept where they fit into memory, and solved for again where not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import SolverError, rows_in_words
from sde_diffusion._tensors import broken
from sde_diffusion._tensors import rows as rows_of
from sde_diffusion.denoiser.base import Denoiser, Wrapper
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.problem import Problem
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.exponential.unipc import UniPC
from sde_diffusion.solvers.loop import integrate

SOLVER = UniPC(2)
"""The solver of the reference: a higher order gains nothing where a network is rough."""
MOST_KEPT = 3 * 10**7
"""Values of the states of a reference, all levels and samples together, up to which they are kept."""
FAR = 2000.0
"""Noise in units of the data from which one level is as good as another: the nodes lie below."""
FINE = 4001
"""Points in which the density of levels is tabulated."""

Row = slice


@dataclass(frozen=True)
class Gram:
    r"""Inner products over a batch of samples, per value.

    Attributes:
        ff: Of the features $x_T, D_0, \dots, D_{M-1}$ with each other, `(M + 1, M + 1)`.
        ft: Of the features with the targets $x_0', \dots, x_{M-1}'$ and the data, `(M + 1, M + 1)`.
        tt: Of each target with itself, `(M + 1,)`.
    """

    ff: Tensor
    ft: Tensor
    tt: Tensor


class Asked:
    """A model as a fit asks it: states in float64 on the CPU, answers likewise, evaluations counted by sample.

    Args:
        problem: The process and the model.
        cond: Conditions, of which those per sample have a row for each sample of the batch.
        n: Samples in the batch.
        batch: How many are asked about at once.
        like: States of the solve, whose event shape, dtype and device the model is given.
    """

    def __init__(self, problem: Problem, cond: dict[str, Any], n: int, batch: int, like: Tensor) -> None:
        self.problem, self.batch = problem, batch
        self.dtype, self.device, self.shape = like.dtype, like.device, tuple(like.shape[1:])
        self.n, self.given = n, Conditions.of(problem.model, cond, n)
        self.evaluations = 0

    def parts(self, n: int) -> Iterator[Row]:
        """The slices of a batch."""
        for first in range(0, n, self.batch):
            yield slice(first, min(first + self.batch, n))

    def conditions(self, rows: Row) -> dict[str, Any]:
        """Those of some rows; two batches, one after the other, have the same."""
        first = rows.start % self.n
        return self.given.part(slice(first, first + rows.stop - rows.start))

    def __call__(self, x: Tensor, at: Level) -> Tensor:
        """$D(x, t)$ of states at one level, `(n, D)`, of one batch or two."""
        answers = []
        for rows in self.parts(len(x)):
            given = x[rows].reshape(-1, *self.shape).to(self.device, self.dtype)
            eq: Any = self.problem.equation(self.conditions(rows))
            answers.append(flat(eq.denoise(given, at).data))
            self.count(len(given))
        return torch.cat(answers)

    def count(self, n: int, calls: int = 1) -> None:
        """Counts evaluations of `n` samples."""
        self.evaluations += n * self.problem.cost * calls


class _Recorder(Wrapper):
    """The model, whose data predictions are handed to `keep` in the order of the levels."""

    def __init__(self, inner: Denoiser, keep: Callable[[Tensor, Level], None]) -> None:
        super().__init__(inner)
        self._keep = keep

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        answer = self.inner.predict(x, at, **cond)
        self._keep(answer.data, at)
        return answer


class Reference:
    r"""The flow from given noise.

    Args:
        ask: The model, with the conditions.
        x_T: States at the first time, shape `(n, *)`.
        times: The $M$ times of the levels.

    Attributes:
        x0: Where the flow ends, the posterior mean at the last level, in float64, `(n, D)`.
        gram: The inner products.
    """

    def __init__(self, ask: Asked, x_T: Tensor, times: Sequence[float]) -> None:
        self.ask, self.times = ask, [float(t) for t in times]
        self._x_T = x_T
        self.x_T = flat(x_T)
        n, m = self.x_T.shape[0], len(self.times)
        self._kept: Tensor | None = None
        if n * self.x_T.shape[1] * m <= MOST_KEPT:
            self._kept = torch.empty(m, *self.x_T.shape, dtype=torch.float64, device="cpu")
        ff, ft = (torch.zeros(m + 1, m + 1, dtype=torch.float64, device="cpu") for _ in range(2))
        tt, ends = torch.zeros(m + 1, dtype=torch.float64, device="cpu"), []
        room = max(1, MOST_KEPT // (2 * m * self.x_T.shape[1]))
        for rows in self._runs(min(room, ask.batch)):
            states, answers, end = self._run(rows)
            f = torch.cat([self.x_T[None, rows], answers]).flatten(1)
            t = torch.cat([states, end[None]]).flatten(1)
            ff += f @ f.T
            ft += f @ t.T
            tt += t.square().sum(1)
            ends.append(end)
            if self._kept is not None:
                self._kept[:, rows] = states
        self.x0 = torch.cat(ends)
        values = self.x_T.numel()
        self.gram = Gram(ff / values, ft / values, tt / values)

    def states(self, levels: Sequence[int]) -> Tensor:
        """The states at some levels, `(k, n, D)`: looked up, or solved for once more."""
        if self._kept is not None:
            return self._kept[list(levels)]
        found = [self._run(rows, levels)[0] for rows in self._runs(self.ask.batch)]
        return torch.cat(found, dim=1)

    def _runs(self, size: int) -> Iterator[Row]:
        for first in range(0, len(self.x_T), size):
            yield slice(first, min(first + size, len(self.x_T)))

    def _run(self, rows: Row, levels: Sequence[int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """States and answers at the levels (all, unless some are named), and the end, for some rows."""
        ask, answers = self.ask, list[Tensor]()
        wanted = None if levels is None else set(levels)

        def keep(data: Tensor, at: Level) -> None:
            if bool((bad := broken(data)).any()):
                raise SolverError(
                    f"the model answered NaN or inf at noise level sigma/alpha = {at.ratio:.4g} (t = {at.t:g}) in the "
                    f"calibration, in {rows_in_words(bad, rows.start)}: call it on such a state to see"
                )
            if levels is None:
                answers.append(flat(data))

        model: Any = ask.problem.model
        watched = Problem(ask.problem.sde, _Recorder(model, keep), ask.problem.shape)
        eq = watched.equation(ask.conditions(rows))
        states, end = list[Tensor](), self.x_T[:0]
        for now in integrate(eq, SOLVER, self._x_T[rows], self.times, finish=True):
            if now.index == len(self.times):
                end = flat(now.x)
            elif wanted is None or now.index in wanted:
                states.append(flat(now.x))
        ask.count(rows.stop - rows.start, len(self.times))
        if wanted is not None:  # in the order asked for
            states = [states[sorted(wanted).index(k)] for k in levels or ()]
        return torch.stack(states), torch.stack(answers) if answers else self.x_T[:0], end


def flat(x: Tensor) -> Tensor:
    """States `(n, *)` as `(n, D)` in float64 on the CPU."""
    return rows_of(x.detach().to("cpu", torch.float64))


def levels_between(sde: GaussianSDE, m: int, data_std: float) -> list[float]:
    r"""Times of `m` levels from which nodes are chosen: dense where the data show, and reaching both ends.

    Uniform in a mixture of two coordinates, the half log-SNR and the angle $\arctan(\sigma/(\alpha c))$ to the power
    2/3, both as a share of their range.
    """
    ends = [math.exp(-lam) for lam in sde.ends()]
    low, high = min(ends), min(max(ends), FAR * data_std)
    ratio = torch.exp(torch.linspace(math.log(high), math.log(low), FINE, dtype=torch.float64, device="cpu"))
    angle = torch.atan(ratio / data_std) ** (2 / 3)
    place = 0.4 * torch.linspace(0, 1, FINE, dtype=torch.float64, device="cpu")
    place += 0.6 * (angle[0] - angle) / (angle[0] - angle[-1])
    wanted = torch.linspace(0, 1, m, dtype=torch.float64, device="cpu")
    above = torch.searchsorted(place, wanted).clamp(1, FINE - 1)
    share = (wanted - place[above - 1]) / (place[above] - place[above - 1])
    lam = -torch.log(torch.lerp(ratio[above - 1], ratio[above], share))
    times = sde.time_of(lam).tolist()
    times[0], times[-1] = sde.t_max, sde.t_min
    return [float(t) for t in times]
