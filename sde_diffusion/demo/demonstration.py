"""The demonstration: digits, from training to likelihood, with every solver, in about seven minutes of one core.

`run` works in phases, each timed, and writes pictures, figures and a checkpoint to one folder.
"""

from __future__ import annotations

import importlib.util
import json
import math
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
from sde_diffusion.data.scalings import Standardise
from sde_diffusion.demo.distilled import few_calls
from sde_diffusion.demo.guided import Found, guide
from sde_diffusion.demo.results import Curves, close, gather
from sde_diffusion.demo.table import BUDGET, HEADER, HEADLINE, LEGEND, SDE, TUNED, Bench, Row, Trial, concise, trials
from sde_diffusion.denoiser import predict
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.network import Network
from sde_diffusion.denoiser.objectives.matching import DenoisingScoreMatching
from sde_diffusion.denoiser.objectives.time_samplers import LogNormalSigma
from sde_diffusion.nets.unet import UNet
from sde_diffusion.sampler.sampler import SDESampler
from sde_diffusion.sde import grids
from sde_diffusion.training.checkpoint import TABLES, save_checkpoint
from sde_diffusion.training.loop import train
from sde_diffusion.training.recipe import Recipe
from sde_diffusion.tuning.tuned import Tuned

BUDGETS = (5, 9, 13)
"""Evaluations at which the curves are drawn, besides those of the table."""


@dataclass(frozen=True)
class Settings:
    """How much the demonstration does.

    Args:
        steps: Training steps.
        width: Channels of the U-Net at full resolution.
        classifier_steps: Training steps of the classifier.
        headline: Samples of the headline solver, at most 1,437.
        others: Samples of every solver in the table, at most 360. Frechet distances depend on these numbers.
        effort: Factor on the evaluations of the slow solvers; below 1, tuned samplers are not refined.
        distil_steps: Training steps of the flow map, which draws in one call.
        halves: Test images that are filled in by their left half, at least 10 and at most 360.
        likelihoods: Test images whose likelihood is evaluated, at most 360.
        tuning: Samples that the tuned samplers are fitted to, and as many that they are judged on; at least 16.
        ode_steps: Steps of the Runge-Kutta method behind the likelihood, four evaluations each.
        seed: The seed of all that is drawn; the split of the data is always the same.
    """

    steps: int = 1200
    width: int = 32
    classifier_steps: int = 400
    headline: int = 1437
    others: int = 360
    effort: float = 1.0
    distil_steps: int = 400
    halves: int = 90
    likelihoods: int = 40
    tuning: int = 128
    ode_steps: int = 8
    seed: int = 0


QUICK = Settings(
    steps=60,
    width=16,
    classifier_steps=60,
    headline=120,
    others=40,
    effort=0.2,
    distil_steps=10,
    halves=10,
    likelihoods=2,
    tuning=16,
    ode_steps=2,
)
"""Everything runs, in under half a minute, and nothing is good."""


