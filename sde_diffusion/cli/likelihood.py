"""`sde-diffusion likelihood`: from a checkpoint and a file of arrays to a file of log-likelihoods."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_state
from sde_diffusion._files import check_apart, check_file, keep, write_files
from sde_diffusion.cli._arguments import LARGEST_BATCH, Say, add_command, count, path
from sde_diffusion.cli.checkpoints import add_checkpoint_options, loaded_from
from sde_diffusion.cli.conditions import given_conditions, is_value, marked, rows_of, scaled
from sde_diffusion.cli.forms.bounded import (
    bounded,
    check_bounded,
    check_levels,
    lines_of_bound,
    rows_of_bound,
    summary_of_bound,
)
from sde_diffusion.cli.forms.drawn import check_weighed
from sde_diffusion.cli.forms.form import Form, form_of
from sde_diffusion.cli.limits import check_batch, check_seeds
from sde_diffusion.cli.machine import rank
from sde_diffusion.cli.plan.inputs import dequantised
from sde_diffusion.cli.plan.opened import open_source, parted
from sde_diffusion.cli.plan.start import check_names
from sde_diffusion.data.files import TABLES
from sde_diffusion.data.standardise import Standardise
from sde_diffusion.denoiser.modules import home
from sde_diffusion.likelihood.exact import Method
from sde_diffusion.likelihood.result import LogProb
from sde_diffusion.likelihood.route import Density
from sde_diffusion.likelihood.trace import CHUNK, DEFAULT_PROBES, EXACT_UP_TO, Orthogonal
from sde_diffusion.sampler.distributed import log_prob
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.training.checkpoint import Checkpoint, checkpoint_files

NUMBERS = 4096
"""Numbers of data in a batch, if nothing is said, as far as that makes 64 to 512 samples."""
GROUP = {"label": "label", "image": "image", "caption": "caption"}
"""The conditions that a name without a sign of equality makes; any other is a part of the context."""


def add_parser(group: Any) -> None:
    """Adds `likelihood` to the commands."""
    command = add_command(
        group,
        "likelihood",
        run,
        "Log-likelihood of your own arrays under a checkpoint, with its errors.",
        epilog="example:\n  sde-diffusion likelihood --checkpoint model --data faces.npz --out likelihood.json",
    )
    need = command.add_argument_group("required")
    need.add_argument("--checkpoint", required=True, type=path, metavar="DIR", help="folder written by train or demo")
    need.add_argument("--data", required=True, type=path, metavar="FILE", help="a file or a folder, as for train")
    need.add_argument(
        "--out",
        required=True,
        type=path,
        metavar="FILE",
        help=".json, with a summary, or .csv; a file there is replaced",
    )
    command.add_argument(
        "--cond",
        action="append",
        metavar="NAMES|NAME=VALUES",
        help="conditions in the data, as for train, unset those of the training; or one row for all, `context=1.5,2`",
    )
    command.add_argument(
        "--probes",
        type=count(),
        metavar="K",
        help="random probes of the divergence; unset, exact up to 128",
    )
    command.add_argument(
        "--levels",
        type=count(),
        metavar="K",
        help="of a model of codes: the bound of the diffusion by K noise levels, far cheaper than the density of codes",
    )
    command.add_argument(
        "--bin-width",
        type=float,
        metavar="W",
        help="width of a level of (dequantised) data, for bits per dimension; 1 for whole numbers",
    )
    command.add_argument("--correct", action="store_true", help="extrapolate from the smallest noise level to none")
    command.add_argument(
        "--batch-size",
        type=count(LARGEST_BATCH),
        metavar="N",
        help="samples in memory at once; unset, 64, and up to 512 of few dimensions",
    )
    add_checkpoint_options(command)


def run(args: argparse.Namespace, say: Say) -> None:
    """Evaluates log-likelihoods as the arguments say."""
    weigh = Weigh(args.probes, args.bin_width, args.correct, args.batch_size, tuple(args.cond or ()), args.levels)
    loaded = loaded_from(args.checkpoint, args)
    likelihood_file(args.checkpoint, args.data, args.out, weigh=weigh, seed=args.seed, say=say, loaded=loaded)


@dataclass(frozen=True)
class Weigh:
    """How the log-likelihoods of a file are found.

    Args:
        probes: The number of random probes of the divergence; None for an exact one up to 128 dimensions, and for 8
            probes above.
        bin_width: The distance between two values of discrete data, in the units of the file, for bits per dimension.
            The file holds the dequantised data.
        correct: Whether to extrapolate from the smallest noise level to none.
        batch_size: The number of samples in memory at once; None for 64, and up to 512 of few dimensions.
        cond: Conditions, as `--cond` has them; those of the training where empty.
        levels: Of a model of codes, the number of noise levels by which the bound of the diffusion weighs a code, in
            place of its density.
    """

    probes: int | None = None
    bin_width: float | None = None
    correct: bool = False
    batch_size: int | None = None
    cond: tuple[str, ...] = ()
    levels: int | None = None

    def at_once(self, x: Tensor) -> int:
        """How many samples are in memory at once, of data `(N, *)`."""
        few = max(64, min(512, NUMBERS // x[0].numel()))
        return min(len(x), few if self.batch_size is None else self.batch_size)


def likelihood_file(
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    weigh: Weigh | None = None,
    seed: int = 0,
    say: Say,
    loaded: Checkpoint | None = None,
) -> None:
    r"""Writes the log-likelihood of every sample of a file, in nats and in the units of the file.

    The model knows scaled data $z = f(x)$: $\log p(x) = \log p(z) + \sum_d \log f_d'(x_d)$. Noise levels are given as
    the model knows them, in units of the scale, which is given too: in the units of the file each column has its own.
    Labels and other conditions in the file are given to the model that takes them. Whole numbers get a point in the bin
    of each, of width one. The summary counts the rows that converged. Several processes share the rows.

    Args:
        checkpoint: The folder of the checkpoint.
        data: A file or a folder, see `data.open_data`.
        out: The file to write, `.json` (with a summary) or `.csv` (rows alone).
        weigh: How they are found: `Weigh()` by default.
        seed: The seed `k` that gives the probes of sample `i` the stream `k + i`; fixed, so that a command can be
            repeated.
        say: Called with every line of the report.
        loaded: The checkpoint, if it is read already, on the device to work on.

    Raises:
        FileNotFoundError: No such file or checkpoint.
        TypeError, ValueError: Data, conditions or a file name that do not fit, a place that takes no file, or what
            would not fit into memory. All before any work.
        OSError: The file could not be written to `out` at the end; the message says where it is instead.
    """
    weigh = weigh or Weigh()
    if out.suffix.lower() not in (".json", ".csv"):
        raise ValueError(f"--out must end in .json or .csv, got {out.name!r}")
    check_file(out, "--out")
    check_apart(out, "--out", checkpoint_files(checkpoint))
    if weigh.bin_width is not None and not 0 < weigh.bin_width < math.inf:
        raise ValueError(f"--bin-width must be positive and finite, got {weigh.bin_width:g}")
    loaded = loaded_from(checkpoint) if loaded is None else loaded
    x, cond = _read(loaded, data, weigh.cond)
    if not x.is_floating_point():
        x = dequantised(x, seed)
        weigh = weigh if weigh.bin_width is not None else replace(weigh, bin_width=1.0)
    form = form_of(checkpoint, loaded)
    check_weighed(form, f"--checkpoint {checkpoint}", cond)
    check_levels(weigh.levels, weigh.probes, form)
    _check(loaded, x, cond, weigh, seed, form)
    rows, found, lines = (_bounded if form.codec is not None else _found)(loaded, form, x, cond, weigh, seed)
    if rank() > 0:
        return
    dim = math.prod(form.shape or x.shape[1:] if form.codec is None else loaded.model.shape or ())
    exact = None if dim <= EXACT_UP_TO else DEFAULT_PROBES
    about = found | {
        "checkpoint": str(checkpoint),
        "data": str(data),
        "seed": seed,
        "probes": exact if weigh.probes is None else weigh.probes,
        "labels": "label" in cond,
        "conditions": sorted(cond),
    }
    text = _csv(rows) if out.suffix.lower() == ".csv" else _json({**about, "bin_width": weigh.bin_width}, rows)
    keep(lambda path: write_files({path: text}), out)
    for line in lines:
        say(line)
    say(f"{len(x)} {'log-likelihoods' if form.codec is None else 'bounds'} in {out}")


def _read(loaded: Checkpoint, data: Path, words: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """The data of a file and their conditions, as the model knows these."""
    given = [word for word in words if is_value(word)]
    inside = [word for word in words if not is_value(word)] or _trained_with(loaded, data, given)
    source = open_source(data, inside)
    check_names(source.about, loaded.extra, f"--data {data}")
    x, own = source.rows(torch.arange(len(source)))
    if not loaded.classes:
        own.pop("label", None)
    cond = {name: scaled(name, value, loaded) for name, value in own.items()}
    for name, value in given_conditions(given, loaded).items():
        if name in cond:
            raise ValueError(f"--cond {name} is given twice, in {data} and beside it")
        cond[name] = value
    return x, cond


def _trained_with(loaded: Checkpoint, data: Path, given: Sequence[str]) -> list[str]:
    """The conditions that the training found in its file of data, but for those given otherwise."""
    otherwise = {word.partition("=")[0] for word in given}
    words = [str(word) for word in loaded.extra.get("cond", ())]
    _, beside = parted(words)
    if missing := sorted(beside.keys() - otherwise):
        raise ValueError(
            f"the model was trained with {missing[0]} from a file beside the data: give that of {data}, --cond "
            f"{missing[0]}=FILE.npy"
        )
    if data.suffix.lower() not in (*TABLES, ".npz"):
        return []
    groups = {word: word.partition("=")[0] if "=" in word else GROUP.get(word, "context") for word in words}
    return [word for word in words if groups[word] not in {*otherwise, *beside}]


_Found = tuple[list[dict[str, Any]], dict[str, Any], list[str]]


def _found(loaded: Checkpoint, form: Form, x: Tensor, cond: dict[str, Tensor], weigh: Weigh, seed: int) -> _Found:
    """Log-likelihoods: a row for each sample, the summary, and what is said of them."""
    found = _evaluate(loaded, x, cond, weigh, seed)
    rows = _rows(found, weigh.bin_width)
    about, lines = _summary(found, rows, loaded), [str(found)]
    if weigh.bin_width is not None and "bits_per_dim" in about:
        lines.append(f"{about['bits_per_dim']:.4f} bits/dim, standard error {about['bits_per_dim_error']:.2g}")
    return rows, about, lines


def _bounded(loaded: Checkpoint, form: Form, x: Tensor, cond: dict[str, Tensor], weigh: Weigh, seed: int) -> _Found:
    """Bounds of a model of codes, likewise."""
    size = weigh.at_once(x)
    found = bounded(loaded, form, x, cond, probes=weigh.probes, levels=weigh.levels, batch_size=size, seed=seed)
    rows = rows_of_bound(found, form.scaling.log_jacobian(x), weigh.bin_width)
    about = summary_of_bound(found, rows) | {"noise_levels_trained": list(loaded.noise_levels)}
    return rows, about, lines_of_bound(about, weigh.bin_width)


def _evaluate(loaded: Checkpoint, x: Tensor, cond: dict[str, Tensor], weigh: Weigh, seed: int) -> LogProb:
    """Evaluates the log-likelihoods batch by batch, with a progress bar, in the units of the file."""
    dtype, device = home(loaded.model)
    sampler = SDESampler(loaded.model.sde, loaded.model)
    found = log_prob(
        sampler,
        loaded.scaling.apply(x, dtype).to(device),
        batch_size=weigh.at_once(x),
        seed=seed,
        density=Density(correct=weigh.correct),
        method=Method(trace=None if weigh.probes is None else Orthogonal(weigh.probes)),
        progress=True,
        cond=marked(cond),
    )
    return replace(found, value=found.value + loaded.scaling.log_jacobian(x).to(found.value))


def _check(loaded: Checkpoint, x: Tensor, cond: dict[str, Tensor], weigh: Weigh, seed: int, form: Form) -> None:
    """Refuses, before the first batch, what would fail in a later one."""
    if "label" in cond and loaded.classes and int(cond["label"].max()) >= loaded.classes:
        raise ValueError(f"the labels go up to {int(cond['label'].max())}, and the model knows 0..{loaded.classes - 1}")
    check_seeds(seed, len(x))
    check_state(x, "--data", shape=form.shape)
    if form.codec is not None:
        check_bounded(weigh.correct)
    rows_of(cond, len(x), len(x))
    dim = math.prod(loaded.model.shape or x.shape[1:])
    if loaded.model.shape is not None:
        columns = min(CHUNK, weigh.probes or (dim if dim <= EXACT_UP_TO else DEFAULT_PROBES))
        check_batch(loaded.model, weigh.at_once(x), passes=columns, cond=cond)


def _rows(found: LogProb, bin_width: float | None) -> list[dict[str, Any]]:
    columns: dict[str, list[Any]] = {
        "log_prob": found.value.tolist(),
        "standard_error": found.standard_error.tolist(),
        "solver_error": found.solver_error.tolist(),
        "truncation": found.truncation.tolist(),
        "converged": found.converged.tolist(),
    }
    if bin_width is not None:
        columns["bits_per_dim"] = found.bits_per_dim(bin_width).tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _summary(found: LogProb, rows: list[dict[str, Any]], loaded: Checkpoint) -> dict[str, Any]:
    """Means over the rows that converged, with their standard errors over samples, which hold that of the probes."""
    good = [row for row in rows if row["converged"]]
    about: dict[str, Any] = {"samples": len(rows), "converged": len(good), "dim": found.dim}
    for name in ("log_prob", "bits_per_dim"):
        values = [row[name] for row in good if name in row]
        if values:
            mean = math.fsum(values) / len(values)
            square = math.fsum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
            about |= {name: mean, f"{name}_error": math.sqrt(square / len(values)) if len(values) > 1 else math.nan}
    level = {"noise_level": found.level, "corrected": found.corrected, "whole": found.whole, "nfe": found.nfe}
    scaling = loaded.scaling
    scale = {"std": scaling.std.flatten().tolist()} if isinstance(scaling, Standardise) else {"scaling": str(scaling)}
    return about | level | {"nfe_check": found.nfe_check, "noise_levels_trained": list(loaded.noise_levels), **scale}


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["sample", *rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"sample": i, **row} for i, row in enumerate(rows))
    return text.getvalue().encode()


def _json(about: dict[str, Any], rows: list[dict[str, Any]]) -> bytes:
    return (json.dumps(_plain({**about, "rows": rows}), indent=1, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    """Replaces what JSON has no number for, NaN and infinity, by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value
