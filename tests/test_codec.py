"""A codec takes data to codes of unit scale and back, learns by `train` as a model does, and is kept beside one."""

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import run_processes
from torch import Tensor, nn

from sde_diffusion import EDMSDE, Network, SDESampler, data, latent, nets, predict, training
from sde_diffusion.data import source_of
from sde_diffusion.latent import NetCodec, Reconstruction, adapters
from sde_diffusion.latent.codes import drawn, kept_bytes
from sde_diffusion.nets import autoencoder
from sde_diffusion.noise.seeds import Use, one_stream
from sde_diffusion.training import Recipe

# the small codecs here save nothing, which is told of: what they learn is not their claim
pytestmark = pytest.mark.filterwarnings("ignore:a code .* nothing is saved")


def small(dims: int = 2, latent: int = 3, channels: int = 2, seed: int = 0) -> nets.Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nets.Autoencoder(channels, dims=dims, width=8, multipliers=(1, 1), latent=latent)


def signals(n: int, seed: int, length: int = 16) -> Tensor:
    """Sines of random frequency and phase, `(n, 1, length)`, of variance about 1."""
    generator = torch.Generator().manual_seed(seed)
    frequency, phase = torch.rand(2, n, 1, 1, generator=generator)
    return math.sqrt(2) * torch.sin(2 * math.pi * ((1 + frequency) * torch.linspace(0, 1, length) + phase))


class Linear:
    """A codec in closed form, of no base class: halves, doubles, adds."""

    scale, shift, noise = torch.tensor([2.0, -0.5]), torch.tensor([1.0, 0.0]), 0.1

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x / 2, torch.full_like(x, 0.3)

    def decode(self, z: Tensor) -> Tensor:
        return 2 * z

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape


# --- the protocol


def test_codes_come_at_unit_scale_and_back_by_the_formula():
    x = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    code = latent.encoded(Linear(), x)
    a, b = torch.tensor([2.0, -0.5]).view(2, 1), torch.tensor([1.0, 0.0]).view(2, 1)
    torch.testing.assert_close(code.mean, (x / 2 - b) * a)
    torch.testing.assert_close(code.std, 0.3 * a.abs().expand_as(x))
    torch.testing.assert_close(latent.decoded(Linear(), code.mean, (2, 3)), x)
    eps = torch.ones_like(x)
    torch.testing.assert_close(code.at(eps), code.mean + code.std)


def answering(**methods: Any) -> Any:
    codec = Linear()
    vars(codec).update(methods)
    return codec


X = torch.ones(3, 2, 4)


@pytest.mark.parametrize(
    ("codec", "kind", "message"),
    [
        (nn.Linear(2, 2), TypeError, "a codec has encode.*Linear lacks encode, decode, shape_of, scale, shift, noise"),
        (Linear, TypeError, "codec is the class Linear"),
        (answering(encode=lambda x: x), TypeError, "answered Tensor, wanted two tensors"),
        (answering(encode=lambda x: (x, None)), TypeError, "answered NoneType, wanted a standard deviation"),
        (answering(encode=lambda x: (x.long(), x)), TypeError, "codes that are indices have no diffusion"),
        (answering(encode=lambda x: (x[:1], x[:1])), ValueError, r"shape \(1, 2, 4\) for 3 rows"),
        (answering(encode=lambda x: (x, x[:, :1])), ValueError, "wanted one for each number of the mean"),
        (answering(encode=lambda x: (x, -x)), ValueError, "standard deviation of -1: wanted one above 0"),
        (answering(encode=lambda x: (x / 0, x)), ValueError, r"a mean that is not finite in rows 0, 1, 2 \(3 of 3\)"),
        (answering(scale=0.0), ValueError, "scale of Linear must be finite and not 0, got 0.0"),
        (answering(shift=torch.ones(3)), ValueError, r"shift of Linear has shape \(3,\) and codes have \(2, 4\)"),
    ],
)
def test_a_codec_that_answers_wrongly_is_told_so(codec, kind, message):
    with pytest.raises(kind, match=message):
        latent.encoded(codec, X)