LIMITS = (
    ("headline", 2, 1437),
    ("others", 2, 360),
    ("halves", 10, 360),
    ("likelihoods", 2, 360),
    ("tuning", 16, 1437),
)
"""Names of settings, with the least and the greatest number that each takes."""


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
    """Trains, samples with every solver, distils, scores, evaluates likelihoods, draws.

    Args:
        out: Folder for `samples.png`, `guided.png`, `fast.png`, `film.png`, `nfe.png`, `metrics.json`, `checkpoint/`
            and `fast/`, made if need be.
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
    for folder in (out, out / "checkpoint", out / "fast"):
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
        scaling = Standardise(torch.tensor(bench.mean), torch.tensor(bench.std))
        extra = {"data_range": [-1.0, 1.0], "seed": settings.seed}
        more = {**extra, "steps": settings.steps}
        write(lambda path: save_checkpoint(path, model, scaling=scaling, extra=more), out / "checkpoint")
        say(f"   loss {loss:.4f}" + (f"; {lost[-1]}" if lost else f"; saved to {out / 'checkpoint'}"))
    with report.phase(f"tuning samplers of {', '.join(map(str, TUNED))} evaluations"):
        tuned = bench.tune(model, batch=settings.tuning, refine=settings.effort >= 1, seed=settings.seed)
        write(tuned.save, out / "checkpoint" / TABLES)
        for line in tuned.report.lines():
            say(f"   {line}")
    with report.phase("sampling with every solver, from the same seeds"):
        rows, curves, images = _measure(bench, model, tuned, settings, say)
    with report.phase(f"distilling the network into a map that draws in one call, {settings.distil_steps} steps"):
        few = few_calls(bench, model, _plain(rows, settings), steps=settings.distil_steps, seed=settings.seed)
        rows += few.figures.rows
        less = {**extra, "steps": settings.distil_steps}
        write(lambda path: save_checkpoint(path, few.fast, scaling=scaling, extra=less), out / "fast")
        for line in (HEADER, *map(str, few.figures.rows), few.figures.line()):
            say(f"   {line}")
    with report.phase("guidance, and digits of which the left half is given"):
        guided = guide(bench, model, _plain(rows, settings), halves=settings.halves, seed=settings.seed)
        for line in guided.figures.lines():
            say(f"   {line}")
    with report.phase(f"exact log-likelihood of {settings.likelihoods} test images"):
        likelihood = bench.likelihood(model, n=settings.likelihoods, steps=settings.ode_steps)
        for line in likelihood.lines():
            say(f"   {line}")
    with report.phase("pictures"):
        title = "In one call of a map of the network, or a few, what the network draws in many"
        write(lambda path: plots.bands(path, few.bands, title=title), out / "fast.png")
        for name, draw in _pictures(bench, model, settings, rows, curves, images, guided).items():
            write(draw, out / name)
    result = gather(
        asdict(settings),
        report.seconds,
        rows,
        curves,
        tuned.report,
        likelihood,
        guided.figures,
        few.figures,
        right,
        loss,
    )
    write(lambda path: write_files({path: json.dumps(result, indent=2).encode()}), out / "metrics.json")
    if lost:
        raise OSError("; ".join(lost))
    close(out, result, say)
    return result


def _check(settings: Settings) -> None:
    """Refuses settings out of range and missing packages, before any work."""
    for name, low, high in LIMITS:
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
        label=bench.labels,
        steps=settings.steps,
        loss=DenoisingScoreMatching(LogNormalSigma(mean=-0.65, std=1.4)),
        recipe=Recipe(transform=bench.fresh),
        seed=settings.seed,
        progress=True,
    )
    last = trained.losses[-100:]
    return trained.model.requires_grad_(False), sum(last) / len(last)


def _measure(
    bench: Bench, model: Denoiser, tuned: Tuned, settings: Settings, say: Callable[[str], None]
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
    curves: Curves = {"tuned": []}
    for nfe in TUNED:
        add(bench.draw(model, Trial(HEADLINE, nfe), labels, settings.seed)[0])
        default = SDESampler(SDE, model, nfe=nfe)
        add(bench.measure(default, f"SDESampler(SDE, model, nfe={nfe})", "default", labels, settings.seed)[0])
        row = add(bench.measure(tuned.sampler(nfe), f"tuned.sampler({nfe})", "own", labels, settings.seed)[0])
        curves["tuned"].append((row.nfe, row.frechet))
    for trial in trials(settings.effort):
        row = add(bench.draw(model, trial, labels, settings.seed)[0])
        if trial.curve:
            shorter = [bench.draw(model, replace(trial, nfe=k), labels, settings.seed)[0] for k in BUDGETS]
            curves[row.name] = [(r.nfe, r.frechet) for r in (*shorter, row)]
    for line in LEGEND:
        say(f"   {line}")
    return rows, curves, images


def _plain(rows: list[Row], settings: Settings) -> Row:
    """The row of the headline solver with the others' budget and number of samples."""
    name = concise(HEADLINE)
    return next(r for r in rows if (r.name, r.nfe, r.n) == (name, BUDGET, settings.others))


def _pictures(
    bench: Bench, model: Denoiser, settings: Settings, rows: list[Row], curves: Curves, images: Tensor, guided: Found
) -> dict[str, Callable[[Path], None]]:
    """The pictures by name, each drawn by calling it with a path."""
    headline = next(row for row in rows if row.nfe)
    labels = bench.labels[: settings.headline]
    columns, real = plots.by_class(images, labels, 12), plots.by_class(bench.test.images, bench.test.labels, 4)
    single = {r.name: (r.nfe, r.frechet) for r in rows if r.nfe > 21 and r.n == settings.others}
    floor = next(r.frechet for r in rows if not r.nfe and r.n == settings.others)
    digits = f"Digits drawn by {headline.name}, {headline.nfe} network evaluations each"
    quality = f"Quality against cost: {settings.others} samples a point, same seeds, same network"
    return {
        "samples.png": lambda path: plots.sample_grid(path, columns, real, title=digits),
        "guided.png": lambda path: plots.bands(path, guided.bands, title="Guidance, and digits by their left half"),
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
