"""The steps of a run: the one loop, and what it keeps."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.training._input import check_factor, warn
from sde_diffusion.training.callbacks import Callback, Event, StopTraining
from sde_diffusion.training.checkpoints.registry import code_in
from sde_diffusion.training.losses import Objective
from sde_diffusion.training.recipe import Recipe
from sde_diffusion.training.run.bar import bar_of
from sde_diffusion.training.run.engine import Engine, ProcessLostError
from sde_diffusion.training.run.failures import Failures, Weights
from sde_diffusion.training.run.feed import Feed, Part
from sde_diffusion.training.run.folder import Folder, described
from sde_diffusion.training.run.learner import Learner
from sde_diffusion.training.run.record import Training, TrainingInterrupted, mean_loss
from sde_diffusion.training.run.signals import Signals, name_in
from sde_diffusion.training.run.state import Packed, unpacked
from sde_diffusion.training.run.watch import Watch
from sde_diffusion.training.trainable import Trainable
from sde_diffusion.training.validation import Validation


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
        val: What it is measured on as it goes, if anything.
    """

    def __init__(
        self, task: Task, callbacks: Sequence[Callback], folder: Folder | None, val: Validation | None
    ) -> None:
        engine = task.engine
        self.task, self.callbacks, self.folder = task, callbacks if engine.first else (), folder
        self.told = bool(callbacks) or val is not None  # that the first process alone may end the run
        self.learner = Learner(task.model, task.objective, task.recipe, engine)
        self.watch = None if val is None else Watch(val, task.model)
        self.losses: list[float] = []
        self.failures, self.weights = Failures(task.feed, self.losses), Weights(self.learner)
        self.stopped: str | None = None
        self.spent, self.start = 0.0, time.perf_counter()
        self.saved: int | None = None

    def mark_begun(self) -> None:
        """Tells the model and its copies that they change from here on: of a codec, its units hold no longer."""
        copies = [average.model for average in self.learner.averages]
        models: list[object] = [self.task.model, *copies, *([self.watch.best] if self.watch else [])]
        for model in models:
            if isinstance(model, Trainable):
                model.begin()

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
            self.agreed(self.begin)
            for parts in () if self.stopped else self.task.feed.steps(len(done), steps):
                interrupted = self.step(parts, signals)
                if shown:
                    bar.update()
                    bar.set_postfix_str(f"loss {mean_loss(done):.4f}", refresh=False)
                self.agreed(self.after)
                if interrupted or (signals.came and engine.ranks == 1):
                    raise KeyboardInterrupt(signals.came or "another process was interrupted")
                if self.stopped:
                    break
            self.look()
            self.save()
        with suppress(StopTraining):
            self.tell("end")
        if self.failures.skipped and engine.first:
            warn(self.failures.told(len(done)), 3)

    def step(self, parts: list[Part], signals: Signals) -> bool:
        """One step on a batch, or none, counted, where the batch or its gradient is not finite.

        Returns:
            Whether this process or another one was interrupted.
        """
        engine, i = self.task.engine, len(self.losses)
        engine.seed(self.task.feed.streams.seed_of("dropout", i, engine.rank))
        loss, norm = self.learner.gradient(parts)
        mean, flagged = engine.sum([loss / engine.ranks, float(signals.came is not None)])
        factor = check_factor(self.task.recipe.schedule(i, self.task.steps), i, self.task.steps)
        if not math.isfinite(norm):  # of weights that are lost it never is again
            self.look()
        self.learner.move(factor, math.isfinite(norm))
        self.losses.append(mean)
        self.failures.note(math.isfinite(norm), parts[0].broken)
        return flagged > 0

    def look(self) -> None:
        """Raises `SolverError` where the weights are not finite."""
        self.weights.check(len(self.losses), self.saved, self.folder and self.folder.path)

    def begin(self) -> None:
        """What comes before the first step; of a run that goes on, what an interruption had cut off."""
        self.tell("start")
        if metrics := self.validated():
            self.tell("validation", **metrics)

    def after(self) -> None:
        """What follows a step: callbacks, validation and savings."""
        done, steps = len(self.losses), self.task.steps
        metrics = self.validated()  # before anything can go wrong, so that none is missing when the run goes on
        self.tell("step", loss=self.losses[-1], lr=self.learner.rate)
        if metrics:
            self.tell("validation", **metrics)
        if self.folder is not None and self.folder.due(done) and done < steps:
            self.save()
            self.tell("checkpoint")
        if self.watch is not None and self.watch.over:
            raise StopTraining(self.watch.over)

    def validated(self) -> dict[str, float]:
        """The numbers of a validation, where one is due and was not made yet; else none."""
        watch, done, model = self.watch, len(self.losses), self.learner.averages[0].model
        if watch is None or not done or not watch.due(done, self.task.steps):
            return {}
        self.look()
        metrics, better = watch.measure(model, self.task.objective, self.task.recipe, done)
        if better:
            watch.keep(model)
        return metrics

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
            news = self.watch and self.watch.news(len(self.losses))
            stop, failed, news = self.task.engine.told((stop, None if error is None else repr(error), news))
            if self.watch is not None and news is not None and not self.task.engine.first:
                self.watch.hear(news, self.learner.averages[0].model)
            if failed and error is None:
                raise ProcessLostError(f"the first process failed: {failed}")
        if error is not None:
            raise error
        self.stopped = self.stopped or stop

    def tell(self, kind: str, **metrics: float) -> None:
        """Calls the callbacks."""
        if self.callbacks:
            model, scaling = self.learner.averages[0].model, None if self.folder is None else self.folder.saving.scaling
            event = Event(kind, len(self.losses), self.task.steps, metrics, model, self.record(), scaling)
            for callback in self.callbacks:
                callback(event)

    # --- what is kept

    def record(self) -> Training:
        """The record so far."""
        models = tuple(average.model for average in self.learner.averages)
        seconds = self.spent + time.perf_counter() - self.start
        task, watch = self.task, self.watch
        return Training(
            models[0] if watch is None or not watch.found else watch.best,
            self.losses,
            self.failures.skipped,
            seconds,
            task.objective,
            task.recipe,
            models,
            tuple(watch.found) if watch else (),
            watch.step if watch else None,
            self.stopped,
        )

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Sees to it that an exception carries the record away, and that the run can go on from there."""
        try:
            yield
        except BaseException as error:
            self.learner.forget()
            where = self._saved_after()
            with suppress(Exception):
                self.tell("end")
            done, steps = len(self.losses), self.task.steps
            if isinstance(error, KeyboardInterrupt):
                raise TrainingInterrupted(self.record(), steps, where, signal=name_in(error)) from error
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
        if self.folder is None or not self.learner.whole or not self.losses or self.learner.unsound():
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
        self.look()
        held = Packed()
        about = {
            "config": self.task.config,
            "code": code_in(described(self.task.model)),
            "run": held.add(
                {
                    **self.learner.state(),
                    "validation": None if self.watch is None else self.watch.state(),
                    "losses": torch.tensor(self.losses, dtype=torch.float64, device="cpu"),
                    "failures": self.failures.state(),
                    "stream": self.task.feed.state(),
                    "seconds": self.record().seconds,
                    "stopped": self.stopped,
                },
                "run",
            ),
        }
        self.folder.save(about, held.tensors)
        self.folder.save_model(self.record().model, {"steps": len(self.losses), "seed": self.task.feed.streams.seed})
        self.saved = len(self.losses)

    def restore(self, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Takes up the run that was saved."""
        state = unpacked(about["run"], tensors)
        self.learner.load_state(state)
        self.losses.extend(state["losses"].tolist())
        if self.watch is not None:
            self.watch.load_state(state["validation"])
        self.failures.load_state(state["failures"])
        self.task.feed.load_state(state["stream"])
        self.spent, self.stopped = state["seconds"], state["stopped"]
        self.saved = self.weights.sound = len(self.losses)
