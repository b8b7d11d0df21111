"""What trainings are worth after so much time: digits, tables, and signals whose distribution is known.

Time is that of the processor, of the training alone; what measures it does not count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from sklearn import datasets
from torch import Tensor, nn

from sde_diffusion import EDMSDE, Network, SDESampler, predict
from sde_diffusion.data import Standardise
from sde_diffusion.demo.table import HEADLINE, SDE, Bench, Trial
from sde_diffusion.denoiser import Denoiser
from sde_diffusion.likelihood import Method
from sde_diffusion.nets import MLP, DiT, UNet
from sde_diffusion.solvers import DormandPrince
from sde_diffusion.training import Event, Recipe, Training, Validation, losses, train

SEED = 0
LOOSE = Method(DormandPrince(1e-4, 1e-4), solver_error=False)
Row = dict[str, Any]


class Clock:
    """Seconds of the processor that a training took, and what its averaged model was worth on the way.

    Args:
        steps: The steps after which it is measured.
        measure: What a model is worth, numbers by name.
    """

    def __init__(self, steps: tuple[int, ...], measure: Callable[[Denoiser], Row]) -> None:
        self.steps, self.measure = steps, measure
        self.rows: list[Row] = []
        self._apart, self._start = 0.0, time.process_time()

    @property
    def seconds(self) -> float:
        """So far, without the measurements."""
        return time.process_time() - self._start - self._apart

    def __call__(self, event: Event) -> None:
        if event.kind != "step" or event.step not in self.steps:
            return
        seconds, start = self.seconds, time.process_time()
        self.rows.append({"step": event.step, "seconds": seconds, **self.measure(event.model)})
        self._apart += time.process_time() - start


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with the initial weights of the seed."""
    torch.manual_seed(SEED)
    return make()


# --- digits


def digits(budgets: tuple[int, ...], *, images: int, drawn: int) -> list[Row]:
    """The demonstration after so many steps, each a run of its own: bits per dimension and Frechet distance.

    Args:
        budgets: Steps of each run.
        images: Test images whose likelihood is evaluated.
        drawn: Samples.
    """
    bench = Bench.prepare(seed=SEED, steps=400)
    rows = [{"step": 0, "seconds": 0.0, "frechet": bench.floor(drawn).frechet, "bits": None}]
    for steps in budgets:
        net = seeded(lambda: UNet(1, width=32, classes=10, label_drop=0.1, dropout=0.1))
        clock = Clock((), lambda _: {})
        done = train(
            Network(net, SDE, predict.edm, shape=(1, 8, 8)),
            bench.levels,
            label=bench.labels,
            steps=steps,
            loss=losses.DenoisingScoreMatching(losses.LogNormalSigma(mean=-0.65, std=1.4)),
            recipe=Recipe(transform=bench.fresh),
            seed=SEED,
        )
        row: Row = {"step": steps, "seconds": clock.seconds}
        row["frechet"] = bench.draw(done.model, Trial(HEADLINE), bench.labels[:drawn], SEED)[0].frechet
        found = bench.likelihood(done.model, n=images, steps=8)
        rows.append({**row, "bits": found.bits_per_dim, "bits_error": found.bits_error})
    return rows


# --- tables


TABLES: dict[str, Callable[[], Any]] = {"wine": datasets.load_wine, "breast cancer": datasets.load_breast_cancer}


def table(name: str, steps: int, marks: tuple[int, ...], rows: int) -> Row:
    """A table with early stopping and without, at the settings that a table gets when nothing is said.

    Two thirds of the rows are for training, a tenth of which is held out for the validation; of the rest, `rows` at
    most are for the test. Both runs have the same data, so that they differ by the stopping alone.

    Returns:
        The log-likelihood of a test row, in nats in units of the columns' standard deviations, by the flow, and the
        bound of `Validation`: of the model that was returned with early stopping, and along the run without. Where
        the bound is below `LOST`, the flow of a model that has learnt its rows by heart takes too long to solve.
    """
    x = torch.tensor(TABLES[name]().data)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))]
    n = round(len(x) * 2 / 3)
    held = round(n / 10)
    scaling = Standardise.of(x[held:n])
    val, rest, test = (scaling.apply(part) for part in (x[:held], x[held:n], x[n : n + rows]))
    bound = Validation(test)

    def run(clock: Clock, held_out: Validation | None) -> Training:
        net = seeded(lambda: MLP(x.shape[1]))
        model = Network(net, EDMSDE(), predict.edm, shape=(x.shape[1],))
        return train(model, rest, steps=steps, val=held_out, seed=SEED, callbacks=[clock])

    def exact(model: Denoiser) -> float:
        return float(SDESampler(model.sde, model).log_prob(test, method=LOOSE).value.mean())

    def worth(model: Denoiser) -> Row:
        least = -bound.measure(model).nats
        return {"bound": least, "test": exact(model) if least > LOST else None}

    stopped = Clock((), worth)
    early = run(stopped, Validation(val))
    with_stop = {"steps": len(early.losses), "chosen": early.best, "seconds": stopped.seconds, **worth(early.model)}
    through = Clock(marks, worth)
    run(through, None)
    return {"dimensions": x.shape[1], "rows": [len(rest), held, len(test)], "early": with_stop, "without": through.rows}


