"""Claim: a method that carries a paper's name is the paper's, to rounding in float64.

Each test writes the algorithm out as a loop over floats, in the letters of its paper and with scipy's quadrature where
the paper has an integral, and compares it with one solver of the library on the same network. `test_special_cases.py`
does so for the classic samplers; `benchmarks/peers.py` compares with diffusers, which is no dependency.

Twenty steps with weights of order ten and integrals good to 1e-12 accumulate some 1e-12; the bound is 1e-10.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from sde_diffusion import EDMSDE, VPSDE, CosineSDE, FlowSDE, Network, SDESampler, predict
from sde_diffusion.noise import Streams
from sde_diffusion.solvers import (
    IPNDM,
    Adams,
    Churn,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPP2S,
    Euler,
    SASolver,
    SDEDPMSolverPP,
    UniPC,
)

TOL: Any = {"rtol": 0.0, "atol": 1e-10}
N, SEED, STEPS = 4, 7, 14
MEANS = torch.tensor([[0.9, -0.4], [-0.7, 0.8]], dtype=torch.float64)
VARIANCES = torch.tensor([[0.3, 0.1], [0.05, 0.4]], dtype=torch.float64)


class Schedule:
    """alpha, sigma and lambda of a process as functions of t, written out once more, with the inverse by bisection."""

    def __init__(self, sde, alpha, sigma, times):
        self.sde, self.alpha, self.sigma, self.times = sde, alpha, sigma, [float(t) for t in times]

    def lam(self, t):
        return math.log(self.alpha(t) / self.sigma(t))

    def rho(self, t):
        return self.sigma(t) / self.alpha(t)

    def t_of(self, lam):
        low, high = self.times[-1], self.times[0]
        for _ in range(200):
            mid = 0.5 * (low + high)
            low, high = (mid, high) if self.lam(mid) > lam else (low, mid)
        return 0.5 * (low + high)

    def x0(self, x, t):
        """E[x0 | x_t = x] of a mixture of two Gaussians of equal weight."""
        a, s = self.alpha(t), self.sigma(t)
        total = a * a * VARIANCES + s * s
        gap = x[:, None] - a * MEANS
        r = torch.softmax(-0.5 * (gap.square() / total + torch.log(total)).sum(-1), 1)
        return (r[..., None] * (MEANS + a * VARIANCES / total * gap)).sum(1)

    def eps(self, x, t):
        return (x - self.alpha(t) * self.x0(x, t)) / self.sigma(t)

    def start(self):
        z = torch.randn(N, 2, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
        t = self.times[0]
        return self.alpha(t) * MEANS[0] + math.hypot(self.sigma(t), 0.5 * self.alpha(t)) * z

    def library(self, solver, **options):
        model = Network(lambda x, t: self.eps(x, float(t[0])), self.sde, predict.noise)
        sampler = SDESampler(self.sde, model, solver=solver, grid=self.times, shape=(2,), denoise=False)
        return sampler.sample(x_T=self.start(), seed=SEED, **options)


def vp_alpha(t):
    return math.exp(-0.25 * t * t * 19.9 - 0.05 * t)


SCHEDULES = [
    Schedule(
        VPSDE(), vp_alpha, lambda t: math.sqrt(-math.expm1(2 * math.log(vp_alpha(t)))), np.linspace(1, 1e-3, STEPS + 1)
    ),
    Schedule(
        CosineSDE(),
        lambda t: math.sin(0.5 * math.pi * (1 - t)),
        lambda t: math.sin(0.5 * math.pi * t),
        np.linspace(0.98, 0.01, STEPS + 1),
    ),
    Schedule(EDMSDE(), lambda t: 1.0, lambda t: t, np.geomspace(60, 0.01, STEPS + 1)),
    Schedule(FlowSDE(), lambda t: 1 - t, lambda t: t, np.linspace(0.97, 0.01, STEPS + 1) ** 1.5),
]
on_every_schedule = pytest.mark.parametrize("p", SCHEDULES, ids=lambda p: type(p.sde).__name__)


def integral(f, a, b):
    """scipy's adaptive quadrature, to rounding."""
    value, error = quad(f, a, b, epsabs=0, epsrel=1e-13, limit=200)
    assert error < 1e-11 * max(abs(value), 1e-3)
    return value


