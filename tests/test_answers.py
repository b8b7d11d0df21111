"""Claim: what a network answers is right or refused, in any dtype, and when it fails it says what it was handed."""

from __future__ import annotations

import math

import pytest
import torch
from refusals import T, V, check
from torch import nn
from zoo import DoubleWell

from sde_diffusion import EDMSDE, VPSDE, Denoiser, DiscreteVPSDE, Network, Prediction, SDESampler, clocks, predict
from sde_diffusion.nets import MLP, UNet
from sde_diffusion.solvers import RK4, EulerMaruyama
from sde_diffusion.training.losses import denoising_score_matching

VP = VPSDE()
X = torch.linspace(-1, 1, 10).reshape(5, 2)


def awake(net):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return net.eval()


# --------------------------------------------------------------------------------------------------- networks that fail


def failing(net, x=X, sde=VP, **cond):
    return lambda: Network(net, sde, shape=tuple(x.shape[1:]))(x, 0.5, **cond)


class Table(nn.Module):
    def __init__(self, n=4):
        super().__init__()
        self.table = nn.Embedding(n, 2)

    def forward(self, x, t, c=None):
        return x + self.table(t if c is None else c)


def test_a_condition_of_another_length_is_named_with_its_shape():
    told = "the network failed on a state of shape (5, 2) with conditions c (178,) in float32 ("
    check(failing(lambda x, t, c: c[:, None] * x, c=torch.ones(178)), V, told)
    check(failing(lambda x, t, c: torch.cat([x, c[:, None]], 1), c=torch.ones(178)), V, "has 5 rows here")
    sampler = SDESampler(VP, Network(lambda x, t, c: c[:, None] * x, VP, shape=(2,)))
    check(
        lambda: sampler.sample(10, seed=0, c=torch.ones(178)), V, "a condition with one row per sample has 10 rows here"
    )
    check(lambda: sampler.log_prob(X, c=torch.ones(178)), V, "with conditions c (178,) in float32")


def test_a_table_meant_whole_is_handed_on_whole():
    table = torch.rand(178, 2)
    net = lambda x, t, table: table[:1] * x  # noqa: E731
    x = SDESampler(VP, Network(net, VP, predict.data, shape=(2,)), steps=3).sample(
        10, seed=0, batch_size=4, table=table
    )
    assert torch.isfinite(x).all()


def test_a_network_that_fails_says_what_it_was_handed():
    check(
        failing(Table()), RuntimeError, "It was handed times (5,) in float32: for a table of times, Network(..., clock="
    )
    check(failing(Table(), c=3), T, "It was handed times (5,) in float32, c a int: for a table")
    check(failing(Table(), c=torch.full((5,), 9)), IndexError, "c (5,) in int64: for a table of times")
    check(failing(lambda x, t: x, c=3), T, "it is called as net(x, time, c=c)")
    check(failing(lambda x: x), T, "it is called as net(x, time)")
    chain = DiscreteVPSDE.linear(4, scaled=False)
    assert Network(Table(), chain, clock=clocks.Index())(X, 2.0).data.shape == (5, 2)
    with pytest.raises(RuntimeError, match=r"^my own$"):
        failing(lambda x, t: (_ for _ in ()).throw(RuntimeError("my own")))()


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(2, 1)

    def forward(self, x):
        return self.layer(x[None], x[None], x[None])[0][0]


LAYERS = {
    "linear": (lambda: nn.Linear(2, 2), (5, 2)),
    "conv": (lambda: nn.Conv2d(2, 2, 1), (5, 2, 4, 4)),
    "conv without bias": (lambda: nn.Conv2d(2, 2, 1, bias=False), (5, 2, 4, 4)),
    "transposed conv": (lambda: nn.ConvTranspose2d(2, 2, 1), (5, 2, 4, 4)),
    "layer norm": (lambda: nn.LayerNorm(2), (5, 2)),
    "group norm": (lambda: nn.GroupNorm(2, 2), (5, 2, 4, 4)),
    "batch norm": (lambda: nn.BatchNorm2d(2), (5, 2, 4, 4)),
    "attention": (Attends, (5, 2)),
}


class Layer(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, t):
        return self.layer(x)


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_works_on_a_float32_state(make, shape, dtype):
    torch.manual_seed(0)
    net = Layer(make()).eval()
    x = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    model = Network(net.to(dtype), VP, shape=shape[1:])
    found = model(x, 0.5).noise
    assert found.dtype == torch.float32
    assert torch.equal(found, net(x.to(dtype), None).float())
    drawn = SDESampler(VP, model, steps=3).sample(2, seed=0)
    assert drawn.dtype == torch.float32
    assert torch.isfinite(drawn).all()
    net.float()  # and back, as a network may be converted at any time
    assert torch.equal(model(x, 0.5).noise, net(x, None))


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS.keys())
def test_a_network_in_another_wide_dtype_is_told_what_to_do(make, shape):
    x = torch.zeros(shape)
    text = "the network, with parameters in torch.float64, cannot take a state in torch.float32"
    check(failing(Layer(make().double().eval()), x), T, text)
    text = "the network, with parameters in torch.float32, cannot take a state in torch.float64"
    check(failing(Layer(make().eval()), x.double()), T, text)


