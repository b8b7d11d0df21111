"""Claim: training reaches the loss floor of the exact denoiser, bit for bit alike twice; averages are what they say."""

from __future__ import annotations

import contextlib
import io
import math
import re
import sys
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from sde_diffusion import EDMSDE, VPSDE, Network, SDESampler, SolverError, predict
from sde_diffusion.data import Rows, dequantise
from sde_diffusion.data.faults.values import Values
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.denoiser.objectives.matching import DenoisingScoreMatching
from sde_diffusion.denoiser.objectives.time_samplers import LogNormalSigma, uniform_time
from sde_diffusion.denoiser.objectives.weights import noise_weight
from sde_diffusion.denoiser.predict import Parametrisation
from sde_diffusion.nets import MLP, UNet
from sde_diffusion.training import EMA, ConstantDecay, PowerDecay, Recipe, Training, TrainingInterrupted
from sde_diffusion.training import train as train_with
from sde_diffusion.training.ema import horizon
from sde_diffusion.training.losses import denoising_score_matching
from sde_diffusion.training.recipe import warm_cosine


def small(sde=None, kind=predict.edm, **options) -> Network:
    torch.manual_seed(0)
    return Network(MLP(2, hidden=32, layers=2, features=0, **options), sde or EDMSDE(0.01, 20.0), kind, shape=(2,))


def train(*args: Any, **options: Any) -> Training:
    """With one seed, unless another is given."""
    return train_with(*args, **{"seed": 0, **options})


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


@pytest.mark.parametrize(("dtype", "n"), [(torch.float16, 2000), (torch.bfloat16, 256), (torch.float32, 5000)])
@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_an_average_does_not_freeze_in_half_precision(sigma_rel, dtype, n):
    """theta(t) = t, in whole numbers that the dtype holds exactly, averages to t (g + 1)/(g + 2)."""
    net, decay = nn.Linear(1, 1).to(dtype), PowerDecay(sigma_rel)
    ema, exact = EMA(net, decay), 0.0
    for i in range(1, n + 1):
        nn.init.constant_(net.weight, i)
        ema.update(net)
        exact += (1 - decay(i)) * (i - exact)
    assert ema.model.weight.dtype == dtype  # what is called and saved
    assert exact == pytest.approx(n * (decay.gamma + 1) / (decay.gamma + 2), rel=4 / n)
    rounding = torch.finfo(dtype).eps / 2 + 1e-4
    assert ema.model.weight.item() == pytest.approx(exact, rel=rounding)


def test_an_average_in_half_precision_goes_on_from_a_state_that_was_loaded():
    net = nn.Linear(1, 1, bias=False).bfloat16()
    ema = EMA(net, ConstantDecay(0.5, warm_up=False))
    ema.update(net)
    ema.model.load_state_dict({"weight": torch.full((1, 1), 4.0)})
    nn.init.constant_(net.weight, 2.0)
    ema.update(net)
    assert ema.model.weight.item() == 3.0
    ema.model.float()
    ema.update(net)
    assert ema.model.weight.item() == 2.5


