"""The steps of a run: the one loop, and what it keeps."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from sde_diffusion.data.source import Stream
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.network import Network
from sde_diffusion.training._input import check_loss, warn
from sde_diffusion.training.callbacks import Callback, Event, StopTraining
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.losses import Objective
from sde_diffusion.training.recipe import Recipe
from sde_diffusion.training.run.bar import bar_of
from sde_diffusion.training.run.engine import Engine, ProcessLostError
from sde_diffusion.training.run.failures import Failures
from sde_diffusion.training.run.feed import Feed, Part
from sde_diffusion.training.run.folder import Folder
from sde_diffusion.training.run.record import Training, TrainingInterrupted, mean_loss
from sde_diffusion.training.run.signals import Signals
from sde_diffusion.training.run.state import Packed, unpacked


class Loss(nn.Module):
    """Model and objective as one module whose answer is the loss, so that gradients are shared between processes."""

    def __init__(self, model: Denoiser, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, draws: dict[str, Any], cond: dict[str, Any]) -> Tensor:
        """The loss of a micro-batch."""
        return check_loss(self.objective(self.model, x, **draws, **cond))


@dataclass(frozen=True)
class Task:
    """What a run is to do.

    Args:
        model: The model to be trained.
        objective: What is minimised.
        recipe: How.
        steps: How many steps.
        feed: Their batches.
        engine: What they run on.
        config: What must be the same when the run goes on.
    """

    model: Denoiser
    objective: Objective
    recipe: Recipe
    steps: int
    feed: Feed
    engine: Engine
    config: dict[str, str]


class Run:
    """The optimiser, the averages and the record of one run.

    Args:
        task: What it is to do.
        callbacks: What is told of it.
        folder: Where it is kept, if anywhere; used by the first process alone.
    """

    def __init__(self, task: Task, callbacks: Sequence[Callback], folder: Folder | None) -> None:
        recipe, engine = task.recipe, task.engine
        self.task, self.callbacks, self.folder = task, callbacks if engine.first else (), folder
        self.told = bool(callbacks)  # that the first process alone may end the run
        loss = Loss(task.model, task.objective)
        self.parameters = [p for p in loss.parameters() if p.requires_grad]
        self.optimiser = recipe.optimiser(self.parameters, recipe.lr)
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.module, self.engaged = engine.prepare(loss, self.optimiser)  # now weights are those of the first process
        self.averages = [EMA(task.model, decay) for decay in recipe.decays]
        self.losses: list[float] = []
        self.failures = Failures(task.feed, self.losses)
        self.stopped: str | None = None
        self.spent, self.start = 0.0, time.perf_counter()
        self.whole = True  # nothing is half changed, so that it can be saved
        self.saved: int | None = None

    # --- the loop

    def over(self, progress: bool) -> None:
        """All steps from where the run stands, with a progress bar if asked for; warns of those that were skipped."""
        engine, steps, done = self.task.engine, self.task.steps, self.losses
        shown = progress and engine.first
        with (
            bar_of(steps, len(done), shown) as bar,
            self.kept(),
            engine.watched(),
            Signals(self.folder is not None or engine.ranks > 1) as signals,
        ):
            self.agreed(lambda: self.tell("start"))
            for parts in () if self.stopped else self.task.feed.steps(len(done), steps):
                interrupted = self.step(parts, signals.came is not None)
                if shown:
                    bar.update()
                    bar.set_postfix_str(f"loss {mean_loss(done):.4f}", refresh=False)
                self.agreed(self.after)
                if interrupted or (signals.came and engine.ranks == 1):
                    raise KeyboardInterrupt(signals.came or "another process was interrupted")
                if self.stopped:
                    break
            self.save()
        with suppress(StopTraining):
            self.tell("end")
        if self.failures.skipped and engine.first:
            warn(f"{self.failures.skipped} of {len(done)} steps were skipped: {self.failures.why} not finite", 3)

    def step(self, parts: list[Part], interrupted: bool) -> bool:
        """One step on a batch, or none, counted, where the batch or its gradient is not finite.

        Returns:
            Whether this process or another one was interrupted.
        """
        engine, i = self.task.engine, len(self.losses)
        torch.manual_seed(self.task.feed.streams.seed_of("dropout", i, engine.rank))
        total = 0.0
        for k, part in enumerate(parts, 1):
            with engine.accumulating(self.module, last=k == len(parts)):
                loss = self.module(part.x, part.draws, part.cond) / len(parts)
                engine.backward(loss * math.nan if part.broken else loss)
            total += math.nan if part.broken else float(loss.detach())
        norm = engine.clip(self.parameters, self.task.recipe.clip)
        mean, flagged = engine.sum([total / engine.ranks, float(interrupted)])
        self.losses.append(mean)
        finite, self.whole = math.isfinite(norm), False
        if finite or engine.scaler is not None:
            factor = self.task.recipe.schedule(i, self.task.steps)
            for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            self.engaged.step()
        self.engaged.zero_grad()
        if finite:
            for average in self.averages:
                average.update(self.task.model)
        self.whole = True
        self.failures.note(finite, parts[0].broken)
        return flagged > 0

    def after(self) -> None:
        """What follows a step: callbacks and savings."""
        self.tell("step", loss=self.losses[-1], lr=float(self.optimiser.param_groups[0]["lr"]))
        if self.folder is not None and self.folder.due(len(self.losses)) and len(self.losses) < self.task.steps:
            self.save()
            self.tell("checkpoint")

    def agreed(self, act: Callable[[], None]) -> None:
        """Does what the first process alone does, and lets all know whether the run goes on."""
        stop: str | None = None
        error: BaseException | None = None
        if self.task.engine.first:
            try:
                act()
            except StopTraining as signal:
                stop = signal.reason or "a callback stopped it"
            except BaseException as failure:  # noqa: BLE001 - raised again below, when the others know
                error = failure
        if self.task.engine.ranks > 1 and self.told:
            stop, failed = self.task.engine.told((stop, None if error is None else repr(error)))
            if failed and error is None:
                raise ProcessLostError(f"the first process failed: {failed}")
        if error is not None:
            raise error
        self.stopped = self.stopped or stop

    def tell(self, kind: str, **metrics: float) -> None:
        """Calls the callbacks."""
        if self.callbacks:
            event = Event(kind, len(self.losses), self.task.steps, metrics, self.averages[0].model, self.record())
            for callback in self.callbacks:
                callback(event)

    # --- what is kept

    def record(self) -> Training:
        """The record so far."""
        models = tuple(average.model for average in self.averages)
        seconds = self.spent + time.perf_counter() - self.start
        task = self.task
        return Training(
            models[0],
            self.losses,
            self.failures.skipped,
            seconds,
            task.objective,
            task.recipe,
            models,
            stopped=self.stopped,
        )

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Sees to it that an exception carries the record away, and that the run can go on from there."""
        try:
            yield
        except BaseException as error:
            where = self._saved_after()
            with suppress(Exception):
                self.tell("end")
            done, steps = len(self.losses), self.task.steps
            if isinstance(error, KeyboardInterrupt):
                raise TrainingInterrupted(self.record(), steps, where) from error
            if isinstance(error, ProcessLostError):
                error = ProcessLostError(
                    f"a process of this run was lost after {done} of {steps} steps ({error}). What was saved last is "
                    "whole: to go on, call the same train(..., resume=True), on as many processes as there are"
                )
            vars(error)["training"] = self.record()
            if sys.version_info >= (3, 11):
                error.add_note(
                    f"Training ended after {done} of {steps} steps: `.training` of this exception holds the averaged "
                    "model and the losses." + (f" All of it is saved in {where}." if where else "")
                )
            raise error

    def _saved_after(self) -> str | None:
        """Where the run is saved when it is cut short; None where it cannot be, or nothing was done."""
        if self.folder is None or not self.whole or not self.losses:
            return None
        try:
            self.save()
        except (OSError, ValueError, TypeError) as error:
            warn(f"the run could not be saved: {error}", 4)
            return None
        return str(self.folder.path)

    def save(self) -> None:
        """Saves the run in its folder, if it has one and has gone on since."""
        if self.folder is None or self.saved == len(self.losses):
            return
        held = Packed()
        stream = self.task.feed.inputs.data
        about = {
            "config": self.task.config,
            "run": held.add(
                {
                    "model": self.task.model.state_dict(),
                    "objective": self._objective_state(),
                    "optimiser": self.optimiser.state_dict(),
                    "rates": self.rates,
                    "averages": [average.state() for average in self.averages],
                    "losses": torch.tensor(self.losses, dtype=torch.float64),
                    "failures": self.failures.state(),
                    "scaler": None if self.task.engine.scaler is None else self.task.engine.scaler.state_dict(),
                    "stream": stream.state() if isinstance(stream, Stream) else None,
                    "seconds": self.record().seconds,
                    "stopped": self.stopped,
                },
                "run",
            ),
        }
        self.folder.save(about, held.tensors)
        model = cast(Network, self.record().model)
        self.folder.save_model(model, {"steps": len(self.losses), "seed": self.task.feed.streams.seed})
        self.saved = len(self.losses)

    def restore(self, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Takes up the run that was saved."""
        state = unpacked(about["run"], tensors)
        self.task.model.load_state_dict(state["model"])
        if isinstance(self.task.objective, nn.Module):
            self.task.objective.load_state_dict(state["objective"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.rates = state["rates"]
        for average, before in zip(self.averages, state["averages"], strict=True):
            average.load_state(before)
        self.losses.extend(state["losses"].tolist())
        self.failures.load_state(state["failures"])
        if self.task.engine.scaler is not None:
            self.task.engine.scaler.load_state_dict(state["scaler"])
        stream = self.task.feed.inputs.data
        if isinstance(stream, Stream) and state["stream"] is not None:
            stream.restore(state["stream"])
        self.spent, self.stopped, self.saved = state["seconds"], state["stopped"], len(self.losses)

    def _objective_state(self) -> dict[str, Any]:
        return self.task.objective.state_dict() if isinstance(self.task.objective, nn.Module) else {}
