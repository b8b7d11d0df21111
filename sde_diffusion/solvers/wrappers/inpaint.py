r"""Inpainting by replacement: known entries are put in after each step, at the noise of that step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_finite
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Interval, Solver, check_inner
from sde_diffusion.solvers.checks import check_falling
from sde_diffusion.solvers.equation import GaussianReverseSDE
from sde_diffusion.solvers.wrappers.base import nesting, renoised


@dataclass(frozen=True, eq=False)
class Inpaint(Solver[GaussianReverseSDE, object]):
    r"""Samples that agree with known entries of the data, by replacement, around any solver that takes fixed steps.

    $$ x_s \leftarrow mask\,(\alpha_s\,known + \sigma_s z) + (1 - mask)\,x_s $$

    after each step, and the known entries themselves at the end. With `passes > 1`, each step is taken that many times,
    with noise added from $s$ back to $t$ in between (RePaint), at as many times the cost.

    For exact data, and biased: the unknown entries never see more of the known ones than their noisy values, and no
    number of steps mends it. On half digits the total variation to the posterior was 0.68 by replacement and 0.36 by
    RePaint with 10 passes, 0.77 by `Posterior` with `Moments` and 0.06 by particles, at noise 0.5 in the data
    (`benchmarks/posterior.py`): it is quick, and no posterior. It is not in the list of solvers, as it does not
    sample the law of the model.

    `known` is one for all samples, since a solver knows nothing of which sample it works on: for a row for each, take
    `Posterior(model, Mask(mask), noise)`, or draw them one by one.

    Args:
        inner: The solver, such as `DDIM(1.0)`; its history goes on over a replacement and starts afresh with a pass.
        known: The data, of the event shape, of which the entries under the mask count.
        mask: True where an entry is known, of the event shape.
        passes: Times each step is taken.

    Raises:
        TypeError: Not a solver, not a tensor of floats, or a mask that holds no truth values.
        ValueError: Shapes that differ, known entries that are not finite, `passes < 1`; a step up in time, or a pass
            from a level with no data left.

    References:
        Song et al., Score-Based Generative Modeling through SDEs, 2021 (Appendix I); Lugmayr et al., RePaint:
        Inpainting Using Denoising Diffusion Probabilistic Models, 2022.
    """

    inner: Solver
    known: Tensor
    mask: Tensor
    passes: int = 1

    def __post_init__(self) -> None:
        check_inner(self.inner, "Inpaint", hands_on=True)
        known: object = self.known
        mask: object = self.mask
        if not isinstance(known, Tensor) or not known.is_floating_point():
            found = known.dtype if isinstance(known, Tensor) else type(known).__name__
            raise TypeError(f"known must be a tensor of floats of the event shape, got {found}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a tensor of truth values of the event shape, got {found}: mask > 0 is one")
        if known.shape != mask.shape:
            raise ValueError(
                f"known has shape {tuple(known.shape)} and mask {tuple(mask.shape)}, wanted the event shape of both: "
                "they are one for all samples; a row for each goes to Posterior(model, Mask(mask), noise)"
            )
        check_finite(known[mask], "known, under the mask,")
        check_count(self.passes, "passes")

    @property
    def facts(self) -> Facts:
        inner = self.inner.facts
        return replace(
            inner,
            needs=GaussianReverseSDE,
            order=0,
            evaluations=None if inner.evaluations is None else self.passes * inner.evaluations,
            stochastic=True,
            fitted=True,
        )

    def prepare(self, eq: GaussianReverseSDE, intervals: Sequence[Interval]) -> None:
        self.inner.prepare(eq, intervals)

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: object, noise: NoiseSource
    ) -> tuple[Tensor, object]:
        check_falling(s.t - t.t)
        if self.passes > 1 and t.lam == -math.inf:
            raise ValueError(
                f"Inpaint cannot go back up to t = {t.t:g}, where alpha = 0: start a little below, or passes=1"
            )
        for k in range(self.passes):
            own, up = (noise.fork(nesting(self), k, part) for part in (0, 1))
            if k:
                x, state = renoised(x, s, t, up(t.t, s.t)), None
            x, state = self.inner.step(eq, x, t, s, state, noise if not k else noise.fork(nesting(self), k, 2))
            x = self._put(x, s.alpha, s.sigma, own(s.t, s.t))
        return x, state

    def finish(self, eq: GaussianReverseSDE, x: Tensor, t: Level, state: object) -> Tensor:
        return self._put(self.inner.finish(eq, x, t, state), 1.0, 0.0, None)

    def _put(self, x: Tensor, alpha: float, sigma: float, z: Tensor | None) -> Tensor:
        """The state with the known entries at one noise level."""
        if x.shape[1:] != self.mask.shape:
            raise ValueError(
                f"known and mask have shape {tuple(self.mask.shape)}, wanted the event shape {tuple(x.shape[1:])}"
            )
        known = alpha * torch.where(self.mask, self.known, 0.0).to(x)
        return torch.where(self.mask.to(x.device), known if z is None else torch.add(known, z, alpha=sigma), x)
