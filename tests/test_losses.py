"""Claim: the loss is the published one: its floor is the variance of data given state, weights and times as named."""

from __future__ import annotations

import math
import re

import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    CosineSDE,
    DiscreteVPSDE,
    FlowSDE,
    Network,
    SubVPSDE,
    predict,
)
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.denoiser.objectives.matching import DenoisingScoreMatching
from sde_diffusion.denoiser.objectives.time_samplers import LogNormalSigma, stratified, uniform_log_snr, uniform_time
from sde_diffusion.denoiser.objectives.weights import EDMWeight, MinSNR, data_weight, likelihood_weight, noise_weight
from sde_diffusion.training.losses import denoising_score_matching

SDES = [
    VPSDE(),
    SubVPSDE(),
    VESDE(),
    BrownianSDE(),
    CosineSDE(),
    EDMSDE(),
    FlowSDE(t_max=0.999),
    DiscreteVPSDE.linear(100),
]
every_sde = pytest.mark.parametrize("sde", SDES, ids=repr)
MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
COV = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
EIGENVALUES = torch.linalg.eigvalsh(COV).tolist()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def floor(a, s):
    """E|x0 - E[x0 | x]|^2 / D of the Gaussian above: the mean eigenvalue of (C^-1 + a^2 / s^2)^-1."""
    return sum(1 / (1 / v + (a / s) ** 2) for v in EIGENVALUES) / 2


def assert_mean(values, truth):
    se = values.std().item() / math.sqrt(len(values))
    print(
        f"{values.mean().item():.6g} for {truth:.6g}: off by {(values.mean().item() - truth) / se:.2f} standard errors"
    )
    assert abs(values.mean().item() - truth) < 4 * se


@pytest.mark.parametrize("u", [0.05, 0.4, 0.95])
@every_sde
def test_the_floor_of_the_loss_is_the_variance_of_the_data_given_the_state(sde, u):
    n, t = 4000, sde.t_min + u * (sde.t_max - sde.t_min)
    model = Gaussian(sde, MEAN, COV)
    (at,) = sde.levels([t])
    times = torch.full((n,), t, dtype=torch.float64)
    x0 = model.sample(n, seed=1)
    loss = denoising_score_matching(model, x0, t=times, generator=seeded(2), reduction="none")
    assert loss.shape == (n,)
    assert_mean(loss, floor(at.alpha, at.sigma))
    weighted = denoising_score_matching(model, x0, t=times, generator=seeded(2), reduction="none", weight=noise_weight)
    torch.testing.assert_close(weighted, loss * (at.alpha / at.sigma) ** 2, rtol=1e-10, atol=0)


@pytest.mark.parametrize("low_discrepancy", [False, True])
def test_over_uniform_times_the_loss_averages_the_floor(low_discrepancy):
    sde, n = VPSDE(), 20_000
    model = Gaussian(sde, MEAN, COV)

    def at(t):
        b = 0.1 * t + 19.9 * t * t / 2
        return floor(math.exp(-b / 2), math.sqrt(1 - math.exp(-b)))

    truth = quad(at, 1e-3, 1.0)[0] / (1 - 1e-3)
    objective = DenoisingScoreMatching(low_discrepancy=low_discrepancy)
    loss = objective(model, model.sample(n, seed=1), generator=seeded(2), reduction="none")
    assert_mean(loss, truth)  # stratified times only make the true error smaller than this standard error


def test_stratified_times_take_the_variance_of_the_floor_out_of_the_loss():
    """For N(0, v I) the loss at t is f(t) chi^2_D / D: variance 2 f^2 / D at a time, Var f over times."""
    sde, v, d, n, batches = VPSDE(), 0.25, 64, 32, 800
    model = Gaussian(sde, torch.zeros(d, dtype=torch.float64), v)

    def f(t):
        b = 0.1 * t + 19.9 * t * t / 2
        return 1 / (1 / v + 1 / math.expm1(b))

    first, second = (quad(lambda t, k=k: f(t) ** k, 1e-3, 1.0)[0] / (1 - 1e-3) for k in (1, 2))
    within, between = 2 * second / d, second - first**2
    variances = []
    for low in (True, False):
        generator, means = seeded(4), []
        for _ in range(batches):
            x0 = model.sample(n, seed=generator)
            means.append(DenoisingScoreMatching(low_discrepancy=low)(model, x0, generator=generator))
        variances.append(torch.stack(means).var().item())
    se = 2 / math.sqrt(batches)  # relative, of a ratio of two variances: each has sqrt(2 / batches)
    off = math.log(variances[0] / variances[1] * (within + between) / within) / se
    truth = within / (within + between)
    print(f"ratio {variances[0] / variances[1]:.3f} for {truth:.3f}: off by {off:.2f} standard errors")
    assert abs(off) < 4


