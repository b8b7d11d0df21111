"""The folder of a run: the model that was learnt, what is needed to go on, and the metrics.

    model.json      the model, as `load_checkpoint` reads it: of the best validation, else the average
    state.json      all that a run needs to go on
    metrics.jsonl   the metrics, a line for each event

Of another `Trainable`, a codec, they are called `codec.json`, `codec_state.json` and `codec_metrics.jsonl`: it may lie
beside the model that is trained on its codes. Each of the first two comes with a file of tensors, and is replaced as a
whole, see `store`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from sde_diffusion._checks import check_count, check_flag
from sde_diffusion._files import check_folder, remove_empty
from sde_diffusion.data.scalings import Scaling
from sde_diffusion.data.source import Source, Stream
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.network import Network
from sde_diffusion.training import store
from sde_diffusion.training.checkpoint import check_scaling, named_base, save_checkpoint
from sde_diffusion.training.checkpoints.registry import describe
from sde_diffusion.training.trainable import Trainable

Found = tuple[dict[str, Any], dict[str, Tensor]]

STATE, MODEL, METRICS = "state", "model", "metrics.jsonl"
KEPT = "latent"
"""What is kept of `about` of the rows, under this name, in `extra` of the model."""
COPIES = 6
"""How often the numbers of a model are in what is saved: weights, moments, an average or two, the checkpoint."""
FIRST, MINUTES = 30.0, 5.0
"""Where nothing is said, a run is saved after so many seconds, then after twice as many, up to so many minutes."""


@dataclass(frozen=True)
class Saving:
    """Where a run of `train` is kept, and how often it is saved.

    Args:
        path: The folder, made if need be.
        every: Steps between two savings; None for half a minute, then a minute, and so on up to five. A run is saved at
            its end too, and when it is interrupted or fails.
        keep: How many of the states and models before the last one stay, to go on from if that is damaged.
        overwrite: Whether a run that is there already is begun anew.
        scaling: The scaling that brought the data to what the model sees, kept with the model.
        conditions: Those of its continuous conditions, by name.
        extra: Anything JSON can hold, kept with the model.
        base: Of a control or of adapters, the folder of the checkpoint of what they stand on, see `save_checkpoint`.

    Raises:
        TypeError: `path` is no path, or what is to be a scaling is none.
        TypeError, ValueError: `every` or `keep` is no positive integer.
    """

    path: str | Path
    every: int | None = None
    keep: int = 1
    overwrite: bool = False
    scaling: Scaling | None = None
    conditions: Mapping[str, Scaling] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    base: str | Path | None = None

    def __post_init__(self) -> None:
        path: object = self.path
        if not isinstance(path, str | Path):
            raise TypeError(f"Saving keeps a run in a folder, got {path!r} as its path: to keep none, leave out= out")
        if self.scaling is not None:
            check_scaling(self.scaling)
        for name, scaling in dict(self.conditions or {}).items():
            check_scaling(scaling, f"of {name!r}")
        if self.every is not None:
            check_count(self.every, "every")
        check_count(self.keep, "keep")
        check_flag(self.overwrite, "overwrite")


class Folder:
    """The folder of a run, for the one process that writes to it.

    Args:
        saving: Where, and how often.
    """

    def __init__(self, saving: Saving) -> None:
        self.saving, self.path = saving, Path(saving.path)
        self._last, self._pause = time.monotonic(), FIRST
        self._about: dict[str, Any] = {}
        self.name_after(None)

    def of_rows(self, rows: Source | Stream) -> None:
        """Takes from the rows that are learnt what is kept with the model: of codes, which codec they are of.

        Raises:
            ValueError: `extra` says that they are codes of another one.
        """
        found, given = getattr(rows, "about", {}).get(KEPT), self.saving.extra.get(KEPT, {})
        if found is None:
            return
        if not isinstance(given, Mapping) or given.get("digest", found.get("digest")) != found.get("digest"):
            raise ValueError(
                f"extra has an entry {KEPT!r}, and of codes that are learnt it names their codec, by which load_codec "
                "knows it again: keep what is yours under another name"
            )
        self._about = {KEPT: {**given, **found}}

    def name_after(self, model: object) -> None:
        """Calls what is kept as it is called of such a model."""
        other = model.stored if isinstance(model, Trainable) else None
        self.model, self.state = other or MODEL, f"{other}_{STATE}" if other else STATE
        self.metrics = self.path / (f"{other}_{METRICS}" if other else METRICS)
        self._keep = {self.state: self.saving.keep, self.model: self.saving.keep}

    @contextmanager
    def opened(self, model: Denoiser, resume: bool) -> Iterator[Found | None]:
        """What the run in the folder remembers, if it is to be resumed, and the folder, for this run alone.

        Where the folder was made here and a run left nothing in it, it is gone again.

        Raises:
            TypeError: A model that cannot be rebuilt from its description.
            ValueError: The folder takes no files, or there is a run where none is to be.
            FileNotFoundError: No run where one is to be.
            BlockingIOError: Another process has the folder.
        """
        self.name_after(model)
        check_folder(self.path, "out", size=COPIES * (self.saving.keep + 2) * sum(map(_bytes, model.parameters())))
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with store.locked(self.path):
                self._check(model, resume)
                yield store.read(self.path, self.state) if resume else None
        finally:
            remove_empty(made)

    def _check(self, model: Denoiser | Trainable, resume: bool) -> None:
        """Raises unless the folder holds a run if one is to be resumed, and none if not, and the model can be saved."""
        if not isinstance(model, Network | Trainable):
            raise TypeError(f"out keeps a Network, got {type(model).__name__}: train the Network inside of it")
        described(model)
        if isinstance(model, Network):
            named_base(model, self.path, self.saving.base)
        elif self.saving.base is not None:
            raise ValueError(f"base= is that of a control or of adapters, and {type(model).__name__} has none")
        names = (self.state, self.model)
        there = any((self.path / f"{name}.json").exists() for name in names)
        for name in names:
            store.check_place(self.path, name)
        if self.metrics.is_dir():
            raise IsADirectoryError(
                f"{self.path} holds a folder {self.metrics.name}, where a file is to go: move it away"
            )
        if resume and not any(path.suffix == ".json" for path in store.files_of(self.path, self.state)):
            raise FileNotFoundError(f"there is no run to resume in {self.path}: leave resume out to begin one there")
        if not resume:
            self._keep = dict.fromkeys(names, 0)  # of what another run has left there
        if there and not resume and not self.saving.overwrite:
            raise ValueError(
                f"{self.path} holds a run already: go on with it, resume=True; or give another folder, or "
                f"out=Saving({str(self.path)!r}, overwrite=True) to begin anew in its place"
            )

    def due(self, step: int) -> bool:
        """Whether it is time to save."""
        if self.saving.every is not None:
            return step % self.saving.every == 0
        return time.monotonic() - self._last > self._pause

    def save(self, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Saves what a run has to remember."""
        store.write(self.path, self.state, about, tensors, keep=self._keep[self.state])
        self._keep[self.state] = self.saving.keep
        self._last, self._pause = time.monotonic(), min(2 * self._pause, 60 * MINUTES)

    def save_model(self, model: Denoiser | Trainable, extra: Mapping[str, Any]) -> None:
        """Saves the model, as `load_checkpoint` reads it, or as another `Trainable` says."""
        saving, about = self.saving, {**extra, **self.saving.extra, **self._about}
        scaling, conditions = saving.scaling, saving.conditions
        keep = self._keep[self.model]
        if isinstance(model, Trainable):
            model.save_to(self.path, scaling=scaling, extra=about, keep=keep)
        else:
            save_checkpoint(
                self.path, model, scaling=scaling, conditions=conditions, extra=about, keep=keep, base=saving.base
            )
        self._keep[self.model] = saving.keep


def described(model: Denoiser | Trainable) -> dict[str, Any]:
    """What a model is, for JSON.

    Raises:
        TypeError: A model that cannot be rebuilt from its description.
    """
    return model.described() if isinstance(model, Trainable) else describe(cast(Network, model))


def _bytes(p: Tensor) -> int:
    return p.numel() * p.element_size()
