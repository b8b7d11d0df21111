"""The problems that the defaults are chosen on and measured on: three lists, with seeds that no two of them share.

`selection()` chooses, `held_out()` reports how the choice does on what it has not seen, `benchmark()` is for
`nfe_quality.py`, after all choices are made. Exact problems are in float64: random Gaussian mixtures in 2 to 32
dimensions, a ring of narrow modes, digits blurred by a kernel, mixtures under guidance. Trained ones are small networks
on vectors and images, in float32; they are trained when they are first asked for, and kept in `.cache/problems/`:
under four minutes of one core for all three lists.
The process is the chain of DDPM, on which everybody's samplers run, but for EDM networks and for flows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _models import ClassMixture, Guided, KernelDensity
from torch import Tensor

from sde_diffusion import EDMSDE, VPSDE, DiscreteVPSDE, FlowSDE, GaussianSDE, Network, SDESampler, data, predict
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.denoiser.base import Denoiser
from sde_diffusion.denoiser.predict import Parametrisation
from sde_diffusion.nets import MLP, UNet
from sde_diffusion.noise import Streams
from sde_diffusion.solvers import RK4, Angle
from sde_diffusion.training import Recipe, load_checkpoint, save_checkpoint, train

CACHE = Path(__file__).parent.parent / ".cache" / "problems"
CHAIN = DiscreteVPSDE.linear(1000, 1e-4, 0.02)
CONVERGED, MOST = 1e-4, 768
"""The change by doubling the steps at which a flow counts as converged, in standard deviations; the most steps."""


@dataclass(frozen=True)
class Case:
    """A problem.

    Attributes:
        name: Unique in its list.
        sde: The process.
        model: The denoiser under it.
        shape: The shape of a sample.
        data: `data(n, seed)` draws true samples, `(n, *shape)`; None where nobody knows them.
        cond: Conditions of every call, shared by all samples.
        exact: Whether the model is exact, in float64; else it is a trained network, in float32.
    """

    name: str
    sde: GaussianSDE
    model: Denoiser
    shape: tuple[int, ...]
    data: Callable[[int, int], Tensor] | None = None
    cond: dict[str, Any] = field(default_factory=dict)
    exact: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """float64 for an exact model, float32 for a network."""
        return torch.float64 if self.exact else torch.float32


def start(case: Case, n: int, seed: int) -> Tensor:
    """States at `t_max` that no two seeds share, `(n, *shape)`: draws of the prior."""
    z = Streams(range(seed * 1_000_000, seed * 1_000_000 + n), case.shape, case.dtype, "cpu").prior()
    return SDESampler(case.sde, case.model, shape=case.shape, steps=1).problem.start(z, case.sde.t_max)


def reference(case: Case, x_T: Tensor) -> Tensor:
    """The flow from `x_T` with the final jump: Runge-Kutta in the angle, its steps doubled until nothing changes.

    Raises:
        RuntimeError: It still changes at `MOST` steps.
    """
    solver = Angle(RK4(), case.model.data_std)
    before, steps = None, 24
    while steps <= MOST:
        sampler = SDESampler(case.sde, case.model, shape=case.shape, solver=solver, steps=steps, grid=resolved)
        x = sampler.sample(len(x_T), x_T=x_T, cond=case.cond)
        if before is not None and error(before, x) < CONVERGED:
            return x
        before, steps = x, 2 * steps
    raise RuntimeError(f"the flow of {case.name} still changes at {MOST} steps")


def resolved(sde: GaussianSDE, steps: int) -> Tensor:
    r"""A grid dense everywhere: four parts of five uniform in $\lambda$, above -8, and one in the angle.

    A network that is told $\lambda$ varies with it however little data are left, where the angle stands still.
    """
    low, high = sde.ends()
    first = max(low, -8.0)
    lam = torch.linspace(first, high, 20_001, dtype=torch.float64)
    turn = torch.atan(torch.exp(-lam))
    share = 0.2 * (turn[0] - turn) / (turn[0] - turn[-1]) + 0.8 * (lam - first) / (high - first)
    inside = torch.linspace(0, 1, steps + 1 if first == low else steps, dtype=torch.float64)
    times = sde.time_of(torch.from_numpy(np.interp(inside.numpy(), share.numpy(), lam.numpy())))
    ends = times.new_tensor([sde.t_max]), times.new_tensor([sde.t_min])
    return torch.cat([ends[0], times[1:-1] if first == low else times[:-1], ends[1]])


def error(x: Tensor, exact: Tensor) -> float:
    """Root mean square distance per coordinate, in standard deviations of the exact samples."""
    return float((x - exact).square().mean().sqrt() / exact.std())


def components(d: int, k: int, width: float, seed: int, std: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    r"""Weights, means and variances of a random mixture in float64, of standard deviation `std` per coordinate.

    Coordinate `i` has a scale of about $(1 + i)^{-1/2}$, as pixels of images have in their principal axes.

    Args:
        d: Dimensions.
        k: Components.
        width: Standard deviation of a component relative to that of the whole, give or take a factor of 1.6.
        seed: The seed.
        std: The standard deviation of the whole.
    """
    gen = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, d + 1, dtype=torch.float64) ** -0.5
    means = torch.randn(k, d, generator=gen, dtype=torch.float64) * spectrum
    widths = width * torch.exp(torch.rand(k, d, generator=gen, dtype=torch.float64) - 0.5) * spectrum
    weights = torch.rand(k, generator=gen, dtype=torch.float64) + 0.5
    weights /= weights.sum()
    centre = (weights[:, None] * means).sum(0)
    total = (weights[:, None] * ((means - centre) ** 2 + widths**2)).sum(0).mean().sqrt()
    return weights, (means - centre) * std / total, (widths * std / total) ** 2


def mixture(name: str, d: int, k: int, width: float, seed: int, std: float = 1.0, sde: GaussianSDE = CHAIN) -> Case:
    """A random mixture."""
    model = GaussianMixture(sde, *components(d, k, width, seed, std))
    return Case(name, sde, model, (d,), lambda n, s: model.sample(n, seed=s))


def narrow_ring(name: str, modes: int, width: float, sde: GaussianSDE = CHAIN) -> Case:
    """Modes on a circle in the plane, the whole of unit variance per coordinate."""
    turn = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    means = math.sqrt(2 * (1 - width**2)) * torch.stack([turn.cos(), turn.sin()], 1)
    model = GaussianMixture(sde, torch.ones(modes, dtype=torch.float64), means, width**2)
    return Case(name, sde, model, (2,), lambda n, s: model.sample(n, seed=s))


def images(seed: int) -> tuple[Tensor, Tensor]:
    """The digits to train on, standardised, `(1437, 1, 8, 8)` in float32, with fresh dequantisation, and labels."""
    found = data.digits("train", seed=seed)
    return (found.images - found.mean) / found.std, found.labels


def blurred_digits(name: str, width: float, part: slice, seed: int, sde: GaussianSDE = CHAIN) -> Case:
    """Some of the digits, blurred by a kernel: 64 dimensions, hundreds of modes."""
    model = KernelDensity(sde, images(seed)[0][part].flatten(1).double(), width)
    return Case(name, sde, model, (64,), lambda n, s: model.sample(n, seed=s))


def guided_mixture(name: str, scale: float, label: int, seed: int) -> Case:
    """Ten classes of four components each in 16 dimensions, under guidance."""
    inner = ClassMixture(CHAIN, *components(16, 40, 0.35, seed), 10)
    return Case(name, CHAIN, Guided(inner, scale), (16,), cond={"label": label})


def network(name: str, net: MLP | UNet, sde: GaussianSDE, kind: Parametrisation, steps: int, of: str) -> Denoiser:
    """A network that is trained now, or was: by the seed that its name ends with, on the data of that seed.

    Args:
        name: `what-seed`, the folder in the cache.
        net: The network to train.
        sde: The process.
        kind: What it answers.
        steps: Training steps.
        of: The data: moons, ring, mixture, digits (vectors) or images (with labels where the net takes them).
    """
    folder, seed = CACHE / name, int(name.rsplit("-", 1)[1])
    if not (folder / "model.json").exists():
        x0, labels = toys(of, seed)
        model = Network(net, sde, kind, shape=x0.shape[1:])
        given = {"label": labels} if net.config["classes"] else {}
        size = 256 if x0.ndim == 2 else 64
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "column")  # the pixels of digits are of unit scale together only
            run = train(model, x0, steps=steps, recipe=Recipe(batch_size=size, lr=3e-3), seed=seed, cond=given)
        save_checkpoint(folder, run.model)
    return load_checkpoint(folder).model


def toys(of: str, seed: int) -> tuple[Tensor, Tensor | None]:
    """Training data of unit scale, in float32, and labels."""
    if of in ("images", "digits"):
        x0, labels = images(seed)
        return (x0, labels) if of == "images" else (x0.flatten(1), None)
    if of == "mixture":
        return GaussianMixture(CHAIN, *components(16, 12, 0.4, seed)).sample(20_000, seed=seed).float(), None
    x0 = data.moons(20_000, seed=seed) if of == "moons" else data.ring(20_000, seed=seed)
    return (x0 - x0.mean(0)) / x0.std(), None


def trained(name: str, net: MLP | UNet, kind: str, steps: int, of: str, sde: GaussianSDE = CHAIN) -> Case:
    """A network and the data it was trained on."""
    model, seed = network(name, net, sde, getattr(predict, kind), steps, of), int(name.rsplit("-", 1)[1])
    return Case(name, sde, model, tuple(model.shape or ()), lambda n, s: fresh(of, seed, n, s), exact=False)


def fresh(of: str, law: int, n: int, seed: int) -> Tensor:
    """True samples: new draws of a toy, or of the digits, `n` of the few there are, under fresh dequantisation."""
    if of == "mixture":
        return GaussianMixture(CHAIN, *components(16, 12, 0.4, law)).sample(n, seed=seed).float()
    if of in ("images", "digits"):
        x0, gen = toys(of, seed)[0], torch.Generator().manual_seed(seed)
        return x0[torch.randint(len(x0), (n,), generator=gen)]
    draw = data.moons if of == "moons" else data.ring
    whole, x0 = draw(20_000, seed=law), draw(n, seed=seed)
    return (x0 - whole.mean(0)) / whole.std()


def networks(seed: int, scales: tuple[float, float]) -> list[Case]:
    """One network of each kind, and two guided ones, trained by this seed: about a minute."""
    torch.manual_seed(seed)  # the initial weights
    wide = dict(hidden=96, layers=3)
    unet = trained(f"images-v-{seed}", UNet(1, width=16, classes=10, label_drop=0.2), "v", 500, "images")
    return [
        trained(f"moons-noise-{seed}", MLP(2, **wide), "noise", 1200, "moons"),
        trained(f"ring-velocity-{seed}", MLP(2, **wide), "velocity", 1200, "ring", FlowSDE()),
        trained(f"mixture-v-{seed}", MLP(16, features=0, **wide), "v", 1200, "mixture"),
        trained(f"digits-edm-{seed}", MLP(64, features=0, **wide), "edm", 1200, "digits", EDMSDE()),
        trained(f"images-noise-{seed}", UNet(1, width=16), "noise", 500, "images"),
        unet,
        *(
            Case(f"images-v-{seed} w={w}", CHAIN, Guided(unet.model, w), unet.shape, cond={"label": k}, exact=False)
            for k, w in enumerate(scales)
        ),
    ]


def guided_noise(seed: int, scale: float) -> Case:
    """A network of the noise, trained by this seed, under guidance."""
    inner = trained(
        f"images-guided-noise-{seed}", UNet(1, width=16, classes=10, label_drop=0.2), "noise", 500, "images"
    )
    model = Guided(inner.model, scale)
    return Case(f"images-noise-{seed} w={scale}", CHAIN, model, inner.shape, cond={"label": 2}, exact=False)


def selection(*, nets: bool = True) -> list[Case]:
    """What the defaults are chosen on; without networks, which would have to be trained, if so asked."""
    return [
        mixture("gmm2-wide", 2, 3, 0.5, seed=100),
        mixture("gmm2", 2, 8, 0.2, seed=101),
        mixture("gmm8", 8, 12, 0.3, seed=102),
        mixture("gmm8-half", 8, 16, 0.2, seed=103, std=0.5),
        mixture("gmm16", 16, 16, 0.35, seed=104),
        mixture("gmm32", 32, 30, 0.3, seed=105),
        mixture("gmm8-edm", 8, 12, 0.3, seed=106, std=0.5, sde=EDMSDE()),
        mixture("gmm16-flow", 16, 16, 0.3, seed=107, sde=FlowSDE()),
        narrow_ring("ring8", 8, 0.1),
        blurred_digits("digits-kde", 0.3, slice(0, 400), seed=108),
        guided_mixture("guided-1.5", 1.5, 0, seed=109),
        guided_mixture("guided-4", 4.0, 1, seed=110),
        guided_mixture("guided-7.5", 7.5, 2, seed=111),
        *((*networks(112, (2.0, 5.0)), guided_noise(113, 4.0)) if nets else ()),
    ]


def held_out(*, nets: bool = True) -> list[Case]:
    """What the choice is then tried on."""
    return [
        mixture("gmm2", 2, 5, 0.3, seed=200),
        mixture("gmm4", 4, 10, 0.2, seed=201),
        mixture("gmm8", 8, 20, 0.4, seed=202),
        mixture("gmm16", 16, 10, 0.25, seed=203),
        mixture("gmm16-double", 16, 20, 0.4, seed=204, std=2.0),
        mixture("gmm32", 32, 40, 0.4, seed=205),
        mixture("gmm8-vp", 8, 10, 0.25, seed=206, sde=VPSDE()),
        mixture("gmm16-edm", 16, 12, 0.3, seed=207, std=0.5, sde=EDMSDE()),
        narrow_ring("ring6", 6, 0.08),
        blurred_digits("digits-kde", 0.4, slice(400, 900), seed=208),
        guided_mixture("guided-1", 1.0, 3, seed=209),
        guided_mixture("guided-3", 3.0, 4, seed=210),
        guided_mixture("guided-7.5", 7.5, 5, seed=211),
        *((*networks(212, (1.5, 4.0)), guided_noise(213, 6.0)) if nets else ()),
    ]


def benchmark() -> list[Case]:
    """What is published: neither of the other lists."""
    return [
        mixture("gmm2", 2, 6, 0.25, seed=300),
        mixture("gmm8", 8, 14, 0.3, seed=301),
        mixture("gmm16", 16, 16, 0.3, seed=302),
        mixture("gmm32", 32, 30, 0.35, seed=303),
        narrow_ring("ring8", 8, 0.12),
        blurred_digits("digits-kde", 0.35, slice(900, 1400), seed=304),
        guided_mixture("guided-1", 1.0, 6, seed=305),
        guided_mixture("guided-2.5", 2.5, 7, seed=306),
        guided_mixture("guided-7.5", 7.5, 8, seed=307),
        *networks(308, (1.5, 4.0)),
    ]