# -------------------------------------------------------------------------------------------------------------- times


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_every_stratum_is_hit_once(n, seed):
    u = stratified(n, seeded(seed))
    assert u.dtype == torch.float64
    assert ((u >= 0) & (u < 1)).all()
    # A comb of spacing 1/n about one offset: moved to the middle of a stratum, it is safe from rounding.
    offset = u.min()
    cells = ((u - offset + 0.5 / n) * n).floor().long().sort().values
    assert torch.equal(cells, torch.arange(n))
    assert offset < 1 / n + 1e-12


def test_each_stratified_draw_is_uniform_and_in_random_order():
    draws = torch.stack([stratified(8, seeded(k)) for k in range(2000)])
    for column in draws.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-4
    order = torch.corrcoef(draws.argsort(1).double().T)[0, 1].item()  # -1/7 for a random permutation of eight
    print(f"correlation of two places {order:.3f}, SE {1 / math.sqrt(2000):.3f}")
    assert abs(order + 1 / 7) < 4 / math.sqrt(2000)


U = torch.rand(5000, dtype=torch.float64, generator=seeded(3))


@every_sde
def test_uniform_times_are_uniform(sde):
    t = uniform_time(sde, U)
    assert stats.kstest(t.numpy(), "uniform", (sde.t_min, sde.t_max - sde.t_min)).pvalue > 1e-4


@every_sde
def test_log_normal_times_have_a_normal_log_ratio_inside_the_range(sde):
    t = LogNormalSigma(-0.7, 0.9)(sde, U)
    assert ((t >= sde.t_min) & (t <= sde.t_max)).all()
    ratio = torch.log(sde.sigma(t) / sde.alpha(t))
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    low, high = (torch.log(sde.sigma(e) / sde.alpha(e)).item() for e in ends)
    inside = (ratio > low + 1e-6) & (ratio < high - 1e-6)
    law = stats.truncnorm((low + 0.7) / 0.9, (high + 0.7) / 0.9, loc=-0.7, scale=0.9)
    assert stats.kstest(ratio[inside].numpy(), law.cdf).pvalue > 1e-4
    clipped = 1 - (stats.norm.cdf((high + 0.7) / 0.9) - stats.norm.cdf((low + 0.7) / 0.9))
    share = (~inside).double().mean().item()
    se = math.sqrt(clipped * (1 - clipped) / len(U))
    print(f"{share:.4f} clipped for {clipped:.4f}, SE {se:.4f}")
    assert abs(share - clipped) <= 4 * se + 1e-3


@every_sde
def test_uniform_log_snr_is_uniform_in_lambda(sde):
    lam = sde.half_log_snr(uniform_log_snr(sde, U))
    low, high = sde.ends()
    assert stats.kstest(lam.numpy(), "uniform", (low, high - low)).pvalue > 1e-4


@pytest.mark.parametrize(
    "times", [uniform_time, LogNormalSigma(), uniform_log_snr], ids=["uniform", "log-normal", "log-snr"]
)
@every_sde
def test_every_time_sampler_feeds_the_loss_on_every_sde(sde, times):
    loss = denoising_score_matching(
        Gaussian(sde, MEAN, COV), torch.ones(6, 2, dtype=torch.float64), times=times, generator=seeded(0)
    )
    assert torch.isfinite(loss)


# ------------------------------------------------------------------------------------------------------------ weights


def test_weights_are_the_published_ones():
    (at,) = FlowSDE().levels([0.25])  # alpha = 3/4, sigma = 1/4, SNR = 9
    assert data_weight(at) == 1.0
    assert noise_weight(at) == pytest.approx(9.0)
    assert float(MinSNR()(at)) == pytest.approx(5.0)
    assert float(MinSNR(20.0)(at)) == pytest.approx(9.0)
    s, c = 1 / 3, 0.5
    assert EDMWeight(c)(at) == pytest.approx((s**2 + c**2) / (s * c) ** 2)


