"""Claim: a control begins as its base, bit for bit, is off at strength 0, and shifts a known model as it must."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import zoo
from controls import MEAN, VARIANCE, GaussianNet, drawn, exact_model, model_of, set_by_hand, unet
from refusals import T, V, check, refuses, wrong
from torch import Tensor, nn

from sde_diffusion import VPSDE, Clipped, FlowMap, Network, SDESampler, predict
from sde_diffusion.denoiser import PerSample
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.guidance import Guided, Mask, Posterior
from sde_diffusion.nets import MLP, Captioned, Controlled, DiT, TextEncoder, UNet, joined
from sde_diffusion.solvers import Heun, Solver
from sde_diffusion.training import losses

F64 = torch.float64
FIELD = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def draws(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "UNet": (unet(multipliers=(1, 2, 2), blocks=2, attention=2), (1, 8, 8)),
    "UNet-1d": (drawn(UNet(2, dims=1, width=8)), (2, 8)),
    "UNet-3d": (drawn(UNet(1, dims=3, width=8, multipliers=(1,))), (1, 2, 2, 4)),
    "DiT": (drawn(DiT((1, 8, 8), width=16, depth=3, heads=2, classes=3)), (1, 8, 8)),
}


@pytest.mark.parametrize("name", BASES)
def test_a_new_control_answers_as_its_base_bit_for_bit(name: str) -> None:
    base, shape = BASES[name]
    net: Any = Controlled(base, control=2)
    x, t, field = draws(3, *shape), torch.tensor([0.1, 0.5, 0.9]), draws(3, 2, *shape[1:])
    assert torch.equal(net(x, t, control=field), base(x, t))
    drawn(net.controls, seed=1)
    moved = net(x, t, control=field)
    assert not torch.equal(moved, base(x, t))
    assert torch.equal(net(x, t), base(x, t))
    assert torch.equal(net(x, t, control=field, strength=0.0), base(x, t))
    rows = net(x, t, control=field, strength=[1.0, 0.0, 1.0])
    assert torch.equal(rows[1], base(x, t)[1])
    torch.testing.assert_close(rows[::2], moved[::2])


def steered(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A model of a U-Net, and one of it with a control that is drawn at random."""
    base = unet().to(dtype)
    net: Any = Controlled(base)
    drawn(net.controls, seed=1)
    first, second = (Network(n, VPSDE(), predict.edm, shape=(1, 8, 8)).eval() for n in (base, net))
    return first, second


@pytest.mark.parametrize(
    ("how", "dtype"),
    [
        ("whole", torch.float32),
        ("whole", F64),
        ("in batches", torch.float32),
        pytest.param("compiled", F64, marks=pytest.mark.slow),  # three seconds
    ],
)
def test_with_strength_0_the_samples_of_the_base_come_back_bit_for_bit(how: str, dtype: torch.dtype) -> None:
    base, model = steered(dtype)
    told: dict[str, Any] = {"label": torch.arange(5) % 3}
    if how == "compiled":
        model.net = torch.compile(model.net, backend="eager")
    size = 2 if how == "in batches" else None
    own = SDESampler(base.sde, base, steps=4).sample(5, seed=0, batch_size=size, **told)
    sampler = SDESampler(model.sde, model, steps=4)
    field = FIELD[:5].to(dtype)
    assert torch.equal(own, sampler.sample(5, seed=0, batch_size=size, control=field, strength=0.0, **told))
    some = sampler.sample(5, seed=0, batch_size=size, control=field, strength=torch.tensor([0.0, 1, 0, 1, 0]), **told)
    assert torch.equal(own[::2], some[::2])
    assert not torch.isclose(own[1::2], some[1::2]).all()


def test_row_i_depends_on_row_i_of_the_control_alone_and_one_stands_for_all() -> None:
    _, model = steered()
    sampler = SDESampler(model.sde, model, steps=3)
    whole = sampler.sample(4, seed=0, control=FIELD[:4], label=1)
    torch.testing.assert_close(whole[2:3], sampler.sample(1, seed=2, control=FIELD[2:3], label=1))
    torch.testing.assert_close(whole, sampler.sample(4, seed=0, batch_size=3, control=FIELD[:4].numpy(), label=1))
    same = sampler.sample(4, seed=0, control=FIELD[:1].expand(4, 1, 8, 8), label=1)
    for one in (FIELD[0], FIELD[:1]):
        torch.testing.assert_close(sampler.sample(4, seed=0, batch_size=2, control=one, label=1), same)


