"""The pictures of the pages on guidance, inverse problems and evidence, on exact models.

    python benchmarks/draw_guidance.py            # writes docs/images/guidance.png, posteriors.png and evidence.png
    python benchmarks/draw_guidance.py --quick    # few samples, nothing drawn

Printed is what the pictures say: distances to exact samples, sliced Wasserstein, over that of two exact sets; shares
of intervals that hold the evidence. Needs matplotlib (the extra `examples`).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sde_diffusion import VPSDE, SDESampler
from sde_diffusion.denoiser.analytic import GaussianMixture, isotropic_mixture
from sde_diffusion.guidance import (
    DPS,
    AutoGuided,
    JacobianFree,
    Mask,
    Moments,
    Posterior,
    PseudoInverse,
    Rule,
    Tilted,
)
from sde_diffusion.metrics import sliced_wasserstein
from sde_diffusion.particles import Particles, ParticleSampler
from sde_diffusion.solvers import DDIM, Inpaint

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SDE = VPSDE()
WIDE = torch.float64
SETS = 6
"""Exact sets of samples that distances are averaged over."""

# guidance: a class of two bumps among four
CLASS = [[0.3], [1.5]]
GIVEN = isotropic_mixture(SDE, CLASS, std=0.35)
FREE = isotropic_mixture(SDE, [*CLASS, [-0.3], [-1.5]], std=0.35)
AXIS = torch.linspace(-3.0, 4.5, 6001, dtype=WIDE)[:, None]

# posteriors: eight bumps on a ring, of which the first coordinate is measured
ANGLE = torch.arange(8, dtype=WIDE) * torch.pi / 4
RING = GaussianMixture(SDE, torch.ones(8, dtype=WIDE), torch.stack([ANGLE.cos(), ANGLE.sin()], 1), 0.02)
KEEP = torch.tensor([True, False])
A = torch.tensor([[1.0, 0.0]], dtype=WIDE)
NOISE = 0.2
RULES: list[Rule] = [Moments(), PseudoInverse(), JacobianFree(), DPS()]


class Panel(NamedTuple):
    """Samples and what is said of them."""

    title: str
    x: Tensor


def tilted_density(w: float) -> Tensor:
    """The density of the tilted law on the axis, shape `(len(AXIS),)`."""
    log_p = w * GIVEN.data_log_prob(AXIS) + (1 - w) * FREE.data_log_prob(AXIS)
    p = torch.exp(log_p - log_p.max())
    return p / (p.sum() * (AXIS[1] - AXIS[0]))


def quantiles(p: Tensor, u: Tensor) -> Tensor:
    """Points of a density on the axis where its distribution reaches `u`, shape `(n, 1)`."""
    cumulated = (p / p.sum()).cumsum(0)
    return AXIS[torch.searchsorted(cumulated, u).clamp(max=len(AXIS) - 1)]


def over_floor(x: Tensor, exact: Sequence[Tensor]) -> float:
    """The mean distance to exact sets over that between them."""
    floor = [sliced_wasserstein(a, b) for a, b in itertools.combinations(exact, 2)]
    return fmean(sliced_wasserstein(x, one) for one in exact) / fmean(floor)


def guidance(w: float, n: int) -> list[Panel]:
    """Samples of a guided flow, of the same within an interval of levels, and of particles."""
    p, stream = tilted_density(w), torch.Generator().manual_seed(0)
    exact = [quantiles(p, torch.rand(n, generator=stream, dtype=WIDE)) for _ in range(SETS)]
    particles = ParticleSampler(SDE, Tilted([GIVEN, FREE], [w, 1 - w]), particles=n, steps=200).sample(1, seed=0)
    found = {
        "guided": SDESampler(SDE, AutoGuided(GIVEN, FREE, w)).sample(n, seed=0),
        "guided below noise level 1": SDESampler(SDE, AutoGuided(GIVEN, FREE, w, high=1.0)).sample(n, seed=0),
        "particles": particles.draw(n, seed=1),
    }
    return [Panel(f"{name}: {over_floor(x, exact):.1f}", x) for name, x in found.items()]


def posteriors(n: int) -> list[Panel]:
    """Exact samples of a posterior, and those of everything that is to draw from it."""
    y = torch.tensor([0.6], dtype=WIDE)
    truth = RING.posterior(A, y, NOISE)
    exact = [truth.sample(n, seed=k) for k in range(1, 1 + SETS)]
    particles = ParticleSampler(SDE, Posterior(RING, Mask(KEEP), NOISE)).sample(4, seed=0, y=y)
    found: dict[str, Tensor] = {"particles, 4 x 1024": particles.draw(n, seed=1)}
    for rule in RULES:
        model = Posterior(RING, Mask(KEEP), NOISE, rule)
        found[f"{type(rule).__name__}()"] = SDESampler(SDE, model).sample(n, seed=0, y=y)
    known = torch.cat([y, y.new_zeros(1)])
    replaced = SDESampler(SDE, RING, solver=Inpaint(DDIM(1.0), known, KEEP), steps=100).sample(n, seed=0)
    given = [Panel("prior", RING.sample(n, seed=0)), Panel("exact", exact[0])]
    panels = [*given, *(Panel(f"{k}: {over_floor(x, exact):.1f}", x) for k, x in found.items())]
    certain = RING.posterior(A, y, 0.0)
    off = over_floor(replaced, [certain.sample(n, seed=k) for k in range(1, 1 + SETS)])
    return [*panels, Panel(f"Inpaint, no noise: {off:.1f}", replaced)]


def by_steps(n: int) -> dict[int, float]:
    """The distance of `Moments` over the floor, by the evaluations of a solve, over measurements all along the ring."""
    model, found = Posterior(RING, Mask(KEEP), NOISE), {}
    for evaluations in (20, 50, 100):
        sampler, ratios = SDESampler(SDE, model, steps=evaluations - 1), []
        for value in (-1.0, -0.5, 0.0, 0.4, 0.6, 1.0):
            y = torch.tensor([value], dtype=WIDE)
            exact = [RING.posterior(A, y, NOISE).sample(n, seed=k) for k in range(1, 1 + SETS)]
            ratios.append(over_floor(sampler.sample(n, seed=0, y=y), exact))
        found[evaluations] = fmean(ratios)
    return found


def evidence(problems: int, systems: int, particles: int) -> tuple[list[Particles], Tensor]:
    """What particles say of measurements of data of the ring, and the exact log evidences."""
    x0 = RING.sample(problems, seed=3)
    y = x0 @ A.T + NOISE * torch.randn(problems, 1, dtype=WIDE, generator=torch.Generator().manual_seed(4))
    sampler = ParticleSampler(SDE, Posterior(RING, Mask(KEEP), NOISE), particles=particles)
    found = [sampler.sample(systems, seed=100 * i, y=row) for i, row in enumerate(y)]
    return found, torch.tensor([RING.log_evidence(A, row, NOISE) for row in y], dtype=WIDE)


def effective(particles: int) -> dict[str, Tensor]:
    """The share of particles that count at each time, by rule of the twist."""
    y = torch.tensor([0.6], dtype=WIDE)
    shares = {}
    for rule in (Moments(), PseudoInverse(), DPS()):
        sampler = ParticleSampler(SDE, Posterior(RING, Mask(KEEP), NOISE, rule), particles=particles)
        shares[f"{type(rule).__name__}()"] = sampler.sample(1, seed=0, y=y).ess[0] / particles
    return shares


def covered(found: Sequence[Particles], truth: Tensor, level: float) -> Tensor:
    """Whether the interval of each holds the truth."""
    ends = torch.tensor([one.interval(level) for one in found], dtype=WIDE)
    return (ends[:, 0] <= truth) & (truth <= ends[:, 1])


def draw_guidance(plt: Any, scales: Sequence[float], panels: Sequence[Sequence[Panel]]) -> None:
    figure, axes = plt.subplots(1, len(scales), figsize=(9.6, 3.4), sharex=True, layout="constrained")
    for axis, w, drawn in zip(axes, scales, panels, strict=True):
        at = AXIS[:, 0]
        axis.fill_between(at, tilted_density(w), color="0.8", label="the tilted law")
        axis.plot(at, GIVEN.data_log_prob(AXIS).exp(), color="0.3", linewidth=1, linestyle=":", label="w = 1")
        for k, panel in enumerate(drawn):
            axis.hist(
                panel.x[:, 0],
                bins=80,
                range=(-1.5, 3.5),
                density=True,
                histtype="step",
                color=f"C{k}",
                label=panel.title,
            )
        axis.set_title(f"w = {w:g}", fontsize=9)
        axis.set_xlim(-1.5, 3.5)
        axis.set_xlabel("x", fontsize=9)
        axis.legend(fontsize=7)
    save(figure, "guidance.png")


def draw_posteriors(plt: Any, panels: Sequence[Panel]) -> None:
    figure, axes = plt.subplots(2, 4, figsize=(9.6, 5.0), sharex=True, sharey=True, layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=True):
        axis.scatter(*panels[0].x.T, s=1, color="0.85")
        axis.scatter(*panel.x[:600].T, s=1, color="C0")
        axis.axvline(0.6, color="C3", linewidth=0.6)
        axis.set_title(panel.title, fontsize=8)
        axis.set_aspect("equal")
        axis.tick_params(labelsize=7)
    save(figure, "posteriors.png")


def draw_evidence(plt: Any, found: Sequence[Particles], truth: Tensor, shares: dict[str, Tensor]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4), layout="constrained")
    ends = torch.tensor([one.interval(0.9) for one in found], dtype=WIDE) - truth[:, None]
    order = ends.mean(1).argsort()
    held = covered(found, truth, 0.9)[order]
    for i, (low, high) in enumerate(ends[order].tolist()):
        left.plot([i, i], [low, high], color="C0" if held[i] else "C3", linewidth=1.2)
        left.plot(i, (low + high) / 2, "o", color="C0" if held[i] else "C3", markersize=2)
    left.axhline(0, color="0.3", linewidth=0.8)
    m, n = found[0].log_weights.shape
    left.set_title(
        f"90% intervals, {m} x {n} particles: {int(held.sum())} of {len(held)} hold the evidence", fontsize=9
    )
    left.set_xlabel("measurement, sorted", fontsize=9)
    left.set_ylabel("log p(y), estimate - exact, nats", fontsize=9)
    for name, share in shares.items():
        right.plot(share, label=name, linewidth=1)
    right.set_title("effective share of 1024 particles, by rule", fontsize=9)
    right.set_xlabel("step: noise on the left, data on the right", fontsize=9)
    right.set_ylim(0, 1.02)
    right.legend(fontsize=8)
    save(figure, "evidence.png")


def save(figure: Any, name: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / name, dpi=110, metadata={"Software": None})
    print(f"wrote {IMAGES / name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples, and draws nothing")
    quick = parser.parse_args().quick
    n, problems = (64, 2) if quick else (4000, 50)
    scales = (2.0, 4.0)
    guided = [guidance(w, n) for w in scales]
    for w, panels in zip(scales, guided, strict=True):
        print(f"w = {w:g}: " + ", ".join(panel.title for panel in panels))
    drawn = posteriors(n // 2)
    print("posterior: " + ", ".join(panel.title for panel in drawn))
    steps = ", ".join(f"{ratio:.2f} after {evaluations}" for evaluations, ratio in by_steps(n // 4).items())
    print(f"Moments() by evaluations: {steps}")
    found, truth = evidence(problems, 8, 64)
    errors = torch.tensor([one.log_evidence for one in found], dtype=WIDE) - truth
    held = ", ".join(f"{int(covered(found, truth, level).sum())} at {level:.0%}" for level in (0.68, 0.9, 0.95))
    rms = float(errors.square().mean().sqrt())
    print(f"evidence of {problems} measurements: bias {errors.mean():+.4f}, rms {rms:.4f} nats, held by {held}")
    shares = effective(64 if quick else 1024)
    print("effective share at the least: " + ", ".join(f"{name} {share.min():.2f}" for name, share in shares.items()))
    if quick:
        return
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    draw_guidance(plt, scales, guided)
    draw_posteriors(plt, drawn)
    draw_evidence(plt, found, truth, shares)


if __name__ == "__main__":
    main()
