r"""Averages of weights over training.

$$ \bar\theta_i = b_i\,\bar\theta_{i-1} + (1 - b_i)\,\theta_i, \quad i = 1, 2, \dots $$

A decay is a function $i \mapsto b_i$. The average looks back over about $1 / (1 - b_i)$ steps: one longer than the run
is mostly the initial noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from types import ModuleType
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_callable, check_count, check_real
from sde_diffusion.nets.base import copied_but, kept_names

Decay = Callable[[int], float]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class PowerDecay:
    r"""$b_i = (1 - 1/i)^{\gamma + 1}$: an average whose width is a fixed share of the run, however long the run is.

    $$ \sigma_{rel}^2 = \frac{\gamma + 1}{(\gamma + 2)^2(\gamma + 3)} $$

    The parameters $\theta(t) = t$ average to $t\,(\gamma + 1)/(\gamma + 2)$.

    Args:
        sigma_rel: Standard deviation of the averaging window over the length of the run, in `(0, 0.288)`.

    Raises:
        ValueError: `sigma_rel` outside that range, where there is no such window.

    References:
        Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024 (Section 3.1).
    """

    sigma_rel: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < check_real(self.sigma_rel, "sigma_rel") < 12**-0.5:
            raise ValueError(f"sigma_rel must lie in (0, 0.288): 0.05 to 0.15 are usual, got {self.sigma_rel!r}")

    @cached_property
    def gamma(self) -> float:
        r"""$\gamma > 0$, the exponent: 16.97, 6.94 and 0.72 for `sigma_rel` 0.05, 0.10 and 0.25."""
        # (g + 2)^2 (g + 3) = k (g + 1) with k = sigma_rel^-2 has one positive root; below it the right is larger.
        k, low, high = self.sigma_rel**-2, 0.0, self.sigma_rel**-1
        for _ in range(100):
            middle = (low + high) / 2
            inside = (middle + 2) ** 2 * (middle + 3) < k * (middle + 1)
            low, high = (middle, high) if inside else (low, middle)
        return (low + high) / 2

    def __call__(self, i: int) -> float:
        return float((1 - 1 / i) ** (self.gamma + 1))


@dataclass(frozen=True)
class ConstantDecay:
    r"""$b_i = \min\big(b, \tfrac{1 + i}{10 + i}\big)$: the classical exponential average, with its warm-up.

    Args:
        decay: $b$, in `[0, 1)`.
        warm_up: Whether the second term is there. Without it the average keeps a share $b^i$ of the initial weights.

    Raises:
        ValueError: `decay` outside `[0, 1)`.

    References:
        Ho et al., Denoising Diffusion Probabilistic Models, 2020 (Appendix B); the warm-up is TensorFlow's.
    """

    decay: float = 0.999
    warm_up: bool = True

    def __post_init__(self) -> None:
        if not 0 <= check_real(self.decay, "decay") < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay!r}")

    def __call__(self, i: int) -> float:
        return min(self.decay, (1 + i) / (10 + i)) if self.warm_up else self.decay


class EMA(Generic[M]):
    """A running average of a model's parameters; its buffers are copied. What is frozen below a control is shared.

    The average is kept in float32 or wider, whatever the dtype of the model: in half precision its last steps, of
    about `1 - b` times the change, would be rounded away. The copy in `model`, which is what one calls and saves, has
    the dtypes of the model it follows: for half-precision parameters it holds the average rounded, once.

    Args:
        model: The model to follow. The average starts at its present parameters.
        decay: A function from the step, counted from 1, to the weight of the past: `PowerDecay()`, `ConstantDecay()`.

    Attributes:
        model: The averaged copy, in evaluation mode. Tensors that its modules had computed and kept are None there.
        steps: Updates so far.

    Raises:
        TypeError: The model cannot be copied.
    """

    def __init__(self, model: M, decay: Decay | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"EMA follows an nn.Module, got {type(model).__name__}")
        if decay is not None:
            check_callable(decay, "decay", "a function of the step, such as PowerDecay() or ConstantDecay(0.999)")
        self.model: M = copied(model).eval()
        self.model.zero_grad()
        kept = kept_names(model)
        self._follows = [name not in kept for name, _ in self.model.named_parameters()]
        self._wide = [_widened(p) for p in self._followed(self.model)]
        self.decay: Decay = decay or PowerDecay()
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes the parameters of `model` into the average. Call it after every optimiser step."""
        self.steps += 1
        b = self.decay(self.steps)
        plain: tuple[list[Tensor], list[Tensor]] = [], []
        for kept, wide, new in zip(self._followed(self.model), self._wide, self._followed(model), strict=True):
            if wide is not None:
                wide.follow(kept, new, 1 - b)
            elif kept.is_floating_point() or kept.is_complex():
                plain[0].append(kept)
                plain[1].append(new.to(kept))
            else:  # quantised weights
                kept.copy_(new)
        if plain[0]:
            torch._foreach_lerp_(*plain, 1 - b)  # `kept.lerp_(new, 1 - b)` of each in one call, as torch's own averages
        for copied, now in zip(self.model.buffers(), model.buffers(), strict=True):
            copied.copy_(now)

    def _followed(self, model: nn.Module) -> Iterator[nn.Parameter]:
        """The parameters that change: all but those of a frozen base."""
        return compress(model.parameters(), self._follows)

    def _averages(self) -> Iterator[tuple[tuple[str, nn.Parameter], _Wide | None]]:
        """The parameters of the average that change, by name, and what is kept of each in float32."""
        return zip(compress(self.model.named_parameters(), self._follows), self._wide, strict=True)

    def state(self) -> dict[str, Tensor]:
        """All that the average goes on from, as tensors by name: its own, not copies of them.

        The parameters and buffers of the averaged model under `model.`, the float32 averages of those in half precision
        under `wide.`, and `steps`. What belongs to a frozen base is left out.
        """
        inside = {f"model.{name}": value.detach() for name, value in tensors_of(self.model).items()}
        wide = {f"wide.{name}": at.present(p).detach() for (name, p), at in self._averages() if at is not None}
        return {**inside, **wide, "steps": torch.tensor(self.steps, device="cpu")}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up the state of another average of the same model: what follows is the same, bit for bit.

        Raises:
            ValueError: The state of another model: a tensor is missing, is one too many or has another shape.
        """
        own = self.state()
        for name in [*own, *state]:
            if name not in state or name not in own or state[name].shape != own[name].shape:
                said = [f"{tuple(d[name].shape)}" if name in d else "nothing" for d in (own, state)]
                raise ValueError(
                    f"the state of an average has {said[1]} as {name!r}, and this model has {said[0]}: it is the state "
                    "of another model"
                )
        for name, value in tensors_of(self.model).items():
            value.copy_(state[f"model.{name}"])
        for (name, kept), wide in self._averages():
            if wide is not None:
                wide.mean, wide.version = state[f"wide.{name}"].to(kept.device, torch.float32, copy=True), kept._version
        self.steps = int(state["steps"])


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, with those that a state dict leaves out, without those of a frozen base."""
    kept = kept_names(model)
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: value for name, value in named if name not in kept}


