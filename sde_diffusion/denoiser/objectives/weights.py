r"""How much each noise level counts: a weight $w(t)$ on the square error of the data, whatever a network answers.

A model whose answer $F$ gives the data by $\mathrm{data} = a\,x + b\,F$ has the weight $w\,b^2$ on the square error of
$F$; `on_answer` is that product, with its limit where $\alpha = 0$.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion._checks import check_positive, check_real
from sde_diffusion._tensors import as_float64
from sde_diffusion.sde.level import Level, Scalar

Weighting = Callable[[Level], Scalar]


def data_weight(at: Level) -> Scalar:
    r"""$w = 1$: the square error of the data prediction."""
    return at.alpha * 0 + 1.0


def noise_weight(at: Level) -> Scalar:
    r"""$w = \alpha^2/\sigma^2$: the square error of the noise prediction, DDPM's simple loss (Ho et al., 2020)."""
    return (at.alpha / at.sigma) ** 2


def likelihood_weight(at: Level) -> Scalar:
    r"""$w = -\lambda'\,e^{2\lambda}$, the same as $g^2/2$ on the score (Song et al., 2021).

    With uniform times, the loss times $D\,(t_{max} - t_{min})$ bounds minus the log-likelihood in nats, up to a
    constant.
    """
    turn = at.alpha * at.dsigma - at.sigma * at.dalpha  # -lambda' alpha sigma, finite where alpha = 0
    return turn * at.alpha / at.sigma**3


@dataclass(frozen=True)
class EDMWeight:
    r"""$w = (S^2 + c^2)/(Sc)^2$ with $S = \sigma/\alpha$: unit effective weight at every level for EDM's $F$ (Karras
    et al., 2022).

    Args:
        data_std: $c$.
    """

    data_std: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.data_std, "data_std")

    def __call__(self, at: Level) -> Scalar:
        return (at.alpha / at.sigma) ** 2 + 1 / self.data_std**2


@dataclass(frozen=True)
class MinSNR:
    r"""$w = \min(\mathrm{SNR}, \gamma)$ with $\mathrm{SNR} = \alpha^2/\sigma^2$ (Hang et al., 2023).

    On the noise it is $\min(1, \gamma/\mathrm{SNR})$, on `v` $\min(\mathrm{SNR}, \gamma)/(\mathrm{SNR} + 1)$: the
    weight on the answer follows, for every answer, and where $\alpha = 0$ too.

    Args:
        gamma: $\gamma$.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_positive(self.gamma, "gamma")

    def __call__(self, at: Level) -> Scalar:
        snr = (at.alpha / at.sigma) ** 2
        return (snr if isinstance(snr, Tensor) else as_float64(snr)).clamp_max(self.gamma)


@dataclass(frozen=True)
class P2:
    r"""$w = \mathrm{SNR}/(k + \mathrm{SNR})^\gamma$, on the noise $(k + \mathrm{SNR})^{-\gamma}$ (Choi et al., 2022).

    Less weight on the levels of little noise, where a picture is cleaned of what nobody sees; a density is learnt worse
    for it.

    Args:
        k: $k$.
        gamma: $\gamma$; 0 is `noise_weight`.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.k, "k")
        if check_real(self.gamma, "gamma") < 0:
            raise ValueError(f"gamma must be 0 or more, got {self.gamma!r}: 1 is usual, 0 is noise_weight")

    def __call__(self, at: Level) -> Scalar:
        snr: Scalar = (at.alpha / at.sigma) ** 2
        return snr / (self.k + snr) ** self.gamma


NAMES: dict[str, Weighting] = {
    "data": data_weight,
    "noise": noise_weight,
    "likelihood": likelihood_weight,
    "edm": EDMWeight(),
    "min-snr": MinSNR(),
    "p2": P2(),
}
"""Every weight of the library by name, as an instance: the only list of them."""


def name_of(thing: object) -> str:
    """The name of a function, or the repr of what has none."""
    return getattr(thing, "__name__", None) or repr(thing)


def on_answer(
    weight: Weighting, at: Level, gain: Callable[[Level], Scalar], what: str, name: str | None = None
) -> Scalar:
    r"""$w\,(\partial\,\mathrm{data}/\partial F)^2$, the weight on the square error of what a model answers.

    Args:
        weight: $w$, on the square error of the data.
        at: The levels of a batch.
        gain: $\partial\,\mathrm{data}/\partial F$ at a level.
        what: What the model answers, for the error.
        name: How the error calls the weight; by default its own name.

    Raises:
        ValueError: alpha = 0 at one of the levels, where the weight has no finite limit.
    """
    w = weight(at) * gain(at) ** 2
    zero: Tensor = at.alpha == 0
    if not bool(zero.any()):
        return w
    short = _short_of_the_end(at)
    limit = as_float64(weight(short) * gain(short) ** 2).broadcast_to(zero.shape)
    grows = zero & ~(limit.abs() < 1e30).to(zero.device)
    if bool(grows.any()):
        t = float(at.t[grows].flatten()[0])
        raise ValueError(
            f"the weight {name or name_of(weight)} on {what} grows without bound where alpha = 0 "
            f"(t = {t:g}): end at a smaller t (t_max= of the SDE, or times=), or take noise_weight, or "
            "predict.velocity, v, edm or data"
        )
    return torch.where(zero, limit.to(zero.device, at.alpha.dtype), w)


def _short_of_the_end(at: Level) -> Level:
    """The level, in float64, with an alpha of 1e-100 where it is 0: what is finite there is the limit."""
    columns = [c.to("cpu", torch.float64) for c in (at.t, at.alpha, at.sigma, at.dalpha, at.dsigma)]
    t, alpha, sigma, dalpha, dsigma = columns
    alpha = torch.where(alpha == 0, 1e-100, alpha)
    return Level(t, alpha, sigma, dalpha, dsigma, torch.log(alpha / sigma))
