"""Training, minimal but right: one loop over an objective.

`train` is the recipe that the demonstrations use, in one call. A loop of one's own needs nothing from here:

    for x0 in loader:
        model.loss(x0).backward()
        optimiser.step(); optimiser.zero_grad(); ema.update(model)
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sde_diffusion._checks import SolverError, check_callable, check_count, check_labels
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.objectives.weights import name_of
from sde_diffusion.noise.seeds import seed_list
from sde_diffusion.training._input import batches, check_data, check_horizon, check_loss, device_of, warn
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.losses import Objective
from sde_diffusion.training.recipe import Recipe, learning_rate

GIVE_UP = 50
"""Steps in a row without a finite batch or gradient after which training stops."""


@dataclass(frozen=True, repr=False)
class Training:
    """What `train` returns, or hands over with the exception that ended it.

    Attributes:
        model: The averaged model, in evaluation mode.
        losses: The loss of every step; NaN where the batch was not finite. Denoising score matching does not go to
            zero, but to the variance of the target given the state.
        skipped: Steps left out because their batch or their gradient was not finite.
        seconds: Wall time.
        objective: What was minimised.
        recipe: How it was minimised.
    """

    model: Denoiser
    losses: list[float]
    skipped: int
    seconds: float
    objective: Objective
    recipe: Recipe

    @property
    def loss(self) -> float:
        """The mean of those of the last hundred losses that are finite; NaN if none is."""
        return _mean(self.losses)

    def __repr__(self) -> str:
        return (
            f"Training(objective={name_of(self.objective)}, recipe={self.recipe!r}, steps={len(self.losses)}, "
            f"skipped={self.skipped}, seconds={self.seconds:.1f}, loss={self.loss:.4g})"
        )


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during `train`. It stops a script as ever, and brings the work along.

    Attributes:
        training: The `Training` up to there: averaged model, losses.
    """

    def __init__(self, training: Training, steps: int) -> None:
        super().__init__(
            f"after {len(training.losses)} of {steps} steps. The averaged model and the losses are in `.training` of "
            "this exception; at a prompt, in a notebook: import sys; run = sys.last_value.training"
        )
        self.training = training


def train(
    model: Denoiser,
    data: Tensor,
    labels: Tensor | None = None,
    *,
    steps: int,
    loss: Objective | None = None,
    recipe: Recipe | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Training:
    r"""Trains a model, by denoising score matching or another objective, and returns its weight average.

    AdamW with betas (0.9, 0.99), gradients clipped at norm 1, the rate of `learning_rate`. Shuffled without
    replacement; every batch is full. The same arguments with the same seed give the same weights, bit for bit, on one
    machine and thread count; torch's global random state and the mode of the model are left as they were.

    Whatever ends the run early, Ctrl-C (`TrainingInterrupted`), an error of the network or of the transform, carries
    the `Training` up to there as its attribute `training`. A closed stderr ends nothing.

    Args:
        model: A `Network`, or another `Denoiser` with parameters; it is trained in place, the average is a copy.
        data: Data, shape `(N, *)`, each column of vectors and each channel of images of mean about 0 and about the
            standard deviation the model expects (that of `EDM`; 1 otherwise).
        labels: Class labels, shape `(N,)`, handed to the objective, and by it to the network, as `label=`.
        steps: Gradient steps.
        loss: The objective, called as `loss(model, x0, generator=generator)`, with `label=` where there are labels; it
            answers a scalar. By default `model.objective()`, denoising score matching as it suits the model.
        recipe: The batch size, the learning rate, the average and the transform: `Recipe()` by default.
        seed: The seed of the batches, the times, the noise, the dropout and the transform, which all draw from one
            stream; not of the initial weights. None draws fresh entropy.
        progress: Shows a progress bar with the loss.

    Returns:
        The averaged model in evaluation mode, and a record. By default about three network evaluations per sample and
        step, two of them in the backward pass.

    Raises:
        TypeError: Integer or half-precision data, labels that are not integers, a model that is not a `Denoiser`, a
            loss that is no function, or answers no tensor or one without a graph.
        ValueError: Empty or non-finite data, another event shape, labels that do not fit; a process and a
            parametrisation that do not train well, where no `loss` is given (see `Denoiser.objective`); a loss that
            answers no scalar.
        SolverError: No finite batch or gradient for 50 steps in a row.
        TrainingInterrupted: Ctrl-C.

    Warns:
        UserWarning: A column or channel that is shifted, much wider or narrower than the model expects, or constant;
            an average longer than a fifth of the run; steps that were skipped.
    """
    check_count(steps, "steps")
    recipe = Recipe() if recipe is None else recipe
    given: object = recipe
    if not isinstance(given, Recipe):
        raise TypeError(f"recipe must be a Recipe, such as Recipe(batch_size=256, lr=1e-3), got {given!r}")
    labels = None if labels is None else check_labels(labels, "labels")
    (seed,) = seed_list(seed, 1)
    check_data(model, data, labels, recipe.transform, seed)
    check_horizon(recipe.decay, steps)
    if loss is None:
        loss = model.objective()
    check_callable(loss, "loss", "a function (model, x0, generator=...) -> scalar, such as model.objective()")
    if isinstance(loss, type) or isinstance(getattr(loss, "__self__", None), Denoiser):
        raise TypeError(
            f"loss is called as loss(model, x0, generator=...), which {name_of(loss)} is not made for: write "
            "loss=losses.DenoisingScoreMatching(...), an instance, or leave loss out for what model.loss is"
        )
    with _ready(model, seed):
        run = _Run(model, loss, recipe, steps)
        with run.kept():
            run.over(data, labels, torch.Generator().manual_seed(seed), progress)
    return run.record()


def _mean(losses: list[float]) -> float:
    last = [loss for loss in losses[-100:] if math.isfinite(loss)]
    return sum(last) / len(last) if last else math.nan


def _broken(batch: object) -> bool:
    """Whether a batch holds NaN or infinity; whatever else is wrong with it, the loss says."""
    return isinstance(batch, Tensor) and batch.is_floating_point() and not bool(torch.isfinite(batch).all())


@contextmanager
def _ready(model: nn.Module, seed: int) -> Iterator[None]:
    """Gradients, whatever the caller's mode is, training mode and seeded random state; on leaving, all as it was."""
    modes = [(module, module.training) for module in model.modules()]
    device = device_of(model)
    cuda = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=cuda):
        model.train()
        torch.manual_seed(seed)
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


