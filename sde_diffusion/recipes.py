"""Which noise levels to train on, and how to weigh them: one rule by what a network answers and under which process."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sde_diffusion._network import Network
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.losses import (
    EDMWeight,
    LogNormalSigma,
    TimeSampler,
    Weighting,
    name_of,
    noise_weight,
    uniform_time,
)
from sde_diffusion.predict import EDM, Data, Parametrisation, Score, V
from sde_diffusion.sde import GaussianSDE

LARGEST_STATE = 3.0
"""Size of a state, in standard deviations, up to which a network of order one learns from it as it is."""
LARGEST_GAIN = 400.0
"""Error of the data per relative error of the answer at `t_max` up to which noise and score can be learnt."""


@dataclass(frozen=True)
class Recipe:
    """How noise levels are drawn and how the loss is weighed: what `train` needs to know beside the model.

    Args:
        times: How noise levels are drawn.
        weight: Weight on the loss on $x_0$; None for the plain square error of the answer.
    """

    times: TimeSampler
    weight: Weighting | None = None

    def __repr__(self) -> str:
        return f"Recipe(times={name_of(self.times)}, weight={name_of(self.weight)})"


def recipe(model: Denoiser, *, times: TimeSampler | None = None, weight: Weighting | None = None) -> Recipe:
    r"""The times and the weight that suit what a model answers, and its process.

    | answers | times | weight |
    |---|---|---|
    | `edm`, `EDM(c)`, `v` | $\sigma/\alpha$ log-normal, of median $e^{-1.2}\,c$ | plain |
    | `noise`, `velocity`, and kinds of your own | $t$ uniform | plain |
    | `score` | $t$ uniform | `noise_weight`: the plain error of the noise |
    | `data`, and denoisers that are no `Network` | as `edm` | `EDMWeight(c)` |

    Args:
        model: The model to be trained.
        times: Taken instead of the rule; it also lifts the refusals below.
        weight: Taken instead of the rule.

    Raises:
        ValueError: A pair that does not train well as it is: the network would see states larger than 3, as on
            `EDMSDE`, `VESDE` and `BrownianSDE` with all but `edm`; or it answers noise or a score where next to
            nothing of the data is left.
    """
    kind = model.kind if isinstance(model, Network) else None
    if times is None and kind is not None:
        _check_pair(kind, model.sde)
    c = model.data_std
    if kind is None or isinstance(kind, Data):
        own = Recipe(LogNormalSigma().scaled(c), EDMWeight(c))
    elif isinstance(kind, EDM | V):
        own = Recipe(LogNormalSigma().scaled(c))
    else:
        own = Recipe(uniform_time, noise_weight if isinstance(kind, Score) else None)
    return Recipe(times or own.times, weight or own.weight)


def _check_pair(kind: Parametrisation, sde: GaussianSDE) -> None:
    """Raises `ValueError` where a network of that kind does not learn the process over the whole of its range."""
    (last,) = sde.levels([sde.t_max])
    name = type(kind).__name__.lower()
    advice = ", or give times= if you know better"
    size = math.hypot(last.alpha, last.sigma) * float(kind.input_scale(last))
    if size > LARGEST_STATE:
        raise ValueError(
            f"a network that answers {name} would see states of size {size:.3g} as they are, on {sde!r}: take "
            f"predict.edm, which scales them, or VPSDE(), which keeps them small{advice}"
        )
    try:
        gain = abs(float(kind.coefficients(last).data_f)) * math.hypot(*map(float, kind.target(last)))
    except ValueError as error:  # where alpha = 0
        raise ValueError(f"{error}{advice}") from None
    if gain > LARGEST_GAIN:
        raise ValueError(
            f"a network that answers {name} hardly tells of the data at t_max = {sde.t_max:g} of {sde!r}: an error "
            f"there counts {gain:.3g} times. Take a smaller t_max (of a chain, leave out its last betas), or "
            f"predict.edm, velocity, v or data{advice}"
        )
