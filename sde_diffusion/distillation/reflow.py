r"""Reflow of rectified flows: a model trained on pairs of noise and the sample that a first model makes of it.

The flow of the second model goes from one to the other on nearly straight lines, which few steps follow. Unlike a flow
map it is an ordinary model; what it loses is what the pairs lack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_like
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.modules import home
from sde_diffusion.distillation.draws import AT_PRIOR
from sde_diffusion.noise.seeds import one_stream
from sde_diffusion.sde.base import GaussianSDE

__all__ = ["Reflow", "reflow_pairs"]


@dataclass(frozen=True)
class Reflow:
    r"""Denoising score matching with the noise that belongs to each row of the data, in place of fresh noise.

    $$ x_t = \alpha x_0 + \sigma\varepsilon, \quad (x_0, \varepsilon)\ \text{a pair of}\ \texttt{reflow\_pairs} $$

    Times and weight are those that suit the model, and a share of the rows is at the prior, where few steps begin: the
    clock of `FlowSDE` jumps there, and drawn times never meet it. On `FlowSDE` the lines are straight for `Euler`; on
    another process they are straight in $x_t/\alpha$ over $\sigma/\alpha$, for `DDIM`. On eight Gaussians, after 2,000
    steps on 20,000 pairs of the exact flow, one step of Euler was .06 of a standard deviation off.

    Raises, when called:
        TypeError: No `Denoiser`, or no `noise`.
        ValueError: Noise of another shape than the data.

    Example:
        >>> pairs = reflow_pairs(SDESampler(sde, model, nfe=20), 50_000, seed=0)
        >>> straight = train(copy.deepcopy(model), pairs, steps=2000, loss=Reflow()).model
        >>> x = SDESampler(sde, straight, solver=Euler(), grid=grids.uniform, nfe=2).sample(64)

    References:
        Liu et al., Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow, 2023.
    """

    def __call__(
        self,
        model: Denoiser,
        x0: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        **cond: Any,
    ) -> Tensor:
        """The loss on one batch, a scalar.

        Args:
            model: The model that is trained.
            x0: Data, shape `(B, *)`.
            noise: The noise of each row, of the same shape.
            generator: The source of the times, on the CPU.
            **cond: Conditions, handed to the model by name.
        """
        if not isinstance(model, Denoiser):
            raise TypeError(f"Reflow trains a Denoiser, such as Network(net, sde, ...), got {type(model).__name__}")
        if noise is None:
            raise TypeError(
                "Reflow trains on pairs, and no noise came: train(model, reflow_pairs(sampler, n), loss=Reflow()), or "
                "rows {'x': x, 'noise': eps}"
            )
        check_like(noise, "noise", x0, "x0")
        objective = model.objective()
        t = objective.times_for(model, len(x0), generator)
        t[: round(AT_PRIOR * len(x0))] = model.sde.t_max
        return objective(model, x0, generator=generator, t=t.to(x0.device), eps=noise, **cond)


class Draws(Protocol):
    """What is asked of a sampler; every `SDESampler` has it."""

    solver: Any

    @property
    def sde(self) -> Any:
        """The process."""

    @property
    def model(self) -> Any:
        """The model."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The event shape, if known."""

    @property
    def span(self) -> tuple[float, float]:
        """The first and the last time."""

    def sample(self, n: int = 1, *, x_T: Tensor | None = None, batch_size: int | None = None, **cond: Any) -> Tensor:
        """Samples, from given states."""


def reflow_pairs(
    sampler: Draws,
    n: int,
    *,
    seed: int | torch.Generator | None = None,
    batch_size: int | None = None,
    **cond: Any,
) -> dict[str, Any]:
    r"""Noise and the samples that a sampler makes of it: data for `train` with the objective `Reflow`.

    Args:
        sampler: An `SDESampler` of a deterministic solver on a Gaussian SDE. Its errors are learnt along.
        n: Number of pairs.
        seed: The source of the noise, one stream for all.
        batch_size: Samples in flight at once.
        **cond: Conditions, with a row for each pair; they come back with them.

    Returns:
        The rows `x` and `noise`, `(n, *)` each, and the conditions: $\varepsilon = (x_T - \alpha x)/\sigma$ at the
        first time, so that $\alpha x + \sigma\varepsilon$ is the state that was started from.

    Raises:
        TypeError: A process that is not Gaussian.
        ValueError: A stochastic solver, whose samples do not follow from the noise; an unknown shape.
    """
    check_count(n, "n")
    sde = sampler.sde
    if not isinstance(sde, GaussianSDE):
        raise TypeError(f"reflow goes by the noise of a Gaussian SDE, got {type(sde).__name__}")
    if sampler.solver.facts.stochastic:
        raise ValueError(
            f"{sampler.solver!r} adds noise on the way, and its samples do not follow from the first: take a "
            "deterministic solver, such as Adams() or Heun()"
        )
    if sampler.shape is None:
        raise ValueError("the event shape is not known: Network(net, sde, shape=(2,)), or SDESampler(..., shape=(2,))")
    dtype, device = home(sampler.model)
    z = torch.randn((n, *sampler.shape), generator=one_stream(seed), dtype=dtype, device="cpu").to(device)
    start = sde.prior(z)
    x = sampler.sample(n, x_T=start, batch_size=batch_size, **cond)
    (at,) = sde.levels([sampler.span[0]])
    return {"x": x, "noise": (start - at.alpha * x) / at.sigma, **cond}
