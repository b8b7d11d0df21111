"""DDIM and the ancestral step of DDPM: exact over a step on which the data prediction is constant."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_diffusion.denoiser.variance import mix_of
from sde_diffusion.noise.sources import NoiseSource
from sde_diffusion.sde.level import Level
from sde_diffusion.solvers.base import Facts, Solver
from sde_diffusion.solvers.checks import check_eta, check_falling
from sde_diffusion.solvers.equation import GaussianReverseSDE


@dataclass(frozen=True)
class DDIM(Solver[GaussianReverseSDE, None]):
    r"""DDIM and, at $\eta = 1$, the ancestral sampler of DDPM, between any two levels of any Gaussian SDE.

    $$ x_s = \alpha_s\,\mathrm{data} + \sqrt{\sigma_s^2 - \varsigma^2}\;\mathrm{noise} + \varsigma z, \quad
       \varsigma = \eta\,\sigma_s\sqrt{1 - e^{-2h}}, \quad h = \lambda_s - \lambda_t $$

    Order 1, weak order 1; one evaluation per step. At $\eta = 0$ this is also DPM-Solver-1, the exponential Euler
    method.

    Args:
        eta: Stochasticity, from 0 (deterministic) to 1 (ancestral).
        variance: The variance of $z$'s term: `"posterior"`, DDPM's $\tilde\beta_t$, or `"forward"`, DDPM's $\beta_t$,
            which keeps the mean and adds noise of std $\eta\,\sigma_t\sqrt{1 - e^{-2h}}$, or `"learned"`, between the
            two by what a network with `predict.LearnedVariance` answers for each coordinate.

    Raises:
        TypeError: `"learned"` with a model that learns no variance, or that is seen through another process.
        ValueError: `eta` outside `[0, 1]`, an unknown variance, or a step up in time with `eta > 0`.

    References:
        Song et al., Denoising Diffusion Implicit Models, 2021 (equation 12); Ho et al., 2020 (Section 3.2); Nichol and
        Dhariwal, 2021 (equation 15).
    """

    eta: float = 0.0
    variance: str = "posterior"

    def __post_init__(self) -> None:
        check_eta(self.eta)
        if self.eta > 1:
            raise ValueError(
                f"DDIM takes eta in [0, 1], got {self.eta!r}: more noise than the ancestral step leaves no room"
            )
        if self.variance not in ("posterior", "forward", "learned"):
            raise ValueError(f"variance must be 'posterior', 'forward' or 'learned', got {self.variance!r}")

    @property
    def facts(self) -> Facts:
        return Facts(needs=GaussianReverseSDE, order=1, stochastic=self.eta > 0)

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: None, noise: NoiseSource
    ) -> tuple[Tensor, None]:
        prediction = eq.denoise(x, t)
        if not self.eta:
            return prediction.combine(s.alpha, s.sigma), None
        check_falling(s.t - t.t)
        gain = math.sqrt(-math.expm1(-2 * (s.lam - t.lam)))
        std = self.eta * s.sigma * gain
        mean = prediction.combine(s.alpha, math.sqrt(max(s.sigma**2 - std**2, 0.0)))
        if self.variance == "learned":
            mix = mix_of(prediction, "DDIM(variance='learned')")
            return torch.addcmul(mean, torch.exp(mix * math.log(t.sigma / s.sigma)), noise(t.t, s.t), value=std), None
        if self.variance == "forward":
            std = self.eta * t.sigma * gain
        return torch.add(mean, noise(t.t, s.t), alpha=std), None

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (DDIM(), DDIM(0.5), DDIM(1.0), DDIM(1.0, variance="forward"))

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"ddim": DDIM(), "ddpm": DDIM(eta=1.0)}