def lagrange(nodes, j, w):
    """l_j(w) on these nodes."""
    return math.prod((w - v) / (nodes[j] - v) for k, v in enumerate(nodes) if k != j)


def weighted(nodes, j, sign, end, v):
    """l_j(v) under the exponential that ends with 1."""
    return math.exp(sign * (v - end)) * lagrange(nodes, j, v)


def noises(p):
    """The draws of the library for a stochastic solver."""
    source = Streams(range(SEED, SEED + N), (2,), torch.float64, "cpu")
    source.prior()
    return source


# -------------------------------------------------------------------------------------------------- DPM-Solver, ++, SDE


@on_every_schedule
def test_dpm_solver_2_is_algorithm_1_of_its_paper(p):
    x = p.start()
    for t_prev, t in pairwise(p.times):  # Lu et al. 2022
        h = p.lam(t) - p.lam(t_prev)
        s = p.t_of(0.5 * (p.lam(t_prev) + p.lam(t)))
        e = p.eps(x, t_prev)
        u = p.alpha(s) / p.alpha(t_prev) * x - p.sigma(s) * (math.exp(h / 2) - 1) * e
        x = p.alpha(t) / p.alpha(t_prev) * x - p.sigma(t) * (math.exp(h) - 1) * p.eps(u, s)
    torch.testing.assert_close(p.library(DPMSolver(2)), x, **TOL)


@on_every_schedule
def test_dpm_solver_3_is_algorithm_2_of_its_paper(p):
    r1, r2, x = 1 / 3, 2 / 3, p.start()
    for t_prev, t in pairwise(p.times):  # Lu et al. 2022
        h = p.lam(t) - p.lam(t_prev)
        s1, s2 = (p.t_of(p.lam(t_prev) + r * h) for r in (r1, r2))
        e = p.eps(x, t_prev)
        u1 = p.alpha(s1) / p.alpha(t_prev) * x - p.sigma(s1) * (math.exp(r1 * h) - 1) * e
        d1 = p.eps(u1, s1) - e
        u2 = p.alpha(s2) / p.alpha(t_prev) * x - p.sigma(s2) * (math.exp(r2 * h) - 1) * e
        u2 = u2 - p.sigma(s2) * r2 / r1 * ((math.exp(r2 * h) - 1) / (r2 * h) - 1) * d1
        d2 = p.eps(u2, s2) - e
        x = p.alpha(t) / p.alpha(t_prev) * x - p.sigma(t) * (math.exp(h) - 1) * e
        x = x - p.sigma(t) / r2 * ((math.exp(h) - 1) / h - 1) * d2
    torch.testing.assert_close(p.library(DPMSolver(3)), x, **TOL)


@on_every_schedule
def test_dpm_solver_pp_2s_is_algorithm_1_of_its_paper(p):
    r, x = 0.5, p.start()
    for t_prev, t in pairwise(p.times):  # Lu et al. 2022 (DPM-Solver++)
        h = p.lam(t) - p.lam(t_prev)
        s = p.t_of(p.lam(t_prev) + r * h)
        first = p.x0(x, t_prev)
        u = p.sigma(s) / p.sigma(t_prev) * x - p.alpha(s) * (math.exp(-r * h) - 1) * first
        D = (1 - 1 / (2 * r)) * first + 1 / (2 * r) * p.x0(u, s)
        x = p.sigma(t) / p.sigma(t_prev) * x - p.alpha(t) * (math.exp(-h) - 1) * D
    torch.testing.assert_close(p.library(DPMSolverPP2S()), x, **TOL)


@on_every_schedule
def test_its_stiff_variant_has_the_weights_of_res_2s(p):
    c2, x = 0.5, p.start()
    for t_prev, t in pairwise(p.times):  # Zhang et al. 2023: b2 = phi_2 / c2, b1 = phi_1 - b2, in lambda
        h = p.lam(t) - p.lam(t_prev)
        s = p.t_of(p.lam(t_prev) + c2 * h)
        phi1 = -math.expm1(-h) / h
        phi2 = (1 - phi1) / h
        first = p.x0(x, t_prev)
        u = p.sigma(s) / p.sigma(t_prev) * x + p.alpha(s) * -math.expm1(-c2 * h) * first
        second = p.x0(u, s)
        x = p.sigma(t) / p.sigma(t_prev) * x + p.alpha(t) * h * ((phi1 - phi2 / c2) * first + phi2 / c2 * second)
    torch.testing.assert_close(p.library(DPMSolverPP2S(stiff=True)), x, **TOL)


