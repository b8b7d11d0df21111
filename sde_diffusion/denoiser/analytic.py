r"""Exact denoisers: Gaussian, Gaussian mixture, finite data set, under any Gaussian SDE.

They are the truth that solvers, losses and likelihoods are measured against. Each has `log_prob(x, t)` and `sample`
besides what every denoiser has. With $p_t = \sum_k w_k\,\mathcal N(\alpha\mu_k, \alpha^2 C_k + \sigma^2 I)$ and
responsibilities $r_k(x)$,

$$ \mathrm{noise} = \sum_k r_k\,\sigma\,(\alpha^2C_k + \sigma^2I)^{-1}(x - \alpha\mu_k), \quad
   \mathrm{data} = \sum_k r_k\,\big[\mu_k + \alpha\,C_k\,(\alpha^2C_k + \sigma^2I)^{-1}(x - \alpha\mu_k)\big] $$

so that neither half is formed from the other. All three are mixtures; a data set has $C_k = 0$.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion._checks import check_count, check_finite, check_state, is_real
from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.noise.seeds import one_stream
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.level import Level, Scalar


class GaussianMixture(Denoiser):
    r"""The exact denoiser for data from $\sum_k w_k\,\mathcal N(\mu_k, C_k)$.

    Args:
        sde: Any Gaussian SDE.
        weights: $w_k > 0$, shape `(K,)`; normalised here.
        means: $\mu_k$, shape `(K, *)` with the event shape behind.
        covariances: One float (isotropic variance), variances per coordinate `(K, *)`, or full covariances
            `(K, D, D)` over the flattened event.

    Raises:
        ValueError: Shapes that do not fit, weights that are not positive, or a covariance that is not symmetric
            positive semi-definite.
    """

    noise_range = 0.0, math.inf

    def __init__(self, sde: GaussianSDE, weights: Tensor, means: Tensor, covariances: Tensor | float) -> None:
        super().__init__()
        check_finite(check_state(means, "means"), "means")
        k, self.shape = len(means), tuple(means.shape[1:])
        self.sde = sde
        if weights.shape != (k,) or not bool((weights > 0).all()):
            raise ValueError(f"weights must be {k} positive numbers, one per mean, got {weights!r}")
        d = means[0].numel()
        spread = torch.as_tensor(covariances, dtype=means.dtype, device=means.device)
        basis = None
        if spread.ndim == 0:
            spread = spread.expand(k, d)
        elif spread.shape == means.shape:
            spread = spread.reshape(k, d)
        elif spread.shape == (k, d, d):
            if not torch.allclose(spread, spread.mT):
                raise ValueError("a covariance is not symmetric")
            spread, basis = torch.linalg.eigh(spread)
        else:
            raise ValueError(
                f"covariances have shape {tuple(spread.shape)}: wanted (), {tuple(means.shape)} (diagonal) "
                f"or {(k, d, d)} (full)"
            )
        if not bool((spread >= -1e-9 * spread.abs().max()).all()):
            raise ValueError(f"a covariance is not positive semi-definite: smallest eigenvalue {float(spread.min()):g}")
        self.register_buffer("log_weights", torch.log(weights.to(means) / weights.sum()))
        self.register_buffer("means", means.reshape(k, d))
        self.register_buffer("spread", spread.clamp_min(0.0))
        self.register_buffer("basis", basis)
        w = self.log_weights.exp()[:, None]
        centre = (w * self.means).sum(0)
        total = (w * ((self.means - centre).square() + self.spread)).sum(0).mean()
        self.data_std = float(total.sqrt()) or 1.0
        self.log_weights: Tensor
        self.means: Tensor
        self.spread: Tensor
        self.basis: Tensor | None

    def on(self, sde: GaussianSDE) -> GaussianMixture:
        """The exact denoiser of the same data under another SDE, at any noise level."""
        new = object.__new__(type(self))
        torch.nn.Module.__init__(new)
        new.__dict__.update(self.__dict__)
        new.sde = sde
        return new

    def _parts(self, x: Tensor, at: Level) -> tuple[Tensor, Tensor, Tensor, Scalar, Scalar]:
        """Log-density of each component `(B, K)`, centred states `(B, K, D)`, variances along its axes, scales."""
        alpha, sigma = _column(at.alpha), _column(at.sigma)
        centred = rows(x)[:, None] - alpha * self.means
        if self.basis is not None:
            centred = torch.einsum("kij,bki->bkj", self.basis, centred)
        variance = alpha * alpha * self.spread + sigma * sigma
        if variance.ndim == 2:
            variance = variance[None]
        terms = centred.square() / variance + torch.log(variance) + math.log(2 * math.pi)
        return self.log_weights - 0.5 * terms.sum(-1), centred, variance, alpha, sigma

    def _back(self, mixed: Tensor, r: Tensor) -> Tensor:
        """`sum_k r_k` of component vectors `(B, K, D)` along the axes, in the coordinates of the data, `(B, D)`."""
        if self.basis is not None:
            mixed = torch.einsum("kij,bkj->bki", self.basis, mixed)
        return (r[..., None] * mixed).sum(1)

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        if cond:
            raise TypeError(f"{type(self).__name__} takes no conditions, and there is no option {', '.join(cond)}")
        log_p, centred, variance, alpha, sigma = self._parts(x, at)
        r = torch.softmax(log_p, dim=1)
        return Prediction(
            lambda: (
                (r[..., None] * self.means).sum(1) + self._back(alpha * self.spread / variance * centred, r)
            ).reshape(x.shape),
            lambda: self._back(sigma / variance * centred, r).reshape(x.shape),
        )

    def log_prob(self, x: Tensor, t: float | Tensor) -> Tensor:
        r"""$\log p_t(x)$ in nats, shape `(B,)`; `t` is a float, `()` or `(B,)`."""
        at = self.sde.level(t, check_state(x, "x", shape=self.shape))
        return torch.logsumexp(self._parts(x, at)[0], dim=1)

    def data_log_prob(self, x: Tensor) -> Tensor:
        r"""$\log p_0(x)$ of the data themselves, in nats, shape `(B,)`.

        Raises:
            ValueError: A singular covariance, as of a finite data set: there is no density.
        """
        check_state(x, "x", shape=self.shape)
        if not bool((self.spread > 0).all()):
            raise ValueError("the data have no density, as a covariance is singular: ask log_prob(x, t) at some noise")
        return torch.logsumexp(self._parts(x, Level(0.0, 1.0, 0.0))[0], dim=1)

    def sample(self, n: int, *, seed: int | torch.Generator | None = None) -> Tensor:
        """`n` draws of the data, shape `(n, *)`, all from the one stream that `seed` gives; None: fresh entropy."""
        generator = one_stream(seed)
        k = torch.multinomial(self.log_weights.exp().cpu(), check_count(n, "n"), replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype, device="cpu").to(
            self.means.device
        )
        z = z * self.spread[k].sqrt()
        if self.basis is not None:
            z = torch.einsum("bij,bj->bi", self.basis[k], z)
        return (self.means[k] + z).reshape(n, *(self.shape or ()))

    def posterior(self, a: Tensor, y: Tensor, noise: float | Tensor) -> GaussianMixture:
        r"""The exact denoiser of the data given a linear measurement, $y = A x_0 + s\,\varepsilon$: a mixture again.

        $$ S_k = AC_kA^\top + s^2, \quad G_k = C_kA^\top S_k^{-1}, \quad \mu_k' = \mu_k + G_k(y - A\mu_k), \quad
           C_k' = C_k - G_kS_kG_k^\top, \quad w_k' \propto w_k\,\mathcal N(y;\, A\mu_k, S_k) $$

        Noise 0 gives a conditional: of some coordinates given others where `a` has rows of the identity. A component
        whose weight is no number of the dtype is left out.

        Args:
            a: $A$, shape `(m, D)` over the flattened event.
            y: The measurement, shape `(m,)`.
            noise: $s \ge 0$, a float or one for each measured number, shape `(m,)`.

        Raises:
            TypeError: No tensors.
            ValueError: Shapes that do not fit, noise that is negative or not finite, or a measurement that a component
                makes without any spread: its noise must be positive.
        """
        at, wide = _measured(self, a, y, noise), torch.float64
        weights = torch.softmax(at.log_p, dim=0)
        kept = weights > torch.finfo(self.means.dtype).tiny
        gain = torch.cholesky_solve(at.cross.mT, at.root).mT
        means = self.means.to("cpu", wide) + (gain @ at.gap[..., None])[..., 0]
        spread: Tensor | float = 0.0
        if bool(self.spread.any()):
            shrunk = gain @ at.root
            spread = (at.covariances - shrunk @ shrunk.mT)[kept]
        means = means[kept].reshape(-1, *(self.shape or ()))
        return GaussianMixture(self.sde, weights[kept], means, spread).to(self.means)

    def log_evidence(self, a: Tensor, y: Tensor, noise: float | Tensor) -> float:
        r"""$\log p(y)$ of a linear measurement, in nats; arguments and refusals are those of `posterior`."""
        return float(torch.logsumexp(_measured(self, a, y, noise).log_p, dim=0))


class Gaussian(GaussianMixture):
    r"""The exact denoiser for data from $\mathcal N(\mu, C)$, whose probability flow has a closed form.

    Args:
        sde: Any Gaussian SDE.
        mean: $\mu$, of the event shape.
        covariance: A float (isotropic variance), variances of the event shape, or a covariance `(D, D)`.
    """

    def __init__(self, sde: GaussianSDE, mean: Tensor, covariance: Tensor | float) -> None:
        spread = torch.as_tensor(covariance, dtype=mean.dtype, device=mean.device)
        super().__init__(
            sde, torch.ones(1, dtype=mean.dtype, device="cpu"), mean[None], spread[None] if spread.ndim else spread
        )

    def flow(self, x: Tensor, t: float, s: float | None) -> Tensor:
        r"""The probability flow from `t` to `s`, exactly; None for the data, where $\sigma = 0$ and $\alpha = 1$.

        $$ x_s = \alpha_s\mu + M_sM_t^{-1}(x_t - \alpha_t\mu), \quad M = (\alpha^2C + \sigma^2I)^{1/2} $$
        """
        a = self.sde.levels([t])[0]
        b = Level(0.0, 1.0, 0.0) if s is None else self.sde.levels([s])[0]
        _, centred, before, _, _ = self._parts(x, a)
        after = b.alpha**2 * self.spread + b.sigma**2
        moved = self._back((after / before).sqrt() * centred, x.new_ones(len(x), 1))
        return (b.alpha * self.means + moved).reshape(x.shape)


class Empirical(GaussianMixture):
    r"""The exact denoiser of a finite data set: a softmax over the points; sampling returns the points themselves.

    Args:
        sde: Any Gaussian SDE.
        points: The data, shape `(n, *)`.
    """

    def __init__(self, sde: GaussianSDE, points: Tensor) -> None:
        super().__init__(sde, torch.ones(len(points), dtype=points.dtype, device=points.device), points, 0.0)

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        alpha, sigma = (v.reshape(-1, 1) if isinstance(v, Tensor) and v.ndim else v for v in (at.alpha, at.sigma))
        flat = rows(x)
        # Expanded square, so that no (B, n, D) array is formed; terms without the point drop out of the softmax.
        scores = (alpha * (flat @ self.means.T) - 0.5 * alpha * alpha * self.means.square().sum(1)) / (sigma * sigma)
        r = torch.softmax(scores, dim=1)
        mean = r @ self.means
        return Prediction(lambda: mean.reshape(x.shape), lambda: ((flat - alpha * mean) / sigma).reshape(x.shape))


class _Measured(NamedTuple):
    """A linear measurement of a mixture, by component, in float64 on the CPU.

    Attributes:
        log_p: Log-weight and log-density of the measurement, `(K,)`.
        gap: The measurement less its mean, `(K, m)`.
        cross: Covariance of the data with it, `(K, D, m)`.
        root: Cholesky factor of its covariance, `(K, m, m)`.
        covariances: Those of the data, `(K, D, D)`; of a data set, none.
    """

    log_p: Tensor
    gap: Tensor
    cross: Tensor
    root: Tensor
    covariances: Tensor


def _measured(model: GaussianMixture, a: Tensor, y: Tensor, noise: float | Tensor) -> _Measured:
    k, d = model.means.shape
    for name, value, wanted in (("a", a, f"(m, {d})"), ("y", y, "(m,)")):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor of shape {wanted}, got {type(value).__name__}")
    if a.ndim != 2 or a.shape[1] != d or y.shape != a.shape[:1] or not len(a):
        raise ValueError(
            f"a measurement takes a of shape (m, {d}), over the flattened event, and y of shape (m,), got "
            f"{tuple(a.shape)} and {tuple(y.shape)}"
        )
    if not (isinstance(noise, Tensor) or is_real(noise)):
        raise TypeError(f"noise must be a number, or a tensor of one for each measured number, got {noise!r}")
    wide: dict[str, Any] = dict(device="cpu", dtype=torch.float64)
    a, y, std = check_finite(a, "a").to(**wide), check_finite(y, "y").to(**wide), torch.as_tensor(noise, **wide)
    if std.shape not in ((), y.shape) or not bool(((std >= 0) & std.isfinite()).all()):
        raise ValueError(f"noise must be finite and at least 0, a number or one for each of {len(y)}, got {noise!r}")
    means, spread = model.means.to(**wide), model.spread.to(**wide)
    covariances = torch.zeros(k, 0, 0, **wide)
    if not bool(spread.any()):
        cross = torch.zeros(k, d, len(y), **wide)
    elif model.basis is None:
        covariances = torch.diag_embed(spread)
        cross = spread[..., None] * a.T
    else:
        basis = model.basis.to(**wide)
        covariances = (basis * spread[:, None]) @ basis.mT
        cross = covariances @ a.T
    root, failed = torch.linalg.cholesky_ex(a @ cross + torch.diag(std.expand(len(y)).square()))
    if bool(failed.any()):
        raise ValueError(
            "a component makes this measurement without any spread in some direction, so that it has no density: "
            "give noise above 0, or leave out rows of a that follow from others"
        )
    gap = y - means @ a.T
    white = torch.linalg.solve_triangular(root, gap[..., None], upper=False)[..., 0]
    log_root = root.diagonal(dim1=1, dim2=2).log()
    log_p = model.log_weights.to(**wide) - 0.5 * (white.square() + math.log(2 * math.pi)).sum(1) - log_root.sum(1)
    return _Measured(log_p, gap, cross, root, covariances)


def _column(value: Scalar) -> Scalar:
    """A float, or a tensor `(B, 1, 1)` where time differs per sample."""
    return value.reshape(-1, 1, 1) if isinstance(value, Tensor) and value.ndim else value


def isotropic_mixture(sde: GaussianSDE, means: Sequence[Sequence[float]], std: float) -> GaussianMixture:
    """A mixture of equal round components, in float64: the standard small example."""
    centres = torch.tensor(means, dtype=torch.float64, device="cpu")
    return GaussianMixture(sde, torch.ones(len(centres), dtype=torch.float64, device="cpu"), centres, std**2)
