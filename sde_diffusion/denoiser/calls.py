"""How a network is called, so that what it writes stays out of the solve, and what it answered stays as it was.

Some networks work in place on what they are given, `x.clamp_()` or an inplace activation first of all; some answer in
a buffer that the next call fills again, as compiled graphs do. The first habit would spoil the state, the second every
answer that a solver remembers. A `Caller` makes the first few calls of a network with copies, and sees from them which
habits the network has. If it has one, copies are made in every call; if not, a call costs two looks at a version
counter and one at an address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from sys import getrefcount
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling as is_compiling

from sde_diffusion._checks import SolverError, no_tensor

FIRST = 4
"""Calls made with copies: a first that may record a graph, and three more, as one buffer or two in turn come again."""

ONE_FOR_ALL = "refers to a single memory location"
"""What torch says of an operation in place on an expanded view."""

T = TypeVar("T")


class Caller:
    """Calls a network, or another function of a state, and knows its habits.

    Args:
        who: What errors call the function.

    Attributes:
        writes: Whether the function writes into what it is given; None while that is not known.
        reuses: Whether it answers in the memory of earlier answers; None while that is not known.
    """

    __slots__ = ("_before", "_calls", "_first", "_last", "_plain", "_rowwise", "reuses", "who", "writes")

    def __init__(self, who: str = "network") -> None:
        self.who = who
        self.writes: bool | None = None
        self.reuses: bool | None = None
        self._calls = 0
        self._plain = False  # known to have neither habit
        self._rowwise = False  # writes into conditions, and so needs a row of its own for each sample
        self._first: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no new answer gets the same address
        self._last: Tensor | None = None  # the last answer, and the one before, while somebody else still holds them
        self._before: Tensor | None = None

    def __reduce__(self) -> tuple[type[Caller], tuple[str]]:
        return Caller, (self.who,)  # a copied model has another network, whose habits are still unknown

    def __call__(self, net: Callable[..., Any], x: Tensor, given: Tensor, time: Tensor, cond: dict[str, Any]) -> Tensor:
        """What a network answers, as a tensor that stays as it is.

        Args:
            net: Called as `net(given, time, **cond)`.
            x: The state.
            given: What the network is handed: the state, or a tensor made from it for this call alone.
            time: A tensor made for this call alone.
            cond: The conditions.

        Raises:
            TypeError: An answer that holds no tensor.
            SolverError: The network, for the first time after many calls, has written into the state or into an earlier
                answer that is still needed.
        """
        if is_compiling():  # a copy is free in a graph
            return tensor_of(net(given.clone() if given is x else given, time, **cond), x, self.who).clone()
        if getrefcount(self._last) == ALONE:
            self._last = None
        if self._plain and not cond:
            try:
                before = given._version
            except RuntimeError:  # a tensor of inference mode, which has no counter
                given, before = given.clone() if given is x else given, -1
            f = net(given, time)
            if before >= 0 and given._version != before:
                self._written(given is x)
        else:
            f = self.apart(net, x, given, time, cond)
        if f.__class__ is not Tensor:
            f = tensor_of(f, x, self.who)
        if not self._plain and self.reuses is not False:
            return self._copy(f)
        if self._last is not None:
            self._compare(f, given)
        if not f.requires_grad:
            self._last = f
        return f

    def apart(self, function: Callable[..., T], x: Tensor, given: Tensor, at: object, cond: dict[str, Any]) -> T:
        """`function(given, at, **cond)`, with copies of the state and the conditions where they are needed."""
        if is_compiling():  # in a graph a copy is free
            return function(given.clone() if given is x else given, at, **cond)
        unseen = given.is_inference()
        copies, own = unseen or self.writes is not False, given is x
        wanted, again, then = cond, given, at
        if copies:
            given = given.clone() if own else given
            cond = _copied(cond, self._rowwise)
            if cond:  # into which it may write, after it has written into the state or the time
                again = again if own else given.clone()
                then = at.clone() if isinstance(at, Tensor) else at
        before = 0 if unseen else _versions(given, cond)
        try:
            out = function(given, at, **cond)
        except RuntimeError as error:
            if not copies or self._rowwise or not cond or ONE_FOR_ALL not in str(error):
                raise
            self._rowwise = self.writes = True
            return self.apart(function, x, again, then, wanted)
        if unseen:
            return out
        self._calls += 1
        if before != _versions(given, cond) or (copies and own and self.writes is None and not _same(given, x)):
            self._written(not copies)
        elif self.writes is None and self._calls >= FIRST:
            self.writes = False
        return out

    def _written(self, spoilt: bool) -> None:
        self.writes, self._plain = True, False
        if spoilt:
            raise SolverError(
                "the network has written into the state or a condition that it was given, though its first calls did "
                "not, and they are spoilt: start again, it gets copies from here on, or take the operation in place "
                "out of it (x.clamp_(), x += ..., inplace=True)"
            )

    def _compare(self, f: Tensor, given: Tensor) -> None:
        """Raises `SolverError` if an answer lies in the memory of one of the last two, which somebody still holds."""
        if getrefcount(self._before) == ALONE:
            self._before = None
        last, before = self._last, self._before
        try:
            place = f.data_ptr()
            taken = (last is not None and place == last.data_ptr()) or (
                before is not None and place == before.data_ptr()
            )
        except RuntimeError:  # in a transform of torch.func there are no places
            place, taken = 0, False
        if taken and place and place != given.data_ptr():
            self.reuses, self._plain, self._last, self._before = True, False, None, None
            raise SolverError(
                "the network has answered in the place of an earlier answer that is still needed, though its first "
                "answers had places of their own: start again, its answers are copied from here on, or let it "
                "answer a new tensor, f.clone()"
            )
        self._before = last

    def _copy(self, f: Tensor) -> Tensor:
        """A copy of an answer; the addresses of the first ones tell whether later ones need a copy."""
        place = _place(f)
        if self.reuses is None and place:
            self.reuses = place in self._first or None
            self._first[place] = f.untyped_storage()
            if self.reuses is None and len(self._first) >= FIRST:
                self.reuses = False
            if self.reuses is not None:
                self._first = {}
                self._plain = self.writes is False and self.reuses is False
        return f.clone()


class _Slot:
    """Holds one object, to measure what `getrefcount` says of an object that nothing but one slot holds."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = object()


