"""Is what is asked for in words drawn? Class, thickness and place of digits from their captions.

    python benchmarks/text.py          # writes results/text.json, the picture and the table of docs/text.md
    python benchmarks/text.py --table  # prints what is committed
    python benchmarks/text.py --quick  # a few steps, nothing written

Two networks, trained on the same captioned digits: `caption`, with an encoder of words trained along with it, and
`tokens`, told one fixed random vector for each word, as embeddings made elsewhere would be. Neither sees a thin zero, a
thin two or a thick seven in training: both words are known, and the pair is not.

The guidance is chosen on captions and seeds of samples of their own, by the first network, for both: two of the five
places of each pair are for the choice, the other three for the report. Both are printed and kept.

Judges, each tried on real digits that were kept out: the class by a small convolutional network, the thickness by the
ink over the length of its skeleton (scikit-image), the place by the centre of mass. `frechet` is the Frechet distance
in features of the first, and its floor that of real against real.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion import EDMSDE, Denoiser, Network, SDESampler, losses, metrics, predict
from sde_diffusion.data import CaptionedDigits, Standardise, captioned_digits
from sde_diffusion.data.captioned import NUMBERS
from sde_diffusion.guidance import Guided
from sde_diffusion.nets import Captioned, TextEncoder, UNet
from sde_diffusion.nets.text import words_of
from sde_diffusion.training import Recipe, train

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PICTURE = ROOT / "benchmarks" / "results" / "text.json", ROOT / "docs" / "images" / "text.png"
PAGE = ROOT / "docs" / "text.md"
PENS, PLACES = ("thin", "thick"), ("", "left", "right", "up", "down")
UNSEEN = (("thin", 0), ("thin", 2), ("thick", 7))
"""Pairs of thickness and class that no network is trained on."""
SIZE, LENGTH = 32, 5
"""Entries of a token, and words of a caption."""
KINDS = ("caption", "tokens")
SCALES, ENOUGH = (1.0, 1.5, 2.0, 3.0), 0.95
"""Of the guidance, to choose from, 1 is off; and the share of samples of the right class and thickness to be had."""
CHOICE, REPORT = 1, 2
"""Seeds of the samples that the guidance is chosen on, and of those that are reported."""
THICK, SHIFTED = 1.7, 1.0
"""Pixels: wider strokes are thick, and a centre of mass farther off is shifted."""
LEVELS = losses.LogNormalSigma(mean=0.0)
"""Of noise in training: the default has less, at which a digit is seen, and its caption hardly counts."""
Row = dict[str, Any]
Asked = tuple[int, str, str]
"""A class, a pen and a place."""


@dataclass(frozen=True)
class Trained:
    """A network, by which it is told what is asked for, and what is to be said of it."""

    kind: str
    model: Denoiser
    facts: Row


def text_of(label: int, pen: str, place: str) -> str:
    """The caption of a class, a pen and a place."""
    return f"a {pen} {NUMBERS[label]}" + (f", shifted {place}" if place else "")


class Judge(nn.Module):
    """What the class of a digit is told by: three convolutions, and 64 features before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out

    @classmethod
    def trained(cls, data: CaptionedDigits, steps: int, seed: int) -> Judge:
        torch.manual_seed(seed)
        net, g = cls(), torch.Generator().manual_seed(seed)
        opt = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
        rate = torch.optim.lr_scheduler.OneCycleLR(opt, 4e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(data), (128,), generator=g)
            x = data.images[rows]
            loss = F.cross_entropy(net(x + 0.1 * torch.randn(x.shape, generator=g)), data.labels[rows])
            opt.zero_grad()
            loss.backward()
            opt.step()
            rate.step()
        return net.eval()


def widths(images: Tensor) -> np.ndarray[Any, Any]:
    """The width of the strokes, in pixels: the ink over the length of the skeleton; NaN where there is no ink."""
    from skimage.morphology import skeletonize

    fine = F.interpolate(images, scale_factor=4, mode="bicubic", align_corners=False)[:, 0].numpy() > 0
    lengths = np.array([_length(skeletonize(one)) for one in fine])
    ink = (images.clamp(-1, 1).flatten(1).double().add(1).sum(1) / 2).numpy()
    return np.where(lengths > 0, ink / np.maximum(lengths / 4, 1e-9), np.nan)


