r"""Captions: text as a condition, read by a small encoder that is trained along with the network.

* `caption`, strings, one for each sample or one for all. A caption is its words, whatever their case and the
  punctuation between them; every word is one that the encoder knows. One without words, `""`, is the null condition.

The encoder makes tokens of them, to which the network listens, see `nets.tokens`. They are padded to one length, so
that a sample depends on its own caption alone.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion._checks import SolverError, check_count
from sde_diffusion.nets.base import Encoder
from sde_diffusion.nets.conditions import Numbers
from sde_diffusion.nets.embedding import Config, zero
from sde_diffusion.nets.second_time import with_until
from sde_diffusion.nets.tokens import HEADS

Captions = str | Sequence[str] | np.ndarray | None
"""What `caption=` takes: one string for all, or a list, a tuple or an array of one for each sample."""

_WORD = re.compile(r"\w+(?:['-]\w+)*")

__all__ = ["Captioned", "Captions", "TextEncoder", "Vocabulary", "words_of"]


def words_of(caption: str) -> list[str]:
    """The words of a caption, in small letters and composed (NFC): `"A thick seven, shifted left"` has five."""
    return _WORD.findall(unicodedata.normalize("NFC", caption.casefold()))


class Vocabulary:
    """The words that captions are made of, numbered from 1; 0 is no word.

    Args:
        words: The words, each once, in small letters.
        length: How many words a caption has at most.

    Raises:
        TypeError, ValueError: Words that are no single words, or come twice; a length that is no positive integer.
    """

    def __init__(self, words: Sequence[str], length: int) -> None:
        listed = isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)
        if not listed or not words:
            raise TypeError(f"words must be a list of words, such as ['a', 'thick', 'seven'], got {words!r:.80}")
        seen: set[str] = set()
        for i, word in enumerate(words):
            if words_of(word) != [word]:
                raise ValueError(
                    f"words[{i}] is {word!r}, wanted one word in small letters: TextEncoder.of(captions) finds them"
                )
            if word in seen:
                raise ValueError(f"word {word!r} comes twice in words: name it once")
            seen.add(word)
        self.words, self.length = list(words), check_count(length, "length")
        self._numbers = {word: i for i, word in enumerate(words, 1)}
        self._told = False

    def numbers(self, captions: Captions, first: int = 0, *, aloud: bool = True) -> Tensor:
        """The numbers of the words of captions, `(B, length)` int64; of one string `(1, length)`.

        Args:
            captions: Strings.
            first: The row that the first of them is, in an error.
            aloud: Whether to warn.

        Raises:
            TypeError: Something else than strings.
            ValueError: A word that is not known, with the nearest that is, if one is near; too many words.

        Warns:
            UserWarning: A caption that has something in it, and no word; once.
        """
        found = _listed(captions, first)
        rows = [self._row(caption, first + i) for i, caption in enumerate(found)]
        lost = [i for i, row in enumerate(rows) if not any(row) and found[i].strip()]
        if lost and aloud and not self._told:
            self._told = True
            more = f" (and {len(lost) - 1:,} more)" if len(lost) > 1 else ""
            warnings.warn(
                f"caption {first + lost[0]}, {found[lost[0]]!r:.80}{more}, has no word in it, and is the null "
                "condition, as '' is",
                UserWarning,
                stacklevel=2,
            )
        return torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(-1, self.length)

    def _row(self, caption: str, i: int) -> list[int]:
        words = words_of(caption)
        if len(words) > self.length:
            raise ValueError(
                f"caption {i} has {len(words)} words, {caption!r:.80}, and the net reads {self.length}: shorten it, or "
                f"train a net with TextEncoder(words, length={len(words)})"
            )
        unknown = next((word for word in words if word not in self._numbers), None)
        if unknown is not None:
            near = difflib.get_close_matches(unknown, self.words, 1)
            shown = ", ".join(self.words[:30]) + (f" and {len(self.words) - 30} more" if len(self.words) > 30 else "")
            raise ValueError(
                f"caption {i}, {caption!r:.80}, holds {unknown!r}, which the net has not learnt. "
                + (f"Nearest to it is {near[0]!r}; its words are {shown}" if near else f"Its words are {shown}")
            )
        return [self._numbers[word] for word in words] + [0] * (self.length - len(words))


class TextEncoder(nn.Module):
    """A small transformer from captions to tokens: embedded words that attend to one another.

    16k parameters for each layer of size 36, and `size` for each word. It is trained with the network that it is for.

    Args:
        words: The words that it knows, in small letters; `TextEncoder.of` takes them from captions.
        length: Words of a caption at most; shorter ones are padded to it, by tokens that are NaN.
        size: Entries d of a token, a multiple of 4: `tokens=d` of the network.
        layers: How many times words attend to one another.

    Shapes:
        captions, B strings or one -> (B, length, size) or (1, length, size), NaN in the rows of no word

    Raises:
        TypeError, ValueError: Words that are none, a size that is no multiple of 4; when called, what is no string, a
            word that is not known, with the nearest that is, and too many words.
        SolverError: When called, weights that have become NaN: its tokens would read as those that are not there.

    Example:
        >>> encoder = TextEncoder.of(captions, size=64)
        >>> net = Captioned(UNet(1, tokens=64), encoder)
    """

    def __init__(self, words: Sequence[str], *, length: int = 16, size: int = 64, layers: int = 1) -> None:
        super().__init__()
        self.vocabulary = Vocabulary(words, length)
        if check_count(size, "size") % HEADS:
            raise ValueError(f"size must be a multiple of {HEADS}, got {size}. Use {size // HEADS * HEADS + HEADS}")
        self.length, self.size = length, size
        self.embed = nn.Embedding(len(words) + 1, size)
        self.places = nn.Parameter(torch.zeros(length, size, device=torch.get_default_device()))
        self.layers = nn.ModuleList(_Layer(size) for _ in range(check_count(layers, "layers")))
        self.norm = nn.LayerNorm(size)

    @classmethod
    def of(cls, captions: Iterable[str], **sizes: Any) -> TextEncoder:
        """An encoder of the words of captions.

        Args:
            captions: Strings.
            **sizes: `size`, `layers`, and `length`, by default the words of the longest.
        """
        found = [words_of(caption) for caption in _listed(list(captions))]
        longest = max(map(len, found), default=0)
        return cls(sorted({word for words in found for word in words}), **{"length": longest, **sizes})

    @property
    def config(self) -> Config:
        """The constructor's arguments, ready for JSON."""
        words, layers = list(self.vocabulary.words), len(self.layers)
        return {"words": words, "length": self.length, "size": self.size, "layers": layers}

    def forward(self, captions: Captions) -> Tensor:
        """Reads captions: B strings, or one -> (B, length, size), or (1, length, size)."""
        read, absent = self.read(captions)
        if _lost(read):
            raise _broken()
        return torch.where(absent[:, :, None], math.nan, read)

    def read(self, captions: Captions) -> tuple[Tensor, Tensor]:
        """Tokens, (B, length, size), numbers also where there is no word, and where that is, (B, length)."""
        numbers = self.vocabulary.numbers(captions, aloud=not self.training).to(self.places.device)
        absent = numbers == 0
        alone = torch.eye(self.length, dtype=torch.bool, device=absent.device)
        hidden = absent[:, None, None] & ~alone  # what is no word is seen by itself alone: no row of a softmax is empty
        h = self.embed(numbers) + self.places
        for layer in self.layers:
            h = layer(h, hidden)
        return self.norm(h), absent


