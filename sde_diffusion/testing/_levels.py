"""A model that is asked as a sampler asks it, and what it knows at each noise level, against what needs no network."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._tensors import rows
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.conditions import Conditions
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.testing._picture import Curve
from sde_diffusion.testing.report import Checklist

RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0)  # sigma / alpha, in units of the standard deviation of the data
JUDGED = (0.2, 0.3, 0.5, 1.0, 2.0, 3.0)  # where a network of any parametrisation is soon calibrated
BESIDE = (0.5, 2.0)  # the levels beside one, at which its clock should do no better
GOOD, FAIR = 1.02, 1.1  # small networks of 2000 steps reach 1.01, of 400 steps 1.04, or 1.08 without a falling rate
ROWS = 8


class Probe:
    """A model that is asked, with the states and conditions to ask it with, and the times to ask it at."""

    def __init__(self, model: Denoiser, shape: tuple[int, ...], cond: dict[str, Any], n: int) -> None:
        self.model = model
        first = next((p for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()), torch.zeros(()))
        dtype = torch.float32 if first.dtype in (torch.float16, torch.bfloat16) else first.dtype
        self.source = torch.Generator().manual_seed(0)
        self.rows = ROWS if not n or n >= ROWS else n
        self.cond = Conditions.of(model, cond, n or self.rows)
        if n > self.rows:
            self.cond.check_apart(f"of which it is asked about {self.rows} at a time")
        self.z = torch.randn(self.rows, *shape, generator=self.source, dtype=dtype).to(first.device)

    def given(self, n: int) -> dict[str, Any]:
        """The conditions of the first `n` rows."""
        return self.cond.part(slice(0, n))

    def at(self, t: float, x: Tensor | None = None) -> tuple[Tensor, Prediction]:
        """A state of the size that states have at time `t`, and the prediction there, asked for as a sampler does."""
        (level,) = self.model.levels([t])
        size = math.hypot(level.alpha * self.model.data_std, level.sigma)
        x = size * (self.z if x is None else x)
        return x, self.model.predict(x, level, **self.given(len(x)))

    def times(self, n: int = 33) -> list[float]:
        """Times evenly in the angle between data and noise, both ends among them."""
        sde, c = self.model.sde, self.model.data_std
        ends = torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)
        top, bottom = torch.atan2(sde.sigma(ends), sde.alpha(ends) * c).tolist()
        u = torch.linspace(top, bottom, n, dtype=torch.float64)[1:-1]
        between = sde.time_of(-torch.log(c * torch.tan(u))).clamp(sde.t_min, sde.t_max)
        return [float(sde.t_max), *between.tolist(), float(sde.t_min)]


def unexplained(columns: Tensor, wanted: Tensor) -> float:
    """The mean square of the rest of `wanted`, `(n,)`, after a least-squares fit by the columns `(k, n)`."""
    basis, target = columns.T, wanted[:, None]
    fitted = basis @ torch.linalg.lstsq(basis, target, driver="gelsd").solution
    return float((target - fitted).square().mean())


def check_levels(sheet: Checklist, model: Denoiser, x0: Tensor, probe: Probe) -> None:
    """Adds to a report how good the data prediction is, level by level, and the curves behind the rows."""
    spread = float(rows(x0 - x0.mean(dim=0)).square().mean().sqrt())
    sheet.holds("the data vary", lambda: "" if spread > 0 else "all data are equal: nothing to predict")
    if not sheet.entries[-1].passed:
        return
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=x0.dtype).to(x0.device)
    errors = {r: _errors(model, x0, eps, r, spread, probe) for r in _reached(model, spread)}
    trivial = {r: error / (spread * min(1.0, r)) ** 2 for r, (error, _) in errors.items()}
    for ratio in (r for r in trivial if r in RATIOS):
        sheet.at_most(
            f"error against the best of mean and x/alpha, sigma/alpha = {ratio:g} std",
            1.05,
            partial(trivial.__getitem__, ratio),
            required=False,
            note="a trained model does better: is it trained, on these data? Parametrisation and clock as declared?",
        )
    judged = [r for r in errors if r in JUDGED]
    if judged:
        note = (
            "wrong parametrisation (noise declared as data?), process or clock, data of another scale, or not trained"
        )
        sheet.at_most("the same, worst of 0.2 to 3 std", 2.0, lambda: max(trivial[r] for r in judged), note=note)
        mean, slack = sum(errors[r][0] / errors[r][1] for r in judged) / len(judged), 20 / len(x0)
        claim = "error against the best mix of its answers here, at the levels beside, and x; mean of 0.2 to 3 std"
        sheet.at_most(claim, FAIR + slack, lambda: mean, note=f"another combination does better: {note}")
        sheet.at_most(
            "the same, as of a network trained for a while",
            GOOD + slack,
            lambda: mean,
            required=False,
            note="trained too little, or a process or clock that is nearly the right one",
        )
    _draw_levels(sheet, errors, spread)


def _draw_levels(sheet: Checklist, errors: dict[float, tuple[float, float]], spread: float) -> None:
    axes = ("sigma / alpha, in std of the data", "root mean square error of the data prediction")
    lines = {
        "model": [math.sqrt(e) for e, _ in errors.values()],
        "best mix": [math.sqrt(e) for _, e in errors.values()],
        "mean": [spread for _ in errors],
        "x / alpha": [spread * r for r in errors],
    }
    for name, y in lines.items():
        sheet.curves.append(Curve("error by level", name, tuple(errors), tuple(y), axes))


def _span(model: Denoiser) -> tuple[float, float]:
    """The least and greatest `sigma / alpha` of the SDE."""
    sde = model.sde
    low, high = (float(at.ratio) for at in sde.levels([sde.t_min, sde.t_max]))
    return low, high


def _reached(model: Denoiser, spread: float) -> list[float]:
    """The noise levels to ask at, in units of `spread`, that lie inside the range of the SDE."""
    low, high = _span(model)
    return [r for r in sorted({*RATIOS, *JUDGED}) if low < r * spread < high]


def _errors(model: Denoiser, x0: Tensor, eps: Tensor, ratio: float, spread: float, probe: Probe) -> tuple[float, float]:
    """Mean square error of the data prediction at one level, and that of the best mix of answers and state.

    The mix is a linear combination of the data predictions at this level and at the levels beside it, and of `x`.
    """
    low, high = _span(model)
    beside = [k * ratio * spread for k in BESIDE if low < k * ratio * spread < high] if ratio in JUDGED else []
    lams = torch.tensor([-math.log(r) for r in (ratio * spread, *beside)], dtype=torch.float64)
    levels = model.levels(model.sde.time_of(lams).tolist())
    at = levels[0]
    x = at.alpha * x0 + at.sigma * eps
    found = [model.predict(x, level, **probe.given(len(x0))).data.flatten().cpu().double() for level in levels]
    columns = torch.stack(
        [*found, x.flatten().cpu().double() / math.hypot(at.alpha, at.sigma), torch.ones_like(found[0])]
    )
    error = float((found[0] - x0.flatten().cpu().double()).square().mean())
    return error, unexplained(columns, x0.flatten().cpu().double())