@pytest.mark.parametrize("net", [MLP(2, hidden=16), UNet(1, width=8)], ids=["mlp", "unet"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_shipped_networks_draw_and_learn_in_half_precision(net, dtype):
    shape = (2,) if isinstance(net, MLP) else (1, 4, 4)
    model = Network(awake(net).to(dtype), EDMSDE(), predict.edm, shape=shape)
    x = SDESampler(EDMSDE(), model, steps=4).sample(3, seed=0)
    assert x.dtype == torch.float32
    assert torch.isfinite(x).all()
    denoising_score_matching(model, x).backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in net.parameters() if p.requires_grad)
    net.float()


@pytest.mark.parametrize("kind", [predict.noise, predict.edm], ids=repr)
def test_the_first_answer_of_a_half_precision_network_is_that_of_all_others_though_it_works_in_place(kind):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x, t):
            x *= 2
            t *= 2
            return self.layer(x) * t[:, None].to(x.dtype)

    model = Network(InPlace().bfloat16(), VPSDE(), kind, shape=(2,))
    t = torch.full((5,), 0.5)
    first = model(X, t).data  # fails in the dtype of the state, and is asked again
    assert torch.equal(model(X, t).data, first)


def test_a_half_precision_network_is_told_the_exact_time():
    class Tells(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x, t):
            seen.append((t.dtype, float(t[0])))
            return self.layer(x)

    seen: list[tuple[torch.dtype, float]] = []
    chain = DiscreteVPSDE.linear(1000)
    Network(Tells().bfloat16(), chain)(X, 937.0)
    assert seen[-1] == (torch.float32, 937.0)

    class Mixes(Tells):
        def forward(self, x, t):
            return self.layer(x) + self.layer(torch.stack([t, t], 1))

    text = "times (5,) in float32 (mat1 and mat2 must have the same dtype"
    check(failing(Mixes().bfloat16()), T, text)
    check(
        failing(Mixes().bfloat16()), T, "times are not rounded to half precision. Cast inside, where that does no harm"
    )


# -------------------------------------------------------------------------------------------------------------- answers

ANSWERS = [
    (lambda x: None, T, "answered NoneType, wanted a tensor of shape (5, 2): is a return missing?"),
    (lambda x: x.numpy(), T, "answered ndarray, wanted a tensor of shape (5, 2): torch.as_tensor makes one"),
    (lambda x: (None, x), T, "answered tuple, wanted a tensor of shape (5, 2)"),
    (lambda x: 0.0, T, "answered float, wanted a tensor of shape (5, 2)"),
    (lambda x: x + 1j, T, "answered torch.complex64, wanted real numbers in torch.float32, as the state is"),
    (lambda x: x.long(), T, "answered torch.int64, wanted real numbers in torch.float32, as the state is"),
    (lambda x: x > 0, T, "answered torch.bool, wanted real numbers"),
    (lambda x: x[:, :1], V, "answered shape (5, 1) to a state of shape (5, 2)"),
    (lambda x: x[:1], V, "answered shape (1, 2) to a state of shape (5, 2)"),
    (lambda x: x.sum(), V, "answered shape () to a state of shape (5, 2)"),
]


class Halves(Denoiser):
    """A denoiser of a user's own, that answers `f(x)` for both halves."""

    def __init__(self, f):
        super().__init__()
        self.f, self.sde, self.shape = f, VP, (2,)

    def predict(self, x, at, **cond):
        return Prediction(lambda: self.f(x), lambda: self.f(x))


@pytest.mark.parametrize(("f", "error", "text"), ANSWERS, ids=[text[:30] for *_, text in ANSWERS])
def test_an_answer_that_is_no_real_number_per_entry_is_refused(f, error, text):
    net = Network(lambda x, t: f(x), VP, shape=(2,))
    for call in (
        lambda: net(X, 0.5),
        lambda: denoising_score_matching(net, X),
        lambda: SDESampler(VP, lambda x, t: f(x), shape=(2,)).sample(5, seed=0),
        lambda: SDESampler(VP, net).sample(5, seed=0),
    ):
        check(call, error, "the network " + text)
    for solver in (EulerMaruyama(), RK4()):
        bare = SDESampler(DoubleWell(), lambda x, t: f(x), shape=(2,), solver=solver, steps=3)
        check(lambda bare=bare: bare.sample(5, seed=0), error, "the score " + text)
    own = Halves(f)
    check(lambda: own(X, 0.5).data, error, "the data of a Prediction " + text)
    check(lambda: own.score(X, 0.5), error, "the noise of a Prediction " + text)
    check(lambda: denoising_score_matching(own, X), error, "the data of a Prediction " + text)
    check(lambda: SDESampler(VP, own).sample(5, seed=0), error, "of a Prediction " + text)


def test_a_denoiser_answers_a_prediction():
    class Bare(Halves):
        def predict(self, x, at, **cond):
            return self.f(x)

    own = Bare(lambda x: x)
    for call in (lambda: own(X, 0.5), lambda: SDESampler(VP, own).sample(2), lambda: denoising_score_matching(own, X)):
        check(
            call, T, "predict answered Tensor, wanted a Prediction: of two functions, Prediction(lambda: data, lambda:"
        )


def test_a_drift_of_another_shape_is_refused():
    class Short(DoubleWell):
        def drift(self, x, t):
            return x[:, :1]

    bare = SDESampler(Short(), lambda x, t: -x, shape=(2,), steps=3)
    check(lambda: bare.sample(5, seed=0), V, "the drift answered shape (5, 1) to a state of shape (5, 2)")


def test_an_answer_with_a_graph_leaves_none_behind():
    weight = torch.ones(2, requires_grad=True)

    def score(x, t):
        with torch.enable_grad():
            return -x * weight

    x = SDESampler(VP, score, shape=(2,), steps=3).sample(2, seed=0)
    assert not x.requires_grad
