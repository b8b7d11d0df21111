"""Claim: log_prob is the log-density of the sampler's own law: closed forms, unit mass, bits as defined."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sde_diffusion import (
    EDMSDE,
    VESDE,
    VPSDE,
    BrownianSDE,
    CosineSDE,
    DiscreteVPSDE,
    FlowSDE,
    Matched,
    Network,
    Problem,
    SDESampler,
    SubVPSDE,
    predict,
)
from sde_diffusion.denoiser.analytic import Gaussian, GaussianMixture
from sde_diffusion.likelihood import Density, Method, bits_per_dim, divergence
from sde_diffusion.solvers import RK4, Heun, Torchdiffeq

SDES = [VPSDE(), SubVPSDE(), VESDE(), BrownianSDE(), CosineSDE(), EDMSDE(), FlowSDE(), DiscreteVPSDE.linear(200)]
every_sde = pytest.mark.parametrize("sde", SDES, ids=repr)
MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
COV = torch.tensor([[0.6, 0.25], [0.25, 0.3]], dtype=torch.float64)
X = torch.tensor([[1.2, -0.1], [0.0, 0.0], [2.5, -1.0]], dtype=torch.float64)


def levels(sde):
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    return [*sde.alpha(ends).tolist(), *sde.sigma(ends).tolist()]


@every_sde
def test_gaussian_data_with_the_matched_prior_have_their_closed_form(sde):
    a, _, s, _ = levels(sde)
    problem = Problem(sde, Gaussian(sde, MEAN, COV), prior=Matched(MEAN, COV))
    found = SDESampler(problem).log_prob(X, method=Method(steps=100, data_std=0.67))
    smallest = COV + (s / a) ** 2 * torch.eye(2, dtype=torch.float64)  # of the data at the last noise level
    truth = torch.distributions.MultivariateNormal(MEAN, smallest).log_prob(X)
    torch.testing.assert_close(found.value, truth, rtol=0, atol=1e-6)
    assert found.nfe == 400


@pytest.mark.slow
@every_sde
def test_with_a_plain_prior_it_is_the_density_of_the_exact_flow_of_that_prior(sde):
    """The flow is affine along the eigenvectors of C: log p = log N(latent; 0, s_T^2) + log of the stretch."""
    a, a_T, s, s_T = levels(sde)
    model = Gaussian(sde, MEAN, COV)
    found = SDESampler(sde, model).log_prob(X, density=Density(whole=False), method=Method(steps=100, data_std=0.67))
    latent = model.flow(a * X, sde.t_min, sde.t_max)
    v = torch.linalg.eigvalsh(COV)
    stretch = 0.5 * torch.log((a_T**2 * v + s_T**2) / (a**2 * v + s**2)).sum() + 2 * math.log(a)
    truth = torch.distributions.Normal(0.0, torch.tensor(s_T, dtype=torch.float64)).log_prob(latent).sum(1) + stretch
    torch.testing.assert_close(found.value, truth, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.latent, latent, rtol=0, atol=1e-5 * max(1.0, s_T))


@pytest.mark.parametrize("sde", [VPSDE(), FlowSDE(), EDMSDE()], ids=repr)
def test_a_mixture_has_its_closed_form_up_to_the_prior(sde):
    """At t_max the mixture is Gaussian to 1e-4 (VP, EDM) or exactly (flow); its moments are those of the prior."""
    a, _, s, _ = levels(sde)
    weights, means, v = (
        torch.tensor([0.4, 0.6]).double(),
        torch.stack([MEAN, -MEAN]),
        torch.tensor([0.3, 0.15]).double(),
    )
    model = GaussianMixture(sde, weights, means, v[:, None].expand(2, 2).contiguous())
    mean = weights @ means
    spread = torch.diag((weights @ v).expand(2)) + torch.einsum("k,ki,kj->ij", weights, means - mean, means - mean)
    found = SDESampler(Problem(sde, model, prior=Matched(mean, spread))).log_prob(X, method=Method(steps=80))
    parts = [
        torch.log(w) + torch.distributions.Normal(m, torch.sqrt(var + (s / a) ** 2)).log_prob(X).sum(1)
        for w, m, var in zip(weights, means, v, strict=True)
    ]
    torch.testing.assert_close(found.value, torch.logsumexp(torch.stack(parts), 0), rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "steps", "tol"),
    [(Heun(), 150, 5e-3), (RK4(), 50, 1e-4), (Torchdiffeq("dopri5", 1e-9, 1e-9), 1, 1e-6)],
    ids=["heun", "rk4", "dopri5"],
)
def test_any_ode_solver_integrates_it(solver, steps, tol):
    sde = VPSDE()
    truth = SDESampler(sde, Gaussian(sde, MEAN, COV)).log_prob(X, method=Method(steps=200)).value
    found = SDESampler(sde, Gaussian(sde, MEAN, COV)).log_prob(X, method=Method(solver, steps=steps))
    torch.testing.assert_close(found.value, truth, rtol=0, atol=tol)


def test_more_steps_converge_at_the_order_of_the_solver():
    sde = VPSDE()
    a, _, s, _ = levels(sde)
    smallest = COV + (s / a) ** 2 * torch.eye(2, dtype=torch.float64)
    truth = torch.distributions.MultivariateNormal(MEAN, smallest).log_prob(X)
    sampler = SDESampler(Problem(sde, Gaussian(sde, MEAN, COV), prior=Matched(MEAN, COV)))
    errors = [(sampler.log_prob(X, method=Method(steps=n)).value - truth).abs().max().item() for n in (24, 48)]
    order = math.log2(errors[0] / errors[1])
    print(f"order {order:.2f}")
    assert 3.85 < order < 4.5


class Net(nn.Module):
    """An untrained network of bounded slope, smooth in state and time."""

    def __init__(self, d):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(d + 1, 16), nn.Tanh(), nn.Linear(16, d)).double()

    def forward(self, x, t, shift=0.0):
        return self.layers(torch.cat([x, t[:, None]], 1)) + shift


@pytest.mark.parametrize("kind", [predict.velocity, predict.v, predict.EDM(0.7)], ids=repr)
@pytest.mark.parametrize("sde", [VPSDE(t_min=0.01), FlowSDE(t_min=0.05)], ids=repr)
def test_the_density_of_an_untrained_network_integrates_to_one(sde, kind):
    """Whatever the network, mass is conserved; the trapezoid rule is exact on a smooth density that decays."""
    model = Network(Net(1), sde, kind, shape=(1,))
    x = torch.linspace(-16, 16, 1201, dtype=torch.float64)[:, None]
    density = SDESampler(sde, model).log_prob(x, method=Method(steps=150)).value.exp()
    assert density.max() > 0.05
    assert density[0] < 1e-9
    assert density[-1] < 1e-9
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1.0, abs=1e-6)


def test_the_density_in_two_dimensions_integrates_to_one():
    sde = FlowSDE(t_min=0.05)
    model = Network(Net(2), sde, predict.velocity, shape=(2,))
    line = torch.linspace(-7, 7, 71, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    density = SDESampler(sde, model).log_prob(x, method=Method(steps=30)).value.exp().reshape(71, 71)
    assert torch.trapezoid(torch.trapezoid(density, line), line).item() == pytest.approx(1.0, abs=1e-5)


def test_conditions_reach_the_network():
    sde = FlowSDE(t_min=0.05)
    sampler = SDESampler(sde, Network(Net(1), sde, predict.velocity, shape=(1,)))
    x = torch.zeros(2, 1, dtype=torch.float64)
    assert (sampler.log_prob(x).value - sampler.log_prob(x, shift=1.0).value).abs().min() > 0.1


def test_images_have_the_density_of_their_flattened_selves():
    sde = VPSDE()
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 1, 2, 2)
    image = SDESampler(sde, Gaussian(sde, torch.zeros(1, 2, 2).double(), 0.5)).log_prob(x)
    flat = SDESampler(sde, Gaussian(sde, torch.zeros(4).double(), 0.5)).log_prob(x.flatten(1))
    torch.testing.assert_close(image.value, flat.value, rtol=1e-12, atol=0)
    assert image.latent.shape == x.shape


def test_the_latent_decodes_to_the_data():
    sde = VPSDE()
    sampler = SDESampler(sde, Gaussian(sde, MEAN, COV), solver=RK4(), steps=200)
    back = sampler.sample(x_T=sampler.log_prob(X, density=Density(whole=False), method=Method(steps=100)).latent)
    # The final jump contracts towards the mean by at most S^2 / (S^2 + 0.16) = 7e-4 of the distance, S = 0.0105.
    torch.testing.assert_close(back, X, rtol=0, atol=3e-3)


def test_the_divergence_of_a_known_field():
    x = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64, requires_grad=True)
    field = torch.stack([x[:, 0] ** 2 * x[:, 1], torch.sin(x[:, 1]) + x[:, 0]], 1)
    torch.testing.assert_close(divergence(field, x), (2 * x[:, 0] * x[:, 1] + torch.cos(x[:, 1])).detach())


# ---------------------------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("d", [1, 64])
@pytest.mark.parametrize("levels", [17, 256])
def test_a_uniform_density_costs_the_bits_of_its_bins(d, levels):
    """On [-1, 1]^d, log p = -d log 2; levels of width 2 / levels cost log2(levels) bits each."""
    log_p = torch.tensor([-d * math.log(2)], dtype=torch.float64)
    found = bits_per_dim(log_p, d, bin_width=2 / levels)
    assert found.item() == pytest.approx(math.log2(levels), rel=1e-12)


def test_bits_do_not_depend_on_the_units_of_the_data():
    log_p, c, d = torch.tensor([-3.0, 4.0], dtype=torch.float64), 127.5, 5
    scaled = bits_per_dim(log_p - d * math.log(c), d, bin_width=c * 0.1)
    torch.testing.assert_close(scaled, bits_per_dim(log_p, d, bin_width=0.1))