LOST = -200.0
"""Nats, by the bound, below which it alone is told."""


# --- signals


def covariance(length: int) -> Tensor:
    r"""Of two channels of a Gaussian signal, each of variance one, `(2 length, 2 length)`, in float64.

    $$ x_c(l) = \sum_k s_k \big(a_k \cos(\omega_k l + \phi_c) + b_k \sin(\omega_k l + \phi_c)\big) + 0.3\,z_c(l) $$

    Three waves whose amplitudes are independent and normal, the second channel an eighth of a turn behind, and noise.
    """
    at = torch.arange(length, dtype=torch.float64)
    phase = torch.tensor([0.0, math.pi / 4], dtype=torch.float64)
    parts = []
    for waves, share in ((1.0, 0.5), (2.5, 0.3), (5.0, 0.11)):
        angle = 2 * math.pi * waves * at / length + phase[:, None]
        parts += [math.sqrt(share) * f(angle).flatten() for f in (torch.cos, torch.sin)]
    basis = torch.stack(parts)
    return basis.T @ basis + 0.09 * torch.eye(2 * length, dtype=torch.float64)


NETS: dict[str, Callable[[int], nn.Module]] = {
    "UNet(2, dims=1)": lambda length: UNet(2, dims=1),
    "DiT((2, L))": lambda length: DiT((2, length)),
}


def signals(name: str, length: int, marks: tuple[int, ...], *, n: int, drawn: int, rows: int) -> list[Row]:
    """A network learns Gaussian signals `(2, length)`: how far its covariance and its density are from the exact ones.

    Args:
        name: Which network.
        length: Points of a channel.
        marks: The steps after which the averaged model is measured; the last ends the run.
        n: Signals to learn from.
        drawn: Samples, of which the covariance is taken.
        rows: New signals whose log-likelihood is evaluated.

    Returns:
        For each mark the error of the covariance of samples (Frobenius norm, over that of the exact one), and by how
        much the log-likelihood of new signals is below that under the exact density, in nats per number.
    """
    cov = covariance(length)
    exact = torch.distributions.MultivariateNormal(torch.zeros(2 * length, dtype=torch.float64), cov)
    root = torch.linalg.cholesky(cov)
    noise = torch.randn(n + rows, 2 * length, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
    x = (noise @ root.T).reshape(-1, 2, length)
    truth = float(exact.log_prob(x[n:].flatten(1)).mean())

    def distance(drawn: Tensor) -> float:
        flat = drawn.double().flatten(1)
        return float(torch.linalg.matrix_norm(flat.T @ flat / len(flat) - cov) / torch.linalg.matrix_norm(cov))

    def worth(model: Denoiser) -> Row:
        sampler = SDESampler(model.sde, model)
        found = float(sampler.log_prob(x[n:].float(), method=LOOSE).value.mean())
        return {
            "covariance": distance(sampler.sample(drawn, seed=SEED, batch_size=512)),
            "gap": (truth - found) / (2 * length),
        }

    clock = Clock(marks, worth)
    model = Network(seeded(lambda: NETS[name](length)), EDMSDE(), predict.edm, shape=(2, length))
    train(model, x[:n].float(), steps=marks[-1], seed=SEED, callbacks=[clock])
    fresh = torch.randn(drawn, 2 * length, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED + 1))
    floor = distance(fresh @ root.T)
    return [{**row, "floor": floor, "data": distance(x[:n])} for row in clock.rows]
