"""Claim: a step is a function of the seed and its number: the same batch however it is shared out, and read from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sde_diffusion import EDMSDE, Network, SolverError, losses, predict
from sde_diffusion.denoiser import PerSample, Shared
from sde_diffusion.nets import MLP
from sde_diffusion.training import ConstantDecay, PowerDecay, Recipe, TrainingInterrupted, Validation, train
from sde_diffusion.training.run.engine import Engine
from sde_diffusion.training.run.feed import Feed, inputs_of
from sde_diffusion.training.run.state import Packed, unpacked
from sde_diffusion.training.run.streams import BLOCK, Streams, blocks

CPU = torch.device("cpu")
X = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
X = (X - X.mean(0)) / X.std(0, correction=0)


def small(**options: Any) -> Network:
    torch.manual_seed(0)
    return Network(MLP(2, hidden=16, layers=1, features=0, **options), EDMSDE(0.01, 20.0), predict.edm, shape=(2,))


class Rank(Engine):
    """One process of several that are not there."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks, self.first, self.device = rank, ranks, rank == 0, CPU
        self._before = []


# --- random streams


@pytest.mark.parametrize(("n", "numbers"), [(10, 2), (1000, 100), (5, BLOCK), (7, 5 * BLOCK), (128, 3000)])
def test_the_blocks_of_all_shares_are_the_rows_of_the_batch(n, numbers):
    whole = list(blocks(range(n), n, numbers))
    assert [row for block in whole for row in block.rows] == list(range(n))
    assert all(len(block.rows) * numbers <= max(BLOCK, numbers) for block in whole)
    for cut in range(1, n):
        for asked in (range(cut), range(cut, n)):
            found = [row for block in blocks(asked, n, numbers) for row in block.rows[block.part]]
            assert found == list(asked)


def test_noise_is_that_of_the_batch_whichever_rows_are_asked_for():
    streams, x = Streams(3), torch.zeros(40, 70, 30)
    whole = streams.noise((5,), range(40), 40, x)
    assert whole.shape == x.shape
    for rows in (range(7), range(7, 23), range(23, 40)):
        assert torch.equal(streams.noise((5,), rows, 40, x[: len(rows)]), whole[rows.start : rows.stop])
    assert abs(float(whole.mean())) < 4 / whole.numel() ** 0.5
    assert not torch.equal(streams.noise((6,), range(40), 40, x), whole)
    assert not torch.equal(Streams(4).noise((5,), range(40), 40, x), whole)


def test_streams_are_told_apart_by_use_and_place():
    streams = Streams(0)
    seeds = {streams.seed_of(use, i, j) for use in ("times", "noise") for i in range(30) for j in range(30)}
    assert len(seeds) == 1800
    assert streams.seed_of("noise", 1, 11) != streams.seed_of("noise", 11, 1)


# --- batches


def fed(rank: int, ranks: int, micro: int, data: Any = X, transform: Any = None, **cond: Any) -> list[Any]:
    model = small()
    recipe = Recipe(48, accumulate=micro, transform=transform)
    inputs = inputs_of(model, data, cond)
    return list(Feed(inputs, model, model.objective(), recipe, Streams(7), Rank(rank, ranks)).steps(2, 9))


def noisy(x: Any, generator: Any) -> Any:
    return x + torch.randn(x.shape, generator=generator)


@pytest.mark.parametrize("transform", [None, noisy])
@pytest.mark.parametrize(("ranks", "micro"), [(1, 3), (2, 1), (4, 2), (3, 4)])
def test_the_batch_is_the_same_however_it_is_shared_out(ranks, micro, transform):
    c = PerSample(torch.arange(300.0))
    whole = fed(0, 1, 1, transform=transform, c=c)
    shares = [fed(rank, ranks, micro, transform=transform, c=c) for rank in range(ranks)]
    for i, (part,) in enumerate(whole):
        parts = [p for share in shares for p in share[i]]
        assert len(parts) == ranks * micro
        assert torch.equal(torch.cat([p.x for p in parts]), part.x)
        assert torch.equal(torch.cat([p.cond["c"] for p in parts]), part.cond["c"])
        for name in ("t", "eps"):
            assert torch.equal(torch.cat([p.draws[name] for p in parts]), part.draws[name])
        assert transform or torch.equal(X[part.cond["c"].long()], part.x)


