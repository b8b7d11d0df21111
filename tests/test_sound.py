"""What a run is handed is held to what it has to be, at the door or as it is used; lost weights are told of."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from sde_diffusion import EDMSDE, Network, SDESampler, predict
from sde_diffusion._checks import SolverError
from sde_diffusion.data import Quantile, Standardise, source_of, split
from sde_diffusion.data.faults.columns import Columns
from sde_diffusion.nets import MLP
from sde_diffusion.sampler.watch import Previews
from sde_diffusion.training import Recipe, Saving, StopTraining, Validation, load_checkpoint, train

X = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))


def small(**net: Any) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network(MLP(2, hidden=8, layers=1, **net), EDMSDE(0.01, 20.0), predict.edm, shape=(2,))


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def at_step(value: Any, step: int = 4) -> Recipe:
    return Recipe(lr=1e-3, schedule=lambda i, steps: value if i == step else 1.0)


# --- what the recipe answers


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (math.nan, ValueError, r"schedule\(4, 6\) answered nan as the factor of step 5, wanted a finite one, >= 0"),
        (math.inf, ValueError, r"schedule\(4, 6\) answered inf"),
        (-0.5, ValueError, r"schedule\(4, 6\) answered -0.5"),
        (None, TypeError, r"schedule\(4, 6\) answered None, wanted a factor .* is a return missing"),
        ("1", TypeError, r"schedule\(4, 6\) must be a number, got '1'"),
    ],
)
def test_the_factor_of_each_step_is_looked_at_before_the_weights_are_moved_by_it(value, error, text, tmp_path):
    model = small()
    with pytest.raises(error, match=text) as e:
        train(model, X, steps=6, recipe=at_step(value), seed=0, out=tmp_path)
    found: Any = e.value
    assert len(found.training.losses) == 4
    assert torch.isfinite(weights(load_checkpoint(tmp_path).model)).all()
    done = train(small(), X, steps=6, recipe=at_step(1.0), seed=0, out=tmp_path, resume=True)
    assert torch.equal(weights(done.model), weights(train(small(), X, steps=6, recipe=at_step(1.0), seed=0).model)), (
        "the run goes on where the schedule failed"
    )


def test_a_factor_may_be_a_number_of_any_kind():
    for one in (torch.tensor(1.0), np.float32(1), 1):
        train(small(), X, steps=1, recipe=at_step(one, 0), seed=0)


@pytest.mark.parametrize(
    ("optimiser", "text"),
    [
        (lambda p, lr: torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=lr), "holds 1 parameters of 1 that"),
        (lambda p, lr: torch.optim.Adam(p[:3], lr=lr), r"holds 3 of the \d+ parameters that it was called with"),
    ],
)
def test_an_optimiser_holds_the_parameters_it_was_made_for(optimiser, text):
    with pytest.raises(ValueError, match=text):
        train(small(), X, steps=1, recipe=Recipe(optimiser=optimiser))


@pytest.mark.parametrize(
    ("transform", "error", "text"),
    [
        (lambda rows: rows, TypeError, r"called as transform\(rows, generator\), and takes not both"),
        (lambda rows, g: None, TypeError, "transform answered NoneType, wanted a tensor: is a return missing"),
        (lambda rows, g: rows.numpy(), TypeError, "transform answered ndarray, wanted a tensor: torch.as_tensor"),
        (lambda rows, g: rows[:5], ValueError, "transform answered 5 rows for 300: it changes rows, one for one"),
        (lambda rows, g: rows.sum(), ValueError, "transform answered no rows for 300"),
    ],
)
def test_a_transform_answers_a_row_for_each_row(transform, error, text):
    """Fewer rows would be told the conditions of others where a batch is made of several blocks."""
    with pytest.raises(error, match=text):
        train(small(), X, steps=1, recipe=Recipe(transform=transform))


def test_a_transform_is_held_to_its_rows_in_every_batch():
    calls: list[int] = []

    def transform(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        calls.append(len(rows))
        return rows if len(calls) < 3 else rows[1:]

    with pytest.raises(ValueError, match="transform answered 63 rows for 64"):
        train(small(), X, steps=5, recipe=Recipe(64, transform=transform))


def test_an_error_inside_a_transform_is_its_own():
    def transform(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return rows + None  # type: ignore[operator]  # the error that is wanted

    with pytest.raises(TypeError, match="unsupported operand"):
        train(small(), X, steps=1, recipe=Recipe(transform=transform))


# --- what train is handed


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"callbacks": print}, TypeError, r"callbacks must be a list .*: put it into a list, \[callback\]"),
        ({"callbacks": [3]}, TypeError, "callbacks must be a list of functions .*, got 3 at place 0"),
        ({"callbacks": 3}, TypeError, "callbacks must be a list .*, got int"),
        ({"callbacks": [StopTraining]}, TypeError, "got <class .*StopTraining.* at place 0"),
    ],
)
def test_what_cannot_be_called_is_refused_before_the_first_step(given, error, text):
    with pytest.raises(error, match=text):
        train(small(), X, steps=1, **given)


def test_a_saving_has_a_folder_and_scalings():
    path: Any = None
    with pytest.raises(TypeError, match="Saving keeps a run in a folder, got None as its path: to keep none"):
        Saving(path)
    wrong: Any = {"context": 2.0}
    with pytest.raises(TypeError, match=r"the scaling of 'context' must be one such as Standardise.of"):
        Saving("run", conditions=wrong)


def test_what_has_no_rows_to_take_or_hides_some_is_refused():
    with pytest.raises(TypeError, match=r"the data: a tensor of layout torch.sparse_coo.*: .to_dense\(\) it"):
        train(small(), X.to_sparse(), steps=1)
    hidden = np.ma.masked_array(X.numpy(), mask=X.numpy() > 2)
    with pytest.raises(ValueError, match=r"the data: \d+ of 600 entries are masked, that at \["):
        train(small(), hidden, steps=1)
    with pytest.raises(ValueError, match=r"the conditions: \d+ of 600"):
        train(small(context=2), X, steps=1, context=hidden)
    train(small(), np.ma.masked_array(X.numpy()), steps=1)  # which hides none


# --- what is held out

K = torch.arange(300) % 3


@pytest.mark.parametrize(("factor", "shift"), [(1000, 5), (0.01, 0), (1, 9)])
def test_rows_to_validate_on_are_in_the_units_of_the_others(factor, shift):
    held = torch.randn(80, 2, generator=torch.Generator().manual_seed(1))
    with pytest.warns(
        UserWarning, match=r"column [01] of val has mean .* that of the data .* scale val as the data are scaled"
    ):
        train(small(), X, steps=1, val=held * factor + torch.tensor([0, shift]))
    train(small(), X, steps=1, val=held)


@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_few_rows_are_not_told_to_be_in_other_units_by_chance(n):
    draw = torch.Generator().manual_seed(2)
    for _ in range(10):
        few = torch.randn(n, 12, generator=draw)
        columns = Columns()
        columns.add(torch.randn(30, 12, generator=draw))
        other = Columns(columns)
        other.add(few)
        assert other.strange() is None


def test_a_heavy_tail_is_not_another_unit():
    draw = np.random.default_rng(0)
    columns = Columns()
    columns.add(torch.from_numpy(draw.standard_cauchy((2000, 8))))
    other = Columns(columns)
    other.add(torch.from_numpy(draw.standard_cauchy((200, 8))))
    assert other.strange() is None


def test_rows_to_validate_on_have_the_conditions_of_the_others():
    with pytest.raises(ValueError, match=r"val comes without 'label', .* val=Validation\(rows, label=...\)"):
        train(small(classes=3), X, label=K, steps=1, val=X[:64] + 0.01)
    with (
        pytest.raises(ValueError, match="val comes with 'label', which the rows trained on have not: leave it out"),
        pytest.warns(UserWarning, match="no label came"),
    ):
        train(small(classes=3), X, steps=1, val=Validation(X[:64] + 0.01, label=K[:64]))
    train(small(classes=3), X, label=K, steps=1, val=Validation(X[:64] + 0.01, label=K[:64]))
    train(small(classes=3), X, label=1, steps=1, val=Validation(X[:64] + 0.01))  # one for all, and no row of the data


# --- conditions that carry nothing


def test_conditions_that_carry_nothing_are_told_of():
    with pytest.warns(UserWarning, match="column 0 .and 1 more. of condition 'context' is NaN in all rows, not known"):
        train(small(context=2), X, context=torch.full((300, 2), math.nan), steps=1)
    with pytest.warns(UserWarning, match="the net was built with classes=3, and no label came: it learns none of them"):
        train(small(classes=3), X, steps=1)


# --- what was told before


@pytest.mark.parametrize("left", [0, 5, None])
def test_a_record_that_ends_before_its_run_did_is_told_of(left, tmp_path):
    train(small(), X, steps=10, seed=0, out=tmp_path)
    file = tmp_path / "metrics.jsonl"
    if left is None:
        file.unlink()
    else:
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:left]))
    ends = "ends after step 5" if left else "ends before the first step"
    with pytest.warns(UserWarning, match=rf"metrics.jsonl {ends}, and 10 steps were done: .* is lost"):
        train(small(), X, steps=10, seed=0, out=tmp_path, resume=True)


def test_rows_say_what_they_are():
    rows, held_out = split(X, 0.1)
    assert repr(rows) == "Rows(270 rows of (2,))"
    assert repr(source_of(X, {"label": K})) == "Rows(300 rows of (2,), with label)"
    assert repr(held_out) == "Rows(30 rows of (2,))"
    assert re.fullmatch(r"by \d+ quantiles(, -\S+ to \S+ around \S+){2}", str(Quantile.of(X)))


# --- arguments of others


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"scaling": Standardise.of(X)}, r"scaling= is a scaling, .* goes into out=Saving\(folder, scaling=scaling"),
        ({"conditions": {"context": Standardise.of(X)}}, r"conditions= is a scaling, .* out=Saving\("),
        ({"of": Standardise.of(X)}, "of= is a scaling, and would go to the network as a condition"),
        ({"extra": {"a": 1}}, r"extra= is no argument here: write out=Saving\(folder, extra=...\)"),
        ({"lr": 1e-3}, r"lr= is no argument here: write recipe=Recipe\(lr=...\)"),
        ({"batch_size": 64}, r"batch_size= is no argument here: write recipe=Recipe\(batch_size=...\)"),
        ({"patience": 3}, r"patience= is no argument here: write val=Validation\(rows, patience=...\)"),
    ],
)
def test_what_belongs_to_another_argument_is_not_taken_for_a_condition(given, text):
    with pytest.raises(TypeError, match=text):
        train(small(), X, steps=1, **given)


class Told(torch.nn.Module):
    """A network that wants a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, t: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([x, depth], 1))


