"""Claim: every process may be asked of a number, and a mistake in one of your own is told when it is first used."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from refusals import T, V, check, wrong
from zoo import SDES, DoubleWell

from sde_diffusion import VPSDE, DiscreteVPSDE, GaussianSDE, Network, SDESampler
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.sde import SDE
from sde_diffusion.solvers import AngleSDE
from sde_diffusion.training.losses import denoising_score_matching

F64 = torch.float64
X = torch.zeros(3, 2)


class Ornstein(GaussianSDE):
    t_min, t_max = 0.01, 3.0

    def alpha(self, t):
        return torch.exp(-t)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-2 * t))


PROCESSES = [*SDES, AngleSDE(0.7), Ornstein()]


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("number", [float, np.float64, np.float32], ids=lambda f: f.__name__)
def test_a_number_is_asked_as_a_tensor_is(sde, number):
    for share in (0.25, 0.5):
        t = number(sde.t_min + share * (sde.t_max - sde.t_min))
        one = torch.tensor([float(t)], dtype=F64)
        for name in ("alpha", "sigma", "half_log_snr"):
            found = getattr(sde, name)(t)
            assert found.shape == ()
            assert found.dtype == F64
            assert torch.equal(found, getattr(sde, name)(one)[0])
        for found, wanted in zip(sde.rates(t), sde.rates(one), strict=True):
            assert found.shape == ()
            assert torch.equal(found, wanted[0])
        lam = float(sde.half_log_snr(t))
        back = sde.time_of(lam)
        assert back.shape == ()
        assert float(back) == pytest.approx(float(t), rel=1e-9)


def test_numbers_have_the_values_of_the_formulas():
    t, total = 0.5, 0.1 * 0.5 + 0.5 * 19.9 * 0.25
    assert float(VPSDE().alpha(wrong(t))) == pytest.approx(math.exp(-total / 2), rel=1e-14)
    assert float(VPSDE().sigma(t=wrong(t))) == pytest.approx(math.sqrt(1 - math.exp(-total)), rel=1e-14)
    assert float(Ornstein().alpha(1)) == pytest.approx(math.exp(-1), rel=1e-14)
    assert float(Ornstein().rates(1.0)[0]) == pytest.approx(-math.exp(-1), rel=1e-14)
    assert float(Ornstein().time_of(lam=0.0)) == pytest.approx(0.5 * math.log(2), rel=1e-9)
    assert torch.equal(
        DiscreteVPSDE.linear(40).alpha(torch.arange(3)), DiscreteVPSDE.linear(40).alpha(torch.arange(3.0).double())
    )


def test_a_constant_is_spread_over_the_times():
    class Constant(GaussianSDE):
        t_min, t_max = 0.1, 2.0

        def alpha(self, t):
            return 1  # a whole number, and no tensor

        def sigma(self, t):
            return t

    sde, t = Constant(), torch.linspace(0.1, 2.0, 5, dtype=F64)
    assert torch.equal(sde.alpha(t), torch.ones(5, dtype=F64))
    assert torch.equal(sde.rates(t)[0], torch.zeros(5, dtype=F64))
    assert torch.equal(sde.rates(t)[1], torch.ones(5, dtype=F64))
    at = sde.levels([2.0, 0.1])
    assert [v.alpha for v in at] == [1.0, 1.0]
    assert [v.sigma for v in at] == [2.0, 0.1]
    x = SDESampler(sde, Gaussian(sde, torch.zeros(2), 1.0), steps=40).sample(4000, seed=0)
    # from the prior N(0, 4) of the exact N(0, 5), the flow keeps the ratio to the standard deviation of the marginal
    wanted = math.sqrt(4 / 5) * math.sqrt(1.01) / 1.01
    assert float(x.std()) == pytest.approx(wanted, abs=4 * wanted / math.sqrt(2 * 8000))


def test_a_process_is_still_copied_pickled_compared_and_traced():
    for sde in PROCESSES:
        Network(lambda x, t: x, sde)  # looked over by now
        for again in (copy.deepcopy(sde), pickle.loads(pickle.dumps(sde))):
            assert torch.equal(again.alpha(sde.t_max / 2), sde.alpha(sde.t_max / 2))
            assert again == sde
            assert hash(again) == hash(sde)
    t = torch.tensor([0.2, 0.7], dtype=F64)
    grad = torch.func.vmap(torch.func.grad(Ornstein().alpha))(t)
    assert torch.allclose(grad, -torch.exp(-t), rtol=1e-14)


# ------------------------------------------------------------------------------------------------------------ mistakes


def process(alpha=lambda self, t: 1 - t / 2, sigma=lambda self, t: t, t_min=0.1, t_max=1.0, **more):
    body = {"alpha": alpha, "sigma": sigma, "t_min": t_min, "t_max": t_max, "__repr__": lambda self: "Mine()", **more}
    return type("Mine", (GaussianSDE,), {k: v for k, v in body.items() if v is not None})()


FAULTS = {
    "no t_min": (lambda: process(t_min=None), T, "Mine has no range of times ("),
    "no t_max": (lambda: process(t_max=None), T, "set t_min, where the data are, and t_max"),
    "a tensor for t_min": (lambda: process(t_min=torch.tensor(0.1)), T, "t_min of Mine must be a number, got tensor"),
    "reversed range": (lambda: process(t_min=1.0, t_max=0.1), V, "Mine has t_min = 1 and t_max = 0.1, wanted t_min <"),
    "infinite": (lambda: process(t_max=math.inf), V, "wanted t_min < t_max, both finite"),
    "math.exp": (
        lambda: process(lambda self, t: math.exp(-t)),
        T,
        "the schedule of Mine cannot be evaluated on a tensor of times (only one element tensors can be converted to "
        "Python scalars): write it elementwise with torch functions, torch.exp(-t) for math.exp(-t)",
    ),
    "if": (lambda: process(lambda self, t: 1.0 if t < 0.5 else 0.5), T, "and torch.where for if"),
    "reversed time": (
        lambda: process(lambda self, t: t, lambda self, t: 1.1 - t),
        V,
        "the log-SNR of Mine() does not fall with t: log(alpha / sigma) goes from ",
    ),
    "constant": (lambda: process(sigma=lambda self, t: 1 - t / 2), V, "the log-SNR of Mine() does not fall with t"),
    "negative alpha": (lambda: process(lambda self, t: 0.5 - t), V, "Mine() has alpha = -0.0"),
    "zero sigma": (lambda: process(t_min=0.0), V, "Mine() has alpha = 1 and sigma = 0 at t = 0: wanted alpha >= 0 and"),
    "NaN": (lambda: process(lambda self, t: torch.sqrt(0.5 - t)), V, "Mine() has alpha = nan and sigma = "),
    "wrong shape": (
        lambda: process(lambda self, t: torch.ones(7)),
        V,
        "Mine.alpha answered shape (7,) to times of shape (65,): write it elementwise, one value for each time",
    ),
    "None": (
        lambda: process(lambda self, t: None),
        T,
        "Mine.alpha answered NoneType, wanted a tensor of the shape of t",
    ),
    "complex": (lambda: process(lambda self, t: t + 1j), T, "Mine.alpha answered torch.complex128, wanted float64"),
    "detached": (
        lambda: process(lambda self, t: torch.exp(-t.detach())),
        V,
        "Mine() has alpha' = 0 everywhere, though alpha changes: it leaves the graph of torch",
    ),
    "one rate": (lambda: process(rates=lambda self, t: -t), T, "Mine.rates answers the pair (alpha', sigma'), got"),
    "NaN log-SNR": (
        lambda: process(half_log_snr=lambda self, t: t * math.nan),
        V,
        "Mine() has half_log_snr = nan at t",
    ),
}


@pytest.mark.parametrize(("make", "error", "text"), FAULTS.values(), ids=FAULTS.keys())
def test_a_mistake_in_a_process_of_ones_own_is_told_when_it_is_first_used(make, error, text):
    for door in (
        lambda sde: Network(lambda x, t: x, sde, shape=(2,)),
        lambda sde: SDESampler(sde, lambda x, t: x, shape=(2,)),
        lambda sde: sde.levels([0.5]),
        lambda sde: sde.marginal(X, 0.5),
    ):
        check(lambda door=door: door(make()), error, text)


def test_a_general_process_needs_a_range_too():
    class Endless(DoubleWell):
        t_max = math.inf

    class Bare(SDE):
        drift = DoubleWell.drift
        diffusion = DoubleWell.diffusion
        prior = DoubleWell.prior
        prior_log_prob = DoubleWell.prior_log_prob

    score = lambda x, t: -x  # noqa: E731
    check(lambda: SDESampler(Bare(), score, shape=(2,)), T, "Bare has no range of times (")
    check(lambda: SDESampler(Endless(), score, shape=(2,)), V, "Endless has t_min = 0 and t_max = inf")


def test_a_process_is_looked_over_once():
    asked = []

    class Counted(Ornstein):
        def alpha(self, t):
            asked.append(t.numel())
            return super().alpha(t)

    sde = Counted()
    model = Network(lambda x, t: x, sde, shape=(2,))
    n = asked.count(65)
    SDESampler(sde, model).sample(2, seed=0)
    denoising_score_matching(model, X + 1)
    assert asked.count(65) == n > 0


# --------------------------------------------------------------------------------------------------------------- times

HALVES = [torch.tensor([0.1, 0.25, 0.5]).bfloat16(), torch.tensor(0.25).half()]


@pytest.mark.parametrize("t", HALVES, ids=["bfloat16", "float16"])
@pytest.mark.parametrize(
    "door",
    [
        lambda t: Network(lambda x, t: x, VPSDE())(X, t),
        lambda t: Network(lambda x, t: x, VPSDE()).score(X, t),
        lambda t: denoising_score_matching(Network(lambda x, t: x, VPSDE()), X, t=t),
        lambda t: VPSDE().alpha(t),
        lambda t: VPSDE().rates(t),
        lambda t: VPSDE().time_of(t),
        lambda t: VPSDE().diffusion(t),
        lambda t: VPSDE().drift(X, t),
        lambda t: VPSDE().level(t, X),
        lambda t: VPSDE().levels(t.reshape(-1)),
        lambda t: VPSDE().marginal(X, t),
        lambda t: VPSDE().perturb(X, t, X),
        lambda t: VPSDE().posterior(X, X, t, 0.01),
        lambda t: SDESampler(VPSDE(), lambda x, t: x, grid=t.expand(3)),
        lambda t: SDESampler(VPSDE(), lambda x, t: x, grid=[*t.expand(3)]),
    ],
    ids=map(str, range(15)),
)
def test_times_in_half_precision_are_refused(door, t):
    with pytest.raises(TypeError, match="are rounded already: of 937 it keeps 936, another noise level") as caught:
        door(t)
    assert f"has dtype {t.dtype}, in which times, such as {float(t.flatten()[0]):.10g}," in str(caught.value)


def test_half_precision_numbers_and_arrays_of_numpy_are_refused_too():
    check(lambda: VPSDE().alpha(np.float16(0.3)), T, "t has dtype numpy.float16, in which times, such as 0.3000488281,")
    check(lambda: VPSDE().marginal(X, np.float16(0.3)), T, "are rounded already")
    grid = np.linspace(1, 0.1, 5)
    check(
        lambda: SDESampler(VPSDE(), lambda x, t: x, grid=wrong(grid.astype(np.float16))),
        T,
        "the grid has dtype torch.float16",
    )
    assert SDESampler(VPSDE(), lambda x, t: x, grid=wrong(grid)).times == pytest.approx(grid.tolist())


@pytest.mark.parametrize(
    "t", [None, "0.5", [0.5], True, 1j, np.zeros(2), torch.tensor(True), torch.tensor(1j)], ids=repr
)
def test_what_is_no_time_is_refused(t):
    for door in (VPSDE().alpha, VPSDE().half_log_snr, VPSDE().rates, VPSDE().diffusion):
        check(lambda door=door: door(wrong(t)), T, "t must be a float or a tensor, got ")
    check(lambda: VPSDE().time_of(wrong(t)), T, "lam must be a float or a tensor, got ")


def test_levels_take_a_sequence():
    for times in (0.5, "a", ["a"], None):
        check(
            lambda times=times: VPSDE().levels(wrong(times)), T, "times are a sequence of numbers, such as [1.0, 0.5]"
        )
    check(lambda: VPSDE().levels(torch.tensor(0.5)), V, "times have shape (), wanted (n,)")
    check(lambda: VPSDE().levels(torch.ones(2, 2)), V, "times have shape (2, 2), wanted (n,)")