class _Stderr:
    """stderr, for a progress bar: what cannot be written, since it was closed or its reader left, is dropped."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):  # a broken pipe, a closed file, no stderr at all
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()


class _Run:
    """The optimiser, the average and the record of one run."""

    def __init__(self, model: Denoiser, objective: Objective, recipe: Recipe, steps: int) -> None:
        self.model, self.objective, self.recipe, self.steps = model, objective, recipe, steps
        self.ema, self.device = EMA(model, recipe.decay), device_of(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=recipe.lr, betas=(0.9, 0.99))
        self.losses: list[float] = []
        self.skipped = self.failing = self.batches = 0
        self.start = time.perf_counter()

    @property
    def why(self) -> str:
        """What was not finite in the steps that were skipped."""
        if not self.batches:
            return "gradient"
        return "batch" if self.batches == self.skipped else f"gradient, or in {self.batches} of them the batch,"

    def record(self) -> Training:
        seconds = time.perf_counter() - self.start
        return Training(self.ema.model, self.losses, self.skipped, seconds, self.objective, self.recipe)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Sees to it that an exception carries the record away."""
        try:
            yield
        except KeyboardInterrupt as stop:
            raise TrainingInterrupted(self.record(), self.steps) from stop
        except BaseException as error:
            vars(error)["training"] = self.record()
            if sys.version_info >= (3, 11):
                done = len(self.losses)
                error.add_note(
                    f"Training ended after {done} of {self.steps} steps: `.training` of this exception holds the "
                    "averaged model and the losses."
                )
            raise

    def over(self, data: Tensor, labels: Tensor | None, generator: torch.Generator, progress: bool) -> None:
        """All steps, on batches of the data, with a progress bar if asked for; warns of those that were skipped."""
        with tqdm(total=self.steps, disable=not progress, desc="training", unit="step", file=_Stderr()) as bar:
            for rows in batches(len(data), self.recipe.batch_size, self.steps, generator):
                self.step(data[rows], None if labels is None else labels[rows], generator)
                bar.update()
                bar.set_postfix_str(f"loss {_mean(self.losses):.4f}", refresh=False)
        if self.skipped:
            warn(f"{self.skipped} of {self.steps} steps were skipped: {self.why} not finite", 3)

    def step(self, batch: Tensor, labels: Tensor | None, generator: torch.Generator) -> None:
        """One step on a batch, or none, counted, where the batch or its gradient is not finite."""
        if self.recipe.transform is not None:
            batch = self.recipe.transform(batch, generator)
            if _broken(batch):
                self.losses.append(math.nan)
                self.batches += 1
                self._fail("batch", "look for NaN in what the transform returns")
                return
        cond: dict[str, Any] = {} if labels is None else {"label": labels.to(self.device)}
        loss = check_loss(self.objective(self.model, batch.to(self.device), generator=generator, **cond))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        i, finite = len(self.losses), bool(torch.isfinite(norm))
        self.losses.append(float(loss.detach()))
        if finite:
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(i, self.steps, self.recipe.lr)
            self.optimiser.step()
            self.ema.update(self.model)
            self.failing = 0
        self.optimiser.zero_grad()
        if not finite:
            self._fail("gradient", "lower lr, or look for NaN in the network's answer")

    def _fail(self, what: str, advice: str) -> None:
        self.skipped, self.failing, i = self.skipped + 1, self.failing + 1, len(self.losses)
        if self.failing == GIVE_UP:
            raise SolverError(
                f"no finite {what} in steps {i - GIVE_UP + 1} to {i}, last loss {self.losses[-1]:g}: {advice}"
            )
