r"""Solvers of the reverse SDE, and the wrapper that adds noise before each step of another solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sde_diffusion._checks import check_positive, check_real
from sde_diffusion._linear import scale
from sde_diffusion.equation import GaussianReverseSDE, ReverseSDE
from sde_diffusion.noise import NoiseSource
from sde_diffusion.sde import Level
from sde_diffusion.solvers.base import Facts, Interval, Solver, check_inner, parts


def check_eta(eta: float) -> None:
    """Raises `ValueError` unless `eta` is finite and not negative."""
    if not (0 <= check_real(eta, "eta") < math.inf):
        raise ValueError(f"eta must be >= 0 (0 is the ODE, 1 the reverse SDE), got {eta!r}")


@dataclass(frozen=True)
class EulerMaruyama(Solver[ReverseSDE, None]):
    r"""Euler-Maruyama on the reverse-time SDE.

    $$ x_s = x_t + h\,\big[f(x_t, t) - \tfrac{1 + \eta^2}{2}\,g(t)^2\,\nabla\log p_t(x_t)\big] +
      \eta\,g(t)\sqrt{|h|}\,z, \quad h = s - t $$

    Strong order 1 (the noise is additive), weak order 1; one evaluation per step, and 1000 steps by default (30 where
    $\eta = 0$). Any SDE with its score.

    Args:
        eta: Stochasticity, `>= 0`: 1 is the reverse SDE, 0 Euler on the probability-flow ODE.

    Raises:
        ValueError: A negative `eta`; a step up in time with `eta > 0`; a start where `alpha = 0`, as $g$ is infinite
            there.

    References:
        Song et al., Score-Based Generative Modeling through SDEs, 2021 (Section 4); Maruyama, 1955.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def facts(self) -> Facts:
        steps = 1000 if self.eta else 30
        return Facts(needs=ReverseSDE, order=1, stochastic=self.eta > 0, in_time=True, default_steps=steps)

    def step(
        self, eq: ReverseSDE, x: Tensor, t: Level, s: Level, state: None, noise: NoiseSource
    ) -> tuple[Tensor, None]:
        h = s.t - t.t
        x = torch.add(x, eq.reverse_drift(x, t, self.eta), alpha=h)
        if not self.eta:
            return x, None
        check_falling(h)
        g = eq.diffusion(t)
        z = noise(t.t, s.t)
        if isinstance(g, Tensor):
            return x + (self.eta * math.sqrt(-h) * g).to(x) * z, None
        return torch.add(x, z, alpha=self.eta * g * math.sqrt(-h)), None

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (EulerMaruyama(), EulerMaruyama(0.5), EulerMaruyama(0.0))

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"euler-maruyama": EulerMaruyama()}


def check_band(s_min: float, s_max: float) -> None:
    """Raises `ValueError` unless noise levels run from `s_min >= 0` to a greater `s_max`."""
    if not (0 <= check_real(s_min, "s_min") < check_real(s_max, "s_max")):
        raise ValueError(f"wanted 0 <= s_min < s_max, got s_min={s_min!r} and s_max={s_max!r}")


def check_falling(h: float) -> None:
    """Raises `ValueError` for a step up in time, which a stochastic solver cannot take."""
    if h > 0:
        raise ValueError("a stochastic solver only goes back in time, from noise to data; to encode use an ODE solver")


def nesting(solver: Solver) -> int:
    """How many solvers a solver wraps at most, one inside the other: what tells its noise from that of its parts."""
    return 1 + max(map(nesting, parts(solver)), default=-1)


def renoised(x: Tensor, t: Level, hat: Level, z: Tensor, factor: float = 1.0) -> Tensor:
    r"""The state carried up from level `t` to the noisier `hat` by the forward process, its noise times `factor`.

    $$ \tfrac{\alpha_{\hat t}}{\alpha_t}\,x + \sqrt{\sigma_{\hat t}^2 -
       \tfrac{\alpha_{\hat t}^2}{\alpha_t^2}\sigma_t^2}\;z $$
    """
    ratio = hat.alpha / t.alpha
    std = math.sqrt(max(hat.sigma**2 - (ratio * t.sigma) ** 2, 0.0))
    return torch.add(scale(x, ratio), z, alpha=factor * std)


