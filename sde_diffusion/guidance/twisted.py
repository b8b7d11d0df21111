r"""A model weighed by a likelihood: what it answers is shifted towards states that the likelihood favours.

The law of the data becomes $\pi(x_0) \propto p(x_0)\,\ell(x_0)$: a posterior, or a law tilted by a reward. Its exact
score at time $t$ is that of the model and $\nabla_{x_t}\log \mathrm E[\ell(x_0) \mid x_t]$. A rule puts a twist
$\psi_t(x_t)$ in the place of that expectation, and shifts the prediction of the data by

$$ \Delta = \frac{\sigma^2}{\alpha}\,\nabla_{x_t}\log\psi_t(x_t), \quad
   \mathrm{data}' = \mathrm{data} + \Delta, \quad \mathrm{noise}' = \mathrm{noise} - \frac{\alpha}{\sigma}\,\Delta $$

Where $\alpha = 0$ the shift is infinity times nothing. It is finite in the limit, so that from a noise level of
`FROZEN` on it is taken there, at the same state in units of the noise.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion.denoiser.base import Denoiser, Wrapper
from sde_diffusion.denoiser.prediction import Prediction, held
from sde_diffusion.guidance.probes import asking
from sde_diffusion.guidance.product import asked
from sde_diffusion.sde.level import Level

FROZEN = 1000.0
"""Noise level, in units of the std of the data, from which on the shift is taken at that level."""


class Look(NamedTuple):
    r"""What is known of one state.

    Attributes:
        prior: The prediction of the model inside.
        shift: $\Delta$, what the data prediction is shifted by, shape `(B, *)`.
        log_twist: $\log\psi_t(x_t)$ in nats, shape `(B,)`.
    """

    prior: Prediction
    shift: Tensor
    log_twist: Tensor


class Twisted(Wrapper):
    r"""A denoiser of $\pi(x_0) \propto p(x_0)\,\ell(x_0)$, by a twist. A subclass writes `weigh` and `log_likelihood`.

    It is a model like any other, for every solver; its error is that of the twist, whatever the steps. A
    `ParticleSampler` corrects it to the exact law.

    Args:
        inner: The model of $p$.

    Attributes:
        silent: Whether the likelihood says nothing: the model inside is asked, and nothing else.
        twistless: Why the rule has no twist, so that `look` is refused; None where it has one.
    """

    careful = True
    trained_inside = True
    silent: bool = False
    twistless: str | None = None

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.kind = None  # what is answered is no longer what the network answers
        self._top: tuple[object, Level] | None = None

    @abstractmethod
    def weigh(self, x: Tensor, at: Level, **cond: Any) -> Look:
        """The model's prediction at one state, the shift and the twist, at a level where alpha is not 0."""

    @abstractmethod
    def log_likelihood(self, x0: Tensor, **cond: Any) -> Tensor:
        r"""$\log\ell(x_0)$ of data, in nats, shape `(B,)`."""

    def handed(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """The conditions of the model inside; by default all."""
        return dict(cond)

    def acts(self, at: Level) -> bool:
        """Whether the likelihood counts at a level, or at one of levels per sample; elsewhere the model stays alone."""
        return not self.silent

    def look(self, x: Tensor, at: Level, **cond: Any) -> Look:
        """The model's prediction at one state, the shift and the twist, at any level.

        Raises:
            TypeError: A rule that has no twist.
        """
        if self.twistless:
            raise TypeError(self.twistless)
        if not self.acts(at):
            prior = asked(self.inner, x, at, self.handed(cond))
            return Look(prior, torch.zeros_like(x), x.new_zeros(len(x)))
        return self.weigh(*self._seen(x, at), **cond)

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        if not self.acts(at):
            return self.inner.predict(x, at, **self.handed(cond))
        seen, level = self._seen(x, at)
        look = self.weigh(seen, level, **cond)
        prior, shift = look.prior, look.shift
        if level is at:
            return Prediction(lambda: prior.data + shift, lambda: prior.noise - at.alpha / at.sigma * shift)
        data = prior.data + shift
        return Prediction(lambda: data, lambda: (x - at.alpha * data) / at.sigma)

    def _seen(self, x: Tensor, at: Level) -> tuple[Tensor, Level]:
        """The state and the level that the shift is taken at: those of `FROZEN` where there is more noise than that."""
        most = FROZEN * self.data_std
        if isinstance(at.alpha, Tensor):
            beyond = at.alpha * most < at.sigma
            if not bool(beyond.any()):
                return x, at
            times = torch.where(beyond, self._frozen().t, at.t)
            level = self.sde.level(times.reshape(-1), x, check=False)
            return x * (level.sigma / at.sigma), level
        if at.alpha * most >= at.sigma:
            return x, at
        level = self._frozen()
        return x * (level.sigma / at.sigma), level

    def _frozen(self) -> Level:
        if self._top is None or self._top[0] is not self.sde:
            lam = torch.tensor([-math.log(FROZEN * self.data_std)], dtype=torch.float64, device="cpu")
            self._top = self.sde, self.levels(self.sde.time_of(lam).tolist())[0]
        return self._top[1]


def graph_of(inner: Denoiser, x: Tensor, at: Level, cond: dict[str, Any]) -> tuple[Tensor, Prediction]:
    """A model asked so that its answer can be differentiated in the state, under gradients that are off, too.

    Args:
        inner: The model.
        x: State, shape `(B, *)`.
        at: Its level.
        cond: Conditions.

    Returns:
        The state to differentiate in, and the prediction; both are part of the caller's graph where gradients are on.

    Raises:
        TypeError: No graph leads from the answer to the state, or none can be made where it is asked.
    """
    keep = torch.is_grad_enabled()
    with torch.inference_mode(mode=False), torch.enable_grad():
        z = x if keep and x.requires_grad else leaf(x)
        with asking(type(inner).__name__):
            prior = held(inner.predict(z if inner.careful else z.clone(), at, **cond), z)
        if not prior.data.requires_grad:
            raise TypeError(
                f"no graph leads from what {type(inner).__name__} answers to its state, so that it cannot be "
                "differentiated: leave out torch.no_grad, .detach() and torch.inference_mode in it"
            )
    return z, prior


def leaf(x: Tensor) -> Tensor:
    """The same state as the start of a graph."""
    try:
        return (x.clone() if x.is_inference() else x.detach()).requires_grad_()
    except RuntimeError as error:
        raise TypeError(
            "a rule that differentiates the model has no graph inside of a transform of torch.func, such as forward "
            "mode: take reverse mode, Exact(forward=False), or a rule without a derivative, such as JacobianFree()"
        ) from error


def without_graph(prior: Prediction) -> Prediction:
    """The same prediction, without the graph that `graph_of` made, unless gradients are on."""
    if torch.is_grad_enabled():
        return prior

    def noise() -> Tensor:
        return prior.noise.detach()

    return Prediction(prior.data.detach, noise, mix=prior.mix)
