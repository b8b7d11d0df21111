"""Claim: a condition, be it class, vector or image, is the row of its sample or one for all; its null is learnt."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import VPSDE, Network, SDESampler, predict
from sde_diffusion.nets import MLP, DiT, UNet

N = 5


def awake(net: nn.Module) -> Any:
    """A net whose zero-initialised layers have left zero, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return net.eval()


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def told(**arguments: Any) -> Any:
    return awake(MLP(2, hidden=16, layers=1, context=3, **arguments))


X, T, C = rows(N, 2), rows(N), rows(N, 3)


def test_a_context_may_come_in_any_form_of_numbers():
    net = told()
    y = net(X, T, context=C)
    assert (y - net(X, T)).flatten(1).norm(dim=1).min() > 1e-3
    for same in (C.double(), C.numpy(), C.tolist(), np.asarray(C, dtype="float64")):
        torch.testing.assert_close(net(X, T, context=same), y)
    torch.testing.assert_close(net(X, T, context=[1, 0, 2]), net(X, T, context=torch.tensor([[1.0, 0, 2]] * N)))
    one = awake(MLP(2, hidden=16, context=1))
    torch.testing.assert_close(one(X, T, context=C[:, 0]), one(X, T, context=C[:, :1]))


def test_one_context_for_all_is_embedded_once():
    net, seen = told(classes=4), []
    net.condition.context.encode.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    net.condition.label.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    label = torch.tensor(2)
    y = net(X, T, label.expand(N), C[0].expand(N, 3))
    net(X, T, label.expand(N), C[0].double().expand(N, 3))
    assert seen == [1, 1, 1, 1]
    for one in (C[0], C[:1]):
        assert torch.equal(net(X, T, 2, one), y)
    torch.testing.assert_close(net(X, T, label.repeat(N), C[0].repeat(N, 1)), y)
    assert seen[-2:] == [N, N]


def test_no_observation_is_copied_for_each_sample_of_a_batch():
    net, seen = told(), []
    net.condition.context.encode.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    sampler = SDESampler(VPSDE(), Network(net, VPSDE(), predict.noise, shape=(2,)), steps=8)
    sampler.sample(100, seed=0, context=C[:1])
    assert set(seen) == {1}


@pytest.mark.parametrize("train", [True, False])
def test_the_null_context_of_a_net_that_never_learns_it_is_refused(train):
    net = told(context_drop=0.0).train(train)
    with pytest.raises(ValueError, match=r"no context was given to a net .* \(context_drop=0\): give context=, or tr"):
        net(X, T)
    assert net(X, T, context=C).shape == X.shape


def test_contexts_and_entries_are_dropped_at_the_stated_rates_and_only_in_training():
    torch.manual_seed(0)
    n = 4000
    net = awake(MLP(1, hidden=16, layers=1, context=1, context_drop=0.3, entry_drop=0.2))
    x, t, c = torch.ones(n, 1), torch.zeros(n), torch.ones(n, 1)
    kept = net(x, t, context=c)
    torch.testing.assert_close(kept, kept[:1].expand(n, 1))
    y = net.train()(x, t, context=c)
    net.eval()
    for one, p in ((net(x[:1], t[:1]), 0.3), (net(x[:1], t[:1], context=[math.nan]), 0.7 * 0.2)):
        share, se = float(((y - one).abs() < 1e-5).float().mean()), (p * (1 - p) / n) ** 0.5
        print(f"dropped {share:.4f}, wanted {p:.2f}, SE {se:.4f}")
        assert abs(share - p) < 4 * se


def test_an_unknown_entry_is_masked_and_must_have_been_learnt():
    net = told()
    some = C.clone()
    some[2, 1] = math.nan
    with pytest.raises(ValueError, match=r"entries \[1\] of context are NaN, not known, .* train with entry_drop=0.2"):
        net(X, T, context=some)
    net.train()(X, T, context=some)
    y = net.eval()(X, T, context=some)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(y[others], net(X, T, context=C)[others])
    assert (y[2] - net(X, T, context=some.nan_to_num())[2]).norm() > 1e-3  # a zero that is known is another thing
    again = told()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(X, T, context=some), y)


@pytest.mark.parametrize(
    ("context", "error", "text"),
    [
        (
            rows(N, 2),
            ValueError,
            r"context must have shape \(5, 3\), one row per row of x, or \(3,\), one for all",
        ),
        (rows(4, 3), ValueError, r"got \(4, 3\)"),
        (rows(N), ValueError, r"got \(5,\)"),
        (C > 0, TypeError, "context must hold real numbers, got torch.bool"),
        ("north", TypeError, "context must hold numbers, in a tensor or an array, got str"),
        (C * math.inf, ValueError, "context holds 15 non-finite values of 15"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(context, error, text):
    with pytest.raises(error, match=text):
        told()(X, T, context=context)


def test_conditions_that_a_net_was_not_built_for_are_refused():
    with pytest.raises(ValueError, match=r"context was given to a net built with context=0. Leave .* with context=d"):
        MLP(2)(X, T, context=C)
    for name, text in (("context", "at least 1, got -1"), ("context_drop", "probability"), ("entry_drop", "probab")):
        with pytest.raises(ValueError, match=f"{name} .*{text}"):
            MLP(2, **cast(Any, {"context": 2, name: -1}))


def beside(**arguments: Any) -> Any:
    return awake(UNet(1, dims=1, width=8, multipliers=(1,), image=2, **arguments))


FIELD, IMAGE = rows(N, 1, 4), rows(N, 2, 4)


def test_an_image_for_all_is_encoded_once_and_none_is_its_null():
    for net in (beside(), awake(DiT((1, 4), width=8, heads=1, depth=1, image=2))):
        seen: list[int] = []
        net.image.first.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(len(given[0])))
        y = net(FIELD, T, image=IMAGE[0])
        assert torch.equal(net(FIELD, T, image=IMAGE[:1].expand(N, 2, 4)), y)
        torch.testing.assert_close(net(FIELD, T, image=IMAGE[:1].repeat(N, 1, 1)), y, rtol=1e-4, atol=1e-4)
        assert seen == [1, 1, N]
        assert (net(FIELD, T) - y).flatten(1).norm(dim=1).min() > 1e-3


def test_images_are_dropped_in_training_alone():
    net = beside(image_drop=1.0, dropout=0.0)
    null, given = net(FIELD, T), net(FIELD, T, image=IMAGE)
    assert torch.equal(net.train()(FIELD, T, image=IMAGE), null)
    assert not torch.equal(given, null)
    with pytest.raises(ValueError, match=r"no image was given to a net .* \(image_drop=0\): give image=, or train"):
        beside(image_drop=0.0)(FIELD, T)


def test_an_image_that_does_not_fit_is_refused():
    for wrong in (IMAGE[:, :1], IMAGE[:4], IMAGE[:, :, :2]):
        with pytest.raises(ValueError, match=r"image must have shape \(5, 2, 4\), .*Another size: torch.nn.functional"):
            beside()(FIELD, T, image=wrong)
    with pytest.raises(ValueError, match="image holds 1 non-finite values of 40"):
        beside()(FIELD, T, image=torch.where(IMAGE[3, 1, 2] == IMAGE, math.nan, IMAGE))
    with pytest.raises(ValueError, match=r"image was given to a net built with image=0. Leave .* image=C"):
        UNet(1, dims=1, width=8)(FIELD, T, image=IMAGE)
