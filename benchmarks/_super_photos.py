"""Photo patches 8 -> 16 -> 32: three stages trained, the Frechet distance of what they draw, and a picture of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from _super_stages import Plan, content, drawing, rms, trained
from torch import Tensor, nn

from sde_diffusion import metrics
from sde_diffusion.cascade import Cascade, LowResolution, Upsampler
from sde_diffusion.data import Standardise, photo_patches

SIZES = (8, 16, 32)
PLANS = (Plan(32, (1, 2), 64, 800), Plan(24, (1, 2), 64, 400), Plan(16, (1, 2, 2), 32, 600))
NFE = 12
LEVEL, MOST = 0.1, 0.3
SAMPLES = 500


class Features(nn.Module):
    """A net that tells of which picture a patch is; its 64 features before the last layer."""

    def __init__(self, pictures: int) -> None:
        super().__init__()
        widths = (1, 16, 32, 64)
        layers = [
            layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        ]
        self.body = nn.Sequential(*layers, nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(64, pictures)

    @classmethod
    def of(cls, x: Tensor, labels: Tensor, steps: int) -> Features:
        """Trained on patches and the number of the picture of each."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = cls(int(labels.max()) + 1)
            opt = torch.optim.AdamW(net.parameters(), lr=2e-3)
            for _ in range(steps):
                rows = torch.randint(len(x), (64,))
                loss = F.cross_entropy(net.head(net(x[rows])), labels[rows])
                opt.zero_grad()
                loss.backward()
                opt.step()
        return net.eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x).flatten(1)
        return out

    @torch.no_grad()
    def far(self, x: Tensor, y: Tensor) -> float:
        """The Frechet distance of two sets of patches."""
        return metrics.frechet_distance(self(x), self(y))

    @torch.no_grad()
    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """The share of patches whose picture is told."""
        return float((self.head(self(x)).argmax(1) == labels).double().mean())


def measure(quick: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The figures, and patches to be drawn."""
    train, test = photo_patches(32, "train"), photo_patches(32, "test")
    scaling = Standardise.of(train.images)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(test), generator=generator)
    x, y = scaling.apply(train.images), scaling.apply(test.images)[order]
    n = 100 if quick else SAMPLES
    y, labels = y[:n], test.labels[order][:n]
    features = Features.of(x, train.labels, 20 if quick else 500)
    models, rows, lows = [], [], []
    for size, plan in zip(SIZES, PLANS, strict=True):
        here = F.avg_pool2d(x, 32 // size)
        lacking = round(LowResolution(2, most=MOST).detail_std(here), 3)
        low = None if size == SIZES[0] else LowResolution(2, most=MOST, residual=lacking)
        plan = plan._replace(steps=5, batch=8) if quick else plan  # noqa: PLW2901
        model, row = trained(plan, here, low)
        models.append(model)
        rows.append(row)
        lows += [] if low is None else [low]
    ups = [Upsampler(drawing(model, NFE), low, LEVEL) for model, low in zip(models[1:], lows, strict=True)]
    cascade = Cascade([drawing(models[0], NFE), *ups])
    drawn = cascade.sample_stages(n, seed=0, batch_size=250)
    coarse = F.avg_pool2d(y, 4)
    given = Cascade(ups).sample_stages(n, seed=0, batch_size=250, low=coarse)
    smooth = F.interpolate(coarse, size=(32, 32), mode="bilinear")
    real = x[torch.randperm(len(x), generator=generator)[:n]]
    found: dict[str, Any] = {
        "samples": n,
        "nfe": NFE,
        "level": LEVEL,
        "stages": rows,
        "picture_told_right": features.accuracy(y, labels),
        "content": [content(ups[0], coarse, given[0], 0), {"all": rms(F.avg_pool2d(given[1], 4) - coarse)}],
        "frechet": {
            "real": features.far(real, y),
            "cascade": features.far(drawn[-1], y),
            "given 8 x 8": features.far(given[-1], y),
            "bilinear of 8 x 8": features.far(smooth, y),
        },
        "frechet_to_train": {"cascade": features.far(drawn[-1], real)},
    }
    shown = {
        "8 x 8": drawn[0],
        "16 x 16": drawn[1],
        "32 x 32": drawn[2],
        "given": coarse,
        "bilinear": smooth,
        "drawn": given[-1],
        "real": y,
    }
    return found, {name: scaling.undo(part[:10]) for name, part in shown.items()}
