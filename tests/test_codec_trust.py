"""A codec that is not what it seems is refused: unmeasured, of another model, unable to learn, askew in its answers."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from sde_diffusion import EDMSDE, VPSDE, Network, SDESampler, data, latent, nets, predict, training
from sde_diffusion.denoiser.analytic import Gaussian
from sde_diffusion.denoiser.modules import Evaluation
from sde_diffusion.latent import NetCodec, Reconstruction
from sde_diffusion.latent.learning import validation_of
from sde_diffusion.noise.seeds import Use, one_stream
from sde_diffusion.training import Recipe

X = torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(0))
RECIPE = Recipe(16)


class AE(nn.Module):
    """A small codec; `std` and `out` are those of its answers."""

    def __init__(self, std: float = 0.1, out: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.e, self.d = nn.Conv2d(3, 4, 2, stride=2), nn.ConvTranspose2d(4, out, 2, stride=2)
        self.std = std

    @property
    def config(self) -> dict[str, Any]:
        return {"std": self.std}

    def encode(self, x: Tensor) -> Any:
        m = self.e(x)
        return m, self.std + 0 * m

    def decode(self, z: Tensor) -> Tensor:
        return self.d(z)


class OneTensor(AE):
    def encode(self, x: Tensor) -> Any:
        return self.e(x)


class OneStd(AE):
    def encode(self, x: Tensor) -> Any:
        return self.e(x), torch.ones(1)


class Noisy(AE):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.5)

    def encode(self, x: Tensor) -> Any:
        m = self.drop(self.bn(self.e(x)))
        return m, 0.1 + 0 * m


def learnt(net: nn.Module, steps: int = 2, **options: Any) -> latent.CodecTraining:
    return latent.train_codec(net, X, steps=steps, **{"recipe": RECIPE, "seed": 0, **options})


def cut(event: training.Event) -> None:
    if event.kind == "step" and event.step == 1:
        raise KeyboardInterrupt


# --- on the disk


def test_a_codec_whose_training_was_cut_short_says_so_and_is_measured_or_goes_on(tmp_path):
    with pytest.raises(training.TrainingInterrupted):
        learnt(AE(), out=tmp_path, callbacks=[cut])
    with pytest.raises(ValueError, match=r"has not ended.*resume=True\), or measure it.*unfinished=True"):
        latent.load_codec(tmp_path, known=[AE])
    codec = latent.load_codec(tmp_path, known=[AE], unfinished=True).codec
    assert not codec.measured
    model = Gaussian(VPSDE(), torch.zeros(4, 2, 2), 1.0)
    for use in (
        lambda: latent.cached(codec, X),
        lambda: latent.save_codec(tmp_path / "b", codec),
        lambda: latent.LatentSampler(SDESampler(model.sde, model), codec),
    ):
        with pytest.raises(ValueError, match="those from before its training: take what train_codec returns"):
            use()
    assert latent.cached(latent.measure(codec, X), X).code.mean.std() == pytest.approx(1.0, abs=0.1)
    with pytest.raises(ValueError, match=r"begin anew from its weights, train_codec\(load_codec\(.*unfinished=True"):
        learnt(AE(), out=tmp_path, resume=True, seed=1)
    done = learnt(AE(), out=tmp_path, resume=True).codec
    found = latent.load_codec(tmp_path, known=[AE]).codec
    assert done.measured
    assert torch.equal(found.scale, done.scale)


def test_no_codec_without_units_stands_behind_one_with_them_and_no_older_one_takes_its_place(tmp_path):
    learnt(AE(), out=training.Saving(tmp_path, every=1, keep=3))
    assert not list(tmp_path.glob("codec.*.json"))
    latent.save_codec(tmp_path, NetCodec(AE(), scale=2.0), keep=1)
    assert len(list(tmp_path.glob("codec.*.json"))) == 1
    path = tmp_path / "codec.json"
    path.write_text(path.read_text()[:-3])
    with pytest.raises(ValueError, match=r"codec\.json is not JSON"):
        latent.load_codec(tmp_path, known=[AE])


def test_a_codec_beside_a_model_of_the_codes_of_another_is_refused(tmp_path):
    codec = latent.measure(NetCodec(AE(), shape=(3, 4, 4)), X)
    latent.save_codec(tmp_path, codec)
    codes = latent.cached(codec, X)
    net = nets.UNet(4, width=8, multipliers=(1,), attention=0)
    model = Network(net, EDMSDE(), predict.edm, shape=codes.code_shape)
    training.train(model, codes, steps=1, seed=0, recipe=RECIPE, out=tmp_path)
    found = latent.load_codec(tmp_path, known=[AE]).codec
    said = training.load_checkpoint(tmp_path).extra["latent"]
    assert said == {"shape": [3, 4, 4], "digest": found.digest()}
    assert found.double().digest() == said["digest"]
    assert NetCodec(AE(), scale=2.0).half().digest() is None
    for other in (NetCodec(AE(), shape=(3, 4, 4), scale=2.0), NetCodec(AE(0.2), shape=(3, 4, 4), scale=codec.scale)):
        latent.save_codec(tmp_path, other)
        with pytest.raises(ValueError, match="not the codec whose codes the model beside it learnt: bring that one"):
            latent.load_codec(tmp_path, known=[AE])


# --- what learns


def test_functions_are_not_trained_for_their_average_would_not_be_theirs():
    net = AE()
    codec = latent.from_functions(lambda x: (net.e(x), 0.1 + 0 * net.e(x)), lambda z: 1 * net.d(z), noise=0.1)
    with pytest.raises(ValueError, match=r"functions cannot be trained.*from_autoencoder\(net\) takes a module"):
        learnt(codec)
    with pytest.raises(ValueError, match="functions cannot be trained"):
        learnt(latent.from_functions(lambda x: x / 2, lambda z: z, noise=0.1))
    adapted = learnt(latent.from_autoencoder(AE(), noise=0.1)).codec
    before = adapted.encode(X)[0].detach()
    for p in adapted.parameters():
        p.data.zero_()
    assert float(before.abs().max()) > 0.1
    assert not bool(adapted.encode(X)[0].any())


@pytest.mark.parametrize(
    ("net", "options", "kind", "message"),
    [
        (
            AE(out=1),
            {},
            ValueError,
            r"data of shape \(1, 4, 4\) to the codes of data of shape \(3, 4, 4",
        ),
        (AE(-0.1), {}, ValueError, "standard deviation of -0.1: wanted one above 0. Is it the log"),
        (AE(0.0), {}, ValueError, r"standard deviation of 0, and Reconstruction\(kl=0.1\).*loss=Reconstruction\(0.0"),
        (OneTensor(), {}, TypeError, "OneTensor.encode answered Tensor.*from_autoencoder"),
        (OneStd(), {}, ValueError, r"standard deviation of shape \(1,\)"),
    ],
    ids=["broadcast", "negative", "zero", "tensor", "one"],
)
def test_answers_are_looked_at_before_the_first_step_and_in_the_measure(net, options, kind, message):
    with pytest.raises(kind, match=message):
        learnt(net, **options)
    if net.std:
        with pytest.raises(kind, match=message):
            latent.measure(NetCodec(net), X[:2], batch_size=2)


def test_a_plain_autoencoder_learns_where_nothing_weighs_its_codes():
    done = learnt(latent.from_autoencoder(OneTensor(), noise=0.1), loss=Reconstruction(0.0)).training
    assert all(map(math.isfinite, done.losses))


def test_the_objective_looks_at_the_shapes_of_every_answer():
    for net, message in ((AE(out=1), "the decoder answered shape"), (OneStd(), "wanted one for each number")):
        with pytest.raises(ValueError, match=message):
            Reconstruction()(NetCodec(net), X)


def rows_with_nan() -> Tensor:
    x = X.clone()
    x[3] = math.nan
    return x


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: latent.measure(AE(), X), TypeError, "measure takes a NetCodec, got AE"),  # type: ignore[arg-type]  # on purpose
        (lambda: latent.measure(NetCodec(AE()), rows_with_nan()), ValueError, "not finite in row 3|data .*finite"),
        (lambda: latent.cached(NetCodec(AE()), rows_with_nan()), ValueError, "the data .*finite"),
        (
            lambda: latent.cached(NetCodec(AE(), shape=(3, 8, 8)), X),
            ValueError,
            r"data has event shape \(3, 4, 4\) .*, but the model works on \(3, 8, 8\)",
        ),
        (
            lambda: latent.measure(latent.from_functions(lambda x: x, lambda z: z, noise=1.0), X),
            ValueError,
            "loses nothing of these data.*give it noise=None",
        ),
        (
            lambda: latent.measure(latent.from_functions(lambda x: x.sum((1, 2, 3)), lambda z: z, noise=1.0), X),
            ValueError,
            r"a code has shape \(\): wanted channels first",
        ),
        (
            lambda: latent.measure(latent.from_functions(lambda x: x.long(), lambda z: z, noise=1.0), X),
            TypeError,
            "codes that are indices have no diffusion",
        ),
        (lambda: latent.encoded(Plain(scale="a"), X), TypeError, "scale of Plain is str, wanted one number"),
        (lambda: latent.encoded(Plain(shift=None), X), TypeError, "shift of Plain is NoneType"),
        (lambda: bound(Plain(noise=torch.ones(3))), ValueError, r"noise of Plain has shape \(3,\): wanted one number"),
        (lambda: learnt(latent.from_autoencoder(AE(), noise=0.1), out="nowhere"), TypeError, "not kept by name"),
    ],
)
def test_at_the_door_it_is_said_what_is_wrong(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
    assert not Path("nowhere").exists()


class Plain:
    """A codec of no base class, which holds a dropout in a list and in a dict of lists."""

    def __init__(self, **units: Any) -> None:
        self.scale, self.shift, self.noise = 1.0, 0.0, 0.1
        vars(self).update(units)
        self.held, self.more = [nn.Dropout(0.5)], {"a": [nn.Dropout(0.5)]}

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.more["a"][0](self.held[0](x)), 0.1 + 0 * x

    def decode(self, z: Tensor) -> Tensor:
        return z

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape


def bound(codec: Any) -> Any:
    model = Gaussian(VPSDE(), torch.zeros(3, 4, 4), 1.0)
    return latent.elbo(latent.LatentSampler(SDESampler(model.sde, model), codec), X)


# --- modes, dtypes


def test_the_shape_of_a_code_is_found_in_evaluation_mode_and_without_a_draw():
    net = Noisy().train()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    assert NetCodec(net).shape_of((3, 4, 4)) == (4, 2, 2)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert net.training


def test_a_run_with_running_statistics_that_was_cut_short_ends_as_one_that_was_not(tmp_path):
    whole = learnt(Named()).codec
    with pytest.raises(training.TrainingInterrupted):
        learnt(Named(), out=tmp_path, callbacks=[cut])
    again = learnt(Named(), out=tmp_path, resume=True).codec
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert torch.equal(whole.scale, again.scale)


class Named(Noisy):
    @property
    def config(self) -> dict[str, Any]:
        return {}


class Holder:
    """An object with a module in it, and no module itself."""

    def __init__(self) -> None:
        self.net = Noisy()

    def encode(self, x: Tensor) -> Any:
        return self.net.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.net.decode(z)


def test_the_modules_of_an_object_with_methods_are_trained_and_held_in_evaluation_mode():
    done = learnt(latent.from_autoencoder(Holder(), noise=0.1)).codec
    assert sum(p.numel() for p in done.net.parameters()) == sum(p.numel() for p in Noisy().parameters())
    one, two = (latent.cached(done.train(), X).code.mean for _ in range(2))
    assert torch.equal(one, two)
    for p in done.parameters():
        p.data.zero_()
    assert not bool(done.encode(X)[0].any())


def test_modules_in_lists_and_dicts_of_a_codec_are_in_evaluation_mode():
    codec = Plain()
    assert torch.equal(latent.cached(codec, X).code.mean, X)
    assert codec.held[0].training
    held = [nn.Dropout(0.5)]
    held.append(held)  # type: ignore[arg-type]  # a list in itself ends no search
    with Evaluation(lambda x: 1 * held[0](x)):
        assert not held[0].training


# --- rows


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_bytes_and_half_precision_are_refused_by_all_who_read_rows_for_a_codec(dtype):
    codec, x = NetCodec(AE()), X.to(dtype)
    for use in (
        lambda: latent.cached(codec, x),
        lambda: latent.measure(codec, x),
        lambda: latent.train_codec(codec, x.numpy(), steps=1),
    ):
        with pytest.raises(TypeError, match=f"data has dtype {dtype}"):
            use()


class Halved(data.Source):
    """Rows of twice the numbers, which its transform halves and adds noise to, in place."""

    def __init__(self) -> None:
        self.x = torch.cat([X, 0 * X], -1)
        self.shape = tuple(self.x.shape[1:])
        self.about = {"latent": {"digest": "that of another"}}

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, numbers: Tensor) -> data.Batch:
        return data.Batch(self.x[numbers], {})

    def transform(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        rows.mul_(2.0)
        return rows[..., :4] + 0.1 * torch.randn(rows[..., :4].shape, generator=generator)


def test_a_codec_sees_the_rows_after_the_transform_of_their_source_and_that_of_the_training():
    seen = Halved().transform(Halved().x, one_stream(0, use=Use.DEQUANTISATION))
    codec = latent.measure(NetCodec(AE()), Halved())
    other = latent.measure(NetCodec(AE()), 2 * X)
    torch.testing.assert_close(codec.scale, other.scale, rtol=0.05, atol=0)
    codes = latent.cached(codec, Halved())
    torch.testing.assert_close(codes.code.mean, latent.encoded(codec, seen).mean.detach())
    assert codes.about["latent"] == {"shape": [3, 4, 4], "digest": codec.digest()}
    recipe = Recipe(16, transform=lambda rows, generator: rows[:, :, :2])
    done = latent.train_codec(AE(), Halved(), steps=1, recipe=recipe, seed=0).codec
    assert done.shape == (3, 2, 4)


def test_of_a_stream_the_first_rows_are_measured_as_many_as_are_asked_for():
    sizes: list[int] = []

    def encode(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    codec = latent.from_functions(encode, lambda z: z)
    loader = DataLoader(X, sampler=WeightedRandomSampler([1.0] * 32, 32), batch_size=16)  # type: ignore[arg-type,var-annotated]  # a tensor has len and rows
    latent.measure(codec, loader, rows=10, batch_size=4)
    assert sizes == [4, 4, 2]


def test_a_run_that_fails_before_its_first_step_leaves_the_units_of_a_codec_sound(tmp_path):
    codec = latent.measure(NetCodec(AE(), shape=(3, 4, 4)), X)
    with pytest.raises(ZeroDivisionError):
        learnt(codec, recipe=Recipe(16, optimiser=lambda parameters, lr: 1 / 0))  # type: ignore[arg-type,return-value]  # fails
    assert codec.measured
    with pytest.raises(training.TrainingInterrupted) as caught:
        learnt(codec, callbacks=[cut], val=training.Validation(X.flip(-1), every=1))
    assert not any(vars(each)["measured"] for each in (codec, caught.value.training.model))


def test_what_is_kept_of_the_codec_beside_a_model_is_not_overwritten(tmp_path):
    codec = latent.measure(NetCodec(AE(), shape=(3, 4, 4)), X)
    codes = latent.cached(codec, X)
    net = nets.UNet(4, width=8, multipliers=(1,), attention=0)
    model = Network(net, EDMSDE(), predict.edm, shape=codes.code_shape)
    for mine in ("mine", {"digest": "another"}):
        saving = training.Saving(tmp_path, extra={"latent": mine})
        with pytest.raises(ValueError, match=r"extra has an entry 'latent'.*under another name"):
            training.train(model, codes, steps=1, recipe=RECIPE, out=saving)
    saving = training.Saving(tmp_path, extra={"latent": {"codec": "of the file"}})
    training.train(model, codes, steps=1, recipe=RECIPE, out=saving)
    said = training.load_checkpoint(tmp_path).extra["latent"]
    assert said == {"shape": [3, 4, 4], "digest": codec.digest(), "codec": "of the file"}


def test_the_words_for_what_cannot_be_trained_name_codecs_as_well():
    codec = NetCodec(AE())
    with pytest.raises(TypeError, match=r"got AE; or another Trainable, as latent.NetCodec\(net\) makes"):
        training.train(AE(), X, steps=1)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match=r"objective is not made for: .*loss=model.objective\(\), or leave loss out"):
        learnt(codec, loss=codec.objective)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_for_the_net_and_units_stay_as_they_are(dtype):
    codec = NetCodec(AE(), scale=1e-5, shift=1e5, noise=0.37).to(dtype)
    assert next(codec.net.parameters()).dtype == dtype
    assert float(codec.scale) == pytest.approx(1e-5)
    assert float(codec.shift) == 1e5
    assert codec.noise == pytest.approx(0.37, rel=1e-6)


def test_a_codec_in_half_precision_answers_in_the_dtype_of_the_data():
    net = nets.Autoencoder(3, width=8, multipliers=(1, 1), latent=4)
    whole, half = NetCodec(net, shape=(3, 4, 4)), NetCodec(copy.deepcopy(net).bfloat16(), shape=(3, 4, 4))
    codes = latent.cached(latent.measure(half, X), X)
    assert codes.code.mean.dtype == torch.float32
    wide = latent.cached(latent.measure(whole, X), X).code.mean
    torch.testing.assert_close(codes.code.mean, wide, rtol=0.1, atol=0.1)
    assert half.decode(wide.double()).dtype == torch.float64


def test_codes_are_made_where_the_modules_of_a_codec_are(monkeypatch):
    asked: list[object] = []

    def home(codec: object) -> tuple[torch.dtype, torch.device]:
        asked.append(codec)
        return torch.float64, X.device

    codec = Plain()
    monkeypatch.setattr("sde_diffusion.latent.codes.home", home)
    assert latent.cached(codec, X).code.mean.dtype == torch.float64
    assert asked == [codec]


def test_codes_are_kept_in_the_dtype_of_the_codec():
    assert latent.cached(NetCodec(AE().double()), X.double()).code.mean.dtype == torch.float64
    assert latent.cached(NetCodec(AE()), X).code.mean.dtype == torch.float32


def test_an_autoencoder_of_diffusers_may_have_its_scale_in_latents_std_alone():
    net: Any = AE()
    net.__class__ = type("Wan", (AE,), {"config": {"latents_mean": [1.0, 0, 0, 0], "latents_std": [2.0, 4, 1, 1]}})
    codec = latent.from_diffusers(net)
    assert codec.scale.tolist() == [0.5, 0.25, 1.0, 1.0]
    assert codec.shift.tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("config", "scale", "shift"),
    [
        ({"latents_mean": [1.0, 2.0], "scaling_factor": 0.5}, 0.5, [1.0, 2.0]),
        ({"latents_std": [2.0, 4.0]}, [0.5, 0.25], 0.0),
        ({"latents_std": [2.0, 4.0], "scaling_factor": 2.0, "shift_factor": 0.1}, [1.0, 0.5], 0.1),
    ],
)
def test_mean_and_spread_of_an_autoencoder_of_diffusers_are_taken_each_for_itself(config, scale, shift):
    net: Any = AE()
    net.__class__ = type("One", (AE,), {"config": config})
    codec = latent.from_diffusers(net)
    assert codec.scale.tolist() == scale
    assert codec.shift.tolist() == pytest.approx(shift)


def test_a_validation_of_a_codec_takes_a_small_share_of_a_short_run():
    found = validation_of(X, 40, 3)
    assert found is not None
    assert (found.every, found.draws, found.patience) == (5, 16, 3)
    assert validation_of(X, 1000).every == 40  # type: ignore[union-attr]  # rows make one
    assert validation_of(found, 1000) is found
    assert validation_of(None, 1000) is None
