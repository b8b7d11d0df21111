"""Claim: the stochastic solvers are the methods of their papers, of the strong order they name, on one Brownian path.

Oracles are textbook loops written here, closed forms, and the response to unit impulses (`moments.response`): no Monte
Carlo but for the law of the path itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
import zoo
from scipy import integrate as quadrature
from torch import Tensor

from sde_diffusion import EDMSDE, VESDE, VPSDE, DiscreteVPSDE, FlowSDE, Network, SDESampler, grids, integrate
from sde_diffusion.denoiser.analytic import Gaussian, isotropic_mixture
from sde_diffusion.noise import BrownianPath, NoiseSource, Streams
from sde_diffusion.sampler.moments import response
from sde_diffusion.sde import GaussianSDE
from sde_diffusion.solvers import (
    DDIM,
    ERSDE,
    RK4,
    SRA1,
    Angle,
    Churn,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    Langevin,
    PredictorCorrector,
    Renoise,
    Restart,
    ReverseDiffusion,
    SASolver,
    SDEDPMSolverPP,
    Solver,
    Torchsde,
)
from sde_diffusion.solvers.equation import GaussianReverseSDE, ReverseSDE
from sde_diffusion.solvers.quadrature import lagrange_integrals
from sde_diffusion.testing import orders

F64 = torch.float64


class Given(NoiseSource):
    """Draws of a list, one after the other."""

    def __init__(self, draws: list[Tensor]) -> None:
        super().__init__(tuple(draws[0].shape[1:]), F64, "cpu")
        self.draws, self.used = draws, 0

    def prior(self) -> Tensor:
        raise NotImplementedError

    def __call__(self, t: float, s: float) -> Tensor:
        self.used += 1
        return self.draws[self.used - 1]


def normals(n: int, rows: int = 4, d: int = 3) -> list[Tensor]:
    return list(torch.randn(n, rows, d, generator=torch.Generator().manual_seed(5), dtype=F64))


def mixture(sde: GaussianSDE):
    return isotropic_mixture(sde, [[-1.0, 0.0, 0.3], [1.0, 0.3, 0.0], [0.2, -1.0, 0.1]], 0.4)


def run(model, solver: Solver, x: Tensor, times, noise: NoiseSource | None = None) -> tuple[Tensor, int]:
    eq = GaussianReverseSDE(model)
    *_, last = integrate(eq, solver, x, times, noise)
    return last.x, last.nfe


# ---------------------------------------------------------------------------------- the reverse-diffusion predictor


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_reverse_diffusion_on_ve_is_the_predictor_of_the_paper(eta: float) -> None:
    sde = VESDE(0.05, 5.0)
    model, z = mixture(sde), normals(12)
    times = grids.uniform(sde, 12).tolist()
    x = y = 5 * normals(1)[0]
    sigma = [float(sde.sigma(torch.tensor(t, dtype=F64))) for t in times]
    for k, (t, (a, b)) in enumerate(zip(times[:-1], pairwise(sigma), strict=True)):
        g2 = a * a - b * b
        score = model.score(y, t)
        y = y + g2 * score + math.sqrt(g2) * z[k] if eta else y + 0.5 * g2 * score
    out, _ = run(model, ReverseDiffusion(eta), x, times, Given(z))
    torch.testing.assert_close(out, y, rtol=0, atol=1e-11)


def test_reverse_diffusion_on_the_discrete_chain_is_the_predictor_of_the_paper() -> None:
    sde = DiscreteVPSDE.linear(20, scaled=False)
    model, z = mixture(sde), normals(19)
    alpha = sde.alpha(torch.arange(20, dtype=F64)).tolist()
    x = y = normals(1)[0]
    for k, i in enumerate(range(19, 0, -1)):
        beta = 1 - (alpha[i] / alpha[i - 1]) ** 2
        y = (2 - math.sqrt(1 - beta)) * y + beta * model.score(y, float(i)) + math.sqrt(beta) * z[k]
    out, _ = run(model, ReverseDiffusion(), x, [float(i) for i in range(19, -1, -1)], Given(z))
    torch.testing.assert_close(out, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sde", zoo.SMOOTH_SDES, ids=zoo.name)
def test_reverse_diffusion_without_noise_has_order_one(sde: GaussianSDE) -> None:
    model = orders.gaussian(sde)
    x, t, s = orders.states(sde, 16)
    steps = [32, 64, 128, 256]
    errors = [float((orders.solve(model, ReverseDiffusion(0.0), x, n) - model.flow(x, t, s)).norm()) for n in steps]
    assert 0.85 <= orders.slope(steps, errors) <= 1.15, errors


# ------------------------------------------------------------------------------------------------------------- ER-SDE


def textbook_er_sde(model, x: Tensor, times: list[float], order: int, phi: Callable[[float], float], z) -> Tensor:
    """The method of the paper, as its authors' code has it, on `x / alpha`; its integrals by adaptive quadrature."""
    levels = model.sde.levels(times)
    x = x / levels[0].alpha
    known: list[tuple[float, Tensor]] = []
    for k, (t, s) in enumerate(pairwise(levels)):
        a, b = t.sigma / t.alpha, s.sigma / s.alpha
        data = model(t.alpha * x, t.t).data
        known.insert(0, (a, data))
        ratio = phi(b) / phi(a)
        new = ratio * x + (1 - ratio) * data
        if order > 1 and k > 0:
            slope = (known[0][1] - known[1][1]) / (known[0][0] - known[1][0])
            area = quadrature.quad(lambda v: 1 / phi(v), b, a, epsabs=0, epsrel=1e-12)[0]
            new = new + (b - a + phi(b) * area) * slope
            if order > 2 and k > 1:
                before = (known[1][1] - known[2][1]) / (known[1][0] - known[2][0])
                bend = 2 * (slope - before) / (known[0][0] - known[2][0])
                area = quadrature.quad(lambda v: (v - a) / phi(v), b, a, epsabs=0, epsrel=1e-12)[0]  # noqa: B023
                new = new + ((b - a) ** 2 / 2 + phi(b) * area) * bend
        x = new + math.sqrt(max(b * b - a * a * ratio * ratio, 0.0)) * z[k]
    return levels[-1].alpha * x


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), FlowSDE()], ids=zoo.name)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("offset", [10.0, math.inf])
def test_er_sde_is_the_method_of_the_paper(offset: float, order: int, sde: GaussianSDE) -> None:
    def phi(v: float) -> float:
        return v if offset == math.inf else v * (math.exp(v**0.3) + 10)

    model, z = mixture(sde), normals(10) if offset < math.inf else [torch.zeros(4, 3, dtype=F64)] * 10
    times = zoo.between(sde, 1.5, 0.05, 10).tolist()
    x = sde.levels(times[:1])[0].sigma * normals(1)[0]
    out, nfe = run(model, ERSDE(order, offset=offset), x, times, Given(z))
    torch.testing.assert_close(out, textbook_er_sde(model, x, times, order, phi, z), rtol=0, atol=1e-10)
    assert nfe == 10


