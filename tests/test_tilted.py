"""Claim: rewards, classifiers and powers shift a model by the gradients that they say, exactly where that is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import zoo
from refusals import T, V, check, refuses, wrong
from torch import Tensor

from sde_diffusion import EDMSDE, VPSDE, FlowSDE, Network, SDESampler, predict
from sde_diffusion.denoiser.analytic import Gaussian, isotropic_mixture
from sde_diffusion.guidance import (
    ClassifierGuided,
    Clipped,
    Guided,
    Nonlinear,
    Operator,
    Posterior,
    Reward,
    Thresholded,
    Tilted,
)
from sde_diffusion.nets import MLP
from sde_diffusion.solvers import DDIM, DPMSolverPP, Heun
from sde_diffusion.testing import check_denoiser

F64 = torch.float64
MEANS = torch.tensor([[1.0, 0.2], [-0.4, 0.9], [-0.6, -1.1]], dtype=F64)
V0 = 0.09
X = torch.tensor([[0.4, -0.9], [1.1, 0.2], [-0.3, 0.5], [-1.0, -0.7]], dtype=F64)
LABEL = torch.tensor([0, 1, 2, 1])
A = torch.tensor([0.7, -0.4], dtype=F64)
SDES = [VPSDE(), FlowSDE(), EDMSDE()]


def linear(x0: Tensor) -> Tensor:
    return x0 @ A.to(x0)


def times(sde: Any) -> list[float]:
    return [sde.t_min + f * (sde.t_max - sde.t_min) for f in (0.03, 0.4, 0.97)]


def net(**options: Any) -> Network:
    torch.manual_seed(0)
    made = MLP(2, hidden=16, layers=1, **options).double()
    torch.nn.init.normal_(made.leave.weight, std=0.3)
    return Network(made, VPSDE(), predict.v, shape=(2,)).eval()


# --- rewards


@pytest.mark.parametrize("sde", SDES, ids=zoo.name)
def test_a_linear_reward_of_gaussian_data_moves_their_mean(sde) -> None:
    """p(x0) exp(s a.x0) of N(m, V) is N(m + s V a, V), whose denoiser is known."""
    model = Reward(Gaussian(sde, MEANS[0], V0), linear, 3.0)
    exact = Gaussian(sde, MEANS[0] + 3.0 * V0 * A, V0)
    for at in model.levels([*times(sde), sde.t_max]):
        found, wanted = model.predict(X, at), exact.predict(X, at)
        close = 1e-6 if at.alpha else 1e-3  # where alpha is 0 the shift is that of a level with some data left
        torch.testing.assert_close(found.data, wanted.data, rtol=close, atol=close)
        torch.testing.assert_close(found.noise, wanted.noise, rtol=close, atol=close)
    torch.testing.assert_close(model.log_likelihood(X), 3.0 * (X @ A))
    *_, last = SDESampler(sde, model, solver=Heun(), steps=4).iterate(3, seed=0)
    assert (last.nfe, last.vjps) == (9, 9)


def test_a_reward_within_limits_is_counted_where_it_acts_and_off_elsewhere() -> None:
    model = net()
    off, part, whole = (Reward(model, linear, s, high=h) for s, h in ((0.0, None), (2.0, 1.0), (2.0, None)))
    sampler, plain = (SDESampler(model.sde, m, solver=DPMSolverPP(2), steps=8) for m in (part, model))
    *_, last = sampler.iterate(4, seed=0)
    inside = sum(at.ratio <= 1.0 for at in model.sde.levels(sampler.times))
    assert 0 < inside < 9
    assert (last.nfe, last.vjps) == (9, inside)
    *_, last = SDESampler(model.sde, off, solver=DPMSolverPP(2), steps=8).iterate(4, seed=0)
    assert (last.nfe, last.vjps) == (9, 0)
    assert torch.equal(last.x, plain.sample(4, seed=0))
    rows = torch.tensor([0.02, 0.2, 0.4, 0.95], dtype=F64)
    found = part(X, rows).data
    for i, at in enumerate(part.levels(rows.tolist())):
        wanted = (whole if at.ratio <= 1.0 else model).predict(X[i : i + 1], at).data[0]
        torch.testing.assert_close(found[i], wanted, rtol=1e-9, atol=1e-9)
        assert float(part.look(X, at).log_twist.abs().max() > 0) == (at.ratio <= 1.0)


# --- classifiers


def classifier(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """Exact log p_t(k | x) of the mixture of equal Gaussians."""
    at = VPSDE().level(t, x)
    logits = -0.5 * (x[:, None] - at.alpha[..., None] * MEANS.to(x)).square().sum(2)
    return (logits / (at.alpha**2 * V0 + at.sigma**2)).log_softmax(1).gather(1, label.expand(len(x))[:, None])[:, 0]


def test_an_exact_classifier_makes_the_exact_posterior_and_does_not_differentiate_the_model() -> None:
    sde = VPSDE()
    model = ClassifierGuided(isotropic_mixture(sde, MEANS.tolist(), V0**0.5), classifier)
    exact = Gaussian(sde, MEANS[2], V0)
    for at in model.levels(times(sde)):
        found = model.predict(X, at, label=torch.tensor(2))
        torch.testing.assert_close(found.data, exact.predict(X, at).data, rtol=1e-9, atol=1e-9)
    sampler = SDESampler(sde, model, solver=DDIM(), steps=5)
    *_, last = sampler.iterate(4, seed=0, label=LABEL)
    assert (last.nfe, last.vjps) == (6, 0)
    torch.testing.assert_close(sampler.sample(4, seed=0, label=LABEL, batch_size=3), last.x, rtol=1e-9, atol=1e-9)
    off = ClassifierGuided(net(), classifier, 0.0)
    plain = SDESampler(sde, net(), steps=5).sample(4, seed=0)
    assert torch.equal(SDESampler(sde, off, steps=5).sample(4, seed=0, label=LABEL), plain)
    value = SDESampler(sde, model).log_prob(X, label=torch.tensor(2)).value
    known = -0.5 * (X - MEANS[2]).square().sum(1) / V0 - math.log(2 * math.pi * V0)
    assert (value - known).abs()[-1] < 0.05  # the others lie many standard deviations off


# --- powers


@pytest.mark.parametrize("sde", SDES, ids=zoo.name)
@pytest.mark.parametrize("powers", [(0.5, 0.5), (2.0, -1.0), (1.0, 1.0)], ids=str)
def test_a_product_sums_scores_and_its_halves_make_up_the_state(sde, powers: tuple[float, float]) -> None:
    one, two = (isotropic_mixture(sde, m.tolist(), s) for m, s in ((MEANS[:2], 0.3), (MEANS[1:], 0.5)))
    model = Tilted([one, two], powers)
    for at in model.levels(times(sde)):
        z = X.clone().requires_grad_()
        (score,) = torch.autograd.grad((powers[0] * one.log_prob(z, at.t) + powers[1] * two.log_prob(z, at.t)).sum(), z)
        found = model.predict(X, at)
        torch.testing.assert_close(found.noise, -at.sigma * score, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(at.alpha * found.data + at.sigma * found.noise, X, rtol=1e-8, atol=1e-8)
        assert torch.equal(model.parts(X, at)[1].data, two.predict(X, at).data)
    assert (model.powers, model.cost) == (powers, 2)
    if sum(powers) == 1:
        SDESampler(sde, model, steps=4).sample(2, seed=0)  # from alpha = 0 on FlowSDE


def test_one_model_of_power_1_is_the_model_and_others_are_known_for_gaussians() -> None:
    model = net()
    plain, same = (SDESampler(model.sde, m, steps=5).sample(3, seed=0) for m in (model, Tilted([model], [1.0])))
    assert torch.equal(plain, same)
    sde = VPSDE()
    m = Gaussian(sde, MEANS[0], V0)
    (low,) = sde.levels([sde.t_min])
    cold, sharp = Tilted([m], [4.0]), Gaussian(sde, MEANS[0], V0 / 4)
    torch.testing.assert_close(  # next to the data, where the product is its law
        cold.predict(MEANS[:1] + 0.1, low).noise, sharp.predict(MEANS[:1] + 0.1, low).noise, rtol=1e-2, atol=0
    )


# --- bounds found in each sample


def test_thresholded_data_are_the_textbook_loop_row_by_row() -> None:
    model = net()
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=F64) * 6
    raw = model(x, 0.5).data.detach()
    for q, most, b in ((0.5, None, 1.0), (1.0, 1.5, 0.5), (0.9, None, 0.2)):
        found = Thresholded(model, q, most, bound=b)(x, 0.5)
        for i, row in enumerate(raw):
            s = min(max(float(torch.quantile(row.abs(), q)), b), most or math.inf)
            torch.testing.assert_close(found.data[i], row.clamp(-s, s) / s * b, rtol=1e-12, atol=1e-12)
        at = model.sde.level(0.5, x)
        torch.testing.assert_close(at.alpha * found.data + at.sigma * found.noise, x, rtol=1e-12, atol=1e-12)
    assert Thresholded(model, 1.0).admit(3 * X).abs().max() <= 1.0


WRAPPED = {
    "reward": lambda: Reward(net(), linear),
    "reward of clipped": lambda: Reward(Clipped(net(), -9.0, 9.0), linear),
    "tilted": lambda: Tilted([net(), Gaussian(VPSDE(), MEANS[0], 0.5)], [0.5, 0.5]),
    "thresholded": lambda: Thresholded(net()),
    "reward of guided": lambda: Reward(Guided(net(classes=3), 2.0), linear),
    "classifier": lambda: ClassifierGuided(net(), classifier),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_every_wrapper_passes_the_check_of_models(name: str) -> None:
    cond = {"label": torch.tensor([1])} if name in ("reward of guided", "classifier") else {}
    report = check_denoiser(WRAPPED[name](), shape=(2,), **cond)
    assert report.passed, str(report)


# --- what is refused


def mean(x0: Tensor) -> Tensor:
    return x0.mean()


def stiff(x0: Tensor) -> Tensor:
    return x0.detach().sum(1)


def ranks(x0: Tensor) -> Tensor:
    return x0.sum(1).long()


def logs(x0: Tensor) -> Tensor:
    return (0 * x0.sum(1)).log()


def numpy(x0: Tensor) -> Tensor:
    return torch.as_tensor(x0.numpy().sum(1))


MODEL = Gaussian(VPSDE(), MEANS[0], V0)
MANY = net(classes=3)


def call(reward: Any) -> Any:
    return Reward(MODEL, reward)(X, 0.5)


def told(classifier: Any, n: int = 4) -> Any:
    return ClassifierGuided(MODEL, classifier, names=("y",))(X[:n], 0.5, y=LABEL[:n])


def test_a_function_is_looked_at_once_and_may_be_flat_at_some_data_or_times() -> None:
    asked: list[int] = []

    def hinge(x0: Tensor) -> Tensor:
        asked.append(len(x0))
        return -(x0.abs() - 3).clamp_min(0).sum(1)

    model = Reward(MODEL, hinge)
    assert bool((model(X, 0.5).data == MODEL(X, 0.5).data).all())
    before = len(asked)
    model(X, 0.5)
    assert len(asked) == before + 1

    def early(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 0.9, x[:, 0], 0 * x[:, 0])

    late = ClassifierGuided(MODEL, early, names=("y",))
    assert bool((late(X[:1], 1.0, y=LABEL[:1]).data == MODEL(X[:1], 1.0).data).all())
    for guided in (ClassifierGuided(MODEL, early, names=("y",), low=2.0, high=3.0), late):
        assert guided(X, 0.5, y=LABEL).data.isfinite().all()


def test_rules_may_be_made_and_asked_in_inference_mode_and_models_made_there_are_refused() -> None:
    def rules(model: Any) -> list[Any]:
        measured = (Posterior(model, a, 0.2) for a in (Operator(lambda x: x[:, :1]), Nonlinear(torch.sin)))
        return [Reward(model, linear), *measured, ClassifierGuided(MODEL, classifier)]

    given: list[dict[str, Any]] = [{}, {"y": A[:1]}, {"y": A}, {"label": LABEL}]
    wanted = [rule(X, 0.5, **cond).data for rule, cond in zip(rules(MODEL), given, strict=True)]
    with torch.inference_mode():
        made = net()
        found = [rule(X.clone(), 0.5, **cond).data for rule, cond in zip(rules(MODEL), given, strict=True)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for rule, cond in zip(rules(made)[:3], given[:3], strict=True):
        with pytest.raises(TypeError, match="Network holds tensors that were made under"):
            rule(X, 0.5, **cond)


@refuses(
    (lambda: Reward(MODEL, linear, -1.0), V, "scale is a scale and must be finite and at least 0"),
    (lambda: Reward(MODEL, wrong(3.0)), T, "reward must be a function of data (B, *) that answers (B,), got 3.0"),
    (lambda: Reward(wrong(linear), linear), T, "Reward takes a Denoiser, got function"),
    (lambda: call(mean), V, "the reward must answer one number for each row of its data, shape (4,), got ()"),
    (lambda: call(stiff), T, "no graph leads from what the reward answers to what it was given"),
    (lambda: call(ranks), T, "the reward must answer floating numbers, which can be differentiated, got torch.int64"),
    (lambda: call(logs), V, "the reward answered numbers that are not finite for data that are"),
    (lambda: call(numpy), T, "no graph leads from what the reward answers to what it was given"),
    (lambda: call(lambda x0: x0.sum(1) - x0.sum(1).mean()), V, "the reward mixes samples: what it answers to one"),
    (lambda: call(lambda x0: x0.sum(1) / len(x0)), V, "the reward mixes samples: what it answers to one"),
    (lambda: call(lambda x0: x0.sum(1) * torch.rand(())), V, "the reward answers differently when asked twice"),
    (lambda: call(lambda x0: x0.sum(1).round()), V, "the derivative of the reward is zero everywhere, so that it guid"),
    (
        lambda: told(lambda x, t, y: x[:, 0].cumsum(0)),
        V,
        "the classifier mixes samples: what it answers to",
    ),
    (lambda: told(lambda x, t, y: x[:, 0] * torch.rand(())), V, "the classifier answers differently when asked twice"),
    (lambda: told(lambda x, t, y: x[:, 0].round(), n=1), V, "the derivative of the classifier is zero everywhere"),
    (lambda: told(lambda x, t, y: numpy(x)), T, "no graph leads from what the classifier answers to what it was given"),
    (lambda: call(lambda x0: 1.0), T, "the reward must answer a tensor, one number for each row, got float"),
    (lambda: Reward(MODEL, linear, low=-1.0), V, "wanted 0 <= low < high, got -1.0 and None"),
    (lambda: ClassifierGuided(MODEL, classifier, -0.5), V, "scale is a scale and must be finite and at least 0"),
    (lambda: ClassifierGuided(MODEL, wrong(None)), T, "classifier must be a function classifier(x, t, **cond)"),
    (lambda: ClassifierGuided(MANY, classifier), V, "condition 'label' is one of the classifier and of the network of"),
    (lambda: ClassifierGuided(MODEL, classifier, names="label"), T, "names are those of the conditions of the class"),
    (lambda: ClassifierGuided(MODEL, classifier)(X, 0.5), V, "the classifier was given no condition: give label="),
    (lambda: Tilted([], []), T, "models is a list of models, [model] for one, got []"),
    (lambda: Tilted(wrong(MODEL), [1.0]), T, "models is a list of models, [model] for one"),
    (lambda: Tilted([MODEL], [1.0, 2.0]), V, "powers must be finite, one for each of 1 models, got [1.0, 2.0]"),
    (lambda: Tilted([MODEL], [math.nan]), V, "powers must be finite"),
    (lambda: Tilted([MODEL, MODEL.on(EDMSDE())], [0.5, 0.5]), V, "hand over model.on(sde)"),
    (lambda: Tilted([MODEL.on(FlowSDE())], [2.0])(X, 1.0), V, "[2.0] sum to 2, and such a product tells nothing"),
    (lambda: Thresholded(MODEL, 0.0), V, "quantile is a share of the entries and must lie in (0, 1], got 0.0"),
    (lambda: Thresholded(MODEL, most=0.5), V, "most is the largest scale, and must be at least bound=1.0, got 0.5"),
    (lambda: Thresholded(MODEL, bound=-1.0), V, "bound must be"),
    (lambda: Thresholded(wrong(linear)), T, "Thresholded takes a Denoiser, got function"),
)
def test_what_cannot_shift_a_model_is_refused(call, error, text):
    check(call, error, text)
