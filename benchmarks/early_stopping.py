"""Whether early stopping ends where the test log-likelihood is best, on three small tables, at default settings.

    python benchmarks/early_stopping.py            # writes benchmarks/results/early_stopping.json, prints the table
    python benchmarks/early_stopping.py --quick    # one table, one split, a short run, nothing written

The tables are those that scikit-learn ships: wine (178 rows of 13 columns), breast cancer (569 of 30) and diabetes (442
of 9, given the sex, which takes two values and has no density: it is the label). Of the rows, in the order of a seed,
two thirds are for training, of which `split` keeps some out for validation, and the rest for the test. The settings are
those of `sde-diffusion train`: standardised columns, `MLP`, `EDMSDE`, 3000 steps of 128 at the rate that suits so few
rows, `Validation(x)`. They were chosen on the seeds 3 to 5.

For every split there are two runs. One ends by itself, and its model is the one chosen: the average at the best
validation. The other goes through, and the exact log-likelihood of the test rows (64 at most) is measured at every
validation, until it has been ten nats below its best three times in a row; the bound tells of the rest. `gap` is by
how much the model chosen is below the best of the whole run, in nats; `over` what the end of the run would have
cost, by the bound. One thread; seeds of split, weights and training are the same.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
from sklearn import datasets
from torch import Tensor

from sde_diffusion import EDMSDE, Network, SDESampler, predict
from sde_diffusion.data import Standardise, split
from sde_diffusion.likelihood import Method
from sde_diffusion.nets import MLP
from sde_diffusion.solvers import DormandPrince
from sde_diffusion.training import Event, Training, Validation, train

RESULTS = Path(__file__).parent / "results" / "early_stopping.json"
TABLES = ("wine", "breast_cancer", "diabetes")
STEPS, SEEDS, TEST_ROWS = 3000, (0, 1, 2), 64
METHOD = Method(DormandPrince(1e-4, 1e-4), solver_error=False)
LOST, TIMES = 10.0, 3
"""Nats below the best, and how often in a row, after which the exact likelihood is not measured any more."""


class Split:
    """The rows of a table, standardised: to train on, to validate with, to test.

    Args:
        name: The name of the table in scikit-learn.
        seed: That of the order of the rows.
    """

    def __init__(self, name: str, seed: int) -> None:
        x = torch.tensor(getattr(datasets, f"load_{name}")().data)
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
        label = torch.zeros(len(x), dtype=torch.int64)
        self.classes = 0
        if name == "diabetes":
            label, x, self.classes = (x[:, 1] > 0).long(), torch.cat([x[:, :1], x[:, 2:]], 1), 2
        n = round(len(x) * 2 / 3)
        parts = [part.rows(torch.arange(len(part))) for part in split(x[:n], seed=seed, label=label[:n])]
        scaling = Standardise.of(parts[0].x)
        self.train, self.val, self.test = (scaling.apply(rows) for rows in (parts[0].x, parts[1].x, x[n:]))
        self.labels = parts[1].cond["label"], parts[0].cond["label"], label[n:]
        self.dim = x.shape[1]

    def cond(self, i: int) -> dict[str, Tensor]:
        """The conditions of the rows to validate with, to train on, to test: 0, 1, 2."""
        return {"label": self.labels[i]} if self.classes else {}

    def run(self, seed: int, steps: int, patience: int | None, callbacks: tuple[Any, ...] = ()) -> Training:
        """A training at default settings."""
        torch.manual_seed(seed)
        net = MLP(self.dim, features=0, classes=self.classes)
        model = Network(net, EDMSDE(), predict.edm, shape=(self.dim,))
        val = Validation(self.val, patience=patience, **self.cond(0))
        options: dict[str, Any] = {"val": val, "seed": seed, "callbacks": callbacks}
        return train(model, self.train, steps=steps, **options, **self.cond(1))


class Watch:
    """Measures the test rows at every validation: exactly as long as it is worth it, and by the bound."""

    def __init__(self, rows: Split) -> None:
        self.rows, self.cond = rows.test[:TEST_ROWS], {k: v[:TEST_ROWS] for k, v in rows.cond(2).items()}
        self.bound = Validation(self.rows, **self.cond)
        self.found: list[dict[str, float]] = []
        self.lost = 0

    def __call__(self, event: Event) -> None:
        if event.kind != "validation":
            return
        now = {"step": event.step, "val": event.metrics["val_nats"], "bound": self.bound.measure(event.model).nats}
        if self.lost < TIMES:
            found = SDESampler(event.model.sde, event.model).log_prob(self.rows, method=METHOD, cond=self.cond)
            now["test"] = -float(found.value.mean())
            self.lost = self.lost + 1 if now["test"] > self.best["test"] + LOST else 0
        self.found.append(now)

    @property
    def best(self) -> dict[str, float]:
        """The measurement with the best exact likelihood."""
        return min(
            (one for one in self.found if "test" in one), key=lambda one: one["test"], default={"test": math.inf}
        )


def measured(name: str, seed: int, steps: int) -> dict[str, Any]:
    """One split of a table: where a run ended, what it chose, and what would have been best."""
    rows = Split(name, seed)
    chosen = rows.run(seed, steps, Validation(rows.val).patience)
    watch = Watch(rows)
    rows.run(seed, steps, None, (watch,))
    at = next(one for one in watch.found if one["step"] == chosen.best)
    best = watch.best
    return {
        "table": name,
        "seed": seed,
        "rows": [len(rows.train), len(rows.val), len(watch.rows)],
        "ended": len(chosen.losses),
        "chosen": chosen.best,
        "test": at.get("test", math.inf),
        "best_step": best["step"],
        "best": best["test"],
        "gap": at.get("test", math.inf) - best["test"],
        "over": watch.found[-1]["bound"] - at["bound"],
        "curve": watch.found,
    }


def main() -> None:
    """Measures, prints and, unless asked to be quick, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one table, one split, a short run, nothing written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tables, seeds, steps = (("wine",), (0,), 60) if args.quick else (TABLES, SEEDS, STEPS)
    print(f"torch {torch.__version__}, Python {platform.python_version()}; -log p of the test rows, nats")
    print(f"{'table':<14} seed  ended  chosen     test   best at     best    gap   over")
    rows = []
    for name in tables:
        for seed in seeds:
            rows.append(row := measured(name, seed, steps))
            print(
                f"{name:<14} {seed:4d} {row['ended']:6d} {row['chosen']:7d} {row['test']:8.2f} {row['best_step']:9.0f} "
                f"{row['best']:8.2f} {row['gap']:6.2f} {row['over']:6.0f}",
                flush=True,
            )
    if not args.quick:
        about = {"command": "python benchmarks/early_stopping.py", "torch": torch.__version__, "steps": steps}
        RESULTS.write_text(json.dumps({**about, "runs": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
