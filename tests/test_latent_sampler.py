"""Claim: a latent sampler draws what its decoder makes of the codes that its sampler draws, by the same seeds.

With a linear codec and exact codes the law of the data is known.
"""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
import zoo
from exact_maps import exact_map
from linear_codec import CODE, F64, MEAN, NOISE, B, D, Linear, W, codes, draw, latent_sampler, spread
from processes import run_processes
from refusals import T, V, check, refuses, wrong
from torch import nn

from sde_diffusion import (
    EDMSDE,
    VPSDE,
    Network,
    NonFiniteWarning,
    SDESampler,
    SolverError,
    SolverTable,
    TableSolver,
    distributed,
    grids,
    predict,
)
from sde_diffusion.cascade import Cascade, LowResolution, Upsampler
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.guidance import Guided, Matrix, Nonlinear, Posterior
from sde_diffusion.latent import LatentSampler, NetCodec, decoded, elbo
from sde_diffusion.likelihood import Estimate
from sde_diffusion.nets import Autoencoder
from sde_diffusion.solvers import EulerMaruyama, Heun

SDE = VPSDE()
X = draw(5, seed=1)


def made_of(z):
    """What the decoder makes of codes, by hand."""
    return z @ W.mT + B


@pytest.mark.slow
@pytest.mark.parametrize("solver", [s for s in zoo.SOLVERS if s not in zoo.COUPLED], ids=zoo.name)
def test_every_solver_draws_codes_of_which_the_samples_are_made(solver):
    inner = codes(solver=solver, grid=zoo.grid(SDE, solver, 4))
    sampler = LatentSampler(inner, Linear())
    x = sampler.sample(4, seed=3)
    assert torch.allclose(x, made_of(inner.sample(4, seed=3)), atol=1e-12)
    assert torch.allclose(x, sampler.sample(4, seed=3, batch_size=3), atol=1e-12)
    assert torch.allclose(x[2:3], sampler.sample(1, seed=5), atol=1e-12)


def test_the_law_of_the_samples_is_that_of_the_decoded_codes():
    n = 4000
    x = latent_sampler().sample(n, seed=0)
    cov = W @ torch.diag(spread()) @ W.mT
    error = (cov.diag() / n).sqrt()
    assert bool(((x.mean(0) - made_of(MEAN)).abs() <= 4 * error).all())
    spread_error = ((cov.diag()[:, None] * cov.diag() + cov**2) / n).sqrt()
    assert bool(((torch.cov(x.mT) - cov).abs() <= 4 * spread_error).all())


def _table():
    model, times = Gaussian(SDE, MEAN, spread()), grids.log_snr(SDE, 4)
    return SDESampler(SDE, model, solver=TableSolver(SolverTable.of(Heun(), SDE, times.tolist())))


def _map():
    fast = exact_map(EDMSDE())
    return SDESampler(fast.sde, fast, nfe=1)


@pytest.mark.parametrize(
    "inner", [_table, _map, partial(codes, nfe=5), partial(codes, solver=EulerMaruyama(), steps=9)]
)
def test_tables_flow_maps_and_budgets_work_in_the_code_space(inner):
    z = inner()
    sampler = LatentSampler(z, Linear())
    assert torch.allclose(sampler.sample(3, seed=1), made_of(z.sample(3, seed=1)), atol=1e-12)


