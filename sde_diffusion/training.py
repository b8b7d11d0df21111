r"""Training, minimal but right: one loop over `losses.denoising_score_matching`.

`train` is the recipe that the demonstrations use, in one call. A loop of your own needs nothing from here:

    for x0 in loader:
        losses.denoising_score_matching(model, x0).backward()
        optimiser.step(); optimiser.zero_grad(); ema.update(model)
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sde_diffusion import predict
from sde_diffusion._checks import SolverError, check_count, check_finite, check_labels, check_positive, check_state
from sde_diffusion._modules import modules_behind
from sde_diffusion.denoiser import Denoiser, Network
from sde_diffusion.ema import EMA, Decay, PowerDecay, horizon
from sde_diffusion.losses import LogNormalSigma, TimeSampler, Weighting, denoising_score_matching

Transform = Callable[[Tensor, torch.Generator], Tensor]

WARM_UP = 100
"""Steps over which the learning rate rises, or a tenth of the run if that is less."""
GIVE_UP = 50
"""Steps in a row without a finite gradient after which training stops."""


def learning_rate(i: int, steps: int, peak: float) -> float:
    r"""Rate at step $i = 0, \dots, N - 1$: a rise over $w$ = 100 steps, or N/10 if that is less, and a cosine to zero.

    $$ \mathrm{peak} \cdot \min\Big(1, \frac{i + 1}{w}\Big) \cdot \cos^2\frac{\pi i}{2N} $$
    """
    rise = max(1, min(WARM_UP, steps // 10))
    return peak * min(1.0, (i + 1) / rise) * math.cos(0.5 * math.pi * i / steps) ** 2


@dataclass(frozen=True)
class Training:
    """What `train` returns.

    Attributes:
        model: The averaged model, in evaluation mode.
        losses: The loss of every step. It does not go to zero, but to the variance of the target given the state.
        skipped: Steps left out because their gradient was not finite.
        seconds: Wall time.
    """

    model: Denoiser
    losses: list[float] = field(repr=False)
    skipped: int
    seconds: float


def train(
    model: Denoiser,
    data: Tensor,
    labels: Tensor | None = None,
    *,
    steps: int,
    batch_size: int = 128,
    lr: float = 2e-3,
    times: TimeSampler | None = None,
    weight: Weighting | None = None,
    transform: Transform | None = None,
    decay: Decay | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Training:
    r"""Trains a model by denoising score matching, and returns its weight average.

    AdamW with betas (0.9, 0.99), gradients clipped at norm 1, the rate of `learning_rate`, low-discrepancy times.
    Shuffled without replacement; every batch is full. The same arguments give the same weights, bit for bit, on one
    machine and thread count; torch's global random state is left as it was.

    Args:
        model: A `Network`, or another `Denoiser` with parameters; it is trained in place, the average is a copy.
        data: Data, shape `(N, *)`, of about the standard deviation the model expects (that of `EDM`; 1 otherwise).
        labels: Class labels, shape `(N,)`, handed to the network as `label=`.
        steps: Gradient steps.
        batch_size: Samples per step; may exceed N.
        lr: Highest learning rate.
        times: How noise levels are drawn; `LogNormalSigma()` by default.
        weight: Weight on the loss on $x_0$; by default the plain square error of what the network answers.
        transform: Called as `transform(batch, generator)` on every batch: fresh dequantisation, augmentation. With it,
            `data` may hold anything, integers for instance, so long as its results are as asked of `data`.
        decay: Of the weight average; `PowerDecay()` by default.
        seed: Of the batches, the times, the noise, the dropout and the transform; not of the initial weights.
        progress: Shows a progress bar with the loss.

    Returns:
        The averaged model in evaluation mode, and a record. About three network evaluations per sample and step.

    Raises:
        TypeError: Integer or half-precision data, labels that are not integers, a model that is not a `Denoiser`.
        ValueError: Empty or non-finite data, another event shape, labels that do not fit.
        SolverError: No finite gradient for 50 steps in a row.

    Warns:
        UserWarning: Data much wider or narrower than the model expects; an average longer than a fifth of the run;
            steps that were skipped.
    """
    check_count(steps, "steps")
    check_count(batch_size, "batch_size")
    check_positive(lr, "lr")
    decay = decay or PowerDecay()
    labels = None if labels is None else check_labels(labels, "labels")
    _check_data(model, data, labels, transform, seed)
    _check_horizon(decay, steps)
    device = _device_of(model)
    generator = torch.Generator().manual_seed(seed)
    before, start = model.training, time.perf_counter()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        run = _Run(model.train(), lr, steps, EMA(model, decay))
        with tqdm(total=steps, disable=not progress, desc="training", unit="step") as bar:
            for rows in _batches(len(data), batch_size, steps, generator):
                batch = data[rows] if transform is None else transform(data[rows], generator)
                cond: dict[str, Any] = {} if labels is None else {"label": labels[rows].to(device)}
                loss = denoising_score_matching(
                    model, batch.to(device), weight=weight, times=times or LogNormalSigma(), generator=generator, **cond
                )
                run.step(loss)
                bar.update()
                bar.set_postfix_str(f"loss {run.recent:.4f}", refresh=False)
    model.train(before)
    if run.skipped:
        warnings.warn(f"{run.skipped} of {steps} steps were skipped: gradient not finite", UserWarning, stacklevel=2)
    return Training(run.ema.model, run.losses, run.skipped, time.perf_counter() - start)


class _Run:
    """The optimiser, the average and the record of one run."""

    def __init__(self, model: Denoiser, lr: float, steps: int, ema: EMA[Denoiser]) -> None:
        self.model, self.lr, self.steps, self.ema = model, lr, steps, ema
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=lr, betas=(0.9, 0.99))
        self.losses: list[float] = []
        self.skipped = self.failing = 0

    @property
    def recent(self) -> float:
        """Mean loss of the last hundred steps."""
        last = self.losses[-100:]
        return sum(last) / len(last)

    def step(self, loss: Tensor) -> None:
        i = len(self.losses)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.losses.append(float(loss.detach()))
        if bool(torch.isfinite(norm)):
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(i, self.steps, self.lr)
            self.optimiser.step()
            self.ema.update(self.model)
            self.failing = 0
        else:
            self.skipped, self.failing = self.skipped + 1, self.failing + 1
        self.optimiser.zero_grad()
        if self.failing == GIVE_UP:
            raise SolverError(
                f"no finite gradient in steps {i - GIVE_UP + 2} to {i + 1}, last loss {self.losses[-1]:g}: "
                "lower lr, or look for NaN in the network's answer"
            )


def _batches(n: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers `(size,)` for each step, drawn without replacement until all `n` were used, and again."""
    order = torch.empty(0, dtype=torch.long, device="cpu")
    for _ in range(steps):
        if len(order) < size:  # as many rounds at once as are missing: one at a time would copy them all each time
            rounds = -((len(order) - size) // n)
            order = torch.cat([order, *(torch.randperm(n, generator=generator, device="cpu") for _ in range(rounds))])
        rows, order = order[:size], order[size:]
        yield rows


def _device_of(model: nn.Module) -> torch.device:
    for p in model.parameters():
        if p.requires_grad:
            return p.device
    fix = "wrap your network, Network(net, sde, predict.edm)"
    for name in [type(module).__name__ for module in modules_behind(model) if module is not model]:
        fix = (
            f"it is a function around a {name}, which a copy of it would not own. Hand over the {name} itself; it may "
            "answer a tuple, or what has the tensor as .sample"
        )
    raise ValueError(f"the model has no parameters to train: {fix}")


def _check_data(model: Denoiser, data: Tensor, labels: Tensor | None, transform: Transform | None, seed: int) -> None:
    """Everything that can be told of the data before the first step."""
    if not isinstance(model, Denoiser):
        raise TypeError(
            f"train needs a Denoiser: wrap the network, Network(net, sde, predict.edm), got {type(model).__name__}"
        )
    if transform is None:
        check_finite(check_state(data, "data", shape=model.shape), "data")
    elif data.ndim == 0 or len(data) == 0:
        raise ValueError(f"data is empty: its shape is {tuple(data.shape)}, wanted at least one sample")
    if labels is not None and labels.shape != data.shape[:1]:
        raise ValueError(f"labels have shape {tuple(labels.shape)}, wanted ({len(data)},): one per row of data")
    seen = data if transform is None else transform(data[:4096], torch.Generator().manual_seed(seed))
    check_finite(check_state(seen, "data", shape=model.shape), "data")
    _check_scale(model, seen)


def _check_scale(model: Denoiser, data: Tensor) -> None:
    expected = model.kind.data_std if isinstance(model, Network) and isinstance(model.kind, predict.EDM) else 1.0
    std = float(data.std(correction=0))
    if not expected / 3 <= std <= 3 * expected:
        advice = f"standardise them, (x - {float(data.mean()):.4g}) / {std:.4g}" if std else "all values are equal"
        if std and isinstance(model, Network) and isinstance(model.kind, predict.EDM):
            advice += f", or give predict.EDM({std:.3g})"
        warnings.warn(
            f"the data span [{float(data.min()):.4g}, {float(data.max()):.4g}] with standard deviation {std:.4g}, but "
            f"the model expects about {expected:g}: {advice}",
            UserWarning,
            stacklevel=4,
        )


def _check_horizon(decay: Decay, steps: int) -> None:
    back = horizon(decay, steps)
    if back > max(steps / 5, 10):  # ten steps blur nothing, in a run however short
        warnings.warn(
            f"{decay!r} averages over about the last {back:.0f} of {steps} steps, more than a fifth of the run: early "
            "weights blur the result. Train longer, or take PowerDecay(0.1)",
            UserWarning,
            stacklevel=3,
        )