def test_a_decoder_is_held_to_the_shape_and_a_bad_row_stays_its_own():
    with pytest.raises(ValueError, match=r"answered data of shape \(2, 4\), wanted \(1, 4\)"):
        latent.decoded(Linear(), X, (1, 4))
    z = X.clone()
    z[1] = math.nan
    x = latent.decoded(Linear(), z)
    assert bool(x[1].isnan().all())
    assert bool(x[[0, 2]].isfinite().all())


# --- the autoencoder


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_an_autoencoder_halves_fields_of_any_dimension_row_by_row_and_is_rebuilt_from_its_config(dims):
    net = small(dims)
    x = torch.randn(3, 2, *[4] * dims)
    mean, std = net.encode(x)
    assert mean.shape == std.shape == (3, 3, *[2] * dims)
    assert bool((std > 0).all())
    assert net(x).shape == x.shape
    torch.testing.assert_close(net.encode(x[1:2])[0], mean[1:2])
    twin = nets.Autoencoder(**net.config)
    twin.load_state_dict(net.state_dict())
    torch.testing.assert_close(twin(x), net(x))
    assert NetCodec(net).shape_of((2, *[8] * dims)) == (3, *[4] * dims)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_fresh_autoencoder_loses_nothing_with_as_many_channels_as_numbers_and_else_the_highest_waves(dims):
    x = torch.randn(4, 2, *[4] * dims, generator=torch.Generator().manual_seed(0))
    whole = nets.Autoencoder(2, dims=dims, width=8, multipliers=(1,), latent=2 * 2**dims, patch=2)
    torch.testing.assert_close(whole(x), x, atol=1e-5, rtol=1e-5)
    less = nets.Autoencoder(2, dims=dims, width=8, multipliers=(1,), latent=2, patch=2)  # the means of the patches
    pool = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dims - 1](2)
    torch.testing.assert_close(less.encode(x)[0], pool(x))
    torch.testing.assert_close(less(x), nn.functional.interpolate(pool(x), scale_factor=2.0))
    torch.testing.assert_close(less.encode(x)[1].log(), torch.full_like(pool(x), 6 * math.tanh(-0.5)))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_patches_become_channels_and_are_given_back_point_by_point(dims):
    net = nets.Autoencoder(2, dims=dims, width=8, multipliers=(1,), latent=3, patch=2)
    x = torch.arange(2.0 * 2 * 4**dims).reshape(2, 2, *[4] * dims)
    gathered = autoencoder._gathered(x, 2)
    assert gathered.shape == (2, 2 * 2**dims, *[2] * dims)
    firsts: tuple[Any, ...] = (slice(None), 0, *[slice(None, None, 2)] * dims)
    assert torch.equal(gathered[:, 0], x[firsts])  # the first point of each patch
    assert torch.equal(autoencoder._spread(gathered, 2), x)
    assert net(x).shape == x.shape
    assert NetCodec(net).shape_of((2, *[4] * dims)) == (3, *[2] * dims)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: nets.Autoencoder(1, width=12), ValueError, "width must be a multiple of 8"),
        (lambda: nets.Autoencoder(1, dims=4), ValueError, "dims must be 1, 2 or 3"),
        (lambda: nets.Autoencoder(1, multipliers=3), TypeError, "multipliers must be a sequence"),  # type: ignore[arg-type]  # on purpose
        (lambda: small().encode(torch.zeros(1, 2, 5, 4)), ValueError, r"multiple of 2, got \(5, 4\).*to \(6, 4\)"),
        (lambda: small().encode(torch.zeros(1, 1, 4, 4)), ValueError, r"x must have shape \(B, 2, H, W\)"),
        (lambda: small().decode(torch.zeros(1, 2, 4, 4)), ValueError, r"z must have shape \(B, 3, H, W\)"),
        (lambda: small().encode(torch.zeros(1, 2, 4, 4).double()), TypeError, "x is torch.float64"),
        (lambda: NetCodec(nn.Identity()), TypeError, "got Identity, which lacks encode"),
        (lambda: NetCodec(small(), scale=[1.0, 0.0, 1.0]), ValueError, "scale must be finite and not 0"),
        (lambda: NetCodec(small(), shift=torch.ones(2, 2)), ValueError, r"shift has shape \(2, 2\)"),
        (lambda: NetCodec(small(), shift="one"), TypeError, "shift must be a number, or one for each channel, got str"),
        (lambda: NetCodec(small(), noise=0.0), ValueError, "noise must be positive"),
        (lambda: Reconstruction(-1.0), ValueError, "kl is the weight on the information"),
    ],
)
def test_sizes_and_units_are_looked_at(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


# --- the objective


def test_the_objective_is_the_evidence_bound_of_a_variational_autoencoder_in_nats():
    codec, x = NetCodec(small(), noise=0.7), torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    mean, std = codec.encode(x)
    eps = torch.randn(mean.shape, generator=torch.Generator().manual_seed(2))
    error = torch.distributions.Normal(codec.decode(mean + std * eps), 0.7).log_prob(x).sum((1, 2, 3))
    told = torch.distributions.kl_divergence(torch.distributions.Normal(mean, std), torch.distributions.Normal(0, 1))
    for kl in (0.0, 0.1, 1.0):
        wanted = (-error + kl * told.sum((1, 2, 3))) / 32
        torch.testing.assert_close(Reconstruction(kl)(codec, x, eps=eps, reduction="none"), wanted)
        torch.testing.assert_close(Reconstruction(kl)(codec, x, eps=eps), wanted.mean())


# --- training


def run(steps: int = 12, **options: Any) -> latent.CodecTraining:
    net = small(1, 2, 1).double()
    options = {"seed": 3, "recipe": Recipe(16), **options}
    return latent.train_codec(net, signals(64, 0).double(), steps=steps, **options)


def test_training_measures_units_by_channel_and_the_noise_of_the_decoder():
    done = run()
    x = signals(64, 0).double()
    mean, std = done.codec.encode(x)
    torch.testing.assert_close(done.codec.shift.double(), mean.mean((0, 2)), rtol=1e-5, atol=1e-6)
    variance = mean.var((0, 2), correction=0) + std.square().mean((0, 2))
    torch.testing.assert_close(done.codec.scale.double(), variance.rsqrt(), rtol=1e-5, atol=1e-6)
    eps = torch.randn(mean.shape, dtype=mean.dtype, generator=one_stream(3, use=Use.CODES))
    error = (x - done.codec.decode(mean + std * eps)).square().mean().sqrt().detach()
    assert done.codec.noise == pytest.approx(float(error), rel=1e-5)
    assert not done.codec.training
    assert len(done.training.losses) == 12


def test_micro_batches_see_the_same_noise_and_learn_the_same():
    one, four = (run(recipe=Recipe(16, accumulate=k)).codec for k in (1, 4))
    pairs = zip(one.parameters(), four.parameters(), strict=True)
    assert max(float((p - q).detach().abs().max()) for p, q in pairs) < 1e-9


def test_a_run_that_was_cut_short_ends_with_the_same_codec_and_a_model_may_lie_beside_it(tmp_path):
    whole = run().codec

    def cut(event: training.Event) -> None:
        if event.kind == "step" and event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(training.TrainingInterrupted, match="after 5 of 12 steps"):
        run(out=tmp_path, callbacks=[cut])
    with pytest.raises(ValueError, match=r"loss is Reconstruction\(kl=1.0\), but the run .* Reconstruction\(kl=0.1\)"):
        run(out=tmp_path, resume=True, loss=Reconstruction(1.0))
    again = run(out=tmp_path, resume=True).codec
    codes = latent.cached(whole, signals(64, 0), dtype=torch.float64)
    net = nets.UNet(2, dims=1, width=8, multipliers=(1,), attention=0).double()
    model = Network(net, EDMSDE(), predict.edm, shape=codes.code_shape)
    training.train(model, codes, steps=2, seed=0, recipe=Recipe(16), out=tmp_path)
    found = latent.load_codec(tmp_path)
    for other in (again, found.codec):
        pairs = zip(other.net.parameters(), whole.net.parameters(), strict=True)
        assert other.noise == pytest.approx(whole.noise, rel=1e-12)
        assert all(torch.equal(p, q) for p, q in pairs)
        assert torch.equal(other.scale, whole.scale)
        assert torch.equal(other.shift, whole.shift)
    assert found.extra == {"steps": 12, "seed": 3}
    assert found.codec.shape == (1, 16)
    assert training.load_checkpoint(tmp_path).model.shape == codes.code_shape


def test_a_validation_goes_by_the_objective_on_rows_kept_out():
    done = run(val=training.Validation(signals(32, 1).double(), draws=2, every=6))
    found = done.training.validations
    assert [each["step"] for each in found] == [6, 12]
    assert found[1]["val_loss"] == found[1]["val_nats"]
    assert done.training.best == 12
    values = Reconstruction()(done.codec, signals(32, 1).double(), reduction="none").detach()
    assert abs(found[1]["val_loss"] - float(values.mean())) < 0.2  # of the average before it was measured


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: latent.train_codec(NetCodec(small(), noise=None), X, steps=1),
            ValueError,
            "noise=None is not trained",
        ),
        (lambda: latent.train_codec(nn.Identity(), X, steps=1), TypeError, "lacks encode"),
        (lambda: latent.save_codec("x", small()), TypeError, "writes a NetCodec, got Autoencoder"),  # type: ignore[arg-type]  # on purpose
        (lambda: latent.load_codec("nowhere"), FileNotFoundError, "give a folder written by train_codec or save_codec"),
        (lambda: latent.cached(Linear(), Endless()), TypeError, "Endless is a stream"),
        (
            lambda: latent.measure(latent.from_functions(torch.zeros_like, lambda z: z, noise=1.0), X),
            ValueError,
            "channel 0 of the codes is 0 for all data",
        ),
    ],
)
def test_what_cannot_be_trained_or_kept_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