class Caching(nn.Module):
    """Keeps what it computed from its weights, in an attribute or inside of one."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.net, self.where = nn.Linear(2, 2), where
        self.kept: object = None

    def forward(self, x, t):
        if self.kept is None or self.training:
            weight = 2 * self.net.weight
            self.kept = {"attribute": weight, "list": [weight], "dict": {"w": (weight,)}}[self.where]
        found: Any = self.kept
        while not isinstance(found, torch.Tensor):
            found = next(iter(found.values() if isinstance(found, dict) else found))
        return x @ found.T


@pytest.mark.parametrize("where", ["attribute", "list", "dict"])
def test_the_average_of_a_network_that_keeps_computed_tensors_is_made(where):
    torch.manual_seed(0)
    model = Network(Caching(where), EDMSDE(0.01, 20.0), predict.edm, shape=(2,))
    train(model, gaussian(64), steps=3)
    done = train(model, gaussian(64), steps=3)  # now it holds a tensor with a history
    assert torch.isfinite(weights(done.model)).all()
    if where == "attribute":
        x = torch.ones(1, 2)
        with torch.no_grad():
            net: Any = done.model.net
            torch.testing.assert_close(net(x, None), x @ (2 * net.net.weight).T)


def test_a_model_that_cannot_be_copied_is_refused_with_the_reason():
    net = nn.Linear(2, 2)
    net.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"Linear cannot be copied for its average \(.*lock.*\): give the module that"):
        EMA(net)


def test_a_decay_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"sigma_rel must lie in \(0, 0.288\): 0.05 to 0.15 are usual, got 0.3"):
        PowerDecay(0.3)
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1.0"):
        ConstantDecay(1.0)


# --- the rate


def test_the_learning_rate_rises_over_a_hundred_steps_and_falls_to_zero():
    rates = [1e-3 * warm_cosine(i, 2000) for i in range(2001)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates.index(max(rates)) == 99
    assert max(rates) == pytest.approx(1e-3, rel=0.01)
    assert rates[1000] == pytest.approx(0.5e-3)
    assert rates[2000] == pytest.approx(0, abs=1e-12)
    assert warm_cosine(1, 10) > 0.9  # a short run rises over a tenth of it


# --- learning


class Perfect(Network):
    """Answers what a network of this kind would if it knew the data exactly: through the same regression."""

    def __init__(self, exact: Gaussian, kind: Parametrisation) -> None:
        super().__init__(lambda x, t: x, exact.sde, kind, shape=(2,))
        self.exact = exact

    def _parts(self, x, at, cond):
        d = self.exact.predict(x, at)
        on_x0, on_eps = self.kind.target(at)
        return on_x0 * d.data + on_eps * d.noise, None


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
    objective = DenoisingScoreMatching(times, weight)
    done = train(small(sde, kind), x, steps=1000, loss=objective, recipe=Recipe(256, 3e-3))
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
    done = train(small(), gaussian(), steps=400, recipe=Recipe(lr=5e-3), seed=1)
    x = SDESampler(done.model.sde, done.model, steps=15).sample(2000, seed=0)
    found = torch.cov(x.T)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.8], [0.8, 1.0]]), atol=0.12, rtol=0)
    assert len(done.losses) == 400
    assert done.skipped == 0
    assert done.seconds > 0


def test_a_class_conditional_model_learns_where_its_classes_lie():
    labels = torch.arange(600) % 2
    x = 0.1 * gaussian(600) + (2.0 * labels[:, None] - 1)
    done = train(small(classes=2), x, label=labels, steps=300, recipe=Recipe(lr=5e-3))
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
            net, levels, label=torch.arange(40) % 10, steps=5, seed=seed,
            recipe=Recipe(16, transform=lambda v, g: 2 * dequantise(v, seed=g)),
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

    train(small(), torch.arange(10), steps=5, recipe=Recipe(4, transform=spy))
    drawn = torch.cat(seen[1:])  # the first call is the check at the door
    assert [len(rows) for rows in seen[1:]] == [4] * 5
    assert sorted(drawn[:10].tolist()) == list(range(10))
    assert sorted(drawn[10:].tolist()) == list(range(10))


def test_a_batch_may_be_larger_than_the_data():
    assert len(train(small(), gaussian(5), steps=2, recipe=Recipe(13)).losses) == 2


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


def sometimes_nan(bad):
    """A transform that spoils a batch on some calls; the first is the check at the door."""
    calls = 0

    def transform(rows, generator):
        nonlocal calls
        calls += 1
        return rows * (math.nan if bad(calls - 1) else 1.0)

    return transform


def test_a_batch_that_is_not_finite_is_skipped_counted_and_told():
    with pytest.warns(UserWarning, match=r"2 of 10 steps were skipped: batch not finite"):
        done = train(small(), gaussian(64), steps=10, recipe=Recipe(transform=sometimes_nan(lambda i: i in (3, 9))))
    assert done.skipped == 2
    assert len(done.losses) == 10
    assert [i for i, loss in enumerate(done.losses, 1) if math.isnan(loss)] == [3, 9]
    assert done.loss == pytest.approx(sum(x for x in done.losses if math.isfinite(x)) / 8)
    assert torch.isfinite(weights(done.model)).all()
    model = Network(Flaky(lambda call: call == 3), EDMSDE(0.01, 20.0), predict.edm, shape=(2,))
    with pytest.warns(
        UserWarning, match=r"2 of 10 steps were skipped: gradient, or in 1 of them the batch, not finite"
    ):
        train(model, gaussian(64), steps=10, recipe=Recipe(transform=sometimes_nan(lambda i: i == 5)))


def test_training_stops_when_no_batch_is_finite():
    with pytest.raises(
        SolverError, match=r"no finite batch in steps 4 to 53, .* look for NaN in what the transform"
    ) as e:
        train(small(), gaussian(64), steps=100, recipe=Recipe(transform=sometimes_nan(lambda i: i > 3)))
    assert len(record(e.value).losses) == 53


# --- what ends a run


def record(error: BaseException) -> Training:
    found: Any = error
    assert isinstance(found.training, Training)
    return found.training


class Ending(nn.Module):
    """Raises on a call."""

    def __init__(self, error, call) -> None:
        super().__init__()
        self.net, self.error, self.call, self.calls = nn.Linear(2, 2), error, call, 0

    def forward(self, x, t):
        self.calls += 1
        if self.calls == self.call:
            raise self.error
        return self.net(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory"), SystemExit(1)], ids=repr)
def test_what_a_run_has_done_goes_with_what_ends_it(error, training):
    def model(call=None):
        torch.manual_seed(0)
        net = Network(Ending(error, call), EDMSDE(0.01, 20.0), predict.edm, shape=(2,))
        inner: Any = net.train(training).net
        inner.net.eval()  # frozen apart
        return net

    stopped, state = model(8), torch.get_rng_state()
    with pytest.raises(type(error)) as caught:
        train(stopped, gaussian(64), steps=100, recipe=Recipe(lr=1e-2))
    done = record(caught.value)
    whole: list[float] = train(model(), gaussian(64), steps=100, recipe=Recipe(lr=1e-2)).losses
    assert done.losses == whole[:7]
    assert stopped.training == training
    assert not next(m for m in stopped.modules() if isinstance(m, nn.Linear)).training
    assert not done.model.training
    assert torch.equal(state, torch.get_rng_state())
    average = EMA(model())
    replay = model(8)
    losses: list[torch.Tensor] = []

    class Spy(EMA[Any]):
        def update(self, model):
            super().update(model)
            losses.append(weights(self.model).clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sde_diffusion.training.run.learner.EMA", Spy)
        with pytest.raises(type(error)):
            train(replay, gaussian(64), steps=100, recipe=Recipe(lr=1e-2))
    assert torch.equal(weights(done.model), losses[-1])
    assert not torch.equal(weights(done.model), weights(average.model))


def test_ctrl_c_stops_a_script_as_ever_and_says_where_the_work_is():
    model = Network(Ending(KeyboardInterrupt(), 3), EDMSDE(0.01, 20.0), predict.edm, shape=(2,))
    with pytest.raises(TrainingInterrupted, match=r"after 2 of 9 steps. The averaged model .* in `.training` of this"):
        train(model, gaussian(64), steps=9)
    assert issubclass(TrainingInterrupted, KeyboardInterrupt)
    assert not issubclass(TrainingInterrupted, Exception)


def test_an_error_of_the_transform_keeps_its_type_and_says_where_the_work_is():
    def transform(rows, generator, calls=[]):  # noqa: B006  # counts
        calls.append(1)
        if len(calls) > 4:
            raise OSError("the disk went away")
        return rows

    with pytest.raises(OSError, match="the disk went away") as caught:
        train(small(), gaussian(64), steps=9, recipe=Recipe(transform=transform))
    assert len(record(caught.value).losses) == 3
    if sys.version_info >= (3, 11):
        (note,) = caught.value.__notes__
        assert "after 3 of 9 steps: `.training` of this exception holds the averaged model" in note


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


class Closed(io.StringIO):
    def write(self, text):
        raise ValueError("I/O operation on closed file")


@pytest.mark.parametrize("stderr", [Broken(), Closed(), None], ids=["broken", "closed", "none"])
def test_a_stderr_that_is_gone_does_not_end_a_run(stderr, monkeypatch):
    def show(message, *_):  # as Python does, without pytest in between
        if sys.stderr is not None:
            with contextlib.suppress(OSError):
                sys.stderr.write(str(message))

    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setattr("warnings.showwarning", show)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        model = Network(Flaky(lambda call: call == 2), EDMSDE(0.01, 20.0), predict.edm, shape=(2,))
        done = train(model, 10 + gaussian(64), steps=3, progress=True)  # with its warnings
    assert len(done.losses) == 3


def test_a_record_shows_the_objective_the_recipe_and_the_loss_and_not_the_network():
    done = train(small(VPSDE(), predict.noise), gaussian(64), steps=2)
    assert re.fullmatch(
        r"Training\(objective=DenoisingScoreMatching\(times=uniform_time, weight=None\), "
        r"recipe=Recipe\(batch_size=128, lr=0.002\), "
        r"steps=2, skipped=0, seconds=\d+\.\d, loss=\d\.\d+\)",
        repr(done),
    )
    assert done.loss == pytest.approx(sum(done.losses) / 2)


def test_training_stops_when_no_gradient_is_finite():
    model = Network(Flaky(lambda call: call > 2), EDMSDE(0.01, 20.0), predict.edm, shape=(2,))
    with pytest.raises(SolverError, match=r"no finite gradient in steps 3 to 52, last loss \w+: lower lr"):
        train(model, gaussian(64), steps=100)


def test_data_of_another_scale_than_the_model_expects_are_told():
    with pytest.warns(
        UserWarning, match=r"column 0 \(and 1 more\) .* deviation 126.*expects about 0 and 1: standardise it, \(x \+ 22"
    ):
        train(small(), 127.5 * gaussian(64), steps=1)
    with pytest.warns(
        UserWarning, match=r"about 0 and 0.1: standardise it, 0.1 \* \(x .*, or give predict.EDM\(data_std=0.9"
    ):
        train(small(kind=predict.EDM(0.1)), gaussian(64), steps=1)


def warned(model, data) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, data, steps=1)
    return [str(w.message) for w in caught]


def standard(*shape: int) -> torch.Tensor:
    """Every column (channel) of mean 0 and standard deviation 1, to rounding."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(7))
    over = [i for i in range(x.ndim) if i != 1]
    return (x - x.mean(over, keepdim=True)) / x.std(over, keepdim=True, correction=0)