def test_er_sde_of_order_one_without_noise_is_ddim() -> None:
    model, times = mixture(VPSDE()), zoo.between(VPSDE(), 1.5, 0.05, 6)
    x = normals(1)[0]
    one, _ = run(model, ERSDE(1, offset=math.inf), x, times)
    torch.testing.assert_close(one, run(model, DDIM(), x, times)[0], rtol=0, atol=1e-13)


def test_er_sde_starts_from_pure_noise() -> None:
    # Where alpha = 0 the noise function is infinite, and the first step draws the state afresh around the data.
    sde = FlowSDE()
    model, z = mixture(sde), normals(2)
    x = normals(1)[0]
    s = 0.9
    eq = GaussianReverseSDE(model)
    out, _ = ERSDE(3).step(eq, x, eq.level(1.0), eq.level(s), None, Given(z))
    torch.testing.assert_close(out, (1 - s) * model(x, 1.0).data + s * z[0], rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------- strong orders


# The solvers that are not yet in `test_order`, on every SDE; the rest on two.
STRONG = [
    *((solver, sde) for solver in (SRA1(), ReverseDiffusion(), DDIM(1.0), ERSDE(3)) for sde in zoo.SMOOTH_SDES),
    *(
        (solver, sde)
        for solver in (SRA1(0.5), ReverseDiffusion(0.5), DDIM(0.5), SDEDPMSolverPP(2), SASolver(2, 2), ERSDE(1))
        for sde in (EDMSDE(), FlowSDE())
    ),
]


def strong_errors(model, solver: Solver, x: Tensor, path: Callable[[], NoiseSource], steps, fine=512) -> list[float]:
    exact = orders.solve(model, solver, x, fine, path())
    return [float((orders.solve(model, solver, x, n, path()) - exact).square().mean().sqrt()) for n in steps]


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "sde"), STRONG, ids=zoo.name)
def test_every_stochastic_solver_has_its_strong_order_on_one_brownian_path(solver: Solver, sde: GaussianSDE) -> None:
    # In any smooth clock a unit increment of the path differs from the weighted one of an exponential solver by the
    # length of the step, which is what strong order 1 allows. The part without noise is of order 2 for some.
    model = orders.gaussian(sde)
    x, t, s = orders.states(sde, 16)
    steps, order = [8, 16, 32], 1.5 if isinstance(solver, SRA1) else 1.0
    errors = strong_errors(model, solver, x, lambda: BrownianPath(range(16), (3,), F64, "cpu", (t, s), 20), steps)
    assert order - 0.15 <= orders.slope(steps, errors) <= 2.3, errors


