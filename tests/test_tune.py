"""A tuned sampler is closer to the flow than any standard one, says by how much, and asks no more than it says.

The pieces are held to what they are: least squares to `lstsq`, the choice of nodes to projections written out, the
columns of a refinement to derivatives by autograd, and a table with components to Gaussian data.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mixtures import mixture
from torch import Tensor, nn

from sde_diffusion import EDMSDE, VPSDE, FlowSDE, Network, SDESampler, predict
from sde_diffusion.denoiser.analytic import GaussianMixture
from sde_diffusion.denoiser.base import Wrapper
from sde_diffusion.denoiser.prediction import Prediction
from sde_diffusion.problem import Problem
from sde_diffusion.sde.base import GaussianSDE
from sde_diffusion.sde.grids import angle
from sde_diffusion.solvers import RK4, Angle
from sde_diffusion.tuning.candidates import Candidates
from sde_diffusion.tuning.fitting import least_squares as fitting
from sde_diffusion.tuning.fitting import reference as referencing
from sde_diffusion.tuning.fitting import refinement
from sde_diffusion.tuning.fitting.least_squares import Line, Program, per_component, principal_components, scalars
from sde_diffusion.tuning.fitting.nodes import RIDGE, Nodes
from sde_diffusion.tuning.fitting.reference import Asked, Reference, levels_between
from sde_diffusion.tuning.fitting.validation import to_data, to_flow
from sde_diffusion.tuning.made_for import TableWarning
from sde_diffusion.tuning.table import SolverTable
from sde_diffusion.tuning.tuned import Tuned
from sde_diffusion.tuning.tuner import tune

D = 2
MODEL = mixture(D)
PROBLEM = Problem(MODEL.sde, MODEL, (D,))


def noise(n: int, seed: int, d: int = D) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def flow(model: Any, x_T: Tensor, c: float = 0.7) -> Tensor:
    """The converged flow, by another solver than the library's reference, with the posterior mean at its end."""

    def grid(sde: GaussianSDE, steps: int) -> Tensor:
        return angle(sde, steps, power=2.0, data_std=c)

    sampler = SDESampler(model.sde, model, solver=Angle(RK4(), c), grid=grid, steps=150, shape=x_T.shape[1:])
    return sampler.sample(x_T=x_T)


def rms(x: Tensor, x0: Tensor) -> float:
    return float((x - x0).square().mean().sqrt() / x0.std())


def table_of(tuned: Tuned) -> SolverTable:
    (choice,) = tuned.choices.values()
    assert choice.table is not None
    return choice.table


def test_it_is_closer_to_the_flow_than_every_standard_sampler_on_noise_that_it_has_not_seen() -> None:
    tuned = tune(PROBLEM, nfe=[5, 8], batch=128)
    x_T = noise(512, 77)
    x0 = flow(MODEL, x_T)
    for nfe in (5, 8):
        ours = rms(tuned.sampler(nfe).sample(x_T=x_T), x0)
        default = rms(SDESampler(PROBLEM, nfe=nfe).sample(x_T=x_T), x0)
        print(nfe, ours, default)
        assert ours < 0.8 * default


def test_the_report_states_an_error_that_fresh_noise_confirms() -> None:
    tuned = tune(PROBLEM, nfe=6, batch=256)
    x_T = noise(1024, 78)
    error, uncertainty = to_flow(flow(MODEL, x_T))(tuned.sampler().sample(x_T=x_T))
    best = tuned.report.verdicts[0].winner
    print(error, uncertainty, best)
    assert abs(error - best.error) < 4 * math.hypot(uncertainty, best.uncertainty)


def test_the_winner_is_the_candidate_of_least_error_and_doubt() -> None:
    verdict = tune(PROBLEM, nfe=5, batch=64).report.verdicts[0]
    bounds = [c.error + c.uncertainty for c in verdict.candidates]
    assert bounds == sorted(bounds)
    assert verdict.standard is not None
    assert verdict.candidates[0].error <= verdict.standard.error + verdict.standard.uncertainty
    assert [c.name for c in verdict.fresh] == [verdict.candidates[0].name, "the default"]
    assert any(c.fitted for c in verdict.candidates)


class Elsewhere(Wrapper):
    """A model whose answers change with every call, so that nothing fitted to them holds."""

    _calls = 0

    def predict(self, x: Tensor, at: Any, **cond: object) -> Prediction:
        self._calls += 1
        data = self.inner.predict(x, at, **cond).data + 0.3 * math.sin(9.0 * self._calls)
        return Prediction(lambda: data, lambda: (x - at.alpha * data) / at.sigma)


