"""Control of a trained model by edges, and adapters: do the edges of the samples lie where they were asked for?

    python benchmarks/control.py            # trains, measures and writes results/control.json, the tables of
                                            # docs/control.md and docs/images/control.png; 5 minutes of one core
    python benchmarks/control.py --table    # the page from the committed measurements
    python benchmarks/control.py --quick    # everything shorter, nothing written

Data: digits of 16 x 16 pixels in a thickness and a place drawn at random. A base learns them without any condition. A
control of it learns them with their edges, in two channels: Canny's of scikit-image, smoothed by a Gaussian of 1 pixel,
with thresholds 0.2 and 0.4 on values in [-1, 1], and how far each pixel is from them. Half of the digits that no
training saw are for validation: on those the strength and the scale of guidance with the highest F1 are chosen. All is
reported on the other half. The F1 is that of edge pixels over all samples together, of the very pixels, and beside it
of those within one pixel, where precision is the share of the sample's edge pixels that have one of the map in the
3 x 3 pixels around, recall the share of the map's that have one of the sample. Chance is that of the edges of one test
digit against the map of another. Adapters teach the base of digits to draw patches of photographs; the learning rate of
each is one of four, chosen on validation patches. One thread, seed 0, one process.
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
from sde_diffusion.data import captioned_digits, photo_patches
from sde_diffusion.guidance import Guided
from sde_diffusion.nets import Controlled, LoRA, UNet, merge
from sde_diffusion.training import Recipe, Saving, load_checkpoint, save_checkpoint, train

RESULTS = Path(__file__).parent / "results" / "control.json"
SIZE, SIGMA, LOW, HIGH = 16, 1.0, 0.2, 0.4
MEAN, STD = -0.74, 0.6
"""Of the digits; the models are trained on mean 0 and standard deviation 0.5."""
FARTHEST = 8.0
"""The distance to an edge, in pixels, from which the field is told no more."""
STRENGTHS = (0.5, 1.0, 2.0, 3.0, 4.0)
SCALES = (2.0, 3.0, 5.0, 8.0)
RATES = {"adapters": (3e-3, 1e-2, 3e-2, 1e-1), "all weights": (1e-3, 3e-3, 1e-2, 3e-2)}
STEPS = 20
Part = dict[str, Any]


def edges(x: Tensor) -> Tensor:
    """Canny's edges of images (N, 1, H, W) in [-1, 1]: zeros and ones of the same shape."""
    from skimage.feature import canny

    found = [canny(image[0].numpy(), sigma=SIGMA, low_threshold=LOW, high_threshold=HIGH) for image in x]
    return torch.stack([torch.from_numpy(each) for each in found])[:, None].float()


def field_of(e: Tensor) -> Tensor:
    """What the control is told of edges (N, 1, H, W): them, and how far the nearest is, in [-1, 1]; (N, 2, H, W)."""
    from scipy.ndimage import distance_transform_edt

    far = [distance_transform_edt(1 - each[0].numpy()) if each.any() else each[0] + FARTHEST for each in e]
    distance = torch.stack([torch.as_tensor(each) for each in far])[:, None].float().clamp(max=FARTHEST)
    return torch.cat([e, 2 * distance / FARTHEST - 1], 1)


def f1(found: Tensor, wanted: Tensor, tolerance: int = 0) -> float:
    """The F1 of edge pixels, over all images together."""
    return float(_f1(_counts(found, wanted, tolerance).sum(0)))


def _counts(found: Tensor, wanted: Tensor, tolerance: int) -> Tensor:
    """Of each image: edge pixels found that are wanted, all found, those wanted that are found, all wanted, (N, 4)."""

    def near(e: Tensor) -> Tensor:
        return F.max_pool2d(e, 2 * tolerance + 1, 1, tolerance)

    counted = (found * near(wanted), found, wanted * near(found), wanted)
    return torch.stack([each.flatten(1).sum(1) for each in counted], 1).double()


