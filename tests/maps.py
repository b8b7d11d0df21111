"""Flow maps and their teachers, for the tests: networks whose last layers are drawn, so that they answer something."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sde_diffusion import VPSDE, Network, predict
from sde_diffusion.distillation import FlowMap
from sde_diffusion.nets import MLP, DiT, UNet
from sde_diffusion.sde import GaussianSDE

VP = VPSDE()

NETS: dict[str, Any] = {
    "MLP": (lambda **o: MLP(3, hidden=8, layers=1, **o), (3,)),
    "UNet": (lambda **o: UNet(1, dims=1, width=8, **o), (1, 4)),
    "DiT": (lambda **o: DiT((4,), width=8, depth=1, heads=2, **o), (4,)),
}


def awake(net: nn.Module, seed: int = 0) -> Any:
    """A network in evaluation mode, of which all that starts at zero is drawn."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            if not bool(p.any()):
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return net.eval()


def flow_map(sde: GaussianSDE = VP, kind: Any = predict.edm, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A map in the plane that was not trained: its second time counts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP(2, hidden=16, layers=1, until=True)
    return FlowMap(awake(net.to(dtype)), sde, kind, shape=(2,), **options)


def teacher(name: str = "MLP", sde: GaussianSDE = VP, kind: Any = predict.edm, **options: Any) -> Any:
    """A network in float64."""
    make, shape = NETS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = awake(make(**options).double())
    return Network(net, sde, kind, shape=shape)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Draws of a standard normal law."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