def test_a_standard_sampler_is_returned_where_nothing_fitted_is_better() -> None:
    with pytest.warns(TableWarning, match="is itself off by"):
        tuned = tune(Problem(MODEL.sde, Elsewhere(MODEL), (D,)), nfe=5, batch=32, refine=False)
    verdict = tuned.report.verdicts[0]
    print(tuned.report)
    assert verdict.candidates[0].bound == min(c.bound for c in verdict.candidates)
    assert tuned.sampler().solver == tuned.solver


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), FlowSDE()], ids=repr)
def test_components_solve_gaussian_data_to_a_thousandth_at_three_evaluations(sde: GaussianSDE) -> None:
    turn = torch.linalg.qr(noise(4, 3, 4)).Q
    spread = turn @ torch.diag(torch.tensor([1.0, 0.5, 0.1, 0.02], dtype=torch.float64)) @ turn.T
    model = GaussianMixture(sde, torch.ones(1, dtype=torch.float64), noise(1, 4, 4), ((spread + spread.T) / 2)[None])
    problem = Problem(sde, model, (4,))
    tuned = tune(problem, nfe=3, batch=64)
    x_T = noise(64, 5, 4) * sde.levels([sde.t_max])[0].sigma
    assert rms(tuned.sampler().sample(x_T=x_T), flow(model, x_T)) < 1e-3


def test_scalars_are_the_least_squares_of_lstsq() -> None:
    features, target = noise(5 * 40, 6, 3).reshape(5, 40, 3), noise(40, 7, 3)
    found = scalars(features, target, robust=math.inf)
    wanted = torch.linalg.lstsq(features.flatten(1).T, target.flatten()[:, None]).solution[:, 0]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_components_are_the_least_squares_of_lstsq_in_each_component() -> None:
    features, target = noise(3 * 40, 8, 2).reshape(3, 40, 2), noise(40, 9, 2)
    weights, bias = per_component(features, target, robust=math.inf)
    for k in range(2):
        columns = torch.cat([features[:, :, k].T, torch.ones(40, 1, dtype=torch.float64)], dim=1)
        wanted = torch.linalg.lstsq(columns, target[:, k, None]).solution[:, 0]
        torch.testing.assert_close(torch.cat([weights[:, k], bias[k, None]]), wanted, rtol=1e-4, atol=1e-4)


def test_a_few_samples_far_off_do_not_rule_a_fit() -> None:
    features = noise(2 * 200, 10, 3).reshape(2, 200, 3)
    target = 0.7 * features[0] - 0.2 * features[1]
    target[:4] += 50.0
    wanted = torch.tensor([0.7, -0.2], dtype=torch.float64)
    torch.testing.assert_close(scalars(features, target, robust=1.5), wanted, rtol=0.02, atol=0.02)
    assert (scalars(features, target, robust=math.inf) - wanted).abs().max() > 0.05


@pytest.fixture(scope="module")
def reference() -> Reference:
    x_T = noise(64, 11)
    with torch.no_grad():
        return Reference(Asked(PROBLEM, {}, 64, 64, x_T), x_T, levels_between(VPSDE(), 40, 0.7))


def test_the_objective_of_nodes_is_what_projections_leave(reference: Reference) -> None:
    levels = MODEL.levels(reference.times)
    nodes = Nodes(reference.gram, levels, 0.7)
    chosen, w = [4, 13, 27], torch.linspace(0.1, 1.0, 41, dtype=torch.float64)
    with torch.no_grad():
        states = reference.states(range(40))
        answers = torch.stack([reference.ask(x, at) for x, at in zip(states, levels, strict=True)])
    wanted, known = 0.0, [reference.x_T]
    for i in range(4):
        target = states[chosen[i]] if i < 3 else reference.x0
        f = torch.stack([k.flatten() for k in known], dim=1)
        f = f / f.square().mean(0).sqrt()
        gram = f.T @ f / len(f) + RIDGE * torch.eye(f.shape[1], dtype=f.dtype)
        onto = f.T @ target.flatten() / len(f)
        left = target.square().mean() - onto @ torch.linalg.solve(gram, onto)
        wanted += float(left * w[chosen[i] if i < 3 else 40])
        known.append(answers[chosen[i]] if i < 3 else reference.x0)
    assert float(nodes.left(torch.tensor([chosen]), w)[0]) == pytest.approx(wanted, rel=1e-6)


