"""Small models to save, and descriptions to spoil."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from sde_diffusion import Network, predict
from sde_diffusion.data import Standardise
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


def scaled(mean=0.0, std=1.0) -> Standardise:
    return Standardise(mean, std)


def standard(loaded) -> Standardise:
    """The scaling of a checkpoint that is a `Standardise`."""
    assert isinstance(loaded.scaling, Standardise)
    return loaded.scaling


def tensors_of(folder) -> Path:
    """The file of tensors of a checkpoint."""
    return Path(folder) / json.loads((Path(folder) / "model.json").read_text())["tensors"]["file"]


def swap(folder, data):
    """Puts other bytes in the place of the tensors, and seals the description that names them."""
    file, entry = tensors_of(folder), json.loads((Path(folder) / "model.json").read_text())["tensors"]
    file.write_bytes(data)
    edit(folder, tensors={**entry, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)})


def as_version(number, folder, **changes):
    """Writes a checkpoint as an earlier version did: one mean and std, one file of tensors, in the first no digest."""
    about, file = json.loads((folder / "model.json").read_text()), tensors_of(folder)
    for key in ("digest", "tensors", "conditions"):
        about.pop(key)
    about |= {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    about |= {"version": number, **about.pop("scaling")["fields"]}
    if number == 1:
        about |= {"mean": 0.5, "std": 2.0, "classes": 0, "noise_levels": [0.005, 20.0]}
    file.rename(folder / "model.safetensors")
    about |= changes
    (folder / "model.json").write_text(json.dumps(about, indent=2) if number == 1 else seal(about))


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