def third_order(p, x, eta=0.0, source=None):
    """The multistep method of order 3 as its authors publish it in code, and with noise as k-diffusion does.

    `D1` is h D' at the start of the step; `D2` is half of h^2 D'', but the weight that it gets is that of the whole.
    """
    past: list[Any] = []
    for t_prev, t in pairwise(p.times):
        h = p.lam(t) - p.lam(t_prev)
        k = (1 + eta * eta) * h
        past = [(p.lam(t_prev), p.x0(x, t_prev)), *past[:2]]
        m = [answer for _, answer in past]
        x = p.sigma(t) / p.sigma(t_prev) * math.exp(-eta * eta * h) * x - p.alpha(t) * math.expm1(-k) * m[0]
        phi2 = math.expm1(-k) / k + 1
        phi3 = phi2 / k - 0.5
        if len(past) == 2:  # a step of order 2, with the weight of DPM-Solver++(2M)
            r0 = (past[0][0] - past[1][0]) / h
            x = x - 0.5 * p.alpha(t) * math.expm1(-k) * (m[0] - m[1]) / r0
        if len(past) == 3:
            r0, r1 = ((past[j][0] - past[j + 1][0]) / h for j in (0, 1))
            D1_0, D1_1 = (m[0] - m[1]) / r0, (m[1] - m[2]) / r1
            D1 = D1_0 + r0 / (r0 + r1) * (D1_0 - D1_1)
            D2 = 1 / (r0 + r1) * (D1_0 - D1_1)
            x = x + p.alpha(t) * (phi2 * D1 - phi3 * D2)
        if source is not None:
            x = x + p.sigma(t) * math.sqrt(-math.expm1(-2 * eta * eta * h)) * source(t_prev, t)
    return x


@on_every_schedule
def test_dpm_solver_pp_3m_is_the_code_of_its_authors(p):
    torch.testing.assert_close(p.library(DPMSolverPP(3)), third_order(p, p.start()), **TOL)


@pytest.mark.parametrize("eta", [0.4, 1.0])
@on_every_schedule
def test_sde_dpm_solver_pp_3m_is_that_of_k_diffusion(p, eta):
    found = p.library(SDEDPMSolverPP(3, eta))
    torch.testing.assert_close(found, third_order(p, p.start(), eta, noises(p)), **TOL)


def test_the_second_difference_of_3m_has_half_its_taylor_weight():
    # Of D(lam) = (lam - lam_t)^2 / 2, D'' = 1 and D' = 0 at the start of a step. A method of order 3 would integrate it
    # exactly; this one gives half, so that `DPMSolverPP(3)` is not of order 3 however it is started.
    p = SCHEDULES[0]
    s, *past = p.sde.levels([0.2, 0.3, 0.45, 0.65])
    t = past[0]
    exact = s.alpha * integral(lambda v: math.exp(v - s.lam) * (v - t.lam) ** 2 / 2, t.lam, s.lam)

    def given(solver):
        row = solver.row(past, s, p.sde.levels)
        return sum(w * (at.lam - t.lam) ** 2 / 2 for w, at in zip(row.data, past, strict=True))

    assert given(DPMSolverPP(3)) == pytest.approx(0.5 * exact, rel=1e-12)
    assert given(Adams(3)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2])
@on_every_schedule
def test_sde_dpm_solver_pp_is_the_update_of_its_paper(p, order):
    x, source, before = p.start(), noises(p), None
    for t_prev, t in pairwise(p.times):  # Lu et al. 2022 (DPM-Solver++), equations for SDE-DPM-Solver++(1) and (2M)
        h = p.lam(t) - p.lam(t_prev)
        D = answer = p.x0(x, t_prev)
        if before is not None and order == 2:
            r = (p.lam(t_prev) - before[0]) / h
            D = answer + 1 / (2 * r) * (answer - before[1])
        x = p.sigma(t) / p.sigma(t_prev) * math.exp(-h) * x + p.alpha(t) * (1 - math.exp(-2 * h)) * D
        x = x + p.sigma(t) * math.sqrt(1 - math.exp(-2 * h)) * source(t_prev, t)
        before = (p.lam(t_prev), answer)
    torch.testing.assert_close(p.library(SDEDPMSolverPP(order)), x, **TOL)


