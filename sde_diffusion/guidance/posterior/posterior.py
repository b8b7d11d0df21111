r"""The posterior of data given a measurement, $p(x_0 \mid y) \propto p(x_0)\,\mathcal N(y; A(x_0), \sigma_y^2)$."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import ARGUMENTS
from sde_diffusion.denoiser.modules import home
from sde_diffusion.denoiser.prediction import held
from sde_diffusion.guidance.posterior.algebra import wide
from sde_diffusion.guidance.posterior.likelihood import GaussianLikelihood
from sde_diffusion.guidance.posterior.measurement import Measurement
from sde_diffusion.guidance.posterior.rules import Moments, Rule
from sde_diffusion.guidance.posterior.view import Spectrum, View, spectrum
from sde_diffusion.guidance.twisted import Look, Twisted, graph_of, without_graph
from sde_diffusion.sde.level import Level


class Posterior(Twisted):
    r"""A model of data given what was measured of them, for every solver and with a likelihood.

    $$ p(x_0 \mid y) \propto p(x_0)\,\mathcal N\big(y;\, A(x_0),\, \sigma_y^2\big) $$

    What was measured is a condition: `y` of the shape of one measurement for all samples, or with a row for each. The
    rule says what is put in the place of $p(y \mid x_t)$: the samples are as far from the posterior as that is wrong,
    however many steps, and 20 evaluations show it. Noise in the steps makes up for some of it, so that the default
    solver has noise; to encode, or for a density of the samples, name one without, such as `Heun()`. A
    `ParticleSampler` corrects it. On Gaussian data `Moments`, the default, is exact.

    With nothing measured, a mask that keeps nothing, the model inside is asked and nothing else.

    Args:
        model: The model of $p(x_0)$, which knows its event shape.
        measurement: $A$: `Matrix`, `Mask`, `Blur`, `Downsample`, `Operator` or `Nonlinear`.
        noise: $\sigma_y > 0$, a float or one for each coordinate of the measurement, in units of `y`.
        rule: `Moments`, `PseudoInverse`, `JacobianFree` or `DPS`.
        name: What the condition is called.

    Raises:
        TypeError: Not a `Denoiser`, a measurement or a rule; a measurement without a graph, or of another dtype.
        ValueError: Noise that is not positive, a name that is taken, a model without an event shape, a measurement that
            is not linear as it says, or too large for the rule.

    Example:
        >>> model = Posterior(prior, Matrix(a), noise=0.1)
        >>> x = SDESampler(sde, model).sample(64, seed=0, y=y)
    """

    of_data = True

    def __init__(
        self,
        model: Denoiser,
        measurement: Measurement,
        noise: float | Tensor,
        rule: Rule = Moments(),
        *,
        name: str = "y",
    ) -> None:
        super().__init__(model)
        given: object = rule
        if not isinstance(given, Rule):
            raise TypeError(f"rule must be Moments(), PseudoInverse(), JacobianFree() or DPS(), got {given!r}")
        like = like_of(model, type(self).__name__)
        self.likelihood = GaussianLikelihood(measurement, noise, like)
        if why := rule.too_large(self.likelihood):
            raise ValueError(why)
        self.rule, self.name = rule, _free(name, model)
        self.silent = not self.likelihood.size
        if self.silent:
            self.kind = model.kind  # whose answers they are
            return
        self.noise_from = max(rule.noise_from, model.noise_from or 0)
        self.vjps = model.vjps + model.cost * rule.products(self.likelihood.size)
        self.twistless = rule.twistless(self.likelihood)
        found = spectrum(self.likelihood, like) if rule.isotropic else None
        for part in ("values", "vectors"):
            tensor: Tensor | None = getattr(found, part, None)
            self.likelihood.register_buffer(part, None if tensor is None else tensor.to(like), persistent=False)

    @property
    def measurement(self) -> Measurement:
        """What is measured."""
        return self.likelihood.measurement

    def weigh(self, x: Tensor, at: Level, **cond: Any) -> Look:
        y = self._measured(cond, x)
        given = self.handed(cond)
        if self.rule.graph:
            z, prior = graph_of(self.inner, x, at, given)
        else:
            z, prior = x, held(self.inner.predict(x if self.inner.careful else x.clone(), at, **given), x)
        values: Any = self.likelihood.values
        vectors: Any = self.likelihood.vectors
        known = None if values is None else Spectrum(wide(values), None if vectors is None else wide(vectors))
        r = self.likelihood.residual(y, prior.data)
        shift, twist = self.rule.weigh(View(z, prior, at, self.data_std, self.likelihood, r, known))
        if twist is None:
            twist = torch.full_like(r[:, 0], torch.nan)  # which `look` does not hand out
        twist = twist - self.likelihood.log_scale().to(twist)
        return Look(without_graph(prior), shift.reshape(x.shape), twist.to(x))

    def log_likelihood(self, x0: Tensor, **cond: Any) -> Tensor:
        return self.likelihood.log_prob(self._measured(cond, x0), x0)

    def handed(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in cond.items() if name != self.name}

    def mark(self, cond: Mapping[str, Any], n: int) -> Mapping[str, Any]:
        marked = self.inner.mark(self.handed(cond), n)
        if self.name not in cond:
            return marked
        return {**marked, self.name: self.likelihood.marked(cond[self.name], self.name, n)}

    def _measured(self, cond: Mapping[str, Any], x: Tensor) -> Tensor:
        """What was measured, shape `(1, d)` or `(B, d)`."""
        given = cond.get(self.name)
        if given is None:
            raise ValueError(
                f"Posterior needs what was measured: {self.name}= of shape {self.likelihood.shape} for all samples, or "
                f"{('n', *self.likelihood.shape)} with a row for each, as in sample(n, {self.name}=...)"
            )
        return self.likelihood.flat(torch.as_tensor(given, device=x.device), self.name, x)

    def __repr__(self) -> str:
        std = self.likelihood.std
        noise = f"{float(std):g}" if std.numel() == 1 else f"tensor of {tuple(self.likelihood.shape)}"
        name = "" if self.name == "y" else f", name={self.name!r}"
        return f"Posterior(model, {self.measurement!r}, noise={noise}, rule={self.rule!r}{name})"


def like_of(model: Denoiser, who: str) -> Tensor:
    """One sample of zeros, in the dtype and on the device of a model; `ValueError` if it knows no event shape."""
    if model.shape is None:
        raise ValueError(
            f"{who} needs a model that knows its event shape: give it to the model, Network(..., shape=(3, 32, 32))"
        )
    dtype, device = home(model)
    return torch.zeros(1, *model.shape, dtype=dtype, device=device)


def _free(name: object, model: Denoiser) -> str:
    """Returns the name of a condition if the model has none that is called so."""
    if not isinstance(name, str) or not name.isidentifier() or name in ARGUMENTS:
        raise ValueError(f"name must be that of a condition, such as 'y', and of no argument of a call, got {name!r}")
    part: Any = model
    while part is not None:
        if getattr(part, "name", None) == name or name in (part.per_sample or ()) or name in _arguments(part):
            raise ValueError(
                f"{type(part).__name__} inside has a condition {name!r} of its own: call the measurement otherwise, "
                f"Posterior(..., name={name + '_measured'!r})"
            )
        part = getattr(part, "inner", None)
    return name


def _arguments(model: Any) -> tuple[str, ...]:
    """The names of the conditions that a network takes."""
    net: Any = getattr(model, "net", None)
    try:
        found = list(signature(getattr(net, "forward", net)).parameters.values())[2:]
    except (TypeError, ValueError):
        return ()
    return tuple(p.name for p in found if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY))
