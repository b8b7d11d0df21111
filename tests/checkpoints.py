"""Small models to save, and descriptions to spoil."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

from sde_diffusion import Network, predict
from sde_diffusion.nets import MLP
from sde_diffusion.sde import schedules


def awake(net: nn.Module) -> nn.Module:
    """A net whose zero-initialised layers have left zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return net


def model(sde=None, kind=predict.edm, clock=None, **options) -> Network:
    net = awake(MLP(2, hidden=16, layers=1, **options))
    return Network(net, sde or schedules.EDMSDE(0.005, 20.0), kind, clock=clock, shape=(2,)).eval()


def seal(about):
    """A description with its digest: that of the text in which the digest is empty."""
    bare = json.dumps({**about, "digest": ""}, indent=2)
    return json.dumps({**about, "digest": hashlib.sha256(bare.encode()).hexdigest()}, indent=2)


def edit(folder, **changes):
    """Changes entries of the description and seals it again, as somebody might who knows the format."""
    file = folder / "model.json"
    about = json.loads(file.read_text())
    for key, value in changes.items():
        if value is None:
            del about[key]
        else:
            about[key] = value
    about.pop("digest")
    file.write_text(seal(about))
