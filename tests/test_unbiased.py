"""Claim: a loss is right on average, whatever is chosen: at the exact denoiser its mean gradient is zero.

The network is the exact answer of a mixture and `theta` times features of its own, one `theta` for each sample, so that
one backward pass gives the gradient of every sample. A bias in any weight is none at this point; one in the target, the
correction, the control variate or the pairing of state and noise is.
"""

from __future__ import annotations

import math
from itertools import cycle, product

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import VESDE, VPSDE, CosineSDE, DiscreteVPSDE, FlowSDE, Network, predict
from sde_diffusion.denoiser.analytic import isotropic_mixture
from sde_diffusion.denoiser.objectives import time_samplers, weights
from sde_diffusion.denoiser.objectives.matching import DenoisingScoreMatching

SDES = [VPSDE(), VESDE(0.02, 20.0), FlowSDE(t_max=0.99), DiscreteVPSDE.linear(100)]
KINDS = [predict.EDM(0.7) if isinstance(kind, predict.EDM) else kind for kind in predict.NAMES.values()]
WEIGHTS = [None, *weights.NAMES.values()]
TIMES = list(time_samplers.NAMES.values())
MEANS = [[1.0, -0.5], [-0.8, 0.4], [0.2, 0.9]]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Exact(nn.Module):
    """What a network of that kind should answer, by a mixture, and theta times features of the state and the time."""

    def __init__(self, sde, kind, std=0.3) -> None:
        super().__init__()
        self.truth, self.sde, self.kind = isotropic_mixture(sde, MEANS, std), sde, kind
        self.theta = torch.zeros(0, 3, dtype=torch.float64)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        at = self.sde.level(t, x)
        x = x / self.kind.input_scale(at)  # as it was before the parametrisation scaled it
        answer = self.truth.predict(x, at)
        on_data, on_noise = self.kind.target(at)
        near = x / torch.sqrt(at.alpha**2 + at.sigma**2)
        features = torch.stack([torch.ones_like(x), near, torch.sin(2 * near + at.lam)], 1)
        theta = self.theta.repeat(len(x) // max(1, len(self.theta)), 1)
        return on_data * answer.data + on_noise * answer.noise + (theta[..., None] * features).sum(1)


def gradients(sde, kind, objective, n, seed=0):
    """The gradient in theta of each of `n` samples, shape `(n, 3)`."""
    net = Exact(sde, kind)
    net.theta = torch.zeros(n, 3, dtype=torch.float64, requires_grad=True)
    model = Network(net, sde, kind, clock="time", shape=(2,))
    x0 = net.truth.sample(n, seed=seed)
    loss = objective(model, x0, generator=seeded(seed + 1), reduction="none")
    (found,) = torch.autograd.grad(loss.sum(), net.theta)
    return found


def largest(found: Tensor) -> float:
    """The mean gradient in standard errors: the largest of its entries."""
    se = found.std(0) / math.sqrt(len(found))
    return float((found.mean(0).abs() / se).max())


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_the_mean_gradient_is_zero_at_the_exact_denoiser(sde):
    """Every weighting with every parametrisation; times and control variate change from one pair to the next."""
    choices = cycle(product([False, True], TIMES))
    off = {}
    for kind, weight in product(KINDS, WEIGHTS):
        control, times = next(choices)
        off[kind, weight, times, control] = largest(
            gradients(sde, kind, DenoisingScoreMatching(times, weight, control_variate=control), 4000)
        )
    worst = max(off, key=lambda key: off[key])
    print(f"{len(off)} losses, {off[worst]:.2f} standard errors at most: {worst}")
    assert off[worst] < 4


@pytest.mark.slow
@pytest.mark.parametrize("times", TIMES, ids=weights.name_of)
@pytest.mark.parametrize("sde", [*SDES, CosineSDE()], ids=repr)
def test_the_mean_gradient_is_zero_for_every_combination(sde, times):
    off = {}
    for kind, weight, control in product(KINDS, WEIGHTS, [False, True]):
        objective = DenoisingScoreMatching(times, weight, control_variate=control)
        off[kind, weight, control] = largest(gradients(sde, kind, objective, 20_000, seed=7))
    worst = max(off, key=lambda key: off[key])
    print(f"{len(off)} losses, {off[worst]:.2f} standard errors at most: {worst}")
    assert off[worst] < 4


def test_a_loss_that_is_biased_is_found_out():
    class Moved(DenoisingScoreMatching):
        """The data moved by a fifth of their standard deviation."""

        def __call__(self, model, x0, **rest):
            return super().__call__(model, x0 + 0.15, **rest)

    assert largest(gradients(VPSDE(), predict.noise, Moved(), 4000)) > 8
