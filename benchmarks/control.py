"""Control of a trained model by edges, and adapters: do the edges of the samples lie where they were asked for?

    python benchmarks/control.py            # trains, measures and writes results/control.json, the tables of
                                            # docs/control.md and docs/images/control.png; 15 minutes of one core
    python benchmarks/control.py --table    # the page from the committed measurements
    python benchmarks/control.py --quick    # everything shorter, nothing written

Data: grey patches of 16 x 16 pixels of the photographs that scikit-image and scikit-learn ship, split by regions of the
pictures. A base learns the patches without any condition. A control of it learns them with their edges: Canny's of
scikit-image, smoothed by a Gaussian of 2 pixels, with thresholds 0.1 and 0.2 on values in [-1, 1]. Measured is the F1
of edge pixels over all samples together, found within one pixel: precision is the share of the sample's edge pixels
that have one of the map in the 3 x 3 pixels around, recall the share of the map's that have one of the sample. Chance
is that of the edges of one test patch against the map of another. Adapters teach the base of photographs to draw
digits. One thread, seed 0.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _control_report import draw, missed, write_page
from torch import Tensor

from sde_diffusion import VPSDE, Network, SDESampler, predict
from sde_diffusion.data import digits, photo_patches
from sde_diffusion.guidance import Guided
from sde_diffusion.nets import Controlled, LoRA, UNet, merge
from sde_diffusion.training import Recipe, Saving, load_checkpoint, save_checkpoint, train

RESULTS = Path(__file__).parent / "results" / "control.json"
SIZE, SIGMA, LOW, HIGH, TOLERANCE = 16, 2.0, 0.1, 0.2, 1
STRENGTHS = (0.0, 0.5, 1.0, 2.0)
SCALES = (2.0, 3.0)
STEPS = 20
Part = dict[str, Any]


def edges(x: Tensor) -> Tensor:
    """Canny's edges of images (N, 1, H, W): zeros and ones of the same shape."""
    from skimage.feature import canny

    found = [canny(image[0].numpy(), sigma=SIGMA, low_threshold=LOW, high_threshold=HIGH) for image in x]
    return torch.stack([torch.from_numpy(each) for each in found])[:, None].float()


def f1(found: Tensor, wanted: Tensor, tolerance: int = TOLERANCE) -> float:
    """The F1 of edge pixels, over all images together."""

    def near(e: Tensor) -> Tensor:
        return F.max_pool2d(e, 2 * tolerance + 1, 1, tolerance)

    precision = float((found * near(wanted)).sum() / found.sum().clamp(min=1))
    recall = float((wanted * near(found)).sum() / wanted.sum())
    return 2 * precision * recall / max(precision + recall, 1e-12)


def model_of(net: torch.nn.Module) -> Network:
    return Network(net, VPSDE(), predict.EDM(0.5), shape=(1, SIZE, SIZE))


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def patches(split: str, n: int) -> Tensor:
    """Patches drawn from a split."""
    x = photo_patches(SIZE, split, stride=SIZE // (2 if split == "train" else 1)).images  # type: ignore[arg-type]
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:n]]


def trained(model: Network, x: Tensor, steps: int, **how: Any) -> tuple[Network, float]:
    """A trained model, and how many seconds of one core it took."""
    start = time.process_time()
    done = train(model, x, steps=steps, recipe=Recipe(batch_size=32, lr=how.pop("lr", 2e-3)), seed=0, **how)
    return done.model, time.process_time() - start  # type: ignore[return-value]  # what was trained


def agreement(base: Network, model: Network, x: Tensor, n: int) -> tuple[Part, dict[str, Tensor]]:
    """How well edges agree with those of test patches, by the strength of the control."""
    field, own = edges(x[:n]), SDESampler(base.sde, base, steps=STEPS).sample(n, seed=0, batch_size=64)
    sampler = SDESampler(model.sde, model, steps=STEPS)
    drawn: dict[Any, Tensor] = {
        s: sampler.sample(n, seed=0, batch_size=64, control=field, strength=s) for s in STRENGTHS
    }
    by_scale = {w: SDESampler(model.sde, Guided(model, w, null={"strength": 0.0}), steps=STEPS) for w in SCALES}
    for w, guided in by_scale.items():
        drawn[w, "guided"] = guided.sample(n, seed=0, batch_size=64, control=field, strength=1.0)
    by = {f"{s:g}": edges(drawn[s]) for s in STRENGTHS}
    guides = {w: edges(drawn[w, "guided"]) for w in SCALES}
    found: Part = {
        "strengths": {s: f1(e, field) for s, e in by.items()},
        "strict": {s: f1(e, field, 0) for s, e in by.items()},
        "guided": {f"{w:g}": f1(e, field) for w, e in guides.items()},
        "guided_strict": {f"{w:g}": f1(e, field, 0) for w, e in guides.items()},
        "base": f1(edges(own), field),
        "chance": f1(field.roll(1, 0), field),
        "chance_strict": f1(field.roll(1, 0), field, 0),
        "other": f1(guides[SCALES[-1]].roll(1, 0), field),
        "density": float(field.mean()),
        "empty": float((field.flatten(1).sum(1) == 0).float().mean()),
        "bit_for_bit": bool(torch.equal(drawn[0.0], own)),
        "samples": n,
    }
    full = field.flatten(1).sum(1).topk(min(60, n)).indices[::6]  # maps with something in them
    best = SCALES[-1]
    several = by_scale[best].sample(len(full), seed=1000, control=field[full], strength=1.0)
    shown = {"field": field, "real": x[:n], "base": own, "drawn": drawn[best, "guided"], "found": guides[best]}
    return found, {**{name: images[full] for name, images in shown.items()}, "several": several}


