"""What the two parts of `super_resolution.py` share: how a stage is trained, and what it keeps of a low resolution."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion import VPSDE, Denoiser, Network, SDESampler, nets, predict
from sde_diffusion.cascade import LowResolution, SuperResolution, Upsampler
from sde_diffusion.noise.seeds import Seed
from sde_diffusion.training import Recipe, Validation, train

SDE = VPSDE()


class Plan(NamedTuple):
    """How a stage is trained.

    Attributes:
        width, multipliers: Those of its U-Net.
        batch, steps: Those of its training.
    """

    width: int
    multipliers: tuple[int, ...]
    batch: int
    steps: int


def trained(
    plan: Plan, x: Tensor, low: LowResolution | None = None, val: Validation | None = None, label: Tensor | None = None
) -> tuple[Denoiser, dict[str, Any]]:
    """A stage for data `(N, C, *)`: of the low resolution, or of nothing; and what it was and cost.

    Args:
        plan: How.
        x: Data.
        low: The low resolution that it is told.
        val: Data kept out, to take the best of the run by; a run of few passes over the data needs none.
        label: One of ten classes for each of the data.
    """
    told: dict[str, Any] = {} if low is None else {"image": x.shape[1], "context": 1, "image_drop": 0.0}
    told |= {} if low is None else {"context_drop": 0.0}
    told |= {} if label is None else {"classes": 10}
    torch.manual_seed(0)
    net = nets.UNet(x.shape[1], width=plan.width, multipliers=plan.multipliers, **told)
    model = Network(net, SDE, predict.edm, shape=x.shape[1:])
    run = train(
        model,
        x,
        steps=plan.steps,
        loss=None if low is None else SuperResolution(low),
        recipe=Recipe(batch_size=plan.batch),
        val=val,
        seed=0,
        progress=True,
        cond={} if label is None else {"label": label},
    )
    row = {
        "shape": list(x.shape[1:]),
        "parameters": sum(p.numel() for p in net.parameters()),
        **plan._asdict(),
        "best": run.best,
        "seconds": round(run.seconds),
        "low_res": None if low is None else low.config,
    }
    return run.model, row


def content(up: Upsampler, low: Tensor, drawn: Tensor, seed: Seed) -> dict[str, float]:
    """How far the low resolution of what was drawn is from the noised one that it was drawn of, and from the clean."""
    shrunk = up.low_resolution.shrink(drawn)
    noised = up.low_resolution.shrink(up.told(low, seed=seed)["image"].value)
    return {"level": up.level, "from_noised": rms(shrunk - noised), "from_clean": rms(shrunk - low)}


def rms(x: Tensor) -> float:
    return math.sqrt(float(x.double().square().mean()))


def drawing(model: Denoiser, nfe: int) -> SDESampler:
    return SDESampler(SDE, model, nfe=nfe)