def _length(line: np.ndarray[Any, Any]) -> float:
    """The length of a line one point wide: steps along the axes, and slanting ones."""
    straight = (line[1:] & line[:-1]).sum() + (line[:, 1:] & line[:, :-1]).sum()
    corner = line[1:, 1:] & line[:-1, :-1] & ~line[1:, :-1] & ~line[:-1, 1:]
    other = line[1:, :-1] & line[:-1, 1:] & ~line[1:, 1:] & ~line[:-1, :-1]
    return float(straight + 2**0.5 * (corner.sum() + other.sum()))


def places(images: Tensor) -> list[str]:
    """In which way the centre of mass is off the middle."""
    ink, points = (images[:, 0].clamp(-1, 1).double() + 1) / 2, torch.arange(16).double() - 7.5
    mass = ink.sum((1, 2)).clamp(min=1e-9)
    right, down = (ink * points).sum((1, 2)) / mass, (ink * points[:, None]).sum((1, 2)) / mass
    found = []
    for r, d in zip(right.tolist(), down.tolist(), strict=True):
        names = ("right" if r > 0 else "left", abs(r)) if abs(r) > abs(d) else ("down" if d > 0 else "up", abs(d))
        found.append(names[0] if names[1] > SHIFTED else "")
    return found


def judged(judge: Judge, images: Tensor, labels: Sequence[int], thick: Sequence[bool], place: Sequence[str]) -> Row:
    """The shares of images that are of the class, the thickness and the place that are wanted, and of all three."""
    with torch.no_grad():
        right = (judge(images).argmax(1) == torch.as_tensor(labels)).numpy()
    pen = (widths(images) > THICK) == np.asarray(thick)
    there = np.array([a == b for a, b in zip(places(images), place, strict=True)])
    shares = {"class": right, "thickness": pen, "place": there, "class and thickness": right & pen}
    return {name: float(one.mean()) for name, one in (shares | {"all": right & pen & there}).items()}


