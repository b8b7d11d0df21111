"""Claim: whatever is handed to log_prob is either weighed as it should be or refused in words, before any work.

Derivatives of the likelihood, what a `LogProb` can do, inference mode, images, vectors and sequences, failures of
single rows, and the texts of errors and warnings.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import scaled
from mixtures import mixture
from refusals import check, refuses, wrong
from torch import nn
from zoo import DoubleWell

from sde_diffusion import VESDE, VPSDE, DiscreteVPSDE, FlowSDE, Network, SDESampler, clocks, predict
from sde_diffusion.cli import main as cli
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.likelihood import (
    Density,
    Elbo,
    Exact,
    LikelihoodWarning,
    LogProb,
    Method,
    Orthogonal,
    Rademacher,
    bits_per_dim,
    log_prob,
)
from sde_diffusion.nets import MLP
from sde_diffusion.solvers import (
    DDIM,
    RK4,
    Angle,
    DormandPrince,
    DPMSolverPP,
    EulerMaruyama,
    HeunEuler,
    Hold,
    Torchdiffeq,
)
from sde_diffusion.testing import check_likelihood
from sde_diffusion.training import save_checkpoint

VP = VPSDE()


class Net(nn.Module):
    """Smooth, of bounded slope, for events of any shape."""

    def __init__(self, d, dropout=0.0):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(d + 1, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, d)).double()

    def forward(self, x, t, shift=0.0):
        h = torch.cat([x.flatten(1), t[:, None]], 1)
        return self.layers(h).reshape(x.shape) + shift


def model(d=2, sde=VP, kind=predict.edm, **options):
    return Network(Net(d, **options), sde, kind).eval()


def points(n=3, d=2, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = points()


def weigh(net, x, **options):
    return SDESampler(net.sde, net).log_prob(x, **options)


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("trace", [Exact(), Exact(forward=True), Orthogonal(2), Orthogonal(2, forward=True)], ids=repr)
def test_gradients_in_data_and_parameters_agree_with_differences(trace):
    net, x = model(3), points(2, 3).requires_grad_()
    options = {"seed": 0, "method": Method(RK4(), steps=4, trace=trace, solver_error=False)}
    weight = net.net.layers[0].weight
    by_x, by_weight = torch.autograd.grad(weigh(net, x, grad=True, **options).value.sum(), (x, weight))
    h = 1e-4
    with torch.no_grad():  # of the very steps that the solver makes
        for i in range(3):
            step = h * torch.eye(3, dtype=torch.float64)[i]
            slope = (weigh(net, x + step, **options).value - weigh(net, x - step, **options).value) / (2 * h)
            torch.testing.assert_close(by_x[:, i], slope, rtol=1e-4, atol=1e-4)
        for place in [(0, 1), (5, 3)]:
            sides = []
            for sign in (1, -1):
                weight[place] += sign * h
                sides.append(weigh(net, x, **options).value.sum())
                weight[place] -= sign * h
            assert float(by_weight[place]) == pytest.approx(float((sides[0] - sides[1]) / (2 * h)), rel=1e-3, abs=1e-4)


def test_without_grad_nothing_is_kept():
    found = weigh(model(), points().requires_grad_())
    assert not found.value.requires_grad
    assert not found.latent.requires_grad


def test_the_gradient_of_a_joint_sample_reaches_the_parameters():
    net = model()
    sampler = SDESampler(VP, net, solver=Angle(DormandPrince(1e-4, 1e-4)), shape=(2,))
    x, found = sampler.sample_with_log_prob(2, seed=0, grad=True)
    (x.square().sum() + found.value.sum()).backward()
    assert float(net.net.layers[0].weight.grad.abs().sum()) > 0


# --------------------------------------------------------------------------------------------------------- the LogProb


def budget(n=3):
    return LogProb(
        torch.arange(float(n)),
        torch.full((n,), 3.0),
        torch.full((n,), 4.0),
        torch.full((n,), 0.01),
        torch.zeros(n, 2),
        120,
        torch.tensor([True] * (n - 1) + [False]),
        dim=2,
        level=0.01,
    )


def test_a_log_prob_can_be_indexed_joined_and_read():
    found = budget()
    assert found.total_error.tolist() == [5.0] * 3
    assert float(found.mean()) == 0.5  # of the rows that converged
    assert float(found[np.int64(1)].value) == float(found[torch.tensor(1)].value) == 1.0
    moved = found.to(torch.float64).cpu().detach()
    assert moved.value.dtype == moved.latent.dtype == torch.float64
    assert moved.converged.dtype == torch.bool
    assert float(found[1].value) == float(found[-2:-1].value) == 1.0
    assert found[-1].converged.tolist() == [False]
    assert found[found.converged].value.tolist() == [0.0, 1.0]
    assert len(LogProb.join([found, found[0]])) == 4
    assert (
        str(found) == "3 samples: 0.5000 +- 0.5 (over samples) nats at noise level 0.01, standard_error 3.0e+00, "
        "solver_error 4.0e+00, truncation 1.0e-02, nfe 120, 1 not converged"
    )
    assert repr(found) == f"<LogProb of {found}>"
    assert "corrected" in str(weigh(model(), points(), density=Density(correct=True)))


@refuses(
    (lambda: budget()[3], IndexError, "row 3 of 3"),
    (
        lambda: LogProb.join([budget(), replace(budget(), corrected=True)]),
        ValueError,
        "wanted parts of one density, got (level, whole, corrected) = [('0.01', False, False), ('0.01', False, True)]",
    ),
)
def test_what_is_ambiguous_is_refused(call, error, text):
    check(call, error, text)


def test_a_log_prob_and_a_bound_have_their_bits_as_a_tensor_has():
    found = budget()
    bits = bits_per_dim(found.value, 2, bin_width=0.1)
    assert torch.equal(found.bits_per_dim(0.1), bits)
    assert found.bits_standard_error.tolist() == pytest.approx([3.0 / (2 * math.log(2))] * 3)
    nothing = torch.zeros(3)
    bound = Elbo(nothing, nothing[:, None], -found.value, found.standard_error, 2, discrete=False, nfe=1)
    assert torch.equal(bound.bits_per_dim(0.1), bits)
    assert torch.equal(bound.bits_standard_error, found.bits_standard_error)
    for call in (lambda: bits_per_dim(found.value, 2, bin_width=0.0), lambda: found.bits_per_dim(0.0)):
        with pytest.raises(
            ValueError,
            match=r"a density costs bits only in bins.*: give their positive bin_width, got 0",
        ):
            call()
    with pytest.raises(TypeError, match=r"got LogProb, which knows its dimension: ask its own bits_per_dim\(bin_w"):
        bits_per_dim(wrong(found), 2, bin_width=0.1)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda s: s.log_prob(X, level=0.0),
            r"level= is no argument here: write density=Density\(level=...\)",
        ),
        (
            lambda s: s.log_prob(X, steps=4),
            r"steps= is no argument here: write method=Method\(steps=...\)",
        ),
        (
            lambda s: s.sample(2, return_log_prob=True),
            r"write sample_with_log_prob\(n\)\. A condition of the model that",
        ),
        (lambda s: s.sample_with_log_prob(2, trace=Exact()), r"sample_with_log_prob\(n, method=Method\(trace=...\)\)"),
        (
            lambda s: s.sample_with_log_prob(2, method=Method(steps=4)),
            "by the solver and on the grid of the sampler, got",
        ),
        (
            lambda s: s.log_prob(X, density=wrong(RK4())),
            r"density must be a Density, .* Density\(level=0\.0\), got RK4\(\)",
        ),
        (
            lambda s: log_prob(wrong(model()), X),
            r"needs a sampler, SDESampler\(sde, model\), or a Problem\(sde, model\), got N",
        ),
    ],
)
def test_an_option_in_the_wrong_place_is_told_its_own(call, text):
    with pytest.raises((TypeError, ValueError), match=text):
        call(SDESampler(VP, Gaussian(VP, X[0], 1.0), solver=RK4()))


def test_a_problem_has_the_density_of_a_sampler_on_all_of_its_times():
    x, sampler = points(), SDESampler(VP, model(), solver=RK4(), steps=3)
    quick = Method(RK4(), steps=4, solver_error=False)
    for density in (Density(), Density(whole=False)):
        found = log_prob(sampler.problem, x, density=density, method=quick)
        assert torch.equal(found.value, sampler.log_prob(x, density=density, method=quick).value)


# ------------------------------------------------------------------------------------------------------ kinds of input


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2), (2, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("trace", [Exact(), Orthogonal(2), Exact(forward=True)], ids=repr)
def test_vectors_images_and_sequences_have_one_density(shape, trace):
    x = points(2, 4)
    flat = weigh(model(4), x, method=Method(trace=trace, solver_error=False), seed=0)
    found = weigh(model(4), x.reshape(2, *shape), method=Method(trace=trace, solver_error=False), seed=0)
    torch.testing.assert_close(found.value, flat.value, rtol=1e-10, atol=1e-10)
    assert found.latent.shape == (2, *shape)


def test_float32_data_are_weighed_in_float32_and_added_up_in_float64():
    net = model()
    wide = weigh(net, points())
    narrow = weigh(model().float(), points().float())
    assert narrow.value.dtype == torch.float64
    assert narrow.latent.dtype == torch.float32
    assert (wide.value - narrow.value).abs().max() < 1e-3
    assert narrow.nfe < wide.nfe + 30


def test_in_inference_mode_it_is_the_same_number():
    net, x = model(), points()
    expected = weigh(net, x, method=Method(solver_error=False)).value
    with torch.inference_mode():
        torch.testing.assert_close(weigh(net, x, method=Method(solver_error=False)).value, expected)
        made_there = model()
        inside = weigh(made_there, points(), method=Method(solver_error=False), shift=torch.zeros(3, 2)).value
    torch.testing.assert_close(inside, expected, rtol=0, atol=1e-7)
    outside = weigh(made_there, points(), method=Method(trace=Orthogonal(2), solver_error=False), seed=0)
    torch.testing.assert_close(outside.value, expected, rtol=0, atol=1e-4)


def test_a_general_sde_is_integrated_in_t():

    class Pendulum(DoubleWell):
        def drift(self, x, t):
            return torch.sin(2 * x) - 0.5 * x

    x = torch.linspace(-9, 9, 401, dtype=torch.float64)[:, None]
    found = SDESampler(Pendulum(), lambda x, t: -x * (1 + 0.2 * t[:, None]), shape=(1,)).log_prob(x)
    assert found.solver_error.max() < 1e-2
    assert bool((found.truncation == 0).all())
    assert math.isnan(found.level)
    assert float(torch.trapezoid(found.value.exp(), x[:, 0])) == pytest.approx(1.0, abs=1e-4)
    assert "noise level" not in str(found)


def test_a_row_that_fails_is_flagged_and_the_others_stand():
    """Beyond a radius that one row alone enters, the network answers NaN."""

    class Broken(Net):
        def forward(self, x, t, shift=0.0):
            out = super().forward(x, t, shift)
            return torch.where((x.norm(dim=1) > 3)[:, None], math.nan, out)

    good, bad = model(), Network(Broken(2), VP, predict.edm).eval()
    x = torch.cat([points(), torch.tensor([[5.0, 1.0]], dtype=torch.float64)])
    with pytest.warns(LikelihoodWarning, match="1 of 4 log-likelihoods are NaN") as told:
        found = weigh(bad, x)
    assert "for row 3 at u = 0.01049 (noise level 0.01049) after 1 evaluations" in str(told[0].message)
    assert len(told) == 1
    assert found.converged.tolist() == [True, True, True, False]
    assert found.value.isnan().tolist() == [False, False, False, True]
    torch.testing.assert_close(found.value[:3], weigh(good, x[:3]).value, rtol=0, atol=1e-9)


class Cliff(nn.Module):
    """Answers what no step is short enough for, in one half of the space."""

    def forward(self, x, t):
        return (0.1 + 1e100 * (x[:, :1] > 0).to(x) ** 2 * 1e100) * torch.tanh(x)


def test_a_row_that_no_step_is_short_enough_for_is_flagged_and_the_others_stand():
    x = torch.tensor([[-1.0, 0.3], [2.0, 0.1], [-0.5, -0.4]], dtype=torch.float64)
    with pytest.warns(LikelihoodWarning, match="1 of 3 .* no step is short enough for, first for row 1 at u = "):
        found = weigh(Network(Cliff(), VP, predict.edm), x)
    assert found.converged.tolist() == [True, False, True]
    assert found.value.isnan().tolist() == [False, True, False]
    assert "nan" not in str(found)
    torch.testing.assert_close(found[2].value, weigh(Network(Cliff(), VP, predict.edm), x[2:]).value)


@pytest.mark.parametrize(
    ("grows", "steps", "told"),
    [
        (lambda x, t: -100 * x.pow(3), 4, r"NaN or inf, or the steps of RK4\(\) are too long, first for row 0 at u = "),
        (lambda x, t: 1e45 * x, 1, r"the state of row 0 grew beyond all numbers in the steps of RK4\(\). Take more"),
    ],
    ids=["on the way", "at the end"],
)
def test_a_fixed_solver_whose_state_overflows_is_told_to_take_more_steps(grows, steps, told):
    with pytest.warns(LikelihoodWarning, match=told):
        found = weigh(Network(grows, VP, predict.edm), 3 * points(), method=Method(RK4(), steps=steps))
    assert not found.converged.any()


def test_a_network_that_is_told_an_index_is_weighed_in_fixed_steps():
    chain = DiscreteVPSDE.linear(100)
    found = weigh(Network(Net(2), chain, predict.noise, clock=clocks.Index()).eval(), points())
    assert found.nfe == 4 * 32
    assert found.converged.all()


def test_probes_of_a_shared_stream_are_drawn_from_it():
    sampler = SDESampler(VP, model(), solver=RK4(), steps=4, shape=(2,))
    (x, a), (y, b) = (
        sampler.sample_with_log_prob(3, method=Method(trace=Rademacher(1)), seed=torch.Generator().manual_seed(0))
        for _ in range(2)
    )
    assert torch.equal(x, y)
    assert torch.equal(a.value, b.value)


def test_nothing_is_left_to_correct_at_level_zero():
    with pytest.warns(LikelihoodWarning, match="extrapolates"):
        found, plain = (
            weigh(model(), points(), density=Density(level=0.0, correct=c), method=Method(solver_error=False))
            for c in (True, False)
        )
    assert torch.equal(found.truncation, torch.zeros_like(found.value))
    assert torch.equal(found.value, plain.value)


def test_gradients_through_torchdiffeq_are_those_of_the_equation():
    x = points().requires_grad_()
    net = Network(Net(2), VP, predict.noise).eval()
    ours, theirs = (
        torch.autograd.grad(weigh(net, x, method=Method(solver, solver_error=False), grad=True).value.sum(), x)[0]
        for solver in (DormandPrince(1e-8, 1e-8), Torchdiffeq(rtol=1e-6, atol=1e-6))
    )
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)


def test_rows_that_use_up_their_evaluations_are_flagged():
    with pytest.warns(LikelihoodWarning, match="used up its evaluations before row 0 arrived"):
        found = weigh(model(), points(), method=Method(HeunEuler(1e-6, 1e-6, max_nfe=40), solver_error=False))
    assert not found.converged.any()
    assert bool(found.value.isnan().all())


# ------------------------------------------------------------------------------------------------------------- refusals

STOCHASTIC = "log_prob follows an ODE, but EulerMaruyama(eta=1.0) is stochastic: use solver=DormandPrince()"


@refuses(
    (lambda: weigh(model(), X, method=Method(EulerMaruyama())), TypeError, STOCHASTIC),
    (lambda: weigh(model(), X, method=Method(DDIM())), TypeError, "log_prob integrates a bare ODE, but DDIM(eta=0.0"),
    (
        lambda: weigh(model(), X, method=Method(Angle(DPMSolverPP()))),
        TypeError,
        "log_prob integrates a bare ODE, but Angle(",
    ),
    (
        lambda: weigh(model(), X, method=Method(wrong("rk4"))),
        TypeError,
        "solver must be a Solver such as DormandPrince()",
    ),
    (
        lambda: weigh(model(), X, method=Method(trace=wrong(8))),
        TypeError,
        "trace must be Exact(), Orthogonal(k) or Rademacher(k)",
    ),
    (
        lambda: weigh(model(), X, method=Method(trace=Orthogonal(3))),
        ValueError,
        "2 dimensions hold 2 orthogonal directions",
    ),
    (lambda: Rademacher(0), ValueError, "k must be at least 1"),
    (lambda: weigh(model(), X.half()), TypeError, "x0 has dtype torch.float16"),
    (lambda: weigh(model(), X[:0]), ValueError, "x0 is an empty batch"),
    (lambda: weigh(model(), X * math.nan), ValueError, "x0 holds 6 non-finite values"),
    (lambda: weigh(model(), X.long()), TypeError, "x0 has dtype torch.int64"),
    (lambda: weigh(model(), X, method=Method(steps=0)), ValueError, "steps must be at least 1"),
    (
        lambda: weigh(model(), X, method=Method(Hold())),
        TypeError,
        "log_prob follows an ODE, but Hold() never asks for its",
    ),
    (
        lambda: weigh(Gaussian(VP, X[0], 1.0), X, solver_eror=False),
        TypeError,
        "Gaussian takes no conditions, and there is no option solver_eror",
    ),
    (
        lambda: weigh(model(), X, density=Density(level=-1.0)),
        ValueError,
        "level must be a noise level sigma/alpha of at least 0",
    ),
    (
        lambda: weigh(model(), X, density=Density(whole=True)),
        ValueError,
        "whole=True integrates to alpha = 0, but the model was made",
    ),
    (lambda: weigh(model(kind=predict.data), X, density=Density(level=0.0)), ValueError, "level=0 lies below 0.010486"),
    (lambda: weigh(model(sde=FlowSDE(), kind=predict.noise), X), ValueError, "a noise prediction tells nothing of the"),
    (
        lambda: SDESampler(DoubleWell(), lambda x, t: -x).log_prob(X, density=Density(level=0.1)),
        TypeError,
        "level=, whole= and correct= speak of noise levels, which DoubleWell",
    ),
    (
        lambda: SDESampler(VESDE(0.01, 500.0), model().on(VESDE(0.01, 500.0))).log_prob(X),
        ValueError,
        "the sampler starts at noise level 500, but the model was made for levels up to 152.167: choose t_max of",
    ),
    (
        lambda: SDESampler(VP, model(), shape=(2,)).sample_with_log_prob(2, seed=0),
        TypeError,
        "sample_with_log_prob integrates a bare ODE, but UniPC(",
    ),
    (
        lambda: SDESampler(VP, model(), solver=EulerMaruyama(), shape=(2,)).sample_with_log_prob(2),
        TypeError,
        "sample_with_log_prob follows an ODE, but EulerMaruyama(eta=1.0) is stochastic",
    ),
)
def test_what_cannot_be_weighed_is_refused_in_words(call, error, text):
    check(call, error, text)


def test_nothing_is_evaluated_before_a_refusal():
    calls = 0

    def net(x, t):
        nonlocal calls
        calls += 1
        return x

    for sde, solver in [(VP, DDIM()), (FlowSDE(), None)]:
        with pytest.raises((TypeError, ValueError)):
            SDESampler(sde, Network(net, sde, predict.noise)).log_prob(X, method=Method(solver))
    assert calls == 0


def test_a_view_is_weighed_up_to_the_prior_of_its_process_where_its_network_knows_more():
    flow = model(sde=FlowSDE(), kind=predict.velocity)  # it answers at alpha = 0
    assert weigh(flow, points()).whole
    top = VP.levels([VP.t_max])[0].ratio
    ends = VP, FlowSDE(t_max=top / (1 + top))  # at the same noise level, where both have the same prior
    a, b = (weigh(flow.on(sde), points(), density=Density(level=0.02)) for sde in ends)
    assert (a.whole, b.whole) == (False, False)
    torch.testing.assert_close(a.value, b.value, rtol=0, atol=1e-5)


def test_a_level_below_the_trained_ones_is_told_with_both_numbers():
    with pytest.warns(LikelihoodWarning) as told:
        found = weigh(model(), X, density=Density(level=0.0))
    text = str(told[0].message)
    assert "starts at noise level 0, but the smallest that the model was made for is 0.010486" in text
    assert found.level == 0.0
    torch.testing.assert_close(found.value, weigh(model(), X).value, rtol=0, atol=0.05)
    wide = VPSDE(t_min=1e-5)
    with pytest.warns(LikelihoodWarning, match=r"noise level 0\.00100\d*, but .* made for is 0\.010486"):
        SDESampler(wide, model().on(wide)).log_prob(X)


def test_a_network_outside_of_the_graph_is_told():
    @torch.no_grad()
    def score(x, t):
        return -x

    class Still(DoubleWell):
        def drift(self, x, t):
            return torch.zeros_like(x)

    with pytest.raises(TypeError, match="the velocity has no graph back to the state"):
        SDESampler(Still(), score, shape=(2,)).log_prob(X)


@pytest.mark.parametrize("kind", [predict.edm, predict.noise, predict.data, predict.score, predict.v], ids=repr)
def test_a_network_outside_of_the_graph_is_told_on_a_gaussian_sde_too(kind):
    net = Net(2)
    with pytest.raises(TypeError, match="the answer of the network has no graph back to the state: it runs under"):
        weigh(Network(torch.no_grad()(net), VP, kind), X)
    weigh(Network(lambda x, t: torch.ones_like(x), VP, predict.edm), X)  # depends on nothing, which is fine


def test_a_network_of_another_dtype_is_told():
    text = r"the network, with parameters in torch.float32, cannot take a state in torch.float64 .*net.to\("
    with pytest.raises(TypeError, match=text):
        weigh(Network(Net(2).float(), VP, predict.edm).eval(), X)


# ------------------------------------------------------------------------------------------------- the check, for users


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_check_passes_what_is_sound(d):
    report = check_likelihood(SDESampler(VP, mixture(d, 3, low=0.2) if d > 1 else Gaussian(VP, X[0, :1], 0.3)), n=16)
    print(report)
    report.raise_for_failures()
    assert len(report.entries) == (7 if d < 3 else 5)


@pytest.mark.slow
def test_the_check_takes_data_and_judges_their_latents():
    good = mixture(2, 3, low=0.2)
    sampler = SDESampler(VP, good)
    assert not check_likelihood(sampler, good.sample(64, seed=0), n=16).warnings
    told = check_likelihood(sampler, 3 + good.sample(64, seed=0), n=64)
    assert [row.claim[:7] for row in told.warnings] == ["latents"]


def test_the_check_catches_a_network_that_leaves_the_graph():
    class Detached(Net):
        def forward(self, x, t, shift=0.0):
            return super().forward(x.detach(), t, shift)

    report = check_likelihood(SDESampler(VP, Network(Detached(2), VP, predict.edm, shape=(2,)).eval()), n=8)
    assert any("divergence against differences" in row.claim for row in report.failures)


# --------------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("likelihood")
    torch.manual_seed(0)
    sde = VPSDE()
    save_checkpoint(folder / "model", Network(MLP(2, hidden=8), sde, predict.edm, shape=(2,)), scaling=scaled(1.0, 2.0))
    np.save(folder / "x.npy", np.random.default_rng(0).normal(1, 2, (5, 2)).astype("float32"))
    return folder


def call(*words):
    return cli.main([str(word) for word in words])


def test_the_command_writes_a_number_for_every_sample(saved, tmp_path, capsys):
    words = ("likelihood", "--checkpoint", saved / "model", "--data", saved / "x.npy", "--out")
    assert call(*words, tmp_path / "found.json", "--bin-width", 0.1, "--batch-size", 2) == 0
    shown = capsys.readouterr()
    assert "5 samples:" in shown.out
    assert "bits/dim" in shown.out
    assert "5/5" in shown.err  # the progress bar
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["samples"] == found["converged"] == len(found["rows"]) == 5
    values = [row["log_prob"] for row in found["rows"]]
    assert found["log_prob"] == pytest.approx(np.mean(values))
    bits = -(np.array(values) / 2 + math.log(0.1)) / math.log(2)
    assert [row["bits_per_dim"] for row in found["rows"]] == pytest.approx(bits.tolist())
    # against the model itself, on standardised data
    from sde_diffusion.training import load_checkpoint

    net = load_checkpoint(saved / "model").model
    z = (torch.from_numpy(np.load(saved / "x.npy")) - 1) / 2
    there = SDESampler(net.sde, net).log_prob(z)
    assert values == pytest.approx((there.value - 2 * math.log(2)).tolist(), abs=1e-5)
    assert found["noise_level"] == pytest.approx(there.level)  # in units of the standard deviation,
    assert found["std"] == [2.0]  # which is this in the file
    assert found["noise_levels_trained"][0] == pytest.approx(found["noise_level"])
    assert (found["probes"], found["labels"]) == (None, False)
    assert found["nfe_check"] > 0


def test_the_command_writes_csv_and_takes_probes(saved, tmp_path):
    words = ("likelihood", "--checkpoint", saved / "model", "--data", saved / "x.npy", "--probes", 2, "--correct")
    assert call(*words, "--out", tmp_path / "found.csv") == 0
    lines = (tmp_path / "found.csv").read_text().splitlines()
    assert lines[0] == "sample,log_prob,standard_error,solver_error,truncation,converged"
    assert len(lines) == 6
    assert lines[1].startswith("0,")
    assert lines[1].endswith(",True")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--out", "x.txt"), "--out must end in .json or .csv"),
        (("--out", "no/x.csv"), "--out: there is no folder no"),
        (("--out", "x.csv", "--bin-width", "0"), "--bin-width must be positive and finite, got 0"),
        (("--out", "x.csv", "--bin-width", "inf"), "--bin-width must be positive and finite, got inf"),
        (("--out", "x.csv", "--probes", "5"), "2 dimensions hold 2 orthogonal directions"),
        (("--out", "x.csv", "--data", "y.npy"), "No data at y.npy"),
    ],
)
def test_the_command_refuses_in_one_line(words, text, saved, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("likelihood", "--checkpoint", saved / "model", "--data", saved / "x.npy", *words) == 2
    assert text in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_torchdiffeq_couples_rows_within_its_tolerance_alone():
    net, x = model(), points(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = weigh(net, x, method=Method(Torchdiffeq(rtol=1e-8, atol=1e-8), solver_error=False))
        alone = weigh(net, x[:1], method=Method(Torchdiffeq(rtol=1e-8, atol=1e-8), solver_error=False))
    assert (together.value[0] - alone.value[0]).abs() < 1e-5
    unasked = weigh(net, x, method=Method(RK4(), steps=1, solver_error=False))
    assert bool(unasked.solver_error.isnan().all())
    assert bool(unasked.total_error.isnan().all())
