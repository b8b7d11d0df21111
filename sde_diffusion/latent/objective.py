"""What a codec is trained by: what its codes do not tell of the data, and a little of what they cost to tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_real
from sde_diffusion._tensors import rows as flat

__all__ = ["Reconstruction"]


@dataclass(frozen=True)
class Reconstruction:
    r"""The Gaussian error of a reconstruction and a share of the information in its code, in nats per number of $x$.

    $$ L = \frac1D\Big[\frac{|x - d(z)|^2}{2 \text{noise}^2} + D \log(\text{noise}\sqrt{2\pi}) + w\,
       \mathrm{KL}\big(N(m, s^2)\,\|\,N(0, I)\big)\Big], \quad z = m + s\,\varepsilon $$

    With $w = 1$ it is the negative evidence lower bound of a variational autoencoder, over D. A smaller `kl` keeps more
    of the data in the codes, and leaves it to the diffusion to learn how they lie; at 0 nothing keeps them from
    spreading out, and a plain autoencoder, whose $s$ is 0, can be trained. The noise of the decoder is learnt along, so
    that $w$ means the same whatever the scale of the data. One pass of the encoder and of the decoder. Conditions of
    the rows are of no account to it.

    Args:
        kl: $w \ge 0$.

    Raises:
        TypeError, ValueError: `kl` is no number, or negative.

    References:
        Kingma and Welling, Auto-Encoding Variational Bayes, 2014; Higgins et al., beta-VAE, 2017; Rybkin et al., Simple
        and Effective VAE Training with Calibrated Decoders, 2021; Rombach et al., Latent Diffusion Models, 2022.
    """

    kl: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= check_real(self.kl, "kl") < math.inf:
            raise ValueError(f"kl is the weight on the information in the codes, wanted at least 0, got {self.kl!r}")

    def noise_like(self, model: Any, x: Tensor) -> Tensor:
        """An empty tensor of the shape of the codes of the rows `x`."""
        return x.new_empty(len(x), *model.shape_of(tuple(x.shape[1:])), device="meta")

    def times_for(self, model: Any, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Zeros: it has no times, but noise that is drawn for the batch, whoever works on which share of it."""
        return torch.zeros(n, device="cpu")

    def __call__(
        self,
        model: Any,
        x0: Tensor,
        *,
        generator: torch.Generator | None = None,
        t: Tensor | None = None,
        eps: Tensor | None = None,
        reduction: str = "mean",
        **cond: Any,
    ) -> Tensor:
        """The loss of a codec on data `(B, *)`: a scalar, or `(B,)` with `reduction="none"`.

        Args:
            model: A `NetCodec`.
            x0: Data.
            generator: The source of the noise, on the CPU, where none is given.
            t: Of no account.
            eps: Unit noise of the shape of the codes.
            reduction: `"mean"` over the batch, or `"none"`.
            **cond: Of no account.
        """
        mean, std = model.encode(x0)
        if std.shape != mean.shape:
            raise ValueError(
                f"the encoder answered a mean of shape {tuple(mean.shape)} and a standard deviation of shape "
                f"{tuple(std.shape)}: wanted one for each number of the mean"
            )
        if eps is None:
            drawn = torch.randn(mean.shape, dtype=mean.dtype, generator=generator, device="cpu")
            eps = drawn.to(mean.device)
        found = model.decode(mean + std * eps)
        if found.shape != x0.shape:
            raise ValueError(
                f"the decoder answered shape {tuple(found.shape[1:])} to the codes of data of shape "
                f"{tuple(x0.shape[1:])}: what is encoded and decoded must keep its shape"
            )
        error = flat(x0 - found).square().mean(1)
        log_noise = model.learnt_noise()
        nats = 0.5 * error * (-2 * log_noise).exp() + log_noise + 0.5 * math.log(2 * math.pi)
        values: Tensor = nats
        if self.kl:  # or 0 times the infinite information of a code without noise
            told = flat(0.5 * (mean**2 + std**2 - 1) - std.log()).sum(1)
            values = nats + self.kl * told / x0[0].numel()
        return values if reduction == "none" else values.mean()
