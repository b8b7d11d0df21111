"""Claim: what a network does to its input, and where it puts its answers, changes no sample of any solver."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
import zoo
from torch import Tensor, nn

from sde_diffusion import EDMSDE, VPSDE, Denoiser, Network, Prediction, SDESampler, SolverError, losses, predict
from sde_diffusion.likelihood import Method, log_prob
from sde_diffusion.sde import Level
from sde_diffusion.solvers import DDIM, RK4, Angle, DPMSolver, DPMSolverPP, Euler, EulerMaruyama, Heun, Solver, UniPC

VP = VPSDE()
X_T = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Net = Callable[..., Tensor]


class Pendulum(zoo.DoubleWell):
    """A general SDE whose reverse does not explode."""

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return -x.sin()


def clean(x: Tensor, t: Tensor) -> Tensor:
    return (x.clamp(-1.0, 1.0) * (1 + t[:, None])).sin()


def writing(x: Tensor, t: Tensor) -> Tensor:
    return (x.clamp_(-1.0, 1.0) * t.add_(1)[:, None]).sin()


class Buffered:
    """Answers in `n` places in turn, from call `start` on; before in tensors of their own."""

    def __init__(self, n: int = 1, start: int = 0) -> None:
        self.places, self.start, self.calls = torch.zeros(n, 64, 2, dtype=torch.float64), start, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        place = self.places[self.calls % len(self.places), : len(x)]
        self.calls += 1
        return place.copy_(clean(x, t)) if self.calls > self.start else clean(x, t)


def sampler(net: Net, solver: Solver, sde: object = VP) -> SDESampler:
    """On a Gaussian process or on a general SDE; on both the state reaches the network as it is."""
    if sde is not VP:
        return SDESampler(Pendulum(), lambda x, t: -net(x, t), solver=solver, steps=6, shape=(2,))
    model = Network(net, VP, predict.noise, shape=(2,))
    return SDESampler(VP, model, solver=solver, grid=zoo.grid(VP, solver, 6))


def drawn(net: Net, solver: Solver, sde: object = VP) -> Tensor:
    return sampler(net, solver, sde).sample(x_T=0.5 * X_T, seed=0)


GENERAL = [s for s in zoo.SOLVERS if s.facts.needs.__name__ in ("ODE", "ReverseSDE") and not isinstance(s, Angle)]
NETS: dict[str, Callable[[], Net]] = {
    "writes into its input": lambda: writing,
    "answers in one buffer": lambda: Buffered(1),
    "answers in two in turn": lambda: Buffered(2),
    "answers in three in turn": lambda: Buffered(3),
    "answers in one buffer after two calls": lambda: Buffered(1, start=2),
}


def repeats(solver: Solver) -> int:
    return 1 if solver.facts.evaluations is None else 2  # an adaptive one learns all there is in its many calls


@pytest.mark.parametrize("solver", zoo.quick(zoo.SOLVERS), ids=zoo.name)
def test_every_solver_gives_bit_for_bit_what_it_gives_on_the_clean_network(solver: Solver) -> None:
    wanted = drawn(clean, solver)
    for name, make in NETS.items():
        ready = sampler(make(), solver)
        for _ in range(repeats(solver)):  # once its habits are not known, once they are
            assert torch.equal(ready.sample(x_T=0.5 * X_T, seed=0), wanted), name


@pytest.mark.parametrize("solver", zoo.quick(GENERAL), ids=zoo.name)
def test_so_does_every_solver_of_a_general_sde_with_its_bare_score(solver: Solver) -> None:
    wanted = drawn(clean, solver, None)
    for name, make in NETS.items():
        ready = sampler(make(), solver, None)
        for _ in range(repeats(solver)):
            assert torch.equal(ready.sample(x_T=0.5 * X_T, seed=0), wanted), name


@pytest.mark.parametrize("solver", zoo.quick(zoo.SOLVERS), ids=zoo.name)
def test_a_network_that_takes_to_a_buffer_late_gives_an_error_or_the_sample(solver: Solver) -> None:
    wanted, ready, errors = drawn(clean, solver), sampler(Buffered(1, start=6), solver), 0
    for _ in range(repeats(solver)):
        with suppress(SolverError):
            errors += 1
            x = ready.sample(x_T=0.5 * X_T, seed=0)
            errors -= 1
            assert torch.equal(x, wanted)
    assert errors <= 1  # started again it gives the sample


def test_the_solvers_that_remember_answers_are_the_ones_that_a_late_buffer_stops() -> None:
    for solver, stopped in ((DPMSolver(3), True), (UniPC(3), False), (Euler(), False), (Heun(), False)):
        ready = sampler(Buffered(1, 5), solver)
        if not stopped:
            ready.sample(x_T=0.5 * X_T, seed=0)
            continue
        with pytest.raises(SolverError, match="start again, its answers are copied from here on"):
            ready.sample(x_T=0.5 * X_T, seed=0)
        assert torch.equal(ready.sample(x_T=0.5 * X_T, seed=0), drawn(clean, solver))


def test_a_network_that_takes_to_writing_late_is_an_error_once() -> None:
    calls = 0

    def net(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return writing(x, t) if calls > 6 else clean(x, t)

    ready = sampler(net, DPMSolverPP(2))
    with pytest.raises(SolverError, match=r"has written into the state .* take the operation in place out of it"):
        ready.sample(x_T=0.5 * X_T, seed=0)
    assert torch.equal(ready.sample(x_T=0.5 * X_T, seed=0), drawn(clean, DPMSolverPP(2)))


@pytest.mark.parametrize("make", [*NETS.values(), lambda: clean], ids=[*NETS, "clean"])
def test_the_state_and_the_conditions_of_a_direct_call_stay_as_they_are(make: Callable[[], Net]) -> None:
    net = make()

    def conditional(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        y.mul_(2)
        return net(x, t) + y

    for kind in (predict.noise, predict.EDM(0.5)):
        model = Network(conditional, VP, kind, shape=(2,))
        wanted = Network(lambda x, t, y: clean(x, t) + 2 * y, VP, kind, shape=(2,))
        x, t, y = 2 * X_T, torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
        for _ in range(6):
            before = [v.clone() for v in (x, t, y)]
            first, score = model(x, t, y=y), model.score(x, t, y=y)
            assert all(torch.equal(a, b) for a, b in zip((x, t, y), before, strict=True))
            assert torch.equal(first.data, wanted(x, t, y=y).data)
            assert torch.equal(score, wanted.score(x, t, y=y))


@pytest.mark.parametrize("t", [0.3, torch.tensor(0.3), torch.full((3,), 0.3)], ids=["float", "()", "(B,)"])
def test_the_time_of_a_direct_call_may_be_written_to_in_whatever_form_it_came(t: float | Tensor) -> None:
    found, wanted = (Network(net, VP, predict.noise, shape=(2,))(X_T, t).noise for net in (writing, clean))
    assert torch.equal(found, wanted)


def test_a_solve_in_inference_mode_is_the_same_for_every_network() -> None:
    for solver in (DPMSolver(3), DPMSolverPP(2), Heun()):
        wanted = drawn(clean, solver)
        for make in NETS.values():
            with torch.inference_mode():
                assert torch.equal(sampler(make(), solver).sample(x_T=0.5 * X_T, seed=0), wanted)


def test_the_gradient_of_a_loss_is_that_of_the_clean_network() -> None:
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.ReLU(inplace=inplace), nn.Linear(2, 2).double())

        class Told(nn.Module):
            def __init__(self, layers: nn.Module) -> None:
                super().__init__()
                self.layers = layers

            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                out: Tensor = self.layers(x)
                return out

        model = Network(Told(net), VP, predict.noise)
        loss = torch.zeros(())
        for _ in range(6):
            loss = losses.denoising_score_matching(model, X_T, generator=torch.Generator().manual_seed(0))
        loss.backward()
        found.append((float(loss.detach()), model.net.layers[1].weight.grad))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", NETS)
def test_a_likelihood_is_that_of_the_clean_network(name: str) -> None:
    wanted = log_prob(sampler(clean, Heun()), X_T, method=Method(RK4(), steps=4))
    found = log_prob(sampler(NETS[name](), Heun()), X_T, method=Method(RK4(), steps=4))
    assert torch.equal(found.value, wanted.value) or "buffer" in name or "turn" in name  # a buffer has no graph
    torch.testing.assert_close(found.value, wanted.value, rtol=1e-12, atol=1e-12)


class Own(Denoiser):
    """A denoiser of one's own, which works on its state in place."""

    def __init__(self) -> None:
        super().__init__()
        self.sde, self.shape = VP, (2,)

    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        x = x.clamp_(-1.0, 1.0)
        return Prediction(lambda: x, (x * 2).sin)


