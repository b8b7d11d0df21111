"""Claim: adapters begin as their base, bit for bit, merge into its weights and out of them again, and alone learn."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from controls import drawn, unet
from refusals import T, V, check, refuses, wrong
from torch import Tensor, nn

from sde_diffusion import VPSDE, FlowMap, Network, SDESampler, predict
from sde_diffusion.nets import MLP, Controlled, DiT, LoRA, UNet, merge, unmerge
from sde_diffusion.training import losses


def draws(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


class Odd(nn.Module):
    """A network with a layer at two places, one of several groups, one dilated, and one that is transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 4, 3, padding=2, dilation=2, padding_mode="circular")
        self.twice = nn.ModuleList([nn.Conv1d(4, 4, 1)] * 2)
        self.grouped, self.back = nn.Conv1d(4, 4, 1, groups=2), nn.ConvTranspose1d(4, 2, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.first(x).tanh()
        for layer in self.twice:
            h = layer(h).tanh()
        out: Tensor = self.back(self.grouped(h))
        return out


BASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "UNet": (unet(classes=0), (1, 8, 8)),
    "UNet-3d": (drawn(UNet(1, dims=3, width=8, multipliers=(1,))), (1, 2, 2, 4)),
    "DiT": (drawn(DiT((1, 8, 8), width=16, depth=2, heads=2)), (1, 8, 8)),
    "MLP": (drawn(MLP(3, hidden=16)), (3,)),
    "Odd": (drawn(Odd()), (2, 8)),
}


def adapted(base: nn.Module, **how: Any) -> LoRA:
    """Adapters whose weights are drawn, none of them zero."""
    net = LoRA(base, **how)
    generator = torch.Generator().manual_seed(3)
    for p in net.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.2, generator=generator)
    return net