class WithoutArea(NoiseSource):
    """A path whose space-time areas are fresh draws: right in law, and not those of the path."""

    def __init__(self, path: BrownianPath) -> None:
        super().__init__(path.shape, path.dtype, path.device)
        self.path = path

    def prior(self) -> Tensor:
        return self.path.prior()

    def __call__(self, t: float, s: float) -> Tensor:
        return self.path(t, s)


class Wavy(zoo.DoubleWell):
    """`dx = sin(3 x) dt + g dw` with a diffusion per coordinate: nothing is linear."""

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x)

    def diffusion(self, t: Tensor) -> Tensor:
        return (1 + t) * torch.tensor([0.5, 1.0], dtype=F64)


def wavy_errors(solver: Solver, source: Callable[[BrownianPath], NoiseSource], steps: list[int]) -> list[float]:
    def at(n: int) -> Tensor:
        path = BrownianPath(range(100), (2,), F64, "cpu", (1.0, 0.0), 20)
        eq = ReverseSDE(Wavy(), lambda x, t: -x / (1 + t[:, None]))
        *_, last = integrate(eq, solver, torch.zeros(100, 2, dtype=F64), torch.linspace(1, 0, n + 1), source(path))
        return last.x

    exact = at(1024)
    return [float((at(n) - exact).square().mean().sqrt()) for n in steps]


@pytest.mark.slow
def test_sra1_has_strong_order_three_halves_on_an_sde_that_is_not_linear_and_only_with_the_area_of_the_path() -> None:
    steps = [16, 32, 64, 128]
    good = wavy_errors(SRA1(), lambda path: path, steps)
    blind = wavy_errors(SRA1(), WithoutArea, steps)
    euler = wavy_errors(EulerMaruyama(), lambda path: path, steps)
    fits = [orders.slope(steps, errors) for errors in (good, blind)]
    print(f"SRA1 {fits[0]:.2f}, fresh areas {fits[1]:.2f}, {euler[-1] / good[-1]:.0f}")
    assert 1.35 <= orders.slope(steps, good) <= 1.8
    assert 0.7 <= orders.slope(steps, blind) <= 1.2
    assert 0.85 <= orders.slope(steps, euler) <= 1.2
    assert good[-1] < 0.1 * euler[-1]


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("sde", zoo.SMOOTH_SDES, ids=zoo.name)
def test_sra1_has_weak_order_two(sde: GaussianSDE, eta: float) -> None:
    found = orders.weak(SRA1(eta), sde, (32, 64, 128))
    assert 1.85 <= orders.slope(found.steps, found.errors) <= 3.2, found


def test_sra1_is_the_srk_of_torchsde_on_the_same_path() -> None:
    # torchsde's steps are a hair longer, so that the path is read a hair elsewhere.
    model, x = mixture(VPSDE()), normals(1)[0]
    path = [BrownianPath(range(4), (3,), F64, "cpu", (0.7, 0.1)) for _ in range(2)]
    ours, nfe = run(model, SRA1(0.8), x, torch.linspace(0.7, 0.1, 11, dtype=F64), path[0])
    theirs, _ = run(model, Torchsde("srk", 10, 0.8), x, [0.7, 0.1], path[1])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    assert nfe == 20


def test_euler_maruyama_is_that_of_torchsde_on_the_same_path() -> None:
    model, x = mixture(VPSDE()), normals(1)[0]
    path = [BrownianPath(range(4), (3,), F64, "cpu", (0.7, 0.1)) for _ in range(2)]
    ours, _ = run(model, EulerMaruyama(0.8), x, torch.linspace(0.7, 0.1, 11, dtype=F64), path[0])
    theirs, _ = run(model, Torchsde("euler", 10, 0.8), x, [0.7, 0.1], path[1])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


