"""Claim: what a loss weighs in the end is what the papers say, its value the likelihood's, its variance no larger.

The weight of the noise error in lambda is held to the closed forms of the table of losses; the likelihood weight to the
integral of a Gaussian; the variances to each other, and the learnt weight to the error that is left.
"""

from __future__ import annotations

import math
import signal
from typing import Any

import pytest
import torch
from torch import nn

from sde_diffusion import VESDE, VPSDE, CosineSDE, DiscreteVPSDE, FlowSDE, Network, SubVPSDE, predict
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.denoiser.objectives import time_samplers, weights
from sde_diffusion.denoiser.objectives.matching import DenoisingScoreMatching
from sde_diffusion.denoiser.objectives.time_samplers import (
    ImportanceSampler,
    LikelihoodImportance,
    LogitNormal,
    LogNormalSigma,
    stratified,
    uniform_log_snr,
    uniform_time,
)
from sde_diffusion.denoiser.objectives.uncertainty import Uncertainty
from sde_diffusion.denoiser.objectives.weights import (
    P2,
    EDMWeight,
    MinSNR,
    data_weight,
    likelihood_weight,
    noise_weight,
)
from sde_diffusion.nets import MLP
from sde_diffusion.training import Recipe, TrainingInterrupted, train

LAM = torch.linspace(-2.5, 3.0, 23, dtype=torch.float64)
SNR = torch.exp(2 * LAM)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def uniform_density(sde):
    """p(lambda) of uniform times: 1 / (-lambda' (t_max - t_min)), with -2 lambda' = g^2 / sigma^2."""
    t = sde.time_of(LAM)
    return 2 * sde.sigma(t) ** 2 / sde.diffusion(t) ** 2 / (sde.t_max - sde.t_min)


VP, COSINE, FLOW = VPSDE(), CosineSDE(t_max=1.0), FlowSDE()
P, M, S = uniform_density(VP), -1.0, 1.3
NORMAL = torch.exp(-((-LAM - M) ** 2) / (2 * S * S)) / (S * math.sqrt(2 * math.pi))
WIDE = DiscreteVPSDE.linear(500)


def logit_normal(m, s):
    """w of flow matching with them: the density of t between t_min and 1, |dlambda/dt|^-1 and 1 / alpha^2."""
    t = FLOW.time_of(LAM)
    q = (t - FLOW.t_min) / (1 - FLOW.t_min)
    normal = torch.exp(-((torch.logit(q) - m) ** 2) / (2 * s * s)) / (s * math.sqrt(2 * math.pi))
    return normal / (q * (1 - q)) / (1 - FLOW.t_min) * t * (1 - t) / (1 - t) ** 2


TABLE: dict[str, tuple[Any, ...]] = {
    "score": (VP, predict.score, uniform_time, None, lambda: P * (1 + SNR)),
    "score, sigma^2": (VP, predict.score, uniform_time, noise_weight, lambda: P),
    "score, g^2/2": (VP, predict.score, uniform_time, likelihood_weight, lambda: 1 / (VP.t_max - VP.t_min)),
    "simple": (VP, predict.noise, uniform_time, None, lambda: P),
    "x0": (VP, predict.data, uniform_time, None, lambda: P / SNR),
    "v, cosine": (COSINE, predict.v, uniform_time, None, lambda: 2 / math.pi / (1 - COSINE.t_min) * torch.exp(-LAM)),
    "flow matching": (FLOW, predict.velocity, uniform_time, None, lambda: torch.exp(-LAM) / (1 - FLOW.t_min)),
    "logit-normal": (FLOW, predict.velocity, LogitNormal(-0.3, 0.8), None, lambda: logit_normal(-0.3, 0.8)),
    "EDM": (VESDE(0.001, 200.0), predict.EDM(0.5), LogNormalSigma(M, S), None, lambda: NORMAL * (1 + 4 / SNR)),
    "EDM, on the data": (VP, predict.data, LogNormalSigma(M, S), EDMWeight(0.5), lambda: NORMAL * (1 + 4 / SNR)),
    "likelihood": (VP, predict.v, uniform_time, likelihood_weight, lambda: 1 / (VP.t_max - VP.t_min)),
    "importance": (VP, predict.v, LikelihoodImportance(), likelihood_weight, lambda: 1 / (VP.t_max - VP.t_min)),
    "log-SNR": (WIDE, predict.noise, uniform_log_snr, None, lambda: 1 / (WIDE.ends()[1] - WIDE.ends()[0])),
    "min-SNR": (VP, predict.noise, uniform_time, MinSNR(5.0), lambda: P * (5 / SNR).clamp_max(1.0)),
    "min-SNR, v": (VP, predict.v, uniform_time, MinSNR(5.0), lambda: P * (5 / SNR).clamp_max(1.0)),
    "P2": (VP, predict.edm, uniform_time, P2(0.5, 1.5), lambda: P / (0.5 + SNR) ** 1.5),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_effective_weight_is_that_of_the_table(name):
    sde, kind, times, weight, expected = TABLE[name]
    found = DenoisingScoreMatching(times, weight).effective_weight(Network(lambda x, t: x, sde, kind), LAM)
    wanted = torch.as_tensor(expected(), dtype=torch.float64).expand(found.shape)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_the_weight_on_the_answer_v_of_min_snr_has_its_one_in_the_denominator_alone():
    """min(SNR, gamma) / (SNR + 1), for which a slip was in wide use: min(SNR + 1, gamma) / (SNR + 1)."""
    t = torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64)
    model = Network(lambda x, t: torch.sin(x), VP, predict.v)
    x0, eps = torch.ones(3, 2, dtype=torch.float64), torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)
    plain, found = (
        DenoisingScoreMatching(weight=w)(model, x0, t=t, eps=eps, reduction="none") for w in (None, MinSNR(5.0))
    )
    snr = (VP.alpha(t) / VP.sigma(t)) ** 2
    torch.testing.assert_close(found, plain * snr.clamp_max(5.0) / (snr + 1))


