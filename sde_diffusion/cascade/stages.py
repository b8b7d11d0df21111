"""Stages one after the other: each is told the low resolution that the one before it drew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from sde_diffusion._checks import SolverError, check_count, check_flag, check_samples
from sde_diffusion.cascade.upsampler import Upsampler
from sde_diffusion.data.scalings import Scaling
from sde_diffusion.denoiser.chunks import counted_from
from sde_diffusion.denoiser.conditions import Conditions, merged
from sde_diffusion.noise.seeds import Seed, Use, apart, as_seeds
from sde_diffusion.noise.sources import NoiseSource, Streams
from sde_diffusion.sampler.base import Iterates, Sampler, guarded
from sde_diffusion.sampler.sampler import kept
from sde_diffusion.solvers.loop import NonFiniteWarning, Snapshot, UnfinishedWarning

Names = Sequence[str]
STAGE = "stage"
"""The name under which the conditions of all stages are handed on, once they are sorted."""


class _ByStage(dict[int, dict[str, Any]]):
    """Conditions that were sorted for each stage, by its number."""


class Staged(NamedTuple):
    """A snapshot of a cascade.

    Attributes:
        stage: Number of the stage, from 0.
        now: The snapshot of its solve; its state has the resolution of the stage.
    """

    stage: int
    now: Snapshot


class Cascade(Sampler):
    r"""Draws coarse to fine, $p(x^0)\prod_j p(x^j \mid z^j)$: a sampler, then `Upsampler`s, each of the one before.

    Sample `i` has a stream of random numbers for each stage, and for the noise on each low resolution, that follow from
    seed `i` alone; no two of these uses of one sample have the same stream.

    Args:
        stages: The samplers, from the coarsest on, each with its solver and budget. The first may be an `Upsampler`
            too, and `sample` is given its `low=` then.
        takes: For each stage the names of the conditions that it is told; by default all stages are told all of them.
        scalings: The scaling of the data of each stage, where these differ: what a stage drew is brought to the units
            of the next. Samples are in the units of the last, as a sampler's are, `scalings[-1].undo(x)`.

    Raises:
        TypeError: Stages of another kind.
        ValueError: Resolutions that do not follow one another, or another number of entries in `takes` or `scalings`.

    Example:
        >>> x = Cascade([SDESampler(sde, base), Upsampler(SDESampler(sde, fine), LowResolution(2))]).sample(64, seed=0)
    """

    def __init__(
        self,
        stages: Sequence[Sampler],
        *,
        takes: Sequence[Names | None] | None = None,
        scalings: Sequence[Scaling | None] | None = None,
    ) -> None:
        self.stages = _checked(stages)
        self.takes = _for_each(takes, "takes", self.stages)
        self.scalings = _for_each(scalings, "scalings", self.stages)
        for names in self.takes:
            if names is not None and (isinstance(names, str) or not all(isinstance(name, str) for name in names)):
                raise TypeError(f"takes holds the names of conditions for each stage, ('label',), got {names!r}")
        for scaling in self.scalings:
            if not isinstance(scaling, Scaling | None):
                raise TypeError(f"scalings holds a scaling for each stage, such as Standardise, got {scaling!r}")
        if len({scaling is None for scaling in self.scalings}) > 1:
            raise ValueError("scalings has None for some stages: give the scaling of the data of each, or of none")

    def __repr__(self) -> str:
        takes = "" if set(self.takes) == {None} else f", takes={list(self.takes)}"
        scalings = "" if set(self.scalings) == {None} else f", scalings={list(self.scalings)}"
        return f"Cascade([{', '.join(map(repr, self.stages))}]{takes}{scalings})"

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Event shape of the last stage."""
        return self.stages[-1].shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the last stage."""
        return self.stages[-1].dtype

    @property
    def models(self) -> tuple[object, ...]:
        """Those of all stages."""
        return tuple(model for stage in self.stages for model in stage.models)

    @property
    def details(self) -> list[Any]:
        """Those of all stages, and the scalings."""
        scalings = [None if scaling is None else [type(scaling).__name__, scaling.config] for scaling in self.scalings]
        return [[stage.details for stage in self.stages], scalings]

    def conditions(self, cond: Mapping[str, Any], n: int) -> Conditions:
        """The conditions of `n` samples, sorted by each stage that is told them, as `sample` takes them back.

        Raises:
            ValueError: A condition that no stage is told, or one that a low resolution tells already.
        """
        given = enumerate(self._sorted(cond, n))
        return Conditions({STAGE: _ByStage((j, mine.marked(slice(0, n))) for j, mine in given)}, n)

    def sample(
        self,
        n: int = 1,
        *,
        seed: Seed = None,
        batch_size: int | None = None,
        progress: bool = False,
        noise: Callable[..., NoiseSource] = Streams,
        grad: bool = False,
        nonfinite: str = "raise",
        **cond: Any,
    ) -> Tensor:
        """Draws `n` samples of the last stage, shape `(n, C, *spatial)`; arguments as of `SDESampler.sample`.

        Every batch goes through all stages before the next begins. Conditions go to each stage that `takes` them.

        Raises:
            TypeError, ValueError, SolverError: As of the stages; an error on the way names the stage.
        """
        found = self.sample_stages(
            n, seed=seed, batch_size=batch_size, progress=progress, noise=noise, grad=grad, nonfinite=nonfinite, **cond
        )
        return found[-1]

    def sample_stages(
        self,
        n: int = 1,
        *,
        seed: Seed = None,
        batch_size: int | None = None,
        progress: bool = False,
        noise: Callable[..., NoiseSource] = Streams,
        grad: bool = False,
        nonfinite: str = "raise",
        **cond: Any,
    ) -> list[Tensor]:
        """What every stage drew, each in the units of its own model; `sample` answers the last of them."""
        n, seeds, given = self._begin(n, seed, check_flag(grad, "grad"), nonfinite, cond)
        size = n if batch_size is None else check_count(batch_size, "batch_size")
        for mine in given if size < n else ():
            mine.check_apart(f"in batches of {size}")
        parts: list[list[Tensor]] = [[] for _ in self.stages]
        options: dict[str, Any] = {"noise": noise, "nonfinite": nonfinite}
        options |= {"grad": True} if grad else {}
        with tqdm(total=n * len(parts), desc="sampling", disable=not check_flag(progress, "progress")) as bar:
            for start in range(0, n, size):
                rows = slice(start, min(start + size, n))
                own = seeds[rows] if isinstance(seeds, list) else seeds
                x: Tensor | None = None
                for j in range(len(self.stages)):
                    x = self._draw(j, rows, own, self._told(j, x, given[j], rows, grad), options)
                    parts[j].append(x)
                    bar.update(len(x))
        with torch.set_grad_enabled(grad):
            return [torch.cat(part) if len(part) > 1 else part[0] for part in parts]

    def iterate(
        self,
        n: int = 1,
        *,
        seed: Seed = None,
        noise: Callable[..., NoiseSource] = Streams,
        grad: bool = False,
        nonfinite: str = "raise",
        **cond: Any,
    ) -> Iterator[Staged]:
        """The solves behind `sample`, stage after stage and step by step; arguments as there.

        Raises:
            TypeError: As `sample`, or a stage that has no `iterate`.
            ValueError: As `sample`; and a state that was written to, as of `SDESampler.iterate`.
        """
        n, seeds, given = self._begin(n, seed, check_flag(grad, "grad"), nonfinite, cond)
        if strange := next((stage for stage in self.stages if not isinstance(stage, Iterates)), None):
            raise TypeError(f"{type(strange).__name__} has no iterate: draw by sample")
        options: dict[str, Any] = {"noise": noise, "nonfinite": nonfinite} | ({"grad": True} if grad else {})
        return self._iterated(n, seeds, given, grad, options)

    def _iterated(
        self, n: int, seeds: list[int] | torch.Generator, given: list[Conditions], grad: bool, options: dict[str, Any]
    ) -> Iterator[Staged]:
        x: Tensor | None = None
        for j, stage in enumerate(self.stages):
            told, streams = self._told(j, x, given[j], slice(0, n), grad), apart(seeds, j)
            if isinstance(stage, Iterates):
                solve = stage.iterate(n, seed=streams, cond=told, **options)
                for now in guarded(solve, grad, nullcontext()):  # the next stage goes on from it, whatever made it
                    yield Staged(j, now)
                    x = now.x

    # --- parts

    def _begin(
        self, n: int, seed: Seed, grad: bool, nonfinite: str, cond: Mapping[str, Any]
    ) -> tuple[int, list[int] | torch.Generator, list[Conditions]]:
        """The number of samples, their seeds, and the conditions of each stage."""
        kept(nonfinite)
        n, first = check_samples(n), self.stages[0]
        if n == 1 and isinstance(first, Upsampler):
            n = first.rows_of({"cond": self._parted(cond)[0]})
        with torch.set_grad_enabled(grad):
            return n, as_seeds(seed, n), self._sorted(cond, n)

    def _sorted(self, cond: Mapping[str, Any], n: int) -> list[Conditions]:
        """The conditions of each stage, sorted by it; of a later one without the low resolution, which is to come."""
        found = list[Conditions]()
        for j, (stage, mine) in enumerate(zip(self.stages, self._parted(cond), strict=True)):
            sort = stage.besides if j and isinstance(stage, Upsampler) else stage.conditions
            found.append(sort({"cond": mine} if mine else {}, n))
        return found

    def _parted(self, cond: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What each stage is told, as it came, or as it was sorted for each before."""
        named, stages = merged(cond), range(len(self.stages))
        before = named.pop(STAGE) if isinstance(named.get(STAGE), _ByStage) else _ByStage()
        if lost := next((name for name in named if not any(self._is_told(j, name) for j in stages)), None):
            raise ValueError(f"no stage is told condition {lost!r}: takes={list(self.takes)}")
        return [{k: v for k, v in named.items() if self._is_told(j, k)} | before.get(j, {}) for j in stages]

    def _is_told(self, stage: int, name: str) -> bool:
        if name == "low" and (stage or isinstance(self.stages[0], Upsampler)):
            return stage == 0
        names = self.takes[stage]
        return names is None or name in names

    def _told(self, j: int, x: Tensor | None, given: Conditions, rows: slice, grad: bool) -> dict[str, Any]:
        """The conditions of a stage for some samples, with the low resolution that the stage before it drew."""
        with torch.set_grad_enabled(grad):
            told = given.marked(rows)
            if x is None:
                return told
            before, after = self.scalings[j - 1], self.scalings[j]
            if before is not None and after is not None:
                x = after.apply(before.undo(x), self.stages[j].dtype).to(x.device)
            return told | {"low": x}

    def _draw(
        self, j: int, rows: slice, seeds: list[int] | torch.Generator, told: dict[str, Any], options: dict[str, Any]
    ) -> Tensor:
        n = rows.stop - rows.start
        try:
            with counted_from(rows.start, NonFiniteWarning, UnfinishedWarning):
                return self.stages[j].sample(n, seed=apart(seeds, j), cond=told, **options)
        except SolverError as error:
            where = f"samples {rows.start} to {rows.stop - 1}, counted from the first of them"
            raise SolverError(f"in stage {j} of the cascade, {where}: {error}") from error


