"""Autoguidance: away from a weaker version of the same model."""

from __future__ import annotations

from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.guidance.extrapolation import Extrapolation, GuidanceRule, Plain, Scale
from sde_diffusion.guidance.limits import Limits


class AutoGuided(Extrapolation):
    r"""Autoguidance: $\mathrm{data} = u + w\,(c - u)$, with $c$ of a model and $u$ of a weaker one, told the same.

    The weak one is trained for less long, or is smaller, or both: where it errs more than the model, the difference
    points away from the error. $w = 1$ is off, the model alone, bit for bit; otherwise a call asks both.

    Args:
        model: The model.
        weak: The weaker one, of the same process.
        w: The scale, $\geq 0$, or a function of the noise level $\sigma/\alpha$, a float, that gives one.
        low: Smallest noise level $\sigma/\alpha$ to guide at.
        high: Largest noise level to guide at.
        rule: As in `Guided`.

    Raises:
        TypeError: One is no `Denoiser`, or arguments of another kind.
        ValueError: A scale below 0; models of two processes, or of two shapes.

    Example:
        >>> SDESampler(sde, AutoGuided(model, snapshots[0], 2.0)).sample(64)

    References:
        Karras et al., Guiding a Diffusion Model with a Bad Version of Itself, 2024.
    """

    def __init__(
        self,
        model: Denoiser,
        weak: Denoiser,
        w: Scale,
        *,
        low: float | None = None,
        high: float | None = None,
        rule: GuidanceRule = Plain(),
    ) -> None:
        super().__init__(model, weak, w=w, limits=Limits(low, high), rule=rule)
