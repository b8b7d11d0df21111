r"""From one prediction through another and beyond: what guidance of all kinds makes of two predictions.

$c$ is the prediction that is wanted more of, conditional or by the better model, and $u$ the other one. Guided data are
$u + w\,(c - u)$, so that $w = 1$ is off. A rule is one formula for that; whatever data it gives, the noise follows,
$x = \alpha\,\mathrm{data} + \sigma\,\mathrm{noise}$. Each is taken row by row.

What is sampled is no conditional law made sharper, $p(x)\,(p(c \mid x))^w$, whose diffusion has another score: see
`product`. Nor is it another named law; `log_prob` of a guided model is the density of what its own flow samples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_positive, check_real
from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.guidance.limits import Limits
from sde_diffusion.guidance.product import Several
from sde_diffusion.sde.level import Level, Scalar

Scale = float | Callable[[float], float]


class GuidanceRule(ABC):
    r"""What becomes of two predictions. A frozen dataclass; `combine` is its formula.

    Attributes:
        zero_above: Noise level $\sigma/\alpha$ above which the state stays where it is, and no model is asked.
        of_data: Whether `combine` asks nothing of the process but the noise level, see `Wrapper`.
    """

    zero_above: float | None = None
    of_data: bool = False

    @abstractmethod
    def combine(self, c: Prediction, u: Prediction, w: Scalar, x: Tensor, at: Level) -> Prediction:
        """The guided prediction.

        Args:
            c: The prediction that more is wanted of.
            u: The other one.
            w: The scale, a float, or a tensor that broadcasts.
            x: The state, shape `(B, *)`.
            at: Its level, that of the model.
        """


@dataclass(frozen=True)
class Plain(GuidanceRule):
    r"""$u + w\,(c - u)$, of data and noise.

    References:
        Ho and Salimans, Classifier-Free Diffusion Guidance, 2022 (whose $w$ is our $w - 1$).
    """

    of_data = True

    def combine(self, c: Prediction, u: Prediction, w: Scalar, x: Tensor, at: Level) -> Prediction:
        return Prediction(lambda: torch.lerp(u.data, c.data, w), lambda: torch.lerp(u.noise, c.noise, w), mix=c.mix)


@dataclass(frozen=True)
class Rescaled(GuidanceRule):
    r"""Guided data brought back towards the spread of the conditional ones, against overexposure.

    $$ g = u + w\,(c - u), \quad \mathrm{data}' = \phi\,\frac{\mathrm{std}(c)}{\mathrm{std}(g)}\,g + (1 - \phi)\,g $$

    with the standard deviation over the entries of a row. The paper rescales what its network answers, $v$; here it is
    the data, whatever a network answers.

    Args:
        phi: $\phi$, in `[0, 1]`; 0 is plain guidance.

    References:
        Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed, 2024 (3.4).
    """

    phi: float = 0.7
    of_data = True

    def __post_init__(self) -> None:
        if not 0 <= check_real(self.phi, "phi") <= 1:
            raise ValueError(f"phi must lie in [0, 1], got {self.phi!r}")

    def combine(self, c: Prediction, u: Prediction, w: Scalar, x: Tensor, at: Level) -> Prediction:
        g = torch.lerp(u.data, c.data, w)
        wanted, found = (rows(v).std(1, correction=0) for v in (c.data, g))
        factor = torch.where(found > 0, wanted / torch.where(found > 0, found, 1.0), 1.0)
        return _with_data(torch.lerp(g, _over(factor, g) * g, self.phi), c, at)


@dataclass(frozen=True)
class Projected(GuidanceRule):
    r"""Adaptive projected guidance: of the step from $u$ to $c$, what only lengthens $c$ counts for less.

    $$ d = (c - u)\,\min\!\Big(1, \frac{r}{\lVert c - u\rVert}\Big), \quad d_\parallel = \frac{\langle d, c\rangle}
       {\lVert c\rVert^2}\,c, \quad \mathrm{data}' = c + (w - 1)\,(d - d_\parallel + \eta\,d_\parallel) $$

    of the data. The paper adds a momentum, a sum over the steps of a solve, which a model that answers by state and
    level alone cannot have: `Projected` is the paper's method with momentum 0.

    Args:
        eta: $\eta$, the part of $d_\parallel$ that stays; 1 without `r` is plain guidance.
        r: Longest $\lVert c - u\rVert$ of a row, in units of the data; None for no limit.

    References:
        Sadat et al., Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models, 2025.
    """

    eta: float = 0.0
    r: float | None = None
    of_data = True

    def __post_init__(self) -> None:
        if not math.isfinite(check_real(self.eta, "eta")):
            raise ValueError(f"eta must be finite, got {self.eta!r}")
        if self.r is not None:
            check_positive(self.r, "r")

    def combine(self, c: Prediction, u: Prediction, w: Scalar, x: Tensor, at: Level) -> Prediction:
        d = c.data - u.data
        if self.r is not None:
            norm = _norm2(d).sqrt()
            d = d * _over((self.r / torch.where(norm > 0, norm, 1.0)).clamp(max=1.0), d)
        norm2 = _norm2(c.data)
        share = (rows(d) * rows(c.data)).sum(1) / torch.where(norm2 > 0, norm2, 1.0)
        along = _over(share, d) * c.data
        return _with_data(c.data + (w - 1) * (d + (self.eta - 1) * along), c, at)


@dataclass(frozen=True)
class Optimised(GuidanceRule):
    r"""CFG-Zero*: the unconditional velocity is scaled to come closest to the conditional one.

    $$ s^* = \frac{\langle v_c, v_u\rangle}{\lVert v_u\rVert^2}, \quad v' = s^* v_u + w\,(v_c - s^* v_u), \quad
       v = \alpha'\,\mathrm{data} + \sigma'\,\mathrm{noise} $$

    with the velocity of the process that the model was made for; the paper is about flow matching, `FlowSDE`.

    Args:
        zero_above: Noise level $\sigma/\alpha$ above which the velocity is zero, and no model is asked: the "zero-init"
            of the paper, which does so in the first steps. None for nowhere.

    References:
        Fan et al., CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models, 2025.
    """

    zero_above: float | None = None

    def __post_init__(self) -> None:
        if self.zero_above is not None:
            check_positive(self.zero_above, "zero_above")

    def combine(self, c: Prediction, u: Prediction, w: Scalar, x: Tensor, at: Level) -> Prediction:
        v_c, v_u = (p.combine(at.dalpha, at.dsigma) for p in (c, u))
        norm2 = _norm2(v_u)
        s = torch.where(norm2 > 0, (rows(v_c) * rows(v_u)).sum(1) / torch.where(norm2 > 0, norm2, 1.0), 1.0)
        step = (w - 1) * (v_c - _over(s, v_u) * v_u) / (at.alpha * at.dsigma - at.sigma * at.dalpha)
        return Prediction(lambda: c.data - at.sigma * step, lambda: c.noise + at.alpha * step, mix=c.mix)


def check_unguided(model: Denoiser) -> None:
    """Raises `ValueError` for a flow map that was made of a guided model, or what is around one."""
    for part in model.modules():
        if isinstance(part, FlowMap) and part.guidance:
            raise ValueError(
                f"this flow map was made of a guided model, {part.guidance}, and draws guided samples by itself: leave "
                "the guidance out, or distil the model without it"
            )


class Extrapolation(Several):
    """What `Guided` and `AutoGuided` share: a scale, the levels where it acts, and a rule.

    Args:
        inner: The model whose prediction more is wanted of.
        *others: What is asked besides; if nothing is, `inner` is asked twice.
        w: The scale, a float or a function of the noise level.
        limits: The levels where it acts; outside, `inner` is asked alone.
        rule: What is made of both predictions.

    Raises:
        ValueError: A flow map of a guided model, which is guided already.
    """

    def __init__(self, inner: Denoiser, *others: Denoiser, w: Scale, limits: Limits, rule: GuidanceRule) -> None:
        super().__init__(inner, *others)
        given: object = rule
        if not isinstance(given, GuidanceRule):
            raise TypeError(f"rule must be Plain(), Rescaled(), Projected() or Optimised(), got {given!r}")
        self.w: Scale = w if callable(w) else check_scale(w, "w")
        self.limits, self.rule, self.of_data = limits, rule, rule.of_data
        self._constant = isinstance(self.w, float) and limits.none and rule.zero_above is None
        self._off = self._constant and self.w == 1.0
        if not self._off:
            check_unguided(inner)
        self.even = self.even and self._constant
        if self._off:
            self.cost, self.vjps = inner.cost, inner.vjps
        elif not others:
            self.cost, self.vjps = 2 * inner.cost, 2 * inner.vjps

    @property
    def powers(self) -> Sequence[float]:
        w = self.w
        if not self._constant or type(self.rule) is not Plain or not isinstance(w, float):
            raise ValueError(
                f"{type(self).__name__} is a product of powers, (w, 1 - w), where w is one number, without low and "
                f"high, and by rule=Plain(); got {self.extra_repr()}"
            )
        return w, 1 - w

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        still = self._still(at)
        if still is True:
            return at_rest(x, at)
        w = self.strength(at)
        if isinstance(w, float) and w == 1.0:
            found = self.inner.predict(x, self.levels_of(at)[0], **cond)
        else:
            c, u = self.parts(x, at, **cond)
            found = self.rule.combine(c, u, w, x, at)
            if isinstance(w, Tensor):
                found = chosen(w == 1, c, found)
        return found if still is False else chosen(still, at_rest(x, at), found)

    def acts(self) -> bool:
        """Whether anything is changed: not by a scale of 1."""
        return not self._off

    def strength(self, at: Level) -> Scalar:
        """The scale at a level: a float, or of levels per sample that differ in it a tensor of their shape."""
        if self._constant and isinstance(self.w, float):
            return self.w
        ratio = at.ratio
        if not isinstance(ratio, Tensor):
            return self._scale(ratio)
        values = [self._scale(level) for level in ratio.flatten().tolist()]
        if len(set(values)) == 1:
            return values[0]
        return torch.tensor(values, dtype=ratio.dtype, device=ratio.device).reshape(ratio.shape)

    def spent(self, at: Level) -> tuple[int, int]:
        if self._still(at) is True:
            return 0, 0
        w, (first, *_) = self.strength(at), self.levels_of(at)
        if isinstance(w, float) and w == 1.0:
            return self.inner.spent(first)
        if len(self.others):
            return super().spent(at)
        passes, vjps = self.inner.spent(first)
        return 2 * passes, 2 * vjps

    def extra_repr(self) -> str:
        rule = "" if self.rule == Plain() else f", rule={self.rule!r}"
        return f"w={self.w!r}{self.limits.spelt()}{rule}"

    def _scale(self, ratio: float) -> float:
        if not self.limits.hold(ratio):
            return 1.0
        return self.w if isinstance(self.w, float) else check_scale(self.w(ratio), f"w({ratio:g})")

    def _still(self, at: Level) -> bool | Tensor:
        """Whether the state stays where it is, a mask for levels per sample that differ in it."""
        most = self.rule.zero_above
        if most is None:
            return False
        above = at.ratio > most
        if isinstance(above, bool):
            return above
        return bool(above.all()) if bool(above.all()) or not bool(above.any()) else above


def check_scale(value: object, name: str) -> float:
    """Returns a scale of guidance as a float, if it is a finite number of at least 0."""
    number = float(check_real(value, name))
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} is a scale and must be finite and at least 0, with 1 for none, got {value!r}")
    return number


def chosen(mask: Tensor, a: Prediction, b: Prediction) -> Prediction:
    """One prediction where a mask is true, and another elsewhere."""
    return Prediction(lambda: torch.where(mask, a.data, b.data), lambda: torch.where(mask, a.noise, b.noise), mix=b.mix)


def at_rest(x: Tensor, at: Level) -> Prediction:
    r"""The prediction whose velocity $\alpha'\,\mathrm{data} + \sigma'\,\mathrm{noise}$ is zero."""
    d = at.alpha * at.dsigma - at.sigma * at.dalpha
    return Prediction(lambda: at.dsigma / d * x, lambda: -at.dalpha / d * x)


def _with_data(data: Tensor, c: Prediction, at: Level) -> Prediction:
    """The prediction of these data, by the noise of another one, so that nothing cancels where there is little."""
    return Prediction(lambda: data, lambda: c.noise - at.alpha / at.sigma * (data - c.data), mix=c.mix)


def _over(values: Tensor, like: Tensor) -> Tensor:
    """Values `(B,)` that broadcast against a state."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _norm2(value: Tensor) -> Tensor:
    return rows(value).square().sum(1)