@pytest.mark.parametrize(
    ("shift", "scale", "message"),
    [
        (
            10.0,
            1.0,
            "column 1 of the data has mean 10 and standard deviation 1, but .* about 0 and 1: .* \\(x - 10\\) / 1$",
        ),
        (-1.5, 1.0, "has mean -1.5 .* \\(x \\+ 1.5\\) / 1$"),
        (0.0, 15.0, "standard deviation 15, "),
        (0.0, 0.05, "standard deviation 0.05, "),
        (0.5, 0.0, "column 1 of the data is constant, 0.5: there is nothing to learn in it, leave it out"),
        (0.9, 2.5, None),
        (-0.9, 0.4, None),
    ],
)
def test_one_column_that_is_shifted_wide_narrow_or_constant_is_told_by_its_number(shift, scale, message):
    x = standard(256, 2)
    x[:, 1] = shift + scale * x[:, 1]
    told = warned(small(), x)
    assert len(told) == (message is not None)
    assert message is None or re.search(message, told[0]), told


def test_columns_of_few_values_are_named_for_they_have_no_density():
    x = standard(400, 2)
    x[:, 1] = torch.tensor([-1.0, 1.0]).repeat_interleave(200)
    (told,) = warned(small(), Rows(x, {}, ("age", "sex")))
    assert told.startswith("column 'sex' of the data takes 2 values only, and has no density: a model of it gains")
    assert "Give it as a condition, such as label=, or with fresh bins, data.Dequantised" in told
    for column, few in ((x[:, 1], {0: 2}), (torch.arange(20.0).repeat(20), {}), (torch.arange(400.0) % 10, {0: 10})):
        found = Values()
        for part in column[:, None].split(50):  # constant in every one of them, the first time
            found.add(part)
        assert found.few() == few
    few_rows = Values()
    few_rows.add(x[190:205, 1:])
    assert few_rows.few() == {}


