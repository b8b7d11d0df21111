r"""UniPC, a predictor-corrector multistep method that reuses the evaluation it corrects with.

At the start of a step the new prediction first corrects the state it was made at, then predicts the next. A corrected
state differs from the predicted one by a combination of known predictions, so that both are one row of weights over
one more prediction, and no corrected state is ever formed: with $b$ the predictor's weights from $t$ to $s$, $b^-$
those of the step before and $c^-$ the corrector's on that step,

$$ x_s = r\,x_t + \sum_j \big(b_j + r\,(c^-_j - b^-_j)\big)D_{i-j} $$

The correction is not made on the last step, whose state is not evaluated again. `SASolver` corrects in the same way, by
`corrected`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Solver
from sde_diffusion.solvers.checks import check_order
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.solvers.exponential.multistep import LevelAt, Multistep, Row
from sde_diffusion.solvers.exponential.weights import data_gain
from sde_diffusion.solvers.quadrature import lagrange_integrals


def corrected(
    predicted: Sequence[float], before: Sequence[float], correction: Sequence[float], r: float
) -> tuple[float, ...]:
    """The one row of a correction of the last step followed by a prediction of the next."""
    n = max(len(predicted), len(before) + 1, len(correction))
    row = [0.0] * n
    for j, b in enumerate(predicted):
        row[j] += b
    for j, b in enumerate(before):  # the step before did not know the newest prediction
        row[j + 1] -= r * b
    for j, c in enumerate(correction):
        row[j] += r * c
    return tuple(row)


@dataclass(frozen=True)
class UniPC(Multistep):
    r"""UniPC: the unified predictor-corrector, with the corrector's evaluation shared with the next predictor.

    Both are exact integrals of the interpolated data prediction, but for the predictor of order 2 and the corrector
    of the first step, whose single coefficient is $\tfrac12$ with a weight $B(h)$. One evaluation per step. Order $p
    + 1$ in its interior; the start holds it to 3 at most, which is what it claims above $p = 2$.

    Args:
        order: $p$, 1 to 4.
        variant: `"bh2"`, $B = e^{-h} - 1$, or `"bh1"`, $B = -h$.

    References:
        Zhao et al., UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models, 2023.
    """

    order: int = 3
    variant: str = "bh2"
    half = "data"

    def __post_init__(self) -> None:
        check_order(self.order, (1, 2, 3, 4), "UniPC")
        if self.variant not in ("bh1", "bh2"):
            raise ValueError(f"variant must be 'bh1' or 'bh2', got {self.variant!r}")

    @property
    def facts(self) -> Facts:
        return Facts(needs=GaussianReverseSDE, order=min(self.order + 1, 3), memory=self.order + 1)

    def row(self, past: Sequence[Level], s: Level, level: LevelAt) -> Row:
        t = past[0]
        r = s.sigma / t.sigma
        now = self._predictor(past[: self.order], s)
        if len(past) == 1:
            return Row(r, now)
        known = past[1:]  # what the step before knew: its order was their number, up to p
        before = self._predictor(known[: self.order], t)
        return Row(r, corrected(now, before, self._corrector(known[: self.order], t), r))

    def _predictor(self, past: Sequence[Level], s: Level) -> tuple[float, ...]:
        t = past[0]
        nodes = tuple(at.lam for at in past if at.lam > -math.inf)
        if len(nodes) < 2 or s.alpha == 0:
            return (data_gain(t, s),)
        if len(nodes) > 2:
            return tuple(s.alpha * b for b in lagrange_integrals(nodes, t.lam, s.lam, 1.0))
        h = s.lam - t.lam
        k = 0.5 * s.alpha * self._b(h) * h / (t.lam - nodes[1])
        return data_gain(t, s) + k, -k

    def _corrector(self, past: Sequence[Level], s: Level) -> tuple[float, ...]:
        """Weights on the prediction at `s` and those of `past`."""
        t = past[0]
        nodes = tuple(at.lam for at in past if at.lam > -math.inf)
        if not nodes or s.alpha == 0:
            return (0.0, data_gain(t, s))
        if len(nodes) > 1:
            return tuple(s.alpha * b for b in lagrange_integrals((s.lam, *nodes), t.lam, s.lam, 1.0))
        k = 0.5 * s.alpha * self._b(s.lam - t.lam)
        return k, data_gain(t, s) - k

    def _b(self, h: float) -> float:
        return -math.expm1(-h) if self.variant == "bh2" else h

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return tuple(UniPC(order, variant) for order in (1, 2, 3, 4) for variant in ("bh1", "bh2"))

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"unipc": UniPC(3)}
