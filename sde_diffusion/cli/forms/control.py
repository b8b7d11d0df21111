"""`sde-diffusion train --from BASE --control`, and `--lora`: what is trained upon a model, whose weights stay.

The field that a control is told comes with the data, or is made of them. It is the condition `control`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from sde_diffusion.cascade.low_resolution import LowResolution
from sde_diffusion.cli.conditions import scaled
from sde_diffusion.cli.forms.form import CONTROL, LORA, Form, controls_of
from sde_diffusion.cli.plan.design import made_with
from sde_diffusion.cli.plan.inputs import Inputs
from sde_diffusion.cli.plan.opened import array_of
from sde_diffusion.cli.plan.options import Plan
from sde_diffusion.data.sources.base import Batch, Source
from sde_diffusion.denoiser.network import Network
from sde_diffusion.nets.base import OnBase
from sde_diffusion.nets.control import Controlled
from sde_diffusion.nets.lora import LoRA
from sde_diffusion.training.checkpoint import Checkpoint
from sde_diffusion.training.checkpoints.manifests import read_manifest

EDGE, BLOCK = 0.5, 4
"""Standard deviations of the data by which an edge changes from point to point at least; points of a block."""

Make = Callable[[Tensor], Tensor]


def edges(x: Tensor) -> Tensor:
    """1 where a field of unit scale changes by more than `EDGE` from point to point, else 0: `(B, C, *)`, `(B, 1, *)`.

    The change is the length of the gradient by central differences, the largest of the channels.
    """
    square = torch.zeros_like(x)
    for axis in range(2, x.ndim):
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
        wide, n = torch.cat([first, x, last], axis), x.shape[axis]
        square += ((wide.narrow(axis, 2, n) - wide.narrow(axis, 0, n)) / 2).square()
    return (square.amax(1, keepdim=True) > EDGE**2).to(x.dtype)


def coarse(x: Tensor) -> Tensor:
    """Means over blocks of `BLOCK` points along each axis, each over its block: `(B, C, *)`."""
    low = LowResolution(BLOCK, most=0.0)
    return low.spread(low.shrink(x))


KINDS: Mapping[str, Make] = MappingProxyType({"edges": edges, "coarse": coarse})
"""What `--control` makes of the data; any other word names a file or an array."""


def control_words(plan: Plan) -> tuple[str, ...]:
    """The conditions that a plan asks for, the field of its control among them if it comes with the data."""
    if plan.control is None or plan.control in KINDS:
        return plan.cond
    return (*plan.cond, f"{CONTROL}={plan.control}")


def going_on(plan: Plan, start: Checkpoint | None) -> Plan:
    """A plan that says what it trains further: the control or the adapters of a checkpoint, and where their base is.

    Raises:
        ValueError: Another control than that of the checkpoint, other adapters, or fields that are not there; a base of
            what stands on none.
    """
    net = None if start is None else start.model.net
    if start is None or plan.start is None or not isinstance(net, OnBase):
        if plan.base is not None:
            raise ValueError("--base is that of a control or of adapters in --from, which stand on one: leave it out")
        return plan
    what, own = f"--from {plan.start}", "--control" if isinstance(net, Controlled) else "--lora"
    for option, given in (("--control", plan.control), ("--lora", plan.lora)):
        if given is not None and option != own:
            holds = "a control" if own == "--control" else "adapters"
            raise ValueError(
                f"{what} holds {holds}: train that further without {option}, or give its base, to put {option} upon"
            )
    if plan.previews and own == "--control":
        raise ValueError(f"{what} holds a control, and --previews want fields: leave it out, and sample with --control")
    plan = replace(plan, base=plan.base or _base_of(plan.start))
    if isinstance(net, LoRA):
        if plan.lora not in (None, net.rank):
            raise ValueError(f"{what} holds adapters of rank {net.rank}, not {plan.lora}: leave --lora out")
        return replace(plan, lora=net.rank)
    if controls_of(net) != (CONTROL,):
        raise ValueError(f"{what} holds controls called {', '.join(controls_of(net))}: train these in Python")
    kind = start.extra.get(CONTROL, {}).get("of")
    if kind is None and (plan.control is None or plan.control in KINDS):
        raise ValueError(f"{what} holds a control whose fields came with its data: name them, --control FILE or NAME")
    if kind is not None and plan.control not in (None, kind):
        raise ValueError(f"{what} holds a control that is told {kind}, not {plan.control}: leave --control out")
    return replace(plan, control=plan.control or kind)


def _base_of(folder: Path) -> Path | None:
    """The folder of the base that a checkpoint names; None where it holds a whole model."""
    named = read_manifest(folder / "model.json")[1].get("base")
    return None if named is None else folder / named["folder"]


def controlled(plan: Plan, inputs: Inputs, form: Form | None) -> Inputs:
    """The data of a control, each with its field.

    Raises:
        ValueError: Fields of other lengths than the data, or vectors.
    """
    if plan.control is None:
        return inputs if plan.lora is None else replace(inputs, extra={**inputs.extra, LORA: plan.lora})
    shape = inputs.facts.shape
    if len(shape) not in (2, 3, 4):
        raise ValueError(
            f"--control is of fields (N, C, *lengths), and --data has samples of shape {shape}: give vectors a "
            "context, --cond, or adapt the model, --lora"
        )
    if plan.control in KINDS:
        if plan.control == "coarse" and any(n % BLOCK for n in shape[1:]):
            raise ValueError(
                f"--control coarse is of means over {BLOCK} points along each axis, and --data has {shape}"
            )
        made = [
            None if rows is None else Made(rows, KINDS[plan.control], inputs) for rows in (inputs.held_out, inputs.rows)
        ]
        rows = made[1]
        if rows is None:
            raise ValueError("--data has no rows")
        inputs = replace(inputs, rows=rows, held_out=made[0])
    found = inputs.rows.rows(torch.zeros(1, dtype=torch.int64, device="cpu")).cond.get(CONTROL)
    if not isinstance(found, Tensor) or found.ndim != len(shape) + 1 or found.shape[2:] != shape[1:]:
        got = tuple(found.shape[1:]) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"--control {plan.control} has images of shape {got}, wanted (channels, {', '.join(map(str, shape[1:]))}), "
            "as long as the data"
        )
    said = {"of": plan.control if plan.control in KINDS else None, "channels": int(found.shape[1])}
    return replace(inputs, extra={**inputs.extra, CONTROL: said})


def model_upon(plan: Plan, start: Checkpoint, inputs: Inputs, form: Form | None) -> Network:
    """The model that is trained: that of a checkpoint, or what is put upon it.

    Raises:
        TypeError: A network that cannot be controlled, with what it lacks.
    """
    model = start.model
    if isinstance(model.net, OnBase) or (plan.control is None and plan.lora is None):
        return model

    def make() -> OnBase:
        if plan.lora is not None:
            return LoRA(model.net, plan.lora)
        finer = 1
        if form is not None and form.codec is not None and form.shape is not None and model.shape is not None:
            finer = form.shape[1] // model.shape[1]
        return Controlled(model.net, int(inputs.extra[CONTROL]["channels"]), finer=finer)

    net = made_with(make, plan.seed)
    return Network(net, model.sde, model.kind, shape=model.shape, clock=model.clock)


class Made(Source):
    """The rows of a source, each with a field that is made of it.

    Args:
        source: The source.
        make: Makes fields `(B, C, *)` of data of unit scale.
        inputs: How the data come to it.
    """

    def __init__(self, source: Source, make: Make, inputs: Inputs) -> None:
        self.source, self.make = source, make
        self.scaling = None if inputs.transform is None else inputs.scaling
        self.shape, self.columns, self.about = source.shape, source.columns, source.about
        self.batch_size = source.batch_size

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, numbers: Tensor) -> Batch:
        return self._with(self.source.rows(numbers))

    def batches(self, numbers: Iterable[Tensor]) -> Iterator[Batch]:
        yield from map(self._with, self.source.batches(numbers))

    def labels(self) -> Tensor | None:
        return self.source.labels()

    def _with(self, batch: Batch) -> Batch:
        x = batch.x if self.scaling is None else self.scaling.apply(batch.x, torch.float32)
        return Batch(batch.x, {**batch.cond, CONTROL: self.make(x)})


def read_control(path: Path | None, made_of: Path | None, loaded: Checkpoint, form: Form) -> Tensor | None:
    """The fields of a file, as a control knows them: `(rows, C, *)`; None where none are given.

    Args:
        path: `.npy` or `.npz` with `control`: `(rows, C, *)`, or one alone.
        made_of: Data in place of it, of which they are made as in the training.
        loaded: The checkpoint.
        form: Its form.

    Raises:
        FileNotFoundError: No such file.
        TypeError, ValueError: A model without a control, no numbers, or another shape.
    """
    given = path if path is not None else made_of
    if given is None:
        return None
    option = "--control" if path is not None else "--control-of"
    net = next((part for part in loaded.model.net.modules() if isinstance(part, Controlled)), None)
    if net is None or form.shape is None:
        raise ValueError(f"{option} is for a model with a control, trained with --control: leave it out")
    if form.control != (CONTROL,):
        words = " ".join(f"--cond {name}=FILE.npy" for name in form.control)
        raise ValueError(f"{option}: the model calls what it is told otherwise: give {words}")
    kind, one = loaded.extra.get(CONTROL, {}).get("of"), (net.channels[CONTROL], *form.shape[1:])
    if made_of is not None:
        if kind not in KINDS:
            raise ValueError("--control-of: the fields of this control came with its data: give them, --control FILE")
        one = form.shape
    found = array_of(given, CONTROL if path is not None else "x", option)
    found = found[None] if tuple(found.shape) == one else found
    if tuple(found.shape[1:]) != one:
        raise ValueError(f"{option} {given} has shape {tuple(found.shape)}, wanted (rows, {', '.join(map(str, one))})")
    found = found.double()
    if not bool(found.isfinite().all()):
        raise ValueError(f"{option} {given} holds NaN or infinity: give numbers")
    if made_of is not None:
        return KINDS[str(kind)](form.scaling.apply(found, torch.float32))
    return scaled(CONTROL, found, loaded)