def _f1(counts: Tensor) -> Tensor:
    """The F1 of counts (..., 4)."""
    right, found, seen, wanted = counts.unbind(-1)
    precision, recall = right / found.clamp(min=1), seen / wanted.clamp(min=1)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-12)


def scores(found: Tensor, wanted: Tensor) -> Part:
    """The F1 of the very pixels, its standard error (200 draws of images with replacement), that within one pixel."""
    counts = _counts(found, wanted, 0)
    rows = torch.randint(len(counts), (200, len(counts)), generator=torch.Generator().manual_seed(0))
    error = _f1(counts[rows].sum(1)).std()
    return {"exact": f1(found, wanted), "se": float(error), "near": f1(found, wanted, 1)}


def model_of(net: torch.nn.Module) -> Network:
    return Network(net, VPSDE(), predict.EDM(0.5), shape=(1, SIZE, SIZE))


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def unseen(part: str) -> Tensor:
    """The half of the digits kept out that is for validation, or for the test: 180 images in [-1, 1]."""
    x = captioned_digits("test", seed=1).images
    return x[::2] if part == "validation" else x[1::2]


def patches(part: str, n: int) -> Tensor:
    """Patches of photographs; those for validation and for the test come of different regions."""
    x = photo_patches(SIZE, "train" if part == "train" else "test", stride=SIZE).images
    if part != "train":  # four patches of one block after another
        x = x[torch.arange(len(x)) // 4 % 2 == (part == "test")]
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:n]]


def trained(model: Network, x: Tensor, steps: int, **how: Any) -> tuple[Network, float]:
    """A trained model, and how many seconds of one core it took."""
    start = time.process_time()
    done = train(model, x, steps=steps, recipe=Recipe(batch_size=32, lr=how.pop("lr", 2e-3)), seed=0, **how)
    return done.model, time.process_time() - start  # type: ignore[return-value]  # what was trained


def drawn(
    model: Network, n: int, seed: int, field: Tensor | None = None, strength: float = 1.0, scale: float = 1.0
) -> Tensor:
    """Samples as images in [-1, 1], of the base where no field is told."""
    told: Part = {} if field is None else {"control": field, "strength": strength}
    guided: Any = model if scale == 1 else Guided(model, scale, null={"strength": 0.0})
    sampler = SDESampler(model.sde, guided, steps=STEPS)
    return sampler.sample(n, seed=seed, batch_size=64, **told) * STD / 0.5 + MEAN


def chosen(model: Network, n: int) -> Part:
    """The strength, and the scale of guidance, whose edges agree best on validation digits."""
    wanted = edges(unseen("validation")[:n])
    field = field_of(wanted)
    by: Part = {
        "strength": {f"{s:g}": f1(edges(drawn(model, n, 10_000, field, strength=s)), wanted) for s in STRENGTHS},
        "scale": {f"{w:g}": f1(edges(drawn(model, n, 10_000, field, scale=w)), wanted) for w in SCALES},
    }
    found = {name: max(rows, key=lambda each: rows[each]) for name, rows in by.items()}
    print(f"  on {n} validation digits {by}: {found}", flush=True)
    return {"samples": n, "by": by, "chosen": found}


def agreement(base: Network, model: Network, best: Part, n: int) -> tuple[Part, dict[str, Tensor]]:
    """How well edges agree with those of test digits, by the strength of the control."""
    x = unseen("test")[:n]
    wanted = edges(x)
    field = field_of(wanted)
    own = drawn(base, n, 0)
    samples = {s: drawn(model, n, 0, field, strength=s) for s in sorted({0.0, 0.5, 1.0, float(best["strength"])})}
    guided = edges(drawn(model, n, 0, field, scale=float(best["scale"])))
    plain = edges(samples[1.0])
    again = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    found: Part = {
        "strengths": {f"{s:g}": scores(edges(y), wanted) for s, y in samples.items() if s},
        "guided": {best["scale"]: scores(guided, wanted)},
        "base": scores(edges(own), wanted),
        "other": scores(plain.roll(1, 0), wanted),
        "chance": scores(wanted.roll(1, 0), wanted),
        "again": scores(edges(again), wanted),
        "density": float(wanted.mean()),
        "bit_for_bit": bool(torch.equal(samples[0.0], own)),
        "samples": n,
    }
    several = drawn(model, 10, 1000, field[:10])
    shown = {"field": wanted, "real": x, "base": own, "drawn": samples[1.0], "found": plain, "several": several}
    return found, {name: images[:10] for name, images in shown.items()}


