r"""The length of the average, chosen when the run is over: by a weighted sum of averages that were stored on the way.

A power-function average of exponent $\gamma$ after $t$ steps weighs the weights of step $\tau$ by the profile
$p_{t,\gamma}(\tau) = (\gamma + 1)\,\tau^\gamma/t^{\gamma + 1}$, $\tau \le t$. Snapshots $(t_i, \gamma_i)$ are summed
with the $x$ that come closest to the profile wanted, $(t, \gamma)$, in least squares:

$$ A x = b, \quad A_{ij} = \langle p_i, p_j\rangle = \frac{(\gamma_i + 1)(\gamma_j + 1)}{\gamma_i + \gamma_j + 1}\,
   \frac{\min(t_i, t_j)^{\gamma_i + \gamma_j + 1}}{t_i^{\gamma_i + 1}\,t_j^{\gamma_j + 1}}, \quad
   b_i = \langle p_i, p\rangle, \quad x \to x/\textstyle\sum_i x_i $$

What is left of the profile, $|p - \sum_i x_i p_i|/|p|$, tells beforehand whether a length can be had.

References:
    Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2024 (Section 3).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sde_diffusion._checks import check_count
from sde_diffusion.training import store
from sde_diffusion.training.callbacks import Event
from sde_diffusion.training.ema import EMA, PowerDecay, copied, tensors_of

M = TypeVar("M", bound=nn.Module)

NAME = "step_"
"""How the names of snapshots begin; the number of steps follows."""
MOST_MISSED = 0.05
"""The share of a profile that may be missed."""
CUT = 1e-13
"""Singular values of the system below this share of the largest one are rounding."""
SCANNED = torch.logspace(-2.3, -0.545, 40, dtype=torch.float64, device="cpu").tolist()
"""Lengths that are tried, 0.005 to 0.285, to say which can be had."""


class Snapshots:
    """Stores the power-function averages of a run every so many steps, for `posthoc` to choose from.

    A callback of `train`:

        lengths = Recipe(averages=(PowerDecay(0.10), PowerDecay(0.05)))
        train(model, x, steps=8000, recipe=lengths, callbacks=[Snapshots("averages", every=500)])

    In a loop of one's own `snapshots.write([ema, other])` does the same. A snapshot takes the room of the model once
    for each length. Sixteen of them over the run give any length between the two to a ten-thousandth, and lengths
    beyond, to a half and twice as long, to a few thousandths. A run from its first step begins the folder anew.

    Args:
        folder: Where they go; made if need be.
        every: Steps from one snapshot to the next; a sixteenth of the run is a good choice.

    Raises:
        TypeError, ValueError: `every` is no positive integer. In use: no power-function average is there.
    """

    def __init__(self, folder: str | Path, *, every: int) -> None:
        self.folder, self.every = Path(folder), check_count(every, "every")

    def __call__(self, event: Event) -> None:
        if event.kind == "start" and event.step == 0:
            _checked([decay for decay in event.training.recipe.decays if isinstance(decay, PowerDecay)])
            for name in _names(self.folder):
                _remove(self.folder, name)
        elif event.kind == "step" and event.step % self.every == 0:
            run = event.training
            pairs = zip(run.recipe.decays, run.averages, strict=True)
            models = [(decay, tensors_of(model)) for decay, model in pairs if isinstance(decay, PowerDecay)]
            self._store(event.step - run.skipped, models)

    def write(self, averages: Sequence[EMA[Any]]) -> None:
        """Stores averages as they are now; those that are no power functions are left out."""
        models = [(a.decay, _wide(a.state())) for a in averages if isinstance(a.decay, PowerDecay)]
        _checked([decay for decay, _ in models])
        self._store(averages[0].steps, models)

    def _store(self, steps: int, models: Sequence[tuple[PowerDecay, Mapping[str, Tensor]]]) -> None:
        if not steps:  # all that came so far was skipped
            return
        tensors = {f"{i}.{name}": value.detach() for i, (_, one) in enumerate(models) for name, value in one.items()}
        about = {"steps": steps, "sigma_rels": [decay.sigma_rel for decay, _ in models]}
        store.write(self.folder, f"{NAME}{steps:09}", about, tensors)


def _checked(decays: Sequence[PowerDecay]) -> None:
    if not decays:
        raise ValueError(
            "snapshots are of power-function averages, and there are none: give Recipe(averages=(PowerDecay(0.10), "
            "PowerDecay(0.05))), or EMA(model, PowerDecay(0.05))"
        )


def posthoc(folder: str | Path, sigma_rel: float, model: M, *, at: int | None = None) -> M:
    """Makes the average of a length that was not kept during the run, from the snapshots of those that were.

    Args:
        folder: Where `Snapshots` stored them: `averages` in the folder of a run.
        sigma_rel: The length, as in `PowerDecay`: the standard deviation of the window over the run up to `at`.
        model: A model of the same make, which is not changed: the result is a copy.
        at: The step at which the average ends; by default that of the last snapshot.

    Returns:
        The averaged model, in evaluation mode.

    Raises:
        FileNotFoundError: No snapshots in the folder.
        ValueError: A length that they do not span, with the share of its window that they miss; snapshots of another
            model, or an `at` before the first.

    Warns:
        DamagedWarning: A snapshot is damaged, and left out.
    """
    decay, found = PowerDecay(sigma_rel), _found(Path(folder), at)
    steps = found[-1].about["steps"] if at is None else check_count(at, "at")
    ends = torch.tensor(
        [[f.about["steps"], PowerDecay(s).gamma] for f in found for s in f.about["sigma_rels"]], device="cpu"
    )
    ends = ends.to("cpu", torch.float64)
    x, missed = _weights(ends, steps, decay)
    if missed > MOST_MISSED:
        reach = [s for s in SCANNED if _weights(ends, steps, PowerDecay(s))[1] <= MOST_MISSED]
        within = f"lengths from {min(reach):.3g} to {max(reach):.3g} can be had" if reach else "no length can be had"
        raise ValueError(
            f"sigma_rel={sigma_rel:g} at step {steps} is not in what these {len(found)} snapshots span: the closest "
            f"sum of them misses {missed:.0%} of its window, wanted {MOST_MISSED:.0%} at most. Of them {within}; for "
            "others store more lengths, or more often"
        )
    new, weights = copied(model).eval(), iter(x.tolist())
    kept = tensors_of(new)
    total = {name: torch.zeros_like(value, dtype=_wider(value), device="cpu") for name, value in kept.items()}
    for one in found:
        tensors = one.tensors()
        for i, _ in enumerate(one.about["sigma_rels"]):
            _add(total, next(weights), {k[len(f"{i}.") :]: v for k, v in tensors.items() if k.startswith(f"{i}.")})
    with torch.no_grad():
        for name, value in kept.items():
            value.copy_(total[name])
    return new


def _weights(ends: Tensor, steps: int, decay: PowerDecay) -> tuple[Tensor, float]:
    """The weights of snapshots `(k, 2)`, step and exponent, and the share of the profile wanted that they miss."""
    wanted = torch.tensor([[steps, decay.gamma]], dtype=torch.float64, device="cpu")
    a, b, c = _products(ends, ends), _products(ends, wanted), float(_products(wanted, wanted))
    unit = a.diagonal().rsqrt()[:, None]
    x = unit * torch.linalg.lstsq(unit * a * unit.T, unit * b, rcond=CUT, driver="gelsd").solution
    x = x / x.sum()
    off = c - 2 * float((x * b).sum()) + float((x * (a @ x)).sum())
    return x[:, 0], max(off / c, 0.0) ** 0.5


def _products(one: Tensor, other: Tensor) -> Tensor:
    """The inner products of profiles `(k, 2)` and `(l, 2)`: `(k, l)`."""
    (t, g), (s, h) = one[:, None].unbind(-1), other[None].unbind(-1)
    log = torch.log((g + 1) * (h + 1) / (g + h + 1)) + (g + h + 1) * torch.minimum(t, s).log()
    return torch.exp(log - (g + 1) * t.log() - (h + 1) * s.log())


def _found(folder: Path, at: int | None) -> list[store.Found]:
    """The snapshots up to a step, the first one first; damaged ones are left out."""
    if not (names := _names(folder)):
        raise FileNotFoundError(
            f"there are no snapshots of averages in {folder}: Snapshots(folder, every=500), a callback, makes them"
        )
    found: list[store.Found] = []
    for name in names:
        if at is not None and int(name.removeprefix(NAME)) > at:
            continue
        try:
            found.append(store.find(folder, name))
        except (OSError, ValueError) as error:
            warnings.warn(f"{error}. It is left out of the average", store.DamagedWarning, stacklevel=3)
    if not found:
        raise ValueError(f"no sound snapshot in {folder} is of step {at} or before: the first is {names[0]}")
    return found


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob(f"{NAME}*.json") if path.stem.removeprefix(NAME).isdecimal())


def _remove(folder: Path, name: str) -> None:
    """Removes a snapshot; its manifest first, so that none names what is not there."""
    for path in sorted(store.files_of(folder, name), key=lambda path: path.suffix != ".json"):
        path.unlink(missing_ok=True)


def _wide(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an average by the names in the model, each as wide as it is kept."""
    plain = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    return {name: state.get(f"wide.{name}", value) for name, value in plain.items()}


def _wider(value: Tensor) -> torch.dtype:
    """In which sums are made."""
    return torch.complex128 if value.is_complex() else torch.float64 if value.is_floating_point() else value.dtype


def _add(total: dict[str, Tensor], weight: float, tensors: dict[str, Tensor]) -> None:
    """Adds a share of one average to a sum; what is no average, such as a count, is that of the last."""
    for name in dict.fromkeys([*total, *tensors]):
        if name not in total or name not in tensors or total[name].shape != tensors[name].shape:
            said = [f"{tuple(d[name].shape)}" if name in d else "nothing" for d in (tensors, total)]
            raise ValueError(f"a snapshot has {said[0]} as {name!r}, and the model {said[1]}: it is of another model")
        if total[name].is_floating_point() or total[name].is_complex():
            total[name] += weight * tensors[name]
        else:
            total[name].copy_(tensors[name])