@pytest.mark.parametrize("name", BASES)
def test_adapters_begin_as_their_base_and_merge_to_rounding(name: str) -> None:
    base, shape = BASES[name]
    base = copy.deepcopy(base).double()
    x, t = draws(3, *shape).double(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert torch.equal(LoRA(base, 2)(x, t), base(x, t))
    net = adapted(base, rank=2, scale=3.0)
    merged = merge(net)
    assert type(merged) is type(base)
    assert (merged(x, t) - base(x, t)).abs().max() > 1e-3
    torch.testing.assert_close(merged(x, t), net(x, t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(unmerge(merged, net)(x, t), base(x, t), rtol=1e-12, atol=1e-12)
    for (key, one), (other, two) in zip(
        base.state_dict().items(), unmerge(merged, net).state_dict().items(), strict=True
    ):
        assert key == other
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    assert net.base.keys() == base.state_dict().keys()
    assert all(torch.equal(value, base.state_dict()[key]) for key, value in net.base.items())


def test_a_layer_of_m_by_n_gets_rank_times_m_plus_n_weights_and_they_alone_learn() -> None:
    base = drawn(MLP(3, hidden=16))
    net = (
        LoRA(base, 2, where=["head*"]) if any(n.startswith("head") for n, _ in base.named_modules()) else LoRA(base, 2)
    )
    layers = [base.get_submodule(name) for name in net.names]
    wanted = sum(2 * sum(layer.weight.shape) for layer in layers)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == wanted
    model = Network(net, VPSDE(), shape=(3,))
    losses.denoising_score_matching(model, draws(8, 3)).backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == {
        name for name, _ in net.named_parameters() if net.own(name)
    }
    assert all(p.grad is None and p.requires_grad for p in base.parameters())


def test_adapters_stand_where_they_are_asked_for() -> None:
    net = LoRA(unet(), where=("*qkv", "*project"))
    assert net.names == ["condition.project", "attention.qkv", "attention.project"]
    assert LoRA(drawn(Odd())).names == ["first", "twice.0", "twice.1"]


@pytest.mark.parametrize("base", [unet(), DiT((1, 4, 4), width=8, depth=1, heads=1), MLP(2, hidden=8)])
def test_no_product_of_an_adapter_is_formed_to_ask_for_a_dtype(base: nn.Module, monkeypatch: Any) -> None:
    net = LoRA(base, rank=1)
    formed: list[nn.Module] = []
    adapted: Any = type(net.net.get_submodule(net.names[0]))
    made = adapted.added

    def added(layer: nn.Module) -> Tensor:
        formed.append(layer)
        out: Tensor = made(layer)
        return out

    monkeypatch.setattr(adapted, "added", added)
    shape = (2,) if isinstance(base, MLP) else (1, 4, 4)
    net(torch.zeros(2, *shape), torch.zeros(2))
    assert not formed
    with pytest.raises(TypeError, match=r"x is torch.float64 but the net holds torch.float32"):
        net(torch.zeros(2, *shape).double(), torch.zeros(2))


def test_samples_and_conditions_are_those_of_the_base() -> None:
    base = unet()
    net = LoRA(base)
    model, plain = (Network(n, VPSDE(), predict.edm, shape=(1, 8, 8)).eval() for n in (net, base))
    pair = [SDESampler(VPSDE(), m, steps=3).sample(3, seed=0, batch_size=2, label=[0, 1, 2]) for m in (model, plain)]
    assert torch.equal(*pair)
    assert model.built_with()["classes"] == 3


def test_a_merged_network_is_controlled_and_made_a_flow_map_as_any_is() -> None:
    net = adapted(unet())
    model = Network(net, VPSDE(), predict.edm, shape=(1, 8, 8)).eval()
    x = draws(2, 1, 8, 8)
    torch.testing.assert_close(FlowMap.from_teacher(model)(x, 0.5).data, model(x, 0.5).data)
    t = torch.tensor([0.3, 0.4])
    torch.testing.assert_close(Controlled(merge(net))(x, t, control=x), net(x, t))
    around = LoRA(Controlled(unet()), where=("controls*",))
    assert all(name.startswith("controls.") for name in around.names)
    assert torch.equal(around(x, t, control=x), unet()(x, t))


class Reads(nn.Module):
    """A network whose layers are not called: torch computes with their weights, and so it does itself."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.out = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return nn.functional.linear(self.block(x), self.out.weight, self.out.bias)


def test_adapters_on_layers_that_are_read_and_not_called_are_heard() -> None:
    base, x, t = Reads().double().eval(), draws(2, 5, 8).double(), torch.rand(2)
    with torch.no_grad():
        assert torch.equal(LoRA(base, 2)(x, t), base(x, t))
    net = adapted(base, rank=2).eval()
    assert net.names == ["block.linear1", "block.linear2", "out"]
    wanted = merge(net)(x, t)
    assert (wanted - base(x, t)).abs().max() > 1e-2
    torch.testing.assert_close(net(x, t), wanted, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(net(x, t), wanted, rtol=1e-10, atol=1e-10)  # by the fast path
    net(x, t).sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight


def test_adapters_upon_adapters_stand_beside_those_on_the_same_layers() -> None:
    first = adapted(unet(), rank=2, where=["*qkv", "*project"])
    second = LoRA(first, 2, where=["*qkv"])
    assert second.names == ["net.attention.qkv.layer"]


@refuses(
    (
        lambda: LoRA(wrong(lambda x, t: x)),
        T,
        "LoRA takes a network, a torch.nn.Module, got function",
    ),
    (
        lambda: LoRA(Network(unet(), VPSDE())),
        T,
        "LoRA takes a network, a torch.nn.Module, got Network: of a Network, its",
    ),
    (lambda: LoRA(unet(), 0), V, "rank"),
    (lambda: LoRA(drawn(Odd()), 5), V, "rank=5 is more than any of the 3 layers has, whose highest is 4"),
    (lambda: LoRA(unet(), scale=0.0), V, "scale"),
    (
        lambda: LoRA(unet(), where=wrong("qkv")),
        T,
        "where is a sequence of names of layers, such as",
    ),
    (lambda: LoRA(unet(), where=["norm"]), V, "where names 'norm', which is no layer of UNet: adapters go to linear"),
    (lambda: LoRA(Odd(), where=["back"]), V, "where names 'back', which is a ConvTranspose1d of Odd: adapters go to"),
    (lambda: LoRA(nn.Sequential(nn.ReLU())), V, "Sequential has no linear layer and no convolution of one group"),
    (lambda: merge(LoRA(Tied())), V, "the weight of a is that of another layer, too, which a merge would change along"),
    (lambda: merge(wrong(unet())), T, "wanted a network with adapters, LoRA(net), got UNet"),
    (lambda: unmerge(MLP(2), LoRA(unet())), V, "MLP has no layer 'condition.project' with the weights of the base"),
)
def test_what_does_not_fit_is_refused_in_words(call: Any, error: type[Exception], text: str) -> None:
    check(call, error, text)