def test_outside_the_range_of_the_process_the_weight_is_zero():
    model = Network(lambda x, t: x, VP, predict.noise)
    low, high = VP.ends()
    found = DenoisingScoreMatching().effective_weight(model, torch.tensor([low - 0.1, 0.0, high + 0.1]))
    assert found.dtype == torch.float64
    assert found[0] == found[2] == 0 < found[1]
    assert not DenoisingScoreMatching().effective_weight(model, torch.tensor([20.0, 30.0])).any()


def test_what_is_no_lambda_or_no_draw_of_times_is_refused():
    model, loss = Network(lambda x, t: x, VP, predict.noise), DenoisingScoreMatching()
    wrong: Any
    for wrong in (0.5, torch.arange(3)):
        with pytest.raises(TypeError, match=r"lam must be a float tensor of log\(alpha / sigma\), torch\.linspace"):
            loss.effective_weight(model, wrong)
    with pytest.raises(ValueError, match=r"lam has shape \(2, 1\), wanted \(n,\)"):
        loss.effective_weight(model, torch.zeros(2, 1))
    falling = DenoisingScoreMatching(lambda sde, u: uniform_time(sde, 1 - u))
    with pytest.raises(ValueError, match="fall with u, wanted a map that rises: hand it 1 - u"):
        falling.effective_weight(model, LAM)


def test_p2_refuses_what_is_no_constant_of_it():
    with pytest.raises(ValueError, match="k must be"):
        P2(k=0.0)
    with pytest.raises(ValueError, match=r"gamma must be 0 or more, got -1\.0: 1 is usual, 0 is noise_weight"):
        P2(gamma=-1.0)


# ------------------------------------------------------------------------------------------------------- likelihood

V = torch.tensor([1.5, 0.4, 0.05], dtype=torch.float64)
EVERY = [VP, SubVPSDE(), VESDE(), FLOW, COSINE, DiscreteVPSDE.linear(100)]


@pytest.mark.parametrize("sde", EVERY, ids=repr)
def test_the_likelihood_weight_gives_the_integral_of_a_gaussian_and_importance_sampling_the_same(sde):
    r"""D (t_max - t_min) L = 1/2 sum_i [log(1 + v_i e^{2 lambda})] between the ends of lambda."""
    low, high = (torch.tensor(end, dtype=torch.float64) for end in sde.ends())
    truth = float((torch.log1p(V * torch.exp(2 * high)) - torch.log1p(V * torch.exp(2 * low))).sum() / 2)
    model, n = Gaussian(sde, torch.zeros(3, dtype=torch.float64), V), 20_000
    x0, spread = model.sample(n, seed=0), {}
    for times in (uniform_time, LikelihoodImportance()):
        loss = DenoisingScoreMatching(times, likelihood_weight)
        nats = loss(model, x0, generator=seeded(1), reduction="none") * 3 * (sde.t_max - sde.t_min)
        se = nats.std().item() / math.sqrt(n)
        print(f"{times}: {nats.mean():.4f} for {truth:.4f}, SE {se:.4f}")
        assert abs(nats.mean().item() - truth) < 4 * se
        spread[isinstance(times, ImportanceSampler)] = se
    assert spread[True] < 0.7 * spread[False]