def test_times_are_spread_over_the_whole_batch():
    model = small()
    loss = losses.DenoisingScoreMatching(losses.uniform_time)
    shares = [
        next(Feed(inputs_of(model, X, {}), model, loss, Recipe(48), Streams(7), Rank(rank, 2)).steps(0, 1))
        for rank in range(2)
    ]
    t = torch.cat([parts[0].draws["t"] for parts in shares])
    u = (t - model.sde.t_min) / (model.sde.t_max - model.sde.t_min)
    assert sorted((u * 48).floor().int().tolist()) == list(range(48))


# --- data of any kind


class Items(Dataset[Any]):
    """Rows with labels, one by one."""

    def __init__(self, labels: torch.Tensor) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Any:
        return X[i], int(self.labels[i])


class Flow(IterableDataset[Any]):
    """The rows in order, without end."""

    def __iter__(self) -> Any:
        while True:
            yield from X


LABELS = torch.arange(300) % 3


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.filterwarnings("ignore:val holds rows")  # the same data, to see that they are read alike in both places
@pytest.mark.parametrize(
    ("data", "cond"),
    [
        (X.numpy().astype("float64"), {"label": LABELS.tolist()}),
        (X.tolist(), {"label": LABELS.numpy()}),
        (TensorDataset(X), {"label": LABELS}),
        (TensorDataset(X, LABELS), {}),
        (Items(LABELS), {}),
        (DataLoader(Items(LABELS), 32, shuffle=True), {}),
    ],
    ids=["array", "list", "tensors", "pairs", "items", "loader"],
)
def test_data_come_in_any_form(data, cond):
    def run(data: Any, **cond: Any) -> tuple[torch.Tensor, list[float]]:
        model = small(classes=3)
        val = Validation(data, draws=2, **cond)
        done = train(model, data, steps=3, seed=0, recipe=Recipe(32), val=val, **cond)
        return weights(model), [found["val_nats"] for found in done.validations]

    (found, nats), (expected, of_tensors) = run(data, **cond), run(X, label=LABELS)
    assert torch.equal(found, expected)
    assert nats == of_tensors


def test_a_loader_says_how_large_a_batch_is_and_a_recipe_knows_better():
    sizes: list[int] = []

    def loss(model: Any, x0: Any, *, generator: Any) -> Any:
        sizes.append(len(x0))
        return model.loss(x0, generator=generator)

    loader = DataLoader(TensorDataset(X), 50)
    assert train(small(), loader, steps=2, loss=loss).recipe.batch_size == 50
    train(small(), loader, steps=2, loss=loss, recipe=Recipe(30))
    assert sizes == [50, 50, 30, 30]


def test_a_stream_goes_on_where_a_run_was_cut_short(tmp_path):
    def cut(event: Any) -> None:
        if (event.kind, event.step) == ("step", 3):
            raise KeyboardInterrupt

    whole, model = small(), small()
    expected = train(whole, Flow(), steps=6, seed=0, recipe=Recipe(70, accumulate=2))
    with pytest.raises(TrainingInterrupted):
        train(model, Flow(), steps=6, seed=0, recipe=Recipe(70, accumulate=2), out=tmp_path, callbacks=[cut])
    done = train(model, Flow(), steps=6, recipe=Recipe(70, accumulate=2), out=tmp_path, resume=True)
    assert done.losses == expected.losses
    assert torch.equal(weights(model), weights(whole))


def test_a_stream_of_batches_has_them_as_large_as_they_come():
    class Batches:
        """A sampler with batches of two sizes."""

        def __iter__(self) -> Any:
            yield from (range(20), range(20, 33))

        def __len__(self) -> int:
            return 2

    loader = DataLoader(TensorDataset(X), batch_sampler=Batches())
    done = train(small(), loader, steps=4, seed=0, recipe=Recipe(20, accumulate=3))
    assert all(map(math.isfinite, done.losses))


