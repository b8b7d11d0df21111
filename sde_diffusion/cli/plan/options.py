"""The options of `sde-diffusion train`: `Plan`, and for each of its fields how it is read, its group and its help.

From this come the flags, the keys of a configuration file, the groups of `--help`, and the file kept with a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sde_diffusion.cli._arguments import LARGEST_BATCH, MOST_STEPS, MOST_THREADS, count, path
from sde_diffusion.cli.plan.design import NETS, TIMES, WEIGHTS
from sde_diffusion.cli.plan.option import Option, arguments, codec, device, factor, held_out, number, word
from sde_diffusion.denoiser import predict
from sde_diffusion.sde import processes
from sde_diffusion.training.recipe import PRECISIONS

WIDEST = 10**5
"""The largest `--width`; memory may set a lower limit."""
MOST_PREVIEWS = 1000
"""The largest `--previews`."""
ARGUMENTS = "'NAME=VALUE, ...'"
"""What stands in the help for the arguments of a constructor."""
CODEC_STEPS = 2000
"""Gradient steps of a codec if nothing is said."""


@dataclass(frozen=True)
class Plan:
    """What a training is asked for.

    Args:
        data: The file of data, or a folder of images.
        cond: The conditions, as `--cond` has them.
        size: Height and width that images of a folder are brought to; None: all are of one size.
        scale: How columns and channels are scaled: `"standardise"`, `"quantile"` or `"none"`.
        shrink: How many times shorter each axis of fields is made, by means over blocks.
        sde: The process: a name in `processes.named()`, or a class of your own, `"mine.py:Mine"`.
        sde_args: Arguments of its constructor.
        kind: What the network answers, a name in `predict.NAMES`.
        learn_variance: Whether the network answers the variance of a reverse step beside, `LearnedVariance`.
        net: The network: a name in `NETS`, or a class of your own; None for what suits the shape of the data.
        net_args: Arguments of its constructor.
        width: The width of the network; None for its own default.
        start: A checkpoint to begin from, with its model and its scaling.
        latent: `"new"` to train a codec, and the model on its codes; or the folder of a codec. None for data as such.
        codec_steps: Gradient steps of a new codec; None for `CODEC_STEPS`. Likewise the next three, by its network.
        codec_channels: Channels of a code.
        codec_factor: How many times shorter each axis of a code is, a power of 2.
        codec_width: Width of its network.
        low_res: The factor of a stage of a cascade: it is told means over blocks of so many points along each axis.
        augment: The highest level of noise on these; None for that of `LowResolution`.
        control: What a control of the model in `start` is told: a kind of field made of the data, a file, or an array
            beside them; None for none.
        lora: The rank of adapters of that model; None for none.
        base: Where the base of what is in `start` is, if that stands on one; None for where it was.
        steps: Gradient steps.
        batch_size: Samples per step, of all processes together.
        lr: The highest learning rate; None for that of `Recipe`.
        weight: A name in `WEIGHTS`; None for what suits the model.
        times: A name in `TIMES`; None for what suits the model.
        accumulate: Micro-batches per step.
        precision: `"no"`, `"bf16"` or `"fp16"`.
        out: The folder of the run.
        val: The part of the data that is kept out for validation, `"auto"` for what `data.split` keeps out by default,
            or a file of other data.
        patience: Validations in a row, all clearly worse than the best, that end the run; 0 for none.
        save_every: Steps between two savings; None for half a minute to five minutes.
        keep: States before the last one that stay.
        resume: Whether to go on with the run in `out`.
        overwrite: Whether to begin anew in place of the run in `out`.
        log_with: A tracker of accelerate to tell of the run.
        previews: Samples drawn now and then.
        device: Where the model is trained; `"auto"` for CUDA where it is there.
        seed: The seed of the initial weights, of what is kept out and of the training.
        threads: Processor threads.
    """

    data: Path | None = None
    cond: tuple[str, ...] = ()
    size: int | None = None
    scale: str = "standardise"
    shrink: int | None = None
    sde: str = "edm"
    sde_args: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "edm"
    learn_variance: bool = False
    net: str | None = None
    net_args: Mapping[str, Any] = field(default_factory=dict)
    width: int | None = None
    start: Path | None = None
    latent: Path | Literal["new"] | None = None
    codec_steps: int | None = None
    codec_channels: int | None = None
    codec_factor: int | None = None
    codec_width: int | None = None
    low_res: int | None = None
    augment: float | None = None
    control: str | None = None
    lora: int | None = None
    base: Path | None = None
    steps: int = 3000
    batch_size: int = 128
    lr: float | None = None
    weight: str | None = None
    times: str | None = None
    accumulate: int = 1
    precision: str = "no"
    out: Path | None = None
    val: float | Path | Literal["auto"] = "auto"
    patience: int = 10
    save_every: int | None = None
    keep: int = 1
    resume: bool = False
    overwrite: bool = False
    log_with: str | None = None
    previews: int = 0
    device: str = "auto"
    seed: int = 0
    threads: int = 1


DATA = {
    "data": Option(
        "vectors (N, D) or fields (N, C, *lengths) of any scale: .npy; .npz with `x`; a .csv or .parquet table; a "
        "folder of images",
        path,
        "FILE",
    ),
    "cond": Option(
        "conditions: columns of the table, `age,ph`, `label` or `label=species` for classes; arrays of the .npz, "
        "`context=theta`; or a file beside, `context=FILE.npy`; may be given again",
        word,
        "NAMES",
        many=True,
    ),
    "size": Option("height and width that images of a folder are brought to; unset, all are of one size", count(), "N"),
    "scale": Option("how columns and channels are scaled", choices=("standardise", "quantile", "none")),
    "shrink": Option(
        "make fields this many times shorter along each axis, by means over blocks: for the base of a cascade",
        count(least=2),
        "FACTOR",
    ),
}
MODEL = {
    "sde": Option(f"process: {', '.join(processes.named())}; or FILE.py:NAME, your own", word, "NAME"),
    "sde_args": Option("arguments of the process", arguments, ARGUMENTS),
    "kind": Option("what the network predicts", choices=tuple(predict.NAMES)),
    "learn_variance": Option("let the network answer the variance of a reverse step too, with --sde ddpm", flag=True),
    "net": Option(
        f"network: {', '.join(NETS)}; or FILE.py:NAME, your own; unset, mlp for vectors, unet for fields", word, "NAME"
    ),
    "net_args": Option("arguments of the network", arguments, ARGUMENTS),
    "width": Option(
        "width of the network: unset, its own, 128 of an mlp, 32 channels (a multiple of 8) of a unet; at most 100,000",
        count(WIDEST),
        "N",
        names=("width", "hidden"),
    ),
    "start": Option(
        "checkpoint to begin from, with its model and its scaling (fine-tuning)", path, "DIR", names=("from",)
    ),
}
LATENT = {
    "latent": Option(
        "learn codes of the data in place of the data: of a codec that is trained before, or of that in a folder",
        codec,
        "FOLDER",
        bare="new",
    ),
    "codec_steps": Option(f"gradient steps of the codec; unset, {CODEC_STEPS:,}", count(MOST_STEPS), "N"),
    "codec_channels": Option("channels of a code; unset, 4, or as many as halve the numbers", count(WIDEST), "N"),
    "codec_factor": Option("how many times shorter each axis of a code is, 2, 4, 8 or 16; unset, 4", factor, "N"),
    "codec_width": Option("width of the codec, a multiple of 8; unset, 32", count(WIDEST), "N"),
}
STAGE = {
    "low_res": Option(
        "learn the data given means over blocks of them, this many points along each axis: a stage of a cascade",
        count(least=2),
        "FACTOR",
    ),
    "augment": Option(
        "highest level of noise on the low resolution, in standard deviations of the data; unset, 0.5", number, "MOST"
    ),
}
UPON = {
    "control": Option(
        "train a control of the model in --from, which stays as it is: told `edges` or `coarse`, made of the data, or "
        "images of their lengths, in a file with one for each row, or in an array of the .npz",
        word,
        "edges|coarse|FILE|NAME",
    ),
    "lora": Option("train adapters of this rank of the model in --from, which stays as it is", count(WIDEST), "RANK"),
    "base": Option(
        "the base of the control or of the adapters in --from, which are trained further, where it is not where it was",
        path,
        "DIR",
    ),
}
TRAINING = {
    "steps": Option(f"gradient steps, at most {MOST_STEPS:,}", count(MOST_STEPS), "N"),
    "batch_size": Option(
        f"samples per step, of all processes together, at most {LARGEST_BATCH:,}", count(LARGEST_BATCH), "N"
    ),
    "lr": Option(
        "highest learning rate; unset, 0.002, or less where rows are seen over 300 times",
        number,
        "X",
    ),
    "weight": Option("weight of the noise levels; unset, as it suits --kind and --sde", choices=tuple(WEIGHTS)),
    "times": Option("how noise levels are drawn; unset, as it suits --kind and --sde", choices=tuple(TIMES)),
    "accumulate": Option("parts that a batch is worked on in, for less memory", count(LARGEST_BATCH), "N"),
    "precision": Option("mixed precision", choices=PRECISIONS),
}
KEEPING = {
    "out": Option("folder for the run and its checkpoint, made if need be", path, "DIR"),
    "val": Option(
        "part of the data that is kept out, or a file as for --data: the model that is best there is kept, and the run "
        "ends when that is long past; 0 for none; auto is a tenth, but 64 of 256 to 640 rows and a quarter of fewer",
        held_out,
        "PART|FILE|auto",
    ),
    "patience": Option(
        "validations in a row, all clearly worse than the best, that end the run; 0 for none", count(None, 0), "N"
    ),
    "save_every": Option(
        "steps between two savings; unset, half a minute, and longer and longer up to five",
        count(),
        "N",
    ),
    "keep": Option("savings before the last one that stay", count(), "N"),
    "resume": Option("go on with the run in --out", flag=True),
    "overwrite": Option("begin anew in place of the run in --out", flag=True),
    "log_with": Option(
        "tracker of accelerate to tell, besides metrics.jsonl: tensorboard, wandb and others", word, "NAME"
    ),
    "previews": Option(
        "samples drawn ten times in the run, with a picture where there can be one", count(MOST_PREVIEWS, 0), "N"
    ),
}
MACHINE = {
    "device": Option("auto, cpu, cuda, cuda:1 or mps; auto is cuda where it is there, else cpu", device, "NAME"),
    "seed": Option("seed of everything random, below 2**32", count(2**32 - 1, least=0), "K"),
    "threads": Option(f"processor threads, at most {MOST_THREADS}", count(MOST_THREADS), "N"),
}
GROUPS = {
    "data": DATA,
    "model": MODEL,
    "a model of codes": LATENT,
    "a stage of a cascade": STAGE,
    "upon a model": UPON,
    "training": TRAINING,
    "validation and saving": KEEPING,
    "machine": MACHINE,
}
"""The options of every field of `Plan`, by the titles above them in the help."""
OPTIONS: Mapping[str, Option] = MappingProxyType({k: o for group in GROUPS.values() for k, o in group.items()})


def names_of(key: str) -> tuple[str, ...]:
    """What a field of `Plan` is called outside: `batch-size`."""
    return OPTIONS[key].names or (key.replace("_", "-"),)


def types_of(key: str) -> tuple[str, tuple[type, ...]]:
    """What a field of `Plan` may be in a file, in words, and of which types of TOML: those of its annotation."""
    hint = get_type_hints(Plan)[key]
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(each) or each for each in hints]
    found = dict(_TOML[kind] for kind in kinds if kind is not NoneType)
    return " or ".join(found) + ", or a list of them" * OPTIONS[key].many, tuple(t for of in found.values() for t in of)


_TOML: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a string", (str,)),
    Path: ("a string", (str,)),
    Literal: ("a string", (str,)),
    tuple: ("a string", (str,)),
    Mapping: ("a table, or a string 'NAME=VALUE, ...'", (dict, str)),
}
"""The types of TOML that an annotation takes; a whole number is a number, and true is none."""
