"""A look at a function of one's own before it is followed: does it answer each row alone, twice the same, with a slope?

What is looked for cannot be seen in samples: a function that mixes rows makes each sample depend on the others, and one
whose derivative is zero everywhere guides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SCALES = (1.0, 0.1, 10.0)
"""The sizes of the draws among which a slope is looked for: a hinge or a bound is flat at some."""


def draws(n: int, like: Tensor, seed: int = 0) -> Tensor:
    """Standard normal rows, `n` of the form of the one in `like`, the same every time."""
    stream = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(n, *like.shape[1:], generator=stream, dtype=torch.float64, device="cpu").to(like)


def check_alone(answer: Callable[[Tensor], Tensor], x: Tensor, who: str, *, split: bool = True) -> Tensor:
    """Returns what a function answers to rows, if it does so twice, and to each row by itself.

    Args:
        answer: Called with rows as in `x`, answers one or several numbers for each.
        x: What it is asked about, shape `(B, *)`.
        who: What it is called.
        split: Whether it may be asked about another number of rows.

    Raises:
        ValueError: Answers that differ when it is asked twice, or that depend on other rows; what it is asked about is
            written into.
    """
    i = len(x) // 2
    mixes = f"{who} mixes samples: what it answers to one depends on others"
    with torch.no_grad():
        kept = x.clone()
        y = answer(x)
        if not torch.equal(x, kept):
            raise ValueError(f"{who} writes into what it is given: let it make a new tensor, x * 2 for x.mul_(2)")
        agree(answer(x), y, y, f"{who} answers differently when asked twice: leave out what is random, or counts calls")
        if split:
            agree(answer(x[i : i + 1]), y[i : i + 1], y, mixes)
        if len(x) > 1:
            others = 1 - 2 * x
            others[i] = x[i]
            agree(answer(others)[i], y[i], y, mixes)
    return y


def check_slope(answer: Callable[[Tensor], Tensor], x: Tensor, who: str) -> None:
    """Raises if nothing can be told from the derivative of a function at draws `x` and at smaller and larger ones.

    Raises:
        TypeError: A function without a graph.
        ValueError: A derivative that is zero everywhere.
    """
    for scale in SCALES:
        with torch.inference_mode(mode=False), torch.enable_grad():
            z = (scale * x.detach()).requires_grad_()
            y = with_graph(answer, z, who)
            ones = torch.ones_like(y)
            found = torch.autograd.grad(y, z, ones, allow_unused=True)[0] if y.requires_grad else None
        if found is None:
            raise graphless(who)
        if bool((found != 0).any()):
            return
    raise ValueError(
        f"the derivative of {who} is zero everywhere, so that it guides nothing: leave out .round(), .sign(), a "
        "comparison or whatever else makes steps, or take a smooth function in its place"
    )


def with_graph(answer: Callable[[Tensor], Tensor], z: Tensor, who: str) -> Tensor:
    """What a function answers to rows that have a graph; `TypeError` as `asking`."""
    with asking(who):
        return answer(z)


@contextmanager
def asking(who: str) -> Iterator[None]:
    """Where a function or a model is asked with a graph.

    Raises:
        TypeError: It leaves torch, or holds tensors that were made in inference mode.
    """
    try:
        yield
    except RuntimeError as error:
        if "numpy" in str(error):
            raise graphless(who) from error
        if "Inference tensors cannot be saved" in str(error):
            raise TypeError(
                f"{who} holds tensors that were made under torch.inference_mode, which can be part of no graph: make "
                "the model, and what it is told, outside of it or under torch.no_grad"
            ) from error
        raise


def graphless(who: str) -> TypeError:
    """What to say of a function that cannot be differentiated."""
    return TypeError(
        f"no graph leads from what {who} answers to what it was given, so that it cannot be differentiated: write it "
        "in operations of torch, without no_grad, .detach() and NumPy; a linear measurement may give its adjoint "
        "instead, Operator(forward, adjoint)"
    )


def agree(one: Tensor, other: Tensor, scale: Tensor, what: str) -> None:
    """Raises `ValueError` unless two answers are the same up to rounding, where both are finite or neither is."""
    if not one.numel():
        return
    same = (one == other) | (one.isnan() & other.isnan())
    off = float(torch.where(same, 0.0, (one - other).abs()).max())
    size = float(torch.where(scale.isfinite(), scale.abs(), 0.0).max())
    slack = {torch.float64: 1e-6, torch.float32: 1e-3}.get(one.dtype, 0.05)
    if not off <= slack * size:
        raise ValueError(f"{what}, by {off:.3g} of {size:.3g}" if math.isfinite(off) else f"{what}, or is not finite")