class Tidy(Own):
    def predict(self, x: Tensor, at: Level, **cond: object) -> Prediction:
        return super().predict(x.clone(), at)


@pytest.mark.parametrize("solver", zoo.quick([s for s in zoo.SOLVERS if not s.facts.stochastic]), ids=zoo.name)
def test_a_denoiser_of_ones_own_may_write_into_its_state(solver: Solver) -> None:
    made = [SDESampler(VP, m, solver=solver, grid=zoo.grid(VP, solver, 6)) for m in (Tidy(), Own())]
    wanted, found = (s.sample(x_T=2 * X_T, seed=0) for s in made)
    assert torch.equal(found, wanted)


def test_a_network_that_answers_its_input_or_a_constant_is_no_fault() -> None:
    constant = torch.full((3, 2), 0.3, dtype=torch.float64)
    for net in (lambda x, t: x, lambda x, t: constant, lambda x, t: constant[:1, :1].expand(len(x), 2)):
        for solver in (DPMSolverPP(3), Heun(), DPMSolver(3)):
            a, b = sampler(net, solver), sampler(lambda x, t, net=net: net(x, t) + 0.0, solver)
            assert torch.equal(a.sample(x_T=0.5 * X_T, seed=0), b.sample(x_T=0.5 * X_T, seed=0))