def test_channels_of_images_are_held_to_it_one_by_one():
    model = Network(UNet(3, width=8), EDMSDE(0.01, 20.0), predict.EDM(0.5), shape=(3, 4, 4))
    x = 0.5 * standard(64, 3, 4, 4)
    assert warned(model, x) == []
    x[:, 2] += 5
    (told,) = warned(model, x)
    assert "channel 2 of the data has mean 5 and standard deviation 0.5, but the model expects about 0 and 0.5" in told
    assert told.endswith("standardise it, 0.5 * (x - 5) / 0.5")


def test_one_sample_alone_is_constant_and_no_cause_to_warn():
    assert warned(small(), torch.tensor([[0.5, -2.0]])) == []
    (told,) = warned(small(), torch.tensor([[0.5, -20.0]]))
    assert "column 1 of the data has mean -20 and" in told


def test_the_scale_is_asked_of_what_the_transform_returns():
    x = 10 + standard(256, 2)
    done = train(small(), x, steps=1, recipe=Recipe(transform=lambda v, g: v - 10))
    assert len(done.losses) == 1


def test_an_average_longer_than_a_fifth_of_the_run_is_told():
    with pytest.warns(
        UserWarning, match=r"ConstantDecay\(decay=0.9999, warm_up=False\) averages over about the last 10000 of 5"
    ):
        train(small(), gaussian(64), steps=5, recipe=Recipe(averages=ConstantDecay(0.9999, warm_up=False)))
    assert horizon(PowerDecay(0.1), 10_000) < 2000
    assert horizon(ConstantDecay(0.999), 1000) < 200


