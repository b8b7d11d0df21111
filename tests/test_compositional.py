"""Claim: the composed posterior of n observations is the exact one of Gaussians, for any n, and costs n + 1 passes."""

from __future__ import annotations

import pytest
import torch
from exact_posteriors import GaussianGivenOne, GivenOne, product
from refusals import check, refuses, wrong

from sde_diffusion import EDMSDE, VPSDE, FlowSDE, Network, PerSample, SDESampler
from sde_diffusion.denoiser.analytic import Gaussian, GaussianMixture
from sde_diffusion.guidance import Compositional
from sde_diffusion.metrics import sliced_wasserstein
from sde_diffusion.nets import MLP
from sde_diffusion.solvers import DDIM, EulerMaruyama


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


A, NOISE = f64(1.0, 0.3, 0.0, 1.2).reshape(2, 2), 0.7
PRIOR_COV = f64(1.0, 0.4, 0.4, 0.8).reshape(2, 2)
SINGLE_COV = torch.linalg.inv(torch.linalg.inv(PRIOR_COV) + A.T @ A / NOISE**2)


EDM = EDMSDE()


def gaussian(sde=EDM):
    return GaussianGivenOne(Gaussian(sde, f64(0.5, -1.0), PRIOR_COV), A, NOISE)


def seen(n, seed=1):
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return f64(0.9, -1.4) @ A.T + NOISE * z


def composed(n, model=None, **options):
    return Compositional(model or gaussian(), n, SINGLE_COV, PRIOR_COV, **options)


def whitened(x, exact):
    """Samples in units of the exact posterior: mean 0, covariance I."""
    return ((x - exact.means[0]) @ exact.basis[0]) / exact.spread[0].sqrt()