# ------------------------------------------------------------------------------------------------------ Brownian paths


def path(d: int = 3, seeds: range = range(3), span: tuple[float, float] = (3.0, 1.0)) -> BrownianPath:
    return BrownianPath(seeds, (d,), F64, "cpu", span)


def increment_and_area(noise: BrownianPath, t: float, s: float) -> tuple[Tensor, Tensor]:
    h = abs(s - t)
    return noise(t, s) * math.sqrt(h), noise.area(t, s) * math.sqrt(h / 12)


@pytest.mark.parametrize(("t", "m", "s"), [(3.0, 2.0, 1.0), (2.7, 2.2, 1.4), (4.4, 2.9, 0.3), (1.5, 1.4999, 1.4997)])
def test_increment_and_area_of_a_step_follow_from_those_of_its_parts(t: float, m: float, s: float) -> None:
    # int_t^s (W_u - W_t) du = h (W / 2 + H) over the whole, and is the sum over the parts.
    noise = path()
    (w, area), (w1, area1), (w2, area2) = (increment_and_area(noise, *ends) for ends in ((t, s), (t, m), (m, s)))
    a, b = t - m, m - s
    total = a * (w1 / 2 + area1) + b * (w1 + w2 / 2 + area2)
    torch.testing.assert_close(w1 + w2, w, rtol=0, atol=1e-12)
    torch.testing.assert_close(total / (a + b) - w / 2, area, rtol=0, atol=1e-9)


def test_the_area_of_a_step_is_that_of_the_path_it_runs_along() -> None:
    # The mean of the path over the step, from 513 points of it, against what the area says: the standard error of the
    # trapezoidal rule is sqrt(1.3 / 12) / 512 = 6e-4.
    noise, (t, s) = path(), (2.6, 1.3)
    w, area = increment_and_area(noise, t, s)
    times = torch.linspace(t, s, 513, dtype=F64).tolist()
    values = torch.stack([noise(a, b) * math.sqrt(a - b) for a, b in pairwise(times)]).cumsum(0)
    mean = (values.sum(0) - 0.5 * values[-1]) / 512
    torch.testing.assert_close(mean - 0.5 * w, area, rtol=0, atol=3e-3)


@pytest.mark.parametrize("step", [(3.0, 1.0), (2.7, 1.4), (2.0, 1.99), (4.1, 3.4), (0.7, -0.6)])
def test_increment_and_area_are_unit_normal_and_independent(step: tuple[float, float]) -> None:
    d = 20_000
    noise = path(d, range(1))
    w, area = noise(*step), noise.area(*step)
    se = 1 / math.sqrt(d)
    moments = [w.mean(), area.mean(), (w.var() - 1) / math.sqrt(2), (area.var() - 1) / math.sqrt(2), (w * area).mean()]
    print([f"{float(m) / se:.2f}" for m in moments], "standard errors")
    assert max(abs(float(m)) for m in moments) < 4 * se


def test_a_path_is_the_same_in_float32_and_in_any_order() -> None:
    single = BrownianPath(range(3), (3,), torch.float32, "cpu", (3.0, 1.0))
    late = path()
    late.area(1.7, 1.2)
    assert single.area(2.5, 2.0).dtype == torch.float32
    torch.testing.assert_close(single.area(2.5, 2.0).double(), late.area(2.5, 2.0), rtol=0, atol=1e-6)
    assert torch.equal(late.area(2.5, 2.0), path().area(2.5, 2.0))


def test_areas_of_a_plain_stream_are_draws_of_their_own() -> None:
    first, second = Streams([0], (4,), F64, "cpu"), Streams([0], (4,), F64, "cpu")
    assert torch.equal(first(1.0, 0.5), second(0.0, 0.0))
    assert torch.equal(first.area(1.0, 0.5), second(0.0, 0.0))
    assert first.fork(1.0) is first
    assert first.beside(1.0, 0.5, 1) is first


