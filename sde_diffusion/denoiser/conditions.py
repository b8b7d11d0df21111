r"""Conditions: what a model is told beside the state and the time, and which of it has one row for each sample.

A condition may be anything: a tensor, an array, a list, a string, None, or a mapping of such, at any depth. Who draws
in batches hands each of them its own rows of what is per sample, and who stacks several levels of the same samples
repeats those rows; all else reaches the model whole. What is per sample is told, in this order, by

1. a mark of the caller, `PerSample(value)` or `Shared(value)`, the innermost one in a mapping;
2. a wrapper that knows the shape of a condition of its own, such as a measurement, in its method `mark`;
3. the network, in an attribute `per_sample`, the names of its conditions that have rows: all others are shared, and so
   is a number, a string or None under such a name, which is one for all, and a `context`, an `image` or `tokens` of the
   shape of one row, if the network has a `config` that tells it, `{"context": 3}`;
4. the shape, if neither says anything: a tensor or array of one dimension, a list and a tuple with as many entries as
   there are samples are per sample. A tensor or array of two or more dimensions with that many rows may be either, and
   is refused where samples are split or stacked. All else is shared.

One row of what is marked or declared per sample stands for all of them, as a view.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.nets.tokens import check_tokens

OWN = ("self", "x", "at")  # arguments of every model


@dataclass(frozen=True, eq=False)
class PerSample:
    """Marks a condition that has one row for each sample, or one row for all of them.

    Args:
        value: A tensor, array or list of rows, or a mapping of such.

    Example:
        >>> sampler.sample(10, batch_size=5, context=PerSample(torch.rand(10, 77, 768)))
    """

    value: Any


@dataclass(frozen=True, eq=False)
class Shared:
    """Marks a condition that is handed to the network whole, whatever its shape.

    Args:
        value: Anything.

    Example:
        >>> sampler.sample(10, batch_size=5, table=Shared(torch.rand(10, 4)))
    """

    value: Any


class _Leaf(NamedTuple):
    """A condition, or a part of one, and whether it has rows: None where its shape allows both."""

    value: Any
    rows: bool | None
    name: str


class _Tree(NamedTuple):
    """A mapping of conditions as it came, and its parts, sorted."""

    origin: Mapping[Any, Any]
    parts: dict[Any, _Leaf | _Tree]


class Conditions:
    """The conditions of `n` samples, sorted into those that have a row for each and those that are shared.

    Args:
        given: The conditions by name. One called `cond` that is a mapping holds others, whose names may be those of
            arguments of the call.
        n: Number of samples.
        declared: Names of those that are per sample, if the network says so; all others are shared then.

    Raises:
        TypeError: `cond` is no mapping by name, or what is marked as per sample has no rows.
        ValueError: A condition given twice or called as an argument of the model itself, or a number of rows that is
            neither 1 nor `n`.
    """

    __slots__ = ("_tree", "n")

    def __init__(self, given: Mapping[str, Any], n: int, declared: Iterable[str] | None = None) -> None:
        self.n = n
        self._tree: dict[str, _Leaf | _Tree] = {}
        if given:
            self._sort(merged(given), declared, {})

    @classmethod
    def of(cls, model: object, given: Mapping[str, Any], n: int) -> Conditions:
        """The conditions of a call, by what its model declares in `per_sample`, and the marks that it sets itself."""
        found = cls({}, n)
        if given:
            named = merged(given)
            mark = getattr(model, "mark", None)
            rows = _row_shapes(model)
            found._sort(named if mark is None else mark(named, n), getattr(model, "per_sample", None), rows)
            found._check_tokens(rows)
        return found

    def _sort(
        self, named: Mapping[str, Any], declared: Iterable[str] | None, rows: Mapping[str, tuple[int | None, ...]]
    ) -> None:
        """Sorts conditions; of those declared, what has the shape of one row is one for all."""
        names = None if declared is None else set(declared)
        for name, value in named.items():
            meant = "unsaid" if names is None else "declared" if name in names else "shared"
            if meant == "declared" and name in rows and _is_row(value, rows[name]):
                value = value[None] if isinstance(value, Tensor | np.ndarray) else [value]  # noqa: PLW2901
            self._tree[name] = self._sorted(value, name, meant)

    def _sorted(self, value: Any, name: str, meant: str) -> _Leaf | _Tree:
        if isinstance(value, PerSample | Shared):
            return self._sorted(value.value, name, "marked" if isinstance(value, PerSample) else "shared")
        if isinstance(value, Mapping):
            return _Tree(value, {key: self._sorted(v, f"{name}.{key}", meant) for key, v in value.items()})
        rows = _rows(value)
        if meant == "shared" or (rows is None and meant != "marked"):
            return _Leaf(value, False, name)
        if meant == "unsaid":
            flat = not isinstance(value, Tensor | np.ndarray) or value.ndim == 1
            return _Leaf(value, flat or None if rows == self.n else False, name)
        if rows is None:
            raise TypeError(
                f"condition {name!r} is marked PerSample and has no rows: wanted a tensor, an array or a list with one "
                f"for each sample, got {_said(value)}. What is one for all is Shared, or goes in as it is"
            )
        if rows not in (1, self.n):
            raise ValueError(
                f"condition {name!r} has one row per sample, and {rows} rows came for {self.n} samples: give "
                f"{self.n}, or one for all. What the network takes whole goes in as {_spelt(name, 'Shared')}"
            )
        return _Leaf(value, True, name)

    def _check_tokens(self, rows: Mapping[str, tuple[int | None, ...]]) -> None:
        """Raises for tokens that a model built for some cannot be told, of whichever of the samples."""
        leaf, size = self._tree.get("tokens"), rows.get("tokens", (None, None))[-1]
        if isinstance(leaf, _Leaf) and size is not None:
            check_tokens(leaf.value, size, self.n)

    def check_apart(self, why: str) -> None:
        """Raises `ValueError` if samples are taken apart, for a reason to be told, and a condition may have rows."""
        for leaf in _leaves(self._tree):
            if leaf.rows is None:
                raise ValueError(
                    f"condition {leaf.name!r} is {_said(leaf.value)}, for {self.n} samples {why}: one row for each, or "
                    f"one table for all? Say which, {_spelt(leaf.name, 'PerSample')} or "
                    f"{_spelt(leaf.name, 'Shared')}, or let the network name what has rows, per_sample = ('label',)"
                )

    @property
    def clear(self) -> bool:
        """Whether it is known of every condition if it has rows."""
        return all(leaf.rows is not None for leaf in _leaves(self._tree))

    @property
    def with_rows(self) -> set[str]:
        """The names of those that have a row for each sample, or a part of which has."""
        trees = {name: [node] if isinstance(node, _Leaf) else _leaves(node.parts) for name, node in self._tree.items()}
        return {name for name, leaves in trees.items() if any(leaf.rows for leaf in leaves)}

    @property
    def uneven(self) -> list[str]:
        """The names of those, and of parts of them, whose rows are not all the same."""
        return [leaf.name for leaf in _leaves(self._tree) if leaf.rows and _differ(leaf.value)]

    @property
    def whole(self) -> dict[str, Any]:
        """The conditions of all samples at once."""
        if not self._tree:
            return {}
        return self._handed(lambda leaf: _expanded(leaf.value, self.n) if leaf.rows else leaf.value)

    def part(self, rows: slice) -> dict[str, Any]:
        """The conditions of a run of samples; a run of all samples has those that are `whole`."""
        count = len(range(*rows.indices(self.n)))

        def taken(leaf: _Leaf) -> Any:
            if not leaf.rows:
                return leaf.value
            return _expanded(leaf.value if len(leaf.value) == 1 else leaf.value[rows], count)

        return self.whole if count == self.n else self._handed(taken)

    def marked(self, rows: slice) -> dict[str, Any]:
        """The conditions of a run of samples with their marks on, for a call that sorts them once more."""

        def taken(leaf: _Leaf) -> Any:
            if not leaf.rows:
                return leaf.value if leaf.rows is None else Shared(leaf.value)
            return PerSample(leaf.value if len(leaf.value) == 1 else leaf.value[rows])

        return self._handed(taken)

    def rows(self, numbers: Sequence[int], *, marked: bool = False) -> dict[str, Any]:
        """The conditions of samples by number, each as often as it is named; with their marks on, if asked for."""

        def kept(leaf: _Leaf) -> Any:
            if not marked or leaf.rows is None:
                return taken(leaf)
            return PerSample(taken(leaf)) if leaf.rows else Shared(leaf.value)

        def taken(leaf: _Leaf) -> Any:
            value = leaf.value
            if not leaf.rows:
                return value
            if len(value) == 1:
                return _expanded(value, len(numbers))
            if isinstance(value, Tensor):
                return value[torch.as_tensor(numbers, device=value.device)]
            return value[list(numbers)] if isinstance(value, np.ndarray) else _like(value, (value[i] for i in numbers))

        return self._handed(kept)

    def stacked(self, k: int) -> dict[str, Any]:
        """The conditions of all samples, `k` times one after the other."""
        return self.whole if k == 1 else self._handed(lambda leaf: _repeated(leaf.value, self.n, k, leaf.rows))

    def each(self, change: Callable[[Any], Any]) -> Conditions:
        """The same conditions, with a change that keeps shapes made to every one of them."""
        found = Conditions({}, self.n)
        found._tree = {
            name: _mapped(node, lambda leaf: leaf._replace(value=change(leaf.value)))
            for name, node in self._tree.items()
        }
        return found

    def _handed(self, take: Callable[[_Leaf], Any]) -> dict[str, Any]:
        return {name: _built(node, take) for name, node in self._tree.items()}


# fmt: off
OPTIONS = frozenset({
    "seed", "x_T", "batch_size", "progress", "grad", "nonfinite",
    "density", "method", "decoder", "estimate", "variance", "form", "return_log_prob", "solver_error",
    "times", "weight", "low_discrepancy", "reduction", "eps", "generator",
    "solver", "steps", "nfe", "grid", "device",
})
# fmt: on
"""Arguments of calls that hand conditions on: where one comes as a condition, it was meant for another call."""

# fmt: off
ARGUMENTS = OPTIONS | frozenset(OWN) | frozenset({
    "cond", "t", "x0", "n", "noise", "level", "systems", "model", "prior", "lam", "of", "sampler",
    "data", "recipe", "loss", "val", "callbacks", "out", "resume", "fraction", "scaling", "shard_size", "continuous",
    "s", "to", "done", "reach", "teacher", "calls", "tolerance", "kind", "budget", "draws", "entropy", "stretch",
})
# fmt: on
"""All arguments of calls that hand conditions on: no wrapper may call a condition of its own so."""


def check_options(cond: Mapping[str, Any], options: Mapping[str, str]) -> None:
    """Raises `TypeError` if what came as a condition of the model is an option of the call.

    Args:
        cond: The conditions by name.
        options: What to write instead, by name.
    """
    for name in cond:
        if instead := options.get(name):
            raise TypeError(
                f"{name}= is no argument here: write {instead}. A condition of the model that is called so goes in as "
                f"cond={{{name!r}: ...}}"
            )


def merged(given: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions by name, with those of an entry called `cond` among them."""
    named = dict(given)
    if option := next((name for name in named if name in OPTIONS), None):
        raise TypeError(
            f"{option}= is no argument of this call, and would go to the network: leave it out. A condition of the "
            f"model that is called so goes in as cond={{{option!r}: ...}}"
        )
    inner: Any = named.pop("cond", None)
    inner = {} if inner is None else inner
    if not isinstance(inner, Mapping) or not all(isinstance(name, str) for name in inner):
        raise TypeError(
            "cond is a mapping of conditions by name, such as cond={'level': level}, got "
            f"{type(inner).__name__}: a condition that is itself called cond goes in as cond={{'cond': ...}}"
        )
    if twice := sorted(named.keys() & inner.keys()):
        raise ValueError(f"condition {twice[0]!r} is given twice, by name and in cond=: give it once")
    found = {**named, **inner}
    if own := [name for name in OWN if name in found]:
        raise ValueError(
            f"a condition cannot be called {own[0]!r}, which is an argument of every model: wrap the network, "
            f"lambda x, t, other: net(x, t, {own[0]}=other)"
        )
    return found


