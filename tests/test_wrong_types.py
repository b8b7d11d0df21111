"""Claim: a wrong type at any door of the library is refused by a sentence of its own, never by what fails inside.

Each line is a call with one argument left open; whatever is put there, the call works, or the error is raised by a
`raise` of this package.
"""

from __future__ import annotations

import math
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import sde_diffusion
from sde_diffusion import VPSDE, Network, SDESampler, clocks, integrate, metrics, noise, predict, solvers
from sde_diffusion.denoiser.objectives.matching import DenoisingScoreMatching
from sde_diffusion.denoiser.objectives.time_samplers import LogNormalSigma, stratified
from sde_diffusion.denoiser.objectives.weights import EDMWeight, MinSNR
from sde_diffusion.likelihood import (
    Density,
    Estimate,
    GaussianDecoder,
    Method,
    Orthogonal,
    bits_per_dim,
    continuous_elbo,
    elbo,
    log_prob,
)
from sde_diffusion.solvers import RK4, DormandPrince, DPMSolverPP, EulerMaruyama, Heun, Langevin, Torchdiffeq, UniPC
from sde_diffusion.training import EMA, ConstantDecay, PowerDecay
from sde_diffusion.training.losses import denoising_score_matching

ROOT = str(Path(sde_diffusion.__file__).parent)
VP = VPSDE()
X = torch.linspace(-1, 1, 8).reshape(4, 2)
MODEL = Network(lambda x, t: 0.1 * x, VP, shape=(2,))
SAMPLER = SDESampler(VP, MODEL, solver=RK4(), steps=2)
CHAIN = [0.1, 0.5, 0.9]

WRONG = [
    None,
    "a",
    True,
    3,
    -1,
    0,
    2.5,
    math.nan,
    math.inf,
    1j,
    np.float32(0.5),
    np.int64(3),
    np.zeros(2),
    [1, 2],
    [0.5],
    {},
    object(),
    torch.tensor(0.5),
    torch.tensor([1, 2]),
    X.numpy(),
    X.long(),
    X.half(),
]