def test_paths_beside_a_path_are_independent_of_it_of_each_other_and_of_its_forks() -> None:
    d = 4000
    noise = path(d, range(1))
    beside, deeper = noise.beside(2.0, 1.5, 1), noise.beside(2.0, 1.5, 2)
    draws = [noise(2.0, 1.5), beside(0.0, 0.0), beside(0.0, 0.0), deeper(0.0, 0.0), noise.fork(1)(2.0, 1.5)]
    draws += [noise.fork(1, 2, 0)(2.0, 1.5), noise.fork(0.5)(2.0, 1.5), noise.area(2.0, 1.5), noise(1.5, 1.5)]
    z = torch.stack([v[0] for v in draws])
    correlation = (z @ z.T / d - torch.eye(len(z), dtype=F64)).abs()
    assert float(correlation.max()) < 5 * math.sqrt(2 / d)
    assert torch.equal(noise.beside(2.0, 1.5, 1)(0.0, 0.0), draws[1])  # a function of the path, step, key and number


COHERENT: list[Callable[[int], Solver]] = [
    lambda n: EulerMaruyama(),
    lambda n: Angle(EulerMaruyama()),
    lambda n: SRA1(),
    lambda n: ReverseDiffusion(),
    lambda n: DDIM(1.0),
    lambda n: DDIM(0.5),
    lambda n: DDIM(1.0, variance="forward"),
    lambda n: ERSDE(3),
    lambda n: SDEDPMSolverPP(2),
    lambda n: SASolver(2, 2),
    lambda n: Torchsde("srk", n),
    lambda n: Churn(Heun(), 2 / n),
    lambda n: Churn(DDIM(1.0), 2 / n),
    lambda n: PredictorCorrector(DDIM(1.0), Langevin(2, 0.1 * math.sqrt(20 / n))),
    lambda n: PredictorCorrector(DPMSolverPP(2), Renoise(DDIM(1.0), 2 / n)),
    lambda n: Restart(Heun()),
    lambda n: Restart(DDIM(1.0)),
    lambda n: Restart(SDEDPMSolverPP(2)),
]


@pytest.mark.parametrize("make", COHERENT, ids=lambda make: repr(make(20)))
def test_one_path_gives_close_pictures_at_20_and_at_40_steps_with_every_stochastic_solver(make) -> None:
    # Far closer than two paths are. What a solver adds at every step is given half of it at twice the steps.
    sde = VPSDE()
    model = mixture(sde)

    def draw(n: int, seed: int = 0) -> Tensor:
        solver = make(n)
        grid = zoo.grid(sde, solver, 1 if isinstance(solver, Torchsde) else n)
        return SDESampler(sde, model, solver=solver, grid=grid).sample(48, seed=seed, noise=BrownianPath)

    twenty, forty, other = draw(20), draw(40), draw(40, 1000)
    close, far = ((a - forty).norm(dim=1).median() for a in (twenty, other))
    print(f"{float(close / far):.3f}")
    assert float(close) < 0.3 * float(far)


@pytest.mark.slow
def test_solvers_of_the_reverse_sde_tend_to_one_picture_on_one_path() -> None:
    sde = VPSDE()
    model = mixture(sde)
    solvers: list[Solver] = [SRA1(), EulerMaruyama(), DDIM(1.0), SDEDPMSolverPP(2), ReverseDiffusion()]
    pictures = [
        SDESampler(sde, model, solver=solver, grid=grids.angle, steps=400).sample(16, seed=0, noise=BrownianPath)
        for solver in solvers
    ]
    for solver, picture in zip(solvers[1:], pictures[1:], strict=True):
        assert float((picture - pictures[0]).norm(dim=1).median()) < 0.02, solver


def held(source: NoiseSource) -> int:
    """Numbers that a path and its forks hold."""
    if not isinstance(source, BrownianPath):
        return 0
    own = sum(v.numel() for pair in source._known.values() for v in pair)
    return own + sum(held(fork) for fork in source._forks.values())


@pytest.mark.parametrize(
    "solver", [SRA1(), PredictorCorrector(DDIM(1.0), Langevin(2, 0.1)), Restart(DDIM(1.0))], ids=zoo.name
)
def test_the_memory_of_a_path_does_not_grow_with_the_steps(solver: Solver) -> None:
    sde = VPSDE()
    model, x = mixture(sde), normals(1)[0]
    sizes = []
    for n in (10, 40, 160):
        noise = path(3, range(4), (1.0, sde.t_min))
        run(model, solver, x, zoo.grid(sde, solver, n), noise)
        sizes.append(held(noise))
    assert sizes[0] == sizes[1] == sizes[2] > 0