def test_on_gaussian_data_of_its_scale_importance_sampling_adds_no_variance():
    """The value at a time is c^2 chi^2 / D times the same number: of relative variance 2 / D."""
    model = Gaussian(FLOW, torch.zeros(3, dtype=torch.float64), 0.49)
    loss = DenoisingScoreMatching(LikelihoodImportance(0.7), likelihood_weight)
    found = loss(model, model.sample(20_000, seed=0), generator=seeded(1), reduction="none")
    relative = float(found.var() / found.mean() ** 2)
    print(f"relative variance {relative:.4f} for {2 / 3:.4f}")
    assert abs(relative - 2 / 3) < 4 * (2 / 3) * math.sqrt(14 / 20_000)


@pytest.mark.parametrize("sde", EVERY, ids=repr)
def test_importance_times_are_in_the_range_up_to_the_ends(sde):
    u = torch.tensor([0.0, 0.5, 1 - 1e-12, 1.0], dtype=torch.float64)
    for times in time_samplers.NAMES.values():
        if times is uniform_log_snr and math.isinf(sde.ends()[0]):
            continue
        t = times(sde, u)
        assert bool((t.diff() >= 0).all())
        assert sde.t_min <= t[0] < t[1] < t[-1] <= sde.t_max
    exact = LikelihoodImportance()(sde, u)
    assert exact[0] == pytest.approx(sde.t_min, abs=1e-6 * sde.t_max)
    assert exact[-1] == pytest.approx(sde.t_max, rel=1e-6)


def test_where_nothing_of_the_data_is_left_the_correction_has_its_limit_or_is_refused():
    x0, t = torch.ones(2, 2), torch.ones(2, dtype=torch.float64)
    model = Network(lambda x, t: torch.sin(x), FLOW, predict.v)
    loss = DenoisingScoreMatching(LikelihoodImportance(), likelihood_weight)
    found, plain = (how(model, x0, t=t, generator=seeded(0)) for how in (loss, DenoisingScoreMatching()))
    # (1 + c^2 e^{2 lambda}) / c^2 * (span / T) on the data, of which the answer v is minus
    torch.testing.assert_close(found, plain * 0.5 * math.log1p(0.999**2 / 1e-6) / 0.999)
    with pytest.raises(ValueError, match=r"the weight that corrects for Likelihood.* on the answer of V\(\) gr"):
        DenoisingScoreMatching(LikelihoodImportance())(model, x0, t=t)
    with pytest.raises(ValueError, match=r"the weight likelihood_weight with the correction of Likelih"):
        loss(Network(lambda x, t: x, FLOW, predict.noise), x0, t=t)


# --------------------------------------------------------------------------------------------------------- variance


def test_stratified_shares_of_a_batch_hit_every_stratum_once_together():
    loss, model = DenoisingScoreMatching(), Gaussian(VP, torch.zeros(2), 1.0)
    whole = loss.times_for(model, 24, seeded(3))
    shares = [loss.times_for(model, 24, seeded(3))[r::4] for r in range(4)]  # each process draws them all
    together = torch.cat(shares).sort().values
    assert torch.equal(together, whole.sort().values)
    u = (together - VP.t_min) / (VP.t_max - VP.t_min) - stratified(24, seeded(3)).min()
    assert torch.equal((u * 24).round().long(), torch.arange(24))


@pytest.mark.parametrize("low_discrepancy", [True, False])
def test_the_draws_are_those_of_the_call(low_discrepancy):
    loss = DenoisingScoreMatching(LogNormalSigma(), low_discrepancy=low_discrepancy)
    model = Gaussian(VP, torch.zeros(2, dtype=torch.float64), 1.0)
    x0 = model.sample(8, seed=0)
    for how in (loss, Uncertainty(loss)):
        t, eps = how.draws(model, (2,), 8, seeded(5), dtype=torch.float64)
        assert t.dtype == torch.float64
        assert torch.equal(how(model, x0, generator=seeded(5)), how(model, x0, t=t, eps=eps))
    assert loss.draws(model, (), 3)[1].shape == (3,)


