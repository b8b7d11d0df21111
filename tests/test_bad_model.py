"""Claim: a model, data, grid or seed that does not fit is refused at the door, with a sentence that says what to do."""

from __future__ import annotations

import math

import pytest
import torch
from refusals import T, V, check, refuses, wrong
from zoo import DoubleWell

from sde_diffusion import EDMSDE, VPSDE, CosineSDE, DiscreteVPSDE, FlowSDE, Network, grids, predict
from sde_diffusion.denoiser import On
from sde_diffusion.denoiser.analytic import Empirical, Gaussian, GaussianMixture
from sde_diffusion.denoiser.objectives.time_samplers import stratified, uniform_log_snr
from sde_diffusion.likelihood import bits_per_dim
from sde_diffusion.noise import seed_list
from sde_diffusion.training.losses import denoising_score_matching

X = torch.zeros(3, 2)
VP = VPSDE()
MODEL = Network(lambda x, t: x, VP, shape=(2,))
MEAN2 = torch.zeros(2)


# ---------------------------------------------------------------------------------------------------- models and data


def gaussian(c):
    return Gaussian(VP, MEAN2, c)


@refuses(
    (
        lambda: Network(lambda x, t: x, wrong(DoubleWell())),
        T,
        "Network needs a GaussianSDE, got DoubleWell: for a general SDE hand the sampler a function score(x, t)",
    ),
    (
        lambda: Network(lambda x, t: x, VP, wrong("noise")),
        T,
        "kind must be one of predict.noise, data, score, velocity",
    ),
    (lambda: predict.EDM(0.0), V, "data_std must be positive and finite, got 0.0"),
    (lambda: On(MODEL, wrong(DoubleWell())), T, "a denoiser can be seen through a GaussianSDE, not a DoubleWell"),
    (
        lambda: MODEL.on(EDMSDE(0.002, 80.0)).levels([80.0, 0.002]),
        V,
        "asked at noise level sigma/alpha = 0.002, but the model was made for VPSDE(",
    ),
    (lambda: MODEL.on(EDMSDE(0.1, 1e4))(X, 1e4), V, "or of the grid inside it"),
    (
        lambda: Network(lambda x, t: x[:, :1], VP)(X, 0.5),
        V,
        "the network answered shape (3, 1) to a state of shape (3, 2)",
    ),
    (
        lambda: Network(lambda x, t: torch.cat([x, x], 1), VP)(torch.zeros(3, 2, 4, 4), 0.5),
        V,
        "the network answered shape (3, 4, 4, 4) to a state of shape (3, 2, 4, 4): does it learn a variance too? "
        "Say predict.LearnedVariance(kind), or hand over the first half of its channels alone",
    ),
    (
        lambda: Network(lambda x, t: x, FlowSDE()).predict(X, FlowSDE().levels([1.0])[0]).data,
        V,
        "a noise prediction tells nothing of the data where alpha = 0 (t = 1): start at a smaller t (t_max= of "
        "the SDE, or a grid), or train predict.velocity, predict.v, predict.edm or predict.data",
    ),
    (lambda: gaussian(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), V, "a covariance is not symmetric"),
    (
        lambda: gaussian(torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
        V,
        "a covariance is not positive semi-definite: smallest eigenvalue -1",
    ),
    (
        lambda: gaussian(torch.eye(3)),
        V,
        "covariances have shape (1, 3, 3): wanted (), (1, 2) (diagonal) or (1, 2, 2) (full)",
    ),
    (
        lambda: GaussianMixture(VP, torch.tensor([1.0, -1.0]), torch.zeros(2, 2), 1.0),
        V,
        "weights must be 2 positive numbers, one per mean, got tensor([ 1., -1.])",
    ),
    (lambda: Empirical(VP, torch.zeros(0, 2)), V, "means is an empty batch of shape (0, 2)"),
    (
        lambda: Empirical(VP, torch.full((2, 2), math.inf)),
        V,
        "means holds 4 non-finite values of 4: clean",
    ),
    (
        lambda: Empirical(VP, X).data_log_prob(X),
        V,
        "the data have no density, as a covariance is singular",
    ),
    (lambda: gaussian(1.0).sample(0), V, "n must be at least 1, got 0"),
    (lambda: gaussian(1.0).sample(2.5), T, "n must be an integer, got 2.5"),
    (lambda: gaussian(1.0).log_prob(X.long(), 0.5), T, "x has dtype torch.int64"),
    (lambda: gaussian(1.0).data_log_prob(torch.zeros(3, 3)), V, "but the model works on (2,)"),
)
def test_a_model_that_does_not_fit_is_refused(call, error, text):
    check(call, error, text)


def loss(x0=X, model=MODEL, **options):
    return denoising_score_matching(model, x0, **options)


BYTES = torch.zeros(3, 2, dtype=torch.uint8)


@refuses(
    (
        lambda: loss(model=lambda x, t: x),
        T,
        "the loss needs a Denoiser: wrap the network, Network(net, sde, predict.noise), got function",
    ),
    (
        lambda: loss(BYTES),
        T,
        "x0 has dtype torch.uint8, wanted float32 or float64: scale the data to floats",
    ),
    (lambda: loss(X.half()), T, "x0 has dtype torch.float16"),
    (lambda: loss(X[:0]), V, "x0 is an empty batch of shape (0, 2)"),
    (lambda: loss(X.log()), V, "x0 holds 6 non-finite values of 6: clean the data before it comes here"),
    (lambda: loss(torch.zeros(3, 5)), V, "x0 has event shape (5,) (batch 3), but the model works on (2,)"),
    (lambda: loss(reduction="sum"), V, "reduction must be 'mean' or 'none', got 'sum'"),
    (lambda: loss(t=torch.ones(3, 1)), V, "t has shape (3, 1)"),
    (lambda: loss(t=torch.tensor([1, 2, 3])), T, "t has dtype torch.int64, but time is continuous"),
    (lambda: loss(eps=X[:1]), V, "eps has shape (1, 2), wanted that of x0, (3, 2)"),
    (lambda: stratified(0), V, "n must be at least 1, got 0"),
    (
        lambda: uniform_log_snr(FlowSDE(), torch.rand(2, dtype=torch.float64)),
        V,
        "log-SNR is infinite at t_max of FlowSDE(t_min=0.001, t_max=1.0): choose t_max a little smaller",
    ),
    (
        lambda: bits_per_dim(X[:, 0], 2, bin_width=0.0),
        V,
        "give their positive bin_width, got 0.0",
    ),
    (lambda: bits_per_dim(X[:, 0], 0, bin_width=1.0), V, "dim must be at least 1, got 0"),
)
def test_data_that_cannot_be_learnt_from_are_refused(call, error, text):
    check(call, error, text)


def test_bits_have_no_default_bin_width():
    with pytest.raises(TypeError, match="bin_width"):
        wrong(bits_per_dim)(X[:, 0], 2)


# ------------------------------------------------------------------------------------------------- grids and seeds


CHAIN = DiscreteVPSDE.linear(10, scaled=False)


@refuses(
    (
        lambda: grids.karras(FlowSDE(), 5),
        V,
        "grids.karras needs a finite log-SNR at both ends; FlowSDE(t_min=0.001, t_max=1.0) spans -inf to",
    ),
    (
        lambda: grids.log_snr(CosineSDE(t_max=1.0), 5),
        V,
        "choose t_max a little smaller, or use uniform or angle",
    ),
    (
        lambda: grids.angle(DoubleWell(), 5),
        T,
        "grids.angle needs a GaussianSDE; DoubleWell is a general SDE. Use uniform or quadratic",
    ),
    (lambda: grids.karras(DoubleWell(), 5), T, "grids.karras needs a GaussianSDE"),
    (lambda: grids.log_snr(DoubleWell(), 5), T, "grids.log_snr needs a GaussianSDE"),
    (lambda: grids.leading(EDMSDE(), 5), T, "grids.leading picks indices of a discrete chain; EDMSDE("),
    (lambda: grids.trailing(VP, 5), T, "is continuous. Use uniform, angle or log_snr"),
    (lambda: grids.integers(VP), T, "grids.integers picks indices of a discrete chain"),
    (
        lambda: grids.leading(CHAIN, 10),
        V,
        "10 steps visit 11 levels, but the chain has 10: at most 9 steps",
    ),
    (
        lambda: grids.integers(CHAIN, 4),
        V,
        "integers visits all 10 levels in 9 steps, got steps=4: use leading or trailing",
    ),
    (lambda: grids.uniform(VP, 0), V, "steps must be at least 1, got 0"),
    (lambda: grids.angle(VP, -3), V, "steps must be at least 1, got -3"),
    (lambda: grids.karras(VP, wrong(2.0)), T, "steps must be an integer, got 2.0"),
    (lambda: grids.log_snr(VP, 5, 0.0), V, "most must be positive and finite, got 0.0"),
    (lambda: grids.log_snr(VP, 5, 1e-3), V, "most must be above the noise level of t_min, 0.01"),
    (lambda: grids.log_snr(VP, True), T, "steps must be an integer, got True"),
    (
        lambda: seed_list([1, 2], 3),
        V,
        "got 2 seeds for 3 samples: give one integer, or one seed per sample",
    ),
    (lambda: seed_list(-1, 3), V, "seeds must be >= 0"),
    (lambda: seed_list([3, -2], 2), V, "got -2"),
    (
        lambda: seed_list(wrong("12"), 2),
        T,
        "seed must be an integer, a sequence of integers, a torch.Generator or None",
    ),
    (lambda: seed_list(wrong(1.5), 2), T, "or None, got 1.5"),
    (lambda: seed_list(True, 2), T, "or None, got True"),
)
def test_a_grid_or_seed_that_does_not_fit_is_refused(call, error, text):
    check(call, error, text)