# ------------------------------------------------------------------------------------------------------------- Restart


def edm_heun(model, x: Tensor, sigmas: list[float]) -> Tensor:
    for a, b in pairwise(sigmas):
        d = (x - model(x, a).data) / a
        y = x + (b - a) * d
        x = x + (b - a) * 0.5 * (d + (y - model(y, b).data) / b)
    return x


@pytest.mark.parametrize("churn", [Churn(DPMSolverPP(), 0.0), Churn(DPMSolverPP(), 0.2, s_min=1e6)], ids=zoo.name)
def test_where_churn_does_not_rise_the_solver_within_goes_on(churn: Solver) -> None:
    sde = EDMSDE()
    plain, churned = (
        SDESampler(sde, mixture(sde), solver=solver, steps=12, grid=grids.angle).sample(4, seed=0)
        for solver in (DPMSolverPP(), churn)
    )
    assert torch.equal(churned, plain)
    assert (Churn(DPMSolverPP(3), 0.0).facts.order, Churn(DPMSolverPP(3)).facts.order) == (2, 0)


@pytest.mark.parametrize(
    ("nodes", "a", "b", "kappa"),
    [((0.0, -1.0), 0.0, 3.0, 101.0), ((0.0, -1.0, -2.5), 0.0, 15.0, 2.0), ((0.0, -1.0), 0.0, -3.0, 8.0)],
)
def test_the_weights_are_exact_where_the_exponential_is_steep(
    nodes: tuple[float, ...], a: float, b: float, kappa: float
) -> None:
    at = [low for low in (a, b - 30 / kappa, b - 10 / kappa, b - 3 / kappa, b - 1 / kappa) if a <= low < b] or [a]
    for j, found in enumerate(lagrange_integrals(nodes, a, b, kappa)):

        def f(w: float, j: int = j) -> float:
            basis = math.prod((w - m) / (nodes[j] - m) for i, m in enumerate(nodes) if i != j)
            return math.exp(kappa * (w - b)) * basis

        parts = [
            quadrature.quad(f, low, high, epsabs=0, epsrel=1e-13, limit=500)[0] for low, high in pairwise([*at, b])
        ]
        assert found == pytest.approx(sum(parts), rel=1e-11)


def test_restart_is_the_algorithm_of_the_paper() -> None:
    sde = EDMSDE(0.02, 10.0)
    model, z = mixture(sde), normals(3)
    x = y = 10 * normals(1)[0]
    down = [10.0, 3.0, 1.0, 0.3, 0.1, 0.02]
    pass_ = [(1.0 ** (1 / 7) + i / 4 * (0.1 ** (1 / 7) - 1.0)) ** 7 for i in range(5)]
    y = edm_heun(model, y, down[:5])
    for k in range(3):
        y = edm_heun(model, y + math.sqrt(1.0**2 - 0.1**2) * z[k], pass_)
    y = edm_heun(model, y, down[4:])
    solver = Restart(Heun(), 0.1, 1.0, repeats=3, steps=4)
    out, nfe = run(model, solver, x, down, Given(z))
    torch.testing.assert_close(out, y, rtol=0, atol=1e-9)
    assert nfe == 2 * (5 + 3 * 4)


def test_restart_stops_at_the_foot_of_its_window_where_the_grid_does_not() -> None:
    sde = EDMSDE(0.02, 10.0)
    model, z, x = mixture(sde), normals(2), 10 * normals(1)[0]
    whole, nfe = run(model, Restart(Heun(), 0.1, 1.0), x, [10.0, 3.0, 0.3, 0.02], Given(z))
    split, more = run(model, Restart(Heun(), 0.1, 1.0), x, [10.0, 3.0, 0.3, 0.1, 0.02], Given(z))
    torch.testing.assert_close(whole, split, rtol=0, atol=1e-9)
    assert nfe == more == 2 * (4 + 2 * 4)


def test_windows_are_nested_and_the_steps_of_the_grid_go_on_between_them() -> None:
    sde = EDMSDE(0.02, 10.0)
    model, z, x = mixture(sde), normals(5), 10 * normals(1)[0]
    both = Restart(Restart(Heun(), 0.05, 0.2, 1, 3), 0.5, 2.0, 2, 3)
    out, nfe = run(model, both, x, [10.0, 1.0, 0.1, 0.02], Given(z))
    high, a = run(model, Restart(Heun(), 0.5, 2.0, 2, 3), x, [10.0, 1.0, 0.5], Given(z))
    low, b = run(model, Restart(Heun(), 0.05, 0.2, 1, 3), high, [0.5, 0.1, 0.05, 0.02], Given(z[2:]))
    torch.testing.assert_close(out, low, rtol=0, atol=1e-9)
    assert nfe == a + b


