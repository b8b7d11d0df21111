"""Claim: a solver that cannot work is not made, and a solve that fails tells at which step, time and evaluation."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from refusals import T, V, check, refuses, wrong
from zoo import DoubleWell

from sde_diffusion import (
    VPSDE,
    CosineSDE,
    DiscreteVPSDE,
    FlowSDE,
    Network,
    SDESampler,
    SolverError,
    grids,
    integrate,
    predict,
)
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.solvers import (
    DDIM,
    RK4,
    AdamsMoulton,
    Angle,
    Churn,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    Heun,
    HeunEuler,
    Hold,
    Langevin,
    PredictorCorrector,
    Renoise,
    Restart,
    Reversible,
    SASolver,
    Torchdiffeq,
    Torchsde,
    annealed_langevin,
)
from sde_diffusion.solvers.equation import GaussianReverseSDE

VP = VPSDE()
X = torch.zeros(3, 2)


def never(x, t):
    raise AssertionError("the network was called")


MODEL = Network(never, VP, shape=(2,))


def sampler(sde=VP, model=MODEL, **options):
    return SDESampler(sde, model, **options)


def solve(solver=None, times=(1.0, 0.5), x=X, model=MODEL):
    return list(integrate(GaussianReverseSDE(model), solver or Heun(), x, times))


@pytest.mark.parametrize("solver", [EulerMaruyama(), DDIM(1.0), Torchsde(n=2)], ids=repr)
def test_a_stochastic_solver_only_goes_back_in_time(solver):
    from sde_diffusion.noise import Streams

    eq, noise = GaussianReverseSDE(Network(lambda x, t: x, VP)), Streams(range(3), (2,), torch.float32, "cpu")
    text = "a stochastic solver only goes back in time, from noise to data; to encode use an ODE solver"
    check(lambda: list(integrate(eq, solver, X, [0.1, 0.5], noise)), V, text)


def test_langevin_alone_does_not_move_in_time():
    model = Network(lambda x, t: -x, VP, shape=(2,))
    text = "Langevin stays at one level: use it as PredictorCorrector(predictor, Langevin(...)), with Hold()"
    check(lambda: sampler(model=model, solver=Langevin(), steps=2).sample(1, seed=0), V, text)


# ----------------------------------------------------------------------------------------------- where no data are left


@pytest.mark.parametrize("sde", [FlowSDE(), CosineSDE(t_max=1.0)], ids=repr)
@pytest.mark.parametrize(("kind", "name"), [(predict.noise, "noise"), (predict.score, "score")], ids=["noise", "score"])
def test_a_noise_network_cannot_start_where_no_data_are_left(sde, kind, name):
    model = Network(lambda x, t: x, sde, kind, shape=(2,))
    text = f"a {name} prediction tells nothing of the data where alpha = 0 (t = 1): start at a smaller t"
    check(lambda: SDESampler(sde, model).sample(1, seed=0), V, text)
    x = SDESampler(sde, model, grid=[0.99, 0.5, 0.01]).sample(1, seed=0)  # as the text says
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("solver", [EulerMaruyama(), Torchsde(n=5)], ids=repr)
def test_a_solver_that_needs_g_cannot_start_where_it_is_infinite(solver):
    model = Network(lambda x, t: x, FlowSDE(), predict.velocity, shape=(2,))
    text = (
        "g is infinite at t = 1 of FlowSDE(t_min=0.001, t_max=1.0), where alpha = 0: start a stochastic solver at a "
        "smaller time (t_max= of the process, or a grid), or use DDIM(eta), which is regular there"
    )
    check(lambda: SDESampler(FlowSDE(), model, solver=solver).sample(1, seed=0), V, text)
    x = SDESampler(FlowSDE(), model, solver=DDIM(1.0), steps=5).sample(1, seed=0)  # as the text says
    assert torch.isfinite(x).all()


# ------------------------------------------------------------------------------------------------- failing on the way


def broken(after, value=math.nan):
    """A network that answers `value` from its call number `after + 1` on."""
    calls = []

    def net(x, t):
        calls.append(t)
        return torch.full_like(x, value) if len(calls) > after else torch.zeros_like(x)

    return Network(net, VP, shape=(2,))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_that_answers_nan_is_reported_with_step_time_and_evaluations(value):
    times = [1.0, 0.8, 0.6, 0.4, 0.2]
    with pytest.raises(SolverError) as caught:
        sampler(model=broken(5, value), solver=Heun(), grid=times).sample(2, seed=0)
    assert str(caught.value).startswith(
        "non-finite state after step 3 at t = 0.4, 6 network evaluations, in rows 0, 1 (2 of 2): either the network "
        "answered NaN or inf there"
    )
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize(
    ("steps", "told"),
    [(12, "after step 8 or up to 3 before it, at t = 0.6"), (6, "after step 6 or up to 1 before it, at t")],
)
def test_of_large_states_the_report_names_the_span(steps, told):
    model = Network(broken(5).net, VP, shape=(20_000,))
    run = sampler(model=model, solver=DDIM(), grid=[(20 - i) / 20 for i in range(steps + 1)])
    check(lambda: run.sample(1, seed=0), SolverError, f"non-finite state {told}")


def test_a_multistep_method_that_weighs_what_it_did_not_remember_is_told():
    class Mixed(DPMSolverPP):
        half = "noise"  # type: ignore[assignment]

    text = "Mixed(order=2) says half = 'noise', but its row weighs data too: set half = None"
    check(lambda: sampler(solver=Mixed()).sample(1, seed=0), T, text)


def test_nan_in_the_final_jump_is_reported_too():
    text = "non-finite state after step 3 at t = 0.2, 3 network evaluations"
    check(lambda: sampler(model=broken(2), grid=[1.0, 0.5, 0.2]).sample(2, seed=0), SolverError, text)


@pytest.mark.parametrize("method", ["dopri5", "bosh3"])
def test_an_adaptive_method_that_gives_up_is_a_solver_error_too(method):
    text = (
        r"torchdiffeq gave up between t = 1 and t = 0\.001 after \d+ network evaluations: the network answered NaN or "
        r"inf at t = 0\.\d+ in row 0 \(1 of 1\); call it on such a state"
    )
    with pytest.raises(SolverError, match=text):
        sampler(model=broken(4), solver=Torchdiffeq(method)).sample(1, seed=0)


def test_one_bad_sample_of_many_is_found():
    model = Network(lambda x, t: torch.where(torch.arange(len(x))[:, None] == 4, math.nan, 0.0) * x, VP, shape=(2,))
    check(lambda: sampler(model=model, steps=3).sample(6, seed=0), SolverError, "non-finite state after step 1 at t = ")


def test_a_score_of_another_shape_is_refused_at_its_first_call():
    bare = SDESampler(DoubleWell(), lambda x, t: x.sum(1), shape=(2,))
    check(lambda: bare.sample(3), V, "the score answered shape (3,) to a state of shape (3, 2)")
    gaussian = SDESampler(VP, lambda x, t: x.repeat(1, 2), shape=(2,))
    text = "the network answered shape (3, 4) to a state of shape (3, 2): does it learn a variance too?"
    check(lambda: gaussian.sample(3), V, text)


# ----------------------------------------------------------------------------------------------- options of solvers


@refuses(
    (lambda: EulerMaruyama(-0.1), V, "eta must be >= 0 (0 is the ODE, 1 the reverse SDE), got -0.1"),
    (lambda: EulerMaruyama(math.nan), V, "eta must be >= 0"),
    (lambda: DDIM(-1.0), V, "eta must be >= 0 (0 is the ODE, 1 the reverse SDE), got -1.0"),
    (
        lambda: DDIM(1.5),
        V,
        "DDIM takes eta in [0, 1], got 1.5: more noise than the ancestral step leaves no room",
    ),
    (lambda: DDIM(1.0, "both"), V, "variance must be 'posterior', 'forward' or 'learned', got 'both'"),
    (lambda: DPMSolverPP(4), V, "DPMSolverPP has order 1, 2 or 3, got 4"),
    (lambda: AdamsMoulton(1), V, "AdamsMoulton has order 2, 3 or 4, got 1"),
    (lambda: AdamsMoulton(5), V, "AdamsMoulton has order 2, 3 or 4, got 5"),
    (lambda: AdamsMoulton(wrong(2.5)), V, "AdamsMoulton has order 2, 3 or 4, got 2.5"),
    (lambda: DPMSolverPP(wrong(2.0)), V, "DPMSolverPP has order 1, 2 or 3, got 2.0"),
    (lambda: DDIM(wrong(None)), T, "eta must be a number, got None"),
    (lambda: HeunEuler(rtol=wrong("a")), T, "rtol must be a number, got 'a'"),
    (lambda: Langevin(1, wrong("a")), T, "snr must be a number, got 'a'"),
    (lambda: Churn(Heun(), wrong("0.1")), T, "gamma must be a number, got '0.1'"),
    (lambda: Churn(Heun(), s_min=2.0, s_max=1.0), V, "wanted 0 <= s_min < s_max, got s_min=2.0 and s_max=1.0"),
    (lambda: Churn(Heun(), s_min=math.nan), V, "wanted 0 <= s_min < s_max, got s_min=nan"),
    (lambda: SASolver(s_min=2.0, s_max=1.0), V, "wanted 0 <= s_min < s_max, got s_min=2.0 and s_max=1.0"),
    (lambda: Angle(wrong(RK4)), T, "Angle works with a solver such as Heun(), got <class"),
    (lambda: Churn(wrong(Heun)), T, ": make an instance, Heun()"),
    (lambda: Restart(wrong("Heun")), T, "Restart works with a solver such as Heun(), got 'Heun'"),
    (lambda: Renoise(wrong(None)), T, "Renoise works with a solver such as Heun(), got None"),
    (lambda: Reversible(wrong(Heun)), T, "Reversible works with a solver such as Heun(), got <class"),
    (lambda: PredictorCorrector(wrong(Heun), Langevin()), T, "PredictorCorrector works with a solver such as Heun()"),
    (lambda: PredictorCorrector(Heun(), Heun()), V, "Heun() moves in time and leaves a state at one level as it is"),
    (lambda: Churn(Heun(), -0.1), V, "gamma must be >= 0 and finite, got -0.1"),
    (lambda: Churn(Heun(), s_noise=0.0), V, "s_noise must be positive and finite, got 0.0"),
    (lambda: Angle(Heun(), 0.0), V, "data_std must be positive and finite, got 0.0"),
    (lambda: Langevin(0), V, "n must be at least 1, got 0"),
    (lambda: Langevin(wrong(1.5)), T, "n must be an integer, got 1.5"),
    (lambda: Langevin(snr=0.0), V, "snr must be positive and finite, got 0.0"),
    (lambda: Langevin.ncsn(epsilon=-1.0), V, "wanted epsilon > 0 and sigma_min > 0, got -1.0 and 0.01"),
    (lambda: annealed_langevin(5, sigma_min=0.0), V, "wanted epsilon > 0 and sigma_min > 0"),
    (
        lambda: Torchdiffeq("dopri6"),
        V,
        "method must be one of dopri5, dopri8, bosh3, fehlberg2, adaptive_heun",
    ),
    (lambda: Torchdiffeq(rtol=0.0), V, "rtol must be positive and finite, got 0.0"),
    (lambda: Torchsde("heun"), V, "method must be euler, milstein or srk, got 'heun'"),
    (lambda: Torchsde(n=0), V, "n must be at least 1, got 0"),
    (lambda: Torchsde(eta=-1.0), V, "eta must be >= 0"),
    (
        lambda: Torchsde(eta=0.0),
        V,
        "Torchsde needs eta > 0: for the probability-flow ODE use an ODE solver",
    ),
)
def test_an_option_that_does_not_exist_is_refused(call, error, text):
    check(call, error, text)


@pytest.mark.parametrize(
    "cls", [Euler, Heun, RK4, AdamsMoulton, DDIM, EulerMaruyama, DPMSolverPP, Hold, Langevin, Torchdiffeq, Torchsde]
)
def test_a_misspelt_option_is_refused(cls):
    with pytest.raises(TypeError, match="unexpected keyword argument 'etta'"):
        cls(etta=1.0)


@pytest.mark.parametrize(
    ("solver", "package", "extra"),
    [(Torchdiffeq(), "torchdiffeq", "ode"), (Torchsde(n=2), "torchsde", "sde")],
    ids=["ode", "sde"],
)
def test_a_missing_optional_package_names_the_extra_that_brings_it(monkeypatch, solver, package, extra):
    real = importlib.import_module

    def absent(name, *args):
        if name == package:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", absent)
    model = Gaussian(VP, torch.zeros(2), 1.0)
    with pytest.raises(ImportError) as caught:
        sampler(model=model, solver=solver).sample(1, seed=0)
    assert str(caught.value) == f"this solver needs {package}: pip install 'sde-diffusion[{extra}]'"


def test_a_chain_is_walked_whole_only_by_its_own_number_of_steps():
    chain = DiscreteVPSDE.linear(100)
    model = Gaussian(chain, torch.zeros(2), 1.0)
    text = "integers visits all 100 levels in 99 steps, got steps=30: use leading or trailing"
    check(lambda: SDESampler(chain, model, grid=grids.integers, steps=30), V, text)
    assert SDESampler(chain, model, grid=grids.integers).steps == 99
    assert SDESampler(chain, model, grid=grids.integers, steps=99).steps == 99
    assert SDESampler(chain, model, grid=grids.integers(chain)).steps == 99
