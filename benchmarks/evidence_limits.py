"""Where an evidence by particles goes wrong: measurements far from the model, and the intervals of products.

    python benchmarks/evidence_limits.py            # prints the figures of docs/evidence.md, "How it works" and after
    python benchmarks/evidence_limits.py --quick    # a few systems in few steps

The model is the ring of the page. Far: its first coordinate measured as 3, with noise 0.2, whose evidence is exact in
closed form. Products: `Tilted([ring], [2.0])` and `AutoGuided(ring, bump, 2.0)`, whose integrals are sums over a grid.
"""

from __future__ import annotations

import argparse
import math
import warnings

import torch
from draw_guidance import KEEP, NOISE, RING, SDE, A
from torch import Tensor

from sde_diffusion import Denoiser
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.guidance import AutoGuided, Mask, Moments, Posterior, PseudoInverse, Rule, Tilted
from sde_diffusion.particles import ParticleSampler, ParticleWarning

WIDE = torch.float64
FAR = torch.tensor([3.0], dtype=WIDE)
BUMP = Gaussian(SDE, torch.zeros(2, dtype=WIDE), 0.6)
SIDE = torch.linspace(-4.0, 4.0, 1601, dtype=WIDE)


def far(rule: Rule, systems: int, particles: int, steps: int) -> str:
    """What systems of particles answer for the measurement far out."""
    target = Posterior(RING, Mask(KEEP), NOISE, rule)
    found = ParticleSampler(SDE, target, particles=particles, steps=steps).sample(systems, seed=0, y=FAR)
    each = found.log_evidences
    return (
        f"{rule!r}, {systems} systems of {particles} in {steps} steps: least effective {found.ess.min():.1f}, systems "
        f"{each.mean():.1f}, deviation {each.std():.1f}, together {found.log_evidence:.1f}"
    )


def integral(log_density: Tensor) -> float:
    """Logarithm of the integral over the plane of a density on the grid."""
    return float(torch.logsumexp(log_density, 0) + 2 * math.log(SIDE[1] - SIDE[0]))


def products() -> list[tuple[Denoiser, float]]:
    """The products, and the logarithms of their integrals."""
    plane = torch.cartesian_prod(SIDE, SIDE)
    ring, bump = RING.data_log_prob(plane), BUMP.data_log_prob(plane)
    return [
        (Tilted([RING], [2.0]), integral(2 * ring)),
        (AutoGuided(RING, BUMP, 2.0), integral(2 * ring - bump)),
    ]


def held(particles: int, steps: int, repeats: int) -> str:
    """How often intervals of 95 % of 8 systems hold the integral, over both products, and how far off the mean is."""
    count, off = 0, []
    for target, exact in products():
        sampler = ParticleSampler(SDE, target, particles=particles, steps=steps)
        for i in range(repeats):
            found = sampler.sample(8, seed=1000 * i)
            low, high = found.interval(0.95)
            count += low <= exact <= high
            off.append(found.log_evidence - exact)
    return f"8 x {particles} in {steps} steps: {count} of {2 * repeats}, off by {sum(off) / len(off):+.3f} nats"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few systems in few steps")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ParticleWarning)  # which is what the figures are about
    print(f"y = 3: exact {float(RING.log_evidence(A, FAR, NOISE)):.2f}")
    small, long = (2, 20) if quick else (48, 100)
    for rule in (Moments(), PseudoInverse()):
        print(far(rule, small, 64, long))
    if not quick:
        print(far(Moments(), 4, 1024, 100))
        print(far(Moments(), 4, 64, 800))
    plans = [(64, 20, 2)] if quick else [(64, 50, 40), (64, 100, 40), (64, 400, 40), (1024, 100, 24)]
    for particles, steps, repeats in plans:
        print(f"intervals of products: {held(particles, steps, repeats)}", flush=True)


if __name__ == "__main__":
    main()