def _row_shapes(model: Any) -> dict[str, tuple[int | None, ...]]:
    """The shapes of one context, image, sequence of tokens or control, where a model was built for them and says so."""
    built: Mapping[str, Any] = model.built_with() if hasattr(model, "built_with") else {}
    context, image, shape = built.get("context"), built.get("image"), getattr(model, "shape", None)
    found: dict[str, tuple[int | None, ...]] = {}
    if isinstance(context, int) and context:
        found["context"] = (context,)
    if isinstance(image, int) and image and shape:
        found["image"] = (image, *shape[1:])
    if isinstance(tokens := built.get("tokens"), int) and tokens:
        found["tokens"] = (None, tokens)  # of any length
    control, finer = built.get("control"), built.get("finer", 1)
    if isinstance(control, Mapping) and isinstance(finer, int) and shape:
        found |= {name: (channels, *(finer * n for n in shape[1:])) for name, channels in control.items()}
    return found


def _is_row(value: Any, wanted: tuple[int | None, ...]) -> bool:
    """Whether a value has the shape of one row, in which None is any length."""
    shape = _shape(value)
    if shape is None or len(shape) != len(wanted):
        return False
    return all(one is None or n == one for n, one in zip(shape, wanted, strict=True))


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor, an array, or a list of numbers."""
    if isinstance(value, Tensor | np.ndarray):
        return tuple(value.shape)
    flat = isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value)
    return (len(value),) if flat else None


def _rows(value: Any) -> int | None:
    """The number of rows of a tensor, array or sequence; None for what has none, a named tuple among it."""
    if isinstance(value, Tensor | np.ndarray):
        return len(value) if value.ndim else None
    return len(value) if isinstance(value, list | tuple | range) and not hasattr(value, "_fields") else None


def _expanded(value: Any, n: int) -> Any:
    """`n` rows, of as many or of one; in a tensor or array as a view."""
    if len(value) == n:
        return value
    if isinstance(value, Tensor):
        return value.expand(n, *value.shape[1:])
    return np.broadcast_to(value, (n, *value.shape[1:])) if isinstance(value, np.ndarray) else _times(value, n)


def _differ(value: Any) -> bool:
    """Whether rows are not all known to be the same."""
    if isinstance(value, Tensor | np.ndarray):
        same: Any = value == value[:1]
        return not bool(same.all())
    plain = isinstance(value[0], bool | int | float | str | None)
    return not all(type(each) is type(value[0]) and plain and each == value[0] for each in value[1:])


def _repeated(value: Any, n: int, k: int, rows: bool | None) -> Any:
    """A value `k` times over, if it has rows."""
    if not rows:
        return value
    if len(value) == 1:
        return _expanded(value, n * k)
    if isinstance(value, Tensor):
        return value.repeat(k, *[1] * (value.ndim - 1))
    return np.concatenate([value] * k) if isinstance(value, np.ndarray) else _times(value, k)


def _like(value: list[Any] | tuple[Any, ...] | range, entries: Iterable[Any]) -> list[Any] | tuple[Any, ...]:
    return tuple(entries) if isinstance(value, tuple) else list(entries)


def _times(value: list[Any] | tuple[Any, ...] | range, k: int) -> list[Any] | tuple[Any, ...]:
    return list(value) * k if isinstance(value, range) else value * k


def _leaves(nodes: Mapping[Any, _Leaf | _Tree]) -> Iterable[_Leaf]:
    for node in nodes.values():
        if isinstance(node, _Leaf):
            yield node
        else:
            yield from _leaves(node.parts)


def _mapped(node: _Leaf | _Tree, change: Callable[[_Leaf], _Leaf]) -> _Leaf | _Tree:
    if isinstance(node, _Leaf):
        return change(node)
    return node._replace(parts={key: _mapped(part, change) for key, part in node.parts.items()})


def _built(node: _Leaf | _Tree, take: Callable[[_Leaf], Any]) -> Any:
    """A condition put together again: the mapping that came, if nothing in it has changed, else one of its kind."""
    if isinstance(node, _Leaf):
        return take(node)
    parts = {key: _built(part, take) for key, part in node.parts.items()}
    if all(part is node.origin[key] for key, part in parts.items()):
        return node.origin
    if not isinstance(node.origin, MutableMapping):
        return parts
    changed = copy.copy(node.origin)
    for key, part in parts.items():
        changed[key] = part
    return changed


def _said(value: Any) -> str:
    """A condition as an error tells it."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{'a tensor' if isinstance(value, Tensor) else 'an array'} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _spelt(name: str, mark: str) -> str:
    """How a mark is written: as an argument, or around a part of one."""
    return f"{name}={mark}({name})" if name.isidentifier() else f"{mark}(...) around {name}"
