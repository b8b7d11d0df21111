"""Claim: training reaches the loss floor of the exact denoiser, bit for bit alike twice; averages are what they say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sde_diffusion import EDMSDE, VPSDE, Network, SDESampler, SolverError, predict
from sde_diffusion.analytic import Gaussian
from sde_diffusion.data import dequantise
from sde_diffusion.ema import EMA, ConstantDecay, PowerDecay, horizon
from sde_diffusion.losses import LogNormalSigma, denoising_score_matching, noise_weight, uniform_time
from sde_diffusion.nets import MLP, UNet
from sde_diffusion.predict import Parametrisation
from sde_diffusion.training import learning_rate, train


def small(sde=None, kind=predict.edm, **options) -> Network:
    torch.manual_seed(0)
    return Network(MLP(2, hidden=32, layers=2, features=0, **options), sde or EDMSDE(0.01, 20.0), kind, shape=(2,))


def gaussian(n: int = 4000) -> torch.Tensor:
    """Correlated, standard deviation 1 along each axis."""
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(7))
    return z @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])


# --- averages


@pytest.mark.parametrize("decay", [PowerDecay(0.05), PowerDecay(0.2), ConstantDecay(0.99), ConstantDecay(0.9, False)])
def test_constant_parameters_are_a_fixed_point_of_the_average(decay):
    net = nn.Linear(3, 3)
    ema = EMA(net, decay)
    for _ in range(50):
        ema.update(net)
    for mean, now in zip(ema.model.parameters(), net.parameters(), strict=True):
        assert torch.equal(mean, now)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_the_power_average_of_a_parameter_that_grows_with_time_is_the_closed_form(sigma_rel):
    n, decay = 5000, PowerDecay(sigma_rel)
    mean = square = 0.0
    for i in range(1, n + 1):
        b = decay(i)
        mean, square = b * mean + (1 - b) * i, b * square + (1 - b) * i * i
    g = decay.gamma
    assert mean / n == pytest.approx((g + 1) / (g + 2), rel=1e-3)
    assert math.sqrt(square - mean * mean) / n == pytest.approx(sigma_rel, rel=1e-3)


def test_the_exponent_of_the_power_average_solves_its_equation():
    assert [round(PowerDecay(s).gamma, 2) for s in (0.05, 0.10, 0.25)] == [16.97, 6.94, 0.72]


def test_the_first_update_of_a_power_average_forgets_the_initial_weights():
    net = nn.Linear(2, 2)
    ema = EMA(net)
    with torch.no_grad():
        net.weight.add_(1.0)
    ema.update(net)
    assert torch.equal(ema.model.weight, net.weight)


def test_the_classical_average_warms_up():
    decay = ConstantDecay(0.999)
    assert decay(1) == pytest.approx(2 / 11)
    assert decay(100) == pytest.approx(101 / 110)
    assert decay(10**6) == 0.999
    assert ConstantDecay(0.999, warm_up=False)(1) == 0.999


def test_the_average_is_a_copy_in_evaluation_mode_that_follows_buffers():
    net = nn.BatchNorm1d(2)
    ema = EMA(net)
    net(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))
    ema.update(net)
    assert not ema.model.training
    assert net.training
    for kept, now in zip(ema.model.buffers(), net.buffers(), strict=True):
        assert torch.equal(kept, now)
    assert ema.model.weight is not net.weight


def test_a_decay_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"sigma_rel must lie in \(0, 0.288\): 0.05 to 0.15 are usual, got 0.3"):
        PowerDecay(0.3)
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1.0"):
        ConstantDecay(1.0)


# --- the rate


def test_the_learning_rate_rises_over_a_hundred_steps_and_falls_to_zero():
    rates = [learning_rate(i, 2000, 1e-3) for i in range(2001)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates.index(max(rates)) == 99
    assert max(rates) == pytest.approx(1e-3, rel=0.01)
    assert rates[1000] == pytest.approx(0.5e-3)
    assert rates[2000] == pytest.approx(0, abs=1e-12)
    assert learning_rate(1, 10, 1.0) > 0.9  # a short run rises over a tenth of it


# --- learning


class Perfect(Network):
    """Answers what a network of this kind would if it knew the data exactly: through the same regression."""

    def __init__(self, exact: Gaussian, kind: Parametrisation) -> None:
        super().__init__(lambda x, t: x, exact.sde, kind, shape=(2,))
        self.exact = exact

    def output(self, x, at, **cond):
        d = self.exact.predict(x, at)
        on_x0, on_eps = self.kind.target(at)
        return on_x0 * d.data + on_eps * d.noise


@pytest.mark.parametrize(
    ("sde", "kind", "times", "weight"),
    [
        (EDMSDE(0.01, 20.0), predict.edm, LogNormalSigma(), None),
        (VPSDE(), predict.noise, uniform_time, None),
        (VPSDE(), predict.score, uniform_time, noise_weight),
    ],
    ids=["edm", "noise", "score"],
)
@pytest.mark.slow
def test_training_reaches_the_loss_floor_of_the_exact_denoiser(sde, kind, times, weight):
    x = gaussian(20_000)
    done = train(small(sde, kind), x, steps=1000, batch_size=256, times=times, weight=weight, lr=3e-3)
    exact = Gaussian(sde, x.mean(0), torch.cov(x.T, correction=0))

    def loss(model, seed):
        """On the same times and noise for both: only the denoisers differ."""
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            return denoising_score_matching(model, x[:8000], times=times, weight=weight, generator=g, reduction="none")

    floor, start = loss(Perfect(exact, kind), 5), loss(small(sde, kind), 5)
    reached = loss(done.model, 5)
    gap = reached - floor
    error = float(gap.std()) / len(gap) ** 0.5
    print(f"floor {floor.mean():.4f}, start {start.mean():.4f}, gap {gap.mean():.4f} +- {error:.4f}")
    assert gap.mean() > -4 * error
    assert gap.mean() < 0.02 * float((start - floor).mean()) + 4 * error


def test_a_short_training_learns_the_covariance_of_a_gaussian():
    done = train(small(), gaussian(), steps=400, lr=5e-3)
    x = SDESampler(done.model.sde, done.model, steps=15).sample(2000, seed=0)
    found = torch.cov(x.T)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.8], [0.8, 1.0]]), atol=0.12, rtol=0)
    assert len(done.losses) == 400
    assert done.skipped == 0
    assert done.seconds > 0


def test_a_class_conditional_model_learns_where_its_classes_lie():
    labels = torch.arange(600) % 2
    x = 0.1 * gaussian(600) + (2.0 * labels[:, None] - 1)
    done = train(small(classes=2), x, labels, steps=300, lr=5e-3)
    drawn = SDESampler(done.model.sde, done.model, steps=10).sample(100, seed=0, label=torch.arange(100) % 2)
    side = drawn.mean(1).sign()
    assert (side == 2.0 * (torch.arange(100) % 2) - 1).float().mean() > 0.95


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_two_runs_with_one_seed_agree_bit_for_bit_dropout_and_transform_included():
    def once(seed):
        torch.manual_seed(3)
        net = Network(UNet(1, width=8, classes=10, dropout=0.3), EDMSDE(0.01, 20.0), predict.edm, shape=(1, 4, 4))
        levels = torch.arange(40 * 16).reshape(40, 1, 4, 4) % 17
        return train(
            net, levels, torch.arange(40) % 10, steps=5, batch_size=16, seed=seed,
            transform=lambda v, g: 2 * dequantise(v, generator=g),
        )  # fmt: skip

    a = once(0)
    torch.rand(7)  # what the caller draws does not matter
    b, c = once(0), once(1)
    assert torch.equal(weights(a.model), weights(b.model))
    assert a.losses == b.losses
    assert not torch.equal(weights(a.model), weights(c.model))


def test_training_leaves_the_global_random_state_and_the_mode_of_the_model_alone():
    model = small()
    model.eval()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    done = train(model, gaussian(64), steps=2)
    assert torch.equal(before, torch.get_rng_state())
    assert not model.training
    assert not done.model.training


def test_the_average_is_returned_and_the_model_itself_is_trained():
    model = small()
    done = train(model, gaussian(64), steps=30)
    assert not torch.equal(weights(model), weights(small()))
    assert not torch.equal(weights(model), weights(done.model))


def test_batches_are_full_and_use_every_row_before_one_returns():
    seen: list[torch.Tensor] = []

    def spy(rows, generator):
        seen.append(rows.flatten())
        return torch.randn(len(rows), 2, generator=generator)

    train(small(), torch.arange(10), steps=5, batch_size=4, transform=spy)
    drawn = torch.cat(seen[1:])  # the first call is the check at the door
    assert [len(rows) for rows in seen[1:]] == [4] * 5
    assert sorted(drawn[:10].tolist()) == list(range(10))
    assert sorted(drawn[10:].tolist()) == list(range(10))


def test_a_batch_may_be_larger_than_the_data():
    assert len(train(small(), gaussian(5), steps=2, batch_size=13).losses) == 2


def test_the_progress_bar_is_shown_only_when_asked_for(capsys):
    train(small(), gaussian(64), steps=2)
    assert capsys.readouterr().err == ""
    train(small(), gaussian(64), steps=2, progress=True)
    assert "loss" in capsys.readouterr().err


# --- what goes wrong


class Flaky(nn.Module):
    """Answers infinity on some calls."""

    def __init__(self, bad) -> None:
        super().__init__()
        self.net, self.bad, self.calls = nn.Linear(2, 2), bad, 0

    def forward(self, x, t):
        self.calls += 1
        return self.net(x) * (math.inf if self.bad(self.calls) else 1.0)


def test_steps_without_a_finite_gradient_are_skipped_counted_and_told():
    model = Network(Flaky(lambda call: call in (3, 4)), EDMSDE(0.01, 20.0), predict.edm, shape=(2,))
    with pytest.warns(UserWarning, match="2 of 10 steps were skipped: gradient not finite"):
        done = train(model, gaussian(64), steps=10)
    assert done.skipped == 2
    assert torch.isfinite(weights(done.model)).all()


def test_training_stops_when_no_gradient_is_finite():
    model = Network(Flaky(lambda call: call > 2), EDMSDE(0.01, 20.0), predict.edm, shape=(2,))
    with pytest.raises(SolverError, match=r"no finite gradient in steps 3 to 52, last loss \w+: lower lr"):
        train(model, gaussian(64), steps=100)


def test_data_of_another_scale_than_the_model_expects_are_told():
    with pytest.warns(
        UserWarning, match=r"span \[-.*\] with standard deviation .*, but the model expects about 1: stand"
    ):
        train(small(), 127.5 * gaussian(64), steps=1)
    with pytest.warns(UserWarning, match=r"expects about 0.1: stand.*, or give predict.EDM\(0.97"):
        train(small(kind=predict.EDM(0.1)), gaussian(64), steps=1)
    with pytest.warns(UserWarning, match="all values are equal"):
        train(small(), torch.ones(64, 2), steps=1)


def test_an_average_longer_than_a_fifth_of_the_run_is_told():
    with pytest.warns(
        UserWarning, match=r"ConstantDecay\(decay=0.9999, warm_up=False\) averages over about the last 10000 of 5"
    ):
        train(small(), gaussian(64), steps=5, decay=ConstantDecay(0.9999, warm_up=False))
    assert horizon(PowerDecay(0.1), 10_000) < 2000
    assert horizon(ConstantDecay(0.999), 1000) < 200


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            torch.ones(4, 2, dtype=torch.uint8),
            TypeError,
            "data has dtype torch.uint8, wanted float32 or float64: scale",
        ),
        (torch.ones(4, 2, dtype=torch.float16), TypeError, "data has dtype torch.float16: a half-precision state"),
        (torch.ones(0, 2), ValueError, r"data is an empty batch of shape \(0, 2\)"),
        (torch.tensor([[1.0, math.nan]]), ValueError, "data holds 1 non-finite values of 2"),
        (torch.ones(4, 3), ValueError, r"data has event shape \(3,\) .* but the model works on \(2,\)"),
        ([[1.0, 2.0]], TypeError, "data must be a torch.Tensor"),
    ],
)
def test_unfit_data_are_refused_at_the_door(data, error, message):
    with pytest.raises(error, match=message):
        train(small(), data, steps=1)


def test_a_transform_is_held_to_the_same():
    with pytest.raises(ValueError, match="data holds 8 non-finite values of 8"):
        train(small(), torch.arange(4), steps=1, transform=lambda v, g: torch.full((len(v), 2), math.nan))
    with pytest.raises(ValueError, match=r"data is empty: its shape is \(0,\)"):
        train(small(), torch.arange(0), steps=1, transform=lambda v, g: v)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (
            torch.zeros(4),
            TypeError,
            r"labels must hold integers, the numbers of classes, got torch.float32. Use labels.long\(\)",
        ),
        (torch.rand(4), TypeError, "A continuous condition goes under another name, to a network that takes it"),
        (torch.zeros(3, dtype=torch.long), ValueError, r"labels have shape \(3,\), wanted \(4,\): one per row of data"),
        (torch.full((4,), 9), ValueError, "label must lie in 0..1"),
    ],
)
def test_unfit_labels_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        train(small(classes=2), gaussian(4), labels, steps=1)


def test_unfit_arguments_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        train(small(), gaussian(4), steps=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        train(small(), gaussian(4), steps=1, batch_size=0)
    with pytest.raises(ValueError, match="lr must be positive and finite, got -1"):
        train(small(), gaussian(4), steps=1, lr=-1)
    with pytest.raises(TypeError, match=r"train needs a Denoiser: wrap the network, .* got MLP"):
        train(MLP(2), gaussian(4), steps=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the model has no parameters to train: wrap your network"):
        train(Gaussian(EDMSDE(), torch.zeros(2), 1.0), gaussian(4), steps=1)