def test_rows_that_will_be_seen_a_thousand_times_are_told_of():
    with pytest.warns(UserWarning, match=r"each of 5 rows will be seen 1,030 times, and may be learnt by heart: keep"):
        train(small(), standard(5, 2), steps=2, recipe=Recipe(2575))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            torch.ones(4, 2, dtype=torch.uint8),
            TypeError,
            "data has dtype torch.uint8, wanted float32 or float64: scale",
        ),
        (torch.ones(4, 2, dtype=torch.float16), TypeError, "data has dtype torch.float16: a half-precision state"),
        (torch.ones(0, 2), ValueError, r"the data are empty: their shape is \(0, 2\)"),
        (
            torch.tensor([[1.0, 0.0], [1.0, math.nan]]),
            ValueError,
            r"data holds NaN or infinity in row 1 \(1 of 2\)",
        ),
        (torch.ones(4, 3), ValueError, r"data has event shape \(3,\) .* but the model works on \(2,\)"),
        ("moons", TypeError, "the data are str: wanted a tensor or an array"),
    ],
)
def test_unfit_data_are_refused_at_the_door(data, error, message):
    with pytest.raises(error, match=message):
        train(small(), data, steps=1)


def test_labels_that_count_from_one_are_not_taken_for_the_null_label():
    model = Network(MLP(2, hidden=8, classes=3), VPSDE(), shape=(2,))
    with pytest.raises(ValueError, match=r"labels run from 1 to 3, and 3 is the null label of this net: number its"):
        train(model, torch.randn(6, 2), label=torch.tensor([1, 2, 3, 1, 2, 3]), steps=1)


def test_a_transform_is_held_to_the_same():
    with pytest.raises(ValueError, match=r"data holds NaN or infinity in rows 0, 1, 2, 3 \(4 of 4\)"):
        train(
            small(), torch.arange(4), steps=1, recipe=Recipe(transform=lambda v, g: torch.full((len(v), 2), math.nan))
        )
    with pytest.raises(ValueError, match=r"the data are empty: their shape is \(0,\)"):
        train(small(), torch.arange(0), steps=1, recipe=Recipe(transform=lambda v, g: v))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (
            torch.zeros(4),
            TypeError,
            r"label must hold integers, the numbers of classes, got torch.float32. Use label.long\(\)",
        ),
        (torch.rand(4), TypeError, "A continuous condition goes under another name, to a network that takes it"),
        (torch.zeros(3, dtype=torch.long), ValueError, "'label' has one row per sample, and 3 rows came for 4 samp"),
        (
            torch.tensor([0, 1, 9, 9]),
            ValueError,
            r"label must lie in 0..1, got label\[2\] = 9 and 1 more like it: corr",
        ),
        (
            torch.tensor([0, -1, 1, 0]),
            ValueError,
            r"label must lie in 0..1, got label\[1\] = -1: correct them, or build",
        ),
    ],
)
def test_unfit_labels_are_refused(labels, error, message):
    with pytest.raises(error, match=message) as caught:
        train(small(classes=2), gaussian(4), label=labels, steps=1)
    assert "training" not in vars(caught.value)  # at the door, before any work


