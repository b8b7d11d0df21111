"""Guidance by a classifier of noisy states, or any other model of what is to be known given a state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_callable, check_flag
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.guidance.classifier_free import SIZES
from sde_diffusion.guidance.extrapolation import check_scale
from sde_diffusion.guidance.limits import Limits
from sde_diffusion.guidance.probes import check_alone, check_slope, draws, with_graph
from sde_diffusion.guidance.reward import shift_of, valued
from sde_diffusion.guidance.twisted import Look, Twisted, leaf
from sde_diffusion.sde.level import Level


class ClassifierGuided(Twisted):
    r"""A model of $p(x_0)\,p(y \mid x_0)^s$, by a classifier that was trained on noisy states.

    $$ \Delta = \frac{\sigma^2}{\alpha}\,s\,\nabla_x\log p_t(y \mid x) $$

    With the exact $p_t(y \mid x_t)$ and $s = 1$ the posterior is exact. A call takes one pass of the model and one,
    with its gradient, of the classifier, which is not counted; the model is not differentiated. A scale of 0 is off.
    Seen through another process, `on`, it acts at the noise levels of its own alone, which the classifier was made for.

    Args:
        model: The model of $p$.
        classifier: Called as `classifier(x, t, **cond)` with a state `(B, *)` and its times `(B,)`, of the model's
            process; answers $\log p_t(y \mid x)$ in nats, `(B,)`, each of its row alone.
        scale: $s \geq 0$.
        names: Conditions that the classifier is given; all others are for the model.
        both: Whether the model is given these as well, since it is conditional itself.
        low: Smallest noise level $\sigma/\alpha$ where it acts.
        high: Largest noise level where it acts.

    Raises:
        TypeError: `model` is no `Denoiser`; a classifier that is no function, or answers something else than a floating
            tensor that can be differentiated.
        ValueError: A scale below 0; a name that the network of the model takes itself; when called, none of the
            conditions, or a classifier that answers another shape or not finite numbers, differs when asked twice,
            mixes rows, or has a derivative that is zero everywhere.

    Example:
        >>> def classifier(x, t, label):
        ...     return net(x, t).log_softmax(1).gather(1, label[:, None])[:, 0]
        >>> SDESampler(sde, ClassifierGuided(model, classifier)).sample(64, label=torch.arange(64) % 10)

    References:
        Dhariwal and Nichol, Diffusion Models Beat GANs on Image Synthesis, 2021; Song et al., 2021 (appendix I).
    """

    def __init__(
        self,
        model: Denoiser,
        classifier: Callable[..., Tensor],
        scale: float = 1.0,
        *,
        names: Sequence[str] = ("label",),
        both: bool = False,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        super().__init__(model)
        check_callable(classifier, "classifier", "a function classifier(x, t, **cond) that answers (B,)")
        self.classifier, self.scale = classifier, check_scale(scale, "scale")
        if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
            raise TypeError(f"names are those of the conditions of the classifier, ('label',), got {names!r}")
        self.names, self.both, self.limits = tuple(names), check_flag(both, "both"), Limits(low, high)
        built = model.built_with()
        taken = [name for name in self.names if built.get(SIZES.get(name, ""))]
        if taken and not both:
            raise ValueError(
                f"condition {taken[0]!r} is one of the classifier and of the network of the model too: both=True gives "
                "it to both, or call that of the classifier otherwise, names=('y',)"
            )
        self.silent, self._looked = not self.scale, 0
        if self.silent:
            self.kind = model.kind  # whose answers they are
        if self.per_sample is not None:
            self.per_sample = tuple(dict.fromkeys((*self.per_sample, *self.names)))

    def acts(self, at: Level) -> bool:
        return not self.silent and self.limits.any(at)

    def handed(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in cond.items() if self.both or name not in self.names}

    def weigh(self, x: Tensor, at: Level, **cond: Any) -> Look:
        keep = torch.is_grad_enabled()
        prior = self.inner.predict(x if self.inner.careful else x.clone(), at, **self.handed(cond))
        with torch.inference_mode(mode=False), torch.enable_grad():
            z = x if keep and x.requires_grad else leaf(x)
            log_twist = self._log_prob(z, at.t, cond)
            if (mask := self.limits.mask(at)) is not None:
                log_twist = torch.where(mask.reshape(-1), log_twist, 0.0)
        found = shift_of(log_twist, z, at, "classifier")
        if min(len(x), 2) > self._looked:
            self._look(x, cond)
        return Look(prior, *found)

    def log_likelihood(self, x0: Tensor, **cond: Any) -> Tensor:
        return self._log_prob(x0, self.sde.t_min, cond)

    def extra_repr(self) -> str:
        names = "" if self.names == ("label",) else f", names={self.names!r}"
        return f"scale={self.scale!r}{names}" + ", both=True" * self.both + self.limits.spelt()

    def _log_prob(self, x: Tensor, t: float | Tensor, cond: Mapping[str, Any]) -> Tensor:
        told = {name: cond[name] for name in self.names if cond.get(name) is not None}
        if not told:
            names = ", ".join(f"{name}=" for name in self.names)
            raise ValueError(f"the classifier was given no condition: give {names}, or sample the model inside")
        times = t.reshape(-1).to(x).expand(len(x)) if isinstance(t, Tensor) else x.new_full((len(x),), t)
        answer = with_graph(lambda x: self.classifier(x, times, **told), x.clone(), "the classifier")
        return self.scale * valued(answer, x, "classifier", "states")

    def _look(self, x: Tensor, cond: Mapping[str, Any]) -> None:
        """Whether the classifier answers each row alone, and has a derivative, once for one row and once for more.

        At a level where noise and data are of one size: at the ends of the process a classifier may well be flat.
        """
        low, high = self.limits.low or 0.0, math.inf if self.limits.high is None else self.limits.high
        level = min(max(self.data_std, low), high)
        (t,) = self.sde.time_of(torch.tensor([-math.log(level)], dtype=torch.float64, device="cpu")).tolist()
        at = self.sde.level(min(max(t, self.sde.t_min), self.sde.t_max), x)

        def answer(z: Tensor) -> Tensor:
            return self._log_prob(z, at.t, cond)

        states = draws(len(x), x[:1]) * (at.alpha**2 * self.data_std**2 + at.sigma**2) ** 0.5
        check_alone(answer, states, "the classifier", split=False)
        check_slope(answer, states, "the classifier")
        self._looked = min(len(x), 2)
