"""What the library says, in the words of the command line: it advises `val=` in Python, which is `--val` here."""

from __future__ import annotations

import re

PHRASES = (
    (r"and give them as val, which tells", "--val 0.1, which tells"),
    (r"Give it as a condition, such as label=, or .*", "Give it as a condition, --cond"),
    (r"standardise it, here and where you sample", "leave --scale none out"),
    (r"standardise it, (\d\S* \* )?\(x [-+] \S+\) / \S+?(, or give predict\.\w+\([^)]*\))?$", "leave --scale none out"),
    (r"build the net with classes=(\d+)", r"--net-args 'classes=\1'"),
    (r"give (\w+)=, or build the net without it", r"name it, --cond \1=..., or take a network without it"),
    (r"go on with it, resume=True; or give .*", "--resume goes on with it; or give another --out, or --overwrite"),
    (r"call the same train\(\.\.\., resume=True\)", "call the same command with --resume"),
    (r"train\(load_checkpoint\('(.*)'\)\.model, \.\.\., out=another folder\)", r"--from \1 and another --out"),
    (r": leave resume out to begin one there", ": leave --resume out to begin one there"),
    (r"load_checkpoint\(path, base=folder\)", "--base DIR"),
    (r"\blower lr,", "lower --lr,"),
    (r"precision='fp16' needs", "--precision fp16 needs"),
)  # fmt: skip
"""Patterns of what is said for a call in Python, and what is said instead."""


def in_words(text: str) -> str:
    """A message of the library in one line, and in the words of the command line."""
    line = " ".join(text.split())
    for pattern, words in PHRASES:
        line = re.sub(pattern, words, line)
    return line