def test_conditions_that_have_no_rows_or_too_many_are_refused():
    def error(kind: Any, text: str, data: Any = X, **cond: Any) -> None:
        with pytest.raises(kind, match=text):
            train(small(classes=3), data, steps=1, **cond)

    error(ValueError, "condition 'label' has one row per sample, and 299 rows came for 300", label=LABELS[1:])
    error(TypeError, "Flow is a stream, whose rows have no numbers that condition 'label' could", Flow(), label=LABELS)
    error(ValueError, "condition 'label' is given twice, with the rows", TensorDataset(X, LABELS), label=LABELS)
    error(ValueError, "condition 'label' is given twice, by name and in cond", label=LABELS, cond={"label": LABELS})


class Told(nn.Module):
    """A network of one's own, which keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = nn.Linear(2, 2), list[Any]()

    def forward(self, x: Any, t: Any, /, **cond: Any) -> Any:
        self.seen.append((x, cond))
        return self.net(x)


def test_a_network_that_declares_nothing_is_told_the_rows_of_whatever_has_rows():
    net = Told()
    table, deep = torch.rand(300, 4), {"a": X.numpy(), "b": [f"row {i}" for i in range(300)]}
    train(
        Network(net, EDMSDE(0.01, 20.0), predict.data, shape=(2,)), X, steps=1, seed=0,
        loss=losses.DenoisingScoreMatching(lambda sde, u: 0.0 * u + sde.t_min), recipe=Recipe(8),
        obs=X, table=Shared(table), deep=deep, level=2.0, cond={"seed": X[:, 0], "t": 3},
    )  # fmt: skip
    x, cond = net.seen[0]
    rows = [int((X - row).abs().sum(1).argmin()) for row in x]
    assert torch.equal(cond["obs"], X[rows])
    assert torch.equal(cond["table"], table)
    assert torch.equal(cond["deep"]["a"], X[rows])
    assert cond["deep"]["b"] == [f"row {i}" for i in rows]
    assert cond["level"] == 2.0
    assert torch.equal(cond["seed"], X[rows, 0])
    assert cond["t"] == 3


# --- the door


def test_one_bad_label_among_many_rows_is_found_at_the_start():
    x, labels = torch.randn(20_000, 2), torch.zeros(20_000, dtype=torch.long)
    labels[13_579] = 3
    ways: list[tuple[Any, dict[str, Any]]] = [(x, {"label": labels}), (TensorDataset(x, labels), {})]
    for data, cond in ways:
        with pytest.raises(ValueError, match=r"label must lie in 0..2, got label\[13579\] = 3: correct") as caught:
            train(small(classes=3, label_drop=0.0), data, steps=1, **cond)
        assert "training" not in vars(caught.value)


def test_conditions_are_finite_but_for_what_a_net_takes_for_unknown():
    c = torch.randn(300, 2)
    c[4, 1] = math.nan
    assert len(train(small(context=2), X, steps=1, context=c).losses) == 1
    with pytest.raises(ValueError, match=r"condition 'obs' holds NaN or infinity in row 4 \(1 of 300\): clean the"):
        train(Network(Told(), EDMSDE(0.01, 20.0), predict.edm, shape=(2,)), X, steps=1, obs=c)
    c[4, 1] = math.inf
    with pytest.raises(ValueError, match=r"condition 'context' holds NaN or infinity in row 4"):
        train(small(context=2), X, steps=1, context=c)


def test_a_context_on_another_scale_is_told_by_its_column():
    c = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    c[:, 1] = 400 + 80 * c[:, 1]
    with pytest.warns(UserWarning, match=r"column 1 of condition 'context' has mean 40\d.* and standard dev.*stand"):
        train(small(context=2), X, steps=1, context=c)


def test_rows_are_looked_at_in_chunks(monkeypatch):
    monkeypatch.setattr("sde_diffusion.training.run.door.CHUNK", 14)
    x = X.clone()
    x[:, 1] = 5 + 3.5 * x[:, 1]
    with pytest.warns(
        UserWarning, match=r"column 1 of the data has mean 5 and standard dev.* 3.5, but .* \(x - 5\) / 3.5"
    ):
        train(small(), x, steps=1)
    x[[17, 250], 0] = math.nan
    with pytest.raises(ValueError, match=r"data holds NaN or infinity in row 17 \(1 of 7\)"):
        train(small(), x, steps=1)


# --- what a recipe asks for


def test_micro_batches_give_the_gradient_of_the_batch():
    def run(micro: int) -> torch.Tensor:
        model = small()
        train(model, X, steps=4, seed=0, recipe=Recipe(48, accumulate=micro))
        return weights(model)

    torch.testing.assert_close(run(4), run(1), rtol=0, atol=2e-5)


def test_any_optimiser_schedule_and_number_of_averages():
    """Plain gradient descent, clipped, against a loop of one's own."""
    rates: list[float] = []

    def schedule(i: int, steps: int) -> float:
        rates.append(1 / (i + 1))
        return rates[-1]

    recipe = Recipe(
        300, 0.1, optimiser=torch.optim.SGD, schedule=schedule, clip=0.05,
        averages=(PowerDecay(0.1), ConstantDecay(0.0)),
    )  # fmt: skip

    def loss(model: Any, x0: Any, *, generator: Any) -> Any:
        return model.net(x0, torch.zeros(len(x0))).square().mean() + model.net.leave.bias.sum()

    model, other = small(), small()
    done = train(model, X, steps=3, seed=0, loss=loss, recipe=recipe)
    for i in range(3):
        other.zero_grad()
        loss(other, X, generator=None).backward()
        norm = torch.cat([p.grad.flatten() for p in other.parameters() if p.grad is not None]).norm()
        with torch.no_grad():
            for p in other.parameters():
                if p.grad is not None:
                    p.sub_(p.grad * min(1.0, 0.05 / float(norm)), alpha=0.1 / (i + 1))
    torch.testing.assert_close(weights(model), weights(other), rtol=0, atol=1e-6)
    assert rates == [1, 1 / 2, 1 / 3]
    assert len(done.averages) == 2
    assert torch.equal(weights(done.averages[1]), weights(model))
    assert torch.equal(weights(done.model), weights(done.averages[0]))


