"""Samples of an exact law, by weighted particles, with the evidence of it: `sample --particles N`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.cli._arguments import Say
from sde_diffusion.cli.limits import check_batch, check_seeds
from sde_diffusion.cli.target.known import Known
from sde_diffusion.cli.target.options import SYSTEMS
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import PerSample
from sde_diffusion.particles.result import Particles
from sde_diffusion.particles.sampler import ParticleSampler
from sde_diffusion.training.checkpoint import Checkpoint

STEPS = 100
PASSES = 2
"""How often what a pass keeps is in memory while its gradient is found."""


def weigh(
    model: Denoiser,
    particles: int,
    n: int,
    steps: int | None,
    seed: int,
    told: Mapping[str, Tensor],
    known: Known | None,
    loaded: Checkpoint,
    say: Say,
) -> tuple[Tensor, dict[str, float]]:
    """Draws samples of an exact law, as the model knows them, and finds its evidence.

    Args:
        model: The target.
        particles: How many in each system.
        n: How many samples are drawn of them.
        steps: Of the sampler.
        seed: `k` gives system `m` the stream `k + m`.
        told: The conditions of the model, one row for all samples.
        known: What is known of the samples.
        loaded: The checkpoint.
        say: Called with a line of the report.

    Returns:
        The samples, and what goes beside them into a file.

    Raises:
        ValueError: Conditions of several laws, or what would not fit into memory.
    """
    check_seeds(seed, SYSTEMS)
    given: dict[str, Any] = {name: PerSample(_one(name, value)) for name, value in told.items()}
    if known is not None:
        if known.rows not in (None, 1):
            raise ValueError(
                f"--particles draw from one law, and --inpaint has {known.rows} rows, of which each has its own: give "
                "one sample, or leave --particles out"
            )
        given["y"] = known.y.reshape(-1)
    check_batch(loaded.model, particles, passes=PASSES, option="--particles", cond=told)
    sampler = ParticleSampler(model.sde, model, particles=particles, steps=STEPS if steps is None else steps)
    found = sampler.sample(SYSTEMS, seed=seed, batch_size=1, progress=True, solver_error=sampler.steps > 1, cond=given)
    beside = _evidence(found, known, say)
    count = beside["effective"]
    say(f"drawn from {count:,.0f} effective particles of {found.log_weights.numel():,}, by {sampler!r}")
    if n > count:
        say("fewer than there are samples, which repeat some: for others take more --particles")
    return found.draw(n, seed), beside


def _one(name: str, value: Tensor) -> Tensor:
    """The one row of a condition; `ValueError` if it has several that differ."""
    if bool((value != value[:1]).any()):
        option = "--label K, or --label none," if name == "label" else f"one row of --cond {name}"
        raise ValueError(f"--particles draw from one law, and {name} differs between the samples: give {option}")
    return value[:1]


def _evidence(found: Particles, known: Known | None, say: Say) -> dict[str, float]:
    """The evidence in the units of the data, said, and the effective number of particles."""
    value = found.log_evidence + (0.0 if known is None else float(known.log_slope))
    low, high = (end + value - found.log_evidence for end in found.interval(0.95))
    what = "log p(known)" if known is not None else "log of the integral of p(x | condition)^W p(x)^(1 - W)"
    check = "" if math.isnan(found.solver_error) else f"; half the steps differ by {found.solver_error:.2g}"
    units = "" if known is None else ", in the units of the data"
    say(f"{what} = {value:.4f} +- {found.standard_error:.2g} nats{units}, 95 %: {low:.4f} to {high:.4f}{check}")
    share = torch.softmax(found.log_weights.flatten(), dim=0)
    return {
        "log_evidence": value,
        "standard_error": found.standard_error,
        "solver_error": found.solver_error,
        "effective": 1 / float(share.square().sum()),
    }