class Endless(torch.utils.data.IterableDataset):  # type: ignore[type-arg]  # torch's own is generic in stubs alone
    def __iter__(self) -> Any:
        while True:
            yield X[0]


def test_a_codec_whose_net_has_no_config_is_not_written(tmp_path):
    with pytest.raises(TypeError, match=r"not kept by name.*NetCodec\(module\); or keep its state_dict"):
        latent.save_codec(tmp_path, latent.from_functions(lambda x: x, lambda z: z))


def test_an_edited_description_is_refused(tmp_path):
    codec = NetCodec(small())
    latent.save_codec(tmp_path, codec)
    for about, message in (
        ({"format": "other"}, "does not describe a codec"),
        ({"format": "sde_diffusion codec", "version": 7}, "format version 7, and this is version 1"),
        ({"format": "sde_diffusion codec", "version": 1}, "no sound entry 'net'"),
    ):
        training.store.write(tmp_path, "codec", about, {"a": torch.zeros(1)})
        with pytest.raises(ValueError, match=message):
            latent.load_codec(tmp_path)
    about = {"format": "sde_diffusion codec", "version": 1, **codec.described(), "extra": {}}
    about |= {"noise": -1.0, "scaling": {"name": "Standardise", "fields": {"mean": 0.0, "std": 1.0}}}
    training.store.write(tmp_path, "codec", about, codec.net.state_dict())
    with pytest.raises(ValueError, match="cannot be put together: noise must be positive"):
        latent.load_codec(tmp_path)


