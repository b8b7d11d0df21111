"""What a run of the demonstration has found: the entries of `metrics.json`, and the last lines of the report."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sde_diffusion.demo.distilled import Distillation
from sde_diffusion.demo.guided import Guidance
from sde_diffusion.demo.table import BUDGET, Likelihood, Row
from sde_diffusion.tuning.report import Report

Curves = dict[str, list[tuple[int, float]]]
"""For each name the pairs of evaluations and Frechet distance."""
BARS = {"accuracy": 0.95, "frechet_ratio": 2.0, "bits_per_dim": 2.1, "one_call_ratio": 1.3}
"""The bars of the full run: an accuracy of at least, ratios and bits per dimension of at most so much."""


def gather(
    settings: Mapping[str, Any],
    seconds: Mapping[str, float],
    rows: list[Row],
    curves: Curves,
    tuning: Report,
    likelihood: Likelihood,
    guided: Guidance,
    distilled: Distillation,
    right: float,
    loss: float,
) -> dict[str, Any]:
    """Gathers what goes to `metrics.json`, from the settings, the seconds of each phase and what was found."""
    real, headline = rows[0], next(row for row in rows if row.nfe)
    figures = {
        "accuracy": headline.accuracy,
        "frechet_ratio": headline.frechet / real.frechet,
        "bits_per_dim": likelihood.bits_per_dim,
        "one_call_ratio": distilled.ratio,
    }
    return {
        "figures": figures,
        "bars": BARS,
        "headline": asdict(headline),
        "real": asdict(real),
        "likelihood": asdict(likelihood),
        "guided": asdict(guided),
        "distilled": asdict(distilled),
        "tuning": {
            "seconds": round(tuning.seconds, 1),
            "calls": tuning.calls,
            "batch": tuning.batch,
            "winners": {v.nfe: asdict(v.winner) for v in tuning.verdicts},
            "best_standard": {v.nfe: v.standard and asdict(v.standard) for v in tuning.verdicts},
        },
        "table": [asdict(row) for row in rows],
        "curves": curves,
        "classifier_accuracy_on_test": right,
        "loss": loss,
        "settings": dict(settings),
        "seconds": dict(seconds),
        "versions": {
            "sde_diffusion": sys.modules["sde_diffusion"].__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }


def close(out: Path, result: dict[str, Any], say: Callable[[str], None]) -> None:
    """Says what was reached, where it is, and what to try next."""
    figures, head, real = result["figures"], result["headline"], result["real"]
    distances = (
        f"{head['frechet']:.2f}, real training images {real['frechet']:.2f}: {figures['frechet_ratio']:.2f} times"
    )
    error = result["likelihood"]["bits_error"]
    checkpoint, guided = out / "checkpoint", result["guided"]
    one = result["distilled"]["rows"][0]
    written = {
        "samples.png": "samples by class, beside real digits",
        "guided.png": "guided digits, and digits filled in by their left half",
        "fast.png": "digits in one call, two and four of a flow map, beside those of the network",
        "film.png": "three digits on their way from noise",
        "nfe.png": "quality against network evaluations",
        "metrics.json": "every figure above",
        "checkpoint": "the model and its tuned samplers: safetensors and JSON",
        "fast": "the flow map, likewise",
    }
    lines = [
        f"\n== done in {sum(result['seconds'].values()):.0f} s, threads: {result['threads']}",
        f"   {head['name']}, {head['nfe']} evaluations, {head['n']} class-conditional samples",
        f"   recognised as the class asked for:   {figures['accuracy']:.1%} (wanted: {BARS['accuracy']:.0%} or more)",
        f"   Frechet distance to the test split:  {distances} (wanted: {BARS['frechet_ratio']:g} or less)",
        f"   bits/dim on test images:             {figures['bits_per_dim']:.3f} +- {error:.3f}"
        f" (wanted: {BARS['bits_per_dim']:g} or less)",
        f"   Frechet distance in one call:        {one['frechet']:.2f}, network in {BUDGET} evaluations"
        f" {result['distilled']['teacher']['frechet']:.2f}: {figures['one_call_ratio']:.2f} times"
        f" (wanted: {BARS['one_call_ratio']:g} or less)",
        f"   recognised with guidance {guided['w']:g}:          {guided['recognised']:.1%}"
        f" (without: {guided['plain']:.1%})",
        f"   left half given, rest filled in:     {guided['filled']:.1%} recognised as what they are",
        "\nwritten:",
        *(f"   {out / name!s:<24} {what}" for name, what in written.items()),
        "\nnext:",
        f"   sde-diffusion sample --checkpoint {checkpoint} --n 100 --nfe 8 --out digits.png",
        f"   sde-diffusion sample --checkpoint {out / 'fast'} --n 100 --nfe 1 --out at-once.png",
        f"   sde-diffusion sample --checkpoint {checkpoint} --label 7 --solver ddpm --steps 100 --out sevens.npz",
        f"   sde-diffusion sample --checkpoint {checkpoint} --guidance 2 --out guided-digits.png",
        "   sde-diffusion train --data yours.npy --out model        # vectors (N, D) or images (N, C, H, W)",
    ]
    for line in lines:
        say(line)