@every_sde
def test_the_edm_weight_is_one_on_the_raw_output(sde):
    for t in (0.1, 0.5, 0.9):
        (at,) = sde.levels([sde.t_min + t * (sde.t_max - sde.t_min)])
        factor = predict.EDM(0.4).coefficients(at).data_f ** 2
        assert EDMWeight(0.4)(at) * factor == pytest.approx(1.0, rel=1e-12)


@every_sde
def test_the_likelihood_weight_is_half_g_squared_on_the_score(sde):
    """Song et al. 2021: (g^2 / 2) |s_theta + eps / sigma|^2, for a network that is not exact."""
    t = sde.t_min + (sde.t_max - sde.t_min) * torch.tensor([0.07, 0.31, 0.93], dtype=torch.float64)
    x0 = torch.tensor([[0.5, -0.2], [1.0, 0.3], [-0.7, 0.1]], dtype=torch.float64)
    eps = torch.tensor([[0.3, 1.2], [-0.9, 0.4], [0.1, -2.0]], dtype=torch.float64)
    model = Network(lambda x, t: torch.sin(3 * x), sde, predict.score)
    a, s = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    expected = (sde.diffusion(t)[:, None] ** 2 / 2 * (torch.sin(3 * (a * x0 + s * eps)) + eps / s) ** 2).mean(1)
    found = denoising_score_matching(model, x0, t=t, eps=eps, weight=likelihood_weight, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


# ------------------------------------------------------------------------------------------------ where alpha = 0

ZERO_TERMINAL = DiscreteVPSDE([0.1, 0.2, 0.4, 0.6, 1.0])
ENDING = [FlowSDE(), CosineSDE(t_max=1.0), ZERO_TERMINAL]
KINDS = [predict.noise, predict.score, predict.data, predict.velocity, predict.v, predict.EDM(0.7)]
WEIGHTS = [data_weight, noise_weight, likelihood_weight, EDMWeight(0.7), MinSNR(), MinSNR(0.5)]


def factor(weight, kind, sde):
    """The weight on |F - target|^2 at alpha = 0, where sigma = 1 on both: by hand, from the tables; None: it diverges.

    With a -> 0: noise |dF|^2 / a^2 is the error of the data for noise and score; v, velocity and edm answer -x0,
    alpha' x0 + ... and x0 / c up to the state there.
    """
    rates: dict[type, float] = {
        FlowSDE: 1.0,
        CosineSDE: math.pi / 2,
        DiscreteVPSDE: -float(ZERO_TERMINAL.levels([4.0])[0].dalpha),
    }
    rate = rates[type(sde)]  # -alpha'
    on_data = {predict.data: 1.0, predict.velocity: rate**-2, predict.v: 1.0, predict.EDM(0.7): 0.49}
    if weight is data_weight:
        return on_data.get(kind)
    if isinstance(weight, EDMWeight):
        return on_data[kind] / 0.49 if kind in on_data else None
    if weight is likelihood_weight:
        return 0.0 if kind in on_data else None
    return 0.0 if kind in on_data else 1.0  # noise_weight, MinSNR: sigma = 1 makes the score the noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda w: getattr(w, "__name__", repr(w)))
@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("sde", ENDING, ids=repr)
def test_every_weight_has_its_limit_where_no_data_are_left_or_is_refused(sde, kind, weight, dtype):
    x0 = torch.tensor([[0.5, -0.2], [1.0, 0.3]], dtype=dtype)
    eps = torch.tensor([[0.3, 1.2], [-0.9, 0.4]], dtype=dtype)
    model = Network(lambda x, t: torch.sin(3 * x), sde, kind, clock=lambda at: at.t)
    t, expected = sde.t_max * torch.tensor([0.6, 1.0], dtype=torch.float64), factor(weight, kind, sde)
    alone = denoising_score_matching(model, x0, t=t, eps=eps, reduction="none")  # |F - target|^2
    drawn = dict(times=lambda sde, u: torch.full_like(u, sde.t_max), weight=weight, reduction="none")
    if expected is None:
        with pytest.raises(
            ValueError, match=r"the weight .* grows without bound where alpha = 0 \(t = [14]\): end at a smal"
        ):
            denoising_score_matching(model, x0, t=t, eps=eps, weight=weight)
        with pytest.raises(ValueError, match=f"on the answer of {re.escape(repr(kind))} grows without bound"):
            denoising_score_matching(model, x0, **drawn)
        return
    found = denoising_score_matching(model, x0, t=t, eps=eps, weight=weight, reduction="none")
    torch.testing.assert_close(found[1], expected * alone[1])
    (at,) = sde.levels([0.6 * sde.t_max])
    before = float(torch.as_tensor(weight(at))) * kind.coefficients(at).data_f ** 2
    torch.testing.assert_close(found[0], before * alone[0], rtol=1e-5, atol=0)  # its neighbour is as it was
    assert torch.isfinite(denoising_score_matching(model, x0, **drawn)).all()


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda w: getattr(w, "__name__", repr(w)))
@pytest.mark.parametrize("sde", ENDING, ids=repr)
def test_a_denoiser_that_is_no_network_has_the_weight_on_the_data_there(sde, weight):
    model = Gaussian(sde, MEAN, COV)
    x0 = model.sample(3, seed=0)
    t = torch.full((3,), sde.t_max, dtype=torch.float64)
    alone = denoising_score_matching(model, x0, t=t, generator=seeded(0), reduction="none")
    found = denoising_score_matching(model, x0, t=t, generator=seeded(0), reduction="none", weight=weight)
    expected = {data_weight: 1.0, EDMWeight(0.7): 1 / 0.49}.get(weight, 0.0)
    torch.testing.assert_close(found, expected * alone)