def test_only_the_copies_are_trained_and_the_network_is_left_as_it_was() -> None:
    base: Any = unet()
    net: Any = Controlled(base, control={"edges": 1, "mask": 2})
    assert all(p.requires_grad for p in base.parameters())
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {f"controls.{name}" for name, _ in net.controls.named_parameters()}
    assert not any(part.training for part in net.train().net.modules())
    assert net.controls["edges"].copy.training
    assert net.net.stem.weight.data_ptr() == base.stem.weight.data_ptr()
    net.to(F64)  # converts its own, and not those of the network
    assert base.stem.weight.dtype == torch.float32
    whole: Any = Controlled(base, frozen=False)
    assert all(p.requires_grad for p in whole.parameters())
    assert whole.net.stem.weight.data_ptr() != base.stem.weight.data_ptr()


HEUN = Heun()
GRID = torch.linspace(1.0, 1e-3, 7, dtype=F64)


def sampled(model: Network, solver: Solver = HEUN, grid: Tensor = GRID, **told: Any) -> Tensor:
    """Samples on a grid that does not hang on what is known of a model."""
    return SDESampler(VPSDE(), model, solver=solver, grid=grid).sample(5, seed=0, **told)


def test_a_control_of_a_known_model_shifts_its_mean_as_predicted() -> None:
    net: Any = Controlled(GaussianNet())
    model, field = model_of(net), draws(5, 1, 4, 4).double()
    own = sampled(exact_model(MEAN))
    torch.testing.assert_close(sampled(model, control=field), own)
    set_by_hand(net, {"control": 0.5}, bias=0.1)  # the copy sees no field yet: its hint is zero
    wanted = sampled(exact_model(MEAN + 0.7 * (0.5 * MEAN + 0.1)))
    torch.testing.assert_close(sampled(model, control=field, strength=0.7), wanted)
    nn.init.constant_(net.controls["control"].see[-1].bias, 0.2)  # now a hint, the same everywhere
    shifted, told = MEAN + 0.5 * (MEAN + 0.2) + 0.1, torch.tensor([0.0, 1, 1, 0, 1], dtype=F64)
    wanted = torch.where(told.reshape(5, 1, 1, 1) > 0, sampled(exact_model(shifted)), own)
    torch.testing.assert_close(sampled(model, control=field, strength=told), wanted)
    found = SDESampler(VPSDE(), model).log_prob(own, control=field).value
    wanted = SDESampler(VPSDE(), exact_model(shifted)).log_prob(own).value
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # all solvers: some seconds
def test_every_solver_draws_from_a_known_model_with_a_control_as_from_the_model_that_it_comes_to() -> None:
    net: Any = Controlled(GaussianNet())
    set_by_hand(net, {"control": -0.5}, bias=0.1)
    model, field, exact = model_of(net), torch.zeros(5, 1, 4, 4, dtype=F64), exact_model(0.5 * MEAN + 0.1)
    for solver in zoo.SOLVERS:
        found, wanted = sampled(model, solver, GRID[::3], control=field), sampled(exact, solver, GRID[::3])
        torch.testing.assert_close(found, wanted, msg=repr(solver))


def test_several_controls_add_with_their_strengths() -> None:
    first, second = (Controlled(GaussianNet(), control={name: 1}) for name in ("edges", "mask"))
    set_by_hand(first, {"edges": 1.0}, bias=0.2)
    set_by_hand(second, {"mask": -2.0}, bias=0.4)
    net: Any = joined(first, second).eval()
    x, t = draws(3, 1, 4, 4).double(), torch.full((3,), 0.4, dtype=F64)
    field = draws(3, 1, 4, 4).double()
    told = {"edges": field, "mask": field}
    plain = GaussianNet()(x, t)
    by = [one.double()(x, t, **{name: field}) - plain for one, name in ((first, "edges"), (second, "mask"))]
    net = net.double()
    torch.testing.assert_close(net(x, t, **told) - plain, by[0] + by[1])
    torch.testing.assert_close(net(x, t, **told, strength=0.5) - plain, 0.5 * (by[0] + by[1]))
    some = net(x, t, **told, strength={"edges": torch.tensor([0.5, 0, 2]), "mask": 0.25}) - plain
    torch.testing.assert_close(some, torch.tensor([0.5, 0, 2]).reshape(3, 1, 1, 1) * by[0] + 0.25 * by[1])
    torch.testing.assert_close(net(x, t, **told, strength={"edges": 0}) - plain, by[1])
    torch.testing.assert_close(net(x, t, edges=field) - plain, by[0])