def test_the_variance_of_a_batch_is_in_the_order_that_was_measured_on_digits():
    """Batches of 128 in 64 dimensions; on digits .654 and .389, .111 and .031, .148 and .067, of the last three."""
    v = torch.logspace(0, -3, 64, dtype=torch.float64)
    model = Gaussian(VP, torch.zeros(64, dtype=torch.float64), v)
    x0 = model.sample(40 * 128, seed=0)

    def relative(times, weight, low):
        loss, generator = DenoisingScoreMatching(times, weight, low_discrepancy=low), seeded(2)
        found = torch.stack([loss(model, part, generator=generator) for part in x0.split(128)])
        return float(found.std() / found.mean())

    table = {
        "likelihood, uniform t": (uniform_time, likelihood_weight),
        "likelihood, importance": (LikelihoodImportance(), likelihood_weight),
        "uniform in lambda": (uniform_log_snr, noise_weight),
        "simple": (uniform_time, noise_weight),
    }
    apart, spread = ({k: relative(*how, low) for k, how in table.items()} for low in (False, True))
    for name in table:
        print(f"{name}: relative std {apart[name]:.3f} independent, {spread[name]:.3f} stratified")
        assert spread[name] < 0.8 * apart[name]
    for found in (apart, spread):
        assert found["likelihood, importance"] < 0.5 * found["likelihood, uniform t"]
        assert found["uniform in lambda"] < 0.5 * found["likelihood, uniform t"]


def linear(sde, kind, at, theta):
    """A network whose noise prediction is the exact one of N(0, 1), and theta x of its own."""
    c = kind.coefficients(at)
    slope = (at.sigma / (1 + at.sigma**2) - c.noise_x) / c.noise_f
    return Network(lambda x, t: x * (slope / float(kind.input_scale(at)) + theta), sde, kind, clock="time")


@pytest.mark.parametrize("kind", predict.NAMES.values(), ids=repr)
@pytest.mark.parametrize(("sigma", "most"), [(0.01, 1e-3), (0.1, 0.1), (1.0, 1.0 + 1e-9), (5.0, 1.0 + 1e-9)])
def test_the_control_variate_takes_the_variance_of_the_gradient_at_little_noise_away(kind, sigma, most):
    """A linear answer to Gaussian data: without it the gradient has variance O(1), with it O(sigma^2)."""
    n, sde = 4000, VESDE(1e-4, 10.0)
    x0, eps = (torch.randn(n, 4, dtype=torch.float64, generator=seeded(k)) for k in (0, 1))
    (at,) = sde.levels([float(sde.time_of(torch.tensor(-math.log(sigma))))])
    theta = torch.zeros(n, 1, dtype=torch.float64, requires_grad=True)
    model, t, found = linear(sde, kind, at, theta), torch.full((n,), at.t, dtype=torch.float64), []
    for control in (False, True):
        value = DenoisingScoreMatching(control_variate=control)(model, x0, t=t, eps=eps, reduction="none")
        (gradient,) = torch.autograd.grad(value.sum(), theta)
        found.append((value.detach(), gradient[:, 0]))
    (plain, before), (mended, after) = found
    of_gradient, of_value = float(after.var() / before.var()), float(mended.var() / plain.var())
    print(f"variance of the gradient {of_gradient:.2e} of what it was, of the value {of_value:.2e}")
    assert of_gradient < most
    assert of_value < most
    assert abs(float((plain - mended).mean())) <= 4 * math.sqrt(float((plain - mended).var()) / n)


def test_the_control_variate_takes_a_second_evaluation_and_the_conditions_along():
    seen = []

    def net(x, t, label):
        seen.append(label)
        return x

    model = Network(net, FLOW, predict.velocity)
    loss = DenoisingScoreMatching(control_variate=True)
    t = torch.tensor([0.3, 1.0], dtype=torch.float64)  # at 1, where alpha = 0, the variate is 0
    found = loss(model, torch.ones(2, 2), t=t, generator=seeded(0), reduction="none", label="cat")
    assert seen == ["cat", "cat"]
    plain = DenoisingScoreMatching()(model, torch.ones(2, 2), t=t, generator=seeded(0), reduction="none", label="cat")
    assert found[1] == plain[1]
    assert found[0] != plain[0]
    assert repr(loss).endswith("weight=None, control_variate=True)")
    wrong: Any = "yes"
    with pytest.raises(TypeError, match="control_variate"):
        DenoisingScoreMatching(control_variate=wrong)


# ------------------------------------------------------------------------------------------------------ uncertainty