# ---------------------------------------------------------------------------------------------------------------- UniPC


def uni_coefficients(r, h, variant):
    """a of R a B(h) = phi, for nodes `r` in units of the step (Zhao et al. 2023, for the data prediction: h -> -h).

    A single coefficient is 1/2: in the predictor of order 2 and in the corrector of order 1.
    """
    n, z = len(r), -h
    B = z if variant == "bh1" else math.expm1(z)
    if n == 1:
        return [0.5], B
    R = np.array([[v**k for v in r] for k in range(n)])
    # k! phi_{k+1}(z) is the integral of e^{(1 - u) z} u^k over the unit interval.
    b = [z / B * integral(partial(moment, z, k), 0, 1) for k in range(1, n + 1)]
    return np.linalg.solve(R, np.array(b)).tolist(), B


def moment(z, k, u):
    return math.exp((1 - u) * z) * u**k


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@on_every_schedule
def test_unipc_is_algorithms_1_and_2_of_its_paper(p, order, variant):
    x, known = p.start(), list[Any]()  # (lambda, answer), newest first
    last = None  # the state before the last step, its time, its history
    for t_prev, t in pairwise(p.times):
        answer = p.x0(x, t_prev)
        if last is not None:  # UniC on the step that led here
            x_l, t_l, past = last
            h, m0 = p.lam(t_prev) - p.lam(t_l), past[0][1]
            r = [(lam - p.lam(t_l)) / h for lam, _ in past[1:]] + [1.0]
            a, B = uni_coefficients(r, h, variant)
            D = [*((m - m0) / v for (_, m), v in zip(past[1:], r, strict=False)), answer - m0]
            x = p.sigma(t_prev) / p.sigma(t_l) * x_l - p.alpha(t_prev) * math.expm1(-h) * m0
            x = x - p.alpha(t_prev) * B * sum(c * d for c, d in zip(a, D, strict=True))
        known = [(p.lam(t_prev), answer), *known][:order]
        last = (x, t_prev, known)
        h, m0 = p.lam(t) - p.lam(t_prev), answer  # UniP
        r = [(lam - p.lam(t_prev)) / h for lam, _ in known[1:]]
        x_t = p.sigma(t) / p.sigma(t_prev) * x - p.alpha(t) * math.expm1(-h) * m0
        if r:
            a, B = uni_coefficients(r, h, variant)
            D = [(m - m0) / v for (_, m), v in zip(known[1:], r, strict=True)]
            x_t = x_t - p.alpha(t) * B * sum(c * d for c, d in zip(a, D, strict=True))
        x = x_t
    torch.testing.assert_close(p.library(UniPC(order, variant)), x, **TOL)


# ------------------------------------------------------------------------------------------------ DEIS, iPNDM and Adams


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@on_every_schedule
def test_deis_in_time_and_in_rho_are_the_integrals_of_its_paper(p, order):
    # Zhang and Chen 2023, equation 15: the transition Psi and the density of eps written in rho = sigma / alpha.
    for quantity in ("time", "rho"):
        x, past = p.start(), list[Any]()
        for t_prev, t in pairwise(p.times):
            past = [(t_prev, p.eps(x, t_prev)), *past][:order]
            nodes = [u if quantity == "time" else p.rho(u) for u, _ in past]
            inverse = (lambda r: p.t_of(-math.log(r))) if quantity == "time" else (lambda r: r)
            c = [
                integral(lambda r, j=j: lagrange(nodes, j, inverse(r)), p.rho(t_prev), p.rho(t))  # noqa: B023
                for j in range(len(past))
            ]
            x = p.alpha(t) * (x / p.alpha(t_prev) + sum(cj * e for cj, (_, e) in zip(c, past, strict=True)))
        torch.testing.assert_close(p.library(Adams(order, quantity)), x, **TOL)


