r"""Tokens, a sequence of vectors that a network is told, and the attention by which it listens to them.

* `tokens`, `(B, L, d)`, numbers: the embeddings of the words of a text, of the rows of a table, of anything. A row of
  NaN is a token that is not there, so that sequences of any length stand in one tensor.

One learnt token is always there beside them. A sample that has no other, because it was told none, because all its
rows are NaN or because they were dropped in training, is under the null condition, unconditional: all are the same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.nets.conditions import Numbers, check_probability, numbers_of, rows_of, unexpected
from sde_diffusion.nets.drops import Drop
from sde_diffusion.nets.embedding import zero

HEADS = 4
"""Heads of every attention to tokens."""

__all__ = ["HEADS", "CrossAttention", "TokensCondition", "Told", "check_tokens", "heard"]


class Told(NamedTuple):
    """Tokens as a network listens to them, the null token last.

    Attributes:
        values: `(B, L + 1, d)`, or `(1, L + 1, d)` for all; zeros where there is no token.
        absent: `(B, L + 1)` or `(1, L + 1)`, whether there is none.
    """

    values: Tensor
    absent: Tensor


class TokensCondition(nn.Module):
    """Tokens to what the layers of a network listen to.

    Args:
        size: Entries d of a token, each with standard deviation about 1.
        drop: Probability that a sample is told no token, in training mode only.

    Shapes:
        tokens (B, L, d), or one sequence for all, (1, L, d) or (L, d), or None -> (B, L + 1, d) and (B, L + 1)

    Raises:
        TypeError, ValueError: `tokens` are no floats, have another shape or hold infinity; a token with some entries
            that are NaN; a sample without tokens, and the net never learnt to do without.
    """

    def __init__(self, size: int, drop: float) -> None:
        super().__init__()
        check_probability("tokens_drop", drop)
        self.size, self.drop = size, Drop("tokens_drop", drop)
        self.null = nn.Parameter(torch.zeros(size, device=torch.get_default_device()))

    def forward(self, tokens: Numbers, batch: int) -> Told:
        null = self.null.reshape(1, 1, -1)
        if tokens is None:
            self._check_null("no tokens were given to")
            return Told(null, torch.zeros(1, 1, dtype=torch.bool, device=null.device))
        given = self._sequences(tokens, batch)
        absent = given.isnan().any(2)
        if not torch.compiler.is_compiling():
            check_values(given)
            if not self.drop.rate and bool(absent.all(1).any()):
                self._check_null(f"row {absent.all(1).nonzero()[0].item()} of tokens is NaN, no token, for")
        values = torch.cat([torch.where(absent[:, :, None], 0, given), null.expand(len(given), -1, -1)], dim=1)
        dropped = self.drop(batch, absent.device)
        if dropped is not None:
            absent = absent | dropped[:, None]
        return Told(values, F.pad(absent, (0, 1)))

    def _sequences(self, tokens: Numbers, batch: int) -> Tensor:
        """The tokens, (B, L, d), or (1, L, d) for all, in the dtype and on the device of the net."""
        given = sequences_of(tokens, self.size, batch)
        return rows_of(given).to(self.null)

    def _check_null(self, what: str) -> None:
        if not self.drop.rate:
            raise ValueError(
                f"{what} a net that is never trained without one (tokens_drop=0): give tokens=, or train a net with "
                "tokens_drop=0.1"
            )


class CrossAttention(nn.Module):
    r"""What the points of a field, or the patches of it, take from tokens: zero until it is trained.

    $$ h \leftarrow h + P\,\mathrm{softmax}\big(q(\bar h)\,k(c)^\top / \sqrt{W / \mathrm{heads}}\big)\,v(c) $$

    Memory grows as points times tokens. Written out, as the self-attention is: the fused one has neither forward-mode
    nor second derivatives.

    Args:
        width: Length W of the vector at a point.
        size: Entries d of a token.

    Shapes:
        h (B, T, W), told (B, L + 1, d) and (B, L + 1), or one for all -> (B, T, W), to be added to h
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.heads = HEADS if width % HEADS == 0 else 1
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(size, 2 * width, bias=False)
        self.project = zero(nn.Linear(width, width))

    def forward(self, h: Tensor, told: Told) -> Tensor:
        q = self.q(h).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, W / heads)
        k, v = self.kv(told.values).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).masked_fill(told.absent[:, None, None], -math.inf)
        out: Tensor = self.project((torch.softmax(logits, dim=3) @ v).transpose(1, 2).flatten(2))
        return out


def check_tokens(tokens: Numbers, size: int, batch: int, first: int = 0) -> None:
    """Looks at the tokens of `batch` samples, or at those that are for all of them, before any work is done.

    Args:
        tokens: As a network is told them; None passes.
        size: Entries d of a token.
        batch: Number of samples B.
        first: The sample that the first of them is, in an error.

    Raises:
        TypeError, ValueError: As `TokensCondition`.
    """
    if tokens is not None:
        check_values(rows_of(sequences_of(tokens, size, batch)), first)


def sequences_of(tokens: Numbers, size: int, batch: int) -> Tensor:
    """Tokens as one sequence for each sample, (B, L, d), or for all, (1, L, d)."""
    found = numbers_of(tokens, "tokens", None)
    if not found.is_floating_point():
        raise TypeError(
            f"tokens must hold floats, the embedding of each word, got {found.dtype}: numbers of words are embedded "
            "first, by torch.nn.Embedding for instance; whole numbers that are embeddings go in as tokens.float()"
        )
    shape = tuple(found.shape)
    found = found[None] if found.ndim == 2 else found
    if found.ndim != 3 or found.shape[2] != size or len(found) not in (1, batch) or not found.shape[1]:
        raise ValueError(
            f"tokens must have shape ({batch}, L, {size}), one sequence per row of x, or (L, {size}), one for all, "
            f"with L at least 1, got {shape}. Shorter sequences end in rows of NaN"
        )
    return found


def check_values(given: Tensor, first: int = 0) -> None:
    """Raises `ValueError` for infinity and for a token that is NaN in part, in row `first` of the samples and after."""
    if bool(given.isinf().any()):
        raise ValueError("tokens hold infinity: each entry is a number of about 1, or NaN in all of a row")
    missing = given.isnan()
    partly = missing.any(2) & ~missing.all(2)
    if bool(partly.any()):
        row, token = partly.nonzero()[0].tolist()
        raise ValueError(
            f"token {token} of row {first + row} of tokens is NaN in some of its {given.shape[2]} entries: a token "
            "that is not there is NaN in all of them, and one that is in none"
        )


def heard(condition: TokensCondition | None, tokens: Numbers, batch: int) -> Told | None:
    """The tokens as a net listens to them; raises `ValueError` if some were given to one that takes none."""
    if condition is not None:
        found: Told = condition(tokens, batch)
        return found
    if tokens is not None:
        raise unexpected("tokens", "tokens=d, the entries of one")
    return None