def test_every_pass_of_restart_forgets_a_part_of_an_error() -> None:
    # Exact steps: a pass takes the variance V at the foot to c V + (1 - c) v, with v that of the data there and c the
    # square of the correlation between foot and head; so an error in V shrinks by c each time.
    sde, v0 = EDMSDE(0.02, 10.0), 0.7
    model = Gaussian(sde, torch.zeros(1, dtype=F64), v0)
    foot, head = 0.2, 1.0
    v, top = v0 + foot**2, v0 + head**2
    inner = Angle(RK4(), math.sqrt(v0))  # exact for data of this variance
    for repeats in (1, 2, 4):
        solver = Restart(inner, foot, head, repeats, 1)
        found = response(
            partial(lambda solver, x, noise: run(model, solver, x, [1.0, foot], noise)[0], solver), repeats
        )
        reached = found.gain**2 * 2 * top + found.variance  # from twice the right variance
        assert reached - v == pytest.approx(v * (v / top) ** repeats, rel=1e-9)


REFUSED = pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Restart(Heun(), 0.3, 0.06), r"wanted 0 < s_min < s_max, got s_min=0.3 and s_max=0.06"),
        (lambda: Restart(Heun(), repeats=0), r"repeats must be at least 1, got 0"),
        (lambda: Restart(Heun(), steps=0), r"steps must be at least 1, got 0"),
        (lambda: Restart(Heun(), s_noise=0.0), r"s_noise must be positive and finite, got 0.0"),
        (lambda: ERSDE(4), r"ERSDE has order 1, 2 or 3, got 4"),
        (lambda: ERSDE(power=0.0), r"wanted power > 0 and offset > 0, got power=0.0 and offset=10.0"),
        (lambda: SRA1(-1.0), r"eta must be >= 0 .*, got -1.0"),
        (lambda: ReverseDiffusion(math.nan), r"eta must be >= 0 .*, got nan"),
    ],
)


def test_restart_does_not_rise_beyond_the_process() -> None:
    model = Gaussian(VPSDE(t_max=0.3), torch.zeros(1), 1.0)
    sampler = SDESampler(model.sde, model, solver=Restart(Heun(), 0.1, 2.0), steps=20)
    with pytest.raises(ValueError, match=r"s_max = 2 lies above the noise of t_max, sigma/alpha = 1\.\d+: no model"):
        sampler.sample(1, seed=0)


def test_renoise_stops_at_the_last_level_of_a_chain() -> None:
    chain = DiscreteVPSDE.linear(100)
    model = Gaussian(chain, torch.zeros(1), 1.0)
    corrector = PredictorCorrector(DDIM(), Renoise(DDIM(), gamma=0.5))
    assert bool(torch.isfinite(SDESampler(chain, model, solver=corrector, steps=20).sample(2, seed=0)).all())


@REFUSED
def test_a_solver_that_makes_no_sense_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_grid_that_does_not_pass_the_window_is_refused() -> None:
    sde = EDMSDE(0.1, 10.0)
    with pytest.raises(
        ValueError, match=r"restarts where the grid passes sigma/alpha = 0.06, and this one goes from 10"
    ):
        run(mixture(sde), Restart(Heun()), normals(1)[0], [10.0, 0.1], Given(normals(2)))


@pytest.mark.parametrize("solver", [SRA1(), ReverseDiffusion(), ERSDE(2), Restart(Heun())], ids=zoo.name)
def test_a_stochastic_solver_does_not_go_up_in_time(solver: Solver) -> None:
    with pytest.raises(ValueError, match=r"a stochastic solver only goes back in time"):
        run(mixture(VPSDE()), solver, normals(1)[0], [0.001, 0.9], Given(normals(4)))


def test_a_budget_of_evaluations_has_no_meaning_for_restart() -> None:
    model = Network(lambda x, t: x, VPSDE(), shape=(2,))
    with pytest.raises(ValueError, match=r"chooses its own evaluations: nfe= has no meaning"):
        SDESampler(VPSDE(), model, solver=Restart(Heun()), nfe=40)
