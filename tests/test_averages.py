"""Claim: an average of weights goes on from its state as if it had never stopped, in every dtype."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sde_diffusion.training import EMA, ConstantDecay, PowerDecay


class Net(nn.Module):
    """Parameters in two precisions, a buffer that a state dict holds and one that it leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2).bfloat16()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("calls", torch.zeros(1), persistent=False)


def moved(net, i):
    """Weights at step i, the same whenever it is asked."""
    generator = torch.Generator().manual_seed(i)
    with torch.no_grad():
        for value in [*net.parameters(), *net.buffers()]:
            value.copy_(torch.rand(value.shape, generator=generator) * 10)


@pytest.mark.parametrize("decay", [PowerDecay(0.1), ConstantDecay(0.99)])
def test_an_average_that_is_resumed_is_the_one_that_went_through_bit_for_bit(decay):
    net = Net()
    through, first = EMA(net, decay), EMA(net, decay)
    for i in range(40):
        moved(net, i)
        through.update(net)
        if i < 20:
            first.update(net)
    kept = {name: value.clone() for name, value in first.state().items()}
    assert int(kept["steps"]) == 20
    again = EMA(Net(), decay)
    again.load_state(kept)
    for i in range(20, 40):
        moved(net, i)
        again.update(net)
    one, other = through.state(), again.state()
    assert list(one) == list(other)
    assert {"wide.b.weight", "model.calls", "model.norm.running_mean"} <= set(one)
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)
    assert not torch.equal(kept["wide.b.weight"], other["wide.b.weight"])  # nor was what was handed over changed


def test_a_state_that_was_loaded_into_the_copy_is_what_is_kept():
    ema = EMA(nn.Linear(1, 1, bias=False).bfloat16())
    ema.model.load_state_dict({"weight": torch.full((1, 1), 4.0)})
    assert ema.state()["wide.weight"].item() == 4.0


def test_the_state_of_another_model_is_refused():
    ema = EMA(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"has \(2, 2\) as 'model.weight', and this model has \(3, 2\): it is the sta"):
        ema.load_state(EMA(nn.Linear(2, 2)).state())
    with pytest.raises(ValueError, match=r"has nothing as 'model.bias', and this model has \(3,\)"):
        ema.load_state(EMA(nn.Linear(2, 3, bias=False)).state())
    with pytest.raises(ValueError, match=r"has \(3, 2\) as 'wide.weight', and this model has nothing"):
        ema.load_state(EMA(nn.Linear(2, 3).half()).state())
