"""Claim: nothing depends on torch's defaults, of device or dtype, and no solve moves a global random state."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from torch import Tensor, nn

import sde_diffusion
from sde_diffusion import EDMSDE, VPSDE, Clipped, DiscreteVPSDE, Matched, Network, SDESampler, grids, losses, predict
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.likelihood import Density, Estimate, Method, Orthogonal, continuous_elbo, elbo
from sde_diffusion.noise import BrownianPath
from sde_diffusion.sde import GaussianSDE
from sde_diffusion.solvers import DDIM, RK4, DormandPrince, Heun, Solver, Torchdiffeq, Torchsde

VP = VPSDE()
MAKERS = "tensor as_tensor zeros ones full arange linspace logspace empty eye rand randn randint randperm"
ABOVE = {"cli", "demo", "testing"}  # folders that run on the CPU, as the command line does
F64 = torch.float64
X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


class Net(nn.Module):
    """Works wherever its state is."""

    def __init__(self, dtype: torch.dtype = F64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5, -0.2], [0.1, 0.6]], dtype=dtype, device="cpu"))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return (x @ self.weight + t[:, None]).sin()


class Pendulum(zoo.DoubleWell):
    """A general SDE whose reverse does not explode."""

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return -x.sin()


@contextmanager
def defaults(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Other defaults of torch: of the device "meta" no number could be read."""
    before = torch.get_default_dtype()
    torch.set_default_device(device)
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


def same_under_other_defaults(work: Callable[[], Tensor]) -> None:
    wanted = work()
    for device, dtype in (("meta", torch.float32), ("meta", F64)):
        with defaults(device, dtype):
            found = work()
        assert found.device.type == "cpu"
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted), (device, dtype)


@contextmanager
def randomness_left_alone() -> Iterator[None]:
    """Fails if a global random state has moved."""
    states = torch.random.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002 - the claim
    yield
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert str(np.random.get_state()) == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]


@pytest.mark.parametrize("solver", zoo.quick(zoo.SOLVERS), ids=zoo.name)
def test_every_solver_draws_the_same_whatever_the_defaults_of_torch(solver: Solver) -> None:
    grid = zoo.grid(VP, solver, 3)

    def work() -> Tensor:
        return SDESampler(VP, model(), solver=solver, grid=grid).sample(3, seed=0)

    with randomness_left_alone():
        same_under_other_defaults(work)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("sde", zoo.SDES, ids=zoo.name)
def test_so_does_every_process_on_its_default_grid(sde: GaussianSDE, dtype: torch.dtype) -> None:
    def work() -> Tensor:
        made: GaussianSDE = DiscreteVPSDE.linear() if isinstance(sde, DiscreteVPSDE) else type(sde)()
        model = Network(Net(dtype), made, predict.EDM(0.5), shape=(2,))
        return SDESampler(made, model, steps=4).sample(3, seed=0)

    with randomness_left_alone():
        same_under_other_defaults(work)


@pytest.mark.parametrize(
    "solver", zoo.quick([s for s in zoo.SOLVERS if s.facts.needs.__name__ == "ReverseSDE"]), ids=zoo.name
)
def test_so_does_a_general_sde(solver: Solver) -> None:
    def work() -> Tensor:
        net = Net()
        s = SDESampler(Pendulum(), lambda x, t: -net(x, t), solver=solver, steps=3, shape=(2,))
        return s.sample(x_T=0.1 * X, seed=0)

    with randomness_left_alone():
        same_under_other_defaults(work)


def model() -> Network:
    return Network(Net(), VP, predict.edm, shape=(2,))


def mixture() -> GaussianMixture:
    means = torch.tensor([[0.5, 0.0], [-0.5, 0.2]], dtype=F64, device="cpu")
    return GaussianMixture(VP, torch.tensor([0.4, 0.6], dtype=F64, device="cpu"), means, 0.1)


