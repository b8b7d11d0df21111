r"""What `likelihood` says of a model of codes: a bound on log p(x) from below, term by term, and never log p(x)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sde_diffusion.cli.conditions import marked
from sde_diffusion.cli.forms.form import Form
from sde_diffusion.cli.machine import processes
from sde_diffusion.denoiser.modules import home
from sde_diffusion.latent.bound import elbo
from sde_diffusion.latent.result import LatentBound
from sde_diffusion.latent.sampler import LatentSampler
from sde_diffusion.likelihood.bits import bits_per_dim
from sde_diffusion.likelihood.bound_terms import Estimate
from sde_diffusion.likelihood.exact import Method
from sde_diffusion.likelihood.trace import Orthogonal
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.training.checkpoint import Checkpoint

Row = dict[str, Any]


def check_levels(levels: int | None, probes: int | None, form: Form) -> None:
    """Refuses levels of a density, which has none, and beside probes."""
    if levels is not None and form.codec is None:
        raise ValueError("--levels is of the bound of a model of codes, and this one has a density: leave it out")
    if levels is not None and probes is not None:
        raise ValueError("--probes is of the density of codes, --levels of the bound in its place: give one of them")


def check_bounded(correct: bool) -> None:
    """Refuses what a bound cannot be.

    Raises:
        ValueError: A correction, or several processes.
    """
    if correct:
        raise ValueError("--correct makes no density of codes, and no bound of it: leave it out")
    if processes() > 1:
        raise ValueError("the bound of a model of codes is found in one process: run it without torchrun")


def bounded(
    loaded: Checkpoint,
    form: Form,
    x: Tensor,
    cond: Mapping[str, Tensor],
    *,
    probes: int | None,
    levels: int | None,
    batch_size: int,
    seed: int,
) -> LatentBound:
    """The bound of the log-likelihood of data, in the units in which the codec sees them.

    Args:
        loaded: The checkpoint of the model of codes.
        form: Its codec.
        x: Data in their own units, `(N, *)`.
        cond: Conditions as the model knows them.
        probes: Random probes of the divergence; None for the default.
        levels: Noise levels by which the bound of the diffusion weighs a code; None for its density.
        batch_size: Samples in memory at once.
        seed: `k` gives sample `i` the stream `k + i`.
    """
    if form.codec is None:
        raise ValueError("a bound is one of a model of codes")
    dtype, device = home(loaded.model)
    sampler = LatentSampler(SDESampler(loaded.model.sde, loaded.model), form.codec)
    how: dict[str, Any] = {"method": Method(trace=None if probes is None else Orthogonal(probes))}
    if levels is not None:
        how = {"estimate": Estimate(levels=levels)}
    found, n = [], len(x)
    with tqdm(total=n, desc="likelihood") as bar:
        for part in (slice(i, min(i + batch_size, n)) for i in range(0, n, batch_size)):
            given = {name: value[part] if len(value) == n else value for name, value in cond.items()}
            rows = form.scaling.apply(x[part], dtype).to(device)
            found.append(elbo(sampler, rows, **how, seed=seed + part.start, cond=marked(given)))
            bar.update(len(rows))
    return LatentBound.join(found)


def rows_of_bound(found: LatentBound, log_jacobian: Tensor, bin_width: float | None) -> list[Row]:
    """A row for each sample, in the units of the data: the bound, its terms and their errors."""
    slopes = log_jacobian.to(found.value)
    value = found.value + slopes
    columns: dict[str, list[Any]] = {
        "bound": value.tolist(),
        "standard_error": found.standard_error.tolist(),
        "solver_error": found.solver_error.tolist(),
        "reconstruction": (found.reconstruction + slopes).tolist(),
        "prior": found.prior.tolist(),
        "entropy": found.entropy.tolist(),
        "converged": value.isfinite().tolist(),
    }
    if bin_width is not None:
        columns["bits_per_dim"] = bits_per_dim(value, found.dim, bin_width=bin_width).tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def summary_of_bound(found: LatentBound, rows: list[Row]) -> Row:
    """Means over the rows that converged, with their standard errors over samples."""
    good = [row for row in rows if row["converged"]]
    about: Row = {"kind": "bound from below", "samples": len(rows), "converged": len(good), "dim": found.dim}
    for name in ("bound", "reconstruction", "prior", "entropy", "bits_per_dim"):
        values = torch.tensor([row[name] for row in good if name in row], dtype=torch.float64, device="cpu")
        if len(values):
            error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            about |= {name: float(values.mean()), f"{name}_error": error}
    return about | {"code_dim": found.code_dim, "noise_level": found.level, "draws": len(found.draws), "nfe": found.nfe}


def lines_of_bound(about: Row, bin_width: float | None) -> list[str]:
    """What is said of a bound."""
    if not about["converged"]:
        return [f"none of {about['samples']:,} converged: the rows say what came, and there is no mean of them"]
    lines = [
        f"log p >= {about['bound']:.4f} +- {about['bound_error']:.2g} nats, in the units of --data, mean of "
        f"{about['converged']}: reconstruction {about['reconstruction']:.4f}, prior {about['prior']:.4f}, entropy "
        f"{about['entropy']:.4f}; {about['draws']} draws, {about['nfe']} evaluations",
        "a bound from below, through the codec: log p(x) itself is an integral over all codes",
    ]
    if bin_width is not None:
        lines.append(f"at most {about['bits_per_dim']:.4f} bits/dim, standard error {about['bits_per_dim_error']:.2g}")
    return lines
