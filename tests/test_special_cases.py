"""Claim: the classic samplers are special cases, to rounding in float64.

Each test writes the published algorithm out as a loop over floats, in the letters of its paper, with its own schedule
and its own exact denoiser of an anisotropic mixture (`posterior_mean`, by solving linear systems), and compares it with
one line of the library. Noise, where there is any, is drawn in both from the same per-sample streams. Loops of up to
1000 steps with coefficients of order one accumulate some 1e-13; 1e-10 leaves room for other machines' rounding.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    CosineSDE,
    DiscreteVPSDE,
    FlowSDE,
    Network,
    SDESampler,
    SubVPSDE,
    grids,
    predict,
)
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.noise import Streams
from sde_diffusion.solvers import DDIM, Churn, DPMSolverPP, Euler, EulerMaruyama, Heun, Torchdiffeq, annealed_langevin

TOL: Any = {"rtol": 0.0, "atol": 1e-10}
N, SEED = 5, 11
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEANS = torch.tensor([[1.0, -0.5], [-0.8, 0.6]], dtype=torch.float64)
COVS = torch.tensor([[[0.30, 0.12], [0.12, 0.10]], [[0.08, -0.05], [-0.05, 0.25]]], dtype=torch.float64)


def posterior_mean(x, a, s):
    """E[x0 | a x0 + s eps = x] for the mixture above, from the conditional mean of each component."""
    answers, logs = [], []
    for w, m, c in zip(WEIGHTS, MEANS, COVS, strict=True):
        total = a * a * c + s * s * torch.eye(2, dtype=torch.float64)
        solved = torch.linalg.solve(total, (x - a * m).T).T
        answers.append(m + a * solved @ c)
        logs.append(torch.log(w) - 0.5 * ((x - a * m) * solved).sum(1) - 0.5 * torch.logdet(total))
    r = torch.softmax(torch.stack(logs, 1), 1)
    return sum(r[:, k : k + 1] * answer for k, answer in enumerate(answers))


def noise_mean(x, a, s):
    """E[eps | a x0 + s eps = x]."""
    return (x - a * posterior_mean(x, a, s)) / s


def mixture(sde):
    return GaussianMixture(sde, WEIGHTS, MEANS, COVS)


def streams(n=N, seed=SEED):
    source = Streams(range(seed, seed + n), (2,), torch.float64, "cpu")
    return source, source.prior()


# ---------------------------------------------------------------------------------------------------- DDPM and DDIM


def linear_chain(n=1000):
    """Ho et al. 2020, section 4: beta, alpha, bar alpha."""
    betas = np.linspace(1e-4, 0.02, n)
    return betas, 1 - betas, np.cumprod(1 - betas)


@pytest.mark.parametrize("variance", ["posterior", "forward"])
def test_ddpm_ancestral_sampling_is_ddim_at_eta_one_on_every_index(variance):
    beta, alpha, bar = linear_chain()
    source, x = streams()
    x_T = x
    for i in range(999, -1, -1):  # Algorithm 2 of Ho et al. 2020
        mean = (x - beta[i] / math.sqrt(1 - bar[i]) * noise_mean(x, math.sqrt(bar[i]), math.sqrt(1 - bar[i]))) / (
            math.sqrt(alpha[i])
        )
        if i == 0:
            x = mean
            break
        tilde = (1 - bar[i - 1]) / (1 - bar[i]) * beta[i]
        x = mean + math.sqrt(tilde if variance == "posterior" else beta[i]) * source(i, i - 1)
    sde = DiscreteVPSDE.linear(1000)
    sampler = SDESampler(sde, mixture(sde), solver=DDIM(1.0, variance), grid=grids.integers(sde))
    torch.testing.assert_close(sampler.sample(x_T=x_T, seed=SEED), x, **TOL)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("stride", [1, 7, 50, 333])
def test_ddim_on_any_subsequence(stride, eta):
    _, _, bar = linear_chain()
    tau = list(range(0, 1000, stride))
    source, x = streams()
    x_T = x
    for k in range(len(tau) - 1, -1, -1):  # equations 12 and 16 of Song et al. 2021; bar alpha ends at 1
        now, then = bar[tau[k]], bar[tau[k - 1]] if k else 1.0
        s = eta * math.sqrt((1 - then) / (1 - now)) * math.sqrt(1 - now / then)
        eps = noise_mean(x, math.sqrt(now), math.sqrt(1 - now))
        x0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        x = math.sqrt(then) * x0 + math.sqrt(1 - then - s * s) * eps
        if s:
            x = x + s * source(tau[k], tau[k - 1])
    sde = DiscreteVPSDE.linear(1000)
    sampler = SDESampler(sde, mixture(sde), solver=DDIM(eta), grid=[float(t) for t in reversed(tau)])
    torch.testing.assert_close(sampler.sample(x_T=x_T, seed=SEED), x, **TOL)


# ------------------------------------------------------------------------------------------- NCSN and the score SDEs


def test_ncsn_is_a_predictor_that_holds_with_a_langevin_corrector():
    levels, eps, steps = np.geomspace(1.0, 0.01, 10), 2e-5, 20
    source, z = streams()
    x = x_T = 1.5 * z
    for sigma in levels:  # Algorithm 1 of Song and Ermon 2019
        a = eps * sigma**2 / levels[-1] ** 2
        for _ in range(steps):
            score = -noise_mean(x, 1.0, sigma) / sigma
            x = x + a / 2 * score + math.sqrt(a) * source(0.0, 0.0)
    sde = VESDE(0.01, 2.0)
    times = [1.0, *(math.log(s / 0.01) / math.log(2.0 / 0.01) for s in levels[:-1]), 0.0]
    solver = annealed_langevin(steps, epsilon=eps, sigma_min=0.01)
    sampler = SDESampler(sde, mixture(sde), solver=solver, grid=times, denoise=False)
    torch.testing.assert_close(sampler.sample(x_T=x_T, seed=SEED), x, **TOL)


def vp(t, b0=0.1, b1=20.0):
    """alpha, sigma and beta at t, equation 33 of Song et al. 2021."""
    integral = 0.5 * t**2 * (b1 - b0) + t * b0
    return math.exp(-integral / 2), math.sqrt(-math.expm1(-integral)), b0 + t * (b1 - b0)


def test_euler_maruyama_on_vp_is_the_loop_of_the_score_sde_paper():
    times = np.linspace(1.0, 1e-3, 201)
    source, x = streams()
    x_T = x
    for t, s in pairwise(times):
        a, sigma, beta = vp(t)
        score = -noise_mean(x, a, sigma) / sigma
        dt = t - s
        x = x + (0.5 * beta * x + beta * score) * dt + math.sqrt(beta * dt) * source(t, s)

    def score_fn(x, t):
        a, sigma, _ = vp(float(t[0]))
        return -noise_mean(x, a, sigma) / sigma

    sampler = SDESampler(VPSDE(), score_fn, solver=EulerMaruyama(), grid=times.tolist(), shape=(2,), denoise=False)
    torch.testing.assert_close(sampler.sample(x_T=x_T, seed=SEED), x, **TOL)


def test_euler_maruyama_on_ve_is_the_loop_of_the_score_sde_paper():
    low, high, times = 0.01, 10.0, np.linspace(1.0, 0.0, 201)
    source, z = streams()
    x = x_T = high * z
    for t, s in pairwise(times):
        sigma = low * (high / low) ** t
        g = sigma * math.sqrt(2 * math.log(high / low))
        score = -noise_mean(x, 1.0, sigma) / sigma
        x = x + g * g * score * (t - s) + g * math.sqrt(t - s) * source(t, s)
    sde = VESDE(low, high)
    sampler = SDESampler(sde, mixture(sde), solver=EulerMaruyama(), steps=200, grid=grids.uniform, denoise=False)
    torch.testing.assert_close(sampler.sample(x_T=x_T, seed=SEED), x, **TOL)


# --------------------------------------------------------------------------------------------------------------- EDM


def karras_levels(n, low=0.002, high=80.0, rho=7.0):
    """Equation 5 of Karras et al. 2022: t_0 ... t_{n-1}, and t_n = 0."""
    return [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)] + [0.0]


def edm_loop(x, source, n, s_churn=0.0, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0):
    """Algorithm 2 of Karras et al. 2022, which without churn is Algorithm 1 with sigma(t) = t."""
    t = karras_levels(n)
    for i in range(n):
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_tmin <= t[i] <= s_tmax else 0.0
        hat = t[i] + gamma * t[i]
        if gamma:
            x = x + math.sqrt(hat**2 - t[i] ** 2) * s_noise * source(t[i], t[i])
        d = (x - posterior_mean(x, 1.0, hat)) / hat
        new = x + (t[i + 1] - hat) * d
        if t[i + 1] != 0:
            d2 = (new - posterior_mean(new, 1.0, t[i + 1])) / t[i + 1]
            new = x + (t[i + 1] - hat) * (0.5 * d + 0.5 * d2)
        x = new
    return x


@pytest.mark.parametrize("n", [2, 18, 40])
def test_edm_deterministic_sampling_is_heun_on_the_karras_grid(n):
    source, z = streams()
    sampler = SDESampler(EDMSDE(), mixture(EDMSDE()), solver=Heun(), steps=n - 1, grid=grids.karras)
    torch.testing.assert_close(sampler.sample(N, seed=SEED), edm_loop(80.0 * z, source, n), **TOL)


@pytest.mark.parametrize(
    ("n", "churn", "tmin", "tmax", "s_noise"),
    [
        (18, 4.0, 0.05, 50.0, 1.003),  # a window that ends below the first level
        (18, 5.0, 0.01, math.inf, 1.0),  # the first step rises above sigma_max, as in the paper
        (30, 80.0, 0.01, 1.0, 1.007),  # the rise is capped at sqrt(2) - 1
    ],
)
def test_edm_stochastic_sampling_is_churn_around_heun(n, churn, tmin, tmax, s_noise):
    source, z = streams()
    gamma = min(churn / n, math.sqrt(2) - 1)
    solver = Churn(Heun(), gamma, s_min=tmin, s_max=tmax, s_noise=s_noise)
    sampler = SDESampler(EDMSDE(), mixture(EDMSDE()), solver=solver, steps=n - 1, grid=grids.karras)
    expected = edm_loop(80.0 * z, source, n, churn, tmin, tmax, s_noise)
    torch.testing.assert_close(sampler.sample(N, seed=SEED), expected, **TOL)


# -------------------------------------------------------------------------------------- flows and exponential solvers


@pytest.mark.parametrize("steps", [2, 25])
def test_rectified_flow_is_euler_on_the_straight_path(steps):
    _, z = streams()
    x = z
    for i in range(steps):  # Liu et al. 2023: dZ = v(Z, t) dt, with noise at t = 0 and data at t = 1
        t = i / steps
        x = x + (posterior_mean(x, t, 1 - t) - noise_mean(x, t, 1 - t)) / steps

    def velocity(x, t):
        t = float(t[0])
        return noise_mean(x, 1 - t, t) - posterior_mean(x, 1 - t, t)

    sde = FlowSDE(t_min=1 / steps)  # the jump from there to the data is the last of the equal steps
    model = Network(velocity, sde, predict.velocity)
    sampler = SDESampler(sde, model, solver=Euler(), steps=steps - 1, grid=grids.uniform)
    torch.testing.assert_close(sampler.sample(x_T=z), x, **TOL)


def test_dpm_solver_pp_2m_is_algorithm_2_of_its_paper_on_vp():
    times = np.linspace(1.0, 1e-3, 21)
    a, sigma, _ = zip(*(vp(t) for t in times), strict=True)
    lam = [math.log(p / q) for p, q in zip(a, sigma, strict=True)]
    _, z = streams()
    x, before = z, None
    for i in range(1, len(times)):  # Lu et al. 2022
        h = lam[i] - lam[i - 1]
        answer = posterior_mean(x, a[i - 1], sigma[i - 1])
        D = answer
        if before is not None:
            r = (lam[i - 1] - lam[i - 2]) / h
            D = (1 + 1 / (2 * r)) * answer - 1 / (2 * r) * before
        x = sigma[i] / sigma[i - 1] * x - a[i] * (math.exp(-h) - 1) * D
        before = answer
    sde = VPSDE()
    sampler = SDESampler(sde, mixture(sde), solver=DPMSolverPP(2), grid=times.tolist(), denoise=False)
    torch.testing.assert_close(sampler.sample(x_T=z), x, **TOL)


PATHS = [SubVPSDE(), CosineSDE(), VESDE(), EDMSDE(), BrownianSDE(), FlowSDE(), DiscreteVPSDE.linear(1000)]


@pytest.mark.parametrize("solver", [DDIM(0.0), DDIM(1.0), DPMSolverPP(1), DPMSolverPP(2)], ids=repr)
@pytest.mark.parametrize("sde", PATHS, ids=repr)
def test_exponential_solvers_give_one_sample_on_every_path_with_the_same_log_snr_grid(sde, solver):
    lam = torch.linspace(-2.0, 3.5, 16, dtype=torch.float64)
    _, z = streams()

    def draw(sde):
        times = sde.time_of(lam)
        sampler = SDESampler(sde, mixture(VPSDE()).on(sde), solver=solver, grid=times)
        alpha = float(sde.alpha(times[:1]))
        return sampler.sample(x_T=alpha * (1.0 + math.exp(2.0) * z), seed=SEED)  # x / alpha is the same at the start

    torch.testing.assert_close(draw(sde), draw(VPSDE()), **TOL)


def test_tight_dopri5_agrees_with_scipy_on_the_probability_flow():
    # Both at relative tolerance 1e-10 or less over a flow whose Lipschitz constant costs a factor below 100: 1e-8.
    _, z = streams()

    def slope(t, y):
        a, sigma, beta = vp(t)
        x = torch.from_numpy(y.reshape(N, 2))
        score = -noise_mean(x, a, sigma) / sigma
        return (-0.5 * beta * x - 0.5 * beta * score).numpy().ravel()

    truth = solve_ivp(slope, (1.0, 1e-3), z.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    sde = VPSDE()
    solver = Torchdiffeq("dopri5", rtol=1e-10, atol=1e-11)
    found = SDESampler(sde, mixture(sde), solver=solver, denoise=False).sample(x_T=z)
    np.testing.assert_allclose(found.numpy().ravel(), truth, rtol=0, atol=1e-8)