@pytest.mark.slow
def test_a_posterior_in_the_code_space_is_that_of_what_is_measured_of_the_data():
    a = torch.zeros(2, D, dtype=F64)
    a[0, 0] = a[1, 3] = 1.0
    y, std, n = torch.tensor([0.5, -1.0], dtype=F64), 0.4, 1500
    model, codec = Gaussian(SDE, MEAN, spread()), Linear().eval()
    precision = torch.diag(1 / spread()) + W.mT @ a.mT @ a @ W / std**2
    cov = precision.inverse()
    mean = cov @ (MEAN / spread() + W.mT @ a.mT @ (y - a @ B) / std**2)
    through = Nonlinear(lambda z: decoded(codec, z)[:, [0, 3]])  # measured through the decoder
    for rule, wanted in ((Matrix(a @ W), y - a @ B), (through, y)):
        posterior = Posterior(model, rule, std)
        sampler = LatentSampler(SDESampler(SDE, posterior, steps=16), codec)
        x = sampler.sample(n, seed=0, y=wanted)
        law = W @ cov @ W.mT
        error = (law.diag() / n).sqrt()
        assert bool(((x.mean(0) - made_of(mean)).abs() <= 4 * error + 0.01).all())  # 0.01: of the steps
        assert bool(((torch.cov(x.mT) - law).abs() <= 0.1 * law.diag().max()).all())


class Labelled(nn.Module):
    """Answers data at the label, and NaN for a label below 0."""

    per_sample = ("label",)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, x, t, label=None):
        shown = torch.zeros(len(x), dtype=F64) if label is None else label.to(F64)
        return self.weight * torch.where(shown < 0, torch.nan, shown)[:, None].expand_as(x)


LABELLED = Network(Labelled(), SDE, predict.data, shape=(CODE,))


def labelled(model=LABELLED):
    return LatentSampler(SDESampler(SDE, model, solver=Heun(), steps=4), Linear())


def test_conditions_and_guidance_go_to_the_model_of_the_codes_row_by_row():
    label = torch.tensor([1, 2, 3])
    x = labelled().sample(3, seed=0, label=label, batch_size=2)
    assert torch.allclose(x, made_of(label[:, None].expand(3, CODE).to(F64)))
    guided = labelled(Guided(LABELLED, 2.0, null={"label": torch.tensor(0)}, batched=False)).sample(
        3, seed=0, label=label
    )
    assert torch.allclose(guided, made_of(2 * label[:, None].expand(3, CODE).to(F64)))


def test_a_code_that_is_not_finite_is_told_or_kept_and_never_decoded():
    sampler, label = labelled(), torch.tensor([1, -1, 3])
    with pytest.raises(SolverError, match="row 1"):
        sampler.sample(3, seed=0, label=label)
    with pytest.warns(NonFiniteWarning):
        x = sampler.sample(3, seed=0, label=label, nonfinite="keep")
    assert bool(x[1].isnan().all())
    assert torch.allclose(x[[0, 2]], sampler.sample(2, seed=[0, 2], label=label[[0, 2]]))
    with pytest.warns(NonFiniteWarning):
        assert bool(sampler.sample(1, seed=0, label=label[1:2], nonfinite="keep").isnan().all())


def test_iterating_ends_with_the_sample_and_shows_each_state_decoded():
    sampler = latent_sampler(steps=3)
    inner = list(sampler.sampler.iterate(2, seed=4))
    shown = list(sampler.iterate(2, seed=4))
    assert torch.equal(shown[-1].x, sampler.sample(2, seed=4))
    for mine, own in zip(shown, inner, strict=True):
        assert torch.allclose(mine.x, made_of(own.x))
        assert mine[:2] == own[:2]
        assert mine.nfe == own.nfe


def test_data_are_encoded_and_come_back_as_the_codec_keeps_them():
    sampler = latent_sampler(steps=60)
    back = sampler.sample(x_T=sampler.encode(X))
    kept = made_of(sampler.code(X))
    assert float((back - kept).abs().max()) < 1e-4
    assert torch.equal(sampler.code(X, batch_size=2), torch.cat([sampler.code(x) for x in X.split(2)]))
    assert torch.allclose(sampler.decode(sampler.code(X), batch_size=2), kept)


def test_editing_is_that_of_the_codes():
    sampler = latent_sampler()
    edited = sampler.edit(X, 0.5, seed=2, batch_size=2)
    assert torch.allclose(edited, made_of(sampler.sampler.edit(sampler.code(X), 0.5, seed=2)))
    assert float((sampler.edit(X, 0.02, seed=2) - made_of(sampler.code(X))).abs().max()) < 0.2  # the finer, the nearer


