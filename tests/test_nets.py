"""The networks: shapes, labels, independence of rows, derivatives, and checkpoints that rebuild them."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sde_diffusion import EDMSDE, Network, predict
from sde_diffusion.nets import MLP, DiT, FourierEmbedding, UNet
from sde_diffusion.training import Recipe, train


def awake(net: nn.Module, seed: int = 0) -> Any:
    """A copy of a net whose zero-initialised layers have left zero, in eval mode."""
    net = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return net.eval()


def shape_of(net: Any) -> tuple[int, ...]:
    if isinstance(net, MLP):
        return (net.dim,)
    return net.shape if isinstance(net, DiT) else (net.channels, *[8] * net.dims)


def batch(net: Any, n: int = 5) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """States, times and the conditions that the net was built for."""
    generator = torch.Generator().manual_seed(1)
    shape, built = shape_of(net), net.config
    x = torch.randn(n, *shape, generator=generator)
    t = 6 * torch.rand(n, generator=generator) - 3
    cond = {"label": torch.randint(0, 11, (n,), generator=generator)}
    if built["context"]:
        cond["context"] = torch.randn(n, built["context"], generator=generator)
    if built.get("image"):
        cond["image"] = torch.randn(n, built["image"], *shape[1:], generator=generator)
    if built.get("tokens"):
        cond["tokens"] = torch.randn(n, 3, built["tokens"], generator=generator)
    return x, t, cond


def zoo() -> dict[str, Any]:
    torch.manual_seed(0)
    told: dict[str, Any] = dict(classes=10, context=3, entry_drop=0.1)
    return {
        "mlp": MLP(2, **told),
        "unet": UNet(1, classes=10),
        "unet-deep": UNet(2, dims=1, width=8, multipliers=(1, 2, 2), blocks=2, attention=2, image=1, tokens=5, **told),
        "unet-3d": UNet(1, dims=3, width=8, multipliers=(1,), classes=10),
        "dit-vector": DiT((6,), patch=2, width=32, depth=2, **told),
        "dit-image": DiT((1, 8, 8), patch=(4, 2), width=32, depth=2, image=2, tokens=3, **told),
    }


NETS = pytest.mark.parametrize("net", zoo().values(), ids=zoo())


def test_two_embeddings_built_alike_are_equal_and_leave_the_global_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, b = FourierEmbedding(64), FourierEmbedding(64)
    assert torch.equal(a.freqs, b.freqs)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(FourierEmbedding(64, scale=0.5).freqs, 0.5 * a.freqs)


def test_the_embedding_is_the_formula_with_mean_square_one():
    embed = FourierEmbedding(6)
    t = torch.tensor([-3.0, 0.0, 0.7])
    phase = 2 * math.pi * t[:, None] * embed.freqs
    torch.testing.assert_close(embed(t), math.sqrt(2) * torch.cat([phase.cos(), phase.sin()], 1))
    torch.testing.assert_close(FourierEmbedding(64)(t).square().mean(1), torch.ones(3))


@pytest.mark.parametrize("times", [torch.linspace(-3, 3, 200), torch.linspace(0, 1, 67)], ids=["log-noise", "unit"])
def test_the_embedding_tells_times_apart_and_is_smooth(times):
    e = FourierEmbedding(64)(times)
    gaps = torch.cdist(e, e) / 64**0.5 + 9 * torch.eye(len(times))
    assert gaps.min() > 0.05
    assert (e.diff(dim=0).norm(dim=1) / 64**0.5).max() < 0.5


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: FourierEmbedding(5), ValueError, "dim must be even .* got 5. Use 6"),
        (lambda: FourierEmbedding(4, scale=0.0), ValueError, "scale must be positive and finite, got 0.0"),
        (lambda: FourierEmbedding(4, scale=math.inf), ValueError, "scale must be positive and finite, got inf"),
        (
            lambda: FourierEmbedding(4)(torch.zeros(2, 1)),
            ValueError,
            r"shape \(B,\), one time per sample, got \(2, 1\)",
        ),
        (lambda: FourierEmbedding(4)(torch.arange(3)), TypeError, "got torch.int64. Divide step i of N by N"),
        (lambda: MLP(0), ValueError, "dim must be at least 1, got 0"),
        (lambda: MLP(2.0), TypeError, "dim must be an integer, got 2.0"),  # type: ignore[arg-type]
        (lambda: MLP(2, hidden=-1), ValueError, "hidden must be at least 1, got -1"),
        (lambda: MLP(2, layers=0), ValueError, "layers must be at least 1, got 0"),
        (lambda: MLP(2, features=-1), ValueError, "features must be at least 1, got -1"),
        (lambda: MLP(2, classes=-3), ValueError, "classes must be at least 1, got -3"),
        (lambda: MLP(2, label_drop=1.5), ValueError, r"label_drop is a probability .* \[0, 1\], got 1.5"),
        (lambda: UNet(1, width=30), ValueError, "width must be a multiple of 8 .* got 30. Use 32"),
        (lambda: UNet(0), ValueError, "channels must be at least 1, got 0"),
        (lambda: UNet(1, dropout=-0.1), ValueError, "dropout is a probability"),
        (lambda: UNet(1, dims=4), ValueError, "dims must be 1, 2 or 3: .* got 4"),
        (lambda: UNet(1, multipliers=()), TypeError, r"multipliers must be a sequence of integers, .* got \(\)"),
        (lambda: UNet(1, attention=3), ValueError, r"attention must be at most 2, the number of .*, got 3"),
        (
            lambda: DiT((1, 8, 8), heads=3),
            ValueError,
            "heads must divide width, got width=128 and heads=3. Use",
        ),
        (lambda: DiT((1, 8, 6), patch=4), ValueError, r"patch must divide the lengths \(8, 6\) .* got 4. Use 2 or a"),
        (lambda: DiT((1, 8), patch=(2, 2)), ValueError, "or one length for each axis"),
        (lambda: DiT((2,), image=1), ValueError, "a vector has no image beside it, got image=1. Use context="),
        (lambda: DiT((1, 2, 2, 2, 2)), ValueError, r"shape is that of one sample, .* got \(1, 2, 2, 2, 2\)"),
        (lambda: UNet(1, tokens=4, attention=0), ValueError, "tokens=4 are listened to where there is attention, and"),
        (lambda: UNet(1, tokens=4, tokens_drop=2), ValueError, "tokens_drop is a probability"),
        (lambda: UNet(1, label_drop=math.nan), ValueError, "label_drop is a probability .* got nan"),
    ],
)
def test_a_bad_argument_is_refused_with_a_sentence(make, error, text):
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize(
    ("net", "x", "text"),
    [
        (MLP(2), torch.zeros(3, 4), r"\(B, 2\) for this MLP, got \(3, 4\). Flatten each sample, or build MLP"),
        (MLP(2), torch.zeros(2), r"\(B, 2\) for this MLP, got \(2,\)"),
        (UNet(1), torch.zeros(3, 3, 8, 8), r"\(B, 1, H, W\) for this UNet, got \(3, 3, 8, 8\)"),
        (UNet(1), torch.zeros(3, 1, 8), r"\(B, 1, H, W\) for this UNet, got \(3, 1, 8\)"),
        (
            UNet(1),
            torch.zeros(3, 1, 7, 8),
            r"halves H, W once, so each must be a multiple of 2, got \(7, 8\)",
        ),
        (UNet(1), torch.zeros(3, 1, 8, 0), r"multiple of 2, got \(8, 0\)"),
        (
            UNet(1, dims=1, width=8, multipliers=(1, 1, 1)),
            torch.zeros(3, 1, 9),
            r"halves L twice, so each must be a multiple of 4, got \(9,\). Pad or crop, to \(12,\) for instance, or bu",
        ),
        (DiT((6,), width=8), torch.zeros(3, 4), r"\(B, 6\) for this DiT, got \(3, 4\).* build DiT\(\[4\]\)"),
    ],
)
def test_a_state_of_another_shape_is_refused(net, x, text):
    with pytest.raises(ValueError, match=text):
        net(x, torch.zeros(len(x)))


@NETS
def test_times_labels_and_dtypes_that_do_not_fit_are_refused(net):
    x, t, cond = batch(net)
    label = cond["label"]
    with pytest.raises(ValueError, match=r"t must have shape \(5,\), one time per row of x, got \(\). Use t.expand"):
        net(x, torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"label must lie in 0..9, or be 10 \(the null label, .* from 0 to 11"):
        net(x, t, torch.tensor([0, 1, 11, 2, 3]))
    with pytest.raises(ValueError, match="from -1 to 3"):
        net(x, t, torch.tensor([0, -1, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"label must have shape \(5,\), one per row of x, got \(4,\)"):
        net(x, t, label[:4])
    for wrong in (label.float(), label > 3):
        with pytest.raises(TypeError, match=r"label must hold integers, the .* got torch\..*Use label.long\(\)"):
            net(x, t, wrong)
    with pytest.raises(TypeError, match=r"x is torch.float64 but the net holds torch.float32. Use x.to"):
        net(x.double(), t)
    plain = type(net)(**net.config | {"classes": 0})
    with pytest.raises(ValueError, match=r"net built with classes=0. Leave label out, or build the net with classes=K"):
        plain(x, t, label)


@NETS
def test_a_fresh_net_answers_zero_in_the_shape_of_x(net):
    x, t, cond = batch(net)
    torch.testing.assert_close(net.eval()(x, t, **cond), torch.zeros_like(x), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (6, 10)])
def test_the_unet_takes_any_even_height_and_width(size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert awake(UNet(3, width=8))(x, torch.zeros(2)).shape == x.shape


@NETS
@torch.no_grad()
def test_row_i_does_not_depend_on_the_batch(net):
    net = awake(net)
    x, t, cond = batch(net)
    together = net(x, t, **cond)
    parts = [slice(i, i + 1) for i in range(5)]
    alone = torch.cat([net(x[i], t[i], **{name: c[i] for name, c in cond.items()}) for i in parts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 * float(together.abs().max()))
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = net(x[order], t[order], **{name: c[order] for name, c in cond.items()})
    torch.testing.assert_close(together[order], shuffled, rtol=0, atol=1e-5 * float(together.abs().max()))


@NETS
def test_state_time_and_every_condition_matter(net):
    net = awake(net)
    x, t, cond = batch(net)
    cond["label"] = torch.zeros(5, dtype=torch.long)
    y = net(x, t, **cond)
    others = [net(x + 0.1, t, **cond), net(x, t + 0.1, **cond)]
    for name, c in cond.items():
        others += [net(x, t, **cond | {name: c + 1}), net(x, t, **cond | {name: None})]
    for other in others:
        assert ((other - y).flatten(1).norm(dim=1) > 1e-3).all()


@NETS
def test_no_label_and_the_null_label_are_the_same(net):
    net = awake(net)
    x, t, _ = batch(net)
    assert torch.equal(net(x, t), net(x, t, torch.full((5,), 10)))
    assert torch.equal(net(x, t, torch.arange(5)), net(x, t, torch.arange(5, dtype=torch.int32)))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("make", [MLP, UNet])
def test_the_null_label_of_a_net_that_never_learns_it_is_refused(make, train):
    net = make(2, classes=3, label_drop=0.0).train(train)
    x = torch.ones(2, 2) if make is MLP else torch.ones(2, 2, 4, 4)
    assert net(x, torch.zeros(2), torch.tensor([0, 2])).shape == x.shape
    with pytest.raises(
        ValueError, match=r"no label was given to a net of 3 classes .* \(label_drop=0\): give label=, or"
    ):
        net(x, torch.zeros(2))
    with pytest.raises(
        ValueError, match=r"the null label, 3, was given to a net of 3 classes .* train a net with label_d"
    ):
        net(x, torch.zeros(2), torch.tensor([0, 3]))
    plain = make(2, label_drop=0.0).train(train)
    assert plain(x, torch.zeros(2)).shape == x.shape


def test_labels_are_dropped_at_the_stated_rate_and_only_in_training():
    torch.manual_seed(0)
    net = awake(MLP(2, hidden=16, classes=3, label_drop=0.3))
    n = 4000
    x, t, label = torch.ones(n, 2), torch.zeros(n), torch.ones(n, dtype=torch.long)
    null, kept = net(x[:1], t[:1])[0], net(x[:1], t[:1], label[:1])[0]
    torch.testing.assert_close(net(x, t, label), kept.expand(n, 2))
    dropped = ((net.train()(x, t, label) - null).norm(dim=1) < 0.5 * (kept - null).norm()).float().mean()
    se = (0.3 * 0.7 / n) ** 0.5
    print(f"dropped {dropped:.4f}, SE {se:.4f}")
    assert abs(float(dropped) - 0.3) < 4 * se


@NETS
def test_a_config_through_json_and_a_state_dict_rebuild_the_net(net):
    net = awake(net)
    x, t, cond = batch(net)
    again = type(net)(**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    assert again.config == net.config
    assert torch.equal(again.eval()(x, t, **cond), net(x, t, **cond))


def test_the_frequencies_of_the_input_are_there_in_few_dimensions_without_a_context():
    nets = (MLP(2), MLP(3, classes=2), MLP(4), MLP(2, context=1), MLP(2, context=1, features=4), MLP(2, features=0))
    assert [net.config["features"] for net in nets] == [16, 16, 0, 0, 4, 0]


def test_changing_the_returned_config_does_not_change_the_net():
    net = MLP(2)
    net.config["dim"] = 7
    assert net.config["dim"] == 2


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (MLP(2), 161_666),
        (MLP(2, features=0), 157_570),
        (UNet(1, classes=10), 327_009),
        (UNet(1), 325_601),
        (UNet(3, width=64, classes=10), 1_301_443),
        (UNet(3, multipliers=(1, 2, 2, 2), blocks=2), 1_524_963),
        (DiT((1, 8, 8)), 1_248_385),
    ],
)
def test_the_number_of_parameters_is_what_the_docs_say(net, count):
    assert sum(p.numel() for p in net.parameters()) == count


@NETS
def test_every_parameter_receives_a_gradient(net):
    net = awake(net).train()
    torch.manual_seed(0)
    x, t, cond = batch(net, 40)  # of which some are dropped
    net(x, t, **cond).square().sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []


# torch 2.13 imports its own forward-mode rules through a function it has deprecated
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@NETS
def test_forward_mode_and_second_derivatives_work_as_likelihoods_need(net):
    net = awake(net)
    x, t, cond = batch(net, 2)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    forward = torch.func.jvp(lambda z: net(z, t, **cond), (x,), (v,))[1]
    z = x.clone().requires_grad_()
    (back,) = torch.autograd.grad(net(z, t, **cond), z, v, create_graph=True)
    torch.testing.assert_close((forward * v).sum(), (back * v).sum(), rtol=1e-4, atol=1e-4)
    (second,) = torch.autograd.grad((back * v).sum(), z)
    assert second.abs().max() > 0


@NETS
def test_a_double_net_takes_double_states_and_agrees_with_the_single_one(net):
    net = awake(net)
    x, t, cond = batch(net)
    single = net(x, t, **cond)
    double = type(net)(**net.config).double()
    double.load_state_dict(net.state_dict())
    torch.testing.assert_close(double.eval()(x.double(), t.double(), **cond).float(), single, rtol=1e-3, atol=1e-4)


@NETS
def test_one_condition_for_all_is_that_of_each(net):
    net = awake(net)
    x, t, cond = batch(net)
    one = {name: c[:1].expand_as(c) for name, c in cond.items()}
    rows = {name: c.clone() for name, c in one.items()}
    torch.testing.assert_close(net(x, t, **one), net(x, t, **rows), rtol=1e-5, atol=1e-5)
    assert torch.equal(net(x, t, **one), net(x, t, **{name: c[0] for name, c in cond.items()}))


@NETS
def test_a_net_is_built_on_the_meta_device_with_the_tensors_it_has(net):
    with torch.device("meta"):
        meta = type(net)(**net.config)
    assert {k: v.shape for k, v in meta.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}


def test_the_default_unet_has_the_tensors_it_always_had():
    names = dict.fromkeys(name.split(".")[0] for name in UNet(1).state_dict())
    assert list(names) == ["condition", "stem", "enter", "down", "before", "attention", "after", "up", "leave", "head"]


@pytest.mark.slow
@NETS
def test_a_compiled_net_answers_the_same(net):
    net = awake(net)
    x, t, cond = batch(net)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, **cond), net(x, t, **cond))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [lambda: UNet(1, dims=1, width=16, multipliers=(1, 2, 2)), lambda: DiT((1, 16), width=64, depth=2)],
    ids=["unet", "dit"],
)
def test_a_net_for_sequences_learns_waves(make):
    """The square error of a fresh net, which answers zero, is one; here it falls by half."""
    generator = torch.Generator().manual_seed(0)
    turns, phase = (torch.rand(2500, 1, 1, generator=generator) for _ in range(2))
    x = 2**0.5 * torch.sin(2 * math.pi * ((1 + 2 * turns) * torch.linspace(0, 1, 16) + phase))
    torch.manual_seed(0)
    model = Network(make(), EDMSDE(), predict.edm, shape=(1, 16))
    run = train(model, x[:2000], steps=200, recipe=Recipe(batch_size=64), seed=0)
    loss = float(run.model.loss(x[2000:], generator=torch.Generator().manual_seed(1)).detach())
    print(f"held-out loss {loss:.3f}")
    assert loss < 0.7
