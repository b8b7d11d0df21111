"""The demonstration: digits, from training to likelihood, with every solver, in about four minutes of one core.

`run` works in phases, each timed, and writes pictures, figures and a checkpoint to one folder.
"""

from __future__ import annotations

import importlib.util
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion import plots
from sde_diffusion._files import check_folder, keep, write_files
from sde_diffusion.demo.table import HEADER, HEADLINE, LEGEND, SDE, Bench, Likelihood, Row, Trial, trials
from sde_diffusion.denoiser import predict
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.matching import DenoisingScoreMatching
from sde_diffusion.denoiser.network import Network
from sde_diffusion.denoiser.time_samplers import LogNormalSigma
from sde_diffusion.nets.unet import UNet
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.sde import grids
from sde_diffusion.training.checkpoint import save_checkpoint
from sde_diffusion.training.loop import train
from sde_diffusion.training.recipe import Recipe

Curves = dict[str, list[tuple[int, float]]]

BUDGETS = (5, 9, 13)
"""Evaluations at which the curves are drawn, besides those of the table."""
BARS = {"accuracy": 0.95, "frechet_ratio": 2.0, "bits_per_dim": 2.1}
"""The bars of the full run: an accuracy of at least, a ratio and bits per dimension of at most so much."""


@dataclass(frozen=True)
class Settings:
    """How much the demonstration does.

    Args:
        steps: Training steps.
        width: Channels of the U-Net at full resolution.
        classifier_steps: Training steps of the classifier.
        headline: Samples of the headline solver, at most 1,437.
        others: Samples of every solver in the table, at most 360. Frechet distances depend on these numbers.
        effort: Factor on the evaluations of the slow solvers.
        likelihoods: Test images whose likelihood is evaluated, at most 360.
        ode_steps: Steps of the Runge-Kutta method behind the likelihood, four evaluations each.
        seed: The seed of all that is drawn; the split of the data is always the same.
    """

    steps: int = 1200
    width: int = 32
    classifier_steps: int = 400
    headline: int = 1437
    others: int = 360
    effort: float = 1.0
    likelihoods: int = 40
    ode_steps: int = 8
    seed: int = 0


QUICK = Settings(
    steps=60, width=16, classifier_steps=60, headline=120, others=40, effort=0.2, likelihoods=2, ode_steps=2
)
"""Everything runs, in under half a minute, and nothing is good."""


@dataclass
class _Report:
    """Says what happens, and keeps the seconds of each phase."""

    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.say(f"\n== {name}")
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)
        self.say(f"   {self.seconds[name]:.1f} s")