def test_chosen_nodes_leave_no_more_than_any_grid_that_the_search_starts_from(reference: Reference) -> None:
    nodes = Nodes(reference.gram, MODEL.levels(reference.times), 0.7)
    (found,) = nodes.search(5, (0.3,))
    weight = 0.3 * 0.7**2 / (0.7**2 + nodes.ratio**2)
    w = torch.cat([weight, torch.ones(1, dtype=torch.float64)])
    tried = torch.tensor([found, *nodes._starts(5), [0, 10, 20, 30, 39]])
    left = nodes.left(tried, w)
    assert found == sorted(set(found))
    assert int(left.argmin()) == 0


def test_the_columns_of_a_refinement_are_derivatives_of_the_end() -> None:
    levels = MODEL.levels([1.0, 0.4, 0.1])
    x_T = noise(16, 12)
    rows = [[1.0], [0.6, 0.3], [0.3, 0.1, 0.6], [0.0, -0.1, 0.2, 0.9]]
    program = Program(levels, lines=[Line(torch.tensor(row, dtype=torch.float64)) for row in rows])

    def ask(x: Tensor, at: Any) -> Tensor:
        return MODEL.predict(x, at).data

    direction = torch.tensor([0.5, -0.7], dtype=torch.float64)

    def end(size: Tensor) -> Tensor:
        pushed = program.with_line(1, Line(program.lines[1].weights + size * direction))
        return pushed.roll(ask, x_T)[0][-1]

    zero = torch.zeros((), dtype=torch.float64)
    _, exact = torch.autograd.functional.jvp(end, zero, torch.ones_like(zero))
    states, answers = program.roll(ask, x_T)
    found = refinement._moved(program, ask, x_T, states, answers, (1, direction), 1e-5)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_reference_too_large_to_be_kept_gives_the_same_table(monkeypatch) -> None:
    kept = table_of(tune(PROBLEM, nfe=4, batch=32, refine=False))
    monkeypatch.setattr(referencing, "MOST_KEPT", 500)
    streamed = table_of(tune(PROBLEM, nfe=4, batch=32, refine=False))
    assert kept.times == streamed.times
    for a, b in zip(kept.rows, streamed.rows, strict=True):
        assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_table_and_another_seed_another() -> None:
    rows = [table_of(tune(PROBLEM, nfe=4, batch=32, seed=s, refine=False)).rows for s in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.slow
def test_two_seeds_of_calibration_agree_on_fresh_noise_within_15_percent_before_refinement() -> None:
    x_T = noise(4096, 79)
    score = to_flow(flow(MODEL, x_T))
    for nfe in (5, 8):
        # a refinement that gains 5 % with one seed and 4 % with another is kept once: without it the fits agree
        found = [tune(PROBLEM, nfe=nfe, seed=s, refine=False) for s in (0, 1)]
        errors = [score(tuned.sampler().sample(x_T=x_T)).error for tuned in found]
        print(nfe, errors)
        assert max(errors) < 1.15 * min(errors)


def test_sample_i_depends_on_seed_i_alone() -> None:
    sampler = tune(PROBLEM, nfe=4, batch=32).sampler()
    assert torch.equal(sampler.sample(6, seed=0)[4:5], sampler.sample(1, seed=4))


class Counted(Wrapper):
    """Counts the samples that it is asked about."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._asked = 0

    def predict(self, x: Tensor, at: Any, **cond: object) -> Prediction:
        self._asked += len(x)
        return self.inner.predict(x, at, **cond)


def test_the_report_counts_every_evaluation() -> None:
    model = Counted(MODEL)
    tuned = tune(Problem(MODEL.sde, model, (D,)), nfe=[3, 4], batch=32)
    assert tuned.report.evaluations == model._asked
    assert tuned.report.calls == -(-model._asked // 32)
    assert f"{model._asked:,} evaluations" in str(tuned.report)


class Guided(Wrapper):
    """Classifier-free guidance of the plainest kind, towards label 1, from label 0."""

    def __init__(self, inner: Any, w: float) -> None:
        super().__init__(inner)
        self.w, self.cost = w, 2

    def predict(self, x: Tensor, at: Any, **cond: object) -> Prediction:
        off, on = (self.inner.predict(x, at, label=torch.full((len(x),), k)).data for k in (0, 1))
        data = off + self.w * (on - off)
        return Prediction(lambda: data, lambda: (x - at.alpha * data) / at.sigma)


def labelled(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """Data of two classes of one width: the velocity of the flow."""
    mean = torch.where(label[:, None] == 1, 1.0, -1.0) * torch.ones_like(x)
    a, s = 1 - t[:, None], t[:, None]
    data = mean + 0.09 * a / (0.09 * a * a + s * s) * (x - a * mean)
    return (x - data) / s


def test_conditions_reach_the_model_row_by_row_and_guidance_counts_its_cost() -> None:
    sde = FlowSDE()
    net = Network(labelled, sde, predict.velocity, shape=(D,))
    label = torch.arange(32) % 2
    tuned = tune(Problem(sde, net), nfe=3, batch=32, conditions={"label": label}, refine=False)
    x = tuned.sampler().sample(64, seed=0, label=torch.arange(64) % 2)
    assert float(x[1::2].mean()) == pytest.approx(1.0, abs=4 * 0.3 / 8)
    guided = tune(Problem(sde, Guided(net, 2.0)), nfe=6, batch=32, refine=False)
    assert guided.report.evaluations % 2 == 0
    assert table_of(guided).nfe == 3


def test_a_window_keeps_no_more_answers_than_it_says() -> None:
    tuned = tune(PROBLEM, nfe=6, batch=64, window=2, refine=False)
    table = table_of(tuned)
    assert table.window == 2
    assert max(len(row) for row in table.rows) == 3


@pytest.mark.slow
def test_the_energy_objective_picks_whom_the_data_are_closest_to() -> None:
    data = flow(MODEL, noise(512, 80))
    report = tune(PROBLEM, nfe=5, batch=128, objective="energy", data=data, refine=False).report
    assert report.objective == "energy"
    assert "energy distance to the data" in str(report)
    score = to_data(data)
    assert score(data + 1.0).error > score(flow(MODEL, noise(512, 81))).error + 0.1


def test_a_report_prints_and_draws_what_was_tried(tmp_path) -> None:
    report = tune(PROBLEM, nfe=[3, 5], batch=32, refine=False).report
    text = str(report)
    assert "3 evaluations: " in text
    assert "has won" in text
    assert report.verdicts[0].standard is not None
    assert report.verdicts[0].standard.name in text
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_the_energy_decides_among_the_others_where_the_default_fails(monkeypatch) -> None:
    drawn = Candidates._drawn
    monkeypatch.setattr(Candidates, "_drawn", lambda s, m, x: None if m.grid_is_default else drawn(s, m, x))
    data = flow(MODEL, noise(64, 83))
    verdict = tune(PROBLEM, nfe=4, batch=32, objective="energy", data=data, refine=False).report.verdicts[0]
    assert verdict.default is None
    assert not any(c.name.startswith("the default") for c in verdict.candidates)


def test_a_progress_bar_is_shown_on_request(capsys) -> None:
    tune(PROBLEM, nfe=3, batch=32, refine=False, progress=True)
    assert "tuning" in capsys.readouterr().err


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"nfe": 1}, ValueError, "nfe must be at least 2, got 1"),
    ({"nfe": []}, ValueError, "names no budget"),
    ({"nfe": [5, 5]}, ValueError, "names a budget twice"),
    ({"nfe": 2.5}, TypeError, "nfe must be"),
    ({"nfe": "8"}, TypeError, "nfe must be"),
    ({"batch": 8}, ValueError, "take batch=4"),
    ({"batch": 0}, ValueError, "batch must be at least 1"),
    ({"objective": "fid"}, ValueError, "objective must be 'ode' or 'energy', got 'fid'"),
    ({"objective": "energy"}, ValueError, "needs data="),
    ({"objective": "energy", "data": torch.zeros(3, D)}, ValueError, r"needs data=.*got \(3, 2\)"),
    ({"objective": "energy", "data": torch.zeros(64, 3)}, ValueError, r"event shape \(3,\)"),
    ({"data": torch.zeros(4, D)}, ValueError, "data= is for objective='energy'"),
    ({"window": 0}, ValueError, "window must be at least 1"),
    ({"seed": "a"}, TypeError, "seed must be an integer"),
    ({"conditions": [1]}, TypeError, "conditions must be"),
    ({"refine": 1}, TypeError, "refine must be"),
]


@pytest.mark.parametrize(("options", "error", "text"), REFUSED, ids=[str(o[0]) for o in REFUSED])
def test_bad_options_are_refused_before_the_model_is_asked(options, error, text) -> None:
    model = Counted(MODEL)
    with pytest.raises(error, match=text):
        tune(Problem(MODEL.sde, model, (D,)), **options)
    assert model._asked == 0


def test_a_model_in_training_mode_is_refused() -> None:
    net = Network(nn.Linear(2, 2), VPSDE(), predict.noise, shape=(2,))
    with pytest.raises(ValueError, match=r"training mode.*call model\.eval\(\) first"):
        tune(VPSDE(), net)


def test_a_general_process_a_bare_shape_and_two_models_are_refused() -> None:
    import zoo

    with pytest.raises(TypeError, match="DoubleWell is a general SDE"):
        tune(zoo.DoubleWell(), lambda x, t: -x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="event shape is not known"):
        tune(VPSDE(), Network(lambda x, t: x, VPSDE(), predict.noise))
    with pytest.raises(TypeError, match="leave out model"):
        tune(PROBLEM, MODEL)
    with pytest.raises(TypeError, match="tune takes a process and a model"):
        tune(VPSDE())


def test_nan_in_calibration_names_the_sample_and_the_level() -> None:
    def broken(x: Tensor, t: Tensor) -> Tensor:
        out = x.clone()
        out[3] = torch.where(t[3] < 0.5, torch.nan, out[3])
        return out

    model = Network(broken, VPSDE(), predict.noise, shape=(D,))
    with pytest.raises(RuntimeError, match=r"NaN or inf at noise level sigma/alpha = .* in the calibration, in row 3"):
        tune(VPSDE(), model, batch=64)


def test_conditions_of_another_length_are_refused() -> None:
    net = Network(labelled, FlowSDE(), predict.velocity, shape=(D,))
    with pytest.raises((ValueError, RuntimeError), match="label"):
        tune(Problem(FlowSDE(), net), batch=64, conditions={"label": torch.zeros(7, dtype=torch.long)})


def test_principal_components_are_orthonormal_and_lead_with_the_widest() -> None:
    x = noise(200, 13, 5) * torch.tensor([0.1, 3.0, 1.0, 0.2, 2.0], dtype=torch.float64)
    u = principal_components(x)
    torch.testing.assert_close(u.T @ u, torch.eye(5, dtype=torch.float64))
    assert int(u[:, 0].abs().argmax()) == 1
    assert u.shape[1] <= fitting.MOST_COMPONENTS


def test_events_that_are_numbers_and_models_that_answer_a_constant_are_tuned() -> None:
    number = Network(lambda x, t: 0.7 * x + 0.3 * torch.tanh(3 * x), VPSDE(), predict.noise, shape=())
    assert tune(VPSDE(), number, nfe=3, batch=64, refine=False).sampler().sample(5, seed=0).shape == (5,)
    constant = Network(lambda x, t: torch.full_like(x, 0.5), VPSDE(), predict.data, shape=(2,))
    x = tune(VPSDE(), constant, nfe=3, batch=32, refine=False).sampler().sample(5, seed=0)
    torch.testing.assert_close(x, torch.full_like(x, 0.5), atol=1e-4, rtol=0.0)


def test_a_flow_that_does_not_converge_is_told_of() -> None:
    model = Network(lambda x, t: x + 0.5 * torch.sin(1e4 * t)[:, None], VPSDE(), predict.noise, shape=(2,))
    with pytest.warns(TableWarning, match="is itself off by"):
        tune(VPSDE(), model, nfe=3, batch=32, refine=False)


def test_a_model_of_several_classes_tuned_without_a_label_is_told_of() -> None:
    from sde_diffusion.nets import MLP

    model = Network(MLP(2, hidden=8, layers=1, classes=3), VPSDE(), predict.edm, shape=(2,)).eval()
    with pytest.warns(TableWarning, match="knows 3 classes and is tuned without a label"):
        tune(VPSDE(), model, nfe=3, batch=32, refine=False)


def test_a_model_trained_on_is_told_of_by_the_next_sampler() -> None:
    net = nn.Linear(2, 2)
    model = Network(lambda x, t: net(x), VPSDE(), predict.edm, shape=(2,), clock="time")
    model.inside = net
    model.eval()
    tuned = tune(VPSDE(), model, nfe=3, batch=32, refine=False)
    tuned.sampler().sample(2, seed=0)
    with torch.no_grad():
        net.weight += 1.0
    assert table_of(tuned).nfe == 3
    with pytest.warns(TableWarning, match="are not those that the table was made for"):
        tuned.sampler()


def test_the_energy_of_few_samples_leaves_the_default_unless_another_is_clearly_closer() -> None:
    data = flow(MODEL, noise(32, 82))
    verdict = tune(PROBLEM, nfe=5, batch=32, objective="energy", data=data, refine=False).report.verdicts[0]
    best, default = verdict.candidates[0], next(c for c in verdict.candidates if c.name.startswith("the default"))
    assert best is default or best.bound < default.error
