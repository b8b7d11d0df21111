"""Claim: a state, time, process or prior that cannot be meant is refused at the door, with a sentence of advice.

Each case is a call, the type of its error and the text a user reads. Models, data, grids and seeds are in
test_bad_model.py, the doors of the sampler in test_bad_sampler.py, those of the solvers in test_bad_solver.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from refusals import T, V, check, refuses

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    CosineSDE,
    DiscreteVPSDE,
    FlowSDE,
    GaussianSDE,
    Matched,
    Network,
    SubVPSDE,
)
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.solvers import AngleSDE

X = torch.zeros(3, 2)
VP = VPSDE()
MODEL = Network(lambda x, t: x, VP, shape=(2,))


@refuses(
    (
        lambda: MODEL([[1.0, 2.0]], 0.5),
        T,
        "x must be a torch.Tensor of shape (B, *), got list: torch.as_tensor",
    ),
    (lambda: MODEL(np.zeros((3, 2)), 0.5), T, "x must be a torch.Tensor of shape (B, *), got ndarray"),
    (
        lambda: MODEL(torch.zeros(3, 2, dtype=torch.int64), 0.5),
        T,
        "x has dtype torch.int64, wanted float32 or",
    ),
    (
        lambda: MODEL(torch.zeros(3, 2, dtype=torch.uint8), 0.5),
        T,
        "for example x.float() / 127.5 - 1 for bytes",
    ),
    (
        lambda: MODEL(X.half(), 0.5),
        T,
        "x has dtype torch.float16: a half-precision state loses the small noise",
    ),
    (lambda: MODEL(X.bfloat16(), 0.5), T, "run the network alone in half precision, under torch.autocast"),
    (lambda: MODEL(torch.tensor(1.0), 0.5), V, "x has no batch dimension, wanted shape (B, *)"),
    (lambda: MODEL(X[:0], 0.5), V, "x is an empty batch of shape (0, 2), wanted at least one sample"),
    (lambda: MODEL(X[:, :0], 0.5), V, "x is an empty batch of shape (3, 0)"),
    (
        lambda: MODEL(torch.zeros(3, 5), 0.5),
        V,
        "x has event shape (5,) (batch 3), but the model works on (2,)",
    ),
    (lambda: MODEL.score(torch.zeros(3, 5), 0.5), V, "x has event shape (5,) (batch 3)"),
    (lambda: VP.marginal(X.half(), 0.5), T, "x0 has dtype torch.float16"),
    (lambda: VP.perturb(X.long(), 0.5, X), T, "x0 has dtype torch.int64"),
    (lambda: VP.perturb(X, 0.5, X[:1]), V, "eps has shape (1, 2), wanted that of x0, (3, 2)"),
    (lambda: VP.posterior(X, X[:1], 0.5, 0.1), V, "x has shape (3, 2) and x0 (1, 2): wanted the same"),
    (lambda: VP.posterior(X, X, 0.1, 0.5), V, "needs s < t for every sample: x is the noisier state"),
    (lambda: VP.posterior(X, X, 0.5, torch.tensor([0.1, 0.5, 0.2])), V, "needs s < t for every sample"),
)
def test_a_state_that_cannot_work_is_refused(call, error, text):
    check(call, error, text)


TIMES = [
    (torch.zeros(3, 1), V, "t has shape (3, 1), wanted a float, shape () or one time per sample, shape (3,)"),
    (torch.zeros(1, 3), V, "t has shape (1, 3), wanted a float, shape () or one time per sample, shape (3,)"),
    (torch.zeros(2), V, "shape (3,), for x of shape (3, 2)"),
    (torch.zeros(1), V, "t has shape (1,), wanted"),
    (torch.tensor([1, 2, 3]), T, "t has dtype torch.int64, but time is continuous in [0.001, 1]: give a float"),
    (torch.tensor(5), T, "for step i of N, did you mean i / N?"),
    (
        500.0,
        ValueError,
        "t spans [500, 500], outside the [t_min, t_max] = [0.001, 1] of the SDE; for step i of N, did you mean",
    ),
    (999, V, "did you mean i / N?"),
    (
        torch.tensor([0.5, 1.2, 0.1]),
        ValueError,
        "t spans [0.1, 1.2], outside the [t_min, t_max] = [0.001, 1] of the SDE",
    ),
    (0.0, V, "t spans [0, 0], outside"),
    (1e-4, V, "t spans [0.0001, 0.0001], outside"),
    (-0.5, V, "t spans [-0.5, -0.5], outside"),
    (math.nan, V, "t holds NaN or inf, wanted times in [0.001, 1]"),
    (torch.tensor([0.5, math.nan, 0.1]), V, "t holds NaN or inf"),
    ("0.5", T, "t must be a float or a tensor, got str"),
    (True, T, "t must be a float or a tensor, got bool"),
    (None, T, "t must be a float or a tensor, got NoneType"),
]


@pytest.mark.parametrize(("t", "error", "text"), TIMES, ids=[text[:50] for *_, text in TIMES])
@pytest.mark.parametrize(
    "door",
    [
        lambda t: MODEL(X, t),
        lambda t: MODEL.score(X, t),
        lambda t: VP.drift(X, t),
        lambda t: VP.marginal(X, t),
        lambda t: VP.perturb(X, t, X),
        lambda t: VP.posterior(X, X, t, 0.01),
        lambda t: Gaussian(VP, torch.zeros(2), 1.0).log_prob(X, t),
    ],
    ids=["model", "score", "drift", "marginal", "perturb", "posterior", "log_prob"],
)
def test_a_time_that_cannot_be_meant_is_refused_at_every_door(door, t, error, text):
    check(lambda: door(t), error, text)


def test_times_at_the_ends_are_taken_in_either_precision():
    for sde in (VP, VESDE(), EDMSDE(), BrownianSDE(), FlowSDE(), CosineSDE()):
        for t in (sde.t_min, sde.t_max):
            for time in (t, torch.tensor(t), torch.tensor(t, dtype=torch.float64), torch.full((3,), t)):
                mean, _ = sde.marginal(X, time)
                assert torch.isfinite(mean).all()


def test_a_chain_takes_whole_numbers_and_refuses_indices_beyond_it():
    chain = DiscreteVPSDE.linear(10, scaled=False)
    for t in (9, torch.tensor(9), torch.tensor([0, 5, 9]), 4.5):
        assert torch.isfinite(chain.marginal(X, t)[0]).all()
    check(lambda: chain.marginal(X, 10), V, "t spans [10, 10], outside the [t_min, t_max] = [0, 9] of the SDE")
    check(lambda: chain.marginal(X, torch.tensor([0, -1, 3])), V, "t spans [-1, 3], outside")


# -------------------------------------------------------------------------------------------------- processes, priors


class Vanishing(GaussianSDE):
    """sigma is 0 at t = 0."""

    t_min, t_max = 0.0, 1.0

    def alpha(self, t):
        return 1 - t / 2

    def sigma(self, t):
        return t

    def __repr__(self):
        return "Vanishing()"


class Bounded(GaussianSDE):
    """sigma starts at 0.1."""

    t_min, t_max = 0.0, 1.0

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return 0.1 + 0.9 * t

    def __repr__(self):
        return "Bounded()"


MEAN2 = torch.zeros(2)


@refuses(
    (lambda: VPSDE(20.0, 0.1), V, "wanted 0 < beta_min < beta_max, got beta_min=20.0 and beta_max=0.1"),
    (lambda: SubVPSDE(-1.0), V, "wanted 0 < beta_min < beta_max"),
    (lambda: VPSDE(t_min=0.0), V, "wanted 0 < t_min < t_max, got t_min=0.0 and t_max=1.0"),
    (
        lambda: VESDE(50.0, 0.01),
        V,
        "wanted 0 < sigma_min < sigma_max, got sigma_min=50.0 and sigma_max=0.01",
    ),
    (lambda: EDMSDE(0.0), V, "wanted 0 < sigma_min < sigma_max"),
    (lambda: EDMSDE(0.1, math.inf), V, "wanted 0 < sigma_min < sigma_max"),
    (lambda: BrownianSDE(math.nan), V, "wanted 0 < t_min < t_max"),
    (lambda: CosineSDE(t_max=1.5), V, "CosineSDE ends at t = 1, got t_max=1.5"),
    (lambda: FlowSDE(t_max=2.0), V, "FlowSDE ends at t = 1, got t_max=2.0"),
    (lambda: AngleSDE(0.0), V, "data_std must be positive and finite, got 0.0"),
    (lambda: DiscreteVPSDE([0.1, 1.0, 0.2]), V, "wanted two or more betas in (0, 1), got betas[1] = 1"),
    (lambda: DiscreteVPSDE([0.1, math.nan]), V, "wanted two or more betas in (0, 1), got betas[1] = nan"),
    (lambda: DiscreteVPSDE([0.1]), V, "wanted two or more betas in (0, 1), got 1 of them"),
    (
        lambda: Vanishing().levels([0.5, 0.0]),
        V,
        "Vanishing() has alpha = 1 and sigma = 0 at t = 0: wanted alpha",
    ),
    (
        lambda: Bounded().time_of(torch.tensor([1.0, 3.0], dtype=torch.float64)),
        V,
        "half log-SNR 1 to 3 is not reached by Bounded(), which spans 0 to 2.30259",
    ),
    (
        lambda: Matched(0.0, -1.0),
        V,
        "variance of the data must be >= 0 and finite, got a smallest value of -1",
    ),
    (lambda: Matched(0.0, math.nan), V, "the variance of the data must be >= 0 and finite"),
    (lambda: Matched(math.nan, 1.0), V, "the mean of the data must be finite"),
    (
        lambda: Matched(MEAN2, torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
        V,
        "the variance of the data must be >= 0 and finite, got a smallest value of -1",
    ),
    (
        lambda: Matched(MEAN2, torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
        V,
        "the covariance is not symmetric",
    ),
    (
        lambda: Matched(MEAN2, torch.eye(3)),
        V,
        "the variance has shape (3, 3), but the mean (2,): wanted (), (2,) or (2, 2)",
    ),
    (
        lambda: Matched(0.0, torch.eye(2)),
        V,
        "a variance of shape (2, 2) may be a covariance or a variance per pixel: give the mean as a tensor of",
    ),
)
def test_a_process_or_prior_that_does_not_exist_is_refused(call, error, text):
    check(call, error, text)