@dataclass(frozen=True)
class DDIM(Solver[GaussianReverseSDE, None]):
    r"""DDIM and, at $\eta = 1$, the ancestral sampler of DDPM, between any two levels of any Gaussian SDE.

    $$ x_s = \alpha_s\,\mathrm{data} + \sqrt{\sigma_s^2 - \varsigma^2}\;\mathrm{noise} + \varsigma z, \quad
       \varsigma = \eta\,\sigma_s\sqrt{1 - e^{-2h}}, \quad h = \lambda_s - \lambda_t $$

    Order 1, weak order 1; one evaluation per step. At $\eta = 0$ this is also DPM-Solver-1, the exponential Euler
    method.

    Args:
        eta: Stochasticity, from 0 (deterministic) to 1 (ancestral).
        variance: Of the added noise: `"posterior"`, DDPM's $\tilde\beta_t$, or `"forward"`, DDPM's $\beta_t$, which
            keeps the mean and adds noise of std $\eta\,\sigma_t\sqrt{1 - e^{-2h}}$.

    Raises:
        ValueError: `eta` outside `[0, 1]`, an unknown variance, or a step up in time with `eta > 0`.

    References:
        Song et al., Denoising Diffusion Implicit Models, 2021 (equation 12); Ho et al., 2020 (Section 3.2).
    """

    eta: float = 0.0
    variance: str = "posterior"

    def __post_init__(self) -> None:
        check_eta(self.eta)
        if self.eta > 1:
            raise ValueError(
                f"DDIM takes eta in [0, 1], got {self.eta!r}: more noise than the ancestral step leaves no room"
            )
        if self.variance not in ("posterior", "forward"):
            raise ValueError(f"variance must be 'posterior' or 'forward', got {self.variance!r}")

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
        if self.variance == "forward":
            std = self.eta * t.sigma * gain
        return torch.add(mean, noise(t.t, s.t), alpha=std), None

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        return (DDIM(), DDIM(0.5), DDIM(1.0), DDIM(1.0, variance="forward"))

    @classmethod
    def named(cls) -> dict[str, Solver]:
        return {"ddim": DDIM(), "ddpm": DDIM(eta=1.0)}


@dataclass(frozen=True)
class Churn(Solver[GaussianReverseSDE, object]):
    r"""Raises the noise level before each step of another solver: the stochastic sampler of EDM, with any inner solver.

    $$ S_{\hat t} = (1 + \gamma)\,S_t, \quad S = \sigma/\alpha, \quad
       x_{\hat t} = \tfrac{\alpha_{\hat t}}{\alpha_t} x_t
       + s_{noise}\sqrt{\sigma_{\hat t}^2 - \tfrac{\alpha_{\hat t}^2}{\alpha_t^2}\sigma_t^2}\;z $$

    then the inner solver from $\hat t$ to $s$. The order of the inner solver in its ODE part; its evaluations. A
    multistep inner solver starts afresh after each rise. Any Gaussian SDE.

    The first step rises beyond `t_max`, as in the paper, but on a discrete chain, which has no level there.

    Args:
        inner: The solver, such as `Heun()`.
        gamma: Relative rise; the paper's is $\min(S_{churn}/N, \sqrt2 - 1)$ for $N$ steps.
        s_min: No rise below this $\sigma/\alpha$.
        s_max: No rise from above this $\sigma/\alpha$.
        s_noise: Factor on the noise, 1 or slightly more.

    The paper churns before its last step to zero noise too, which here is the final jump and is not churned: the two
    agree for an `s_min` above the last level.

    References:
        Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022 (Algorithm 2).
    """

    inner: Solver
    gamma: float = math.sqrt(2) - 1
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        check_inner(self.inner, "Churn")
        check_positive(self.s_noise, "s_noise")
        if not (0 <= check_real(self.gamma, "gamma") < math.inf):
            raise ValueError(f"gamma must be >= 0 and finite, got {self.gamma!r}")
        check_band(self.s_min, self.s_max)

    @property
    def facts(self) -> Facts:
        inner = self.inner.facts
        stochastic = self.gamma > 0 or inner.stochastic
        return replace(inner, needs=GaussianReverseSDE, order=0 if self.gamma else inner.order, stochastic=stochastic)

    def _raised(self, eq: GaussianReverseSDE, t: Level) -> float | None:
        """The half log-SNR to rise to, or None where the state is left alone."""
        ratio = math.exp(-t.lam) if t.lam > -math.inf else math.inf
        if not self.gamma or not self.s_min <= ratio <= self.s_max or ratio == math.inf:
            return None
        lam = t.lam - math.log1p(self.gamma)
        if eq.sde.time_is_index:  # a chain has no level beyond its last
            lam = max(lam, eq.prefill([eq.sde.t_max])[0].lam)
        return lam if lam < t.lam else None

    def prepare(self, eq: GaussianReverseSDE, intervals: Sequence[Interval]) -> None:
        starts = eq.prefill(t for t, _ in intervals)
        raised = [self._raised(eq, at) for at in starts]
        levels = iter(eq.prefill_lam([lam for lam in raised if lam is not None]))
        hats = [at if lam is None else next(levels) for at, lam in zip(starts, raised, strict=True)]
        self.inner.prepare(eq, [(hat.t, s) for hat, (_, s) in zip(hats, intervals, strict=True)])

    def step(
        self, eq: GaussianReverseSDE, x: Tensor, t: Level, s: Level, state: object, noise: NoiseSource
    ) -> tuple[Tensor, object]:
        lam = self._raised(eq, t)
        if lam is None:
            return self.inner.step(eq, x, t, s, state, noise)
        hat = eq.level_at_lam(lam)
        x = renoised(x, t, hat, noise(t.t, s.t), self.s_noise)
        return self.inner.step(eq, x, hat, s, None, noise.beside(t.t, s.t, nesting(self)))

    @classmethod
    def examples(cls) -> tuple[Solver, ...]:
        from sde_diffusion.solvers.runge_kutta import Heun

        return (Churn(Heun(), 0.1),)

    @classmethod
    def named(cls) -> dict[str, Solver]:
        from sde_diffusion.solvers.runge_kutta import Heun

        return {"churn-heun": Churn(Heun(), gamma=0.2)}
