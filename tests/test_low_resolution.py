"""Claim: a low resolution is what it is said to be, a network is trained on it and told of it as it was, and what does
not fit is refused with a sentence."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cascades import SDE, Told, cascade, gaussian
from checkpoints import awake

from sde_diffusion import VPSDE, FlowMap, Network, SDESampler, losses, predict
from sde_diffusion.cascade import Cascade, LowResolution, SuperResolution, Upsampler
from sde_diffusion.distillation import Shortcut
from sde_diffusion.guidance import Clipped, Guided
from sde_diffusion.nets import UNet
from sde_diffusion.solvers import Jump
from sde_diffusion.training import Recipe, Saving, Validation, load_checkpoint, train

POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
LOW = LowResolution(2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def net(**options) -> Any:
    told: dict[str, Any] = {"image": 1, "context": 1, "image_drop": 0.0, "context_drop": 0.0} | options
    return UNet(1, dims=1, width=8, multipliers=(1,), attention=0, **told)


def network(sde=None, **options) -> Network:
    torch.manual_seed(0)
    return Network(net(**options), sde or VPSDE(), predict.edm, shape=(1, 8))


# --- what it is


@pytest.mark.parametrize(
    ("shape", "factor"), [((1, 6), 3), ((2, 4, 6), 2), ((2, 4, 6), (4, 1)), ((1, 2, 4, 2), (2, 2, 1))]
)
def test_it_is_means_over_blocks_and_spread_each_over_its_block(shape, factor):
    low, x = LowResolution(factor), torch.randn(3, *shape, generator=seeded())
    along = factor if isinstance(factor, tuple) else (factor,) * (len(shape) - 1)
    z = low.shrink(x)
    assert torch.allclose(z, POOL[len(along)](x, along, along), atol=1e-6)
    assert z.shape[1:] == low.low_shape(shape)
    assert torch.equal(low.spread(z), F.interpolate(z, size=shape[1:], mode="nearest"))
    assert torch.equal(low.shrink(low.spread(z)), z)


def test_a_model_is_told_the_low_resolution_with_noise_of_the_level_that_it_is_told():
    x = torch.randn(4000, 1, 8, generator=seeded())
    target, told = LOW.pairs(x, seeded(1))
    assert torch.equal(target, x)
    z, s = LOW.shrink(told["image"]), (told["context"] + 1) / 4
    eps = (z - LOW.shrink(x))[:, 0] / s
    assert 0 <= float(s.min()) < 0.01 < 0.49 < float(s.max()) <= 0.5
    assert abs(float(s.mean()) - 0.25) < 4 * 0.5 / math.sqrt(12 * 4000)
    assert abs(float(eps.square().mean()) - 1) < 4 * math.sqrt(2 / eps.numel())
    assert abs(float((eps.square().mean(1) * (s[:, 0] - 0.25)).mean())) < 4 * 0.15 / math.sqrt(4000)
    _, told = LOW.pairs(x, seeded(1), level=0.5)
    assert torch.equal(told["context"], torch.ones(4000, 1))
    assert set(LowResolution(2, most=0).pairs(x)[1]) == {"image"}


def test_what_is_lacking_has_the_standard_deviation_one_and_leads_back():
    x = 3 * torch.randn(2000, 1, 2, generator=seeded()).repeat_interleave(4, 2) + torch.randn(2000, 1, 8)
    low = LowResolution(2, residual=LowResolution(2).detail_std(x))
    r, told = low.pairs(x, seeded())
    assert abs(float(r.square().mean()) - 1) < 0.02
    smooth = torch.randn(4000, 1, 4, generator=seeded()).repeat_interleave(2, 2)  # all of it in the low resolution
    r, _ = LowResolution(2, residual=LowResolution(2).detail_std(smooth)).pairs(smooth, seeded(1))
    assert abs(float(r.square().mean()) - 1) < 4 * 3 / math.sqrt(3 * 4 * 4000)  # s^2 eps^2 varies by less than 3^2 / 3
    r, told = low.pairs(x, seeded(), level=0.25)
    z = low.shrink(told["image"])
    assert torch.allclose(low.restored(r, z), x, atol=1e-5)


def test_it_is_kept_with_a_model_as_json():
    for low in (LOW, LowResolution((2, 1), most=0.0, residual=0.4, image="y", context="haze")):
        assert LowResolution.of(json.loads(json.dumps(low.config))) == low
        assert eval(repr(low)) == low
    assert LowResolution.of({"factor": 3}) == LowResolution(3)


# --- training


def test_the_objective_is_the_loss_of_the_model_beside_the_low_resolution_drawn_here():
    model, x = network(), torch.randn(16, 1, 8, generator=seeded())
    generator = seeded(3)
    s, eps = 0.5 * torch.rand(16, generator=generator), torch.randn(16, 1, 4, generator=generator)
    z = F.avg_pool1d(x, 2) + s[:, None, None] * eps
    image, context = z.repeat_interleave(2, 2), 4 * s[:, None] - 1
    wanted = model.loss(x, generator=generator, image=image, context=context)
    assert torch.equal(SuperResolution(LOW)(model, x, generator=seeded(3)), wanted)
    plain = losses.DenoisingScoreMatching()
    assert not torch.equal(SuperResolution(LOW, plain)(model, x, generator=seeded(3)), wanted)


def test_a_stage_is_trained_goes_on_after_a_kill_and_is_sampled_from_its_folder_alone(tmp_path):
    x = torch.randn(64, 1, 8, generator=seeded()).cumsum(2) / 2
    low = LowResolution(2, residual=0.5)
    options: dict[str, Any] = {
        "loss": SuperResolution(low),
        "recipe": Recipe(batch_size=16),
        "seed": 0,
        "val": Validation(x[:8] + 0.01, every=10, patience=None, draws=4),
    }

    def stop(event):
        if event.kind == "step" and event.step == 5:
            raise KeyboardInterrupt

    whole = train(network(), x, steps=10, **options).model
    saving = Saving(tmp_path / "up", extra={"low_res": low.config})
    with pytest.raises(KeyboardInterrupt):
        train(network(), x, steps=10, out=saving, callbacks=[stop], **options)
    train(network(), x, steps=10, out=saving, resume=True, **options)
    found = load_checkpoint(tmp_path / "up")
    again = LowResolution.of(found.extra["low_res"])
    assert again == low
    for a, b in zip(whole.state_dict().values(), found.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    up = Upsampler(SDESampler(found.model.sde, found.model, steps=4), again)
    y = torch.randn(3, 1, 4, generator=seeded())
    drawn = up.sample(low=y, seed=0)
    assert drawn.shape == (3, 1, 8)
    assert torch.equal(drawn, Upsampler(SDESampler(VPSDE(), whole, steps=4), low).sample(low=y, seed=0))
    assert torch.allclose(drawn[2], up.sample(low=y[2], seed=2)[0], atol=1e-5)


@pytest.mark.parametrize("residual", [0.0, 0.26])
def test_a_validation_is_the_entropy_of_the_data_given_the_low_resolution_by_an_exact_model(residual):
    mean, covariance = gaussian((1, 4))
    low, n = LowResolution(2, residual=residual, context="haze"), 400
    root = torch.linalg.cholesky(covariance)
    x = (mean.flatten() + torch.randn(n, 4, generator=seeded(), dtype=torch.float64) @ root.T).reshape(n, 1, 4)
    model = Told(mean, covariance, low)
    found = Validation(x, draws=8).measure(model, SuperResolution(low))
    _, told = low.pairs(x, seeded(5))
    m, c = model.law(told["image"], told["haze"])
    nats = -torch.distributions.MultivariateNormal(m, c).log_prob(x.flatten(1))
    error = math.hypot(found.standard_error, float(nats.std()) / math.sqrt(n))
    print(found.nats, float(nats.mean()), error)
    assert abs(found.nats - float(nats.mean())) < 4 * error
    assert found == Validation(x, draws=8).measure(model, SuperResolution(low))


def test_a_stage_may_be_guided_by_what_it_takes_besides():
    model = Network(awake(net(classes=3)), VPSDE(), predict.edm, shape=(1, 8)).eval()
    y, label = torch.zeros(3, 1, 4), torch.arange(3)
    plain, off, on = (
        Upsampler(SDESampler(VPSDE(), one, steps=2), LOW).sample(low=y, seed=0, label=label)
        for one in (model, Guided(model, 1.0), Guided(model, 3.0))
    )
    assert torch.equal(plain, off)
    assert not torch.allclose(plain, on)


@pytest.mark.slow
def test_a_stage_is_distilled_into_a_map_that_jumps():
    model, x = network().eval(), torch.randn(64, 1, 8, generator=seeded())
    awake(model)  # an answer of its own, which a network has not that was just made
    fast = FlowMap.from_teacher(model)
    target, told = LOW.pairs(x, seeded(1))
    run = train(fast, target, steps=4, loss=Shortcut(model), recipe=Recipe(batch_size=32), seed=0, cond=told)
    up = Upsampler(SDESampler(model.sde, run.model, solver=Jump()), LOW)
    assert up.sample(low=torch.zeros(3, 1, 4), seed=0).isfinite().all()


def test_a_model_takes_a_context_of_its_own_where_no_level_is_told():
    up = Upsampler(SDESampler(VPSDE(), network(context=3).eval(), steps=2), LowResolution(2, most=0))
    assert up.sample(low=torch.zeros(2, 1, 4), seed=0, context=torch.ones(2, 3)).isfinite().all()
    with pytest.raises(ValueError, match=r"image=0, .* tells it image of 1: build it with image=1$"):
        Upsampler(SDESampler(VPSDE(), network(image=0, context=3)), LowResolution(2, most=0))


def test_networks_of_others_are_told_by_any_name():
    seen: list[tuple[str, torch.Size]] = []

    def other(x, t, coarse, haze):
        seen.extend([("coarse", coarse.shape), ("haze", haze.shape)])
        return x + coarse + haze[:, :, None]

    low = LowResolution(2, image="coarse", context="haze")
    up = Upsampler(SDESampler(SDE, Network(other, SDE, predict.edm, shape=(1, 4)), steps=2), low)
    up.sample(low=torch.zeros(3, 1, 2), seed=0, batch_size=2)
    assert set(seen) == {(n, torch.Size(s)) for k in (1, 2) for n, s in (("coarse", (k, 1, 4)), ("haze", (k, 1)))}


# --- what is refused

SMALL, _ = cascade([LowResolution(2, context="haze")], shape=(1, 4), steps=2)
UP: Any = SMALL.stages[1]
LOW_LACKING, LOWER = LowResolution(2, residual=0.5, context="haze"), LowResolution(2, most=0)
LACKING = Told(torch.zeros(1, 4), torch.eye(4), LOW_LACKING)
SHAPELESS = SDESampler(VPSDE(), Network(net(), VPSDE(), predict.edm))
REFUSED = [
    (lambda: LowResolution(0), ValueError, "factor"),
    (lambda: LowResolution(1), ValueError, "factor=1 leaves all as it is: wanted 2 or more"),
    (lambda: LowResolution((1, 1)), ValueError, "leaves all as it is"),
    (lambda: LowResolution(2.0), TypeError, "factor must be an integer"),  # type: ignore[arg-type] # on purpose
    (lambda: LowResolution("2"), TypeError, "factor must be an integer"),  # type: ignore[arg-type] # on purpose
    (lambda: LowResolution(()), ValueError, "one for each of one to three spatial axes"),
    (lambda: LowResolution(2, most=-1), ValueError, "most must be 0 or more"),
    (lambda: LowResolution(2, residual=math.inf), ValueError, "residual must be 0 or more"),
    (lambda: LowResolution(2, image="a b"), TypeError, "image and context name conditions"),
    (lambda: LowResolution(2, image="y", context="y"), ValueError, "two conditions"),
    (lambda: LowResolution(2, context="level"), ValueError, "none of the arguments"),
    (lambda: LowResolution.of(None), ValueError, "was the stage saved with extra="),
    (lambda: LowResolution.of({"factor": 2, "new": 1}), ValueError, "no 'new': it was kept by a later version"),
    (lambda: LOW.shrink(torch.zeros(1, 1, 5)), ValueError, "factor=2 must divide the spatial axes"),
    (lambda: LOW.shrink(torch.zeros(1, 4)), ValueError, "with one to three spatial axes, got shape (4,)"),
    (lambda: LowResolution((2, 2)).shrink(torch.zeros(1, 1, 4)), ValueError, "with 2 spatial axes, got shape (1, 4)"),
    (lambda: LOW.spread(torch.zeros(1, 4)), ValueError, "is (B, C, *spatial), got (1, 4)"),
    (lambda: LOW.pairs(torch.zeros(1, 1, 4), level=0.6), ValueError, "level=0.6 is none that the model knows"),
    (lambda: SuperResolution(2), TypeError, "wanted a LowResolution, such as LowResolution(2), got 2"),  # type: ignore[arg-type] # on purpose
    (lambda: SuperResolution(LOW, print), TypeError, "inner must be a DenoisingScoreMatching"),  # type: ignore[arg-type] # on purpose
    (lambda: SuperResolution(LOW)(network(image=0), torch.zeros(2, 1, 8)), ValueError, "built with image=0, and"),
    (lambda: SuperResolution(LOW)(network(), torch.full((2, 1, 8), math.nan)), ValueError, "x0 holds 16 non-finite"),
    (
        lambda: SuperResolution(LOW)(network(), torch.zeros(2, 1, 8), context=torch.zeros(2, 1)),
        ValueError,
        "condition 'context' is told by the low resolution, and came as well",
    ),
    (lambda: Upsampler(network(), LOW), TypeError, "Upsampler draws by a sampler"),  # type: ignore[arg-type] # on purpose
    (lambda: Upsampler(UP.sampler, 2), TypeError, "wanted a LowResolution"),  # type: ignore[arg-type] # on purpose
    (lambda: Upsampler(UP.sampler, LowResolution(3)), ValueError, "factor=3 must divide"),
    (lambda: Upsampler(UP.sampler, LOW, level=0.7), ValueError, "trained from 0 to most=0.5"),
    (lambda: Upsampler(SDESampler(VPSDE(), network(context=0)), LOW), ValueError, "built with context=0, and"),
    (
        lambda: Upsampler(SHAPELESS, LOW),
        ValueError,
        "shape is not known",
    ),
    (lambda: Upsampler(SDESampler(SDE, Clipped(LACKING)), LOW_LACKING), TypeError, "Clipped is a rule on data, and a"),
    (lambda: UP.log_prob(torch.zeros(2, 1, 4)), TypeError, "an Upsampler wants low="),
    (lambda: UP.log_prob(torch.zeros(2, 1, 2), low=torch.zeros(2, 1, 2)), ValueError, "x0"),
    (
        lambda: Upsampler(UP, LOWER, level=0.0).log_prob(torch.zeros(2, 1, 4), low=torch.zeros(2, 1, 2)),
        TypeError,
        "no density",
    ),
    (lambda: UP.sample(3), TypeError, "an Upsampler wants low=, the low resolutions, of shape (B, *(1, 2))"),
    (lambda: UP.sample(low=[1.0, 2.0]), TypeError, "low must be a torch.Tensor"),
    (lambda: UP.sample(low=torch.zeros(2, 1, 4)), ValueError, "low has event shape (1, 4), wanted (1, 2)"),
    (lambda: UP.sample(3, low=torch.zeros(2, 1, 2)), ValueError, "2 rows came for 3 samples"),
    (lambda: UP.sample(low=torch.full((2, 1, 2), math.inf)), ValueError, "low holds 4 non-finite"),
    (lambda: UP.sample(low=torch.zeros(2, 1, 2), image=torch.zeros(2, 1, 4)), ValueError, "'image' is told by the low"),
    (lambda: UP.sample(low=torch.zeros(2, 1, 2), nonfinite="no"), ValueError, "nonfinite must be 'raise' or 'keep'"),
    (lambda: Cascade([]), TypeError, "a Cascade is of a sequence of samplers"),
    (lambda: Cascade([SMALL.stages[0], network()]), TypeError, "a Cascade is of a sequence"),  # type: ignore[list-item] # on purpose
    (lambda: Cascade([SMALL]), TypeError, "stage 0 is a Cascade: write all stages in one row"),
    (lambda: Cascade([UP.sampler, UP.sampler]), TypeError, "stage 1 is a SDESampler, which is told no low resolution"),
    (lambda: Cascade([UP, UP]), ValueError, "stage 1 wants low resolutions of shape (1, 2), and stage 0 draws (1, 4)"),
    (lambda: Cascade([SMALL.stages[0]] * 1000), ValueError, "fewer than 1000 stages"),
    (
        lambda: Cascade([SHAPELESS]),
        ValueError,
        "of stage 0 is not known",
    ),
    (lambda: Cascade([UP], takes=[(), ()]), ValueError, "takes has 2 entries for 1 stages"),
    (lambda: Cascade([UP], takes=["label"]), TypeError, "takes holds the names of conditions for each stage"),
    (lambda: Cascade([UP], scalings=[2]), TypeError, "scalings holds a scaling for each stage"),  # type: ignore[list-item] # on purpose
    (lambda: SMALL.sample(2, batch_size=0), ValueError, "batch_size"),
    (lambda: SMALL.sample(0), ValueError, "n must"),
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_does_not_fit_is_refused_with_what_came_and_what_was_wanted(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()


def test_some_scalings_without_the_others_and_what_has_no_steps_are_refused():
    from sde_diffusion.data import Standardise
    from sde_diffusion.sampler import Sampler

    one = Standardise(torch.tensor(0.0), torch.tensor(1.0))
    with pytest.raises(ValueError, match="scalings has None for some stages"):
        Cascade(SMALL.stages, scalings=[one, None])

    class Bare(Sampler):
        shape, dtype, models, details = (1, 4), torch.float64, UP.models, []

        def conditions(self, cond, n):
            return UP.sampler.conditions(cond, n)

        def sample(self, n=1, **options):
            return UP.sampler.sample(n, **options)

    up = Upsampler(Bare(), UP.low_resolution, level=0.2)
    y = torch.zeros(2, 1, 2, dtype=torch.float64)
    assert torch.equal(up.sample(low=y, seed=0), UP.sample(low=y, seed=0))
    with pytest.raises(TypeError, match="Bare has no iterate: draw by sample"):
        up.iterate(low=y)