def test_a_network_that_is_not_told_what_it_wants_says_what():
    model = Network(Told(), EDMSDE(0.01, 20.0), predict.edm, shape=(2,))
    with pytest.raises(TypeError, match=r"the network asks for depth, and was called as net\(x, time\) .* depth="):
        SDESampler(model.sde, model).sample(2, seed=0)
    train(model, X, steps=1, depth=X[:, :1])


def test_previews_are_in_the_units_that_the_run_is_kept_with(tmp_path):
    scaling = Standardise(torch.tensor([100.0, -5.0]), torch.tensor([2.0, 3.0]))
    for name, undo in (("kept", None), ("own", lambda x: x)):
        previews = Previews(tmp_path / name, every=2, n=4, undo=undo)
        saving = Saving(tmp_path / f"{name}_run", scaling=scaling)
        train(small(), X, steps=2, seed=0, out=saving, callbacks=[previews])
    found = [torch.from_numpy(np.load(tmp_path / name / "step_000002.npy")) for name in ("kept", "own")]
    torch.testing.assert_close(found[0], scaling.undo(found[1]))


# --- weights


def spoil(step: int) -> Any:
    def callback(event: Any) -> None:
        if event.kind == "step" and event.step == step:
            with torch.no_grad():
                event.training.averages[0].net.leave.bias.fill_(math.nan)

    return callback


