"""`sde-diffusion train --latent`: a codec is trained, or taken from a folder, and the model learns its codes.

The run has two phases in one folder, `codec.json` with its state, then `model.json` with its own; it goes on in the
one in which it was cut short.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.cli._arguments import Say
from sde_diffusion.cli.forms.form import CODEC, LATENT, Form, codec_digest
from sde_diffusion.cli.machine import device_named, rank
from sde_diffusion.cli.plan.design import made_with
from sde_diffusion.cli.plan.inputs import Inputs
from sde_diffusion.cli.plan.options import CODEC_STEPS, Plan
from sde_diffusion.cli.plan.running import Course
from sde_diffusion.data.faults.look import ColumnWarning
from sde_diffusion.data.memory import check_memory
from sde_diffusion.data.scalings import Standardise
from sde_diffusion.data.source import Source
from sde_diffusion.data.sources.base import Batch
from sde_diffusion.denoiser.modules import Evaluation, home
from sde_diffusion.latent.codec import decoded, encoded
from sde_diffusion.latent.codes import Codes, cached, kept_bytes
from sde_diffusion.latent.learning import train_codec, validation_of
from sde_diffusion.latent.net_codec import NetCodec
from sde_diffusion.latent.stored import load_codec, save_codec
from sde_diffusion.nets.autoencoder import Autoencoder
from sde_diffusion.training.callbacks import Callback, Event
from sde_diffusion.training.loop import Saving
from sde_diffusion.training.store import files_of

OWN = ("codec_steps", "codec_channels", "codec_factor", "codec_width")
"""Options of a codec that is trained."""
FACTOR = 4
"""How many times shorter each axis of a code is, if nothing is said: two halvings, as the network has by default."""
CHANNELS = 4
"""Channels of a code, if nothing is said, or as many as halve the numbers of a sample where that is fewer."""
CHUNK = 256
"""Rows that are encoded at once."""


def goes_on(plan: Plan, out: Path) -> bool:
    """Whether a run that goes on was cut short in the training of its model, a second phase where there is a codec."""
    return plan.resume and (out / "state.json").is_file()


def begun(out: Path) -> bool:
    """Whether a folder holds a run in its first phase, the training of a codec, or after it."""
    return (out / f"{CODEC}_state.json").is_file()


def codec_of_plan(plan: Plan, out: Path) -> Form | None:
    """The codec that a plan names, or that a run which goes on in its second phase has: None where it trains one.

    Raises:
        FileNotFoundError, ValueError: There is none in the folder, or one whose training was cut short.
    """
    second = goes_on(plan, out)
    if plan.latent is None or (plan.latent == "new" and not second):
        return None
    folder = out if second else Path(plan.latent)
    try:
        found = load_codec(folder, unfinished=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"--latent {folder} holds no codec, {CODEC}.json: {error}") from error
    if not found.codec.measured:
        raise ValueError(
            f"--latent {folder}: the training of its codec has not ended: go on with it there, --resume, or train "
            "another, --latent"
        )
    return Form(found.codec.shape, found.scaling, found.codec)


def check_codec(plan: Plan, inputs: Inputs, form: Form | None) -> None:
    """Looks whether data have codes, by a codec that is there or by the network of one that is to be trained.

    Raises:
        ValueError: Vectors; an image beside the data; lengths that the factor does not divide; a width that the network
            has not; data of another shape than those of the codec.
    """
    shape, facts = inputs.facts.shape, inputs.facts
    if facts.image:
        raise ValueError(
            "--latent: an image beside the data has their lengths, and the network sees codes, which are shorter: make "
            "it a context, or train without --latent"
        )
    if form is not None:
        if form.shape is not None and form.shape != shape:
            raise ValueError(f"--latent: the codec is one of data of shape {form.shape}, and --data has {shape}")
        return
    if len(shape) not in (2, 3, 4):
        raise ValueError(
            f"--latent trains a codec of fields (N, C, *lengths) of one to three axes, and --data has samples of shape "
            f"{shape}: train without it, or make a codec of your own in Python, latent.from_functions"
        )
    factor, width, parts = plan.codec_factor or FACTOR, plan.codec_width, 8
    if any(n % factor for n in shape[1:]):
        raise ValueError(
            f"--codec-factor {factor} must divide the lengths {shape[1:]} of the data: crop or pad them, or give "
            "another one"
        )
    if width is not None and width % parts:
        raise ValueError(f"--codec-width must be a multiple of {parts}, got {width}")


def coder_of(plan: Plan, inputs: Inputs, form: Form | None) -> NetCodec | None:
    """The codec of a training, as it is there or before it is trained; None of one on data as such.

    Raises:
        ValueError: As `check_codec`.
    """
    if plan.latent is None and (form is None or form.codec is None):
        return None
    check_codec(plan, inputs, form)
    if form is not None:
        return form.codec
    channels, *lengths = inputs.facts.shape
    sizes: dict[str, Any] = {"latent": plan.codec_channels, "width": plan.codec_width}
    given = {name: value for name, value in sizes.items() if value is not None}
    factor = plan.codec_factor or FACTOR
    given.setdefault("latent", max(1, min(CHANNELS, channels * factor ** len(lengths) // 2)))
    halvings = int(math.log2(factor))
    net = made_with(
        lambda: Autoencoder(channels, dims=len(lengths), multipliers=(1, *[2] * halvings), **given), plan.seed
    )
    return NetCodec(net, shape=inputs.facts.shape)


def with_codes(
    plan: Plan, inputs: Inputs, out: Path, codec: NetCodec, course: Course, *, trained: bool, say: Say
) -> tuple[Inputs, Course]:
    """The codes of data in the place of the data, by a codec that is there, or is trained first.

    Args:
        plan: What the training is asked for.
        inputs: The data.
        out: The folder of the run.
        codec: The codec.
        course: How the model is trained.
        trained: Whether the codec is there already.
        say: Called with every line of the report.

    Raises:
        TypeError, ValueError: As `train_codec`; codes that would not fit into memory.
    """
    there = plan.latent if isinstance(plan.latent, Path) else plan.start
    codec.to(device_named(plan.device))
    if not trained:
        codec = _trained(plan, inputs, out, codec, course, say=say)
    folder = there if there is not None and not goes_on(plan, out) else out
    return in_codes(plan, inputs, out, codec, course, folder, say=say)


def in_codes(
    plan: Plan, inputs: Inputs, out: Path, codec: NetCodec, course: Course, folder: Path, *, say: Say
) -> tuple[Inputs, Course]:
    """A training of a model of codes, by a codec that is kept in a folder: its rows, and how it goes."""
    scaling = inputs.scaling

    def keep_codec(event: Event) -> None:
        if event.kind == "start" and folder != out and not plan.resume:
            clear(out, plan.overwrite)
            save_codec(out, codec, scaling=scaling)

    def undo(z: Tensor) -> Tensor:
        with torch.no_grad(), Evaluation(codec):
            return scaling.undo(decoded(codec, z.to(home(codec)[1]), codec.shape).cpu())

    inputs = coded(inputs, codec, folder, plan.seed, say=say)
    recipe = replace(course.recipe, transform=None)
    return inputs, replace(course, recipe=recipe, told=(*course.told, keep_codec), undo=undo)


def without_codec(plan: Plan, out: Path) -> Callback:
    """What removes the codec of another run from a folder in which a model of data as such begins."""

    def clear_codec(event: Event) -> None:
        if event.kind == "start" and not plan.resume:
            clear(out, plan.overwrite, (CODEC, f"{CODEC}_state"))

    return clear_codec


def coded(inputs: Inputs, codec: NetCodec, folder: Path, seed: int, *, say: Say) -> Inputs:
    """The codes of data in the place of the data.

    Args:
        inputs: The data.
        codec: What encodes them.
        folder: Where it is kept, by whose digest it is known again when the model is sampled.
        seed: Of the points in the bins of whole numbers.
        say: Called with a line of the report.
    """
    shape = inputs.facts.shape
    code = codec.shape_of(shape)
    rows = len(inputs.rows) + (0 if inputs.held_out is None else len(inputs.held_out))
    kept = sum(kept_bytes(part, code) for part in (inputs.rows, inputs.held_out) if part is not None)
    check_memory(kept, f"the codes of {rows:,} rows, with their conditions,", "take fewer --codec-channels, or rows")
    judged = inputs.rows if inputs.held_out is None else inputs.held_out
    error, std = lost(codec, judged, inputs)
    which = "the rows" if inputs.held_out is None else "rows kept out"
    say(
        f"codes {code}, {math.prod(code):,} numbers for {math.prod(shape):,}: the codec loses {error:.4g} root mean "
        f"square of {which}, in the units of --data, {100 * error / std:.1f} % of their standard deviation"
    )
    kept_out = None if inputs.held_out is None else _codes(codec, inputs.held_out, inputs, seed)
    named = {"shape": list(shape), "codec": codec_digest(folder), "digest": codec.digest()} if rank() == 0 else {}
    return replace(
        inputs,
        rows=_codes(codec, inputs.rows, inputs, seed),
        held_out=kept_out,
        transform=None,
        scaling=Standardise(torch.tensor(0.0, device="cpu"), torch.tensor(1.0, device="cpu")),
        facts=replace(inputs.facts, shape=code),
        extra={**inputs.extra, LATENT: named},
        coded=True,
    )


def clear(out: Path, overwrite: bool, names: Sequence[str] = ("model", "state", CODEC, f"{CODEC}_state")) -> None:
    """Removes runs and models of a folder in whose place another begins."""
    if overwrite:
        for path in (*(path for name in names for path in files_of(out, name)), out / f"{CODEC}_metrics.jsonl"):
            path.unlink(missing_ok=True)


@torch.no_grad()
def lost(codec: NetCodec, source: Source, inputs: Inputs) -> tuple[float, float]:
    """What a codec loses of rows, root mean square in the units of the data, and the standard deviation of these."""
    dtype, device = home(codec)
    n, error, first, second = 0, 0.0, 0.0, 0.0
    with Evaluation(codec):
        for batch in source.chunks(CHUNK):
            seen = batch.x.to(dtype) if inputs.transform is None else inputs.scaling.apply(batch.x, dtype)
            x = inputs.scaling.undo(seen).double()
            code = encoded(codec, seen.to(device)).mean
            found = inputs.scaling.undo(decoded(codec, code, codec.shape).cpu()).double()
            n += x.numel()
            error += float((found - x).square().sum())
            first, second = first + float(x.sum()), second + float(x.square().sum())
    return math.sqrt(error / n), math.sqrt(max(second / n - (first / n) ** 2, 1e-300))


class _Seen(Source):
    """The rows of a source after the transform of a training, with the noise of a seed."""

    def __init__(self, source: Source, transform: Callable[[Tensor, torch.Generator], Tensor], seed: int) -> None:
        self.source, self.through, self.seed = source, transform, seed
        self.shape, self.columns, self.about = source.shape, source.columns, source.about
        self.batch_size = source.batch_size

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, numbers: Tensor) -> Batch:
        batch = self.source.rows(numbers)
        generator = torch.Generator("cpu").manual_seed(self.seed + int(numbers[0]))
        return Batch(self.through(batch.x, generator), batch.cond)

    def labels(self) -> Tensor | None:
        return self.source.labels()


def _codes(codec: NetCodec, source: Source, inputs: Inputs, seed: int) -> Codes:
    transform = inputs.transform
    return cached(codec, source if transform is None else _Seen(source, transform, seed), batch_size=CHUNK)


def _trained(plan: Plan, inputs: Inputs, out: Path, codec: NetCodec, course: Course, *, say: Say) -> NetCodec:
    """A codec that is trained on data, and kept in the folder of the run."""
    steps, val = plan.codec_steps or CODEC_STEPS, inputs.held_out
    size, name = sum(p.numel() for p in codec.net.parameters()), type(codec.net).__name__
    say(f"first a codec: {name} with {size:,} parameters, {steps:,} steps")
    saving = Saving(out, plan.save_every, plan.keep, plan.overwrite, inputs.scaling)

    def clear_model(event: Event) -> None:
        if event.kind == "start" and not plan.resume:
            clear(out, plan.overwrite, ("model", "state"))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ColumnWarning)  # those of the file are told, before it is scaled
            done = train_codec(
                codec,
                inputs.rows,
                steps=steps,
                recipe=replace(course.recipe, lr=None),
                val=validation_of(val, steps, plan.patience or None),
                out=saving,
                resume=plan.resume,
                callbacks=[*course.told, clear_model],
                seed=plan.seed,
                progress=True,
            )
    except BaseException as stop:
        cut: Any = getattr(stop, "training", None)
        if cut is not None and cut.losses and rank() == 0 and begun(out):
            say(
                f"ended after {len(cut.losses)} of {steps} steps of the codec, saved in {out}; to go on: {course.again}"
            )
        raise
    say(f"the codec took {done.training.seconds:.0f} s")
    return done.codec
