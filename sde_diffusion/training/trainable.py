"""What `train` asks of a model that is no denoiser, such as a codec: an objective, a description, a place to be kept.

All else of a run, its batches, noise, averages, processes and how it goes on, is the same for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from sde_diffusion.data.scalings import Scaling
from sde_diffusion.training.losses import Objective

__all__ = ["Trainable"]


class Trainable(nn.Module, ABC):
    """A model that `train` takes beside `Denoiser`s. A subclass holds its network as `net`.

    Its objective answers `(B,)` values, one for each row, where it is called with `reduction="none"`: on rows kept out,
    their mean is what a validation goes by.

    Attributes:
        stored: What it is called in the folder of a run: a word of small letters, other than `model` and `state`.
        shape: Event shape of the data; None if it works on several.
        data_std: Standard deviation that it expects of the data.
        per_sample: The conditions that have rows.
        kind: None: it answers no parametrisation of a denoiser.
    """

    stored: ClassVar[str]
    net: nn.Module
    shape: tuple[int, ...] | None = None
    data_std: float = 1.0
    per_sample: tuple[str, ...] = ()
    kind: None = None

    @abstractmethod
    def objective(self) -> Objective:
        """What it is trained by if nothing is said."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What it is, for JSON; its net in the entry `net`.

        Raises:
            TypeError: It cannot be rebuilt from a description.
        """

    @abstractmethod
    def save_to(
        self, path: str | Path, *, scaling: Scaling | None, extra: Mapping[str, Any] | None = None, keep: int = 0
    ) -> None:
        """Writes it to a folder, under its name.

        Args:
            path: The folder.
            scaling: What the data went through before.
            extra: Anything JSON can hold.
            keep: How many of those before it stay.
        """

    def begin(self) -> None:
        """Called just before the first step of a run, of copies too: what was measured of it before holds no longer."""

    def anew(self, where: str) -> str:
        """How another run begins from the weights of that in the folder `where`, in words of code."""
        return f"with what is kept in {where}"

    def words(self) -> str:
        """What is told of it beside its class and size, which a run that goes on must have in common."""
        return "no denoiser"

    def built_with(self) -> Mapping[str, object]:
        """The arguments that the net was built with, where it says so by a `config`; else none."""
        found = getattr(self.net, "config", {})
        return found if isinstance(found, Mapping) else {}