def test_strengths_by_name_go_through_the_sampler_in_batches() -> None:
    net: Any = joined(*(Controlled(unet(), control={name: 1}) for name in ("edges", "mask")))
    drawn(net.controls, seed=3)
    model = Network(net, VPSDE(), predict.edm, shape=(1, 8, 8)).eval()
    sampler = SDESampler(model.sde, model, steps=2)
    told: Any = {"edges": FIELD[:3], "mask": FIELD[0], "strength": {"edges": torch.tensor([0.0, 0.5, 1]), "mask": 0.5}}
    torch.testing.assert_close(sampler.sample(3, seed=0, **told), sampler.sample(3, seed=0, batch_size=2, **told))


def test_a_field_may_be_finer_than_the_state() -> None:
    net: Any = Controlled(unet(), finer=2)
    drawn(net.controls, seed=1)
    model = Network(net, VPSDE(), predict.edm, shape=(1, 8, 8)).eval()
    sampler, fine = SDESampler(model.sde, model, steps=2), draws(4, 1, 16, 16)
    one = sampler.sample(4, seed=0, control=fine)
    torch.testing.assert_close(one, sampler.sample(4, seed=0, control=fine, batch_size=3))
    shared = sampler.sample(4, seed=0, control=fine[0], batch_size=3)
    torch.testing.assert_close(shared[0], one[0])


def test_a_network_that_reads_captions_is_controlled_and_keeps_its_words() -> None:
    words = TextEncoder(["a", "thick", "thin", "seven"], size=8, layers=1)
    base = drawn(Captioned(UNet(1, width=8, tokens=8), words))
    net: Any = Controlled(base)
    x, t, said = draws(2, 1, 8, 8), torch.tensor([0.2, 0.7]), ["a thick seven", "a thin seven"]
    assert torch.equal(net(x, t, caption=said, control=FIELD[:2]), base(x, t, caption=said))
    drawn(net.controls, seed=1)
    found = [net(x, t, caption=caption, control=FIELD[:2]) - base(x, t, caption=caption) for caption in (said, "a")]
    assert not torch.isclose(*found).all()  # the copy is told as well
    assert "caption" in net.per_sample


# --- with what changes a model


def test_guidance_goes_by_the_condition_of_the_base_or_by_the_control() -> None:
    _, model = steered()
    x, t, told = draws(2, 1, 8, 8), 0.3, {"control": FIELD[:2]}
    labels = torch.tensor([0, 2])
    yes, no = model(x, t, label=labels, **told).data, model(x, t, **told).data
    torch.testing.assert_close(Guided(model, 2.0)(x, t, label=labels, **told).data, no + 2 * (yes - no))
    off = model(x, t, label=labels).data
    by = Guided(model, 2.0, null={"control": None})
    torch.testing.assert_close(by(x, t, label=labels, **told).data, off + 2 * (yes - off))
    at_once = Guided(model, 2.0, null={"strength": 0.0})
    torch.testing.assert_close(at_once(x, t, label=labels, strength=1.0, **told).data, off + 2 * (yes - off))


def test_it_is_clipped_and_given_a_measurement_as_any_model_is() -> None:
    net: Any = Controlled(GaussianNet())
    set_by_hand(net, {"control": 0.0}, bias=0.4)
    model, field = model_of(net), torch.zeros(1, 4, 4, dtype=F64)
    exact = Gaussian(VPSDE(), torch.full((1, 4, 4), MEAN + 0.4, dtype=F64), VARIANCE)
    x = draws(3, 1, 4, 4).double()
    torch.testing.assert_close(Clipped(model, 0.0, 0.8)(x, 0.5, control=field).data, exact(x, 0.5).data.clamp(0.0, 0.8))
    pair = [Posterior(m, Mask(torch.eye(4, dtype=torch.bool)[None]), 0.1) for m in (model, exact)]
    told = PerSample(torch.ones(3, 4, dtype=F64))
    torch.testing.assert_close(
        pair[0](x, 0.5, control=field, y=told).data, pair[1](x, 0.5, y=told).data, rtol=1e-6, atol=1e-8
    )


def test_a_flow_map_of_it_begins_as_it_and_is_trained_as_a_whole() -> None:
    _, model = steered()
    fast = FlowMap.from_teacher(model)
    x = draws(2, 1, 8, 8)
    torch.testing.assert_close(fast(x, 0.5, control=FIELD[:2]).data, model(x, 0.5, control=FIELD[:2]).data)
    assert all(p.requires_grad for p in fast.parameters())
    assert fast.untrained()
    own = {id(p) for p in model.parameters()}
    assert not any(id(p) in own for p in fast.parameters())
    with pytest.raises(TypeError, match="UNet was built with until=False"):
        FlowMap(model.net, VPSDE())


