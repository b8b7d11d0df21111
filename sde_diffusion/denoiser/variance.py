r"""The variance of a reverse step, where a network learns it beside the mean.

The step from $t$ to a lower level $s$ is $\mathcal N(\mu, \varsigma^2)$, with $\mu$ from the data prediction. With $h =
\lambda_s - \lambda_t$ two variances are known, that of the posterior, $\tilde\varsigma^2 = \sigma_s^2(1 - e^{-2h})$,
and that of the forward step, $\sigma_t^2(1 - e^{-2h})$: right for data that are points, and for data of variance 1. A
learnt one lies between them by a mix $m$ for each coordinate,

$$ \log\varsigma = \log\tilde\varsigma + m\,\log(\sigma_t/\sigma_s) $$

or beyond them, as nothing holds $m$ to $[0, 1]$. Below the lowest level, where the posterior is a point, the decoder
has the $\tilde\varsigma$ of the step above for $m = 0$, and $\sigma$ for $m = 1$. What the mix is trained by is the
bound of `likelihood.bound`, term by term:

$$ \mathrm{KL} = \log\frac{\varsigma}{\tilde\varsigma} + \frac{\tilde\varsigma^2 + \alpha_s^2(1 - e^{-2h})^2\,|x_0 -
   \hat x_0|^2}{2\varsigma^2} - \frac12, \quad -\log p(x_0 \mid x_{t_0}) = \log\varsigma + \frac{|x_0 - \hat
   x_0|^2}{2\varsigma^2} + \frac12\log 2\pi $$

References: Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021 (Section 3.1); Ho et al., 2020.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level


class Step(NamedTuple):
    r"""Reverse steps as a term of the bound: $\log\varsigma + (a + q\,|x_0 - \hat x_0|^2)/2\varsigma^2 + b$ for each
    coordinate, with $\log\varsigma = \mathrm{low} + m\,\mathrm{span}$. Fields broadcast against the state.
    """

    low: Tensor
    span: Tensor
    a: Tensor
    q: Tensor
    b: Tensor

    @classmethod
    def between(cls, s: Level, t: Level) -> Step:
        """The steps from levels `t` to lower ones `s`, whose fields are tensors."""
        gain = -torch.expm1(-2 * (s.lam - t.lam))
        low = torch.log(gain) / 2 + torch.log(s.sigma)
        return cls(low, torch.log(t.sigma / s.sigma), torch.exp(2 * low), (s.alpha * gain) ** 2, -low - 0.5)

    @classmethod
    def to_data(cls, first: Level, second: Level) -> Step:
        """The last step, from the lowest level to the data, by a Gaussian decoder."""
        half = torch.log(-torch.expm1(-2 * (first.lam - second.lam))) / 2
        zero = torch.zeros_like(half)
        return cls(torch.log(first.sigma) + half, -half, zero, zero + 1, zero + math.log(2 * math.pi) / 2)

    def log_std(self, mix: Tensor) -> Tensor:
        r"""$\log\varsigma$, of the shape of the mix."""
        return self.low + mix * self.span

    def term(self, mix: Tensor, square: Tensor) -> Tensor:
        r"""The term of the bound for each coordinate, from the mix and $|x_0 - \hat x_0|^2$, in nats."""
        log_std = self.log_std(mix)
        return log_std + 0.5 * (self.a + self.q * square) * torch.exp(-2 * log_std) + self.b


def chain_steps(sde: GaussianSDE, t: Tensor, like: Tensor) -> Step:
    """The steps of a chain down from indices `t` `(B,)`, the last one to the data, in the dtype of `like`, and there.

    Raises:
        TypeError: A process that is no chain.
        ValueError: Times between two levels.
    """
    if not sde.time_is_index:
        raise TypeError(
            f"a variance is learnt for the steps of a chain, such as DiscreteVPSDE, and {sde!r} has none: there, "
            "variance_bound=0 trains the mean alone"
        )
    t = t.detach().to("cpu", torch.float64)
    if not bool((t == t.round()).all()):
        raise ValueError(
            "a variance is learnt for the steps between the levels of the chain, and some times lie between two: draw "
            "them by losses.uniform_index"
        )
    column = torch.zeros(len(t), *[1] * (like.ndim - 1), dtype=torch.float64, device="cpu")
    at, below, above = (sde.level(v, column) for v in (t, (t - 1).clamp_min(0), (t + 1).clamp_max(sde.t_max)))
    last = t.reshape(column.shape) == 0
    between, to_data = Step.between(below, at), Step.to_data(at, above)
    return Step(*(torch.where(last, d, b).to(like) for b, d in zip(between, to_data, strict=True)))


def mix_of(prediction: Prediction, who: str) -> Tensor:
    """The mix of variances in a prediction.

    Raises:
        TypeError: The model learns none.
    """
    if prediction.mix is None:
        raise TypeError(
            f"{who} needs a model that learns the variance of its chain: a Network with "
            "predict.LearnedVariance(predict.noise), trained, and not seen through another process"
        )
    return prediction.mix