def run(out: str | Path, settings: Settings | None = None, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains, samples with every solver, scores, evaluates likelihoods, draws.

    Args:
        out: Folder for `samples.png`, `film.png`, `nfe.png`, `metrics.json` and `checkpoint/`; made if need be.
        settings: How much to do; the full run by default.
        say: Called with every line of the report.

    Returns:
        What `metrics.json` holds.

    Raises:
        ImportError: One of the optional packages is missing, before anything else is done.
        ValueError: Settings out of range, or a folder that takes no files; before anything else, too.
        OSError: A result could not be written to `out`; the message says where it is instead. All others are written.
    """
    settings, report = settings or Settings(), _Report(say)
    _check(settings)
    out, lost = Path(out), list[str]()
    for folder in (out, out / "checkpoint"):
        check_folder(folder, "--out")

    def write(how: Callable[[Path], object], path: Path) -> None:
        try:
            keep(how, path)
        except OSError as error:  # the rest is worth having
            lost.append(str(error))

    out.mkdir(parents=True, exist_ok=True)
    with report.phase("data and the classifier that judges samples"):
        bench = Bench.prepare(seed=settings.seed, steps=settings.classifier_steps)
        right = bench.judge.accuracy(bench.test.images, bench.test.labels)
        say(f"   {len(bench.real)} training and {len(bench.test)} test images; {right:.1%} of the latter recognised")
    with report.phase(f"training a class-conditional U-Net, {settings.steps} steps"):
        model, loss = _train(bench, settings)
        extra = {"data_range": [-1.0, 1.0], "steps": settings.steps, "seed": settings.seed}
        write(
            lambda path: save_checkpoint(path, model, mean=bench.mean, std=bench.std, extra=extra), out / "checkpoint"
        )
        say(f"   loss {loss:.4f}" + (f"; {lost[-1]}" if lost else f"; saved to {out / 'checkpoint'}"))
    with report.phase("sampling with every solver, from the same seeds"):
        rows, curves, images = _measure(bench, model, settings, say)
    with report.phase(f"exact log-likelihood of {settings.likelihoods} test images"):
        likelihood = bench.likelihood(model, n=settings.likelihoods, steps=settings.ode_steps)
        for line in likelihood.lines():
            say(f"   {line}")
    with report.phase("pictures"):
        for name, draw in _pictures(bench, model, settings, rows, curves, images).items():
            write(draw, out / name)
    result = _result(settings, report, rows, curves, likelihood, right, loss)
    write(lambda path: write_files({path: json.dumps(result, indent=2).encode()}), out / "metrics.json")
    if lost:
        raise OSError("; ".join(lost))
    _close(out, result, say)
    return result


def _check(settings: Settings) -> None:
    """Refuses settings out of range and missing packages, before any work."""
    for name, low, high in (("headline", 2, 1437), ("others", 2, 360), ("likelihoods", 2, 360)):
        if not low <= getattr(settings, name) <= high:
            raise ValueError(f"{name} must lie in {low}..{high}, got {getattr(settings, name)!r}")
    packages = ("sklearn", "matplotlib", "safetensors", "torchdiffeq", "torchsde")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"the demo needs {', '.join(missing)}: pip install 'sde-diffusion[ode,sde,train,examples]'")


def _train(bench: Bench, settings: Settings) -> tuple[Denoiser, float]:
    """Trains, and returns the averaged model and the mean loss of the last hundred steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = UNet(1, width=settings.width, classes=10, label_drop=0.1, dropout=0.1)
    trained = train(
        Network(net, SDE, predict.edm, shape=(1, 8, 8)),
        bench.levels,
        bench.labels,
        steps=settings.steps,
        loss=DenoisingScoreMatching(LogNormalSigma(mean=-0.65, std=1.4)),
        recipe=Recipe(transform=bench.fresh),
        seed=settings.seed,
        progress=True,
    )
    last = trained.losses[-100:]
    return trained.model.requires_grad_(False), sum(last) / len(last)


def _measure(
    bench: Bench, model: Denoiser, settings: Settings, say: Callable[[str], None]
) -> tuple[list[Row], Curves, Tensor]:
    """Measures the table, Frechet distance by evaluations for some solvers, and the images of the headline solver."""
    n, others = settings.headline, settings.others
    say("   " + HEADER)
    rows: list[Row] = []

    def add(row: Row) -> Row:
        rows.append(row)
        say(f"   {row}")
        return row

    add(bench.floor(n))
    add(bench.floor(others))
    row, images = bench.draw(model, Trial(HEADLINE), bench.labels[:n], settings.seed)
    add(row)
    labels = bench.test.labels[:others]
    curves: Curves = {}
    for trial in trials(settings.effort):
        row = add(bench.draw(model, trial, labels, settings.seed)[0])
        if trial.curve:
            shorter = [bench.draw(model, replace(trial, nfe=k), labels, settings.seed)[0] for k in BUDGETS]
            curves[row.name] = [(r.nfe, r.frechet) for r in (*shorter, row)]
    for line in LEGEND:
        say(f"   {line}")
    return rows, curves, images


def _pictures(
    bench: Bench, model: Denoiser, settings: Settings, rows: list[Row], curves: Curves, images: Tensor
) -> dict[str, Callable[[Path], None]]:
    """The three pictures by name, each drawn by calling it with a path."""
    headline = next(row for row in rows if row.nfe)
    labels = bench.labels[: settings.headline]
    columns, real = plots.by_class(images, labels, 12), plots.by_class(bench.test.images, bench.test.labels, 4)
    single = {r.name: (r.nfe, r.frechet) for r in rows if r.nfe > 21 and r.n == settings.others}
    floor = next(r.frechet for r in rows if not r.nfe and r.n == settings.others)
    digits = f"Digits drawn by {headline.name}, {headline.nfe} network evaluations each"
    quality = f"Quality against cost: {settings.others} samples a point, same seeds, same network"
    return {
        "samples.png": lambda path: plots.sample_grid(path, columns, real, title=digits),
        "film.png": lambda path: _film(path, bench, model, settings.seed),
        "nfe.png": lambda path: plots.quality_plot(path, curves, single, floor=floor, title=quality),
    }


def _film(path: Path, bench: Bench, model: Denoiser, seed: int) -> None:
    """Draws three digits on their way, every third step of thirty."""
    label = torch.tensor([3, 5, 0])
    sampler = SDESampler(SDE, model, solver=HEADLINE, steps=30, grid=grids.angle)
    shots = [now for now in sampler.iterate(3, seed=seed, label=label) if now.index % 3 == 0 or now.index > 30]
    with torch.no_grad():
        guesses = [model(now.x, now.t, label=label).data for now in shots[:-1]] + [shots[-1].x]
    levels = [now.t for now in shots[:-1]] + [0.0]
    states = [now.x / math.hypot(1.0, s) for now, s in zip(shots, levels, strict=True)]
    film, estimates = (torch.stack(z, 1)[:, :, 0] * bench.std + bench.mean for z in (states, guesses))
    plots.film_strip(
        path, film, estimates, levels, label.tolist(), title=f"From noise to digits: {HEADLINE!r}, 30 steps and a jump"
    )


def _result(
    settings: Settings,
    report: _Report,
    rows: list[Row],
    curves: Curves,
    likelihood: Likelihood,
    right: float,
    loss: float,
) -> dict[str, Any]:
    """Gathers everything that goes to `metrics.json`."""
    real, headline = rows[0], next(row for row in rows if row.nfe)
    figures = {
        "accuracy": headline.accuracy,
        "frechet_ratio": headline.frechet / real.frechet,
        "bits_per_dim": likelihood.bits_per_dim,
    }
    return {
        "figures": figures,
        "bars": BARS,
        "headline": asdict(headline),
        "real": asdict(real),
        "likelihood": asdict(likelihood),
        "table": [asdict(row) for row in rows],
        "curves": curves,
        "classifier_accuracy_on_test": right,
        "loss": loss,
        "settings": asdict(settings),
        "seconds": report.seconds,
        "versions": {
            "sde_diffusion": sys.modules["sde_diffusion"].__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }


def _close(out: Path, result: dict[str, Any], say: Callable[[str], None]) -> None:
    """Says what was reached, where it is, and what to try next."""
    figures, head, real = result["figures"], result["headline"], result["real"]
    distances = (
        f"{head['frechet']:.2f}, real training images {real['frechet']:.2f}: {figures['frechet_ratio']:.2f} times"
    )
    error = result["likelihood"]["bits_error"]
    checkpoint = out / "checkpoint"
    written = {
        "samples.png": "samples by class, beside real digits",
        "film.png": "three digits on their way from noise",
        "nfe.png": "quality against network evaluations",
        "metrics.json": "every figure above",
        "checkpoint": "the model: safetensors and JSON",
    }
    lines = [
        f"\n== done in {sum(result['seconds'].values()):.0f} s, threads: {result['threads']}",
        f"   {head['name']}, {head['nfe']} evaluations, {head['n']} class-conditional samples",
        f"   recognised as the class asked for:   {figures['accuracy']:.1%} (wanted: {BARS['accuracy']:.0%} or more)",
        f"   Frechet distance to the test split:  {distances} (wanted: {BARS['frechet_ratio']:g} or less)",
        f"   bits/dim on test images:             {figures['bits_per_dim']:.3f} +- {error:.3f}"
        f" (wanted: {BARS['bits_per_dim']:g} or less)",
        "\nwritten:",
        *(f"   {out / name!s:<24} {what}" for name, what in written.items()),
        "\nnext:",
        f"   sde-diffusion sample --checkpoint {checkpoint} --n 100 --out digits.png",
        f"   sde-diffusion sample --checkpoint {checkpoint} --label 7 --solver ddpm --steps 100 --out sevens.npz",
        "   sde-diffusion train --data yours.npy --out model        # vectors (N, D) or images (N, C, H, W)",
    ]
    for line in lines:
        say(line)
