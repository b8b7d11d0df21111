"""Jumps of a flow map: one call of the network carries the state as far as a step goes, and the last to the data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor
from torch.compiler import is_dynamo_compiling as is_compiling

from sde_diffusion._checks import check_flag
from sde_diffusion._tensors import scale
from sde_diffusion.denoiser.base import Denoiser, On
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Interval, Solver
from sde_diffusion.solvers.equation import GaussianReverseSDE


class UntrainedWarning(UserWarning):
    """A flow map jumps that was never trained to."""


@runtime_checkable
class Carries(Protocol):
    """A denoiser that carries a state to another level by one call: a `FlowMap`, or one of your own."""

    def jump(self, x: Tensor, at: Level, to: Level | None, **cond: object) -> Tensor:
        """The state at level `to`, or the data for None, from state `x` at level `at`."""

    def check_jump(self, at: Level, to: Level | None) -> None:
        """Raises `ValueError` for a jump that it cannot make."""


@dataclass(frozen=True)
class Jump(Solver[GaussianReverseSDE, None]):
    r"""Steps by a flow map, $x_s = X(x_t, t, s)$, one evaluation each; the last goes to the data.

    So `nfe=1` is one jump from noise to data, and `nfe=4` are three jumps down the grid and one to the data. With
    `renoise`, each goes to the data, and up again by fresh noise, $x_s = \alpha_s X(x_t, t, 0) + \sigma_s z$: for a map
    that was trained to jump to the data alone, and for the consistency models of the literature.

    Args:
        renoise: Whether each jump goes to the data.

    Warns:
        UntrainedWarning: The second time counts nothing in the map yet, so that its jumps are steps of Euler.

    References:
        Song et al., Consistency Models, 2023 (Algorithm 1: renoise); Kim et al., Consistency Trajectory Models, 2024.
    """

    renoise: bool = False

    def __post_init__(self) -> None:
        check_flag(self.renoise, "renoise")

    @property
    def facts(self) -> Facts:
        return Facts(needs=GaussianReverseSDE, stochastic=self.renoise, fitted=True, default_steps=1, least_steps=0)

    @property
    def reaches_zero(self) -> bool:
        return True

    def prepare(self, eq: GaussianReverseSDE, intervals: Sequence[Interval]) -> None:
        carrier = _carrier(eq)
        for t, s in intervals:
            carrier.check_jump(eq.level(t), None if self.renoise else eq.level(s))
        _warn_of_untrained(eq.denoiser)

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: None, noise: NoiseSource
    ) -> tuple[Tensor, None]:
        if not self.renoise:
            return eq.carry(x, t, s), None
        x0 = eq.carry(x, t, None)
        return scale(x0, s.alpha).add_(noise(t.t, s.t), alpha=s.sigma), None

    def finish(self, eq: GaussianReverseSDE, x: Tensor, t: Level, state: None) -> Tensor:
        _carrier(eq).check_jump(t, None)
        return eq.carry(x, t, None)

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"jump": Jump(), "consistency": Jump(renoise=True)}


def _carrier(eq: GaussianReverseSDE) -> Carries:
    model = eq.denoiser
    if isinstance(model, Carries):
        return cast(Any, model)
    if why := why_hidden(model):
        raise TypeError(f"{why}. Solvers such as Adams() and DPMSolverPP() take it as it is, for more evaluations")
    raise TypeError(
        f"Jump works with a FlowMap, and the model is a {type(model).__name__}: make one of a Network, "
        "FlowMap.from_teacher(model), and train it, or take a solver such as Adams() or DPMSolverPP()"
    )


def why_hidden(model: object) -> str:
    """What to do about a flow map inside a wrapper, by which nothing jumps; empty where there is none.

    Args:
        model: The model of a sampler.
    """
    if not isinstance(model, Denoiser) or isinstance(model, Carries):
        return ""
    if not any(isinstance(part, Carries) for part in model.modules()):
        return ""
    return (
        f"Jump asks a flow map where it leads, which the {type(model).__name__} around it does not change: hand over "
        "the map itself. What the wrapper does belongs into the training, as the teacher of the loss, "
        "Shortcut(Guided(model, 2)); bounds may be put on the samples, x.clamp(-1, 1)"
    )


def _warn_of_untrained(model: Denoiser) -> None:
    inner = model.inner if isinstance(model, On) else model
    if not is_compiling() and isinstance(inner, FlowMap) and inner.untrained():
        warnings.warn(
            "this flow map was never trained to jump: the second time counts nothing in its network yet, and each jump "
            "is a step of Euler. Train it, train(map, x0, steps=1000, loss=Shortcut(teacher)), or sample its teacher",
            UntrainedWarning,
            stacklevel=3,
        )
