"""What a caller asks of a sampler, put in order before any work: the model, the grid, the seeds, the batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from numbers import Integral
from types import MethodType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sde_diffusion import grids, predict
from sde_diffusion._modules import unbound
from sde_diffusion._network import Network
from sde_diffusion.conditions import Conditions
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.grids import Grid
from sde_diffusion.noise import NoiseSource, SharedStream, Streams, seed_list
from sde_diffusion.sde import SDE, GaussianSDE
from sde_diffusion.solvers.base import Solver

Seed = int | Sequence[int] | torch.Generator | None


def as_model(sde: SDE, score: Denoiser | Callable[..., Tensor]) -> Denoiser | Callable[..., Tensor]:
    """The denoiser behind the `score` argument, or the bare score function of a general SDE."""
    if not isinstance(sde, GaussianSDE):
        if isinstance(score, Denoiser):
            raise TypeError(f"a Denoiser works on a GaussianSDE; for {type(sde).__name__} give a function score(x, t)")
        return _callable(score)
    score = unbound(score)
    if isinstance(score, MethodType) and isinstance(score.__self__, Denoiser) and score.__name__ == "score":
        score = score.__self__  # who knows more than its score
    if isinstance(score, Denoiser):
        if score.sde.process != sde.process:
            raise ValueError(
                f"the denoiser was made for {score.sde!r}, not for {sde!r}: hand over model.on(sde), "
                "which asks the same network at the same log-SNR"
            )
        return score
    raw = unbound(score.func) if isinstance(score, partial) else score
    if isinstance(raw, nn.Module):
        name = type(raw).__name__
        raise TypeError(
            f"{name} is a network that is no Denoiser, and may answer the noise, the data or a velocity: say which, "
            "Network(net, sde, predict.noise), with predict.data, velocity, v, edm or, if it is the score indeed, "
            "predict.score"
        )
    return Network(_callable(score), sde, predict.score)


def _callable(score: Any) -> Callable[..., Tensor]:
    if not callable(score):
        raise TypeError(f"score must be a Denoiser or a function score(x, t), got {score!r}")
    return cast("Callable[..., Tensor]", score)


def default_grid(sde: SDE, model: Any, solver: Solver) -> Grid:
    """The grid of a solver that is given none: uniform on a general SDE, else by what the solver steps in.

    In the noise level or the angle: `grids.angle`, at the scale of the data that the model knows. In the time, where
    the state grows with the noise or the solver adds some: `grids.karras`, since a long step in a large state leaves
    an error that no later step takes back.
    """
    if not isinstance(sde, GaussianSDE):
        return grids.uniform
    if solver.facts.in_time and _long_steps_hurt(sde, solver, model.data_std):
        return grids.karras
    return grids.angle if model.data_std == 1.0 else partial(grids.angle, data_std=model.data_std)


def _long_steps_hurt(sde: GaussianSDE, solver: Solver, data_std: float) -> bool:
    """Whether noise is added, or the state at `t_max` several times as large as the data; and data are left there."""
    low, high = sde.levels([sde.t_min, sde.t_max])
    small, large = (math.hypot(at.alpha * data_std, at.sigma) for at in (low, high))
    return high.alpha > 0 and (solver.facts.stochastic or large > 3 * small)


def grid_name(grid: Any) -> str:
    """A grid as one would write it."""
    if isinstance(grid, partial):
        options = "".join(f", {k}={v!r}" for k, v in grid.keywords.items())
        return f"partial({grid_name(grid.func)}{options})"
    if callable(grid):
        name = getattr(grid, "__name__", repr(grid))
        return f"grids.{name}" if getattr(grids, name, None) is grid else name
    return str([float(t) for t in grid])


def check_noise(noise: object, seed: object) -> None:
    """Raises `TypeError` unless `noise` makes a source of seeds, and `ValueError` if there are no seeds for it."""
    if not callable(noise) or isinstance(noise, NoiseSource) or noise is SharedStream:
        raise TypeError(
            "noise is what makes a source of seeds, the class noise.Streams or noise.BrownianPath itself, got "
            f"{noise!r}; one stream for the whole batch is seed=torch.Generator()"
        )
    if isinstance(seed, torch.Generator) and noise is not Streams:
        raise ValueError(
            f"{getattr(noise, '__name__', noise)} makes one path of each seed, but a torch.Generator is one stream for "
            "the whole batch: give an integer seed, or one per sample"
        )


class Chunk(NamedTuple):
    """A batch of the samples asked for.

    Attributes:
        n: How many.
        seed: Their seeds, or the shared stream.
        start: Their initial states, if given.
        cond: Their conditions.
        first: Number of the first.
    """

    n: int
    seed: list[int] | torch.Generator
    start: Tensor | None
    cond: dict[str, Any]
    first: int = 0


def chunks(n: int, size: int, seed: Seed, x_T: Tensor | None, cond: Conditions) -> Iterator[Chunk]:
    """The batches of at most `size` in which `n` samples are drawn."""
    seeds = as_seeds(seed, n)
    for i in range(0, n, size):
        part = slice(i, min(i + size, n))
        yield Chunk(
            part.stop - i,
            seeds[part] if isinstance(seeds, list) else seeds,
            None if x_T is None else x_T[part],
            cond.part(part),
            i,
        )


def as_seeds(seed: Seed, n: int) -> list[int] | torch.Generator:
    """One seed per sample, or the shared generator (asked for last: that test takes as long as ten steps)."""
    if seed is None or isinstance(seed, (Integral, list, tuple, range)):
        return seed_list(seed, n)
    return seed if isinstance(seed, torch.Generator) else seed_list(seed, n)