def test_mixed_precision_trains_what_full_precision_does():
    def run(precision: str) -> tuple[Any, torch.Tensor]:
        model = small()
        done = train(model, X, steps=30, seed=0, recipe=Recipe(64, precision=precision))
        return done, weights(model)

    (full, a), (half, b) = run("no"), run("bf16")
    assert b.dtype == torch.float32
    assert full.losses != half.losses
    assert half.loss == pytest.approx(full.loss, rel=0.02)
    assert float((a - b).abs().max()) < 0.05
    with pytest.raises(ValueError, match="precision='fp16' needs a GPU, and the model is on the CPU: take 'bf16'"):
        run("fp16")


def test_a_recipe_out_of_range_is_refused():
    def error(kind: Any, text: str, **options: Any) -> None:
        with pytest.raises(kind, match=text):
            Recipe(**options)

    error(ValueError, "precision must be one of 'no', 'bf16', 'fp16', got 'fp8'", precision="fp8")
    error(ValueError, "accumulate must be at least 1", accumulate=0)
    error(ValueError, "clip must be positive", clip=0.0)
    error(ValueError, "averages is empty: wanted a decay, such as PowerDecay", averages=())
    error(TypeError, "averages must be a function of the step, such as PowerDecay", averages=(0.999,))
    error(TypeError, r"optimiser must be a function \(parameters, lr\) -> torch.optim.Optimizer", optimiser="adam")
    error(TypeError, r"schedule must be a function \(i, steps\) -> factor on lr", schedule=1.0)
    with pytest.raises(ValueError, match=r"batch_size 10 does not split into equal shares for 1 processes and accum"):
        train(small(), X, steps=1, recipe=Recipe(10, accumulate=3))
    with pytest.raises(TypeError, match=r"optimiser answered NoneType, wanted a torch.optim.Optimizer: is a ret"):
        train(small(), X, steps=1, recipe=Recipe(optimiser=lambda p, lr: None))  # type: ignore[arg-type,return-value]
    assert Recipe(clip=math.inf).clip == math.inf
    rates = {rows: Recipe().of_run(3000, rows).lr for rows in (None, 1437, 640, 378, 120)}
    assert rates == {None: 2e-3, 1437: 2e-3, 640: 1e-3, 378: 5.9e-4, 120: 5e-4}
    assert Recipe(lr=1e-3).of_run(3000, 10).lr == 1e-3
    text = "Recipe(batch_size=64, averages=(PowerDecay(sigma_rel=0.1),), accumulate=2)"
    assert repr(Recipe(64, averages=(PowerDecay(),), accumulate=2)) == text