class _Layer(nn.Module):
    """Attention of words to one another, and a perceptron: (B, L, d) and (B, 1, L, L) -> (B, L, d).

    The attention is written out, as in all networks here: the fused one has neither forward-mode nor second
    derivatives.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.before, self.qkv = nn.LayerNorm(size), nn.Linear(size, 3 * size)
        self.project = zero(nn.Linear(size, size))
        self.between, self.widen, self.narrow = (
            nn.LayerNorm(size),
            nn.Linear(size, 2 * size),
            zero(nn.Linear(2 * size, size)),
        )

    def forward(self, h: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before(h)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        logits = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).masked_fill(hidden, -math.inf)
        h = h + self.project((torch.softmax(logits, dim=3) @ v).transpose(1, 2).flatten(2))
        out: Tensor = h + self.narrow(F.gelu(self.widen(self.between(h))))
        return out


class Captioned(nn.Module):
    """A network that is told a caption: its tokens are what an encoder makes of it.

    Conditions of the network itself go in beside it. `tokens=` in place of `caption=` are those that its encoder made
    before, `net.encoder(captions)`, for `Guided` too: a caption is else read again at every call, which costs little
    beside the network.

    Args:
        net: A network that is told tokens of the size of the encoder's, such as `UNet(1, tokens=64)`.
        encoder: What reads captions.

    Shapes:
        x and t as the network takes them, caption, B strings, or one for all, or None -> as x

    Raises:
        TypeError, ValueError: A network that takes no tokens, or those of another size; a caption that cannot be read;
            both a caption and tokens; as the network.
        SolverError: An encoder whose weights are not finite; in training the answer is NaN, as that of a network is.

    Example:
        >>> net = Captioned(UNet(1, tokens=64), TextEncoder.of(captions))
        >>> train(Network(net, sde, predict.edm, shape=(1, 16, 16)), images, steps=2000, caption=captions)
        >>> SDESampler(sde, model).sample(2, seed=0, caption=["a thick seven", "a thin one, shifted left"])
    """

    def __init__(self, net: nn.Module, encoder: TextEncoder) -> None:
        super().__init__()
        given: tuple[object, object] = (net, encoder)
        if not isinstance(given[0], nn.Module) or not isinstance(given[1], TextEncoder):
            raise TypeError(
                f"Captioned takes a network and a TextEncoder, got {type(net).__name__} and {type(encoder).__name__}"
            )
        size = getattr(net, "config", {}).get("tokens", encoder.size)
        if size != encoder.size:
            raise ValueError(
                f"the network was built with tokens={size}, and the encoder answers tokens of {encoder.size}: build "
                f"{type(net).__name__}(..., tokens={encoder.size})"
            )
        self.net, self.encoder = net, encoder
        self.per_sample = ("caption", *getattr(net, "per_sample", ("tokens",)))
        self.clock = getattr(net, "clock", None)

    @property
    def config(self) -> Config:
        """The constructor's arguments: the network and the encoder."""
        return {"net": self.net, "encoder": self.encoder}

    def forward(
        self, x: Tensor, t: Tensor, caption: Captions = None, *, tokens: Numbers = None, **others: Any
    ) -> Tensor:
        """Evaluates the net: x (B, *), t (B,), caption, B strings, or one for all, or None -> as x."""
        if caption is not None:
            if tokens is not None:
                raise ValueError("caption= and tokens= were given, and tokens are made of a caption: give one of them")
            read, absent = self.encoder.read(caption)
            tokens = torch.where(absent[:, :, None], math.nan, read)
            if _lost(read):  # NaN would read as a word that is not there: an answer of NaN is what `train` looks for
                if not (self.training or read.requires_grad):
                    raise _broken()
                x = x * math.nan
            if not isinstance(caption, str) and len(tokens) not in (1, len(x)):
                raise ValueError(
                    f"{len(tokens)} captions came for {len(x)} rows of x: give one for each, or one string"
                )
        out: Tensor = self.net(x, t, tokens=tokens, **others)
        return out

    def with_until(self) -> Captioned:
        """A copy that is told a second time, as a `FlowMap` does."""
        return Captioned(with_until(self.net), copy.deepcopy(self.encoder))

    def features(self, x: Tensor, t: Tensor, hint: Tensor, **told: Any) -> Any:
        """What the half of a network makes of a state and a hint, for a control."""
        return self(x, t, hint=hint, **told)

    def encoder_copy(self) -> Encoder:
        """A copy of what reads captions and of the encoder of the network, for a control."""
        make = getattr(self.net, "encoder_copy", None)
        if make is None:
            raise TypeError(f"{type(self.net).__name__} has no encoder_copy(), which a control is made of: UNet has it")
        half = make()
        reading = Captioned(half, copy.deepcopy(self.encoder))
        return Encoder(reading, dims=half.dims, hint=half.hint, widths=half.widths, stride=half.stride)


def _lost(read: Tensor) -> bool:
    """Whether tokens are not finite."""
    return not torch.compiler.is_compiling() and not bool(read.isfinite().all())


def _broken() -> SolverError:
    return SolverError(
        "the tokens of the TextEncoder are not finite, because its weights are not: take a checkpoint from before, or "
        "train it anew with a lower lr"
    )


def _listed(captions: object, first: int = 0) -> list[str]:
    """Captions as a list of strings."""
    found = [captions] if isinstance(captions, str) else captions
    if isinstance(found, np.ndarray) and found.ndim == 1:
        found = found.tolist()
    if not isinstance(found, list | tuple):
        got = "numbers" if isinstance(captions, Tensor) else type(captions).__name__
        raise TypeError(
            f"caption must be a string, or a list of one for each sample, got {got}"
            + "; numbers of classes are a label=" * (got == "numbers")
        )
    for i, caption in enumerate(found):
        if not isinstance(caption, str):
            raise TypeError(
                f"caption must be strings, got {type(caption).__name__} in row {first + i}; one of no words is ''"
            )
    return list(found)