_SLOT = _Slot()
ALONE = getrefcount(_SLOT.held)


def _place(f: Tensor) -> int:
    """The address of a tensor; 0 where there is none, as in a transform of torch.func."""
    try:
        return f.data_ptr()
    except RuntimeError:
        return 0


def tensor_of(answer: Any, x: Tensor, who: str = "network") -> Tensor:
    """The tensor in an answer: itself, the first of several, or the one called `sample`."""
    if isinstance(answer, Tensor):
        return answer
    if isinstance(answer, tuple | list):
        found = answer[0] if answer else None
    elif isinstance(answer, Mapping):
        found = answer.get("sample")
    else:
        found = getattr(answer, "sample", None)
    if isinstance(found, Tensor):
        return found
    raise no_tensor(answer, x, f"the {who}", ": alone, first in a tuple, or called sample")


def _versions(given: Tensor, cond: dict[str, Any]) -> int:
    """A number that grows when the given state, or a tensor in a condition, is written to."""
    return given._version + (sum(v._version for v in _tensors(cond) if not v.is_inference()) if cond else 0)


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors in a condition, which may be a mapping or a sequence of others."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _copied(value: Any, rowwise: bool) -> Any:
    """A condition with every tensor in it copied; an expanded view of one row as a view of its copy, unless rowwise."""
    if isinstance(value, Tensor):
        if rowwise or not value.ndim or value.stride(0) or len(value) < 2:
            return value.clone()
        return value[:1].clone().expand_as(value)
    if type(value) is dict:
        return {name: _copied(part, rowwise) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(part, rowwise) for part in value)
    return value


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, or NaN in the same places.

    It finds the writes through `x.data` or NumPy, which move no version counter.
    """
    try:
        return bool(((a == b) | (b != b)).all())
    except RuntimeError:  # in a transform of torch.func
        return True
