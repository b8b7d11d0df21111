r"""What a solver may ask: the equation it integrates, from the weakest interface to the richest.

* `ODE`: a velocity. Runge-Kutta methods need no more.
* `ReverseSDE`: any SDE with its score; adds `score`, `reverse_drift`, `diffusion`.
* `GaussianReverseSDE`: a Gaussian SDE with a denoiser; adds `denoise`, the one line that calls the network.

An equation belongs to one solve. It tabulates the levels that the solve visits, and counts network evaluations.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import SolverError, check_answer, rows_in_words
from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.prediction import Prediction, held
from sde_diffusion.sde.base import SDE, GaussianSDE
from sde_diffusion.sde.level import Level, Scalar
from sde_diffusion.solvers.tables import Counter, Tables


def scaled_rms(value: Tensor, x: Tensor, new: Tensor, rtol: float, atol: float) -> Tensor:
    """Root mean square over the event of `value / (atol + rtol max(|x|, |new|))`, shape `(B,)`."""
    allowed = torch.maximum(x.abs(), new.abs()).mul_(rtol).add_(atol)
    return rows((value / allowed).square()).mean(1).sqrt()


class ODE(ABC):
    r"""$dx/dt = v(x, t)$, with the levels of its solve tabulated.

    Args:
        counter: The evaluation counter to share; a new one by default.
        tables: Levels known from earlier solves of the same equation.
    """

    def __init__(self, counter: Counter | None = None, tables: Tables | None = None) -> None:
        self.counter = counter or Counter()
        self.tables = tables or Tables()

    @property
    def nfe(self) -> int:
        """Network evaluations so far."""
        return self.counter.n

    @property
    def stopped(self) -> Tensor | None:
        """Mask `(B,)` of the rows that an adaptive solver has left on the way in this solve; None if there are none."""
        return self.counter.stopped

    @property
    def idle(self) -> Tensor | None:
        """Mask `(B,)` of the rows that take no further part in this solve; None if all do."""
        stopped, lost = self.counter.stopped, self.counter.lost
        return stopped if lost is None else lost if stopped is None else stopped | lost

    def stop(self, stopped: Tensor, t: Tensor) -> None:
        """Leaves rows `(B,)`, a mask, where they are for the rest of the solve; `t` `(B,)` is how far each has come."""
        before, where = self.counter, self._place(t)
        if before.stopped is not None and before.where is not None:
            where = torch.where(before.stopped, before.where, where)
            stopped = stopped | before.stopped
        before.stopped, before.where = stopped, where

    def stopped_at(self) -> list[float]:
        """The times at which rows were left, in the time of this equation."""
        mask, where = self.counter.stopped, self.counter.where
        return [] if mask is None or where is None else self._time(where[mask]).tolist()

    def stuck(self, stuck: Tensor, t: Tensor) -> None:
        """What becomes of rows whose steps went to zero: an adaptive solver calls this, and leaves them where they are.

        Args:
            stuck: The rows, a mask `(B,)`.
            t: Their times, `(B,)`.

        Raises:
            SolverError: Always, unless the counter says `keep`: then these rows are lost, and the others go on.
        """
        if self.counter.keep:
            self.counter.lose(stuck)
            return
        raise SolverError(
            f"the step size went to zero at t = {t[stuck][0].item():g}, in "
            f"{rows_in_words(stuck, self.counter.first)}: either the network answered NaN or inf there, or it is too "
            "rough for rtol and atol, or alpha = 0 at the end and its answer tells nothing of the data there. To keep "
            "the other rows of a sample: nonfinite='keep'"
        )

    def error_norm(self, error: Tensor, x: Tensor, new: Tensor, rtol: float, atol: float) -> Tensor:
        r"""The error of each row of a step against its tolerances, shape `(B,)`; a step of more than 1 is refused.

        $$ E = \sqrt{\tfrac1D\sum_i\Big(\frac{e_i}{atol + rtol\,\max(|x_i|, |x'_i|)}\Big)^2} $$

        Args:
            error: The estimate $e$ of the error, shape `(B, *)`.
            x: State before the step.
            new: State after it, $x'$.
            rtol: Error allowed, relative to the state.
            atol: Error allowed, in units of the state.
        """
        return scaled_rms(error, x, new, rtol, atol)

    def _place(self, t: Tensor) -> Tensor:
        """A time in a coordinate that all views of the equation share."""
        return t

    def _time(self, place: Tensor) -> Tensor:
        return place

    @abstractmethod
    def velocity(self, x: Tensor, t: Level) -> Tensor:
        """The velocity at `x`, shape `(B, *)`, and level `t`."""

    @abstractmethod
    def compute_levels(self, times: Sequence[float]) -> list[Level]:
        """The levels at `times`, in one vectorised evaluation."""

    def prefill(self, times: Iterable[float]) -> list[Level]:
        """Tabulates the levels at `times` in one evaluation and returns them."""
        wanted, table = list(times), self.tables.by_time
        missing = [t for t in dict.fromkeys(wanted) if t not in table]
        if missing:
            table.update(zip(missing, self.compute_levels(missing), strict=True))
        return [table[t] for t in wanted]

    def level(self, t: float) -> Level:
        """The level at time `t`: looked up if tabulated, else computed."""
        found = self.tables.by_time.get(t)
        return found if found is not None else self.compute_levels([t])[0]

    def level_per_sample(self, t: Tensor, x: Tensor) -> Level:
        """The level of each row at its own time `(B,)`: fields of shape `(B, 1, ..., 1)`, in the dtype of `x`.

        Not looked up: an adaptive solver visits a time once.
        """
        return Level(t.to(x).reshape(-1, *([1] * (x.ndim - 1))))


class ReverseSDE(ODE):
    r"""The reverse-time equations of an SDE with a known score.

    $$ dx = \big[f - \tfrac{1 + \eta^2}{2}\,g^2\,\nabla\log p_t\big]\,dt + \eta\,g\,d\bar w $$

    $\eta = 1$ is Anderson's reverse SDE and $\eta = 0$ the probability-flow ODE.

    Args:
        sde: The forward process.
        score: Called as `score(x, t, **cond)` with `t` of shape `(B,)`.
        cond: Keyword arguments handed to every call of the score.

    References:
        Anderson, Reverse-time diffusion equation models, 1982; Song et al., 2021 (equations 6 and 13).
    """

    def __init__(
        self,
        sde: SDE,
        score: Callable[..., Tensor],
        cond: dict[str, object] | None = None,
        counter: Counter | None = None,
        tables: Tables | None = None,
    ) -> None:
        super().__init__(counter, tables)
        self.sde, self.cond = sde, cond or {}
        self._score = score

    def compute_levels(self, times: Sequence[float]) -> list[Level]:
        return [Level(t) for t in times]

    def score(self, x: Tensor, t: Level) -> Tensor:
        r"""$\nabla\log p_t(x)$, shape `(B, *)`; one network evaluation."""
        self.counter.n += 1
        if isinstance(t.t, Tensor):
            times = t.t.reshape(-1).expand(x.shape[0]).to(x.device, x.dtype, copy=True)
        else:
            times = x.new_full((x.shape[0],), t.t)
        return check_answer(self.tables.call(self._score, x, x, times, self.cond), x, "the score")

    def diffusion(self, t: Level) -> Scalar:
        """$g(t)$: a float, or a tensor that broadcasts against the state."""
        return self.sde.diffusion(_as_tensor(t.t))

    def reverse_drift(self, x: Tensor, t: Level, eta: float = 1.0) -> Tensor:
        r"""$f - \tfrac{1 + \eta^2}{2} g^2\nabla\log p_t$, shape `(B, *)`; one network evaluation."""
        time = _as_tensor(t.t)
        g = _as_tensor(self.sde.diffusion(time))
        f = check_answer(self.tables.drift.apart(self.sde.drift, x, x, time, {}), x, "the drift")
        return f - (0.5 * (1 + eta * eta)) * (g * g).to(x) * self.score(x, t)

    def velocity(self, x: Tensor, t: Level) -> Tensor:
        return self.reverse_drift(x, t, 0.0)


class GaussianReverseSDE(ReverseSDE):
    r"""The reverse-time equations of a Gaussian SDE with a denoiser.

    The velocity of the probability flow is $\alpha'\,\mathrm{data} + \sigma'\,\mathrm{noise}$: no division by
    $\alpha$ or $\sigma$.

    Args:
        denoiser: The model; its `sde` is the process.
        cond: Keyword arguments handed to every call of the model.
    """

    sde: GaussianSDE

    def __init__(
        self,
        denoiser: Denoiser,
        cond: dict[str, object] | None = None,
        counter: Counter | None = None,
        tables: Tables | None = None,
    ) -> None:
        super().__init__(denoiser.sde, denoiser.score, cond, counter, tables)
        self.denoiser = denoiser
        self._predict, self._cost, self._careful = denoiser.predict, denoiser.cost, denoiser.careful
        self._vjps, self._spent = denoiser.vjps, None if denoiser.even else denoiser.spent
        self._views: dict[GaussianSDE, GaussianReverseSDE] = {}

    def compute_levels(self, times: Sequence[float]) -> list[Level]:
        return self.denoiser.levels(times)

    def denoise(self, x: Tensor, t: Level) -> Prediction:
        """The prediction at `x`; the only line of the library that calls the model in a solve."""
        passes, vjps = (self._cost, self._vjps) if self._spent is None else self._spent(t)
        self.counter.n += passes
        self.counter.vjps += vjps
        if self._careful:
            return self._predict(x, t, **self.cond)
        return held(self.tables.call.apart(self._predict, x, x, t, self.cond), x)

    def carry(self, x: Tensor, t: Level, s: Level | None) -> Tensor:
        """The state at `s`, or the data for None, by one call of a model that is a flow map."""
        self.counter.n += self._cost
        jump: Any = self.denoiser.jump  # which the solver has looked for

        def carry(x: Tensor, t: Level, **cond: object) -> Tensor:
            there: Tensor = jump(x, t, s, **cond)
            return there

        return check_answer(self.tables.call.apart(carry, x, x, t, self.cond), x, "the flow map")

    def level_per_sample(self, t: Tensor, x: Tensor) -> Level:
        return self.denoiser.sde.level(t, x, check=False)

    def _place(self, t: Tensor) -> Tensor:
        return self.sde.half_log_snr(t)

    def _time(self, place: Tensor) -> Tensor:
        return self.sde.time_of(place.clamp(*self.sde.ends()))

    def prefill_lam(self, lams: Iterable[float]) -> list[Level]:
        """Tabulates the levels at given half log-SNRs in one evaluation and returns them."""
        wanted, table = list(lams), self.tables.by_lam
        missing = [v for v in dict.fromkeys(wanted) if v not in table]
        if missing:
            times = self.sde.time_of(torch.tensor(missing, dtype=torch.float64, device="cpu")).tolist()
            table.update(zip(missing, self.compute_levels(times), strict=True))
        return [table[v] for v in wanted]

    def level_at_lam(self, lam: float) -> Level:
        """The level at half log-SNR `lam`: looked up if tabulated, else computed."""
        found = self.tables.by_lam.get(lam)
        return found if found is not None else self.prefill_lam([lam])[0]

    def score(self, x: Tensor, t: Level) -> Tensor:
        return self.denoise(x, t).combine(0.0, -1 / t.sigma)

    def diffusion(self, t: Level) -> Scalar:
        g2 = t.g2
        if isinstance(g2, float) and g2 == math.inf:
            raise ValueError(
                f"g is infinite at t = {t.t:g} of {self.sde!r}, where alpha = 0: start a stochastic solver at a "
                "smaller time (t_max= of the process, or a grid), or use DDIM(eta), which is regular there"
            )
        return math.sqrt(max(g2, 0.0)) if isinstance(g2, float) else g2.clamp_min(0.0).sqrt()

    def reverse_drift(self, x: Tensor, t: Level, eta: float = 1.0) -> Tensor:
        if eta == 0.0:
            return self.velocity(x, t)
        g = self.diffusion(t)
        return self.denoise(x, t).combine(t.dalpha, t.dsigma + 0.5 * eta * eta * g * g / t.sigma)

    def velocity(self, x: Tensor, t: Level) -> Tensor:
        return self.denoise(x, t).combine(t.dalpha, t.dsigma)

    def on(self, sde: GaussianSDE) -> GaussianReverseSDE:
        """The same equation in the state and time of another Gaussian SDE; evaluations count together."""
        view = self._views.get(sde)
        if view is None:
            if sde not in self.tables.views:
                self.tables.views[sde] = self.denoiser.on(sde), Tables()
            denoiser, tables = self.tables.views[sde]
            view = self._views[sde] = GaussianReverseSDE(denoiser, self.cond, self.counter, tables)
        return view


def _as_tensor(t: float | Tensor) -> Tensor:
    """A time as a tensor, in float64 unless it came as one."""
    return t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device="cpu")