class Spoiled(torch.optim.SGD):
    """An optimiser whose sixth step loses a weight."""

    steps = 0

    def step(self, *args: Any) -> None:  # type: ignore[override]  # without a closure
        super().step(*args)
        self.steps += 1
        if self.steps == 6:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[3] = math.inf


def losing(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return Spoiled(parameters, lr)


@pytest.mark.parametrize("steps", [6, 30])
def test_weights_that_are_lost_end_the_run_and_what_was_saved_before_is_whole(steps, tmp_path):
    with pytest.raises(
        SolverError,
        match=r"the weights are not finite after one of the steps 5 to 6, net\..* for one, .* the learning rate is "
        r"\S+; lower lr, .*; .* holds the run up to step 4, and its weights then are whole",
    ):
        train(small(), X, steps=steps, recipe=Recipe(optimiser=losing), seed=0, out=Saving(tmp_path, every=4))
    loaded = load_checkpoint(tmp_path)
    assert loaded.extra["steps"] == 4
    assert torch.isfinite(weights(loaded.model)).all()
    assert json.loads((tmp_path / "state.json").read_text())["config"]["steps"] == str(steps)


def test_an_average_that_is_lost_is_not_returned():
    with pytest.raises(SolverError, match=r"not finite after one of the steps 1 to 5, net.leave.bias .* nothing was"):
        train(small(), X, steps=5, seed=0, callbacks=[spoil(3)])
    with pytest.raises(SolverError, match="one of the steps 1 to 20"):
        train(small(), X, steps=40, seed=0, val=X + 0.01, callbacks=[spoil(3)])


def test_a_model_of_lost_weights_is_refused():
    model = small()
    with torch.no_grad():
        model.net.leave.bias[1] = math.nan
    with pytest.raises(ValueError, match=r"weights of the model are not finite before the first step, net.leave.bias"):
        train(model, X, steps=1)


def test_large_weights_are_finite():
    """Their norm overflows, which is no cause to end a run."""
    model = small()
    with torch.no_grad():
        model.net.leave.bias.fill_(1e38)
    recipe = Recipe(optimiser=torch.optim.SGD, lr=1e-30)
    train(model, X, steps=1, loss=lambda model, x, generator: model.net(x, torch.zeros(len(x))).mean(), recipe=recipe)
