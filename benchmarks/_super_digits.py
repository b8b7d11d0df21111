"""Digits 4 -> 8: do they keep their class and their low resolution?"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from _super_stages import Plan, content, drawing, trained
from torch import Tensor

from sde_diffusion import metrics
from sde_diffusion.cascade import Cascade, LowResolution, Upsampler
from sde_diffusion.data import Standardise, digits
from sde_diffusion.demo.classifier import DigitsClassifier, train_classifier
from sde_diffusion.training import Validation

UP, BASE = Plan(32, (1, 2), 128, 1400), Plan(32, (1, 2), 128, 800)
KEPT = 137
NFE = 16
LEVELS = (0.0, 0.05, 0.1, 0.2)
SEEDS = 5


def measure(quick: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The figures, and digits to be drawn."""
    train, test = digits("train", seed=0), digits("test", seed=1)
    scaling, low = Standardise.of(train.images), LowResolution(2)
    x, y = scaling.apply(train.images), scaling.apply(test.images)
    judge = train_classifier(train.images, train.labels, seed=0, steps=20 if quick else 400)

    def known(z: Tensor) -> float:
        return judge.accuracy(scaling.undo(z), test.labels)

    def stage(plan: Plan, x: Tensor, low: LowResolution | None) -> Any:
        rows, label = x[:-KEPT], train.labels[:-KEPT]
        val = Validation(x[-KEPT:], label=train.labels[-KEPT:])
        return trained(plan._replace(steps=5) if quick else plan, rows, low, val, label)

    model, row = stage(UP, x, low)
    base, base_row = stage(BASE, low.shrink(x), None)
    coarse = low.shrink(y)
    smooth = F.interpolate(coarse, size=(8, 8), mode="bilinear")
    found: dict[str, Any] = {
        "nfe": NFE,
        "rows": len(y),
        "seeds": SEEDS,
        "stages": [base_row, row],
        "accuracy": {
            "real": known(y),
            "bilinear": known(smooth),
            "nearest": known(low.spread(coarse)),
            "best of 4 x 4": _of_low(low, train.images, train.labels, test.images, test.labels, quick),
        },
        "upsampled": [],
    }
    shown = {"low": coarse, "bilinear": smooth}
    for level in LEVELS[-1:] if quick else LEVELS:
        up = Upsampler(drawing(model, NFE), low, level)
        for told in (True, False):
            label: dict[str, Any] = {"label": test.labels} if told else {}
            drawn = [up.sample(low=coarse, seed=1000 * k, **label) for k in range(SEEDS)]
            shares = torch.tensor([known(z) for z in drawn], dtype=torch.float64)
            found["upsampled"].append(
                {
                    **content(up, coarse, drawn[0], 0),
                    "label": told,
                    "accuracy": float(shares.mean()),
                    "standard_error": float(shares.std()) / SEEDS**0.5,
                    "frechet": _far(judge, scaling.undo(drawn[0]), test.images),
                }
            )
            if level == 0.05 or quick:
                shown[f"drawn, {'label told' if told else 'no label'}"] = drawn[0]
    cascade = Cascade([drawing(base, NFE), Upsampler(drawing(model, NFE), low, LEVELS[-2])])
    drawn8 = cascade.sample(len(y), seed=0, label=test.labels)
    found["cascade"] = {"accuracy": known(drawn8), "frechet": _far(judge, scaling.undo(drawn8), test.images)}
    found["frechet"] = {
        "real": _far(judge, train.images[: len(y)], test.images),
        "bilinear": _far(judge, scaling.undo(smooth), test.images),
    }
    shown |= {"real": y}
    return found, {name: scaling.undo(part[:10]) for name, part in shown.items()}


@torch.no_grad()
def _far(judge: DigitsClassifier, x: Tensor, y: Tensor) -> float:
    return metrics.frechet_distance(judge.features(x), judge.features(y))


def _of_low(low: LowResolution, x: Tensor, labels: Tensor, y: Tensor, wanted: Tensor, quick: bool) -> float:
    """What a classifier knows that was trained on the low resolutions: as much of the class as is in them."""
    net = train_classifier(low.spread(low.shrink(x)), labels, seed=0, steps=20 if quick else 1000)
    return net.accuracy(low.spread(low.shrink(y)), wanted)