def sizes(base: Network, model: Network) -> Part:
    """Bytes on the disk of a base, of its control, and of the state of a run of either."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        at, x = Path(folder), torch.randn(64, 1, SIZE, SIZE)
        save_checkpoint(at / "base", base)
        save_checkpoint(at / "control", model, base=at / "base")
        brief = Recipe(batch_size=32)
        train(copy.deepcopy(base), 0.5 * x, steps=1, recipe=brief, out=at / "run", seed=0)
        steered = load_checkpoint(at / "control").model
        train(steered, 0.5 * x, control=x, steps=1, recipe=brief, out=Saving(at / "steered", base=at / "base"), seed=0)
        places = {"base": "base/model", "control": "control/model", "base run": "run/state"}
        for name, of in (places | {"control run": "steered/state"}).items():
            found[name] = max(path.stat().st_size for path in at.glob(f"{of}-*.safetensors"))
    return found


def adapters(base: Network, steps: int) -> Part:
    """The loss on digits: of the base, of adapters of some ranks, and of all weights trained on from the base.

    Each at the rate that suits it: adapters take five times that of the weights.
    """
    split = [F.interpolate(digits(part, seed=0).images, scale_factor=2, mode="bilinear") for part in ("train", "test")]
    found: Part = {"base": {"loss": loss_of(base, split[1]), "weights": 0}}
    rows: list[tuple[str, torch.nn.Module]] = [(f"rank {r}", LoRA(base.net, r)) for r in (1, 4, 16)]
    for name, net in [*rows, ("all weights", copy.deepcopy(base.net))]:
        weights = sum(p.numel() for p in net.parameters() if p.requires_grad)
        done, seconds = trained(model_of(net), split[0], steps, lr=1e-2 if isinstance(net, LoRA) else 2e-3)
        found[name] = {"loss": loss_of(done, split[1]), "weights": weights, "seconds": seconds}
        if isinstance(done.net, LoRA):
            found[name]["merged"] = loss_of(model_of(merge(done.net)), split[1])
        print(f"  {name:12} {found[name]}", flush=True)
    return found


@torch.no_grad()
def loss_of(model: Network, x: Tensor) -> float:
    """The training objective on rows, the same draws for every model."""
    model.eval()
    generator = torch.Generator().manual_seed(1)
    return float(sum(model.loss(x, generator=generator) for _ in range(4)) / 4)


def measured(quick: bool) -> tuple[Part, dict[str, Tensor]]:
    torch.manual_seed(0)
    x, test = patches("train", 500 if quick else 20_000), patches("test", 300)
    steps, n = ((3, 3, 3), 16) if quick else ((1500, 4500, 150), 192)
    base, spent = trained(model_of(UNet(1, width=16, multipliers=(1, 2, 2), dropout=0.0)), x, steps[0])
    print(f"  base {spent:.0f} s", flush=True)
    model, more = trained(model_of(Controlled(base.net)), x, steps[1], lr=3e-3, control=edges(x))
    print(f"  control {more:.0f} s", flush=True)
    found, pictures = agreement(base, model, test, n)
    print(f"  {found}", flush=True)
    net: Any = model.net
    weights = {name: count(part) for name, part in (("base", net.net), ("control", net.controls))}
    about = {"steps": steps, "seconds": {"base": spent, "control": more}, "weights": weights, "patches": len(x)}
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {
        "command": "python benchmarks/control.py", "seed": 0, "versions": versions, **about,
        "agreement": found, "bytes": sizes(base, model), "adapters": adapters(base, steps[2]),
    }, pictures  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="everything shorter, nothing written")
    parser.add_argument("--table", action="store_true", help="the page from the committed measurements")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.table:
        write_page(json.loads(RESULTS.read_text()))
        return
    found, pictures = measured(args.quick)
    for what in missed(found):
        print(f"MISSED: {what}", flush=True)
    if not args.quick:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        draw(pictures)
        write_page(found)


if __name__ == "__main__":
    main()
