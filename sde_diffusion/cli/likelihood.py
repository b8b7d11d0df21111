"""`sde-diffusion likelihood`: from a checkpoint and a file of arrays to a file of log-likelihoods."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sde_diffusion._checks import check_state
from sde_diffusion._files import check_apart, check_file, keep, write_files
from sde_diffusion.cli._arguments import LARGEST_BATCH, Say, add_command, count, path
from sde_diffusion.cli.limits import check_batch, check_seeds
from sde_diffusion.data.files import load_array
from sde_diffusion.data.scalings import Standardise
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.likelihood.exact import Method, log_prob
from sde_diffusion.likelihood.result import LogProb
from sde_diffusion.likelihood.route import Density
from sde_diffusion.likelihood.trace import CHUNK, DEFAULT_PROBES, EXACT_UP_TO, Orthogonal
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.training.checkpoint import Checkpoint, checkpoint_files, load_checkpoint


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
    need.add_argument("--data", required=True, type=path, metavar="FILE", help=".npy or .npz, as for train")
    need.add_argument(
        "--out",
        required=True,
        type=path,
        metavar="FILE",
        help=".json, with a summary, or .csv; a file there is replaced",
    )
    command.add_argument(
        "--probes",
        type=count(),
        metavar="K",
        help="random probes of the divergence; unset, exact up to 128",
    )
    command.add_argument(
        "--bin-width", type=float, metavar="W", help="width of a level of (dequantised) data, for bits per dimension"
    )
    command.add_argument("--correct", action="store_true", help="extrapolate from the smallest noise level to none")
    command.add_argument(
        "--batch-size", type=count(LARGEST_BATCH), default=64, metavar="N", help="samples in memory at once"
    )


def run(args: argparse.Namespace, say: Say) -> None:
    """Evaluates log-likelihoods as the arguments say."""
    weigh = Weigh(args.probes, args.bin_width, args.correct, args.batch_size)
    likelihood_file(args.checkpoint, args.data, args.out, weigh=weigh, seed=args.seed, say=say)


@dataclass(frozen=True)
class Weigh:
    """How the log-likelihoods of a file are found.

    Args:
        probes: The number of random probes of the divergence; None for an exact one up to 128 dimensions, and for 8
            probes above.
        bin_width: The distance between two values of discrete data, in the units of the file, for bits per dimension.
            The file holds the dequantised data.
        correct: Whether to extrapolate from the smallest noise level to none.
        batch_size: The number of samples in memory at once.
    """

    probes: int | None = None
    bin_width: float | None = None
    correct: bool = False
    batch_size: int = 64


def likelihood_file(
    checkpoint: Path,
    data: Path,
    out: Path,
    *,
    weigh: Weigh | None = None,
    seed: int = 0,
    say: Say,
) -> None:
    r"""Writes the log-likelihood of every sample of a file, in nats and in the units of the file.

    The model knows standardised data $z = (x - m)/s$, with a scale per column or channel: $\log p(x) = \log p(z) -
    \sum_d \log s_d$. Noise levels are given as the model knows them, in units of $s$, which is given too: in the units
    of the file each column has its own. Labels in the file are given to a class-conditional model. The summary counts
    the rows that converged.

    Args:
        checkpoint: The folder of the checkpoint.
        data: An `.npy` or `.npz` file, see `data.load_array`.
        out: The file to write, `.json` (with a summary) or `.csv` (rows alone).
        weigh: How they are found: `Weigh()` by default.
        seed: The seed `k` that gives the probes of sample `i` the stream `k + i`; fixed, so that a command can be
            repeated.
        say: Called with every line of the report.

    Raises:
        FileNotFoundError: No such file or checkpoint.
        TypeError, ValueError: Data or a file name that does not fit, a place that takes no file, or what would not fit
            into memory. All before any work.
        OSError: The file could not be written to `out` at the end; the message says where it is instead.
    """
    weigh = weigh or Weigh()
    probes, bin_width = weigh.probes, weigh.bin_width
    if out.suffix.lower() not in (".json", ".csv"):
        raise ValueError(f"--out must end in .json or .csv, got {out.name!r}")
    check_file(out, "--out")
    check_apart(out, "--out", checkpoint_files(checkpoint))
    if bin_width is not None and not 0 < bin_width < math.inf:
        raise ValueError(f"--bin-width must be positive and finite, got {bin_width:g}")
    loaded, (x, labels) = load_checkpoint(checkpoint), load_array(data)
    if labels is not None and not loaded.classes:
        labels = None
    _check(loaded, x, labels, weigh, seed)
    found = _evaluate(loaded, x, labels, weigh, seed)
    rows = _rows(found, bin_width)
    about = _summary(found, rows, loaded) | {
        "checkpoint": str(checkpoint),
        "data": str(data),
        "seed": seed,
        "probes": probes if probes is not None else None if found.dim <= EXACT_UP_TO else DEFAULT_PROBES,
        "labels": labels is not None,
    }
    text = _csv(rows) if out.suffix.lower() == ".csv" else _json({**about, "bin_width": bin_width}, rows)
    keep(lambda path: write_files({path: text}), out)
    say(str(found))
    if bin_width is not None:
        say(f"{about['bits_per_dim']:.4f} bits/dim, standard error {about['bits_per_dim_error']:.2g}")
    say(f"{len(x)} log-likelihoods in {out}")


def _evaluate(loaded: Checkpoint, x: Tensor, labels: Tensor | None, weigh: Weigh, seed: int) -> LogProb:
    """Evaluates the log-likelihoods batch by batch, with a progress bar, in the units of the file."""
    sampler, z = SDESampler(loaded.model.sde, loaded.model), loaded.scaling.apply(x, _dtype(loaded))
    cond = Conditions.of(loaded.model, {} if labels is None else {"label": labels}, len(x))
    trace = None if weigh.probes is None else Orthogonal(weigh.probes)
    density, method = Density(correct=weigh.correct), Method(trace=trace)
    parts: list[LogProb] = []
    with tqdm(total=len(x), desc="likelihood", unit="sample") as bar:
        for i in range(0, len(x), weigh.batch_size):
            part = slice(i, i + weigh.batch_size)
            seeds = range(seed + i, seed + i + len(z[part]))
            parts.append(log_prob(sampler, z[part], density=density, method=method, seed=seeds, **cond.part(part)))
            bar.update(len(z[part]))
    found = LogProb.join(parts)
    return replace(found, value=found.value + loaded.scaling.log_jacobian(x).to(found.value))


def _dtype(loaded: Checkpoint) -> torch.dtype:
    """Returns the dtype in which a model takes data: float64 for a net in float64, else float32."""
    double = any(p.dtype == torch.float64 for p in loaded.model.parameters())
    return torch.float64 if double else torch.float32


def _check(loaded: Checkpoint, x: Tensor, labels: Tensor | None, weigh: Weigh, seed: int) -> None:
    """Refuses, before the first batch, what would fail in a later one."""
    if labels is not None and int(labels.max()) >= loaded.classes:
        raise ValueError(f"the labels go up to {int(labels.max())}, and the model knows 0..{loaded.classes - 1}")
    check_seeds(seed, len(x))
    check_state(x, "--data", shape=loaded.model.shape)
    net, dim = loaded.model.net, x[0].numel()
    if isinstance(net, nn.Module) and tuple(x.shape[1:]) == loaded.model.shape:
        columns = min(CHUNK, weigh.probes or (dim if dim <= EXACT_UP_TO else DEFAULT_PROBES))
        check_batch(net, tuple(x.shape[1:]), min(weigh.batch_size, len(x)), passes=columns)


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