def features(judge: Judge, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = judge.body(images)
    return found


def table_of(captions: Sequence[str], vectors: dict[str, Tensor]) -> Tensor:
    """A fixed vector for each word, `(N, LENGTH, SIZE)`, NaN where there is none: what a caller may have embedded."""
    found = torch.full((len(captions), LENGTH, SIZE), torch.nan)
    for row, caption in zip(found, captions, strict=True):
        for i, word in enumerate(words_of(caption)):
            row[i] = vectors[word]
    return found


class Contest:
    """The data, the judges and the captions that are asked for."""

    def __init__(self, steps: int, batch: int, each: int, seed: int) -> None:
        self.steps, self.batch, self.seed = steps, batch, seed
        data = captioned_digits("train", copies=4, seed=seed)
        pairs = zip(data.widths.tolist(), data.labels.tolist(), strict=True)
        seen = [(PENS[width > THICK], label) not in UNSEEN for width, label in pairs]
        self.rows = torch.tensor(seen).nonzero()[:, 0]
        self.captions = [data.captions[i] for i in self.rows.tolist()]
        self.scaling = Standardise.of(data.images[self.rows])
        self.x = self.scaling.apply(data.images[self.rows])
        others = captioned_digits("train", copies=8, seed=seed + 1)
        self.judge = Judge.trained(others, min(600, max(20, steps // 2)), seed)
        self.real = captioned_digits("test", copies=4, seed=seed + 2)
        g = torch.Generator().manual_seed(seed)
        self.vectors = {word: torch.randn(SIZE, generator=g) for word in (*NUMBERS, *PENS, *PLACES[1:], "a", "shifted")}
        self.to_choose, self.to_report = [], []
        for i, (c, p) in enumerate((c, p) for c in range(10) for p in PENS):
            places = [PLACES[(i + k) % 5] for k in range(5)]  # another two for each pair
            self.to_report += [(c, p, s) for s in places[2:]] * each
            self.to_choose += [(c, p, s) for s in places[:2]] * (each // 2) if (p, c) not in UNSEEN else []

    def of_real(self) -> Row:
        """What the judges say of real digits that were kept out: how far they can be trusted."""
        place = [text.partition("shifted ")[2] for text in self.real.captions]
        thick = (self.real.widths > THICK).tolist()
        found = judged(self.judge, self.real.images, self.real.labels.tolist(), thick, place)
        other = captioned_digits("test", copies=4, seed=self.seed + 3)
        floor = metrics.frechet_distance(features(self.judge, self.real.images), features(self.judge, other.images))
        return {"name": "real, kept out", "n": len(self.real), **found, "frechet": float(floor)}

    def trained(self, kind: str, seed: int) -> Trained:
        """A network, trained on the captions as it is told them."""
        torch.manual_seed(seed)
        net: nn.Module = UNet(1, width=16, multipliers=(1, 2, 4), attention=2, tokens=SIZE, dropout=0.0)
        told: Any = self.captions
        if kind == "tokens":
            told = table_of(told, self.vectors)
        else:
            net = Captioned(net, TextEncoder.of(self.captions, length=LENGTH, size=SIZE))
        model = Network(net, EDMSDE(), predict.edm, shape=(1, 16, 16))
        start, recipe = time.process_time(), Recipe(batch_size=self.batch, lr=2e-3)
        loss = model.objective(times=LEVELS)
        done = train(model, self.x, steps=self.steps, recipe=recipe, seed=seed, loss=loss, **{kind: told})
        cost = round(time.process_time() - start)
        return Trained(kind, done.model, {"name": kind, "seed": seed, "train_s": cost, "steps": self.steps})

    def drawn(self, net: Trained, w: float, asked: Sequence[Asked], seed: int) -> tuple[Row, Tensor]:
        """Samples for captions, and what the judges say of them."""
        texts = [text_of(*one) for one in asked]
        told: Any = table_of(texts, self.vectors) if net.kind == "tokens" else texts
        sampler = SDESampler(net.model.sde, Guided(net.model, w), steps=20)
        x = sampler.sample(len(texts), seed=seed, batch_size=240, **{net.kind: told})
        images = self.scaling.undo(x).clamp(-1, 1)
        row: Row = {**net.facts, "w": w, "samples_seed": seed}
        row |= {"n": sum((p, c) not in UNSEEN for c, p, _ in asked)}
        row |= self.of_those(images, asked, [(p, c) for c in range(10) for p in PENS if (p, c) not in UNSEEN], "")
        if len(asked) > row["n"]:
            row |= {"unseen n": len(asked) - row["n"]} | self.of_those(images, asked, UNSEEN, "unseen ")
            for p, c in UNSEEN:
                of_pair = self.of_those(images, asked, [(p, c)], "")
                row[f"unseen {p} {NUMBERS[c]}"] = of_pair["class and thickness"]
        real, own = features(self.judge, self.real.images), features(self.judge, images)
        row["frechet"] = float(metrics.frechet_distance(own, real))
        print(line(row), flush=True)
        return row, images

    def of_those(self, images: Tensor, asked: Sequence[Asked], pairs: Sequence[tuple[str, int]], prefix: str) -> Row:
        """What the judges say of the samples of some pairs."""
        of = [i for i, (c, p, _) in enumerate(asked) if (p, c) in pairs]
        wanted = [asked[i] for i in of]
        labels, thick = [c for c, _, _ in wanted], [p == "thick" for _, p, _ in wanted]
        found = judged(self.judge, images[of], labels, thick, [s for _, _, s in wanted])
        return {prefix + name: share for name, share in found.items()}

    def chosen(self, net: Trained, scales: Sequence[float]) -> tuple[float, list[Row]]:
        """The least scale at which enough samples are right, on captions that are not reported; if none, the best."""
        rows = [self.drawn(net, w, self.to_choose, CHOICE)[0] for w in scales]
        both = "class and thickness"
        enough = [row["w"] for row in rows if row[both] >= ENOUGH]
        return min(enough) if enough else max(rows, key=lambda row: row[both])["w"], rows

    def to_show(self, images: Tensor) -> list[tuple[str, Tensor]]:
        """The first samples of a caption for some of the pairs, the last of which were not seen."""
        pairs = [(3, "thick"), (3, "thin"), (7, "thin"), (5, "thick"), (8, "thin"), (2, "thick"), (0, "thin")]
        found = []
        for c, p in [*pairs, (7, "thick")]:
            first = next(one for one in self.to_report if one[:2] == (c, p))
            of = [i for i, one in enumerate(self.to_report) if one == first][:8]
            found.append((text_of(*first) + (" (unseen pair)" if (p, c) in UNSEEN else ""), images[of]))
        return found


def line(row: Row) -> str:
    names = ["class", "thickness", "place", "class and thickness", "all", "unseen class and thickness", "frechet"]
    names += [f"unseen {p} {NUMBERS[c]}" for p, c in UNSEEN]
    told = f"{row['name']} seed={row.get('seed', '')} w={row.get('w', '')} n={row['n']} "
    return told + ", ".join(f"{n} {row[n]:.3f}" for n in names if n in row)


def table(result: Row) -> str:
    """The table of the page: of what is reported, and of what the guidance was chosen on."""
    head = "| | seed | guidance | class | thickness | both | place | all three | both, unseen pairs | Frechet |"
    lines = [head, "|---" * 10 + "|"]
    for part in ("rows", "choice"):
        if part == "choice":
            lines.append("| *chosen on* | | | | | | | | | |")
        for row in result[part]:
            keys = ("class", "thickness", "class and thickness", "place", "all", "unseen class and thickness")
            shares = [f"{100 * row[key]:.1f} %" if key in row else "" for key in keys]
            if "w" in row:
                shares[2] += f" ± {100 * (row[keys[2]] * (1 - row[keys[2]]) / row['n']) ** 0.5:.1f}"
            told = f"| {row['name']} | {row.get('seed', '')} | {row.get('w', '')} "
            lines.append(f"{told}| {' | '.join(shares)} | {row['frechet']:.2f} |")
    return "\n".join(lines)


def draw(found: Sequence[tuple[str, Tensor]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(found), len(found[0][1]), figsize=(8.4, 0.78 * len(found)), squeeze=False)
    for row, (text, images) in zip(axes, found, strict=True):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image[0], cmap="gray_r", vmin=-1, vmax=1)
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set_color("0.8")
        row[0].set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9, labelpad=6)
    figure.tight_layout(pad=0.3, w_pad=0.2, h_pad=0.2)
    figure.savefig(path, dpi=110)


def told(page: str, result: Row) -> str:
    """The page with the table between its marks."""
    start, end = "<!-- table: python benchmarks/text.py -->", "<!-- end of the table -->"
    before, _, rest = page.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{PAGE} has no place for the table, between {start} and {end}")
    return f"{before}{start}\n\n{table(result)}\n\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps; writes nothing")
    parser.add_argument("--table", action="store_true", help="print the table of the committed figures alone")
    parser.add_argument("--steps", type=int, default=1800, help="of training")
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of the network that reads captions")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.table:
        print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return
    contest = Contest(4 if given.quick else given.steps, given.batch, 2 if given.quick else 8, 0)
    result: Row = {"torch": torch.__version__, "python": platform.python_version(), "rows": [contest.of_real()]}
    print(line(result["rows"][0]), flush=True)
    nets = [("caption", 0), ("tokens", 0), *(("caption", seed) for seed in range(1, given.seeds))]
    w, shown = 1.0, list[tuple[str, Tensor]]()
    for kind, seed in nets:
        net = contest.trained(kind, seed)
        if not shown:
            w, result["choice"] = contest.chosen(net, SCALES[:1] if given.quick else SCALES)
            print(f"chosen: guidance {w}", flush=True)
        row, images = contest.drawn(net, w, contest.to_report, REPORT)
        result["rows"].append(row)
        shown = shown or contest.to_show(images)
        if not given.quick:  # after each network, by the command that ends with it
            command = f"python benchmarks/text.py --steps {given.steps} --batch {given.batch} --seeds {seed + 1}"
            save({"command": command, **result}, shown)
    print(table(result))


def save(result: Row, shown: Sequence[tuple[str, Tensor]]) -> None:
    """Writes the figures, the picture and the table of the page."""
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(shown, PICTURE)
    PAGE.write_text(told(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")


if __name__ == "__main__":
    main()
