"""Claim: a caption, or tokens made elsewhere, reach each sample of their own in training, sampling and density."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from processes import run_processes
from torch import Tensor, nn

from sde_diffusion import EDMSDE, VPSDE, FlowMap, Network, SDESampler, SolverError, predict
from sde_diffusion.cli.plan.captions import read_captions
from sde_diffusion.data import Source, open_data, source_of
from sde_diffusion.distillation import distill
from sde_diffusion.guidance import Guided
from sde_diffusion.likelihood import Exact, Method
from sde_diffusion.nets import Captioned, Controlled, DiT, TextEncoder, UNet
from sde_diffusion.nets.lora import LoRA
from sde_diffusion.nets.second_time import ignores_until, with_until
from sde_diffusion.nets.text import words_of
from sde_diffusion.sampler.distributed import read_samples, sample_to
from sde_diffusion.solvers import Heun
from sde_diffusion.training import Recipe, Saving, Validation, load_checkpoint, save_checkpoint, train

WORDS = ["a", "left", "seven", "shifted", "thick", "thin", "two"]
TEXTS = ["a thick seven", "a thin two, shifted left", "Two", "", "a seven"]
N = len(TEXTS)


def awake(net: nn.Module) -> Any:
    """A net whose zero-initialised layers have left zero, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return net.eval()