OTHER: dict[str, Callable[[], Tensor]] = {
    "log_prob": lambda: SDESampler(VP, model()).log_prob(X, method=Method(RK4(), steps=4)).value,
    "log_prob by adaptive steps": lambda: (
        SDESampler(VP, model()).log_prob(X, method=Method(DormandPrince(1e-3, 1e-3))).value
    ),
    "log_prob by torchdiffeq": lambda: (
        SDESampler(VP, model()).log_prob(X, method=Method(Torchdiffeq("rk4"), steps=3)).value
    ),
    "log_prob by probes": lambda: (
        SDESampler(VP, model()).log_prob(X, method=Method(RK4(), steps=4, trace=Orthogonal(1)), seed=0).value
    ),
    "log_prob of data": lambda: (
        SDESampler(VP, mixture()).log_prob(X, density=Density(level=0.0), method=Method(RK4(), steps=4)).value
    ),
    "log_prob of a general SDE": lambda: (
        SDESampler(zoo.DoubleWell(), lambda x, t: -x, shape=(2,)).log_prob(0.1 * X, method=Method(RK4(), steps=4)).value
    ),
    "samples with their density": lambda: (
        SDESampler(VP, model(), solver=Heun(), steps=3).sample_with_log_prob(3, seed=0)[1].value
    ),
    "a bound": lambda: continuous_elbo(model(), X, seed=0, estimate=Estimate(levels=4)).total,
    "a bound of a chain": lambda: elbo(model(), X, times=[0.1, 0.5, 0.9], seed=0, estimate=Estimate(levels=2)).total,
    "a bound with a matched prior": lambda: continuous_elbo(model(), X, prior=Matched(0.1, 0.9), seed=0).total,
    "an encoding": lambda: SDESampler(VP, model(), steps=4).encode(X),
    "a Brownian path": lambda: SDESampler(VP, model(), solver=DDIM(1.0), steps=4).sample(2, seed=0, noise=BrownianPath),
    "another process": lambda: SDESampler(EDMSDE(0.02, 80.0), model().on(EDMSDE(0.02, 80.0)), steps=3).sample(
        2, seed=0
    ),
    "a clipped model": lambda: SDESampler(VP, Clipped(model()), steps=4).sample(2, seed=0),
    "an exact model": lambda: SDESampler(VP, mixture(), steps=4).sample(2, seed=0),
    "draws of an exact model": lambda: mixture().sample(4, seed=0),
    "a loss": lambda: losses.denoising_score_matching(
        model(), X, generator=torch.Generator().manual_seed(0), times=losses.uniform_log_snr, weight=losses.MinSNR()
    ).detach(),
    **{
        f"grids.{f.__name__}": partial(f, EDMSDE(), 5)
        for f in (grids.uniform, grids.angle, grids.log_snr, grids.karras)
    },
    **{f"grids.{f.__name__}": partial(f, DiscreteVPSDE.linear(), 5) for f in (grids.leading, grids.trailing)},
}


def test_what_a_network_draws_from_the_global_stream_goes_on_through_a_solve_by_torchsde() -> None:
    def net(x: Tensor, t: Tensor) -> Tensor:
        return x + torch.randn(x.shape, dtype=x.dtype)

    solver = Torchsde("euler", 2)
    s = SDESampler(VP, Network(net, VP, predict.noise, shape=(2,)), solver=solver, grid=zoo.grid(VP, solver, 2))
    torch.manual_seed(0)
    assert not torch.equal(s.sample(x_T=X, seed=0), s.sample(x_T=X, seed=0))
    *_, now = s.iterate(x_T=X, seed=0)
    after = torch.random.get_rng_state()
    torch.manual_seed(0)
    for _ in range(3 * now.nfe):
        torch.randn(X.shape, dtype=X.dtype)
    assert torch.equal(torch.random.get_rng_state(), after)


def test_every_tensor_that_the_library_makes_is_given_its_device() -> None:
    makers = set(MAKERS.split())
    missing = []
    root = Path(sde_diffusion.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] in ABOVE or path.stem in {"plots", "memory", "registry", "standardise"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in makers:
                of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
                if of_torch and not {"device", None} & {k.arg for k in node.keywords}:
                    missing.append(f"{path.name}:{node.lineno}: torch.{node.func.attr} without device=")
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("name", OTHER)
def test_so_does_all_else_that_makes_tensors_of_its_own(name: str) -> None:
    with randomness_left_alone():
        same_under_other_defaults(OTHER[name])