def test_the_gradient_of_a_loss_reaches_the_copy_alone() -> None:
    model = Network(Controlled(unet()), VPSDE(), predict.edm, shape=(1, 8, 8))
    before = copy.deepcopy(model.state_dict())
    losses.denoising_score_matching(model, FIELD[:4], control=FIELD[:4], label=torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is None for p in model.net.net.parameters())
    assert any(bool(p.grad.any()) for p in model.net.controls["control"].join.parameters() if p.grad is not None)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


# --- what is refused


class Deaf(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)


class Unsaid(GaussianNet):
    per_sample = None  # type: ignore[assignment]  # that is the fault


class Lent(GaussianNet):
    def encoder_copy(self) -> nn.Module:
        found = MeanOf(self.mean)
        found.mean = self.mean
        return found


class Bare(GaussianNet):
    def encoder_copy(self) -> nn.Module:
        return nn.Linear(2, 2)


def MeanOf(mean: Tensor) -> Any:
    return GaussianNet().encoder_copy()


def controlled(**told: Any) -> Tensor:
    net: Any = Controlled(unet())
    out: Tensor = net(draws(2, 1, 8, 8), torch.rand(2), **told)
    return out


@refuses(
    (lambda: Controlled(MLP(2)), T, "MLP has no encoder_copy(), which a control is made of: UNet and"),
    (lambda: Controlled(wrong(lambda x, t: x)), T, "Controlled takes a network, a torch.nn.Module, got function"),
    (
        lambda: Controlled(Network(unet(), VPSDE())),
        T,
        "Controlled takes a network, a torch.nn.Module, got Network: of a",
    ),
    (
        lambda: controlled(control=FIELD[:2] > 0),
        T,
        "control must hold real numbers, got torch.bool: control.float()",
    ),
    (
        lambda: controlled(control=FIELD[:2], strenght=1),
        T,
        "'strenght' is none of UNet and none of its controls",
    ),
    (lambda: Controlled(Unsaid()), T, "Unsaid does not say which of its conditions have a row"),
    (lambda: Controlled(Lent()), V, "Lent.encoder_copy() shares parameters with the network"),
    (lambda: Controlled(Bare()), T, "Bare.encoder_copy() answered Linear without dims, wanted a module with"),
    (lambda: Controlled(DiT((4,))), T, "a DiT of vectors has no field that a control could be laid beside"),
    (
        lambda: Controlled(Captioned(Deaf(), TextEncoder(["a"]))),
        T,
        "Deaf has no encoder_copy(), which a control is made",
    ),
    (lambda: Controlled(unet(), control={}), V, "control names no control: give its channels, control=1"),
    (lambda: Controlled(unet(), control={"label": 1}), V, "a control cannot be called 'label', which is"),
    (lambda: Controlled(unet(), control={"an edge": 1}), V, "a control is called by a name such as"),
    (lambda: Controlled(unet(), control=0), V, "the channels of control"),
    (lambda: Controlled(unet(), finer=0), V, "finer"),
    (lambda: controlled(control=draws(2, 1, 4, 8)), V, "control must have shape (2, 1, 8, 8), one per row"),
    (lambda: controlled(control=draws(3, 1, 8, 8)), V, "control must have shape (2, 1, 8, 8), one per row"),
    (lambda: controlled(control="edges"), T, "control must hold numbers, in a tensor or an array, got str"),
    (lambda: controlled(control=FIELD[:2] * torch.nan), V, "control"),
    (lambda: controlled(control=FIELD[:2], strength=torch.inf), V, "strength must be finite, got inf"),
    (lambda: controlled(control=FIELD[:2], strength="much"), T, "strength must be a number, or one for each"),
    (lambda: controlled(control=FIELD[:2], strength=torch.ones(3)), V, "strength must be a number or have"),
    (lambda: controlled(strength={"edge": 1}), V, "strength names 'edge', and the controls are control"),
    (lambda: unet()(draws(2, 1, 8, 8), torch.rand(2), added=[FIELD]), V, "added must be tensors of the sha"),
    (
        lambda: BASES["DiT"][0](draws(2, 1, 8, 8), torch.rand(2), added=[FIELD] * 4),
        V,
        "added must be at most 3 tensors, one for each block, got 4",
    ),
    (lambda: joined(Controlled(unet()), Controlled(unet(seed=1))), V, "joined takes controls of one base"),
    (lambda: joined(Controlled(unet()), Controlled(unet())), V, "two controls are called 'control': build"),
    (lambda: joined(wrong(unet())), T, "joined takes networks with controls, Controlled, got UNet"),
)
def test_what_does_not_fit_is_refused_in_words(call: Any, error: type[Exception], text: str) -> None:
    check(call, error, text)
