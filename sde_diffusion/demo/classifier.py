"""A small classifier of 8x8 digits, for two figures of merit: Frechet distance in its features, label accuracy.

Frechet distances under two classifiers are not comparable: state the seed, the steps and the floor (training against
test images).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion._checks import check_count, check_labels

__all__ = ["DigitsClassifier", "train_classifier"]


class DigitsClassifier(nn.Module):
    """A net of three convolutions and 64 features, 0.08M parameters, which knows about 98% of the test digits.

    Args:
        classes: Number of classes.

    Shapes:
        x (B, 1, 8, 8) in [-1, 1] -> logits (B, classes); `features`: (B, 64), non-negative

    Raises:
        ValueError: `x` has another shape.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Dropout(0.2), nn.Linear(256, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, classes)

    def features(self, x: Tensor) -> Tensor:
        """Returns the 64 features before the last layer: (B, 1, 8, 8) -> (B, 64)."""
        if x.ndim != 4 or x.shape[1:] != (1, 8, 8):
            raise ValueError(f"x must have shape (B, 1, 8, 8), got {tuple(x.shape)}. Try x.reshape(-1, 1, 8, 8).")
        out: Tensor = self.body(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits: (B, 1, 8, 8) -> (B, classes)."""
        out: Tensor = self.head(self.features(x))
        return out

    @torch.no_grad()
    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Returns the share of images x (N, 1, 8, 8) classified as their labels (N,); sets the net to evaluate."""
        if labels.shape != (len(x),):
            raise ValueError(f"labels must have shape ({len(x)},), one per image, got {tuple(labels.shape)}.")
        return float((self.eval()(x).argmax(dim=1) == labels).double().mean())


def train_classifier(
    x: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    steps: int = 400,
    batch_size: int = 128,
    progress: Callable[[int, float], None] | None = None,
) -> DigitsClassifier:
    """Trains a `DigitsClassifier` in seconds; the same seed and data give the same net on one machine and thread count.

    Cross-entropy, AdamW with a one-cycle learning rate. torch's global random state is left as it was.

    Args:
        x: Images (N, 1, 8, 8) in [-1, 1]. Dequantised ones make it robust to the noise of samples.
        labels: (N,) integers, `>= 0`.
        seed: The seed of the initial weights, the batches and the dropout; fixed, so that distances can be compared.
        steps: Number of gradient steps.
        batch_size: Images in a batch, at most N are used.
        progress: Called after every step with the number of steps done and the loss in nats.

    Returns:
        The trained net, in evaluation mode, on the device of `x`.

    Raises:
        TypeError, ValueError: Labels are not integers `(N,)`, `>= 0`; `x` has another shape or is empty; `steps` or
            `batch_size` is below 1.
    """
    _check_labels(x, labels)
    check_count(steps, "steps")
    check_count(batch_size, "batch_size")
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)
        net = DigitsClassifier(max(10, int(labels.max()) + 1)).to(x.device, x.dtype).train()
        opt = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01)
        rate = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=4e-3, total_steps=steps + 1)
        order = torch.empty(0, dtype=torch.long)
        for step in range(1, steps + 1):
            if not len(order):
                order = torch.randperm(len(x))
            rows, order = order[:batch_size], order[batch_size:]
            loss = F.cross_entropy(net(x[rows]), labels[rows].long())
            opt.zero_grad()
            loss.backward()
            opt.step()
            rate.step()
            if progress is not None:
                progress(step, float(loss.detach()))
    return net.eval()


def _check_labels(x: Tensor, labels: Tensor) -> None:
    check_labels(labels, "labels")
    if x.ndim != 4 or not len(x) or labels.shape != (len(x),):
        raise ValueError(
            f"Wanted x (N, 1, 8, 8) and labels (N,) with N >= 1, got {tuple(x.shape)} and {tuple(labels.shape)}."
        )
    if int(labels.min()) < 0:
        raise ValueError(f"labels must be 0, 1, ..., got {int(labels.min())}.")
