"""Networks with a control whose answers are known: one of a Gaussian, which is not of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion import VPSDE, Network, predict
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.nets import Controlled, UNet
from sde_diffusion.sde import Level

MEAN, VARIANCE = 0.3, 0.25


class GaussianNet(nn.Module):
    """The data prediction of N(mean, variance) in every point, whose one feature is the mean, as a field.

    What is added to the feature is added to the mean. Made by no line of this package, but for the protocol.
    """

    per_sample: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.sde, self.mean = VPSDE(), nn.Parameter(torch.full((1,), MEAN, dtype=torch.float64))

    @property
    def config(self) -> dict[str, object]:
        return {}

    def forward(self, x: Tensor, t: Tensor, *, added: Sequence[Tensor] = ()) -> Tensor:
        t = t.reshape(-1, *[1] * (x.ndim - 1))
        a, s = self.sde.alpha(t), self.sde.sigma(t)
        mean = self.mean.expand(x.shape)
        if added:
            mean = mean + added[0]
        return mean + a * VARIANCE / (a**2 * VARIANCE + s**2) * (x - a * mean)

    def encoder_copy(self) -> nn.Module:
        return MeanNet(self.mean)


class MeanNet(nn.Module):
    """Its encoder: the mean, and the hint beside it."""

    dims, hint, widths, stride = 2, 1, (1,), (1, 1)

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean.detach().clone())

    def forward(self, x: Tensor, t: Tensor, hint: Tensor) -> list[Tensor]:
        return [(self.mean + hint).expand(x.shape)]


def set_by_hand(net: Controlled, weights: dict[str, float], bias: float = 0.0) -> None:
    """Sets the last convolution of each control to a factor and a bias."""
    for name, w in weights.items():
        part: Any = net.controls[name]
        mix = part.join[0]
        nn.init.constant_(mix.weight, w)
        nn.init.constant_(mix.bias, bias)


def model_of(net: nn.Module) -> Network:
    return Network(net, VPSDE(), predict.data, shape=(1, 4, 4)).double().eval()


def unet(classes: int = 3, seed: int = 0, **sizes: object) -> UNet:
    """A small U-Net with weights drawn at random, none of them zero."""
    return drawn(UNet(1, width=8, classes=classes, **sizes), seed)  # type: ignore[arg-type]  # of the constructor


def drawn(net, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.15 * torch.randn(p.shape, generator=generator))
    return net.eval()


def exact_model(mean: float) -> Network:
    """The model of a Gaussian of some mean, by the closed form of this package, asked for the data as a network is."""
    exact, sde = Gaussian(VPSDE(), torch.full((1, 4, 4), mean, dtype=torch.float64), VARIANCE), VPSDE()

    def data(x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, 1, 1, 1)  # also beyond the last time, where adaptive solvers ask
        return exact.predict(x, Level(t, sde.alpha(t), sde.sigma(t))).data

    return Network(data, sde, predict.data, shape=(1, 4, 4)).double()
