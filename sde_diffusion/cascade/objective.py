"""How a network learns to make a high resolution of a low one: the objective of `train`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_finite, check_state
from sde_diffusion.cascade.low_resolution import LowResolution
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import PerSample, merged
from sde_diffusion.guidance import Clipped, Posterior, Reward, Thresholded, Within
from sde_diffusion.training.losses import DenoisingScoreMatching

OWN = ("t", "eps", "reduction")
"""What denoising score matching is called with that is no condition."""
OF_DATA = Clipped, Thresholded, Posterior, Within, Reward
"""What bounds, measures or rates the data that a model answers, which are not there where it answers residuals."""


@dataclass(frozen=True)
class SuperResolution:
    """Denoising score matching of data beside their own low resolution, which is made here: `train` gets the data.

    Levels of the low resolution, evenly from 0 to `most`, and its noise are drawn for the rows of a call: a run on
    several processes, or with `accumulate`, draws others for each share of a batch than one process draws for the
    whole. Either repeats itself. A `Validation` is of data too, and draws the same for them at every call.

    Args:
        low_resolution: How the low resolution is made, and told.
        inner: The objective beside it; by default the one that suits the model, `model.objective()`.

    Raises:
        TypeError: Not a `LowResolution`, or another objective than denoising score matching.

    Example:
        >>> train(model, x, steps=2500, loss=SuperResolution(LowResolution(2)), val=x_val)
    """

    low_resolution: LowResolution
    inner: DenoisingScoreMatching | None = None

    def __post_init__(self) -> None:
        low, inner = self.low_resolution, self.inner
        check_low(low)
        if not isinstance(inner, DenoisingScoreMatching | None):
            raise TypeError(f"inner must be a DenoisingScoreMatching, or None for the model's own, got {inner!r}")

    def __call__(
        self, model: Denoiser, x0: Tensor, *, generator: torch.Generator | None = None, **options: Any
    ) -> Tensor:
        """The loss of a model on one batch; one network evaluation.

        Args:
            model: A `Denoiser` that takes the low resolution.
            x0: Data, shape `(B, C, *spatial)`.
            generator: The source of levels and noise, on the CPU; None for torch's global random state.
            **options: `t`, `eps` and `reduction` as of denoising score matching, and other conditions.
        """
        self.look_at(model)
        check_finite(check_state(x0, "x0", shape=model.shape), "x0")
        own = {name: options.pop(name) for name in OWN if name in options}
        x0, cond = self.shown(x0, merged(options), generator)
        return self._of(model)(model, x0, generator=generator, cond=cond, **own)

    @property
    def tells(self) -> tuple[str, ...]:
        """The conditions that are made here."""
        return self.low_resolution.names

    def shown(
        self, x0: Tensor, cond: Mapping[str, Any], generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Any]]:
        """What a model is to answer of data, and what it is told, the low resolution among it."""
        self.low_resolution.check_free(cond)
        x0, told = self.low_resolution.pairs(x0, generator)
        return x0, dict(cond) | {name: PerSample(value) for name, value in told.items()}

    def offset(self, dim: int) -> float:
        r"""Nats of data of `dim` numbers over those of what is answered: $D\log c$ of residuals, else 0."""
        return dim * math.log(self.low_resolution.residual) if self.low_resolution.residual else 0.0

    def look_at(self, model: Denoiser) -> None:
        """Looks whether the network of a model takes what it is to be told; `train` calls it."""
        if model.shape is not None:
            check_fits(model, self.low_resolution, model.shape[0])

    def times_for(self, model: Denoiser, n: int, generator: torch.Generator | None = None) -> Tensor:
        """The times of a batch of `n`, shape `(n,)`, as denoising score matching draws them."""
        return self._of(model).times_for(model, n, generator)

    def _of(self, model: Denoiser) -> DenoisingScoreMatching:
        return model.objective() if self.inner is None else self.inner


def check_low(low: object) -> LowResolution:
    """Returns `low` if it is a `LowResolution`."""
    if not isinstance(low, LowResolution):
        raise TypeError(f"wanted a LowResolution, such as LowResolution(2), got {low!r}")
    return low


def check_fits(model: object, low: LowResolution, channels: int) -> None:
    """Raises `ValueError` for a network that says that it was built without what it is to be told.

    What it takes besides is its own affair: a context too, where the low resolution tells none.

    Args:
        model: A model, of which a `Denoiser` may know how its network was built.
        low: What it is told.
        channels: Channels of the data.
    """
    built = model.built_with() if isinstance(model, Denoiser) else {}
    each = zip(low.names, ("image", "context"), (channels, 1), strict=False)  # no context without levels
    told = {name: n for name, argument, n in each if name == argument}
    for name, wanted in told.items():
        if built.get(name, wanted) != wanted:
            raise ValueError(
                f"the network was built with {name}={built[name]}, and {low!r} tells it {name} of {wanted}: build it "
                f"with {', '.join(f'{name}={n}' for name, n in told.items())}"
            )


def check_answers(model: object) -> None:
    """Raises `TypeError` for a model of residuals in a rule on data."""
    parts = model.modules() if isinstance(model, nn.Module) else ()
    if rule := next((type(part).__name__ for part in parts if isinstance(part, OF_DATA)), None):
        raise TypeError(
            f"{rule} is a rule on data, and a model with residual > 0 answers what the low resolution lacks, not data: "
            f"leave {rule} out, or train a stage with residual=0"
        )