# --- cached codes


def test_cached_codes_keep_their_law_and_conditions_and_every_batch_draws_afresh():
    codec, x = Linear(), torch.randn(10, 2, 4, generator=torch.Generator().manual_seed(0))
    codes = latent.cached(codec, {"x": x, "label": torch.arange(10)}, batch_size=3)
    law = latent.encoded(codec, x)
    numbers = torch.tensor([7, 1, 7])
    batch = codes.rows(numbers)
    torch.testing.assert_close(batch.x, torch.stack([law.mean, law.std], 1)[numbers])
    assert batch.cond["label"].tolist() == [7, 1, 7]
    assert len(codes) == 10
    assert codes.code_shape == (2, 4)
    assert codes.cond["label"] is codes.labels()
    told: Any = source_of({"x": x, "label": torch.arange(10), "context": torch.zeros(10, 3), "caption": ["a"] * 10})
    assert kept_bytes(told, (2, 4)) == 10 * (2 * 4 * 8 + 8 + 3 * 4 + sys.getsizeof("a"))
    z = drawn(batch.x, torch.Generator().manual_seed(5))
    eps = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(z, law.mean[numbers] + law.std[numbers] * eps)
    kept, _ = data.split(codes, 0.3)
    assert kept.transform is drawn


def test_a_transform_of_ones_own_follows_that_of_the_codes():
    seen: list[tuple[int, ...]] = []

    def mirrored(z: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(tuple(z.shape[1:]))
        return z.flip(-1)

    codes = latent.cached(latent.from_functions(lambda x: x, lambda z: z), signals(32, 0, 8))
    model = Network(nets.UNet(1, dims=1, width=8, multipliers=(1,), attention=0), EDMSDE(), predict.edm, shape=(1, 8))
    done = training.train(model, codes, steps=1, recipe=Recipe(8, transform=mirrored), seed=0)
    assert set(seen) == {(1, 8)}
    assert "Then(first=" in repr(done.recipe)


# --- adapters


class VAE(nn.Module):
    """What `AutoencoderKL` of diffusers looks like from outside."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.factor = nn.Parameter(torch.tensor(0.5))

    def encode(self, x: Tensor) -> Any:
        law = SimpleNamespace(mean=self.factor * x, std=torch.full_like(x, 0.1), sample=lambda: None)
        return SimpleNamespace(latent_dist=law)

    def decode(self, z: Tensor) -> Any:
        return SimpleNamespace(sample=z / self.factor)


@pytest.mark.parametrize(
    ("config", "scale", "shift"),
    [
        ({"scaling_factor": 0.18215}, [0.18215] * 2, [0.0] * 2),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, [0.3611] * 2, [0.1159] * 2),
        ({"scaling_factor": 0.5, "latents_mean": [1.0, 2.0], "latents_std": [2.0, 4.0]}, [0.25, 0.125], [1.0, 2.0]),
    ],
)
def test_an_autoencoder_of_diffusers_has_its_scaling_and_shift(config, scale, shift):
    vae = VAE(**config)
    codec = latent.from_diffusers(vae)
    a, b = (torch.tensor(v).view(2, 1) for v in (scale, shift))
    code = latent.encoded(codec, X)
    torch.testing.assert_close(code.mean, (0.5 * X - b) * a)
    torch.testing.assert_close(code.std, 0.1 * a.expand_as(X))
    torch.testing.assert_close(latent.decoded(codec, code.mean), X)
    assert codec.noise is None
    assert any(p is vae.factor for p in codec.parameters())
    torch.testing.assert_close(latent.encoded(codec.half(), X).mean, code.mean, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: (x, torch.zeros_like(x)),
        lambda x: SimpleNamespace(latents=x),
        lambda x: torch.distributions.Normal(x, 0 * x + 1e-9, validate_args=False),
    ],
    ids=["tensor", "tuple", "pair", "latents", "distribution"],
)
def test_answers_of_every_usual_form_are_understood(answer):
    codec = latent.from_functions(answer, lambda z: (z,), shape=(2, 4))
    code = latent.encoded(codec, X)
    torch.testing.assert_close(code.mean, X)
    torch.testing.assert_close(code.std, torch.zeros_like(X), atol=1e-6, rtol=0)
    torch.testing.assert_close(latent.decoded(codec, X), X)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: latent.from_autoencoder(nn.Identity()), TypeError, "Identity has no encode: from_functions"),
        (lambda: latent.from_diffusers(nn.Identity()), TypeError, "Identity has no config, as AutoencoderKL has"),
        (lambda: latent.from_diffusers(VAE()), ValueError, "the configuration of VAE has no scaling_factor"),
        (lambda: latent.from_functions(None, abs), TypeError, "encode must be a function from data to codes"),  # type: ignore[arg-type]  # on purpose
        (lambda: adapters.from_functions(str, abs).encode(X), TypeError, "the encoder answered str, wanted a tensor"),
        (lambda: adapters.from_functions(abs, str).decode(X), TypeError, "the decoder answered str, wanted a tensor"),
    ],
)
def test_other_things_are_no_autoencoders(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


# --- end to end


@pytest.mark.slow
def test_two_processes_learn_the_codec_of_one_and_one_of_them_writes_it(tmp_path):
    def on(rank: int) -> list[Tensor]:
        codec = run(out=tmp_path / "run").codec
        return [codec.scale, codec.shift, *(p.detach() for p in codec.net.parameters())]

    alone = run().codec
    first, second = run_processes(2, on, tmp_path / "meet")
    found = latent.load_codec(tmp_path / "run").codec
    for part, kept, wanted in zip(first[2:], found.net.parameters(), alone.net.parameters(), strict=True):
        torch.testing.assert_close(part, wanted.detach(), rtol=0, atol=1e-9)
        assert torch.equal(part, kept)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(found.scale, first[0])
    assert torch.equal(found.shift, first[1])


@pytest.mark.slow
def test_signals_are_learnt_in_a_code_space_of_a_quarter_of_their_numbers():
    """1-D: sines of 32 numbers in codes of 2 x 4. Codes drawn by a model decode to sines of the right power."""
    torch.manual_seed(0)
    x = signals(2048, 0, 32)
    net = nets.Autoencoder(1, dims=1, width=16, multipliers=(1, 1, 2, 2), latent=2)
    codec = latent.train_codec(net, x, steps=300, seed=0, recipe=Recipe(64)).codec
    held_out = signals(512, 1, 32)
    code = latent.encoded(codec, held_out)
    error = (latent.decoded(codec, code.mean, (1, 32)) - held_out).square().mean().sqrt().detach()
    print(f"error of the reconstruction {float(error):.3f} of 1, noise of the decoder {codec.noise:.3f}")
    assert codec.shape_of((1, 32)) == (2, 4)
    assert error < 0.3
    codes = latent.cached(codec, x)
    unet = nets.UNet(2, dims=1, width=32, multipliers=(1, 2), attention=0, dropout=0.0)
    model = Network(unet, EDMSDE(), predict.edm, shape=codes.code_shape)
    trained = training.train(model, codes, steps=400, seed=0, recipe=Recipe(128)).model
    z = SDESampler(trained.sde, trained, nfe=15).sample(512, seed=0)
    y = latent.decoded(codec, z, (1, 32)).detach()
    power = y.square().mean((1, 2))
    t = 2 * math.pi * torch.linspace(0, 1, 32)
    pairs = [torch.stack([torch.sin(k / 20 * t), torch.cos(k / 20 * t)]) for k in range(20, 41, 2)]
    best = torch.stack([_residual(y[:, 0], pair) for pair in pairs]).amin(0)
    print(f"power {float(power.mean()):.3f}, off the nearest sine {float(best.sqrt().mean()):.3f}")
    assert abs(float(power.mean()) - 1) < 0.15
    assert float(best.sqrt().median()) < 0.4


def _residual(y: Tensor, pair: Tensor) -> Tensor:
    """The mean square of what a sine and a cosine leave of signals."""
    fitted = torch.linalg.lstsq(pair.T, y.T).solution
    return (y.T - pair.T @ fitted).square().mean(0)


def test_codes_that_save_nothing_are_told_of():
    net = nets.Autoencoder(1, dims=1, width=8, latent=4)
    with pytest.warns(UserWarning, match=r"a code \(4, 4\) has 16 numbers, a sample \(1, 16\) 16: nothing is saved"):
        latent.train_codec(net, torch.randn(8, 1, 16), steps=1, recipe=Recipe(4), seed=0)


def test_the_law_of_codes_is_not_decoded_but_its_mean_is():
    codec = latent.from_functions(lambda x: x[:, :1], lambda z: z.repeat(1, 2), shape=(2,), noise=1.0)
    with pytest.raises(TypeError, match=r"z is the law of codes .* decode code.mean, or a draw of it, code.at\(eps\)"):
        latent.decoded(codec, latent.encoded(codec, torch.zeros(3, 2)))  # type: ignore[arg-type]  # on purpose