def rows(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unet(**arguments: Any) -> UNet:
    torch.manual_seed(0)
    sizes: Any = {
        "dims": 1,
        "width": 8,
        "multipliers": (1, 1),
        "attention": 2,
        "tokens": 8,
        "dropout": 0.0,
        **arguments,
    }
    return UNet(1, **sizes)


def reading(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return awake(Captioned(unet(**arguments), TextEncoder(WORDS, length=6, size=8)))


def model(net: Any = None) -> Network:
    return Network(reading() if net is None else net, EDMSDE(), predict.edm, shape=(1, 4))


CLOSE: Any = {"rtol": 1e-3, "atol": 1e-4}
X, T, C = rows(N, 1, 4), rows(N), rows(N, 3, 8)
SHORT = Method(Heun(), steps=2, solver_error=False)
RECIPE = Recipe(batch_size=8)


# --- tokens


def test_the_attention_to_tokens_is_the_formula_over_those_that_are_there():
    """By a loop over samples, heads and points, with the null token beside those of the sample."""
    net = awake(unet(attention=1, multipliers=(1,)))
    listen, tokens = net.listening[0], C.clone()
    tokens[0, 2], tokens[1] = math.nan, math.nan
    h = rows(N, 4, 8)
    found = listen.attend(h, net.tokens(tokens, N))
    wanted = torch.empty_like(h)
    for i, there in enumerate((2, 0, 3, 3, 3)):
        told = torch.cat([tokens[i, :there], net.tokens.null[None]])
        kv = told @ listen.attend.kv.weight.T
        for p in range(4):
            q, heads = listen.attend.q(h[i, p]), []
            for part in range(4):
                mine = slice(2 * part, 2 * part + 2)
                k, v = kv[:, :8][:, mine], kv[:, 8:][:, mine]
                heads.append(torch.softmax(k @ q[mine] / math.sqrt(2), 0) @ v)
            wanted[i, p] = listen.attend.project(torch.cat(heads))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("net", [unet(), DiT((1, 4), width=16, heads=2, depth=1, tokens=8)], ids=["unet", "dit"])
def test_tokens_are_those_of_their_sample_and_absent_ones_change_nothing(net):
    net = awake(net)
    y = net(X, T, tokens=C)
    longer = torch.cat([C, torch.full((N, 2, 8), math.nan)], dim=1)
    torch.testing.assert_close(net(X, T, tokens=longer), y, **CLOSE)
    torch.testing.assert_close(net(X, T, tokens=longer.numpy()), y, **CLOSE)
    torch.testing.assert_close(net(X, T, tokens=C.flip(1)), y, **CLOSE)  # a set: their order is for an encoder to tell
    none = net(X, T)
    torch.testing.assert_close(net(X, T, tokens=torch.full((N, 3, 8), math.nan)), none, **CLOSE)
    assert (y - none).flatten(1).norm(dim=1).min() > 1e-3
    for i in range(N):
        torch.testing.assert_close(net(X[i : i + 1], T[i : i + 1], tokens=C[i]), y[i : i + 1], **CLOSE)


def test_tokens_for_all_are_read_once_and_a_fresh_net_answers_as_without():
    net, seen = awake(unet()), []
    net.listen[0].attend.kv.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    y = net(X, T, tokens=C[0])
    torch.testing.assert_close(net(X, T, tokens=C[:1].repeat(N, 1, 1)), y)
    assert torch.equal(net(X, T, tokens=C[:1].expand(N, 3, 8)), y)
    assert seen == [1, N, 1]
    before = unet().eval().state_dict()
    plain = unet(tokens=0).eval()
    plain.load_state_dict({name: value for name, value in before.items() if name in plain.state_dict()})
    fresh = unet().eval()
    for each in (fresh, plain):
        nn.init.ones_(list(each.head.parameters())[-2])
    assert torch.equal(fresh(X, T, tokens=C), plain(X, T))


@torch.no_grad()
def test_tokens_are_dropped_in_training_alone_and_their_null_must_have_been_learnt():
    net = awake(unet(tokens_drop=0.3))
    n = 2000
    x, t, c = torch.ones(n, 1, 4), torch.zeros(n), torch.ones(1, 8)
    kept, null = net(x[:1], t[:1], tokens=c), net(x[:1], t[:1])
    torch.manual_seed(0)
    y = net.train()(x, t, tokens=c)
    share = float(((y - null).flatten(1).norm(dim=1) < 0.1 * (kept - null).norm()).float().mean())
    se = (0.3 * 0.7 / n) ** 0.5
    print(f"dropped {share:.4f}, SE {se:.4f}")
    assert abs(share - 0.3) < 4 * se
    always = awake(unet(tokens_drop=0.0))
    for tokens in (None, torch.where(torch.arange(N)[:, None, None] == 3, math.nan, C)):
        with pytest.raises(ValueError, match=r"(no tokens were given to|row 3 of .*no token, for) a net .*drop=0"):
            always(X, T, tokens=tokens)


@pytest.mark.parametrize(
    ("tokens", "error", "text"),
    [
        (rows(N, 3, 7), ValueError, r"tokens must have shape \(5, L, 8\), one sequence per row of x, or \(L, 8\), one"),
        (rows(4, 3, 8), ValueError, r"got \(4, 3, 8\). Shorter sequences end in rows of NaN"),
        (rows(8), ValueError, r"got \(8,\)"),
        (C.isnan(), TypeError, "tokens must hold real numbers, got torch.bool"),
        (
            C.long(),
            TypeError,
            r"tokens must hold floats, the embedding of each word, got torch.int64: numbers of words",
        ),
        (C[:, :0], ValueError, r"with L at least 1, got \(5, 0, 8\)"),
        (C / 0, ValueError, "tokens hold infinity"),
        (
            torch.where(C[3, 1, 2] == C, math.nan, C),
            ValueError,
            "token 1 of row 3 of tokens is NaN in some of its 8",
        ),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tokens, error, text):
    with pytest.raises(error, match=text):
        unet()(X, T, tokens=tokens)
    with pytest.raises(ValueError, match=r"tokens was given to a net built with tokens=0. Leave .* tokens=d, the ent"):
        unet(tokens=0)(X, T, tokens=tokens)


PARTLY = C.clone()
PARTLY[4, 1, 2] = math.nan
MALFORMED: list[tuple[Any, type[Exception], str]] = [
    (rows(N, 3, 7), ValueError, r"tokens must have shape \(5, L, 8\).* got \(5, 3, 7\)"),
    (C[:4], ValueError, r"'tokens' has one row per sample, and 4 rows came for 5 samples"),
    (C[:, :0], ValueError, r"with L at least 1, got \(5, 0, 8\)"),
    (C[:, 0, :7], ValueError, r"tokens must have shape \(5, L, 8\).* got \(5, 7\)"),
    (C[..., None], ValueError, r"tokens must have shape \(5, L, 8\).* got \(5, 3, 8, 1\)"),
    (PARTLY, ValueError, "token 1 of row 4 of tokens is NaN in some of its 8 entries"),
    (C.long(), TypeError, "tokens must hold floats, .* got torch.int64"),
    (C.long().numpy(), TypeError, "tokens must hold floats, .* got torch.int64"),
    (torch.where(C[4, 0, 0] == C, math.inf, C), ValueError, "tokens hold infinity"),
]


@pytest.mark.parametrize(("tokens", "error", "text"), MALFORMED)
def test_malformed_tokens_are_refused_before_the_net_is_asked(tokens, error, text):
    """Those of the last row, too, which batches would come to last; of rows of data as of what comes beside them."""
    net, calls = model(unet()), []
    net.net.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(error, match=text):
        SDESampler(net.sde, net, steps=2).sample(N, seed=0, batch_size=2, tokens=tokens)
    with pytest.raises(error, match=text):
        SDESampler(net.sde, Guided(net, 2.0), steps=2).sample(N, seed=0, batch_size=2, tokens=tokens)
    with pytest.raises(error, match=text):
        train(net, X, steps=2, recipe=RECIPE, tokens=tokens)
    if len(tokens) == N:
        with pytest.raises(error, match=text):
            train(net, {"x": X, "tokens": tokens}, steps=2, recipe=RECIPE)
        with pytest.raises(error, match=text):
            train(net, X, steps=2, recipe=RECIPE, tokens=C, val=Validation(X + 0.1, tokens=tokens))
    assert not calls


def test_tokens_of_the_shape_of_one_sequence_are_one_for_all_whatever_the_number_of_samples():
    sampler = SDESampler(EDMSDE(), model(awake(unet())), steps=2)
    for length in (2, 3):
        one = sampler.sample(3, seed=0, batch_size=2, tokens=C[0, :length])
        torch.testing.assert_close(one, sampler.sample(3, seed=0, tokens=C[:1, :length].repeat(3, 1, 1)))
    listed = sampler.sample(3, seed=0, tokens=C[:3])
    torch.testing.assert_close(listed, sampler.sample(3, seed=0, batch_size=1, tokens=C[:3]))


# --- captions


@torch.no_grad()
def test_a_caption_is_its_words_whatever_their_case_and_the_punctuation():
    net = reading()
    y = net(X, T, caption=TEXTS)
    for same in (tuple(TEXTS), np.array(TEXTS), [text.upper() + "." * bool(text) for text in TEXTS]):
        assert torch.equal(net(X, T, caption=same), y)
    assert torch.equal(net(X, T, tokens=net.encoder(TEXTS)), y)
    torch.testing.assert_close(y[3], net(X, T)[3])  # no words: the null condition
    others = [net(X, T, caption=["a thin seven", *TEXTS[1:]])[0], net(X, T, caption=["thick a seven", *TEXTS[1:]])[0]]
    assert min(float((y[0] - other).norm()) for other in others) > 1e-4
    torch.testing.assert_close(net(X, T, caption=TEXTS[0]), net(X, T, caption=[TEXTS[0]] * N))


def test_a_caption_reaches_its_own_sample_bit_for_bit_and_in_batches():
    sampler = SDESampler(EDMSDE(), model(), steps=3)
    x = sampler.sample(N, seed=0, caption=TEXTS)
    other = sampler.sample(N, seed=0, caption=[TEXTS[0], *[TEXTS[1]] * (N - 1)])
    assert torch.equal(x[0], other[0])  # the others' captions, longer than its own, do not change it
    assert not torch.equal(x[2], other[2])
    torch.testing.assert_close(sampler.sample(N, seed=0, batch_size=2, caption=TEXTS), x, **CLOSE)
    for i in range(N):
        torch.testing.assert_close(sampler.sample(1, seed=i, caption=TEXTS[i])[0], x[i], **CLOSE)
    with pytest.raises(ValueError, match="caption 1, 'thik', holds 'thik', which the net has not learnt"):
        sampler.sample(2, caption=["a", "thik"])
    with pytest.raises(ValueError, match=r"'caption' has one row per sample, and 2 rows came for 5 samples"):
        sampler.sample(N, caption=TEXTS[:2])


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: TextEncoder([]), TypeError, r"words must be a list of words, such as .* got \[\]"),
        (lambda: TextEncoder(["Seven"]), ValueError, r"words\[0\] is 'Seven', wanted one word in small letters: Text"),
        (lambda: TextEncoder(["a", "b", "a"]), ValueError, "word 'a' comes twice in words"),
        (lambda: TextEncoder(WORDS, size=6), ValueError, "size must be a multiple of 4, got 6. Use 8"),
        (
            lambda: reading()(X, T, caption=3),
            TypeError,
            "caption must be a string, or a list of one for .*got int",
        ),
        (lambda: reading()(X, T, caption=["a", None]), TypeError, "got NoneType in row 1; one of no words is ''"),
        (
            lambda: reading()(X, T, caption=["a", "a thik seven"]),
            ValueError,
            "caption 1, 'a thik seven', holds 'thik', which the net has not learnt. Nearest to it is 'thick'; its wo",
        ),
        (
            lambda: reading()(X, T, caption="yonder"),
            ValueError,
            "holds 'yonder', which .* learnt. Its words are",
        ),
        (lambda: reading()(X, T, caption=T), TypeError, "got numbers; numbers of classes are a label="),
        (
            lambda: reading()(X, T, caption="a a a a a a a"),
            ValueError,
            r"caption 0 has 7 words, .* and the net reads 6: shorten it, or train a net with TextEncoder\(words, l",
        ),
        (
            lambda: reading()(X, T, caption=["a", "two"]),
            ValueError,
            "2 captions came for 5 rows of x: give one",
        ),
        (lambda: reading()(X, T, caption="a", tokens=C), ValueError, "caption= and tokens= were given"),
        (
            lambda: Captioned(unet(tokens=4), TextEncoder(WORDS, size=8)),
            ValueError,
            r"the network was built with tokens=4, and the encoder .* of 8: build UNet\(..., tokens=8\)",
        ),
        (lambda: Captioned(unet(), WORDS), TypeError, "a network and a TextEncoder, got UNet and list"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_read_is_refused_with_a_sentence(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_a_caption_that_lost_its_words_is_told_of_once_and_an_empty_one_is_meant():
    net = reading()
    with pytest.warns(UserWarning, match=r"^caption 1, '\?!' \(and 1 more\), has no word in it, and is the null cond"):
        net(X, T, caption=["a", "?!", "", " ", "..."])
    net(X, T, caption="?!")  # which is not told again
    x, texts = data()
    texts[3:] = ["..."] * (len(texts) - 3)
    with pytest.warns(UserWarning, match=r"caption 3, '...' \(and 36 more\), has no word in it"):
        train(fresh(), x, steps=1, recipe=RECIPE, caption=texts)


def test_an_encoder_that_is_lost_is_no_caption_left_out():
    net = reading()
    with torch.no_grad():
        net.encoder.embed.weight[WORDS.index("thick") + 1] = math.nan
        assert net(X, T, caption="a thin seven").isfinite().all()
        for call in (lambda: net(X, T, caption="a thick seven"), lambda: net.encoder("a thick seven")):
            with pytest.raises(SolverError, match="the tokens of the TextEncoder are not finite, because its weights"):
                call()
    net.train()
    assert net(X, T, caption="a thick seven").isnan().all()  # a loss that `train` leaves out
    assert net(X, T).isfinite().all()


def test_accents_are_the_same_in_one_sign_or_in_two():
    encoder = TextEncoder.of(["caf\u00e9", "CAFE\u0301 noir"], size=8)
    assert encoder.vocabulary.words == ["caf\u00e9", "noir"]
    assert words_of("E\u0301te\u0301") == ["\u00e9t\u00e9"]


def test_a_file_of_captions_ends_with_its_last_line_that_is_not_blank(tmp_path):
    path, known = tmp_path / "said.txt", reading().encoder.vocabulary
    path.write_text("a thick seven\n\na thin seven\n\n  \n")
    with pytest.warns(UserWarning, match=r"1 of 3 captions in .*said.txt are empty, the null condition"):
        assert read_captions(str(path), known) == ["a thick seven", "", "a thin seven"]
    path.write_text("\n\n")
    with pytest.raises(ValueError, match="holds no captions, one in each line"):
        read_captions(str(path), known)


def test_guidance_takes_the_tokens_of_a_caption_in_place_of_it():
    net = reading()
    inner = model(net)
    for null in ({"caption": ""}, {"caption": "a thin"}):
        for one in (TEXTS[:N], TEXTS[0]):
            guided = SDESampler(inner.sde, Guided(inner, 2.0, null=null), steps=2)
            by_caption = guided.sample(N, seed=0, caption=one)
            torch.testing.assert_close(guided.sample(N, seed=0, tokens=net.encoder(one).detach()), by_caption)
            assert not torch.allclose(by_caption, guided.sample(N, seed=0, caption="two"), atol=1e-6)


def test_an_encoder_takes_its_words_and_its_length_from_captions():
    encoder = TextEncoder.of(TEXTS, size=8)
    assert encoder.config == {"words": WORDS, "length": 5, "size": 8, "layers": 1}


def test_guidance_goes_away_from_the_empty_caption_and_from_no_tokens_in_one_call():
    net, calls = reading(), []
    net.net.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    inner = model(net)
    guided = Guided(inner, 3.0)
    assert guided.null == {"caption": ""}
    x, t = X, torch.full((N,), 0.7)
    found = guided(x, t, caption=TEXTS).data
    assert calls == [2 * N]
    c, u = inner(x, t, caption=TEXTS).data, inner(x, t).data
    torch.testing.assert_close(found, u + 3 * (c - u))
    torch.testing.assert_close(guided(x, t, caption=TEXTS[0]).data[0], found[0])
    torch.testing.assert_close(Guided(inner, 3.0, batched=False)(x, t, caption=TEXTS).data, found)
    negative = Guided(inner, 3.0, null={"caption": "a thin"})(x, t, caption=TEXTS).data
    away = inner(x, t, caption="a thin").data
    torch.testing.assert_close(negative, away + 3 * (c - away))
    plain = model(awake(unet()))
    tokens = Guided(plain, 3.0)
    c, u = plain(x, t, tokens=C).data, plain(x, t).data
    torch.testing.assert_close(tokens(x, t, tokens=C).data, u + 3 * (c - u))
    torch.testing.assert_close(tokens(x, t, tokens=C[0]).data[:1], (u + 3 * (c - u))[:1])
    with pytest.raises(ValueError, match=r"built with tokens_drop=0. Train one with tokens_drop=0.1"):
        Guided(model(unet(tokens_drop=0.0)), 2.0)


def test_the_density_of_a_sample_is_that_under_its_caption():
    """Its divergence by forward and by backward derivatives; a caption alone gives the same as in a batch."""
    net = model(reading().double())
    x, sampler = X.double(), SDESampler(net.sde, net)
    found = sampler.log_prob(x, method=SHORT, caption=TEXTS)
    alone = sampler.log_prob(x[:1], method=SHORT, caption=TEXTS[0])
    torch.testing.assert_close(found.value[:1], alone.value, rtol=1e-6, atol=1e-6)
    other = sampler.log_prob(x, method=SHORT, caption=TEXTS[::-1])
    assert float((found.value - other.value)[[0, 1, 3, 4]].abs().min()) > 1e-3
    forward = sampler.log_prob(x, method=replace(SHORT, trace=Exact(forward=True)), caption=TEXTS)
    torch.testing.assert_close(found.value, forward.value)
    one, t = x[:1].clone().requires_grad_(), torch.full((1,), 0.5, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda a: net(a, t, caption=TEXTS[0]).data.square(), (one,))


def test_a_copy_that_is_told_a_second_time_answers_as_the_net_does():
    net = reading()
    other = with_until(net)
    assert ignores_until(other)
    torch.testing.assert_close(other(X, T, TEXTS, until=T), net(X, T, TEXTS))
    assert all(a is not b for a, b in zip(other.encoder.parameters(), net.encoder.parameters(), strict=True))


def test_a_flow_map_of_a_captioned_network_is_distilled_and_kept_with_its_words(tmp_path):
    x, texts = data()
    teacher = fresh().eval()
    done = distill(teacher, x, steps=2, recipe=RECIPE, caption=texts, seed=0)
    save_checkpoint(tmp_path, done.model)
    loaded = load_checkpoint(tmp_path).model
    assert isinstance(loaded, FlowMap)
    wanted = cast(FlowMap, done.model).net(X, T, caption=TEXTS, until=T)
    assert torch.equal(loaded.net(X, T, caption=TEXTS, until=T), wanted)


def test_a_captioned_network_takes_controls_and_adapters():
    net = reading()
    steered = Controlled(net).eval()
    field = rows(N, 1, 4, seed=2)
    assert torch.equal(steered(X, T, caption=TEXTS, control=field), net(X, T, caption=TEXTS))  # at the start
    moved = awake(steered)
    assert not torch.equal(moved(X, T, caption=TEXTS, control=field), moved(X, T, caption="", control=field))
    sampler = SDESampler(EDMSDE(), model(moved), steps=2)
    x = sampler.sample(N, seed=0, caption=TEXTS, control=field)
    torch.testing.assert_close(sampler.sample(N, seed=0, batch_size=2, caption=TEXTS, control=field), x, **CLOSE)
    adapted = LoRA(net, rank=2).eval()
    assert torch.equal(adapted(X, T, caption=TEXTS), net(X, T, caption=TEXTS))


# --- captions as data


def fresh(**arguments: Any) -> Network:
    torch.manual_seed(0)
    return model(Captioned(unet(**arguments), TextEncoder(WORDS, length=6, size=8)))


def data(n: int = 40) -> tuple[Tensor, list[str]]:
    """A caption says of which sign a row is, and where it is large."""
    texts = list(itertools.islice(itertools.cycle(["thick left", "thin left", "thick", "thin"]), n))
    x = 0.3 * rows(n, 1, 4)
    for row, text in zip(x, texts, strict=True):
        row[0, 0 if "left" in text else 3] += 1.5 if "thick" in text else -1.5
    return x, texts


def numbers(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


class Pairs(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> Any:
        x, texts = data()
        return x[i], {"caption": texts[i]}


@pytest.mark.parametrize("kind", ["list", "array", "rows", "items", "frame"])
def test_captions_come_with_the_rows_in_any_form_of_strings(kind):
    x, texts = data()
    if kind == "frame":
        pandas = pytest.importorskip("pandas")
        given: Any = (x, {"caption": pandas.Series(texts)})
    else:
        given = {
            "list": (x, {"caption": texts}),
            "array": (x, {"caption": np.array(texts)}),
            "rows": ({"x": x, "caption": np.array(texts, dtype=object)}, {}),
            "items": (Pairs(), {}),
        }[kind]
    rows, cond = given
    net = fresh()
    done = train(net, rows, steps=2, seed=1, recipe=RECIPE, **cond)
    other = fresh()
    train(other, x, steps=2, seed=1, recipe=RECIPE, caption=texts)
    assert torch.equal(numbers(net), numbers(other))
    assert len(done.losses) == 2


def test_captions_stand_in_a_column_of_a_table(tmp_path):
    pytest.importorskip("pandas")
    path = tmp_path / "some.csv"
    path.write_text("x,y,caption,age\n1,2,a thick seven,3\n3,4.5,,4\n", encoding="utf-8")
    source = open_data(path, cond=["caption", "age"])
    batch = source.rows(torch.tensor([1, 0]))
    assert batch.cond["caption"] == ["", "a thick seven"]
    assert source.shape == (2,)
    assert batch.cond["context"].tolist() == [[4], [3]]
    path.write_text("x,y,caption\n1,2,7\n3,4,8\n", encoding="utf-8")
    with pytest.raises(TypeError, match=r"column 'caption' of .* holds 7 in row 0, line 2 .* and a caption is text"):
        open_data(path, cond=["caption"])


def test_a_caption_that_cannot_be_read_is_found_before_the_first_step():
    x, texts = data()
    texts[33] = "thik"
    with pytest.raises(ValueError, match=r"caption 33, 'thik', holds 'thik', which .* Nearest to it is 'thick'"):
        train(fresh(), x, steps=2, recipe=RECIPE, caption=texts)
    with pytest.raises(ValueError, match="val: caption 33, 'thik', holds"):
        train(fresh(), x, steps=2, recipe=RECIPE, caption=data()[1], val=Validation(x + 0.1, caption=texts))
    with pytest.raises(ValueError, match=r"the net reads captions, and none came: give caption=, a list of strings"):
        train(fresh(), x, steps=2, recipe=RECIPE)
    with pytest.raises(ValueError, match="built with tokens=8, and no tokens came: give tokens=, or build the net wit"):
        train(model(unet()), x, steps=2, recipe=RECIPE)
    with pytest.raises(ValueError, match=r"condition 'caption' has one row per sample, and 39 rows came for 40"):
        train(fresh(), x, steps=2, recipe=RECIPE, caption=data()[1][1:])


def test_a_run_on_captions_goes_on_bit_for_bit_and_comes_back_from_its_folder(tmp_path):
    x, texts = data()
    val = Validation(x[:8] + 0.1, caption=texts[:8], every=2)
    whole = fresh()
    done = train(whole, x, steps=4, seed=3, recipe=RECIPE, caption=texts, val=val)

    def stop(event: Any) -> None:
        if event.kind == "step" and event.step == 2:
            raise KeyboardInterrupt

    cut = fresh()
    with pytest.raises(KeyboardInterrupt):
        train(cut, x, steps=4, seed=3, recipe=RECIPE, caption=texts, val=val, out=Saving(tmp_path), callbacks=[stop])
    changed = [*texts[:-1], "two"]
    with pytest.raises(ValueError, match="data"):
        train(fresh(), x, steps=4, seed=3, recipe=RECIPE, caption=changed, val=val, out=Saving(tmp_path), resume=True)
    again = fresh()
    train(again, x, steps=4, seed=3, recipe=RECIPE, caption=texts, val=val, out=Saving(tmp_path), resume=True)
    assert torch.equal(numbers(again), numbers(whole))
    loaded = load_checkpoint(tmp_path).model
    wanted = SDESampler(whole.sde, done.model, steps=2).sample(N, seed=0, caption=TEXTS)
    assert torch.equal(SDESampler(loaded.sde, loaded, steps=2).sample(N, seed=0, caption=TEXTS), wanted)
    assert loaded.built_with()["words"] == WORDS


def test_a_job_over_processes_takes_captions_and_knows_them_again(tmp_path):
    sampler = SDESampler(EDMSDE(), model(), steps=2)
    wanted = sampler.sample(N, seed=0, batch_size=2, caption=TEXTS)
    job: Any = {"seed": 0, "batch_size": 2, "shard_size": 2}
    sample_to(sampler, N, tmp_path / "x", caption=TEXTS, **job)
    assert torch.equal(torch.as_tensor(np.array(read_samples(tmp_path / "x"))), wanted)
    with pytest.raises(ValueError, match="conditions"):
        sample_to(sampler, N, tmp_path / "x", caption=[*TEXTS[:-1], "two"], **job)


def test_embeddings_made_elsewhere_are_data_with_nan_where_there_is_no_token(tmp_path):
    """What a frozen encoder, here a table of vectors, makes of texts of one and of two words."""
    x, texts = data()
    table = {word: rows(8, seed=i) for i, word in enumerate(("thick", "thin", "left"))}
    tokens = torch.full((len(x), 2, 8), math.nan)
    for i, text in enumerate(texts):
        for j, word in enumerate(text.split()):
            tokens[i, j] = table[word]
    net = model(unet())
    val = Validation(x[:8] + 0.1, tokens=tokens[:8])
    done = train(net, x, steps=3, seed=0, recipe=RECIPE, tokens=tokens, val=val)
    save_checkpoint(tmp_path, done.model)
    loaded = load_checkpoint(tmp_path).model
    wanted = SDESampler(net.sde, done.model, steps=2).sample(3, seed=0, tokens=tokens[:3])
    assert torch.equal(SDESampler(net.sde, loaded, steps=2).sample(3, seed=0, tokens=tokens[:3]), wanted)
    source = cast(Source, source_of(x, {"tokens": tokens}))
    assert torch.equal(source.rows(torch.tensor([1])).cond["tokens"].isnan(), tokens[1:2].isnan())


@pytest.mark.slow
def test_what_is_asked_for_in_words_is_drawn():
    """The sign and the place of the largest entry, of 40 samples for each of four captions."""
    x, texts = data(400)
    torch.manual_seed(0)
    net = model(Captioned(unet(width=32), TextEncoder.of(texts, size=8)))
    done = train(net, x, steps=300, seed=0, recipe=Recipe(batch_size=64, lr=3e-3), caption=texts)
    asked = ["left, thick", "thin left", "thick", "thin"] * 40
    y = SDESampler(net.sde, done.model, steps=12).sample(160, seed=1, caption=asked)[:, 0]
    place, sign = (0 if "left" in text else 3 for text in asked), (1 if "thick" in text else -1 for text in asked)
    right = [int(row.abs().argmax()) == i and row[i] * k > 0 for row, i, k in zip(y, place, sign, strict=True)]
    print(f"as asked for: {sum(right)} of {len(right)}")
    assert sum(right) > 0.95 * len(right)


@pytest.mark.slow
def test_two_processes_train_on_captions_as_one_does(tmp_path):
    def ran(rank: int) -> tuple[Tensor, list[float]]:
        net = fresh(tokens_drop=0.0)  # or each draws what it drops
        x, texts = data()
        done = train(net, x, steps=3, seed=2, recipe=RECIPE, caption=texts)
        return numbers(net), done.losses

    wanted = ran(0)  # before processes are forked, each of which would import anew what a run imports
    one, other = run_processes(2, ran, tmp_path / "two")
    assert torch.equal(one[0], other[0])
    assert one[1] == other[1]
    assert one[1] == pytest.approx(wanted[1], rel=1e-4)


def test_the_null_of_another_kind_of_caption_is_left_to_the_caller():
    net = Network(lambda x, t, caption=None: 0 * x, VPSDE(), predict.noise, shape=(1, 4))
    with pytest.raises(ValueError, match="does not say what it takes for no condition"):
        Guided(net, 2.0)