def test_the_learnt_weight_finds_the_logarithm_of_the_error_that_is_left():
    """With the exact answer to N(0, v I), E L = v s^2 / (v + s^2) at sigma/alpha = s, times the weight."""
    v, sde = 0.25, VESDE(0.01, 20.0)
    model = Gaussian(sde, torch.zeros(8, dtype=torch.float64), v)
    loss = Uncertainty(DenoisingScoreMatching(uniform_log_snr, data_weight))
    optimiser, generator, steps = torch.optim.Adam(loss.parameters()), seeded(0), 200
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-2 * (1 - step / steps)
        optimiser.zero_grad()
        loss(model, model.sample(512, seed=generator), generator=generator).backward()
        optimiser.step()
    lam = torch.linspace(-2.9, 4.5, 40, dtype=torch.float64)
    s2 = torch.exp(-2 * lam)
    truth, u = torch.log(v * s2 / (v + s2)), loss.log_error(lam).detach().double()
    off, span = (u - truth).abs(), float(truth.max() - truth.min())
    print(f"u is off by {off.max():.3f} at most, {off.mean():.3f} on average, over {span:.1f}")
    assert off.mean() < 0.06
    assert off.max() < 0.3
    plain = loss.objective.effective_weight(model, lam)
    torch.testing.assert_close(loss.effective_weight(model, lam), plain * torch.exp(-u))


def test_the_learnt_weight_starts_at_none_is_finite_without_data_and_is_saved_apart_from_the_model():
    loss = Uncertainty(DenoisingScoreMatching(), features=4)
    model = Network(MLP(2, hidden=8), FLOW, predict.velocity, shape=(2,))
    x0 = torch.ones(3, 2)
    assert torch.equal(loss(model, x0, generator=seeded(0)), loss.objective(model, x0, generator=seeded(0)))
    at_the_end = loss.log_error(torch.tensor([-math.inf, math.inf, 0.0]))
    assert at_the_end.tolist() == [0.0, 0.0, 0.0]
    with torch.no_grad():
        loss.v.copy_(torch.tensor([0.1, -0.2, 0.3, 0.4]))
    ends = loss.log_error(torch.tensor([-math.inf, -1e9]))
    torch.testing.assert_close(ends[0], ends[1])
    value = loss(model, x0, t=torch.ones(3, dtype=torch.float64), generator=seeded(0), reduction="none")
    plain = loss.objective(model, x0, t=torch.ones(3, dtype=torch.float64), generator=seeded(0), reduction="none")
    torch.testing.assert_close(value, plain * torch.exp(-ends[0]) + ends[0])
    other = Uncertainty(DenoisingScoreMatching(), features=4)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.log_error(LAM), loss.log_error(LAM))
    assert not {id(p) for p in loss.parameters()} & {id(p) for p in model.parameters()}
    assert isinstance(loss, nn.Module)
    assert repr(loss) == "Uncertainty(DenoisingScoreMatching(times=uniform_time, weight=None), features=4)"
    assert (
        repr(Uncertainty(DenoisingScoreMatching()))
        == "Uncertainty(DenoisingScoreMatching(times=uniform_time, weight=None))"
    )


def test_train_trains_the_learnt_weight_beside_the_model_and_a_run_that_goes_on_takes_it_up(tmp_path):
    x = torch.randn(64, 2, generator=seeded(0))

    def fourth(event):
        if event.kind == "step" and event.step == 4:
            signal.raise_signal(signal.SIGINT)

    def learnt(**where):
        torch.manual_seed(0)
        model = Network(MLP(2, hidden=8, layers=1), VP, predict.edm, shape=(2,))
        loss = Uncertainty(model.objective())
        train(model, x, steps=8, recipe=Recipe(16), loss=loss, seed=0, **where)
        return loss.v.detach()

    whole = learnt()
    assert whole.abs().min() > 0
    with pytest.raises(TrainingInterrupted, match="after 4 of 8 steps"):
        learnt(out=tmp_path, callbacks=[fourth])
    assert torch.equal(learnt(out=tmp_path, resume=True), whole)


def test_the_learnt_weight_divides_nothing_but_denoising_score_matching():
    function: Any = lambda model, x0, **rest: x0.mean()  # noqa: E731 - typed, so that it can be handed over
    with pytest.raises(TypeError, match=r"Uncertainty divides a DenoisingScoreMatching, such as model\.obj"):
        Uncertainty(function)
    with pytest.raises(ValueError, match="features must be"):
        Uncertainty(DenoisingScoreMatching(), features=0)
    with pytest.raises(TypeError, match="the loss needs a Denoiser"):
        Uncertainty(DenoisingScoreMatching())(nn.Linear(2, 2), torch.ones(2, 2))


def test_the_lists_hold_every_weight_and_every_draw_of_times_by_name():
    assert set(map(weights.name_of, weights.NAMES.values())) >= {"data_weight", "noise_weight", "likelihood_weight"}
    assert {type(w) for w in weights.NAMES.values()} >= {EDMWeight, MinSNR, P2}
    assert {type(t) for t in time_samplers.NAMES.values()} >= {LogNormalSigma, LogitNormal, LikelihoodImportance}