class _Wide:
    """The float32 average of a parameter in half precision; taken up anew where somebody else wrote to its copy."""

    def __init__(self, kept: Tensor) -> None:
        self.mean: Tensor = kept.detach().float()
        self.version = kept._version

    def follow(self, kept: Tensor, new: Tensor, share: float) -> None:
        """Takes a share of the new parameter into the average, and that, rounded, into its copy."""
        self.mean = self.present(kept).to(kept.device)
        kept.copy_(self.mean.lerp_(new.to(self.mean), share))
        self.version = kept._version

    def present(self, kept: Tensor) -> Tensor:
        """The average; that of the copy, where a state dict was loaded into it."""
        return self.mean if kept._version == self.version else kept.float()


def _widened(p: Tensor) -> _Wide | None:
    return _Wide(p) if p.is_floating_point() and torch.finfo(p.dtype).bits < 32 else None


def copied(model: M) -> M:
    """A deep copy, which shares the tensors of a frozen base.

    Torch refuses to copy a tensor that was computed, which modules may keep as a cache.
    """
    computed = {id(t): t.detach().clone() for t in _computed(model, set())}
    kept = kept_names(model)
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    try:
        new = copied_but(model, [value for name, value in named if name in kept], computed)
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"{type(model).__name__} cannot be copied for its average ({error}): give the module that holds it a "
            "__deepcopy__, or keep it outside the module"
        ) from error
    for module, twin in zip(model.modules(), new.modules(), strict=True):
        for name, value in vars(module).items():
            if id(value) in computed:  # to be computed again, from the averaged weights
                vars(twin)[name] = None
    return new


def _computed(thing: object, seen: set[int]) -> Iterator[Tensor]:
    """Tensors with a history, of modules, of their attributes, and in the lists and dicts among those."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        if thing.grad_fn is not None:
            yield thing
        return
    inside: Iterable[object] = ()
    if isinstance(thing, Mapping):
        inside = thing.values()
    elif isinstance(thing, list | tuple | set):
        inside = thing
    elif not isinstance(thing, type | ModuleType):
        inside = getattr(thing, "__dict__", {}).values()
    for part in inside:
        yield from _computed(part, seen)


def horizon(decay: Decay, steps: int) -> float:
    """How many steps an average looks back over at the end of a run of `steps`: $1 / (1 - b)$ there."""
    b = decay(check_count(steps, "steps"))
    return 1 / (1 - b) if b < 1 else math.inf
