"""Diffusion of photographs in a code space against diffusion of their pixels, at one total time of training.

    python benchmarks/latent.py            # seven minutes of one core; writes results/latent.json and the picture
    python benchmarks/latent.py --draw     # prints the table of what is committed, and writes it into docs/latent.md
    python benchmarks/latent.py --quick    # a few steps of everything, nothing written

Patches of 32x32 grey pixels of thirteen photographs, split by blocks. Every way of drawing them gets the same seconds
of one core to train in, counted by the clock of the process, so that other work on the machine does not count. Those
of the codec are counted with those of the diffusion of its codes. Steps of training are as many as the seconds allow.
The net of the pixels is slim, half the default width, so that it gets some hundreds of steps.

The distance is Frechet's, in the 64 features of a classifier that is trained here to tell the thirteen pictures apart,
on the patches to train on; it is scored on those to test on, which no network has seen. The floor is that of as many
real patches to train on. `codec` decodes the codes of test patches, which is near what diffusion of codes can reach.
A step is timed in turn, one way after the other, in the same process, at the same batch.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import _latent_report as report
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion import EDMSDE, Network, SDESampler, data, latent, metrics, predict
from sde_diffusion.nets import Autoencoder, UNet
from sde_diffusion.training import Callback, Event, Recipe, train

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURE = ROOT / "benchmarks" / "results" / "latent.json", ROOT / "docs" / "images" / "latent.png"
PAGE = ROOT / "docs" / "latent.md"
BATCH, NFE, SIZE, PICTURES = 64, 18, 32, 13
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """How much of everything.

    Attributes:
        seconds: Of one core, for the training of each way.
        codec: The share of them that is the codec's.
        n: Samples that are scored.
        rows: Patches of each split, at most.
        judge: Steps of the classifier.
        least: Steps that a training has at least.
    """

    seconds: float = 150.0
    codec: float = 0.25
    n: int = 1000
    rows: int = 100_000
    judge: int = 600
    least: int = 100


QUICK = Setting(seconds=1.0, n=32, rows=256, judge=5, least=2)


class Judge(nn.Module):
    """A classifier of the pictures that a patch may be of; its features are what distances are of."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 64, 64)
        layers = [nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths)]
        self.body = nn.Sequential(
            *(part for layer in layers for part in (layer, nn.ReLU())),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(256, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, PICTURES)

    @classmethod
    def taught(cls, x: Tensor, labels: Tensor, steps: int, seed: int) -> Judge:
        """One that has learnt: AdamW in one cycle, batches of 128."""
        torch.manual_seed(seed)
        judge, draws = cls(), torch.Generator().manual_seed(seed)
        optimiser = torch.optim.AdamW(judge.parameters(), 1e-3)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (128,), generator=draws)
            F.cross_entropy(judge.head(judge.body(x[rows])), labels[rows]).backward()
            optimiser.step()
            optimiser.zero_grad()
            cycle.step()
        return judge.eval()

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """(N, 1, 32, 32) -> (N, 64)."""
        return torch.cat([self.body(part) for part in x.split(512)])


@dataclass
class Bench:
    """Data, judge, and what was drawn.

    Attributes:
        x, held_out: Patches to train on and to test on, of mean 0 and standard deviation 1.
        drawn: Some images of each way, for the picture.
    """

    setting: Setting
    seed: int
    x: Tensor = field(init=False)
    held_out: Tensor = field(init=False)
    judge: Judge = field(init=False)
    drawn: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen, kept, most = data.photo_patches(SIZE), data.photo_patches(SIZE, "test"), self.setting.rows
        self.x, self.held_out = ((part.images[:most] - seen.mean) / seen.std for part in (seen, kept))
        self.judge = Judge.taught(self.x, seen.labels[:most], self.setting.judge, self.seed)
        found = self.judge.head(self.judge.features(self.held_out)).argmax(1)
        self.accuracy = float((found == kept.labels[:most]).double().mean())
        self._features = self.judge.features(self.held_out)

    def far(self, name: str, x: Tensor) -> float:
        """The distance of images from those to test on; the first of them are kept for the picture."""
        self.drawn[name] = x[:48].clone()
        return metrics.frechet_distance(self.judge.features(x), self._features)

    def some(self, x: Tensor, n: int) -> Tensor:
        """Patches, drawn without replacement."""
        return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))[:n]]


