"""What the folder of a teacher says of its training: on what it was, what was kept out, and whether it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sde_diffusion.cli.plan.config import NAME, read_config
from sde_diffusion.cli.plan.options import Plan
from sde_diffusion.training import store
from sde_diffusion.training.run.folder import STATE


def before(start: Path) -> Mapping[str, Any]:
    """The fields of `Plan` that the training of a checkpoint was asked for; none where it has no configuration."""
    file = start / NAME
    return read_config(file) if file.is_file() else {}


def recorded(plan: Plan, start: Path) -> Plan:
    """A plan with the data that a checkpoint was trained on, by the configuration beside it.

    Raises:
        ValueError: It does not say.
        FileNotFoundError: The data are gone.
    """
    said = before(start)
    data = said.get("data")
    if data is None:
        raise ValueError(
            f"--checkpoint {start} does not say what it was trained on, in a {NAME} as `train` writes it: give --data"
        )
    if not data.exists():
        raise FileNotFoundError(f"the data that --checkpoint {start} was trained on, {data}, are gone: give --data")
    fresh = Plan()
    more = {
        key: said[key]
        for key in ("cond", "size", "shrink")
        if key in said and getattr(plan, key) == getattr(fresh, key)
    }
    return replace(plan, data=data, **more)


def kept_out(data: Path, start: Path) -> dict[str, Any]:
    """The part of the data, and the seed, by which rows were kept out of the training of a checkpoint on the same."""
    said, fresh = before(start), Plan()
    own, val = said.get("data"), said.get("val", fresh.val)
    if own is None or own.absolute() != data.absolute() or isinstance(val, Path):
        return {"val": 0.0}
    return {"val": val, "seed": said.get("seed", fresh.seed)}


def unfinished(start: Path, steps: object) -> str | None:
    """A sentence that the training of a checkpoint of so many steps has not ended; None where it has, or kept none."""
    try:
        about = store.find(start, STATE).about
        planned, ended = int(about["config"]["steps"]), dict(about["run"]["map"])["stopped"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(steps, int) or steps >= planned or ended is not None:
        return None
    return (
        f"the run in --checkpoint {start} is at step {steps:,} of {planned:,}: the map learns of the model as it is "
        "now, and cannot be gone on with, --resume, once that has changed"
    )
