"""Which equation is to be solved?  That of a process and a model, from a draw of a prior: a `Problem`.

The sampler and the likelihood both take a `Problem`; how its equation is solved is no part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_shape
from sde_diffusion.denoiser import predict
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.modules import home, unbound
from sde_diffusion.denoiser.network import Network
from sde_diffusion.noise.sources import NoiseSource, SharedStream, check_noise
from sde_diffusion.sde.base import SDE, GaussianSDE, check_process
from sde_diffusion.sde.prior import Prior, Standard
from sde_diffusion.solvers.equation import GaussianReverseSDE, ReverseSDE
from sde_diffusion.solvers.tables import Tables


@dataclass(frozen=True, eq=False, init=False)
class Problem:
    r"""What is to be solved: the reverse equation of a process with a model, and the law of the states it starts from.

    Args:
        sde: The process.
        model: A `Denoiser` made for `sde`, or a bare function `score(x, t)` with `t` of shape `(B,)`.
        shape: Event shape, without the batch; by default that of the model, None where it knows none.
        prior: What states at the first time are drawn from; by default `Standard()`, the prior of the process.

    Raises:
        TypeError: Not an SDE, a network that did not say what it answers, or a prior that the process cannot have.
        ValueError: A denoiser made for another SDE, or a shape that is not that of the model.

    Example:
        >>> sampler = SDESampler(Problem(sde, model, prior=Matched(mean, variance)))
    """

    sde: SDE
    model: Denoiser | Callable[..., Tensor]
    shape: tuple[int, ...] | None
    prior: Prior
    _tables: Tables = field(init=False, repr=False)  # levels that all solves share

    def __init__(
        self,
        sde: SDE,
        model: Denoiser | Callable[..., Tensor],
        shape: Sequence[int] | None = None,
        prior: Prior = Standard(),
    ) -> None:
        given: object = sde
        if not isinstance(given, SDE):
            raise TypeError(f"sde must be an SDE such as VPSDE(), got {given!r}")
        check_process(sde)
        model = as_model(sde, model)
        known = model.shape if isinstance(model, Denoiser) else None
        found = known if shape is None else check_shape(shape)
        if known is not None and found != known:
            raise ValueError(f"shape={found}, but the model works on {known}")
        law: object = prior
        if not isinstance(law, Prior):
            raise TypeError(f"prior must be a Prior such as Standard() or Matched(mean, variance), got {law!r}")
        prior.check(sde, found)
        for name, value in (("sde", sde), ("model", model), ("shape", found), ("prior", prior), ("_tables", Tables())):
            object.__setattr__(self, name, value)

    @property
    def cost(self) -> int:
        """Network passes per evaluation of the model."""
        return self.model.cost if isinstance(self.model, Denoiser) else 1

    @property
    def price(self) -> int:
        """What an evaluation takes of a budget: its passes and its products with the Jacobian."""
        return self.model.cost + self.model.vjps if isinstance(self.model, Denoiser) else 1

    @property
    def data_std(self) -> float:
        """$c$, the standard deviation of the data as far as the model knows it, 1 by default."""
        return self.model.data_std if isinstance(self.model, Denoiser) else 1.0

    def equation(self, cond: dict[str, Any] | None = None) -> ReverseSDE:
        """A fresh equation of the model under the conditions: what a solver, or `integrate`, works on."""
        if isinstance(self.model, Denoiser):
            return GaussianReverseSDE(self.model, cond, tables=self._tables)
        return ReverseSDE(self.sde, self.model, cond, tables=self._tables)

    def source(
        self,
        n: int,
        seed: list[int] | torch.Generator,
        noise: Callable[..., NoiseSource],
        span: tuple[float, float],
        like: Tensor | None = None,
    ) -> NoiseSource:
        """The random draws of one solve.

        Args:
            n: Samples.
            seed: One seed per sample, or the shared stream.
            noise: What makes a source of seeds, such as `noise.Streams`.
            span: First and last time of the solve.
            like: The states of the solve if they are given, which have the shape, dtype and device; otherwise these
                are the event shape of the problem, and what the model computes in.

        Raises:
            TypeError: `noise` makes no source.
            ValueError: The event shape is not known, or `noise` needs one seed per sample.
        """
        if like is not None:
            shape, dtype, device = tuple(like.shape[1:]), like.dtype, like.device
        elif self.shape is not None:
            shape, (dtype, device) = self.shape, home(self.model)
        else:
            raise ValueError(
                "the event shape is not known: give it to SDESampler(..., shape=(3, 32, 32)), "
                "or to the model, Network(..., shape=(3, 32, 32))"
            )
        check_noise(noise, seed)
        if not isinstance(seed, list):
            return SharedStream(seed, n, shape, dtype, device)
        source = noise(seed, shape, dtype, device, span)
        if not isinstance(source, NoiseSource):
            raise TypeError(f"noise made {type(source).__name__} of the seeds, wanted a NoiseSource")
        return source

    def start(self, z: Tensor, t: float) -> Tensor:
        r"""Draws of the prior at time `t`, shape `(B, *)`, made of draws `z` of $\mathcal N(0, I)$."""
        return self.prior.draw(z, self.sde, t)

    def log_prior(self, x: Tensor, t: float) -> Tensor:
        """Log-density of the prior at time `t` at the states `x`, `(B, *)`, in nats, shape `(B,)`."""
        return self.prior.log_prob(x, self.sde, t)


def as_model(sde: SDE, score: Denoiser | Callable[..., Tensor]) -> Denoiser | Callable[..., Tensor]:
    """The denoiser behind the `score` argument, or the bare score function of a general SDE."""
    if not isinstance(sde, GaussianSDE):
        if isinstance(score, Denoiser):
            raise TypeError(f"a Denoiser works on a GaussianSDE; for {type(sde).__name__} give a function score(x, t)")
        return _callable(score)
    score = unbound(score)
    if isinstance(score, MethodType) and isinstance(score.__self__, Denoiser) and score.__name__ == "score":
        score = score.__self__  # who knows more than its score
    if isinstance(score, Denoiser):
        if score.sde != sde:
            raise ValueError(
                f"the denoiser was made for {score.sde!r}, not for {sde!r}: hand over model.on(sde), "
                "which asks the same network at the same log-SNR"
            )
        return score
    raw = unbound(score.func) if isinstance(score, partial) else score
    if isinstance(raw, nn.Module):
        name = type(raw).__name__
        raise TypeError(
            f"{name} is a network that is no Denoiser, and may answer the noise, the data or a velocity: say which, "
            "Network(net, sde, predict.noise), with predict.data, velocity, v, edm or, if it is the score indeed, "
            "predict.score"
        )
    return Network(_callable(score), sde, predict.score)


def _callable(score: Any) -> Callable[..., Tensor]:
    if not callable(score):
        raise TypeError(f"score must be a Denoiser or a function score(x, t), got {score!r}")
    return cast("Callable[..., Tensor]", score)