@pytest.mark.parametrize("n", [1, 10, 100, 1000])
@pytest.mark.filterwarnings("ignore:the posterior of 1000 observations")  # which asks for the ends of the process
@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), FlowSDE()], ids=["VP", "EDM", "flow"])
def test_on_gaussians_the_prediction_is_that_of_the_exact_posterior_at_every_level(sde, n):
    y, model = seen(n), gaussian(sde)
    exact, found = product(model.prior, A, y, NOISE), composed(n, model, at_once=7 if n == 10 else 64)
    assert found.data_std == pytest.approx(float(exact.spread.mean().sqrt()))
    x = 2 * torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = f64(sde.t_min, 0.5 * (sde.t_min + sde.t_max), sde.t_max)  # alpha = 0 at the end of the flow
    for t in (*times.tolist(), times):
        p, q = found(x, t, context=y), exact(x, t)
        torch.testing.assert_close(p.data, q.data, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(p.noise, q.noise, rtol=1e-9, atol=1e-7)  # n terms that cancel, times 1 / sigma


@pytest.mark.parametrize("solver", [None, DDIM(eta=1.0), EulerMaruyama()], ids=["default", "ddim", "euler"])
@pytest.mark.parametrize("n", [10, pytest.param(1000, marks=pytest.mark.slow)])
def test_samples_of_a_gaussian_posterior_have_its_mean_and_its_variance(solver, n):
    sde, y, draws = VPSDE(t_min=1e-6), seen(n), 2000 if n == 10 else 300
    model = gaussian(sde)
    steps = None if solver is None else 120
    sampler = SDESampler(sde, composed(n, model), solver=solver, steps=steps)
    z = whitened(
        sampler.sample(draws, seed=torch.Generator().manual_seed(0), context=y), product(model.prior, A, y, NOISE)
    )
    mean, variance = z.mean(0).abs().max(), (z.var(0) - 1).abs().max()
    print(f"n = {n}: mean off {mean:.3f} sd, variance {variance:.3f}, SE {draws**-0.5:.3f}, {(2 / draws) ** 0.5:.3f}")
    assert mean < 4 * draws**-0.5 + 0.02
    assert variance < 4 * (2 / draws) ** 0.5 + 0.03


def test_in_float32_a_thousand_terms_lose_little():
    y, model = seen(1000), gaussian()
    single = composed(1000, gaussian().to(torch.float32), at_once=1000).to(torch.float32)
    single.inner.a = A.float()
    exact = product(model.prior, A, y, NOISE)
    x = exact.sample(8, seed=0)
    for t in (0.002, 0.02, 1.0, 80.0):
        gap = single(x.float(), t, context=y.float()).data.double() - exact(x, t).data
        assert gap.abs().max() < 0.05 * exact.spread.min().sqrt()


def test_one_observation_is_the_model_itself_in_one_pass():
    model = gaussian()
    found, y, grid = composed(1, model), seen(1), (80.0, 5.0, 1.0, 0.3, 0.05, 0.002)
    assert (found.cost, composed(10, model).cost) == (1, 11)
    x = SDESampler(EDM, found, solver=DDIM(), grid=grid).sample(4, seed=0, context=y)
    calls = model.calls
    alone = SDESampler(EDM, model, solver=DDIM(), grid=grid)
    assert torch.equal(x, alone.sample(4, seed=0, context=y))
    assert model.calls - calls == 6


def test_evaluations_are_counted_and_observations_are_no_rows():
    found, y = composed(4), seen(4)
    sampler = SDESampler(EDMSDE(), found, nfe=50)
    *_, last = sampler.iterate(4, seed=0, context=y)
    assert last.nfe == 50
    x = sampler.sample(4, seed=0, context=y)
    torch.testing.assert_close(sampler.sample(4, seed=0, batch_size=3, context=y), x, rtol=0, atol=1e-12)


def test_without_covariances_scores_are_added_as_they_are_and_make_a_product():
    y, model, x = seen(5), gaussian(), 1.5 * torch.ones(2, 2, dtype=torch.float64)
    found = Compositional(model, 5, at_once=2)
    assert found.powers == (1.0, 1.0, 1.0, 1.0, 1.0, -4.0)
    wanted = sum(model.score(x, 0.8, context=v.expand(2, 2)) for v in y) - 4 * model.prior.score(x, 0.8)
    torch.testing.assert_close(found.score(x, 0.8, context=y), wanted)
    (at,) = found.levels([0.8])
    noise = sum(g * p.noise for g, p in zip(found.powers, found.parts(x, at, context=y), strict=True))
    torch.testing.assert_close(-noise / 0.8, wanted)
    assert Compositional(model, 1).powers == (1.0,)
    assert repr(found) == "Compositional(model, 5)"
    assert repr(composed(5, name="x_o")) == "Compositional(model, 5, covariances, prior_covariance, name='x_o')"


def test_a_network_that_learnt_to_do_without_its_context_is_its_own_prior():
    net = MLP(2, hidden=8, layers=1, context=3)
    torch.nn.init.normal_(net.leave.weight, generator=torch.Generator().manual_seed(0))
    model, y, x = Network(net, EDM, shape=(2,)).eval(), torch.ones(4, 3) / 2, torch.ones(2, 2)
    alone, one = model(x, 0.5).noise, model(x, 0.5, context=y[:1]).noise
    torch.testing.assert_close(Compositional(model, 4)(x, 0.5, context=y).noise, 4 * one - 3 * alone)


def test_a_prior_of_its_own_is_seen_through_the_process_of_the_model():
    y, x = seen(3), torch.ones(2, 2, dtype=torch.float64)
    prior = Gaussian(VPSDE(), f64(0.5, -1.0), PRIOR_COV)
    found = composed(3, prior=prior)
    torch.testing.assert_close(found(x, 0.5, context=y).data, composed(3)(x, 0.5, context=y).data)
    assert found.noise_range[1] == pytest.approx(min(80.0, VPSDE().levels([1.0])[0].ratio))
    torch.testing.assert_close(found.beyond()(x, 0.5, context=y).data, found(x, 0.5, context=y).data)


def test_the_density_of_a_composed_gaussian_is_exact():
    y, model = seen(10), gaussian()
    exact = product(model.prior, A, y, NOISE)
    x = exact.sample(4, seed=0)
    found = SDESampler(EDMSDE(), composed(10, model)).log_prob(x, context=y)
    torch.testing.assert_close(found.value, exact.data_log_prob(x), rtol=0, atol=0.02)


def test_covariances_are_estimated_from_samples_without_bias_of_their_inverse():
    sde, y, model = EDMSDE(), seen(10), gaussian()
    singles = torch.stack([model.single(v).sample(500, seed=i) for i, v in enumerate(y)])
    found = Compositional.from_samples(model, singles, model.prior.sample(5000, seed=99))
    x = SDESampler(sde, found).sample(4000, seed=torch.Generator().manual_seed(0), context=y)
    z = whitened(x, product(model.prior, A, y, NOISE))
    assert z.mean(0).abs().max() < 0.1
    assert (z.var(0) - 1).abs().max() < 0.05 + 4 * (2 / 4000) ** 0.5
    few = model.single(y[0]).sample(8000, seed=0).reshape(1000, 8, 2)
    inverse = Compositional.from_samples(model, few, model.prior.sample(500_000, seed=1)).precisions
    assert inverse is not None
    torch.testing.assert_close(inverse.mean(0), torch.linalg.inv(SINGLE_COV), rtol=0.1, atol=0.2)  # of 8 samples each


@pytest.mark.slow
def test_on_mixtures_the_correction_is_nearer_to_the_posterior_than_scores_that_are_added():
    sde, a, n = VPSDE(t_min=1e-5), torch.eye(2, dtype=torch.float64), 4
    means = f64(-2, 0, 0, 2, 2, 0, 0, -1.5).reshape(4, 2)
    prior = GaussianMixture(sde, torch.ones(4, dtype=torch.float64), means, 0.16)
    model, off = GivenOne(prior, a, 2.0), torch.zeros(2)
    for problem, x0 in enumerate(prior.sample(5, seed=0)):
        z = torch.randn(n, 2, generator=torch.Generator().manual_seed(problem), dtype=torch.float64)
        y = x0 + 2.0 * z
        singles = torch.stack([model.single(v).sample(2000, seed=0) for v in y])
        corrected = Compositional.from_samples(model, singles, prior.sample(5000, seed=0))
        truth = product(prior, a, y, 2.0).sample(500, seed=0)
        for i, found in enumerate((corrected, Compositional(model, n))):
            x = SDESampler(sde, found).sample(500, seed=torch.Generator().manual_seed(1), context=y)
            off[i] += sliced_wasserstein(x, truth) / 5
    print(f"mean distance: corrected {off[0]:.3f}, added {off[1]:.3f}; floor 0.07")
    assert off[0] < 0.85 * off[1]


def dropless():
    return Network(MLP(2, hidden=8, layers=1, context=2, context_drop=0.0), EDMSDE(), shape=(2,))


X, Y = torch.ones(2, 2, dtype=torch.float64), seen(3)


@refuses(
    (lambda: Compositional(wrong(MLP(2)), 3), TypeError, "Compositional takes a Denoiser, got MLP"),
    (lambda: Compositional(gaussian(), 0), ValueError, "n must be at least 1, got 0"),
    (lambda: Compositional(gaussian(), 3, prior=wrong("flat")), TypeError, "prior must be a Denoiser of the parameter"),
    (lambda: Compositional(gaussian(), 3, SINGLE_COV), TypeError, "prior_covariance go together"),
    (lambda: Compositional(gaussian(), 3, SINGLE_COV.expand(2, 2, 2), PRIOR_COV), ValueError, "wanted (3, D, D)"),
    (lambda: Compositional(gaussian(), 3, SINGLE_COV, PRIOR_COV.expand(2, 2, 2)), ValueError, "wanted (D, D)"),
    (lambda: Compositional(gaussian(), 3, SINGLE_COV, torch.eye(3)), ValueError, "of one size"),
    (lambda: Compositional(gaussian(), 3, wrong(0.3), PRIOR_COV), TypeError, "covariances must be a torch.Tensor"),
    (lambda: Compositional(gaussian(), 3, -SINGLE_COV, PRIOR_COV), ValueError, "symmetric and positive definite"),
    (lambda: Compositional(gaussian(), 30, PRIOR_COV, SINGLE_COV), ValueError, "Estimate them from more samples"),
    (lambda: composed(3).powers, ValueError, "no product of powers in noise"),
    (lambda: composed(3)(X, 1.0), TypeError, "give context=y, of shape (3, *)"),
    (
        lambda: composed(3)(X, 1.0, context=Y[:2]),
        ValueError,
        "must hold 3 observations, shape (3, *), got",
    ),
    (lambda: composed(3)(X, 1.0, context=PerSample(Y)), TypeError, "leave the mark out"),
    (lambda: composed(3)(X, 1.0, context=Y, label=1), TypeError, "as context= alone, got label="),
    (lambda: Compositional(dropless(), 3)(X.float(), 1.0, context=Y.float()), ValueError, "context_drop"),
    (
        lambda: Compositional.from_samples(gaussian(), torch.randn(3, 4, 2), torch.randn(9, 2)),
        ValueError,
        "takes at least 5 samples of each, got 4",
    ),
)
def test_what_is_refused(call, error, text):
    check(call, error, text)


def test_a_process_whose_last_noise_hides_the_width_of_the_posterior_is_warned_of():
    text = r"of 1000 observations has a standard deviation of 0.01\d*, and VPSDE\(.*ends at noise of 0.01, which hides"
    with pytest.warns(UserWarning, match=text):
        composed(1000, gaussian(VPSDE()))
    composed(10, gaussian(VPSDE()))
    composed(1000, gaussian(VPSDE(t_min=1e-6)))