DOORS = {
    "sampler: sde": lambda v: SDESampler(v, MODEL),
    "sampler: score": lambda v: SDESampler(VP, v),
    "sampler: solver": lambda v: SDESampler(VP, MODEL, solver=v),
    "sampler: steps": lambda v: SDESampler(VP, MODEL, steps=v),
    "sampler: nfe": lambda v: SDESampler(VP, MODEL, nfe=v),
    "sampler: grid": lambda v: SDESampler(VP, MODEL, grid=v),
    "sampler: shape": lambda v: SDESampler(VP, MODEL, shape=v),
    "sampler: denoise": lambda v: SDESampler(VP, MODEL, denoise=v),
    "sample: n": SAMPLER.sample,
    "sample: seed": lambda v: SAMPLER.sample(2, seed=v),
    "sample: x_T": lambda v: SAMPLER.sample(x_T=v),
    "sample: batch_size": lambda v: SAMPLER.sample(2, batch_size=v),
    "sample: grad": lambda v: SAMPLER.sample(2, grad=v),
    "sample: noise": lambda v: SAMPLER.sample(2, noise=v),
    "sample: cond": lambda v: SAMPLER.sample(2, cond=v),
    "sample: nonfinite": lambda v: SAMPLER.sample(2, nonfinite=v),
    "sample: trace": lambda v: SAMPLER.sample_with_log_prob(2, method=Method(trace=v)),
    "encode: x0": SAMPLER.encode,
    "log_prob: x0": lambda v: SAMPLER.log_prob(v, method=Method(steps=2)),
    "log_prob: solver": lambda v: SAMPLER.log_prob(X, method=Method(v, steps=2)),
    "log_prob: steps": lambda v: SAMPLER.log_prob(X, method=Method(RK4(), steps=v, solver_error=False)),
    "log_prob: level": lambda v: SAMPLER.log_prob(X, density=Density(level=v), method=Method(steps=2)),
    "log_prob: whole": lambda v: SAMPLER.log_prob(X, density=Density(whole=v), method=Method(steps=2)),
    "log_prob: data_std": lambda v: SAMPLER.log_prob(X, method=Method(steps=2, data_std=v)),
    "log_prob: seed": lambda v: SAMPLER.log_prob(X, method=Method(steps=2, trace=Orthogonal(1)), seed=v),
    "log_prob: sampler": lambda v: log_prob(v, X, method=Method(steps=2)),
    "bits: log_prob": lambda v: bits_per_dim(v, 2, bin_width=0.1),
    "bits: bin_width": lambda v: bits_per_dim(X[:, 0], 2, bin_width=v),
    "network: net": lambda v: Network(v, VP)(X, 0.5),
    "network: sde": lambda v: Network(MODEL.net, v)(X, 0.5),
    "network: kind": lambda v: Network(MODEL.net, VP, v)(X, 0.5),
    "network: shape": lambda v: Network(MODEL.net, VP, shape=v)(X, 0.5),
    "network: answer": lambda v: Network(lambda x, t: v, VP)(X, 0.5),
    "network: scaled": lambda v: Network(MODEL.net, VP, clock=clocks.Scaled(v))(X, 0.5),
    "score: function": lambda v: Network(v, VP, predict.score)(X, 0.5),
    "model: x": lambda v: MODEL(v, 0.5),
    "model: t": lambda v: MODEL(X, v),
    "model: on": MODEL.on,
    "loss: model": lambda v: denoising_score_matching(v, X),
    "loss: x0": lambda v: denoising_score_matching(MODEL, v),
    "loss: t": lambda v: denoising_score_matching(MODEL, X, t=v),
    "loss: eps": lambda v: denoising_score_matching(MODEL, X, eps=v),
    "loss: weight": lambda v: denoising_score_matching(MODEL, X, weight=v),
    "loss: times": lambda v: denoising_score_matching(MODEL, X, times=v),
    "loss: generator": lambda v: denoising_score_matching(MODEL, X, generator=v),
    "loss: reduction": lambda v: denoising_score_matching(MODEL, X, reduction=v),
    "loss: low_discrepancy": lambda v: DenoisingScoreMatching(low_discrepancy=v),
    "stratified": stratified,
    "log-normal: mean": lambda v: denoising_score_matching(MODEL, X, times=LogNormalSigma(v)),
    "log-normal: std": lambda v: denoising_score_matching(MODEL, X, times=LogNormalSigma(-1.2, v)),
    "EDM weight": lambda v: denoising_score_matching(MODEL, X, weight=EDMWeight(v)),
    "min-SNR": lambda v: denoising_score_matching(MODEL, X, weight=MinSNR(v)),
    "EDM": predict.EDM,
    "elbo: model": lambda v: elbo(v, X, times=CHAIN),
    "elbo: x0": lambda v: elbo(MODEL, v, times=CHAIN),
    "elbo: prior": lambda v: elbo(MODEL, X, times=CHAIN, prior=v),
    "elbo: times": lambda v: elbo(MODEL, X, times=v),
    "elbo: bins": lambda v: elbo(MODEL, X, times=CHAIN, decoder=GaussianDecoder(bins=v)),
    "elbo: variance": lambda v: elbo(MODEL, X, times=CHAIN, variance=v),
    "elbo: estimate": lambda v: elbo(MODEL, X, times=CHAIN, estimate=v),
    "elbo: chunk": lambda v: elbo(MODEL, X, times=CHAIN, estimate=Estimate(chunk=v)),
    "elbo: decoder": lambda v: elbo(MODEL, X, times=CHAIN, decoder=v),
    "elbo: decoder_std": lambda v: elbo(MODEL, X, times=CHAIN, decoder=GaussianDecoder(std=v)),
    "elbo: importance": lambda v: elbo(MODEL, X, times=CHAIN, estimate=Estimate(importance=v)),
    "elbo: control": lambda v: elbo(MODEL, X, times=CHAIN, estimate=Estimate(control=v)),
    "elbo: levels": lambda v: elbo(MODEL, X, times=CHAIN, estimate=Estimate(levels=v)),
    "elbo: draws": lambda v: elbo(MODEL, X, times=CHAIN, estimate=Estimate(draws=v)),
    "continuous bound: lam": lambda v: continuous_elbo(MODEL, X, lam=v, estimate=Estimate(levels=2)),
    "process: time": VP.alpha,
    "process: lam": VP.time_of,
    "process: levels": VP.levels,
    "process: level": lambda v: VP.level(0.5, v),
    "process: drift": lambda v: VP.drift(v, 0.5),
    "process: marginal": lambda v: VP.marginal(v, 0.5),
    "process: perturb": lambda v: VP.perturb(X, 0.5, v),
    "process: posterior x": lambda v: VP.posterior(v, X, 0.5, 0.1),
    "process: posterior x0": lambda v: VP.posterior(X, v, 0.5, 0.1),
    "process: prior": VP.prior,
    "process: prior_log_prob": VP.prior_log_prob,
    "process: beta": VPSDE,
    "process: t_max": lambda v: VPSDE(t_max=v),
    "integrate: eq": lambda v: list(integrate(v, Heun(), X, [1.0, 0.5])),
    "integrate: solver": lambda v: list(integrate(SAMPLER.problem.equation(), v, X, [1.0, 0.5])),
    "integrate: x": lambda v: list(integrate(SAMPLER.problem.equation(), Heun(), v, [1.0, 0.5])),
    "integrate: times": lambda v: list(integrate(SAMPLER.problem.equation(), Heun(), X, v)),
    "solver: DPMSolverPP": DPMSolverPP,
    "solver: UniPC": UniPC,
    "solver: EulerMaruyama": EulerMaruyama,
    "solver: Langevin": lambda v: Langevin(1, v),
    "solver: DormandPrince": DormandPrince,
    "solver: max_nfe": lambda v: DormandPrince(max_nfe=v),
    "solver: Torchdiffeq": lambda v: Torchdiffeq(max_nfe=v),
    "solver: Angle": solvers.Angle,
    "solver: predictor": lambda v: solvers.PredictorCorrector(v, Langevin()),
    "seeds": lambda v: noise.seed_list(v, 2),
    "EMA: model": EMA,
    "EMA: decay": lambda v: EMA(torch.nn.Linear(2, 2), v),
    "decay: power": PowerDecay,
    "decay: constant": ConstantDecay,
    "metrics: x": lambda v: metrics.energy_distance(v, X),
    "metrics: seed": lambda v: metrics.sliced_wasserstein(X, X, seed=v),
    "metrics: projections": lambda v: metrics.sliced_wasserstein(X, X, projections=v),
}


def raw(error: Exception) -> bool:
    """Whether an error was not raised by a `raise` of this package."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return not last.filename.startswith(ROOT) or "raise " not in (last.line or "")


@pytest.mark.parametrize("call", DOORS.values(), ids=DOORS.keys())
def test_a_wrong_type_is_refused_by_a_sentence_of_the_library(call):
    faults = []
    for value in WRONG:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                call(value)
            except Exception as error:  # noqa: BLE001  - which, is the claim
                if raw(error) or not isinstance(error, (TypeError, ValueError)):
                    faults.append(f"{value!r:.30}: {type(error).__name__}: {error}")
    assert not faults, "\n".join(faults)