def _checked(stages: Sequence[Sampler]) -> tuple[Sampler, ...]:
    """The stages, after a look that each can follow the one before it."""
    given: object = stages
    if not isinstance(given, Sequence) or not given or not all(isinstance(stage, Sampler) for stage in given):
        raise TypeError(f"a Cascade is of a sequence of samplers, [SDESampler(...), Upsampler(...)], got {stages!r}")
    found = tuple(stages)
    if len(found) >= Use.AUGMENTATION:
        raise ValueError(f"a cascade has fewer than {Use.AUGMENTATION:d} stages, got {len(found)}")
    for j, stage in enumerate(found):
        if isinstance(stage, Cascade):
            raise TypeError(f"stage {j} is a Cascade: write all stages in one row, so that their noise is not the same")
        if j and not isinstance(stage, Upsampler):
            raise TypeError(
                f"stage {j} is a {type(stage).__name__}, which is told no low resolution: Upsampler(sampler, "
                "LowResolution(2))"
            )
        if isinstance(stage, Upsampler) and j and found[j - 1].shape != stage.low_shape:
            raise ValueError(
                f"stage {j} wants low resolutions of shape {stage.low_shape}, and stage {j - 1} draws "
                f"{found[j - 1].shape}: they must follow one another"
            )
    if found[0].shape is None:
        raise ValueError("the event shape of stage 0 is not known: give it to SDESampler(..., shape=(3, 32, 32))")
    return found


def _for_each(given: Sequence[Any] | None, name: str, stages: Sequence[Sampler]) -> tuple[Any, ...]:
    """An entry for each stage; None for each, where nothing was given."""
    found = (None,) * len(stages) if given is None else tuple(given)
    if len(found) != len(stages):
        raise ValueError(f"{name} has {len(found)} entries for {len(stages)} stages: give one for each")
    return found
