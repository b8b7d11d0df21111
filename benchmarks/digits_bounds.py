"""Bits per dimension of real digits by several roads, on the network of the demonstration.

    make demo                                                   # trains the network, demo/checkpoint
    python benchmarks/digits_bounds.py                          # prints the table of docs/elbo.md
    python benchmarks/digits_bounds.py --quick                  # four images, to see that it runs

The chains use a decoder of standard deviation h/4: the clipped posterior variance of DDPM, the default, costs this
network about 9 bits/dim. Test images with uniform dequantisation and without labels; h is half the width of a bin, S0
the smallest noise level. The standard error in the last column is that of the estimate of a bound; the spread over
the images is printed below.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from sde_diffusion import SDESampler, data
from sde_diffusion.likelihood import Elbo, Estimate, GaussianDecoder, Method, bits_per_dim, continuous_elbo, elbo
from sde_diffusion.solvers import RK4
from sde_diffusion.training import load_checkpoint


def main() -> None:
    """Loads, estimates, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("demo/checkpoint"))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="four images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.checkpoint.exists():
        print(f"no checkpoint at {arguments.checkpoint}: run `make demo` first, or give --checkpoint")
        return
    loaded = load_checkpoint(arguments.checkpoint)
    images = data.digits("test", seed=0).images[: 4 if arguments.quick else arguments.images]
    z = loaded.scaling.apply(images)
    d = z[0].numel()
    width = data.BIN_WIDTH * math.exp(float(loaded.scaling.log_jacobian(images[:1])) / d)
    half = width / 2

    sampler = SDESampler(loaded.model.sde, loaded.model)
    exact = sampler.log_prob(z, method=Method(RK4(), steps=10, solver_error=False))
    flow = bits_per_dim(exact.value, d, bin_width=width)
    print("| estimate | evaluations | bits/dim | standard error |\n|---|---|---|---|")
    print(f"| probability flow | {exact.nfe} and their divergence | {float(flow.mean()):.3f} | |")

    def tell(name: str, bound: Elbo) -> None:
        bits = bits_per_dim(-bound.total, d, bin_width=width)
        error = float(bound.standard_error.square().sum().sqrt()) / len(z) / d / math.log(2)
        print(f"| {name} | {bound.nfe} | {float(bits.mean()):.3f} | {error:.3f} |", flush=True)
        below = ((bound.total + exact.value) / bound.standard_error).min()
        gaps.append(f"{name}: gap {float((bound.total + exact.value).mean()):.2f} nats, lowest z {float(below):.1f}")

    gaps: list[str] = []
    top = -math.log(float(loaded.model.sde.levels([loaded.model.sde.t_max])[0].sigma))
    for part in (4, 2):
        lam = (top, -math.log(half / part))
        tell(
            f"`continuous_elbo`, S0 = h/{part}",
            continuous_elbo(loaded.model, z, lam=lam, estimate=Estimate(levels=48), seed=0),
        )
    lams = torch.linspace(-math.log(half / 4), top, 200, dtype=torch.float64)
    times = loaded.model.sde.time_of(lams).clamp(loaded.model.sde.t_min, loaded.model.sde.t_max).tolist()
    for variance in ("posterior", "forward"):
        bound = elbo(
            loaded.model,
            z,
            times=times,
            variance=variance,
            decoder=GaussianDecoder(std=half / 4),
            estimate=Estimate(levels=48),
            seed=0,
        )
        tell(f"`elbo`, 200 levels even in log-SNR, {variance} variance", bound)
    print(f"\n{len(z)} images; their spread adds {float(flow.std()) / math.sqrt(len(z)):.3f} to every line")
    print("\n".join(gaps))


if __name__ == "__main__":
    main()