def test_labels_for_a_net_without_classes_and_the_null_label_are_known_at_the_door():
    labels = torch.tensor([0, 1, 2, 2])
    with pytest.raises(ValueError, match=r"built with classes=0: leave them out, or build it with classes=3"):
        train(small(), gaussian(4), label=labels, steps=1)
    with pytest.warns(
        UserWarning, match=r"label\[2\] = 2 is the null label of the net: 2 of 4 rows are learnt as of no"
    ):
        assert len(train(small(classes=2), standard(4, 2), label=labels, steps=1).losses) == 1
    with pytest.raises(ValueError, match=r"the net was built with context=3, and no context came: give context=, or"):
        train(small(context=3), standard(4, 2), steps=1)
    with pytest.raises(ValueError, match=r"label must lie in 0\.\.1, got label\[2\] = 2 and 1 more") as caught:
        train(small(classes=2, label_drop=0.0), standard(4, 2), label=labels, steps=1)
    assert "training" not in vars(caught.value)  # at the door, whatever the first batch holds
    with pytest.raises(ValueError, match="no label was given to a net of 2 classes"):
        train(small(classes=2, label_drop=0.0), standard(4, 2), steps=1)


def test_unfit_arguments_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        train(small(), standard(8, 2), steps=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        train(small(), standard(8, 2), steps=1, recipe=Recipe(0))
    with pytest.raises(ValueError, match="lr must be positive and finite, got -1"):
        train(small(), standard(8, 2), steps=1, recipe=Recipe(lr=-1))
    with pytest.raises(TypeError, match=r"train needs a Denoiser: wrap the network, .* got MLP"):
        train(MLP(2), standard(8, 2), steps=1)
    with pytest.raises(ValueError, match="the model has no parameters to train: wrap your network"):
        train(Gaussian(EDMSDE(), torch.zeros(2), 1.0), standard(8, 2), steps=1)


# --- an objective of one's own


def test_an_objective_of_ones_own_is_what_is_minimised():
    """The weights that a given matrix A asks for: |A - F(1)|^2 has its minimum there, whatever the data are."""
    torch.manual_seed(0)
    model = Network(Flaky(lambda call: False), VPSDE(), shape=(2,))
    wanted, told = torch.tensor([[0.3, -0.7]]), []

    def loss(model, x0, *, generator, label):
        told.append((len(x0), len(label), torch.rand(1, generator=generator).item()))
        return (model.net(torch.ones(1, 2), None) - wanted).square().mean()

    recipe = Recipe(16, 0.05)
    done = train(model, gaussian(64), label=torch.arange(64) % 2, steps=200, loss=loss, recipe=recipe)
    assert (done.objective, done.recipe) == (loss, recipe)
    assert "objective=loss, recipe=Recipe(batch_size=16, lr=0.05" in repr(done)
    assert [n for n, _, _ in told] == [n for _, n, _ in told] == [16] * 200
    assert len({u for _, _, u in told}) == 200
    inner: Any = done.model.net
    torch.testing.assert_close(inner(torch.ones(1, 2), None), wanted, atol=0.01, rtol=0)


def test_an_objective_that_gives_nothing_to_minimise_is_refused():
    def error(loss, kind, text):
        with pytest.raises(kind, match=text):
            train(small(), gaussian(64), steps=1, loss=loss)

    error("mse", TypeError, r"loss must be a function \(model, x0, generator=...\) -> scalar, .* got 'mse'")
    error(lambda model, x0, generator: None, TypeError, "the loss answered NoneType, .*: is a return missing")
    error(lambda model, x0, generator: (x0**2).mean(1), ValueError, r"answered shape \(128,\), .* of shape \(\): .mean")
    error(lambda model, x0, generator: (x0**2).mean(), TypeError, "the loss has no graph back to the model: it runs")


def test_a_seed_of_none_draws_anew():
    def runs(seed):
        return [train(small(), gaussian(64), steps=2, seed=seed).losses for _ in range(2)]

    same, fresh = runs(5), runs(None)
    assert same[0] == same[1]
    assert fresh[0] != fresh[1]


def test_a_transform_in_place_leaves_the_data_and_works_once_on_each_batch():
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) + 4
    before, seen = x.clone(), []

    def centre(batch, generator):
        seen.append(float(batch.mean()))
        return batch.sub_(4.0)

    train(small(), x, steps=20, recipe=Recipe(64, transform=centre))
    assert torch.equal(x, before)
    assert min(seen) > 3.5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_has_its_gradients_whatever_the_mode_of_the_caller(mode):
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    expected, model = train(small(), x, steps=3, recipe=Recipe(16)).losses, small()
    with mode():
        assert train(model, x, steps=3, recipe=Recipe(16)).losses == expected


def test_a_seed_that_torch_does_not_take_is_refused():
    with pytest.raises(ValueError, match=r"seeds must be >= 0 and below 2\*\*32"):
        train(small(), torch.randn(8, 2), steps=1, seed=2**70)