def sizes(base: Network, model: Network) -> Part:
    """Bytes on the disk of a base, of its control, and of the state of a run of either."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        at, x = Path(folder), torch.randn(64, 1, SIZE, SIZE)
        save_checkpoint(at / "base", base)
        save_checkpoint(at / "control", model, base=at / "base")
        brief = Recipe(batch_size=32)
        train(copy.deepcopy(base), 0.5 * x, steps=1, recipe=brief, out=at / "run", seed=0)
        steered, kept = load_checkpoint(at / "control").model, Saving(at / "steered", base=at / "base")
        train(steered, 0.5 * x, control=torch.cat([x, x], 1), steps=1, recipe=brief, out=kept, seed=0)
        places = {"base": "base/model", "control": "control/model", "base run": "run/state"}
        for name, of in (places | {"control run": "steered/state"}).items():
            found[name] = max(path.stat().st_size for path in at.glob(f"{of}-*.safetensors"))
    return found


def adapters(base: Network, steps: int) -> Part:
    """The loss on photographs: of the base, of adapters of some ranks, and of all weights trained on from the base.

    Each at the one of four learning rates whose loss on validation patches is least.
    """
    x, validation, test = patches("train", 4000), patches("validation", 300), patches("test", 300)
    found: Part = {"base": {"loss": loss_of(base, test), "weights": 0}}
    rows: list[tuple[str, int]] = [("rank 1", 1), ("rank 4", 4), ("rank 16", 16), ("all weights", 0)]
    for name, rank in rows:
        runs, spent = {}, 0.0
        for rate in RATES["adapters" if rank else name]:
            torch.manual_seed(0)
            net = LoRA(base.net, rank) if rank else copy.deepcopy(base.net)
            done, seconds = trained(model_of(net), x, steps, lr=rate)
            runs[rate], spent = done, spent + seconds
        by = {rate: loss_of(done, validation) for rate, done in runs.items()}
        best = min(by, key=lambda rate: by[rate])
        done = runs[best]
        weights = sum(p.numel() for p in done.net.parameters() if p.requires_grad)
        found[name] = {"loss": loss_of(done, test), "weights": weights, "seconds": spent, "rate": best, "by": by}
        if isinstance(done.net, LoRA):
            found[name]["merged"] = loss_of(model_of(merge(done.net)), test)
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
    images = captioned_digits("train", copies=1 if quick else 8, seed=0).images
    x, field = 0.5 * (images - MEAN) / STD, field_of(edges(images))
    steps, n = ((3, 3, 3), 16) if quick else ((600, 1800, 80), len(unseen("test")))
    base, spent = trained(model_of(UNet(1, width=16, multipliers=(1, 2, 2), dropout=0.0)), x, steps[0])
    print(f"  base {spent:.0f} s", flush=True)
    model, more = trained(model_of(Controlled(base.net, control=2)), x, steps[1], lr=3e-3, control=field)
    print(f"  control {more:.0f} s", flush=True)
    best = chosen(model, n)
    found, pictures = agreement(base, model, best["chosen"], n)
    print(f"  {found}", flush=True)
    net: Any = model.net
    weights = {name: count(part) for name, part in (("base", net.net), ("control", net.controls))}
    about = {"steps": steps, "seconds": {"base": spent, "control": more}, "weights": weights, "images": len(x)}
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {
        "command": "python benchmarks/control.py", "seed": 0, "versions": versions, **about, "validation": best,
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
