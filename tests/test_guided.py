"""Claim: a guided prediction is the formula of its rule, on exact models; off it is the model, bit for bit."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import zoo
from refusals import T, V, check, refuses, wrong
from torch import Tensor, nn

from sde_diffusion import (
    EDMSDE,
    VPSDE,
    Denoiser,
    FlowSDE,
    GaussianSDE,
    Level,
    Network,
    Prediction,
    SDESampler,
    predict,
)
from sde_diffusion.denoiser.analytic import Gaussian, isotropic_mixture
from sde_diffusion.guidance import (
    AutoGuided,
    Clipped,
    Guided,
    Matrix,
    Moments,
    Optimised,
    Plain,
    Posterior,
    Projected,
    Rescaled,
    Thresholded,
)
from sde_diffusion.nets import MLP
from sde_diffusion.solvers import DDIM, Adams, DormandPrince, DPMSolverPP, Euler, Heun
from sde_diffusion.testing import check_denoiser

F64 = torch.float64
MEANS = torch.tensor([[1.0, 0.2], [-0.4, 0.9], [-0.6, -1.1]], dtype=F64)
V0 = 0.09
X = torch.tensor([[0.4, -0.9], [1.1, 0.2], [-0.3, 0.5], [-1.0, -0.7]], dtype=F64)
LABEL = torch.tensor([0, 1, 2, 1])
NULL = {"label": 3}


class Classes(Denoiser):
    """Exact data and noise of three Gaussian classes of one width, by label; label 3 is all of them."""

    shape = (2,)
    careful = True
    asked = 0

    def __init__(self, sde: GaussianSDE) -> None:
        super().__init__()
        self.sde = sde
        self.all = isotropic_mixture(sde, MEANS.tolist(), V0**0.5)

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        label = cond["label"]
        self.asked += 1
        k, free = label.clamp(max=2), self.all.predict(x, at)
        gap = (x - at.alpha * MEANS.to(x)[k]) / (at.alpha**2 * V0 + at.sigma**2)
        none = (label == 3)[:, None]
        return Prediction(
            lambda: torch.where(none, free.data, MEANS.to(x)[k] + at.alpha * V0 * gap),
            lambda: torch.where(none, free.noise, at.sigma * gap),
        )


def log_densities(x: Tensor, at: Level) -> Tensor:
    """log p_t(x | k) of every class, up to a constant that all share, shape (B, 3)."""
    return -0.5 * (x[:, None] - at.alpha * MEANS).square().sum(2) / (at.alpha**2 * V0 + at.sigma**2)


def noises(x: Tensor, at: Level) -> tuple[Tensor, Tensor]:
    """The noise with the label of each row and without, as gradients of the log-densities."""
    z = x.detach().requires_grad_()
    given = log_densities(z, at).gather(1, LABEL[:, None]).sum()
    free = log_densities(z, at).logsumexp(1).sum()
    return -at.sigma * torch.autograd.grad(given, z)[0], -at.sigma * torch.autograd.grad(free, z)[0]


def levels(sde: GaussianSDE) -> list[Level]:
    return sde.levels([sde.t_min + f * (sde.t_max - sde.t_min) for f in (0.03, 0.3, 0.7)])


# --- the formulas


@pytest.mark.parametrize("sde", [VPSDE(), FlowSDE(), EDMSDE()], ids=zoo.name)
@pytest.mark.parametrize("w", [0.0, 0.5, 3.0])
def test_plain_guidance_is_the_sum_of_scores_with_weights_w_and_one_minus_w(sde: GaussianSDE, w: float) -> None:
    model = Guided(Classes(sde), w, null=NULL)
    for at in levels(sde):
        c, u = noises(X, at)
        found = model.predict(X, at, label=LABEL)
        torch.testing.assert_close(found.noise, w * c + (1 - w) * u, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(at.alpha * found.data + at.sigma * found.noise, X, rtol=1e-9, atol=1e-9)
        c, u = (p.noise for p in model.parts(X, at, label=LABEL))
        torch.testing.assert_close(w * c + (1 - w) * u, found.noise, rtol=1e-9, atol=1e-9)
    assert model.powers == (w, 1 - w)


def rescaled(c: Tensor, u: Tensor, w: float) -> Tensor:
    g = u + w * (c - u)
    stretched = g * c.std(dim=1, keepdim=True) / g.std(dim=1, keepdim=True)
    return 0.7 * stretched + 0.3 * g


def projected(c: Tensor, u: Tensor, w: float) -> Tensor:
    found = []
    for a, b in zip(c, u, strict=True):
        d = a - b
        d = d * min(1.0, 0.3 / float(d.norm()))
        unit = a / a.norm()
        along = torch.dot(d, unit) * unit
        found.append(a + (w - 1) * (d - along + 0.2 * along))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("rule", "formula"), [(Rescaled(0.7), rescaled), (Projected(0.2, 0.3), projected)], ids=["rescaled", "projected"]
)
@pytest.mark.parametrize("sde", [VPSDE(), FlowSDE()], ids=zoo.name)
def test_rules_of_the_data_are_the_formulas_of_their_papers(rule, formula, sde: GaussianSDE) -> None:
    exact = Classes(sde)
    for at in levels(sde):
        c, u = exact.predict(X, at, label=LABEL).data, exact.all.predict(X, at).data
        found = Guided(exact, 2.5, null=NULL, rule=rule).predict(X, at, label=LABEL)
        torch.testing.assert_close(found.data, formula(c, u, 2.5), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(at.alpha * found.data + at.sigma * found.noise, X, rtol=1e-9, atol=1e-9)


def test_optimised_guidance_scales_the_unconditional_velocity_and_stays_at_first() -> None:
    exact = Classes(FlowSDE())
    rule = Optimised(zero_above=20.0)
    for at in levels(exact.sde):
        c, u = (p.noise - p.data for p in (exact.predict(X, at, label=LABEL), exact.all.predict(X, at)))
        s = (c * u).sum(1, keepdim=True) / u.square().sum(1, keepdim=True)
        found = Guided(exact, 2.5, null=NULL, rule=rule).predict(X, at, label=LABEL)
        torch.testing.assert_close(found.noise - found.data, s * u + 2.5 * (c - s * u), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(at.alpha * found.data + at.sigma * found.noise, X, rtol=1e-9, atol=1e-9)
    sampler = SDESampler(exact.sde, Guided(exact, 2.5, null=NULL, rule=rule), solver=Euler(), steps=40)
    steps = list(sampler.iterate(4, x_T=X, label=LABEL))
    still = sum(at.ratio > 20.0 for at in exact.sde.levels(sampler.times))
    assert 0 < still < 40
    assert torch.equal(steps[still].x, X)
    assert not torch.equal(steps[still + 1].x, X)
    assert (steps[still].nfe, steps[-1].nfe) == (0, 2 * (41 - still))
    found = Guided(exact, 2.5, null=NULL, rule=rule)(X, torch.tensor([0.3, 0.99, 0.5, 1.0]), label=LABEL)
    assert [torch.equal(v, x) for v, x in zip(found.data, X, strict=True)] == [False, True, False, True]


@pytest.mark.parametrize("rule", [Rescaled(0.0), Projected(1.0)], ids=repr)
def test_rules_with_nothing_to_do_are_plain_guidance(rule) -> None:
    exact = Classes(VPSDE())
    found, wanted = (Guided(exact, 3.0, null=NULL, rule=r)(X, 0.3, label=LABEL) for r in (rule, Plain()))
    torch.testing.assert_close(found.data, wanted.data, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.noise, wanted.noise, rtol=1e-9, atol=1e-9)


def test_autoguidance_is_the_same_formula_of_two_models() -> None:
    sde = VPSDE()
    strong, weak = Classes(sde), isotropic_mixture(sde, MEANS.tolist(), 0.6)
    model = AutoGuided(Told(strong), weak, 2.0)
    for at in model.levels([0.1, 0.6]):
        c, u = strong.predict(X, at, label=LABEL), weak.predict(X, at)
        torch.testing.assert_close(model.predict(X, at).data, 2 * c.data - u.data, rtol=1e-12, atol=1e-12)
    assert (model.cost, model.powers) == (2, (2.0, -1.0))


class Told(Denoiser):
    """A conditional model that has been told."""

    careful = True

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.sde, self.shape = inner, inner.sde, inner.shape

    def predict(self, x: Tensor, at: Level, **cond: Any) -> Prediction:
        return self.inner.predict(x, at, label=LABEL)


# --- off is off, and what it costs


def net(**options: Any) -> Network:
    torch.manual_seed(0)
    made = MLP(2, hidden=16, layers=1, classes=3, **options).double()
    nn.init.normal_(made.leave.weight, std=0.3)
    return Network(made, VPSDE(), predict.v, shape=(2,)).eval()


@pytest.mark.parametrize("solver", [DPMSolverPP(2), Heun(), DDIM(1.0), Adams(3)], ids=repr)
def test_a_scale_of_1_is_the_model_bit_for_bit_at_one_pass_a_call(solver) -> None:
    model = net()
    plain, *others = (
        list(SDESampler(model.sde, m, solver=solver, steps=6).iterate(4, seed=0, label=LABEL))
        for m in (model, Guided(model, 1.0), Guided(model, lambda level: 1.0), AutoGuided(model, net(), 1.0))
    )
    for found in others:
        assert torch.equal(found[-1].x, plain[-1].x)
        assert found[-1].nfe == plain[-1].nfe
    assert Guided(model, 1.0).cost == 1


@pytest.mark.parametrize("solver", [DPMSolverPP(2), DDIM(1.0), DormandPrince()], ids=repr)
def test_outside_of_its_limits_guidance_is_off_and_takes_one_pass(solver) -> None:
    exact = Classes(VPSDE())
    model = Guided(exact, 2.0, null=NULL, low=0.3, high=4.0, batched=False)
    last = SDESampler(exact.sde, model, solver=solver, steps=None if solver == DormandPrince() else 12)
    *_, end = last.iterate(4, seed=0, label=LABEL)
    assert end.nfe == exact.asked  # what was counted is what was asked
    if solver != DormandPrince():
        inside = sum(0.3 <= at.ratio <= 4.0 for at in exact.sde.levels(last.times))
        assert 0 < inside < 13
        assert end.nfe == 13 + inside


def test_levels_per_sample_are_guided_each_by_its_own() -> None:
    exact = Classes(VPSDE())
    scale = lambda level: 1.0 + 2.0 * level  # noqa: E731 - as a user writes one
    model = Guided(exact, scale, null=NULL, low=0.1, high=4.0)
    times = torch.tensor([0.02, 0.2, 0.4, 0.95], dtype=F64)
    found = model(X, times, label=LABEL)
    for i, t in enumerate(times.tolist()):
        (at,) = exact.sde.levels([t])
        alone = model.predict(X[i : i + 1], at, label=LABEL[i : i + 1])
        torch.testing.assert_close(found.data[i : i + 1], alone.data, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.noise[i : i + 1], alone.noise, rtol=1e-9, atol=1e-9)
        c, u = exact.predict(X, at, label=LABEL).data[i], exact.all.predict(X, at).data[i]
        w = scale(at.ratio) if 0.1 <= at.ratio <= 4.0 else 1.0
        torch.testing.assert_close(found.data[i], u + w * (c - u), rtol=1e-6, atol=1e-6)


def test_one_batched_call_is_two() -> None:
    model = net()
    for w in (2.0, lambda level: 3.0 if level > 1 else 0.5):
        one, two = (
            SDESampler(model.sde, Guided(model, w, batched=batched), steps=8).sample(4, seed=0, label=LABEL)
            for batched in (True, False)
        )
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


def test_what_stands_for_none_may_be_a_value_a_model_or_nothing() -> None:
    model, exact = net(), Classes(VPSDE())
    wanted = Guided(model, 2.0)(X, 0.4, label=LABEL).data
    for other in (
        Guided(model, 2.0, null={"label": None}),
        Guided(model, 2.0, null={"label": 3}),
        Guided(model, 2.0, null={"label": torch.tensor(3)}, batched=False),
        Guided(model, 2.0, unconditional=model),
    ):
        torch.testing.assert_close(other(X, 0.4, label=LABEL).data, wanted, rtol=1e-9, atol=1e-9)
    found = Guided(exact, 2.0, unconditional=exact.all)(X, 0.4, label=LABEL).data
    torch.testing.assert_close(found, Guided(exact, 2.0, null=NULL)(X, 0.4, label=LABEL).data, rtol=1e-9, atol=1e-9)


def test_a_context_is_left_out_and_unknown_entries_stand_for_none_where_these_were_learnt() -> None:
    torch.manual_seed(0)
    y = torch.randn(4, 3, dtype=F64)
    for drop, entry_drop in ((0.1, 0.0), (0.0, 0.3)):
        made = MLP(2, hidden=16, layers=1, context=3, context_drop=drop, entry_drop=entry_drop).double()
        nn.init.normal_(made.leave.weight, std=0.3)
        model = Network(made, VPSDE(), predict.v, shape=(2,))
        if entry_drop:
            model.train()(X, 0.5, context=torch.full_like(y, math.nan))  # which it meets in training
        guided = Guided(model.eval(), 2.0)
        assert guided.null is not None
        none = {"context": torch.full_like(y, math.nan)} if entry_drop else {}
        c, u = model(X, 0.5, context=y).data, model(X, 0.5, **none).data
        torch.testing.assert_close(guided(X, 0.5, context=y).data, 2 * c - u, rtol=1e-9, atol=1e-9)


# --- among others


@pytest.mark.parametrize("rule", [Plain(), Rescaled(), Projected(0.0, 1.0), Optimised()], ids=repr)
def test_guided_models_pass_the_check_of_models(rule) -> None:
    report = check_denoiser(Guided(net(), 2.0, rule=rule), label=torch.tensor([1]))
    assert report.passed, str(report)


def test_it_may_be_wrapped_and_split_into_batches_and_seen_through_another_process() -> None:
    model = Guided(net(), 3.0, high=5.0)
    for wrapped in (Clipped(model), Thresholded(model, 0.9), model.on(EDMSDE())):
        sampler = SDESampler(wrapped.sde, wrapped, steps=6)
        whole = sampler.sample(4, seed=0, label=LABEL)
        torch.testing.assert_close(sampler.sample(4, seed=0, label=LABEL, batch_size=3), whole, rtol=1e-9, atol=1e-9)
        *_, last = sampler.iterate(4, seed=0, label=LABEL)
        inside = sum(at.ratio <= 5.0 for at in wrapped.sde.levels(sampler.times))
        assert last.nfe == 7 + inside


def test_a_posterior_of_a_guided_model_counts_passes_and_products_where_it_guides() -> None:
    exact = Classes(VPSDE())
    model = Guided(exact, 2.0, null=NULL, high=2.0, batched=False)
    posterior = Posterior(model, Matrix(torch.tensor([[1.0, 0.0]], dtype=F64)), 0.5, Moments(iterations=1))
    sampler = SDESampler(exact.sde, posterior, solver=DDIM(), steps=6)
    *_, last = sampler.iterate(4, seed=0, label=LABEL, y=torch.tensor([0.3], dtype=F64))
    calls = 7 + sum(at.ratio <= 2.0 for at in exact.sde.levels(sampler.times))
    assert (last.nfe, exact.asked) == (calls, calls)
    assert last.vjps == posterior.vjps // 2 * calls
    parted = sampler.sample(4, seed=0, batch_size=3, label=LABEL, y=torch.tensor([0.3], dtype=F64))
    torch.testing.assert_close(parted, last.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", [Plain(), Rescaled(), Projected(0.0, 1.0), Optimised()], ids=repr)
def test_float32_stays_so_with_levels_of_a_solve_and_of_each_row(rule) -> None:
    model = Guided(net().float(), lambda level: 1.0 + min(level, 2.0), rule=rule, low=0.1)
    x = X.float()
    for t in (0.5, torch.tensor([0.01, 0.2, 0.5, 0.9])):
        found = model(x, t, label=LABEL)
        assert (found.data.dtype, found.noise.dtype) == (torch.float32, torch.float32)
    assert SDESampler(model.sde, model, steps=3).sample(2, seed=0, label=LABEL[:2]).dtype == torch.float32


def test_the_likelihood_of_a_guided_model_is_that_of_its_flow() -> None:
    """Of two Gaussians of one width, whose guided flow is that of a third one, with the mean beyond the first."""
    sde = VPSDE()
    one, other = (Gaussian(sde, mean, V0) for mean in MEANS[:2])
    beyond = Gaussian(sde, 2.5 * MEANS[0] - 1.5 * MEANS[1], V0)
    found, wanted = (SDESampler(sde, m).log_prob(X).value for m in (AutoGuided(one, other, 2.5), beyond))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    with_labels = SDESampler(sde, Guided(Classes(sde), 2.0, null=NULL)).log_prob(X[:2], label=LABEL[:2])
    assert with_labels.value.isfinite().all()


def textbook(model: Network, x: Tensor, times: list[float], w: float) -> Tensor:
    """DDIM with classifier-free guidance of the noise, as in the paper, on a network that answers v."""

    def noise(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        (at,) = model.sde.levels([t])
        told = wrong(model.clock)(at)
        time = torch.full((len(x),), float(told), dtype=x.dtype)
        v = model.net(x, time, label=LABEL), model.net(x, time)
        eps = [at.sigma * x + at.alpha * f for f in v]
        eps_w = eps[1] + w * (eps[0] - eps[1])
        return eps_w, (x - at.sigma * eps_w) / at.alpha

    for t, s in pairwise(times):
        (to,) = model.sde.levels([s])
        eps, x0 = noise(x, t)
        x = to.alpha * x0 + to.sigma * eps
    return noise(x, times[-1])[1]


def test_classifier_free_samples_of_a_trained_network_equal_an_independent_loop_to_1e_6() -> None:
    model = net(label_drop=0.2).train()
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        k = torch.randint(3, (128,))
        x0 = MEANS[k] + V0**0.5 * torch.randn(128, 2, dtype=F64)
        loss = model.loss(x0, label=k)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    sampler = SDESampler(model.sde, Guided(model, 2.0), solver=DDIM(), steps=12)
    found = sampler.sample(x_T=X, label=LABEL)
    with torch.no_grad():
        wanted = textbook(model.eval(), X, sampler.times, 2.0)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


# --- what is refused


VP = Gaussian(VPSDE(), torch.zeros(2, dtype=F64), 1.0)


def foreign(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    return x


@refuses(
    (lambda: Guided(wrong(foreign), 2.0), T, "Guided takes a Denoiser, got function: wrap it"),
    (lambda: Guided(net(), -1.0), V, "w is a scale and must be finite and at least 0, with 1 for none, got -1.0"),
    (lambda: Guided(net(), wrong("2")), T, "w must be a number, got '2'"),
    (lambda: Guided(net(), lambda s: -s)(X, 0.5, label=LABEL), V, "is a scale and must be finite and at least 0"),
    (lambda: Guided(net(label_drop=0.0), 2.0), V, "with label_drop=0. Train one with label_drop=0.1, or give a model"),
    (lambda: Guided(Network(MLP(2), VPSDE()), 2.0), V, "the model takes no condition that it could be guided by"),
    (lambda: Guided(Network(foreign, VPSDE()), 2.0), V, "does not say what it takes for no condition: give the value"),
    (lambda: Guided(net(), 2.0)(X, 0.5), V, "Guided was given no condition to guide by: give label="),
    (lambda: Guided(net(), 2.0, null=wrong(["label"])), T, "null is a mapping of conditions by name, such as"),
    (lambda: Guided(net(), 2.0, null={}), V, "null names no condition"),
    (lambda: Guided(net(), 2.0, null=NULL, unconditional=net()), V, "null and unconditional are two ways to leave a c"),
    (lambda: Guided(net(), 2.0, low=3.0, high=1.0), V, "wanted 0 <= low < high, got 3.0 and 1.0"),
    (lambda: Guided(net(), 2.0, low=wrong("a")), T, "low must be a number, got 'a'"),
    (lambda: Guided(net(), 2.0, rule=wrong("apg")), T, "rule must be Plain(), Rescaled(), Projected() or Optimised()"),
    (lambda: Guided(net(), 2.0, batched=wrong(1)), T, "batched must be True or False"),
    (lambda: Guided(net(), 2.0, high=1.0).powers, V, "is a product of powers, (w, 1 - w), where w is one number"),
    (lambda: Guided(net(), 2.0, rule=Rescaled()).powers, V, "and by rule=Plain(); got w=2.0, rule=Rescaled(phi=0.7)"),
    (
        lambda: AutoGuided(net(), VP.on(EDMSDE()), 2.0),
        V,
        "and another for EDMSDE(sigma_min=0.002, sigma_max=80.0)",
    ),
    (lambda: AutoGuided(net(), Gaussian(VPSDE(), torch.zeros(3), 1.0), 2.0), V, "they work on (2,) and (3,)"),
    (lambda: AutoGuided(net(), wrong(foreign), 2.0), T, "AutoGuided takes a Denoiser, got function: wrap it"),
    (lambda: Rescaled(1.5), V, "phi must lie in [0, 1], got 1.5"),
    (lambda: Projected(math.inf), V, "eta must be finite, got inf"),
    (lambda: Projected(r=0.0), V, "r must be"),
    (lambda: Optimised(0.0), V, "zero_above must be"),
)
def test_what_cannot_guide_is_refused(call, error, text):
    check(call, error, text)


def test_a_guided_model_says_what_it_is() -> None:
    assert "w=2.0, high=3.0, rule=Rescaled(phi=0.7)" in repr(Guided(net(), 2.0, high=3.0, rule=Rescaled()))