def test_what_is_known_of_a_network_is_neither_copied_nor_saved_with_it() -> None:
    model = Network(Linear(), EDMSDE(), shape=(2,))
    x = X_T.float()
    for _ in range(6):
        model(x, 1.0)
    assert list(model.state_dict()) == ["net.layer.weight", "net.layer.bias"]
    twin = copy.deepcopy(model)
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    again = torch.load(file, weights_only=False)
    for other in (twin, again):
        assert torch.equal(other(x, 1.0).data, model(x, 1.0).data)


@pytest.mark.parametrize("kind", [predict.noise, predict.edm], ids=repr)  # an input as it is, and one scaled
def test_a_network_may_write_into_a_condition_that_is_one_for_all(kind: predict.Parametrisation) -> None:
    def net(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return x.clamp_(-1, 1) * t.add_(1)[:, None] + context.mul_(2)

    net.per_sample = ("context",)  # type: ignore[attr-defined]
    model = Network(net, EDMSDE(), kind, shape=(2,))
    row = torch.tensor([[1.0, 2.0]])
    together = model(X_T.float(), 1.0, context=row.expand(3, 2)).data
    assert torch.equal(together, model(X_T.float(), 1.0, context=row.repeat(3, 1)).data)
    assert row.tolist() == [[1, 2]]


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class Nested(nn.Module):
    def forward(self, x: Tensor, t: Tensor, ctx: dict[str, list[Tensor]]) -> Tensor:
        out = 0.3 * x + ctx["a"][0]
        ctx["a"][0].mul_(2.0)
        return out


def test_a_condition_inside_another_stays_as_it_is() -> None:
    a = torch.ones(3, 2)
    SDESampler(VP, Network(Nested(), VP, predict.edm, shape=(2,)), steps=6).sample(3, seed=0, ctx={"a": [a]})
    assert torch.equal(a, torch.ones(3, 2))


@pytest.mark.parametrize("solver", [DDIM(), Heun(), DPMSolverPP(3)], ids=zoo.name)
def test_a_write_that_moves_no_counter_is_seen_too(solver: Solver) -> None:
    def hidden(x: Tensor, t: Tensor) -> Tensor:
        out = torch.tanh(x)
        x.data.clamp_(-0.1, 0.1)
        return out

    def sampled(net: Net) -> Tensor:
        return SDESampler(VP, Network(net, VP, predict.noise, shape=(2,)), solver=solver, steps=9).sample(4, seed=0)

    assert torch.equal(sampled(hidden), sampled(lambda x, t: torch.tanh(x)))


class Relaxing(zoo.DoubleWell):
    """A general SDE whose drift works in place."""

    def __init__(self, writes: bool) -> None:
        self.writes = writes

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return x.tanh_() if self.writes else x.tanh()


@pytest.mark.parametrize("solver", [EulerMaruyama(), Heun()], ids=zoo.name)
def test_a_drift_may_write_into_its_state(solver: Solver) -> None:
    right, found = (
        SDESampler(Relaxing(writes), lambda x, t: -x, shape=(2,), solver=solver, steps=12).sample(4, seed=0)
        for writes in (False, True)
    )
    assert torch.equal(right, found)
