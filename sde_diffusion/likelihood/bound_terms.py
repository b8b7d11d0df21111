r"""The parts of a variational bound: square errors at many levels, a decoder, weights, the distance from the prior."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_finite, check_flag, check_real, check_state, check_step_count
from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.modules import Evaluation
from sde_diffusion.denoiser.prediction import Prediction, held
from sde_diffusion.denoiser.variance import Step, mix_of
from sde_diffusion.likelihood.decoder import (
    CategoricalDecoder,
    Decoder,
    categorical_log_prob,
    discretised_gaussian_log_prob,
)
from sde_diffusion.noise.seeds import Use, apart, seed_list
from sde_diffusion.noise.sources import Streams
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level
from sde_diffusion.sde.prior import Prior

LEARNED = "elbo(variance='learned')"
"""What errors call a bound with a learnt variance."""


@dataclass(frozen=True)
class Estimate:
    r"""How a bound is estimated: from which levels, how many draws, and with what taken out of them.

    Args:
        levels: In the bound of a chain, the number of levels drawn at random instead of visiting all. In continuous
            time, the number of slices of the range, 64 by default.
        importance: Draws the levels of a chain uniformly in log-SNR, rather than in the index, where few carry most of
            the bound and the standard error misses those that no draw has met.
        control: Scale $c \ge 0$ on which the data are smooth, by default a quarter of the model's `data_std`. A square
            error of the noise loses $\rho^2(|\varepsilon|^2 - D)$, $\rho = c^2/(c^2 + \sigma^2/\alpha^2)$, zero on
            average: it saves most of the draws. 0 gives the plain terms, none of which is negative.
        draws: Draws of the noise at each level; the standard error needs two.
        chunk: States in one network call; levels are stacked up to that number. Changes memory and nothing else.

    Raises:
        TypeError, ValueError: A number of levels, draws or states that is no positive integer, or a scale below 0.
    """

    levels: int | None = None
    importance: bool = True
    control: float | None = None
    draws: int = 2
    chunk: int = 1024

    def __post_init__(self) -> None:
        if self.levels is not None:
            check_step_count(self.levels, "levels")
        check_flag(self.importance, "importance")
        if self.control is not None and not (0 <= check_real(self.control, "control") < math.inf):
            raise ValueError(f"control must be a scale >= 0 in the units of the data, got {self.control!r}")
        check_count(self.draws, "draws")
        check_count(self.chunk, "chunk")


class Run:
    """The data of one bound, one random stream for each, which no sampler draws from, and the evaluations so far."""

    def __init__(
        self,
        model: Denoiser,
        x0: Tensor,
        decoder: Decoder,
        estimate: Estimate,
        seed: int | Sequence[int] | None,
        cond: dict[str, Any],
    ) -> None:
        if not isinstance(decoder, Decoder):
            raise TypeError(
                f"decoder, the last step, must be a GaussianDecoder or a CategoricalDecoder, got {decoder!r}"
            )
        if not isinstance(estimate, Estimate):
            raise TypeError(f"estimate must be an Estimate, such as Estimate(draws=4), got {estimate!r}")
        self.v = None if decoder.bins is None else decoder.bins.index(x0, "x0")
        check_finite(check_state(x0, "x0", shape=model.shape), "x0")
        self.model, self.x0, self.decoder, self.draws, self.nfe = model, x0, decoder, estimate.draws, 0
        self._mode = Evaluation(model)
        self.control = model.data_std / 4 if estimate.control is None else estimate.control
        seeds = apart(seed_list(seed, len(x0)), Use.BOUND)
        self.streams = Streams(seeds, x0.shape[1:], x0.dtype, x0.device)
        self.stack = max(1, estimate.chunk // len(x0))
        self.cond = Conditions.of(model, cond, len(x0))
        if self.stack > 1:
            self.cond.check_apart(f"at {self.stack} levels in one call")

    def slices(self, n: int) -> Tensor:
        """One uniform draw in each of `n` slices of `[0, 1)`, for each sample, shape `(n, B)`."""
        u = [torch.rand(n, generator=g, dtype=torch.float64, device="cpu") for g in self.streams.generators]
        return (torch.arange(n, dtype=torch.float64, device="cpu")[:, None] + torch.stack(u, 1)) / n

    def expected(self, z: Tensor, at: Level) -> Tensor:
        r"""The control variate of a square error of the data, of mean zero, to be taken from it; shape `(B,)`.

        $\rho^2S^2(|z|^2 - D)$ with $\rho = c^2/(c^2 + S^2)$, the part of the noise that a model of smooth data misses.
        """
        c2 = self.control**2
        rate = at.alpha * at.sigma * c2 / (at.alpha**2 * c2 + at.sigma**2)
        excess = rows(z).square().sum(1) - z[0].numel()
        return excess * (rate.reshape(-1) if isinstance(rate, Tensor) else rate) ** 2

    def errors(self, times: Tensor, *, of_noise: bool = False) -> Tensor:
        """The square error of the data, or of the noise, at `times`, shape `(n, B)`, summed over the coordinates."""
        found = []
        for x0, z, at, answer in self._answers(times):
            miss, extra = answer.noise - z if of_noise else answer.data - x0, self.expected(z, at)
            if of_noise:
                extra = extra * ((at.alpha / at.sigma) ** 2).reshape(-1)
            found.append(_wide(rows(miss).square().sum(1) - extra).reshape(-1, len(self.x0)))
        return torch.cat(found)

    def divergences(self, above: Tensor, below: Tensor) -> Tensor:
        """The KL of the steps between two levels each with the variance that the model has learnt, shape `(n, B)`.

        Of the control variate the weight must not depend on the draw: it is that of the middle of the two variances.
        """
        found = []
        for (x0, z, at, answer), t, s in zip(
            self._answers(above), above.split(self.stack), below.split(self.stack), strict=True
        ):
            column = torch.zeros(t.numel(), 1, dtype=torch.float64, device="cpu")
            upper, lower = (self.model.sde.level(v.reshape(-1), column, check=False) for v in (t, s))
            step = Step.between(lower, upper)
            mix, miss = (_wide(rows(v)) for v in (mix_of(answer, LEARNED), answer.data - x0))
            weight = step.q * torch.exp(-2 * step.log_std(torch.full_like(column, 0.5))) / 2
            extra = weight[:, 0] * _wide(self.expected(z, at))
            found.append((step.term(mix, miss.square()).sum(1) - extra).reshape(t.shape))
        return torch.cat(found)

    def _answers(self, times: Tensor) -> Iterator[tuple[Tensor, Tensor, Level, Prediction]]:
        """Data, noise, level and prediction at `times`, shape `(n, B)`, some of the `n` in one call."""
        for t in times.split(self.stack):
            z = torch.cat([self.streams(0.0, 0.0) for _ in t])
            x0 = self.x0.repeat(len(t), *[1] * (self.x0.ndim - 1))
            at = self.model.sde.level(t.reshape(-1).to(x0.device), x0, check=False)
            self.nfe += len(t) * self.model.spent(at)[0]
            yield x0, z, at, self.predict(at.alpha * x0 + at.sigma * z, at, **self.cond.stacked(len(t)))

    def reconstruction(self, t: float, std: float | Step) -> Tensor:
        """Minus the log-probability of the data given a state at time `t`, drawn anew, shape `(B,)`.

        Args:
            t: The lowest level.
            std: The standard deviation of a Gaussian decoder that has none of its own, or the step to the data of which
                the model knows it.
        """
        (at,) = self.model.levels([t])
        noise = self.streams(0.0, 0.0)
        x = at.alpha * self.x0 + at.sigma * noise
        decoder, v = self.decoder, self.v
        if isinstance(decoder, CategoricalDecoder) and v is not None:
            return -rows(categorical_log_prob(_wide(x) / at.alpha, at.ratio, v, decoder.bins)).sum(1)
        answer = self.predict(x, at, **self.cond.whole)
        mean = _wide(answer.data)
        self.nfe += self.model.spent(at)[0]
        log_std, typical = self._decoder_std(answer, getattr(decoder, "std", None) or std)
        if decoder.bins is not None and v is not None:
            return -rows(discretised_gaussian_log_prob(mean, log_std.exp(), v, decoder.bins)).sum(1)
        z = rows((_wide(self.x0) - mean) / log_std.exp())
        square = z.square().sum(1) - _wide(self.expected(noise, at)) / typical**2
        return 0.5 * square + rows(log_std.expand(mean.shape) + 0.5 * math.log(2 * math.pi)).sum(1)

    def _decoder_std(self, answer: Prediction, std: float | Step) -> tuple[Tensor, float]:
        """The logarithm of the standard deviation of a Gaussian decoder, and one that no draw has a part in."""
        if not isinstance(std, Step):
            return torch.tensor(math.log(std), dtype=torch.float64, device="cpu"), std
        middle = torch.tensor(0.5, dtype=torch.float64, device="cpu")
        return std.log_std(_wide(mix_of(answer, LEARNED))), math.exp(float(std.log_std(middle)))

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        """What the model answers in evaluation mode."""
        with self._mode:
            return held(self.model.predict(x, at, **cond), x)


def weights(chain: Sequence[Level], variance: str) -> tuple[Tensor, Tensor]:
    """The weight of the square error of the data in each step, and the rest of its KL per coordinate, `(T - 1,)`."""
    out = []
    for s, t in pairwise(chain):
        gain = -math.expm1(-2 * (s.lam - t.lam))
        ratio = (s.sigma / t.sigma) ** 2 if variance == "forward" else 1.0  # posterior over forward variance, or itself
        out.append((0.5 * (s.alpha / s.sigma) ** 2 * gain * ratio, 0.5 * (ratio - 1 - math.log(ratio))))
    return tuple(torch.tensor(out, dtype=torch.float64, device="cpu").T)


def proposal(chain: Sequence[Level], importance: bool) -> Tensor:
    """Probabilities of the steps, in proportion to their length in log-SNR if `importance`, shape `(T - 1,)`."""
    length = [min(s.lam - t.lam, 20.0) if importance else 1.0 for s, t in pairwise(chain)]
    return torch.tensor(length, dtype=torch.float64, device="cpu") / sum(length)


def decoder_std_of(first: Level, second: Level, variance: str) -> float | Step:
    """The standard deviation of DDPM's decoder, or how it follows from a learnt mix.

    It is that of the forward step from the data, or of the posterior a step above, as the posterior at the data is a
    point.
    """
    if variance == "learned":
        return Step.to_data(*(_tensors(at) for at in (first, second)))
    gain = -math.expm1(-2 * (first.lam - second.lam))
    return float(first.sigma) * (1.0 if variance == "forward" else math.sqrt(gain))


def prior_kl(prior: Prior, sde: GaussianSDE, x0: Tensor, at: Level) -> Tensor:
    """KL of the noised data at the last level from the prior, both Gaussian, shape `(B,)`."""
    mean = at.alpha * _wide(x0)
    d = mean[0].numel()
    std = prior.std(sde, at.t)
    trace = float((at.sigma / std).square().sum()) * (d / std.numel())
    return 0.5 * trace - prior.log_prob(mean, sde, at.t) - 0.5 * d * (1 + math.log(2 * math.pi * at.sigma**2))


def one_of(name: str, value: object, *known: str) -> None:
    """Raises `ValueError` unless `value` is one of the words known."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def _tensors(at: Level) -> Level:
    """A level of floats as one of tensors."""
    values = (at.t, at.alpha, at.sigma, at.dalpha, at.dsigma, at.lam)
    return Level(*(torch.tensor(v, dtype=torch.float64, device="cpu") for v in values))


def _wide(x: Tensor) -> Tensor:
    return x.to("cpu", torch.float64)