def test_the_graph_is_kept_through_decoder_and_solve_where_it_is_asked_for():
    sampler = latent_sampler(steps=3)
    x_T = torch.randn(2, CODE, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x = sampler.sample(x_T=x_T, grad=True)
    (slope,) = torch.autograd.grad(x[:, 0].sum(), x_T)
    step = torch.eye(CODE, dtype=F64)[0]  # the solver is affine on Gaussian codes, and so is the decoder
    there = sampler.sample(x_T=x_T.detach() + step)[:, 0] - sampler.sample(x_T=x_T.detach())[:, 0]
    assert torch.allclose(slope[:, 0], there)
    assert not sampler.sample(2, seed=0).requires_grad
    back = X.clone().requires_grad_()
    assert sampler.encode(back, grad=True).requires_grad
    assert not sampler.encode(back).requires_grad


def test_codec_and_model_are_in_evaluation_mode_and_in_their_own_again():
    codec = Linear().train()
    sampler = LatentSampler(codes(), codec)
    assert torch.equal(sampler.sample(3, seed=0), sampler.sample(3, seed=0))
    for _ in sampler.iterate(1, seed=0):
        assert codec.training
    assert codec.training


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_samples_have_the_dtype_of_the_codes_and_the_shape_of_the_data(dtype):
    model = Gaussian(SDE, MEAN.to(dtype), spread().to(dtype))
    sampler = LatentSampler(SDESampler(SDE, model), Linear().to(dtype))
    assert (sampler.shape, sampler.dtype) == ((D,), dtype)
    x = sampler.sample(2, seed=0)
    assert (x.shape, x.dtype) == ((2, D), dtype)


def test_a_codec_of_a_net_is_one_and_a_stage_of_a_cascade():
    torch.manual_seed(0)
    codec = NetCodec(Autoencoder(1, width=8, multipliers=(1, 2), latent=2), shape=(1, 8, 8), scale=[1.0, 2.0])
    model = Gaussian(SDE, torch.zeros(2, 4, 4), 1.0)
    sampler = LatentSampler(SDESampler(SDE, model, steps=3), codec)
    x = sampler.sample(3, seed=0)
    assert x.shape == (3, 1, 8, 8)
    assert torch.allclose(x[2:], sampler.sample(1, seed=2), atol=1e-5)
    assert sampler.encode(x).shape == (3, 2, 4, 4)
    assert bool(elbo(sampler, x, seed=0, draws=2, estimate=Estimate(levels=4)).value.isfinite().all())
    fine = Network(lambda x, t, image, context: 0 * x, SDE, predict.data, shape=(1, 16, 16))
    stage = Upsampler(SDESampler(SDE, fine, steps=2), LowResolution(2))
    assert Cascade([sampler, stage]).sample(2, seed=0).shape == (2, 1, 16, 16)


def test_it_is_shown_with_the_sampler_inside():
    inner = codes(steps=3)
    assert repr(LatentSampler(inner, Linear())) == f"LatentSampler({inner!r}, codec)"


def test_a_job_draws_what_the_sampler_does_and_knows_model_and_codec(tmp_path):
    sampler, label = labelled(), torch.arange(10)

    def draw_to(which):
        return distributed.sample_to(which, 10, tmp_path / "x", seed=5, batch_size=4, label=label)

    found = draw_to(sampler)
    assert torch.equal(found.tensor(), sampler.sample(10, seed=5, batch_size=4, label=label))
    about = json.loads((tmp_path / "x" / "manifest.json").read_text())
    assert about["shape"] == [D]
    assert about["sampler"] == repr(sampler)
    assert len(about["model"].split(", ")) == 2
    other, stretched = labelled(), labelled()
    other.codec.w = other.codec.w + 1
    stretched.codec.scale = 2 * stretched.codec.scale
    for changed, what in ((other, "model"), (stretched, "details")):
        with pytest.raises(ValueError, match=f"holds samples with {what} = "):
            draw_to(changed)
    assert torch.equal(draw_to(labelled()).tensor(), found.tensor())


class Plain:
    """A codec that is no module; `answers` what its decoder does to codes."""

    shift, noise = 0.0, NOISE

    def __init__(self, answers=made_of, scale=1.0):
        self.answers, self.scale = answers, scale

    def encode(self, x):
        return x[:, :2], x[:, :2].square()

    def decode(self, z):
        return self.answers(z)

    def shape_of(self, shape):
        return (2,)


class Strict(Plain):
    """Of one dtype."""

    def encode(self, x):
        return x @ W, x @ W


def test_a_codec_without_a_module_is_known_by_what_it_holds(tmp_path):
    sampler, same, other = (LatentSampler(codes(steps=3), Plain(scale=s)) for s in (1.0, 1.0, 2.0))
    found = distributed.sample_to(sampler, 3, tmp_path / "x", seed=0)
    assert torch.equal(distributed.sample_to(same, 3, tmp_path / "x", seed=0).tensor(), found.tensor())
    with pytest.raises(ValueError, match="holds samples with details = "):
        distributed.sample_to(other, 3, tmp_path / "x", seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the children start no threads
def test_two_processes_draw_what_one_draws(tmp_path):
    sampler = latent_sampler()

    def draw_to(rank):
        return distributed.sample_to(sampler, 10, tmp_path / "x", seed=5, batch_size=4, shard_size=4).tensor()

    found = run_processes(2, draw_to, tmp_path / "run")
    wanted = sampler.sample(10, seed=5, batch_size=4)
    assert all(torch.equal(x, wanted) for x in found), found


@refuses(
    (lambda: LatentSampler(wrong(LABELLED), Linear()), T, "sampler must be an SDESampler of codes, got Network"),
    (lambda: LatentSampler(codes(), wrong(Linear)), T, "codec is the class Linear, wanted one of it"),
    (lambda: LatentSampler(SDESampler(SDE, lambda x, t: -x), Linear()), V, "the shape of a code is not known"),
    (lambda: LatentSampler(codes(), Plain(lambda z: z @ W)), V, "Plain.decode does not take codes of shape (3,)"),
    (lambda: LatentSampler(codes(), Plain(lambda z: z.long())), T, "Plain.decode answered data in torch.int64"),
    (lambda: LatentSampler(codes(), Plain(lambda z: z / 0)), V, "answered data that is not finite"),
    (lambda: LatentSampler(codes(), Plain(scale=0.0)), V, "scale of Plain must be finite and not 0"),
    (lambda: LatentSampler(codes(), Plain()).encode(X), V, "Plain.encode answered codes of shape (2,), and the"),
    (lambda: LatentSampler(codes(), Strict()).encode(X.float()), V, "Strict.encode does not take data of shape (6,)"),
    (lambda: distributed.log_prob(wrong(latent_sampler()), X), T, "whose log_prob is exact, got LatentSampler"),
    (lambda: latent_sampler().encode(X[:, :2]), V, "x0 has event shape (2,)"),
    (lambda: latent_sampler().encode(X / 0), V, "x0 holds"),
    (lambda: latent_sampler().edit(X, -1.0), V, "level must"),
    (lambda: latent_sampler().decode(X), V, "z has event shape (6,)"),
    (lambda: latent_sampler().sample(0), V, "n must be at least 1, got 0"),
    (lambda: latent_sampler().sample(2, batch_size=0), V, "batch_size must be at least 1"),
    (lambda: latent_sampler().sample(2, grad=wrong(1)), T, "grad must be True or False"),
    (lambda: latent_sampler(solver=EulerMaruyama()).encode(X), V, "is stochastic, so it has no inverse"),
)
def test_what_does_not_fit_is_refused_at_the_door(call, error, text):
    check(call, error, text)
