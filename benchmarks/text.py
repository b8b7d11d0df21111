"""Is what is asked for in words drawn? Class, thickness and place of digits from their captions.

    python benchmarks/text.py          # writes results/text.json, the picture and the table of docs/text.md
    python benchmarks/text.py --table  # prints what is committed
    python benchmarks/text.py --quick  # a few steps, nothing written

Two networks, trained on the same captioned digits: `caption`, with an encoder of words trained along with it, and
`tokens`, told one fixed random vector for each word, as embeddings made elsewhere would be. Neither sees a thin zero in
training: both words are known, and the pair is not.

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion import EDMSDE, Network, SDESampler, metrics, predict
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
UNSEEN = (("thin", 0),)
"""Pairs of thickness and class that no network is trained on."""
SIZE, LENGTH = 32, 5
"""Entries of a token, and words of a caption."""
SCALES = {"caption": (1.0, 2.0, 3.0), "tokens": (2.0,)}
"""Of the guidance, for each network; 1 is off."""
THICK, SHIFTED = 1.7, 1.0
"""Pixels: wider strokes are thick, and a centre of mass farther off is shifted."""
Row = dict[str, Any]


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

    def __init__(self, steps: int, each: int, seed: int) -> None:
        self.steps, self.seed = steps, seed
        data = captioned_digits("train", copies=4, seed=seed)
        pairs = zip(data.widths.tolist(), data.labels.tolist(), strict=True)
        seen = [(PENS[width > THICK], label) not in UNSEEN for width, label in pairs]
        self.rows = torch.tensor(seen).nonzero()[:, 0]
        self.captions = [data.captions[i] for i in self.rows.tolist()]
        self.scaling = Standardise.of(data.images[self.rows])
        self.x = self.scaling.apply(data.images[self.rows])
        self.judge = Judge.trained(captioned_digits("train", copies=8, seed=seed + 1), max(20, steps // 2), seed)
        self.real = captioned_digits("test", copies=4, seed=seed + 2)
        g = torch.Generator().manual_seed(seed)
        self.vectors = {word: torch.randn(SIZE, generator=g) for word in (*NUMBERS, *PENS, *PLACES[1:], "a", "shifted")}
        self.asked = [(c, p, s) for _ in range(each) for c in range(10) for p in PENS for s in PLACES]
        self.texts = [f"a {p} {NUMBERS[c]}" + (f", shifted {s}" if s else "") for c, p, s in self.asked]

    def of_real(self) -> Row:
        """What the judges say of real digits that were kept out: how far they can be trusted."""
        place = [text.partition("shifted ")[2] for text in self.real.captions]
        thick = (self.real.widths > THICK).tolist()
        found = judged(self.judge, self.real.images, self.real.labels.tolist(), thick, place)
        other = captioned_digits("test", copies=4, seed=self.seed + 3)
        floor = metrics.frechet_distance(features(self.judge, self.real.images), features(self.judge, other.images))
        return {"name": "real, kept out", "n": len(self.real), **found, "frechet": float(floor)}

    def network(self, kind: str) -> tuple[Network, dict[str, Any], dict[str, Any]]:
        """A network, what it is told of the data, and what of the captions that are asked for."""
        torch.manual_seed(self.seed)
        net: nn.Module = UNet(1, width=16, multipliers=(1, 2, 4), attention=2, tokens=SIZE, dropout=0.0)
        told: list[Any] = [self.captions, self.texts]
        if kind == "tokens":
            told = [table_of(text, self.vectors) for text in told]
        else:
            net = Captioned(net, TextEncoder.of(self.captions, length=LENGTH, size=SIZE))
        return Network(net, EDMSDE(), predict.edm, shape=(1, 16, 16)), {kind: told[0]}, {kind: told[1]}

    def rows_of(self, kind: str, scales: Sequence[float]) -> tuple[list[Row], dict[float, Tensor]]:
        """One network, trained once, at every scale of guidance."""
        model, told, asked = self.network(kind)
        start = time.process_time()
        recipe = Recipe(batch_size=64, lr=2e-3)
        done = train(model, self.x, steps=self.steps, recipe=recipe, seed=self.seed, **told)
        cost = time.process_time() - start
        rows, drawn = [], {}
        seen = [(p, c) not in UNSEEN for c, p, _ in self.asked]
        for w in scales:
            sampler = SDESampler(model.sde, Guided(done.model, w), steps=20)
            x = sampler.sample(len(self.texts), seed=self.seed, batch_size=250, **asked)
            drawn[w] = images = self.scaling.undo(x).clamp(-1, 1)
            row: Row = {"name": kind, "w": w, "train_s": round(cost), "steps": self.steps}
            for part, flags in (("", seen), ("unseen ", [not s for s in seen])):
                of = [i for i, flag in enumerate(flags) if flag]
                wanted = [self.asked[i] for i in of]
                labels, thick = [c for c, _, _ in wanted], [p == "thick" for _, p, _ in wanted]
                found = judged(self.judge, images[of], labels, thick, [s for _, _, s in wanted])
                row |= {"n" if not part else "unseen n": len(of)} | {f"{part}{k}": v for k, v in found.items()}
            real, own = features(self.judge, self.real.images), features(self.judge, images)
            rows.append(row | {"frechet": float(metrics.frechet_distance(own, real))})
            print(line(rows[-1]), flush=True)
        return rows, drawn

    def drawn_for(self, images: Tensor) -> list[tuple[str, Tensor]]:
        """The first images for some captions."""
        chosen = [(7, "thick", "left"), (7, "thin", "left"), (3, "thick", "right"), (3, "thin", "right")]
        chosen += [(0, "thick", ""), (8, "thin", "up"), (5, "thick", "down"), (4, "thin", "")]
        return [(self.texts[i], images[i::100][:8]) for i in map(self.asked.index, chosen)]


def line(row: Row) -> str:
    names = ("class", "thickness", "place", "class and thickness", "all", "unseen class and thickness", "frechet")
    return f"{row['name']} w={row.get('w', '')} " + ", ".join(f"{n} {row[n]:.3f}" for n in names if n in row)


def table(result: Row) -> str:
    """The table of the page."""
    head = "| | guidance | class | thickness | both | place | all three | both, unseen pairs | Frechet |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for row in result["rows"]:
        keys = ("class", "thickness", "class and thickness", "place", "all", "unseen class and thickness")
        shares = [f"{100 * row[key]:.1f} %" if key in row else "" for key in keys]
        lines.append(f"| {row['name']} | {row.get('w', '')} | {' | '.join(shares)} | {row['frechet']:.2f} |")
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
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--only", choices=SCALES, help="the network to train anew; the other is kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.table:
        print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return
    seed, steps, each = 0, 4 if given.quick else given.steps, 1 if given.quick else 5
    contest = Contest(steps, each, seed)
    result: Row = {"command": "python benchmarks/text.py", "torch": torch.__version__}
    result |= {"python": platform.python_version(), "seed": seed, "rows": [contest.of_real()]}
    print(line(result["rows"][0]), flush=True)
    before = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if given.only and RESULTS.exists() else []
    for kind, scales in SCALES.items():
        if given.only not in (None, kind):
            result["rows"] += [row for row in before if row["name"] == kind]
            continue
        rows, images = contest.rows_of(kind, (2.0,) if given.quick else scales)
        result["rows"] += rows
        if kind == "caption" and not given.quick:
            draw(contest.drawn_for(images[2.0]), PICTURE)
        if not given.quick:
            RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    if not given.quick:
        PAGE.write_text(told(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")


if __name__ == "__main__":
    main()
