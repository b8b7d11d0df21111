"""Training: one loop over an objective.

`train` is the recipe that the demonstrations use, in one call. A loop of one's own needs nothing from here:

    for x0 in loader:
        model.loss(x0).backward()
        optimiser.step(); optimiser.zero_grad(); ema.update(model)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from sde_diffusion._checks import check_callable, check_count, check_flag
from sde_diffusion.data.source import Source
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.flow_map import FlowMap
from sde_diffusion.denoiser.network import Network
from sde_diffusion.denoiser.objectives.weights import name_of
from sde_diffusion.noise.seeds import seed_list
from sde_diffusion.training._input import check_callbacks, check_horizon, device_of
from sde_diffusion.training.callbacks import JSONL, Callback
from sde_diffusion.training.checkpoints.registry import warn_of_changed
from sde_diffusion.training.losses import Objective, Tells
from sde_diffusion.training.recipe import Recipe
from sde_diffusion.training.run.door import check_held_out, check_inputs, check_passes
from sde_diffusion.training.run.engine import Engine
from sde_diffusion.training.run.feed import Feed, Inputs, Looks, inputs_of
from sde_diffusion.training.run.folder import Folder, Saving
from sde_diffusion.training.run.record import Training, TrainingInterrupted
from sde_diffusion.training.run.state import check_same, configuration
from sde_diffusion.training.run.steps import Run, Task
from sde_diffusion.training.run.streams import Streams
from sde_diffusion.training.trainable import Trainable
from sde_diffusion.training.validation import Validation

__all__ = ["Saving", "Training", "TrainingInterrupted", "train"]


def train(
    model: Denoiser | Trainable,
    data: Any,
    *,
    steps: int,
    loss: Objective | None = None,
    recipe: Recipe | None = None,
    val: Any = None,
    out: str | Path | Saving | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    seed: int | None = None,
    progress: bool = False,
    **cond: Any,
) -> Training:
    r"""Trains a model, by denoising score matching or another objective, and returns its weight average.

    By default AdamW with betas (0.9, 0.99), gradients clipped at norm 1, a rate that rises and falls along a cosine.
    Rows are shuffled without replacement; every batch is full. The same arguments with the same seed give the same
    weights, bit for bit, on one machine and thread count; torch's global random state and the mode of the model are
    left as they were.

    All that is random in a step, the rows, the times, the noise, the dropout and what a transform draws, follows from
    the seed and the number of the step. So a run that was cut short and goes on, `resume=True`, ends with the weights
    of one that was not. Launched by `torchrun` or `accelerate launch`, every process works on its share of each batch;
    batches, times and noise are the same on any number of them, and the weights are up to the order of sums, where
    neither the model nor the objective draws by itself. Objectives of flow maps do: for each share they draw anew.

    Whatever ends the run early, Ctrl-C (`TrainingInterrupted`), an error of the network or of the transform, carries
    the `Training` up to there as its attribute `training`, and with `out` saves the run. A closed stderr ends nothing.

    Args:
        model: A `Network`, or another `Denoiser` with parameters, or a `Trainable` such as a codec; it is trained in
            place, the average is a copy.
        data: Data `(N, *)`, each column of vectors and each channel of images of mean about 0 and about the standard
            deviation the model expects (that of `EDM`; 1 otherwise): a tensor, or anything of which
            `data.source_of` makes a source. All of them are looked at before the first step. A tensor has the dtype of
            the model; the numbers of anything else are brought to it.
        steps: Gradient steps.
        loss: The objective, called as `loss(model, x0, generator=generator, **cond)`; it answers a scalar. One that is
            a module is trained as well. By default `model.objective()`, denoising score matching as it suits the model;
            a `FlowMap` wants one of its own, from `distillation`.
        recipe: The batch size, the optimiser and its schedule, the averages, the transform: `Recipe()` by default, with
            the batch size of a `DataLoader` that the data come in.
        val: Data kept out of the training, a `Validation` or rows as `data` are. The averaged model is measured on
            them as it goes, what is returned is the best of them, and the run ends when it has got worse for long. A
            `FlowMap` is measured as a denoiser, which says nothing of its jumps: the last is returned.
        out: The folder to keep the run in, or a `Saving` that also says how often. With it the model is there as
            `load_checkpoint` reads it, the metrics in `metrics.jsonl`, and a run that is cut short can go on.
        resume: Whether to go on with the run in `out`, which has to be begun with the same arguments.
        callbacks: Called with every `Event` of the run, by the first process alone.
        seed: The seed of the batches, the times, the noise, the dropout and the transform; not of the initial weights.
            None draws fresh entropy, or takes the seed of the run that is resumed.
        progress: Shows a progress bar with the loss.
        **cond: Conditions by name, `label=` or `context=` for instance, with a row for each row of the data, unless a
            mark or the model says otherwise; see `denoiser.conditions`. A name that is taken by an argument here goes
            into a mapping, `cond={"seed": ...}`.

    Returns:
        The averaged model in evaluation mode, and a record. By default about three network evaluations per sample and
        step, two of them in the backward pass.

    Raises:
        TypeError: Integer or half-precision data, labels that are not integers, a model that is neither a `Denoiser`
            nor a `Trainable`, a loss that is no function, or answers no tensor or one without a graph.
        ValueError: Empty or non-finite data, another event shape, conditions that do not fit; a process and a
            parametrisation that do not train well, where no `loss` is given (see `Denoiser.objective`), or a
            `FlowMap`; a loss that answers no scalar; a batch size that does not split; a folder that holds another run,
            or takes no files.
        FileNotFoundError: Nothing to resume.
        ImportError: `accelerate` is not installed.
        SolverError: No finite batch or gradient for 50 steps in a row.
        ProcessLostError: Another process of the run has ended.
        TrainingInterrupted: Ctrl-C; with `out`, or on several processes, SIGTERM and SIGHUP too.

    Warns:
        UserWarning: A column or channel that is shifted, much wider or narrower than the model expects, or constant;
            rows of `val` that are trained on; rows that are seen more than a thousand times; an average longer than a
            fifth of the run; steps that were skipped.
        ColumnWarning: A column of at most ten values, one in which a few rows or a mark such as -999 lie far from all
            others, or columns that follow from others.
    """
    check_count(steps, "steps")
    device_of(model)  # which looks whether it is one of the two, and a run asks nothing that not both have
    model = cast(Denoiser, model)
    loss, callbacks = _checked(model, recipe, loss), check_callbacks(callbacks)
    folder = _folder(out, resume)
    inputs, held_out = inputs_of(model, data, cond), _validation(val)
    if recipe is None:
        recipe = Recipe(batch_size=inputs.data.batch_size or Recipe().batch_size)
    recipe = recipe.of_run(steps, len(inputs.data) if isinstance(inputs.data, Source) else None)
    recipe = recipe.after(inputs.data.transform if isinstance(inputs.data, Source) else None)
    (start,) = seed_list(seed, 1)
    with Engine(device_of(model), recipe.precision) as engine, ExitStack() as stack:
        before = engine.from_first(lambda: stack.enter_context(folder.opened(model, resume)) if folder else None)
        start = _seed(seed, engine.told(start), before)
        feed = Feed(inputs, model, loss, recipe, Streams(start), engine)
        config = configuration(model, loss, recipe, inputs, held_out, steps=steps, seed=start)
        if before is not None:
            check_same(before[0]["config"], config, folder and folder.path, model)
            with _speaking(engine.first):
                warn_of_changed(before[0].get("code", {}), cast(Network, model), folder and folder.path)
        else:
            with _speaking(engine.first):
                _look_at(model, loss, inputs, held_out, recipe, steps, feed.streams)
        if folder:
            folder.of_rows(inputs.data)
            callbacks = [JSONL(folder.metrics, every=max(1, steps // 1000), replace=True), *callbacks]
        with _ready(model, loss, engine.device):
            task = Task(model, loss, recipe, steps, feed, engine, config)
            run = Run(task, callbacks, folder if engine.first else None, held_out)
            run.mark_begun()
            if before is not None:
                run.restore(*before)
            run.over(progress)
    return run.record()


def _look_at(
    model: Denoiser,
    loss: object,
    inputs: Inputs,
    val: Validation | None,
    recipe: Recipe,
    steps: int,
    streams: Streams,
) -> None:
    """All that can be told of the data and of the recipe before the first step."""
    told = loss.tells if isinstance(loss, Tells) else ()
    source = None if val is None else val.source
    seen = check_inputs(model, inputs, recipe.transform, streams.of("door"), source, told)
    if val is None:
        check_passes(inputs, steps, recipe.batch_size)
    else:
        check_held_out(model, val.source, recipe.transform, streams.of("door"), seen, told)
    for decay in recipe.decays:
        check_horizon(decay, steps)


@contextmanager
def _speaking(aloud: bool) -> Iterator[None]:
    """Lets one of several processes alone warn."""
    with nullcontext() if aloud else warnings.catch_warnings():
        if not aloud:
            warnings.simplefilter("ignore")
        yield


def _checked(model: Denoiser, recipe: Recipe | None, loss: Objective | None) -> Objective:
    """The objective, after a look at it, at the recipe and at the model."""
    given: object = recipe
    if given is not None and not isinstance(given, Recipe):
        raise TypeError(f"recipe must be a Recipe, such as Recipe(batch_size=256, lr=1e-3), got {given!r}")
    device_of(model)
    if loss is None:
        if isinstance(model, FlowMap):
            raise ValueError(
                "a FlowMap learns to jump by an objective of its own, loss=Shortcut(teacher), or Shortcut() without a "
                "teacher: the default, denoising score matching, leaves the jumps as they are. Where that is wanted, "
                "say so, loss=model.objective()"
            )
        loss = model.objective()
    check_callable(loss, "loss", "a function (model, x0, generator=...) -> scalar, such as model.objective()")
    if isinstance(loss, type) or isinstance(getattr(loss, "__self__", None), Denoiser | Trainable):
        raise TypeError(
            f"loss is called as loss(model, x0, generator=...), which {name_of(loss)} is not made for: write "
            "loss=losses.DenoisingScoreMatching(...), an instance, loss=model.objective(), or leave loss out for that"
        )
    shown: object = loss
    if isinstance(shown, Looks):
        shown.look_at(model)
    return loss


def _folder(out: str | Path | Saving | None, resume: bool) -> Folder | None:
    check_flag(resume, "resume")
    if out is None:
        if resume:
            raise ValueError("resume=True goes on with a run that was kept: say where, out=folder")
        return None
    if not isinstance(out, str | Path | Saving):
        raise TypeError(f"out must be a folder, or a Saving(folder, every=500), got {type(out).__name__}")
    return Folder(out if isinstance(out, Saving) else Saving(out))


def _validation(val: Any) -> Validation | None:
    return val if val is None or isinstance(val, Validation) else Validation(val)


def _seed(given: int | None, fresh: int, before: Any) -> int:
    """The seed of a run: that of the run which it goes on with, if none is given."""
    return fresh if given is not None or before is None else int(before[0]["config"]["seed"])


@contextmanager
def _ready(model: nn.Module, loss: object, device: torch.device) -> Iterator[None]:
    """Gradients, whatever the caller's mode is, training mode and a random state of its own; on leaving, as it was."""
    trained = [model, loss] if isinstance(loss, nn.Module) else [model]
    modes = [(module, module.training) for one in trained for module in one.modules()]
    cuda = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=cuda):
        for one in trained:
            one.to(device).train()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
