"""Claim: the six parametrisations are one denoiser in six dresses: same halves, same samples, same weighted loss.

`as_output` writes what a network of each kind would answer from the exact pair (data, noise), from the papers'
definitions; the library must recover the pair from it.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import zoo
from torch import nn

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    CosineSDE,
    DiscreteVPSDE,
    FlowSDE,
    Network,
    Prediction,
    SDESampler,
    SubVPSDE,
    clocks,
    grids,
    losses,
    predict,
)
from sde_diffusion.denoiser import On
from sde_diffusion.denoiser.analytic import Gaussian, GaussianMixture
from sde_diffusion.nets import MLP, UNet
from sde_diffusion.solvers import DDIM, RK4, Angle, DPMSolverPP, EulerMaruyama, Heun

STD = 0.6
KINDS = {
    "noise": predict.noise,
    "data": predict.data,
    "score": predict.score,
    "velocity": predict.velocity,
    "v": predict.v,
    "edm": predict.EDM(STD),
}
CHAIN, FLOW = DiscreteVPSDE.linear(1000), FlowSDE(t_max=0.99)
SDES = [VPSDE(), SubVPSDE(), VESDE(), BrownianSDE(), CosineSDE(), EDMSDE(), FLOW, CHAIN]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_sde = pytest.mark.parametrize("sde", SDES, ids=repr)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def as_output(kind, data, noise, a, s, da, ds):
    """What a network of each kind answers where the clean data are `data` and the unit noise is `noise`."""
    if kind == "edm":  # Karras et al. 2022, equation 7 at sigma / alpha: D = c_skip x / a + c_out F
        ratio = s / a
        skip, out = STD**2 / (ratio**2 + STD**2), ratio * STD / (ratio**2 + STD**2) ** 0.5
        return (data - skip * (data + ratio * noise)) / out
    return {
        "noise": noise,
        "data": data,
        "score": -noise / s,
        "velocity": da * data + ds * noise,
        "v": a * noise - s * data,
    }[kind]


def mixture(sde):
    means, weights = f64(1.0, -0.5, -0.8, 0.6).reshape(2, 2), f64(0.3, 0.7)
    return GaussianMixture(sde, weights, means, f64(0.30, 0.05, 0.08, 0.25).reshape(2, 2))


def network(kind, sde):
    """The exact denoiser of the mixture as a network of the given kind."""
    exact = mixture(sde)

    def net(x, t):
        # `edm` networks see a scaled state; undo it, and use the time itself as clock
        at = sde.level(t, x)
        a, s = at.alpha, at.sigma
        if kind == "edm":
            x = x * (a * a * STD**2 + s * s) ** 0.5
        answer = exact(x, t)
        return as_output(kind, answer.data, answer.noise, a, s, at.dalpha, at.dsigma)

    return Network(net, sde, KINDS[kind], clock=clocks.time, shape=(2,))


# ------------------------------------------------------------------------------------------------- table of the kinds


@every_kind
@every_sde
def test_both_halves_are_recovered_from_the_output(sde, kind):
    u = f64(0.013, 0.21, 0.5, 0.777, 1.0)
    t = sde.t_min + (sde.t_max - sde.t_min) * u
    data = torch.linspace(-2, 2, 10, dtype=torch.float64).reshape(5, 2)
    noise = torch.cos(torch.arange(10, dtype=torch.float64)).reshape(5, 2)
    at = sde.level(t, data)
    x = at.alpha * data + at.sigma * noise
    f = as_output(kind, data, noise, at.alpha, at.sigma, at.dalpha, at.dsigma)
    found = Prediction.of_output(x, f, KINDS[kind].coefficients(at))
    # As accurate as the level leaves them: with S = sigma / alpha, the data to S roundings and the noise to 1 / S.
    ratio = at.sigma / at.alpha
    assert ((found.data - data).abs() < 1e-13 * (1 + ratio)).all()
    assert ((found.noise - noise).abs() < 1e-13 * (1 + 1 / ratio)).all()
    on_x0, on_eps = KINDS[kind].target(at)
    torch.testing.assert_close(on_x0 * data + on_eps * noise, f, rtol=1e-10, atol=1e-12)


@every_kind
@every_sde
def test_floats_and_tensors_give_the_same_coefficients(sde, kind):
    t = 0.5 * (sde.t_min + sde.t_max)
    (floats,) = sde.levels([t])
    tensors = sde.level(t, torch.zeros(1, 1, dtype=torch.float64))
    for p, q in zip(KINDS[kind].coefficients(floats), KINDS[kind].coefficients(tensors), strict=True):
        assert float(p) == pytest.approx(float(q), rel=1e-14)


@every_kind
def test_combine_is_what_its_name_says(kind):
    sde = VPSDE()
    (at,) = sde.levels([0.3])
    x, f = f64(0.5, -1.0)[None], f64(0.2, 0.7)[None]
    found = Prediction.of_output(x, f, KINDS[kind].coefficients(at))
    for p, q in ((1.0, 0.0), (0.0, 1.0), (0.3, -2.0), (0.0, 0.0)):
        torch.testing.assert_close(found.combine(p, q), p * found.data + q * found.noise, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", [*KINDS, None])
@pytest.mark.parametrize("half", ["data", "noise"])
def test_one_half_is_remembered_as_one_tensor(kind, half):
    sde, x = VPSDE(), mixture(VPSDE()).sample(8, seed=1)
    if kind is None:
        pair = Prediction(lambda: 2 * x, lambda: 3 * x)
    else:
        (at,) = network(kind, sde).levels([0.4])
        pair = network(kind, sde).predict(x, at)
    out, whole = torch.ones_like(x), torch.ones_like(x)
    p, q = (0.7, 0.0) if half == "data" else (0.0, -0.3)
    pair.only(half).add_to(out, p, q)
    pair.add_to(whole, p, q)
    torch.testing.assert_close(out, whole, rtol=1e-13, atol=1e-13)


def test_combine_works_on_a_pair_of_functions_too():
    pair = Prediction(lambda: f64(1.0, 2.0), lambda: f64(3.0, -1.0))
    torch.testing.assert_close(pair.combine(2.0, 0.5), f64(3.5, 3.5))
    torch.testing.assert_close(pair.combine(0.0, 0.5), f64(1.5, -0.5))


def test_a_half_is_computed_only_when_asked_and_once():
    asked = []

    def half(name, value):
        asked.append(name)
        return f64(value)

    pair = Prediction(lambda: half("data", 1.0), lambda: half("noise", 2.0))
    assert not asked
    assert pair.noise == 2.0
    assert pair.noise == 2.0
    assert asked == ["noise"]
    assert pair.data == 1.0
    assert asked == ["noise", "data"]


def test_the_score_is_known_where_no_data_are_left():
    model = Network(lambda x, t: x, FlowSDE(), predict.noise)
    x = f64(0.5, -1.0)[None]
    torch.testing.assert_close(model.score(x, 1.0), -x)  # sigma = 1, noise = x
    torch.testing.assert_close(model(x, 1.0).noise, x)


@every_kind
def test_small_noise_keeps_float32_accuracy(kind):
    """No half is formed from the other: noise -> data -> noise would lose 1e-7 / sigma = 6e-5 at sigma = 1e-3."""
    sde, ratio = EDMSDE(sigma_min=1e-4), 1e-3
    data, noise = torch.tensor([[0.7, -0.4]]), torch.tensor([[0.3, -1.2]])
    at = sde.level(ratio, data)
    x = data.double() + ratio * noise.double()
    f = as_output(kind, data.double(), noise.double(), 1.0, ratio, 0.0, 1.0).float()
    found = Prediction.of_output(x.float(), f, KINDS[kind].coefficients(at))
    assert found.data.dtype == found.noise.dtype == torch.float32
    torch.testing.assert_close(found.data, data, rtol=0, atol=2e-7)
    if kind in ("noise", "score", "velocity"):  # what the network answers is, on this SDE, the noise up to a factor
        torch.testing.assert_close(found.noise, noise, rtol=3e-7, atol=0)
    if kind == "v":
        torch.testing.assert_close(found.noise, noise, rtol=1e-6, atol=0)


# ----------------------------------------------------------------------------------- one denoiser, one sample, one loss


@pytest.mark.parametrize(
    "solver",
    [DPMSolverPP(2), DDIM(0.0), DDIM(1.0), Heun(), EulerMaruyama(), Angle(RK4(), STD)],
    ids=lambda s: repr(s).partition("(")[0] + str(getattr(s, "eta", "")),
)
@pytest.mark.parametrize("sde", [VPSDE(), FlowSDE(t_max=0.99), EDMSDE()], ids=repr)
def test_six_forms_of_one_denoiser_give_one_sample(sde, solver):
    # Rounding of 1e-16 in an output is amplified by at most 1 / sigma_min = 1e3 and averaged over 12 steps: 1e-10.
    options: Any = {"solver": solver, "steps": 12, "grid": grids.angle}
    truth = SDESampler(sde, mixture(sde), **options).sample(3, seed=0)
    for kind in KINDS:
        print(kind)
        found = SDESampler(sde, network(kind, sde), **options).sample(3, seed=0, noise=streams64)
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)


def streams64(seeds, shape, dtype, device, span):
    """The default source in float64: a bare function has no parameters to tell its dtype by."""
    from sde_diffusion.noise import Streams

    return Streams(seeds, shape, torch.float64, device, span)


WEIGHTINGS = [
    losses.data_weight,
    losses.noise_weight,
    losses.likelihood_weight,
    losses.MinSNR(2.0),
    losses.EDMWeight(STD),
]


@pytest.mark.parametrize("weight", WEIGHTINGS, ids=lambda w: getattr(w, "__name__", repr(w)))
@pytest.mark.parametrize("sde", [VPSDE(), FlowSDE(t_max=0.99), EDMSDE(0.02, 20.0)], ids=repr)
def test_six_forms_of_one_denoiser_have_one_loss_under_one_weighting(sde, weight):
    x0 = mixture(sde).sample(16, seed=1)
    t = sde.t_min + (sde.t_max - sde.t_min) * torch.linspace(0.02, 1, 16, dtype=torch.float64)
    eps = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    options: Any = {"weight": weight, "t": t, "eps": eps, "reduction": "none"}
    truth = losses.denoising_score_matching(mixture(sde), x0, **options)
    for kind in KINDS:
        print(kind)
        found = losses.denoising_score_matching(network(kind, sde), x0, **options)
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "weight"),
    [("noise", losses.noise_weight), ("data", losses.data_weight), ("edm", losses.EDMWeight(STD))],
)
def test_the_plain_loss_of_a_kind_is_the_weighting_named_after_it(kind, weight):
    sde, x0 = VPSDE(), mixture(VPSDE()).sample(8, seed=1)
    t = torch.linspace(0.05, 0.95, 8, dtype=torch.float64)
    options: Any = {"t": t, "eps": torch.sin(x0 * 9), "reduction": "none"}
    plain = losses.denoising_score_matching(network(kind, sde), x0, **options)
    weighted = losses.denoising_score_matching(network("v", sde), x0, weight=weight, **options)
    torch.testing.assert_close(plain, weighted, rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_state_keeps_its_dtype_whatever_the_network_answers_in(dtype):
    model = Network(lambda x, t: (0.1 * x).to(dtype), VPSDE(), shape=(2,))
    assert SDESampler(VPSDE(), model, steps=3).sample(2, seed=0).dtype == torch.float32


# ----------------------------------------------------------------------------------------------------- clocks, wrappers


def recorder(seen):
    """A network that keeps the times it is told."""

    def net(x, time):
        seen.append(time)
        return x

    return net


def told(clock, sde, t, kind=predict.noise, batch=3):
    """What a network is told at time t, as a float level and as a tensor level."""
    seen: list[Any] = []
    model = Network(recorder(seen), sde, kind, clock=clock)
    x = torch.zeros(batch, 2)
    (at,) = model.levels([t])
    model.predict(x, at)
    model(x, t)
    model(x, torch.full((batch,), t, dtype=torch.float64))
    for time in seen:
        assert time.shape == (batch,)
        assert torch.equal(time, seen[0])
    return seen[0]


@pytest.mark.parametrize(
    ("clock", "expected"),
    [
        (None, 0.25),
        (clocks.time, 0.25),
        (clocks.Scaled(999), 249.75),
        (clocks.sigma, 0.25),
        (clocks.log_snr, 2 * math.log(3)),
        (clocks.edm, math.log(1 / 3) / 4),
        (lambda at: at.t * 2, 0.5),
    ],
    ids=["default", "time", "scaled", "sigma", "log_snr", "edm", "own"],
)
def test_a_network_is_told_what_its_clock_says(clock, expected):
    time = told(clock, FlowSDE(), 0.25)  # alpha = 3/4, sigma = 1/4
    assert time.dtype == torch.float32
    torch.testing.assert_close(time, torch.full((3,), expected), rtol=1e-6, atol=0)


def test_an_error_names_the_class_of_a_network_and_does_not_print_it_whole():
    net: Any = MLP(2)
    with pytest.raises(TypeError, match=r"v, edm, got MLP$"):
        Network(net, VPSDE(), net)


def test_a_clock_has_a_name():
    for name, clock in clocks.NAMES.items():
        assert Network(recorder([]), FlowSDE(), clock=name).clock is clock


@pytest.mark.parametrize("clock", ["t", 3, 0, False, torch.ones(2), clocks.Index, clocks.Scaled])
def test_what_is_no_clock_is_refused_and_told_what_there_is(clock):
    with pytest.raises(
        TypeError, match=r"clock must be one of 'time', 'sigma', 'log_snr', 'edm', clocks.Scaled.*, got"
    ):
        Network(recorder([]), FlowSDE(), clock=clock)


def test_a_net_may_declare_what_it_wants_to_be_told():
    class Wishing(nn.Module):
        clock: Any = "log_snr"

    assert Network(Wishing(), FlowSDE(), predict.edm).clock is clocks.log_snr
    assert Network(Wishing(), FlowSDE(), predict.edm, clock=clocks.time).clock is clocks.time
    Wishing.clock = "logsnr"
    with pytest.raises(TypeError, match=r"clock must be one of .*, got 'logsnr'"):
        Network(Wishing(), FlowSDE())
    Wishing.clock = 12.5  # an attribute that happens to be called so
    assert Network(Wishing(), FlowSDE(), predict.noise).clock(FlowSDE().levels([0.25])[0]) == 0.25


@pytest.mark.parametrize("net", [MLP(2, hidden=8), UNet(2, width=8)], ids=["MLP", "UNet"])
@pytest.mark.parametrize("kind", list(KINDS.values()), ids=repr)
@pytest.mark.parametrize("sde", zoo.SDES, ids=zoo.name)
def test_shipped_nets_are_told_numbers_of_order_one_on_every_process(sde, kind, net):
    model = Network(net, sde, kind)
    for at in sde.levels([sde.t_min, sde.t_max]):
        assert abs(float(model.clock(at))) <= 5
        assert model.clock(at) == pytest.approx(math.log(at.sigma / at.alpha) / 4 if at.alpha else 5.0)


def test_a_clock_that_tells_a_shipped_net_numbers_far_out_is_refused():
    ddpm = DiscreteVPSDE.linear()
    with pytest.raises(
        ValueError,
        match=r"MLP embeds numbers of order one, but clock time tells it 999 at t = 999: leave clock= out, and",
    ):
        Network(MLP(2), ddpm, clock=clocks.time)
    with pytest.raises(ValueError, match=r"UNet embeds .* clock Scaled\(factor=999\) tells it 999 at t = 1: leave"):
        Network(UNet(1), VPSDE(), clock=clocks.Scaled(999))
    with pytest.raises(ValueError, match=r"clock log_snr tells it -inf at t = 1"):
        Network(MLP(2), FlowSDE(), clock=clocks.log_snr)
    with pytest.raises(
        TypeError, match=r"MLP embeds floats of order one, but clock Index\(\) tells it integers: leave"
    ):
        Network(MLP(2), ddpm, clock=clocks.Index())
    for fits in (clocks.Scaled(1 / 999), clocks.edm, clocks.log_snr):
        assert Network(MLP(2), ddpm, clock=fits).clock is fits
    assert Network(recorder([]), ddpm, clock=clocks.Scaled(999)).clock == clocks.Scaled(999)  # a foreign net may


def test_networks_of_the_score_sde_papers_code_are_declared_as_its_docstring_says():
    """Their score_fn: VP and sub-VP -model(x, 999 t) / std, VE model(x, sigma(t)) itself; here each an exact one."""
    x = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(3, 2)
    for sde in (VPSDE(), SubVPSDE(), VESDE()):
        exact = Gaussian(sde, torch.tensor([0.3, -0.2], dtype=torch.float64), 0.5)

        def theirs(x, labels, sde=sde, exact=exact):
            if isinstance(sde, VESDE):
                t = torch.log(labels[0] / sde.sigma_min) / math.log(sde.sigma_max / sde.sigma_min)
                return exact.score(x, t)
            t = labels[0] / 999
            return -exact.score(x, t) * sde.sigma(t)

        if isinstance(sde, VESDE):
            model = Network(theirs, sde, predict.score, clock=clocks.sigma)
        else:
            model = Network(theirs, sde, predict.noise, clock=clocks.Scaled(999))
        for t in (0.01, 0.4, 0.99):
            torch.testing.assert_close(model.score(x, t), exact.score(x, t), rtol=1e-9, atol=1e-12)


def test_the_edm_kind_brings_its_own_clock_and_input_scale():
    sde = FlowSDE()
    seen: list[Any] = []

    def net(x, time):
        seen.append((x, time))
        return x

    model = Network(net, sde, predict.EDM(0.5))
    x = torch.ones(1, 2, dtype=torch.float64)
    model(x, 0.25)
    model.predict(x, model.levels([0.25])[0])
    for state, time in seen:
        torch.testing.assert_close(time, f64(math.log(1 / 3) / 4))
        torch.testing.assert_close(state, x / math.sqrt(0.75**2 * 0.25 + 0.25**2))


def test_the_sigma_clock_is_the_noise_level_and_not_the_time():
    time = told(clocks.sigma, VESDE(0.01, 100.0), 0.75)
    torch.testing.assert_close(time, torch.full((3,), 10.0), rtol=1e-6, atol=0)


def test_the_edm_clock_is_finite_where_no_data_are_left():
    assert told(clocks.edm, FlowSDE(), 1.0, predict.EDM(0.5))[0] == 5.0


@pytest.mark.parametrize(("t", "index"), [(12.0, 12), (12.4, 12), (12.6, 13), (0.0, 0), (49.0, 49)])
def test_an_index_clock_hands_over_whole_numbers(t, index):
    time = told(clocks.Index(), DiscreteVPSDE.linear(50), t)
    assert time.dtype == torch.int64
    assert time.tolist() == [index] * 3


def test_an_index_trained_network_with_a_table_samples_between_its_levels():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 2)

        def forward(self, x, t):
            return x + 0 * self.table(t)

    sde = DiscreteVPSDE.linear(50)
    x = SDESampler(sde, Network(Table(), sde, clock=clocks.Index(), shape=(2,)), steps=7).sample(2, seed=0)
    assert torch.isfinite(x).all()


@every_sde
def test_a_denoiser_seen_through_another_sde_answers_the_same(sde):
    """Data and noise depend on x / alpha and the log-SNR alone; the exact denoiser made for `sde` is the truth."""
    base = VPSDE(t_min=1e-4)
    view = On(network("v", base), sde)
    lam = torch.linspace(-3.0, 3.0, 5, dtype=torch.float64)
    times = sde.time_of(lam)
    x0, eps = mixture(base).sample(5, seed=3), torch.cos(torch.arange(10, dtype=torch.float64)).reshape(5, 2)
    x = sde.perturb(x0, times, eps)
    together, exact = view(x, times), mixture(sde)(x, times)
    torch.testing.assert_close(together.data, exact.data, rtol=0, atol=1e-9)
    torch.testing.assert_close(together.noise, exact.noise, rtol=0, atol=1e-9)
    torch.testing.assert_close(view.score(x, times), mixture(sde).score(x, times), rtol=1e-9, atol=1e-9)
    for i, at in enumerate(view.levels(times.tolist())):  # one float level at a time, as a solver asks
        alone = view.predict(x[i : i + 1], at)
        torch.testing.assert_close(alone.data, exact.data[i : i + 1], rtol=0, atol=1e-9)
        torch.testing.assert_close(alone.noise, exact.noise[i : i + 1], rtol=0, atol=1e-9)


def test_views_of_views_and_of_the_own_sde():
    model = network("noise", VPSDE())
    assert model.on(VPSDE()) is model
    twice = model.on(EDMSDE(0.02, 50.0)).on(FlowSDE(t_min=0.05, t_max=0.9))
    x = f64(0.4, -0.9)[None]
    torch.testing.assert_close(twice(x, 0.5).data, mixture(FlowSDE())(x, 0.5).data, rtol=0, atol=1e-10)
    (at,) = twice.levels([0.5])
    torch.testing.assert_close(twice.predict(x, at).data, mixture(FlowSDE())(x, 0.5).data, rtol=0, atol=1e-10)
    assert (twice.cost, twice.shape) == (1, (2,))


def test_a_bare_score_is_a_denoiser():
    sde = VPSDE()
    model = Network(lambda x, t: mixture(sde).score(x, t), sde, predict.score)
    x = f64(0.4, -0.9)[None]
    exact = mixture(sde)(x, 0.4)
    torch.testing.assert_close(model(x, 0.4).data, exact.data, rtol=1e-12, atol=0)
    torch.testing.assert_close(model(x, 0.4).noise, exact.noise, rtol=1e-12, atol=0)