def paced(seconds: float, least: int, run: Callable[[int, list[Callback]], Any]) -> tuple[Any, int, float]:
    """What a training leaves that takes so many seconds of one core, its steps, and the seconds.

    Args:
        seconds: How many.
        least: Steps at least.
        run: Trains for so many steps, each time anew, with callbacks.
    """
    at: list[float] = []

    def look(event: Event) -> None:
        if event.kind == "step":
            at.append(time.process_time())

    few = min(least, 12)
    _, spent = timed(lambda: run(few, [look]))
    each = (at[-1] - at[0]) / (few - 1)
    steps = max(least, round((seconds - spent) / each) + few)
    found, spent = timed(lambda: run(steps, []))
    return found, steps, spent


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call answers, and the seconds of one core that it took."""
    start = time.process_time()
    return run(), time.process_time() - start


def diffusion(shape: tuple[int, ...], width: int, multipliers: tuple[int, ...], seed: int) -> Network:
    """A fresh model."""
    torch.manual_seed(seed)
    net = UNet(shape[0], width=width, multipliers=multipliers, dropout=0.0)
    return Network(net, EDMSDE(), predict.EDM(1.0), shape=shape)


def taught(model: Network, x: Any, seconds: float, bench: Bench) -> tuple[Network, int, float]:
    """A model trained for so many seconds."""

    def run(steps: int, callbacks: list[Callback]) -> Network:
        recipe = Recipe(BATCH, 2e-3)
        done = train(copy.deepcopy(model), x, steps=steps, recipe=recipe, callbacks=callbacks, seed=bench.seed)
        assert isinstance(done.model, Network)
        return done.model

    return paced(seconds, bench.setting.least, run)


def in_pixels(bench: Bench) -> tuple[Row, SDESampler]:
    """Diffusion of the pixels themselves."""
    model = diffusion((1, SIZE, SIZE), 16, (1, 2, 2), bench.seed)
    model, steps, spent = taught(model, bench.x, bench.setting.seconds, bench)
    sampler = SDESampler(model.sde, model, nfe=NFE)
    (x, seconds) = timed(lambda: sampler.sample(bench.setting.n, seed=0, batch_size=BATCH))
    row = {"method": "pixels", "frechet": bench.far("pixels", x), "steps": steps, "seconds": spent, "sampling": seconds}
    return row | {"parameters": size(model)}, sampler


def in_codes(bench: Bench) -> tuple[list[Row], latent.LatentSampler]:
    """A codec, and diffusion of its codes in what time is left."""
    setting = bench.setting
    torch.manual_seed(bench.seed)
    net = Autoencoder(1, width=24, multipliers=(1, 2), latent=6, patch=2)

    def run(steps: int, callbacks: list[Callback]) -> latent.NetCodec:
        options: dict[str, Any] = {"recipe": Recipe(BATCH, 2e-3), "callbacks": callbacks, "seed": bench.seed}
        options["loss"] = latent.Reconstruction(kl=0.02)
        return latent.train_codec(copy.deepcopy(net), bench.x, steps=steps, **options).codec

    codec, steps, spent = paced(setting.codec * setting.seconds, setting.least, run)
    with torch.no_grad():
        some = bench.some(bench.held_out, setting.n)
        code = latent.encoded(codec, some)
        again = latent.decoded(codec, code.mean)
    error = float((again - some).square().mean().sqrt())
    rows = [{"method": "codec", "frechet": bench.far("codec", again), "steps": steps, "seconds": spent, "error": error}]
    rows[0] |= {"parameters": size(net), "noise": codec.noise, "shape": list(code.mean.shape[1:])}
    codes, encoding = timed(lambda: latent.cached(codec, bench.x))
    model = diffusion(codes.code_shape, 32, (1, 2), bench.seed)
    model, steps, seconds = taught(model, codes, setting.seconds - spent - encoding, bench)
    sampler = latent.LatentSampler(SDESampler(model.sde, model, nfe=NFE), codec)
    x, sampling = timed(lambda: sampler.sample(setting.n, seed=0, batch_size=BATCH))
    row = {"method": "codes", "frechet": bench.far("codes", x), "steps": steps, "sampling": sampling}
    row |= {"seconds": spent + encoding + seconds, "diffusion": seconds, "parameters": size(model)}
    return [*rows, row], sampler


@torch.no_grad()
def costs(ways: dict[str, SDESampler | latent.LatentSampler], rounds: int) -> dict[str, float]:
    """Milliseconds of one core for a sample: a step of each way, and the decoder; medians of rounds in turn."""
    calls: dict[str, Callable[[], Any]] = {}
    for name, way in ways.items():
        inner = way.sampler if isinstance(way, latent.LatentSampler) else way
        x = torch.randn(BATCH, *inner.shape or ())
        calls[name] = lambda model=inner.model, x=x: model(x, 1.0)
        if isinstance(way, latent.LatentSampler):
            calls["decoder"] = lambda codec=way.codec, x=x: latent.decoded(codec, x)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            found[name].append(1e3 * timed(call)[1] / BATCH)
    return {name: statistics.median(each[1:]) for name, each in found.items()}


def size(net: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in net.parameters())


def measured(setting: Setting, seed: int) -> tuple[dict[str, Any], Bench]:
    """All rows, and the costs."""
    bench = Bench(setting, seed)
    floor = bench.far("real", bench.some(bench.x, setting.n))
    rows: list[Row] = [{"method": "real", "frechet": floor}]
    print(report.line(rows[-1]), flush=True)
    found, codes = in_codes(bench)
    rows += found
    print(*map(report.line, found), sep="\n", flush=True)
    row, pixels = in_pixels(bench)
    rows.append(row)
    print(report.line(row), flush=True)
    ways: dict[str, SDESampler | latent.LatentSampler] = {"codes": codes, "pixels": pixels}
    cost = costs(ways, 2 if setting is QUICK else 9)
    result = {
        "command": "python benchmarks/latent.py",
        "torch": torch.__version__,
        "scikit-image": version("scikit-image"),
        "seed": seed,
        "samples": setting.n,
        "evaluations": NFE,
        "batch": BATCH,
        "seconds": setting.seconds,
        "accuracy of the judge": bench.accuracy,
        "rows": rows,
        "milliseconds a sample": cost,
    }
    return result, bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of everything; writes nothing")
    parser.add_argument("--draw", action="store_true", help="print the table of the committed figures alone")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and judge")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.draw:
        result = json.loads(RESULTS.read_text(encoding="utf-8"))
    else:
        result, bench = measured(QUICK if given.quick else Setting(), given.seed)
    print(f"\n{report.table(result)}\n", *report.checks(result), sep="\n")
    if given.quick:
        return
    if not given.draw:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        report.draw(bench.drawn, result, PICTURE)
    if PAGE.exists():
        PAGE.write_text(report.told(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")


if __name__ == "__main__":
    main()
