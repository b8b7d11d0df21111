"""The bound through a codec against log p(x) that is known: how far below, and whether its errors hold.

    python benchmarks/latent_bound.py            # writes results/latent_bound.json and docs/images/latent_bound.png
    python benchmarks/latent_bound.py --quick    # few rows and trials, nothing written

A linear Gaussian autoencoder, 6 coordinates and a code of 3, with an exact diffusion of the codes, that of the tests.
The encoder is the posterior with its standard deviation `stretch` times as wide, or moved by `off` standard deviations:
the bound lies below log p(x) by the Kullback-Leibler divergence, in closed form. Each row is the mean over 500 samples
(seed 1, draws from seed 0), with the codes weighed by the density of the probability flow, and by the bound of the
diffusion in 64 slices. Then the coverage of 95 % intervals in 200 trials of 64 rows and 3 draws, for five seeds.

Last a trained one: digits, 64 numbers to a code of 2 x 4 x 4 by `Reconstruction(kl=0.1)`, 1,000 steps of the codec, of
which the best on a tenth of the digits to train on is kept, and of a U-Net of the codes, all seeds 0. The bound on 100
test digits, by that of the diffusion, at several widths.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sde_diffusion import EDMSDE, Network, SDESampler, data, predict
from sde_diffusion.latent import LatentBound, LatentSampler, Reconstruction, cached, elbo, train_codec
from sde_diffusion.likelihood import Density, Estimate, Method
from sde_diffusion.nets import Autoencoder, UNet
from sde_diffusion.training import train

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from linear_codec import CODE, draw, latent_sampler, law  # noqa: E402 - the problem of the tests

RESULTS = ROOT / "benchmarks" / "results" / "latent_bound.json"
PICTURE = ROOT / "docs" / "images" / "latent_bound.png"
ENCODERS = [(0.0, 1.0), (0.0, 0.5), (0.0, 0.7), (0.0, 1.4), (0.0, 2.0), (0.5, 1.0), (1.0, 1.0)]
CLEAN, CHEAP = Density(level=0.0), Method(steps=8, solver_error=False)
KL = 0.1
Row = dict[str, Any]


def divergence(off: float, stretch: float) -> float:
    """Of the encoder from the posterior, in nats."""
    return CODE * (0.5 * (off**2 + stretch**2 - 1) - math.log(stretch))


def below(off: float, stretch: float, n: int) -> Row:
    """How far the bound of one encoder lies below log p(x), with its standard error, four ways."""
    x, sampler = draw(n, seed=1), latent_sampler(off, stretch)
    truth = float(law().log_prob(x).mean())

    def gap(found: LatentBound) -> tuple[float, float]:
        return truth - found.mean, found.mean_standard_error

    flow = elbo(sampler, x, seed=0, density=CLEAN)
    return {
        "off": off,
        "stretch": stretch,
        "divergence": divergence(off, stretch),
        "log_prob": gap(flow),
        "solver_error": float(flow.solver_error.mean()),
        "entropy exact": gap(elbo(sampler, x, seed=0, density=CLEAN, entropy="exact")),
        "default level": gap(elbo(sampler, x, seed=0)),
        "bound": gap(elbo(sampler, x, seed=0, estimate=Estimate())),
        "terms": [float(v.mean()) for v in (flow.reconstruction, flow.prior, flow.entropy)],
        "evaluations": flow.nfe,
    }


def coverage(seed: int, trials: int, n: int = 64) -> dict[str, int]:
    """Intervals of 95 % that hold the mean bound of their rows, and that of the law of the data, in so many trials."""
    off, stretch = 0.2, 1.3
    x = draw(trials * n, seed=seed)
    found = elbo(latent_sampler(off, stretch), x, seed=seed, density=CLEAN, method=CHEAP, draws=3)
    these = (law().log_prob(x) - divergence(off, stretch)).reshape(trials, n).mean(1)
    everywhere = float(-law().entropy()) - divergence(off, stretch)
    held = {"these rows": 0, "their law": 0}
    for i in range(trials):
        part = replace(found, draws=found.draws[:, i * n : (i + 1) * n], solver_error=found.solver_error[:n])
        low, high = part.interval()
        held["these rows"] += low < float(these[i]) < high
        low, high = part.interval(population=True)
        held["their law"] += low < everywhere < high
    return held


def digits(steps: int, n: int) -> Row:
    """The bound on test digits by a codec that was trained for its pictures, its codes drawn at several widths."""
    began = time.perf_counter()
    images, kept_out = data.split(data.digits("train", seed=0).images, 0.1)
    torch.manual_seed(0)  # of the weights
    net = Autoencoder(1, width=16, multipliers=(1, 2), latent=2)
    learnt = train_codec(net, images, steps=steps, loss=Reconstruction(KL), val=kept_out, seed=0)
    codec, best = learnt.codec, learnt.training.best
    codes = cached(codec, images)
    fresh = Network(UNet(2, width=16, multipliers=(1, 2)), EDMSDE(), predict.edm, shape=codes.code_shape)
    model = train(fresh, codes, steps=steps, seed=0).model
    sampler = LatentSampler(SDESampler(model.sde, model), codec)
    x, found = data.digits("test", seed=1).images[:n], []
    for stretch in (1.0, 1.5, 2.0, KL**-0.5, 4.5):
        one = elbo(sampler, x, seed=0, stretch=stretch, draws=2, estimate=Estimate(levels=32))
        bits = one.bits_per_dim(2 / 17)
        found.append(
            {
                "stretch": stretch,
                "nats": one.mean,
                "standard_error": one.mean_standard_error,
                "over samples": one.population_standard_error,
                "terms": [float(v.mean()) for v in (one.reconstruction, one.prior, one.entropy)],
                "bits": float(bits.mean()),
            }
        )
    took = time.perf_counter() - began
    return {"kl": KL, "noise": codec.noise, "steps": steps, "best": best, "widths": found, "seconds": took}


def table(rows: list[Row]) -> str:
    """The gaps in Markdown."""
    lines = [
        "| encoder | KL | below log p(x), by `log_prob` | entropy in closed form | by the bound of the diffusion |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        name = "the posterior" if (r["off"], r["stretch"]) == (0.0, 1.0) else f"{r['stretch']:g} times as wide"
        name = f"off by {r['off']:g} deviations" if r["off"] else name
        gaps = " | ".join(f"{r[k][0]:.4f} ± {r[k][1]:.1g}" for k in ("log_prob", "entropy exact", "bound"))
        lines.append(f"| {name} | {r['divergence']:.4f} | {gaps} |")
    return "\n".join(lines)


def picture(rows: list[Row]) -> None:
    """The gaps over the width of the encoder."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    widths = torch.linspace(0.45, 2.1, 100).tolist()
    axes.plot(widths, [divergence(0.0, w) for w in widths], color="0.6", label="KL of the encoder, in closed form")
    wide = [r for r in rows if not r["off"]]
    for shift, (key, label) in enumerate(
        (("log_prob", "codes by log_prob"), ("bound", "codes by the diffusion's bound"))
    ):
        x = [r["stretch"] + 0.02 * shift for r in wide]
        gaps, errors = zip(*(r[key] for r in wide), strict=True)
        axes.errorbar(x, gaps, yerr=[2 * e for e in errors], fmt="o", ms=4, capsize=3, label=label)
    axes.axhline(0.0, color="black", lw=0.6)
    axes.set_xlabel("standard deviation of the encoder over that of the posterior")
    axes.set_ylabel("log p(x) - bound, nats")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=130, metadata={"Software": None})


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows and trials; writes nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    rows = [below(*encoder, n=20 if quick else 500) for encoder in (ENCODERS[:2] if quick else ENCODERS)]
    print(table(rows))
    held = {seed: coverage(seed, 10 if quick else 200) for seed in ((7,) if quick else range(7, 12))}
    print(json.dumps(held))
    trained = digits(3, 4) if quick else digits(1000, 100)
    for one in trained["widths"]:
        print(json.dumps(one))
    if quick:
        return
    picture(rows)
    command = "python benchmarks/latent_bound.py"
    result = {"command": command, "torch": torch.__version__, "encoders": rows, "held of 200": held, "digits": trained}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
