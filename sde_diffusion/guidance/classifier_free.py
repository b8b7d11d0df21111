"""Classifier-free guidance: away from what a model answers without a condition, and how it is told that there is none.

Our own networks know: no label is the null label, no context and no image are learnt vectors, tokens that are all NaN
are none, and so is an empty caption. Of another network it is
said, by the value that it was trained with in their place, or by a model of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion._checks import check_flag
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.guidance.extrapolation import Extrapolation, GuidanceRule, Plain, Scale
from sde_diffusion.guidance.limits import Limits
from sde_diffusion.guidance.product import asked
from sde_diffusion.sde.level import Level

SIZES = {"label": "classes", "context": "context", "image": "image", "tokens": "tokens"}
"""The conditions of our networks, each with the argument of the network that gives it."""


class Guided(Extrapolation):
    r"""Classifier-free guidance: $\mathrm{data} = u + w\,(c - u)$, with the condition and without.

    $w = 1$ is off: the model alone, bit for bit, one pass a call. Otherwise two, in one batched call where every
    condition says which rows it has, else in two; outside of `low` to `high` one. What is sampled is no tilted law, see
    `extrapolation`; a `ParticleSampler` makes it $p(x)^{1 - w}\,p(x \mid c)^w$. `log_prob` is that of the guided flow.
    A loss is that of the model.

    Args:
        model: The model, trained with its condition left out at times.
        w: The scale, $\geq 0$, or a function of the noise level $\sigma/\alpha$, a float, that gives one.
        low: Smallest noise level $\sigma/\alpha$ to guide at.
        high: Largest noise level to guide at.
        rule: `Plain()`, `Rescaled(phi)`, `Projected(eta, r)` or `Optimised(zero_above)`.
        null: What stands for no condition, `{"label": 10}`: by name the value of one sample, or None to leave it out. A
            condition that is not named is given to both. By default what our networks were trained to do without.
        unconditional: A model of its own for what is not told the condition; it gets those that `null` does not name,
            `{"label": None}`, by default none.
        batched: Whether both answers may come of one call with twice the rows.

    Raises:
        TypeError: No `Denoiser`, or arguments of another kind.
        ValueError: A scale below 0; a model that has no unconditional branch, or does not say what it takes for none;
            when called, no condition.

    Example:
        >>> SDESampler(sde, Guided(model, 2.0, high=5.0)).sample(64, label=torch.arange(64) % 10)

    References:
        Ho and Salimans, Classifier-Free Diffusion Guidance, 2022; Kynkaanniemi et al., 2024 (the interval).
    """

    def __init__(
        self,
        model: Denoiser,
        w: Scale,
        *,
        low: float | None = None,
        high: float | None = None,
        rule: GuidanceRule = Plain(),
        null: Mapping[str, Any] | None = None,
        unconditional: Denoiser | None = None,
        batched: bool = True,
    ) -> None:
        others = () if unconditional is None else (unconditional,)
        super().__init__(model, *others, w=w, limits=Limits(low, high), rule=rule)
        self.batched = check_flag(batched, "batched")
        given: object = null
        if given is not None and not (isinstance(given, Mapping) and all(isinstance(name, str) for name in given)):
            raise TypeError(f"null is a mapping of conditions by name, such as {{'label': 10}}, got {null!r}")
        if null is not None and not null:
            raise ValueError("null names no condition, and there is nothing to guide by: null={'label': 10}")
        if unconditional is not None and any(value is not None for value in (null or {}).values()):
            raise ValueError(
                "null and unconditional are two ways to leave a condition out: with a model for it, null can only name "
                "the conditions that this one does not get, null={'label': None}"
            )
        if null is None and unconditional is None and not self._off:
            null = null_of(model)
        self.null = None if null is None else dict(null)

    def parts(self, x: Tensor, at: Level, **cond: Any) -> tuple[Prediction, ...]:
        """The predictions with the condition and without it, at one state, shape `(B, *)`, and level."""
        null = dict.fromkeys(cond) if self.null is None else _by_tokens(self.inner, self.null, cond)
        if all(cond.get(name) is None for name in null):
            names = ", ".join(f"{name}=" for name in null) or "label="
            raise ValueError(f"Guided was given no condition to guide by: give {names}, or sample the model inside")
        first, *rest = self.levels_of(at)
        kept = {name: value for name, value in cond.items() if name not in null}
        if rest:
            (other,) = self.models[1:]
            return asked(self.inner, x, first, cond), asked(other, x, rest[0], kept)
        both = _stacked(self.inner, cond, null, len(x)) if self.batched else None
        if both is not None:
            return _halves(asked(self.inner, torch.cat([x, x]), _twice(first), both), len(x))
        told = {name: _instead(cond.get(name), value, len(x)) for name, value in null.items() if value is not None}
        return asked(self.inner, x, first, cond), asked(self.inner, x, first, kept | told)

    def extra_repr(self) -> str:
        null = "" if self.null is None or self.null == _found(self.inner) else f", null={self.null!r}"
        return super().extra_repr() + null + ", batched=False" * (not self.batched)


def null_of(model: Denoiser) -> dict[str, Any]:
    """What stands for no condition in a network of ours, of those conditions that it was trained to do without.

    Args:
        model: The model, by what its network was built with.

    Raises:
        ValueError: The network takes no condition, or was never trained without; or it is another's.
    """
    built = model.built_with()
    has = [name for name, size in SIZES.items() if built.get(size)]
    found = _found(model)
    if found:
        return found
    if has:
        drops = ", ".join(f"{name}_drop=0" for name in has)
        raise ValueError(
            f"the model has no unconditional branch: its network was built with {drops}. Train one with "
            f"{has[0]}_drop=0.1, or give a model that was trained without a condition, Guided(..., unconditional=model)"
        )
    if any(size in built for size in SIZES.values()):
        raise ValueError(
            "the model takes no condition that it could be guided by: its network was built with classes=0 and "
            "context=0. Train one with classes=K, or give null= for a condition of a wrapper"
        )
    raise ValueError(
        "the network does not say what it takes for no condition: give the value that it was trained with in its "
        "place, Guided(..., null={'label': 10}), None for leaving it out, or a model of its own, unconditional=model"
    )


def _found(model: Denoiser) -> dict[str, Any]:
    built: Mapping[str, Any] = model.built_with()
    found: dict[str, Any] = {}
    for name, size in SIZES.items():
        count = built.get(size)
        if count and built.get(f"{name}_drop"):
            if name == "tokens":  # NaN is none; of a network that reads captions, a text without words
                found |= {"caption": ""} if built.get("words") else {name: math.nan}
                continue
            found[name] = count if name == "label" else None
        elif count and name == "context" and built.get("entry_drop"):
            found[name] = math.nan  # no entry is known, which it has learnt
    return found


def _by_tokens(model: Denoiser, null: Mapping[str, Any], cond: Mapping[str, Any]) -> Mapping[str, Any]:
    """What stands for no condition, where the tokens of a caption are given in place of the caption."""
    if "caption" not in null or cond.get("caption") is not None or cond.get("tokens") is None:
        return null
    if "tokens" in null or not model.built_with().get("words"):
        return null
    if null["caption"] == "":
        return {name: value for name, value in null.items() if name != "caption"} | {"tokens": math.nan}
    return {**null, "tokens": None}  # a caption of its own in place of these


def _stacked(model: Denoiser, cond: dict[str, Any], null: Mapping[str, Any], n: int) -> dict[str, Any] | None:
    """The conditions of `n` samples and, behind them, of the same without; None where it cannot be told how."""
    found: dict[str, Any] = {}
    for name, value in null.items():
        if cond.get(name) is None:
            continue
        both = None if value is None else _both(cond[name], value, n)
        if both is None:
            return None
        found[name] = both
    kept = Conditions.of(model, {name: v for name, v in cond.items() if name not in null}, n)
    return {**kept.stacked(2), **found} if kept.clear else None


def _both(value: Any, null: Any, n: int) -> Tensor | list[str] | None:
    """The rows of a condition, and behind them as many of what stands for none; None where they are no rows."""
    if isinstance(null, str):
        return _both_texts(value, null, n)
    try:
        given = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
        none = torch.as_tensor(null, dtype=given.dtype, device=given.device)
    except (TypeError, ValueError, RuntimeError):
        return None
    if given.ndim == 0 or (none.ndim and given.shape == none.shape):  # one for all
        given = given.expand(n, *given.shape)
    if len(given) != n or (none.ndim and given.shape[1:] != none.shape):
        return None
    return torch.cat([given, none.expand(given.shape)])


def _both_texts(value: Any, null: str, n: int) -> list[str] | None:
    """The strings of `n` samples, and behind them as many of what stands for none."""
    given = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple | np.ndarray) else []
    given = given * n if len(given) == 1 else given
    return [*given, *[null] * n] if len(given) == n else None


def _instead(value: Any, null: Any, n: int) -> Any:
    """What stands for no condition in the place of one: as many rows, or as it is."""
    both = _both(value, null, n)
    return null if both is None else both[n:]


def _twice(at: Level) -> Level:
    """The level of twice the rows."""
    if not isinstance(at.t, Tensor) or at.t.numel() == 1:
        return at
    return Level(*(torch.cat([f, f]) for f in (at.t, at.alpha, at.sigma, at.dalpha, at.dsigma, at.lam)))


def _halves(p: Prediction, n: int) -> tuple[Prediction, Prediction]:
    """The predictions of the first `n` rows and of those behind."""
    mix = (None, None) if p.mix is None else (p.mix[:n], p.mix[n:])
    return (
        Prediction(lambda: p.data[:n], lambda: p.noise[:n], mix=mix[0]),
        Prediction(lambda: p.data[n:], lambda: p.noise[n:], mix=mix[1]),
    )
