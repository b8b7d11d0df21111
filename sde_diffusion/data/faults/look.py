"""One look at all rows of data: which columns would be learnt wrongly, and in what words that is said."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from torch import Tensor

from sde_diffusion.data.faults.extremes import REPEATED, SPOILT, Extremes, Found
from sde_diffusion.data.faults.twins import EXACT, Pair, Twins
from sde_diffusion.data.faults.values import LOOKED_AT, Values


class ColumnWarning(UserWarning):
    """A column of data of which a model would learn something else than is meant."""


class Fault(NamedTuple):
    """What is wrong with columns.

    Attributes:
        text: The sentence that says so, and what to do.
        columns: Those that it is about.
        spoils: Whether nothing can be learnt once columns are divided by their standard deviations.
        far: Whether their mean and standard deviation are not those of the most of their values.
    """

    text: str
    columns: tuple[int, ...]
    spoils: bool = False
    far: bool = False


class Look:
    """What is wrong with the columns of data, a part of the rows at a time.

    Args:
        data: What a sentence calls the data.
        names: Those of the columns, where they have any.
        condition: Whether they are a condition: NaN is a value that is not known, and no density is learnt.
        whole: Whether they are whole numbers, which get a point in the bin of each.
    """

    def __init__(
        self, data: str = "the data", names: Sequence[str] = (), *, condition: bool = False, whole: bool = False
    ) -> None:
        self.data, self.names, self.condition, self.whole = data, names, condition, whole
        self.extremes, self.twins, self.values = Extremes(), Twins(), Values()
        self.channels = False

    def add(self, x: Tensor) -> None:
        """Takes more rows in, `(B, *)`, a column being an entry of the first axis of a row."""
        if not x.numel():
            return
        wide = x.detach().double()
        columns = (wide[:, None] if x.ndim == 1 else wide.transpose(0, 1)).reshape(1 if x.ndim == 1 else x.shape[1], -1)
        stride = max(1, columns.numel() // LOOKED_AT)
        self.channels = x.ndim > 2
        self.extremes.add(columns, stride, columns.shape[1] // len(x))
        if not (self.condition or self.whole):
            self.twins.add(columns[:, ::stride])
            self.values.add(x)

    def faults(self) -> list[Fault]:
        """What was found: of each kind the first, with the other columns named."""
        far = self.extremes.found()
        marks = {i: found for i, found in far.items() if found.far[0].times >= REPEATED}
        single = {i: found for i, found in far.items() if i not in marks}
        few = self.values.few()
        leaving = {*far, *few}
        pairs = self.twins.pairs(leaving)
        found = [
            *self._first({i: self._of_single(i, each) for i, each in single.items()}),
            *self._first({i: self._of_mark(i, each) for i, each in marks.items()}),
            *self._first({i: self._of_few(i, count) for i, count in few.items() if i not in far}),
            *self._first({pair.j: self._of_pair(pair) for pair in pairs}),
        ]
        if not pairs and not self.channels and (members := self.twins.dependent(leaving)):
            found.append(self._of_dependent(members))
        return found

    def _first(self, faults: dict[int, Fault]) -> list[Fault]:
        """The first fault of a kind, one that spoils a column before others, with the names of the other columns."""
        if not faults:
            return []
        order = sorted(faults, key=lambda i: (not faults[i].spoils, i))
        first = faults[order[0]]
        names = ", ".join(map(self._name, order[1:6])) + ", ..." * (len(order) > 6)
        also = f"; likewise {names}" if names else ""
        columns = tuple(i for each in faults.values() for i in each.columns)
        return [first._replace(text=first.text + also, columns=columns)]

    def _of_single(self, i: int, found: Found) -> Fault:
        one = found.far[0]
        more = f" (and {len(found.far) - 1} more such rows)" if len(found.far) > 1 else ""
        where = f"{self._named(i)}: row {one.row} holds {one.value:.6g}{more}"
        if found.low == found.high:
            text = f"{where}, and all others {found.low:.6g}: correct or drop the row, or leave the column out"
            return Fault(text, (i,), far=True)
        spoils = 0 < found.share < SPOILT
        left = "nothing is left" if spoils else f"{found.share:.2g} is left"
        return Fault(
            f"{where}, far from the bulk, {found.low:.4g} to {found.high:.4g}, of whose spread {left} once the column "
            f"is divided by its standard deviation: correct or drop the row{self._unknown}, or, where tails are "
            "meant to be so heavy, scale by Quantile, --scale quantile",
            (i,),
            spoils,
            far=True,
        )

    def _of_mark(self, i: int, found: Found) -> Fault:
        marks = [each for each in found.far if each.times >= REPEATED]
        values = ", ".join(f"{each.value:.6g} in {each.times:,} {self._rows}" for each in marks[:3])
        advice = "drop those rows: only conditions may be missing"
        if self.condition:
            advice = "write NaN, which is not known"
        return Fault(
            f"{self._named(i)} is {values}, first in row {marks[0].row}, far from all others, {found.low:.4g} to "
            f"{found.high:.4g}, and is learnt as a value like them. If it stands for one that is missing, {advice}",
            (i,),
            far=True,
        )

    def _of_few(self, i: int, count: int) -> Fault:
        return Fault(
            f"{self._named(i)} takes {count} values only, and has no density: a model of it gains without end by "
            "putting spikes there. Give it as a condition, such as label=, or with fresh bins, data.Dequantised",
            (i,),
        )

    def _of_pair(self, pair: Pair) -> Fault:
        i, j, slope, shift, left = pair
        kind = "channel" if self.channels else "column"
        image = (
            f"{kind} {self._name(i)}" if abs(slope - 1) < max(1e-9, left) else f"{slope:.6g} * {kind} {self._name(i)}"
        )
        if abs(shift) > max(1e-9, left) * math.sqrt(float(self.twins.square[j, j]) / self.twins.n):
            image += f" {'+' if shift > 0 else '-'} {abs(shift):.6g}"
        rounding = "" if left < EXACT else f", up to {left:.1g} of its spread"
        return Fault(
            f"{self._named(j)} is {image}{rounding}: together they have no density, and a model gains without end by "
            "learning the line; leave one of them out",
            (i, j),
            left < EXACT and not self.channels,
        )

    def _of_dependent(self, members: list[int]) -> Fault:
        names = ", ".join(map(self._name, members[:6])) + ", ..." * (len(members) > 6)
        return Fault(
            f"{self._named(members[0])} follows from others, a sum of multiples of {names} being constant: together "
            "they have no density, and a model gains without end by learning the plane; leave one of them out",
            tuple(members),
        )

    @property
    def known(self) -> bool:
        """Whether every column holds a number that is known."""
        return all(math.isfinite(end) for ends in self.extremes.range for end in ends)

    @property
    def _rows(self) -> str:
        return "places" if self.channels else "rows"

    @property
    def _unknown(self) -> str:
        return ", or write NaN" if self.condition else ""

    def _name(self, i: int) -> str:
        return repr(self.names[i]) if i < len(self.names) else str(i)

    def _named(self, i: int) -> str:
        return f"{'channel' if self.channels else 'column'} {self._name(i)} of {self.data}"


def warn_of(faults: Sequence[Fault], stacklevel: int) -> None:
    """A `ColumnWarning` for each fault, on a stderr that may be closed."""
    for fault in faults:
        with suppress(ValueError):  # of a closed file
            warnings.warn(fault.text, ColumnWarning, stacklevel=stacklevel + 1)