@pytest.mark.parametrize("order", [2, 3, 5])
@on_every_schedule
def test_exponential_adams_are_their_integrals(p, order):
    for quantity in ("data", "noise"):
        x, past = p.start(), list[Any]()
        for t_prev, t in pairwise(p.times):
            answer = p.x0(x, t_prev) if quantity == "data" else p.eps(x, t_prev)
            past = [(p.lam(t_prev), answer), *past][:order]
            nodes, sign = [v for v, _ in past], 1 if quantity == "data" else -1
            span = p.lam(t_prev), p.lam(t)
            c = [integral(partial(weighted, nodes, j, sign, span[1]), *span) for j in range(len(past))]
            inner = sum(cj * m for cj, (_, m) in zip(c, past, strict=True))
            if quantity == "data":
                x = p.sigma(t) / p.sigma(t_prev) * x + p.alpha(t) * inner
            else:
                x = p.alpha(t) / p.alpha(t_prev) * x - p.sigma(t) * inner
        torch.testing.assert_close(p.library(Adams(order, quantity)), x, **TOL)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@on_every_schedule
def test_ipndm_has_the_weights_of_a_uniform_grid(p, order):
    weights = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
    x, past = p.start(), list[Any]()
    for t_prev, t in pairwise(p.times):  # Zhang and Chen 2023, Appendix H.3
        past = [p.eps(x, t_prev), *past][:order]
        e = sum(a * m for a, m in zip(weights[len(past)], past, strict=True))
        x = p.alpha(t) * (x / p.alpha(t_prev) + (p.rho(t) - p.rho(t_prev)) * e)
    torch.testing.assert_close(p.library(IPNDM(order)), x, **TOL)


# ------------------------------------------------------------------------------------------------------------ SA-Solver


def sa_row(p, nodes, a, b, tau):
    """The weights of Xue et al. 2023, equations 14 and 17, over the step in lambda from a to b."""
    k = 1 + tau * tau
    return [
        k * integral(lambda v, j=j: math.exp(-k * (b - v)) * lagrange(nodes, j, v), a, b) for j in range(len(nodes))
    ]


@pytest.mark.parametrize(("predictor", "corrector"), [(1, 0), (2, 0), (1, 1), (2, 2), (3, 3), (4, 2)])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_sa_solver_is_algorithm_1_of_its_paper(predictor, corrector, tau):
    for p in SCHEDULES[:2]:
        x, known, last, source = p.start(), list[Any](), None, noises(p)
        low, high = 0.05, 3.0  # noise is added for steps that start at these sigma / alpha
        for t_prev, t in pairwise(p.times):
            answer, now = p.x0(x, t_prev), p.lam(t_prev)
            known = [(now, answer), *known]
            if last is not None and corrector:  # the corrector, with the noise of the predictor
                x_l, lam_l, sigma_l, tau_l, noise = last
                past = known[: corrector + 1]
                row = sa_row(p, [v for v, _ in past], lam_l, now, tau_l)
                h = now - lam_l
                x = p.sigma(t_prev) / sigma_l * math.exp(-tau_l * tau_l * h) * x_l + noise
                x = x + p.alpha(t_prev) * sum(w * m for w, (_, m) in zip(row, past, strict=True))
            tau_t = tau if low <= p.rho(t_prev) <= high else 0.0
            past, h, noise = known[:predictor], p.lam(t) - now, 0.0
            if tau_t:
                noise = p.sigma(t) * math.sqrt(1 - math.exp(-2 * tau_t * tau_t * h)) * source(t_prev, t)
            last = (x, now, p.sigma(t_prev), tau_t, noise)
            row = sa_row(p, [v for v, _ in past], now, p.lam(t), tau_t)
            x = p.sigma(t) / p.sigma(t_prev) * math.exp(-tau_t * tau_t * h) * x + noise
            x = x + p.alpha(t) * sum(w * m for w, (_, m) in zip(row, past, strict=True))
        solver = SASolver(predictor, corrector, tau, s_min=low, s_max=high)
        torch.testing.assert_close(p.library(solver), x, **TOL)


# ---------------------------------------------------------------------------------------------------------------- churn


def test_churn_asks_the_network_after_it_has_raised_the_noise():
    # Karras et al. 2022, Algorithm 2: the derivative is taken at the raised state and level. To ask before, and to step
    # from the raised state with that answer, would save nothing and is another method.
    p, gamma, source = SCHEDULES[2], 0.2, noises(SCHEDULES[2])
    x = p.start()
    for t, s in pairwise(p.times):
        hat = t * (1 + gamma)
        x = x + math.sqrt(hat * hat - t * t) * source(t, t)
        x = x + (s - hat) * p.eps(x, hat)
    torch.testing.assert_close(p.library(Churn(Euler(), gamma)), x, **TOL)