def test_an_objective_with_parameters_is_trained_with_the_model():
    class Scaled(nn.Module):
        """A loss whose logarithm of a scale is learnt: log scale = log of the mean loss where it is least."""

        def __init__(self) -> None:
            super().__init__()
            self.log = nn.Parameter(torch.tensor(3.0))

        def forward(self, model: Any, x0: Any, *, generator: Any) -> Any:
            return 4.0 * (-self.log).exp() + self.log + 0 * model.loss(x0, generator=generator)

    loss = Scaled()
    train(small(), X, steps=200, seed=0, loss=loss, recipe=Recipe(8, 0.1))
    assert loss.log.item() == pytest.approx(math.log(4), abs=0.01)


def test_the_rows_of_batches_that_are_not_finite_are_named():
    calls: list[int] = []

    def transform(x: Any, generator: Any) -> Any:
        calls.append(1)
        return torch.where(x[:, :1] == X[7, 0], math.nan, x) if len(calls) > 1 else x

    with pytest.raises(SolverError, match=r"in steps 1 to 50, .* Not finite in the last batch were rows 7, 7 of the"):
        train(small(), X, steps=100, seed=0, recipe=Recipe(600, transform=transform))

    def loss(model: Any, x0: Any, *, generator: Any) -> Any:
        return model.loss(x0, generator=generator) * math.nan

    with pytest.raises(SolverError, match=r"In the last batch were rows (\d+, ){7}\d+ and 8 more of the data. The w"):
        train(small(), X, steps=100, seed=0, loss=loss, recipe=Recipe(16))


def test_states_come_back_from_json_as_they_were():
    import json

    shared = torch.rand(3)
    state = {
        "a": [1, 2.5, None, True, "x", math.inf], 3: (shared, shared), "t": torch.tensor(7),
        "deep": {"x": [{"y": torch.zeros(2, dtype=torch.bfloat16)}]}, "nan": -math.inf,
    }  # fmt: skip
    packed = Packed()
    about = json.loads(json.dumps(packed.add(state, "run"), allow_nan=False))
    found = unpacked(about, packed.tensors)
    assert found["a"] == state["a"]
    assert found[3][0] is found[3][1]
    assert torch.equal(found[3][0], shared)
    assert (int(found["t"]), found["nan"]) == (7, -math.inf)
    assert found["deep"]["x"][0]["y"].dtype == torch.bfloat16
    assert len(packed.tensors) == 3
    with pytest.raises(TypeError, match=r"run.0 holds ndarray, which is not saved: wanted numbers, words, tensors"):
        Packed().add([np.zeros(2)], "run")


def test_accelerate_is_left_as_it_was():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    mine = Accelerator(cpu=True, mixed_precision="bf16")
    train(small(), X, steps=1)
    assert mine.mixed_precision == "bf16"
    assert str(mine.device) == "cpu"
    AcceleratorState._reset_state(True)
    train(small(), X, steps=1, recipe=Recipe(precision="bf16"))
    assert AcceleratorState._shared_state == {}
