"""Says in words why a network failed on what it was handed, and what to do: dtypes, shapes, tables, arguments."""

from __future__ import annotations

import re
from itertools import chain

import torch
from torch import Tensor, nn

from sde_diffusion._checks import HALF

DTYPE = re.compile(r"dtype|scalar type|type \(.*\) (and|or) .*type \(.*\) should be the same")
SHAPE = re.compile(r"\b(shapes?|sizes?|dimensions?|channels|rank|broadcast)\b", re.IGNORECASE)
TABLE = re.compile(r"'indices'|index out of range")
MISSING = re.compile(r"missing \d+ required (?:positional|keyword-only) arguments?: (.*)$")
CALL = re.compile(r"unexpected keyword argument|positional argument|multiple values for argument")


def half_of(model: nn.Module) -> torch.dtype | None:
    """The half-precision dtype that all floating parameters and buffers of a model have, or None."""
    found = {p.dtype for p in chain(model.parameters(), model.buffers()) if p.is_floating_point()}
    return found.pop() if len(found) == 1 and found <= HALF else None


def explained(error: Exception, model: nn.Module, x: Tensor, time: Tensor, cond: dict[str, object]) -> Exception:
    """The error to raise when a network failed on a state, times and conditions: one with advice, or its own."""
    text = str(error)
    given = "".join(f", {name} {_told(value)}" for name, value in cond.items())
    if TABLE.search(text):
        return type(error)(
            f"the network looks something up in a table and cannot ({text}). It was handed times {_told(time)}{given}: "
            "for a table of times, Network(..., clock=clocks.Index()); a table of classes takes a tensor of integers, "
            "(B,), torch.tensor([0, 1])"
        )
    if isinstance(error, TypeError) and (wanted := MISSING.search(text)):
        names = wanted[1].replace("'", "")
        return TypeError(
            f"the network asks for {names}, and was called as {_call(cond)} ({text}): give every condition that it was "
            f"trained with, {names.split(',')[0].split(' and ')[0]}=..., on the command line --cond NAME=..."
        )
    if isinstance(error, TypeError) and CALL.search(text):
        return TypeError(f"the network does not take what it is handed ({text}): it is called as {_call(cond)}")
    own = {p.dtype for p in chain(model.parameters(), model.buffers()) if p.is_floating_point()}
    if DTYPE.search(text) and own:
        return _of_dtypes(text, own, x, time, given)
    if isinstance(error, RuntimeError) and SHAPE.search(text) and cond:
        return ValueError(
            f"the network failed on a state of shape {tuple(x.shape)} with conditions{given[1:]} ({text}): a condition "
            f"with one row per sample has {len(x)} rows here"
        )
    return error


def _call(cond: dict[str, object]) -> str:
    return f"net({', '.join(['x', 'time', *(f'{name}={name}' for name in cond)])})"


def _of_dtypes(text: str, own: set[torch.dtype], x: Tensor, time: Tensor, given: str) -> TypeError:
    names = ", ".join(sorted(map(str, own)))
    if own <= HALF and len(own) == 1:
        return TypeError(
            f"the network, with parameters in {names}, was handed a state of that dtype, times {_told(time)}{given} "
            f"({text}): times are not rounded to half precision. Cast inside, where that does no harm: t.to(x.dtype)"
        )
    wanted = str(x.dtype).removeprefix("torch.")
    return TypeError(
        f"the network, with parameters in {names}, cannot take a state in {x.dtype}{given} ({text}): give the state in "
        f"its dtype, or the network in that of the state, net.to(torch.{wanted})"
    )


def _told(value: object) -> str:
    """A condition in a few words."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} in {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
