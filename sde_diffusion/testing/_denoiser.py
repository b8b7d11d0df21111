"""The check of a model: its form, whether rows mix, its two halves, and what it knows at each noise level."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sde_diffusion._checks import check_finite, check_state
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.testing._levels import ROWS, Probe, check_levels, unexplained
from sde_diffusion.testing.report import Checklist, Report

MOST = 2048  # data used, however many are given


def check_denoiser(
    model: Denoiser, x0: Tensor | None = None, *, shape: tuple[int, ...] | None = None, **cond: Any
) -> Report:
    r"""Checks a model: shapes, rows that mix, both halves of its prediction and, given data, its error at each level.

    With data, the square error of its data prediction $D(x, t)$ is compared with what needs no network, the mean of the
    data and $x/\alpha$, and with the best of

    $$ a\,D(x, t) + b\,D(x, t_-) + c\,D(x, t_+) + d\,x + e, $$

    $t_\pm$ being the levels of twice and half the noise, five numbers fitted at each level. No such combination
    improves on $\mathrm E[x_0 \mid x_t]$, whatever the data, and hardly any on a network that was trained for a while,
    as its own last layer fits them. It does improve on a network whose answer is read as another quantity, or which is
    told another time than it was trained at: in the mean over six levels from 0.2 to 3 standard deviations of the data,
    over 10 % is a failure and over 2 % a warning, each plus `20 / n` for `n` data.

    What it cannot tell from a network trained too little: a process or clock whose levels there are nearly the right
    ones, as `SubVPSDE` for `VPSDE` or a `beta_max` of 12 for 20, which is a warning. What it cannot see: what happens
    beyond those levels, and anything of data close to Gaussian, where all answers are linear in `x`.

    About 160 evaluations, twenty of them on up to 2048 data: a second for an MLP, more for a U-Net.

    Args:
        model: A `Network` or any other `Denoiser`. Checked in evaluation mode, once in training mode too, and left in
            its own mode, with its buffers as they were.
        x0: Data that it was trained on, or like them, shape `(B, *)`.
        shape: Event shape, where neither the model nor the data tell.
        **cond: Handed to the model; what is per sample goes along with `x0`, see `conditions`.

    Raises:
        TypeError: Not a `Denoiser`, or data that are not floating.
        ValueError: No event shape, or data of another one.

    Example:
        >>> print(check_denoiser(model, x0))
    """
    if not isinstance(model, Denoiser):
        raise TypeError(
            f"check_denoiser takes a Denoiser: wrap the network, Network(net, sde, predict.noise), got {model!r}"
        )
    if x0 is not None:
        check_finite(check_state(x0, "x0", shape=model.shape), "x0")
        shape = tuple(x0.shape[1:])
    shape = shape if shape is not None else model.shape
    if shape is None:
        raise ValueError("the event shape is not known: give x0, or shape=(3, 32, 32)")
    sheet = Checklist(f"check_denoiser({type(model).__name__}, {model.sde!r})")
    probe = Probe(model, shape, cond, len(x0) if x0 is not None else 0)
    with _mode(model, training=False), torch.no_grad():
        _check_form(sheet, probe)
        sheet.holds("the answer depends on the time", partial(_blind, probe), required=False)
        sheet.holds("a row does not change when the others do (eval mode)", partial(_mixing, probe))
        if x0 is not None:
            check_levels(sheet, model, x0[:MOST], probe)
    with _mode(model, training=True), torch.no_grad():
        sheet.holds("a row does not change when the others do (training mode)", partial(_mixing, probe))
    return sheet.report()


@contextmanager
def _mode(model: Denoiser, *, training: bool) -> Iterator[None]:
    """A context with the model in training or evaluation mode; at its end modes and buffers are as they were."""
    modes = [(m, m.training) for m in model.modules()]
    kept = [(b, b.clone()) for b in model.buffers()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def _check_form(sheet: Checklist, probe: Probe) -> None:
    sheet.holds("the prediction has the shape and dtype of the state", partial(_form, probe))
    sheet.holds("finite over the whole range of levels, or refused with the cause", partial(_finite, sheet, probe))
    sheet.at_most(
        "halves fit: x = alpha data + sigma noise, relative error",
        1e-4 if probe.z.dtype == torch.float32 else 1e-9,
        partial(_halves, probe),
        note="predict must answer both halves of one and the same split of x",
    )
    sheet.holds("the same answer twice (eval mode)", partial(_twice, probe))
    sheet.at_most(
        "one time for all, times per row and levels of a sampler agree: error",
        1e-3 if probe.z.dtype == torch.float32 else 1e-6,
        partial(_ways, probe),
        note="the network must take times of shape (B,), a different one for each row",
    )


def _middle(probe: Probe) -> float:
    return probe.times(5)[2]


def _form(probe: Probe) -> str:
    x, found = probe.at(_middle(probe))
    for name, half in (("data", found.data), ("noise", found.noise)):
        if half.shape != x.shape or half.dtype != x.dtype:
            return f"{name} came as {half.dtype} of shape {tuple(half.shape)} for {x.dtype} of shape {tuple(x.shape)}"
    return ""


def _finite(sheet: Checklist, probe: Probe) -> str:
    bad: list[str] = []
    for t in probe.times():
        try:
            _, found = probe.at(t)
            good = bool(torch.isfinite(found.data).all()) and bool(torch.isfinite(found.noise).all())
        except ValueError as error:
            good = len(str(error)) > 20
        if not good:
            bad.append(f"{t:g}")
    return f"not finite at t = {', '.join(bad[:3])}" + ", ..." * (len(bad) > 3) if bad else ""


def _halves(probe: Probe) -> float:
    worst = 0.0
    for t in probe.times()[1:-1]:
        x, found = probe.at(t)
        (at,) = probe.model.sde.levels([t])
        data, noise = at.alpha * found.data, at.sigma * found.noise
        worst = max(worst, float((data + noise - x).abs().max() / (data.abs() + noise.abs() + x.abs()).max()))
    return worst


def _twice(probe: Probe) -> str:
    t = _middle(probe)
    same = torch.equal(probe.at(t)[1].data, probe.at(t)[1].data)
    return "" if same else "two calls differ: the model draws random numbers in evaluation mode"


def _ways(probe: Probe) -> float:
    """The largest difference between `forward` with one time or one per row and `predict` at a level of floats."""
    times = probe.times(probe.rows + 2)[1:-1]
    x = torch.cat([probe.at(t)[0][i : i + 1] for i, t in enumerate(times)])
    given = probe.given(len(x))
    per_row = probe.model(x, torch.tensor(times, dtype=torch.float64, device=x.device), **given).noise
    worst = 0.0
    for i, t in enumerate(times):
        (level,) = probe.model.levels([t])
        for other in (probe.model(x, t, **given).noise, probe.model.predict(x, level, **given).noise):
            size = 1 + float(per_row[i].abs().max())
            worst = max(worst, float((other[i] - per_row[i]).abs().max()) / size)
    return worst


def _blind(probe: Probe) -> str:
    """Complains if the answers at two levels are the same function of the state, up to a multiple of the state.

    They are compared at the same state, and, since a network may scale its input, at states of the sizes of the two
    levels. Answers that are linear in the state, as those of a fresh network are, tell nothing and pass.
    """
    times = probe.times(9)
    t, s = times[3], times[5]
    _, here = probe.at(t)
    at, there = probe.model.levels([t, s])
    x = math.hypot(at.alpha * probe.model.data_std, at.sigma) * probe.z
    given = probe.given(len(x))
    same = probe.model.predict(x, there, **given).data
    for other in (same, probe.at(s)[1].data):
        wanted, ones = other.flatten().cpu().double(), torch.ones(x.numel(), dtype=torch.float64)
        if x.numel() < ROWS:
            return ""
        linear = torch.stack([probe.z.flatten().cpu().double(), ones])
        rest = unexplained(linear, wanted)
        if rest > 1e-6 * float(wanted.square().mean()):
            left = unexplained(torch.cat([linear, here.data.flatten().cpu().double()[None]]), wanted)
            if left < 1e-6 * rest:
                return "the same function of x at two levels: the network does not take its time argument"
    return ""


def _mixing(probe: Probe) -> str:
    """Complains if the first row changes when all others do; dropout draws the same masks both times."""
    if probe.rows < 2:
        return ""
    other = torch.cat([probe.z[:1], 3 * probe.z[1:].flip(0) + 1])
    t, found = _middle(probe), []
    for z in (probe.z, other):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found.append(probe.at(t, z)[1].data[0])
    change = float((found[0] - found[1]).abs().max() / (1 + found[0].abs().max()))
    if change <= 1e-5:
        return ""
    return f"changed by {change:.1g}: batch norm, or a mean over the batch? Take group or layer norm"
