"""Claim: a variance that is learnt beside the mean is the right one, of the chain's step, for each coordinate.

Data N(m, V) with a network that answers the exact mean and the exact variance of every reverse step make a chain whose
law is that of the data: the bound is the log-likelihood, ancestral samples have its moments at any number of levels,
and the gradient of the hybrid loss is zero.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checkpoints import edit
from torch import Tensor, nn

from sde_diffusion import VPSDE, Clipped, DiscreteVPSDE, Matched, Network, Problem, SDESampler, losses, predict
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.likelihood import Bins, CategoricalDecoder, Estimate, GaussianDecoder, elbo
from sde_diffusion.nets import MLP, DiT, UNet
from sde_diffusion.solvers import DDIM
from sde_diffusion.training import Recipe, load_checkpoint, save_checkpoint, train

MEAN = torch.tensor([0.3, -0.2, 0.0, 0.1], dtype=torch.float64)
V = torch.tensor([1.5, 0.6, 0.1, 0.01], dtype=torch.float64)
CHAINS = [DiscreteVPSDE.cosine(10), DiscreteVPSDE.linear(30), DiscreteVPSDE.cosine(100)]
every_chain = pytest.mark.parametrize("sde", CHAINS, ids=repr)
KINDS = [predict.noise, predict.EDM(0.7), predict.v]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def best_mix(sde, times):
    """The mix of log-variances that gives Var(x_s | x_t) of N(m, V), in rows for the levels at `times`: a loop."""
    chain, out = sde.levels(range(int(sde.t_max) + 1)), []
    for t in times:
        i = round(t)
        at, var0 = chain[i], V * chain[i].sigma ** 2 / (chain[i].alpha ** 2 * V + chain[i].sigma ** 2)
        if i == 0:  # down to the data
            small = at.sigma**2 * (1 - math.exp(-2 * (at.lam - chain[1].lam)))
            out.append(torch.log(var0 / small) / math.log(at.sigma**2 / small))
        else:
            s = chain[i - 1]
            beta = 1 - (at.alpha / s.alpha) ** 2
            small = beta * s.sigma**2 / at.sigma**2  # DDPM's two variances
            true = small + (s.alpha * beta / at.sigma**2) ** 2 * var0
            out.append(torch.log(true / small) / math.log(beta / small))
    return torch.stack(out)


class Exact(nn.Module):
    """The exact answer for the mean and for the variance, and theta of its own, one for each sample and half."""

    def __init__(self, sde, kind) -> None:
        super().__init__()
        self.truth, self.sde, self.kind = Gaussian(sde, MEAN, V), sde, kind
        self.table = 2 * best_mix(sde, range(int(sde.t_max) + 1)) - 1
        self.theta: Tensor | None = None

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        at = self.sde.level(t, x)
        answer = self.truth.predict(x / self.kind.input_scale(at), at)
        on_data, on_noise = self.kind.target(at)
        both = torch.cat([on_data * answer.data + on_noise * answer.noise, self.table[t.round().long()].to(x)], 1)
        return both if self.theta is None else both + self.theta


def model_of(sde, kind: predict.Parametrisation = predict.noise):
    return Network(Exact(sde, kind), sde, predict.LearnedVariance(kind), clock="time", shape=(4,))


@every_chain
def test_the_two_known_variances_are_the_ends_of_the_mix(sde):
    """With a mix of 0 and of 1 the steps and the bound are those of the fixed variances, and halves of both between."""
    model = model_of(sde)
    x0 = model.net.truth.sample(6, seed=0)
    for v, variance in ((-1.0, "posterior"), (1.0, "forward")):
        model.net.table = torch.full_like(model.net.table, v)
        given: dict[str, Any] = dict(prior=Matched(0.0, 1.0), estimate=Estimate(control=0.0), seed=3)
        learned, fixed = (elbo(model, x0, variance=how, **given) for how in ("learned", variance))
        torch.testing.assert_close(learned.transitions, fixed.transitions, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(learned.reconstruction, fixed.reconstruction, rtol=1e-9, atol=1e-12)
        samples = [
            SDESampler(sde, model, solver=DDIM(1.0, variance=how), grid=range(int(sde.t_max), -1, -1)).sample(3, seed=0)
            for how in ("learned", variance)
        ]
        torch.testing.assert_close(*samples, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sde", [*CHAINS[:2], pytest.param(CHAINS[2], marks=pytest.mark.slow)], ids=repr)
def test_with_the_exact_variance_the_bound_is_the_likelihood_and_tighter_than_any_other(sde):
    model, n = model_of(sde), 400
    x0 = model.net.truth.sample(n, seed=0)
    prior = Matched(MEAN, V)  # so that the prior costs nothing
    truth = -model.net.truth.data_log_prob(x0)
    learned = elbo(model, x0, variance="learned", prior=prior, seed=1)
    off = learned.total - truth
    se = math.sqrt(float(off.var()) / n)
    print(f"learned {float(off.mean()):.4f} above minus the log-likelihood, SE {se:.4f}")
    assert abs(float(off.mean())) < 4 * se
    for variance in ("posterior", "forward"):
        more = elbo(model, x0, variance=variance, prior=prior, seed=1).total - learned.total
        print(f"{variance}: {float(more.mean()):.4f} above that")
        assert float(more.mean()) > 4 * math.sqrt(float(more.var()) / n)
    few = elbo(model, x0, variance="learned", prior=prior, estimate=Estimate(levels=5), seed=2).total - truth
    assert abs(float(few.mean())) < 4 * math.sqrt(float(few.var()) / n)


def test_ancestral_samples_with_the_exact_variance_have_the_moments_of_the_data_in_ten_steps():
    sde, n = DiscreteVPSDE.cosine(10), 20_000
    model, grid = model_of(sde), range(9, -1, -1)
    found = {}
    for variance in ("learned", "posterior", "forward"):
        solver = DDIM(1.0, variance=variance)
        problem = Problem(sde, model, prior=Matched(MEAN, V))
        sampler = SDESampler(problem, solver=solver, grid=grid, denoise=False)
        x, (at,) = sampler.sample(n, seed=seeded(0)), sde.levels([0.0])
        wanted = at.alpha**2 * V + at.sigma**2
        found[variance] = (x.var(0) / wanted - 1) / math.sqrt(2 / n)
        print(f"{variance}: variances off by {found[variance].tolist()} standard errors")
        assert ((x.mean(0) - at.alpha * MEAN).abs() < 4 * (wanted / n).sqrt()).all()
    assert found["learned"].abs().max() < 4
    assert found["posterior"].abs().max() > 8
    assert found["forward"].abs().max() > 8


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_the_gradient_of_the_hybrid_loss_is_zero_at_the_exact_answer_and_its_bound_leaves_the_mean_alone(kind):
    sde, n = DiscreteVPSDE.linear(30), 8000
    model = model_of(sde, kind)
    x0 = model.net.truth.sample(n, seed=0)

    def gradients(**how):
        model.net.theta = torch.zeros(n, 8, dtype=torch.float64, requires_grad=True)
        objective = losses.DenoisingScoreMatching(losses.uniform_index, **how)
        loss = objective(model, x0, generator=seeded(1), reduction="none")
        return torch.autograd.grad(loss.sum(), model.net.theta)[0]

    found = gradients(variance_bound=1.0)
    off = found.mean(0) / (found.std(0) / math.sqrt(n))
    print(f"{off.abs().max():.2f} standard errors at most")
    assert off.abs().max() < 4
    assert (found[:, 4:].std(0) > 0).all()
    alone = gradients(variance_bound=0.0)
    assert torch.equal(found[:, :4], alone[:, :4])
    assert not alone[:, 4:].any()
    model.net.table = model.net.table + 0.5  # too wide
    wide = gradients(variance_bound=1.0)[:, 4:]
    assert (wide.mean(0) / (wide.std(0) / math.sqrt(n)) > 8).all()


def test_the_hybrid_loss_is_the_published_one_written_out():
    """|eps - eps_hat|^2 + 0.001 T times the KL by torch.distributions, at the last level minus a log-density."""
    sde = DiscreteVPSDE.linear(30)
    model, t = model_of(sde), torch.tensor([0.0, 1.0, 17.0, 29.0], dtype=torch.float64)
    model.net.table = 0.3 * torch.randn(model.net.table.shape, dtype=torch.float64, generator=seeded(4))
    x0, eps = (torch.randn(4, 4, dtype=torch.float64, generator=seeded(k)) for k in (5, 6))
    found = losses.DenoisingScoreMatching(variance_bound=1e-3)(model, x0, t=t, eps=eps, reduction="none")
    bar = torch.cumprod(1 - sde.betas, 0)
    for i, index in enumerate(t.long().tolist()):
        x = bar[index].sqrt() * x0[i] + (1 - bar[index]).sqrt() * eps[i]
        hat, mix = model.net(x[None], t[i : i + 1])[0, :4], (model.net.table[index] + 1) / 2
        data = (x - (1 - bar[index]).sqrt() * hat) / bar[index].sqrt()
        if index:
            small = sde.betas[index] * (1 - bar[index - 1]) / (1 - bar[index])

            def mean(d, index=index, x=x):
                beta, last = sde.betas[index], bar[index - 1]
                return (last.sqrt() * beta * d + (1 - beta).sqrt() * (1 - last) * x) / (1 - bar[index])

            std = torch.exp((mix * sde.betas[index].log() + (1 - mix) * small.log()) / 2)
            normal = torch.distributions.Normal
            bound = torch.distributions.kl_divergence(normal(mean(x0[i]), small.sqrt()), normal(mean(data), std)).mean()
        else:
            small = sde.betas[1] * (1 - bar[0]) / (1 - bar[1])
            std = torch.exp((mix * sde.betas[0].log() + (1 - mix) * small.log()) / 2)
            bound = -torch.distributions.Normal(data, std).log_prob(x0[i]).mean()
        expected = (hat - eps[i]).square().mean() + 1e-3 * 30 * bound
        torch.testing.assert_close(found[i], expected, rtol=1e-8, atol=0)


def test_a_discretised_decoder_takes_the_learnt_deviation_too():
    sde = DiscreteVPSDE.cosine(10)
    model, bins = model_of(sde), Bins.tiling(9, -2.0, 2.0)
    x0 = bins.centre(torch.randint(0, 9, (5, 4), generator=seeded(0)), torch.float64)
    model.net.table = torch.full_like(model.net.table, 1.0)
    how: dict[str, Any] = dict(prior=Matched(0.0, 1.0), seed=3)
    for decoder in (GaussianDecoder(bins=bins), GaussianDecoder(std=0.3), CategoricalDecoder(bins)):
        a, b = (elbo(model, x0, variance=v, decoder=decoder, **how).reconstruction for v in ("learned", "forward"))
        torch.testing.assert_close(a, b, rtol=1e-9, atol=0)


@pytest.mark.slow
def test_a_network_learns_the_variance_and_its_bound_falls_below_both_others(tmp_path):
    """On two narrow peaks, in ten levels, from a net that answers twice the entries; saved and loaded again."""
    sde = DiscreteVPSDE.cosine(10)
    torch.manual_seed(0)
    net = MLP(2, hidden=32, layers=2, features=0, answers=2)
    model = Network(net, sde, predict.LearnedVariance(predict.EDM(1.0)), shape=(2,))
    objective = model.objective()
    assert objective == losses.DenoisingScoreMatching(losses.uniform_index, variance_bound=1e-3)
    x, test = (torch.randn(n, 2, generator=seeded(n)) * 0.1 for n in (4096, 500))
    x, test = (part + torch.arange(len(part))[:, None] % 2 * 2 - 1 for part in (x, test))
    more = losses.DenoisingScoreMatching(losses.uniform_index, variance_bound=0.1)
    run = train(model, x, steps=300, recipe=Recipe(256, lr=5e-3), loss=more, seed=0)
    save_checkpoint(tmp_path / "model", run.model)
    loaded = load_checkpoint(tmp_path / "model").model
    assert loaded.kind == model.kind
    bound = {
        how: float(elbo(loaded, test, variance=how, prior=Matched(0.0, 1.0), seed=2).total.mean())
        for how in ("learned", "posterior", "forward")
    }
    print(f"entropy {math.log(2 * math.pi * math.e * 0.01) + math.log(2):.3f}, bounds {bound}")
    assert bound["learned"] < min(bound["posterior"], bound["forward"]) - 0.2


@pytest.mark.parametrize("mean", [predict.noise, predict.EDM(0.5)], ids=repr)
def test_a_checkpoint_keeps_the_kind_with_the_mean_in_it_and_builds_nothing_else(mean, tmp_path):
    net = MLP(2, hidden=8, layers=1, answers=2)
    save_checkpoint(tmp_path, Network(net, DiscreteVPSDE.cosine(10), predict.LearnedVariance(mean), shape=(2,)))
    assert load_checkpoint(tmp_path).model.kind == predict.LearnedVariance(mean)
    for inner, message in (
        ({"name": "MLP", "fields": {"dim": 2}}, "names the parametrisation 'MLP', which is not known here"),
        ({"name": "LearnedVariance", "fields": {}}, "LearnedVariance cannot be built from"),
        ("noise", "LearnedVariance cannot be built from"),
    ):
        edit(tmp_path, kind={"name": "LearnedVariance", "fields": {"mean": inner}})
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path)


# --------------------------------------------------------------------------------------------------------- refusals


def test_where_no_variance_is_learnt_none_is_taken():
    sde = DiscreteVPSDE.cosine(10)
    plain, x0 = Gaussian(sde, MEAN, V), torch.zeros(2, 4, dtype=torch.float64)
    learned, vp = model_of(sde), VPSDE()
    with pytest.raises(TypeError, match=r"elbo\(variance='learned'\) needs a model that learns the var"):
        elbo(plain, x0, variance="learned")
    with pytest.raises(TypeError, match=r"DDIM\(variance='learned'\) needs .* not seen through another"):
        SDESampler(vp, learned.on(vp), solver=DDIM(1.0, variance="learned"), grid=[0.9, 0.5, 0.4]).sample(2)
    loss = losses.DenoisingScoreMatching(losses.uniform_index, variance_bound=1.0)
    with pytest.raises(
        TypeError, match=r"variance_bound trains a variance, and this model answers none: predict\.Learned"
    ):
        loss(plain, x0)
    with pytest.raises(ValueError, match=r"between the levels of the chain.*draw them by losses\.uniform_index"):
        losses.DenoisingScoreMatching(variance_bound=1.0)(learned, x0)
    continuous = Network(lambda x, t: torch.cat([x, x], 1), vp, predict.LearnedVariance(), shape=(4,))
    with pytest.raises(TypeError, match=r"uniform_index draws a level of a chain, such as DiscreteVPSDE, and VPSDE"):
        continuous.loss(x0)
    with pytest.raises(
        TypeError, match=r"a variance is learnt for the steps of a chain.* variance_bound=0 trains the mea"
    ):
        losses.DenoisingScoreMatching(variance_bound=1.0)(continuous, x0)
    with pytest.raises(ValueError, match=r"variance_bound must be 0 or more, got -1\.0: 1e-3 is usual, 0 is none"):
        losses.DenoisingScoreMatching(variance_bound=-1.0)
    with pytest.raises(ValueError, match=r"Uncertainty divides an error.*variance_bound=0, got 1\.0"):
        losses.Uncertainty(loss)
    wrong: Any
    for wrong in ("noise", predict.LearnedVariance()):
        with pytest.raises(TypeError, match=r"LearnedVariance goes with a mean such as predict\.noise or predict\.edm"):
            predict.LearnedVariance(wrong)


def test_an_answer_with_the_wrong_number_of_channels_is_refused():
    sde, kind, x = DiscreteVPSDE.cosine(10), predict.LearnedVariance(), torch.zeros(3, 4)
    with pytest.raises(
        ValueError, match=r"answered shape \(3, 4\) to .*: with a variance beside the mean it is \(3, 8\)"
    ):
        Network(lambda x, t: x, sde, kind)(x, 1.0)
    with pytest.raises(ValueError, match=r"to a state of shape \(3,\), which has no channels"):
        Network(lambda x, t: x, sde, kind)(x[:, 0], 1.0)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (MLP(3, hidden=8, layers=1, answers=2), (3,)),
        (UNet(2, width=8, answers=2), (2, 4, 4)),
        (DiT([2, 4, 4], width=8, depth=1, heads=1, answers=2), (2, 4, 4)),
        (DiT([4], width=8, depth=1, heads=1, answers=2), (4,)),
    ],
    ids=["MLP", "UNet", "DiT of fields", "DiT of vectors"],
)
def test_every_network_answers_twice_the_channels_when_told(net, shape):
    model = Network(net, DiscreteVPSDE.cosine(10), predict.LearnedVariance(), shape=shape)
    found = model(torch.randn(3, *shape, generator=seeded(0)), 4.0)
    assert found.mix.shape == found.data.shape == (3, *shape)
    assert torch.equal(found.mix, torch.full((3, *shape), 0.5))  # a fresh net answers 0: half way
    assert type(net)(**net.config).config["answers"] == 2
    model.loss(torch.randn(3, *shape, generator=seeded(1)), generator=seeded(2)).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_the_mix_goes_through_wrappers_that_keep_the_process_and_everything_else_sees_the_mean_alone():
    sde = DiscreteVPSDE.cosine(10)
    for kind in KINDS:
        model = model_of(sde, kind)
        x = torch.randn(3, 4, dtype=torch.float64, generator=seeded(0))
        found = model(x, 5.0)
        torch.testing.assert_close(found.mix, best_mix(sde, [5.0]).expand(3, 4))
        truth = model.net.truth(x, 5.0)
        torch.testing.assert_close(found.data, truth.data)
        torch.testing.assert_close(found.noise, truth.noise)
        assert torch.equal(Clipped(model)(x, 5.0).mix, found.mix)
        assert truth.mix is None
        assert (model.data_std, model.regular) == (kind.data_std, kind.regular)
        assert model.kind.at_scale(2.0) == (predict.LearnedVariance(predict.EDM(2.0)) if kind == KINDS[1] else None)
    assert repr(predict.LearnedVariance(predict.EDM(0.5))) == "LearnedVariance(mean=EDM(data_std=0.5))"
    assert losses.uniform_index(sde, torch.tensor([0.0, 0.0999, 0.999, 1.0])).tolist() == [0.0, 0.0, 9.0, 9.0]