def test_a_weight_of_ones_own_has_its_limit_too():
    """P2 (Choi et al. 2022): SNR / (1 + SNR) on the data is 1 / (1 + SNR) on the noise, which is 1 where alpha = 0."""
    model = Network(lambda x, t: torch.sin(3 * x), FlowSDE(), predict.noise)
    x0, t = torch.ones(2, 2), torch.ones(2, dtype=torch.float64)
    found, alone = (
        denoising_score_matching(model, x0, t=t, generator=seeded(0), weight=w)
        for w in (lambda at: (at.alpha / at.sigma) ** 2 / (1 + (at.alpha / at.sigma) ** 2), None)
    )
    torch.testing.assert_close(found, alone)


# --------------------------------------------------------------------------------------------------------- the rest


def test_the_simple_loss_of_ddpm_written_out():
    betas = torch.linspace(1e-4, 0.02, 100, dtype=torch.float64)
    sde, net = DiscreteVPSDE(betas), torch.nn.Linear(3, 2).double()
    seen = []

    def eps_net(x, t, label):
        seen.append(label)
        return net(torch.cat([x, t[:, None] / 100], 1))

    t = torch.tensor([0, 17, 99])
    bar = torch.cumprod(1 - betas, 0)[t][:, None]
    x0, eps = torch.eye(3, dtype=torch.float64)[:, :2], torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
    x = bar.sqrt() * x0 + (1 - bar).sqrt() * eps
    expected = (eps - net(torch.cat([x, t.double()[:, None] / 100], 1))).square().mean()
    loss = denoising_score_matching(Network(eps_net, sde), x0, t=t, eps=eps, label="cat")
    assert seen == ["cat"]
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    loss.backward()
    assert net.weight.grad is not None
    assert net.weight.grad.abs().sum() > 0


def test_flow_matching_written_out():
    """|v(x_t) - (eps - x0)|^2 at x_t = (1 - t) x0 + t eps."""
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    x0, eps = torch.ones(2, 1, 2, 2).double(), torch.linspace(-1, 1, 8).double().reshape(2, 1, 2, 2)
    column = t.reshape(2, 1, 1, 1)
    x = (1 - column) * x0 + column * eps
    expected = (torch.tanh(x) - (eps - x0)).square().mean((1, 2, 3))
    model = Network(lambda x, t: torch.tanh(x), FlowSDE(), predict.velocity)
    found = denoising_score_matching(model, x0, t=t, eps=eps, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_generator_fixes_the_loss_and_the_dtype_is_that_of_the_data():
    sde = VPSDE()
    model = Network(lambda x, t: x, sde)
    x0 = torch.ones(5, 2)
    first, again, other = (denoising_score_matching(model, x0, generator=seeded(k)) for k in (1, 1, 2))
    assert first.dtype == torch.float32
    assert first == again
    assert first != other
