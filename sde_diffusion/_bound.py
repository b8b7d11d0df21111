r"""The parts of a variational bound: square errors at many levels, a decoder, weights, the distance from the prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_finite, check_positive, check_real, check_state
from sde_diffusion._linear import rows
from sde_diffusion._modules import Evaluation
from sde_diffusion.bins import Bins, categorical_log_prob, discretised_gaussian_log_prob
from sde_diffusion.conditions import Conditions
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.noise import Streams, seed_list
from sde_diffusion.predict import Prediction, held
from sde_diffusion.prior import Prior
from sde_diffusion.sde import GaussianSDE, Level


class Run:
    """The data of one bound, one random stream for each of them, and the evaluations so far."""

    def __init__(
        self,
        model: Denoiser,
        x0: Tensor,
        bins: Bins | None,
        form: str,
        control: float | None,
        seed: int | Sequence[int] | None,
        chunk: int,
        cond: dict[str, Any],
    ) -> None:
        one_of("form", form, "data", "noise")
        if bins is not None and not isinstance(bins, Bins):
            raise TypeError(f"bins must be Bins, such as Bins.tiling(256), got {type(bins).__name__}")
        if control is not None and not (0 <= check_real(control, "control") < math.inf):
            raise ValueError(f"control must be a scale >= 0 in the units of the data, got {control!r}")
        self.v = None if bins is None else bins.index(x0, "x0")
        check_finite(check_state(x0, "x0", shape=model.shape), "x0")
        self.model, self.x0, self.form, self.nfe = model, x0, form, 0
        self.cond = Conditions.of(model, cond, len(x0))
        self._mode = Evaluation(model)
        self.control = model.data_std / 4 if control is None else control
        self.streams = Streams(seed_list(seed, len(x0)), x0.shape[1:], x0.dtype, x0.device)
        self.stack = max(1, check_count(chunk, "chunk") // len(x0))
        if self.stack > 1:
            self.cond.check_apart(f"at {self.stack} levels in one call")

    def slices(self, n: int) -> Tensor:
        """One uniform draw in each of `n` slices of `[0, 1)`, for each sample, shape `(n, B)`."""
        u = [torch.rand(n, generator=g, dtype=torch.float64, device="cpu") for g in self.streams.generators]
        return (torch.arange(n, dtype=torch.float64, device="cpu")[:, None] + torch.stack(u, 1)) / n

    def expected(self, z: Tensor, at: Level) -> Tensor:
        r"""What to take from a square error of the data for its noise, shape `(B,)`: a control variate, of mean zero.

        $\rho^2S^2(|z|^2 - D)$ with $\rho = c^2/(c^2 + S^2)$, the part of the noise that a model of smooth data misses.
        """
        c2 = self.control**2
        rate = at.alpha * at.sigma * c2 / (at.alpha**2 * c2 + at.sigma**2)
        excess = rows(z).square().sum(1) - z[0].numel()
        return excess * (rate.reshape(-1) if isinstance(rate, Tensor) else rate) ** 2

    def errors(self, times: Tensor) -> Tensor:
        """The square error of the data or the noise at `times`, shape `(n, B)`, summed over the coordinates."""
        found = []
        for t in times.split(self.stack):
            z = torch.cat([self.streams(0.0, 0.0) for _ in t])
            x0 = self.x0.repeat(len(t), *[1] * (self.x0.ndim - 1))
            at = self.model.sde.level(t.reshape(-1).to(x0.device), x0, check=False)
            answer = self.predict(at.alpha * x0 + at.sigma * z, at, **self.cond.stacked(len(t)))
            miss = answer.data - x0 if self.form == "data" else answer.noise - z
            extra = self.expected(z, at)
            if self.form == "noise":
                extra = extra * ((at.alpha / at.sigma) ** 2).reshape(-1)
            found.append(_wide(rows(miss).square().sum(1) - extra).reshape(t.shape))
        self.nfe += len(times) * self.model.cost
        return torch.cat(found)

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        """What the model answers in evaluation mode."""
        with self._mode:
            return held(self.model.predict(x, at, **cond), x)


class Decoder:
    """Minus the log-probability of the data given a state at the lowest level, drawn anew."""

    def __init__(self, kind: str, std: float, bins: Bins | None, t: float) -> None:
        one_of("decoder", kind, "gaussian", "categorical")
        if kind == "categorical" and bins is None:
            raise ValueError("the categorical decoder answers a level: say where they lie, bins=Bins.tiling(256)")
        check_positive(std, "decoder_std")
        self.kind, self.std, self.bins, self.t = kind, std, bins, t

    def __call__(self, run: Run) -> Tensor:
        (at,) = run.model.levels([self.t])
        noise = run.streams(0.0, 0.0)
        x = at.alpha * run.x0 + at.sigma * noise
        if self.kind == "categorical" and self.bins is not None and run.v is not None:
            return -rows(categorical_log_prob(_wide(x) / at.alpha, at.ratio, run.v, self.bins)).sum(1)
        mean = _wide(run.predict(x, at, **run.cond.whole).data)
        run.nfe += run.model.cost
        if self.bins is not None and run.v is not None:
            return -rows(discretised_gaussian_log_prob(mean, self.std, run.v, self.bins)).sum(1)
        z = rows(_wide(run.x0) - mean) / self.std
        square = z.square().sum(1) - _wide(run.expected(noise, at)) / self.std**2
        return 0.5 * square + z.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(self.std))


def weights(chain: Sequence[Level], variance: str, form: str) -> tuple[Tensor, Tensor]:
    """Of every step, the weight of its square error and the rest of its KL per coordinate, shape `(T - 1,)`."""
    out = []
    for s, t in pairwise(chain):
        gain = -math.expm1(-2 * (s.lam - t.lam))
        ratio = (s.sigma / t.sigma) ** 2 if variance == "forward" else 1.0  # of the two variances
        weight = 0.5 * (s.alpha / s.sigma) ** 2 * gain * ratio
        if form == "noise":
            if t.alpha == 0.0:
                raise ValueError(
                    f"at t = {t.t:g} no signal is left, and the noise says nothing of the data: form='data'"
                )
            weight *= t.ratio**2
        out.append((weight, 0.5 * (ratio - 1 - math.log(ratio))))
    return tuple(torch.tensor(out, dtype=torch.float64, device="cpu").T)


def proposal(chain: Sequence[Level], importance: bool) -> Tensor:
    """Probabilities of the steps, in proportion to their length in log-SNR if `importance`, shape `(T - 1,)`."""
    length = [min(s.lam - t.lam, 20.0) if importance else 1.0 for s, t in pairwise(chain)]
    return torch.tensor(length, dtype=torch.float64, device="cpu") / sum(length)


def decoder_std_of(first: Level, second: Level, variance: str) -> float:
    """DDPM's: of the forward step from the data, or of the posterior a step above, as the one there is a point."""
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


def _wide(x: Tensor) -> Tensor:
    return x.to("cpu", torch.float64)
