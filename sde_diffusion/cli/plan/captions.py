"""Captions on the command line: one text, or a file with one for each row; the words that a model has learnt."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sde_diffusion.data.files import open_data
from sde_diffusion.nets.text import TextEncoder, Vocabulary, words_of

ENDINGS = (".csv", ".parquet", ".txt")
"""Files of captions: tables with a column `caption`, and texts with one in each line."""


def vocabulary_of(net: nn.Module) -> Vocabulary | None:
    """The words that a network knows; None of one that reads no captions."""
    found = next((part for part in net.modules() if isinstance(part, TextEncoder)), None)
    return None if found is None else found.vocabulary


def listed(captions: Iterable[Any]) -> list[str]:
    """Captions as strings."""
    return [str(caption) for caption in captions]


def read_captions(text: str, known: Vocabulary) -> list[str]:
    """The captions that `--cond caption=` names, one for all samples or one for each.

    Blank lines at the end of a text are none; one before is a caption without words, and so is an empty cell.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file without captions; a word that the model has not learnt, with the nearest that it has.

    Warns:
        UserWarning: A file with empty captions, and how many.
    """
    ending = Path(text).suffix.lower()
    if ending not in ENDINGS:
        found = [text]
    elif not Path(text).is_file():
        raise FileNotFoundError(f"there is no file {text}, for the condition caption")
    elif ending == ".txt":
        found = Path(text).read_text(encoding="utf-8").splitlines()
        while found and not found[-1].strip():
            found.pop()
    else:
        source = open_data(text, ["caption"])
        found = [caption for batch in source.chunks(4096) for caption in listed(batch.cond["caption"])]
    if not found:
        raise ValueError(f"{text} holds no captions, one in each line")
    check_words(found, known, "--cond caption")
    empty = sum(not caption.strip() for caption in found)
    if empty and ending in ENDINGS:
        warnings.warn(
            f"--cond caption: {empty:,} of {len(found):,} captions in {text} are empty, the null condition",
            UserWarning,
            stacklevel=2,
        )
    return found


def check_words(captions: Sequence[str], known: Vocabulary, what: str) -> None:
    """Looks whether a model can read captions.

    Args:
        captions: The captions.
        known: The words of the model.
        what: What an error calls them.

    Raises:
        ValueError: More words than in the longest of the training; a word that the model has not learnt.
    """
    for i, caption in enumerate(captions):
        if (n := len(words_of(caption))) > known.length:
            raise ValueError(
                f"{what}: caption {i} has {n} words, {caption!r:.80}, and the model reads {known.length}, as many as "
                "the longest had that it learnt: shorten it"
            )
    known.numbers(captions)
